//! `retouch check`.

use retouch_graph::problem::{Problem, Severity};
use serde_json::json;

use crate::args::CheckArgs;
use crate::output::say;
use crate::{Exit, Failure, report, session};

/// Reports every fault of the files.
///
/// # Errors
/// When standard output is closed.
#[allow(clippy::print_stderr)] // this is a place that prints
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
                say(&as_json(problem).to_string())?;
            }
        } else {
            eprint!("{}", report::render(&problems, report::colour()));
        }
        match checked {
            Some(checked) if !args.json => say(&format!(
                "{}: {} nodes, {} outputs, no faults",
                file.display(),
                checked.nodes.len(),
                checked.outputs.len()
            ))?,
            Some(_) => {}
            None => {
                exit = Exit::Faults;
                if !args.json {
                    let faults = problems.iter().filter(|p| p.severity() != Severity::Warning);
                    let faults = faults.count();
                    let s = if faults == 1 { "" } else { "s" };
                    eprintln!("{}: {faults} fault{s}", file.display());
                }
            }
        }
    }
    Ok(exit)
}

fn as_json(problem: &Problem) -> serde_json::Value {
    let (line, column) = problem.line_column();
    json!({
        "code": problem.code().as_str(),
        "severity": if problem.severity() == Severity::Warning { "warning" } else { "error" },
        "file": problem.source_text().name(),
        "line": line,
        "column": column,
        "message": problem.message(),
        "help": problem.hint(),
    })
}
