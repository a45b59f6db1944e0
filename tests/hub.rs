//! Models on a hub: fetched from a server in the test that speaks the hub's protocol, kept as the hub's own programs keep
//! them, and refused when they are not what was announced.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::support::{self, root};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const TOKEN: &str = "hf_secret";

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// What a small file is called: git's name of the blob.
fn small_name(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    let digest = hasher.finalize();
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn small_names_are_those_of_git() {
    // `printf 'hello\n' | git hash-object --stdin`
    assert_eq!(
        small_name(b"hello\n"),
        "ce013625030ba8dba906f756967f9e9ca394464a"
    );
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

/// What a server gives, and how badly.
#[derive(Default)]
struct Rules {
    /// `owner/name` by revision: the commit.
    revisions: BTreeMap<(String, String), String>,
    /// The files of a commit.
    files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Files that are cut off after so many bytes, and how often.
    cut: BTreeMap<String, (usize, usize)>,
    /// Files that the server gives with another content than it announces.
    forged: BTreeMap<String, Vec<u8>>,
    /// Files that it cannot give now.
    busy: Vec<String>,
    /// Files that stop in the middle for as long as they are named here.
    held: Vec<String>,
    /// Whether a token is needed.
    private: bool,
    /// Whether conditions must be accepted.
    gated: bool,
    /// Whether it knows no ranges.
    whole_only: bool,
    /// A tag that it gives in place of a small file's.
    tag: Option<String>,
}

#[derive(Clone)]
struct Hub {
    rules: Arc<Mutex<Rules>>,
    log: Arc<Mutex<Vec<Request>>>,
    port: u16,
    /// Another origin: what a hub keeps large files on.
    store: u16,
}

impl Hub {
    /// A hub with the tiny model of the oracle as `tiny/sd1`.
    fn new() -> Self {
        let (hub, store) = (
            TcpListener::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        let own = Self {
            rules: Arc::default(),
            log: Arc::default(),
            port: hub.local_addr().unwrap().port(),
            store: store.local_addr().unwrap().port(),
        };
        own.publish("tiny/sd1", COMMIT, &tiny());
        for (listener, is_store) in [(hub, false), (store, true)] {
            let own = own.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let own = own.clone();
                    std::thread::spawn(move || own.serve(stream, is_store));
                }
            });
        }
        own
    }

    fn publish(&self, repo: &str, commit: &str, files: &BTreeMap<String, Vec<u8>>) {
        let mut rules = self.rules.lock().unwrap();
        let revision = |name: &str| (repo.to_owned(), name.to_owned());
        rules.revisions.insert(revision("main"), commit.to_owned());
        rules.revisions.insert(revision(commit), commit.to_owned());
        rules.files.insert(commit.to_owned(), files.clone());
    }

    fn rule(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules.lock().unwrap());
    }

    /// What was asked since the last call.
    fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    fn serve(&self, stream: TcpStream, is_store: bool) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.is_empty() {
            return;
        }
        let mut parts = line.split_whitespace();
        let (method, path) = (
            parts.next().unwrap().to_owned(),
            parts.next().unwrap().to_owned(),
        );
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
        }
        let request = Request {
            method,
            path,
            headers,
        };
        self.log.lock().unwrap().push(Request {
            path: if is_store {
                format!("STORE{}", request.path)
            } else {
                request.path.clone()
            },
            ..request.clone()
        });
        let mut answer = Answer {
            stream,
            head: request.method == "HEAD",
        };
        if is_store {
            self.store(&request, &mut answer);
        } else {
            self.hub(&request, &mut answer);
        }
    }

    fn store(&self, request: &Request, answer: &mut Answer) {
        // /COMMIT/path
        let (commit, file) = request.path[1..].split_once('/').unwrap();
        let rules = self.rules.lock().unwrap();
        let content = rules
            .forged
            .get(file)
            .unwrap_or(&rules.files[commit][file])
            .clone();
        let whole_only = rules.whole_only;
        drop(rules);
        self.give(request, file, &content, &[], whole_only, answer);
    }

    fn give(
        &self,
        request: &Request,
        file: &str,
        content: &[u8],
        headers: &[(&str, String)],
        whole_only: bool,
        answer: &mut Answer,
    ) {
        if self
            .rules
            .lock()
            .unwrap()
            .busy
            .iter()
            .any(|busy| busy == file)
        {
            answer.send(503, &[], b"");
            return;
        }
        let range = (request.headers.get("range"))
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse::<usize>()
                    .ok()
            })
            .filter(|_| !whole_only);
        let from = range.unwrap_or(0);
        let mut headers = headers.to_vec();
        if range.is_some() {
            headers.push((
                "Content-Range",
                format!("bytes {from}-{}/{}", content.len() - 1, content.len()),
            ));
        }
        let cut = {
            let mut rules = self.rules.lock().unwrap();
            rules
                .cut
                .get_mut(file)
                .filter(|(_, times)| *times > 0)
                .map(|(after, times)| {
                    *times -= 1;
                    *after
                })
        };
        let status = if range.is_some() { 206 } else { 200 };
        let held = || {
            self.rules
                .lock()
                .unwrap()
                .held
                .iter()
                .any(|held| held == file)
        };
        if held() && !answer.head {
            let (first, rest) = content[from..].split_at((content.len() - from) / 2);
            answer.begin(status, &headers, content.len() - from);
            answer.go_on(first);
            while held() {
                std::thread::sleep(Duration::from_millis(10));
            }
            return answer.go_on(rest);
        }
        answer.send_cut(status, &headers, &content[from..], cut);
    }

    fn hub(&self, request: &Request, answer: &mut Answer) {
        let text = request.path.split('?').next().unwrap();
        let rules = self.rules.lock().unwrap();
        let known = request.headers.get("authorization").map(String::as_str)
            == Some(&format!("Bearer {TOKEN}"));
        if rules.private && !known {
            answer.send(401, &[("X-Error-Code", "RepoNotFound".into())], b"");
            return;
        }
        // A repository that was renamed.
        if let Some(rest) = text.strip_prefix("/api/models/old/name/") {
            let to = format!("/api/models/tiny/sd1/{rest}?blobs=true");
            answer.send(307, &[("Location", to)], b"");
            return;
        }
        if let Some(rest) = text.strip_prefix("/old/name/") {
            answer.send(307, &[("Location", format!("/tiny/sd1/{rest}"))], b"");
            return;
        }
        let no_repo =
            |answer: &mut Answer| answer.send(404, &[("X-Error-Code", "RepoNotFound".into())], b"");
        let has = |repo: &str| rules.revisions.keys().any(|(known, _)| known == repo);
        if let Some(rest) = text.strip_prefix("/api/models/") {
            let (repo, revision) = rest.split_once("/revision/").unwrap();
            let revision = revision.replace("%2F", "/");
            if !has(repo) {
                return no_repo(answer);
            }
            let Some(commit) = rules.revisions.get(&(repo.to_owned(), revision)) else {
                return answer.send(404, &[("X-Error-Code", "RevisionNotFound".into())], b"");
            };
            let siblings: Vec<_> = rules.files[commit]
                .iter()
                .map(|(name, content)| {
                    let mut file = serde_json::json!({"rfilename": name, "size": content.len(),
                        "blobId": small_name(content)});
                    if name.ends_with(".safetensors") {
                        file["lfs"] =
                            serde_json::json!({"sha256": sha256(content), "size": content.len()});
                    }
                    file
                })
                .collect();
            let text = serde_json::json!({"sha": commit, "siblings": siblings}).to_string();
            return answer.send(200, &[], text.as_bytes());
        }
        let Some((repo, rest)) = text[1..].split_once("/resolve/") else {
            return answer.send(400, &[], b"");
        };
        if !has(repo) {
            return no_repo(answer);
        }
        if rules.gated && !known {
            return answer.send(401, &[("X-Error-Code", "GatedRepo".into())], b"");
        }
        let (revision, file) = rest.split_once('/').unwrap();
        let commit = rules.revisions[&(repo.to_owned(), revision.to_owned())].clone();
        let Some(content) = rules.files[&commit].get(file).cloned() else {
            return answer.send(404, &[("X-Error-Code", "EntryNotFound".into())], b"");
        };
        let mut headers = vec![("X-Repo-Commit", commit.clone())];
        if file.ends_with(".safetensors") {
            headers.push(("X-Linked-Etag", format!("\"{}\"", sha256(&content))));
            headers.push(("X-Linked-Size", content.len().to_string()));
            headers.push((
                "Location",
                format!("http://127.0.0.1:{}/{commit}/{file}", self.store),
            ));
            return answer.send(302, &headers, b"");
        }
        let tag = rules.tag.clone().unwrap_or_else(|| small_name(&content));
        headers.push(("ETag", format!("W/\"{tag}\"")));
        let content = rules.forged.get(file).cloned().unwrap_or(content);
        drop(rules);
        self.give(request, file, &content, &headers, false, answer);
    }
}

