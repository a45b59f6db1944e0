//! Nodes that change a model: each takes one and gives another, which shares the weights of the first.

pub mod apply_custom_diffusion;
pub mod apply_lora;
pub mod apply_textual_inversion;
pub mod load_vae;

pub use apply_custom_diffusion::ApplyCustomDiffusion;
pub use apply_lora::ApplyLora;
pub use apply_textual_inversion::ApplyTextualInversion;
pub use load_vae::LoadVae;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use retouch_graph::key::KeyHasher;
use retouch_graph::{Chained, Context, Digest, Fault, Files, NodeError, ReadFile, Upstream, ports};

use crate::chain::{self, ModelNote};
use crate::fields::Sha256Pins;
use crate::payload::Model;
use retouch_diffusion::Error;
use retouch_diffusion::checkpoint::adapters::Networks;
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::checkpoint::weights::NO_SUCH_FILE;
use retouch_diffusion::prompt::conditioning::suffix_of;

ports! {
    /// What an adapter takes.
    pub struct Inputs {
        /// The model, adapted already or not.
        pub model: Arc<Model>,
    }
}

ports! {
    /// What an adapter gives.
    pub struct Outputs {
        /// The changed model; the one before stays what it was.
        pub model: Arc<Model>,
    }
}

/// The file of an adapter as one that is read, its pin compared before anything else reads it. A missing file is
/// `check`'s to report.
fn read_file(
    role: &str,
    path: PathBuf,
    pins: Option<&Sha256Pins>,
    files: &dyn Files,
) -> Result<Option<ReadFile>, Vec<Fault>> {
    if !files.is_file(&path) {
        return Ok(None);
    }
    if let Some(pins) = pins {
        pins.check("sha256", &path, files)?;
    }
    Ok(Some(ReadFile {
        role: role.into(),
        path,
    }))
}

/// What stands for a model after an adapter: the model before, the adapter's files and the numbers that go with them.
fn adapted_id(base: &str, op: &str, files: &[(String, Digest)], said: &[(&str, String)]) -> String {
    let mut hasher = KeyHasher::new("retouch/adapted/1");
    hasher.field("model", base.as_bytes());
    hasher.field("op", op.as_bytes());
    for (role, digest) in files {
        hasher.field(role, digest);
    }
    for (name, value) in said {
        hasher.field(name, value.as_bytes());
    }
    // How the base reads prompts is read off its id, and so off this one's.
    format!("{}{}", hasher.finish(), suffix_of(base))
}

/// What an adapter says of its model while the plan is made.
fn adapted(upstream: &Upstream<'_>, op: &str, said: &[(&str, String)]) -> Chained {
    let Some((base, _)) = chain::model(upstream, "model") else {
        return Chained::default();
    };
    Chained {
        note: Some(Arc::new(ModelNote {
            id: adapted_id(&base, op, upstream.files, said),
            training: Vec::new(),
        })),
        ..Chained::default()
    }
}

/// The digests of the files that a node reads, by their roles, as the plan has them.
fn digests(
    context: &Context<'_>,
    files: &[(&str, &Path)],
) -> Result<Vec<(String, Digest)>, NodeError> {
    files
        .iter()
        .map(|(role, path)| {
            let digest = context.files().digest(path).map_err(|e| {
                NodeError::failed(format!("{} cannot be read: {e}", path.display()))
            })?;
            Ok(((*role).to_owned(), digest))
        })
        .collect()
}

/// The file of an adapter, looked for in the folders that models are kept in if it is not at its path.
fn sought(path: &Path, find: impl Fn(&Path, &dyn Files) -> PathBuf, files: &dyn Files) -> PathBuf {
    files.find_model(path);
    find(path, files)
}

/// Runs a check of an adapter's file against the model that is linked, if it is known.
fn against<T>(
    facts: Option<&ModelFacts>,
    check: impl FnOnce(&Networks<'_>) -> Result<T, Error>,
) -> Option<Result<T, Error>> {
    let facts = facts?;
    Some(Networks::of(&facts.unet_config, &facts.text_configs).and_then(|n| check(&n)))
}

/// An adapter's fault at its `path`.
fn fault(path: &Path, error: &Error, kind: &str, files: &dyn Files) -> Fault {
    match error {
        Error::Weights { file, message } | Error::Config { file, message }
            if message == NO_SUCH_FILE =>
        {
            Fault::file("path", format!("there is nothing at {}; expected {kind}", file.display())).help(format!(
                "relative paths count from the folder of the file that writes them; {}",
                files.find_model(path).help()
            ))
        }
        other => Fault::content("path", other.to_string()).help(format!(
            "apply {kind} to a model of the family that it was trained on; `retouch inspect` says what a file is"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retouch_diffusion::prompt::conditioning::reads_chunks;

    #[test]
    fn what_is_made_of_a_model_reads_prompts_as_it_does_by_its_id_too() {
        let id = |base| adapted_id(base, "apply_lora", &[], &[]);
        assert!(reads_chunks(&id("ab12+a1111+chunks")));
        assert!(!reads_chunks(&id("ab12+clip_skip=2")));
        assert!(id("ab12+clip_skip=2").ends_with("+clip_skip=2"));
        assert!(!id("ab12").contains('+'));
        assert_ne!(id("ab12"), id("ab13"));
    }
}
