//! `retouch run`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use retouch_graph::event::{Event, Listener};
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
use crate::{Exit, Failure, fresh_draw, session, signals};

/// Runs a workflow and saves its outputs.
///
/// # Errors
/// When the device cannot be used or standard output is closed.
// Long: the order of the steps is the command: each has a function of its own.
pub fn run(args: &RunArgs) -> Result<Exit, Failure> {
    let preview = Preview::of(&args.drawing.preview, args.drawing.existing)?;
    let store = Store::of(&args.drawing.cache)?;
    session::threads(args.drawing.device.threads)?;
    let engine = session::caching_engine_for(&args.drawing.device, &store)?;
    let (places, locked) = (&args.drawing.locked.sharing, args.drawing.locked.locked);
    let cancel = Cancel::new();
    interrupts(&cancel)?;
    let mode = Mode::fetching(&cancel, args.drawing.json, args.drawing.telling.quiet)
        .permitting(args.fetching.fetch, &args.fetching.token_for);
    let (input, engine) = match Input::open_with(&args.file, places, locked, &store, engine, mode) {
        Ok(opened) => opened,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(stop) => return stop.tell(args.drawing.json),
    };
    let draw = fresh_draw();
    let settings = Settings {
        draw: Some(draw),
        ..input.settings(&args.drawing.params)
    };
    let checked = match input.load(&engine, &settings) {
        Ok(checked) => checked,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return Stop::from(problems).tell(args.drawing.json),
    };
    session::warn(&checked, args.drawing.json)?;
    if let Some(preview) = &preview {
        preview.spares(&checked, &args.drawing.out)?;
    }
    let plan = match engine.plan(&checked, &args.targets) {
        Ok(mut plan) => {
            plan.save_pictures();
            plan
        }
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return Stop::from(problems).tell(args.drawing.json),
    };
    if plan.outputs().iter().any(|output| output.save.is_some()) {
        writable(&args.drawing.out)?;
    }
    let saver = Saver::new(&args.drawing.out, exists(args.drawing.existing.exists));
    can_save(&saver, &plan)?;
    let stamp = (!args.drawing.provenance.no_provenance)
        .then(|| Stamps::of(&engine, &input.file, Made::Workflow(Box::new(checked))))
        .flatten();
    let options = RunOptions {
        threads: usize::from(args.drawing.device.threads.unwrap_or(0)),
        saver: Some(Arc::new(saver)),
        previewer: preview.clone().map(|preview| preview as _),
        expected: journal::expected(store.file("journal.jsonl").as_deref()),
        stamp,
        keep_going: args.drawing.keep_going,
        ..RunOptions::default()
    };
    let asked = Asked {
        draw,
        provenance: !args.drawing.provenance.no_provenance,
        ..Asked::new(
            &args.file,
            &args.drawing.params,
            places,
            &args.drawing.device.numerics.spec(),
            &args.drawing.out,
            &args.targets,
        )
    };
    let noted = Noted::begin(&store, Kind::Run, asked, &plan);
    let listener: Box<dyn Listener> = if args.drawing.json {
        Box::new(JsonLines { run: noted.name() })
    } else {
        Box::new(
            Progress::new(args.drawing.telling.quiet).with(Outlook::of(&engine, &store, &plan)),
        )
    };
    let listener = noted.beside(listener.as_ref());
    let journal = Journal::new(&listener, store.file("journal.jsonl"), &plan);
    let tells = args.drawing.keep_going && !args.drawing.json;
    let files = SavedFiles::new(&journal, tells);
    let result = engine.run(&plan, &files, &cancel, &options);
    let saved = files.take(&plan);
    journal.write();
    noted.end();
    records::write(&store, &args.file, &plan);
    engine.files().flush();
    match result {
        Ok(report) => {
            if let Some(preview) =
                preview.filter(|_| !args.drawing.json && !args.drawing.telling.quiet)
            {
                preview.tell_if_idle();
            }
            if !args.drawing.json {
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
        // The listener has said what failed, and why.
        Err(error) if tells => {
            for (output, path, status) in saved {
                say(&result_line(&output, &path, status))?;
            }
            if let RunError::Several { count, .. } = error {
                tell(&format!("{count} nodes or outputs failed"));
            }
            Ok(Exit::Failed)
        }
        // The listener has said which node failed, and why.
        Err(RunError::NodeFailed { .. }) if !args.drawing.json => Ok(Exit::Failed),
        Err(error) => Err(Failure::of_run(&error)),
    }
}

/// Notes what is saved, beside another listener: the report of a run that went on past failures, or dropped its outputs, does
/// not have it.
pub struct SavedFiles<'a> {
    inner: &'a dyn Listener,
    tells: bool,
    saved: Mutex<Vec<(String, PathBuf, SaveStatus)>>,
}

impl<'a> SavedFiles<'a> {
    /// Notes beside `inner`; `tells`: what cannot be saved is printed at once, as the run goes on.
    #[must_use]
    pub fn new(inner: &'a dyn Listener, tells: bool) -> Self {
        Self {
            inner,
            tells,
            saved: Mutex::default(),
        }
    }

    /// The files so far, in the order of the plan's outputs: the output, the path, what became of it.
    pub fn take(&self, plan: &Plan) -> Vec<(String, PathBuf, SaveStatus)> {
        let saved = &mut *self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut saved = std::mem::take(saved);
        let places: HashMap<&str, usize> = (plan.outputs().iter().enumerate())
            .map(|(index, output)| (output.name.as_str(), index))
            .collect();
        saved.sort_by_key(|(output, ..)| places.get(output.as_str()).copied());
        saved
    }
}

impl Listener for SavedFiles<'_> {
    fn event(&self, event: &Event) {
        self.inner.event(event);
        match event {
            Event::OutputSaved {
                output,
                path,
                status,
            } => {
                let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
                saved.push((output.clone(), path.clone(), *status));
            }
            Event::OutputFailed { message, .. } if self.tells => {
                tell(&format!("error: {message}"));
            }
            _ => {}
        }
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
/// When the signals cannot be handled.
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
