//! The U-Net of Stable Diffusion 1.x, 2.x and XL (diffusers' `UNet2DConditionModel`), with numbered attention sites.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::checkpoint::weights::{Scope, Weights};
use crate::networks::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::sampling::attention_row::Heads;
use crate::sampling::control::{AttentionControl, AttentionKind, Qkv, Rows, Site};
use crate::{Error, Result};
use retouch_kernels::{Kernel, Padding};

/// A number for the whole network, or one for each level.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same everywhere.
    All(usize),
    /// One for each level, finest first.
    Each(Vec<usize>),
}

impl PerLevel {
    fn at(&self, level: usize) -> Option<usize> {
        match self {
            Self::All(n) => Some(*n),
            Self::Each(list) => list.get(level).copied(),
        }
    }
}

/// Transformer layers: as many everywhere, or a number for each block, or for each layer of a block.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Depths {
    /// The same everywhere.
    All(usize),
    /// One entry for each block, in the order in which the blocks run.
    Each(Vec<Depth>),
}

/// The transformer layers of the stacks of one block.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Depth {
    /// As many in every stack.
    Same(usize),
    /// A number for each stack.
    Each(Vec<usize>),
}

impl Depths {
    /// Of a stack of a block; `None` when nothing is said of it.
    fn at(&self, block: usize, layer: usize) -> Option<usize> {
        match self {
            Self::All(n) => Some(*n),
            Self::Each(blocks) => match blocks.get(block)? {
                Depth::Same(n) => Some(*n),
                Depth::Each(layers) => layers.get(layer).copied(),
            },
        }
    }

    /// Whether the stacks of a block differ in depth, so that the way up cannot be told from the way down.
    fn is_unequal(&self) -> bool {
        matches!(self, Self::Each(blocks) if blocks.iter().any(|block| matches!(block, Depth::Each(_))))
    }
}

/// What a U-Net is shown beside the latent, as further channels of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing: a model that draws from text.
    Nothing,
    /// A mask and the latent of the picture with what the mask covers grey: an inpainting model (nine channels).
    Masked,
    /// The latent of a picture, not scaled: an image-editing model (InstructPix2Pix, eight channels).
    Picture,
}

/// `unet/config.json`, as far as it changes the network; what is not built here is refused by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are diffusers'
pub struct UnetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    #[serde(default = "mid_block_type")]
    pub mid_block_type: Option<String>,
    #[serde(default = "two")]
    pub layers_per_block: PerLevel,
    pub cross_attention_dim: PerLevel,
    /// The *number of heads*, whatever its name says.
    #[serde(default = "eight")]
    pub attention_head_dim: PerLevel,
    #[serde(default)]
    pub num_attention_heads: Option<PerLevel>,
    #[serde(default = "one")]
    pub transformer_layers_per_block: Depths,
    /// Of the blocks of the way up, where they are not those of the way down in reverse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverse_transformer_layers_per_block: Option<Depths>,
    #[serde(default = "thirty_two")]
    pub norm_num_groups: Option<usize>,
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    #[serde(default)]
    pub sample_size: Option<usize>,
    #[serde(default)]
    pub use_linear_projection: bool,
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    #[serde(default)]
    pub freq_shift: f64,
    #[serde(default = "one_usize")]
    pub downsample_padding: usize,
    /// `text_time`: the pooled text and the sizes join the timestep's embedding, as in SDXL.
    #[serde(default)]
    pub addition_embed_type: Option<String>,
    /// Width of the embedding of each of the sizes.
    #[serde(default)]
    pub addition_time_embed_dim: Option<usize>,
    /// Width of pooled text and embedded sizes together.
    #[serde(default)]
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Everything else, looked through for what is not built.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// The middle of two ResNet blocks with a transformer between them.
const MID_ATTENDS: &str = "UNetMidBlock2DCrossAttn";
/// The middle of one ResNet block, as diffusers makes it inside this U-Net (SSD-1B, Segmind-Vega).
const MID_PLAIN: &str = "UNetMidBlock2D";

fn mid_block_type() -> Option<String> {
    Some(MID_ATTENDS.into())
}
fn one() -> Depths {
    Depths::All(1)
}
fn two() -> PerLevel {
    PerLevel::All(2)
}
fn eight() -> PerLevel {
    PerLevel::All(8)
}
fn thirty_two() -> Option<usize> {
    Some(32)
}
fn norm_eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}
fn one_usize() -> usize {
    1
}

/// How many sizes are embedded beside the pooled text: original height and width, top and left of the crop, target height
/// and width (Podell et al. 2023, section 2.2).
pub const SIZES: usize = 6;

/// Where in the network a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// On the way down.
    Down,
    /// At the coarsest level.
    Mid,
    /// On the way up.
    Up,
}

