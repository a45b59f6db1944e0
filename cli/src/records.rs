//! What the last run of a workflow was made of, so that the plan can say what changed since.

use std::path::{Path, PathBuf};

use retouch_graph::{Change, Plan, Record, What, files};

use crate::store::{Store, write_private};

/// The record's file: named by a digest of the workflow's path.
fn file(store: &Store, workflow: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(workflow).ok()?;
    let mut hasher = retouch_graph::key::KeyHasher::new("retouch/record/1");
    hasher.field("path", path.as_os_str().as_encoded_bytes());
    store.file(&format!("plans/{}.json", hasher.finish()))
}

/// Notes what a run was made of; a failure is ignored.
pub fn write(store: &Store, workflow: &Path, plan: &Plan) {
    if let (Some(cache), Some(file)) = (&store.folder, file(store, workflow))
        && let Ok(text) = serde_json::to_vec(&plan.record())
    {
        let _ = write_private(cache, &file, &text);
        prune(&file);
    }
}

/// Number of workflows whose records are kept.
const MOST: usize = 256;
/// A longer record is none.
const MOST_BYTES: u64 = 256 << 20;

/// Removes the records that are oldest when there are too many.
fn prune(file: &Path) {
    let entries = file
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok());
    let mut records: Vec<(std::time::SystemTime, PathBuf)> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    if records.len() > MOST {
        records.sort();
        let many = records.len() - MOST / 2;
        for (_, path) in records.drain(..many) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What changed since the last run of the workflow; `None` when there was none.
#[must_use]
pub fn changes(store: &Store, workflow: &Path, plan: &Plan) -> Option<Vec<Change>> {
    let text = files::read(&file(store, workflow)?, MOST_BYTES).ok()?;
    let old: Record = serde_json::from_slice(&text).ok()?;
    Some(plan.record().changes_since(&old))
}

/// Why a node is not what it was, in words: what of itself changed, else nothing.
#[must_use]
pub fn reason(changes: &[Change], names: &[String]) -> Option<String> {
    let own: Vec<String> = changes
        .iter()
        .filter(|change| names.contains(&change.node))
        .filter_map(|change| {
            let (from, to) = (&change.from, &change.to);
            Some(match &change.what {
                What::Param(name) => format!("{name}: {from} -> {to}"),
                What::File(role) => format!("file {role}: {from} -> {to}"),
                What::Op => format!("op: {from} -> {to}"),
                What::Numerics => format!("numerics: {from} -> {to}"),
                What::Node => "new".to_owned(),
                // Which of the nodes before it changed stands at that node.
                What::Input(_) => return None,
            })
        })
        .collect();
    (!own.is_empty()).then(|| own.join(", "))
}
