//! `retouch convert`.

use std::fs;
use std::path::{Path, PathBuf};

use retouch_diffusion::Error;
use retouch_diffusion::checkpoint::export::{self, Converted, Precision};
use retouch_diffusion::checkpoint::layout::{Layout, Sources};
use retouch_diffusion::checkpoint::model::Description;
use retouch_diffusion::sampling::scheduler::Prediction;
use retouch_graph::write::{Access, DraftFolder, is_empty};
use retouch_graph::{Cancel, Files};

use super::inspect::{failed, files, listed};
use super::run;
use crate::args::{ConvertArgs, LayoutName, PrecisionName, PredictionName};
use crate::output::{say, tell};
use crate::progress::Bytes;
use crate::store::size;
use crate::{Exit, Failure};

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::F16 => Self::F16,
            PrecisionName::Bf16 => Self::Bf16,
        }
    }
}

/// Writes a model in another layout or type.
///
/// # Errors
/// When the model cannot be read, or the result is there already or cannot be written.
pub fn convert(args: &ConvertArgs) -> Result<Exit, Failure> {
    let out = &args.out;
    let is_file = out
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors"));
    let layout = args.layout.unwrap_or(if is_file {
        LayoutName::Single
    } else {
        LayoutName::Folder
    });
    match layout {
        LayoutName::Single if !is_file => {
            return Err(Failure::usage(format!(
                "a single file is written as safetensors, but {} does not end in `.safetensors`",
                out.display()
            ))
            .help("name it `.safetensors`"));
        }
        LayoutName::Folder if is_file => {
            return Err(Failure::usage(format!(
                "{} is the name of a file, and a folder is to be written",
                out.display()
            ))
            .help("name a folder, or leave `--layout` out"));
        }
        _ => {}
    }
    let there = files(&args.place, &args.model)?;
    if args.config.is_some() && !there.is_file(&args.model) {
        return Err(Failure::usage(
            "`--config` has no effect: a folder has its own configurations",
        )
        .help("remove `--config`, or give a single file as MODEL"));
    }
    free(out)?;
    let sources = Sources {
        config: args.config.clone(),
        prediction: args.prediction.map(|name| match name {
            PredictionName::Epsilon => Prediction::Epsilon,
            PredictionName::VPrediction => Prediction::VPrediction,
        }),
        ..Sources::of(&args.model)
    };
    let found = Layout::find(&sources, &there).map_err(|errors| failed(&errors))?;
    let description = Description::of(&found, &there).map_err(|errors| failed(&errors))?;
    let precision = args.dtype.map(Precision::from);
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    let follow = Writing::new("writing", args.telling.quiet, &cancel);
    let draft = Draft::begin(out, is_file)?;
    let written = match layout {
        LayoutName::Folder => export::folder(
            &found,
            &description,
            precision,
            &draft.path(),
            &there,
            &follow,
        ),
        LayoutName::Single => export::single(
            &found,
            &description,
            precision,
            &draft.path(),
            &there,
            &follow,
        ),
    };
    drop(follow);
    finish(draft, out, args.telling.quiet, written)
}

/// Shows how the writing of a model gets on, until it is cancelled.
pub struct Writing<'a> {
    cancel: &'a Cancel,
    shown: Bytes,
}

impl<'a> Writing<'a> {
    /// Begins; `what` is being done, in a word: `writing`. With `quiet` nothing is printed.
    #[must_use]
    pub fn new(what: &str, quiet: bool, cancel: &'a Cancel) -> Self {
        Self {
            cancel,
            shown: Bytes::new(what, quiet),
        }
    }
}

impl export::Follow for Writing<'_> {
    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn wrote(&self, bytes: u64, total: u64) {
        self.shown.add(bytes, total);
    }
}

/// Gives what was written its name, and says what it is; with `quiet` the files alone, and what was left out.
///
/// # Errors
/// What went wrong with it.
pub fn finish(
    draft: Draft,
    out: &Path,
    quiet: bool,
    written: Result<Converted, Error>,
) -> Result<Exit, Failure> {
    let written = match written {
        Ok(written) => written,
        Err(Error::Cancelled) => return Err(Failure::interrupted("nothing was written")),
        Err(error) => {
            // The draft's own name is an implementation detail.
            let text = error.to_string();
            let text = text.replace(
                &draft.path().display().to_string(),
                &out.display().to_string(),
            );
            let failure = Failure::failed(text);
            return Err(match error {
                Error::Request {
                    help: Some(help), ..
                } => failure.help(help),
                _ => failure,
            });
        }
    };
    draft.settle(out)?;
    if !quiet {
        tell(&format!(
            "{} tensors, {}",
            written.tensors,
            size(written.bytes)
        ));
    }
    for what in &written.lost {
        tell(&format!("left out: {what}"));
    }
    if written.files.is_empty() {
        say(&out.display().to_string())?;
    }
    for file in listed(out, &written.files) {
        say(&file)?;
    }
    Ok(Exit::Done)
}

/// A model that is being written under a temporary name; it is removed unless it is finished.
#[derive(Debug)]
pub struct Draft {
    folder: DraftFolder,
    is_file: bool,
}

/// The name of a file in its draft's folder.
const FILE: &str = "model.safetensors";

/// Whether a model can be written there.
///
/// # Errors
/// When something is there already.
pub fn free(out: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(out) {
        Ok(there) if there.is_dir() => {
            if !is_empty(out).map_err(|e| cannot(out, &e))? {
                return Err(Failure::unwritable(format!(
                    "{} exists and is not empty",
                    out.display()
                ))
                .help("name what does not exist yet"));
            }
        }
        Ok(_) => {
            return Err(
                Failure::unwritable(format!("{} exists already", out.display()))
                    .help("name what does not exist yet, or remove it"),
            );
        }
        Err(_) => {}
    }
    match out.file_name() {
        Some(_) => Ok(()),
        None => Err(Failure::usage(format!(
            "{} is not the name of a file or folder",
            out.display()
        ))),
    }
}

impl Draft {
    /// Begins a file or a folder.
    ///
    /// # Errors
    /// When the folder around it cannot be written.
    pub fn begin(out: &Path, is_file: bool) -> Result<Self, Failure> {
        let parent = out.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(parent).map_err(|e| cannot(parent, &e))?;
        let folder = DraftFolder::of(out, Access::Usual).map_err(|e| cannot(out, &e))?;
        Ok(Self { folder, is_file })
    }

    /// Where it is written: an empty folder, or a file that is not there yet.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        if self.is_file {
            self.folder.path().join(FILE)
        } else {
            self.folder.path().to_owned()
        }
    }

    /// Gives it its own name.
    ///
    /// # Errors
    /// When the name was taken meanwhile.
    fn settle(self, out: &Path) -> Result<(), Failure> {
        let settled = if self.is_file {
            self.folder.settle_file(FILE, out)
        } else {
            self.folder.settle(out)
        };
        settled.map_err(|e| cannot(out, &e))
    }
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::unwritable(format!("{} cannot be written: {error}", path.display()))
}
