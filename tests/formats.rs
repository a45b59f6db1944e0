//! Checkpoints in every file format, and adapters in every dialect, through the public ops: a short run of both stages
//! against what diffusers gave (tests/oracle, the micro models).

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

#[path = "support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use retouch_graph::Settings;
use retouch_nodes::payload::{Masks, Trajectory};
use support::Bench;

/// max |difference| / std of the expected tensor.
const TRAJECTORY: f32 = 5e-4;

fn micro(name: &str) -> PathBuf {
    support::root().join("tests/oracle/data/micro").join(name)
}

fn numbers(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(micro(&format!("{name}.safetensors")), &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    let t = t.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
    t.to_vec1::<f32>().unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len(), "sizes differ");
    let n = b.len() as f32;
    let mean = b.iter().sum::<f32>() / n;
    let std = (b.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / (n - 1.0)).sqrt();
    let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
    assert!(a.iter().all(|a| a.is_finite()));
    off.fold(0.0, f32::max) / std
}

/// What differs between the runs of the oracle.
struct Case<'a> {
    /// The nodes that make `$base` and `$personal`.
    models: String,
    /// The base's numbers: noise and reference latent.
    base: &'a str,
    /// The numbers to meet, and the prefix of their names.
    expected: (&'a str, &'a str),
    /// The subject's words in the personalised prompts.
    subject: &'a str,
    sites: &'a str,
    mask_grid: &'a str,
    steps: usize,
    blend_steps: usize,
}

impl<'a> Case<'a> {
    fn new(models: String, base: &'a str, expected: (&'a str, &'a str)) -> Self {
        Self {
            models,
            base,
            expected,
            subject: "sks teddy bear",
            sites: "3..7",
            mask_grid: "[16, 16]",
            steps: 6,
            blend_steps: 2,
        }
    }

    fn yaml(&self) -> String {
        let base = micro(&format!("{}.safetensors", self.base));
        // SDXL's micro model takes the noise of Stable Diffusion 1's.
        let noise = match self.base {
            "sdxl" => micro("sd1.safetensors"),
            _ => base.clone(),
        };
        let (base, noise) = (base.display(), noise.display());
        let Self {
            models,
            subject,
            sites,
            mask_grid,
            steps,
            blend_steps,
            ..
        } = self;
        let words = if subject.starts_with("sks") {
            "teddy bear"
        } else {
            subject
        };
        let mut yaml = format!("schema: retouch/v1\nnodes:\n{models}");
        let _ = write!(
            yaml,
            "\x20 noise: {{op: load_latent, path: '{noise}', tensor: noise}}\n\
             \x20 reference: {{op: load_latent, path: '{base}', tensor: reference_latent}}\n\
             \x20 layout: {{op: step_blend_sample, vanilla: $base, personalized: $personal, latent: $noise,\n\
             \x20   vanilla_prompt: a teddy bear on a beach, personalized_prompt: a {subject} on a beach,\n\
             \x20   blend_steps: {blend_steps}, steps: {steps}, guidance: 5}}\n\
             \x20 inverted: {{op: invert, model: $personal, latent: $reference, steps: {steps}}}\n\
             \x20 swap: {{op: swap_attention, vanilla: $base, context: $layout.trajectory, reference: $inverted.trajectory,\n\
             \x20   reference_prompt: a photo of a {subject}, subject: {words}, context_subject: teddy bear,\n\
             \x20   sites: {sites}, mask_grid: {mask_grid}, start_step: 1, from_step: 2, structure_until: 4}}\n\
             \x20 draw: {{op: sample, model: $personal, prompt: a {subject} on a beach, control: $swap, guidance: 5}}\n\
             outputs:\n  out: {{value: $draw.trajectory}}\n  masks: {{value: $draw.masks}}\n"
        );
        yaml
    }

    /// Runs both stages and meets the numbers.
    #[track_caller]
    fn meet(&self, bench: &Bench, what: &str) {
        let (file, prefix) = self.expected;
        let expected = numbers(file);
        let values = bench.run(&self.yaml());
        let out = values["out"].downcast::<Trajectory>().unwrap();
        let masks = values["masks"].downcast::<Masks>().unwrap();
        let off = distance(
            &Tensor::cat(&out.latents, 0).unwrap(),
            &expected[&format!("{prefix}retouch")],
        );
        println!("{what}: {off:.1e} of {TRAJECTORY:.0e}");
        assert!(
            off <= TRAJECTORY,
            "{what}: {off:.2e} is over {TRAJECTORY:.0e}"
        );
        // No pixel of the oracle's is nearer than 2e-5 to its threshold.
        let masks = masks.tensor.squeeze(2).unwrap();
        assert!(
            flat(&masks) == flat(&expected[&format!("{prefix}masks")]),
            "{what}: masks differ"
        );
    }
}

/// A base and a U-Net in its place.
fn two(load: &str, personal: &str) -> String {
    format!(
        "\x20 base: {{op: load_model, {load}}}\n\
         \x20 personal: {{op: load_model, {load}, unet: '{}'}}\n",
        micro(personal).display()
    )
}

