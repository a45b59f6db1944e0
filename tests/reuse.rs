//! Nothing is computed twice: how many U-Net calls an edit costs, counted and foretold; and that what is resumed is bit
//! for bit what a fresh run gives (law 7).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use retouch_graph::event::{Event, Listener};
use retouch_graph::{
    Cancel, DiskCache, Engine, HostCache, NoCache, Recorder, RunOptions, Settings, TieredCache,
};
use retouch_nodes::Runtime;
use retouch_nodes::payload::{Latent, Masks, Trajectory, decoders};

use crate::support;

/// A copy of a U-Net's folder with one weight moved by its last bit: another model.
fn nudged(unet: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::copy(unet.join(name), to.join(name)).unwrap();
    }
    let file = to.join("diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// The main job on a tiny model, everything that an edit touches being a param.
pub(crate) fn workflow() -> String {
    let data = support::root().join("tests/oracle/data");
    let data = data.display();
    format!(
        "schema: retouch/v1
name: job
params:
  steps: {{type: int, default: 50}}
  blend_steps: {{type: steps, default: 20%}}
  start_step: {{type: steps, default: 20%}}
  from_step: {{type: steps, default: 8%}}
  structure_until: {{type: steps, default: 40%}}
  seed: {{type: seed, default: 1}}
  guidance: {{type: float, default: 5}}
  last_guidance: {{type: float, default: 5}}
  vanilla_prompt: {{type: string, default: a teddy bear on a beach}}
  prompt: {{type: string, default: a sks teddy bear on a beach}}
  subject: {{type: string, default: teddy bear}}
  threshold: {{type: threshold, default: otsu}}
  smooth: {{type: int, default: 1}}
  blend: {{type: choice, default: union, values: [union, context, target]}}
  sites: {{type: sites, default: 10..16}}
  photo: {{type: path, default: '{data}/tiny-sd1.png'}}
  vanilla_unet: {{type: path, default: '{data}/tiny-sd1/unet'}}
  personal_unet: {{type: path, default: '{data}/tiny-sd1-personal/unet'}}
  name: {{type: string, default: a}}
nodes:
  base: {{op: load_model, path: '{data}/tiny-sd1', unet: $params.vanilla_unet}}
  personal: {{op: load_model, path: '{data}/tiny-sd1', unet: $params.personal_unet}}
  photo: {{op: load_image, path: $params.photo}}
  reference: {{op: encode_reference, model: $personal, image: $photo}}
  inverted: {{op: invert, model: $personal, latent: $reference, steps: $params.steps}}
  layout:
    op: step_blend_sample
    vanilla: $base
    personalized: $personal
    vanilla_prompt: $params.vanilla_prompt
    personalized_prompt: a sks teddy bear on a beach
    blend_steps: $params.blend_steps
    steps: $params.steps
    guidance: $params.guidance
    seed: $params.seed
  swap:
    op: swap_attention
    vanilla: $base
    context: $layout.trajectory
    reference: $inverted.trajectory
    reference_prompt: a photo of a sks teddy bear
    subject: $params.subject
    sites: $params.sites
    start_step: $params.start_step
    from_step: $params.from_step
    structure_until: $params.structure_until
    threshold: $params.threshold
    smooth: $params.smooth
    blend: $params.blend
  draw: {{op: sample, model: $personal, prompt: $params.prompt, control: $swap, guidance: $params.last_guidance}}
  picture: {{op: decode, model: $personal, latent: $draw}}
outputs:
  picture: {{value: $picture, save: \"{{name}}.png\"}}
  latent: {{value: $draw}}
  trajectory: {{value: $draw.trajectory}}
  masks: {{value: $draw.masks}}
"
    )
}

/// An edit of the main job.
struct Edit {
    what: &'static str,
    /// What is set at 50 steps, and the calls that it costs with the sources' keys and values kept, and without.
    set: Vec<String>,
    with: u64,
    without: u64,
    /// What is set at 10 steps, and the calls that it costs without.
    short: Vec<String>,
    short_without: u64,
}

/// The edits of the table in docs/engine.md. At `T` steps (`b`, `s`, `u`: `blend_steps`, `start_step`, `structure_until`)
/// a stage from step `k` on costs `2 (T - k)` calls, an inversion `T`, and a source that is not kept as many as the target.
fn edits(folder: &Path) -> Vec<Edit> {
    let data = support::root().join("tests/oracle/data");
    let (vanilla, personal) = (folder.join("vanilla"), folder.join("personal"));
    nudged(&data.join("tiny-sd1/unet"), &vanilla);
    nudged(&data.join("tiny-sd1-personal/unet"), &personal);
    let photo = support::root().join("references/teddy/01.png");
    let owned = |pairs: &[&str]| pairs.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
    // Steps that are numbers differ with the number of steps.
    let two =
        |what, (set, with, without): (&[&str], _, _), (short, short_without): (&[&str], _)| Edit {
            what,
            set: owned(set),
            with,
            without,
            short: self::short(short),
            short_without,
        };
    let one = |what, set: &str, (with, without), short_without| {
        two(what, (&[set], with, without), (&[set], short_without))
    };
    let path = |name: &str, path: &Path| format!("{name}={}", path.display());
    vec![
        one("the name of a saved file", "name=b", (0, 0), 0),
        two(
            "from_step, start_step being past both",
            (&["from_step=6"], 0, 0),
            (&["from_step=2"], 0),
        ),
        // From `u` on.
        two(
            "structure_until",
            (&["structure_until=25"], 70, 180),
            (&["structure_until=5"], 36),
        ),
        // Stage 1 from the old `b` on, the rest from `s`.
        two(
            "blend_steps and start_step",
            (&["blend_steps=12", "start_step=12"], 156, 308),
            (&["blend_steps=3", "start_step=3"], 58),
        ),
        two(
            "start_step alone",
            (&["start_step=8"], 92, 252),
            (&["start_step=1"], 54),
        ),
        // At the target's first step union and target are the context's mask: one step less than another rule.
        one("the mask rule", "blend=target", (78, 234), 42),
        one("threshold", "threshold=0.4", (80, 240), 48),
        one("smooth", "smooth=0", (80, 240), 48),
        one("subject", "subject=bear", (80, 240), 48),
        one(
            "the last prompt",
            "prompt=a big sks teddy bear in the snow",
            (80, 240),
            48,
        ),
        one("the last guidance", "last_guidance=3", (80, 240), 48),
        one("fewer sites", "sites=12..16", (80, 240), 48),
        one("seed", "seed=2", (180, 340), 68),
        two(
            "guidance of both stages",
            (&["guidance=3", "last_guidance=3"], 180, 340),
            (&["guidance=3", "last_guidance=3"], 68),
        ),
        one(
            "vanilla prompt",
            "vanilla_prompt=a teddy bear in the snow",
            (180, 340),
            68,
        ),
        one(
            "vanilla model",
            &path("vanilla_unet", &vanilla),
            (180, 340),
            68,
        ),
        one("reference photo", &path("photo", &photo), (210, 290), 58),
        one(
            "personalised weights",
            &path("personal_unet", &personal),
            (290, 370),
            74,
        ),
    ]
}

struct Run {
    calls: u64,
    foretold: u64,
    bits: Vec<Vec<u32>>,
    recorder: Recorder,
}

fn engine() -> Engine {
    let device = std::env::var("RETOUCH_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let runtime = Runtime::by_name(&device).unwrap();
    let numerics = runtime.numerics();
    Engine::new(retouch_nodes::registry())
        .with_environment(Arc::new(runtime))
        .with_numerics(numerics)
        .with_cache(Arc::new(HostCache::new(8 << 30)))
}

fn run_of(engine: &Engine, yaml: &str, set: &[String]) -> Run {
    let settings = Settings {
        set: set.to_vec(),
        ..Settings::default()
    };
    let checked = match engine.load_str("test.yaml", yaml, &settings) {
        Ok(checked) => checked,
        Err(problems) => panic!("{problems}"),
    };
    let plan = engine.plan(&checked, &[]).unwrap();
    let foretold = engine.forecast(&plan).total_calls();
    let recorder = Recorder::new();
    let report = engine
        .run(&plan, &recorder, &Cancel::new(), &RunOptions::default())
        .unwrap();
    let bits_of = |t: &Tensor| -> Vec<u32> {
        let t = t.to_device(&candle_core::Device::Cpu).unwrap();
        let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    let mut bits = Vec::new();
    for output in &report.outputs {
        if let Some(latent) = output.value.downcast::<Latent>() {
            bits.push(bits_of(&latent.tensor));
        } else if let Some(trajectory) = output.value.downcast::<Trajectory>() {
            bits.extend(trajectory.latents.iter().map(bits_of));
        } else if let Some(masks) = output.value.downcast::<Masks>() {
            bits.push(bits_of(&masks.tensor));
        }
    }
    Run {
        calls: report.counters.get("unet_calls").copied().unwrap_or(0),
        foretold,
        bits,
        recorder,
    }
}

fn run(engine: &Engine, set: &[String]) -> Run {
    run_of(engine, &workflow(), set)
}

/// The calls that a run of the main job would make.
fn foretold(engine: &Engine, set: &[String]) -> u64 {
    let settings = Settings {
        set: set.to_vec(),
        ..Settings::default()
    };
    let checked = engine.load_str("test.yaml", &workflow(), &settings);
    let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
    engine.forecast(&plan).total_calls()
}

#[test]
fn an_edit_costs_the_calls_of_column_a_when_the_sources_are_kept_and_the_plan_foretells_them() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine().with_sources(4 << 30);
    let cold = run(&engine, &[]);
    assert_eq!((cold.calls, cold.foretold), (310, 310), "cold");
    for Edit {
        what, set, with, ..
    } in edits(folder.path())
    {
        let edited = run(&engine, &set);
        println!("{what}: {} calls", edited.calls);
        assert_eq!((edited.calls, edited.foretold), (with, with), "{what}");
    }
}

/// At 50 steps the plan is asked, and at 10 it is held to what it says.
#[test]
fn an_edit_costs_the_calls_of_column_b_when_they_are_not_and_the_plan_foretells_them() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, quick) = (engine().with_sources(0), engine().with_sources(0));
    let cold = run(&whole, &[]);
    assert_eq!((cold.calls, cold.foretold), (390, 390), "cold");
    let cold = run(&quick, &short(&[]));
    assert_eq!((cold.calls, cold.foretold), (78, 78), "cold");
    for edit in edits(folder.path()) {
        let what = edit.what;
        assert_eq!(foretold(&whole, &edit.set), edit.without, "{what}");
        let edited = run(&quick, &edit.short);
        let due = edit.short_without;
        assert_eq!((edited.calls, edited.foretold), (due, due), "{what}");
    }
}

/// Short runs with the same proportions.
fn short(set: &[&str]) -> Vec<String> {
    let mut all = vec!["steps=10".to_owned()];
    all.extend(set.iter().map(|&s| s.to_owned()));
    all
}

const SHORT_EDITS: [&[&str]; 9] = [
    &["structure_until=6"],
    &["blend_steps=3", "start_step=3"],
    &["start_step=1", "from_step=2"],
    &["start_step=0", "from_step=3", "blend=target"],
    &["threshold=0.4"],
    &["subject=bear"],
    &["sites=12..16"],
    &["last_guidance=1"],
    &["seed=2"],
];

#[test]
fn what_is_resumed_equals_a_fresh_run_bit_for_bit() {
    let kept = engine();
    let recomputed = engine().with_sources(0);
    let fresh = engine().with_cache(Arc::new(NoCache));
    for engine in [&kept, &recomputed] {
        run(engine, &short(&[]));
    }
    for set in SHORT_EDITS {
        let expected = run(&fresh, &short(set));
        assert_eq!(expected.calls, expected.foretold, "{set:?}");
        for (name, engine) in [("kept", &kept), ("recomputed", &recomputed)] {
            let resumed = run(engine, &short(set));
            assert!(resumed.calls < expected.calls, "{name} {set:?}");
            assert_eq!(resumed.calls, resumed.foretold, "{name} {set:?}");
            assert!(resumed.bits == expected.bits, "{name} {set:?}");
        }
    }
}

#[test]
fn another_process_resumes_from_disk_bit_for_bit_and_a_known_run_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // An engine of its own is what another process has: nothing in memory.
    let from_disk = || {
        let disk = DiskCache::open(folder.path(), 1 << 30, decoders()).unwrap();
        engine().with_cache(Arc::new(TieredCache::new(0, 1 << 30, Some(disk), None)))
    };
    let cold = run(&from_disk(), &short(&[]));
    assert_eq!(cold.calls, cold.foretold);
    let again = run(&from_disk(), &short(&[]));
    assert!(
        again.recorder.ran().is_empty(),
        "{:?}",
        again.recorder.ran()
    );
    assert_eq!((again.calls, again.foretold), (0, 0));
    assert!(again.bits == cold.bits);
    let fresh = engine().with_cache(Arc::new(NoCache));
    for set in SHORT_EDITS {
        let resumed = run(&from_disk(), &short(set));
        let expected = run(&fresh, &short(set));
        assert_eq!(resumed.calls, resumed.foretold, "{set:?}");
        assert!(resumed.calls < expected.calls, "{set:?}");
        assert!(resumed.bits == expected.bits, "{set:?}");
    }
}

#[test]
fn the_event_log_says_where_each_sampler_went_on() {
    let engine = engine();
    run(&engine, &[]);
    let edited = run(&engine, &["blend_steps=12".into(), "start_step=12".into()]);
    let log = edited.recorder;
    assert_eq!(log.resumed(), [("layout".to_owned(), 10)]);
    assert_eq!(log.ran(), ["layout", "swap", "draw", "picture"]);
    let edited = run(&engine, &["structure_until=25".into()]);
    assert_eq!(edited.recorder.resumed(), [("draw".to_owned(), 20)]);
}

#[test]
fn sixteen_seeds_on_one_reference_pay_its_branch_once() {
    let engine = engine();
    let seeds = (1..=16).map(|seed| run(&engine, &short(&[&format!("seed={seed}")])).calls);
    let calls: Vec<u64> = seeds.collect();
    // Inversion 10, stage 1 20, reference 16, target 16; then stage 1 and target alone.
    assert_eq!(calls[0], 62);
    assert!(calls[1..].iter().all(|&calls| calls == 36), "{calls:?}");
}

#[test]
fn blend_steps_0_shares_every_step_with_the_personalised_model_alone() {
    let bench = engine();
    let world = |file: &str| -> (String, String) {
        let path = support::root().join("workflows").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        (path.display().to_string(), text)
    };
    let calls = |file: &str, targets: &[&str], set: &[&str]| -> u64 {
        let (path, text) = world(file);
        let settings = Settings {
            set: set.iter().map(|&s| s.to_owned()).collect(),
            ..Settings::default()
        };
        let checked = bench.load_str(&path, &text, &settings).unwrap();
        let targets: Vec<String> = targets.iter().map(|&s| s.to_owned()).collect();
        let plan = bench.plan(&checked, &targets).unwrap();
        let report = bench
            .run(
                &plan,
                &Recorder::new(),
                &Cancel::new(),
                &RunOptions::default(),
            )
            .unwrap();
        report.counters.get("unet_calls").copied().unwrap_or(0)
    };
    assert_eq!(calls("personalized.yaml", &[], &["steps=4"]), 8);
    let shared = ["steps=4", "blend_steps=0"];
    assert_eq!(
        calls("layout-and-retouch.yaml", &["layout_picture"], &shared),
        0
    );
}

#[test]
fn the_plan_foretells_the_calls_of_every_workflow_that_ships() {
    let folder = support::root().join("workflows");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let mut tried = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        // Graphs to use in others draw nothing by themselves, and sweeps have plans of their own.
        let is_sweep = text.contains("\n  workflow:") || file.ends_with("sweep.yaml");
        if text.contains("\ninputs:") || is_sweep {
            continue;
        }
        tried += 1;
        let mut set = vec!["steps=5".to_owned()];
        // What a training or a measurement makes many times is foretold as well of a few.
        for (param, few) in [("train_steps", "train_steps=2"), ("batch", "batch=2")] {
            if text.contains(&format!("\n  {param}:")) {
                set.push(few.to_owned());
            }
        }
        let engine = engine();
        let settings = Settings {
            set,
            ..Settings::default()
        };
        let checked = engine.load(&file, &settings).unwrap();
        // Scores are made of pictures, without a call.
        let targets: Vec<String> = (checked.outputs.iter())
            .map(|output| output.name.clone())
            .filter(|name| !name.ends_with("_scores"))
            .collect();
        let plan = engine.plan(&checked, &targets).unwrap();
        let mut calls = Vec::new();
        for _ in 0..2 {
            let foretold = engine.forecast(&plan).total_calls();
            let report = engine
                .run(
                    &plan,
                    &Recorder::new(),
                    &Cancel::new(),
                    &RunOptions::default(),
                )
                .unwrap();
            let made = report.counters.get("unet_calls").copied().unwrap_or(0);
            assert_eq!(foretold, made, "{}", file.display());
            calls.push(made);
        }
        assert!(
            calls[0] > 0 && calls[1] == 0,
            "{}: {calls:?}",
            file.display()
        );
    }
    assert!(tried >= 9, "{tried}");
}

