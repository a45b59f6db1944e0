//! `retouch worker`: takes chunks of a run's cells, draws them, and puts what comes out into the store.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use retouch_cluster::claims::Monotonic;
use retouch_cluster::probe::{probe, unique};
use retouch_cluster::{Board, Claim, Fault, Next, Objects, Store as Far};
use retouch_graph::cache::disk::encode;
use retouch_graph::event::{Event, Listener};
use retouch_graph::{
    Cache, Cancel, Code, Engine, Key, Outputs, RemoteCache, RunError, RunOptions, SweepPlan,
};
use retouch_nodes::payload::decoders;

use super::cut::{self, Loaded};
use super::failure;
use super::remote::{Chosen, name};
use super::run::{CellResult, Control, Results, Run, WorkerEntry};
use crate::args::WorkerArgs;
use crate::commands::run as running;
use crate::commands::sweep::cells::{self, Cells};
use crate::hub::{self, Mode};
use crate::output::tell;
use crate::progress::Progress;
use crate::store::Store;
use crate::{Exit, Failure, clock, journal, session, signals};

/// How often it is looked whether a worker is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Seconds between asking a store that cannot be reached: some four minutes in all.
const PATIENCE: [u64; 9] = [1, 2, 4, 8, 16, 32, 60, 60, 60];
/// How often a chunk is begun by workers that do not come to its end.
const MOST_BEGUN: usize = 5;
/// Bytes of the log of an attempt.
const MOST_LOG: usize = 4 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes chunks until none is left.
///
/// # Errors
/// When the run is not there, what it sweeps is not what was submitted, or the store does not answer.
pub fn worker(args: &WorkerArgs) -> Result<Exit, Failure> {
    let cancel = Cancel::new();
    // Before the first thread: Slurm's notice comes to the one that waits for it.
    signals::notice(&cancel);
    running::interrupts(&cancel)?;
    let store = Store::of(&args.cache)?;
    session::threads(args.threads)?;
    let far = super::store(&args.store, &args.out)?;
    probe(&far).map_err(|fault| failure(&fault))?;
    let run = Run::find(far.clone(), &args.run)?;
    let kept: Arc<Mutex<Keep>> = Arc::default();
    let engine = session::engine_over(&run.about.asked.device, store.sources, |environment| {
        let cache = store.whole_cache(vec![environment]);
        Arc::new(Keeping::new(cache, far.clone(), Arc::clone(&kept)))
    })?;
    let engine = engine.with_files(store.files());
    let mode = Mode::fetching(&cancel, false, args.telling.quiet);
    let loaded = match cut::load(
        &run.about,
        args.file.as_deref(),
        &args.place,
        engine,
        &store,
        mode,
    ) {
        Ok(loaded) => loaded,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(stop) => return stop.tell(false),
    };
    // Once it can draw: what cannot must not say what the others compute with.
    run.agree(loaded.engine.numerics())?;
    let worker = Worker::join(args, run, loaded, &store, kept, cancel)?;
    worker.work()
}

/// What is to be put into the store, and what was.
#[derive(Default)]
struct Keep {
    wanted: HashSet<Key>,
    there: HashSet<Key>,
    /// Why the store did not take something.
    fault: Option<Fault>,
    /// Why something has no form outside of the process.
    why: Option<String>,
}

/// A cache that puts what is wanted into the store as soon as it is made.
struct Keeping {
    inner: RemoteCache,
    far: Far,
    keep: Arc<Mutex<Keep>>,
}

impl Keeping {
    fn new(inner: Arc<dyn Cache>, far: Far, keep: Arc<Mutex<Keep>>) -> Self {
        // What another worker finished of the same chunk, before it died, is not made again.
        let chosen = Wanted {
            far: far.clone(),
            keep: Arc::clone(&keep),
        };
        Self {
            inner: RemoteCache::new(inner, Box::new(chosen), decoders(), false),
            far,
            keep,
        }
    }

    /// Puts a value into the store; what the store does not take is known afterwards.
    fn keep(&self, key: &Key, outputs: &Outputs, seconds: f64) {
        let bytes = match encode(key, outputs, seconds) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let why = "a value of its type cannot leave the process";
                lock(&self.keep).why = Some(why.to_owned());
                return;
            }
            Err(why) => {
                lock(&self.keep).why = Some(why);
                return;
            }
        };
        let written = self.far.put(&name(key), bytes);
        let mut keep = lock(&self.keep);
        match written {
            Ok(()) => drop(keep.there.insert(*key)),
            Err(fault) => keep.fault = Some(fault),
        }
    }
}

