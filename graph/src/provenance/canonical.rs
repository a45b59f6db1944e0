//! A workflow in the one form that says what was run and nothing else: comments, formatting, `x-` keys and what an output
//! does not need are left out, params have the values of the run as their defaults, no path leads through folders that are
//! nobody else's business. Writing it down again gives the same text.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::base::paths::normal;
use crate::base::problem::Source;
use crate::base::remote::{self, Address};
use crate::check::ResolvedParam;
use crate::files::Files;
use crate::lock;
use crate::op::registry::Registry;
use crate::syntax::params::{How, ParamType};
use crate::syntax::template::{self, Piece};
use crate::syntax::workflow::{
    InputKind, NodeBody, NodeDecl, ParamDecl, SCHEMA, SheetDecl, Workflow,
};
use crate::syntax::yaml::{self, Node, Tree};

/// The longest line that a map is written on.
const WIDTH: usize = 110;

/// What of a workflow is written.
pub(crate) struct Form<'a> {
    pub(crate) registry: &'a Registry,
    /// The outputs, and with them what they need; `None`: all of it, for a graph that is used.
    pub(crate) outputs: Option<&'a [&'a str]>,
    /// The values of the run; empty for a graph that is used.
    pub(crate) params: &'a [ResolvedParam],
    /// The cells of a sweep whose contact sheet it is, their paths named already, and how that is laid out.
    pub(crate) sweep: Option<(&'a [IndexMap<String, Json>], &'a SheetDecl)>,
    /// The graphs that are used, by their paths.
    pub(crate) graphs: &'a [(PathBuf, Workflow)],
    /// The folder of this text in the recipe, from the workflow's: empty for the workflow itself.
    pub(crate) folder: &'a Path,
}

/// What the files of a recipe are called: their paths from the workflow's folder where these can be shared, else their
/// last names, each once.
pub(crate) struct Names {
    root: PathBuf,
    named: IndexMap<PathBuf, String>,
    files: Arc<dyn Files>,
}

impl Names {
    pub(crate) fn new(root: &Path, files: Arc<dyn Files>) -> Self {
        Self {
            root: root.to_owned(),
            named: IndexMap::new(),
            files,
        }
    }

    /// The name of what `text` leads to from a folder.
    pub(crate) fn name(&mut self, from: &Path, text: &str) -> String {
        let path = remote::join(from, text);
        let key = whole(&path);
        if let Some(known) = self.named.get(&key) {
            return known.clone();
        }
        let name = self.shared(&path).unwrap_or_else(|| {
            let last = path.file_name().map_or_else(
                || "file".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            );
            let (stem, ending) = match last.rsplit_once('.') {
                Some((stem, ending)) if !stem.is_empty() => (stem, format!(".{ending}")),
                _ => (last.as_str(), String::new()),
            };
            let taken = |name: &str| self.named.values().any(|known| known == name);
            let mut name = last.clone();
            let mut number = 2;
            while taken(&name) {
                name = format!("{stem}-{number}{ending}");
                number += 1;
            }
            name
        });
        self.named.insert(key, name.clone());
        name
    }

    /// The path that others find it by. What is on a hub is named with the commit that was read: a branch moves on.
    fn shared(&self, path: &Path) -> Option<String> {
        if remote::is_remote(path)
            && let Ok(address) = Address::parse(path)
            && let Some(commit) = self.files.commit(path)
        {
            return Some(address.at(&commit).to_string_lossy().into_owned());
        }
        lock::shareable(&self.root, path)
    }

    /// The name of a file that a node reads, and that of what the workflow names: itself, or a folder that it is in.
    pub(crate) fn file(&mut self, path: &Path) -> (String, String) {
        let key = whole(path);
        let named = (self.named.iter())
            .filter(|(known, _)| key.starts_with(known))
            .max_by_key(|(known, _)| known.components().count());
        if let Some((known, name)) = named {
            let rest = key.strip_prefix(known).unwrap_or(Path::new(""));
            let mut file = name.clone();
            for part in rest.components() {
                file.push('/');
                file.push_str(&part.as_os_str().to_string_lossy());
            }
            return (file, name.clone());
        }
        let name = self.name(Path::new(""), &path.to_string_lossy());
        (name.clone(), name)
    }
}

