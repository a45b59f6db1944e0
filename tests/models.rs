//! `retouch inspect` and `convert`, as a user meets them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use crate::support::{retouch, root};

fn micro(name: &str) -> String {
    let path = root().join("tests/oracle/data/micro").join(name);
    path.display().to_string()
}

/// Runs the program; what it says on both streams.
#[track_caller]
fn ran(folder: &Path, code: i32, arguments: &[&str]) -> (String, String) {
    let output = retouch(folder, arguments);
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}\n{out}\n{err}"
    );
    (out, err)
}

fn report(folder: &Path, arguments: &[&str]) -> Json {
    let arguments = [&["inspect", "--json"], arguments].concat();
    let (out, _) = ran(folder, 0, &arguments);
    serde_json::from_str::<Json>(&out).unwrap()["report"].clone()
}

/// The tensors of a file, bit by bit: type, shape, bytes as whole numbers.
fn tensors(path: &Path) -> BTreeMap<String, (DType, Vec<usize>, Vec<u32>)> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let bits = |tensor: &Tensor| {
        // Halves become float32 without loss.
        let flat = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        let numbers = flat.to_vec1::<f32>().unwrap();
        numbers.into_iter().map(f32::to_bits).collect()
    };
    tensors
        .into_iter()
        .map(|(name, t)| (name, (t.dtype(), t.dims().to_vec(), bits(&t))))
        .collect()
}

const NETWORKS: [&str; 4] = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
];

