//! The VAE of latent diffusion (diffusers' `AutoencoderKL`): pictures in [-1, 1] to latents and back.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::checkpoint::weights::{Scope, Weights};
use crate::networks::layers::{Conv2d, GroupNorm, Linear};
use crate::networks::tiles::Tiling;
use crate::{Error, Result};
use retouch_kernels::{Kernel, Padding};

/// GroupNorm's epsilon throughout diffusers' `AutoencoderKL`.
const NORM_EPS: f64 = 1e-6;

/// `vae/config.json`, as far as it changes the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are diffusers'
pub struct VaeConfig {
    #[serde(default = "three")]
    pub in_channels: usize,
    #[serde(default = "three")]
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    #[serde(default = "one")]
    pub layers_per_block: usize,
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// What a latent is multiplied with. Default: Stable Diffusion 1's, as in diffusers.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f64,
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Everything else, looked through for what is not built.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

fn one() -> usize {
    1
}
fn three() -> usize {
    3
}
fn thirty_two() -> usize {
    32
}
fn scaling_factor() -> f64 {
    0.18215
}
fn yes() -> bool {
    true
}

impl VaeConfig {
    /// Whether it is to be computed in float32 whatever the type of the other networks. Default: diffusers', true.
    #[must_use]
    pub fn force_upcast(&self) -> bool {
        self.rest.get("force_upcast") != Some(&false.into())
    }

    /// How many pixels a latent pixel is wide: 2^(levels - 1).
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len().max(1) - 1)
    }

    /// What is asked for that is not built, if anything.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        for key in ["shift_factor", "latents_mean", "latents_std"] {
            if self.rest.get(key).is_some_and(|value| !value.is_null()) {
                return Some(format!("asks for {key}, which is not supported"));
            }
        }
        if let Some(act) = self.rest.get("act_fn")
            && !["silu", "swish"].iter().any(|name| act == name)
        {
            return Some(format!("asks for act_fn = {act}, which is not supported"));
        }
        let levels = self.block_out_channels.len();
        if levels == 0 || levels > 8 {
            return Some(format!(
                "block_out_channels has {levels} levels; expected 1 to 8"
            ));
        }
        for (key, list, known) in [
            (
                "down_block_types",
                &self.down_block_types,
                "DownEncoderBlock2D",
            ),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            if list.len() != levels || list.iter().any(|name| name != known) {
                return Some(format!(
                    "{key} is {list:?}; expected {known:?} {levels} times"
                ));
            }
        }
        if self.in_channels != 3 || self.out_channels != 3 {
            return Some(format!(
                "works on {} and {} channels; expected pictures of 3",
                self.in_channels, self.out_channels
            ));
        }
        let widest = self.block_out_channels.iter().max().copied().unwrap_or(0);
        if self.layers_per_block > 64 || self.latent_channels > 1024 || widest > 65_536 {
            return Some("layers_per_block, latent_channels and block_out_channels are out of range; expected at most 64, 1024 and 65536".into());
        }
        if self.latent_channels == 0 || self.layers_per_block == 0 || self.norm_num_groups == 0 {
            return Some(
                "latent_channels, layers_per_block and norm_num_groups must be above 0".into(),
            );
        }
        if let Some(c) = self
            .block_out_channels
            .iter()
            .find(|&&c| c == 0 || c % self.norm_num_groups != 0)
        {
            return Some(format!(
                "{c} channels do not make {} groups",
                self.norm_num_groups
            ));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Some("scaling_factor must be a number above 0".into());
        }
        None
    }
}

