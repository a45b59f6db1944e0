//! Sharing: locks, models in other places, bundles, and bundles that somebody made to do harm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::support::{self, retouch};

const MAIN: &str = "workflows/layout-and-retouch.yaml";
const PICTURE: &str = "out/layout-and-retouch/43.png";

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    said(output)
}

#[track_caller]
fn refused(output: &Output, exit: i32, with: &[&str]) -> String {
    let said = said(output);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    // What is told is broken into lines; only the words count.
    let flat = said.replace("│", " ");
    let flat: String = flat.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in with {
        assert!(flat.contains(part), "`{part}` in {flat}");
    }
    said
}

/// A project as `retouch new` makes it, in a sandbox with a cache of its own.
struct Project {
    sandbox: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let project = Self::empty();
        done(&retouch(project.path(), &["new", "mine"]));
        project
    }

    fn empty() -> Self {
        let sandbox = tempfile::tempdir().unwrap();
        for folder in ["temporary", "else"] {
            std::fs::create_dir(sandbox.path().join(folder)).unwrap();
        }
        Self { sandbox }
    }

    fn path(&self) -> &Path {
        self.sandbox.path()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    /// Runs the program in a folder of the sandbox with a disk cache in it.
    fn run(&self, folder: &str, arguments: &[&str]) -> Output {
        self.command(folder, arguments).output().unwrap()
    }

    fn command(&self, folder: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retouch"));
        command
            .args(arguments)
            .current_dir(self.at(folder))
            .env("NO_COLOR", "1")
            .env("RETOUCH_CONFIG", "")
            .env("RETOUCH_CACHE", self.at("cache"))
            .env("TMPDIR", self.at("temporary"))
            .env_remove("RETOUCH_NO_CACHE")
            .env_remove("RETOUCH_MODELS");
        command
    }

    /// Everything in the sandbox: what each file holds, and of links where they lead.
    fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn below(folder: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = std::fs::symlink_metadata(&path).unwrap();
                let content = if metadata.is_symlink() {
                    std::fs::read_link(&path)
                        .unwrap()
                        .as_os_str()
                        .as_encoded_bytes()
                        .to_vec()
                } else if metadata.is_dir() {
                    below(&path, into);
                    b"folder".to_vec()
                } else {
                    std::fs::read(&path).unwrap()
                };
                into.insert(path, content);
            }
        }
        let mut all = BTreeMap::new();
        below(self.path(), &mut all);
        all
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

// ---- locks ----

#[test]
fn a_lock_names_everything_by_relative_paths_and_says_what_changed() {
    let project = Project::new();
    let made = done(&project.run("mine", &["lock", MAIN]));
    assert!(
        made.contains("layout-and-retouch.lock") && made.contains("(new)"),
        "{made}"
    );
    let lock = project.text("mine/workflows/layout-and-retouch.lock");
    for part in [
        "schema: retouch-lock/1",
        "path: \"retouch.yaml\"",
        "path: \"../references/teddy/01.png\"",
        "model: \"../models/world-teddy\"",
    ] {
        assert!(lock.contains(part), "{part} in {lock}");
    }
    let place = project
        .path()
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    assert!(!lock.contains(&place), "no place of this machine is in it");
    // It is the same from any folder, and by an absolute path.
    let absolute = project.at("mine").join(MAIN).display().to_string();
    let again = done(&project.run("else", &["lock", &absolute]));
    assert!(again.contains("(unchanged)"), "{again}");
    done(&project.run("mine", &["lock", "--check", MAIN]));

    std::fs::copy(
        project.at("mine/references/teddy/02.png"),
        project.at("mine/references/teddy/01.png"),
    )
    .unwrap();
    refused(
        &project.run("mine", &["lock", "--check", MAIN]),
        1,
        &["../references/teddy/01.png: changed", "is stale"],
    );
    assert_eq!(project.text("mine/workflows/layout-and-retouch.lock"), lock);
    let written = done(&project.run("mine", &["lock", MAIN]));
    assert!(
        written.contains("../references/teddy/01.png: changed"),
        "{written}"
    );
    assert_ne!(project.text("mine/workflows/layout-and-retouch.lock"), lock);
    done(&project.run("mine", &["lock", "--check", MAIN]));
}

#[test]
fn locked_refuses_by_name_what_changed_is_missing_or_is_not_in_the_lock() {
    let project = Project::new();
    let locked = |more: &[&str]| {
        let mut arguments = vec!["run", MAIN, "--locked", "--quiet", "--set", "steps=2"];
        arguments.extend(more);
        project.run("mine", &arguments)
    };
    refused(&locked(&[]), 3, &["R0904", "retouch lock"]);
    done(&project.run("mine", &["lock", MAIN]));
    done(&locked(&[]));
    std::fs::remove_dir_all(project.at("mine/out")).unwrap();
    let photo = project.at("mine/references/teddy/01.png");
    let before = std::fs::read(&photo).unwrap();
    std::fs::copy(project.at("mine/references/teddy/02.png"), &photo).unwrap();
    refused(
        &locked(&[]),
        3,
        &[
            "R0903",
            "../references/teddy/01.png: changed (",
            "retouch lock",
        ],
    );
    refused(
        &project.run("mine", &["plan", MAIN, "--locked"]),
        3,
        &["../references/teddy/01.png: changed ("],
    );
    std::fs::remove_file(&photo).unwrap();
    refused(&locked(&[]), 3, &["../references/teddy/01.png: missing ("]);
    std::fs::write(&photo, before).unwrap();
    done(&locked(&[]));
    // Other files by other settings.
    std::fs::write(project.at("mine/p.yaml"), "steps: 3\n").unwrap();
    let params = ["--params", "p.yaml"];
    refused(&locked(&params), 3, &["../p.yaml: not in the lock"]);
    // A graph that it uses, and a broken lock.
    let graph = project.at("mine/workflows/retouch.yaml");
    let text = std::fs::read_to_string(&graph).unwrap();
    std::fs::write(&graph, format!("{text}\n# more\n")).unwrap();
    refused(&locked(&[]), 3, &["retouch.yaml: changed ("]);
    std::fs::write(&graph, text).unwrap();
    let file = project.at("mine/workflows/layout-and-retouch.lock");
    std::fs::write(&file, "schema: retouch-lock/9\n").unwrap();
    refused(&locked(&[]), 3, &["R0902", "retouch-lock/9"]);
    let plain = done(&project.run("mine", &["run", MAIN, "--quiet", "--set", "steps=2"]));
    assert!(plain.contains("warning"), "{plain}");
}

