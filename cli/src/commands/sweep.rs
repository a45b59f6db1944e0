//! `retouch sweep`.

pub mod cells;
pub mod log;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use retouch_cluster::chunks;
use retouch_graph::event::{EVENT_SCHEMA, Listener};
use retouch_graph::{
    Cancel, Engine, Problems, RunError, RunOptions, SaveStatus, Saver, Settings, Sweep, SweepPlan,
};

use self::cells::{Cells, Heard};
use self::log::{Last, Log, TABLE_KEY, What, digest};
use crate::args::{DrawingArgs, ExistsArg, ParamArgs, Share, SweepArgs};
use crate::commands::run;
use crate::far::cut;
use crate::hub::{self, Mode};
use crate::journal::Journal;
use crate::lines::{self, SweepOutputLine};
use crate::output::{say, tell};
use crate::preview::Preview;
use crate::progress::{JsonLines, Outlook, Progress};
use crate::provenance::{Made, Stamps};
use crate::runs::{Asked, Kind, Noted};
use crate::sharing::{Input, Stop};
use crate::store::Store;
use crate::table::{self, Row};
use crate::{Exit, Failure, duration, fresh_draw, journal, session};

/// Runs all cells of a sweep as one graph.
///
/// # Errors
/// When the device cannot be used, a file cannot be written, or standard output is closed.
// Long: the order of the steps is the command: each has a function of its own.
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
    let drawing = &args.drawing;
    let preview = Preview::of(&drawing.preview, drawing.existing)?;
    let store = Store::of(&drawing.cache)?;
    session::threads(drawing.device.threads)?;
    let engine = session::caching_engine_for(&drawing.device, &store)?;
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    let mode = match args.dry_run {
        true => Mode::Look,
        false => Mode::fetching(&cancel, drawing.json, drawing.telling.quiet)
            .permitting(args.fetching.fetch, &args.fetching.token_for),
    };
    let (places, locked) = (&drawing.locked.sharing, drawing.locked.locked);
    let opened = Input::open_with(&args.file, places, locked, &store, engine, mode);
    let (input, engine) = match opened {
        Ok(opened) => opened,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(stop) => return stop.tell(drawing.json),
    };
    let before = Before::of(args)?;
    let settings = before.settings(&input);
    let (sweep, mut plan) = match loaded(&input, &engine, &before.asked.targets, &settings) {
        Ok(loaded) => loaded,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return Stop::from(problems).tell(drawing.json),
    };
    let sweep = Arc::new(sweep);
    if let Some(preview) = &preview {
        preview.spares(sweep.all_cells(), &drawing.out)?;
    }
    session::warn_all(sweep.warnings(), drawing.json)?;
    let mut rows = cells::rows(&sweep);
    let own_cells = args.cells.map(|cells| share(&sweep, &mut plan, cells));
    let Before {
        log,
        own,
        last,
        draw,
        asked,
    } = before;
    let kept = last.map_or_else(Vec::new, |log| log.take_over(&mut plan, &mut rows));
    if args.dry_run {
        return say_plan(drawing.json, &engine, &store, &sweep, &plan);
    }
    run::writable(&drawing.out)?;
    let saver = Saver::new(&drawing.out, run::exists(drawing.existing.exists));
    run::can_save(&saver, &plan.plan)?;
    let saver = Arc::new(saver.owning(own));
    let options = RunOptions {
        threads: usize::from(drawing.device.threads.unwrap_or(0)),
        saver: Some(Arc::clone(&saver)),
        keep_going: drawing.keep_going,
        drop_outputs: true,
        previewer: preview.clone().map(|preview| preview as _),
        stamp: (!drawing.provenance.no_provenance)
            .then(|| Stamps::of(&engine, &input.file, Made::sweep(&sweep, &plan)))
            .flatten(),
        expected: journal::expected(store.file("journal.jsonl").as_deref()),
    };
    let mut log = Log::begin_beside(log, draw, &asked, &kept)?;
    begins(drawing, &engine, &sweep, &plan)?;
    let noted = Noted::begin(&store, Kind::Sweep, noted(args, &asked, draw), &plan.plan)
        .of_cells(sweep.cells.len());
    let running = Running {
        engine: &engine,
        store: &store,
        drawing,
        sweep: &sweep,
        cancel: &cancel,
        log: &log,
        noted: &noted,
    };
    let (result, heard) = running.once(&plan, &options);
    let failed = heard.failed_cells(&plan);
    cells::note(&mut rows, &sweep, &plan, &heard, &failed, result.is_ok());
    let mut results = heard.saved_in_order(&plan);
    let drawn = (plan.outputs.iter().enumerate())
        .any(|(index, (cell, _))| cell.is_none() && heard.saved.contains_key(&index));
    let whole = own_cells.is_none();
    if drawing.keep_going && whole && !drawn && !failed.is_empty() && !cancel.is_cancelled() {
        results.extend(running.shared_without(&failed, &asked, &options));
    }
    noted.end();
    engine.files().flush();
    if let Some(preview) = preview.filter(|_| !drawing.json && !drawing.telling.quiet) {
        preview.tell_if_idle();
    }
    if let Some(own) = &own_cells {
        rows.retain(|row| own.contains(&(row.cell - 1)));
    }
    let tables = tables(&sweep, &asked, &saver, &log, &rows)?;
    log.finish();
    if !drawing.json {
        for (name, path, status) in &results {
            say(&run::result_line(name, path, *status))?;
        }
    }
    for path in tables {
        table::tell_saved(path, rows.len(), drawing.json)?;
    }
    ended(args, &asked, result, failed.len(), rows.len())
}

