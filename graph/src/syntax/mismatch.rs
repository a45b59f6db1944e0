//! Values that do not fit where they are written: what was expected there, what is there, and how to write it.

use std::borrow::Cow;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::syntax::yaml::{Node, Tree};
use crate::value::fields::MAX_INTEGER;

/// A value that does not fit, not yet joined with its place.
#[derive(Clone, Debug)]
pub(crate) struct Mismatch {
    pub(crate) code: Code,
    pub(crate) message: String,
    help: Option<Help>,
}

/// What to do about a value that does not fit.
#[derive(Clone, Debug)]
enum Help {
    Text(String),
    /// How to write the value, as `name: value` in a file and `--set name=value` on the command line.
    Write {
        /// What stands before it, up to the backquote.
        before: &'static str,
        name: String,
        value: String,
    },
}

impl Help {
    fn in_file(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Write {
                before,
                name,
                value,
            } => format!("{before}`{name}: {value}`"),
        }
    }

    fn in_option(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Write {
                before,
                name,
                value,
            } => format!("{before}`--set {name}={value}`"),
        }
    }
}

impl Mismatch {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(Help::Text(help.into()));
        self
    }

    /// Says how to write the value of `name`.
    fn write(mut self, before: &'static str, name: &str, value: impl Into<String>) -> Self {
        self.help = Some(Help::Write {
            before,
            name: name.to_owned(),
            value: value.into(),
        });
        self
    }

    /// The fault and its help in one line.
    pub(crate) fn in_words(self) -> String {
        match self.help {
            Some(help) => format!("{}: {}", self.message, help.in_file()),
            None => self.message,
        }
    }

    /// The fault at a place of a file.
    pub(crate) fn at(self, source: &Source, span: Span) -> Problem {
        Problem::new(self.code, source, span, self.message).maybe_help(self.help.map(Help::in_file))
    }

    /// The fault at a place of the command line.
    pub(crate) fn at_option(self, source: &Source, span: Span) -> Problem {
        Problem::new(self.code, source, span, self.message)
            .maybe_help(self.help.map(Help::in_option))
    }
}

/// Why a text is no path: it is empty, or a path of Windows of which escapes made something else (`"C:\new"` in double quotes
/// is a drive, a line break and `ew`).
pub(crate) fn no_path(name: &str, text: &str) -> Option<Mismatch> {
    if text.is_empty() {
        let message = format!("`{name}` takes a path, and this text is empty");
        return Some(
            Mismatch::new(Code::ValueType, message)
                .help("name a file or a folder, relative to this one; or remove the key"),
        );
    }
    let mut chars = text.chars();
    let drive = chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.next() == Some(':');
    let escaped = chars.next().filter(|c| drive && c.is_control())?;
    let what = match escaped {
        '\n' => "a line break",
        '\t' => "a tab",
        _ => "a control character",
    };
    let message = format!("`{name}` takes a path, and this text has {what} after the drive letter");
    Some(Mismatch::new(Code::ValueType, message).help(
        "in double quotes `\\` begins an escape: write the path in single quotes, or with `/`",
    ))
}

/// What to do about a number out of its range: the nearest that is inside, if the bounds themselves are.
pub(crate) fn nearest_inside(number: f64, min: Option<f64>, max: Option<f64>) -> String {
    match (min, max) {
        (Some(min), _) if number < min => format!("the nearest is {min}"),
        (_, Some(max)) if number > max => format!("the nearest is {max}"),
        _ => "give a number inside of it".to_owned(),
    }
}

/// The kinds of value that fit; they decide which code a mismatch has and which example it gives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accepts {
    pub(crate) boolean: bool,
    pub(crate) integer: bool,
    pub(crate) number: bool,
    /// Any text; words of a fixed set do not count.
    pub(crate) text: bool,
    pub(crate) list: bool,
}

/// What is expected where a value is written.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// In words: "an integer".
    words: Cow<'static, str>,
    accepts: Accepts,
    /// A value that fits, if there is a better one than its kind alone gives.
    example: Option<Cow<'static, str>>,
}

impl Expected {
    pub(crate) fn new(words: impl Into<Cow<'static, str>>, accepts: Accepts) -> Self {
        Self {
            words: words.into(),
            accepts,
            example: None,
        }
    }

    pub(crate) fn example(mut self, example: impl Into<Cow<'static, str>>) -> Self {
        self.example = Some(example.into());
        self
    }

    pub(crate) fn text() -> Self {
        let accepts = Accepts {
            text: true,
            ..Accepts::default()
        };
        Self::new("a text", accepts)
    }

    pub(crate) fn integer() -> Self {
        let accepts = Accepts {
            integer: true,
            ..Accepts::default()
        };
        Self::new("an integer", accepts)
    }

    pub(crate) fn number() -> Self {
        let accepts = Accepts {
            number: true,
            ..Accepts::default()
        };
        Self::new("a number", accepts)
    }

    pub(crate) fn boolean() -> Self {
        let accepts = Accepts {
            boolean: true,
            ..Accepts::default()
        };
        Self::new("`true` or `false`", accepts).example("true")
    }

    /// A number of steps, or a share of them.
    pub(crate) fn steps() -> Self {
        let accepts = Accepts {
            number: true,
            ..Accepts::default()
        };
        let words = "a number of steps or a share of them, `10` or `20%`";
        Self::new(words, accepts).example("10")
    }