#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    fn load(scope: &Scope<'_>, input: usize, output: usize, groups: usize) -> Result<Self> {
        Ok(Self {
            norm1: GroupNorm::load(&scope.at("norm1"), input, groups, NORM_EPS)?,
            conv1: Conv2d::load_same(&scope.at("conv1"), input, output, 3)?,
            norm2: GroupNorm::load(&scope.at("norm2"), output, groups, NORM_EPS)?,
            conv2: Conv2d::load_same(&scope.at("conv2"), output, output, 3)?,
            shortcut: (input != output)
                .then(|| Conv2d::load_same(&scope.at("conv_shortcut"), input, output, 1))
                .transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        let h = self
            .conv1
            .forward(&self.norm1.forward_silu(x, kernel)?, kernel)?;
        let h = self.norm2.forward_silu(&h, kernel)?;
        match &self.shortcut {
            Some(shortcut) => {
                let x = shortcut.forward(x, kernel)?;
                self.conv2.forward_onto(&h, None, Some(&x), kernel)
            }
            None => self.conv2.forward_onto(&h, None, Some(x), kernel),
        }
    }
}

/// Self-attention with one head over the pixels of the coarsest grid.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    scale: f64,
}

impl Attention {
    /// Loads it under its present names or those of diffusers before 0.18.
    fn load(scope: &Scope<'_>, channels: usize, groups: usize) -> Result<Self> {
        let linear = |names: &[&str]| Linear::load_any(scope, names, channels, channels);
        Ok(Self {
            norm: GroupNorm::load(&scope.at("group_norm"), channels, groups, NORM_EPS)?,
            q: linear(&["to_q", "query"])?,
            k: linear(&["to_k", "key"])?,
            v: linear(&["to_v", "value"])?,
            out: linear(&["to_out.0", "proj_attn"])?,
            scale: (channels as f64).powf(-0.5),
        })
    }

    fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        let layout = kernel.layout();
        let (h, w) = layout.grid(x)?;
        let t = layout.tokens(&self.norm.forward(x, kernel)?)?;
        let (q, k, v) = (
            self.q.forward(&t, kernel)?,
            self.k.forward(&t, kernel)?,
            self.v.forward(&t, kernel)?,
        );
        let t = kernel.attention(&q, &k, &v, 1, self.scale, None)?;
        let residual = layout.tokens(x)?;
        let y = self.out.forward_onto(&t, Some(&residual), kernel)?;
        Ok(layout.images_of_tokens(&y, h, w)?)
    }
}

#[derive(Debug)]
struct Middle {
    first: Resnet,
    attention: Option<Attention>,
    last: Resnet,
}

impl Middle {
    fn load(scope: &Scope<'_>, channels: usize, config: &VaeConfig) -> Result<Self> {
        let groups = config.norm_num_groups;
        Ok(Self {
            first: Resnet::load(&scope.at("resnets.0"), channels, channels, groups)?,
            attention: config
                .mid_block_add_attention
                .then(|| Attention::load(&scope.at("attentions.0"), channels, groups))
                .transpose()?,
            last: Resnet::load(&scope.at("resnets.1"), channels, channels, groups)?,
        })
    }

    fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        let mut x = self.first.forward(x, kernel)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x, kernel)?;
        }
        self.last.forward(&x, kernel)
    }
}

#[derive(Debug)]
struct Block {
    resnets: Vec<Resnet>,
    resample: Option<Conv2d>,
}

impl Block {
    fn load(
        scope: &Scope<'_>,
        (input, output): (usize, usize),
        layers: usize,
        groups: usize,
        resample: Option<(&str, usize, Padding)>,
    ) -> Result<Self> {
        Ok(Self {
            resnets: (0..layers)
                .map(|i| {
                    let input = if i == 0 { input } else { output };
                    Resnet::load(&scope.at("resnets").at(i), input, output, groups)
                })
                .collect::<Result<_>>()?,
            resample: resample
                .map(|(name, stride, padding)| {
                    Conv2d::load(&scope.at(name), output, output, 3, stride, padding)
                })
                .transpose()?,
        })
    }
}

#[derive(Debug)]
struct Half {
    conv_in: Conv2d,
    blocks: Vec<Block>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    /// The 1x1 convolution between network and latent.
    quant: Option<Conv2d>,
}

/// The VAE.
#[derive(Debug)]
pub struct Vae {
    config: VaeConfig,
    encoder: Half,
    decoder: Half,
}

