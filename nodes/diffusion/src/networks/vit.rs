//! Vision transformers that pictures are measured with: CLIP's picture half (Radford et al. 2021), DINO (Caron et al. 2021), DINOv2
//! (Oquab et al. 2023) with or without registers (Darcet et al. 2023), as `transformers` configures and names them.
//!
//! They are one network with few differences, so they are one here. candle-transformers has them apart, and not as they are
//! published: its DINOv2 has another epsilon (1e-5 for 1e-6), enlarges positions by the nearest one where the original is bicubic, and
//! asks for a classifier.

use candle_core::{DType, Tensor};
use serde_json::Value as Json;

use crate::checkpoint::weights::{Scope, Weights};
use crate::networks::bicubic;
use crate::networks::clip::Activation;
use crate::networks::layers::{LayerNorm, Linear};
use crate::{Error, Result, goes_on};
use retouch_kernels::{Kernel, Terms, Weight};

/// No network of the family is nearly as wide or deep; a bound keeps a damaged configuration from taking all memory.
const MAX_WIDTH: usize = 65_536;
const MAX_LAYERS: usize = 256;
const MAX_SIDE: usize = 4096;

/// Which of the networks it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `ViTModel`: DINO.
    Dino,
    /// `Dinov2Model`, `Dinov2WithRegistersModel`.
    Dinov2,
    /// The picture half of `CLIPModel`.
    Clip,
}

/// What `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct VitConfig {
    /// Which network it is.
    pub family: Family,
    /// Width C of the tokens.
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Width inside the MLPs.
    pub inner: usize,
    /// The side in pixels of a patch.
    pub patch: usize,
    /// The side in pixels of the pictures that the positions were learnt on.
    pub side: usize,
    /// Number of registers.
    pub registers: usize,
    /// Added to the variance in layer normalisation.
    pub eps: f64,
    /// Inside the MLPs.
    pub activation: Activation,
    /// The width of CLIP's common space.
    pub projection: Option<usize>,
}

