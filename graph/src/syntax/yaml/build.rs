//! From the parser's events to a tree: duplicate keys, tags, merge keys, and budgets for depth and aliases.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Parser, ScalarStyle};

use crate::base::problem::{Code, Problem, Source, Span};
use crate::syntax::yaml::limits::{MAX_ALIASED, MAX_ALIASED_BYTES, MAX_DEPTH};
use crate::syntax::yaml::tree::{MapKey, Node, Tree};
use crate::value::fields::MAX_INTEGER;

/// The anchors that an alias names, by number. Only their values are kept while a text is read: copies of values that
/// are anchored inside each other would otherwise add up to many times the text.
fn aliased_anchors(text: &str) -> HashSet<usize> {
    if !text.contains('*') || !text.contains('&') {
        return HashSet::new();
    }
    let mut options = granit_parser::options! { emit_comments: false };
    options.max_buffered_comment_events = usize::MAX;
    Parser::new_from_str_with_options(text, options)
        .map_while(Result::ok)
        .filter_map(|(event, _)| match event {
            Event::Alias(id) => Some(id),
            _ => None,
        })
        .collect()
}

struct Anchored {
    /// The value; `None` when what is anchored and aliased is together beyond the budget of what aliases may add. The
    /// text is then refused at this alias or one before it.
    tree: Option<Tree>,
    size: Measure,
}

/// How large a value is.
#[derive(Clone, Copy, Default)]
struct Measure {
    /// The values in it, itself included.
    nodes: usize,
    /// The bytes of its texts and keys.
    bytes: usize,
    /// How deep it is nested; of a scalar 0.
    depth: usize,
}

impl Measure {
    fn of(tree: &Tree) -> Self {
        let mut size = Self {
            nodes: 1,
            ..Self::default()
        };
        // The recursion is bounded by `MAX_DEPTH`.
        match &tree.node {
            Node::String { text, .. } => size.bytes = text.len(),
            Node::Seq(items) => {
                size.depth = 1;
                items.iter().for_each(|item| size.hold(Self::of(item)));
            }
            Node::Map(entries) => {
                size.depth = 1;
                for (key, value) in entries {
                    size.bytes += key.text.len();
                    size.hold(Self::of(value));
                }
            }
            _ => {}
        }
        size
    }

    fn hold(&mut self, inner: Self) {
        self.add(inner);
        self.depth = self.depth.max(inner.depth + 1);
    }

    fn add(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.bytes += other.bytes;
    }

    /// Whether aliases may not add so much.
    fn is_too_much(self) -> bool {
        self.nodes > MAX_ALIASED || self.bytes > MAX_ALIASED_BYTES
    }
}

enum Collection {
    Seq(Vec<Tree>),
    Map {
        entries: Vec<(MapKey, Tree)>,
        /// The position of each key; kept only for larger maps, small ones are searched.
        index: HashMap<String, usize>,
        pending: Pending,
    },
}

enum Pending {
    /// A key is next.
    Key,
    /// The value of this key is next.
    Value(MapKey),
    /// The value of a faulty key is next; it is dropped.
    Dropped,
}

struct Frame {
    collection: Collection,
    span: Span,
    anchor: usize,
}

/// Builds a [`Tree`] from the events of the parser.
pub(super) struct Builder<'a> {
    pub(super) source: &'a Source,
    pub(super) problems: &'a mut Vec<Problem>,
    stack: Vec<Frame>,
    /// The anchors that are aliased anywhere in the text.
    used: HashSet<usize>,
    anchors: HashMap<usize, Anchored>,
    /// What is kept for aliases to come. Each is used at least once, so this has the budget of `aliased`.
    kept: Measure,
    /// What aliases added so far.
    aliased: Measure,
    pub(super) root: Option<Tree>,
}

/// Maps with more entries than this have an index of their keys.
const INDEXED: usize = 12;

impl<'a> Builder<'a> {
    pub(super) fn new(source: &'a Source, problems: &'a mut Vec<Problem>) -> Self {
        Self {
            source,
            problems,
            stack: Vec::new(),
            used: aliased_anchors(source.text()),
            anchors: HashMap::new(),
            kept: Measure::default(),
            aliased: Measure::default(),
            root: None,
        }
    }

    fn fault(&mut self, code: Code, span: Span, message: impl Into<String>, help: &str) {
        self.problems
            .push(Problem::new(code, self.source, span, message).help(help));
    }

