//! Schedulers, image to image, inpainting and guidance rescale, held against what diffusers' classes gave
//! (tests/oracle/make_schedulers.py), and against the laws of resuming and of batches.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_diffusion::sampling::noise::{
    Stream, normal, second_step_noise, starting_noise, step_noise,
};
use retouch_diffusion::sampling::scheduler::{FinalSigma, SchedulerConfig, Spacing};
use retouch_diffusion::sampling::solver::{Sampler, Schedule, Sigmas, Solver};
use retouch_graph::TieredCache;
use retouch_graph::{Cancel, DiskCache, Engine, Event, NoCache, Recorder, RunOptions, Settings};
use retouch_nodes::payload::{Latent, Trajectory, decoders};

use crate::support::{self, Bench};

const FAMILIES: [&str; 2] = ["tiny-sd1", "tiny-sd2"];
/// max |difference| / std of the expected tensor, as in the oracle.
const TRAJECTORY: f32 = 5e-4;
/// The name of a case, and what a sampler is told for it.
const CASES: [(&str, &str); 9] = [
    ("ddim", ""),
    ("ddim_eta", ", scheduler: ddim, eta: 0.7"),
    ("euler", ", scheduler: euler"),
    ("euler_karras", ", scheduler: euler, karras: true"),
    ("euler_ancestral", ", scheduler: euler_ancestral"),
    ("dpmpp_2m", ", scheduler: dpmpp_2m"),
    ("dpmpp_2m_karras", ", scheduler: dpmpp_2m, karras: true"),
    ("unipc", ", scheduler: unipc"),
    ("unipc_karras", ", scheduler: unipc, karras: true"),
];

/// The schedulers that tests/oracle/make_solvers.py draws with on a tiny model, with the calls of a half in 8 steps, and in
/// the last 4 of them.
const MORE: [(&str, u64, u64); 9] = [
    ("heun", 15, 7),
    ("lms", 8, 4),
    ("pndm", 9, 4),
    ("dpmpp_3m", 8, 4),
    ("dpmpp_2m_sde", 8, 4),
    ("dpmpp_3m_sde", 8, 4),
    ("dpmpp_2s", 8, 4),
    ("dpmpp_sde", 15, 7),
    ("lcm", 8, 4),
];

/// Every scheduler, with what a sampler is told for it and its calls as in [`MORE`].
fn all_schedulers() -> Vec<(String, String, u64, u64)> {
    let first = CASES.map(|(case, extra)| (case.to_owned(), extra.to_owned(), 8, 4));
    let more = MORE.map(|(name, all, last)| {
        let extra = format!(", scheduler: {name}");
        (name.to_owned(), extra, all, last)
    });
    first.into_iter().chain(more).collect()
}

