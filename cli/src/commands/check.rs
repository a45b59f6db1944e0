//! `retouch check`.

use retouch_graph::Sweep;
use retouch_graph::problem::{Problem, Severity};

use crate::args::CheckArgs;
use crate::output::say;
use crate::safe::path;
use crate::sharing::Input;
use crate::store::Store;
use crate::{Exit, Failure, session};

/// Reports every fault of the files.
///
/// # Errors
/// When standard output is closed.
pub fn check(args: &CheckArgs) -> Result<Exit, Failure> {
    let store = Store::of(&args.cache)?;
    let plain = session::engine("cpu")?;
    let mut exit = Exit::Done;
    for file in &args.files {
        let (input, engine) = match Input::open(
            file,
            &args.locked.sharing,
            args.locked.locked,
            &store,
            plain.clone(),
        ) {
            Ok(opened) => opened,
            Err(stop) => {
                exit = exit.max(stop.tell(args.json)?);
                continue;
            }
        };
        let mut settings = input.settings(&args.params);
        // A graph for use in others is checked as far as that goes without what it will be given.
        settings.part = true;
        let written = engine
            .read(&input.file)
            .ok()
            .and_then(|workflow| workflow.sweep);
        let only = written
            .as_ref()
            .is_some_and(|sweep| sweep.workflow.is_some());
        let loaded = if only {
            Ok(None)
        } else {
            input.load(&engine, &settings).map(Some)
        };
        // What the workflow's own faults are is reported first: each cell would have them.
        let loaded = loaded.and_then(|checked| {
            let sweep = written.map(|_| input.load_sweep(&engine, &settings));
            Ok((checked, sweep.transpose()?))
        });
        let (problems, checked) = match loaded {
            Ok((checked, sweep)) => {
                let own = checked.iter().flat_map(|checked| &checked.warnings);
                let cells = sweep.iter().flat_map(Sweep::warnings).filter(|_| only);
                let problems: Vec<Problem> = own.chain(cells).cloned().collect();
                (problems, Some((checked, sweep)))
            }
            Err(problems) => {
                exit = exit.max(Exit::of(&problems));
                (problems.iter().cloned().collect(), None)
            }
        };
        if args.json {
            session::say_faults(&problems)?;
        } else {
            session::tell_problems(&problems);
        }
        match checked {
            Some(_) if args.json => {}
            Some((checked, sweep)) => {
                // A part has nodes that wait for its inputs: what is reported is what the file has.
                let part = engine
                    .read(&input.file)
                    .is_ok_and(|workflow| !workflow.inputs.is_empty());
                let cells = sweep.map_or_else(String::new, |sweep| {
                    let count = sweep.cells.len();
                    let s = if count == 1 { "" } else { "s" };
                    match only {
                        true => format!("{count} cell{s} of {}", path(&sweep.workflow)),
                        false => format!(", a sweep of {count} cell{s}"),
                    }
                });
                say(&match checked {
                    None => format!("{}: a sweep, {cells}, no faults", path(file)),
                    Some(_) if part => {
                        format!("{}: a reusable workflow, no faults", path(file))
                    }
                    Some(checked) => format!(
                        "{}: {} nodes, {} outputs{cells}, no faults",
                        path(file),
                        checked.nodes.len(),
                        checked.outputs.len()
                    ),
                })?;
            }
            None => {
                if !args.json {
                    let faults = problems
                        .iter()
                        .filter(|p| p.severity() != Severity::Warning);
                    let faults = faults.count();
                    let s = if faults == 1 { "" } else { "s" };
                    crate::output::tell(&format!("{}: {faults} fault{s}", path(file)));
                }
            }
        }
    }
    Ok(exit)
}
