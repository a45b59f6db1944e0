//! `retouch-dev bench`: the demo model, the main workflow and the engine, on this machine; a model's networks; the kernels.

mod kernels;
mod load;
mod model;
mod train;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use retouch_cli::commands::{lsp, new};
use retouch_cli::session;
use retouch_common::output::{say, say_json};
use retouch_common::{Exit, Failure};
use retouch_diffusion::networks::unet::{Call, Text};
use retouch_diffusion::sampling::control::{Branch, Rows, Untouched};
use retouch_graph::event::Listener;
use retouch_graph::write::WorkFolder;
use retouch_graph::{
    Cache, Cancel, Context, DiskCache, Engine, HostCache, Key, NoCache, Node, NodeError, Outputs,
    Payload, Registry, RunOptions, Settings, Silent, TieredCache, ports,
};
use retouch_lsp::{Workspace, uri_of};
use retouch_nodes::Runtime;
use retouch_nodes::payload::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::BenchArgs;
use load::load_model;

/// Nodes of the graph that the engine is measured on.
const NODES: usize = 10_000;
/// Nodes of the file that the language server is measured on.
const EDITED_NODES: usize = 200;

/// A number, for the engine's benchmark.
struct Number(f64);

impl Payload for Number {
    const TYPE: &'static str = "number";
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
    fn summary(&self) -> String {
        self.0.to_string()
    }
}

/// Adds to a number.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Add {
    /// What is added.
    by: f64,
}

ports! {
    /// What `add` takes.
    pub struct AddInputs {
        /// A number.
        pub number: Option<Arc<Number>>,
    }
}

ports! {
    /// What `add` gives.
    pub struct AddOutputs {
        /// The sum.
        pub number: Arc<Number>,
    }
}

impl Node for Add {
    const OP: &'static str = "add";
    const VERSION: u32 = 1;
    type Inputs = AddInputs;
    type Outputs = AddOutputs;
    fn run(&self, inputs: AddInputs, _: &Context<'_>) -> Result<AddOutputs, NodeError> {
        let number = inputs.number.map_or(0.0, |number| number.0);
        Ok(AddOutputs {
            number: Arc::new(Number(number + self.by)),
        })
    }
}

/// Seconds of each run, sorted; `f` gives the seconds that count.
fn measure(runs: u16, mut f: impl FnMut() -> Result<f64, Failure>) -> Result<Vec<f64>, Failure> {
    f()?; // the first is not counted: it loads weights and warms caches
    let mut seconds = (0..runs).map(|_| f()).collect::<Result<Vec<_>, _>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

struct Row {
    what: &'static str,
    unit: &'static str,
    seconds: Vec<f64>,
    factor: f64,
}

impl Row {
    fn value(&self, index: usize) -> f64 {
        self.seconds.get(index).copied().unwrap_or(0.0) * self.factor
    }
    fn median(&self) -> f64 {
        self.value(self.seconds.len() / 2)
    }
}

fn broken(what: &str) -> impl Fn(retouch_graph::Problems) -> Failure + '_ {
    move |problems| Failure::failed(format!("{what} does not check: {problems}"))
}

