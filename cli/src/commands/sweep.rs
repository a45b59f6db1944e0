//! `retouch sweep`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use retouch_graph::event::{EVENT_SCHEMA, Event, Listener};
use retouch_graph::{
    Cancel, Engine, Problems, RunError, RunOptions, SaveStatus, Saver, Settings, Sweep, SweepPlan,
    files,
};
use serde::{Deserialize, Serialize};

use crate::args::{ExistsArg, ParamArgs, SweepArgs};
use crate::commands::run;
use crate::hub::{self, Mode};
use crate::journal::Journal;
use crate::lines::{self, SweepOutputLine};
use crate::output::{say, tell};
use crate::progress::{JsonLines, Outlook, Progress, duration};
use crate::provenance::{Made, Stamps};
use crate::runs::{Asked, Kind, Noted};
use crate::sharing::Input;
use crate::store::Store;
use crate::table::{self, CellStatus, Row};
use crate::{Exit, Failure, journal, session};

/// Runs all cells of a sweep as one graph.
///
/// # Errors
/// When the device cannot be used, a file cannot be written, or standard output is closed.
pub fn sweep(args: &SweepArgs) -> Result<Exit, Failure> {
    if let Some(path) = &args.table
        && !table::is_known(path)
    {
        return Err(Failure::usage(format!(
            "the table {} has no ending that says how to write it",
            path.display()
        ))
        .help("end it in `.csv` or `.json`"));
    }
    let store = Store::of(&args.cache)?;
    session::threads(args.device.threads)?;
    let engine = session::caching_engine_for(&args.device, &store)?;
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    let mode = match args.dry_run {
        true => Mode::Look,
        false => Mode::fetching(&cancel, args.json, args.quiet)
            .permitting(args.fetching.fetch, &args.fetching.token_for),
    };
    let opened = Input::open_with(&args.file, &args.sharing, false, &store, engine, mode);
    let (input, engine) = match opened {
        Ok(opened) => opened,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(stop) => return stop.tell(args.json),
    };
    let log = Log::file(&args.out, &args.file);
    let known = Log::read(&log, &args.out);
    // What the last sweep of this file wrote, and nobody changed since: its table may be replaced, and when it is
    // resumed its sheet too.
    let own: Vec<(String, PathBuf)> = (known.iter())
        .flat_map(|last| &last.lines)
        .filter(|line| digest(&line.path).is_ok_and(|now| now == line.blake3))
        .filter(|line| args.resume || line.key == TABLE_KEY)
        .map(|line| (line.key.clone(), line.path.clone()))
        .collect();
    let last = known.filter(|_| args.resume);
    if args.resume && last.is_none() {
        tell(&format!(
            "there is no sweep of this file below {} to resume: all cells are made",
            args.out.display()
        ));
    }
    let draw = last
        .as_ref()
        .map_or_else(session::fresh_draw, |log| log.draw);
    let asked = last
        .as_ref()
        .map_or_else(|| What::of(args), |last| What::of(args).or_else(&last.what));
    if let Some(last) = &last
        && ![String::new(), asked.numerics.clone()].contains(&last.what.numerics)
    {
        // Cells of two kinds on one sheet could not be told apart.
        return Err(Failure::usage(format!(
            "the sweep was begun with `{}`, and this command computes with `{}`",
            numerics_options(&last.what.numerics),
            numerics_options(&asked.numerics)
        ))
        .help("give it the same `--device` and `--dtype`, or begin anew without `--resume`"));
    }
    let mut settings = Settings {
        over: asked.over.clone(),
        sheet: asked.sheet.clone(),
        set: asked.set.clone(),
        folder: asked.folder.clone().unwrap_or_default(),
        draw: Some(draw),
        ..input.settings(&ParamArgs::default())
    };
    settings.params.extend(asked.params.iter().cloned());
    let (sweep, mut plan) = match loaded(&input, &engine, &asked.targets, &settings) {
        Ok(loaded) => loaded,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return faults(args, &problems),
    };
    let sweep = Arc::new(sweep);
    session::warn_all(sweep.warnings(), args.json)?;
    let mut rows = rows(&sweep);
    let kept = last.map_or_else(Vec::new, |log| log.take_over(&mut plan, &mut rows));
    if args.dry_run {
        return say_plan(args.json, &engine, &store, &sweep, &plan);
    }
    run::writable(&args.out)?;
    let saver = Saver::new(&args.out, run::exists(args.exists));
    run::can_save(&saver, &plan.plan)?;
    let saver = Arc::new(saver.owning(own.into_iter().map(|(_, path)| path)));
    let options = RunOptions {
        threads: usize::from(args.device.threads.unwrap_or(0)),
        saver: Some(Arc::clone(&saver)),
        keep_going: args.keep_going,
        drop_outputs: true,
        stamp: (!args.provenance.no_provenance)
            .then(|| Stamps::of(&engine, &input.file, Made::sweep(&sweep, &plan)))
            .flatten(),
        expected: journal::expected(store.file("journal.jsonl").as_deref()),
        ..RunOptions::default()
    };
    let mut log = Log::begin(log, draw, &asked, &kept)?;
    if !args.json && !args.quiet {
        describe(&engine, &sweep, &plan);
    }
    if args.json {
        let started = lines::Line::SweepStarted {
            schema: EVENT_SCHEMA,
            workflow: sweep.name().to_owned(),
            varying: sweep.varying.clone(),
            cells: lines::cells(&sweep),
        };
        started.say()?;
    }
    let mut noted = Asked {
        over: asked.over.clone(),
        sheet: asked.sheet.clone(),
        set: asked.set.clone(),
        params: asked.params.clone(),
        draw,
        provenance: !args.provenance.no_provenance,
        ..Asked::new(
            &args.file,
            &args.params,
            &args.sharing,
            &args.device.numerics.spec(),
            &args.out,
            &asked.targets,
        )
    };
    if let Some(folder) = &asked.folder {
        noted.folder.clone_from(folder);
    }
    let noted = Noted::begin(&store, Kind::Sweep, noted, &plan.plan).of_cells(sweep.cells.len());
    let (result, heard) = once(
        &engine, &store, args, &sweep, &plan, &cancel, &options, &log, &noted,
    );
    let failed = heard.failed_cells(&plan);
    note(&mut rows, &sweep, &plan, &heard, &failed, result.is_ok());
    // With cells missing the sheet is drawn of those that are there.
    let mut results = heard.saved_in_order(&plan);
    let drawn = (plan.outputs.iter().enumerate())
        .any(|(index, (cell, _))| cell.is_none() && heard.saved.contains_key(&index));
    if args.keep_going
        && !drawn
        && !failed.is_empty()
        && failed.len() < sweep.cells.len()
        && !cancel.is_cancelled()
    {
        let name = sweep.sheet_name();
        let sheet = sweep.has_sheet()
            && (asked.targets.is_empty() || asked.targets.iter().any(|one| one == name));
        if sheet && let Ok(plan) = engine.plan_sweep(&sweep, &[name.to_owned()], &failed) {
            // A sheet with blanks is not what the sweep says: it carries no recipe.
            let options = RunOptions {
                stamp: None,
                ..options.clone()
            };
            let (_, heard) = once(
                &engine, &store, args, &sweep, &plan, &cancel, &options, &log, &noted,
            );
            results.extend(heard.saved_in_order(&plan));
        }
    }
    noted.end();
    engine.files().flush();
    // First what is written: whoever reads the lines may be gone.
    let mut tables = Vec::new();
    if let Some(table) = &sweep.table {
        let path = args.out.join(table);
        let saved = saver
            .write_file(table, &table::bytes(&path, &rows)?)
            .map_err(|e| table::failed(&path, &e.to_string()))?;
        if saved.status != SaveStatus::Kept {
            log.file_saved(TABLE_KEY, table, &saved.path);
        }
        tables.push(saved.path);
    }
    if let Some(path) = &asked.table {
        table::write(path, &rows)?;
        tables.push(path.clone());
    }
    log.finish();
    if !args.json {
        for (name, path, status) in &results {
            say(&run::result_line(name, path, *status))?;
        }
    }
    for path in tables {
        let rows = rows.len();
        if args.json {
            lines::Line::TableSaved { path, rows }.say()?;
        } else {
            say(&format!("table  {}  ({rows} cells)", path.display()))?;
        }
    }
    match result {
        Ok(()) => Ok(Exit::Done),
        Err(RunError::Cancelled) => {
            let mut more = String::new();
            if args.out.as_os_str() != "out" {
                more.push_str(&format!(" --out {}", args.out.display()));
            }
            if asked.numerics != "cpu" {
                more.push_str(&format!(" {}", numerics_options(&asked.numerics)));
            }
            if let Some(exists) = clap::ValueEnum::to_possible_value(&args.exists)
                && args.exists != ExistsArg::Number
            {
                more.push_str(&format!(" --exists {}", exists.get_name()));
            }
            if args.keep_going {
                more.push_str(" --keep-going");
            }
            Err(Failure::interrupted(&format!(
                "what was finished is saved, and `retouch sweep {}{more} --resume` goes on from there",
                args.file.display()
            )))
        }
        Err(error) => {
            let count = failed.len();
            let cells = sweep.cells.len();
            if args.keep_going {
                tell(&format!(
                    "{count} of {cells} cells failed; `--resume` tries them again"
                ));
            }
            match error {
                // The listener has said which nodes failed, and why.
                RunError::NodeFailed { .. } | RunError::Several { .. } if !args.json => {
                    Ok(Exit::Failed)
                }
                error => Err(Failure::of_run(&error)),
            }
        }
    }
}