/// A self-attention site, known from the configuration alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteInfo {
    /// Its number, in running order.
    pub index: usize,
    /// Where it is.
    pub part: Part,
    /// How many times the latent's grid has been halved (rounded up).
    pub level: usize,
    /// Features of its queries, keys and values (heads x head size).
    pub width: usize,
}

/// The grid of a level: each side halved `level` times, rounded up.
#[must_use]
pub fn grid_at(latent: (usize, usize), level: usize) -> (usize, usize) {
    let halve = |n: usize| (0..level).fold(n, |n, _| n.div_ceil(2));
    (halve(latent.0), halve(latent.1))
}

/// The settings of one transformer stack.
#[derive(Clone, Copy)]
struct Stack {
    channels: usize,
    heads: usize,
    layers: usize,
    context: usize,
}

impl UnetConfig {
    /// What is asked for that is not built, or does not hang together; `None` when the network can be built.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        // Key, the values that change nothing. All of diffusers' options that would change the network are listed.
        let neutral: &[(&str, &[serde_json::Value])] = &[
            ("act_fn", &["silu".into(), "swish".into()]),
            ("attention_type", &["default".into()]),
            ("center_input_sample", &[false.into()]),
            ("class_embed_type", &[]),
            ("conv_in_kernel", &[3.into()]),
            ("conv_out_kernel", &[3.into()]),
            ("cross_attention_norm", &[]),
            ("dual_cross_attention", &[false.into()]),
            ("encoder_hid_dim", &[]),
            ("encoder_hid_dim_type", &[]),
            ("mid_block_only_cross_attention", &[false.into()]),
            ("mid_block_scale_factor", &[1.into(), 1.0.into()]),
            ("num_class_embeds", &[]),
            ("only_cross_attention", &[false.into()]),
            ("resnet_out_scale_factor", &[1.into(), 1.0.into()]),
            ("resnet_skip_time_act", &[false.into()]),
            ("resnet_time_scale_shift", &["default".into()]),
            ("time_cond_proj_dim", &[]),
            ("time_embedding_act_fn", &[]),
            ("time_embedding_dim", &[]),
            ("time_embedding_type", &["positional".into()]),
            ("timestep_post_act", &[]),
        ];
        for (key, values) in neutral {
            if let Some(value) = self.rest.get(*key)
                && !value.is_null()
                && !values.contains(value)
            {
                return Some(format!("asks for {key} = {value}, which is not built here"));
            }
        }
        if let Some(fault) = self.addition_fault() {
            return Some(fault);
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
                ["DownBlock2D", "CrossAttnDownBlock2D"],
            ),
            (
                "up_block_types",
                &self.up_block_types,
                ["UpBlock2D", "CrossAttnUpBlock2D"],
            ),
        ] {
            if list.len() != levels {
                return Some(format!(
                    "{key} has {} entries, block_out_channels has {levels}",
                    list.len()
                ));
            }
            if let Some(other) = list.iter().find(|name| !known.contains(&name.as_str())) {
                return Some(format!(
                    "{key} has {other:?}, which is not built here; expected {} or {}",
                    known[0], known[1]
                ));
            }
        }
        match self.mid_block_type.as_deref() {
            None | Some(MID_ATTENDS | MID_PLAIN) => {}
            Some(other) => {
                return Some(format!(
                    "mid_block_type is {other:?}; expected {MID_ATTENDS}, {MID_PLAIN} or null"
                ));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Some(format!(
                "norm_eps is {}; expected a number above 0",
                self.norm_eps
            ));
        }
        if let Some(size) = self.sample_size
            && !(1..=2048).contains(&size)
        {
            return Some(format!("sample_size is {size}; expected 1 to 2048"));
        }
        let groups = self.norm_num_groups.unwrap_or(0);
        if groups == 0 {
            return Some("norm_num_groups must be a number above 0".into());
        }
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            let numbers = (
                self.heads(level),
                self.layers_per_block.at(level),
                self.cross_attention_dim.at(level),
            );
            let (Some(heads), Some(layers), Some(context)) = numbers else {
                return Some(format!(
                    "a list of numbers for each level has none for level {level}"
                ));
            };
            if layers > 64 || channels > 65_536 || context > 65_536 {
                return Some(format!(
                    "level {level} asks for {layers} layers, {channels} channels and texts of {context}; expected at most 64, 65536 and 65536"
                ));
            }
            if channels == 0 || heads == 0 || layers == 0 || context == 0 {
                return Some(format!(
                    "level {level} has a 0 where a number above 0 is due"
                ));
            }
            if channels % groups != 0 || channels % heads != 0 {
                return Some(format!(
                    "level {level}: {channels} channels are not a multiple of {groups} groups and {heads} heads"
                ));
            }
        }
        if !self.block_out_channels[0].is_multiple_of(2)
            || self.in_channels == 0
            || self.out_channels == 0
        {
            return Some("the channel numbers cannot be used".into());
        }
        if let Some(fault) = self.depth_fault() {
            return Some(fault);
        }
        // Beside the latents of the models that are built: depth (five channels), a small picture (the upscaler, seven).
        if self.shown().is_none() {
            return Some(format!(
                "in_channels is {} and out_channels {}, which is not built here; expected as many, twice as many and one (an inpainting model) or twice as many (InstructPix2Pix)",
                self.in_channels, self.out_channels
            ));
        }
        None
    }

    /// What is wrong with the numbers of transformer layers, if anything.
    fn depth_fault(&self) -> Option<String> {
        let down = &self.transformer_layers_per_block;
        if down.is_unequal() && self.reverse_transformer_layers_per_block.is_none() {
            return Some("transformer_layers_per_block has a number for each layer of a block, and reverse_transformer_layers_per_block, those of the way up, is missing".into());
        }
        let levels = self.block_out_channels.len();
        let stacks = (0..levels).flat_map(|level| {
            let (down, up) = (self.layers(level), self.layers(level) + 1);
            let block = levels - 1 - level;
            let down = (0..down)
                .filter(move |_| self.attends_down(level))
                .map(move |layer| (level, self.down_depth(level, layer)));
            let up = (0..up)
                .filter(move |_| self.attends_up(block))
                .map(move |layer| (level, self.up_depth(block, layer)));
            down.chain(up)
        });
        let mid = self.mid_attends().then(|| (levels - 1, self.mid_depth()));
        for (level, depth) in stacks.chain(mid) {
            match depth {
                None => {
                    return Some(format!(
                        "transformer_layers_per_block has too few numbers for level {level}"
                    ));
                }
                Some(depth) if !(1..=64).contains(&depth) => {
                    return Some(format!(
                        "level {level} asks for {depth} transformer layers; expected 1 to 64"
                    ));
                }
                Some(_) => {}
            }
        }
        None
    }

    /// What the network is shown beside the latent, by the number of its channels; `None` of one that is not built.
    #[must_use]
    pub fn shown(&self) -> Option<Shown> {
        let own = self.out_channels;
        match self.in_channels {
            n if n == own => Some(Shown::Nothing),
            n if n == 2 * own + 1 => Some(Shown::Masked),
            n if n == 2 * own => Some(Shown::Picture),
            _ => None,
        }
    }

    /// Whether a level has attention on the way down.
    fn attends_down(&self, level: usize) -> bool {
        self.down_block_types
            .get(level)
            .is_some_and(|name| name == "CrossAttnDownBlock2D")
    }

    /// Whether a block of the way up has attention; they are counted from the coarsest.
    #[must_use]
    pub fn attends_up(&self, block: usize) -> bool {
        self.up_block_types
            .get(block)
            .is_some_and(|name| name == "CrossAttnUpBlock2D")
    }

    fn mid_attends(&self) -> bool {
        self.mid_block_type.as_deref() == Some(MID_ATTENDS)
    }

    /// Transformer layers of a stack on the way down.
    fn down_depth(&self, level: usize, layer: usize) -> Option<usize> {
        self.transformer_layers_per_block.at(level, layer)
    }

    /// Of the one in the middle: those of the coarsest level's first.
    fn mid_depth(&self) -> Option<usize> {
        self.down_depth(self.block_out_channels.len().checked_sub(1)?, 0)
    }

    /// Of one on the way up.
    fn up_depth(&self, block: usize, layer: usize) -> Option<usize> {
        match &self.reverse_transformer_layers_per_block {
            Some(depths) => depths.at(block, layer),
            None => {
                let level = self.block_out_channels.len().checked_sub(block + 1)?;
                self.down_depth(level, layer)
            }
        }
    }

    /// What is wrong with the addition to the timestep's embedding, if anything.
    fn addition_fault(&self) -> Option<String> {
        match self.addition_embed_type.as_deref() {
            None => None,
            Some("text_time") => {
                let (Some(width), Some(input)) = (
                    self.addition_time_embed_dim,
                    self.projection_class_embeddings_input_dim,
                ) else {
                    return Some("addition_embed_type is \"text_time\", and addition_time_embed_dim or projection_class_embeddings_input_dim is missing".into());
                };
                if width == 0 || !width.is_multiple_of(2) || width > 65_536 || input > 1 << 20 {
                    return Some(format!(
                        "addition_time_embed_dim is {width}, projection_class_embeddings_input_dim {input}; expected even numbers of a usual size"
                    ));
                }
                (input <= SIZES * width).then(|| {
                    format!("projection_class_embeddings_input_dim is {input}, which leaves nothing for the pooled text beside {SIZES} sizes of addition_time_embed_dim {width}")
                })
            }
            Some(other) => Some(format!(
                "asks for addition_embed_type = {other:?}, which is not built here"
            )),
        }
    }

    /// Width P of the pooled text that the network takes, if it takes one.
    #[must_use]
    pub fn pooled_width(&self) -> Option<usize> {
        self.addition_embed_type.as_ref()?;
        let sizes = SIZES * self.addition_time_embed_dim?;
        self.projection_class_embeddings_input_dim?
            .checked_sub(sizes)
    }

    fn heads(&self, level: usize) -> Option<usize> {
        self.num_attention_heads
            .as_ref()
            .unwrap_or(&self.attention_head_dim)
            .at(level)
    }

    /// How the attention of a level splits its features.
    #[must_use]
    pub fn heads_at(&self, level: usize) -> Heads {
        let stack = self.stack(level, None);
        Heads {
            count: stack.heads,
            scale: head_scale(stack.channels, stack.heads),
        }
    }

    /// A stack of a level, of so many layers.
    fn stack(&self, level: usize, depth: Option<usize>) -> Stack {
        Stack {
            channels: self.block_out_channels[level],
            heads: self.heads(level).unwrap_or(1),
            layers: depth.unwrap_or(1),
            context: self.cross_attention_dim.at(level).unwrap_or(1),
        }
    }

    /// ResNet blocks of a level on the way down; there is one more on the way up.
    #[must_use]
    pub fn layers_at(&self, level: usize) -> usize {
        self.layers(level)
    }

    fn layers(&self, level: usize) -> usize {
        self.layers_per_block.at(level).unwrap_or(1)
    }

    /// The width of the text encoder's states that the network takes (of the finest level that has attention).
    #[must_use]
    pub fn context_width(&self) -> usize {
        self.cross_attention_dim.at(0).unwrap_or(0)
    }

    /// Every self-attention site, in running order.
    #[must_use]
    pub fn sites(&self) -> Vec<SiteInfo> {
        let levels = self.block_out_channels.len();
        let mut sites = Vec::new();
        let mut push = |part, level: usize, count| {
            let width = self.block_out_channels[level];
            for _ in 0..count {
                sites.push(SiteInfo {
                    index: sites.len(),
                    part,
                    level,
                    width,
                });
            }
        };
        let all = |depths: &mut dyn Iterator<Item = Option<usize>>| {
            depths.map(|depth| depth.unwrap_or(1)).sum::<usize>()
        };
        for level in 0..levels {
            if self.attends_down(level) {
                let mut depths = (0..self.layers(level)).map(|layer| self.down_depth(level, layer));
                push(Part::Down, level, all(&mut depths));
            }
        }
        if self.mid_attends() {
            push(Part::Mid, levels - 1, self.mid_depth().unwrap_or(1));
        }
        for block in 0..levels {
            let level = levels - 1 - block;
            if self.attends_up(block) {
                let mut depths = (0..=self.layers(level)).map(|layer| self.up_depth(block, layer));
                push(Part::Up, level, all(&mut depths));
            }
        }
        sites
    }
}

