//! Models of random weights: for measuring and for tests. What they draw is noise.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::Follow;
use super::convert::{Converted, bytes, clip_tokenizer};
use super::writer::{Precision, Tensor, write};
use crate::checkpoint::published::Published;
use crate::checkpoint::weights::{Weights, bare};
use crate::networks::clip::{ClipTextConfig, load_text};
use crate::networks::unet::{Unet, UnetConfig};
use crate::networks::vae::{Vae, VaeConfig};
use crate::prompt::tokenizer::PadToken;
use crate::sampling::noise::philox4x32_10;
use crate::{Error, Result};

/// The families that can be made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.5.
    Sd15,
    /// Stable Diffusion 2.1 (predicts v).
    Sd21,
    /// Stable Diffusion XL, base.
    Sdxl,
    /// The structure of Stable Diffusion 1.5, a hundredth of its size.
    Tiny,
}

/// Numbers that one task draws: a multiple of what a block of the generator gives.
const PIECE: usize = 1 << 16;
/// Pieces that are drawn before they are written.
const AHEAD: usize = 32;
/// The third word of the generator's counter: that of noise is 0 or 1.
const STREAM: u32 = 2;

struct Configs {
    unet: String,
    texts: Vec<String>,
    vae: String,
    scheduler: &'static str,
    index: Json,
    pads: &'static [PadToken],
}

impl Family {
    fn published(self) -> Published {
        match self {
            Self::Sd15 | Self::Tiny => Published::Sd1,
            Self::Sd21 => Published::Sd2,
            Self::Sdxl => Published::Sdxl,
        }
    }

    fn configs(self) -> Result<Configs> {
        let published = self.published();
        let two = published.text_encoders().len() > 1;
        let mut index = json!({
            "_class_name": if two { "StableDiffusionXLPipeline" } else { "StableDiffusionPipeline" },
            "scheduler": ["diffusers", scheduler_class(published.scheduler())],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        if two {
            index["force_zeros_for_empty_prompt"] = json!(true);
            index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
            index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
        } else {
            index["safety_checker"] = json!([null, null]);
            index["feature_extractor"] = json!([null, null]);
        }
        let texts = published.text_encoders().iter();
        let mut configs = Configs {
            unet: published.unet().to_owned(),
            texts: texts.map(|text| (*text).to_owned()).collect(),
            vae: published.vae().to_owned(),
            scheduler: published.scheduler(),
            index,
            pads: published.pads(),
        };
        if self == Self::Tiny {
            let smaller = |text: &str, changes: Json| -> Result<String> {
                let mut config: Json = parse(text)?;
                if let (Some(config), Some(changes)) = (config.as_object_mut(), changes.as_object())
                {
                    config.extend(changes.clone());
                }
                Ok(format!("{config:#}\n"))
            };
            configs.unet = smaller(
                &configs.unet,
                json!({"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 64,
                       "attention_head_dim": 4, "sample_size": 16}),
            )?;
            configs.vae = smaller(
                &configs.vae,
                json!({"block_out_channels": [32, 32, 32, 32], "sample_size": 128}),
            )?;
            for text in &mut configs.texts {
                *text = smaller(
                    text,
                    json!({"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4,
                           "num_hidden_layers": 3, "projection_dim": 64}),
                )?;
            }
        }
        Ok(configs)
    }
}

fn scheduler_class(config: &str) -> String {
    let config: Option<Json> = serde_json::from_str(config).ok();
    config
        .and_then(|config| Some(config.get("_class_name")?.as_str()?.to_owned()))
        .unwrap_or_default()
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::request(e.to_string()))
}

/// What the numbers of a tensor are drawn from: between plus and minus `reach` about `middle`.
struct Spread {
    middle: f32,
    reach: f32,
}

/// Weights keep the variance of what they are applied to, norms do nothing, embeddings have the spread of CLIP's.
fn spread(name: &str, shape: &[usize]) -> Spread {
    // A uniform number between -sqrt(3) and sqrt(3) has the variance 1.
    let root = 3f32.sqrt();
    if name.contains("embeddings.") {
        return Spread {
            middle: 0.0,
            reach: 0.02 * root,
        };
    }
    match shape {
        [] | [_] if name.ends_with(".weight") => Spread {
            middle: 1.0,
            reach: 0.05,
        },
        [] | [_] => Spread {
            middle: 0.0,
            reach: 0.01,
        },
        [_, inputs @ ..] => {
            let fan_in = inputs.iter().product::<usize>().max(1);
            Spread {
                middle: 0.0,
                reach: root / (fan_in as f32).sqrt(),
            }
        }
    }
}

/// Numbers `first..first + count` of the tensor `tensor`; `first` is a multiple of four.
fn draw(seed: u64, tensor: u32, first: usize, count: usize, spread: &Spread) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut numbers = Vec::with_capacity(count.next_multiple_of(4));
    for block in first / 4..(first + count).div_ceil(4) {
        let counter = [block as u32, tensor, STREAM, (block >> 32) as u32];
        for word in philox4x32_10(counter, key) {
            // 24 bits, which a float32 holds, in the middle of their steps: between -1 and 1.
            let unit = ((word >> 8) as f32 + 0.5) / 8_388_608.0 - 1.0;
            numbers.push(spread.middle + spread.reach * unit);
        }
    }
    numbers.truncate(count);
    numbers
}