impl VitConfig {
    /// Reads `config.json`; what it leaves out has the default of its class in `transformers`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(config: &Json) -> Result<Self, String> {
        let kind = config["model_type"].as_str().unwrap_or_default();
        let (family, own) = match kind {
            "vit" => (Family::Dino, config),
            "dinov2" | "dinov2_with_registers" => (Family::Dinov2, config),
            "clip" => (Family::Clip, &config["vision_config"]),
            "clip_vision_model" => (Family::Clip, config),
            other => {
                return Err(format!(
                    "`model_type` is {other:?}; expected `clip`, `vit` (DINO), `dinov2` or `dinov2_with_registers`"
                ));
            }
        };
        let number = |key: &str, default: usize| match &own[key] {
            Json::Null => Ok(default),
            value => (value.as_u64().and_then(|n| usize::try_from(n).ok()))
                .ok_or_else(|| format!("`{key}` is {value}; expected a whole number")),
        };
        let is_clip = family == Family::Clip;
        let width = number("hidden_size", 768)?;
        let inner = match family {
            Family::Dinov2 => width.saturating_mul(number("mlp_ratio", 4)?),
            _ => number("intermediate_size", 3072)?,
        };
        let activation = match own["hidden_act"].as_str() {
            None if is_clip => Activation::QuickGelu,
            None | Some("gelu") => Activation::Gelu,
            Some("quick_gelu") => Activation::QuickGelu,
            Some(other) => return Err(format!("`hidden_act` is {other:?}; expected `gelu`")),
        };
        if own["use_swiglu_ffn"].as_bool() == Some(true) {
            return Err(
                "`use_swiglu_ffn` is true (the giant DINOv2): that network is not supported".into(),
            );
        }
        let projection = match (is_clip, &config["projection_dim"], &own["projection_dim"]) {
            (false, ..) => None,
            (true, Json::Null, _) => Some(number("projection_dim", 512)?),
            (true, value, _) => Some(
                (value.as_u64().and_then(|n| usize::try_from(n).ok()))
                    .ok_or("`projection_dim` is not a whole number")?,
            ),
        };
        let made = Self {
            family,
            width,
            layers: number("num_hidden_layers", 12)?,
            heads: number("num_attention_heads", 12)?,
            inner,
            patch: number(
                "patch_size",
                match family {
                    Family::Dino => 16,
                    Family::Dinov2 => 14,
                    Family::Clip => 32,
                },
            )?,
            side: number("image_size", 224)?,
            registers: match kind {
                "dinov2_with_registers" => number("num_register_tokens", 4)?,
                _ => 0,
            },
            eps: own["layer_norm_eps"].as_f64().unwrap_or(match family {
                Family::Dino => 1e-12,
                Family::Dinov2 => 1e-6,
                Family::Clip => 1e-5,
            }),
            activation,
            projection,
        };
        match made.fault() {
            Some(fault) => Err(fault),
            None => Ok(made),
        }
    }

    fn fault(&self) -> Option<String> {
        let bounded = [
            ("hidden_size", self.width, MAX_WIDTH),
            ("intermediate_size", self.inner, MAX_WIDTH),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_WIDTH),
            ("image_size", self.side, MAX_SIDE),
            ("patch_size", self.patch, MAX_SIDE),
        ];
        for (name, value, most) in bounded {
            if value == 0 || value > most {
                return Some(format!("`{name}` is {value}; expected 1 to {most}"));
            }
        }
        if self.registers > MAX_LAYERS {
            return Some(format!("`num_register_tokens` is {}", self.registers));
        }
        if self.projection.is_some_and(|p| p == 0 || p > MAX_WIDTH) {
            return Some(format!("`projection_dim` is not 1 to {MAX_WIDTH}"));
        }
        if !self.width.is_multiple_of(self.heads) {
            return Some(format!(
                "`hidden_size` {} is not a multiple of `num_attention_heads` {}",
                self.width, self.heads
            ));
        }
        (self.patch > self.side).then(|| {
            format!(
                "`patch_size` {} is larger than `image_size` {}",
                self.patch, self.side
            )
        })
    }

    /// The number of features of a picture.
    #[must_use]
    pub fn features(&self) -> usize {
        self.projection.unwrap_or(self.width)
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    /// What DINOv2 multiplies the halves of a block with.
    scales: Option<(Tensor, Tensor)>,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// The network.
#[derive(Debug)]
pub struct Vit {
    config: VitConfig,
    /// `[C, 3 * patch * patch]`, as a matrix over the patches' numbers.
    patches: Weight,
    patch_bias: Option<Tensor>,
    class: Tensor,
    registers: Option<Tensor>,
    positions: Tensor,
    before: Option<LayerNorm>,
    layers: Vec<Block>,
    after: LayerNorm,
    projection: Option<Weight>,
}

impl Vit {
    /// Loads the network.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; while checking these are noted in `weights`.
    pub fn load(config: &VitConfig, weights: &Weights, kernel: &dyn Kernel) -> Result<Self> {
        let c = config.width;
        let is_clip = config.family == Family::Clip;
        let root = weights.root();
        // A whole CLIPModel has its halves below names; published DINO checkpoints may have the prefix of the class.
        let prefix = ["vision_model", "vit", "dinov2", "dinov2_with_registers"]
            .into_iter()
            .find(|name| weights.contains(&format!("{name}.{}", Self::class_name(config))));
        let body = prefix.map_or_else(|| root.clone(), |name| root.at(name));
        let embeddings = body.at("embeddings");
        let (patch_name, rank) = match is_clip {
            true => ("patch_embedding", 1),
            false => ("patch_embeddings.projection", 3),
        };
        let patch = embeddings.at(patch_name);
        let shape = (c, 3, config.patch, config.patch);
        // While checking the shapes alone count: nothing is copied or packed.
        let patches = if patch.is_checking() {
            patch.weight("weight", shape)?
        } else {
            let window = patch.get("weight", shape)?;
            Weight::new(&window.flatten_from(1)?.contiguous()?, kernel)?
        };
        let side = config.side / config.patch;
        let count = side * side + 1;
        let class = match rank {
            1 => embeddings.get("class_embedding", c)?,
            _ => embeddings.get("cls_token", (1, 1, c))?,
        };
        let positions = match is_clip {
            true => embeddings.get("position_embedding.weight", (count, c))?,
            false => embeddings.get("position_embeddings", (1, count, c))?,
        };
        let registers = (config.registers > 0)
            .then(|| embeddings.get("register_tokens", (1, config.registers, c)))
            .transpose()?;
        let norm = |scope: Scope<'_>| LayerNorm::load(&scope, c, config.eps);
        let encoder = body.at("encoder");
        let layers = (0..config.layers)
            .map(|i| Block::load(config, &encoder, i))
            .collect::<Result<_>>()?;
        let tokens = |t: Tensor| -> Result<Tensor> {
            if root.is_checking() {
                return Ok(t);
            }
            Ok(t.to_dtype(DType::F32)?.reshape(((), c))?)
        };
        Ok(Self {
            patches,
            patch_bias: (!is_clip).then(|| patch.get("bias", c)).transpose()?,
            class: tokens(class)?,
            registers: registers.map(tokens).transpose()?,
            positions: tokens(positions)?,
            // The name is spelled so in the published files.
            before: is_clip.then(|| norm(body.at("pre_layrnorm"))).transpose()?,
            layers,
            after: norm(body.at(if is_clip {
                "post_layernorm"
            } else {
                "layernorm"
            }))?,
            projection: (config.projection)
                .map(|p| root.at("visual_projection").weight("weight", (p, c)))
                .transpose()?,
            config: config.clone(),
        })
    }

    fn class_name(config: &VitConfig) -> &'static str {
        match config.family {
            Family::Clip => "embeddings.class_embedding",
            _ => "embeddings.cls_token",
        }
    }

    /// The features `[1, F]` of a picture `[3][side * side]` that is normalised already: the class token's last state, normalised,
    /// of CLIP projected into the common space. The side is a multiple of the patch's.
    ///
    /// # Errors
    /// When the size does not fit, or the run was cancelled.
    pub fn features(&self, colours: &[f32], side: usize, kernel: &dyn Kernel) -> Result<Tensor> {
        let config = &self.config;
        if side == 0 || colours.len() != 3 * side * side || !side.is_multiple_of(config.patch) {
            return Err(Error::request(format!(
                "a picture of {side}x{side} pixels for a network with patches of {}",
                config.patch
            )));
        }
        let device = self.class.device();
        let grid = side / config.patch;
        let patches = gathered(colours, side, config.patch);
        let of = 3 * config.patch * config.patch;
        let patches = Tensor::from_vec(patches, (1, grid * grid, of), device)?;
        let bias = Terms::bias(self.patch_bias.as_ref());
        let patches = kernel.linear(&patches, &self.patches, bias)?.squeeze(0)?;
        let x = Tensor::cat(&[&self.class, &patches], 0)?;
        let mut x = (x + self.positions_at(grid)?)?;
        if let Some(registers) = &self.registers {
            let rest = x.narrow(0, 1, grid * grid)?;
            x = Tensor::cat(&[&x.narrow(0, 0, 1)?, registers, &rest], 0)?;
        }
        let mut x = x.unsqueeze(0)?;
        if let Some(norm) = &self.before {
            x = norm.forward(&x, kernel)?;
        }
        for layer in &self.layers {
            goes_on()?;
            x = layer.forward(&x, config, kernel)?;
        }
        let class = self
            .after
            .forward(&x.narrow(1, 0, 1)?.contiguous()?, kernel)?;
        let features = match &self.projection {
            Some(weight) => kernel.linear(&class, weight, Terms::default())?,
            None => class,
        };
        Ok(features.squeeze(1)?)
    }

    /// The positions of a grid: those that were learnt, resized bicubically to another one; where there are registers with
    /// smoothing, and else without it, as `transformers` does.
    fn positions_at(&self, grid: usize) -> Result<Tensor> {
        let (count, c) = self.positions.dims2()?;
        let own = self.config.side / self.config.patch;
        if own == grid {
            return Ok(self.positions.clone());
        }
        let planes = self.positions.narrow(0, 1, count - 1)?.t()?;
        let planes: Vec<f32> = planes.flatten_all()?.to_vec1()?;
        let resize = match self.registers {
            Some(_) => bicubic::smooth_plane,
            None => bicubic::plane,
        };
        let resized: Vec<f32> = planes
            .chunks_exact(own * own)
            .flat_map(|plane| resize(plane, (own, own), (grid, grid)))
            .collect();
        let resized = Tensor::from_vec(resized, (c, grid * grid), self.positions.device())?.t()?;
        Ok(Tensor::cat(
            &[&self.positions.narrow(0, 0, 1)?, &resized.contiguous()?],
            0,
        )?)
    }
}

