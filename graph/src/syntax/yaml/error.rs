//! The parser's errors in the words of the language.

use granit_parser::{ErrorKind, ScanError};

use crate::base::problem::{Code, Problem, Source, Span};
use crate::syntax::yaml::limits::MAX_DEPTH;

/// Whether a text in double quotes begins with a drive's letter, `"C:\`.
fn begins_with_drive(rest: &str) -> bool {
    matches!(rest.as_bytes(), [b'"', letter, b':', b'\\', ..] if letter.is_ascii_alphabetic())
}

/// The fault that the text is not YAML, as far as can be seen with what was probably meant.
pub(super) fn syntax(source: &Source, error: &ScanError) -> Problem {
    let mut at = error.marker().byte_offset().unwrap_or_default();
    if matches!(error.kind(), ErrorKind::TabInBlockIndentation)
        && source
            .text()
            .get(..at)
            .is_some_and(|before| before.ends_with('\t'))
    {
        at -= 1; // the parser stops after the tab
    }
    if let Some(tab) = tab_indent_near(source.text(), at) {
        return Problem::new(
            Code::Syntax,
            source,
            Span::new(tab, tab + 1),
            "this is not YAML: a line is indented with a tab",
        )
        .help("indent with spaces, two for each level");
    }
    let rest = source.text().get(at..).unwrap_or("");
    let width = rest
        .chars()
        .next()
        .filter(|c| !matches!(c, '\n' | '\r'))
        .map_or(0, char::len_utf8);
    let span = Span::new(at, at + width);
    if matches!(error.kind(), ErrorKind::UnknownAnchor) {
        let length = rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | ']' | '}'))
            .unwrap_or(rest.len());
        return Problem::new(
            Code::UnknownAlias,
            source,
            Span::new(at, at + length),
            format!(
                "there is no anchor `&{}` before this",
                rest.get(1..length).unwrap_or("")
            ),
        )
        .help("a reference to a node is written with a dollar: `$base`");
    }
    if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
        return Problem::new(
            Code::TooDeep,
            source,
            span,
            format!("maps and lists are nested more than {MAX_DEPTH} deep"),
        )
        .help("no workflow needs that; is a bracket missing?");
    }
    let template = unquoted_template_before(source.text(), at);
    let span = template.unwrap_or(span);
    let help = if template.is_some() {
        Some("quote the template: `{` opens a map in YAML, so write `prompt: \"{place} at night\"`")
    } else {
        match error.kind() {
            ErrorKind::TabInBlockIndentation => Some("indent with spaces, two for each level"),
            ErrorKind::MappingValueNotAllowed => Some(
                "quote a text that has `: ` in it; put each key and its value on a line of their own",
            ),
            ErrorKind::UnclosedFlowCollection { .. } => Some("close the bracket"),
            ErrorKind::UnexpectedCharacter { .. } => {
                Some("quote a text that begins with this character")
            }
            ErrorKind::ExpectedBlockMappingKey => Some(
                "the keys of a map begin in the same column; a text with brackets or quotes inside is quoted as a whole",
            ),
            _ if rest.starts_with('\t') => Some("indent with spaces, two for each level"),
            // `\m` of `"C:\models"` is not an escape.
            _ if begins_with_drive(rest) => Some(
                "in double quotes `\\` begins an escape: write the path in single quotes, or with `/`",
            ),
            _ => Some(
                "is a bracket or a quote not closed before this? A text with `: `, ` #`, brackets or quotes in it is quoted as a whole",
            ),
        }
    };
    let message = error.info();
    let message = message
        .rsplit_once(", ")
        .filter(|(context, _)| context.starts_with("while ") && !message.contains(", or"))
        .map_or(message.as_str(), |(_, what)| what);
    Problem::new(
        Code::Syntax,
        source,
        span,
        format!("this is not YAML: {message}"),
    )
    .maybe_help(help.map(str::to_owned))
}

/// The first tab in the indentation of the line where the parser gave up, or of the next one: it may stop before it.
fn tab_indent_near(text: &str, at: usize) -> Option<usize> {
    let mut start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    for _ in 0..2 {
        let line = text.get(start..)?.split('\n').next()?;
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        if indent < line.len()
            && let Some(tab) = line[..indent].find('\t')
        {
            return Some(start + tab);
        }
        start += line.len() + 1;
    }
    None
}

/// Where a `{name}` without quotes stands in the line before (or at) the place where the parser gave up.
fn unquoted_template_before(text: &str, at: usize) -> Option<Span> {
    let start = text
        .get(..at)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1);
    let end = text
        .get(at..)
        .and_then(|after| after.find('\n'))
        .map_or(text.len(), |newline| at + newline);
    let mut quote: Option<u8> = None;
    let mut open: Option<usize> = None;
    let bytes = text.as_bytes();
    for position in start..end {
        let byte = bytes[position];
        match quote {
            Some(mark) if mark == byte => quote = None,
            Some(_) => {}
            None => match byte {
                b'"' | b'\'' => quote = Some(byte),
                b'{' if position <= at => open = Some(position),
                b'}' => {
                    if let Some(from) = open.take()
                        && crate::syntax::template::is_name(&text[from + 1..position])
                    {
                        return Some(Span::new(from, position + 1));
                    }
                }
                _ => {}
            },
        }
    }
    None
}
