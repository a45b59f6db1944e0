//! Text that others wrote (files, names, arguments, records), made safe to print.
//!
//! A terminal obeys control characters: an escape sequence can set the clipboard, move the cursor or hide text, and the
//! overrides of writing direction show a text in another order than it is read in. Each such character is replaced by one
//! visible character of one column, so what stands in columns stays there.

use std::borrow::Cow;
use std::fmt;

use retouch_graph::text::start;

/// The visible character for one that is not printed as it is; `None` where it may stay.
fn visible(c: char) -> Option<char> {
    match c {
        '\n' | '\t' => None,
        // The control pictures: U+241B for U+001B.
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)),
        '\u{7f}' => Some('\u{2421}'),
        '\u{80}'..='\u{9f}' => Some('\u{fffd}'),
        // Line separators, and the embeddings, overrides and isolates of writing direction.
        '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            Some('\u{fffd}')
        }
        _ => None,
    }
}

/// The text with every control character but line breaks and tabs replaced by a visible one. A line break of two
/// characters (`\r\n`) becomes one.
#[must_use]
pub fn safe(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| visible(c).is_some()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\r' && rest.peek() == Some(&'\n') {
            continue;
        }
        out.push(visible(c).unwrap_or(c));
    }
    Cow::Owned(out)
}

/// The same for one character of a line: a tab stays, a line break does not.
#[must_use]
pub fn safe_char(c: char) -> char {
    match c {
        '\n' => '\u{240a}',
        c => visible(c).unwrap_or(c),
    }
}

/// Longest value or prompt in a list, in characters.
pub const VALUE: usize = 120;
/// No system has longer paths.
const LONGEST_PATH: usize = 4096;
/// Longest name in a column of a list, in characters.
pub const NAME: usize = 60;

/// At most `most` characters of a text; what is left out of a longer one is `…`, most of the start and a little of the end
/// stay.
#[must_use]
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if start(text, most).is_none() {
        return Cow::Borrowed(text);
    }
    let end = most / 4;
    let head = start(text, most - end - 1).unwrap_or(text);
    let tail = (text.char_indices().rev().take(end).last()).map_or(text.len(), |(at, _)| at);
    Cow::Owned(format!("{head}…{}", &text[tail..]))
}

/// A name, a prompt or a value on one line of at most `most` characters: line breaks are visible, a long one is cut.
#[must_use]
pub fn brief(text: &str, most: usize) -> String {
    cut(text, most).chars().map(safe_char).collect()
}

/// A path on one line: line breaks in it are visible.
#[must_use]
pub fn path(path: &std::path::Path) -> String {
    brief(&path.display().to_string(), LONGEST_PATH)
}

/// JSON without raw control characters: `serde_json` leaves those above U+007E as they are. All such characters of a JSON
/// text stand in its strings, where the escape means the same.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    let raw = |c: char| visible(c).is_some();
    if !text.chars().any(raw) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match raw(c) {
            // All of them lie in the basic plane.
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Text with colours of our own. It has no control characters but line breaks, tabs and the sequences that set colours
/// (`ESC [ … m`): the code that makes one replaces those of other text first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Styled(String);

impl Styled {
    /// Keeps colours and replaces every other control character.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('\u{1b}') {
            out.push_str(&safe(&rest[..at]));
            rest = &rest[at..];
            let colour = colour_length(rest);
            match colour {
                Some(length) => out.push_str(&rest[..length]),
                None => out.push('\u{241b}'),
            }
            rest = &rest[colour.unwrap_or(1)..];
        }
        out.push_str(&safe(rest));
        Self(out)
    }

    /// The text as it is printed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Styled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The length of the sequence that sets a colour at the beginning of a text.
fn colour_length(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\u{1b}[")?;
    let digits = body.len()
        - body
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == ';')
            .len();
    body[digits..].starts_with('m').then_some(2 + digits + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_on_its_line() {
        let file = std::path::Path::new("z\nok: no faults\u{1b}[31m.yaml");
        assert_eq!(path(file), "z␊ok: no faults␛[31m.yaml");
    }

    #[test]
    fn control_characters_become_visible_in_the_same_columns() {
        assert_eq!(safe("a\tb\nc"), "a\tb\nc");
        assert_eq!(
            safe("\u{1b}]52;c;eA==\u{7}\u{7f}\u{9b}2J\u{202e}"),
            "␛]52;c;eA==␇␡\u{fffd}2J\u{fffd}"
        );
        assert_eq!(safe("a\r\nb\rc"), "a\nb␍c");
        assert_eq!(brief("a\nb\u{1b}", 10), "a␊b␛");
        assert!(matches!(safe("ünchanged — ok"), Cow::Borrowed(_)));
        for c in (0..0x3000).filter_map(char::from_u32) {
            let one = safe_char(c);
            assert!(one == '\t' || !one.is_control(), "{c:?}");
        }
    }

    #[test]
    fn long_texts_are_cut_and_say_so() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("äöü", 3), "äöü");
        let long = "ä".repeat(500) + "ende";
        let shown = cut(&long, 20);
        assert_eq!(shown.chars().count(), 20);
        assert!(shown.starts_with('ä') && shown.contains('…') && shown.ends_with("ende"));
    }

    #[test]
    fn json_means_the_same() {
        let text = serde_json::to_string("\u{1b}\u{7f}\u{9b}\u{202e}\n é").unwrap();
        let escaped = json(&text);
        assert!(!escaped.chars().any(|c| c.is_control() || c == '\u{202e}'));
        let read: String = serde_json::from_str(&escaped).unwrap();
        assert_eq!(read, "\u{1b}\u{7f}\u{9b}\u{202e}\n é");
    }

    #[test]
    fn only_colours_survive_in_styled_text() {
        let text = "\u{1b}[1;31mred\u{1b}[0m \u{1b}[2J \u{1b}]0;x\u{7} \u{1b}[";
        assert_eq!(
            Styled::new(text).as_str(),
            "\u{1b}[1;31mred\u{1b}[0m ␛[2J ␛]0;x␇ ␛["
        );
    }
}
