//! Segment Anything (Kirillov et al. 2023, arXiv 2304.02643) with weights of the user's own: the mask of what points or a box
//! show.
//!
//! The networks are candle-transformers'; here is what is around them: what a file of weights is, names, prompts with a
//! box, and the choice among the masks that the network gives.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::{Module, VarBuilder};
use candle_transformers::models::segment_anything::{
    image_encoder::ImageEncoderViT,
    mask_decoder::MaskDecoder,
    prompt_encoder::PromptEncoder,
    tiny_vit::{TinyViT, tiny_vit_5m},
};

use crate::{Error, Result, goes_on};

/// The mean of each channel of pictures in 0..=255: ImageNet's.
const MEAN: [f32; 3] = [123.675, 116.28, 103.53];

/// The deviation of each channel.
const DEVIATION: [f32; 3] = [58.395, 57.12, 57.375];

/// What is in a picture, in shares of its width and height from its upper left corner.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Points x, y, and whether each is on the subject or beside it.
    pub points: Vec<(f64, f64, bool)>,
    /// Left, top, right and bottom of a box around the subject.
    pub corners: Option<[f64; 4]>,
}

#[derive(Debug)]
enum Encoder {
    Vit(Box<ImageEncoderViT>),
    Tiny(Box<TinyViT>),
}

/// The network.
#[derive(Debug)]
pub struct Sam {
    encoder: Encoder,
    prompts: PromptEncoder,
    decoder: MaskDecoder,
    /// What positions are multiplied with: `[2, C / 2]`.
    positions: Tensor,
    /// What the two corners of a box are marked by: `[1, C]` each.
    corners: [Tensor; 2],
    side: usize,
}

impl Sam {
    /// The network of a file's tensors, by the names of the original code or of transformers. How large it is, the tensors say:
    /// ViT-B, -L and -H, and MobileSAM's TinyViT.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape: the file is no Segment Anything.
    pub fn load(tensors: HashMap<String, Tensor>, device: &Device) -> Result<Self> {
        let is_theirs = tensors
            .keys()
            .any(|name| name.starts_with("vision_encoder."));
        let tensors = match is_theirs {
            true => (tensors.into_iter())
                .map(|(name, tensor)| (original(&name), tensor))
                .collect(),
            false => tensors,
        };
        let shape = Shape::of(&tensors)?;
        let weights = VarBuilder::from_tensors(tensors, DType::F32, device);
        let prompts = weights.pp("prompt_encoder");
        let grid = shape.side / 16;
        let corner = |index: usize| {
            prompts.get(
                (1, shape.width),
                &format!("point_embeddings.{index}.weight"),
            )
        };
        Ok(Self {
            positions: prompts.get(
                (2, shape.width / 2),
                "pe_layer.positional_encoding_gaussian_matrix",
            )?,
            corners: [corner(2)?, corner(3)?],
            encoder: shape.encoder(weights.pp("image_encoder"))?,
            prompts: PromptEncoder::new(
                shape.width,
                (grid, grid),
                (shape.side, shape.side),
                16,
                prompts.clone(),
            )?,
            decoder: MaskDecoder::new(shape.width, 3, 3, 256, weights.pp("mask_decoder"))?,
            side: shape.side,
        })
    }

    /// The longer side of the pictures that it takes.
    #[must_use]
    pub fn side(&self) -> usize {
        self.side
    }

    /// How far each pixel belongs to what the prompt shows, from 0 to 1: a picture `[3, H, W]` in 0..=1, the longer side of
    /// [`Sam::side`] pixels, gives `[H, W]`.
    ///
    /// A single point may mean a part, or the whole that it is a part of: of the three masks that the network then gives the one
    /// is taken that it holds for the best.
    ///
    /// # Errors
    /// When the picture has another size, the prompt is empty, or the run was cancelled.
    pub fn forward(&self, picture: &Tensor, prompt: &Prompt) -> Result<Tensor> {
        let (masks, scores) = self.masks(picture, prompt)?;
        let scores: Vec<f32> = scores.i(0)?.to_vec1()?;
        let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        let (_, height, width) = picture.dims3()?;
        let mask = masks.i((.., best.unwrap_or(0)..best.unwrap_or(0) + 1))?;
        let mask = mask.upsample_bilinear2d(self.side, self.side, false)?;
        Ok(candle_nn::ops::sigmoid(
            &mask.i((0, 0, ..height, ..width))?.contiguous()?,
        )?)
    }

