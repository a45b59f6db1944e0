//! Paths of models on a hub: `hf://owner/name[@revision][/path/in/repo]`.
//!
//! Here they are only read and written. The [`Files`](crate::Files) that the engine is given decide what they lead to.

use std::fmt;
use std::path::{Path, PathBuf};

/// The prefix of such a path. `Path` joins its parts with one `/`, so one is enough.
const BEGINNING: &str = "hf:/";
/// The revision that is read when none is named, as in the hub's own programs.
const MAIN: &str = "main";
/// The most characters of an owner's and a model's name together, as on the hub.
const MOST_NAME: usize = 96;
/// The most characters of a revision or a file's path.
const MOST: usize = 1024;

/// Whether a path leads to a hub, and not into the file system.
#[must_use]
pub fn is_remote(path: &Path) -> bool {
    path.as_os_str()
        .as_encoded_bytes()
        .starts_with(BEGINNING.as_bytes())
}

/// The path that `text` is in a file of `folder`: relative to it unless it is absolute or leads to a hub. `~` at the
/// beginning is the home folder of the user.
#[must_use]
pub fn join(folder: &Path, text: impl AsRef<Path>) -> PathBuf {
    let text = text.as_ref();
    if is_remote(text) {
        tidy(text)
    } else if let (Ok(rest), Some(home)) = (text.strip_prefix("~"), std::env::home_dir()) {
        home.join(rest)
    } else {
        folder.join(text)
    }
}

/// The one way to write a path to a hub: `hf://` and single slashes. `..` stays, as it has no meaning there.
pub(crate) fn tidy(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    let rest: Vec<&str> = text
        .get(BEGINNING.len()..)
        .unwrap_or_default()
        .split(['/', std::path::MAIN_SEPARATOR])
        .filter(|part| !part.is_empty())
        .collect();
    PathBuf::from(format!("hf://{}", rest.join("/")))
}

/// A model on a hub, or a file or folder of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The owner.
    pub owner: String,
    /// The name.
    pub name: String,
    /// The branch, tag or commit, when one is named.
    pub revision: Option<String>,
    /// The file or folder in it, with `/`; empty: all of it.
    pub file: String,
}

impl Address {
    /// Reads a path.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(path: &Path) -> Result<Self, String> {
        let text = path.to_str().ok_or("it is not Unicode")?;
        let rest = text
            .strip_prefix(BEGINNING)
            .ok_or("it does not begin with `hf://`")?
            .trim_start_matches('/');
        if rest.len() > MOST {
            return Err("it is too long".to_owned());
        }
        let mut parts = rest.trim_end_matches('/').split('/');
        let owner = parts.next().unwrap_or_default();
        let Some(named) = parts.next() else {
            return Err("the owner or the name is missing".to_owned());
        };
        let (name, revision) = match named.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (named, None),
        };
        for (part, what) in [(owner, "owner"), (name, "name")] {
            if !is_name(part) {
                return Err(format!(
                    "`{}` is not a valid {what} on a hub: only letters, digits, `-`, `_` and `.` are allowed",
                    part.escape_debug()
                ));
            }
        }
        if owner.len() + name.len() > MOST_NAME {
            return Err("owner and name are too long".to_owned());
        }
        let mut rest: Vec<&str> = parts.collect();
        let mut revision = revision.map(|text| text.replace("%2F", "/").replace("%2f", "/"));
        // A pull request's and a conversion's branch have names of several parts, which the hub's programs take as
        // they are.
        if let Some(first) = revision.as_mut()
            && first == "refs"
            && matches!(rest.first(), Some(&("pr" | "convert")))
            && rest.len() >= 2
        {
            *first = format!("refs/{}/{}", rest[0], rest[1]);
            rest.drain(..2);
        }
        if let Some(revision) = &revision
            && !is_revision(revision)
        {
            return Err(format!(
                "`{}` is not a revision: a branch, a tag or a commit follows `@`",
                revision.escape_debug()
            ));
        }
        if let Some(part) = rest.iter().find(|part| !is_part(part)) {
            return Err(format!(
                "`{}` is not allowed in a path in a repository",
                part.escape_debug()
            ));
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision,
            file: rest.join("/"),
        })
    }

    /// `owner/name`.
    #[must_use]
    pub fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The revision that is asked for.
    #[must_use]
    pub fn wanted(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The path of the whole model.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        let whole = Self {
            file: String::new(),
            ..self.clone()
        };
        PathBuf::from(whole.to_string())
    }

    /// The path of the same file in another revision.
    #[must_use]
    pub fn at(&self, revision: &str) -> PathBuf {
        let other = Self {
            revision: Some(revision.to_owned()),
            ..self.clone()
        };
        PathBuf::from(other.to_string())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}/{}", self.owner, self.name)?;
        if let Some(revision) = &self.revision {
            let branch = revision.starts_with("refs/pr/") || revision.starts_with("refs/convert/");
            if branch && revision.matches('/').count() == 2 {
                write!(f, "@{revision}")?;
            } else {
                write!(f, "@{}", revision.replace('/', "%2F"))?;
            }
        }
        if !self.file.is_empty() {
            write!(f, "/{}", self.file)?;
        }
        Ok(())
    }
}

