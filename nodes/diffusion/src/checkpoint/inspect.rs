//! What a model, an adapter or any other file of tensors is, from its headers and configurations alone.

mod picture;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use retouch_graph::Files;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value as Json;

use crate::checkpoint::adapters::custom_diffusion::CustomDiffusion;
use crate::checkpoint::adapters::dialect::{self, Keys};
use crate::checkpoint::adapters::lora::{Fitted, Lora};
use crate::checkpoint::adapters::textual_inversion::{self, LearnedToken};
use crate::checkpoint::adapters::{Networks, some_of};
use crate::checkpoint::alone::Alone;
use crate::checkpoint::dialects::{self, Role};
use crate::checkpoint::exif;
use crate::checkpoint::family::family_of_width;
use crate::checkpoint::layout::{Layout, Part, Settings, Sources, Vocabulary, WeightFiles};
use crate::checkpoint::model::Description;
use crate::checkpoint::pickle;
use crate::checkpoint::published::Published;
use crate::checkpoint::weights::{Header, Stored, Table, foreign, is_gguf, is_torch};
use crate::networks::clip::ClipTextConfig;
use crate::networks::unet::{self, PerLevel, Shown, UnetConfig, grid_at};
use crate::sampling::scheduler::{Prediction, SchedulerConfig};
use crate::sampling::swap::auto_sites;
use crate::{Error, Result};
use picture::picture;

/// Groups of tensors that are listed of a file that is neither a model nor an adapter.
const MOST_GROUPS: usize = 40;
/// Files beside a Custom Diffusion file that may be its tokens are no larger than this.
const SMALL: u64 = 1 << 20;
/// Tags of a training set that are listed.
const MOST_TAGS: usize = 5;

/// What a path was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A whole model, which `load_model` takes.
    Model,
    /// A LoRA.
    Lora,
    /// A textual inversion: vectors for new tokens.
    TextualInversion,
    /// A Custom Diffusion file: some weights of the U-Net, replaced.
    CustomDiffusion,
    /// Tensors of another kind.
    Tensors,
    /// A picture with the settings of another program.
    Picture,
}

/// What is known of a path.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// What it is.
    pub kind: Kind,
    /// How it is laid out: `diffusers folder`, `single file`, `safetensors`, `torch` or `GGUF`; of a picture `PNG`, `JPEG` or `WebP`.
    pub layout: String,
    /// The family that it is of, or that it fits; null when that is not known.
    pub family: Option<String>,
    /// Its networks; of a file of tensors the groups of their names.
    pub parts: Vec<PartReport>,
    /// The self-attention sites of a model.
    pub sites: Vec<SiteReport>,
    /// The size that the sites' grids are for: width and height in pixels.
    pub size: Option<(usize, usize)>,
    /// The scheduler of a model, in words.
    pub scheduler: Option<String>,
    /// What a model's U-Net predicts: `epsilon` or `v_prediction`.
    pub prediction: Option<String>,
    /// What says so, in words.
    pub prediction_from: Option<String>,
    /// A model's tokenizers, in words.
    pub tokenizers: Vec<String>,
    /// What is known of an adapter.
    pub adapter: Option<AdapterReport>,
    /// What the file says of itself, long texts left out.
    pub metadata: BTreeMap<String, String>,
    /// What else is worth to be known.
    pub notes: Vec<String>,
}

/// A network, or a group of tensors.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PartReport {
    /// Its folder's name in the diffusers layout, or what the names of the tensors begin with.
    pub name: String,
    /// The files that its tensors are in.
    pub files: Vec<String>,
    /// The number of its tensors.
    pub tensors: usize,
    /// The number of their elements.
    pub parameters: u64,
    /// The bytes that they take in the files.
    pub bytes: u64,
    /// The types of the elements: how many tensors have each.
    pub dtypes: BTreeMap<String, usize>,
    /// Its configuration in short; null where there is none.
    pub configuration: Option<String>,
}

