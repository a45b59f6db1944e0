//! `retouch fmt`: one way to lay out a workflow, comments and meaning kept.
//!
//! Lines end in LF and in no blanks, the file ends in one line break, a level is two spaces (a list inside a map too), at
//! most one blank line stands in a row, brackets are written `{a: b, c: d}`, and one space follows `key:`, unless the
//! line's value stands below or above its neighbour's: such a table is left alone.

use crate::problem::{Code, Problem, Source, Span};
use crate::yaml::{self, Layout, Style};

/// Formats a text; what comes back means the same and formats to itself.
///
/// # Errors
/// The fault when the text is not YAML, or one that says that it would not mean the same.
pub fn format(source: &Source) -> Result<String, Problem> {
    let mut faults = Vec::new();
    let Some(before) = yaml::parse(source, &mut faults) else {
        return Err(faults.into_iter().next().unwrap_or_else(|| refused(source)));
    };
    let comments = yaml::comments(source.text());
    // A byte order mark behind blank lines would come to the front, where it is one.
    let mut text = source
        .text()
        .trim_start_matches(['\u{feff}', '\r', '\n'])
        .replace("\r\n", "\n");
    // Moving one thing may free another to move; in practice the second round changes nothing.
    for _ in 0..4 {
        let next = pass(&text).ok_or_else(|| refused(source))?;
        if next == text {
            let mut again = Vec::new();
            let after = yaml::parse(&Source::new(source.name(), text.as_str()), &mut again);
            let same = after.is_some_and(|after| after.same_value(&before))
                && again.len() == faults.len()
                && yaml::comments(&text) == comments;
            return if same { Ok(text) } else { Err(refused(source)) };
        }
        text = next;
    }
    Err(refused(source))
}

fn refused(source: &Source) -> Problem {
    Problem::new(
        Code::FormatRefused,
        source,
        Span::default(),
        "the formatter would change what the text means, so it is left as it is",
    )
    .help("please report the file")
}

/// A level of indentation: its column before and after.
#[derive(Clone, Copy)]
struct Level {
    old: usize,
    new: usize,
    list: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Inside {
    /// The line begins a key, an item, or a comment.
    Nothing,
    /// It goes on with a text, in quotes or without.
    Text,
    /// It is a line of a block text (`|`, `>`).
    Block,
    /// It goes on in brackets.
    Brackets,
}

struct Line<'a> {
    text: &'a str,
    start: usize,
    inside: Inside,
}

impl Line<'_> {
    fn indent(&self) -> usize {
        self.text.len() - self.text.trim_start_matches(' ').len()
    }

    fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }

    fn is_comment(&self) -> bool {
        self.inside == Inside::Nothing && self.text.trim_start().starts_with('#')
    }
}

