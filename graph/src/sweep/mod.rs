//! Sweeps: one workflow run for many values of its params, planned as one graph, so that whatever cells have in common,
//! down to the denoising step, is made once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::base::draw;
use crate::base::key::Key;
use crate::base::paths::{folder_of, normal};
use crate::base::problem::{self, Code, Problem, Problems, Source, Span};
use crate::base::remote;
use crate::base::suggest;
use crate::check::settings::{Setting, ValueOrigin, declared};
use crate::check::{
    self, CheckContext, Checked, CheckedNode, CheckedOutput, Link, MAX_NODES, ResolvedParam,
    Settings,
};
use crate::files::Files;
use crate::files::output_path;
use crate::lock;
use crate::op::registry::Registry;
use crate::plan::plan::Plan;
use crate::plan::task::Task;
use crate::syntax::params::{How, ParamType};
use crate::syntax::template::{self, Piece};
use crate::syntax::workflow::{self, SheetDecl, Spanned, SweepDecl, Workflow};
use crate::syntax::yaml::{self, MapKey as Name, Node, Tree};
use crate::value::fields::MAX_INTEGER;
use crate::value::port::Known;

/// How many cells a sweep may have.
pub const MAX_CELLS: usize = 10_000;
/// The op that draws the contact sheet.
const SHEET_OP: &str = "grid";
/// What the contact sheet is called among nodes and outputs.
const SHEET: &str = "sheet";
/// From so many faults on no more cells are checked.
const MAX_FAULTS: usize = 200;
/// So many letters of a value stand in a label or a file's name.
const SHOWN: usize = 40;

/// A value of a param in a sweep.
#[derive(Clone, Debug)]
struct Value {
    json: Json,
    setting: Setting,
}

/// A cell as the declaration gives it: the values of its params.
type Values = IndexMap<String, Arc<Value>>;

/// A cell of a sweep: one run of the workflow.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// What it is called: `blend_steps=20%, seed=1`.
    pub label: String,
    /// The values of the params that vary in the sweep.
    pub values: IndexMap<String, Json>,
    /// The values of all params.
    #[serde(skip)]
    pub params: Vec<ResolvedParam>,
    /// The same as it is shown: paths as they can be shared.
    #[serde(skip)]
    display: IndexMap<String, Json>,
    /// Its outputs among those of the whole.
    #[serde(skip)]
    outputs: Vec<usize>,
    /// Its nodes among those of the whole.
    #[serde(skip)]
    nodes: std::ops::Range<usize>,
}

/// A sweep that is sound: all its cells as one graph.
#[derive(Debug)]
pub struct Sweep {
    /// The file of the workflow that is swept.
    pub workflow: PathBuf,
    /// The params that vary, in the order of the file.
    pub varying: Vec<String>,
    /// The cells; the first param of the matrix changes slowest.
    pub cells: Vec<Cell>,
    /// The path of the table of results below the output folder.
    pub table: Option<String>,
    /// All cells side by side, each node with its cell.
    whole: Checked,
    sheet: Option<Sheet>,
    /// For each output of the workflow: the params that its template of a path names.
    named: HashMap<String, HashSet<String>>,
}

/// The contact sheet.
#[derive(Debug)]
struct Sheet {
    /// Row by row, the cell at each place, if there is one.
    places: Vec<Option<usize>>,
    columns: usize,
    row_labels: Vec<String>,
    column_labels: Vec<String>,
    output: String,
    save: Option<String>,
    /// As it is written, with the axes that it has in this run.
    decl: SheetDecl,
    source: Source,
    span: Span,
}

/// The plan of a sweep.
#[derive(Debug)]
pub struct SweepPlan {
    /// What is to be done for all cells.
    pub plan: Plan,
    /// For each output of the plan: the cell that it is of, and its name in the workflow; the contact sheet is of none.
    pub outputs: Vec<(Option<usize>, String)>,
    /// For each output of the plan: the path of its file, also where another output of the plan saves it.
    pub saves: Vec<Option<String>>,
    /// For each task of the plan: the cells that it is part of.
    pub cells: Vec<BTreeSet<usize>>,
}

impl SweepPlan {
    /// Leaves out the outputs that `keep` does not want, by index; what only they need is then not needed.
    pub fn retain_outputs(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let kept: Vec<bool> = (0..self.outputs.len()).map(&mut keep).collect();
        let mut at = kept.iter();
        self.outputs.retain(|_| at.next() == Some(&true));
        let mut at = kept.iter();
        self.saves.retain(|_| at.next() == Some(&true));
        let mut at = kept.iter();
        self.plan.retain_outputs(|| at.next() == Some(&true));
    }

    /// The key of an output's value.
    #[must_use]
    pub fn key(&self, output: usize) -> Option<Key> {
        let output = self.plan.outputs().get(output)?;
        Some(self.plan.task(output.task)?.port_key(output.port))
    }
}

