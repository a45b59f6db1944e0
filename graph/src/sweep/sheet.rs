//! The contact sheet of a sweep: how it is laid out, and the node that draws it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde_json::{Value as Json, json};

use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::base::suggest;
use crate::check::{CheckContext, CheckedNode, CheckedOutput, Link};
use crate::files::{Files, output_path};
use crate::op::erased::PathStep;
use crate::op::registry::{Entry, Registry};
use crate::sweep::label::{in_path, shown};
use crate::sweep::sweep::{Cell, SHEET, Sheet, Sweep};
use crate::sweep::values::MAX_CELLS;
use crate::syntax::workflow::{SheetDecl, Spanned};
use crate::syntax::yaml::{MapKey, Tree};
use crate::value::port::{Known, KnownPorts, PortSpec};

/// The op that draws the contact sheet.
const SHEET_OP: &str = "grid";

/// The params along the rows and along the columns.
struct Axes {
    rows: Vec<String>,
    columns: Vec<String>,
}

/// Reads how the contact sheet is laid out.
pub(super) fn read(
    sweep: &Sweep,
    decl: &SheetDecl,
    context: &CheckContext<'_>,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Option<Sheet> {
    let before = problems.len();
    let axes = axes(sweep, decl, context, source, problems);
    if problems.len() > before {
        return None;
    }
    let output = shown_output(sweep, decl, context.registry, source, problems)?;
    let table = score_output(sweep, decl, context.registry, source, problems);
    let save = match &decl.save {
        Some(save) => sweep.path_of(save, SHEET, source, problems),
        None => {
            let path = format!("{}/{SHEET}.png", in_path(sweep.name()));
            let fits = output_path::check_path(&path).is_ok();
            Some(if fits {
                path
            } else {
                format!("sweep/{SHEET}.png")
            })
        }
    };
    if problems.len() > before {
        return None;
    }
    let order = decl.fields.iter().find(|(key, _)| key.text == "order");
    if let Some((key, _)) = order
        && (decl.rows.is_some() || decl.columns.is_some())
    {
        let message =
            "a sheet that is ordered by a score has no axes: `rows` and `columns` say nothing";
        problems.push(
            Problem::new(Code::BadSweep, source, key.span, message)
                .help("leave out `order`, or `rows` and `columns`"),
        );
        return None;
    }
    let rows = places_along(sweep, &axes.rows);
    let columns = places_along(sweep, &axes.columns);
    if rows.len().saturating_mul(columns.len()) > MAX_CELLS {
        let message = format!(
            "the sheet would have {} rows and {} columns",
            rows.len(),
            columns.len()
        );
        let help = format!("at most {MAX_CELLS} places are drawn: sweep fewer values");
        let problem = Problem::new(Code::BadSweep, source, decl.key_span, message);
        problems.push(problem.help(help));
        return None;
    }
    let mut places = vec![None; rows.len() * columns.len()];
    for (index, cell) in sweep.cells.iter().enumerate() {
        let row = rows.iter().position(|key| *key == place(cell, &axes.rows));
        let column = (columns.iter()).position(|key| *key == place(cell, &axes.columns));
        if let (Some(row), Some(column)) = (row, column) {
            places[row * columns.len() + column] = Some(index);
        }
    }
    // The axes as they are, not as they are written: `--set` takes params from them and `--over` adds some, and a reader of
    // the sheet's recipe knows nothing of either.
    let effective = |written: &Option<Vec<Spanned<String>>>, names: &[String]| {
        written.as_ref()?;
        let span = decl.key_span;
        let spanned = |name: &String| Spanned {
            value: name.clone(),
            span,
        };
        Some(names.iter().map(spanned).collect())
    };
    Some(Sheet {
        columns: columns.len(),
        row_labels: labels(sweep, &axes.rows, &rows),
        column_labels: labels(sweep, &axes.columns, &columns),
        places,
        output,
        table,
        save,
        span: decl.key_span,
        decl: SheetDecl {
            rows: effective(&decl.rows, &axes.rows),
            columns: effective(&decl.columns, &axes.columns),
            ..decl.clone()
        },
        source: source.clone(),
    })
}

