//! How the crates stand to each other, and that the repository stands alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cargo_metadata::{CargoOpt, Metadata, MetadataCommand};

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .no_deps()
        .other_options(vec!["--offline".to_owned()])
        .exec()
        .unwrap()
}

#[test]
fn every_suite_is_run() {
    let metadata = metadata();
    let tests: BTreeSet<PathBuf> = metadata
        .workspace_packages()
        .into_iter()
        .flat_map(|package| &package.targets)
        .filter(|target| target.is_test())
        .map(|target| target.src_path.canonicalize().unwrap())
        .collect();
    let (mut suites, mut forgotten) = (0, Vec::new());
    for test in &tests {
        let modules = std::fs::read_to_string(test).unwrap();
        for entry in std::fs::read_dir(test.parent().unwrap()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|kind| kind != "rs") || tests.contains(&path) {
                continue;
            }
            suites += 1;
            let module = format!("mod {};", path.file_stem().unwrap().display());
            if !modules.lines().any(|line| line == module) {
                forgotten.push(path);
            }
        }
    }
    assert!(suites > 40, "{suites}");
    assert!(forgotten.is_empty(), "no module of any test: {forgotten:?}");
}

#[test]
fn the_arrows_are_cli_to_nodes_to_graph_and_cli_to_graph_and_no_other() {
    let metadata = metadata();
    let arrows: BTreeMap<String, Vec<String>> = metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let mut to: Vec<String> = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.name.starts_with("retouch-"))
                .map(|dependency| dependency.name.clone())
                .collect();
            to.sort();
            to.dedup();
            (package.name.to_string(), to)
        })
        .collect();
    let expected = [
        ("retouch-cli", vec!["retouch-graph", "retouch-nodes"]),
        ("retouch-graph", vec![]),
        ("retouch-nodes", vec!["retouch-graph"]),
    ];
    let expected = expected
        .into_iter()
        .map(|(from, to)| (from.to_owned(), to.into_iter().map(str::to_owned).collect()))
        .collect();
    assert_eq!(arrows, expected);
    let graph = metadata
        .workspace_packages()
        .into_iter()
        .find(|p| p.name.as_str() == "retouch-graph")
        .unwrap();
    assert!(
        graph
            .dependencies
            .iter()
            .all(|d| !d.name.starts_with("candle")),
        "the engine knows no tensor"
    );
}

#[test]
fn temporary_names_are_made_in_one_place() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<_> = ["graph/src", "nodes/src", "cli/src"]
        .map(|folder| root.join(folder))
        .into();
    let (mut read, mut found) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            if !name.ends_with(".rs") || name.contains("tests") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
            let text = text.split("\n#[cfg(all(test").next().unwrap();
            read += 1;
            for what in ["fs::rename(", "process::id()", "\".tmp\"", "\".part\""] {
                if text.contains(what) {
                    found.push((name.clone(), what));
                }
            }
        }
    }
    assert!(read > 100, "{read}");
    found.sort();
    let expected = [
        // What another program began is gone on with, under the name that both know.
        ("cli/src/hub/store.rs", "fs::rename("),
        ("graph/src/write.rs", "\".part\""),
        ("graph/src/write.rs", "\".tmp\""),
        ("graph/src/write.rs", "fs::rename("),
    ];
    let expected = expected.map(|(file, what)| (file.to_owned(), what));
    assert_eq!(found, expected, "write with `retouch_graph::write`");
}
