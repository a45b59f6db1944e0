//! `retouch lsp`.

use std::io;
use std::sync::mpsc;

use crate::lsp::{serve, wire};
use crate::{Exit, Failure, session};

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
                    "error: standard input is no stream of messages: {error}"
                ));
            }
            let _ = to.send(wire::Incoming::End); // the session may be over
        })
        .map_err(|e| Failure::failed(format!("a thread cannot be started: {e}")))?;
    serve(&engine, &from, Some(aside), &mut crate::output::protocol())
        .map_err(|e| Failure::failed(format!("standard output cannot be written: {e}")))
}