/// The params along the rows and the columns; each that varies has to be in one of them.
fn axes(
    sweep: &Sweep,
    decl: &SheetDecl,
    context: &CheckContext<'_>,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Axes {
    let before = problems.len();
    let of = |texts: &[String]| -> HashSet<String> {
        (texts.iter())
            .filter_map(|text| text.split_once('='))
            .map(|(name, _)| name.trim().to_owned())
            .collect()
    };
    // What the command line changes about the cells is not a fault of the sheet that the file declares.
    let (fixed, over) = (of(&context.settings.set), of(&context.settings.over));
    let mut axis = |names: &Option<Vec<Spanned<String>>>| -> Option<Vec<String>> {
        let names = names.as_ref()?;
        for name in names {
            if !sweep.varying.contains(&name.value) && !fixed.contains(&name.value) {
                let known = sweep.varying.iter().map(String::as_str);
                problems.push(
                    Problem::new(
                        Code::BadSweep,
                        source,
                        name.span,
                        format!("`{}` does not vary in this sweep", name.value),
                    )
                    .maybe_help(suggest::hint(
                        &name.value,
                        "params that do",
                        known,
                    )),
                );
            }
        }
        let names = names.iter().map(|name| name.value.clone());
        Some(names.filter(|name| sweep.varying.contains(name)).collect())
    };
    let rows = axis(&decl.rows);
    let columns = axis(&decl.columns);
    let rest = |taken: &[String]| -> Vec<String> {
        let mut rest = sweep.varying.clone();
        rest.retain(|name| !taken.contains(name));
        rest
    };
    let (rows, columns) = match (rows, columns) {
        (Some(rows), Some(mut columns)) => {
            let named = |name: &String| rows.contains(name) || columns.contains(name);
            let more: Vec<String> = (sweep.varying.iter())
                .filter(|name| over.contains(*name) && !named(name))
                .cloned()
                .collect();
            columns.extend(more);
            (rows, columns)
        }
        (Some(rows), None) => {
            let columns = rest(&rows);
            (rows, columns)
        }
        (None, Some(columns)) => (rest(&columns), columns),
        (None, None) => {
            let columns: Vec<String> = sweep.varying.last().cloned().into_iter().collect();
            (rest(&columns), columns)
        }
    };
    for name in &sweep.varying {
        let both = rows.iter().chain(&columns);
        let count = both.filter(|one| *one == name).count();
        if count != 1 && problems.len() == before {
            let message = match count {
                0 => format!("the sheet has no place for `{name}`, which varies"),
                _ => format!("`{name}` is given to the sheet twice"),
            };
            problems.push(
                Problem::new(Code::BadSweep, source, decl.key_span, message)
                    .help("each param that varies is among `rows` or among `columns`, once"),
            );
        }
    }
    Axes { rows, columns }
}

/// The values of a cell along an axis.
fn place(cell: &Cell, names: &[String]) -> Vec<Json> {
    (names.iter())
        .map(|name| cell.values.get(name).cloned().unwrap_or_default())
        .collect()
}