/// Two folders have the same networks, bit by bit.
#[track_caller]
fn equal(a: &Path, b: &Path) {
    for file in NETWORKS {
        assert_eq!(a.join(file).exists(), b.join(file).exists(), "{file}");
        if a.join(file).exists() {
            assert!(tensors(&a.join(file)) == tensors(&b.join(file)), "{file}");
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_becomes_a_single_file_and_a_folder_again_bit_by_bit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for family in ["sd1", "sd2", "sdxl"] {
        let single = format!("{family}.safetensors");
        let (out, err) = ran(folder, 0, &["convert", &micro(family), &single]);
        assert_eq!(out.trim(), single);
        assert!(err.contains("left out: configurations"), "{err}");
        // The oracle's single file was made from the same folder by other code.
        let (own, other) = (
            tensors(&folder.join(&single)),
            tensors(Path::new(&micro(&format!("{family}-single.safetensors")))),
        );
        for (name, tensor) in &own {
            assert!(other.get(name) == Some(tensor), "{family} {name}");
        }
        // What it has more no network uses.
        for name in other.keys().filter(|name| !own.contains_key(*name)) {
            let spare = [
                "position_ids",
                "alphas_cumprod",
                "betas",
                "model_ema",
                "logit_scale",
                "resblocks.3.",
            ];
            let spare = spare.iter().any(|part| name.contains(part));
            assert!(
                spare || family == "sd2" && name.ends_with("text_projection"),
                "{family} {name}"
            );
        }
        let back = format!("{family}-back");
        let (out, _) = ran(
            folder,
            0,
            &["convert", &single, &back, "--config", &micro(family)],
        );
        assert!(out.contains(&format!("{back}/unet/config.json")), "{out}");
        equal(Path::new(&micro(family)), &folder.join(&back));
        for file in [
            "tokenizer/vocab.json",
            "scheduler/scheduler_config.json",
            "unet/config.json",
        ] {
            let read = |folder: PathBuf| std::fs::read(folder.join(file)).unwrap();
            assert_eq!(
                read(micro(family).into()),
                read(folder.join(&back)),
                "{family} {file}"
            );
        }
        // What was written is a model like the one that it was made of.
        let (own, made) = (report(folder, &[&micro(family)]), report(folder, &[&back]));
        for field in ["family", "sites", "size", "scheduler", "prediction"] {
            assert_eq!(own[field], made[field], "{family} {field}");
        }
    }
}

#[test]
fn a_converted_model_of_v_prediction_and_zero_snr_is_read_as_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    ran(folder, 0, &["convert", &micro("sd1"), "v"]);
    let config = folder.join("v/scheduler/scheduler_config.json");
    let mut changed: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    changed["prediction_type"] = "v_prediction".into();
    changed["rescale_betas_zero_snr"] = true.into();
    // What diffusers writes is not always JSON.
    let text = changed
        .to_string()
        .replacen('{', r#"{"lambda_min_clipped": -Infinity, "#, 1);
    std::fs::write(&config, text).unwrap();
    let read = report(folder, &["v"]);
    assert_eq!(read["prediction"], "v_prediction");
    let words = read["scheduler"].as_str().unwrap();
    assert!(words.contains("zero terminal SNR"), "{words}");
    ran(folder, 0, &["convert", "v", "v.safetensors"]);
    // The configurations are those of a model that predicts epsilon: the file knows better.
    let read = report(folder, &["v.safetensors", "--config", &micro("sd1")]);
    assert_eq!(read["prediction"], "v_prediction");
    let from = read["prediction_from"].as_str().unwrap();
    assert!(from.contains("modelspec.prediction_type"), "{from}");
    let markers = tensors(&folder.join("v.safetensors"));
    assert!(markers.contains_key("v_pred") && markers.contains_key("ztsnr"));
    let back = [
        "convert",
        "v.safetensors",
        "back",
        "--config",
        &micro("sd1"),
    ];
    ran(folder, 0, &back);
    let text = std::fs::read(folder.join("back/scheduler/scheduler_config.json")).unwrap();
    let back: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(back["prediction_type"], "v_prediction");
    assert_eq!(back["rescale_betas_zero_snr"], true);
    // One that predicts epsilon has neither.
    ran(folder, 0, &["convert", &micro("sd1"), "e.safetensors"]);
    let plain = tensors(&folder.join("e.safetensors"));
    assert!(!plain.contains_key("v_pred") && !plain.contains_key("ztsnr"));
}

#[test]
fn what_is_no_model_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (class, what) in [
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("FluxPipeline", "Flux"),
        ("KolorsPipeline", "Kolors"),
        ("PixArtSigmaPipeline", "PixArt"),
    ] {
        let model = folder.join(class);
        std::fs::create_dir(&model).unwrap();
        let index = format!(r#"{{"_class_name": "{class}"}}"#);
        std::fs::write(model.join("model_index.json"), index).unwrap();
        let (_, err) = ran(folder, 1, &["inspect", class]);
        assert!(err.contains(&format!("is of {what} ({class})")), "{err}");
    }
    std::fs::write(folder.join("a.safetensors"), "<html></html>").unwrap();
    let (_, err) = ran(folder, 1, &["inspect", "a.safetensors"]);
    assert!(err.contains("is an HTML page"), "{err}");
    // A repository's name, or its web page, where a path is due.
    for (path, due) in [
        ("some-owner/some-model", "`hf://some-owner/some-model`"),
        ("https://hub.example/a/b", "`hf://a/b`"),
        (
            "https://hub.example/a/b/resolve/v2/c/d.safetensors",
            "`hf://a/b@v2/c/d.safetensors`",
        ),
    ] {
        let yaml = format!(
            "schema: retouch/v1\nname: x\nnodes:\n  model: {{op: load_model, path: '{path}'}}\n  \
             draw: {{op: sample, model: $model, prompt: a, steps: 1, seed: 1}}\noutputs:\n  z: {{value: $draw}}\n"
        );
        std::fs::write(folder.join("x.yaml"), yaml).unwrap();
        let output = retouch(folder, &["check", "x.yaml"]);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // Long words are broken at the edge of the page.
        let whole: String = text.split_whitespace().collect();
        assert!(whole.contains(due), "{text}");
    }
}

#[test]
fn a_picture_of_another_program_says_its_prompt_and_is_no_workflow() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let write = |name: &str, texts: &[(&str, &str)]| {
        let file = std::fs::File::create(folder.join(name)).unwrap();
        let mut encoder = png::Encoder::new(file, 1, 1);
        for (keyword, text) in texts {
            encoder
                .add_itxt_chunk((*keyword).to_owned(), (*text).to_owned())
                .unwrap();
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0]).unwrap();
    };
    let settings = "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 42";
    write("web.png", &[("parameters", settings)]);
    let (out, _) = ran(folder, 0, &["inspect", "web.png"]);
    for due in [
        "a picture",
        "prompt: a cat",
        "negative prompt: blurry",
        "Sampler: Euler a",
        "AUTOMATIC1111",
    ] {
        assert!(out.contains(due), "{due}: {out}");
    }
    let graph = r#"{"3": {"class_type": "KSampler", "inputs": {"seed": 7, "model": ["4", 0]}}}"#;
    write("comfy.png", &[("prompt", graph)]);
    let found = report(folder, &["comfy.png"]);
    assert_eq!(found["kind"], "picture");
    assert_eq!(found["metadata"]["3 KSampler"], "seed: 7");
    write("plain.png", &[]);
    let (_, err) = ran(folder, 1, &["inspect", "plain.png"]);
    assert!(err.contains("carries no recipe"), "{err}");
    let output = retouch(folder, &["check", "web.png"]);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(
        text.contains("is a picture and not a workflow") && text.contains("`retouch replay"),
        "{text}"
    );
}

