//! Each network alone, against numbers that diffusers and transformers made (tests/oracle).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use retouch_diffusion::checkpoint::export;
use retouch_diffusion::checkpoint::layout::Sources;
use retouch_diffusion::checkpoint::model::{Checkpoint, Description};
use retouch_diffusion::networks::tiles::Tiling;
use retouch_diffusion::networks::unet::{Call, Text, grid_at};
use retouch_diffusion::sampling;
use retouch_diffusion::sampling::control::{
    AttentionControl, AttentionKind, Branch, Qkv, Rows, Site, Untouched,
};
use retouch_diffusion::sampling::noise::starting_noise;
use retouch_diffusion::sampling::solver::{Sampler, Schedule};
use retouch_diffusion::sampling::{Drawing, Monitor, NoStore, Prompted};
use retouch_diffusion::{Error, Result};
use retouch_graph::{Cancel, interrupt};
use retouch_kernels::{Cpu, Kernel, Plain};
use retouch_nodes::latent::{Decode, EncodeReference, decode, encode_reference};
use retouch_nodes::payload::Image;
use serde_json::{Value as Json, json};

use crate::support::{
    self, Disk, FAMILIES, MODULE, Noting, Stage, assert_close, data, expected, latent_of, node,
};

fn model(folder: &Path, kernel: Arc<dyn Kernel>) -> Checkpoint {
    let description = Description::read(&Sources::of(folder), &Disk).unwrap();
    Checkpoint::new(description, String::new(), Device::Cpu, kernel)
}

fn kernels() -> [Arc<dyn Kernel>; 2] {
    [Arc::new(Cpu::default()), Arc::new(Plain)]
}

const PROMPT: &str = "a sks teddy bear on a beach";

#[test]
fn the_text_encoder_gives_the_states_of_transformers() {
    for family in FAMILIES {
        let expected = expected(family);
        for kernel in kernels() {
            let model = model(&data().join(family), kernel);
            for (name, prompt) in [("text", PROMPT), ("text_empty", "")] {
                let encoded = model.encode_prompt(prompt).unwrap();
                let (states, cut) = (encoded.states, encoded.cut);
                assert_eq!(cut, 0);
                assert_close(
                    &format!("{family} {name}"),
                    &states,
                    &expected[name],
                    MODULE,
                );
            }
        }
    }
}

#[test]
fn the_unet_gives_what_that_of_diffusers_gives_at_two_timesteps_and_off_the_square() {
    for family in FAMILIES {
        let expected = expected(family);
        for kernel in kernels() {
            let model = model(&data().join(family), kernel);
            let rows = Rows::new(Branch::Plain, 2, false);
            let call = Call {
                addition: None,
                latent: &expected["unet_in"],
                timesteps: &[981.0, 401.0],
                texts: &[&Text::new(expected["unet_context"].clone())],
                step: 0,
                rows,
            };
            let out = model
                .unet()
                .unwrap()
                .forward(call, &mut Untouched, model.kernel());
            assert_close(
                &format!("{family} unet"),
                &out.unwrap(),
                &expected["unet_out"],
                MODULE,
            );
        }
    }
}

#[test]
fn what_is_cancelled_ends_before_the_next_layer_or_weight_and_leaves_nothing_that_is_used_later() {
    type Work = fn(&Checkpoint) -> Result<Tensor>;
    fn zeros(shape: (usize, usize, usize, usize)) -> Tensor {
        Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap()
    }
    let works: [(&str, Work); 4] = [
        ("a call of the U-Net", |model| {
            let expected = expected("tiny-sd1");
            let call = Call {
                addition: None,
                latent: &expected["unet_in"],
                timesteps: &[981.0, 401.0],
                texts: &[&Text::new(expected["unet_context"].clone())],
                step: 0,
                rows: Rows::new(Branch::Plain, 2, false),
            };
            let unet = model.unet()?;
            unet.forward(call, &mut Untouched, model.unet_kernel())
        }),
        ("the text encoder", |model| {
            Ok(model.encode_prompt(PROMPT)?.states)
        }),
        ("the VAE's decoder", |model| {
            model.vae()?.decode(&zeros((1, 4, 8, 8)), model.kernel())
        }),
        ("the VAE's encoder", |model| {
            let picture = zeros((1, 3, 64, 64));
            model.vae()?.encode_mean(&picture, model.kernel())
        }),
    ];
    for (what, work) in works {
        let kernel = Arc::new(Noting::default());
        let fresh = || model(&data().join("tiny-sd1"), kernel.clone());
        let count = || kernel.done.swap(0, Ordering::Relaxed);
        let loaded = fresh();
        let whole = work(&loaded).unwrap();
        let of_both = count();
        let again = work(&loaded).unwrap();
        let layers = count();
        assert_eq!(support::bits(&again), support::bits(&whole));
        let weights = of_both - layers;
        assert!(layers > 10 && weights > 10, "{what}: {layers} {weights}");
        // Loading comes first: what is cancelled at the weight of that number reads no other.
        for (model, at) in [
            (fresh(), 1),
            (fresh(), weights / 2),
            (loaded, 1),
            (fresh(), weights + layers / 2),
            (fresh(), of_both - 1),
        ] {
            let cancel = Cancel::new();
            *kernel.cancels.lock().unwrap() = Some((at, cancel.clone()));
            let ended = interrupt::within(&cancel, || work(&model));
            assert!(
                matches!(ended, Err(Error::Cancelled)),
                "{what} at {at}: {ended:?}"
            );
            assert_eq!(count(), at, "{what}: nothing after what was under way");
            *kernel.cancels.lock().unwrap() = None;
            // The same model goes on to give what it would have given.
            let after = work(&model).unwrap();
            assert_eq!(
                support::bits(&after),
                support::bits(&whole),
                "{what} at {at}"
            );
            count();
        }
    }
}

