//! What becomes of the cells of a sweep while its plan runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use retouch_graph::event::{Event, Listener};
use retouch_graph::{SaveStatus, Sweep, SweepPlan};

use super::log::Log;
use crate::lines;
use crate::output::tell;
use crate::table::{CellStatus, Row};

fn by_save(plan: &SweepPlan) -> HashMap<String, Vec<usize>> {
    let mut by_save: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, save) in plan.saves.iter().enumerate() {
        if let Some(save) = save {
            by_save.entry(save.clone()).or_default().push(index);
        }
    }
    by_save
}

fn of_cell(plan: &SweepPlan, cells: usize) -> Vec<Vec<usize>> {
    let mut of_cell = vec![Vec::new(); cells];
    for (index, (cell, _)) in plan.outputs.iter().enumerate() {
        if let Some(cell) = cell {
            of_cell[*cell].push(index);
        }
    }
    of_cell
}

/// What was heard of a run.
#[derive(Debug, Default)]
pub struct Heard {
    /// The files of each output of the plan.
    pub saved: BTreeMap<usize, Vec<(PathBuf, SaveStatus)>>,
    failed_outputs: BTreeMap<usize, String>,
    failed_nodes: BTreeMap<String, String>,
    finished: HashMap<String, (f64, u64)>,
    reused: BTreeSet<String>,
    /// The cells that were reported as finished.
    told: BTreeSet<usize>,
}

impl Heard {
    /// The files by the names of their outputs, in the order of the plan, each once.
    pub fn saved_in_order(&self, plan: &SweepPlan) -> Vec<(String, PathBuf, SaveStatus)> {
        let mut told = BTreeSet::new();
        let mut results = Vec::new();
        for (output, files) in &self.saved {
            let name = plan
                .plan
                .outputs()
                .get(*output)
                .map_or("", |output| &output.name);
            for (path, status) in files {
                // One picture of several cells is one file.
                if told.insert(path) {
                    results.push((name.to_owned(), path.clone(), *status));
                }
            }
        }
        results
    }

    /// The cells that lack something, as a node that they need failed or an output was not saved.
    pub fn failed_cells(&self, plan: &SweepPlan) -> BTreeSet<usize> {
        let mut failed = BTreeSet::new();
        for (task, cells) in plan.plan.tasks().zip(&plan.cells) {
            if self.failed_nodes.contains_key(task.name()) {
                failed.extend(cells);
            }
        }
        for output in self.failed_outputs.keys() {
            failed.extend(sharing(plan, *output));
        }
        failed
    }
}

/// The cells whose output is saved as this one: its own, and those that have the same picture.
fn sharing(plan: &SweepPlan, output: usize) -> Vec<usize> {
    let save = plan.saves.get(output).cloned().flatten();
    (plan.outputs.iter().zip(&plan.saves).enumerate())
        .filter(|(index, (_, other))| *index == output || (save.is_some() && **other == save))
        .filter_map(|(_, ((cell, _), _))| *cell)
        .collect()
}

/// The files of the output that is saved under this path.
fn saved_as(plan: &SweepPlan, heard: &Heard, save: &str) -> Option<Vec<PathBuf>> {
    let index =
        (plan.plan.outputs().iter()).position(|output| output.save.as_deref() == Some(save))?;
    let files = heard.saved.get(&index)?;
    Some(files.iter().map(|(path, _)| path.clone()).collect())
}

/// A row of the table for each cell, with nothing made.
#[must_use]
pub fn rows(sweep: &Sweep) -> Vec<Row> {
    (sweep.cells.iter().enumerate())
        .map(|(index, cell)| Row {
            cell: index + 1,
            params: cell.values.clone(),
            ..Row::default()
        })
        .collect()
}

/// Writes into the rows what a run did.
pub fn note(
    rows: &mut [Row],
    sweep: &Sweep,
    plan: &SweepPlan,
    heard: &Heard,
    failed: &BTreeSet<usize>,
    whole: bool,
) {
    let mut left: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, (cell, name)) in plan.outputs.iter().enumerate() {
        let Some(row) = cell.and_then(|cell| rows.get_mut(cell)) else {
            continue;
        };
        match heard.saved.get(&index) {
            Some(files) => {
                let files = files.iter().map(|(path, _)| path.clone()).collect();
                row.outputs.insert(name.clone(), files);
            }
            None if plan.plan.outputs()[index].save.is_some() => {
                *left.entry(row.cell - 1).or_default() += 1;
            }
            // Another cell has the same picture, which is saved once.
            None => {
                let other =
                    (plan.saves[index].as_ref()).and_then(|save| saved_as(plan, heard, save));
                if let Some(files) = other {
                    row.outputs.insert(name.clone(), files);
                } else if plan.saves[index].is_some() && !row.outputs.contains_key(name) {
                    *left.entry(row.cell - 1).or_default() += 1;
                }
            }
        }
    }
    for (task, cells) in plan.plan.tasks().zip(&plan.cells) {
        let Some(row) = cells.first().and_then(|cell| rows.get_mut(*cell)) else {
            continue;
        };
        if let Some((seconds, calls)) = heard.finished.get(task.name()) {
            row.seconds += seconds;
            row.unet_calls += calls;
        }
        if let Some(message) = heard.failed_nodes.get(task.name()) {
            for cell in cells {
                if let Some(row) = rows.get_mut(*cell) {
                    row.error
                        .get_or_insert_with(|| format!("{}: {message}", task.name()));
                }
            }
        }
    }
    for (output, message) in &heard.failed_outputs {
        for cell in sharing(plan, *output) {
            if let Some(row) = rows.get_mut(cell) {
                row.error.get_or_insert_with(|| message.clone());
            }
        }
    }
    // After a stop a cell is done when all that it needs is.
    let mut open: BTreeSet<usize> = left.into_keys().collect();
    for (task, cells) in plan.plan.tasks().zip(&plan.cells) {
        if !heard.finished.contains_key(task.name()) && !heard.reused.contains(task.name()) {
            open.extend(cells);
        }
    }
    for cell in 0..sweep.cells.len() {
        let Some(row) = rows.get_mut(cell) else {
            continue;
        };
        row.status = if failed.contains(&cell) {
            CellStatus::Failed
        } else if whole || !open.contains(&cell) {
            CellStatus::Done
        } else {
            CellStatus::NotRun
        };
    }
}

