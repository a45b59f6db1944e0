//! Texts in the EXIF of JPEG and WebP pictures that programs write their settings into.
//!
//! The AUTOMATIC1111 web UI writes its text as the user's comment (tag 0x9286), ComfyUI its graph as the camera's model (tag
//! 0x0110, `prompt:{...}`). EXIF is a TIFF (revision 6.0, 1992) of which only the first directory and that of EXIF itself are
//! looked at. Of the picture nothing is read.

use std::collections::BTreeMap;
use std::path::Path;

use retouch_graph::Files;

/// The longest EXIF that is read: a JPEG's has at most 64 KB, the graphs in WebP files some hundred.
const LONGEST: usize = 8 << 20;
/// Segments of a JPEG, or chunks of a WebP, that are looked at.
const MOST: usize = 4096;

const MODEL: u16 = 0x0110;
const EXIF: u16 = 0x8769;
const COMMENT: u16 = 0x9286;

/// The kind of picture, and the texts of its EXIF by the keywords that a PNG has for them: `parameters`, `prompt`. `None` of
/// what is no JPEG or WebP.
pub(super) fn texts(
    path: &Path,
    files: &dyn Files,
) -> Option<(&'static str, BTreeMap<String, String>)> {
    let (head, length) = files.read_head(path, 12).ok()?;
    let (kind, exif) = if head.starts_with(b"\xff\xd8\xff") {
        ("JPEG", of_jpeg(path, files))
    } else if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP") {
        ("WebP", of_webp(path, files, length))
    } else {
        return None;
    };
    let texts = exif.and_then(|exif| Tiff::new(&exif).map(|tiff| tiff.texts()));
    Some((kind, texts.unwrap_or_default()))
}

fn of_jpeg(path: &Path, files: &dyn Files) -> Option<Vec<u8>> {
    let mut at = 2;
    for _ in 0..MOST {
        let head = files.read_at(path, at, 4).ok()?;
        let &[0xff, marker, high, low] = head.as_slice() else {
            return None;
        };
        // Fill bytes, and the beginning of the picture's data.
        if marker == 0xff {
            at += 1;
            continue;
        }
        if marker == 0xda || marker == 0xd9 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([high, low])).checked_sub(2)?;
        if marker == 0xe1 {
            let segment = files.read_at(path, at + 4, length).ok()?;
            if let Some(exif) = segment.strip_prefix(b"Exif\0\0") {
                return Some(exif.to_vec());
            }
        }
        at += 4 + length as u64;
    }
    None
}

fn of_webp(path: &Path, files: &dyn Files, length: u64) -> Option<Vec<u8>> {
    let mut at = 12;
    for _ in 0..MOST {
        if at >= length {
            return None;
        }
        let head = files.read_at(path, at, 8).ok()?;
        let size = u32::from_le_bytes(*head.get(4..)?.first_chunk()?);
        if head.starts_with(b"EXIF") {
            let exif = files
                .read_at(path, at + 8, LONGEST.min(size as usize))
                .ok()?;
            // The chunk should not begin with JPEG's marker, and in some files it does.
            return Some(exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif).to_vec());
        }
        // Chunks are filled up to an even length.
        at += 8 + u64::from(size) + u64::from(size % 2);
    }
    None
}

struct Tiff<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl<'a> Tiff<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let big = match bytes.get(..4)? {
            b"II*\0" => false,
            b"MM\0*" => true,
            _ => return None,
        };
        Some(Self { bytes, big })
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(match self.big {
            true => u16::from_be_bytes(bytes),
            false => u16::from_le_bytes(bytes),
        })
    }

    fn u32(&self, at: usize) -> Option<usize> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        let number = match self.big {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        };
        usize::try_from(number).ok()
    }

    /// The value of a tag in the directory at a place: its bytes, and where they or it begin.
    fn find(&self, directory: usize, tag: u16) -> Option<(&'a [u8], usize)> {
        let count = usize::from(self.u16(directory)?);
        for entry in 0..count {
            let at = directory + 2 + 12 * entry;
            if self.u16(at)? != tag {
                continue;
            }
            let size = match self.u16(at + 2)? {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                5 | 10 | 12 => 8,
                _ => return None,
            };
            let length = self.u32(at + 4)?.checked_mul(size)?;
            let start = match length {
                0..=4 => at + 8,
                _ => self.u32(at + 8)?,
            };
            let bytes = self.bytes.get(start..start.checked_add(length)?)?;
            return Some((bytes, start));
        }
        None
    }

    fn texts(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let Some(first) = self.u32(4) else {
            return found;
        };
        let comment = self
            .find(first, EXIF)
            .and_then(|(_, at)| self.u32(at))
            .and_then(|exif| self.find(exif, COMMENT));
        if let Some(text) = comment.and_then(|(bytes, _)| comment_text(bytes)) {
            found.insert("parameters".to_owned(), text);
        }
        if let Some((model, _)) = self.find(first, MODEL) {
            let text = String::from_utf8_lossy(model);
            if let Some(graph) = text.trim_end_matches('\0').strip_prefix("prompt:") {
                found.insert("prompt".to_owned(), graph.to_owned());
            }
        }
        found
    }
}