/// Writes a model of random weights as a folder in the diffusers layout into `target`, an empty folder.
///
/// # Errors
/// When a file cannot be written.
// Long: one folder, file by file.
pub fn make(
    family: Family,
    seed: u64,
    precision: Precision,
    target: &Path,
    follow: &dyn Follow,
) -> Result<Converted> {
    let configs = family.configs()?;
    let mut done = Converted::default();
    let text = |name: &str, text: &str, done: &mut Converted| -> Result<()> {
        let path = target.join(name);
        let failed = |e: std::io::Error| Error::Config {
            file: path.clone(),
            message: format!("cannot be written: {e}"),
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        fs::write(&path, text).map_err(failed)?;
        done.files.push(name.into());
        Ok(())
    };
    text(
        "model_index.json",
        &format!("{:#}\n", configs.index),
        &mut done,
    )?;
    text(
        "scheduler/scheduler_config.json",
        configs.scheduler,
        &mut done,
    )?;
    let unet: UnetConfig = parse(&configs.unet)?;
    let vae: VaeConfig = parse(&configs.vae)?;
    let mut networks = vec![
        (
            "unet",
            &configs.unet,
            Weights::asked(|w| Unet::load(&unet, w).map(drop))?,
        ),
        (
            "vae",
            &configs.vae,
            Weights::asked(|w| Vae::load(&vae, w).map(drop))?,
        ),
    ];
    for (i, config) in configs.texts.iter().enumerate() {
        let (name, folder) = [
            ("text_encoder", "tokenizer"),
            ("text_encoder_2", "tokenizer_2"),
        ][i.min(1)];
        let parsed: ClipTextConfig = parse(config)?;
        let asked = Weights::asked(|w| load_text(&parsed, i, w).map(drop))?;
        networks.push((name, config, asked));
        let pad = configs.pads.get(i).copied().unwrap_or(PadToken::End);
        for (file, content) in clip_tokenizer(pad)? {
            text(&format!("{folder}/{file}"), &content, &mut done)?;
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    // Tensors differ by their number in the whole model.
    let mut number = 0;
    let mut drawn: Vec<(String, Vec<Tensor<'_>>)> = Vec::new();
    for (name, config, asked) in networks {
        text(&format!("{name}/config.json"), config, &mut done)?;
        let of_text = name.starts_with("text_encoder");
        let tensors: Vec<Tensor<'_>> = asked
            .into_iter()
            .map(|(own, mut shape)| {
                number += 1;
                let is_projection =
                    own.ends_with(".proj_in.weight") || own.ends_with(".proj_out.weight");
                if name == "unet"
                    && is_projection
                    && !unet.use_linear_projection
                    && shape.len() == 2
                {
                    shape.extend([1, 1]);
                }
                let own = if of_text && own != "text_projection.weight" {
                    format!("text_model.{}", bare(&own))
                } else {
                    own
                };
                random(own, shape, seed, number, precision)
            })
            .collect();
        done.tensors += tensors.len();
        let file = if of_text {
            "model.safetensors"
        } else {
            "diffusion_pytorch_model.safetensors"
        };
        drawn.push((format!("{name}/{file}"), tensors));
    }
    let total = drawn.iter().map(|(_, tensors)| bytes(tensors)).sum();
    for (file, tensors) in drawn {
        done.bytes += write(&target.join(&file), tensors, &metadata, total, follow)?;
        done.files.push(file.into());
    }
    done.files.sort();
    Ok(done)
}

fn random<'a>(
    name: String,
    shape: Vec<usize>,
    seed: u64,
    number: u32,
    precision: Precision,
) -> Tensor<'a> {
    let count: usize = shape.iter().product();
    let spread = spread(&name, &shape);
    Tensor {
        name,
        dtype: precision.name().to_owned(),
        shape,
        bytes: count as u64 * precision.bytes(),
        fill: Box::new(move |out: &mut dyn Write| {
            for first in (0..count).step_by(PIECE * AHEAD) {
                let end = count.min(first + PIECE * AHEAD);
                let pieces: Vec<usize> = (first..end).step_by(PIECE).collect();
                let drawn: Vec<Vec<u8>> = pieces
                    .into_par_iter()
                    .map(|from| {
                        let length = PIECE.min(end - from);
                        let mut bytes = Vec::new();
                        precision.append(&draw(seed, number, from, length, &spread), &mut bytes);
                        bytes
                    })
                    .collect();
                for bytes in drawn {
                    out.write_all(&bytes)
                        .map_err(|e| Error::request(format!("cannot be written: {e}")))?;
                }
            }
            Ok(())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(asked: &[(String, Vec<usize>)]) -> u64 {
        let shapes = asked.iter().map(|(_, shape)| shape);
        shapes
            .map(|shape| shape.iter().product::<usize>() as u64)
            .sum()
    }

    #[test]
    fn random_models_have_as_many_numbers_as_the_published_ones() {
        // Counted in the published checkpoints; of OpenCLIP's encoders without the layers that diffusers leaves out.
        for (family, unet, texts, vae) in [
            (Family::Sd15, 859_520_964, vec![123_060_480], 83_653_863),
            (Family::Sd21, 865_910_724, vec![340_387_840], 83_653_863),
            (
                Family::Sdxl,
                2_567_463_684,
                vec![123_060_480, 694_659_840],
                83_653_863,
            ),
        ] {
            let configs = family.configs().unwrap();
            let config: UnetConfig = parse(&configs.unet).unwrap();
            let asked = Weights::asked(|w| Unet::load(&config, w).map(drop)).unwrap();
            assert_eq!(numbers(&asked), unet, "{family:?}");
            let config: VaeConfig = parse(&configs.vae).unwrap();
            let asked = Weights::asked(|w| Vae::load(&config, w).map(drop)).unwrap();
            assert_eq!(numbers(&asked), vae, "{family:?}");
            for (i, (config, count)) in configs.texts.iter().zip(texts).enumerate() {
                let config: ClipTextConfig = parse(config).unwrap();
                let asked = Weights::asked(|w| load_text(&config, i, w).map(drop)).unwrap();
                assert_eq!(numbers(&asked), count, "{family:?} {i}");
            }
        }
    }

    #[test]
    fn a_number_depends_on_its_place_alone() {
        let spread = Spread {
            middle: 0.0,
            reach: 2.0,
        };
        let all = draw(7, 3, 0, 4000, &spread);
        assert_eq!(all[1000..1010], draw(7, 3, 1000, 10, &spread));
        assert_ne!(all[..8], draw(7, 4, 0, 8, &spread));
        assert_ne!(all[..8], draw(8, 3, 0, 8, &spread));
        let mean = all.iter().sum::<f32>() / 4000.0;
        let variance = all.iter().map(|x| x * x).sum::<f32>() / 4000.0;
        // Uniform between -2 and 2: variance 4 / 3.
        assert!(
            mean.abs() < 0.08 && (variance - 4.0 / 3.0).abs() < 0.08,
            "{mean} {variance}"
        );
        assert!(all.iter().all(|x| x.abs() < 2.0));
    }
}
