//! CLIP's text encoder (Radford et al. 2021), as `transformers` configures and names it.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::layers::{LayerNorm, Linear};
use super::weights::{Scope, Weights};
use super::{Error, Result};
use crate::kernels::Kernel;

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
}

/// No network of the family is nearly as wide; a bound keeps a damaged configuration from taking all memory.
const MAX_WIDTH: usize = 65_536;

fn default_positions() -> usize {
    77
}

fn default_eps() -> f64 {
    1e-5
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
struct Layer {
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
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
}

impl ClipText {
    /// Loads the encoder. Keys may carry the prefix `text_model.` (published checkpoints) or not (transformers 5).
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; while checking these are noted in `weights`.
    pub fn load(config: &ClipTextConfig, weights: &Weights) -> Result<Self> {
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
                Ok(Layer {
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
            final_norm: norm(root.at("final_layer_norm"))?,
            config: config.clone(),
        })
    }

    /// The last hidden state `[1, N, C]`, normalised, of the token ids of one prompt. Each token sees those before it.
    ///
    /// # Errors
    /// When there are more ids than positions, or an id that the vocabulary doesn't have.
    pub fn encode(&self, ids: &[u32], kernel: &dyn Kernel) -> Result<Tensor> {
        let n = ids.len();
        if n > self.config.max_position_embeddings {
            return Err(Error::request(format!(
                "a prompt of {n} tokens for a text encoder of {} positions",
                self.config.max_position_embeddings
            )));
        }
        if let Some(id) = ids
            .iter()
            .find(|&&id| id as usize >= self.config.vocab_size)
        {
            return Err(Error::request(format!(
                "the tokenizer gives the id {id}, the text encoder knows {} tokens: they don't belong together",
                self.config.vocab_size
            )));
        }
        let device = self.tokens.device();
        let ids = Tensor::new(ids, device)?;
        let mut x =
            (self.tokens.index_select(&ids, 0)? + self.positions.narrow(0, 0, n)?)?.unsqueeze(0)?;
        let mask: Vec<f32> = (0..n * n)
            .map(|i| {
                if i % n > i / n {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        let mask = Tensor::from_vec(mask, (1, n, n), device)?;
        let heads = self.config.num_attention_heads;
        let size = self.config.hidden_size / heads;
        let split = |t: Tensor| -> Result<Tensor> {
            Ok(t.reshape((n, heads, size))?.transpose(0, 1)?.contiguous()?)
        };
        for layer in &self.layers {
            let h = layer.norm1.forward(&x, kernel)?;
            let q = split(layer.q.forward(&h, kernel)?)?;
            let k = split(layer.k.forward(&h, kernel)?)?;
            let v = split(layer.v.forward(&h, kernel)?)?;
            let scores = (q.matmul(&k.transpose(1, 2)?)? * (size as f64).powf(-0.5))?;
            let weights = candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&mask)?)?;
            let h = weights
                .matmul(&v)?
                .transpose(0, 1)?
                .reshape((1, n, heads * size))?;
            x = (x + layer.out.forward(&h, kernel)?)?;
            let h = layer
                .fc1
                .forward(&layer.norm2.forward(&x, kernel)?, kernel)?;
            let h = match self.config.hidden_act {
                Activation::QuickGelu => (&h * candle_nn::ops::sigmoid(&(&h * 1.702)?)?)?,
                Activation::Gelu => h.gelu_erf()?,
            };
            x = (x + layer.fc2.forward(&h, kernel)?)?;
        }
        debug_assert_eq!(x.dim(D::Minus1)?, self.config.hidden_size);
        self.final_norm.forward(&x, kernel)
    }
}
