//! The open documents, what they read, and what is known of files.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use lsp_types::{Position, Range, TextDocumentContentChangeEvent, Uri};
use retouch_graph::paths::normal;
use retouch_graph::registry::Registry;
use retouch_graph::{Arity, Engine, Files, Problem, Source, Span, yaml};

use super::Wrap;
use super::index::{Index, Item, NodeItem, Occurrence};
use super::overlay::Overlay;
use super::text::{self, Encoding, Lines};

/// Levels of `use` that the type of a reference is followed through.
const MAX_LEVELS: usize = 16;
/// Files of the workspace folders that are searched for uses of a graph.
const MAX_FILES: usize = 2_000;
/// Folders of the workspace that are looked into for them.
const MAX_FOLDERS: usize = 5_000;

/// An open document.
#[derive(Debug)]
pub struct Document {
    /// As the editor names it.
    pub uri: Uri,
    /// The editor's number of this text.
    pub version: i32,
    /// The text.
    pub source: Source,
    /// Its lines.
    pub lines: Lines,
    /// Whether it is, or was since it was opened, a workflow.
    pub workflow: bool,
    /// The language that the editor says it is in.
    language: String,
    /// The files that its last check looked at.
    pub(super) reads: HashSet<PathBuf>,
}

/// An output that a reference can name.
#[derive(Clone, Debug)]
pub struct Output {
    /// The port's name.
    pub name: String,
    /// The types of value that it may give; empty when they are not known.
    pub types: Vec<String>,
    /// What it is.
    pub docs: String,
    /// Whether it is not made at every run.
    pub optional: bool,
    /// The file endings that it can be saved as.
    pub formats: Vec<String>,
}

/// Everything that the server knows.
pub struct Workspace {
    /// Reads and checks through the overlay.
    pub(super) engine: Engine,
    pub(super) overlay: Arc<Overlay>,
    /// The open documents by path.
    pub(super) documents: BTreeMap<PathBuf, Document>,
    /// The folders that are open in the editor.
    pub folders: Vec<PathBuf>,
    /// What columns count.
    pub encoding: Encoding,
    /// Names of files, `*` for anything, that are workflows even without a `schema:`.
    pub names: Vec<String>,
    /// The documents that are to be checked again.
    pub(super) dirty: BTreeSet<PathBuf>,
    /// Those of them whose text is another one than at the last check.
    pub(super) edited: BTreeSet<PathBuf>,
    /// What the last check of each document found.
    pub(super) found: BTreeMap<PathBuf, Vec<Problem>>,
    /// The diagnostics that were published last, by file.
    pub(super) told: BTreeMap<PathBuf, Vec<lsp_types::Diagnostic>>,
    indices: RefCell<HashMap<PathBuf, Rc<Index>>>,
}

impl Workspace {
    /// Starts with nothing open; the engine says which ops there are.
    #[must_use]
    pub fn new(engine: &Engine, wrap: Wrap<'_>) -> Self {
        Self::over(engine, wrap, Overlay::default())
    }

    /// As [`Workspace::new`], with the overlay that files are read through.
    #[must_use]
    pub(super) fn over(engine: &Engine, wrap: Wrap<'_>, overlay: Overlay) -> Self {
        let overlay = Arc::new(overlay);
        let files = wrap(Arc::<Overlay>::clone(&overlay));
        Self {
            engine: engine.clone().with_files(files),
            overlay,
            documents: BTreeMap::new(),
            folders: Vec::new(),
            encoding: Encoding::Utf16,
            names: Vec::new(),
            dirty: BTreeSet::new(),
            edited: BTreeSet::new(),
            found: BTreeMap::new(),
            told: BTreeMap::new(),
            indices: RefCell::default(),
        }
    }

