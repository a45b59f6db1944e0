//! A checkpoint: its parts found, checked against their own configurations, and loaded one by one when they are used.

mod checkpoint;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use retouch_graph::Files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checkpoint::adapters::textual_inversion::LearnedToken;
use crate::checkpoint::alone::Alone;
use crate::checkpoint::dialects;
use crate::checkpoint::layout::{
    self, Layout, Part, Settings, Sources, TOKENIZER_FILES, Vocabulary, WeightFiles, read_text,
};
use crate::checkpoint::memory::{Claim, Memory};
use crate::checkpoint::weights::{
    Changes, Edit, Maps, OnDevices, Shared, Stored, Table, Tensors, Variables, Weights,
};
use crate::networks::clip::{ClipText, ClipTextConfig, Layer, load_text};
use crate::networks::preview::LinearMap;
use crate::networks::unet::{Shown, SiteInfo, Unet, UnetConfig};
use crate::networks::vae::{Vae, VaeConfig};
use crate::prompt::conditioning::{
    BREAK, Encoded, LongPrompts, Prompt, Reader, Reading, Syntax, encode,
};
use crate::prompt::tokenizer::{self, Added, Recipe, Tokenizer, TokenizerFiles};
use crate::sampling::scheduler::{SchedulerConfig, Spacing};
use crate::{Error, Result};
pub use checkpoint::{Checkpoint, Parts, Replaced};
use retouch_kernels::Kernel;

/// A text encoder and its tokenizer, without their weights.
#[derive(Clone, Debug)]
pub struct TextDescription {
    /// Its configuration.
    pub config: ClipTextConfig,
    /// The texts of its tokenizer's files.
    tokenizer: TokenizerFiles,
    /// Where these are, for messages.
    folder: PathBuf,
    /// Where they come from.
    vocabulary: Vocabulary,
    table: Arc<Table>,
}

/// Everything that a checkpoint says of itself, without its weights.
#[derive(Clone, Debug)]
pub struct Description {
    /// The U-Net's configuration.
    pub unet: UnetConfig,
    /// The text encoders: one, or two of Stable Diffusion XL.
    pub texts: Vec<TextDescription>,
    /// The VAE's.
    pub vae: VaeConfig,
    /// The scheduler's.
    pub scheduler: SchedulerConfig,
    /// Whether an empty negative prompt gives zeros, as `force_zeros_for_empty_prompt` says.
    pub blank_is_zero: bool,
    /// The kind of few-step model that it seems to be: `Turbo`, `Lightning`, `LCM`.
    pub distilled: Option<&'static str>,
    unet_table: Arc<Table>,
    vae_table: Arc<Table>,
}

/// What `model_index.json` says that changes results.
#[derive(Deserialize)]
struct Index {
    /// Default: that of diffusers' StableDiffusionXLPipeline.
    #[serde(default = "yes")]
    force_zeros_for_empty_prompt: bool,
}

fn yes() -> bool {
    true
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
    /// How it reads prompts.
    #[serde(default, skip_serializing_if = "Reading::is_default")]
    pub reading: Reading,
    /// The tokens that textual inversion added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added_tokens: Vec<Added>,
    /// The vocabulary of each text encoder. Empty: not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vocabularies: Vec<VocabularyFacts>,
    /// The U-Net's configuration, which adapters are checked against.
    pub unet_config: UnetConfig,
    /// Those of the text encoders.
    pub text_configs: Vec<ClipTextConfig>,
    /// That of the VAE.
    pub vae_config: VaeConfig,
    /// Whether an empty negative prompt gives zeros.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blank_is_zero: bool,
    /// The kind of few-step model that it seems to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distilled: Option<String>,
}

/// What is known of a text encoder's vocabulary before anything runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VocabularyFacts {
    /// Where it comes from.
    pub source: Vocabulary,
    /// The digest of its texts.
    pub digest: String,
    /// The number of tokens of every prompt, begin and end among them.
    pub length: usize,
}

