//! From any layout that is read to the diffusers folder or the single file.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use retouch_graph::Files;
use serde_json::{Value as Json, json};

use super::Follow;
use super::writer::{Precision, Tensor, write};
use crate::checkpoint::dialects::{self, Marker, Role};
use crate::checkpoint::layout::{
    Layout, MODELSPEC_PREDICTION, TOKENIZER_FILES, Vocabulary, read_text,
};
use crate::checkpoint::ldm;
use crate::checkpoint::model::{Description, NetworkTensors};
use crate::checkpoint::weights::{Stored, bare, numbers};
use crate::networks::clip::Activation;
use crate::prompt::tokenizer::{PadToken, TokenizerFiles};
use crate::sampling::scheduler::{Prediction, SchedulerConfig};
use crate::{Error, Result};

/// Elements that are read, converted and written at once.
const PIECE: usize = 1 << 20;

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Converted {
    /// The files, relative to the folder; none of a single file.
    pub files: Vec<PathBuf>,
    /// All bytes of weights.
    pub bytes: u64,
    /// The number of tensors.
    pub tensors: usize,
    /// What the model had and the result has not, in words.
    pub lost: Vec<String>,
}

/// How the elements of a stored tensor become those that are written.
#[derive(Clone, Copy)]
struct Conversion(Option<Precision>);

impl Conversion {
    /// The type that is written, for a stored one.
    fn dtype(self, stored: &Stored) -> String {
        match self.0 {
            Some(precision) => precision.name().to_owned(),
            // safetensors has no blocks.
            None if stored.block().is_some() => Precision::F32.name().to_owned(),
            None => stored.dtype.clone(),
        }
    }

    /// The precision of a stored tensor as it is written; `None`: as it is stored.
    fn precision(self, stored: &Stored) -> Option<Precision> {
        self.0
            .or_else(|| stored.block().map(|_| Precision::F32))
            .filter(|precision| precision.name() != stored.dtype)
    }

    /// Bytes, as they are stored, to bytes as they are written.
    fn convert(self, stored: &Stored, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let Some(precision) = self.precision(stored) else {
            return Ok(bytes);
        };
        let numbers = numbers(&stored.dtype, &bytes).ok_or_else(|| Error::Weights {
            file: stored.file.to_path_buf(),
            message: format!(
                "the tensor `{}` is of type {}, which is not converted",
                stored.name, stored.dtype
            ),
        })?;
        // The largest float16 is 65504; what is rounded to it ends half a step above.
        if precision == Precision::F16
            && let Some(large) = numbers
                .iter()
                .find(|n| n.is_finite() && n.abs() >= 65_520.0)
        {
            return Err(Error::request(format!(
                "the tensor `{}` of {} has the number {large}, which float16 cannot hold",
                stored.name,
                stored.file.display()
            ))
            .help("convert to bf16, or to f32"));
        }
        let mut out = Vec::new();
        precision.append(&numbers, &mut out);
        Ok(out)
    }

