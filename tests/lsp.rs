//! The language server as an editor meets it: the program itself over its pipes, on real files.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::support::{retouch, root};

/// A server that says nothing for so long hangs; nothing else depends on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// An editor, as far as the protocol goes.
struct Editor {
    child: Child,
    stdin: Option<ChildStdin>,
    from: Receiver<Json>,
    /// What the server said of itself, not as an answer.
    told: Vec<Json>,
    next: i64,
    texts: BTreeMap<PathBuf, (i64, String)>,
    capabilities: Json,
}

impl Drop for Editor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn frame(value: &Json) -> Vec<u8> {
    let body = value.to_string();
    format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn uri(path: &Path) -> String {
    let mut uri = String::from("file://");
    for byte in path.to_str().unwrap().bytes() {
        // As VS Code does it: more is escaped than must be.
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}

impl Editor {
    fn raw() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_retouch"))
            .args(["lsp", "--stdio"])
            .env("RETOUCH_CONFIG", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (to, from) = mpsc::channel();
        std::thread::spawn(move || {
            loop {
                let mut head = String::new();
                if stdout.read_line(&mut head).unwrap() == 0 {
                    return;
                }
                // Nothing but the protocol is on standard output.
                let length = head.strip_prefix("Content-Length: ").unwrap().trim();
                let mut body = vec![0; length.parse().unwrap()];
                let mut blank = [0; 2];
                stdout.read_exact(&mut blank).unwrap();
                stdout.read_exact(&mut body).unwrap();
                if to.send(serde_json::from_slice(&body).unwrap()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            from,
            told: Vec::new(),
            next: 0,
            texts: BTreeMap::new(),
            capabilities: Json::Null,
        }
    }

    fn start_with(folder: &Path, params: Json) -> Self {
        let mut editor = Self::raw();
        let mut whole = json!({
            "processId": null, "rootUri": null, "capabilities": {},
            "workspaceFolders": [{"uri": uri(folder), "name": "here"}]
        });
        for (key, value) in params.as_object().unwrap() {
            whole[key] = value.clone();
        }
        editor.capabilities = editor.ask("initialize", whole).unwrap()["capabilities"].take();
        editor.tell("initialized", json!({}));
        editor
    }

    fn start(folder: &Path) -> Self {
        Self::start_with(folder, json!({}))
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn tell(&mut self, method: &str, params: Json) {
        self.write(&frame(
            &json!({"jsonrpc": "2.0", "method": method, "params": params}),
        ));
    }

    fn ask(&mut self, method: &str, params: Json) -> Result<Json, Json> {
        self.next += 1;
        let id = self.next;
        self.write(&frame(
            &json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}),
        ));
        let mut answer = self.wait(|one| one["id"] == id && one.get("method").is_none());
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].take()),
        }
    }

    /// The first message that fits; others are kept.
    #[track_caller]
    fn wait(&mut self, fits: impl Fn(&Json) -> bool) -> Json {
        if let Some(at) = self.told.iter().position(&fits) {
            return self.told.remove(at);
        }
        loop {
            let one = self
                .from
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("the server is silent; it said {:#?}", self.told));
            if fits(&one) {
                return one;
            }
            self.told.push(one);
        }
    }

    fn open(&mut self, path: &Path, text: &str) {
        self.open_as(path, "yaml", text);
    }

    fn open_as(&mut self, path: &Path, language: &str, text: &str) {
        self.texts.insert(path.to_owned(), (1, text.to_owned()));
        self.tell(
            "textDocument/didOpen",
            json!({"textDocument": {"uri": uri(path), "languageId": language, "version": 1, "text": text}}),
        );
    }

    fn change(&mut self, path: &Path, text: &str) {
        let (version, known) = self.texts.get_mut(path).unwrap();
        *version += 1;
        text.clone_into(known);
        let params = json!({
            "textDocument": {"uri": uri(path), "version": *version},
            "contentChanges": [{"text": text}]
        });
        self.tell("textDocument/didChange", params);
    }

    /// The faults of the text that the document has now, each as `code line:column message`, from 0.
    #[track_caller]
    fn faults(&mut self, path: &Path) -> Vec<String> {
        self.diagnostics(path).iter().map(show).collect()
    }

    #[track_caller]
    fn diagnostics(&mut self, path: &Path) -> Vec<Json> {
        let version = self.texts.get(path).map(|(version, _)| *version);
        let place = uri(path);
        let mut one = self.wait(|one| {
            one["method"] == "textDocument/publishDiagnostics"
                && one["params"]["uri"] == place
                && one["params"]["version"].as_i64() == version
        });
        one["params"]["diagnostics"]
            .take()
            .as_array()
            .unwrap()
            .clone()
    }

    fn at(&self, path: &Path, line: u64, column: u64) -> Json {
        json!({"textDocument": {"uri": uri(path)}, "position": {"line": line, "character": column}})
    }

    /// The position of the `nth` occurrence of a text in a document, some characters into it.
    #[track_caller]
    fn find(&self, path: &Path, text: &str, nth: usize, into: usize) -> Json {
        let (_, whole) = &self.texts[path];
        let (at, _) = whole.match_indices(text).nth(nth).unwrap();
        let before = &whole[..at + into];
        let line = before.matches('\n').count() as u64;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[start..].encode_utf16().count() as u64;
        self.at(path, line, column)
    }

    /// What is offered at the mark `¦` of a text, in the editor's order.
    #[track_caller]
    fn offered(&mut self, path: &Path, text: &str) -> Vec<Json> {
        let at = text.find('¦').unwrap();
        let text = text.replace('¦', "");
        self.change(path, &text);
        let before = &text[..at];
        let line = before.matches('\n').count() as u64;
        let column = (at - before.rfind('\n').map_or(0, |at| at + 1)) as u64;
        let result = self
            .ask("textDocument/completion", self.at(path, line, column))
            .unwrap();
        let mut items = result["items"].as_array().cloned().unwrap_or_default();
        items.sort_by_key(|item| item["sortText"].as_str().unwrap().to_owned());
        items
    }

    #[track_caller]
    fn labels(&mut self, path: &Path, text: &str) -> Vec<String> {
        self.offered(path, text)
            .iter()
            .map(|item| item["label"].as_str().unwrap().to_owned())
            .collect()
    }

    #[track_caller]
    fn hover(&mut self, path: &Path, text: &str, into: usize) -> String {
        let at = self.find(path, text, 0, into);
        let hover = self.ask("textDocument/hover", at).unwrap();
        assert!(!hover.is_null(), "nothing is said of {text}");
        hover["contents"]["value"].as_str().unwrap().to_owned()
    }

