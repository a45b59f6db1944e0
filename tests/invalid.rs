//! Broken workflows: each fault is found, at its place, with a way out, and all of a file's at once.
//!
//! `tests/invalid/places.txt` says where the faults of each file are (line:column); what people see of them is a snapshot.

use std::collections::BTreeMap;

use retouch_graph::Settings;

use crate::report;
use crate::support::{self, Bench};

/// The faults' places by the name of the file.
fn places() -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(support::root().join("tests/invalid/places.txt")).unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (name, places) = line.split_once(':').unwrap();
            (
                name.to_owned(),
                places.split_whitespace().map(str::to_owned).collect(),
            )
        })
        .collect()
}

#[test]
fn every_broken_file_is_refused_with_each_fault_at_its_place_and_a_way_out() {
    // From the root, by relative paths: what is printed, and where its lines break, depends on no place of this machine.
    if !support::is_alone(
        "invalid::every_broken_file_is_refused_with_each_fault_at_its_place_and_a_way_out",
    ) {
        return;
    }
    let folder = std::path::Path::new("tests/invalid");
    let places = places();
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".yaml").map(str::to_owned))
        .collect();
    names.sort();
    assert_eq!(
        names,
        places.keys().cloned().collect::<Vec<_>>(),
        "places.txt and the files"
    );
    assert!(names.len() >= 70);
    assert!(
        names
            .iter()
            .filter(|name| name.starts_with("several-"))
            .count()
            >= 10
    );
    let bench = Bench::new();
    let mut wrong = Vec::new();
    for name in &names {
        let path = folder.join(format!("{name}.yaml"));
        let Err(problems) = bench
            .engine
            .load(&path, &Settings::default())
            .and_then(|checked| bench.engine.plan(&checked, &[]).map(drop))
        else {
            wrong.push(format!("{name}: no fault was found"));
            continue;
        };
        let found: Vec<String> = problems
            .iter()
            .map(|problem| {
                let (line, column) = problem.line_column();
                format!("{line}:{column}")
            })
            .collect();
        if found != places[name] {
            wrong.push(format!(
                "{name}: {} (expected {})",
                found.join(" "),
                places[name].join(" ")
            ));
        }
        for problem in problems.iter() {
            if problem.hint().is_none() {
                wrong.push(format!("{name}: no way out: {}", problem.message()));
            }
        }
        let text = report::render(problems.iter(), false);
        let text: Vec<&str> = text.as_str().lines().map(str::trim_end).collect();
        insta::with_settings!({snapshot_path => "invalid/seen", prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!(name.as_str(), text.join("\n"));
        });
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