fn data() -> PathBuf {
    support::root().join("tests/oracle/data")
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data().join("schedulers.safetensors"), &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f32> {
    let t = t.to_device(&Device::Cpu).unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// max |difference| / std of the expected tensor.
fn distance(actual: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(actual.dims(), expected.dims());
    let (a, b) = (numbers(actual), numbers(expected));
    let n = b.len() as f64;
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares = b
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>();
    let std = (squares / (n - 1.0)).sqrt() as f32;
    let off = a.iter().zip(&b).map(|(a, b)| {
        if a.is_finite() {
            (a - b).abs()
        } else {
            f32::INFINITY
        }
    });
    off.fold(0.0, f32::max) / std
}

#[track_caller]
fn close(what: &str, actual: &Tensor, expected: &Tensor) {
    let off = distance(actual, expected);
    println!("{what}: {off:.1e}");
    assert!(off <= TRAJECTORY, "{what}: {off:.2e}");
}

fn solver_of(case: &str) -> (Solver, bool, f64) {
    let karras = case.ends_with("_karras");
    let eta = if case == "ddim_eta" { 0.7 } else { 0.0 };
    let solver = match case.trim_end_matches("_karras").trim_end_matches("_eta") {
        "ddim" => Solver::Ddim,
        "euler" => Solver::Euler,
        "euler_ancestral" => Solver::EulerAncestral,
        "dpmpp_2m" => Solver::Dpmpp2m,
        "unipc" => Solver::Unipc,
        other => panic!("{other}"),
    };
    (solver, karras, eta)
}

fn config_of(family: &str) -> SchedulerConfig {
    let file = data().join(family).join("scheduler/scheduler_config.json");
    SchedulerConfig::parse(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Holds a scheduler's tables against those of the oracle under `name`.
#[track_caller]
fn check_tables(
    expected: &HashMap<String, Tensor>,
    name: &str,
    config: &SchedulerConfig,
    case: &str,
    steps: usize,
) {
    let (solver, karras, eta) = solver_of(case);
    let sigmas = match karras {
        true => Sigmas::Karras,
        false => Sigmas::Training,
    };
    let schedule = Schedule::choose(config, Some(solver), Some(sigmas), eta, steps).unwrap();
    let sampler = Sampler::new(config, schedule).unwrap();
    let near = |what: &str, actual: &[f32], share: f32| {
        let due = numbers(&expected[&format!("{name}.{what}")]);
        assert_eq!(actual.len(), due.len(), "{name}.{what}");
        for (a, b) in actual.iter().zip(&due) {
            assert!(
                (a - b).abs() <= share * b.abs().max(1.0),
                "{name}.{what}: {actual:?} {due:?}"
            );
        }
    };
    near("timesteps", sampler.timesteps(), 1e-6);
    if solver != Solver::Ddim {
        near("sigmas", sampler.sigmas(), 1e-6);
    }
}

#[test]
fn timesteps_and_sigmas_are_those_of_diffusers_for_each_scheduler_and_layout() {
    let expected = expected();
    for family in FAMILIES {
        for (case, _) in CASES {
            for steps in [7, 20] {
                let name = format!("{family}.{case}.{steps}");
                check_tables(&expected, &name, &config_of(family), case, steps);
            }
        }
    }
    let mut layouts = 0;
    for layout in LAYOUTS {
        for (case, _) in CASES {
            let name = format!("{layout}.{case}");
            if expected.contains_key(&format!("{name}.timesteps")) {
                layouts += 1;
                check_tables(&expected, &name, &laid_out(layout), case, 7);
            }
        }
    }
    assert_eq!(layouts, 34);
}

const LAYOUTS: [&str; 6] = [
    "default",
    "linspace",
    "trailing",
    "sigma_min",
    "no_lower_order",
    "euler_at_final",
];

/// The first family's configuration with a change.
fn laid_out(layout: &str) -> SchedulerConfig {
    let mut config = config_of("tiny-sd1");
    match layout {
        "default" => config.timestep_spacing = None,
        "linspace" => config.timestep_spacing = Some(Spacing::Linspace),
        "trailing" => config.timestep_spacing = Some(Spacing::Trailing),
        "sigma_min" => config.sigmas.final_sigmas_type = Some(FinalSigma::SigmaMin),
        "no_lower_order" => config.sigmas.lower_order_final = Some(false),
        "euler_at_final" => config.sigmas.euler_at_final = Some(true),
        other => panic!("{other}"),
    }
    config
}

/// What stands for the network in tests/oracle/make_solvers.py.
fn network(z: &Tensor, t: f32) -> Tensor {
    let t = f64::from(t);
    let values = numbers(z).into_iter().enumerate().map(|(place, z)| {
        let z = f64::from(z);
        let wave = (place as f64 * 0.37 + t * 0.004).sin();
        ((z * (0.9 - t * 0.0003)).tanh() + 0.35 * wave + 0.05 * z) as f32
    });
    Tensor::from_vec(values.collect::<Vec<f32>>(), z.shape(), &Device::Cpu).unwrap()
}

/// The latents of a sampler whose network is [`network`], from noise or, where steps are skipped, from a picture.
fn sampled(sampler: &Sampler) -> Tensor {
    const SEED: u64 = 11;
    let shape = (1, 4, 6, 6);
    let noise = starting_noise(SEED, shape, &Device::Cpu).unwrap();
    let mut z = if sampler.schedule().first > 0 {
        let picture = normal(SEED, Stream::Step(5), 144);
        let picture = Tensor::from_vec(picture, shape, &Device::Cpu).unwrap();
        let picture = (picture * 0.8).unwrap();
        sampler.noised(&picture, &noise, 0).unwrap()
    } else {
        (noise * sampler.start_scale()).unwrap()
    };
    let (mut past, mut all) = (Vec::new(), vec![z.clone()]);
    for step in 0..sampler.steps() {
        let k = sampler.number(step);
        let drawn = [
            step_noise(SEED, k, shape, &Device::Cpu).unwrap(),
            second_step_noise(SEED, k, shape, &Device::Cpu).unwrap(),
        ];
        let mut calls = 1;
        let out = network(&z, sampler.timestep(step));
        let mut second = |z: &Tensor, t: f32| {
            calls += 1;
            Ok(network(z, t))
        };
        let noise = &drawn[..sampler.noises(step)];
        (z, past) = sampler
            .step(&z, &out, step, &past, noise, &mut second)
            .unwrap();
        assert_eq!(calls, sampler.evaluations(step));
        assert_eq!(past.is_empty(), !sampler.remembers(step + 1));
        assert!(past.len() <= 4, "{}", past.len());
        all.push(z.clone());
    }
    Tensor::cat(&all, 0).unwrap()
}

/// A case of tests/oracle/make_solvers.py.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    solver: String,
    options: serde_json::Map<String, serde_json::Value>,
    steps: usize,
    #[serde(default)]
    first: usize,
}

impl Case {
    fn sampler(&self, first: usize) -> Sampler {
        let mut config = serde_json::json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
            "clip_sample": false,
        });
        let class = match self.solver.as_str() {
            "ddim" => "DDIMScheduler",
            "euler" => "EulerDiscreteScheduler",
            "euler_ancestral" => "EulerAncestralDiscreteScheduler",
            "heun" => "HeunDiscreteScheduler",
            "lms" => "LMSDiscreteScheduler",
            "pndm" => "PNDMScheduler",
            "dpmpp_2m" => "DPMSolverMultistepScheduler",
            "dpmpp_2s" => "DPMSolverSinglestepScheduler",
            "dpmpp_sde" => "DPMSolverSDEScheduler",
            "unipc" => "UniPCMultistepScheduler",
            "lcm" => "LCMScheduler",
            other => panic!("{other}"),
        };
        let mut eta = 0.0;
        config["_class_name"] = class.into();
        let mut name = None;
        for (key, value) in &self.options {
            match key.as_str() {
                "eta" => eta = value.as_f64().unwrap(),
                // Read by another class than it was written for.
                "written_for" => {
                    config["_class_name"] = value.clone();
                    name = serde_json::from_value(self.solver.clone().into()).unwrap();
                }
                _ => config[key] = value.clone(),
            }
        }
        let config: SchedulerConfig = serde_json::from_value(config).unwrap();
        assert_eq!(config.fault(), None);
        let mut schedule = Schedule::choose(&config, name, None, eta, self.steps).unwrap();
        schedule.first = first;
        Sampler::new(&config, schedule).unwrap()
    }
}

#[test]
fn every_solver_with_every_option_steps_as_diffusers_does() {
    let file = |name: &str| data().join(name);
    let expected =
        candle_core::safetensors::load(file("solvers.safetensors"), &Device::Cpu).unwrap();
    let cases = std::fs::read_to_string(file("solvers.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
    assert_eq!(cases.len(), 338);
    let mut wrong = Vec::new();
    let mut check = |name: &str, actual: &Tensor, due: &Tensor| {
        let off = distance(actual, due);
        println!("{name}: {off:.1e}");
        if off.is_nan() || off > TRAJECTORY {
            wrong.push(format!("{name}: {off:.1e}"));
        }
    };
    for case in &cases {
        let all = sampled(&case.sampler(case.first));
        let last = all.narrow(0, all.dim(0).unwrap() - 1, 1).unwrap();
        check(&case.name, &last, &expected[&case.name]);
        if let Some(due) = expected.get(&format!("{}.all", case.name)) {
            check(&format!("{}.all", case.name), &all, due);
            for first in [2, 4] {
                let name = format!("{}.from_{first}", case.name);
                let all = sampled(&case.sampler(first));
                check(&name, &ends(&all), &expected[&name]);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_noise_of_a_step_is_that_of_the_definition() {
    let expected = expected();
    let noise = starting_noise(7, (1, 4, 16, 16), &Device::Cpu).unwrap();
    assert_eq!(numbers(&noise), numbers(&expected["noise"]));
    let noise = step_noise(7, 3, (1, 4, 16, 16), &Device::Cpu).unwrap();
    assert_eq!(numbers(&noise), numbers(&expected["noise.step_3"]));
}

/// The nodes of a family's workflows, and one sampler `draw` that is told `extra`.
fn workflow(family: &str, model: &str, extra: &str) -> String {
    let data = data();
    let data = data.display();
    let guidance = if family == "tiny-sd1" { 5 } else { 2 };
    let steps = if extra.contains("steps:") {
        ""
    } else {
        ", steps: 8"
    };
    format!(
        "schema: retouch/v1\nname: schedulers\nnodes:\n\
         \x20 model: {{op: load_model, path: '{data}/{family}'{model}}}\n\
         \x20 photo: {{op: load_latent, path: '{data}/{family}.safetensors', tensor: reference_latent}}\n\
         \x20 given: {{op: load_latent, path: '{data}/{family}.safetensors', tensor: given_mask}}\n\
         \x20 draw: {{op: sample, model: $model, prompt: a teddy bear on a beach, negative: a red car, guidance: {guidance}, seed: 7{steps}{extra}}}\n\
         outputs:\n  out: {{value: $draw.trajectory}}\n"
    )
}

fn trajectory(bench: &Bench, yaml: &str) -> Tensor {
    let values = bench.run(yaml);
    let trajectory = values["out"].downcast::<Trajectory>().unwrap();
    Tensor::cat(&trajectory.latents, 0).unwrap()
}

#[test]
fn every_scheduler_draws_what_diffusers_draws() {
    let (bench, expected) = (Bench::new(), expected());
    for family in FAMILIES {
        for (case, extra) in CASES {
            let name = format!("{family}.{case}.plain");
            let drawn = trajectory(&bench, &workflow(family, "", extra));
            close(&name, &drawn, &expected[&name]);
        }
    }
}

#[test]
fn the_schedulers_of_two_calls_and_of_solver_state_draw_what_diffusers_draws() {
    let bench = Bench::new();
    let file = data().join("solvers.safetensors");
    let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    for (name, ..) in MORE {
        let extra = format!(", scheduler: {name}, steps: 5");
        let drawn = trajectory(&bench, &workflow("tiny-sd1", "", &extra));
        close(name, &ends(&drawn), &expected[&format!("tiny-sd1.{name}")]);
    }
}

#[test]
fn a_mask_beyond_0_and_1_is_refused_with_what_to_do_also_in_inpainting() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mask.safetensors");
    let drawn = |numbers: [f32; 4]| {
        let mask = Tensor::new(&numbers, &Device::Cpu).unwrap();
        let mask = mask.reshape((2, 2)).unwrap();
        candle_core::safetensors::save(&HashMap::from([("mask", mask)]), &file).unwrap();
        let given = format!(
            "  ours: {{op: load_latent, path: '{}'}}\n  draw:",
            file.display()
        );
        let extra = ", steps: 2, latent: $photo, strength: 100%, mask: $ours.mask";
        let yaml = workflow("tiny-sd1", "", extra).replace("  draw:", &given);
        let checked = bench.engine.load_str("x.yaml", &yaml, &Settings::default());
        let plan = bench.engine.plan(&checked.unwrap(), &[]).unwrap();
        let options = RunOptions::default();
        let run = bench
            .engine
            .run(&plan, &Recorder::new(), &Cancel::new(), &options);
        run.map(drop).map_err(|error| format!("{error:?}"))
    };
    assert_eq!(drawn([0.0, 1.0, 0.25, 1.00001]), Ok(()));
    for (numbers, hint) in [
        ([0.0, 255.0, 0.0, 128.0], "divide it by 255"),
        ([-1.0, 1.0, 0.5, -0.5], "(x + 1) / 2"),
        ([0.0, 3.5, 0.0, 0.0], "scale it to 0"),
    ] {
        let error = drawn(numbers).unwrap_err();
        assert!(
            error.contains("a mask has them from 0 to 1") && error.contains(hint),
            "{error}"
        );
    }
}

/// What tests/oracle/make_spacing.py made.
fn spacings() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data().join("spacing.safetensors"), &Device::Cpu).unwrap()
}

#[test]
fn few_steps_with_each_spacing_draw_what_diffusers_draws() {
    let (bench, expected) = (Bench::new(), spacings());
    let mut cases = 0;
    for spacing in ["leading", "linspace", "trailing"] {
        for case in ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "unipc"] {
            for steps in [1, 4] {
                let name = format!("{spacing}.{case}.{steps}.last");
                let Some(due) = expected.get(&name) else {
                    continue;
                };
                cases += 1;
                let extra = format!(", scheduler: {case}, steps: {steps}, spacing: {spacing}");
                let all = trajectory(&bench, &workflow("tiny-sd1", "", &extra));
                close(&name, &all.narrow(0, steps, 1).unwrap(), due);
            }
        }
    }
    assert_eq!(cases, 14);
}

#[test]
fn a_schedule_of_zero_terminal_snr_draws_what_diffusers_draws() {
    let (bench, expected) = (Bench::new(), spacings());
    let folder = tempfile::tempdir().unwrap();
    let config = SchedulerConfig {
        rescale_betas_zero_snr: true,
        timestep_spacing: Some(Spacing::Trailing),
        ..config_of("tiny-sd2")
    };
    let alphas = numbers(&expected["zero_snr.alphas"]);
    assert_eq!(alphas.last(), Some(&0.0));
    for (a, b) in config.alphas().iter().zip(&alphas) {
        assert!((a - b).abs() <= 1e-6, "{a} {b}");
    }
    let model = scheduler_folder(folder.path(), &config);
    for case in ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "unipc"] {
        check_tables(&expected, &format!("zero_snr.{case}.4"), &config, case, 4);
        let extra = format!(", scheduler: {case}, steps: 4");
        let all = trajectory(&bench, &workflow("tiny-sd2", &model, &extra));
        let name = format!("zero_snr.{case}.4.last");
        close(&name, &all.narrow(0, 4, 1).unwrap(), &expected[&name]);
    }
    // Nothing of the picture is left at the first step, so that it does not matter which it was.
    let extra = ", steps: 4, latent: $photo, strength: 100%";
    let all = trajectory(&bench, &workflow("tiny-sd2", &model, extra));
    let due = &expected["zero_snr.strength.4.last"];
    close("strength", &all.narrow(0, 4, 1).unwrap(), due);
    // A network that predicts the noise says nothing of the picture there.
    let yaml = workflow("tiny-sd1", &model, ", steps: 4");
    let yaml = yaml.replace(&model, &format!("{model}, prediction: epsilon"));
    let problems = bench.engine.load_str("x.yaml", &yaml, &Settings::default());
    let problems = problems.unwrap_err().to_string();
    assert!(problems.contains("has no signal left"), "{problems}");
}

#[test]
fn a_spacing_is_in_keys_only_where_it_changes_the_timesteps() {
    let disk = tempfile::tempdir().unwrap();
    let from_disk = || {
        let disk = DiskCache::open(disk.path(), 1 << 30, decoders()).unwrap();
        engine().with_cache(Arc::new(TieredCache::new(0, 1 << 30, Some(disk), None)))
    };
    let own = run(&from_disk(), &workflow("tiny-sd1", "", ""));
    assert_eq!(own.calls, 16);
    let leading = run(
        &from_disk(),
        &workflow("tiny-sd1", "", ", spacing: leading"),
    );
    assert_eq!((leading.calls, leading.foretold), (0, 0));
    assert!(leading.bits == own.bits);
    let trailing = run(
        &from_disk(),
        &workflow("tiny-sd1", "", ", spacing: trailing"),
    );
    assert_eq!((trailing.calls, trailing.foretold), (16, 16));
    assert!(trailing.bits != own.bits);
    // Karras' sigmas of the multistep solvers do not go by timesteps.
    let extra = ", scheduler: dpmpp_2m, karras: true, spacing: trailing";
    let yaml = workflow("tiny-sd1", "", extra);
    let refused = engine().load_str("x.yaml", &yaml, &Settings::default());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("`spacing` has no effect"), "{refused}");
    // Stage 2 is at the model's own timesteps.
    let swap = |extra: &str| {
        let swap = "  swap: {op: swap_attention, context: $draw.trajectory, reference: $draw.trajectory, \
                    reference_prompt: a teddy bear, subject: teddy bear}\noutputs:";
        let yaml = workflow("tiny-sd1", "", extra).replace("outputs:", swap);
        engine().load_str("x.yaml", &yaml, &Settings::default())
    };
    assert!(swap(", spacing: leading").is_ok());
    let refused = swap(", spacing: trailing").unwrap_err().to_string();
    assert!(refused.contains("ddim with trailing spacing"), "{refused}");
}

#[test]
fn so_few_steps_that_the_noise_stays_are_warned_of() {
    let bench = Bench::new();
    let warned = |extra: &str| {
        let (_, recorder) = bench.run_with(&workflow("tiny-sd1", "", extra), &[]);
        let warnings = recorder
            .events()
            .into_iter()
            .filter_map(|event| match event {
                Event::NodeWarning { message, .. } => Some(message),
                _ => None,
            });
        warnings.collect::<Vec<_>>()
    };
    for extra in [
        ", steps: 1",
        ", steps: 2",
        ", steps: 1, scheduler: euler, spacing: linspace",
    ] {
        let told = warned(extra);
        assert!(
            told.len() == 1 && told[0].contains("`spacing: trailing`"),
            "{extra}: {told:?}"
        );
    }
    for extra in [
        ", steps: 4",
        ", steps: 1, spacing: trailing",
        // A picture is noised to the level of its first step.
        ", steps: 1, latent: $photo, strength: 100%",
    ] {
        assert_eq!(warned(extra), Vec::<String>::new(), "{extra}");
    }
}

/// The first, the second and the last latent.
fn ends(all: &Tensor) -> Tensor {
    let last = all.dim(0).unwrap() as u32 - 1;
    let picked = Tensor::new(&[0u32, 1, last], &Device::Cpu).unwrap();
    all.to_device(&Device::Cpu)
        .unwrap()
        .index_select(&picked, 0)
        .unwrap()
}

#[test]
fn a_picture_is_drawn_over_and_inpainted_as_diffusers_does() {
    let (bench, expected) = (Bench::new(), expected());
    for family in FAMILIES {
        for (case, extra) in CASES {
            for (what, more) in [
                ("strength", ", latent: $photo, strength: 60%"),
                (
                    "inpaint",
                    ", latent: $photo, strength: 0.8, mask: $given.mask",
                ),
            ] {
                let name = format!("{family}.{case}.{what}");
                let Some(due) = expected.get(&name) else {
                    assert!(case.ends_with("karras"));
                    continue;
                };
                let all = trajectory(&bench, &workflow(family, "", &format!("{extra}{more}")));
                assert_eq!(all.dim(0).unwrap(), if what == "strength" { 5 } else { 7 });
                close(&name, &ends(&all), due);
            }
            if case == "ddim" || case == "euler" {
                let more = format!("{extra}, latent: $photo, strength: 1, mask: $given.mask");
                let name = format!("{family}.{case}.inpaint_all");
                let all = trajectory(&bench, &workflow(family, "", &more));
                close(&name, &all, &expected[&name]);
                let name = format!("{family}.{case}.rescale");
                let more = format!("{extra}, guidance_rescale: 0.7");
                let all = trajectory(&bench, &workflow(family, "", &more));
                close(&name, &all, &expected[&name]);
            }
        }
    }
}

/// A folder with a scheduler_config.json.
fn scheduler_folder(folder: &Path, config: &SchedulerConfig) -> String {
    std::fs::create_dir_all(folder).unwrap();
    let text = serde_json::to_string(config).unwrap();
    std::fs::write(folder.join("scheduler_config.json"), text).unwrap();
    format!(", scheduler: '{}'", folder.display())
}

#[test]
fn the_checkpoints_own_scheduler_is_used_with_its_options() {
    let (bench, expected) = (Bench::new(), expected());
    let folder = tempfile::tempdir().unwrap();
    let mut cases = 0;
    for layout in LAYOUTS {
        for (case, class) in [
            ("ddim", "DDIMScheduler"),
            ("euler", "EulerDiscreteScheduler"),
            ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
            ("dpmpp_2m", "DPMSolverMultistepScheduler"),
            ("unipc", "UniPCMultistepScheduler"),
        ] {
            let name = format!("{layout}.{case}.last");
            // What is linspace already when nothing is said.
            if layout == "linspace" && case != "ddim" {
                continue;
            }
            let Some(due) = expected.get(&name) else {
                continue;
            };
            cases += 1;
            let config = SchedulerConfig {
                class_name: class.into(),
                ..laid_out(layout)
            };
            let model = scheduler_folder(&folder.path().join(format!("{layout}-{case}")), &config);
            let yaml = workflow("tiny-sd1", &model, ", scheduler: checkpoint, steps: 7");
            let all = trajectory(&bench, &yaml);
            close(&name, &all.narrow(0, 7, 1).unwrap(), due);
        }
    }
    assert_eq!(cases, 16);
}

#[test]
fn karras_sigmas_of_the_checkpoint_are_taken_unless_the_workflow_says_otherwise() {
    let (bench, expected) = (Bench::new(), expected());
    let folder = tempfile::tempdir().unwrap();
    let mut config = config_of("tiny-sd1");
    config.class_name = "DPMSolverMultistepScheduler".into();
    config.sigmas.use_karras_sigmas = Some(true);
    let model = scheduler_folder(folder.path(), &config);
    for (extra, name) in [
        (", scheduler: checkpoint", "dpmpp_2m_karras"),
        (", scheduler: dpmpp_2m", "dpmpp_2m_karras"),
        (", scheduler: dpmpp_2m, karras: false", "dpmpp_2m"),
        // It has no such sigmas, whatever the checkpoint says.
        ("", "ddim"),
    ] {
        let drawn = trajectory(&bench, &workflow("tiny-sd1", &model, extra));
        close(extra, &drawn, &expected[&format!("tiny-sd1.{name}.plain")]);
    }
}

fn engine() -> Engine {
    Bench::new().engine
}

struct Run {
    calls: u64,
    foretold: u64,
    bits: Vec<Vec<u32>>,
    resumed: Vec<(String, usize)>,
}

fn run(engine: &Engine, yaml: &str) -> Run {
    let checked = match engine.load_str("test.yaml", yaml, &Settings::default()) {
        Ok(checked) => checked,
        Err(problems) => panic!("{problems}\n{yaml}"),
    };
    let plan = engine.plan(&checked, &[]).unwrap();
    let foretold = engine.forecast(&plan).total_calls();
    let recorder = Recorder::new();
    let report = engine
        .run(&plan, &recorder, &Cancel::new(), &RunOptions::default())
        .unwrap();
    let bits = |t: &Tensor| numbers(t).into_iter().map(f32::to_bits).collect();
    let bits = report.outputs.iter().flat_map(|output| {
        if let Some(latent) = output.value.downcast::<Latent>() {
            return vec![bits(&latent.tensor)];
        }
        let trajectory = output.value.downcast::<Trajectory>().unwrap();
        trajectory.latents.iter().map(bits).collect()
    });
    Run {
        calls: report.counters.get("unet_calls").copied().unwrap_or(0),
        foretold,
        bits: bits.collect(),
        resumed: recorder.resumed(),
    }
}

/// Stage 1 with so many vanilla steps of 8.
fn blended(extra: &str, blend_steps: usize) -> String {
    let data = data();
    let data = data.display();
    format!(
        "schema: retouch/v1\nname: blended\nnodes:\n\
         \x20 base: {{op: load_model, path: '{data}/tiny-sd1'}}\n\
         \x20 personal: {{op: load_model, path: '{data}/tiny-sd1', unet: '{data}/tiny-sd1-personal/unet'}}\n\
         \x20 draw: {{op: step_blend_sample, vanilla: $base, personalized: $personal, vanilla_prompt: a teddy bear, \
         personalized_prompt: a sks teddy bear, blend_steps: {blend_steps}, steps: 8, guidance: 5, seed: 7{extra}}}\n\
         outputs:\n  out: {{value: $draw.trajectory}}\n"
    )
}

#[test]
fn what_is_resumed_from_disk_equals_a_fresh_run_bit_for_bit_with_every_scheduler() {
    let fresh = engine().with_cache(Arc::new(NoCache));
    for (case, extra, all, last) in all_schedulers() {
        let (all, last) = (2 * all, 2 * last);
        let folder = tempfile::tempdir().unwrap();
        // An engine of its own has nothing in memory.
        let from_disk = || {
            let disk = DiskCache::open(folder.path(), 1 << 30, decoders()).unwrap();
            engine().with_cache(Arc::new(TieredCache::new(0, 1 << 30, Some(disk), None)))
        };
        let first = run(&from_disk(), &blended(&extra, 6));
        assert_eq!((first.calls, first.foretold), (all, all), "{case}");
        let resumed = run(&from_disk(), &blended(&extra, 4));
        let expected = run(&fresh, &blended(&extra, 4));
        assert_eq!(resumed.resumed, [("draw".to_owned(), 4)], "{case}");
        assert_eq!((resumed.calls, resumed.foretold), (last, last), "{case}");
        assert_eq!((expected.calls, expected.foretold), (all, all), "{case}");
        assert!(resumed.bits == expected.bits, "{case}");
        let again = run(&from_disk(), &blended(&extra, 4));
        assert_eq!((again.calls, again.foretold), (0, 0), "{case}");
        assert!(again.bits == expected.bits, "{case}");
    }
}

#[test]
fn an_image_of_a_batch_equals_the_single_one_bit_for_bit_with_every_scheduler() {
    let engine = engine().with_cache(Arc::new(NoCache));
    let over = ", latent: $photo, strength: 70%, mask: $given.mask";
    // Karras' sigmas change no formula.
    for (case, extra, ..) in all_schedulers()
        .into_iter()
        .filter(|(case, ..)| !case.ends_with("karras"))
    {
        for more in ["", over] {
            let of = |seed: u64, batch: &str| {
                let extra = format!("{extra}{more}, guidance_rescale: 0.5{batch}, steps: 3");
                let yaml = workflow("tiny-sd2", "", &extra);
                run(&engine, &yaml.replace("seed: 7", &format!("seed: {seed}")))
            };
            let both = of(7, ", batch: 2");
            let (first, second) = (of(7, ""), of(8, ""));
            for (k, pair) in both.bits.iter().enumerate() {
                let (a, b) = pair.split_at(pair.len() / 2);
                assert!(
                    a == first.bits[k] && b == second.bits[k],
                    "{case}{more} {k}"
                );
            }
        }
    }
}

#[test]
fn what_changes_a_result_changes_what_is_kept_and_nothing_else_does() {
    let engine = engine();
    let over = ", latent: $photo, strength: 50%";
    let calls = |extra: &str| {
        let run = run(&engine, &workflow("tiny-sd1", "", extra));
        assert_eq!(run.calls, run.foretold, "{extra}");
        run.calls
    };
    // 8 steps of two halves; 4 of them with a strength of 50%.
    for (extra, due) in [
        ("", 16),
        (", scheduler: ddim", 0),
        (", eta: 0", 0),
        (", guidance_rescale: 0", 0),
        (", scheduler: checkpoint", 0),
        (", eta: 0.5", 16),
        (", eta: 1", 16),
        (", guidance_rescale: 0.5", 16),
        (", scheduler: euler", 16),
        (", scheduler: euler, karras: false", 0),
        (", scheduler: euler, karras: true", 16),
        (", scheduler: euler_ancestral", 16),
        (", scheduler: dpmpp_2m", 16),
        (", scheduler: unipc", 16),
        (", scheduler: euler, sigmas: karras", 0),
        (", scheduler: euler, sigmas: training", 0),
        (", scheduler: euler, sigmas: exponential", 16),
        (", scheduler: euler, sigmas: beta", 16),
        (", scheduler: heun", 30),
        (", scheduler: heun, sigmas: karras", 30),
        (", scheduler: pndm", 18),
        (", scheduler: dpmpp_sde", 30),
        (", scheduler: dpmpp_2m_sde", 16),
        (", scheduler: dpmpp_2s", 16),
        (", scheduler: lcm", 16),
        (over, 8),
        (", latent: $photo, strength: 0.5", 0),
        (", latent: $photo, strength: 0.5, mask: $given.mask", 8),
        (", latent: $photo, strength: 0.75", 12),
    ] {
        assert_eq!(calls(extra), due, "{extra}");
    }
}

#[test]
fn a_part_of_the_picture_that_the_mask_leaves_out_stays_as_it_is() {
    let (bench, expected) = (Bench::new(), expected());
    drop(expected);
    for (case, extra, ..) in all_schedulers() {
        let more = format!("{extra}, latent: $photo, strength: 50%, mask: $given.mask");
        let all = trajectory(&bench, &workflow("tiny-sd1", "", &more));
        let last = numbers(&all.get(all.dim(0).unwrap() - 1).unwrap());
        let file = data().join("tiny-sd1.safetensors");
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let picture = numbers(&tensors["reference_latent"]);
        let mask = numbers(&tensors["given_mask"]);
        let mut kept = 0;
        for (i, (a, b)) in last.iter().zip(&picture).enumerate() {
            if mask[i % mask.len()] == 0.0 {
                kept += 1;
                assert!(a == b, "{case} {i}");
            }
        }
        assert!(kept > 100 && kept < last.len() - 100, "{case} {kept}");
    }
}

/// What is wrong with a sampler that is told `extra`, in words, with its help.
fn faults(yaml: &str) -> Vec<String> {
    let engine = engine();
    match engine.load_str("test.yaml", yaml, &Settings::default()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems
            .iter()
            .map(|problem| format!("{} | {}", problem.message(), problem.hint().unwrap_or("")))
            .collect(),
    }
}

#[test]
fn what_has_no_effect_or_cannot_be_is_refused_before_anything_runs() {
    for (extra, due) in [
        (
            ", scheduler: euler, eta: 0.5",
            "`eta` has no effect with `euler`",
        ),
        (", karras: true", "`karras` has no effect with `ddim`"),
        (
            ", scheduler: euler_ancestral, karras: true",
            "`karras` has no effect",
        ),
        (
            ", scheduler: checkpoint, karras: true",
            "`karras` has no effect with `ddim`",
        ),
        (
            ", scheduler: lcm, sigmas: karras",
            "`sigmas` has no effect with `lcm`",
        ),
        (", scheduler: euler, sigmas: lu", "`euler` has no lu sigmas"),
        (
            ", scheduler: euler, karras: true, sigmas: beta",
            "say the same thing twice",
        ),
        (
            ", scheduler: lcm, spacing: trailing",
            "`spacing` has no effect with lcm",
        ),
        (
            ", scheduler: dpmpp_2s, spacing: trailing",
            "`spacing` has no effect with dpmpp_2s",
        ),
        (
            ", scheduler: dpmpp_2m, sigmas: beta, spacing: trailing",
            "`spacing` has no effect with dpmpp_2m with beta sigmas",
        ),
        (
            ", scheduler: lcm, steps: 51",
            "51 steps of lcm; the model was distilled at 50",
        ),
        (", scheduler: dpmpp_sde, eta: 0.5", "`eta` has no effect"),
        (", eta: 1.5", "eta is 1.5; expected a number from 0 to 1"),
        (", guidance_rescale: 2", "guidance_rescale is 2"),
        (
            ", strength: 0.5",
            "`strength` has no effect without a `latent`",
        ),
        (", mask: $given.mask", "a `latent` is missing"),
        (
            ", latent: $photo, eta: 0.5, mask: $given.mask",
            "`strength` is missing",
        ),
        (", latent: $photo", "`seed` has no effect"),
        (", latent: $photo, strength: 0.01", "leaves none of 8 steps"),
        (
            ", latent: $photo, strength: 0.5, width: 64",
            "`width` has no effect",
        ),
        (
            ", scheduler: dpmpp_2m, steps: 1000",
            "1000 steps of dpmpp_2m on a schedule of 1000 timesteps",
        ),
        (", scheduler: euler, steps: 0", "0 steps of euler"),
    ] {
        let found = faults(&workflow("tiny-sd1", "", extra));
        assert!(
            found.len() == 1 && found[0].contains(due) && !found[0].ends_with("| "),
            "{extra}: {found:?}"
        );
    }
    let unseeded = |extra: &str| workflow("tiny-sd1", "", extra).replace("seed: 7, ", "");
    for (extra, due) in [
        (
            ", latent: $photo, strength: 0.5",
            "the noise that the picture begins with",
        ),
        (
            ", latent: $photo, scheduler: euler_ancestral",
            "the noise that the scheduler adds",
        ),
        (
            ", latent: $photo, scheduler: dpmpp_sde",
            "the noise that the scheduler adds",
        ),
        (
            ", latent: $photo, scheduler: lcm",
            "the noise that the scheduler adds",
        ),
    ] {
        let found = faults(&unseeded(extra));
        assert!(
            found.len() == 1 && found[0].contains(due),
            "{extra}: {found:?}"
        );
    }
    for extra in [
        ", latent: $photo, eta: 0.5",
        ", latent: $photo, strength: 1, batch: 3",
        ", scheduler: unipc, karras: true, steps: 20",
    ] {
        assert_eq!(
            faults(&workflow("tiny-sd1", "", extra)),
            Vec::<String>::new(),
            "{extra}"
        );
    }
}

#[test]
fn a_scheduler_of_the_checkpoint_that_is_not_built_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config_of("tiny-sd1");
    let found = |config: &SchedulerConfig, extra: &str| {
        let model = scheduler_folder(folder.path(), config);
        faults(&workflow("tiny-sd1", &model, extra))
    };
    config.class_name = "DEISMultistepScheduler".into();
    let deis = found(&config, ", scheduler: checkpoint");
    assert!(
        deis.len() == 1
            && deis[0].contains("DEISMultistepScheduler, which is not supported")
            && deis[0].contains("`dpmpp_2m`")
            && deis[0].contains("`heun`"),
        "{deis:?}"
    );
    assert!(found(&config, ", scheduler: unipc").is_empty());
    // Runge-Kutta steps are not built; the name says that there are none.
    config.class_name = "PNDMScheduler".into();
    let pndm = found(&config, ", scheduler: checkpoint");
    assert!(
        pndm.len() == 1 && pndm[0].contains("skip_prk_steps"),
        "{pndm:?}"
    );
    assert!(found(&config, ", scheduler: pndm").is_empty());
    config.skip_prk_steps = Some(true);
    assert!(found(&config, ", scheduler: checkpoint").is_empty());
    config.class_name = "DPMSolverMultistepScheduler".into();
    for (algorithm, built) in [
        ("dpmsolver++", true),
        ("sde-dpmsolver++", true),
        ("dpmsolver", false),
    ] {
        config.sigmas.algorithm_type = Some(algorithm.into());
        let faults = found(&config, ", scheduler: checkpoint");
        let refused = faults.len() == 1 && faults[0].contains("algorithm_type");
        assert!(built == faults.is_empty() && built != refused, "{faults:?}");
        // The name says the algorithm.
        assert!(found(&config, ", scheduler: dpmpp_2m").is_empty());
    }
    config.sigmas.algorithm_type = None;
    config.sigmas.solver_order = Some(4);
    let fourth = found(&config, ", scheduler: checkpoint");
    assert!(
        fourth.len() == 1 && fourth[0].contains("solver_order"),
        "{fourth:?}"
    );
    config.sigmas.solver_order = None;
    config.sigmas.use_flow_sigmas = Some(true);
    let flow = found(&config, ", scheduler: dpmpp_2m");
    assert!(
        flow.len() == 1 && flow[0].contains("use_flow_sigmas"),
        "{flow:?}"
    );
    assert!(found(&config, "").is_empty());
    config.sigmas.use_flow_sigmas = None;
    config.sigmas.use_karras_sigmas = Some(true);
    config.sigmas.use_beta_sigmas = Some(true);
    let both = found(&config, ", scheduler: dpmpp_2m");
    assert!(
        both.len() == 1 && both[0].contains("karras and beta sigmas at once"),
        "{both:?}"
    );
    assert!(found(&config, ", scheduler: dpmpp_2m, sigmas: beta").is_empty());
    config.sigmas.use_karras_sigmas = None;
    config.sigmas.use_beta_sigmas = None;
    config.sigmas.lower_order_final = Some(false);
    let unipc = found(&config, ", scheduler: unipc");
    assert!(
        unipc.len() == 1 && unipc[0].contains("lower_order_final"),
        "{unipc:?}"
    );
}

