//! Each network alone, against numbers that diffusers and transformers made (tests/oracle).

// The lints spare functions marked as tests, and not the functions that they share.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_nodes::diffusion::checkpoint::{Checkpoint, Description};
use retouch_nodes::diffusion::control::{
    AttentionControl, AttentionKind, Branch, Qkv, Rows, Site, Untouched,
};
use retouch_nodes::diffusion::layout::Sources;
use retouch_nodes::diffusion::unet::{Call, grid_at};
use retouch_nodes::diffusion::{Result, sampling};
use retouch_nodes::kernels::{Cpu, Kernel, Plain};
use support::{Disk, FAMILIES, MODULE, assert_close, data, expected};

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
                context: &expected["unet_context"],
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
        context: &expected["unet_context"],
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
    assert_eq!(sampling::auto_sites(&sites), (10..16).collect());
}
