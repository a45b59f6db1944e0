//! What each method trains, under which names, and what it begins as.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::draws::Draws;
use super::dropout::Dropout;
use crate::checkpoint::adapters::{Networks, Shapes};
use crate::checkpoint::model::Checkpoint;
use crate::checkpoint::weights::{TrainedFactors, Variables};
use crate::{Error, Result};

/// A network of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// The U-Net.
    Unet,
    /// A text encoder, counted from 0.
    Text(usize),
}

impl Network {
    /// The number of a text encoder.
    #[must_use]
    pub fn text(self) -> Option<usize> {
        match self {
            Self::Unet => None,
            Self::Text(i) => Some(i),
        }
    }
}

/// What a parameter is to its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A tensor of the network's own.
    Tensor,
    /// The first low-rank factor beside a weight, `[R, in, ..]`.
    Down,
    /// The second, `[out, R, ..]`.
    Up,
    /// The embeddings of a new token, `[n, C]`.
    Token,
}

/// Numbers that are trained.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The network that it is in.
    pub network: Network,
    /// The tensor's name there (of text encoders without `text_model.`); of a token's embeddings the token.
    pub tensor: String,
    /// What it is.
    pub role: Role,
    /// Its numbers.
    pub variable: Tensor,
}

impl Parameter {
    /// The name that tells it from all others of a training.
    #[must_use]
    pub fn name(&self) -> String {
        let network = match self.network {
            Network::Unet => "unet".to_owned(),
            Network::Text(i) => format!("text{i}"),
        };
        let role = match self.role {
            Role::Tensor => "tensor",
            Role::Down => "down",
            Role::Up => "up",
            Role::Token => "token",
        };
        format!("{network}/{role}/{}", self.tensor)
    }
}

/// Low-rank adaptation (Hu et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraOptions {
    /// R.
    pub rank: usize,
    /// The share of a layer's inputs that its factors do not see at a step.
    pub dropout: f64,
    /// What is learned counts alpha / R.
    pub alpha: f64,
    /// Whether the convolutions of ResNet blocks and of resampling are adapted beside the attentions' projections.
    pub convolutions: bool,
    /// Whether the text encoders' attentions are adapted too.
    pub text: bool,
}

/// A new token and what its embeddings begin as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// What stands for it in prompts.
    pub token: String,
    /// A word or a few whose embeddings it begins with, over and over.
    pub initial: String,
    /// How many vectors it has.
    pub vectors: usize,
}

/// All that a method trains.
#[derive(Clone, Debug, Default)]
pub struct Trained {
    /// In a fixed order.
    pub parameters: Vec<Parameter>,
    /// alpha / R of low-rank factors.
    pub scale: f64,
    /// What of their inputs low-rank factors see.
    pub dropout: Option<Dropout>,
    /// Whether no gradient goes through a text's first token.
    pub holds_first_token: bool,
}

/// The projections of an attention that LoRA and Custom Diffusion name.
fn is_attention(name: &str) -> bool {
    let projection = ["to_q", "to_k", "to_v", "to_out.0"];
    name.strip_suffix(".weight").is_some_and(|layer| {
        projection.iter().any(|end| {
            layer
                .strip_suffix(end)
                .is_some_and(|site| site.ends_with(".attn1.") || site.ends_with(".attn2."))
        })
    })
}

/// Keys and values of cross-attention: what Custom Diffusion (Kumari et al. 2023) trains.
fn is_cross_key_or_value(name: &str) -> bool {
    name.ends_with(".attn2.to_k.weight") || name.ends_with(".attn2.to_v.weight")
}

