//! Values written into the text of a workflow: only their bytes change.
//!
//! A value is found by its [`Place`], its bytes by the parser's spans. What is written in their stead keeps the style of
//! what stood there; what comes out is read again and must be the old workflow with that one value changed and with all
//! its comments, or nothing is changed. Tried values are written into a text in memory the same way: [`Overlay`] gives
//! it to the engine in place of the file, so that params of the workflow and of nodes are tried alike.
//!
//! The spans are those of the engine's own parser, so that what is changed is what the engine reads. Why no crate that keeps
//! YAML whole is used is said in `cli/lsp/src/outline.rs`.

mod scalars;
#[cfg(test)]
mod tests;
mod trying;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use retouch_graph::files;
use retouch_graph::write::rewrite;
use retouch_graph::yaml::{self, Form, MapKey as Key, Node, Tree, Written};
use retouch_graph::{Source, Span};
use serde_json::Value as Json;

pub use scalars::line;
use scalars::{double, key_text, styled};
pub use trying::{Overlay, Trying, is_one};

/// Where a value stands in the file of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The default of a param.
    Param(String),
    /// A parameter of a node.
    Field {
        /// The node.
        node: String,
        /// The parameter.
        name: String,
    },
    /// What a node gives to the workflow that it uses, under `with`.
    With {
        /// The node.
        node: String,
        /// The input or param of the workflow.
        name: String,
    },
}

impl Place {
    /// The keys from the root of the file to the value.
    fn path(&self) -> Vec<&str> {
        match self {
            Self::Param(name) => vec!["params", name, "default"],
            Self::Field { node, name } => vec!["nodes", node, name],
            Self::With { node, name } => vec!["nodes", node, "with", name],
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Param(name) => write!(f, "params.{name}"),
            Self::Field { node, name } | Self::With { node, name } => write!(f, "{node}.{name}"),
        }
    }
}

/// A value to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Where.
    pub place: Place,
    /// What: as it stands in the file, so that in a node's text a reference begins with `$` and `{param}` is filled in.
    pub value: Json,
}

/// Why a value is not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// What is in the way.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The line of the file that it is about, from 1.
    pub line: Option<usize>,
}

impl Refused {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            line: None,
        }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    fn at(mut self, text: &str, offset: usize) -> Self {
        self.line = Some(line_of(text, offset));
        self
    }
}

/// The number of a byte's line, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// A part of a text and what stands there afterwards.
type Edit = (Span, String);

/// The text with the values written into it. Where a text says the value already nothing changes.
///
/// # Errors
/// When a value has no place in the text, or writing it would change anything else.
pub fn edit(text: &str, changes: &[Change]) -> Result<String, Refused> {
    let mut new = text.to_owned();
    for change in changes {
        new = one(&new, change)?;
    }
    Ok(new)
}

/// What a text says at a place; `None` where it says nothing.
///
/// # Errors
/// When the text is no YAML or has faults that stand in the way.
#[cfg(test)]
pub fn value_at(text: &str, place: &Place) -> Result<Option<Json>, Refused> {
    let tree = read(text)?;
    let mut tree = &tree;
    for key in place.path() {
        match entry(tree, key) {
            Some((_, value)) => tree = value,
            None => return Ok(None),
        }
    }
    Ok(Some(tree.to_json()))
}

fn read(text: &str) -> Result<Tree, Refused> {
    let mut problems = Vec::new();
    let tree = yaml::parse(&Source::new("", text), &mut problems);
    if let Some(problem) = problems.first() {
        let mut refused = Refused::new(problem.message()).at(text, problem.span().start);
        refused.help = problem.hint().map(str::to_owned);
        return Err(refused);
    }
    tree.ok_or_else(|| Refused::new("the file is not YAML"))
}

fn entry<'t>(tree: &'t Tree, key: &str) -> Option<(usize, &'t Tree)> {
    let Node::Map(entries) = &tree.node else {
        return None;
    };
    let at = entries.iter().position(|(name, _)| name.text == key)?;
    Some((at, &entries.get(at)?.1))
}

