//! What a node is: a typed trait for authors, an erased one for the engine.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::Files;
use crate::port::{Ports, Types};

/// A node is its parameters; its doc comment is its reference page.
///
/// The first sentence of the struct's doc comment says what the node does; the fields' comments document the
/// parameters. Optional parameters carry `#[serde(default)]`.
pub trait Node: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The op's name in the language: `swap_attention`.
    const OP: &'static str;
    /// Raised when equal inputs give another output than before; part of every key.
    const VERSION: u32;
    /// The input ports.
    type Inputs: Ports;
    /// The output ports; the first is the default one.
    type Outputs: Ports;

    /// The files that the node will read. Their content joins the key and they join the watch list.
    ///
    /// # Errors
    /// Faults when something that must be there is not.
    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        let _ = files;
        Ok(Vec::new())
    }

    /// Checks parameters and the facts of the inputs before anything runs, and states the facts of the outputs.
    ///
    /// # Errors
    /// All faults that were found.
    fn check(
        &self,
        inputs: &Types<Self::Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Self::Outputs>, Vec<Fault>> {
        let _ = (inputs, files);
        Ok(Types::unknown())
    }

    /// Whether the node needs the one compute device (a sampler) rather than a CPU thread (a picture's resize).
    const DEVICE: bool = false;

    /// Does the work.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`] when the run was cancelled, [`NodeError::Failed`] with what went wrong and what to do.
    fn run(&self, inputs: Self::Inputs, context: &Context<'_>) -> Result<Self::Outputs, NodeError>;
}

/// A file that a node reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFile {
    /// What the file is to the node (`unet/config.json`); part of the key in place of the path.
    pub role: String,
    /// Where it is.
    pub path: PathBuf,
}

/// A fault that a node finds in its own parameters or inputs before anything runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The parameter or port at fault; `None`: the node as a whole.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// What kind of fault it is, for the error code.
    pub kind: FaultKind,
}

/// The kinds of fault that a node can report; each has an error code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// A parameter's value does not fit the node or its other parameters.
    Value,
    /// What is linked does not fit: another model family, another size, another number of steps.
    Mismatch,
    /// A file is missing or cannot be read.
    File,
    /// A model's or a picture's file is damaged or not what it should be.
    Content,
}

impl Fault {
    fn new(kind: FaultKind, field: Option<&str>, message: impl Into<String>) -> Self {
        Self {
            field: field.map(str::to_owned),
            message: message.into(),
            help: None,
            kind,
        }
    }

    /// The value of the parameter `field` does not fit.
    pub fn value(field: &str, message: impl Into<String>) -> Self {
        Self::new(FaultKind::Value, Some(field), message)
    }

    /// What is linked to the port `field` does not fit.
    pub fn mismatch(field: &str, message: impl Into<String>) -> Self {
        Self::new(FaultKind::Mismatch, Some(field), message)
    }

    /// The file that `field` names is missing or unreadable.
    pub fn file(field: &str, message: impl Into<String>) -> Self {
        Self::new(FaultKind::File, Some(field), message)
    }

    /// The file that `field` names is damaged or not what it should be.
    pub fn content(field: &str, message: impl Into<String>) -> Self {
        Self::new(FaultKind::Content, Some(field), message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Why a node did not finish.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The run was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The node failed.
    #[error("{message}")]
    Failed {
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
}

impl NodeError {
    /// A failure without a hint.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            help: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(self, text: impl Into<String>) -> Self {
        match self {
            Self::Failed { message, .. } => Self::Failed {
                message,
                help: Some(text.into()),
            },
            Self::Cancelled => Self::Cancelled,
        }
    }
}

/// What the engine gives a running node.
pub struct Context<'a> {
    pub(crate) host: &'a dyn Host,
}

/// The engine's side of a [`Context`]; tests of nodes implement it too.
pub trait Host: Sync {
    /// Work done and work to do, in the node's own unit.
    fn progress(&self, done: usize, total: usize);
    /// Something that the user should know but that does not stop the run.
    fn warn(&self, message: &str);
    /// Adds to a counter of the run, `unet_calls` for one.
    fn count(&self, counter: &'static str, by: u64);
    /// Whether the run was cancelled.
    fn is_cancelled(&self) -> bool;
    /// All reading goes through this.
    fn files(&self) -> &dyn Files;
    /// What the nodes need beyond their inputs (the compute device), put there by whoever made the engine.
    fn environment(&self) -> Option<&(dyn Any + Send + Sync)>;
}

impl<'a> Context<'a> {
    /// Wraps a host.
    #[must_use]
    pub fn new(host: &'a dyn Host) -> Self {
        Self { host }
    }

    /// Reports work done and work to do (steps of a sampler, say).
    pub fn progress(&self, done: usize, total: usize) {
        self.host.progress(done, total);
    }

    /// Tells the user something that does not stop the run.
    pub fn warn(&self, message: &str) {
        self.host.warn(message);
    }

    /// Adds to a counter of the run, `unet_calls` for one.
    pub fn count(&self, counter: &'static str, by: u64) {
        self.host.count(counter, by);
    }

    /// Leaves the node when the run was cancelled; call it at every step.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`].
    pub fn check_cancelled(&self) -> Result<(), NodeError> {
        if self.host.is_cancelled() {
            Err(NodeError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// All reading goes through this.
    #[must_use]
    pub fn files(&self) -> &dyn Files {
        self.host.files()
    }

    /// The run's environment as `T` (the nodes' crate knows which), if it is one.
    #[must_use]
    pub fn environment<T: Any>(&self) -> Option<&T> {
        self.host.environment()?.downcast_ref::<T>()
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context")
    }
}

/// The run's environment: any type that the nodes agree on.
pub type Environment = Arc<dyn Any + Send + Sync>;