struct Answer {
    stream: TcpStream,
    head: bool,
}

impl Answer {
    fn send(&mut self, status: u16, headers: &[(&str, String)], body: &[u8]) {
        self.send_cut(status, headers, body, None);
    }

    fn send_cut(
        &mut self,
        status: u16,
        headers: &[(&str, String)],
        body: &[u8],
        cut: Option<usize>,
    ) {
        self.begin(status, headers, body.len());
        if !self.head {
            self.go_on(&body[..cut.unwrap_or(body.len()).min(body.len())]);
        }
    }

    fn begin(&mut self, status: u16, headers: &[(&str, String)], length: usize) {
        let mut text =
            format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.go_on(text.as_bytes());
    }

    fn go_on(&mut self, bytes: &[u8]) {
        // A client that went away has what it wanted.
        let _ = self.stream.write_all(bytes);
        let _ = self.stream.flush();
    }
}

/// The tiny model of the oracle, and files that are never to be fetched.
fn tiny() -> BTreeMap<String, Vec<u8>> {
    let folder = root().join("tests/oracle/data/tiny-sd1");
    let mut files = BTreeMap::new();
    let mut open = vec![folder.clone()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
                continue;
            }
            let path = entry.path();
            let name = path
                .strip_prefix(&folder)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files.insert(
        "unet/diffusion_pytorch_model.bin".into(),
        b"pickle".to_vec(),
    );
    files.insert("README.md".into(), b"# tiny".to_vec());
    files
}

/// A user with a folder of their own.
struct User {
    sandbox: tempfile::TempDir,
    endpoint: String,
}

