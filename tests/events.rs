//! The JSON lines of real runs against the JSON Schema that the program prints and the page that describes them.

#![cfg(unix)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};

use crate::support::{self, root};

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retouch"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("RETOUCH_CACHE", folder.join("cache"))
        .env("RETOUCH_CONFIG", "")
        .stdin(Stdio::null());
    command
}

fn schema() -> Json {
    let printed = command(&root(), &["schema", "events"]).output().unwrap();
    serde_json::from_slice(&printed.stdout).unwrap()
}

/// The schema for this very version: what it does not name is refused.
fn strict(mut schema: Json) -> Json {
    let close = |object: &mut Json| {
        if object.get("properties").is_some() {
            object["additionalProperties"] = json!(false);
            // All fields are written, null or not.
            let all: Vec<String> = object["properties"]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect();
            object["required"] = json!(all);
        }
    };
    schema["oneOf"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .for_each(close);
    schema["$defs"]
        .as_object_mut()
        .unwrap()
        .values_mut()
        .for_each(close);
    schema
}

/// Reads lines, each of which must satisfy the strict schema.
struct Reader {
    validator: jsonschema::Validator,
    seen: BTreeMap<String, usize>,
}

impl Reader {
    fn new() -> Self {
        Self {
            validator: jsonschema::validator_for(&strict(schema())).unwrap(),
            seen: BTreeMap::new(),
        }
    }

    #[track_caller]
    fn line(&mut self, line: &str) -> Json {
        let event: Json = serde_json::from_str(line).unwrap();
        let faults: Vec<String> = self
            .validator
            .iter_errors(&event)
            .map(|fault| fault.to_string())
            .collect();
        assert!(faults.is_empty(), "{line}: {faults:#?}");
        *self
            .seen
            .entry(event["event"].as_str().unwrap().to_owned())
            .or_default() += 1;
        event
    }

    /// Runs the program to its end; its lines, the first of which must say the version.
    #[track_caller]
    fn run(&mut self, folder: &Path, code: i32, arguments: &[&str]) -> Vec<Json> {
        let output = command(folder, arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}\n{said}\n{told}"
        );
        let events: Vec<Json> = said.lines().map(|line| self.line(line)).collect();
        assert_eq!(events[0]["schema"], 1, "{arguments:?}");
        if code != 0 {
            let last = &events[events.len() - 1];
            // An argument may be wrong as such, or by what the workflow has.
            let due: &[&str] = match code {
                2 => &["error", "fault"],
                3 => &["fault"],
                _ => &["error"],
            };
            let event = last["event"].as_str().unwrap();
            assert!(due.contains(&event), "{arguments:?}\n{said}");
            // What a program reads, a person reads too.
            assert!(
                event == "fault" || told.contains(last["message"].as_str().unwrap()),
                "{told}"
            );
        }
        events
    }
}

fn codes(events: &[Json], name: &str) -> Vec<String> {
    events
        .iter()
        .filter(|event| event["event"] == name)
        .map(|event| event["code"].as_str().unwrap().to_owned())
        .collect()
}

/// A workflow with a photo that a run decodes, and a drawing whose first `blend` of four steps are another model's.
fn text(prompt: &str) -> String {
    let models = root().join("models").display().to_string();
    format!(
        "schema: retouch/v1
params:
  photo: {{type: path, default: photo.png}}
  seed: {{type: seed, default: 1}}
  blend: {{type: int, default: 1}}
  idle: {{type: int, default: 1}}
nodes:
  base: {{op: load_model, path: '{models}/world'}}
  personal: {{op: load_model, path: '{models}/world-teddy'}}
  photo: {{op: load_image, path: $params.photo}}
  small: {{op: resize_image, image: $photo, scale: 0.5}}
  draw:
    op: step_blend_sample
    vanilla: $base
    personalized: $personal
    vanilla_prompt: '{prompt}'
    personalized_prompt: '{prompt}'
    blend_steps: $params.blend
    steps: 4
    seed: $params.seed
  picture: {{op: decode, model: $base, latent: $draw}}
outputs:
  photo: {{value: $small, save: photo.png}}
  picture: {{value: $picture, save: picture.png}}
"
    )
}

