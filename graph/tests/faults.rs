//! Every fault: its code, line, column and hint.

use std::collections::BTreeSet;
use std::sync::Arc;

use retouch_graph::{
    Code, Context, Engine, Fault, Files, Node, NodeError, Problems, Settings, Types,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{
    self, Nothing, Number, OneNumber, engine, faults, faults_of, files, show, with_files,
};

const HEAD: &str = "schema: retouch/v1\n";

/// One broken workflow each: the code, the line, the column, a piece of the message, a piece of the hint.
/// The text stands below `schema: retouch/v1`, so its first line is line 2, unless it has a schema of its own.
const BROKEN: &[(&str, &str, usize, usize, &str, &str)] = &[
    ("R0101", "nodes:\n\ta: 1\n", 3, 1, "tab", "spaces"),
    (
        "R0101",
        "nodes:\n  a: {op: number, value: 1\n",
        3,
        6,
        "unclosed",
        "bracket",
    ),
    (
        "R0101",
        "nodes:\n  j: {op: join, prefix: {place} at night}\n",
        3,
        25,
        "not YAML",
        "quote the template",
    ),
    ("R0101", "name: a: b\n", 2, 8, "not YAML", "quote a text"),
    (
        "R0104",
        "---\nname: x\n",
        2,
        1,
        "second document",
        "one workflow",
    ),
    (
        "R0105",
        "name: !!str x\n",
        2,
        7,
        "`!!str`",
        "remove the tag",
    ),
    (
        "R0106",
        "nodes:\n  a: &a {op: number, value: 1}\n  b: {<<: *a}\n",
        4,
        7,
        "<<",
        "write the keys out",
    ),
    (
        "R0107",
        "name: a\nname: b\n",
        3,
        1,
        "`name` is given twice",
        "remove",
    ),
    (
        "R0108",
        "nodes:\n  1: {op: number, value: 1}\n",
        3,
        3,
        "not the number 1",
        "quotes",
    ),
    (
        "R0109",
        "nodes:\n  a: {op: number, value: 9007199254740993}\n",
        3,
        26,
        "2^53",
        "quotes",
    ),
    (
        "R0109",
        "nodes:\n  a: {op: number, value: .nan}\n",
        3,
        26,
        ".nan",
        "quotes",
    ),
    ("R0110", "name: *x\n", 2, 7, "&x", "dollar"),
    (
        "R0203",
        "nods: {}\n",
        2,
        1,
        "no key `nods`",
        "did you mean `nodes`?",
    ),
    (
        "R0203",
        "outputs:\n  a: {value: $b, sav: x.txt}\nnodes:\n  b: {op: number, value: 1}\n",
        3,
        18,
        "`sav`",
        "did you mean `save`?",
    ),
    (
        "R0203",
        "nodes:\n  a: {use: part.yaml, op: add}\n",
        3,
        7,
        "both",
        "either",
    ),
    (
        "R0203",
        "nodes:\n  a: {use: part.yaml, with: {first: $n, word: x}, word: y}\n  n: {op: number, value: 1}\n",
        3,
        51,
        "no key `word`",
        "`with:`",
    ),
    (
        "R0204",
        "nodes:\n  a: {value: 1}\n",
        3,
        3,
        "neither `op` nor `use`",
        "add `op",
    ),
    (
        "R0204",
        "nodes:\n  a: {Op: number}\n",
        3,
        3,
        "neither `op` nor `use`",
        "did you mean `op`",
    ),
    (
        "R0204",
        "outputs:\n  a: {save: x.txt}\n",
        3,
        3,
        "no `value`",
        "add `value",
    ),
    (
        "R0204",
        "params:\n  a: {default: 1}\n",
        3,
        3,
        "no `type`",
        "type: string",
    ),
    (
        "R0205",
        "nodes: [a]\n",
        2,
        8,
        "is a map, not a list",
        "write one",
    ),
    (
        "R0205",
        "nodes:\n  a: number\n",
        3,
        6,
        "is a map",
        "op: load_model",
    ),
    ("R0205", "name: 5\n", 2, 7, "takes a text", "\"5\""),
    (
        "R0206",
        "nodes:\n  \"a b\": {op: number, value: 1}\n",
        3,
        3,
        "cannot name",
        "letters",
    ),
    (
        "R0207",
        "nodes:\n  params: {op: number, value: 1}\n",
        3,
        3,
        "reserved",
        "another name",
    ),
    ("R0208", "sweep: {}\n", 2, 1, "no cells", "matrix"),
    (
        "R0215",
        "sweep: {workflow: a.yaml, matrix: {a: [1]}}\n",
        2,
        1,
        "a sweep of `a.yaml`",
        "retouch sweep",
    ),
    (
        "R0209",
        "params:\n  a: {type: integer}\n",
        3,
        13,
        "no type `integer`",
        "the types are",
    ),
    (
        "R0209",
        "params:\n  a: {type: sting}\n",
        3,
        13,
        "no type `sting`",
        "did you mean `string`?",
    ),
    (
        "R0209",
        "inputs:\n  a: {type: nubmer, optional: true}\n",
        3,
        13,
        "no type `nubmer`",
        "did you mean `number`?",
    ),
    (
        "R0210",
        "params:\n  a: {type: int, default: 0, min: 1}\n",
        3,
        27,
        "must be 1 or greater",
        "",
    ),
    (
        "R0210",
        "params:\n  a: {type: int, default: 1.5}\n",
        3,
        27,
        "takes an integer",
        "",
    ),
    (
        "R0210",
        "params:\n  a: {type: int, default: 1, min: 5, max: 2}\n",
        3,
        43,
        "below its minimum",
        "swap",
    ),
    (
        "R0210",
        "params:\n  a: {type: choice, default: x}\n",
        3,
        3,
        "no `values`",
        "values: [",
    ),
    (
        "R0210",
        "params:\n  a: {type: choice, default: on, values: [one, two]}\n",
        3,
        30,
        "no value `on`",
        "did you mean `one`?",
    ),
    (
        "R0210",
        "params:\n  a: {type: bool, default: true, min: 1}\n",
        3,
        34,
        "is for numbers",
        "remove",
    ),
    (
        "R0210",
        "params:\n  a: {type: int, default: 1}\ninputs:\n  a: {type: int, default: 1}\n",
        5,
        3,
        "name of a param",
        "rename",
    ),
    (
        "R0211",
        "outputs:\n  a: {value: $a b}\n",
        3,
        14,
        "not a reference",
        "$node.port",
    ),
    (
        "R0211",
        "nodes:\n  j: {op: join, prefix: $5 bill, items: []}\n",
        3,
        25,
        "not a reference",
        "`$$5 bill`",
    ),
    (
        "R0211",
        "outputs:\n  a: {value: $params}\n",
        3,
        14,
        "not a reference",
        "$params.name",
    ),
    (
        "R0212",
        "nodes:\n  j: {op: join, prefix: \"a } b\"}\noutputs:\n  j: {value: $j}\n",
        3,
        28,
        "single brace",
        "twice",
    ),
    (
        "R0212",
        "nodes:\n  j: {op: join, prefix: \"a {b c}\"}\noutputs:\n  j: {value: $j}\n",
        3,
        28,
        "`{b c}`",
        "twice",
    ),
    (
        "R0213",
        "params:\n  place: {type: string, default: x}\nnodes:\n  j: {op: join, prefix: \"é {plaec}\"}\noutputs:\n  j: {value: $j}\n",
        5,
        28,
        "names `plaec`",
        "did you mean `place`?",
    ),
    (
        "R0213",
        "nodes:\n  j: {op: join}\noutputs:\n  j: {value: $j, save: \"{workflov}.txt\"}\n",
        5,
        25,
        "names `workflov`",
        "did you mean `workflow`?",
    ),
    (
        "R0214",
        "nodes:\n  j: {op: join, prefix: {place}}\n",
        3,
        25,
        "not a map",
        "quote the template: `prefix: \"{place}\"`",
    ),
    (
        "R0214",
        "nodes:\n  j: {op: join}\noutputs:\n  j: {value: $j, save: {workflow}}\n",
        5,
        24,
        "not a map",
        "quote the template",
    ),
    (
        "R0301",
        "nodes:\n  a: {op: nubmer, value: 1}\n",
        3,
        11,
        "no op `nubmer`",
        "did you mean `number`?",
    ),
    (
        "R0301",
        "nodes:\n  a: {op: paint}\n",
        3,
        11,
        "no op `paint`",
        "the ops are",
    ),
    (
        "R0302",
        "outputs:\n  a: {value: $nn}\nnodes:\n  nnn: {op: number, value: 1}\n",
        3,
        14,
        "no node `nn`",
        "did you mean `$nnn`?",
    ),
    (
        "R0302",
        "nodes:\n  s: {op: add, a: $x}\nparams:\n  x: {type: int, default: 1}\n",
        3,
        19,
        "no node `x`",
        "did you mean `$params.x`?",
    ),
    (
        "R0303",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add, a: $n.uot}\n",
        4,
        19,
        "no output `uot`",
        "did you mean `$n.out`?",
    ),
    (
        "R0303",
        "nodes:\n  n: {op: number, value: 1}\n  p: {use: part.yaml, with: {first: $n, word: x}}\n  s: {op: add, a: $p.smu}\n",
        5,
        19,
        "no output `smu`",
        "did you mean `$p.sum`?",
    ),
    (
        "R0304",
        "nodes:\n  n: {op: number, value: $params.vlaue}\nparams:\n  value: {type: float, default: 1}\n",
        3,
        26,
        "no param `vlaue`",
        "did you mean `$params.value`?",
    ),
    (
        "R0305",
        "nodes:\n  n: {op: number, value: $inputs.v}\n",
        3,
        26,
        "no input `v`",
        "no inputs",
    ),
    (
        "R0306",
        "nodes:\n  n: {op: number, value: 1, vlaue: 2}\n",
        3,
        29,
        "neither a parameter nor a port `vlaue`",
        "did you mean `value`?",
    ),
    (
        "R0306",
        "nodes:\n  n: {op: number, value: 1, with: {}}\n",
        3,
        29,
        "`with`",
        "`use:`",
    ),
    (
        "R0307",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add}\n",
        4,
        3,
        "port `a` is missing",
        "add `a: $n`",
    ),
    (
        "R0308",
        "nodes:\n  n: {op: number}\n",
        3,
        3,
        "needs the parameter `value`",
        "a number",
    ),
    (
        "R0309",
        "nodes:\n  j: {op: join}\n  s: {op: add, a: $j}\n",
        4,
        19,
        "`a` takes a number, and `$j` is a text",
        "number is produced by `number`",
    ),
    (
        "R0309",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add, a: $n, explain: true}\n  t: {op: add, a: $s.report}\n",
        5,
        19,
        "is a text",
        "did you mean `$s.sum`?",
    ),
    (
        "R0309",
        "nodes:\n  j: {op: join}\n  p: {use: part.yaml, with: {first: $j, word: x}}\n",
        4,
        37,
        "`first` takes a number",
        "",
    ),
    (
        "R0310",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add, a: n}\n",
        4,
        19,
        "takes a reference to a number",
        "did you mean `$n`?",
    ),
    (
        "R0310",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add, a: 5}\n",
        4,
        19,
        "not the number 5",
        "write `a: $n`",
    ),
    (
        "R0310",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add, a: $params.x}\nparams:\n  x: {type: float, default: 1}\n",
        4,
        19,
        "is a value",
        "write `a: $n`",
    ),
    (
        "R0310",
        "nodes:\n  n: {op: number, value: 1}\noutputs:\n  o: {value: n}\n",
        5,
        14,
        "reference",
        "did you mean `$n`?",
    ),
    (
        "R0310",
        "nodes:\n  p: {use: part.yaml, with: {first: 5, word: x}}\n",
        3,
        37,
        "`first` takes a reference",
        "write `first: $node`",
    ),
    (
        "R0311",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: sample, steps: $n}\n",
        4,
        26,
        "takes a value",
        "write a value",
    ),
    (
        "R0311",
        "nodes:\n  s: {op: sample, steps: $steps}\nparams:\n  steps: {type: int, default: 5}\n",
        3,
        26,
        "takes a value",
        "did you mean `$params.steps`?",
    ),
    (
        "R0312",
        "nodes:\n  s: {op: sample, steps: many}\n",
        3,
        26,
        "`steps` takes an integer, not the text `many`",
        "",
    ),
    (
        "R0312",
        "nodes:\n  s: {op: sample, steps: 1_000}\n",
        3,
        26,
        "not the text `1_000`",
        "without underscores: `steps: 1000`",
    ),
    (
        "R0312",
        "nodes:\n  s: {op: sample, steps: 50.0}\n",
        3,
        26,
        "takes an integer",
        "write `steps: 50`",
    ),
    (
        "R0312",
        "nodes:\n  j: {op: join, prefix: 42}\n",
        3,
        25,
        "takes a text",
        "`prefix: \"42\"`",
    ),
    (
        "R0312",
        "nodes:\n  s: {op: sample, steps: 5, word: bird}\n",
        3,
        35,
        "must begin with `w`",
        "a text",
    ),
    (
        "R0312",
        "nodes:\n  s: {op: sample, steps: 5, size: [1, x]}\n",
        3,
        39,
        "not the text `x`",
        "",
    ),
    (
        "R0312",
        "nodes:\n  s: {op: sample, steps: 5, size: [1, 2, 3]}\n",
        3,
        35,
        "`size`",
        "",
    ),
    (
        "R0313",
        "nodes:\n  s: {op: sample, steps: \"50\"}\n",
        3,
        26,
        "takes an integer",
        "write it without quotes: `steps: 50`",
    ),
    (
        "R0314",
        "nodes:\n  s: {op: sample, steps: 5, lock: yes}\n",
        3,
        35,
        "`true` or `false`",
        "write `lock: true`",
    ),
    (
        "R0314",
        "nodes:\n  s: {op: sample, steps: 5, lock: \"false\"}\n",
        3,
        35,
        "`true` or `false`",
        "without quotes: `lock: false`",
    ),
    (
        "R0315",
        "nodes:\n  s: {op: sample, steps: 0}\n",
        3,
        26,
        "must be from 1 to 1000",
        "",
    ),
    (
        "R0315",
        "nodes:\n  s: {op: sample, steps: $params.n}\nparams:\n  n: {type: int, default: 5000}\n",
        3,
        26,
        "`steps` is 5000",
        "",
    ),
    (
        "R0315",
        "nodes:\n  j: {op: join, separator: coma}\n",
        3,
        28,
        "no value `coma`",
        "did you mean `comma`?",
    ),
    (
        "R0315",
        "nodes:\n  s: {op: sample, steps: 5, threshold: otus}\n",
        3,
        40,
        "no value `otus`",
        "did you mean `otsu`?",
    ),
    (
        "R0316",
        "nodes:\n  s: {op: sample, steps: $params.n}\nparams:\n  n: {type: string, default: \"5\"}\n",
        3,
        26,
        "`steps` takes an integer, and `$params.n` is a string",
        "declared type",
    ),
    (
        "R0317",
        "nodes:\n  a: {op: add, a: $c}\n  b: {op: add, a: $a}\n  c: {op: add, a: $b}\n",
        3,
        19,
        "a -> b -> c -> a",
        "cut",
    ),
    (
        "R0317",
        "nodes:\n  a: {op: add, a: $a}\n",
        3,
        19,
        "its own output",
        "cut",
    ),
    (
        "R0318",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add, a: [$n, $n]}\n",
        4,
        19,
        "one link, not a list of 2",
        "write `a: $node`",
    ),
    (
        "R0319",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add, a: $n}\noutputs:\n  r: {value: $s.report}\n",
        6,
        14,
        "`explain: true`",
        "remove the output",
    ),
    (
        "R0320",
        "nodes:\n  n: {op: number, value: 1}\n  s: {op: add, a: $n, amount: 13}\n",
        4,
        31,
        "bad luck",
        "try 12",
    ),
    (
        "R0321",
        "nodes:\n  n: {op: number, value: 13}\n  s: {op: add, a: $n, b: $n}\n",
        4,
        26,
        "two times 13",
        "another number",
    ),
    (
        "R0322",
        "nodes:\n  r: {op: read, path: three.txt}\n",
        3,
        23,
        "no file `flows/three.txt`",
        "relative",
    ),
    (
        "R0323",
        "nodes:\n  r: {op: read, path: bad.txt}\n",
        3,
        23,
        "holds no number",
        "put a number",
    ),
    (
        "R0401",
        "nodes:\n  p: {use: prat.yaml}\n",
        3,
        12,
        "no file `flows/prat.yaml`",
        "relative",
    ),
    (
        "R0402",
        "nodes:\n  p: {use: main.yaml}\n",
        3,
        12,
        "flows/main.yaml -> flows/main.yaml",
        "third workflow",
    ),
    (
        "R0403",
        "nodes:\n  n: {op: number, value: 1}\n  p: {use: part.yaml, with: {first: $n, word: x, secnod: $n}}\n",
        4,
        50,
        "no input or param `secnod`",
        "did you mean `second`?",
    ),
    (
        "R0404",
        "nodes:\n  p: {use: part.yaml, with: {word: x}}\n",
        3,
        3,
        "not given `first`",
        "with: {first: ...}",
    ),
    (
        "R0405",
        "inputs:\n  x: {type: number}\nnodes:\n  s: {op: add, a: $inputs.x}\n",
        3,
        3,
        "needs `x`",
        "use: flows/main.yaml, with: {x: ...}",
    ),
    (
        "R0503",
        "params:\n  x: {type: int}\n",
        3,
        3,
        "no value",
        "--set x=...",
    ),
    (
        "R0601",
        "params:\n  x: {type: string, default: a/b}\nnodes:\n  n: {op: number, value: 1}\noutputs:\n  n: {value: $n, save: \"{x}.txt\"}\n",
        7,
        25,
        "separator",
        "another value",
    ),
    (
        "R0601",
        "nodes:\n  n: {op: number, value: 1}\noutputs:\n  n: {value: $n, save: ../n.txt}\n",
        5,
        24,
        "`..`",
        "relative",
    ),
    (
        "R0601",
        "nodes:\n  n: {op: number, value: 1}\noutputs:\n  n: {value: $n, save: /tmp/n.txt}\n",
        5,
        24,
        "absolute",
        "relative",
    ),
    (
        "R0602",
        "nodes:\n  n: {op: number, value: 1}\noutputs:\n  n: {value: $n, save: n.png}\n",
        5,
        24,
        "cannot be saved as .png",
        "`.txt` or `.json`",
    ),
    (
        "R0602",
        "nodes:\n  n: {op: number, value: 1}\noutputs:\n  n: {value: $n, save: n}\n",
        5,
        24,
        "no ending",
        "`.txt` or `.json`",
    ),
    (
        "R0602",
        "nodes:\n  h: {op: hide}\noutputs:\n  h: {value: $h, save: h.txt}\n",
        5,
        24,
        "cannot be saved",
        "remove `save`",
    ),
    (
        "R0603",
        "nodes:\n  n: {op: number, value: 1}\noutputs:\n  a: {value: $n, save: n.txt}\n  b: {value: $n, save: \"n.txt\"}\n",
        6,
        24,
        "`a` and `b`",
        "another name",
    ),
];

