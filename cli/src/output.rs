//! Standard output, which carries results alone.

use std::io::Write;

use crate::Failure;

/// Prints a line of results.
///
/// # Errors
/// When standard output is closed: there is nobody to go on for.
pub fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .map_err(|e| match e.kind() {
            // `retouch nodes | head`: whoever reads has seen enough, and that is no fault to talk about.
            std::io::ErrorKind::BrokenPipe => std::process::exit(crate::Exit::Failed as i32),
            _ => Failure::unwritable(format!("standard output cannot be written: {e}")),
        })
}

/// Prints a line that is no result, on standard error. When nobody reads it the work goes on all the same.
pub fn tell(text: &str) {
    if !text.is_empty() {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }
}
