//! `retouch sweep collect`: the files, the table and the contact sheet of a run, from what its workers put into the store.
//!
//! It is a run of the sweep's plan over a cache that has the results: what is written, how it is named and what recipe it carries
//! is what a sweep on one machine writes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retouch_cluster::{Objects, Store as Far};
use retouch_graph::event::Listener;
use retouch_graph::{
    Cancel, Code, Engine, Key, RemoteCache, RunError, RunOptions, SaveStatus, Saver, SweepPlan,
    TieredCache,
};
use retouch_nodes::payload::decoders;

use super::cut::{self, Loaded};
use super::failure;
use super::remote::{Chosen, Lost, VALUES};
use super::run::{CellResult, Run};
use crate::args::{CacheArgs, CollectArgs, ModelsArgs};
use crate::commands::run as running;
use crate::commands::sweep::begins_with;
use crate::commands::sweep::cells::{self, Cells, Heard};
use crate::commands::sweep::log::{Log, TABLE_KEY, What, digest};
use crate::hub::{self, Mode};
use crate::output::{say, tell};
use crate::progress::{JsonLines, Progress};
use crate::provenance::{Made, Stamps};
use crate::store::Store;
use crate::table::{self, CellStatus, Row};
use crate::{Exit, Failure, session};

/// Collects a run that the command line names.
///
/// # Errors
/// As [`run`].
pub fn collect(args: &CollectArgs) -> Result<Exit, Failure> {
    let cancel = Cancel::new();
    running::interrupts(&cancel)?;
    let out = super::out(args.of.out.as_deref());
    run(&Collect {
        run: &args.of.run,
        store: super::store(&args.of.store, &out)?,
        out: args.of.out.as_deref(),
        file: args.file.as_deref(),
        models: &args.place,
        cache: &args.cache,
        cancel: &cancel,
        json: args.of.json,
        quiet: args.telling.quiet,
    })
}

/// What is collected, and to where.
pub struct Collect<'a> {
    /// The run.
    pub run: &'a str,
    /// The store that it is in.
    pub store: Far,
    /// The output folder, when it is not the run's own.
    pub out: Option<&'a Path>,
    /// Where the workflow is, when it is not at its path.
    pub file: Option<&'a Path>,
    /// More folders of models.
    pub models: &'a ModelsArgs,
    /// The cache's settings.
    pub cache: &'a CacheArgs,
    /// Ctrl-C.
    pub cancel: &'a Cancel,
    /// Whether lines are for programs.
    pub json: bool,
    /// Whether only results are told.
    pub quiet: bool,
}

/// The results of a run's cells: those that came out and whose values are there.
type Results = BTreeMap<usize, CellResult>;

/// Builds the files of a run.
///
/// # Errors
/// When the run or what it sweeps is not there, or a file cannot be written.
pub fn run(collect: &Collect<'_>) -> Result<Exit, Failure> {
    let run = Run::find(collect.store.clone(), collect.run)?;
    let store = Store::of(collect.cache)?;
    let results: Results = run
        .cells()?
        .into_iter()
        .map(|(cell, (_, result))| (cell, result))
        .collect();
    let Some(numerics) = run.numerics()? else {
        return Err(
            Failure::failed("no worker has begun: there is nothing to collect")
                .help("`retouch sweep status` says what became of the workers"),
        );
    };
    let there = Arc::new(values(&run)?);
    let lost = Lost::cancelling(collect.cancel);
    let engine = engine(&run, &store, &numerics, &there, &lost)?;
    let mode = Mode::fetching(collect.cancel, collect.json, collect.quiet);
    let loaded = match cut::load(
        &run.about,
        collect.file,
        collect.models,
        engine,
        &store,
        mode,
    ) {
        Ok(loaded) => loaded,
        Err(_) if collect.cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(stop) => return stop.tell(collect.json),
    };
    let out = collect.out.unwrap_or(&run.about.asked.out);
    running::writable(out)?;
    let collecting = Collecting {
        collect,
        run: &run,
        loaded: &loaded,
        out,
        lost: &lost,
    };
    collecting.build(results, &there)
}

/// The keys of the values in the store.
fn values(run: &Run) -> Result<HashSet<Key>, Failure> {
    let listed = run.store.list(VALUES).map_err(|fault| failure(&fault))?;
    let key = |one: &retouch_cluster::Listed| Key::parse(one.name.rsplit('/').next()?);
    Ok(listed.iter().filter_map(key).collect())
}

