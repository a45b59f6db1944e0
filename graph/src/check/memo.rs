//! Facts that nodes found in files, kept from one check to the next.
//!
//! A model's node reads configurations, a vocabulary and the heads of weights to say what the model is. An editor checks
//! at every key, a sweep checks every cell, and none of these files changes between two of them. What such a node found, of inputs of
//! which the same is known, is believed again as long as everything that it looked at is the file that it was: the same size, times
//! and inode. Faults are not kept, and nothing of ops with inputs that have never looked at a file: checking those is as quick as
//! finding them here.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::base::digest::Digest;
use crate::base::error::Fault;
use crate::base::sync::lock;
use crate::files::{FileStamp, Files, FolderEntry, ModelLocator, Searched, Withheld};
use crate::op::erased::{ErasedNode, Findings};
use crate::op::node::ReadFile;
use crate::value::port::{Known, KnownPorts};

/// The most nodes whose facts are kept; when there are more, all are dropped.
const MOST: usize = 1024;

/// What a node looked at, and what it was.
#[derive(Clone)]
struct Look {
    path: PathBuf,
    stamp: FileStamp,
    /// Whether the file itself was looked at, and not only whether there is a folder.
    file: bool,
}

struct CachedFacts {
    looks: Vec<Look>,
    known: KnownPorts,
    warnings: Vec<Fault>,
}

/// What nodes found in files.
#[derive(Default)]
pub(crate) struct FactsMemo {
    /// Of nodes without inputs, and of those with inputs: a sweep has thousands of the latter, which must not push the former out.
    entries: [Mutex<HashMap<Digest, Arc<CachedFacts>>>; 2],
    /// The ops with inputs that have looked at a file.
    looking: Mutex<HashSet<&'static str>>,
}

impl FactsMemo {
    /// The facts of a node: from memory while its files are the same, else from its check. `known_key`: its [`key`], if the caller has it.
    pub(crate) fn of(
        &self,
        op: &'static str,
        node: &dyn ErasedNode,
        inputs: KnownPorts,
        files: &dyn Files,
        load: &LoadMemo,
        known_key: Option<Digest>,
    ) -> Findings {
        let first = !inputs.is_empty() && !lock(&self.looking).contains(op);
        if first {
            let noting = Noting::new(files);
            let found = node.check(inputs, &noting);
            if noting.looked() {
                lock(&self.looking).insert(op);
            }
            return found;
        }
        let Some(key) = known_key.or_else(|| key(op, node, &inputs)) else {
            return node.check(inputs, files);
        };
        let entries = &self.entries[usize::from(!inputs.is_empty())];
        let entry = lock(entries).get(&key).cloned();
        if let Some(entry) = entry {
            let seen = load.compared.borrow().contains(&key);
            let same = |look: &Look| files.stamp(&look.path).as_ref() == Some(&look.stamp);
            if seen || entry.looks.iter().all(same) {
                // What is read is the watch list: these files count as read.
                for look in (entry.looks.iter()).filter(|look| look.file && !seen) {
                    files.is_file(&look.path);
                }
                load.compared.borrow_mut().insert(key);
                return Ok((entry.known.clone(), entry.warnings.clone()));
            }
        }
        let noting = Noting::new(files);
        let (known, warnings) = node.check(inputs, &noting)?;
        if let Some(looks) = lock(&noting.looks).take() {
            let mut entries = lock(entries);
            if entries.len() >= MOST {
                entries.clear();
            }
            let entry = CachedFacts {
                looks,
                known: known.clone(),
                warnings: warnings.clone(),
            };
            entries.insert(key, Arc::new(entry));
        }
        Ok((known, warnings))
    }
}

/// What one load, of all the cells of a sweep, found about files: it sees them as they were when it first looked.
#[derive(Default)]
pub(crate) struct LoadMemo {
    /// The nodes, by their [`key`], whose files were compared with what they were.
    compared: RefCell<HashSet<Digest>>,
    /// What nodes without inputs read.
    reads: RefCell<HashMap<Digest, Arc<[ReadFile]>>>,
}

