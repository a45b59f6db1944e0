//! The state of one check.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::problem::{Problem, Source, Span};
use crate::base::suggest;
use crate::check::budget::{TextBudget, too_much_text};
use crate::check::memo::{FactsMemo, LoadMemo};
use crate::check::result::Link;
use crate::check::settings::{ResolvedParam, Setting, Settings, ValueOrigin};
use crate::files::Files;
use crate::op::erased::ErasedNode;
use crate::op::node::ReadFile;
use crate::op::registry::{Entry, Registry};
use crate::syntax::params::ParamType;
use crate::syntax::workflow::{Spanned, Workflow};
use crate::value::port::KnownPorts;

/// With more faults than this no "did you mean" is looked for: the search is not free, and nobody reads that far.
pub(super) const HINTED: usize = 500;

/// What [`check`](crate::check::check) works with.
#[derive(Clone, Copy)]
pub(crate) struct CheckContext<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) files: &'a dyn Files,
    pub(crate) settings: &'a Settings,
    /// The values of a cell of a sweep; they count more than all settings.
    pub(crate) cell: &'a [Setting],
    pub(crate) facts: &'a FactsMemo,
    pub(crate) load: &'a LoadMemo,
    pub(crate) text: &'a TextBudget,
}

/// A value of a param or an input.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) value: Json,
    pub(super) kind: ParamType,
    pub(super) decl: (Source, Span),
    pub(super) origin: ValueOrigin,
}

#[derive(Clone, Debug)]
pub(super) enum Binding {
    Value(Bound),
    /// Optional and not given.
    Absent,
    /// Faulty, and reported; or an input of a part that is checked by itself.
    Broken,
}

pub(super) enum Slot {
    Op(usize),
    Use(usize),
    Broken,
}

pub(super) struct Scope {
    pub(super) workflow: Arc<Workflow>,
    pub(super) prefix: String,
    pub(super) parent: Option<usize>,
    pub(super) values: HashMap<String, Binding>,
    /// What is linked to the inputs, in the parent's terms.
    pub(super) links: HashMap<String, Spanned<String>>,
    pub(super) slots: HashMap<String, Slot>,
}

/// A node of the flat graph while it is being checked.
pub(super) struct FlatNode {
    pub(super) scope: usize,
    /// The node's position in its workflow.
    pub(super) at: usize,
    pub(super) entry: Arc<Entry>,
    pub(super) links: Vec<Vec<(Link, Span)>>,
    /// The number of links of each port, unknown ones of a part counted.
    pub(super) known_links: Vec<usize>,
    pub(super) node: Option<Arc<dyn ErasedNode>>,
    pub(super) params: Json,
    pub(super) reads: Arc<[ReadFile]>,
    pub(super) known: Arc<KnownPorts>,
}

/// An input or an output of an included workflow that a reference leads through: its scope, and its name (of an output
/// with `outputs.` before it, which no input's name can begin with).
pub(super) type Boundary = (usize, String);

/// What a reference to an output resolves to.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Link(Link, LinkTypes),
    /// An optional input that is not given.
    Absent,
    /// An input of a part that is checked by itself.
    Open(LinkTypes),
    /// A param or an input that is a value.
    Value,
    Broken,
}

impl Target {
    /// What it is for a reference to the input of that type, or to the output, that leads to it.
    pub(super) fn through(self, kind: Option<&'static str>) -> Self {
        match (self, kind) {
            (Self::Link(link, _), Some(kind)) => Self::Link(link, LinkTypes::One(kind)),
            (Self::Open(_), Some(kind)) => Self::Open(LinkTypes::One(kind)),
            // Reported where the link is given, or the output is declared.
            (Self::Value, _) => Self::Broken,
            (other, _) => other,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum LinkTypes {
    Ports(&'static [&'static str]),
    One(&'static str),
}

impl LinkTypes {
    pub(super) fn as_slice(&self) -> &[&'static str] {
        match self {
            Self::Ports(types) => types,
            Self::One(one) => std::slice::from_ref(one),
        }
    }
}

/// The state of one check. Each file of this folder adds the methods of its phase.
pub(super) struct Checker<'a> {
    pub(super) context: &'a CheckContext<'a>,
    pub(super) problems: Vec<Problem>,
    pub(super) workflows: HashMap<PathBuf, Option<Arc<Workflow>>>,
    pub(super) read: Vec<PathBuf>,
    pub(super) scopes: Vec<Scope>,
    pub(super) flat: Vec<FlatNode>,
    pub(super) resolved: Vec<ResolvedParam>,
    /// The params of the outermost workflow that something refers to.
    pub(super) used: HashSet<String>,
    /// What the inputs and outputs of included workflows resolve to, as far as they were followed.
    pub(super) targets: HashMap<Boundary, Target>,
    pub(super) open: Option<Problem>,
    /// Warnings about models that are not fetched yet.
    pub(super) not_fetched: Vec<Problem>,
    /// Warnings of the nodes themselves.
    pub(super) node_warnings: Vec<Problem>,
    pub(super) too_many_reported: bool,
    /// Whether too much text was reported.
    pub(super) too_long_reported: bool,
    pub(super) draws: u64,
}

impl Checker<'_> {
    /// [`suggest::hint`], while there are few faults.
    pub(super) fn hint<'n>(
        &self,
        typed: &str,
        what: &str,
        known: impl IntoIterator<Item = &'n str> + Clone,
    ) -> Option<String> {
        self.hint_in(typed, what, "", known)
    }

    /// [`suggest::hint_in`], while there are few faults.
    pub(super) fn hint_in<'n>(
        &self,
        typed: &str,
        what: &str,
        prefix: &str,
        known: impl IntoIterator<Item = &'n str> + Clone,
    ) -> Option<String> {
        if self.problems.len() > HINTED {
            return None;
        }
        suggest::hint_in(typed, what, prefix, known)
    }

    /// Takes bytes from the budget of text; whether there was room for them.
    pub(super) fn take(&mut self, source: &Source, span: Span, bytes: usize) -> bool {
        let room = self.context.text.take(bytes);
        if !room && !self.too_long_reported {
            self.too_long_reported = true;
            self.problems.push(too_much_text(source, span));
        }
        room
    }

    /// [`Checker::take`] for a text of a scope's workflow.
    pub(super) fn has_room(&mut self, scope: usize, span: Span, bytes: usize) -> bool {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        self.take(&workflow.source, span, bytes)
    }

    pub(super) fn node_name(&self, index: usize) -> String {
        let flat = &self.flat[index];
        let scope = &self.scopes[flat.scope];
        let name = scope
            .workflow
            .nodes
            .get_index(flat.at)
            .map_or("", |(name, _)| name.as_str());
        format!("{}{name}", scope.prefix)
    }
}
