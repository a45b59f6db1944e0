//! `retouch lsp`.

use std::io;
use std::sync::{Arc, mpsc};

use retouch_graph::{Files, RedirectedFiles};
use retouch_lsp::{End, serve, wire};

use crate::args::ModelsArgs;
use crate::hub::{HubFiles, Mode, Settings};
use crate::{Exit, Failure, session, sharing};

/// What the server reads files through, as `retouch check` does.
#[must_use]
pub fn wrapped(files: Arc<dyn Files>) -> Arc<dyn Files> {
    // Models on hubs are read as far as they are in the cache: nothing is fetched while the user types.
    let settings = Settings::of_environment(false);
    let files: Arc<dyn Files> = Arc::new(HubFiles::new(files, settings, Mode::Look, None));
    let models = sharing::models(&ModelsArgs::default());
    match models.is_empty() {
        true => files,
        false => Arc::new(RedirectedFiles::new(files, models)),
    }
}

/// Serves an editor on standard input and output.
///
/// # Errors
/// When standard output is closed.
pub fn lsp() -> Result<Exit, Failure> {
    let engine = session::engine("cpu")?;
    let (to, from) = mpsc::channel();
    let aside = to.clone();
    // The thread ends with the program: it may be waiting for a client that says nothing more.
    std::thread::Builder::new()
        .name("reader".to_owned())
        .spawn(move || {
            if let Err(error) = wire::read(&mut io::stdin().lock(), &to) {
                crate::output::tell(&format!(
                    "error: standard input is not a stream of messages: {error}"
                ));
            }
            let _ = to.send(wire::Incoming::End); // the session may be over
        })
        .map_err(|e| Failure::failed(format!("a thread cannot be started: {e}")))?;
    let output = &mut crate::output::protocol();
    match serve(&engine, &wrapped, &from, Some(aside), output) {
        Ok(End::Proper) => Ok(Exit::Done),
        Ok(End::Cut) => Ok(Exit::Failed),
        Err(e) => Err(Failure::failed(format!(
            "standard output cannot be written: {e}"
        ))),
    }
}