impl LoadMemo {
    /// What a node without inputs reads, if it was asked.
    pub(super) fn reads(&self, key: Option<&Digest>) -> Option<Arc<[ReadFile]>> {
        self.reads.borrow().get(key?).cloned()
    }

    /// Keeps what a node without inputs reads.
    pub(super) fn keep_reads(&self, key: Option<&Digest>, reads: &Arc<[ReadFile]>) {
        if let Some(key) = key {
            self.reads.borrow_mut().insert(*key, Arc::clone(reads));
        }
    }
}

/// What a check depends on beside files.
pub(super) fn key(op: &str, node: &dyn ErasedNode, inputs: &KnownPorts) -> Option<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(op.as_bytes());
    part(node.params().ok()?.to_string().as_bytes());
    for (port, links) in inputs {
        part(port.as_bytes());
        part(&(links.len() as u64).to_le_bytes());
        for link in links {
            match link {
                Known::Unknown => part(b""),
                Known::Facts(facts) => part(facts.to_string().as_bytes()),
                Known::Absent(_) => return None,
            }
        }
    }
    Some(*hasher.finalize().as_bytes())
}

/// Notes what is looked at, before it is looked at: a change meanwhile is then seen the next time.
struct Noting<'a> {
    files: &'a dyn Files,
    /// `None` as soon as something has no stamp: nothing is kept then.
    looks: Mutex<Option<Vec<Look>>>,
}

impl<'a> Noting<'a> {
    fn new(files: &'a dyn Files) -> Self {
        Self {
            files,
            looks: Mutex::new(Some(Vec::new())),
        }
    }

    /// Whether anything was looked at.
    fn looked(&self) -> bool {
        lock(&self.looks)
            .as_ref()
            .is_none_or(|looks| !looks.is_empty())
    }

    fn note(&self, path: &Path, file: bool) {
        let stamp = self.files.stamp(path);
        let mut looks = lock(&self.looks);
        match (stamp, looks.as_mut()) {
            (Some(stamp), Some(looks)) => {
                let known = looks.iter_mut().find(|look| look.path == path);
                match known {
                    // It changed while the node read: what it says is of neither.
                    Some(look) if look.stamp != stamp => *look = Look::never(path),
                    Some(look) => look.file |= file,
                    None => looks.push(Look {
                        path: path.to_owned(),
                        stamp,
                        file,
                    }),
                }
            }
            _ => *looks = None,
        }
    }
}

impl Look {
    /// A look that no file fits.
    fn never(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stamp: FileStamp::never(),
            file: true,
        }
    }
}

impl Files for Noting<'_> {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        self.note(path, true);
        self.files.read(path)
    }

    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        self.note(path, true);
        self.files.read_head(path, length)
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.note(path, true);
        self.files.read_at(path, offset, length)
    }

    fn digest(&self, path: &Path) -> io::Result<Digest> {
        self.note(path, true);
        self.files.digest(path)
    }

    fn is_file(&self, path: &Path) -> bool {
        self.note(path, true);
        self.files.is_file(path)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.note(path, false);
        self.files.is_dir(path)
    }

    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        self.note(path, true);
        let digest = self.files.sha256(path);
        if (digest.as_ref()).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            // What a pin says is not known yet, so what the node says of the file is not to be kept.
            *lock(&self.looks) = None;
        }
        digest
    }

    fn doubt(&self) {
        self.files.doubt();
    }

    fn flush(&self) {
        self.files.flush();
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        self.files.stamp(path)
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        // What is in a folder has no stamp of its own.
        *lock(&self.looks) = None;
        self.files.entries(folder)
    }
}

