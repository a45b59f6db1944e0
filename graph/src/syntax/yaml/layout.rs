//! How a text is written: comments, the style of scalars, brackets. For edits that change one place and nothing else.

use granit_parser::{Event, Parser, ScalarStyle};

use crate::base::problem::Span;

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
    /// Where it begins; of a block text its indicator (`|`, `>`), which is on the line before.
    pub(crate) sign: usize,
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Quoted,
    Block,
}

/// What the formatter needs to know about the layout of a text.
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

/// A value as it is written, for edits that change one place and nothing else. The tree has the shape of [`Tree`](super::Tree),
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

/// How the values of a text are written; `None` when it is not YAML or has none. The text is one that [`parse`](super::parse) reads
/// without a fault: that bounds its depth.
// Longer than other functions: one arm for each event of the parser, and nothing else.
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

/// Where the indicator of a block (`|`, `>`) is: after the key or the dash, its anchor and comments.
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