    /// Ends the session; the exit code.
    fn end(mut self) -> i32 {
        self.ask("shutdown", Json::Null).unwrap();
        self.tell("exit", Json::Null);
        self.child.wait().unwrap().code().unwrap()
    }
}

fn show(diagnostic: &Json) -> String {
    let start = &diagnostic["range"]["start"];
    let code = diagnostic["code"].as_str().unwrap();
    let message = diagnostic["message"].as_str().unwrap();
    format!("{code} {}:{} {message}", start["line"], start["character"])
}

/// A text after edits of the protocol, columns in UTF-16.
fn apply(text: &str, edits: &[Json]) -> String {
    let offset = |position: &Json| {
        let line = position["line"].as_u64().unwrap() as usize;
        let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
        let mut left = position["character"].as_u64().unwrap() as usize;
        let mut at = start;
        for c in text[start..].chars() {
            if left == 0 {
                break;
            }
            left -= c.len_utf16();
            at += c.len_utf8();
        }
        at
    };
    let mut spans: Vec<(usize, usize, &str)> = edits
        .iter()
        .map(|edit| {
            let range = &edit["range"];
            let new = edit["newText"].as_str().unwrap();
            (offset(&range["start"]), offset(&range["end"]), new)
        })
        .collect();
    spans.sort_unstable();
    let mut text = text.to_owned();
    for (start, end, new) in spans.into_iter().rev() {
        text.replace_range(start..end, new);
    }
    text
}

fn shipped(name: &str) -> (PathBuf, String) {
    let path = root().join("workflows").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    (path, text)
}

const PART: &str = "schema: retouch/v1\ninputs:\n  picture: {type: image, help: \"what is made larger\"}\nparams:\n  \
                    scale: {type: float, default: 2.0}\n  label: {type: string, default: a}\nnodes:\n  large: {op: \
                    resize_image, image: $inputs.picture, scale: $params.scale}\n  sheet: {op: grid, images: $large, \
                    labels: [\"{label}\"]}\noutputs:\n  large: {value: $large, help: \"the larger one\"}\n  sheet: \
                    {value: $sheet}\n";

const WHOLE: &str = "schema: retouch/v1\nparams:\n  place: {type: string, default: x, help: \"where it is\"}\n  factor: \
                     {type: float, default: 3, min: 1, max: 9}\nnodes:\n  photo: {op: load_image, path: \
                     photo.png}\n  part:\n    use: part.yaml\n    with: {picture: $photo, scale: $params.factor, label: \
                     \"at {place}\"}\n  again: {op: resize_image, image: $part.large, scale: $params.factor}\noutputs:\n  \
                     one: {value: $again, save: \"{workflow}/{place}.png\"}\n  two: {value: $part.sheet, save: \
                     \"{place}-2.png\"}\n";

/// A folder with a photo, a graph and a workflow that uses it.
fn two_files() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().canonicalize().unwrap();
    std::fs::copy(
        root().join("references/teddy/01.png"),
        here.join("photo.png"),
    )
    .unwrap();
    std::fs::write(here.join("part.yaml"), PART).unwrap();
    std::fs::write(here.join("whole.yaml"), WHOLE).unwrap();
    let (whole, part) = (here.join("whole.yaml"), here.join("part.yaml"));
    (folder, whole, part)
}

