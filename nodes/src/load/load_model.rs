//! `load_model`.

use std::path::Path;
use std::sync::Arc;

use retouch_graph::{
    Chained, Context, Digest, Fault, Files, Node, NodeError, ReadFile, Searched, Types, Upstream,
    ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chain::{ModelNote, model_id, vae_id};
use crate::fields::{AssetPath, Sha256Pins};
use crate::payload::Model;
use crate::runtime::Runtime;
use retouch_diffusion::Error;
use retouch_diffusion::checkpoint::layout::{Layout, Sources};
use retouch_diffusion::checkpoint::model::{Checkpoint, Description, ModelFacts};
use retouch_diffusion::checkpoint::weights::NO_SUCH_FILE;
use retouch_diffusion::prompt::conditioning::{LongPrompts, Reading, Syntax};
use retouch_diffusion::sampling::scheduler::Prediction;

/// Loads a Stable Diffusion checkpoint: a folder in the diffusers layout, or a single file.
///
/// Everything is built from the checkpoint's own configuration files and checked against its weights before anything
/// runs; weights are read when a part is first used. A single file (`.safetensors`, `.ckpt`) has no configuration: the
/// published one of its family is taken, or that of the folder `config`. A personalised model that came as a U-Net alone
/// is the base model's `path` with its own `unet`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadModel {
    /// A folder that holds `unet/`, `text_encoder/`, `tokenizer/`, `vae/` and `scheduler/`, or a single file.
    pub path: AssetPath,
    /// For a single file: a folder in the diffusers layout whose configurations (and tokenizers) it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<AssetPath>,
    /// The variant of the weight files, such as `fp16` of `diffusion_pytorch_model.fp16.safetensors`. Default: the plain
    /// files, or else the fp16 or bf16 ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// What the U-Net predicts, where the model says it wrongly or not at all. Default: what the scheduler's configuration
    /// of a folder says, or a single file's metadata and marker tensors (`v_pred`); of files that say nothing, epsilon, and v
    /// for Stable Diffusion 2, with a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<PredictionType>,
    /// Another folder, or file of weights, in place of `unet/`.
    #[serde(default)]
    pub unet: Option<AssetPath>,
    /// Another folder, or file of weights, in place of `text_encoder/`.
    #[serde(default)]
    pub text_encoder: Option<AssetPath>,
    /// Another folder, or file of weights, in place of `text_encoder_2/` (Stable Diffusion XL).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder_2: Option<AssetPath>,
    /// Another folder in place of `tokenizer/`.
    #[serde(default)]
    pub tokenizer: Option<AssetPath>,
    /// Another folder in place of `tokenizer_2/` (Stable Diffusion XL).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_2: Option<AssetPath>,
    /// Another folder, or file of weights, in place of `vae/`.
    #[serde(default)]
    pub vae: Option<AssetPath>,
    /// Another folder (or `scheduler_config.json`) in place of `scheduler/`.
    #[serde(default)]
    pub scheduler: Option<AssetPath>,
    /// With `--dtype f16` or `bf16`: whether the VAE is of that type too, though its configuration does not say `force_upcast:
    /// false` (that of Stable Diffusion 1.5 does not). Where its numbers are then not finite it is computed in float32 after
    /// all, with a warning. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub half_vae: bool,
    /// What brackets in prompts mean: nothing (`plain`), or what they mean to the AUTOMATIC1111 web UI (`a1111`): `(word)`,
    /// `[word]`, `(word:1.2)`, `\\(`, `BREAK`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syntax: Option<Syntax>,
    /// What happens to prompts of more than 75 tokens: the rest is left out (`truncate`), or they are read in chunks of 75
    /// (`chunks`). Default: `truncate`; `chunks` with `syntax: a1111`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_prompts: Option<LongPrompts>,
    /// The layer of the text encoder whose states are taken, counted from the last, 1. Default: 1; 2 for Stable Diffusion
    /// XL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub clip_skip: Option<usize>,
    /// What `path` must hold, by SHA-256 digests: one of a single file, or a map from files of the folder to theirs. A
    /// file that holds something else is refused before anything of it is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Pins>,
}

