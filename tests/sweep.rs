//! `retouch sweep` as a user meets it: the calls that the tree of step prefixes foretells, the pictures of single runs
//! bit for bit, a sweep that is killed and resumed, one that goes on after a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::support::root;

/// Runs the program with a cache of its own.
fn retouch(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retouch"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("RETOUCH_CACHE", folder.join("cache"))
        .env("RETOUCH_CONFIG", "");
    command
}

fn events(output: &Output) -> Vec<Json> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn calls(events: &[Json]) -> u64 {
    let finished = events
        .iter()
        .find(|event| event["event"] == "run_finished")
        .unwrap();
    finished["counters"]["unet_calls"].as_u64().unwrap_or(0)
}

fn workflow(name: &str) -> String {
    root().join("workflows").join(name).display().to_string()
}

const STEPS: usize = 8;
const BLENDS: [usize; 4] = [1, 2, 4, 6];
const SEEDS: [u64; 4] = [42, 43, 44, 45];

/// The U-Net calls of stage 1 (two halves a step) that a tree of step prefixes has: from one seed all cells go along the
/// vanilla model's branch, and each leaves it at its own step for the personalised model's.
fn stage_one_calls() -> usize {
    let mut edges = BTreeSet::new();
    for seed in SEEDS {
        for blend in BLENDS {
            for step in 0..STEPS {
                // An edge is the step and all that was done before it: so many steps by the vanilla model, then the other.
                edges.insert((seed, step, blend.min(step + 1)));
            }
        }
    }
    2 * edges.len()
}