/// A path that is one name for one place, as far as the text tells.
fn whole(path: &Path) -> PathBuf {
    if remote::is_remote(path) {
        return normal(path);
    }
    normal(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

/// A path of a recipe as it is seen from a folder of the recipe; both are written from the workflow's folder.
fn seen_from(folder: &Path, name: &str) -> String {
    if remote::is_remote(Path::new(name)) {
        return name.to_owned();
    }
    let folder: Vec<Component<'_>> = folder.components().collect();
    let target: Vec<Component<'_>> = Path::new(name).components().collect();
    let shared = folder
        .iter()
        .zip(&target)
        .take_while(|(a, b)| a == b)
        .count();
    let mut path: Vec<String> = folder[shared..].iter().map(|_| "..".to_owned()).collect();
    path.extend(
        target[shared..]
            .iter()
            .map(|part| part.as_os_str().to_string_lossy().into_owned()),
    );
    path.join("/")
}

/// Writes a workflow in the canonical form; `None` when something of the run cannot be said in it: a seed that was drawn
/// inside of a graph that is used.
pub(crate) fn canonical(workflow: &Workflow, form: &Form<'_>, names: &mut Names) -> Option<String> {
    let files = names;
    let mut nodes: Vec<(&String, &NodeDecl)> = workflow.nodes.iter().collect();
    if let Some(outputs) = form.outputs {
        let needed = needed(workflow, outputs);
        nodes.retain(|(name, _)| needed.contains(name.as_str()));
    }
    let mut drawn: HashMap<&str, &Json> = HashMap::new();
    for param in form.params {
        if param.from == How::Drawn && !workflow.params.contains_key(&param.name) {
            drawn.insert(&param.name, &param.value);
        }
    }
    let mut written = Vec::new();
    for (name, decl) in &nodes {
        written.push((
            name.as_str(),
            node(workflow, name, decl, form, &mut drawn, files)?,
        ));
    }
    // What is left was drawn in nodes that the output does not need, or where it cannot be said.
    let kept: BTreeSet<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
    if drawn.keys().any(|name| {
        let node = name.split(['/', '.']).next().unwrap_or("");
        kept.contains(node)
    }) {
        return None;
    }
    let outputs: Vec<(&str, Vec<(String, Json)>)> = (workflow.outputs.iter())
        .filter(|(name, _)| (form.outputs).is_none_or(|outputs| outputs.contains(&name.as_str())))
        .map(|(name, decl)| {
            let mut fields = Vec::new();
            if let Some(value) = &decl.value {
                fields.push(("value".to_owned(), Json::from(value.value.as_str())));
            }
            if let (Some(save), None) = (&decl.save, form.sweep) {
                fields.push(("save".to_owned(), Json::from(save.value.as_str())));
            }
            (name.as_str(), fields)
        })
        .collect();
    let mut names = BTreeSet::new();
    for text in written
        .iter()
        .chain(&outputs)
        .flat_map(|(_, fields)| fields)
    {
        named(&text.1, &mut names);
    }
    if let Some((_, sheet)) = form.sweep {
        let save = sheet.save.as_ref().map_or("", |save| save.value.as_str());
        named(&Json::from(save), &mut names);
        sheet
            .fields
            .iter()
            .for_each(|(_, tree)| named(&tree.to_json(), &mut names));
    }
    let swept: BTreeSet<&str> = (form.sweep.iter())
        .flat_map(|(cells, _)| {
            cells
                .iter()
                .flat_map(|cell| cell.keys().map(String::as_str))
        })
        .collect();
    let mut text = format!(
        "schema: {SCHEMA}\nname: {}\n",
        scalar(&Json::from(workflow.name.as_str()))
    );
    let params: Vec<(&str, Vec<(String, Json)>)> = (workflow.params.iter())
        .filter(|(name, _)| {
            form.outputs.is_none() || names.contains(name.as_str()) || swept.contains(name.as_str())
        })
        .map(|(name, decl)| {
            let given = form.params.iter().find(|param| param.name == *name);
            let default = match given {
                Some(param) if decl.kind == ParamType::Path => {
                    let text = param.value.as_str().unwrap_or("");
                    let name = files.name(&param.folder, text);
                    Some(Json::from(seen_from(form.folder, &name)))
                }
                Some(param) => Some(param.value.clone()),
                None => default_of(workflow, decl, form, files),
            };
            (name.as_str(), declaration(decl, default))
        })
        .collect();
    section(&mut text, "params", &params);
    let inputs: Vec<(&str, Vec<(String, Json)>)> = (workflow.inputs.iter())
        .map(|(name, decl)| {
            let mut fields = match &decl.kind {
                InputKind::Port(kind) => vec![("type".to_owned(), Json::from(kind.as_str()))],
                InputKind::Value(value) => {
                    declaration(value, default_of(workflow, value, form, files))
                }
            };
            if decl.optional {
                fields.push(("optional".to_owned(), Json::from(true)));
            }
            (name.as_str(), fields)
        })
        .collect();
    section(&mut text, "inputs", &inputs);
    section(&mut text, "nodes", &written);
    section(&mut text, "outputs", &outputs);
    if let Some((cells, sheet)) = form.sweep {
        sweep(&mut text, cells, sheet);
    }
    // What is written means what was read, or nothing is written.
    let mut faults = Vec::new();
    yaml::parse(&Source::new("canonical", text.as_str()), &mut faults)?;
    faults.is_empty().then_some(text)
}

/// The nodes that outputs need.
fn needed<'a>(workflow: &'a Workflow, outputs: &[&str]) -> BTreeSet<&'a str> {
    let mut needed = BTreeSet::new();
    let mut open: Vec<&str> = (outputs.iter())
        .filter_map(|output| workflow.outputs.get(*output))
        .filter_map(|decl| decl.value.as_ref())
        .map(|value| value.value.as_str())
        .collect();
    while let Some(text) = open.pop() {
        let name = text
            .strip_prefix('$')
            .unwrap_or("")
            .split('.')
            .next()
            .unwrap_or("");
        let Some((name, decl)) = workflow.nodes.get_key_value(name) else {
            continue;
        };
        if !needed.insert(name.as_str()) {
            continue;
        }
        let fields = match &decl.body {
            NodeBody::Op { fields, .. } => fields,
            NodeBody::Use { with, .. } => with,
            NodeBody::Broken => continue,
        };
        for (_, tree) in fields {
            references(tree, &mut open);
        }
    }
    needed
}