#[test]
fn two_runs_of_one_engine_at_once_share_their_steps() {
    let engine = engine();
    let calls: u64 = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| run(&engine, &short(&[])).calls))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    // Each may call for the same part of a source before the other has kept it, but no step is drawn twice.
    let fresh = run(&self::engine(), &short(&[])).calls;
    assert!(calls < 2 * fresh, "{calls} of {fresh}");
    assert!(calls <= fresh + 16, "{calls} of {fresh}");
}

/// Looks at the size of a folder at every event.
struct Watch {
    folder: PathBuf,
    most: AtomicU64,
}

impl Listener for Watch {
    fn event(&self, _: &Event) {
        let mut bytes = 0;
        let mut open = vec![self.folder.clone()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let of = entry.metadata().unwrap();
                if of.is_dir() {
                    open.push(entry.path());
                } else {
                    bytes += of.len();
                }
            }
        }
        self.most.fetch_max(bytes, Ordering::Relaxed);
    }
}

#[test]
fn the_budget_of_the_disk_is_kept_while_more_than_it_is_put_in() {
    const BUDGET: u64 = 2 << 20;
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskCache::open(folder.path(), BUDGET, decoders()).unwrap();
    let engine = engine().with_cache(Arc::new(TieredCache::new(0, 0, Some(disk), None)));
    let watch = Watch {
        folder: folder.path().to_owned(),
        most: AtomicU64::new(0),
    };
    // One thread, so that nothing is written while the folder is looked at.
    let options = RunOptions {
        threads: 1,
        ..RunOptions::default()
    };
    let mut kept = 0;
    for seed in ["seed=1", "seed=2"] {
        let settings = Settings {
            set: short(&[seed]),
            ..Settings::default()
        };
        let checked = engine
            .load_str("test.yaml", &workflow(), &settings)
            .unwrap();
        let plan = engine.plan(&checked, &[]).unwrap();
        kept += engine.forecast(&plan).kept_bytes();
        engine.run(&plan, &watch, &Cancel::new(), &options).unwrap();
    }
    let most = watch.most.into_inner();
    assert!(kept > 2 * BUDGET, "{kept} bytes are too few for this test");
    assert!(most > BUDGET / 2 && most <= BUDGET, "{most} of {BUDGET}");
}

