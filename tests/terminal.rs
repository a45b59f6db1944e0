//! What reaches a terminal: no control character of a file, a name, an argument or a record, and no more than can be read.

#![cfg(unix)] // names of files may hold anything there

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// Sets the clipboard, clears the screen, hides text, colours it with the one-byte introducer, turns it around.
const EVIL: &str = "\u{1b}]52;c;aGk=\u{7}\u{1b}[2J\u{1b}[8m\u{9b}31m\u{9d}0;t\u{9c}\u{202e}\u{7f}x";
/// The same for a file name.
const NAME: &str = "e\u{1b}]52;c;aGk=\u{7}\u{1b}[2J\u{1b}[8m\u{9b}31m\u{202e}";

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retouch"));
    command
        .args(arguments)
        .current_dir(folder)
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .env("RETOUCH_CACHE", folder.join("cache"))
        .env("RETOUCH_CONFIG", "")
        .stdin(Stdio::null());
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// What a command printed, on both streams.
fn said(output: &Output) -> String {
    let both = [output.stdout.as_slice(), b"\n", &output.stderr].concat();
    String::from_utf8(both).unwrap()
}

fn is_raw(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[track_caller]
fn is_clean(text: &str, what: &str) {
    if let Some(at) = text.find(is_raw) {
        let near: String = text[..at].chars().rev().take(60).collect();
        let near: String = near.chars().rev().collect();
        panic!("{what}: {:?} after {near:?}", text[at..].chars().next());
    }
}

/// The text without the colours that the program uses: of hostile ones it would show the sequence.
#[track_caller]
fn without_colours(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        out.push_str(&rest[..at]);
        rest = &rest[at + 2..];
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != ';')
            .unwrap();
        assert!(
            rest[end..].starts_with('m'),
            "another sequence than a colour"
        );
        assert!(&rest[..end] != "8", "a colour of somebody else");
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    out
}

fn picture() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 8, 8);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[128; 192]).unwrap();
    writer.finish().unwrap();
    bytes
}

/// A PNG with a text of that keyword in front of its picture.
fn with_text(png: &[u8], keyword: &str, text: &str) -> Vec<u8> {
    let mut chunk = b"iTXt".to_vec();
    chunk.extend(keyword.as_bytes());
    chunk.extend([0, 0, 0, 0, 0]);
    chunk.extend(text.as_bytes());
    let mut out = png[..33].to_vec();
    out.extend(((chunk.len() - 4) as u32).to_be_bytes());
    out.extend(&chunk);
    out.extend(crc32fast::hash(&chunk).to_be_bytes());
    out.extend(&png[33..]);
    out
}

/// A text as it is written in double quotes in YAML.
fn quoted(text: &str) -> String {
    let escaped: String = (text.chars())
        .map(|c| match c {
            c if is_raw(c) => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

/// The keyword of recipes, as it stands in a picture that the program wrote.
fn keyword(png: &[u8]) -> String {
    let at = png.windows(4).position(|four| four == b"iTXt").unwrap() + 4;
    let end = png[at..].iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(png[at..at + end].to_vec()).unwrap()
}

fn strings(value: &mut Value, change: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| strings(item, change)),
        Value::Object(entries) => entries.values_mut().for_each(|item| strings(item, change)),
        _ => {}
    }
}

/// Safetensors of one tensor of that name, and of metadata.
fn tensors(name: &str) -> Vec<u8> {
    let header = json!({
        "__metadata__": {"made by": EVIL},
        name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    })
    .to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// A folder with all that is hostile in it.
fn hostile() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path(&format!("{NAME}.png")), picture()).unwrap();
    let workflow = format!(
        "schema: retouch/v1\nname: {0}\nparams: {{place: {{type: string, default: {0}}}, size: {{type: int, default: 4}}}}\n\
         nodes:\n  a: {{op: load_image, path: {1}}}\n  b: {{op: resize_image, image: $a, width: $params.size, height: 4}}\n\
         outputs: {{b: {{value: $b, save: 'b.png'}}}}\nx-notes: {0}\n",
        quoted(EVIL),
        quoted(&format!("{NAME}.png")),
    );
    fs::write(path(&format!("{NAME}.yaml")), &workflow).unwrap();
    // Recipes name no such path.
    fs::write(path("p.png"), picture()).unwrap();
    let shareable = workflow.replace(&quoted(&format!("{NAME}.png")), "p.png");
    fs::write(path("wf.yaml"), shareable).unwrap();
    fs::write(
        path("faults.yaml"),
        format!(
            "schema: {0}\n{0}: 1\nname: [1]\nnodes:\n  a: {{op: {0}, {0}: 1}}\n  b: {{op: load_image, path: {0}}}\n  {0}: {{op: load_image, path: x}}\n\
             outputs: {{b: {{value: {0}, save: {0}}}}}\n",
            quoted(EVIL)
        ),
    )
    .unwrap();
    fs::write(path("raw.yaml"), format!("schema: retouch/v1 # {EVIL}\n")).unwrap();
    fs::write(
        path("hidden.yaml"),
        "schema: retouch/v1 # \u{202e}\nnosuch: \u{202e}\n",
    )
    .unwrap();
    fs::write(path("names.safetensors"), tensors(EVIL)).unwrap();
    fs::write(path("broken.safetensors"), &tensors(EVIL)[..100]).unwrap();
    fs::write(
        path("latent.yaml"),
        "schema: retouch/v1\nname: l\nnodes: {a: {op: load_latent, path: names.safetensors}}\noutputs: {a: {value: $a, save: a.safetensors}}\n",
    )
    .unwrap();
    folder
}