/// Measures and prints.
///
/// # Errors
/// When the device cannot be used or something that is measured fails.
pub fn bench(args: &BenchArgs) -> Result<Exit, Failure> {
    session::threads(args.device.threads)?;
    if args.kernels {
        return kernels::bench(args);
    }
    if let Some(model) = &args.model {
        return match args.train {
            Some(method) => train::bench(args, model, method),
            None => model::bench(args, model),
        };
    }
    #[cfg(feature = "view")]
    if args.view {
        return view(args);
    }
    let engine = session::engine_for(&args.device)?.with_cache(Arc::new(NoCache));
    let runtime = session::runtime_for(&args.device)?;
    // The copy of the demo model is removed, whatever happens.
    let draft = temporary()?;
    let folder = draft.path().to_owned();
    let result = if args.workflow {
        let written = new::write(&folder);
        written.and_then(|()| Ok((vec![loaded(args, &engine, &folder)?], Vec::new())))
    } else {
        measure_all(args, &engine, &runtime, &folder)
            .and_then(|rows| Ok((rows, edits(args, &engine, &folder)?)))
    };
    drop(draft);
    let (rows, edits) = result?;
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({"what": row.what, "unit": row.unit, "median": row.median(),
                       "min": row.value(0), "max": row.value(row.seconds.len().saturating_sub(1))})
            })
            .collect();
        let edits: Vec<_> = edits
            .iter()
            .map(|edit| json!({"edit": edit.what, "unet_calls": edit.calls, "seconds": edit.median(), "ratio": edit.ratio}))
            .collect();
        say_json(
            &json!({"threads": rayon::current_num_threads(), "runs": args.runs, "rows": rows, "edits": edits})
                .to_string(),
        )?;
    } else {
        say(&format!(
            "{} threads, {} runs each: median (min to max)",
            rayon::current_num_threads(),
            args.runs
        ))?;
        for row in &rows {
            say(&format!(
                "{:56} {:9.2} {} ({:.2} to {:.2})",
                row.what,
                row.median(),
                row.unit,
                row.value(0),
                row.value(row.seconds.len().saturating_sub(1))
            ))?;
        }
        if !edits.is_empty() {
            say("layout-and-retouch.yaml again after an edit, the cache in memory:")?;
        }
        for edit in &edits {
            say(&format!(
                "  {:44} {:4} U-Net calls {:7.2} s  {:5.3} of the cold run",
                edit.what,
                edit.calls,
                edit.median(),
                edit.ratio
            ))?;
        }
    }
    Ok(Exit::Done)
}

/// A folder that is removed when it is done with.
fn temporary() -> Result<WorkFolder, Failure> {
    WorkFolder::new().map_err(|error| {
        Failure::unwritable(format!(
            "{} cannot be written: {error}",
            std::env::temp_dir().display()
        ))
    })
}

/// Measures the viewer, the sampler's loss on vanilla.yaml.
#[cfg(feature = "view")]
fn view(args: &BenchArgs) -> Result<Exit, Failure> {
    let engine = session::engine_for(&args.device)?.with_cache(Arc::new(NoCache));
    let draft = temporary()?;
    let folder = draft.path().to_owned();
    new::write(&folder)
        .and_then(|()| {
            let file = folder.join("workflows").join("vanilla.yaml");
            let checked = engine
                .load(&file, &Settings::default())
                .map_err(broken("vanilla.yaml"))?;
            let plan = engine.plan(&checked, &[]).map_err(broken("vanilla.yaml"))?;
            retouch_view::bench::bench(&engine, &plan, args.runs, args.json)
        })
        .map(|()| Exit::Done)
}

fn measure_all(
    args: &BenchArgs,
    engine: &Engine,
    runtime: &Runtime,
    folder: &Path,
) -> Result<Vec<Row>, Failure> {
    new::write(folder)?;
    let mut rows = Vec::new();

    let vanilla = folder.join("workflows").join("vanilla.yaml");
    let checked = engine
        .load(&vanilla, &Settings::default())
        .map_err(broken("vanilla.yaml"))?;
    let model = load_model(engine, &checked)?;
    rows.push(Row {
        what: "U-Net call of the demo model, batch 2, 16x16 latent",
        unit: "ms",
        seconds: measure(args.runs.saturating_mul(4), || {
            unet_call(&model, &runtime.device)
        })?,
        factor: 1e3,
    });

    let file = folder.join("workflows").join("layout-and-retouch.yaml");
    let checked = engine
        .load(&file, &Settings::default())
        .map_err(broken("the main workflow"))?;
    let plan = engine
        .plan(&checked, &[])
        .map_err(broken("the main workflow"))?;
    rows.push(Row {
        what: "layout-and-retouch.yaml, 50 steps, nothing cached",
        unit: "s",
        seconds: measure(args.runs, || {
            let start = Instant::now();
            engine
                .run(&plan, &Silent, &Cancel::new(), &RunOptions::default())
                .map_err(|e| Failure::failed(e.to_string()))?;
            Ok(start.elapsed().as_secs_f64())
        })?,
        factor: 1.0,
    });

    rows.push(loaded(args, engine, folder)?);
    rows.push(keys(args, engine, &file)?);
    rows.push(cached_process(args, folder)?);
    rows.push(full_disk(engine, &file, folder)?);

    let trivial = Engine::new(Registry::new().with::<Add>()).with_cache(Arc::new(NoCache));
    let text = chain(NODES);
    let load = || {
        let checked = trivial
            .load_str("chain.yaml", &text, &Settings::default())
            .map_err(broken("the chain"))?;
        trivial.plan(&checked, &[]).map_err(broken("the chain"))
    };
    rows.push(Row {
        what: "check and plan of 10000 trivial nodes (goal: 100 ms)",
        unit: "ms",
        seconds: measure(args.runs, || {
            let start = Instant::now();
            load()?;
            Ok(start.elapsed().as_secs_f64())
        })?,
        factor: 1e3,
    });
    let plan = load()?;
    rows.push(Row {
        what: "executor overhead a node (goal: 50 us)",
        unit: "us",
        seconds: measure(args.runs, || {
            let start = Instant::now();
            trivial
                .run(&plan, &Silent, &Cancel::new(), &RunOptions::default())
                .map_err(|e| Failure::failed(e.to_string()))?;
            Ok(start.elapsed().as_secs_f64())
        })?,
        factor: 1e6 / NODES as f64,
    });
    rows.extend(editor(
        args,
        engine,
        &folder.join("workflows").join("long.yaml"),
    )?);
    Ok(rows)
}

