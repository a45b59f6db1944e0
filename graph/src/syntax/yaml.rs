//! YAML with spans: the one module that touches the parser.
//!
//! The language takes less than YAML offers: the core types of YAML 1.2, strict booleans, no tags, no merge keys, one
//! document, text keys. Every duplicate key is reported, and depth, size and aliases have budgets.

use std::collections::{HashMap, HashSet};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};
use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::value::fields::MAX_INTEGER;

/// The largest file, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// How deep maps and lists may be nested.
pub const MAX_DEPTH: usize = 64;
/// How many values aliases may add.
pub const MAX_ALIASED: usize = 100_000;
/// How many bytes of text and keys aliases may add: written out, a file could not have had more.
pub const MAX_ALIASED_BYTES: usize = MAX_BYTES;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The value.
    pub node: Node,
    /// Where it is written; for an alias, where the alias is.
    pub span: Span,
}

/// A key of a map and its place.
#[derive(Clone, Debug)]
pub struct MapKey {
    /// The text of the key.
    pub text: String,
    /// Where it is written.
    pub span: Span,
}

/// A YAML value.
#[derive(Clone, Debug)]
pub enum Node {
    /// Nothing, `null` or `~`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer of at most 2^53 - 1.
    Int(i64),
    /// A number with a point or an exponent; finite.
    Float(f64),
    /// A text.
    String {
        /// The text, escapes resolved.
        text: String,
        /// Whether it was written with quotes or as a block (`|`, `>`).
        quoted: bool,
    },
    /// A list.
    Seq(Vec<Tree>),
    /// A map in the order of the file, without duplicates.
    Map(Vec<(MapKey, Tree)>),
}

impl Tree {
    /// The text, when the value is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match &self.node {
            Node::String { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The value as JSON; of keys that are there twice (a fault that is reported) the last.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match &self.node {
            Node::Null => Json::Null,
            Node::Bool(value) => Json::from(*value),
            Node::Int(value) => Json::from(*value),
            Node::Float(value) => Json::from(*value),
            Node::String { text, .. } => Json::from(text.as_str()),
            Node::Seq(items) => items.iter().map(Self::to_json).collect(),
            Node::Map(entries) => Json::Object(
                (entries.iter())
                    .map(|(key, value)| (key.text.clone(), value.to_json()))
                    .collect(),
            ),
        }
    }

    /// A JSON value as a tree whose parts are all at one place.
    #[must_use]
    pub fn of(value: &Json, span: Span) -> Self {
        let node = match value {
            Json::Null => Node::Null,
            Json::Bool(value) => Node::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(value) => Node::Int(value),
                None => Node::Float(number.as_f64().unwrap_or(0.0)),
            },
            Json::String(text) => Node::String {
                text: text.clone(),
                quoted: false,
            },
            Json::Array(items) => {
                Node::Seq(items.iter().map(|item| Self::of(item, span)).collect())
            }
            Json::Object(entries) => Node::Map(
                (entries.iter())
                    .map(|(key, value)| {
                        let key = MapKey {
                            text: key.clone(),
                            span,
                        };
                        (key, Self::of(value, span))
                    })
                    .collect(),
            ),
        };
        Self { node, span }
    }

    /// Whether both are the same value, whatever their places and quotes.
    #[must_use]
    pub fn same_value(&self, other: &Self) -> bool {
        match (&self.node, &other.node) {
            (Node::Null, Node::Null) => true,
            (Node::Bool(a), Node::Bool(b)) => a == b,
            (Node::Int(a), Node::Int(b)) => a == b,
            (Node::Float(a), Node::Float(b)) => a.to_bits() == b.to_bits(),
            (Node::String { text: a, .. }, Node::String { text: b, .. }) => a == b,
            (Node::Seq(a), Node::Seq(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same_value(b))
            }
            (Node::Map(a), Node::Map(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .zip(b)
                        .all(|(a, b)| a.0.text == b.0.text && a.1.same_value(&b.1))
            }
            _ => false,
        }
    }

    /// What the value is, in words: "the text `abc`", "a list".
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.node {
            Node::Null => "nothing".to_owned(),
            Node::Bool(value) => format!("`{value}`"),
            Node::Int(value) => format!("the number {value}"),
            Node::Float(value) => format!("the number {value}"),
            Node::String { text, .. } if text.chars().count() > 40 => {
                let start: String = text.chars().take(30).collect();
                format!("the text `{}…`", start.escape_debug())
            }
            Node::String { text, .. } => format!("the text `{}`", text.escape_debug()),
            Node::Seq(_) => "a list".to_owned(),
            Node::Map(_) => "a map".to_owned(),
        }
    }

    /// Whether it is what YAML makes of a template without quotes: `{place}` is a map of one key and no value.
    #[must_use]
    pub fn looks_like_template(&self) -> bool {
        match &self.node {
            Node::Map(entries) => matches!(
                entries.as_slice(),
                [(key, Tree { node: Node::Null, span })]
                    if span.start == span.end && crate::syntax::template::is_name(&key.text)
            ),
            _ => false,
        }
    }
}

