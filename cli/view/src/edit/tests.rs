use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use retouch_graph::files::piece;
use retouch_graph::{Digest, FileStamp, Files, Settings};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::scalars::{is_plain, single};
use super::*;

/// A change of an awkward file: the place, the value, and the bytes before and after, or why it is refused.
struct Case {
    name: &'static str,
    text: &'static str,
    place: Place,
    value: Json,
    due: Result<(&'static str, &'static str), &'static str>,
}

fn param(name: &str) -> Place {
    Place::Param(name.to_owned())
}

fn field(node: &str, name: &str) -> Place {
    Place::Field {
        node: node.to_owned(),
        name: name.to_owned(),
    }
}

/// The files, by name; each is a workflow that loads.
const COMMENTS: &str = include_str!("../../../../tests/view/awkward/comments.yaml");
const FLOW: &str = include_str!("../../../../tests/view/awkward/flow.yaml");
const LITERAL: &str = include_str!("../../../../tests/view/awkward/literal.yaml");
const FOLDED: &str = include_str!("../../../../tests/view/awkward/folded.yaml");
const KEPT: &str = include_str!("../../../../tests/view/awkward/kept.yaml");
const ANCHORS: &str = include_str!("../../../../tests/view/awkward/anchors.yaml");
const QUOTES: &str = include_str!("../../../../tests/view/awkward/quotes.yaml");
const LINES: &str = include_str!("../../../../tests/view/awkward/lines.yaml");
const LISTS: &str = include_str!("../../../../tests/view/awkward/lists.yaml");
const EMPTY: &str = include_str!("../../../../tests/view/awkward/empty.yaml");
const DEEP: &str = include_str!("../../../../tests/view/awkward/deep.yaml");
const TABLE: &str = include_str!("../../../../tests/view/awkward/table.yaml");
const COMPLEX: &str = include_str!("../../../../tests/view/awkward/complex-keys.yaml");
const UNICODE: &str = include_str!("../../../../tests/view/awkward/unicode.yaml");
const NUMBERS: &str = include_str!("../../../../tests/view/awkward/numbers.yaml");
const ONE_LINE: &str = include_str!("../../../../tests/view/awkward/one-line.yaml");
const MARKED: &str = include_str!("../../../../tests/view/awkward/document.yaml");
// What an editor or git might mend on the way is made of others here.
const SHORTHAND: &str = "schema: retouch/v1\nparams:\n  size: 5\n";
const MERGE: &str = "schema: retouch/v1\nx-base: &base {scale: 2}\nnodes:\n  a:\n    <<: *base\n    op: resize_image\n";
const TAGGED: &str = "schema: retouch/v1\nparams:\n  size: {type: int, default: !!int 5}\n";

fn crlf() -> String {
    COMMENTS.replace('\n', "\r\n")
}

fn marked() -> String {
    format!("\u{feff}{}", COMMENTS.replace('\n', "\r\n"))
}

fn open_ended() -> String {
    // The last line is a node's, without a line break.
    TABLE.trim_end().to_owned()
}