/// The text with one value written into it.
fn one(text: &str, change: &Change) -> Result<String, Refused> {
    let tree = read(text)?;
    let root = yaml::written(text).ok_or_else(|| Refused::new("the file says nothing yet"))?;
    let path = change.place.path();
    let (mut value, mut here) = (&tree, &root);
    let mut key_here = None;
    let mut in_flow = false;
    let mut missing = None;
    for (depth, key) in path.iter().enumerate() {
        shared(text, &root, here, &change.place)?;
        let Form::Map { flow, entries } = &here.form else {
            let refused = match here.form {
                Form::Alias(_) => Refused::new(format!(
                    "`{}` is written somewhere else, and `{}` is an alias for it",
                    change.place,
                    slice(text, here.span)
                ))
                .help("change it there, or write it out here"),
                _ if here.span.start == here.span.end => Refused::new(format!(
                    "nothing is written where `{}` would be",
                    change.place
                )),
                _ => Refused::new(format!(
                    "`{}` is {}, which has no `{key}` of its own",
                    path.get(..depth).unwrap_or_default().join("."),
                    value.describe()
                ))
                .help(if depth == 2 {
                    "declare it in full: `{type: ..., default: ...}`"
                } else {
                    "write it as a map"
                }),
            };
            return Err(refused.at(text, here.span.start));
        };
        in_flow |= *flow;
        match entry(value, key) {
            Some((at, next)) => {
                // Both trees have the same entries: a duplicate would have been a fault.
                let Some((key, written)) = entries.get(at) else {
                    return Err(Refused::new("the file cannot be followed"));
                };
                (value, here, key_here) = (next, written, Some(key));
            }
            None => {
                missing = Some(depth);
                break;
            }
        }
    }
    let ways = match (missing, key_here) {
        (None, Some(key)) => {
            if same(value, &change.value) {
                return Ok(text.to_owned());
            }
            shared(text, &root, here, &change.place)?;
            let site = Site {
                text,
                key: Some(key),
                flow: in_flow,
            };
            site.replaced(value, here, &change.value)
        }
        (Some(depth), _) if depth + 1 == path.len() => {
            inserted(text, here, path[depth], &change.value, in_flow)
        }
        // `with` itself is not there yet.
        (Some(depth), _) if depth + 2 == path.len() && path[depth] == "with" => {
            let inner =
                serde_json::Map::from_iter([(path[depth + 1].to_owned(), change.value.clone())]);
            inserted(text, here, "with", &Json::Object(inner), in_flow)
        }
        (Some(depth), _) => {
            return Err(Refused::new(format!(
                "the file has no `{}`",
                path.get(..=depth).unwrap_or_default().join(".")
            )));
        }
        (None, None) => return Err(Refused::new("a value has a place")),
    };
    let comments = yaml::comments(text);
    for edits in ways {
        if let Some(new) = applied(text, edits)
            && yaml::comments(&new) == comments
            && is_changed_there_only(&tree, &new, &path, &change.value)
        {
            return Ok(new);
        }
    }
    let refused = Refused::new(format!(
        "`{}` cannot be changed without changing what stands beside it",
        change.place
    ))
    .help("change it in the editor: comments, anchors or other values are inside it");
    Err(refused.at(text, here.span.start))
}

fn slice(text: &str, span: Span) -> &str {
    text.get(span.start..span.end).unwrap_or("")
}

/// Refuses when others have what is written here by an alias.
fn shared(text: &str, root: &Written, here: &Written, place: &Place) -> Result<(), Refused> {
    let Some(anchor) = here.anchor else {
        return Ok(());
    };
    match first_alias(root, anchor) {
        None => Ok(()),
        Some(span) => Err(Refused::new(format!(
            "`{place}` is also what `{}` in line {} stands for, and would change there too",
            slice(text, span),
            line_of(text, span.start)
        ))
        .help("write the value out there first, or change it in the editor")
        .at(text, here.span.start)),
    }
}

/// The first alias of an anchor.
fn first_alias(written: &Written, anchor: usize) -> Option<Span> {
    match &written.form {
        Form::Alias(of) => (*of == anchor).then_some(written.span),
        Form::List { items, .. } => items.iter().find_map(|item| first_alias(item, anchor)),
        Form::Map { entries, .. } => (entries.iter()).find_map(|(key, value)| {
            first_alias(key, anchor).or_else(|| first_alias(value, anchor))
        }),
        _ => None,
    }
}

/// Whether a value in a file is that one, number for number: `8` and `8.0` differ.
fn same(tree: &Tree, value: &Json) -> bool {
    tree.same_value(&Tree::of(value, Span::default()))
}

