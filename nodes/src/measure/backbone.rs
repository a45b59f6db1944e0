//! The networks that pictures and texts are measured with: where their weights are, and what they are by these.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use retouch_graph::{Fault, Files, NodeError, ReadFile};
use serde_json::Value as Json;

use crate::measure::input::{self, Input};
use crate::payload::features::Space;
use retouch_diffusion::checkpoint::weights::{NO_SUCH_FILE, Table, Tensors, Weights};
use retouch_diffusion::networks::clip::{ClipText, ClipTextConfig, Layer};
use retouch_diffusion::networks::lite::{self, Lite0};
use retouch_diffusion::networks::vit::{Family, Vit, VitConfig};
use retouch_diffusion::prompt::tokenizer::{PadToken, Tokenizer, TokenizerFiles};
use retouch_diffusion::{Error, Result};
use retouch_kernels::{Kernel, for_device};

/// The most bytes of a configuration that is read.
const MAX_CONFIG: u64 = 1 << 20;
/// The names of files of weights in a folder, the first that is there is read.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// The configuration in a folder.
const CONFIG: &str = "config.json";
/// How many hexadecimal digits of a digest are said.
const DIGITS: usize = 16;

/// The files of a network.
pub(super) struct Place {
    config: Option<PathBuf>,
    weights: PathBuf,
}

impl Place {
    /// The files at a path: one of weights alone, or a folder as `transformers` writes it.
    pub(super) fn of(path: &Path, files: &dyn Files) -> Self {
        files.find_model(path);
        if !files.is_dir(path) {
            return Self {
                config: None,
                weights: path.to_owned(),
            };
        }
        let named = WEIGHTS.map(|name| path.join(name));
        let there = named.iter().find(|file| files.is_file(file));
        Self {
            config: Some(path.join(CONFIG)),
            weights: there.unwrap_or(&named[0]).clone(),
        }
    }

    /// The files that are there, for the node's key.
    pub(super) fn reads(&self, files: &dyn Files) -> Vec<ReadFile> {
        let all = [
            ("config.json", self.config.as_ref()),
            ("weights", Some(&self.weights)),
        ];
        all.into_iter()
            .filter_map(|(role, path)| Some((role, path?)))
            .filter(|(_, path)| files.is_file(path))
            .map(|(role, path)| ReadFile {
                role: role.to_owned(),
                path: path.clone(),
            })
            .collect()
    }

    fn read_config(&self, files: &dyn Files) -> Result<Option<Json>> {
        let Some(path) = &self.config else {
            return Ok(None);
        };
        let bad = |message: String| Error::Config {
            file: path.clone(),
            message,
        };
        if !files.is_file(path) {
            return Err(bad(NO_SUCH_FILE.to_owned()));
        }
        let (_, length) = files.read_head(path, 0).map_err(|e| bad(e.to_string()))?;
        if length > MAX_CONFIG {
            return Err(bad(format!(
                "it has {length} bytes, too many for a configuration"
            )));
        }
        let bytes = files.read(path).map_err(|e| bad(e.to_string()))?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| bad(e.to_string()))
    }

    fn bad_config(&self, message: String) -> Error {
        Error::Config {
            file: self.config.clone().unwrap_or_else(|| self.weights.clone()),
            message,
        }
    }

    /// The first digits of the digest of the weights.
    pub(super) fn digest(&self, files: &dyn Files) -> Result<String, NodeError> {
        let digest = files.digest(&self.weights).map_err(|e| {
            NodeError::failed(format!("{} cannot be read: {e}", self.weights.display()))
        })?;
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(hex.chars().take(DIGITS).collect())
    }
}

/// What a network of pictures is, by its files.
#[derive(Clone, Debug)]
enum Kind {
    Lite0,
    Vit(VitConfig),
}

/// A network of pictures, checked against its weights and not loaded.
pub(super) struct Described {
    place: Place,
    table: Arc<Table>,
    kind: Kind,
}

impl Described {
    /// Looks at the files and checks that the weights are those of a network that is built here.
    pub(super) fn read(path: &Path, files: &dyn Files) -> Result<Self> {
        let place = Place::of(path, files);
        let kind = match place.read_config(files)? {
            Some(config) => {
                Kind::Vit(VitConfig::read(&config).map_err(|message| place.bad_config(message))?)
            }
            None => Kind::Lite0,
        };
        let table = Table::read(&place.weights, files)?;
        if matches!(kind, Kind::Lite0) && !table.contains("_conv_stem.weight") {
            return Err(Error::Weights {
                file: place.weights.clone(),
                message: "it is not EfficientNet-Lite0, the only network that is a single file"
                    .to_owned(),
            });
        }
        let described = Self {
            place,
            table: Arc::new(table),
            kind,
        };
        let weights = Weights::checking(Arc::clone(&described.table));
        described.build(&weights, &*for_device(&Device::Cpu))?;
        match weights.faults().first() {
            None => Ok(described),
            Some(fault) => Err(Error::Weights {
                file: described.place.weights.clone(),
                message: fault.clone(),
            }),
        }
    }

