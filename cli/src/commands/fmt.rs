//! `retouch fmt`.

use std::io::Read;

use retouch_graph::problem::Source;
use retouch_graph::write::rewrite;
use retouch_graph::{files, yaml};

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
        // One byte more than a workflow may have is enough to refuse it.
        let most = yaml::MAX_BYTES as u64 + 1;
        let mut text = Vec::new();
        if stdin {
            std::io::stdin().take(most).read_to_end(&mut text)
        } else {
            files::open(file).and_then(|file| file.take(most).read_to_end(&mut text))
        }
        .map_err(|e| Failure::unreadable_argument(file, e))?;
        let name = if stdin {
            "standard input".into()
        } else {
            file.display().to_string()
        };
        let formatted = if text.len() > yaml::MAX_BYTES {
            yaml::decode(&name, &text).map(|source| (source.text().to_owned(), String::new()))
        } else {
            let text = String::from_utf8(text)
                .map_err(|_| Failure::unreadable(format!("{name} is not UTF-8 text")))?;
            retouch_graph::format::format(&Source::new(name, text.clone()))
                .map(|formatted| (text, formatted))
        };
        let (text, formatted) = match formatted {
            Ok(formatted) => formatted,
            Err(problem) => {
                session::tell_problems([&problem]);
                exit = exit.max(Exit::Faults);
                continue;
            }
        };
        if args.check {
            if formatted != text {
                say(&file.display().to_string())?;
                exit = exit.max(Exit::Failed);
            }
        } else if stdin {
            say_raw(&formatted)?;
        } else if formatted != text {
            let cannot = |why: &dyn std::fmt::Display| {
                Failure::unwritable(format!("{} cannot be written: {why}", file.display()))
            };
            if !rewrite(file, text.as_bytes(), formatted.as_bytes()).map_err(|e| cannot(&e))? {
                return Err(cannot(&"it was changed meanwhile").help("run the command again"));
            }
            say(&format!("formatted {}", file.display()))?;
        }
    }
    Ok(exit)
}