#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    fn load(scope: &Scope<'_>, input: usize, output: usize, config: &UnetConfig) -> Result<Self> {
        let groups = config.norm_num_groups.unwrap_or(1);
        Ok(Self {
            norm1: GroupNorm::load(&scope.at("norm1"), input, groups, config.norm_eps)?,
            conv1: Conv2d::load_same(&scope.at("conv1"), input, output, 3)?,
            time: Linear::load(
                &scope.at("time_emb_proj"),
                config.block_out_channels[0] * 4,
                output,
                true,
            )?,
            norm2: GroupNorm::load(&scope.at("norm2"), output, groups, config.norm_eps)?,
            conv2: Conv2d::load_same(&scope.at("conv2"), output, output, 3)?,
            shortcut: (input != output)
                .then(|| Conv2d::load_same(&scope.at("conv_shortcut"), input, output, 1))
                .transpose()?,
        })
    }

    /// `time`: SiLU of the timestep's embedding, `[B, 1, E]`.
    fn forward(&self, x: &Tensor, time: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        let time = self.time.forward(time, kernel)?.squeeze(1)?;
        let h = self.norm1.forward_silu(x, kernel)?;
        let h = self.conv1.forward_onto(&h, Some(&time), None, kernel)?;
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

/// Keys and values `[rows, tokens, C]`.
#[derive(Clone, Debug)]
struct KeysValues {
    k: Tensor,
    v: Tensor,
}

/// What scores are multiplied with: 1 / sqrt(head size).
fn head_scale(channels: usize, heads: usize) -> f64 {
    ((channels / heads) as f64).powf(-0.5)
}

#[derive(Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
    scale: f64,
}

