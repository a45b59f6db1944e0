//! The same weights in every file format: each gives what diffusers gives, and all give the same bits.

use std::collections::{BTreeMap, HashMap};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::{Disk, MODULE, assert_close, data, distance};
use candle_core::{DType, Device, Tensor};
use retouch_diffusion::checkpoint::adapters::Networks;
use retouch_diffusion::checkpoint::adapters::custom_diffusion::CustomDiffusion;
use retouch_diffusion::checkpoint::adapters::lora::{Fitted, Lora, edits};
use retouch_diffusion::checkpoint::inspect::{Kind, Request, inspect};
use retouch_diffusion::checkpoint::layout::Sources;
use retouch_diffusion::checkpoint::ldm;
use retouch_diffusion::checkpoint::memory::Memory;
use retouch_diffusion::checkpoint::model::{Checkpoint, Description, Parts};
use retouch_diffusion::checkpoint::weights::Table;
use retouch_diffusion::networks::unet::{Call, Text};
use retouch_diffusion::sampling::control::{Branch, Rows, Untouched};
use retouch_graph::DiskFiles;
use retouch_kernels::{Cpu, Plain};

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
    base.with_edits(
        name.to_owned(),
        edits(&fitted.unet, 1.0),
        fitted
            .texts
            .iter()
            .map(|changes| edits(changes, 1.0))
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

/// The adapter of a case of `changes.safetensors` as a file of its own, in a folder with PEFT's configuration if it has one.
fn changed(folder: &Path, case: &str) -> PathBuf {
    let all = numbers("adapters/changes");
    let own: HashMap<String, Tensor> = all
        .into_iter()
        .filter_map(|(name, tensor)| {
            let key = name.strip_prefix(case)?.strip_prefix('/')?;
            (!key.starts_with('=')).then(|| (key.to_owned(), tensor))
        })
        .collect();
    assert!(!own.is_empty(), "{case}");
    let file = folder.join("adapter_model.safetensors");
    candle_core::safetensors::save(&own, &file).unwrap();
    let table = Table::read(&micro("adapters/changes.safetensors"), &Disk).unwrap();
    if let Some(config) = table.metadata.get(case) {
        std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    }
    file
}

#[test]
fn every_kind_of_change_gives_the_numbers_of_lycoris_and_peft() {
    let base = open(&Sources::of(&micro("sd1")));
    let inputs = numbers("sd1");
    let expected = numbers("adapters/changes");
    let unet_out = |model: &Checkpoint| {
        let given = results(model, &inputs);
        given
            .into_iter()
            .find(|(what, _)| *what == "unet_out")
            .unwrap()
            .1
    };
    for (case, kinds) in [
        ("loha", "LoHa"),
        ("lokr", "LoKr"),
        ("tucker", "LoRA, LoRA with a Tucker core"),
        ("dora", "DoRA"),
        ("dora_columns", "DoRA"),
        (
            "decomposed",
            "LoHa with magnitudes (DoHa), LoKr with magnitudes (DoKr)",
        ),
        ("full", "full difference"),
        ("peft_dora", "DoRA"),
        ("peft_bias", "LoRA, full difference"),
        ("peft_loha", "LoHa"),
        ("peft_lokr", "LoKr"),
        (
            "mix",
            "DoRA, LoHa, LoKr, LoRA, LoRA with a Tucker core, full difference",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = changed(folder.path(), case);
        let lora = Lora::read(&file, &Disk).unwrap();
        let found: Vec<String> = lora.kinds().into_keys().collect();
        assert_eq!(found.join(", "), kinds, "{case}");
        for (name, weight) in [("unet_out", 1.0), ("unet_out_half", 0.5)] {
            let Some(expected) = expected.get(&format!("{case}/={name}")) else {
                continue;
            };
            let model = weighted(&base, &file, weight);
            assert_close(
                &format!("{case} {name}"),
                &unet_out(&model),
                expected,
                MODULE,
            );
        }
        if case == "mix" {
            let model = weighted(&base, &file, 1.0);
            let states = model
                .encode_prompt("a sks teddy bear on a beach")
                .unwrap()
                .states;
            assert_close("mix text", &states, &expected["mix/=text"], MODULE);
        }
        if case == "dora" {
            // The norms are those of the weights that the LoRA before it leaves.
            let lora = micro("adapters/sd1-lora-kohya.safetensors");
            let model = weighted(&weighted_unet(&base, &lora, 0.7), &file, 1.0);
            assert_close(
                "a LoRA, then a DoRA",
                &unet_out(&model),
                &expected["then_dora/=unet_out"],
                MODULE,
            );
        }
    }
}

/// A model with a LoRA by a weight.
fn weighted(base: &Checkpoint, file: &Path, weight: f64) -> Checkpoint {
    let fitted = fitted(base, file);
    assert_eq!(fitted.unmatched, [""; 0]);
    let texts = fitted.texts.iter().map(|changes| edits(changes, weight));
    base.with_edits(String::new(), edits(&fitted.unet, weight), texts.collect())
}

/// The same of the U-Net's half alone.
fn weighted_unet(base: &Checkpoint, file: &Path, weight: f64) -> Checkpoint {
    let fitted = fitted(base, file);
    base.with_edits(String::new(), edits(&fitted.unet, weight), Vec::new())
}

fn fitted(base: &Checkpoint, file: &Path) -> Fitted {
    let d = base.description();
    let texts: Vec<_> = d.texts.iter().map(|text| text.config.clone()).collect();
    let networks = Networks::of(&d.unet, &texts).unwrap();
    Lora::read(file, &Disk).unwrap().fit(&networks).unwrap()
}

#[test]
fn the_projection_of_the_second_encoder_is_changed_under_each_of_its_names() {
    let base = open(&Sources::of(&micro("sdxl")));
    let expected = &numbers("adapters/changes")["projection/=pooled"];
    let folder = tempfile::tempdir().unwrap();
    let file = changed(folder.path(), "projection");
    let own = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    for (prefix, down, up, alpha) in [
        ("lora_te2_text_projection", "lora_down", "lora_up", "alpha"),
        (
            "text_encoder_2.text_projection",
            "lora_A",
            "lora_B",
            "lora_alpha",
        ),
        ("clip_g.text_projection", "lora_down", "lora_up", "alpha"),
        (
            "text_encoders.clip_g.transformer.text_projection",
            "lora_down",
            "lora_up",
            "alpha",
        ),
    ] {
        let renamed: HashMap<String, Tensor> = own
            .iter()
            .map(|(key, tensor)| {
                let key = key
                    .replace("lora_te2_text_projection", prefix)
                    .replace("lora_down", down)
                    .replace("lora_up", up)
                    .replace(".alpha", &format!(".{alpha}"));
                (key, tensor.clone())
            })
            .collect();
        candle_core::safetensors::save(&renamed, &file).unwrap();
        let model = weighted(&base, &file, 1.0);
        let pooled = model
            .encode_prompt("a sks teddy bear on a beach")
            .unwrap()
            .pooled
            .unwrap();
        assert_close(prefix, &pooled, expected, MODULE);
        let plain = base
            .encode_prompt("a sks teddy bear on a beach")
            .unwrap()
            .pooled
            .unwrap();
        assert!(distance(&plain, expected) > 0.05);
    }
}

#[test]
fn a_low_rank_change_of_embeddings_is_merged_into_them() {
    // ComfyUI extracts these too.
    let base = open(&Sources::of(&micro("sd1")));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.safetensors");
    let layer = "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding";
    let rows = base.description().texts[0].config.vocab_size;
    let numbers = |shape: (usize, usize), step: f32| {
        let numbers = (0..shape.0 * shape.1).map(|i| ((i as f32) * step).sin() * 0.5);
        Tensor::from_vec(numbers.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    };
    let (up, down) = (numbers((rows, 2), 0.37), numbers((2, 32), 0.91));
    let difference = up.matmul(&down).unwrap();
    let mut states = Vec::new();
    for tensors in [
        vec![("lora_up.weight", up), ("lora_down.weight", down)],
        vec![("diff", difference)],
    ] {
        let named = tensors
            .into_iter()
            .map(|(key, tensor)| (format!("{layer}.{key}"), tensor));
        let named: HashMap<String, Tensor> = named.collect();
        candle_core::safetensors::save(&named, &file).unwrap();
        let model = weighted(&base, &file, 1.0);
        states.push(model.encode_prompt("a sks teddy bear").unwrap().states);
    }
    assert_close("low rank and full", &states[0], &states[1], MODULE);
    let plain = base.encode_prompt("a sks teddy bear").unwrap().states;
    assert!(distance(&states[0], &plain) > 0.1);
}

#[test]
fn the_same_factors_under_any_name_give_the_same_bits() {
    let base = open(&Sources::of(&micro("sd1")));
    let inputs = numbers("sd1");
    let config = base.description().unet.clone();
    let kohya = adapted(&base, "sd1-lora-kohya.safetensors");
    let due: Vec<Vec<u32>> = results(&kohya, &inputs)
        .iter()
        .map(|(_, t)| bits(t))
        .collect();
    let own = micro("adapters/sd1-lora-diffusers.safetensors");
    let own = candle_core::safetensors::load(own, &Device::Cpu).unwrap();
    let original = |layer: &str| ldm::unet(layer, &config).unwrap();
    type Rename<'a> = &'a dyn Fn(&str, &str) -> String;
    let ways: [(&str, Rename<'_>, [&str; 2]); 6] = [
        (
            "doubled prefixes",
            &|network, layer| format!("{network}.{network}.{layer}"),
            [".lora.down.weight", ".lora.up.weight"],
        ),
        (
            "original names with dots",
            &|network, layer| match network {
                "unet" => format!("unet.{}", original(layer)),
                _ => format!("clip_l.{layer}"),
            },
            [".lora_down.weight", ".lora_up.weight"],
        ),
        (
            "ComfyUI",
            &|network, layer| match network {
                "unet" => format!("diffusion_model.{}", original(layer)),
                _ => format!("text_encoders.clip_l.transformer.{layer}"),
            },
            [".lora_down.weight", ".lora_up.weight"],
        ),
        (
            "without a prefix",
            &|_, layer| layer.to_owned(),
            [".lora_A.weight", ".lora_B.weight"],
        ),
        (
            "PEFT with a name",
            &|network, layer| format!("base_model.model.{network}.{layer}"),
            [".lora_A.style.weight", ".lora_B.style.weight"],
        ),
        (
            "LyCORIS alone",
            &|network, layer| match network {
                "unet" => format!("lycoris_{}", layer.replace('.', "_")),
                _ => format!("lora_te1_{}", layer.replace('.', "_")),
            },
            [".lora_down.weight", ".lora_up.weight"],
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (what, rename, [down, up]) in ways {
        let file = folder.path().join("a.safetensors");
        let renamed: HashMap<String, Tensor> = own
            .iter()
            .map(|(key, tensor)| {
                let (network, rest) = key.split_once('.').unwrap();
                let (layer, end) = match rest.strip_suffix(".lora_A.weight") {
                    Some(layer) => (layer, down),
                    None => (rest.strip_suffix(".lora_B.weight").unwrap(), up),
                };
                // alpha / R is a half, which no bit is lost by.
                let tensor = tensor.to_dtype(DType::F32).unwrap();
                let tensor = if end == up {
                    (tensor * 0.5).unwrap()
                } else {
                    tensor
                };
                (rename(network, layer) + end, tensor)
            })
            .collect();
        candle_core::safetensors::save(&renamed, &file).unwrap();
        let model = weighted(&base, &file, 1.0);
        for ((name, tensor), due) in results(&model, &inputs).iter().zip(&due) {
            assert!(bits(tensor) == *due, "{what}: {name}");
        }
    }
}

#[test]
fn what_a_model_of_diffusers_saves_alone_has_its_settings_without_a_prefix() {
    let base = open(&Sources::of(&micro("sd1")));
    let inputs = numbers("sd1");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pytorch_lora_weights.safetensors");
    let own = micro("adapters/sd1-lora-peft/adapter_model.safetensors");
    let own: HashMap<String, Tensor> = candle_core::safetensors::load(own, &Device::Cpu)
        .unwrap()
        .into_iter()
        .map(|(key, tensor)| (key.replace("base_model.model.", ""), tensor))
        .collect();
    candle_core::safetensors::save(&own, &file).unwrap();
    let plain = std::fs::read(&file).unwrap();
    let (length, rest) = plain.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap());
    let (json, numbers_of) = rest.split_at(usize::try_from(length).unwrap());
    let mut json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(json).unwrap();
    let settings = serde_json::json!({"r": 4, "lora_alpha": 2, "alpha_pattern": {}}).to_string();
    json.insert(
        "__metadata__".into(),
        serde_json::json!({"format": "pt", "lora_adapter_metadata": settings}),
    );
    let json = serde_json::to_vec(&json).unwrap();
    let length = (json.len() as u64).to_le_bytes();
    std::fs::write(&file, [&length, &json[..], numbers_of].concat()).unwrap();
    let model = weighted(&base, &file, 1.0);
    let given = results(&model, &inputs);
    let (_, tensor) = given.iter().find(|(what, _)| *what == "unet_out").unwrap();
    let expected = numbers("adapters/sd1");
    assert_close(
        "alone",
        tensor,
        &expected["lora.unet_full.unet_out"],
        MODULE,
    );
}

/// The header of an adapter as its trainer writes it (make_lora_headers.py).
#[derive(serde::Deserialize)]
struct TrainerHeader {
    tensors: Vec<(String, String, Vec<usize>)>,
    metadata: BTreeMap<String, String>,
    alpha: Option<f32>,
    config: Option<serde_json::Value>,
}

/// Writes a file with this header over a hole, in which only the alphas are numbers.
fn write_header(folder: &Path, header: &TrainerHeader) -> PathBuf {
    let mut json = serde_json::Map::new();
    json.insert(
        "__metadata__".into(),
        serde_json::to_value(&header.metadata).unwrap(),
    );
    let mut alphas = Vec::new();
    let mut end = 0;
    for (key, dtype, shape) in &header.tensors {
        let size = if dtype == "F32" { 4 } else { 2 };
        let begin = end;
        end += size * shape.iter().product::<usize>();
        if key.ends_with(".alpha") {
            alphas.push((begin, dtype.as_str()));
        }
        json.insert(
            key.clone(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}),
        );
    }
    let json = serde_json::to_vec(&json).unwrap();
    let path = folder.join("adapter_model.safetensors");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(json.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&json).unwrap();
    let data = 8 + json.len() as u64;
    file.set_len(data + end as u64).unwrap();
    let alpha = header.alpha.unwrap_or_default();
    for (at, dtype) in alphas {
        file.seek(SeekFrom::Start(data + at as u64)).unwrap();
        // Powers of two, whose bits are those of their exponent.
        let exponent = (alpha.to_bits() >> 23) as u16;
        let bits = match dtype {
            "BF16" => exponent << 7,
            _ => (exponent + 15 - 127) << 10,
        };
        file.write_all(&bits.to_le_bytes()).unwrap();
    }
    if let Some(config) = &header.config {
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    }
    path
}

#[test]
fn headers_of_every_trainer_are_read_to_the_last_name() {
    let packed = std::fs::read(data().join("lora_headers.json.gz")).unwrap();
    let headers: BTreeMap<String, TrainerHeader> =
        serde_json::from_reader(flate2::read::GzDecoder::new(&packed[..])).unwrap();
    let (one, two) = ("Stable Diffusion 1", "Stable Diffusion XL");
    let due = [
        (
            "comfyui extracted sd1",
            one,
            "ComfyUI",
            "LoRA 282, full difference 404",
            (4, 8),
            (4.0, 8.0),
            (391, 0),
        ),
        (
            "diffusers 0.2x sd1",
            one,
            "diffusers",
            "LoRA 128",
            (4, 4),
            (4.0, 4.0),
            (128, 0),
        ),
        (
            "diffusers attn procs sd1",
            one,
            "diffusers, attention processors",
            "LoRA 128",
            (4, 4),
            (4.0, 4.0),
            (128, 0),
        ),
        (
            "diffusers sd1",
            one,
            "diffusers",
            "LoRA 128",
            (4, 4),
            (4.0, 4.0),
            (128, 0),
        ),
        (
            "kohya sd1",
            one,
            "kohya",
            "LoRA 264",
            (32, 32),
            (16.0, 16.0),
            (192, 72),
        ),
        (
            "kohya sd1 locon",
            one,
            "kohya",
            "LoRA 350",
            (8, 16),
            (8.0, 8.0),
            (278, 72),
        ),
        (
            "kohya sdxl",
            two,
            "kohya",
            "LoRA 986",
            (32, 32),
            (16.0, 16.0),
            (722, 264),
        ),
        (
            "kohya sdxl dora",
            two,
            "kohya",
            "DoRA 722",
            (16, 16),
            (16.0, 16.0),
            (722, 0),
        ),
        (
            "lcm-lora sd1",
            one,
            "kohya",
            "LoRA 278",
            (64, 64),
            (64.0, 64.0),
            (278, 0),
        ),
        (
            "lcm-lora sdxl",
            two,
            "kohya",
            "LoRA 788",
            (64, 64),
            (64.0, 64.0),
            (788, 0),
        ),
        (
            "lycoris loha sd1",
            one,
            "LyCORIS",
            "LoHa 354",
            (4, 8),
            (4.0, 4.0),
            (282, 72),
        ),
        (
            "lycoris lokr sd1",
            one,
            "LyCORIS",
            "LoKr 354",
            (4, 8),
            (4.0, 4.0),
            (282, 72),
        ),
        (
            "onetrainer sd1",
            one,
            "kohya",
            "LoRA 264",
            (16, 16),
            (1.0, 1.0),
            (192, 72),
        ),
        (
            "onetrainer sdxl omi",
            two,
            "kohya",
            "LoRA 986",
            (16, 16),
            (1.0, 1.0),
            (722, 264),
        ),
        (
            "peft folder sd1",
            one,
            "PEFT",
            "LoRA 128",
            (4, 4),
            (4.0, 4.0),
            (128, 0),
        ),
    ];
    assert_eq!(
        due.map(|row| row.0).to_vec(),
        headers.keys().collect::<Vec<_>>()
    );
    let mut wrong = Vec::new();
    for (name, family, dialect, kinds, ranks, alphas, layers) in due {
        let folder = tempfile::tempdir().unwrap();
        let path = write_header(folder.path(), &headers[name]);
        let report = inspect(
            &Request {
                path,
                ..Request::default()
            },
            &DiskFiles::new(),
        )
        .unwrap();
        let adapter = report.adapter.as_ref().unwrap();
        let found: Vec<String> = adapter
            .kinds
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        let given = format!(
            "{:?} {:?} {} [{}] {:?} {:?} {:?} {:?}",
            report.kind,
            report.family,
            adapter.dialect,
            found.join(", "),
            adapter.ranks,
            adapter.alphas,
            (adapter.unet_layers, adapter.text_layers),
            adapter.unmatched,
        );
        let expected = format!(
            "{:?} {:?} {dialect} [{kinds}] {:?} {:?} {layers:?} {:?}",
            Kind::Lora,
            Some(family),
            Some(ranks),
            Some(alphas),
            [""; 0],
        );
        if given != expected {
            wrong.push(format!("{name}:\n  {given}\n  {expected}"));
        }
        let tokens = match name {
            _ if name.starts_with("kohya") => {
                vec![("subject".to_owned(), 0), ("outdoors".to_owned(), 0)]
            }
            _ if name.starts_with("lycoris") => {
                vec![("subject".to_owned(), 0), ("outdoors".to_owned(), 0)]
            }
            _ if name.starts_with("onetrainer") => vec![("<subject>".to_owned(), 2)],
            _ => Vec::new(),
        };
        assert_eq!(adapter.tokens, tokens, "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
fn models_on_one_device_share_what_is_loaded_there() {
    let memory = Arc::new(Memory::default());
    let base = open(&Sources::of(&micro("sd1"))).held(DType::F32, memory.clone(), false);
    let elsewhere = Arc::new(Memory::default());
    let other = base.on(&Device::Cpu, base.shared_kernel(), elsewhere.clone());
    assert_eq!(base.id(), other.id());
    assert!(Arc::ptr_eq(&base.unet().unwrap(), &other.unet().unwrap()));
    let adapted = adapted(&other, "sd1-lora-kohya.safetensors");
    assert!(Arc::ptr_eq(&other.vae().unwrap(), &adapted.vae().unwrap()));
    // Each counts what it was the first to load.
    assert_eq!((memory.loads(), elsewhere.loads()), (1, 1));
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

#[test]
fn weights_that_adapters_are_merged_into_are_counted_once_more_and_factors_beside_them_are_not() {
    let memory = Arc::new(Memory::default());
    let base = open(&Sources::of(&micro("sd1"))).held(DType::F32, memory.clone(), false);
    drop(base.unet().unwrap());
    let held = memory.held();
    let lora = weighted(&base, &micro("adapters/sd1-lora-kohya.safetensors"), 1.0);
    drop(lora.unet().unwrap());
    assert_eq!(memory.held(), held);
    let folder = tempfile::tempdir().unwrap();
    let full = weighted(&base, &changed(folder.path(), "full"), 1.0);
    drop(full.unet().unwrap());
    let more = (full.bytes() - base.bytes()) as u64;
    assert_eq!(memory.held(), held + more);
    assert!(0 < more && more < held / 2, "{more} of {held}");
}