#[test]
fn torch_files_and_shards_become_the_same_safetensors_folder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = micro("sd1");
    for (source, more) in [
        ("sd1-zip.ckpt", &["--config", &config][..]),
        ("sd1-legacy.ckpt", &["--config", &config]),
        ("sd1-bin", &[]),
        ("sd1-sharded-f32", &["--dtype", "f16"]),
    ] {
        let source = micro(source);
        let made = [&["convert", &source, "out"], more].concat();
        ran(folder, 0, &made);
        equal(Path::new(&config), &folder.join("out"));
        std::fs::remove_dir_all(folder.join("out")).unwrap();
    }
}

#[test]
fn another_type_is_rounded_and_what_it_cannot_hold_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // There and back loses nothing, as every half is a float32.
    ran(
        folder,
        0,
        &["convert", &micro("sd1"), "wide", "--dtype", "f32"],
    );
    let wide = report(folder, &["wide"]);
    for part in wide["parts"].as_array().unwrap() {
        assert_eq!(
            part["dtypes"]
                .as_object()
                .unwrap()
                .keys()
                .collect::<Vec<_>>(),
            ["F32"]
        );
    }
    ran(folder, 0, &["convert", "wide", "narrow", "--dtype", "f16"]);
    equal(Path::new(&micro("sd1")), &folder.join("narrow"));
    // bfloat16 has 8 bits of a number.
    ran(folder, 0, &["convert", "wide", "brief", "--dtype", "bf16"]);
    let (own, brief) = (
        tensors(&folder.join("wide").join(NETWORKS[0])),
        tensors(&folder.join("brief").join(NETWORKS[0])),
    );
    let mut differ = 0;
    for (name, (_, shape, bits)) in &own {
        let (dtype, other_shape, other) = &brief[name];
        assert_eq!((*dtype, shape), (DType::BF16, other_shape));
        for (a, b) in bits.iter().zip(other) {
            let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
            assert!((a - b).abs() <= a.abs() / 256.0, "{name}: {a} {b}");
            differ += usize::from(a != b);
        }
    }
    assert!(differ > 1000);
    // A number beyond 65504: an error that names it, and nothing is left.
    let file = folder.join("wide").join(NETWORKS[1]);
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1e5f32.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    for out in ["half", "half.safetensors"] {
        let (_, err) = ran(folder, 1, &["convert", "wide", out, "--dtype", "f16"]);
        assert!(
            err.contains("100000") && err.contains("float16") && err.contains("bf16"),
            "{err}"
        );
    }
    assert_eq!(names(folder), ["brief", "narrow", "wide"]);
}

