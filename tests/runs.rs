//! The journal of runs as a user meets it.

#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;

use crate::support::{self, root};

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retouch"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("RETOUCH_CACHE", folder.join("cache"))
        .env("RETOUCH_CONFIG", "")
        .stdin(Stdio::null());
    command
}

fn retouch(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

#[track_caller]
fn good(folder: &Path, arguments: &[&str]) -> String {
    let output = retouch(folder, arguments);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn bad(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = retouch(folder, arguments);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
    told
}

/// A small workflow with a seed that is drawn.
fn vanilla() -> String {
    let models = root().join("models").display().to_string();
    format!(
        "schema: retouch/v1
name: small
params:
  place: {{type: string, default: here}}
  steps: {{type: int, default: 2}}
  seed: {{type: seed, default: random}}
nodes:
  base: {{op: load_model, path: '{models}/world'}}
  draw: {{op: sample, model: $base, prompt: \"a cat {{place}}\", steps: $params.steps, seed: $params.seed}}
  picture: {{op: decode, model: $base, latent: $draw}}
outputs:
  picture: {{value: $picture, save: picture.png}}
"
    )
}

fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("wf.yaml"), vanilla()).unwrap();
    folder
}

fn show(folder: &Path, run: &str) -> Json {
    serde_json::from_str(&good(folder, &["runs", "show", run, "--json"])).unwrap()
}

fn list(folder: &Path, more: &[&str]) -> Vec<Json> {
    let arguments = [&["runs", "--json"], more].concat();
    good(folder, &arguments)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_run_is_written_down_with_what_it_took_and_made_and_shown_newest_first() {
    let folder = project();
    let folder = folder.path();
    assert!(bad(folder, 2, &["runs", "show"]).contains("no runs are recorded yet"));
    assert!(list(folder, &[]).is_empty());
    good(folder, &["run", "wf.yaml", "--set", "place=in space", "-q"]);
    let first = show(folder, "last");
    assert_eq!(first["status"], "ok");
    assert_eq!(first["kind"], "run");
    assert_eq!(first["asked"]["set"][0], "place=in space");
    assert!(Path::new(first["asked"]["file"].as_str().unwrap()).is_absolute());
    assert_eq!(first["counters"]["unet_calls"], 4);
    let outcomes: Vec<&str> = first["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["ran", "ran", "ran"]);
    let seed = &first["params"][2];
    assert_eq!(
        (&seed["name"], &seed["from"]),
        (&"seed".into(), &"drawn".into())
    );
    // The same seed again is what the drawn one was.
    let again = format!("seed={}", seed["value"]);
    good(
        folder,
        &[
            "run",
            "wf.yaml",
            "--set",
            "place=in space",
            "--set",
            &again,
            "-q",
        ],
    );
    let second = show(folder, "last");
    assert_eq!(second["reused"], 3);
    assert_eq!(second["counters"], serde_json::json!({}));
    assert_eq!(second["outputs"][0]["status"], "unchanged");
    assert_eq!(
        second["outputs"][0]["blake3"],
        first["outputs"][0]["blake3"]
    );
    assert_eq!(second["plan_blake3"], first["plan_blake3"]);
    good(
        folder,
        &[
            "sweep", "wf.yaml", "--over", "seed=1,2", "-q", "--out", "swept",
        ],
    );
    let third = show(folder, "last");
    assert_eq!(third["kind"], "sweep");
    assert_eq!(third["cells"], 2);
    assert_eq!(third["asked"]["over"][0], "seed=1,2");
    let ids: Vec<Json> = list(folder, &[])
        .into_iter()
        .map(|run| run["id"].clone())
        .collect();
    assert_eq!(
        ids,
        [
            third["id"].clone(),
            second["id"].clone(),
            first["id"].clone()
        ]
    );
    assert_eq!(list(folder, &["-n", "2"]).len(), 2);
    assert_eq!(list(folder, &["wf.yaml"]).len(), 3);
    assert!(list(folder, &["other.yaml"]).is_empty());
    // For people.
    let said = good(folder, &["runs"]);
    assert_eq!(said.lines().count(), 3);
    assert!(said.lines().next().unwrap().contains("sweep  ok"), "{said}");
    let said = good(folder, &["runs", "show", first["id"].as_str().unwrap()]);
    for part in [
        "--set 'place=in space'",
        "(drawn)",
        "4 U-Net calls",
        "as it was",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn a_file_that_changed_or_went_since_its_run_is_said_to_have() {
    let folder = project();
    let folder = folder.path();
    good(folder, &["run", "wf.yaml", "-q"]);
    let picture = folder.join("out/picture.png");
    std::fs::write(&picture, "another").unwrap();
    assert!(good(folder, &["runs", "show"]).contains("CHANGED"));
    assert_eq!(show(folder, "last")["outputs"][0]["now"], "changed");
    std::fs::remove_file(&picture).unwrap();
    assert!(good(folder, &["runs", "show"]).contains("GONE"));
    // A file that was kept is not the run's.
    std::fs::write(&picture, "another").unwrap();
    good(folder, &["run", "wf.yaml", "-q", "--exists", "keep"]);
    let kept = &show(folder, "last")["outputs"][0];
    assert_eq!(
        (&kept["blake3"], &kept["now"]),
        (&Json::Null, &"not_compared".into())
    );
}

#[test]
fn a_run_that_fails_or_is_cancelled_or_killed_is_written_down_as_such() {
    let folder = project();
    let folder = folder.path();
    good(folder, &["run", "wf.yaml", "-q"]);
    bad(folder, 1, &["run", "wf.yaml", "-q", "--exists", "fail"]);
    let failed = show(folder, "last");
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["error"]["code"], "R1005");
    assert!(good(folder, &["runs", "show"]).contains("error R1005: picture: "));
    // A fault is no run.
    bad(folder, 2, &["run", "wf.yaml", "--set", "no=1"]);
    assert_eq!(list(folder, &[]).len(), 2);
    for (signal, status) in [(libc::SIGTERM, "cancelled"), (libc::SIGKILL, "killed")] {
        let mut child = command(folder, &["run", "wf.yaml", "--json", "--set", "steps=999"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let drawing = |line: &Result<String, _>| line.as_ref().unwrap().contains("node_progress");
        assert!(lines.by_ref().any(|line| drawing(&line)));
        assert_eq!(show(folder, "last")["status"], "running");
        support::signal(&child, signal);
        // Were they not read, the run could end of that instead.
        lines.for_each(drop);
        child.wait().unwrap();
        assert_eq!(show(folder, "last")["status"], status);
        assert_eq!(list(folder, &[])[0]["status"], status);
    }
}

#[test]
fn each_run_of_watch_mode_is_written_down() {
    let folder = project();
    let folder = folder.path();
    let mut child = command(folder, &["watch", "wf.yaml", "--json", "--set", "seed=1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = || {
        lines
            .by_ref()
            .any(|line| line.unwrap().contains("\"watching\""))
    };
    assert!(until());
    let edited = vanilla().replace("default: here", "default: there");
    std::fs::write(folder.join("wf.yaml"), edited).unwrap();
    assert!(until());
    child.kill().unwrap();
    child.wait().unwrap();
    let runs = list(folder, &[]);
    assert_eq!(runs.len(), 2);
    assert!(
        runs.iter()
            .all(|run| run["kind"] == "watch" && run["status"] == "ok")
    );
    assert_eq!(show(folder, "last")["params"][0]["value"], "there");
}

#[test]
fn a_name_that_is_unknown_or_not_enough_is_an_error_that_says_what_to_do() {
    let folder = project();
    let folder = folder.path();
    for _ in 0..2 {
        good(folder, &["run", "wf.yaml", "-q", "--set", "seed=1"]);
    }
    assert!(bad(folder, 2, &["runs", "show", "20"]).contains("2 runs begin with `20`"));
    assert!(bad(folder, 2, &["runs", "show", "19990101"]).contains("no run `19990101`"));
    for name in ["", "../journal", "*", "last2"] {
        assert!(
            bad(folder, 2, &["runs", "show", name]).contains("no run"),
            "{name}"
        );
    }
    let output = retouch(folder, &["runs", "show", "x", "--json"]);
    let line: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&line["event"], &line["code"]),
        (&"error".into(), &"R1301".into())
    );
    // A record that is damaged hides no other.
    let id = list(folder, &[])[0]["id"].as_str().unwrap().to_owned();
    std::fs::write(folder.join(format!("cache/runs/{id}.json")), "{").unwrap();
    assert_eq!(list(folder, &[]).len(), 1);
    assert!(bad(folder, 1, &["runs", "show"]).contains("cannot be read"));
    // A record of a later program is not misread.
    std::fs::write(
        folder.join(format!("cache/runs/{id}.json")),
        "{\"schema\": \"retouch-run/9\"}",
    )
    .unwrap();
    assert!(bad(folder, 1, &["runs", "show"]).contains("retouch-run/9"));
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[test]
fn without_a_cache_nothing_is_written_down_and_a_journal_that_cannot_be_written_is_one_warning() {
    let folder = project();
    let folder = folder.path();
    good(folder, &["run", "wf.yaml", "-q", "--no-cache"]);
    assert!(below(&folder.join("cache")).is_empty());
    assert!(bad(folder, 2, &["runs", "--no-cache"]).contains("--cache-dir"));
    std::fs::create_dir_all(folder.join("cache")).unwrap();
    std::fs::write(folder.join("cache/runs"), "in the way").unwrap();
    let output = retouch(folder, &["run", "wf.yaml", "-q"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success());
    // The workflow itself is warned of: it has two steps.
    let warnings = told.lines().filter(|line| line.starts_with("warning"));
    let cache: Vec<&str> = warnings.filter(|line| !line.contains("steps")).collect();
    assert!(
        cache.len() == 1 && cache[0].contains("journal of runs"),
        "{told}"
    );
}

#[test]
fn clearing_the_cache_leaves_the_runs_and_clearing_the_runs_leaves_the_cache() {
    let folder = project();
    let folder = folder.path();
    good(folder, &["run", "wf.yaml", "-q", "--set", "seed=1"]);
    good(folder, &["cache", "clear"]);
    assert_eq!(list(folder, &[]).len(), 1);
    good(folder, &["run", "wf.yaml", "-q", "--set", "seed=1"]);
    assert!(good(folder, &["runs", "clear"]).contains("2 runs removed"));
    assert!(list(folder, &[]).is_empty());
    assert!(below(&folder.join("cache/runs")).is_empty());
    good(folder, &["run", "wf.yaml", "-q", "--set", "seed=1"]);
    assert_eq!(list(folder, &[])[0]["reused"], 3);
}

/// All files below a folder, with when they were written and what they hold.
fn snapshot(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime, Vec<u8>)> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for path in below(&folder) {
            if path.is_dir() {
                open.push(path);
            } else {
                let written = path.metadata().unwrap().modified().unwrap();
                files.push((path.clone(), written, std::fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// A folder of one's own with the main workflow, at few steps.
fn main_job() -> (tempfile::TempDir, PathBuf, Vec<&'static str>) {
    let folder = tempfile::tempdir().unwrap();
    good(folder.path(), &["new", "p"]);
    let arguments = vec![
        "run",
        "p/workflows/layout-and-retouch.yaml",
        "--set",
        "steps=5",
        "-q",
    ];
    let path = folder.path().to_owned();
    (folder, path, arguments)
}

fn verified(folder: &Path, code: i32, run: &str) -> Vec<Json> {
    let output = retouch(folder, &["verify", run, "--json"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn runs_and_sweeps_come_out_equal_and_verifying_touches_neither_the_cache_nor_the_files() {
    let (_held, folder, arguments) = main_job();
    let folder = folder.as_path();
    good(folder, &arguments);
    std::fs::write(folder.join("wf.yaml"), vanilla()).unwrap();
    // A seed that was drawn, one that a sweep draws, and params from a file.
    std::fs::write(folder.join("params.yaml"), "place: \"on a hill\"\n").unwrap();
    good(
        folder,
        &[
            "run",
            "wf.yaml",
            "-q",
            "--params",
            "params.yaml",
            "--out",
            "drawn",
        ],
    );
    good(
        folder,
        &[
            "sweep",
            "wf.yaml",
            "-q",
            "--over",
            "seed=1,random",
            "--out",
            "swept",
        ],
    );
    let plain = ["run", "wf.yaml", "-q", "--no-provenance", "--out", "plain"];
    good(folder, &plain);
    let (cache, out) = (
        snapshot(&folder.join("cache")),
        snapshot(&folder.join("out")),
    );
    let runs = list(folder, &[]);
    assert_eq!(runs.len(), 4);
    for (run, outputs) in runs.iter().zip([1, 2, 1, 5]) {
        let lines = verified(folder, 0, run["id"].as_str().unwrap());
        let [line] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!(line["run"], run["id"]);
        assert_eq!(
            (&line["equal"], &line["outputs"]),
            (&true.into(), &outputs.into())
        );
        assert_eq!(
            (&line["values_gone"], &line["first"]),
            (&0.into(), &Json::Null)
        );
        assert!(line["values"].as_u64().unwrap() >= 4, "{line}");
    }
    // From another folder, with what was relative.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = command(elsewhere.path(), &["verify", "-q"]);
    let output = command
        .env("RETOUCH_CACHE", folder.join("cache"))
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains(": equal; "));
    assert!(below(elsewhere.path()).is_empty());
    assert!(
        snapshot(&folder.join("cache")) == cache,
        "the cache is as it was"
    );
    assert!(
        snapshot(&folder.join("out")) == out,
        "the files are as they were"
    );
}

#[test]
fn the_first_step_whose_kept_state_is_another_is_named_and_no_other() {
    use retouch_graph::{Cache, DiskCache, Settings};
    let (_held, folder, arguments) = main_job();
    let folder = folder.as_path();
    good(folder, &arguments);
    // The keys of the states, from the plan.
    let bench = support::Bench::new();
    let settings = Settings {
        set: vec!["steps=5".to_owned()],
        ..Settings::default()
    };
    let file = folder.join("p/workflows/layout-and-retouch.yaml");
    let checked = bench.engine.load(&file, &settings).unwrap();
    let plan = bench.engine.plan(&checked, &[]).unwrap();
    let disk = || {
        DiskCache::open(
            &folder.join("cache"),
            1 << 30,
            retouch_nodes::payload::decoders(),
        )
        .unwrap()
    };
    let state = |node: &str, step: usize| {
        let task = plan.tasks().find(|task| task.name() == node).unwrap();
        task.chain().unwrap().states[step - 1][0]
    };
    // Step 4 of the later node, then step 3 of the earlier one too: each time the first is named.
    for (count, node, step) in [(1, "retouch/inverted", 4), (2, "layout", 3)] {
        let (key, other) = (state(node, step), state(node, step - 1));
        let another = disk().get(&other).unwrap();
        let entry = folder
            .join("cache/v1")
            .join(&key.to_string()[..2])
            .join(key.to_string());
        std::fs::remove_file(&entry).unwrap();
        disk().put(key, &another, 1.0);
        assert!(entry.is_file(), "a sound entry with another content");
        let lines = verified(folder, 1, "last");
        let first = &lines[0]["first"];
        assert_eq!(lines[0]["values_differ"], count);
        assert_eq!(
            (&first["node"], &first["step"], &first["of"]),
            (&node.into(), &step.into(), &5.into())
        );
        assert_eq!(first["what"], "state");
        assert_eq!(first["key"], key.to_string());
        assert_eq!(lines[0]["outputs_differ"], serde_json::json!([]));
        assert_eq!(lines[1]["code"], "R1304");
        let told = bad(folder, 1, &["verify", "-q"]);
        assert!(
            told.contains(&format!("{node}, step {step} of 5")),
            "{told}"
        );
    }
}

#[test]
fn a_run_whose_photo_workflow_or_param_file_changed_is_refused_by_name() {
    let (_held, folder, mut arguments) = main_job();
    let folder = folder.as_path();
    std::fs::write(folder.join("params.yaml"), "guidance: 3\n").unwrap();
    arguments.extend(["--params", "params.yaml"]);
    good(folder, &arguments);
    let photo = folder.join("p/references/teddy/01.png");
    let before = std::fs::read(&photo).unwrap();
    std::fs::copy(folder.join("p/references/teddy/02.png"), &photo).unwrap();
    let told = bad(folder, 1, &["verify"]);
    assert!(told.contains("photo file"), "{told}");
    assert!(told.contains("references/teddy/01.png"), "{told}");
    assert!(told.contains("retouch runs show"), "{told}");
    assert!(
        !told.contains("U-Net calls"),
        "nothing was computed: {told}"
    );
    std::fs::write(&photo, before).unwrap();
    std::fs::write(folder.join("params.yaml"), "guidance: 5\n").unwrap();
    let lines = verified(folder, 1, "last");
    assert_eq!(lines[0]["code"], "R1303");
    assert!(
        lines[0]["message"]
            .as_str()
            .unwrap()
            .contains("guidance: 3"),
        "{lines:?}"
    );
    std::fs::write(folder.join("params.yaml"), "guidance: 3\n").unwrap();
    verified(folder, 0, "last");
    std::fs::remove_file(folder.join("p/workflows/layout-and-retouch.yaml")).unwrap();
    assert!(bad(folder, 3, &["verify"]).contains("R0001"));
}

#[test]
fn with_the_cache_emptied_the_files_alone_are_compared_by_what_was_written_down() {
    let folder = project();
    let folder = folder.path();
    good(folder, &["run", "wf.yaml", "-q"]);
    good(folder, &["cache", "clear"]);
    // What became of the file since is no matter of the run's.
    std::fs::write(folder.join("out/picture.png"), "another").unwrap();
    let lines = verified(folder, 0, "last");
    assert_eq!(
        (&lines[0]["values"], &lines[0]["outputs"]),
        (&0.into(), &1.into())
    );
    assert!(lines[0]["values_gone"].as_u64().unwrap() > 0);
    // A file that was another one then.
    let id = list(folder, &[])[0]["id"].as_str().unwrap().to_owned();
    let path = folder.join(format!("cache/runs/{id}.json"));
    let mut record: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // The seed that was drawn is the recorded one, whatever a version makes of the number that seeds are drawn from.
    record["asked"]["draw"] = 3.into();
    std::fs::write(&path, record.to_string()).unwrap();
    assert_eq!(verified(folder, 0, "last")[0]["equal"], true);
    record["outputs"][0]["blake3"] = "0".repeat(64).into();
    std::fs::write(&path, record.to_string()).unwrap();
    let lines = verified(folder, 1, "last");
    assert_eq!(lines[0]["outputs_differ"], serde_json::json!(["picture"]));
    assert_eq!(lines[0]["first"], Json::Null);
    let told = bad(folder, 1, &["verify", "-q"]);
    assert!(told.contains("picture; the step is unknown"), "{told}");
}

#[test]
fn a_run_that_did_not_end_well_is_not_verified() {
    let folder = project();
    let folder = folder.path();
    good(folder, &["run", "wf.yaml", "-q"]);
    bad(folder, 1, &["run", "wf.yaml", "-q", "--exists", "fail"]);
    let lines = verified(folder, 2, "last");
    assert_eq!(lines[0]["code"], "R1302");
    assert!(
        lines[0]["message"]
            .as_str()
            .unwrap()
            .contains("it is failed")
    );
}

#[test]
fn people_read_local_times_and_programs_utc() {
    let folder = project();
    let folder = folder.path();
    good(folder, &["run", "wf.yaml"]);
    let started = show(folder, "last")["started"].as_str().unwrap().to_owned();
    assert!(started.ends_with('Z'), "{started}");
    let zone = |zone: &str, arguments: &[&str]| {
        let output = command(folder, arguments).env("TZ", zone).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // POSIX's form needs no time zone database; its sign is that of UTC minus local.
    let utc = started.trim_end_matches('Z').replace('T', " ");
    assert!(zone("UTC0", &["runs"]).contains(&utc));
    let there = zone("AAA-3", &["runs", "show"]);
    let line = there.lines().find(|line| line.contains("started")).unwrap();
    assert!(line.contains("+03:00"), "{line}");
    let hour = |text: &str| {
        text.split([' ', 'T']).find_map(|part| {
            part.split_once(':')
                .and_then(|(hour, _)| hour.parse::<u32>().ok())
        })
    };
    assert_eq!(hour(line), hour(&started).map(|hour| (hour + 3) % 24));
    assert_eq!(list(folder, &[])[0]["started"], started);
}
