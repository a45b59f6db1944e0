//! `--preview`: what a run is drawing, as a picture in a file that is replaced as a whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use retouch_graph::paths::normal;
use retouch_graph::write::{self, Access};
use retouch_graph::{Checked, CheckedNode, NodeError, Previewer, Quality, Value};

use crate::args::{ExistsArg, ExistsArgs, PreviewArgs, PreviewWith};
use crate::{Failure, provenance};

/// Writes the picture being drawn to one file, every `every` steps.
#[derive(Debug)]
pub struct Preview {
    file: PathBuf,
    every: usize,
    quality: Quality,
    /// One picture at a time is written.
    writing: Mutex<()>,
    shown: AtomicBool,
}

impl Preview {
    /// The preview that the arguments ask for, if they do.
    ///
    /// # Errors
    /// When the file does not end in .png, cannot be written, or is there and no preview, unless with `--exists replace`.
    pub fn of(args: &PreviewArgs, existing: ExistsArgs) -> Result<Option<Arc<Self>>, Failure> {
        let Some(file) = &args.preview else {
            return Ok(None);
        };
        check(file)?;
        if existing.exists != ExistsArg::Replace
            && fs::symlink_metadata(file).is_ok()
            && !provenance::is_preview(file)
        {
            return Err(Failure::unwritable(format!(
                "the preview {} already exists and is not a preview",
                file.display()
            ))
            .help("name another file, or replace it with `--exists replace`"));
        }
        Ok(Some(Arc::new(Self {
            file: file.clone(),
            every: usize::try_from(args.every).unwrap_or(usize::MAX).max(1),
            quality: match args.preview_with {
                PreviewWith::Linear => Quality::Quick,
                PreviewWith::Vae => Quality::Exact,
            },
            writing: Mutex::default(),
            shown: AtomicBool::new(false),
        })))
    }

    /// Refuses to write over what the workflow reads, and where an output below the folder `out` is saved.
    ///
    /// # Errors
    /// When the file is one of the workflow's.
    pub fn spares(&self, workflow: &Checked, out: &Path) -> Result<(), Failure> {
        let whole = |path: &Path| {
            std::path::absolute(path).map_or_else(|_| normal(path), |path| normal(&path))
        };
        let preview = whole(&self.file);
        let mut saved = workflow
            .outputs
            .iter()
            .filter_map(|output| output.save.as_ref());
        if saved.any(|save| whole(&out.join(save)) == preview) {
            return Err(Failure::unwritable(format!(
                "the preview {} is where an output of the workflow is saved",
                self.file.display()
            ))
            .help("name another with `--preview FILE.png`"));
        }
        let Ok(own) = self.file.canonicalize() else {
            return Ok(()); // it is not there yet, so nothing reads it
        };
        let read = workflow.nodes.iter().flat_map(CheckedNode::reads);
        let mut read = read.map(|file| &file.path).chain(&workflow.files);
        if read.any(|path| path.canonicalize().is_ok_and(|path| path == own)) {
            return Err(Failure::unwritable(format!(
                "the preview {} would write over a file that the workflow reads",
                self.file.display()
            ))
            .help("name another with `--preview FILE.png`"));
        }
        Ok(())
    }

    /// Says that there is no preview, if nothing was drawn that it could show.
    pub fn tell_if_idle(&self) {
        if !self.shown.load(Ordering::SeqCst) {
            crate::output::tell(&format!(
                "no preview was written to {}: nothing had to be drawn",
                self.file.display()
            ));
        }
    }
}

/// Whether a preview can be written there: better said now than at the first of many steps.
fn check(file: &Path) -> Result<(), Failure> {
    let png = file
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    if !png {
        return Err(Failure::usage(format!(
            "the preview {} does not end in .png: previews are PNG files",
            file.display()
        ))
        .help("name it like `--preview preview.png`"));
    }
    if file.is_dir() {
        return Err(
            Failure::unwritable(format!("the preview {} is a folder", file.display()))
                .help("name a file in it, such as `--preview FOLDER/preview.png`"),
        );
    }
    let folder = folder_of(file);
    if !folder.is_dir() {
        return Err(Failure::unwritable(format!(
            "the preview's folder {} does not exist",
            folder.display()
        ))
        .help("make it, or name a file in one that is there"));
    }
    write::probe(folder).map_err(|e| {
        Failure::unwritable(format!(
            "the preview's folder {} cannot be written: {e}",
            folder.display()
        ))
        .help("name a file in another with `--preview FILE.png`")
    })
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

impl Previewer for Preview {
    fn wants(&self, _: &str, done: usize, of: usize) -> Option<Quality> {
        (done.is_multiple_of(self.every) || done == of).then_some(self.quality)
    }

    fn show(&self, _: &str, _: usize, _: usize, picture: &Value) -> Result<(), NodeError> {
        let files = picture.encode("png")?;
        // The mark is how a later run knows that it may replace the file.
        let marked = files.first().and_then(|png| provenance::as_preview(png));
        let Some(bytes) = marked else {
            return Err(NodeError::failed("there is no picture to show"));
        };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader finds a whole picture at any time.
        write::replace(&self.file, &bytes, Access::Usual).map_err(|e| {
            NodeError::failed(format!("{} cannot be written: {e}", self.file.display()))
        })?;
        self.shown.store(true, Ordering::SeqCst);
        Ok(())
    }
}
