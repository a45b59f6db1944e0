//! The cells of a sweep side by side as one graph.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::base::paths::folder_of;
use crate::base::problem::{self, Code, Problem, Problems, Span};
use crate::base::remote;
use crate::check::settings::Setting;
use crate::check::{self, CheckContext, Checked, CheckedNode, MAX_NODES, Settings};
use crate::lock;
use crate::sweep::label::{identity, label, number};
use crate::sweep::sweep::{Cell, Sweep};
use crate::sweep::values::CellValues;
use crate::syntax::params::ParamType;
use crate::syntax::template::{self, Piece};
use crate::syntax::workflow::Workflow;

/// With more faults no further cells are checked.
const MAX_FAULTS: usize = 200;

/// Checks each cell and puts all of them side by side.
pub(super) struct Joiner<'a> {
    context: &'a CheckContext<'a>,
    settings: Settings,
    workflow: &'a Arc<Workflow>,
    /// The file of the workflow.
    path: &'a Path,
    varying: Vec<String>,
    whole: Option<Checked>,
    cells: Vec<Cell>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// The files that were read, in order.
    read: Vec<PathBuf>,
    known_files: HashSet<PathBuf>,
}

impl<'a> Joiner<'a> {
    pub(super) fn new(
        context: &'a CheckContext<'a>,
        workflow: &'a Arc<Workflow>,
        path: &'a Path,
        cells: &[CellValues],
        read: Vec<PathBuf>,
    ) -> Self {
        let mut varying: Vec<String> = Vec::new();
        for name in cells.iter().flat_map(IndexMap::keys) {
            if !varying.contains(name) {
                varying.push(name.clone());
            }
        }
        Self {
            context,
            // What the workflow itself draws is drawn once: the cells differ by what the sweep says, and by nothing else.
            settings: Settings {
                draw: Some(context.settings.draw.unwrap_or_else(check::random)),
                ..context.settings.clone()
            },
            workflow,
            path,
            varying,
            whole: None,
            cells: Vec::with_capacity(cells.len()),
            problems: Vec::new(),
            warnings: Vec::new(),
            known_files: read.iter().cloned().collect(),
            read,
        }
    }

    /// `included`: cells may come to the same values.
    pub(super) fn join(
        mut self,
        cells: Vec<CellValues>,
        included: bool,
    ) -> Result<Sweep, Problems> {
        let mut seen: HashSet<String> = HashSet::new();
        for given in cells {
            let Some(checked) = self.check(&given) else {
                if self.problems.len() > MAX_FAULTS {
                    break; // more would not help
                }
                continue;
            };
            let values: IndexMap<String, Json> = (self.varying.iter())
                .filter_map(|name| {
                    let param = checked.params.iter().find(|param| param.name == *name)?;
                    Some((name.clone(), number(&param.value)))
                })
                .collect();
            // Two entries that come to the same values are one cell.
            if included {
                let mut text = String::new();
                for (name, value) in &values {
                    text.push_str(&Json::from(name.as_str()).to_string());
                    identity(value, &mut text);
                }
                if !seen.insert(text) {
                    continue;
                }
            }
            self.add(checked, values)?;
        }
        self.finish()
    }

    /// Checks the workflow with the values of a cell; notes the faults, the warnings and the files.
    fn check(&mut self, given: &CellValues) -> Option<Checked> {
        let given: Vec<Setting> = given.values().map(|value| value.setting.clone()).collect();
        let context = CheckContext {
            settings: &self.settings,
            cell: &given,
            ..*self.context
        };
        let workflow = Arc::clone(self.workflow);
        let checked =
            match check::check(&context, workflow, Some(self.path), Vec::new(), Vec::new()) {
                Ok(checked) => checked,
                Err(faults) => {
                    // A fault that does not depend on the cell is reported once.
                    self.problems.extend(faults.iter().cloned());
                    return None;
                }
            };
        if self.warnings.len() < MAX_FAULTS {
            self.warnings.extend(checked.warnings.iter().cloned());
            problem::sort(&mut self.warnings);
        }
        for file in &checked.files {
            if self.known_files.insert(file.clone()) {
                self.read.push(file.clone());
            }
        }
        Some(checked)
    }

