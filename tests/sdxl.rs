//! Stable Diffusion XL through the public ops, held against what diffusers gave (tests/oracle/make_sdxl.py).

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use retouch_graph::Value;
use retouch_nodes::payload::image::Image;
use retouch_nodes::payload::{Latent, Masks, Trajectory};

use crate::support::{self, Bench};

/// max |difference| / std of the expected tensor.
const TRAJECTORY: f32 = 5e-4;
const MODULE: f32 = 1e-4;

const VANILLA: &str = "a teddy bear on a beach";
const PERSONAL: &str = "a sks teddy bear on a beach";

fn numbers() -> HashMap<String, Tensor> {
    let file = support::root().join("tests/oracle/data/micro/sdxl.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    let t = t.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
    t.to_vec1().unwrap()
}

#[track_caller]
fn close(what: &str, actual: &Tensor, tolerance: f32) {
    let (a, b) = (flat(actual), flat(&numbers()[what]));
    assert_eq!(a.len(), b.len(), "{what}");
    let mean = b.iter().sum::<f32>() / b.len() as f32;
    let variance = b.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / b.len() as f32;
    let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
    let worst = off.fold(
        0.0,
        |worst: f32, off| if off <= worst { worst } else { off },
    );
    let distance = worst / variance.sqrt();
    println!("{what}: {distance:.1e} of {tolerance:.0e}");
    assert!(distance <= tolerance, "{what}: {distance:.2e}");
}

/// Both models, the noise, the inverted photo. The steps are DDIM's, whatever sampler the checkpoint's own file names.
fn head() -> String {
    let data = support::root().join("tests/oracle/data/micro");
    let data = data.display();
    format!(
        "schema: retouch/v1\nname: sdxl\nnodes:\n\
         \x20 base: {{op: load_model, path: '{data}/sdxl', scheduler: '{data}/sd1/scheduler'}}\n\
         \x20 personal: {{op: load_model, path: '{data}/sdxl', unet: '{data}/sdxl-personal/unet', scheduler: '{data}/sd1/scheduler'}}\n\
         \x20 noise: {{op: load_latent, path: '{data}/sd1.safetensors', tensor: noise}}\n\
         \x20 photo: {{op: load_image, path: '{data}/reference.png'}}\n\
         \x20 reference: {{op: encode_reference, model: $personal, image: $photo}}\n\
         \x20 inverted: {{op: invert, model: $personal, latent: $reference, steps: 8}}\n"
    )
}

fn layout(extra: &str) -> String {
    format!(
        "  layout: {{op: step_blend_sample, vanilla: $base, personalized: $personal, latent: $noise, \
         vanilla_prompt: {VANILLA}, personalized_prompt: {PERSONAL}, blend_steps: 3, guidance: 5, steps: 8{extra}}}\n"
    )
}

fn trajectory(values: &BTreeMap<String, Value>, name: &str) -> Tensor {
    let trajectory = values[name].downcast::<Trajectory>().unwrap();
    Tensor::cat(&trajectory.latents, 0).unwrap()
}

#[test]
fn stage_1_and_the_inversion_are_those_of_diffusers() {
    let yaml = head()
        + &layout("")
        + &layout(", negative: a red car").replace("layout:", "negative:")
        + "outputs:\n  latent: {value: $reference}\n  inverted: {value: $inverted.trajectory}\n\
           \x20 layout: {value: $layout.trajectory}\n  negative: {value: $negative.trajectory}\n";
    let values = Bench::new().run(&yaml);
    let latent = values["latent"].downcast::<Latent>().unwrap();
    close("reference_latent", &latent.tensor, MODULE);
    close("inverted", &trajectory(&values, "inverted"), TRAJECTORY);
    close("layout", &trajectory(&values, "layout"), TRAJECTORY);
    close(
        "layout_negative",
        &trajectory(&values, "negative"),
        TRAJECTORY,
    );
}

#[test]
fn the_retouch_is_that_of_the_oracle_with_its_masks_and_picture() {
    let yaml = head()
        + &layout("")
        + &format!(
            "  swap: {{op: swap_attention, vanilla: $base, context: $layout.trajectory, reference: $inverted.trajectory, \
             reference_prompt: a photo of a sks teddy bear, subject: teddy bear, sites: 8..17, start_step: 1, from_step: 2, \
             structure_until: 4, mask_grid: 8x8}}\n\
             \x20 draw: {{op: sample, model: $personal, prompt: {PERSONAL}, control: $swap, guidance: 5}}\n\
             \x20 picture: {{op: decode, model: $personal, latent: $draw}}\n\
             \x20 map: {{op: attention_map, model: $personal, trajectory: $draw.trajectory, subject: teddy bear, step: 4}}\n\
             outputs:\n  out: {{value: $draw.trajectory}}\n  masks: {{value: $draw.masks}}\n\
             \x20 picture: {{value: $picture}}\n  map: {{value: $map.image}}\n"
        );
    let values = Bench::new().run(&yaml);
    let masks = values["masks"].downcast::<Masks>().unwrap();
    assert_eq!(flat(&masks.tensor), flat(&numbers()["masks"]));
    close("retouch", &trajectory(&values, "out"), TRAJECTORY);
    let picture = values["picture"].downcast::<Image>().unwrap();
    let picture = ((&picture.rgb * 2.0).unwrap() - 1.0).unwrap();
    close("picture", &picture, TRAJECTORY);
    let map = values["map"].downcast::<Image>().unwrap();
    assert_eq!(map.rgb.dims(), [1, 3, 64, 64]);
}

#[test]
fn a_picture_of_a_batch_is_the_picture_alone_and_sizes_count() {
    let draw = |name: &str, extra: &str| {
        format!(
            "  {name}: {{op: sample, model: $base, prompt: {VANILLA}, negative: a red car, steps: 3, {extra}}}\n"
        )
    };
    let yaml = head()
        + &draw("batch", "seed: 4, batch: 2")
        + &draw("alone", "seed: 5")
        + &draw("wide", "seed: 4, width: 96, height: 64")
        + "outputs:\n  batch: {value: $batch}\n  alone: {value: $alone}\n  wide: {value: $wide}\n";
    let values = Bench::new().run(&yaml);
    let latent = |name: &str| values[name].downcast::<Latent>().unwrap().tensor.clone();
    let second = latent("batch").narrow(0, 1, 1).unwrap();
    assert_eq!(flat(&second), flat(&latent("alone")));
    assert_eq!(latent("wide").dims(), [1, 4, 16, 24]);
}

#[test]
fn parts_of_another_family_are_refused_by_name() {
    let data = support::root().join("tests/oracle/data/micro");
    let data = data.display();
    let folder = tempfile::tempdir().unwrap();
    for (part, value, message) in [
        ("unet", "sd1/unet", "different families"),
        ("text_encoder_2", "sd1/text_encoder", "different families"),
    ] {
        let yaml = format!(
            "schema: retouch/v1\nname: x\nnodes:\n  model: {{op: load_model, path: '{data}/sdxl', {part}: '{data}/{value}'}}\n\
             \x20 draw: {{op: sample, model: $model, prompt: a, steps: 2, seed: 1}}\noutputs:\n  out: {{value: $draw}}\n"
        );
        std::fs::write(folder.path().join("x.yaml"), yaml).unwrap();
        let output = support::retouch(folder.path(), &["check", "x.yaml"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("families"), "{part} {message}: {text}");
    }
}
