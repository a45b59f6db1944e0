//! Sweeps beyond one machine as a user meets them: workers that share a run by a store, are killed, stopped, cancelled and refused;
//! what is collected is what one machine makes, to the byte.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use retouch_cluster::Objects;
use serde_json::Value as Json;

use crate::support::root;

#[path = "../cli/cluster/tests/support.rs"]
mod s3;

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

#[track_caller]
fn ends(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert_eq!(
        output.status.code(),
        Some(code),
        "{command:?}\n{}",
        said.join("\n")
    );
    output
}

#[track_caller]
fn retouch(folder: &Path, code: i32, arguments: &[&str]) -> Output {
    ends(&mut command(folder, arguments), code)
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The files that were drawn: those that are not hidden.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut folders, mut files) = (vec![folder.to_owned()], BTreeMap::new());
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with('.') {
                continue;
            }
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_owned();
                    files.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
    }
    files
}

/// Everything below a folder as text, hidden or not.
fn texts(folder: &Path) -> String {
    let (mut folders, mut text) = (vec![folder.to_owned()], String::new());
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => text += &String::from_utf8_lossy(&std::fs::read(path).unwrap()),
            }
        }
    }
    text
}

/// The table without what it took, which differs from run to run, and without the folder.
fn table(path: &Path, out: &str) -> Vec<Json> {
    let text = std::fs::read_to_string(path)
        .unwrap()
        .replace(&format!("{out}/"), "");
    let mut rows: Vec<Json> = serde_json::from_str(&text).unwrap();
    for row in &mut rows {
        row.as_object_mut()
            .unwrap()
            .retain(|name, _| name != "seconds" && name != "unet_calls");
    }
    rows
}

fn file() -> String {
    root().join("workflows/vanilla.yaml").display().to_string()
}

/// A sweep of 12 cells: two values of guidance by six seeds.
fn sweep<'a>(file: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["sweep", file, "--out", out, "--set", "steps=3"];
    all.extend([
        "--over",
        "guidance=3,4",
        "--over",
        "seed=1..7",
        "--sheet",
        "sheet.png",
    ]);
    all.extend(more);
    all
}

const CELLS: usize = 12;
/// Three steps of two calls each.
const CALLS: u64 = CELLS as u64 * 6;

/// The one run in a store.
fn run_of(store: &Path) -> PathBuf {
    let mut runs = std::fs::read_dir(store.join("runs")).unwrap();
    let run = runs.next().unwrap().unwrap().path();
    assert!(runs.next().is_none());
    run
}

/// What workers said of the chunks that are done.
fn done(store: &Path) -> Vec<Json> {
    let mut found = Vec::new();
    // Without a claim there is no such folder.
    for chunk in std::fs::read_dir(run_of(store).join("state"))
        .into_iter()
        .flatten()
    {
        for entry in std::fs::read_dir(chunk.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            if path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("done.")
            {
                found.push(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap());
            }
        }
    }
    found
}

/// Submits a sweep for workers that the test starts itself.
fn submit(folder: &Path, more: &[&str]) -> PathBuf {
    let file = file();
    let mut all = sweep(&file, "shared", &["--on", "command", "--workers", "2"]);
    all.extend(more);
    let output = retouch(folder, 0, &all);
    let store = folder.join("shared/.retouch-store");
    let line = said(&output);
    assert!(
        line.contains(" worker ") && line.contains(&store.display().to_string()),
        "{line}"
    );
    store
}

fn worker(folder: &Path, store: &Path, more: &[&str]) -> Command {
    let store = store.display().to_string();
    let mut all = vec!["worker", "last", "--store", &store, "--threads", "1"];
    all.extend(more);
    command(folder, &all)
}

/// Starts a worker, and returns once it began to draw its second chunk: one is done then.
fn working(mut command: Command) -> Child {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut chunks = 0;
    while chunks < 2 {
        let line = lines
            .next()
            .expect("it ended before its second chunk")
            .unwrap();
        chunks += usize::from(line.starts_with("chunk "));
    }
    // What else it says is not lost in a pipe that nobody reads.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn signal(child: &Child, signal: i32) {
    let id = child.id().try_into().unwrap();
    // SAFETY: it is a child that was not waited for.
    let sent = unsafe { libc::kill(id, signal) };
    assert_eq!(sent, 0);
}

