//! The program as a user meets it: the shipped workflows, the commands, exit codes, what is reused, Ctrl-C.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use retouch_graph::{Cancel, Event, Recorder, RunOptions, Settings};

use crate::support::{self, Bench, retouch, root, unchanged};

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
        // The data of protocols are elsewhere: nodes/tests/measure.rs runs them with small ones.
        if (file.parent()).is_some_and(|folder| folder.ends_with("protocols")) {
            continue;
        }
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
        let mut arguments = vec![how, &name, "--set", "steps=3", "--quiet"];
        // What measures draws hundreds of pictures: two of one place and subject are enough to see that it runs.
        let duck = format!("photos={}", root().join("references/duck").display());
        if source.contains("evaluate") {
            arguments.extend(["--set", "batch=2", "--set", "place=in space"]);
            arguments.extend([
                "--set",
                &duck,
                "--set",
                "class=duck",
                "--set",
                "train_steps=2",
            ]);
        }
        if source.contains("\nname: settings\n") {
            let axes = ["blend=union", "sites=auto", "place=in space", "batch=2"];
            arguments.extend(axes.iter().flat_map(|axis| ["--set", axis]));
            arguments.extend(["--over", "until_step=40%,100%"]);
        }
        if source.contains("  train_steps:") && !source.contains("evaluate") {
            arguments.extend(["--set", "train_steps=2"]);
        }
        let run = retouch(out.path(), &arguments);
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
        "evaluate/report.html",
        "evaluate/report.md",
        "evaluate/report.csv",
        "evaluate/report.png",
        "settings/results.csv",
    ] {
        assert!(has(name), "{name} in {saved:?}");
    }
    // The settings stand beside what they are worth.
    let table = std::fs::read_to_string(out.path().join("out/settings/results.csv")).unwrap();
    let head = table.lines().next().unwrap();
    assert!(
        head.contains("until_step") && head.contains(",thing,"),
        "{head}"
    );
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
    unchanged(&again.stdout);
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
    for wrong in [
        "cpu,abacus",
        "cpu,",
        "cpu,cpu --offload",
        "cpu:cpu9",
        "cpu,cpu:cpu2-unfused",
    ] {
        let given = ["run", &file, "--devices"]
            .into_iter()
            .chain(wrong.split(' '));
        assert_eq!(code(&given.collect::<Vec<_>>()), Some(2), "{wrong}");
    }
    std::fs::write(out.path().join("blocked"), "a file where a folder is due").unwrap();
    assert_eq!(
        code(&["run", &file, "--set", "steps=1", "--out", "blocked"]),
        Some(1)
    );
    // What the command line got wrong.
    for command in [
        "run", "sweep", "check", "plan", "graph", "lock", "bundle", "fetch",
    ] {
        assert_eq!(code(&[command, "nowhere.yaml"]), Some(2), "{command}");
    }
    for command in ["fmt", "show", "extract", "replay", "inspect"] {
        assert_eq!(code(&[command, "nowhere"]), Some(2), "{command}");
    }
    assert_eq!(code(&["unbundle", "nowhere.tar.zst", "there"]), Some(2));
    assert_eq!(code(&["diff", "nowhere.yaml", &file]), Some(2));
    assert_eq!(code(&["convert", "nowhere", "there"]), Some(2));
    std::fs::write(out.path().join("typo.yaml"), "setps: 3").unwrap();
    std::fs::write(out.path().join("text.yaml"), "steps: many").unwrap();
    std::fs::write(out.path().join("broken.yaml"), "steps: [").unwrap();
    for command in ["run", "check", "plan", "lock", "bundle", "graph"] {
        for wrong in [
            ["--set", "setps=3"],
            ["--set", "steps"],
            ["--set", "steps=many"],
            ["--set", "steps=0"],
            ["--params", "nowhere.yaml"],
            ["--params", "typo.yaml"],
            ["--params", "text.yaml"],
            ["--params", "broken.yaml"],
        ] {
            let given = [command, &file, wrong[0], wrong[1]];
            assert_eq!(code(&given), Some(2), "{given:?}");
            let json = [command, &file, wrong[0], wrong[1], "--json"];
            if matches!(command, "run" | "check" | "plan") {
                assert_eq!(code(&json), Some(2), "{json:?}");
            }
        }
    }
    assert_eq!(code(&["run", &file, "nobody"]), Some(2));
    assert_eq!(code(&["plan", &file, "nobody"]), Some(2));
    for wrong in ["seed", "sede=1..3", "seed=[", "seed=x"] {
        assert_eq!(code(&["sweep", &file, "--over", wrong]), Some(2), "{wrong}");
    }
    assert_eq!(
        code(&["sweep", &file, "nobody", "--over", "seed=1..3"]),
        Some(2)
    );
    // What is wrong with the files, also beside a fault of the command line.
    let source = std::fs::read_to_string(&file).unwrap();
    let faulty = source.replace("op: load_model", "op: lode_model");
    assert_ne!(faulty, source);
    std::fs::write(out.path().join("faulty.yaml"), faulty).unwrap();
    for command in ["run", "check", "plan", "lock", "bundle", "graph"] {
        assert_eq!(code(&[command, "faulty.yaml"]), Some(3), "{command}");
        let both = [command, "faulty.yaml", "--set", "setps=3"];
        assert_eq!(code(&both), Some(3), "{command}");
    }
    std::fs::write(
        out.path().join("part.yaml"),
        "schema: retouch/v1\nname: a\nnodes: {x: {use: nowhere.yaml}}\noutputs: {y: {value: $x}}\n",
    )
    .unwrap();
    assert_eq!(code(&["check", "part.yaml"]), Some(3));
    // Of several files the worst counts, and all are looked at.
    assert_eq!(code(&["check", "nowhere.yaml", &file]), Some(2));
    assert_eq!(
        code(&["check", "faulty.yaml", "nowhere.yaml", &file]),
        Some(3)
    );
}

