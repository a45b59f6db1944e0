//! What is shown of a run while it draws.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use retouch_graph::cache::Outputs;
use retouch_graph::{
    Cache, Cancel, Engine, Event, HostCache, Key, NodeError, Previewer, Quality, Recorder,
    RunOptions, RunReport, Settings, Value,
};
use retouch_nodes::Runtime;

use crate::support::{Bench, retouch, root, unchanged};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn models() -> String {
    root().join("models").display().to_string()
}

/// Stage 1 in six steps, and plain sampling in seven.
fn workflow() -> String {
    let models = models();
    format!(
        "schema: retouch/v1
name: job
params:
  blend_steps: {{type: steps, default: 2}}
nodes:
  base: {{op: load_model, path: '{models}/world'}}
  personal: {{op: load_model, path: '{models}/world-teddy'}}
  layout: {{op: step_blend_sample, vanilla: $base, personalized: $personal, vanilla_prompt: a teddy bear,
    personalized_prompt: a sks teddy bear, steps: 6, blend_steps: $params.blend_steps, guidance: 1, seed: 3}}
  draw: {{op: sample, model: $base, prompt: a teddy bear, steps: 7, guidance: 1, seed: 4}}
  one: {{op: decode, model: $personal, latent: $layout}}
  two: {{op: decode, model: $base, latent: $draw}}
outputs:
  one: {{value: $one}}
  two: {{value: $two}}
  way: {{value: $draw.trajectory}}
"
    )
}

/// The node, the steps that are done, T, and the picture as PNG.
type Seen = (String, usize, usize, Vec<u8>);

/// Wants every so many steps and notes what it is shown.
#[derive(Debug, Default)]
struct Shown {
    every: usize,
    quality: Quality,
    fails: bool,
    panics: bool,
    seen: Mutex<Vec<Seen>>,
}

impl Shown {
    fn steps(&self, of_node: &str) -> Vec<usize> {
        let seen = self.seen.lock().unwrap();
        let own = seen.iter().filter(|(node, ..)| node == of_node);
        own.map(|(_, done, ..)| *done).collect()
    }
}

impl Previewer for Shown {
    fn wants(&self, _: &str, done: usize, of: usize) -> Option<Quality> {
        (done.is_multiple_of(self.every) || done == of).then_some(self.quality)
    }
    fn show(&self, node: &str, done: usize, of: usize, picture: &Value) -> Result<(), NodeError> {
        let files = picture.encode("png")?;
        assert_eq!(files.len(), 1);
        self.seen
            .lock()
            .unwrap()
            .push((node.to_owned(), done, of, files[0].clone()));
        assert!(!self.panics, "as it was asked to");
        if self.fails {
            return Err(NodeError::failed("no room").help("make some"));
        }
        Ok(())
    }
}

fn run(
    engine: &Engine,
    yaml: &str,
    set: &[&str],
    shown: Option<&Arc<Shown>>,
) -> (RunReport, Recorder) {
    let settings = Settings {
        set: set.iter().map(|&s| s.to_owned()).collect(),
        ..Settings::default()
    };
    let checked = engine.load_str("test.yaml", yaml, &settings).unwrap();
    let plan = engine.plan(&checked, &[]).unwrap();
    let options = RunOptions {
        previewer: shown.map(|shown| Arc::clone(shown) as _),
        ..RunOptions::default()
    };
    let recorder = Recorder::new();
    let report = engine.run(&plan, &recorder, &Cancel::new(), &options);
    (report.unwrap(), recorder)
}

/// Files by the names of outputs, and the keys of the nodes.
type Results = (BTreeMap<String, Vec<Vec<u8>>>, Vec<(String, Key)>);

fn results(report: &RunReport) -> Results {
    let files = report.outputs.iter().map(|output| {
        let files = output.value.encode(output.value.formats()[0]).unwrap();
        (output.name.clone(), files)
    });
    let keys = report
        .nodes
        .iter()
        .map(|node| (node.node.clone(), node.key));
    (files.collect(), keys.collect())
}

fn previews(recorder: &Recorder) -> usize {
    let events = recorder.events();
    let shown = |event: &&Event| matches!(event, Event::PreviewShown { .. });
    events.iter().filter(shown).count()
}

fn warnings(recorder: &Recorder) -> Vec<String> {
    let warning = |event: Event| match event {
        Event::NodeWarning { message, .. } => Some(message),
        _ => None,
    };
    recorder.events().into_iter().filter_map(warning).collect()
}