/// A run of the main job with settings drawn at random: what may be set, in all its forms.
fn drawn(random: &mut impl FnMut(u64) -> u64) -> String {
    let mut pick = |values: &[&str]| values[random(values.len() as u64) as usize].to_owned();
    let mut yaml = workflow();
    let masks = "  luma: {op: mask, image: $photo, from: luma, threshold: 0.5}
  soft: {op: mask, mask: $luma, feather: 9}
  ones: {op: mask, image: $photo, from: all}
";
    yaml = yaml.replace("nodes:\n", &format!("nodes:\n{masks}"));
    let mut swap = format!(
        "    until_step: {}\n    lock: {}\n    mask_grid: {}\n",
        pick(&["100%", "100%", "75%"]),
        pick(&["true", "false"]),
        pick(&["auto", "8x8", "16x16"])
    );
    for (port, masks) in [
        ("reference_mask", ["", "", "$luma", "$ones"]),
        ("context_mask", ["", "", "$luma", "$soft"]),
        ("blend_mask", ["", "", "$soft", "$ones"]),
    ] {
        let mask = pick(&masks);
        if !mask.is_empty() {
            swap.push_str(&format!("    {port}: {mask}\n"));
        }
    }
    if pick(&["", "x"]) == "x" {
        swap.push_str("    context_prompt: a big sks teddy bear in the snow\n");
    }
    yaml = yaml.replace(
        "    blend: $params.blend\n",
        &format!("    blend: $params.blend\n{swap}"),
    );
    let batch = pick(&["", "", "    batch: 2\n"]);
    yaml = yaml.replace(
        "    seed: $params.seed\n",
        &format!("    seed: $params.seed\n{batch}"),
    );
    let settings = [
        ("{type: int, default: 50}", vec!["4", "4", "5"]),
        (
            "blend_steps: {type: steps, default: 20%}",
            vec!["0", "1", "2"],
        ),
        (
            "start_step: {type: steps, default: 20%}",
            vec!["0", "1", "2"],
        ),
        ("from_step: {type: steps, default: 8%}", vec!["0", "1", "2"]),
        (
            "structure_until: {type: steps, default: 40%}",
            vec!["0", "2", "4"],
        ),
        ("  guidance: {type: float, default: 5}", vec!["5", "5", "1"]),
        (
            "last_guidance: {type: float, default: 5}",
            vec!["5", "5", "1"],
        ),
        (
            "threshold: {type: threshold, default: otsu}",
            vec!["otsu", "soft", "0.4"],
        ),
        ("smooth: {type: int, default: 1}", vec!["1", "1", "0"]),
        ("default: union", vec!["union", "context", "target"]),
        ("default: 10..16", vec!["10..16", "12..16", "none", "all"]),
        ("default: teddy bear}", vec!["teddy bear", "bear"]),
        ("seed, default: 1}", vec!["1", "1", "2"]),
    ];
    for (declared, values) in settings {
        let (head, _) = declared.rsplit_once("default: ").unwrap();
        let tail = if declared.ends_with('}') { "}" } else { "" };
        assert!(yaml.contains(declared), "{declared}");
        yaml = yaml.replacen(
            declared,
            &format!("{head}default: {}{tail}", pick(&values)),
            1,
        );
    }
    yaml
}