/// Text from bytes.
///
/// # Errors
/// A fault with the place of the first byte that is not UTF-8, or when there are too many bytes.
pub fn decode(name: &str, bytes: &[u8]) -> Result<Source, Problem> {
    if bytes.len() > MAX_BYTES {
        return Err(too_large(&Source::new(name, "")));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Source::new(name, text)),
        Err(error) => {
            let at = error.valid_up_to();
            // The text up to there is shown as it is, the rest with replacement characters.
            let source = Source::new(name, String::from_utf8_lossy(bytes));
            Err(Problem::new(
                Code::NotUtf8,
                &source,
                Span::new(at, at + '\u{fffd}'.len_utf8()),
                format!("byte {at} of the file is not UTF-8"),
            )
            .help("save the file as UTF-8"))
        }
    }
}

/// Whether a text in double quotes begins with a drive's letter, `"C:\`.
fn begins_with_drive(rest: &str) -> bool {
    matches!(rest.as_bytes(), [b'"', letter, b':', b'\\', ..] if letter.is_ascii_alphabetic())
}

fn too_large(source: &Source) -> Problem {
    Problem::new(
        Code::TooLarge,
        source,
        Span::default(),
        format!("the file has more than {MAX_BYTES} bytes, a workflow has not"),
    )
    .help("is it a workflow at all?")
}

/// Reads a text as one YAML document; `None` when a fault leaves nothing to go on with.
pub fn parse(source: &Source, problems: &mut Vec<Problem>) -> Option<Tree> {
    if source.text().len() > MAX_BYTES {
        problems.push(too_large(source));
        return None;
    }
    if let Some(problem) = control_characters(source) {
        problems.push(problem);
        return None;
    }
    let mut builder = Builder {
        source,
        problems,
        stack: Vec::new(),
        used: aliased_anchors(source.text()),
        anchors: HashMap::new(),
        kept: Measure::default(),
        aliased: Measure::default(),
        root: None,
    };
    let mut options = granit_parser::options! { emit_comments: false };
    options.max_buffered_comment_events = usize::MAX;
    for event in Parser::new_from_str_with_options(source.text(), options) {
        match event {
            Ok((event, span)) => {
                let span = Span::new(
                    span.start.byte_offset().unwrap_or_default(),
                    span.end.byte_offset().unwrap_or_default(),
                );
                builder.event(event, span)?;
            }
            Err(error) => {
                let problem = syntax(source, &error);
                builder.problems.push(problem);
                return None;
            }
        }
    }
    let end = Span::new(source.text().len(), source.text().len());
    Some(builder.root.unwrap_or(Tree {
        node: Node::Null,
        span: end,
    }))
}

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

/// Whether a character may not stand in a file: a control character, but for tabs and line breaks. YAML 1.2 leaves out
/// nearly all of them, too; none can be seen in an editor, and a terminal that shows the file obeys them.
#[must_use]
pub fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r')
}

/// The fault of the control characters in a text, at the first of them.
fn control_characters(source: &Source) -> Option<Problem> {
    let mut found = (source.text().char_indices()).filter(|(_, c)| is_control(*c));
    let (at, c) = found.next()?;
    let code = u32::from(c);
    let more = match found.count() {
        0 => String::new(),
        1 => "; there is one more".to_owned(),
        n => format!("; there are {n} more"),
    };
    let help =
        format!("remove it; a text in double quotes may have it as an escape: `\"\\x{code:02x}\"`");
    let problem = Problem::new(
        Code::Syntax,
        source,
        Span::new(at, at + c.len_utf8()),
        format!("the control character U+{code:04X} stands in the file{more}"),
    );
    Some(problem.help(help))
}