    /// Writes the elements of a tensor, row by row.
    fn write(self, stored: &Stored, files: &dyn Files, out: &mut dyn Write) -> Result<()> {
        let bad = |message: String| Error::Weights {
            file: stored.file.to_path_buf(),
            message,
        };
        let unknown = || {
            bad(format!(
                "the tensor `{}` is of the unknown type {}",
                stored.name, stored.dtype
            ))
        };
        // Elements that lie in one piece, and its bytes.
        let (unit, size) = match stored.block() {
            Some(block) => (block.elements(), block.bytes()),
            None => (1, stored.element_bytes().ok_or_else(unknown)?),
        };
        let read = |first: usize, count: usize| -> Result<Vec<u8>> {
            let length = count.div_ceil(unit) * size;
            let bytes = stored
                .read(files, (first / unit * size) as u64, length)
                .map_err(|e| bad(format!("cannot be read: {e}")))?;
            if bytes.len() != length {
                return Err(bad(format!(
                    "ends within the tensor `{}`: it was changed since it was looked at",
                    stored.name
                )));
            }
            Ok(bytes)
        };
        let mut give = |bytes: Vec<u8>| -> Result<()> {
            out.write_all(&self.convert(stored, bytes)?)
                .map_err(|e| Error::request(format!("cannot be written: {e}")))
        };
        let count = stored.elements();
        if count == 0 {
            return Ok(());
        }
        if stored.is_dense() {
            for first in (0..count).step_by(PIECE) {
                give(read(first, PIECE.min(count - first))?)?;
            }
            return Ok(());
        }
        // A view: all that it looks at, which is no more than its storage.
        let mut all = read(0, stored.reach().ok_or_else(unknown)?)?;
        let (mut size, mut view) = (size, stored.clone());
        if stored.block().is_some() {
            // The elements of a block have no places of their own.
            let wide = numbers(&stored.dtype, &all).ok_or_else(unknown)?;
            all = wide
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect();
            (size, view.dtype) = (4, Precision::F32.name().to_owned());
        }
        let mut give = |bytes: Vec<u8>| -> Result<()> {
            out.write_all(&self.convert(&view, bytes)?)
                .map_err(|e| Error::request(format!("cannot be written: {e}")))
        };
        let mut index = vec![0usize; stored.shape.len()];
        for first in (0..count).step_by(PIECE) {
            let mut piece = Vec::new();
            for _ in first..count.min(first + PIECE) {
                let steps = index.iter().zip(&stored.strides);
                let at = steps.map(|(i, stride)| i * stride).sum::<usize>() * size;
                piece.extend_from_slice(&all[at..at + size]);
                for (i, &side) in index.iter_mut().zip(&stored.shape).rev() {
                    *i += 1;
                    if *i < side {
                        break;
                    }
                    *i = 0;
                }
            }
            give(piece)?;
        }
        Ok(())
    }

    /// A tensor to be written that is several stored ones behind one another.
    fn tensor<'a>(
        self,
        name: String,
        shape: Vec<usize>,
        parts: Vec<Stored>,
        files: &'a dyn Files,
    ) -> Tensor<'a> {
        let dtype = parts
            .first()
            .map_or_else(String::new, |part| self.dtype(part));
        let bytes = parts
            .iter()
            .map(|part| {
                let size = self.precision(part).map(Precision::bytes);
                let size = size.or(part.element_bytes().map(|size| size as u64));
                part.elements() as u64 * size.unwrap_or(0)
            })
            .sum();
        Tensor {
            name,
            dtype,
            shape,
            bytes,
            fill: Box::new(move |out| {
                let mut parts = parts.iter();
                parts.try_for_each(|part| self.write(part, files, out))
            }),
        }
    }
}

/// Layers that are matrices in diffusers and 1x1 convolutions in the original VAE.
fn is_vae_projection(name: &str) -> bool {
    let layers = [
        "to_q.weight",
        "to_k.weight",
        "to_v.weight",
        "to_out.0.weight",
    ];
    name.contains("mid_block.attentions.") && layers.iter().any(|layer| name.ends_with(layer))
}

/// Layers around the U-Net's transformers, which are matrices or 1x1 convolutions by its configuration.
fn is_unet_projection(name: &str) -> bool {
    name.contains(".attentions.")
        && (name.ends_with(".proj_in.weight") || name.ends_with(".proj_out.weight"))
}

/// The shape that a tensor has in a file: stored matrices may be written as 1x1 convolutions, and the other way round.
fn shaped(stored: &Stored, as_convolution: bool) -> Vec<usize> {
    let mut shape = stored.shape.clone();
    match (shape.len(), as_convolution) {
        (2, true) => shape.extend([1, 1]),
        (4, false) => shape.truncate(2),
        _ => {}
    }
    shape
}

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

fn failed(path: &Path, e: &std::io::Error) -> Error {
    Error::Config {
        file: path.to_owned(),
        message: format!("cannot be written: {e}"),
    }
}