#[test]
fn clipped_latents_are_drawn_otherwise_and_are_the_default_of_ddims_class() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine();
    let drawn = |name: &str, clip: Option<bool>, range: Option<f64>| {
        let config = SchedulerConfig {
            clip_sample: clip,
            clip_sample_range: range,
            ..config_of("tiny-sd1")
        };
        let model = scheduler_folder(&folder.path().join(name), &config);
        let run = run(&engine, &workflow("tiny-sd1", &model, ", steps: 4"));
        assert_eq!(run.calls, run.foretold);
        run
    };
    let plain = drawn("plain", Some(false), None);
    let clipped = drawn("clipped", None, None);
    assert_eq!((plain.calls, clipped.calls), (8, 8));
    assert!(plain.bits != clipped.bits);
    assert!(drawn("said", Some(true), Some(1.0)).bits == clipped.bits);
    let wider = drawn("wider", Some(true), Some(2.0));
    assert!(wider.bits != clipped.bits && wider.bits != plain.bits);
}

/// A swap whose context is drawn with `context`, and whose target is told `target`.
fn swap(context: &str, target: &str) -> String {
    let data = data();
    let data = data.display();
    format!(
        "schema: retouch/v1\nname: swap\nnodes:\n\
         \x20 model: {{op: load_model, path: '{data}/tiny-sd1'}}\n\
         \x20 photo: {{op: load_latent, path: '{data}/tiny-sd1.safetensors', tensor: reference_latent}}\n\
         \x20 inverted: {{op: invert, model: $model, latent: $photo, steps: 4}}\n\
         \x20 layout: {{op: sample, model: $model, prompt: a teddy bear on a beach, steps: 4, seed: 3{context}}}\n\
         \x20 swap: {{op: swap_attention, context: $layout.trajectory, reference: $inverted.trajectory, \
         reference_prompt: a photo of a teddy bear, subject: teddy bear}}\n\
         \x20 draw: {{op: sample, model: $model, prompt: a teddy bear on a beach, control: $swap{target}}}\n\
         outputs:\n  out: {{value: $draw.trajectory}}\n"
    )
}