/// The comments of a text in order, without what surrounds them; `None` when it is not YAML.
#[must_use]
pub fn comments(text: &str) -> Option<Vec<String>> {
    let mut options = granit_parser::options! { emit_comments: true };
    options.max_buffered_comment_events = usize::MAX;
    let mut comments = Vec::new();
    for event in Parser::new_from_str_with_options(text, options) {
        if let (Event::Comment(text, _), _) = event.ok()? {
            comments.push(text.trim_end().to_owned());
        }
    }
    Some(comments)
}

/// A scalar as the formatter sees it.
pub(crate) struct Scalar {
    pub(crate) span: Span,
    pub(crate) style: Style,
    /// Where it begins; of a block text its sign (`|`, `>`), which stands on the line before.
    pub(crate) sign: usize,
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Quoted,
    Block,
}

/// What the formatter needs to know of the layout of a text.
#[derive(Default)]
pub(crate) struct Layout {
    pub(crate) scalars: Vec<Scalar>,
    /// The spans of the comments.
    pub(crate) comments: Vec<Span>,
    /// The spans of lists and maps in brackets, of nested ones the outermost, in order.
    pub(crate) flow: Vec<Span>,
}

/// The layout of a text; `None` when it is not YAML.
pub(crate) fn layout(text: &str) -> Option<Layout> {
    let mut options = granit_parser::options! { emit_comments: true };
    options.max_buffered_comment_events = usize::MAX;
    let mut layout = Layout::default();
    let mut open: Vec<(bool, usize)> = Vec::new();
    let mut brackets = 0;
    // Where the last value, or part of one, ended.
    let mut before = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.ok()?;
        let span = Span::new(span.start.byte_offset()?, span.end.byte_offset()?);
        let from = match event {
            Event::Scalar(..)
            | Event::Alias(..)
            | Event::SequenceStart(..)
            | Event::SequenceEnd
            | Event::MappingStart(..)
            | Event::MappingEnd => std::mem::replace(&mut before, span.end),
            _ => before,
        };
        match event {
            Event::Comment(..) => layout.comments.push(span),
            Event::Scalar(_, style, ..) => layout.scalars.push(Scalar {
                sign: match style {
                    ScalarStyle::Literal | ScalarStyle::Folded => {
                        block_sign(text, from, text.len())?
                    }
                    _ => span.start,
                },
                span,
                style: match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                },
            }),
            Event::SequenceStart(style, ..) | Event::MappingStart(style, ..) => {
                let flow = style == granit_parser::StructureStyle::Flow && !span_is_empty(span);
                brackets += usize::from(flow);
                open.push((flow, span.start));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((true, start)) = open.pop() {
                    brackets -= 1;
                    if brackets == 0 {
                        layout.flow.push(Span::new(start, span.end));
                    }
                }
            }
            _ => {}
        }
    }
    Some(layout)
}

/// A value as it is written, for those who change a text and nothing else in it. The tree has the shape of [`Tree`],
/// but for aliases, which are leaves here.
#[derive(Clone, Debug)]
pub struct Written {
    /// Where it is written, without its anchor and tag, in bytes of the text; empty where nothing is written. The end of
    /// a block map or list is the end of the last value in it.
    pub span: Span,
    /// How it is written.
    pub form: Form,
    /// The anchor that is defined for it (`&name`), by number.
    pub anchor: Option<usize>,
    /// Whether it has a tag.
    pub tagged: bool,
}

/// How a value is written.
#[derive(Clone, Debug)]
pub enum Form {
    /// A scalar without quotes, or nothing.
    Plain,
    /// A text in single quotes.
    Single,
    /// A text in double quotes.
    Double,
    /// A block in which line breaks are kept: `|`.
    Literal,
    /// A block in which lines are joined: `>`.
    Folded,
    /// An alias of the anchor of that number.
    Alias(usize),
    /// A list.
    List {
        /// Whether it stands in brackets.
        flow: bool,
        /// Its items.
        items: Vec<Written>,
    },
    /// A map.
    Map {
        /// Whether it stands in brackets.
        flow: bool,
        /// Its keys and their values in the order of the file, duplicates included.
        entries: Vec<(Written, Written)>,
    },
}