#[test]
fn nothing_is_overwritten_and_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("there.safetensors"), "mine").unwrap();
    std::fs::create_dir(folder.join("full")).unwrap();
    std::fs::write(folder.join("full/file"), "mine").unwrap();
    std::fs::create_dir(folder.join("empty")).unwrap();
    let model = micro("sd1");
    for arguments in [
        &["convert", &model, "there.safetensors"][..],
        &["convert", &model, "full"],
    ] {
        let (_, err) = ran(folder, 1, arguments);
        assert!(err.contains("exists"), "{err}");
    }
    // A source that is damaged, none, or no model.
    std::fs::write(folder.join("bad.safetensors"), [7; 100]).unwrap();
    for source in [
        "bad.safetensors",
        "full",
        &micro("sd1/unet"),
        &micro("adapters/sd1-ti-one.bin"),
    ] {
        ran(folder, 1, &["convert", source, "out"]);
    }
    ran(folder, 2, &["convert", "nothing", "out"]);
    for arguments in [
        &["convert", &model, "out", "--layout", "single"][..],
        &["convert", &model, "out.safetensors", "--layout", "folder"],
        &["convert", &model, "out", "--config", &model],
        &["convert", &model, "out", "--dtype", "f8"],
    ] {
        ran(folder, 2, arguments);
    }
    assert_eq!(
        names(folder),
        ["bad.safetensors", "empty", "full", "there.safetensors"]
    );
    assert_eq!(
        std::fs::read(folder.join("there.safetensors")).unwrap(),
        b"mine"
    );
    // An empty folder is taken.
    ran(folder, 0, &["convert", &model, "empty"]);
    equal(Path::new(&model), &folder.join("empty"));
}

#[test]
fn inspect_says_what_a_model_is_with_its_sites_on_their_grids() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = report(folder, &[&micro("sd1")]);
    assert_eq!(model["kind"], "model");
    assert_eq!(model["layout"], "diffusers folder");
    assert_eq!(model["size"], serde_json::json!([64, 64]));
    let parts: Vec<_> = model["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["name"])
        .collect();
    assert_eq!(parts, ["unet", "text_encoder", "vae"]);
    // The bytes are those of the files without their headers.
    for (part, file) in
        model["parts"]
            .as_array()
            .unwrap()
            .iter()
            .zip([NETWORKS[0], NETWORKS[2], NETWORKS[1]])
    {
        let bytes = std::fs::read(Path::new(&micro("sd1")).join(file)).unwrap();
        let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(part["bytes"], bytes.len() as u64 - header);
        assert_eq!(part["dtypes"]["F16"], part["tensors"]);
    }
    let sites = model["sites"].as_array().unwrap();
    let grids: Vec<_> = sites
        .iter()
        .map(|site| site["grid"][0].as_u64().unwrap())
        .collect();
    assert_eq!(grids, [16, 8, 4, 8, 8, 16, 16]);
    let auto: Vec<_> = sites
        .iter()
        .filter(|s| s["auto"] == true)
        .map(|s| s["index"].as_u64().unwrap())
        .collect();
    assert_eq!(auto, [3, 4, 5, 6]);
    let wide = report(folder, &[&micro("sd1"), "--size", "96x64"]);
    assert_eq!(wide["sites"][0]["grid"], serde_json::json!([16, 24]));
    let (_, err) = ran(folder, 1, &["inspect", &micro("sd1"), "--size", "97x64"]);
    assert!(err.contains("multiples of 4"), "{err}");
    // A single file is the same model.
    let single = report(folder, &[&micro("sd1-zip.ckpt"), "--config", &micro("sd1")]);
    assert_eq!(single["layout"], "single file");
    assert_eq!(single["sites"], model["sites"]);
    // For people, all on one page.
    let (out, _) = ran(folder, 0, &["inspect", &micro("sdxl")]);
    for part in [
        "made like Stable Diffusion XL",
        "text_encoder_2",
        "EulerDiscreteScheduler",
        "* 14..17   up",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    // A model that does not fit together says why.
    std::fs::create_dir(folder.join("mixed")).unwrap();
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        let from = micro(if part == "vae" { "sd1" } else { "sd2" });
        let to = folder.join("mixed").join(part);
        std::fs::create_dir(&to).unwrap();
        for name in names(&Path::new(&from).join(part)) {
            std::fs::copy(Path::new(&from).join(part).join(&name), to.join(&name)).unwrap();
        }
    }
    let clip = Path::new(&micro("sd1")).join("text_encoder/config.json");
    std::fs::copy(clip, folder.join("mixed/text_encoder/config.json")).unwrap();
    std::fs::remove_file(folder.join("mixed/vae/config.json")).unwrap();
    let (_, err) = ran(folder, 1, &["inspect", "mixed"]);
    assert!(err.contains("vae/config.json"), "{err}");
}

