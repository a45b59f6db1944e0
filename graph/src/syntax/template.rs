//! Templates: texts in which `{name}` stands for a param, and `{{` and `}}` for braces.

use std::borrow::Cow;
use std::ops::Range;

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateFault {
    /// A `{` without its `}`, or a `}` without its `{`; the byte is given.
    Brace(usize),
    /// What stands between the braces is not a name; its range with the braces.
    NotAName(Range<usize>),
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text as it is.
    Text(Cow<'a, str>),
    /// A name, and the range of bytes that it takes with its braces.
    Name(&'a str, Range<usize>),
}

/// Whether `text` may be the name of a node, a param, an input or an output.
#[must_use]
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Splits a template into its pieces.
///
/// # Errors
/// When a brace is single, or what is in braces is not a name.
pub fn pieces(text: &str) -> Result<Vec<Piece<'_>>, TemplateFault> {
    let mut pieces = Vec::new();
    let mut from = 0;
    let mut at = 0;
    let bytes = text.as_bytes();
    let push = |pieces: &mut Vec<_>, range: Range<usize>| {
        if !range.is_empty() {
            pieces.push(Piece::Text(Cow::Borrowed(&text[range])));
        }
    };
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'}' if bytes.get(at + 1) == Some(byte) => {
                push(&mut pieces, from..at + 1);
                at += 2;
                from = at;
            }
            b'{' => {
                push(&mut pieces, from..at);
                let Some(length) = text[at..].find('}') else {
                    return Err(TemplateFault::Brace(at));
                };
                let range = at..at + length + 1;
                let name = &text[at + 1..at + length];
                if !is_name(name) {
                    return Err(TemplateFault::NotAName(range));
                }
                at = range.end;
                from = at;
                pieces.push(Piece::Name(name, range));
            }
            b'}' => return Err(TemplateFault::Brace(at)),
            _ => at += 1,
        }
    }
    push(&mut pieces, from..bytes.len());
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match pieces(text) {
            Ok(pieces) => pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Text(text) => text.to_string(),
                    Piece::Name(name, _) => format!("<{name}>"),
                })
                .collect(),
            Err(fault) => format!("{fault:?}"),
        }
    }

    #[test]
    fn names_are_found_and_doubled_braces_are_braces() {
        assert_eq!(show("a {place} at {time-2}"), "a <place> at <time-2>");
        assert_eq!(show("{{{a}}}"), "{<a>}");
        assert_eq!(show("}}{{"), "}{");
        assert_eq!(show("é{a}é"), "é<a>é");
        assert_eq!(show(""), "");
    }

    #[test]
    fn a_lone_brace_and_what_is_no_name_are_faults() {
        assert_eq!(show("a {b"), "Brace(2)");
        assert_eq!(show("a } b"), "Brace(2)");
        assert_eq!(show("{a b}"), "NotAName(0..5)");
        assert_eq!(show("{}"), "NotAName(0..2)");
    }
}