/// The rows of a table of a Markdown text whose first column is a number: the number and the second column.
fn numbered_rows(text: &str) -> Vec<(u8, String)> {
    text.lines()
        .filter_map(|line| {
            let mut columns = line.strip_prefix("| ")?.split(" | ");
            let number = columns.next()?.parse().ok()?;
            let meaning = columns.next()?.trim_end_matches(" |");
            Some((number, meaning.to_owned()))
        })
        .collect()
}

#[test]
fn exit_codes_are_the_same_table_in_the_program_and_in_the_documentation() {
    let said = retouch(&root(), &["explain", "exit-codes"]);
    assert!(said.status.success());
    let said = text(&said.stdout);
    let table: Vec<(u8, String)> = said
        .lines()
        .filter_map(|line| {
            let (number, meaning) = line.trim().split_once("  ")?;
            Some((number.parse().ok()?, meaning.to_owned()))
        })
        .collect();
    let numbers: Vec<u8> = table.iter().map(|(number, _)| *number).collect();
    assert!(
        [0, 1, 2, 3, 130]
            .iter()
            .all(|number| numbers.contains(number)),
        "{said}"
    );
    for page in ["README.md", "docs/events.md"] {
        let page_text = std::fs::read_to_string(root().join(page)).unwrap();
        let rows = numbered_rows(&page_text);
        assert_eq!(rows, table, "{page}");
    }
    let help = text(&retouch(&root(), &["--help"]).stdout);
    // Long lines are wrapped there.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (number, meaning) in &table {
        let row = format!("{number} {meaning}");
        assert!(words(&help).contains(&words(&row)), "{row} in {help}");
    }
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
    unchanged(&plain.stdout);
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
        if file.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
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
    // Sweeps, sound and not.
    for (matrix, sound) in [
        ("{a: {lines: x.txt, before: b}}", true),
        ("[{a: [1]}, {b: 1..3}]", true),
        ("{a: {lines: x.txt, before: b, after: c}}", false),
        ("[{a: []}]", false),
        ("[3]", false),
    ] {
        let text = format!("schema: retouch/v1\nsweep: {{workflow: w.yaml, matrix: {matrix}}}\n");
        assert_eq!(validator.is_valid(&to_json(&text)), sound, "{matrix}");
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
fn new_writes_workflows_for_a_model_and_a_subject_of_ones_own() {
    let out = tempfile::tempdir().unwrap();
    let (model, photos) = (root().join("models/world"), root().join("references/duck"));
    let (model, photos) = (model.to_str().unwrap(), photos.to_str().unwrap());
    let of = |folder: &str, more: &[&str]| {
        let fixed = ["new", folder, "--model", model, "--class", "duck"];
        retouch(out.path(), &[&fixed[..], more].concat())
    };
    let made = of("mine", &["--photos", photos]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(text(&made.stdout).trim(), "mine/workflows/train.yaml");
    let read =
        |name: &str| std::fs::read_to_string(out.path().join("mine/workflows").join(name)).unwrap();
    // At the model's own size, with the guidance of Stable Diffusion, not enlarged.
    let both = read("layout-and-retouch.yaml");
    for expected in [
        "default: 64,",
        "default: 7.5,",
        "use: learn.yaml",
        "sks duck",
    ] {
        assert!(both.contains(expected), "{expected}: {both}");
    }
    assert!(!both.contains("resize_image"));
    assert!(read("learn.yaml").contains(photos));
    // What they need of ops is there, and they are in the standard form.
    let files = [
        "learn.yaml",
        "train.yaml",
        "text-to-image.yaml",
        "layout-and-retouch.yaml",
        "retouch.yaml",
    ];
    let folder = out.path().join("mine/workflows");
    let each: Vec<&str> = std::iter::once("check").chain(files).collect();
    let checked = retouch(&folder, &each);
    let has_trainings = retouch_nodes::registry()
        .iter()
        .any(|entry| entry.op() == "train_lora");
    assert_eq!(
        checked.status.success(),
        has_trainings,
        "{}",
        text(&checked.stderr)
    );
    let formatted: Vec<&str> = ["fmt", "--check"].into_iter().chain(files).collect();
    let formatted = retouch(&folder, &formatted);
    assert!(formatted.status.success(), "{}", text(&formatted.stdout));

    // With a LoRA no training is needed: the workflows run as they are.
    let lora = root().join("tests/oracle/data/micro/adapters/sd1-lora-kohya.safetensors");
    let (micro, lora) = (
        root().join("tests/oracle/data/micro/sd1"),
        lora.to_str().unwrap(),
    );
    let made = retouch(
        out.path(),
        &[
            "new",
            "other",
            "--model",
            micro.to_str().unwrap(),
            "--class",
            "duck",
            "--token",
            "ohwx",
            "--photos",
            photos,
            "--lora",
            lora,
        ],
    );
    assert!(made.status.success(), "{}", text(&made.stderr));
    let folder = out.path().join("other/workflows");
    for file in ["text-to-image.yaml", "layout-and-retouch.yaml"] {
        let run = retouch(&folder, &["run", file, "--set", "steps=2", "--quiet"]);
        assert!(run.status.success(), "{file}: {}", text(&run.stderr));
    }
    assert!(folder.join("out/layout-and-retouch/1.png").is_file());

    // What is not there is told before anything is written.
    let nothing = out.path().join("nothing");
    for (more, expected) in [
        (vec!["--photos", nothing.to_str().unwrap()], "nothing"),
        (
            vec!["--photos", photos, "--lora", "no.safetensors"],
            "there is no LoRA",
        ),
        (vec!["--photos", photos, "--size", "100"], "multiple of 64"),
        (vec!["--photos", photos, "--token", " "], "--token"),
    ] {
        let refused = of("third", &more);
        assert_eq!(refused.status.code(), Some(2), "{more:?}");
        assert!(
            text(&refused.stderr).contains(expected),
            "{}",
            text(&refused.stderr)
        );
    }
    let no_photos = of("third", &[]);
    assert!(
        text(&no_photos.stderr).contains("--photos"),
        "{}",
        text(&no_photos.stderr)
    );
    assert!(!out.path().join("third").exists());
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
        .env("RETOUCH_NO_CACHE", "1")
        .env("RETOUCH_CONFIG", "")
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
    support::signal(&child, libc::SIGTERM);
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

/// A workflow without a model: a picture is loaded and saved.
fn copies(folder: &Path) {
    let picture = root().join("references/teddy").display().to_string();
    std::fs::write(
        folder.join("wf.yaml"),
        format!(
            "schema: retouch/v1\nname: wf\nparams:\n  n: {{type: int, default: 1}}\n  folder: {{type: string, default: pictures}}\nnodes:\n  p: {{op: load_image, path: \"{picture}/01.png\"}}\n  r: {{op: resize_image, image: $p, width: $params.n, height: 64}}\noutputs:\n  o: {{value: $r, save: \"{{folder}}/o.png\"}}\n"
        ),
    )
    .unwrap();
}

/// The program with a cache in the folder, started by a shell that does something before: the program then has the
/// shell's process number, `$$`.
#[cfg(unix)]
fn after(folder: &Path, shell: &str, arguments: &[&str]) -> std::process::Output {
    Command::new("sh")
        .args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_retouch"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("RETOUCH_CACHE", folder.join("cache"))
        .env("RETOUCH_CONFIG", "")
        .output()
        .unwrap()
}

#[cfg(unix)]
#[test]
fn links_under_foreseeable_temporary_names_are_not_followed() {
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    copies(folder);
    std::fs::write(folder.join("mine"), "mine").unwrap();
    for place in ["out/pictures", "cache/runs", "cache/plans", "cache/v1/tmp"] {
        std::fs::create_dir_all(folder.join(place)).unwrap();
    }
    let link = |names: &[&str]| {
        let links: Vec<String> = names
            .iter()
            .map(|name| format!("ln -s \"$PWD/mine\" \"{name}\""))
            .collect();
        links.join(" && ")
    };
    let run = link(&[
        "out/.retouch-$$.tmp",
        "out/pictures/.retouch-$$-0.part",
        "out/pictures/.retouch-$$-1.part",
        "cache/.$$.tmp",
        "cache/digests.$$.tmp",
        "cache/runs/.$$.tmp",
        "cache/plans/.$$.tmp",
        "cache/v1/tmp/$$-0",
        ".retouch-$$-preview.part",
    ]);
    let beside = link(&[".wf.yaml.$$.tmp", ".$$.tmp"]);
    let sweep = link(&["out/.$$.tmp", "out/.retouch-$$-0.part", ".$$.tmp"]);
    for (before, arguments) in [
        (&run, vec!["run", "wf.yaml", "--preview", "preview.png"]),
        (&beside, vec!["fmt", "wf.yaml"]),
        (&beside, vec!["lock", "wf.yaml"]),
        (
            &sweep,
            vec!["sweep", "wf.yaml", "--over", "n=8,9", "--table", "t.csv"],
        ),
    ] {
        let output = after(folder, before, &arguments);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        let mine = std::fs::read_to_string(folder.join("mine")).unwrap();
        assert_eq!(mine, "mine", "{arguments:?}");
    }
    for made in ["out/pictures/o.png", "wf.lock", "t.csv"] {
        let path = folder.join(made);
        let there = std::fs::symlink_metadata(&path);
        assert!(there.is_ok_and(|there| there.is_file()), "{made}");
    }
}

#[cfg(unix)]
#[test]
fn cache_and_journal_are_for_their_user_alone_and_outputs_are_as_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    copies(folder);
    // What the first version left open to others.
    let open = "umask 022 && mkdir -p cache/runs cache/v1 && echo >> cache/journal.jsonl";
    let output = after(folder, open, &["run", "wf.yaml", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut folders = vec![folder.join("cache")];
    let mut seen = 0;
    while let Some(below) = folders.pop() {
        for entry in std::fs::read_dir(&below).unwrap() {
            let path = entry.unwrap().path();
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&path), expected, "{}", path.display());
            seen += 1;
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    assert!(seen >= 8, "{seen}: a journal, a record, a run and entries");
    assert_eq!(mode(&folder.join("out/pictures/o.png")), 0o644);
    assert_eq!(mode(&folder.join("out/pictures")), 0o755);
}

#[cfg(unix)]
#[test]
fn outputs_are_not_written_through_a_link_below_the_output_folder() {
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    copies(folder);
    for place in ["real", "elsewhere"] {
        std::fs::create_dir(folder.join(place)).unwrap();
    }
    std::os::unix::fs::symlink("real", folder.join("out")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", folder.join("real/pictures")).unwrap();
    for arguments in [
        vec!["run", "wf.yaml", "--quiet"],
        vec!["sweep", "wf.yaml", "--over", "n=8,9", "--quiet"],
    ] {
        let refused = retouch(folder, &arguments);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("`out/pictures` is a link"), "{said}");
        assert_eq!(
            files_below(&folder.join("elsewhere")),
            [""; 0].map(PathBuf::from)
        );
    }
    // The output folder itself may be one.
    let other = ["run", "wf.yaml", "--quiet", "--set", "folder=others"];
    let run = retouch(folder, &other);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(folder.join("real/others/o.png").is_file());
}

#[test]
fn of_several_processes_that_save_to_one_name_one_gets_it_and_nothing_is_lost() {
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    copies(folder);
    for round in 0..3 {
        for exists in ["fail", "number"] {
            let out = format!("{exists}-{round}");
            let processes: Vec<_> = (1..=6)
                .map(|n| {
                    Command::new(env!("CARGO_BIN_EXE_retouch"))
                        .args(["run", "wf.yaml", "--quiet", "--exists", exists])
                        .args(["--out", &out, "--set", &format!("n={n}")])
                        .current_dir(folder)
                        .env("RETOUCH_NO_CACHE", "1")
                        .env("RETOUCH_CONFIG", "")
                        .stdout(Stdio::null())
                        .stderr(Stdio::null())
                        .spawn()
                        .unwrap()
                })
                .collect();
            let codes: Vec<_> = processes
                .into_iter()
                .map(|mut process| process.wait().unwrap().code())
                .collect();
            let done = codes.iter().filter(|code| **code == Some(0)).count();
            let saved = files_below(&folder.join(&out));
            let widths: std::collections::BTreeSet<u32> = saved
                .iter()
                .map(|path| image::open(path).unwrap().width())
                .collect();
            let expected = if exists == "fail" { 1 } else { 6 };
            assert_eq!(done, expected, "{out}: {codes:?}");
            assert_eq!(saved.len(), expected, "{out}: {saved:?}");
            assert_eq!(widths.len(), expected, "{out}: {widths:?}");
        }
    }
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next_that_writes_there() {
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    copies(folder);
    let old = std::time::SystemTime::now() - Duration::from_secs(2 * 60 * 60);
    let age = |path: &Path| {
        let file = std::fs::File::open(path).unwrap();
        file.set_modified(old).unwrap();
    };
    std::fs::create_dir_all(folder.join("out/pictures")).unwrap();
    let parts = [
        "out/.retouch-abcdefABCDEF.part",
        "out/pictures/.retouch-000000000000.part",
        "out/pictures/.retouch-123-0.part",
    ];
    for part in parts {
        std::fs::write(folder.join(part), "half").unwrap();
        age(&folder.join(part));
    }
    // A folder that was being filled, as `new`, `convert`, `make-random` and `unbundle` make it.
    let draft = folder.join(".retouch-abcdefghijkl.part");
    std::fs::create_dir(&draft).unwrap();
    std::fs::write(draft.join("model.safetensors"), "half").unwrap();
    age(&draft.join("model.safetensors"));
    age(&draft);
    let young = folder.join("out/pictures/.retouch-111111111111.part");
    std::fs::write(&young, "of a process that is at it").unwrap();
    assert!(
        retouch(folder, &["run", "wf.yaml", "--quiet"])
            .status
            .success()
    );
    assert!(retouch(folder, &["new", "mine"]).status.success());
    for part in parts {
        assert!(!folder.join(part).exists(), "{part}");
    }
    assert!(!draft.exists() && young.exists());
    // Into a folder that is there and empty, the current one.
    let empty = folder.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let new = retouch(&empty, &["new", "."]);
    assert!(new.status.success(), "{}", text(&new.stderr));
    assert!(empty.join("workflows/vanilla.yaml").is_file());
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 3);
    let failed = retouch(folder, &["convert", "mine/models", "half"]);
    assert!(!failed.status.success());
    let mut left: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["empty", "mine", "out", "wf.yaml"]);
}

#[test]
fn names_that_some_system_refuses_are_faults_of_check() {
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    copies(folder);
    let long = ["abcdefghi"; 120].join("/");
    let sound = std::fs::read_to_string(folder.join("wf.yaml")).unwrap();
    for (path, why) in [
        ("con.png", "device"),
        ("a./b.png", "ends in a dot"),
        ("a?.png", "`?`"),
        ("a*b<c>|.png", "`*`"),
        (&format!("{long}/a.png"), "at most 1000 are allowed"),
        (
            &format!("{}.png", "n".repeat(240)),
            "at most 240 are allowed",
        ),
    ] {
        let changed = sound.replace("{folder}/o.png", path);
        std::fs::write(folder.join("bad.yaml"), changed).unwrap();
        let check = retouch(folder, &["check", "bad.yaml"]);
        let said = text(&check.stderr);
        assert_eq!(check.status.code(), Some(3), "{path}: {said}");
        let flat = said.replace('│', " ");
        let flat = flat.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            flat.contains("R0601") && flat.contains(why),
            "{path}: {said}"
        );
    }
    let value = retouch(folder, &["check", "wf.yaml", "--set", "folder=what?"]);
    assert_eq!(value.status.code(), Some(2), "{}", text(&value.stderr));
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

/// Runs a workflow of many steps in a shell that ignores a signal first, as `nohup` does, and sends it while it draws.
#[cfg(unix)]
fn signalled(ignored: &str, signal: libc::c_int, steps: u32) -> (Option<i32>, String) {
    let out = tempfile::tempdir().unwrap();
    let mut child = Command::new("sh")
        .args(["-c", &format!("trap '' {ignored}; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_retouch"))
        .args([
            "run",
            &workflow("vanilla.yaml"),
            "raw",
            "--set",
            &format!("steps={steps}"),
            "--json",
        ])
        .current_dir(out.path())
        .env("RETOUCH_NO_CACHE", "1")
        .env("RETOUCH_CONFIG", "")
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
    support::signal(&child, signal);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut events, &mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}

#[cfg(unix)]
#[test]
fn a_signal_that_was_ignored_when_the_program_began_stays_ignored() {
    // What a signal is to end draws for far longer than the signal can take; what goes on is waited for.
    for (ignored, signal, steps, code, status) in [
        ("HUP", libc::SIGHUP, 40, 0, "ok"),
        ("INT", libc::SIGINT, 40, 0, "ok"),
        ("HUP", libc::SIGTERM, 999, 130, "cancelled"),
        ("INT", libc::SIGTERM, 999, 130, "cancelled"),
    ] {
        let (ended, rest) = signalled(ignored, signal, steps);
        assert_eq!(ended, Some(code), "{signal} with {ignored} ignored: {rest}");
        assert!(rest.contains(&format!("\"status\":\"{status}\"")), "{rest}");
    }
}

#[test]
fn a_picture_that_is_asked_for_by_its_node_is_saved_and_a_forgotten_set_is_named() {
    let out = tempfile::tempdir().unwrap();
    let file = workflow("vanilla.yaml");
    let few = ["--set", "steps=1"];
    let run = retouch(
        out.path(),
        &[&["run", &file, "large", "draw"][..], &few].concat(),
    );
    let said = done(&run);
    assert!(said.contains("out/vanilla/large.png  (new)"), "{said}");
    assert!(said.contains("draw.latent  latent "), "{said}");
    assert!(said.contains("(not saved)"), "{said}");
    let picture = image::open(out.path().join("out/vanilla/large.png")).unwrap();
    let whole = done(&retouch(out.path(), &[&["run", &file][..], &few].concat()));
    assert!(whole.contains("picture  out/vanilla/43.png"), "{whole}");
    let same = image::open(out.path().join("out/vanilla/43.png")).unwrap();
    assert_eq!(picture.to_rgba8(), same.to_rgba8());
    for command in ["plan", "run"] {
        let wrong = retouch(out.path(), &[command, &file, "seed=5"]);
        assert_eq!(wrong.status.code(), Some(2));
        let told = text(&wrong.stderr);
        assert!(told.contains("--set seed=5"), "{told}");
    }
}

#[test]
fn a_pipe_hears_that_sampling_begins_and_which_seed_was_drawn() {
    let out = tempfile::tempdir().unwrap();
    let file = workflow("vanilla.yaml");
    let run = retouch(
        out.path(),
        &["run", &file, "--set", "steps=3", "--set", "seed=random"],
    );
    done(&run);
    let told = text(&run.stderr);
    assert!(told.contains("draw: begins, 6 U-Net calls"), "{told}");
    let seed = told
        .split("seed=")
        .nth(1)
        .and_then(|rest| rest.split_once(" (drawn)"))
        .map_or("", |(seed, _)| seed);
    assert!(
        !seed.is_empty() && seed.bytes().all(|one| one.is_ascii_digit()),
        "{told}"
    );
    let again = [
        "run",
        &file,
        "--set",
        "steps=3",
        "--set",
        &format!("seed={seed}"),
    ];
    unchanged(done(&retouch(out.path(), &again)).as_bytes());
}

#[test]
fn watch_says_on_a_pipe_what_begins_and_which_seed_was_drawn() {
    let out = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args([
            "watch",
            &workflow("vanilla.yaml"),
            "raw",
            "--set",
            "steps=3",
        ])
        .args(["--set", "seed=random"])
        .current_dir(out.path())
        .env("RETOUCH_NO_CACHE", "1")
        .env("RETOUCH_CONFIG", "")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    for line in std::io::BufRead::lines(lines).map_while(Result::ok) {
        told.push_str(&line);
        told.push('\n');
        if line.starts_with("done in") {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let first = told.lines().next().unwrap_or("");
    assert!(
        first.starts_with("vanilla: 3 of 3 nodes run; seed=") && first.ends_with(" (drawn)"),
        "{told}"
    );
    assert!(told.contains("  draw: begins, 6 U-Net calls\n"), "{told}");
    assert!(
        told.contains("done in") && told.contains("U-Net calls: 6"),
        "{told}"
    );
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_at_its_place_and_nothing_runs() {
    let sandbox = tempfile::tempdir().unwrap();
    let folder = sandbox.path();
    copies(folder);
    let run = |config: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_retouch"))
            .args(["run", "wf.yaml", "--json"])
            .current_dir(folder)
            .env("NO_COLOR", "1")
            .env("RETOUCH_CONFIG", config)
            .env("RETOUCH_CACHE", folder.join("cache"))
            .env_remove("RETOUCH_NO_CACHE")
            .output()
            .unwrap();
        (output.status.code(), text(&output.stdout))
    };
    let config = folder.join("config.yaml");
    for (content, place) in [
        (
            "cache: {disk: 1GiB}\ncahce: {disk: 1GiB}\n",
            "config.yaml:2:1",
        ),
        ("cache: {disk: much}\n", "config.yaml:1:"),
        ("cache: [\n", "config.yaml:"),
    ] {
        std::fs::write(&config, content).unwrap();
        let (code, told) = run(&config);
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains("R1102") && told.contains(place), "{told}");
        assert!(!folder.join("out").exists(), "{content}");
    }
    // One that is named and not there is refused too.
    let (code, told) = run(&folder.join("none.yaml"));
    assert!(code == Some(2) && told.contains("R1102"), "{told}");
    std::fs::write(&config, "cache: {disk: 1GiB}\n").unwrap();
    let (code, told) = run(&config);
    assert_eq!(code, Some(0), "{told}");
    assert!(folder.join("out/pictures/o.png").exists());
}

// ---- what the documentation says ----

/// The pages of the documentation with their texts.
fn pages() -> Vec<(String, String)> {
    let mut files = vec![root().join("README.md")];
    let docs = files_below(&root().join("docs"));
    files.extend(
        docs.into_iter()
            .filter(|file| file.extension().is_some_and(|end| end == "md")),
    );
    let read = files.into_iter().map(|file| {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        (name, std::fs::read_to_string(file).unwrap())
    });
    read.collect()
}

/// The fenced blocks of a page: the number of the line before each, its language, its text.
fn blocks(page: &str) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String, String)> = None;
    for (number, line) in page.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((number + 1, language.to_owned(), String::new())),
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some((.., text))) => text.push_str(&format!("{line}\n")),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

/// An example as a workflow: what it leaves out is added, what it links to is not.
fn as_workflow(example: &str) -> String {
    let head = "schema: retouch/v1\nname: example\n";
    let indented =
        |text: &str| -> String { text.lines().map(|line| format!("  {line}\n")).collect() };
    let first = example
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("");
    if first.starts_with("schema: retouch/v1") {
        example.to_owned()
    } else if first.starts_with("nodes:") {
        format!("{head}{example}")
    } else if first.starts_with("  ") {
        format!("{head}nodes:\n{example}")
    } else {
        format!("{head}nodes:\n{}", indented(example))
    }
}

#[test]
fn every_yaml_example_of_the_documentation_is_sound_as_far_as_it_goes() {
    let bench = Bench::new();
    let settings = Settings::default();
    // Only what an example leaves out may be missing: nodes that it links to, files, models that are not fetched, links.
    let left_out = ["R0302", "R0322", "R0324", "R0307", "R0308"];
    let (mut whole, mut parts) = (0, 0);
    let mut wrong: Vec<String> = Vec::new();
    for (page, text) in pages() {
        for (line, language, example) in blocks(&text) {
            let at = format!("{page}:{line}");
            let comment = example
                .lines()
                .all(|line| line.trim().is_empty() || line.starts_with('#'));
            if language != "yaml" || comment {
                continue;
            }
            let example = example.replace("…64 hexadecimal digits…", &"0".repeat(64));
            let mut faults = Vec::new();
            let source = retouch_graph::Source::new(&*at, &*example);
            let tree = retouch_graph::yaml::parse(&source, &mut faults);
            assert!(tree.is_some() && faults.is_empty(), "{at}: {faults:?}");
            let name = root().join("workflows/example.yaml").display().to_string();
            if example.starts_with("schema: retouch/v1") {
                let checked = bench.engine.load_str(&name, &example, &settings);
                let checked = checked.unwrap_or_else(|faults| panic!("{at}: {faults}"));
                assert!(bench.engine.plan(&checked, &[]).is_ok(), "{at}");
                assert!(checked.warnings.is_empty(), "{at}: {:?}", checked.warnings);
                whole += 1;
            } else if example.starts_with("sweep:") {
                let out = tempfile::tempdir().unwrap();
                done(&retouch(out.path(), &["new", "box"]));
                let folder = out.path().join("box/workflows");
                let sweep = format!("schema: retouch/v1\nname: example\n{example}");
                std::fs::write(folder.join("example.yaml"), sweep).unwrap();
                std::fs::write(folder.join("places.txt"), "on a beach\n# none\nin space\n")
                    .unwrap();
                done(&retouch(&folder, &["check", "example.yaml"]));
                parts += 1;
            } else if example.starts_with("schema: ") {
                // A lock, or a bundle's manifest: their own tests read such.
            } else {
                if let Err(faults) = bench
                    .engine
                    .load_str(&name, &as_workflow(&example), &settings)
                {
                    let other: Vec<String> = (faults.iter())
                        .filter(|fault| !left_out.contains(&fault.code().as_str()))
                        .map(|fault| format!("{} {fault}", fault.code()))
                        .collect();
                    wrong.extend(other.into_iter().map(|fault| format!("{at}: {fault}")));
                }
                parts += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(whole >= 2 && parts >= 8, "{whole} {parts}");
}

#[track_caller]
fn done(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The commands that a text shows: `retouch run FILE --json`, in a line of a block or between backquotes.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            let line = line.trim_start();
            let line = line.strip_prefix("$ ").unwrap_or(line);
            found.extend(line.starts_with("retouch ").then(|| line.to_owned()));
        } else {
            let quoted = line.split('`').skip(1).step_by(2);
            found.extend(
                quoted
                    .filter(|text| text.starts_with("retouch "))
                    .map(str::to_owned),
            );
        }
    }
    found
}

#[test]
fn every_command_and_option_that_the_documentation_shows_is_one() {
    let mut helps: std::collections::BTreeMap<String, String> = Default::default();
    let mut count = 0;
    for (page, text_of_page) in pages() {
        for shown in commands(&text_of_page) {
            // Up to a comment or another program.
            let shown = shown
                .split(['#', '|'])
                .next()
                .unwrap_or("")
                .replace('\\', " ");
            let mut words = shown.split_whitespace().skip(1);
            let Some(command) = words.next().filter(|word| !word.starts_with('-')) else {
                continue;
            };
            if command
                .chars()
                .any(|letter| !letter.is_ascii_lowercase() && letter != '-')
            {
                continue; // a place holder: `retouch COMMAND --help`
            }
            let help = helps.entry(command.to_owned()).or_insert_with(|| {
                let help = retouch(&root(), &[command, "--help"]);
                assert!(help.status.success(), "{page}: `{shown}`");
                text(&help.stdout)
            });
            for word in words {
                let option = word.trim_start_matches(['[', '(']);
                if !option.starts_with("--") {
                    continue;
                }
                let option: String = option
                    .chars()
                    .take_while(|letter| letter.is_ascii_lowercase() || *letter == '-')
                    .collect();
                let known =
                    help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n"));
                assert!(known || option == "--help", "{page}: `{shown}`: {option}");
                count += 1;
            }
        }
    }
    assert!(helps.len() > 20 && count > 10, "{} {count}", helps.len());
}

#[test]
fn the_example_of_the_events_is_what_the_program_prints() {
    let page = std::fs::read_to_string(root().join("docs/events.md")).unwrap();
    let (_, _, example) = blocks(&page).into_iter().next().unwrap();
    let mut lines = example.lines();
    let command = lines.next().unwrap();
    assert_eq!(
        command,
        "$ retouch run workflows/vanilla.yaml --json | head -3"
    );
    let out = tempfile::tempdir().unwrap();
    done(&retouch(out.path(), &["new", "box"]));
    let printed = done(&retouch(
        &out.path().join("box"),
        &["run", "workflows/vanilla.yaml", "--json"],
    ));
    let common = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        // What depends on the version, the machine and the run.
        let stands_for = [
            ("key", "0".into()),
            ("seconds", 0.into()),
            ("time", "0".into()),
            ("run", "0".into()),
        ];
        for (field, stands) in stands_for {
            if line.get(field).is_some() {
                line[field] = stands;
            }
        }
        line
    };
    let written: Vec<_> = lines.map(common).collect();
    let printed: Vec<_> = printed.lines().take(3).map(common).collect();
    assert_eq!(written, printed);
}

#[test]
fn manual_pages_are_printed_and_written_for_every_command() {
    let out = tempfile::tempdir().unwrap();
    let page = done(&retouch(out.path(), &["man"]));
    assert!(page.contains(".TH retouch 1"), "{page}");
    assert!(page.contains("retouch\\-sweep(1)"), "{page}");
    let written = done(&retouch(out.path(), &["man", "pages"]));
    let names: Vec<String> = files_below(&out.path().join("pages"))
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), written.lines().count());
    for name in [
        "retouch.1",
        "retouch-run.1",
        "retouch-runs-show.1",
        "retouch-cache-clear.1",
    ] {
        assert!(names.iter().any(|one| one == name), "{name} in {names:?}");
    }
    let run = std::fs::read_to_string(out.path().join("pages/retouch-run.1")).unwrap();
    assert!(run.contains("keep\\-going"), "{run}");
    assert!(
        !names.iter().any(|name| name.contains("bench")),
        "{names:?}"
    );
}

#[test]
fn with_keep_going_a_run_saves_what_it_can_and_fails() {
    let out = tempfile::tempdir().unwrap();
    let photo = root().join("references/teddy/01.png");
    std::fs::copy(photo, out.path().join("photo.png")).unwrap();
    std::fs::create_dir(out.path().join("out")).unwrap();
    std::fs::write(out.path().join("out/taken.png"), "mine").unwrap();
    let yaml = "schema: retouch/v1
nodes:
  photo: {op: load_image, path: photo.png}
  small: {op: resize_image, image: $photo, scale: 0.5}
  smaller: {op: resize_image, image: $small, scale: 0.5}
outputs:
  taken: {value: $photo, save: taken.png}
  small: {value: $small, save: small.png}
  smaller: {value: $smaller, save: smaller.png}
";
    std::fs::write(out.path().join("job.yaml"), yaml).unwrap();
    let run = retouch(
        out.path(),
        &["run", "job.yaml", "--exists", "fail", "--keep-going"],
    );
    let (said, told) = (text(&run.stdout), text(&run.stderr));
    assert_eq!(run.status.code(), Some(1), "{told}");
    assert!(said.contains("smaller.png"), "{said}");
    assert!(!said.contains("taken"), "{said}");
    assert!(told.contains("taken.png` exists already"), "{told}");
    assert!(out.path().join("out/small.png").is_file());
}