fn cases() -> Vec<Case> {
    let case = |name, text: &str, place, value, due| Case {
        name,
        text: Box::leak(text.to_owned().into_boxed_str()),
        place,
        value,
        due,
    };
    let (crlf, marked, open) = (crlf(), marked(), open_ended());
    vec![
        case(
            "comments",
            COMMENTS,
            param("size"),
            json!(96),
            Ok(("64", "96")),
        ),
        case(
            "comments",
            COMMENTS,
            field("large", "scale"),
            json!(3.0),
            Ok(("2.5", "3.0")),
        ),
        case(
            "comments",
            COMMENTS,
            field("large", "filter"),
            json!("nearest"),
            Ok(("'lanczos3'", "'nearest'")),
        ),
        case(
            "comments",
            COMMENTS,
            field("large", "background"),
            json!("#102030"),
            Ok(("", "\n    background: \"#102030\"")),
        ),
        case("crlf", &crlf, param("size"), json!(96), Ok(("64", "96"))),
        case(
            "crlf",
            &crlf,
            field("large", "background"),
            json!("#102030"),
            Ok(("", "\r\n    background: \"#102030\"")),
        ),
        case("bom", &marked, param("size"), json!(8), Ok(("64", "8"))),
        case(
            "bom",
            &marked,
            field("large", "scale"),
            json!(1.5),
            Ok(("2.5", "1.5")),
        ),
        case("flow", FLOW, param("size"), json!(65), Ok(("64", "65"))),
        case(
            "flow",
            FLOW,
            param("word"),
            json!("a, b"),
            Ok(("plain", "\"a, b\"")),
        ),
        case(
            "flow",
            FLOW,
            param("none"),
            json!(0.25),
            Ok(("", ", default: 0.25")),
        ),
        case(
            "flow",
            FLOW,
            field("large", "background"),
            json!("#102030"),
            Ok(("", ",\n    background: \"#102030\"")),
        ),
        case(
            "flow",
            FLOW,
            field("small", "background"),
            json!("#102030"),
            Ok(("", ", background: \"#102030\"")),
        ),
        case(
            "flow",
            FLOW,
            field("sheet", "labels"),
            json!(["a", "b"]),
            Ok(("one", "b")),
        ),
        case(
            "literal",
            LITERAL,
            param("text"),
            json!("new\n  deep\nend\n"),
            Ok(("first\n      second", "new\n        deep\n      end")),
        ),
        case(
            "literal",
            LITERAL,
            param("text"),
            json!("no break at the end"),
            Ok((
                "  # kept\n      first\n      second",
                "-  # kept\n      no break at the end",
            )),
        ),
        case(
            "literal",
            LITERAL,
            field("sheet", "labels"),
            json!(["x\n"]),
            Ok(("old", "x")),
        ),
        case(
            "folded",
            FOLDED,
            param("text"),
            json!("one line\nanother"),
            Ok((
                "words that go\n      on and on",
                "one line\n\n      another",
            )),
        ),
        case(
            "folded",
            FOLDED,
            param("text"),
            json!(" starts with a blank"),
            Ok((
                ">-\n      words that go\n      on and on",
                "\" starts with a blank\"",
            )),
        ),
        case(
            "kept",
            KEPT,
            param("text"),
            json!("b\n"),
            Ok(("+\n      a", "\n      b")),
        ),
        case(
            "kept",
            KEPT,
            param("digit"),
            json!("z"),
            Ok(("|2-\n      indented", "\"z\"")),
        ),
        case(
            "literal",
            LITERAL,
            field("sheet", "cell"),
            json!(64),
            Ok(("", "\n    cell: 64")),
        ),
        // Behind the block it would take a line break from it.
        case(
            "kept",
            KEPT,
            field("sheet", "cell"),
            json!(64),
            Ok(("", "cell: 64\n    ")),
        ),
        case("anchors", ANCHORS, param("alone"), json!(7), Ok(("5", "7"))),
        case(
            "anchors",
            ANCHORS,
            param("user"),
            json!(7),
            Ok(("*shared", "7")),
        ),
        case(
            "anchors",
            ANCHORS,
            param("shared"),
            json!(7),
            Err("`*shared` in line"),
        ),
        case(
            "anchors",
            ANCHORS,
            field("copy", "scale"),
            json!(4.0),
            Err("`*node` is an alias for it"),
        ),
        case(
            "anchors",
            ANCHORS,
            field("large", "scale"),
            json!(4.0),
            Err("would change there too"),
        ),
        case(
            "quotes",
            QUOTES,
            param("single"),
            json!("it's"),
            Ok(("'don''t'", "'it''s'")),
        ),
        case(
            "quotes",
            QUOTES,
            param("single"),
            json!("a\tb"),
            Ok(("'don''t'", "\"a\\tb\"")),
        ),
        case(
            "quotes",
            QUOTES,
            param("double"),
            json!("a \"b\" \\"),
            Ok(("\"x\\ty # no comment\"", "\"a \\\"b\\\" \\\\\"")),
        ),
        case(
            "quotes",
            QUOTES,
            param("seed"),
            json!(7),
            Ok(("\"random\"", "7")),
        ),
        case(
            "quotes",
            QUOTES,
            param("plain"),
            json!("yes"),
            Ok(("no quotes, none", "\"yes\"")),
        ),
        case(
            "quotes",
            QUOTES,
            param("plain"),
            json!("12"),
            Ok(("no quotes, none", "\"12\"")),
        ),
        case(
            "lines",
            LINES,
            param("plain"),
            json!("short"),
            Ok(("goes on\n      below", "short")),
        ),
        case(
            "lines",
            LINES,
            param("quoted"),
            json!("short"),
            Ok(("\"goes on\n      below\"", "\"short\"")),
        ),
        case(
            "lists",
            LISTS,
            field("block", "labels"),
            json!(["a", "x"]),
            Ok(("\"b\"", "\"x\"")),
        ),
        case(
            "lists",
            LISTS,
            field("block", "labels"),
            json!(["a", "b", "c"]),
            Ok(("", "\n      - \"c\"")),
        ),
        case(
            "lists",
            LISTS,
            field("block", "labels"),
            json!(["a"]),
            Ok(("\n      - \"b\"", "")),
        ),
        case(
            "lists",
            LISTS,
            field("compact", "labels"),
            json!(["c"]),
            Ok(("a", "c")),
        ),
        case(
            "lists",
            LISTS,
            field("compact", "labels"),
            json!([]),
            Ok(("\n    - a", " []")),
        ),
        case(
            "lists",
            LISTS,
            field("flow", "labels"),
            json!(["a", "c"]),
            Ok(("b", "c")),
        ),
        case(
            "lists",
            LISTS,
            field("flow", "labels"),
            json!([]),
            Ok(("[a, b]", "[]")),
        ),
        case(
            "lists",
            LISTS,
            field("spread", "labels"),
            json!(["a", "b", "c"]),
            Ok(("", ",\n      c")),
        ),
        case(
            "lists",
            LISTS,
            field("spread", "labels"),
            json!(0),
            Err("cannot be changed"),
        ),
        case("empty", EMPTY, param("size"), json!(5), Ok(("", " 5"))),
        case("empty", EMPTY, param("tail"), json!(5), Ok(("", " 5"))),
        case("empty", EMPTY, param("nothing"), json!("x"), Ok(("~", "x"))),
        case(
            "deep",
            DEEP,
            Place::With {
                node: "part".into(),
                name: "scale".into(),
            },
            json!(4.0),
            Ok(("3.0", "4.0")),
        ),
        case(
            "deep",
            DEEP,
            Place::With {
                node: "bare".into(),
                name: "scale".into(),
            },
            json!(4.0),
            Ok(("", "\n    with: {scale: 4.0}")),
        ),
        case("table", TABLE, param("b"), json!(0.5), Ok(("0.25", "0.5"))),
        case(
            "no final newline",
            &open,
            field("large", "background"),
            json!("#102030"),
            Ok(("", "\n    background: \"#102030\"")),
        ),
        case(
            "no final newline",
            &open,
            field("large", "scale"),
            json!(8.0),
            Ok(("2.0", "8.0")),
        ),
        case(
            "complex keys",
            COMPLEX,
            param("size"),
            json!(9),
            Ok(("64", "9")),
        ),
        case(
            "complex keys",
            COMPLEX,
            field("odd: name", "scale"),
            json!(9),
            Err("the file has no"),
        ),
        case(
            "unicode",
            UNICODE,
            param("text"),
            json!("né — 🦀"),
            Ok(("日本語", "né — 🦀")),
        ),
        case(
            "numbers",
            NUMBERS,
            param("hex"),
            json!(16),
            Ok(("0xff", "16")),
        ),
        case(
            "numbers",
            NUMBERS,
            param("exponent"),
            json!(2.5e-7),
            Ok(("1e-3", "2.5e-7")),
        ),
        case(
            "numbers",
            NUMBERS,
            param("third"),
            json!(1.0 / 3.0),
            Ok(("0.1", "0.3333333333333333")),
        ),
        case(
            "numbers",
            NUMBERS,
            param("share"),
            json!("12.5%"),
            Ok(("20%", "12.5%")),
        ),
        case(
            "numbers",
            NUMBERS,
            param("seed"),
            json!(9_007_199_254_740_991_u64),
            Ok(("43", "9007199254740991")),
        ),
        case(
            "numbers",
            NUMBERS,
            param("seed"),
            json!(u64::MAX),
            Err("cannot be changed"),
        ),
        case(
            "one line",
            ONE_LINE,
            param("size"),
            json!(6),
            Ok(("64", "6")),
        ),
        case(
            "one line",
            ONE_LINE,
            field("large", "background"),
            json!("#102030"),
            Ok(("", ", background: \"#102030\"")),
        ),
        case("document", MARKED, param("size"), json!(6), Ok(("64", "6"))),
        case(
            "shorthand",
            SHORTHAND,
            param("size"),
            json!(6),
            Err("has no `default` of its own"),
        ),
        case(
            "merge key",
            MERGE,
            field("a", "scale"),
            json!(3),
            Err("merge keys"),
        ),
        case(
            "tagged",
            TAGGED,
            param("size"),
            json!(6),
            Err("tags such as"),
        ),
        case(
            "broken",
            "schema: [",
            param("size"),
            json!(6),
            Err("not YAML"),
        ),
        case("nothing", "", param("size"), json!(6), Err("nothing yet")),
        case(
            "no such param",
            COMMENTS,
            param("none"),
            json!(6),
            Err("no `params.none`"),
        ),
        case(
            "no such node",
            COMMENTS,
            field("none", "x"),
            json!(6),
            Err("no `nodes.none`"),
        ),
    ]
}

