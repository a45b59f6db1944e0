//! Which names files in a bundle may have: those that mean the same on every system, and only inside of the bundle.

use std::collections::HashMap;

use retouch_graph::problem::Code;

use super::Error;

/// The longest path, in bytes: what a ustar header holds.
pub const MAX_PATH: usize = 255;
/// The longest name of a file or folder, in bytes.
const MAX_NAME: usize = 200;
/// How many folders deep.
const MAX_DEPTH: usize = 32;

/// Characters that show nothing, or turn the order of others around.
fn hidden(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// What is wrong with a name, if anything.
fn fault_of_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("a name in it is empty");
    }
    if name == "." || name == ".." {
        return Some("`.` and `..` are not allowed");
    }
    if name.len() > MAX_NAME {
        return Some("a name in it is too long");
    }
    if name.contains('\\') {
        return Some("`\\` is not allowed");
    }
    if name.contains(['<', '>', ':', '"', '|', '?', '*']) {
        return Some("`< > : \" | ? *` are not allowed");
    }
    if name.contains(|c: char| c.is_control() || hidden(c)) {
        return Some("characters that cannot be seen are not allowed");
    }
    retouch_graph::output_path::fault_of_name(name)
}

/// What is wrong with a path, if anything.
#[must_use]
pub fn fault(path: &str) -> Option<&'static str> {
    if path.starts_with('/') {
        return Some("absolute paths are not allowed");
    }
    if path.len() > MAX_PATH {
        return Some("it is too long");
    }
    if path.split('/').count() > MAX_DEPTH {
        return Some("it is too deep");
    }
    path.split('/').find_map(fault_of_name)
}

/// Checks a path.
///
/// # Errors
/// When it is not allowed.
pub fn check(path: &str) -> Result<(), Error> {
    match fault(path) {
        None => Ok(()),
        Some(why) => Err(Error::refused(
            Code::BundleName,
            format!("the path `{}`: {why}", path.escape_debug()),
        )),
    }
}

/// The paths of a bundle, which must not get into each other's way on a system that ignores case.
#[derive(Debug, Default)]
pub struct Paths {
    /// Files as `false`, folders as `true`, in lower case, with how they are written.
    known: HashMap<String, (bool, String)>,
}

impl Paths {
    /// Adds the path of a file.
    ///
    /// # Errors
    /// When it is not allowed, is there already, or would be both a file and a folder.
    pub fn add(&mut self, path: &str) -> Result<(), Error> {
        check(path)?;
        let clash = |other: &str| {
            let message = if other == path {
                format!("it contains `{path}` twice")
            } else {
                format!("`{path}` and `{other}` conflict")
            };
            Error::refused(Code::BundleTwice, message)
        };
        let ends = path.match_indices('/').map(|(at, _)| (at, true));
        for (end, folder) in ends.chain([(path.len(), false)]) {
            let written = &path[..end];
            match self.known.get(&written.to_lowercase()) {
                Some((true, other)) if folder && other == written => {}
                Some((_, other)) => return Err(clash(other)),
                None => {
                    let entry = (folder, written.to_owned());
                    self.known.insert(written.to_lowercase(), entry);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_mean_something_else_somewhere_are_refused() {
        for path in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "./a",
            "a/./b",
            "..",
            "../a",
            "a/../b",
            "a\\b",
            "C:a",
            "C:/a",
            "a\0b",
            "a\nb",
            "a.",
            "a ",
            "con",
            "NUL.txt",
            "com1.png",
            "LPT9",
            "a/aux/b",
            "a\u{202e}gnp.exe",
            "a*b",
            "COM¹",
        ] {
            assert!(fault(path).is_some(), "{path:?}");
        }
        assert!(fault(&"a".repeat(201)).is_some());
        assert!(fault(&["a"; 33].join("/")).is_some());
        assert!(fault(&["aaaaaaaaaaaaaaa"; 17].join("/")).is_some());
        for path in [
            "a",
            "a/b.png",
            "é/ü 1.png",
            "console.png",
            ".hidden",
            "a..b",
            "comic",
            "com",
        ] {
            assert_eq!(fault(path), None, "{path:?}");
        }
    }

    #[test]
    fn no_two_paths_get_into_each_others_way() {
        let clash = |first: &str, second: &str| {
            let mut paths = Paths::default();
            paths.add(first).unwrap();
            paths.add(second).is_err()
        };
        assert!(clash("a", "a") && clash("a", "A") && clash("a/b", "A/c"));
        assert!(clash("a", "a/b") && clash("a/b", "a"));
        assert!(!clash("a/b", "a/c"));
    }
}