#[cfg(unix)]
#[test]
fn a_name_that_means_something_else_elsewhere_does_not_go_into_a_lock() {
    let project = Project::empty();
    for name in ["a\\b.png", "a\u{7}b.png"] {
        std::fs::copy(
            support::root().join("references/teddy/01.png"),
            project.at("else").join(name),
        )
        .unwrap();
        let name = serde_json::Value::from(name);
        std::fs::write(
            project.at("else/wf.yaml"),
            format!(
                "schema: retouch/v1\nnodes:\n  p: {{op: load_image, path: {name}}}\noutputs:\n  o: {{value: $p, save: o.png}}\n"
            ),
        )
        .unwrap();
        refused(&project.run("else", &["lock", "wf.yaml"]), 3, &["R0905"]);
        assert!(!project.at("else/wf.lock").exists());
    }
}

// ---- models in other places ----

#[test]
fn a_model_that_moved_is_found_by_its_content_and_draws_the_same() {
    let project = Project::new();
    let arguments = ["run", MAIN, "--quiet", "--set", "steps=2", "--no-cache"];
    done(&project.run("mine", &arguments));
    let picture = std::fs::read(project.at("mine").join(PICTURE)).unwrap();
    std::fs::remove_dir_all(project.at("mine/out")).unwrap();
    done(&project.run("mine", &["lock", MAIN]));
    std::fs::create_dir_all(project.at("shelf/deep")).unwrap();
    // Both under the other's name: only what they hold tells them apart.
    std::fs::rename(
        project.at("mine/models/world"),
        project.at("shelf/deep/world-teddy"),
    )
    .unwrap();
    std::fs::rename(
        project.at("mine/models/world-teddy"),
        project.at("shelf/deep/world"),
    )
    .unwrap();
    refused(
        &project.run("mine", &arguments),
        3,
        &["R0322", "RETOUCH_MODELS"],
    );
    let shelves = std::env::join_paths([project.at("nowhere"), project.at("shelf")]).unwrap();
    let run = |more: &[&str]| {
        let mut command = project.command("mine", &arguments);
        command
            .args(more)
            .env("RETOUCH_MODELS", &shelves)
            .output()
            .unwrap()
    };
    let told = done(&run(&[]));
    assert!(told.contains("its content was found at"), "{told}");
    assert_eq!(
        std::fs::read(project.at("mine").join(PICTURE)).unwrap(),
        picture
    );
    done(&run(&["--locked"]));
    // The name alone is not enough: a folder of the right name that holds something else.
    std::fs::remove_dir_all(project.at("shelf/deep/world-teddy")).unwrap();
    refused(
        &run(&[]),
        3,
        &[
            "models/world",
            "was also looked for below",
            "by the content",
        ],
    );
}

#[test]
fn without_a_lock_a_model_is_found_by_its_name() {
    let project = Project::new();
    std::fs::rename(project.at("mine/models"), project.at("shelf")).unwrap();
    let shelf = project.at("shelf").display().to_string();
    let arguments = ["check", MAIN, "--models", &shelf];
    let told = done(&project.run("mine", &arguments));
    assert!(
        told.contains("models/world-teddy does not exist; its content was found at"),
        "{told}"
    );
    // What comes back to its place is read there, even if it is wrong.
    std::fs::create_dir_all(project.at("mine/models/world")).unwrap();
    refused(&project.run("mine", &arguments), 3, &["R0322"]);
}

// ---- bundles ----