/// Follows the writing of a model, and ends it at a piece.
struct Pieces {
    at: usize,
    told: Mutex<Vec<(u64, u64)>>,
}

impl export::Follow for Pieces {
    fn is_cancelled(&self) -> bool {
        self.told.lock().unwrap().len() >= self.at
    }

    fn wrote(&self, bytes: u64, total: u64) {
        self.told.lock().unwrap().push((bytes, total));
    }
}

#[test]
fn whoever_follows_the_writing_of_a_model_hears_of_every_byte_and_can_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, at: usize| {
        let target = folder.path().join(name);
        std::fs::create_dir(&target).unwrap();
        let follow = Pieces {
            at,
            told: Mutex::default(),
        };
        let precision = export::Precision::F16;
        let made = export::make(export::Family::Tiny, 0, precision, &target, &follow);
        (made, follow.told.into_inner().unwrap())
    };
    let (made, told) = write("whole", usize::MAX);
    let made = made.unwrap();
    assert!(told.len() > 10, "{}", told.len());
    let written: u64 = told.iter().map(|(bytes, _)| bytes).sum();
    let total = told[0].1;
    // The headers of the files are written too, and are no part of the model's numbers.
    assert_eq!(written, made.bytes);
    assert!(
        total <= written && written < total + (1 << 20),
        "{written} of {total}"
    );
    assert!(told.iter().all(|(_, one)| *one == total));
    let (ended, told) = write("ended", 5);
    assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    assert_eq!(told.len(), 5, "nothing is written any more");
}

/// Notes how many products of texts there are before each step and after the last.
struct Steps(Arc<Noting>, Mutex<Vec<usize>>);

/// How many products with 77 tokens there were: the networks have no grid of 77 pixels.
fn of_texts(kernel: &Noting) -> usize {
    let products = kernel.products.lock().unwrap();
    products.iter().filter(|&&tokens| tokens == 77).count()
}

impl Monitor for Steps {
    fn step(&self, _: usize, _: usize) -> Result<()> {
        self.1.lock().unwrap().push(of_texts(&self.0));
        Ok(())
    }
    fn unet_calls(&self, _: usize) {}
    fn warn(&self, message: &str) {
        panic!("{message}");
    }
}

#[test]
fn keys_and_values_of_a_prompt_are_made_once_a_run_whatever_the_batch() {
    for guidance in [5.0, 1.0] {
        let kernel = Arc::new(Noting::default());
        let model = model(&data().join("tiny-sd1"), kernel.clone());
        for prompt in [PROMPT, ""] {
            model.encode_prompt(prompt).unwrap();
        }
        let encoding = of_texts(&kernel);
        let steps = Steps(kernel, Mutex::default());
        let scheduler = &model.description().scheduler;
        let sampler = Sampler::new(scheduler, Schedule::plain(3)).unwrap();
        let prompted = Prompted::new(&model, PROMPT, "", &steps);
        let drawn = sampling::step_blend_sample(
            &prompted,
            &prompted,
            &noise((2, 4, 16, 16)),
            0,
            &Drawing::plain(&sampler, guidance),
            &steps,
            &NoStore,
        );
        drawn.unwrap();
        let halves = if guidance == 1.0 { 1 } else { 2 };
        // 16 sites, keys and values.
        let all = encoding + encoding + halves * 16 * 2;
        assert_eq!(*steps.1.lock().unwrap(), [encoding, all, all, all]);
    }
}

