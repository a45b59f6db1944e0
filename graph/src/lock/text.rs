//! The text of a lock file, written and read.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value as Json;

use crate::base::digest::{hex, parse_hex};
use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::base::remote;
use crate::files::Files;
use crate::lock::content::{Lock, LockedFile, LockedKind, SCHEMA, unreadable};
use crate::lock::paths::is_locked_path;
use crate::syntax::yaml::{self, Node, Tree};

impl Lock {
    /// The text of the lock file: one file a line.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let quoted = |text: &str| Json::from(text).to_string();
        let mut text = String::from(
            "# What the workflow reads, written by `retouch lock`. `retouch run --locked` accepts nothing else.\n",
        );
        let _ = writeln!(text, "schema: {SCHEMA}");
        let _ = writeln!(text, "retouch: {}", quoted(&self.tool));
        let _ = writeln!(text, "workflow: {}", quoted(&self.workflow));
        if self.files.is_empty() {
            text.push_str("files: []\n");
            return text;
        }
        text.push_str("files:\n");
        for file in &self.files {
            let _ = write!(
                text,
                "  - {{kind: {}, path: {}",
                file.kind,
                quoted(&file.path)
            );
            if file.elsewhere {
                text.push_str(", elsewhere: true");
            }
            if let Some(model) = &file.model {
                let _ = write!(text, ", model: {}", quoted(model));
            }
            if let Some(commit) = &file.commit {
                let _ = write!(text, ", commit: {}", quoted(commit));
            }
            let _ = writeln!(
                text,
                ", size: {}, blake3: \"{}\"}}",
                file.size,
                hex(&file.blake3)
            );
        }
        text
    }

    /// Reads the lock file at `path`; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not a lock.
    pub fn read(path: &Path, files: &dyn Files) -> Result<Option<Self>, Problems> {
        match files.read_head(path, yaml::MAX_BYTES + 1) {
            Ok((bytes, _)) => Self::parse(&path.display().to_string(), &bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(path, &error).into()),
        }
    }

    /// Reads the text of a lock file; `name` is what faults call it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Problems> {
        let source = yaml::decode(name, bytes)?;
        let mut problems = Vec::new();
        let tree = yaml::parse(&source, &mut problems);
        if !problems.is_empty() {
            return Err(Problems::new(problems));
        }
        let mut reader = LockReader {
            source: &source,
            problems,
        };
        let lock = tree.and_then(|tree| reader.lock(&tree));
        match lock {
            Some(lock) if reader.problems.is_empty() => Ok(lock),
            _ => Err(Problems::new(reader.problems)),
        }
    }
}

struct LockReader<'a> {
    source: &'a Source,
    problems: Vec<Problem>,
}