fn pass(text: &str) -> Option<String> {
    let layout = yaml::layout(text)?;
    let lines = lines(text, &layout);
    let places: Vec<Option<(usize, usize)>> = lines
        .iter()
        .map(|line| value_column(line, &layout))
        .collect();
    let mut levels: Vec<Level> = Vec::new();
    let mut out = String::with_capacity(text.len());
    // How far the last line that begins something moved, for the lines that go on with it.
    let mut delta: isize = 0;
    let mut block: Option<(usize, usize)> = None;
    let mut blank = false;
    // The columns, before and after, of the comment at the end of the line before: it may go on below.
    let mut trailing: Option<(usize, usize)> = None;
    for (index, line) in lines.iter().enumerate() {
        match line.inside {
            Inside::Block => {
                let new = block_line(line, &lines, index, &levels, delta, &mut block, &layout);
                out.push_str(&new);
                out.push('\n');
                blank = false;
                continue;
            }
            Inside::Text => {
                if line.is_blank() {
                    out.push('\n');
                } else {
                    let indent = shifted(line.indent(), delta);
                    out.push_str(&" ".repeat(indent));
                    out.push_str(&tail(line, line.indent(), indent, &layout));
                    out.push('\n');
                }
                blank = false;
                continue;
            }
            Inside::Brackets | Inside::Nothing => {}
        }
        block = None;
        if line.is_blank() {
            blank = true;
            trailing = None;
            continue;
        }
        if blank && !out.is_empty() {
            out.push('\n');
        }
        blank = false;
        if line.inside == Inside::Brackets {
            let indent = shifted(line.indent(), delta);
            out.push_str(&" ".repeat(indent));
            out.push_str(&tail(line, line.indent(), indent, &layout));
            out.push('\n');
            continue;
        }
        if line.is_comment() {
            let old = line.indent();
            if let Some((before, after)) = trailing
                && before == old
            {
                out.push_str(&" ".repeat(after));
                out.push_str(line.text.trim());
                out.push('\n');
                continue;
            }
            let next = lines[index + 1..]
                .iter()
                .find(|line| !line.is_blank() && !line.is_comment());
            let new = match next {
                Some(next) if next.inside == Inside::Nothing && next.indent() == old => {
                    enter(&mut levels.clone(), next)
                }
                Some(next) if next.inside != Inside::Nothing => shifted(old, delta),
                _ => levels
                    .iter()
                    .rev()
                    .find(|level| level.old <= old)
                    .map_or(0, |level| level.new),
            };
            out.push_str(&" ".repeat(new));
            out.push_str(line.text.trim());
            out.push('\n');
            continue;
        }
        let mut new = enter(&mut levels, line);
        let mut old = line.indent();
        out.push_str(&" ".repeat(new));
        // `- key: value`: the key begins a level of its own.
        loop {
            let rest = &line.text[old..];
            let Some(after) = rest
                .strip_prefix('-')
                .filter(|after| after.starts_with(' '))
            else {
                break;
            };
            let item = after.trim_start_matches(' ');
            if item.is_empty() || item.starts_with('#') {
                break;
            }
            out.push_str("- ");
            old += rest.len() - item.len();
            new += 2;
            let list = item == "-" || item.starts_with("- ");
            levels.push(Level { old, new, list });
        }
        delta = new as isize - old as isize;
        let mut rest = tail(line, old, new, &layout);
        if let Some((key_end, value)) = places[index]
            && value > key_end + 1
            && !aligned(&lines, &places, index)
        {
            // The key's length does not change, so its colon is found by counting.
            let colon = key_end - old;
            if rest.is_char_boundary(colon) {
                let (key, value) = rest.split_at(colon);
                rest = format!("{key} {}", value.trim_start_matches(' '));
            }
        }
        out.push_str(&rest);
        trailing = comment_of(line, &layout).map(|at| {
            let written = out.rsplit('\n').next().unwrap_or("").chars().count();
            let comment = line.text[at..].chars().count();
            (
                line.text[..at].chars().count(),
                written.saturating_sub(comment),
            )
        });
        out.push('\n');
    }
    let kept = out.trim_end_matches('\n').len();
    let ends_in_block = lines
        .iter()
        .rev()
        .find(|line| !line.is_blank() || line.inside == Inside::Block)
        .is_some_and(|line| line.inside == Inside::Block);
    if !ends_in_block {
        out.truncate(kept);
        if !out.is_empty() {
            out.push('\n');
        }
    }
    Some(out)
}

fn shifted(indent: usize, delta: isize) -> usize {
    indent.saturating_add_signed(delta)
}

/// Finds the level of a line, opens or closes levels for it, and gives its new column.
fn enter(levels: &mut Vec<Level>, line: &Line<'_>) -> usize {
    let old = line.indent();
    let content = &line.text[old..];
    let item = content == "-" || content.starts_with("- ");
    while levels
        .last()
        .is_some_and(|level| level.old > old || (level.old == old && level.list && !item))
    {
        levels.pop();
    }
    match levels.last() {
        Some(level) if level.old == old && (level.list || !item) => level.new,
        Some(level) => {
            let new = level.new + 2;
            levels.push(Level {
                old,
                new,
                list: item,
            });
            new
        }
        None => {
            levels.push(Level {
                old,
                new: 0,
                list: item,
            });
            0
        }
    }
}

