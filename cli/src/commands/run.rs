//! `retouch run`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use retouch_graph::event::Listener;
use retouch_graph::write::probe;
use retouch_graph::{
    Cancel, Exists, Plan, RunError, RunOptions, SaveStatus, Saver, Settings, interrupt,
};

use crate::args::{ExistsArg, RunArgs};
use crate::hub::{self, Mode};
use crate::journal::{self, Journal};
use crate::output::say;
use crate::preview::Preview;
use crate::progress::{JsonLines, Outlook, Progress};
use crate::provenance::{Made, Stamps};
use crate::records;
use crate::runs::{Asked, Kind, Noted};
use crate::sharing::{Input, Stop};
use crate::store::Store;
use crate::{Exit, Failure, session, signals};

/// Runs a workflow and saves its outputs.
///
/// # Errors
/// When the device cannot be used or standard output is closed.
pub fn run(args: &RunArgs) -> Result<Exit, Failure> {
    let preview = Preview::of(&args.preview)?;
    let store = Store::of(&args.cache)?;
    session::threads(args.device.threads)?;
    let engine = session::caching_engine_for(&args.device, &store)?;
    let (places, locked) = (&args.locked.sharing, args.locked.locked);
    let cancel = Cancel::new();
    interrupts(&cancel)?;
    let mode = Mode::fetching(&cancel, args.json, args.quiet)
        .permitting(args.fetching.fetch, &args.fetching.token_for);
    let (input, engine) = match Input::open_with(&args.file, places, locked, &store, engine, mode) {
        Ok(opened) => opened,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(stop) => return stop.tell(args.json),
    };
    let draw = session::fresh_draw();
    let settings = Settings {
        draw: Some(draw),
        ..input.settings(&args.params)
    };
    let checked = match input.load(&engine, &settings) {
        Ok(checked) => checked,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return Stop::from(problems).tell(args.json),
    };
    session::warn(&checked, args.json)?;
    if let Some(preview) = &preview {
        preview.spares(&checked)?;
    }
    let plan = match engine.plan(&checked, &args.targets) {
        Ok(mut plan) => {
            plan.save_pictures();
            plan
        }
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return Stop::from(problems).tell(args.json),
    };
    if plan.outputs().iter().any(|output| output.save.is_some()) {
        writable(&args.out)?;
    }
    let saver = Saver::new(&args.out, exists(args.exists));
    can_save(&saver, &plan)?;
    let stamp = (!args.provenance.no_provenance)
        .then(|| Stamps::of(&engine, &input.file, Made::Workflow(Box::new(checked))))
        .flatten();
    let options = RunOptions {
        threads: usize::from(args.device.threads.unwrap_or(0)),
        saver: Some(Arc::new(saver)),
        previewer: preview.clone().map(|preview| preview as _),
        expected: journal::expected(store.file("journal.jsonl").as_deref()),
        stamp,
        ..RunOptions::default()
    };
    let listener: Box<dyn Listener> = if args.json {
        Box::new(JsonLines)
    } else {
        Box::new(Progress::new(args.quiet).with(Outlook::of(&engine, &store, &plan)))
    };
    let asked = Asked {
        draw,
        provenance: !args.provenance.no_provenance,
        ..Asked::new(
            &args.file,
            &args.params,
            places,
            &args.device.numerics.spec(),
            &args.out,
            &args.targets,
        )
    };
    let noted = Noted::begin(&store, Kind::Run, asked, &plan);
    let listener = noted.beside(listener.as_ref());
    let journal = Journal::new(&listener, store.file("journal.jsonl"), &plan);
    let result = engine.run(&plan, &journal, &cancel, &options);
    journal.write();
    noted.end();
    records::write(&store, &args.file, &plan);
    engine.files().flush();
    match result {
        Ok(report) => {
            if let Some(preview) = preview.filter(|_| !args.json && !args.quiet) {
                preview.tell_if_idle();
            }
            if !args.json {
                for output in &report.outputs {
                    for saved in &output.saved {
                        say(&result_line(&output.name, &saved.path, saved.status))?;
                    }
                    if output.saved.is_empty() {
                        let summary = output.value.summary();
                        say(&format!("{}  {summary}  (not saved)", output.name))?;
                    }
                }
            }
            Ok(Exit::Done)
        }
        Err(RunError::Cancelled) => Err(Failure::interrupted("what was finished is saved")),
        // The listener has said which node failed, and why.
        Err(RunError::NodeFailed { .. }) if !args.json => Ok(Exit::Failed),
        Err(error) => Err(Failure::of_run(&error)),
    }
}

/// The line for a file of an output.
#[must_use]
pub fn result_line(output: &str, path: &Path, status: SaveStatus) -> String {
    let note = match status {
        SaveStatus::New => "new",
        SaveStatus::Replaced => "replaced",
        SaveStatus::Unchanged => "unchanged",
        SaveStatus::Kept => "kept",
        SaveStatus::Numbered => "numbered: the name was taken",
    };
    format!("{output}  {}  ({note})", crate::safe::path(path))
}

/// What to do with files that exist, as the engine takes it.
#[must_use]
pub fn exists(arg: ExistsArg) -> Exists {
    match arg {
        ExistsArg::Number => Exists::Number,
        ExistsArg::Replace => Exists::Replace,
        ExistsArg::Keep => Exists::Keep,
        ExistsArg::Fail => Exists::Fail,
    }
}

/// Makes the output folder and tries to write in it: better now than after hours of drawing.
///
/// # Errors
/// When it cannot be written.
pub fn writable(out: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(out)
        .and_then(|()| probe(out))
        .map_err(|e| {
            Failure::unwritable(format!(
                "the output folder {} cannot be written: {e}",
                out.display()
            ))
            .help("name another with `--out DIR`")
        })
}

/// Whether all outputs of a plan can be saved where they are to be, as far as that is known before.
///
/// # Errors
/// Names the first that cannot.
pub fn can_save(saver: &Saver, plan: &Plan) -> Result<(), Failure> {
    for path in plan
        .outputs()
        .iter()
        .filter_map(|output| output.save.as_deref())
    {
        saver.check(path).map_err(|error| {
            Failure::failed(error.to_string())
                .code(error.code())
                .help(error.help())
        })?;
    }
    Ok(())
}

fn tell(text: &str) {
    crate::output::tell(text);
}

/// The first Ctrl-C (or SIGTERM, SIGHUP) cancels what this thread and its runs do, the third ends the program at once.
///
/// # Errors
/// When the system lets nobody listen.
pub fn interrupts(cancel: &Cancel) -> Result<(), Failure> {
    interrupt::attend(cancel);
    let cancel = cancel.clone();
    let count = AtomicU32::new(0);
    signals::listen(move || {
        cancel.cancel();
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => tell("stopping; press Ctrl-C twice more to stop at once"),
            1 => {}
            _ => std::process::exit(Exit::Interrupted as i32),
        }
    })
}
