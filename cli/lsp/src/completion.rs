//! What can be written at a place, in files that need not be YAML yet.

use std::path::Path;
use std::rc::Rc;

use lsp_types::{
    CompletionItem, CompletionItemKind, CompletionList, CompletionTextEdit, Documentation,
    MarkupContent, MarkupKind, Position, TextEdit, Uri,
};
use retouch_graph::params::ParamType;
use retouch_graph::paths::normal;
use retouch_graph::registry::{Entry, ParamInfo};
use retouch_graph::yaml::{MapKey as Key, Node, Tree};
use retouch_graph::{Arity, Span, workflow};

use super::hover::{self, key_help};
use super::index::{Decl, Index, NodeItem};
use super::outline::{self, Cursor, Role, Step};
use super::workspace::{Workspace, is_yaml};

/// Files of a folder that are offered at most.
const MAX_FILES: usize = 500;

/// A key of the language, and what stands behind it.
type LanguageKey = (&'static str, &'static str);

const TOP: &[LanguageKey] = &[
    ("schema", " retouch/v1"),
    ("name", " "),
    ("description", " "),
    ("params", ""),
    ("inputs", ""),
    ("nodes", ""),
    ("outputs", ""),
    ("sweep", ""),
];

/// The keys of `sweep:`.
const SWEEP: &[LanguageKey] = &[
    ("workflow", " "),
    ("matrix", ""),
    ("zip", " "),
    ("include", ""),
    ("exclude", ""),
    ("grid", ""),
    ("table", " "),
    ("report", ""),
];

/// The keys of a sweep's `report:`.
const REPORT: &[LanguageKey] = &[
    ("tables", " "),
    ("images", " "),
    ("save", " "),
    ("title", " "),
    ("columns", " "),
    ("baseline", " "),
    ("claims", " "),
    ("worst", " "),
    ("pictures", " "),
];

/// The keys of a sweep's `grid:`.
const SHEET: &[LanguageKey] = &[
    ("rows", " "),
    ("columns", " "),
    ("output", " "),
    ("save", " "),
    ("cell", " "),
    ("filter", " "),
    ("gap", " "),
    ("background", " "),
    ("table", " "),
    ("scores", " "),
    ("order", " "),
];

/// Something to offer.
struct Offer {
    label: String,
    insert: String,
    kind: CompletionItemKind,
    detail: String,
    docs: String,
    /// Lower ones first.
    rank: u8,
}

impl Offer {
    fn new(label: impl Into<String>, kind: CompletionItemKind) -> Self {
        let label = label.into();
        Self {
            insert: label.clone(),
            label,
            kind,
            detail: String::new(),
            docs: String::new(),
            rank: 1,
        }
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    fn docs(mut self, docs: impl Into<String>) -> Self {
        self.docs = docs.into();
        self
    }

    fn rank(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
    }

    /// A key: with its colon, unless that is there.
    fn key(name: &str, behind: &str, colon: bool) -> Self {
        let mut offer = Self::new(name, CompletionItemKind::PROPERTY);
        if !colon {
            offer.insert = format!("{name}:{behind}");
        }
        offer
    }
}

/// A place where something is completed.
struct Place<'a> {
    workspace: &'a Workspace,
    file: &'a Path,
    index: Rc<Index>,
    text: &'a str,
    offset: usize,
    cursor: Cursor,
    /// The keys that the map around a key has already.
    given: Vec<String>,
    /// Whether a colon stands behind what is typed.
    colon: bool,
}