/// What is known before a sweep is loaded: what is swept, and what the last one left.
struct Before {
    /// The file of the log.
    log: PathBuf,
    /// What the last sweep of this file wrote, and was not changed since: its table may be replaced, and when it is resumed its
    /// sheet too.
    own: Vec<PathBuf>,
    /// The last sweep, if it is resumed.
    last: Option<Last>,
    /// What seeds called `random` are drawn from.
    draw: u64,
    asked: What,
}

impl Before {
    fn of(args: &SweepArgs) -> Result<Self, Failure> {
        let out = &args.drawing.out;
        let log = Log::file(out, &args.file, args.cells);
        let known = Log::last(&log, out, args.cells.is_none());
        let own = (known.iter())
            .flat_map(|last| &last.lines)
            .filter(|line| digest(&line.path).is_ok_and(|now| now == line.blake3))
            .filter(|line| args.resume || line.key == TABLE_KEY)
            .map(|line| line.path.clone())
            .collect();
        let last = known.filter(|_| args.resume);
        if args.resume && last.is_none() {
            tell(&format!(
                "there is no sweep of this file below {} to resume: all cells are computed",
                out.display()
            ));
        }
        let draw = last.as_ref().map_or_else(fresh_draw, |log| log.draw);
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
            .help("give it the same `--device` and `--dtype`, or start over without `--resume`"));
        }
        Ok(Self {
            log,
            own,
            last,
            draw,
            asked,
        })
    }

    fn settings(&self, input: &Input) -> Settings {
        let asked = &self.asked;
        let mut settings = Settings {
            over: asked.over.clone(),
            sheet: asked.sheet.clone(),
            set: asked.set.clone(),
            folder: asked.folder.clone().unwrap_or_default(),
            draw: Some(self.draw),
            ..input.settings(&ParamArgs::default())
        };
        settings.params.extend(asked.params.iter().cloned());
        settings
    }
}

/// Tells that a sweep begins, people and programs.
///
/// # Errors
/// When standard output is closed.
pub fn begins(
    drawing: &DrawingArgs,
    engine: &Engine,
    sweep: &Sweep,
    plan: &SweepPlan,
) -> Result<(), Failure> {
    if !drawing.json && !drawing.telling.quiet {
        describe(engine, sweep, plan);
    }
    begins_with(drawing.json, sweep)
}

