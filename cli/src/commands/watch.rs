//! `retouch watch`: runs a workflow again whenever something that it reads changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};
use retouch_graph::event::{Event, Listener};
use retouch_graph::params::How;
use retouch_graph::{
    Cancel, Checked, Code, DiskFiles, Drawn, Engine, Files, Forecast, Plan, Problems, RunError,
    RunOptions, RunReport, SaveStatus, Saver, Settings, Stamp, Sweep, SweepPlan, interrupt,
};

use crate::args::FollowArgs;
use crate::commands::run::{self, SavedFiles};
use crate::commands::sweep;
use crate::commands::sweep::cells::{self, Cells};
use crate::hub::Mode;
use crate::journal::{self, Journal};
use crate::lines::Line;
use crate::output::say;
use crate::preview::Preview;
use crate::progress::{JsonLines, Lines, Outlook, Progress};
use crate::provenance::{Made, Stamps};
use crate::runs::{Asked, Kind, Noted};
use crate::sharing::Input;
use crate::store::Store;
use crate::table;
use crate::watching::{Observer, Planned, Request, Requests, TaskHistory};
use crate::{Exit, Failure, bundle, fresh_draw, records, session, signals};

/// After the last of a burst of changes it is quiet for so long.
const QUIET: Duration = Duration::from_millis(60);
/// A burst that does not end is looked at all the same.
const LONGEST: Duration = Duration::from_millis(600);
/// How often the flag of Ctrl-C is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Folders that could not be watched are tried again, and what they hold is compared, this often.
const POLL: Duration = Duration::from_secs(2);

/// Something to act on.
enum Signal {
    /// Something below a watched folder changed, or may have.
    Change,
    /// The run is over.
    Done(Box<Result<RunReport, RunError>>),
    /// A request of the observer.
    Request(Request),
}

/// A listener and an observer.
struct Beside<'a>(&'a dyn Listener, Option<&'a dyn Observer>);

impl Listener for Beside<'_> {
    fn event(&self, event: &Event) {
        self.0.event(event);
        if let Some(observer) = self.1 {
            observer.event(event);
        }
    }
}

/// An observer of the loop, and whether there are runs to observe.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "view"), allow(dead_code))]
pub struct Looking<'a> {
    /// Who looks on.
    pub observer: &'a dyn Observer,
    /// Whether what is planned is run; else the loop ends once it is planned.
    pub runs: bool,
    /// What its runs are written down as.
    pub kind: Kind,
}

/// What was read, and what it held: `None` where there was no file.
type Snapshot = BTreeMap<PathBuf, Option<[u8; 32]>>;

/// Runs a workflow, and again whenever what it reads changes, until Ctrl-C or until the observer requests its end.
///
/// # Errors
/// When the device cannot be used, or no file system can be watched.
pub fn watch(args: &FollowArgs, looking: Option<Looking<'_>>) -> Result<Exit, Failure> {
    let preview = Preview::of(&args.drawing.preview, args.drawing.existing)?;
    let store = Store::of(&args.drawing.cache)?;
    session::threads(args.drawing.device.threads)?;
    let files = Arc::new(DiskFiles::with_memo(store.file("digests.json")));
    let engine = session::caching_engine_for(&args.drawing.device, &store)?
        .with_files(Arc::clone(&files) as Arc<dyn Files>);
    if bundle::is_bundle(&args.file) {
        return Err(Failure::usage(format!(
            "{} is a bundle, which does not change",
            args.file.display()
        ))
        .help("`retouch unbundle` it, and watch the workflow in it"));
    }
    let (places, locked) = (&args.drawing.locked.sharing, args.drawing.locked.locked);
    // Fetching ends at Ctrl-C like all else here, as soon as the handler below is there.
    let fetching = Cancel::new();
    let mode = Mode::fetching(&fetching, args.drawing.json, args.drawing.telling.quiet);
    let (input, engine) = match Input::open_with(&args.file, places, locked, &store, engine, mode) {
        Ok(opened) => opened,
        Err(stop) => return stop.tell(args.drawing.json),
    };
    let (sender, receiver) = channel();
    let changes = sender.clone();
    let watcher = notify::recommended_watcher(move |_: notify::Result<notify::Event>| {
        // An error of the watcher may stand for lost events: what was read is compared anyway.
        let _ = changes.send(Signal::Change);
    })
    .map_err(|e| refused(&format!("files cannot be watched: {e}")))?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // The digests of large models are given up too.
    interrupt::attend(&fetching);
    signals::listen(move || {
        fetching.cancel();
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(Exit::Interrupted as i32);
        }
    })?;
    let engine = match &looking {
        Some(looking) => {
            let files = looking.observer.files(Arc::clone(engine.files()));
            engine.with_files(files)
        }
        None => engine,
    };
    if let Some(looking) = &looking {
        let requests = sender.clone();
        let requests = Requests::new(move |request| {
            let _ = requests.send(Signal::Request(request));
        });
        looking.observer.begun(&engine, requests);
    }
    let loop_ = Loop {
        args,
        looking,
        tried: Vec::new(),
        closing: false,
        store: &store,
        engine: &engine,
        input: &input,
        files: &files,
        saver: Arc::new(
            Saver::new(&args.drawing.out, run::exists(args.drawing.existing.exists))
                .replacing_own(),
        ),
        stamp: None,
        preview,
        stop: &stop,
        sender,
        receiver,
        watcher,
        watched: BTreeSet::new(),
        snapshot: Snapshot::new(),
        draw: 0,
        drawn: BTreeMap::new(),
        own: BTreeSet::new(),
    };
    loop_.run()
}

