//! `retouch fmt`.

use std::io::Read;
use std::path::Path;

use retouch_graph::problem::Source;

use crate::args::FmtArgs;
use crate::output::{say, say_raw};
use crate::{Exit, Failure, session};

/// Formats files in place, or says which are not in the standard form.
///
/// # Errors
/// When a file cannot be read or written.
pub fn fmt(args: &FmtArgs) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    for file in &args.files {
        let stdin = file.as_os_str() == "-";
        let text = if stdin {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
        } else {
            std::fs::read(file)
        }
        .map_err(|e| Failure::unreadable(format!("{} cannot be read: {e}", file.display())))?;
        let name = if stdin {
            "standard input".into()
        } else {
            file.display().to_string()
        };
        let text = String::from_utf8(text)
            .map_err(|_| Failure::unreadable(format!("{name} is not UTF-8 text")))?;
        let formatted = match retouch_graph::format::format(&Source::new(name, text.clone())) {
            Ok(formatted) => formatted,
            Err(problem) => {
                session::tell_problems([&problem]);
                exit = Exit::Faults;
                continue;
            }
        };
        if args.check {
            if formatted != text {
                say(&file.display().to_string())?;
                exit = Exit::Failed;
            }
        } else if stdin {
            say_raw(&formatted)?;
        } else if formatted != text {
            replace(file, formatted.as_bytes()).map_err(|e| {
                Failure::unwritable(format!("{} cannot be written: {e}", file.display()))
            })?;
            say(&format!("formatted {}", file.display()))?;
        }
    }
    Ok(exit)
}

/// Writes beside the file and renames, so that a full disk leaves the old one.
fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let target = file.canonicalize()?; // the file itself when this is a link
    let folder = target.parent().unwrap_or(Path::new("."));
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::write(&temporary, content)
        .and_then(|()| {
            std::fs::set_permissions(&temporary, std::fs::metadata(&target)?.permissions())
        })
        .and_then(|()| std::fs::rename(&temporary, &target));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