/// Tells programs that a sweep begins.
///
/// # Errors
/// When standard output is closed.
pub fn begins_with(json: bool, sweep: &Sweep) -> Result<(), Failure> {
    if !json {
        return Ok(());
    }
    let started = lines::Line::SweepStarted {
        schema: EVENT_SCHEMA,
        workflow: sweep.name().to_owned(),
        varying: sweep.varying.clone(),
        cells: lines::cells(sweep),
    };
    started.say()
}

/// Leaves of a plan only a share of the cells, in which as much as can be is shared; the cells. The contact sheet is of all
/// cells, so it is left out.
fn share(sweep: &Sweep, plan: &mut SweepPlan, share: Share) -> BTreeSet<usize> {
    let shapes = cut::shapes(plan, sweep.cells.len());
    let own: BTreeSet<usize> =
        (chunks::share(shapes, share.index - 1, share.of).into_iter()).collect();
    let keep: Vec<bool> = (plan.outputs.iter())
        .map(|(cell, _)| cell.is_some_and(|cell| own.contains(&cell)))
        .collect();
    plan.retain_outputs(|output| keep[output]);
    own
}

/// What is written down of the sweep in the journal of runs.
fn noted(args: &SweepArgs, asked: &What, draw: u64) -> Asked {
    let drawing = &args.drawing;
    let mut noted = Asked {
        over: asked.over.clone(),
        sheet: asked.sheet.clone(),
        set: asked.set.clone(),
        params: asked.params.clone(),
        draw,
        provenance: !drawing.provenance.no_provenance,
        ..Asked::new(
            &args.file,
            &drawing.params,
            &drawing.locked.sharing,
            &drawing.device.numerics.spec(),
            &drawing.out,
            &asked.targets,
        )
    };
    if let Some(folder) = &asked.folder {
        noted.folder.clone_from(folder);
    }
    noted
}

/// Writes the tables that the sweep and the command line ask for; their paths. Before anything is reported: a program that reads the
/// lines may be gone.
fn tables(
    sweep: &Sweep,
    asked: &What,
    saver: &Saver,
    log: &Log,
    rows: &[Row],
) -> Result<Vec<PathBuf>, Failure> {
    let mut tables = Vec::new();
    if let Some(table) = &sweep.table {
        let saved = table::save(saver, table, rows)?;
        if saved.status != SaveStatus::Kept {
            log.file_saved(TABLE_KEY, table, &saved.path);
        }
        tables.push(saved.path);
    }
    if let Some(path) = &asked.table {
        table::write(path, rows)?;
        tables.push(path.clone());
    }
    Ok(tables)
}

/// How a sweep ends, and what is reported of it; `failed` of its `cells` lack something.
fn ended(
    args: &SweepArgs,
    asked: &What,
    result: Result<(), RunError>,
    failed: usize,
    cells: usize,
) -> Result<Exit, Failure> {
    let drawing = &args.drawing;
    match result {
        Ok(()) => Ok(Exit::Done),
        Err(RunError::Cancelled) => Err(Failure::interrupted(&format!(
            "what was finished is saved, and `retouch sweep {}{} --resume` continues from there",
            args.file.display(),
            resuming(drawing, asked)
        ))),
        Err(error) => {
            if drawing.keep_going {
                tell(&format!(
                    "{failed} of {cells} cells failed; `--resume` tries them again"
                ));
            }
            match error {
                // The listener has said which nodes failed, and why.
                RunError::NodeFailed { .. } | RunError::Several { .. } if !drawing.json => {
                    Ok(Exit::Failed)
                }
                error => Err(Failure::of_run(&error)),
            }
        }
    }
}