impl LockReader<'_> {
    fn fault(&mut self, code: Code, span: Span, message: impl Into<String>) {
        self.problems.push(
            Problem::new(code, self.source, span, message)
                .help("write a new lock with `retouch lock FILE`"),
        );
    }

    fn wrong(&mut self, span: Span, message: impl Into<String>) {
        self.fault(Code::LockUnreadable, span, message);
    }

    fn text(&mut self, tree: &Tree, name: &str) -> Option<String> {
        let text = tree.as_text().map(str::to_owned);
        if text.is_none() {
            let message = format!("`{name}` is a text, not {}", tree.describe());
            self.wrong(tree.span, message);
        }
        text
    }

    fn lock(&mut self, tree: &Tree) -> Option<Lock> {
        let Node::Map(entries) = &tree.node else {
            self.wrong(
                tree.span,
                format!("a lock file is a map, not {}", tree.describe()),
            );
            return None;
        };
        // The schema first: of another one nothing else is known.
        match entries.iter().find(|(key, _)| key.text == "schema") {
            Some((_, value)) if value.as_text() == Some(SCHEMA) => {}
            Some((_, value)) => {
                let message = format!(
                    "the lock has an unsupported schema: {}; this program reads `{SCHEMA}`",
                    value.describe()
                );
                self.fault(Code::LockSchema, value.span, message);
                return None;
            }
            None => {
                self.wrong(tree.span, format!("`schema: {SCHEMA}` is missing"));
                return None;
            }
        }
        let (mut tool, mut workflow, mut files) = (None, None, None);
        for (key, value) in entries {
            match key.text.as_str() {
                "schema" => {}
                "retouch" => tool = self.text(value, "retouch"),
                "workflow" => workflow = self.text(value, "workflow"),
                "files" => match &value.node {
                    Node::Seq(items) => {
                        files = Some(items.iter().filter_map(|item| self.file(item)).collect());
                    }
                    _ => {
                        let message = format!("`files` is a list, not {}", value.describe());
                        self.wrong(value.span, message);
                    }
                },
                other => self.wrong(key.span, format!("a lock has no `{other}`")),
            }
        }
        for (name, there) in [
            ("retouch", tool.is_some()),
            ("workflow", workflow.is_some()),
            ("files", files.is_some()),
        ] {
            if !there && !entries.iter().any(|(key, _)| key.text == name) {
                self.wrong(tree.span, format!("the lock has no `{name}`"));
            }
        }
        let mut files: Vec<LockedFile> = files?;
        files.sort();
        Some(Lock {
            tool: tool?,
            workflow: workflow?,
            files,
        })
    }

    fn path(&mut self, tree: &Tree, name: &str) -> Option<String> {
        let text = self.text(tree, name)?;
        // The folder of the workflow itself may be a model's, which is written `.`; so may one above it.
        let folder = name == "model" && text == ".";
        if folder || is_locked_path(&text) {
            return Some(text);
        }
        let message = format!(
            "`{}` is not a valid path in a lock: it must be relative, with `/`, and `..` only at its beginning",
            text.escape_debug()
        );
        self.wrong(tree.span, message);
        None
    }

    fn file(&mut self, tree: &Tree) -> Option<LockedFile> {
        let Node::Map(entries) = &tree.node else {
            let message = format!("a file of a lock is a map, not {}", tree.describe());
            self.wrong(tree.span, message);
            return None;
        };
        let (mut kind, mut path, mut size, mut digest) = (None, None, None, None);
        let (mut model, mut elsewhere, mut commit) = (None, false, None);
        let before = self.problems.len();
        for (key, value) in entries {
            match key.text.as_str() {
                "path" => path = self.path(value, "path"),
                "model" => model = self.path(value, "model"),
                "kind" => {
                    kind = value.as_text().and_then(LockedKind::parse);
                    if kind.is_none() {
                        let message = format!(
                            "`kind` is workflow, params, asset or model, not {}",
                            value.describe()
                        );
                        self.wrong(value.span, message);
                    }
                }
                "commit" => {
                    commit = (value.as_text().map(str::to_owned))
                        .filter(|commit| remote::is_commit(commit));
                    if commit.is_none() {
                        self.wrong(value.span, "`commit` is a commit of 40 hexadecimal digits");
                    }
                }
                "elsewhere" => match value.node {
                    Node::Bool(flag) => elsewhere = flag,
                    _ => self.wrong(value.span, "`elsewhere` is true or false"),
                },
                "size" => match value.node {
                    Node::Int(bytes) if bytes >= 0 => size = Some(bytes.unsigned_abs()),
                    _ => self.wrong(value.span, "`size` is a number of bytes"),
                },
                "blake3" => {
                    digest = value.as_text().and_then(parse_hex);
                    if digest.is_none() {
                        self.wrong(value.span, "`blake3` is a digest of 64 hexadecimal digits");
                    }
                }
                other => self.wrong(key.span, format!("a file of a lock has no `{other}`")),
            }
        }
        for (name, there) in [
            ("kind", kind.is_some()),
            ("path", path.is_some()),
            ("size", size.is_some()),
            ("blake3", digest.is_some()),
        ] {
            if !there && self.problems.len() == before {
                self.wrong(tree.span, format!("the file has no `{name}`"));
            }
        }
        Some(LockedFile {
            kind: kind?,
            path: path?,
            elsewhere,
            model,
            commit,
            size: size?,
            blake3: digest?,
        })
    }
}