#[track_caller]
fn checks(file: &Path) {
    let output = retouch(file.parent().unwrap(), &["check", file.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_request_is_answered_on_a_shipped_workflow() {
    let mut editor = Editor::start(&root());
    for provider in [
        "hoverProvider",
        "definitionProvider",
        "referencesProvider",
        "renameProvider",
        "documentSymbolProvider",
        "documentHighlightProvider",
        "documentFormattingProvider",
        "completionProvider",
        "codeActionProvider",
    ] {
        assert!(!editor.capabilities[provider].is_null(), "{provider}");
    }
    let (path, text) = shipped("layout-and-retouch.yaml");
    editor.open(&path, &text);
    assert_eq!(editor.faults(&path), [""; 0]);

    let hover = editor.hover(&path, "step_blend_sample", 3);
    assert!(
        hover.contains("**Inputs**") && hover.contains("`vanilla`: model"),
        "{hover}"
    );
    let hover = editor.hover(&path, "$layout.trajectory", 10);
    assert!(hover.contains("**`trajectory`**: trajectory"), "{hover}");
    let hover = editor.hover(&path, "$params.blend_steps", 1);
    assert!(
        hover.contains("param, steps, default `20%`") && hover.contains("lambda1"),
        "{hover}"
    );

    let at = editor.find(&path, "$layout.trajectory", 0, 2);
    let definition = editor.ask("textDocument/definition", at.clone()).unwrap();
    let line = text
        .lines()
        .position(|line| line.starts_with("  layout: "))
        .unwrap();
    assert_eq!(
        definition["range"]["start"],
        json!({"line": line, "character": 2})
    );
    let mut params = at.clone();
    params["context"] = json!({"includeDeclaration": true});
    let references = editor.ask("textDocument/references", params).unwrap();
    // Its name, `$layout.trajectory`, and `$layout` of the picture.
    assert_eq!(references.as_array().unwrap().len(), 3, "{references:#}");
    let highlights = editor.ask("textDocument/documentHighlight", at).unwrap();
    assert_eq!(highlights.as_array().unwrap().len(), 3);

    let document = json!({"textDocument": {"uri": uri(&path)}});
    let symbols = editor
        .ask("textDocument/documentSymbol", document.clone())
        .unwrap();
    let names: Vec<&str> = symbols
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["params", "nodes", "outputs"]);
    assert_eq!(symbols[1]["children"][0]["name"], "base");
    assert_eq!(symbols[1]["children"][0]["detail"], "load_model");

    let mut params = document;
    params["options"] = json!({"tabSize": 2, "insertSpaces": true});
    let edits = editor.ask("textDocument/formatting", params).unwrap();
    assert_eq!(edits, json!([]), "it is in the standard form");
    assert_eq!(editor.end(), 0);
}

#[test]
fn the_faults_are_those_of_retouch_check_at_the_same_lines() {
    let folder = root().join("tests/invalid");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    assert!(names.len() >= 70);
    let mut arguments = vec!["check", "--json"];
    arguments.extend(names.iter().map(String::as_str));
    let output = retouch(&folder, &arguments);
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let fault: Json = serde_json::from_str(line).unwrap();
        // Of files beside, the program prints the relative path as well.
        let file = fault["file"].as_str().unwrap().to_owned();
        let help = fault["help"]
            .as_str()
            .map_or_else(String::new, |help| format!("\nhelp: {help}"));
        expected.entry(file).or_default().push(format!(
            "{} {} {} {}{help}",
            fault["code"].as_str().unwrap(),
            fault["severity"].as_str().unwrap(),
            fault["line"].as_u64().unwrap() - 1,
            fault["message"].as_str().unwrap(),
        ));
    }
    let mut editor = Editor::start(&folder);
    let mut all = 0;
    for name in &names {
        let path = folder.join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        editor.open_as(&path, "retouch", &text);
        let mut found: Vec<String> = editor
            .diagnostics(&path)
            .iter()
            .map(|one| {
                assert_eq!(one["source"], "retouch");
                let severity = if one["severity"] == 1 {
                    "error"
                } else {
                    "warning"
                };
                let message = one["message"].as_str().unwrap();
                // A path in a message is written from where the program was called.
                let message = message.replace(&format!("{}/", folder.display()), "");
                let up = format!("{}/", folder.parent().unwrap().display());
                let message = message.replace(&up, "../");
                let message = message.replace(&format!("{}/", root().display()), "../../");
                let code = one["code"].as_str().unwrap();
                format!(
                    "{code} {severity} {} {message}",
                    one["range"]["start"]["line"]
                )
            })
            .collect();
        found.sort();
        let mut expected = expected.remove(name).unwrap_or_default();
        expected.sort();
        assert_eq!(found, expected, "{name}");
        all += found.len();
        editor.tell(
            "textDocument/didClose",
            json!({"textDocument": {"uri": uri(&path)}}),
        );
    }
    assert!(all > 100, "{all} faults");
    assert_eq!(editor.end(), 0);
}

#[test]
fn an_edit_brings_a_fault_and_the_next_one_takes_it_away_and_closing_clears() {
    let (_folder, whole, _) = two_files();
    let mut editor = Editor::start(whole.parent().unwrap());
    editor.open(&whole, WHOLE);
    assert_eq!(editor.faults(&whole), [""; 0]);
    editor.change(
        &whole,
        &WHOLE.replace("image: $part.large", "image: $part.lorge"),
    );
    let faults = editor.diagnostics(&whole);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert_eq!(
        show(&faults[0]),
        "R0303 9:35 `part` has no output `lorge`\nhelp: did you mean `$part.large`?"
    );
    assert_eq!(faults[0]["range"]["end"]["character"], 46);

    // The way out that the help names is offered, and is one.
    let params = json!({
        "textDocument": {"uri": uri(&whole)}, "range": faults[0]["range"], "context": {"diagnostics": faults}
    });
    let actions = editor.ask("textDocument/codeAction", params).unwrap();
    assert_eq!(actions[0]["title"], "Write `$part.large`");
    let edits = actions[0]["edit"]["changes"][uri(&whole)]
        .as_array()
        .unwrap()
        .clone();
    let (_, text) = editor.texts[&whole].clone();
    assert_eq!(apply(&text, &edits), WHOLE);
    let params = json!({
        "textDocument": {"uri": uri(&whole)}, "range": faults[0]["range"],
        "context": {"diagnostics": [], "only": ["refactor"]}
    });
    let actions = editor.ask("textDocument/codeAction", params).unwrap();
    assert_eq!(actions, json!([]), "a quick fix is no refactoring");

    // An edit in place, as editors send it.
    let start = WHOLE.lines().nth(9).unwrap().find("large").unwrap();
    editor.texts.get_mut(&whole).unwrap().0 = 3;
    editor.tell(
        "textDocument/didChange",
        json!({"textDocument": {"uri": uri(&whole), "version": 3}, "contentChanges": [
            {"range": {"start": {"line": 9, "character": start + 1}, "end": {"line": 9, "character": start + 2}}, "text": "a"}
        ]}),
    );
    assert_eq!(editor.faults(&whole), [""; 0]);
    // Faults of two places name both.
    editor.change(&whole, &WHOLE.replace("  factor:", "  place:"));
    let faults = editor.diagnostics(&whole);
    let twice = faults.iter().find(|one| one["code"] == "R0107").unwrap();
    let related = twice["relatedInformation"].as_array().unwrap();
    assert!(
        related
            .iter()
            .any(|one| one["location"]["range"]["start"]["line"] == 2),
        "{related:#?}"
    );
    editor.texts.remove(&whole);
    editor.tell(
        "textDocument/didClose",
        json!({"textDocument": {"uri": uri(&whole)}}),
    );
    assert_eq!(editor.faults(&whole), [""; 0]);
    assert_eq!(editor.end(), 0);
}

#[test]
fn a_large_file_that_is_pinned_is_read_aside_and_its_fault_comes_without_an_edit() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().canonicalize().unwrap();
    // Above the size from which on nothing waits for a digest.
    std::fs::write(here.join("model.safetensors"), vec![7; (4 << 20) + 1]).unwrap();
    let text = format!(
        "schema: retouch/v1\nnodes:\n  m: {{op: load_model, path: model.safetensors, sha256: \"{}\"}}\n",
        "0".repeat(64)
    );
    let file = here.join("w.yaml");
    let mut editor = Editor::start(&here);
    editor.open(&file, &text);
    let place = uri(&file);
    editor.wait(|one| {
        let found = one["params"]["diagnostics"].as_array();
        one["params"]["uri"] == place
            && found.is_some_and(|found| {
                let mut messages = found.iter().filter_map(|one| one["message"].as_str());
                messages.any(|message| message.contains("is pinned"))
            })
    });
    assert_eq!(editor.end(), 0);
}

#[test]
fn a_prompt_that_does_not_fit_is_a_warning_in_its_line_until_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().canonicalize().unwrap().join("w.yaml");
    let text = |words: usize| {
        format!(
            "schema: retouch/v1\nnodes:\n  m: {{op: load_model, path: '{}'}}\n  d:\n    op: sample\n    model: $m\n    prompt: '{}'\n    seed: 1\noutputs:\n  o: {{value: $d}}\n",
            root().join("tests/oracle/data/tiny-sd1").display(),
            "a ".repeat(words)
        )
    };
    let mut editor = Editor::start(file.parent().unwrap());
    editor.open(&file, &text(76));
    let told = editor.diagnostics(&file);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["severity"], 2);
    let shown = show(&told[0]);
    assert!(
        shown.starts_with("R0703 6:12 the last 1 token of the prompt does not fit"),
        "{shown}"
    );
    editor.change(&file, &text(75));
    assert_eq!(editor.faults(&file), Vec::<String>::new());
    assert_eq!(editor.end(), 0);
}

