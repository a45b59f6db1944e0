//! In which order the tasks of a run begin: the longest remaining path first, the earliest cell of a sweep first.
#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![allow(missing_docs, reason = "nobody reads the documentation of a test")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Constant, Number, OneNumber};
use retouch_graph::{
    Cancel, Chained, Context, Engine, Expected, MemoryFiles, Node, NodeError, Plan, Recorder,
    Registry, RunOptions, Settings, Upstream, ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

ports! {
    pub struct WorkInputs {
        /// What has to be there before.
        pub after: Vec<Arc<Number>>,
    }
}

/// Makes calls of a network, as the plan knows.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// The calls.
    pub calls: u64,
    /// What tells it from another.
    #[serde(default)]
    pub number: f64,
}

impl Node for Work {
    const OP: &'static str = "work";
    const VERSION: u32 = 1;
    type Inputs = WorkInputs;
    type Outputs = OneNumber;
    fn chain(&self, _: &Upstream<'_>) -> Chained {
        Chained {
            calls: self.calls,
            ..Chained::default()
        }
    }
    fn run(&self, inputs: WorkInputs, _: &Context<'_>) -> Result<OneNumber, NodeError> {
        let before: f64 = inputs.after.iter().map(|number| number.0).sum();
        Ok(OneNumber {
            out: Arc::new(Number(before + self.number)),
        })
    }
}

fn engine(text: &str) -> Engine {
    let registry = Registry::new().with::<Work>().with::<Constant>();
    let files = MemoryFiles::new().with("wf.yaml", format!("schema: retouch/v1\n{text}"));
    Engine::new(registry).with_files(Arc::new(files))
}

/// The nodes in the order in which one thread begins them.
fn order(engine: &Engine, plan: &Plan, expected: Expected) -> Vec<String> {
    let recorder = Recorder::new();
    let options = RunOptions {
        threads: 1,
        expected,
        ..RunOptions::default()
    };
    let report = engine.run(plan, &recorder, &Cancel::new(), &options);
    assert_eq!(report.unwrap().ran, plan.len());
    recorder.ran()
}

const PATHS: &str = "nodes:
  short: {op: work, calls: 1}
  first: {op: work, calls: 2}
  middle: {op: work, calls: 5}
  last: {op: work, calls: 9, after: $first}
  again: {op: work, calls: 5, number: 1}
  number: {op: number, value: 3}
outputs:
  a: {value: $short}
  b: {value: $middle}
  c: {value: $last}
  d: {value: $again}
  e: {value: $number}
";

#[test]
fn the_longest_remaining_path_runs_first_and_ties_keep_the_file_order() {
    let plan = |engine: &Engine| {
        let checked = engine.load(Path::new("wf.yaml"), &Settings::default());
        engine.plan(&checked.unwrap(), &[]).unwrap()
    };
    let one = engine(PATHS);
    assert_eq!(
        order(&one, &plan(&one), Expected::new()),
        ["first", "last", "middle", "again", "short", "number"]
    );
    // Seconds of earlier runs count more than calls.
    let mut expected = Expected::new();
    expected.run("number", 100.0);
    expected.run("work", 3.0);
    let one = engine(PATHS);
    assert_eq!(
        order(&one, &plan(&one), expected),
        ["number", "first", "short", "middle", "last", "again"]
    );
}

#[test]
fn what_is_in_the_cache_makes_no_path_longer() {
    let one = engine(PATHS);
    let checked = one
        .load(Path::new("wf.yaml"), &Settings::default())
        .unwrap();
    let last = one.plan(&checked, &["c".to_owned()]).unwrap();
    assert_eq!(order(&one, &last, Expected::new()), ["first", "last"]);
    let plan = one.plan(&checked, &[]).unwrap();
    let recorder = Recorder::new();
    let options = RunOptions {
        threads: 1,
        ..RunOptions::default()
    };
    one.run(&plan, &recorder, &Cancel::new(), &options).unwrap();
    assert_eq!(recorder.ran(), ["middle", "again", "short", "number"]);
}

#[test]
fn a_cell_is_finished_before_the_next_one_begins() {
    let text = "params: {x: {type: int, default: 1}}
nodes:
  shared: {op: work, calls: 1}
  draw: {op: work, calls: $params.x, after: $shared}
  decode: {op: work, calls: 1, after: $draw}
outputs:
  out: {value: $decode}
sweep: {matrix: {x: [3, 7, 5]}}
";
    let one = engine(text);
    let sweep = one.load_sweep(Path::new("wf.yaml"), &Settings::default());
    let planned = one.plan_sweep(&sweep.unwrap(), &[], &Default::default());
    let plan = planned.unwrap().plan;
    assert_eq!(
        order(&one, &plan, Expected::new()),
        [
            "shared",
            "draw [x=3]",
            "decode [x=3]",
            "draw [x=7]",
            "decode [x=7]",
            "draw [x=5]",
            "decode [x=5]"
        ]
    );
    // A cell is a field of the task's nodes, not a part of their names.
    let shared = plan.task(0).unwrap();
    assert_eq!(shared.cells(), [0, 1, 2].into());
    let nodes: Vec<String> = shared.nodes().iter().map(ToString::to_string).collect();
    assert_eq!(nodes, ["0/shared", "1/shared", "2/shared"]);
    assert_eq!(shared.nodes()[2].name, "shared");
}