#[test]
fn a_bundle_is_the_same_each_time_and_draws_the_same_elsewhere() {
    let project = Project::new();
    let drawn = ["--quiet", "--set", "steps=2", "--no-cache"];
    done(&project.run("mine", &[&["run", MAIN][..], &drawn].concat()));
    let picture = std::fs::read(project.at("mine").join(PICTURE)).unwrap();
    let made = done(&project.run("mine", &["bundle", MAIN, "-o", "../a.tar.zst"]));
    assert!(made.contains("left out: models/world "), "{made}");
    // From another folder, later, with other times: the same bytes.
    let moved = project.at("moved");
    copy(&project.at("mine"), &moved);
    let file = moved.join(MAIN).display().to_string();
    done(&project.run("else", &["bundle", &file, "-o", "../b.tar.zst"]));
    let (a, b) = (project.at("a.tar.zst"), project.at("b.tar.zst"));
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());

    let models = project.at("mine/models").display().to_string();
    let elsewhere = |bundle: &str, more: &[&str]| {
        let _ = std::fs::remove_dir_all(project.at("else/out"));
        let output = project.run("else", &[&["run", bundle][..], more].concat());
        let picture = std::fs::read(project.at("else").join(PICTURE));
        (output, picture)
    };
    // By the first bytes, not the name.
    std::fs::rename(&b, project.at("b.shared")).unwrap();
    for bundle in ["../a.tar.zst", "../b.shared"] {
        let more = [&drawn[..], &["--models", &models, "--locked"]].concat();
        let (output, there) = elsewhere(bundle, &more);
        done(&output);
        assert_eq!(there.unwrap(), picture);
    }
    // Without its models it says which, not where in the cache they were expected.
    let without = elsewhere("../a.tar.zst", &drawn).0;
    let needed = [
        "the bundle needs models/world (11 files, ",
        "the bundle needs models/world-teddy (",
        "which was not packed with it",
        "--models DIR",
        "RETOUCH_MODELS",
        "--with-models",
        "2 faults found",
    ];
    let told = refused(&without, 3, &needed);
    assert!(!told.contains("bundles"), "{told}");
    for command in ["check", "plan", "graph"] {
        let arguments = [command, "../a.tar.zst", "--no-cache"];
        refused(&project.run("else", &arguments), 3, &needed[..2]);
    }
    let empty = project.at("else").display().to_string();
    let wrong = ["run", "../a.tar.zst", "--no-cache", "--models", &empty];
    refused(&project.run("else", &wrong), 3, &["nothing below", &empty]);
    // With models it needs nothing but itself. Without a cache nothing of it stays behind.
    done(&project.run(
        "mine",
        &["bundle", MAIN, "--with-models", "-o", "../whole.tar.zst"],
    ));
    std::fs::rename(project.at("mine"), project.at("gone")).unwrap();
    let (output, there) = elsewhere("../whole.tar.zst", &drawn);
    done(&output);
    assert_eq!(there.unwrap(), picture);
    assert_eq!(
        std::fs::read_dir(project.at("temporary")).unwrap().count(),
        0
    );
    let (output, there) = elsewhere("../whole.tar.zst", &["--quiet", "--set", "steps=2"]);
    done(&output);
    assert_eq!(there.unwrap(), picture);
    // What lies in the cache is put right when somebody changed it.
    let kept = std::fs::read_dir(project.at("cache/bundles")).unwrap();
    let kept = kept.map(|entry| entry.unwrap().path()).next().unwrap();
    let changed = kept.join(MAIN);
    std::fs::write(&changed, "nodes: {}\n").unwrap();
    std::fs::write(kept.join("more"), "").unwrap();
    let plan = done(&project.run("else", &["plan", "../whole.tar.zst", "--set", "steps=2"]));
    assert!(plan.contains("U-Net calls: 0"), "{plan}");
    assert_ne!(std::fs::read_to_string(changed).unwrap(), "nodes: {}\n");
    assert!(!kept.join("more").exists());
    done(&project.run("else", &["cache", "clear"]));
    assert!(!kept.exists());
}