#[test]
fn a_used_graph_counts_as_its_buffer_has_it_and_its_faults_are_told_in_it() {
    let (_folder, whole, part) = two_files();
    let mut editor = Editor::start(whole.parent().unwrap());
    editor.open(&whole, WHOLE);
    assert_eq!(editor.faults(&whole), [""; 0]);
    editor.open(&part, PART);
    assert_eq!(editor.faults(&part), [""; 0]);
    // The buffer loses an output that the other file refers to; on the disk it still is.
    editor.change(&part, &PART.replace("  sheet: {value", "  shoot: {value"));
    assert_eq!(editor.faults(&part), [""; 0]);
    let faults = editor.faults(&whole);
    assert!(
        faults[0].starts_with("R0303 12:15 `part` has no output `sheet`"),
        "{faults:?}"
    );
    // Its own fault is told once, in it, though both files find it.
    editor.change(&part, &PART.replace("op: grid", "op: gird"));
    assert_eq!(
        editor.faults(&part),
        ["R0301 8:14 there is no op `gird`\nhelp: did you mean `grid`?"]
    );
    assert_eq!(editor.faults(&whole), [""; 0]);
    // Closed, it is what the disk has, and its faults are known by the document that uses it.
    editor.texts.remove(&part);
    std::fs::write(&part, PART.replace("op: grid", "op: grids")).unwrap();
    editor.tell(
        "textDocument/didClose",
        json!({"textDocument": {"uri": uri(&part)}}),
    );
    assert_eq!(
        editor.faults(&part),
        ["R0301 8:14 there is no op `grids`\nhelp: did you mean `grid`?"]
    );
    std::fs::write(&part, PART).unwrap();
    editor.tell(
        "workspace/didChangeWatchedFiles",
        json!({"changes": [{"uri": uri(&part), "type": 2}]}),
    );
    assert_eq!(editor.faults(&part), [""; 0]);
    assert_eq!(editor.end(), 0);
}

