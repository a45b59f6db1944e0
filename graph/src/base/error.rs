//! Faults of nodes, before and while they run.

use std::any::Any;
use std::sync::Arc;

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

    /// The failure that something panicked, with its message.
    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Self::failed(format!("it panicked: {text}"))
            .help("this is a bug in the program: please report it with the workflow")
    }
}

/// The run's environment: any type that the nodes agree on.
pub type Environment = Arc<dyn Any + Send + Sync>;
