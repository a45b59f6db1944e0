//! Exit codes: one table, shown by `--help`, `retouch explain` and the documentation.

use retouch_graph::Problems;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// All was done.
    Done = 0,
    /// Something failed on the way.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The files of the workflow have faults.
    Faults = 3,
    /// The system refused memory; where it is not noticed the process aborts instead.
    OutOfMemory = 4,
    /// A picture that was drawn again is equal up to rounding, not to the byte.
    Rounded = 5,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// All of them, by number.
    pub const ALL: [Self; 7] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Faults,
        Self::OutOfMemory,
        Self::Rounded,
        Self::Interrupted,
    ];

    /// The number that the shell sees.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What it means, in one line.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => {
                "a node failed, a file could not be read or written, what was compared differs, or the reader of standard output went away"
            }
            Self::Usage => {
                "the command line is wrong: an option, a missing file, an unknown node, output or param, a value of `--set`, `--over` or `--params`"
            }
            Self::Faults => "the workflow, its lock or the bundle has faults",
            Self::OutOfMemory => {
                "out of memory: the system refused it, and the process ended at once"
            }
            Self::Rounded => "`replay`: drawn again, equal up to rounding and not to the byte",
            Self::Interrupted => "interrupted by Ctrl-C, SIGTERM or SIGHUP",
        }
    }

    /// The last line of `--json`.
    #[must_use]
    pub fn last_line(self) -> &'static str {
        match self {
            Self::Done => "`run_finished` with `ok`, or what the command gives",
            Self::Failed => "`error`",
            Self::Usage => "`error`, or `fault` with severity `error`",
            Self::Faults => "`fault` with severity `error`",
            Self::OutOfMemory => {
                "none; standard error says how much was asked for, which nodes ran, and what to change"
            }
            Self::Rounded => "`replayed`",
            Self::Interrupted => "`error`, R1007",
        }
    }

    /// The exit for faults: 2 when the command line alone is at fault, else 3.
    #[must_use]
    pub fn of(problems: &Problems) -> Self {
        if problems.are_of_arguments() {
            Self::Usage
        } else {
            Self::Faults
        }
    }
}

/// The table as text: a number and its meaning a line.
#[must_use]
pub fn table() -> String {
    let lines = Exit::ALL.map(|exit| format!("{:>3}  {}", exit.number(), exit.meaning()));
    lines.join("\n")
}

/// The table and the rules around it: what `retouch explain exit-codes` prints.
#[must_use]
pub fn explanation() -> String {
    format!(
        "The exit codes of all commands:\n\n{}\n\nWhere both the command line and a file are at fault it is 3. A command that takes several files ends with the \
         highest code of any of them, and goes on to the others first. \
         4 is Linux alone: elsewhere the process aborts. `watch` and `view` are ended by Ctrl-C and the like, and end with 0 then.",
        table()
    )
}
