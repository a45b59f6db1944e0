//! Where the parts of a model lie: a folder in the diffusers layout, or one file with everything in it, each part
//! replaceable by another folder or file.

mod tables;

mod refused;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retouch_graph::Files;
use serde::{Deserialize, Serialize};

use crate::checkpoint::alone::Alone;
use crate::checkpoint::dialects::{self, Family, Marker, Names, Role};
use crate::checkpoint::ldm;
use crate::checkpoint::published::Published;
use crate::checkpoint::shape;
use crate::checkpoint::weights::{NO_SUCH_FILE, Table, Weights};
use crate::networks::clip::ClipTextConfig;
use crate::networks::unet::{Unet, UnetConfig};
use crate::networks::vae::{Vae, VaeConfig};
use crate::prompt::tokenizer::PadToken;
use crate::sampling::scheduler::{Prediction, SchedulerConfig, Spacing};
use crate::{Error, Result};
use refused::{missing_parts, other_pipeline};
pub use tables::{text_table, unet_table, vae_table};

/// What a model is loaded from, as `load_model` names it.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A folder in the diffusers layout, or a single file.
    pub path: PathBuf,
    /// For a single file: a folder in the diffusers layout whose configurations (and tokenizers) are its own.
    pub config: Option<PathBuf>,
    /// The variant of the weight files: `fp16` in `model.fp16.safetensors`.
    pub variant: Option<String>,
    /// In place of the folder's `unet`: a folder or a file of weights.
    pub unet: Option<PathBuf>,
    /// In place of `text_encoder`.
    pub text_encoder: Option<PathBuf>,
    /// In place of `text_encoder_2`.
    pub text_encoder_2: Option<PathBuf>,
    /// In place of `tokenizer`.
    pub tokenizer: Option<PathBuf>,
    /// In place of `tokenizer_2`.
    pub tokenizer_2: Option<PathBuf>,
    /// In place of `vae`: a folder or a file of weights.
    pub vae: Option<PathBuf>,
    /// In place of `scheduler`.
    pub scheduler: Option<PathBuf>,
    /// What the network predicts, where the files do not say it or say it wrongly.
    pub prediction: Option<Prediction>,
}

impl Sources {
    /// A folder or single file, as it is.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            ..Self::default()
        }
    }
}

/// A configuration: a file, or what was published for the family of a single file.
#[derive(Clone, Debug)]
pub enum Settings {
    /// The file.
    File(PathBuf),
    /// The published text; the path says whose, for messages.
    Published(PathBuf, Cow<'static, str>),
}

impl Settings {
    /// The file, or what stands for it in messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Published(path, _) => path,
        }
    }

    /// Its text.
    ///
    /// # Errors
    /// When there is no such file, or it is no text.
    pub fn text(&self, files: &dyn Files) -> Result<String> {
        match self {
            Self::File(path) => read_text(files, path),
            Self::Published(_, text) => Ok(text.clone().into_owned()),
        }
    }
}

/// The longest text of a model: the vocabularies of large language models have a third of it.
const LONGEST_TEXT: usize = 64 << 20;

/// The text of a file.
///
/// # Errors
/// [`Error::Config`], with the message [`NO_SUCH_FILE`] when there is none.
pub fn read_text(files: &dyn Files, path: &Path) -> Result<String> {
    let bad = |message: String| Error::Config {
        file: path.to_owned(),
        message,
    };
    let (bytes, length) = files
        .read_head(path, LONGEST_TEXT)
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => bad(NO_SUCH_FILE.into()),
            _ => bad(e.to_string()),
        })?;
    if length > bytes.len() as u64 {
        return Err(bad(format!(
            "has {length} bytes; a text file of a model has at most {LONGEST_TEXT}"
        )));
    }
    String::from_utf8(bytes).map_err(|_| bad("is not text".into()))
}