impl Workspace {
    /// What can be written at a position. `None` in a document that is no workflow.
    #[must_use]
    pub fn complete(&self, uri: &Uri, position: Position) -> Option<CompletionList> {
        let file = self.path(uri);
        let document = self.documents.get(&file)?;
        let text = document.source.text();
        let offset = document.lines.offset(text, position, self.encoding);
        if !document.workflow && !is_blank(text) {
            return None;
        }
        let Some(cursor) = outline::cursor(text, offset) else {
            return Some(CompletionList::default());
        };
        let rest = text.get(offset..).unwrap_or("");
        let name = rest.len() - rest.trim_start_matches(is_name_char).len();
        let colon = rest[name..]
            .trim_start_matches([' ', '\t'])
            .starts_with(':');
        let given = if cursor.role == Role::Key {
            keys_at(&outline::read(text), &cursor.path, offset)
        } else {
            Vec::new()
        };
        let place = Place {
            workspace: self,
            file: &file,
            index: self.index(&file)?,
            text,
            offset,
            cursor,
            given,
            colon,
        };
        let (mut offers, span) = place.offers();
        // `op:` and `-` need a blank behind them to be a key and an item.
        let bare = place.cursor.role == Role::Value
            && !place.cursor.quoted
            && text
                .get(..span.start)
                .is_some_and(|before| before.ends_with([':', '-']));
        if bare {
            for offer in &mut offers {
                offer.insert.insert(0, ' ');
            }
        }
        let range = document.lines.range(text, span, self.encoding);
        let items = offers
            .into_iter()
            .enumerate()
            .map(|(number, offer)| CompletionItem {
                sort_text: Some(format!("{}{number:05}", offer.rank)),
                filter_text: Some(offer.label.clone()),
                kind: Some(offer.kind),
                detail: (!offer.detail.is_empty()).then_some(offer.detail),
                documentation: documentation(offer.docs),
                text_edit: Some(CompletionTextEdit::Edit(TextEdit::new(range, offer.insert))),
                label: offer.label,
                ..CompletionItem::default()
            })
            .collect();
        Some(CompletionList {
            is_incomplete: false,
            items,
        })
    }
}

fn documentation(markdown: String) -> Option<Documentation> {
    let value = Some(markdown).filter(|text| !text.is_empty())?;
    let kind = MarkupKind::Markdown;
    Some(Documentation::MarkupContent(MarkupContent { kind, value }))
}

