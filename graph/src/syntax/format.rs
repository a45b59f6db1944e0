//! `retouch fmt`: one layout for workflows, comments and meaning kept.
//!
//! Lines end in LF and in no blanks, the file ends in one line break, a level is two spaces (a list inside a map too), at
//! most one blank line stands in a row, brackets are written `{a: b, c: d}`, and one space follows `key:`, unless the
//! line's value stands below or above its neighbour's: such a table is left alone.

use crate::base::problem::{Code, Problem, Source, Span};
use crate::syntax::yaml::{self, Layout, Style};

/// Formats a text; the result means the same, and formatting it again changes nothing.
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
    // A last line that does not end is a line like others; whether blanks that stand there alone are one, the block text
    // before them decides.
    if let Some(last) = text.rsplit('\n').next()
        && !last.is_empty()
    {
        let ended = format!("{text}\n");
        let blank = last.trim_matches(' ').is_empty();
        let same = |text: &str| {
            let parsed = yaml::parse(&Source::new("", text), &mut Vec::new());
            parsed.is_some_and(|parsed| parsed.same_value(&before))
        };
        text = match blank && !same(&ended) {
            true => text.trim_end_matches(' ').to_owned(),
            false => ended,
        };
    }
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
    /// Its column. A tab counts as one, and in a block text as a letter.
    fn indent(&self) -> usize {
        let blank = |c: char| c == ' ' || c == '\t' && self.inside != Inside::Block;
        self.text.len() - self.text.trim_start_matches(blank).len()
    }

    /// Whether it is blank in a block text, where a tab is a letter.
    fn is_spaces(&self) -> bool {
        self.indent() == self.text.len()
    }

    fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }

    fn is_comment(&self) -> bool {
        self.inside == Inside::Nothing && self.text.trim_start().starts_with('#')
    }
}

