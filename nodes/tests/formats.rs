//! The same weights in every file format: each gives what diffusers gives, and all give the same bits.

// The lints spare functions marked as tests, and not the functions that they share.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_nodes::diffusion::checkpoint::{Checkpoint, Description};
use retouch_nodes::diffusion::control::{Branch, Rows, Untouched};
use retouch_nodes::diffusion::layout::Sources;
use retouch_nodes::diffusion::unet::Call;
use retouch_nodes::kernels::Cpu;
use support::{Disk, MODULE, assert_close, data};

fn micro(name: &str) -> PathBuf {
    data().join("micro").join(name)
}

fn open(sources: &Sources) -> Checkpoint {
    let description = Description::read(sources, &Disk).unwrap();
    Checkpoint::new(description, String::new(), Device::Cpu, Arc::new(Cpu))
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
        ("single file", single("sd1-single.safetensors", "sd1"), "sd1", Some("sd1")),
        ("single file of 2", single("sd2-single.safetensors", "sd2"), "sd2", Some("sd2")),
        ("torch file", single("sd1-zip.ckpt", "sd1"), "sd1", Some("sd1")),
        ("old torch file", single("sd1-legacy.ckpt", "sd1"), "sd1", Some("sd1")),
        ("torch files in a folder", folder("sd1-bin"), "sd1", Some("sd1")),
        ("shards", folder("sd1-sharded-f32"), "sd1", Some("sd1")),
        ("bfloat16", folder("sd1-bf16"), "sd1-bf16", None),
        ("variant", variant("sd1-bf16", "fp16"), "sd1", Some("sd1")),
    ]
}

/// What a model gives for the oracle's inputs.
fn results(model: &Checkpoint, expected: &HashMap<String, Tensor>) -> Vec<(&'static str, Tensor)> {
    let text = |prompt| model.encode_prompt(prompt).unwrap().0;
    let (vanilla, personal) = (
        text("a teddy bear on a beach"),
        text("a sks teddy bear on a beach"),
    );
    let context = Tensor::cat(&[&vanilla, &personal], 0).unwrap();
    let call = Call {
        latent: &expected["unet_in"],
        timesteps: &[981, 401],
        context: &context,
        step: 0,
        rows: Rows::new(Branch::Plain, 2, false),
    };
    let unet = model.unet().unwrap();
    let vae = model.vae().unwrap();
    vec![
        ("text", personal),
        ("text_empty", text("")),
        ("unet_out", unet.forward(call, &mut Untouched, model.kernel()).unwrap()),
        ("vae_decoded", vae.decode(&expected["noise"], model.kernel()).unwrap()),
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
            let bits = |t: &Tensor| -> Vec<u32> {
                let numbers = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                numbers.into_iter().map(f32::to_bits).collect()
            };
            assert!(bits(a) == bits(b), "{what}: {name} differs from the folder's");
        }
    }
}