/// The places along an axis, in the order of the cells.
fn places_along(sweep: &Sweep, names: &[String]) -> Vec<Vec<Json>> {
    let mut places: Vec<Vec<Json>> = Vec::new();
    for cell in &sweep.cells {
        let place = place(cell, names);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// The label of each place along an axis.
fn labels(sweep: &Sweep, names: &[String], places: &[Vec<Json>]) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    // A text says by itself what it is; a number does not.
    let one = |name: &String, value: &Json| match value {
        Json::String(text) if text.chars().any(char::is_whitespace) => text.clone(),
        value => format!("{name}={}", shown(value)),
    };
    (places.iter())
        .map(|key| {
            let cell = sweep.cells.iter().find(|cell| place(cell, names) == *key);
            let display = |name: &String| {
                let value = cell.and_then(|cell| cell.display.get(name));
                value.cloned().unwrap_or_default()
            };
            let texts: Vec<String> = (names.iter())
                .map(|name| one(name, &display(name)))
                .collect();
            // Labels are templates, in which a brace is written twice.
            texts.join(", ").replace('{', "{{").replace('}', "}}")
        })
        .collect()
}

/// The output that the sheet shows.
fn shown_output(
    sweep: &Sweep,
    decl: &SheetDecl,
    registry: &Registry,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let takes = registry
        .entry(SHEET_OP)
        .and_then(|entry| entry.inputs().first());
    let first = sweep.cells.first()?;
    let fits = |output: &&CheckedOutput| takes.is_some_and(|port| comes_to(sweep, output, port));
    let outputs = || first.outputs.iter().map(|at| &sweep.whole.outputs[*at]);
    let pictures: Vec<&str> = outputs()
        .filter(fits)
        .map(|output| output.name.as_str())
        .collect();
    let (span, message, help) = match &decl.output {
        Some(name) if pictures.contains(&name.value.as_str()) => {
            return Some(name.value.clone());
        }
        Some(name) if outputs().any(|output| output.name == name.value) => (
            name.span,
            format!("the output `{}` is not a picture", name.value),
            None,
        ),
        Some(name) => (
            name.span,
            format!("the workflow has no output `{}`", name.value),
            suggest::hint(&name.value, "pictures", pictures.iter().copied()),
        ),
        None => match pictures.first() {
            Some(first) => return Some((*first).to_owned()),
            None => (
                decl.key_span,
                "no output of the workflow is a picture that a sheet could show".to_owned(),
                None,
            ),
        },
    };
    let help = help.unwrap_or_else(|| {
        if pictures.is_empty() {
            "remove `grid:`, or add an output of a picture".to_owned()
        } else {
            format!("the pictures are {}", suggest::list(&pictures))
        }
    });
    problems.push(Problem::new(Code::BadSweep, source, span, message).help(help));
    None
}

/// The output with the scores that are shown, if any are asked for.
fn score_output(
    sweep: &Sweep,
    decl: &SheetDecl,
    registry: &Registry,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let asked = (decl.fields.iter())
        .find(|(key, _)| matches!(key.text.as_str(), "scores" | "order"))
        .map(|(key, _)| key);
    if asked.is_none() && decl.table.is_none() {
        return None;
    }
    let port = registry.entry(SHEET_OP)?.inputs().get(1)?;
    let first = sweep.cells.first()?;
    let outputs = first.outputs.iter().map(|at| &sweep.whole.outputs[*at]);
    let tables: Vec<&str> = outputs
        .filter(|output| comes_to(sweep, output, port))
        .map(|output| output.name.as_str())
        .collect();
    let outputs = || first.outputs.iter().map(|at| &sweep.whole.outputs[*at]);
    let asked_at = asked.map_or(decl.key_span, |key| key.span);
    let (span, message, help) = match (&decl.table, &tables[..]) {
        (Some(name), _) if tables.contains(&name.value.as_str()) => {
            if asked.is_some() {
                return Some(name.value.clone());
            }
            let help = "name columns: `scores: [look]`, or `order: look`".to_owned();
            let message = "the sheet has a `table` and shows nothing of it".to_owned();
            (name.span, message, Some(help))
        }
        (None, [one]) => return Some((*one).to_owned()),
        (Some(name), _) if outputs().any(|output| output.name == name.value) => (
            name.span,
            format!("the output `{}` is not a table", name.value),
            None,
        ),
        (Some(name), _) => (
            name.span,
            format!("the workflow has no output `{}`", name.value),
            suggest::hint(&name.value, "tables", tables.iter().copied()),
        ),
        (None, []) => (
            asked_at,
            "no output of the workflow is a table of scores".to_owned(),
            None,
        ),
        (None, _) => (
            asked_at,
            "the workflow has several tables, and the sheet does not say which has its scores"
                .to_owned(),
            None,
        ),
    };
    let help = help.unwrap_or_else(|| match tables.first() {
        None => "add an output of what the op `scores` made".to_owned(),
        Some(first) => format!(
            "name one: `table: {first}`; the tables are {}",
            suggest::list(&tables)
        ),
    });
    problems.push(Problem::new(Code::BadSweep, source, span, message).help(help));
    None
}

/// Whether an output can come to a port.
pub(super) fn comes_to(sweep: &Sweep, output: &CheckedOutput, port: &PortSpec) -> bool {
    let node = &sweep.whole.nodes[output.link.node];
    (node.entry.outputs().iter())
        .find(|own| own.name == output.link.port)
        .is_some_and(|own| own.types.iter().any(|one| port.types.contains(one)))
}

/// The node that draws the contact sheet; `None` when no cell is left to show.
pub(super) fn node(
    sweep: &Sweep,
    sheet: &Sheet,
    registry: &Registry,
    files: &dyn Files,
    without: &BTreeSet<usize>,
) -> Result<Option<CheckedNode>, Problems> {
    let fault = |message: String| Problem::new(Code::BadSweep, &sheet.source, sheet.span, message);
    let Some(entry) = registry.entry(SHEET_OP) else {
        return Err(fault(format!(
            "there is no op `{SHEET_OP}` to draw the sheet with"
        ))
        .help("remove `grid:`")
        .into());
    };
    let mut links = Vec::new();
    let mut tables = Vec::new();
    let mut known = Vec::new();
    let mut blanks = Vec::new();
    let mut labels = Vec::new();
    for (place, cell) in sheet.places.iter().enumerate() {
        let cell = cell.filter(|cell| !without.contains(cell));
        let output = |name: &str| {
            (sweep.cells[cell?].outputs.iter())
                .map(|at| &sweep.whole.outputs[*at])
                .find(|output| output.name == name)
        };
        let table = sheet.table.as_deref().map(output);
        let (Some(output), None | Some(Some(_))) = (output(&sheet.output), table) else {
            blanks.push(place);
            continue;
        };
        tables.extend(table.flatten().map(|table| table.link));
        labels.push(sheet.label(place));
        let node = &sweep.whole.nodes[output.link.node];
        let facts = (node.node.check((*node.known).clone(), files).ok())
            .and_then(|(made, _)| made.get(output.link.port)?.first().cloned());
        links.push(output.link);
        known.push(facts.unwrap_or(Known::Unknown));
    }
    if links.is_empty() {
        return Ok(None);
    }
    let mut known = BTreeMap::from_iter((entry.inputs().first()).map(|port| (port.name, known)));
    if let Some(port) = entry.inputs().get(1) {
        known.insert(port.name, vec![Known::Unknown; tables.len()]);
    }
    let mut given = match sheet.is_ordered() {
        true => json!({ "labels": labels }),
        false => json!({
            "columns": sheet.columns,
            "column_labels": sheet.column_labels,
            "row_labels": sheet.row_labels,
            "blanks": blanks,
        }),
    };
    for (key, tree) in &sheet.decl.fields {
        given[&key.text] = tree.to_json();
    }
    let written = Written {
        what: "the sheet cannot be drawn",
        name: SHEET,
        fields: &sheet.decl.fields,
        source: &sheet.source,
        span: sheet.span,
    };
    written
        .node(entry, &given, vec![links, tables], known, files)
        .map(Some)
}

impl Sheet {
    /// Whether the pictures are ordered by a score.
    fn is_ordered(&self) -> bool {
        self.decl.fields.iter().any(|(key, _)| key.text == "order")
    }

    /// What a picture is of, where it does not stand in its row and column.
    fn label(&self, place: usize) -> String {
        let columns = self.columns.max(1);
        let row = self.row_labels.get(place / columns);
        let column = self.column_labels.get(place % columns);
        let parts: Vec<&str> = row.into_iter().chain(column).map(String::as_str).collect();
        parts.join(", ")
    }
}

/// A node that a sweep asks for beside its cells, as it is written.
pub(super) struct Written<'a> {
    /// What is said when it cannot be made.
    pub(super) what: &'a str,
    /// What it is called.
    pub(super) name: &'a str,
    /// Its params.
    pub(super) fields: &'a [(MapKey, Tree)],
    pub(super) source: &'a Source,
    /// Where its key is.
    pub(super) span: Span,
}