impl Vae {
    /// Loads encoder and decoder.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; while checking these are noted in `weights`. The configuration
    /// must have passed [`VaeConfig::fault`].
    pub fn load(config: &VaeConfig, weights: &Weights) -> Result<Self> {
        if let Some(fault) = config.fault() {
            return Err(Error::request(fault));
        }
        let root = weights.root();
        let channels = &config.block_out_channels;
        let levels = channels.len();
        let (groups, latent) = (config.norm_num_groups, config.latent_channels);
        let (first, coarsest) = (channels[0], channels[levels - 1]);
        let quant = |on: bool, name: &str, c: usize| {
            on.then(|| Conv2d::load_same(&root.at(name), c, c, 1))
                .transpose()
        };
        let scope = root.at("encoder");
        // Strided convolutions of the encoder are padded below and to the right only.
        let padding = Padding {
            top: 0,
            bottom: 1,
            left: 0,
            right: 1,
        };
        let encoder = Half {
            conv_in: Conv2d::load_same(&scope.at("conv_in"), config.in_channels, first, 3)?,
            blocks: (0..levels)
                .map(|i| {
                    let resample = (i + 1 < levels).then_some(("downsamplers.0.conv", 2, padding));
                    Block::load(
                        &scope.at("down_blocks").at(i),
                        (channels[i.saturating_sub(1)], channels[i]),
                        config.layers_per_block,
                        groups,
                        resample,
                    )
                })
                .collect::<Result<_>>()?,
            middle: Middle::load(&scope.at("mid_block"), coarsest, config)?,
            norm_out: GroupNorm::load(&scope.at("conv_norm_out"), coarsest, groups, NORM_EPS)?,
            conv_out: Conv2d::load_same(&scope.at("conv_out"), coarsest, 2 * latent, 3)?,
            quant: quant(config.use_quant_conv, "quant_conv", 2 * latent)?,
        };
        let scope = root.at("decoder");
        let decoder = Half {
            conv_in: Conv2d::load_same(&scope.at("conv_in"), latent, coarsest, 3)?,
            blocks: (0..levels)
                .map(|i| {
                    let level = levels - 1 - i;
                    let resample =
                        (level > 0).then_some(("upsamplers.0.conv", 1, Padding::same(1)));
                    Block::load(
                        &scope.at("up_blocks").at(i),
                        (channels[(level + 1).min(levels - 1)], channels[level]),
                        config.layers_per_block + 1,
                        groups,
                        resample,
                    )
                })
                .collect::<Result<_>>()?,
            middle: Middle::load(&scope.at("mid_block"), coarsest, config)?,
            norm_out: GroupNorm::load(&scope.at("conv_norm_out"), first, groups, NORM_EPS)?,
            conv_out: Conv2d::load_same(&scope.at("conv_out"), first, config.out_channels, 3)?,
            quant: quant(config.use_post_quant_conv, "post_quant_conv", latent)?,
        };
        Ok(Self {
            config: config.clone(),
            encoder,
            decoder,
        })
    }

    /// The configuration that the network was built from.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The mean of the latent's distribution `[B, C, H / f, W / f]`, *not* scaled, of pictures `[B, 3, H, W]` in
    /// [-1, 1].
    ///
    /// # Errors
    /// When H or W is not a multiple of the VAE's factor f.
    pub fn encode_mean(&self, pictures: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        let (_, _, h, w) = pictures.dims4()?;
        let factor = self.config.factor();
        if h % factor != 0 || w % factor != 0 {
            return Err(self.size_fault(h, w));
        }
        let half = &self.encoder;
        let mut x = half.conv_in.forward(&kernel.images(pictures)?, kernel)?;
        for block in &half.blocks {
            for resnet in &block.resnets {
                x = resnet.forward(&x, kernel)?;
            }
            if let Some(resample) = &block.resample {
                x = resample.forward(&x, kernel)?;
            }
        }
        x = half.middle.forward(&x, kernel)?;
        x = half
            .conv_out
            .forward(&half.norm_out.forward_silu(&x, kernel)?, kernel)?;
        if let Some(quant) = &half.quant {
            x = quant.forward(&x, kernel)?;
        }
        let x = kernel.planes(&x)?;
        // The second half of the channels is the logarithm of the variance.
        Ok(x.narrow(1, 0, self.config.latent_channels)?.contiguous()?)
    }

