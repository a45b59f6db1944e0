//! Checkpoints in every file format, and adapters in every dialect, through the public ops: a short run of both stages
//! against what diffusers gave (tests/oracle, the micro models).

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use retouch_graph::{Cancel, Engine, Recorder, RunOptions, Settings};
use retouch_nodes::payload::{Latent, Masks, Trajectory};

use crate::support::{self, Bench};

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

/// The tensors of a file of adapters.
fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(micro(&format!("adapters/{name}")), &Device::Cpu).unwrap()
}

#[test]
fn all_kinds_of_change_in_one_file_draw_as_in_lycoris() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mix.safetensors");
    let own: HashMap<String, Tensor> = tensors("changes.safetensors")
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("mix/")?.to_owned(), tensor)))
        .filter(|(name, _)| !name.starts_with('='))
        .collect();
    candle_core::safetensors::save(&own, &file).unwrap();
    let models = adapted(
        "sd1",
        &[("apply_lora", format!("path: '{}'", file.display()))],
    );
    Case::new(models, "sd1", ("adapters/changes", "mix/=")).meet(&bench, "mix");
}

#[test]
fn embeddings_inside_a_lora_and_the_delta_of_custom_diffusion_are_read_by_both_ops() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bundle.safetensors");
    let token = tensors("sd1-ti-three.safetensors")["<toy>"].clone();
    let at = format!("path: '{}'", file.display());
    // The name may have dots and spaces; a token has none of the latter.
    for (key, more) in [
        ("bundle_emb.<toy>.string_to_param.*", ""),
        ("bundle_emb.v1.5 toy.string_to_param.*", ", token: <toy>"),
        ("bundle_emb.<toy>.emb_params", ""),
        ("bundle_emb.<toy>.clip_l", ""),
    ] {
        let mut own = tensors("sd1-lora-kohya.safetensors");
        own.insert(key.to_owned(), token.clone());
        candle_core::safetensors::save(&own, &file).unwrap();
        let lora = adapted("sd1", &[("apply_lora", at.clone())]);
        Case::new(lora, "sd1", ("adapters/sd1", "lora.full.")).meet(&bench, key);
        let embedding = [("apply_textual_inversion", at.clone() + more)];
        let case = Case {
            subject: "<toy> teddy bear",
            ..Case::new(
                adapted("sd1", &embedding),
                "sd1",
                ("adapters/sd1", "ti.three."),
            )
        };
        case.meet(&bench, key);
    }
    let models = [
        ("apply_custom_diffusion", adapter("delta.bin")),
        ("apply_textual_inversion", adapter("delta.bin")),
    ];
    let case = Case {
        subject: "<new1> teddy bear",
        ..Case::new(
            adapted("sd1", &models),
            "sd1",
            ("adapters/sd1", "custom.kv."),
        )
    };
    case.meet(&bench, "delta.bin");
}

/// Writes vectors of the tiny SD 1's width under these names.
fn write_tokens(file: &Path, tokens: &[(&str, usize)]) {
    let own = micro("adapters/sd1-ti-three.safetensors");
    let rows = &candle_core::safetensors::load(own, &Device::Cpu).unwrap()["<toy>"];
    let tensors: HashMap<String, Tensor> = tokens
        .iter()
        .map(|(name, count)| {
            let rows = rows.repeat((count.div_ceil(3), 1)).unwrap();
            let rows = rows.narrow(0, 0, *count).unwrap().contiguous().unwrap();
            ((*name).to_owned(), rows)
        })
        .collect();
    candle_core::safetensors::save(&tensors, file).unwrap();
}

/// A sampler with a learned token: the bits of what it draws, by a cache if there is one.
fn drawn_with_token(engine: &Engine, file: &Path, more: &str, prompt: &str) -> Vec<f32> {
    let yaml = format!(
        "schema: retouch/v1\nnodes:\n  base: {{op: load_model, {}}}\n  \
         ti: {{op: apply_textual_inversion, model: $base, path: '{}'{more}}}\n  \
         draw: {{op: sample, model: $ti, prompt: '{prompt}', steps: 2, guidance: 1, seed: 1, width: 32, height: 32}}\n\
         outputs:\n  z: {{value: $draw}}\n",
        path("sd1"),
        file.display()
    );
    let checked = engine.load_str("test.yaml", &yaml, &Settings::default());
    let checked = checked.unwrap_or_else(|problems| panic!("{problems}"));
    let plan = engine.plan(&checked, &[]).unwrap();
    let options = RunOptions::default();
    let report = engine.run(&plan, &Recorder::new(), &Cancel::new(), &options);
    let latent = report.unwrap().outputs[0].value.clone();
    flat(&latent.downcast::<Latent>().unwrap().tensor)
}

