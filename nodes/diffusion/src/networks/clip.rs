//! CLIP's text encoder (Radford et al. 2021), as `transformers` configures and names it.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::checkpoint::weights::{Scope, Weights};
use crate::networks::layers::{LayerNorm, Linear};
use crate::{Error, Result};
use retouch_kernels::Kernel;

/// `text_encoder/config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipTextConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width C of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Number of layers. Stable Diffusion 2 ships 23 of OpenCLIP's 24, so that the last one is the penultimate.
    pub num_hidden_layers: usize,
    /// Heads of self-attention.
    pub num_attention_heads: usize,
    /// Longest sequence of tokens. Default: CLIPTextConfig's, 77.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    /// `quick_gelu` or `gelu`. Default: CLIPTextConfig's.
    #[serde(default)]
    pub hidden_act: Activation,
    /// Added to the variance in layer normalisation. Default: CLIPTextConfig's.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f64,
    /// Width P of the pooled state, where the encoder has a projection. Default: CLIPTextConfig's.
    #[serde(default = "default_projection")]
    pub projection_dim: usize,
    /// The id whose first state is pooled. 2, which old configurations have, means the highest id of the vocabulary in the
    /// prompt. Default: CLIPTextConfig's.
    #[serde(default = "default_eos")]
    pub eos_token_id: u32,
}

/// No network of the family is nearly as wide; a bound keeps a damaged configuration from taking all memory.
const MAX_WIDTH: usize = 65_536;

fn default_positions() -> usize {
    77
}

fn default_eps() -> f64 {
    1e-5
}

fn default_projection() -> usize {
    512
}

fn default_eos() -> u32 {
    49_407
}

/// The activation inside CLIP's MLPs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x sigmoid(1.702 x): OpenAI's CLIP, Stable Diffusion 1.
    #[default]
    QuickGelu,
    /// GELU by erf: OpenCLIP, Stable Diffusion 2.
    Gelu,
}

impl ClipTextConfig {
    /// What is wrong with the numbers, if anything.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let bounded = [
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                MAX_WIDTH,
            ),
            ("vocab_size", self.vocab_size, 10_000_000),
            ("projection_dim", self.projection_dim, MAX_WIDTH),
        ];
        if let Some((name, value, most)) = bounded.into_iter().find(|(_, v, most)| v > most) {
            return Some(format!("{name} is {value}; expected at most {most}"));
        }
        if self.hidden_size == 0 || self.num_attention_heads == 0 || self.vocab_size == 0 {
            return Some("hidden_size, num_attention_heads and vocab_size must be above 0".into());
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Some(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            ));
        }
        None
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// The text encoder.
#[derive(Debug)]
pub struct ClipText {
    config: ClipTextConfig,
    tokens: Tensor,
    /// The embeddings of added tokens `[n, C]`, for the ids from `vocab_size` on: a table for each that was added.
    added: Vec<Tensor>,
    positions: Tensor,
    layers: Vec<Block>,
    final_norm: LayerNorm,
    projection: Option<Linear>,
}

/// Which of the text encoder's states are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Counted from the end: 1 is the last layer.
    pub from_end: usize,
    /// Whether the final layer normalisation is applied to them.
    pub normalised: bool,
}

impl Layer {
    /// The last, normalised.
    pub const LAST: Self = Self {
        from_end: 1,
        normalised: true,
    };
}

/// What the text encoder gives for the tokens of one prompt.
#[derive(Clone, Debug)]
pub struct ClipStates {
    /// The hidden states `[1, N, C]`.
    pub states: Tensor,
    /// The projection `[1, P]` of the last layer's normalised state at the end token, of an encoder that has one.
    pub pooled: Option<Tensor>,
}

impl ClipText {
    /// Loads the encoder. Keys may carry the prefix `text_model.` (published checkpoints) or not (transformers 5).
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; while checking these are noted in `weights`.
    pub fn load(config: &ClipTextConfig, weights: &Weights) -> Result<Self> {
        Self::load_with(config, weights, false)
    }

    /// Loads an encoder with a projection (`CLIPTextModelWithProjection`), as SDXL's second is.
    ///
    /// # Errors
    /// As [`ClipText::load`].
    pub fn load_projected(config: &ClipTextConfig, weights: &Weights) -> Result<Self> {
        Self::load_with(config, weights, true)
    }

