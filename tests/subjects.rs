//! Training of subjects by whole workflows: what is kept, what is resumed, what comes out, and what is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use retouch_graph::{Event, Recorder, Settings, Value};
use retouch_nodes::payload::{Adapter, Image, Latent, Table};

use crate::support::{self, Bench};

/// A training on the tiny Stable Diffusion 1; `more` are further parameters of the node.
fn training(op: &str, more: &str) -> String {
    let data = support::root().join("tests/oracle/data/micro");
    let photos = support::root().join("references/teddy");
    format!(
        "schema: retouch/v1\n\
         params:\n\
         \x20 steps: {{type: int, default: 4}}\n\
         \x20 every: {{type: int, default: 2}}\n\
         \x20 caption: {{type: string, default: \"a sks teddy bear\"}}\n\
         \x20 margin: {{type: float, default: 1.0}}\n\
         nodes:\n\
         \x20 model: {{op: load_model, path: '{}'}}\n\
         \x20 photos: {{op: load_images, path: '{}', size: 64}}\n\
         \x20 train: {{op: {op}, model: $model, images: $photos.images, masks: $photos.masks, caption: \"{{caption}}\",\n\
         \x20   steps: $params.steps, every: $params.every, background_weight: $params.margin, seed: 5, {more}}}\n\
         \x20 draw: {{op: sample, model: $train.model, prompt: \"{{caption}}\", steps: 2, seed: 3}}\n\
         outputs:\n\
         \x20 latent: {{value: $draw.latent}}\n\
         \x20 adapter: {{value: $train.adapter}}\n\
         \x20 losses: {{value: $train.losses}}\n",
        data.join("sd1").display(),
        photos.display(),
    )
}