#[test]
fn a_token_without_a_name_is_called_as_its_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bench = Bench::new();
    let engine = &bench.engine;
    let (alone, other) = (at("my-cat.safetensors"), at("other.safetensors"));
    write_tokens(&alone, &[("clip_l", 3)]);
    std::fs::copy(&alone, &other).unwrap();
    let named = at("named.safetensors");
    write_tokens(&named, &[("<mine>", 3)]);
    let due = drawn_with_token(engine, &named, "", "a photo of <mine> here");
    let given = drawn_with_token(engine, &alone, "", "a photo of my-cat here");
    assert_eq!(given, due);
    // The name is in the key: the same bytes under another name are another model, also by the cache.
    let plain = drawn_with_token(engine, &other, "", "a photo of my-cat here");
    assert_ne!(plain, due);
    assert_eq!(
        drawn_with_token(engine, &alone, "", "a photo of my-cat here"),
        due
    );
    let given = drawn_with_token(engine, &alone, ", token: <toy>", "a photo of <toy> here");
    assert_eq!(given, due);
    // The web UI's files: a name of their own, none, or several.
    let params = at("params.safetensors");
    write_tokens(&params, &[("string_to_param.<cat>", 3)]);
    assert_eq!(
        drawn_with_token(engine, &params, "", "a photo of <cat> here"),
        due
    );
    write_tokens(&params, &[("string_to_param.*", 3)]);
    assert_eq!(
        drawn_with_token(engine, &params, "", "a photo of params here"),
        due
    );
    write_tokens(
        &params,
        &[("string_to_param.<cat>", 3), ("string_to_param.<dog>", 3)],
    );
    for token in ["<cat>", "<dog>"] {
        let prompt = format!("a photo of {token} here");
        assert_eq!(drawn_with_token(engine, &params, "", &prompt), due);
    }
    write_tokens(&at("star.safetensors"), &[("*", 3)]);
    let star = drawn_with_token(engine, &at("star.safetensors"), "", "a photo of star here");
    assert_eq!(star, due);
    // `inspect` calls them what they are called in prompts.
    for (file, token) in [
        ("my-cat.safetensors", "my-cat"),
        ("params.safetensors", "<cat>"),
    ] {
        let output = support::retouch(folder.path(), &["inspect", file]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(out.contains(&format!("{token} (3 vectors)")), "{out}");
    }
}

#[test]
fn what_is_wrong_with_a_token_is_known_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let token = |name: &str, tokens: &[(&str, usize)], more: &str| {
        let file = folder.path().join(name);
        write_tokens(&file, tokens);
        let path = format!("path: '{}'{more}", file.display());
        adapted("sd1", &[("apply_textual_inversion", path)])
    };
    let long = token("long.safetensors", &[("<cat>", 90)], "");
    refused(&long, &["90 vectors", "room for 75"]);
    let spaced = token("my cat.safetensors", &[("clip_l", 1)], "");
    refused(&spaced, &["my cat", "file's own name", "give `token:"]);
    let star = token("a.safetensors", &[("clip_l", 1)], ", token: '*'");
    refused(&star, &["called \"*\"", "give `token:"]);
    let two = [("<cat>", 1), ("<dog>", 1)];
    let two = token("b.safetensors", &two, ", token: <x>");
    refused(&two, &["2 tokens (<cat>, <dog>)", "without `token`"]);
}

/// Writes small tensors of zeros (or of one number) under these names.
fn write_zeros(file: &Path, tensors: &[(&str, &[usize])], number: f32) {
    let tensors: HashMap<String, Tensor> = tensors
        .iter()
        .map(|(name, shape)| {
            let tensor = Tensor::full(number, *shape, &Device::Cpu).unwrap();
            ((*name).to_owned(), tensor)
        })
        .collect();
    candle_core::safetensors::save(&tensors, file).unwrap();
}

