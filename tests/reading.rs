//! What the program reads: regular files alone, no more of them than is sensible, by the paths that the file system means.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::root;

/// A program that takes longer hangs; nothing else depends on it.
const PATIENCE: Duration = Duration::from_secs(120);

fn start(folder: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("RETOUCH_CONFIG", "")
        .env("RETOUCH_CACHE", folder.join("cache"))
        .env_remove("RETOUCH_MODELS")
        .env_remove("RETOUCH_NO_CACHE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a program that ends says. It is read while it is said: a full pipe would keep the program waiting.
#[track_caller]
fn end(mut child: Child, what: &str) -> Output {
    let listen = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut said = Vec::new();
            from.read_to_end(&mut said).unwrap();
            said
        })
    };
    let stdout = listen(Box::new(child.stdout.take().unwrap()));
    let stderr = listen(Box::new(child.stderr.take().unwrap()));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("{what} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

#[track_caller]
fn run(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = end(start(folder, arguments), &arguments.join(" "));
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stdout));
    (output.status.code(), said)
}

fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A workflow of one node that reads a file, and an output.
fn reads(node: &str, port: &str) -> String {
    let models = root().join("models");
    format!(
        "schema: retouch/v1\nnodes:\n  base: {{op: load_model, path: '{}'}}\n  n: {node}\noutputs:\n  o: {{value: $n.{port}}}\n",
        models.join("world").display()
    )
}