fn loaded(
    input: &Input,
    engine: &Engine,
    targets: &[String],
    settings: &Settings,
) -> Result<(Sweep, SweepPlan), Problems> {
    let sweep = input.load_sweep(engine, settings)?;
    let plan = engine.plan_sweep(&sweep, targets, &BTreeSet::new())?;
    Ok((sweep, plan))
}

fn faults(args: &SweepArgs, problems: &Problems) -> Result<Exit, Failure> {
    if !args.json {
        return Ok(session::faults(problems));
    }
    session::say_faults(problems)?;
    Ok(Exit::of(problems))
}

fn rows(sweep: &Sweep) -> Vec<Row> {
    (sweep.cells.iter().enumerate())
        .map(|(index, cell)| Row {
            cell: index + 1,
            params: cell.values.clone(),
            ..Row::default()
        })
        .collect()
}

fn describe(engine: &Engine, sweep: &Sweep, plan: &SweepPlan) {
    let forecast = engine.forecast(&plan.plan);
    let calls = forecast.total_calls();
    let cells = sweep.cells.len();
    tell(&format!(
        "{}: {cells} cell{} ({}), {} nodes, {calls} U-Net calls",
        sweep.name(),
        if cells == 1 { "" } else { "s" },
        varying(sweep),
        plan.plan.len(),
    ));
}