/// Whether a text says what the old one said, but for the value at the end of the path.
fn is_changed_there_only(old: &Tree, new: &str, path: &[&str], value: &Json) -> bool {
    fn put(tree: &mut Tree, like: &Tree, path: &[&str], value: &Json) -> bool {
        let Some((key, rest)) = path.split_first() else {
            *tree = Tree::of(value, Span::default());
            return true;
        };
        let Node::Map(entries) = &mut tree.node else {
            return false;
        };
        let Some((at, next)) = entry(like, key) else {
            return false;
        };
        if !entries.iter().any(|(name, _)| name.text == *key) && at <= entries.len() {
            let key = Key {
                text: (*key).to_owned(),
                span: Span::default(),
            };
            entries.insert(
                at,
                (
                    key,
                    Tree::of(&Json::Object(serde_json::Map::new()), Span::default()),
                ),
            );
        }
        (entries.iter_mut())
            .find(|(name, _)| name.text == *key)
            .is_some_and(|(_, tree)| put(tree, next, rest, value))
    }
    let Ok(new) = read(new) else {
        return false;
    };
    let mut due = old.clone();
    put(&mut due, &new, path, value) && due.same_value(&new)
}

/// The text after the edits; `None` when they overlap.
fn applied(text: &str, mut edits: Vec<Edit>) -> Option<String> {
    edits.sort_by_key(|(span, _)| span.start);
    let mut new = String::with_capacity(text.len() + 64);
    let mut done = 0;
    for (span, instead) in edits {
        new.push_str(text.get(done..span.start)?);
        new.push_str(&instead);
        done = span.end;
    }
    new.push_str(text.get(done..)?);
    Some(new)
}

/// The end of a byte's line, before its line break.
fn line_end(text: &str, at: usize) -> usize {
    let end = (text.get(at..))
        .and_then(|rest| rest.find('\n'))
        .map_or(text.len(), |length| at + length);
    if end > at && text.as_bytes().get(end - 1) == Some(&b'\r') {
        end - 1
    } else {
        end
    }
}

/// The start of a byte's line.
fn line_start(text: &str, at: usize) -> usize {
    let start = (text.get(..at))
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1);
    // A byte order mark is in no column.
    if start == 0 && text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        start
    }
}

/// The line break that the lines around a byte end in.
fn line_break(text: &str, at: usize) -> &'static str {
    let rest = text.get(line_end(text, at)..).unwrap_or("");
    let before = text.get(..at).unwrap_or("");
    if rest.starts_with("\r\n") {
        return "\r\n";
    }
    if rest.starts_with('\n') {
        return "\n";
    }
    match before.rfind('\n') {
        Some(newline)
            if before
                .get(..newline)
                .is_some_and(|line| line.ends_with('\r')) =>
        {
            "\r\n"
        }
        _ => "\n",
    }
}

/// What stands before a byte in its line, as blanks of the same width.
fn indentation(text: &str, at: usize) -> String {
    let before = text.get(line_start(text, at)..at).unwrap_or("");
    " ".repeat(before.chars().count())
}

/// Whether a byte is the first of its line that is no blank.
fn begins_line(text: &str, at: usize) -> bool {
    (text.get(line_start(text, at)..at)).is_some_and(|before| before.trim().is_empty())
}

// ---- values that are there ----

/// What is known of where a value stands.
#[derive(Clone, Copy)]
struct Site<'t> {
    text: &'t str,
    /// Its key; an item of a list has none.
    key: Option<&'t Written>,
    /// Whether it stands in brackets.
    flow: bool,
}