#[test]
fn each_broken_file_gives_its_one_fault_with_line_column_and_hint() {
    let mut wrong = Vec::new();
    for (code, text, line, column, message, hint) in BROKEN {
        let found = faults(&format!("{HEAD}{text}"));
        let start = format!("{code} {line}:{column} ");
        let fits = match found.as_slice() {
            [one] => one.starts_with(&start) && one.contains(message) && one.contains(hint),
            _ => false,
        };
        if !fits {
            wrong.push(format!(
                "{text}\n  expected {start}{message} ({hint})\n  found {found:#?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

/// Gives a number, and a warning when it is checked.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Grumble {}

impl Node for Grumble {
    const OP: &'static str = "grumble";
    const VERSION: u32 = 1;
    type Inputs = Nothing;
    type Outputs = OneNumber;
    fn check(&self, _: &Types<Nothing>, _: &dyn Files) -> Result<Types<OneNumber>, Vec<Fault>> {
        Ok(Types::unknown().warn([Fault::value("op", "as you wish").help("ask nicely")]))
    }
    fn run(&self, _: Nothing, _: &Context<'_>) -> Result<OneNumber, NodeError> {
        Ok(OneNumber {
            out: Arc::new(Number(0.0)),
        })
    }
}

/// The codes of what is wrong with a workflow that no file of `BROKEN` shows: budgets, settings, targets, files that cannot
/// be read, warnings.
fn found_elsewhere() -> BTreeSet<&'static str> {
    const GOOD: &str = "nodes:\n  n: {op: number, value: 1}\n  m: {op: number, value: 2}\noutputs:\n  n: {value: $n}\n";
    let mut found = BTreeSet::new();
    let mut note = |problems: &Problems| {
        found.extend(problems.iter().map(|problem| problem.code().as_str()));
    };
    let all = files()
        .with("latin.yaml", b"name: \xe9".as_slice())
        .with("great.yaml", vec![b' '; (4 << 20) + 1]);
    let engine = with_files(all);
    for name in ["none.yaml", "latin.yaml", "great.yaml"] {
        note(
            &engine
                .load(name.as_ref(), &Settings::default())
                .unwrap_err(),
        );
    }
    let big = "x".repeat(1 << 20);
    let many = "{big}".repeat(200);
    let (open, close) = ("[".repeat(70), "]".repeat(70));
    let uses: String = (0..200_001)
        .map(|at| format!("  n{at}: {{op: x}}\n"))
        .collect();
    let aliases: String = (1..9)
        .map(|at| {
            format!(
                "x-{at}: &a{at} [{}]\n",
                vec![format!("*a{}", at - 1); 10].join(", ")
            )
        })
        .collect();
    for text in [
        GOOD.to_owned(),
        "schema: retouch/v2\n".to_owned(),
        format!("{HEAD}x-deep: {open}{close}\n"),
        format!("{HEAD}x-0: &a0 [x, x, x, x, x, x, x, x, x, x]\n{aliases}"),
        format!("{HEAD}nodes:\n{uses}"),
        format!(
            "{HEAD}params:\n  big: {{type: string, default: {big}}}\nnodes:\n  n: {{op: number, value: 1}}\n  j: {{op: join, prefix: \"{many}\", items: $n}}\n"
        ),
    ] {
        note(
            &engine
                .load_str("flows/main.yaml", &text, &Settings::default())
                .unwrap_err(),
        );
    }
    let text = format!("{HEAD}{GOOD}");
    for set in ["none=1", "none"] {
        let settings = Settings {
            set: vec![set.to_owned()],
            ..Settings::default()
        };
        note(
            &engine
                .load_str("flows/main.yaml", &text, &settings)
                .unwrap_err(),
        );
    }
    let engine = Engine::new(common::registry().with::<Grumble>());
    let load = |text: &str| {
        let text = format!("{HEAD}{text}");
        engine
            .load_str("flows/main.yaml", &text, &Settings::default())
            .unwrap()
    };
    note(&engine.plan(&load(GOOD), &["none".to_owned()]).unwrap_err());
    note(
        &engine
            .plan(&load("nodes:\n  n: {op: number, value: 1}\n"), &[])
            .unwrap_err(),
    );
    let warned = load(
        "params:\n  x: {type: int, default: 1}\nnodes:\n  g: {op: grumble}\n  n: {op: number, value: 1}\noutputs:\n  g: {value: $g}\n",
    );
    found.extend(
        warned
            .warnings
            .iter()
            .map(|warning| warning.code().as_str()),
    );
    found
}

#[test]
fn every_code_is_tested() {
    // Each of `BROKEN` gives the code that stands beside it: the test above.
    let mut tested: BTreeSet<&str> = BROKEN.iter().map(|(code, ..)| *code).collect();
    tested.extend(found_elsewhere());
    // Models on hubs: whoever fetches them gives these codes, which `tests/workspace.rs` looks for in the tests there.
    tested.extend(["R0324", "R0325", "R0326", "R0327", "R0328", "R0329"]);
    // Says that the formatter is wrong: no text is known for which it is, and tests/robust.rs looks for one.
    tested.insert(Code::FormatRefused.as_str());
    // From R0900 on codes are not of workflows: locks, bundles, runs and commands are tested where they are.
    let all: BTreeSet<&str> = Code::ALL
        .iter()
        .map(|code| code.as_str())
        .filter(|code| *code < "R0900")
        .collect();
    assert_eq!(tested, all);
}

#[test]
fn all_faults_of_a_file_are_told_at_once_in_order() {
    let text = format!(
        "{HEAD}nmae: x\nparams:\n  place: {{type: sting}}\n  steps: {{type: int, default: 5, min: 1}}\nnodes:\n  a: {{op: sample, steps: \"5\", lock: yes, size: [1], sead: 3}}\n  b: {{op: add, a: $c, amount: $params.stesp}}\n  a: {{op: number}}\n  d: {{op: nubmer}}\n  e: {{op: join, items: [$d, $a, $nope]}}\noutputs:\n  o: {{value: $e, save: \"../{{plaec}}.txt\"}}\n"
    );
    let found: Vec<String> = faults(&text)
        .into_iter()
        .map(|fault| fault.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        found,
        [
            "R0203 2:1",
            "R0209 4:17",
            "R0313 7:26",
            "R0314 7:37",
            "R0312 7:48",
            "R0306 7:53",
            "R0302 8:19",
            "R0304 8:31",
            "R0107 9:3",
            "R0301 10:11",
            "R0302 11:33",
            "R0213 13:28",
        ]
    );
}

#[test]
fn the_schema_is_required_and_a_newer_one_is_refused_by_name() {
    assert_eq!(faults("name: x\n").len(), 1);
    assert!(faults("name: x\n")[0].starts_with("R0201 1:1 "));
    assert!(faults("")[0].starts_with("R0201 1:1 "));
    let newer = faults("schema: retouch/v2\nnods: 1\n");
    assert_eq!(newer.len(), 1, "{newer:?}");
    assert!(newer[0].starts_with("R0202 1:9 ") && newer[0].contains("retouch/v2"));
    let other = faults("schema: retuch/v1\nnods: 1\n");
    assert_eq!(other.len(), 2, "{other:?}");
    assert!(other[0].starts_with("R0202 1:9 "));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let engine = with_files(
        files()
            .with("latin.yaml", b"name: \xe9".as_slice())
            .with("great.yaml", vec![b' '; (4 << 20) + 1]),
    );
    for (name, code) in [
        ("none.yaml", "R0001"),
        ("latin.yaml", "R0002"),
        ("great.yaml", "R0003"),
    ] {
        let problems = engine
            .load(name.as_ref(), &Settings::default())
            .unwrap_err();
        assert_eq!(problems.iter().next().unwrap().code().as_str(), code);
    }
}

#[test]
fn budgets_of_yaml_are_faults() {
    let deep = format!("{HEAD}x-deep: {}{}\n", "[".repeat(70), "]".repeat(70));
    assert!(faults(&deep)[0].starts_with("R0102"));
    let mut laughs = format!("{HEAD}x-0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..9 {
        let before = vec![format!("*a{}", i - 1); 10].join(", ");
        laughs.push_str(&format!("x-{i}: &a{i} [{before}]\n"));
    }
    assert!(faults(&laughs)[0].starts_with("R0103"));
}

#[test]
fn workflows_that_include_too_many_are_a_fault() {
    let mut all = files().with(
        "flows/l0.yaml",
        "schema: retouch/v1\nnodes:\n  n: {op: number, value: 1}\noutputs:\n  o: {value: $n}\n",
    );
    for level in 1..40 {
        all = all.with(
            format!("flows/l{level}.yaml"),
            format!(
                "schema: retouch/v1\nnodes:\n  a: {{use: l{0}.yaml}}\n  b: {{use: l{0}.yaml}}\noutputs:\n  o: {{value: $a}}\n",
                level - 1
            ),
        );
    }
    let text = format!("{HEAD}nodes:\n  a: {{use: l39.yaml}}\n");
    let found = faults_of(&with_files(all), &text, &Settings::default());
    assert!(
        found.iter().any(|fault| fault.starts_with("R0406")),
        "{:?}",
        &found[..3.min(found.len())]
    );
}

/// A number that is passed on as it is.
const PASS: &str =
    "schema: retouch/v1\ninputs:\n  x: {type: number}\noutputs:\n  x: {value: $inputs.x}\n";

#[test]
fn workflows_are_counted_before_they_are_included() {
    // The innermost has a fault of its own, which is told only when it is included.
    let mut all = files().with(
        "flows/l0.yaml",
        "schema: retouch/v1\nnodes:\n  n: {op: nubmer, value: 1}\noutputs:\n  o: {value: $n}\n",
    );
    for level in 1..18 {
        let uses: String = (0..2)
            .map(|at| format!("  u{at}: {{use: l{}.yaml}}\n", level - 1))
            .collect();
        all = all.with(
            format!("flows/l{level}.yaml"),
            format!("schema: retouch/v1\nnodes:\n{uses}outputs:\n  o: {{value: $u0}}\n"),
        );
    }
    let engine = with_files(all);
    let of = |level: usize| {
        let text = format!("{HEAD}nodes:\n  a: {{use: l{level}.yaml}}\n");
        faults_of(&engine, &text, &Settings::default())
    };
    // 2^17 nodes and twice as many uses; of a few levels all are included.
    let found = of(17);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("R0406 "), "{found:?}");
    let found = of(3);
    assert!(found[0].starts_with("R0301 "), "{found:?}");
    // Too many nodes in the file itself are as many.
    let nodes: String = (0..200_001)
        .map(|at| format!("  n{at}: {{op: x}}\n"))
        .collect();
    let found = faults_of(
        &engine,
        &format!("{HEAD}nodes:\n{nodes}"),
        &Settings::default(),
    );
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("R0406 200003:3 "), "{found:?}");
}

#[test]
fn nodes_that_use_workflows_may_stand_in_a_row_of_any_length() {
    for length in [1, 129, 1_000, 20_000] {
        let mut text = format!("{HEAD}nodes:\n  n: {{op: number, value: 1}}\n");
        let mut before = "n".to_owned();
        for at in 0..length {
            text.push_str(&format!(
                "  u{at}: {{use: pass.yaml, with: {{x: ${before}}}}}\n"
            ));
            before = format!("u{at}");
        }
        text.push_str(&format!(
            "  s: {{op: add, a: ${before}}}\noutputs:\n  s: {{value: $s}}\n"
        ));
        let engine = with_files(files().with("flows/pass.yaml", PASS));
        let found = faults_of(&engine, &text, &Settings::default());
        assert_eq!(found, [] as [String; 0], "{length}");
    }
}

#[test]
fn a_ring_of_workflows_is_one_cycle_wherever_it_is_entered() {
    for length in [1, 2, 300] {
        let mut text = format!("{HEAD}nodes:\n");
        for at in 0..length {
            let before = (at + length - 1) % length;
            text.push_str(&format!(
                "  u{at}: {{use: pass.yaml, with: {{x: $u{before}}}}}\n"
            ));
        }
        text.push_str("  s: {op: add, a: $u0}\noutputs:\n  s: {value: $s}\n  t: {value: $u0}\n");
        let engine = with_files(files().with("flows/pass.yaml", PASS));
        let found = faults_of(&engine, &text, &Settings::default());
        assert_eq!(found.len(), 1, "{length}: {found:?}");
        assert!(found[0].starts_with("R0317 3:"), "{found:?}");
        assert!(found[0].contains("needs its own output `x`"), "{found:?}");
    }
}

#[test]
fn workflows_that_use_each_other_too_deeply_are_told_so() {
    let chain = |length: usize| {
        let mut all = files().with(
            "flows/l0.yaml",
            "schema: retouch/v1\nnodes:\n  n: {op: number, value: 1}\noutputs:\n  o: {value: $n}\n",
        );
        for level in 1..length {
            all = all.with(
                format!("flows/l{level}.yaml"),
                format!(
                    "schema: retouch/v1\nnodes:\n  u: {{use: l{}.yaml}}\noutputs:\n  o: {{value: $u}}\n",
                    level - 1
                ),
            );
        }
        let text = format!(
            "{HEAD}nodes:\n  a: {{use: l{}.yaml}}\noutputs:\n  o: {{value: $a}}\n",
            length - 1
        );
        faults_of(&with_files(all), &text, &Settings::default())
    };
    // The workflow itself is the first level.
    assert_eq!(chain(63), [] as [String; 0]);
    let found = chain(64);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("R0406 "), "{found:?}");
    assert!(found[0].contains("more than 64 levels deep"), "{found:?}");
}

#[test]
fn texts_that_are_filled_in_many_times_over_have_a_budget() {
    let big = "x".repeat(1 << 20);
    let head = format!("{HEAD}params:\n  big: {{type: string, default: {big}}}\n");
    let nodes = |count: usize, prefix: &str| {
        let nodes: String = (0..count)
            .map(|at| format!("  j{at}: {{op: join, prefix: {prefix}, items: $n}}\n"))
            .collect();
        let text = format!("{head}nodes:\n  n: {{op: number, value: 1}}\n{nodes}");
        faults(&text)
    };
    let told = |found: &[String]| {
        let told = found.iter().filter(|fault| fault.starts_with("R0407 "));
        told.count()
    };
    assert_eq!(told(&nodes(100, "$params.big")), 0);
    assert_eq!(told(&nodes(200, "$params.big")), 1);
    assert_eq!(told(&nodes(100, "\"{big}\"")), 0);
    assert_eq!(told(&nodes(200, "\"{big}\"")), 1);
    // In one text alone, and from one workflow to the next.
    let many = format!("\"{}\"", "{big}".repeat(200_000));
    assert_eq!(told(&nodes(1, &many)), 1);
    let double = "schema: retouch/v1\nparams:\n  t: {type: string}\nnodes:\n  u: {use: NEXT, with: {t: \"{t}{t}\"}}\n";
    let mut all = files().with(
        "flows/d30.yaml",
        "schema: retouch/v1\nparams:\n  t: {type: string}\n",
    );
    for level in 0..30 {
        let text = double.replace("NEXT", &format!("d{}.yaml", level + 1));
        all = all.with(format!("flows/d{level}.yaml"), text);
    }
    let text = format!("{HEAD}nodes:\n  u: {{use: d0.yaml, with: {{t: xxxxxxxx}}}}\n");
    let found = faults_of(&with_files(all), &text, &Settings::default());
    assert_eq!(told(&found), 1, "{found:?}");
}

#[test]
fn what_includes_itself_through_others_is_told_with_the_path_of_files() {
    let all = files()
        .with(
            "flows/a.yaml",
            "schema: retouch/v1\nnodes:\n  b: {use: sub/b.yaml}\n",
        )
        .with(
            "flows/sub/b.yaml",
            "schema: retouch/v1\nnodes:\n  a: {use: ../a.yaml}\n",
        );
    let text = format!("{HEAD}nodes:\n  a: {{use: a.yaml}}\n");
    let found = faults_of(&with_files(all), &text, &Settings::default());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("flows/a.yaml -> flows/sub/b.yaml -> flows/a.yaml"),
        "{found:?}"
    );
    assert!(found[0].contains("flows/sub/b.yaml:3:12"), "{found:?}");
}