#[test]
fn nothing_that_others_wrote_steers_the_terminal() {
    let folder = hostile();
    let folder = folder.path();
    let (yaml, png) = (format!("{NAME}.yaml"), format!("{NAME}.png"));
    let set = format!("place={EVIL}");
    let made = run(folder, &["run", &yaml, "--set", &set]);
    assert!(made.status.success(), "{}", said(&made));
    assert!(
        said(&made).contains('\u{241b}'),
        "it is shown, as what it is"
    );

    // A picture of a stranger, whose recipe has it everywhere.
    let plain = run(
        folder,
        &[
            "run",
            "wf.yaml",
            "--set",
            "place=here",
            "--set",
            "size=5",
            "--out",
            "own",
        ],
    );
    assert!(plain.status.success(), "{}", said(&plain));
    let own = fs::read(folder.join("own/b.png")).unwrap();
    let shown = run(folder, &["show", "own/b.png", "--json"]);
    let mut recipe: Value = serde_json::from_slice(&shown.stdout).unwrap();
    recipe["tool"] = json!(EVIL);
    recipe["params"] = json!({EVIL: EVIL});
    let workflow = recipe["workflow"].as_str().unwrap().to_owned();
    recipe["workflow"] = json!(format!("{workflow}# {EVIL}\n"));
    let nodes = recipe["record"]["nodes"].as_object().unwrap().clone();
    let mut changed: Value = (nodes.into_iter())
        .map(|(name, node)| (format!("{name}{EVIL}"), node))
        .collect::<serde_json::Map<_, _>>()
        .into();
    strings(&mut changed, &|text| format!("{text}{EVIL}"));
    recipe["record"]["nodes"] = changed;
    let stranger = with_text(&picture(), &keyword(&own), &recipe.to_string());
    fs::write(folder.join("stranger.png"), stranger).unwrap();

    let number = {
        let listed = run(folder, &["runs", "--json"]);
        let first = String::from_utf8(listed.stdout).unwrap();
        let line: Value = serde_json::from_str(first.lines().last().unwrap()).unwrap();
        line["id"].as_str().unwrap().to_owned()
    };
    let commands: &[&[&str]] = &[
        &["run", &yaml, "--set", &set],
        &["run", &yaml, "--set", &format!("{EVIL}={EVIL}")],
        &["run", &yaml, EVIL],
        &["run", &yaml, "--quiet", "--out", NAME],
        &["run", &format!("{EVIL}.yaml")],
        &["plan", &yaml, "--set", &set],
        &[
            "check",
            &yaml,
            "faults.yaml",
            "raw.yaml",
            "hidden.yaml",
            EVIL,
        ],
        &["fmt", "--check", &yaml, "raw.yaml"],
        &["fmt", EVIL],
        &[
            "sweep",
            &yaml,
            "--over",
            &format!("place=[{}, b]", quoted(EVIL)),
            "--dry-run",
        ],
        &[
            "sweep",
            &yaml,
            "--over",
            &format!("place=[{}, b]", quoted(EVIL)),
        ],
        &["sweep", &yaml, "--over", &format!("{EVIL}=1,2")],
        &["show", &png],
        &["show", "own/b.png"],
        &["show", "stranger.png"],
        &["replay", "stranger.png"],
        &["replay", &png],
        &["diff", "own/b.png", "stranger.png"],
        &["diff", &yaml, "faults.yaml"],
        &["extract", &png],
        &["extract", "stranger.png", "-o", NAME],
        &["inspect", "names.safetensors"],
        &["inspect", "broken.safetensors"],
        &["inspect", EVIL],
        &["run", "latent.yaml"],
        &["runs"],
        &["runs", EVIL],
        &["runs", "show", &number],
        &["runs", "show", EVIL],
        &["verify", &number],
        &["lock", &yaml],
        &["bundle", &yaml, "-o", &format!("{NAME}.bundle")],
        &["unbundle", &format!("{NAME}.bundle"), EVIL],
        &["unbundle", &png, "there"],
        &["fetch", &yaml],
        &["nodes", EVIL],
        &["explain", EVIL],
        &["convert", "names.safetensors", NAME],
        &["new", "own"],
        &["cache", "ls"],
        &["cache", "stats"],
        &["graph", "faults.yaml"],
        &[EVIL],
        &["run", &format!("--{EVIL}")],
        &["run", &yaml, "--device", EVIL],
        &["run", &yaml, "--memory", EVIL],
    ];
    let mut seen = 0;
    for arguments in commands {
        let what = format!("{arguments:?}");
        let plain = run(folder, arguments);
        is_clean(&said(&plain), &what);
        seen += usize::from(said(&plain).contains('\u{241b}'));
        let coloured = command(folder, arguments)
            .env("CLICOLOR_FORCE", "1")
            .env("RETOUCH_LOG", "debug")
            .output()
            .unwrap();
        is_clean(&without_colours(&said(&coloured)), &what);
    }
    assert!(seen > 25, "only {seen} commands had something to show");

    // JSON has it as escapes, and whole.
    let lines = run(
        folder,
        &["run", &yaml, "--set", &set, "--json", "--out", "json"],
    );
    let lines = String::from_utf8(lines.stdout).unwrap();
    is_clean(&lines, "run --json");
    let read: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let started = read
        .iter()
        .find(|line| line["event"] == "run_started")
        .unwrap();
    assert_eq!(started["workflow"], EVIL);
    for arguments in [
        ["show", "stranger.png", "--json"],
        ["plan", &yaml, "--json"],
        ["check", "faults.yaml", "--json"],
        ["inspect", "names.safetensors", "--json"],
        ["diff", "stranger.png", "--json"],
        ["runs", "--json", &yaml],
    ] {
        is_clean(&said(&run(folder, &arguments)), &format!("{arguments:?}"));
    }
    let shown = run(folder, &["show", "stranger.png", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["tool"], EVIL);

    // What another program reads comes as it is.
    let extracted = run(folder, &["extract", "stranger.png"]);
    assert!(
        String::from_utf8(extracted.stdout)
            .unwrap()
            .ends_with(&format!("{EVIL}\n"))
    );
}

#[test]
fn a_recipe_is_written_whatever_the_params_hold() {
    let folder = hostile();
    let folder = folder.path();
    let made = run(
        folder,
        &["run", "wf.yaml", "--set", &format!("place={EVIL}")],
    );
    assert!(made.status.success(), "{}", said(&made));
    let extracted = run(folder, &["extract", "out/b.png"]);
    let text = String::from_utf8(extracted.stdout).unwrap();
    // The language takes no control characters, so what the program writes has them as escapes.
    assert!(
        !text.contains(|c: char| c.is_control() && c != '\n'),
        "{text:?}"
    );
    assert!(text.contains("\\u009b"), "{text}");
    fs::write(folder.join("again.yaml"), text).unwrap();
    let checked = run(folder, &["check", "again.yaml"]);
    assert!(checked.status.success(), "{}", said(&checked));
}

#[test]
fn the_log_has_colours_on_a_terminal_alone() {
    let folder = hostile();
    let logged = command(folder.path(), &["run", "wf.yaml"])
        .env("RETOUCH_LOG", "trace")
        .output()
        .unwrap();
    is_clean(&said(&logged), "RETOUCH_LOG");
    assert!(said(&logged).contains("DEBUG"), "something is logged");
}

/// A fault far right in a long line, and names and messages of that length.
#[test]
fn long_lines_names_and_messages_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let long = "x".repeat(70_000);
    let cases = [
        (
            "line.yaml",
            format!(
                "{{\"schema\": \"retouch/v1\", \"name\": \"l\", \"description\": \"{long}\", \"nosuch\": 1}}\n"
            ),
        ),
        (
            "key.yaml",
            format!("schema: retouch/v1\nname: l\n\"{long}\": 1\n"),
        ),
        (
            "node.yaml",
            format!(
                "schema: retouch/v1\nname: l\nnodes: {{{long}: {{op: nosuch}}}}\noutputs: {{}}\n"
            ),
        ),
        (
            "value.yaml",
            format!("schema: retouch/v1\nname: l\nnodes: {{a: {{op: {long}}}}}\noutputs: {{}}\n"),
        ),
    ];
    for (name, text) in &cases {
        fs::write(folder.join(name), text).unwrap();
        let checked = run(folder, &["check", name]);
        assert_eq!(checked.status.code(), Some(3), "{name}");
        let told = String::from_utf8(checked.stderr).unwrap();
        assert!(told.len() < 20_000, "{name}: {}", told.len());
        assert!(told.contains('…'), "{name}");
        // The place is that of the file.
        let json = run(folder, &["check", name, "--json"]);
        let first = String::from_utf8(json.stdout).unwrap();
        let fault: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
        let place = format!("{name}:{}:{}]", fault["line"], fault["column"]);
        assert!(told.contains(&place), "{place} in {told}");
    }
    let told = String::from_utf8(run(folder, &["check", "line.yaml"]).stderr).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    let caret = lines
        .iter()
        .position(|line| line.contains('─') && line.contains('·'))
        .unwrap();
    let column = lines[caret].chars().position(|c| c == '─').unwrap();
    let under: String = lines[caret - 1].chars().skip(column).take(8).collect();
    assert_eq!(under, "\"nosuch\"", "the caret is under the key");

    fs::write(
        folder.join("long.safetensors"),
        tensors(&format!("{long}.weight")),
    )
    .unwrap();
    let inspected = run(folder, &["inspect", "long.safetensors"]);
    assert_eq!(inspected.status.code(), Some(0));
    let told = said(&inspected);
    assert!(told.len() < 20_000 && told.contains("xx…xx"), "{told}");
}

