//! U-Nets that are not those of the published base models: inpainting and image-editing ones, which are shown a picture beside the
//! latent, and ones without a middle or of unequal depth. Held against diffusers (tests/oracle/make_unets.py).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::{self, MODULE, TRAJECTORY, assert_close, data};
use candle_core::{Device, Tensor};
use retouch_graph::{Cancel, Engine, Event, Recorder, RunOptions, Settings, Value};
use retouch_nodes::Runtime;
use retouch_nodes::payload::{Latent, Trajectory};
use serde_json::{Value as Json, json};

fn numbers(name: &str) -> HashMap<String, Tensor> {
    let file = data().join(name);
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

/// `unet/` of data/micro/sd1 with changes to its configuration and its tensors.
fn unet(
    folder: &Path,
    config: impl FnOnce(&mut serde_json::Map<String, Json>),
    change: impl FnOnce(&mut HashMap<String, Tensor>),
) -> PathBuf {
    let (own, target) = (data().join("micro/sd1/unet"), folder.join("unet"));
    std::fs::create_dir_all(&target).unwrap();
    let text = std::fs::read_to_string(own.join("config.json")).unwrap();
    let mut settings = serde_json::from_str(&text).unwrap();
    config(&mut settings);
    let text = serde_json::to_string(&settings).unwrap();
    std::fs::write(target.join("config.json"), text).unwrap();
    let name = "diffusion_pytorch_model.safetensors";
    let mut tensors = candle_core::safetensors::load(own.join(name), &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, target.join(name)).unwrap();
    target
}

/// The one that is shown a picture: `inpainting` or `editing`.
fn shown(folder: &Path, kind: &str) -> PathBuf {
    let weights = numbers("unets.safetensors")[&format!("{kind}.conv_in")].clone();
    let channels = weights.dim(1).unwrap();
    unet(
        folder,
        |config| {
            config.insert("in_channels".into(), json!(channels));
        },
        |tensors| {
            tensors.insert("conv_in.weight".into(), weights);
        },
    )
}

fn engine() -> Engine {
    let device = std::env::var("RETOUCH_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let runtime = Runtime::by_name(&device).unwrap();
    let numerics = runtime.numerics();
    Engine::new(retouch_nodes::registry())
        .with_environment(Arc::new(runtime))
        .with_numerics(numerics)
}

/// A workflow with the base model, one with another U-Net, a photo, a mask, the photo's latents with and without what the mask hides,
/// and the nodes given.
fn workflow(unet: &Path, nodes: &str) -> String {
    let (data, unet) = (data(), unet.display());
    let data = data.display();
    format!(
        "schema: retouch/v1\nname: unets\nnodes:\n\
         \x20 base: {{op: load_model, path: '{data}/micro/sd1'}}\n\
         \x20 model: {{op: load_model, path: '{data}/micro/sd1', unet: '{unet}'}}\n\
         \x20 photo: {{op: load_image, path: '{data}/micro/reference.png'}}\n\
         \x20 given: {{op: load_latent, path: '{data}/unets.safetensors', tensor: mask}}\n\
         \x20 whole: {{op: encode_reference, model: $base, image: $photo}}\n\
         \x20 hidden: {{op: encode_reference, model: $base, image: $photo, mask: $given.mask}}\n\
         {nodes}"
    )
}

/// A sampler `draw` as the oracle has it, with more said.
fn draw(more: &str) -> String {
    let guidance = if more.contains("guidance: 1,") {
        ""
    } else {
        "guidance: 5, "
    };
    format!(
        "  draw: {{op: sample, model: $model, prompt: a teddy bear on a beach, negative: a red car, seed: 7, steps: 6, {guidance}{more}}}\n\
         outputs:\n  out: {{value: $draw.trajectory}}\n"
    )
}

/// What a run gave, its U-Net calls, and those that the plan foretold.
struct Ran {
    values: HashMap<String, Value>,
    calls: u64,
    foretold: u64,
    /// Warnings, and how often a VAE fell back to float32.
    told: Vec<String>,
    fallbacks: u64,
}

fn run(engine: &Engine, yaml: &str) -> Ran {
    let checked = engine.load_str("test.yaml", yaml, &Settings::default());
    let checked = checked.unwrap_or_else(|problems| panic!("{problems}\n{yaml}"));
    let plan = engine.plan(&checked, &[]).unwrap();
    let foretold = engine.forecast(&plan).total_calls();
    let (options, recorder) = (RunOptions::default(), Recorder::new());
    let report = engine
        .run(&plan, &recorder, &Cancel::new(), &options)
        .unwrap();
    let count = |name| report.counters.get(name).copied().unwrap_or(0);
    let (calls, fallbacks) = (count("unet_calls"), count("vae_fallbacks"));
    let told = recorder
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::NodeWarning { message, .. } => Some(message),
            _ => None,
        });
    let told = told.collect();
    let outputs = report.outputs.into_iter().map(|o| (o.name, o.value));
    Ran {
        values: outputs.collect(),
        calls,
        foretold,
        told,
        fallbacks,
    }
}