#[test]
fn previews_come_every_n_steps_and_at_the_last_and_change_neither_results_nor_keys() {
    let (plain, recorder) = run(&Bench::new().engine, &workflow(), &[], None);
    assert_eq!(previews(&recorder), 0);
    for quality in [Quality::Quick, Quality::Exact] {
        let shown = Arc::new(Shown {
            every: 3,
            quality,
            ..Shown::default()
        });
        let (report, recorder) = run(&Bench::new().engine, &workflow(), &[], Some(&shown));
        assert_eq!(shown.steps("layout"), [3, 6]);
        assert_eq!(shown.steps("draw"), [3, 6, 7]);
        assert_eq!(previews(&recorder), 5);
        assert_eq!(results(&report), results(&plain));
        let seen = shown.seen.lock().unwrap();
        for (node, done, of, png) in seen.iter() {
            let picture = image::load_from_memory(png).unwrap();
            assert_eq!((picture.width(), picture.height()), (64, 64));
            let output = if node == "layout" { "one" } else { "two" };
            let finished = &results(&plain).0[output][0];
            // By the VAE the last preview is the finished picture; by the map it is like it.
            assert_eq!(png == finished, done == of && quality == Quality::Exact);
            if done == of {
                let finished = image::load_from_memory(finished).unwrap().to_rgb8();
                let pairs = finished.iter().zip(picture.to_rgb8().into_raw());
                let off = pairs.map(|(a, b)| a.abs_diff(b) as usize).sum::<usize>();
                let mean = off as f64 / (3.0 * 64.0 * 64.0);
                assert!(mean < 25.0, "{node}: {mean} of 255 off");
            }
        }
    }
}

#[test]
fn a_preview_that_fails_or_panics_is_one_warning_and_the_run_goes_on() {
    let (plain, _) = run(&Bench::new().engine, &workflow(), &[], None);
    for panics in [false, true] {
        let shown = Arc::new(Shown {
            every: 1,
            fails: true,
            panics,
            ..Shown::default()
        });
        let (report, recorder) = run(&Bench::new().engine, &workflow(), &[], Some(&shown));
        assert_eq!(results(&report), results(&plain));
        assert_eq!(previews(&recorder), 0);
        let warnings = warnings(&recorder);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let says = if panics {
            "as it was asked to"
        } else {
            "no room (make some)"
        };
        assert!(warnings[0].contains(says), "{warnings:?}");
        // It is tried again: room may have come.
        assert_eq!(shown.steps("draw").len(), 7);
    }
}

/// A cache that forgets trajectories at once, and counts the maps from latents to colours that are put into it.
struct Forgetful {
    inner: HostCache,
    maps: Arc<AtomicUsize>,
}

impl Cache for Forgetful {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.inner.get(key)
    }
    fn place(&self, key: &Key) -> Option<&'static str> {
        self.inner.place(key)
    }
    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        if outputs.contains_key("map") {
            self.maps.fetch_add(1, Ordering::SeqCst);
        }
        if !outputs.contains_key("trajectory") {
            self.inner.put(key, outputs, seconds);
        }
    }
}

fn forgetful() -> (Engine, Arc<AtomicUsize>) {
    let maps = Arc::new(AtomicUsize::new(0));
    let runtime = Runtime::cpu();
    let numerics = runtime.numerics();
    let engine = Engine::new(retouch_nodes::registry())
        .with_environment(Arc::new(runtime))
        .with_numerics(numerics)
        .with_cache(Arc::new(Forgetful {
            inner: HostCache::new(1 << 30),
            maps: Arc::clone(&maps),
        }));
    (engine, maps)
}

#[test]
fn a_resumed_run_shows_what_it_draws_and_one_that_draws_nothing_the_finished_state() {
    let (engine, _) = forgetful();
    let every = || {
        Arc::new(Shown {
            every: 1,
            ..Shown::default()
        })
    };
    let first = every();
    run(&engine, &workflow(), &[], Some(&first));
    assert_eq!(first.steps("layout"), [1, 2, 3, 4, 5, 6]);
    let second = every();
    let (_, recorder) = run(&engine, &workflow(), &["blend_steps=4"], Some(&second));
    assert_eq!(
        recorder.resumed(),
        [("layout".to_owned(), 2), ("draw".to_owned(), 7)]
    );
    assert_eq!(second.steps("layout"), [3, 4, 5, 6]);
    assert_eq!(second.steps("draw"), [7]);
    let last = |shown: &Shown| {
        let seen = shown.seen.lock().unwrap();
        let of = |(node, done, ..): &&Seen| node == "draw" && *done == 7;
        seen.iter().find(of).unwrap().3.clone()
    };
    assert_eq!(last(&first), last(&second));
}

