//! The networks and the method: text encoder, U-Net with numbered attention sites, VAE, schedulers, attention control and
//! the two stages of Layout-and-Retouch. No YAML and no ports in here.

pub mod checkpoint;
pub mod networks;
pub mod prompt;
pub mod sampling;
pub mod training;

use std::path::PathBuf;

use retouch_graph::NodeError;

/// What can go wrong below the nodes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration file that does not describe a network that is built here.
    #[error("{}: {message}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what was expected.
        message: String,
    },
    /// A weight file that is missing, damaged or does not fit its configuration.
    #[error("{}: {message}", file.display())]
    Weights {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what was expected.
        message: String,
    },
    /// A request that cannot be met: a phrase that is not in the prompt, a trajectory of another size.
    #[error("{message}")]
    Request {
        /// What is wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// The run was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// A request that cannot be met.
    pub fn request(message: impl Into<String>) -> Self {
        Self::Request {
            message: message.into(),
            help: None,
        }
    }

    /// Adds what to do about a request that cannot be met.
    #[must_use]
    pub fn help(self, text: impl Into<String>) -> Self {
        match self {
            Self::Request { message, .. } => Self::Request {
                message,
                help: Some(text.into()),
            },
            other => other,
        }
    }

    /// What to do about it, if that is known.
    #[must_use]
    pub fn help_text(&self) -> Option<&str> {
        match self {
            Self::Request { help, .. } => help.as_deref(),
            _ => None,
        }
    }
}

impl From<Error> for NodeError {
    fn from(error: Error) -> Self {
        match error {
            Error::Cancelled => Self::Cancelled,
            Error::Request { message, help } => Self::Failed { message, help },
            Error::Tensor(error) => tensor_error(error),
            other => Self::failed(other.to_string()),
        }
    }
}

/// A tensor operation's failure as the node's.
#[must_use]
pub fn tensor_error(error: candle_core::Error) -> NodeError {
    // candle adds a backtrace when RUST_BACKTRACE is set: the first line is what a user can read.
    let text = error.to_string();
    let first = text.lines().next().unwrap_or("no reason given").to_owned();
    let lower = text.to_lowercase();
    if lower.contains("out of memory") || lower.contains("out_of_memory") {
        return NodeError::failed(format!("the device is out of memory: {first}")).help(
            "try `--dtype f16` or `bf16`, `--offload`, `--device-cache 0`, a smaller batch or size; `--device cpu` has the machine's own memory",
        );
    }
    NodeError::failed(format!("a tensor operation failed: {first}"))
}

/// A prompt in a message: in quotes, and cut when it is long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 120;
    // The mark stands outside of the quotes, where it is no part of the prompt.
    match retouch_graph::text::start(text, LONGEST) {
        None => format!("{text:?}"),
        Some(start) => format!("{start:?}..."),
    }
}

/// Before a layer is computed or a tensor is read: whether the result is still wanted.
///
/// # Errors
/// [`Error::Cancelled`] when the run that this thread works for was cancelled.
pub(crate) fn goes_on() -> Result<()> {
    match retouch_graph::interrupt::is_requested() {
        true => Err(Error::Cancelled),
        false => Ok(()),
    }
}

/// The result of everything below the nodes.
pub type Result<T, E = Error> = std::result::Result<T, E>;