impl User {
    fn new(hub: &Hub) -> Self {
        let user = Self {
            sandbox: tempfile::tempdir().unwrap(),
            endpoint: format!("http://127.0.0.1:{}", hub.port),
        };
        user.write("wf.yaml", &workflow("hf://tiny/sd1"));
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn repo(&self) -> PathBuf {
        self.path("hf/hub/models--tiny--sd1")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retouch"));
        command
            .args(arguments)
            .current_dir(self.sandbox.path())
            .env("NO_COLOR", "1")
            .env("RETOUCH_CONFIG", "");
        for name in [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "RETOUCH_MODELS",
            "RETOUCH_NO_CACHE",
            "http_proxy",
            "HTTP_PROXY",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HOME", self.path("hf"))
            .env("RETOUCH_CACHE", self.path("cache"));
        command
    }

    fn retouch(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

fn workflow(model: &str) -> String {
    format!(
        "schema: retouch/v1\nname: tiny\nnodes:\n  base: {{op: load_model, path: \"{model}\"}}\n  \
         z: {{op: sample, model: $base, prompt: a cat, steps: 2, seed: 1}}\n  picture: {{op: decode, latent: $z, model: $base}}\n\
         outputs:\n  picture: {{value: $picture, save: picture.png}}\n"
    )
}

fn said(output: &Output) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // What is told is broken into lines; only the words count.
    text.replace('│', " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
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
    for part in with {
        assert!(said.contains(part), "`{part}` in {said}");
    }
    said
}

/// The files whose content was asked for.
fn contents(asked: &[Request]) -> Vec<String> {
    let of_file =
        |request: &&Request| request.method == "GET" && !request.path.starts_with("/api/");
    asked
        .iter()
        .filter(of_file)
        .map(|request| request.path.clone())
        .collect()
}

#[test]
fn a_workflow_runs_from_a_hub_and_draws_what_the_folder_draws() {
    let hub = Hub::new();
    let user = User::new(&hub);
    let folder = root().join("tests/oracle/data/tiny-sd1");
    user.write("here.yaml", &workflow(folder.to_str().unwrap()));
    let here = ["run", "here.yaml", "--out", "here", "--no-provenance"];
    done(&user.retouch(&here));
    // The keys are of what files hold, not of where they lie: nothing is computed again.
    let text = done(&user.retouch(&["run", "wf.yaml", "--out", "there", "--no-provenance"]));
    assert!(text.contains("U-Net calls: 0"), "{text}");
    let picture = |out: &str| std::fs::read(user.path(out).join("picture.png")).unwrap();
    assert!(picture("here") == picture("there"));
    // Only what the loader reads was fetched, and only once.
    let asked = hub.asked();
    let mut got = contents(&asked);
    got.retain(|path| !path.starts_with("STORE"));
    got.sort();
    let count = got.len();
    got.dedup();
    assert_eq!(got.len(), count, "{got:?}");
    assert!(got.iter().any(|path| path.ends_with(UNET)), "{got:?}");
    assert!(
        !got.iter()
            .any(|path| path.ends_with(".bin") || path.ends_with("README.md")),
        "{got:?}"
    );
    assert!(
        text.contains("hf://tiny/sd1@0123456789ab/unet/config.json: fetched"),
        "{text}"
    );
}

#[test]
fn what_is_cached_is_asked_for_once_a_run_and_not_at_all_when_the_commit_is_named() {
    let hub = Hub::new();
    let user = User::new(&hub);
    done(&user.retouch(&["fetch", "wf.yaml"]));
    assert!(!contents(&hub.asked()).is_empty());
    done(&user.retouch(&["run", "wf.yaml"]));
    let asked = hub.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        asked[0].path,
        "/api/models/tiny/sd1/revision/main?blobs=true"
    );
    user.write("pinned.yaml", &workflow(&format!("hf://tiny/sd1@{COMMIT}")));
    done(&user.retouch(&["run", "pinned.yaml"]));
    assert_eq!(hub.asked().len(), 0);
}

#[test]
fn the_cache_is_laid_out_as_the_hubs_python_library_lays_it_out() {
    let hub = Hub::new();
    let user = User::new(&hub);
    done(&user.retouch(&["fetch", "wf.yaml"]));
    let repo = user.repo();
    assert_eq!(
        std::fs::read_to_string(repo.join("refs/main")).unwrap(),
        COMMIT
    );
    let content = &tiny()[UNET];
    let entry = repo.join("snapshots").join(COMMIT).join(UNET);
    assert_eq!(&std::fs::read(&entry).unwrap(), content);
    assert_eq!(
        &std::fs::read(repo.join("blobs").join(sha256(content))).unwrap(),
        content
    );
    let config = tiny()["unet/config.json"].clone();
    assert!(repo.join("blobs").join(small_name(&config)).is_file());
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(&entry).unwrap(),
        Path::new("../../../blobs").join(sha256(content))
    );
    let left: Vec<_> = std::fs::read_dir(repo.join("blobs"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(unix)]
#[test]
fn a_cache_that_python_filled_is_read_offline_without_a_word_to_anybody() {
    let hub = Hub::new();
    let user = User::new(&hub);
    let repo = user.repo();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::create_dir_all(repo.join("blobs")).unwrap();
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (name, content) in tiny() {
        let blob = if name.ends_with(".safetensors") {
            sha256(&content)
        } else {
            small_name(&content)
        };
        std::fs::write(repo.join("blobs").join(&blob), &content).unwrap();
        let entry = repo.join("snapshots").join(COMMIT).join(&name);
        std::fs::create_dir_all(entry.parent().unwrap()).unwrap();
        let up = "../".repeat(2 + name.matches('/').count());
        std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), entry).unwrap();
    }
    done(&user.retouch(&["run", "wf.yaml", "--offline"]));
    done(
        &user
            .command(&["run", "wf.yaml"])
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap(),
    );
    done(&user.retouch(&["check", "wf.yaml"]));
    assert_eq!(hub.asked().len(), 0);
    // With one file less it says which.
    std::fs::remove_file(repo.join("snapshots").join(COMMIT).join(UNET)).unwrap();
    refused(
        &user.retouch(&["run", "wf.yaml", "--offline"]),
        3,
        &["R0324", UNET, "offline"],
    );
    assert_eq!(hub.asked().len(), 0);
    // And with a network it is all that is fetched.
    done(&user.retouch(&["run", "wf.yaml"]));
    assert_eq!(
        contents(&hub.asked())
            .iter()
            .filter(|path| !path.starts_with("STORE"))
            .count(),
        0
    );
}

#[test]
fn a_connection_that_breaks_is_resumed_in_the_same_run() {
    let hub = Hub::new();
    let user = User::new(&hub);
    hub.rule(|rules| {
        rules.cut.insert(UNET.into(), (100_000, 1));
    });
    done(&user.retouch(&["fetch", "wf.yaml"]));
    let asked = hub.asked();
    let ranges: Vec<_> = (asked.iter())
        .filter(|request| request.path.starts_with("STORE") && request.path.ends_with(UNET))
        .map(|request| request.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned())]);
    assert_eq!(
        std::fs::read(user.repo().join("snapshots").join(COMMIT).join(UNET)).unwrap(),
        tiny()[UNET]
    );
}

#[test]
fn an_interrupted_fetch_goes_on_in_the_next_run_where_it_ended() {
    let hub = Hub::new();
    let user = User::new(&hub);
    hub.rule(|rules| {
        rules.cut.insert(UNET.into(), (50_000, 100));
    });
    let text = refused(
        &user.retouch(&["run", "wf.yaml"]),
        3,
        &["R0325", "failed after", UNET, "resumes from there"],
    );
    assert!(!text.contains("no faults"), "{text}");
    let partial = user
        .repo()
        .join("blobs")
        .join(format!("{}.incomplete", sha256(&tiny()[UNET])));
    // Three attempts, each with a piece.
    assert_eq!(std::fs::metadata(&partial).unwrap().len(), 150_000);
    assert!(
        !user
            .repo()
            .join("snapshots")
            .join(COMMIT)
            .join(UNET)
            .exists()
    );
    hub.rule(|rules| rules.cut.clear());
    hub.asked();
    done(&user.retouch(&["run", "wf.yaml"]));
    let asked = hub.asked();
    let unet = asked
        .iter()
        .find(|request| request.path.starts_with("STORE") && request.path.ends_with(UNET));
    assert_eq!(unet.unwrap().headers["range"], "bytes=150000-");
    assert!(!partial.exists());
    // A hub that knows no ranges begins again, and what comes is whole.
    let other = User::new(&hub);
    std::fs::create_dir_all(other.repo().join("blobs")).unwrap();
    let partial = other
        .repo()
        .join("blobs")
        .join(partial.file_name().unwrap());
    std::fs::write(&partial, &tiny()[UNET][..1000]).unwrap();
    hub.rule(|rules| rules.whole_only = true);
    done(&other.retouch(&["run", "wf.yaml"]));
}

