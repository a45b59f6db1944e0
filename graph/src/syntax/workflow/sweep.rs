//! Sweeps and their contact sheets.

use crate::base::problem::{Code, Problem};
use crate::syntax::params::is_carried;
use crate::syntax::workflow::decl::{ReportDecl, SheetDecl, Spanned, SweepDecl, Workflow};
use crate::syntax::workflow::reader::WorkflowReader;
use crate::syntax::yaml::{MapKey, Node, Tree};

impl WorkflowReader<'_> {
    pub(super) fn sweep(&mut self, key: &MapKey, tree: Tree) -> Option<SweepDecl> {
        const KEYS: &[&str] = &[
            "workflow", "matrix", "zip", "include", "exclude", "grid", "table", "report",
        ];
        let example = "matrix: {seed: 1..5}";
        let mut sweep = SweepDecl {
            key_span: key.span,
            workflow: None,
            matrices: Vec::new(),
            zip: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            grid: None,
            table: None,
            report: None,
        };
        let before = self.problems.len();
        let entries = self.map(tree, "`sweep`", &format!("write `sweep: {{{example}}}`"))?;
        for (key, tree) in entries {
            match key.text.as_str() {
                "workflow" => sweep.workflow = self.spanned(&key, &tree),
                "table" => sweep.table = self.spanned(&key, &tree),
                "matrix" => sweep.matrices = self.matrices(tree),
                "zip" => sweep.zip = self.zip(&key, &tree),
                "include" => sweep.include = self.cells(&key, tree),
                "exclude" => sweep.exclude = self.cells(&key, tree),
                "grid" => sweep.grid = self.sheet(&key, tree),
                "report" => sweep.report = self.report_decl(&key, tree),
                other if is_carried(other) => {}
                _ => self.unknown_key(&key, "`sweep`", KEYS),
            }
        }
        if sweep.matrices.iter().all(Vec::is_empty) && sweep.include.is_empty() {
            // Where cells were written and could not be read, that has been said.
            if self.problems.len() == before {
                self.fault(
                    Code::BadSweep,
                    key.span,
                    "the sweep has no cells",
                    format!("say what varies: `sweep: {{{example}}}`"),
                );
            }
            return None;
        }
        Some(sweep)
    }

    /// `matrix: {seed: 1..5}`, or several of these in a list.
    fn matrices(&mut self, tree: Tree) -> Vec<Vec<(MapKey, Tree)>> {
        let example = "seed: 1..5";
        match tree.node {
            Node::Seq(items) => (items.into_iter())
                .map(|item| self.section(item, "matrix", example))
                .collect(),
            _ => vec![self.section(tree, "matrix", example)],
        }
    }

    /// `zip: [photos, class]`, or several of these in a list.
    fn zip(&mut self, key: &MapKey, tree: &Tree) -> Vec<Vec<Spanned<String>>> {
        let is_list = |tree: &Tree| matches!(tree.node, Node::Seq(_));
        let written: Vec<&Tree> = match &tree.node {
            Node::Seq(items) if items.iter().any(is_list) => items.iter().collect(),
            _ => vec![tree],
        };
        let mut groups = Vec::new();
        for tree in written {
            let names = match is_list(tree) {
                true => self.several(key, tree),
                false => Some(Vec::new()),
            };
            match names {
                Some(names) if names.len() < 2 => self.fault(
                    Code::BadSweep,
                    tree.span,
                    "`zip` joins two params or more",
                    "list them, `zip: [photos, class]`, or give several such lists",
                ),
                names => groups.extend(names),
            }
        }
        groups
    }

    /// The list of `include` or `exclude`.
    fn cells(&mut self, key: &MapKey, tree: Tree) -> Vec<Spanned<Vec<(MapKey, Tree)>>> {
        let help = format!("write `{}: [{{seed: 7, steps: 20}}]`", key.text);
        let Node::Seq(items) = tree.node else {
            self.fault(
                Code::WrongShape,
                tree.span,
                format!("`{}` is a list of maps, not {}", key.text, tree.describe()),
                help,
            );
            return Vec::new();
        };
        let mut cells = Vec::new();
        for item in items {
            let span = item.span;
            let what = format!("a cell of `{}`", key.text);
            let Some(entries) = self.map(item, &what, &help) else {
                continue;
            };
            let value: Vec<(MapKey, Tree)> = entries
                .into_iter()
                .filter(|(key, _)| !is_carried(&key.text))
                .collect();
            // An empty cell of `include` is the one of the defaults; one of `exclude` would be all of them.
            if value.is_empty() && key.text == "exclude" {
                self.fault(Code::BadSweep, span, format!("{what} is empty"), &help);
                continue;
            }
            cells.push(Spanned { value, span });
        }
        cells
    }

    fn sheet(&mut self, key: &MapKey, tree: Tree) -> Option<SheetDecl> {
        let mut sheet = SheetDecl {
            key_span: key.span,
            rows: None,
            columns: None,
            output: None,
            save: None,
            table: None,
            fields: Vec::new(),
        };
        if matches!(tree.node, Node::Null) {
            return Some(sheet); // `grid:` alone: a sheet as it comes
        }
        let help = "write `grid: {rows: steps, columns: seed, save: \"{workflow}/sheet.png\"}`";
        for (key, tree) in self.map(tree, "`grid`", help)? {
            match key.text.as_str() {
                "rows" => sheet.rows = self.several(&key, &tree),
                "columns" => sheet.columns = self.several(&key, &tree),
                "output" => sheet.output = self.spanned(&key, &tree),
                "save" => sheet.save = self.spanned(&key, &tree),
                "table" => sheet.table = self.spanned(&key, &tree),
                other if is_carried(other) => {}
                _ => sheet.fields.push((key, tree)),
            }
        }
        Some(sheet)
    }

    fn report_decl(&mut self, key: &MapKey, tree: Tree) -> Option<ReportDecl> {
        let mut report = ReportDecl {
            key_span: key.span,
            tables: Vec::new(),
            images: Vec::new(),
            save: Vec::new(),
            fields: Vec::new(),
        };
        let help = "write `report: {tables: [scores], images: [picture], save: \"{workflow}/report.html\"}`";
        for (key, tree) in self.map(tree, "`report`", help)? {
            match key.text.as_str() {
                "tables" => report.tables = self.several(&key, &tree)?,
                "images" => report.images = self.several(&key, &tree)?,
                "save" => report.save = self.several(&key, &tree)?,
                other if is_carried(other) => {}
                _ => report.fields.push((key, tree)),
            }
        }
        Some(report)
    }

    /// A text, or several: params, outputs, paths.
    fn several(&mut self, key: &MapKey, tree: &Tree) -> Option<Vec<Spanned<String>>> {
        match &tree.node {
            Node::Seq(items) => items.iter().map(|item| self.spanned(key, item)).collect(),
            _ => self.spanned(key, tree).map(|one| vec![one]),
        }
    }

    /// A file that names the workflow to sweep is that sweep and nothing else.
    pub(super) fn sweep_only(&mut self, workflow: &Workflow) {
        let Some(other) = workflow
            .sweep
            .as_ref()
            .and_then(|sweep| sweep.workflow.as_ref())
        else {
            return;
        };
        let own = (workflow.nodes.values().map(|node| node.name_span))
            .chain(workflow.outputs.values().map(|output| output.name_span))
            .chain(workflow.params.values().map(|param| param.name_span))
            .chain(workflow.inputs.values().map(|input| input.name_span))
            .next();
        if let Some(own) = own {
            let problem = Problem::new(
                Code::BadSweep,
                self.source,
                other.span,
                "the sweep names another workflow, but this file is a workflow too",
            )
            .also(self.source, own, "part of a workflow")
            .help("remove `workflow:` to sweep this one, or move the sweep to a file of its own");
            self.problems.push(problem);
        }
    }
}
