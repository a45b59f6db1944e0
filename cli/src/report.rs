//! Faults for people: file, line, column, the line itself, a caret and a way to mend it.
//!
//! What is shown is bounded: the number of faults, the part of a long line around its caret, the part of a long message. Nothing of a
//! file reaches the terminal but through [`crate::safe`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError,
    MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};
use retouch_graph::problem::{Code, Problem, Severity, Source, Span};

use crate::safe::{Styled, brief, cut, safe, safe_char};

/// Number of problems shown; further ones are counted.
pub const MOST_SHOWN: usize = 50;
/// Number of related places shown of one problem.
const MOST_PLACES: usize = 10;
/// Number of lines shown between two places of a problem.
const MOST_BETWEEN: usize = 4;
/// A longer line is cut to that many characters around the caret.
const LONGEST_LINE: usize = 240;
/// A longer message is cut.
const LONGEST_MESSAGE: usize = 1500;
/// A longer file name is cut.
const LONGEST_NAME: usize = 200;
/// Of a place that goes over more lines the first is shown.
const MOST_LINES: usize = 6;

/// Renders problems, one after another, in colour if `colour`; at most [`MOST_SHOWN`], and how many more there are.
#[must_use]
pub fn render<'a>(problems: impl IntoIterator<Item = &'a Problem>, colour: bool) -> Styled {
    let theme = if colour {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(100)
        .with_context_lines(1)
        .with_links(false);
    let mut text = String::new();
    let mut problems = problems.into_iter();
    for problem in problems.by_ref().take(MOST_SHOWN) {
        // A fault in drawing the text must not end a program that watches files.
        let drawn = catch_unwind(AssertUnwindSafe(|| {
            let mut drawn = String::new();
            (handler.render_report(&mut drawn, &Shown::of(problem))).map(|()| drawn)
        }));
        match drawn {
            Ok(Ok(drawn)) => text.push_str(&drawn),
            _ => text.push_str(&plain(problem)),
        }
    }
    let more = problems.fold((0, 0), |(faults, warnings), problem| {
        match problem.severity() {
            Severity::Warning => (faults, warnings + 1),
            Severity::Error => (faults + 1, warnings),
        }
    });
    let count = |number: usize, what: &str| {
        let s = if number == 1 { "" } else { "s" };
        (number > 0).then(|| format!("{number} more {what}{s}"))
    };
    let more: Vec<String> = [count(more.0, "fault"), count(more.1, "warning")]
        .into_iter()
        .flatten()
        .collect();
    if !more.is_empty() {
        text.push_str(&format!(
            "… and {}; `--json` prints all of them\n",
            more.join(", ")
        ));
    }
    Styled::new(&text)
}

/// A problem on one line, without its source.
fn plain(problem: &Problem) -> String {
    let (line, column) = problem.line_column();
    format!(
        "{}:{line}:{column}: {}: {}\n",
        brief(problem.source_text().name(), LONGEST_NAME),
        problem.code(),
        brief(problem.message(), LONGEST_MESSAGE)
    )
}

/// A problem as it is drawn.
#[derive(Debug)]
struct Shown {
    code: Option<Code>,
    severity: miette::Severity,
    message: String,
    help: Option<String>,
    excerpt: Excerpt,
    related: Vec<Self>,
}

fn prose(text: &str) -> String {
    safe(&cut(text, LONGEST_MESSAGE)).into_owned()
}

impl Shown {
    fn of(problem: &Problem) -> Self {
        let source = problem.source_text();
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            (problem.others().take(MOST_PLACES)).partition(|other| other.source.same(source));
        let mut labels = vec![(problem.span(), problem.remark(), true)];
        labels.extend((here.iter()).map(|other| (other.span, other.text.as_str(), false)));
        let left_out = problem.others().skip(MOST_PLACES).count();
        let message = match left_out {
            0 => prose(problem.message()),
            1 => format!("{} (one more place is not shown)", prose(problem.message())),
            n => format!(
                "{} ({n} more places are not shown)",
                prose(problem.message())
            ),
        };
        Self {
            code: Some(problem.code()),
            severity: match problem.severity() {
                Severity::Error => miette::Severity::Error,
                Severity::Warning => miette::Severity::Warning,
            },
            message,
            help: problem.hint().map(prose),
            excerpt: Excerpt::of(source, &labels),
            related: (elsewhere.iter())
                .map(|other| Self {
                    code: None,
                    severity: miette::Severity::Advice,
                    message: prose(&other.text),
                    help: None,
                    excerpt: Excerpt::of(&other.source, &[(other.span, "", true)]),
                    related: Vec::new(),
                })
                .collect(),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Shown {}

impl Diagnostic for Shown {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        (self.code).map(|code| Box::new(code) as Box<dyn fmt::Display>)
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        (self.help.as_ref()).map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.excerpt)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.excerpt.labels.iter().cloned()))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.related.is_empty() {
            return None;
        }
        Some(Box::new(
            (self.related.iter()).map(|shown| shown as &dyn Diagnostic),
        ))
    }
}

/// The lines around the places of a problem, long ones cut, with their numbers in the file.
#[derive(Debug)]
struct Excerpt {
    name: String,
    text: String,
    /// The number of each line, from 0.
    numbers: Vec<usize>,
    /// Labels, by their places in the excerpt.
    labels: Vec<LabeledSpan>,
    /// For the first byte of each label in the excerpt its column in the file, from 0.
    columns: Vec<(usize, usize)>,
}

/// A line of an excerpt, and where its bytes came from.
struct Piece {
    text: String,
    /// The bytes of the file and those of the piece that characters begin at, in order.
    map: Vec<(usize, usize)>,
}

