//! The types of params, and the values that `--set` and `--params` give them.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::suggest;
use crate::syntax::workflow::{ParamDecl, Workflow};
use crate::syntax::yaml::{self, Key, Node, Tree};
use crate::value::fields::{MAX_INTEGER, Steps};

/// The type of a param, or of an input that is a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamType {
    /// A text.
    String,
    /// An integer.
    Int,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
    /// A number of steps, or a share of them: `20%`.
    Steps,
    /// A seed: an integer from 0, or `random`.
    Seed,
    /// A path, relative to the file that wrote it.
    Path,
    /// One of the texts under `values`.
    Choice,
    /// Places in the U-Net: `auto`, `all`, `none`, a range `10..16`, or a list.
    Sites,
    /// `otsu`, `soft` or a number.
    Threshold,
}

/// What to do about a path that is empty.
const EMPTY_PATH: &str = "name a file or a folder, relative to this one; or remove the key";
/// Why a text is no path: it is empty, or a path of Windows of which escapes made something else (`"C:\new"` in double quotes
/// is a drive, a line break and `ew`).
pub(crate) fn no_path(name: &str, text: &str) -> Option<Mismatch> {
    if text.is_empty() {
        let mismatch = Mismatch::new(
            Code::ValueType,
            format!("`{name}` takes a path, and this text is empty"),
        );
        return Some(mismatch.help(EMPTY_PATH));
    }
    let mut chars = text.chars();
    let drive = chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.next() == Some(':');
    let escaped = chars.next().filter(|c| c.is_control())?;
    drive.then(|| {
        Mismatch::new(
            Code::ValueType,
            format!(
                "`{name}` takes a path, and this text has {} behind the drive",
                match escaped {
                    '\n' => "a line break",
                    '\t' => "a tab",
                    _ => "a control character",
                }
            ),
        )
        .help(
            "in double quotes `\\` begins an escape: write the path in single quotes, or with `/`",
        )
    })
}

/// What to do about a number of steps that is none.
const STEPS_HELP: &str = "write `10` for ten steps, `20%` for a share of all of them";

/// What to do about a number out of its range: the nearest that is inside, if the bounds themselves are.
pub(crate) fn nearest_inside(number: f64, min: Option<f64>, max: Option<f64>) -> String {
    match (min, max) {
        (Some(min), _) if number < min => format!("the nearest is {min}"),
        (_, Some(max)) if number > max => format!("the nearest is {max}"),
        _ => "give a number inside of it".to_owned(),
    }
}

/// A value that does not fit, not yet joined with its place.
#[derive(Clone, Debug)]
pub(crate) struct Mismatch {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
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
        self.help = Some(help.into());
        self
    }

    /// The fault and the way out in one line.
    pub(crate) fn in_words(self) -> String {
        match self.help {
            Some(help) => format!("{}: {help}", self.message),
            None => self.message,
        }
    }

    pub(crate) fn at(self, source: &Source, span: Span) -> Problem {
        Problem::new(self.code, source, span, self.message).maybe_help(self.help)
    }
}

impl ParamType {
    /// All types in the order in which they are documented.
    pub const ALL: [Self; 10] = [
        Self::String,
        Self::Int,
        Self::Float,
        Self::Bool,
        Self::Steps,
        Self::Seed,
        Self::Path,
        Self::Choice,
        Self::Sites,
        Self::Threshold,
    ];

