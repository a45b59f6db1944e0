//! The program as a user meets it: the shipped workflows, the commands, exit codes, what is reused, Ctrl-C.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use retouch_graph::{Cancel, Event, Recorder, RunOptions, Settings};
use support::{Bench, retouch, root};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn workflow(name: &str) -> String {
    root().join("workflows").join(name).display().to_string()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_shipped_workflow_opens_with_a_comment_checks_and_runs_at_few_steps() {
    let out = tempfile::tempdir().unwrap();
    let mut ran = 0;
    for file in files_below(&root().join("workflows")) {
        let source = std::fs::read_to_string(&file).unwrap();
        assert!(
            source.starts_with("# "),
            "{} says what it shows",
            file.display()
        );
        let name = file.display().to_string();
        let check = retouch(out.path(), &["check", &name]);
        assert!(check.status.success(), "{}", text(&check.stderr));
        let format = retouch(out.path(), &["fmt", "--check", &name]);
        assert!(
            format.status.success(),
            "{name} is not in the standard form"
        );
        if source.contains("\ninputs:") {
            let run = retouch(out.path(), &["run", &name]);
            assert_eq!(
                run.status.code(),
                Some(3),
                "a graph for use in others does not run alone"
            );
            continue;
        }
        // A sweep that names its workflow is run as one.
        let how = if source.contains("\nsweep:") {
            "sweep"
        } else {
            "run"
        };
        let run = retouch(out.path(), &[how, &name, "--set", "steps=3", "--quiet"]);
        assert!(run.status.success(), "{name}: {}", text(&run.stderr));
        let said = text(&run.stdout);
        assert!(said.lines().count() >= 2, "{said}");
        ran += 1;
    }
    assert!(ran >= 6);
    let saved = files_below(&out.path().join("out"));
    let has = |name: &str| saved.iter().any(|path| path.ends_with(name));
    for name in [
        "layout-and-retouch/43.png",
        "layout-and-retouch/43-layout.png",
        "compare/42.png",
        "invert/error.csv",
        "masactrl/43.png",
        "sweep/sheet.png",
        "sweep/results.csv",
    ] {
        assert!(has(name), "{name} in {saved:?}");
    }
    let sheet = image::open(out.path().join("out/compare/42.png")).unwrap();
    assert!(sheet.width() > 8 * 192 && sheet.height() > 4 * 192);
}

#[test]
fn the_same_file_and_seed_give_the_same_bytes_at_any_number_of_threads() {
    let out = tempfile::tempdir().unwrap();
    let file = workflow("layout-and-retouch.yaml");
    let first = [
        "run",
        &file,
        "--set",
        "steps=4",
        "--quiet",
        "--threads",
        "1",
    ];
    assert!(retouch(out.path(), &first).status.success());
    let again = retouch(
        out.path(),
        &[
            "run",
            &file,
            "--set",
            "steps=4",
            "--quiet",
            "--threads",
            "2",
        ],
    );
    assert!(again.status.success());
    let said = text(&again.stdout);
    assert!(
        said.lines().all(|line| line.ends_with("(unchanged)")),
        "{said}"
    );
}

#[test]
fn editing_the_last_node_and_running_again_in_one_process_reuses_everything_before_it() {
    let bench = Bench::new();
    let file = root().join("workflows/layout-and-retouch.yaml");
    let source = std::fs::read_to_string(&file).unwrap();
    let run = |source: &str| {
        let settings = Settings {
            set: vec!["steps=3".into()],
            ..Settings::default()
        };
        let checked = bench
            .engine
            .load_str(&file.display().to_string(), source, &settings)
            .unwrap();
        let plan = bench.engine.plan(&checked, &[]).unwrap();
        let recorder = Recorder::new();
        bench
            .engine
            .run(&plan, &recorder, &Cancel::new(), &RunOptions::default())
            .unwrap();
        recorder
    };
    let first = run(&source);
    assert!(first.reused().is_empty());
    let edited = source.replace(
        "final_large:  {op: resize_image, image: $retouch.picture, scale: 6}",
        "final_large:  {op: resize_image, image: $retouch.picture, scale: 3}",
    );
    assert_ne!(edited, source);
    let second = run(&edited);
    assert_eq!(second.ran(), ["final_large"]);
    assert_eq!(second.reused().len() + 1, first.ran().len());
    assert!(
        second
            .events()
            .iter()
            .any(|event| matches!(event, Event::RunFinished { ran: 1, .. }))
    );
    // A comment, another order and another name change nothing.
    let renamed = format!("# a comment\n{}", edited.replace("final_large", "big"));
    assert!(run(&renamed).ran().is_empty());
}

#[test]
fn exit_codes_are_those_of_the_manual() {
    let out = tempfile::tempdir().unwrap();
    let code = |arguments: &[&str]| retouch(out.path(), arguments).status.code();
    let file = workflow("vanilla.yaml");
    assert_eq!(code(&["nodes"]), Some(0));
    assert_eq!(code(&["frobnicate"]), Some(2));
    assert_eq!(code(&["nodes", "sampel"]), Some(2));
    assert_eq!(code(&["explain", "R9999"]), Some(2));
    assert_eq!(code(&["run", &file, "--device", "abacus"]), Some(2));
    assert_eq!(code(&["run", "nowhere.yaml"]), Some(3));
    assert_eq!(code(&["run", &file, "--set", "setps=3"]), Some(3));
    assert_eq!(code(&["run", &file, "nobody"]), Some(3));
    std::fs::write(out.path().join("blocked"), "a file where a folder is due").unwrap();
    assert_eq!(
        code(&["run", &file, "--set", "steps=1", "--out", "blocked"]),
        Some(1)
    );
}

#[test]
fn what_exists_is_numbered_replaced_kept_or_refused() {
    let out = tempfile::tempdir().unwrap();
    let file = workflow("vanilla.yaml");
    let run = |steps: &str, more: &[&str]| {
        let mut arguments = vec!["run", &file, "raw", "--quiet", "--set", steps];
        arguments.extend(more);
        retouch(out.path(), &arguments)
    };
    let picture = out.path().join("out/vanilla/43-raw.png");
    assert!(run("steps=1", &[]).status.success());
    let first = std::fs::read(&picture).unwrap();
    assert!(run("steps=2", &[]).status.success());
    assert!(picture.with_file_name("43-raw-2.png").exists());
    assert_eq!(std::fs::read(&picture).unwrap(), first);
    assert!(run("steps=2", &["--exists", "keep"]).status.success());
    assert_eq!(std::fs::read(&picture).unwrap(), first);
    let refused = run("steps=2", &["--exists", "fail"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    assert!(run("steps=2", &["--exists", "replace"]).status.success());
    assert_ne!(std::fs::read(&picture).unwrap(), first);
}

#[test]
fn events_are_json_lines_and_results_alone_are_on_standard_output() {
    let out = tempfile::tempdir().unwrap();
    let file = workflow("vanilla.yaml");
    let run = retouch(out.path(), &["run", &file, "--set", "steps=2", "--json"]);
    assert!(run.status.success());
    let events: Vec<serde_json::Value> = text(&run.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events[0]["event"], "run_started");
    assert_eq!(events[0]["schema"], 1);
    let last = events.last().unwrap();
    assert_eq!(last["event"], "run_finished");
    assert_eq!(last["counters"]["unet_calls"], 4);
    let plain = retouch(out.path(), &["run", &file, "--set", "steps=2"]);
    let said = text(&plain.stdout);
    assert!(
        said.lines().all(|line| line.contains("unchanged")),
        "{said}"
    );
    assert!(text(&plain.stderr).contains("U-Net calls: 4"));
}

#[test]
fn shipped_workflows_and_only_sound_ones_satisfy_the_schema_for_editors() {
    let schema: serde_json::Value =
        serde_json::from_slice(&retouch(&root(), &["schema"]).stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let as_json = |path: &Path| -> serde_json::Value {
        let source = std::fs::read_to_string(path).unwrap();
        to_json(&source)
    };
    for file in files_below(&root().join("workflows")) {
        let instance = as_json(&file);
        let errors: Vec<String> = validator
            .iter_errors(&instance)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
    }
    for name in [
        "op-unknown",
        "field-unknown",
        "field-missing",
        "key-unknown-top",
        "param-type-unknown",
        "swap-blend-word",
    ] {
        let instance = as_json(&root().join(format!("tests/invalid/{name}.yaml")));
        assert!(!validator.is_valid(&instance), "{name}");
    }
}

/// A workflow as the JSON that an editor's schema sees.
fn to_json(source: &str) -> serde_json::Value {
    use retouch_graph::yaml::{Node, Tree};
    fn convert(tree: &Tree) -> serde_json::Value {
        match &tree.node {
            Node::Null => serde_json::Value::Null,
            Node::Bool(b) => (*b).into(),
            Node::Int(i) => (*i).into(),
            Node::Float(f) => (*f).into(),
            Node::String { text, .. } => text.as_str().into(),
            Node::Seq(items) => items.iter().map(convert).collect(),
            Node::Map(entries) => entries
                .iter()
                .map(|(key, value)| (key.text.to_string(), convert(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
    let mut problems = Vec::new();
    let source = retouch_graph::Source::new("test", source);
    convert(&retouch_graph::yaml::parse(&source, &mut problems).unwrap())
}

#[test]
fn the_reference_and_the_explanations_cover_everything() {
    let nodes = text(&retouch(&root(), &["nodes"]).stdout);
    for op in [
        "load_model",
        "swap_attention",
        "step_blend_sample",
        "attention_map",
    ] {
        assert!(nodes.contains(op));
        let page = text(&retouch(&root(), &["nodes", op]).stdout);
        assert!(page.contains("Outputs"), "{page}");
    }
    let codes = text(&retouch(&root(), &["explain"]).stdout);
    for line in codes.lines() {
        let code = line.split_whitespace().next().unwrap();
        let explained = retouch(&root(), &["explain", code]);
        assert!(
            explained.status.success() && explained.stdout.len() > 40,
            "{code}"
        );
    }
}

#[test]
fn new_makes_a_folder_that_runs_on_its_own() {
    let out = tempfile::tempdir().unwrap();
    assert!(retouch(out.path(), &["new", "mine"]).status.success());
    let run = retouch(
        &out.path().join("mine"),
        &[
            "run",
            "workflows/vanilla.yaml",
            "--set",
            "steps=1",
            "--quiet",
        ],
    );
    assert!(run.status.success(), "{}", text(&run.stderr));
    let again = retouch(out.path(), &["new", "mine"]);
    assert_eq!(again.status.code(), Some(1));
}

#[test]
fn graphs_are_drawn_in_both_languages() {
    let file = workflow("layout-and-retouch.yaml");
    let dot = text(&retouch(&root(), &["graph", &file]).stdout);
    assert!(
        dot.starts_with("digraph") && dot.contains("retouch/swap"),
        "{dot}"
    );
    let mermaid = text(&retouch(&root(), &["graph", &file, "--format", "mermaid"]).stdout);
    assert!(
        mermaid.starts_with("flowchart") || mermaid.starts_with("graph"),
        "{mermaid}"
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_within_a_step_with_130_and_leaves_nothing_half_written() {
    let out = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args([
            "run",
            &workflow("layout-and-retouch.yaml"),
            "--set",
            "steps=500",
            "--json",
        ])
        .current_dir(out.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut events = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("node_progress") {
        line.clear();
        std::io::BufRead::read_line(&mut events, &mut line).unwrap();
        assert!(!line.is_empty(), "the run ended before it drew");
    }
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let deadline = Instant::now() + Duration::from_secs(60);
    let drain = std::thread::spawn(move || {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut events, &mut rest).map(|_| rest)
    });
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not stop");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(130));
    let rest = drain.join().unwrap().unwrap();
    assert!(rest.contains("\"status\":\"cancelled\""), "{rest}");
    // The log says how far it went on: not a whole step more than the one that was under way.
    let steps = rest
        .lines()
        .filter(|line| line.contains("node_progress"))
        .count();
    assert!(steps < 100, "{steps} more steps were drawn");
    assert_eq!(files_below(out.path()), Vec::<PathBuf>::new());
}

#[cfg(target_os = "linux")]
#[test]
fn refused_memory_ends_with_an_exit_code_of_its_own_and_says_what_was_being_made() {
    let folder = tempfile::tempdir().unwrap();
    let photo = root().join("tests/oracle/data/tiny-sd1.png");
    // 767 MB of numbers, in a process that may have 717.
    let workflow = format!(
        "schema: retouch/v1
nodes:
  photo: {{op: load_image, path: '{}'}}
  large: {{op: resize_image, image: $photo, width: 8192, height: 7800}}
outputs:
  large: {{value: $large, save: large.png}}
",
        photo.display()
    );
    std::fs::write(folder.path().join("w.yaml"), workflow).unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 700000; exec \"$0\" run w.yaml"])
        .arg(env!("CARGO_BIN_EXE_retouch"))
        .current_dir(folder.path())
        .env("RETOUCH_NO_CACHE", "1")
        .env("RETOUCH_CONFIG", "")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("error: out of memory: the system refused")
            && said.contains("while this ran: `large` (resize_image)")
            && said.contains("help: "),
        "{said}"
    );
    assert!(files_below(&folder.path().join("out")).is_empty());
}
