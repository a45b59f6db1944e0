//! From a workflow as it is written to one that can run: `use:` inlined, references resolved, parameters read, facts
//! of the inputs known. All faults at once.
//!
//! One file a phase, each with methods of `Checker`; a phase calls only those before it: settings are bound
//! (`bind`), the workflow and those that it includes become scopes (`scope`, `with`), references (`resolve`) and
//! templates (`fill`) lead to values and nodes, the fields of nodes are read (`fields`, `links`), outputs follow
//! (`outputs`), then the graph as a whole: its order (`order`), what the nodes say of it (`facts`), and `warnings`.

mod bind;
mod budget;
mod checker;
mod facts;
mod fields;
mod fill;
mod links;
pub(crate) mod memo;
mod order;
mod outputs;
mod resolve;
mod result;
mod scope;
pub(crate) mod settings;
mod source;
mod warnings;
mod with;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::paths::normal;
use crate::base::problem::{Code, Problem, Problems, Span};
use crate::check::checker::Checker;
use crate::check::warnings::one_for_each_number;
use crate::syntax::workflow::Workflow;

pub use budget::{MAX_LEVELS, MAX_NODES, MAX_TEXT};
pub use result::{Checked, CheckedNode, CheckedOutput, Link};
pub use settings::{Drawn, ResolvedParam, Settings};

pub(crate) use bind::random;
pub(crate) use budget::{TextBudget, text_bytes, too_much_text};
pub(crate) use checker::CheckContext;
pub(crate) use source::{read, read_argument};

/// Checks a workflow. `path` is its own, to notice when it includes itself; `read` are the files that were read for it so
/// far, `problems` the faults that parsing found.
pub(crate) fn check(
    context: &CheckContext<'_>,
    workflow: Arc<Workflow>,
    path: Option<&Path>,
    read: Vec<PathBuf>,
    problems: Vec<Problem>,
) -> Result<Checked, Problems> {
    let mut checker = Checker {
        context,
        problems,
        workflows: HashMap::new(),
        read: path.map(Path::to_owned).into_iter().chain(read).collect(),
        scopes: Vec::new(),
        flat: Vec::new(),
        resolved: Vec::new(),
        used: HashSet::new(),
        targets: HashMap::new(),
        open: None,
        not_fetched: Vec::new(),
        node_warnings: Vec::new(),
        too_many_reported: false,
        too_long_reported: false,
        draws: 0,
    };
    checker.run(workflow, path)
}

impl Checker<'_> {
    fn run(&mut self, workflow: Arc<Workflow>, path: Option<&Path>) -> Result<Checked, Problems> {
        self.is_runnable_file(&workflow)?;
        let settings = self.settings(&workflow);
        let mut trail: Vec<PathBuf> = path.map(normal).into_iter().collect();
        let mut names = vec![workflow.source.name().to_owned()];
        self.root(&workflow, settings);
        let count = self.count(&workflow, &mut trail, &mut HashMap::new());
        if count.is_too_much() {
            return Err(self.take_problems());
        }
        self.nodes_of(0, &mut trail, &mut names);
        for index in 0..self.flat.len() {
            self.fields(index);
        }
        for scope in 0..self.scopes.len() {
            self.given_links(scope);
        }
        let outputs = self.outputs();
        let order = self.order();
        let known = self.facts(&order);
        self.outputs_made(&outputs, &known);
        let complete = self.flat.iter().all(|flat| flat.node.is_some());
        if self.problems.is_empty() && !complete && self.open.is_none() {
            // A node that could not be built has a problem of its own; without one the checker itself is wrong.
            self.problems.push(
                Problem::new(
                    Code::BadReference,
                    &workflow.source,
                    Span::default(),
                    "some nodes cannot be built, and no fault was found in them",
                )
                .help("this is a bug in the program: please report it with the workflow"),
            );
        }
        if !self.problems.is_empty() {
            one_for_each_number(&mut self.problems);
            return Err(self.take_problems());
        }
        let warnings = self.warnings(&outputs);
        let groups = self.groups();
        let outputs = if complete {
            outputs.into_iter().map(|(output, _)| output).collect()
        } else {
            Vec::new()
        };
        Ok(Checked {
            name: workflow.name.clone(),
            description: workflow.description.clone(),
            source: workflow.source.clone(),
            params: std::mem::take(&mut self.resolved),
            nodes: self.checked_nodes(complete),
            outputs,
            warnings,
            files: std::mem::take(&mut self.read),
            groups,
            open: self.open.take(),
        })
    }

    fn take_problems(&mut self) -> Problems {
        Problems::new(std::mem::take(&mut self.problems))
    }

    /// Refuses a file that holds nothing but a sweep of another workflow.
    fn is_runnable_file(&mut self, workflow: &Workflow) -> Result<(), Problems> {
        let Some(sweep) = &workflow.sweep else {
            return Ok(());
        };
        let Some(other) = &sweep.workflow else {
            return Ok(());
        };
        if self.problems.is_empty() {
            self.problems.push(
                Problem::new(
                    Code::SweepOnly,
                    &workflow.source,
                    sweep.key_span,
                    format!("the file is a sweep of `{}`, not a workflow", other.value),
                )
                .help(format!(
                    "run it with `retouch sweep {}`",
                    workflow.source.name()
                )),
            );
        }
        Err(self.take_problems())
    }

    /// The nodes in the order of the file. Those of an incomplete graph have no links: some nodes are left out, so the
    /// indices in links would mean nothing.
    fn checked_nodes(&mut self, complete: bool) -> Vec<CheckedNode> {
        let nodes = std::mem::take(&mut self.flat).into_iter();
        nodes
            .filter_map(|flat| {
                let scope = &self.scopes[flat.scope];
                let (name, decl) = scope.workflow.nodes.get_index(flat.at)?;
                let links = if complete { flat.links } else { Vec::new() };
                Some(CheckedNode {
                    name: format!("{}{name}", scope.prefix),
                    cell: None,
                    entry: flat.entry,
                    node: flat.node?,
                    params: Arc::new(flat.params),
                    links: links
                        .into_iter()
                        .map(|links| links.into_iter().map(|(link, _)| link).collect())
                        .collect(),
                    reads: flat.reads,
                    known: flat.known,
                    source: scope.workflow.source.clone(),
                    span: decl.name_span,
                })
            })
            .collect()
    }
}