#[test]
fn a_link_that_only_goes_round_through_an_included_workflow_is_a_cycle() {
    let all = files().with(
        "flows/pass.yaml",
        "schema: retouch/v1\ninputs:\n  x: {type: number}\noutputs:\n  x: {value: $inputs.x}\n",
    );
    let text = format!(
        "{HEAD}nodes:\n  a: {{use: pass.yaml, with: {{x: $b}}}}\n  b: {{use: pass.yaml, with: {{x: $a}}}}\n  s: {{op: add, a: $a}}\noutputs:\n  s: {{value: $s}}\n"
    );
    let found = faults_of(&with_files(all), &text, &Settings::default());
    assert!(
        found.iter().all(|fault| fault.starts_with("R0317")),
        "{found:?}"
    );
    assert!(!found.is_empty());
}

#[test]
fn faults_of_an_included_workflow_point_into_it_once() {
    let all = files().with(
        "flows/broken.yaml",
        "schema: retouch/v1\nnodes:\n  n: {op: nubmer}\n  s: {op: add, a: $n, amuont: 1}\noutputs:\n  s: {value: $s}\n",
    );
    let text = format!(
        "{HEAD}nodes:\n  a: {{use: broken.yaml}}\n  b: {{use: broken.yaml}}\n  j: {{op: join, items: [$a, $b, $a.x]}}\n"
    );
    let found = faults_of(&with_files(all), &text, &Settings::default());
    let starts: Vec<&str> = found
        .iter()
        .map(|fault| fault.split(' ').nth(1).unwrap())
        .collect();
    assert_eq!(starts.len(), 3, "{found:?}");
    assert!(starts.contains(&"flows/broken.yaml:3:11"));
    assert!(starts.contains(&"flows/broken.yaml:4:23"));
    assert!(starts.contains(&"5:33"), "{found:?}");
}