#[test]
fn a_file_that_is_not_what_was_announced_is_removed_and_never_read() {
    let hub = Hub::new();
    let user = User::new(&hub);
    let mut forged = tiny()[UNET].clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let (is, promised) = (sha256(&forged), sha256(&tiny()[UNET]));
    hub.rule(|rules| {
        rules.forged.insert(UNET.into(), forged.clone());
    });
    refused(
        &user.retouch(&["run", "wf.yaml"]),
        3,
        &["R0328", &is, &promised],
    );
    let blobs = || -> Vec<String> {
        let entries = std::fs::read_dir(user.repo().join("blobs"))
            .unwrap()
            .flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    assert!(
        !blobs().iter().any(|name| name.starts_with(&promised)),
        "{:?}",
        blobs()
    );
    // Half of a forged file is no good either.
    std::fs::write(
        user.repo()
            .join("blobs")
            .join(format!("{promised}.incomplete")),
        vec![7; 1000],
    )
    .unwrap();
    hub.rule(|rules| rules.forged.clear());
    refused(&user.retouch(&["run", "wf.yaml"]), 3, &["R0328", &promised]);
    done(&user.retouch(&["run", "wf.yaml"]));
    // One that is longer than it was announced is cut off while it comes.
    let other = User::new(&hub);
    hub.rule(|rules| {
        let mut long = tiny()[UNET].clone();
        long.extend_from_slice(&[0; 1 << 20]);
        rules.forged.insert(UNET.into(), long);
    });
    refused(&other.retouch(&["run", "wf.yaml"]), 3, &["R0328", "longer"]);
    assert!(
        !other
            .repo()
            .join("blobs")
            .join(format!("{promised}.incomplete"))
            .exists()
    );
}

#[test]
fn a_small_file_is_compared_with_gits_name_of_it() {
    const CONFIG: &str = "unet/config.json";
    let hub = Hub::new();
    let user = User::new(&hub);
    // Of the announced length, and with another content.
    let mut forged = tiny()[CONFIG].clone();
    let at = forged.iter().position(u8::is_ascii_digit).unwrap();
    forged[at] = if forged[at] == b'1' { b'2' } else { b'1' };
    let (is, promised) = (small_name(&forged), small_name(&tiny()[CONFIG]));
    hub.rule(|rules| {
        rules.forged.insert(CONFIG.into(), forged);
    });
    let blobs = user.repo().join("blobs");
    refused(
        &user.retouch(&["run", "wf.yaml"]),
        3,
        &["R0328", CONFIG, &is, &promised],
    );
    assert!(!blobs.join(&promised).exists());
    assert!(!blobs.join(format!("{promised}.incomplete")).exists());
    // Half of another file is no good either.
    hub.rule(|rules| rules.forged.clear());
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{promised}.incomplete")), "{ ").unwrap();
    refused(&user.retouch(&["run", "wf.yaml"]), 3, &["R0328", &promised]);
    done(&user.retouch(&["run", "wf.yaml"]));
    assert_eq!(
        std::fs::read(blobs.join(&promised)).unwrap(),
        tiny()[CONFIG]
    );
    // What it announces must be what it lists.
    let other = User::new(&hub);
    hub.rule(|rules| rules.tag = Some("0".repeat(40)));
    refused(
        &other.retouch(&["run", "wf.yaml"]),
        3,
        &["R0328", "file listing does not match"],
    );
}

#[test]
fn nothing_is_fetched_unasked_for_a_bundle_or_a_picture_and_no_token_is_sent() {
    let hub = Hub::new();
    let maker = User::new(&hub);
    done(&maker.retouch(&["run", "wf.yaml"]));
    done(&maker.retouch(&["bundle", "wf.yaml"]));
    // Somebody else, who is logged in at the hub.
    let guest = || {
        let guest = User::new(&hub);
        std::fs::create_dir_all(guest.path("hf")).unwrap();
        guest.write("hf/token", TOKEN);
        for (from, to) in [
            ("out/picture.png", "picture.png"),
            ("wf.tar.zst", "wf.tar.zst"),
        ] {
            std::fs::copy(maker.path(from), guest.path(to)).unwrap();
        }
        hub.asked();
        guest
    };
    let with_token = |asked: &[Request]| {
        let shown = |request: &&Request| request.headers.contains_key("authorization");
        asked.iter().filter(shown).count()
    };
    let one = guest();
    for (arguments, exit, parts) in [
        (
            &["replay", "picture.png"][..],
            1,
            &["(11 files, 5.6 MiB)", "the picture picture.png"][..],
        ),
        (
            &["run", "wf.tar.zst"],
            3,
            &["R0324", "the bundle wf.tar.zst", "retouch fetch wf.tar.zst"],
        ),
        (
            &["run", "wf.tar.zst", "--token-for", "tiny/other"],
            3,
            &["R0324"],
        ),
        (
            &["sweep", "wf.tar.zst", "--over", "steps=1,2"],
            2,
            &["R0501"],
        ),
        (&["plan", "wf.tar.zst"], 3, &["R0324"]),
        (&["check", "wf.tar.zst"], 0, &["R0324"]),
        (&["diff", "picture.png", "wf.tar.zst"], 3, &["R0324"]),
    ] {
        let output = one.retouch(arguments);
        refused(&output, exit, parts);
        let asked = hub.asked();
        assert!(asked.is_empty(), "{arguments:?}: {asked:?}");
    }
    let text = said(&one.retouch(&["run", "wf.tar.zst"]));
    assert!(
        text.contains("--fetch")
            && text.contains("--token-for tiny/sd1")
            && text.contains("11 files"),
        "{text}"
    );
    // The user may want it; the token is for repositories that the user names.
    for arguments in [
        &["run", "wf.tar.zst", "--fetch"][..],
        &["replay", "picture.png", "--fetch"],
        &["fetch", "wf.tar.zst"],
    ] {
        let user = guest();
        done(&user.retouch(arguments));
        let asked = hub.asked();
        assert!(contents(&asked).len() >= 11, "{arguments:?}");
        assert_eq!(with_token(&asked), 0, "{arguments:?}: {asked:?}");
        // What is in the cache needs no consent, and nobody is asked about it.
        done(&user.retouch(&["run", "wf.tar.zst"]));
        done(&user.retouch(&["replay", "picture.png"]));
        let asked = hub.asked();
        assert!(asked.is_empty(), "{arguments:?}: {asked:?}");
    }
    for arguments in [
        &["run", "wf.tar.zst", "--token-for", "tiny/sd1"][..],
        &["replay", "picture.png", "--token-for", "tiny/sd1"],
        &["fetch", "wf.tar.zst", "--token-for", "tiny/sd1"],
    ] {
        let user = guest();
        done(&user.retouch(arguments));
        let asked = hub.asked();
        let stored = asked.iter().filter(|one| one.path.starts_with("STORE"));
        assert_eq!(
            with_token(&asked),
            asked.len() - stored.count(),
            "{arguments:?}"
        );
    }
    // A private one says what is missing.
    hub.rule(|rules| rules.private = true);
    let user = guest();
    refused(
        &user.retouch(&["run", "wf.tar.zst", "--fetch"]),
        3,
        &["R0327", "your token was not sent", "--token-for tiny/sd1"],
    );
    let user = guest();
    done(&user.retouch(&["run", "wf.tar.zst", "--token-for", "tiny/sd1"]));
    // A workflow file of the user's own is the user's word.
    let user = guest();
    done(&user.retouch(&["run", "wf.yaml"]));
    assert!(with_token(&hub.asked()) > 0);
    // Nothing is fetched offline, whatever is permitted.
    let output = user.retouch(&["run", "wf.tar.zst", "--offline", "--fetch"]);
    refused(&output, 2, &["--offline"]);
    for none in ["tiny", "tiny/sd1@main", "tiny/sd1/unet", "../x"] {
        let output = user.retouch(&["run", "wf.tar.zst", "--token-for", none]);
        refused(&output, 2, &["--token-for"]);
    }
}

#[test]
fn a_repository_that_set_names_is_the_users_choice_also_in_a_bundle() {
    let hub = Hub::new();
    let maker = User::new(&hub);
    let text = workflow("hf://tiny/sd1")
        .replace("\"hf://tiny/sd1\"", "$params.model")
        .replace(
            "nodes:",
            "params: {model: {type: path, default: \"hf://tiny/sd1\"}}\nnodes:",
        );
    maker.write("wf.yaml", &text);
    done(&maker.retouch(&["bundle", "wf.yaml"]));
    let guest = User::new(&hub);
    std::fs::create_dir_all(guest.path("hf")).unwrap();
    guest.write("hf/token", TOKEN);
    std::fs::copy(maker.path("wf.tar.zst"), guest.path("wf.tar.zst")).unwrap();
    hub.asked();
    refused(&guest.retouch(&["run", "wf.tar.zst"]), 3, &["R0324"]);
    assert!(hub.asked().is_empty());
    done(&guest.retouch(&["run", "wf.tar.zst", "--set", "model=hf://tiny/sd1"]));
    let asked = hub.asked();
    let to_hub = |request: &&Request| !request.path.starts_with("STORE");
    let shown = |request: &Request| request.headers.contains_key("authorization");
    assert!(asked.iter().filter(to_hub).count() > 11);
    assert!(asked.iter().filter(to_hub).all(shown), "{asked:?}");
}

#[test]
fn a_bundle_cannot_make_anybody_fetch_more_than_it_says() {
    let hub = Hub::new();
    let maker = User::new(&hub);
    done(&maker.retouch(&["bundle", "wf.yaml"]));
    // At the commit that the bundle names there is another, larger model.
    let mut files = tiny();
    files.get_mut(UNET).unwrap().extend_from_slice(&[0; 4096]);
    hub.publish("tiny/sd1", COMMIT, &files);
    let guest = User::new(&hub);
    std::fs::copy(maker.path("wf.tar.zst"), guest.path("wf.tar.zst")).unwrap();
    hub.asked();
    refused(
        &guest.retouch(&["run", "wf.tar.zst", "--fetch"]),
        3,
        &["R0328", UNET, "it was not fetched"],
    );
    let got = contents(&hub.asked());
    assert!(!got.iter().any(|path| path.ends_with(UNET)), "{got:?}");
}

/// Starts a command on a terminal of its own and waits until it asks; the terminal's other end.
#[cfg(unix)]
fn asked_on_a_terminal(
    user: &User,
    arguments: &[&str],
) -> (
    std::process::Child,
    std::fs::File,
    std::sync::mpsc::Receiver<String>,
) {
    use std::os::fd::FromRawFd;
    use std::ptr::null_mut;
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: both descriptors are written; name, settings and size may be left out.
    let opened = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            null_mut(),
            null_mut(),
            null_mut(),
        )
    };
    assert_eq!(opened, 0);
    // SAFETY: they were just opened, and nothing else owns them.
    let (ours, theirs) = unsafe {
        (
            std::fs::File::from_raw_fd(ours),
            std::fs::File::from_raw_fd(theirs),
        )
    };
    let terminal = || Stdio::from(theirs.try_clone().unwrap());
    let mut command = user.command(arguments);
    command.stdin(terminal()).stderr(terminal());
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let (to, pieces) = std::sync::mpsc::channel();
    let mut screen = ours.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut piece = [0; 1024];
        // To the end, so that the command never waits for the terminal.
        while let Ok(count @ 1..) = screen.read(&mut piece) {
            let _ = to.send(String::from_utf8_lossy(&piece[..count]).into_owned());
        }
    });
    let mut text = String::new();
    while !text.contains("[y/N]") {
        text += &pieces
            .recv_timeout(Duration::from_secs(60))
            .unwrap_or_else(|_| panic!("it does not ask: {text}"));
    }
    (child, ours, pieces)
}