/// So many values of a param are listed; of more than that the first ones and the last.
const LISTED: usize = 6;

/// What varies, with its values: `blend_steps=10%, 20%; seed=1, 2, 3, ... 9`.
fn varying(sweep: &Sweep) -> String {
    let params: Vec<String> = (sweep.varying.iter())
        .map(|name| {
            let mut values: Vec<String> = Vec::new();
            for value in sweep.cells.iter().filter_map(|cell| cell.values.get(name)) {
                let value = retouch_graph::sweep::shown(value);
                if !values.contains(&value) {
                    values.push(value);
                }
            }
            if values.len() > LISTED {
                let last = values.pop().unwrap_or_default();
                values.truncate(LISTED / 2);
                values.push(format!("... {last}"));
            }
            format!("{name}={}", values.join(", "))
        })
        .collect();
    params.join("; ")
}

/// Says what would be run, as JSON or for people.
///
/// # Errors
/// When standard output is closed.
pub fn say_plan(
    json: bool,
    engine: &Engine,
    store: &Store,
    sweep: &Sweep,
    plan: &SweepPlan,
) -> Result<Exit, Failure> {
    let forecast = engine.forecast(&plan.plan);
    let costs = journal::costs(
        store.file("journal.jsonl").as_deref(),
        &plan.plan,
        &forecast,
    );
    let seconds: Option<f64> = costs.iter().map(|cost| cost.seconds).sum();
    if json {
        let outputs = (plan.plan.outputs().iter().zip(&plan.outputs))
            .map(|(output, (cell, name))| SweepOutputLine {
                cell: cell.map(|cell| cell + 1),
                output: name.clone(),
                save: output.save.clone(),
            })
            .collect();
        let planned = lines::Line::SweepPlanned {
            schema: EVENT_SCHEMA,
            workflow: sweep.name().to_owned(),
            varying: sweep.varying.clone(),
            cells: lines::cells(sweep),
            nodes: plan.plan.len(),
            unet_calls: forecast.total_calls(),
            seconds,
            outputs,
        };
        planned.say()?;
        return Ok(Exit::Done);
    }
    for (index, cell) in sweep.cells.iter().enumerate() {
        say(&format!("{:>4}  {}", index + 1, cell.label))?;
    }
    if let Some((columns, places)) = sweep.places() {
        let blank = places.iter().filter(|place| place.is_none()).count();
        let rows = places.len() / columns.max(1);
        let blank = if blank == 0 {
            String::new()
        } else {
            format!(", {blank} places empty")
        };
        say(&format!("sheet: {rows} x {columns}{blank}"))?;
    }
    say(&format!(
        "{} cells, {} nodes, {} U-Net calls{}",
        sweep.cells.len(),
        plan.plan.len(),
        forecast.total_calls(),
        seconds.map_or_else(String::new, |seconds| format!(
            ", about {}",
            duration(seconds)
        )),
    ))?;
    Ok(Exit::Done)
}

