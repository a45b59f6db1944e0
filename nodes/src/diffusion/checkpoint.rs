//! A checkpoint in the diffusers folder layout: found, checked against its own configuration, and loaded part by part.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use retouch_graph::Files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::clip::{ClipText, ClipTextConfig};
use super::preview::LinearMap;
use super::scheduler::{SchedulerConfig, Spacing};
use super::tokenizer::{Tokenizer, TokenizerFiles};
use super::unet::{SiteInfo, Unet, UnetConfig};
use super::vae::{Vae, VaeConfig};
use super::weights::{Header, Weights};
use super::{Error, Result};
use crate::kernels::Kernel;

/// The folders of a checkpoint's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// `unet/`.
    pub unet: PathBuf,
    /// `text_encoder/`.
    pub text_encoder: PathBuf,
    /// `tokenizer/`.
    pub tokenizer: PathBuf,
    /// `vae/`.
    pub vae: PathBuf,
    /// `scheduler/`.
    pub scheduler: PathBuf,
}

impl Parts {
    /// The parts of a folder in the diffusers layout.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        Self {
            unet: folder.join("unet"),
            text_encoder: folder.join("text_encoder"),
            tokenizer: folder.join("tokenizer"),
            vae: folder.join("vae"),
            scheduler: folder.join("scheduler"),
        }
    }

    /// The files that make up the checkpoint: role and path, in a fixed order. Those of the tokenizer are optional.
    #[must_use]
    pub fn files(&self) -> Vec<PartFile> {
        let file = |folder: &Path, part: &str, name: &str, optional| PartFile {
            role: format!("{part}/{name}"),
            path: folder.join(name),
            optional,
        };
        let mut files = vec![
            file(&self.unet, "unet", "config.json", false),
            file(&self.unet, "unet", UNET_WEIGHTS, false),
            file(&self.text_encoder, "text_encoder", "config.json", false),
            file(&self.text_encoder, "text_encoder", TEXT_WEIGHTS, false),
            file(&self.vae, "vae", "config.json", false),
            file(&self.vae, "vae", UNET_WEIGHTS, false),
            file(&self.scheduler, "scheduler", "scheduler_config.json", false),
        ];
        for name in TOKENIZER_FILES {
            files.push(file(&self.tokenizer, "tokenizer", name, true));
        }
        files
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug)]
pub struct PartFile {
    /// Its name in the diffusers layout: `unet/config.json`.
    pub role: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whether a checkpoint may lack it.
    pub optional: bool,
}

/// The weights of U-Net and VAE.
const UNET_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// The weights of the text encoder.
const TEXT_WEIGHTS: &str = "model.safetensors";
/// The tokenizer's files.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];
/// A safetensors header is read in a first piece of this size; a longer one in a second.
const HEADER_PIECE: usize = 64 * 1024;

/// Tensors that a file may hold beyond its network: buffers of old versions, the heads that Stable Diffusion leaves out.
const SURPLUS: [&str; 4] = [
    "position_ids",
    "text_projection",
    "logit_scale",
    "model_ema",
];

/// Everything that a checkpoint says of itself, without its weights.
#[derive(Clone, Debug)]
pub struct Description {
    /// Where its parts are.
    pub parts: Parts,
    /// The U-Net's configuration.
    pub unet: UnetConfig,
    /// The text encoder's.
    pub text: ClipTextConfig,
    /// The VAE's.
    pub vae: VaeConfig,
    /// The scheduler's.
    pub scheduler: SchedulerConfig,
    tokenizer: TokenizerFiles,
    headers: [Header; 3],
}

/// What must be equal for two models to work on the same latents with the same schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Pixels of the picture to a pixel of the latent.
    pub factor: usize,
    /// What a latent is multiplied with.
    pub scaling_factor: f64,
    /// Side of the latents that it was trained on.
    pub sample_size: usize,
    /// The U-Net's shape, in words.
    pub unet: String,
    /// Its self-attention sites.
    pub sites: Vec<SiteInfo>,
    /// Tokens of a prompt.
    pub tokens: usize,
    /// Its schedule.
    pub scheduler: SchedulerConfig,
}