#[cfg(unix)]
#[test]
fn the_question_whether_to_fetch_is_answered_on_the_terminal_or_interrupted() {
    let hub = Hub::new();
    let maker = User::new(&hub);
    done(&maker.retouch(&["bundle", "wf.yaml"]));
    let guest = User::new(&hub);
    std::fs::copy(maker.path("wf.tar.zst"), guest.path("wf.tar.zst")).unwrap();
    hub.asked();
    // The bundle declares no sizes: it is asked whether to list the files, then whether to fetch them.
    for (answer, exit) in [
        (None, 130),
        (Some("n\n"), 3),
        (Some("\u{4}"), 3),
        (Some("y\ny\n"), 0),
    ] {
        let (mut child, mut terminal, screen) = asked_on_a_terminal(&guest, &["run", "wf.tar.zst"]);
        assert!(hub.asked().is_empty());
        match answer {
            Some(answer) => terminal.write_all(answer.as_bytes()).unwrap(),
            None => {
                support::signal(&child, libc::SIGINT);
            }
        }
        let ended = (0..400).find_map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            child.try_wait().unwrap()
        });
        let Some(ended) = ended else {
            child.kill().unwrap();
            let screen: String = screen.try_iter().collect();
            panic!("{answer:?}: it goes on waiting: {screen}");
        };
        assert_eq!(ended.code(), Some(exit), "{answer:?}");
        assert_eq!(hub.asked().is_empty(), exit != 0, "{answer:?}");
    }
}

/// Speaks TLS with the certificate of `tests/tls` in front of a hub; the port.
fn behind_tls(hub: &Hub) -> u16 {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let tls = root().join("tests/tls");
    let certificate = CertificateDer::from_pem_file(tls.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(tls.join("server.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(
        rustls::crypto::ring::default_provider().into(),
    )
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![certificate], key)
    .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, plain) = (listener.local_addr().unwrap().port(), hub.port);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            std::thread::spawn(move || {
                let mut client = BufReader::new(rustls::StreamOwned::new(connection, stream));
                let mut request = String::new();
                // A client that does not trust us sends nothing.
                while !request.ends_with("\r\n\r\n") {
                    if !client.read_line(&mut request).is_ok_and(|count| count > 0) {
                        return;
                    }
                }
                let mut server = TcpStream::connect(("127.0.0.1", plain)).unwrap();
                server.write_all(request.as_bytes()).unwrap();
                let mut answer = Vec::new();
                server.read_to_end(&mut answer).unwrap();
                let _ = client.get_mut().write_all(&answer);
                client.get_mut().conn.send_close_notify();
                let _ = client.get_mut().flush();
            });
        }
    });
    port
}

#[cfg(all(unix, not(target_vendor = "apple")))]
#[test]
fn authorities_that_the_system_trusts_are_trusted_and_no_others() {
    let hub = Hub::new();
    // Small files alone: what is large lies on another server, which speaks no TLS here.
    let mut files = tiny();
    files.retain(|name, _| !name.ends_with(".safetensors"));
    hub.publish("tiny/sd1", COMMIT, &files);
    let mut user = User::new(&hub);
    user.endpoint = format!("https://localhost:{}", behind_tls(&hub));
    let trusting = |authority: &Path| {
        let mut command = user.command(&["run", "wf.yaml"]);
        command.env("SSL_CERT_FILE", authority);
        command.env_remove("SSL_CERT_DIR").output().unwrap()
    };
    // Another authority than the one that signed.
    let tls = root().join("tests/tls");
    refused(&trusting(&tls.join("server.pem")), 3, &["R0325"]);
    assert!(hub.asked().is_empty(), "nothing was sent to a stranger");
    // No authority at all: those that come with the program, which do not know it either.
    refused(&trusting(Path::new("/nothing.pem")), 3, &["R0325"]);
    assert!(hub.asked().is_empty(), "nothing was sent to a stranger");
    refused(&trusting(&tls.join("authority.pem")), 3, &["R0322"]);
    // The list lacks the weights; the index says what kind of model it is.
    let asked = hub.asked();
    assert!(
        asked[0].path.starts_with("/api/models/tiny/sd1/"),
        "{asked:?}"
    );
    let index = format!("/tiny/sd1/resolve/{COMMIT}/model_index.json");
    // Of the weights that are missing the configuration says what they would be of.
    let unet = format!("/tiny/sd1/resolve/{COMMIT}/unet/config.json");
    assert_eq!(contents(&asked), [index, unet]);
}