/// The latents after each step.
fn latents(engine: &Engine, yaml: &str) -> Tensor {
    let values = run(engine, yaml).values;
    let trajectory = values["out"].downcast::<Trajectory>().unwrap();
    Tensor::cat(&trajectory.latents[1..], 0).unwrap()
}

#[track_caller]
fn fault(engine: &Engine, yaml: &str, words: &[&str]) {
    let problems = match engine.load_str("test.yaml", yaml, &Settings::default()) {
        Ok(_) => panic!("no fault was found\n{yaml}"),
        Err(problems) => problems,
    };
    let all: Vec<String> = problems
        .iter()
        .map(|p| format!("{} [{}]", p.message(), p.hint().unwrap_or_default()))
        .collect();
    for word in words {
        assert!(all.iter().any(|p| p.contains(word)), "{word:?} in {all:?}");
    }
}

#[test]
fn an_inpainting_model_draws_what_diffusers_draws() {
    let (engine, due, folder) = (
        engine(),
        numbers("unets.safetensors"),
        tempfile::tempdir().unwrap(),
    );
    let unet = shown(folder.path(), "inpainting");
    let hidden = "outputs:\n  out: {value: $hidden}\n";
    let values = run(&engine, &workflow(&unet, hidden)).values;
    let latent = values["out"].downcast::<Latent>().unwrap();
    assert_close("shown", &latent.tensor, &due["inpainting.shown"], MODULE);
    for (name, more) in [
        ("ddim", "picture: $hidden, mask: $given.mask"),
        (
            "euler",
            "picture: $hidden, mask: $given.mask, scheduler: euler",
        ),
        (
            "unguided",
            "guidance: 1, picture: $hidden, mask: $given.mask",
        ),
        (
            "strength",
            "picture: $hidden, mask: $given.mask, latent: $whole, strength: 67%",
        ),
    ] {
        let drawn = latents(&engine, &workflow(&unet, &draw(more)));
        let name = format!("inpainting.{name}");
        assert_close(&name, &drawn, &due[&name], TRAJECTORY);
    }
}

#[test]
fn an_image_editing_model_draws_what_diffusers_draws() {
    let (engine, due, folder) = (
        engine(),
        numbers("unets.safetensors"),
        tempfile::tempdir().unwrap(),
    );
    let unet = shown(folder.path(), "editing");
    for (name, more) in [
        ("ddim", "picture: $whole"),
        (
            "euler",
            "picture: $whole, scheduler: euler, image_guidance: 1.5",
        ),
        ("one", "picture: $whole, image_guidance: 1"),
        ("unguided", "guidance: 1, picture: $whole"),
    ] {
        let drawn = latents(&engine, &workflow(&unet, &draw(more)));
        let name = format!("editing.{name}");
        assert_close(&name, &drawn, &due[&name], TRAJECTORY);
    }
}

#[test]
fn calls_are_those_that_the_plan_has_and_keys_hold_what_is_shown() {
    use retouch_graph::TieredCache;
    let folder = tempfile::tempdir().unwrap();
    let unet = shown(folder.path(), "editing");
    let engine = engine().with_cache(Arc::new(TieredCache::new(0, 1 << 30, None, None)));
    let calls = |more: &str| {
        let ran = run(&engine, &workflow(&unet, &draw(more)));
        assert_eq!(ran.calls, ran.foretold, "{more}");
        ran.calls
    };
    assert_eq!(calls("picture: $whole"), 18);
    assert_eq!(
        calls("picture: $whole, image_guidance: 1.5"),
        0,
        "the default"
    );
    assert_eq!(calls("picture: $whole, image_guidance: 1"), 12);
    assert_eq!(calls("picture: $whole, image_guidance: 2"), 18);
    assert_eq!(calls("picture: $hidden"), 18, "another picture");
    assert_eq!(calls("guidance: 1, picture: $hidden"), 6);
    assert_eq!(calls("picture: $hidden"), 0);
}

