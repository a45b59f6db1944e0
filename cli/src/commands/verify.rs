//! `retouch verify`: makes a run again, from nothing, and compares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use retouch_graph::event::{EVENT_SCHEMA, Listener, Silent};
use retouch_graph::write::WorkFolder;
use retouch_graph::{
    Cancel, Change, Code, Drawn, Engine, Exists, Plan, RunError, RunOptions, RunReport, Saver,
    Settings, TieredCache, What,
};

use crate::args::{ModelsArgs, ParamArgs, SharingArgs, VerifyArgs};
use crate::commands::run;
use crate::compare::{self, Comparing, Found};
use crate::hub::{self, Mode};
use crate::lines::{DifferenceLine, Line};
use crate::output::{say, tell};
use crate::progress::Progress;
use crate::provenance::{Made, Stamps};
use crate::runs::{self, Kind, Record, Runs, Status};
use crate::sharing::{Input, Stop};
use crate::store::Store;
use crate::{Exit, Failure, session};

/// Makes a run again and compares every value with the cache's and every file with what it was.
///
/// # Errors
/// When there is no such run, what goes into it is not what it was, or something else comes out.
pub fn verify(args: &VerifyArgs) -> Result<Exit, Failure> {
    let store = Store::of(&args.cache)?;
    let record = Runs::open(&store)?.find(&args.run)?;
    if record.status != Status::Ok {
        return Err(Failure::usage(format!(
            "the run {} did not succeed, so it has no complete result to compare with: it is {}",
            record.id,
            record.status.name()
        ))
        .code(Code::NotVerifiable)
        .help("`retouch runs` lists those that are ok"));
    }
    session::threads(args.threads)?;
    let kept = store.open_disk().map_err(|error| {
        Failure::unreadable(format!("the disk cache cannot be opened: {error}"))
    })?;
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut comparing = None;
    let engine = session::engine_over(&record.asked.device, store.sources, |environment| {
        let (device, ram) = (bytes(store.device), bytes(store.ram));
        let fresh = TieredCache::new(device, ram, None, Some(environment));
        let cache = Arc::new(Comparing::new(fresh, kept));
        comparing = Some(Arc::clone(&cache));
        cache
    })?;
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    let mode = Mode::fetching(&cancel, args.json, args.telling.quiet);
    let loaded = match load(args, &record, &store, engine, mode) {
        Ok(loaded) => loaded,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(stop) => {
            if !args.json {
                tell(&format!(
                    "the inputs of the run {} can no longer be loaded:",
                    record.id
                ));
            }
            // The command line names the run; what was given to that is a file of it now.
            return Ok(stop.tell(args.json)?.max(Exit::Faults));
        }
    };
    same_made_of(&record, &loaded, args.json)?;
    // Recipes are a part of the files' bytes.
    let stamp = (record.asked.provenance)
        .then(|| Stamps::of(&loaded.engine, &loaded.input.file, loaded.made))
        .flatten();
    let folder = WorkFolder::new().map_err(|error| {
        Failure::unwritable(format!(
            "{} cannot be written: {error}",
            std::env::temp_dir().display()
        ))
    })?;
    let options = RunOptions {
        threads: usize::from(args.threads.unwrap_or(0)),
        saver: Some(Arc::new(Saver::new(folder.path(), Exists::Number))),
        stamp,
        ..RunOptions::default()
    };
    let listener: Box<dyn Listener> = match args.json {
        true => Box::new(Silent),
        false => Box::new(Progress::new(args.telling.quiet)),
    };
    let plan = &loaded.plan;
    let report = match loaded
        .engine
        .run(plan, listener.as_ref(), &cancel, &options)
    {
        Ok(report) => report,
        Err(RunError::Cancelled) => {
            return Err(Failure::interrupted("nothing was changed"));
        }
        Err(error) => return Err(Failure::of_run(&error)),
    };
    let found = comparing.map(|cache| cache.found()).unwrap_or_default();
    let files = Files::of(&record, &report);
    let first = compare::first(plan, found.differing.keys());
    told(args, &record, &found, &files, first)
}

/// A run that is loaded again.
struct Loaded {
    engine: Engine,
    plan: Plan,
    /// The workflow or the sweep.
    made: Made,
    /// What its models are read through; it holds a bundle's folder.
    input: Input,
}

fn load(
    args: &VerifyArgs,
    record: &Record,
    store: &Store,
    engine: Engine,
    mode: Mode,
) -> Result<Loaded, Stop> {
    let asked = &record.asked;
    let models = args.place.models.iter().chain(&asked.models);
    let sharing = SharingArgs {
        place: ModelsArgs {
            models: models.cloned().collect(),
        },
        offline: args.offline,
        max_unpacked: asked.max_unpacked,
    };
    // Nothing is written into the user's cache: a bundle is unpacked to a folder that goes.
    let store = store.without_disk();
    let (input, engine) = Input::open_with(&asked.file, &sharing, false, &store, engine, mode)?;
    let params = ParamArgs {
        set: asked.set.clone(),
        params: None,
    };
    let mut settings = Settings {
        folder: asked.folder.clone(),
        over: asked.over.clone(),
        sheet: asked.sheet.clone(),
        draw: Some(asked.draw),
        // What was drawn is drawn again, whatever this version would make of `draw`; watch mode also keeps seeds from one
        // run to the next.
        drawn: (record.params.iter())
            .filter(|param| param.from == "drawn")
            .filter_map(|param| {
                let seed = param.value.as_u64()?;
                Some((param.name.clone(), Drawn { seed, line: None }))
            })
            .collect(),
        ..input.settings(&params)
    };
    settings.params.extend(asked.params.iter().cloned());
    let (plan, made) = if record.kind == Kind::Sweep {
        let sweep = input.load_sweep(&engine, &settings)?;
        let plan = engine.plan_sweep(&sweep, &asked.targets, &BTreeSet::new())?;
        let made = Made::sweep(&Arc::new(sweep), &plan);
        (plan.plan, made)
    } else {
        let checked = input.load(&engine, &settings)?;
        let mut plan = engine.plan(&checked, &asked.targets)?;
        plan.save_pictures();
        (plan, Made::Workflow(Box::new(checked)))
    };
    Ok(Loaded {
        engine,
        plan,
        made,
        input,
    })
}