/// A self-attention site.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SiteReport {
    /// Its number.
    pub index: usize,
    /// Where it is: `down`, `mid` or `up`.
    pub part: String,
    /// Rows and columns of its grid.
    pub grid: (usize, usize),
    /// Features of its queries, keys and values.
    pub width: usize,
    /// Whether `sites: auto` of `swap_attention` means it.
    pub auto: bool,
}

/// What is known of an adapter.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AdapterReport {
    /// How its keys are written.
    pub dialect: String,
    /// How many tensors of a LoRA's model are changed in which way: `LoRA`, `LoHa`, `DoRA`, ...
    pub kinds: BTreeMap<String, usize>,
    /// The smallest and the largest rank of a LoRA.
    pub ranks: Option<(usize, usize)>,
    /// The smallest and the largest alpha of a LoRA.
    pub alphas: Option<(f64, f64)>,
    /// Layers of the U-Net that it changes.
    pub unet_layers: usize,
    /// Layers of text encoders that it changes.
    pub text_layers: usize,
    /// Names of a LoRA that are of no layer of the published model of its family.
    pub unmatched: Vec<String>,
    /// The tokens that it brings, or that its training set has most, and how many vectors each has (0: none of its own).
    pub tokens: Vec<(String, usize)>,
}

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The model, adapter or file.
    pub path: PathBuf,
    /// The configurations of a single file.
    pub config: Option<PathBuf>,
    /// Width and height in pixels; the model's own by default.
    pub size: Option<(usize, usize)>,
}

/// Looks at a path.
///
/// # Errors
/// Everything that is wrong with a model; when there is nothing at the path, or nothing that has tensors.
pub fn inspect(request: &Request, files: &dyn Files) -> Result<Report, Vec<Error>> {
    let path = &request.path;
    if files.is_dir(path) {
        return folder(request, files);
    }
    let one = |e| vec![e];
    if !files.is_file(path) {
        return Err(vec![Error::request(format!(
            "there is no {}",
            path.display()
        ))]);
    }
    if let Some(report) = picture(path, files) {
        return Ok(report);
    }
    if let Some(what) = other_kind(path, files) {
        return Err(vec![what]);
    }
    let table = Table::read(path, files).map_err(one)?;
    let mut report = of_file(request, &table, files)?;
    if let Some(alone) = Alone::of(&table).filter(|_| report.kind == Kind::Tensors) {
        report
            .notes
            .push(format!("it is {}", alone.in_words(&table)));
    }
    report.notes.extend(skipped(path, files));
    Ok(report)
}

/// Objects of other programs in a torch file, which are passed over.
fn skipped(path: &Path, files: &dyn Files) -> Option<String> {
    const SHOWN: usize = 5;
    let (_, skipped) = is_torch(path, files)
        .then(|| pickle::read_and_skipped(path, files).ok())
        .flatten()?;
    let count: usize = skipped.values().sum();
    let classes: Vec<String> = skipped.keys().take(SHOWN).cloned().collect();
    let more = match skipped.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (count > 0).then(|| {
        format!(
            "{count} objects of foreign classes were skipped ({}{more}): the file holds more than data, and loading it in Python would run code of these classes; nothing in it was run here",
            classes.join(", ")
        )
    })
}

/// A file that has tensors.
fn of_file(request: &Request, table: &Table, files: &dyn Files) -> Result<Report, Vec<Error>> {
    let path = &request.path;
    let is_model = dialects::holds(table, |role| role == Role::Unet);
    if request.config.is_some() || is_model {
        let sources = Sources {
            config: request.config.clone(),
            ..Sources::of(path)
        };
        match Layout::find(&sources, files) {
            Ok(layout) => return model(&layout, request, files),
            // Of another family: what it is, and what is in it.
            Err(errors) if request.config.is_none() => {
                let mut report = tensors(path, table, files);
                report.notes.extend(errors.iter().map(ToString::to_string));
                return Ok(report);
            }
            Err(errors) => return Err(errors),
        }
    }
    let mut report = adapter(path, table, files);
    if report.kind == Kind::Tensors
        && let Some(dialects::Family::Other(what)) = dialects::family(table)
    {
        report.notes.push(format!("it is {what}"));
    }
    Ok(report)
}

