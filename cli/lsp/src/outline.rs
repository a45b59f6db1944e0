//! A reading of YAML that never fails: what a half-typed file holds, and what is being typed in it.
//!
//! The engine's parser gives up at the first fault, and completion is wanted exactly then. This one takes every line by
//! its indentation and every bracket by itself: an open bracket or quote ends where a line stands no deeper than the line
//! that opened it. All scalars are texts to it; what a value means is for the engine to say.
//!
//! Two crates keep a YAML file whole as a tree; neither serves here. Tried on the 18 awkward files of
//! `tests/view/awkward`: `yaml_parser` 0.3 (under `pretty_yaml`) refuses a text with a fault (465 of 793 texts cut off as
//! while one types), and completion is wanted exactly then. `yaml-edit` 0.3.6 recovers, but of 448 texts cut off within
//! `nodes:` its tree lacks nodes that are there in 43; it replaces a list or map with the comments in it (3 of 77 edits),
//! where the viewer changes the items that differ, and refuses a file with a `%YAML` directive. Neither
//! says what of a file the engine would read: anchors, merge keys and tags are nodes of the tree, not values.

use retouch_graph::Span;
use retouch_graph::yaml::{MapKey as Key, Node, Tree};

/// Levels that are followed; what lies deeper is left out, as the engine would refuse it.
const MAX_DEPTH: usize = 64;

/// A step of the way from the root of a document to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into the value of a key.
    Key(String),
    /// Into a list.
    Item,
}

/// What is being typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A key of the map that the path leads to.
    Key,
    /// The value that the path leads to.
    Value,
}

/// What is being typed at a place of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The way from the root: to the map of a key that is typed, to the value that is typed.
    pub path: Vec<Step>,
    /// A key or a value.
    pub role: Role,
    /// Where what is typed begins, behind a quote if there is one.
    pub start: usize,
    /// Whether it stands in quotes or in a block, where anything but a template is a plain text.
    pub quoted: bool,
}

/// Reads the whole text.
#[must_use]
pub fn read(text: &str) -> Tree {
    let mut reader = Reader::new(text);
    reader.document();
    while !reader.frames.is_empty() {
        reader.close();
    }
    reader.root.unwrap_or(Tree {
        node: Node::Null,
        span: Span::new(text.len(), text.len()),
    })
}