#[test]
fn a_repository_a_revision_and_a_file_that_are_not_there_are_told_apart() {
    let hub = Hub::new();
    let user = User::new(&hub);
    for (model, parts) in [
        ("hf://tiny/none", ["no repository `tiny/none`", "R0326"]),
        ("hf://tiny/sd1@v9", ["no revision `v9`", "R0326"]),
        (
            "hf://tiny/sd1/none.safetensors",
            ["no `none.safetensors`", "R0326"],
        ),
        ("hf://tiny", ["not a path to a model on a hub", "R0329"]),
        (
            "hf://tiny/sd1/../../x",
            ["not a path to a model on a hub", "R0329"],
        ),
    ] {
        user.write("wf.yaml", &workflow(model));
        refused(&user.retouch(&["run", "wf.yaml"]), 3, &parts);
    }
    // A path in a repository is a folder of it.
    let mut files = BTreeMap::new();
    for (name, content) in tiny() {
        files.insert(format!("inner/{name}"), content);
    }
    hub.publish("tiny/deep", OTHER, &files);
    user.write("wf.yaml", &workflow("hf://tiny/deep/inner"));
    done(&user.retouch(&["run", "wf.yaml"]));
    // A repository under its old name.
    user.write("wf.yaml", &workflow("hf://old/name"));
    done(&user.retouch(&["run", "wf.yaml"]));
}

#[test]
fn a_token_is_shown_to_the_hub_alone_and_its_lack_is_explained() {
    let hub = Hub::new();
    let user = User::new(&hub);
    hub.rule(|rules| rules.gated = true);
    refused(
        &user.retouch(&["run", "wf.yaml"]),
        3,
        &["R0327", "gated", "accept them at", "HF_TOKEN"],
    );
    hub.rule(|rules| rules.private = true);
    let text = refused(
        &user.retouch(&["run", "wf.yaml"]),
        3,
        &["R0327", "private or gated", "HF_TOKEN"],
    );
    assert!(!text.contains(TOKEN));
    let wrong = user
        .command(&["run", "wf.yaml"])
        .env("HF_TOKEN", "hf_wrong")
        .output()
        .unwrap();
    let text = refused(&wrong, 3, &["R0327", "may not read"]);
    assert!(!text.contains("hf_wrong"));
    let odd = user
        .command(&["run", "wf.yaml"])
        .env("HF_TOKEN", "hf\nX: y")
        .output()
        .unwrap();
    refused(&odd, 3, &["R1101", "HF_TOKEN"]);
    hub.asked();
    // As the hub's `login` leaves it.
    std::fs::create_dir_all(user.path("hf")).unwrap();
    user.write("hf/token", &format!("{TOKEN}\n"));
    done(&user.retouch(&["run", "wf.yaml"]));
    let asked = hub.asked();
    let shown = |request: &&Request| request.headers.contains_key("authorization");
    let (store, own): (Vec<_>, Vec<_>) = asked.iter().partition(|r| r.path.starts_with("STORE"));
    assert!(!own.is_empty() && own.iter().all(shown), "{own:?}");
    assert!(store.len() >= 3 && !store.iter().any(shown), "{store:?}");
}

#[test]
fn without_a_network_it_says_so_and_what_is_cached_is_used() {
    let hub = Hub::new();
    let user = User::new(&hub);
    let mut alone = User::new(&hub);
    // A port that nobody listens on any more.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    alone.endpoint = format!("http://127.0.0.1:{port}");
    refused(
        &alone.retouch(&["run", "wf.yaml"]),
        3,
        &["R0325", "does not answer", "--offline"],
    );
    refused(
        &alone.retouch(&["run", "wf.yaml", "--offline"]),
        3,
        &["R0324", "nothing is fetched offline"],
    );
    hub.rule(|rules| rules.busy.push("unet/config.json".into()));
    refused(
        &user.retouch(&["run", "wf.yaml"]),
        3,
        &["R0325", "status 503", "try again later"],
    );
    hub.rule(|rules| rules.busy.clear());
    done(&user.retouch(&["fetch", "wf.yaml"]));
    let output = user
        .command(&["run", "wf.yaml"])
        .env("HF_ENDPOINT", &alone.endpoint)
        .output()
        .unwrap();
    let text = done(&output);
    assert!(
        text.contains("is used as it is in the cache, at 0123456789ab"),
        "{text}"
    );
    let bad = user
        .command(&["run", "wf.yaml"])
        .env("HF_ENDPOINT", "hub.example")
        .output()
        .unwrap();
    refused(&bad, 3, &["R1101", "HF_ENDPOINT"]);
}

#[test]
fn check_and_plan_ask_nobody_and_say_what_is_not_fetched() {
    let hub = Hub::new();
    let user = User::new(&hub);
    let text = done(&user.retouch(&["check", "wf.yaml"]));
    assert!(
        text.contains("R0324")
            && text.contains("not fetched yet")
            && text.contains("retouch fetch"),
        "{text}"
    );
    refused(
        &user.retouch(&["plan", "wf.yaml"]),
        3,
        &["R0324", "retouch fetch"],
    );
    // Another fault of the workflow is told all the same.
    user.write(
        "odd.yaml",
        &workflow("hf://tiny/sd1").replace("steps: 2", "steps: -2"),
    );
    refused(&user.retouch(&["check", "odd.yaml"]), 3, &["steps"]);
    assert_eq!(hub.asked().len(), 0);
    let text = done(&user.retouch(&["fetch", "wf.yaml"]));
    assert!(
        text.contains(&format!("hf://tiny/sd1@{COMMIT} 11 files")),
        "{text}"
    );
    hub.asked();
    let text = done(&user.retouch(&["check", "wf.yaml"]));
    assert!(!text.contains("R0324"), "{text}");
    done(&user.retouch(&["plan", "wf.yaml"]));
    done(&user.retouch(&["fmt", "--check", "wf.yaml"]));
    assert_eq!(hub.asked().len(), 0);
    // What is listed and lost again is told with its size.
    std::fs::remove_file(user.repo().join("snapshots").join(COMMIT).join(UNET)).unwrap();
    let text = done(&user.retouch(&["check", "wf.yaml"]));
    assert!(
        text.contains("R0324") && text.contains(UNET) && text.contains("MiB"),
        "{text}"
    );
}