fn block_line(
    line: &Line<'_>,
    lines: &[Line<'_>],
    index: usize,
    levels: &[Level],
    delta: isize,
    block: &mut Option<(usize, usize)>,
    layout: &Layout,
) -> String {
    let (old, new) = *block.get_or_insert_with(|| {
        let first = lines[index..]
            .iter()
            .take_while(|line| line.inside == Inside::Block)
            .find(|line| !line.is_blank())
            .map_or(0, Line::indent);
        // With an indicator (`|2`) the text's own column is counted from its key's.
        let header = lines[..index].last().map_or("", |line| {
            let end = layout
                .comments
                .iter()
                .find(|comment| {
                    comment.start >= line.start && comment.start < line.start + line.text.len()
                })
                .map_or(line.text.len(), |comment| comment.start - line.start);
            line.text.get(..end).unwrap_or("").trim_end()
        });
        let indicator = header
            .rsplit(['|', '>'])
            .next()
            .is_some_and(|mark| mark.contains(|c: char| c.is_ascii_digit()));
        let new = if indicator {
            shifted(first, delta)
        } else {
            levels.last().map_or(0, |level| level.new) + 2
        };
        (first, new)
    });
    if line.is_blank() && line.text.len() <= old {
        return String::new();
    }
    let indent = line.indent().min(line.text.len());
    let kept = if line.is_blank() {
        line.text.len()
    } else {
        indent
    };
    format!(
        "{}{}",
        " ".repeat(shifted(kept, new as isize - old as isize)),
        &line.text[kept..]
    )
}

/// Whether the value of a line stands in the column of its neighbour's.
fn aligned(lines: &[Line<'_>], places: &[Option<(usize, usize)>], index: usize) -> bool {
    let Some((_, column)) = places[index] else {
        return false;
    };
    let indent = lines[index].indent();
    let same = |other: usize| {
        places
            .get(other)
            .copied()
            .flatten()
            .is_some_and(|(_, other_column)| {
                other_column == column && lines[other].indent() == indent
            })
    };
    (index > 0 && same(index - 1)) || same(index + 1)
}

/// For a line `key: value`: the byte of the line after the colon, and the one where the value begins.
fn value_column(line: &Line<'_>, layout: &Layout) -> Option<(usize, usize)> {
    if line.inside != Inside::Nothing || line.is_comment() {
        return None;
    }
    let from = layout
        .scalars
        .partition_point(|scalar| scalar.span.start < line.start);
    let key = layout.scalars[from..]
        .iter()
        .find(|scalar| scalar.span.end > scalar.span.start)?;
    let end = key.span.end.checked_sub(line.start)?;
    let before = line.text.get(..key.span.start - line.start)?;
    if !before.chars().all(|c| c == ' ' || c == '-') {
        return None; // the first scalar stands in brackets
    }
    let after = line.text.get(end..)?.strip_prefix(':')?;
    let value = after.trim_start_matches(' ');
    if value.is_empty() || value.starts_with('#') || after.len() == value.len() {
        return None;
    }
    Some((end + 1, line.text.len() - value.len()))
}

/// The lines of a text, and what each one goes on with.
fn lines<'a>(text: &'a str, layout: &Layout) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut scalar = 0;
    let mut flow: Vec<Span> = layout.flow.clone();
    flow.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
    // Of nested brackets only the outermost count.
    let mut outer: Vec<Span> = Vec::new();
    for span in flow {
        if outer.last().is_none_or(|last| span.start >= last.end) {
            outer.push(span);
        }
    }
    let mut bracket = 0;
    for piece in text.split_inclusive('\n') {
        let line = piece.trim_end_matches('\n');
        while layout
            .scalars
            .get(scalar)
            .is_some_and(|s| s.span.end <= start)
        {
            scalar += 1;
        }
        while outer.get(bracket).is_some_and(|span| span.end <= start) {
            bracket += 1;
        }
        let mut inside = Inside::Nothing;
        if outer.get(bracket).is_some_and(|span| span.start < start) {
            inside = Inside::Brackets;
        }
        if let Some(at) = layout.scalars.get(scalar) {
            match at.style {
                Style::Block => {
                    // The span of a block text begins with its first letter; its line may begin before.
                    let first = text[..at.span.start].rfind('\n').map_or(0, |n| n + 1);
                    let body = text[at.span.start..at.span.end].trim_end_matches(' ');
                    let end = at.span.start + body.len();
                    if first <= start && start < end {
                        inside = Inside::Block;
                    }
                }
                _ if at.span.start < start && start < at.span.end => inside = Inside::Text,
                _ => {}
            }
        }
        lines.push(Line {
            text: if inside == Inside::Block {
                line
            } else {
                line.trim_end()
            },
            start,
            inside,
        });
        start += piece.len();
    }
    lines
}

/// Where the comment of a line begins, if it has one.
fn comment_of(line: &Line<'_>, layout: &Layout) -> Option<usize> {
    let end = line.start + line.text.len();
    let at = layout
        .comments
        .partition_point(|span| span.start < line.start);
    layout
        .comments
        .get(at)
        .filter(|span| span.start < end)
        .map(|span| span.start - line.start)
}

/// A line from the byte `from` on: brackets spaced, the comment kept in its column as far as it goes.
fn tail(line: &Line<'_>, from: usize, column: usize, layout: &Layout) -> String {
    let text = line.text;
    let comment = comment_of(line, layout);
    let body_end = comment.unwrap_or(text.len());
    let body = text.get(from..body_end).unwrap_or("");
    let mut out = spaced(body, line.start + from, layout)
        .trim_end()
        .to_owned();
    if let Some(at) = comment {
        let old_column = text[..at].chars().count();
        let delta = column as isize - from as isize;
        let wanted = shifted(old_column, delta);
        let here = column + out.chars().count();
        out.push_str(&" ".repeat(wanted.saturating_sub(here).max(1)));
        out.push_str(text[at..].trim_end());
    }
    out
}