    /// The name in the language.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Int => "int",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::Steps => "steps",
            Self::Seed => "seed",
            Self::Path => "path",
            Self::Choice => "choice",
            Self::Sites => "sites",
            Self::Threshold => "threshold",
        }
    }

    /// The type of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Reads a value of this type; `random` is left as it is.
    pub(crate) fn read(self, name: &str, tree: &Tree) -> Result<Json, Mismatch> {
        let text = |what: &str| match &tree.node {
            Node::String { text, .. } => Ok(Json::from(text.as_str())),
            _ => Err(expected(name, what, tree)),
        };
        match self {
            Self::String => text("a text"),
            Self::Choice => text("one of its values"),
            Self::Path => match &tree.node {
                Node::String { text: path, .. } => match no_path(name, path) {
                    Some(mismatch) => Err(mismatch),
                    None => text("a path"),
                },
                _ => text("a path"),
            },
            Self::Int => match &tree.node {
                Node::Int(value) => Ok(Json::from(*value)),
                _ => Err(expected(name, "an integer", tree)),
            },
            Self::Float => match &tree.node {
                Node::Int(value) => Ok(Json::from(*value)),
                Node::Float(value) => Ok(Json::from(*value)),
                _ => Err(expected(name, "a number", tree)),
            },
            Self::Bool => match &tree.node {
                Node::Bool(value) => Ok(Json::from(*value)),
                _ => Err(expected(name, "`true` or `false`", tree)),
            },
            Self::Steps => match &tree.node {
                Node::Int(value) if *value >= 0 => Ok(Json::from(*value)),
                Node::Int(value) => Err(Mismatch::new(
                    Code::OutOfRange,
                    format!("`{name}` is a number of steps and cannot be {value}"),
                )
                .help(STEPS_HELP)),
                Node::String { text, .. } if text.ends_with('%') => match Steps::parse(text) {
                    Ok(_) => Ok(Json::from(text.as_str())),
                    Err(message) => Err(Mismatch::new(
                        Code::ValueType,
                        format!("`{name}`: {message}"),
                    )
                    .help(STEPS_HELP)),
                },
                _ => Err(expected(
                    name,
                    "a number of steps or a share of them, `10` or `20%`",
                    tree,
                )),
            },
            Self::Seed => match &tree.node {
                Node::Int(value) if *value >= 0 => Ok(Json::from(*value)),
                Node::Int(value) => Err(Mismatch::new(
                    Code::OutOfRange,
                    format!("the seed `{name}` is from 0 to {MAX_INTEGER}, not {value}"),
                )
                .help("any whole number from 0 will do: `42`; `random` draws one")),
                Node::String { text, .. } if text == "random" => Ok(Json::from("random")),
                _ => Err(expected(name, "a seed, an integer or `random`", tree)),
            },
            Self::Threshold => match &tree.node {
                Node::Int(value) => Ok(Json::from(*value)),
                Node::Float(value) => Ok(Json::from(*value)),
                Node::String { text, .. } if text == "otsu" || text == "soft" => {
                    Ok(Json::from(text.as_str()))
                }
                _ => Err(expected(name, "`otsu`, `soft` or a number", tree)),
            },
            Self::Sites => {
                let due =
                    "`auto`, `all`, `none`, a number, a range such as `10..16` or a list of them";
                match &tree.node {
                    Node::String { text, .. }
                        if matches!(text.as_str(), "auto" | "all" | "none") || is_range(text) =>
                    {
                        Ok(Json::from(text.as_str()))
                    }
                    Node::Int(value) if *value >= 0 => Ok(Json::from(*value)),
                    Node::Seq(items) => items
                        .iter()
                        .map(|item| match &item.node {
                            Node::Int(value) if *value >= 0 => Ok(Json::from(*value)),
                            Node::String { text, .. } if is_range(text) => {
                                Ok(Json::from(text.as_str()))
                            }
                            _ => Err(expected(name, due, item)),
                        })
                        .collect::<Result<Vec<_>, _>>()
                        .map(Json::from),
                    _ => Err(expected(name, due, tree)),
                }
            }
        }
    }
}

impl std::fmt::Display for ParamType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn is_range(text: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.split_once("..")
        .is_some_and(|(from, to)| number(from) && number(to.strip_prefix('=').unwrap_or(to)))
}

/// The fault that a value is of another type than `what`, with the way to write it.
pub(crate) fn expected(name: &str, what: &str, tree: &Tree) -> Mismatch {
    let mismatch = unlike(name, what, tree);
    if mismatch.help.is_some() {
        return mismatch;
    }
    // The words of `what` that stand in backquotes are examples already.
    let example = match what.split('`').nth(1) {
        Some(example) => example,
        None if what.contains("integer") => "50",
        None if what.contains("number") => "7.5",
        None if what.contains("list") => "[...]",
        None => "\"...\"",
    };
    let help = format!("write it as in `{name}: {example}`");
    mismatch.help(help)
}