impl Attention {
    fn load(scope: &Scope<'_>, channels: usize, context: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            q: Linear::load(&scope.at("to_q"), channels, channels, false)?,
            k: Linear::load(&scope.at("to_k"), context, channels, false)?,
            v: Linear::load(&scope.at("to_v"), context, channels, false)?,
            out: Linear::load(&scope.at("to_out.0"), channels, channels, true)?,
            heads,
            scale: head_scale(channels, heads),
        })
    }

    fn keys_values(&self, source: &Tensor, kernel: &dyn Kernel) -> Result<KeysValues> {
        Ok(KeysValues {
            k: self.k.forward(source, kernel)?,
            v: self.v.forward(source, kernel)?,
        })
    }

    /// Those of the texts, for every row of the call.
    fn text_keys_values(&self, index: usize, run: &Run<'_>) -> Result<KeysValues> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for text in run.texts {
            let KeysValues { k, v } = text.keys_values(self, index, run)?;
            // One text serves every image of its half.
            for _ in 0..run.rows.images / k.dim(0)?.max(1) {
                keys.push(k.clone());
                values.push(v.clone());
            }
        }
        Ok(KeysValues {
            k: Tensor::cat(&keys, 0)?,
            v: Tensor::cat(&values, 0)?,
        })
    }

    /// `residual` + the attention of x to keys and values.
    fn forward_onto(
        &self,
        x: &Tensor,
        to: KeysValues,
        residual: &Tensor,
        site: Site,
        run: &mut Run<'_>,
    ) -> Result<Tensor> {
        let qkv = Qkv {
            q: self.q.forward(x, run.kernel)?,
            k: to.k,
            v: to.v,
            heads: self.heads,
            scale: self.scale,
        };
        let out = run.control.attend(site, &qkv, run.kernel)?;
        self.out.forward_onto(&out, Some(residual), run.kernel)
    }
}