/// Where the weights of a part are.
#[derive(Clone, Debug)]
pub enum WeightFiles {
    /// Files of this part alone; the first path is what messages speak of (the index of several).
    Own(PathBuf, Vec<PathBuf>),
    /// The file that holds all parts.
    Whole(Arc<Table>),
}

/// A network of a model.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its folder's name in the diffusers layout.
    pub name: &'static str,
    /// Its configuration.
    pub config: Settings,
    /// Its weights.
    pub weights: WeightFiles,
}

impl Part {
    /// Its files, in a fixed order; none of a part of a single file with a published configuration.
    #[must_use]
    pub fn files(&self) -> Vec<PartFile> {
        let mut all = Vec::new();
        if let Settings::File(path) = &self.config {
            all.push(PartFile {
                role: format!("{}/config.json", self.name),
                path: path.clone(),
                optional: false,
            });
        }
        if let WeightFiles::Own(_, paths) = &self.weights {
            for path in paths {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                all.push(PartFile {
                    role: format!("{}/{name}", self.name),
                    path: path.clone(),
                    optional: false,
                });
            }
        }
        all
    }
}

/// Where a text encoder's tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Vocabulary {
    /// A folder of files.
    Folder(PathBuf),
    /// CLIP's own, which is in the program.
    Clip(PadToken),
}

/// The parts of a model.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The U-Net.
    pub unet: Part,
    /// The text encoders, each with its tokenizer.
    pub texts: Vec<(Part, Vocabulary)>,
    /// The VAE.
    pub vae: Part,
    /// The scheduler's configuration.
    pub scheduler: Settings,
    /// `model_index.json`, where anything depends on it: of models with two text encoders.
    pub index: Option<Settings>,
    /// The single file.
    pub single: Option<PathBuf>,
    /// Overrides what the scheduler's configuration says.
    pub prediction: Option<Prediction>,
    /// Where that is from, in words.
    pub prediction_from: Option<String>,
    /// Whether a single file says that its schedule is rescaled to zero terminal SNR.
    pub zero_snr: bool,
    /// What was assumed because the files do not say it.
    pub assumed: Option<String>,
    /// What the folder does not hold, and what is taken in its place.
    pub lent: Vec<String>,
    /// The kind of few-step model (`Turbo`, ...) that the name of the file or folder suggests.
    pub distilled: Option<&'static str>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug)]
pub struct PartFile {
    /// Its name in the diffusers layout, `unet/config.json`; `model` is a single file.
    pub role: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whether a checkpoint may lack it.
    pub optional: bool,
}

/// The tokenizer's files.
pub(crate) const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// The names of the folders of text encoders and tokenizers.
const TEXTS: [(&str, &str); 2] = [
    ("text_encoder", "tokenizer"),
    ("text_encoder_2", "tokenizer_2"),
];

/// Which network a part is, for the names of its files and tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unet,
    Text,
    Vae,
}

impl Kind {
    /// The names of weight files without their endings, as safetensors and as torch files.
    fn stems(self) -> (&'static str, &'static str) {
        match self {
            Self::Unet | Self::Vae => ("diffusion_pytorch_model", "diffusion_pytorch_model"),
            Self::Text => ("model", "pytorch_model"),
        }
    }
}