/// The files below a folder, and the rows of a table.
type Made = (BTreeMap<PathBuf, Vec<u8>>, Vec<Json>);

/// What one machine makes of the same sweep: its files and its table. It is made once for all tests.
fn alone() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = file();
        let more = ["--no-cache", "--table", "one.json", "--quiet"];
        retouch(folder.path(), 0, &sweep(&file, "one", &more));
        let files = files(&folder.path().join("one"));
        assert_eq!(files.len(), 2 * CELLS + 1);
        (files, table(&folder.path().join("one.json"), "one"))
    })
}

#[test]
fn what_a_store_lost_is_told_and_not_computed_by_who_collects() {
    let folder = tempfile::tempdir().unwrap();
    let file = file();
    let all = ["--on", "local", "--workers", "1", "--no-cache", "--quiet"];
    retouch(folder.path(), 0, &sweep(&file, "out", &all));
    let whole = files(&folder.path().join("out"));
    let values = files(&folder.path().join("out/.retouch-store/values"));
    let (value, bytes) = values.iter().next().unwrap();
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let value = folder.path().join("out/.retouch-store/values").join(value);
    std::fs::write(&value, damaged).unwrap();
    let store = folder.path().join("out/.retouch-store");
    let store = store.to_str().unwrap();
    let collect = [
        "sweep", "collect", "--store", store, "--out", "again", "--json",
    ];
    let output = retouch(folder.path(), 1, &collect);
    assert!(
        told(&output).contains("cannot be read: its checksum"),
        "{}",
        told(&output)
    );
    assert!(said(&output).contains("R1404"), "{}", said(&output));
    let began = |line: &&str| line.contains("node_started") && line.contains("\"op\":\"sample\"");
    assert_eq!(said(&output).lines().find(began), None);
    std::fs::write(&value, bytes).unwrap();
    retouch(folder.path(), 0, &collect);
    assert!(files(&folder.path().join("again")) == whole);
}

#[test]
fn two_workers_of_this_machine_make_the_bytes_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, rows) = alone();
    let file = file();
    let all = sweep(
        &file,
        "two",
        &[
            "--on",
            "local",
            "--workers",
            "2",
            "--table",
            "two.json",
            "--json",
            "--no-cache",
        ],
    );
    let output = retouch(folder.path(), 0, &all);
    assert!(files(&folder.path().join("two")) == *expected);
    assert_eq!(table(&folder.path().join("two.json"), "two"), *rows);
    let events: Vec<Json> = said(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let finished = events
        .iter()
        .filter(|event| event["event"] == "cell_finished");
    assert_eq!(finished.count(), CELLS);
    // Nothing was drawn here.
    let ended = events
        .iter()
        .find(|event| event["event"] == "run_finished")
        .unwrap();
    assert_eq!(ended["counters"].get("unet_calls"), None, "{ended}");
    // Cells of one seed and two values of guidance share no step, so no call is made twice.
    let store = folder.path().join("two/.retouch-store");
    let results = done(&store);
    assert!(results.len() >= 6, "{} chunks", results.len());
    let calls: u64 = results
        .iter()
        .map(|result| result["unet_calls"].as_u64().unwrap())
        .sum();
    assert_eq!(calls, CALLS);
    // It is known afterwards, and collected elsewhere.
    let status = retouch(
        folder.path(),
        0,
        &["sweep", "status", "last", "--out", "two", "--json"],
    );
    let status: Json = serde_json::from_str(&said(&status)).unwrap();
    assert_eq!(
        (&status["done"], &status["open"]),
        (&CELLS.into(), &0.into()),
        "{status}"
    );
    let store = store.display().to_string();
    retouch(
        folder.path(),
        0,
        &[
            "sweep", "collect", "last", "--store", &store, "--out", "again", "--quiet",
        ],
    );
    assert!(files(&folder.path().join("again")) == *expected);
    // Collecting twice changes nothing.
    let output = retouch(
        folder.path(),
        0,
        &[
            "sweep", "collect", "last", "--store", &store, "--out", "again", "--quiet",
        ],
    );
    assert!(
        said(&output)
            .lines()
            .filter(|line| !line.starts_with("table"))
            .all(|line| line.ends_with("(unchanged)")),
        "{}",
        said(&output)
    );
}

