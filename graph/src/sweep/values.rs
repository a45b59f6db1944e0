//! The values of a sweep's cells, as a file or the command line says them.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::base::draw;
use crate::base::paths::{folder_of, normal};
use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::suggest;
use crate::check::settings::{Setting, ValueOrigin, declared};
use crate::check::{self, CheckContext};
use crate::sweep::label::{identity, same};
use crate::syntax::params::{How, ParamType};
use crate::syntax::workflow::{Spanned, SweepDecl, Workflow};
use crate::syntax::yaml::{self, MapKey, Node, Tree};
use crate::value::fields::MAX_INTEGER;

/// How many cells a sweep may have.
pub const MAX_CELLS: usize = 10_000;

/// A value of a param in a sweep.
#[derive(Clone, Debug)]
pub(super) struct CellValue {
    json: Json,
    pub(super) setting: Setting,
}

/// The values of each param that varies.
type Axes = IndexMap<String, Vec<Arc<CellValue>>>;

/// A cell as the declaration gives it: the values of its params.
pub(super) type CellValues = IndexMap<String, Arc<CellValue>>;

/// Reads the cells of a sweep.
pub(super) struct CellReader<'a> {
    context: &'a CheckContext<'a>,
    /// The file that says the sweep.
    source: &'a Source,
    folder: Arc<PathBuf>,
    /// The workflow that is swept.
    target: &'a Workflow,
    /// The files that were read.
    pub(super) read: Vec<PathBuf>,
    problems: &'a mut Vec<Problem>,
    draws: u64,
}

impl<'a> CellReader<'a> {
    pub(super) fn new(
        context: &'a CheckContext<'a>,
        source: &'a Source,
        folder: Arc<PathBuf>,
        target: &'a Workflow,
        problems: &'a mut Vec<Problem>,
    ) -> Self {
        Self {
            context,
            source,
            folder,
            target,
            read: Vec::new(),
            problems,
            draws: 0,
        }
    }

    fn fault(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.problems
            .push(Problem::new(Code::BadSweep, self.source, span, message).help(help));
    }

    /// All cells, in order: those of the matrix, those of `include`.
    pub(super) fn cells(&mut self, decl: Option<&SweepDecl>, over: &[String]) -> Vec<CellValues> {
        // What `--set` says holds for all cells.
        let fixed: HashSet<String> = (self.context.settings.set.iter())
            .filter_map(|text| text.split_once('='))
            .map(|(name, _)| name.trim().to_owned())
            .collect();
        let none = vec![Vec::new()];
        let matrices = decl.map_or(&none, |decl| &decl.matrices);
        let matrices = if matrices.is_empty() { &none } else { matrices };
        // The file's seeds are drawn before those of the command line.
        let written: Vec<Axes> = (matrices.iter())
            .map(|matrix| self.written(matrix))
            .collect();
        let given = self.given(over, &fixed);
        let groups = self.groups(decl, over);
        let mut varying: HashSet<String> = HashSet::new();
        let mut all_joined = Vec::new();
        for (matrix, mut axes) in matrices.iter().zip(written) {
            axes.extend(given.clone());
            axes.retain(|name, _| !fixed.contains(name));
            varying.extend(axes.keys().cloned());
            // A matrix has one cell if the command line sets all of it, and none if neither of them says anything.
            let empty = matrix.is_empty() && given.is_empty();
            let joined = self.zipped(&groups, matrix, &axes);
            all_joined.push((!empty).then_some(joined));
        }
        let total = (all_joined.iter().flatten()).try_fold(0usize, |sum, joined| {
            let of_one = (joined.iter()).try_fold(1usize, |all, one| all.checked_mul(one.len()));
            sum.checked_add(of_one?)
        });
        let included = decl.map_or(0, |decl| decl.include.len());
        let span = decl.map_or_else(Span::default, |decl| decl.key_span);
        if total.is_none_or(|total| total.saturating_add(included) > MAX_CELLS) {
            let count = total.map_or_else(
                || "more cells than can be counted".to_owned(),
                |total| format!("{total} cells"),
            );
            self.fault(
                span,
                format!("the sweep has {count}"),
                format!("at most {MAX_CELLS} are run: sweep fewer values at a time"),
            );
            return Vec::new();
        }
        let mut cells: Vec<CellValues> = Vec::new();
        for joined in all_joined.iter().flatten() {
            let mut own = vec![CellValues::new()];
            for axis in joined {
                own = (own.iter())
                    .flat_map(|cell| {
                        axis.iter().map(move |values| {
                            let mut cell = cell.clone();
                            cell.extend(values.clone());
                            cell
                        })
                    })
                    .collect();
            }
            cells.extend(own);
        }
        for entry in decl.into_iter().flat_map(|decl| &decl.exclude) {
            self.exclude(entry, &varying, &fixed, over.is_empty(), &mut cells);
        }
        for entry in decl.into_iter().flat_map(|decl| &decl.include) {
            cells.extend(self.entry(entry, &fixed));
        }
        if cells.is_empty() && self.problems.is_empty() {
            let span =
                (decl.and_then(|decl| decl.exclude.first())).map_or(span, |entry| entry.span);
            self.fault(
                span,
                "the sweep has no cells: `exclude` leaves none",
                "exclude less",
            );
        }
        // A cell that is given twice is one.
        let mut seen = HashSet::new();
        cells.retain(|cell| {
            let mut values: Vec<String> = cell
                .iter()
                .map(|(name, value)| format!("{name}\0{}", value.json))
                .collect();
            values.sort();
            seen.insert(values)
        });
        cells
    }

