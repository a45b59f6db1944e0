//! What happens when a run is killed, or shares its cache with others: nothing half-written, nothing wrong read back.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// How many files a run saves.
const SAVED: usize = 3;

/// The main job on a tiny model at few steps, with a cache in `cache`, saving below `out`.
fn start(folder: &Path, cache: &str, out: &str, seed: u64) -> Child {
    let workflow = folder.join("job.yaml");
    if !workflow.exists() {
        let text = crate::reuse::workflow();
        let (nodes, _) = text.split_once("outputs:\n").unwrap();
        let text = format!(
            "{nodes}  first: {{op: decode, model: $personal, latent: $layout}}
outputs:
  picture: {{value: $picture, save: \"{{seed}}.png\"}}
  first: {{value: $first, save: \"{{seed}}-layout.png\"}}
  masks: {{value: $draw.masks, save: \"{{seed}}-masks.safetensors\"}}
"
        );
        std::fs::write(&workflow, text).unwrap();
    }
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .arg("run")
        .arg(workflow)
        .args(["--set", "steps=6", "--set", &format!("seed={seed}")])
        .args(["--out", out, "--cache-dir", cache, "--exists", "replace"])
        .current_dir(folder)
        .env("RETOUCH_CONFIG", "")
        .env_remove("RETOUCH_NO_CACHE")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

/// The U-Net calls of a run that ended well.
fn calls(child: Child) -> u64 {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {text}", output.status);
    let last = text.lines().last().unwrap();
    last.strip_prefix("U-Net calls: ").unwrap().parse().unwrap()
}

#[test]
fn killed_at_any_moment_nothing_is_half_written_and_the_next_run_goes_on() {
    // `RETOUCH_KILLS` tries more moments (CONTRIBUTING.md).
    let given = std::env::var("RETOUCH_KILLS").ok();
    let most: u64 = given.map_or(30, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let since = Instant::now();
    let cold = calls(start(folder, "fresh", "expected", 1));
    // The kills fall into what a whole run takes on this machine, the most of it.
    let whole = since.elapsed();
    let (mut seed, mut kills, mut resumed) = (1, 0u64, 0u64);
    let mut begun = 0;
    let mut since_last = 0;
    // A small generator, so that the moments are the same every time.
    let mut random = 88_172_645_463_325_252u64;
    while kills < most {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut child = start(folder, "cache", "out", seed);
        std::thread::sleep(whole.mul_f64((random % 1000) as f64 / 1500.0));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        since_last += 1;
        // Every few kills the run is let through, and the next picture begun.
        if since_last == 6 {
            since_last = 0;
            let left = calls(start(folder, "cache", "out", seed));
            resumed += u64::from(left < cold);
            begun += 1;
            seed += 1;
        }
    }
    calls(start(folder, "cache", "out", seed));
    assert!(
        begun > 0 && 2 * resumed > begun,
        "{resumed} of {begun} went on from what was there"
    );
    let verified = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["cache", "verify", "--cache-dir", "cache"])
        .current_dir(folder)
        .env("RETOUCH_CONFIG", "")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&verified.stdout);
    assert!(
        verified.status.success() && text.contains(" 0 damaged"),
        "{text}"
    );
    // What was saved is what runs that nobody killed save.
    let saved = files(&folder.join("out"));
    for seed in [1, 2, seed] {
        let name = format!("expected-{seed}");
        calls(start(folder, "fresh", &name, seed));
        for (name, bytes) in files(&folder.join(name)) {
            assert!(saved[&name] == bytes, "{name}");
        }
    }
    let whole = |name: &String| name.ends_with(".png") || name.ends_with(".safetensors");
    for (name, bytes) in saved.iter().filter(|(name, _)| name.ends_with(".png")) {
        assert!(image::load_from_memory(bytes).is_ok(), "{name}");
    }
    // What else may lie there is a temporary file of a run that was killed while it wrote.
    assert!(
        saved
            .keys()
            .all(|name| whole(name) || name.starts_with(".retouch-")),
        "{:?}",
        saved.keys()
    );
}

#[test]
fn eight_processes_on_one_cache_at_once_save_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (cache, count) in [("two", 2), ("eight", 8)] {
        let children: Vec<Child> = (0..count)
            .map(|index| start(folder, cache, &format!("{cache}-{index}"), 5))
            .collect();
        for child in children {
            calls(child);
        }
        let first = files(&folder.join(format!("{cache}-0")));
        assert_eq!(first.len(), SAVED);
        for index in 1..count {
            assert!(
                files(&folder.join(format!("{cache}-{index}"))) == first,
                "{cache} {index}"
            );
        }
        let again = calls(start(folder, cache, "again", 5));
        assert_eq!(again, 0);
        assert!(files(&folder.join("again")) == first);
    }
}

#[test]
fn a_damaged_entry_is_said_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    calls(start(folder, "cache", "a", 7));
    let mut open = vec![folder.join("cache/v1")];
    let mut damaged = 0;
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 40);
    let output = start(folder, "cache", "b", 7).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("does not match its content"), "{text}");
    assert!(files(&folder.join("a")) == files(&folder.join("b")));
    assert_eq!(calls(start(folder, "cache", "c", 7)), 0);
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("blocked"), "a file where a folder is due").unwrap();
    let output = start(folder, "blocked", "out", 1)
        .wait_with_output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("going on without it"), "{text}");
    assert_eq!(files(&folder.join("out")).len(), SAVED);
}

#[test]
fn what_was_found_damaged_is_kept_anew_and_the_next_picture_costs_what_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    calls(start(folder, "sound", "a", 7));
    let next = calls(start(folder, "sound", "b", 8));
    calls(start(folder, "cache", "a", 7));
    // Cut short and flipped, in turn.
    let mut open = vec![folder.join("cache/v1")];
    let mut at = 0;
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            at += 1;
            if at % 2 == 0 {
                bytes.clear();
            } else {
                *bytes.last_mut().unwrap() ^= 1;
            }
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let output = start(folder, "cache", "c", 7).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // A few are told, the others counted.
    let told = text
        .lines()
        .filter(|line| line.starts_with("warning:"))
        .count();
    assert_eq!(told, 6, "{text}");
    assert_eq!(calls(start(folder, "cache", "d", 8)), next);
}

#[test]
fn a_run_goes_on_when_nobody_reads_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut child = start(folder, "cache", "out", 3);
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(files(&folder.join("out")).len(), SAVED);
}