#[test]
fn everything_that_can_be_written_is_offered_where_it_can_be() {
    let (_folder, whole, _) = two_files();
    let mut editor = Editor::start(whole.parent().unwrap());
    editor.open(&whole, "");
    let has = |labels: &[String], wanted: &[&str]| {
        for name in wanted {
            assert!(
                labels.iter().any(|label| label == name),
                "{name}: {labels:?}"
            );
        }
    };
    let lacks = |labels: &[String], unwanted: &[&str]| {
        for name in unwanted {
            assert!(
                !labels.iter().any(|label| label == name),
                "{name}: {labels:?}"
            );
        }
    };
    // The top, first of a file that is no workflow yet.
    has(&editor.labels(&whole, "sch¦"), &["schema"]);
    assert_eq!(
        editor.labels(&whole, "schema: ¦"),
        [""; 0],
        "it is no workflow before it says so"
    );
    assert_eq!(editor.labels(&whole, "schema: retouch¦"), ["retouch/v1"]);
    let labels = editor.labels(&whole, "schema: retouch/v1\nname: a\n¦\nnodes:\n");
    assert_eq!(
        labels,
        ["description", "params", "inputs", "outputs", "sweep"]
    );

    let head = "schema: retouch/v1\n";
    let params = |rest: &str| format!("{head}params:\n  {rest}");
    has(
        &editor.labels(&whole, &params("a: {¦}")),
        &["type", "default", "min", "values", "help"],
    );
    let labels = editor.labels(&whole, &params("a: {type: choice, ¦"));
    has(&labels, &["values", "default"]);
    lacks(&labels, &["type", "min"]);
    has(
        &editor.labels(&whole, &params("a:\n    type: ¦")),
        &["steps", "seed", "string"],
    );
    assert_eq!(
        editor.labels(&whole, &params("a: {type: bool, default: ¦}")),
        ["true", "false"]
    );
    let choice = params("a: {type: choice, values: [one, two], default: ¦}");
    assert_eq!(editor.labels(&whole, &choice), ["one", "two"]);
    let inputs = format!("{head}inputs:\n  a: {{type: ¦}}");
    has(
        &editor.labels(&whole, &inputs),
        &["model", "image", "string"],
    );

    // Nodes, in both styles, while brackets and quotes are open.
    let nodes = format!(
        "{head}params:\n  seed: {{type: seed, default: 1}}\n  place: {{type: string, default: x}}\n  share: {{type: steps, \
         default: 10%}}\ninputs:\n  other: {{type: model}}\n  word: {{type: string}}\nnodes:\n  base: {{op: load_model, path: \
         m}}\n  layout: {{op: step_blend_sample, vanilla: $base}}\n  part: {{use: part.yaml}}\n  "
    );
    let node = |rest: &str| format!("{nodes}{rest}");
    assert_eq!(editor.labels(&whole, &node("n: {¦")), ["op", "use"]);
    assert_eq!(
        editor.labels(&whole, &node("n:\n    ¦\noutputs: {}\n")),
        ["op", "use"]
    );
    for text in [
        "n: {op: ¦",
        "n: {op: sa¦}",
        "n:\n    op: ¦\n    prompt: \"open",
    ] {
        let items = editor.offered(&whole, &node(text));
        let sample = items.iter().find(|item| item["label"] == "sample").unwrap();
        assert!(sample["detail"].as_str().unwrap().len() > 10);
        assert!(
            sample["documentation"]["value"]
                .as_str()
                .unwrap()
                .contains("**Outputs**")
        );
    }
    for text in [
        "n: {op: sample, model: $base, ¦",
        "n:\n    op: sample\n    model: $base\n    ¦\n  m: {op: x",
    ] {
        let items = editor.offered(&whole, &node(text));
        let labels: Vec<String> = items
            .iter()
            .map(|i| i["label"].as_str().unwrap().to_owned())
            .collect();
        has(&labels, &["prompt", "control", "guidance", "seed"]);
        lacks(&labels, &["model", "op", "use"]);
        let control = items
            .iter()
            .find(|item| item["label"] == "control")
            .unwrap();
        assert_eq!(control["detail"], "optional link: control");
        assert_eq!(control["textEdit"]["newText"], "control: ");
        let guidance = items
            .iter()
            .find(|item| item["label"] == "guidance")
            .unwrap();
        assert!(
            guidance["detail"].as_str().unwrap().contains("default"),
            "{guidance:#}"
        );
    }
    // A colon that is there is not written again.
    let items = editor.offered(&whole, &node("n: {op: sample, mod¦el: $base}"));
    let model = items.iter().find(|item| item["label"] == "model").unwrap();
    assert_eq!(model["textEdit"]["newText"], "model");
    let range = &model["textEdit"]["range"];
    assert_eq!(
        range["end"]["character"].as_u64().unwrap() - range["start"]["character"].as_u64().unwrap(),
        5
    );

    // The blank that YAML wants behind a colon comes along.
    let items = editor.offered(&whole, &node("n:\n    op:¦\n"));
    assert!(
        items
            .iter()
            .any(|item| item["textEdit"]["newText"] == " sample")
    );

    // References: what fits comes first.
    let labels = editor.labels(&whole, &node("n: {op: decode, latent: $¦"));
    assert_eq!(labels[0], "$layout");
    has(&labels, &["$layout.trajectory", "$base"]);
    let labels = editor.labels(&whole, &node("n: {op: swap_attention, context: $¦"));
    assert_eq!(labels[0], "$layout.trajectory");
    let labels = editor.labels(&whole, &node("n: {op: decode, model: ¦"));
    assert_eq!(labels[..2], ["$base", "$inputs.other"]);
    lacks(&labels, &["$n", "$inputs.word"]);
    let labels = editor.labels(&whole, &node("n: {op: decode, latent: $layout.¦"));
    has(&labels, &["$layout.latent", "$layout.trajectory"]);
    let labels = editor.labels(&whole, &node("n: {op: grid, images: [$part, $¦]}"));
    assert_eq!(
        labels[..2],
        ["$part", "$part.sheet"],
        "the types of a used graph's outputs are known"
    );
    let labels = editor.labels(&whole, &node("n: {op: sample, seed: $params.¦"));
    assert_eq!(labels[0], "$params.seed");
    let labels = editor.labels(&whole, &node("n: {op: step_blend_sample, blend_steps: ¦"));
    has(&labels, &["$params.share"]);
    // Words.
    let labels = editor.labels(&whole, &node("n: {op: swap_attention, blend: ¦"));
    has(&labels, &["union", "context", "target"]);
    let labels = editor.labels(&whole, &node("n: {op: swap_attention, sites: ¦"));
    has(&labels, &["auto", "all"]);
    has(
        &editor.labels(&whole, &node("n: {op: swap_attention, lock: ¦")),
        &["true", "false"],
    );
    has(
        &editor.labels(&whole, &node("n: {op: sample, seed: ¦")),
        &["random"],
    );
    // Templates.
    for text in [
        "n: {op: sample, prompt: \"a {¦",
        "n:\n    op: sample\n    prompt: \"a {pl¦} b\"\n",
    ] {
        let items = editor.offered(&whole, &node(text));
        let place = items.iter().find(|item| item["label"] == "place").unwrap();
        let closed = text.contains('}');
        assert_eq!(
            place["textEdit"]["newText"],
            if closed { "place" } else { "place}" }
        );
        let labels: Vec<String> = items
            .iter()
            .map(|i| i["label"].as_str().unwrap().to_owned())
            .collect();
        has(&labels, &["seed", "word"]);
        lacks(&labels, &["other", "workflow"]);
    }
    assert_eq!(
        editor.labels(&whole, &node("n: {op: sample, prompt: \"a {{¦")),
        [""; 0]
    );
    assert_eq!(
        editor.labels(&whole, &node("n: {op: sample, prompt: \"a ¦")),
        [""; 0]
    );
    // Other files.
    let labels = editor.labels(&whole, &node("n: {use: ¦"));
    has(&labels, &["part.yaml"]);
    lacks(&labels, &["whole.yaml", "photo.png"]);
    has(
        &editor.labels(&whole, &node("n: {op: load_image, path: ph¦")),
        &["photo.png", "part.yaml"],
    );
    has(
        &editor.labels(&whole, &node("n: {op: load_image, path: ./¦")),
        &["photo.png"],
    );
    assert_eq!(
        editor.labels(&whole, &node("n: {use: part.yaml, ¦")),
        ["with"]
    );
    let labels = editor.labels(&whole, &node("n: {use: part.yaml, with: {scale: 2, ¦"));
    assert_eq!(labels, ["picture", "label"]);
    let labels = editor.labels(&whole, &node("n: {use: part.yaml, with: {picture: $¦"));
    assert_eq!(labels[..2], ["$part", "$part.sheet"]);
    has(
        &editor.labels(&whole, &node("n: {use: part.yaml, with: {label: \"{¦")),
        &["place"],
    );
    // Outputs.
    let outputs = |rest: &str| format!("{nodes}p: {{op: decode}}\noutputs:\n  o: {rest}");
    assert_eq!(editor.labels(&whole, &outputs("{¦")), ["value", "save"]);
    has(
        &editor.labels(&whole, &outputs("{value: $¦")),
        &["$p", "$layout.trajectory", "$part.sheet"],
    );
    has(
        &editor.labels(&whole, &outputs("{value: $p, save: \"{¦")),
        &["workflow", "output", "place"],
    );
    has(
        &editor.labels(&whole, &outputs("{value: $p, save: ¦")),
        &["\"{workflow}/{output}.png\""],
    );
    // Nowhere.
    assert_eq!(
        editor.labels(&whole, &node("n: {op: sample} # $¦")),
        [""; 0]
    );
    assert_eq!(editor.labels(&whole, &node("n: {op: nothing, ¦")), [""; 0]);
    assert_eq!(editor.end(), 0);
}

#[test]
fn help_is_shown_for_every_kind_of_name() {
    let (_folder, whole, part) = two_files();
    let mut editor = Editor::start(whole.parent().unwrap());
    editor.open(&whole, WHOLE);
    let cases = [
        ("load_image", 2, "**`load_image`**"),
        (
            "scale: $params.factor",
            2,
            "**`scale`**: param, float, default `2.0`",
        ),
        (
            "$params.factor",
            10,
            "**`factor`**: param, float, default `3`, from 1 to 9",
        ),
        ("{place}", 2, "where it is"),
        ("$part.large", 2, "node, uses `part.yaml`"),
        ("$part.large", 8, "the larger one"),
        ("$photo", 2, "op `load_image`"),
        ("part.yaml", 2, "**Outputs**: `large`, `sheet`"),
        ("picture: $photo", 2, "what is made larger"),
        ("image: $part", 2, "a link to image, required"),
        ("one: {", 1, "output of `$again`, image"),
        ("schema", 1, "version of the language"),
        ("save", 1, "Its ending chooses the format"),
        ("path: photo.png", 1, "**`path`**: a path, required"),
    ];
    for (text, into, expected) in cases {
        let hover = editor.hover(&whole, text, into);
        assert!(hover.contains(expected), "{text}: {hover}");
    }
    // On a number, a comment, nothing.
    let at = editor.find(&whole, "default: 3", 0, 9);
    assert_eq!(editor.ask("textDocument/hover", at).unwrap(), Json::Null);
    editor.open(&part, PART);
    let hover = editor.hover(&part, "$inputs.picture", 10);
    assert!(hover.contains("input, image"), "{hover}");
    assert_eq!(editor.end(), 0);
}