#[test]
fn a_worker_that_is_killed_costs_one_chunk_and_another_makes_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, _) = alone();
    let store = submit(folder.path(), &["--expiry", "5"]);
    let mut first = working(worker(folder.path(), &store, &["--no-cache"]));
    first.kill().unwrap();
    first.wait().unwrap();
    let before = done(&store).len();
    assert!(before >= 1);
    // What is there is collected, and what is missing is told.
    let output = retouch(
        folder.path(),
        1,
        &["sweep", "collect", "--out", "shared", "--quiet"],
    );
    assert!(
        told(&output).contains("are not drawn yet"),
        "{}",
        told(&output)
    );
    let part = files(&folder.path().join("shared"));
    let pictures = part
        .iter()
        .filter(|(name, _)| name.as_path() != Path::new("sheet.png"));
    assert!(
        pictures.clone().count() >= 2
            && pictures
                .clone()
                .all(|(name, bytes)| expected[name] == *bytes)
    );
    ends(
        &mut worker(folder.path(), &store, &["--no-cache", "--quiet"]),
        0,
    );
    let results = done(&store);
    let calls: u64 = results
        .iter()
        .map(|result| result["unet_calls"].as_u64().unwrap())
        .sum();
    // What the killed worker had finished of its chunk is not drawn again.
    assert!(calls <= CALLS, "{calls}");
    let workers: std::collections::BTreeSet<&str> = results
        .iter()
        .map(|result| result["worker"].as_str().unwrap())
        .collect();
    assert_eq!(workers.len(), 2);
    retouch(
        folder.path(),
        0,
        &["sweep", "collect", "--out", "shared", "--quiet"],
    );
    assert!(
        files(&folder.path().join("shared")) == *expected,
        "the sheet with blanks was replaced"
    );
}

#[test]
fn a_worker_that_is_told_to_stop_gives_back_its_chunk_at_once() {
    let folder = tempfile::tempdir().unwrap();
    // A claim would hold for an hour: nobody could wait for its end.
    let store = submit(folder.path(), &["--expiry", "3600"]);
    for told in [libc::SIGUSR2, libc::SIGTERM] {
        let mut child = working(worker(folder.path(), &store, &[]));
        signal(&child, told);
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
    ends(&mut worker(folder.path(), &store, &["--quiet"]), 0);
    let output = retouch(folder.path(), 0, &["sweep", "status", "--out", "shared"]);
    assert!(
        said(&output).contains("cells    12 done, 0 failed, 0 claimed, 0 open"),
        "{}",
        said(&output)
    );
    retouch(
        folder.path(),
        0,
        &["sweep", "collect", "--out", "shared", "--quiet"],
    );
    assert!(files(&folder.path().join("shared")) == alone().0);
}

#[test]
fn a_run_is_cancelled_and_resumed_from_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let store = submit(folder.path(), &[]);
    let shown = store.display().to_string();
    let elsewhere = tempfile::tempdir().unwrap();
    let of = ["--store", shown.as_str()];
    let run = run_of(&store)
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let cancel = ["sweep", "cancel", &run[..17], "--json"];
    let output = retouch(elsewhere.path(), 0, &[&cancel, &of[..]].concat());
    let line: Json = serde_json::from_str(&said(&output)).unwrap();
    assert_eq!(line["cancelled"], true, "{line}");
    let output = ends(&mut worker(folder.path(), &store, &[]), 0);
    assert!(
        told(&output).contains("the run was cancelled"),
        "{}",
        told(&output)
    );
    assert!(done(&store).is_empty());
    let output = retouch(
        elsewhere.path(),
        1,
        &[&["sweep", "collect", "last"], &of[..]].concat(),
    );
    assert!(
        told(&output).contains("no worker has begun") || told(&output).contains("not drawn yet"),
        "{}",
        told(&output)
    );
    // What workers are started with is handed on, and what is for another place is refused.
    let resume = ["sweep", "resume", &run, "--quiet"];
    let handed = [
        "--on",
        "command",
        "--cache-dir",
        "kept",
        "--source-store",
        "0",
    ];
    let output = retouch(elsewhere.path(), 0, &[&resume[..], &of, &handed].concat());
    let kept = elsewhere.path().canonicalize().unwrap().join("kept");
    let line = said(&output);
    assert!(
        line.contains(&format!("--cache-dir {}", kept.display())),
        "{line}"
    );
    assert!(line.contains("--source-store 0 --quiet"), "{line}");
    let elsewhere_only = ["--on", "local", "--at-once", "3"];
    let output = retouch(
        elsewhere.path(),
        2,
        &[&resume[..], &of, &elsewhere_only].concat(),
    );
    assert!(
        told(&output).contains("are for `--on slurm`"),
        "{}",
        told(&output)
    );
    // Elsewhere too: the run's files are at their paths.
    let output = retouch(
        elsewhere.path(),
        0,
        &[
            &[
                "sweep",
                "resume",
                &run,
                "--on",
                "local",
                "--workers",
                "1",
                "--out",
                "here",
                "--quiet",
            ],
            &of[..],
        ]
        .concat(),
    );
    assert!(
        said(&output).lines().count() >= 2 * CELLS,
        "{}",
        said(&output)
    );
    assert_eq!(files(&elsewhere.path().join("here")).len(), 2 * CELLS + 1);
    let output = retouch(
        elsewhere.path(),
        0,
        &[&["sweep", "resume", &run, "--on", "command"], &of[..]].concat(),
    );
    assert!(
        told(&output).contains("nothing is left to draw"),
        "{}",
        told(&output)
    );
}