/// Runs a plan of the sweep.
#[allow(clippy::too_many_arguments)] // it is one run's surroundings
fn once(
    engine: &Engine,
    store: &Store,
    args: &SweepArgs,
    sweep: &Sweep,
    plan: &SweepPlan,
    cancel: &Cancel,
    options: &RunOptions,
    log: &Log,
    noted: &Noted,
) -> (Result<(), RunError>, Heard) {
    let listener: Box<dyn Listener> = if args.json {
        Box::new(JsonLines)
    } else {
        Box::new(Progress::new(args.quiet).with(Outlook::of(engine, store, &plan.plan)))
    };
    let listener = noted.beside(listener.as_ref());
    let journal = Journal::new(&listener, store.file("journal.jsonl"), &plan.plan);
    let cells = Cells {
        inner: &journal,
        json: args.json,
        sweep,
        plan,
        log,
        names: (plan.plan.outputs().iter().enumerate())
            .map(|(index, output)| (output.name.clone(), index))
            .collect(),
        by_save: by_save(plan),
        of_cell: of_cell(plan, sweep.cells.len()),
        heard: Mutex::default(),
    };
    let result = engine.run(&plan.plan, &cells, cancel, options).map(drop);
    let heard = cells
        .heard
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    journal.write();
    (result, heard)
}

fn by_save(plan: &SweepPlan) -> HashMap<String, Vec<usize>> {
    let mut by_save: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, save) in plan.saves.iter().enumerate() {
        if let Some(save) = save {
            by_save.entry(save.clone()).or_default().push(index);
        }
    }
    by_save
}

fn of_cell(plan: &SweepPlan, cells: usize) -> Vec<Vec<usize>> {
    let mut of_cell = vec![Vec::new(); cells];
    for (index, (cell, _)) in plan.outputs.iter().enumerate() {
        if let Some(cell) = cell {
            of_cell[*cell].push(index);
        }
    }
    of_cell
}

/// What was heard of a run.
#[derive(Debug, Default)]
struct Heard {
    /// The files of each output of the plan.
    saved: BTreeMap<usize, Vec<(PathBuf, SaveStatus)>>,
    failed_outputs: BTreeMap<usize, String>,
    failed_nodes: BTreeMap<String, String>,
    finished: HashMap<String, (f64, u64)>,
    reused: BTreeSet<String>,
    /// The cells of which it was told that they are finished.
    told: BTreeSet<usize>,
}

