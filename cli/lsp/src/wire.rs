//! Messages on a pipe: `Content-Length`, a blank line, JSON. What is no message is reported and does not end the session.
//!
//! The messages are those of `lsp-server`, the reading of them is not: its transport ends the session at the first body that
//! is not JSON, and makes room for as many bytes as a header says.

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc;

use lsp_server::Message;
use serde_json::json;

/// The largest message, in bytes: sixteen times the largest workflow.
const MAX_BYTES: usize = 64 << 20;

/// What comes in.
#[derive(Debug)]
pub enum Incoming {
    /// A message.
    Message(Box<Message>),
    /// A body that is no message, and why.
    Malformed(String),
    /// A file was read in the background that checks did not wait for.
    Read(PathBuf),
    /// The client is gone: nothing more comes.
    End,
}

/// Reads messages until the pipe ends, its frame is broken, or the client says `exit`.
///
/// # Errors
/// When the frame of a message cannot be read: where the next one begins is not known.
pub fn read(input: &mut dyn BufRead, to: &mpsc::Sender<Incoming>) -> io::Result<()> {
    while let Some(body) = body(input)? {
        let incoming = match serde_json::from_slice::<Message>(&body) {
            Ok(message) => Incoming::Message(Box::new(message)),
            Err(error) => Incoming::Malformed(error.to_string()),
        };
        let exit = matches!(&incoming, Incoming::Message(message)
            if matches!(&**message, Message::Notification(note) if note.method == "exit"));
        // The client is gone: the session is over.
        if to.send(incoming).is_err() || exit {
            break;
        }
    }
    Ok(())
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn body(input: &mut dyn BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut length = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        // A header is short; what goes on and on is none.
        let mut limited = Read::take(&mut *input, 4096);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let text = std::str::from_utf8(&line)
            .ok()
            .and_then(|text| text.strip_suffix('\n'))
            .ok_or_else(|| broken("a header is not a line of text"))?
            .trim_end_matches('\r');
        if text.is_empty() {
            break;
        }
        let (name, value) = text
            .split_once(':')
            .ok_or_else(|| broken("a header has no colon"))?;
        if name.trim().eq_ignore_ascii_case("content-length") {
            let number = value.trim().parse::<usize>();
            length = Some(number.map_err(|_| broken("Content-Length is not a number"))?);
        }
    }
    let length = length.ok_or_else(|| broken("a message has no Content-Length"))?;
    if length > MAX_BYTES {
        return Err(broken("a message is larger than 64 MiB"));
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    Ok(Some(body))
}

/// Writes a message.
///
/// # Errors
/// When the other side is closed.
pub fn write(output: &mut dyn Write, message: &Message) -> io::Result<()> {
    // Made here and not by the crate, so that a value that is no JSON is an error and no panic.
    let mut value = serde_json::to_value(message).map_err(io::Error::other)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("jsonrpc".to_owned(), json!("2.0"));
    }
    frame(output, &value)
}

/// Answers what is no message: without an id, as none could be read.
///
/// # Errors
/// When the other side is closed.
pub fn refuse(output: &mut dyn Write, why: &str) -> io::Result<()> {
    let code = lsp_server::ErrorCode::ParseError as i32;
    let error = json!({"code": code, "message": format!("invalid message: {why}")});
    frame(
        output,
        &json!({"jsonrpc": "2.0", "id": null, "error": error}),
    )
}

fn frame(output: &mut dyn Write, value: &serde_json::Value) -> io::Result<()> {
    let text = value.to_string();
    write!(output, "Content-Length: {}\r\n\r\n{text}", text.len())?;
    output.flush()
}