    fn load_with(config: &ClipTextConfig, weights: &Weights, projected: bool) -> Result<Self> {
        let root = weights.root();
        let root = if weights.contains("embeddings.token_embedding.weight") {
            root
        } else {
            root.at("text_model")
        };
        let c = config.hidden_size;
        let norm = |scope: Scope<'_>| LayerNorm::load(&scope, c, config.layer_norm_eps);
        let linear = |scope: Scope<'_>, i, o| Linear::load(&scope, i, o, true);
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let layer = root.at("encoder.layers").at(i);
                let attention = layer.at("self_attn");
                Ok(Block {
                    norm1: norm(layer.at("layer_norm1"))?,
                    q: linear(attention.at("q_proj"), c, c)?,
                    k: linear(attention.at("k_proj"), c, c)?,
                    v: linear(attention.at("v_proj"), c, c)?,
                    out: linear(attention.at("out_proj"), c, c)?,
                    norm2: norm(layer.at("layer_norm2"))?,
                    fc1: linear(layer.at("mlp.fc1"), c, config.intermediate_size)?,
                    fc2: linear(layer.at("mlp.fc2"), config.intermediate_size, c)?,
                })
            })
            .collect::<Result<_>>()?;
        let embeddings = root.at("embeddings");
        Ok(Self {
            tokens: embeddings.get("token_embedding.weight", (config.vocab_size, c))?,
            positions: embeddings.get(
                "position_embedding.weight",
                (config.max_position_embeddings, c),
            )?,
            layers,
            added: Vec::new(),
            final_norm: norm(root.at("final_layer_norm"))?,
            projection: projected
                .then(|| {
                    let scope = weights.root().at("text_projection");
                    Linear::load(&scope, c, config.projection_dim, false)
                })
                .transpose()?,
            config: config.clone(),
        })
    }

    /// Adds embeddings `[n, C]` for the ids that follow `vocab_size` and what was added before.
    ///
    /// # Errors
    /// When they are of another width.
    pub fn with_rows(mut self, rows: &Tensor) -> Result<Self> {
        let (n, width) = rows.dims2()?;
        let c = self.config.hidden_size;
        if width != c {
            return Err(Error::request(format!(
                "{n} embeddings of {width} features for a text encoder of {c}: they are of different families"
            )));
        }
        // What is trained is of float32 and on the device already, and stays the variable that it is.
        let dtype = if rows.is_variable() {
            DType::F32
        } else {
            self.tokens.dtype()
        };
        let rows = rows.to_device(self.tokens.device())?.to_dtype(dtype)?;
        self.added.push(rows);
        Ok(self)
    }

    /// The embeddings `[n, C]` of ids that it knows.
    ///
    /// # Errors
    /// When it does not know one.
    pub fn embeddings(&self, ids: &[u32]) -> Result<Tensor> {
        self.embed(ids, &retouch_kernels::Plain)
    }

    /// How many layers it has.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The embeddings `[N, C]` of ids; those of added tokens lie apart, so that the vocabulary's are not copied.
    fn embed(&self, ids: &[u32], kernel: &dyn Kernel) -> Result<Tensor> {
        // The tables, and the id that each begins at.
        let mut tables = vec![(0, &self.tokens)];
        let mut next = self.config.vocab_size as u32;
        for table in &self.added {
            tables.push((next, table));
            next += table.dim(0)? as u32;
        }
        let of = |id: u32| tables.partition_point(|(first, _)| *first <= id) - 1;
        let mut parts = Vec::new();
        for run in ids.chunk_by(|a, b| of(*a) == of(*b)) {
            let (first, table) = tables[of(run[0])];
            let rows: Vec<u32> = run.iter().map(|id| id - first).collect();
            parts.push(kernel.rows(table, &rows)?);
        }
        Ok(kernel.stack(&parts)?)
    }

    /// The position whose state is pooled, as transformers has it: the first end token, or with an old configuration the
    /// highest id of the vocabulary. Added tokens do not count there (in transformers they do, and are taken for the end).
    fn pooled_position(&self, ids: &[u32]) -> usize {
        let end = match self.config.eos_token_id {
            2 => {
                let own = ids
                    .iter()
                    .filter(|&&id| (id as usize) < self.config.vocab_size);
                own.max().copied().unwrap_or_default()
            }
            end => end,
        };
        ids.iter().position(|&id| id == end).unwrap_or(0)
    }

    /// The last hidden state `[1, N, C]`, normalised, of the token ids of one prompt. Each token sees those before it.
    ///
    /// # Errors
    /// When there are more ids than positions, or an id that the vocabulary doesn't have.
    pub fn encode(&self, ids: &[u32], kernel: &dyn Kernel) -> Result<Tensor> {
        Ok(self.encode_at(ids, Layer::LAST, kernel)?.states)
    }

    /// The states of a layer of the token ids of one prompt, and the pooled one. Each token sees those before it.
    ///
    /// # Errors
    /// When there are more ids than positions, an id that neither the vocabulary nor the added tokens have, or no such
    /// layer.
    pub fn encode_at(&self, ids: &[u32], layer: Layer, kernel: &dyn Kernel) -> Result<ClipStates> {
        let n = ids.len();
        let layers = self.layers.len();
        if layer.from_end == 0 || layer.from_end > layers.max(1) {
            return Err(Error::request(format!(
                "layer {} from the end of a text encoder of {layers}",
                layer.from_end
            ))
            .help(format!("give a `clip_skip` from 1 to {layers}")));
        }
        if n > self.config.max_position_embeddings {
            return Err(Error::request(format!(
                "a prompt of {n} tokens for a text encoder of {} positions",
                self.config.max_position_embeddings
            )));
        }
        let added = self.added.iter().map(|rows| rows.dims()[0]).sum::<usize>();
        let known = self.config.vocab_size + added;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= known) {
            return Err(Error::request(format!(
                "the tokenizer gives the id {id}, the text encoder knows {known} tokens: they don't belong together"
            )));
        }
        let positions = kernel.slice(&self.positions, 0, 0, n)?;
        let positions = positions.to_dtype(DType::F32)?;
        let x = kernel.add(&self.embed(ids, kernel)?, &positions)?;
        let heads = self.config.num_attention_heads;
        let scale = ((self.config.hidden_size / heads) as f64).powf(-0.5);
        let mut x = kernel.reshape(&x, &[1, n, self.config.hidden_size])?;
        let wanted = layers.saturating_sub(layer.from_end - 1);
        let mut states = None;
        // Without a projection nothing needs the layers after the one that is asked for.
        let needed = if self.projection.is_some() {
            layers
        } else {
            wanted
        };
        for (i, layer) in self.layers.iter().take(needed).enumerate() {
            let h = layer.norm1.forward(&x, kernel)?;
            let q = layer.q.forward(&h, kernel)?;
            let k = layer.k.forward(&h, kernel)?;
            let v = layer.v.forward(&h, kernel)?;
            let h = kernel.causal_attention(&q, &k, &v, heads, scale)?;
            x = kernel.add(&x, &layer.out.forward(&h, kernel)?)?;
            let h = layer
                .fc1
                .forward(&layer.norm2.forward(&x, kernel)?, kernel)?;
            let h = match self.config.hidden_act {
                Activation::QuickGelu => kernel.quick_gelu(&h)?,
                Activation::Gelu => kernel.gelu(&h)?,
            };
            x = kernel.add(&x, &layer.fc2.forward(&h, kernel)?)?;
            if i + 1 == wanted {
                states = Some(x.clone());
            }
        }
        debug_assert_eq!(x.dim(D::Minus1)?, self.config.hidden_size);
        let pooled = match &self.projection {
            Some(projection) => {
                let state = kernel.slice(&x, 1, self.pooled_position(ids), 1)?;
                let state = self.final_norm.forward(&state, kernel)?;
                let pooled = projection.forward(&state, kernel)?;
                Some(kernel.reshape(&pooled, &[1, pooled.elem_count()])?)
            }
            None => None,
        };
        let states = states.unwrap_or(x);
        Ok(ClipStates {
            states: if layer.normalised {
                self.final_norm.forward(&states, kernel)?
            } else {
                states
            },
            pooled,
        })
    }
}

/// Loads text encoder `index`, counted from 0: the second has the projection that makes the pooled state.
///
/// # Errors
/// As [`ClipText::load`].
pub fn load_text(config: &ClipTextConfig, index: usize, weights: &Weights) -> Result<ClipText> {
    match index {
        0 => ClipText::load(config, weights),
        _ => ClipText::load_projected(config, weights),
    }
}
