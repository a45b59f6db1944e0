//! The names that single-file checkpoints give to tensors (the layout of the original latent-diffusion code, "LDM"),
//! from those of diffusers and transformers.
//!
//! | network | prefix |
//! | --- | --- |
//! | U-Net | `model.diffusion_model.` |
//! | VAE | `first_stage_model.` |
//! | text encoder of Stable Diffusion 1, CLIP's own names | `cond_stage_model.transformer.` |
//! | text encoder of Stable Diffusion 2, OpenCLIP's names | `cond_stage_model.model.` |
//! | text encoders of Stable Diffusion XL | `conditioner.embedders.0.transformer.`, `conditioner.embedders.1.model.` |
//! | the same as stable-diffusion.cpp writes them, CLIP's names | `cond_stage_model.transformer.`, `cond_stage_model.1.transformer.` |

use crate::checkpoint::weights::Stored;
use crate::networks::unet::UnetConfig;
use crate::networks::vae::VaeConfig;

/// The prefix of the U-Net.
pub const UNET: &str = "model.diffusion_model.";
/// The prefix of the VAE.
pub const VAE: &str = "first_stage_model.";
/// The prefix of the text encoder of Stable Diffusion 1, CLIP's names.
pub const CLIP: &str = "cond_stage_model.transformer.";
/// The prefix of the text encoder of Stable Diffusion 2, OpenCLIP's names.
pub const OPEN_CLIP: &str = "cond_stage_model.model.";

/// The prefix that stable-diffusion.cpp gives to the second text encoder of Stable Diffusion XL, CLIP's names.
pub const CLIP_G_CPP: &str = "cond_stage_model.1.transformer.";

/// A name split into its first part and the rest.
fn head(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((name, ""))
}

/// A name that begins with a number, as the number and the rest.
fn number(name: &str) -> Option<(usize, &str)> {
    let (first, rest) = head(name);
    Some((first.parse().ok()?, rest))
}

/// Replaces the first of these layers that the name is in: `norm1.weight` in `("norm1", "in_layers.0")`.
fn replaced(name: &str, layers: &[(&str, &str)]) -> Option<String> {
    layers.iter().find_map(|(ours, theirs)| {
        let rest = name.strip_prefix(ours)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{theirs}{rest}"))
    })
}