fn references<'a>(tree: &'a Tree, open: &mut Vec<&'a str>) {
    match &tree.node {
        Node::String { text, .. } if text.starts_with('$') && !text.starts_with("$$") => {
            open.push(text);
        }
        Node::Seq(items) => items.iter().for_each(|item| references(item, open)),
        Node::Map(entries) => entries
            .iter()
            .for_each(|(_, value)| references(value, open)),
        _ => {}
    }
}

/// The params that a value names, by `$params.x` or `{x}`; a text that only looks like a template counts too.
fn named(value: &Json, names: &mut BTreeSet<String>) {
    match value {
        Json::String(text) => {
            if let Some(name) = text.strip_prefix("$params.") {
                names.insert(name.to_owned());
            }
            for piece in template::pieces(text).unwrap_or_default() {
                if let Piece::Name(name, _) = piece {
                    names.insert(name.to_owned());
                }
            }
        }
        Json::Array(items) => items.iter().for_each(|item| named(item, names)),
        Json::Object(entries) => entries.values().for_each(|value| named(value, names)),
        _ => {}
    }
}

fn declaration(decl: &ParamDecl, default: Option<Json>) -> Vec<(String, Json)> {
    let mut fields = vec![("type".to_owned(), Json::from(decl.kind.name()))];
    let number = |value: f64| {
        // An integer stays one: `min: 1`.
        if value.fract() == 0.0 && value.abs() < 1e15 {
            Json::from(value as i64)
        } else {
            Json::from(value)
        }
    };
    if !decl.values.is_empty() {
        fields.push(("values".to_owned(), Json::from(decl.values.clone())));
    }
    if let Some(default) = default {
        fields.push(("default".to_owned(), default));
    }
    if let Some(min) = decl.min {
        fields.push(("min".to_owned(), number(min)));
    }
    if let Some(max) = decl.max {
        fields.push(("max".to_owned(), number(max)));
    }
    fields
}