/// The bytes that differ, as both texts have them.
fn differing(old: &str, new: &str) -> (usize, String, String) {
    let start = (old.bytes().zip(new.bytes()))
        .take_while(|(a, b)| a == b)
        .count();
    let most = old.len().min(new.len()) - start;
    let tail = (old.bytes().rev().zip(new.bytes().rev()))
        .take(most)
        .take_while(|(a, b)| a == b)
        .count();
    let (from, to) = (old.len() - tail, new.len() - tail);
    let part = |text: &str, to| String::from_utf8_lossy(&text.as_bytes()[start..to]).into_owned();
    (start, part(old, from), part(new, to))
}

#[test]
fn only_the_bytes_of_the_value_change() {
    let mut texts = std::collections::BTreeSet::new();
    for case in cases() {
        let change = Change {
            place: case.place.clone(),
            value: case.value.clone(),
        };
        texts.insert(case.text);
        let got = edit(case.text, std::slice::from_ref(&change));
        match (&got, case.due) {
            (Ok(new), Ok((before, after))) => {
                // What is the same at both ends of the value's bytes is more than what is the same around it.
                let at = (0..=case.text.len()).find(|at| {
                    case.text.is_char_boundary(*at)
                        && case.text[*at..].starts_with(before)
                        && *new
                            == format!(
                                "{}{after}{}",
                                &case.text[..*at],
                                &case.text[at + before.len()..]
                            )
                });
                assert!(
                    at.is_some(),
                    "{}: {} = {}: {:?} became {:?}, not {before:?} {after:?}",
                    case.name,
                    case.place,
                    case.value,
                    differing(case.text, new).1,
                    differing(case.text, new).2,
                );
                assert_eq!(
                    value_at(new, &case.place),
                    Ok(Some(case.value.clone())),
                    "{}",
                    case.name
                );
                // Writing it again changes nothing.
                assert_eq!(edit(new, &[change]).as_ref(), Ok(new), "{}", case.name);
            }
            (Err(refused), Err(part)) => {
                assert!(
                    refused.message.contains(part),
                    "{}: {}: {:?}",
                    case.name,
                    case.place,
                    refused.message
                );
            }
            _ => panic!("{}: {} = {}: {got:?}", case.name, case.place, case.value),
        }
    }
    assert!(texts.len() >= 20, "{} files", texts.len());
}

