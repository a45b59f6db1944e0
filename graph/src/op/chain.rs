//! Step chains: a sampler isn't one cache entry but a chain of them, so that an edit resumes at the first step that it
//! touches, and what its calls produce beside their results (keys and values of attention, say) is kept for others.
//!
//! The engine knows no tensor. A node says, before anything runs, under which keys the state before each of its steps is
//! kept, how many calls of a network a step makes, and what it needs of calls that others may have made already. From
//! that the plan knows where the node resumes and how many calls are left; the node, when it runs, gets and puts the
//! entries themselves.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::base::digest::Digest;
use crate::base::key::Key;
use crate::value::port::Known;
use crate::value::port::KnownPorts;

/// What a node passes to those downstream of it while the plan is made; they know its type.
pub type Note = Arc<dyn Any + Send + Sync>;

/// Something that a call produces beside its result, kept under a key of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is called.
    pub key: Key,
    /// What of the call it is; the node that makes the call knows.
    pub tag: u64,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Whether the budget for the sources' keys and values counts it: what is small is always kept.
    pub large: bool,
}

/// A call that a step makes, unless all that it needs of it is kept already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The call. A node that makes the same call for another reason is asked to keep the items.
    pub call: Key,
    /// What is needed of it.
    pub items: Vec<Item>,
    /// How many calls it counts for (one for each image).
    pub calls: u64,
}

/// A step of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The calls that the step itself makes.
    pub calls: u64,
    /// Their names, and whether they give what is small too: what others need of them can be kept while they are made.
    pub offers: Vec<(Key, bool)>,
    /// What the step needs of other calls.
    pub needs: Vec<Need>,
    /// What is needed of other calls, even if the step is there already, to make the port of [`Chain::looks`].
    pub looks: Vec<Need>,
}

/// The steps of a node, and the keys of the states between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The number of the first step: earlier ones are another node's.
    pub first: usize,
    /// The steps from there on.
    pub steps: Vec<Step>,
    /// For each step: the entries that hold the state after it, and what else later steps need of it. A step whose
    /// entries are all there is not made again.
    pub states: Vec<Vec<Key>>,
    /// The port that [`Step::looks`] are for.
    pub looks: Option<&'static str>,
    /// Calls that are made whenever the node runs.
    pub extra: u64,
    /// What a call's seconds depend on (the model, the size), for predictions of run times.
    pub class: String,
}

impl Chain {
    /// T: one past the number of the last step.
    #[must_use]
    pub fn end(&self) -> usize {
        self.first + self.steps.len()
    }
}

/// What a node says of itself when the plan is made.
#[derive(Clone, Default)]
pub struct Chained {
    /// For those downstream.
    pub note: Option<Note>,
    /// Keys of output ports that are not the node's own key: equal values of other nodes have them too.
    pub ports: Vec<(&'static str, Key)>,
    /// Its steps.
    pub chain: Option<Chain>,
    /// Calls of a network that a node without steps makes.
    pub calls: u64,
}

impl fmt::Debug for Chained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chained")
            .field("ports", &self.ports)
            .field("chain", &self.chain)
            .finish_non_exhaustive()
    }
}

/// A link of an input port, while the plan is made.
#[derive(Clone)]
pub struct UpLink {
    /// The key of the value.
    pub key: Key,
    /// The output port that it comes from.
    pub port: &'static str,
    note: Option<Note>,
}

impl UpLink {
    /// What the node upstream says of itself, as `T`.
    #[must_use]
    pub fn note<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.note.clone()?.downcast().ok()
    }
}

/// What a node knows of its inputs while the plan is made.
pub struct Upstream<'a> {
    /// The node's own key.
    pub key: Key,
    /// The files that it reads: role and digest.
    pub files: &'a [(String, Digest)],
    /// What numbers depend on.
    pub numerics: &'a str,
    pub(crate) links: Vec<(&'static str, Vec<UpLink>)>,
    pub(crate) known: &'a KnownPorts,
}

impl fmt::Debug for Upstream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Upstream<'_> {
    pub(crate) fn up(key: Key, port: &'static str, note: Option<Note>) -> UpLink {
        UpLink { key, port, note }
    }

    /// The first link of an input port.
    #[must_use]
    pub fn link(&self, port: &str) -> Option<&UpLink> {
        let (_, links) = self.links.iter().find(|(name, _)| *name == port)?;
        links.first()
    }

    /// All links of an input port that takes a list.
    #[must_use]
    pub fn links(&self, port: &str) -> &[UpLink] {
        let found = self.links.iter().find(|(name, _)| *name == port);
        found.map_or(&[], |(_, links)| links.as_slice())
    }

    /// The facts of the (first) value that is linked to an input port, as the check knew them.
    #[must_use]
    pub fn facts<F: DeserializeOwned>(&self, port: &str) -> Option<F> {
        self.facts_at(port, 0)
    }

    /// The facts of value `index` of a port that takes a list.
    #[must_use]
    pub fn facts_at<F: DeserializeOwned>(&self, port: &str, index: usize) -> Option<F> {
        match self.known.get(port)?.get(index)? {
            Known::Facts(facts) => F::deserialize(&**facts).ok(),
            _ => None,
        }
    }
}
