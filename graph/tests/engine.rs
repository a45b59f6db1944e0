//! From a workflow to its outputs: keys, reuse, merging, saving, cancelling, events.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use retouch_graph::{
    Cancel, Checked, Code, DiskFiles, Engine, Event, Exists, Files, How, Key, Listener, NoCache,
    NodeOutcome, Plan, Reason, Recorder, RunError, RunOptions, RunReport, RunStatus, SaveStatus,
    Saver, Settings, Silent, Status, What, interrupt,
};

use crate::common::{self, Devices, engine, files, with_files};

const HEAD: &str = "schema: retouch/v1\n";

fn load(engine: &Engine, text: &str) -> Checked {
    load_with(engine, text, &[])
}

fn load_with(engine: &Engine, text: &str, set: &[&str]) -> Checked {
    let settings = Settings {
        set: set.iter().map(|set| (*set).to_owned()).collect(),
        draw: Some(77),
        ..Settings::default()
    };
    engine
        .load_str("flows/main.yaml", &format!("{HEAD}{text}"), &settings)
        .unwrap_or_else(|problems| panic!("{problems}"))
}

fn plan(engine: &Engine, text: &str) -> Plan {
    engine.plan(&load(engine, text), &[]).unwrap()
}

fn run_plan(engine: &Engine, plan: &Plan) -> (RunReport, Recorder) {
    let recorder = Recorder::new();
    let options = RunOptions {
        threads: 1,
        saver: None,
        ..RunOptions::default()
    };
    let report = engine
        .run(plan, &recorder, &Cancel::new(), &options)
        .unwrap();
    (report, recorder)
}

fn run(engine: &Engine, text: &str) -> (RunReport, Recorder) {
    run_plan(engine, &plan(engine, text))
}

fn text_of(report: &RunReport, name: &str) -> String {
    let output = report
        .outputs
        .iter()
        .find(|output| output.name == name)
        .unwrap();
    output
        .value
        .downcast::<common::Text>()
        .map(|text| text.0.clone())
        .or_else(|| {
            output
                .value
                .downcast::<common::Number>()
                .map(|number| number.0.to_string())
        })
        .unwrap()
}

fn keys(plan: &Plan) -> BTreeMap<String, Key> {
    plan.tasks()
        .flat_map(|task| task.names().iter().map(|name| (name.clone(), task.key())))
        .collect()
}

const CHAIN: &str = "params:
  word: {type: string, default: sum}