    /// The fault that the value of `name` is something else.
    pub(crate) fn mismatch(&self, name: &str, tree: &Tree) -> Mismatch {
        let mismatch = self.near_miss(name, tree);
        if mismatch.help.is_some() {
            return mismatch;
        }
        let example = match &self.example {
            Some(example) => example,
            None if self.accepts.integer => "50",
            None if self.accepts.number => "7.5",
            None if self.accepts.list => "[...]",
            None => "\"...\"",
        };
        mismatch.write("write it as in ", name, example)
    }

    /// The mismatch, with help if it can be seen what was meant.
    fn near_miss(&self, name: &str, tree: &Tree) -> Mismatch {
        let accepts = self.accepts;
        let message = format!("`{name}` takes {}, not {}", self.words, tree.describe());
        let mismatch = |code: Code| Mismatch::new(code, message.clone());
        let quoted = |value: String| {
            mismatch(Code::ValueType).write("put it in quotes: ", name, format!("\"{value}\""))
        };
        match &tree.node {
            Node::String { text, quoted } => {
                let trimmed = text.trim();
                if accepts.boolean
                    && let Some(value) = boolean_word(trimmed)
                {
                    let mismatch = mismatch(Code::NotABool);
                    return match trimmed {
                        "true" | "false" => {
                            mismatch.write("write it without quotes: ", name, trimmed)
                        }
                        _ => mismatch.write("write ", name, value.to_string()),
                    };
                }
                let digits = trimmed.replace('_', "");
                let is_number = |text: &str| {
                    text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
                        && text.parse::<f64>().is_ok()
                };
                if !(accepts.number || accepts.integer) {
                    mismatch(Code::ValueType)
                } else if *quoted && is_number(trimmed) {
                    mismatch(Code::QuotedNumber).write("write it without quotes: ", name, trimmed)
                } else if digits != trimmed && is_number(&digits) {
                    let before = "numbers are written without underscores: ";
                    mismatch(Code::ValueType).write(before, name, digits)
                } else {
                    mismatch(Code::ValueType)
                }
            }
            Node::Float(value)
                if accepts.integer && value.fract() == 0.0 && value.abs() <= MAX_INTEGER as f64 =>
            {
                mismatch(Code::ValueType).write("write ", name, format!("{value:.0}"))
            }
            Node::Map(entries) if tree.looks_like_template() => {
                let inner = entries.first().map_or("", |(key, _)| key.text.as_str());
                let value = format!("\"{{{inner}}}\"");
                mismatch(Code::UnquotedTemplate).write("quote the template: ", name, value)
            }
            Node::Int(value) if accepts.text => quoted(value.to_string()),
            Node::Float(value) if accepts.text => quoted(value.to_string()),
            Node::Bool(value) if accepts.text => quoted(value.to_string()),
            Node::Null => {
                mismatch(Code::ValueType).help(format!("give `{name}` a value, or remove the key"))
            }
            _ => mismatch(Code::ValueType),
        }
    }
}

/// What a text means that other programs read as a boolean.
fn boolean_word(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str, quoted: bool) -> Tree {
        let node = Node::String {
            text: text.to_owned(),
            quoted,
        };
        let span = Span::default();
        Tree { node, span }
    }

    #[test]
    fn the_code_comes_from_the_kinds_that_fit_and_not_from_the_words() {
        let seven = text("7", true);
        let code = |expected: Expected| expected.mismatch("a", &seven).code;
        assert_eq!(code(Expected::number()), Code::QuotedNumber);
        assert_eq!(code(Expected::steps()), Code::QuotedNumber);
        // The words speak of numbers, integers and `true`, but none of these fits.
        for words in ["a `number`", "an `integer` or `list`", "`true_north`"] {
            let expected = || Expected::new(words, Accepts::default());
            assert_eq!(code(expected()), Code::ValueType, "{words}");
            let yes = expected().mismatch("a", &text("yes", false));
            assert_eq!(yes.code, Code::ValueType, "{words}");
            assert_eq!(
                yes.in_words().split(": write").nth(1),
                Some(" it as in `a: \"...\"`")
            );
        }
        // And the other way round.
        let accepts = Accepts {
            boolean: true,
            ..Accepts::default()
        };
        let yes = Expected::new("a switch", accepts).mismatch("a", &text("yes", false));
        assert_eq!(yes.code, Code::NotABool);
    }

    #[test]
    fn help_is_written_for_the_place_of_the_value() {
        let source = Source::new("t", "a");
        let mismatch = || Expected::number().mismatch("a: b", &text("7", true));
        let hint = |problem: Problem| problem.hint().map(str::to_owned);
        let span = Span::default();
        let in_file = hint(mismatch().at(&source, span));
        assert_eq!(
            in_file.as_deref(),
            Some("write it without quotes: `a: b: 7`")
        );
        let in_option = hint(mismatch().at_option(&source, span));
        let expected = "write it without quotes: `--set a: b=7`";
        assert_eq!(in_option.as_deref(), Some(expected));
    }

    #[test]
    fn a_path_of_windows_in_double_quotes_is_told_from_what_its_escapes_made_of_it() {
        // As YAML reads `"C:\new"`, `"d:\textures"` and `"C:\bin"`.
        for (text, due) in [
            ("C:\new", "a line break"),
            ("d:\textures", "a tab"),
            ("C:\u{8}in", "a control character"),
        ] {
            let words = no_path("path", text).unwrap().in_words();
            assert!(
                words.contains(due) && words.contains("single quotes"),
                "{words}"
            );
        }
        for text in ["C:\\new", "C:/new", "C:", "a\nb", "models/new", "ab:\nc"] {
            assert!(no_path("path", text).is_none(), "{text:?}");
        }
        let words = no_path("path", "").unwrap().in_words();
        assert!(words.contains("is empty"), "{words}");
    }
}
