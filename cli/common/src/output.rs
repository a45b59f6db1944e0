//! All that the program prints passes here: standard output, which carries results alone, and standard error.
//!
//! Text may come from files of strangers, so it is printed with its control characters made visible ([`crate::safe`]).
//! There are three exceptions: colours of our own ([`Styled`]), JSON, whose strings are escaped instead and mean the same,
//! and text that another program is to read as it is ([`say_raw`]). `clippy.toml` refuses the ways past this module.

#![allow(clippy::disallowed_methods)] // it is the one place that may

use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal, StdoutLock, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Failure;
use crate::safe::{Styled, cut, json, safe};

/// Longest line on standard error, in characters; longer ones are cut.
const LONGEST: usize = 4000;

/// Whether the reader of the JSON lines went away.
static GONE: AtomicBool = AtomicBool::new(false);
/// Why a JSON line could not be written, but for a reader that went away.
static LOST: Mutex<Option<String>> = Mutex::new(None);

fn unwritable(error: &io::Error) -> Failure {
    Failure::unwritable(format!("standard output cannot be written: {error}"))
}

fn write(text: &str, end: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(end.as_bytes())?;
    out.flush()
}

fn say_as_it_is(text: &str, end: &str) -> Result<(), Failure> {
    write(text, end).map_err(|e| match e.kind() {
        // `retouch nodes | head`: the reader has seen enough, which is no fault to report.
        ErrorKind::BrokenPipe => std::process::exit(crate::Exit::Failed as i32),
        _ => unwritable(&e),
    })
}

/// Prints a line of results.
///
/// # Errors
/// When standard output cannot be written. When its reader went away, the program ends.
pub fn say(text: &str) -> Result<(), Failure> {
    say_as_it_is(&safe(text), "\n")
}

/// Prints a JSON document as a result.
///
/// # Errors
/// As [`say`].
pub fn say_json(text: &str) -> Result<(), Failure> {
    say_as_it_is(&json(text), "\n")
}

/// Prints text that another program reads as it is: a workflow, a graph, a script. On a terminal it is made safe.
///
/// # Errors
/// As [`say`].
pub fn say_raw(text: &str) -> Result<(), Failure> {
    say_as_it_is(&raw(text, io::stdout().is_terminal()), "")
}

fn raw(text: &str, terminal: bool) -> Cow<'_, str> {
    match terminal {
        true => safe(text),
        false => Cow::Borrowed(text),
    }
}

/// Prints a JSON line of what happens. When its reader went away, that is reported once on standard error and the command
/// goes on: its files are wanted all the same.
///
/// # Errors
/// When standard output cannot be written for another reason; [`lost`] remembers it for those who cannot stop.
pub fn say_line(text: &str) -> Result<(), Failure> {
    if GONE.load(Ordering::Relaxed) {
        return Ok(());
    }
    match write(&json(text), "\n") {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {
            if !GONE.swap(true, Ordering::Relaxed) {
                tell(
                    "warning: the reader of the JSON lines is gone; the command continues without it",
                );
            }
            Ok(())
        }
        written => written.map_err(|e| {
            let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
            lost.get_or_insert_with(|| e.to_string());
            unwritable(&e)
        }),
    }
}

/// The failure of a JSON line that was not written.
#[must_use]
pub fn lost() -> Option<Failure> {
    let lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.as_ref()
        .map(|error| Failure::unwritable(format!("JSON lines could not be written: {error}")))
}

/// Standard output as the language server's stream of messages.
pub fn protocol() -> StdoutLock<'static> {
    io::stdout().lock()
}

/// Prints a line that is not a result, on standard error. Failures to write are ignored.
pub fn tell(text: &str) {
    if !text.is_empty() {
        let lines: Vec<Cow<'_, str>> = text.split('\n').map(|line| cut(line, LONGEST)).collect();
        let _ = writeln!(io::stderr().lock(), "{}", safe(&lines.join("\n")));
    }
}

/// The same of text with colours.
pub fn tell_styled(text: &Styled) {
    let text = text.as_str().trim_end_matches('\n');
    if !text.is_empty() {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// Whether standard error is a terminal.
#[must_use]
pub fn terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether standard error is coloured: on a terminal, unless `NO_COLOR` is set; with `CLICOLOR_FORCE` anywhere.
#[must_use]
pub fn colour() -> bool {
    let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    std::env::var_os("NO_COLOR").is_none() && (forced || terminal())
}

/// Prints panics as everything else; the message of one may hold anything.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        tell(&format!("thread '{name}' {panic}{trace}"));
    }));
}

/// Where the log goes: standard error, with no control characters but colours of its own.
#[derive(Clone, Copy, Debug)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        match colour() {
            true => io::stderr().write_all(Styled::new(&text).as_str().as_bytes())?,
            false => io::stderr().write_all(safe(&text).as_bytes())?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_for_programs_is_made_safe_on_a_terminal_alone() {
        assert_eq!(raw("a\u{1b}[2J", false), "a\u{1b}[2J");
        assert_eq!(raw("a\u{1b}[2J", true), "a␛[2J");
    }
}