/// The options that a sweep is resumed with: those that the log does not know.
fn resuming(drawing: &DrawingArgs, asked: &What) -> String {
    let mut more = String::new();
    if drawing.out.as_os_str() != "out" {
        more.push_str(&format!(" --out {}", drawing.out.display()));
    }
    if asked.numerics != "cpu" {
        more.push_str(&format!(" {}", numerics_options(&asked.numerics)));
    }
    let exists = drawing.existing.exists;
    if let Some(name) = clap::ValueEnum::to_possible_value(&exists)
        && exists != ExistsArg::Number
    {
        more.push_str(&format!(" --exists {}", name.get_name()));
    }
    if drawing.keep_going {
        more.push_str(" --keep-going");
    }
    if drawing.locked.locked {
        more.push_str(" --locked");
    }
    for folder in &drawing.locked.sharing.place.models {
        more.push_str(&format!(" --models {}", folder.display()));
    }
    more
}

/// The options that give a [`NumericsArgs::spec`](crate::args::NumericsArgs::spec).
fn numerics_options(spec: &str) -> String {
    let (device, dtype) = spec.split_once('/').unwrap_or((spec, "f32"));
    format!("--device {device} --dtype {dtype}")
}

/// Loads a sweep, and plans all of its cells.
///
/// # Errors
/// All faults of the sweep, its cells, or what is asked for.
pub fn loaded(
    input: &Input,
    engine: &Engine,
    targets: &[String],
    settings: &Settings,
) -> Result<(Sweep, SweepPlan), Problems> {
    let sweep = input.load_sweep(engine, settings)?;
    let plan = engine.plan_sweep(&sweep, targets, &BTreeSet::new())?;
    Ok((sweep, plan))
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

/// Number of values of a param that are listed; of more, the first ones and the last.
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
    if let Some(order) = sweep.sheet_order() {
        say(&format!("sheet: {} cells by {order}", sweep.cells.len()))?;
    } else if let Some((columns, places)) = sweep.places() {
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

/// What the runs of a sweep's plans have in common.
struct Running<'a> {
    engine: &'a Engine,
    store: &'a Store,
    drawing: &'a DrawingArgs,
    sweep: &'a Sweep,
    cancel: &'a Cancel,
    log: &'a Log,
    noted: &'a Noted,
}

impl Running<'_> {
    /// Runs a plan of the sweep.
    fn once(&self, plan: &SweepPlan, options: &RunOptions) -> (Result<(), RunError>, Heard) {
        let (json, quiet) = (self.drawing.json, self.drawing.telling.quiet);
        let listener: Box<dyn Listener> = if json {
            Box::new(JsonLines {
                run: self.noted.name(),
            })
        } else {
            let outlook = Outlook::of(self.engine, self.store, &plan.plan);
            Box::new(Progress::new(quiet).with(outlook))
        };
        let listener = self.noted.beside(listener.as_ref());
        let file = self.store.file("journal.jsonl");
        let journal = Journal::new(&listener, file, &plan.plan);
        let cells = Cells::new(&journal, json, self.sweep, plan, Some(self.log));
        let result = (self.engine)
            .run(&plan.plan, &cells, self.cancel, options)
            .map(drop);
        let heard = cells.heard();
        journal.write();
        (result, heard)
    }

    /// With cells missing the sheet and the report are made of those that are there, if they were asked for; their files.
    fn shared_without(
        &self,
        failed: &BTreeSet<usize>,
        asked: &What,
        options: &RunOptions,
    ) -> Vec<(String, PathBuf, SaveStatus)> {
        let names: Vec<String> = (self.sweep.shared_outputs())
            .filter(|name| asked.targets.is_empty() || asked.targets.iter().any(|one| one == name))
            .map(str::to_owned)
            .collect();
        if names.is_empty() || failed.len() == self.sweep.cells.len() {
            return Vec::new();
        }
        let Ok(plan) = (self.engine).plan_sweep(self.sweep, &names, failed) else {
            return Vec::new();
        };
        // A sheet with blanks is not what the sweep says: it carries no recipe.
        let options = RunOptions {
            stamp: None,
            ..options.clone()
        };
        let (_, heard) = self.once(&plan, &options);
        heard.saved_in_order(&plan)
    }
}