#[test]
fn a_block_text_is_replaced_though_its_sign_and_its_lines_change_apart() {
    // Two places of one value: the sign of the block and its lines, a comment between them.
    let change = |value: &str| Change {
        place: param("text"),
        value: json!(value),
    };
    let new = edit(LITERAL, &[change("starts\n\nand ends")]).unwrap();
    assert!(
        new.contains("default: |-  # kept\n      starts\n\n      and ends\n"),
        "{new}"
    );
    // What no block can hold stands in one line, and the comment behind it.
    let new = edit(LITERAL, &[change("bell \u{7}")]).unwrap();
    assert!(new.contains("default: \"bell \\u0007\"  # kept\n"), "{new}");
    let new = edit(&LITERAL.replace('\n', "\r\n"), &[change("a\nb\n")]).unwrap();
    assert!(
        new.contains("default: |  # kept\r\n      a\r\n      b\r\n"),
        "{new}"
    );
}

#[test]
fn several_values_are_written_one_after_the_other() {
    let changes = [
        Change {
            place: param("size"),
            value: json!(1),
        },
        Change {
            place: field("large", "scale"),
            value: json!(3.5),
        },
        Change {
            place: field("large", "fit"),
            value: json!("pad"),
        },
        Change {
            place: field("large", "background"),
            value: json!("#102030"),
        },
    ];
    let new = edit(COMMENTS, &changes).unwrap();
    assert_eq!(new.lines().count(), COMMENTS.lines().count() + 2);
    for change in &changes {
        assert_eq!(
            value_at(&new, &change.place),
            Ok(Some(change.value.clone()))
        );
    }
    let diff = diff("comments.yaml", COMMENTS, &new);
    assert_eq!(
        diff.lines().filter(|line| line.starts_with('+')).count(),
        1 + 4,
        "{diff}"
    );
    assert_eq!(
        diff.lines().filter(|line| line.starts_with('-')).count(),
        1 + 2,
        "{diff}"
    );
    assert!(diff.contains("+    background: \"#102030\""), "{diff}");
    assert_eq!(super::diff("x", COMMENTS, COMMENTS), "");
}

