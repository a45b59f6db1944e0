//! Arbitrary text never panics: not the parser, not the checker, not the formatter.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use retouch_graph::{
    Cache, Cancel, Context, Engine, Fault, Files, Key, Node, NodeError, Outputs, Registry,
    RunOptions, Settings, Silent, Source, Types, format, ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Number, OneNumber, engine, faults};

const GOOD: &str = "schema: retouch/v1
name: good # a comment
params:
  place: {type: string, default: \"on a beach\"}
  steps: {type: int, default: 50, min: 1, max: 1000}
  blend: {type: steps, default: 20%, help: \"some\"}
  seed:  {type: seed, default: random}
  way:   {type: choice, default: pipe, values: [pipe, comma]}
nodes:
  one: {op: number, value: 1}
  two:
    op: read
    path: one.txt
  sum: {op: add, a: $one, b: $two, amount: 0.5, explain: true}
  text:
    op: join
    items:
    - $sum
    - $one
    prefix: \"{place} \"
    separator: $params.way
  long: {op: join, literal: |
      no}
  part: {use: part.yaml, with: {first: $sum, word: \"{place}\"}}
  sample: {op: sample, steps: $params.steps, blend: $params.blend, seed: $params.seed, size: [1, 2]}
outputs:
  text: {value: $text, save: \"{workflow}/{seed}.txt\"}
  report: {value: $sum.report, save: report.txt}
  part: {value: $part.text}
  sample: {value: $sample}
";

fn good() -> String {
    GOOD.replace(
        "  long: {op: join, literal: |\n      no}\n",
        "  long:\n    op: join\n    literal: |\n      one\n        two\n",
    )
}

#[test]
fn the_good_workflow_is_good() {
    assert_eq!(faults(&good()), Vec::<String>::new());
    let once = format::format(&Source::new("t", good())).unwrap();
    assert_eq!(faults(&once), Vec::<String>::new());
    assert!(once.contains("    items:\n      - $sum\n"), "{once}");
}

fn everything(text: &str) {
    for set in [vec![], vec!["steps=7".to_owned(), "place=".to_owned()]] {
        let settings = Settings {
            set,
            ..Settings::default()
        };
        let engine = engine();
        match engine.load_str("flows/main.yaml", text, &settings) {
            Ok(checked) => {
                if let Ok(plan) = engine.plan(&checked, &[]) {
                    let _ = (
                        plan.to_dot(),
                        plan.to_mermaid(),
                        plan.statuses(&**engine.cache()),
                    );
                }
            }
            Err(problems) => {
                assert!(!problems.is_empty());
                for problem in &problems {
                    let (line, column) = problem.line_column();
                    assert!(line >= 1 && column >= 1);
                    let mut out = String::new();
                    miette::NarratableReportHandler::new()
                        .render_report(&mut out, problem)
                        .unwrap();
                }
            }
        }
    }
    if let Ok(once) = format::format(&Source::new("t", text)) {
        assert_eq!(
            format::format(&Source::new("t", once.as_str())).unwrap(),
            once
        );
    }
}

fn pieces() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        ",",
        "-",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        "#",
        " #",
        "\"",
        "'",
        "|",
        ">",
        "&a ",
        "*a",
        "!t ",
        "<<: *a",
        "$",
        "$$",
        "$one",
        "$params.",
        "$params.place",
        "$inputs.x",
        "{place}",
        "{{",
        "op:",
        "use: part.yaml",
        "with:",
        "nodes:",
        "outputs:",
        "params:",
        "inputs:",
        "sweep:",
        "x-a:",
        "null",
        "~",
        "true",
        "1e999",
        "-",
        "0x",
        "9999999999999999999",
        "é",
        "\u{feff}",
        "\u{0}",
        "\r\n",
        "---",
        "...",
        "%YAML 1.2",
        "@",
        "`",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        everything(&text);
        everything(&format!("schema: retouch/v1\n{text}"));
    }

    #[test]
    fn arbitrary_pieces_never_panic(pieces in prop::collection::vec(pieces(), 0..40)) {
        let text = pieces.concat();
        everything(&text);
        everything(&format!("schema: retouch/v1\nnodes:\n  a: {text}\n"));
        everything(&format!("schema: retouch/v1\n{text}\n"));
    }

    #[test]
    fn mutations_of_a_good_workflow_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..30, pieces()), 1..5),
    ) {
        let mut text: Vec<char> = good().chars().collect();
        for (at, length, piece) in edits {
            let from = at.index(text.len());
            let to = (from + length).min(text.len());
            text.splice(from..to, piece.chars());
            if text.is_empty() {
                text.push(' ');
            }
        }
        everything(&text.into_iter().collect::<String>());
    }

    #[test]
    fn lines_moved_and_doubled_never_panic(order in prop::collection::vec(any::<prop::sample::Index>(), 1..40)) {
        let good = good();
        let lines: Vec<&str> = good.lines().collect();
        let text: Vec<&str> = order.iter().map(|index| lines[index.index(lines.len())]).collect();
        everything(&text.join("\n"));
        everything(&format!("schema: retouch/v1\n{}", text.join("\n")));
    }
}

/// Checks of [`Tally`], in the one test below: a check knows neither an engine nor a run.
static CHECKS: AtomicUsize = AtomicUsize::new(0);

ports! {
    pub struct TallyInputs {
        /// What is added to.
        pub a: Option<Arc<Number>>,
    }
}

/// Adds one, and counts its checks.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Tally {}