    fn build(&self, weights: &Weights, kernel: &dyn Kernel) -> Result<Built> {
        Ok(match &self.kind {
            Kind::Lite0 => Built::Lite0(Lite0::load(weights, kernel)?),
            Kind::Vit(config) => Built::Vit(Vit::load(config, weights, kernel)?),
        })
    }

    /// The network in a few words.
    pub(super) fn name(&self) -> String {
        let Kind::Vit(config) = &self.kind else {
            return "EfficientNet-Lite0".to_owned();
        };
        let name = match (config.family, config.registers) {
            (Family::Clip, _) => "CLIP",
            (Family::Dino, _) => "DINO",
            (Family::Dinov2, 0) => "DINOv2",
            (Family::Dinov2, _) => "DINOv2 with registers",
        };
        vit_name(name, config)
    }

    /// The number of features.
    pub(super) fn width(&self) -> usize {
        match &self.kind {
            Kind::Lite0 => lite::WIDTH,
            Kind::Vit(config) => config.features(),
        }
    }

    /// What it is given of a picture.
    pub(super) fn input(&self) -> Input {
        let Kind::Vit(config) = &self.kind else {
            return Input::Square { side: lite::SIDE };
        };
        // DINO and DINOv2 are evaluated on 224 pixels out of 256, whatever their positions were learnt on; networks for less
        // (those of tests) on all that they take, in the same proportion.
        let (side, shorter) = match config.family {
            Family::Clip => (config.side, config.side),
            _ => {
                let side = config.side.min(224);
                let side = side / config.patch * config.patch;
                (side, side * 8 / 7)
            }
        };
        let (mean, deviation) = match config.family {
            Family::Clip => input::CLIP,
            _ => input::IMAGENET,
        };
        Input::Crop {
            shorter,
            side,
            mean,
            deviation,
        }
    }

    /// The space of its features.
    pub(super) fn space(&self, files: &dyn Files) -> Result<Space, NodeError> {
        Ok(Space {
            network: self.name(),
            weights: self.place.digest(files)?,
            input: self.input().describe(),
        })
    }

    /// Reads the weights.
    pub(super) fn load(&self, kernel: Arc<dyn Kernel>, device: &Device) -> Result<Network> {
        // Depthwise convolutions are computed on the CPU alone.
        let (kernel, device) = match self.kind {
            Kind::Lite0 if !device.is_cpu() => (for_device(&Device::Cpu), &Device::Cpu),
            Kind::Lite0 | Kind::Vit(_) => (kernel, device),
        };
        let weights = opened(&self.table, device, &kernel);
        Ok(Network {
            built: self.build(&weights, &*kernel)?,
            input: self.input(),
            kernel,
        })
    }
}

/// The name of a vision transformer with what tells its sizes apart.
fn vit_name(name: &str, config: &VitConfig) -> String {
    format!(
        "{name} ({} layers of {}, patches of {})",
        config.layers, config.width, config.patch
    )
}

pub(super) fn opened(table: &Arc<Table>, device: &Device, kernel: &Arc<dyn Kernel>) -> Weights {
    Weights::open(
        Arc::clone(table),
        device,
        DType::F32,
        Arc::new(Tensors::new(None)),
        Arc::clone(kernel),
    )
}

enum Built {
    Lite0(Lite0),
    Vit(Vit),
}

/// A network of pictures that is loaded.
pub(super) struct Network {
    built: Built,
    input: Input,
    kernel: Arc<dyn Kernel>,
}

impl Network {
    /// The features `[1, D]` of a single picture.
    pub(super) fn features(&self, image: &crate::payload::Image) -> Result<Tensor, NodeError> {
        let colours = self.input.prepare(image)?;
        Ok(match &self.built {
            Built::Lite0(network) => network.features(&colours, &*self.kernel)?,
            Built::Vit(network) => network.features(&colours, self.input.side(), &*self.kernel)?,
        })
    }
}

/// CLIP's text half.
pub(super) struct TextNetwork {
    place: Place,
    table: Arc<Table>,
    config: ClipTextConfig,
    /// What the features of both halves are said to be of.
    network: String,
}