#[test]
fn the_swap_takes_ddim_with_any_eta_for_its_context_and_refuses_the_rest_at_its_place() {
    for (context, target, due) in [
        (", scheduler: euler", "", "the context was drawn with euler"),
        (
            ", scheduler: unipc, karras: true",
            "",
            "unipc with Karras' sigmas",
        ),
        (", latent: $photo, strength: 0.5", "", "`strength`"),
        ("", ", scheduler: euler", "the swap works only with `ddim`"),
        ("", ", eta: 0.5", "the swap is drawn with eta 0"),
        ("", ", strength: 0.5", "`strength` has no effect"),
        ("", ", karras: true", "`karras` has no effect with `ddim`"),
    ] {
        let found = faults(&swap(context, target));
        assert!(
            found.len() == 1 && found[0].contains(due) && !found[0].ends_with("| "),
            "{context}{target}: {found:?}"
        );
    }
    let engine = engine();
    let plain = run(&engine, &swap("", ", scheduler: ddim"));
    let noisy = run(&engine, &swap(", eta: 0.8", ""));
    for run in [&plain, &noisy] {
        assert_eq!(run.calls, run.foretold);
    }
    assert!(plain.bits != noisy.bits);
    let rescaled = run(&engine, &swap("", ", guidance_rescale: 0.7"));
    assert_eq!(rescaled.calls, rescaled.foretold);
    assert!(rescaled.bits != plain.bits);
}