/// Whether a text can be an owner's or a model's name on the hub.
fn is_name(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty()
        && text.chars().all(sound)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether a text can be a branch, a tag or a commit, and a path below a folder of refs.
fn is_revision(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '/');
    text.len() <= 255
        && text.chars().all(sound)
        && text
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with(['.', '-']) && !part.contains(".."))
}

/// Whether a text can be the name of a file or folder in a repository, here and on every other system.
#[must_use]
pub fn is_part(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text != "."
        && text != ".."
        && !text.contains(['/', '\\', ':', '?', '#', '%', '"', '*', '<', '>', '|'])
        && !text.contains(char::is_control)
}

/// Whether a text is the full name of a commit.
#[must_use]
pub fn is_commit(text: &str) -> bool {
    text.len() == 40
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(Path::new(text))
    }

    #[test]
    fn a_tilde_is_the_home_folder() {
        let folder = Path::new("/somewhere");
        let home = std::env::home_dir().unwrap();
        assert_eq!(join(folder, "~/models/a"), home.join("models/a"));
        assert_eq!(join(folder, "~"), home.join(""));
        for other in ["~a/b", "a/~/b", "a~"] {
            assert_eq!(join(folder, other), folder.join(other));
        }
    }

    #[test]
    fn an_address_reads_as_it_is_written() {
        for (text, repo, wanted, file) in [
            ("hf://a/b", "a/b", "main", ""),
            ("hf://a/b@v1.0", "a/b", "v1.0", ""),
            (
                "hf://a/b@main/unet/config.json",
                "a/b",
                "main",
                "unet/config.json",
            ),
            ("hf://a/b@refs/pr/3/x.bin", "a/b", "refs/pr/3", "x.bin"),
            ("hf://a/b@feature%2Fx/y", "a/b", "feature/x", "y"),
            ("hf://A-1/b_c.d/e f", "A-1/b_c.d", "main", "e f"),
        ] {
            let address = parse(text).unwrap();
            assert_eq!(
                (
                    address.repo().as_str(),
                    address.wanted(),
                    address.file.as_str()
                ),
                (repo, wanted, file)
            );
            assert_eq!(address.to_string(), text);
            assert_eq!(parse(&text.replacen("//", "/", 1)).unwrap(), address);
        }
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(
            parse("hf://a/b/unet").unwrap().at(commit),
            Path::new("hf://a/b@0123456789abcdef0123456789abcdef01234567/unet")
        );
        assert!(is_commit(commit) && !is_commit(&commit.to_uppercase()) && !is_commit("0123"));
    }

    #[test]
    fn what_could_leave_the_cache_or_the_request_is_no_address() {
        for text in [
            "hf://",
            "hf://a",
            "hf://../b",
            "hf://a/..",
            "hf://a/b/..",
            "hf://a/b/../c",
            "hf://a/b@",
            "hf://a/b@..",
            "hf://a/b@../x",
            "hf://a/b@-x",
            "hf://a/b@%2Fetc",
            "hf://a/b@x%2F..%2Fy",
            "hf://a/b@x y",
            "hf://a/b/c\\d",
            "hf://a/b/c?d",
            "hf://a/b/c#d",
            "hf://a/b/%2e%2e",
            "hf://a/b/c\nd",
            "hf://a--b/c",
            "hf://a b/c",
            "hf://a/b/./c",
            "hf://a/.b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&format!("hf://a/b/{}", "x".repeat(2000))).is_err());
    }

    #[test]
    fn a_path_to_a_hub_is_relative_to_no_folder() {
        let folder = Path::new("/home/x");
        assert_eq!(join(folder, "hf://a//b/"), Path::new("hf://a/b"));
        assert_eq!(join(folder, "hf.txt"), Path::new("/home/x/hf.txt"));
        let text = crate::base::paths::normal(Path::new("hf://a/b/../c"));
        assert_eq!(text.to_str(), Some("hf://a/b/../c"));
    }
}