#[test]
fn tried_values_are_yaml_to_be_pasted() {
    let one = |place, value| Change { place, value };
    let params = [
        one(param("place"), json!("in: space")),
        one(param("share"), json!(0.5)),
    ];
    assert_eq!(snippet(&params), "place: \"in: space\"\nshare: 0.5\n");
    let with = |name: &str| Place::With {
        node: "part".into(),
        name: name.into(),
    };
    let mixed = [
        one(param("share"), json!(0.5)),
        one(with("a"), json!([1, "2..3"])),
        one(field("m", "x"), json!(true)),
        one(with("b"), json!(null)),
    ];
    assert_eq!(
        snippet(&mixed),
        "params:\n  share:\n    default: 0.5\nnodes:\n  m:\n    x: true\n  part:\n    with:\n      a: [1, 2..3]\n      b: null\n"
    );
}

#[test]
fn a_file_is_replaced_whole_and_only_while_it_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.yaml");
    std::fs::write(&file, "a: 1\n").unwrap();
    write(&file, "a: 1\n", "a: 2\n").unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a: 2\n");
    let refused = write(&file, "a: 1\n", "a: 3\n").unwrap_err();
    assert!(refused.message.contains("meanwhile"), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a: 2\n");
    assert!(write(&folder.path().join("none"), "", "x").is_err());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let link = folder.path().join("link.yaml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        write(&link, "a: 2\n", "a: 4\n").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a: 4\n");
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }
    // Nothing is left beside it.
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, if cfg!(unix) { 2 } else { 1 });
}