impl Sweep {
    /// The name of the workflow.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.whole.name
    }

    /// What is odd but no fault.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.whole.warnings
    }

    /// The files that say what is run: the sweep's, the workflow's, those that it uses.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.whole.files
    }

    /// A cell as a workflow by itself.
    #[must_use]
    pub fn cell(&self, index: usize) -> Option<Checked> {
        let cell = self.cells.get(index)?;
        let whole = &self.whole;
        let mut checked = Checked {
            name: whole.name.clone(),
            description: whole.description.clone(),
            source: whole.source.clone(),
            params: cell.params.clone(),
            nodes: whole.nodes[cell.nodes.clone()].to_vec(),
            outputs: Vec::new(),
            warnings: Vec::new(),
            files: whole.files.clone(),
            groups: HashMap::new(),
            open: None,
        };
        for node in &mut checked.nodes {
            node.cell = None;
            for link in node.links.iter_mut().flatten() {
                link.node -= cell.nodes.start;
            }
        }
        checked.outputs = (cell.outputs.iter())
            .map(|at| {
                let mut output = self.whole.outputs[*at].clone();
                output.link.node -= cell.nodes.start;
                output
            })
            .collect();
        Some(checked)
    }

    /// What the contact sheet is called among outputs: `sheet`, unless the workflow has an output of that name.
    #[must_use]
    pub fn sheet_name(&self) -> &str {
        if self.named.contains_key(SHEET) {
            "contact_sheet"
        } else {
            SHEET
        }
    }

    /// All cells side by side, with the outputs of that name.
    pub(crate) fn whole(&self, output: &str) -> Checked {
        let mut whole = self.whole.clone();
        whole.outputs.retain(|one| one.name == output);
        whole
    }

    /// All cells as one workflow, with the files of all of them: for what is written down of a sweep as a whole. Nodes of
    /// different cells share names; its params are those that do not vary.
    #[must_use]
    pub fn all_cells(&self) -> &Checked {
        &self.whole
    }

    /// The nodes of all cells.
    #[must_use]
    pub fn nodes(&self) -> &[CheckedNode] {
        &self.whole.nodes
    }

    /// The output that the contact sheet shows, and what is said of how it is laid out and drawn.
    pub(crate) fn sheet_parts(&self) -> Option<(&str, &SheetDecl)> {
        let sheet = self.sheet.as_ref()?;
        Some((&sheet.output, &sheet.decl))
    }

    /// Whether there is a contact sheet.
    #[must_use]
    pub fn has_sheet(&self) -> bool {
        self.sheet.is_some()
    }

    /// The cells by the row and column of the contact sheet, if there is one: columns, then the cells row by row.
    #[must_use]
    pub fn places(&self) -> Option<(usize, &[Option<usize>])> {
        (self.sheet.as_ref()).map(|sheet| (sheet.columns, sheet.places.as_slice()))
    }

    /// Plans the outputs of that name in all cells but those `without`, all outputs when no name is given. The contact
    /// sheet (`sheet`) has blanks where cells are left out.
    ///
    /// # Errors
    /// When an output is not known, there is nothing to run, or a file cannot be read.
    pub(crate) fn plan(
        &self,
        registry: &Registry,
        files: &dyn Files,
        numerics: &str,
        targets: &[String],
        without: &BTreeSet<usize>,
    ) -> Result<SweepPlan, Problems> {
        let names: Vec<&str> = (self.named.keys().map(String::as_str))
            .chain(self.sheet.is_some().then_some(self.sheet_name()))
            .collect();
        for target in targets {
            if !names.contains(&target.as_str()) {
                let problem = Problem::new(
                    Code::UnknownTarget,
                    &Source::command_line(target.as_str()),
                    Span::new(0, target.len()),
                    format!("the workflow has no output `{target}`"),
                )
                .maybe_help(
                    crate::plan::targets::forgotten_set(target)
                        .or_else(|| suggest::hint(target, "outputs", names.iter().copied())),
                );
                return Err(problem.into());
            }
        }
        let asked = |name: &str| targets.is_empty() || targets.iter().any(|one| one == name);
        let mut whole = self.whole.clone();
        let mut outputs = Vec::new();
        whole.outputs.clear();
        for (index, cell) in self.cells.iter().enumerate() {
            for &at in cell.outputs.iter().filter(|_| !without.contains(&index)) {
                let output = &self.whole.outputs[at];
                if asked(&output.name) {
                    outputs.push((Some(index), output.name.clone()));
                    let mut output = output.clone();
                    output.name = titled(&output.name, &cell.label);
                    whole.outputs.push(output);
                }
            }
        }
        if let Some(sheet) = self.sheet.as_ref().filter(|_| asked(self.sheet_name()))
            && let Some(node) = self.sheet_node(sheet, registry, files, without)?
        {
            whole.outputs.push(CheckedOutput {
                name: self.sheet_name().to_owned(),
                link: Link {
                    node: whole.nodes.len(),
                    port: node
                        .entry
                        .outputs()
                        .first()
                        .map_or("image", |port| port.name),
                },
                save: sheet.save.clone(),
            });
            whole.nodes.push(node);
            outputs.push((None, self.sheet_name().to_owned()));
        }
        let mut plan = Plan::new(&whole, &[], files, numerics)?;
        let mut taken: HashSet<String> = HashSet::new();
        plan.rename(|task| self.names(task, &mut taken));
        let cells: Vec<BTreeSet<usize>> = plan.tasks().map(Task::cells).collect();
        let saves = self.distinct(&mut plan, &outputs, &cells)?;
        Ok(SweepPlan {
            plan,
            outputs,
            saves,
            cells,
        })
    }

    /// What a task is called: each of its nodes once, with what sets the cells apart that have it; not as one in `taken`.
    fn names(&self, task: &Task, taken: &mut HashSet<String>) -> Vec<String> {
        let mut cells_of: IndexMap<&str, BTreeSet<usize>> = IndexMap::new();
        for node in task.nodes() {
            cells_of.entry(&node.name).or_default().extend(node.cell);
        }
        (cells_of.into_iter())
            .map(|(name, of)| {
                let title = titled(name, &label(self.shared(&of)));
                let mut unique = title.clone();
                let mut number = 2;
                while !taken.insert(unique.clone()) {
                    unique = format!("{title} #{number}");
                    number += 1;
                }
                unique
            })
            .collect()
    }

    /// What sets these cells apart from the others: the values that all of them, and not all cells, have.
    fn shared(&self, of: &BTreeSet<usize>) -> Vec<(&str, &Json)> {
        let Some(first) = of.first() else {
            return Vec::new();
        };
        if of.len() == self.cells.len() {
            return Vec::new();
        }
        (self.cells[*first].values.iter())
            .filter(|(name, value)| {
                let same = |cell: &Cell| cell.values.get(*name) == Some(value);
                of.iter().all(|cell| same(&self.cells[*cell])) && !self.cells.iter().all(same)
            })
            .filter_map(|(name, _)| {
                let (name, shown) = self.cells[*first].display.get_key_value(name)?;
                Some((name.as_str(), shown))
            })
            .collect()
    }

    /// Gives outputs that would be saved to one file, and are not the same, names of their own: the values of the params
    /// that their template does not name. One picture of several cells is saved once.
    fn distinct(
        &self,
        plan: &mut Plan,
        outputs: &[(Option<usize>, String)],
        cells: &[BTreeSet<usize>],
    ) -> Result<Vec<Option<String>>, Problems> {
        let mut paths: HashMap<String, HashSet<(usize, &'static str)>> = HashMap::new();
        for output in plan.outputs() {
            if let Some(path) = &output.save {
                let made = (output.task, output.port);
                paths.entry(path.to_lowercase()).or_default().insert(made);
            }
        }
        let shared: HashSet<&str> = (plan.outputs().iter().zip(outputs))
            .filter(|(output, _)| {
                (output.save.as_ref()).is_some_and(|path| paths[&path.to_lowercase()].len() > 1)
            })
            .map(|(_, (_, name))| name.as_str())
            .collect();
        let mut taken: HashMap<String, (usize, &'static str)> = HashMap::new();
        let mut saves = Vec::with_capacity(outputs.len());
        for (output, (cell, name)) in plan.outputs_mut().iter_mut().zip(outputs) {
            let (Some(path), Some(cell)) = (&output.save, cell) else {
                saves.push(output.save.clone());
                continue;
            };
            let mut path = path.clone();
            if shared.contains(name.as_str()) {
                let named = self.named.get(name);
                let suffix: String = (self.shared(&cells[output.task]).into_iter())
                    .filter(|(param, _)| named.is_none_or(|named| !named.contains(*param)))
                    .map(|(param, value)| format!("-{param}={}", in_path(&shown(value))))
                    .collect();
                path = output_path::suffixed(&path, &suffix);
            }
            let made = (output.task, output.port);
            // Cells that differ in nothing that their names show: their number does.
            if (taken.get(&path.to_lowercase())).is_some_and(|other| *other != made) {
                path = output_path::suffixed(&path, &format!("-cell{}", cell + 1));
            }
            if let Err(why) = output_path::check_path(&path) {
                let problem = Problem::new(
                    Code::UnsafePath,
                    &Source::new("sweep", path.as_str()),
                    Span::new(0, path.len()),
                    format!("a cell cannot be saved to `{path}`: {why}"),
                )
                .help("name the params that vary in `save`, or shorten their values");
                return Err(problem.into());
            }
            saves.push(Some(path.clone()));
            let first = taken.insert(path.to_lowercase(), made).is_none();
            output.save = first.then_some(path);
        }
        Ok(saves)
    }

    /// The node that draws the contact sheet; `None` when no cell is left to show.
    fn sheet_node(
        &self,
        sheet: &Sheet,
        registry: &Registry,
        files: &dyn Files,
        without: &BTreeSet<usize>,
    ) -> Result<Option<CheckedNode>, Problems> {
        let fault =
            |message: String| Problem::new(Code::BadSweep, &sheet.source, sheet.span, message);
        let Some(entry) = registry.entry(SHEET_OP) else {
            return Err(fault(format!(
                "there is no op `{SHEET_OP}` to draw the sheet with"
            ))
            .help("remove `grid:`")
            .into());
        };
        let mut links = Vec::new();
        let mut known = Vec::new();
        let mut blanks = Vec::new();
        for (place, cell) in sheet.places.iter().enumerate() {
            let output = cell
                .filter(|cell| !without.contains(cell))
                .and_then(|cell| {
                    (self.cells[cell].outputs.iter())
                        .map(|at| &self.whole.outputs[*at])
                        .find(|output| output.name == sheet.output)
                });
            let Some(output) = output else {
                blanks.push(place);
                continue;
            };
            let node = &self.whole.nodes[output.link.node];
            let facts = (node.node.check((*node.known).clone(), files).ok())
                .and_then(|(made, _)| made.get(output.link.port)?.first().cloned());
            links.push(output.link);
            known.push(facts.unwrap_or(Known::Unknown));
        }
        if links.is_empty() {
            return Ok(None);
        }
        let Some(port) = entry.inputs().first() else {
            return Ok(None);
        };
        let mut given = json!({
            "columns": sheet.columns,
            "column_labels": sheet.column_labels,
            "row_labels": sheet.row_labels,
            "blanks": blanks,
        });
        for (key, tree) in &sheet.decl.fields {
            given[&key.text] = tree.to_json();
        }
        let place = |field: Option<&str>| {
            (sheet.decl.fields.iter())
                .find(|(key, _)| Some(key.text.as_str()) == field)
                .map_or(sheet.span, |(_, tree)| tree.span)
        };
        let node = entry.make(&given).map_err(|refusal| {
            let field = match refusal.path.first() {
                Some(crate::op::registry::Step::Key(name)) => Some(name.as_str()),
                _ => None,
            };
            Problem::new(
                Code::BadSweep,
                &sheet.source,
                place(field),
                format!("the sheet cannot be drawn so: {}", refusal.message),
            )
            .help(format!("see `retouch nodes {SHEET_OP}`"))
        })?;
        let known = Arc::new(std::collections::BTreeMap::from([(port.name, known)]));
        if let Err(faults) = node.check((*known).clone(), files) {
            let problems = faults.into_iter().map(|fault| {
                let field = fault.field.as_deref();
                Problem::new(Code::BadSweep, &sheet.source, place(field), fault.message)
                    .maybe_help(fault.help)
            });
            return Err(Problems::new(problems.collect()));
        }
        let params = node.params().map_err(fault)?;
        Ok(Some(CheckedNode {
            name: SHEET.to_owned(),
            cell: None,
            entry: Arc::clone(entry),
            node: Arc::from(node),
            params: Arc::new(params),
            links: vec![links],
            reads: Vec::new(),
            known,
            source: sheet.source.clone(),
            span: sheet.span,
        }))
    }
}

fn titled(name: &str, label: &str) -> String {
    if label.is_empty() {
        name.to_owned()
    } else {
        format!("{name} [{label}]")
    }
}

/// `blend_steps=20%, seed=1`.
fn label<'a>(values: impl IntoIterator<Item = (&'a str, &'a Json)>) -> String {
    let texts: Vec<String> = (values.into_iter())
        .map(|(name, value)| format!("{name}={}", shortened(&shown(value))))
        .collect();
    texts.join(", ")
}