/// How the values of a text are written; `None` when it is not YAML or has none. The text is one that [`parse`] reads
/// without a fault: that bounds its depth.
#[must_use]
pub fn written(text: &str) -> Option<Written> {
    struct Open {
        written: Written,
        key: Option<Written>,
    }
    let mut options = granit_parser::options! { emit_comments: false };
    options.max_buffered_comment_events = usize::MAX;
    let mut stack: Vec<Open> = Vec::new();
    // Where the last event ended.
    let mut before = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.ok()?;
        let span = Span::new(span.start.byte_offset()?, span.end.byte_offset()?);
        let named = |anchor: usize| (anchor != 0).then_some(anchor);
        let before = std::mem::replace(&mut before, span.end);
        let done = match event {
            Event::Alias(id) => Written {
                span,
                form: Form::Alias(id),
                anchor: None,
                tagged: false,
            },
            Event::Scalar(_, style, anchor, tag) => Written {
                span: Span::new(
                    match style {
                        // The parser's span is that of the first line on.
                        ScalarStyle::Literal | ScalarStyle::Folded => {
                            block_sign(text, before, span.start)?
                        }
                        _ => span.start,
                    },
                    span.start + text.get(span.start..span.end)?.trim_end().len(),
                ),
                form: match style {
                    ScalarStyle::Plain => Form::Plain,
                    ScalarStyle::SingleQuoted => Form::Single,
                    ScalarStyle::DoubleQuoted => Form::Double,
                    ScalarStyle::Literal => Form::Literal,
                    ScalarStyle::Folded => Form::Folded,
                },
                anchor: named(anchor),
                tagged: tag.is_some(),
            },
            Event::SequenceStart(style, anchor, tag) => {
                stack.push(Open {
                    written: Written {
                        span,
                        form: Form::List {
                            flow: style == granit_parser::StructureStyle::Flow,
                            items: Vec::new(),
                        },
                        anchor: named(anchor),
                        tagged: tag.is_some(),
                    },
                    key: None,
                });
                continue;
            }
            Event::MappingStart(style, anchor, tag) => {
                stack.push(Open {
                    written: Written {
                        span,
                        form: Form::Map {
                            flow: style == granit_parser::StructureStyle::Flow,
                            entries: Vec::new(),
                        },
                        anchor: named(anchor),
                        tagged: tag.is_some(),
                    },
                    key: None,
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let mut written = stack.pop()?.written;
                let last = match &written.form {
                    Form::List { items, .. } => items.last().map(|item| item.span.end),
                    Form::Map { entries, .. } => {
                        (entries.last()).map(|(key, value)| value.span.end.max(key.span.end))
                    }
                    _ => None,
                };
                // The end of a block is where the next token begins; of a flow, its bracket.
                let end = if span_is_empty(span) {
                    last.unwrap_or(written.span.end)
                } else {
                    span.end
                };
                written.span.end = end.max(written.span.start);
                written
            }
            _ => continue,
        };
        let Some(open) = stack.last_mut() else {
            return Some(done);
        };
        match &mut open.written.form {
            Form::List { items, .. } => items.push(done),
            Form::Map { entries, .. } => match open.key.take() {
                None => open.key = Some(done),
                Some(key) => entries.push((key, done)),
            },
            _ => return None,
        }
    }
    None
}

/// Where the sign that opens a block (`|`, `>`) stands: behind the key or the dash, its anchor and comments.
fn block_sign(text: &str, from: usize, to: usize) -> Option<usize> {
    let mut rest = text.get(from..to)?;
    loop {
        let at = rest.find(['|', '>', '#', '&', '!'])?;
        let skipped = match rest.as_bytes()[at] {
            b'|' | b'>' => return Some(to - rest.len() + at),
            b'#' => rest[at..].find('\n'),
            _ => rest[at..].find(char::is_whitespace),
        };
        rest = rest.get(at + skipped?..)?;
    }
}

fn span_is_empty(span: Span) -> bool {
    span.start == span.end
}

fn syntax(source: &Source, error: &ScanError) -> Problem {
    let mut at = error.marker().byte_offset().unwrap_or_default();
    if matches!(error.kind(), ErrorKind::TabInBlockIndentation)
        && source
            .text()
            .get(..at)
            .is_some_and(|before| before.ends_with('\t'))
    {
        at -= 1; // the parser stops behind the tab
    }
    if let Some(tab) = tab_indent_near(source.text(), at) {
        return Problem::new(
            Code::Syntax,
            source,
            Span::new(tab, tab + 1),
            "this is not YAML: a line is indented with a tab",
        )
        .help("indent with spaces, two for each level");
    }
    let rest = source.text().get(at..).unwrap_or("");
    let width = rest
        .chars()
        .next()
        .filter(|c| !matches!(c, '\n' | '\r'))
        .map_or(0, char::len_utf8);
    let span = Span::new(at, at + width);
    if matches!(error.kind(), ErrorKind::UnknownAnchor) {
        let length = rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | ']' | '}'))
            .unwrap_or(rest.len());
        return Problem::new(
            Code::UnknownAlias,
            source,
            Span::new(at, at + length),
            format!(
                "nothing before this is marked `&{}`",
                rest.get(1..length).unwrap_or("")
            ),
        )
        .help("a reference to a node is written with a dollar: `$base`");
    }
    if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
        return Problem::new(
            Code::TooDeep,
            source,
            span,
            format!("maps and lists are nested more than {MAX_DEPTH} deep"),
        )
        .help("no workflow needs that; is a bracket missing?");
    }
    let template = unquoted_template_before(source.text(), at);
    let span = template.unwrap_or(span);
    let help = if template.is_some() {
        Some("quote the template: `{` opens a map in YAML, so write `prompt: \"{place} at night\"`")
    } else {
        match error.kind() {
            ErrorKind::TabInBlockIndentation => Some("indent with spaces, two for each level"),
            ErrorKind::MappingValueNotAllowed => Some(
                "quote a text that has `: ` in it; a key and its value stand on a line of their own",
            ),
            ErrorKind::UnclosedFlowCollection { .. } => Some("close the bracket"),
            ErrorKind::UnexpectedCharacter { .. } => {
                Some("quote a text that begins with this character")
            }
            ErrorKind::ExpectedBlockMappingKey => Some(
                "the keys of a map begin in the same column; a text with brackets or quotes inside is quoted as a whole",
            ),
            _ if rest.starts_with('\t') => Some("indent with spaces, two for each level"),
            // `\m` of `"C:\models"` is no escape.
            _ if begins_with_drive(rest) => Some(
                "in double quotes `\\` begins an escape: write the path in single quotes, or with `/`",
            ),
            _ => Some(
                "is a bracket or a quote not closed before this? A text with `: `, ` #`, brackets or quotes in it is quoted as a whole",
            ),
        }
    };
    let message = error.info();
    let message = message
        .rsplit_once(", ")
        .filter(|(context, _)| context.starts_with("while ") && !message.contains(", or"))
        .map_or(message.as_str(), |(_, what)| what);
    Problem::new(
        Code::Syntax,
        source,
        span,
        format!("this is not YAML: {message}"),
    )
    .maybe_help(help.map(str::to_owned))
}