impl ModelLocator for Noting<'_> {
    fn find_model(&self, path: &Path) -> Searched {
        self.files.find_model(path)
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.files.place(path)
    }

    fn withheld(&self, path: &Path) -> Option<Withheld> {
        self.files.withheld(path)
    }

    fn commit(&self, path: &Path) -> Option<String> {
        self.files.commit(path)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::base::error::NodeError;
    use crate::base::problem::Severity;
    use crate::files::{DiskFiles, MemoryFiles};
    use crate::op::node::{Context, Node};
    use crate::value::fields::AssetPath;
    use crate::value::payload::Payload;
    use crate::value::port::Types;
    use crate::{Engine, Registry, Settings};

    pub struct Length;

    impl Payload for Length {
        const TYPE: &'static str = "length";
        fn bytes(&self) -> usize {
            0
        }
        fn summary(&self) -> String {
            String::new()
        }
    }

    crate::ports! {
        /// Nothing.
        pub struct Inputs {}
    }

    crate::ports! {
        /// A length.
        pub struct Outputs {
            /// The length.
            pub length: Arc<Length>,
        }
    }

    /// Refuses files of an odd length, warns of those of ten bytes and more, and counts how often it looked.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Even {
        /// The file.
        path: AssetPath,
    }

    static CHECKS: AtomicUsize = AtomicUsize::new(0);

    impl Node for Even {
        const OP: &'static str = "even";
        const VERSION: u32 = 1;
        type Inputs = Inputs;
        type Outputs = Outputs;

        fn check(
            &self,
            _: &Types<Inputs>,
            files: &dyn Files,
        ) -> Result<Types<Outputs>, Vec<Fault>> {
            CHECKS.fetch_add(1, Ordering::SeqCst);
            match files.read(&self.path) {
                Ok(bytes) if bytes.len() % 2 == 0 => {
                    let long = (bytes.len() > 9).then(|| Fault::content("path", "long"));
                    Ok(Types::unknown().warn(long))
                }
                _ => Err(vec![Fault::content("path", "odd")]),
            }
        }

        fn run(&self, _: Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
            Ok(Outputs {
                length: Arc::new(Length),
            })
        }
    }

    crate::ports! {
        /// A length.
        pub struct OfLength {
            /// The length.
            pub length: Arc<Length>,
        }
    }

    /// Gives a length of which nothing is known.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Anything {}

    impl Node for Anything {
        const OP: &'static str = "some";
        const VERSION: u32 = 1;
        type Inputs = Inputs;
        type Outputs = Outputs;

        fn run(&self, _: Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
            Ok(Outputs {
                length: Arc::new(Length),
            })
        }
    }

    /// Looks at a file, and at what is known of its input.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Beside {
        /// The file.
        path: AssetPath,
    }

    static CHECKS_BESIDE: AtomicUsize = AtomicUsize::new(0);

    impl Node for Beside {
        const OP: &'static str = "beside";
        const VERSION: u32 = 1;
        type Inputs = OfLength;
        type Outputs = Outputs;

        fn check(
            &self,
            inputs: &Types<OfLength>,
            files: &dyn Files,
        ) -> Result<Types<Outputs>, Vec<Fault>> {
            CHECKS_BESIDE.fetch_add(1, Ordering::SeqCst);
            let own = files.read(&self.path).map(|bytes| bytes.len()).unwrap_or(0);
            let given: usize = inputs.facts("length").unwrap_or(0);
            Ok(Types::unknown().with("length", &(own + given)))
        }

        fn run(&self, _: OfLength, _: &Context<'_>) -> Result<Outputs, NodeError> {
            Ok(Outputs {
                length: Arc::new(Length),
            })
        }
    }

    #[test]
    fn a_node_with_inputs_is_checked_again_when_its_file_or_what_is_known_of_them_changed() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        let workflow = folder.path().join("w.yaml");
        let text = "schema: retouch/v1\nparams: {b: {type: path, default: b}, n: {type: int, default: 0}}\nnodes:\n  a: {op: beside, path: a, length: $b}\n  b: {op: beside, path: $params.b, length: $c}\n  c: {op: some}\noutputs:\n  a: {value: $a}\n";
        std::fs::write(&workflow, text).unwrap();
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "bb").unwrap();
        let engine = Engine::new(Registry::new().with::<Anything>().with::<Beside>());
        let checks = || {
            let before = CHECKS_BESIDE.load(Ordering::SeqCst);
            engine.load(&workflow, &Settings::default()).unwrap();
            CHECKS_BESIDE.load(Ordering::SeqCst) - before
        };
        // That the op looks at files is known after its first node.
        assert_eq!(checks(), 2);
        assert_eq!(checks(), 1);
        assert_eq!(checks(), 0);
        // What is known of `b` is another number, so `a` is checked too.
        std::fs::write(&b, "four").unwrap();
        assert_eq!(checks(), 2);
        assert_eq!(checks(), 0);
        std::fs::write(&a, "other").unwrap();
        assert_eq!(checks(), 1);
        assert_eq!(checks(), 0);
        // All cells of a sweep have the same files.
        std::fs::write(&a, "yet another").unwrap();
        let before = CHECKS_BESIDE.load(Ordering::SeqCst);
        let settings = Settings {
            over: vec!["n=1..=20".to_owned()],
            ..Settings::default()
        };
        let sweep = engine.load_sweep(&workflow, &settings).unwrap();
        assert_eq!(sweep.cells.len(), 20);
        assert_eq!(CHECKS_BESIDE.load(Ordering::SeqCst) - before, 1);
    }

    #[test]
    fn a_file_is_looked_into_again_only_when_it_changed_and_is_watched_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (file, workflow) = (folder.path().join("a"), folder.path().join("w.yaml"));
        let text =
            "schema: retouch/v1\nnodes:\n  a: {op: even, path: a}\noutputs:\n  a: {value: $a}\n";
        std::fs::write(&file, "even").unwrap();
        std::fs::write(&workflow, text).unwrap();
        let disk = Arc::new(DiskFiles::new());
        let files: Arc<dyn Files> = Arc::<DiskFiles>::clone(&disk);
        let engine = Engine::new(Registry::new().with::<Even>()).with_files(files);
        let checks = |expected: usize, sound: bool| {
            disk.forget_reads();
            let before = CHECKS.load(Ordering::SeqCst);
            let checked = engine.load(&workflow, &Settings::default());
            assert_eq!(checked.is_ok(), sound);
            assert_eq!(CHECKS.load(Ordering::SeqCst) - before, expected);
            assert!(disk.read_so_far().contains(&file));
        };
        checks(1, true);
        checks(0, true);
        std::fs::write(&file, "odd").unwrap();
        checks(1, false);
        checks(1, false); // a fault is looked for again
        std::fs::write(&file, "even again").unwrap();
        checks(1, true);
        checks(0, true);
        // A warning is repeated from memory too, at its place.
        let checked = engine.load(&workflow, &Settings::default()).unwrap();
        let told: Vec<String> = (checked.warnings.iter())
            .map(|w| format!("{} {:?} {w}", w.code(), w.line_column()))
            .collect();
        assert_eq!(told, ["R0703 (3, 23) long"]);
        assert_eq!(checked.warnings[0].severity(), Severity::Warning);
        std::fs::remove_file(&file).unwrap();
        checks(1, false);

        // Files without stamps are looked into every time.
        let memory = MemoryFiles::new().with("w.yaml", text).with("a", "even");
        let engine = engine.with_files(Arc::new(memory));
        let before = CHECKS.load(Ordering::SeqCst);
        for _ in 0..2 {
            engine
                .load(Path::new("w.yaml"), &Settings::default())
                .unwrap();
        }
        assert_eq!(CHECKS.load(Ordering::SeqCst) - before, 2);
    }
}