impl Site<'_> {
    /// The ways to write `value` where `written` stands, the best first.
    fn replaced(&self, tree: &Tree, written: &Written, value: &Json) -> Vec<Vec<Edit>> {
        let span = written.span;
        let text = styled(value, &written.form, self.flow);
        match &written.form {
            Form::Plain if span.start == span.end => {
                self.after_key(written).map_or_else(Vec::new, |(at, lead)| {
                    vec![vec![(Span::new(at, at), format!("{lead}{text}"))]]
                })
            }
            Form::Plain | Form::Single | Form::Double | Form::Alias(_) => vec![vec![(span, text)]],
            Form::Literal | Form::Folded => self.block(written, value),
            Form::List { flow, items } => {
                let mut ways = Vec::new();
                if let (Json::Array(values), Node::Seq(trees)) = (value, &tree.node) {
                    ways.extend(self.items(*flow, items, trees, values));
                }
                ways.extend(self.whole(*flow, written, value));
                ways
            }
            Form::Map { flow, entries } => {
                let mut ways = Vec::new();
                if let (Json::Object(values), Node::Map(trees)) = (value, &tree.node) {
                    ways.extend(self.entries(*flow, entries, trees, values));
                }
                ways.extend(self.whole(*flow, written, value));
                ways
            }
        }
    }

    /// Where a value goes that stands behind its key in the same line, and what comes between.
    fn after_key(&self, written: &Written) -> Option<(usize, &'static str)> {
        let key = self.key?;
        let rest = self.text.get(key.span.end..)?;
        let blanks = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        let mut at = key.span.end + blanks;
        if self.text.as_bytes().get(at) != Some(&b':') {
            // `{key}` is a key without a value.
            return Some((key.span.end, ": "));
        }
        at += 1;
        if written.anchor.is_some() {
            let rest = self.text.get(at..)?;
            let mark = at + rest.find('&')?;
            let name = self.text.get(mark..)?;
            at = mark
                + name
                    .find(|c: char| c.is_whitespace() || ",]}".contains(c))
                    .unwrap_or(name.len());
        }
        Some((at, " "))
    }

    /// A block (`|`, `>`): as a block again where the text allows, else in one line behind the key.
    fn block(&self, written: &Written, value: &Json) -> Vec<Vec<Edit>> {
        let (text, span) = (self.text, written.span);
        let mut ways = Vec::new();
        let head_end = line_end(text, span.start).min(span.end);
        let head = text.get(span.start + 1..head_end).unwrap_or("");
        let marks = head.len()
            - head
                .trim_start_matches(|c: char| "+-0123456789".contains(c))
                .len();
        let indicator = Span::new(span.start + 1, span.start + 1 + marks);
        let marked = head.get(..marks).unwrap_or("");
        let content = (text.get(head_end..span.end))
            .and_then(|rest| rest.find('\n'))
            .map(|newline| head_end + newline + 1);
        if let (Json::String(new), Some(content)) = (value, content)
            && !marked.contains(|c: char| c.is_ascii_digit())
        {
            let body = new.trim_end_matches('\n');
            let chomp = match new.len() - body.len() {
                0 => Some("-"),
                1 => Some(""),
                _ => None,
            };
            // The first line that is not blank says how deep the block is.
            let mut lines = text.get(content..span.end).unwrap_or("").split('\n');
            let depth = (lines.find(|line| !line.trim().is_empty()))
                .map(|line| line.len() - line.trim_start_matches(' ').len());
            let fits = !body.is_empty()
                && !body.starts_with([' ', '\t', '\n'])
                && !body
                    .chars()
                    .any(|c| c.is_control() && c != '\n' && c != '\t');
            if let (Some(chomp), Some(depth), true) = (chomp, depth, fits) {
                let eol = line_break(text, span.start);
                let folded = matches!(written.form, Form::Folded);
                let mut out = String::new();
                for (index, line) in body.split('\n').enumerate() {
                    if index > 0 {
                        out.push_str(eol);
                        // A folded line break is one more than it says.
                        if folded && !line.is_empty() {
                            out.push_str(eol);
                        }
                    }
                    if !line.is_empty() {
                        out.push_str(&" ".repeat(depth));
                        out.push_str(line);
                    }
                }
                let mut edits = vec![(Span::new(content, span.end), out)];
                if marked != chomp {
                    edits.push((indicator, chomp.to_owned()));
                }
                ways.push(edits);
            }
        }
        // In place of the sign that opens the block; what follows in that line is a comment and stays.
        let sign = Span::new(span.start, indicator.end);
        let rest = Span::new(head_end, span.end.max(head_end));
        let text = match value {
            Json::String(text) => double(text),
            value => line(value, self.flow),
        };
        ways.push(vec![(sign, text), (rest, String::new())]);
        ways
    }

    /// A list item by item; of one that gets longer or shorter, the end of it.
    fn items(
        &self,
        flow: bool,
        items: &[Written],
        trees: &[Tree],
        values: &[Json],
    ) -> Option<Vec<Edit>> {
        let within = Site {
            text: self.text,
            key: None,
            flow: self.flow || flow,
        };
        let mut edits = Vec::new();
        for ((item, tree), value) in items.iter().zip(trees).zip(values) {
            if !same(tree, value) {
                edits.extend(within.replaced(tree, item, value).into_iter().next()?);
            }
        }
        let (first, last) = (items.first()?, items.last()?);
        if values.is_empty() {
            return None; // `[]`, whatever stood there
        }
        if values.len() < items.len() {
            let kept = items.get(values.len() - 1)?;
            // A comment behind the last one that stays is its own.
            let end = kept.span.end;
            let from = if flow { end } else { line_end(self.text, end) };
            edits.push((Span::new(from, last.span.end.max(from)), String::new()));
            return Some(edits);
        }
        let like = &last.form;
        let mut more = String::new();
        for value in values.get(items.len()..)? {
            let value = styled(value, like, within.flow);
            let (at, item) = (first.span.start, self.text);
            if flow && !begins_line(item, last.span.start) {
                more.push_str(&format!(", {value}"));
            } else if flow {
                let indent = indentation(item, last.span.start);
                more.push_str(&format!(",{}{indent}{value}", line_break(item, at)));
            } else {
                // The dash stands somewhere before the first item.
                let before = item.get(line_start(item, at)..at)?;
                let dash = before.rfind('-')?;
                let indent = " ".repeat(before.get(..dash)?.chars().count());
                let gap = " ".repeat(before.len() - dash - 1);
                more.push_str(&format!("{}{indent}-{gap}{value}", line_break(item, at)));
            }
        }
        if !more.is_empty() {
            // Behind a comment at the end of the line, where items have lines of their own.
            let end = last.span.end;
            let at = if flow { end } else { line_end(self.text, end) };
            edits.push((Span::new(at, at), more));
        }
        Some(edits)
    }

    /// A map whose keys stay: value by value.
    fn entries(
        &self,
        flow: bool,
        entries: &[(Written, Written)],
        trees: &[(Key, Tree)],
        values: &serde_json::Map<String, Json>,
    ) -> Option<Vec<Edit>> {
        if !(trees.iter().map(|(key, _)| key.text.as_str())).eq(values.keys().map(String::as_str)) {
            return None;
        }
        let mut edits = Vec::new();
        for (((key, written), (_, tree)), value) in entries.iter().zip(trees).zip(values.values()) {
            if !same(tree, value) {
                let site = Site {
                    text: self.text,
                    key: Some(key),
                    flow: self.flow || flow,
                };
                edits.extend(site.replaced(tree, written, value).into_iter().next()?);
            }
        }
        Some(edits)
    }

    /// A list or a map, all of it.
    fn whole(&self, flow: bool, written: &Written, value: &Json) -> Option<Vec<Edit>> {
        let new = line(value, self.flow);
        if flow {
            return Some(vec![(written.span, new)]);
        }
        // From the end of the line before it: the key's, or a comment's below the key.
        let before = line_start(self.text, written.span.start).checked_sub(1)?;
        let before = line_end(self.text, line_start(self.text, before));
        let (at, lead) = self.after_key(written)?;
        if before < at {
            return None;
        }
        Some(vec![
            (Span::new(at, at), format!("{lead}{new}")),
            (Span::new(before, written.span.end), String::new()),
        ])
    }
}