#[test]
fn an_adapter_that_cannot_be_applied_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let applied = |op: &'static str, file: &Path| {
        adapted("sd1", &[(op, format!("path: '{}'", file.display()))])
    };
    let pair = |module: &str| {
        let file = file("a.safetensors");
        let (down, up) = (
            format!("{module}.lora_A.weight"),
            format!("{module}.lora_B.weight"),
        );
        write_zeros(&file, &[(&down, &[4, 8]), (&up, &[8, 4])], 0.0);
        applied("apply_lora", &file)
    };
    for (module, family) in [
        ("transformer.single_transformer_blocks.1.proj_out", "Flux"),
        ("lora_unet_double_blocks_0_img_attn_proj", "Flux"),
        (
            "diffusion_model.joint_blocks.0.x_block.attn.proj",
            "Stable Diffusion 3",
        ),
    ] {
        refused(&pair(module), &["is an adapter for", family]);
    }
    let ia3 = file("ia3.safetensors");
    let layer = "lora_unet_mid_block_attentions_0_proj_in";
    let (weight, flag) = (format!("{layer}.weight"), format!("{layer}.on_input"));
    write_zeros(&ia3, &[(&weight, &[8]), (&flag, &[1])], 0.0);
    refused(&applied("apply_lora", &ia3), &["is IA3"]);
    let embedding = micro("adapters/sd1-ti-one.safetensors");
    refused(
        &applied("apply_lora", &embedding),
        &["textual inversion (<toy>)", "`apply_textual_inversion`"],
    );
    for (content, what) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\nsize 12\n"[..],
            "Git LFS pointer",
        ),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b"{\"error\": \"no\"}", "is JSON"),
        (b"", "is empty"),
    ] {
        let other = file("other.safetensors");
        std::fs::write(&other, content).unwrap();
        for op in ["apply_lora", "apply_textual_inversion"] {
            refused(&applied(op, &other), &[what]);
        }
    }
}

#[test]
fn numbers_that_are_none_are_blamed_on_the_adapter_that_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("diverged.safetensors");
    let layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k";
    let (down, up) = (
        format!("{layer}.lora_down.weight"),
        format!("{layer}.lora_up.weight"),
    );
    for number in [f32::NAN, f32::INFINITY] {
        write_zeros(&file, &[(&down, &[4, 8]), (&up, &[8, 4])], number);
        std::fs::write(
            folder.path().join("x.yaml"),
            format!(
                "schema: retouch/v1\nname: x\nnodes:\n  base: {{op: load_model, {}}}\n  \
                 lora: {{op: apply_lora, model: $base, path: diverged.safetensors}}\n  \
                 draw: {{op: sample, model: $lora, prompt: a cat, steps: 1, seed: 1, spacing: trailing}}\n\
                 outputs:\n  z: {{value: $draw}}\n",
                path("sd1")
            ),
        )
        .unwrap();
        let output = support::retouch(folder.path(), &["run", "x.yaml"]);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(
            err.contains("diverged.safetensors") && err.contains("its training diverged"),
            "{err}"
        );
    }
}

#[test]
fn a_single_file_without_a_vae_says_how_to_give_one() {
    let folder = tempfile::tempdir().unwrap();
    let whole =
        candle_core::safetensors::load(micro("sd1-single.safetensors"), &Device::Cpu).unwrap();
    for (prefix, param) in [
        ("first_stage_model.", "vae"),
        ("cond_stage_model.", "text_encoder"),
    ] {
        let file = folder.path().join(format!("no-{param}.safetensors"));
        let rest: HashMap<String, Tensor> = whole
            .iter()
            .filter(|(name, _)| !name.starts_with(prefix))
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        candle_core::safetensors::save(&rest, &file).unwrap();
        let load = |more: &str| {
            format!(
                "  personal: {{op: load_model, path: '{}', config: '{}'{more}}}\n",
                file.display(),
                micro("sd1").display()
            )
        };
        refused(&load(""), &["holds no", &format!("`{param}: FOLDER`")]);
        let given = format!(", {param}: '{}'", micro("sd1").join(param).display());
        assert_eq!(faults(&load(&given)), Vec::<String>::new());
    }
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
    assert!(
        problem.message().contains("an unknown family"),
        "{problem:?}"
    );
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
    refused(
        &token("sd2", "sd1-lora-kohya.safetensors", ""),
        &["is not a textual inversion", "apply_lora"],
    );
    refused(
        &lora("sd1", "sd1-custom-kv/pytorch_custom_diffusion_weights.bin"),
        &[
            "is not a LoRA but Custom Diffusion",
            "`apply_custom_diffusion`",
        ],
    );
    refused(
        &token(
            "sd1",
            "sd1-custom-kv/pytorch_custom_diffusion_weights.bin",
            "",
        ),
        &["is not a textual inversion but Custom Diffusion"],
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
        &["is not a Custom Diffusion file"],
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
