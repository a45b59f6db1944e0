//! Watch mode on real files: what an editor does to a file, and what of it runs. Asserted on the events.

#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::support;

/// No event takes longer than this on the slowest machine; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

struct Watched {
    child: Child,
    events: Receiver<Value>,
    file: PathBuf,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A workflow that draws from `prompt` in `steps` steps, blending `blend` of them, and enlarges by `scale`.
fn text(prompt: &str, steps: usize, blend: usize, scale: usize) -> String {
    let models = support::root().join("models");
    let models = models.display();
    format!(
        "schema: retouch/v1
name: w
nodes:
  base: {{op: load_model, path: '{models}/world'}}
  personal: {{op: load_model, path: '{models}/world-teddy'}}
  draw:
    op: step_blend_sample
    vanilla: $base
    personalized: $personal
    vanilla_prompt: a teddy bear
    personalized_prompt: {prompt}
    blend_steps: {blend}
    steps: {steps}
    seed: 1
  picture: {{op: decode, model: $base, latent: $draw}}
  large: {{op: resize_image, image: $picture, scale: {scale}}}
outputs:
  large: {{value: $large, save: 'w.png'}}
"
    )
}

impl Watched {
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    fn start_with(folder: &Path, more: &[&str]) -> Self {
        let file = folder.join("w.yaml");
        let mut child = Command::new(env!("CARGO_BIN_EXE_retouch"))
            .args(["watch", "w.yaml", "--json", "--cache-dir", "cache"])
            .args(more)
            .current_dir(folder)
            .env("RETOUCH_CONFIG", "")
            .env_remove("RETOUCH_NO_CACHE")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            events,
            file,
        }
    }

    /// The events up to the next one of this name.
    fn until(&self, name: &str) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.events.recv_timeout(PATIENCE).unwrap();
            let found = event["event"] == name;
            events.push(event);
            if found {
                return events;
            }
        }
    }

    /// The nodes that ran until it waits again.
    fn ran(&self) -> Vec<String> {
        named(&self.until("watching"), "node_started")
    }

    fn save(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }
}

/// The nodes of the events of a name.
fn named(events: &[Value], name: &str) -> Vec<String> {
    events
        .iter()
        .filter(|event| event["event"] == name)
        .map(|event| event["node"].as_str().unwrap().to_owned())
        .collect()
}

fn count(events: &[Value], name: &str) -> usize {
    events.iter().filter(|event| event["event"] == name).count()
}

#[test]
fn only_what_an_edit_touches_runs_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("w.yaml"),
        text("a sks teddy bear", 3, 1, 2),
    )
    .unwrap();
    let watched = Watched::start(folder.path());
    assert_eq!(
        watched.ran(),
        ["base", "personal", "draw", "picture", "large"]
    );
    watched.save(&text("a sks teddy bear", 3, 1, 3));
    assert_eq!(watched.ran(), ["large"]);
    // What the session wrote it replaces; no second file appears.
    let saved: Vec<_> = std::fs::read_dir(folder.path().join("out"))
        .unwrap()
        .collect();
    assert_eq!(saved.len(), 1);
    // A later step alone: the sampler goes on where the edit touches it.
    watched.save(&text("a sks teddy bear", 3, 2, 3));
    let events = watched.until("watching");
    let resumed = events
        .iter()
        .find(|event| event["event"] == "node_resumed")
        .unwrap();
    assert_eq!(
        (&resumed["node"], &resumed["step"]),
        (&"draw".into(), &1.into())
    );
}

#[test]
fn a_seed_that_was_drawn_stays_until_the_line_that_asks_for_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let random = text("a sks teddy bear", 1, 0, 2).replace("seed: 1", "seed: random");
    std::fs::write(folder.path().join("w.yaml"), &random).unwrap();
    let watched = Watched::start(folder.path());
    assert_eq!(
        watched.ran(),
        ["base", "personal", "draw", "picture", "large"]
    );
    let png = || std::fs::read(folder.path().join("out/w.png")).unwrap();
    let first = png();
    // A comment, another node, half of a file: the same picture, and nothing is drawn again.
    watched.save(&format!("# a comment\n{random}"));
    assert_eq!(watched.ran(), [""; 0]);
    watched.save(&random[..random.len() / 2]);
    assert!(count(&watched.until("watching"), "fault") > 0);
    watched.save(&random.replace("scale: 2", "scale: 3"));
    assert_eq!(watched.ran(), ["large"]);
    watched.save(&random);
    assert_eq!(watched.ran(), [""; 0]);
    assert!(png() == first);
    let saved = std::fs::read_dir(folder.path().join("out")).unwrap();
    assert_eq!(saved.count(), 1);
    // Another line asks for another seed, and so does one that was a number meanwhile.
    watched.save(&random.replace("seed: random", "seed: \"random\""));
    assert_eq!(watched.ran(), ["draw", "picture", "large"]);
    watched.save(&random.replace("seed: random", "seed: 5"));
    assert_eq!(watched.ran(), ["draw", "picture", "large"]);
    watched.save(&random);
    assert_eq!(watched.ran(), ["draw", "picture", "large"]);
    assert!(png() != first);
}