struct Loop<'a, W: Watcher> {
    args: &'a FollowArgs,
    looking: Option<Looking<'a>>,
    /// The params of the workflow that are tried, `name=value`.
    tried: Vec<String>,
    /// Whether the loop ends with the run that goes on.
    closing: bool,
    store: &'a Store,
    engine: &'a Engine,
    input: &'a Input,
    files: &'a DiskFiles,
    saver: Arc<Saver>,
    /// The recipes of the plan that was loaded last.
    stamp: Option<Arc<dyn Stamp>>,
    preview: Option<Arc<Preview>>,
    stop: &'a AtomicBool,
    sender: Sender<Signal>,
    receiver: Receiver<Signal>,
    watcher: W,
    /// The folders that are watched.
    watched: BTreeSet<PathBuf>,
    snapshot: Snapshot,
    /// What seeds called `random` were last drawn from.
    draw: u64,
    /// The seeds that were drawn for what was loaded last: each stays until the line that asks for it changes.
    drawn: BTreeMap<String, Drawn>,
    /// What this session wrote: a change of it is no reason to run.
    own: BTreeSet<PathBuf>,
}

impl<W: Watcher> Loop<'_, W> {
    fn run(mut self) -> Result<Exit, Failure> {
        loop {
            let mut loaded = match self.load()? {
                Some(loaded) => loaded,
                None if self.looking.is_some_and(|looking| !looking.runs) => {
                    return Ok(Exit::Faults);
                }
                None => {
                    if self.wait()? {
                        continue;
                    }
                    return Ok(Exit::Done);
                }
            };
            // A run, and while it goes on, what changes.
            loop {
                self.show(&loaded, false)?;
                if self.looking.is_some_and(|looking| !looking.runs) {
                    return Ok(Exit::Done);
                }
                let next = self.draw(&loaded)?;
                match next {
                    // A loop that ends with its run is there for that run, which was cut short.
                    Next::Stop if self.closing => return Ok(Exit::Interrupted),
                    _ if self.closing => return Ok(Exit::Done),
                    Next::Plan(next) => loaded = *next,
                    Next::Load => break,
                    Next::Wait => {
                        if !self.wait()? {
                            return Ok(Exit::Done);
                        }
                        break;
                    }
                    Next::Stop => return Ok(Exit::Done),
                }
            }
        }
    }

    fn settings(&mut self) -> Settings {
        let mut settings = Settings {
            draw: Some(self.draw),
            drawn: self.drawn.clone(),
            ..self.input.settings(&self.args.drawing.params)
        };
        if let Some(looking) = &self.looking {
            self.tried = (looking.observer).trying(&self.input.file, &mut settings);
        }
        settings
    }

    /// Reports to the observer what is about to run; `again`: what runs already.
    fn show(&self, loaded: &Loaded, again: bool) -> Result<(), Failure> {
        if let (Some(looking), Some((checked, settings))) = (&self.looking, &loaded.shown) {
            let forecast = self.engine.forecast(&loaded.plan);
            let planned = Planned {
                plan: &loaded.plan,
                checked,
                settings,
                engine: self.engine,
                forecast: &forecast,
                history: &self.history(&loaded.plan, &forecast),
                file: &self.input.file,
            };
            if again {
                looking.observer.again(&planned);
            } else {
                looking.observer.accepts(&planned)?;
                looking.observer.planned(&planned);
            }
        }
        Ok(())
    }

    /// What earlier runs recorded of the tasks of a plan.
    fn history(&self, plan: &Plan, forecast: &Forecast) -> Vec<TaskHistory> {
        let journal = self.store.file("journal.jsonl");
        let costs = journal::costs(journal.as_deref(), plan, forecast);
        let changes = records::changes(self.store, &self.input.file, plan).unwrap_or_default();
        (plan.tasks().zip(costs))
            .map(|(task, cost)| TaskHistory {
                changed: records::reason(&changes, task.names()),
                seconds: cost.seconds,
                peak: cost.peak,
            })
            .collect()
    }

    /// Reads, checks and plans; notes what was read. The faults of a workflow are reported, and an edit is waited for.
    fn load(&mut self) -> Result<Option<Loaded>, Failure> {
        // What files hold is looked at before they are read: a save in between is then a change that is still to come.
        let mut known: BTreeSet<PathBuf> = self.snapshot.keys().cloned().collect();
        known.insert(self.args.file.clone());
        let before = self.look(&known);
        // What is looked at while something that moved is searched is not what is read.
        let looked = self.input.look();
        self.files.forget_reads();
        // The viewer shows workflows alone; that a sweep is none is then a fault like others.
        let is_sweep = self.looking.is_none() && self.input.is_sweep(self.engine);
        // All cells of a sweep share what is drawn, so it stays as long as the sweep is watched.
        if !is_sweep || self.draw == 0 {
            self.draw = fresh_draw();
        }
        let (engine, settings) = (self.engine, self.settings());
        let targets = &self.args.targets;
        let loaded = looked.and_then(|()| match is_sweep {
            true => {
                let (sweep, plan) = sweep::loaded(self.input, engine, targets, &settings)?;
                let checked = sweep.all_cells().clone();
                let whole = plan.plan.clone();
                Ok((checked, whole, Some(Arc::new((Arc::new(sweep), plan)))))
            }
            false => {
                let checked = self.input.load(engine, &settings)?;
                let mut plan = engine.plan(&checked, targets)?;
                plan.save_pictures();
                Ok((checked, plan, None))
            }
        });
        self.snapshot = self.look(&self.read());
        for (path, digest) in before {
            if let Some(now) = self.snapshot.get_mut(&path) {
                *now = digest;
            }
        }
        self.follow();
        match loaded {
            Ok((checked, plan, sweep)) => {
                self.drawn = (checked.params.iter())
                    .filter(|param| param.from == How::Drawn)
                    .filter_map(|param| {
                        let drawn = Drawn {
                            seed: param.value.as_u64()?,
                            line: param.line.clone(),
                        };
                        Some((param.name.clone(), drawn))
                    })
                    .collect();
                session::warn(&checked, self.args.drawing.json)?;
                if let Some(preview) = &self.preview {
                    preview.spares(&checked, &self.args.drawing.out)?;
                }
                let shown = self.looking.is_some().then(|| (checked.clone(), settings));
                self.stamp = (!self.args.drawing.provenance.no_provenance)
                    .then(|| {
                        let made = match &sweep {
                            Some(sweep) => Made::sweep(&sweep.0, &sweep.1),
                            None => Made::Workflow(Box::new(checked)),
                        };
                        Stamps::of(engine, &self.input.file, made)
                    })
                    .flatten();
                Ok(Some(Loaded {
                    plan: Arc::new(plan),
                    sweep,
                    shown,
                }))
            }
            Err(problems) => {
                self.tell_faults(&problems)?;
                Ok(None)
            }
        }
    }

    fn tell_faults(&self, problems: &Problems) -> Result<(), Failure> {
        if interrupt::is_requested() {
            return Ok(()); // what could not be read was not to be read any more
        }
        if let Some(looking) = &self.looking {
            looking.observer.faults(problems);
        }
        if self.args.drawing.json {
            session::say_faults(problems)?;
        } else {
            let _ = session::faults(problems);
        }
        Ok(())
    }

    /// Everything that was read since the last load, and the workflow itself.
    fn read(&self) -> BTreeSet<PathBuf> {
        let mut read: BTreeSet<PathBuf> = self.files.read_so_far().into_iter().collect();
        read.insert(self.args.file.clone());
        let lock = self.input.lock_file();
        if self.args.drawing.locked.locked || lock.is_file() {
            read.insert(lock);
        }
        read.retain(|path| !self.own.contains(&absolute(path)));
        read
    }

    /// What these files hold now.
    fn look(&self, paths: &BTreeSet<PathBuf>) -> Snapshot {
        paths
            .iter()
            .map(|path| (path.clone(), self.files.digest(path).ok()))
            .collect()
    }

    /// Watches the folders of what was read: editors write beside a file and rename.
    fn follow(&mut self) {
        let mut folders = BTreeSet::new();
        for path in self.snapshot.keys() {
            let path = absolute(path);
            // The nearest folder that is there: a missing one may come.
            if let Some(folder) = path.ancestors().skip(1).find(|folder| folder.is_dir()) {
                folders.insert(folder.to_owned());
            }
        }
        for gone in self.watched.difference(&folders) {
            let _ = self.watcher.unwatch(gone); // it may be gone itself
        }
        let mut watched = BTreeSet::new();
        for folder in folders {
            // A folder that cannot be watched is looked at every so often.
            if self.watched.contains(&folder)
                || self
                    .watcher
                    .watch(&folder, RecursiveMode::NonRecursive)
                    .is_ok()
            {
                watched.insert(folder);
            }
        }
        self.watched = watched;
    }

    /// Whether what was read holds something else now; if so, that is what it is compared with from here on.
    fn changed(&mut self) -> bool {
        let paths = self.snapshot.keys().cloned().collect();
        let now = self.look(&paths);
        if now == self.snapshot {
            return false;
        }
        self.snapshot = now;
        true
    }

    /// Lets a burst of changes come to its end.
    fn settle(&self) -> Option<Signal> {
        let start = Instant::now();
        loop {
            match self.receiver.recv_timeout(QUIET) {
                Ok(Signal::Change) if start.elapsed() < LONGEST => {}
                Ok(Signal::Change) | Err(_) => return None,
                Ok(other) => return Some(other),
            }
        }
    }

    /// Waits for a change of what was read; false when it is to stop.
    fn wait(&mut self) -> Result<bool, Failure> {
        if self.args.drawing.json {
            let files = self.snapshot.len();
            Line::Watching { files }.say()?;
        }
        // What the last run allocated again and again is not needed before the next one.
        if let Some(arena) = crate::arena::ARENA.get() {
            arena.trim(IDLE);
        }
        let mut looked = Instant::now();
        loop {
            if self.stop.load(Ordering::SeqCst) || self.closing {
                return Ok(false);
            }
            let request = match self.receiver.recv_timeout(LOOK) {
                Ok(Signal::Change) => match self.settle() {
                    Some(Signal::Request(request)) => Some(request),
                    _ => None, // nothing runs that could be done
                },
                Ok(Signal::Done(_)) => continue,
                Ok(Signal::Request(request)) => Some(request),
                Err(RecvTimeoutError::Timeout) if looked.elapsed() >= POLL => None,
                Err(_) => continue,
            };
            match request {
                Some(Request::Tried | Request::Run) => return Ok(true),
                Some(Request::Close) => return Ok(false),
                Some(Request::Stop) | None => {}
            }
            looked = Instant::now();
            if self.changed() {
                return Ok(true);
            }
            self.follow();
        }
    }

    /// Runs a plan; an edit that touches it ends the run at its next step, and what is left of it is run anew.
    fn draw(&mut self, loaded: &Loaded) -> Result<Next, Failure> {
        let (plan, sweep) = (&loaded.plan, loaded.sweep.as_deref());
        let cancel = Cancel::new();
        let options = RunOptions {
            threads: usize::from(self.args.drawing.device.threads.unwrap_or(0)),
            saver: Some(Arc::clone(&self.saver)),
            previewer: self.preview.clone().map(|preview| preview as _),
            stamp: self.stamp.clone(),
            keep_going: self.args.drawing.keep_going,
            // The pictures of all cells may be more than memory holds.
            drop_outputs: sweep.is_some(),
            expected: journal::expected(self.store.file("journal.jsonl").as_deref()),
        };
        let mut asked = Asked {
            draw: self.draw,
            provenance: !self.args.drawing.provenance.no_provenance,
            ..Asked::new(
                &self.args.file,
                &self.args.drawing.params,
                &self.args.drawing.locked.sharing,
                &self.args.drawing.device.numerics.spec(),
                &self.args.drawing.out,
                &self.args.targets,
            )
        };
        asked.set.extend(self.tried.iter().cloned());
        let kind = match sweep {
            Some(_) => Kind::Sweep,
            None => self.looking.map_or(Kind::Watch, |looking| looking.kind),
        };
        let noted = Noted::begin(self.store, kind, asked, plan);
        let noted = match sweep {
            Some((sweep, plan)) => {
                sweep::begins(&self.args.drawing, self.engine, sweep, plan)?;
                noted.of_cells(sweep.cells.len())
            }
            None => noted,
        };
        let lines: Box<dyn Listener> = if self.args.drawing.json {
            Box::new(JsonLines { run: noted.name() })
        } else if self.args.drawing.telling.quiet {
            Box::new(Progress::new(true))
        } else {
            Box::new(Lines::new(Outlook::of(self.engine, self.store, plan)))
        };
        let both = Beside(lines.as_ref(), self.looking.map(|looking| looking.observer));
        let lines = noted.beside(&both);
        let journal = Journal::new(&lines, self.store.file("journal.jsonl"), plan);
        let (json, saver) = (self.args.drawing.json, Arc::clone(&self.saver));
        // The listener of a sweep's cells reports what cannot be saved.
        let tells = self.args.drawing.keep_going && !json && sweep.is_none();
        let files = SavedFiles::new(&journal, tells);
        let cells = sweep.map(|(sweep, plan)| Cells::new(&files, json, sweep, plan, None));
        let (engine, sender) = (self.engine, self.sender.clone());
        let next = std::thread::scope(|scope| {
            scope.spawn(|| {
                let listener: &dyn Listener = match &cells {
                    Some(cells) => cells,
                    None => &files,
                };
                let result = engine.run(plan, listener, &cancel, &options);
                if let (Some((sweep, _)), Some(cells)) = (sweep, &cells) {
                    table_of(sweep, cells, &saver, &result, json);
                }
                let _ = sender.send(Signal::Done(Box::new(result))); // the loop waits for it
            });
            self.while_running(plan, &cancel, &files)
        })?;
        journal.write();
        noted.end();
        records::write(self.store, &self.args.file, plan);
        engine.files().flush();
        Ok(next)
    }

    fn while_running(
        &mut self,
        plan: &Plan,
        cancel: &Cancel,
        files: &SavedFiles<'_>,
    ) -> Result<Next, Failure> {
        let mut next: Option<Next> = None;
        loop {
            if self.stop.load(Ordering::SeqCst) {
                cancel.cancel();
                next = Some(Next::Stop);
            }
            let mut signal = match self.receiver.recv_timeout(LOOK) {
                Ok(signal) => Some(signal),
                Err(_) => continue,
            };
            let mut edited = false;
            if matches!(signal, Some(Signal::Change)) {
                signal = self.settle();
                edited = self.changed();
            }
            match signal {
                Some(Signal::Done(result)) => {
                    // An edit that came while the last node ran is drawn at once.
                    return self.after(*result, files.take(plan), next, edited);
                }
                Some(Signal::Request(Request::Tried)) => edited = true,
                Some(Signal::Request(Request::Stop)) => {
                    cancel.cancel();
                    next = Some(Next::Wait);
                }
                Some(Signal::Request(Request::Close)) => self.closing = true,
                Some(Signal::Request(Request::Run)) if matches!(next, Some(Next::Wait)) => {
                    next = Some(Next::Load); // a run that is being stopped, and is wanted after all
                }
                Some(Signal::Request(Request::Run) | Signal::Change) | None => {}
            }
            // A loop that is about to end draws nothing anew, and leaves its run to its end.
            if !edited || self.closing || matches!(next, Some(Next::Stop)) {
                continue;
            }
            // The faults of an edit are reported, and the run goes on with what it has.
            if let Some(edited) = self.load()? {
                let same = edited.plan.record() == plan.record()
                    && edited.plan.outputs() == plan.outputs();
                if same {
                    self.show(&edited, true)?;
                }
                // A run that is being stopped does not come back for an edit that it has undone.
                next = match next {
                    Some(Next::Wait) if same => Some(Next::Wait),
                    _ => (!same).then(|| Next::Plan(Box::new(edited))),
                };
                if next.is_some() {
                    cancel.cancel_at_step(); // the run of the edit goes on from it
                }
            }
        }
    }

    /// What to do after a run; `edited`: something changed that was not looked at yet.
    fn after(
        &mut self,
        result: Result<RunReport, RunError>,
        saved: Vec<(String, PathBuf, SaveStatus)>,
        next: Option<Next>,
        edited: bool,
    ) -> Result<Next, Failure> {
        let next = match next {
            Some(Next::Stop) => Some(Next::Stop),
            _ if edited => Some(Next::Load),
            next => next,
        };
        self.own
            .extend(saved.iter().map(|(_, path, _)| absolute(path)));
        if !self.args.drawing.json && !matches!(result, Err(RunError::Cancelled)) {
            for (output, path, _) in saved {
                say(&format!("{output}  {}", path.display()))?;
            }
        }
        Ok(match result {
            Ok(_) => match next {
                Some(next) => next,
                None if self.changed() => Next::Load,
                None => Next::Wait,
            },
            Err(RunError::Cancelled) => next.unwrap_or(Next::Load),
            Err(error) => {
                self.tell_error(&error)?;
                next.unwrap_or(Next::Wait)
            }
        })
    }

    fn tell_error(&self, error: &RunError) -> Result<(), Failure> {
        // The listeners have said which node failed, and why; of a run that went on, all that failed.
        let told = matches!(
            error,
            RunError::NodeFailed { .. } | RunError::Several { .. }
        );
        if !told && (self.args.drawing.json || !self.args.drawing.keep_going) {
            crate::output::tell(&format!("error: {error}"));
            if let Some(hint) = error.hint() {
                crate::output::tell(&format!("  help: {hint}"));
            }
        }
        Ok(())
    }
}