/// The wanted values, as they are in the store.
struct Wanted {
    far: Far,
    keep: Arc<Mutex<Keep>>,
}

impl retouch_graph::Remote for Wanted {
    fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, String> {
        self.chosen(key).get(key)
    }
    fn has(&self, key: &Key) -> Result<bool, String> {
        self.chosen(key).has(key)
    }
    fn put(&self, _: &Key, _: Vec<u8>) -> Result<(), String> {
        Err("it is only read".to_owned())
    }
    fn shown(&self) -> String {
        self.far.shown()
    }
}

impl Wanted {
    fn chosen(&self, key: &Key) -> Chosen {
        let wanted = lock(&self.keep).wanted.get(key).copied();
        Chosen {
            store: self.far.clone(),
            keys: Arc::new(wanted.into_iter().collect()),
            there: false,
            lost: None,
        }
    }
}

impl Cache for Keeping {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.inner.get(key)
    }
    fn get_on(&self, key: &Key, device: usize) -> Option<Outputs> {
        self.inner.get_on(key, device)
    }
    fn place(&self, key: &Key) -> Option<&'static str> {
        self.inner.place(key)
    }
    fn expect(&self, keys: &mut dyn Iterator<Item = Key>) {
        self.inner.expect(keys);
    }
    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        self.inner.put(key, outputs, seconds);
        let wanted = {
            let keep = lock(&self.keep);
            keep.wanted.contains(&key) && !keep.there.contains(&key)
        };
        if wanted {
            self.keep(&key, outputs, seconds);
        }
    }
    fn forget_lazy(&self) {
        self.inner.forget_lazy();
    }
    fn warnings(&self) -> Vec<String> {
        self.inner.warnings()
    }
}

/// What a worker holds from one chunk to the next.
struct Worker {
    run: Mutex<Run>,
    board: Mutex<Board<Far, Monotonic>>,
    loaded: Loaded,
    store: Store,
    keep: Arc<Mutex<Keep>>,
    cancel: Cancel,
    id: String,
    far: Far,
    folder: String,
    quiet: bool,
    threads: usize,
}

/// How the run of a chunk ended.
enum Ended {
    /// Each cell came out, or failed.
    Done,
    /// It is somebody else's by now.
    Lost,
    /// The worker is to stop, or the run is cancelled.
    Stopped,
}

/// What a chunk's run is stopped for.
#[derive(Default)]
struct Stop {
    lost: AtomicBool,
    over: AtomicBool,
}

impl Worker {
    fn join(
        args: &WorkerArgs,
        run: Run,
        loaded: Loaded,
        store: &Store,
        keep: Arc<Mutex<Keep>>,
        cancel: Cancel,
    ) -> Result<Self, Failure> {
        let host = host();
        let id = format!("{host}-{}-{}", std::process::id(), &unique()[..8]);
        let about = WorkerEntry {
            host,
            pid: std::process::id(),
            started: clock::rfc3339(SystemTime::now()),
            job: job(),
        };
        let about =
            serde_json::to_vec(&about).map_err(|error| Failure::failed(error.to_string()))?;
        let far = run.store.clone();
        let board = Board::join(
            far.clone(),
            Monotonic::default(),
            &run.folder(),
            &id,
            run.about.term,
            run.chunks.len(),
            about,
        );
        Ok(Self {
            board: Mutex::new(board.map_err(|fault| failure(&fault))?),
            folder: run.folder(),
            run: Mutex::new(run),
            loaded,
            store: store.clone(),
            keep,
            cancel,
            id,
            far,
            quiet: args.telling.quiet,
            threads: usize::from(args.threads.unwrap_or(0)),
        })
    }

