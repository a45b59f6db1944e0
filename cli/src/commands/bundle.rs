//! `retouch bundle` and `retouch unbundle`.

use std::path::{Path, PathBuf};

use retouch_graph::{Cancel, DiskFiles, Lock, LockedKind, files, lock, remote};

use crate::args::{BundleArgs, UnbundleArgs};
use crate::bundle::pack::{Request, Stop, Subject};
use crate::bundle::{self, pack, unpack};
use crate::commands::run;
use crate::hub::{self, Mode};
use crate::output::{say, tell};
use crate::progress::Bytes;
use crate::sharing::Input;
use crate::store::{Store, size};
use crate::{Exit, Failure, session};

/// Packs a workflow with what it reads.
///
/// # Errors
/// When the bundle cannot be written or standard output is closed.
pub fn bundle(args: &BundleArgs) -> Result<Exit, Failure> {
    if bundle::is_bundle(&args.file) {
        return Err(Failure::usage(format!(
            "{} is a bundle already",
            args.file.display()
        )));
    }
    let output = args.output.clone().unwrap_or_else(|| {
        let stem = args.file.file_stem().unwrap_or_default();
        PathBuf::from(format!("{}.tar.zst", stem.to_string_lossy()))
    });
    if output.file_name().is_none() || output.is_dir() {
        return Err(Failure::usage(format!(
            "{} is a folder; name a file",
            output.display()
        )));
    }
    if output.exists() && !bundle::is_bundle(&output) {
        return Err(Failure::unwritable(format!(
            "{} already exists and is not a bundle; it is kept",
            output.display()
        ))
        .help("name another file with `-o`"));
    }
    let store = Store::of(&args.cache)?;
    let engine = session::caching_engine("cpu", &store)?;
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    let mode = Mode::fetching(&cancel, false, args.telling.quiet);
    let opened = Input::open_with(&args.file, &args.sharing, false, &store, engine, mode);
    let (input, engine) = match opened {
        Ok(opened) => opened,
        Err(stop) => return stop.tell(false),
    };
    let mut settings = input.settings(&args.params);
    // The workflow is checked twice, and is to be the same both times.
    settings.draw = Some(0);
    let is_sweep = input.is_sweep(&engine);
    let loaded = if is_sweep {
        (input.load_sweep(&engine, &settings)).map(|sweep| Subject::Sweep(Box::new(sweep)))
    } else {
        (input.load(&engine, &settings)).map(|checked| Subject::Workflow(Box::new(checked)))
    };
    let subject = match loaded {
        Ok(subject) => subject,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return Ok(session::faults(&problems)),
    };
    session::warn(subject.checked(), false)?;
    let (packing, reading) = (
        Bytes::new("packing", args.telling.quiet),
        Bytes::new("reading it back", args.telling.quiet),
    );
    let request = Request {
        workflow: &args.file,
        settings: &settings,
        output: &output,
        models: args.with_models,
        most: args.max_asset.unwrap_or(bundle::MAX_ASSET),
        cancel: &cancel,
        packed: &|bytes, total| packing.add(bytes, total),
        read_back: &|bytes, total| reading.add(bytes, total),
    };
    let made = match pack::pack(&engine, &request, &subject) {
        Ok(made) => made,
        Err(_) if cancel.is_cancelled() => {
            return Err(Failure::interrupted("nothing was written"));
        }
        Err(Stop::Faults(problems)) => return Ok(session::faults(&problems)),
        Err(Stop::Error(error)) => {
            let problem = error.problem(&args.file)?;
            return Ok(session::faults(&problem.into()));
        }
    };
    drop((packing, reading));
    engine.files().flush();
    for file in made.manifest.files.iter().filter(|_| !args.telling.quiet) {
        tell(&format!("{:>10}  {}", size(file.size), file.path));
    }
    for (model, (files, bytes)) in &made.left_out {
        tell(&format!(
            "left out: {model} ({files} files, {}); it is found by its content where it is needed, or packed with `--with-models`",
            size(*bytes)
        ));
    }
    for (model, (files, bytes)) in &made.fetched {
        tell(&format!(
            "not packed: {model} ({files} files, {}); the recipient fetches it, at the commit that the bundle's lock records",
            size(*bytes)
        ));
    }
    say(&format!(
        "{}  {} files, {}",
        output.display(),
        made.manifest.files.len(),
        size(made.bytes)
    ))?;
    Ok(Exit::Done)
}

/// Whether a file says a sweep of another workflow.
fn is_sweep(file: &Path) -> Result<bool, Failure> {
    let written = session::engine("cpu")?.read(file).ok();
    Ok((written.and_then(|workflow| workflow.sweep)).is_some_and(|sweep| sweep.workflow.is_some()))
}

/// Unpacks a bundle to a folder.
///
/// # Errors
/// When the folder is not empty or cannot be written, or standard output is closed.
pub fn unbundle(args: &UnbundleArgs) -> Result<Exit, Failure> {
    if !args.file.is_file() {
        return Err(Failure {
            exit: Exit::Usage,
            ..Failure::unreadable(files::no_file(&args.file, &DiskFiles::new()))
        });
    }
    let most = args.max_unpacked.unwrap_or(bundle::MAX_UNPACKED);
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    let manifest = match unpack::to_folder(&args.file, most, &args.folder, &cancel) {
        Ok(manifest) => manifest,
        // A stream that was cut short looks damaged.
        Err(_) if cancel.is_cancelled() => {
            return Err(Failure::interrupted("nothing was written"));
        }
        Err(error) => {
            let problem = error.problem(&args.file)?;
            return Ok(session::faults(&problem.into()));
        }
    };
    let workflow = args.folder.join(&manifest.workflow);
    say(&workflow.display().to_string())?;
    let command = match is_sweep(&workflow)? {
        true => "sweep",
        false => "run",
    };
    let params = manifest
        .params
        .as_ref()
        .map(|params| format!(" --params {}", args.folder.join(params).display()))
        .unwrap_or_default();
    let models = match lacks_models(&workflow) {
        true => " --models DIR, where DIR is a folder that has the models which were not packed",
        false => "",
    };
    if !args.telling.quiet {
        tell(&format!(
            "{} files, {}; now: retouch {command} {}{params}{models}",
            manifest.files.len(),
            size(manifest.bytes()),
            workflow.display()
        ));
    }
    Ok(Exit::Done)
}

/// Whether a lock beside an unpacked workflow has models that are not there: they were left out of the bundle.
fn lacks_models(workflow: &Path) -> bool {
    let folder = workflow.parent().unwrap_or(Path::new(""));
    let there = Lock::read(&lock::file_of(workflow), &DiskFiles::new());
    there.ok().flatten().is_some_and(|lock| {
        let mut models = (lock.files.iter())
            .filter(|file| file.kind == LockedKind::Model)
            .map(|file| Path::new(&file.path));
        models.any(|path| !remote::is_remote(path) && !folder.join(path).is_file())
    })
}