/// A workflow of two photos, one of which is damaged inside: its header is whole, so that is found out when it is read.
fn with_a_broken_photo(folder: &Path) {
    let mut photo = std::fs::read(root().join("references/teddy/01.png")).unwrap();
    std::fs::write(folder.join("whole.png"), &photo).unwrap();
    let middle = photo.len() / 2;
    photo[middle] ^= 0xff;
    std::fs::write(folder.join("bad.png"), &photo).unwrap();
    std::fs::write(
        folder.join("wf.yaml"),
        "schema: retouch/v1\nname: photos\nparams:\n  photo: {type: path, default: whole.png}\n  size: {type: int, default: 8}\nnodes:\n  load: {op: load_image, path: $params.photo}\n  small: {op: resize_image, image: $load, width: $params.size}\noutputs:\n  small: {value: $small, save: \"{size}.png\"}\nsweep: {matrix: {photo: [whole.png, bad.png], size: [8, 16]}, grid: {save: \"sheet.png\"}}\n",
    )
    .unwrap();
}

#[test]
fn cells_that_fail_keep_their_error_and_their_log_and_are_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    with_a_broken_photo(folder.path());
    let output = retouch(
        folder.path(),
        1,
        &[
            "sweep",
            "wf.yaml",
            "--on",
            "local",
            "--workers",
            "1",
            "--out",
            "out",
            "--table",
            "t.json",
        ],
    );
    assert!(
        told(&output).contains("2 of 4 cells failed, 0 are not drawn yet"),
        "{}",
        told(&output)
    );
    let rows = table(&folder.path().join("t.json"), "out");
    let statuses: Vec<&str> = rows
        .iter()
        .map(|row| row["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["done", "done", "failed", "failed"]);
    assert!(
        rows[2]["error"].as_str().unwrap().contains("load"),
        "{}",
        rows[2]
    );
    let output = retouch(folder.path(), 0, &["sweep", "logs"]);
    let logs = said(&output);
    assert!(
        logs.contains("cell 3: ")
            && logs.contains("\"event\":\"node_failed\"")
            && logs.contains("\"time\":\""),
        "{logs}"
    );
    let output = retouch(folder.path(), 0, &["sweep", "logs", "--cell", "1"]);
    assert!(
        said(&output).contains("\"event\":\"node_finished\""),
        "{}",
        said(&output)
    );
    retouch(folder.path(), 2, &["sweep", "logs", "--cell", "5"]);
    // Asked for twice before a worker comes, they are tried once.
    for tried in [2, 0] {
        let all = ["sweep", "resume", "--retry-failed", "--on", "command"];
        let output = retouch(folder.path(), 0, &all);
        let says = format!("{tried} cells that failed are tried again");
        assert!(told(&output).contains(&says), "{}", told(&output));
    }
    // Nothing has changed, so they fail again; the others are not touched.
    let output = retouch(
        folder.path(),
        1,
        &[
            "sweep",
            "resume",
            "--retry-failed",
            "--on",
            "local",
            "--workers",
            "1",
        ],
    );
    assert!(
        told(&output).contains("0 cells that failed are tried again"),
        "{}",
        told(&output)
    );
    let status = retouch(folder.path(), 0, &["sweep", "status", "--json"]);
    let status: Json = serde_json::from_str(&said(&status)).unwrap();
    assert_eq!(
        (&status["done"], &status["failed"]),
        (&2.into(), &2.into()),
        "{status}"
    );
    // With another photo it is another sweep, and workers say so.
    std::fs::copy(
        folder.path().join("whole.png"),
        folder.path().join("bad.png"),
    )
    .unwrap();
    let store = folder.path().join("out/.retouch-store");
    let output = ends(&mut worker(folder.path(), &store, &[]), 1);
    assert!(
        told(&output).contains("not what it was when the run was submitted"),
        "{}",
        told(&output)
    );
}

#[test]
fn the_report_of_all_cells_is_made_when_the_run_is_collected() {
    let folder = tempfile::tempdir().unwrap();
    let photo = |name: &str| {
        root()
            .join("references/teddy")
            .join(name)
            .display()
            .to_string()
    };
    // What is measured and shown is saved nowhere else: workers put it into the store for the report.
    let workflow = format!(
        "schema: retouch/v1\nname: t\nparams:\n  method: {{type: string, default: a}}\n  photo: {{type: path, default: '{}'}}\nnodes:\n  photo: {{op: load_image, path: $params.photo}}\n  \
         mask: {{op: load_mask, path: '{}'}}\n  other: {{op: load_image, path: '{}'}}\n  \
         look: {{op: look, image: $other, mask: $mask, references: $photo, reference_masks: $mask}}\n  \
         scores: {{op: scores, subject: s, method: '{{method}}', prompt: p, seed: 1, tables: [$look]}}\n\
         outputs:\n  scores: {{value: $scores}}\n  picture: {{value: $photo}}\n\
         sweep:\n  matrix: {{method: [a, b]}}\n  report: {{tables: [scores], images: picture, save: [r.html, r.csv]}}\n",
        photo("01.png"),
        photo("01-mask.png"),
        photo("02.png"),
    );
    std::fs::write(folder.path().join("t.yaml"), workflow).unwrap();
    let all = |out| vec!["sweep", "t.yaml", "--out", out, "--quiet", "--no-cache"];
    retouch(folder.path(), 0, &all("one"));
    let expected = files(&folder.path().join("one"));
    assert_eq!(expected.len(), 2);
    let more = ["--on", "local", "--workers", "1"];
    retouch(folder.path(), 0, &[&all("two")[..], &more].concat());
    assert!(files(&folder.path().join("two")) == expected);
    // One part of it by its name.
    let more = ["report.csv", "--on", "local", "--workers", "1"];
    retouch(folder.path(), 0, &[&all("three")[..], &more].concat());
    let part = files(&folder.path().join("three"));
    assert_eq!(part.len(), 1);
    assert!(part.iter().all(|(name, bytes)| expected[name] == *bytes));
}

/// The codes of what goes wrong, as programs read them: R1406, R1407 and the like.
#[track_caller]
fn code(output: &Output) -> String {
    let last = said(output);
    let last: Json = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    last["code"].as_str().unwrap().to_owned()
}

#[test]
fn what_cannot_be_relied_on_is_refused_with_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = file();
    let with = |store: &str, variables: &[(&str, &str)]| {
        let mut all = sweep(&file, "shared", &["--on", "command", "--json", "--store"]);
        all.push(store);
        let mut command = command(folder.path(), &all);
        command.envs(variables.iter().copied());
        ends(&mut command, 1)
    };
    std::fs::write(folder.path().join("taken"), "a file").unwrap();
    assert_eq!(code(&with("taken", &[])), "R1403");
    let server = s3::Server::start();
    let endpoint = server.endpoint();
    let variables = [
        ("AWS_ACCESS_KEY_ID", s3::KEY),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
    ];
    server
        .vices
        .ignores
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let output = with("s3://bucket/lab", &variables);
    assert!(
        code(&output) == "R1403" && told(&output).contains("s3://bucket/lab ignores the condition"),
        "{}",
        told(&output)
    );
    server
        .vices
        .refuses
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let output = with("s3://bucket/lab", &variables);
    assert_eq!(code(&output), "R1401");
    assert!(!format!("{}{}", said(&output), told(&output)).contains(s3::KEY));
    let unreachable = [
        &variables[..4],
        &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9")],
    ]
    .concat();
    assert_eq!(code(&with("s3://bucket/lab", &unreachable)), "R1402");
    // A password in an address is not repeated.
    let mut all = sweep(&file, "shared", &["--on", "command", "--json"]);
    all.extend(["--store", "s3://key:password@bucket/lab"]);
    let output = retouch(folder.path(), 2, &all);
    assert!(!format!("{}{}", said(&output), told(&output)).contains("password"));
    // There is no Slurm on the path.
    let all = sweep(
        &file,
        "slurm",
        &["--on", "slurm", "--json", "--workers", "2"],
    );
    let mut command = command(folder.path(), &all);
    assert_eq!(code(&ends(command.env("PATH", folder.path()), 1)), "R1407");
    let output = retouch(
        folder.path(),
        2,
        &["sweep", "status", "2030", "--out", "slurm", "--json"],
    );
    assert_eq!(code(&output), "R1405");
    let store = folder.path().join("slurm/.retouch-store");
    std::fs::write(run_of(&store).join("run.json"), "{}").unwrap();
    let output = retouch(
        folder.path(),
        1,
        &["sweep", "status", "--out", "slurm", "--json"],
    );
    assert_eq!(code(&output), "R1404");
}