#[test]
fn every_name_leads_to_its_declaration_and_to_its_uses_in_this_file_and_others() {
    let (_folder, whole, part) = two_files();
    let mut editor = Editor::start(whole.parent().unwrap());
    editor.open(&whole, WHOLE);
    let mut leads = |from: &Path, text: &str, nth: usize, into: usize, to: &Path, name: &str| {
        let at = editor.find(from, text, nth, into);
        let definition = editor.ask("textDocument/definition", at).unwrap();
        assert_eq!(definition["uri"], uri(to), "{text}");
        let line = definition["range"]["start"]["line"].as_u64().unwrap() as usize;
        let there = if to == whole { WHOLE } else { PART };
        let line = there.lines().nth(line).unwrap().trim_start();
        assert!(line.starts_with(name), "{text} leads to {line}");
    };
    leads(&whole, "$photo", 0, 2, &whole, "photo:");
    leads(&whole, "$part.large", 0, 2, &whole, "part:");
    leads(&whole, "$part.large", 0, 8, &part, "large: {value");
    leads(&whole, "$params.factor", 0, 9, &whole, "factor:");
    leads(&whole, "{place}", 0, 2, &whole, "place:");
    leads(&whole, "{place}", 1, 2, &whole, "place:");
    leads(&whole, "part.yaml", 0, 3, &part, "schema:");
    leads(&whole, "picture:", 0, 3, &part, "picture:");
    leads(&whole, "label:", 0, 3, &part, "label:");
    editor.open(&part, PART);
    let mut uses = |path: &Path, text: &str, into: usize| -> Vec<String> {
        let mut at = editor.find(path, text, 0, into);
        at["context"] = json!({"includeDeclaration": false});
        let found = editor.ask("textDocument/references", at).unwrap();
        let mut places: Vec<String> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                let file = one["uri"].as_str().unwrap().rsplit('/').next().unwrap();
                format!("{file}:{}", one["range"]["start"]["line"])
            })
            .collect();
        places.sort();
        places
    };
    assert_eq!(
        uses(&whole, "place:", 1),
        ["whole.yaml:11", "whole.yaml:12", "whole.yaml:8"]
    );
    assert_eq!(uses(&part, "scale:", 1), ["part.yaml:7", "whole.yaml:8"]);
    assert_eq!(uses(&part, "sheet: {value", 1), ["whole.yaml:12"]);
    assert_eq!(uses(&whole, "picture:", 1), ["part.yaml:7", "whole.yaml:8"]);
    assert_eq!(editor.end(), 0);
}

/// Renames, writes what comes out to the disk, and opens it.
#[track_caller]
fn rename(editor: &mut Editor, path: &Path, at: Json, new: &str) {
    let mut params = at;
    params["newName"] = json!(new);
    let edit = editor.ask("textDocument/rename", params).unwrap();
    let changes = edit["changes"].as_object().unwrap();
    assert!(changes.contains_key(&uri(path)), "{edit:#}");
    let known: Vec<PathBuf> = editor.texts.keys().cloned().collect();
    let mut applied = 0;
    for path in known {
        if let Some(edits) = changes.get(&uri(&path)) {
            let text = apply(&editor.texts[&path].1, edits.as_array().unwrap());
            editor.change(&path, &text);
            std::fs::write(&path, &text).unwrap();
            applied += 1;
        }
    }
    assert_eq!(applied, changes.len(), "{edit:#}");
}

#[test]
fn a_new_name_reaches_every_place_and_the_result_is_sound() {
    let (_folder, whole, part) = two_files();
    let mut editor = Editor::start_with(
        whole.parent().unwrap(),
        json!({"capabilities": {"textDocument": {"rename": {"prepareSupport": true}}}}),
    );
    assert_eq!(
        editor.capabilities["renameProvider"]["prepareProvider"],
        true
    );
    editor.open(&whole, WHOLE);
    editor.open(&part, PART);
    let at = editor.find(&whole, "$params.factor", 0, 10);
    let prepared = editor.ask("textDocument/prepareRename", at).unwrap();
    assert_eq!(prepared["placeholder"], "factor");
    let steps: [(&Path, &str, usize, &str); 7] = [
        (&whole, "$params.factor", 10, "times"),
        (&whole, "{place}", 2, "where-it_is"),
        (&whole, "$part.large", 2, "bigger"),
        (&part, "scale:", 1, "factor"),
        (&part, "{label}", 2, "title"),
        (&whole, "picture:", 1, "photo"),
        (&whole, "$bigger.sheet", 10, "board"),
    ];
    for (path, text, into, new) in steps {
        let at = editor.find(path, text, 0, into);
        rename(&mut editor, path, at, new);
        checks(&whole);
        checks(&part);
    }
    let text = std::fs::read_to_string(&whole).unwrap();
    assert!(
        text.contains("with: {photo: $photo, factor: $params.times, title: \"at {where-it_is}\"}"),
        "{text}"
    );
    assert!(
        text.contains("value: $bigger.board, save: \"{where-it_is}-2.png\""),
        "{text}"
    );
    let text = std::fs::read_to_string(&part).unwrap();
    assert!(
        text.contains("image: $inputs.photo, scale: $params.factor"),
        "{text}"
    );
    assert!(text.contains("labels: [\"{title}\"]"), "{text}");

    // What cannot be is refused, and says why.
    let mut refused = |path: &Path, text: &str, into: usize, new: &str, why: &str| {
        let mut at = editor.find(path, text, 0, into);
        at["newName"] = json!(new);
        let error = editor.ask("textDocument/rename", at).unwrap_err();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(why), "{new}: {message}");
    };
    refused(&whole, "photo: {op", 1, "a b", "cannot be a name");
    refused(&whole, "photo: {op", 1, "", "cannot be a name");
    refused(&whole, "photo: {op", 1, "params", "reserved");
    refused(
        &whole,
        "photo: {op",
        1,
        "again",
        "there is a node `again` already",
    );
    refused(&whole, "photo: {op", 1, "x-a", "carried");
    refused(
        &part,
        "title:",
        1,
        "photo",
        "there is an input `photo` already",
    );
    refused(
        &whole,
        "where-it_is:",
        1,
        "workflow",
        "means something else",
    );
    refused(&whole, "load_image", 1, "b", "a name of the program");
    refused(&whole, "part.yaml", 2, "b", "rename it on the disk");
    assert_eq!(editor.end(), 0);
}