    /// The params that `zip` joins, group by group, without those that the command line changes: these are joined no more.
    fn groups(&mut self, decl: Option<&SweepDecl>, over: &[String]) -> Vec<Vec<Spanned<String>>> {
        let changed: HashSet<&str> = (over.iter().chain(&self.context.settings.set))
            .filter_map(|text| text.split_once('='))
            .map(|(name, _)| name.trim())
            .collect();
        let keys = || decl.into_iter().flat_map(|decl| &decl.matrices).flatten();
        let mut taken = HashSet::new();
        let mut groups = Vec::new();
        for names in decl.into_iter().flat_map(|decl| &decl.zip) {
            let mut group = Vec::new();
            for name in names {
                let own = name.value.as_str();
                // What is wrong with the values of a param is told where they stand.
                if !keys().any(|(key, _)| key.text == own) {
                    let known: Vec<&str> = keys().map(|(key, _)| key.text.as_str()).collect();
                    let help = suggest::hint(own, "params of the matrix", known.iter().copied());
                    let help = help.unwrap_or_else(|| "name params of the matrix".to_owned());
                    self.fault(name.span, format!("`{own}` is not in the matrix"), help);
                } else if !taken.insert(own) {
                    let message = format!("`{own}` is zipped twice");
                    self.fault(name.span, message, "name each param once");
                } else if !changed.contains(own) {
                    group.push(name.clone());
                }
            }
            groups.push(group);
        }
        groups
    }

    /// What the cells of a matrix are combined of: the values of a param, or of several that `zip` joins, value by value, in the place
    /// of the first of them.
    fn zipped(
        &mut self,
        groups: &[Vec<Spanned<String>>],
        matrix: &[(MapKey, Tree)],
        axes: &Axes,
    ) -> Vec<Vec<CellValues>> {
        let mut joined = Vec::new();
        let mut done: HashSet<&str> = HashSet::new();
        for (name, values) in axes {
            if !done.insert(name.as_str()) {
                continue;
            }
            let mut names = vec![name];
            let group = (groups.iter()).find(|group| group.iter().any(|one| one.value == *name));
            // In the order of the matrix.
            for (other, more) in axes {
                let Some(at) = (group.into_iter().flatten()).find(|one| one.value == *other) else {
                    continue;
                };
                if other == name {
                    continue;
                }
                done.insert(other.as_str());
                if more.len() == values.len() {
                    names.push(other);
                    continue;
                }
                let (many, other_many) = (values.len(), more.len());
                let message = format!("`{name}` has {many} values and `{other}` {other_many}");
                let mut problem = Problem::new(Code::BadSweep, self.source, at.span, message);
                if let Some((key, _)) = matrix.iter().find(|(key, _)| key.text == *other) {
                    problem = problem.also(self.source, key.span, "in this matrix");
                }
                self.problems.push(problem.help(
                    "params that are zipped have as many values: the first goes with the first, the second with the second",
                ));
            }
            if let [alone] = names[..] {
                // A value that is given twice is one, but where it goes with others: two cats are of one class.
                let mut values = values.clone();
                distinct(&mut values);
                let cell = |value| CellValues::from_iter([(alone.clone(), value)]);
                joined.push(values.into_iter().map(cell).collect());
                continue;
            }
            let cell = |index: usize| -> CellValues {
                (names.iter())
                    .map(|name| ((*name).clone(), Arc::clone(&axes[*name][index])))
                    .collect()
            };
            joined.push((0..values.len()).map(cell).collect());
        }
        joined
    }