/// An engine that has what the workers made, and computes nothing but the contact sheet.
fn engine(
    run: &Run,
    store: &Store,
    numerics: &str,
    there: &Arc<HashSet<Key>>,
    lost: &Lost,
) -> Result<Engine, Failure> {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let engine = session::engine_over("cpu", store.sources, |environment| {
        let memory = TieredCache::new(0, bytes(store.ram), None, Some(environment));
        let chosen = Chosen {
            store: run.store.clone(),
            keys: Arc::clone(there),
            there: true,
            lost: Some(lost.clone()),
        };
        Arc::new(RemoteCache::new(
            Arc::new(memory),
            Box::new(chosen),
            decoders(),
            false,
        ))
    })?;
    Ok(engine.with_numerics(numerics).with_files(store.files()))
}

/// A run that is being collected.
struct Collecting<'a> {
    collect: &'a Collect<'a>,
    run: &'a Run,
    loaded: &'a Loaded,
    out: &'a Path,
    lost: &'a Lost,
}

impl Collecting<'_> {
    fn build(&self, results: Results, there: &HashSet<Key>) -> Result<Exit, Failure> {
        let Loaded {
            engine,
            sweep,
            input,
        } = self.loaded;
        let collect = self.collect;
        let targets = &self.run.about.asked.targets;
        let planned = engine.plan_sweep(sweep, targets, &BTreeSet::new());
        let mut plan = planned.map_err(|problems| {
            let _ = session::faults(&problems);
            Failure::failed("the run cannot be planned any more")
        })?;
        let results = self.whole(&plan, results, there);
        let made: BTreeSet<usize> = (results.iter())
            .filter(|(_, result)| !result.failed)
            .map(|(cell, _)| *cell)
            .collect();
        let left: BTreeSet<usize> = (0..sweep.cells.len())
            .filter(|cell| !made.contains(cell))
            .collect();
        let wanted = plan.outputs.iter().any(|(cell, _)| cell.is_none());
        let keeps: Vec<bool> = (plan.outputs.iter())
            .map(|(cell, _)| cell.map_or(left.is_empty(), |cell| made.contains(&cell)))
            .collect();
        plan.retain_outputs(|output| keeps[output]);
        let path = self
            .out
            .join(format!(".retouch-collect-{}.jsonl", self.run.about.run));
        let own = own(&path, self.out);
        let exists = running::exists(self.run.about.exists);
        let saver = Arc::new(Saver::new(self.out, exists).owning(own));
        let log = Log::begin(path, self.run.about.asked.draw, &What::default(), &[])?;
        let stamp = (self.run.about.asked.provenance)
            .then(|| Stamps::of(engine, &input.file, Made::sweep(sweep, &plan)))
            .flatten();
        let options = RunOptions {
            saver: Some(Arc::clone(&saver)),
            keep_going: true,
            drop_outputs: true,
            stamp,
            ..RunOptions::default()
        };
        begins_with(collect.json, sweep)?;
        let (result, heard) = self.once(&plan, &options, &log);
        let mut rows = cells::rows(sweep);
        cells::note(
            &mut rows,
            sweep,
            &plan,
            &heard,
            &heard.failed_cells(&plan),
            false,
        );
        let unsaved: BTreeMap<usize, String> = (rows.iter().enumerate())
            .filter_map(|(cell, row)| Some((cell, row.error.clone()?)))
            .collect();
        fill(&mut rows, &results);
        for cell in heard.failed_cells(&plan) {
            rows[cell].status = CellStatus::Failed;
            rows[cell].error = unsaved.get(&cell).cloned();
        }
        let mut files = heard.saved_in_order(&plan);
        if wanted && !left.is_empty() && !made.is_empty() && !collect.cancel.is_cancelled() {
            files.extend(self.shared_without(&left, &options, &log));
        }
        self.tell(&files, &rows, &saver, &log)?;
        self.ended(result, &rows)
    }

    /// Those results whose values are in the store; a cell of which one is not is as one that was not drawn.
    fn whole(&self, plan: &SweepPlan, mut results: Results, there: &HashSet<Key>) -> Results {
        let kept = cut::kept(&self.loaded.sweep, plan);
        let mut gone = 0;
        for (output, (cell, _)) in plan.outputs.iter().enumerate() {
            let Some(cell) = cell.filter(|_| kept[output]) else {
                continue;
            };
            let has = plan.key(output).is_some_and(|key| there.contains(&key));
            if !has && results.get(&cell).is_some_and(|result| !result.failed) {
                results.remove(&cell);
                gone += 1;
            }
        }
        if gone > 0 {
            tell(&format!(
                "warning: what {gone} cells gave is not in the store any more; submit the sweep again, which draws what is missing"
            ));
        }
        results
    }

    fn once(
        &self,
        plan: &SweepPlan,
        options: &RunOptions,
        log: &Log,
    ) -> (Result<(), RunError>, Heard) {
        let (json, quiet) = (self.collect.json, self.collect.quiet);
        let listener: Box<dyn Listener> = match json {
            true => Box::new(JsonLines::default()),
            false => Box::new(Progress::new(quiet)),
        };
        let Loaded { engine, sweep, .. } = self.loaded;
        let cells = Cells::new(listener.as_ref(), json, sweep, plan, Some(log));
        if plan.outputs.is_empty() {
            return (Ok(()), cells.heard());
        }
        let result = engine
            .run(&plan.plan, &cells, self.collect.cancel, options)
            .map(drop);
        (result, cells.heard())
    }

    /// The contact sheet with blanks, and the report of the cells that came out. They are not what the sweep says, so they carry no recipe.
    fn shared_without(
        &self,
        left: &BTreeSet<usize>,
        options: &RunOptions,
        log: &Log,
    ) -> Vec<(String, PathBuf, SaveStatus)> {
        let Loaded { engine, sweep, .. } = self.loaded;
        let targets = &self.run.about.asked.targets;
        let names: Vec<String> = (sweep.shared_outputs())
            .filter(|name| targets.is_empty() || targets.iter().any(|one| one == name))
            .map(str::to_owned)
            .collect();
        let Ok(plan) = engine.plan_sweep(sweep, &names, left) else {
            return Vec::new();
        };
        let options = RunOptions {
            stamp: None,
            ..options.clone()
        };
        let (_, heard) = self.once(&plan, &options, log);
        heard.saved_in_order(&plan)
    }

    /// Writes the tables, and tells what was written.
    fn tell(
        &self,
        files: &[(String, PathBuf, SaveStatus)],
        rows: &[Row],
        saver: &Saver,
        log: &Log,
    ) -> Result<(), Failure> {
        let mut tables = Vec::new();
        if let Some(table) = &self.loaded.sweep.table {
            let saved = table::save(saver, table, rows)?;
            if saved.status != SaveStatus::Kept {
                log.file_saved(TABLE_KEY, table, &saved.path);
            }
            tables.push(saved.path);
        }
        if let Some(path) = &self.run.about.table {
            // What is in a store may be anybody's: nothing but a table is replaced.
            if !table::is_known(path) {
                return Err(Failure::failed(format!(
                    "the run writes its table to `{}`, which is neither CSV nor JSON",
                    path.display()
                ))
                .code(Code::StoreContent));
            }
            table::write(path, rows)?;
            tables.push(path.clone());
        }
        if !self.collect.json {
            for (name, path, status) in files {
                say(&running::result_line(name, path, *status))?;
            }
        }
        for path in tables {
            table::tell_saved(path, rows.len(), self.collect.json)?;
        }
        Ok(())
    }

    fn ended(&self, result: Result<(), RunError>, rows: &[Row]) -> Result<Exit, Failure> {
        let count = |status: CellStatus| rows.iter().filter(|row| row.status == status).count();
        let (failed, open) = (count(CellStatus::Failed), count(CellStatus::NotRun));
        if let Some(why) = self.lost.why() {
            return Err(Failure::failed(why)
                .code(Code::StoreContent)
                .help("collect again; if it happens again, remove that value from the store and submit the sweep again, which draws what is missing"));
        }
        match result {
            Err(RunError::Cancelled) => {
                return Err(Failure::interrupted(
                    "what was collected is saved; collect again",
                ));
            }
            Err(error) => return Err(Failure::of_run(&error)),
            Ok(()) => {}
        }
        let run = &self.run.about.run;
        match (failed, open) {
            (0, 0) => Ok(Exit::Done),
            (0, _) => Err(Failure::failed(format!("{open} of {} cells are not drawn yet", rows.len()))
                .help(format!("`retouch sweep status {run}` says who works on them; collect again when they are"))),
            _ => Err(Failure::failed(format!("{failed} of {} cells failed, {open} are not drawn yet", rows.len()))
                .help(format!("`retouch sweep logs {run}` says why; `retouch sweep resume {run} --retry-failed` tries them again"))),
        }
    }
}

/// The files that an earlier `collect` of this run wrote and nobody changed since: those may be replaced.
fn own(log: &Path, out: &Path) -> Vec<PathBuf> {
    let lines = Log::read(log, out)
        .map(|last| last.lines)
        .unwrap_or_default();
    (lines.into_iter())
        .filter(|line| digest(&line.path).is_ok_and(|now| now == line.blake3))
        .map(|line| line.path)
        .collect()
}

/// Writes into the rows what the workers said.
fn fill(rows: &mut [Row], results: &Results) {
    for (cell, row) in rows.iter_mut().enumerate() {
        // Here nothing was computed: what it took is what it took there.
        (row.seconds, row.unet_calls, row.error) = (0.0, 0, None);
        row.status = match results.get(&cell) {
            Some(result) => {
                (row.seconds, row.unet_calls) = (result.seconds, result.unet_calls);
                row.error.clone_from(&result.error);
                result.status()
            }
            None => CellStatus::NotRun,
        };
    }
}