#[test]
fn names_of_a_new_folders_workflow_can_be_changed_and_it_still_checks() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().canonicalize().unwrap();
    let made = retouch(&here, &["new", "here"]);
    assert!(made.status.success());
    let path = here.join("here/workflows/layout-and-retouch.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut editor = Editor::start(&here);
    editor.open(&path, &text);
    assert_eq!(editor.faults(&path), [""; 0]);
    for (text, into, new) in [
        ("place:", 1, "scene"),
        ("seed:", 1, "number"),
        ("layout: ", 1, "stage1"),
        ("retouch:  ", 1, "stage2"),
    ] {
        let at = editor.find(&path, text, 0, into);
        rename(&mut editor, &path, at, new);
        assert_eq!(editor.faults(&path), [""; 0], "{new}");
    }
    checks(&path);
    let plan = retouch(&here, &["plan", path.to_str().unwrap()]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(
        plan.contains("stage1") && plan.contains("stage2/draw"),
        "{plan}"
    );
    assert_eq!(editor.end(), 0);
}

#[test]
fn formatting_gives_what_retouch_fmt_gives() {
    let (_folder, whole, _) = two_files();
    let untidy = WHOLE
        .replace("  part:\n    use", "  part:\n      use")
        .replace("    with:", "      with:")
        .replace(
            "{op: load_image, path: photo.png}",
            "{ op: load_image,   path: photo.png }   ",
        )
        + "\n\n\n";
    std::fs::write(&whole, &untidy).unwrap();
    let mut editor = Editor::start(whole.parent().unwrap());
    editor.open(&whole, &untidy);
    let params = json!({"textDocument": {"uri": uri(&whole)}, "options": {"tabSize": 8, "insertSpaces": false}});
    let edits = editor
        .ask("textDocument/formatting", params.clone())
        .unwrap();
    let ours = apply(&untidy, edits.as_array().unwrap());
    assert!(
        retouch(whole.parent().unwrap(), &["fmt", "whole.yaml"])
            .status
            .success()
    );
    assert_eq!(ours, std::fs::read_to_string(&whole).unwrap());
    assert_ne!(ours, untidy);
    // What is no YAML is left alone: its fault is told already.
    editor.change(&whole, "schema: retouch/v1\nnodes: {a: {\n");
    assert_eq!(
        editor.ask("textDocument/formatting", params).unwrap(),
        Json::Null
    );
    assert_eq!(editor.end(), 0);
}

#[test]
fn a_half_typed_file_still_has_help_and_places_and_its_names_are_not_changed() {
    let (_folder, whole, _) = two_files();
    let mut editor = Editor::start(whole.parent().unwrap());
    let broken = WHOLE.replace(
        "  again: {op",
        "  half: {op: grid, images: [$photo\n  again: {op",
    );
    editor.open(&whole, &broken);
    assert!(editor.faults(&whole)[0].starts_with("R0101"));
    let hover = editor.hover(&whole, "$part.large", 8);
    assert!(hover.contains("the larger one"), "{hover}");
    let at = editor.find(&whole, "$photo", 1, 2);
    let definition = editor.ask("textDocument/definition", at.clone()).unwrap();
    assert_eq!(definition["range"]["start"]["line"], 5);
    let mut params = at;
    params["newName"] = json!("other");
    let error = editor.ask("textDocument/rename", params).unwrap_err();
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("fix that first"),
        "{error}"
    );
    assert_eq!(editor.end(), 0);
}

#[test]
fn columns_are_utf16_units_or_bytes_if_the_client_likes() {
    let (_folder, whole, _) = two_files();
    let text = "schema: retouch/v1\nname: \"é🐻\"\nnodes:\n  a: {op: load_image, path: \"🐻é.png\", wrong: 1}\noutputs: \
                {o: {value: $a, save: \"🐻{wokflow}.png\"}}\n";
    for (encoding, wide) in [("utf-16", false), ("utf-8", true)] {
        let offers = if wide {
            json!(["utf-8", "utf-16"])
        } else {
            json!(["utf-16"])
        };
        let mut editor = Editor::start_with(
            whole.parent().unwrap(),
            json!({"capabilities": {"general": {"positionEncodings": offers}}}),
        );
        assert_eq!(editor.capabilities["positionEncoding"], encoding);
        editor.open(&whole, text);
        let column = |text: &str| {
            if wide {
                text.len()
            } else {
                text.encode_utf16().count()
            }
        };
        let faults = editor.faults(&whole);
        let line = text.lines().nth(3).unwrap();
        let wrong = column(&line[..line.find("wrong").unwrap()]);
        assert!(
            faults
                .iter()
                .any(|f| f.starts_with(&format!("R0306 3:{wrong} "))),
            "{faults:?}"
        );
        let line = text.lines().nth(4).unwrap();
        let name = column(&line[..line.find("{wok").unwrap()]);
        assert!(
            faults
                .iter()
                .any(|f| f.starts_with(&format!("R0213 4:{name} "))),
            "{faults:?}"
        );
        // An edit behind the bear.
        editor.texts.get_mut(&whole).unwrap().0 = 2;
        editor.tell("textDocument/didChange", json!({
            "textDocument": {"uri": uri(&whole), "version": 2},
            "contentChanges": [{
                "range": {"start": {"line": 4, "character": name + 1}, "end": {"line": 4, "character": name + 4}},
                "text": "work"
            }]
        }));
        let (before, faults) = (faults, editor.faults(&whole));
        let left = before.into_iter().filter(|f| !f.starts_with("R0213 "));
        assert_eq!(faults, left.collect::<Vec<_>>());
        assert_eq!(editor.end(), 0);
    }
}

#[test]
fn yaml_of_other_kinds_is_left_in_peace_unless_its_name_is_configured() {
    let (_folder, whole, _) = two_files();
    let here = whole.parent().unwrap();
    let mut editor = Editor::start_with(
        here,
        json!({"initializationOptions": {"files": ["*.flow.yaml"]}}),
    );
    let other = here.join("compose.yaml");
    editor.open(&other, "services:\n  a: {image: b}\n");
    let flow = here.join("a.flow.yaml");
    editor.open(&flow, "nodes: {}\n");
    // What comes first is of the second: nothing was said of the first.
    let faults = editor.faults(&flow);
    assert!(faults[0].starts_with("R0201"), "{faults:?}");
    assert!(
        editor
            .told
            .iter()
            .all(|one| one["method"] != "textDocument/publishDiagnostics")
    );
    let at = editor.at(&other, 1, 4);
    assert_eq!(
        editor.ask("textDocument/completion", at.clone()).unwrap(),
        Json::Null
    );
    assert_eq!(editor.ask("textDocument/hover", at).unwrap(), Json::Null);
    // A workflow stays one while its schema is away for a moment.
    editor.open(&whole, WHOLE);
    assert_eq!(editor.faults(&whole), [""; 0]);
    editor.change(&whole, &WHOLE.replace("schema: retouch/v1\n", ""));
    assert!(editor.faults(&whole)[0].starts_with("R0201"));
    assert_eq!(editor.end(), 0);
}