/// Whether nothing is written yet but comments and the beginning of a first key.
fn is_blank(text: &str) -> bool {
    let mut lines = text
        .lines()
        .map(|line| line.trim_start_matches('\u{feff}').trim_end())
        .filter(|line| !line.is_empty() && !line.starts_with('#') && *line != "---");
    let first = lines.next();
    lines.next().is_none() && first.is_none_or(|line| line.chars().all(is_name_char))
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// The keys of the map at a path, without the one that is being typed.
fn keys_at(tree: &Tree, path: &[Step], offset: usize) -> Vec<String> {
    let mut at = tree;
    for step in path {
        let next = match (&at.node, step) {
            (Node::Map(entries), Step::Key(key)) => entries
                .iter()
                .find(|(known, _)| known.text == *key)
                .map(|(_, tree)| tree),
            _ => None,
        };
        let Some(next) = next else {
            return Vec::new();
        };
        at = next;
    }
    let typed = |key: &Key| key.span.start <= offset && offset <= key.span.end;
    match &at.node {
        Node::Map(entries) => entries
            .iter()
            .filter(|(key, _)| !typed(key))
            .map(|(key, _)| key.text.clone())
            .collect(),
        _ => Vec::new(),
    }
}

impl Place<'_> {
    /// What has been typed.
    fn typed(&self) -> &str {
        self.text.get(self.cursor.start..self.offset).unwrap_or("")
    }

    /// From a byte to the end of what is written there.
    fn span(&self, start: usize, goes_on: impl Fn(char) -> bool) -> Span {
        let rest = self.text.get(self.offset..).unwrap_or("");
        let length = rest.len() - rest.trim_start_matches(goes_on).len();
        Span::new(start, self.offset + length)
    }

    fn offers(&self) -> (Vec<Offer>, Span) {
        let path: Vec<&str> = self
            .cursor
            .path
            .iter()
            .map(|step| match step {
                Step::Key(key) => key.as_str(),
                Step::Item => "*",
            })
            .collect();
        if self.cursor.role == Role::Key {
            let span = self.span(self.cursor.start, is_name_char);
            let offers = match path.as_slice() {
                [] => self.keys(TOP),
                ["params", _] => self.declaration_keys(false),
                ["inputs", _] => self.declaration_keys(true),
                ["nodes", node] => self.fields(node),
                ["nodes", node, "with"] => self.with_keys(node),
                ["outputs", _] => self.keys(&[("value", " "), ("save", " ")]),
                ["sweep"] => self.keys(SWEEP),
                ["sweep", "matrix"] | ["sweep", "include" | "exclude", "*"] => self.swept(true),
                ["sweep", "grid"] => self.keys(SHEET),
                ["sweep", "report"] => self.keys(REPORT),
                // A value that is to stand below its key.
                ["nodes", _, _] if self.typed().is_empty() => return self.value(&path),
                _ => Vec::new(),
            };
            return (offers, span);
        }
        self.value(&path)
    }

    fn value(&self, path: &[&str]) -> (Vec<Offer>, Span) {
        let word = self.span(self.cursor.start, |c| {
            is_name_char(c) || matches!(c, '$' | '.' | '%')
        });
        let offers = match path {
            ["schema"] => vec![Offer::new(workflow::SCHEMA, CompletionItemKind::CONSTANT)],
            ["params", _, "type"] => types(false, self.workspace),
            ["inputs", _, "type"] => types(true, self.workspace),
            ["inputs", _, "optional"] => booleans(None),
            ["params", name, "default"] => self.defaults(self.index.param(name)),
            ["inputs", name, "default"] => self.defaults(self.index.input(name)),
            ["nodes", _, "op"] => self.ops(),
            ["nodes", _, "use"] => return self.paths(true),
            ["nodes", node, "with", key] => return self.with_value(node, key),
            ["nodes", node, field] | ["nodes", node, field, "*"] => {
                return self.field_value(node, field);
            }
            ["outputs", _, "value"] => self.links(None, &[]),
            ["sweep", "grid", "rows" | "columns"]
            | ["sweep", "grid", "rows" | "columns", "*"]
            | ["sweep", "zip"]
            | ["sweep", "zip", "*"]
            | ["sweep", "zip", "*", "*"] => self.swept(false),
            ["sweep", "grid", "output" | "table"]
            | ["sweep", "report", "tables" | "images"]
            | ["sweep", "report", "tables" | "images", "*"] => self.swept_outputs(),
            ["sweep", "workflow"] => return self.paths(true),
            ["outputs", name, "save"] => return self.save(name, word),
            _ => Vec::new(),
        };
        (offers, word)
    }

    // ---- keys ----

    fn keys(&self, keys: &[LanguageKey]) -> Vec<Offer> {
        keys.iter()
            .filter(|(name, _)| !self.given.iter().any(|given| given == name))
            .map(|(name, behind)| Offer::key(name, behind, self.colon).docs(key_help(name)))
            .collect()
    }

    fn declaration_keys(&self, input: bool) -> Vec<Offer> {
        let Some(Step::Key(name)) = self.cursor.path.get(1) else {
            return Vec::new();
        };
        let decl = if input {
            self.index.input(name)
        } else {
            self.index.param(name)
        };
        let kind = decl
            .map(|decl| decl.kind.as_str())
            .filter(|kind| !kind.is_empty());
        let value = kind.map(ParamType::parse);
        let mut keys = vec![("type", " ")];
        // Of what type is not said yet: all keys are offered.
        if !matches!(value, Some(None)) {
            keys.push(("default", " "));
        }
        if matches!(
            value,
            None | Some(Some(ParamType::Int | ParamType::Float | ParamType::Seed))
        ) {
            keys.extend([("min", " "), ("max", " ")]);
        }
        if matches!(value, None | Some(Some(ParamType::Choice))) {
            keys.push(("values", " "));
        }
        keys.push(("help", " "));
        if input {
            keys.push(("optional", " "));
        }
        self.keys(&keys)
    }

    fn fields(&self, node: &str) -> Vec<Offer> {
        let has = |key: &str| self.given.iter().any(|given| given == key);
        if has("use") {
            return self.keys(&[("with", "")]);
        }
        let entry = self.index.node(node).and_then(|node| self.entry(node));
        let Some(entry) = entry.filter(|_| has("op")) else {
            return if has("op") {
                Vec::new() // of an op that is not known nothing is known
            } else {
                self.keys(&[("op", " "), ("use", " ")])
            };
        };
        let mut offers = Vec::new();
        for port in entry.inputs().iter().filter(|port| !has(port.name)) {
            let note = match port.arity {
                Arity::One => "required link",
                Arity::Optional => "optional link",
                Arity::Many => "list of links",
            };
            offers.push(
                Offer::key(port.name, " ", self.colon)
                    .detail(format!("{note}: {}", port.types.join(" or ")))
                    .docs(hover::port(port))
                    .rank(if port.arity == Arity::One { 0 } else { 2 }),
            );
        }
        for param in entry.params().iter().filter(|param| !has(&param.name)) {
            offers.push(
                Offer::key(&param.name, " ", self.colon)
                    .detail(hover::takes(param))
                    .docs(hover::param(param))
                    .rank(if param.required { 1 } else { 3 }),
            );
        }
        offers
    }

    fn with_keys(&self, node: &str) -> Vec<Offer> {
        let Some((_, used)) = self
            .index
            .node(node)
            .and_then(|node| self.workspace.used(self.file, node))
        else {
            return Vec::new();
        };
        let inputs = used.inputs.iter().map(|decl| ("input", decl));
        let params = used.params.iter().map(|decl| ("param", decl));
        inputs
            .chain(params)
            .filter(|(_, decl)| !self.given.contains(&decl.name))
            .map(|(what, decl)| {
                let needed = !decl.optional && decl.default.is_none();
                let note = if needed { "required " } else { "" };
                Offer::key(&decl.name, " ", self.colon)
                    .detail(format!("{note}{what}: {}", decl.kind))
                    .docs(hover::declaration(what, decl))
                    .rank(if needed { 0 } else { 1 })
            })
            .collect()
    }

    /// The workflow that the file's sweep is of: this one, or the one that it names.
    fn of_sweep<T>(&self, see: impl Fn(&Index) -> T) -> Option<T> {
        match &self.index.sweeps {
            None => Some(see(&self.index)),
            Some(path) => {
                let folder = self.file.parent()?;
                let index = self.workspace.index(&normal(&folder.join(path)))?;
                Some(see(&index))
            }
        }
    }

    /// The params that a sweep can vary, as keys or as values.
    fn swept(&self, keys: bool) -> Vec<Offer> {
        let offers = self.of_sweep(|index| {
            (index.params.iter())
                .filter(|decl| !keys || !self.given.contains(&decl.name))
                .map(|decl| {
                    let offer = if keys {
                        Offer::key(&decl.name, " ", self.colon)
                    } else {
                        Offer::new(decl.name.clone(), CompletionItemKind::VARIABLE)
                    };
                    offer
                        .detail(format!("param: {}", decl.kind))
                        .docs(hover::declaration("param", decl))
                })
                .collect()
        });
        offers.unwrap_or_default()
    }

    fn swept_outputs(&self) -> Vec<Offer> {
        let offers = self.of_sweep(|index| {
            (index.outputs.iter())
                .map(|output| Offer::new(output.name.clone(), CompletionItemKind::VALUE))
                .collect()
        });
        offers.unwrap_or_default()
    }

    // ---- values ----

    fn entry(&self, node: &NodeItem) -> Option<&Entry> {
        let op = node.op.as_ref()?;
        self.workspace.registry().entry(op).map(|entry| &**entry)
    }

    fn ops(&self) -> Vec<Offer> {
        self.workspace
            .registry()
            .iter()
            .map(|entry| {
                Offer::new(entry.op(), CompletionItemKind::FUNCTION)
                    .detail(hover::one_line(entry.summary()))
                    .docs(hover::entry(entry))
            })
            .collect()
    }

    fn field_value(&self, node: &str, field: &str) -> (Vec<Offer>, Span) {
        let word = self.span(self.cursor.start, |c| {
            is_name_char(c) || matches!(c, '$' | '.' | '%')
        });
        let Some(entry) = self.index.node(node).and_then(|node| self.entry(node)) else {
            return (Vec::new(), word);
        };
        if let Some(port) = entry.inputs().iter().find(|port| port.name == field) {
            let types: Vec<&str> = port.types.to_vec();
            return (self.links(Some(node), &types), word);
        }
        let Some(param) = entry.params().iter().find(|param| param.name == field) else {
            return (Vec::new(), word);
        };
        if param.is_template()
            && let Some(offers) = self.template(&[])
        {
            return offers;
        }
        let reference = self.typed().starts_with('$');
        if param.is_path() && !reference {
            return self.paths(false);
        }
        if self.cursor.quoted && !reference {
            return (Vec::new(), word);
        }
        let mut offers = if reference {
            Vec::new()
        } else {
            values_of(param)
        };
        offers.extend(self.param_references(|kind| param.fits(kind)));
        (offers, word)
    }

    fn with_value(&self, node: &str, key: &str) -> (Vec<Offer>, Span) {
        let word = self.span(self.cursor.start, |c| {
            is_name_char(c) || matches!(c, '$' | '.' | '%')
        });
        let used = self
            .index
            .node(node)
            .and_then(|node| self.workspace.used(self.file, node));
        let Some((decl, _)) = used.as_ref().and_then(|(_, used)| used.given(key)) else {
            return (Vec::new(), word);
        };
        let Some(kind) = ParamType::parse(&decl.kind) else {
            return (self.links(Some(node), &[decl.kind.as_str()]), word);
        };
        if kind == ParamType::String
            && let Some(offers) = self.template(&[])
        {
            return offers;
        }
        let reference = self.typed().starts_with('$');
        if kind == ParamType::Path && !reference {
            return self.paths(false);
        }
        let mut offers = if reference || self.cursor.quoted {
            Vec::new()
        } else {
            self.defaults(Some(decl))
        };
        if !self.cursor.quoted || reference {
            offers.extend(self.param_references(|other| {
                other == kind
                    || kind == ParamType::String && other == ParamType::Choice
                    || matches!(
                        (kind, other),
                        (ParamType::Float, ParamType::Int)
                            | (ParamType::Steps | ParamType::Seed, ParamType::Int)
                    )
            }));
        }
        (offers, word)
    }

    /// References to params, and to inputs that are values; those that fit come first.
    fn param_references(&self, fits: impl Fn(ParamType) -> bool) -> Vec<Offer> {
        let mut offers = Vec::new();
        let lists = [
            ("params", "param", &self.index.params),
            ("inputs", "input", &self.index.inputs),
        ];
        for (prefix, what, list) in lists {
            for decl in list {
                let kind = ParamType::parse(&decl.kind);
                if kind.is_none() && !decl.kind.is_empty() {
                    continue; // a link
                }
                offers.push(
                    Offer::new(
                        format!("${prefix}.{}", decl.name),
                        CompletionItemKind::VARIABLE,
                    )
                    .detail(format!("{what}: {}", decl.kind))
                    .docs(hover::declaration(what, decl))
                    .rank(if kind.is_some_and(&fits) { 1 } else { 5 }),
                );
            }
        }
        offers
    }

    /// References to outputs of nodes and to linked inputs; those that fit come first. No types: everything fits.
    fn links(&self, own: Option<&str>, types: &[&str]) -> Vec<Offer> {
        let mut offers = Vec::new();
        let rank = |kinds: &[String]| {
            if types.is_empty() || kinds.iter().any(|kind| types.contains(&kind.as_str())) {
                0
            } else if kinds.is_empty() {
                2
            } else {
                5
            }
        };
        let typed = self.typed();
        for node in &self.index.nodes {
            if own == Some(node.name.as_str()) {
                continue;
            }
            let what = node.op.as_ref().or(node.uses.as_ref());
            let what = what.map_or("", String::as_str);
            let with_port = typed
                .strip_prefix('$')
                .and_then(|typed| typed.strip_prefix(node.name.as_str()))
                .is_some_and(|rest| rest.starts_with('.'));
            for (number, output) in self.workspace.outputs(self.file, node).iter().enumerate() {
                let label = if number == 0 && !with_port {
                    format!("${}", node.name)
                } else {
                    format!("${}.{}", node.name, output.name)
                };
                offers.push(
                    Offer::new(label, CompletionItemKind::REFERENCE)
                        .detail(format!("{} of {what}", output.types.join(" or ")))
                        .docs(hover::output(output))
                        .rank(rank(&output.types)),
                );
            }
        }
        for decl in &self.index.inputs {
            if ParamType::parse(&decl.kind).is_none() {
                offers.push(
                    Offer::new(
                        format!("$inputs.{}", decl.name),
                        CompletionItemKind::REFERENCE,
                    )
                    .detail(format!("input: {}", decl.kind))
                    .docs(hover::declaration("input", decl))
                    .rank(rank(std::slice::from_ref(&decl.kind))),
                );
            }
        }
        offers
    }

    /// The names that a template may have, when a brace is open at the place; `None` when none is.
    fn template(&self, own: &[(&str, &str)]) -> Option<(Vec<Offer>, Span)> {
        let typed = self.typed();
        let mut open = None;
        let mut chars = typed.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                '{' if chars.peek().is_some_and(|(_, next)| *next == '{') => {
                    chars.next();
                }
                '{' => open = Some(at + 1),
                '}' => open = None,
                c if !is_name_char(c) => open = None,
                _ => {}
            }
        }
        let start = self.cursor.start + open?;
        let span = self.span(start, is_name_char);
        let closed = self
            .text
            .get(span.end..)
            .is_some_and(|rest| rest.starts_with('}'));
        let close = |mut offer: Offer| {
            if !closed {
                offer.insert.push('}');
            }
            offer
        };
        let lists = [("param", &self.index.params), ("input", &self.index.inputs)];
        let mut offers = Vec::new();
        for (what, list) in lists {
            for decl in list
                .iter()
                .filter(|decl| ParamType::parse(&decl.kind).is_some())
            {
                let offer = Offer::new(decl.name.as_str(), CompletionItemKind::VARIABLE)
                    .detail(format!("{what}: {}", decl.kind))
                    .docs(hover::declaration(what, decl));
                offers.push(close(offer));
            }
        }
        for (name, docs) in own {
            let offer = Offer::new(*name, CompletionItemKind::VARIABLE).detail(*docs);
            offers.push(close(offer));
        }
        Some((offers, span))
    }

    /// A whole path for an output, by the formats that its value can have, or a name in its template.
    fn save(&self, output: &str, word: Span) -> (Vec<Offer>, Span) {
        let own = [
            ("workflow", "the workflow's name"),
            ("output", "the output's name"),
        ];
        if let Some(offers) = self.template(&own) {
            return offers;
        }
        if !self.typed().is_empty() {
            return (Vec::new(), word);
        }
        let from = self
            .index
            .output(output)
            .and_then(|output| output.value.as_ref())
            .and_then(|value| self.workspace.referred(self.file, &self.index, value, 8));
        let quote = if self.cursor.quoted { "" } else { "\"" };
        let offers = from.map_or_else(Vec::new, |from| {
            from.formats
                .iter()
                .map(|ending| {
                    let path = format!("{quote}{{workflow}}/{{output}}.{ending}{quote}");
                    Offer::new(path, CompletionItemKind::FILE)
                })
                .collect()
        });
        (offers, word)
    }

    /// Files and folders below the file's folder; for `use` YAML files alone.
    fn paths(&self, yaml: bool) -> (Vec<Offer>, Span) {
        let typed = self.typed();
        let (folder, name) = match typed.rfind('/') {
            Some(at) => (&typed[..=at], &typed[at + 1..]),
            None => ("", typed),
        };
        let start = self.offset - name.len();
        let span = self.span(start, |c| {
            !matches!(c, '/' | '"' | '\'' | ',' | '}' | ']' | '#' | '\n' | '\r')
                && !c.is_whitespace()
        });
        let place = self.workspace.beside(self.file, folder);
        let mut offers = Vec::new();
        if folder.is_empty() || folder.ends_with("../") {
            offers.push(Offer::new("../", CompletionItemKind::FOLDER).rank(3));
        }
        let mut names: Vec<(String, bool)> = std::fs::read_dir(&place)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let hidden = name.starts_with('.') && !typed.ends_with('.');
                let path = entry.path();
                // A link counts as what it leads to.
                let is_folder = path.is_dir();
                let fits = is_folder || !yaml || (is_yaml(&path) && path != self.file);
                (fits && !hidden).then_some((name, is_folder))
            })
            .collect();
        names.sort();
        names.truncate(MAX_FILES);
        for (name, is_folder) in names {
            let plain = name
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '+'));
            if !plain
                && !self.cursor.quoted
                && name.contains([
                    ':', '#', ',', '{', '}', '[', ']', '"', '\'', '&', '*', '!', '|', '>', '%',
                    '@', '`',
                ])
            {
                continue; // it would have to be quoted from its beginning
            }
            offers.push(if is_folder {
                Offer::new(format!("{name}/"), CompletionItemKind::FOLDER).rank(2)
            } else {
                Offer::new(name, CompletionItemKind::FILE)
            });
        }
        if !yaml && typed.is_empty() && !self.cursor.quoted {
            offers.extend(self.param_references(|kind| kind == ParamType::Path));
        }
        (offers, span)
    }

    /// What a param of a declared type may be.
    fn defaults(&self, decl: Option<&Decl>) -> Vec<Offer> {
        let Some(decl) = decl else {
            return Vec::new();
        };
        let word = |word: &str| Offer::new(word, CompletionItemKind::ENUM_MEMBER);
        match ParamType::parse(&decl.kind) {
            Some(ParamType::Bool) => booleans(decl.default.as_deref()),
            Some(ParamType::Choice) => decl.values.iter().map(|value| word(value)).collect(),
            Some(ParamType::Seed) => vec![word("random")],
            Some(ParamType::Threshold) => vec![word("otsu"), word("soft")],
            Some(ParamType::Sites) => vec![word("auto"), word("all"), word("none")],
            Some(ParamType::Steps) => vec![word("20%")],
            _ => Vec::new(),
        }
    }
}