/// `*.index.json`: which file each tensor is in.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The weight files in a folder. `variant`, if given, comes first, and is the only one if `required`; without one the plain
/// files come first, then half-precision variants.
fn weights_in(
    folder: &Path,
    kind: Kind,
    variant: Option<&str>,
    required: bool,
    files: &dyn Files,
) -> Result<WeightFiles> {
    let (safetensors, torch) = kind.stems();
    let mut variants = vec![variant.unwrap_or("")];
    for other in ["", "fp16", "bf16"] {
        // A variant that is asked for may be missing from the small parts, as in published folders.
        let may_be = variant.is_none() || !required && other.is_empty();
        if !variants.contains(&other) && may_be {
            variants.push(other);
        }
    }
    for (stem, ending) in [
        (safetensors, "safetensors"),
        (torch, "bin"),
        (safetensors, "gguf"),
    ] {
        for variant in &variants {
            let dotted = if variant.is_empty() {
                String::new()
            } else {
                format!(".{variant}")
            };
            let one = folder.join(format!("{stem}{dotted}.{ending}"));
            if files.is_file(&one) {
                return Ok(WeightFiles::Own(one.clone(), vec![one]));
            }
            let index = folder.join(format!("{stem}.{ending}.index{dotted}.json"));
            if files.is_file(&index) {
                return sharded(&index, folder, files);
            }
        }
    }
    let dotted = variant.map_or_else(String::new, |variant| format!(".{variant}"));
    Err(Error::Weights {
        file: folder.join(format!("{safetensors}{dotted}.safetensors")),
        message: NO_SUCH_FILE.into(),
    })
}

/// The files that an index names.
fn sharded(index: &Path, folder: &Path, files: &dyn Files) -> Result<WeightFiles> {
    let bad = |message: String| Error::Config {
        file: index.to_owned(),
        message,
    };
    let read: Index = serde_json::from_str(&read_text(files, index)?)
        .map_err(|e| bad(format!("is not the index of several weight files: {e}")))?;
    let names: BTreeSet<&String> = read.weight_map.values().collect();
    if names.is_empty() {
        return Err(bad("names no weight files".into()));
    }
    for name in &names {
        let plain = !name.contains(['/', '\\']) && !name.starts_with('.');
        if !plain {
            return Err(bad(format!(
                "names the file {name:?}; expected names of files beside it"
            )));
        }
        if !files.is_file(&folder.join(name)) {
            return Err(Error::Weights {
                file: folder.join(name),
                message: NO_SUCH_FILE.into(),
            });
        }
    }
    let mut all = vec![index.to_owned()];
    all.extend(names.into_iter().map(|name| folder.join(name)));
    Ok(WeightFiles::Own(index.to_owned(), all))
}

/// The family that a single file belongs to, by its names and shapes.
fn family(table: &Table) -> Result<Published> {
    let bad = |message: &str| Error::Weights {
        file: table.file.clone(),
        message: message.into(),
    };
    let has = |prefix: &str| table.tensors.keys().any(|name| name.starts_with(prefix));
    match dialects::family(table) {
        Some(Family::Built(family)) => Ok(family),
        Some(Family::Other(what)) => Err(bad(&format!("is {what}"))),
        None if dialects::texts(table).is_some() => Err(bad(
            "is a single file of an unknown family: its cross-attention has another width; describe it with `config` (of load_model; `--config` of inspect)",
        )),
        None if Alone::of(table).is_none() && (has("lora_") || has("unet.")) => Err(bad(
            "holds no U-Net; it looks like an adapter: apply it with `apply_lora` to a model",
        )),
        None => Err(match Alone::of(table) {
            Some(alone) => bad(&format!("is {}", alone.in_words(table))),
            None => {
                bad("is not a single-file checkpoint: it has no tensors `model.diffusion_model.*`")
            }
        }),
    }
}

/// The family of a folder, by its U-Net's configuration; `None` where that cannot be read.
fn family_of(config: &Settings, files: &dyn Files) -> Option<Published> {
    let config: UnetConfig = serde_json::from_str(&config.text(files).ok()?).ok()?;
    Some(if config.addition_embed_type.is_some() {
        Published::Sdxl
    } else if !config.use_linear_projection {
        Published::Sd1
    } else if config.sample_size == Some(96) {
        Published::Sd2
    } else {
        Published::Sd2Base
    })
}

/// The number of tokens that CLIP's vocabulary has.
const CLIP_TOKENS: usize = 49_408;

