//! The same weights in every file format: each gives what diffusers gives, and all give the same bits.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use retouch_nodes::diffusion::adapters::Networks;
use retouch_nodes::diffusion::adapters::custom_diffusion::CustomDiffusion;
use retouch_nodes::diffusion::adapters::lora::{Lora, low_rank};
use retouch_nodes::diffusion::checkpoint::{Checkpoint, Description, Parts};
use retouch_nodes::diffusion::control::{Branch, Rows, Untouched};
use retouch_nodes::diffusion::layout::Sources;
use retouch_nodes::diffusion::memory::Memory;
use retouch_nodes::diffusion::unet::{Call, Text};
use retouch_nodes::kernels::{Cpu, Plain};

use crate::support::{Disk, MODULE, assert_close, data};

fn micro(name: &str) -> PathBuf {
    data().join("micro").join(name)
}

fn open(sources: &Sources) -> Checkpoint {
    let description = Description::read(sources, &Disk).unwrap();
    Checkpoint::new(
        description,
        String::new(),
        Device::Cpu,
        Arc::new(Cpu::default()),
    )
}

/// A single file is read by the configurations of its folder: nothing was published for so small a model.
fn single(file: &str, config: &str) -> Sources {
    Sources {
        config: Some(micro(config)),
        ..Sources::of(&micro(file))
    }
}

fn variant(folder: &str, variant: &str) -> Sources {
    Sources {
        variant: Some(variant.to_owned()),
        ..Sources::of(&micro(folder))
    }
}

/// Every format: its name, where it is, the expected numbers, and the folder that it must equal bit for bit.
fn formats() -> Vec<(&'static str, Sources, &'static str, Option<&'static str>)> {
    let folder = |name: &str| Sources::of(&micro(name));
    vec![
        ("sd1", folder("sd1"), "sd1", None),
        ("sd2", folder("sd2"), "sd2", None),
        (
            "single file",
            single("sd1-single.safetensors", "sd1"),
            "sd1",
            Some("sd1"),
        ),
        (
            "single file of 2",
            single("sd2-single.safetensors", "sd2"),
            "sd2",
            Some("sd2"),
        ),
        (
            "torch file",
            single("sd1-zip.ckpt", "sd1"),
            "sd1",
            Some("sd1"),
        ),
        (
            "old torch file",
            single("sd1-legacy.ckpt", "sd1"),
            "sd1",
            Some("sd1"),
        ),
        (
            "torch files in a folder",
            folder("sd1-bin"),
            "sd1",
            Some("sd1"),
        ),
        ("shards", folder("sd1-sharded-f32"), "sd1", Some("sd1")),
        ("bfloat16", folder("sd1-bf16"), "sd1-bf16", None),
        ("variant", variant("sd1-bf16", "fp16"), "sd1", Some("sd1")),
    ]
}

/// What a model gives for the oracle's inputs.
fn results(model: &Checkpoint, expected: &HashMap<String, Tensor>) -> Vec<(&'static str, Tensor)> {
    let text = |prompt| model.encode_prompt(prompt).unwrap().states;
    let (vanilla, personal) = (
        text("a teddy bear on a beach"),
        text("a sks teddy bear on a beach"),
    );
    let context = Text::new(Tensor::cat(&[&vanilla, &personal], 0).unwrap());
    let call = Call {
        addition: None,
        latent: &expected["unet_in"],
        timesteps: &[981.0, 401.0],
        texts: &[&context],
        step: 0,
        rows: Rows::new(Branch::Plain, 2, false),
    };
    let unet = model.unet().unwrap();
    let vae = model.vae().unwrap();
    vec![
        ("text", personal),
        ("text_empty", text("")),
        (
            "unet_out",
            unet.forward(call, &mut Untouched, model.kernel()).unwrap(),
        ),
        (
            "vae_decoded",
            vae.decode(&expected["noise"], model.kernel()).unwrap(),
        ),
    ]
}