    /// The values of `--over`.
    fn given(&mut self, over: &[String], fixed: &HashSet<String>) -> Axes {
        let mut given = Axes::new();
        for text in over {
            if let Some((name, values)) = self.over(text) {
                if fixed.contains(&name) {
                    let source = Source::command_line(format!("--over {text}"));
                    let span = Span::new(7, 7 + text.len());
                    let message = format!("`{name}` is given by `--set` and by `--over`");
                    self.problems.push(
                        Problem::new(Code::BadSetting, &source, span, message)
                            .help("leave one of them out"),
                    );
                }
                given.insert(name, values);
            }
        }
        given
    }

    /// The values of each param of a matrix.
    fn written(&mut self, matrix: &[(MapKey, Tree)]) -> Axes {
        let mut axes = Axes::new();
        for (key, tree) in matrix {
            if let Some(values) = self.axis(key, tree, &self.source.clone()) {
                axes.insert(key.text.clone(), values);
            }
        }
        axes
    }

    /// Leaves out the cells of an entry of `exclude`. `strict`: the command line changes nothing, so that it is a fault if
    /// there are none.
    fn exclude(
        &mut self,
        entry: &Spanned<Vec<(MapKey, Tree)>>,
        varying: &HashSet<String>,
        fixed: &HashSet<String>,
        strict: bool,
        cells: &mut Vec<CellValues>,
    ) {
        let Some(values) = self.entry(entry, fixed) else {
            return;
        };
        if values.is_empty() {
            return; // the command line sets all of its params, so it says nothing of the cells
        }
        for (key, _) in (entry.value.iter()).filter(|(key, _)| !varying.contains(&key.text)) {
            if !fixed.contains(&key.text) && self.target.params.contains_key(&key.text) {
                self.fault(
                    key.span,
                    format!(
                        "`{}` does not vary in the matrix, so it excludes nothing",
                        key.text
                    ),
                    "exclude by the params of the matrix",
                );
            }
        }
        let before = cells.len();
        cells.retain(|cell| {
            !(values.iter()).all(|(name, value)| {
                (cell.get(name)).is_some_and(|own| same(&own.json, &value.json))
            })
        });
        if cells.len() == before && fixed.is_empty() && strict && self.problems.is_empty() {
            self.fault(
                entry.span,
                "no cell has these values, so nothing is excluded",
                "give values of the matrix, or remove the entry",
            );
        }
    }

    fn entry(
        &mut self,
        entry: &Spanned<Vec<(MapKey, Tree)>>,
        fixed: &HashSet<String>,
    ) -> Option<CellValues> {
        let mut values = CellValues::new();
        let before = self.problems.len();
        let source = self.source.clone();
        for (key, tree) in &entry.value {
            if fixed.contains(&key.text) {
                continue;
            }
            if declared(self.target, key, self.source, self.problems).is_none() {
                continue;
            }
            if let Some(value) = self.value(key, tree.clone(), &source) {
                values.insert(key.text.clone(), Arc::new(value));
            }
        }
        (self.problems.len() == before).then_some(values)
    }

    /// Reads `--over name=values`.
    fn over(&mut self, text: &str) -> Option<(String, Vec<Arc<CellValue>>)> {
        let prefix = "--over ";
        let source = Source::command_line(format!("{prefix}{text}"));
        let whole = Span::new(prefix.len(), prefix.len() + text.len());
        let Some((name, written)) = text.split_once('=') else {
            self.problems.push(
                Problem::new(
                    Code::BadSetting,
                    &source,
                    whole,
                    format!("`{text}` has no `=`"),
                )
                .help("write `--over seed=1..5` or `--over steps=10,20`"),
            );
            return None;
        };
        let key = MapKey {
            text: name.trim().to_owned(),
            span: Span::new(prefix.len(), prefix.len() + name.trim_end().len()),
        };
        let span = Span::new(whole.end - written.len(), whole.end);
        // A list needs no brackets here; what has some is read as it is.
        let written = if written.trim_start().starts_with(['[', '{']) {
            written.to_owned()
        } else {
            format!("[{written}]")
        };
        let mut faults = Vec::new();
        let parsed = yaml::parse(&Source::command_line(written.as_str()), &mut faults);
        let (Some(tree), true) = (parsed, faults.is_empty()) else {
            let why = faults
                .first()
                .map_or("it cannot be read", |fault| fault.message());
            self.problems.push(
                Problem::new(Code::BadSetting, &source, span, format!("`{name}`: {why}"))
                    .help("write `--over seed=1..5`, `--over steps=10,20` or `--over 'place=[\"a, b\", c]'`"),
            );
            return None;
        };
        let values = self.axis(&key, &placed(tree, span), &source)?;
        Some((key.text, values))
    }