/// Whether a text encoder is of CLIP's vocabulary.
fn reads_clip(part: &Part, files: &dyn Files) -> bool {
    let config = part.config.text(files).ok();
    config
        .and_then(|text| serde_json::from_str::<ClipTextConfig>(&text).ok())
        .is_some_and(|config| config.vocab_size == CLIP_TOKENS)
}

/// The training step at which `stable-diffusion-2-base` was published: a torch file with it predicts the noise.
const SD2_BASE_STEP: &str = "875000";

/// The key of the Stability AI model specification for what a model predicts.
pub(crate) const MODELSPEC_PREDICTION: &str = "modelspec.prediction_type";
/// What a single file says of its prediction.
#[derive(Debug, Default)]
struct Said {
    prediction: Option<(Prediction, String)>,
    zero_snr: bool,
}

impl Said {
    /// # Errors
    /// When the file says that it is of a kind that is not built.
    fn of(table: &Table) -> Result<Self> {
        let bad = |message: String| Error::Weights {
            file: table.file.clone(),
            message,
        };
        let (mut v_pred, mut zero_snr) = (None, false);
        for (name, marker) in dialects::markers(table) {
            match marker {
                Marker::VPrediction => v_pred = Some(name),
                Marker::ZeroSnr => zero_snr = true,
                Marker::Refused(kind) => {
                    return Err(bad(format!(
                        "{kind} (`{name}`), which is not supported; expected a model that predicts epsilon or v"
                    )));
                }
            }
        }
        let by_metadata = table.metadata.get(MODELSPEC_PREDICTION).and_then(|said| {
            let prediction = match said.trim().to_lowercase().as_str() {
                "epsilon" | "eps" => Prediction::Epsilon,
                "v" | "v_prediction" | "v-prediction" | "v_pred" => Prediction::VPrediction,
                _ => return None,
            };
            Some((
                prediction,
                format!("the file's metadata, `{MODELSPEC_PREDICTION}: {said}`"),
            ))
        });
        let by_marker = v_pred.map(|v_pred| {
            (
                Prediction::VPrediction,
                format!("the file's marker tensor `{v_pred}`"),
            )
        });
        let by_step = table
            .metadata
            .get("global_step")
            .filter(|step| *step == SD2_BASE_STEP && matches!(family(table), Ok(Published::Sd2)))
            .map(|step| {
                (
                    Prediction::Epsilon,
                    format!("the file's training step {step}, that of stable-diffusion-2-base"),
                )
            });
        Ok(Self {
            prediction: by_metadata.or(by_marker).or(by_step),
            zero_snr,
        })
    }
}

/// The kind of few-step model that a name suggests: they have the tensors of their base, and nothing in a single file says
/// how they are to be sampled.
fn distilled(path: &Path) -> Option<&'static str> {
    // In a cache of a hub the repository is named by a folder above.
    let hub = path.iter().find(|part| {
        let part = part.to_string_lossy();
        part.starts_with("models--")
    });
    [path.file_name(), hub]
        .into_iter()
        .flatten()
        .find_map(|name| {
            let name = name.to_string_lossy().to_lowercase();
            let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
            if name.contains("turbo") {
                Some("Turbo")
            } else if name.contains("lightning") {
                Some("Lightning")
            } else if words.any(|word| word.starts_with("lcm") || word.ends_with("lcm")) {
                Some("LCM")
            } else {
                None
            }
        })
}

/// Where a prediction is from that `load_model` or `convert` is given.
const BY_PARAMETER: &str = "`prediction`, as given";

