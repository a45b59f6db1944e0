//! Values from outside the workflow: the settings of a command, and `--set` and `--params` read against the params.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::suggest;
use crate::syntax::params::{How, ParamType, is_carried};
use crate::syntax::workflow::{ParamDecl, Workflow};
use crate::syntax::yaml::{self, MapKey, Node, Tree};

/// What is given to a workflow from outside.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The `name=value` of each `--set`; the last one for a name counts, and all count more than files.
    pub set: Vec<String>,
    /// The files of `--params`; the last one for a name counts.
    pub params: Vec<PathBuf>,
    /// The folder from which relative paths in `set` are resolved; empty: the current one.
    pub folder: PathBuf,
    /// Whether a reusable workflow is checked by itself: its inputs without defaults are then unknown, not missing.
    /// What comes out can be checked but not run.
    pub part: bool,
    /// What `random` draws from here on, for tests and to repeat a run; unless given it is drawn from the system's
    /// randomness.
    pub draw: Option<u64>,
    /// Seeds that were drawn before, by the name that [`ResolvedParam`] has: `random` gives them again.
    pub drawn: BTreeMap<String, Drawn>,
    /// The `name=values` of each `--over`: what a sweep varies besides what the file says, or in place of it.
    pub over: Vec<String>,
    /// The path of `--sheet`: where a sweep's contact sheet is saved, also where the file says none.
    pub sheet: Option<String>,
}

/// A seed that was drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// The seed.
    pub seed: u64,
    /// The line that asked for it: it is drawn anew when that changes. `None`: it is given whatever the line says.
    pub line: Option<String>,
}

/// The value of a param in this run.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct ResolvedParam {
    /// Its name; of a param of an included workflow `retouch/seed`.
    pub name: String,
    /// Its value; of a seed always a number.
    pub value: Json,
    /// Where the value comes from.
    pub from: How,
    /// The folder from which it is resolved, if it is a relative path.
    #[serde(skip)]
    pub folder: Arc<PathBuf>,
    /// Of a seed that was drawn, the line that asked for it, without its indentation.
    #[serde(skip)]
    pub line: Option<String>,
}

/// What was written where, so that faults point at it and relative paths resolve from there.
#[derive(Clone, Debug)]
pub(crate) struct ValueOrigin {
    pub(crate) source: Source,
    pub(crate) span: Span,
    pub(crate) folder: Arc<PathBuf>,
    /// `file`, `--set`, `--params`: for the run's record.
    pub(crate) how: How,
}

/// A value for a param of the workflow that is run.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) tree: Tree,
    pub(crate) origin: ValueOrigin,
    pub(crate) name: MapKey,
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
    let key = MapKey {
        text: name.to_owned(),
        span: name_span,
    };
    let decl = declared(workflow, &key, &source, problems)?;
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
        origin: ValueOrigin {
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
        if is_carried(&key.text) || declared(workflow, &key, source, problems).is_none() {
            continue;
        }
        settings.push(Setting {
            origin: ValueOrigin {
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

/// The declaration of the param that a setting names; reports a name that the workflow does not have.
pub(crate) fn declared<'w>(
    workflow: &'w Workflow,
    key: &MapKey,
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
