//! The map from latents to colours, fitted to the VAE of the demo model, against what that VAE decodes.

use std::path::Path;
use std::sync::Arc;

use crate::support::{Disk, FAMILIES, data};
use candle_core::{Device, Tensor};
use retouch_diffusion::checkpoint::layout::Sources;
use retouch_diffusion::checkpoint::model::{Checkpoint, Description};
use retouch_diffusion::networks::preview::{LinearMap, area_mean, decode_scaled};
use retouch_diffusion::networks::tiles::Tiled;
use retouch_diffusion::sampling::noise::starting_noise;
use retouch_diffusion::sampling::solver::{Sampler, Schedule};
use retouch_diffusion::sampling::{Drawing, Monitor, NoStore, Prompted, step_blend_sample};
use retouch_diffusion::{Error, Result};
use retouch_kernels::Cpu;

fn model(folder: &Path) -> Checkpoint {
    let description = Description::read(&Sources::of(folder), &Disk).unwrap();
    Checkpoint::new(
        description,
        String::new(),
        Device::Cpu,
        Arc::new(Cpu::default()),
    )
}

fn map_of(model: &Checkpoint) -> LinearMap {
    LinearMap::of_vae(&model.vae().unwrap(), &Device::Cpu, model.kernel()).unwrap()
}

struct Quiet;

impl Monitor for Quiet {
    fn step(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn unet_calls(&self, _: usize) {}
    fn warn(&self, message: &str) {
        panic!("{message}");
    }
}

#[test]
fn the_map_explains_nearly_all_of_finished_pictures_and_most_of_unfinished_ones() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/world");
    let model = model(&demo);
    let steps = 12;
    let sampler = Sampler::new(&model.description().scheduler, Schedule::plain(steps)).unwrap();
    let noise = starting_noise(11, (2, 8, 16, 16), &Device::Cpu).unwrap();
    let draws = Prompted::new(&model, "a teddy bear on a beach", "", &Quiet);
    let trajectory = step_blend_sample(
        &draws,
        &draws,
        &noise,
        0,
        &Drawing::plain(&sampler, 4.0),
        &Quiet,
        &NoStore,
    )
    .unwrap();
    let map = map_of(&model);
    let vae = model.vae().unwrap();
    let r_squared = |z: &Tensor| {
        let picture = decode_scaled(&vae, z, Tiled::Auto, model.kernel()).unwrap();
        let picture = area_mean(&picture, vae.config().factor()).unwrap();
        map.r_squared(z, &picture).unwrap()
    };
    let of: Vec<f64> = trajectory.iter().map(r_squared).collect();
    println!("fit {:.3}, states {of:.3?}", map.explained());
    assert!(map.explained() > 0.95, "{}", map.explained());
    assert!(of[steps] > 0.98, "{of:?}");
    assert!(of.iter().all(|&r| r > 0.85), "{of:?}");
    // A map that gives the mean colour alone explains nothing: the measure is one.
    let mean = LinearMap::new(8, [[0.0; 8].as_slice(), &[0.5]].concat().repeat(3), 0.0).unwrap();
    let picture = decode_scaled(&vae, &trajectory[steps], Tiled::Auto, model.kernel()).unwrap();
    let picture = area_mean(&picture, vae.config().factor()).unwrap();
    assert!(mean.r_squared(&trajectory[steps], &picture).unwrap() <= 0.0);
}

#[test]
fn the_map_is_a_function_of_the_vae_alone() {
    let [one, other] = FAMILIES.map(|family| model(&data().join(family)));
    assert_eq!(map_of(&one), map_of(&model(&data().join(FAMILIES[0]))));
    // Another family with the same VAE.
    assert_eq!(map_of(&one), map_of(&other));
    assert_eq!(map_of(&one).channels(), 4);
}

#[test]
fn a_map_that_is_known_is_taken_and_none_is_fitted_twice() {
    let model = model(&data().join(FAMILIES[0]));
    let known = LinearMap::new(4, vec![0.25; 15], 0.5).unwrap();
    let taken = model.linear_map(|| Some(known.clone())).unwrap();
    assert_eq!(*taken, known);
    let again = model.linear_map(|| panic!("it is known already")).unwrap();
    assert!(Arc::ptr_eq(&taken, &again));
    // One that fails is tried again.
    let refused = LinearMap::new(4, vec![0.25; 14], 0.5);
    assert!(matches!(refused, Err(Error::Request { .. })));
}