/// Damages the entries of the disk cache, so that each is found so.
fn damage(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            damage(&path);
        } else if path.file_name().unwrap().len() == 64 {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

/// Reads lines up to the first of that event.
fn until(reader: &mut Reader, lines: &mut dyn Iterator<Item = String>, event: &str) -> Vec<Json> {
    let mut heard = Vec::new();
    for line in lines {
        heard.push(reader.line(&line));
        if heard[heard.len() - 1]["event"] == event {
            return heard;
        }
    }
    panic!("it ended before {event}: {heard:#?}");
}

#[test]
fn every_line_of_real_runs_satisfies_the_schema_and_every_event_of_the_schema_occurs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut reader = Reader::new();
    let photo = std::fs::read(root().join("references/teddy/01.png")).unwrap();
    std::fs::write(folder.join("photo.png"), &photo).unwrap();
    std::fs::write(folder.join("wf.yaml"), text("a teddy bear")).unwrap();
    let run = ["run", "wf.yaml", "--json"];
    let with = |more: &[&'static str]| [&run[..], more].concat();

    // What is odd about the workflow comes before its run.
    let first = reader.run(folder, 0, &with(&["--preview", "p.png", "--every", "1"]));
    assert_eq!(codes(&first, "fault"), ["R0701"]);
    assert_eq!(first[0]["severity"], "warning");
    assert_eq!(first[first.len() - 1]["event"], "run_finished");
    // All is there; a step more is; what is there is damaged.
    let second = reader.run(folder, 0, &run);
    assert!(second.iter().all(|event| event["event"] != "node_started"));
    let reused = second
        .iter()
        .filter(|event| event["event"] == "node_reused");
    assert!(reused.count() > 1);
    let blended = reader.run(folder, 0, &with(&["--set", "blend=2"]));
    let resumed = blended
        .iter()
        .find(|event| event["event"] == "node_resumed");
    assert_eq!(
        (&resumed.unwrap()["step"], &resumed.unwrap()["of"]),
        (&json!(1), &json!(4))
    );
    damage(&folder.join("cache"));
    reader.run(folder, 0, &run);
    assert!(reader.seen["cache_warning"] > 0);
    // A prompt of more tokens than the text encoder takes.
    std::fs::write(folder.join("long.yaml"), text(&"bear ".repeat(90))).unwrap();
    reader.run(folder, 0, &["run", "long.yaml", "--json", "--out", "long"]);
    assert!(reader.seen["node_warning"] > 0);
    // A LoRA says which layers it was found for.
    let micro = root().join("tests/oracle/data/micro");
    let adapted = format!(
        "schema: retouch/v1\nnodes:\n  base: {{op: load_model, path: '{0}/sd1'}}\n  \
         toy: {{op: apply_lora, model: $base, path: '{0}/adapters/sd1-lora-kohya.safetensors'}}\n  \
         draw: {{op: sample, model: $toy, prompt: a cat, steps: 1, seed: 1}}\noutputs:\n  z: {{value: $draw}}\n",
        micro.display()
    );
    std::fs::write(folder.join("lora.yaml"), adapted).unwrap();
    reader.run(folder, 0, &["run", "lora.yaml", "--json", "--out", "lora"]);
    assert!(reader.seen["node_note"] > 0);

    // A file in the way of an output, and a photo whose pixels are damaged.
    let exists = reader.run(folder, 1, &with(&["--set", "seed=2", "--exists", "fail"]));
    assert_eq!(codes(&exists, "output_failed"), ["R1005"]);
    assert_eq!(codes(&exists, "error"), ["R1005"]);
    let mut damaged = photo.clone();
    damaged[photo.len() / 2] ^= 1;
    std::fs::write(folder.join("bad.png"), damaged).unwrap();
    let failed = reader.run(folder, 1, &with(&["--set", "photo=bad.png"]));
    assert_eq!(codes(&failed, "node_failed"), ["R1001"]);
    assert_eq!(codes(&failed, "error"), ["R1001"]);
    let status = failed.iter().find(|event| event["event"] == "run_finished");
    assert_eq!(status.unwrap()["status"], "failed");

    // Faults, of the file and of what was asked for.
    std::fs::write(
        folder.join("bad.yaml"),
        text("x").replace("op: decode", "op: dekode"),
    )
    .unwrap();
    for command in ["run", "check", "sweep", "plan"] {
        let faults = reader.run(folder, 3, &[command, "bad.yaml", "--json"]);
        // Whatever else a sweep finds fault with, it says too.
        let code = if command == "sweep" { "R0208" } else { "R0301" };
        assert!(
            codes(&faults, "fault").contains(&code.to_owned()),
            "{command} {faults:#?}"
        );
    }
    for command in ["run", "plan"] {
        let faults = reader.run(folder, 2, &[command, "wf.yaml", "--json", "nobody"]);
        assert!(codes(&faults, "fault").contains(&"R0604".to_owned()));
    }

    // What has no place in a workflow.
    std::fs::write(folder.join("blocked"), "a file where a folder is due").unwrap();
    for (code, exit, arguments) in [
        ("R1101", 2, with(&["--frobnicate"])),
        ("R1101", 2, vec!["nodes", "sampel", "--json"]),
        ("R1103", 2, with(&["--device", "abacus"])),
        ("R1202", 1, with(&["--out", "blocked"])),
    ] {
        let told = reader.run(folder, exit, &arguments);
        assert_eq!(codes(&told, "error"), [code], "{arguments:?}");
    }

    // What a model and an adapter are.
    let micro = root().join("tests/oracle/data/micro");
    for (path, kind) in [
        ("sd1", "model"),
        ("adapters/sd1-lora-kohya.safetensors", "lora"),
    ] {
        let path = micro.join(path).display().to_string();
        let told = reader.run(folder, 0, &["inspect", &path, "--json"]);
        assert_eq!(told[0]["report"]["kind"], kind);
    }
    let told = reader.run(folder, 2, &["inspect", "nothing", "--json"]);
    assert_eq!(codes(&told, "error"), ["R1201"]);

    // A sweep, and what it would do.
    let sweep = [
        "sweep", "wf.yaml", "--over", "seed=3,4", "--table", "t.csv", "--json",
    ];
    reader.run(folder, 0, &[&sweep[..], &["--dry-run"]].concat());
    let swept = reader.run(folder, 0, &sweep);
    let cells = swept
        .iter()
        .filter(|event| event["event"] == "cell_finished");
    assert_eq!(cells.count(), 2);

    // How far a run is that workers share.
    let shared = ["--on", "command", "--out", "shared"];
    let over = ["sweep", "wf.yaml", "--over", "seed=3,4"];
    let output = command(folder, &[&over[..], &shared].concat()).output();
    assert!(output.unwrap().status.success());
    let status = ["sweep", "status", "--out", "shared", "--json"];
    let told = reader.run(folder, 0, &status);
    assert_eq!(
        (&told[0]["cells"], &told[0]["open"]),
        (&json!(2), &json!(2))
    );

    // The sweep again, from nothing.
    let verified = reader.run(folder, 0, &["verify", "--json"]);
    assert_eq!((verified.len(), &verified[0]["equal"]), (1, &json!(true)));

    // A picture drawn again.
    let models = root().join("models").display().to_string();
    let replay = ["replay", "out/picture.png", "--json", "--models", &models];
    let again = reader.run(folder, 0, &replay);
    assert_eq!(again[again.len() - 1]["result"], "same_bytes");
    let none = reader.run(folder, 1, &["replay", "wf.yaml", "--json"]);
    assert_eq!(codes(&none, "error"), ["R1211"]);

    // Ctrl-C.
    let long = text("a bear").replace("steps: 4", "steps: 500");
    std::fs::write(folder.join("long.yaml"), long).unwrap();
    let mut child = command(folder, &["run", "long.yaml", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    let mut lines = BufReader::new(out).lines().map_while(Result::ok);
    until(&mut reader, &mut lines, "node_progress");
    support::signal(&child, libc::SIGTERM);
    let rest = until(&mut reader, &mut lines, "error");
    assert_eq!(codes(&rest, "error"), ["R1007"]);
    assert_eq!(rest[rest.len() - 2]["status"], "cancelled");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(lines.next(), None);

    // Watch mode: a run, a fault, a run.
    let mut child = command(folder, &["watch", "wf.yaml", "--json", "--out", "watched"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    let mut lines = BufReader::new(out).lines().map_while(Result::ok);
    until(&mut reader, &mut lines, "watching");
    let broken = text("a teddy bear").replace("op: decode", "op: dekode");
    std::fs::write(folder.join("wf.yaml"), broken).unwrap();
    let heard = until(&mut reader, &mut lines, "watching");
    assert!(codes(&heard, "fault").contains(&"R0301".to_owned()));
    std::fs::write(folder.join("wf.yaml"), text("a teddy bear")).unwrap();
    until(&mut reader, &mut lines, "run_finished");
    until(&mut reader, &mut lines, "watching");
    support::signal(&child, libc::SIGTERM);
    assert!(child.wait().unwrap().success());

    let mut all = names(&schema());
    // A hub's are met in tests/hub.rs, where there is one.
    let whole = all.len();
    all.retain(|name| !name.starts_with("fetch_"));
    assert_eq!(whole - all.len(), 4);
    let seen: BTreeSet<String> = reader.seen.keys().cloned().collect();
    assert_eq!(seen, all, "every event is met above");
}

fn names(schema: &Json) -> BTreeSet<String> {
    let variants = schema["oneOf"].as_array().unwrap().iter();
    variants
        .map(|event| {
            event["properties"]["event"]["const"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn the_page_about_events_has_every_event_and_every_field_and_no_other() {
    let page = std::fs::read_to_string(root().join("docs/events.md")).unwrap();
    let mut described: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut event = None;
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("### `") {
            event = Some(name.trim_end_matches('`').to_owned());
            described
                .entry(name.trim_end_matches('`').to_owned())
                .or_default();
        } else if line.starts_with("## ") {
            event = None;
        } else if let (Some(event), Some(row)) = (&event, line.strip_prefix("| `")) {
            let field = row.split('`').next().unwrap().to_owned();
            described.get_mut(event).unwrap().insert(field);
        }
    }
    let schema = schema();
    let mut printed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for event in schema["oneOf"].as_array().unwrap() {
        let fields = event["properties"].as_object().unwrap();
        for (field, what) in fields.iter().filter(|(field, _)| *field != "event") {
            let said = what.get("description").is_some_and(|text| text != "");
            assert!(said, "{field} of {event} is described");
        }
        let name = fields["event"]["const"].as_str().unwrap().to_owned();
        let fields = fields.keys().filter(|field| *field != "event").cloned();
        printed.insert(name, fields.collect());
    }
    assert_eq!(described, printed);
}

#[test]
fn a_line_that_lacks_a_field_or_has_a_wrong_word_does_not_satisfy_the_schema() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let good =
        json!({"event": "error", "schema": 1, "code": "R1101", "message": "m", "help": null});
    assert!(validator.is_valid(&good));
    for (field, value) in [
        ("code", json!("E1")),
        ("code", Json::Null),
        ("event", json!("failure")),
        ("message", json!(1)),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(!validator.is_valid(&bad), "{bad}");
        bad.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&bad), "{bad}");
    }
    // A later program may say more.
    let mut more = good;
    more["more"] = json!(true);
    assert!(validator.is_valid(&more));
}

#[test]
fn every_code_of_a_failure_is_explained() {
    let codes = command(&root(), &["explain"]).output().unwrap();
    let codes = String::from_utf8(codes.stdout).unwrap();
    for code in [
        "R1001", "R1002", "R1003", "R1004", "R1005", "R1006", "R1007", "R1008", "R1009", "R1101",
        "R1201", "R1204", "R1301", "R1302", "R1303", "R1304",
    ] {
        assert!(codes.contains(code), "{code} is listed");
        let said = command(&root(), &["explain", code]).output().unwrap();
        assert!(said.status.success() && said.stdout.len() > 40, "{code}");
    }
}