#[test]
fn an_editor_warns_of_a_model_that_is_not_fetched_and_asks_nobody() {
    let hub = Hub::new();
    let user = User::new(&hub);
    let mut child = user
        .command(&["lsp"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut tell = |value: serde_json::Value| {
        let text = value.to_string();
        write!(stdin, "Content-Length: {}\r\n\r\n{text}", text.len()).unwrap();
    };
    tell(
        serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"processId": null, "rootUri": null, "capabilities": {}}}),
    );
    tell(serde_json::json!({"jsonrpc": "2.0", "method": "initialized", "params": {}}));
    let uri = format!("file://{}", user.path("wf.yaml").display());
    tell(
        serde_json::json!({"jsonrpc": "2.0", "method": "textDocument/didOpen", "params": {"textDocument":
        {"uri": uri, "languageId": "yaml", "version": 1, "text": workflow("hf://tiny/sd1")}}}),
    );
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let found = loop {
        let mut head = String::new();
        assert!(
            reader.read_line(&mut head).unwrap() > 0,
            "the server went away"
        );
        let length = head
            .trim()
            .strip_prefix("Content-Length: ")
            .unwrap()
            .parse()
            .unwrap();
        let (mut blank, mut body) = ([0; 2], vec![0; length]);
        reader.read_exact(&mut blank).unwrap();
        reader.read_exact(&mut body).unwrap();
        let message: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if message["method"] == "textDocument/publishDiagnostics" {
            break message["params"]["diagnostics"].clone();
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found[0]["code"], "R0324");
    assert_eq!(found[0]["severity"], 2, "a warning: {found}");
    assert_eq!(hub.asked().len(), 0);
}

#[test]
fn a_lock_holds_a_model_at_its_commit_until_it_is_written_anew() {
    let hub = Hub::new();
    let user = User::new(&hub);
    done(&user.retouch(&["lock", "wf.yaml"]));
    let text = std::fs::read_to_string(user.path("wf.lock")).unwrap();
    assert!(
        text.contains(&format!(
            "path: \"hf://tiny/sd1/{UNET}\", model: \"hf://tiny/sd1\", commit: \"{COMMIT}\""
        )),
        "{text}"
    );
    // The branch moves on to another model.
    let mut files = tiny();
    let personal = root()
        .join("tests/oracle/data/tiny-sd1-personal")
        .join(UNET);
    files.insert(UNET.into(), std::fs::read(personal).unwrap());
    hub.publish("tiny/sd1", OTHER, &files);
    hub.asked();
    done(&user.retouch(&["run", "wf.yaml", "--locked"]));
    assert_eq!(hub.asked().len(), 0);
    done(&user.retouch(&["lock", "wf.yaml", "--check"]));
    let text = done(&user.retouch(&["lock", "wf.yaml"]));
    assert!(
        text.contains(&format!("hf://tiny/sd1/{UNET}: changed")),
        "{text}"
    );
    let text = std::fs::read_to_string(user.path("wf.lock")).unwrap();
    assert!(text.contains(OTHER) && !text.contains(COMMIT), "{text}");
    // A lock that was tampered with is refused.
    std::fs::write(user.path("wf.lock"), text.replace(OTHER, "../../../etc")).unwrap();
    refused(
        &user.retouch(&["run", "wf.yaml", "--locked"]),
        3,
        &["R0901", "commit"],
    );
}

#[test]
fn a_picture_and_a_bundle_name_the_commit_and_carry_no_model() {
    let hub = Hub::new();
    let user = User::new(&hub);
    done(&user.retouch(&["run", "wf.yaml"]));
    let recipe = done(&user.retouch(&["extract", "out/picture.png"]));
    assert!(
        recipe.contains(&format!("hf://tiny/sd1@{COMMIT}")),
        "{recipe}"
    );
    let text = done(&user.retouch(&["bundle", "wf.yaml", "--with-models"]));
    assert!(
        text.contains("not packed: hf://tiny/sd1 (11 files"),
        "{text}"
    );
    // Elsewhere, when the branch has moved on, both draw the same picture.
    let mut files = tiny();
    let personal = root()
        .join("tests/oracle/data/tiny-sd1-personal")
        .join(UNET);
    files.insert(UNET.into(), std::fs::read(personal).unwrap());
    hub.publish("tiny/sd1", OTHER, &files);
    let other = User::new(&hub);
    let copy = |from: &str, to: &str| std::fs::copy(user.path(from), other.path(to)).unwrap();
    copy("out/picture.png", "picture.png");
    copy("wf.tar.zst", "wf.tar.zst");
    let text = done(&other.retouch(&["replay", "picture.png", "--fetch"]));
    assert!(text.contains("same"), "{text}");
    done(&other.retouch(&["run", "wf.tar.zst", "--fetch"]));
    let pixels = |path: PathBuf| image::open(path).unwrap().to_rgb8();
    assert!(pixels(user.path("out/picture.png")) == pixels(other.path("out/picture.png")));
    // The workflow as it is now is of another model.
    done(&other.retouch(&["run", "wf.yaml", "--out", "new"]));
    assert!(pixels(user.path("out/picture.png")) != pixels(other.path("new/picture.png")));
}

#[test]
fn a_pinned_digest_is_compared_before_anything_is_read_and_is_in_no_key() {
    let hub = Hub::new();
    let user = User::new(&hub);
    done(&user.retouch(&["run", "wf.yaml"]));
    let good = sha256(&tiny()[UNET]);
    let pinned = |digest: &str| {
        workflow("hf://tiny/sd1").replace(
            "path: \"hf://tiny/sd1\"}",
            &format!("path: \"hf://tiny/sd1\", sha256: {{{UNET}: \"{digest}\"}}}}"),
        )
    };
    user.write("wf.yaml", &pinned(&good));
    let text = done(&user.retouch(&["run", "wf.yaml"]));
    assert!(text.contains("0 nodes ran"), "{text}");
    let bad = "0".repeat(64);
    user.write("wf.yaml", &pinned(&bad));
    refused(
        &user.retouch(&["run", "wf.yaml"]),
        3,
        &["R0323", &good, &bad, "pinned"],
    );
    user.write("wf.yaml", &pinned("abc"));
    refused(
        &user.retouch(&["check", "wf.yaml"]),
        3,
        &["64 hexadecimal digits"],
    );
    // Of a file that is no model at all, the pin is what is told.
    let folder = user.path("broken/unet");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), "{").unwrap();
    let yaml = workflow("broken").replace(
        "path: \"broken\"}",
        &format!("path: broken, sha256: {{unet/config.json: \"{bad}\"}}}}"),
    );
    user.write("wf.yaml", &yaml);
    let text = refused(
        &user.retouch(&["check", "wf.yaml"]),
        3,
        &[&bad, &sha256(b"{")],
    );
    assert!(!text.contains("is not the configuration"), "{text}");
}

