//! `retouch new`: everything to begin with, from inside this program.

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

/// Writes workflows, models and references into a new folder.
///
/// # Errors
/// When the folder is there and not empty, or cannot be written.
pub fn new(args: &NewArgs) -> Result<Exit, Failure> {
    write(args)?;
    let folder = &args.folder;
    let first = folder.join("workflows").join("layout-and-retouch.yaml");
    say(&crate::safe::path(&first))?;
    {
        crate::output::tell(&format!(
            "made {}; now: retouch run {}",
            folder.display(),
            first.display()
        ));
    }
    Ok(Exit::Done)
}

/// Writes everything that is in this program.
///
/// # Errors
/// As [`new`].
pub fn write(args: &NewArgs) -> Result<(), Failure> {
    let folder = &args.folder;
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
    // The folder gets its name when everything is in it.
    let parent = folder.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
    let draft = DraftFolder::of(folder, Access::Usual).map_err(|e| failed(folder, e))?;
    for (name, content) in [
        ("workflows", &WORKFLOWS),
        ("models", &MODELS),
        ("references", &REFERENCES),
    ] {
        let target = draft.path().join(name);
        std::fs::create_dir(&target)
            .and_then(|()| content.extract(&target))
            .map_err(|e| failed(&folder.join(name), e))?;
    }
    draft.settle(folder).map_err(|e| match e.kind() {
        ErrorKind::DirectoryNotEmpty => not_empty(),
        _ => failed(folder, e),
    })
}