    /// The values of a param of the matrix.
    fn axis(&mut self, key: &MapKey, tree: &Tree, source: &Source) -> Option<Vec<Arc<CellValue>>> {
        let decl = declared(self.target, key, source, self.problems)?;
        let kind = decl.kind;
        let before = self.problems.len();
        let mut values: Vec<Arc<CellValue>> = Vec::new();
        match &tree.node {
            Node::Seq(items) => {
                for item in items {
                    for tree in self.ranged(kind, item, source) {
                        values.extend(self.value(key, tree, source).map(Arc::new));
                    }
                }
            }
            Node::Map(entries) if entries.iter().any(|(key, _)| key.text == "lines") => {
                values.extend(self.lines(key, kind, entries, tree.span, source));
            }
            Node::Map(entries) => {
                for tree in self.stepped(kind, entries, tree.span, source) {
                    values.extend(self.value(key, tree, source).map(Arc::new));
                }
            }
            _ => {
                for tree in self.ranged(kind, tree, source) {
                    values.extend(self.value(key, tree, source).map(Arc::new));
                }
            }
        }
        if values.is_empty() && self.problems.len() == before {
            self.problems.push(
                Problem::new(
                    Code::BadSweep,
                    source,
                    tree.span,
                    format!("`{}` has no values", key.text),
                )
                .help(format!("give some, `{}: [...]`, or remove it", key.text)),
            );
        }
        (self.problems.len() == before).then_some(values)
    }

    /// A value, or those of a range `1..5` where the param is a number.
    fn ranged(&mut self, kind: ParamType, tree: &Tree, source: &Source) -> Vec<Tree> {
        let numeric = matches!(
            kind,
            ParamType::Int | ParamType::Float | ParamType::Seed | ParamType::Steps
        );
        let range = tree
            .as_text()
            .filter(|_| numeric)
            .and_then(|text| text.split_once(".."));
        let Some((from, to)) = range else {
            return vec![tree.clone()];
        };
        let (to, more) = match to.strip_prefix('=') {
            Some(to) => (to, 1),
            None => (to, 0),
        };
        let (Ok(from), Ok(to)) = (from.trim().parse::<i64>(), to.trim().parse::<i64>()) else {
            let message = format!(
                "`{}` is not a range",
                tree.as_text().unwrap_or("").escape_debug()
            );
            self.problems.push(
                Problem::new(Code::BadSweep, source, tree.span, message).help(
                    "write `1..5` for 1, 2, 3, 4, or `1..=5`; of shares and fractions `{from: 10%, to: 40%, step: 10%}`",
                ),
            );
            return Vec::new();
        };
        let end = to.saturating_add(more);
        let count = usize::try_from(end.saturating_sub(from)).unwrap_or(0);
        if count == 0 || count > MAX_CELLS {
            let message = if count == 0 {
                "the range is empty: its end is not part of it".to_owned()
            } else {
                format!("the range has {count} values; at most {MAX_CELLS} cells are run")
            };
            self.problems.push(
                Problem::new(Code::BadSweep, source, tree.span, message)
                    .help("`1..5` is 1, 2, 3, 4; `1..=5` has the 5 too"),
            );
            return Vec::new();
        }
        (from..end)
            .map(|value| Tree {
                node: Node::Int(value),
                span: tree.span,
            })
            .collect()
    }

