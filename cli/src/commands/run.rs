//! `retouch run`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use retouch_graph::event::Listener;
use retouch_graph::{Cancel, Exists, RunError, RunOptions, SaveStatus, Saver};

use crate::args::{ExistsArg, RunArgs};
use crate::output::say;
use crate::progress::{JsonLines, Progress};
use crate::{Exit, Failure, session};

/// Runs a workflow and saves its outputs.
///
/// # Errors
/// When the device cannot be used or standard output is closed.
pub fn run(args: &RunArgs) -> Result<Exit, Failure> {
    let engine = session::computing_engine(&args.device)?;
    let checked = match session::load(&engine, &args.file, &session::settings(&args.params)) {
        Ok(checked) => checked,
        Err(exit) => return Ok(exit),
    };
    let plan = match engine.plan(&checked, &args.targets) {
        Ok(plan) => plan,
        Err(problems) => return Ok(session::faults(&problems)),
    };
    let cancel = Cancel::new();
    interrupts(&cancel)?;
    let exists = match args.exists {
        ExistsArg::Number => Exists::Number,
        ExistsArg::Replace => Exists::Replace,
        ExistsArg::Keep => Exists::Keep,
        ExistsArg::Fail => Exists::Fail,
    };
    let options = RunOptions {
        threads: usize::from(args.device.threads.unwrap_or(0)),
        saver: Some(Arc::new(Saver::new(&args.out, exists))),
    };
    let listener: Box<dyn Listener> = if args.json {
        Box::new(JsonLines)
    } else {
        Box::new(Progress::new(args.quiet))
    };
    match engine.run(&plan, listener.as_ref(), &cancel, &options) {
        Ok(report) => {
            if !args.json {
                for output in &report.outputs {
                    for saved in &output.saved {
                        let note = match saved.status {
                            SaveStatus::New => "new",
                            SaveStatus::Replaced => "replaced",
                            SaveStatus::Unchanged => "unchanged",
                            SaveStatus::Kept => "kept",
                            SaveStatus::Numbered => "another was there",
                        };
                        say(&format!("{}  {}  ({note})", output.name, saved.path.display()))?;
                    }
                    if output.saved.is_empty() {
                        say(&format!("{}  {}", output.name, output.value.summary()))?;
                    }
                }
            }
            Ok(Exit::Done)
        }
        Err(RunError::Cancelled) => {
            tell("interrupted; what was finished is saved");
            Ok(Exit::Interrupted)
        }
        // The listener has said which node failed, and why.
        Err(RunError::NodeFailed { .. }) if !args.json => Ok(Exit::Failed),
        Err(error) => {
            let failure = Failure::failed(error.to_string());
            Err(match error.hint() {
                Some(hint) => failure.help(hint),
                None => failure,
            })
        }
    }
}

#[allow(clippy::print_stderr)] // this is a place that prints
fn tell(text: &str) {
    eprintln!("{text}");
}

/// The first Ctrl-C (or SIGTERM) cancels at the next step, the third ends the program at once.
fn interrupts(cancel: &Cancel) -> Result<(), Failure> {
    let cancel = cancel.clone();
    let count = AtomicU32::new(0);
    ctrlc::set_handler(move || {
        cancel.cancel();
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => tell("stopping at the next step (twice more: at once)"),
            1 => {}
            _ => std::process::exit(Exit::Interrupted as i32),
        }
    })
    .map_err(|e| Failure::failed(format!("Ctrl-C cannot be handled: {e}")))
}