/// A value as it is written in a workflow.
#[must_use]
pub fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn shortened(text: &str) -> String {
    let text = text.replace(['\n', '\r', '\t'], " ");
    crate::base::text::shortened(&text, SHOWN).into_owned()
}

/// A value in a file's name: what no path may have is left out, and of a long one the rest.
fn in_path(text: &str) -> String {
    let mut short = String::new();
    for letter in text.chars() {
        let letter = match letter {
            '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' => '_',
            letter if letter.is_control() => '_',
            letter => letter,
        };
        if short.len() + letter.len_utf8() > SHOWN {
            break;
        }
        short.push(letter);
    }
    short.trim().to_owned()
}

/// What reading a sweep needs.
struct Reader<'a> {
    context: &'a CheckContext<'a>,
    /// The file that says the sweep.
    source: &'a Source,
    folder: Arc<PathBuf>,
    /// The workflow that is swept.
    target: &'a Workflow,
    read: Vec<PathBuf>,
    problems: &'a mut Vec<Problem>,
    draws: u64,
}

/// What is wrong with the values of the sweep that a workflow has, found when the workflow is checked for anything; the files
/// that were read.
pub(crate) fn check_values(
    context: &CheckContext<'_>,
    workflow: &Workflow,
    problems: &mut Vec<Problem>,
) -> Vec<PathBuf> {
    let own = workflow.sweep.as_ref();
    let Some(sweep) = own.filter(|sweep| sweep.workflow.is_none()) else {
        return Vec::new();
    };
    let mut reader = Reader {
        context,
        source: &workflow.source,
        folder: Arc::clone(&workflow.folder),
        target: workflow,
        read: Vec::new(),
        problems,
        draws: 0,
    };
    reader.cells(Some(sweep), &[]);
    reader.read
}

