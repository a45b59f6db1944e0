//! What a check gives: a flat graph with everything included, ready to be planned.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::problem::{Problem, Source, Span};
use crate::check::settings::ResolvedParam;
use crate::op::erased::ErasedNode;
use crate::op::node::ReadFile;
use crate::op::registry::Entry;
use crate::value::port::KnownPorts;

/// A link from a node's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The index of the node in [`Checked::nodes`].
    pub node: usize,
    /// The name of the output port.
    pub port: &'static str,
}

/// A node that can run.
#[derive(Clone)]
pub struct CheckedNode {
    pub(crate) name: String,
    /// The cell of a sweep that it is part of, from 0.
    pub(crate) cell: Option<usize>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) node: Arc<dyn ErasedNode>,
    /// The parameters with defaults filled in and paths left out.
    pub(crate) params: Arc<Json>,
    /// The links of each input port in the order of declaration.
    pub(crate) links: Vec<Vec<Link>>,
    pub(crate) reads: Arc<[ReadFile]>,
    /// What is known of each link of each input port.
    pub(crate) known: Arc<KnownPorts>,
    pub(crate) source: Source,
    pub(crate) span: Span,
}

impl CheckedNode {
    /// The node's name; of an included one `retouch/swap`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its op.
    #[must_use]
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Its parameters with defaults filled in; paths are null.
    #[must_use]
    pub fn params(&self) -> &Json {
        &self.params
    }

    /// The links of each input port in the order of declaration.
    #[must_use]
    pub fn links(&self) -> &[Vec<Link>] {
        &self.links
    }

    /// The files that it reads.
    #[must_use]
    pub fn reads(&self) -> &[ReadFile] {
        &self.reads
    }

    /// Where it is written.
    #[must_use]
    pub fn place(&self) -> (&Source, Span) {
        (&self.source, self.span)
    }
}

/// An output that can be made.
#[derive(Clone, Debug)]
pub struct CheckedOutput {
    /// Its name.
    pub name: String,
    /// Where its value comes from.
    pub link: Link,
    /// The path below the output folder, templates filled in.
    pub save: Option<String>,
}

/// A workflow without faults: a flat graph with everything included.
#[derive(Clone)]
pub struct Checked {
    /// The workflow's name.
    pub name: String,
    /// What it does, for people.
    pub description: Option<String>,
    /// The workflow's text.
    pub source: Source,
    /// The values of its params, drawn seeds among them.
    pub params: Vec<ResolvedParam>,
    /// The nodes in the order of the file.
    pub nodes: Vec<CheckedNode>,
    /// The outputs in the order of the file.
    pub outputs: Vec<CheckedOutput>,
    /// Warnings: odd, but not faults.
    pub warnings: Vec<Problem>,
    /// The workflow files and parameter files that were read.
    pub files: Vec<PathBuf>,
    /// For each node that uses a workflow, by name: where its outputs come from.
    pub(crate) groups: HashMap<String, Vec<usize>>,
    /// Why it cannot run, if it is a part that was checked by itself.
    pub(crate) open: Option<Problem>,
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked")
            .field("name", &self.name)
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}

impl Checked {
    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&CheckedNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The links between the nodes, as pairs of their indices, `(from, to)`.
    pub(crate) fn links(&self) -> impl Iterator<Item = (usize, usize)> {
        (self.nodes.iter().enumerate())
            .flat_map(|(to, node)| (node.links.iter().flatten()).map(move |link| (link.node, to)))
    }
}