/// One round of formatting.
///
/// Longer than other functions: one loop over the lines whose branches all read and set the same state (the open levels,
/// the shift of the last line, blank lines, the last comment's columns).
fn pass(text: &str) -> Option<String> {
    let layout = yaml::layout(text)?;
    let lines = lines(text, &layout);
    let places: Vec<Option<(usize, usize)>> = lines
        .iter()
        .map(|line| value_column(line, &layout))
        .collect();
    // For each line the next one that is neither blank nor a comment.
    let mut following = vec![None; lines.len()];
    for index in (1..lines.len()).rev() {
        let passed = lines[index].is_blank() || lines[index].is_comment();
        following[index - 1] = if passed {
            following[index]
        } else {
            Some(index)
        };
    }
    // What would begin or end a document in the first column keeps all from it.
    let marked = |line: &Line<'_>| {
        line.inside != Inside::Block && line.indent() > 0 && is_marker(line.text.trim_start())
    };
    let root = usize::from(lines.iter().any(marked));
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
                let new = block_line(line, &lines, index, &levels, &mut block, &layout);
                out.push_str(&new);
                out.push('\n');
                blank = false;
                continue;
            }
            Inside::Text => {
                if line.is_blank() {
                    out.push('\n');
                } else {
                    let indent = continued(&levels, line.indent(), delta).max(root);
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
            let indent = continued(&levels, line.indent(), delta).max(root);
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
            let new = match following[index].map(|next| &lines[next]) {
                Some(next) if next.inside == Inside::Nothing && next.indent() == old => {
                    enter(&mut levels.clone(), next, root)
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
        if is_marker(line.text) {
            // A document begins or ends here.
            levels.clear();
            delta = 0;
            trailing = None;
            out.push_str(line.text);
            out.push('\n');
            continue;
        }
        let mut new = enter(&mut levels, line, root);
        let mut old = line.indent();
        out.push_str(&" ".repeat(new));
        // `- key: value`: the key begins a level of its own.
        loop {
            let rest = &line.text[old..];
            let Some(after) = rest
                .strip_prefix('-')
                .filter(|after| after.starts_with([' ', '\t']))
            else {
                break;
            };
            let item = after.trim_start_matches([' ', '\t']);
            if item.is_empty() || item.starts_with('#') {
                break;
            }
            out.push_str("- ");
            old += rest.len() - item.len();
            new += 2;
            let list = is_item(item);
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

/// The new column of a line that goes on with the one before: it moves with that one, and stays within what holds both.
fn continued(levels: &[Level], old: usize, delta: isize) -> usize {
    let holds = levels.iter().rev().find(|level| level.old < old);
    shifted(old, delta).max(holds.map_or(0, |level| level.new + 1))
}

/// Whether a line that begins in the first column so begins or ends a document.
fn is_marker(text: &str) -> bool {
    (text.strip_prefix("---").or(text.strip_prefix("...")))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// Whether a line begins an item of a list.
fn is_item(text: &str) -> bool {
    (text.strip_prefix('-')).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// Finds the level of a line, opens or closes levels for it, and gives its new column.
fn enter(levels: &mut Vec<Level>, line: &Line<'_>, root: usize) -> usize {
    let old = line.indent();
    let content = &line.text[old..];
    let item = is_item(content);
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
                new: root,
                list: item,
            });
            root
        }
    }
}

fn block_line(
    line: &Line<'_>,
    lines: &[Line<'_>],
    index: usize,
    levels: &[Level],
    block: &mut Option<(usize, usize)>,
    layout: &Layout,
) -> String {
    let (old, new) = *block.get_or_insert_with(|| {
        let first = lines[index..]
            .iter()
            .take_while(|line| line.inside == Inside::Block)
            .find(|line| !line.is_spaces())
            .map_or(usize::MAX, Line::indent); // there are blank lines alone
        let Some(header) = index.checked_sub(1).map(|above| &lines[above]) else {
            return (first, first);
        };
        let end = header.start + header.text.len();
        let from = layout.scalars.partition_point(|s| s.sign < header.start);
        let here = layout.scalars[from..].iter().take_while(|s| s.sign < end);
        let sign = here.clone().find(|s| s.style == Style::Block);
        let mark = sign.map_or("", |s| &header.text[s.sign - header.start..]);
        let mark = mark.split([' ', '\t', '#']).next().unwrap_or("");
        let Some(indicated) = mark.chars().find_map(|c| c.to_digit(10)) else {
            return (first, levels.last().map_or(0, |level| level.new) + 2);
        };
        // With an indicator (`|2`) the text's own column is counted from that of what holds it: the map of its key, or
        // the list. What is right of that is the text's.
        let has_key = here.clone().next().is_some_and(|s| s.style != Style::Block);
        let holds = match has_key {
            true => levels.last(),
            false => levels.len().checked_sub(2).and_then(|at| levels.get(at)),
        };
        let (old, new) = holds.map_or((0, 0), |level| (level.old, level.new));
        (old + indicated as usize, new + indicated as usize)
    });
    if line.is_spaces() && line.text.len() <= old {
        return String::new();
    }
    let kept = line.indent();
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
        while layout
            .flow
            .get(bracket)
            .is_some_and(|span| span.end <= start)
        {
            bracket += 1;
        }
        let mut inside = Inside::Nothing;
        if layout
            .flow
            .get(bracket)
            .is_some_and(|span| span.start < start)
        {
            inside = Inside::Brackets;
        }
        if let Some(at) = layout.scalars.get(scalar) {
            match at.style {
                Style::Block => {
                    // Its lines are those after its sign, blank ones before its first letter among them.
                    // The span may go on to the next value, whose indentation is not part of the text.
                    let body = text[at.span.start..at.span.end].trim_end_matches(' ');
                    let end = match at.span.end < text.len() {
                        true => at.span.start + body.len(),
                        false => text.len(),
                    };
                    // The span of one without letters may begin with its sign, or end before the next value.
                    let empty = at.span.start == at.sign || body.trim().is_empty();
                    if at.sign < start && start < end && (!empty || line.trim().is_empty()) {
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
        let least = usize::from(!out.is_empty());
        out.push_str(&" ".repeat(wanted.saturating_sub(here).max(least)));
        out.push_str(text[at..].trim_end());
    }
    out
}

/// Spaces the brackets of a piece of a line; texts are left as they are.
fn spaced(body: &str, offset: usize, layout: &Layout) -> String {
    let mut out = String::with_capacity(body.len());
    let mut at = 0;
    // Whether the last sign was one of a key, and the key has not come.
    let mut asked = false;
    let mut scalar = layout.scalars.partition_point(|s| s.span.end <= offset);
    let mut bracket = layout.flow.partition_point(|span| span.end <= offset);
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
            asked = false;
            out.push_str(&body[at..at + length]);
            at += length;
            continue;
        }
        let Some(c) = body[at..].chars().next() else {
            break;
        };
        at += c.len_utf8();
        while layout
            .flow
            .get(bracket)
            .is_some_and(|span| span.end <= place)
        {
            bracket += 1;
        }
        if (layout.flow.get(bracket)).is_none_or(|span| span.start > place) {
            out.push(c);
            continue;
        }
        match c {
            ' ' | '\t' => {
                let next = body[at..].trim_start_matches([' ', '\t']).chars().next();
                at = body.len() - body[at..].trim_start_matches([' ', '\t']).len();
                let opened = out.ends_with(['{', '[']);
                let closes = matches!(next, Some('}' | ']' | ',') | None);
                // A key that is not there needs its space: `[? ]`.
                let keeps = !closes || std::mem::take(&mut asked) && next.is_some();
                if !out.is_empty() && !opened && keeps && !out.ends_with(' ') {
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
            c => {
                asked = c == '?';
                out.push(c);
            }
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

    #[test]
    fn all_that_is_read_is_formatted() {
        for (text, expected) in [
            ("-  d\n y", "- d\n y\n"),
            ("a:   b\n  c\n", "a: b\n  c\n"),
            // Blank lines before the first letter of a block text are its own, and those at its end that are kept.
            ("a: >\n\n\n  x\n", "a: >\n\n\n  x\n"),
            ("a: |+\n  x\n\n\n", "a: |+\n  x\n\n\n"),
            ("a: |+\n \n", "a: |+\n\n"),
            ("- |\n   \n   x\n  \n", "- |\n\n    x\n\n"),
            // One without letters.
            ("- >\n-   |\n- x", "- >\n- |\n- x\n"),
            ("a: |\n# c\nb: 1\n", "a: |\n# c\nb: 1\n"),
            ("a: |\n  \tx\n", "a: |\n  \tx\n"),
            // What an indicator counts from is what holds the text.
            ("-   |2\n   x\n", "- |2\n   x\n"),
            ("-    a: |1\n       x\n", "- a: |1\n    x\n"),
            (
                "a:\n    b: |2\n          x\n        \n",
                "a:\n  b: |2\n        x\n      \n",
            ),
            ("a: [\n# c\n1]\n", "a: [\n# c\n1]\n"),
            ("{? , a: 1}", "{? , a: 1}\n"),
            ("a: b\n ---\n", " a: b\n  ---\n"),
            ("---\n-  a\n", "---\n- a\n"),
            ("-\ta\n-\tb\n", "- a\n- b\n"),
        ] {
            let source = Source::new("t.yaml", text);
            match format(&source) {
                Ok(found) => assert_eq!(found, expected, "{text:?}"),
                Err(problem) => panic!("{text:?}: {problem}"),
            }
        }
    }

    fn piece() -> impl Strategy<Value = String> {
        prop::sample::select(vec![
            "a:", "b: 1", "- x", "-", " ", "    ", "\n", "\n  ", "\n    ", "\n- ", "# c", "{", "}",
            "[", "]", ",", "\"q\"", "'s'", "|", ">-", "\r\n", "k: v", ": ", "é", "$a", "\t", "&a ",
            "*a", "---", "\n\n\n", "|2", "|+", "\n ", "-  ", "|-", ">", "d",
        ])
        .prop_map(str::to_owned)
    }

    /// Whether a text is one that the language reads: a map or a list, with no fault.
    fn is_read(text: &str) -> bool {
        let mut faults = Vec::new();
        let tree = yaml::parse(&Source::new("t.yaml", text), &mut faults);
        let root =
            tree.is_some_and(|tree| matches!(tree.node, yaml::Node::Map(_) | yaml::Node::Seq(_)));
        root && faults.is_empty()
    }

    proptest! {
        // Tabs between tokens, and signs of documents in texts, are read in ways that no rule here follows to the end.
        #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::with_cases(2000) })]
        #[test]
        fn what_is_read_without_a_fault_is_formatted(pieces in prop::collection::vec(piece(), 1..12)) {
            let text = pieces.concat();
            prop_assume!(!text.contains('\t') && !text.contains("---") && is_read(&text));
            prop_assert!(format(&Source::new("t.yaml", text)).is_ok());
        }
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