#[test]
fn any_row_of_edits_gives_what_fresh_runs_give_and_costs_what_is_foretold() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let kept = engine();
    let recomputed = engine().with_sources(0);
    let fresh = engine().with_cache(Arc::new(NoCache));
    // `RETOUCH_EDITS` tries longer rows (CONTRIBUTING.md).
    let given = std::env::var("RETOUCH_EDITS").ok();
    let edits: u32 = given.map_or(20, |edits| edits.parse().unwrap());
    let mut ran = 0;
    for _ in 0..edits {
        let yaml = drawn(&mut random).replace("  masks: {value: $draw.masks}\n", "");
        // Some draws make no sense together; what is refused is refused by all.
        let Ok(checked) = fresh.load_str("test.yaml", &yaml, &Settings::default()) else {
            continue;
        };
        drop(checked);
        let expected = run_of(&fresh, &yaml, &[]);
        for engine in [&kept, &recomputed] {
            let edited = run_of(engine, &yaml, &[]);
            assert!(edited.bits == expected.bits, "{yaml}");
            assert_eq!(edited.calls, edited.foretold, "{yaml}");
        }
        assert_eq!(expected.calls, expected.foretold, "{yaml}");
        ran += 1;
    }
    assert!(2 * ran >= edits, "{ran} of {edits} ran");
}

