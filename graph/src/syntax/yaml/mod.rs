//! YAML with spans: the one module that touches the parser.
//!
//! The language takes less than YAML offers: the core types of YAML 1.2, strict booleans, no tags, no merge keys, one
//! document, text keys. Every duplicate key is reported, and depth, size and aliases have budgets.

mod build;
mod error;
mod layout;
mod limits;
mod tree;

use granit_parser::Parser;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::syntax::yaml::build::Builder;
use crate::syntax::yaml::error::syntax;

pub use layout::{Form, Written, comments, written};
pub use limits::{MAX_ALIASED, MAX_ALIASED_BYTES, MAX_BYTES, MAX_DEPTH};
pub use tree::{MapKey, Node, Tree};

pub(crate) use layout::{Layout, Style, layout};

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
    let mut builder = Builder::new(source, problems);
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