/// What is being typed at the byte `offset`; `None` in a comment and where nothing can be said.
#[must_use]
pub fn cursor(text: &str, offset: usize) -> Option<Cursor> {
    let text = text.get(..offset)?;
    let mut reader = Reader::new(text);
    reader.document();
    let typing = reader.typing?;
    let mut path: Vec<Step> = reader
        .frames
        .iter()
        .filter_map(|frame| match frame.shape {
            Shape::List { .. } | Shape::FlowList => Some(Step::Item),
            _ => frame
                .pending
                .as_ref()
                .map(|key| Step::Key(key.text.clone())),
        })
        .collect();
    path.extend(typing.inside.map(Step::Key));
    Some(Cursor {
        path,
        role: typing.role,
        start: typing.start,
        quoted: typing.quoted,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Map { indent: usize },
    List { indent: usize },
    FlowMap,
    FlowList,
}

struct Frame {
    shape: Shape,
    start: usize,
    end: usize,
    entries: Vec<(Key, Tree)>,
    items: Vec<Tree>,
    pending: Option<Key>,
}

struct Typing {
    role: Role,
    start: usize,
    quoted: bool,
    /// A key that has a value already and is gone into again.
    inside: Option<String>,
}

struct Reader<'a> {
    text: &'a str,
    frames: Vec<Frame>,
    root: Option<Tree>,
    typing: Option<Typing>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            frames: Vec::new(),
            root: None,
            typing: None,
        }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    /// The end of the line that `at` is in, without its line break.
    fn line_end(&self, at: usize) -> usize {
        self.text
            .get(at..)
            .and_then(|rest| rest.find(['\n', '\r']))
            .map_or(self.text.len(), |length| at + length)
    }

    fn next_line(&self, end: usize) -> usize {
        match (self.byte(end), self.byte(end + 1)) {
            (Some(b'\r'), Some(b'\n')) => end + 2,
            (Some(_), _) => end + 1,
            (None, _) => end,
        }
    }

    fn skip_blanks(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), Some(b' ' | b'\t')) {
            at += 1;
        }
        at
    }

    fn type_at(&mut self, role: Role, start: usize, quoted: bool) {
        self.typing = Some(Typing {
            role,
            start,
            quoted,
            inside: None,
        });
    }

    // ---- building ----

    fn open(&mut self, shape: Shape, start: usize) {
        self.frames.push(Frame {
            shape,
            start,
            end: start,
            entries: Vec::new(),
            items: Vec::new(),
            pending: None,
        });
    }

    fn flush(&mut self) {
        if let Some(frame) = self.frames.last_mut()
            && let Some(key) = frame.pending.take()
        {
            let span = Span::new(key.span.end, key.span.end);
            frame.entries.push((
                key,
                Tree {
                    node: Node::Null,
                    span,
                },
            ));
        }
    }

    fn give(&mut self, tree: Tree) {
        let Some(frame) = self.frames.last_mut() else {
            self.root.get_or_insert(tree);
            return;
        };
        frame.end = frame.end.max(tree.span.end);
        match frame.shape {
            Shape::List { .. } | Shape::FlowList => frame.items.push(tree),
            Shape::Map { .. } | Shape::FlowMap => {
                if let Some(key) = frame.pending.take() {
                    frame.entries.push((key, tree));
                }
            }
        }
    }

    fn key(&mut self, key: Key) {
        self.flush();
        if let Some(frame) = self.frames.last_mut() {
            frame.end = frame.end.max(key.span.end);
            frame.pending = Some(key);
        }
    }

    fn close(&mut self) {
        self.flush();
        if let Some(frame) = self.frames.pop() {
            let node = match frame.shape {
                Shape::List { .. } | Shape::FlowList => Node::Seq(frame.items),
                Shape::Map { .. } | Shape::FlowMap => Node::Map(frame.entries),
            };
            self.give(Tree {
                node,
                span: Span::new(frame.start, frame.end),
            });
        }
    }

    // ---- lines ----

    fn document(&mut self) {
        let mut at = if self.text.starts_with('\u{feff}') {
            '\u{feff}'.len_utf8()
        } else {
            0
        };
        loop {
            self.typing = None;
            let next = self.line(at);
            if next <= at || next >= self.text.len() {
                // A text that ends in a line break goes on with an empty line.
                if next > at && self.text.ends_with(['\n', '\r']) {
                    self.typing = None;
                    self.line(next);
                }
                return;
            }
            at = next;
        }
    }

    /// Closes what a line at `indent` is not part of. A list may stand in the column of its key.
    fn settle(&mut self, indent: usize, item: bool) {
        while let Some(frame) = self.frames.last() {
            let closed = match frame.shape {
                Shape::Map { indent: own } => own > indent,
                Shape::List { indent: own } => own > indent || (own == indent && !item),
                Shape::FlowMap | Shape::FlowList => true,
            };
            if !closed {
                return;
            }
            self.close();
        }
    }

    /// Reads what begins on the line at `at`; returns where the next line begins, or the text's end.
    fn line(&mut self, at: usize) -> usize {
        let end = self.line_end(at);
        let mut start = self.skip_blanks(at);
        let mut indent = start - at;
        let last = end == self.text.len();
        if start >= end {
            if last {
                self.settle(indent, false);
                self.type_at(Role::Key, start, false);
                self.reopen(indent);
            }
            return self.next_line(end);
        }
        if self.byte(start) == Some(b'#')
            || self
                .text
                .get(start..end)
                .is_some_and(|line| line.starts_with("---") || line.starts_with("..."))
        {
            return self.next_line(end);
        }
        while self.byte(start) == Some(b'-')
            && matches!(
                self.byte(start + 1),
                None | Some(b' ' | b'\n' | b'\r' | b'\t')
            )
        {
            self.settle(indent, true);
            let same = self
                .frames
                .last()
                .is_some_and(|frame| frame.shape == Shape::List { indent });
            if !same {
                if self.frames.len() >= MAX_DEPTH {
                    return self.next_line(end);
                }
                self.open(Shape::List { indent }, start);
            }
            let content = self.skip_blanks(start + 1);
            if content >= end {
                if last {
                    self.type_at(Role::Value, content, false);
                }
                return self.next_line(end);
            }
            indent += content - start;
            start = content;
        }
        match self.key_at(start, end) {
            Some((key, after)) => {
                self.settle(indent, false);
                let same = self
                    .frames
                    .last()
                    .is_some_and(|frame| frame.shape == Shape::Map { indent });
                if !same {
                    if self.frames.len() >= MAX_DEPTH {
                        return self.next_line(end);
                    }
                    self.open(Shape::Map { indent }, start);
                }
                self.key(key);
                self.value(after, Some(indent))
            }
            None => self.bare(start, end, indent, last),
        }
    }

    /// A line without a key: a value that stands below its key, an item, or a key that is being typed.
    fn bare(&mut self, start: usize, end: usize, indent: usize, last: bool) -> usize {
        let item = matches!(
            self.frames.last().map(|frame| frame.shape),
            Some(Shape::List { .. })
        );
        self.settle(indent, item);
        let top = self
            .frames
            .last()
            .map(|frame| (frame.shape, frame.pending.is_some()));
        let first = self.byte(start).unwrap_or(b' ');
        match top {
            Some((Shape::List { .. }, _)) => self.value(start, indent.checked_sub(1)),
            None if matches!(first, b'{' | b'[') => self.value(start, None),
            Some((Shape::Map { indent: own }, true))
                if own < indent
                    && matches!(first, b'{' | b'[' | b'"' | b'\'' | b'$' | b'|' | b'>') =>
            {
                self.value(start, Some(own))
            }
            _ => {
                if last {
                    let comment = self.text.get(start..end).is_some_and(|t| t.contains(" #"));
                    if !comment {
                        self.type_at(Role::Key, start, false);
                        self.reopen(indent);
                    }
                }
                self.next_line(end)
            }
        }
    }

    /// A key that is typed deeper than a map whose last value is a map belongs to that value.
    fn reopen(&mut self, indent: usize) {
        if let Some(frame) = self.frames.last()
            && let Shape::Map { indent: own } = frame.shape
            && own < indent
            && frame.pending.is_none()
        {
            match frame.entries.last() {
                Some((key, tree)) if matches!(tree.node, Node::Map(_) | Node::Null) => {
                    let inside = key.text.clone();
                    if let Some(typing) = &mut self.typing {
                        typing.inside = Some(inside);
                    }
                }
                _ => self.typing = None,
            }
        }
    }

    /// The key that begins at `start`, and where its colon ends; the colon is followed by a blank or the line's end.
    fn key_at(&self, start: usize, end: usize) -> Option<(Key, usize)> {
        let line = self.text.get(start..end)?;
        let first = line.chars().next()?;
        let (text, length) = match first {
            '"' | '\'' => {
                let close = closing(line, first)?;
                (unquoted(&line[..=close]), close + 1)
            }
            '{' | '[' | '}' | ']' | ',' | '|' | '>' | '%' | '@' | '#' => return None,
            _ => {
                let colon = line
                    .match_indices(':')
                    .map(|(at, _)| at)
                    .find(|at| matches!(line.as_bytes().get(at + 1), None | Some(b' ' | b'\t')))?;
                let text = line[..colon].trim_end();
                if text.contains(" #") {
                    return None;
                }
                (text.to_owned(), text.len())
            }
        };
        let rest = line.get(length..)?;
        let blanks = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        let colon = length + blanks;
        let after = line.get(colon..)?.strip_prefix(':')?;
        if !(after.is_empty() || after.starts_with([' ', '\t'])) {
            return None;
        }
        let key = Key {
            text,
            span: Span::new(start, start + length),
        };
        Some((key, start + colon + 1))
    }

    // ---- values ----

    /// Reads a value of a block; `owner` is the indentation that what goes on below must exceed.
    fn value(&mut self, at: usize, owner: Option<usize>) -> usize {
        let mut start = self.skip_blanks(at);
        // Marks before a value are no part of it.
        while matches!(self.byte(start), Some(b'&' | b'!')) {
            let end = self.line_end(start);
            let word = self.text.get(start..end).unwrap_or("");
            let length = word.find([' ', '\t']).unwrap_or(word.len());
            start = self.skip_blanks(start + length);
        }
        let end = self.line_end(start);
        let last = end == self.text.len();
        match self.byte(start) {
            _ if start >= end => {
                if last {
                    self.type_at(Role::Value, start, false);
                }
                self.next_line(end)
            }
            Some(b'#') => self.next_line(end),
            Some(b'{' | b'[') => self.flow(start, owner),
            Some(quote @ (b'"' | b'\'')) => match self.quoted(start, quote, owner) {
                Some(close) => self.next_line(self.line_end(close)),
                None => self.text.len(),
            },
            Some(b'|' | b'>') => self.block(start, end, owner),
            _ => {
                let line = self.text.get(start..end).unwrap_or("");
                let comment = line.find(" #");
                let text = line[..comment.unwrap_or(line.len())].trim_end();
                if last && comment.is_none() {
                    self.type_at(Role::Value, start, false);
                    if text.len() < line.len() {
                        self.typing = None; // a blank behind a value: it is done
                    }
                }
                if !last || comment.is_some() {
                    self.scalar(text.to_owned(), false, Span::new(start, start + text.len()));
                }
                self.next_line(end)
            }
        }
    }

    /// Gives a text; what is still being typed is kept open, so that the path leads to it.
    fn scalar(&mut self, text: String, quoted: bool, span: Span) {
        self.give(Tree {
            node: Node::String { text, quoted },
            span,
        });
    }

    /// A text in quotes; returns the byte behind it, or `None` when the whole text ends in it.
    fn quoted(&mut self, start: usize, quote: u8, owner: Option<usize>) -> Option<usize> {
        let rest = self.text.get(start..).unwrap_or("");
        let first_end = self.line_end(start);
        let close = closing(rest, char::from(quote)).map(|at| start + at);
        let limit = close.unwrap_or(self.text.len());
        // A line that stands no deeper than the key is not part of the text: the quote was forgotten.
        let mut line = self.next_line(first_end);
        while line < limit {
            let end = self.line_end(line);
            let content = self.skip_blanks(line);
            if content < end && owner.is_some_and(|owner| content - line <= owner) {
                self.scalar(
                    self.text.get(start + 1..first_end).unwrap_or("").to_owned(),
                    true,
                    Span::new(start, first_end),
                );
                return Some(first_end);
            }
            let next = self.next_line(end);
            if next <= line {
                break;
            }
            line = next;
        }
        match close {
            Some(close) => {
                let text = unquoted(self.text.get(start..=close).unwrap_or(""));
                self.scalar(text, true, Span::new(start, close + 1));
                Some(close + 1)
            }
            None => {
                self.type_at(Role::Value, start + 1, true);
                None
            }
        }
    }

    fn block(&mut self, start: usize, end: usize, owner: Option<usize>) -> usize {
        let mut line = self.next_line(end);
        let mut stop = end;
        while line < self.text.len() {
            let line_end = self.line_end(line);
            let content = self.skip_blanks(line);
            if content < line_end && content - line <= owner.unwrap_or(0) {
                break;
            }
            stop = line_end;
            line = self.next_line(line_end);
        }
        if line >= self.text.len() && stop > end {
            self.type_at(Role::Value, end, true);
            return self.text.len();
        }
        let text = self.text.get(end..stop).unwrap_or("").to_owned();
        self.scalar(text, true, Span::new(start, stop));
        line
    }

    /// Brackets; returns where the next line begins.
    fn flow(&mut self, start: usize, owner: Option<usize>) -> usize {
        let base = self.frames.len();
        let mut at = start;
        loop {
            let Some(byte) = self.byte(at) else {
                let key = self
                    .frames
                    .last()
                    .is_some_and(|frame| frame.shape == Shape::FlowMap && frame.pending.is_none());
                let role = if key { Role::Key } else { Role::Value };
                self.type_at(role, at, false);
                return self.text.len();
            };
            match byte {
                b' ' | b'\t' => at += 1,
                b'\n' | b'\r' => {
                    let next = self.next_line(self.line_end(at));
                    if self.leaves(next, owner) {
                        while self.frames.len() > base {
                            self.close();
                        }
                        return next;
                    }
                    at = next;
                }
                b'#' if at > 0 && matches!(self.byte(at - 1), Some(b' ' | b'\t' | b'\n')) => {
                    at = self.line_end(at);
                    if at == self.text.len() {
                        return at;
                    }
                }
                b'{' | b'[' => {
                    if self.frames.len() >= MAX_DEPTH {
                        return self.next_line(self.line_end(at));
                    }
                    let shape = if byte == b'{' {
                        Shape::FlowMap
                    } else {
                        Shape::FlowList
                    };
                    self.open(shape, at);
                    at += 1;
                }
                b'}' | b']' => {
                    at += 1;
                    if let Some(frame) = self.frames.last_mut() {
                        frame.end = frame.end.max(at);
                    }
                    self.close();
                    if self.frames.len() <= base {
                        let end = self.line_end(at);
                        return self.next_line(end);
                    }
                }
                b',' => {
                    self.flush();
                    at += 1;
                }
                _ => match self.flow_scalar(at, byte, owner) {
                    Some(next) => at = next,
                    None => return self.text.len(),
                },
            }
        }
    }

    /// Whether the line at `at` cannot be the continuation of brackets that a line at `owner` opened.
    fn leaves(&self, at: usize, owner: Option<usize>) -> bool {
        let Some(owner) = owner else {
            return false;
        };
        let content = self.skip_blanks(at);
        let shallow = content - at <= owner;
        match self.byte(content) {
            None => shallow,
            Some(b'\n' | b'\r' | b'}' | b']' | b',' | b'#') => false,
            Some(_) => shallow,
        }
    }

    /// A scalar in brackets; returns the byte behind it, or `None` when the whole text ends in it.
    fn flow_scalar(&mut self, start: usize, first: u8, owner: Option<usize>) -> Option<usize> {
        let in_map = self
            .frames
            .last()
            .is_some_and(|frame| frame.shape == Shape::FlowMap);
        let key_due = in_map
            && self
                .frames
                .last()
                .is_some_and(|frame| frame.pending.is_none());
        if matches!(first, b'"' | b'\'') {
            if !key_due {
                return self.quoted(start, first, owner);
            }
            let line = self.text.get(start..self.line_end(start)).unwrap_or("");
            let Some(close) = closing(line, char::from(first)) else {
                if self.line_end(start) == self.text.len() {
                    self.type_at(Role::Key, start + 1, true);
                    return None;
                }
                return Some(self.line_end(start));
            };
            let key = Key {
                text: unquoted(&line[..=close]),
                span: Span::new(start, start + close + 1),
            };
            self.key(key);
            let after = self.skip_blanks(start + close + 1);
            if self.byte(after) == Some(b':') {
                return Some(after + 1);
            }
            self.flush();
            return Some(after);
        }
        let bytes = self.text.as_bytes();
        let mut end = start;
        while let Some(&byte) = bytes.get(end) {
            let colon = byte == b':'
                && matches!(
                    bytes.get(end + 1),
                    None | Some(b' ' | b'\t' | b',' | b'}' | b']' | b'\n' | b'\r')
                );
            let comment = byte == b'#' && end > 0 && bytes[end - 1] == b' ';
            if colon || comment || matches!(byte, b',' | b'{' | b'[' | b'}' | b']' | b'\n' | b'\r')
            {
                break;
            }
            end += 1;
        }
        let raw = self.text.get(start..end).unwrap_or("");
        let text = raw.trim_end();
        let span = Span::new(start, start + text.len());
        if key_due {
            if end == self.text.len() {
                self.type_at(Role::Key, start, false);
                return None;
            }
            self.key(Key {
                text: text.to_owned(),
                span,
            });
            if self.byte(end) == Some(b':') {
                return Some(end + 1);
            }
            self.flush();
        } else if end == self.text.len() {
            if text.len() == raw.len() {
                self.type_at(Role::Value, start, false);
            }
            return None;
        } else {
            self.scalar(text.to_owned(), false, span);
            if self.byte(end) == Some(b':') {
                end += 1; // `a: b: c` is a fault, told elsewhere
            }
        }
        Some(end.max(start + 1))
    }
}

