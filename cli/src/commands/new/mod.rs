//! `retouch new`: everything to begin with, from inside this program, or workflows for a model of one's own.

mod model;

use std::io::ErrorKind;
use std::path::Path;

use include_dir::{Dir, include_dir};
use retouch_graph::write::{Access, DraftFolder, is_empty};

use crate::args::NewArgs;
use crate::output::say;
use crate::{Exit, Failure};

static WORKFLOWS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../workflows");
static MODELS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../models");
static REFERENCES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../references");

/// Writes workflows, models and references into a new folder; with `--model` workflows for that model.
///
/// # Errors
/// When the folder is there and not empty, or cannot be written; with `--model` when what is named is not there.
pub fn new(args: &NewArgs) -> Result<Exit, Failure> {
    let folder = &args.folder;
    let first = match &args.model {
        Some(model) => {
            let workflows = model::workflows(args, model)?;
            fill(folder, |draft| {
                let target = draft.join("workflows");
                std::fs::create_dir(&target)?;
                (workflows.iter())
                    .try_for_each(|(name, text)| std::fs::write(target.join(name), text))
            })?;
            model::FIRST
        }
        None => {
            write(folder)?;
            "layout-and-retouch.yaml"
        }
    };
    let first = folder.join("workflows").join(first);
    say(&crate::safe::path(&first))?;
    crate::output::tell(&format!(
        "made {}; now: retouch run {}",
        folder.display(),
        first.display()
    ));
    Ok(Exit::Done)
}

/// Writes everything that is in this program.
///
/// # Errors
/// As [`new`].
pub fn write(folder: &Path) -> Result<(), Failure> {
    fill(folder, |draft| {
        for (name, content) in [
            ("workflows", &WORKFLOWS),
            ("models", &MODELS),
            ("references", &REFERENCES),
        ] {
            let target = draft.join(name);
            std::fs::create_dir(&target)?;
            content.extract(&target)?;
        }
        Ok(())
    })
}

/// Makes a folder that is not there, or is empty; it gets its name when everything is in it.
fn fill(folder: &Path, content: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), Failure> {
    let failed = |what: &Path, e: std::io::Error| {
        Failure::unwritable(format!("{} cannot be written: {e}", what.display()))
    };
    let not_empty = || {
        Failure::unwritable(format!("{} exists and is not empty", folder.display()))
            .help("name a folder that does not exist yet")
    };
    match is_empty(folder) {
        Ok(true) => {}
        Ok(false) => return Err(not_empty()),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed(folder, e)),
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
    let draft = DraftFolder::of(folder, Access::Usual).map_err(|e| failed(folder, e))?;
    content(draft.path()).map_err(|e| failed(folder, e))?;
    draft.settle(folder).map_err(|e| match e.kind() {
        ErrorKind::DirectoryNotEmpty => not_empty(),
        _ => failed(folder, e),
    })
}
