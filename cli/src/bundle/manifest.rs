//! The manifest: what is in a bundle, with the digest of each file, and which of them is the workflow.

use std::fmt::Write as _;

use retouch_graph::Digest;
use retouch_graph::problem::Code;
use retouch_graph::yaml::{self, Node, Tree};
use serde_json::Value as Json;

use super::names::Paths;
use super::{Error, MANIFEST, MAX_FILES};

/// What stands under `schema:` in a manifest.
pub const SCHEMA: &str = "retouch-bundle/1";

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packed {
    /// Its path in the bundle.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// The BLAKE3 digest of its content.
    pub blake3: Digest,
}

/// What is in a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The version of the program that made it.
    pub tool: String,
    /// The path of the workflow.
    pub workflow: String,
    /// The path of the params that the workflow is to be run with, if it was bundled with any.
    pub params: Option<String>,
    /// The files, sorted by path, the manifest not among them.
    pub files: Vec<Packed>,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::refused(Code::BundleManifest, what)
}

impl Manifest {
    /// The text of the manifest.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let quoted = |text: &str| Json::from(text).to_string();
        let mut text = String::from("# What is in this bundle. `retouch run` runs it.\n");
        let _ = writeln!(text, "schema: {SCHEMA}");
        let _ = writeln!(text, "retouch: {}", quoted(&self.tool));
        let _ = writeln!(text, "workflow: {}", quoted(&self.workflow));
        if let Some(params) = &self.params {
            let _ = writeln!(text, "params: {}", quoted(params));
        }
        text.push_str("files:\n");
        for file in &self.files {
            let _ = writeln!(
                text,
                "  - {{path: {}, size: {}, blake3: \"{}\"}}",
                quoted(&file.path),
                file.size,
                retouch_graph::digest::hex(&file.blake3)
            );
        }
        text
    }

    /// Reads a manifest; its paths are checked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let source = yaml::decode(MANIFEST, bytes)
            .map_err(|problem| wrong(format!("its manifest: {}", problem.message())))?;
        let mut problems = Vec::new();
        let tree = yaml::parse(&source, &mut problems);
        if let Some(problem) = problems.first() {
            let (line, column) = problem.line_column();
            return Err(wrong(format!(
                "its manifest, {line}:{column}: {}",
                problem.message()
            )));
        }
        let entries = match tree.map(|tree| tree.node) {
            Some(Node::Map(entries)) => entries,
            _ => return Err(wrong("its manifest is not a map")),
        };
        let get = |name: &str| {
            let entry = entries.iter().find(|(key, _)| key.text == name);
            entry.map(|(_, value)| value)
        };
        let text = |name: &str| match get(name) {
            Some(value) => match value.as_text() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(wrong(format!(
                    "`{name}` in its manifest is a text, not {}",
                    value.describe()
                ))),
            },
            None => Ok(None),
        };
        let due =
            |name: &str| text(name)?.ok_or_else(|| wrong(format!("its manifest has no `{name}`")));
        let schema = due("schema")?;
        if schema != SCHEMA {
            return Err(Error::refused(
                Code::BundleSchema,
                format!(
                    "its schema is `{}`; this program reads `{SCHEMA}`",
                    schema.escape_debug()
                ),
            )
            .help("it was made by another version of Retouch: use that one"));
        }
        const KEYS: [&str; 5] = ["schema", "retouch", "workflow", "params", "files"];
        if let Some((key, _)) = entries.iter().find(|(key, _)| !KEYS.contains(&&*key.text)) {
            let name = key.text.escape_debug();
            return Err(wrong(format!("a manifest has no `{name}`")));
        }
        let Some(Node::Seq(items)) = get("files").map(|value| &value.node) else {
            return Err(wrong("its manifest has no list of `files`"));
        };
        if items.len() > MAX_FILES {
            return Err(Error::refused(
                Code::BundleLimit,
                format!(
                    "it has {} files; at most {MAX_FILES} are taken",
                    items.len()
                ),
            ));
        }
        let mut paths = Paths::default();
        paths.add(MANIFEST)?;
        let mut files = Vec::with_capacity(items.len());
        for item in items {
            let file = packed(item)?;
            paths.add(&file.path)?;
            files.push(file);
        }
        files.sort();
        let manifest = Self {
            tool: due("retouch")?,
            workflow: due("workflow")?,
            params: text("params")?,
            files,
        };
        let named = [Some(&manifest.workflow), manifest.params.as_ref()];
        for name in named.into_iter().flatten() {
            if manifest.file(name).is_none() {
                let name = name.escape_debug();
                return Err(wrong(format!(
                    "its manifest names `{name}`, and lists no such file"
                )));
            }
        }
        Ok(manifest)
    }

    /// The file of that path.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&Packed> {
        let at = self
            .files
            .binary_search_by(|file| file.path.as_str().cmp(path))
            .ok()?;
        self.files.get(at)
    }

    /// The bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum: u64, file| sum.saturating_add(file.size))
    }
}

fn packed(item: &Tree) -> Result<Packed, Error> {
    let Node::Map(entries) = &item.node else {
        return Err(wrong("a file in its manifest is not a map"));
    };
    let (mut path, mut size, mut digest) = (None, None, None);
    for (key, value) in entries {
        match key.text.as_str() {
            "path" => path = value.as_text().map(str::to_owned),
            "size" => {
                size = match value.node {
                    Node::Int(bytes) => u64::try_from(bytes).ok(),
                    _ => None,
                }
            }
            "blake3" => {
                digest = value.as_text().and_then(retouch_graph::digest::parse_hex);
            }
            other => {
                let name = other.escape_debug();
                return Err(wrong(format!("a file in a manifest has no `{name}`")));
            }
        }
    }
    match (path, size, digest) {
        (Some(path), Some(size), Some(blake3)) => Ok(Packed { path, size, blake3 }),
        _ => Err(wrong(
            "a file in its manifest lacks a sound `path`, `size` or `blake3`",
        )),
    }
}