/// The text of a user's comment: eight bytes say how it is written.
fn comment_text(bytes: &[u8]) -> Option<String> {
    let (code, text) = bytes.split_at_checked(8)?;
    let text = if code == b"UNICODE\0" {
        // The specification does not say in which order the two bytes are, and programs differ: in most texts the upper
        // one is zero.
        let (pairs, _) = text.as_chunks::<2>();
        let zeros = |place: usize| pairs.iter().filter(|pair| pair[place] == 0).count();
        let big = zeros(0) >= zeros(1);
        let units: Vec<u16> = pairs
            .iter()
            .map(|pair| match big {
                true => u16::from_be_bytes(*pair),
                false => u16::from_le_bytes(*pair),
            })
            .collect();
        String::from_utf16_lossy(&units)
    } else {
        String::from_utf8_lossy(text).into_owned()
    };
    let text = text.trim_matches(['\0', '\u{feff}', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use retouch_graph::{DiskFiles, MemoryFiles};

    use super::*;
    use crate::checkpoint::inspect::{Kind, Request, inspect};

    fn data(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/data")
            .join(name)
    }

    #[test]
    fn settings_in_jpeg_and_webp_are_told_by_inspect() {
        let inspect = |name: &str| {
            let request = Request {
                path: data(name),
                ..Request::default()
            };
            inspect(&request, &DiskFiles::new())
        };
        for (name, layout) in [
            ("a1111.jpg", "JPEG"),
            ("little.jpg", "JPEG"),
            ("a1111.webp", "WebP"),
        ] {
            let report = inspect(name).unwrap();
            assert_eq!(
                (report.kind, report.layout.as_str()),
                (Kind::Picture, layout)
            );
            for (key, due) in [
                ("prompt", "a k\u{e4}se on a table, (red:1.2)"),
                ("negative prompt", "blurry"),
                ("Sampler", "DPM++ 2M"),
                ("Model", "anything"),
            ] {
                assert_eq!(report.metadata[key], due, "{name}: {key}");
            }
            assert!(report.notes[0].contains("AUTOMATIC1111"), "{name}");
        }
        let report = inspect("comfyui.webp").unwrap();
        assert_eq!(report.metadata["3 KSampler"], "seed: 7, cfg: 8.0");
        assert_eq!(report.metadata["6 CLIPTextEncode"], "text: a cat");
        assert!(report.notes[0].contains("ComfyUI"));
        // What a camera or an editor wrote is a picture, and none of a program that draws.
        for name in ["camera.jpg", "exif.webp", "cmyk.jpg"] {
            let error = inspect(name).unwrap_err()[0].to_string();
            assert!(error.contains("picture"), "{error}");
        }
    }

    #[test]
    fn no_exif_however_broken_is_read_beyond_its_end() {
        let path = Path::new("a");
        for name in ["a1111.jpg", "a1111.webp", "comfyui.webp"] {
            let whole = std::fs::read(data(name)).unwrap();
            for length in 0..whole.len() {
                let files = MemoryFiles::new().with(path, &whole[..length]);
                let _ = texts(path, &files);
            }
            // Every byte at its ends: offsets and counts that lead elsewhere.
            for at in 0..whole.len() {
                for byte in [0, 0x7f, 0xff] {
                    let mut changed = whole.clone();
                    changed[at] = byte;
                    let files = MemoryFiles::new().with(path, &changed);
                    let _ = texts(path, &files);
                }
            }
        }
    }
}