fn numbers(name: &str) -> HashMap<String, Tensor> {
    let file = micro(&format!("{name}.safetensors"));
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

#[test]
fn every_format_gives_the_numbers_of_diffusers_and_the_bits_of_the_folder() {
    for (what, sources, expected, same_as) in formats() {
        let expected = numbers(expected);
        let given = results(&open(&sources), &expected);
        for (name, tensor) in &given {
            assert_close(&format!("{what}: {name}"), tensor, &expected[*name], MODULE);
        }
        let Some(folder) = same_as else { continue };
        let own = results(&open(&Sources::of(&micro(folder))), &expected);
        for ((name, a), (_, b)) in given.iter().zip(&own) {
            assert!(
                bits(a) == bits(b),
                "{what}: {name} differs from the folder's"
            );
        }
    }
}

/// The adapted model of a file: what an op makes of the base.
fn adapted(base: &Checkpoint, name: &str) -> Checkpoint {
    let path = micro("adapters").join(name);
    let d = base.description();
    let texts: Vec<_> = d.texts.iter().map(|text| text.config.clone()).collect();
    let networks = Networks::of(&d.unet, &texts).unwrap();
    if name.contains("custom") {
        let file = CustomDiffusion::find(&path, &Disk);
        let read = CustomDiffusion::read(&file, &networks, &Disk).unwrap();
        assert_eq!(read.unmatched, [""; 0]);
        assert_eq!(read.layers.0, read.layers.1);
        return base.with_replaced(name.to_owned(), read.replaced);
    }
    let lora = Lora::read(&Lora::find(&path, &Disk), &Disk).unwrap();
    let fitted = lora.fit(&networks).unwrap();
    assert_eq!(fitted.unmatched, [""; 0], "{name}");
    base.with_low_rank(
        name.to_owned(),
        low_rank(&fitted.unet, 1.0),
        fitted
            .texts
            .iter()
            .map(|factors| low_rank(factors, 1.0))
            .collect(),
    )
}

#[test]
fn every_dialect_of_an_adapter_gives_the_numbers_of_diffusers() {
    let base = open(&Sources::of(&micro("sd1")));
    let inputs = numbers("sd1");
    let expected = numbers("adapters/sd1");
    for (name, prefix) in [
        ("sd1-lora-diffusers.safetensors", "lora.full"),
        ("sd1-lora-kohya.safetensors", "lora.full"),
        ("sd1-lora-peft", "lora.unet_full"),
        ("sd1-lora-old.safetensors", "lora.old"),
        ("sd1-lora-middle.safetensors", "lora.old"),
        ("sd1-lora-processors.bin", "lora.unet_old"),
        ("sd1-locon-kohya.safetensors", "lora.locon"),
    ] {
        let model = adapted(&base, name);
        let mut given = results(&model, &inputs);
        if prefix.contains("unet_") {
            // Half an adapter: the text encoder is the base's, and so are the states.
            assert!(Arc::ptr_eq(
                &model.text_encoder(0).unwrap(),
                &base.text_encoder(0).unwrap()
            ));
            given.retain(|(what, _)| *what == "unet_out");
        }
        for (what, tensor) in given {
            let key = format!("{prefix}.{what}");
            if let Some(expected) = expected.get(&key) {
                assert_close(&format!("{name}: {what}"), &tensor, expected, MODULE);
            }
        }
        assert!(expected.contains_key(&format!("{prefix}.unet_out")));
    }
}

/// The weights of `sd1-lora-peft` with another configuration, and with two ranks of four where a module's name ends in
/// `halved`.
fn with_patterns(folder: &Path, case: &serde_json::Value) {
    let own = micro("adapters").join("sd1-lora-peft");
    let config = std::fs::read_to_string(own.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    for (key, value) in case.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let file = "adapter_model.safetensors";
    let mut weights = candle_core::safetensors::load(own.join(file), &Device::Cpu).unwrap();
    if let Some(halved) = case.get("halved").and_then(serde_json::Value::as_str) {
        for (key, tensor) in &mut weights {
            for (axis, factor) in ["lora_A", "lora_B"].into_iter().enumerate() {
                if key.contains(&format!("{halved}.{factor}")) {
                    *tensor = tensor.narrow(axis, 0, 2).unwrap().contiguous().unwrap();
                }
            }
        }
    }
    candle_core::safetensors::save(&weights, folder.join(file)).unwrap();
}

#[test]
fn the_patterns_of_a_peft_configuration_give_the_numbers_of_peft() {
    let base = open(&Sources::of(&micro("sd1")));
    let inputs = numbers("sd1");
    let expected = numbers("adapters/peft-patterns");
    let cases = std::fs::read_to_string(micro("adapters/peft-patterns.json")).unwrap();
    let cases: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&cases).unwrap();
    assert_eq!(cases.len(), 5);
    for (name, case) in &cases {
        let folder = tempfile::tempdir().unwrap();
        with_patterns(folder.path(), case);
        let model = adapted(&base, &folder.path().to_string_lossy());
        let given = results(&model, &inputs);
        let (_, tensor) = given.iter().find(|(what, _)| *what == "unet_out").unwrap();
        assert_close(name, tensor, &expected[&format!("{name}.unet_out")], MODULE);
    }
}

fn bits(t: &Tensor) -> Vec<u32> {
    let numbers = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    numbers.into_iter().map(f32::to_bits).collect()
}

#[test]
fn weights_held_in_the_type_of_their_file_take_half_the_memory_and_float16_ones_change_no_bit() {
    for (folder, dtype) in [("sd1", DType::F16), ("sd1-bf16", DType::BF16)] {
        let expected = numbers(folder);
        let wide = open(&Sources::of(&micro(folder)));
        let memory = Arc::new(Memory::default());
        let narrow = open(&Sources::of(&micro(folder))).held(dtype, memory.clone(), false);
        let (a, b) = (results(&wide, &expected), results(&narrow, &expected));
        for ((name, a), (_, b)) in a.iter().zip(&b) {
            if dtype == DType::F16 {
                assert!(bits(a) == bits(b), "{folder} {name} in {dtype:?}");
            } else {
                // Activations are rounded to bfloat16 where the processor multiplies it.
                assert_close(&format!("{folder} {name} in {dtype:?}"), b, a, 5e-2);
            }
        }
        assert!(memory.held() > 0 && narrow.bytes() * 2 == wide.bytes());
    }
}

#[test]
fn products_in_half_precision_are_near_those_in_float32() {
    // What a GPU does: products in float16, all between in float32.
    let expected = numbers("sd1");
    let description = Description::read(&Sources::of(&micro("sd1")), &Disk).unwrap();
    let half = Checkpoint::new(description, String::new(), Device::Cpu, Arc::new(Plain)).held(
        DType::F16,
        Arc::default(),
        false,
    );
    for (name, tensor) in results(&half, &expected) {
        assert_close(&format!("float16 {name}"), &tensor, &expected[name], 2e-2);
    }
}

#[test]
fn offloading_holds_one_kind_of_part_at_a_time_and_changes_no_bit() {
    let expected = numbers("sd1");
    let kept = open(&Sources::of(&micro("sd1")));
    let memory = Arc::new(Memory::default());
    let offloaded = open(&Sources::of(&micro("sd1"))).held(DType::F32, memory.clone(), true);
    let vae = |model: &Checkpoint| {
        let vae = model.vae().unwrap();
        vae.decode(&expected["noise"], model.kernel()).unwrap()
    };
    drop(offloaded.unet().unwrap());
    let unet = memory.held();
    assert!(bits(&vae(&kept)) == bits(&vae(&offloaded)));
    assert!(memory.held() < unet, "the U-Net went before the VAE came");
    drop(offloaded.text_encoder(0).unwrap());
    let both = memory.held();
    offloaded.prompts_are_encoded();
    assert!(memory.held() < both, "the text encoder went");
    assert_eq!(memory.loads(), 3);
    drop(offloaded.unet().unwrap());
    assert_eq!(memory.loads(), 4, "the U-Net is read again");
    offloaded.keep_only(Parts::NONE);
    assert_eq!(memory.held(), 0);
}

#[test]
fn an_adapted_model_holds_what_it_adds_and_shares_the_rest() {
    let memory = Arc::new(Memory::default());
    let base = open(&Sources::of(&micro("sd1"))).held(DType::F32, memory.clone(), false);
    let model = adapted(&base, "sd1-lora-kohya.safetensors");
    drop((base.unet().unwrap(), model.unet().unwrap()));
    drop((base.vae().unwrap(), model.vae().unwrap()));
    // A U-Net and a VAE, although two models have used each.
    assert_eq!(memory.loads(), 2);
    // A cache that keeps the one alone holds all of it.
    assert!(model.bytes() > base.bytes() && model.bytes() < base.bytes() * 3 / 2);
}