/// The address on a hub that a path may have been meant as, `owner/name`, or is, the link of a web page; and which of both.
/// The path has the workflow's folder before it.
fn on_hub(path: &Path, files: &dyn Files) -> Option<(String, bool)> {
    let parts: Vec<String> = path
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if let Some(at) = parts
        .iter()
        .position(|part| part == "https:" || part == "http:")
    {
        let [owner, name, rest @ ..] = parts.get(at + 2..)? else {
            return None;
        };
        let address = match rest {
            [kind, revision, file @ ..] if ["resolve", "blob", "tree"].contains(&kind.as_str()) => {
                let revision = match revision.as_str() {
                    "main" => String::new(),
                    other => format!("@{other}"),
                };
                let file: String = file.iter().map(|part| format!("/{part}")).collect();
                format!("hf://{owner}/{name}{revision}{file}")
            }
            _ => format!("hf://{owner}/{name}"),
        };
        return Some((address, true));
    }
    let [.., owner, name] = parts.as_slice() else {
        return None;
    };
    let is_name = |name: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !name.starts_with('.') && name.chars().all(known)
    };
    let is_file = ["safetensors", "ckpt", "bin", "pt", "gguf"]
        .iter()
        .any(|ending| path.extension().is_some_and(|own| own == *ending));
    let elsewhere = path.parent().is_some_and(|folder| !files.is_dir(folder));
    (elsewhere && !is_file && is_name(owner) && is_name(name))
        .then(|| (format!("hf://{owner}/{name}"), false))
}

/// What a U-Net predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// sqrt(alpha) noise - sqrt(1 - alpha) image.
    VPrediction,
}

ports! {
    /// `load_model` takes nothing.
    pub struct Inputs {}
}

ports! {
    /// What `load_model` gives.
    pub struct Outputs {
        /// The model.
        pub model: Arc<Model>,
    }
}

impl LoadModel {
    fn sources(&self) -> Sources {
        let path = |path: &Option<AssetPath>| path.as_ref().map(|path| path.to_path_buf());
        Sources {
            path: self.path.to_path_buf(),
            config: path(&self.config),
            variant: self.variant.clone(),
            unet: path(&self.unet),
            text_encoder: path(&self.text_encoder),
            text_encoder_2: path(&self.text_encoder_2),
            tokenizer: path(&self.tokenizer),
            tokenizer_2: path(&self.tokenizer_2),
            vae: path(&self.vae),
            scheduler: path(&self.scheduler),
            prediction: self.prediction.map(|prediction| match prediction {
                PredictionType::Epsilon => Prediction::Epsilon,
                PredictionType::VPrediction => Prediction::VPrediction,
            }),
        }
    }

    /// How prompts are read.
    fn reading(&self) -> Reading {
        let syntax = self.syntax.unwrap_or_default();
        Reading {
            syntax,
            long_prompts: self.long_prompts.unwrap_or(match syntax {
                Syntax::Plain => LongPrompts::Truncate,
                Syntax::A1111 => LongPrompts::Chunks,
            }),
            clip_skip: self.clip_skip,
        }
    }

    /// The paths beside `path`, with their params.
    fn given(&self) -> [(&'static str, &Option<AssetPath>); 8] {
        [
            ("config", &self.config),
            ("unet", &self.unet),
            ("text_encoder", &self.text_encoder),
            ("text_encoder_2", &self.text_encoder_2),
            ("tokenizer", &self.tokenizer),
            ("tokenizer_2", &self.tokenizer_2),
            ("vae", &self.vae),
            ("scheduler", &self.scheduler),
        ]
    }

    /// Has the folders that are not at their paths looked for; says where, for a model that is nowhere.
    fn find_model(&self, files: &dyn Files) -> Searched {
        for (_, path) in self.given() {
            if let Some(path) = path {
                files.find_model(path.as_path());
            }
        }
        files.find_model(self.path.as_path())
    }

    /// The parameter that a path came from.
    fn parameter(&self, path: &Path) -> &'static str {
        self.given()
            .into_iter()
            .find(|(_, given)| {
                given
                    .as_ref()
                    .is_some_and(|given| path.starts_with(given.as_path()))
            })
            .map_or("path", |(name, _)| name)
    }

    /// What the params say beside the files: it joins the model's id where it is given.
    fn said(&self) -> Vec<(String, Digest)> {
        self.prediction
            .map(|prediction| {
                let text = format!("{prediction:?}");
                (
                    "prediction".to_owned(),
                    *blake3::hash(text.as_bytes()).as_bytes(),
                )
            })
            .into_iter()
            .collect()
    }

    fn fault(&self, error: &Error) -> Fault {
        match error {
            Error::Config { file, message } | Error::Weights { file, message }
                if message == NO_SUCH_FILE =>
            {
                Fault::file(
                    self.parameter(file),
                    format!("the model has no {}", file.display()),
                )
                .help("a model is a folder in the diffusers layout: unet/, text_encoder/, tokenizer/, vae/, scheduler/, each with its configuration and .safetensors weights")
            }
            Error::Config { file, .. } => Fault::content(self.parameter(file), error.to_string())
                .help("the configuration must be the one that the weights were saved with"),
            // A single file has no config.json beside it.
            Error::Weights { file, .. } if file == self.path.as_path() => {
                Fault::content("path", error.to_string()).help(
                    "`retouch inspect` says what a file is; one of another shape than the published models needs `config: DIR`, a folder with its configurations",
                )
            }
            Error::Weights { file, .. } => Fault::content(self.parameter(file), error.to_string())
                .help("copy or download the file again; it must belong to the config.json beside it"),
            other => Fault::content("path", other.to_string()),
        }
    }
}