    /// The values of `{from: 3, to: 5, step: 0.5}`; all three may be shares, `10%`.
    fn stepped(
        &mut self,
        kind: ParamType,
        entries: &[(MapKey, Tree)],
        span: Span,
        source: &Source,
    ) -> Vec<Tree> {
        let help =
            "write `{from: 3, to: 5, step: 0.5}` (both ends), `{lines: file.txt}`, or a list";
        let mut fault = |span: Span, message: String| {
            self.problems
                .push(Problem::new(Code::BadSweep, source, span, message).help(help));
        };
        let mut read = [None; 3];
        let mut shares = [false; 3];
        for (key, tree) in entries {
            let Some(at) = ["from", "to", "step"]
                .iter()
                .position(|name| *name == key.text)
            else {
                fault(
                    key.span,
                    format!("a range of values has no key `{}`", key.text),
                );
                return Vec::new();
            };
            let share = tree
                .as_text()
                .filter(|_| kind == ParamType::Steps)
                .and_then(|text| text.strip_suffix('%')?.trim().parse::<f64>().ok());
            shares[at] = share.is_some();
            read[at] = share.or(match tree.node {
                Node::Int(value) => Some(value as f64),
                Node::Float(value) => Some(value),
                _ => None,
            });
            if read[at].is_none_or(|value| !value.is_finite()) {
                fault(
                    tree.span,
                    format!("`{}` is a number, not {}", key.text, tree.describe()),
                );
                return Vec::new();
            }
        }
        let [Some(from), Some(to), Some(step)] = read else {
            fault(
                span,
                "a range of values has `from`, `to` and `step`".to_owned(),
            );
            return Vec::new();
        };
        if shares.iter().any(|share| *share != shares[0]) {
            fault(
                span,
                "`from`, `to` and `step` are all shares (`10%`) or none is".to_owned(),
            );
            return Vec::new();
        }
        // A hundredth of a step forgives what decimals lose in binary, so that the end is reached.
        let count = ((to - from) / step + 0.01).floor();
        if !(0.0..MAX_CELLS as f64).contains(&count) {
            fault(span, "the range has no values, or too many".to_owned());
            return Vec::new();
        }
        (0..=count as usize)
            .map(|index| {
                // Nine decimals are more than anybody writes, and fewer than binary fractions make up.
                let value = ((from + index as f64 * step) * 1e9).round() / 1e9;
                let node = if shares[0] {
                    Node::String {
                        text: format!("{value}%"),
                        quoted: false,
                    }
                } else if value.fract() == 0.0 && value.abs() <= MAX_INTEGER as f64 {
                    Node::Int(value as i64)
                } else {
                    Node::Float(value)
                };
                Tree { node, span }
            })
            .collect()
    }

    /// The lines of a text file; empty ones and those that begin with `#` are skipped.
    fn lines(
        &mut self,
        key: &MapKey,
        kind: ParamType,
        entries: &[(MapKey, Tree)],
        span: Span,
        source: &Source,
    ) -> Vec<Arc<CellValue>> {
        let Some((path, part)) = lines_of(entries) else {
            self.problems.push(
                Problem::new(
                    Code::BadSweep,
                    source,
                    span,
                    "`lines` takes a path, and one of `before` and `after` with it, a mark in each line",
                )
                .help("write `{lines: places.txt}`, relative to this file, or `{lines: prompts.txt, before: \"{}\"}`"),
            );
            return Vec::new();
        };
        let path = normal(&self.folder.join(path));
        self.read.push(path.clone());
        let text = match check::read(self.context.files, &path.display().to_string(), &path) {
            Ok(text) => text,
            Err(problem) => {
                self.problems.push(
                    Problem::new(Code::NodeFile, source, span, problem.message())
                        .help("a path is relative to the file that wrote it"),
                );
                return Vec::new();
            }
        };
        let is_text = matches!(
            kind,
            ParamType::String | ParamType::Path | ParamType::Choice
        );
        let folder = Arc::new(folder_of(&path));
        let mut values = Vec::new();
        let mut at = 0;
        for line in text.text().split_inclusive('\n') {
            let start = at + (line.len() - line.trim_start_matches('\u{feff}').trim_start().len());
            at += line.len();
            let line = line.trim_start_matches('\u{feff}').trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let span = Span::new(start, start + line.len());
            let Some(line) = part.of(line) else {
                let message = format!("the line has no `{}`", part.mark().escape_debug());
                self.problems
                    .push(
                        Problem::new(Code::BadSweep, &text, span, message).help(format!(
                            "`{}` is the part of each line on one side of it",
                            key.text
                        )),
                    );
                break; // of a mark that is in no line each would say the same
            };
            let node = if is_text {
                Node::String {
                    text: line.to_owned(),
                    quoted: false,
                }
            } else {
                let mut faults = Vec::new();
                match yaml::parse(&Source::new(text.name(), line), &mut faults) {
                    Some(tree) if faults.is_empty() => tree.node,
                    _ => {
                        let why = faults
                            .first()
                            .map_or("it cannot be read", |fault| fault.message());
                        self.problems.push(
                            Problem::new(Code::BadSweep, &text, span, why)
                                .help(format!("each line is a value of `{}`", key.text)),
                        );
                        continue;
                    }
                }
            };
            let own = std::mem::replace(&mut self.folder, Arc::clone(&folder));
            values.extend(self.value(key, Tree { node, span }, &text).map(Arc::new));
            self.folder = own;
            if values.len() > MAX_CELLS {
                break; // more cells than allowed, which is reported
            }
        }
        values
    }