#[cfg(unix)]
fn pipe(path: &Path) {
    let _ = std::fs::remove_file(path);
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[cfg(unix)]
#[test]
fn a_named_pipe_in_place_of_any_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    pipe(&place.join("pipe"));
    pipe(&place.join("pipe.yaml"));
    pipe(&place.join("wf.lock"));
    std::fs::create_dir(place.join("model")).unwrap();
    pipe(&place.join("model/model_index.json"));
    let param = "schema: retouch/v1\nparams:\n  s: {type: string, default: a}\n";
    write(&place.join("wf.yaml"), format!("{param}nodes: {{}}\n"));
    write(
        &place.join("use.yaml"),
        "schema: retouch/v1\nnodes:\n  u: {use: pipe.yaml}\n",
    );
    write(
        &place.join("lines.yaml"),
        format!(
            "{param}nodes: {{n: {{op: load_image, path: a.png}}}}\nsweep: {{matrix: {{s: {{lines: pipe}}}}}}\n"
        ),
    );
    write(
        &place.join("sweep.yaml"),
        "schema: retouch/v1\nsweep: {workflow: pipe.yaml, matrix: {s: [a]}}\n",
    );
    for (name, node, port) in [
        ("image", "{op: load_image, path: pipe}", "image"),
        ("mask", "{op: load_mask, path: pipe}", "mask"),
        ("latent", "{op: load_latent, path: pipe}", "latent"),
        (
            "lora",
            "{op: apply_lora, model: $base, path: pipe}",
            "model",
        ),
        (
            "tokens",
            "{op: apply_textual_inversion, model: $base, path: pipe}",
            "model",
        ),
    ] {
        write(&place.join(format!("{name}.yaml")), reads(node, port));
    }
    for arguments in [
        &["check", "pipe.yaml"][..],
        &["check", "use.yaml"],
        &["check", "sweep.yaml"],
        &["check", "lines.yaml"],
        &["check", "image.yaml"],
        &["check", "mask.yaml"],
        &["check", "latent.yaml"],
        &["run", "pipe.yaml"],
        &["run", "wf.yaml", "--params", "pipe"],
        &["run", "wf.yaml", "--locked"],
        &["plan", "pipe.yaml"],
        &["fmt", "pipe.yaml"],
        &["fmt", "--check", "pipe.yaml"],
        &["sweep", "lines.yaml", "--dry-run"],
        &["show", "pipe"],
        &["extract", "pipe"],
        &["replay", "pipe"],
        &["diff", "pipe.yaml", "wf.yaml"],
        &["unbundle", "pipe", "out"],
    ] {
        let (code, said) = run(place, arguments);
        assert!(
            matches!(code, Some(1..=3)),
            "{arguments:?}: {code:?} {said}"
        );
        assert!(
            said.contains("a named pipe, not a regular file"),
            "{arguments:?}: {said}"
        );
    }
    // Where a file is looked for, a pipe is none.
    for arguments in [
        &["check", "lora.yaml"][..],
        &["check", "tokens.yaml"],
        &["inspect", "pipe"],
        &["inspect", "model"],
    ] {
        let (code, said) = run(place, arguments);
        assert!(
            matches!(code, Some(1..=3)),
            "{arguments:?}: {code:?} {said}"
        );
    }
    // The configuration.
    let child = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(["check", "wf.yaml"])
        .current_dir(place)
        .env("RETOUCH_CONFIG", place.join("pipe"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = end(child, "a pipe as configuration");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("a named pipe"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_named_pipe_in_place_of_a_cache_entry_is_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let node = format!(
        "{{op: load_image, path: '{}'}}",
        root().join("references/teddy/01.png").display()
    );
    let text = reads(&node, "image").replace("{value: $n.image}", "{value: $n.image, save: a.png}");
    let text = text.replace(
        "nodes:\n",
        "nodes:\n  r: {op: resize_image, image: $n, scale: 2}\n",
    );
    let text = text.replace("$n.image,", "$r.image,");
    write(&place.join("wf.yaml"), text);
    let (code, said) = run(place, &["run", "wf.yaml"]);
    assert_eq!(code, Some(0), "{said}");
    fn entries(folder: &Path, all: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                entries(&entry.path(), all);
            } else {
                all.push(entry.path());
            }
        }
    }
    let mut all = Vec::new();
    entries(&place.join("cache"), &mut all);
    assert!(!all.is_empty());
    for file in &all {
        pipe(file);
    }
    let (code, said) = run(place, &["run", "wf.yaml"]);
    assert_eq!(code, Some(0), "{said}");
}

/// A text with one long value that aliases repeat.
fn laughs(head: &str) -> String {
    let aliases = vec!["*a"; 50_000].join(",");
    format!("{head}x-a: &a {}\nx-b: [{aliases}]\n", "x".repeat(100_000))
}

#[test]
fn aliases_of_a_long_text_are_refused_wherever_yaml_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    write(&place.join("a.yaml"), laughs("schema: retouch/v1\n"));
    write(&place.join("wf.yaml"), "schema: retouch/v1\nnodes: {}\n");
    write(&place.join("wf.lock"), laughs("schema: retouch-lock/1\n"));
    write(&place.join("p.yaml"), laughs(""));
    for (arguments, expected) in [
        (&["check", "a.yaml"][..], 3),
        (&["plan", "a.yaml"], 3),
        (&["fmt", "a.yaml"], 3),
        (&["run", "wf.yaml", "--params", "p.yaml"], 2), // an argument's file
        (&["run", "wf.yaml", "--locked"], 3),
    ] {
        let (code, said) = run(place, arguments);
        assert_eq!(code, Some(expected), "{arguments:?}: {said}");
        assert!(
            said.contains("aliases expand to more than"),
            "{arguments:?}: {said}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_workflow_behind_a_linked_folder_keeps_its_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let photo = root().join("references/teddy/01.png");
    std::fs::create_dir_all(place.join("real/sub")).unwrap();
    std::fs::create_dir_all(place.join("other")).unwrap();
    std::fs::copy(&photo, place.join("real/photo.png")).unwrap();
    std::os::unix::fs::symlink("../real/sub", place.join("other/link")).unwrap();
    write(
        &place.join("real/part.yaml"),
        "schema: retouch/v1\nname: part\nnodes:\n  n: {op: load_image, path: photo.png}\noutputs:\n  o: {value: $n}\n",
    );
    // A file that only a reading by the text would find.
    write(
        &place.join("other/part.yaml"),
        "schema: retouch/v1\nnope: 1\n",
    );
    write(
        &place.join("real/sub/wf.yaml"),
        "schema: retouch/v1\nname: wf\nnodes:\n  p: {use: ../part.yaml}\n  r: {op: resize_image, image: $p, scale: 2}\noutputs:\n  o: {value: $r, save: \"o.png\"}\n",
    );
    let (code, said) = run(place, &["run", "other/link/wf.yaml"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(place, &["show", "out/o.png"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(place, &["extract", "out/o.png"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("use: ../part.yaml"), "{said}");
    // Sweeps and locks go the same way.
    write(
        &place.join("real/sub/sweep.yaml"),
        "schema: retouch/v1\nsweep: {workflow: ../sub/wf.yaml, matrix: {}}\n",
    );
    let (code, said) = run(place, &["lock", "other/link/wf.yaml"]);
    assert_eq!(code, Some(0), "{said}");
    let lock = std::fs::read_to_string(place.join("real/sub/wf.lock")).unwrap();
    assert!(lock.contains("\"../part.yaml\""), "{lock}");
    let (code, said) = run(place, &["run", "other/link/wf.yaml", "--locked"]);
    assert_eq!(code, Some(0), "{said}");
}

/// An archive of one file, as a bundle is packed.
fn bundle(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    ruzstd::encoding::compress_to_vec(tar.as_slice(), level)
}

#[test]
fn a_bundle_whose_manifest_expands_without_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = laughs("schema: retouch-bundle/1\n");
    let packed = bundle("retouch-bundle.yaml", manifest.as_bytes());
    assert!(packed.len() < 10_000, "{} bytes", packed.len());
    write(&folder.path().join("b.tar.zst"), packed);
    for arguments in [&["unbundle", "b.tar.zst", "out"][..], &["run", "b.tar.zst"]] {
        let (code, said) = run(folder.path(), arguments);
        assert_eq!(code, Some(3), "{arguments:?}: {said}");
        assert!(
            said.contains("aliases expand to more than"),
            "{arguments:?}: {said}"
        );
    }
    assert!(!folder.path().join("out").exists());
}