    /// The ops.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        self.engine.registry()
    }

    /// The path under which a document is known; one that is no file yet stands in the first workspace folder.
    #[must_use]
    pub fn path(&self, uri: &Uri) -> PathBuf {
        text::path_of(uri).unwrap_or_else(|| {
            let folder = self
                .folders
                .first()
                .cloned()
                .or_else(|| std::env::current_dir().ok())
                .unwrap_or_default();
            folder.join(uri.as_str().replace('/', "_"))
        })
    }

    /// The URI of a path: the editor's own spelling when the document is open.
    #[must_use]
    pub fn uri(&self, path: &Path) -> Option<Uri> {
        match self.documents.get(path) {
            Some(document) => Some(document.uri.clone()),
            None => text::uri_of(path),
        }
    }

    // ---- documents ----

    /// Opens a document.
    pub fn open(&mut self, uri: Uri, language: &str, version: i32, text: String) {
        let path = self.path(&uri);
        let document = Document {
            uri,
            version,
            lines: Lines::of(&text),
            source: Source::new(path.display().to_string(), text),
            workflow: false,
            language: language.to_owned(),
            reads: HashSet::new(),
        };
        self.documents.insert(path.clone(), document);
        self.changed(&path);
    }

    /// Applies edits to a document, one after the other; whether it is open.
    pub fn change(
        &mut self,
        uri: &Uri,
        version: i32,
        changes: Vec<TextDocumentContentChangeEvent>,
    ) -> bool {
        let path = self.path(uri);
        let encoding = self.encoding;
        let Some(document) = self.documents.get_mut(&path) else {
            return false;
        };
        let mut text = document.source.text().to_owned();
        for change in changes {
            match change.range {
                Some(range) => {
                    let lines = Lines::of(&text);
                    let start = lines.offset(&text, range.start, encoding);
                    let end = lines.offset(&text, range.end, encoding).max(start);
                    text.replace_range(start..end, &change.text);
                }
                None => text = change.text,
            }
        }
        document.version = version;
        document.lines = Lines::of(&text);
        document.source = Source::new(path.display().to_string(), text);
        self.changed(&path);
        true
    }

    /// Closes a document; what is on the disk counts again.
    pub fn close(&mut self, uri: &Uri) {
        let path = self.path(uri);
        if self.documents.remove(&path).is_none() {
            return;
        }
        self.overlay.close(&path);
        self.found.remove(&path);
        self.edited.remove(&path);
        // Not to be checked, but its diagnostics are to be withdrawn.
        self.dirty.insert(path.clone());
        self.indices.borrow_mut().remove(&path);
        self.concerned(&path);
    }

    /// Something on the disk changed: everything is checked again.
    pub fn disk_changed(&mut self) {
        self.dirty.extend(self.documents.keys().cloned());
    }

    /// Puts the texts of all open documents in place again, after something that tried another text broke off.
    pub fn restore(&self) {
        for (path, document) in &self.documents {
            self.overlay.set(path, document.source.text());
        }
    }

    fn changed(&mut self, path: &Path) {
        let Some(document) = self.documents.get_mut(path) else {
            return;
        };
        let text = document.source.text();
        document.workflow |= document.language == "retouch"
            || has_schema(text)
            || path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| self.names.iter().any(|pattern| matches(pattern, name)));
        self.overlay.set(path, text);
        self.dirty.insert(path.to_owned());
        self.edited.insert(path.to_owned());
        self.concerned(path);
    }

    /// Marks the documents whose check looked at a file.
    pub(super) fn concerned(&mut self, path: &Path) {
        for (other, document) in &self.documents {
            if document.reads.contains(path) {
                self.dirty.insert(other.clone());
            }
        }
    }

    /// The open document, when it is a workflow, its path, and the byte of a position.
    #[must_use]
    pub fn workflow_at(&self, uri: &Uri, position: Position) -> Option<(PathBuf, usize)> {
        let path = self.path(uri);
        let document = self.documents.get(&path)?;
        let offset = document
            .lines
            .offset(document.source.text(), position, self.encoding);
        document.workflow.then_some((path, offset))
    }

    // ---- files ----

    /// What a file declares: as the editor has it, or as the disk has it. `None` when it cannot be read.
    #[must_use]
    pub fn index(&self, path: &Path) -> Option<Rc<Index>> {
        let path = normal(path);
        let known = self.indices.borrow().get(&path).cloned();
        let source = match self.documents.get(&path) {
            Some(document) => document.source.clone(),
            None => {
                let (bytes, _) = self.overlay.read_head(&path, yaml::MAX_BYTES + 1).ok()?;
                if let Some(known) = &known
                    && known.source.text().as_bytes() == bytes
                {
                    return Some(Rc::clone(known));
                }
                yaml::decode(&path.display().to_string(), &bytes).ok()?
            }
        };
        if let Some(known) = known
            && known.source.same(&source)
        {
            return Some(known);
        }
        let index = Rc::new(Index::of(&source, self.registry()));
        self.indices.borrow_mut().insert(path, Rc::clone(&index));
        Some(index)
    }

    /// The file that a path in another file means.
    #[must_use]
    pub fn beside(&self, file: &Path, path: &str) -> PathBuf {
        let folder = file.parent().unwrap_or(Path::new(""));
        normal(&folder.join(path))
    }

    /// The file that a node uses, and what it declares.
    #[must_use]
    pub fn used(&self, file: &Path, node: &NodeItem) -> Option<(PathBuf, Rc<Index>)> {
        let path = self.beside(file, node.uses.as_ref()?);
        let index = self.index(&path)?;
        Some((path, index))
    }

    /// The range of a span of a file.
    #[must_use]
    pub fn range(&self, index: &Index, path: &Path, span: Span) -> Range {
        let text = index.source.text();
        match self.documents.get(path) {
            Some(document) if document.source.same(&index.source) => {
                document.lines.range(text, span, self.encoding)
            }
            _ => Lines::of(text).range(text, span, self.encoding),
        }
    }

    /// The workflows that use a file, open ones and those below the workspace folders, without the file itself.
    #[must_use]
    pub fn users(&self, used: &Path) -> Vec<(PathBuf, Rc<Index>)> {
        let mut files: BTreeSet<PathBuf> = self.documents.keys().cloned().collect();
        files.extend(self.files());
        let stem = used
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        files
            .into_iter()
            .filter(|path| path != used)
            .filter_map(|path| {
                // A file that doesn't name it need not be parsed.
                let named = match self.documents.get(&path) {
                    Some(document) => document.source.text().contains(stem),
                    None => self
                        .overlay
                        .read_head(&path, yaml::MAX_BYTES + 1)
                        .is_ok_and(|(bytes, _)| String::from_utf8_lossy(&bytes).contains(stem)),
                };
                let index = named.then(|| self.index(&path)).flatten()?;
                let uses = index.nodes.iter().any(|node| {
                    node.uses
                        .as_ref()
                        .is_some_and(|uses| self.beside(&path, uses) == used)
                });
                uses.then_some((path, index))
            })
            .collect()
    }

    /// The YAML files below the workspace folders, hidden folders and build outputs left out.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = self.folders.clone();
        let mut looked = 0;
        while let Some(folder) = folders.pop() {
            looked += 1;
            if looked > MAX_FOLDERS || found.len() >= MAX_FILES {
                tracing::warn!("the workspace has more files than are searched");
                break;
            }
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let path = entry.path();
                // A link is not followed: it may lead back.
                let Ok(kind) = entry.file_type() else {
                    continue;
                };
                if name.starts_with('.') || matches!(&*name, "target" | "node_modules") {
                    continue;
                }
                if kind.is_dir() {
                    folders.push(path);
                } else if is_yaml(&path) {
                    found.push(path);
                }
            }
        }
        found
    }

    // ---- types ----

    /// The outputs of a node.
    #[must_use]
    pub fn outputs(&self, file: &Path, node: &NodeItem) -> Vec<Output> {
        self.outputs_within(file, node, MAX_LEVELS)
    }

    fn outputs_within(&self, file: &Path, node: &NodeItem, levels: usize) -> Vec<Output> {
        if let Some(entry) = node.op.as_ref().and_then(|op| self.registry().entry(op)) {
            return entry
                .outputs()
                .iter()
                .map(|port| Output {
                    name: port.name.to_owned(),
                    types: port.types.iter().map(|&kind| kind.to_owned()).collect(),
                    docs: port.docs.to_owned(),
                    optional: port.arity == Arity::Optional,
                    formats: port
                        .formats
                        .unwrap_or_default()
                        .iter()
                        .map(|&ending| ending.to_owned())
                        .collect(),
                })
                .collect();
        }
        if levels == 0 {
            return Vec::new();
        }
        let Some((path, index)) = self.used(file, node) else {
            return Vec::new();
        };
        index
            .outputs
            .iter()
            .map(|output| {
                let from = output
                    .value
                    .as_ref()
                    .and_then(|value| self.referred(&path, &index, value, levels - 1));
                Output {
                    name: output.name.clone(),
                    docs: output.help.clone().unwrap_or_default(),
                    optional: from.as_ref().is_some_and(|from| from.optional),
                    formats: from
                        .as_ref()
                        .map_or_else(Vec::new, |from| from.formats.clone()),
                    types: from.map_or_else(Vec::new, |from| from.types),
                }
            })
            .collect()
    }

    /// The output that a reference comes to; of an input only the type is known.
    #[must_use]
    pub fn referred(
        &self,
        file: &Path,
        index: &Index,
        reference: &str,
        levels: usize,
    ) -> Option<Output> {
        let body = reference.strip_prefix('$')?;
        let (name, port) = match body.split_once('.') {
            Some((name, port)) => (name, Some(port)),
            None => (body, None),
        };
        if name == "inputs" {
            let decl = index.input(port?)?;
            return Some(Output {
                name: decl.name.clone(),
                types: vec![decl.kind.clone()],
                docs: decl.help.clone().unwrap_or_default(),
                optional: decl.optional,
                formats: Vec::new(),
            });
        }
        let outputs = self.outputs_within(file, index.node(name)?, levels);
        match port {
            None => outputs.into_iter().next(),
            Some(port) => outputs.into_iter().find(|output| output.name == port),
        }
    }

    /// Whether a place really names what it seems to: a value under `with:` is a template only where a text is due.
    #[must_use]
    pub fn is_real(&self, file: &Path, index: &Index, one: &Occurrence) -> bool {
        let Some((node, key)) = &one.within else {
            return true;
        };
        // Of a file that cannot be read it is taken to be one: braces are hardly ever anything else.
        index
            .node(node)
            .and_then(|node| self.used(file, node))
            .is_none_or(|(_, used)| {
                used.given(key)
                    .is_some_and(|(decl, _)| decl.kind == "string")
            })
    }

    /// What a place means in the end, and in which file: a key under `with:` is an input of the used file, a port of
    /// a node that uses a file is an output of that file.
    #[must_use]
    pub fn meaning(
        &self,
        file: &Path,
        index: &Rc<Index>,
        item: &Item,
    ) -> (PathBuf, Rc<Index>, Item) {
        let own = || (file.to_owned(), Rc::clone(index), item.clone());
        let (node, name, port) = match item {
            Item::With { node, key } => (node, key, false),
            Item::Port { node, port } => (node, port, true),
            _ => return own(),
        };
        let Some((path, used)) = index.node(node).and_then(|node| self.used(file, node)) else {
            return own();
        };
        let meant = if port {
            used.output(name).map(|_| Item::Output(name.clone()))
        } else {
            used.given(name).map(|(_, item)| item)
        };
        match meant {
            Some(meant) => (path, used, meant),
            None => own(),
        }
    }
}

/// Whether a file's ending is one of YAML's.
#[must_use]
pub fn is_yaml(path: &Path) -> bool {
    path.extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| matches!(ending, "yaml" | "yml"))
}

/// Whether a text says that it is a workflow: a `schema:` of the outermost map that begins with `retouch`.
fn has_schema(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').lines().any(|line| {
        line.strip_prefix("schema:").is_some_and(|value| {
            value
                .trim_start_matches([' ', '"', '\''])
                .starts_with("retouch")
        })
    })
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(head) else {
        return false;
    };
    let starts = name.char_indices().map(|(at, _)| at).chain([name.len()]);
    starts.into_iter().any(|at| matches(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workflow_is_told_by_its_schema_or_its_name() {
        assert!(has_schema("# c\nschema: retouch/v1\n"));
        assert!(has_schema("schema: \"retouch/v9\"\n"));
        assert!(!has_schema("schema: other\nx:\n  schema: retouch/v1\n"));
        assert!(matches("*.flow.yaml", "a.flow.yaml"));
        assert!(matches("w*", "w"));
        assert!(!matches("*.flow.yaml", "a.yaml"));
        assert!(!matches("a.yaml", "ba.yaml"));
    }
}