impl Heard {
    fn saved_in_order(&self, plan: &SweepPlan) -> Vec<(String, PathBuf, SaveStatus)> {
        let mut told = BTreeSet::new();
        let mut results = Vec::new();
        for (output, files) in &self.saved {
            let name = plan
                .plan
                .outputs()
                .get(*output)
                .map_or("", |output| &output.name);
            for (path, status) in files {
                // One picture of several cells is one file.
                if told.insert(path) {
                    results.push((name.to_owned(), path.clone(), *status));
                }
            }
        }
        results
    }

    /// The cells that lack something, as a node that they need failed or an output was not saved.
    fn failed_cells(&self, plan: &SweepPlan) -> BTreeSet<usize> {
        let mut failed = BTreeSet::new();
        for (task, cells) in plan.plan.tasks().zip(&plan.cells) {
            if self.failed_nodes.contains_key(task.name()) {
                failed.extend(cells);
            }
        }
        for output in self.failed_outputs.keys() {
            failed.extend(sharing(plan, *output));
        }
        failed
    }
}

/// The cells whose output is saved as this one: its own, and those that have the same picture.
fn sharing(plan: &SweepPlan, output: usize) -> Vec<usize> {
    let save = plan.saves.get(output).cloned().flatten();
    (plan.outputs.iter().zip(&plan.saves).enumerate())
        .filter(|(index, (_, other))| *index == output || (save.is_some() && **other == save))
        .filter_map(|(_, ((cell, _), _))| *cell)
        .collect()
}

/// The files of the output that is saved under this path.
fn saved_as(plan: &SweepPlan, heard: &Heard, save: &str) -> Option<Vec<PathBuf>> {
    let index =
        (plan.plan.outputs().iter()).position(|output| output.save.as_deref() == Some(save))?;
    let files = heard.saved.get(&index)?;
    Some(files.iter().map(|(path, _)| path.clone()).collect())
}

/// Writes into the rows what a run did.
fn note(
    rows: &mut [Row],
    sweep: &Sweep,
    plan: &SweepPlan,
    heard: &Heard,
    failed: &BTreeSet<usize>,
    whole: bool,
) {
    let mut left: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, (cell, name)) in plan.outputs.iter().enumerate() {
        let Some(row) = cell.and_then(|cell| rows.get_mut(cell)) else {
            continue;
        };
        match heard.saved.get(&index) {
            Some(files) => {
                let files = files.iter().map(|(path, _)| path.clone()).collect();
                row.outputs.insert(name.clone(), files);
            }
            None if plan.plan.outputs()[index].save.is_some() => {
                *left.entry(row.cell - 1).or_default() += 1;
            }
            // Another cell has the same picture, which is saved once.
            None => {
                let other =
                    (plan.saves[index].as_ref()).and_then(|save| saved_as(plan, heard, save));
                if let Some(files) = other {
                    row.outputs.insert(name.clone(), files);
                } else if plan.saves[index].is_some() && !row.outputs.contains_key(name) {
                    *left.entry(row.cell - 1).or_default() += 1;
                }
            }
        }
    }
    for (task, cells) in plan.plan.tasks().zip(&plan.cells) {
        let Some(row) = cells.first().and_then(|cell| rows.get_mut(*cell)) else {
            continue;
        };
        if let Some((seconds, calls)) = heard.finished.get(task.name()) {
            row.seconds += seconds;
            row.unet_calls += calls;
        }
        if let Some(message) = heard.failed_nodes.get(task.name()) {
            for cell in cells {
                if let Some(row) = rows.get_mut(*cell) {
                    row.error
                        .get_or_insert_with(|| format!("{}: {message}", task.name()));
                }
            }
        }
    }
    for (output, message) in &heard.failed_outputs {
        for cell in sharing(plan, *output) {
            if let Some(row) = rows.get_mut(cell) {
                row.error.get_or_insert_with(|| message.clone());
            }
        }
    }
    // After a stop a cell is done when all that it needs is.
    let mut open: BTreeSet<usize> = left.into_keys().collect();
    for (task, cells) in plan.plan.tasks().zip(&plan.cells) {
        if !heard.finished.contains_key(task.name()) && !heard.reused.contains(task.name()) {
            open.extend(cells);
        }
    }
    for cell in 0..sweep.cells.len() {
        let Some(row) = rows.get_mut(cell) else {
            continue;
        };
        row.status = if failed.contains(&cell) {
            CellStatus::Failed
        } else if whole || !open.contains(&cell) {
            CellStatus::Done
        } else {
            CellStatus::NotRun
        };
    }
}

