//! `load_vae`.

use std::sync::Arc;

use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, ReadFile, Types, Upstream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Inputs, Outputs};
use crate::chain::{self, ModelNote, vae_id};
use crate::fields::AssetPath;
use retouch_diffusion::checkpoint::layout::vae_part;
use retouch_diffusion::checkpoint::model::{ModelFacts, VaeDescription};

/// Gives a model another VAE, such as one that was published alone.
///
/// Only what is encoded and decoded with it changes: what the model draws stays the same, and known.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadVae {
    /// A folder with `config.json` and weights, or a file of weights, which is read by the configuration beside it or else
    /// by that of the model's own VAE.
    pub path: AssetPath,
}

impl Node for LoadVae {
    const OP: &'static str = "load_vae";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        files.find_model(self.path.as_path());
        // A missing file is `check`'s to report.
        Ok(vae_part(self.path.as_path(), files)
            .map(|part| part.files())
            .unwrap_or_default()
            .into_iter()
            .filter(|file| files.is_file(&file.path))
            .map(|file| ReadFile {
                role: file.role,
                path: file.path,
            })
            .collect())
    }

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let Some(mut facts) = inputs.facts::<ModelFacts>("model") else {
            return Ok(Types::unknown());
        };
        files.find_model(self.path.as_path());
        let read = vae_part(self.path.as_path(), files)
            .and_then(|part| VaeDescription::read(&part, &facts.vae_config, files));
        match read {
            Ok(vae) => {
                if let Some(misfit) = vae.misfit(&facts.unet_config) {
                    return Err(vec![Fault::mismatch("model", misfit).help(
                        "give a VAE of the family of the model, or the model that the VAE belongs to",
                    )]);
                }
                facts.set_vae(&vae.config);
                Ok(Types::unknown().with("model", &facts))
            }
            Err(e) => Err(vec![super::fault(self.path.as_path(), &e, "a VAE", files)]),
        }
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        let Some((id, _)) = chain::model(upstream, "model") else {
            return Chained::default();
        };
        Chained {
            note: Some(Arc::new(ModelNote {
                id,
                training: Vec::new(),
            })),
            ..Chained::default()
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let files = context.files();
        files.find_model(self.path.as_path());
        let base = &inputs.model.checkpoint;
        let part = vae_part(self.path.as_path(), files)?;
        let vae = VaeDescription::read(&part, &base.description().vae, files)?;
        let of: Vec<_> = part.files();
        let read: Vec<(&str, &std::path::Path)> = of
            .iter()
            .filter(|file| files.is_file(&file.path))
            .map(|file| (file.role.as_str(), file.path.as_path()))
            .collect();
        let digests = super::digests(context, &read)?;
        let id = vae_id(
            digests
                .iter()
                .map(|(role, digest)| (role.as_str(), *digest)),
        );
        Ok(Outputs {
            model: Arc::new(inputs.model.adapted(
                base.with_vae(id, vae),
                format!("VAE {}", self.path.display()),
            )),
        })
    }
}