impl TextNetwork {
    /// Looks at the files and checks the weights.
    pub(super) fn read(path: &Path, files: &dyn Files) -> Result<Self> {
        let place = Place::of(path, files);
        let Some(config) = place.read_config(files)? else {
            return Err(place.bad_config(
                "it is a single file; CLIP is a folder with config.json and weights".to_owned(),
            ));
        };
        if config["model_type"].as_str() != Some("clip") {
            return Err(place.bad_config(format!(
                "`model_type` is {}; only CLIP (`clip`) has features of texts",
                config["model_type"]
            )));
        }
        let own = text_config(&config).map_err(|message| place.bad_config(message))?;
        let vision = VitConfig::read(&config).map_err(|message| place.bad_config(message))?;
        let table = Arc::new(Table::read(&place.weights, files)?);
        let weights = Weights::checking(Arc::clone(&table));
        ClipText::load_projected(&own, &weights)?;
        if let Some(fault) = weights.faults().first() {
            return Err(Error::Weights {
                file: place.weights.clone(),
                message: fault.clone(),
            });
        }
        Ok(Self {
            place,
            table,
            config: own,
            // Both halves are said to be of the same network, so that their features can be compared.
            network: vit_name("CLIP", &vision),
        })
    }

    /// The width of the common space.
    pub(super) fn width(&self) -> usize {
        self.config.projection_dim
    }

    /// The network's name as it stands in the features.
    pub(super) fn name(&self) -> &str {
        &self.network
    }

    /// The space of its features.
    pub(super) fn space(&self, files: &dyn Files) -> Result<Space, NodeError> {
        Ok(Space {
            network: self.network.clone(),
            weights: self.place.digest(files)?,
            input: "CLIP's tokens, 77 at most".to_owned(),
        })
    }

    /// The features `[B, P]` of texts; longer ones are cut off, with `warn` told which.
    pub(super) fn features(
        &self,
        texts: &[&str],
        kernel: Arc<dyn Kernel>,
        device: &Device,
        warn: impl Fn(&str),
    ) -> Result<Tensor> {
        let weights = opened(&self.table, device, &kernel);
        let encoder = ClipText::load_projected(&self.config, &weights)?;
        let files = TokenizerFiles::built_in(PadToken::End)?;
        let tokenizer = Tokenizer::new(
            &files,
            Path::new("CLIP"),
            self.config.max_position_embeddings,
        )?;
        let rows = texts.iter().map(|text| {
            let (ids, is_cut) = tokenizer.framed(text)?;
            if is_cut {
                warn(&format!(
                    "the text {text:?} has more tokens than CLIP reads; the rest is left out"
                ));
            }
            let states = encoder.encode_at(&ids, Layer::LAST, &*kernel)?;
            states
                .pooled
                .ok_or_else(|| Error::request("the text encoder has no projection"))
        });
        let rows: Vec<Tensor> = rows.collect::<Result<_>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }
}

/// The text half of `config.json`; what it leaves out has the default of `CLIPTextConfig`.
fn text_config(config: &Json) -> Result<ClipTextConfig, String> {
    let mut own = match &config["text_config"] {
        Json::Object(own) => own.clone(),
        _ => return Err("it has no `text_config`".to_owned()),
    };
    let defaults = [
        ("vocab_size", 49_408),
        ("hidden_size", 512),
        ("intermediate_size", 2048),
        ("num_hidden_layers", 12),
        ("num_attention_heads", 8),
    ];
    for (name, value) in defaults {
        own.entry(name).or_insert_with(|| value.into());
    }
    if let Some(width) = config["projection_dim"].as_u64() {
        own.insert("projection_dim".to_owned(), width.into());
    }
    let read: ClipTextConfig =
        serde_json::from_value(Json::Object(own)).map_err(|e| format!("`text_config`: {e}"))?;
    match read.fault() {
        Some(fault) => Err(format!("`text_config`: {fault}")),
        None => Ok(read),
    }
}

/// A fault of a network's files at the param `field`.
pub(super) fn fault(field: &str, path: &Path, error: &Error, files: &dyn Files) -> Fault {
    if let Some(withheld) = files.withheld(path) {
        return Fault::file(field, withheld.message).help(withheld.help);
    }
    match error {
        Error::Weights { file, message } | Error::Config { file, message }
            if message == NO_SUCH_FILE =>
        {
            Fault::file(field, format!("there is no file {}", file.display())).help(format!(
                "`models/lite0.safetensors` is in the box; CLIP, DINO and DINOv2 are folders as `transformers` writes them, with config.json and model.safetensors; {}",
                files.find_model(path).help()
            ))
        }
        other => Fault::content(field, other.to_string()).help(
            "give EfficientNet-Lite0 as a file, or a folder of CLIP, DINO (`vit`), DINOv2 with config.json and weights",
        ),
    }
}