fn numbers(outputs: &BTreeMap<String, Value>) -> Vec<f32> {
    let latent = outputs["latent"].downcast::<Latent>().unwrap();
    latent.tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn adapter(outputs: &BTreeMap<String, Value>) -> Vec<u8> {
    let adapter = outputs["adapter"].downcast::<Adapter>().unwrap();
    retouch_graph::Payload::encode(&*adapter, "safetensors")
        .unwrap()
        .remove(0)
}

/// How many optimizer steps were made.
fn steps(recorder: &Recorder) -> u64 {
    let events = recorder.events().into_iter();
    let made = events.filter_map(|event| match event {
        Event::RunFinished { counters, .. } => counters.get("training_steps").copied(),
        _ => None,
    });
    made.sum()
}

/// Where nodes resumed.
fn resumed(recorder: &Recorder) -> Vec<(usize, usize)> {
    let events = recorder.events().into_iter();
    events
        .filter_map(|event| match event {
            Event::NodeResumed { step, of, .. } => Some((step, of)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_training_goes_on_at_its_last_checkpoint_and_a_changed_caption_begins_anew() {
    let bench = Bench::new();
    let workflow = training("train_lora", "rank: 2");
    let (first, recorder) = bench.run_with(&workflow, &[]);
    assert_eq!(steps(&recorder), 4);
    let losses = first["losses"].downcast::<Table>().unwrap();
    assert_eq!(losses.rows.len(), 4);
    // Known entirely.
    let (_, recorder) = bench.run_with(&workflow, &[]);
    assert_eq!(steps(&recorder), 0);
    // More steps, of a constant rate: the four that were made are not made again.
    let (longer, recorder) = bench.run_with(&workflow, &["steps=6"]);
    assert_eq!(steps(&recorder), 2);
    assert_eq!(resumed(&recorder), [(2, 3)]);
    let fresh = Bench::new().run_with(&workflow, &["steps=6"]);
    assert_eq!(steps(&fresh.1), 6);
    assert!(adapter(&longer) == adapter(&fresh.0));
    assert!(numbers(&longer) == numbers(&fresh.0));
    assert!(numbers(&longer) != numbers(&first));
    // Where checkpoints are is no part of what a step is.
    let (other, recorder) = bench.run_with(&workflow, &["every=3", "steps=6"]);
    assert_eq!(steps(&recorder), 0);
    assert!(adapter(&other) == adapter(&longer));
    // The caption and the weight of the background are.
    for set in ["caption=\"a sks toy\"", "margin=0.5"] {
        let (changed, recorder) = bench.run_with(&workflow, &[set]);
        assert_eq!(
            (steps(&recorder), resumed(&recorder).len()),
            (4, 0),
            "{set}"
        );
        assert!(adapter(&changed) != adapter(&first));
    }
}

#[test]
fn a_rate_that_falls_over_the_steps_makes_more_steps_another_training() {
    let bench = Bench::new();
    let workflow = training("train_lora", "rank: 2, schedule: cosine");
    bench.run_with(&workflow, &[]);
    let (_, recorder) = bench.run_with(&workflow, &["steps=6"]);
    assert_eq!(steps(&recorder), 6);
}

#[test]
fn the_adapter_of_every_method_applied_to_the_base_is_the_trained_model() {
    let folder = tempfile::tempdir().unwrap();
    let token = "token: \"<t>\", initial: bear, learning_rate: 0.01";
    let cases = [
        ("train_lora", "rank: 2, learning_rate: 0.01", "apply_lora"),
        (
            "train_lora",
            "rank: 2, learning_rate: 0.01, convolutions: true, text_encoder: true, alpha: 1, format: diffusers",
            "apply_lora",
        ),
        (
            "train_lora",
            "rank: 2, learning_rate: 0.01, dropout: 0.2, format: peft",
            "apply_lora",
        ),
        (
            "train_dreambooth",
            "learning_rate: 0.001, text_encoder: true, eight_bit: true",
            "apply_lora",
        ),
        ("train_textual_inversion", token, "apply_textual_inversion"),
        (
            "train_custom_diffusion",
            "learning_rate: 0.01",
            "apply_custom_diffusion",
        ),
    ];
    for (index, (op, more, apply)) in cases.into_iter().enumerate() {
        let more = format!("{more}, preserve: \"a bear\", ema: 0.9, accumulation: 2");
        let mut workflow = training(op, &more);
        if op == "train_textual_inversion" {
            workflow = workflow.replace("a sks teddy bear", "a <t>");
        }
        let bench = Bench::new();
        let outputs = bench.run(&workflow);
        let file = folder.path().join(format!("{index}.safetensors"));
        std::fs::write(&file, adapter(&outputs)).unwrap();
        let of_token = if op == "train_textual_inversion" {
            ", token: \"<t>\""
        } else {
            ""
        };
        let applied = format!(
            "  applied: {{op: {apply}, model: $model, path: '{}'{of_token}}}\n  draw: {{op: sample, model: $applied,",
            file.display()
        );
        let workflow = workflow.replace("  draw: {op: sample, model: $train.model,", &applied);
        let again = bench.run(&workflow);
        let (own, again) = (numbers(&outputs), numbers(&again));
        let off = own
            .iter()
            .zip(&again)
            .fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        // The differences of whole weights are rounded when they are taken and added again.
        let tolerance = if op == "train_dreambooth" { 1e-3 } else { 2e-5 };
        assert!(off < tolerance, "{op} {more}: {off}");
    }
}

#[test]
fn a_checkpoint_is_given_in_place_of_the_last_and_samples_show_each() {
    let bench = Bench::new();
    let workflow = training(
        "train_lora",
        "rank: 2, sample_prompt: \"a sks bear\", sample_steps: 2",
    )
    .replace("  losses:", "  samples: {value: $train.samples}\n  losses:");
    let (last, recorder) = bench.run_with(&workflow, &[]);
    assert_eq!(steps(&recorder), 4);
    let samples = last["samples"].downcast::<Image>().unwrap();
    assert_eq!(samples.batch(), 2);
    let at = workflow.replace("rank: 2,", "rank: 2, checkpoint: 2,");
    let (second, recorder) = bench.run_with(&at, &[]);
    assert_eq!(steps(&recorder), 0);
    assert!(adapter(&second) != adapter(&last));
    let of_two = bench.run_with(&workflow, &["steps=2"]).0;
    let weights = |outputs: &BTreeMap<String, Value>| {
        outputs["adapter"]
            .downcast::<Adapter>()
            .unwrap()
            .tensors
            .clone()
    };
    assert!(weights(&second) == weights(&of_two));
}

#[test]
fn less_memory_by_computing_again_gives_the_same_adapter_but_for_rounding() {
    let weights = |more: &str| {
        let outputs = Bench::new().run(&training("train_lora", more));
        let adapter = outputs["adapter"].downcast::<Adapter>().unwrap();
        adapter
            .tensors
            .iter()
            .flat_map(|t| t.numbers.clone())
            .collect::<Vec<f32>>()
    };
    let plain = weights("rank: 2, max_grad_norm: 0");
    let again = weights("rank: 2, max_grad_norm: 0, gradient_checkpointing: true");
    let off = plain
        .iter()
        .zip(&again)
        .fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    // Adam makes steps of the learning rate: a thousandth of one.
    assert!(off < 1e-7, "{off}");
}

#[test]
fn what_cannot_be_trained_is_refused_before_anything_runs() {
    let bench = Bench::new();
    let refused = |op: &str, more: &str| -> String {
        let checked = bench
            .engine
            .load_str("test.yaml", &training(op, more), &Settings::default());
        format!(
            "{:?}",
            checked
                .err()
                .unwrap_or_else(|| panic!("{op} {more} was taken"))
        )
    };
    for (op, more, said) in [
        ("train_lora", "learning_rate: 0", "learning_rate is 0"),
        ("train_lora", "alpha: -1", "alpha is -1"),
        ("train_lora", "checkpoint: 3", "multiple of `every`"),
        ("train_lora", "ema: 1.5", "ema is 1.5"),
        ("train_lora", "snr_gamma: 0", "snr_gamma is 0"),
        ("train_lora", "rank: 0", "rank"),
        (
            "train_lora",
            "class_images: $photos.reference",
            "`class_images` needs `class_prompt`",
        ),
        (
            "train_lora",
            "class_images: $photos.reference, class_prompt: a bear, preserve: a bear",
            "two ways",
        ),
    ] {
        let all = refused(op, more);
        assert!(all.contains(said), "{more}: {all}");
    }
    let small = training("train_lora", "rank: 2").replace("size: 64", "size: 60");
    let checked = bench
        .engine
        .load_str("test.yaml", &small, &Settings::default());
    let all = format!("{:?}", checked.err().unwrap());
    assert!(all.contains("multiples of"), "{all}");
}

#[test]
fn a_training_that_diverges_names_the_step_and_keeps_the_last_checkpoint() {
    let bench = Bench::new();
    let workflow = training(
        "train_lora",
        "rank: 2, learning_rate: 1e30, max_grad_norm: 0, warmup: 3",
    );
    let checked = bench
        .engine
        .load_str("test.yaml", &workflow, &Settings::default())
        .ok()
        .unwrap();
    let plan = bench.engine.plan(&checked, &[]).unwrap();
    let error = bench
        .engine
        .run(
            &plan,
            &Recorder::new(),
            &retouch_graph::Cancel::new(),
            &retouch_graph::RunOptions::default(),
        )
        .unwrap_err();
    let said = format!("{error:?}");
    assert!(said.contains("of step 3 is not a number"), "{said}");
}

/// A training by the command line, with its cache in `cache`.
fn command(mut program: Command, folder: &Path, cache: &str, out: &str) -> Command {
    program
        .args([
            "run",
            "w.yaml",
            "--out",
            out,
            "--cache-dir",
            cache,
            "--exists",
            "replace",
        ])
        .current_dir(folder)
        .env("RETOUCH_CONFIG", "")
        .env_remove("RETOUCH_NO_CACHE")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    program
}

fn start(folder: &Path, cache: &str, out: &str) -> std::process::Child {
    let program = Command::new(env!("CARGO_BIN_EXE_retouch"));
    command(program, folder, cache, out).spawn().unwrap()
}

/// Writes a training of 200 steps with a checkpoint every 5.
fn write_long_training(folder: &Path) {
    let workflow = training("train_lora", "rank: 2, batch: 2")
        .replace("default: 4}", "default: 200}")
        .replace("default: 2}", "default: 5}")
        .replace(
            "adapter: {value: $train.adapter}",
            "adapter: {value: $train.adapter, save: a.safetensors}",
        );
    std::fs::write(folder.join("w.yaml"), workflow).unwrap();
}

/// What it said, and that it succeeded.
#[track_caller]
fn ended(child: std::process::Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[cfg(unix)]
#[test]
fn killed_at_any_moment_a_training_ends_in_the_same_bytes() {
    // `RETOUCH_KILLS` tries more moments (CONTRIBUTING.md).
    let given = std::env::var("RETOUCH_KILLS").ok();
    let most: u64 = given.map_or(30, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_long_training(folder);
    ended(start(folder, "fresh", "expected"));
    let expected = std::fs::read(folder.join("expected/a.safetensors")).unwrap();
    let mut random = 88_172_645_463_325_252u64;
    for _ in 0..most {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut child = start(folder, "cache", "out");
        std::thread::sleep(Duration::from_millis(random % 400));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Ok(saved) = std::fs::read(folder.join("out/a.safetensors")) {
            assert!(saved == expected);
        }
    }
    ended(start(folder, "cache", "out"));
    assert!(std::fs::read(folder.join("out/a.safetensors")).unwrap() == expected);
}

/// A disk that takes no more than so many bytes of a file stands for one that is full: what is written fails halfway.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_and_an_interrupt_in_a_checkpoint_leave_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_long_training(folder);
    ended(start(folder, "fresh", "expected"));
    let expected = std::fs::read(folder.join("expected/a.safetensors")).unwrap();
    let limited = |blocks: usize, cache: &str| {
        let mut shell = Command::new("bash");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_retouch")]);
        let output = command(shell, folder, cache, "limited").output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    // Not even the adapter can be written: that is a failure which says so. No part of it is left, nor of a checkpoint.
    let (code, said) = limited(8, "full");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("a.safetensors"), "{said}");
    assert!(!folder.join("limited/a.safetensors").exists());
    for part in ["limited", "full"] {
        let left = files_below(&folder.join(part));
        let half: Vec<_> = left.iter().filter(|name| name.ends_with(".part")).collect();
        assert!(half.is_empty(), "{part}: {half:?}");
    }
    // With room again it ends in the same bytes, from whatever was kept.
    ended(start(folder, "full", "out"));
    assert!(std::fs::read(folder.join("out/a.safetensors")).unwrap() == expected);

    // Interrupted once there is a checkpoint, it ends at a step, and what was kept is gone on from.
    let mut interrupted = 0;
    for _ in 0..3 {
        let before = files_below(&folder.join("interrupted")).len();
        let child = start(folder, "interrupted", "out2");
        let since = std::time::Instant::now();
        while files_below(&folder.join("interrupted")).len() <= before + 1
            && since.elapsed() < Duration::from_secs(60)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        support::signal(&child, libc::SIGINT);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // It may have been done before it heard of it.
        assert!(matches!(output.status.code(), Some(0 | 130)), "{said}");
        interrupted += u32::from(output.status.code() == Some(130));
    }
    assert!(interrupted > 0, "none was interrupted");
    assert!(!folder.join("out2/a.safetensors").exists() || interrupted < 3);
    let said = ended(start(folder, "interrupted", "out2"));
    assert!(!said.contains("damaged"), "{said}");
    assert!(std::fs::read(folder.join("out2/a.safetensors")).unwrap() == expected);
}

/// The names of all files below a folder.
#[cfg(target_os = "linux")]
fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path().is_dir() {
                true => open.push(entry.path()),
                false => found.push(entry.file_name().to_string_lossy().into_owned()),
            }
        }
    }
    found
}