fn unlike(name: &str, what: &str, tree: &Tree) -> Mismatch {
    let number = what.contains("number") || what.contains("integer");
    let boolean = what.contains("true");
    let message = format!("`{name}` takes {what}, not {}", tree.describe());
    match &tree.node {
        Node::String { text, quoted } => {
            let trimmed = text.trim();
            let digits = trimmed.replace('_', "");
            let is_number = |text: &str| {
                text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
                    && text.parse::<f64>().is_ok()
            };
            if boolean && (trimmed == "true" || trimmed == "false") {
                return Mismatch::new(Code::NotABool, message)
                    .help(format!("write it without quotes: `{name}: {trimmed}`"));
            }
            if boolean
                && let Some(value) = match trimmed.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" | "y" => Some(true),
                    "false" | "no" | "off" | "n" => Some(false),
                    _ => None,
                }
            {
                return Mismatch::new(Code::NotABool, message)
                    .help(format!("write `{name}: {value}`"));
            }
            if number && *quoted && is_number(trimmed) {
                return Mismatch::new(Code::QuotedNumber, message)
                    .help(format!("write it without quotes: `{name}: {trimmed}`"));
            }
            if number && digits != trimmed && is_number(&digits) {
                return Mismatch::new(Code::ValueType, message).help(format!(
                    "numbers are written without underscores: `{name}: {digits}`"
                ));
            }
            Mismatch::new(Code::ValueType, message)
        }
        Node::Float(value)
            if what.contains("integer")
                && value.fract() == 0.0
                && value.abs() <= MAX_INTEGER as f64 =>
        {
            Mismatch::new(Code::ValueType, message).help(format!("write `{name}: {value:.0}`"))
        }
        Node::Map(_) if tree.looks_like_template() => {
            let Node::Map(entries) = &tree.node else {
                return Mismatch::new(Code::ValueType, message);
            };
            let inner = entries.first().map_or("", |(key, _)| key.text.as_str());
            Mismatch::new(Code::UnquotedTemplate, message)
                .help(format!("quote the template: `{name}: \"{{{inner}}}\"`"))
        }
        Node::Int(_) | Node::Float(_) | Node::Bool(_) if what.contains("text") => {
            let plain = match &tree.node {
                Node::Int(value) => value.to_string(),
                Node::Float(value) => value.to_string(),
                Node::Bool(value) => value.to_string(),
                _ => String::new(),
            };
            Mismatch::new(Code::ValueType, message)
                .help(format!("put it in quotes: `{name}: \"{plain}\"`"))
        }
        Node::Null => Mismatch::new(Code::ValueType, message)
            .help(format!("give `{name}` a value, or remove the key")),
        _ => Mismatch::new(Code::ValueType, message),
    }
}

/// What was written where, so that faults point at it and relative paths resolve from there.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) source: Source,
    pub(crate) span: Span,
    pub(crate) folder: Arc<PathBuf>,
    /// `file`, `--set`, `--params`: for the run's record.
    pub(crate) how: How,
}

/// Where the value of a param comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The default in the file.
    Default,
    /// `--set`.
    Set,
    /// A file of `--params`.
    File,
    /// A cell of a sweep.
    Sweep,
    /// `with:` of the workflow that includes this one.
    With,
    /// Drawn, because the file says `random`.
    Drawn,
}

/// A value for a param of the workflow that is run.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) tree: Tree,
    pub(crate) origin: Origin,
    pub(crate) name: Key,
    /// The raw text of `--set`, which a text param takes as it is.
    pub(crate) raw: Option<String>,
}