/// The bytes of all tensors.
pub(super) fn bytes(tensors: &[Tensor<'_>]) -> u64 {
    tensors.iter().map(|tensor| tensor.bytes).sum()
}

/// Writes a model as a folder in the diffusers layout into `target`, an empty folder.
///
/// # Errors
/// When the model cannot be read or the files cannot be written.
pub fn folder(
    layout: &Layout,
    description: &Description,
    precision: Option<Precision>,
    target: &Path,
    files: &dyn Files,
    follow: &dyn Follow,
) -> Result<Converted> {
    let conversion = Conversion(precision);
    let mut done = Converted::default();
    let text = |name: &str, text: &str, done: &mut Converted| -> Result<()> {
        let path = target.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| failed(parent, &e))?;
        }
        fs::write(&path, text).map_err(|e| failed(&path, &e))?;
        done.files.push(name.into());
        Ok(())
    };
    let scheduler = scheduler(layout, files)?;
    let (index, gone) = written_index(layout, index(layout, files)?, &scheduler);
    done.lost.extend(gone);
    text("model_index.json", &pretty(&index), &mut done)?;
    text("scheduler/scheduler_config.json", &scheduler, &mut done)?;
    for (i, (_, vocabulary)) in layout.texts.iter().enumerate() {
        let name = ["tokenizer", "tokenizer_2"][i.min(1)];
        for (file, content) in tokenizer(vocabulary, files)? {
            text(&format!("{name}/{file}"), &content, &mut done)?;
        }
    }
    let parts = parts(layout);
    let mut networks: Vec<(String, Vec<Tensor<'_>>)> = Vec::new();
    for network in description.networks()? {
        let NetworkTensors { name, tensors } = network;
        if let Some(part) = parts.iter().find(|part| part.name == name) {
            let config = part.config.text(files)?;
            text(&format!("{name}/config.json"), &config, &mut done)?;
        }
        let of_text = name.starts_with("text_encoder");
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|(own, stored)| {
                let shape = match name {
                    "unet" if is_unet_projection(&own) => {
                        shaped(&stored, !description.unet.use_linear_projection)
                    }
                    "vae" if is_vae_projection(&own) => shaped(&stored, false),
                    _ => stored.shape.clone(),
                };
                // transformers reads both, everybody else only the longer names.
                let own = if of_text && own != "text_projection.weight" {
                    format!("text_model.{}", bare(&own))
                } else {
                    own
                };
                conversion.tensor(own, shape, vec![stored], files)
            })
            .collect();
        done.tensors += tensors.len();
        let file = if of_text {
            "model.safetensors"
        } else {
            "diffusion_pytorch_model.safetensors"
        };
        networks.push((format!("{name}/{file}"), tensors));
    }
    let total = networks.iter().map(|(_, tensors)| bytes(tensors)).sum();
    for (file, tensors) in networks {
        done.bytes += write(&target.join(&file), tensors, &metadata(), total, follow)?;
        done.files.push(file.into());
    }
    done.lost.extend(surplus(layout, description, files)?);
    done.files.sort();
    Ok(done)
}