#[test]
fn four_blend_steps_by_four_seeds_cost_what_their_tree_of_prefixes_has_and_equal_single_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = workflow("layout-and-retouch.yaml");
    let over = [
        "--over",
        "blend_steps=1,2,4,6",
        "--over",
        "seed=42..46",
        "--set",
        "until_step=100%",
        "--set",
        &format!("steps={STEPS}"),
    ];
    let sweep = |more: &[&str]| {
        let mut arguments = vec!["sweep", file.as_str(), "--json", "--out", "swept"];
        arguments.extend(over);
        arguments.extend(more);
        retouch(folder.path(), &arguments)
    };
    // Stage 1 alone: its calls can be counted on paper.
    let output = sweep(&["layout", "--dry-run"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(events(&output)[0]["unet_calls"], stage_one_calls());
    let output = sweep(&["layout"]);
    assert!(output.status.success());
    assert_eq!(calls(&events(&output)), stage_one_calls() as u64);
    // All outputs: what the plan foretells. The layouts and the one inversion of the photo are shared.
    let foretold = events(&sweep(&["--dry-run"]))[0]["unet_calls"]
        .as_u64()
        .unwrap();
    let output = sweep(&[]);
    assert!(output.status.success());
    let heard = events(&output);
    assert_eq!(calls(&heard), foretold);
    let loads = heard
        .iter()
        .filter(|event| event["event"] == "node_started" && event["op"] == "load_model");
    assert!(
        loads.count() <= 2,
        "each model is loaded once for all cells"
    );
    let inversions = heard
        .iter()
        .filter(|event| event["event"] == "node_started" && event["op"] == "invert");
    assert_eq!(inversions.count(), 1);
    let cells = heard
        .iter()
        .filter(|event| event["event"] == "cell_finished")
        .count();
    assert_eq!(cells, 16);
    // Runs of cells, each on its own, with nothing kept: each value once.
    let mut pictures = 0;
    let saved: Vec<&Json> = heard
        .iter()
        .filter(|event| event["event"] == "output_saved")
        .collect();
    for (blend, seed) in BLENDS.into_iter().zip(SEEDS) {
        let (blend, seed) = (format!("blend_steps={blend}"), format!("seed={seed}"));
        let run = retouch(
            folder.path(),
            &[
                "run",
                &file,
                "--json",
                "--no-cache",
                "--out",
                &format!("single/{blend}-{seed}"),
                "--set",
                &blend,
                "--set",
                &seed,
                "--set",
                "until_step=100%",
                "--set",
                &format!("steps={STEPS}"),
            ],
        );
        assert!(run.status.success());
        for event in events(&run)
            .iter()
            .filter(|event| event["event"] == "output_saved")
        {
            let name = format!("{} [{blend}, {seed}]", event["output"].as_str().unwrap());
            let swept = saved.iter().find(|saved| saved["output"] == name.as_str());
            let path = |event: &Json| folder.path().join(event["path"].as_str().unwrap());
            let swept = path(swept.unwrap_or_else(|| panic!("{name} was not saved")));
            assert_eq!(
                std::fs::read(swept).unwrap(),
                std::fs::read(path(event)).unwrap(),
                "{name}"
            );
            pictures += 1;
        }
    }
    assert_eq!(pictures, 4 * 5);
}

#[test]
fn two_devices_draw_the_same_files_by_the_same_calls() {
    let folder = tempfile::tempdir().unwrap();
    let file = workflow("layout-and-retouch.yaml");
    let draw = |device: &str, out: &str| {
        let output = retouch(
            folder.path(),
            &[
                "sweep",
                &file,
                "--json",
                "--over",
                "seed=42,43",
                "--over",
                "blend_steps=2,3",
                "--set",
                "steps=6",
                "--set",
                "until_step=100%",
                "--devices",
                device,
                "--threads",
                "1",
                "--no-cache",
                "--no-provenance",
                "--out",
                out,
            ],
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let made = pictures(&folder.path().join(out).join("layout-and-retouch"));
        (calls(&events(&output)), made)
    };
    let (one, made) = draw("cpu", "one");
    assert!(made.len() > 4);
    assert_eq!((one, made), draw("cpu,cpu", "two"));
}

/// Kills the process once so many outputs were saved.
fn kill_after(folder: &Path, arguments: &[&str], outputs: usize) {
    let mut child = command(folder, arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let reader = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut saved = 0;
    let begin = Instant::now();
    for line in std::io::BufRead::lines(reader) {
        saved += usize::from(line.unwrap().contains("\"output_saved\""));
        if saved >= outputs || begin.elapsed() > Duration::from_secs(120) {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(saved, outputs);
}

fn pictures(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            (
                path.file_name().unwrap().into(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_sweep_that_is_killed_and_resumed_makes_only_the_rest_even_without_a_cache() {
    for cache in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let file = workflow("personalized.yaml");
        let arguments = |more: &[&'static str]| {
            let mut all = vec![
                "sweep".to_owned(),
                file.clone(),
                "--json".into(),
                "--set".into(),
                "steps=6".into(),
                "--over".into(),
                "seed=random,1..5".into(),
                "--over".into(),
                "guidance=3,4".into(),
                // With several, a picture of the fifth cell may be saved before the last of the fourth.
                "--threads".into(),
                "1".into(),
            ];
            all.extend(more.iter().map(|one| (*one).to_owned()));
            if !cache {
                all.push("--no-cache".into());
            }
            all
        };
        let run = |more: &[&'static str]| {
            let all = arguments(more);
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let output = retouch(folder.path(), &all);
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            events(&output)
        };
        let all = arguments(&[]);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let outputs_a_cell = 2;
        kill_after(folder.path(), &all, 4 * outputs_a_cell);
        // What the killed run may have done beyond the four: at most what is in the cache.
        let foretold = run(&["--resume", "--dry-run"]);
        let rest = foretold[0]["unet_calls"].as_u64().unwrap();
        let heard = run(&["--resume"]);
        assert_eq!(calls(&heard), rest, "cache: {cache}");
        // Ten cells, six steps, two halves; the halves of one seed's first step are shared by its two guidances.
        assert!(rest <= 6 * 6 * 2, "cache: {cache}, {rest} calls");
        let saved = heard
            .iter()
            .filter(|event| event["event"] == "output_saved")
            .count();
        assert!(saved <= 6 * outputs_a_cell, "{saved}");
        // The seed that was drawn before the kill is the same after it: all cells are there, and no more.
        let out = folder.path().join("out/personalized");
        let first = pictures(&out);
        assert_eq!(first.len(), 10 * outputs_a_cell);
        // Resumed once more there is nothing to do.
        let again = run(&["--resume"]);
        assert_eq!(calls(&again), 0);
        assert!(!again.iter().any(|event| event["event"] == "output_saved"));
        // A picture that was changed is made again, and kept beside.
        let changed = out.join(first.keys().next().unwrap());
        std::fs::write(&changed, b"not a picture").unwrap();
        let mended = run(&["--resume", "--exists", "replace"]);
        let saved = mended
            .iter()
            .filter(|event| event["event"] == "output_saved")
            .count();
        assert_eq!(saved, 1);
        assert_eq!(pictures(&out), first);
    }
}

#[test]
fn with_keep_going_the_table_and_the_sheet_show_what_failed() {
    let folder = tempfile::tempdir().unwrap();
    let model = root().join("models/world").display().to_string();
    let text = format!(
        "schema: retouch/v1
params:
  place: {{type: string, default: here}}
  seed: {{type: seed, default: 1}}
nodes:
  base: {{op: load_model, path: {model}}}
  draw: {{op: sample, model: $base, prompt: \"a cat {{place}}\", steps: 2, seed: $params.seed}}
  picture: {{op: decode, model: $base, latent: $draw}}
outputs:
  picture: {{value: $picture, save: \"{{seed}}.png\"}}
sweep:
  matrix: {{seed: [1, 2], place: [\"on a beach\", in space]}}
  exclude: [{{seed: 2, place: in space}}]
  grid: {{rows: seed, save: sheet.png, cell: 64}}
"
    );
    std::fs::write(folder.path().join("wf.yaml"), text).unwrap();
    // A folder in the place of an output: saving it fails.
    std::fs::create_dir_all(folder.path().join("out/1-place=on a beach.png")).unwrap();
    let run = |more: &[&str]| {
        let mut all = vec![
            "sweep", "wf.yaml", "--exists", "replace", "--table", "t.json",
        ];
        all.extend(more);
        retouch(folder.path(), &all)
    };
    let output = run(&["--keep-going"]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("1 of 3 cells failed"), "{said}");
    let table: Json =
        serde_json::from_slice(&std::fs::read(folder.path().join("t.json")).unwrap()).unwrap();
    let statuses: Vec<&str> = table
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["failed", "done", "done"]);
    assert!(
        table[0]["error"]
            .as_str()
            .unwrap()
            .contains("on a beach.png")
    );
    assert_eq!(table[1]["params"]["place"], "in space");
    let sheet = image::open(folder.path().join("out/sheet.png")).unwrap();
    assert!(sheet.width() > 2 * 64 && sheet.height() > 2 * 64);
    // The hindrance gone, only the rest is made.
    std::fs::remove_dir(folder.path().join("out/1-place=on a beach.png")).unwrap();
    let output = run(&["--keep-going", "--resume", "--json"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let heard = events(&output);
    assert_eq!(calls(&heard), 0);
    let saved: Vec<&str> = heard
        .iter()
        .filter(|event| event["event"] == "output_saved")
        .map(|event| event["output"].as_str().unwrap())
        .collect();
    // The picture was drawn, so the sheet has it: only the file is left to write.
    assert_eq!(saved, ["picture [seed=1, place=on a beach]"]);
}

/// A sweep over how small a photo was made before it was enlarged again, with a table of what that cost.
fn shrunk(grid: &str) -> String {
    format!(
        "schema: retouch/v1
params:
  side: {{type: int, default: 8}}
nodes:
  photo: {{op: load_image, path: photo.png}}
  whole: {{op: resize_image, image: $photo, width: 64, height: 64}}
  small: {{op: resize_image, image: $whole, width: $params.side, height: $params.side}}
  back: {{op: resize_image, image: $small, width: 64, height: 64}}
  error: {{op: picture_error, image: $back, to: $whole}}
  other: {{op: load_image, path: other.png}}
outputs:
  other: {{value: $other}}
  picture: {{value: $back, save: \"{{side}}.png\"}}
  cost: {{value: $error, save: \"{{side}}.csv\"}}
sweep:
  matrix: {{side: [4, 32, 12, 20]}}
  grid: {{{grid}, output: picture, save: sheet.png, cell: 64}}
"
    )
}

#[test]
fn a_sheet_prints_scores_and_is_ordered_by_them_and_drawn_again_from_its_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let write = |grid: &str| std::fs::write(folder.path().join("wf.yaml"), shrunk(grid)).unwrap();
    let photo = root().join("references/teddy/01.png");
    std::fs::copy(&photo, folder.path().join("photo.png")).unwrap();
    // What no sheet shows: its file is no part of a recipe.
    std::fs::copy(&photo, folder.path().join("other.png")).unwrap();
    write("scores: [psnr, ssim], order: psnr");
    let output = retouch(folder.path(), &["sweep", "wf.yaml"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let out = folder.path().join("out");
    let sheet = image::open(out.join("sheet.png")).unwrap().to_rgb8();
    // Where the saved pictures lie on a sheet, pixel by pixel: their order.
    let place = |sheet: &image::RgbImage, side: u32| {
        let picture = image::open(out.join(format!("{side}.png")))
            .unwrap()
            .to_rgb8();
        let places =
            (0..=sheet.height() - 64).flat_map(|y| (0..=sheet.width() - 64).map(move |x| (y, x)));
        let mut found = places.filter(|(y, x)| {
            (0..64).all(|i| picture.get_pixel(i, i) == sheet.get_pixel(x + i, y + i))
                && picture
                    .enumerate_pixels()
                    .all(|(i, j, pixel)| pixel == sheet.get_pixel(x + i, y + j))
        });
        found
            .next()
            .unwrap_or_else(|| panic!("{side} is not on the sheet"))
    };
    let order = |sheet: &image::RgbImage| {
        let mut sides = [4, 12, 20, 32];
        sides.sort_by_key(|side| place(sheet, *side));
        sides
    };
    assert_eq!(
        order(&sheet),
        [32, 20, 12, 4],
        "what lost least comes first"
    );
    let replayed = retouch(folder.path(), &["replay", "out/sheet.png"]);
    assert!(
        replayed.status.success(),
        "{}",
        String::from_utf8_lossy(&replayed.stderr)
    );

    // The other way round, and without an order, in the order of the axis.
    for (grid, due) in [
        ("scores: [ssim], order: -ssim, table: cost", [4, 12, 20, 32]),
        ("scores: [ssim]", [4, 32, 12, 20]),
    ] {
        write(grid);
        let output = retouch(folder.path(), &["sweep", "wf.yaml", "--exists", "replace"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let sheet = image::open(out.join("sheet.png")).unwrap().to_rgb8();
        assert_eq!(order(&sheet), due, "{grid}");
        let replayed = retouch(folder.path(), &["replay", "out/sheet.png"]);
        assert!(
            replayed.status.success(),
            "{}",
            String::from_utf8_lossy(&replayed.stderr)
        );
    }
    write("order: psnr");
    let plan = retouch(folder.path(), &["sweep", "wf.yaml", "--dry-run"]);
    let text = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(text.contains("sheet: 4 cells by psnr"), "{text}");
    for (grid, said) in [
        (
            "scores: [psnr], table: picture",
            "the output `picture` is not a table",
        ),
        (
            "scores: [psnr], table: nothing",
            "the workflow has no output `nothing`",
        ),
        ("table: cost", "shows nothing of it"),
        (
            "order: psnr, rows: side",
            "`rows` and `columns` say nothing",
        ),
    ] {
        write(grid);
        let output = retouch(folder.path(), &["check", "wf.yaml"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{grid}: {text}");
        assert!(text.contains(said), "{grid}: {text}");
    }
    let two = shrunk("scores: [psnr]").replace("sweep:", "  again: {value: $error}\nsweep:");
    std::fs::write(folder.path().join("wf.yaml"), two).unwrap();
    let output = retouch(folder.path(), &["check", "wf.yaml"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("several tables") && text.contains("table: cost"),
        "{text}"
    );
}

/// A check that reads numbers of a weight file does so in a recipe too, where files are known by other names.
#[test]
fn a_sheet_with_scores_of_networks_is_drawn_again_from_its_recipe() {
    let folder = tempfile::tempdir().unwrap();
    for (file, name) in [
        ("references/teddy/01.png", "photo.png"),
        ("models/lite0.safetensors", "lite0.safetensors"),
        ("models/world-scorer.safetensors", "scorer.safetensors"),
    ] {
        std::fs::copy(root().join(file), folder.path().join(name)).unwrap();
    }
    let text = "schema: retouch/v1
params:
  side: {type: int, default: 8}
nodes:
  photo: {op: load_image, path: photo.png}
  small: {op: resize_image, image: $photo, width: $params.side, height: $params.side}
  features: {op: image_features, path: lite0.safetensors, image: $small}
  score: {op: prompt_score, scorer: scorer.safetensors, prompt: \"a teddy bear on a beach\", features: $features}
outputs:
  picture: {value: $small}
  score: {value: $score}
sweep:
  matrix: {side: [16, 64]}
  grid: {scores: [thing], save: sheet.png, cell: 64}
";
    std::fs::write(folder.path().join("wf.yaml"), text).unwrap();
    let output = retouch(folder.path(), &["sweep", "wf.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && !said.contains("without a recipe"),
        "{said}"
    );
    let replayed = retouch(folder.path(), &["replay", "out/sheet.png"]);
    assert!(
        replayed.status.success(),
        "{}",
        String::from_utf8_lossy(&replayed.stderr)
    );
}

#[test]
fn what_a_sweep_cannot_do_is_said_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = workflow("vanilla.yaml");
    for (arguments, code, said) in [
        (vec!["sweep", &file], 3, "has no sweep"),
        (
            vec!["sweep", &file, "--over", "sead=1..3"],
            2,
            "did you mean `seed`",
        ),
        (
            vec!["sweep", &file, "--over", "seed=1..3", "pictur"],
            2,
            "no output `pictur`",
        ),
        (
            vec!["sweep", &file, "--over", "seed=1..3", "--table", "x.txt"],
            2,
            ".csv",
        ),
        (
            vec!["sweep", &file, "--over", "seed=1..3", "steps=3"],
            2,
            "--set steps=3",
        ),
        (
            vec!["sweep", &file, "--over", "seed=1..3", "--sheet", "x.txt"],
            2,
            ".png",
        ),
        (
            vec!["sweep", &file, "--over", "seed=1..3", "--sheet", "../x.png"],
            2,
            "`..`",
        ),
        (
            vec!["sweep", "none.yaml", "--over", "seed=1..3"],
            2,
            "cannot be read",
        ),
        (vec!["run", &workflow("sweep.yaml")], 3, "retouch sweep"),
    ] {
        let output = retouch(folder.path(), &arguments);
        let heard = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {heard}");
        assert!(heard.contains(said), "{arguments:?}: {heard}");
        assert!(!folder.path().join("out").exists());
    }
    let check = retouch(folder.path(), &["check", &workflow("sweep.yaml")]);
    assert!(check.status.success());
    assert!(String::from_utf8_lossy(&check.stdout).contains("a sweep, 16 cells"));
}

#[test]
fn cells_with_one_picture_have_one_file_and_each_is_told_and_fails_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = workflow("layout-and-retouch.yaml");
    // Of three steps 20% and 40% are one each.
    let all = |more: &[&str]| {
        let mut all = vec![
            "sweep",
            &file,
            "layout",
            "--json",
            "--table",
            "t.json",
            "--keep-going",
        ];
        all.extend(["--set", "steps=3", "--over", "blend_steps=20%,40%,1"]);
        all.extend(more);
        retouch(folder.path(), &all)
    };
    let output = all(&["--exists", "fail"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let heard = events(&output);
    let count =
        |heard: &[Json], name: &str| heard.iter().filter(|event| event["event"] == name).count();
    assert_eq!(count(&heard, "output_saved"), 1);
    assert_eq!(count(&heard, "cell_finished"), 3);
    let table = || -> Json {
        serde_json::from_slice(&std::fs::read(folder.path().join("t.json")).unwrap()).unwrap()
    };
    let rows = table();
    for row in rows.as_array().unwrap() {
        assert_eq!(row["status"], "done");
        assert_eq!(row["outputs"]["layout"], rows[0]["outputs"]["layout"]);
    }
    // A file that cannot be written is one that no cell has.
    std::fs::create_dir_all(folder.path().join("no")).unwrap();
    std::fs::write(folder.path().join("no/layout-and-retouch"), "a file").unwrap();
    let output = all(&["--out", "no"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(count(&events(&output), "cell_finished"), 0);
    for row in table().as_array().unwrap() {
        assert_eq!(row["status"], "failed");
        assert!(
            row["error"]
                .as_str()
                .unwrap()
                .contains("is a file, but must be a folder")
        );
    }
}

#[test]
fn over_alone_says_its_cells_draws_a_sheet_where_it_is_asked_for_and_is_remembered_by_resume() {
    let folder = tempfile::tempdir().unwrap();
    let file = workflow("vanilla.yaml");
    let run = |arguments: &[&str]| {
        let output = retouch(folder.path(), arguments);
        let heard = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {heard}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), heard)
    };
    let help = run(&["sweep", "--help"]).0;
    assert!(
        help.contains("1..=5") && help.contains("four cells"),
        "{help}"
    );
    // A range leaves its end out: nine cells, and they are listed.
    let dry = run(&["sweep", &file, "--over", "seed=1..10", "--dry-run"]).0;
    assert!(dry.contains("9 cells"), "{dry}");
    // Params from a file beside, with the sheet: all of it is remembered.
    std::fs::write(folder.path().join("few.yaml"), "steps: 2\n").unwrap();
    let first = [
        "sweep",
        &file,
        "raw",
        "sheet",
        "--over",
        "seed=1..10",
        "--params",
        "few.yaml",
        "--set",
        "guidance=3",
        "--sheet",
        "all/sheet.png",
        "--table",
        "all.csv",
    ];
    let (said, heard) = run(&first);
    assert!(heard.contains("9 cells (seed=1, 2, 3, ... 9)"), "{heard}");
    assert!(said.contains("all/sheet.png"), "{said}");
    let out = folder.path().join("out");
    let sheet = std::fs::read(out.join("all/sheet.png")).unwrap();
    let made = pictures(&out.join("vanilla"));
    assert_eq!(made.len(), 9, "{:?}", made.keys());
    // Resumed from elsewhere with nothing said again: what is gone is made, and the same.
    let gone = out.join("vanilla/4-raw.png");
    std::fs::remove_file(&gone).unwrap();
    std::fs::remove_file(out.join("all/sheet.png")).unwrap();
    std::fs::remove_file(folder.path().join("all.csv")).unwrap();
    std::fs::create_dir(folder.path().join("elsewhere")).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    let output = command(
        &elsewhere,
        &["sweep", &file, "--resume", "--json", "--out", "../out"],
    )
    .env("RETOUCH_CACHE", folder.path().join("cache"))
    .output()
    .unwrap();
    let heard = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{heard}");
    let saved: Vec<PathBuf> = (events(&output).iter())
        .filter(|event| event["event"] == "output_saved")
        .map(|event| event["path"].as_str().unwrap().into())
        .collect();
    assert_eq!(saved.len(), 2, "{saved:?}");
    assert_eq!(pictures(&out.join("vanilla")), made);
    assert_eq!(std::fs::read(out.join("all/sheet.png")).unwrap(), sheet);
    assert!(folder.path().join("all.csv").is_file());
    // Cells of other numbers are not mixed in.
    let other = retouch(
        folder.path(),
        &["sweep", &file, "--resume", "--dtype", "bf16"],
    );
    let heard = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(2), "{heard}");
    assert!(heard.contains("--device cpu --dtype f32"), "{heard}");
    // What is said again counts.
    let other = run(&[
        "sweep",
        &file,
        "--resume",
        "--over",
        "seed=4..6",
        "--dry-run",
    ])
    .0;
    assert!(other.contains("2 cells"), "{other}");
}

#[test]
fn a_sweep_in_a_file_of_its_own_is_planned_locked_and_bundled() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], code: i32| {
        let output = retouch(folder.path(), arguments);
        let heard = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {heard}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), heard)
    };
    run(&["new", "box"], 0);
    let sweep = "box/workflows/sweep.yaml";
    let planned = run(&["plan", sweep], 0).0;
    assert_eq!(planned, run(&["sweep", sweep, "--dry-run"], 0).0);
    assert!(planned.contains("16 cells"), "{planned}");
    let json: Json = serde_json::from_str(&run(&["plan", sweep, "--json"], 0).0).unwrap();
    assert_eq!(json["cells"].as_array().unwrap().len(), 16);
    // The lock has the sweep, the workflow that it names, the graph that this uses, and what all of them read.
    run(&["lock", sweep], 0);
    let lock = std::fs::read_to_string(folder.path().join("box/workflows/sweep.lock")).unwrap();
    for name in [
        "sweep.yaml",
        "layout-and-retouch.yaml",
        "retouch.yaml",
        "../references/teddy/",
    ] {
        assert!(
            lock.contains(&format!("path: \"{name}")),
            "{name} in {lock}"
        );
    }
    run(&["lock", "--check", sweep], 0);
    run(&["plan", sweep, "--locked"], 0);
    run(&["sweep", sweep, "--locked", "--dry-run"], 0);
    run(&["check", sweep, "--locked"], 0);
    let target = folder.path().join("box/workflows/layout-and-retouch.yaml");
    let text = std::fs::read_to_string(&target).unwrap();
    std::fs::write(&target, format!("{text}# another\n")).unwrap();
    run(&["lock", "--check", sweep], 1);
    let told = run(&["plan", sweep, "--locked"], 3).1;
    assert!(told.contains("R0903"), "{told}");
    for arguments in [
        &["sweep", sweep, "--locked"][..],
        &["check", sweep, "--locked"],
    ] {
        let told = run(arguments, 3).1;
        assert!(told.contains("R0903"), "{told}");
    }
    std::fs::write(&target, text).unwrap();
    // The bundle draws what the files draw.
    let few = [
        "--set",
        "steps=2",
        "--set",
        "blend_steps=50%",
        "--set",
        "until_step=100%",
        "--quiet",
    ];
    let mine = [&["sweep", sweep, "sheet", "--out", "mine"][..], &few].concat();
    run(&mine, 0);
    run(&["bundle", sweep, "-o", "s.tar.zst", "--with-models"], 0);
    let theirs = [
        &["sweep", "s.tar.zst", "sheet", "--out", "theirs"][..],
        &few,
    ]
    .concat();
    run(&theirs, 0);
    let sheet = |out: &str| std::fs::read(folder.path().join(out).join("sweep/sheet.png")).unwrap();
    let pixels = |bytes: &[u8]| {
        image::load_from_memory(bytes)
            .unwrap()
            .to_rgba8()
            .into_raw()
    };
    assert_eq!(pixels(&sheet("mine")), pixels(&sheet("theirs")));
    let opened = run(&["unbundle", "s.tar.zst", "opened"], 0).1;
    assert!(opened.contains("retouch sweep opened/"), "{opened}");
    assert!(!opened.contains("--models"), "{opened}");
    // What is said to do can be done: nothing of where a bundle is unpacked to, and what was left out is asked for.
    let told = run(&["run", sweep], 3).1;
    assert!(told.contains("`retouch sweep box/"), "{told}");
    let told = run(&["run", "s.tar.zst", "--models", "box"], 3).1;
    let help = told.split("help:").nth(1).unwrap();
    assert!(
        help.contains("`retouch sweep s.tar.zst --models box`"),
        "{told}"
    );
    run(&["bundle", sweep, "-o", "small.tar.zst"], 0);
    let opened = run(&["unbundle", "small.tar.zst", "small"], 0).1;
    assert!(opened.contains("--models DIR"), "{opened}");
}

#[test]
fn a_warning_that_many_cells_give_is_said_once_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let file = workflow("vanilla.yaml");
    let sweep = ["sweep", &file, "--over", "seed=1..5", "--set", "steps=1"];
    let output = retouch(folder.path(), &[&sweep[..], &["-q"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let warnings: Vec<&str> = said.lines().collect();
    let [first, rest] = warnings[..] else {
        panic!("{said}");
    };
    let message = "the first of 1 steps is at timestep 1 of 1000";
    assert!(first.starts_with("warning: draw [seed="), "{said}");
    assert!(first.contains(message), "{said}");
    let counted = format!("warning: draw, in 3 more cells too: {message}");
    assert!(rest.starts_with(&counted), "{said}");
    // For programs each is an event.
    let json = ["--json", "--out", "again", "--no-cache"];
    let events = events(&retouch(folder.path(), &[&sweep[..], &json].concat()));
    let warned = |event: &&Json| event["event"] == "node_warning";
    assert_eq!(events.iter().filter(warned).count(), 4);
}
