//! `retouch lock`.

use retouch_graph::{Cancel, Lock, Problems, lock};

use crate::args::LockArgs;
use crate::commands::run;
use crate::hub::{self, Mode};
use crate::output::{say, tell};
use crate::sharing::Input;
use crate::store::{Store, write_whole};
use crate::{Exit, Failure, bundle, session};

/// Writes down what a workflow reads, or with `--check` compares it with what is written.
///
/// # Errors
/// When the lock cannot be written or standard output is closed.
pub fn lock(args: &LockArgs) -> Result<Exit, Failure> {
    if bundle::is_bundle(&args.file) {
        return Err(Failure::usage(format!(
            "{} is a bundle; it has its lock in it",
            args.file.display()
        ))
        .help("to change what it holds: `retouch unbundle`, and then lock the workflow in it"));
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
    if !args.check {
        input.unpin();
    }
    let settings = input.settings(&args.params);
    // Of a sweep in a file of its own what all cells read is written down.
    let loaded = if input.is_sweep(&engine) {
        (input.load_sweep(&engine, &settings)).map(|sweep| sweep.all_cells().clone())
    } else {
        input.load(&engine, &settings)
    };
    let checked = match loaded {
        Ok(checked) => checked,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return Ok(session::faults(&problems)),
    };
    session::warn(&checked, false)?;
    let tool = env!("CARGO_PKG_VERSION");
    let now = match Lock::of(&checked, &args.file, &settings, &**engine.files(), tool) {
        Ok(now) => now,
        Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
        Err(problems) => return Ok(session::faults(&problems)),
    };
    engine.files().flush();
    for file in now.files.iter().filter(|file| file.elsewhere) {
        tell(&format!(
            "warning: {} is outside of the workflow's folders, so others will not find it; move it near the workflow and use a relative path",
            file.path
        ));
    }
    let path = lock::file_of(&args.file);
    let old = Lock::read(&path, &**engine.files());
    if args.check {
        return check(args, &path, old, &now);
    }
    match &old {
        Ok(Some(old)) => {
            for difference in old.compare(&now) {
                say(&difference.to_string())?;
            }
        }
        Ok(None) => {}
        Err(_) => tell(&format!(
            "{} was not a valid lock file; it is rewritten",
            path.display()
        )),
    }
    let text = now.to_yaml();
    let same = retouch_graph::files::read(&path, retouch_graph::yaml::MAX_BYTES as u64)
        .is_ok_and(|there| there == text.as_bytes());
    if !same {
        write_whole(&path, text.as_bytes()).map_err(|e| {
            Failure::unwritable(format!("{} cannot be written: {e}", path.display()))
        })?;
    }
    let what = match old {
        _ if same => "unchanged",
        Ok(None) => "new",
        _ => "written",
    };
    say(&format!(
        "{}  {} files  ({what})",
        path.display(),
        now.files.len()
    ))?;
    Ok(Exit::Done)
}

fn check(
    args: &LockArgs,
    path: &std::path::Path,
    old: Result<Option<Lock>, Problems>,
    now: &Lock,
) -> Result<Exit, Failure> {
    let help = format!("write it: `retouch lock {}`", args.file.display());
    match old {
        Err(problems) => Ok(session::faults(&problems)),
        Ok(None) => {
            Err(Failure::unreadable(format!("there is no lock {}", path.display())).help(help))
        }
        Ok(Some(old)) => {
            let differences = old.compare(now);
            for difference in &differences {
                say(&difference.to_string())?;
            }
            if differences.is_empty() {
                say(&format!("{}: up to date", path.display()))?;
                return Ok(Exit::Done);
            }
            Err(Failure::failed(format!("{} is stale", path.display())).help(help))
        }
    }
}