/// Writes a model as a single file with the original names; `target` is not there yet.
///
/// # Errors
/// When the model cannot be read or the file cannot be written; a network that the original layout has no names for.
// Long: one file, network by network, each by a rule of its own.
pub fn single(
    layout: &Layout,
    description: &Description,
    precision: Option<Precision>,
    target: &Path,
    files: &dyn Files,
    follow: &dyn Follow,
) -> Result<Converted> {
    let conversion = Conversion(precision);
    let mut done = Converted::default();
    let mut all = Vec::new();
    let unknown = |name: &str| Error::Weights {
        file: target.to_owned(),
        message: format!("the original layout has no name for the tensor `{name}`"),
    };
    let two = description.texts.len() > 1;
    let mut text = 0;
    for network in description.networks()? {
        let tensors = network.tensors;
        match network.name {
            "unet" => {
                let config = &description.unet;
                for (name, stored) in tensors {
                    let theirs = ldm::unet(&name, config).ok_or_else(|| unknown(&name))?;
                    let shape = if is_unet_projection(&name) {
                        shaped(&stored, !config.use_linear_projection)
                    } else {
                        stored.shape.clone()
                    };
                    let theirs = format!("{}{theirs}", ldm::UNET);
                    all.push(conversion.tensor(theirs, shape, vec![stored], files));
                }
            }
            "vae" => {
                for (name, stored) in tensors {
                    let theirs = ldm::vae(&name, &description.vae).ok_or_else(|| unknown(&name))?;
                    let shape = if is_vae_projection(&name) {
                        shaped(&stored, true)
                    } else {
                        stored.shape.clone()
                    };
                    let theirs = format!("{}{theirs}", ldm::VAE);
                    all.push(conversion.tensor(theirs, shape, vec![stored], files));
                }
            }
            _ => {
                let config = &description.texts[text].config;
                let (own, open) = if two {
                    let at = format!("conditioner.embedders.{text}.");
                    (format!("{at}transformer."), format!("{at}model."))
                } else {
                    (ldm::CLIP.to_owned(), ldm::OPEN_CLIP.to_owned())
                };
                text += 1;
                // CLIP's encoder has the quick GELU, OpenCLIP's the exact one; each has the names of its own code.
                if config.hidden_act == Activation::QuickGelu {
                    for (name, stored) in tensors {
                        let theirs = format!("{own}text_model.{}", bare(&name));
                        let shape = stored.shape.clone();
                        all.push(conversion.tensor(theirs, shape, vec![stored], files));
                    }
                } else {
                    all.extend(
                        open_clip(tensors, &open, conversion, files)
                            .map_err(|name| unknown(&name))?,
                    );
                }
            }
        }
    }
    done.tensors = all.len();
    let prediction = description.scheduler.prediction_type;
    // Programs that do not read the metadata go by these, where the family alone would mean epsilon; of Stable Diffusion 2,
    // whose one text encoder is OpenCLIP's, both kinds are known.
    let text = description.texts.first();
    let sd2 = !two && text.is_some_and(|text| text.config.hidden_act != Activation::QuickGelu);
    let marked = [
        prediction == Prediction::VPrediction && !sd2,
        description.scheduler.rescale_betas_zero_snr,
    ];
    let markers = [Marker::VPrediction, Marker::ZeroSnr].map(dialects::marker_name);
    for (name, _) in markers.into_iter().zip(marked).filter(|(_, is)| *is) {
        all.push(Tensor {
            name: name.to_owned(),
            dtype: "F32".to_owned(),
            shape: vec![0],
            bytes: 0,
            fill: Box::new(|_| Ok(())),
        });
    }
    let mut said = metadata();
    said.extend(model_spec(description, prediction));
    let total = bytes(&all);
    done.bytes = write(target, all, &said, total, follow)?;
    done.lost.push(
        "configurations, tokenizer files and the scheduler: whoever reads the file takes those \
         that were published for its family"
            .to_owned(),
    );
    if description
        .texts
        .iter()
        .any(|text| text.config.hidden_act != Activation::QuickGelu)
        && !two
    {
        done.lost.push(
            "the last layer of OpenCLIP's text encoder, which the diffusers layout does not have \
             and nothing uses; the original code asks for it"
                .to_owned(),
        );
    }
    done.lost.extend(surplus(layout, description, files)?);
    Ok(done)
}

/// The tensors of a text encoder by OpenCLIP's names: query, key and value are one tensor.
fn open_clip<'a>(
    tensors: Vec<(String, Stored)>,
    prefix: &str,
    conversion: Conversion,
    files: &'a dyn Files,
) -> Result<Vec<Tensor<'a>>, String> {
    let mut thirds: BTreeMap<String, [Option<Stored>; 3]> = BTreeMap::new();
    let mut all = Vec::new();
    for (name, stored) in tensors {
        let (theirs, cut) = ldm::open_clip(&name).ok_or(name)?;
        let theirs = format!("{prefix}{theirs}");
        match cut {
            ldm::Cut::Whole => {
                let shape = stored.shape.clone();
                all.push(conversion.tensor(theirs, shape, vec![stored], files));
            }
            ldm::Cut::Transposed => {
                let stored = stored.transposed().ok_or_else(|| theirs.clone())?;
                let shape = stored.shape.clone();
                all.push(conversion.tensor(theirs, shape, vec![stored], files));
            }
            ldm::Cut::Third(third) => {
                if let Some(slot) = thirds.entry(theirs).or_default().get_mut(third) {
                    *slot = Some(stored);
                }
            }
        }
    }
    for (theirs, parts) in thirds {
        let parts: Vec<Stored> = parts.into_iter().flatten().collect();
        let mut shape = match parts.as_slice() {
            [first, second, third]
                if first.dtype == second.dtype
                    && second.dtype == third.dtype
                    && first.shape == second.shape
                    && second.shape == third.shape =>
            {
                first.shape.clone()
            }
            _ => return Err(theirs),
        };
        if let Some(rows) = shape.first_mut() {
            *rows *= 3;
        }
        all.push(conversion.tensor(theirs, shape, parts, files));
    }
    Ok(all)
}