/// What a file is that has no tensors, where people may have taken it for one that has.
fn other_kind(path: &Path, files: &dyn Files) -> Option<Error> {
    let (what, help) = foreign(path, files)?;
    Some(
        Error::request(format!(
            "{} {what}; expected a model, an adapter or another file of tensors",
            path.display()
        ))
        .help(help),
    )
}

// ---- pictures ----------------------------------------------------------------------------------------------------

fn folder(request: &Request, files: &dyn Files) -> Result<Report, Vec<Error>> {
    let path = &request.path;
    let is_model = ["model_index.json", "unet/config.json"]
        .iter()
        .any(|name| files.is_file(&path.join(name)));
    if !is_model {
        let lora = Lora::find(path, files);
        let custom = CustomDiffusion::find(path, files);
        if let Some(file) = [lora, custom].into_iter().find(|file| files.is_file(file)) {
            let table = Table::read(&file, files).map_err(|e| vec![e])?;
            return Ok(adapter(&file, &table, files));
        }
        // A network alone: `unet/`.
        if let Some(file) = [
            "diffusion_pytorch_model.safetensors",
            "model.safetensors",
            "diffusion_pytorch_model.bin",
            "pytorch_model.bin",
        ]
        .iter()
        .map(|name| path.join(name))
        .find(|file| files.is_file(file))
        {
            let table = Table::read(&file, files).map_err(|e| vec![e])?;
            let mut report = tensors(&file, &table, files);
            report.notes.push(
                "a standalone network, for `unet:`, `text_encoder:` or `vae:` of `load_model`"
                    .into(),
            );
            return Ok(report);
        }
    }
    let layout = Layout::find(&Sources::of(path), files)?;
    model(&layout, request, files)
}

// ---- models ------------------------------------------------------------------------------------------------------

// Long: one page, written from top to bottom.
fn model(layout: &Layout, request: &Request, files: &dyn Files) -> Result<Report, Vec<Error>> {
    let description = Description::of(layout, files)?;
    let one = |e| vec![e];
    let size = size(&description, request.size).map_err(one)?;
    let (latent, size) = size;
    let sites = description.unet.sites();
    let auto = auto_sites(&sites);
    let sites = sites
        .iter()
        .map(|site| SiteReport {
            index: site.index,
            part: match site.part {
                unet::Part::Down => "down",
                unet::Part::Mid => "mid",
                unet::Part::Up => "up",
            }
            .to_owned(),
            grid: grid_at(latent, site.level),
            width: site.width,
            auto: auto.contains(&site.index),
        })
        .collect();
    let mut parts = Vec::new();
    for network in description.networks().map_err(one)? {
        let stored = network.tensors.iter().map(|(_, stored)| stored);
        let mut part = group(network.name, stored);
        part.configuration = Some(in_short(network.name, &description));
        parts.push(part);
    }
    let own = layout.unet.weights.table(files).map_err(one)?;
    let metadata = match layout.single {
        Some(_) => short(&own.metadata),
        None => BTreeMap::new(),
    };
    let mut notes = Vec::new();
    let unread = surplus(layout, &description, files).map_err(one)?;
    if !unread.is_empty() {
        let count: usize = unread.iter().map(|(_, count)| count).sum();
        let kinds: Vec<String> = unread
            .iter()
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        notes.push(format!(
            "{count} tensors belong to no network and are ignored: {}",
            kinds.join(", ")
        ));
    }
    if layout.single.is_some() && matches!(layout.unet.config, Settings::Published(..)) {
        notes.push(format!(
            "a single file has no configurations: those of {} are used",
            layout
                .unet
                .config
                .path()
                .iter()
                .next()
                .unwrap_or_default()
                .to_string_lossy()
        ));
    }
    if layout.single.is_some()
        && let Settings::Published(_, std::borrow::Cow::Owned(_)) = &layout.unet.config
        && description.unet.shown() == Some(Shown::Nothing)
    {
        notes.push(format!(
            "its U-Net has a different shape, which is read from its tensors: {}",
            shape_in_short(&description.unet)
        ));
    }
    notes.extend(layout.lent.iter().cloned());
    notes.extend(layout.assumed.clone());
    if layout.zero_snr {
        notes.push(
            "the marker tensor `ztsnr` says that the schedule is rescaled to zero terminal SNR"
                .to_owned(),
        );
    }
    if let Some(kind) = description.distilled {
        notes.push(format!(
            "seems to be a {kind} model, made for few steps: sample it with `spacing: trailing` and `guidance: 1`"
        ));
    }
    Ok(Report {
        kind: Kind::Model,
        layout: match layout.single {
            Some(_) => "single file",
            None => "diffusers folder",
        }
        .to_owned(),
        family: Some(family(&description)),
        parts,
        sites,
        size: Some(size),
        scheduler: Some(scheduler(layout, files).map_err(one)?),
        prediction: Some(
            match description.scheduler.prediction_type {
                Prediction::Epsilon => "epsilon",
                Prediction::VPrediction => "v_prediction",
                Prediction::Sample => "sample",
            }
            .to_owned(),
        ),
        prediction_from: Some(layout.prediction_from(files).map_err(one)?),
        tokenizers: layout
            .texts
            .iter()
            .zip(&description.texts)
            .map(|((_, vocabulary), text)| {
                let place = match vocabulary {
                    Vocabulary::Folder(folder) => folder.display().to_string(),
                    Vocabulary::Clip(_) => "CLIP's vocabulary, from this program".to_owned(),
                };
                format!(
                    "{} tokens a prompt, {} known ({place})",
                    text.config.max_position_embeddings, text.config.vocab_size
                )
            })
            .collect(),
        adapter: None,
        metadata,
        notes,
    })
}