/// Hears what becomes of the cells, beside another listener.
struct Cells<'a> {
    inner: &'a dyn Listener,
    json: bool,
    sweep: &'a Sweep,
    plan: &'a SweepPlan,
    log: &'a Log,
    names: HashMap<String, usize>,
    /// The outputs of the plan that one file is of.
    by_save: HashMap<String, Vec<usize>>,
    /// The outputs of the plan that are of each cell.
    of_cell: Vec<Vec<usize>>,
    heard: Mutex<Heard>,
}

impl Cells<'_> {
    /// Whether all outputs of a cell that are saved are, each by it or by another cell that has the same picture.
    fn complete(&self, heard: &Heard, cell: usize) -> bool {
        let saved = |index: &usize| match &self.plan.saves[*index] {
            Some(save) => self.by_save[save]
                .iter()
                .any(|one| heard.saved.contains_key(one)),
            None => true,
        };
        self.of_cell[cell].iter().all(saved)
    }
}

impl Listener for Cells<'_> {
    fn event(&self, event: &Event) {
        // What is told is written down already: whoever heard of a file can rely on `--resume` to know it.
        self.note(event);
        self.inner.event(event);
        self.tell_cell(event);
    }
}

impl Cells<'_> {
    fn note(&self, event: &Event) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::OutputSaved {
                output,
                path,
                status,
            } => {
                let Some(&index) = self.names.get(output) else {
                    return;
                };
                let files = heard.saved.entry(index).or_default();
                files.push((path.clone(), *status));
                if *status != SaveStatus::Kept {
                    self.log.saved(self.plan, index, path);
                }
            }
            Event::OutputFailed {
                output, message, ..
            } => {
                if let Some(&index) = self.names.get(output) {
                    heard.failed_outputs.insert(index, message.clone());
                }
                if !self.json {
                    tell(&format!("error: {message}"));
                }
            }
            Event::NodeReused { node, .. } => {
                heard.reused.insert(node.clone());
            }
            Event::NodeFailed { node, message, .. } => {
                heard.failed_nodes.insert(node.clone(), message.clone());
            }
            Event::NodeFinished {
                node,
                seconds,
                counters,
            } => {
                let calls = counters.get("unet_calls").copied().unwrap_or(0);
                heard.finished.insert(node.clone(), (*seconds, calls));
            }
            _ => {}
        }
    }

    fn tell_cell(&self, event: &Event) {
        let Event::OutputSaved { output, .. } = event else {
            return;
        };
        if !self.json {
            return;
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let save = self
            .names
            .get(output)
            .and_then(|index| self.plan.saves[*index].as_ref());
        for index in save.map_or(&[] as &[usize], |save| &self.by_save[save]) {
            let Some(cell) = self.plan.outputs[*index].0 else {
                continue;
            };
            if !self.complete(&heard, cell) || !heard.told.insert(cell) {
                continue;
            }
            let of = &self.sweep.cells[cell];
            let line = lines::Line::CellFinished {
                cell: cell + 1,
                label: of.label.clone(),
                params: of.values.clone(),
            };
            if let Ok(line) = line.text() {
                let _ = crate::output::say_line(&line); // what is lost is told at the end
            }
        }
    }
}

/// What a sweep saved, written down as it goes, for `--resume`.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    /// The folder that it and all that it names are below.
    out: PathBuf,
    file: Mutex<Option<fs::File>>,
}

/// The first line of the log.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// `retouch-sweep/1`.
    schema: String,
    /// What seeds called `random` were drawn from.
    draw: u64,
    /// What the command line said.
    #[serde(default, flatten)]
    what: What,
}