/// Keeps models from run to run, and everything else as long as it lives.
struct WithModels {
    models: Arc<HostCache>,
    rest: HostCache,
}

impl Cache for WithModels {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.models.get(key).or_else(|| self.rest.get(key))
    }
    fn place(&self, key: &Key) -> Option<&'static str> {
        self.models.place(key).or_else(|| self.rest.place(key))
    }
    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        let mut values = outputs.values();
        if values.any(|value| value.downcast::<Model>().is_some()) {
            self.models.put(key, outputs, seconds);
        } else {
            self.rest.put(key, outputs, seconds);
        }
    }
}

/// The main workflow in a process that has its models loaded and knows nothing else of it.
fn loaded(args: &BenchArgs, engine: &Engine, folder: &Path) -> Result<Row, Failure> {
    let file = folder.join("workflows").join("layout-and-retouch.yaml");
    let models = Arc::new(HostCache::new(4 << 30));
    let seconds = measure(args.runs, || {
        let engine = engine.clone().with_cache(Arc::new(WithModels {
            models: models.clone(),
            rest: HostCache::new(2 << 30),
        }));
        let start = Instant::now();
        let broken = broken("the main workflow");
        let checked = engine.load(&file, &Settings::default()).map_err(&broken)?;
        let plan = engine.plan(&checked, &[]).map_err(&broken)?;
        engine
            .run(&plan, &Silent, &Cancel::new(), &RunOptions::default())
            .map_err(|e| Failure::failed(e.to_string()))?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    Ok(Row {
        what: "layout-and-retouch.yaml, 50 steps, models loaded",
        unit: "s",
        seconds,
        factor: 1.0,
    })
}

/// The language server on a file of 200 nodes, without the pipe: from a key to the faults, completion, help.
fn editor(args: &BenchArgs, engine: &Engine, file: &Path) -> Result<Vec<Row>, Failure> {
    use lsp_types::{Position, Range, TextDocumentContentChangeEvent};
    let text = long_file(EDITED_NODES);
    let uri = uri_of(file).ok_or_else(|| Failure::failed("the temporary folder has no URI"))?;
    let mut workspace = Workspace::new(engine, &lsp::wrapped);
    workspace.open(uri.clone(), "yaml", 0, text.clone());
    let faults = |workspace: &mut Workspace| -> usize {
        let told = workspace.diagnose();
        told.iter().map(|one| one.diagnostics.len()).sum()
    };
    if faults(&mut workspace) > 0 {
        return Err(Failure::failed(
            "the file for the language server has faults",
        ));
    }
    // The prompt of the last sampler, far down, and the reference above it.
    let line = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains("op: sample"))
        .last()
        .map_or(0, |(at, _)| at);
    let line = u32::try_from(line).unwrap_or(0);
    let column = |offset: &str| {
        let text = text.lines().nth(line as usize).unwrap_or("");
        text.find(offset).and_then(|at| u32::try_from(at).ok())
    };
    let place = |offset: &str, into: u32| {
        column(offset)
            .map(|at| Position::new(line, at + into))
            .ok_or_else(|| Failure::failed(format!("the file has no `{offset}`")))
    };
    let (prompt, reference, op) = (place("a sks", 0)?, place("$base", 1)?, place("sample", 1)?);
    let mut version = 0;
    let keys = measure(args.runs.saturating_mul(4), || {
        version += 1;
        let change = TextDocumentContentChangeEvent {
            range: Some(Range::new(prompt, prompt)),
            range_length: None,
            text: "x".to_owned(),
        };
        let start = Instant::now();
        workspace.change(&uri, version, vec![change]);
        let faults = faults(&mut workspace);
        let seconds = start.elapsed().as_secs_f64();
        if faults > 0 {
            return Err(Failure::failed("a letter in a prompt is a fault"));
        }
        Ok(seconds)
    })?;
    // Each question is the first one about a new text.
    let mut asked = |ask: &dyn Fn(&Workspace) -> bool| {
        measure(args.runs.saturating_mul(4), || {
            version += 1;
            let change = TextDocumentContentChangeEvent {
                range: Some(Range::new(prompt, prompt)),
                range_length: None,
                text: "x".to_owned(),
            };
            workspace.change(&uri, version, vec![change]);
            let start = Instant::now();
            let answered = ask(&workspace);
            let seconds = start.elapsed().as_secs_f64();
            if answered {
                Ok(seconds)
            } else {
                Err(Failure::failed("the language server has no answer"))
            }
        })
    };
    let completion = asked(&|workspace| {
        let list = workspace.complete(&uri, reference);
        list.is_some_and(|list| list.items.len() >= EDITED_NODES)
    })?;
    let hover = asked(&|workspace| workspace.hover(&uri, op).is_some())?;
    let rows = [
        (
            "lsp: from a key to the faults, 200 nodes (goal: 20 ms)",
            keys,
        ),
        (
            "lsp: completion of a reference, 200 nodes (goal: 20 ms)",
            completion,
        ),
        ("lsp: help for an op, 200 nodes (goal: 20 ms)", hover),
    ];
    Ok(rows
        .into_iter()
        .map(|(what, seconds)| Row {
            what,
            unit: "ms",
            seconds,
            factor: 1e3,
        })
        .collect())
}

/// A workflow of that many nodes of the real ops: two models, and samples that are decoded, enlarged and laid out.
fn long_file(nodes: usize) -> String {
    let mut text = String::from(
        "schema: retouch/v1\nparams:\n  seed: {type: seed, default: 1}\n  steps: {type: int, default: 4, min: 1, max: \
         999}\nnodes:\n  base: {op: load_model, path: ../models/world}\n  personal: {op: load_model, path: \
         ../models/world-teddy}\n",
    );
    let mut outputs = String::from("outputs:\n");
    for i in 0..nodes.saturating_sub(2) / 3 {
        let model = if i % 2 == 0 { "personal" } else { "base" };
        let _ = writeln!(
            text,
            "  draw{i}: {{op: sample, model: $base, prompt: \"a sks teddy bear, number {i}\", steps: $params.steps, seed: \
             $params.seed}}\n  picture{i}: {{op: decode, model: ${model}, latent: $draw{i}}}\n  large{i}: {{op: \
             resize_image, image: $picture{i}, scale: 2}}"
        );
        let _ = writeln!(
            outputs,
            "  o{i}: {{value: $large{i}, save: \"{{workflow}}/{{seed}}-{i}.png\"}}"
        );
    }
    text + &outputs
}

/// The plan of the main workflow, divided by the keys in it.
fn keys(args: &BenchArgs, engine: &Engine, file: &Path) -> Result<Row, Failure> {
    let checked = engine
        .load(file, &Settings::default())
        .map_err(broken("the main workflow"))?;
    let mut count = 1;
    let mut seconds = measure(args.runs, || {
        let start = Instant::now();
        let plan = engine
            .plan(&checked, &[])
            .map_err(broken("the main workflow"))?;
        let seconds = start.elapsed().as_secs_f64();
        let chains = plan.tasks().filter_map(|task| task.chain());
        let of_chains: usize = chains
            .map(|chain| {
                let steps = chain.steps.iter().map(|step| {
                    let needs = step.needs.iter().chain(&step.looks);
                    step.offers.len() + needs.map(|need| 1 + need.items.len()).sum::<usize>()
                });
                steps.sum::<usize>() + chain.states.iter().map(Vec::len).sum::<usize>()
            })
            .sum();
        count = plan.len() + of_chains;
        Ok(seconds)
    })?;
    seconds.iter_mut().for_each(|s| *s /= count as f64);
    Ok(Row {
        what: "a key, all of the plan counted (goal: 10 us)",
        unit: "us",
        seconds,
        factor: 1e6,
    })
}

/// A process that finds everything in the disk cache.
fn cached_process(args: &BenchArgs, folder: &Path) -> Result<Row, Failure> {
    let program = match &args.retouch {
        Some(program) => program.clone(),
        None => std::env::current_exe()
            .map_err(|e| Failure::failed(e.to_string()))?
            .with_file_name(format!("retouch{}", std::env::consts::EXE_SUFFIX)),
    };
    if !program.is_file() {
        return Err(
            Failure::usage(format!("there is no program {}", program.display()))
                .help("build it, or name it with `--retouch FILE`"),
        );
    }
    let run = || -> Result<f64, Failure> {
        let start = Instant::now();
        let status = Command::new(&program)
            .arg("run")
            .arg(folder.join("workflows").join("compare.yaml"))
            .args(["--quiet", "--cache-dir"])
            .arg(folder.join("cache"))
            .arg("--out")
            .arg(folder.join("out"))
            .env("RETOUCH_CONFIG", "")
            .env_remove("RETOUCH_NO_CACHE")
            .stdout(Stdio::null())
            .status()
            .map_err(|e| Failure::failed(e.to_string()))?;
        if status.success() {
            Ok(start.elapsed().as_secs_f64())
        } else {
            Err(Failure::failed("compare.yaml did not run"))
        }
    };
    Ok(Row {
        what: "compare.yaml, all of it known, process start to end (goal: 0.3 s)",
        unit: "s",
        seconds: measure(args.runs, run)?,
        factor: 1.0,
    })
}

/// The most that a disk cache with a budget of 64 MiB holds while more than that is put into it.
fn full_disk(engine: &Engine, file: &Path, folder: &Path) -> Result<Row, Failure> {
    const BUDGET: u64 = 64 << 20;
    let place = folder.join("full");
    let disk = DiskCache::open(&place, BUDGET, retouch_nodes::payload::decoders())
        .map_err(|e| Failure::failed(e.to_string()))?;
    let engine = engine
        .clone()
        .with_cache(Arc::new(TieredCache::new(0, 0, Some(disk), None)));
    let watch = Watch {
        folder: place,
        most: AtomicU64::new(0),
    };
    // One thread, so that nothing is written while the folder is looked at.
    let options = RunOptions {
        threads: 1,
        ..RunOptions::default()
    };
    for seed in ["seed=1", "seed=2"] {
        let settings = Settings {
            set: vec![seed.to_owned()],
            ..Settings::default()
        };
        let checked = engine
            .load(file, &settings)
            .map_err(broken("the main workflow"))?;
        let plan = engine
            .plan(&checked, &[])
            .map_err(broken("the main workflow"))?;
        engine
            .run(&plan, &watch, &Cancel::new(), &options)
            .map_err(|e| Failure::failed(e.to_string()))?;
    }
    Ok(Row {
        what: "the most that a disk cache of 64 MiB held, 132 MiB put into it",
        unit: "MiB",
        seconds: vec![watch.most.into_inner() as f64],
        factor: 1.0 / f64::from(1 << 20),
    })
}

/// Looks at the size of a folder at every event.
struct Watch {
    folder: PathBuf,
    most: AtomicU64,
}

impl Listener for Watch {
    fn event(&self, _: &retouch_graph::Event) {
        let mut bytes = 0;
        let mut open = vec![self.folder.clone()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(of) if of.is_dir() => open.push(entry.path()),
                    Ok(of) => bytes += of.len(),
                    Err(_) => {}
                }
            }
        }
        self.most.fetch_max(bytes, Ordering::Relaxed);
    }
}