/// What a U-Net's configuration says of its blocks.
fn shape_in_short(unet: &UnetConfig) -> String {
    let middle = match unet.mid_block_type.as_deref() {
        None => "no middle block",
        Some("UNetMidBlock2D") => "a middle block of one ResNet block",
        Some(_) => "a middle block with attention",
    };
    let layers: Vec<usize> = (0..unet.block_out_channels.len())
        .map(|level| unet.layers_at(level))
        .collect();
    format!(
        "{} levels, {layers:?} layers each, {middle}",
        unet.block_out_channels.len()
    )
}

/// The latent's rows and columns, and the picture's width and height.
fn size(
    description: &Description,
    asked: Option<(usize, usize)>,
) -> Result<((usize, usize), (usize, usize))> {
    let factor = description.vae.factor();
    let own = description.unet.sample_size.unwrap_or(64) * factor;
    let (width, height) = asked.unwrap_or((own, own));
    if width == 0 || height == 0 || !width.is_multiple_of(factor) || !height.is_multiple_of(factor)
    {
        return Err(Error::request(format!(
            "this model cannot make pictures of {width}x{height}: both sides must be multiples of {factor}"
        )));
    }
    Ok(((height / factor, width / factor), (width, height)))
}

fn family(description: &Description) -> String {
    let width = description.unet.context_width();
    match (family_of_width(width), description.texts.len()) {
        (Some(family), _) => family.to_owned(),
        (None, 2) => format!("made like Stable Diffusion XL, with texts of {width} features"),
        (None, _) if description.unet.use_linear_projection => {
            format!("made like Stable Diffusion 2, with texts of {width} features")
        }
        (None, _) => format!("made like Stable Diffusion 1, with texts of {width} features"),
    }
}