#[test]
fn a_broken_edit_does_not_end_a_run_whose_models_were_found_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let models = support::root().join("models").display().to_string();
    let text = text("a sks teddy bear", 80, 1, 2).replace(&models, "gone");
    std::fs::write(folder.path().join("w.yaml"), text).unwrap();
    let watched = Watched::start_with(folder.path(), &["--models", &models]);
    watched.until("node_progress");
    watched.save("schema: retouch/v1\nnodes: [\n");
    let events = watched.until("run_finished");
    assert_eq!(count(&events, "fault"), 1, "{events:?}");
    assert_eq!(count(&events, "node_failed"), 0, "{events:?}");
    assert_eq!(events[events.len() - 1]["status"], "ok");
}

#[test]
fn a_broken_edit_is_told_and_what_follows_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let good = text("a sks teddy bear", 2, 1, 2);
    std::fs::write(folder.path().join("w.yaml"), &good).unwrap();
    let watched = Watched::start(folder.path());
    watched.ran();
    let picture = std::fs::read(folder.path().join("out/w.png")).unwrap();
    // Half of a file, as an editor may leave it for a moment.
    watched.save(&good[..good.len() / 2]);
    let events = watched.until("watching");
    assert!(count(&events, "fault") > 0 && count(&events, "run_started") == 0);
    assert!(std::fs::read(folder.path().join("out/w.png")).unwrap() == picture);
    watched.save(&good.replace("scale: 2", "scale: 3"));
    assert_eq!(watched.ran(), ["large"]);
}

#[test]
fn a_file_that_is_renamed_over_deleted_or_touched_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let good = text("a sks teddy bear", 2, 1, 2);
    std::fs::write(folder.path().join("w.yaml"), &good).unwrap();
    let watched = Watched::start(folder.path());
    watched.ran();
    // vim and helix write beside the file and rename.
    let beside = folder.path().join("w.yaml~");
    std::fs::write(&beside, good.replace("scale: 2", "scale: 3")).unwrap();
    std::fs::rename(&beside, &watched.file).unwrap();
    assert_eq!(watched.ran(), ["large"]);
    // Others rename the file away first.
    std::fs::rename(&watched.file, &beside).unwrap();
    let events = watched.until("watching");
    assert!(count(&events, "fault") == 1 && count(&events, "run_started") == 0);
    watched.save(&good.replace("scale: 2", "scale: 4"));
    assert_eq!(watched.ran(), ["large"]);
    // Touched, and written with the same content: no run. The next event is that of a real edit.
    let now = std::time::SystemTime::now();
    std::fs::File::options()
        .write(true)
        .open(&watched.file)
        .unwrap()
        .set_modified(now)
        .unwrap();
    watched.save(&good.replace("scale: 2", "scale: 4"));
    std::thread::sleep(Duration::from_millis(1500));
    watched.save(&good.replace("scale: 2", "scale: 5"));
    let events = watched.until("watching");
    assert_eq!(count(&events, "run_started"), 1);
    assert_eq!(named(&events, "node_started"), ["large"]);
}

#[test]
fn a_workflow_that_is_not_there_yet_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let watched = Watched::start(folder.path());
    assert_eq!(count(&watched.until("watching"), "fault"), 1);
    watched.save(&text("a sks teddy bear", 1, 0, 2));
    assert!(watched.ran().contains(&"large".to_owned()));
}

#[test]
fn of_a_thousand_saves_few_run_and_the_last_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("w.yaml"),
        text("a sks teddy bear", 1, 0, 2),
    )
    .unwrap();
    let watched = Watched::start(folder.path());
    watched.ran();
    for at in 0..1000 {
        watched.save(&text("a sks teddy bear", 1, 0, 2 + at % 5));
        std::thread::sleep(Duration::from_millis(1));
    }
    watched.save(&text("a sks teddy bear", 1, 0, 9));
    // It waits again after each run; the last has the last scale.
    let mut runs = 0;
    loop {
        let events = watched.until("watching");
        runs += count(&events, "run_started");
        let png = std::fs::read(folder.path().join("out/w.png")).unwrap();
        if image::load_from_memory(&png).unwrap().width() == 64 * 9 {
            break;
        }
    }
    assert!((1..=20).contains(&runs), "{runs} runs");
}