/// The U-Net's layers inside a ResNet block.
const UNET_RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// The name in the file of a tensor (or layer) of the U-Net, without the prefix; `None` for one that LDM does not have.
#[must_use]
pub fn unet(name: &str, config: &UnetConfig) -> Option<String> {
    let outside = [
        ("conv_in", "input_blocks.0.0"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
    ];
    if let Some(found) = replaced(name, &outside) {
        return Some(found);
    }
    let (block, rest) = head(name);
    match block {
        "mid_block" => {
            let (kind, rest) = head(rest);
            let (index, rest) = number(rest)?;
            match kind {
                "resnets" => Some(format!(
                    "middle_block.{}.{}",
                    2 * index,
                    replaced(rest, &UNET_RESNET)?
                )),
                "attentions" => Some(format!("middle_block.1.{rest}")),
                _ => None,
            }
        }
        "down_blocks" => {
            let (level, rest) = number(rest)?;
            // Each level is its layers and, but for the last, a convolution that halves the grid.
            let first: usize = 1 + (0..level).map(|l| config.layers_at(l) + 1).sum::<usize>();
            let (kind, rest) = head(rest);
            let (index, rest) = number(rest)?;
            match kind {
                "resnets" => Some(format!(
                    "input_blocks.{}.0.{}",
                    first + index,
                    replaced(rest, &UNET_RESNET)?
                )),
                "attentions" => Some(format!("input_blocks.{}.1.{rest}", first + index)),
                "downsamplers" => Some(format!(
                    "input_blocks.{}.0.{}",
                    first + config.layers_at(level),
                    replaced(rest, &[("conv", "op")])?
                )),
                _ => None,
            }
        }
        "up_blocks" => {
            let (up, rest) = number(rest)?;
            let levels = config.block_out_channels.len();
            let layers = |up: usize| Some(config.layers_at(levels.checked_sub(up + 1)?) + 1);
            let first = (0..up).map(layers).sum::<Option<usize>>()?;
            let (kind, rest) = head(rest);
            let (index, rest) = number(rest)?;
            let attends = config.up_block_types.get(up)? == "CrossAttnUpBlock2D";
            match kind {
                "resnets" => Some(format!(
                    "output_blocks.{}.0.{}",
                    first + index,
                    replaced(rest, &UNET_RESNET)?
                )),
                "attentions" => Some(format!("output_blocks.{}.1.{rest}", first + index)),
                // The convolution that doubles the grid follows what the last layer of the level has.
                "upsamplers" => Some(format!(
                    "output_blocks.{}.{}.{rest}",
                    first + layers(up)? - 1,
                    if attends { 2 } else { 1 }
                )),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The name in the file of a tensor of the VAE, without the prefix.
#[must_use]
pub fn vae(name: &str, config: &VaeConfig) -> Option<String> {
    let (half, rest) = head(name);
    if half == "quant_conv" || half == "post_quant_conv" {
        return Some(name.to_owned());
    }
    let levels = config.block_out_channels.len();
    let resnet = [("conv_shortcut", "nin_shortcut")];
    let in_resnet = |rest: &str| replaced(rest, &resnet).unwrap_or_else(|| rest.to_owned());
    let inside = if let Some(found) = replaced(rest, &[("conv_norm_out", "norm_out")]) {
        found
    } else {
        let (block, rest) = head(rest);
        match block {
            "conv_in" | "conv_out" => format!("{block}.{rest}"),
            "mid_block" => {
                let (kind, rest) = head(rest);
                let (index, rest) = number(rest)?;
                match kind {
                    "resnets" => format!("mid.block_{}.{}", index + 1, in_resnet(rest)),
                    "attentions" => {
                        let layers = [
                            ("group_norm", "norm"),
                            ("to_q", "q"),
                            ("to_k", "k"),
                            ("to_v", "v"),
                            ("to_out.0", "proj_out"),
                        ];
                        format!("mid.attn_1.{}", replaced(rest, &layers)?)
                    }
                    _ => return None,
                }
            }
            "down_blocks" | "up_blocks" => {
                let (level, rest) = number(rest)?;
                let (kind, rest) = head(rest);
                let (index, rest) = number(rest)?;
                // Levels of the decoder are counted from the finest too.
                let (way, level) = if block == "down_blocks" {
                    ("down", level)
                } else {
                    ("up", levels.checked_sub(level + 1)?)
                };
                match kind {
                    "resnets" => format!("{way}.{level}.block.{index}.{}", in_resnet(rest)),
                    "downsamplers" => format!("{way}.{level}.downsample.{rest}"),
                    "upsamplers" => format!("{way}.{level}.upsample.{rest}"),
                    _ => return None,
                }
            }
            _ => return None,
        }
    };
    Some(format!("{half}.{inside}"))
}

/// How a tensor is cut out of the one that OpenCLIP has in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It is the same.
    Whole,
    /// It is one third of its rows, counted from 0: query, key and value lie in one tensor.
    Third(usize),
    /// Its two dimensions are exchanged.
    Transposed,
}

impl Cut {
    /// The tensor, cut out of `whole`; `None` when that has not such a shape.
    #[must_use]
    pub fn of(self, whole: &Stored) -> Option<Stored> {
        match self {
            Self::Whole => Some(whole.clone()),
            Self::Third(index) => {
                let rows = *whole.shape.first()?;
                if rows % 3 != 0 {
                    return None;
                }
                whole.rows(rows / 3 * index, rows / 3)
            }
            Self::Transposed => whole.transposed(),
        }
    }
}

/// The tensor in which stable-diffusion.cpp keeps query, key and value of OpenCLIP together, by transformers' names, for one
/// of the three.
#[must_use]
pub fn fused(name: &str) -> Option<(String, Cut)> {
    let (layer, rest) = name.split_once(".self_attn.")?;
    let (own, kind) = rest.split_once("_proj.")?;
    let third = ["q", "k", "v"].iter().position(|known| *known == own)?;
    Some((
        format!("{layer}.self_attn.in_proj.{kind}"),
        Cut::Third(third),
    ))
}

/// The name that OpenCLIP has for a tensor of transformers' text encoder, without the prefix, and how it is cut out.
#[must_use]
pub fn open_clip(name: &str) -> Option<(String, Cut)> {
    let name = crate::checkpoint::weights::bare(name);
    let whole = |name: String| Some((name, Cut::Whole));
    match name {
        "embeddings.token_embedding.weight" => return whole("token_embedding.weight".into()),
        "embeddings.position_embedding.weight" => return whole("positional_embedding".into()),
        "text_projection.weight" => return Some(("text_projection".into(), Cut::Transposed)),
        _ => {}
    }
    if let Some(found) = replaced(name, &[("final_layer_norm", "ln_final")]) {
        return whole(found);
    }
    let (layer, rest) = number(name.strip_prefix("encoder.layers.")?)?;
    let block = format!("transformer.resblocks.{layer}");
    for (third, layer) in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        .into_iter()
        .enumerate()
    {
        match rest.strip_prefix(layer) {
            Some(".weight") => {
                return Some((format!("{block}.attn.in_proj_weight"), Cut::Third(third)));
            }
            Some(".bias") => {
                return Some((format!("{block}.attn.in_proj_bias"), Cut::Third(third)));
            }
            _ => {}
        }
    }
    let layers = [
        ("self_attn.out_proj", "attn.out_proj"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ];
    whole(format!("{block}.{}", replaced(rest, &layers)?))
}