    fn value(&mut self, key: &MapKey, tree: Tree, source: &Source) -> Option<CellValue> {
        let decl = self.target.params.get(&key.text)?;
        let mut tree = tree;
        let mut json = match decl.read(&key.text, &tree) {
            Ok(json) => json,
            Err(mismatch) => {
                let problem = mismatch.at(source, tree.span);
                let problem = problem.also(&self.target.source, decl.name_span, "declared here");
                self.problems.push(problem);
                return None;
            }
        };
        if decl.kind == ParamType::Seed && json.as_str() == Some("random") {
            let drawn = match self.context.settings.draw {
                Some(draw) => draw::seed(draw, draw::OF_SWEEP + self.draws),
                None => check::random(),
            };
            self.draws += 1;
            let drawn = drawn & MAX_INTEGER;
            json = Json::from(drawn);
            tree.node = Node::Int(i64::try_from(drawn).unwrap_or_default());
        }
        let folder = if source.is_argument() {
            Arc::new(self.context.settings.folder.clone())
        } else {
            Arc::clone(&self.folder)
        };
        Some(CellValue {
            json,
            setting: Setting {
                origin: ValueOrigin {
                    source: source.clone(),
                    span: tree.span,
                    folder,
                    how: How::Sweep,
                },
                tree,
                name: key.clone(),
                raw: None,
            },
        })
    }
}

/// What of a line is a value.
#[derive(Clone, Copy)]
enum Part<'a> {
    Whole,
    /// What is before the first of this mark.
    Before(&'a str),
    /// What is after it.
    After(&'a str),
}

impl<'a> Part<'a> {
    fn mark(self) -> &'a str {
        match self {
            Self::Whole => "",
            Self::Before(mark) | Self::After(mark) => mark,
        }
    }

    /// `None` when the line has no such mark.
    fn of(self, line: &str) -> Option<&str> {
        match self {
            Self::Whole => Some(line),
            Self::Before(mark) => line.split_once(mark).map(|(before, _)| before),
            Self::After(mark) => line.split_once(mark).map(|(_, after)| after),
        }
    }
}

/// The path and what of each line is meant, of `{lines: places.txt}` and `{lines: prompts.txt, before: "{}"}`.
fn lines_of(entries: &[(MapKey, Tree)]) -> Option<(&str, Part<'_>)> {
    let (mut path, mut part) = (None, None);
    for (key, tree) in entries {
        let text = tree.as_text().filter(|text| !text.is_empty())?;
        let said = match key.text.as_str() {
            "lines" => path.replace(text).is_some(),
            "before" => part.replace(Part::Before(text)).is_some(),
            "after" => part.replace(Part::After(text)).is_some(),
            _ => return None,
        };
        if said {
            return None;
        }
    }
    Some((path?, part.unwrap_or(Part::Whole)))
}

/// Keeps the first of equal values.
fn distinct(values: &mut Vec<Arc<CellValue>>) {
    let mut seen: HashSet<String> = HashSet::new();
    values.retain(|value| {
        let mut text = String::new();
        identity(&value.json, &mut text);
        seen.insert(text)
    });
}

/// A tree whose every part is at one place.
fn placed(tree: Tree, span: Span) -> Tree {
    let node = match tree.node {
        Node::Seq(items) => Node::Seq(items.into_iter().map(|item| placed(item, span)).collect()),
        Node::Map(entries) => Node::Map(
            (entries.into_iter())
                .map(|(key, value)| {
                    (
                        MapKey {
                            text: key.text,
                            span,
                        },
                        placed(value, span),
                    )
                })
                .collect(),
        ),
        other => other,
    };
    Tree { node, span }
}