#[test]
fn settings_are_checked_and_point_at_what_was_typed() {
    let text = format!(
        "{HEAD}params:\n  steps: {{type: int, default: 5, min: 1, max: 10}}\n  lock: {{type: bool, default: false}}\n  place: {{type: string, default: here}}\nnodes:\n  s: {{op: sample, steps: $params.steps, lock: $params.lock}}\n  j: {{op: join, prefix: \"{{place}}\", items: $s}}\noutputs:\n  j: {{value: $j}}\n"
    );
    let set = |set: &[&str]| {
        let settings = Settings {
            set: set.iter().map(|set| (*set).to_owned()).collect(),
            ..Settings::default()
        };
        faults_of(&engine(), &text, &settings)
    };
    assert!(set(&["steps=7", "lock=true", "place=a: [b] # {c}"]).is_empty());
    let all = set(&[
        "setps=7", "steps", "steps=11", "lock=yes", "steps=[", "place=7",
    ]);
    let all: Vec<&str> = all
        .iter()
        .map(|fault| fault.split(" (").next().unwrap())
        .collect();
    assert_eq!(all.len(), 5, "{all:?}");
    assert!(
        all[0].starts_with("R0501 command line:1:7 the workflow has no param `setps`"),
        "{all:?}"
    );
    assert!(all[1].starts_with("R0502 command line:1:7 "), "{all:?}");
    let hints = set(&["setps=7", "lock=yes"]).join("\n");
    assert!(hints.contains("did you mean `steps`?"), "{hints}");
    assert!(hints.contains("write `--set lock=true`"), "{hints}");
    assert!(
        set(&["steps=11"])[0].starts_with("R0315 command line:1:13 "),
        "{:?}",
        set(&["steps=11"])
    );
}