#[test]
fn nonsense_is_answered_with_errors_and_ends_nothing() {
    let (_folder, whole, _) = two_files();
    let mut editor = Editor::raw();
    let early = editor.ask("textDocument/hover", json!({})).unwrap_err();
    assert_eq!(early["code"], -32002);
    editor
        .ask("initialize", json!({"capabilities": {}}))
        .unwrap();
    editor.tell("initialized", json!({}));
    assert_eq!(
        editor
            .ask("initialize", json!({"capabilities": {}}))
            .unwrap_err()["code"],
        -32600
    );
    assert_eq!(
        editor.ask("textDocument/teleport", json!({})).unwrap_err()["code"],
        -32601
    );
    assert_eq!(
        editor
            .ask("textDocument/hover", json!({"a": 1}))
            .unwrap_err()["code"],
        -32602
    );
    editor.write(b"Content-Length: 5\r\n\r\n{]}x}");
    let refused = editor.wait(|one| one["id"].is_null() && one.get("error").is_some());
    assert_eq!(refused["error"]["code"], -32700);
    editor.tell("textDocument/didOpen", json!({"nonsense": true}));
    let log = editor.wait(|one| one["method"] == "window/logMessage");
    assert!(
        log["params"]["message"]
            .as_str()
            .unwrap()
            .contains("didOpen"),
        "{log}"
    );
    editor.tell("$/setTrace", json!({"value": "off"}));
    // Of a document that is not open nothing is known; behind the end of one that is there is nothing.
    let nowhere = editor.at(&whole, 99, 99);
    assert_eq!(
        editor.ask("textDocument/hover", nowhere.clone()).unwrap(),
        Json::Null
    );
    editor.open(&whole, WHOLE);
    for method in [
        "hover",
        "definition",
        "completion",
        "documentHighlight",
        "prepareRename",
    ] {
        assert!(
            editor
                .ask(&format!("textDocument/{method}"), nowhere.clone())
                .is_ok(),
            "{method}"
        );
    }
    assert_eq!(editor.faults(&whole), [""; 0]);
    editor.ask("shutdown", Json::Null).unwrap();
    assert_eq!(
        editor.ask("textDocument/hover", nowhere).unwrap_err()["code"],
        -32600
    );
    editor.tell("exit", Json::Null);
    assert_eq!(editor.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_client_that_leaves_without_shutdown_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let mut editor = Editor::start(folder.path());
    editor.tell("exit", Json::Null);
    assert_eq!(editor.child.wait().unwrap().code(), Some(1));
    let mut editor = Editor::start(folder.path());
    drop(editor.stdin.take());
    assert_eq!(editor.child.wait().unwrap().code(), Some(1));
    // Where the next message begins is not known after a header that is none.
    let mut editor = Editor::start(folder.path());
    editor.write(b"hello\r\n\r\n");
    assert_eq!(editor.child.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    editor
        .child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(
        said.contains("not a stream of messages: a header has no colon"),
        "{said}"
    );
}

#[test]
fn the_client_is_asked_to_watch_workflows_if_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let mut editor = Editor::start_with(
        folder.path(),
        json!({"capabilities": {"workspace": {"didChangeWatchedFiles": {"dynamicRegistration": true}}}}),
    );
    let asked = editor.wait(|one| one["method"] == "client/registerCapability");
    let one = &asked["params"]["registrations"][0];
    assert_eq!(one["method"], "workspace/didChangeWatchedFiles");
    let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": null});
    editor.write(&frame(&answer));
    assert_eq!(editor.end(), 0);
}

#[test]
fn a_sweep_is_checked_completed_and_renamed_with_its_workflow() {
    let (_folder, whole, _part) = two_files();
    let mut editor = Editor::start(whole.parent().unwrap());
    // A file of its own has the faults that `retouch check` tells, and none when it has none.
    let (path, text) = shipped("sweep.yaml");
    editor.open(&path, &text);
    assert_eq!(editor.faults(&path), Vec::<String>::new());
    editor.change(&path, &text.replace("seed:", "sead:"));
    let faults = editor.faults(&path);
    assert!(
        faults.iter().any(|fault| fault.contains("R0501")),
        "{faults:?}"
    );
    let matrix =
        "schema: retouch/v1\nsweep:\n  workflow: layout-and-retouch.yaml\n  matrix:\n    ¦\n";
    let offered = editor.labels(&path, matrix);
    for name in ["blend_steps", "seed"] {
        assert!(offered.contains(&name.to_owned()), "{offered:?}");
    }
    // A sweep in the workflow.
    let swept = format!(
        "{WHOLE}sweep:\n  matrix: {{factor: [2, 3], place: [a, b]}}\n  zip: [factor, place]\n  grid: {{rows: factor, columns: place, output: one}}\n"
    );
    editor.open(&whole, &swept);
    assert_eq!(editor.faults(&whole), Vec::<String>::new());
    let keys = format!("{WHOLE}sweep:\n  ¦\n");
    let offered = editor.labels(&whole, &keys);
    assert_eq!(offered.len(), 8, "{offered:?}");
    for names in ["grid: {rows: ¦}", "zip: [¦]"] {
        let names = format!("{WHOLE}sweep:\n  matrix: {{factor: [2, 3]}}\n  {names}\n");
        assert!(editor.labels(&whole, &names).contains(&"place".to_owned()));
    }
    editor.change(&whole, &swept);
    let at = editor.find(&whole, "$params.factor", 0, 10);
    rename(&mut editor, &whole, at, "times");
    let at = editor.find(&whole, "output: one", 0, 9);
    rename(&mut editor, &whole, at, "large");
    checks(&whole);
    let text = std::fs::read_to_string(&whole).unwrap();
    assert!(text.contains("matrix: {times: [2, 3], place"), "{text}");
    assert!(text.contains("zip: [times, place]"), "{text}");
    assert!(
        text.contains("grid: {rows: times, columns: place, output: large}"),
        "{text}"
    );
}