#[derive(Debug)]
struct TransformerLayer {
    index: usize,
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    cross: Attention,
    norm3: LayerNorm,
    gate: Linear,
    out: Linear,
}

/// LayerNorm's default in diffusers' `BasicTransformerBlock`.
const LAYER_NORM_EPS: f64 = 1e-5;
/// GroupNorm's in diffusers' `Transformer2DModel`.
const TRANSFORMER_NORM_EPS: f64 = 1e-6;

#[derive(Debug)]
struct Transformer {
    norm: GroupNorm,
    project_in: Linear,
    layers: Vec<TransformerLayer>,
    project_out: Linear,
}

impl Transformer {
    fn load(
        scope: &Scope<'_>,
        stack: Stack,
        config: &UnetConfig,
        next_site: &mut usize,
    ) -> Result<Self> {
        let c = stack.channels;
        let layers = (0..stack.layers)
            .map(|i| {
                let layer = scope.at("transformer_blocks").at(i);
                let index = *next_site;
                *next_site += 1;
                let norm = |name| LayerNorm::load(&layer.at(name), c, LAYER_NORM_EPS);
                Ok(TransformerLayer {
                    index,
                    norm1: norm("norm1")?,
                    attention: Attention::load(&layer.at("attn1"), c, c, stack.heads)?,
                    norm2: norm("norm2")?,
                    cross: Attention::load(&layer.at("attn2"), c, stack.context, stack.heads)?,
                    norm3: norm("norm3")?,
                    gate: Linear::load(&layer.at("ff.net.0.proj"), c, 8 * c, true)?,
                    out: Linear::load(&layer.at("ff.net.2"), 4 * c, c, true)?,
                })
            })
            .collect::<Result<_>>()?;
        let groups = config.norm_num_groups.unwrap_or(1);
        Ok(Self {
            norm: GroupNorm::load(&scope.at("norm"), c, groups, TRANSFORMER_NORM_EPS)?,
            // A 1x1 convolution (use_linear_projection = false) over an image is a linear layer over its pixels.
            project_in: Linear::load(&scope.at("proj_in"), c, c, true)?,
            layers,
            project_out: Linear::load(&scope.at("proj_out"), c, c, true)?,
        })
    }

    fn forward(&self, x: &Tensor, run: &mut Run<'_>) -> Result<Tensor> {
        let kernel = run.kernel;
        let layout = kernel.layout();
        let (h, w) = layout.grid(x)?;
        let mut t = layout.tokens(&self.norm.forward(x, kernel)?)?;
        t = self.project_in.forward(&t, kernel)?;
        for layer in &self.layers {
            let site = |kind| Site {
                step: run.step,
                index: layer.index,
                kind,
                grid: (h, w),
                rows: run.rows,
            };
            let (own, cross) = (
                site(AttentionKind::SelfAttention),
                site(AttentionKind::CrossAttention),
            );
            let y = layer.norm1.forward(&t, kernel)?;
            let to = layer.attention.keys_values(&y, kernel)?;
            t = layer.attention.forward_onto(&y, to, &t, own, run)?;
            let y = layer.norm2.forward(&t, kernel)?;
            let to = layer.cross.text_keys_values(layer.index, run)?;
            t = layer.cross.forward_onto(&y, to, &t, cross, run)?;
            let y = layer.norm3.forward(&t, kernel)?;
            let y = layer.gate.forward_geglu(&y, kernel)?;
            t = layer.out.forward_onto(&y, Some(&t), kernel)?;
        }
        let residual = layout.tokens(x)?;
        let y = self.project_out.forward_onto(&t, Some(&residual), kernel)?;
        Ok(layout.images_of_tokens(&y, h, w)?)
    }
}