#[test]
fn a_text_that_was_used_gives_the_bits_of_a_new_one_in_every_network_and_batch() {
    let kernel: Arc<dyn Kernel> = Arc::new(Cpu::default());
    let vanilla = model(&data().join("tiny-sd1"), kernel.clone());
    let sources = Sources {
        unet: Some(data().join("tiny-sd1-personal/unet")),
        ..Sources::of(&data().join("tiny-sd1"))
    };
    let description = Description::read(&sources, &Disk).unwrap();
    let personal = Checkpoint::new(description, String::new(), Device::Cpu, kernel);
    let states = [PROMPT, ""].map(|prompt| vanilla.encode_prompt(prompt).unwrap().states);
    let latent = noise((6, 4, 12, 20));
    let of = |model: &Checkpoint, negative: &Text, prompt: &Text| {
        let call = Call {
            addition: None,
            latent: &latent,
            timesteps: &[401.0; 6],
            texts: &[negative, prompt],
            step: 0,
            rows: Rows::new(Branch::Plain, 3, true),
        };
        let unet = model.unet().unwrap();
        let out = unet.forward(call, &mut Untouched, model.kernel());
        bits(&out.unwrap())
    };
    let used = states.each_ref().map(|states| Text::new(states.clone()));
    let mut outputs = Vec::new();
    for model in [&vanilla, &personal, &vanilla] {
        let each = |states: &Tensor| Text::new(states.repeat((3, 1, 1)).unwrap());
        let expected = of(model, &each(&states[1]), &each(&states[0]));
        assert_eq!(of(model, &used[1], &used[0]), expected);
        assert_eq!(of(model, &used[1], &used[0]), expected);
        outputs.push(expected);
    }
    assert_ne!(outputs[0], outputs[1]);
    let call = Call {
        addition: None,
        latent: &latent,
        timesteps: &[401.0; 6],
        texts: &[&used[0]],
        step: 0,
        rows: Rows::new(Branch::Plain, 3, true),
    };
    let unet = vanilla.unet().unwrap();
    let refused = unet.forward(call, &mut Untouched, vanilla.kernel());
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("1 texts of 3 images each and 6 timesteps for a call of 6 rows")
    );
    // Nor with as many rows as the one text serves: the control is told of two halves.
    let call = Call {
        addition: None,
        latent: &latent.narrow(0, 0, 3).unwrap(),
        timesteps: &[401.0; 3],
        texts: &[&used[0]],
        step: 0,
        rows: Rows::new(Branch::Plain, 3, true),
    };
    assert!(
        unet.forward(call, &mut Untouched, vanilla.kernel())
            .is_err()
    );
}

#[test]
fn the_vae_encodes_and_decodes_as_that_of_diffusers() {
    for family in FAMILIES {
        let expected = expected(family);
        for kernel in kernels() {
            let model = model(&data().join(family), kernel);
            let vae = model.vae().unwrap();
            let mean = vae.encode_mean(&expected["image"], model.kernel()).unwrap();
            assert_close(
                &format!("{family} encode"),
                &mean,
                &expected["vae_mean"],
                MODULE,
            );
            let decoded = vae.decode(&expected["noise"], model.kernel()).unwrap();
            assert_close(
                &format!("{family} decode"),
                &decoded,
                &expected["vae_decoded"],
                MODULE,
            );
        }
    }
}

#[test]
fn the_vae_agrees_with_that_of_candle_transformers() {
    use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
    let family = "tiny-sd1";
    let ours = model(&data().join(family), Arc::new(Cpu::default()));
    let config = ours.vae().unwrap().config().clone();
    let file = data()
        .join(family)
        .join("vae/diffusion_pytorch_model.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    // Its attention keeps the names of old diffusers.
    let rename = [
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    ];
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let name = rename
                .iter()
                .fold(name, |name, (from, to)| name.replace(from, to));
            (name, tensor.to_dtype(candle_core::DType::F32).unwrap())
        })
        .collect();
    let vs = candle_nn::VarBuilder::from_tensors(tensors, candle_core::DType::F32, &Device::Cpu);
    let theirs = AutoEncoderKL::new(
        vs,
        3,
        3,
        AutoEncoderKLConfig {
            block_out_channels: config.block_out_channels.clone(),
            layers_per_block: config.layers_per_block,
            latent_channels: config.latent_channels,
            norm_num_groups: config.norm_num_groups,
            use_quant_conv: true,
            use_post_quant_conv: true,
        },
    )
    .unwrap();
    let noise = &expected(family)["noise"];
    let a = ours.vae().unwrap().decode(noise, &Cpu::default()).unwrap();
    assert_close("candle's VAE", &a, &theirs.decode(noise).unwrap(), MODULE);
}