/// Writes the table of a sweep, if it asks for one and its run was not cut short.
fn table_of(
    sweep: &Sweep,
    cells: &Cells<'_>,
    saver: &Saver,
    result: &Result<RunReport, RunError>,
    json: bool,
) {
    let (Some(table), false) = (&sweep.table, matches!(result, Err(RunError::Cancelled))) else {
        return;
    };
    let mut rows = cells::rows(sweep);
    cells.note(&mut rows, result.is_ok());
    let written = table::save(saver, table, &rows)
        .and_then(|saved| table::tell_saved(saved.path, rows.len(), json));
    if let Err(failure) = written {
        crate::output::tell(&format!("error: {}", failure.message()));
    }
}

/// Bytes of free blocks that the allocator keeps while nothing runs.
const IDLE: usize = 32 << 20;

fn refused(message: &str) -> Failure {
    Failure::failed(message).code(Code::SystemRefused)
}

/// A sweep and its plan.
type Swept = Arc<(Arc<Sweep>, SweepPlan)>;

/// A workflow that was read and checked.
struct Loaded {
    plan: Arc<Plan>,
    /// The sweep that the plan is of.
    sweep: Option<Swept>,
    /// What it came from, for the observer.
    shown: Option<(Checked, Settings)>,
}

/// What to do after a run.
enum Next {
    /// Run this, which an edit made of it.
    Plan(Box<Loaded>),
    /// Read everything again.
    Load,
    /// Wait for a change.
    Wait,
    /// End.
    Stop,
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
