//! `retouch bench`: the demo model, the main workflow and the engine, on this machine.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use retouch_graph::{
    Cancel, Context, Engine, NoCache, Node, NodeError, Payload, Registry, RunOptions, Settings,
    Silent, Value, ports,
};
use retouch_nodes::Runtime;
use retouch_nodes::diffusion::control::{Branch, Rows, Untouched};
use retouch_nodes::diffusion::unet::Call;
use retouch_nodes::payload::Model;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::{BenchArgs, NewArgs};
use crate::output::say;
use crate::{Exit, Failure, session};

/// Nodes of the graph that the engine is measured on.
const NODES: usize = 10_000;

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
    session::threads(&args.device)?;
    let engine = session::engine(&args.device.device)?.with_cache(Arc::new(NoCache));
    let runtime =
        Runtime::by_name(&args.device.device).map_err(|e| Failure::usage(e.to_string()))?;
    let folder = std::env::temp_dir().join(format!("retouch-bench-{}", std::process::id()));
    let result = measure_all(args, &engine, &runtime, &folder);
    // The copy of the demo model is ours to remove, whatever happened.
    let _ = std::fs::remove_dir_all(&folder);
    let rows = result?;
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({"what": row.what, "unit": row.unit, "median": row.median(),
                       "min": row.value(0), "max": row.value(row.seconds.len().saturating_sub(1))})
            })
            .collect();
        say(
            &json!({"threads": rayon::current_num_threads(), "runs": args.runs, "rows": rows})
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
    }
    Ok(Exit::Done)
}

fn measure_all(
    args: &BenchArgs,
    engine: &Engine,
    runtime: &Runtime,
    folder: &std::path::Path,
) -> Result<Vec<Row>, Failure> {
    super::new::write(&NewArgs {
        folder: folder.to_owned(),
    })?;
    let mut rows = Vec::new();

    let model = load_model(engine, &folder.join("workflows").join("vanilla.yaml"))?;
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

fn load_model(engine: &Engine, file: &std::path::Path) -> Result<Arc<Model>, Failure> {
    let checked = engine
        .load(file, &Settings::default())
        .map_err(broken("vanilla.yaml"))?;
    let plan = engine
        .plan(&checked, &["base".to_owned()])
        .map_err(broken("vanilla.yaml"))?;
    let report = engine
        .run(&plan, &Silent, &Cancel::new(), &RunOptions::default())
        .map_err(|e| Failure::failed(e.to_string()))?;
    let value: Option<&Value> = report.outputs.first().map(|output| &output.value);
    value
        .and_then(Value::downcast::<Model>)
        .ok_or_else(|| Failure::failed("the demo model was not loaded"))
}

fn unet_call(model: &Model, device: &Device) -> Result<f64, Failure> {
    let call = || -> Result<f64, retouch_nodes::diffusion::Error> {
        let checkpoint = &model.checkpoint;
        let unet = checkpoint.unet()?;
        let config = unet.config();
        let (channels, width) = (config.in_channels, config.context_width());
        let side = config.sample_size.unwrap_or(16);
        let latent = Tensor::ones((2, channels, side, side), DType::F32, device)?;
        let (states, _) = checkpoint.encode_prompt("a teddy bear")?;
        let context = states.repeat((2, 1, 1))?;
        debug_assert_eq!(context.dim(2)?, width);
        let call = Call {
            latent: &latent,
            timesteps: &[501, 501],
            context: &context,
            step: 0,
            rows: Rows::new(Branch::Plain, 1, true),
        };
        let start = Instant::now();
        let out = unet.forward(call, &mut Untouched, checkpoint.kernel())?;
        // Reading a number back waits for devices that compute on their own.
        out.flatten_all()?.get(0)?.to_scalar::<f32>()?;
        Ok(start.elapsed().as_secs_f64())
    };
    call().map_err(|e| Failure::failed(e.to_string()))
}
