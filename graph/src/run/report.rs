//! What a run gives: its outputs, what became of each node, or why it did not end well.

use std::fmt;

use crate::base::error::NodeError;
use crate::base::key::Key;
use crate::base::problem::Code;
use crate::plan::task::Task;
use crate::run::event::{Counters, Event};
use crate::run::save::{SaveError, Saved};
use crate::value::value::Value;

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It was cancelled. Outputs that were ready by then are saved.
    #[error("cancelled")]
    Cancelled,
    /// A node failed. Outputs that were ready by then are saved.
    #[error("`{node}` ({op}) failed: {message}")]
    NodeFailed {
        /// The node.
        node: String,
        /// Its op.
        op: &'static str,
        /// What kind of failure it is.
        code: Code,
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// An output was not saved.
    #[error("the output `{output}` was not saved: {source}")]
    Save {
        /// The output.
        output: String,
        /// Why.
        source: SaveError,
    },
    /// Several nodes failed or outputs were not saved, and the run went on.
    #[error("{count} nodes or outputs failed; the first: {first}")]
    Several {
        /// How many.
        count: usize,
        /// The first of them.
        first: Box<RunError>,
    },
}

impl RunError {
    /// What kind of failure it is.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Cancelled => Code::Interrupted,
            Self::NodeFailed { code, .. } => *code,
            Self::Save { source, .. } => source.code(),
            Self::Several { .. } => Code::SeveralFailed,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Cancelled => None,
            Self::NodeFailed { help, .. } => help.clone(),
            Self::Save { source, .. } => Some(source.help()),
            Self::Several { first, .. } => first.hint(),
        }
    }
}

impl miette::Diagnostic for RunError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

/// An output of a run.
#[derive(Clone, Debug)]
pub struct OutputValue {
    /// Its name; for a node that was requested by name `layout.latent`.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// The path that the workflow gives it.
    pub save: Option<String>,
    /// The files that it was saved to.
    pub saved: Vec<Saved>,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeOutcome {
    /// It ran.
    Ran {
        /// The seconds that it took.
        seconds: f64,
        /// What it counted.
        counters: Counters,
    },
    /// It did not have to: where its outputs are, or `not needed`.
    Reused(&'static str),
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    /// The node, or the first of those that the task is.
    pub node: String,
    /// Its op.
    pub op: &'static str,
    /// Its key.
    pub key: Key,
    /// What became of it.
    pub outcome: NodeOutcome,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The outputs in the order of the plan.
    pub outputs: Vec<OutputValue>,
    /// The tasks in the order of the plan.
    pub nodes: Vec<NodeReport>,
    /// The seconds that it took.
    pub seconds: f64,
    /// What all nodes counted.
    pub counters: Counters,
    /// The number of nodes that ran.
    pub ran: usize,
    /// The number of nodes that did not have to.
    pub reused: usize,
}

/// What listeners hear of an error, if it is a node's.
pub(super) fn node_failed(error: &RunError) -> Option<Event> {
    let RunError::NodeFailed {
        node,
        code,
        message,
        help,
        ..
    } = error
    else {
        return None;
    };
    Some(Event::NodeFailed {
        node: node.clone(),
        code: *code,
        message: message.clone(),
        help: help.clone(),
    })
}

/// A node's failure as the run's.
pub(super) fn failure(task: &Task, code: Code, error: NodeError) -> RunError {
    match error {
        NodeError::Cancelled => RunError::Cancelled,
        NodeError::Failed { message, help } => RunError::NodeFailed {
            node: task.name().to_owned(),
            op: task.op(),
            code,
            message,
            help,
        },
    }
}

pub(super) fn not_given(node: &str, op: &'static str, port: &str) -> RunError {
    RunError::NodeFailed {
        node: node.to_owned(),
        op,
        code: Code::NotGiven,
        message: format!("it did not give its output `{port}`, which is needed"),
        help: Some(format!("`retouch nodes {op}` says when it gives `{port}`")),
    }
}