fn bits(t: &Tensor) -> Vec<u32> {
    let numbers: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
    numbers.into_iter().map(f32::to_bits).collect()
}

fn noise(shape: (usize, usize, usize, usize)) -> Tensor {
    starting_noise(5, shape, &Device::Cpu).unwrap()
}

#[test]
fn the_vae_on_tiles_gives_what_that_of_diffusers_gives_on_tiles() {
    let expected = expected("tiles");
    let tiling = Tiling::new(8, 2).unwrap();
    for kernel in kernels() {
        let model = model(&data().join("tiny-sd1"), kernel);
        let (vae, kernel) = (model.vae().unwrap(), model.kernel());
        let decoded = vae.decode_tiled(&expected["latent"], tiling, kernel);
        let decoded = decoded.unwrap();
        assert_close("decode", &decoded, &expected["decoded"], MODULE);
        let mean = vae.encode_mean_tiled(&expected["decoded"], tiling, kernel);
        assert_close("encode", &mean.unwrap(), &expected["mean"], MODULE);
    }
}

#[test]
fn one_tile_that_covers_everything_gives_the_bits_of_the_whole() {
    let model = model(&data().join("tiny-sd1"), Arc::new(Cpu::default()));
    let (vae, kernel) = (model.vae().unwrap(), model.kernel());
    let latent = noise((2, 4, 11, 16));
    let whole = vae.decode(&latent, kernel).unwrap();
    let mean = vae.encode_mean(&whole, kernel).unwrap();
    for (tile, overlap) in [(16, 4), (64, 16), (17, 0)] {
        let tiling = Tiling::new(tile, overlap).unwrap();
        let one = vae.decode_tiled(&latent, tiling, kernel).unwrap();
        assert_eq!(one.dims(), whole.dims());
        assert_eq!(bits(&one), bits(&whole));
        let one = vae.encode_mean_tiled(&whole, tiling, kernel).unwrap();
        assert_eq!(one.dims(), mean.dims());
        assert_eq!(bits(&one), bits(&mean));
    }
}

#[test]
fn an_image_of_a_batch_on_tiles_is_the_single_image_bit_for_bit() {
    let model = model(&data().join("tiny-sd1"), Arc::new(Cpu::default()));
    let (vae, kernel) = (model.vae().unwrap(), model.kernel());
    let (latents, tiling) = (noise((3, 4, 13, 9)), Tiling::new(8, 2).unwrap());
    let pictures = vae.decode_tiled(&latents, tiling, kernel).unwrap();
    let means = vae.encode_mean_tiled(&pictures, tiling, kernel).unwrap();
    for b in 0..3 {
        let of = |t: &Tensor| t.narrow(0, b, 1).unwrap();
        let picture = vae.decode_tiled(&of(&latents), tiling, kernel).unwrap();
        assert_eq!(bits(&picture), bits(&of(&pictures)));
        let mean = vae.encode_mean_tiled(&of(&pictures), tiling, kernel);
        assert_eq!(bits(&mean.unwrap()), bits(&of(&means)));
    }
}

#[test]
fn on_tiles_the_vae_works_on_no_more_than_one_tile_at_a_time() {
    let tiling = Tiling::new(8, 2).unwrap();
    let most = |shape| {
        let kernel = Arc::new(Noting::default());
        let model = model(&data().join("tiny-sd1"), kernel.clone());
        let vae = model.vae().unwrap();
        let picture = vae.decode_tiled(&noise(shape), tiling, model.kernel());
        let decoding = kernel.largest.swap(0, Ordering::Relaxed);
        vae.encode_mean_tiled(&picture.unwrap(), tiling, model.kernel())
            .unwrap();
        assert_eq!(kernel.images.load(Ordering::Relaxed), 1);
        (decoding, kernel.largest.load(Ordering::Relaxed))
    };
    let one = most((1, 4, 8, 8));
    // The finest level has 16 channels, of 64x64 pixels in a tile.
    assert_eq!(one, (16 * 64 * 64, 16 * 64 * 64));
    assert_eq!(most((1, 4, 26, 41)), one);
    assert_eq!(most((3, 4, 26, 9)), one);
}