/// The options that give a [`NumericsArgs::spec`](crate::args::NumericsArgs::spec).
fn numerics_options(spec: &str) -> String {
    let (device, dtype) = spec.split_once('/').unwrap_or((spec, "f32"));
    format!("--device {device} --dtype {dtype}")
}

/// What the command line says is swept, so that `--resume` need not be told again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct What {
    /// The outputs to make.
    targets: Vec<String>,
    over: Vec<String>,
    set: Vec<String>,
    /// The folder that paths in `set` count from.
    folder: Option<PathBuf>,
    /// The files of `--params`, absolute.
    params: Vec<PathBuf>,
    sheet: Option<String>,
    /// The table that is written besides the file's own, absolute.
    table: Option<PathBuf>,
    /// What it is computed with, `cpu/bf16`; empty in logs of the first version.
    numerics: String,
}

impl What {
    fn of(args: &SweepArgs) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self {
            targets: args.targets.clone(),
            over: args.over.clone(),
            set: args.params.set.clone(),
            folder: None,
            params: args
                .params
                .params
                .iter()
                .map(|path| absolute(path))
                .collect(),
            sheet: args.sheet.clone(),
            table: args.table.as_deref().map(absolute),
            numerics: args.device.numerics.spec(),
        }
    }

    /// Takes what was not said from what was said before.
    fn or_else(mut self, before: &Self) -> Self {
        if self.targets.is_empty() {
            self.targets.clone_from(&before.targets);
        }
        // A param that is given anew, in whichever way, is not what it was.
        let name = |text: &str| text.split('=').next().unwrap_or("").trim().to_owned();
        let given: Vec<String> = (self.over.iter().chain(&self.set))
            .map(|text| name(text))
            .collect();
        let kept = |texts: &[String]| -> Vec<String> {
            let texts = texts.iter().filter(|text| !given.contains(&name(text)));
            texts.cloned().collect()
        };
        if self.over.is_empty() {
            self.over = kept(&before.over);
        }
        if self.set.is_empty() {
            self.set = kept(&before.set);
            self.folder.clone_from(&before.folder);
        }
        if self.params.is_empty() {
            self.params.clone_from(&before.params);
        }
        if self.sheet.is_none() {
            self.sheet.clone_from(&before.sheet);
        }
        if self.table.is_none() {
            self.table.clone_from(&before.table);
        }
        self
    }

    /// As it is written down: paths hold from any folder.
    fn to_keep(&self) -> Self {
        let mut kept = self.clone();
        if kept.folder.is_none() && !kept.set.is_empty() {
            kept.folder = std::path::absolute(".").ok();
        }
        kept
    }
}

/// A file that was saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    /// The key of the value.
    key: String,
    /// The path below the output folder that it was planned for.
    save: String,
    /// The one that it has, below the output folder too.
    path: PathBuf,
    /// The BLAKE3 of its bytes.
    blake3: String,
}

/// What stands for the key of a table, which is of no value.
const TABLE_KEY: &str = "table";
const LOG_SCHEMA: &str = "retouch-sweep/1";
/// A longer log is none.
const MOST_LOG: u64 = 256 << 20;

/// The log of an earlier run.
struct Last {
    draw: u64,
    what: What,
    lines: Vec<Line>,
}

impl Last {
    /// Takes what is saved and still as it was out of the plan; all that is, also of other cells.
    fn take_over(self, plan: &mut SweepPlan, rows: &mut [Row]) -> Vec<Line> {
        let mut known: HashMap<(String, String), Vec<Line>> = HashMap::new();
        for line in self.lines {
            let place = (line.key.clone(), line.save.clone());
            known.entry(place).or_default().push(line);
        }
        known.retain(|_, lines| {
            lines
                .iter()
                .all(|line| digest(&line.path).is_ok_and(|now| now == line.blake3))
        });
        let mut done = BTreeSet::new();
        for (index, (cell, name)) in plan.outputs.iter().enumerate() {
            let save = plan.saves[index].clone();
            let (Some(key), Some(save)) = (plan.key(index), save) else {
                continue;
            };
            let Some(lines) = known.get(&(key.to_string(), save)) else {
                continue;
            };
            done.insert(index);
            if let Some(row) = cell.and_then(|cell| rows.get_mut(cell)) {
                let files = lines.iter().map(|line| line.path.clone()).collect();
                row.outputs.insert(name.clone(), files);
            }
        }
        plan.retain_outputs(|index| !done.contains(&index));
        let mut kept: Vec<Line> = known.into_values().flatten().collect();
        kept.sort_by(|a, b| a.path.cmp(&b.path));
        kept
    }
}