/// A default, a path in it as it is seen from the text's folder.
fn default_of(
    workflow: &Workflow,
    decl: &ParamDecl,
    form: &Form<'_>,
    files: &mut Names,
) -> Option<Json> {
    let mut value = decl.default.as_ref()?.value.clone();
    if decl.kind == ParamType::Path {
        share(workflow, &mut value, form, files);
    }
    Some(value)
}

/// A node's keys; `None` when it is at fault, or uses a graph that lies elsewhere.
fn node(
    workflow: &Workflow,
    name: &str,
    decl: &NodeDecl,
    form: &Form<'_>,
    drawn: &mut HashMap<&str, &Json>,
    files: &mut Names,
) -> Option<Vec<(String, Json)>> {
    let mut fields = Vec::new();
    match &decl.body {
        NodeBody::Op { op, fields: given } => {
            fields.push(("op".to_owned(), Json::from(op.value.as_str())));
            let entry = form.registry.entry(&op.value)?;
            for (key, tree) in given {
                let path = (entry.params().iter())
                    .any(|info| info.name == key.text && info.shape.has_path);
                let mut value = tree.to_json();
                if path {
                    share(workflow, &mut value, form, files);
                }
                if let Some(seed) = drawn.remove(format!("{name}.{}", key.text).as_str()) {
                    value = seed.clone();
                }
                fields.push((key.text.clone(), value));
            }
        }
        NodeBody::Use { path, with } => {
            let place = workflow.folder.join(&path.value);
            let name = lock::shareable(&files.root, &place)?;
            fields.push(("use".to_owned(), Json::from(seen_from(form.folder, &name))));
            let graph = (form.graphs.iter())
                .find(|(known, _)| *known == normal(&place))
                .map(|(_, graph)| graph);
            let is_path = |key: &str| {
                graph.is_none_or(|graph| {
                    let param = graph.params.get(key).map(|decl| decl.kind);
                    let input = graph.inputs.get(key).and_then(|decl| match &decl.kind {
                        InputKind::Value(value) => Some(value.kind),
                        InputKind::Port(_) => None,
                    });
                    param.or(input) == Some(ParamType::Path)
                })
            };
            let mut given = serde_json::Map::new();
            for (key, tree) in with {
                let mut value = tree.to_json();
                if is_path(&key.text) {
                    share(workflow, &mut value, form, files);
                }
                given.insert(key.text.clone(), value);
            }
            let prefix = format!("{name}/");
            let inner: Vec<&str> = (drawn.keys().copied())
                .filter(|known| {
                    known
                        .strip_prefix(&prefix)
                        .is_some_and(|rest| !rest.contains(['/', '.']))
                })
                .collect();
            for known in inner {
                if let (Some(value), Some(param)) =
                    (drawn.remove(known), known.strip_prefix(&prefix))
                {
                    given.insert(param.to_owned(), value.clone());
                }
            }
            if !given.is_empty() {
                fields.push(("with".to_owned(), Json::Object(given)));
            }
        }
        NodeBody::Broken => return None,
    }
    Some(fields)
}

/// Writes the paths in a value so that they can be shared.
fn share(workflow: &Workflow, value: &mut Json, form: &Form<'_>, files: &mut Names) {
    match value {
        Json::String(text) if text.starts_with('$') && !text.starts_with("$$") => {}
        Json::String(text) => {
            let plain = text.strip_prefix('$').unwrap_or(text);
            let name = files.name(&workflow.folder, plain);
            let seen = seen_from(form.folder, &name);
            *text = if seen.starts_with('$') {
                format!("${seen}")
            } else {
                seen
            };
        }
        Json::Array(items) => items
            .iter_mut()
            .for_each(|item| share(workflow, item, form, files)),
        Json::Object(entries) => {
            entries
                .values_mut()
                .for_each(|value| share(workflow, value, form, files));
        }
        _ => {}
    }
}