fn in_short(name: &str, description: &Description) -> String {
    let list = |numbers: &[usize]| {
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        numbers.join(", ")
    };
    match name {
        "unet" => {
            let unet = &description.unet;
            let heads = unet
                .num_attention_heads
                .as_ref()
                .unwrap_or(&unet.attention_head_dim);
            let heads = match heads {
                PerLevel::All(heads) => heads.to_string(),
                PerLevel::Each(heads) => list(heads),
            };
            format!(
                "channels {}; heads {heads}; {} self-attention sites; texts of {} features; latents of {} channels",
                list(&unet.block_out_channels),
                unet.sites().len(),
                unet.context_width(),
                unet.out_channels
            ) + match unet.shown() {
                Some(Shown::Masked) => {
                    "; an inpainting model: shown a mask and the masked picture, `mask` and `picture` of sample"
                }
                Some(Shown::Picture) => {
                    "; an image-editing model: shown a picture, `picture` of sample"
                }
                Some(Shown::Nothing) | None => "",
            }
        }
        "vae" => format!(
            "channels {}; latents of {} channels, a picture {} times their size; scaled by {}",
            list(&description.vae.block_out_channels),
            description.vae.latent_channels,
            description.vae.factor(),
            description.vae.scaling_factor
        ),
        _ => {
            let index = usize::from(name == "text_encoder_2");
            description
                .texts
                .get(index)
                .map_or_else(String::new, |text| {
                    format!(
                        "{} layers of {} features, {} heads",
                        text.config.num_hidden_layers,
                        text.config.hidden_size,
                        text.config.num_attention_heads
                    )
                })
        }
    }
}

fn scheduler(layout: &Layout, files: &dyn Files) -> Result<String> {
    let settings = &layout.scheduler;
    let read = layout.scheduler_config(files)?;
    let config = SchedulerConfig::json(&settings.text(files)?).map_err(|e| Error::Config {
        file: settings.path().to_owned(),
        message: e.to_string(),
    })?;
    let text = |key: &str| match config.get(key) {
        Some(Json::String(text)) => Some(text.clone()),
        Some(Json::Null) | None => None,
        Some(other) => Some(other.to_string()),
    };
    let mut words = vec![text("_class_name").unwrap_or_else(|| "no class named".into())];
    if let Some(steps) = text("num_train_timesteps") {
        words.push(format!("{steps} timesteps"));
    }
    if let (Some(schedule), Some(start), Some(end)) =
        (text("beta_schedule"), text("beta_start"), text("beta_end"))
    {
        words.push(format!("{schedule} betas {start} to {end}"));
    }
    if read.rescale_betas_zero_snr {
        words.push("rescaled to zero terminal SNR".to_owned());
    }
    if let Some(spacing) = read.timestep_spacing {
        words.push(format!("{} spacing", spacing.name()));
    }
    Ok(words.join(", "))
}

/// What the tensors in the model's files are that no network is built of.
fn surplus(
    layout: &Layout,
    description: &Description,
    files: &dyn Files,
) -> Result<Vec<(String, usize)>> {
    let mut used = BTreeSet::new();
    for network in description.networks()? {
        used.extend(
            network
                .tensors
                .into_iter()
                .map(|(_, stored)| (stored.file, stored.name)),
        );
    }
    let texts = layout.texts.iter().map(|(part, _)| part);
    let parts: Vec<&Part> = [&layout.unet]
        .into_iter()
        .chain(texts)
        .chain([&layout.vae])
        .collect();
    let mut all = BTreeSet::new();
    for part in parts {
        // The table of a single file is the same for every part.
        let table = match &part.weights {
            WeightFiles::Whole(table) => table.clone(),
            WeightFiles::Own(..) => part.weights.table(files)?,
        };
        all.extend(
            table
                .tensors
                .values()
                .map(|stored| (stored.file.clone(), stored.name.clone())),
        );
    }
    let names = all.difference(&used).map(|(_, name)| name.as_str());
    Ok(dialects::unread(names))
}

// ---- tensors -----------------------------------------------------------------------------------------------------

fn group<'a>(name: &str, tensors: impl Iterator<Item = &'a Stored>) -> PartReport {
    let mut part = PartReport {
        name: name.to_owned(),
        files: Vec::new(),
        tensors: 0,
        parameters: 0,
        bytes: 0,
        dtypes: BTreeMap::new(),
        configuration: None,
    };
    let mut files = BTreeSet::new();
    // Query, key and value of OpenCLIP are cut out of one tensor, and are counted as what they are.
    for stored in tensors {
        part.tensors += 1;
        let elements = stored.elements() as u64;
        part.parameters = part.parameters.saturating_add(elements);
        part.bytes = part.bytes.saturating_add(stored.bytes().unwrap_or(0));
        *part.dtypes.entry(stored.dtype.clone()).or_default() += 1;
        files.insert(stored.file.clone());
    }
    part.files = files
        .into_iter()
        .map(|file| file.display().to_string())
        .collect();
    part
}