#[test]
fn machines_of_two_kinds_do_not_share_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = submit(folder.path(), &[]);
    std::fs::write(run_of(&store).join("numerics"), "cuda/f16/flash").unwrap();
    let output = ends(&mut worker(folder.path(), &store, &[]), 1);
    assert!(
        told(&output).contains("computes with `cpu/f32/"),
        "{}",
        told(&output)
    );
    assert!(done(&store).is_empty());
}

#[test]
fn slurm_is_given_one_array_and_the_script_can_be_seen_before() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("lab.yaml"),
        "sbatch: [--partition=gpu]\nsetup: [module load cuda]\n",
    )
    .unwrap();
    let file = file();
    let more = [
        "--on",
        "slurm",
        "--workers",
        "3",
        "--at-once",
        "2",
        "--dry-run",
        "--profile",
        "lab.yaml",
        "--sbatch",
        "--time 1:00:00",
    ];
    let output = retouch(folder.path(), 0, &sweep(&file, "slurm", &more));
    let script = said(&output);
    for line in [
        "#SBATCH --array=0-2%2",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=1:00:00",
        "module load cuda",
    ] {
        assert!(script.lines().any(|one| one == line), "{line}\n{script}");
    }
    assert!(
        !folder.path().join("slurm/.retouch-store/runs").exists(),
        "nothing is written"
    );
    let output = retouch(
        folder.path(),
        0,
        &sweep(&file, "local", &["--on", "local", "--dry-run"]),
    );
    assert!(told(&output).contains("12 cells in"), "{}", told(&output));
    assert!(!folder.path().join("local/.retouch-store/runs").exists());
    for (more, says) in [
        (
            &["--on", "local", "--sbatch", "--time=1"][..],
            "are for `--on slurm`",
        ),
        (&["--on", "local", "--resume"], "`retouch sweep resume RUN`"),
        (
            &["--on", "local", "--cells", "1/2"],
            "`--cells` does not go with `--on`",
        ),
        (
            &["--on", "slurm", "--profile", "none.yaml"],
            "none.yaml cannot be read",
        ),
        (&["--on", "slurm", "--sbatch", "x"], "belongs to no option"),
        (
            &["--on", "slurm", "--sbatch", "--job-name=mine"],
            "the jobs of a run have its name",
        ),
        (&["--cells", "3/2"], "expected a share such as 1/4"),
    ] {
        let output = retouch(folder.path(), 2, &sweep(&file, "slurm", more));
        assert!(told(&output).contains(says), "{}", told(&output));
    }
}

