//! How the crates stand to each other, and that the repository stands alone.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::BTreeMap;

use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand};

#[test]
fn the_arrows_are_those_of_the_architecture_and_no_other() {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .no_deps()
        .other_options(vec!["--offline".to_owned()])
        .exec()
        .unwrap();
    let arrows: BTreeMap<String, Vec<String>> = metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let mut to: Vec<String> = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.name.starts_with("retouch-"))
                // What tests alone use is no arrow.
                .filter(|dependency| dependency.kind != DependencyKind::Development)
                .map(|dependency| dependency.name.clone())
                .collect();
            to.sort();
            to.dedup();
            (package.name.to_string(), to)
        })
        .collect();
    let expected = [
        (
            "retouch-cli",
            vec![
                "retouch-common",
                "retouch-graph",
                "retouch-lsp",
                "retouch-nodes",
                "retouch-view",
            ],
        ),
        ("retouch-common", vec!["retouch-graph"]),
        (
            "retouch-dev",
            vec![
                "retouch-cli",
                "retouch-common",
                "retouch-graph",
                "retouch-lsp",
                "retouch-nodes",
                "retouch-view",
            ],
        ),
        ("retouch-graph", vec![]),
        ("retouch-lsp", vec!["retouch-graph"]),
        ("retouch-nodes", vec!["retouch-graph"]),
        (
            "retouch-view",
            vec!["retouch-common", "retouch-graph", "retouch-nodes"],
        ),
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
    let mut folders: Vec<_> = [
        "graph/src",
        "nodes/src",
        "cli/src",
        "cli/common/src",
        "cli/dev/src",
        "cli/lsp/src",
        "cli/view/src",
    ]
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