/// What an edit of the main workflow costs after a cold run.
struct Edit {
    what: &'static str,
    calls: u64,
    seconds: Vec<f64>,
    ratio: f64,
}

impl Edit {
    fn median(&self) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
    }
}

/// Edits of the main workflow: what is replaced in its text, and by what.
const EDITS: [(&str, &str, &str); 10] = [
    ("cold", "", ""),
    (
        "the name of a saved file",
        "{seed}-raw.png",
        "{seed}-small.png",
    ),
    (
        "the size of the enlarged picture",
        "image: $retouch.picture, scale: 6",
        "image: $retouch.picture, scale: 4",
    ),
    (
        "structure_until 40% -> 50%",
        "      subject:",
        "      structure_until: 50%\n      subject:",
    ),
    (
        "blend_steps (and start_step) 20% -> 24%",
        "type: steps, default: 20%",
        "type: steps, default: 24%",
    ),
    (
        "start_step alone 20% -> 16%",
        "start_step: $params.blend_steps",
        "start_step: 16%",
    ),
    (
        "threshold otsu -> 0.4",
        "      subject:",
        "      threshold: 0.4\n      subject:",
    ),
    (
        "the prompt of stage 2 alone",
        "      prompt: \"a sks",
        "      prompt: \"a small sks",
    ),
    ("seed", "type: seed, default: 43", "type: seed, default: 44"),
    ("reference photo", "teddy/01.png", "teddy/02.png"),
];

