//! From a picture back to its recipe: every PNG that ships can be drawn again to the byte from what it carries, what
//! changed since is refused by name, and two recipes are compared by node and by step.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;

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
fn every_picture_of_the_shipped_workflows_is_drawn_again_to_the_byte() {
    let place = Place::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(place.path().join("box/workflows"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        if text.contains("\ninputs:") {
            continue;
        }
        let how = if text.contains("\nsweep:") {
            "sweep"
        } else {
            "run"
        };
        let mut arguments = vec![how, file.to_str().unwrap(), "-q", "--set", "steps=3"];
        if how == "sweep" {
            arguments.extend(["--over", "blend_steps=1,2", "--over", "seed=42,43"]);
        }
        place.done(&arguments);
    }
    let pictures = pictures(&place.path().join("out"));
    assert!(pictures.len() >= 20, "{pictures:?}");
    for picture in &pictures {
        // From the cache, and saved elsewhere: the recipe of the copy is the recipe of the original.
        let heard = place.done(&["replay", picture.to_str().unwrap(), "-q", "--out", "again"]);
        assert!(
            heard.contains("drawn again, the same bytes"),
            "{}: {heard}",
            picture.display()
        );
    }
    // Drawn anew, with nothing kept: one of each workflow will do.
    for name in [
        "layout-and-retouch/43.png",
        "compare/42.png",
        "sweep/sheet.png",
    ] {
        let heard = place.done(&["replay", &format!("out/{name}"), "-q", "--no-cache"]);
        assert!(heard.contains("the same bytes"), "{name}: {heard}");
    }
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
    // Missing altogether.
    std::fs::remove_file(&photo).unwrap();
    let heard = said(&place.run(&["replay", picture]));
    assert!(
        heard.contains("../references/teddy/01.png: missing ("),
        "{heard}"
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
    for none in ["box/workflows/small.yaml", "nowhere.png"] {
        let output = place.run(&["replay", none]);
        assert_eq!(output.status.code(), Some(1));
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
    assert_eq!(printed.trim_end(), written.trim_end());
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
}