fn sweep(text: &mut String, cells: &[IndexMap<String, Json>], sheet: &SheetDecl) {
    text.push_str("sweep:\n  include:\n");
    for cell in cells {
        let fields: Vec<(String, Json)> = cell
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        text.push_str(&format!("    - {}\n", flow(&fields)));
    }
    let mut fields = Vec::new();
    for (name, axis) in [("rows", &sheet.rows), ("columns", &sheet.columns)] {
        if let Some(axis) = axis {
            let names: Vec<&str> = axis.iter().map(|name| name.value.as_str()).collect();
            fields.push((name.to_owned(), Json::from(names)));
        }
    }
    for (name, value) in [
        ("output", &sheet.output),
        ("save", &sheet.save),
        ("table", &sheet.table),
    ] {
        if let Some(value) = value {
            fields.push((name.to_owned(), Json::from(value.value.as_str())));
        }
    }
    for (key, tree) in &sheet.fields {
        fields.push((key.text.clone(), tree.to_json()));
    }
    text.push_str(&format!("  grid: {}\n", flow(&fields)));
}

fn section(text: &mut String, name: &str, entries: &[(&str, Vec<(String, Json)>)]) {
    if entries.is_empty() {
        return;
    }
    text.push_str(&format!("\n{name}:\n"));
    for (name, fields) in entries {
        let line = format!("  {}: {}", key(name), flow(fields));
        if line.len() <= WIDTH {
            text.push_str(&line);
            text.push('\n');
            continue;
        }
        text.push_str(&format!("  {}:\n", key(name)));
        for (field, value) in fields {
            match value {
                Json::Object(entries) if !entries.is_empty() => {
                    text.push_str(&format!("    {}:\n", key(field)));
                    for (name, value) in entries {
                        text.push_str(&format!("      {}: {}\n", key(name), scalar(value)));
                    }
                }
                value => text.push_str(&format!("    {}: {}\n", key(field), scalar(value))),
            }
        }
    }
}

fn flow(fields: &[(String, Json)]) -> String {
    let entries: Vec<String> = (fields.iter())
        .map(|(name, value)| format!("{}: {}", key(name), scalar(value)))
        .collect();
    format!("{{{}}}", entries.join(", "))
}

fn key(text: &str) -> String {
    scalar(&Json::from(text))
}

/// A value on one line: a text plainly where that is read as the same text, else in quotes.
fn scalar(value: &Json) -> String {
    match value {
        Json::String(text) if is_plain(text) => text.clone(),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(entries) => {
            let fields: Vec<(String, Json)> = entries
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            flow(&fields)
        }
        // JSON is YAML, but for the control characters above U+007E, which JSON leaves as they are.
        other => {
            let mut text = String::new();
            for c in other.to_string().chars() {
                match yaml::is_control(c) {
                    true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
                    false => text.push(c),
                }
            }
            text
        }
    }
}

/// Whether a text can stand without quotes: a word, a reference, a path, a share.
fn is_plain(text: &str) -> bool {
    let first = |letter: char| letter.is_ascii_alphabetic() || "$./".contains(letter);
    let rest = |letter: char| letter.is_ascii_alphanumeric() || "$./_-%".contains(letter);
    let share = text.strip_suffix('%').is_some_and(|number| {
        !number.is_empty() && number.chars().all(|letter| letter.is_ascii_digit())
    });
    let word = text.starts_with(first) && text.chars().all(rest);
    if !(share || word) {
        return false;
    }
    let mut faults = Vec::new();
    let tree = yaml::parse(&Source::new("scalar", text), &mut faults);
    faults.is_empty() && tree.is_some_and(|tree| tree.as_text() == Some(text))
}
