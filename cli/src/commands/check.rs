//! `retouch check`.

use retouch_graph::problem::Severity;

use crate::args::CheckArgs;
use crate::output::say;
use crate::{Exit, Failure, report, session};

/// Reports every fault of the files.
///
/// # Errors
/// When standard output is closed.
pub fn check(args: &CheckArgs) -> Result<Exit, Failure> {
    let engine = session::engine("cpu")?;
    let mut exit = Exit::Done;
    for file in &args.files {
        let mut settings = session::settings(&args.params);
        // A graph for use in others is checked as far as that goes without what it will be given.
        settings.part = true;
        let (problems, checked) = match engine.load(file, &settings) {
            Ok(checked) => (checked.warnings.clone(), Some(checked)),
            Err(problems) => (problems.iter().cloned().collect(), None),
        };
        if args.json {
            for problem in &problems {
                say(&session::fault_as_json(problem).to_string())?;
            }
        } else {
            crate::output::tell(report::render(&problems, report::colour()).trim_end_matches('\n'));
        }
        match checked {
            Some(_) if args.json => {}
            Some(checked) => {
                // A part has nodes that wait for its inputs: what is told is what the file has.
                let part = engine
                    .read(file)
                    .is_ok_and(|workflow| !workflow.inputs.is_empty());
                say(&if part {
                    format!("{}: a graph for use in others, no faults", file.display())
                } else {
                    format!(
                        "{}: {} nodes, {} outputs, no faults",
                        file.display(),
                        checked.nodes.len(),
                        checked.outputs.len()
                    )
                })?;
            }
            None => {
                exit = Exit::Faults;
                if !args.json {
                    let faults = problems
                        .iter()
                        .filter(|p| p.severity() != Severity::Warning);
                    let faults = faults.count();
                    let s = if faults == 1 { "" } else { "s" };
                    crate::output::tell(&format!("{}: {faults} fault{s}", file.display()));
                }
            }
        }
    }
    Ok(exit)
}