/// Something in a prompt that is not read as it seems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptWarning {
    /// What is not.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl ModelFacts {
    /// What in a prompt is not read as it seems: tokens that do not fit, and what means something in other programs.
    /// Files are read only for a prompt that may be too long, and only if none like them were read last.
    #[must_use]
    pub fn prompt_warnings(&self, prompt: &str, files: &dyn Files) -> Vec<PromptWarning> {
        let as_text = self.reading.syntax.read_as_text(prompt).into_iter();
        let as_text = as_text.map(|message| PromptWarning {
            message,
            help: None,
        });
        let encoders = 0..self.vocabularies.len();
        // As a run has it: the text encoder that leaves out most counts.
        let cut = encoders
            .filter_map(|index| {
                let reader = self.reader_for(index, prompt, files)?;
                let (cut, tail) = reader.left_out(prompt).ok()??;
                Some((cut, tail, reader.room()))
            })
            .reduce(|most, next| if next.0 > most.0 { next } else { most });
        let cut = cut.map(|(cut, tail, room)| {
            let (s, do_not, are) = match cut {
                1 => ("", "does not", "is"),
                _ => ("s", "do not", "are"),
            };
            let tail = tail.map_or_else(String::new, |tail| format!(": {}", crate::quoted(tail)));
            PromptWarning {
                message: format!(
                    "the last {cut} token{s} of the prompt {do_not} fit the text encoder, which takes {room}, and {are} left out{tail}"
                ),
                help: Some(
                    "shorten the prompt, or give `long_prompts: chunks` to load_model to have all of it read"
                        .to_owned(),
                ),
            }
        });
        as_text.chain(cut).collect()
    }

    /// Reads a prompt as text encoder `index` does; `None` for one that fits whatever its tokens are, and where the
    /// vocabulary cannot be had.
    fn reader_for(&self, index: usize, prompt: &str, files: &dyn Files) -> Option<Reader> {
        let (vocabulary, config) = (self.vocabularies.get(index)?, self.text_configs.get(index)?);
        // A token stands for a byte or more, and normalisation makes at most three of one.
        let bytes = prompt.len() * if prompt.is_ascii() { 1 } else { 3 };
        let vectors = self.added_tokens.iter().map(|token| token.vectors).max();
        let most = bytes.saturating_mul(vectors.unwrap_or(1).max(1));
        let fits = most <= vocabulary.length.saturating_sub(2);
        // What follows a break does not fit, however short it is.
        let breaks = self.reading.syntax == Syntax::A1111 && prompt.contains(BREAK);
        if self.reading.long_prompts == LongPrompts::Chunks || fits && !breaks {
            return None;
        }
        let added = self.added_tokens.clone();
        let recipe = recipe(vocabulary.digest.clone(), config, added).ok()?;
        let read = || {
            let mut faults = Vec::new();
            let (texts, _) = read_vocabulary(&vocabulary.source, files, &mut faults);
            match faults.pop() {
                Some(fault) => Err(fault),
                // The files changed since: the next call gets other facts.
                None if texts.digest() != vocabulary.digest => {
                    Err(Error::request("the vocabulary changed"))
                }
                None => Ok(texts),
            }
        };
        let tokenizer = tokenizer::shared(recipe, read, Path::new("tokenizer")).ok()?;
        Some(Reader::new(tokenizer, self.reading))
    }

    /// What the U-Net is shown beside the latent.
    #[must_use]
    pub fn shown(&self) -> Shown {
        self.unet_config.shown().unwrap_or(Shown::Nothing)
    }

    /// Gives the model another VAE.
    pub fn set_vae(&mut self, vae: &VaeConfig) {
        self.latent_channels = vae.latent_channels;
        self.factor = vae.factor();
        self.scaling_factor = vae.scaling_factor;
        self.vae_config = vae.clone();
    }

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
    let spacing = match s.spacing() {
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
    let clipped = s
        .clip()
        .map_or_else(String::new, |most| format!(", clipped at {most}"));
    format!(
        "{:?}, {} timesteps, {betas}{}, {spacing}, alpha below 0 is {}{clipped}",
        s.prediction_type,
        s.num_train_timesteps,
        if s.rescale_betas_zero_snr {
            " rescaled to zero SNR"
        } else {
            ""
        },
        if s.alpha_to_one() {
            "1"
        } else {
            "that of timestep 0"
        }
    )
}

