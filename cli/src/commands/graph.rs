//! `retouch graph`.

use crate::args::{GraphArgs, GraphFormat};
use crate::output::say;
use crate::{Exit, Failure, session};

/// Prints the graph as text that other programs draw.
///
/// # Errors
/// When standard output is closed.
pub fn graph(args: &GraphArgs) -> Result<Exit, Failure> {
    let engine = session::engine("cpu")?;
    let checked = match session::load(&engine, &args.file, &session::settings(&args.params)) {
        Ok(checked) => checked,
        Err(exit) => return Ok(exit),
    };
    let plan = match engine.plan(&checked, &[]) {
        Ok(plan) => plan,
        Err(problems) => return Ok(session::faults(&problems)),
    };
    let text = match args.format {
        GraphFormat::Dot => plan.to_dot(),
        GraphFormat::Mermaid => plan.to_mermaid(),
    };
    say(text.trim_end())?;
    Ok(Exit::Done)
}