/// A terminal is not flooded, and a program gets all.
#[test]
fn of_many_faults_some_are_shown_and_all_are_json() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let keys: Vec<String> = (0..4000).map(|i| format!("k{i}: 1")).collect();
    fs::write(
        folder.join("line.yaml"),
        format!("{{{}}}\n", keys.join(", ")),
    )
    .unwrap();
    let told = run(folder, &["check", "line.yaml"]);
    assert_eq!(told.status.code(), Some(3));
    let text = String::from_utf8(told.stderr).unwrap();
    assert!(text.len() < 100_000, "{}", text.len());
    let all = String::from_utf8(run(folder, &["check", "line.yaml", "--json"]).stdout).unwrap();
    let faults = all.lines().count();
    assert!(faults >= 4000);
    let more = format!(
        "… and {} more faults; `--json` prints all of them",
        faults - 50
    );
    assert!(text.contains(&more), "{more}");
    assert!(text.contains(&format!("line.yaml: {faults} faults")));

    let nodes: String = (0..3000)
        .map(|i| format!("  n{i}: {{op: load_image, path: p.png}}\n"))
        .collect();
    fs::write(folder.join("p.png"), picture()).unwrap();
    let unused = format!(
        "schema: retouch/v1\nname: u\nnodes:\n{nodes}outputs: {{o: {{value: $n0, save: o.png}}}}\n"
    );
    fs::write(folder.join("unused.yaml"), unused).unwrap();
    let told = run(folder, &["check", "unused.yaml"]);
    assert!(told.status.success());
    let text = String::from_utf8(told.stderr).unwrap();
    assert!(text.contains("… and 2949 more warnings;") && text.len() < 50_000);
}

