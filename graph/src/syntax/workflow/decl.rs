//! A workflow's declarations, as they are written.

use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::base::problem::{Code, Source, Span};
use crate::base::suggest;
use crate::syntax::mismatch::{Mismatch, nearest_inside};
use crate::syntax::params::ParamType;
use crate::syntax::yaml::{MapKey, Tree};

/// A value and where it is written.
#[derive(Clone, Debug)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub span: Span,
}

/// A workflow as it is written.
#[derive(Clone, Debug)]
pub struct Workflow {
    /// The text.
    pub source: Source,
    /// The folder from which its relative paths are resolved.
    pub folder: Arc<PathBuf>,
    /// Its name: `name`, or the file's name without the ending.
    pub name: String,
    /// What it does, for people.
    pub description: Option<String>,
    /// What may be set from outside.
    pub params: IndexMap<String, ParamDecl>,
    /// What a workflow that includes this one must link or give.
    pub inputs: IndexMap<String, InputDecl>,
    /// The nodes in the order of the file.
    pub nodes: IndexMap<String, NodeDecl>,
    /// The outputs in the order of the file.
    pub outputs: IndexMap<String, OutputDecl>,
    /// The runs that `retouch sweep` makes of it.
    pub sweep: Option<SweepDecl>,
    /// Whether `nodes` is not a map, and reported, so that the names of the nodes are not known.
    pub(crate) nodes_unread: bool,
}

/// A param.
#[derive(Clone, Debug)]
pub struct ParamDecl {
    /// Where its name is.
    pub name_span: Span,
    /// Its type.
    pub kind: ParamType,
    /// Its default, of the declared type.
    pub default: Option<Spanned<Json>>,
    /// The least number.
    pub min: Option<f64>,
    /// The greatest number.
    pub max: Option<f64>,
    /// The values of a choice.
    pub values: Vec<String>,
    /// What it is, for people.
    pub help: Option<String>,
    /// Whether it may be left out without a default (an input only).
    pub optional: bool,
}

/// What an input takes.
#[derive(Clone, Debug)]
pub enum InputKind {
    /// A link, of this type.
    Port(String),
    /// A value.
    Value(ParamDecl),
}