// ---- values that are not there yet ----

/// The ways to add a key to a map.
fn inserted(text: &str, map: &Written, name: &str, value: &Json, in_flow: bool) -> Vec<Vec<Edit>> {
    let Form::Map { flow, entries } = &map.form else {
        return Vec::new();
    };
    let new = format!("{}: {}", key_text(name), line(value, in_flow));
    let Some(((first, _), (last, last_value))) = entries.first().zip(entries.last()) else {
        let inside = Span::new(map.span.start + 1, map.span.start + 1);
        return vec![vec![(inside, new)]];
    };
    let mut end = last.span.end.max(last_value.span.end);
    if last_value.span.start == last_value.span.end {
        // Behind the colon of a key without a value.
        let rest = text.get(last.span.end..).unwrap_or("");
        let blanks = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        end = last.span.end;
        if rest.get(blanks..).is_some_and(|rest| rest.starts_with(':')) {
            end += blanks + 1;
        }
    }
    let eol = line_break(text, end);
    let mut ways = Vec::new();
    if *flow {
        let point = Span::new(end, end);
        if begins_line(text, last.span.start) {
            let indent = indentation(text, last.span.start);
            let rest = text
                .get(end..line_end(text, end))
                .unwrap_or("")
                .trim_start();
            let comma = rest.starts_with(',');
            if rest.trim_start_matches(',').trim_start().starts_with('#') {
                let after = line_end(text, end);
                let mut edits = vec![(
                    Span::new(after, after),
                    format!("{eol}{indent}{new}{}", if comma { "," } else { "" }),
                )];
                if !comma {
                    edits.insert(0, (point, ",".to_owned()));
                }
                ways.push(edits);
            }
            ways.push(vec![(point, format!(",{eol}{indent}{new}"))]);
        }
        ways.push(vec![(point, format!(", {new}"))]);
    } else {
        let indent = indentation(text, first.span.start);
        let after = line_end(text, end);
        ways.push(vec![(
            Span::new(after, after),
            format!("{eol}{indent}{new}"),
        )]);
        // A block that keeps the blank lines behind it would lose them.
        let before = Span::new(first.span.start, first.span.start);
        ways.push(vec![(before, format!("{new}{eol}{indent}"))]);
    }
    ways
}

