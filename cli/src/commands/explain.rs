//! `retouch explain`.

use retouch_graph::problem;

use crate::args::ExplainArgs;
use crate::output::say;
use crate::{Exit, Failure, exit};

/// What stands for the table of exit codes.
const EXIT_CODES: &str = "exit-codes";

/// Explains a code, or lists all of them.
///
/// # Errors
/// When there is no such code.
pub fn explain(args: &ExplainArgs) -> Result<Exit, Failure> {
    let Some(code) = &args.code else {
        for (code, title) in problem::codes() {
            say(&format!("{code}  {title}"))?;
        }
        say(&format!("{EXIT_CODES}  What the exit codes mean."))?;
        return Ok(Exit::Done);
    };
    if code.trim().eq_ignore_ascii_case(EXIT_CODES) {
        say(&exit::explanation())?;
        return Ok(Exit::Done);
    }
    let upper = code.to_uppercase();
    match problem::explain(&upper) {
        Some(text) => {
            say(text.trim_end())?;
            Ok(Exit::Done)
        }
        None => Err(Failure::usage(format!("there is no error code {code:?}"))
            .help("`retouch explain` lists all codes")),
    }
}