#[test]
fn a_given_mask_on_another_grid_is_another_mask() {
    let engine = engine();
    let fresh = self::engine().with_cache(Arc::new(NoCache));
    let on = |grid: &str| {
        workflow()
            .replace(
                "nodes:\n",
                "nodes:\n  luma: {op: mask, image: $photo, from: luma, threshold: 0.5}\n  soft: {op: mask, mask: $luma, feather: 9}\n",
            )
            .replace(
                "    blend: $params.blend\n",
                &format!("    blend: $params.blend\n    blend_mask: $soft\n    reference_mask: $luma\n    mask_grid: {grid}\n"),
            )
    };
    let set = short(&[]);
    run_of(&engine, &on("16x16"), &set);
    let edited = run_of(&engine, &on("8x8"), &set);
    assert!(edited.bits == run_of(&fresh, &on("8x8"), &set).bits);
    assert!(edited.bits != run_of(&fresh, &on("16x16"), &set).bits);
}

/// Runs workflows one after another on one engine; each must give what a fresh run gives, for the calls foretold.
fn same_as_fresh(row: &[String]) {
    let engine = engine();
    let fresh = self::engine().with_cache(Arc::new(NoCache));
    for yaml in row {
        let expected = run_of(&fresh, yaml, &short(&[]));
        let edited = run_of(&engine, yaml, &short(&[]));
        assert!(edited.bits == expected.bits, "{yaml}");
        assert_eq!(edited.calls, edited.foretold, "{yaml}");
        assert_eq!(expected.calls, expected.foretold, "{yaml}");
    }
}

