//! `retouch-dev make-random` and `bench --model`, as whoever works on Retouch meets them.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use retouch_diffusion::checkpoint::inspect::{self, Kind, Request};
use retouch_graph::{Cancel, DiskFiles, RunOptions, Settings, Silent};
use retouch_nodes::payload::Latent;
use serde_json::Value as Json;

fn micro(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("tests/oracle/data/micro").join(name);
    path.display().to_string()
}

/// Runs the program; what it says on both streams.
#[track_caller]
fn ran(folder: &Path, code: i32, arguments: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_retouch-dev"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("RETOUCH_NO_CACHE", "1")
        .env("RETOUCH_CONFIG", "")
        .output()
        .unwrap();
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}\n{out}\n{err}"
    );
    (out, err)
}

/// The tensors of a file, bit by bit: shape, numbers.
fn tensors(path: &Path) -> Dumped {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let bits = |tensor: &Tensor| {
        // Halves become float32 without loss.
        let flat = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        let numbers = flat.to_vec1::<f32>().unwrap();
        numbers.into_iter().map(f32::to_bits).collect()
    };
    tensors
        .into_iter()
        .map(|(name, t)| (name, (t.dims().to_vec(), bits(&t))))
        .collect()
}

const NETWORKS: [&str; 3] = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
];

#[test]
fn nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("there.safetensors"), "mine").unwrap();
    std::fs::create_dir(folder.join("full")).unwrap();
    std::fs::write(folder.join("full/file"), "mine").unwrap();
    for out in ["full", "there.safetensors"] {
        let (_, err) = ran(folder, 1, &["make-random", "tiny", out]);
        assert!(err.contains("exists"), "{err}");
    }
    ran(folder, 2, &["make-random", "sd9", "out"]);
    let there = std::fs::read(folder.join("there.safetensors")).unwrap();
    assert_eq!(there, b"mine");
    assert!(!folder.join("out").exists());
}

#[test]
fn a_random_model_is_the_same_for_a_seed_and_draws_finite_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, seed) in [("a", "5"), ("b", "5"), ("c", "6")] {
        let (out, _) = ran(folder, 0, &["make-random", "tiny", name, "--seed", seed]);
        assert!(out.contains(&format!("{name}/model_index.json")), "{out}");
    }
    let read = |name: &str, file: &str| std::fs::read(folder.join(name).join(file)).unwrap();
    for file in &NETWORKS {
        assert!(read("a", file) == read("b", file));
        assert!(read("a", file) != read("c", file));
    }
    let request = Request {
        path: folder.join("a"),
        config: None,
        size: None,
    };
    let made = inspect::inspect(&request, &DiskFiles::new()).unwrap();
    assert_eq!(made.kind, Kind::Model);
    assert_eq!(made.sites.len(), 16);
    let text = format!(
        "schema: retouch/v1\nnodes:\n\
         \x20 model: {{op: load_model, path: '{}'}}\n\
         \x20 draw: {{op: sample, model: $model, prompt: a (teddy bear), steps: 2, seed: 1}}\n\
         outputs:\n  out: {{value: $draw}}\n",
        folder.join("a").display()
    );
    let engine = retouch_cli::session::engine("cpu").unwrap();
    let checked = engine.load_str("t.yaml", &text, &Settings::default());
    let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
    let report = engine.run(&plan, &Silent, &Cancel::new(), &RunOptions::default());
    let report = report.unwrap();
    let latent = report.outputs[0].value.downcast::<Latent>().unwrap();
    let numbers = latent
        .tensor
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    let variance = numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32;
    assert!(
        numbers.iter().all(|x| x.is_finite()) && (0.01..1000.0).contains(&variance),
        "{variance}"
    );
}

/// Shape and bits of each tensor that was written down.
type Dumped = BTreeMap<String, (Vec<usize>, Vec<u32>)>;

/// `retouch-dev bench --model`; its JSON, and what the networks were given and gave.
fn measured(folder: &Path, arguments: &[&str]) -> (Json, Dumped) {
    let dump = ["--runs", "1", "--json", "--dump", "dump.safetensors"];
    let (out, _) = ran(folder, 0, &[&["bench"], arguments, &dump].concat());
    let dumped = tensors(&folder.join("dump.safetensors"));
    (serde_json::from_str(&out).unwrap(), dumped)
}

#[test]
fn the_networks_of_a_model_are_measured_on_the_same_inputs_by_any_number_of_threads_and_rows() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = micro("sd1");
    let (figures, two) = measured(folder, &["--model", &model, "--threads", "2"]);
    assert_eq!(
        (&figures["size"], &figures["batch"]),
        (&64.into(), &2.into())
    );
    let parts: Vec<&str> = figures["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["part"].as_str().unwrap())
        .collect();
    assert_eq!(parts, ["text", "unet", "vae", "vae-encode"]);
    for part in figures["parts"].as_array().unwrap() {
        assert!(part["min"].as_f64().unwrap() > 0.0, "{part}");
        assert_eq!(part["page_faults"].is_u64(), cfg!(target_os = "linux"));
    }
    assert!(figures["scaling"]["ratio"].as_f64().unwrap() > 0.0);
    assert_eq!(two["unet.output"].0, [2, 4, 16, 16]);
    assert_eq!(two["unet.context"].0, [2, 77, 32]);
    assert_eq!(two["vae.picture"].0, [1, 3, 64, 64]);
    assert_eq!(two["vae-encode.mean"].0, [1, 4, 16, 16]);
    assert_eq!(two["text.ids"].0, [1, 77]);
    // The prompt's half of the context is what the text encoder gave.
    assert_eq!(two["unet.context"].1[77 * 32..], two["text.states"].1);

    let (_, one) = measured(
        folder,
        &["--model", &model, "--threads", "1", "--parts", "unet,vae"],
    );
    assert_eq!(one.len(), 6);
    for (name, tensor) in &one {
        assert!(two[name] == *tensor, "{name}");
    }
    // Four rows: two images, each by the empty prompt and then by the prompt; the first image is that of two rows.
    let (_, four) = measured(
        folder,
        &["--model", &model, "--parts", "unet", "--batch", "4"],
    );
    let row = |of: &Dumped, at: usize| of["unet.output"].1[at * 1024..(at + 1) * 1024].to_vec();
    assert!(row(&four, 0) == row(&two, 0) && row(&four, 2) == row(&two, 1));
    assert!(row(&four, 1) != row(&four, 0));

    // What SDXL takes besides is given too.
    let (_, xl) = measured(folder, &["--model", &micro("sdxl"), "--parts", "unet,text"]);
    assert_eq!(xl["unet.pooled"].0, [2, 24]);

    let (_, err) = ran(folder, 2, &["bench", "--model", &model, "--size", "62"]);
    assert!(err.contains("a multiple of 4"), "{err}");
}
