//! From a picture back to its recipe: every PNG that ships can be drawn again to the byte from what it carries, what
//! changed since is refused by name, and two recipes are compared by node and by step.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use retouch_graph::{Code, Origin, Settings};
use serde_json::Value as Json;

use crate::support::Bench;

/// A folder with the workflows, models and photos that ship, and a cache of its own.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder };
        let made = place.run(&["new", "box"]);
        assert!(made.status.success());
        place
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_retouch"))
            .args(arguments)
            .current_dir(self.path())
            .env("NO_COLOR", "1")
            .env("RETOUCH_CACHE", self.path().join("cache"))
            .env("RETOUCH_CONFIG", "")
            .env_remove("RETOUCH_MODELS")
            .output()
            .unwrap()
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn pictures(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pictures(&path));
        } else if path.extension().is_some_and(|ending| ending == "png") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_picture_of_each_output_of_the_shipped_workflows_is_drawn_again_to_the_byte() {
    let place = Place::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(place.path().join("box/workflows"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        // `program` runs what measures at its smallest; it is many times what the others are.
        let names = ["evaluate", "settings", "score", "score-clip"];
        let measures = names
            .iter()
            .any(|name| file.ends_with(format!("{name}.yaml")));
        if text.contains("\ninputs:") || measures {
            continue;
        }
        let how = if text.contains("\nsweep:") {
            "sweep"
        } else {
            "run"
        };
        let mut arguments = vec![how, file.to_str().unwrap(), "-q", "--set", "steps=3"];
        if text.contains("train_steps:") {
            arguments.extend(["--set", "train_steps=2"]);
        }
        if how == "sweep" {
            arguments.extend(["--over", "blend_steps=0,1", "--over", "seed=42,43"]);
        }
        place.done(&arguments);
    }
    let mut pictures = pictures(&place.path().join("out"));
    // Of what differs by a param, and of what one training gave, one is enough.
    let name = |picture: &Path| picture.file_name().unwrap().to_str().unwrap().to_owned();
    pictures.retain(|picture| {
        let name = name(picture);
        let trained = picture.parent().unwrap().ends_with("my-subject");
        match name.split_once('=') {
            Some((_, value)) => name.starts_with("42") && value == "1.png",
            None => !trained || name == "sheet.png",
        }
    });
    assert!(pictures.len() >= 18, "{pictures:?}");
    for picture in &pictures {
        // Saved elsewhere: the recipe of the copy is the recipe of the original.
        let heard = place.done(&["replay", picture.to_str().unwrap(), "-q", "--out", "again"]);
        assert!(
            heard.contains("drawn again, the same bytes"),
            "{}: {heard}",
            picture.display()
        );
    }
}

/// A workflow without a model: quick to draw.
const SMALL: &str = "schema: retouch/v1
params: {photo: {type: path, default: ../references/teddy/01.png}, size: {type: int, default: 24}, side: {type: int, default: 16}}
nodes:
  photo: {op: load_image, path: $params.photo}
  small: {op: resize_image, image: $photo, width: $params.size, height: $params.side}
outputs: {small: {value: $small, save: \"small.png\"}}
";

#[test]
fn a_contact_sheet_carries_its_recipe_whatever_the_command_line_changes_about_its_axes() {
    let place = Place::new();
    let text = format!(
        "{SMALL}sweep:
  matrix: {{size: [16, 24], side: [8, 16]}}
  grid: {{rows: side, columns: size, save: sheet.png, cell: 32}}
"
    );
    std::fs::write(place.path().join("box/workflows/swept.yaml"), text).unwrap();
    let sheet = |arguments: &[&str]| {
        let mut all = vec![
            "sweep",
            "box/workflows/swept.yaml",
            "-q",
            "--exists",
            "replace",
        ];
        all.extend(arguments);
        place.done(&all);
        let shown = place.done(&["show", "out/sheet.png", "--json"]);
        let heard = place.done(&["replay", "out/sheet.png", "-q"]);
        assert!(heard.contains("the same bytes"), "{arguments:?}: {heard}");
        let recipe: Json = serde_json::from_str(&shown).unwrap();
        recipe["workflow"].as_str().unwrap().to_owned()
    };
    // As it is written, to the byte: a recipe of before is a recipe of now.
    let workflow = sheet(&[]);
    let grid = "  grid: {rows: [side], columns: [size], save: sheet.png, cell: 32}\n";
    assert!(workflow.ends_with(grid), "{workflow}");
    // A param of the file's axes is fixed; all are; another one varies besides.
    let workflow = sheet(&["--set", "side=8"]);
    assert!(workflow.contains("rows: [], columns: [size]"), "{workflow}");
    let workflow = sheet(&["--over", "size=16,32", "--set", "side=8"]);
    assert!(workflow.contains("{size: 32}"), "{workflow}");
    let workflow = sheet(&["--set", "side=8", "--set", "size=16"]);
    assert!(workflow.contains("    - {}\n"), "{workflow}");
    let photos = "photo=../references/teddy/01.png,../references/teddy/02.png";
    let folder = place.path().join("box/workflows");
    let photos = photos.replace("..", folder.parent().unwrap().to_str().unwrap());
    let workflow = sheet(&["--over", &photos]);
    assert!(workflow.contains("columns: [size, photo]"), "{workflow}");
}

#[test]
fn a_recipe_may_declare_any_size() {
    let place = Place::new();
    std::fs::write(place.path().join("box/workflows/small.yaml"), SMALL).unwrap();
    place.done(&["run", "box/workflows/small.yaml", "-q"]);
    let picture = place.path().join("out/small.png");
    let shown = place.done(&["show", "out/small.png", "--json"]);
    let mut recipe: Json = serde_json::from_str(&shown).unwrap();
    let digest = "0".repeat(64);
    for name in ["a", "b"] {
        let file = serde_json::json!({"kind": "model", "path": format!("hf://o/n/{name}"),
            "model": "hf://o/n", "size": u64::MAX, "blake3": digest});
        recipe["files"].as_array_mut().unwrap().push(file);
    }
    let bytes = std::fs::read(&picture).unwrap();
    let (_, _, old) = unpacked(&picture);
    let mut chunk = b"iTXtretouch\0\0\0\0\0".to_vec();
    chunk.extend(recipe.to_string().as_bytes());
    let mut hostile = bytes[..33].to_vec();
    hostile.extend(u32::try_from(chunk.len() - 4).unwrap().to_be_bytes());
    hostile.extend(&chunk);
    hostile.extend(crc32fast::hash(&chunk).to_be_bytes());
    hostile.extend(&bytes[33 + old.len()..]);
    std::fs::write(&picture, hostile).unwrap();
    let shown = place.done(&["show", "out/small.png"]);
    assert!(shown.contains("hf://o/n  2 files"), "{shown}");
    let output = place.run(&["replay", "out/small.png"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let heard = said(&output);
    assert!(heard.contains("without your consent"), "{heard}");
}

/// The pixels and the chunks before them of a PNG that the program saved.
fn unpacked(path: &Path) -> (png::OutputInfo, Vec<u8>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes))
        .read_info()
        .unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    // The signature and IHDR, then the recipe.
    let length = u32::from_be_bytes(bytes[33..37].try_into().unwrap()) as usize;
    assert_eq!(&bytes[37..41], b"iTXt");
    (info, pixels, bytes[33..33 + length + 12].to_vec())
}

#[test]
fn each_picture_of_a_batch_says_which_it_is_and_its_seed() {
    let place = Place::new();
    let batch = "schema: retouch/v1\nname: batch\nnodes:\n  base: {op: load_model, path: ../models/world}\n  \
         draw: {op: sample, model: $base, prompt: a cat, steps: 2, seed: 7, batch: 3}\n  \
         picture: {op: decode, model: $base, latent: $draw}\noutputs:\n  p: {value: $picture, save: p.png}\n";
    std::fs::write(place.path().join("box/workflows/batch.yaml"), batch).unwrap();
    place.done(&["run", "box/workflows/batch.yaml", "-q"]);
    for (index, seed) in [(0, "7 (7 + 0)"), (2, "9 (7 + 2)")] {
        let picture = format!("out/p_{index}.png");
        let shown = place.done(&["show", &picture]);
        assert!(
            shown.contains(&format!("image {} of a batch of 3\n", index + 1))
                && shown.contains(&format!("    seed: {seed}\n")),
            "{shown}"
        );
        let shown: Json = serde_json::from_str(&place.done(&["show", &picture, "--json"])).unwrap();
        assert_eq!(
            shown["image"],
            serde_json::json!({"number": index + 1, "of": 3})
        );
        let replayed = place.done(&["replay", &picture, "-q"]);
        assert!(replayed.contains("the same bytes"), "{replayed}");
    }
    // One picture is no batch.
    place.done(&[
        "run",
        "box/workflows/vanilla.yaml",
        "-q",
        "--set",
        "steps=2",
        "--set",
        "seed=5",
    ]);
    let one = pictures(&place.path().join("out/vanilla"));
    let shown = place.done(&["show", one[0].to_str().unwrap()]);
    assert!(
        shown.contains("    seed: 5\n") && !shown.contains("of a batch"),
        "{shown}"
    );
}

#[test]
fn replay_names_the_kernels_that_a_picture_was_drawn_with_and_with_them_it_is_the_same() {
    let place = Place::new();
    // A picture that networks made: without its enlargement, so that every digit of theirs is compared.
    let drawn = [
        "run",
        "box/workflows/vanilla.yaml",
        "-q",
        "raw",
        "--set",
        "steps=2",
    ];
    // Of all sets this one is on every processor and the fastest of none, but those without FMA.
    let set = ["--device", "cpu:cpu2-unfused"];
    place.done(&drawn.into_iter().chain(set).collect::<Vec<_>>());
    let picture = "out/vanilla/43-raw.png";
    let shown = place.done(&["show", picture]);
    assert!(
        shown.contains("computed with cpu/f32/cpu2-unfused"),
        "{shown}"
    );
    let replay = ["replay", picture];
    let plain = retouch_nodes::Runtime::cpu().numerics();
    if plain != "cpu/f32/cpu2-unfused" {
        let warned = said(&place.run(&replay));
        let expected = format!(
            "computed with cpu/f32/cpu2-unfused, and here with {plain}: last digits may differ; `--device cpu:cpu2-unfused` computes as it was"
        );
        assert!(warned.contains(&expected), "{warned}");
    }
    let again = place.run(&replay.into_iter().chain(set).collect::<Vec<_>>());
    let (heard, warned) = (String::from_utf8_lossy(&again.stdout), said(&again));
    assert!(heard.contains("the same bytes"), "{heard}");
    assert!(!warned.contains("last digits"), "{warned}");
}

#[test]
fn replay_draws_and_tells_the_same_from_rounding_and_from_another_picture() {
    let place = Place::new();
    std::fs::write(place.path().join("box/workflows/small.yaml"), SMALL).unwrap();
    place.done(&["run", "box/workflows/small.yaml", "-q"]);
    let original = place.path().join("out/small.png");
    // All of it is in the cache, and none of it is taken from there.
    let replay = |picture: &Path, code: i32| -> Vec<Json> {
        let output = place.run(&["replay", picture.to_str().unwrap(), "--json"]);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    let events = replay(&original, 0);
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((count("node_finished"), count("node_reused")), (2, 0));
    let (info, pixels, recipe) = unpacked(&original);
    let changed = |name: &str, values: usize, by: u8| {
        let mut pixels = pixels.clone();
        for value in pixels.iter_mut().take(values) {
            *value = value.checked_add(by).unwrap_or(*value - by);
        }
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, info.width, info.height);
        encoder.set_color(info.color_type);
        encoder.set_depth(info.bit_depth);
        encoder.set_filter(png::Filter::NoFilter);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&pixels).unwrap();
        writer.finish().unwrap();
        bytes.splice(33..33, recipe.iter().copied());
        let path = place.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let of = pixels.len();
    for (name, values, by, result, code) in [
        ("packed.png", 0, 0, "same_pixels", 0),
        ("rounded.png", of / 100, 1, "equal_up_to_rounding", 5),
        ("many.png", of / 100 + 1, 1, "differs", 1),
        ("far.png", 1, 2, "differs", 1),
    ] {
        let path = changed(name, values, by);
        let events = replay(&path, code);
        let told = events
            .iter()
            .find(|event| event["event"] == "replayed")
            .unwrap();
        assert_eq!(told["result"], result, "{told}");
        let differ = match values {
            0 => serde_json::json!([null, null, null]),
            values => serde_json::json!([values, of, by]),
        };
        let told = serde_json::json!([told["values"], told["of"], told["most"]]);
        assert_eq!(told, differ, "{name}");
    }
    let heard = place.run(&["replay", "rounded.png", "-q"]);
    assert_eq!(heard.status.code(), Some(5));
    let heard = String::from_utf8(heard.stdout).unwrap();
    assert!(heard.contains("equal up to rounding"), "{heard}");
    // Another size.
    std::fs::write(place.path().join("box/workflows/other.yaml"), SMALL).unwrap();
    let other = [
        "run",
        "box/workflows/other.yaml",
        "-q",
        "--set",
        "size=25",
        "--out",
        "o",
    ];
    place.done(&[&other[..], &["--no-provenance"]].concat());
    let mut bytes = std::fs::read(place.path().join("o/small.png")).unwrap();
    bytes.splice(33..33, recipe.iter().copied());
    let path = place.path().join("larger.png");
    std::fs::write(&path, bytes).unwrap();
    let events = replay(&path, 1);
    assert_eq!(events[events.len() - 2]["result"], "other_size");
    assert_eq!(events[events.len() - 1]["code"], "R1213");
}

#[test]
fn a_changed_photo_is_refused_by_name_and_one_that_moved_is_found_by_what_it_holds() {
    let place = Place::new();
    place.done(&[
        "run",
        "box/workflows/layout-and-retouch.yaml",
        "-q",
        "--set",
        "steps=3",
    ]);
    let picture = "out/layout-and-retouch/43.png";
    let photo = place.path().join("box/references/teddy/01.png");
    let original = std::fs::read(&photo).unwrap();
    std::fs::copy(place.path().join("box/references/teddy/02.png"), &photo).unwrap();
    let output = place.run(&["replay", picture]);
    assert_eq!(output.status.code(), Some(1));
    let heard = said(&output);
    assert!(
        heard.contains("../references/teddy/01.png: changed ("),
        "{heard}"
    );
    assert!(heard.contains("help:"), "{heard}");
    let told = String::from_utf8(place.run(&["replay", picture, "--json"]).stdout).unwrap();
    assert!(told.contains("\"code\":\"R1212\""), "{told}");
    // Missing altogether.
    std::fs::remove_file(&photo).unwrap();
    let heard = said(&place.run(&["replay", picture]));
    assert!(
        heard.contains("../references/teddy/01.png: missing ("),
        "{heard}"
    );
    // A folder of models that is none is said, not passed over.
    let output = place.run(&["replay", picture, "--models", "nowhere"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("no such folder"),
        "{}",
        said(&output)
    );
    // Under another name in another folder it is the same photo.
    std::fs::create_dir(place.path().join("elsewhere")).unwrap();
    std::fs::write(place.path().join("elsewhere/bear.png"), &original).unwrap();
    let heard = place.done(&["replay", picture, "-q"]);
    assert!(heard.contains("the same bytes"), "{heard}");
    // Models that moved: named, found.
    std::fs::rename(
        place.path().join("box/models"),
        place.path().join("weights"),
    )
    .unwrap();
    let kept = tempfile::tempdir().unwrap();
    let kept_models = kept.path().join("m");
    std::fs::rename(place.path().join("weights"), &kept_models).unwrap();
    let output = place.run(&["replay", picture]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("models/world"), "{}", said(&output));
    let heard = place.done(&[
        "replay",
        picture,
        "-q",
        "--models",
        kept_models.to_str().unwrap(),
    ]);
    assert!(heard.contains("the same bytes"), "{heard}");
}

#[test]
fn a_recipe_names_no_private_path_and_can_be_left_out() {
    let place = Place::new();
    // A photo given by an absolute path, far from the workflow.
    let far = tempfile::Builder::new()
        .prefix("secret-user-")
        .tempdir()
        .unwrap();
    let photo = far.path().join("me.png");
    std::fs::copy(place.path().join("box/references/teddy/01.png"), &photo).unwrap();
    let text = "schema: retouch/v1
params: {photo: {type: path, default: ../references/teddy/02.png}, size: {type: int, default: 32}}
nodes:
  photo: {op: load_image, path: $params.photo}  # a comment with a secret
  small: {op: resize_image, image: $photo, width: $params.size}
  unused: {op: load_image, path: ../references/teddy/03.png}
outputs:
  small: {value: $small, save: \"small.png\"}
x-note: hidden
";
    std::fs::write(place.path().join("box/workflows/small.yaml"), text).unwrap();
    let set = format!("photo={}", photo.display());
    place.done(&["run", "box/workflows/small.yaml", "-q", "--set", &set]);
    let shown = place.done(&["show", "out/small.png", "--json"]);
    for private in [
        "secret",
        "hidden",
        "/tmp",
        "03.png",
        place.path().to_str().unwrap(),
    ] {
        assert!(!shown.contains(private), "{private} in {shown}");
    }
    let recipe: Json = serde_json::from_str(&shown).unwrap();
    assert_eq!(recipe["params"]["photo"], "me.png");
    assert_eq!(recipe["files"][0]["path"], "me.png");
    // It is found by its content once its folder is named.
    place.done(&["replay", "out/small.png"]);
    std::fs::remove_file(place.path().join("box/references/teddy/01.png")).unwrap();
    assert!(said(&place.run(&["replay", "out/small.png"])).contains("me.png: missing"));
    let heard = place.done(&[
        "replay",
        "out/small.png",
        "-q",
        "--models",
        far.path().to_str().unwrap(),
    ]);
    assert!(heard.contains("the same bytes"), "{heard}");
    place.done(&[
        "run",
        "box/workflows/small.yaml",
        "-q",
        "--no-provenance",
        "--out",
        "bare",
    ]);
    let output = place.run(&["show", "bare/small.png"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("carries no recipe"),
        "{}",
        said(&output)
    );
    for (none, code) in [("box/workflows/small.yaml", 1), ("nowhere.png", 2)] {
        let output = place.run(&["replay", none]);
        assert_eq!(output.status.code(), Some(code));
        assert!(said(&output).contains("help:"), "{}", said(&output));
    }
}

#[test]
fn a_drawn_seed_is_a_number_in_the_recipe_and_what_is_extracted_draws_the_same() {
    let place = Place::new();
    let file = "box/workflows/layout-and-retouch.yaml";
    place.done(&[
        "run",
        file,
        "-q",
        "--set",
        "seed=random",
        "--set",
        "steps=3",
        "--no-cache",
    ]);
    let picture = pictures(&place.path().join("out"))
        .into_iter()
        .find(|path| {
            path.file_stem()
                .unwrap()
                .to_string_lossy()
                .chars()
                .all(|one| one.is_ascii_digit())
        })
        .unwrap();
    let picture = picture.to_str().unwrap();
    let heard = place.done(&["replay", picture, "-q", "--no-cache"]);
    assert!(heard.contains("the same bytes"), "{heard}");
    // The workflow and its graph, in a folder beside the models.
    place.done(&["extract", picture, "-o", "box/found"]);
    for name in ["layout-and-retouch.yaml", "retouch.yaml"] {
        let found = format!("box/found/{name}");
        place.done(&["check", &found]);
        place.done(&["fmt", "--check", &found]);
    }
    let said_twice = place.run(&["extract", picture, "-o", "box/found"]);
    assert_eq!(said_twice.status.code(), Some(1), "it writes over nothing");
    place.done(&[
        "run",
        "box/found/layout-and-retouch.yaml",
        "-q",
        "--out",
        "third",
    ]);
    let third = pictures(&place.path().join("third")).remove(0);
    assert_eq!(
        std::fs::read(third).unwrap(),
        std::fs::read(picture).unwrap()
    );
    let printed = place.done(&["extract", picture]);
    let written =
        std::fs::read_to_string(place.path().join("box/found/layout-and-retouch.yaml")).unwrap();
    // Printed it lacks the graph, and says so where it ends up: in its first line, a comment.
    let (first, rest) = printed.split_once('\n').unwrap();
    assert!(
        first.starts_with("# not complete without retouch.yaml") && first.contains("-o DIR"),
        "{first}"
    );
    assert_eq!(rest.trim_end(), written.trim_end());
}

#[test]
fn two_recipes_differ_by_node_and_from_the_step_on_that_an_edit_touches() {
    let place = Place::new();
    let file = "box/workflows/layout-and-retouch.yaml";
    let picture = "out/layout-and-retouch/43.png";
    place.done(&["run", file, "-q", "--set", "steps=10"]);
    place.done(&[
        "run",
        file,
        "-q",
        "--set",
        "steps=10",
        "--set",
        "blend_steps=4",
        "--out",
        "other",
    ]);
    let other = "other/layout-and-retouch/43.png";
    let diff = |arguments: &[&str], code: i32| -> Json {
        let mut all = vec!["diff", "--json"];
        all.extend(arguments);
        let output = place.run(&all);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            said(&output)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(diff(&[picture, picture], 0)["same"], true);
    let found = diff(&[picture, other], 1);
    assert_eq!(
        found["params"],
        serde_json::json!([{"name": "blend_steps", "from": "20%", "to": 4}])
    );
    let nodes: Vec<String> = found["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            format!(
                "{} {}",
                change["node"].as_str().unwrap(),
                change["name"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(nodes, ["layout blend_steps", "retouch/swap start_step"]);
    // The first two steps are the vanilla model's in both; stage 2 begins where the layout is left.
    let steps = &found["steps"];
    assert_eq!(
        steps[0],
        serde_json::json!({"node": "layout", "step": 2, "of": 10})
    );
    assert_eq!(steps[1]["node"], "retouch/draw");
    // A picture and the file that made it.
    assert_eq!(diff(&[picture, file, "--set", "steps=10"], 0)["same"], true);
    // A changed photo: at the node that reads it, and all steps of the inversion.
    let photo = place.path().join("box/references/teddy/01.png");
    std::fs::copy(place.path().join("box/references/teddy/02.png"), &photo).unwrap();
    let found = diff(&[picture, file, "--set", "steps=10"], 1);
    assert_eq!(found["nodes"][0]["node"], "photo");
    assert_eq!(found["nodes"][0]["what"], "file");
    assert_eq!(
        found["steps"][0],
        serde_json::json!({"node": "retouch/inverted", "step": 0, "of": 10})
    );
    let heard = String::from_utf8(place.run(&["diff", picture, other]).stdout).unwrap();
    assert!(heard.contains("layout: from step 2 of 10 on"), "{heard}");
    assert!(heard.contains("pictures: PSNR "), "{heard}");
    assert_eq!(diff(&[picture, picture], 0)["pictures"]["psnr"], Json::Null);
    assert!(
        diff(&[picture, other], 1)["pictures"]["ssim"]
            .as_f64()
            .unwrap()
            < 1.0
    );
}

/// Runs a workflow of its own and says what its pictures carry, as texts.
fn recipes(
    place: &Place,
    folder: &str,
    files: &[(&str, &str)],
    arguments: &[&str],
) -> Vec<(PathBuf, String)> {
    for (name, text) in files {
        let path = place.path().join(folder).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let out = format!("out-{}", folder.replace('/', "-"));
    let mut all = arguments.to_vec();
    all.extend(["-q", "--out", &out]);
    place.done(&all);
    pictures(&place.path().join(&out))
        .into_iter()
        .map(|picture| {
            let shown = place.run(&["show", picture.to_str().unwrap(), "--json"]);
            (picture, String::from_utf8(shown.stdout).unwrap())
        })
        .collect()
}

#[test]
fn paths_by_any_way_into_a_workflow_are_shared_only_where_they_may_be_and_replay_finds_them() {
    let place = Place::new();
    let far = tempfile::Builder::new()
        .prefix("secret-user-")
        .tempdir()
        .unwrap();
    let photos: Vec<PathBuf> = ["a/me.png", "b/me.png", "c/you.png"]
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let path = far.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let from = format!("box/references/teddy/0{}.png", index + 1);
            std::fs::copy(place.path().join(from), &path).unwrap();
            path
        })
        .collect();
    let [a, b, c] = <[PathBuf; 3]>::try_from(photos)
        .unwrap()
        .map(|path| path.display().to_string());
    let graph = format!(
        "schema: retouch/v1
inputs: {{photo: {{type: path, default: {b}}}, size: {{type: int, default: 24}}}}
nodes:
  photo: {{op: load_image, path: $inputs.photo}}
  other: {{op: load_image, path: {c}}}
  small: {{op: resize_image, image: $photo, width: $inputs.size}}
  sheet: {{op: grid, images: [$small, $other], cell: 32}}
outputs: {{sheet: {{value: $sheet}}}}
"
    );
    // By `with`, by an input's default, in a graph in a folder below; two files of one last name.
    let workflow = format!(
        "schema: retouch/v1
nodes:
  given: {{use: sub/g.yaml, with: {{photo: {a}}}}}
  usual: {{use: sub/g.yaml}}
  both: {{op: grid, images: [$given.sheet, $usual.sheet], cell: 64}}
outputs: {{both: {{value: $both, save: both.png}}}}
"
    );
    let models = far.path().to_str().unwrap();
    let made = recipes(
        &place,
        "box/ways",
        &[("sub/g.yaml", &graph), ("wf.yaml", &workflow)],
        &["run", "box/ways/wf.yaml"],
    );
    // By a path that climbs out of everything that is shared, and by one that comes back.
    let ups = "../".repeat(place.path().components().count() + 3);
    let climbing = format!(
        "schema: retouch/v1
params: {{photo: {{type: path, default: {ups}{}}}}}
nodes:
  photo: {{op: load_image, path: $params.photo}}
  near: {{op: load_image, path: {ups}{}/box/references/teddy/01.png}}
  sheet: {{op: grid, images: [$photo, $near], cell: 32}}
outputs: {{sheet: {{value: $sheet, save: climb.png}}}}
",
        a.trim_start_matches('/'),
        place.path().display().to_string().trim_start_matches('/'),
    );
    let climbed = recipes(
        &place,
        "box/climb",
        &[("wf.yaml", &climbing)],
        &["run", "box/climb/wf.yaml"],
    );
    // A sweep over paths, relative to the sweep's own file, with a sheet that has labels.
    let swept = "schema: retouch/v1
params: {photo: {type: path, default: ../references/teddy/01.png}}
nodes:
  photo: {op: load_image, path: $params.photo}
  small: {op: resize_image, image: $photo, width: 24}
outputs: {small: {value: $small, save: \"small.png\"}}
";
    let sweep = format!(
        "schema: retouch/v1
sweep:
  workflow: ../swept.yaml
  matrix: {{photo: [../../references/teddy/02.png, {c}]}}
  grid: {{save: sheet.png, cell: 32}}
"
    );
    let sheet = recipes(
        &place,
        "box/sweeps",
        &[("swept.yaml", swept), ("own/sweep.yaml", &sweep)],
        &["sweep", "box/sweeps/own/sweep.yaml"],
    );
    assert_eq!((made.len(), climbed.len(), sheet.len()), (1, 1, 3));
    for (picture, recipe) in made.iter().chain(&climbed).chain(&sheet) {
        assert!(
            recipe.contains("retouch-provenance/1"),
            "{} carries a recipe",
            picture.display()
        );
        for private in [
            "secret",
            "/tmp",
            place.path().file_name().unwrap().to_str().unwrap(),
        ] {
            assert!(
                !recipe.contains(private),
                "{private} in {}: {recipe}",
                picture.display()
            );
        }
        let heard = place.done(&[
            "replay",
            picture.to_str().unwrap(),
            "-q",
            "--models",
            models,
        ]);
        assert!(
            heard.contains("the same bytes"),
            "{}: {heard}",
            picture.display()
        );
    }
}

#[test]
fn what_cannot_be_said_in_a_recipe_is_saved_without_one_and_told() {
    let place = Place::new();
    let graph = "schema: retouch/v1
inputs: {model: {type: model}}
nodes:
  draw: {op: sample, model: $inputs.model, prompt: a, steps: 1, seed: random}
  picture: {op: decode, model: $inputs.model, latent: $draw}
outputs: {picture: {value: $picture}}
";
    let workflow = "schema: retouch/v1
nodes:
  base: {op: load_model, path: ../models/world}
  drawn: {use: g.yaml, with: {model: $base}}
outputs: {picture: {value: $drawn.picture, save: a.png}}
";
    std::fs::create_dir_all(place.path().join("box/drawn")).unwrap();
    std::fs::write(place.path().join("box/drawn/g.yaml"), graph).unwrap();
    std::fs::write(place.path().join("box/drawn/wf.yaml"), workflow).unwrap();
    let output = place.run(&["run", "box/drawn/wf.yaml"]);
    assert!(output.status.success());
    let heard = said(&output);
    assert!(
        heard.contains("the recipe of the output cannot be written"),
        "{heard}"
    );
    let (engine, path) = (Bench::new().engine, place.path().join("box/drawn/wf.yaml"));
    let checked = engine.load(&path, &Settings::default()).unwrap();
    let origin = Origin::of(&engine, &path, "a test").unwrap();
    let problems = origin.output(&engine, &checked, "picture").unwrap_err();
    assert_eq!(problems.iter().next().unwrap().code(), Code::NoProvenance);
    assert!(said(&place.run(&["show", "out/a.png"])).contains("carries no recipe"));
}
