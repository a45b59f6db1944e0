//! The sources of steps to come, called for in one call: nothing of what they give may depend on it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Disk, Noting, bits, data};
use candle_core::{Device, Tensor};
use retouch_diffusion::Result;
use retouch_diffusion::checkpoint::layout::Sources;
use retouch_diffusion::checkpoint::model::{Checkpoint, Description};
use retouch_diffusion::networks::unet::{Call, Text, grid_at};
use retouch_diffusion::sampling::control::{
    Branch, Capture, Captured, CapturedParts, Half, Part, Rows,
};
use retouch_diffusion::sampling::masks::{Plane, Threshold};
use retouch_diffusion::sampling::noise::starting_noise;
use retouch_diffusion::sampling::scheduler::Ddim;
use retouch_diffusion::sampling::swap::{
    Blend, GivenMasks, Givens, Retouch, RetouchSettings, Source, SourceStep, Values, auto_sites,
};
use retouch_diffusion::sampling::{Monitor, NoStore, Prompted, StepStore};
use retouch_graph::Key;

const STEPS: usize = 5;
const PROMPT: &str = "a sks teddy bear on a beach";
const REFERENCE: &str = "a photo of a sks teddy bear";

/// Counts images.
#[derive(Default)]
struct Calls(AtomicUsize);