/// The first tab in the indentation of the line where the parser gave up, or of the next one: it may stop before it.
fn tab_indent_near(text: &str, at: usize) -> Option<usize> {
    let mut start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    for _ in 0..2 {
        let line = text.get(start..)?.split('\n').next()?;
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        if indent < line.len()
            && let Some(tab) = line[..indent].find('\t')
        {
            return Some(start + tab);
        }
        start += line.len() + 1;
    }
    None
}

/// Where a `{name}` without quotes stands in the line before (or at) the place where the parser gave up.
fn unquoted_template_before(text: &str, at: usize) -> Option<Span> {
    let start = text
        .get(..at)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1);
    let end = text
        .get(at..)
        .and_then(|after| after.find('\n'))
        .map_or(text.len(), |newline| at + newline);
    let mut quote: Option<u8> = None;
    let mut open: Option<usize> = None;
    let bytes = text.as_bytes();
    for position in start..end {
        let byte = bytes[position];
        match quote {
            Some(mark) if mark == byte => quote = None,
            Some(_) => {}
            None => match byte {
                b'"' | b'\'' => quote = Some(byte),
                b'{' if position <= at => open = Some(position),
                b'}' => {
                    if let Some(from) = open.take()
                        && crate::syntax::template::is_name(&text[from + 1..position])
                    {
                        return Some(Span::new(from, position + 1));
                    }
                }
                _ => {}
            },
        }
    }
    None
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
    /// The value of a key that is at fault is next; it is dropped.
    Dropped,
}