    /// Takes an event; `None` ends the parse.
    pub(super) fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                self.fault(
                    Code::SeveralDocuments,
                    span,
                    "a second document begins here",
                    "a file is one workflow: remove this line and what follows, or put it into another file",
                );
                return None;
            }
            Event::Alias(id) => {
                let Some(anchored) = self.anchors.get(&id) else {
                    self.fault(
                        Code::UnknownAlias,
                        span,
                        "the alias is inside the value that it refers to",
                        "a value cannot contain itself",
                    );
                    return None;
                };
                self.aliased.add(anchored.size);
                let tree = match &anchored.tree {
                    Some(tree) if !self.aliased.is_too_much() => tree,
                    _ => {
                        self.fault(
                            Code::TooManyAliases,
                            span,
                            format!(
                                "aliases expand to more than {MAX_ALIASED} values or {} MiB of text",
                                MAX_ALIASED_BYTES >> 20
                            ),
                            "declare what is used often under `params:`",
                        );
                        return None;
                    }
                };
                if self.stack.len() + anchored.size.depth > MAX_DEPTH {
                    return self.too_deep(span);
                }
                let mut tree = tree.clone();
                tree.span = span;
                self.finish(tree, 0);
            }
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    self.tag(span);
                }
                let node = self.scalar(&text, style, span);
                let span = self.trimmed(span);
                self.finish(Tree { node, span }, anchor);
            }
            Event::SequenceStart(_, anchor, tag) => {
                if tag.is_some() {
                    self.tag(span);
                }
                self.open(Collection::Seq(Vec::new()), span, anchor)?;
            }
            Event::MappingStart(_, anchor, tag) => {
                if tag.is_some() {
                    self.tag(span);
                }
                let map = Collection::Map {
                    entries: Vec::new(),
                    index: HashMap::new(),
                    pending: Pending::Key,
                };
                self.open(map, span, anchor)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(frame) = self.stack.pop() {
                    let (node, last) = match frame.collection {
                        Collection::Seq(items) => {
                            let last = items.last().map(|item| item.span.end);
                            (Node::Seq(items), last)
                        }
                        Collection::Map { entries, .. } => {
                            let last = entries
                                .last()
                                .map(|(key, value)| value.span.end.max(key.span.end));
                            (Node::Map(entries), last)
                        }
                    };
                    // The end of a block is where the next token begins; of a flow, its bracket.
                    let end = if span.end > span.start {
                        span.end
                    } else {
                        last.unwrap_or(frame.span.end)
                    };
                    let span = Span::new(frame.span.start, end.max(frame.span.end));
                    self.finish(Tree { node, span }, frame.anchor);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn too_deep(&mut self, span: Span) -> Option<()> {
        self.fault(
            Code::TooDeep,
            span,
            format!("maps and lists are nested more than {MAX_DEPTH} deep"),
            "no workflow needs that; is a bracket missing?",
        );
        None
    }

    fn open(&mut self, collection: Collection, span: Span, anchor: usize) -> Option<()> {
        if self.stack.len() >= MAX_DEPTH {
            return self.too_deep(span);
        }
        self.stack.push(Frame {
            collection,
            span,
            anchor,
        });
        Some(())
    }

    fn tag(&mut self, span: Span) {
        // The tag is before the value, usually on the same line.
        let before = self.source.text().get(..span.start).unwrap_or("");
        let start = before.rfind('!').map_or(span.start, |mark| {
            before[..=mark]
                .rfind(|c: char| c.is_whitespace() || matches!(c, '[' | '{' | ','))
                .map_or(mark, |space| space + 1)
        });
        let text = before.get(start..).unwrap_or("").trim_end();
        let message = format!("tags such as `{text}` are not part of the language");
        self.fault(
            Code::Tag,
            Span::new(start, start + text.len()),
            message,
            "remove the tag; numbers are written without quotes, texts may have them",
        );
    }

    fn trimmed(&self, span: Span) -> Span {
        let text = self.source.slice(span);
        Span::new(span.start, span.start + text.trim_end().len())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Span) -> Node {
        if style != ScalarStyle::Plain {
            return Node::String {
                text: text.to_owned(),
                quoted: true,
            };
        }
        match plain(text) {
            Ok(node) => node,
            Err(message) => {
                self.fault(
                    Code::NumberOutOfRange,
                    span,
                    message,
                    "put it in quotes if it is a text",
                );
                Node::String {
                    text: text.to_owned(),
                    quoted: false,
                }
            }
        }
    }

    /// Puts a finished value where it belongs: a list, a key, a key's value, the root.
    fn finish(&mut self, tree: Tree, anchor: usize) {
        if anchor != 0 && self.used.contains(&anchor) {
            let mut kept = None;
            let mut size = Measure::default();
            if !self.kept.is_too_much() {
                size = Measure::of(&tree);
                self.kept.add(size);
                kept = (!self.kept.is_too_much()).then(|| tree.clone());
            }
            self.anchors.insert(anchor, Anchored { tree: kept, size });
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(tree);
            return;
        };
        match &mut frame.collection {
            Collection::Seq(items) => items.push(tree),
            Collection::Map {
                entries,
                index,
                pending,
            } => match std::mem::replace(pending, Pending::Key) {
                Pending::Value(key) => {
                    if entries.len() >= INDEXED {
                        index.insert(key.text.clone(), entries.len());
                    }
                    entries.push((key, tree));
                }
                Pending::Dropped => {}
                Pending::Key => {
                    let fault = match tree.node {
                        Node::String { text, quoted } => {
                            if text == "<<" && !quoted {
                                Some((
                                    Code::MergeKey,
                                    "merge keys (`<<`) are not part of the language".to_owned(),
                                    "write the keys out".to_owned(),
                                    None,
                                ))
                            } else {
                                if entries.len() == INDEXED {
                                    index.extend(
                                        entries
                                            .iter()
                                            .enumerate()
                                            .map(|(at, (key, _))| (key.text.clone(), at)),
                                    );
                                }
                                let first = if entries.len() < INDEXED {
                                    entries.iter().find(|(key, _)| key.text == text)
                                } else {
                                    index.get(&text).and_then(|&at| entries.get(at))
                                };
                                match first {
                                    Some((first, _)) => Some((
                                        Code::DuplicateKey,
                                        format!("the key `{text}` is given twice"),
                                        "remove one of them, or rename it".to_owned(),
                                        Some(first.span),
                                    )),
                                    None => {
                                        *pending = Pending::Value(MapKey {
                                            text,
                                            span: tree.span,
                                        });
                                        None
                                    }
                                }
                            }
                        }
                        _ => Some((
                            Code::KeyNotText,
                            format!("a key is a text, not {}", tree.describe()),
                            "put the key in quotes".to_owned(),
                            None,
                        )),
                    };
                    if let Some((code, message, help, first)) = fault {
                        *pending = Pending::Dropped;
                        let mut problem =
                            Problem::new(code, self.source, tree.span, message).help(help);
                        if let Some(first) = first {
                            problem = problem.label("again here").also(
                                self.source,
                                first,
                                "first given here",
                            );
                        }
                        self.problems.push(problem);
                    }
                }
            },
        }
    }
}

/// Reads a scalar without quotes by the core schema of YAML 1.2, with strict booleans.
fn plain(text: &str) -> Result<Node, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Node::Null),
        "true" => return Ok(Node::Bool(true)),
        "false" => return Ok(Node::Bool(false)),
        _ => {}
    }
    let string = || Node::String {
        text: text.to_owned(),
        quoted: false,
    };
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    let Some(first) = body.bytes().next() else {
        return Ok(string());
    };
    if !(first.is_ascii_digit() || first == b'.') {
        return Ok(string());
    }
    let too_great = || {
        format!(
            "the integer {text} is greater than {MAX_INTEGER} (2^53 - 1), the largest that is supported"
        )
    };
    let integer = |digits: &str, radix: u32| -> Result<Node, String> {
        let value = i64::from_str_radix(digits, radix).map_err(|_| too_great())?;
        if value.unsigned_abs() > MAX_INTEGER {
            return Err(too_great());
        }
        Ok(Node::Int(if text.starts_with('-') {
            -value
        } else {
            value
        }))
    };
    if body.bytes().all(|b| b.is_ascii_digit()) {
        return integer(body, 10);
    }
    // Octal and hexadecimal have no sign in the core schema.
    if let Some(digits) = text.strip_prefix("0o")
        && !digits.is_empty()
        && digits.bytes().all(|b| (b'0'..=b'7').contains(&b))
    {
        return integer(digits, 8);
    }
    if let Some(digits) = text.strip_prefix("0x")
        && !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return integer(digits, 16);
    }
    if matches!(body, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(format!("{text} is not a finite number"));
    }
    if is_float(body) {
        return match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Node::Float(value)),
            _ => Err(format!("the number {text} is too large")),
        };
    }
    Ok(string())
}