/// Tracks the state of the cells and forwards events to another listener.
pub struct Cells<'a> {
    inner: &'a dyn Listener,
    json: bool,
    sweep: &'a Sweep,
    plan: &'a SweepPlan,
    log: Option<&'a Log>,
    names: HashMap<String, usize>,
    /// The outputs of the plan that one file is of.
    by_save: HashMap<String, Vec<usize>>,
    /// The outputs of the plan that are of each cell.
    of_cell: Vec<Vec<usize>>,
    heard: Mutex<Heard>,
}

impl<'a> Cells<'a> {
    /// Hears a run of the plan; with `log` what is saved is written down.
    #[must_use]
    pub fn new(
        inner: &'a dyn Listener,
        json: bool,
        sweep: &'a Sweep,
        plan: &'a SweepPlan,
        log: Option<&'a Log>,
    ) -> Self {
        let outputs = plan.plan.outputs().iter().enumerate();
        Self {
            inner,
            json,
            sweep,
            plan,
            log,
            names: outputs
                .map(|(index, output)| (output.name.clone(), index))
                .collect(),
            by_save: by_save(plan),
            of_cell: of_cell(plan, sweep.cells.len()),
            heard: Mutex::default(),
        }
    }

    /// Writes into the rows what the run did that is over; `whole`: nothing of it failed.
    pub fn note(&self, rows: &mut [Row], whole: bool) {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = heard.failed_cells(self.plan);
        note(rows, self.sweep, self.plan, &heard, &failed, whole);
    }

    /// What was heard, once the run is over.
    #[must_use]
    pub fn heard(self) -> Heard {
        (self.heard.into_inner()).unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all outputs of a cell that are saved are, each by it or by another cell that has the same picture.
    fn complete(&self, heard: &Heard, cell: usize) -> bool {
        let saved = |index: &usize| match &self.plan.saves[*index] {
            Some(save) => self.by_save[save]
                .iter()
                .any(|one| heard.saved.contains_key(one)),
            None => true,
        };
        self.of_cell[cell].iter().all(saved)
    }
}

impl Listener for Cells<'_> {
    fn event(&self, event: &Event) {
        // What is reported is in the log already: `--resume` knows every file that was reported.
        self.hear(event);
        self.inner.event(event);
        self.tell_cell(event);
    }
}

impl Cells<'_> {
    fn hear(&self, event: &Event) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::OutputSaved {
                output,
                path,
                status,
            } => {
                let Some(&index) = self.names.get(output) else {
                    return;
                };
                let files = heard.saved.entry(index).or_default();
                files.push((path.clone(), *status));
                if let (Some(log), false) = (self.log, *status == SaveStatus::Kept) {
                    log.saved(self.plan, index, path);
                }
            }
            Event::OutputFailed {
                output, message, ..
            } => {
                if let Some(&index) = self.names.get(output) {
                    heard.failed_outputs.insert(index, message.clone());
                }
                if !self.json {
                    tell(&format!("error: {message}"));
                }
            }
            Event::NodeReused { node, .. } => {
                heard.reused.insert(node.clone());
            }
            Event::NodeFailed { node, message, .. } => {
                heard.failed_nodes.insert(node.clone(), message.clone());
            }
            Event::NodeFinished {
                node,
                seconds,
                counters,
            } => {
                let calls = counters.get("unet_calls").copied().unwrap_or(0);
                heard.finished.insert(node.clone(), (*seconds, calls));
            }
            _ => {}
        }
    }

    fn tell_cell(&self, event: &Event) {
        let Event::OutputSaved { output, .. } = event else {
            return;
        };
        if !self.json {
            return;
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let save = self
            .names
            .get(output)
            .and_then(|index| self.plan.saves[*index].as_ref());
        for index in save.map_or(&[] as &[usize], |save| &self.by_save[save]) {
            let Some(cell) = self.plan.outputs[*index].0 else {
                continue;
            };
            if !self.complete(&heard, cell) || !heard.told.insert(cell) {
                continue;
            }
            let of = &self.sweep.cells[cell];
            let line = lines::Line::CellFinished {
                cell: cell + 1,
                label: of.label.clone(),
                params: of.values.clone(),
            };
            if let Ok(line) = line.text() {
                let _ = crate::output::say_line(&line); // what is lost is reported at the end
            }
        }
    }
}
