//! A sweep that was checked: its cells, side by side as one graph.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value as Json;

use crate::base::problem::{Problem, Source, Span};
use crate::check::{Checked, CheckedNode, ResolvedParam};
use crate::syntax::workflow::{ReportDecl, SheetDecl};

/// What the contact sheet is called among nodes and outputs.
pub(super) const SHEET: &str = "sheet";

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
    pub(super) display: IndexMap<String, Json>,
    /// Its outputs among those of the whole.
    #[serde(skip)]
    pub(super) outputs: Vec<usize>,
    /// Its nodes among those of the whole.
    #[serde(skip)]
    pub(super) nodes: std::ops::Range<usize>,
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
    pub(super) whole: Checked,
    pub(super) sheet: Option<Sheet>,
    pub(super) report: Option<Report>,
    /// For each output of the workflow: the params that its template of a path names.
    pub(super) named: HashMap<String, HashSet<String>>,
}

/// The contact sheet.
#[derive(Debug)]
pub(super) struct Sheet {
    /// Row by row, the cell at each place, if there is one.
    pub(super) places: Vec<Option<usize>>,
    pub(super) columns: usize,
    pub(super) row_labels: Vec<String>,
    pub(super) column_labels: Vec<String>,
    pub(super) output: String,
    /// The output with the scores of its pictures, if any are shown.
    pub(super) table: Option<String>,
    pub(super) save: Option<String>,
    /// Its declaration, with the axes that it has in this run.
    pub(super) decl: SheetDecl,
    pub(super) source: Source,
    pub(super) span: Span,
}

/// The report of a sweep.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) decl: ReportDecl,
    pub(super) source: Source,
    pub(super) saves: Vec<Save>,
}

/// A part of the report that is saved.
#[derive(Debug)]
pub(super) struct Save {
    /// What it is called among outputs: `report.html`. No output of a workflow has a dot in its name.
    pub(super) name: String,
    /// The output port of the op.
    pub(super) port: &'static str,
    pub(super) path: String,
}

impl Sweep {
    /// The name of the workflow.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.whole.name
    }

    /// The warnings.
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

    /// The declaration of the contact sheet.
    pub(crate) fn sheet_decl(&self) -> Option<&SheetDecl> {
        self.sheet.as_ref().map(|sheet| &sheet.decl)
    }

    /// The score that the pictures of the contact sheet are ordered by, if they are, as it is written.
    #[must_use]
    pub fn sheet_order(&self) -> Option<&str> {
        let fields = &self.sheet.as_ref()?.decl.fields;
        let (_, order) = fields.iter().find(|(key, _)| key.text == "order")?;
        order.as_text()
    }

    /// Whether there is a contact sheet.
    #[must_use]
    pub fn has_sheet(&self) -> bool {
        self.sheet.is_some()
    }

    /// The names among outputs of what is made of all cells: the contact sheet, and the parts of the report.
    pub fn shared_outputs(&self) -> impl Iterator<Item = &str> {
        let sheet = self.sheet.as_ref().map(|_| self.sheet_name());
        let report = self.report.iter().flat_map(|report| &report.saves);
        (sheet.into_iter()).chain(report.map(|save| save.name.as_str()))
    }

    /// The outputs of each cell that the shared output of that name is made of: pictures for the contact sheet, with scores their
    /// table, tables and pictures for the report.
    #[must_use]
    pub fn parts_of(&self, shared: &str) -> Vec<&str> {
        let sheet = (self.sheet.iter())
            .filter(|_| shared == self.sheet_name())
            .flat_map(|sheet| std::iter::once(&sheet.output).chain(&sheet.table))
            .map(String::as_str);
        let report = (self.report.iter())
            .filter(|report| report.saves.iter().any(|save| save.name == shared))
            .flat_map(|report| report.decl.tables.iter().chain(&report.decl.images))
            .map(|name| name.value.as_str());
        sheet.chain(report).collect()
    }

    /// The cells by the row and column of the contact sheet, if there is one: columns, then the cells row by row.
    #[must_use]
    pub fn places(&self) -> Option<(usize, &[Option<usize>])> {
        (self.sheet.as_ref()).map(|sheet| (sheet.columns, sheet.places.as_slice()))
    }
}
