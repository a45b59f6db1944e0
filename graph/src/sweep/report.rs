//! The report of a sweep: the node that takes what all cells measured, and where its parts are saved.

use std::collections::BTreeSet;

use serde_json::json;

use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::base::suggest;
use crate::check::{CheckContext, CheckedNode, CheckedOutput};
use crate::files::{Files, output_path};
use crate::op::registry::Registry;
use crate::sweep::sheet::{Written, comes_to};
use crate::sweep::sweep::{Report, Save, Sweep};
use crate::syntax::workflow::{ReportDecl, Spanned};
use crate::value::port::{Known, KnownPorts, PortSpec};

/// The op that makes the report; its first two inputs are the tables and the pictures.
const REPORT_OP: &str = "report";

/// Reads which outputs are reported and where the report is saved.
pub(super) fn read(
    sweep: &Sweep,
    decl: &ReportDecl,
    context: &CheckContext<'_>,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Option<Report> {
    let before = problems.len();
    let mut fault = |span: Span, message: String, help: String| {
        problems.push(Problem::new(Code::BadSweep, source, span, message).help(help));
    };
    let Some(entry) = context.registry.entry(REPORT_OP) else {
        fault(
            decl.key_span,
            format!("there is no op `{REPORT_OP}` to make the report with"),
            "remove `report:`".to_owned(),
        );
        return None;
    };
    if decl.tables.is_empty() {
        fault(
            decl.key_span,
            "the report has no `tables`".to_owned(),
            "name the outputs that `scores` made: `tables: [scores]`".to_owned(),
        );
    }
    let first = sweep.cells.first()?;
    let outputs = || first.outputs.iter().map(|at| &sweep.whole.outputs[*at]);
    let wanted = [&decl.tables, &decl.images];
    for (names, port) in wanted.into_iter().zip(entry.inputs()) {
        for name in names {
            if let Some((message, help)) = refused(sweep, outputs(), name, port) {
                fault(name.span, message, help);
            }
        }
    }
    let mut saves = Vec::new();
    for save in &decl.save {
        let ending = output_path::ending(&save.value).unwrap_or_default();
        let port = (entry.outputs().iter()).find(|port| {
            port.formats
                .is_some_and(|all| all.contains(&ending.as_str()))
        });
        let name = format!("{REPORT_OP}.{ending}");
        let Some(port) = port else {
            let known: Vec<&str> = (entry.outputs().iter())
                .flat_map(|port| port.formats.unwrap_or_default())
                .copied()
                .collect();
            let message = format!("the report cannot be saved as `{}`", save.value);
            problems.push(
                Problem::new(Code::SaveFormat, source, save.span, message)
                    .help(format!("end it in one of .{}", known.join(", ."))),
            );
            continue;
        };
        if saves.iter().any(|other: &Save| other.name == name) {
            let message = format!("the report is saved as .{ending} twice");
            problems.push(
                Problem::new(Code::BadSweep, source, save.span, message).help("leave one out"),
            );
            continue;
        }
        if let Some(path) = sweep.path_of(save, REPORT_OP, source, problems) {
            let port = port.name;
            saves.push(Save { name, port, path });
        }
    }
    if decl.save.is_empty() {
        problems.push(
            Problem::new(
                Code::BadSweep,
                source,
                decl.key_span,
                "the report is not saved",
            )
            .help("say where: `save: \"{workflow}/report.html\"`"),
        );
    }
    (problems.len() == before).then(|| Report {
        decl: decl.clone(),
        source: source.clone(),
        saves,
    })
}

/// Why an output of the cells cannot come to a port, if it cannot; and what to do.
fn refused<'a>(
    sweep: &'a Sweep,
    outputs: impl Iterator<Item = &'a CheckedOutput>,
    name: &Spanned<String>,
    port: &PortSpec,
) -> Option<(String, String)> {
    let fits = |output: &CheckedOutput| comes_to(sweep, output, port);
    let outputs: Vec<&CheckedOutput> = outputs.collect();
    let possible: Vec<&str> = (outputs.iter())
        .filter(|output| fits(output))
        .map(|output| output.name.as_str())
        .collect();
    if possible.contains(&name.value.as_str()) {
        return None;
    }
    let message = match outputs.iter().any(|output| output.name == name.value) {
        true => format!(
            "the output `{}` is not of type {}",
            name.value,
            port.types.join(" or ")
        ),
        false => format!("the workflow has no output `{}`", name.value),
    };
    let help = suggest::hint(&name.value, "outputs that fit", possible.iter().copied());
    let none = || format!("add an output of type {}", port.types.join(" or "));
    Some((message, help.unwrap_or_else(none)))
}

/// The node that makes the report; `None` when no cell is left to report.
pub(super) fn node(
    sweep: &Sweep,
    report: &Report,
    registry: &Registry,
    files: &dyn Files,
    without: &BTreeSet<usize>,
) -> Result<Option<CheckedNode>, Problems> {
    let decl = &report.decl;
    let Some(entry) = registry.entry(REPORT_OP) else {
        return Ok(None);
    };
    let mut links = Vec::new();
    let mut known = KnownPorts::new();
    for (port, names) in entry.inputs().iter().zip([&decl.tables, &decl.images]) {
        let mut of_port = Vec::new();
        let mut facts = Vec::new();
        for (index, cell) in sweep.cells.iter().enumerate() {
            if without.contains(&index) {
                continue;
            }
            for name in names {
                let output = (cell.outputs.iter())
                    .map(|at| &sweep.whole.outputs[*at])
                    .find(|output| output.name == name.value);
                if let Some(output) = output {
                    of_port.push(output.link);
                    facts.push(Known::Unknown);
                }
            }
        }
        links.push(of_port);
        known.insert(port.name, facts);
    }
    if links.first().is_none_or(Vec::is_empty) {
        return Ok(None);
    }
    let mut given = json!({});
    for (key, tree) in &decl.fields {
        given[&key.text] = tree.to_json();
    }
    let written = Written {
        what: "the report cannot be made",
        name: REPORT_OP,
        fields: &decl.fields,
        source: &report.source,
        span: decl.key_span,
    };
    written.node(entry, &given, links, known, files).map(Some)
}