impl Written<'_> {
    /// The node with these params and links (one list for each port), checked.
    pub(super) fn node(
        &self,
        entry: &Arc<Entry>,
        given: &Json,
        links: Vec<Vec<Link>>,
        known: KnownPorts,
        files: &dyn Files,
    ) -> Result<CheckedNode, Problems> {
        let place = |field: Option<&str>| {
            (self.fields.iter())
                .find(|(key, _)| Some(key.text.as_str()) == field)
                .map_or(self.span, |(_, tree)| tree.span)
        };
        let problem =
            |span, message: String| Problem::new(Code::BadSweep, self.source, span, message);
        let node = entry.make(given).map_err(|refusal| {
            let field = match refusal.path.first() {
                Some(PathStep::Key(name)) => Some(name.as_str()),
                _ => None,
            };
            problem(place(field), format!("{}: {}", self.what, refusal.message))
                .help(format!("see `retouch nodes {}`", entry.op()))
        })?;
        let known = Arc::new(known);
        if let Err(faults) = node.check((*known).clone(), files) {
            let problems = faults.into_iter().map(|fault| {
                let span = place(fault.field.as_deref());
                problem(span, fault.message).maybe_help(fault.help)
            });
            return Err(Problems::new(problems.collect()));
        }
        let params = node
            .params()
            .map_err(|message| problem(self.span, message))?;
        Ok(CheckedNode {
            name: self.name.to_owned(),
            cell: None,
            entry: Arc::clone(entry),
            node: Arc::from(node),
            params: Arc::new(params),
            links,
            reads: Arc::default(),
            known,
            source: self.source.clone(),
            span: self.span,
        })
    }
}