/// The endings of pictures that a contact sheet is saved as.
const SHEET_ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// The contact sheet that the command line asks for.
struct AskedSheet {
    source: Source,
    save: Spanned<String>,
}

impl AskedSheet {
    fn new(path: &str) -> Self {
        let prefix = "--sheet ";
        Self {
            source: Source::command_line(format!("{prefix}{path}")),
            save: Spanned {
                value: path.to_owned(),
                span: Span::new(prefix.len(), prefix.len() + path.len()),
            },
        }
    }
}

/// Reads and checks a sweep: the file says it, or `Settings::over` does.
pub(crate) fn load(context: &CheckContext<'_>, path: &Path) -> Result<Sweep, Problems> {
    let mut problems = Vec::new();
    let name = path.display().to_string();
    let source = check::read_argument(context.files, &name, path)?;
    let folder = folder_of(path);
    let Some(mut workflow) = workflow::parse(&source, &folder, &mut problems) else {
        return Err(Problems::new(problems));
    };
    let mut read = vec![path.to_owned()];
    let decl = workflow.sweep.take();
    let mut target_path = path.to_owned();
    if let Some(other) = decl.as_ref().and_then(|decl| decl.workflow.as_ref()) {
        if !problems.is_empty() {
            return Err(Problems::new(problems));
        }
        target_path = normal(&folder.join(&other.value));
        let shown = target_path.display().to_string();
        let text = check::read(context.files, &shown, &target_path).map_err(|problem| {
            Problem::new(Code::IncludeMissing, &source, other.span, problem.message())
                .help("`workflow` is a path relative to this file")
        })?;
        read.push(target_path.clone());
        let parsed = workflow::parse(&text, &folder_of(&target_path), &mut problems);
        let Some(parsed) = parsed else {
            return Err(Problems::new(problems));
        };
        if let Some(again) = parsed
            .sweep
            .as_ref()
            .and_then(|sweep| sweep.workflow.as_ref())
        {
            let problem = Problem::new(
                Code::BadSweep,
                &source,
                other.span,
                format!("`{shown}` is a sweep itself, of `{}`", again.value),
            )
            .help("name the workflow");
            return Err(problem.into());
        }
        workflow = parsed;
        workflow.sweep = None;
    }
    if decl.is_none() && context.settings.over.is_empty() {
        // A `sweep:` that is there and at fault has been reported.
        if problems.is_empty() {
            problems.push(
                Problem::new(
                    Code::BadSweep,
                    &source,
                    Span::default(),
                    "the workflow does not say a sweep",
                )
                .help("add `sweep: {matrix: {seed: 1..5}}` to it, or give `--over seed=1..5`"),
            );
        }
        return Err(Problems::new(problems));
    }
    let alone = decl.as_ref().is_some_and(|decl| decl.workflow.is_none());
    if alone && workflow.nodes.is_empty() && !workflow.nodes_unread && problems.is_empty() {
        let span = decl
            .as_ref()
            .map_or_else(Span::default, |decl| decl.key_span);
        let message = "the file has a sweep and no nodes, and it names no workflow";
        let problem = Problem::new(Code::BadSweep, &source, span, message)
            .help("say which workflow is swept: `sweep: {workflow: wf.yaml, matrix: ...}`");
        return Err(problem.into());
    }
    let workflow = Arc::new(workflow);
    let mut reader = Reader {
        context,
        source: &source,
        folder: Arc::new(folder),
        target: &workflow,
        read,
        problems: &mut problems,
        draws: 0,
    };
    let cells = reader.cells(decl.as_ref(), &context.settings.over);
    let read = reader.read;
    if !problems.is_empty() {
        return Err(Problems::new(problems));
    }
    let included = decl.as_ref().is_some_and(|decl| !decl.include.is_empty());
    let mut sweep = join(context, &workflow, &target_path, cells, included, read)?;
    let grid = decl.as_ref().and_then(|decl| decl.grid.as_ref());
    let asked = context.settings.sheet.as_deref().map(AskedSheet::new);
    let table = decl.as_ref().and_then(|decl| decl.table.as_ref());
    if let Some(grid) = grid {
        sweep.sheet = sweep.sheet_of(grid, context, &source, &mut problems);
    } else if let Some(AskedSheet { source, save }) = &asked {
        let plain = SheetDecl {
            key_span: save.span,
            rows: None,
            columns: None,
            output: None,
            save: Some(save.clone()),
            fields: Vec::new(),
        };
        sweep.sheet = sweep.sheet_of(&plain, context, source, &mut problems);
    }
    if let Some(AskedSheet { source, save }) = &asked {
        let picture = output_path::ending(&save.value)
            .is_some_and(|ending| SHEET_ENDINGS.contains(&ending.as_str()));
        if !picture {
            let message = format!("the sheet `{}` has no ending of a picture", save.value);
            problems.push(
                Problem::new(Code::SaveFormat, source, save.span, message).help("end it in `.png`"),
            );
        }
        let path = sweep.path_of(save, SHEET, source, &mut problems);
        if let Some(sheet) = &mut sweep.sheet {
            sheet.save = path;
        }
    }
    if let Some(table) = table {
        sweep.table = sweep.path_of(table, "table", &source, &mut problems);
        let known = (sweep.table.as_deref().and_then(output_path::ending))
            .is_some_and(|ending| matches!(ending.as_str(), "csv" | "json"));
        if sweep.table.is_some() && !known {
            problems.push(
                Problem::new(
                    Code::SaveFormat,
                    &source,
                    table.span,
                    "a table is saved as .csv or .json",
                )
                .help("end it in `.csv` or `.json`"),
            );
        }
    }
    if !problems.is_empty() {
        return Err(Problems::new(problems));
    }
    // What cannot be drawn is told now, not when all cells are.
    if let Some(sheet) = &sweep.sheet {
        sweep.sheet_node(sheet, context.registry, context.files, &BTreeSet::new())?;
    }
    Ok(sweep)
}