nodes:
  one: {op: number, value: 1}
  two: {op: read, path: ../two.txt}
  sum: {op: add, a: $one, b: $two, amount: 0.5}
  text: {op: join, items: [$sum, $one], prefix: \"{word}: \"}
outputs:
  text: {value: $text}
";

#[test]
fn a_workflow_runs_and_gives_its_outputs() {
    let (report, recorder) = run(&engine(), CHAIN);
    assert_eq!(text_of(&report, "text"), "sum: 3.5, 1");
    assert_eq!(recorder.ran(), ["one", "two", "sum", "text"]);
    assert_eq!(report.counters, BTreeMap::from([("additions", 1)]));
    assert!(matches!(report.nodes[0].outcome, NodeOutcome::Ran { .. }));
}

#[test]
fn editing_only_the_last_node_reuses_everything_before_it() {
    let engine = engine();
    run(&engine, CHAIN);
    let (report, recorder) = run(&engine, &CHAIN.replace("sum}", "all}"));
    assert_eq!(text_of(&report, "text"), "all: 3.5, 1");
    assert_eq!(recorder.ran(), ["text"]);
    assert_eq!(recorder.reused(), ["one", "two", "sum"]);
    let (report, recorder) = run(&engine, CHAIN);
    assert_eq!(text_of(&report, "text"), "sum: 3.5, 1");
    assert!(recorder.ran().is_empty());
    assert_eq!((report.ran, report.reused), (0, 4));
    let from: Vec<&str> = recorder
        .events()
        .iter()
        .filter_map(|event| match event {
            Event::NodeReused { from, .. } => Some(*from),
            _ => None,
        })
        .collect();
    assert_eq!(from, ["not needed", "not needed", "not needed", "memory"]);
}

#[test]
fn names_order_comments_and_formatting_do_not_change_keys() {
    let engine = engine();
    let other = "# a comment
x-note: [1]
outputs: {renamed: {value: $d}}
nodes:
  d:
    prefix: \"{w}: \"
    items:
      - $c
      - $a
    op: join
    ui: {x: 5}
  c: {amount: 5.0e-1, b: $b, a: $a, op: add, explain: false}
  b: {op: read, path: ../flows/../two.txt, more: []}
  a: {op: number, value: 1.0}
params:
  w: {type: choice, values: [sum, x], default: sum, help: other}
";
    let mut first: Vec<Key> = keys(&plan(&engine, CHAIN)).into_values().collect();
    let mut second: Vec<Key> = keys(&plan(&engine, other)).into_values().collect();
    first.sort_unstable();
    second.sort_unstable();
    assert_eq!(first, second);
}

#[test]
fn a_changed_file_changes_what_depends_on_it_and_a_moved_one_does_not() {
    let before = keys(&plan(&engine(), CHAIN));
    let changed = with_files(files().with("two.txt", "3"));
    let after = keys(&plan(&changed, CHAIN));
    let differ: Vec<&String> = before
        .keys()
        .filter(|name| before[*name] != after[*name])
        .collect();
    assert_eq!(differ, ["sum", "text", "two"]);
    let moved = with_files(files().with("elsewhere/zwei.txt", "2"));
    assert_eq!(
        before,
        keys(&plan(
            &moved,
            &CHAIN.replace("../two.txt", "../elsewhere/zwei.txt")
        ))
    );
}

#[test]
fn the_numerics_tag_is_part_of_every_key() {
    let engine = engine();
    let before = keys(&plan(&engine, CHAIN));
    let after = keys(&plan(&engine.clone().with_numerics("cuda/f16"), CHAIN));
    assert!(before.iter().all(|(name, key)| after[name] != *key));
}

#[test]
fn only_what_the_targets_need_is_planned() {
    let engine = engine();
    let text = format!("{CHAIN}  sum: {{value: $sum}}\n")
        .replace("outputs:", "  lone: {op: number, value: 5}\noutputs:");
    let checked = load(&engine, &text);
    let names = |targets: &[&str]| -> Vec<String> {
        let targets: Vec<String> = targets.iter().map(|target| (*target).to_owned()).collect();
        let plan = engine.plan(&checked, &targets).unwrap();
        plan.tasks().map(|task| task.name().to_owned()).collect()
    };
    assert_eq!(names(&[]), ["one", "two", "sum", "text"]);
    assert_eq!(names(&["sum"]), ["one", "two", "sum"]);
    assert_eq!(names(&["nodes.text", "one"]), ["one", "two", "sum", "text"]);
    assert_eq!(names(&["lone"]), ["lone"]);
    let plan = engine
        .plan(&checked, &["nodes.sum".into(), "outputs.sum".into()])
        .unwrap();
    let outputs: Vec<&str> = plan
        .outputs()
        .iter()
        .map(|output| output.name.as_str())
        .collect();
    assert_eq!(outputs, ["sum.sum", "sum.report", "sum"]);
    let (report, _) = run_plan(&engine, &plan);
    assert_eq!(report.outputs.len(), 2); // there is no report without `explain`
}

#[test]
fn equal_nodes_are_one_task() {
    let engine = engine();
    let text = "nodes:
  b: {op: number, value: 2}
  a: {op: number, value: 2.0}
  x: {op: add, a: $a, b: $b}
  y: {op: add, a: $b, b: $a}
outputs:
  x: {value: $x}
  y: {value: $y}
";
    let plan = plan(&engine, text);
    let names: Vec<&[String]> = plan.tasks().map(|task| task.names()).collect();
    assert_eq!(names, [["b", "a"], ["x", "y"]]);
    let (report, recorder) = run_plan(&engine, &plan);
    assert_eq!(
        (text_of(&report, "x"), text_of(&report, "y")),
        ("4".into(), "4".into())
    );
    assert_eq!(recorder.ran(), ["b", "x"]);
}

#[test]
fn statuses_say_what_runs_and_why() {
    let engine = engine();
    let plan_of = |text: &str| plan(&engine, text);
    let plan = plan_of(CHAIN);
    let statuses = plan.statuses(&**engine.cache());
    assert_eq!(statuses[0], Status::Run(Reason::NotCached));
    assert_eq!(
        statuses[3],
        Status::Run(Reason::Upstream(vec!["one".into(), "sum".into()]))
    );
    run_plan(&engine, &plan);
    let statuses = plan.statuses(&**engine.cache());
    assert_eq!(statuses[2], Status::NotNeeded);
    assert_eq!(statuses[3], Status::Cached("memory"));
    let edited = plan_of(&CHAIN.replace("0.5", "1.5"));
    let changes: Vec<String> = edited
        .changes_since(&plan)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(changes[0], "sum.amount: 0.5 -> 1.5");
    assert_eq!(changes.len(), 2);
    assert!(
        changes[1].starts_with("text input items: sum.sum ("),
        "{changes:?}"
    );
    assert_eq!(
        edited.changes_since(&plan)[1].what,
        What::Input("items".into())
    );
}

#[test]
fn an_included_workflow_is_linked_in_with_its_own_names() {
    let engine = engine();
    let text = "params:
  place: {type: string, default: here}
nodes:
  n: {op: number, value: 2}
  p: {use: part.yaml, with: {first: $n, word: \"at {place}\", second: $m}}
  m: {op: number, value: 3}
  q: {use: part.yaml, with: {first: $p.sum, word: $params.place, file: ../two.txt, seed: 5}}
outputs:
  p: {value: $p}
  q: {value: $q.text}
  there: {value: $q.there}
";
    let checked = load(&engine, text);
    assert_eq!(
        checked.node("q/there").unwrap().reads()[0].path,
        Path::new("flows/../two.txt")
    );
    assert_eq!(
        checked.node("p/there").unwrap().reads()[0].path,
        Path::new("flows/one.txt")
    );
    let drawn: Vec<_> = checked
        .params
        .iter()
        .filter(|param| param.from == How::Drawn)
        .map(|param| (param.name.as_str(), param.value.as_u64()))
        .collect();
    assert_eq!(drawn, [("p/seed", Some(77))]);
    let plan = engine.plan(&checked, &[]).unwrap();
    let (report, recorder) = run_plan(&engine, &plan);
    assert_eq!(text_of(&report, "p"), "at here: 5, 2");
    assert_eq!(text_of(&report, "q"), "here: 5, 5");
    assert_eq!(text_of(&report, "there"), "2");
    assert_eq!(
        recorder.ran(),
        ["n", "m", "p/sum", "p/text", "q/sum", "q/text", "q/there"]
    );
    // A node that uses a workflow can be asked for by name.
    let plan = engine.plan(&checked, &["nodes.p".into()]).unwrap();
    let names: Vec<&str> = plan.tasks().map(|task| task.name()).collect();
    assert_eq!(names, ["n", "p/there", "m", "p/sum", "p/text"]);
}

#[test]
fn included_workflows_nest() {
    let engine = with_files(
        files()
            .with(
                "flows/sub/outer.yaml",
                "schema: retouch/v1\ninputs:\n  n: {type: number}\n  m: {type: number, optional: true}\nnodes:\n  inner: {use: ../part.yaml, with: {first: $inputs.n, second: $inputs.m, word: \"$$w\"}}\noutputs:\n  text: {value: $inner.text}\n  same: {value: $inputs.n}\n",
            ),
    );
    let text = "nodes:
  n: {op: number, value: 2}
  o: {use: sub/outer.yaml, with: {n: $n}}
  j: {op: join, items: [$o.same, $n]}
outputs:
  text: {value: $o}
  j: {value: $j}
";
    let (report, recorder) = run(&engine, text);
    assert_eq!(text_of(&report, "text"), "$w: 2, 2");
    assert_eq!(text_of(&report, "j"), "2, 2");
    assert_eq!(recorder.ran(), ["n", "o/inner/sum", "o/inner/text", "j"]);
}

#[test]
fn templates_are_filled_where_a_field_declares_it_and_nowhere_else() {
    let text = "params:
  a: {type: string, default: \"{b}\"}
  b: {type: float, default: 1.5}
nodes:
  j: {op: join, prefix: \"$${{x}} {a} {b} \", literal: \"{a} {{ $x\", more: [\"<{b}>\", \"{{\"]}
outputs:
  j: {value: $j}
";
    let (report, _) = run(&engine(), text);
    assert_eq!(text_of(&report, "j"), "${x} {b} 1.5 <1.5>{{a} {{ $x");
}

#[test]
fn params_of_every_type_reach_their_fields() {
    let text = "params:
  steps: {type: int, default: 50}
  blend: {type: steps, default: 5%}
  seed: {type: seed, default: random}
  lock: {type: bool, default: true}
  threshold: {type: threshold, default: otsu}
  w: {type: int, default: 3}
nodes:
  s: {op: sample, steps: $params.steps, blend: $params.blend, seed: $params.seed, lock: $params.lock, threshold: $params.threshold, size: [$params.w, 4]}
  t: {op: sample, steps: 5, seed: random}
outputs:
  s: {value: $s, save: \"{seed}-{blend}-{lock}.txt\"}
  t: {value: $t}
";
    let engine = engine();
    let checked = load(&engine, text);
    assert_eq!(checked.outputs[0].save.as_deref(), Some("77-5%-true.txt"));
    assert_eq!(
        checked.node("s").unwrap().params()["size"],
        serde_json::json!([3, 4])
    );
    let drawn = checked
        .params
        .iter()
        .find(|param| param.name == "t.seed")
        .unwrap();
    // The second seed is not the first one's neighbour.
    assert_eq!(drawn.value, 6_979_564_456_636_545_u64);
    let (report, _) = run_plan(&engine, &engine.plan(&checked, &[]).unwrap());
    assert_eq!(text_of(&report, "s"), "80"); // 77 + half of 5 percent of 50, rounded up
    let set = load_with(
        &engine,
        text,
        &["seed=3", "blend=7", "threshold=0.5", "steps=10"],
    );
    let (report, _) = run_plan(&engine, &engine.plan(&set, &[]).unwrap());
    assert_eq!(text_of(&report, "s"), "10");
}

#[test]
fn a_failing_node_ends_the_run_and_what_was_made_is_kept() {
    let engine = engine();
    let text = "nodes:
  one: {op: number, value: 1}
  bad: {op: trouble, how: HOW, after: $one}
  sum: {op: add, a: $bad}
outputs:
  sum: {value: $sum}
";
    for (how, says, hint) in [
        ("fail", "it had to", "ask for less"),
        ("panic", "it panicked: out of cheese", "report it"),
    ] {
        let plan = plan(&engine, &text.replace("HOW", how));
        let recorder = Recorder::new();
        let error = engine
            .run(&plan, &recorder, &Cancel::new(), &RunOptions::default())
            .unwrap_err();
        assert!(error.hint().unwrap().contains(hint), "{error:?}");
        let expected = match how {
            "fail" => Code::NodeFailed,
            _ => Code::NodePanicked,
        };
        assert_eq!(error.code(), expected);
        let RunError::NodeFailed {
            node, op, message, ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(
            (node.as_str(), op, message.as_str()),
            ("bad", "trouble", says)
        );
        let events = recorder.events();
        assert!(matches!(
            events.last(),
            Some(Event::RunFinished {
                status: RunStatus::Failed,
                ..
            })
        ));
        assert!(
            events
                .iter()
                .any(|event| matches!(event, Event::NodeFailed { node, code, .. } if node == "bad" && *code == expected))
        );
        assert!(!recorder.ran().contains(&"sum".to_owned()));
        let statuses = plan.statuses(&**engine.cache());
        assert!(matches!(statuses[0], Status::Cached(_)) && matches!(statuses[1], Status::Run(_)));
    }
    let plan = plan(&engine, &text.replace("HOW", "nothing"));
    let recorder = Recorder::new();
    let error = engine
        .run(&plan, &recorder, &Cancel::new(), &RunOptions::default())
        .unwrap_err();
    assert!(
        error.to_string().contains("did not give its output `out`"),
        "{error}"
    );
    let told = recorder.events();
    let told = told
        .iter()
        .filter(|event| matches!(event, Event::NodeFailed { code, .. } if *code == Code::NotGiven));
    assert_eq!(told.count(), 1, "a listener hears of it too");
}

/// Takes its time over a failure: it waits until another thread of the run has done all of its work.
#[derive(Default)]
struct SlowAtFailure {
    /// Whether the failure is being told, and whether `sum` is made.
    seen: std::sync::Mutex<(bool, bool)>,
    changed: std::sync::Condvar,
    /// Whether it waited in vain.
    stuck: std::sync::atomic::AtomicBool,
}

impl SlowAtFailure {
    fn wait(&self, for_what: impl Fn(&(bool, bool)) -> bool) {
        let most = std::time::Duration::from_secs(20);
        let seen = self.seen.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(seen, most, |seen| !for_what(seen));
        if waited.unwrap().1.timed_out() {
            self.stuck.store(true, Ordering::Relaxed);
        }
    }
}

impl Listener for SlowAtFailure {
    fn event(&self, event: &Event) {
        match event {
            Event::NodeStarted { node, .. } if node == "one" => self.wait(|seen| seen.0),
            Event::NodeFinished { node, .. } if node == "sum" => {
                self.seen.lock().unwrap().1 = true;
                self.changed.notify_all();
            }
            Event::NodeFailed { .. } => {
                self.seen.lock().unwrap().0 = true;
                self.changed.notify_all();
                self.wait(|seen| seen.1);
            }
            _ => {}
        }
    }
}

#[test]
fn a_listener_that_hears_of_an_output_that_is_not_given_holds_up_no_other_node() {
    let engine = engine();
    let text = "nodes:
  bad: {op: trouble, how: nothing}
  one: {op: number, value: 1}
  sum: {op: add, a: $one}
outputs:
  bad: {value: $bad}
  sum: {value: $sum}
";
    let listener = SlowAtFailure::default();
    let options = RunOptions {
        threads: 2,
        keep_going: true,
        ..RunOptions::default()
    };
    let error = engine
        .run(&plan(&engine, text), &listener, &Cancel::new(), &options)
        .unwrap_err();
    assert_eq!(error.code(), Code::NotGiven);
    assert_eq!(*listener.seen.lock().unwrap(), (true, true));
    assert!(
        !listener.stuck.into_inner(),
        "the run waited for a listener"
    );
}

struct CancelAtProgress(Cancel, Recorder);

impl Listener for CancelAtProgress {
    fn event(&self, event: &Event) {
        self.1.event(event);
        if matches!(event, Event::NodeProgress { .. }) {
            self.0.cancel();
        }
    }
}

#[test]
fn a_digest_ends_between_two_pieces_when_it_is_cancelled_and_is_made_anew_later() {
    let folder = tempfile::tempdir().unwrap();
    // Read in one thread, and in two.
    for length in [3 << 20, 9 << 20] {
        let path = folder.path().join(length.to_string());
        let content: Vec<u8> = (0..length).map(|at: u32| at.to_le_bytes()[1]).collect();
        std::fs::write(&path, &content).unwrap();
        let files = DiskFiles::new();
        let cancel = Cancel::new();
        cancel.cancel();
        let ended = interrupt::within(&cancel, || files.digest(&path));
        assert!(ended.is_err());
        assert!(interrupt::within(&cancel, || files.sha256(&path)).is_err());
        let whole = files.digest(&path).unwrap();
        assert_eq!(whole, *blake3::hash(&content).as_bytes());
        // What is known is given all the same.
        let known = interrupt::within(&cancel, || files.digest(&path));
        assert_eq!(known.unwrap(), whole);
    }
}

#[test]
fn a_cancelled_run_is_an_error_and_saves_what_was_ready() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine();
    for (threads, how) in [(1, "wait"), (4, "wait"), (1, "layers"), (4, "layers")] {
        let text = "nodes:
  one: {op: number, value: 1}
  bad: {op: trouble, how: wait, after: $one}
  sum: {op: add, a: $bad}
outputs:
  one: {value: $one, save: one.txt}
  sum: {value: $sum, save: sum.txt}
";
        let plan = plan(&engine, &text.replace("wait", how));
        let cancel = Cancel::new();
        let listener = CancelAtProgress(cancel.clone(), Recorder::new());
        let options = RunOptions {
            threads,
            saver: Some(Arc::new(Saver::new(folder.path(), Exists::Number))),
            ..RunOptions::default()
        };
        let error = engine.run(&plan, &listener, &cancel, &options).unwrap_err();
        assert!(matches!(error, RunError::Cancelled));
        assert!(matches!(
            listener.1.events().last(),
            Some(Event::RunFinished {
                status: RunStatus::Cancelled,
                ..
            })
        ));
        let files: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        assert_eq!(files, ["one.txt"]);
    }
    let plan = plan(
        &engine,
        "nodes: {one: {op: number, value: 1}}\noutputs: {one: {value: $one}}\n",
    );
    let before = Cancel::new();
    before.cancel();
    let recorder = Recorder::new();
    let fresh = engine.clone().with_cache(Arc::new(NoCache));
    assert!(
        fresh
            .run(&plan, &recorder, &before, &RunOptions::default())
            .is_err()
    );
    assert!(recorder.ran().is_empty());
}

#[test]
fn one_node_at_a_time_has_the_device() {
    let devices = Arc::new(Devices::default());
    let engine = engine().with_environment(Arc::clone(&devices) as _);
    let mut text = "nodes:\n".to_owned();
    let mut outputs = "outputs:\n".to_owned();
    for index in 0..20 {
        text.push_str(&format!(
            "  s{index}: {{op: sample, steps: 200, seed: {index}}}\n"
        ));
        text.push_str(&format!("  a{index}: {{op: add, a: $s{index}}}\n"));
        outputs.push_str(&format!("  o{index}: {{value: $a{index}}}\n"));
    }
    let plan = plan(&engine, &format!("{text}{outputs}"));
    let options = RunOptions {
        threads: 8,
        saver: None,
        ..RunOptions::default()
    };
    let report = engine
        .run(&plan, &Silent, &Cancel::new(), &options)
        .unwrap();
    assert_eq!(report.ran, 40);
    assert_eq!(text_of(&report, "o7"), "7");
    assert_eq!(devices.most.load(Ordering::SeqCst), 1);
}

fn save_all(
    engine: &Engine,
    text: &str,
    saver: &Arc<Saver>,
) -> Result<Vec<(String, SaveStatus)>, RunError> {
    let recorder = Recorder::new();
    let options = RunOptions {
        threads: 1,
        saver: Some(Arc::clone(saver)),
        ..RunOptions::default()
    };
    let report = engine.run(&plan(engine, text), &recorder, &Cancel::new(), &options)?;
    let told = recorder
        .events()
        .into_iter()
        .filter(|event| matches!(event, Event::OutputSaved { .. }))
        .count();
    let saved: Vec<(String, SaveStatus)> = report
        .outputs
        .iter()
        .flat_map(|output| &output.saved)
        .map(|saved| {
            let path = saved.path.strip_prefix(saver.out()).unwrap();
            (path.display().to_string(), saved.status)
        })
        .collect();
    assert_eq!(told, saved.len());
    Ok(saved)
}

#[test]
fn files_that_exist_are_treated_as_asked() {
    let engine = engine();
    let text = |value: &str| {
        format!(
            "nodes:\n  n: {{op: number, value: {value}}}\noutputs:\n  n: {{value: $n, save: a/n.txt}}\n"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let saver = |exists| Arc::new(Saver::new(folder.path(), exists));
    let once = |exists, value: &str| {
        save_all(&engine, &text(value), &saver(exists)).map(|mut saved| saved.remove(0))
    };
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let is = |path: &str, status| (path.to_owned(), status);
    assert_eq!(
        once(Exists::Number, "1").unwrap(),
        is("a/n.txt", SaveStatus::New)
    );
    assert_eq!(
        once(Exists::Number, "1").unwrap(),
        is("a/n.txt", SaveStatus::Unchanged)
    );
    assert_eq!(
        once(Exists::Number, "2").unwrap(),
        is("a/n-2.txt", SaveStatus::Numbered)
    );
    assert_eq!(
        once(Exists::Number, "3").unwrap(),
        is("a/n-3.txt", SaveStatus::Numbered)
    );
    assert_eq!(
        once(Exists::Number, "2").unwrap(),
        is("a/n-2.txt", SaveStatus::Unchanged)
    );
    assert_eq!(
        once(Exists::Keep, "5").unwrap(),
        is("a/n.txt", SaveStatus::Kept)
    );
    assert_eq!(read("a/n.txt"), "1");
    let error = once(Exists::Fail, "5").unwrap_err();
    assert!(
        error.to_string().contains("exists already") && error.hint().unwrap().contains("--exists")
    );
    assert_eq!(
        once(Exists::Fail, "1").unwrap(),
        is("a/n.txt", SaveStatus::Unchanged)
    );
    assert_eq!(
        once(Exists::Replace, "5").unwrap(),
        is("a/n.txt", SaveStatus::Replaced)
    );
    assert_eq!(read("a/n.txt"), "5");
    let watch = Arc::new(Saver::new(folder.path(), Exists::Number).replacing_own());
    let watched = |value: &str| save_all(&engine, &text(value), &watch).unwrap().remove(0);
    assert_eq!(watched("7"), is("a/n-4.txt", SaveStatus::Numbered));
    let left = std::fs::read_dir(folder.path().join("a")).unwrap().count();
    assert_eq!(left, 4); // no temporary file is left behind
}

#[test]
fn watching_replaces_what_its_own_session_wrote() {
    let engine = engine();
    let folder = tempfile::tempdir().unwrap();
    let watch = Arc::new(Saver::new(folder.path(), Exists::Number).replacing_own());
    let text = |value: &str| {
        format!(
            "nodes:\n  n: {{op: number, value: {value}}}\noutputs:\n  n: {{value: $n, save: n.txt}}\n"
        )
    };
    let statuses: Vec<SaveStatus> = ["1", "2", "2", "3"]
        .iter()
        .map(|value| save_all(&engine, &text(value), &watch).unwrap()[0].1)
        .collect();
    assert_eq!(
        statuses,
        [
            SaveStatus::New,
            SaveStatus::Replaced,
            SaveStatus::Unchanged,
            SaveStatus::Replaced
        ]
    );
}

#[test]
fn a_batch_is_several_files_and_a_cached_run_saves_them_too() {
    let engine = engine();
    let folder = tempfile::tempdir().unwrap();
    let text = "nodes:
  n: {op: number, value: 1}
  j: {op: join, items: [$n, $n, $n], separator: pipe}
outputs:
  j: {value: $j, save: \"{workflow}/{output}.txt\"}
  unsaved: {value: $n}
";
    let saver = || Arc::new(Saver::new(folder.path(), Exists::Number));
    let names = |saved: Vec<(String, SaveStatus)>| -> Vec<String> {
        saved
            .into_iter()
            .map(|(name, status)| format!("{name} {status:?}"))
            .collect()
    };
    assert_eq!(
        names(save_all(&engine, text, &saver()).unwrap()),
        ["main/j_0.txt New", "main/j_1.txt New", "main/j_2.txt New"]
    );
    std::fs::remove_dir_all(folder.path().join("main")).unwrap();
    let (report, recorder) = run(&engine, text);
    assert!(recorder.ran().is_empty() && report.outputs.len() == 2);
    assert_eq!(
        names(save_all(&engine, text, &saver()).unwrap()),
        ["main/j_0.txt New", "main/j_1.txt New", "main/j_2.txt New"]
    );
}

#[test]
fn events_are_written_as_tagged_json() {
    let (_, recorder) = run(
        &engine(),
        "params:\n  x: {type: float, default: 2}\nnodes:\n  n: {op: number, value: $params.x}\noutputs:\n  n: {value: $n}\n",
    );
    let events: Vec<serde_json::Value> = recorder
        .events()
        .iter()
        .map(|event| serde_json::to_value(event).unwrap())
        .collect();
    assert_eq!(
        events[0],
        serde_json::json!({"event": "run_started", "schema": 1, "workflow": "main", "nodes": 1, "params": [{"name": "x", "value": 2, "from": "default"}]})
    );
    assert_eq!(events[1]["event"], "node_started");
    assert_eq!(events[1]["key"].as_str().unwrap().len(), 64);
    assert_eq!(events[2]["event"], "node_finished");
    assert_eq!(events[3]["event"], "run_finished");
    assert_eq!(events[3]["status"], "ok");
}

#[test]
fn a_plan_can_be_drawn() {
    let plan = plan(&engine(), CHAIN);
    let dot = plan.to_dot();
    assert!(
        dot.contains("n2 [label=\"sum\\nadd\"];") && dot.contains("n0 -> n2 [label=\"out to a\"];"),
        "{dot}"
    );
    let mermaid = plan.to_mermaid();
    assert!(
        mermaid.contains("n2[\"sum<br/>add\"]") && mermaid.contains("n3 --> o0"),
        "{mermaid}"
    );
}

#[test]
fn the_ops_are_documented_and_their_schema_says_what_a_workflow_is() {
    let registry = common::registry();
    assert_eq!(registry.lint(), Vec::<String>::new());
    let add = registry.entry("add").unwrap();
    assert_eq!(add.summary(), "Adds numbers.");
    assert_eq!(add.docs(), "Adds numbers. It can say what it did.");
    assert_eq!(add.params()[1].name, "explain");
    assert_eq!(add.params()[1].default, Some(serde_json::json!(false)));
    assert_eq!(
        registry.entry("join").unwrap().params()[1].takes(),
        "`comma`, `pipe` or `space`"
    );
    let schema = registry.json_schema();
    let ops = schema["$defs"]["node"]["allOf"].as_array().unwrap();
    assert_eq!(ops.len(), registry.len());
    let join = &ops[2]["then"];
    assert_eq!(join["required"], serde_json::json!(["op"]));
    assert_eq!(join["properties"]["times"]["anyOf"][0]["maximum"], 10);
    assert_eq!(
        join["properties"]["times"]["anyOf"][1]["$ref"],
        "#/$defs/reference"
    );
}

/// Numbers and sums: node `i` links to earlier ones.
fn graph() -> impl Strategy<Value = Vec<(u8, Vec<prop::sample::Index>)>> {
    prop::collection::vec(
        (
            0u8..4,
            prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        ),
        2..12,
    )
}

fn write(nodes: &[(u8, Vec<prop::sample::Index>)]) -> String {
    let mut text = "nodes:\n".to_owned();
    for (at, (value, links)) in nodes.iter().enumerate() {
        // Its own times, so that no two nodes are equal.
        let links: Vec<String> = links
            .iter()
            .filter(|_| at > 0)
            .map(|link| format!("$n{}", link.index(at)))
            .collect();
        text.push_str(&format!(
            "  n{at}: {{op: add, a: $base, b: $t{at}, amount: {value}}}\n"
        ));
        text.push_str(&format!("  t{at}: {{op: number, value: {}}}\n", at + 100));
        text.push_str(&format!(
            "  j{at}: {{op: join, items: [{}]}}\n",
            links.join(", ")
        ));
    }
    text.push_str("  base: {op: number, value: 0}\noutputs:\n");
    for at in 0..nodes.len() {
        text.push_str(&format!(
            "  j{at}: {{value: $j{at}}}\n  n{at}: {{value: $n{at}}}\n"
        ));
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_changed_param_changes_the_keys_of_exactly_what_is_downstream(nodes in graph(), which in any::<prop::sample::Index>()) {
        let engine = engine();
        let before = keys(&plan(&engine, &write(&nodes)));
        let which = which.index(nodes.len());
        let mut changed = nodes.clone();
        changed[which].0 += 20;
        let after = keys(&plan(&engine, &write(&changed)));
        for (name, key) in &before {
            let at: usize = name[1..].parse().unwrap_or(usize::MAX);
            let depends = match name.as_bytes()[0] {
                b'n' => at == which,
                b'j' => at > 0 && nodes[at].1.iter().any(|link| link.index(at) == which),
                _ => false,
            };
            prop_assert_eq!(after[name] != *key, depends, "{}", name);
        }
    }
}

/// A tree of sums: sum `i` adds to an earlier one what its own file holds and its own amount.
#[derive(Clone, Debug)]
struct Tree {
    parents: Vec<prop::sample::Index>,
    amounts: Vec<u8>,
    contents: Vec<u8>,
}

impl Tree {
    fn parent(&self, at: usize) -> Option<usize> {
        (at > 0).then(|| self.parents[at].index(at))
    }

    fn files(&self) -> retouch_graph::MemoryFiles {
        let files = files();
        for (at, content) in self.contents.iter().enumerate() {
            files.insert(format!("f{at}.txt"), format!("{}.{content}", at + 1));
        }
        files
    }

    /// The workflow, its nodes in this order and under names of this form.
    fn write(&self, order: &[usize], name: &str, comment: &str, block: bool) -> String {
        let mut text = format!("{comment}nodes:\n  {name}base: {{op: number, value: 0}}\n");
        let mut node = |name: String, fields: &[(&str, String)]| {
            if block {
                text.push_str(&format!("  {name}: {comment}\n"));
                for (key, value) in fields.iter().rev() {
                    text.push_str(&format!("      {key}:   {value}\n"));
                }
            } else {
                let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                text.push_str(&format!("  {name}: {{{}}}\n", fields.join(", ")));
            }
        };
        for &at in order {
            let parent = self.parent(at).map_or_else(
                || format!("${name}base"),
                |parent| format!("${name}s{parent}"),
            );
            node(
                format!("{name}s{at}"),
                &[
                    ("op", "add".into()),
                    ("a", parent),
                    ("b", format!("${name}r{at}")),
                    ("amount", self.amounts[at].to_string()),
                ],
            );
            node(
                format!("{name}r{at}"),
                &[("op", "read".into()), ("path", format!("../f{at}.txt"))],
            );
        }
        text.push_str("outputs:\n");
        for at in order {
            text.push_str(&format!("  o{at}: {{value: ${name}s{at}}}\n"));
        }
        text
    }

    fn keys(&self) -> BTreeMap<String, Key> {
        let order: Vec<usize> = (0..self.parents.len()).collect();
        let engine = with_files(self.files());
        keys(&plan(&engine, &self.write(&order, "", "", false)))
    }

    /// Whether sum `at` depends on sum `on`, or is it.
    fn depends(&self, at: usize, on: usize) -> bool {
        at == on
            || self
                .parent(at)
                .is_some_and(|parent| self.depends(parent, on))
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    (2usize..10).prop_flat_map(|count| {
        (
            prop::collection::vec(any::<prop::sample::Index>(), count),
            prop::collection::vec(20u8..100, count),
            prop::collection::vec(20u8..100, count),
        )
            .prop_map(|(parents, amounts, contents)| Tree {
                parents,
                amounts,
                contents,
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nodes_renamed_reordered_reformatted_and_commented_have_the_same_keys(
        tree in tree(), shuffle in any::<prop::sample::Index>(), block: bool, commented: bool,
    ) {
        let count = tree.parents.len();
        let mut order: Vec<usize> = (0..count).collect();
        order.rotate_left(shuffle.index(count));
        order.swap(0, count - 1);
        let comment = if commented { "# something to say\n" } else { "" };
        let engine = with_files(tree.files());
        let other = plan(&engine, &tree.write(&order, "other-", comment, block));
        let mut before: Vec<Key> = tree.keys().into_values().collect();
        let mut after: Vec<Key> = keys(&other).into_values().collect();
        before.sort_unstable();
        after.sort_unstable();
        prop_assert_eq!(before, after);
    }

    #[test]
    fn a_changed_param_link_or_byte_of_a_file_changes_the_keys_of_exactly_what_is_downstream(
        tree in tree(), which in any::<prop::sample::Index>(), kind in 0u8..3, parent in any::<prop::sample::Index>(),
    ) {
        let which = which.index(tree.parents.len());
        let mut changed = tree.clone();
        match kind {
            0 => changed.amounts[which] += 100,
            1 => changed.contents[which] += 100,
            _ => changed.parents[which] = parent,
        }
        prop_assume!(kind < 2 || changed.parent(which) != tree.parent(which));
        let (before, after) = (tree.keys(), changed.keys());
        for (name, key) in &before {
            let depends = match (name.as_bytes()[0], name[1..].parse::<usize>()) {
                (b's', Ok(at)) => tree.depends(at, which),
                (b'r', Ok(at)) => kind == 1 && at == which,
                _ => false,
            };
            prop_assert_eq!(after[name] != *key, depends, "{}", name);
        }
    }
}