#[derive(Debug)]
struct Block {
    resnets: Vec<(Resnet, Option<Transformer>)>,
    resample: Option<Conv2d>,
}

/// What one call of the network carries through its layers.
struct Run<'a> {
    step: usize,
    rows: Rows,
    texts: &'a [&'a Text],
    network: &'a Arc<()>,
    control: &'a mut dyn AttentionControl,
    kernel: &'a dyn Kernel,
}

/// A text as the network takes it: what the text encoders gave, and the keys and values that cross-attention makes of it,
/// which are made once and kept as long as this or a clone of it lives.
#[derive(Clone, Debug)]
pub struct Text {
    states: Tensor,
    made: Arc<Mutex<Made>>,
}

/// What a network made of a text.
#[derive(Debug, Default)]
struct Made {
    /// The network's mark.
    network: Option<Arc<()>>,
    /// By the number of the site.
    sites: BTreeMap<usize, KeysValues>,
}

impl Text {
    /// A text of states `[1, N, E]` for all images of a half, or `[images, N, E]`.
    #[must_use]
    pub fn new(states: Tensor) -> Self {
        Self {
            states,
            made: Arc::default(),
        }
    }

    /// How many tokens it has, N.
    ///
    /// # Errors
    /// When the states are of another rank.
    pub fn tokens(&self) -> Result<usize> {
        Ok(self.states.dims3()?.1)
    }

    /// What this network made of it so far; what another one made is forgotten.
    fn made(&self, network: &Arc<()>) -> MutexGuard<'_, Made> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let own = made.network.as_ref();
        if !own.is_some_and(|own| Arc::ptr_eq(own, network)) {
            *made = Made {
                network: Some(network.clone()),
                sites: BTreeMap::new(),
            };
        }
        made
    }

    fn keys_values(&self, layer: &Attention, index: usize, run: &Run<'_>) -> Result<KeysValues> {
        let there = self.made(run.network).sites.get(&index).cloned();
        if let Some(there) = there {
            return Ok(there);
        }
        let new = layer.keys_values(&self.states, run.kernel)?;
        self.made(run.network).sites.insert(index, new.clone());
        Ok(new)
    }
}

/// One call of the network.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The latents `[R, C, h, w]`, a row for each image and half, with what the network is [`Shown`] beside them.
    pub latent: &'a Tensor,
    /// The timestep of each row: 0 to N - 1, not always whole.
    pub timesteps: &'a [f32],
    /// The text of each half, equally many tokens each: of those that `rows` has, or, when several calls are made as one, of
    /// those of each, all with as many images.
    pub texts: &'a [&'a Text],
    /// What SDXL takes besides.
    pub addition: Option<Addition<'a>>,
    /// The step k that the call belongs to, for the control.
    pub step: usize,
    /// What the rows are, for the control.
    pub rows: Rows,
}

/// What joins the timestep's embedding.
#[derive(Clone, Copy, Debug)]
pub struct Addition<'a> {
    /// The pooled text `[R, P]`.
    pub pooled: &'a Tensor,
    /// The sizes in pixels, the same for every row.
    pub sizes: [usize; SIZES],
}

/// What is between the way down and the way up.
#[derive(Debug)]
struct Middle {
    first: Resnet,
    /// What follows where the middle has attention.
    attends: Option<(Transformer, Resnet)>,
}

