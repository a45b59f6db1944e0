//! Texts as an editor counts them: lines, columns in UTF-16 or UTF-8, paths as URIs.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use lsp_types::{Position, Range, Uri};
use retouch_graph::Span;

/// What a column counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Bytes, for clients that offer it.
    Utf8,
    /// Units of UTF-16, which every client knows.
    Utf16,
}

/// Where the lines of a text begin.
#[derive(Clone, Debug)]
pub struct Lines(Vec<usize>);

impl Lines {
    /// Finds the lines; they end in LF, CR LF or CR, as the protocol has it.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut starts = vec![0];
        for (at, byte) in bytes.iter().enumerate() {
            if *byte == b'\n' || (*byte == b'\r' && bytes.get(at + 1) != Some(&b'\n')) {
                starts.push(at + 1);
            }
        }
        Self(starts)
    }

    /// The position of a byte of the text.
    #[must_use]
    pub fn position(&self, text: &str, offset: usize, encoding: Encoding) -> Position {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.0.partition_point(|&start| start <= offset).max(1) - 1;
        let start = self.0.get(line).copied().unwrap_or(0);
        let before = text.get(start..offset).unwrap_or("");
        let column = match encoding {
            Encoding::Utf8 => before.len(),
            Encoding::Utf16 => before.chars().map(char::len_utf16).sum(),
        };
        Position::new(narrow(line), narrow(column))
    }

    /// The byte of a position; a column behind the line's end is its end, a line behind the text's end the text's.
    #[must_use]
    pub fn offset(&self, text: &str, position: Position, encoding: Encoding) -> usize {
        let line = position.line as usize;
        let Some(&start) = self.0.get(line) else {
            return text.len();
        };
        let end = self.0.get(line + 1).copied().unwrap_or(text.len());
        let content = text
            .get(start..end)
            .unwrap_or("")
            .trim_end_matches(['\r', '\n']);
        let mut left = position.character as usize;
        let mut at = start;
        for c in content.chars() {
            let width = match encoding {
                Encoding::Utf8 => c.len_utf8(),
                Encoding::Utf16 => c.len_utf16(),
            };
            if left < width {
                break;
            }
            left -= width;
            at += c.len_utf8();
        }
        at
    }

    /// The range of a span.
    #[must_use]
    pub fn range(&self, text: &str, span: Span, encoding: Encoding) -> Range {
        Range::new(
            self.position(text, span.start, encoding),
            self.position(text, span.end.max(span.start), encoding),
        )
    }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The path of a `file:` URI; `None` for other schemes.
#[must_use]
pub fn path_of(uri: &Uri) -> Option<PathBuf> {
    let rest = uri.as_str().strip_prefix("file://")?;
    // What stands before the path is a host, which only shares of Windows have.
    let path = &rest[rest.find('/')?..];
    let path = decoded(path)?;
    let drive = path.as_bytes().get(2) == Some(&b':');
    let path = if cfg!(windows) && drive {
        &path[1..]
    } else {
        &path
    };
    Some(retouch_graph::check::normal(Path::new(path)))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The URI of an absolute path; `None` when it is not Unicode.
#[must_use]
pub fn uri_of(path: &Path) -> Option<Uri> {
    let text = path.to_str()?;
    let text = if cfg!(windows) {
        format!("/{}", text.replace('\\', "/"))
    } else {
        text.to_owned()
    };
    let mut uri = String::from("file://");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~') {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    Uri::from_str(&uri).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_utf16_units_or_bytes_and_lines_end_three_ways() {
        let text = "a: é\r\nb: 🐻x\rc\n";
        let lines = Lines::of(text);
        let bear = text.find('x').unwrap();
        assert_eq!(
            lines.position(text, bear, Encoding::Utf16),
            Position::new(1, 5)
        );
        assert_eq!(
            lines.position(text, bear, Encoding::Utf8),
            Position::new(1, 7)
        );
        for encoding in [Encoding::Utf8, Encoding::Utf16] {
            for (at, _) in text
                .char_indices()
                .filter(|(_, c)| !matches!(c, '\r' | '\n'))
            {
                let position = lines.position(text, at, encoding);
                assert_eq!(lines.offset(text, position, encoding), at);
            }
        }
        // Inside a surrogate pair, behind a line's end, behind the text's end.
        let offset =
            |line, column| lines.offset(text, Position::new(line, column), Encoding::Utf16);
        assert_eq!(offset(1, 4), text.find('🐻').unwrap());
        assert_eq!(offset(0, 99), text.find('\r').unwrap());
        assert_eq!(offset(99, 0), text.len());
    }

    #[cfg(unix)]
    #[test]
    fn a_path_survives_its_uri() {
        let path = Path::new("/tmp/a b/bär #1%.yaml");
        let uri = uri_of(path).unwrap();
        assert_eq!(uri.as_str(), "file:///tmp/a%20b/b%C3%A4r%20%231%25.yaml");
        assert_eq!(path_of(&uri).unwrap(), path);
        let other = Uri::from_str("untitled:Untitled-1").unwrap();
        assert_eq!(path_of(&other), None);
    }
}