#[test]
fn every_picture_of_a_batch_is_shown_its_own() {
    let (engine, folder) = (engine(), tempfile::tempdir().unwrap());
    for (kind, more) in [
        ("inpainting", "picture: $hidden, mask: $given.mask"),
        ("editing", "picture: $whole"),
    ] {
        let unet = shown(folder.path(), kind);
        let one = latents(
            &engine,
            &workflow(&unet, &draw(&more.replace("seed: 7", "seed: 8"))),
        );
        let two = latents(
            &engine,
            &workflow(&unet, &draw(&format!("{more}, batch: 2"))),
        );
        assert_eq!(two.dim(0).unwrap(), 12, "six latents of two");
        let first = Tensor::cat(
            &(0..6)
                .map(|k| two.narrow(0, 2 * k, 1).unwrap())
                .collect::<Vec<_>>(),
            0,
        );
        assert_close(kind, &first.unwrap(), &one, 0.0);
    }
}

#[test]
fn what_such_a_model_lacks_or_has_no_use_for_is_said_at_the_check() {
    let (engine, folder) = (engine(), tempfile::tempdir().unwrap());
    let inpainting = shown(&folder.path().join("9"), "inpainting");
    let editing = shown(&folder.path().join("8"), "editing");
    let check = |unet: &Path, more: &str, words: &[&str]| {
        fault(&engine, &workflow(unet, &draw(more)), words)
    };
    check(
        &inpainting,
        "width: 64",
        &[
            "`picture` and `mask` are missing",
            "`encode_reference` with the same `mask`",
        ],
    );
    check(
        &inpainting,
        "mask: $given.mask",
        &["this is an inpainting model", "`picture` is missing"],
    );
    check(&inpainting, "picture: $hidden", &["`mask` is missing"]);
    check(
        &inpainting,
        "picture: $hidden, mask: $given.mask, image_guidance: 2",
        &["no effect: this is an inpainting model"],
    );
    check(
        &inpainting,
        "picture: $hidden, mask: $given.mask, width: 64",
        &["the size is that of the linked `picture`"],
    );
    check(
        &editing,
        "width: 64",
        &["this is an image-editing model", "`picture` is missing"],
    );
    check(
        &editing,
        "picture: $whole, image_guidance: 101",
        &["expected a number from 0 to 100"],
    );
    check(
        &editing,
        "guidance: 1, picture: $whole, image_guidance: 2",
        &["no effect at guidance 1"],
    );
    check(
        &editing,
        "picture: $whole, mask: $given.mask",
        &["a `latent` is missing"],
    );
    let base = data().join("micro/sd1/unet");
    check(
        &base,
        "picture: $whole",
        &["`picture` has no effect", "strength: 60%"],
    );
    check(
        &base,
        "image_guidance: 2",
        &["no effect: this is a model that draws from text alone"],
    );
    let small =
        "  small: {op: encode_reference, model: $base, image: $photo, width: 32, height: 64}\n"
            .to_owned();
    fault(
        &engine,
        &workflow(
            &editing,
            &(small + &draw("picture: $small, latent: $whole")),
        ),
        &["the latent is 8x16, and one of 16x16 is drawn"],
    );
    for (op, more) in [
        (
            "step_blend_sample",
            "vanilla: $base, personalized: $model, vanilla_prompt: a, personalized_prompt: a, seed: 1",
        ),
        ("invert", "model: $model, latent: $whole"),
    ] {
        let node = format!(
            "  other: {{op: {op}, {more}}}\noutputs:\n  out: {{value: $other.trajectory}}\n"
        );
        fault(
            &engine,
            &workflow(&inpainting, &node),
            &[
                "an inpainting model (9 channels)",
                &format!("`{op}` does not work with"),
            ],
        );
    }
    // Depth-guided models and the upscaler are neither.
    let other = unet(
        &folder.path().join("5"),
        |config| {
            config.insert("in_channels".into(), json!(5));
        },
        |_| (),
    );
    check(
        &other,
        "width: 64",
        &["in_channels is 5 and out_channels 4"],
    );
}