impl Layout {
    /// The scheduler's configuration, with what a parameter or the single file says in its place.
    ///
    /// # Errors
    /// When it is none.
    pub fn scheduler_config(&self, files: &dyn Files) -> Result<SchedulerConfig> {
        let text = self.scheduler.text(files)?;
        let mut config = SchedulerConfig::parse(&text).map_err(|e| Error::Config {
            file: self.scheduler.path().to_owned(),
            message: format!("is not the configuration that was expected: {e}"),
        })?;
        if let Some(what) = dialects::other_schedule(&config.class_name) {
            return Err(Error::Config {
                file: self.scheduler.path().to_owned(),
                message: format!(
                    "is of {} ({what}), which is not supported",
                    config.class_name
                ),
            });
        }
        if let Some(prediction) = self.prediction {
            config.prediction_type = prediction;
        }
        if self.zero_snr {
            config.rescale_betas_zero_snr = true;
            // The last timestep is what the rescaling is for (Lin et al. 2023, section 3.3).
            if matches!(self.scheduler, Settings::Published(..)) {
                config.timestep_spacing = Some(Spacing::Trailing);
            }
        }
        Ok(config)
    }

    /// What says what the network predicts, in words.
    ///
    /// # Errors
    /// When the scheduler's configuration cannot be read.
    pub fn prediction_from(&self, files: &dyn Files) -> Result<String> {
        if let Some(from) = &self.prediction_from {
            return Ok(from.clone());
        }
        if self.assumed.is_some() {
            let what = if self.single.is_some() {
                "file"
            } else {
                "folder"
            };
            return Ok(format!("assumed: the {what} does not say it"));
        }
        let path = self.scheduler.path().display();
        Ok(match &self.scheduler {
            Settings::Published(..) => {
                let what = if self.single.is_some() {
                    "file"
                } else {
                    "folder"
                };
                format!("the published configuration, {path}: the {what} does not say it")
            }
            Settings::File(_)
                if SchedulerConfig::names_prediction(&self.scheduler.text(files)?) =>
            {
                path.to_string()
            }
            Settings::File(_) => format!("the default: {path} does not say it"),
        })
    }

    /// Finds the parts of a model.
    ///
    /// # Errors
    /// Everything that is missing; a single file of a family that is not known.
    pub fn find(sources: &Sources, files: &dyn Files) -> Result<Self, Vec<Error>> {
        if files.is_file(&sources.path) {
            Self::single(sources, files)
        } else {
            Self::folder(sources, files)
        }
    }