fn path(name: &str) -> String {
    format!("path: '{}'", micro(name).display())
}

fn single(file: &str, config: &str) -> String {
    format!("{}, config: '{}'", path(file), micro(config).display())
}

#[test]
fn both_stages_run_from_every_format_as_in_diffusers() {
    let bench = Bench::new();
    for (load, base, expected) in [
        (path("sd1"), "sd1", "sd1"),
        (path("sd2"), "sd2", "sd2"),
        (single("sd1-single.safetensors", "sd1"), "sd1", "sd1"),
        (single("sd2-single.safetensors", "sd2"), "sd2", "sd2"),
        (single("sd1-zip.ckpt", "sd1"), "sd1", "sd1"),
        (single("sd1-legacy.ckpt", "sd1"), "sd1", "sd1"),
        (path("sd1-bin"), "sd1", "sd1"),
        (path("sd1-sharded-f32"), "sd1", "sd1"),
        (path("sd1-bf16"), "sd1-bf16", "sd1-bf16"),
        (path("sd1-bf16") + ", variant: fp16", "sd1", "sd1"),
    ] {
        let models = two(&load, &format!("{}-personal/unet", &base[..3]));
        Case::new(models, base, (expected, "")).meet(&bench, &load);
    }
}

/// A base and what adapters make of it: each an op with its params.
fn adapted(base: &str, adapters: &[(&str, String)]) -> String {
    let mut yaml = format!("  base: {{op: load_model, {}}}\n", path(base));
    for (i, (op, params)) in adapters.iter().enumerate() {
        let from = if i == 0 {
            "base".to_owned()
        } else {
            format!("step{i}")
        };
        let name = if i + 1 == adapters.len() {
            "personal".to_owned()
        } else {
            format!("step{}", i + 1)
        };
        let _ = writeln!(yaml, "  {name}: {{op: {op}, model: ${from}, {params}}}");
    }
    yaml
}

fn adapter(name: &str) -> String {
    path(&format!("adapters/{name}"))
}

/// SDXL's runs: other sites and another mask grid.
fn sdxl<'a>(
    models: String,
    expected: (&'a str, &'a str),
    steps: usize,
    blend_steps: usize,
) -> Case<'a> {
    Case {
        sites: "8..17",
        mask_grid: "[8, 8]",
        steps,
        blend_steps,
        ..Case::new(models, "sdxl", expected)
    }
}

#[test]
fn both_stages_run_on_sdxl_from_a_folder_and_from_a_single_file_as_in_diffusers() {
    let bench = Bench::new();
    for load in [path("sdxl"), single("sdxl-single.safetensors", "sdxl")] {
        let models = two(&load, "sdxl-personal/unet");
        sdxl(models, ("sdxl", ""), 8, 3).meet(&bench, &load);
    }
    for name in [
        "sdxl-lora-diffusers.safetensors",
        "sdxl-lora-kohya.safetensors",
    ] {
        let models = adapted("sdxl", &[("apply_lora", adapter(name))]);
        sdxl(models, ("adapters/sdxl", "lora.full."), 6, 2).meet(&bench, name);
    }
}

#[test]
fn loras_of_every_dialect_and_two_at_once_draw_as_in_diffusers() {
    let bench = Bench::new();
    let lora = |name: &str| vec![("apply_lora", adapter(name))];
    let cases = [
        ("lora.full.", lora("sd1-lora-diffusers.safetensors")),
        ("lora.full.", lora("sd1-lora-kohya.safetensors")),
        ("lora.old.", lora("sd1-lora-old.safetensors")),
        ("lora.old.", lora("sd1-lora-middle.safetensors")),
        ("lora.locon.", lora("sd1-locon-kohya.safetensors")),
        (
            "lora.two.",
            vec![
                (
                    "apply_lora",
                    adapter("sd1-lora-diffusers.safetensors") + ", weight: 0.7",
                ),
                (
                    "apply_lora",
                    adapter("sd1-locon-kohya.safetensors") + ", weight: -0.3",
                ),
            ],
        ),
    ];
    for (prefix, adapters) in cases {
        let case = Case::new(adapted("sd1", &adapters), "sd1", ("adapters/sd1", prefix));
        case.meet(&bench, &adapters[0].1);
    }
}