impl Node for LoadModel {
    const OP: &'static str = "load_model";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        self.find_model(files);
        let folder = self.path.as_path();
        if let Some(pins) = &self.sha256
            && (files.is_dir(folder) || files.is_file(folder))
        {
            pins.check("sha256", folder, files)?;
        }
        // Missing files are `check`'s to report, with what they are for.
        let found = Layout::find(&self.sources(), files);
        Ok(found
            .map(|layout| layout.files())
            .unwrap_or_default()
            .into_iter()
            .filter(|file| files.is_file(&file.path))
            .map(|file| ReadFile {
                role: file.role,
                path: file.path,
            })
            .collect())
    }

    fn check(&self, _: &Types<Inputs>, files: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let path = self.path.as_path();
        let alone = [
            &self.unet,
            &self.text_encoder,
            &self.tokenizer,
            &self.vae,
            &self.scheduler,
        ];
        let single = files.is_file(path);
        if alone.iter().any(|part| part.is_none()) && !files.is_dir(path) && !single {
            return Err(vec![
                Fault::file(
                    "path",
                    format!("the model {} does not exist", path.display()),
                )
                .help(match on_hub(path, files) {
                    Some((address, true)) => {
                        format!("the address of a model on a hub is written `{address}`")
                    }
                    maybe => format!(
                        "relative paths count from the folder of the file that writes them; {}{}",
                        self.find_model(files).help(),
                        maybe.map_or_else(String::new, |(address, _)| format!(
                            "; a model on a hub is written `{address}`"
                        ))
                    ),
                }),
            ]);
        }
        if self.config.is_some() && !single {
            return Err(vec![
                Fault::value(
                    "config",
                    "`config` has no effect: a folder has its own configurations",
                )
                .help("remove `config`, or give a single file as `path`"),
            ]);
        }
        let description = Description::read(&self.sources(), files)
            .map_err(|errors| errors.iter().map(|e| self.fault(e)).collect::<Vec<_>>())?;
        if let Some(fault) = self.clip_skip.and_then(|skip| description.skip_fault(skip)) {
            return Err(vec![Fault::value("clip_skip", fault)]);
        }
        let facts = ModelFacts {
            reading: self.reading(),
            ..description.facts()
        };
        Ok(Types::unknown().with("model", &facts))
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        let files = upstream.files.iter();
        let said = self.said();
        let said = said.iter().map(|(role, digest)| (role.as_str(), *digest));
        let id = model_id(
            files
                .map(|(role, digest)| (role.as_str(), *digest))
                .chain(said),
        ) + &self.reading().suffix();
        Chained {
            note: Some(Arc::new(ModelNote {
                id,
                training: Vec::new(),
            })),
            ..Chained::default()
        }
    }

    fn run(&self, _: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let runtime = Runtime::of(context)?;
        let failed = |errors: Vec<Error>| {
            let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
            NodeError::failed(messages.join("; "))
        };
        let layout = Layout::find(&self.sources(), context.files()).map_err(failed)?;
        let description = Description::of(&layout, context.files()).map_err(failed)?;
        for told in layout.lent.iter().chain(&layout.assumed) {
            context.warn(&format!("{}: {told}", self.path.as_path().display()));
        }
        // The VAE neither draws nor encodes prompts: what drew a step is the same model with another VAE.
        let mut digests = Vec::new();
        for file in layout.files() {
            if context.files().is_file(&file.path) {
                let digest = context.files().digest(&file.path).map_err(|e| {
                    NodeError::failed(format!("{} cannot be read: {e}", file.path.display()))
                })?;
                digests.push((file.role, digest));
            }
        }
        digests.extend(self.said());
        let id = model_id(
            digests
                .iter()
                .map(|(role, digest)| (role.as_str(), *digest)),
        ) + &self.reading().suffix();
        let checkpoint = Checkpoint::new(
            description,
            id,
            runtime.device.clone(),
            runtime.kernel.clone(),
        )
        .with_reading(self.reading())
        .held(runtime.dtype, runtime.memory.clone(), runtime.offload)
        .with_half_vae(self.half_vae)
        .with_vae_id(
            vae_id(
                digests
                    .iter()
                    .map(|(role, digest)| (role.as_str(), *digest)),
            ) + if self.half_vae { "+half" } else { "" },
        );
        Ok(Outputs {
            model: Arc::new(Model::new(checkpoint)),
        })
    }
}
