//! `load_model`.

use std::path::Path;
use std::sync::Arc;

use retouch_graph::{
    Chained, Context, Fault, Files, Node, NodeError, ReadFile, Sought, Types, Upstream, ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chain::{ModelNote, model_id, vae_id};
use crate::diffusion::Error;
use crate::diffusion::checkpoint::{Checkpoint, Description, Parts};
use crate::fields::AssetPath;
use crate::payload::Model;
use crate::runtime::Runtime;

/// Loads a Stable Diffusion 1.x or 2.x checkpoint in the diffusers folder layout.
///
/// Everything is built from the checkpoint's own configuration files and checked against its weights before anything
/// runs; weights are read when a part is first used. A personalised model that came as a U-Net alone is the base
/// model's `path` with its own `unet`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadModel {
    /// The folder that holds `unet/`, `text_encoder/`, `tokenizer/`, `vae/` and `scheduler/`.
    pub path: AssetPath,
    /// Another folder in place of `unet/`.
    #[serde(default)]
    pub unet: Option<AssetPath>,
    /// Another folder in place of `text_encoder/`.
    #[serde(default)]
    pub text_encoder: Option<AssetPath>,
    /// Another folder in place of `tokenizer/`.
    #[serde(default)]
    pub tokenizer: Option<AssetPath>,
    /// Another folder in place of `vae/`.
    #[serde(default)]
    pub vae: Option<AssetPath>,
    /// Another folder in place of `scheduler/`.
    #[serde(default)]
    pub scheduler: Option<AssetPath>,
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
    fn parts(&self) -> Parts {
        let mut parts = Parts::of(self.path.as_path());
        for (slot, given) in [
            (&mut parts.unet, &self.unet),
            (&mut parts.text_encoder, &self.text_encoder),
            (&mut parts.tokenizer, &self.tokenizer),
            (&mut parts.vae, &self.vae),
            (&mut parts.scheduler, &self.scheduler),
        ] {
            if let Some(path) = given {
                *slot = path.to_path_buf();
            }
        }
        parts
    }

    /// Has the folders that are not at their paths looked for; says where, for a model that is nowhere.
    fn seek(&self, files: &dyn Files) -> Sought {
        let parts = [
            &self.unet,
            &self.text_encoder,
            &self.tokenizer,
            &self.vae,
            &self.scheduler,
        ];
        for part in parts.into_iter().flatten() {
            files.seek(part.as_path());
        }
        files.seek(self.path.as_path())
    }

    /// The parameter that a path came from.
    fn parameter(&self, path: &Path) -> &'static str {
        let parts = self.parts();
        [
            ("unet", &self.unet, &parts.unet),
            ("text_encoder", &self.text_encoder, &parts.text_encoder),
            ("tokenizer", &self.tokenizer, &parts.tokenizer),
            ("vae", &self.vae, &parts.vae),
            ("scheduler", &self.scheduler, &parts.scheduler),
        ]
        .into_iter()
        .find(|(_, given, folder)| given.is_some() && path.starts_with(folder))
        .map_or("path", |(name, ..)| name)
    }

    fn fault(&self, error: &Error) -> Fault {
        match error {
            Error::Config { file, message } | Error::Weights { file, message }
                if message == "no such file" =>
            {
                Fault::file(
                    self.parameter(file),
                    format!("the model has no {}", file.display()),
                )
                .help("a model is a folder in the diffusers layout: unet/, text_encoder/, tokenizer/, vae/, scheduler/, each with its configuration and .safetensors weights")
            }
            Error::Config { file, .. } => Fault::content(self.parameter(file), error.to_string())
                .help("the configuration must be the one that the weights were saved with"),
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
        self.seek(files);
        // Missing files are `check`'s to report, with what they are for.
        Ok(self
            .parts()
            .files()
            .into_iter()
            .filter(|file| files.is_file(&file.path))
            .map(|file| ReadFile {
                role: file.role,
                path: file.path,
            })
            .collect())
    }

    fn check(&self, _: &Types<Inputs>, files: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let folder = self.path.as_path();
        let alone = [
            &self.unet,
            &self.text_encoder,
            &self.tokenizer,
            &self.vae,
            &self.scheduler,
        ];
        if alone.iter().any(|part| part.is_none()) && !files.is_dir(folder) {
            let what = if files.is_file(folder) {
                "is a file; only folders in the diffusers layout can be loaded so far"
            } else {
                "does not exist"
            };
            return Err(vec![
                Fault::file(
                    "path",
                    format!("the model folder {} {what}", folder.display()),
                )
                .help(format!(
                    "relative paths count from the folder of the file that writes them; {}",
                    self.seek(files).help()
                )),
            ]);
        }
        let description = Description::read(&self.parts(), files)
            .map_err(|errors| errors.iter().map(|e| self.fault(e)).collect::<Vec<_>>())?;
        Ok(Types::unknown().with("model", &description.facts()))
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        let files = upstream.files.iter();
        let id = model_id(files.map(|(role, digest)| (role.as_str(), *digest)));
        Chained {
            note: Some(Arc::new(ModelNote { id })),
            ..Chained::default()
        }
    }

    fn run(&self, _: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let runtime = Runtime::of(context)?;
        let parts = self.parts();
        let description = Description::read(&parts, context.files()).map_err(|errors| {
            let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
            NodeError::failed(messages.join("; "))
        })?;
        // The VAE neither draws nor encodes prompts: what drew a step is the same model with another VAE.
        let mut digests = Vec::new();
        for file in parts.files() {
            if context.files().is_file(&file.path) {
                let digest = context.files().digest(&file.path).map_err(|e| {
                    NodeError::failed(format!("{} cannot be read: {e}", file.path.display()))
                })?;
                digests.push((file.role, digest));
            }
        }
        let id = model_id(
            digests
                .iter()
                .map(|(role, digest)| (role.as_str(), *digest)),
        );
        let checkpoint = Checkpoint::new(
            description,
            id,
            runtime.device.clone(),
            runtime.kernel.clone(),
        )
        .with_vae_id(vae_id(
            digests
                .iter()
                .map(|(role, digest)| (role.as_str(), *digest)),
        ));
        Ok(Outputs {
            model: Arc::new(Model { checkpoint }),
        })
    }
}
