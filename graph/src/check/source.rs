//! Reading workflow files and parameter files.

use std::path::Path;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::files::Files;
use crate::syntax::yaml;

/// Reads a file that the command line names. That there is none is a fault of the command line; what is in it is the file's.
pub(crate) fn read_argument(files: &dyn Files, name: &str, path: &Path) -> Result<Source, Problem> {
    read(files, name, path).map_err(|problem| match problem.code() {
        Code::FileUnreadable => problem.of_argument(),
        _ => problem,
    })
}

/// Reads a workflow or a parameter file.
pub(crate) fn read(files: &dyn Files, name: &str, path: &Path) -> Result<Source, Problem> {
    // A checkpoint given by mistake is not read in full to find that it is not a workflow.
    let result = files
        .read_head(path, yaml::MAX_BYTES + 1)
        .map(|(bytes, _)| bytes);
    match result {
        Ok(bytes) if is_picture(&bytes) => Err(Problem::new(
            Code::NotUtf8,
            &Source::new(name, ""),
            Span::default(),
            format!("`{name}` is a picture and not a workflow"),
        )
        .help("of a picture that was made here: `retouch replay FILE` draws it again, `retouch extract FILE` gives its workflow")),
        Ok(bytes) => yaml::decode(name, &bytes),
        Err(error) => Err(Problem::new(
            Code::FileUnreadable,
            &Source::new(name, ""),
            Span::default(),
            format!("`{name}` cannot be read: {error}"),
        )
        .help("check the path")),
    }
}

/// Whether a file begins like a PNG, JPEG or WebP.
fn is_picture(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x89PNG\r\n\x1a\n")
        || bytes.starts_with(b"\xff\xd8\xff")
        || bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP")
}
