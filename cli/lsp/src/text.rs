//! Texts as an editor counts them: lines, columns in UTF-16 or UTF-8, paths as URIs.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use line_index::{LineCol, LineIndex, TextSize, WideEncoding, WideLineCol};
use lsp_types::{Position, Range, Uri};
use retouch_graph::Span;
use url::Url;

/// What a column counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Bytes, for clients that offer it.
    Utf8,
    /// Units of UTF-16, which every client knows.
    Utf16,
}

/// Where the lines of a text begin, and which characters are wide.
#[derive(Clone, Debug)]
pub struct Lines(LineIndex);

impl Lines {
    /// Finds the lines; they end in LF, CR LF or CR, as the protocol has it.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let alone = |at: usize| bytes[at] == b'\r' && bytes.get(at + 1) != Some(&b'\n');
        if !(0..bytes.len()).any(alone) {
            return Self(LineIndex::new(text));
        }
        // The crate ends no line at a CR alone: it is given as many bytes with LF in its place.
        let mut unified = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            unified.push(if c == '\r' && alone(at) { '\n' } else { c });
        }
        Self(LineIndex::new(&unified))
    }

    /// The position of a byte of the text.
    #[must_use]
    pub fn position(&self, text: &str, offset: usize, encoding: Encoding) -> Position {
        // `None` where the text is not the one that the lines were found in, or is too large for the index.
        let at = self.0.try_line_col(narrow(floor(text, offset)));
        let at = at.unwrap_or(LineCol { line: 0, col: 0 });
        let wide = match encoding {
            Encoding::Utf8 => None,
            Encoding::Utf16 => self.0.to_wide(WideEncoding::Utf16, at),
        };
        match wide {
            Some(wide) => Position::new(wide.line, wide.col),
            None => Position::new(at.line, at.col),
        }
    }

    /// The byte of a position; a column behind the line's end is its end, a line behind the text's end the text's.
    #[must_use]
    pub fn offset(&self, text: &str, position: Position, encoding: Encoding) -> usize {
        let Some(line) = self.0.line(position.line) else {
            return text.len();
        };
        let (start, end) = (usize::from(line.start()), usize::from(line.end()));
        let content = text.get(start..end).unwrap_or("");
        let end = start + content.trim_end_matches(['\r', '\n']).len();
        // No line has more units than bytes; the index does not check what it adds to a column.
        let column = position
            .character
            .min(u32::from(narrow(end.saturating_sub(start))));
        let column = match encoding {
            Encoding::Utf8 => Some(column),
            Encoding::Utf16 => {
                let wide = WideLineCol {
                    line: position.line,
                    col: column,
                };
                self.0.to_utf8(WideEncoding::Utf16, wide).map(|at| at.col)
            }
        };
        let column = column.and_then(|column| usize::try_from(column).ok());
        let offset = column.and_then(|column| start.checked_add(column));
        // Half of a character, or of a surrogate pair, is its beginning.
        floor(text, offset.map_or(end, |offset| offset.min(end)))
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

/// The beginning of the character that a byte is in; the text's end for one behind it.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// An offset as the index has it; texts have at most 64 MiB.
fn narrow(offset: usize) -> TextSize {
    TextSize::new(u32::try_from(offset).unwrap_or(u32::MAX))
}

/// The path of a `file:` URI; `None` for other schemes, and for hosts where the system has none in paths.
#[must_use]
pub fn path_of(uri: &Uri) -> Option<PathBuf> {
    let url = Url::parse(uri.as_str()).ok()?;
    let path = (url.scheme() == "file").then(|| url.to_file_path().ok())??;
    Some(retouch_graph::paths::normal(&path))
}

/// The URI of an absolute path; `None` when it is not Unicode.
#[must_use]
pub fn uri_of(path: &Path) -> Option<Uri> {
    path.to_str()?;
    let mut uri = String::new();
    // RFC 3986, which editors and `Uri` go by, lets fewer characters stand in a path than the URL standard does.
    for c in Url::from_file_path(path).ok()?.as_str().chars() {
        match c {
            '[' | ']' | '|' | '^' | '\\' | '`' => uri.push_str(&format!("%{:02X}", u32::from(c))),
            c => uri.push(c),
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
        assert_eq!(offset(1, u32::MAX), text.rfind('\r').unwrap());
        assert_eq!(offset(u32::MAX, 0), text.len());
        assert_eq!(offset(99, 0), text.len());
    }

    #[cfg(unix)]
    #[test]
    fn a_path_survives_its_uri() {
        let path = Path::new("/tmp/a b/bär #1%.yaml");
        let uri = uri_of(path).unwrap();
        assert_eq!(uri.as_str(), "file:///tmp/a%20b/b%C3%A4r%20%231%25.yaml");
        assert_eq!(path_of(&uri).unwrap(), path);
        // As VS Code writes it, and names that only some systems refuse.
        for name in [
            "a[1]|{2}^`3`.yaml",
            "c\\d?e.yaml",
            "100%.yaml",
            "tab\tand space .yaml",
        ] {
            let path = Path::new("/tmp").join(name);
            let uri = uri_of(&path).unwrap();
            assert_eq!(path_of(&uri).unwrap(), path, "{uri:?}");
        }
        let coded = Uri::from_str("file:///tmp/%61%20%5B1%5D.yaml").unwrap();
        assert_eq!(path_of(&coded).unwrap(), Path::new("/tmp/a [1].yaml"));
        let other = Uri::from_str("untitled:Untitled-1").unwrap();
        assert_eq!(path_of(&other), None);
    }
}
