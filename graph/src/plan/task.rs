//! A task of a plan: a node, or several whose outputs are the same.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::digest::Digest;
use crate::base::key::{Key, KeyHasher};
use crate::op::chain::{Chain, Note};
use crate::op::erased::ErasedNode;
use crate::op::node::Node;
use crate::op::registry::Entry;
use crate::plan::guard::Guard;

/// A node of a workflow, or of a cell of a sweep; displayed as `layout` or `3/layout`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeName {
    /// The cell of the sweep, from 0.
    pub cell: Option<usize>,
    /// The name in the workflow; of an included node `retouch/swap`.
    pub name: String,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cell {
            Some(cell) => write!(f, "{cell}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What one task is: a node, or several whose outputs are the same.
#[derive(Clone)]
pub struct Task {
    /// The nodes in the order of the file.
    pub(super) nodes: Vec<NodeName>,
    /// What they are called in events and records.
    pub(super) names: Vec<String>,
    pub(super) entry: Arc<Entry>,
    pub(super) key: Key,
    pub(crate) node: Arc<dyn ErasedNode>,
    pub(super) params: Arc<Json>,
    pub(super) files: Vec<(String, Digest)>,
    /// The files behind what it makes, to be compared before that is kept.
    pub(crate) guard: Guard,
    pub(super) ports: Vec<(&'static str, Key)>,
    pub(super) chain: Option<Arc<Chain>>,
    pub(super) note: Option<Note>,
    pub(super) calls: u64,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("names", &self.names)
            .field("op", &self.op())
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Task {
    /// The node's name, or the first one's: `retouch/swap`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// The names of all nodes that this task is, in the order of the file; in a sweep what sets the cells apart is part of
    /// them.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The nodes that this task is, in the order of the file.
    #[must_use]
    pub fn nodes(&self) -> &[NodeName] {
        &self.nodes
    }

    /// The cells of the sweep that it is part of; none outside of a sweep, and none of the contact sheet.
    #[must_use]
    pub fn cells(&self) -> BTreeSet<usize> {
        self.nodes.iter().filter_map(|node| node.cell).collect()
    }

    /// The op.
    #[must_use]
    pub fn op(&self) -> &'static str {
        self.entry.op()
    }

    /// The op's documentation, ports and parameters.
    #[must_use]
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// What its outputs are called.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// What the value of an output port is called: the task's own key, unless it is that of a chain's state.
    #[must_use]
    pub fn port_key(&self, port: &str) -> Key {
        let own = self.ports.iter().find(|(name, _)| *name == port);
        own.map_or(self.key, |(_, key)| *key)
    }

    /// The key under which it is recorded that the node does not give a port that was requested.
    pub(crate) fn absent_key(&self, port: &str) -> Key {
        let mut hasher = KeyHasher::new("retouch/absent/1");
        hasher.field("node", &self.key.0);
        hasher.field("port", port.as_bytes());
        hasher.finish()
    }

    /// Whether values of that output port may still read files.
    pub(crate) fn is_lazy(&self, port: &str) -> bool {
        let mut specs = self.entry.outputs().iter();
        specs.any(|spec| spec.name == port && spec.lazy)
    }

    /// Its steps, if it is a chain of them.
    #[must_use]
    pub fn chain(&self) -> Option<&Arc<Chain>> {
        self.chain.as_ref()
    }

    /// What it says of itself to those downstream.
    #[must_use]
    pub fn note(&self) -> Option<&Note> {
        self.note.as_ref()
    }

    /// What its seconds depend on: a chain's class, else the op.
    #[must_use]
    pub fn class(&self) -> &str {
        match &self.chain {
            Some(chain) if !chain.class.is_empty() => &chain.class,
            _ => self.op(),
        }
    }

    /// Whether it runs on the compute device.
    #[must_use]
    pub fn device(&self) -> bool {
        self.entry.device()
    }

    /// The node itself, if it is one of that op.
    #[must_use]
    pub fn node<N: Node>(&self) -> Option<&N> {
        self.node.as_any().downcast_ref()
    }

    /// Its parameters with defaults filled in; paths are null.
    #[must_use]
    pub fn params(&self) -> &Json {
        &self.params
    }
}

/// A link between tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The output port of the one.
    pub from: &'static str,
    /// The input port of the other.
    pub to: &'static str,
}

/// An output that the plan makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedOutput {
    /// Its name; for a node that was requested by name `layout.latent`.
    pub name: String,
    /// The index of the task that makes it.
    pub task: usize,
    /// The output port.
    pub port: &'static str,
    /// The path below the output folder.
    pub save: Option<String>,
    /// Whether the run fails when the node does not give it: not for all ports of a node that was requested by name.
    pub(crate) required: bool,
}