/// Checks each cell and puts all of them side by side.
fn join(
    context: &CheckContext<'_>,
    workflow: &Arc<Workflow>,
    path: &Path,
    cells: Vec<Values>,
    included: bool,
    mut read: Vec<PathBuf>,
) -> Result<Sweep, Problems> {
    let path_of_workflow = path;
    // What the workflow itself draws is drawn once: the cells differ by what the sweep says, and by nothing else.
    let settings = Settings {
        draw: Some(context.settings.draw.unwrap_or_else(check::random)),
        ..context.settings.clone()
    };
    let mut varying: Vec<String> = Vec::new();
    for name in cells.iter().flat_map(IndexMap::keys) {
        if !varying.contains(name) {
            varying.push(name.clone());
        }
    }
    let mut problems: Vec<Problem> = Vec::new();
    read.extend(check_values(context, workflow, &mut problems));
    let mut warnings: Vec<Problem> = Vec::new();
    let mut whole: Option<Checked> = None;
    let mut done: Vec<Cell> = Vec::with_capacity(cells.len());
    let mut said: HashSet<String> = HashSet::new();
    let mut known: HashSet<PathBuf> = read.iter().cloned().collect();
    for values in cells {
        let given: Vec<Setting> = values.values().map(|value| value.setting.clone()).collect();
        let context = CheckContext {
            settings: &settings,
            cell: &given,
            ..*context
        };
        let checked = match check::check(
            &context,
            Arc::clone(workflow),
            Some(path),
            Vec::new(),
            Vec::new(),
        ) {
            Ok(checked) => checked,
            Err(faults) => {
                // A fault that does not depend on the cell is told once.
                problems.extend(faults.iter().cloned());
                if problems.len() > MAX_FAULTS {
                    break; // nobody reads that far
                }
                continue;
            }
        };
        if warnings.len() < MAX_FAULTS {
            warnings.extend(checked.warnings.iter().cloned());
            problem::sort(&mut warnings);
        }
        for file in &checked.files {
            if known.insert(file.clone()) {
                read.push(file.clone());
            }
        }
        let cell_values: IndexMap<String, Json> = (varying.iter())
            .filter_map(|name| {
                let param = checked.params.iter().find(|param| param.name == *name)?;
                Some((name.clone(), number(&param.value)))
            })
            .collect();
        // What two ways of saying come to one is one cell.
        if included {
            let mut text = String::new();
            for (name, value) in &cell_values {
                text.push_str(&Json::from(name.as_str()).to_string());
                identity(value, &mut text);
            }
            if !said.insert(text) {
                continue;
            }
        }
        let display: IndexMap<String, Json> = (cell_values.iter())
            .map(|(name, value)| {
                let is_path =
                    (workflow.params.get(name)).is_some_and(|decl| decl.kind == ParamType::Path);
                let param = checked.params.iter().find(|param| param.name == *name);
                let shown = match (value.as_str(), param) {
                    (Some(text), Some(param)) if is_path => {
                        let path = remote::join(&param.folder, text);
                        let folder = folder_of(path_of_workflow);
                        Json::from(lock::shareable(&folder, &path).unwrap_or_else(|| {
                            path.file_name().map_or_else(String::new, |name| {
                                name.to_string_lossy().into_owned()
                            })
                        }))
                    }
                    _ => value.clone(),
                };
                (name.clone(), shown)
            })
            .collect();
        // Each cell holds its values several times over.
        let texts = checked.params.iter().map(|param| &param.value);
        let bytes: usize = (texts.chain(cell_values.values()).chain(display.values()))
            .map(check::text_bytes)
            .sum();
        if !context.text.take(bytes) {
            return Err(check::too_much_text(&workflow.source, Span::default()).into());
        }
        let label = label(display.iter().map(|(name, value)| (name.as_str(), value)));
        let params = checked.params.clone();
        let whole = whole.get_or_insert_with(|| Checked {
            params: Vec::new(),
            nodes: Vec::new(),
            outputs: Vec::new(),
            warnings: Vec::new(),
            files: Vec::new(),
            groups: HashMap::new(),
            ..checked.clone()
        });
        let offset = whole.nodes.len();
        if offset + checked.nodes.len() > MAX_NODES {
            let problem = Problem::new(
                Code::TooManyNodes,
                &workflow.source,
                Span::default(),
                format!("all cells together have more than {MAX_NODES} nodes"),
            )
            .help("sweep fewer values at a time");
            return Err(problem.into());
        }
        // What a node of the first cell is, and what is known of its inputs, is held once for all cells that have it too.
        let mut shared: Vec<bool> = Vec::with_capacity(checked.nodes.len());
        for (at, mut node) in checked.nodes.into_iter().enumerate() {
            let first = whole.nodes.get(at).filter(|_| offset > 0);
            let twin = first.filter(|first| {
                Arc::ptr_eq(&first.entry, &node.entry)
                    && first.params == node.params
                    && first.reads == node.reads
                    && first.links == node.links
                    && (node.links.iter().flatten())
                        .all(|link| shared.get(link.node).copied().unwrap_or(false))
            });
            if let Some(twin) = twin {
                node.params = Arc::clone(&twin.params);
                node.known = Arc::clone(&twin.known);
            }
            shared.push(twin.is_some());
            node.cell = Some(done.len());
            for link in node.links.iter_mut().flatten() {
                link.node += offset;
            }
            whole.nodes.push(node);
        }
        let first = whole.outputs.len();
        for mut output in checked.outputs {
            output.link.node += offset;
            whole.outputs.push(output);
        }
        done.push(Cell {
            label,
            values: cell_values,
            display,
            params,
            outputs: (first..whole.outputs.len()).collect(),
            nodes: offset..whole.nodes.len(),
        });
    }
    if !problems.is_empty() {
        return Err(Problems::new(problems));
    }
    let Some(mut whole) = whole else {
        let problem = Problem::new(
            Code::BadSweep,
            &workflow.source,
            Span::default(),
            "the sweep has no cells",
        )
        .help("say what varies: `sweep: {matrix: {seed: 1..5}}`");
        return Err(problem.into());
    };
    // Long values may be shortened to one and the same label.
    let mut taken: HashSet<String> = HashSet::new();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    for cell in &mut done {
        let mut label = cell.label.clone();
        let number = numbers.entry(label.clone()).or_insert(2);
        while !taken.insert(label.clone()) {
            label = format!("{} #{number}", cell.label).trim_start().to_owned();
            *number += 1;
        }
        cell.label = label;
    }
    if let Some(first) = done.first() {
        // The params that have one value in all cells.
        whole.params = (first.params.iter())
            .filter(|param| !varying.contains(&param.name))
            .cloned()
            .collect();
    }
    whole.files = read;
    whole.warnings = warnings;
    let mut named = HashMap::new();
    for (name, decl) in &workflow.outputs {
        let mut params = HashSet::new();
        let save = decl.save.as_ref().map_or("", |save| save.value.as_str());
        for piece in template::pieces(save).unwrap_or_default() {
            if let Piece::Name(param, _) = piece {
                params.insert(param.to_owned());
            }
        }
        named.insert(name.clone(), params);
    }
    Ok(Sweep {
        workflow: path.to_owned(),
        varying,
        cells: done,
        table: None,
        whole,
        sheet: None,
        named,
    })
}

