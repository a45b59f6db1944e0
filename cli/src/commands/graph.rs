//! `retouch graph`.

use crate::args::{GraphArgs, GraphFormat};
use crate::output::say_raw;
use crate::sharing::Input;
use crate::store::Store;
use crate::{Exit, Failure, session};

/// Prints the graph as text that other programs draw.
///
/// # Errors
/// When standard output is closed.
pub fn graph(args: &GraphArgs) -> Result<Exit, Failure> {
    let store = Store::of(&args.cache)?;
    let engine = session::engine("cpu")?;
    let (input, engine) = match Input::open(
        &args.file,
        &args.locked.sharing,
        args.locked.locked,
        &store,
        engine,
    ) {
        Ok(opened) => opened,
        Err(stop) => return stop.tell(false),
    };
    let checked = match input.load(&engine, &input.settings(&args.params)) {
        Ok(checked) => checked,
        Err(problems) => return Ok(session::faults(&problems)),
    };
    session::warn(&checked, false)?;
    let plan = match engine.plan(&checked, &[]) {
        Ok(plan) => plan,
        Err(problems) => return Ok(session::faults(&problems)),
    };
    let text = match args.format {
        GraphFormat::Dot => plan.to_dot(),
        GraphFormat::Mermaid => plan.to_mermaid(),
    };
    say_raw(&format!("{}\n", text.trim_end()))?;
    Ok(Exit::Done)
}