impl ModelFacts {
    /// Why two models cannot share a run, if they can't.
    #[must_use]
    pub fn misfit(&self, other: &Self) -> Option<String> {
        let space = |m: &Self| {
            format!(
                "latents of {} channels, a picture {} times their size, scaled by {}",
                m.latent_channels, m.factor, m.scaling_factor
            )
        };
        if space(self) != space(other) {
            return Some(format!(
                "they work on different latents: {}; {}",
                space(self),
                space(other)
            ));
        }
        if self.unet != other.unet {
            return Some(format!(
                "their U-Nets have different shapes: {}; {}",
                self.unet, other.unet
            ));
        }
        let (a, b) = (schedule(&self.scheduler), schedule(&other.scheduler));
        if a != b {
            return Some(format!("their schedules differ: {a}; {b}"));
        }
        None
    }
}

/// A schedule in words: everything that a run depends on.
fn schedule(s: &SchedulerConfig) -> String {
    let spacing = match s.timestep_spacing {
        Spacing::Leading => format!("leading + {}", s.steps_offset),
        Spacing::Linspace => "linspace".into(),
        Spacing::Trailing => "trailing".into(),
    };
    let betas = s.trained_betas.as_ref().map_or_else(
        || {
            format!(
                "{:?} betas {} to {}",
                s.beta_schedule, s.beta_start, s.beta_end
            )
        },
        |betas| {
            let bytes: Vec<u8> = betas.iter().flat_map(|b| b.to_le_bytes()).collect();
            format!("betas {}", &blake3::hash(&bytes).to_hex()[..8])
        },
    );
    format!(
        "{:?}, {} timesteps, {betas}, {spacing}, alpha below 0 is {}",
        s.prediction_type,
        s.num_train_timesteps,
        if s.alpha_to_one() {
            "1"
        } else {
            "that of timestep 0"
        }
    )
}

fn read_text(files: &dyn Files, path: &Path) -> Result<String> {
    let bytes = files.read(path).map_err(|e| Error::Config {
        file: path.to_owned(),
        message: match e.kind() {
            std::io::ErrorKind::NotFound => "no such file".into(),
            _ => e.to_string(),
        },
    })?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Config {
        file: path.to_owned(),
        message: "is not text".into(),
    })
}

fn read_config<T: DeserializeOwned>(files: &dyn Files, path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(files, path)?).map_err(|e| Error::Config {
        file: path.to_owned(),
        message: format!("is not the configuration that was expected: {e}"),
    })
}

fn read_header(files: &dyn Files, path: &Path) -> Result<Header> {
    let read = |length| {
        files.read_head(path, length).map_err(|e| Error::Weights {
            file: path.to_owned(),
            message: match e.kind() {
                std::io::ErrorKind::NotFound => "no such file".into(),
                _ => e.to_string(),
            },
        })
    };
    let (mut head, length) = read(HEADER_PIECE)?;
    let needed = Header::length(path, &head, length)?;
    if needed > head.len() {
        (head, _) = read(needed)?;
    }
    // The weights are mapped from the file itself, so its real place must be known.
    Header::parse(&files.place(path), &head, length)
}