fn edits(args: &BenchArgs, engine: &Engine, folder: &Path) -> Result<Vec<Edit>, Failure> {
    let file = folder.join("workflows").join("layout-and-retouch.yaml");
    let text = std::fs::read_to_string(&file).map_err(|e| Failure::failed(e.to_string()))?;
    let mut rows: Vec<Edit> = EDITS
        .iter()
        .map(|(what, ..)| Edit {
            what,
            calls: 0,
            seconds: Vec::new(),
            ratio: 1.0,
        })
        .collect();
    for _ in 0..args.runs {
        let engine = engine.clone().with_cache(Arc::new(HostCache::new(2 << 30)));
        for (row, (what, from, to)) in rows.iter_mut().zip(EDITS) {
            let edited = text.replacen(from, to, 1);
            if !from.is_empty() && edited == text {
                return Err(Failure::failed(format!(
                    "the workflow has nothing to edit for: {what}"
                )));
            }
            let start = Instant::now();
            let checked = engine
                .load_str(&file.display().to_string(), &edited, &Settings::default())
                .map_err(broken("the edited workflow"))?;
            let plan = engine
                .plan(&checked, &[])
                .map_err(broken("the edited workflow"))?;
            let report = engine
                .run(&plan, &Silent, &Cancel::new(), &RunOptions::default())
                .map_err(|e| Failure::failed(e.to_string()))?;
            row.seconds.push(start.elapsed().as_secs_f64());
            row.calls = report.counters.get("unet_calls").copied().unwrap_or(0);
        }
    }
    let cold = rows.first().map_or(1.0, Edit::median);
    for row in &mut rows {
        row.ratio = row.median() / cold;
    }
    Ok(rows)
}