fn read_config<T: DeserializeOwned>(settings: &Settings, files: &dyn Files) -> Result<T> {
    serde_json::from_str(&settings.text(files)?).map_err(|e| not_expected(settings, &e))
}

fn not_expected(settings: &Settings, e: &serde_json::Error) -> Error {
    Error::Config {
        file: settings.path().to_owned(),
        message: format!("is not the configuration that was expected: {e}"),
    }
}

/// What a text encoder's tokenizer is made of: the digest of its texts, and what is added to them.
fn recipe(digest: String, config: &ClipTextConfig, added: Vec<Added>) -> Result<Recipe> {
    let first = u32::try_from(config.vocab_size)
        .map_err(|_| Error::request("the vocabulary is too large"))?;
    Ok(Recipe {
        digest,
        positions: config.max_position_embeddings,
        first,
        added,
    })
}

/// The texts of a tokenizer's files, and where they are.
fn read_vocabulary(
    vocabulary: &Vocabulary,
    files: &dyn Files,
    faults: &mut Vec<Error>,
) -> (TokenizerFiles, PathBuf) {
    let folder = match vocabulary {
        Vocabulary::Folder(folder) => folder,
        Vocabulary::Clip(pad) => {
            let built_in = TokenizerFiles::built_in(*pad).map_err(|e| faults.push(e));
            return (built_in.unwrap_or_default(), "CLIP's vocabulary".into());
        }
    };
    let [tokenizer, vocab, merges, config, special_tokens] = TOKENIZER_FILES.map(|name| {
        let path = folder.join(name);
        let text = files.is_file(&path).then(|| read_text(files, &path));
        text.and_then(|text| text.map_err(|e| faults.push(e)).ok())
    });
    let texts = TokenizerFiles {
        tokenizer,
        vocab,
        merges,
        config,
        special_tokens,
    };
    (texts, folder.clone())
}