/// A path below a folder, so that the folder may be moved.
fn below(folder: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(folder).unwrap_or(path).to_owned()
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(files::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

impl Log {
    /// The log's file: hidden in the output folder, named by the sweep's file and a digest of its place.
    fn file(out: &Path, sweep: &Path) -> PathBuf {
        let stem = sweep.file_stem().unwrap_or_default().to_string_lossy();
        let place = std::path::absolute(sweep).unwrap_or_else(|_| sweep.to_owned());
        let digest = blake3::hash(place.as_os_str().as_encoded_bytes()).to_hex();
        out.join(format!(".retouch-sweep-{stem}-{}.jsonl", &digest[..8]))
    }

    /// The log of the last sweep; `None` when there is none, or it is of another version.
    fn read(path: &Path, out: &Path) -> Option<Last> {
        let text = files::read_text(path, MOST_LOG).ok()?;
        let mut lines = text.lines();
        let head: Head = serde_json::from_str(lines.next()?).ok()?;
        (head.schema == LOG_SCHEMA).then(|| Last {
            draw: head.draw,
            what: head.what,
            // A line that was cut off by a crash is no line.
            lines: lines
                .filter_map(|line| serde_json::from_str::<Line>(line).ok())
                .map(|line| Line {
                    path: out.join(&line.path),
                    ..line
                })
                .collect(),
        })
    }

    /// Begins a log with what is still as the last sweep left it.
    fn begin(path: PathBuf, draw: u64, what: &What, kept: &[Line]) -> Result<Self, Failure> {
        let out = path.parent().unwrap_or(Path::new("")).to_owned();
        let head = Head {
            schema: LOG_SCHEMA.to_owned(),
            draw,
            what: what.to_keep(),
        };
        let mut text = serde_json::to_string(&head).unwrap_or_default() + "\n";
        for line in kept {
            let line = Line {
                path: below(&out, &line.path),
                ..line.clone()
            };
            text += &(serde_json::to_string(&line).unwrap_or_default() + "\n");
        }
        let file = crate::store::write_whole(&path, text.as_bytes())
            .and_then(|()| fs::OpenOptions::new().append(true).open(&path))
            .map_err(|e| {
                Failure::unwritable(format!(
                    "the sweep's log {} cannot be written: {e}",
                    path.display()
                ))
                .help("name another output folder with `--out DIR`")
            })?;
        Ok(Self {
            path,
            out,
            file: Mutex::new(Some(file)),
        })
    }

    fn saved(&self, plan: &SweepPlan, output: usize, path: &Path) {
        let planned = plan.plan.outputs().get(output);
        if let (Some(key), Some(save)) =
            (plan.key(output), planned.and_then(|one| one.save.as_ref()))
        {
            self.file_saved(&key.to_string(), save, path);
        }
    }

    /// Notes a file: what it is of, where it was to be, where it is.
    fn file_saved(&self, key: &str, save: &str, path: &Path) {
        let Ok(blake3) = digest(path) else {
            return;
        };
        let line = Line {
            key: key.to_owned(),
            save: save.to_owned(),
            path: below(&self.out, path),
            blake3,
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match (file.as_mut(), serde_json::to_string(&line)) {
            (Some(file), Ok(text)) => file.write_all(format!("{text}\n").as_bytes()),
            _ => return,
        };
        if let Err(error) = written {
            *file = None;
            tell(&format!(
                "warning: the sweep's log {} cannot be written: {error}; `--resume` will make again what follows",
                self.path.display()
            ));
        }
    }

    fn finish(&mut self) {
        *self.file.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