/// Metadata without what is too long to be read.
fn short(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const LONGEST: usize = 200;
    metadata
        .iter()
        .filter(|(_, value)| value.len() <= LONGEST)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn layout_of(path: &Path, files: &dyn Files) -> &'static str {
    if is_torch(path, files) {
        "torch"
    } else if is_gguf(path, files) {
        "GGUF"
    } else {
        "safetensors"
    }
}

/// A file of tensors, summed up by the first parts of their names.
fn tensors(path: &Path, table: &Table, files: &dyn Files) -> Report {
    let mut groups: BTreeMap<&str, Vec<&Stored>> = BTreeMap::new();
    for (name, stored) in &table.tensors {
        let first = name.split('.').next().unwrap_or(name);
        groups.entry(first).or_default().push(stored);
    }
    let mut groups: Vec<(&str, Vec<&Stored>)> = groups.into_iter().collect();
    if groups.len() > MOST_GROUPS {
        let rest = groups.split_off(MOST_GROUPS);
        groups.push((
            "(others)",
            rest.into_iter().flat_map(|(_, all)| all).collect(),
        ));
    }
    let mut notes = Vec::new();
    let parts = groups
        .into_iter()
        .map(|(name, all)| {
            let mut part = group(name, all.iter().copied());
            if let [one] = all.as_slice()
                && one.name == name
            {
                part.configuration = Some(format!("shape {:?}", one.shape));
            }
            part
        })
        .collect();
    if table.tensors.is_empty() {
        notes.push("it holds no tensors".into());
    }
    Report {
        kind: Kind::Tensors,
        layout: layout_of(path, files).to_owned(),
        family: None,
        parts,
        sites: Vec::new(),
        size: None,
        scheduler: None,
        prediction: None,
        prediction_from: None,
        tokenizers: Vec::new(),
        adapter: None,
        metadata: short(&table.metadata),
        notes,
    }
}

// ---- adapters ----------------------------------------------------------------------------------------------------

/// The family of a model whose cross-attention takes texts so wide, or the width.
fn fits(width: usize) -> String {
    family_of_width(width).map_or_else(
        || format!("a model with texts of {width} features"),
        str::to_owned,
    )
}

fn adapter(path: &Path, table: &Table, files: &dyn Files) -> Report {
    let mut report = tensors(path, table, files);
    // The layers that an adapter names are as many as the model's: together they say as much.
    let all = vec![group("adapter", table.tensors.values())];
    match dialect::keys(table) {
        Keys::CustomDiffusion => custom(path, table, files, &mut report),
        Keys::Layers => match Lora::of(path, table, files) {
            Ok(lora) => layers(&lora, path, table, files, &mut report),
            Err(e) => report.notes.push(e.to_string()),
        },
        // What it is, in the words of the op that refuses it.
        Keys::Other(..) | Keys::Family(..) => {
            if let Err(e) = Lora::of(path, table, files) {
                report.notes.push(e.to_string());
            }
        }
        Keys::Unknown => {
            let Some(inversion) = inversion(path, table) else {
                return report;
            };
            embeddings(inversion, &mut report);
        }
    }
    report.parts = all;
    report
}

fn custom(path: &Path, table: &Table, files: &dyn Files, report: &mut Report) {
    report.kind = Kind::CustomDiffusion;
    let tensors = CustomDiffusion::tensors(table);
    let layers: BTreeSet<&str> = tensors
        .iter()
        .filter_map(|(name, _)| name.split_once(".attn2.").map(|(layer, _)| layer))
        .collect();
    let keys = tensors
        .iter()
        .find(|(name, _)| name.ends_with("attn2.to_k.weight"));
    let width = keys.and_then(|(_, stored)| stored.shape.get(1).copied());
    report.family = width.map(fits);
    let (own, mut tokens) = match inversion(path, table) {
        Some((_, tokens, _)) => (true, tokens),
        None => (false, Vec::new()),
    };
    if tokens.is_empty() {
        tokens = beside(path, files);
    }
    report.adapter = Some(AdapterReport {
        dialect: if own { "Custom Diffusion" } else { "diffusers" }.into(),
        kinds: BTreeMap::new(),
        ranks: None,
        alphas: None,
        unet_layers: layers.len(),
        text_layers: 0,
        unmatched: Vec::new(),
        tokens,
    });
    if tensors.iter().any(|(name, _)| name.contains(".to_q.")) {
        report
            .notes
            .push("it changes queries and outputs too, not only keys and values".into());
    }
    if own {
        report
            .notes
            .push("its tokens are added by `apply_textual_inversion` with the same file (a token with a space in its name needs `token: NAME` there)".into());
    }
}

