//! How the crates stand to each other, and that the repository stands alone.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::BTreeMap;

use cargo_metadata::{CargoOpt, MetadataCommand};

#[test]
fn the_arrows_are_cli_to_nodes_to_graph_and_cli_to_graph_and_no_other() {
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