impl Description {
    /// Reads the configurations and the headers of the weights, and builds every network against them: all that can
    /// be wrong with a checkpoint short of its numbers.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(parts: &Parts, files: &dyn Files) -> Result<Self, Vec<Error>> {
        let mut faults = Vec::new();
        fn keep<T>(result: Result<T>, faults: &mut Vec<Error>) -> Option<T> {
            result.map_err(|e| faults.push(e)).ok()
        }
        let unet_config = parts.unet.join("config.json");
        let text_config = parts.text_encoder.join("config.json");
        let vae_config = parts.vae.join("config.json");
        let scheduler_config = parts.scheduler.join("scheduler_config.json");
        let checked = |file: &Path, fault: Option<String>, faults: &mut Vec<Error>| {
            faults.extend(fault.map(|message| Error::Config {
                file: file.to_owned(),
                message,
            }));
        };
        let unet = keep(read_config::<UnetConfig>(files, &unet_config), &mut faults);
        let text = keep(
            read_config::<ClipTextConfig>(files, &text_config),
            &mut faults,
        );
        let vae = keep(read_config::<VaeConfig>(files, &vae_config), &mut faults);
        let scheduler = keep(
            read_config::<SchedulerConfig>(files, &scheduler_config),
            &mut faults,
        );
        let unet_header = keep(
            read_header(files, &parts.unet.join(UNET_WEIGHTS)),
            &mut faults,
        );
        let text_header = keep(
            read_header(files, &parts.text_encoder.join(TEXT_WEIGHTS)),
            &mut faults,
        );
        let vae_header = keep(
            read_header(files, &parts.vae.join(UNET_WEIGHTS)),
            &mut faults,
        );
        let mut tokenizer = TokenizerFiles::default();
        let [json, vocab, merges, config, special] = TOKENIZER_FILES.map(|name| {
            let path = parts.tokenizer.join(name);
            files
                .is_file(&path)
                .then(|| keep(read_text(files, &path), &mut faults))
                .flatten()
        });
        tokenizer.tokenizer = json;
        tokenizer.vocab = vocab;
        tokenizer.merges = merges;
        tokenizer.config = config;
        tokenizer.special_tokens = special;
        let (Some(unet), Some(text), Some(vae), Some(scheduler)) = (unet, text, vae, scheduler)
        else {
            return Err(faults);
        };
        let before = faults.len();
        checked(&unet_config, unet.fault(), &mut faults);
        checked(&text_config, text.fault(), &mut faults);
        checked(&vae_config, vae.fault(), &mut faults);
        checked(&scheduler_config, scheduler.fault(), &mut faults);
        if faults.len() > before {
            return Err(faults);
        }
        if unet.context_width() != text.hidden_size {
            faults.push(Error::Config {
                file: text_config.clone(),
                message: format!(
                    "this text encoder gives {} features, the U-Net takes {} ({}): they are of different families",
                    text.hidden_size,
                    unet.context_width(),
                    unet_config.display()
                ),
            });
        }
        if unet.in_channels != vae.latent_channels {
            faults.push(Error::Config {
                file: vae_config,
                message: format!(
                    "this VAE's latents have {} channels, the U-Net takes {} ({})",
                    vae.latent_channels,
                    unet.in_channels,
                    unet_config.display()
                ),
            });
        }
        match Tokenizer::new(&tokenizer, &parts.tokenizer, text.max_position_embeddings) {
            Ok(tokenizer) => {
                let highest = tokenizer.highest_id() as usize;
                if highest >= text.vocab_size {
                    faults.push(Error::Config {
                        file: parts.tokenizer.clone(),
                        message: format!(
                            "this tokenizer gives ids up to {highest}, the text encoder knows {} tokens ({}): they don't belong together",
                            text.vocab_size,
                            text_config.display()
                        ),
                    });
                }
            }
            Err(e) => faults.push(e),
        }
        let (Some(a), Some(b), Some(c)) = (unet_header, text_header, vae_header) else {
            return Err(faults);
        };
        let description = Self {
            parts: parts.clone(),
            unet,
            text,
            vae,
            scheduler,
            tokenizer,
            headers: [a, b, c],
        };
        description.check_weights(&mut faults);
        if faults.is_empty() {
            Ok(description)
        } else {
            Err(faults)
        }
    }

    fn check_weights(&self, faults: &mut Vec<Error>) {
        let mut check = |header: &Header, build: &dyn Fn(&Weights) -> Result<()>| {
            let weights = Weights::checking(header.clone());
            let built = build(&weights);
            let mut messages = weights.faults();
            if let Err(e) = built {
                messages.push(e.to_string());
            }
            let unused: Vec<_> = weights
                .unused()
                .into_iter()
                .filter(|name| !SURPLUS.iter().any(|part| name.contains(part)))
                .collect();
            if messages.is_empty()
                && let Some(first) = unused.first()
            {
                messages.push(format!(
                    "has {} tensors that its configuration does not describe, such as `{first}`",
                    unused.len()
                ));
            }
            let more = messages.len().saturating_sub(1);
            if let Some(first) = messages.into_iter().next() {
                let rest = if more > 0 {
                    format!(" (and {more} more that do not fit config.json)")
                } else {
                    String::new()
                };
                faults.push(Error::Weights {
                    file: header.file.clone(),
                    message: format!("{first}{rest}"),
                });
            }
        };
        let [unet, text, vae] = &self.headers;
        check(unet, &|w| Unet::load(&self.unet, w).map(drop));
        check(text, &|w| ClipText::load(&self.text, w).map(drop));
        check(vae, &|w| Vae::load(&self.vae, w).map(drop));
    }

    /// What the nodes' checks need to know.
    #[must_use]
    pub fn facts(&self) -> ModelFacts {
        let unet = &self.unet;
        ModelFacts {
            latent_channels: self.vae.latent_channels,
            factor: self.vae.factor(),
            scaling_factor: self.vae.scaling_factor,
            sample_size: unet.sample_size.unwrap_or(64),
            unet: format!(
                "channels {:?}, {:?} layers a block, {} sites, text of {}",
                unet.block_out_channels,
                unet.layers_per_block,
                unet.sites().len(),
                unet.context_width()
            ),
            sites: unet.sites(),
            tokens: self.text.max_position_embeddings,
            scheduler: self.scheduler.clone(),
        }
    }
}