/// A LoRA, as `apply_lora` reads it: held against the published model of its family, as far as that is known.
fn layers(lora: &Lora, path: &Path, table: &Table, files: &dyn Files, report: &mut Report) {
    report.kind = Kind::Lora;
    let text_layers = lora.modules.keys().filter(|name| dialect::is_text(name));
    let text_layers = text_layers.count();
    let fitted = fitted(lora);
    report.family = match &fitted {
        Some((family, _)) => Some((*family).to_owned()),
        None => lora.text_width().map(fits),
    };
    let (unet_layers, text_layers, unmatched) = match fitted {
        Some((_, fitted)) => {
            let (unet, texts) = fitted.layers();
            (unet, texts.iter().sum(), fitted.unmatched)
        }
        None => (
            lora.modules.len() - text_layers,
            text_layers,
            lora.strays.clone(),
        ),
    };
    if !unmatched.is_empty() {
        report.notes.push(format!(
            "{} unmatched (left out: {})",
            unmatched.len(),
            some_of(&unmatched)
        ));
    }
    let mut tokens = trained_on(path, table, files);
    if !lora.tokens.is_empty() {
        tokens.extend(
            lora.tokens
                .iter()
                .map(|token| (token.token.clone(), token.vectors())),
        );
        report.notes.push(
            "embeddings inside are added by `apply_textual_inversion` with the same file (a token with a space in its name needs `token: NAME` there)".into(),
        );
    }
    report.adapter = Some(AdapterReport {
        dialect: lora.dialect.name().to_owned(),
        kinds: lora.kinds(),
        ranks: lora.ranks(),
        alphas: lora.alphas(),
        unet_layers,
        text_layers,
        unmatched,
        tokens,
    });
}

/// The published models that an adapter may be for.
const FAMILIES: [(&str, Published); 3] = [
    ("Stable Diffusion 1", Published::Sd1),
    ("Stable Diffusion 2", Published::Sd2),
    ("Stable Diffusion XL", Published::Sdxl),
];

/// The one family whose published model a LoRA fits, and how. One that leaves cross-attention as it is may fit several: then
/// the one with the most layers, if there is one.
fn fitted(lora: &Lora) -> Option<(&'static str, Fitted)> {
    let mut all: Vec<(&str, Fitted)> = FAMILIES
        .into_iter()
        .filter_map(|(family, published)| {
            let unet = serde_json::from_str::<UnetConfig>(published.unet()).ok()?;
            let width = lora.text_width();
            if width.is_some_and(|width| width != unet.context_width()) {
                return None;
            }
            let texts = published.text_encoders().iter();
            let texts: Option<Vec<ClipTextConfig>> =
                texts.map(|text| serde_json::from_str(text).ok()).collect();
            let networks = Networks::of(&unet, &texts?).ok()?;
            Some((family, lora.fit(&networks).ok()?))
        })
        .collect();
    all.sort_by_key(|(_, fitted)| std::cmp::Reverse(fitted.matched()));
    let tied = all.len() > 1 && all[0].1.matched() == all[1].1.matched();
    (!tied && !all.is_empty()).then(|| all.swap_remove(0))
}