    fn folder(sources: &Sources, files: &dyn Files) -> Result<Self, Vec<Error>> {
        other_pipeline(&sources.path, files).map_err(|e| vec![e])?;
        let mut faults = Vec::new();
        let variant = sources.variant.as_deref();
        let mut part = |name: &'static str, kind, given: &Option<PathBuf>| {
            own_part(name, kind, given, &sources.path, variant, files)
                .map_err(|e| faults.push(e))
                .ok()
        };
        let unet = part("unet", Kind::Unet, &sources.unet);
        let family = unet
            .as_ref()
            .and_then(|unet| family_of(&unet.config, files));
        let (mut texts, mut lent) = (Vec::new(), Vec::new());
        for (i, (name, tokenizer)) in TEXTS.into_iter().enumerate() {
            let (given, own_tokenizer) = match i {
                0 => (&sources.text_encoder, &sources.tokenizer),
                _ => (&sources.text_encoder_2, &sources.tokenizer_2),
            };
            let there = i == 0
                || given.is_some()
                || files.is_file(&sources.path.join(name).join("config.json"));
            if there {
                let folder = own_tokenizer
                    .clone()
                    .unwrap_or_else(|| sources.path.join(tokenizer));
                let part = part(name, Kind::Text, given);
                let is_there = TOKENIZER_FILES
                    .iter()
                    .any(|name| files.is_file(&folder.join(name)));
                let pad = family.and_then(|family| family.pads().get(i).copied());
                let vocabulary = match pad {
                    Some(pad)
                        if own_tokenizer.is_none()
                            && !is_there
                            && part.as_ref().is_some_and(|part| reads_clip(part, files)) =>
                    {
                        lent.push(format!(
                            "the folder has no {tokenizer}/: CLIP's vocabulary, which is built in, is used"
                        ));
                        Vocabulary::Clip(pad)
                    }
                    _ => Vocabulary::Folder(folder),
                };
                texts.push(part.map(|part| (part, vocabulary)));
            }
        }
        let vae = part("vae", Kind::Vae, &sources.vae);
        let index = (texts.len() > 1).then(|| sources.path.join("model_index.json"));
        let (Some(unet), Some(texts), Some(vae)) =
            (unet, texts.into_iter().collect::<Option<Vec<_>>>(), vae)
        else {
            return Err(faults);
        };
        let path = scheduler_of(sources, &sources.path);
        let mut assumed = None;
        let scheduler = match family {
            Some(family) if sources.scheduler.is_none() && !files.is_file(&path) => {
                let family = sources.prediction.map_or(family, |p| family.predicting(p));
                lent.push(format!(
                    "the folder has no scheduler/: that of {} is used ({}); `scheduler: DIR` of load_model selects another",
                    family.name(),
                    family.scheduler_class()
                ));
                if matches!(family, Published::Sd2 | Published::Sd2Base)
                    && sources.prediction.is_none()
                {
                    let (predicts, other) = match family {
                        Published::Sd2 => ("v prediction", "epsilon"),
                        _ => ("epsilon", "v_prediction"),
                    };
                    assumed = Some(format!(
                        "nothing in the folder says what the U-Net predicts: {predicts} is assumed by its sample_size; give `prediction: {other}` if that is wrong"
                    ));
                }
                let name = Path::new(family.name()).join("scheduler/scheduler_config.json");
                Settings::Published(name, family.scheduler().into())
            }
            _ => Settings::File(path),
        };
        Ok(Self {
            unet,
            texts,
            vae,
            scheduler,
            index: index
                .filter(|index| files.is_file(index))
                .map(Settings::File),
            single: None,
            prediction: sources.prediction,
            prediction_from: sources.prediction.map(|_| BY_PARAMETER.to_owned()),
            zero_snr: false,
            assumed,
            lent,
            distilled: distilled(&sources.path),
        })
    }

    // Long: one part after the other from one table, with faults that are reported together.
    fn single(sources: &Sources, files: &dyn Files) -> Result<Self, Vec<Error>> {
        let table = Table::read(&sources.path, files).map_err(|e| vec![e])?;
        let table = Arc::new(table);
        let said = Said::of(&table).map_err(|e| vec![e])?;
        // A scheduler that is named for this model goes before what the file says, if it says anything.
        let scheduler = sources.scheduler.as_ref().map(|_| {
            let path = scheduler_of(sources, &sources.path);
            let says =
                read_text(files, &path).is_ok_and(|text| SchedulerConfig::names_prediction(&text));
            (path, says)
        });
        let by_scheduler = scheduler.as_ref().is_some_and(|(_, says)| *says);
        let given = sources.prediction.map(|p| (p, BY_PARAMETER.to_owned()));
        let told = given.or(said.prediction.filter(|_| !by_scheduler));
        let mut assumed = None;
        let published = match &sources.config {
            Some(_) => None,
            None => {
                let family = family(&table).map_err(|e| vec![e])?;
                if family == Published::Sd2 && told.is_none() && !by_scheduler {
                    assumed = Some(
                        "this file of Stable Diffusion 2 does not say what it predicts, and its tensors do not show it: v prediction is assumed (768 pixels); give `prediction: epsilon` if it is a base model (512 pixels)"
                            .to_owned(),
                    );
                }
                Some(told.as_ref().map_or(family, |(p, _)| family.predicting(*p)))
            }
        };
        let missing = missing_parts(&table, sources);
        if !missing.is_empty() {
            return Err(missing);
        }
        let settings =
            |part: &str, name: &str, text: Option<Cow<'static, str>>| match (&sources.config, text)
            {
                (Some(folder), _) => Settings::File(folder.join(part).join(name)),
                (None, Some(text)) => {
                    let whose = published.map_or("", Published::name);
                    Settings::Published(Path::new(whose).join(part).join(name), text)
                }
                // Only with a folder of configurations is no family known.
                (None, None) => Settings::File(sources.path.join(part).join(name)),
            };
        let mut faults = Vec::new();
        let variant = sources.variant.as_deref();
        let mut part =
            |name: &'static str, kind, given: &Option<PathBuf>, text: Option<Cow<'static, str>>| {
                let whole = Part {
                    name,
                    config: settings(name, "config.json", text),
                    weights: WeightFiles::Whole(table.clone()),
                };
                match given {
                    None => Some(whole),
                    Some(_) => own_part(name, kind, given, &sources.path, variant, files)
                        .map(|mut part| {
                            // A file of weights alone is read by the configuration of the part that it replaces.
                            if !files.is_file(part.config.path()) {
                                part.config = whole.config;
                            }
                            part
                        })
                        .map_err(|e| faults.push(e))
                        .ok(),
                }
            };
        let unet = part(
            "unet",
            Kind::Unet,
            &sources.unet,
            published.map(|family| match &sources.unet {
                None => shape::unet(&table, ldm::UNET, family.unet()),
                Some(_) => family.unet().into(),
            }),
        );
        let vae = part(
            "vae",
            Kind::Vae,
            &sources.vae,
            published.map(|family| family.vae().into()),
        );
        let configs = published.map_or(&[][..], Published::text_encoders);
        let second = sources.text_encoder_2.is_some()
            || configs.len() > 1
            || sources
                .config
                .as_ref()
                .is_some_and(|folder| files.is_file(&folder.join(TEXTS[1].0).join("config.json")));
        let mut texts = Vec::new();
        for (i, (name, tokenizer)) in TEXTS.into_iter().enumerate().take(1 + usize::from(second)) {
            let (given, own_tokenizer) = match i {
                0 => (&sources.text_encoder, &sources.tokenizer),
                _ => (&sources.text_encoder_2, &sources.tokenizer_2),
            };
            let beside = sources.config.as_ref().map(|folder| folder.join(tokenizer));
            let vocabulary = match (own_tokenizer, beside) {
                (Some(folder), _) => Vocabulary::Folder(folder.clone()),
                (None, Some(folder))
                    if TOKENIZER_FILES
                        .iter()
                        .any(|name| files.is_file(&folder.join(name))) =>
                {
                    Vocabulary::Folder(folder)
                }
                _ => Vocabulary::Clip(
                    published
                        .and_then(|family| family.pads().get(i).copied())
                        .unwrap_or(if i == 0 {
                            PadToken::End
                        } else {
                            PadToken::Exclamation
                        }),
                ),
            };
            texts.push(
                part(
                    name,
                    Kind::Text,
                    given,
                    configs.get(i).copied().map(Cow::from),
                )
                .map(|part| (part, vocabulary)),
            );
        }
        let (Some(unet), Some(texts), Some(vae)) =
            (unet, texts.into_iter().collect::<Option<Vec<_>>>(), vae)
        else {
            return Err(faults);
        };
        let scheduler = match scheduler {
            Some((path, _)) => Settings::File(path),
            None => settings(
                "scheduler",
                "scheduler_config.json",
                published.map(|family| family.scheduler().into()),
            ),
        };
        let index = match &sources.config {
            Some(folder) => Some(folder.join("model_index.json"))
                .filter(|index| files.is_file(index))
                .map(Settings::File),
            None => published.map(|family| {
                Settings::Published(family.name().into(), family.model_index().into())
            }),
        };
        Ok(Self {
            index: index.filter(|_| texts.len() > 1),
            unet,
            texts,
            vae,
            scheduler,
            single: Some(sources.path.clone()),
            prediction: told.as_ref().map(|(prediction, _)| *prediction),
            prediction_from: told.map(|(_, from)| from),
            zero_snr: said.zero_snr && sources.scheduler.is_none(),
            assumed,
            lent: Vec::new(),
            distilled: distilled(&sources.path),
        })
    }

    /// The files that make up the checkpoint, in a fixed order. Those of the tokenizers are optional.
    #[must_use]
    pub fn files(&self) -> Vec<PartFile> {
        let mut all = Vec::new();
        let file = |role: String, path: &Path, optional| PartFile {
            role,
            path: path.to_owned(),
            optional,
        };
        if let Some(single) = &self.single {
            all.push(file("model".into(), single, false));
        }
        all.extend(self.unet.files());
        for (part, _) in self.texts.iter().take(1) {
            all.extend(part.files());
        }
        all.extend(self.vae.files());
        if let Settings::File(path) = &self.scheduler {
            all.push(file("scheduler/scheduler_config.json".into(), path, false));
        }
        for (i, (part, vocabulary)) in self.texts.iter().enumerate() {
            if i > 0 {
                all.extend(part.files());
            }
            if let Vocabulary::Folder(folder) = vocabulary {
                for name in TOKENIZER_FILES {
                    let role = format!("{}/{name}", TEXTS[i].1);
                    all.push(file(role, &folder.join(name), true));
                }
            }
        }
        if let Some(Settings::File(path)) = &self.index {
            all.push(file("model_index.json".into(), path, true));
        }
        all
    }
}