#[test]
fn inspect_tells_adapters_and_other_files_apart() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let numbers = |json: &Json| {
        json.as_array()
            .map(|pair| pair.iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>())
    };
    for (file, kind, dialect, ranks, alphas, layers, tokens) in [
        (
            "sd1-lora-kohya.safetensors",
            "lora",
            "kohya",
            [4, 4],
            [2.0, 2.0],
            (84, 18),
            "",
        ),
        (
            "sd1-locon-kohya.safetensors",
            "lora",
            "kohya",
            [2, 4],
            [1.0, 2.0],
            (89, 0),
            "",
        ),
        (
            "sd1-lora-peft",
            "lora",
            "PEFT",
            [4, 4],
            [2.0, 2.0],
            (84, 0),
            "",
        ),
        (
            "sdxl-lora-diffusers.safetensors",
            "lora",
            "diffusers",
            [2, 2],
            [1.0, 1.0],
            (192, 30),
            "",
        ),
        (
            "sd1-ti-three.bin",
            "textual_inversion",
            "diffusers",
            [0, 0],
            [0.0, 0.0],
            (0, 0),
            "<toy> 3",
        ),
        (
            "sd1-ti-one.safetensors",
            "textual_inversion",
            "diffusers",
            [0, 0],
            [0.0, 0.0],
            (0, 0),
            "<toy> 1",
        ),
        (
            "old-toy.pt",
            "textual_inversion",
            "A1111",
            [0, 0],
            [0.0, 0.0],
            (0, 0),
            "old-toy 2",
        ),
        (
            "sdxl-ti.safetensors",
            "textual_inversion",
            "kohya",
            [0, 0],
            [0.0, 0.0],
            (0, 0),
            "sdxl-ti 2",
        ),
        (
            "sd1-custom-kv",
            "custom_diffusion",
            "diffusers",
            [0, 0],
            [0.0, 0.0],
            (7, 0),
            "<new1> 1",
        ),
        (
            "delta.bin",
            "custom_diffusion",
            "Custom Diffusion",
            [0, 0],
            [0.0, 0.0],
            (7, 0),
            "<new1> 1",
        ),
    ] {
        let found = report(folder, &[&micro(&format!("adapters/{file}"))]);
        let adapter = &found["adapter"];
        assert_eq!(
            (&found["kind"], &adapter["dialect"]),
            (&kind.into(), &dialect.into()),
            "{file}"
        );
        if kind == "lora" {
            assert_eq!(
                numbers(&adapter["ranks"]).unwrap(),
                ranks.map(f64::from),
                "{file}"
            );
            assert_eq!(numbers(&adapter["alphas"]).unwrap(), alphas, "{file}");
        }
        assert_eq!(
            (&adapter["unet_layers"], &adapter["text_layers"]),
            (&layers.0.into(), &layers.1.into()),
            "{file}"
        );
        let all: Vec<String> = adapter["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| format!("{} {}", t[0].as_str().unwrap(), t[1]))
            .collect();
        assert_eq!(all.join(", "), tokens, "{file}");
    }
    let other = report(folder, &[&micro("sd1.safetensors")]);
    assert_eq!(
        (&other["kind"], &other["adapter"]),
        (&"tensors".into(), &Json::Null)
    );
    // What holds no tensors, or more than them.
    for (path, code, said) in [
        (micro("reference.png"), 1, "carries no recipe"),
        (
            root()
                .join("tests/oracle/data/pickles/evil.pt")
                .display()
                .to_string(),
            1,
            "`posix.system`",
        ),
        (
            "nothing".to_owned(),
            2,
            "nothing cannot be read: there is no such",
        ),
    ] {
        let (_, err) = ran(folder, code, &["inspect", &path]);
        assert!(err.contains(said), "{err}");
    }
    assert!(!folder.join("executed").exists());
}