fn embeddings((dialect, tokens, widths): Inversion, report: &mut Report) {
    // CLIP has 77 positions in every model, two of which are begin and end.
    const ROOM: usize = 75;
    for (token, vectors) in tokens.iter().filter(|(_, vectors)| *vectors > ROOM) {
        report.notes.push(format!(
            "{token:?} has {vectors} vectors, and a prompt has room for {ROOM}: it cannot be applied"
        ));
    }
    report.kind = Kind::TextualInversion;
    report.family = Some(match widths.as_slice() {
        [768] => "Stable Diffusion 1".into(),
        [1024] => "Stable Diffusion 2".into(),
        [768, 1280] => "Stable Diffusion XL".into(),
        [width] => format!("a text encoder of {width} features"),
        widths => format!("text encoders of {widths:?} features"),
    });
    report.adapter = Some(AdapterReport {
        dialect: dialect.into(),
        kinds: BTreeMap::new(),
        ranks: None,
        alphas: None,
        unet_layers: 0,
        text_layers: 0,
        unmatched: Vec::new(),
        tokens,
    });
}

type Inversion = (&'static str, Vec<(String, usize)>, Vec<usize>);

/// A textual inversion: its dialect, its tokens with their numbers of vectors, the widths of the text encoders.
fn inversion(path: &Path, table: &Table) -> Option<Inversion> {
    let (dialect, tokens) = textual_inversion::tokens(path, table)?;
    // Any small file of matrices could be one by its keys alone.
    if dialect == textual_inversion::Dialect::Diffusers && !tokens.iter().all(is_small) {
        return None;
    }
    let rows = tokens.iter().flat_map(|token| &token.rows);
    let widths: BTreeSet<usize> = rows.filter_map(|rows| rows.shape.get(1).copied()).collect();
    let tokens = tokens
        .into_iter()
        .map(|token| (token.vectors(), token.token))
        .map(|(vectors, token)| (token, vectors));
    Some((
        dialect.name(),
        tokens.collect(),
        widths.into_iter().collect(),
    ))
}

/// Whether a tensor can be the vectors of a token by its name: diffusers writes them under the token, `<toy>`.
fn is_small(token: &LearnedToken) -> bool {
    let name = &token.token;
    let marked = name.starts_with('<') && name.ends_with('>');
    let width = token.rows.first().and_then(|rows| rows.shape.get(1));
    let usual = width.is_some_and(|width| [768, 1024, 1280].contains(width));
    marked || (!name.contains('.') && token.vectors() <= 75 && usual)
}

/// The tokens whose vectors lie in files beside a Custom Diffusion file.
fn beside(path: &Path, files: &dyn Files) -> Vec<(String, usize)> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let mut tokens = Vec::new();
    for entry in files.entries(folder).unwrap_or_default() {
        let ending = entry.path.extension().and_then(|ending| ending.to_str());
        if entry.size.is_some_and(|size| size <= SMALL)
            && matches!(ending, Some("bin" | "safetensors"))
            && entry.path != path
            && let Ok(table) = Table::read(&entry.path, files)
            && !CustomDiffusion::is(&table)
            && let Some((_, found, _)) = inversion(&entry.path, &table)
        {
            tokens.extend(found);
        }
    }
    tokens
}

/// The words that a LoRA was trained on: its trigger, or the tags that its training set has most.
fn trained_on(path: &Path, table: &Table, files: &dyn Files) -> Vec<(String, usize)> {
    // The header has all of it, also what reports leave out for its length.
    let header = (!is_torch(path, files))
        .then(|| Header::read(path, files).ok())
        .flatten();
    let metadata = header.map_or_else(|| table.metadata.clone(), |header| header.metadata);
    if let Some(trigger) = metadata.get("modelspec.trigger_phrase") {
        return vec![(trigger.clone(), 0)];
    }
    let tags = metadata.get("ss_tag_frequency").and_then(|text| {
        serde_json::from_str::<BTreeMap<String, BTreeMap<String, u64>>>(text).ok()
    });
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (tag, count) in tags.into_iter().flatten().flat_map(|(_, tags)| tags) {
        let sum = counts.entry(tag.trim().to_owned()).or_default();
        *sum = sum.saturating_add(count);
    }
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
        .into_iter()
        .take(MOST_TAGS)
        .map(|(tag, _)| (tag, 0))
        .collect()
}