impl Sweep {
    /// Reads how the contact sheet is laid out.
    fn sheet_of(
        &self,
        decl: &SheetDecl,
        context: &CheckContext<'_>,
        source: &Source,
        problems: &mut Vec<Problem>,
    ) -> Option<Sheet> {
        let registry = context.registry;
        let before = problems.len();
        let of = |texts: &[String]| -> HashSet<String> {
            (texts.iter())
                .filter_map(|text| text.split_once('='))
                .map(|(name, _)| name.trim().to_owned())
                .collect()
        };
        // What the command line changes about the cells is no fault of the sheet that the file says.
        let (fixed, over) = (of(&context.settings.set), of(&context.settings.over));
        let mut axis = |names: &Option<Vec<Spanned<String>>>| -> Option<Vec<String>> {
            let names = names.as_ref()?;
            for name in names {
                if !self.varying.contains(&name.value) && !fixed.contains(&name.value) {
                    let known = self.varying.iter().map(String::as_str);
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
            Some(names.filter(|name| self.varying.contains(name)).collect())
        };
        let rows = axis(&decl.rows);
        let columns = axis(&decl.columns);
        let rest = |taken: &[String]| -> Vec<String> {
            let mut rest = self.varying.clone();
            rest.retain(|name| !taken.contains(name));
            rest
        };
        let (rows, columns) = match (rows, columns) {
            (Some(rows), Some(mut columns)) => {
                let named = |name: &String| rows.contains(name) || columns.contains(name);
                let more: Vec<String> = (self.varying.iter())
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
                let columns: Vec<String> = self.varying.last().cloned().into_iter().collect();
                (rest(&columns), columns)
            }
        };
        for name in &self.varying {
            let count = rows
                .iter()
                .chain(&columns)
                .filter(|one| *one == name)
                .count();
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
        if problems.len() > before {
            return None;
        }
        let output = self.shown_output(decl, registry, source, problems)?;
        let save = match &decl.save {
            Some(save) => self.path_of(save, SHEET, source, problems),
            None => {
                let path = format!("{}/{SHEET}.png", in_path(self.name()));
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
        let place = |cell: &Cell, names: &[String]| -> Vec<Json> {
            names
                .iter()
                .map(|name| cell.values.get(name).cloned().unwrap_or_default())
                .collect()
        };
        let mut row_keys: Vec<Vec<Json>> = Vec::new();
        let mut column_keys: Vec<Vec<Json>> = Vec::new();
        for cell in &self.cells {
            for (names, keys) in [(&rows, &mut row_keys), (&columns, &mut column_keys)] {
                let key = place(cell, names);
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        if row_keys.len().saturating_mul(column_keys.len()) > MAX_CELLS {
            problems.push(
                Problem::new(
                    Code::BadSweep,
                    source,
                    decl.key_span,
                    format!(
                        "the sheet would have {} rows and {} columns",
                        row_keys.len(),
                        column_keys.len()
                    ),
                )
                .help(format!(
                    "at most {MAX_CELLS} places are drawn: sweep fewer values"
                )),
            );
            return None;
        }
        let mut places = vec![None; row_keys.len() * column_keys.len()];
        for (index, cell) in self.cells.iter().enumerate() {
            let row = row_keys.iter().position(|key| *key == place(cell, &rows));
            let column = (column_keys.iter()).position(|key| *key == place(cell, &columns));
            if let (Some(row), Some(column)) = (row, column) {
                places[row * column_keys.len() + column] = Some(index);
            }
        }
        let display = |names: &[String], key: &Vec<Json>| -> Vec<Json> {
            let cell = self.cells.iter().find(|cell| place(cell, names) == *key);
            (names.iter())
                .map(|name| {
                    cell.and_then(|cell| cell.display.get(name))
                        .cloned()
                        .unwrap_or_default()
                })
                .collect()
        };
        let labels = |names: &[String], keys: &[Vec<Json>]| -> Vec<String> {
            if names.is_empty() {
                return Vec::new();
            }
            // A text says by itself what it is; a number does not.
            let one = |name: &String, value: &Json| match value {
                Json::String(text) if text.chars().any(char::is_whitespace) => text.clone(),
                value => format!("{name}={}", shown(value)),
            };
            (keys.iter())
                .map(|key| {
                    let texts: Vec<String> = names
                        .iter()
                        .zip(&display(names, key))
                        .map(|(n, v)| one(n, v))
                        .collect();
                    // A template writes a brace with two, and this is none.
                    texts.join(", ").replace('{', "{{").replace('}', "}}")
                })
                .collect()
        };
        // The axes as they are, not as they are written: `--set` takes params from them and `--over` adds some, and whoever
        // reads the sheet's recipe knows nothing of either.
        let effective = |written: &Option<Vec<Spanned<String>>>, names: &[String]| {
            written.as_ref()?;
            let span = decl.key_span;
            let spanned = |name: &String| Spanned {
                value: name.clone(),
                span,
            };
            Some(names.iter().map(spanned).collect())
        };
        let decl = SheetDecl {
            rows: effective(&decl.rows, &rows),
            columns: effective(&decl.columns, &columns),
            ..decl.clone()
        };
        Some(Sheet {
            columns: column_keys.len(),
            row_labels: labels(&rows, &row_keys),
            column_labels: labels(&columns, &column_keys),
            places,
            output,
            save,
            span: decl.key_span,
            decl,
            source: source.clone(),
        })
    }

    /// The output that the sheet shows.
    fn shown_output(
        &self,
        decl: &SheetDecl,
        registry: &Registry,
        source: &Source,
        problems: &mut Vec<Problem>,
    ) -> Option<String> {
        let takes = (registry.entry(SHEET_OP))
            .and_then(|entry| entry.inputs().first())
            .map_or(&[] as &[&str], |port| port.types);
        let first = self.cells.first()?;
        let fits = |output: &&CheckedOutput| {
            let node = &self.whole.nodes[output.link.node];
            (node.entry.outputs().iter())
                .find(|port| port.name == output.link.port)
                .is_some_and(|port| port.types.iter().any(|one| takes.contains(one)))
        };
        let outputs = || first.outputs.iter().map(|at| &self.whole.outputs[*at]);
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
                format!("the output `{}` is no picture", name.value),
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

    /// Fills in a path that all cells share.
    fn path_of(
        &self,
        text: &Spanned<String>,
        output: &str,
        source: &Source,
        problems: &mut Vec<Problem>,
    ) -> Option<String> {
        let mut report = |code, message: String, help: &str| {
            problems.push(Problem::new(code, source, text.span, message).help(help));
        };
        let Ok(pieces) = template::pieces(&text.value) else {
            report(
                Code::BadTemplate,
                "the template cannot be read".to_owned(),
                "write `{name}`; a brace itself is written twice: `{{` or `}}`",
            );
            return None;
        };
        let mut path = String::new();
        for piece in pieces {
            let name = match piece {
                Piece::Text(text) => {
                    path.push_str(&text);
                    continue;
                }
                Piece::Name(name, _) => name,
            };
            let param = self.whole.params.iter().find(|param| param.name == name);
            let value = match (name, param) {
                (_, Some(param)) => shown(&param.value),
                ("workflow", None) => self.name().to_owned(),
                ("output", None) => output.to_owned(),
                _ if self.varying.iter().any(|one| one == name) => {
                    report(
                        Code::UnknownTemplateName,
                        format!("`{name}` varies in the sweep, and this is one file for all cells"),
                        "leave it out",
                    );
                    return None;
                }
                _ => {
                    report(
                        Code::UnknownTemplateName,
                        format!("there is no param `{name}`"),
                        "here `{workflow}` and the params that do not vary can be named",
                    );
                    return None;
                }
            };
            if let Err(why) = output_path::check_value(&value) {
                report(
                    Code::UnsafePath,
                    format!("`{{{name}}}` is `{}`, and {why}", value.escape_debug()),
                    "name the file without it, or give it another value",
                );
                return None;
            }
            path.push_str(&value);
        }
        if let Err(why) = output_path::check_path(&path) {
            report(
                Code::UnsafePath,
                format!("`{}` cannot be saved to: {why}", path.escape_debug()),
                "a path is relative and stays below the output folder: `{workflow}/sheet.png`",
            );
            return None;
        }
        Some(path)
    }
}

impl Reader<'_> {
    fn fault(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.problems
            .push(Problem::new(Code::BadSweep, self.source, span, message).help(help));
    }

    /// All cells, in order: those of the matrix, those of `include`.
    fn cells(&mut self, decl: Option<&SweepDecl>, over: &[String]) -> Vec<Values> {
        let mut axes: IndexMap<String, Vec<Arc<Value>>> = IndexMap::new();
        for (key, tree) in decl.into_iter().flat_map(|decl| &decl.matrix) {
            if let Some(values) = self.axis(key, tree, &self.source.clone()) {
                axes.insert(key.text.clone(), values);
            }
        }
        for text in over {
            if let Some((name, values)) = self.over(text) {
                axes.insert(name, values);
            }
        }
        for text in over {
            let name = text.split('=').next().unwrap_or("").trim();
            let set = (self.context.settings.set.iter()).any(|set| {
                set.split('=')
                    .next()
                    .is_some_and(|known| known.trim() == name)
            });
            if set {
                let source = Source::command_line(format!("--over {text}"));
                let span = Span::new(7, 7 + text.len());
                let message = format!("`{name}` is given by `--set` and by `--over`");
                self.problems.push(
                    Problem::new(Code::BadSetting, &source, span, message)
                        .help("leave one of them out"),
                );
            }
        }
        // What `--set` says holds for all cells.
        let fixed: HashSet<String> = (self.context.settings.set.iter())
            .filter_map(|text| text.split_once('='))
            .map(|(name, _)| name.trim().to_owned())
            .collect();
        axes.retain(|name, _| !fixed.contains(name));
        let total = (axes.values()).try_fold(1usize, |all, one| all.checked_mul(one.len()));
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
        let nothing = axes.is_empty() && fixed.is_empty();
        let mut cells: Vec<Values> = if nothing {
            Vec::new()
        } else {
            vec![Values::new()]
        };
        for (name, values) in &axes {
            cells = (cells.iter())
                .flat_map(|cell| {
                    values.iter().map(move |value| {
                        let mut cell = cell.clone();
                        cell.insert(name.clone(), Arc::clone(value));
                        cell
                    })
                })
                .collect();
        }
        for entry in decl.into_iter().flat_map(|decl| &decl.exclude) {
            if let Some(values) = self.entry(entry, &fixed) {
                for (key, _) in entry
                    .value
                    .iter()
                    .filter(|(key, _)| !axes.contains_key(&key.text))
                {
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
                if cells.len() == before
                    && fixed.is_empty()
                    && over.is_empty()
                    && self.problems.is_empty()
                {
                    self.fault(
                        entry.span,
                        "no cell has these values, so nothing is excluded",
                        "give values of the matrix, or remove the entry",
                    );
                }
            }
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
        // A cell that is said twice is one.
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

    fn entry(
        &mut self,
        entry: &Spanned<Vec<(Name, Tree)>>,
        fixed: &HashSet<String>,
    ) -> Option<Values> {
        let mut values = Values::new();
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
    fn over(&mut self, text: &str) -> Option<(String, Vec<Arc<Value>>)> {
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
        let key = Name {
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
    fn axis(&mut self, key: &Name, tree: &Tree, source: &Source) -> Option<Vec<Arc<Value>>> {
        let decl = declared(self.target, key, source, self.problems)?;
        let kind = decl.kind;
        let before = self.problems.len();
        let mut values: Vec<Arc<Value>> = Vec::new();
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
        // A value that is said twice is one.
        let mut seen: HashSet<String> = HashSet::new();
        values.retain(|value| {
            let mut text = String::new();
            identity(&value.json, &mut text);
            seen.insert(text)
        });
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
                "`{}` is no range",
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
        entries: &[(Name, Tree)],
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
            fault(
                span,
                "the range leads nowhere, or has too many values".to_owned(),
            );
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
        key: &Name,
        kind: ParamType,
        entries: &[(Name, Tree)],
        span: Span,
        source: &Source,
    ) -> Vec<Arc<Value>> {
        let path = match entries {
            [(_, tree)] => tree.as_text(),
            _ => None,
        };
        let Some(path) = path.filter(|path| !path.is_empty()) else {
            self.problems.push(
                Problem::new(
                    Code::BadSweep,
                    source,
                    span,
                    "`lines` is a path, and nothing stands beside it",
                )
                .help("write `{lines: places.txt}`, relative to this file"),
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
                break; // the count of the cells is told as too great
            }
        }
        values
    }

    fn value(&mut self, key: &Name, tree: Tree, source: &Source) -> Option<Value> {
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
        Some(Value {
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

/// A value with a whole number as an integer, so that 4 and 4.0 are one.
fn number(value: &Json) -> Json {
    match value.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() <= MAX_INTEGER as f64 => {
            Json::from(number as i64)
        }
        _ => value.clone(),
    }
}

/// Whether two values are the same: numbers by what they are, not by how they are written.
fn same(a: &Json, b: &Json) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A value as a text that is equal for values that are the same.
fn identity(value: &Json, text: &mut String) {
    match value.as_f64() {
        // Both zeros are one number.
        Some(number) => text.push_str(&format!("#{:x};", (number + 0.0).to_bits())),
        None => crate::base::key::canonical(value, text),
    }
}

/// A tree whose every part is at one place.
fn placed(tree: Tree, span: Span) -> Tree {
    let node = match tree.node {
        Node::Seq(items) => Node::Seq(items.into_iter().map(|item| placed(item, span)).collect()),
        Node::Map(entries) => Node::Map(
            (entries.into_iter())
                .map(|(key, value)| {
                    (
                        Name {
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