#[test]
fn learned_tokens_and_custom_diffusion_draw_as_in_diffusers() {
    let bench = Bench::new();
    let token = |name: &str, more: &str| vec![("apply_textual_inversion", adapter(name) + more)];
    let custom = |folder: &str| {
        vec![
            ("apply_custom_diffusion", adapter(folder)),
            (
                "apply_textual_inversion",
                adapter(&format!("{folder}/new1.bin")),
            ),
        ]
    };
    for (prefix, subject, adapters) in [
        (
            "ti.one.",
            "<toy> teddy bear",
            token("sd1-ti-one.safetensors", ""),
        ),
        ("ti.one.", "<toy> teddy bear", token("sd1-ti-one.bin", "")),
        (
            "ti.three.",
            "<toy> teddy bear",
            token("sd1-ti-three.safetensors", ""),
        ),
        (
            "ti.three.",
            "<toy> teddy bear",
            token("sd1-ti-three.bin", ""),
        ),
        ("ti.a1111.", "old-toy teddy bear", token("old-toy.pt", "")),
        // Its name is whatever one likes.
        (
            "ti.a1111.",
            "<mine> teddy bear",
            token("old-toy.pt", ", token: <mine>"),
        ),
        ("custom.kv.", "<new1> teddy bear", custom("sd1-custom-kv")),
        (
            "custom.q_out.",
            "<new1> teddy bear",
            custom("sd1-custom-q_out"),
        ),
    ] {
        let case = Case {
            subject,
            ..Case::new(adapted("sd1", &adapters), "sd1", ("adapters/sd1", prefix))
        };
        case.meet(&bench, &adapters[0].1);
    }
    let adapters = token("sdxl-ti.safetensors", ", token: <toy>");
    let case = Case {
        subject: "<toy> teddy bear",
        ..sdxl(adapted("sdxl", &adapters), ("adapters/sdxl", "ti."), 6, 2)
    };
    case.meet(&bench, "sdxl-ti");
}

/// The faults of a workflow, as text.
fn faults(models: &str) -> Vec<String> {
    let yaml = format!(
        "schema: retouch/v1\nnodes:\n{models}  draw: {{op: sample, model: $personal, prompt: a cat, steps: 1, seed: 1}}\n\
         outputs:\n  z: {{value: $draw}}\n"
    );
    match Bench::new()
        .engine
        .load_str("test.yaml", &yaml, &Settings::default())
    {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(|p| p.message().to_owned()).collect(),
    }
}

#[track_caller]
fn refused(models: &str, words: &[&str]) {
    let faults = faults(models);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    for word in words {
        assert!(faults[0].contains(word), "{word:?} in {:?}", faults[0]);
    }
}

#[test]
fn a_single_file_of_no_known_family_is_refused_with_the_way_out() {
    let load = path("sd1-single.safetensors");
    let yaml = format!(
        "schema: retouch/v1\nnodes:\n  base: {{op: load_model, {load}}}\n  \
         draw: {{op: sample, model: $base, prompt: a cat, steps: 1, seed: 1}}\noutputs:\n  z: {{value: $draw}}\n"
    );
    let problems = Bench::new()
        .engine
        .load_str("test.yaml", &yaml, &Settings::default())
        .unwrap_err();
    let problem = problems.iter().next().unwrap();
    assert!(problem.message().contains("no known family"), "{problem:?}");
    assert!(problem.hint().unwrap().contains("config: DIR"));
}

#[test]
fn an_adapter_of_another_family_or_kind_is_refused_before_anything_runs() {
    let lora = |base: &str, name: &str| adapted(base, &[("apply_lora", adapter(name))]);
    refused(
        &lora("sd2", "sdxl-lora-kohya.safetensors"),
        &["sdxl-lora-kohya", "does not fit the model", "features"],
    );
    refused(
        &lora("sd1", "sd1-ti-one.safetensors"),
        &["is not a LoRA", "<toy>"],
    );
    refused(
        &lora("sd1", "nothing.safetensors"),
        &["there is nothing at", "expected a LoRA"],
    );
    let token = |base: &str, name: &str, more: &str| {
        adapted(base, &[("apply_textual_inversion", adapter(name) + more)])
    };
    refused(
        &token("sd1", "sdxl-ti.safetensors", ", token: <toy>"),
        &["two text encoders"],
    );
    refused(&token("sdxl", "sdxl-ti.safetensors", ""), &["give `token:"]);
    refused(
        &token("sd2", "sd1-lora-kohya.safetensors", ""),
        &["is not of textual inversion"],
    );
    let twice = [
        ("apply_textual_inversion", adapter("sd1-ti-one.safetensors")),
        (
            "apply_textual_inversion",
            adapter("sd1-ti-three.safetensors"),
        ),
    ];
    refused(&adapted("sd1", &twice), &["has a token \"<toy>\" already"]);
    let custom =
        |base: &str, name: &str| adapted(base, &[("apply_custom_diffusion", adapter(name))]);
    refused(
        &custom("sd1", "sd1-lora-kohya.safetensors"),
        &["is not of Custom Diffusion"],
    );
    refused(
        &custom("sdxl", "sd1-custom-kv"),
        &["does not fit the model"],
    );
    refused(
        &adapted(
            "sd1",
            &[(
                "apply_lora",
                adapter("sd1-lora-kohya.safetensors") + ", weight: 1000",
            )],
        ),
        &["weight is 1000"],
    );
    refused(
        &adapted(
            "sd1",
            &[(
                "apply_lora",
                adapter("sd1-lora-peft") + ", text_encoder_weight: 0.5",
            )],
        ),
        &["has no effect"],
    );
}
