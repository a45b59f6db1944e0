//! What nodes that only read files said of them, kept from one check to the next.
//!
//! A model's node reads configurations, a vocabulary and the heads of weights to say what the model is. An editor checks
//! at every key, and none of these files changes between two of them. What such a node found is believed again as long as
//! everything that it looked at is the file that it was: the same size, times and inode. Faults are not kept.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::base::digest::Digest;
use crate::base::error::Fault;
use crate::base::sync::lock;
use crate::files::{FileStamp, Files, FolderEntry, Sought, Withheld};
use crate::op::erased::{ErasedNode, Findings};
use crate::value::port::KnownPorts;

/// Nodes that are remembered at most; then all are forgotten.
const MOST: usize = 1024;

/// What a node looked at, and what it was.
#[derive(Clone)]
struct Look {
    path: PathBuf,
    stamp: FileStamp,
    /// Whether the file itself was asked for, and not only whether there is a folder.
    file: bool,
}

struct Entry {
    looks: Vec<Look>,
    known: KnownPorts,
    warnings: Vec<Fault>,
}

/// What nodes without inputs found in files.
#[derive(Default)]
pub(crate) struct FactsMemo(Mutex<HashMap<Digest, Arc<Entry>>>);

impl FactsMemo {
    /// The facts of a node without inputs: from memory while its files are the same, else from its check.
    pub(crate) fn of(&self, op: &str, node: &dyn ErasedNode, files: &dyn Files) -> Findings {
        let check = |files: &dyn Files| node.check(KnownPorts::new(), files);
        let Ok(params) = node.params() else {
            return check(files);
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(op.len() as u64).to_le_bytes());
        hasher.update(op.as_bytes());
        hasher.update(params.to_string().as_bytes());
        let key = *hasher.finalize().as_bytes();
        let entry = lock(&self.0).get(&key).cloned();
        if let Some(entry) = entry
            && entry
                .looks
                .iter()
                .all(|look| files.stamp(&look.path).as_ref() == Some(&look.stamp))
        {
            // What is read is the watch list: these files count as read.
            for look in entry.looks.iter().filter(|look| look.file) {
                files.is_file(&look.path);
            }
            return Ok((entry.known.clone(), entry.warnings.clone()));
        }
        let noting = Noting {
            files,
            looks: Mutex::new(Some(Vec::new())),
        };
        let (known, warnings) = check(&noting)?;
        if let Some(looks) = lock(&noting.looks).take() {
            let mut entries = lock(&self.0);
            if entries.len() >= MOST {
                entries.clear();
            }
            let entry = Entry {
                looks,
                known: known.clone(),
                warnings: warnings.clone(),
            };
            entries.insert(key, Arc::new(entry));
        }
        Ok((known, warnings))
    }
}

/// Notes what is looked at, before it is looked at: a change meanwhile is then seen the next time.
struct Noting<'a> {
    files: &'a dyn Files,
    /// `None` as soon as something has no stamp: nothing is kept then.
    looks: Mutex<Option<Vec<Look>>>,
}

impl Noting<'_> {
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

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        self.files.stamp(path)
    }

    fn withheld(&self, path: &Path) -> Option<Withheld> {
        self.files.withheld(path)
    }

    fn commit(&self, path: &Path) -> Option<String> {
        self.files.commit(path)
    }

    fn entries(&self, folder: &Path) -> io::Result<Vec<FolderEntry>> {
        // What is in a folder has no stamp of its own.
        *lock(&self.looks) = None;
        self.files.entries(folder)
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.files.place(path)
    }

    fn seek(&self, path: &Path) -> Sought {
        self.files.seek(path)
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
    use crate::value::port::Types;
    use crate::value::value::Payload;
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
        // What it warned of is told from memory too, where it is written.
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