    /// The logits of the masks `[1, M, side / 4, side / 4]` and how good the network holds each to be `[1, M]`.
    ///
    /// # Errors
    /// As [`Sam::forward`].
    pub fn masks(&self, picture: &Tensor, prompt: &Prompt) -> Result<(Tensor, Tensor)> {
        if prompt.points.is_empty() && prompt.corners.is_none() {
            return Err(Error::request(
                "neither a point nor a box specifies the subject",
            ));
        }
        goes_on()?;
        let (_, height, width) = picture.dims3()?;
        if height.max(width) != self.side {
            return Err(Error::request(format!(
                "a picture for this network has a longer side of {} pixels, not {}",
                self.side,
                height.max(width)
            )));
        }
        let constant =
            |values: &[f32; 3]| Tensor::new(values, picture.device())?.reshape((3, 1, 1));
        let pixels = (picture * 255.0)?
            .broadcast_sub(&constant(&MEAN)?)?
            .broadcast_div(&constant(&DEVIATION)?)?
            .pad_with_zeros(1, 0, self.side - height)?
            .pad_with_zeros(2, 0, self.side - width)?
            .unsqueeze(0)?;
        let image = match &self.encoder {
            Encoder::Vit(encoder) => encoder.forward(&pixels)?,
            Encoder::Tiny(encoder) => encoder.forward(&pixels)?,
        };
        goes_on()?;
        let (sparse, dense) = self.embedded(prompt, (width, height))?;
        // Several masks where the prompt may mean several things.
        let several = prompt.corners.is_none() && prompt.points.len() == 1;
        let places = self.prompts.get_dense_pe()?;
        Ok((self.decoder).forward(&image, &places, &sparse, &dense, several)?)
    }

    /// The prompt as tokens `[1, N, C]`, and as what is added to the picture.
    fn embedded(
        &self,
        prompt: &Prompt,
        (width, height): (usize, usize),
    ) -> Result<(Tensor, Tensor)> {
        let device = self.positions.device();
        let scaled = |x: f64, y: f64| [(x * width as f64) as f32, (y * height as f64) as f32];
        let number = prompt.points.len();
        let places: Vec<f32> = (prompt.points.iter())
            .flat_map(|(x, y, _)| scaled(*x, *y))
            .collect();
        let labels: Vec<f32> = (prompt.points.iter())
            .map(|(_, _, on)| f32::from(u8::from(*on)))
            .collect();
        let places = Tensor::from_vec(places, (1, number, 2), device)?;
        let labels = Tensor::from_vec(labels, (1, number), device)?;
        let given = (number > 0).then_some((&places, &labels));
        let (points, dense) = self.prompts.forward(given, None, None)?;
        let Some([left, top, right, bottom]) = prompt.corners else {
            return Ok((points, dense));
        };
        // candle-transformers lays a box's two corners into one token. With a box no point stands for "none".
        let mut tokens = Vec::with_capacity(3);
        if number > 0 {
            tokens.push(points.narrow(1, 0, number)?);
        }
        for ((x, y), mark) in [(left, top), (right, bottom)]
            .into_iter()
            .zip(&self.corners)
        {
            let place = scaled(x, y).map(|value| 2.0 * (value + 0.5) / self.side as f32 - 1.0);
            let angle = (Tensor::new(&[place], device)?.matmul(&self.positions)?
                * (2.0 * std::f64::consts::PI))?;
            let token = (Tensor::cat(&[angle.sin()?, angle.cos()?], 1)? + mark)?;
            tokens.push(token.unsqueeze(0)?);
        }
        Ok((Tensor::cat(&tokens, 1)?, dense))
    }
}

/// What the tensors say of the network.
struct Shape {
    /// The side of pictures in pixels.
    side: usize,
    /// The channels of prompts and of the encoded picture.
    width: usize,
    /// Of a ViT: channels, heads, window, the blocks that see the whole picture, and how many blocks there are.
    vit: Option<(usize, usize, usize, Vec<usize>, usize)>,
}