#[test]
fn models_with_the_same_vae_share_one_map_and_it_is_kept_for_later_runs() {
    let (engine, maps) = forgetful();
    let shown = || {
        Some(Arc::new(Shown {
            every: 100,
            ..Shown::default()
        }))
    };
    run(&engine, &workflow(), &[], None);
    assert_eq!(maps.load(Ordering::SeqCst), 0, "nobody asked for one");
    // Two models of one VAE in one run, and in the next run models that are loaded anew.
    for set in ["blend_steps=1", "blend_steps=3"] {
        let shown = shown();
        run(&engine, &workflow(), &[set], shown.as_ref());
        assert_eq!(shown.unwrap().steps("layout"), [6]);
        assert_eq!(maps.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn stage_2_and_a_whole_batch_are_shown_too() {
    let models = models();
    let yaml = format!(
        "schema: retouch/v1
nodes:
  base: {{op: load_model, path: '{models}/world'}}
  layout: {{op: sample, model: $base, prompt: a teddy bear, steps: 4, guidance: 1, seed: 3, batch: 3}}
  inverted: {{op: sample, model: $base, prompt: a teddy bear, steps: 4, guidance: 1, seed: 9}}
  swap: {{op: swap_attention, context: $layout.trajectory, reference: $inverted.trajectory,
    reference_prompt: a teddy bear, subject: teddy bear, start_step: 1, from_step: 1}}
  draw: {{op: sample, model: $base, prompt: a teddy bear, control: $swap, guidance: 1}}
outputs:
  one: {{value: $draw}}
"
    );
    let shown = Arc::new(Shown {
        every: 2,
        ..Shown::default()
    });
    run(&Bench::new().engine, &yaml, &[], Some(&shown));
    assert_eq!(shown.steps("draw"), [2, 4]);
    let seen = shown.seen.lock().unwrap();
    let (.., png) = seen.iter().find(|(node, ..)| node == "draw").unwrap();
    let sheet = image::load_from_memory(png).unwrap().to_rgb8();
    assert_eq!(sheet.dimensions(), (128, 128), "three pictures in two rows");
    let black = |x: u32, y: u32| sheet.get_pixel(x, y).0 == [0, 0, 0];
    assert!((64..128).all(|i| black(i, i)));
    assert!(!(0..64).all(|i| black(i, 64 + i)));
}

/// The program with `--preview`, its events as they come.
fn drawing(folder: &Path, arguments: &[&str], mut each: impl FnMut(&serde_json::Value)) -> i32 {
    let file = root().join("workflows/vanilla.yaml");
    let mut child = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .arg("run")
        .arg(file)
        .args(["--json", "--set", "guidance=1"])
        .args(arguments)
        .current_dir(folder)
        .env("RETOUCH_NO_CACHE", "1")
        .env("RETOUCH_CONFIG", "")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for line in std::io::BufReader::new(child.stdout.take().unwrap()).lines() {
        each(&serde_json::from_str(&line.unwrap()).unwrap());
    }
    child.wait().unwrap().code().unwrap()
}

/// Says so when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn the_program_writes_a_whole_picture_each_time_and_leaves_nothing_else() {
    let out = tempfile::tempdir().unwrap();
    let preview = out.path().join("preview.png");
    let (over, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut events = 0;
    std::thread::scope(|scope| {
        // However this ends, the other thread ends too.
        let _over = Over(&over);
        scope.spawn(|| {
            // Somebody who looks all the time never finds half a picture.
            while !over.load(Ordering::SeqCst) {
                if let Ok(bytes) = std::fs::read(&preview) {
                    let picture = image::load_from_memory(&bytes).unwrap();
                    assert_eq!(picture.width(), 64);
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let arguments = [
            "--preview",
            "preview.png",
            "--every",
            "4",
            "--set",
            "steps=30",
        ];
        let code = drawing(out.path(), &arguments, |event| {
            if event["event"] == "preview_shown" {
                assert_eq!(event["node"], "draw");
                image::open(&preview).unwrap();
                events += 1;
            }
        });
        assert_eq!(code, 0);
    });
    assert_eq!(events, 30 / 4 + 1);
    assert!(reads.load(Ordering::SeqCst) > 0);
    let names: Vec<_> = std::fs::read_dir(out.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}"); // the preview and `out`
}

#[test]
fn by_the_vae_the_last_preview_is_the_saved_picture_and_previews_change_no_saved_byte() {
    let out = tempfile::tempdir().unwrap();
    let file = root().join("workflows/vanilla.yaml").display().to_string();
    let with = [
        "run",
        &file,
        "--set",
        "steps=2",
        // A preview carries no recipe.
        "--no-provenance",
        "--preview",
        "p.PNG",
        "--preview-with",
        "vae",
    ];
    let run = retouch(out.path(), &with);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains("draw: shown in the preview"));
    let saved = std::fs::read(out.path().join("out/vanilla/43-raw.png")).unwrap();
    assert_eq!(std::fs::read(out.path().join("p.PNG")).unwrap(), saved);
    let plain = retouch(out.path(), &with[..5]);
    unchanged(&plain.stdout);
}

#[test]
fn a_preview_that_cannot_be_replaced_is_one_warning_and_the_program_goes_on() {
    let out = tempfile::tempdir().unwrap();
    let preview = out.path().join("p.png");
    let (mut blocked, mut warnings) = (false, 0);
    let code = drawing(
        out.path(),
        &["--preview", "p.png", "--every", "1", "--set", "steps=40"],
        |event| {
            if event["event"] == "preview_shown" && !blocked {
                // The program may write it again in between.
                while !preview.is_dir() {
                    let _ = std::fs::remove_file(&preview);
                    let _ = std::fs::create_dir(&preview);
                }
                blocked = true;
            }
            warnings += usize::from(event["event"] == "node_warning");
        },
    );
    assert_eq!((code, blocked, warnings), (0, true, 1));
    assert!(out.path().join("out/vanilla/43.png").exists());
    let names: Vec<_> = std::fs::read_dir(out.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_preview_that_makes_no_sense_is_refused_before_anything_runs() {
    let out = tempfile::tempdir().unwrap();
    let file = root().join("workflows/vanilla.yaml").display().to_string();
    std::fs::create_dir(out.path().join("folder.png")).unwrap();
    std::fs::write(out.path().join("blocked"), "a file where a folder is due").unwrap();
    for command in ["run", "watch"] {
        for (arguments, code, says) in [
            (&["--preview", "p.jpg"][..], 2, "--preview preview.png"),
            (&["--preview", "png"], 2, "does not end in .png"),
            (&["--preview", "p.png", "--every", "0"], 2, "--every"),
            (&["--preview", "p.png", "--every", "many"], 2, "--every"),
            (&["--every", "3"], 2, "--preview"),
            (&["--preview-with", "vae"], 2, "--preview"),
            (
                &["--preview", "p.png", "--preview-with", "eyes"],
                2,
                "linear",
            ),
            (&["--preview", "missing/p.png"], 1, "does not exist"),
            (&["--preview", "blocked/p.png"], 1, "does not exist"),
            (&["--preview", "folder.png"], 1, "is a folder"),
        ] {
            let mut all = vec![command, &file, "--set", "steps=1"];
            all.extend(arguments);
            let run = retouch(out.path(), &all);
            let told = text(&run.stderr);
            assert_eq!(run.status.code(), Some(code), "{all:?}: {told}");
            assert!(told.contains(says), "{all:?}: {told}");
            assert!(run.stdout.is_empty());
        }
    }
    let names: Vec<_> = std::fs::read_dir(out.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_preview_never_takes_the_place_of_a_file_that_the_workflow_reads() {
    let out = tempfile::tempdir().unwrap();
    let photo = root().join("references/teddy/01.png");
    std::fs::copy(&photo, out.path().join("photo.png")).unwrap();
    let yaml = "schema: retouch/v1
nodes:
  photo: {op: load_image, path: photo.png}
outputs:
  photo: {value: $photo, save: photo.png}
";
    std::fs::write(out.path().join("job.yaml"), yaml).unwrap();
    for command in ["run", "watch"] {
        let run = retouch(
            out.path(),
            &[command, "job.yaml", "--preview", "./photo.png"],
        );
        assert_eq!(run.status.code(), Some(1));
        assert!(
            text(&run.stderr).contains("would write over"),
            "{}",
            text(&run.stderr)
        );
    }
    let same = std::fs::read(out.path().join("photo.png")).unwrap();
    assert_eq!(same, std::fs::read(photo).unwrap());
    assert!(!out.path().join("out").exists());
    // Where nothing is drawn, that is said.
    let run = retouch(out.path(), &["run", "job.yaml", "--preview", "p.png"]);
    assert!(run.status.success());
    assert!(text(&run.stderr).contains("no preview was written to p.png"));
    assert!(!out.path().join("p.png").exists());
}
