//! Why a command ends without having done what it was asked.

use std::path::Path;

use retouch_graph::{Code, RunError};

use crate::Exit;

/// Why a command did not do what it was asked, with what to do about it.
#[derive(Debug)]
pub struct Failure {
    /// How the program ends with it.
    pub exit: Exit,
    /// Its code.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Failure {
    /// Something failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            code: Code::CommandFailed,
            message: message.into(),
            help: None,
        }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::failed(message).code(Code::Usage)
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Something cannot be read.
    pub fn unreadable(message: impl Into<String>) -> Self {
        Self::failed(message).code(Code::Unreadable)
    }

    /// A file that the command line names cannot be read: the argument is wrong.
    #[must_use]
    pub fn unreadable_argument(path: &Path, why: impl std::fmt::Display) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::unreadable(format!("{} cannot be read: {why}", path.display()))
                .help("check the path")
        }
    }

    /// Something cannot be written.
    pub fn unwritable(message: impl Into<String>) -> Self {
        Self::failed(message).code(Code::Unwritable)
    }

    /// Ctrl-C; `kept` says what of the work is not lost.
    #[must_use]
    pub fn interrupted(kept: &str) -> Self {
        Self {
            exit: Exit::Interrupted,
            ..Self::failed(format!("interrupted; {kept}")).code(Code::Interrupted)
        }
    }

    /// A run did not end well.
    #[must_use]
    pub fn of_run(error: &RunError) -> Self {
        Self {
            help: error.hint(),
            ..Self::failed(error.to_string()).code(error.code())
        }
    }

    /// Says more exactly what kind of failure it is.
    #[must_use]
    pub fn code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}