#[test]
fn a_bundle_takes_its_settings_along_and_opens_up() {
    let project = Project::new();
    std::fs::create_dir(project.at("mine/set")).unwrap();
    std::fs::copy(
        project.at("mine/references/teddy/02.png"),
        project.at("mine/set/mine.png"),
    )
    .unwrap();
    std::fs::write(
        project.at("mine/set/p.yaml"),
        "photo: mine.png\nplace: \"in 'space' #1\"\n",
    )
    .unwrap();
    let text = "schema: retouch/v1\nname: wf\nparams:\n  photo: {type: path, default: ../references/teddy/01.png}\n  \
                place: {type: string, default: here}\n  seed: {type: seed, default: 1}\n  width: {type: float, default: 2.0}\n\
                nodes:\n  p: {op: load_image, path: $params.photo}\n  big: {op: resize_image, image: $p, scale: $params.width}\n\
                outputs:\n  big: {value: $big, save: \"{place}-{seed}.png\"}\n";
    std::fs::write(project.at("mine/workflows/wf.yaml"), text).unwrap();
    let bundle = [
        "bundle",
        "workflows/wf.yaml",
        "--params",
        "set/p.yaml",
        "--set",
        "seed=random",
        "--set",
        "width=1.5",
    ];
    let made = done(&project.run("mine", &bundle));
    assert!(
        made.contains("set/mine.png") && !made.contains("01.png"),
        "{made}"
    );
    assert!(project.at("mine/wf.tar.zst").exists());
    std::fs::rename(project.at("mine/wf.tar.zst"), project.at("wf.tar.zst")).unwrap();
    std::fs::rename(project.at("mine"), project.at("gone")).unwrap();
    let plan = |more: &[&str]| {
        let arguments = [&["plan", "../wf.tar.zst", "--json"][..], more].concat();
        let output = project.run("else", &arguments);
        done(&output);
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let (first, second) = (plan(&[]), plan(&[]));
    let save = |plan: &serde_json::Value| plan["outputs"][0]["save"].as_str().unwrap().to_owned();
    assert!(save(&first).starts_with("in 'space' #1-"), "{first}");
    assert_ne!(
        save(&first),
        save(&second),
        "a seed that is drawn stays one"
    );
    // The command line wins over what the bundle was made with.
    assert_eq!(
        save(&plan(&["--set", "place=there", "--set", "seed=5"])),
        "there-5.png"
    );

    let opened = done(&project.run("else", &["unbundle", "../wf.tar.zst", "open"]));
    assert!(opened.contains("--params"), "{opened}");
    let line = opened.lines().next().unwrap();
    let params = Path::new(line)
        .with_extension("params.yaml")
        .display()
        .to_string();
    done(&project.run(
        "else",
        &["run", line, "--quiet", "--params", &params, "--locked"],
    ));
    refused(
        &project.run("else", &["unbundle", "../wf.tar.zst", "open"]),
        1,
        &["exists and is not empty"],
    );
}

#[test]
fn what_cannot_be_shared_is_not_bundled_and_nothing_is_overwritten() {
    let project = Project::new();
    let photo = project.at("mine/references/teddy/01.png");
    let workflow = |path: &str| {
        let text = format!(
            "schema: retouch/v1\nnodes:\n  p: {{op: load_image, path: \"{path}\"}}\noutputs:\n  o: {{value: $p}}\n"
        );
        std::fs::write(project.at("mine/wf.yaml"), text).unwrap();
    };
    workflow(&photo.display().to_string());
    let bundle = |more: &[&str]| project.run("mine", &[&["bundle", "wf.yaml"][..], more].concat());
    refused(&bundle(&[]), 3, &["R0919", "relative"]);
    let absolute = project.at("mine/wf.yaml").display().to_string();
    refused(&project.run("else", &["bundle", &absolute]), 3, &["R0919"]);
    workflow("references/teddy/01.png");
    refused(
        &bundle(&["--max-asset", "4KiB"]),
        3,
        &["R0920", "--max-asset"],
    );
    let odd = project.at("mine/references/what?.png");
    std::fs::copy(&photo, &odd).unwrap();
    workflow("references/what?.png");
    refused(&bundle(&[]), 3, &["R0913", "rename"]);
    workflow("references/teddy/01.png");
    let before = project.text("mine/wf.yaml");
    refused(&bundle(&["-o", "wf.yaml"]), 1, &["is not a bundle"]);
    refused(
        &bundle(&["-o", "no/such/folder.tar.zst"]),
        1,
        &["cannot be written"],
    );
    assert_eq!(project.text("mine/wf.yaml"), before);
    let left: Vec<_> = project
        .snapshot()
        .into_keys()
        .filter(|path| path.to_string_lossy().contains(".tar.zst"))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    done(&bundle(&["-o", "wf.tar.zst"]));
    done(&bundle(&["-o", "wf.tar.zst"]));
    refused(
        &project.run("mine", &["bundle", "wf.tar.zst"]),
        2,
        &["is a bundle already"],
    );
    refused(
        &project.run("mine", &["watch", "wf.tar.zst"]),
        2,
        &["unbundle"],
    );
    refused(
        &project.run("mine", &["lock", "wf.tar.zst"]),
        2,
        &["unbundle"],
    );
}

// ---- bundles that were made to do harm ----

/// A header of the archive, field by field, so that it can be wrong.
#[derive(Clone)]
struct Entry {
    name: Vec<u8>,
    kind: u8,
    content: Vec<u8>,
    link: &'static str,
    size: Option<Vec<u8>>,
    magic: &'static [u8],
    mode: &'static [u8],
    sum_off: u32,
    padding: u8,
}

fn entry(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        kind: b'0',
        content: content.as_ref().to_vec(),
        link: "",
        size: None,
        magic: b"ustar\x0000",
        mode: b"0000644\0",
        sum_off: 0,
        padding: 0,
    }
}

