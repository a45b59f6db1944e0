//! What a lock holds.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::digest::Digest;
use crate::base::paths::display;
use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::remote::Address;

/// What stands under `schema:` in a lock file.
pub const SCHEMA: &str = "retouch-lock/1";

/// What a file is to the workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockedKind {
    /// The workflow, or a graph that it uses.
    Workflow,
    /// A file of `--params`.
    Params,
    /// A picture, a latent: what a node reads.
    Asset,
    /// A part of a model.
    Model,
}

impl LockedKind {
    /// Its name in the lock file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Workflow => "workflow",
            Self::Params => "params",
            Self::Asset => "asset",
            Self::Model => "model",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Workflow, Self::Params, Self::Asset, Self::Model]
            .into_iter()
            .find(|kind| kind.name() == text)
    }
}

impl fmt::Display for LockedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One file that a workflow reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedFile {
    /// What it is to the workflow.
    pub kind: LockedKind,
    /// Its path from the workflow's folder, with `/`; may begin with `../`. When it lies elsewhere, the end of its path.
    pub path: String,
    /// Whether it lies where no path from the workflow's folder leads that could be shared: another drive, another
    /// user's folder.
    pub elsewhere: bool,
    /// Of a part of a model: the folder that the workflow names, written as `path` is; of a single file the file.
    pub model: Option<String>,
    /// Of what lies on a hub: the commit that was read. The path is then as the workflow writes it: `hf://...`.
    pub commit: Option<String>,
    /// Its bytes.
    pub size: u64,
    /// The BLAKE3 digest of its content.
    pub blake3: Digest,
}

/// What a workflow reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The version of the program that wrote it.
    pub tool: String,
    /// The workflow's name.
    pub workflow: String,
    /// The files, sorted by kind and path.
    pub files: Vec<LockedFile>,
}

impl Lock {
    /// The commits of the models on hubs, by the path of the model as the workflow writes it: `hf://owner/name@main`.
    #[must_use]
    pub fn commits(&self) -> BTreeMap<PathBuf, String> {
        let commit = |file: &LockedFile| {
            let address = Address::parse(Path::new(&file.path)).ok()?;
            Some((address.model(), file.commit.clone()?))
        };
        self.files.iter().filter_map(commit).collect()
    }
}

/// The fault that a file of a lock, or the lock itself, cannot be read.
pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    let name = display(path);
    Problem::new(
        Code::FileUnreadable,
        &Source::new(&*name, ""),
        Span::default(),
        format!("`{name}` cannot be read: {error}"),
    )
    .help("check the path")
}