#[test]
fn a_tried_text_stands_for_the_file_until_the_file_says_it() {
    let file = std::env::temp_dir().join("tried.yaml");
    let disk = Arc::new(Swapped(Mutex::new(COMMENTS.to_owned())));
    let overlay = Overlay::new(Arc::clone(&disk) as Arc<dyn Files>);
    let mut trying = Trying::default();
    trying.set(&file, param("size"), json!(5));
    trying.set(&file, param("size"), json!(9));
    trying.set(&file, param("gone"), json!(1));
    assert_eq!(&*overlay.read(&file).unwrap(), COMMENTS.as_bytes());
    let refused = trying.apply(&overlay, &Settings::default());
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].1, param("gone"));
    let text = String::from_utf8(overlay.read(&file).unwrap().to_vec()).unwrap();
    assert_eq!(value_at(&text, &param("size")), Ok(Some(json!(9))));
    let (head, length) = overlay.read_head(&file, 6).unwrap();
    assert_eq!(
        (head.as_slice(), length),
        (&b"# What"[..], text.len() as u64)
    );
    assert_eq!(overlay.read_at(&file, 2, 4).unwrap(), b"What");
    assert_eq!(
        overlay.digest(&file).unwrap(),
        *blake3::hash(text.as_bytes()).as_bytes()
    );
    assert_ne!(overlay.sha256(&file).unwrap(), disk.sha256(&file).unwrap());
    // The file changes: what is tried is written into the new text.
    *disk.0.lock().unwrap() = COMMENTS.replace("2.5", "7.5");
    trying.reset(&file, &param("gone"));
    assert!(trying.apply(&overlay, &Settings::default()).is_empty());
    let text = String::from_utf8(overlay.read(&file).unwrap().to_vec()).unwrap();
    assert_eq!(
        value_at(&text, &field("large", "scale")),
        Ok(Some(json!(7.5)))
    );
    assert_eq!(value_at(&text, &param("size")), Ok(Some(json!(9))));
    // It says the value by itself, but the command line would count again: it stays tried. Else it is not any more.
    *disk.0.lock().unwrap() = COMMENTS.replace("64", "9");
    let settings = Settings {
        set: vec!["size=4".into()],
        ..Settings::default()
    };
    assert!(trying.apply(&overlay, &settings).is_empty());
    assert_eq!(trying.of(&file).len(), 1);
    assert!(trying.apply(&overlay, &Settings::default()).is_empty());
    assert!(trying.is_empty());
    assert_eq!(overlay.digest(&file).unwrap(), disk.digest(&file).unwrap());
}

#[test]
fn a_tried_param_counts_more_than_the_command_line() {
    let file = Path::new("w.yaml");
    let mut trying = Trying::default();
    trying.set(file, param("size"), json!(9));
    trying.set(file, param("word"), json!("a b"));
    let mut settings = Settings {
        set: vec!["size=4".into(), "other=1".into()],
        ..Settings::default()
    };
    trying.outrank(file, &mut settings);
    assert_eq!(settings.set, ["other=1"]);
    settings.params.push("p.yaml".into());
    trying.outrank(file, &mut settings);
    assert_eq!(settings.set, ["other=1", "size=9", "word=a b"]);
}

/// One file that changes.
struct Swapped(Mutex<String>);