/// Who reads the events may leave; the run goes on, and ends as it ends.
#[test]
fn a_reader_that_goes_away_does_not_end_the_run() {
    let folder = hostile();
    let folder = folder.path();
    let mut child = command(folder, &["run", "wf.yaml", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut told = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    let ended = child.wait().unwrap();
    assert_eq!(ended.code(), Some(0), "{told}");
    assert!(folder.join("out/b.png").is_file());
    assert_eq!(
        told.matches("the reader of the JSON lines is gone").count(),
        1,
        "{told}"
    );
    // One that cannot be written to is another thing: what was asked for is not there.
    let full = fs::File::options().write(true).open("/dev/full");
    if let Ok(full) = full {
        let output = command(folder, &["run", "wf.yaml", "--json", "--out", "other"])
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("be written: "), "{}", said(&output));
    }
}

/// What a picture of the view cannot show is refused before anything runs.
#[test]
#[cfg(feature = "view")]
fn a_view_of_what_is_not_there_runs_nothing() {
    let folder = hostile();
    let folder = folder.path();
    for wanted in [["--select", "nosuch"], ["--step", "500"]] {
        let arguments = [
            &["view", "wf.yaml", "--screenshot", "view.png"],
            &wanted[..],
        ]
        .concat();
        let output = command(folder, &arguments)
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("WAYLAND_DISPLAY")
            .output()
            .unwrap();
        let told = said(&output);
        if told.contains("there is no graphics adapter") {
            return; // the view's own tests say so
        }
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(!told.contains("XDG_RUNTIME_DIR"), "{told}");
        assert!(!folder.join("out").exists() && !folder.join("view.png").exists());
    }
    let drawn = run(
        folder,
        &[
            "view",
            "wf.yaml",
            "--screenshot",
            "view.png",
            "--select",
            "a",
        ],
    );
    assert!(drawn.status.success(), "{}", said(&drawn));
    let listed = run(folder, &["runs", "--json"]);
    let line: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(line["kind"], "view");
}
