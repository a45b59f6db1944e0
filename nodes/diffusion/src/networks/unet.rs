//! The U-Net of Stable Diffusion 1.x, 2.x and XL (diffusers' `UNet2DConditionModel`), with numbered attention sites.

mod config;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::checkpoint::weights::{Scope, Weights};
use crate::networks::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::sampling::attention_row::Heads;
use crate::sampling::control::{AttentionControl, AttentionKind, Qkv, Rows, Site, Untouched};
use crate::{Error, Result};
use config::Stack;
pub use config::{Depth, Depths, Part, PerLevel, SIZES, Shown, SiteInfo, UnetConfig, grid_at};
use retouch_kernels::{Kernel, Padding};

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
        let time = self.time.forward(time, kernel)?;
        let (rows, _, width) = time.dims3()?;
        let time = kernel.reshape(&time, &[rows, width])?;
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
    /// Of cross-attention in Custom Diffusion's training.
    holds_first_token: bool,
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
            holds_first_token: false,
        })
    }

    /// Cross-attention.
    fn load_cross(
        scope: &Scope<'_>,
        channels: usize,
        context: usize,
        heads: usize,
    ) -> Result<Self> {
        Ok(Self {
            holds_first_token: scope.holds_first_token(),
            ..Self::load(scope, channels, context, heads)?
        })
    }

    fn keys_values(&self, source: &Tensor, kernel: &dyn Kernel) -> Result<KeysValues> {
        let (k, v) = (
            self.k.forward(source, kernel)?,
            self.v.forward(source, kernel)?,
        );
        if self.holds_first_token {
            return Ok(KeysValues {
                k: kernel.hold_first(&k)?,
                v: kernel.hold_first(&v)?,
            });
        }
        Ok(KeysValues { k, v })
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
            k: run.kernel.stack(&keys)?,
            v: run.kernel.stack(&values)?,
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
                    cross: Attention::load_cross(
                        &layer.at("attn2"),
                        c,
                        stack.context,
                        stack.heads,
                    )?,
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
        let mut t = kernel.tokens(&self.norm.forward(x, kernel)?)?;
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
        let residual = kernel.tokens(x)?;
        let y = self.project_out.forward_onto(&t, Some(&residual), kernel)?;
        Ok(kernel.images_of_tokens(&y, h, w)?)
    }
}

/// A ResNet block, and the transformer behind it where there is one: what is computed again in training when memory is to be
/// saved.
#[derive(Debug)]
struct Stage {
    resnet: Resnet,
    transformer: Option<Transformer>,
}

impl Stage {
    fn forward(&self, x: &Tensor, time: &Tensor, run: &mut Run<'_>) -> Result<Tensor> {
        let x = self.resnet.forward(x, time, run.kernel)?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&x, run),
            None => Ok(x),
        }
    }
}

#[derive(Debug)]
struct Block {
    stages: Vec<Arc<Stage>>,
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
    first: Arc<Stage>,
    /// What follows where the middle has attention.
    last: Option<Resnet>,
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
    // Long: one network, block by block in the order of its channels.
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
            let mut stages = Vec::new();
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
                stages.push(Arc::new(Stage {
                    resnet,
                    transformer,
                }));
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
            down.push(Block { stages, resample });
        }
        let scope = root.at("mid_block");
        let resnet =
            |i: usize| Resnet::load(&scope.at("resnets").at(i), coarsest, coarsest, config);
        let mid = match config.mid_block_type {
            None => None,
            Some(_) if !config.mid_attends() => Some(Middle {
                first: Arc::new(Stage {
                    resnet: resnet(0)?,
                    transformer: None,
                }),
                last: None,
            }),
            Some(_) => {
                let first = resnet(0)?;
                let stack = config.stack(levels - 1, config.mid_depth());
                let transformer =
                    Transformer::load(&scope.at("attentions.0"), stack, config, &mut site)?;
                Some(Middle {
                    first: Arc::new(Stage {
                        resnet: first,
                        transformer: Some(transformer),
                    }),
                    last: Some(resnet(1)?),
                })
            }
        };
        let mut up = Vec::new();
        let mut input = coarsest;
        for i in 0..levels {
            let level = levels - 1 - i;
            let scope = root.at("up_blocks").at(i);
            let output = channels[level];
            let mut stages = Vec::new();
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
                stages.push(Arc::new(Stage {
                    resnet,
                    transformer,
                }));
                input = output;
            }
            let resample = (i + 1 < levels)
                .then(|| Conv2d::load_same(&scope.at("upsamplers.0.conv"), output, output, 3))
                .transpose()?;
            up.push(Block { stages, resample });
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
        let x = kernel.join(addition.pooled, &sizes)?;
        let x = kernel.reshape(&x, &[rows, 1, x.elem_count() / rows])?;
        let x = kernel.silu(&linear1.forward(&x, kernel)?)?;
        Ok(Some(linear2.forward(&x, kernel)?))
    }

    /// One stage; in training it may be computed again in place of being kept.
    fn stage(
        &self,
        stage: &Arc<Stage>,
        x: &Tensor,
        time: &Tensor,
        run: &mut Run<'_>,
    ) -> Result<Tensor> {
        if !run.kernel.recomputes() {
            return stage.forward(x, time, run);
        }
        let (stage, mark, step, rows) = (stage.clone(), self.mark.clone(), run.step, run.rows);
        let mut inputs = vec![x, time];
        inputs.extend(run.texts.iter().map(|text| &text.states));
        let part = move |kernel: &dyn Kernel, inputs: &[Tensor]| {
            let texts: Vec<_> = inputs[2..].iter().cloned().map(Text::new).collect();
            let run = &mut Run {
                step,
                rows,
                texts: &texts.iter().collect::<Vec<_>>(),
                network: &mark,
                control: &mut Untouched,
                kernel,
            };
            let y = stage.forward(&inputs[0], &inputs[1], run);
            y.map_err(|e| match e {
                Error::Tensor(e) => e,
                other => candle_core::Error::wrap(other),
            })
        };
        Ok(run.kernel.part(&inputs, Arc::new(part))?)
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
        let time = kernel.silu(&self.time1.forward(&time, kernel)?)?;
        let mut time = self.time2.forward(&time, kernel)?;
        if let Some(added) = self.added(&call, kernel)? {
            time = kernel.add(&time, &added)?;
        }
        // Every ResNet block takes SiLU of the embedding: applied once.
        let time = kernel.silu(&time)?;
        let layout = kernel.layout();
        let mut x = self.conv_in.forward(&kernel.images(call.latent)?, kernel)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            for stage in &block.stages {
                x = self.stage(stage, &x, &time, run)?;
                skips.push(x.clone());
            }
            if let Some(resample) = &block.resample {
                x = resample.forward(&x, kernel)?;
                skips.push(x.clone());
            }
        }
        if let Some(mid) = &self.mid {
            x = self.stage(&mid.first, &x, &time, run)?;
            if let Some(last) = &mid.last {
                x = last.forward(&x, &time, kernel)?;
            }
        }
        for block in &self.up {
            for stage in &block.stages {
                let skip = skips
                    .pop()
                    .ok_or_else(|| Error::request("the U-Net has fewer skips than it uses"))?;
                let joined = kernel.concat(&x, &skip)?;
                x = self.stage(stage, &joined, &time, run)?;
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
        Ok(kernel.planes(&self.conv_out.forward(&x, kernel)?)?)
    }
}
