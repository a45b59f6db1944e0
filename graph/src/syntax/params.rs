//! The types of params.

use serde_json::Value as Json;

use crate::base::problem::Code;
use crate::syntax::mismatch::{Accepts, Expected, Mismatch, empty_path};
use crate::syntax::yaml::{Node, Tree};
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

/// What to do about a number of steps that is none.
const STEPS_HELP: &str = "write `10` for ten steps, `20%` for a share of all of them";

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
        let mismatch = || self.expected().mismatch(name, tree);
        match self {
            Self::String | Self::Choice | Self::Path => match &tree.node {
                Node::String { text, .. } if self == Self::Path && text.is_empty() => {
                    Err(empty_path(name))
                }
                Node::String { text, .. } => Ok(Json::from(text.as_str())),
                _ => Err(mismatch()),
            },
            Self::Int => match &tree.node {
                Node::Int(value) => Ok(Json::from(*value)),
                _ => Err(mismatch()),
            },
            Self::Float => match &tree.node {
                Node::Int(value) => Ok(Json::from(*value)),
                Node::Float(value) => Ok(Json::from(*value)),
                _ => Err(mismatch()),
            },
            Self::Bool => match &tree.node {
                Node::Bool(value) => Ok(Json::from(*value)),
                _ => Err(mismatch()),
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
                _ => Err(mismatch()),
            },
            Self::Seed => match &tree.node {
                Node::Int(value) if *value >= 0 => Ok(Json::from(*value)),
                Node::Int(value) => Err(Mismatch::new(
                    Code::OutOfRange,
                    format!("the seed `{name}` is from 0 to {MAX_INTEGER}, not {value}"),
                )
                .help("any whole number from 0 will do: `42`; `random` draws one")),
                Node::String { text, .. } if text == "random" => Ok(Json::from("random")),
                _ => Err(mismatch()),
            },
            Self::Threshold => match &tree.node {
                Node::Int(value) => Ok(Json::from(*value)),
                Node::Float(value) => Ok(Json::from(*value)),
                Node::String { text, .. } if text == "otsu" || text == "soft" => {
                    Ok(Json::from(text.as_str()))
                }
                _ => Err(mismatch()),
            },
            Self::Sites => match &tree.node {
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
                        _ => Err(self.expected().mismatch(name, item)),
                    })
                    .collect::<Result<Vec<_>, _>>()
                    .map(Json::from),
                _ => Err(mismatch()),
            },
        }
    }

    /// What a value of this type is.
    fn expected(self) -> Expected {
        let number = Accepts {
            number: true,
            ..Accepts::default()
        };
        let integer = Accepts {
            integer: true,
            ..Accepts::default()
        };
        match self {
            Self::String => Expected::text(),
            Self::Choice => Expected::new("one of its values", Accepts::default()),
            Self::Path => Expected::new("a path", Accepts::default()),
            Self::Int => Expected::integer(),
            Self::Float => Expected::number(),
            Self::Bool => Expected::boolean(),
            Self::Steps => Expected::steps(),
            Self::Seed => {
                Expected::new("a seed, an integer or `random`", integer).example("random")
            }
            Self::Threshold => Expected::new("`otsu`, `soft` or a number", number).example("otsu"),
            Self::Sites => Expected::new(
                "`auto`, `all`, `none`, a number, a range such as `10..16` or a list of them",
                number,
            )
            .example("auto"),
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

/// Whether the key is carried and never looked at.
#[must_use]
pub fn is_carried(key: &str) -> bool {
    key == "ui" || key.starts_with("x-")
}