#[test]
fn a_vae_in_half_precision_is_computed_in_float32_where_its_numbers_are_not_finite() {
    let folder = tempfile::tempdir().unwrap();
    let own = data().join("micro/sd1/vae");
    let name = "diffusion_pytorch_model.safetensors";
    std::fs::copy(own.join("config.json"), folder.path().join("config.json")).unwrap();
    let weights = candle_core::safetensors::load(own.join(name), &Device::Cpu).unwrap();
    let decoded = |scale: f64, dtype: &str, more: &str| {
        // What is normalised afterwards may be of any size in float32, and not in float16.
        let mut weights = weights.clone();
        let conv = weights["decoder.conv_in.weight"].to_dtype(candle_core::DType::F32);
        let conv = (conv.unwrap() * scale).unwrap();
        weights.insert("decoder.conv_in.weight".to_owned(), conv);
        candle_core::safetensors::save(&weights, folder.path().join(name)).unwrap();
        let runtime = Runtime::by_name(&format!("cpu/{dtype}")).unwrap();
        let numerics = runtime.numerics();
        let engine = Engine::new(retouch_nodes::registry())
            .with_environment(Arc::new(runtime))
            .with_numerics(numerics);
        let (data, vae) = (data(), folder.path().display());
        let data = data.display();
        let yaml = format!(
            "schema: retouch/v1\nname: vae\nnodes:\n\
             \x20 model: {{op: load_model, path: '{data}/micro/sd1', vae: '{vae}'{more}}}\n\
             \x20 z: {{op: load_latent, path: '{data}/micro/sd1.safetensors', tensor: noise}}\n\
             \x20 a: {{op: decode, model: $model, latent: $z}}\n\
             \x20 b: {{op: decode, model: $model, latent: $z, tiled: always}}\n\
             outputs:\n  a: {{value: $a}}\n  b: {{value: $b}}\n"
        );
        let ran = run(&engine, &yaml);
        let image = ran.values["a"].downcast::<retouch_nodes::payload::Image>();
        (image.unwrap().rgb.clone(), ran.told, ran.fallbacks)
    };
    let half = ", half_vae: true";
    let (due, told, count) = decoded(1.0, "f32", half);
    assert_eq!((told.len(), count), (0, 0));
    // The weights are of float16 but for one, which float16 holds nearly.
    let (own, told, count) = decoded(1.0, "bf16", half);
    assert_eq!((told.len(), count), (0, 0));
    assert_close("bf16", &own, &due, 0.1);
    assert!(
        support::distance(&own, &due) > 1e-4,
        "it is computed from rounded weights"
    );
    let (without, _, _) = decoded(1.0, "bf16", "");
    assert_close("without being asked", &without, &due, 0.0);
    let (due, ..) = decoded(1e7, "f32", "");
    let (own, told, count) = decoded(1e7, "f16", half);
    assert_close("fallen back", &own, &due, 0.0);
    // Each picture falls back by itself: none depends on what was decoded before it.
    assert_eq!((told.len(), count), (2, 2), "{told:?}");
    assert!(told[0].contains("float32 instead"), "{told:?}");
}

mod shapes {
    use super::*;
    use retouch_diffusion::checkpoint::export;
    use retouch_diffusion::checkpoint::layout::{Layout, Sources};
    use retouch_diffusion::checkpoint::model::{Checkpoint, Description};
    use retouch_diffusion::networks::unet::{Call, Part, Text, UnetConfig};
    use retouch_diffusion::sampling::control::{Branch, Rows, Untouched};
    use retouch_kernels::Cpu;

    fn config(json: Json) -> UnetConfig {
        serde_json::from_value(json).unwrap()
    }