impl Description {
    /// Finds a model's parts, reads their configurations and the headers of their weights, and builds every network
    /// against them: all that can be wrong with a checkpoint short of its numbers.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(sources: &Sources, files: &dyn Files) -> Result<Self, Vec<Error>> {
        Self::of(&Layout::find(sources, files)?, files)
    }

    /// As [`Description::read`], of parts that were found.
    ///
    /// # Errors
    /// Everything that is wrong with the checkpoint.
    // Long: one list of checks of parts against one another, whose faults are reported together.
    pub fn of(layout: &Layout, files: &dyn Files) -> Result<Self, Vec<Error>> {
        let mut faults = Vec::new();
        fn keep<T>(result: Result<T>, faults: &mut Vec<Error>) -> Option<T> {
            result.map_err(|e| faults.push(e)).ok()
        }
        let checked = |settings: &Settings, fault: Option<String>, faults: &mut Vec<Error>| {
            faults.extend(fault.map(|message| Error::Config {
                file: settings.path().to_owned(),
                message,
            }));
        };
        let unet_file = layout.unet.config.path();
        let unet = keep(
            read_config::<UnetConfig>(&layout.unet.config, files),
            &mut faults,
        );
        let configs: Vec<_> = layout
            .texts
            .iter()
            .map(|(part, _)| {
                keep(
                    read_config::<ClipTextConfig>(&part.config, files),
                    &mut faults,
                )
            })
            .collect();
        let vae = keep(
            read_config::<VaeConfig>(&layout.vae.config, files),
            &mut faults,
        );
        let scheduler = keep(layout.scheduler_config(files), &mut faults);
        let unet_table = keep(layout.unet.weights.table(files), &mut faults);
        let text_tables: Vec<_> = layout
            .texts
            .iter()
            .map(|(part, _)| keep(part.weights.table(files), &mut faults))
            .collect();
        let vae_table = keep(layout.vae.weights.table(files), &mut faults);
        let vocabularies: Vec<_> = layout
            .texts
            .iter()
            .map(|(_, vocabulary)| read_vocabulary(vocabulary, files, &mut faults))
            .collect();
        let configs: Option<Vec<_>> = configs.into_iter().collect();
        let (Some(unet), Some(configs), Some(vae), Some(scheduler)) =
            (unet, configs, vae, scheduler)
        else {
            return Err(faults);
        };
        let before = faults.len();
        checked(&layout.unet.config, unet.fault(), &mut faults);
        for (config, (part, _)) in configs.iter().zip(&layout.texts) {
            checked(&part.config, config.fault(), &mut faults);
        }
        checked(&layout.vae.config, vae.fault(), &mut faults);
        checked(&layout.scheduler, scheduler.fault(), &mut faults);
        if faults.len() > before {
            return Err(faults);
        }
        // Models with one text encoder know nothing of it.
        let blank_is_zero = configs.len() > 1
            && layout.index.as_ref().is_none_or(|index| {
                let index = keep(read_config::<Index>(index, files), &mut faults);
                index.is_none_or(|index| index.force_zeros_for_empty_prompt)
            });
        let pooled = configs.get(1).map(|config| config.projection_dim);
        if unet.pooled_width() != pooled {
            let width = |width: Option<usize>| {
                width.map_or_else(
                    || "none".to_owned(),
                    |width| format!("one of {width} features"),
                )
            };
            faults.push(Error::Config {
                file: unet_file.to_owned(),
                message: format!(
                    "this U-Net takes {} as pooled text, the text encoders give {}: they are of different families",
                    width(unet.pooled_width()),
                    width(pooled)
                ),
            });
        }
        let features: usize = configs.iter().map(|config| config.hidden_size).sum();
        let last_text = layout
            .texts
            .last()
            .map_or(Path::new(""), |(part, _)| part.config.path());
        if unet.context_width() != features {
            let encoder = if configs.len() > 1 {
                "these text encoders give"
            } else {
                "this text encoder gives"
            };
            faults.push(Error::Config {
                file: last_text.to_owned(),
                message: format!(
                    "{encoder} {features} features, the U-Net takes {} ({}): they are of different families",
                    unet.context_width(),
                    unet_file.display()
                ),
            });
        }
        if unet.out_channels != vae.latent_channels {
            faults.push(Error::Config {
                file: layout.vae.config.path().to_owned(),
                message: format!(
                    "this VAE's latents have {} channels, the U-Net takes {} ({})",
                    vae.latent_channels,
                    unet.out_channels,
                    unet_file.display()
                ),
            });
        }
        for ((config, (files, folder)), (part, _)) in
            configs.iter().zip(&vocabularies).zip(&layout.texts)
        {
            let made = recipe(files.digest(), config, Vec::new());
            let made = made.and_then(|r| tokenizer::shared(r, || Ok(files.clone()), folder));
            match made {
                Ok(tokenizer) => {
                    let highest = tokenizer.highest_id() as usize;
                    if highest >= config.vocab_size {
                        faults.push(Error::Config {
                            file: folder.clone(),
                            message: format!(
                                "this tokenizer gives ids up to {highest}, the text encoder knows {} tokens ({}): they don't belong together",
                                config.vocab_size,
                                part.config.path().display()
                            ),
                        });
                    }
                }
                Err(e) => faults.push(e),
            }
        }
        let text_tables: Option<Vec<_>> = text_tables.into_iter().collect();
        let (Some(unet_table), Some(text_tables), Some(vae_table)) =
            (unet_table, text_tables, vae_table)
        else {
            return Err(faults);
        };
        let one = |e| vec![e];
        let texts = configs
            .into_iter()
            .zip(vocabularies)
            .zip(text_tables)
            .enumerate()
            .map(|(i, ((config, (tokenizer, folder)), table))| {
                let asked = Weights::asked(|w| load_text(&config, i, w).map(drop))?;
                Ok(TextDescription {
                    table: layout::text_table(&table, i, &asked),
                    config,
                    tokenizer,
                    folder,
                    vocabulary: layout.texts[i].1.clone(),
                })
            })
            .collect::<Result<_>>()
            .map_err(one)?;
        let description = Self {
            unet_table: layout::unet_table(&unet_table, &unet).map_err(one)?,
            vae_table: layout::vae_table(&vae_table, &vae).map_err(one)?,
            unet,
            texts,
            vae,
            distilled: match scheduler.class_name.as_str() {
                "LCMScheduler" => Some("LCM"),
                _ => layout.distilled,
            },
            scheduler,
            blank_is_zero,
        };
        description.check_weights(&mut faults);
        if faults.is_empty() {
            Ok(description)
        } else {
            Err(faults)
        }
    }

    fn check_weights(&self, faults: &mut Vec<Error>) {
        faults.extend(unfit(&self.unet_table, |w| {
            Unet::load(&self.unet, w).map(drop)
        }));
        for (i, text) in self.texts.iter().enumerate() {
            let build = |w: &Weights| load_text(&text.config, i, w).map(drop);
            faults.extend(unfit(&text.table, build));
        }
        faults.extend(unfit(&self.vae_table, |w| {
            Vae::load(&self.vae, w).map(drop)
        }));
    }

    /// What the checks need to count tokens; empty where a path cannot be a part of facts, which are Unicode.
    fn vocabularies(&self) -> Vec<VocabularyFacts> {
        let unicode = |vocabulary: &Vocabulary| match vocabulary {
            Vocabulary::Folder(folder) => folder.to_str().is_some(),
            Vocabulary::Clip(_) => true,
        };
        if !self.texts.iter().all(|text| unicode(&text.vocabulary)) {
            return Vec::new();
        }
        let facts = self.texts.iter().map(|text| VocabularyFacts {
            source: text.vocabulary.clone(),
            digest: text.tokenizer.digest(),
            length: text.tokenizer.length(text.config.max_position_embeddings),
        });
        facts.collect()
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
                "channels {:?}, {:?} layers a block, {} sites, text of {}{}",
                unet.block_out_channels,
                unet.layers_per_block,
                unet.sites().len(),
                unet.context_width(),
                match unet.shown() {
                    Some(Shown::Masked) => ", shown a masked picture",
                    Some(Shown::Picture) => ", shown a picture",
                    Some(Shown::Nothing) | None => "",
                }
            ),
            sites: unet.sites(),
            tokens: self.tokens(),
            scheduler: self.scheduler.clone(),
            reading: Reading::default(),
            added_tokens: Vec::new(),
            vocabularies: self.vocabularies(),
            unet_config: unet.clone(),
            text_configs: self.texts.iter().map(|text| text.config.clone()).collect(),
            vae_config: self.vae.clone(),
            blank_is_zero: self.blank_is_zero,
            distilled: self.distilled.map(str::to_owned),
        }
    }
}