fn booleans(default: Option<&str>) -> Vec<Offer> {
    ["true", "false"]
        .into_iter()
        .map(|word| {
            let note = if default == Some(word) { "default" } else { "" };
            Offer::new(word, CompletionItemKind::ENUM_MEMBER).detail(note)
        })
        .collect()
}

/// The words that a parameter may be, its default first.
fn values_of(param: &ParamInfo) -> Vec<Offer> {
    let default = match &param.default {
        Some(serde_json::Value::Null) | None => None,
        Some(serde_json::Value::String(text)) if text.is_empty() => None,
        Some(serde_json::Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    };
    let mut words: Vec<String> = Vec::new();
    if !param.is_template() {
        words.extend(default.clone());
    }
    if param.is_boolean() {
        words.extend(["true".to_owned(), "false".to_owned()]);
    }
    if param.is_seed() {
        words.push("random".to_owned());
    }
    words.extend(param.words());
    let mut offers: Vec<Offer> = Vec::new();
    for word in words {
        if offers.iter().any(|known| known.label == word) {
            continue;
        }
        let note = if default.as_ref() == Some(&word) {
            "default"
        } else {
            ""
        };
        offers.push(
            Offer::new(word, CompletionItemKind::ENUM_MEMBER)
                .detail(note)
                .rank(0),
        );
    }
    offers
}

fn types(input: bool, workspace: &Workspace) -> Vec<Offer> {
    let mut names: Vec<&str> = ParamType::ALL.iter().map(|kind| kind.name()).collect();
    if input {
        for kind in workspace.registry().port_types() {
            if !names.contains(&kind) {
                names.push(kind);
            }
        }
    }
    let values = ParamType::ALL.len();
    names
        .into_iter()
        .enumerate()
        .map(|(number, name)| {
            let what = if number < values { "a value" } else { "a link" };
            Offer::new(name, CompletionItemKind::TYPE_PARAMETER).detail(what)
        })
        .collect()
}