/// `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(body: &str) -> bool {
    let (mantissa, exponent) = match body.find(['e', 'E']) {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let mantissa_fits = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    let exponent_fits = exponent
        .is_none_or(|exponent| digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)));
    mantissa_fits && exponent_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_aliased_is_kept_and_within_the_budget() {
        let kept = |text: &str| {
            let source = Source::new("t.yaml", text);
            let mut problems = Vec::new();
            let mut builder = Builder::new(&source, &mut problems);
            for event in Parser::new_from_str(text) {
                let (event, _) = event.unwrap();
                if builder.event(event, Span::default()).is_none() {
                    break;
                }
            }
            let anchors = builder.anchors.values();
            let trees = anchors.filter_map(|anchored| anchored.tree.as_ref());
            let sizes: Vec<usize> = trees.map(|tree| Measure::of(tree).nodes).collect();
            (sizes.iter().sum::<usize>(), problems.len())
        };
        // Anchors inside each other: each would be a copy of all that is in it.
        let nested = |alias: &str| {
            let open: String = (0..50).map(|i| format!("&a{i} [")).collect();
            let inner = vec!["x"; 40_000].join(",");
            format!("a: {open}{inner}{}\nb: {alias}\n", "]".repeat(50))
        };
        assert_eq!(kept(&nested("c")), (0, 0));
        assert_eq!(kept(&nested("*a49")), (40_001, 0));
        // As many as the budget has room for; what is beyond is refused at its alias, whatever the order.
        assert_eq!(kept(&nested("[*a49, *a48, *a47]")), (80_003, 1));
        assert_eq!(kept(&nested("[*a47, *a48, *a49]")), (80_003, 1));
    }
}
