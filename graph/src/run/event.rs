//! What happens during a run, for the command line, reports and tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::base::key::Key;
use crate::base::problem::Code;
use crate::base::sync::lock;
use crate::check::ResolvedParam;
use crate::run::save::SaveStatus;

/// The version of the events' form; raised when a field goes or changes its meaning, not when one is added.
pub const EVENT_SCHEMA: u32 = 1;

/// Counters by name: `unet_calls`.
pub type Counters = BTreeMap<&'static str, u64>;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// All outputs were made.
    Ok,
    /// A node or the saving of an output failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// Something that happened. As JSON: `{"event": "node_started", ...}`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run begins.
    RunStarted {
        /// The version of the events' form.
        schema: u32,
        /// The workflow's name.
        workflow: String,
        /// The number of nodes in the plan, those that are reused included.
        nodes: usize,
        /// The values of the workflow's params, drawn seeds among them.
        params: Vec<ResolvedParam>,
    },
    /// A node does not run: its outputs are there, or nothing needs them.
    NodeReused {
        /// The node.
        node: String,
        /// Its op.
        op: &'static str,
        /// Its key.
        key: Key,
        /// Where its outputs are: `memory`, `device memory`, `disk`, `remote`; or `not needed`.
        from: &'static str,
    },
    /// A node begins to run.
    NodeStarted {
        /// The node.
        node: String,
        /// Its op.
        op: &'static str,
        /// Its key.
        key: Key,
        /// Which of the nodes that run it is, from 1.
        index: usize,
        /// How many nodes run.
        of: usize,
    },
    /// A node found so many of its steps done already.
    NodeResumed {
        /// The node.
        node: String,
        /// The step that it goes on with, which is the number of those that are done.
        step: usize,
        /// How many steps it has; equal to `step` when all are there.
        of: usize,
    },
    /// The cache has something to say: a damaged entry, a full disk.
    CacheWarning {
        /// What it says.
        message: String,
    },
    /// A node got on.
    NodeProgress {
        /// The node.
        node: String,
        /// Work done, in the node's own unit.
        done: usize,
        /// Work to do.
        total: usize,
    },
    /// What a node has so far was shown in the preview's file.
    PreviewShown {
        /// The node.
        node: String,
        /// The steps that are done.
        done: usize,
        /// How many steps it has.
        of: usize,
    },
    /// A node says what it did, where that is worth knowing: nothing is to be done about it.
    NodeNote {
        /// The node.
        node: String,
        /// What it did.
        message: String,
    },
    /// A node has something to say that does not stop the run.
    NodeWarning {
        /// The node.
        node: String,
        /// What it says.
        message: String,
    },
    /// A node is done.
    NodeFinished {
        /// The node.
        node: String,
        /// The seconds that it took.
        seconds: f64,
        /// What it counted.
        counters: Counters,
    },
    /// A node failed.
    NodeFailed {
        /// The node.
        node: String,
        /// What kind of failure it is.
        code: Code,
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// A file of an output is in its place.
    OutputSaved {
        /// The output.
        output: String,
        /// The file.
        #[serde(serialize_with = "as_text")]
        #[schemars(with = "String")]
        path: PathBuf,
        /// What became of it.
        status: SaveStatus,
    },
    /// An output was not saved.
    OutputFailed {
        /// The output.
        output: String,
        /// What kind of failure it is.
        code: Code,
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: String,
    },
    /// The run is over.
    RunFinished {
        /// How it ended.
        status: RunStatus,
        /// The seconds that it took.
        seconds: f64,
        /// What all nodes counted.
        counters: Counters,
        /// The number of nodes that ran.
        ran: usize,
        /// The number of nodes that did not have to.
        reused: usize,
    },
}

/// A path that is not Unicode is written lossily: a missing line would be worse.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Receives the events of a run, from several threads.
pub trait Listener: Send + Sync {
    /// Takes an event; it should return soon, as a node waits for it.
    fn event(&self, event: &Event);
}

/// Ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Listener for Silent {
    fn event(&self, _: &Event) {}
}

/// Records all events, for tests.
#[derive(Debug, Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    /// Makes an empty recorder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        lock(&self.events).clone()
    }

    /// The nodes that ran, in the order in which they began.
    #[must_use]
    pub fn ran(&self) -> Vec<String> {
        self.pick(|event| match event {
            Event::NodeStarted { node, .. } => Some(node.clone()),
            _ => None,
        })
    }

    /// The nodes that were reused, in the order of the file.
    #[must_use]
    pub fn reused(&self) -> Vec<String> {
        self.pick(|event| match event {
            Event::NodeReused { node, .. } => Some(node.clone()),
            _ => None,
        })
    }

    /// The nodes that went on from a step, and that step.
    #[must_use]
    pub fn resumed(&self) -> Vec<(String, usize)> {
        self.pick(|event| match event {
            Event::NodeResumed { node, step, .. } => Some((node.clone(), *step)),
            _ => None,
        })
    }

    fn pick<T>(&self, pick: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        lock(&self.events).iter().filter_map(pick).collect()
    }
}

impl Listener for Recorder {
    fn event(&self, event: &Event) {
        lock(&self.events).push(event.clone());
    }
}