// ---- showing and writing ----

/// The change of a file as a unified diff with three lines around; empty when nothing changes.
#[must_use]
pub fn diff(name: &str, old: &str, new: &str) -> String {
    similar::TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(3)
        .header(name, name)
        .to_string()
}

/// The values as YAML to be pasted. Params of the workflow alone are a file of `--params`; with values of nodes it has
/// the shape of a workflow.
#[must_use]
pub fn snippet(changes: &[Change]) -> String {
    let params_alone = (changes.iter()).all(|change| matches!(change.place, Place::Param(_)));
    let mut out = String::new();
    if params_alone {
        for change in changes {
            if let Place::Param(name) = &change.place {
                out.push_str(&format!(
                    "{}: {}\n",
                    key_text(name),
                    line(&change.value, false)
                ));
            }
        }
        return out;
    }
    let mut sections: BTreeMap<(u8, &str), BTreeMap<&str, Vec<String>>> = BTreeMap::new();
    for change in changes {
        let value = line(&change.value, false);
        let (section, name, text) = match &change.place {
            Place::Param(name) => ((0, "params"), name, format!("default: {value}")),
            Place::Field { node, name } => {
                ((1, "nodes"), node, format!("{}: {value}", key_text(name)))
            }
            Place::With { node, name } => (
                (1, "nodes"),
                node,
                format!("\u{0}{}: {value}", key_text(name)),
            ),
        };
        let of = sections.entry(section).or_default();
        of.entry(name).or_default().push(text);
    }
    for ((_, section), names) in sections {
        out.push_str(&format!("{section}:\n"));
        for (name, mut lines) in names {
            out.push_str(&format!("  {}:\n", key_text(name)));
            // What belongs under `with` comes last, together.
            lines.sort_by_key(|line| line.starts_with('\u{0}'));
            let mut with = false;
            for line in lines {
                match line.strip_prefix('\u{0}') {
                    Some(given) => {
                        if !with {
                            out.push_str("    with:\n");
                        }
                        with = true;
                        out.push_str(&format!("      {given}\n"));
                    }
                    None => out.push_str(&format!("    {line}\n")),
                }
            }
        }
    }
    out
}

/// The text of a file.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn text_of(file: &Path) -> Result<String, Refused> {
    files::read_text(file, yaml::MAX_BYTES as u64)
        .map_err(|error| Refused::new(format!("{} cannot be read: {error}", file.display())))
}

/// Writes a file that holds `old` anew: into another beside it that then takes its place, with the same permissions. A
/// link stays a link.
///
/// # Errors
/// When the file holds something else by now, or the system refuses.
pub fn write(path: &Path, old: &str, new: &str) -> Result<(), Refused> {
    match rewrite(path, old.as_bytes(), new.as_bytes()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refused::new(format!(
            "{} was changed on the disk meanwhile",
            path.display()
        ))
        .help("look at the change again and write it then")),
        Err(error) => Err(Refused::new(format!(
            "{} cannot be written: {error}",
            path.display()
        ))),
    }
}
