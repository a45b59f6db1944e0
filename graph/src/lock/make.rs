//! From a checked workflow to its lock.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::base::paths::{folder_of, normal};
use crate::base::problem::{Problem, Problems};
use crate::check::{Checked, Settings};
use crate::files::Files;
use crate::lock::content::{Lock, LockedFile, LockedKind, unreadable};
use crate::lock::paths::{model_of, relative, remote_path, slashed};

/// The type of the ports that models cross: what a node that gives one reads is a model.
const MODEL_TYPE: &str = "model";

struct Maker<'a> {
    folder: PathBuf,
    files: &'a dyn Files,
    seen: BTreeSet<(LockedKind, PathBuf)>,
    locked: Vec<LockedFile>,
}

impl Maker<'_> {
    /// How a path is written, and whether it lies elsewhere. `keep` is how many names of it to keep in that case.
    fn written(&self, path: &Path, keep: usize) -> Result<(String, bool), Problem> {
        if let Some(remote) = remote_path(path) {
            return Ok((remote, false));
        }
        if let Some(relative) = relative(&self.folder, path) {
            return Ok((slashed(&relative, path)?, false));
        }
        let clean = normal(path);
        let names: Vec<Component<'_>> = clean
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let end: PathBuf = names[names.len().saturating_sub(keep.max(1))..]
            .iter()
            .collect();
        Ok((slashed(&end, path)?, true))
    }

    fn add(&mut self, kind: LockedKind, path: &Path, role: &str) -> Result<(), Problem> {
        if !self.seen.insert((kind, normal(path))) {
            return Ok(());
        }
        let model = (kind == LockedKind::Model).then(|| model_of(path, role));
        let below = model
            .as_ref()
            .and_then(|model| path.strip_prefix(model).ok())
            .map_or(0, |rest| rest.components().count());
        let (written, elsewhere) = self.written(path, below + 1)?;
        let model = match model {
            Some(model) => Some(self.written(&model, 1)?.0),
            None => None,
        };
        let digest = self
            .files
            .digest(path)
            .map_err(|error| unreadable(path, &error))?;
        let (_, size) = self
            .files
            .read_head(path, 0)
            .map_err(|error| unreadable(path, &error))?;
        self.locked.push(LockedFile {
            kind,
            path: written,
            elsewhere,
            model,
            commit: self.files.commit(path),
            size,
            blake3: digest,
        });
        Ok(())
    }
}

impl Lock {
    /// Records what a workflow reads: itself and the graphs that it uses, params files, and the files of all its
    /// nodes. `workflow` is the path that it was loaded from, `settings` what it was loaded with, `tool` the version
    /// of the program.
    ///
    /// # Errors
    /// When a file cannot be read, or has a name that other systems do not take.
    pub fn of(
        checked: &Checked,
        workflow: &Path,
        settings: &Settings,
        files: &dyn Files,
        tool: &str,
    ) -> Result<Self, Problems> {
        let mut maker = Maker {
            folder: folder_of(workflow),
            files,
            seen: BTreeSet::new(),
            locked: Vec::new(),
        };
        for path in &checked.files {
            let kind = if settings.params.contains(path) {
                LockedKind::Params
            } else {
                LockedKind::Workflow
            };
            maker.add(kind, path, "")?;
        }
        for node in &checked.nodes {
            let gives_model = node
                .entry()
                .outputs()
                .iter()
                .any(|port| port.types.contains(&MODEL_TYPE));
            let kind = if gives_model {
                LockedKind::Model
            } else {
                LockedKind::Asset
            };
            for file in node.reads() {
                maker.add(kind, &file.path, &file.role)?;
            }
        }
        let mut locked = maker.locked;
        locked.sort();
        // Two ways to write one path are one file. Of files elsewhere only the end of the path is known: two may have
        // the same, and both count.
        locked.dedup();
        Ok(Self {
            tool: tool.to_owned(),
            workflow: checked.name.clone(),
            files: locked,
        })
    }
}