/// An input of a reusable workflow.
#[derive(Clone, Debug)]
pub struct InputDecl {
    /// Where its name is.
    pub name_span: Span,
    /// Where its type is.
    pub type_span: Span,
    /// What it takes.
    pub kind: InputKind,
    /// Whether it may be left out.
    pub optional: bool,
    /// What it is, for people.
    pub help: Option<String>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeDecl {
    /// Where its name is.
    pub name_span: Span,
    /// What it is.
    pub body: NodeBody,
    /// Whether keys of it were dropped and reported, so that what is missing may have been meant.
    pub(crate) tainted: bool,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum NodeBody {
    /// An op with its ports and parameters, as they are written.
    Op {
        /// The op's name.
        op: Spanned<String>,
        /// All other keys.
        fields: Vec<(MapKey, Tree)>,
    },
    /// Another workflow.
    Use {
        /// The path as it is written.
        path: Spanned<String>,
        /// What it is given.
        with: Vec<(MapKey, Tree)>,
    },
    /// Faulty, and reported.
    Broken,
}

/// An output.
#[derive(Clone, Debug)]
pub struct OutputDecl {
    /// Where its name is.
    pub name_span: Span,
    /// The reference, as it is written; `None` when it is faulty.
    pub value: Option<Spanned<String>>,
    /// The template of the path to save to.
    pub save: Option<Spanned<String>>,
}

/// A sweep as it is written: a run for each combination of values.
#[derive(Clone, Debug)]
pub struct SweepDecl {
    /// Where the key `sweep` is.
    pub key_span: Span,
    /// The workflow that is run, in a file that says a sweep and nothing else.
    pub workflow: Option<Spanned<String>>,
    /// Usually one: the values of each param; every combination of them is a cell. The cells of several follow one another.
    pub matrices: Vec<Vec<(MapKey, Tree)>>,
    /// Params of a matrix whose values go together, one after the other, in place of every combination of them.
    pub zip: Vec<Vec<Spanned<String>>>,
    /// Cells beside those of the matrix.
    pub include: Vec<Spanned<Vec<(MapKey, Tree)>>>,
    /// Cells of the matrix that are left out: those with all of these values.
    pub exclude: Vec<Spanned<Vec<(MapKey, Tree)>>>,
    /// The contact sheet.
    pub grid: Option<SheetDecl>,
    /// Where the table of results is saved: a template of a path that ends in `.csv` or `.json`.
    pub table: Option<Spanned<String>>,
    /// The report on what all cells measured.
    pub report: Option<ReportDecl>,
}

/// The report of a sweep as it is written.
#[derive(Clone, Debug)]
pub struct ReportDecl {
    /// Where the key `report` is.
    pub key_span: Span,
    /// The outputs of a cell that are tables.
    pub tables: Vec<Spanned<String>>,
    /// The outputs of a cell that are the pictures of these tables; none, or as many.
    pub images: Vec<Spanned<String>>,
    /// The templates of the paths that it is saved to; the ending says which part.
    pub save: Vec<Spanned<String>>,
    /// All other keys go to the op `report`.
    pub fields: Vec<(MapKey, Tree)>,
}

/// The contact sheet of a sweep as it is written.
#[derive(Clone, Debug)]
pub struct SheetDecl {
    /// Where the key `grid` is.
    pub key_span: Span,
    /// The params whose values are the rows; `None`: all that are not columns.
    pub rows: Option<Vec<Spanned<String>>>,
    /// The params whose values are the columns; `None`: all that are not rows, or the last of all.
    pub columns: Option<Vec<Spanned<String>>>,
    /// The output whose pictures are shown; `None`: the first one that is a picture.
    pub output: Option<Spanned<String>>,
    /// The template of the path that it is saved to.
    pub save: Option<Spanned<String>>,
    /// The output with the scores of those pictures; `None`: the only one that is a table, if scores are asked for.
    pub table: Option<Spanned<String>>,
    /// All other keys go to the op `grid`: `cell`, `filter`, `gap`, `background`, `scores`, `order`.
    pub fields: Vec<(MapKey, Tree)>,
}

impl ParamDecl {
    /// A param whose declaration is faulty and reported: only its name is known.
    pub(super) fn broken(name: &MapKey) -> Self {
        Self {
            name_span: name.span,
            kind: ParamType::String,
            default: None,
            min: None,
            max: None,
            values: Vec::new(),
            help: None,
            optional: true,
        }
    }

    /// Whether a value can be given to the param `name`, which this declares: what is wrong with it, and what to do.
    ///
    /// # Errors
    /// In words, when it is of another type, out of the range, or none of the choices.
    pub fn check(&self, name: &str, value: &Json) -> Result<(), String> {
        match self.read(name, &Tree::of(value, Span::default())) {
            Ok(_) => Ok(()),
            Err(mismatch) => Err(mismatch.in_words()),
        }
    }

    /// Reads a value by the declaration: its type, its range, its choices.
    pub(crate) fn read(&self, name: &str, tree: &Tree) -> Result<Json, Mismatch> {
        let value = self.kind.read(name, tree)?;
        self.limits(name, &value)?;
        Ok(value)
    }

    /// Whether a value of the right type is within the range and among the choices.
    pub(crate) fn limits(&self, name: &str, value: &Json) -> Result<(), Mismatch> {
        if let Some(number) = value.as_f64() {
            let range = match (self.min, self.max) {
                (Some(min), Some(max)) => format!("from {min} to {max}"),
                (Some(min), None) => format!("{min} or greater"),
                (None, Some(max)) => format!("{max} or smaller"),
                (None, None) => return Ok(()),
            };
            if self.min.is_some_and(|min| number < min) || self.max.is_some_and(|max| number > max)
            {
                return Err(Mismatch::new(
                    Code::OutOfRange,
                    format!("`{name}` is {value}, and it must be {range}"),
                )
                .help(nearest_inside(number, self.min, self.max)));
            }
        }
        if self.kind == ParamType::Choice
            && let Some(text) = value.as_str()
            && !self.values.iter().any(|one| one == text)
        {
            let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
            let help = suggest::nearest(text, values.iter().copied()).map_or_else(
                || format!("the values are {}", suggest::list(&values)),
                |near| format!("did you mean `{near}`?"),
            );
            return Err(Mismatch::new(
                Code::OutOfRange,
                format!("`{name}` has no value `{}`", text.escape_debug()),
            )
            .help(help));
        }
        Ok(())
    }
}