#[test]
fn two_values_of_one_node_are_not_taken_for_one_another() {
    let from = |port: &str| {
        let whole = workflow();
        let head = &whole[..whole.find("outputs:\n").unwrap()];
        head.replace(
            "steps: $params.steps}\n  layout",
            "steps: $params.steps, measure: true}\n  layout",
        ) + &format!(
            "  again: {{op: sample, model: $personal, prompt: a bear, latent: $inverted.{port}, steps: 4, guidance: 5}}\noutputs:\n  latent: {{value: $again}}\n"
        )
    };
    same_as_fresh(&[from("noise"), from("replay")]);
}

#[test]
fn a_retouch_of_a_retouch_of_a_file_knows_what_drew_each_step() {
    let folder = tempfile::tempdir().unwrap();
    let whole = workflow();
    let engine = engine();
    let settings = Settings {
        set: short(&[]),
        ..Settings::default()
    };
    let checked = engine.load_str("test.yaml", &whole, &settings).unwrap();
    let plan = engine.plan(&checked, &["layout".to_owned()]).unwrap();
    let report = engine
        .run(
            &plan,
            &Recorder::new(),
            &Cancel::new(),
            &RunOptions::default(),
        )
        .unwrap();
    let trajectory = report
        .outputs
        .iter()
        .find(|output| output.name == "layout.trajectory")
        .unwrap();
    let file = folder.path().join("layout.safetensors");
    std::fs::write(&file, &trajectory.value.encode("safetensors").unwrap()[0]).unwrap();
    let row = |prompt: &str| {
        let swap = &whole[whole.find("  swap:\n").unwrap()..whole.find("  draw:").unwrap()];
        let second = swap
            .replace("  swap:", "  swap2:")
            .replace("$layout.trajectory", "$draw.trajectory");
        whole
            .replace("context: $layout.trajectory", "context: $file.trajectory")
            .replace(
                "nodes:\n",
                &format!("nodes:\n  file: {{op: load_latent, path: '{}'}}\n", file.display()),
            )
            .replace("prompt: $params.prompt", &format!("prompt: {prompt}"))
            .replace(
                "outputs:\n",
                &format!("{second}  draw2: {{op: sample, model: $personal, prompt: a sks teddy bear, control: $swap2}}\noutputs:\n  second: {{value: $draw2}}\n"),
            )
    };
    same_as_fresh(&[row("a sks teddy bear"), row("a big sks teddy bear")]);
}