#[test]
fn an_adapter_is_told_on_one_screen_and_by_inspect_as_by_the_op() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let load = |name: &str| {
        candle_core::safetensors::load(micro(&format!("adapters/{name}")), &Device::Cpu).unwrap()
    };
    let mut own = load("sd1-lora-kohya.safetensors");
    let token = load("sd1-ti-three.safetensors")["<toy>"].clone();
    own.insert(
        "bundle_emb.<toy>.string_to_param.*".to_owned(),
        token.clone(),
    );
    own.insert("something.else".to_owned(), token);
    let file = folder.join("bundle.safetensors");
    candle_core::safetensors::save(&own, &file).unwrap();
    // As many settings as kohya's scripts write.
    let plain = std::fs::read(&file).unwrap();
    let (length, rest) = plain.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap());
    let (json, numbers) = rest.split_at(usize::try_from(length).unwrap());
    let mut json: serde_json::Map<String, Json> = serde_json::from_slice(json).unwrap();
    let mut settings: serde_json::Map<String, Json> = (0..90)
        .map(|i| (format!("ss_setting_{i}"), "1".into()))
        .collect();
    settings.insert("ss_base_model_version".into(), "sd_v1".into());
    settings.insert("modelspec.trigger_phrase".into(), "sks bear".into());
    json.insert("__metadata__".into(), settings.into());
    let json = serde_json::to_vec(&json).unwrap();
    let length = (json.len() as u64).to_le_bytes();
    std::fs::write(&file, [&length, &json[..], numbers].concat()).unwrap();
    let (out, _) = ran(folder, 0, &["inspect", "bundle.safetensors"]);
    for line in [
        "bundle.safetensors: a LoRA (`apply_lora`)",
        "dialect    kohya",
        "kind       LoRA (102)",
        "rank       4",
        "alpha      2",
        "changes    84 layers of the U-Net, 18 of text encoders",
        "tokens     sks bear, <toy> (3 vectors)",
        "ss_base_model_version: sd_v1",
        "(91 more settings: `--json`)",
        "note: 1 unmatched (left out: something.else)",
        "note: embeddings inside are added by `apply_textual_inversion` with the same file (a token with a space in its name needs `token: NAME` there)",
    ] {
        assert!(
            out.lines().any(|own| own.trim_end() == line),
            "{line}\n{out}"
        );
    }
    assert!(out.lines().count() <= 24, "{out}");
    let found = report(folder, &["bundle.safetensors"]);
    assert_eq!(found["adapter"]["kinds"]["LoRA"], 102);
    assert_eq!(found["adapter"]["unmatched"][0], "something.else");
    // The run leaves out the same name, and tells of the token.
    std::fs::write(
        folder.join("x.yaml"),
        format!(
            "schema: retouch/v1\nname: x\nnodes:\n  base: {{op: load_model, path: '{}'}}\n  \
             lora: {{op: apply_lora, model: $base, path: bundle.safetensors}}\n  \
             draw: {{op: sample, model: $lora, prompt: a cat, steps: 1, seed: 1, spacing: trailing}}\n\
             outputs:\n  z: {{value: $draw}}\n",
            micro("sd1")
        ),
    )
    .unwrap();
    let (out, err) = ran(folder, 0, &["run", "x.yaml"]);
    let said = out + &err;
    assert!(
        said.contains("102 layers matched (84 of the U-Net, 18 of text encoders), 1 unmatched (left out: something.else)"),
        "{said}"
    );
}