#[test]
fn names_from_the_server_never_leave_the_cache() {
    let hub = Hub::new();
    let user = User::new(&hub);
    for tag in ["../../../../evil", "/tmp/evil", "..", "a/b"] {
        hub.rule(|rules| rules.tag = Some(tag.to_owned()));
        refused(
            &user.retouch(&["run", "wf.yaml"]),
            3,
            &["R0328", "without a valid ETag"],
        );
    }
    hub.rule(|rules| rules.tag = None);
    let mut files = tiny();
    files.insert("../../../evil.safetensors".into(), b"x".to_vec());
    files.insert("/evil.safetensors".into(), b"x".to_vec());
    hub.publish("tiny/sd1", COMMIT, &files);
    done(&user.retouch(&["run", "wf.yaml"]));
    // A commit that is a path is none.
    hub.rule(|rules| {
        let files = rules.files[COMMIT].clone();
        rules.files.insert("../../evil".into(), files);
        rules
            .revisions
            .insert(("tiny/sd1".into(), "v2".into()), "../../evil".into());
    });
    user.write("wf.yaml", &workflow("hf://tiny/sd1@v2"));
    refused(&user.retouch(&["run", "wf.yaml"]), 3, &["R0328", "commit"]);
    let mut open = vec![user.sandbox.path().to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            assert!(
                !entry.file_name().to_string_lossy().contains("evil"),
                "{:?}",
                entry.path()
            );
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
        }
    }
}

#[test]
fn two_programs_that_fetch_one_model_at_once_both_get_it_whole() {
    let hub = Hub::new();
    let user = User::new(&hub);
    let start = || {
        let mut command = user.command(&["fetch", "wf.yaml"]);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (one, two) = (start(), start());
    done(&one.wait_with_output().unwrap());
    done(&two.wait_with_output().unwrap());
    let got = contents(&hub.asked());
    let unet = got
        .iter()
        .filter(|path| path.starts_with("STORE") && path.ends_with(UNET))
        .count();
    assert_eq!(unet, 1, "the second waits for the first");
    let snapshot = user.repo().join("snapshots").join(COMMIT);
    assert_eq!(std::fs::read(snapshot.join(UNET)).unwrap(), tiny()[UNET]);
    done(&user.retouch(&["run", "wf.yaml", "--offline"]));
}

#[test]
fn programs_hear_of_each_file_before_the_run_begins() {
    let hub = Hub::new();
    let user = User::new(&hub);
    hub.rule(|rules| {
        rules.cut.insert(UNET.into(), (100_000, 100));
    });
    let output = user.retouch(&["run", "wf.yaml", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    hub.rule(|rules| rules.cut.clear());
    let output = user.retouch(&["run", "wf.yaml", "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let lines: Vec<serde_json::Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["event"], "fetch_started");
    assert_eq!(lines[0]["schema"], 1);
    let unet = |event: &str| {
        lines.iter().position(|line| {
            line["event"] == event
                && line["file"]
                    .as_str()
                    .is_some_and(|file| file.ends_with(UNET))
        })
    };
    let (started, finished) = (
        unet("fetch_started").unwrap(),
        unet("fetch_finished").unwrap(),
    );
    assert_eq!(lines[started]["done"], 300_000);
    assert_eq!(lines[started]["total"], tiny()[UNET].len());
    let run = lines
        .iter()
        .position(|line| line["event"] == "run_started")
        .unwrap();
    let progress = unet("fetch_progress").unwrap();
    assert!(started < progress && progress < finished && finished < run);
    let alone = user
        .command(&["run", "wf.yaml", "--json"])
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .output()
        .unwrap();
    let first = String::from_utf8(alone.stdout).unwrap();
    let first: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first["event"], "fetch_warning");
    let schema = user.retouch(&["schema", "events"]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for line in lines.iter().chain([&first]) {
        assert!(validator.is_valid(line), "{line}");
    }
}

#[test]
fn a_single_file_on_a_hub_is_a_model_and_its_digest_may_be_pinned() {
    let hub = Hub::new();
    let user = User::new(&hub);
    let data = root().join("tests/oracle/data/micro");
    let content = std::fs::read(data.join("sd1-single.safetensors")).unwrap();
    let lora = std::fs::read(data.join("adapters/sd1-lora-kohya.safetensors")).unwrap();
    let files = BTreeMap::from([
        ("one.safetensors".to_owned(), content.clone()),
        ("lora.safetensors".to_owned(), lora),
    ]);
    hub.publish("tiny/one", OTHER, &files);
    let of = |path: &str, digest: &str| {
        let config = data.join("sd1").display().to_string();
        workflow("M").replace(
            "path: \"M\"",
            &format!("path: \"{path}\", config: \"{config}\", sha256: \"{digest}\""),
        )
    };
    let here = data.join("sd1-single.safetensors").display().to_string();
    user.write("here.yaml", &of(&here, &sha256(&content)));
    user.write(
        "wf.yaml",
        &of("hf://tiny/one/one.safetensors", &sha256(&content)),
    );
    done(&user.retouch(&["run", "here.yaml"]));
    let text = done(&user.retouch(&["run", "wf.yaml", "--out", "there"]));
    assert!(text.contains("U-Net calls: 0"), "{text}");
    // So is an adapter; in a check each of the two is told.
    let adapted = of("hf://tiny/one@main/one.safetensors", &sha256(&content))
        .replace("model: $base, prompt", "model: $toy, prompt")
        .replace(
            "  z: {",
            "  toy: {op: apply_lora, model: $base, path: \"hf://tiny/one/lora.safetensors\"}\n  z: {",
        );
    let other = User::new(&hub);
    other.write("wf.yaml", &adapted);
    let text = done(&other.retouch(&["check", "wf.yaml"]));
    assert_eq!(text.matches("is not fetched yet").count(), 2, "{text}");
    done(&other.retouch(&["run", "wf.yaml"]));
    let picture = |path: PathBuf| image::open(path).unwrap().to_rgb8();
    assert!(picture(other.path("out/picture.png")) != picture(user.path("out/picture.png")));
    let bad = "f".repeat(64);
    user.write("wf.yaml", &of("hf://tiny/one/one.safetensors", &bad));
    refused(
        &user.retouch(&["run", "wf.yaml"]),
        3,
        &["R0323", &bad, &sha256(&content)],
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_while_fetching_leaves_what_the_next_run_goes_on_from() {
    let hub = Hub::new();
    let user = User::new(&hub);
    hub.rule(|rules| rules.held.push(UNET.into()));
    let mut child = user
        .command(&["run", "wf.yaml", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let started = |line: &str| line.contains("fetch_started") && line.contains(UNET);
    assert!(lines.by_ref().any(|line| started(&line.unwrap())));
    support::signal(&child, libc::SIGTERM);
    // The program has heard it, and then the hub goes on.
    let mut told = String::new();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    while !told.contains("stopping") {
        assert!(errors.read_line(&mut told).unwrap() > 0, "{told}");
    }
    hub.rule(|rules| rules.held.clear());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let last = rest.last().unwrap();
    assert!(
        last.contains("R1007") && last.contains("resumes from there"),
        "{last}"
    );
    let partial = user
        .repo()
        .join("blobs")
        .join(format!("{}.incomplete", sha256(&tiny()[UNET])));
    assert!(partial.is_file());
    done(&user.retouch(&["run", "wf.yaml"]));
    assert!(!partial.exists());
}