/// Nodes that each add to the one before.
fn chain(nodes: usize) -> String {
    let mut text = String::from("schema: retouch/v1\nnodes:\n  n0: {op: add, by: 1}\n");
    for i in 1..nodes {
        let _ = writeln!(
            text,
            "  n{i}:\n    op: add\n    number: $n{}\n    by: {i}",
            i - 1
        );
    }
    let _ = writeln!(text, "outputs:\n  sum: {{value: $n{}}}", nodes - 1);
    text
}

fn unet_call(model: &Model, device: &Device) -> Result<f64, Failure> {
    let call = || -> Result<f64, retouch_diffusion::Error> {
        let checkpoint = &model.checkpoint;
        let unet = checkpoint.unet()?;
        let config = unet.config();
        let (channels, width) = (config.in_channels, config.context_width());
        let side = config.sample_size.unwrap_or(16);
        let latent = Tensor::ones((2, channels, side, side), DType::F32, device)?;
        let encoded = checkpoint.encode_prompt("a teddy bear")?;
        debug_assert_eq!(encoded.states.dim(2)?, width);
        let text = Text::new(encoded.states);
        let call = Call {
            latent: &latent,
            timesteps: &[501.0, 501.0],
            texts: &[&text, &text],
            // The demo model has one text encoder: nothing joins its timesteps.
            addition: None,
            step: 0,
            rows: Rows::new(Branch::Plain, 1, true),
        };
        let start = Instant::now();
        let out = unet.forward(call, &mut Untouched, checkpoint.unet_kernel())?;
        // Reading a number back waits for devices that compute on their own.
        out.flatten_all()?.get(0)?.to_scalar::<f32>()?;
        Ok(start.elapsed().as_secs_f64())
    };
    call().map_err(|e| Failure::failed(e.to_string()))
}