fn special(kind: u8, name: &str, link: &'static str) -> Entry {
    Entry {
        kind,
        link,
        ..entry(name, "")
    }
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut block = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        if entry.name.len() <= 100 {
            put(0, &entry.name);
        } else {
            let split = entry
                .name
                .iter()
                .take(155)
                .rposition(|&b| b == b'/')
                .unwrap();
            put(345, &entry.name[..split]);
            put(0, &entry.name[split + 1..]);
        }
        put(100, entry.mode);
        put(108, b"0000000\x000000000\0");
        let plain = format!("{:011o}\0", entry.content.len()).into_bytes();
        put(124, entry.size.as_ref().unwrap_or(&plain));
        put(136, b"00000000000\0        ");
        put(156, &[entry.kind]);
        put(157, entry.link.as_bytes());
        put(257, entry.magic);
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        let sum = format!("{:06o}\0 ", sum + entry.sum_off);
        block[148..156].copy_from_slice(sum.as_bytes());
        bytes.extend_from_slice(&block);
        bytes.extend_from_slice(&entry.content);
        bytes.resize(bytes.len().next_multiple_of(512), entry.padding);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn line(path: &str, content: &[u8]) -> String {
    let mut hasher = retouch_graph::digest::Hasher::default();
    hasher.update(content);
    line_of(
        path,
        content.len() as u64,
        &retouch_graph::digest::hex(&hasher.finish()),
    )
}

fn line_of(path: &str, size: u64, digest: &str) -> String {
    let path = serde_json::Value::from(path);
    format!("  - {{path: {path}, size: {size}, blake3: \"{digest}\"}}\n")
}

fn manifest_of(lines: &str) -> Entry {
    let text = format!(
        "schema: retouch-bundle/1\nretouch: \"0.1.0\"\nworkflow: \"wf.yaml\"\nfiles:\n{lines}"
    );
    entry("retouch-bundle.yaml", text)
}

const SOUND: &str = "schema: retouch/v1\nname: wf\nnodes:\n  p: {op: load_image, path: p.png}\noutputs:\n  o: {value: $p, save: o.png}\n";

fn picture() -> Vec<u8> {
    std::fs::read(support::root().join("references/teddy/01.png")).unwrap()
}

/// The members of a bundle that is sound but for `more`, which the manifest lists too.
fn with(more: &[Entry]) -> Vec<Entry> {
    let mut entries = vec![entry("p.png", picture()), entry("wf.yaml", SOUND)];
    entries.extend_from_slice(more);
    let lines: String = entries
        .iter()
        .map(|entry| line(&String::from_utf8_lossy(&entry.name), &entry.content))
        .collect();
    entries.insert(0, manifest_of(&lines));
    entries
}

/// The same with `more` unknown to the manifest.
fn smuggled(more: &[Entry]) -> Vec<u8> {
    let mut entries = with(&[]);
    entries.extend_from_slice(more);
    zstd(&tar(&entries))
}

fn listed(more: &[Entry]) -> Vec<u8> {
    zstd(&tar(&with(more)))
}

/// A bundle whose workflow is this text.
fn workflow(text: &str) -> Vec<u8> {
    let lines = line("p.png", &picture()) + &line("wf.yaml", text.as_bytes());
    zstd(&tar(&[
        manifest_of(&lines),
        entry("p.png", picture()),
        entry("wf.yaml", text),
    ]))
}

type Case = (&'static str, &'static str, Vec<u8>);

fn hostile_bundles(sandbox: &Path) -> Vec<Case> {
    let sound = listed(&[]);
    let plain = with(&[]);
    let evil = |name: &str| listed(&[entry(name, "evil")]);
    let mut cases: Vec<Case> = Vec::new();
    let mut case = |name, code, bytes| cases.push((name, code, bytes));

    // Paths that lead elsewhere.
    let absolute = sandbox.join("evil").display().to_string();
    case("absolute path", "R0913", evil(&absolute));
    case(
        "absolute path, smuggled",
        "R0913",
        smuggled(&[entry(&absolute, "evil")]),
    );
    case("parent", "R0913", evil("../evil"));
    case(
        "parent, smuggled",
        "R0913",
        smuggled(&[entry("../evil", "evil")]),
    );
    case("parent further in", "R0913", evil("a/../../evil"));
    case(
        "parent many times",
        "R0913",
        evil("../../../../../../../../tmp/evil"),
    );
    case("backslashes", "R0913", evil("..\\evil"));
    case("drive", "R0913", evil("C:/evil"));
    case("drive without a slash", "R0913", evil("C:evil"));
    case("stream of another file", "R0913", evil("wf.yaml:evil"));
    case("empty name", "R0913", evil(""));
    case("empty part", "R0913", evil("a//evil"));
    case("point", "R0913", evil("./evil"));
    case("slash at the end", "R0913", evil("evil/"));
    case(
        "NUL in the name",
        "R0913",
        smuggled(&[entry(b"evil\0../evil", "evil")]),
    );
    case(
        "name that is not UTF-8",
        "R0913",
        smuggled(&[entry(b"ev\xffil", "evil")]),
    );
    case("line break in the name", "R0913", evil("ev\nil"));
    case("turned around name", "R0913", evil("ev\u{202e}gnp.il"));
    case("name of a device", "R0913", evil("a/NUL.png"));
    case("point at the end", "R0913", evil("evil."));
    case("deep path", "R0913", evil(&["a"; 40].join("/")));
    case(
        "path of more than 255 bytes",
        "R0913",
        evil(&["aaaaaaaaaaaaaaaaaaa"; 14].join("/")),
    );
    case("manifest with a path out of it", "R0913", {
        let lines =
            line("p.png", &picture()) + &line("wf.yaml", SOUND.as_bytes()) + &line("../evil", b"");
        zstd(&tar(&[
            manifest_of(&lines),
            entry("p.png", picture()),
            entry("wf.yaml", SOUND),
        ]))
    });

    // What is no plain file.
    case(
        "symbolic link",
        "R0912",
        smuggled(&[special(b'2', "evil", "/etc")]),
    );
    case("symbolic link in a picture's place", "R0912", {
        let mut entries = plain.clone();
        entries[1] = special(b'2', "p.png", "../../secret.png");
        zstd(&tar(&entries))
    });
    case(
        "file through a symbolic link",
        "R0912",
        smuggled(&[special(b'2', "d", ".."), entry("d/evil", "evil")]),
    );
    case(
        "hard link",
        "R0912",
        smuggled(&[special(b'1', "evil", "wf.yaml")]),
    );
    case(
        "hard link to outside",
        "R0912",
        smuggled(&[special(b'1', "evil", "../../secret.png")]),
    );
    case(
        "character device",
        "R0912",
        smuggled(&[special(b'3', "evil", "")]),
    );
    case(
        "block device",
        "R0912",
        smuggled(&[special(b'4', "evil", "")]),
    );
    case("pipe", "R0912", smuggled(&[special(b'6', "evil", "")]));
    case("folder", "R0912", smuggled(&[special(b'5', "evil", "")]));
    case(
        "contiguous file",
        "R0912",
        smuggled(&[special(b'7', "evil", "")]),
    );
    case(
        "old kind of file",
        "R0912",
        smuggled(&[special(0, "evil", "")]),
    );
    case(
        "sparse file",
        "R0912",
        smuggled(&[special(b'S', "evil", "")]),
    );
    let long = |kind| Entry {
        kind,
        ..entry("././@LongLink", "../evil\0")
    };
    case(
        "GNU long name",
        "R0912",
        smuggled(&[long(b'L'), entry("x", "evil")]),
    );
    case(
        "GNU long link",
        "R0912",
        smuggled(&[long(b'K'), special(b'2', "x", "y")]),
    );
    let pax = |kind| Entry {
        kind,
        ..entry("PaxHeaders/x", "16 path=../evil\n")
    };
    case(
        "PAX path",
        "R0912",
        smuggled(&[pax(b'x'), entry("x", "evil")]),
    );
    case(
        "PAX path for all",
        "R0912",
        smuggled(&[pax(b'g'), entry("x", "evil")]),
    );
    case(
        "other format",
        "R0912",
        smuggled(&[Entry {
            magic: b"ustar  \0",
            ..entry("evil", "evil")
        }]),
    );
    case(
        "no format",
        "R0912",
        smuggled(&[Entry {
            magic: b"",
            ..entry("evil", "evil")
        }]),
    );
    case(
        "file with a link's target",
        "R0912",
        smuggled(&[Entry {
            link: "/etc/passwd",
            ..entry("evil", "")
        }]),
    );

    // Files in each other's way.
    case(
        "file twice",
        "R0914",
        smuggled(&[entry("p.png", picture())]),
    );
    case("file twice in the manifest", "R0914", evil("p.png"));
    case(
        "names that differ in case",
        "R0914",
        listed(&[entry("P.PNG", "evil")]),
    );
    case(
        "folders that differ in case",
        "R0914",
        listed(&[entry("a/x", "evil"), entry("A/y", "evil")]),
    );
    case(
        "file where a folder is due",
        "R0914",
        listed(&[entry("p.png/evil", "evil")]),
    );
    case("manifest twice", "R0914", smuggled(&[plain[0].clone()]));
    case(
        "manifest that lists itself",
        "R0914",
        evil("retouch-bundle.yaml"),
    );

    // Not what the manifest says.
    case(
        "file that is not listed",
        "R0918",
        smuggled(&[entry("evil", "evil")]),
    );
    case("file that is not there", "R0918", {
        let mut entries = with(&[entry("x", "x")]);
        entries.pop();
        zstd(&tar(&entries))
    });
    case("other content", "R0918", {
        let mut entries = plain.clone();
        entries[2].content[20] ^= 1;
        zstd(&tar(&entries))
    });
    case("other size", "R0918", {
        let mut entries = plain.clone();
        entries[2].content.push(b'\n');
        zstd(&tar(&entries))
    });
    case("no manifest", "R0916", zstd(&tar(&plain[1..])));
    case("nothing in it", "R0916", zstd(&tar(&[])));
    case("manifest at the end", "R0916", {
        let mut entries = plain.clone();
        entries.rotate_left(1);
        zstd(&tar(&entries))
    });
    let manifest = |text: &str| {
        zstd(&tar(&[
            entry("retouch-bundle.yaml", text),
            plain[1].clone(),
            plain[2].clone(),
        ]))
    };
    let text = String::from_utf8(plain[0].content.clone()).unwrap();
    case(
        "newer schema",
        "R0917",
        manifest(&text.replace("bundle/1", "bundle/2")),
    );
    case(
        "no schema",
        "R0916",
        manifest(&text.replace("schema: retouch-bundle/1\n", "")),
    );
    case("manifest that is no YAML", "R0916", manifest("[{"));
    case(
        "manifest that is no text",
        "R0916",
        zstd(&tar(&[entry("retouch-bundle.yaml", b"\xff\xfe")])),
    );
    case("manifest with an anchor bomb", "R0916", {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for n in 1..12 {
            let many = vec![format!("*a{}", n - 1); 9].join(", ");
            text.push_str(&format!("a{n}: &a{n} [{many}]\n"));
        }
        manifest(&text)
    });
    case(
        "workflow that is not listed",
        "R0916",
        manifest(&text.replace("workflow: \"wf", "workflow: \"../wf")),
    );
    case(
        "params that are not listed",
        "R0916",
        manifest(&text.replace("files:", "params: \"/etc/passwd\"\nfiles:")),
    );
    case(
        "negative size",
        "R0916",
        manifest(&text.replace("size: ", "size: -")),
    );
    case(
        "short digest",
        "R0916",
        manifest(&text.replace("blake3: \"", "blake3: \"0")),
    );

    // Too much.
    case(
        "bomb",
        "R0915",
        listed(&[entry("zeros", vec![0; 40 << 20])]),
    );
    let huge = |size| {
        let lines = line("p.png", &picture()) + &line("wf.yaml", SOUND.as_bytes());
        manifest_of(&(lines + &line_of("huge", size, &"0".repeat(64))))
    };
    case(
        "more than a gigabyte",
        "R0915",
        zstd(&tar(&[huge(2 << 30)])),
    );
    case(
        "sizes that overflow",
        "R0915",
        zstd(&tar(&[manifest_of(&format!(
            "{}{}",
            line_of("a", (1 << 53) - 1, &"0".repeat(64)),
            line("wf.yaml", SOUND.as_bytes())
        ))])),
    );
    case("many files", "R0915", {
        let lines: String = (0..10_001)
            .map(|n| line_of(&format!("f{n}"), 0, &"0".repeat(64)))
            .collect();
        zstd(&tar(&[manifest_of(&(lines + &line("wf.yaml", b"")))]))
    });
    case(
        "large manifest",
        "R0915",
        zstd(&tar(&[Entry {
            size: Some(b"00100000000\0".to_vec()),
            ..entry("retouch-bundle.yaml", "")
        }])),
    );
    case(
        "large window",
        "R0911",
        b"\x28\xb5\x2f\xfd\x00\xa0\x01\x00\x00".to_vec(),
    );

    // Damage.
    case("cut off stream", "R0911", sound[..sound.len() / 2].to_vec());
    case(
        "cut off at the last byte",
        "R0911",
        sound[..sound.len() - 1].to_vec(),
    );
    case("cut off archive", "R0911", zstd(&tar(&plain)[..2048]));
    case("archive without its end", "R0911", {
        let bytes = tar(&plain);
        zstd(&bytes[..bytes.len() - 1024])
    });
    case("half an end", "R0911", {
        let mut bytes = tar(&plain);
        let at = bytes.len() - 1;
        bytes[at] = 1;
        zstd(&bytes)
    });
    case(
        "garbage behind the frame",
        "R0911",
        [&sound[..], b"garbage"].concat(),
    );
    case("second frame", "R0911", [&sound[..], &sound[..]].concat());
    case(
        "frame to be skipped",
        "R0911",
        [b"\x50\x2a\x4d\x18\x04\x00\x00\x00evil", &sound[..]].concat(),
    );
    case("garbage behind the archive", "R0911", {
        let mut bytes = tar(&plain);
        bytes.extend_from_slice(b"garbage");
        zstd(&bytes)
    });
    case("second archive", "R0911", {
        let bytes = tar(&plain);
        zstd(&[&bytes[..], &tar(&[entry("../evil", "evil")])].concat())
    });
    case("checksum of the frame", "R0911", {
        let mut bytes = sound.clone();
        let at = bytes.len() - 1;
        bytes[at] ^= 1;
        bytes
    });
    case("no checksum of the frame", "R0911", {
        let mut bytes = sound.clone();
        // The descriptor after the magic says that four bytes of checksum end the frame.
        assert_eq!(bytes[4] & 4, 4);
        bytes[4] &= !4;
        bytes.truncate(bytes.len() - 4);
        bytes
    });
    case(
        "checksum of a header",
        "R0911",
        smuggled(&[Entry {
            sum_off: 1,
            ..entry("evil", "evil")
        }]),
    );
    case(
        "size in base 256",
        "R0911",
        smuggled(&[Entry {
            size: Some(vec![0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
            ..entry("evil", "evil")
        }]),
    );
    case(
        "size that is no number",
        "R0911",
        smuggled(&[Entry {
            size: Some(b"-0000000004\0".to_vec()),
            ..entry("evil", "evil")
        }]),
    );
    case("something behind a file's end", "R0911", {
        let mut entries = plain.clone();
        entries[2].padding = b'x';
        zstd(&tar(&entries))
    });
    case("not compressed", "R0911", tar(&plain));
    case("no bundle at all", "R0911", b"PK\x03\x04".to_vec());
    case("empty file", "R0911", Vec::new());

    // A workflow that reaches out.
    let secret = sandbox.join("secret.png").display().to_string();
    case(
        "workflow that reads an absolute path",
        "R0919",
        workflow(&SOUND.replace("p.png", &secret)),
    );
    case(
        "workflow that climbs out",
        "R0919",
        workflow(&SOUND.replace("p.png", "../../../secret.png")),
    );
    case(
        "workflow that uses one outside",
        "R0919",
        workflow(&SOUND.replace("nodes:\n", "nodes:\n  g: {use: ../../../secret.yaml}\n")),
    );
    case("params that name a file outside", "R0919", {
        let text = format!(
            "schema: retouch/v1\nname: wf\nparams:\n  photo: {{type: path}}\n{}",
            &SOUND[SOUND.find("nodes").unwrap()..]
        );
        let text = text.replace("p.png", "$params.photo");
        let params = format!("photo: \"{secret}\"\n");
        let lines = line("wf.params.yaml", params.as_bytes()) + &line("wf.yaml", text.as_bytes());
        let manifest = manifest_of(&lines).content;
        let manifest = String::from_utf8(manifest).unwrap();
        let manifest = manifest.replace("files:", "params: wf.params.yaml\nfiles:");
        zstd(&tar(&[
            entry("retouch-bundle.yaml", manifest),
            entry("wf.params.yaml", params),
            entry("wf.yaml", text),
        ]))
    });
    cases
}

#[test]
fn hostile_bundles_are_refused_and_nothing_is_written_outside_or_left_behind() {
    let project = Project::empty();
    std::fs::write(project.at("secret.png"), picture()).unwrap();
    std::fs::write(
        project.at("secret.yaml"),
        SOUND.replace("p.png", "secret.png"),
    )
    .unwrap();
    // The control: the same by the same hands, without harm, is taken.
    let bundle = project.at("bundle.tar.zst");
    let setuid = Entry {
        mode: b"0006777\0",
        ..entry("tool", "x")
    };
    std::fs::write(&bundle, listed(&[setuid, entry("a/b/c.txt", "x")])).unwrap();
    done(&project.run("else", &["run", "../bundle.tar.zst", "--quiet"]));
    done(&project.run("else", &["unbundle", "../bundle.tar.zst", "open"]));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = project
            .at("else/open/tool")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7111, 0, "modes count for nothing");
    }
    done(&project.run("else", &["cache", "clear"]));
    std::fs::remove_dir_all(project.at("else/open")).unwrap();
    std::fs::remove_dir_all(project.at("else/out")).unwrap();

    let cases = hostile_bundles(project.path());
    assert!(cases.len() >= 30);
    let mut wrong = Vec::new();
    for (name, code, bytes) in cases {
        std::fs::write(&bundle, bytes).unwrap();
        let before = project.snapshot();
        let mut commands = vec![
            vec!["run", "../bundle.tar.zst", "--quiet"],
            vec!["run", "../bundle.tar.zst", "--quiet", "--no-cache"],
            vec!["check", "../bundle.tar.zst"],
        ];
        // Whoever opens it up sees for themselves what its workflow reads.
        if code != "R0919" {
            commands.push(vec!["unbundle", "../bundle.tar.zst", "open/up"]);
        }
        for arguments in commands {
            let output = project.run("else", &arguments);
            let said = said(&output);
            let mut after = project.snapshot();
            if code == "R0919" {
                // A sound bundle with a workflow that is not: it may lie unpacked in the cache, and nowhere else.
                after.retain(|path, _| !path.starts_with(project.at("cache/bundles")));
            }
            let ended = output.status.code() == Some(3) && said.contains(code);
            if !ended || said.contains("panicked") || after != before {
                wrong.push(format!(
                    "{name}: {arguments:?}: {:?}: {said}",
                    output.status.code()
                ));
            }
        }
        let _ = std::fs::remove_dir_all(project.at("cache/bundles"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_bundle_runs_where_the_cache_cannot_be_written_and_leaves_nothing() {
    let project = Project::empty();
    let bundle = project.at("else/x.tar.zst");
    std::fs::write(&bundle, listed(&[])).unwrap();
    std::fs::create_dir(project.at("cache")).unwrap();
    // As if it were read-only: root may write everywhere.
    std::fs::write(project.at("cache/bundles"), "in the way").unwrap();
    let said = done(&project.run("else", &["run", "x.tar.zst"]));
    assert!(project.at("else/out/o.png").is_file(), "{said}");
    assert_eq!(
        std::fs::read_dir(project.at("temporary")).unwrap().count(),
        0
    );
    assert_eq!(
        std::fs::read(project.at("cache/bundles")).unwrap(),
        b"in the way"
    );
    // No cache at all.
    std::fs::remove_dir_all(project.at("cache")).unwrap();
    std::fs::write(project.at("cache"), "in the way").unwrap();
    let said = done(&project.run("else", &["run", "x.tar.zst", "--out", "other"]));
    assert!(said.contains("going on without it"), "{said}");
    assert!(project.at("else/other/o.png").is_file());
}

/// Bytes that do not shrink when they are compressed.
#[cfg(unix)]
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..bytes).map(next).collect()
}

#[cfg(unix)]
#[test]
fn an_interrupted_unbundle_leaves_nothing_and_what_a_killed_one_left_is_removed() {
    let project = Project::empty();
    let names = || {
        let mut names: Vec<String> = std::fs::read_dir(project.at("else"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let draft = || names().into_iter().find(|name| name.ends_with(".part"));
    // Sends a signal while the program is held in the middle of unpacking. Where the program is faster than this test, it is
    // tried again with twice as much to unpack.
    let mut size = 12 << 20;
    let mut stopped = |signal: libc::c_int| {
        for _ in 0..6 {
            let bundle = listed(&[entry("noise", noise(size))]);
            std::fs::write(project.at("else/x.tar.zst"), bundle).unwrap();
            let arguments = ["unbundle", "x.tar.zst", "open"];
            let mut child = project.command("else", &arguments).spawn().unwrap();
            while draft().is_none() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let written = |draft: String| {
                let file = project.at("else").join(draft).join("noise");
                file.metadata().map_or(0, |file| file.len() as usize)
            };
            let is_running = child.try_wait().unwrap().is_none() && support::hold(&child);
            let is_amid = is_running && draft().map(written).is_some_and(|it| it < size / 2);
            if is_amid {
                support::signal(&child, signal);
            }
            if is_running {
                support::signal(&child, libc::SIGCONT);
            }
            let code = child.wait().unwrap().code();
            if code != Some(0) {
                assert!(is_amid, "it ended with {code:?} by itself");
                return code;
            }
            std::fs::remove_dir_all(project.at("else/open")).unwrap();
            size *= 2;
        }
        panic!("it unpacks {size} bytes before it hears a signal");
    };
    assert_eq!(stopped(libc::SIGTERM), Some(130));
    assert_eq!(names(), ["x.tar.zst"]);
    assert_eq!(stopped(libc::SIGKILL), None);
    let left = project.at("else").join(draft().unwrap());
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 60 * 60);
    for path in std::fs::read_dir(&left).unwrap() {
        let file = std::fs::File::open(path.unwrap().path()).unwrap();
        file.set_modified(old).unwrap();
    }
    std::fs::File::open(&left)
        .unwrap()
        .set_modified(old)
        .unwrap();
    done(&project.run("else", &["unbundle", "x.tar.zst", "open"]));
    assert_eq!(names(), ["open", "x.tar.zst"]);
}

#[test]
fn a_bundle_with_any_damage_is_refused_whole() {
    let project = Project::empty();
    let sound = listed(&[entry("a/b.txt", "text ".repeat(400))]);
    let bundle = project.at("else/x.tar.zst");
    for n in 0..40 {
        let mut bytes = sound.clone();
        let at = n * (bytes.len() - 1) / 39;
        if n % 2 == 0 {
            bytes[at] ^= 1 << (n % 8);
        } else {
            bytes.truncate(at);
        }
        if bytes == sound {
            continue;
        }
        std::fs::write(&bundle, bytes).unwrap();
        let output = project.run("else", &["unbundle", "x.tar.zst", "open"]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(3), "byte {at}: {said}");
        assert!(
            said.contains("R09") && !said.contains("panicked"),
            "byte {at}: {said}"
        );
        assert_eq!(std::fs::read_dir(project.at("else")).unwrap().count(), 1);
    }
}