#[test]
fn decode_takes_tiles_above_768_pixels_or_as_it_is_told() {
    let stage = Stage::default();
    let model = stage.model("tiny-sd1", false);
    let decode = |parameters: Json, z: &Tensor| {
        let inputs = decode::Inputs {
            model: model.clone(),
            latent: latent_of(z),
        };
        let out = stage.run(&node::<Decode>(parameters), inputs);
        bits(&out.unwrap().image.rgb)
    };
    let tiled = |how: &str| json!({"tiled": how});
    let wide = noise((1, 4, 16, 80));
    let whole = decode(tiled("never"), &wide);
    assert_eq!(decode(json!({}), &wide), whole);
    assert_ne!(decode(tiled("always"), &wide), whole);
    let large = noise((2, 4, 80, 116));
    let tiles = decode(json!({}), &large);
    let second = large.narrow(0, 1, 1).unwrap();
    assert_eq!(decode(tiled("always"), &second), tiles[tiles.len() / 2..]);
    assert_ne!(decode(tiled("never"), &second), tiles[tiles.len() / 2..]);
    // What is left out has the key that it had before there were tiles.
    for (parameters, kept) in [
        (json!({}), json!({})),
        (tiled("auto"), json!({})),
        (tiled("never"), tiled("never")),
    ] {
        let node = node::<Decode>(parameters);
        assert_eq!(serde_json::to_value(node).unwrap(), kept);
    }
}

#[test]
fn encode_reference_takes_tiles_above_768_pixels_or_as_it_is_told() {
    let stage = Stage::default();
    let model = stage.model("tiny-sd1", false);
    let photo = (&expected("tiny-sd1")["image"] + 1.0).unwrap() * 0.5;
    let photo = photo.unwrap().repeat((2, 1, 1, 1)).unwrap();
    let image = Arc::new(Image::new(photo, None).unwrap());
    let encode = |parameters: Json| {
        let inputs = encode_reference::Inputs {
            model: model.clone(),
            image: image.clone(),
            mask: retouch_graph::Added(None),
        };
        let out = stage.run(&node::<EncodeReference>(parameters), inputs);
        bits(&out.unwrap().latent.tensor)
    };
    let wide = |how: &str| encode(json!({"width": 640, "height": 128, "tiled": how}));
    assert_eq!(wide("auto"), wide("never"));
    assert_ne!(wide("auto"), wide("always"));
    let large = |how: &str| encode(json!({"width": 928, "height": 640, "tiled": how}));
    let tiles = large("auto");
    assert_eq!(tiles, large("always"));
    assert_ne!(tiles, large("never"));
    // Both pictures of the batch are the same one.
    assert_eq!(tiles[..tiles.len() / 2], tiles[tiles.len() / 2..]);
    let node = node::<EncodeReference>(json!({"width": 768}));
    let kept = json!({"width": 768, "height": null});
    assert_eq!(serde_json::to_value(node).unwrap(), kept);
}

/// Notes every site that it is asked about.
#[derive(Default)]
struct Notes(BTreeMap<usize, (usize, usize)>, usize);

impl AttentionControl for Notes {
    fn attend(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<Tensor> {
        match site.kind {
            AttentionKind::SelfAttention => {
                assert_eq!(site.index, self.0.len(), "sites come in running order");
                self.0.insert(site.index, site.grid);
            }
            AttentionKind::CrossAttention => self.1 += 1,
        }
        qkv.attend(kernel)
    }
}

#[test]
fn sites_are_numbered_in_running_order_and_known_from_the_configuration() {
    let model = model(&data().join("tiny-sd1"), Arc::new(Cpu::default()));
    let mut notes = Notes::default();
    let expected = expected("tiny-sd1");
    let rows = Rows::new(Branch::Plain, 2, false);
    let call = Call {
        addition: None,
        latent: &expected["unet_in"],
        timesteps: &[981.0, 401.0],
        texts: &[&Text::new(expected["unet_context"].clone())],
        step: 0,
        rows,
    };
    model
        .unet()
        .unwrap()
        .forward(call, &mut notes, &Cpu::default())
        .unwrap();
    let sites = model.description().unet.sites();
    assert_eq!((sites.len(), notes.1), (16, 16));
    for site in &sites {
        assert_eq!(
            notes.0[&site.index],
            grid_at((12, 20), site.level),
            "site {}",
            site.index
        );
    }
    // Stable Diffusion 1.x and 2.x: 0-5 down, 6 mid, 7-15 up; auto is 10..16.
    assert_eq!(sampling::swap::auto_sites(&sites), (10..16).collect());
}