    /// The values as they are shown: paths as they can be shared.
    fn display(
        &self,
        checked: &Checked,
        values: &IndexMap<String, Json>,
    ) -> IndexMap<String, Json> {
        (values.iter())
            .map(|(name, value)| {
                let is_path = (self.workflow.params.get(name))
                    .is_some_and(|decl| decl.kind == ParamType::Path);
                let param = checked.params.iter().find(|param| param.name == *name);
                let shown = match (value.as_str(), param) {
                    (Some(text), Some(param)) if is_path => {
                        let path = remote::join(&param.folder, text);
                        let folder = folder_of(self.path);
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
            .collect()
    }

    /// Adds a cell beside the others.
    fn add(&mut self, checked: Checked, values: IndexMap<String, Json>) -> Result<(), Problems> {
        let source = &self.workflow.source;
        let display = self.display(&checked, &values);
        // Each cell holds its values several times over.
        let texts = checked.params.iter().map(|param| &param.value);
        let bytes: usize = (texts.chain(values.values()).chain(display.values()))
            .map(check::text_bytes)
            .sum();
        if !self.context.text.take(bytes) {
            return Err(check::too_much_text(source, Span::default()).into());
        }
        let label = label(display.iter().map(|(name, value)| (name.as_str(), value)));
        let params = checked.params.clone();
        let index = self.cells.len();
        let whole = self.whole.get_or_insert_with(|| Checked {
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
                source,
                Span::default(),
                format!("all cells together have more than {MAX_NODES} nodes"),
            )
            .help("sweep fewer values at a time");
            return Err(problem.into());
        }
        add_nodes(&mut whole.nodes, checked.nodes, index);
        let first = whole.outputs.len();
        for mut output in checked.outputs {
            output.link.node += offset;
            whole.outputs.push(output);
        }
        self.cells.push(Cell {
            label,
            values,
            display,
            params,
            outputs: (first..whole.outputs.len()).collect(),
            nodes: offset..whole.nodes.len(),
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Sweep, Problems> {
        if !self.problems.is_empty() {
            return Err(Problems::new(self.problems));
        }
        let Some(mut whole) = self.whole else {
            let problem = Problem::new(
                Code::BadSweep,
                &self.workflow.source,
                Span::default(),
                "the sweep has no cells",
            )
            .help("say what varies: `sweep: {matrix: {seed: 1..5}}`");
            return Err(problem.into());
        };
        number_equal_labels(&mut self.cells);
        if let Some(first) = self.cells.first() {
            // The params that have one value in all cells.
            whole.params = (first.params.iter())
                .filter(|param| !self.varying.contains(&param.name))
                .cloned()
                .collect();
        }
        whole.files = self.read;
        whole.warnings = self.warnings;
        Ok(Sweep {
            workflow: self.path.to_owned(),
            varying: self.varying,
            cells: self.cells,
            table: None,
            whole,
            sheet: None,
            report: None,
            named: params_in_paths(self.workflow),
        })
    }
}

/// Adds the nodes of a cell to those of the cells before it.
fn add_nodes(all: &mut Vec<CheckedNode>, nodes: Vec<CheckedNode>, cell: usize) {
    let offset = all.len();
    // Parameters, facts and files of a node that the first cell has too are held once.
    let mut shared: Vec<bool> = Vec::with_capacity(nodes.len());
    for (at, mut node) in nodes.into_iter().enumerate() {
        let first = all.get(at).filter(|_| offset > 0);
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
            node.reads = Arc::clone(&twin.reads);
        }
        shared.push(twin.is_some());
        node.cell = Some(cell);
        for link in node.links.iter_mut().flatten() {
            link.node += offset;
        }
        all.push(node);
    }
}

/// Numbers equal labels: long values may be shortened to the same text.
fn number_equal_labels(cells: &mut [Cell]) {
    let mut taken: HashSet<String> = HashSet::new();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    for cell in cells {
        let mut label = cell.label.clone();
        let number = numbers.entry(label.clone()).or_insert(2);
        while !taken.insert(label.clone()) {
            label = format!("{} #{number}", cell.label).trim_start().to_owned();
            *number += 1;
        }
        cell.label = label;
    }
}

/// For each output of a workflow: the params that its template of a path names.
fn params_in_paths(workflow: &Workflow) -> HashMap<String, HashSet<String>> {
    (workflow.outputs.iter())
        .map(|(name, decl)| {
            let save = decl.save.as_ref().map_or("", |save| save.value.as_str());
            let params = (template::pieces(save).unwrap_or_default().into_iter())
                .filter_map(|piece| match piece {
                    Piece::Name(param, _) => Some(param.to_owned()),
                    Piece::Text(_) => None,
                })
                .collect();
            (name.clone(), params)
        })
        .collect()
}