impl Shape {
    fn of(tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let dims = |name: &str| -> Result<Vec<usize>> {
            let tensor = tensors.get(name);
            tensor.map(|t| t.dims().to_vec()).ok_or_else(|| {
                Error::request(format!(
                    "the tensor `{name}` is missing: this is not a Segment Anything model"
                ))
                .help("MobileSAM and SAM (ViT-B, -L, -H) are supported, as safetensors")
            })
        };
        let fault = || {
            Error::request("the tensors do not fit together: this is not a Segment Anything model")
        };
        let positions = dims("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")?;
        let [2, half] = positions[..] else {
            return Err(fault());
        };
        if !tensors.contains_key("image_encoder.pos_embed") {
            return Ok(Self {
                side: 1024,
                width: 2 * half,
                vit: None,
            });
        }
        let [_, grid, _, channels] = dims("image_encoder.pos_embed")?[..] else {
            return Err(fault());
        };
        let depth = (0..)
            .take_while(|i| tensors.contains_key(&format!("image_encoder.blocks.{i}.norm1.weight")))
            .count();
        let (mut heads, mut window, mut global) = (0, 0, Vec::new());
        for block in 0..depth {
            let name = format!("image_encoder.blocks.{block}.attn.rel_pos_h");
            let [reach, head] = dims(&name)?[..] else {
                return Err(fault());
            };
            heads = channels / head.max(1);
            // Positions go from -(n - 1) to n - 1.
            match reach.div_ceil(2) {
                n if n == grid => global.push(block),
                n => window = n,
            }
        }
        if heads == 0 || grid == 0 {
            return Err(fault());
        }
        Ok(Self {
            side: 16 * grid,
            width: 2 * half,
            vit: Some((channels, heads, window, global, depth)),
        })
    }

    fn encoder(&self, weights: VarBuilder<'_>) -> Result<Encoder> {
        let Some((channels, heads, window, global, depth)) = &self.vit else {
            return Ok(Encoder::Tiny(Box::new(tiny_vit_5m(weights)?)));
        };
        let encoder = ImageEncoderViT::new(
            self.side, 16, 3, *channels, *depth, *heads, self.width, true, true, true, *window,
            global, weights,
        )?;
        Ok(Encoder::Vit(Box::new(encoder)))
    }
}

/// The original code's name of one of transformers' tensors.
fn original(name: &str) -> String {
    const WHOLE: [(&str, &str); 2] = [
        (
            "shared_image_embedding.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        (
            "prompt_encoder.shared_embedding.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
    ];
    const PARTS: [(&str, &str); 23] = [
        ("vision_encoder.layers.", "image_encoder.blocks."),
        ("vision_encoder.", "image_encoder."),
        (
            "image_encoder.patch_embed.projection.",
            "image_encoder.patch_embed.proj.",
        ),
        ("image_encoder.neck.conv1.", "image_encoder.neck.0."),
        ("image_encoder.neck.layer_norm1.", "image_encoder.neck.1."),
        ("image_encoder.neck.conv2.", "image_encoder.neck.2."),
        ("image_encoder.neck.layer_norm2.", "image_encoder.neck.3."),
        (".layer_norm1.", ".norm1."),
        (".layer_norm2.", ".norm2."),
        (".layer_norm3.", ".norm3."),
        (".layer_norm4.", ".norm4."),
        (".layer_norm_final_attn.", ".norm_final_attn."),
        (
            "prompt_encoder.point_embed.",
            "prompt_encoder.point_embeddings.",
        ),
        (
            "prompt_encoder.mask_embed.conv1.",
            "prompt_encoder.mask_downscaling.0.",
        ),
        (
            "prompt_encoder.mask_embed.norm1.",
            "prompt_encoder.mask_downscaling.1.",
        ),
        (
            "prompt_encoder.mask_embed.conv2.",
            "prompt_encoder.mask_downscaling.3.",
        ),
        (
            "prompt_encoder.mask_embed.norm2.",
            "prompt_encoder.mask_downscaling.4.",
        ),
        (
            "prompt_encoder.mask_embed.conv3.",
            "prompt_encoder.mask_downscaling.6.",
        ),
        (
            "mask_decoder.upscale_conv1.",
            "mask_decoder.output_upscaling.0.",
        ),
        (
            "mask_decoder.upscale_layer_norm.",
            "mask_decoder.output_upscaling.1.",
        ),
        (
            "mask_decoder.upscale_conv2.",
            "mask_decoder.output_upscaling.3.",
        ),
        (".proj_in.", ".layers.0."),
        (".proj_out.", ".layers.2."),
    ];
    if let Some((_, own)) = WHOLE.iter().find(|(theirs, _)| *theirs == name) {
        return (*own).to_owned();
    }
    // What they call the one hidden layer of a head, the original code counts.
    let mut name = name.replace(".layers.0.", ".layers.{}.");
    let is_head = ["output_hypernetworks_mlps.", "iou_prediction_head."];
    let hidden = if is_head.iter().any(|head| name.contains(head)) {
        "1"
    } else {
        "0"
    };
    name = name.replace("{}", hidden);
    for (theirs, own) in PARTS {
        name = name.replace(theirs, own);
    }
    name
}