/// What of a network's weights does not fit the configuration that `build` builds it by.
fn unfit(table: &Arc<Table>, build: impl FnOnce(&Weights) -> Result<()>) -> Option<Error> {
    let weights = Weights::checking(table.clone());
    let built = build(&weights);
    let mut messages = weights.faults();
    if let Err(e) = built {
        messages.push(e.to_string());
    }
    let unused: Vec<_> = weights
        .unused()
        .into_iter()
        .filter(|name| !dialects::is_spare(name))
        .collect();
    if !messages.is_empty() && Alone::of(table) == Some(Alone::VaeApproximation) {
        messages = vec![format!("is {}", Alone::VaeApproximation.in_words(table))];
    }
    if messages.is_empty()
        && let Some(first) = unused.first()
    {
        messages.push(format!(
            "has {} tensors that its configuration does not describe, such as `{first}`",
            unused.len()
        ));
    }
    let more = messages.len().saturating_sub(1);
    let first = messages.into_iter().next()?;
    let rest = if more > 0 {
        format!(" (and {more} more that do not fit config.json)")
    } else {
        String::new()
    };
    Some(Error::Weights {
        file: table.file.clone(),
        message: format!("{first}{rest}"),
    })
}

/// A VAE without its weights.
#[derive(Clone, Debug)]
pub struct VaeDescription {
    /// Its configuration.
    pub config: VaeConfig,
    table: Arc<Table>,
}