    fn work(&self) -> Result<Exit, Failure> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(Failure::interrupted(
                    "what was finished is in the store, and the rest is claimed by nobody",
                ));
            }
            if self.patiently(|| lock(&self.run).control())? == Control::Cancelled {
                tell("the run was cancelled");
                return Ok(Exit::Done);
            }
            let next = self.patiently(|| {
                lock(&self.board)
                    .next_chunk()
                    .map_err(|fault| failure(&fault))
            })?;
            match next {
                Next::Take(claim) => self.chunk(claim)?,
                Next::Wait(milliseconds) => self.pause(Duration::from_millis(milliseconds)),
                Next::Finished => {
                    let mut run = lock(&self.run);
                    if !run.look()? {
                        return Ok(Exit::Done);
                    }
                    lock(&self.board).extend(run.chunks.len());
                }
            }
        }
    }

    /// Asks the store again for a while when it cannot be reached: what is claimed is this worker's for as long as that takes.
    fn patiently<T>(&self, ask: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
        for pause in PATIENCE {
            match ask() {
                Err(failure) if failure.code == Code::StoreUnreachable => {
                    if self.cancel.is_cancelled() {
                        return Err(failure);
                    }
                    self.pause(Duration::from_secs(pause));
                }
                answer => return answer,
            }
        }
        ask()
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.cancel.is_cancelled() {
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// Draws a chunk and says what became of it, or gives it back.
    fn chunk(&self, mut claim: Claim) -> Result<(), Failure> {
        let begun = Instant::now();
        let cells = lock(&self.run)
            .chunks
            .get(claim.chunk)
            .cloned()
            .unwrap_or_default();
        if !self.quiet {
            tell(&format!("chunk {}: {} cells", claim.chunk + 1, cells.len()));
        }
        let log = ChunkLog::default();
        self.write_log(&claim, &log);
        let ready = self
            .begun(&claim)
            .and_then(|begun| match begun > MOST_BEGUN {
                true => self.give_up(&claim, &cells).map(|()| None),
                false => self.plan(&cells).map(Some),
            });
        let plan = match ready {
            Ok(Some(plan)) => plan,
            Ok(None) => return Ok(()),
            Err(failure) => {
                let _ = lock(&self.board).release(&claim);
                return Err(failure);
            }
        };
        let drawn = self.draw(&plan, &cells, &mut claim, &log);
        self.write_log(&claim, &log);
        let (ended, mut results) = match drawn {
            Ok(drawn) => drawn,
            Err(failure) => {
                // If the store does not take that either, the claim ends by itself.
                let _ = lock(&self.board).release(&claim);
                return Err(failure);
            }
        };
        match ended {
            Ended::Done => {
                results.seconds = begun.elapsed().as_secs_f64();
                let failed = results.cells.iter().filter(|cell| cell.failed).count();
                let body = serde_json::to_vec(&results)
                    .map_err(|error| Failure::failed(error.to_string()))?;
                self.patiently(|| {
                    let finished = lock(&self.board).finish(&claim, failed, body.clone());
                    finished.map_err(|fault| failure(&fault))
                })
            }
            Ended::Lost => {
                tell("another worker has this chunk: it was not renewed in time");
                Ok(())
            }
            Ended::Stopped => self.patiently(|| {
                let released = lock(&self.board).release(&claim);
                released.map_err(|fault| failure(&fault))
            }),
        }
    }

    /// How often the chunk was begun and neither finished nor given back, this time included: each attempt has a log.
    fn begun(&self, claim: &Claim) -> Result<usize, Failure> {
        let list = |of: &str| {
            let listed = self
                .far
                .list(&format!("{}/{of}/{:06}", self.folder, claim.chunk));
            listed.map_err(|fault| failure(&fault))
        };
        let released = list("state")?
            .iter()
            .filter(|one| one.name.ends_with(".released"))
            .count();
        Ok(list("logs")?.len().saturating_sub(released))
    }

    /// A chunk that ended every worker that began it is not begun again.
    fn give_up(&self, claim: &Claim, cells: &[usize]) -> Result<(), Failure> {
        let error = format!(
            "{MOST_BEGUN} workers began it, and none of them came to its end: killed, or out of memory"
        );
        let cells: Vec<CellResult> = (cells.iter())
            .map(|&cell| CellResult {
                cell,
                failed: true,
                seconds: 0.0,
                unet_calls: 0,
                error: Some(error.clone()),
            })
            .collect();
        let failed = cells.len();
        let results = self.results(claim.attempt, cells, 0);
        let body =
            serde_json::to_vec(&results).map_err(|error| Failure::failed(error.to_string()))?;
        (lock(&self.board).finish(claim, failed, body)).map_err(|fault| failure(&fault))
    }

    fn plan(&self, cells: &[usize]) -> Result<SweepPlan, Failure> {
        let Loaded { engine, sweep, .. } = &self.loaded;
        let without: BTreeSet<usize> = (0..sweep.cells.len())
            .filter(|cell| !cells.contains(cell))
            .collect();
        let targets = cut::outputs(sweep, &lock(&self.run).about.asked.targets);
        let plan = engine.plan_sweep(sweep, &targets, &without);
        let mut plan = plan.map_err(|problems| {
            let _ = session::faults(&problems);
            Failure::failed("a file that the run reads is gone or has changed")
        })?;
        let of_cells: Vec<bool> = plan
            .outputs
            .iter()
            .map(|(cell, _)| cell.is_some())
            .collect();
        plan.retain_outputs(|output| of_cells[output]);
        Ok(plan)
    }

    /// Runs the plan of a chunk, and renews the claim meanwhile.
    fn draw(
        &self,
        plan: &SweepPlan,
        cells: &[usize],
        claim: &mut Claim,
        log: &ChunkLog,
    ) -> Result<(Ended, Results), Failure> {
        let Loaded { engine, sweep, .. } = &self.loaded;
        let kept = cut::kept(sweep, plan);
        *lock(&self.keep) = Keep {
            wanted: (kept.iter().enumerate())
                .filter(|(_, kept)| **kept)
                .filter_map(|(output, _)| plan.key(output))
                .collect(),
            ..Keep::default()
        };
        let options = RunOptions {
            threads: self.threads,
            keep_going: true,
            drop_outputs: true,
            expected: journal::expected(self.store.file("journal.jsonl").as_deref()),
            ..RunOptions::default()
        };
        let progress = Progress::new(self.quiet);
        let listener = Beside(&progress, log);
        let heard = Cells::new(&listener, true, sweep, plan, None);
        let (chunk_cancel, stop, attempt) = (Cancel::new(), Stop::default(), claim.attempt);
        let over = AtomicBool::new(false);
        let (result, ()) = std::thread::scope(|scope| {
            let renewing = scope.spawn(|| self.renew(claim, &chunk_cancel, &stop, &over, log));
            let result = engine
                .run(&plan.plan, &heard, &chunk_cancel, &options)
                .map(drop);
            over.store(true, Ordering::SeqCst);
            (result, drop(renewing.join()))
        });
        if stop.lost.load(Ordering::SeqCst) {
            return Ok((Ended::Lost, self.results(attempt, Vec::new(), 0)));
        }
        if matches!(result, Err(RunError::Cancelled)) || stop.over.load(Ordering::SeqCst) {
            return Ok((Ended::Stopped, self.results(attempt, Vec::new(), 0)));
        }
        // What the store did not take while it was drawn is tried once more.
        lock(&self.keep).fault = None;
        self.keep_found(engine, plan)?;
        if let Some(fault) = &lock(&self.keep).fault {
            return Err(failure(fault));
        }
        let mut rows = cells::rows(sweep);
        heard.note(&mut rows, result.is_ok());
        let calls = log.calls();
        let results = (cells.iter())
            .map(|&cell| self.cell_result(plan, &kept, cell, &rows[cell]))
            .collect();
        Ok((Ended::Done, self.results(attempt, results, calls)))
    }

    fn results(&self, attempt: u32, cells: Vec<CellResult>, unet_calls: u64) -> Results {
        Results {
            worker: self.id.clone(),
            attempt,
            seconds: 0.0,
            unet_calls,
            cells,
        }
    }

    /// Renews the claim until the run is over, and stops the run when it is lost, the worker ends, or all is cancelled.
    fn renew(
        &self,
        claim: &mut Claim,
        cancel: &Cancel,
        stop: &Stop,
        over: &AtomicBool,
        log: &ChunkLog,
    ) {
        let mut told = false;
        while !over.load(Ordering::SeqCst) {
            if self.cancel.is_cancelled() {
                stop.over.store(true, Ordering::SeqCst);
                cancel.cancel();
            }
            if lock(&self.board).renewal_in(claim) > 0 {
                std::thread::sleep(LOOK);
                continue;
            }
            let renewed = lock(&self.board).renew(claim);
            match renewed {
                Ok(true) => {
                    self.write_log(claim, log);
                    if matches!(lock(&self.run).control(), Ok(Control::Cancelled)) {
                        stop.over.store(true, Ordering::SeqCst);
                        cancel.cancel();
                    }
                }
                Ok(false) => {
                    stop.lost.store(true, Ordering::SeqCst);
                    cancel.cancel();
                    return;
                }
                Err(fault) => {
                    if !told {
                        tell(&format!(
                            "warning: the claim is not renewed: {fault}; it is tried again"
                        ));
                        told = true;
                    }
                    std::thread::sleep(10 * LOOK);
                }
            }
        }
    }

    /// Puts what the cache had already into the store.
    fn keep_found(&self, engine: &Engine, plan: &SweepPlan) -> Result<(), Failure> {
        for output in 0..plan.outputs.len() {
            let Some(key) = plan.key(output) else {
                continue;
            };
            let missing = {
                let keep = lock(&self.keep);
                keep.wanted.contains(&key) && !keep.there.contains(&key)
            };
            if !missing {
                continue;
            }
            if self.far.has(&name(&key)).map_err(|fault| failure(&fault))? {
                lock(&self.keep).there.insert(key);
            } else if let Some(outputs) = engine.cache().get(&key) {
                // It is not known any more what it took.
                engine.cache().put(key, &outputs, 0.0);
            }
        }
        Ok(())
    }

    fn cell_result(
        &self,
        plan: &SweepPlan,
        kept: &[bool],
        cell: usize,
        row: &crate::table::Row,
    ) -> CellResult {
        let keep = lock(&self.keep);
        let mut of = (0..plan.outputs.len())
            .filter(|output| plan.outputs[*output].0 == Some(cell) && kept[*output]);
        let missing = of.any(|output| {
            plan.key(output)
                .is_none_or(|key| !keep.there.contains(&key))
        });
        let error = row.error.clone().or_else(|| {
            let why = keep.why.as_deref().unwrap_or("an output did not come out");
            missing.then(|| why.to_owned())
        });
        CellResult {
            cell,
            failed: error.is_some(),
            seconds: row.seconds,
            unet_calls: row.unet_calls,
            error,
        }
    }

    /// A log that is not written is done without.
    fn write_log(&self, claim: &Claim, log: &ChunkLog) {
        let name = format!(
            "{}/logs/{:06}/{:06}.jsonl",
            self.folder, claim.chunk, claim.attempt
        );
        let _ = self.far.put(&name, log.text());
    }
}

/// The name of this machine.
fn host() -> String {
    let name = std::env::var("SLURMD_NODENAME").ok();
    let name = name.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let name = name.unwrap_or_else(|| "machine".to_owned());
    let plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-';
    name.trim().chars().filter(plain).take(40).collect()
}

/// The job of a scheduler that this process is of.
fn job() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok();
    let job = variable("SLURM_ARRAY_JOB_ID").or_else(|| variable("SLURM_JOB_ID"))?;
    Some(match variable("SLURM_ARRAY_TASK_ID") {
        Some(task) => format!("slurm:{job}_{task}"),
        None => format!("slurm:{job}"),
    })
}

/// Two listeners.
struct Beside<'a>(&'a dyn Listener, &'a ChunkLog);

impl Listener for Beside<'_> {
    fn event(&self, event: &Event) {
        self.1.event(event);
        self.0.event(event);
    }
}

/// What happened in a chunk: the events as JSON lines, with their times.
#[derive(Default)]
struct ChunkLog {
    lines: Mutex<Vec<u8>>,
    calls: Mutex<u64>,
}

impl ChunkLog {
    fn text(&self) -> Vec<u8> {
        lock(&self.lines).clone()
    }

    fn calls(&self) -> u64 {
        *lock(&self.calls)
    }

    fn event(&self, event: &Event) {
        match event {
            // There are too many of these.
            Event::NodeProgress { .. } | Event::PreviewShown { .. } => return,
            Event::RunFinished { counters, .. } => {
                *lock(&self.calls) = counters.get("unet_calls").copied().unwrap_or(0);
            }
            _ => {}
        }
        let mut lines = lock(&self.lines);
        if let Some(text) = crate::lines::timed(event, None)
            && lines.len() + text.len() < MOST_LOG
        {
            lines.extend_from_slice(text.as_bytes());
            lines.push(b'\n');
        }
    }
}