impl Node for Tally {
    const OP: &'static str = "tally";
    const VERSION: u32 = 1;
    type Inputs = TallyInputs;
    type Outputs = OneNumber;
    fn check(
        &self,
        inputs: &Types<TallyInputs>,
        _: &dyn Files,
    ) -> Result<Types<OneNumber>, Vec<Fault>> {
        CHECKS.fetch_add(1, Ordering::SeqCst);
        let before = inputs.facts::<usize>("a").unwrap_or(0);
        Ok(Types::unknown().with("out", &(before + 1)))
    }
    fn run(&self, inputs: TallyInputs, _: &Context<'_>) -> Result<OneNumber, NodeError> {
        let before = inputs.a.map_or(0.0, |a| a.0);
        Ok(OneNumber {
            out: Arc::new(Number(before + 1.0)),
        })
    }
}

/// A cache that keeps nothing, and counts how often it is asked.
#[derive(Default)]
struct Asked {
    asked: AtomicUsize,
    given: AtomicUsize,
}

impl Cache for Asked {
    fn get(&self, _: &Key) -> Option<Outputs> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        None
    }
    fn place(&self, _: &Key) -> Option<&'static str> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        None
    }
    fn put(&self, _: Key, _: &Outputs, _: f64) {
        self.given.fetch_add(1, Ordering::SeqCst);
    }
}

/// Work grows with the number of nodes, not with its square: counted, as a clock would measure the machine.
#[test]
fn ten_thousand_nodes_are_each_checked_once_and_planned_and_run() {
    const NODES: usize = 10_000;
    let mut text = "schema: retouch/v1\nnodes:\n  n0: {op: tally}\n".to_owned();
    for index in 1..NODES {
        let before = index - 1;
        text.push_str(&format!("  n{index}: {{op: tally, a: $n{before}}}\n"));
    }
    let last = NODES - 1;
    text.push_str(&format!("outputs:\n  o: {{value: $n{last}}}\n"));
    let cache = Arc::new(Asked::default());
    let engine = Engine::new(Registry::new().with::<Tally>()).with_cache(Arc::clone(&cache) as _);
    let checked = engine
        .load_str("w.yaml", &text, &Settings::default())
        .unwrap();
    assert_eq!(CHECKS.load(Ordering::SeqCst), NODES);
    let plan = engine.plan(&checked, &[]).unwrap();
    assert_eq!(plan.len(), NODES);
    let options = RunOptions {
        threads: 2,
        ..RunOptions::default()
    };
    let report = engine
        .run(&plan, &Silent, &Cancel::new(), &options)
        .unwrap();
    assert_eq!(report.ran, NODES);
    let number = report.outputs[0].value.downcast::<Number>().unwrap();
    assert_eq!(number.0, NODES as f64);
    assert_eq!(CHECKS.load(Ordering::SeqCst), NODES, "by the run");
    assert_eq!(cache.given.load(Ordering::SeqCst), NODES);
    let asked = cache.asked.load(Ordering::SeqCst);
    assert!((1..=3 * NODES).contains(&asked), "{asked}");
}

/// `..` behind a link leads where the file system says, in every place that names a file.
#[cfg(unix)]
#[test]
fn paths_through_links_are_those_of_the_file_system() {
    use retouch_graph::check::normal;
    use retouch_graph::lock::shareable;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    for sub in ["real/sub/deep", "other", "deep/a/b/sub"] {
        std::fs::create_dir_all(root.join(sub)).unwrap();
    }
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, root.join(at)).unwrap();
    link("../real/sub", "other/link");
    link("link", "other/again");
    link("../deep/a/b/sub", "other/far");
    link("nowhere", "other/gone");
    link("loop", "other/loop");
    for (path, real) in [
        ("other/link/../part", "real/part"),
        ("other/again/../part", "real/part"),
        ("other/link/deep/../x", "other/link/x"),
        ("other/link/deep/../../x", "real/x"),
        ("other/./link/../../x", "x"),
        ("other/far/../x", "deep/a/b/x"),
        // What only passes down through a link stays as it is written.
        ("other/link/x", "other/link/x"),
        ("real/sub/../x", "real/x"),
        ("nothing/../x", "x"),
        ("other/gone/../x", "other/x"),
    ] {
        assert_eq!(normal(&root.join(path)), root.join(real), "{path}");
        let folder = root.join(path);
        let folder = folder.parent().unwrap();
        if let (Ok(a), Ok(b)) = (
            folder.canonicalize(),
            root.join(real).parent().unwrap().canonicalize(),
        ) {
            assert_eq!(a, b, "{path}");
        }
    }
    assert_eq!(normal(&root.join("other/loop/../x")), root.join("other/x"));
    assert_eq!(normal(Path::new("/../a")), Path::new("/a"));
    assert_eq!(normal(Path::new("../../a/../b")), Path::new("../../b"));
    // The way from a folder to a file, taken from that folder, leads to the file.
    for (from, to) in [
        ("other/link", "real/part"),
        ("other/far", "deep/a/b/part"),
        ("other/again", "other/part"),
        ("other/link/deep", "real/part"),
        ("real/sub", "other/part"),
    ] {
        let (from, to) = (root.join(from), root.join(to));
        std::fs::write(&to, "").unwrap();
        let name = shareable(&from, &to).unwrap();
        assert_eq!(
            from.join(&name).canonicalize().unwrap(),
            to.canonicalize().unwrap(),
            "{name}"
        );
        assert_eq!(normal(&from.join(&name)), normal(&to), "{name}");
    }
    assert_eq!(
        shareable(&root.join("other/link"), &root.join("real/part")).unwrap(),
        "../part"
    );
}