/// A part of a model that is loaded when it is first used.
#[derive(Debug)]
struct Lazy<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Lazy<T> {
    fn get(&self, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut slot = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(part) = &*slot {
            return Ok(part.clone());
        }
        let part = Arc::new(load()?);
        *slot = Some(part.clone());
        Ok(part)
    }
}

/// A model: what it says of itself, and its parts once they are used.
#[derive(Debug)]
pub struct Checkpoint {
    description: Description,
    id: String,
    device: Device,
    kernel: Arc<dyn Kernel>,
    unet: Lazy<Unet>,
    text: Lazy<ClipText>,
    vae: Lazy<Vae>,
    tokenizer: Lazy<Tokenizer>,
    vae_id: Option<String>,
    linear_map: Lazy<LinearMap>,
}

impl Checkpoint {
    /// Wraps a checked description. `id` stands for the content of U-Net, text encoder and tokenizer: models of equal
    /// id draw the same.
    #[must_use]
    pub fn new(
        description: Description,
        id: String,
        device: Device,
        kernel: Arc<dyn Kernel>,
    ) -> Self {
        Self {
            description,
            id,
            device,
            kernel,
            unet: Lazy::default(),
            text: Lazy::default(),
            vae: Lazy::default(),
            tokenizer: Lazy::default(),
            vae_id: None,
            linear_map: Lazy::default(),
        }
    }

    /// Says what stands for the content of the VAE: equal ones have equal maps from latents to colours.
    #[must_use]
    pub fn with_vae_id(mut self, id: String) -> Self {
        self.vae_id = Some(id);
        self
    }

    /// Stands for the content of the VAE, if that was said.
    #[must_use]
    pub fn vae_id(&self) -> Option<&str> {
        self.vae_id.as_deref()
    }

    /// The map from latents to colours: `known` when there is one, else fitted from the VAE, once.
    ///
    /// # Errors
    /// When the VAE's weights cannot be read or it fails.
    pub fn linear_map(&self, known: impl FnOnce() -> Option<LinearMap>) -> Result<Arc<LinearMap>> {
        self.linear_map.get(|| match known() {
            Some(map) => Ok(map),
            None => {
                let map = LinearMap::of_vae(&*self.vae()?, &self.device, self.kernel())?;
                tracing::debug!(
                    explained = map.explained(),
                    "fitted the map from latents to colours"
                );
                Ok(map)
            }
        })
    }

    /// What the checkpoint says of itself.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Stands for the content of U-Net, text encoder and tokenizer.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its tensors are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How its arithmetic is done.
    #[must_use]
    pub fn kernel(&self) -> &dyn Kernel {
        self.kernel.as_ref()
    }

    fn weights(&self, index: usize) -> Result<Weights> {
        let header = &self.description.headers[index];
        tracing::debug!(file = %header.file.display(), tensors = header.tensors.len(), "reads weights");
        Weights::open(header.clone(), &self.device)
    }

    /// The U-Net.
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn unet(&self) -> Result<Arc<Unet>> {
        self.unet
            .get(|| Unet::load(&self.description.unet, &self.weights(0)?))
    }

    /// The text encoder.
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn text_encoder(&self) -> Result<Arc<ClipText>> {
        self.text
            .get(|| ClipText::load(&self.description.text, &self.weights(1)?))
    }

    /// The VAE.
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn vae(&self) -> Result<Arc<Vae>> {
        self.vae
            .get(|| Vae::load(&self.description.vae, &self.weights(2)?))
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When its files are not what they should be.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        let d = &self.description;
        self.tokenizer.get(|| {
            Tokenizer::new(
                &d.tokenizer,
                &d.parts.tokenizer,
                d.text.max_position_embeddings,
            )
        })
    }

    /// The text encoder's states `[1, N, C]` of a prompt, and how many of its tokens did not fit.
    ///
    /// # Errors
    /// When a part cannot be loaded.
    pub fn encode_prompt(&self, prompt: &str) -> Result<(Tensor, usize)> {
        let tokens = self.tokenizer()?.encode(prompt)?;
        let states = self.text_encoder()?.encode(&tokens.ids, self.kernel())?;
        Ok((states, tokens.cut))
    }

    /// Bytes that the loaded parts hold, as float32, by the sizes in the headers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.description
            .headers
            .iter()
            .flat_map(|header| header.tensors.values())
            .map(|info| info.shape.iter().product::<usize>() * 4)
            .sum()
    }
}