#[test]
fn a_saved_trajectory_of_another_scheduler_says_so_and_is_refused_by_the_swap() {
    let folder = tempfile::tempdir().unwrap();
    let values = Bench::new().run(&workflow("tiny-sd1", "", ", scheduler: euler, steps: 4"));
    let trajectory = values["out"].downcast::<Trajectory>().unwrap();
    let file = folder.path().join("euler.safetensors");
    let bytes = retouch_graph::Payload::encode(&*trajectory, "safetensors").unwrap();
    std::fs::write(&file, &bytes[0]).unwrap();
    let loaded = format!(
        "  layout: {{op: load_latent, path: '{}'}}\n",
        file.display()
    );
    let yaml: String = swap("", "")
        .lines()
        .map(|line| match line.starts_with("  layout:") {
            true => loaded.clone(),
            false => format!("{line}\n"),
        })
        .collect();
    let found = faults(&yaml);
    assert!(
        found.len() == 1 && found[0].contains("drawn with euler"),
        "{found:?}"
    );
    // A map of it is asked for at its own timesteps.
    let data = data();
    let map = |layout: &str| {
        format!(
            "schema: retouch/v1\nname: map\nnodes:\n\
             \x20 model: {{op: load_model, path: '{}/tiny-sd1'}}\n{layout}\
             \x20 map: {{op: attention_map, model: $model, trajectory: $layout.trajectory, subject: teddy bear, step: 1}}\n\
             outputs:\n  map: {{value: $map.map}}\n",
            data.display()
        )
    };
    let drawn = "  layout: {op: sample, model: $model, prompt: a teddy bear on a beach, negative: a red car, guidance: 5, seed: 7, \
                 steps: 4, scheduler: euler}\n";
    let cells = |yaml: &str| {
        let values = Bench::new().run(yaml);
        let mask = values["map"]
            .downcast::<retouch_nodes::payload::Mask>()
            .unwrap();
        numbers(&mask.plane)
    };
    assert_eq!(cells(&map(&loaded)), cells(&map(drawn)));
}
