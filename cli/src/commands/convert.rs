//! `retouch convert`.

use std::fs;
use std::path::{Path, PathBuf};

use retouch_graph::{Cancel, Files};
use retouch_nodes::diffusion::Error;
use retouch_nodes::diffusion::checkpoint::Description;
use retouch_nodes::diffusion::export::{self, Converted, Precision};
use retouch_nodes::diffusion::layout::{Layout, Sources};
use retouch_nodes::diffusion::scheduler::Prediction;

use super::inspect::{failed, files, listed};
use super::run;
use crate::args::{ConvertArgs, LayoutName, PrecisionName, PredictionName};
use crate::bundle::unpack::fresh;
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
                "a single file is written as safetensors, and {} does not end so",
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
    let draft = Draft::begin(out)?;
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
    let follow = Writing::new("writing", &cancel);
    let written = match layout {
        LayoutName::Folder => {
            draft.make_folder()?;
            export::folder(
                &found,
                &description,
                precision,
                draft.path(),
                &there,
                &follow,
            )
        }
        LayoutName::Single => export::single(
            &found,
            &description,
            precision,
            draft.path(),
            &there,
            &follow,
        ),
    };
    drop(follow);
    finish(draft, out, written)
}

/// Shows how the writing of a model gets on, until it is cancelled.
pub struct Writing<'a> {
    cancel: &'a Cancel,
    shown: Bytes,
}

impl<'a> Writing<'a> {
    /// Begins; `what` is being done, in a word: `writing`.
    #[must_use]
    pub fn new(what: &str, cancel: &'a Cancel) -> Self {
        Self {
            cancel,
            shown: Bytes::new(what),
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

/// Gives what was written its name, and says what it is.
///
/// # Errors
/// What went wrong with it.
pub fn finish(
    draft: Draft,
    out: &Path,
    written: Result<Converted, Error>,
) -> Result<Exit, Failure> {
    let written = match written {
        Ok(written) => written,
        Err(Error::Cancelled) => return Err(Failure::interrupted("nothing was written")),
        Err(error) => {
            // The draft's own name is nobody's business.
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
    tell(&format!(
        "{} tensors, {}",
        written.tensors,
        size(written.bytes)
    ));
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

/// Something that is being written under another name beside its own; it goes when the work is not finished.
#[derive(Debug)]
pub struct Draft(Option<PathBuf>);

impl Draft {
    /// Chooses a name. Nothing is made yet.
    ///
    /// # Errors
    /// When something is there already, or the folder around it is not.
    pub fn begin(out: &Path) -> Result<Self, Failure> {
        match fs::symlink_metadata(out) {
            Ok(there) if there.is_dir() => {
                let mut entries = fs::read_dir(out).map_err(|e| cannot(out, &e))?;
                if entries.next().is_some() {
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
        let name = out.file_name().ok_or_else(|| {
            Failure::usage(format!("{} is no name of a file or folder", out.display()))
        })?;
        let folder = match out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder).map_err(|e| cannot(folder, &e))?;
        Ok(Self(Some(fresh(folder, &name.to_string_lossy()))))
    }

    /// Where it is written.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Makes it a folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_folder(&self) -> Result<(), Failure> {
        fs::create_dir(self.path()).map_err(|e| cannot(self.path(), &e))
    }

    /// Gives it its own name.
    ///
    /// # Errors
    /// When somebody else took the name meanwhile.
    fn settle(mut self, out: &Path) -> Result<(), Failure> {
        let path = self.path();
        if path.is_file() {
            // Unlike renaming, a second name for a file does not replace what is there.
            match fs::hard_link(path, out) {
                // The draft is the second name now, and goes.
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(cannot(out, &e));
                }
                // Some file systems have no second names.
                Err(_) => {}
            }
        } else {
            // An empty folder may be there; some systems rename nothing over it.
            let _ = fs::remove_dir(out);
        }
        fs::rename(path, out).map_err(|e| cannot(out, &e))?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Nobody misses it; and only one of the two is there.
            let _ = fs::remove_file(path);
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::unwritable(format!("{} cannot be written: {error}", path.display()))
}