/// The U-Net.
#[derive(Debug)]
pub struct Unet {
    config: UnetConfig,
    /// What a text knows this network by.
    mark: Arc<()>,
    conv_in: Conv2d,
    time1: Linear,
    time2: Linear,
    addition: Option<(Linear, Linear)>,
    down: Vec<Block>,
    /// Nothing of models without a middle (BK-SDM).
    mid: Option<Middle>,
    up: Vec<Block>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Loads the network.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; while checking these are noted in `weights`. The configuration
    /// must have passed [`UnetConfig::fault`].
    pub fn load(config: &UnetConfig, weights: &Weights) -> Result<Self> {
        if let Some(fault) = config.fault() {
            return Err(Error::request(fault));
        }
        let root = weights.root();
        let channels = &config.block_out_channels;
        let levels = channels.len();
        let first = channels[0];
        let coarsest = channels[levels - 1];
        let mut site = 0;
        let time = root.at("time_embedding");
        let conv_in = Conv2d::load_same(&root.at("conv_in"), config.in_channels, first, 3)?;
        let time1 = Linear::load(&time.at("linear_1"), first, first * 4, true)?;
        let time2 = Linear::load(&time.at("linear_2"), first * 4, first * 4, true)?;
        let addition = config
            .pooled_width()
            .and(config.projection_class_embeddings_input_dim)
            .map(|input| -> Result<_> {
                let scope = root.at("add_embedding");
                Ok((
                    Linear::load(&scope.at("linear_1"), input, first * 4, true)?,
                    Linear::load(&scope.at("linear_2"), first * 4, first * 4, true)?,
                ))
            })
            .transpose()?;
        // The channels of every skip connection, in the order in which the way down makes them.
        let mut skips = vec![first];
        let mut down = Vec::new();
        for (level, &output) in channels.iter().enumerate() {
            let scope = root.at("down_blocks").at(level);
            let mut resnets = Vec::new();
            for i in 0..config.layers(level) {
                let input = *skips.last().unwrap_or(&first);
                let resnet = Resnet::load(&scope.at("resnets").at(i), input, output, config)?;
                let transformer = config
                    .attends_down(level)
                    .then(|| {
                        let stack = config.stack(level, config.down_depth(level, i));
                        Transformer::load(&scope.at("attentions").at(i), stack, config, &mut site)
                    })
                    .transpose()?;
                resnets.push((resnet, transformer));
                skips.push(output);
            }
            let resample = (level + 1 < levels)
                .then(|| {
                    Conv2d::load(
                        &scope.at("downsamplers.0.conv"),
                        output,
                        output,
                        3,
                        2,
                        Padding::same(config.downsample_padding),
                    )
                })
                .transpose()?;
            if resample.is_some() {
                skips.push(output);
            }
            down.push(Block { resnets, resample });
        }
        let scope = root.at("mid_block");
        let resnet =
            |i: usize| Resnet::load(&scope.at("resnets").at(i), coarsest, coarsest, config);
        let mid = match config.mid_block_type {
            None => None,
            Some(_) if !config.mid_attends() => Some(Middle {
                first: resnet(0)?,
                attends: None,
            }),
            Some(_) => {
                let first = resnet(0)?;
                let stack = config.stack(levels - 1, config.mid_depth());
                let transformer =
                    Transformer::load(&scope.at("attentions.0"), stack, config, &mut site)?;
                Some(Middle {
                    first,
                    attends: Some((transformer, resnet(1)?)),
                })
            }
        };
        let mut up = Vec::new();
        let mut input = coarsest;
        for i in 0..levels {
            let level = levels - 1 - i;
            let scope = root.at("up_blocks").at(i);
            let output = channels[level];
            let mut resnets = Vec::new();
            for j in 0..=config.layers(level) {
                let skip = skips.pop().unwrap_or(first);
                let resnet =
                    Resnet::load(&scope.at("resnets").at(j), input + skip, output, config)?;
                let transformer = config
                    .attends_up(i)
                    .then(|| {
                        let stack = config.stack(level, config.up_depth(i, j));
                        Transformer::load(&scope.at("attentions").at(j), stack, config, &mut site)
                    })
                    .transpose()?;
                resnets.push((resnet, transformer));
                input = output;
            }
            let resample = (i + 1 < levels)
                .then(|| Conv2d::load_same(&scope.at("upsamplers.0.conv"), output, output, 3))
                .transpose()?;
            up.push(Block { resnets, resample });
        }
        let groups = config.norm_num_groups.unwrap_or(1);
        Ok(Self {
            conv_in,
            time1,
            time2,
            addition,
            down,
            mid,
            up,
            norm_out: GroupNorm::load(&root.at("conv_norm_out"), first, groups, config.norm_eps)?,
            conv_out: Conv2d::load_same(&root.at("conv_out"), first, config.out_channels, 3)?,
            config: config.clone(),
            mark: Arc::default(),
        })
    }

    /// The configuration that the network was built from.
    #[must_use]
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// Sinusoidal embeddings of numbers, `width` features each, one after another; rounded to f32 where diffusers rounds:
    /// an angle of a thousand has few bits left behind the point, so a last bit here is a last bit of 1e-5 there.
    fn sinusoids(&self, numbers: &[f32], width: usize) -> Vec<f32> {
        let half = width / 2;
        let scale = (half as f64 - self.config.freq_shift) as f32;
        let mut values = Vec::with_capacity(numbers.len() * width);
        for &t in numbers {
            let angles: Vec<f32> = (0..half)
                .map(|i| {
                    let exponent = -(10_000f64.ln() as f32) * i as f32 / scale;
                    t * libm::exp(f64::from(exponent)) as f32
                })
                .collect();
            let sines = angles.iter().map(|&a| libm::sin(f64::from(a)) as f32);
            let cosines = angles.iter().map(|&a| libm::cos(f64::from(a)) as f32);
            if self.config.flip_sin_to_cos {
                values.extend(cosines.chain(sines));
            } else {
                values.extend(sines.chain(cosines));
            }
        }
        values
    }