/// What the file says of itself, by the Stability AI model specification 1.0.0: a single file cannot say otherwise what
/// its U-Net predicts.
fn model_spec(description: &Description, prediction: Prediction) -> [(String, String); 3] {
    let v = prediction == Prediction::VPrediction;
    let architecture = match description.unet.context_width() {
        768 => "stable-diffusion-v1",
        1024 if v => "stable-diffusion-v2-768-v",
        1024 => "stable-diffusion-v2-512",
        2048 => "stable-diffusion-xl-v1-base",
        _ => "stable-diffusion",
    };
    [
        ("modelspec.sai_model_spec", "1.0.0"),
        ("modelspec.architecture", architecture),
        (MODELSPEC_PREDICTION, if v { "v" } else { "epsilon" }),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
}

fn parts(layout: &Layout) -> Vec<&crate::checkpoint::layout::Part> {
    let texts = layout.texts.iter().map(|(part, _)| part);
    [&layout.unet]
        .into_iter()
        .chain(texts)
        .chain([&layout.vae])
        .collect()
}

/// What the files hold beyond the networks, counted by the first parts of their names.
fn surplus(layout: &Layout, description: &Description, files: &dyn Files) -> Result<Vec<String>> {
    let mut used: std::collections::BTreeSet<(PathBuf, String)> = std::collections::BTreeSet::new();
    for network in description.networks()? {
        used.extend(
            network
                .tensors
                .into_iter()
                .map(|(_, stored)| (stored.file.to_path_buf(), stored.name)),
        );
    }
    let mut left: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for part in parts(layout) {
        for stored in part.weights.table(files)?.tensors.values() {
            let key = (stored.file.to_path_buf(), stored.name.clone());
            // The markers of a single file are written anew, or said in the scheduler's configuration.
            if used.contains(&key)
                || layout.single.is_some()
                    && matches!(dialects::role(&stored.name), Some(Role::Marker(_)))
                || !seen.insert(key)
            {
                continue;
            }
            let group = match stored.name.split_once('.') {
                Some((first, _)) => format!("{first}.*"),
                None => stored.name.clone(),
            };
            let of = left.entry(group).or_default();
            of.0 += 1;
            of.1 += stored.bytes().unwrap_or(0);
        }
    }
    Ok(left
        .into_iter()
        .map(|(group, (count, bytes))| {
            let tensors = if count == 1 { "tensor" } else { "tensors" };
            format!("{count} {tensors} `{group}` ({bytes} bytes), which no network uses")
        })
        .collect())
}

fn pretty(json: &Json) -> String {
    let mut text = serde_json::to_string_pretty(json).unwrap_or_default();
    text.push('\n');
    text
}

/// The model's own `model_index.json`, where it has one.
fn index(layout: &Layout, files: &dyn Files) -> Result<Option<serde_json::Map<String, Json>>> {
    let beside = match (&layout.index, &layout.unet.config) {
        (Some(settings), _) => Some(settings.text(files)?),
        (None, crate::checkpoint::layout::Settings::File(config)) => {
            let folder = config.parent().and_then(Path::parent);
            let path = folder.map(|folder| folder.join("model_index.json"));
            let path = path.filter(|path| files.is_file(path));
            path.map(|path| read_text(files, &path)).transpose()?
        }
        (None, _) => None,
    };
    // One that is no JSON is no reason to stop: all that it says is made anew.
    Ok(beside.and_then(|text| serde_json::from_str(&text).ok()))
}

/// The index of what is written, and what of the model's own is not.
fn written_index(
    layout: &Layout,
    own: Option<serde_json::Map<String, Json>>,
    scheduler: &str,
) -> (Json, Vec<String>) {
    let two = layout.texts.len() > 1;
    let pipeline = if two {
        "StableDiffusionXLPipeline"
    } else {
        "StableDiffusionPipeline"
    };
    let mut index = own.unwrap_or_default();
    if !index.contains_key("_class_name") {
        index.insert("_class_name".into(), json!(pipeline));
    }
    let mut gone = Vec::new();
    let scheduler = SchedulerConfig::json(scheduler).ok();
    let scheduler = scheduler
        .as_ref()
        .and_then(|config| config.get("_class_name"));
    let scheduler = scheduler.and_then(Json::as_str).unwrap_or("DDIMScheduler");
    let mut components: BTreeMap<&str, [&str; 2]> = BTreeMap::from([
        ("scheduler", ["diffusers", scheduler]),
        ("text_encoder", ["transformers", "CLIPTextModel"]),
        ("tokenizer", ["transformers", "CLIPTokenizer"]),
        ("unet", ["diffusers", "UNet2DConditionModel"]),
        ("vae", ["diffusers", "AutoencoderKL"]),
    ]);
    if two {
        components.insert(
            "text_encoder_2",
            ["transformers", "CLIPTextModelWithProjection"],
        );
        components.insert("tokenizer_2", ["transformers", "CLIPTokenizer"]);
    }
    for (name, value) in &mut index {
        let is_component = value.as_array().is_some_and(|pair| pair.len() == 2);
        if is_component && !components.contains_key(name.as_str()) {
            if value[0].is_string() {
                gone.push(format!("`{name}`, which nothing here uses"));
            }
            *value = json!([null, null]);
        }
    }
    for (name, what) in components {
        if !index.get(name).is_some_and(Json::is_array) {
            index.insert(name.to_owned(), json!(what));
        }
    }
    // diffusers asks for these two, or for the word that there are none.
    if !two {
        for name in ["safety_checker", "feature_extractor"] {
            if !index.contains_key(name) {
                index.insert(name.to_owned(), json!([null, null]));
            }
        }
    }
    (Json::Object(index), gone)
}

/// The scheduler's configuration, with what was said in its place.
fn scheduler(layout: &Layout, files: &dyn Files) -> Result<String> {
    let text = layout.scheduler.text(files)?;
    if layout.prediction.is_none() && !layout.zero_snr {
        return Ok(text);
    }
    let read = layout.scheduler_config(files)?;
    let mut config: serde_json::Map<String, Json> = SchedulerConfig::json(&text)
        .and_then(serde_json::from_value)
        .map_err(|e| Error::Config {
            file: layout.scheduler.path().to_owned(),
            message: format!("is not the configuration that was expected: {e}"),
        })?;
    if layout.prediction.is_some() {
        config.insert("prediction_type".into(), json!(read.prediction_type));
    }
    if layout.zero_snr {
        config.insert("rescale_betas_zero_snr".into(), json!(true));
        if let Some(spacing) = read.timestep_spacing {
            config.insert("timestep_spacing".into(), json!(spacing));
        }
    }
    Ok(pretty(&Json::Object(config)))
}

/// The files of a tokenizer: the model's own, or CLIP's as they were published.
fn tokenizer(vocabulary: &Vocabulary, files: &dyn Files) -> Result<Vec<(&'static str, String)>> {
    match vocabulary {
        Vocabulary::Folder(folder) => TOKENIZER_FILES
            .into_iter()
            .filter(|name| files.is_file(&folder.join(name)))
            .map(|name| Ok((name, read_text(files, &folder.join(name))?)))
            .collect(),
        Vocabulary::Clip(pad) => clip_tokenizer(*pad),
    }
}

/// The files of CLIP's tokenizer.
pub(super) fn clip_tokenizer(pad: PadToken) -> Result<Vec<(&'static str, String)>> {
    let built_in = TokenizerFiles::built_in(pad)?;
    let pad = match pad {
        PadToken::End => "<|endoftext|>",
        PadToken::Exclamation => "!",
    };
    let special = json!({
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad,
        "unk_token": "<|endoftext|>",
    });
    let mut config = special.clone();
    config["add_prefix_space"] = json!(false);
    config["do_lower_case"] = json!(true);
    config["model_max_length"] = json!(77);
    config["tokenizer_class"] = json!("CLIPTokenizer");
    Ok(vec![
        ("vocab.json", built_in.vocab.unwrap_or_default()),
        ("merges.txt", built_in.merges.unwrap_or_default()),
        ("tokenizer_config.json", pretty(&config)),
        ("special_tokens_map.json", pretty(&special)),
    ])
}

#[cfg(test)]
mod tests {
    use retouch_graph::MemoryFiles;

    use super::*;
    use crate::checkpoint::layout::Sources;
    use crate::sampling::scheduler::Spacing;

    /// A single file of one tensor that says its family, with this metadata and with empty tensors of these names.
    fn file(width: usize, metadata: &str, markers: &[&str]) -> MemoryFiles {
        let markers: String = ["first_stage_model.x", "cond_stage_model.transformer.x"]
            .iter()
            .chain(markers)
            .map(|name| format!(r#""{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"#))
            .collect();
        let bytes = 2 * width;
        let header = format!(
            r#"{{"__metadata__":{{{metadata}}},{markers}"{}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight":{{"dtype":"F16","shape":[1,{width}],"data_offsets":[0,{bytes}]}}}}"#,
            ldm::UNET
        );
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length[..], header.as_bytes(), &vec![0; bytes]].concat();
        MemoryFiles::new().with(Path::new("model.safetensors"), file)
    }

    fn said(prediction: &str) -> String {
        format!(r#""modelspec.prediction_type":"{prediction}""#)
    }

    #[test]
    fn a_single_file_says_what_it_predicts() {
        // Stable Diffusion 2 has both kinds, of the same names and shapes.
        let read = |metadata: &str| {
            let files = file(1024, metadata, &[]);
            let layout =
                Layout::find(&Sources::of(Path::new("model.safetensors")), &files).unwrap();
            (layout.scheduler.path().to_owned(), layout.assumed.is_some())
        };
        let base = read(&said("epsilon"));
        assert!(base.0.starts_with("stable-diffusion-2-1-base") && !base.1);
        let v = read(&said("v"));
        assert!(v.0.starts_with("stable-diffusion-2-1") && !v.1);
        let silent = read("");
        assert!(silent.0.starts_with("stable-diffusion-2-1") && silent.1);
    }

    #[test]
    fn metadata_and_markers_decide_what_a_single_file_predicts_and_a_parameter_overrides_them() {
        let epsilon = Prediction::Epsilon;
        let v = Prediction::VPrediction;
        for width in [768, 2048] {
            let read = |metadata: &str, markers: &[&str], given: Option<Prediction>| {
                let files = file(width, metadata, markers);
                let sources = Sources {
                    prediction: given,
                    ..Sources::of(Path::new("model.safetensors"))
                };
                let layout = Layout::find(&sources, &files).unwrap();
                let config = layout.scheduler_config(&files).unwrap();
                let from = layout.prediction_from(&files).unwrap();
                (config, from)
            };
            let (config, from) = read("", &[], None);
            assert_eq!(config.prediction_type, epsilon);
            assert!(from.contains("published configuration"), "{from}");
            let (config, from) = read(&said("v"), &[], None);
            assert_eq!(config.prediction_type, v);
            assert!(from.contains("modelspec.prediction_type: v"), "{from}");
            let (config, from) = read("", &["v_pred"], None);
            assert_eq!(
                (config.prediction_type, config.rescale_betas_zero_snr),
                (v, false)
            );
            assert!(from.contains("marker tensor `v_pred`"), "{from}");
            let (config, _) = read("", &["v_pred", "ztsnr"], None);
            assert_eq!(
                (config.prediction_type, config.rescale_betas_zero_snr),
                (v, true)
            );
            assert_eq!(config.timestep_spacing, Some(Spacing::Trailing));
            let (config, from) = read(&said("v"), &["v_pred"], Some(epsilon));
            assert_eq!(config.prediction_type, epsilon);
            assert!(from.contains("as given"), "{from}");
            for marker in ["edm_vpred.sigma_max", "edm_mean"] {
                let files = file(width, "", &[marker]);
                let sources = Sources::of(Path::new("model.safetensors"));
                let refused = Layout::find(&sources, &files).unwrap_err();
                assert!(refused[0].to_string().contains("EDM"), "{refused:?}");
            }
        }
    }

    #[test]
    fn the_name_of_a_file_or_of_its_repository_suggests_a_few_step_model() {
        let files = file(2048, "", &[]);
        let bytes = files.read(Path::new("model.safetensors")).unwrap().to_vec();
        for (path, due) in [
            ("sd_xl_turbo_1.0_fp16.safetensors", Some("Turbo")),
            ("dreamshaperXL_v21TurboDPMSDE.safetensors", Some("Turbo")),
            ("sdxl_lightning_4step.safetensors", Some("Lightning")),
            ("ssd1b-lcm.safetensors", Some("LCM")),
            (
                "hub/models--x--sdxl-turbo/snapshots/1/a.safetensors",
                Some("Turbo"),
            ),
            ("turbo/model.safetensors", None),
            ("calcmodel.safetensors", None),
        ] {
            let files = MemoryFiles::new().with(Path::new(path), bytes.clone());
            let layout = Layout::find(&Sources::of(Path::new(path)), &files).unwrap();
            assert_eq!(layout.distilled, due, "{path}");
        }
    }
}
