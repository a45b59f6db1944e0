//! What a file is that has no tensors, where people have taken it for one of weights.

use std::path::Path;

use retouch_graph::Files;

/// Bytes of a file that are looked at.
const HEAD: usize = 4096;
/// The text chunk of a PNG that the AUTOMATIC1111 web UI keeps an embedding in.
const EMBEDDING: &[u8] = b"sd-ti-embedding";

/// What a file is, in words that follow its name ("is ..."), and what to do; `None` of what may be weights, and of what
/// cannot be read.
#[must_use]
pub fn foreign(path: &Path, files: &dyn Files) -> Option<(String, &'static str)> {
    let (head, length) = files.read_head(path, HEAD).ok()?;
    of_head(&head, length)
}

fn of_head(head: &[u8], length: u64) -> Option<(String, &'static str)> {
    const AGAIN: &str = "download the file itself again";
    const SHOW: &str = "`retouch inspect` and `retouch show` say what a picture was made of";
    const UNPACK: &str = "unpack it, and name the file inside";
    if length == 0 {
        return Some(("is empty (0 bytes)".into(), AGAIN));
    }
    let begins = |magic: &[u8]| head.starts_with(magic);
    if begins(b"version https://git-lfs") {
        let text = String::from_utf8_lossy(head);
        let size = text.lines().find_map(|line| line.strip_prefix("size "));
        let size = size.map_or_else(String::new, |size| format!(" of {size} bytes"));
        return Some((
            format!("is a Git LFS pointer, the stand-in of a file{size} that was not fetched"),
            "fetch the file itself: `git lfs pull`",
        ));
    }
    if begins(b"\x89PNG") && head.windows(EMBEDDING.len()).any(|part| part == EMBEDDING) {
        return Some((
            "is a PNG picture with an embedding of the AUTOMATIC1111 web UI inside, which is not supported".into(),
            "save the embedding as `.safetensors` or `.pt` with the web UI",
        ));
    }
    let webp = begins(b"RIFF") && head.get(8..12) == Some(b"WEBP");
    for (is, what, help) in [
        (begins(b"\x89PNG"), "a PNG picture", SHOW),
        (begins(b"\xff\xd8\xff"), "a JPEG picture", SHOW),
        (webp, "a WebP picture", SHOW),
        (begins(b"GIF8"), "a GIF picture", SHOW),
        (begins(b"7z\xbc\xaf\x27\x1c"), "a 7z archive", UNPACK),
        (begins(b"Rar!"), "a RAR archive", UNPACK),
        (begins(b"\x1f\x8b"), "a gzip archive", UNPACK),
        (begins(b"\xfd7zXZ"), "an xz archive", UNPACK),
        (begins(b"\x28\xb5\x2f\xfd"), "a zstd archive", UNPACK),
        (begins(b"%PDF"), "a PDF", AGAIN),
        (
            begins(b"\x89HDF"),
            "an HDF5 file (Keras or TensorFlow), which is not supported",
            "take a safetensors file of the model",
        ),
    ] {
        if is {
            return Some((format!("is {what}"), help));
        }
    }
    // A safetensors file begins with the length of its header: eight letters would be a length of millions of gigabytes.
    let first = head.get(..8.min(head.len()))?;
    let is_text = first
        .iter()
        .all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~'));
    if !is_text {
        return None;
    }
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start().to_lowercase();
    let page = ["<!doctype html", "<html", "<head"];
    if page.iter().any(|tag| text.starts_with(tag)) {
        return Some((
            "is an HTML page: a login or error page in place of the file".into(),
            "download the file itself: a page that asks for a login or a licence has to be answered first",
        ));
    }
    if text.starts_with(['{', '[']) {
        return Some((
            "is JSON, a configuration or an answer of a server, and has no weights".into(),
            AGAIN,
        ));
    }
    let line: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(60)
        .collect();
    Some((format!("is text ({line:?})"), AGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_of_weights_is_called_what_it_is() {
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n";
        let embedding = b"\x89PNG\r\n\x1a\n....tEXtsd-ti-embedding\0eyJ";
        for (head, due) in [
            (&b""[..], "empty"),
            (
                lfs,
                "Git LFS pointer, the stand-in of a file of 4265380512 bytes",
            ),
            (b"\n<!DOCTYPE html><html>", "HTML page"),
            (b"{\"error\": \"Repository not found\"}", "JSON"),
            (b"Entry not found", "text (\"entry not found\")"),
            (b"\x89PNG\r\n\x1a\n", "PNG picture"),
            (embedding, "embedding of the AUTOMATIC1111 web UI"),
            (b"\xff\xd8\xff\xe0", "JPEG picture"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP picture"),
            (b"7z\xbc\xaf\x27\x1c\0\0", "7z archive"),
            (b"Rar!\x1a\x07", "RAR archive"),
        ] {
            let (what, _) = of_head(head, head.len() as u64).unwrap();
            assert!(what.contains(due), "{what}");
        }
        for weights in [
            &b"\x10\0\0\0\0\0\0\0{\"a\":"[..],
            b"PK\x03\x04",
            b"\x80\x02}q",
            b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
            b"{\0\0\0\0\0\0\0{\"a\"",
            b"GGUF\x03\0\0\0",
        ] {
            assert_eq!(of_head(weights, 1000), None);
        }
    }
}