    /// As diffusers made it (tests/oracle/make_unets.py).
    fn unequal() -> Json {
        json!({
            "in_channels": 4, "out_channels": 4, "sample_size": 16, "block_out_channels": [8, 8, 8], "layers_per_block": [1, 2, 1],
            "norm_num_groups": 4, "cross_attention_dim": 32, "attention_head_dim": [1, 2, 4], "use_linear_projection": true,
            "mid_block_type": "UNetMidBlock2D",
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, [2, 1], [2]],
            "reverse_transformer_layers_per_block": [[1, 3], [2, 1, 1], 1]
        })
    }

    fn call(sources: &Sources) -> Tensor {
        let description = Description::read(sources, &support::Disk).unwrap();
        let kernel = Arc::new(Cpu::default());
        let model = Checkpoint::new(description, "x".into(), Device::Cpu, kernel);
        let inputs = numbers("micro/sd1.safetensors");
        let context = Text::new(inputs["unet_context"].clone());
        let call = Call {
            addition: None,
            latent: &inputs["unet_in"],
            timesteps: &[981.0, 401.0],
            texts: &[&context],
            step: 0,
            rows: Rows::new(Branch::Plain, 2, false),
        };
        let unet = model.unet().unwrap();
        unet.forward(call, &mut Untouched, model.kernel()).unwrap()
    }

    /// The network's output, which is the same after a way through the original layout and back into a folder.
    fn out(unet: &Path) -> Tensor {
        let own = Sources {
            unet: Some(unet.to_owned()),
            ..Sources::of(&data().join("micro/sd1"))
        };
        let folder = tempfile::tempdir().unwrap();
        let (file, back) = (
            folder.path().join("one.safetensors"),
            folder.path().join("back"),
        );
        let converted = |sources: &Sources, target: &Path| {
            let layout = Layout::find(sources, &support::Disk).unwrap();
            let description = Description::of(&layout, &support::Disk).unwrap();
            let goes_on = || false;
            match target.extension() {
                Some(_) => export::single(
                    &layout,
                    &description,
                    None,
                    target,
                    &support::Disk,
                    &goes_on,
                ),
                None => {
                    std::fs::create_dir_all(target).unwrap();
                    export::folder(
                        &layout,
                        &description,
                        None,
                        target,
                        &support::Disk,
                        &goes_on,
                    )
                }
            }
            .unwrap();
        };
        let out = call(&own);
        converted(&own, &back);
        converted(&Sources::of(&back), &file);
        let single = Sources {
            config: Some(back.clone()),
            ..Sources::of(&file)
        };
        for sources in [Sources::of(&back), single] {
            assert_close("converted", &call(&sources), &out, 0.0);
        }
        out
    }

    #[test]
    fn a_network_without_a_middle_gives_the_numbers_of_diffusers() {
        let folder = tempfile::tempdir().unwrap();
        let unet = unet(
            folder.path(),
            |config| {
                config.insert("mid_block_type".into(), Json::Null);
            },
            |tensors| tensors.retain(|name, _| !name.starts_with("mid_block.")),
        );
        assert_close(
            "bare",
            &out(&unet),
            &numbers("unets.safetensors")["bare.unet_out"],
            MODULE,
        );
    }

    #[test]
    fn unequal_levels_and_depths_give_the_numbers_of_diffusers() {
        let folder = tempfile::tempdir().unwrap();
        let due = numbers("unets.safetensors");
        let unet = unet(
            folder.path(),
            |config| *config = unequal().as_object().unwrap().clone(),
            |tensors| {
                let own = due.iter().filter_map(|(name, tensor)| {
                    Some((name.strip_prefix("unequal/")?.to_owned(), tensor.clone()))
                });
                *tensors = own.collect();
            },
        );
        assert_close("unequal", &out(&unet), &due["unequal.unet_out"], MODULE);
        let sites = config(unequal()).sites();
        let count = |part| sites.iter().filter(|site| site.part == part).count();
        assert_eq!(
            (count(Part::Down), count(Part::Mid), count(Part::Up)),
            (5, 0, 8)
        );
    }

    #[test]
    fn depths_that_do_not_hang_together_are_faults() {
        let fault = |key: &str, value: Json| {
            let mut json = unequal();
            json[key] = value;
            config(json).fault().unwrap_or_default()
        };
        assert_eq!(config(unequal()).fault(), None);
        let down = "transformer_layers_per_block";
        assert!(fault("reverse_transformer_layers_per_block", Json::Null).contains("is missing"));
        assert!(fault(down, json!([1, [2], 2])).contains("too few numbers for level 1"));
        assert!(fault(down, json!([1, [2, 1]])).contains("too few numbers for level 2"));
        assert!(fault(down, json!([1, [2, 65], 2])).contains("asks for 65 transformer layers"));
        assert!(fault(down, json!([1, [2, 0], 2])).contains("asks for 0 transformer layers"));
        assert_eq!(
            fault(down, json!([0, [2, 1], 2])),
            "",
            "a level without attention has none"
        );
        assert!(
            fault("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")).contains("or null")
        );
    }
}