impl Files for Swapped {
    fn read(&self, _: &Path) -> io::Result<Arc<[u8]>> {
        Ok(Arc::from(self.0.lock().unwrap().as_bytes()))
    }
    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        let all = self.read(path)?;
        Ok((piece(&all, 0, length).to_vec(), all.len() as u64))
    }
    fn digest(&self, path: &Path) -> io::Result<Digest> {
        Ok(*blake3::hash(&self.read(path)?).as_bytes())
    }
    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        Ok(Sha256::digest(&*self.read(path)?).into())
    }
    fn doubt(&self) {}
    fn stamp(&self, _: &Path) -> Option<FileStamp> {
        None
    }
    fn is_file(&self, _: &Path) -> bool {
        true
    }
    fn is_dir(&self, _: &Path) -> bool {
        false
    }
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Ok(piece(&self.read(path)?, offset, length).to_vec())
    }
    fn entries(&self, _: &Path) -> io::Result<Vec<retouch_graph::FolderEntry>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&self) {}
}

impl retouch_graph::LocalFiles for Swapped {}

/// A value of a param, its type, and another of the same type.
fn values() -> impl Strategy<Value = (&'static str, Json, Json)> {
    let text = prop_oneof![
        "[ -~]{0,12}",
        "[a-z]{1,6}",
        "[\\PC\\n\\t]{0,10}",
        Just("yes".to_owned()),
        Just("- x: y # z".to_owned()),
        Just("0x1f".to_owned()),
        Just(" lead".to_owned()),
    ];
    let floats = || (-1e6..1e6_f64).prop_map(|value| json!(value));
    prop_oneof![
        (text.clone(), text).prop_map(|(a, b)| ("string", json!(a), json!(b))),
        (any::<i32>(), any::<i32>()).prop_map(|(a, b)| ("int", json!(a), json!(b))),
        (floats(), floats()).prop_map(|(a, b)| ("float", a, b)),
        (any::<bool>(), any::<bool>()).prop_map(|(a, b)| ("bool", json!(a), json!(b))),
        (0u32..100, 0u32..100).prop_map(|(a, b)| ("steps", json!(format!("{a}%")), json!(b))),
        (
            proptest::collection::vec(0u32..30, 0..4),
            proptest::collection::vec(0u32..30, 0..4)
        )
            .prop_map(|(a, b)| ("sites", json!(a), json!(b))),
    ]
}