/// Whether what goes into the run is what it was; each difference is reported.
fn same_made_of(record: &Record, loaded: &Loaded, json: bool) -> Result<(), Failure> {
    let now = loaded.plan.record();
    if runs::digest_of(&now) == record.plan_blake3 {
        return Ok(());
    }
    let changes = (record.plan.as_ref()).map_or_else(Vec::new, |then| now.changes_since(then));
    // What a node is linked to changes because of another node, which is reported.
    let own: Vec<&Change> = (changes.iter())
        .filter(|change| !matches!(change.what, What::Input(_)))
        .collect();
    let shown = match own.is_empty() {
        true => changes.iter().collect(),
        false => own,
    };
    let texts: Vec<String> = (shown.iter())
        .map(|change| described(change, &loaded.made))
        .collect();
    if !json {
        for text in texts.iter().skip(1) {
            tell(&format!("  {text}"));
        }
    }
    let what = match &texts[..] {
        [] => "its plan is different".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    };
    Err(Failure::failed(format!(
        "the inputs of the run {} have changed: {what}",
        record.id
    ))
    .code(Code::RunChanged)
    .help(format!(
        "restore it, or make a new run; `retouch runs show {}` shows what it was",
        record.id
    )))
}

/// A change with the file that it is of, if that is known.
fn described(change: &Change, made: &Made) -> String {
    let file = match (&change.what, made) {
        (What::File(role), Made::Workflow(checked)) => {
            checked.node(&change.node).and_then(|node| {
                let read = node.reads().iter().find(|read| read.role == *role)?;
                Some(read.path.display().to_string())
            })
        }
        _ => None,
    };
    match file {
        Some(file) => format!("{change} ({file})"),
        None => change.to_string(),
    }
}

/// How the files of outputs compare.
#[derive(Debug, Default)]
struct Files {
    compared: usize,
    differing: Vec<String>,
}

impl Files {
    fn of(record: &Record, report: &RunReport) -> Self {
        let mut then: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
        for output in &record.outputs {
            let digests = then.entry(&output.output).or_default();
            digests.push(output.blake3.as_deref());
        }
        let mut files = Self::default();
        for output in &report.outputs {
            // A sweep that was resumed recorded what it made, not what was there.
            let Some(then) = then.get(output.name.as_str()) else {
                continue;
            };
            let mut differs = then.len() != output.saved.len();
            for (then, now) in then.iter().zip(&output.saved) {
                if let Some(then) = then {
                    files.compared += 1;
                    differs |= !same(&now.path, then);
                }
            }
            if differs {
                files.differing.push(output.name.clone());
            }
        }
        files
    }
}

fn same(file: &Path, digest: &str) -> bool {
    runs::digest(file).is_ok_and(|now| now == digest)
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn told(
    args: &VerifyArgs,
    record: &Record,
    found: &Found,
    files: &Files,
    first: Option<DifferenceLine>,
) -> Result<Exit, Failure> {
    let values_differ: usize = found.differing.values().sum();
    let equal = values_differ == 0 && files.differing.is_empty();
    let compared = format!(
        "{} and {} compared",
        plural(found.compared, "value"),
        plural(files.compared, "file")
    );
    let mut rest = Vec::new();
    if found.gone > 0 {
        rest.push(format!(
            "{} no longer in the cache",
            plural(found.gone, "value")
        ));
    }
    if found.damaged > 0 {
        rest.push(format!(
            "{} damaged in the cache",
            plural(found.damaged, "value")
        ));
    }
    let rest = match rest.is_empty() {
        true => String::new(),
        false => format!(" ({})", rest.join(", ")),
    };
    if args.json {
        let line = Line::Verified {
            schema: EVENT_SCHEMA,
            run: record.id.clone(),
            equal,
            values: found.compared,
            values_differ,
            values_gone: found.gone,
            values_damaged: found.damaged,
            outputs: files.compared,
            outputs_differ: files.differing.clone(),
            first: first.clone(),
        };
        line.say()?;
    } else if equal {
        say(&format!("{}: equal; {compared}{rest}", record.id))?;
    } else {
        say(&format!(
            "{}: {} of {compared} differ{rest}",
            record.id,
            values_differ + files.differing.len(),
        ))?;
        if let Some(first) = &first {
            say(&format!("first  {}", place(first)))?;
        }
        for output in &files.differing {
            say(&format!("output {output}"))?;
        }
    }
    if equal {
        return Ok(Exit::Done);
    }
    let message = match &first {
        Some(first) => format!("the run gives different results, first at {}", place(first)),
        None => format!(
            "the run gives different results: {}; the step is unknown, as no value in the cache differs",
            files.differing.join(", ")
        ),
    };
    Err(Failure::failed(message)
        .code(Code::RunDiffers)
        .help("`retouch explain R1304` lists possible causes"))
}

/// Where the first difference is, for people.
fn place(first: &DifferenceLine) -> String {
    let key = first.key.short();
    match (first.step, first.of) {
        (Some(step), Some(of)) => {
            let what = match first.what {
                "call" => "what it keeps of its call",
                _ => "the state after it",
            };
            format!("{}, step {step} of {of}: {what} ({key})", first.node)
        }
        _ => format!("{}: an output of it ({key})", first.node),
    }
}