/// Against the server of `tests/cluster/moto.sh` where that runs, else against one of the tests' own.
#[test]
fn a_run_in_a_bucket_is_the_same_and_no_key_is_written_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, _) = alone();
    let endpoint =
        std::env::var("RETOUCH_TEST_S3").unwrap_or_else(|_| s3::Server::start().endpoint());
    let environment = s3::environment(&endpoint);
    let base = format!("s3://bucket/far-{}", std::process::id());
    let (lab, cache) = (format!("{base}/lab"), format!("{base}/cache"));
    let file = file();
    let more = [
        "--on",
        "local",
        "--workers",
        "2",
        "--store",
        &lab,
        "--remote-cache",
        &cache,
    ];
    let mut command = command(folder.path(), &sweep(&file, "two", &more));
    command.envs(&environment.0).env("RETOUCH_LOG", "trace");
    let output = ends(&mut command, 0);
    assert!(files(&folder.path().join("two")) == *expected);
    // All that was written and said.
    let place = retouch_cluster::Place::parse(&base).unwrap();
    let store = retouch_cluster::Store::open_in(&place, &environment).unwrap();
    let names: Vec<String> = (store.list("").unwrap().into_iter())
        .map(|one| one.name)
        .collect();
    let mut all = [said(&output), told(&output), texts(folder.path())].join("\n");
    for name in &names {
        all += &String::from_utf8_lossy(&store.get(name).unwrap().unwrap());
    }
    assert!(!all.contains(s3::KEY) && !all.contains(s3::SECRET));
    let below = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    assert!(
        below("lab/values/") >= 2 * CELLS && below("cache/values/") > 2 * CELLS,
        "{names:?}"
    );
}