/// Splits the `name=value` of `--set`.
pub(crate) fn read_set(
    text: &str,
    folder: &Arc<PathBuf>,
    workflow: &Workflow,
    problems: &mut Vec<Problem>,
) -> Option<Setting> {
    let prefix = "--set ";
    let source = Source::command_line(format!("{prefix}{text}"));
    let whole = Span::new(prefix.len(), prefix.len() + text.len());
    let Some((name, value)) = text.split_once('=') else {
        problems.push(
            Problem::new(
                Code::BadSetting,
                &source,
                whole,
                format!("`{text}` has no `=`"),
            )
            .help("write `--set name=value`"),
        );
        return None;
    };
    let name_span = Span::new(prefix.len(), prefix.len() + name.trim_end().len());
    let name = name.trim();
    let value_span = Span::new(whole.end - value.len(), whole.end);
    let key = Key {
        text: name.to_owned(),
        span: name_span,
    };
    let decl = known(workflow, &key, &source, problems)?;
    let is_text = matches!(
        decl.kind,
        ParamType::String | ParamType::Path | ParamType::Choice
    );
    let tree = if is_text {
        Tree {
            node: Node::String {
                text: value.to_owned(),
                quoted: false,
            },
            span: value_span,
        }
    } else {
        let mut faults = Vec::new();
        let parsed = yaml::parse(&Source::command_line(value), &mut faults);
        if let Some(fault) = faults.first() {
            problems.push(
                Problem::new(
                    fault.code(),
                    &source,
                    value_span,
                    format!("`{name}`: {}", fault.message()),
                )
                .maybe_help(fault.hint().map(str::to_owned)),
            );
            return None;
        }
        Tree {
            node: parsed?.node,
            span: value_span,
        }
    };
    Some(Setting {
        tree,
        origin: Origin {
            source,
            span: value_span,
            folder: Arc::clone(folder),
            how: How::Set,
        },
        name: key,
        raw: Some(value.to_owned()),
    })
}

/// Reads the map of a `--params` file.
pub(crate) fn read_file(
    source: &Source,
    folder: &Arc<PathBuf>,
    workflow: &Workflow,
    problems: &mut Vec<Problem>,
) -> Vec<Setting> {
    let Some(tree) = yaml::parse(source, problems) else {
        return Vec::new();
    };
    let entries = match tree.node {
        Node::Map(entries) => entries,
        Node::Null => Vec::new(),
        _ => {
            problems.push(
                Problem::new(
                    Code::WrongShape,
                    source,
                    tree.span,
                    format!("a file of params is a map, not {}", tree.describe()),
                )
                .help("write one `name: value` a line"),
            );
            Vec::new()
        }
    };
    let mut settings = Vec::new();
    for (key, tree) in entries {
        if is_carried(&key.text) || known(workflow, &key, source, problems).is_none() {
            continue;
        }
        settings.push(Setting {
            origin: Origin {
                source: source.clone(),
                span: tree.span,
                folder: Arc::clone(folder),
                how: How::File,
            },
            tree,
            name: key,
            raw: None,
        });
    }
    settings
}

/// Whether the key is carried and never looked at.
#[must_use]
pub fn is_carried(key: &str) -> bool {
    key == "ui" || key.starts_with("x-")
}

pub(crate) fn known<'w>(
    workflow: &'w Workflow,
    key: &Key,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Option<&'w ParamDecl> {
    let decl = workflow.params.get(&key.text);
    if decl.is_none() {
        problems.push(
            Problem::new(
                Code::UnknownSetting,
                source,
                key.span,
                format!("the workflow has no param `{}`", key.text),
            )
            .maybe_help(suggest::hint(
                &key.text,
                "params",
                workflow.params.keys().map(String::as_str),
            )),
        );
    }
    decl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_windows_in_double_quotes_is_told_from_what_its_escapes_made_of_it() {
        // As YAML reads `"C:\new"`, `"d:\textures"` and `"C:\bin"`.
        for (text, due) in [
            ("C:\new", "a line break"),
            ("d:\textures", "a tab"),
            ("C:\u{8}in", "a control character"),
        ] {
            let mismatch = no_path("path", text).unwrap();
            assert!(mismatch.message.contains(due), "{}", mismatch.message);
            assert!(mismatch.help.unwrap().contains("single quotes"));
        }
        for text in ["C:\\new", "C:/new", "C:", "a\nb", "models/new", "ab:\nc"] {
            assert!(no_path("path", text).is_none(), "{text:?}");
        }
        assert!(no_path("path", "").unwrap().message.contains("is empty"));
    }
}