#[test]
fn halves_with_one_prompt_are_one_call_and_a_mask_of_ones_is_foretold_as_it_is_used() {
    let given = |with: &str| {
        workflow()
            .replace(
                "nodes:\n",
                "nodes:\n  ones: {op: mask, image: $photo, from: all}\n  white: {op: mask, mask: $ones, feather: 2}\n",
            )
            .replace("    blend: $params.blend\n", &format!("    blend: $params.blend\n{with}"))
    };
    same_as_fresh(&[
        given("    reference_mask: $white\n").replace("a photo of a sks teddy bear", "''"),
        given("    blend_mask: $white\n"),
        given("    blend_mask: $ones\n"),
    ]);
}

#[test]
fn naming_a_node_twice_runs_nothing_the_second_time() {
    let engine = engine();
    let file = support::root().join("workflows/personalized.yaml");
    let settings = Settings {
        set: vec!["steps=2".to_owned()],
        ..Settings::default()
    };
    let checked = engine.load(&file, &settings).unwrap();
    let node = checked
        .nodes
        .iter()
        .find(|node| node.entry().op() == "sample")
        .unwrap();
    let plan = engine.plan(&checked, &[node.name().to_owned()]).unwrap();
    let ran = || {
        let recorder = Recorder::new();
        engine
            .run(&plan, &recorder, &Cancel::new(), &RunOptions::default())
            .unwrap();
        recorder.ran().len()
    };
    assert_eq!((ran(), ran()), (2, 0));
}

/// Does something once, at the first event that fits.
struct At<F, D>(F, D, std::sync::atomic::AtomicBool);

impl<F: Fn(&Event) -> bool + Send + Sync, D: Fn() + Send + Sync> Listener for At<F, D> {
    fn event(&self, event: &Event) {
        if (self.0)(event) && !self.2.swap(true, Ordering::SeqCst) {
            (self.1)();
        }
    }
}