    /// Embeddings of the timesteps `[R, 1, C0]`.
    fn timestep_embedding(&self, timesteps: &[f32], device: &Device) -> Result<Tensor> {
        let width = self.config.block_out_channels[0];
        let values = self.sinusoids(timesteps, width);
        let shape = (timesteps.len(), 1, width);
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// What is added to the timestep's embedding: `[R, 1, 4 C0]`.
    fn added(&self, call: &Call<'_>, kernel: &dyn Kernel) -> Result<Option<Tensor>> {
        let (Some((linear1, linear2)), Some(width)) =
            (&self.addition, self.config.addition_time_embed_dim)
        else {
            return Ok(None);
        };
        let addition = call.addition.ok_or_else(|| {
            Error::request("the U-Net takes a pooled text, and the text encoders give none")
        })?;
        let (rows, _) = addition.pooled.dims2()?;
        let sizes: Vec<f32> = addition.sizes.iter().map(|&size| size as f32).collect();
        let sizes = self.sinusoids(&sizes, width);
        let sizes = Tensor::from_vec(sizes, (1, SIZES * width), addition.pooled.device())?
            .to_dtype(addition.pooled.dtype())?
            .repeat((rows, 1))?;
        let x = Tensor::cat(&[addition.pooled, &sizes], 1)?.unsqueeze(1)?;
        let x = linear1.forward(&x, kernel)?.silu()?;
        Ok(Some(linear2.forward(&x, kernel)?))
    }

    /// What the network predicts for each row: `[R, C, h, w]`.
    ///
    /// # Errors
    /// When the shapes do not fit, or the control fails.
    pub fn forward(
        &self,
        call: Call<'_>,
        control: &mut dyn AttentionControl,
        kernel: &dyn Kernel,
    ) -> Result<Tensor> {
        let (rows, images) = (call.latent.dim(0)?, call.rows.images);
        let too_few = call.texts.len() < call.rows.halves().len();
        if too_few || call.texts.len() * images != rows || call.timesteps.len() != rows {
            return Err(Error::request(format!(
                "{} texts of {images} images each and {} timesteps for a call of {rows} rows",
                call.texts.len(),
                call.timesteps.len()
            )));
        }
        for text in call.texts {
            let texts = text.states.dim(0)?;
            if texts != 1 && texts != images {
                return Err(Error::request(format!("{texts} texts for {images} images")));
            }
        }
        let run = &mut Run {
            step: call.step,
            rows: call.rows,
            texts: call.texts,
            network: &self.mark,
            control,
            kernel,
        };
        let time = self.timestep_embedding(call.timesteps, call.latent.device())?;
        let time = self.time1.forward(&time, kernel)?.silu()?;
        let mut time = self.time2.forward(&time, kernel)?;
        if let Some(added) = self.added(&call, kernel)? {
            time = (time + added)?;
        }
        // Every ResNet block takes SiLU of the embedding: applied once.
        let time = time.silu()?;
        let layout = kernel.layout();
        let mut x = self.conv_in.forward(&layout.images(call.latent)?, kernel)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            for (resnet, transformer) in &block.resnets {
                x = resnet.forward(&x, &time, kernel)?;
                if let Some(transformer) = transformer {
                    x = transformer.forward(&x, run)?;
                }
                skips.push(x.clone());
            }
            if let Some(resample) = &block.resample {
                x = resample.forward(&x, kernel)?;
                skips.push(x.clone());
            }
        }
        if let Some(mid) = &self.mid {
            x = mid.first.forward(&x, &time, kernel)?;
            if let Some((transformer, last)) = &mid.attends {
                x = transformer.forward(&x, run)?;
                x = last.forward(&x, &time, kernel)?;
            }
        }
        for block in &self.up {
            for (resnet, transformer) in &block.resnets {
                let skip = skips
                    .pop()
                    .ok_or_else(|| Error::request("the U-Net has fewer skips than it uses"))?;
                let joined = kernel.concat(&x, &skip)?;
                x = resnet.forward(&joined, &time, kernel)?;
                if let Some(transformer) = transformer {
                    x = transformer.forward(&x, run)?;
                }
            }
            if let Some(resample) = &block.resample {
                // To the grid of the next skip: twice the size, or one less where the way down rounded up.
                let size = match skips.last() {
                    Some(skip) => layout.grid(skip)?,
                    None => {
                        let (h, w) = layout.grid(&x)?;
                        (2 * h, 2 * w)
                    }
                };
                x = resample.forward_enlarged(&x, size, kernel)?;
            }
        }
        let x = self.norm_out.forward_silu(&x, kernel)?;
        Ok(layout.planes(&self.conv_out.forward(&x, kernel)?)?)
    }
}