#[test]
fn an_edit_while_sampling_is_taken_up_at_the_next_step_and_no_step_is_drawn_twice() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("w.yaml"),
        text("a sks teddy bear", 60, 40, 2),
    )
    .unwrap();
    let watched = Watched::start(folder.path());
    loop {
        let event = watched.until("node_progress").pop().unwrap();
        if event["node"] == "draw" && event["done"].as_u64().unwrap() >= 4 {
            break;
        }
    }
    // Only the steps from 50 on are touched: what is being drawn is drawn on.
    watched.save(&text("a sks teddy bear", 60, 50, 2));
    let events = watched.until("watching");
    let finished: Vec<&Value> = events
        .iter()
        .filter(|event| event["event"] == "run_finished")
        .collect();
    assert_eq!(finished.len(), 2);
    assert_eq!(finished[0]["status"], "cancelled");
    let resumed = events
        .iter()
        .find(|event| event["event"] == "node_resumed")
        .unwrap();
    assert!(resumed["step"].as_u64().unwrap() >= 4);
    let calls = |event: &Value| event["counters"]["unet_calls"].as_u64().unwrap_or(0);
    assert_eq!(finished.iter().map(|event| calls(event)).sum::<u64>(), 120);
}

#[test]
fn every_broken_file_saved_over_the_workflow_is_told_and_survived() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.yaml");
    let good = text("a sks teddy bear", 1, 0, 2);
    std::fs::write(&file, &good).unwrap();
    // For people: that is where texts are cut, wrapped and drawn.
    let mut child = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["watch", "w.yaml", "--cache-dir", "cache"])
        .current_dir(folder.path())
        .env("RETOUCH_CONFIG", "")
        .env_remove("RETOUCH_NO_CACHE")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(child.stderr.take().unwrap());
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in told.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let (_, events) = channel();
    let watched = Watched {
        child,
        events,
        file,
    };
    let until = |what: &str, of: &str| {
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(what) => break,
                Ok(_) => {}
                Err(error) => panic!("{of}: {error}"),
            }
        }
    };
    until("done in", "the first run");
    let mut broken: Vec<(String, String)> =
        std::fs::read_dir(support::root().join("tests/invalid"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
            .map(|path| {
                let text = std::fs::read_to_string(&path).unwrap();
                (path.display().to_string(), text)
            })
            .collect();
    broken.sort();
    assert!(broken.len() > 100);
    let long = format!(
        "{{\"schema\": \"retouch/v1\", \"description\": \"{}\", \"nosuch\": 1}}",
        "x".repeat(70_000)
    );
    broken.push(("a long line".to_owned(), long));
    for (name, text) in &broken {
        let beside = folder.path().join("beside");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &watched.file).unwrap();
        until("found; `retouch explain CODE`", name);
    }
    watched.save(&good.replace("scale: 2", "scale: 3"));
    until("done in", "the workflow, mended");
}

#[test]
fn a_sweep_in_a_file_of_its_own_is_watched() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let photo = support::root().join("references/teddy/01.png");
    std::fs::copy(photo, folder.path().join("photo.png")).unwrap();
    write(
        "one.yaml",
        "schema: retouch/v1
name: one
params:
  side: {type: int, default: 8}
nodes:
  photo: {op: load_image, path: photo.png}
  small: {op: resize_image, image: $photo, width: $params.side, height: 8}
outputs:
  small: {value: $small, save: '{side}.png'}
",
    );
    let sweep = |sides: &str| {
        format!(
            "schema: retouch/v1
name: w
sweep:
  workflow: one.yaml
  matrix: {{side: [{sides}]}}
  grid: {{columns: side, save: sheet.png}}
  table: sides.csv
"
        )
    };
    write("w.yaml", &sweep("8, 16"));
    let watched = Watched::start(folder.path());
    let events = watched.until("watching");
    assert_eq!(count(&events, "sweep_started"), 1);
    assert_eq!(count(&events, "cell_finished"), 2);
    assert_eq!(count(&events, "output_saved"), 3);
    assert_eq!(count(&events, "table_saved"), 1);
    let table = || std::fs::read_to_string(folder.path().join("out/sides.csv")).unwrap();
    assert_eq!(table().lines().count(), 3, "{}", table());
    // A cell more is all that is made, beside the sheet.
    watched.save(&sweep("8, 16, 24"));
    let events = watched.until("watching");
    assert_eq!(count(&events, "cell_finished"), 3);
    let ran = named(&events, "node_started");
    assert_eq!(ran.len(), 2, "{ran:?}");
    assert!(ran.contains(&"small [side=24]".to_owned()), "{ran:?}");
    assert_eq!(table().lines().count(), 4);
    // The workflow that is swept is watched too.
    let one = std::fs::read_to_string(folder.path().join("one.yaml")).unwrap();
    write("one.yaml", &one.replace("height: 8", "height: 9"));
    let events = watched.until("watching");
    assert_eq!(named(&events, "node_started").len(), 4);
}