/// Where the quote that `text` begins with is closed.
fn closing(text: &str, quote: char) -> Option<usize> {
    let bytes = text.as_bytes();
    let mark = u8::try_from(quote).ok()?;
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'\\' && mark == b'"' {
            at += 2;
        } else if byte == mark {
            if mark == b'\'' && bytes.get(at + 1) == Some(&mark) {
                at += 2;
            } else {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    None
}

/// The text between quotes, with the escapes that names and references can have.
fn unquoted(text: &str) -> String {
    let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or("");
    if text.starts_with('\'') {
        inner.replace("''", "'")
    } else {
        inner.replace("\\\"", "\"").replace("\\\\", "\\")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(tree: &Tree) -> String {
        match &tree.node {
            Node::Seq(items) => {
                format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(","))
            }
            Node::Map(entries) => format!(
                "{{{}}}",
                entries
                    .iter()
                    .map(|(key, value)| format!("{}:{}", key.text, show(value)))
                    .collect::<Vec<_>>()
                    .join(",")
            ),
            _ => tree.as_text().unwrap_or("~").to_owned(),
        }
    }

    /// The path and role at the mark `|`, and what is typed there.
    fn at(text: &str) -> Option<(String, Role, String)> {
        let offset = text.find('¦').unwrap();
        let text = text.replace('¦', "");
        let cursor = cursor(&text, offset)?;
        let path: Vec<String> = cursor
            .path
            .iter()
            .map(|step| match step {
                Step::Key(key) => key.clone(),
                Step::Item => "*".to_owned(),
            })
            .collect();
        Some((
            path.join("."),
            cursor.role,
            text[cursor.start..offset].to_owned(),
        ))
    }

    #[track_caller]
    fn expect(text: &str, path: &str, role: Role, typed: &str) {
        assert_eq!(
            at(text),
            Some((path.to_owned(), role, typed.to_owned())),
            "{text}"
        );
    }

    #[test]
    fn sound_yaml_is_read_as_the_engine_reads_it() {
        let text = "# c\nschema: retouch/v1\nparams:\n  a: {type: string, default: \"x {y}: z\"}  # c\n\nnodes:\n  \
                    n:\n    op: grid\n    images: [$a, $b.c]\n    labels:\n    - one\n    - 'it''s'\n    text: |\n      \
                    a: b\n      c\n  m: {op: x,\n    y: [1, 2],\n    z: {}}\noutputs: {a: {value: $n}}\n";
        assert_eq!(
            show(&read(text)),
            "{schema:retouch/v1,params:{a:{type:string,default:x {y}: z}},nodes:{n:{op:grid,images:[$a,$b.c],\
             labels:[one,it's],text:\n      a: b\n      c},m:{op:x,y:[1,2],z:{}}},outputs:{a:{value:$n}}}"
        );
    }

    #[test]
    fn what_is_forgotten_costs_its_own_line_only() {
        let text = "nodes:\n  a: {op: x, y: $b\n  b: {op: y, z: \"open\n  c:\n    op: z\n    half\n  d: [1,\n  e: {op: x}\n";
        assert_eq!(
            show(&read(text)),
            "{nodes:{a:{op:x,y:$b},b:{op:y,z:open},c:{op:z},d:[1],e:{op:x}}}"
        );
        let text = "a: \"open\nb: 1\nc: }\n\td: 2\n- e\n";
        assert!(
            show(&read(text)).starts_with("{a:open,b:1,"),
            "{}",
            show(&read(text))
        );
    }

    #[test]
    fn no_text_is_too_broken() {
        let samples = [
            "{",
            "}",
            "- ",
            "-",
            "a:\n - b\n  c",
            "\u{feff}a: 1",
            "{a: {b",
            "[[[{{{",
            "a: |\n",
            "? x",
            "'",
            "\"\\",
        ];
        for text in samples {
            let _ = read(text);
            for offset in 0..=text.len() {
                let _ = cursor(text, offset);
            }
        }
        let _ = read(&"[".repeat(10_000));
        let _ = read(&"- ".repeat(10_000));
    }

    #[test]
    fn keys_and_values_being_typed_are_known_in_both_styles() {
        use Role::{Key, Value};
        expect("sch¦", "", Key, "sch");
        expect("schema: ret¦", "schema", Value, "ret");
        expect("nodes:\n  a:\n    o¦", "nodes.a", Key, "o");
        expect("nodes:\n  a:\n    ¦", "nodes.a", Key, "");
        expect(
            "nodes:\n  a:\n    op: x\n    mo¦\n    steps: 3\n",
            "nodes.a",
            Key,
            "mo",
        );
        expect("nodes:\n  a:\n    op: x\n    ¦\n  b:\n", "nodes.a", Key, "");
        expect("nodes:\n  a:\n    op: x\n  ¦\n", "nodes", Key, "");
        expect("nodes:\n  a:\n    op: x\n¦\n", "", Key, "");
        expect("nodes:\n  a:\n    op: x\n   ¦\n", "nodes.a", Key, "");
        expect("nodes:\n  a:\n    model: $b¦", "nodes.a.model", Value, "$b");
        expect(
            "nodes:\n  a:\n    model:\n      $b¦",
            "nodes.a.model",
            Value,
            "$b",
        );
        expect(
            "nodes:\n  a:\n    model: ¦\n    x: 1",
            "nodes.a.model",
            Value,
            "",
        );
        expect("nodes:\n  a: {op: ¦", "nodes.a.op", Value, "");
        expect("nodes:\n  a: {op: sam¦}", "nodes.a.op", Value, "sam");
        expect("nodes:\n  a: {¦}", "nodes.a", Key, "");
        expect("nodes:\n  a: {op: sample, mo¦", "nodes.a", Key, "mo");
        expect(
            "nodes:\n  a: {op: grid, images: [$a, $¦",
            "nodes.a.images.*",
            Value,
            "$",
        );
        expect(
            "nodes:\n  a:\n    images:\n      - $¦",
            "nodes.a.images.*",
            Value,
            "$",
        );
        expect(
            "nodes:\n  a:\n    images:\n    - ¦",
            "nodes.a.images.*",
            Value,
            "",
        );
        expect(
            "nodes:\n  a: {op: x, prompt: \"a {pl¦",
            "nodes.a.prompt",
            Value,
            "a {pl",
        );
        expect(
            "nodes:\n  a:\n    prompt: \"a {pl¦ b\"\n",
            "nodes.a.prompt",
            Value,
            "a {pl",
        );
        expect("nodes:\n  a: {op: x,\n      mo¦", "nodes.a", Key, "mo");
        expect(
            "nodes:\n  a: {op: x, y: $z\n  b: {op: ¦",
            "nodes.b.op",
            Value,
            "",
        );
        expect(
            "nodes:\n  a: {op: x, p: \"open\n  b: {op: ¦",
            "nodes.b.op",
            Value,
            "",
        );
        expect("outputs: {a: {value: $¦", "outputs.a.value", Value, "$");
        assert_eq!(at("a: 1 # no¦"), None);
        assert_eq!(at("# no¦"), None);
        assert_eq!(at("nodes:\n  a: {op: sample ¦"), None);
    }
}
