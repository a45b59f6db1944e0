//! What a workflow reads, recorded: a lock file, its comparison with what is there, and the search for what moved.
//!
//! A lock names every workflow file, params file, asset and model file with its size and BLAKE3 digest, by a path
//! relative to the workflow's folder. It never holds an absolute path: it is made to be shared.

mod compare;
mod content;
mod locate;
mod make;
mod paths;
pub mod redirect;
mod text;

use std::path::{Path, PathBuf};

pub use compare::Difference;
pub use content::{Lock, LockedFile, LockedKind, SCHEMA};
pub use locate::{Located, Redirect, locate};
pub use paths::shareable;

/// The lock file of a workflow: `wf.lock` beside `wf.yaml`.
#[must_use]
pub fn file_of(workflow: &Path) -> PathBuf {
    if workflow.extension().is_some_and(|end| end == "lock") {
        // A workflow of that name is not written over.
        return workflow.with_extension("lock.lock");
    }
    workflow.with_extension("lock")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::digest::short;
    use crate::files::Files;
    use crate::files::MemoryFiles;
    use crate::lock::paths::{model_of, relative, slashed};
    use crate::lock::redirect::RedirectedFiles;

    fn file(kind: LockedKind, path: &str, content: &str) -> LockedFile {
        LockedFile {
            kind,
            path: path.to_owned(),
            elsewhere: false,
            model: (kind == LockedKind::Model).then(|| "../models/world".to_owned()),
            commit: None,
            size: content.len() as u64,
            blake3: *blake3::hash(content.as_bytes()).as_bytes(),
        }
    }

    fn sample() -> Lock {
        Lock {
            tool: "0.1.0".to_owned(),
            workflow: "wf".to_owned(),
            files: vec![
                file(LockedKind::Workflow, "wf.yaml", "schema: retouch/v1"),
                file(LockedKind::Asset, "../photos/é \"1\".png", "photo"),
                file(LockedKind::Model, "../models/world/unet/config.json", "{}"),
                file(LockedKind::Model, "../models/world/unet/weights", "weights"),
            ],
        }
    }

    fn faults(text: &str) -> String {
        Lock::parse("wf.lock", text.as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_lock_reads_as_it_was_written_one_file_a_line() {
        let lock = sample();
        let text = lock.to_yaml();
        assert_eq!(Lock::parse("wf.lock", text.as_bytes()).unwrap(), lock);
        assert_eq!(text.lines().count(), 5 + lock.files.len());
        let empty = Lock {
            files: Vec::new(),
            ..lock
        };
        let text = empty.to_yaml();
        assert_eq!(Lock::parse("wf.lock", text.as_bytes()).unwrap(), empty);
    }

    #[test]
    fn a_lock_of_another_schema_is_refused_by_name() {
        let text = sample().to_yaml().replace("lock/1", "lock/2");
        let said = faults(&text);
        assert!(
            said.contains("R0902") && said.contains("retouch-lock/2"),
            "{said}"
        );
    }

    #[test]
    fn what_is_no_lock_is_a_fault_at_its_place() {
        let text = sample().to_yaml();
        for (from, to) in [
            ("schema: retouch-lock/1\n", ""),
            ("files:\n", "files: 1\nfile:\n"),
            ("kind: asset", "kind: asse"),
            ("path: \"wf.yaml\"", "path: \"/wf.yaml\""),
            ("path: \"wf.yaml\"", "path: \"a/../../wf.yaml\""),
            ("path: \"wf.yaml\"", "path: \"C:wf.yaml\""),
            ("path: \"wf.yaml\"", "path: \"a\\\\wf.yaml\""),
            ("path: \"wf.yaml\"", "path: \"\""),
            ("path: \"wf.yaml\"", "paht: \"wf.yaml\""),
            ("size: 18", "size: -18"),
            ("size: 18, ", ""),
            ("blake3: \"", "blake3: \"0"),
            ("workflow: \"wf\"", "workflow: [wf]"),
            ("retouch: \"0.1.0\"\n", ""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            let said = faults(&changed);
            assert!(
                said.contains("wf.lock:") && said.contains("R0901"),
                "{said}"
            );
        }
        for garbage in ["", "[", "a: b: c", "- 1", "\u{0}\u{1}"] {
            assert!(Lock::parse("wf.lock", garbage.as_bytes()).is_err());
        }
        assert!(Lock::parse("wf.lock", &[0xff, 0xfe, 0x00]).is_err());
    }

    #[test]
    fn differences_name_each_file_and_both_digests() {
        let (old, mut new) = (sample(), sample());
        assert_eq!(old.compare(&new), []);
        new.files[1] = file(LockedKind::Asset, "../photos/é \"1\".png", "another");
        new.files[0].path = "other.yaml".to_owned();
        let said: Vec<String> = old.compare(&new).iter().map(ToString::to_string).collect();
        let digest = |content: &str| short(blake3::hash(content.as_bytes()).as_bytes());
        assert_eq!(
            said,
            [
                format!(
                    "../photos/é \"1\".png: changed ({} -> {})",
                    digest("photo"),
                    digest("another")
                ),
                format!(
                    "other.yaml: not in the lock (is {})",
                    digest("schema: retouch/v1")
                ),
                format!("wf.yaml: missing (was {})", digest("schema: retouch/v1")),
            ]
        );
        assert_eq!(old.violations(&new).len(), 2);
    }

    #[test]
    fn paths_are_relative_and_never_climb_to_the_machine() {
        let path = |folder: &str, file: &str| {
            relative(Path::new(folder), Path::new(file))
                .map(|path| slashed(&path, Path::new(file)).unwrap())
        };
        assert_eq!(path("", "a.png").as_deref(), Some("a.png"));
        assert_eq!(path("wf", "wf/../m/./x").as_deref(), Some("../m/x"));
        assert_eq!(path("/h/u/p/wf", "/h/u/q/x").as_deref(), Some("../../q/x"));
        assert_eq!(path("/h/u/wf", "/h/v/x"), None);
        assert_eq!(path("/h/u/wf", "/data/x"), None);
    }

    #[test]
    fn the_end_that_a_role_gives_is_taken_off_a_models_path() {
        let model = |path, role| model_of(Path::new(path), role);
        assert_eq!(model("m/w/unet/c.json", "unet/c.json"), Path::new("m/w"));
        assert_eq!(model("m/bear/c.json", "unet/c.json"), Path::new("m/bear"));
        assert_eq!(
            model("m/one.safetensors", "checkpoint"),
            Path::new("m/one.safetensors")
        );
    }

    fn moved() -> MemoryFiles {
        MemoryFiles::new()
            .with("wf/wf.yaml", "schema: retouch/v1")
            .with("photos/é \"1\".png", "photo")
            .with("shelf/x/decoy/unet/config.json", "[]")
            .with("shelf/x/decoy/unet/weights", "weights")
            .with("shelf/x/renamed/unet/config.json", "{}")
            .with("shelf/x/renamed/unet/weights", "weights")
            .with("shelf/x/renamed/unet/more.json", "more")
    }

    #[test]
    fn a_model_that_moved_is_found_by_what_it_holds_and_read_from_there() {
        let inner = Arc::new(moved());
        let roots = vec![PathBuf::from("nowhere"), PathBuf::from("shelf")];
        let files = RedirectedFiles::new(inner.clone(), roots);
        let located = files.locate(Some(&sample()), Path::new("wf"));
        assert_eq!(located.lost, Vec::<PathBuf>::new());
        assert_eq!(
            files.news(),
            [Redirect {
                from: "models/world".into(),
                to: "shelf/x/renamed".into()
            }]
        );
        assert!(files.is_dir(Path::new("wf/../models/world")));
        let config = Path::new("wf/../models/world/unet/config.json");
        assert_eq!(&*files.read(config).unwrap(), b"{}");
        assert_eq!(
            files.place(config),
            Path::new("shelf/x/renamed/unet/config.json")
        );
        // What the lock does not have is not read along.
        assert!(!files.is_file(Path::new("models/world/unet/more.json")));
        // What comes back to its own place is read there.
        inner.insert("models/world/unet/config.json", "new");
        assert_eq!(&*files.read(config).unwrap(), b"new");
    }

    #[test]
    fn a_model_of_another_content_is_not_taken_for_the_locked_one() {
        let inner = moved();
        inner.insert("shelf/x/renamed/unet/config.json", "{ }");
        inner.insert("shelf/world/unet/config.json", "{ }");
        let files = RedirectedFiles::new(Arc::new(inner), vec!["shelf".into()]);
        let located = files.locate(Some(&sample()), Path::new("wf"));
        assert_eq!(located.lost, [PathBuf::from("models/world")]);
        let sought = files.seek(Path::new("wf/../models/world"));
        assert!(sought.locked && sought.places == [PathBuf::from("shelf")]);
        // Without a lock the name is all there is to go by.
        files.locate(None, Path::new("wf"));
        assert_eq!(
            files.seek(Path::new("wf/../models/world")).places,
            Vec::<PathBuf>::new()
        );
        let config = Path::new("models/world/unet/config.json");
        assert_eq!(&*files.read(config).unwrap(), b"{ }");
    }
}