#[test]
fn weights_that_are_swapped_while_a_sampler_runs_end_it_and_nothing_made_of_them_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(&support::root().join("tests/oracle/data/micro/sd1"), &model);
    let yaml = format!(
        "schema: retouch/v1
nodes:
  model: {{op: load_model, path: '{}'}}
  draw: {{op: sample, model: $model, prompt: a bear, steps: 4, seed: 3}}
  picture: {{op: decode, model: $model, latent: $draw.latent}}
outputs:
  latent: {{value: $draw.latent}}
  picture: {{value: $picture}}
",
        model.display()
    );
    let bits = |engine: &Engine| {
        let settings = Settings::default();
        let checked = engine.load_str("test.yaml", &yaml, &settings).unwrap();
        let plan = engine.plan(&checked, &[]).unwrap();
        let report = engine.run(
            &plan,
            &Recorder::new(),
            &Cancel::new(),
            &RunOptions::default(),
        );
        let report = report.unwrap();
        let picture = report.outputs[1].value.encode("png").unwrap().remove(0);
        let latent = report.outputs[0].value.downcast::<Latent>().unwrap();
        let latent = latent.tensor.flatten_all().unwrap().to_vec1::<f32>();
        (latent.unwrap(), picture)
    };
    let fresh = bits(&engine());
    type Fits = fn(&Event) -> bool;
    let moments: [(&str, Fits); 4] = [
        // The sampler loads the U-Net after this.
        (
            "unet",
            |event| matches!(event, Event::NodeStarted { node, .. } if node == "draw"),
        ),
        (
            "unet",
            |event| matches!(event, Event::NodeProgress { node, done: 2, .. } if node == "draw"),
        ),
        // `decode` loads the VAE after these.
        (
            "vae",
            |event| matches!(event, Event::NodeProgress { node, done: 2, .. } if node == "draw"),
        ),
        (
            "vae",
            |event| matches!(event, Event::NodeStarted { node, .. } if node == "picture"),
        ),
    ];
    for (part, fits) in moments {
        let engine = engine();
        let weights = weights_in(&model.join(part));
        let sound = std::fs::read(&weights).unwrap();
        let swap = || {
            // As a training does that writes into the same file: other numbers, of the same size.
            let mut bytes = sound.clone();
            let from = bytes.len() / 2;
            for number in bytes[from..].chunks_exact_mut(4) {
                number[1] ^= 0x3f;
            }
            std::fs::write(&weights, bytes).unwrap();
        };
        let settings = Settings::default();
        let checked = engine.load_str("test.yaml", &yaml, &settings).unwrap();
        let plan = engine.plan(&checked, &[]).unwrap();
        let listener = At(fits, swap, false.into());
        let result = engine.run(&plan, &listener, &Cancel::new(), &RunOptions::default());
        let error = result.unwrap_err();
        assert_eq!(error.code(), retouch_graph::Code::FileChanged, "{error}");
        let named = weights.file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(named), "{error}");
        std::fs::write(&weights, &sound).unwrap();
        assert!(bits(&engine) == fresh, "{part}: what is kept is sound");
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn weights_in(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let mut files = files.map(|entry| entry.path());
    let weights = |path: &PathBuf| {
        path.extension()
            .is_some_and(|ending| ending == "safetensors")
    };
    files.find(weights).unwrap()
}

#[test]
fn a_control_counts_all_that_a_cache_holds_with_it() {
    let engine = engine();
    let set = short(&[]);
    run(&engine, &set);
    let settings = Settings {
        set,
        ..Settings::default()
    };
    let checked = engine.load_str("test.yaml", &workflow(), &settings);
    let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
    let kept = |task: &retouch_graph::Task, port: &str| {
        let outputs = engine.cache().get(&task.port_key(port)).unwrap();
        outputs[port].bytes()
    };
    let mut controls = 0;
    let swaps = plan.tasks().enumerate();
    for (index, task) in swaps.filter(|(_, task)| task.op() == "swap_attention") {
        let links = plan.inputs(index).into_iter().flat_map(|(_, links)| links);
        let held: usize = links
            .map(|(from, port)| kept(plan.task(from).unwrap(), port))
            .sum();
        assert!(held > 4 << 20, "a model is among it");
        assert!(kept(task, "control") >= held);
        controls += 1;
    }
    assert!(controls > 0);
}
