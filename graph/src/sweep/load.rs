//! Reads and checks a sweep: the file says it, or `Settings::over` does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::paths::{folder_of, normal};
use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::check::{self, CheckContext};
use crate::files::output_path;
use crate::sweep::join::Joiner;
use crate::sweep::sweep::{SHEET, Sweep};
use crate::sweep::values::CellReader;
use crate::sweep::{report, sheet};
use crate::syntax::workflow::{self, SheetDecl, Spanned, SweepDecl, Workflow};

/// The endings of pictures that a contact sheet is saved as.
const SHEET_ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

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
    let folder = Arc::clone(&workflow.folder);
    let mut reader = CellReader::new(context, &workflow.source, folder, workflow, problems);
    reader.cells(Some(sweep), &[]);
    reader.read
}

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

/// The files of a sweep: the one that says it, and the workflow that is swept.
struct Parsed {
    source: Source,
    decl: Option<SweepDecl>,
    workflow: Workflow,
    /// The file of the workflow.
    path: PathBuf,
    read: Vec<PathBuf>,
    problems: Vec<Problem>,
}

/// Reads and checks a sweep: the file says it, or `Settings::over` does.
pub(crate) fn load(context: &CheckContext<'_>, path: &Path) -> Result<Sweep, Problems> {
    let Parsed {
        source,
        decl,
        workflow,
        path: target_path,
        read,
        mut problems,
    } = parse(context, path)?;
    let workflow = Arc::new(workflow);
    let folder = Arc::new(folder_of(path));
    let mut reader = CellReader::new(context, &source, folder, &workflow, &mut problems);
    reader.read = read;
    let cells = reader.cells(decl.as_ref(), &context.settings.over);
    let read = reader.read;
    if !problems.is_empty() {
        return Err(Problems::new(problems));
    }
    let included = decl.as_ref().is_some_and(|decl| !decl.include.is_empty());
    let joiner = Joiner::new(context, &workflow, &target_path, &cells, read);
    let mut sweep = joiner.join(cells, included)?;
    let mut problems = Vec::new();
    sweep.lay_out(context, decl.as_ref(), &source, &mut problems);
    if let Some(asked) = decl.as_ref().and_then(|decl| decl.report.as_ref()) {
        sweep.report = report::read(&sweep, asked, context, &source, &mut problems);
    }
    if let Some(table) = decl.as_ref().and_then(|decl| decl.table.as_ref()) {
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
    // What cannot be drawn is reported now, not when all cells are.
    if let Some(sheet) = &sweep.sheet {
        sheet::node(
            &sweep,
            sheet,
            context.registry,
            context.files,
            &BTreeSet::new(),
        )?;
    }
    if let Some(report) = &sweep.report {
        let all = BTreeSet::new();
        report::node(&sweep, report, context.registry, context.files, &all)?;
    }
    Ok(sweep)
}

/// Reads the file that says the sweep and the one of the workflow, which may be the same.
fn parse(context: &CheckContext<'_>, path: &Path) -> Result<Parsed, Problems> {
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
        workflow = parse_target(context, &source, other, &target_path, &mut problems)?;
        read.push(target_path.clone());
    }
    if decl.is_none() && context.settings.over.is_empty() {
        // A `sweep:` that is there and at fault has been reported.
        if problems.is_empty() {
            problems.push(
                Problem::new(
                    Code::BadSweep,
                    &source,
                    Span::default(),
                    "the workflow has no sweep",
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
    Ok(Parsed {
        source,
        decl,
        workflow,
        path: target_path,
        read,
        problems,
    })
}

/// Reads the workflow that a sweep in a file of its own names.
fn parse_target(
    context: &CheckContext<'_>,
    source: &Source,
    named: &Spanned<String>,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Result<Workflow, Problems> {
    let shown = path.display().to_string();
    let text = check::read(context.files, &shown, path).map_err(|problem| {
        Problem::new(Code::IncludeMissing, source, named.span, problem.message())
            .help("`workflow` is a path relative to this file")
    })?;
    let Some(mut parsed) = workflow::parse(&text, &folder_of(path), problems) else {
        return Err(Problems::new(std::mem::take(problems)));
    };
    if let Some(again) = (parsed.sweep.take()).and_then(|sweep| sweep.workflow) {
        let problem = Problem::new(
            Code::BadSweep,
            source,
            named.span,
            format!("`{shown}` is a sweep itself, of `{}`", again.value),
        )
        .help("name the workflow");
        return Err(problem.into());
    }
    Ok(parsed)
}

impl Sweep {
    /// Reads how the contact sheet is laid out, if the file or the command line asks for one, and where it is saved.
    fn lay_out(
        &mut self,
        context: &CheckContext<'_>,
        decl: Option<&SweepDecl>,
        source: &Source,
        problems: &mut Vec<Problem>,
    ) {
        let grid = decl.and_then(|decl| decl.grid.as_ref());
        let asked = context.settings.sheet.as_deref().map(AskedSheet::new);
        if let Some(grid) = grid {
            self.sheet = sheet::read(self, grid, context, source, problems);
        } else if let Some(AskedSheet { source, save }) = &asked {
            let plain = SheetDecl {
                key_span: save.span,
                rows: None,
                columns: None,
                output: None,
                save: Some(save.clone()),
                table: None,
                fields: Vec::new(),
            };
            self.sheet = sheet::read(self, &plain, context, source, problems);
        }
        if let Some(AskedSheet { source, save }) = &asked {
            let picture = output_path::ending(&save.value)
                .is_some_and(|ending| SHEET_ENDINGS.contains(&ending.as_str()));
            if !picture {
                let message = format!("the sheet `{}` does not end in an image format", save.value);
                problems.push(
                    Problem::new(Code::SaveFormat, source, save.span, message)
                        .help("end it in `.png`"),
                );
            }
            let path = self.path_of(save, SHEET, source, problems);
            if let Some(sheet) = &mut self.sheet {
                sheet.save = path;
            }
        }
    }
}
