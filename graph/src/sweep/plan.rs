//! The plan of a sweep, and the names of its tasks and files.

use std::collections::{BTreeSet, HashMap, HashSet};

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::base::key::Key;
use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::base::suggest;
use crate::check::{Checked, CheckedNode, CheckedOutput, Link};
use crate::files::{Files, output_path};
use crate::op::registry::Registry;
use crate::plan::plan::Plan;
use crate::plan::targets;
use crate::plan::task::Task;
use crate::sweep::label::{in_path, label, shown, titled};
use crate::sweep::sweep::{Cell, Sweep};
use crate::sweep::{report, sheet};

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
            .chain(self.shared_outputs())
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
                    targets::forgotten_set(target)
                        .or_else(|| suggest::hint(target, "outputs", names.iter().copied())),
                );
                return Err(problem.into());
            }
        }
        let asked = |name: &str| targets.is_empty() || targets.iter().any(|one| one == name);
        let mut outputs = Vec::new();
        let (mut whole, moved) = self.without(without);
        for (index, cell) in self.cells.iter().enumerate() {
            for &at in cell.outputs.iter().filter(|_| !without.contains(&index)) {
                let output = &self.whole.outputs[at];
                if asked(&output.name) {
                    outputs.push((Some(index), output.name.clone()));
                    let mut output = output.clone();
                    output.name = titled(&output.name, &cell.label);
                    output.link.node = moved(output.link.node);
                    whole.outputs.push(output);
                }
            }
        }
        let into_whole = |mut node: CheckedNode| {
            for link in node.links.iter_mut().flatten() {
                link.node = moved(link.node);
            }
            node
        };
        if let Some(sheet) = self.sheet.as_ref().filter(|_| asked(self.sheet_name()))
            && let Some(node) = sheet::node(self, sheet, registry, files, without)?
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
            whole.nodes.push(into_whole(node));
            outputs.push((None, self.sheet_name().to_owned()));
        }
        if let Some(report) = (self.report.as_ref())
            .filter(|report| report.saves.iter().any(|save| asked(&save.name)))
            && let Some(node) = report::node(self, report, registry, files, without)?
        {
            for save in report.saves.iter().filter(|save| asked(&save.name)) {
                whole.outputs.push(CheckedOutput {
                    name: save.name.clone(),
                    link: Link {
                        node: whole.nodes.len(),
                        port: save.port,
                    },
                    save: Some(save.path.clone()),
                });
                outputs.push((None, save.name.clone()));
            }
            whole.nodes.push(into_whole(node));
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

    /// The whole without the nodes of some cells and without outputs; and where a node of another cell is in it. Of a sweep that is
    /// planned some cells at a time, each node is so looked at once.
    fn without(&self, without: &BTreeSet<usize>) -> (Checked, impl Fn(usize) -> usize) {
        let mut nodes: Vec<CheckedNode> = Vec::new();
        // Where each cell's nodes begin in the whole, and how many before them are left out.
        let mut begins: Vec<(usize, usize)> = Vec::new();
        for (index, cell) in self.cells.iter().enumerate() {
            if without.contains(&index) {
                continue;
            }
            let left_out = cell.nodes.start - nodes.len();
            begins.push((cell.nodes.start, left_out));
            for node in &self.whole.nodes[cell.nodes.clone()] {
                let mut node = node.clone();
                for link in node.links.iter_mut().flatten() {
                    link.node -= left_out;
                }
                nodes.push(node);
            }
        }
        let whole = &self.whole;
        let part = Checked {
            name: whole.name.clone(),
            description: whole.description.clone(),
            source: whole.source.clone(),
            params: whole.params.clone(),
            nodes,
            outputs: Vec::new(),
            warnings: Vec::new(),
            files: Vec::new(),
            groups: HashMap::new(),
            open: whole.open.clone(),
        };
        let moved = move |node: usize| {
            let cell = begins.partition_point(|(begin, _)| *begin <= node);
            let left_out = cell.checked_sub(1).map_or(0, |cell| begins[cell].1);
            node - left_out
        };
        (part, moved)
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
}