/// Spaces the brackets of a piece of a line; texts are left as they are.
fn spaced(body: &str, offset: usize, layout: &Layout) -> String {
    let mut out = String::with_capacity(body.len());
    let mut at = 0;
    let mut scalar = layout.scalars.partition_point(|s| s.span.end <= offset);
    while at < body.len() {
        let place = offset + at;
        while layout
            .scalars
            .get(scalar)
            .is_some_and(|s| s.span.end <= place)
        {
            scalar += 1;
        }
        if let Some(found) = layout.scalars.get(scalar)
            && found.span.start <= place
            && found.span.end > place
            && found.style != Style::Block
        {
            let length = (found.span.end - place).min(body.len() - at);
            out.push_str(&body[at..at + length]);
            at += length;
            continue;
        }
        let Some(c) = body[at..].chars().next() else {
            break;
        };
        at += c.len_utf8();
        let in_flow = layout
            .flow
            .iter()
            .any(|span| span.start <= place && place < span.end);
        if !in_flow {
            out.push(c);
            continue;
        }
        match c {
            ' ' | '\t' => {
                let next = body[at..].trim_start_matches([' ', '\t']).chars().next();
                at = body.len() - body[at..].trim_start_matches([' ', '\t']).len();
                let opened = out.ends_with(['{', '[']);
                let closes = matches!(next, Some('}' | ']' | ',') | None);
                if !out.is_empty() && !opened && !closes && !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            ',' => {
                out.push(',');
                if !body[at..].trim().is_empty() {
                    out.push(' ');
                    at = body.len() - body[at..].trim_start_matches([' ', '\t']).len();
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fmt(text: &str) -> String {
        format(&Source::new("t.yaml", text)).unwrap()
    }

    #[test]
    fn indentation_is_two_spaces_and_lists_stand_below_their_key() {
        assert_eq!(
            fmt(
                "a:\n    b:\n        - x\n        -   y: 1\n            z: 2\n    c: 3\nd:\n- 1\n- 2\ne: 1\n"
            ),
            "a:\n  b:\n    - x\n    - y: 1\n      z: 2\n  c: 3\nd:\n  - 1\n  - 2\ne: 1\n"
        );
    }

    #[test]
    fn brackets_blanks_and_ends_of_lines_are_tidied() {
        assert_eq!(
            fmt("\u{feff}\n\na: { b : 1,c: [ 1,2 ,3 ] }   \r\n\r\n\r\n\r\nd:    'x  ,y'\n\n\n"),
            "a: {b : 1, c: [1, 2, 3]}\n\nd: 'x  ,y'\n"
        );
    }

    #[test]
    fn tables_and_comments_are_left_in_their_columns() {
        let text = "nodes:\n  base:     {op: a}\n  personal: {op: b}  # two\n\n  # three\n  layout:            # four\n    op: c\n    # five\n    x: 1   # six\n           # seven\n";
        assert_eq!(fmt(text), text);
        assert_eq!(fmt("a:   1\n\nbcd: 2\n"), "a: 1\n\nbcd: 2\n");
    }

    #[test]
    fn texts_over_several_lines_keep_their_meaning() {
        let text = "a:\n    b: |\n        one\n          two\n\n        three\n    c: >-\n            x\n            y\n    d: \"q\n        r  s\"\n    e: plain\n        more\n    f: |2\n          kept\n    g: {x: 1,\n        y: 2}\n";
        assert_eq!(
            fmt(text),
            "a:\n  b: |\n    one\n      two\n\n    three\n  c: >-\n    x\n    y\n  d: \"q\n      r  s\"\n  e: plain\n      more\n  f: |2\n        kept\n  g: {x: 1,\n      y: 2}\n"
        );
    }

    #[test]
    fn what_is_not_yaml_comes_back_as_a_fault() {
        let fault = format(&Source::new("t.yaml", "a: [1")).unwrap_err();
        assert_eq!(fault.code(), Code::Syntax);
    }

    fn piece() -> impl Strategy<Value = String> {
        prop::sample::select(vec![
            "a:", "b: 1", "- x", "-", " ", "    ", "\n", "\n  ", "\n    ", "\n- ", "# c", "{", "}",
            "[", "]", ",", "\"q\"", "'s'", "|", ">-", "\r\n", "k: v", ": ", "é", "$a", "\t", "&a ",
            "*a", "---", "\n\n\n", "|2", "|+",
        ])
        .prop_map(str::to_owned)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn formatting_twice_is_formatting_once_and_never_panics(pieces in prop::collection::vec(piece(), 0..24)) {
            let text = pieces.concat();
            if let Ok(once) = format(&Source::new("t.yaml", text)) {
                prop_assert_eq!(format(&Source::new("t.yaml", once.as_str())).unwrap(), once);
            }
        }
    }
}