    /// [`Self::encode_mean`] of tiles of the pictures, one at a time and image by image, so that the networks' memory does
    /// not grow with either. Each tile is normalised by itself, so a latent is near that of the whole and not equal to it.
    ///
    /// # Errors
    /// As [`Self::encode_mean`].
    pub fn encode_mean_tiled(
        &self,
        pictures: &Tensor,
        tiling: Tiling,
        kernel: &dyn Kernel,
    ) -> Result<Tensor> {
        let (images, _, h, w) = pictures.dims4()?;
        let factor = self.config.factor();
        if h % factor != 0 || w % factor != 0 {
            return Err(self.size_fault(h, w));
        }
        let channels = self.config.latent_channels;
        let (h, w) = (h / factor, w / factor);
        let mut means = Vec::with_capacity(images * channels * h * w);
        for b in 0..images {
            means.extend(tiling.planes((h, w), channels, 1, |tile| {
                let (rows, columns) = (&tile.rows, &tile.columns);
                let piece = pictures
                    .narrow(0, b, 1)?
                    .narrow(2, rows.start * factor, rows.len() * factor)?
                    .narrow(3, columns.start * factor, columns.len() * factor)?
                    .contiguous()?;
                let mean = self.encode_mean(&piece, kernel)?;
                Ok(mean.flatten_all()?.to_vec1()?)
            })?);
        }
        let shape = (images, channels, h, w);
        Ok(Tensor::from_vec(means, shape, pictures.device())?)
    }

    fn size_fault(&self, h: usize, w: usize) -> Error {
        Error::request(format!(
            "a picture of {w}x{h} for a VAE that wants multiples of {}",
            self.config.factor()
        ))
    }

    /// Pictures `[B, 3, f h, f w]`, about [-1, 1] and not clamped, of *unscaled* latents `[B, C, h, w]`.
    ///
    /// # Errors
    /// When the latents have another number of channels.
    pub fn decode(&self, latents: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        let half = &self.decoder;
        let layout = kernel.layout();
        let mut x = kernel.images(latents)?;
        if let Some(quant) = &half.quant {
            x = quant.forward(&x, kernel)?;
        }
        x = half.conv_in.forward(&x, kernel)?;
        x = half.middle.forward(&x, kernel)?;
        for block in &half.blocks {
            for resnet in &block.resnets {
                x = resnet.forward(&x, kernel)?;
            }
            if let Some(resample) = &block.resample {
                let (h, w) = layout.grid(&x)?;
                x = resample.forward_enlarged(&x, (2 * h, 2 * w), kernel)?;
            }
        }
        let x = half
            .conv_out
            .forward(&half.norm_out.forward_silu(&x, kernel)?, kernel)?;
        Ok(kernel.planes(&x)?)
    }

    /// [`Self::decode`] of tiles of the latents, one at a time and image by image, so that the networks' memory does not
    /// grow with either. Each tile is normalised by itself, so a picture is near that of the whole and not equal to it.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_tiled(
        &self,
        latents: &Tensor,
        tiling: Tiling,
        kernel: &dyn Kernel,
    ) -> Result<Tensor> {
        let (images, _, h, w) = latents.dims4()?;
        let (channels, factor) = (self.config.out_channels, self.config.factor());
        let mut pictures = Vec::with_capacity(images * channels * h * w * factor * factor);
        for b in 0..images {
            pictures.extend(tiling.planes((h, w), channels, factor, |tile| {
                let piece = latents
                    .narrow(0, b, 1)?
                    .narrow(2, tile.rows.start, tile.rows.len())?
                    .narrow(3, tile.columns.start, tile.columns.len())?
                    .contiguous()?;
                let picture = self.decode(&piece, kernel)?;
                Ok(picture.flatten_all()?.to_vec1()?)
            })?);
        }
        let shape = (images, channels, h * factor, w * factor);
        Ok(Tensor::from_vec(pictures, shape, latents.device())?)
    }
}
