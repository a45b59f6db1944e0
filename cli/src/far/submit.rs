//! `retouch sweep --on`: describes a run in a store, cuts it into chunks, and starts workers.

use std::time::{SystemTime, UNIX_EPOCH};

use retouch_cluster::probe::{probe, unique};
use retouch_cluster::{Objects, chunks, slurm};
use retouch_graph::{Cancel, Saver, Settings};

use super::collect::{self, Collect};
use super::cut;
use super::failure;
use super::launch::{self, Launch, Launched};
use super::run::{Description, Run};
use crate::args::{SweepArgs, Where};
use crate::commands::run as running;
use crate::hub::{self, Mode};
use crate::output::tell;
use crate::runs::Asked;
use crate::sharing::{Input, Stop};
use crate::store::Store;
use crate::{Exit, Failure, clock, fresh_draw, session, table};

/// Submits a sweep.
///
/// # Errors
/// When it cannot be loaded, the store cannot be relied on, or workers cannot be started.
pub fn submit(args: &SweepArgs, place: Where) -> Result<Exit, Failure> {
    check(args, place)?;
    let drawing = &args.drawing;
    let store = Store::of(&drawing.cache)?;
    let cancel = Cancel::new();
    running::interrupts(&cancel)?;
    let far = super::store(&args.store, &drawing.out)?;
    let (about, chunks) = match describe(args, place, &store, &cancel) {
        Ok(described) => described,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(stop) => return stop.tell(drawing.json),
    };
    let launch = Launch {
        on: &args.far,
        place,
        workers: about.workers,
        out: &drawing.out,
        options: launch::options(&drawing.cache, drawing.telling.quiet),
        threads: drawing.device.threads,
        dry_run: args.dry_run,
    };
    if args.dry_run {
        // Nothing is written: what would be is printed.
        let run = Run {
            store: far,
            about,
            chunks,
        };
        tell(&format!(
            "{} cells in {} chunks",
            run.about.cells,
            run.chunks.len()
        ));
        if place != Where::Local {
            launch.start(&run, &cancel)?;
        }
        return Ok(Exit::Done);
    }
    probe(&far).map_err(|fault| failure(&fault))?;
    running::writable(&drawing.out)?;
    let run = Run::create(far, about, chunks)?;
    tell(&format!(
        "run {}: {} cells in {} chunks, in the store {}",
        run.about.run,
        run.about.cells,
        run.chunks.len(),
        run.store.shown()
    ));
    follow(
        &run,
        &launch,
        &cancel,
        drawing.json,
        drawing.telling.quiet,
        &args.drawing.cache,
    )
}

/// Starts the workers of a run; when they were waited for, collects.
///
/// # Errors
/// As starting and collecting have them.
pub fn follow(
    run: &Run,
    launch: &Launch<'_>,
    cancel: &Cancel,
    json: bool,
    quiet: bool,
    cache: &crate::args::CacheArgs,
) -> Result<Exit, Failure> {
    if launch.start(run, cancel)? == Launched::Ended {
        return collect::run(&Collect {
            run: &run.about.run,
            store: run.store.clone(),
            out: Some(launch.out),
            file: None,
            models: &crate::args::ModelsArgs::default(),
            cache,
            cancel,
            json,
            quiet,
        });
    }
    let shown = slurm::quoted(&run.store.shown());
    tell(&format!(
        "`retouch sweep status {id} --store {shown}` says how far it is, `retouch sweep collect {id} --store {shown}` builds the files",
        id = run.about.run
    ));
    Ok(Exit::Done)
}

/// What cannot be together.
fn check(args: &SweepArgs, place: Where) -> Result<(), Failure> {
    let wrong = |what: &str, help: &str| Err(Failure::usage(what).help(help));
    if let Some(path) = &args.table
        && !table::is_known(path)
    {
        return wrong(
            &format!(
                "the table {} has no ending that says how to write it",
                path.display()
            ),
            "end it in `.csv` or `.json`",
        );
    }
    if args.resume {
        return wrong(
            "`--resume` does not go with `--on`",
            "go on with a run: `retouch sweep resume RUN`",
        );
    }
    if args.cells.is_some() {
        return wrong(
            "`--cells` does not go with `--on`",
            "workers share the cells themselves",
        );
    }
    if args.drawing.preview.preview.is_some() {
        return wrong(
            "`--preview` does not go with `--on`",
            "each worker would write to the same file",
        );
    }
    let device = &args.drawing.device.numerics.device;
    if device.contains(',') || !device.starts_with("cpu:") && device.contains(':') {
        return wrong(
            "with `--on` a worker has one device, without a number",
            "give `--device cuda`, and choose cards by CUDA_VISIBLE_DEVICES",
        );
    }
    launch::fits(&args.far, place)
}

/// A name for a run: its time, and four letters for those of the same second.
fn name() -> String {
    let (time, _) = clock::compact(SystemTime::now());
    format!("{time}-{}", &unique()[..4])
}

/// Loads the sweep, and says what a run of it is. No device is needed: keys are compared with those of workers without what
/// depends on it.
fn describe(
    args: &SweepArgs,
    place: Where,
    store: &Store,
    cancel: &Cancel,
) -> Result<(Description, Vec<Vec<usize>>), Stop> {
    let drawing = &args.drawing;
    let engine = session::caching_engine("cpu", store)?;
    let mode = Mode::fetching(cancel, drawing.json, drawing.telling.quiet)
        .permitting(args.fetching.fetch, &args.fetching.token_for);
    let (sharing, locked) = (&drawing.locked.sharing, drawing.locked.locked);
    let (input, engine) = Input::open_with(&args.file, sharing, locked, store, engine, mode)?;
    let draw = fresh_draw();
    let settings = Settings {
        over: args.over.clone(),
        sheet: args.sheet.clone(),
        draw: Some(draw),
        ..input.settings(&drawing.params)
    };
    let sweep = input.load_sweep(&engine, &settings)?;
    session::warn_all(sweep.warnings(), drawing.json)?;
    let saver = Saver::new(&drawing.out, running::exists(drawing.existing.exists));
    let made = cut::made(&engine, &sweep, &args.targets, |plan| {
        Ok(running::can_save(&saver, &plan.plan)?)
    })?;
    engine.files().flush();
    let device = drawing.device.numerics.spec();
    let workers = args.far.workers.unwrap_or_else(|| launch::workers(&device));
    let asked = Asked {
        over: args.over.clone(),
        sheet: args.sheet.clone(),
        draw,
        provenance: !drawing.provenance.no_provenance,
        ..Asked::new(
            &args.file,
            &drawing.params,
            sharing,
            &device,
            &drawing.out,
            &args.targets,
        )
    };
    let cells = sweep.cells.len();
    let about = Description {
        schema: String::new(),
        run: name(),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        submitted: clock::rfc3339(SystemTime::now().max(UNIX_EPOCH)),
        asked,
        table: args
            .table
            .as_deref()
            .and_then(|path| std::path::absolute(path).ok()),
        exists: drawing.existing.exists,
        locked,
        offline: sharing.offline,
        workflow: sweep.name().to_owned(),
        cells,
        fingerprint: made.fingerprint,
        term: args.expiry.saturating_mul(1000),
        on: place,
        workers,
    };
    Ok((about, chunks::cut(made.shapes, workers)))
}
