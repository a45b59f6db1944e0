//! `unet/config.json`: what it asks for, what of it is built, and the attention sites that follow.

use super::*;

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
    pub(super) fn at(&self, level: usize) -> Option<usize> {
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
    pub(super) fn at(&self, block: usize, layer: usize) -> Option<usize> {
        match self {
            Self::All(n) => Some(*n),
            Self::Each(blocks) => match blocks.get(block)? {
                Depth::Same(n) => Some(*n),
                Depth::Each(layers) => layers.get(layer).copied(),
            },
        }
    }

    /// Whether the stacks of a block differ in depth, so that the way up cannot be told from the way down.
    pub(super) fn is_unequal(&self) -> bool {
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

/// `unet/config.json`, as far as it changes the network; what is not supported is refused by name.
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
pub(super) const MID_ATTENDS: &str = "UNetMidBlock2DCrossAttn";

/// The middle of one ResNet block, as diffusers makes it inside this U-Net (SSD-1B, Segmind-Vega).
pub(super) const MID_PLAIN: &str = "UNetMidBlock2D";

pub(super) fn mid_block_type() -> Option<String> {
    Some(MID_ATTENDS.into())
}

pub(super) fn one() -> Depths {
    Depths::All(1)
}

pub(super) fn two() -> PerLevel {
    PerLevel::All(2)
}

pub(super) fn eight() -> PerLevel {
    PerLevel::All(8)
}

pub(super) fn thirty_two() -> Option<usize> {
    Some(32)
}

pub(super) fn norm_eps() -> f64 {
    1e-5
}

pub(super) fn yes() -> bool {
    true
}

pub(super) fn one_usize() -> usize {
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
pub(super) struct Stack {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) layers: usize,
    pub(super) context: usize,
}

impl UnetConfig {
    /// What is asked for that is not built, or does not hang together; `None` when the network can be built.
    #[must_use]
    // Long: one list of checks, each of which may rely on those before it.
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
                return Some(format!("asks for {key} = {value}, which is not supported"));
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
                    "{key} has {other:?}, which is not supported; expected {} or {}",
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
                    "a list with one number per level has no number for level {level}"
                ));
            };
            if layers > 64 || channels > 65_536 || context > 65_536 {
                return Some(format!(
                    "level {level} asks for {layers} layers, {channels} channels and texts of {context}; expected at most 64, 65536 and 65536"
                ));
            }
            if channels == 0 || heads == 0 || layers == 0 || context == 0 {
                return Some(format!("level {level} has a 0; expected a number above 0"));
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
                "in_channels is {} and out_channels {}, which is not supported; expected as many, twice as many and one (an inpainting model) or twice as many (InstructPix2Pix)",
                self.in_channels, self.out_channels
            ));
        }
        None
    }

    /// What is wrong with the numbers of transformer layers, if anything.
    pub(super) fn depth_fault(&self) -> Option<String> {
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
            n if own.checked_mul(2) == Some(n) => Some(Shown::Picture),
            n if own.checked_mul(2).and_then(|n| n.checked_add(1)) == Some(n) => {
                Some(Shown::Masked)
            }
            _ => None,
        }
    }

    /// Whether a level has attention on the way down.
    pub(super) fn attends_down(&self, level: usize) -> bool {
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

    pub(super) fn mid_attends(&self) -> bool {
        self.mid_block_type.as_deref() == Some(MID_ATTENDS)
    }

    /// Transformer layers of a stack on the way down.
    pub(super) fn down_depth(&self, level: usize, layer: usize) -> Option<usize> {
        self.transformer_layers_per_block.at(level, layer)
    }

    /// Of the one in the middle: those of the coarsest level's first.
    pub(super) fn mid_depth(&self) -> Option<usize> {
        self.down_depth(self.block_out_channels.len().checked_sub(1)?, 0)
    }

    /// Of one on the way up.
    pub(super) fn up_depth(&self, block: usize, layer: usize) -> Option<usize> {
        match &self.reverse_transformer_layers_per_block {
            Some(depths) => depths.at(block, layer),
            None => {
                let level = self.block_out_channels.len().checked_sub(block + 1)?;
                self.down_depth(level, layer)
            }
        }
    }

    /// What is wrong with the addition to the timestep's embedding, if anything.
    pub(super) fn addition_fault(&self) -> Option<String> {
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
                "asks for addition_embed_type = {other:?}, which is not supported"
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

    pub(super) fn heads(&self, level: usize) -> Option<usize> {
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
    pub(super) fn stack(&self, level: usize, depth: Option<usize>) -> Stack {
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

    pub(super) fn layers(&self, level: usize) -> usize {
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
