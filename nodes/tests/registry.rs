//! A node is added in two steps, the file and a line in `registry()`; this notices when the second is forgotten.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_op_in_the_sources_is_in_the_registry_and_no_other() {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    let written: BTreeSet<String> = files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| {
                    let op = line.trim().strip_prefix("const OP: &'static str = \"")?;
                    Some(op.trim_end_matches("\";").to_owned())
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let registered: BTreeSet<String> = retouch_nodes::registry()
        .iter()
        .map(|entry| entry.op().to_owned())
        .collect();
    assert_eq!(written, registered);
    assert!(registered.len() >= 15);
}

#[test]
fn every_op_param_and_port_is_documented_in_a_third_person_sentence() {
    assert_eq!(retouch_nodes::registry().lint(), Vec::<String>::new());
    for entry in retouch_nodes::registry().iter() {
        let first = entry.summary().split_whitespace().next().unwrap_or("");
        assert!(
            first.ends_with('s'),
            "{}: {:?}",
            entry.op(),
            entry.summary()
        );
        assert!(!entry.outputs().is_empty(), "{} gives nothing", entry.op());
    }
}

#[test]
fn every_parameter_has_its_documentation_in_the_schema() {
    let registry = retouch_nodes::registry();
    assert!(registry.len() > 15, "{}", registry.len());
    for entry in registry.iter() {
        let (op, docs) = (entry.op(), entry.docs());
        let is_sentence = docs.contains(". ") || docs.ends_with('.');
        assert!(is_sentence, "{op}: {docs:?}");
        for param in entry.params() {
            let name = &param.name;
            assert!(
                !param.docs.trim().is_empty(),
                "{op}.{name} has no documentation"
            );
            // `#[schemars(inline)]` on the type.
            let schema = param.schema.to_string();
            assert!(
                !schema.contains("$ref"),
                "{op}.{name} has a schema that is not inline"
            );
        }
    }
}