impl Monitor for Calls {
    fn step(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn unet_calls(&self, images: usize) {
        self.0.fetch_add(images, Ordering::Relaxed);
    }
    fn warn(&self, message: &str) {
        panic!("{message}");
    }
}

fn model(kernel: Arc<Noting>) -> Checkpoint {
    let sources = Sources::of(&data().join("tiny-sd1"));
    let description = Description::read(&sources, &Disk).unwrap();
    Checkpoint::new(description, String::new(), Device::Cpu, kernel)
}

fn latents(seed: u64, side: usize) -> Vec<Tensor> {
    (0..=STEPS as u64)
        .map(|k| starting_noise(seed + k, (1, 4, side, side), &Device::Cpu).unwrap())
        .collect()
}

fn name(branch: Branch, half: Half, k: usize) -> Key {
    let branch = match branch {
        Branch::Context => 1,
        Branch::Reference(index) => 2 + index as u8,
        Branch::Plain | Branch::Target => 0,
    };
    let mut key = [0; 32];
    key[..3].copy_from_slice(&[branch, half as u8, k as u8]);
    Key(key)
}

/// Knows what the sources' calls give.
#[derive(Default)]
struct Knows(HashMap<(Key, Part), Captured>);

impl StepStore for Knows {
    fn call(&self, branch: Branch, half: Half, k: usize) -> Option<Key> {
        (branch != Branch::Target).then(|| name(branch, half, k))
    }
    fn part(&self, call: &Key, part: Part) -> Option<Captured> {
        self.0.get(&(*call, part)).cloned()
    }
}

fn tensors(given: &Captured) -> Vec<&Tensor> {
    match given {
        Captured::KeysValues { k, v, .. } => vec![k, v],
        Captured::Queries(t) | Captured::Map(t) => vec![t],
    }
}

/// What each half of a source's call at step k gives, called alone.
fn alone(
    model: &Checkpoint,
    branch: Branch,
    z: &Tensor,
    ddim: &Ddim,
    k: usize,
    prompt: &str,
    asked: &BTreeSet<(Half, Part)>,
) -> CapturedParts {
    let texts = ["", prompt].map(|text| Text::new(model.encode_prompt(text).unwrap().states));
    let (_, _, h, w) = z.dims4().unwrap();
    let mut capture = Capture::new(asked.clone(), |level| grid_at((h, w), level));
    let call = Call {
        latent: &Tensor::cat(&[z, z], 0).unwrap(),
        timesteps: &[ddim.timesteps()[k] as f32; 2],
        texts: &[&texts[0], &texts[1]],
        addition: None,
        step: k,
        rows: Rows::new(branch, 1, true),
    };
    let unet = model.unet().unwrap();
    unet.forward(call, &mut capture, model.unet_kernel())
        .unwrap();
    capture.finish().unwrap()
}

/// (z_T, images of all calls, images of the largest call) of a retouch of latents of that side.
fn retouch(side: usize, memory: impl Fn(&Checkpoint, &Ddim) -> Knows) -> (Vec<u32>, usize, usize) {
    let kernel = Arc::new(Noting::default());
    let model = model(kernel.clone());
    let sites = model.description().unet.sites();
    let ddim = Ddim::new(&model.description().scheduler, STEPS).unwrap();
    let known = memory(&model, &ddim);
    kernel.images.store(0, Ordering::Relaxed);
    let calls = Calls::default();
    let own = Prompted::new(&model, PROMPT, "", &calls);
    let photo = Prompted::new(&model, REFERENCE, "", &calls);
    let (context, reference) = (latents(100, side), latents(200, side));
    let half = |left: f32, right: f32| {
        let data = (0..side * side).map(|i| if i % side < side / 2 { left } else { right });
        GivenMasks {
            first_step: 0,
            steps: vec![vec![Plane {
                height: side,
                width: side,
                data: data.collect(),
            }]],
        }
    };
    let steps = |draws| vec![SourceStep { draws, span: None }; STEPS];
    let settings = RetouchSettings {
        sites: auto_sites(&sites),
        start_step: 0,
        from_step: 1,
        until_step: STEPS,
        structure_until: 3,
        lock: true,
        blend: Blend::Context,
        values: Values::default(),
        threshold: Threshold::Otsu,
        smooth: 0,
        mask_levels: (0, vec![0]),
        guidance: 4.0,
        rescale: 0.0,
    };
    let given = Givens {
        reference: true,
        context: false,
        blend: true,
        fills: false,
        context_subject: false,
    };
    let retouch = Retouch {
        target: &own,
        target_span: None,
        context: Source {
            trajectory: &context,
            drawers: steps(&own),
            mask: None,
        },
        references: vec![Source {
            trajectory: &reference,
            drawers: steps(&photo),
            mask: Some(half(1.0, 0.0)),
        }],
        blend_mask: Some(half(0.0, 1.0)),
        needs: (0..STEPS)
            .map(|k| settings.needs(k, STEPS, given))
            .collect(),
        settings,
    };
    let drawn = match known.0.is_empty() {
        true => retouch.run(&ddim, &calls, &NoStore),
        false => retouch.run(&ddim, &calls, &known),
    };
    let most = kernel.images.load(Ordering::Relaxed);
    let z = drawn.unwrap().trajectory.pop().unwrap();
    (bits(&z), calls.0.into_inner(), most)
}

#[test]
fn sources_called_for_together_give_the_picture_of_sources_called_for_one_by_one() {
    let side = 8;
    let known = |model: &Checkpoint, ddim: &Ddim| {
        let sites = auto_sites(&model.description().unet.sites());
        let asked: BTreeSet<(Half, Part)> = (sites.iter())
            .flat_map(|&site| [Part::KeysValues(site), Part::Queries(site)])
            .flat_map(|part| [(Half::Unconditional, part), (Half::Conditional, part)])
            .collect();
        let mut known = Knows::default();
        for (branch, seed, prompt) in [
            (Branch::Context, 100, PROMPT),
            (Branch::Reference(0), 200, REFERENCE),
        ] {
            for (k, z) in latents(seed, side).iter().enumerate().take(STEPS) {
                for ((half, part), given) in alone(model, branch, z, ddim, k, prompt, &asked) {
                    assert!(tensors(&given).iter().all(|t| t.dims()[0] == 1));
                    known.0.insert((name(branch, half, k), part), given);
                }
            }
        }
        known
    };
    let (one_by_one, calls, _) = retouch(side, known);
    assert_eq!(calls, 2 * STEPS, "the target's alone");
    let (together, calls, most) = retouch(side, |_, _| Knows::default());
    // The context at each step, the photo from the second on.
    assert_eq!(calls, 2 * (STEPS + STEPS + STEPS - 1));
    // All sources of all steps in one call, two images each: 64 of 8x8 pixels would do.
    assert_eq!(most, 2 * (STEPS + STEPS - 1));
    assert_eq!(together, one_by_one);
}

#[test]
fn large_latents_are_called_for_one_by_one() {
    // Four images of 40x40 pixels are more than the 4096 that are called for together.
    let (_, calls, most) = retouch(40, |_, _| Knows::default());
    assert_eq!((calls, most), (2 * (3 * STEPS - 1), 2));
}
