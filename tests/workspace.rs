//! How the crates stand to each other, and that the repository stands alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand};

pub fn metadata() -> Metadata {
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
fn the_arrows_are_those_of_the_architecture_and_no_other() {
    let metadata = metadata();
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
                "retouch-cluster",
                "retouch-common",
                "retouch-diffusion",
                "retouch-graph",
                "retouch-kernels",
                "retouch-lsp",
                "retouch-nodes",
                "retouch-view",
            ],
        ),
        ("retouch-cluster", vec![]),
        ("retouch-common", vec!["retouch-graph"]),
        (
            "retouch-dev",
            vec![
                "retouch-cli",
                "retouch-common",
                "retouch-diffusion",
                "retouch-graph",
                "retouch-kernels",
                "retouch-lsp",
                "retouch-nodes",
                "retouch-view",
            ],
        ),
        (
            "retouch-diffusion",
            vec!["retouch-graph", "retouch-kernels"],
        ),
        ("retouch-graph", vec![]),
        ("retouch-kernels", vec![]),
        ("retouch-lsp", vec!["retouch-graph"]),
        (
            "retouch-nodes",
            vec!["retouch-diffusion", "retouch-graph", "retouch-kernels"],
        ),
        (
            "retouch-view",
            vec![
                "retouch-common",
                "retouch-diffusion",
                "retouch-graph",
                "retouch-nodes",
            ],
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

/// What tests are made of: the files of the suites, and what the sources hold for tests alone.
fn texts_of_tests() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut folders, mut texts) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            if path.is_dir() {
                if !name.starts_with("target") && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                if name.contains("tests") {
                    texts.push(text);
                } else if let Some((_, tests)) = text.split_once("\n#[cfg(test)]\nmod ") {
                    texts.push(tests.to_owned());
                } else if let Some((_, tests)) = text.split_once("\n#[cfg(all(test") {
                    texts.push(tests.to_owned());
                }
            }
        }
    }
    texts
}

/// `graph/tests/faults.rs` provokes the codes of what is wrong with a workflow. Of the others, which only whole programs give,
/// this sees that some test expects them.
#[test]
fn every_code_is_expected_by_a_test() {
    let texts = texts_of_tests();
    assert!(texts.len() > 80, "{}", texts.len());
    let named_for_another_reason = ["\"R0324\", \"R0325\", \"R0326\""];
    let forgotten: Vec<&str> = retouch_graph::Code::ALL
        .iter()
        .filter(|code| {
            let (printed, variant) = (code.as_str(), format!("Code::{code:?}"));
            !texts.iter().any(|text| {
                let lines = text.lines().filter(|line| {
                    !named_for_another_reason
                        .iter()
                        .any(|other| line.contains(other))
                });
                lines.into_iter().any(|line| {
                    let mut variants = line
                        .match_indices(&variant)
                        .map(|(at, _)| at + variant.len());
                    // `Code::NodeFile` is no `Code::NodeFailed`.
                    let named = variants.any(|end| !line[end..].starts_with(char::is_alphanumeric));
                    named || line.contains(printed)
                })
            })
        })
        .map(|code| code.as_str())
        .collect();
    assert!(forgotten.is_empty(), "no test expects {forgotten:?}");
}

#[test]
fn temporary_names_are_made_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<_> = [
        "graph/src",
        "nodes/kernels/src",
        "nodes/diffusion/src",
        "nodes/src",
        "cli/src",
        "cli/cluster/src",
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
        // What a worker is called in a run's store.
        ("cli/src/far/worker.rs", "process::id()"),
        // What another program began is gone on with, under the name that both know.
        ("cli/src/hub/store.rs", "fs::rename("),
        ("graph/src/files/write.rs", "\".part\""),
        ("graph/src/files/write.rs", "\".tmp\""),
        ("graph/src/files/write.rs", "fs::rename("),
    ];
    let expected = expected.map(|(file, what)| (file.to_owned(), what));
    assert_eq!(found, expected, "write with `retouch_graph::write`");
}