struct Frame {
    collection: Collection,
    span: Span,
    anchor: usize,
}

struct Builder<'a> {
    source: &'a Source,
    problems: &'a mut Vec<Problem>,
    stack: Vec<Frame>,
    /// The anchors that are aliased anywhere in the text.
    used: HashSet<usize>,
    anchors: HashMap<usize, Anchored>,
    /// What is kept for aliases to come. Each is used at least once, so this has the budget of `aliased`.
    kept: Measure,
    /// What aliases added so far.
    aliased: Measure,
    root: Option<Tree>,
}

/// Above so many entries the keys of a map are indexed.
const INDEXED: usize = 12;

impl Builder<'_> {
    fn fault(&mut self, code: Code, span: Span, message: impl Into<String>, help: &str) {
        self.problems
            .push(Problem::new(code, self.source, span, message).help(help));
    }

    /// Takes an event; `None` ends the parse.
    fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
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
                        "the alias stands inside the value that it names",
                        "a value cannot hold itself",
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
        // The tag stands before the value, on the same line as a rule.
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
            "remove the tag; numbers stand without quotes, texts may have them",
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
            "the integer {text} is beyond {MAX_INTEGER} (2^53 - 1), the greatest that there is here"
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
        return Err(format!(
            "{text} is not a number that anything here could use"
        ));
    }
    if is_float(body) {
        return match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Node::Float(value)),
            _ => Err(format!("the number {text} is too great")),
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

    fn show(tree: &Tree) -> String {
        match &tree.node {
            Node::Null => "null".into(),
            Node::Bool(b) => b.to_string(),
            Node::Int(i) => i.to_string(),
            Node::Float(f) => format!("{f:?}"),
            Node::String { text, .. } => format!("{text:?}"),
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
        }
    }

    fn read(text: &str) -> (Option<Tree>, Vec<Problem>) {
        let mut problems = Vec::new();
        let tree = parse(&Source::new("t.yaml", text), &mut problems);
        (tree, problems)
    }

    fn value(text: &str) -> String {
        let (tree, problems) = read(text);
        assert!(problems.is_empty(), "{text}: {problems:?}");
        show(&tree.unwrap())
    }

    fn faults(text: &str) -> Vec<(&'static str, usize, usize)> {
        read(text)
            .1
            .iter()
            .map(|p| {
                let (line, column) = p.line_column();
                (p.code().as_str(), line, column)
            })
            .collect()
    }

    #[test]
    fn a_drive_in_double_quotes_has_a_hint_of_its_own() {
        let (_, problems) = read(r#"path: "C:\models\sd15""#);
        assert!(
            problems[0].hint().unwrap().contains("single quotes"),
            "{problems:?}"
        );
        assert_eq!(value(r"path: 'C:\models'"), r#"{path:"C:\\models"}"#);
    }

    #[test]
    fn core_types_are_read_and_nothing_else() {
        assert_eq!(
            value("[1, -2, +3, 0o17, 0xff, 1.5, .5, 1., 1e3, -1.5E-3]"),
            "[1,-2,3,15,255,1.5,0.5,1.0,1000.0,-0.0015]"
        );
        assert_eq!(value("[true, false, null, ~, ]"), "[true,false,null,null]");
        assert_eq!(
            value("[yes, on, True, 1_000, 10..16, 20%, 1e, 0x, '5', 1:30, 2026-01-01]"),
            r#"["yes","on","True","1_000","10..16","20%","1e","0x","5","1:30","2026-01-01"]"#
        );
        assert_eq!(value("\u{feff}a: 1\r\nb:\r\n  - x\r\n"), r#"{a:1,b:["x"]}"#);
        assert_eq!(value(""), "null");
    }

    #[test]
    fn how_values_are_written_is_known_to_the_byte() {
        fn list(text: &str, written: &Written, out: &mut Vec<String>) {
            let mark = match &written.form {
                Form::Plain => 'p',
                Form::Single => 's',
                Form::Double => 'd',
                Form::Literal => 'l',
                Form::Folded => 'f',
                Form::Alias(_) => 'a',
                Form::List { flow, items } => {
                    items.iter().for_each(|item| list(text, item, out));
                    if *flow { 'L' } else { '-' }
                }
                Form::Map { flow, entries } => {
                    for (key, value) in entries {
                        list(text, key, out);
                        list(text, value, out);
                    }
                    if *flow { 'M' } else { ':' }
                }
            };
            let anchor = if written.anchor.is_some() { "&" } else { "" };
            let tag = if written.tagged { "!" } else { "" };
            out.push(format!(
                "{anchor}{tag}{mark}{}",
                &text[written.span.start..written.span.end]
            ));
        }
        let text = "\u{feff}a: &x 5  # c\nb:  # c\nc: 'it''s'\nd: \"\\n\"\ne: |\n  x\n  y\n\nf: >-  # c\n  z\ng: *x\nh: \
                    [1, *x ]\ni:\n- {j: k, l}\nm: &n\n  o: |+\n    p\n\nq: two\n  lines\nr: {s: }\nt: &u\nv: !w {}\n";
        let mut out = Vec::new();
        list(text, &written(text).unwrap(), &mut out);
        let whole = out.pop().unwrap();
        assert_eq!(
            out,
            [
                "pa",
                "&p5",
                "pb",
                "p",
                "pc",
                "s'it''s'",
                "pd",
                "d\"\\n\"",
                "pe",
                "l|\n  x\n  y",
                "pf",
                "f>-  # c\n  z",
                "pg",
                "a*x",
                "ph",
                "p1",
                "a*x",
                "L[1, *x ]",
                "pi",
                "pj",
                "pk",
                "pl",
                "p",
                "M{j: k, l}",
                "-{j: k, l}",
                "pm",
                "po",
                "l|+\n    p",
                "&:o: |+\n    p",
                "pq",
                "ptwo\n  lines",
                "pr",
                "ps",
                "p",
                "M{s: }",
                "pt",
                "&p",
                "pv",
                "!M{}"
            ]
        );
        assert!(whole.starts_with(":a: &x 5") && whole.ends_with("{}"));
        assert!(written("a: [").is_none());
        assert!(written("").is_none());
    }

    #[test]
    fn what_the_language_leaves_out_is_a_fault_with_its_place() {
        assert_eq!(faults("a: 9007199254740991"), []);
        assert_eq!(faults("a: 9007199254740992"), [("R0109", 1, 4)]);
        assert_eq!(faults("a: 99999999999999999999999"), [("R0109", 1, 4)]);
        assert_eq!(faults("a: [.inf, -.inf, .nan, 1e999]").len(), 4);
        assert_eq!(
            faults("a: !!int 3\nb: !x y"),
            [("R0105", 1, 4), ("R0105", 2, 4)]
        );
        assert_eq!(faults("b: &b {x: 1}\na:\n  <<: *b\n"), [("R0106", 3, 3)]);
        assert_eq!(
            faults("1: a\ntrue: b\n[x]: c\n"),
            [("R0108", 1, 1), ("R0108", 2, 1), ("R0108", 3, 1)]
        );
        assert_eq!(faults("---\na: 1\n---\nb: 1\n"), [("R0104", 3, 1)]);
        assert_eq!(faults("a: *b"), [("R0110", 1, 4)]);
        assert_eq!(faults("a: &a [*a]"), [("R0110", 1, 8)]);
        assert_eq!(faults("a:\n\t- b"), [("R0101", 2, 1)]);
    }

    #[test]
    fn all_duplicates_are_reported_with_the_first() {
        let (tree, problems) = read("a: 1\nb: 2\na: 3\na: 4\nc: {d: 1, d: 2}\n");
        assert_eq!(show(&tree.unwrap()), "{a:1,b:2,c:{d:1}}");
        assert_eq!(problems.len(), 3);
        assert_eq!(problems[1].line_column(), (4, 1));
        assert_eq!(problems[1].others().next().unwrap().span, Span::new(0, 1));
        let many: String = (0..50).map(|i| format!("k{i}: 1\n")).collect();
        assert_eq!(faults(&format!("{many}k3: 1\nk49: 1\n")).len(), 2);
    }

    #[test]
    fn a_template_without_quotes_gets_its_hint() {
        for text in [
            "prompt: {place} at night",
            "o: {save: {seed}.png}",
            "o: {save: out/{seed}.png}",
            "{place} at night",
        ] {
            let (_, problems) = read(text);
            assert!(
                problems[0].hint().unwrap().contains("quote the template"),
                "{text}"
            );
        }
        let (_, problems) = read("a: {b: 1} x");
        assert!(!problems[0].hint().unwrap().contains("template"));
        assert!(read("a: {place}").0.is_some());
    }

    #[test]
    fn budgets_hold() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..20 {
            let items = vec![format!("*a{}", i - 1); 10].join(", ");
            laughs.push_str(&format!("a{i}: &a{i} [{items}]\n"));
        }
        assert_eq!(faults(&laughs)[0].0, "R0103");
        // One text many times over: few values, many bytes.
        let text = format!("a: &a {}\nb: [", "x".repeat(100_000));
        let alias = |count: usize| format!("{text}{}]", vec!["*a"; count].join(", "));
        let fits = MAX_ALIASED_BYTES / 100_000;
        assert_eq!(faults(&alias(fits)), []);
        assert_eq!(faults(&alias(fits + 1)), [("R0103", 2, 5 + 4 * fits)]);
        // Keys count too, and so does what an alias names as a key.
        let aliases = vec!["*a"; 4500].join(", ");
        let key = "k".repeat(1000);
        assert_eq!(
            faults(&format!("a: &a {{{key}: 1}}\nb: [{aliases}]"))[0].0,
            "R0103"
        );
        let maps = vec!["{*a : 1}"; fits + 1].join(", ");
        assert_eq!(faults(&format!("{text}{maps}]"))[0].0, "R0103");
        assert_eq!(faults(&"[".repeat(5000))[0].0, "R0102");
        assert_eq!(faults(&"- ".repeat(5000))[0].0, "R0102");
        assert_eq!(faults(&("{a: ".repeat(65) + &"}".repeat(65)))[0].0, "R0102");
        let mut chain = "a0: &a0 [x]\n".to_owned();
        for i in 1..200 {
            chain.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
        }
        assert_eq!(faults(&chain)[0].0, "R0102");
        assert_eq!(faults(&" ".repeat(MAX_BYTES + 1))[0].0, "R0003");
        assert_eq!(
            value("a: &x [1, 2]\nb: *x\nc: *x"),
            "{a:[1,2],b:[1,2],c:[1,2]}"
        );
        let comments = "# c\n".repeat(500);
        assert_eq!(
            value(&format!("a:\n{comments}  b: 1\n{comments}")),
            "{a:{b:1}}"
        );
    }

    #[test]
    fn only_what_is_aliased_is_kept_and_within_the_budget() {
        let kept = |text: &str| {
            let source = Source::new("t.yaml", text);
            let mut problems = Vec::new();
            let used = aliased_anchors(text);
            let mut builder = Builder {
                source: &source,
                problems: &mut problems,
                stack: Vec::new(),
                used,
                anchors: HashMap::new(),
                kept: Measure::default(),
                aliased: Measure::default(),
                root: None,
            };
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

    #[test]
    fn control_characters_are_a_fault_wherever_they_stand() {
        for text in [
            "a: 1\nb: 2 # \u{1b}[2J",
            "a: 1\nb: x\u{9d}y",
            "a: 1\nb: '\u{7f}'",
            "a: 1\nb: \"\u{85}\"",
            "a: 1\nb: |\n  \0",
            "a: 1\n\u{7}: x",
        ] {
            let (tree, problems) = read(text);
            assert!(tree.is_none() && problems.len() == 1, "{text:?}");
            assert_eq!(problems[0].code(), Code::Syntax);
            assert_eq!(
                problems[0].line_column().0,
                if text.contains('|') { 3 } else { 2 }
            );
            assert!(problems[0].hint().unwrap().contains("\\x"), "{text:?}");
        }
        let (_, problems) = read("\u{1b}\u{1b}\u{9b}");
        assert_eq!(
            problems[0].message(),
            "the control character U+001B stands in the file; there are 2 more"
        );
        assert_eq!(value("\"\\e\\x9b\"\r\n"), "\"\\u{1b}\\u{9b}\"");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_a_fault_with_their_place() {
        let problem = decode("t", b"a: 1\nb: \xff").unwrap_err();
        assert_eq!(
            (problem.code().as_str(), problem.line_column()),
            ("R0002", (2, 4))
        );
    }
}
