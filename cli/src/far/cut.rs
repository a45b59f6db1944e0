//! What a run is made of: the sweep loaded again, its fingerprint, and the shapes that its cells are cut into chunks by.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use retouch_cluster::chunks::Shape;
use retouch_graph::{Code, Engine, Key, Settings, Sweep, SweepPlan};

use super::run::Description;
use crate::Failure;
use crate::args::{ModelsArgs, ParamArgs, SharingArgs};
use crate::hub::Mode;
use crate::sharing::{Input, Stop};
use crate::store::Store;

/// A run's sweep, loaded on some machine.
pub struct Loaded {
    /// The engine that reads what the workflow reads.
    pub engine: Engine,
    /// The workflow, the sweep or the bundle.
    pub input: Input,
    /// The sweep.
    pub sweep: Arc<Sweep>,
}

/// Loads what a run sweeps, as it was asked for: from its own path, or from `file`.
///
/// # Errors
/// When it cannot be loaded, or is not what was submitted.
pub fn load(
    about: &Description,
    file: Option<&Path>,
    models: &ModelsArgs,
    engine: Engine,
    store: &Store,
    mode: Mode,
) -> Result<Loaded, Stop> {
    let asked = &about.asked;
    let folders = models.models.iter().chain(&asked.models);
    let sharing = SharingArgs {
        place: ModelsArgs {
            // Those of the machine that submitted need not be on this one.
            models: folders.filter(|folder| folder.is_dir()).cloned().collect(),
        },
        offline: about.offline,
        max_unpacked: asked.max_unpacked,
    };
    let path = file.unwrap_or(&asked.file);
    let (input, engine) = Input::open_with(path, &sharing, about.locked, store, engine, mode)?;
    let params = ParamArgs {
        set: asked.set.clone(),
        params: None,
    };
    let mut settings = Settings {
        folder: asked.folder.clone(),
        over: asked.over.clone(),
        sheet: asked.sheet.clone(),
        draw: Some(asked.draw),
        ..input.settings(&params)
    };
    settings.params.extend(asked.params.iter().cloned());
    let sweep = input.load_sweep(&engine, &settings)?;
    let loaded = Loaded {
        engine,
        input,
        sweep: Arc::new(sweep),
    };
    let now = made(&loaded.engine, &loaded.sweep, &asked.targets, |_| Ok(()))?;
    if now.fingerprint != about.fingerprint || loaded.sweep.cells.len() != about.cells {
        return Err(Failure::failed(format!(
            "{} or something that it reads is not what it was when the run was submitted",
            path.display()
        ))
        .code(Code::WorkerDiffers)
        .help("bring back the files as they were, name a copy with `--file`, or begin a new run; `retouch lock` says which file differs")
        .into());
    }
    Ok(loaded)
}

/// Cells that are planned at a time: the plan of all of many thousands would take a gigabyte.
const BATCH: usize = 200;

/// What a run is made of, as submitting and joining it compute it.
pub struct Made {
    /// The BLAKE3 of all that its plan makes: keys, and where they are saved. Keys do not depend on the machine.
    pub fingerprint: String,
    /// What the cells are made of, as far as they may share it.
    pub shapes: Vec<(usize, Shape)>,
}

/// Plans all cells, some at a time, with keys that do not depend on the machine; each plan is shown to `look`.
///
/// # Errors
/// As planning and `look` have them.
pub fn made(
    engine: &Engine,
    sweep: &Sweep,
    targets: &[String],
    mut look: impl FnMut(&SweepPlan) -> Result<(), Stop>,
) -> Result<Made, Stop> {
    let engine = engine.clone().with_numerics("any");
    let cells = sweep.cells.len();
    let mut hasher = blake3::Hasher::new();
    let mut all: Vec<(usize, Shape)> = Vec::with_capacity(cells);
    for first in (0..cells).step_by(BATCH) {
        let batch = first..(first + BATCH).min(cells);
        let without: BTreeSet<usize> = (0..cells).filter(|cell| !batch.contains(cell)).collect();
        let plan = engine.plan_sweep(sweep, targets, &without)?;
        look(&plan)?;
        fingerprint(&plan, &mut hasher);
        let planned = shapes(&plan, cells).into_iter();
        all.extend(planned.skip(batch.start).take(batch.len()));
    }
    Ok(Made {
        fingerprint: hasher.finalize().to_hex().to_string(),
        shapes: all,
    })
}

/// Takes in all that a plan makes.
fn fingerprint(plan: &SweepPlan, hasher: &mut blake3::Hasher) {
    for (output, save) in plan.saves.iter().enumerate() {
        if let Some(key) = plan.key(output) {
            hasher.update(&key.0);
        }
        hasher.update(save.as_deref().unwrap_or_default().as_bytes());
        hasher.update(b"\n");
    }
}

/// Eight bytes of a key, which is a digest.
fn number(key: &Key) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = key.0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What the cells are made of, as far as they may share it.
pub fn shapes(plan: &SweepPlan, cells: usize) -> Vec<(usize, Shape)> {
    let mut shapes = vec![Shape::default(); cells];
    for (task, of) in plan.plan.tasks().zip(&plan.cells) {
        let loads = task.op().starts_with("load_") || task.op().starts_with("apply_");
        let steps: Vec<u64> = match task.chain() {
            Some(chain) => chain
                .states
                .iter()
                .filter_map(|keys| keys.first().map(number))
                .collect(),
            None if task.device() || loads => vec![number(&task.key())],
            None => Vec::new(),
        };
        for cell in of {
            if let Some(shape) = shapes.get_mut(*cell) {
                match loads {
                    true => shape.models.extend(&steps),
                    false => shape.steps.extend(&steps),
                }
            }
        }
    }
    shapes.into_iter().enumerate().collect()
}

/// The outputs that a worker makes of each cell: those that are asked for, and those that the contact sheet and the report are made of.
pub fn outputs(sweep: &Sweep, targets: &[String]) -> Vec<String> {
    let shared: BTreeSet<&str> = sweep.shared_outputs().collect();
    let mut wanted: Vec<String> = Vec::new();
    for target in targets {
        let names = match shared.contains(target.as_str()) {
            true => sweep.parts_of(target),
            false => vec![target.as_str()],
        };
        for name in names {
            if !wanted.iter().any(|one| one == name) {
                wanted.push(name.to_owned());
            }
        }
    }
    wanted
}

/// Which outputs' values are put into the store: those that are saved, or that the contact sheet or the report is made of.
pub fn kept(sweep: &Sweep, plan: &SweepPlan) -> Vec<bool> {
    let parts: BTreeSet<&str> = (sweep.shared_outputs())
        .flat_map(|shared| sweep.parts_of(shared))
        .collect();
    (plan.outputs.iter().zip(&plan.saves))
        .map(|((cell, name), save)| {
            cell.is_some() && (save.is_some() || parts.contains(name.as_str()))
        })
        .collect()
}
