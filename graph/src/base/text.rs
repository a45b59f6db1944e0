//! Long texts in messages, lists and pictures: one way to shorten them.

use std::borrow::Cow;

/// The first `most` characters of a text that has more; `None` when it does not.
#[must_use]
pub fn start(text: &str, most: usize) -> Option<&str> {
    // A text has no more characters than bytes, which costs no counting.
    if text.len() <= most {
        return None;
    }
    text.char_indices().nth(most).map(|(at, _)| &text[..at])
}

/// A text of at most `most` characters, 1 or more: of a longer one the start and `…`, without white space before it.
#[must_use]
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match start(text, most) {
        None => Cow::Borrowed(text),
        Some(_) => {
            let start = start(text, most.saturating_sub(1)).unwrap_or_default();
            Cow::Owned(format!("{}…", start.trim_end()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_says_so() {
        for (text, most, expected) in [
            ("", 1, ""),
            ("äöü", 3, "äöü"),
            ("äöüß", 3, "äö…"),
            ("a b", 2, "a…"),
            ("a  b", 3, "a…"),
            ("ab", 1, "…"),
        ] {
            assert_eq!(shortened(text, most), expected, "{text:?}");
        }
        assert_eq!(start("äöü", 3), None);
        assert_eq!(start("äöü", 2), Some("äö"));
    }
}