/// The convolutions of ResNet blocks and of resampling.
fn is_convolution(name: &str) -> bool {
    let ends = [
        ".conv1.weight",
        ".conv2.weight",
        ".conv_shortcut.weight",
        "samplers.0.conv.weight",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

fn is_text_attention(name: &str) -> bool {
    let ends = ["q_proj", "k_proj", "v_proj", "out_proj"];
    name.strip_suffix(".weight").is_some_and(|layer| {
        layer.contains(".self_attn.") && ends.iter().any(|end| layer.ends_with(end))
    })
}

fn variable(values: &Tensor, device: &Device) -> Result<Tensor> {
    let values = values.to_dtype(DType::F32)?.to_device(device)?;
    Ok(Var::from_tensor(&values.contiguous()?)?.into_inner())
}

impl Trained {
    /// Low-rank factors: the first as PEFT begins it, uniform within 1 / sqrt(in), the second zero.
    ///
    /// # Errors
    /// When nothing of the model's is adapted, or memory is short.
    pub fn lora(model: &Checkpoint, options: &LoraOptions, seed: u64) -> Result<Self> {
        let networks = networks(model)?;
        let mut trained = Self {
            parameters: Vec::new(),
            scale: options.alpha / options.rank as f64,
            dropout: (options.dropout > 0.0)
                .then(|| Dropout::new(options.dropout, seed, model.device())),
            holds_first_token: false,
        };
        let unet =
            |name: &str| is_attention(name) || (options.convolutions && is_convolution(name));
        trained.add_factors(
            model,
            Network::Unet,
            &networks.unet,
            unet,
            options.rank,
            seed,
        )?;
        if options.text {
            for (i, shapes) in networks.texts.iter().enumerate() {
                let network = Network::Text(i);
                trained.add_factors(
                    model,
                    network,
                    shapes,
                    is_text_attention,
                    options.rank,
                    seed,
                )?;
            }
        }
        if trained.parameters.is_empty() {
            return Err(Error::request("the model has no attention to adapt"));
        }
        Ok(trained)
    }

    fn add_factors(
        &mut self,
        model: &Checkpoint,
        network: Network,
        shapes: &Shapes,
        wanted: impl Fn(&str) -> bool,
        rank: usize,
        seed: u64,
    ) -> Result<()> {
        for (name, shape) in shapes.iter().filter(|(name, _)| wanted(name)) {
            let (&[out, ref inner @ ..], true) = (shape.as_slice(), shape.len() >= 2) else {
                continue;
            };
            let fan_in: usize = inner.iter().product();
            let bound = 1.0 / (fan_in as f64).sqrt();
            let mut down = vec![rank];
            down.extend_from_slice(inner);
            let mut up = vec![1; shape.len()];
            (up[0], up[1]) = (out, rank);
            let mut parameter = Parameter {
                network,
                tensor: name.clone(),
                role: Role::Down,
                variable: Tensor::zeros((), DType::F32, &Device::Cpu)?,
            };
            let draws = Draws::new(seed, &parameter.name());
            let values = draws.uniform(rank * fan_in, bound);
            let values = Tensor::from_vec(values, down, &Device::Cpu)?;
            parameter.variable = variable(&values, model.device())?;
            self.parameters.push(parameter.clone());
            parameter.role = Role::Up;
            let zeros = Tensor::zeros(up, DType::F32, &Device::Cpu)?;
            parameter.variable = variable(&zeros, model.device())?;
            self.parameters.push(parameter);
        }
        Ok(())
    }

    /// Tensors of the networks themselves, from what the model has.
    fn add_tensors(
        &mut self,
        model: &Checkpoint,
        network: Network,
        shapes: &Shapes,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let names = shapes.iter().filter(|(name, _)| wanted(name));
        let names: Vec<_> = names
            .map(|(name, shape)| (name.clone(), shape.clone()))
            .collect();
        for ((tensor, _), values) in names.iter().zip(model.tensors_of(network.text(), &names)?) {
            self.parameters.push(Parameter {
                network,
                tensor: tensor.clone(),
                role: Role::Tensor,
                variable: variable(&values, model.device())?,
            });
        }
        Ok(())
    }

    /// All weights of the U-Net, and if `text` of the text encoders (Ruiz et al. 2023, DreamBooth).
    ///
    /// # Errors
    /// When the weights cannot be read, or memory is short.
    pub fn dreambooth(model: &Checkpoint, text: bool) -> Result<Self> {
        let networks = networks(model)?;
        let mut trained = Self::default();
        trained.add_tensors(model, Network::Unet, &networks.unet, |_| true)?;
        if text {
            for (i, shapes) in networks.texts.iter().enumerate() {
                trained.add_tensors(model, Network::Text(i), shapes, |_| true)?;
            }
        }
        Ok(trained)
    }

    /// The embeddings of new tokens, in every text encoder (Gal et al. 2022). The model has the tokens already, so that its
    /// tokenizers know them.
    ///
    /// # Errors
    /// When an initial word is none, or memory is short.
    pub fn textual_inversion(model: &Checkpoint, tokens: &[NewToken]) -> Result<Self> {
        let mut trained = Self::default();
        trained.add_tokens(model, tokens, model.texts())?;
        Ok(trained)
    }

    /// Keys and values of cross-attention and, if there is a token, its embeddings (Kumari et al. 2023).
    ///
    /// # Errors
    /// As [`Trained::textual_inversion`].
    pub fn custom_diffusion(model: &Checkpoint, tokens: &[NewToken]) -> Result<Self> {
        let networks = networks(model)?;
        let mut trained = Self {
            holds_first_token: true,
            ..Self::default()
        };
        trained.add_tensors(model, Network::Unet, &networks.unet, is_cross_key_or_value)?;
        trained.add_tokens(model, tokens, model.texts())?;
        Ok(trained)
    }

    fn add_tokens(&mut self, model: &Checkpoint, tokens: &[NewToken], texts: usize) -> Result<()> {
        for token in tokens {
            for text in 0..texts {
                let rows = initial_rows(model, text, token)?;
                self.parameters.push(Parameter {
                    network: Network::Text(text),
                    tensor: token.token.clone(),
                    role: Role::Token,
                    variable: variable(&rows, model.device())?,
                });
            }
        }
        Ok(())
    }

    /// The variables of a network, for building it.
    #[must_use]
    pub fn variables(&self, network: Network) -> Arc<Variables> {
        let mut variables = Variables {
            holds_first_token: self.holds_first_token && network == Network::Unet,
            ..Variables::default()
        };
        let own = self.parameters.iter().filter(|p| p.network == network);
        let mut downs: BTreeMap<&str, &Tensor> = BTreeMap::new();
        for parameter in own {
            let name = parameter.tensor.as_str();
            let value = &parameter.variable;
            match parameter.role {
                Role::Tensor => {
                    variables.tensors.insert(name.to_owned(), value.clone());
                }
                Role::Down => {
                    downs.insert(name, value);
                }
                Role::Up => {
                    if let Some(down) = downs.get(name) {
                        let factors = TrainedFactors {
                            down: (*down).clone(),
                            up: value.clone(),
                            scale: self.scale,
                            dropout: self.dropout.as_ref().map(|d| d.layer(&parameter.name())),
                        };
                        variables.factors.insert(name.to_owned(), factors);
                    }
                }
                Role::Token => {}
            }
        }
        Arc::new(variables)
    }

    /// The embeddings of new tokens in a text encoder, in their order.
    #[must_use]
    pub fn rows(&self, text: usize) -> Vec<Tensor> {
        let own = self.parameters.iter();
        own.filter(|p| p.role == Role::Token && p.network == Network::Text(text))
            .map(|p| p.variable.clone())
            .collect()
    }

    /// Whether anything of a text encoder is trained.
    #[must_use]
    pub fn trains_text(&self) -> bool {
        self.parameters
            .iter()
            .any(|p| matches!(p.network, Network::Text(_)))
    }

    /// How many numbers are trained.
    #[must_use]
    pub fn count(&self) -> usize {
        let counts = self.parameters.iter().map(|p| p.variable.elem_count());
        counts.sum()
    }
}

fn networks(model: &Checkpoint) -> Result<Networks<'_>> {
    let description = model.description();
    let texts: Vec<_> = description.texts.iter().map(|t| t.config.clone()).collect();
    Networks::of(&description.unet, &texts)
}

/// The embeddings `[n, C]` that a token begins with in a text encoder: those of its initial words, over and over.
///
/// # Errors
/// When the initial words are no word.
pub fn initial_rows(model: &Checkpoint, text: usize, token: &NewToken) -> Result<Tensor> {
    let words = model.tokenizer(text)?.words(&token.initial)?;
    let ids: Vec<u32> = words.into_iter().flat_map(|word| word.ids()).collect();
    if ids.is_empty() {
        return Err(Error::request(format!(
            "the initial word {:?} has no token in the model's vocabulary",
            token.initial
        ))
        .help("name the class in one common word, `dog` for example"));
    }
    let ids: Vec<u32> = ids.into_iter().cycle().take(token.vectors).collect();
    model.text_encoder(text)?.embeddings(&ids)
}
