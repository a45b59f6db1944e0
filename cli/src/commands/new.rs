//! `retouch new`: everything to begin with, from inside this program.

use std::path::Path;

use include_dir::{Dir, include_dir};

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
    say(&first.display().to_string())?;
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
    match std::fs::read_dir(folder) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(Failure::unwritable(format!(
                    "{} exists and is not empty",
                    folder.display()
                ))
                .help("name a folder that does not exist yet"));
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(folder, e)),
    }
    for (name, content) in [
        ("workflows", &WORKFLOWS),
        ("models", &MODELS),
        ("references", &REFERENCES),
    ] {
        let target = folder.join(name);
        std::fs::create_dir_all(&target).map_err(|e| failed(&target, e))?;
        content.extract(&target).map_err(|e| failed(&target, e))?;
    }
    Ok(())
}