/// A VAE that is named alone: a folder, or a file of weights.
///
/// # Errors
/// When there is none.
pub fn vae_part(path: &Path, files: &dyn Files) -> Result<Part> {
    own_part("vae", Kind::Vae, &Some(path.to_owned()), path, None, files)
}

/// A part in a folder or file of its own: that which is given, or the one of the model's folder.
fn own_part(
    name: &'static str,
    kind: Kind,
    given: &Option<PathBuf>,
    model: &Path,
    variant: Option<&str>,
    files: &dyn Files,
) -> Result<Part> {
    let folder = given.clone().unwrap_or_else(|| model.join(name));
    if given.is_some() && files.is_file(&folder) {
        // A file of weights alone: its configuration lies beside it, or is that of the part that it replaces.
        let beside = folder.with_file_name("config.json");
        let config = if files.is_file(&beside) {
            beside
        } else {
            model.join(name).join("config.json")
        };
        return Ok(Part {
            name,
            config: Settings::File(config),
            weights: WeightFiles::Own(folder.clone(), vec![folder]),
        });
    }
    Ok(Part {
        name,
        config: Settings::File(folder.join("config.json")),
        weights: weights_in(
            &folder,
            kind,
            variant,
            given.is_none() && kind == Kind::Unet,
            files,
        )?,
    })
}

fn scheduler_of(sources: &Sources, model: &Path) -> PathBuf {
    let folder = sources
        .scheduler
        .clone()
        .unwrap_or_else(|| model.join("scheduler"));
    // The file itself may be named too.
    if folder.extension().is_some_and(|ending| ending == "json") {
        folder
    } else {
        folder.join("scheduler_config.json")
    }
}

impl WeightFiles {
    /// All tensors of the files, under the names that they have there.
    ///
    /// # Errors
    /// When a file cannot be read or is none of weights.
    pub fn table(&self, files: &dyn Files) -> Result<Arc<Table>> {
        match self {
            Self::Whole(table) => Ok(table.clone()),
            Self::Own(named, paths) => {
                let weights: Vec<_> = paths
                    .iter()
                    .filter(|path| path.extension().is_none_or(|ending| ending != "json"))
                    .collect();
                if let [one] = weights.as_slice() {
                    return Ok(Arc::new(Table::read(one, files)?));
                }
                let parts: Vec<Table> = weights
                    .into_iter()
                    .map(|path| Table::read(path, files))
                    .collect::<Result<_>>()?;
                Ok(Arc::new(Table::join(named, parts)?))
            }
        }
    }
}