impl VaeDescription {
    /// Reads a VAE that is named alone; a file without a configuration is read by `own`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(part: &Part, own: &VaeConfig, files: &dyn Files) -> Result<Self> {
        let alone = matches!(&part.weights, WeightFiles::Own(_, paths) if paths.len() == 1)
            && !files.is_file(part.config.path());
        let config: VaeConfig = if alone {
            own.clone()
        } else {
            read_config(&part.config, files)?
        };
        if let Some(message) = config.fault() {
            return Err(Error::Config {
                file: part.config.path().to_owned(),
                message,
            });
        }
        let table = layout::vae_table(&part.weights.table(files)?, &config)?;
        match unfit(&table, |w| Vae::load(&config, w).map(drop)) {
            Some(e) => Err(e),
            None => Ok(Self { config, table }),
        }
    }

    /// Why it cannot serve a U-Net, if it can't.
    #[must_use]
    pub fn misfit(&self, unet: &UnetConfig) -> Option<String> {
        (unet.out_channels != self.config.latent_channels).then(|| {
            format!(
                "this VAE's latents have {} channels, the model's U-Net takes {}",
                self.config.latent_channels, unet.out_channels
            )
        })
    }
}

/// A network and the tensors that it is built of.
#[derive(Clone, Debug)]
pub struct NetworkTensors {
    /// Its folder's name in the diffusers layout.
    pub name: &'static str,
    /// Its tensors by the names that diffusers and transformers give them, as they are stored.
    pub tensors: Vec<(String, Stored)>,
}

impl Description {
    /// Which states of the text encoders are taken: the last, or those before the last of models with two encoders, which
    /// do not apply the final normalisation (Podell et al. 2023, section 2.1). `skip` counts from the last, 1.
    #[must_use]
    pub fn layer(&self, skip: Option<usize>) -> Layer {
        let one = self.texts.len() == 1;
        Layer {
            from_end: skip.unwrap_or(if one { 1 } else { 2 }),
            normalised: one,
        }
    }

    /// What is wrong with a `clip_skip`, if anything.
    #[must_use]
    pub fn skip_fault(&self, skip: usize) -> Option<String> {
        let layers = self.texts.iter().map(|text| text.config.num_hidden_layers);
        let most = layers.min().unwrap_or(0);
        (!(1..=most).contains(&skip))
            .then(|| format!("clip_skip is {skip}; this model's text encoder has {most} layers, counted from the last, 1"))
    }

    /// The tensors of every network: the U-Net's, the text encoders', the VAE's.
    ///
    /// # Errors
    /// None of a description that was read: all was checked then.
    pub fn networks(&self) -> Result<Vec<NetworkTensors>> {
        let unet = Weights::found(self.unet_table.clone(), |w| {
            Unet::load(&self.unet, w).map(drop)
        })?;
        let mut all = vec![NetworkTensors {
            name: "unet",
            tensors: unet,
        }];
        for (i, (name, text)) in ["text_encoder", "text_encoder_2"]
            .into_iter()
            .zip(&self.texts)
            .enumerate()
        {
            let build = |w: &Weights| load_text(&text.config, i, w).map(drop);
            all.push(NetworkTensors {
                name,
                tensors: Weights::found(text.table.clone(), build)?,
            });
        }
        let vae = Weights::found(self.vae_table.clone(), |w| {
            Vae::load(&self.vae, w).map(drop)
        })?;
        all.push(NetworkTensors {
            name: "vae",
            tensors: vae,
        });
        Ok(all)
    }

    /// Tokens of a prompt: as many as the text encoders have positions.
    #[must_use]
    pub fn tokens(&self) -> usize {
        let positions = self
            .texts
            .iter()
            .map(|text| text.config.max_position_embeddings);
        positions.max().unwrap_or(0)
    }
}
