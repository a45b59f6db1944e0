//! Sweeps with trivial nodes: which cells there are, what they share, where they are saved, what fails and what goes on.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use retouch_graph::{
    Cancel, Engine, Event, Exists, MemoryFiles, Problems, Recorder, RunError, RunOptions, Saver,
    Settings, Sweep,
};

use crate::common::registry;

const HEAD: &str = "schema: retouch/v1
name: sums
params:
  a: {type: int, default: 1, max: 100}
  b: {type: float, default: 2}
  word: {type: string, default: hello}
  seed: {type: seed, default: 7}
  share: {type: steps, default: 20%}
  unused: {type: bool, default: false}
nodes:
  one: {op: number, value: $params.a}
  two: {op: number, value: $params.b}
  sum: {op: add, a: $one, b: $two}
  said: {op: join, items: [$sum], prefix: \"{word} {unused}\"}
  drawn: {op: sample, steps: 2, seed: $params.seed, blend: $params.share}
outputs:
  sum: {value: $sum, save: \"sum.txt\"}
  one: {value: $one, save: \"one-{a}.txt\"}
  said: {value: $said}
  drawn: {value: $drawn, save: \"{workflow}/{seed}.txt\"}
";

fn engine(sweep: &str) -> Engine {
    let files = MemoryFiles::new()
        .with("wf.yaml", format!("{HEAD}{sweep}"))
        .with("own/sweep.yaml", format!("schema: retouch/v1\n{sweep}"))
        .with(
            "own/words.txt",
            "\u{feff}# places\nfirst\n\n  second: one  \r\nfirst\n",
        )
        .with("own/numbers.txt", "3\nfive\n")
        .with("own/prompts.txt", "a {} in the snow\na red {}\na {} {}\n");
    Engine::new(registry()).with_files(Arc::new(files))
}

fn load(sweep: &str, settings: &Settings) -> Result<Sweep, Problems> {
    engine(sweep).load_sweep(Path::new("wf.yaml"), settings)
}

fn labels(sweep: &str, over: &[&str], set: &[&str]) -> Vec<String> {
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let settings = Settings {
        over: own(over),
        set: own(set),
        draw: Some(1000),
        ..Settings::default()
    };
    match load(sweep, &settings) {
        Ok(sweep) => sweep.cells.into_iter().map(|cell| cell.label).collect(),
        Err(problems) => panic!("{problems:?}"),
    }
}

#[test]
fn the_first_param_of_a_matrix_changes_slowest_and_include_and_exclude_change_the_cells() {
    assert_eq!(
        labels("sweep: {matrix: {a: [1, 2], b: [0.5, 3]}}\n", &[], &[]),
        ["a=1, b=0.5", "a=1, b=3", "a=2, b=0.5", "a=2, b=3"]
    );
    // An included cell may vary what the matrix does not; the others then show its default.
    assert_eq!(
        labels(
            "sweep:\n  matrix: {a: 1..3}\n  include: [{a: 9, word: x}, {a: 2}]\n  exclude: [{a: 1}]\n",
            &[],
            &[]
        ),
        ["a=2, word=hello", "a=9, word=x"]
    );
    // 3 and 3.0 are one number.
    assert_eq!(
        labels(
            "sweep: {matrix: {b: [3, 3.0, 4]}, exclude: [{b: 4.0}]}\n",
            &[],
            &[]
        ),
        ["b=3"]
    );
}

#[test]
fn params_that_are_zipped_go_together_value_by_value() {
    let sweep = "sweep: {matrix: {a: [1, 2], word: [x, y], b: [0.5, 3]}, zip: [word, a]}\n";
    assert_eq!(
        labels(sweep, &[], &[]),
        [
            "a=1, word=x, b=0.5",
            "a=1, word=x, b=3",
            "a=2, word=y, b=0.5",
            "a=2, word=y, b=3"
        ]
    );
    // What the command line gives goes with all of the others.
    assert_eq!(labels(sweep, &[], &["a=7", "b=1"]), ["word=x", "word=y"]);
    assert_eq!(labels(sweep, &["a=7,8,9"], &["b=1"]).len(), 6);
    // Several groups; each is one step of the whole.
    let two = "sweep: {matrix: {a: [1, 2], b: [0.5, 3], word: [x, y], seed: [1, 2]}, zip: [[a, b], [word, seed]]}\n";
    assert_eq!(labels(two, &[], &[]).len(), 4);
    // Equal values are as many as they are written, since each goes with another.
    let equal = "sweep: {matrix: {a: [1, 2, 3], word: [cat, cat, dog]}, zip: [a, word]}\n";
    assert_eq!(
        labels(equal, &[], &[]),
        ["a=1, word=cat", "a=2, word=cat", "a=3, word=dog"]
    );
}

#[test]
fn the_cells_of_several_matrices_follow_one_another() {
    let sweep = "sweep:
  matrix:
    - {a: [1, 2], word: [x, y], b: [0, 1]}
    - {a: [3], word: [z], b: {from: 5, to: 7, step: 1}}
    - {word: [w, x]}
  zip: [a, word]
  exclude: [{word: y, b: 1}]
";
    assert_eq!(
        labels(sweep, &[], &[]),
        [
            "a=1, word=x, b=0",
            "a=1, word=x, b=1",
            "a=2, word=y, b=0",
            "a=3, word=z, b=5",
            "a=3, word=z, b=6",
            "a=3, word=z, b=7",
            // What a matrix does not say has its default.
            "a=1, word=w, b=2",
            "a=1, word=x, b=2",
        ]
    );
    // What the command line gives goes with the cells of all of them; a cell that is given twice is one.
    assert_eq!(
        labels(sweep, &["a=8,9"], &["b=1"]),
        [
            "a=8, word=x",
            "a=9, word=x",
            "a=8, word=z",
            "a=9, word=z",
            "a=8, word=w",
            "a=9, word=w",
        ]
    );
    let empty = "sweep: {matrix: [{}, {a: [1]}]}\n";
    assert_eq!(labels(empty, &[], &[]), ["a=1"]);
    assert_eq!(labels(empty, &[], &["b=1"]), ["a=1"]);
    // What is zipped with a param that the command line sets is by itself: equal values are one.
    let alone = "sweep: {matrix: {a: [1, 2], word: [x, x]}, zip: [a, word]}\n";
    assert_eq!(labels(alone, &[], &["a=1"]).len(), 1);
    // What is excluded by params that are all set says nothing of the cells.
    let excluded = "sweep: {matrix: {a: [1, 2], b: [3]}, exclude: [{a: 1}]}\n";
    assert_eq!(labels(excluded, &[], &["a=1"]).len(), 1);
}

#[test]
fn a_line_is_whole_or_what_is_before_or_after_the_first_mark() {
    let sweep = "sweep: {matrix: {word: {lines: own/prompts.txt, before: \"{}\"}, a: [1, 2, 3]}, zip: [word, a]}\n";
    assert_eq!(
        labels(sweep, &[], &[]),
        ["word=a , a=1", "word=a red , a=2", "word=a , a=3"]
    );
    let after = sweep.replace("before", "after");
    assert_eq!(
        labels(&after, &[], &[]),
        ["word= in the snow, a=1", "word=, a=2", "word= {}, a=3"]
    );
}

#[test]
fn values_are_lists_ranges_steps_shares_and_lines_of_a_file() {
    assert_eq!(
        labels("sweep: {matrix: {a: 1..=3}}\n", &[], &[]),
        ["a=1", "a=2", "a=3"]
    );
    assert_eq!(
        labels("sweep: {matrix: {seed: [1..3, 9]}}\n", &[], &[]),
        ["seed=1", "seed=2", "seed=9"]
    );
    assert_eq!(
        labels(
            "sweep: {matrix: {b: {from: 0, to: 0.3, step: 0.1}}}\n",
            &[],
            &[]
        ),
        ["b=0", "b=0.1", "b=0.2", "b=0.3"]
    );
    assert_eq!(
        labels(
            "sweep: {matrix: {share: {from: 10%, to: 30%, step: 10%}}}\n",
            &[],
            &[]
        ),
        ["share=10%", "share=20%", "share=30%"]
    );
    assert_eq!(
        labels(
            "sweep: {matrix: {word: {lines: own/words.txt}}}\n",
            &[],
            &[]
        ),
        ["word=first", "word=second: one"]
    );
    // What looks like a range is a word where a text is due.
    assert_eq!(
        labels("sweep: {matrix: {word: 1..3}}\n", &[], &[]),
        ["word=1..3"]
    );
    // Each `random` is a draw of its own; the default's is the same in all cells.
    let drawn = labels("sweep: {matrix: {seed: [random, random]}}\n", &[], &[]);
    let seeds: Vec<u64> = (drawn.iter())
        .map(|label| label.strip_prefix("seed=").unwrap().parse().unwrap())
        .collect();
    assert_eq!(seeds.len(), 2);
    let apart = seeds[0].abs_diff(seeds[1]);
    assert!(
        apart > 1 << 20 && !apart.is_multiple_of(1 << 32),
        "{seeds:?}"
    );
    assert_eq!(
        drawn,
        labels("sweep: {matrix: {seed: [random, random]}}\n", &[], &[])
    );
    let text =
        HEAD.replace("default: 7}", "default: random}") + "sweep: {matrix: {a: [1, 2, 3]}}\n";
    let files = MemoryFiles::new().with("wf.yaml", text);
    let engine = Engine::new(registry()).with_files(Arc::new(files));
    let sweep = engine.load_sweep(Path::new("wf.yaml"), &Settings::default());
    let seeds: BTreeSet<String> = (sweep.unwrap().cells.iter())
        .map(|cell| {
            cell.params
                .iter()
                .find(|param| param.name == "seed")
                .unwrap()
        })
        .map(|seed| seed.value.to_string())
        .collect();
    assert_eq!(seeds.len(), 1, "{seeds:?}");
}

#[test]
fn over_and_set_replace_what_the_file_says() {
    let file = "sweep: {matrix: {a: [1, 2], b: [3, 4]}}\n";
    assert_eq!(
        labels(file, &["a=5..7"], &[]),
        ["a=5, b=3", "a=5, b=4", "a=6, b=3", "a=6, b=4"]
    );
    assert_eq!(labels(file, &[], &["a=9"]), ["b=3", "b=4"]);
    assert_eq!(labels("", &["word=x y, z", "seed=1,2"], &[]).len(), 4);
}

fn run(sweep: &Sweep, engine: &Engine, options: &RunOptions) -> (Recorder, Result<(), RunError>) {
    let plan = engine.plan_sweep(sweep, &[], &BTreeSet::new()).unwrap();
    let recorder = Recorder::new();
    let result = engine.run(&plan.plan, &recorder, &Cancel::new(), options);
    (recorder, result.map(drop))
}

#[test]
fn nodes_that_cells_share_run_once_and_are_named_by_what_sets_them_apart() {
    let engine = engine("sweep: {matrix: {a: [1, 2], word: [x, y]}}\n");
    let sweep = engine
        .load_sweep(Path::new("wf.yaml"), &Settings::default())
        .unwrap();
    let (recorder, result) = run(
        &sweep,
        &engine,
        &RunOptions {
            threads: 1,
            ..RunOptions::default()
        },
    );
    result.unwrap();
    assert_eq!(
        recorder.ran(),
        [
            "one [a=1]",
            "two",
            "sum [a=1]",
            "said [a=1, word=x]",
            "drawn",
            "said [a=1, word=y]",
            // `one` of a = 2 is `two`: both give 2.
            "sum [a=2]",
            "said [a=2, word=x]",
            "said [a=2, word=y]"
        ]
    );
}

#[test]
fn the_plan_of_some_cells_is_that_part_of_the_plan_of_all() {
    let engine = engine("sweep: {matrix: {a: [1, 2, 3], word: [x, y], seed: [4, 5]}}\n");
    let sweep = engine.load_sweep(Path::new("wf.yaml"), &Settings::default());
    let sweep = sweep.unwrap();
    let whole = engine.plan_sweep(&sweep, &[], &BTreeSet::new()).unwrap();
    for without in [vec![0], vec![1, 4, 11], (0..11).collect(), vec![5, 6]] {
        let without: BTreeSet<usize> = without.into_iter().collect();
        let part = engine.plan_sweep(&sweep, &[], &without).unwrap();
        let rest: Vec<usize> = (whole.outputs.iter().enumerate())
            .filter(|(_, (cell, _))| cell.is_none_or(|cell| !without.contains(&cell)))
            .map(|(at, _)| at)
            .collect();
        assert_eq!(part.outputs.len(), rest.len());
        for (at, of_whole) in rest.into_iter().enumerate() {
            assert_eq!(part.outputs[at], whole.outputs[of_whole]);
            assert_eq!(part.key(at), whole.key(of_whole));
        }
        let cells: BTreeSet<usize> = part.cells.iter().flatten().copied().collect();
        assert!(cells.is_disjoint(&without));
        assert_eq!(cells.len() + without.len(), sweep.cells.len());
    }
}

#[test]
fn outputs_of_several_cells_get_names_of_their_own_only_where_they_differ() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine("sweep: {matrix: {a: [1, 2], word: [x/1, y]}}\n");
    let sweep = engine
        .load_sweep(Path::new("wf.yaml"), &Settings::default())
        .unwrap();
    let options = RunOptions {
        saver: Some(Arc::new(Saver::new(folder.path(), Exists::Fail))),
        ..RunOptions::default()
    };
    run(&sweep, &engine, &options).1.unwrap();
    let mut files: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    // `sum` depends on `a`, which its template does not name; `one` names it; `drawn` is the same in all cells.
    assert_eq!(
        files,
        [
            "one-1.txt",
            "one-2.txt",
            "sum-a=1.txt",
            "sum-a=2.txt",
            "sums"
        ]
    );
    assert_eq!(
        std::fs::read_to_string(folder.path().join("sum-a=2.txt")).unwrap(),
        "4"
    );
}

#[test]
fn a_sweep_in_a_file_of_its_own_is_of_the_workflow_that_it_names() {
    let text = "name: mine\nsweep:\n  workflow: ../wf.yaml\n  matrix: {word: {lines: words.txt}}\n  table: \"{workflow}/{a}.csv\"\n";
    let engine = engine(text);
    // The workflow beside it has the same text appended, which makes it no workflow: it is replaced.
    let files = MemoryFiles::new()
        .with("wf.yaml", HEAD)
        .with("own/sweep.yaml", format!("schema: retouch/v1\n{text}"))
        .with("own/words.txt", "u\nv\n");
    let engine = engine.with_files(Arc::new(files));
    let path = Path::new("own/sweep.yaml");
    let sweep = engine.load_sweep(path, &Settings::default()).unwrap();
    assert_eq!(sweep.cells.len(), 2);
    assert_eq!(sweep.table.as_deref(), Some("sums/1.csv"));
    let read: Vec<String> = sweep
        .files()
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    assert_eq!(read, ["own/sweep.yaml", "wf.yaml", "own/words.txt"]);
    let problems = engine.load(path, &Settings::default()).unwrap_err();
    assert_eq!(problems.iter().next().unwrap().code().as_str(), "R0215");
}

#[test]
fn faults_are_told_at_their_place_once() {
    for (sweep, code, line, column, message) in [
        ("sweep: {}\n", "R0208", 21, 1, "no cells"),
        ("sweep: 3\n", "R0205", 21, 8, "is a map"),
        (
            "sweep: {matrix: {c: [1]}}\n",
            "R0501",
            21,
            18,
            "no param `c`",
        ),
        ("sweep: {matrix: {a: []}}\n", "R0208", 21, 21, "no values"),
        ("sweep: {matrix: {a: [1, x]}}\n", "R0312", 21, 25, "integer"),
        ("sweep: {matrix: {a: [1, 200]}}\n", "R0315", 21, 25, "100"),
        (
            "sweep: {matrix: {share: 10%..40%}}\n",
            "R0208",
            21,
            25,
            "is not a range",
        ),
        ("sweep: {matrix: {a: 5..2}}\n", "R0208", 21, 21, "empty"),
        (
            "sweep: {matrix: {a: 1..99999}}\n",
            "R0208",
            21,
            21,
            "99998 values",
        ),
        (
            "sweep: {matrix: {a: 1..100, seed: 1..1000}}\n",
            "R0208",
            21,
            1,
            "98901 cells",
        ),
        (
            "sweep: {matrix: {b: {from: 0, to: 5}}}\n",
            "R0208",
            21,
            21,
            "`from`, `to` and `step`",
        ),
        (
            "sweep: {matrix: {b: {from: 0, to: 5, step: -1}}}\n",
            "R0208",
            21,
            21,
            "has no values, or too many",
        ),
        (
            "sweep: {matrix: {b: {from: 0, to: 5, by: 1}}}\n",
            "R0208",
            21,
            38,
            "no key `by`",
        ),
        (
            "sweep: {matrix: {word: {lines: none.txt}}}\n",
            "R0322",
            21,
            24,
            "none.txt",
        ),
        (
            "sweep: {matrix: {a: {lines: own/numbers.txt}}}\n",
            "R0312",
            2,
            1,
            "integer",
        ),
        (
            "sweep: {matrix: {word: {lines: own/words.txt, before: \"{}\"}}}\n",
            "R0208",
            2,
            1,
            "no `{}`",
        ),
        (
            "sweep: {matrix: {word: {lines: own/prompts.txt, before: a, after: a}}}\n",
            "R0208",
            21,
            24,
            "one of `before` and `after`",
        ),
        (
            "sweep: {matrix: {word: {lines: own/prompts.txt, before: \"\"}}}\n",
            "R0208",
            21,
            24,
            "one of `before` and `after`",
        ),
        ("sweep: {matrix: [3]}\n", "R0205", 21, 18, "is a map"),
        (
            "sweep: {matrix: [{a: [1]}, {c: [1]}]}\n",
            "R0501",
            21,
            29,
            "no param `c`",
        ),
        (
            "sweep: {matrix: [{a: [1, 2], b: [1, 2]}, {a: [1], b: [3, 4]}], zip: [a, b]}\n",
            "R0208",
            21,
            73,
            "`a` has 1 values and `b` 2",
        ),
        (
            "sweep: {matrix: {a: [1]}, exclude: [{a: 2}]}\n",
            "R0208",
            21,
            37,
            "nothing is excluded",
        ),
        (
            "sweep: {matrix: {a: [1]}, exclude: [{b: 2}]}\n",
            "R0208",
            21,
            38,
            "does not vary",
        ),
        (
            "sweep: {matrix: {a: [1, 2], b: [3]}, zip: [a, b]}\n",
            "R0208",
            21,
            47,
            "`a` has 2 values and `b` 1",
        ),
        (
            "sweep: {matrix: {a: [1, 2], b: [3, 4]}, zip: [a, a]}\n",
            "R0208",
            21,
            50,
            "zipped twice",
        ),
        (
            "sweep: {matrix: {a: [1]}, zip: [a]}\n",
            "R0208",
            21,
            32,
            "two params or more",
        ),
        (
            "sweep: {matrix: {a: [1]}, zip: [a, word]}\n",
            "R0208",
            21,
            36,
            "not in the matrix",
        ),
        (
            "sweep: {matrix: {a: [1]}, include: {a: 2}}\n",
            "R0205",
            21,
            36,
            "list of maps",
        ),
        (
            "sweep: {matrix: {a: [1]}, cells: 3}\n",
            "R0203",
            21,
            27,
            "no key `cells`",
        ),
        (
            "sweep: {matrix: {a: [1]}, table: x.txt}\n",
            "R0602",
            21,
            34,
            ".csv",
        ),
        (
            "sweep: {matrix: {a: [1]}, table: \"{a}.csv\"}\n",
            "R0213",
            21,
            34,
            "varies",
        ),
        (
            "sweep: {matrix: {a: [1]}, table: ../x.csv}\n",
            "R0601",
            21,
            34,
            "leads out",
        ),
        (
            "sweep: {matrix: {a: [1]}, grid: {rows: b}}\n",
            "R0208",
            21,
            40,
            "does not vary",
        ),
        (
            "sweep: {matrix: {a: [1], b: [2]}, grid: {rows: a, columns: a}}\n",
            "R0208",
            21,
            35,
            "given to the sheet twice",
        ),
        (
            "sweep: {matrix: {a: [1]}, grid: {output: sum}}\n",
            "R0208",
            21,
            42,
            "not a picture",
        ),
        (
            "sweep: {workflow: x.yaml, matrix: {a: [1]}}\n",
            "R0208",
            21,
            19,
            "names another workflow",
        ),
        // A fault of the workflow that only some cells have.
        (
            "sweep: {matrix: {a: [1, 13], b: [2, 13, 13.0]}}\n",
            "R0321",
            13,
            30,
            "13",
        ),
    ] {
        let Err(problems) = load(sweep, &Settings::default()) else {
            panic!("no fault in {sweep}");
        };
        let told: Vec<_> = problems
            .iter()
            .map(|problem| {
                (
                    problem.code().as_str(),
                    problem.line_column(),
                    problem.message().to_owned(),
                )
            })
            .collect();
        assert!(
            problems.iter().all(|problem| problem.hint().is_some()),
            "{sweep}: {told:?}"
        );
        assert_eq!(told.len(), 1, "{sweep}: {told:?}");
        assert_eq!(
            (told[0].0, told[0].1),
            (code, (line, column)),
            "{sweep}: {told:?}"
        );
        assert!(told[0].2.contains(message), "{sweep}: {told:?}");
    }
    // What is named twice is so for every command line.
    let set = Settings {
        set: vec!["a=5".to_owned()],
        ..Settings::default()
    };
    let Err(problems) = load(
        "sweep: {matrix: {a: [1, 2], b: [3, 4]}, zip: [a, a]}\n",
        &set,
    ) else {
        panic!("`a` is zipped twice");
    };
    assert!(format!("{problems:?}").contains("zipped twice"));
    let Err(problems) = load("", &Settings::default()) else {
        panic!("there is no sweep");
    };
    assert!(
        problems
            .iter()
            .next()
            .unwrap()
            .message()
            .contains("has no sweep")
    );
    let settings = Settings {
        over: vec!["nothing".to_owned(), "a=[1".to_owned(), "zz=1".to_owned()],
        ..Settings::default()
    };
    assert_eq!(load("", &settings).unwrap_err().len(), 3);
}

#[test]
fn with_keep_going_what_does_not_need_the_failure_is_made_and_each_failure_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let text = "schema: retouch/v1
params: {how: {type: string, default: nothing}}
nodes:
  base: {op: number, value: 3}
  trouble: {op: trouble, how: $params.how, after: $base}
  sum: {op: add, a: $trouble}
outputs: {sum: {value: $sum, save: \"{how}.txt\"}}
sweep: {matrix: {how: [fail, ok, panic]}}
";
    let files = MemoryFiles::new().with("wf.yaml", text);
    let engine = Engine::new(registry()).with_files(Arc::new(files));
    let sweep = engine
        .load_sweep(Path::new("wf.yaml"), &Settings::default())
        .unwrap();
    for keep_going in [false, true] {
        let options = RunOptions {
            threads: 1,
            keep_going,
            saver: Some(Arc::new(Saver::new(folder.path(), Exists::Keep))),
            ..RunOptions::default()
        };
        let (recorder, result) = run(&sweep, &engine, &options);
        let failed = recorder
            .events()
            .iter()
            .filter(|event| matches!(event, Event::NodeFailed { .. }))
            .count();
        assert_eq!(failed, if keep_going { 2 } else { 1 });
        assert_eq!(folder.path().join("ok.txt").exists(), keep_going);
        match result {
            Err(RunError::Several { count: 2, .. }) => assert!(keep_going),
            Err(RunError::NodeFailed { .. }) => assert!(!keep_going),
            other => panic!("{other:?}"),
        }
    }
}