#[test]
fn shares_of_the_cells_in_one_folder_keep_apart_and_are_resumed_together() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, _) = alone();
    let file = file();
    // Both at a time, into one folder.
    let shares: Vec<Child> = ["1/2", "2/2"]
        .map(|cells| {
            let all = sweep(
                &file,
                "shares",
                &["--no-cache", "--quiet", "--cells", cells],
            );
            command(folder.path(), &all)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .into();
    for mut share in shares {
        assert!(share.wait().unwrap().success());
    }
    let there = files(&folder.path().join("shares"));
    assert_eq!(there.len(), 2 * CELLS, "no contact sheet yet");
    assert!(there.iter().all(|(name, bytes)| expected[name] == *bytes));
    let all = sweep(&file, "shares", &["--resume", "--json", "--no-cache"]);
    let output = retouch(folder.path(), 0, &all);
    let saved = said(&output)
        .lines()
        .filter(|line| line.contains("\"output_saved\""))
        .count();
    assert_eq!(saved, 1, "the contact sheet alone");
    assert!(files(&folder.path().join("shares")) == *expected);
}

#[test]
fn sweeps_of_one_file_into_one_folder_have_a_journal_each() {
    let folder = tempfile::tempdir().unwrap();
    let file = file();
    let begun = |seeds: &str| {
        let over = format!("seed={seeds}");
        let all = [
            "sweep",
            &file,
            "--out",
            "both",
            "--no-cache",
            "--json",
            "--set",
            "steps=3",
            "--over",
            &over,
        ];
        command(folder.path(), &all)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children = [begun("1..5"), begun("11..15")];
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let logged: usize = std::fs::read_dir(folder.path().join("both"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .map(|path| std::fs::read_to_string(path).unwrap().lines().count() - 1)
        .sum();
    // Unless the one ended before the other began, which then took its place.
    assert!(logged == 16 || logged == 8, "{logged}");
    let all = [
        "sweep",
        &file,
        "--out",
        "both",
        "--no-cache",
        "--json",
        "--resume",
        "--set",
        "steps=3",
        "--over",
        "seed=11..15",
    ];
    let output = retouch(folder.path(), 0, &all);
    assert!(
        !said(&output).contains("\"output_saved\"") || logged == 8,
        "{}",
        said(&output)
    );
}

#[test]
fn a_group_shares_steps_by_the_remote_cache_and_does_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = file();
    let run = |cache: &str, more: &[&str]| {
        let mut all = vec![
            "run",
            file.as_str(),
            "--json",
            "--set",
            "steps=4",
            "--cache-dir",
            cache,
            "--exists",
            "replace",
        ];
        all.extend(more);
        let output = retouch(folder.path(), 0, &all);
        let text = said(&output);
        let events: Vec<Json> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let ended = events
            .iter()
            .find(|event| event["event"] == "run_finished")
            .unwrap();
        let warnings = events
            .iter()
            .filter(|event| event["event"] == "cache_warning")
            .cloned();
        (
            ended["counters"]["unet_calls"].as_u64().unwrap_or(0),
            warnings.collect::<Vec<Json>>(),
            text,
        )
    };
    let remote = ["--remote-cache", "group"];
    assert_eq!(run("first", &remote).0, 8);
    let (calls, warnings, text) = run("second", &remote);
    assert_eq!((calls, warnings.len()), (0, 0));
    assert!(text.contains("\"from\":\"remote\""), "{text}");
    // Steps are shared too: of four that another prompt's end has, none; of the same with another file name, all.
    let more = [&remote[..], &["--set", "guidance=5"]].concat();
    assert_eq!(run("third", &more).0, 8);
    // What only reads writes nothing.
    let before = files(&folder.path().join("group")).len();
    let more = [&remote[..], &["--set", "seed=9", "--remote-read-only"]].concat();
    assert_eq!(run("fourth", &more).0, 8);
    assert_eq!(files(&folder.path().join("group")).len(), before);
    // Damaged entries are told and made again.
    for name in files(&folder.path().join("group")).keys() {
        let path = folder.path().join("group").join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() - 40;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let (calls, warnings, _) = run("fifth", &remote);
    assert_eq!(calls, 8);
    assert!(
        warnings
            .iter()
            .all(|one| one["message"].as_str().unwrap().contains("cannot be used"))
            && !warnings.is_empty()
    );
    assert_eq!(run("sixth", &remote).0, 0, "they were written anew");
    // A store that is not there is told once.
    std::fs::write(folder.path().join("file"), "").unwrap();
    let mut all = vec![
        "run",
        file.as_str(),
        "--set",
        "steps=4",
        "--cache-dir",
        "seventh",
        "--remote-cache",
        "file/cache",
    ];
    all.extend(["--exists", "replace"]);
    let output = retouch(folder.path(), 0, &all);
    assert_eq!(
        told(&output)
            .matches("the remote cache is not used")
            .count(),
        1,
        "{}",
        told(&output)
    );
}

#[test]
fn settings_come_from_the_environment_then_the_file_then_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("c.yaml"),
        "out: drawn\nstore: s3://lab/runs\ndtype: bf16\n",
    )
    .unwrap();
    let mut command = command(folder.path(), &["config", "--json"]);
    command
        .env("RETOUCH_CONFIG", "c.yaml")
        .env("RETOUCH_DTYPE", "f32")
        .env("RETOUCH_STORE", "s3://key:password@b");
    let output = ends(&mut command, 0);
    assert!(!said(&output).contains("password"));
    let settings: Json = serde_json::from_str(&said(&output)).unwrap();
    let of = |name: &str| {
        let all = settings["settings"].as_array().unwrap();
        let one = all.iter().find(|one| one["name"] == name).unwrap();
        (
            one["value"].as_str().unwrap().to_owned(),
            one["from"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(of("device"), ("cpu".into(), "default".into()));
    assert_eq!(of("dtype"), ("f32".into(), "environment".into()));
    assert_eq!(of("out"), ("drawn".into(), "file".into()));
    assert_eq!(of("store"), ("(no address)".into(), "environment".into()));
    // What the file says is what a run does.
    let mut all = vec!["run"];
    let file = file();
    all.extend([file.as_str(), "--set", "steps=1", "--no-cache", "--quiet"]);
    let mut command = self::command(folder.path(), &all);
    ends(
        command
            .env("RETOUCH_CONFIG", "c.yaml")
            .env("RETOUCH_DTYPE", "f32"),
        0,
    );
    assert_eq!(files(&folder.path().join("drawn")).len(), 2);
}