impl Piece {
    /// A line, or as much of it as is shown around a byte.
    fn of(source: &Source, line: Span, focus: Option<usize>) -> Self {
        let whole = source.slice(line);
        let mut shown = line;
        if whole.len() > LONGEST_LINE && whole.char_indices().nth(LONGEST_LINE).is_some() {
            let focus = focus.unwrap_or(line.start).clamp(line.start, line.end);
            let (before, after) = whole.split_at(focus - line.start);
            let half = LONGEST_LINE / 2;
            let back = before.char_indices().rev().take(half).last();
            shown.start = back.map_or(focus, |(at, _)| line.start + at);
            let missing = half - before[shown.start - line.start..].chars().count();
            let forth = after.char_indices().nth(half + missing);
            shown.end = forth.map_or(line.end, |(at, _)| focus + at);
        }
        let mut piece = Self {
            text: String::new(),
            map: Vec::new(),
        };
        if shown.start > line.start {
            piece.map.push((line.start, 0));
            piece.text.push('…');
        }
        for (at, c) in source.slice(shown).char_indices() {
            piece.map.push((shown.start + at, piece.text.len()));
            piece.text.push(safe_char(c));
        }
        if shown.end < line.end {
            piece.map.push((shown.end, piece.text.len()));
            piece.text.push('…');
        }
        piece.map.push((line.end, piece.text.len()));
        piece
    }

    /// Where a byte of the file's line is in the piece.
    fn place(&self, at: usize) -> usize {
        let after = self.map.partition_point(|(from, _)| *from <= at);
        self.map[after.max(1) - 1].1
    }
}

impl Excerpt {
    fn of(source: &Source, labels: &[(Span, &str, bool)]) -> Self {
        let line_of = |at: usize| source.line_column(at).0;
        // The places with their lines; the first of a place that goes on for long.
        let places: Vec<(Span, usize, usize)> = (labels.iter())
            .map(|(span, ..)| {
                let first = line_of(span.start);
                // A place that ends with its line break ends on its line.
                let last = line_of(span.end.saturating_sub(1).max(span.start));
                match last - first < MOST_LINES {
                    true => (*span, first, last),
                    false => {
                        let end = source.line_span(first).end.max(span.start);
                        (Span::new(span.start, end), first, first)
                    }
                }
            })
            .collect();
        let count = source.lines();
        let mut lines: BTreeSet<usize> = (places.iter())
            .flat_map(|(_, first, last)| first.saturating_sub(1).max(1)..=(last + 1).min(count))
            .collect();
        // Few lines between two places are shown, many are not.
        let gaps: Vec<(usize, usize)> = (lines.iter().copied())
            .zip(lines.iter().copied().skip(1))
            .filter(|(line, next)| (2..=MOST_BETWEEN + 1).contains(&(next - line)))
            .collect();
        for (line, next) in gaps {
            lines.extend(line + 1..next);
        }
        let mut excerpt = Self {
            name: brief(source.name(), LONGEST_NAME),
            text: String::new(),
            numbers: Vec::new(),
            labels: Vec::new(),
            columns: Vec::new(),
        };
        let mut pieces: Vec<(usize, usize, Piece)> = Vec::new();
        for &line in &lines {
            let focus = (places.iter()).find(|(_, first, _)| *first == line);
            let piece = Piece::of(
                source,
                source.line_span(line),
                focus.map(|(span, ..)| span.start),
            );
            if !excerpt.numbers.is_empty() {
                excerpt.text.push('\n');
            }
            excerpt.numbers.push(line - 1);
            let start = excerpt.text.len();
            excerpt.text.push_str(&piece.text);
            pieces.push((line, start, piece));
        }
        if lines.last().is_some_and(|last| *last < count) {
            excerpt.text.push('\n');
        }
        let place = |line: usize, at: usize| {
            let found = pieces.binary_search_by_key(&line, |(line, ..)| *line);
            found.map_or(0, |found| pieces[found].1 + pieces[found].2.place(at))
        };
        for ((span, first, last), (_, text, primary)) in places.iter().zip(labels) {
            let start = place(*first, span.start);
            let end = place(*last, span.end).max(start);
            let label = (!text.is_empty()).then(|| brief(text, LONGEST_LINE));
            let shown = SourceSpan::from((start, end - start));
            excerpt.labels.push(match primary {
                true => LabeledSpan::new_primary_with_span(label, shown),
                false => LabeledSpan::new_with_span(label, shown),
            });
            (excerpt.columns).push((start, source.line_column(span.start).1 - 1));
        }
        excerpt
    }
}

impl SourceCode for Excerpt {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        context_lines_before: usize,
        context_lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let contents =
            (self.text.as_str()).read_span(span, context_lines_before, context_lines_after)?;
        let number = self.numbers.get(contents.line()).or(self.numbers.last());
        let known = (self.columns.iter()).find(|(at, _)| *at == span.offset());
        let column = match (context_lines_before, known) {
            (0, Some((_, column))) => *column,
            _ => contents.column(),
        };
        // Places in lines that follow one another are drawn together.
        let together = (self.numbers.windows(2).skip(contents.line()))
            .take_while(|pair| pair[1] == pair[0] + 1)
            .count();
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            contents.data(),
            *contents.span(),
            number.copied().unwrap_or(0),
            column,
            together + 1,
        )))
    }
}

/// Says how many faults there were, under them.
#[must_use]
pub fn tally(faults: usize) -> Cow<'static, str> {
    match faults {
        0 => "".into(),
        1 => "1 fault found; `retouch explain CODE` says more of each".into(),
        n => format!("{n} faults found; `retouch explain CODE` says more of each").into(),
    }
}