/// The numbers of each patch in the order of a convolution's window, `[patches][3 * patch * patch]`.
fn gathered(colours: &[f32], side: usize, patch: usize) -> Vec<f32> {
    let grid = side / patch;
    let mut gathered = Vec::with_capacity(colours.len());
    for place in 0..grid * grid {
        let (top, left) = (place / grid * patch, place % grid * patch);
        for plane in colours.chunks_exact(side * side) {
            for row in top..top + patch {
                gathered.extend_from_slice(&plane[row * side + left..][..patch]);
            }
        }
    }
    gathered
}

impl Block {
    fn load(config: &VitConfig, encoder: &Scope<'_>, index: usize) -> Result<Self> {
        let c = config.width;
        let is_clip = config.family == Family::Clip;
        let layer = match is_clip {
            true => encoder.at("layers").at(index),
            false => encoder.at("layer").at(index),
        };
        let norm = |name: &str| LayerNorm::load(&layer.at(name), c, config.eps);
        // The present names, and those that transformers 5 writes.
        let linear = |names: &[&str], i, o| Linear::load_any(&layer, names, i, o);
        let (norms, q, k, v, out) = match config.family {
            Family::Clip => (
                ["layer_norm1", "layer_norm2"],
                ["self_attn.q_proj"; 2],
                ["self_attn.k_proj"; 2],
                ["self_attn.v_proj"; 2],
                ["self_attn.out_proj"; 2],
            ),
            family => (
                match family {
                    Family::Dino => ["layernorm_before", "layernorm_after"],
                    _ => ["norm1", "norm2"],
                },
                ["attention.attention.query", "attention.q_proj"],
                ["attention.attention.key", "attention.k_proj"],
                ["attention.attention.value", "attention.v_proj"],
                ["attention.output.dense", "attention.o_proj"],
            ),
        };
        let (fc1, fc2) = match config.family {
            Family::Dino => (
                ["intermediate.dense", "mlp.fc1"],
                ["output.dense", "mlp.fc2"],
            ),
            _ => (["mlp.fc1"; 2], ["mlp.fc2"; 2]),
        };
        let scale = |name: &str| layer.get(&format!("{name}.lambda1"), c);
        Ok(Self {
            norm1: norm(norms[0])?,
            q: linear(&q, c, c)?,
            k: linear(&k, c, c)?,
            v: linear(&v, c, c)?,
            out: linear(&out, c, c)?,
            scales: (config.family == Family::Dinov2)
                .then(|| Ok::<_, Error>((scale("layer_scale1")?, scale("layer_scale2")?)))
                .transpose()?,
            norm2: norm(norms[1])?,
            fc1: linear(&fc1, c, config.inner)?,
            fc2: linear(&fc2, config.inner, c)?,
        })
    }

    fn forward(&self, x: &Tensor, config: &VitConfig, kernel: &dyn Kernel) -> Result<Tensor> {
        let scaled = |t: Tensor, first: bool| -> Result<Tensor> {
            match &self.scales {
                Some((one, two)) => Ok(t.broadcast_mul(if first { one } else { two })?),
                None => Ok(t),
            }
        };
        let h = self.norm1.forward(x, kernel)?;
        let (q, k, v) = (
            self.q.forward(&h, kernel)?,
            self.k.forward(&h, kernel)?,
            self.v.forward(&h, kernel)?,
        );
        let scale = ((config.width / config.heads) as f64).powf(-0.5);
        let h = kernel.attention(&q, &k, &v, config.heads, scale, None)?;
        let x = (x + scaled(self.out.forward(&h, kernel)?, true)?)?;
        let h = self.norm2.forward(&x, kernel)?;
        let h = self.fc1.forward(&h, kernel)?;
        let h = match config.activation {
            Activation::QuickGelu => (&h * candle_nn::ops::sigmoid(&(&h * 1.702)?)?)?,
            Activation::Gelu => h.gelu_erf()?,
        };
        Ok((&x + scaled(self.fc2.forward(&h, kernel)?, false)?)?)
    }
}