#[test]
fn a_params_file_is_read_and_set_counts_more() {
    let all = files()
        .with("values/p.yaml", "n: 7\nfile: ../two.txt\nx-note: 1\n")
        .with("values/q.yaml", "m: 7\nn: x\n");
    let engine = with_files(all);
    let text = format!(
        "{HEAD}params:\n  n: {{type: float, default: 1}}\n  file: {{type: path, default: one.txt}}\nnodes:\n  n: {{op: number, value: $params.n}}\n  r: {{op: read, path: $params.file}}\n  s: {{op: add, a: $n, b: $r}}\noutputs:\n  s: {{value: $s}}\n"
    );
    let settings = |params: &str, set: &[&str]| Settings {
        params: vec![params.into()],
        set: set.iter().map(|set| (*set).to_owned()).collect(),
        ..Settings::default()
    };
    let checked = engine
        .load_str(
            "flows/main.yaml",
            &text,
            &settings("values/p.yaml", &["n=9"]),
        )
        .unwrap();
    assert_eq!(checked.params[0].value, 9);
    assert_eq!(
        checked.node("r").unwrap().reads()[0].path,
        std::path::Path::new("values/../two.txt")
    );
    let found = faults_of(&engine, &text, &settings("values/q.yaml", &[]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("R0501 values/q.yaml:1:1 ")
            && found[1].starts_with("R0312 values/q.yaml:2:4 ")
    );
}

#[test]
fn a_path_of_windows_in_double_quotes_is_a_fault_with_the_way_to_write_it() {
    let engine = engine();
    for text in [
        format!(
            "{HEAD}nodes:\n  r: {{op: read, path: \"C:\\new.txt\"}}\noutputs:\n  r: {{value: $r}}\n"
        ),
        format!(
            "{HEAD}params:\n  file: {{type: path, default: \"C:\\new.txt\"}}\nnodes:\n  r: {{op: read, path: $params.file}}\noutputs:\n  r: {{value: $r}}\n"
        ),
    ] {
        let found = faults_of(&engine, &text, &Settings::default());
        assert_eq!(found.len(), 1, "{found:?}");
        // A value that does not fit its node, and a default that does not fit its param.
        assert!(
            found[0].starts_with("R0312 ") || found[0].starts_with("R0210 "),
            "{found:?}"
        );
        assert!(
            found[0].contains("has a line break after the drive letter"),
            "{found:?}"
        );
    }
}

#[test]
fn targets_are_checked() {
    let engine = engine();
    let text = format!("{HEAD}nodes:\n  abc: {{op: number, value: 1}}\n");
    let checked = engine
        .load_str("flows/main.yaml", &text, &Settings::default())
        .unwrap();
    let nothing = engine.plan(&checked, &[]).unwrap_err();
    assert!(show(nothing.iter().next().unwrap()).starts_with("R0605 1:1"));
    let unknown = engine
        .plan(&checked, &["abc".into(), "abd".into()])
        .unwrap_err();
    let shown = show(unknown.iter().next().unwrap());
    assert!(
        shown.starts_with("R0604 command line:1:9 ") && shown.contains("did you mean `abc`?"),
        "{shown}"
    );
}

#[test]
fn what_is_not_used_is_a_warning() {
    let text = format!(
        "{HEAD}params:\n  x: {{type: int, default: 1}}\n  y: {{type: string, default: a}}\nnodes:\n  n: {{op: number, value: 1}}\n  m: {{op: number, value: 2}}\n  p: {{use: part.yaml, with: {{first: $n, word: \"{{y}}\"}}}}\noutputs:\n  n: {{value: $n}}\n"
    );
    let checked = engine()
        .load_str("flows/main.yaml", &text, &Settings::default())
        .unwrap();
    let found: Vec<String> = checked
        .warnings
        .iter()
        .map(|warning| {
            show(warning)
                .split(' ')
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert_eq!(found, ["R0701 3:3", "R0702 7:3", "R0702 8:3"]);
}

#[test]
fn a_part_can_be_checked_by_itself_but_not_planned() {
    let engine = engine();
    let settings = Settings {
        part: true,
        ..Settings::default()
    };
    let checked = engine.load("flows/part.yaml".as_ref(), &settings).unwrap();
    let refused = engine.plan(&checked, &[]).unwrap_err();
    assert_eq!(refused.iter().next().unwrap().code(), Code::NotRunnable);
    let faulty = format!(
        "{HEAD}inputs:\n  x: {{type: number}}\nnodes:\n  j: {{op: join, items: $inputs.x, times: 0}}\n  a: {{op: hide, x: $inputs.x}}\n"
    );
    assert_eq!(faults_of(&engine, &faulty, &settings).len(), 2);
}

#[test]
fn a_fault_prints_with_its_line_and_a_caret() {
    let text = format!(
        "{HEAD}nodes:\n  s: {{op: sample, steps: $params.n}}\nparams:\n  n: {{type: string, default: \"5\"}}\n"
    );
    let problems = engine()
        .load_str("flows/main.yaml", &text, &Settings::default())
        .unwrap_err();
    let problem = problems.iter().next().unwrap();
    let mut out = String::new();
    miette::NarratableReportHandler::new()
        .render_report(&mut out, problem)
        .unwrap();
    assert!(
        out.contains("flows/main.yaml") && out.contains("line 3, columns 26 to 34"),
        "{out}"
    );
    assert!(out.contains("declared as string here"), "{out}");
    assert!(
        problems
            .to_string()
            .starts_with("flows/main.yaml:3:26: R0316: ")
    );
}