/// How a value is laid out: in brackets or not, how it is quoted, what stands around it.
fn written(layout: u8, index: usize, kind: &str, value: &Json, out: &mut String) {
    let name = format!("p{index}");
    let plain = line(value, true);
    let text = match (value, layout % 5) {
        (Json::String(text), 1) => single(text).unwrap_or_else(|| double(text)),
        (Json::String(text), 2) => double(text),
        _ => plain,
    };
    match layout % 7 {
        0 => out.push_str(&format!("  {name}: {{type: {kind}, default: {text}}}\n")),
        1 => out.push_str(&format!(
            "  {name}:   # about it\n    type: {kind}\n    default: {text}  # in the file\n"
        )),
        2 => out.push_str(&format!(
            "  \"{name}\": {{default: {text} , type: {kind},}}\n\n"
        )),
        3 => out.push_str(&format!(
            "  {name}:\n      default:\n        {text}\n      # between\n      type: {kind}\n"
        )),
        4 => out.push_str(&format!(
            "  {name}: {{\n    type: {kind},  # t\n    default: {text}  # d\n  }}\n"
        )),
        5 => match value {
            Json::String(text)
                if !text.is_empty() && is_plain(text, false) && !text.starts_with([' ', '\t']) =>
            {
                out.push_str(&format!(
                    "  {name}:\n    default: >-  # folded\n      {text}\n    type: {kind}\n"
                ));
            }
            Json::Array(items) if !items.is_empty() => {
                out.push_str(&format!("  {name}:\n    type: {kind}\n    default:\n"));
                for item in items {
                    out.push_str(&format!("    - {item}\n"));
                }
            }
            _ => out.push_str(&format!(
                "  {name}: {{type: {kind}, default: {text}, help: \"h\"}}\n"
            )),
        },
        _ => out.push_str(&format!("  {name}: {{type: {kind}}}\n")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn any_value_goes_into_any_layout_and_back(
        params in proptest::collection::vec((values(), any::<u8>()), 1..5),
        crlf in any::<bool>(),
        cut in any::<bool>(),
        pick in any::<prop::sample::Index>(),
    ) {
        let mut text = "# head\nschema: retouch/v1\nparams:\n".to_owned();
        for (index, ((kind, value, _), layout)) in params.iter().enumerate() {
            written(*layout, index, kind, value, &mut text);
        }
        if cut {
            text.truncate(text.trim_end().len());
        }
        if crlf {
            text = text.replace('\n', "\r\n");
        }
        let before = read(&text).unwrap();
        let index = pick.index(params.len());
        let place = param(&format!("p{index}"));
        let value = params[index].0.2.clone();
        let change = Change { place: place.clone(), value: value.clone() };
        let new = edit(&text, &[change]).unwrap();
        prop_assert_eq!(value_at(&new, &place), Ok(Some(value)));
        // All lines of other params are as they were.
        let (start, old_part, new_part) = differing(&text, &new);
        let own = text.find(&format!("p{index}")).unwrap();
        prop_assert!(start >= own || old_part.is_empty(), "{:?}", (start, own));
        for other in (0..params.len()).filter(|other| *other != index) {
            let name = format!("p{other}");
            let key = format!("{name}:");
            prop_assert!(!old_part.contains(&key) && !new_part.contains(&key));
            let other = param(&name);
            prop_assert_eq!(value_at(&new, &other), value_at(&text, &other));
        }
        prop_assert_eq!(yaml::comments(&new), yaml::comments(&text));
        // And back: what was said before is said again, unless nothing was.
        if let Some(old) = value_at(&text, &place).unwrap() {
            let back = edit(&new, &[Change { place, value: old }]).unwrap();
            prop_assert!(read(&back).unwrap().same_value(&before));
        }
    }
}

/// What else a file needs before it can be loaded.
fn needed(text: &str) -> Vec<Change> {
    let of = |name: &str, value| Change {
        place: param(name),
        value,
    };
    if text == EMPTY {
        vec![
            of("size", json!(1)),
            of("tail", json!(1)),
            of("nothing", json!("y")),
        ]
    } else if text == FLOW {
        vec![of("none", json!(1.0))]
    } else {
        Vec::new()
    }
}

#[test]
fn the_workflow_then_resolves_to_the_value() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/view/awkward");
    let engine = retouch_graph::Engine::new(retouch_nodes::registry());
    let mut loaded = 0;
    for case in cases().iter().filter(|case| case.due.is_ok()) {
        let mut changes = needed(case.text);
        changes.retain(|change| change.place != case.place);
        changes.push(Change {
            place: case.place.clone(),
            value: case.value.clone(),
        });
        let new = edit(case.text, &changes).unwrap();
        let name = root.join("edited.yaml").display().to_string();
        let due = &case.value;
        let after = match engine.load_str(&name, &new, &Settings::default()) {
            Ok(after) => after,
            Err(problems) => {
                // A list of another length is one that the node counts.
                let count = due.as_array().map(|items| format!("{} label", items.len()));
                let said = format!("{problems:?}");
                assert!(
                    count.is_some_and(|count| said.contains(&count)),
                    "{}: {}: {said}",
                    case.name,
                    case.place
                );
                loaded += 1;
                continue;
            }
        };
        let got = match &case.place {
            Place::Param(name) => (after.params.iter())
                .find(|param| param.name == *name)
                .map(|param| &param.value),
            Place::Field { node, name } => {
                (after.node(node)).and_then(|node| node.params().get(name))
            }
            Place::With { node, name } => {
                (after.node(&format!("{node}/large"))).and_then(|node| node.params().get(name))
            }
        };
        let same = match (got, due) {
            (Some(Json::Number(a)), Json::Number(b)) => a.as_f64() == b.as_f64(),
            (got, due) => got == Some(due),
        };
        assert!(same, "{}: {} is {got:?}, not {due}", case.name, case.place);
        loaded += 1;
    }
    assert!(loaded > 40, "{loaded}");
}
