//! Help for what a pointer is on, as Markdown.

use std::fmt::Write;
use std::path::Path;
use std::rc::Rc;

use lsp_types::{Hover, HoverContents, MarkupContent, MarkupKind, Position, Uri};
use retouch_graph::registry::{Entry, ParamInfo};
use retouch_graph::{Arity, PortSpec};

use super::index::{Decl, Index, Item};
use super::workspace::{Output, Workspace};

impl Workspace {
    /// What stands at a position, explained.
    #[must_use]
    pub fn hover(&self, uri: &Uri, position: Position) -> Option<Hover> {
        let (path, offset) = self.workflow_at(uri, position)?;
        let index = self.index(&path)?;
        let one = index.at(offset)?;
        if !self.is_real(&path, &index, one) {
            return None;
        }
        let value = self.explain(&path, &index, &one.item)?;
        Some(Hover {
            contents: HoverContents::Markup(MarkupContent {
                kind: MarkupKind::Markdown,
                value,
            }),
            range: Some(self.range(&index, &path, one.hit)),
        })
    }

    fn explain(&self, path: &Path, index: &Rc<Index>, item: &Item) -> Option<String> {
        Some(match item {
            Item::Op(op) => entry(self.registry().entry(op)?),
            Item::Param(name) => declaration("param", index.param(name)?),
            Item::Input(name) => declaration("input", index.input(name)?),
            Item::Node(name) => {
                let node = index.node(name)?;
                let mut text = match (&node.op, &node.uses) {
                    (Some(op), _) => format!("**`{name}`**: node, op `{op}`\n\n"),
                    (None, Some(uses)) => format!("**`{name}`**: node, uses `{uses}`\n\n"),
                    (None, None) => return None,
                };
                if let Some(entry) = node.op.as_ref().and_then(|op| self.registry().entry(op)) {
                    let _ = write!(text, "{}\n\n", one_line(entry.summary()));
                } else if let Some((_, used)) = self.used(path, node)
                    && let Some(description) = &used.description
                {
                    let _ = write!(text, "{description}\n\n");
                }
                outputs(&mut text, &self.outputs(path, node));
                text
            }
            Item::Output(name) => {
                let output = index.output(name)?;
                let mut text = format!("**`{name}`**: output");
                if let Some(value) = &output.value {
                    let _ = write!(text, " of `{value}`");
                    if let Some(from) = self.referred(path, index, value, 8) {
                        let _ = write!(text, ", {}", from.types.join(" or "));
                        if !from.formats.is_empty() {
                            let _ =
                                write!(text, "\n\nCan be saved as {}.", from.formats.join(", "));
                        }
                    }
                }
                if let Some(help) = &output.help {
                    let _ = write!(text, "\n\n{help}");
                }
                text
            }
            Item::Port { node, port } => {
                let node = index.node(node)?;
                let outputs = self.outputs(path, node);
                output(outputs.iter().find(|output| output.name == *port)?)
            }
            Item::Use(uses) => {
                let (_, used) = self.used(
                    path,
                    index
                        .nodes
                        .iter()
                        .find(|node| node.uses.as_ref() == Some(uses))?,
                )?;
                graph(uses, &used)
            }
            Item::Field { node, field } => {
                let op = index.node(node)?.op.as_ref()?;
                let entry = self.registry().entry(op)?;
                if let Some(spec) = entry.inputs().iter().find(|port| port.name == field) {
                    port(spec)
                } else {
                    param(entry.params().iter().find(|param| param.name == *field)?)
                }
            }
            Item::With { node, key } => {
                let (_, used) = self.used(path, index.node(node)?)?;
                match used.given(key)? {
                    (decl, Item::Input(_)) => declaration("input", decl),
                    (decl, _) => declaration("param", decl),
                }
            }
            Item::Key(key) => format!("**`{key}`**\n\n{}", key_help(key)),
        })
    }
}

/// What a key of the language is for.
pub(super) fn key_help(key: &str) -> &'static str {
    match key {
        "schema" => "The version of the language: `retouch/v1`. Every workflow begins with it.",
        "name" => "The workflow's name, `{workflow}` in `save`; the file's name unless given.",
        "description" => "What the workflow does, for people.",
        "params" => {
            "What `--set`, and workflows that use this one, may change: `seed: {type: seed, default: 42}`."
        }
        "inputs" => "What a workflow that uses this one must link or give: `photo: {type: image}`.",
        "nodes" => "What is done: a map from names to nodes, `base: {op: load_model, path: ...}`.",
        "outputs" => "What is made: `final: {value: $picture, save: \"{workflow}.png\"}`.",
        "sweep" => {
            "The runs that `retouch sweep` makes, one for each combination of values: `sweep: {matrix: {seed: 1..5}}`."
        }
        "workflow" => "The workflow that is swept, by a path relative to this file.",
        "matrix" => {
            "The values of each param: a list, a range without its end (`1..5`), `{from: 3, to: 5, step: 0.5}`, `{lines: places.txt}`."
        }
        "zip" => {
            "Params of the matrix whose values go together: the first of one with the first of the other."
        }
        "include" => "Cells beside those of the matrix.",
        "exclude" => "Cells of the matrix that are left out: those with all of these values.",
        "grid" => "A labelled contact sheet of all cells.",
        "report" => {
            "A report on what all cells measured: `report: {tables: [scores], images: [picture], save: \"{workflow}/report.html\"}`."
        }
        "tables" => "The outputs of a cell that `scores` made.",
        "images" => {
            "The outputs of a cell that are the pictures of these tables, in the same order."
        }
        "rows" => "The params whose values are the rows.",
        "columns" => "The params whose values are the columns.",
        "output" => {
            "The output whose pictures are shown; the first that is a picture unless given."
        }
        "table" => {
            "Where the table of results is saved below the output folder: .csv or .json. In `grid`: the output with the scores of the pictures; the only table unless given."
        }
        "scores" => {
            "Columns of the pictures' table, printed under each picture: `scores: [look, thing]`."
        }
        "order" => {
            "The column of the pictures' table that the pictures are ordered by, the largest first: `order: look`; the smallest first: `order: -look`."
        }
        "op" => "What the node does; `retouch nodes` lists all ops.",
        "use" => {
            "Another workflow, by a path relative to this file; what it is given stands under `with`."
        }
        "with" => "What the used workflow is given: its inputs and params.",
        "value" => "What the output is: `$node` or `$node.port`.",
        "save" => {
            "The path below the output folder, a template: `\"{workflow}/{seed}.png\"`. Its ending chooses the format."
        }
        "type" => {
            "What it takes: string, int, float, bool, steps, seed, path, choice, sites or threshold; an input also the type of a port (model, image, latent, ...)."
        }
        "default" => "The value when none is given.",
        "min" => "The least number that it takes.",
        "max" => "The greatest number that it takes.",
        "values" => "The texts that a choice may be: `[one, two]`.",
        "help" => "What it is, for people.",
        "optional" => "Whether the input may be left out.",
        _ => "",
    }
}

/// Doc comments are wrapped where the source is; editors wrap for themselves.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn paragraphs(text: &str) -> String {
    let paragraphs: Vec<String> = text.split("\n\n").map(one_line).collect();
    paragraphs.join("\n\n")
}

/// The page of an op.
pub(super) fn entry(entry: &Entry) -> String {
    let mut text = format!("**`{}`**\n\n{}\n", entry.op(), paragraphs(entry.docs()));
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            let _ = write!(text, "\n**{title}**\n\n{}\n", lines.join("\n"));
        }
    };
    let inputs = entry.inputs().iter().map(|spec| {
        let note = note(spec.arity);
        format!(
            "- `{}`: {}{note}. {}",
            spec.name,
            spec.types.join(" or "),
            one_line(spec.docs)
        )
    });
    section("Inputs", inputs.collect());
    let params = entry.params().iter().map(|info| {
        format!(
            "- `{}`: {}. {}",
            info.name,
            takes(info),
            one_line(&info.docs)
        )
    });
    section("Parameters", params.collect());
    let outputs = entry.outputs().iter().map(|spec| {
        let note = if spec.arity == Arity::Optional {
            ", not always made"
        } else {
            ""
        };
        format!(
            "- `{}`: {}{note}. {}",
            spec.name,
            spec.types.join(" or "),
            one_line(spec.docs)
        )
    });
    section("Outputs", outputs.collect());
    text
}

fn note(arity: Arity) -> &'static str {
    match arity {
        Arity::One => ", required",
        Arity::Optional => ", optional",
        Arity::Many => ", a list",
    }
}

/// What a parameter takes, and its default.
pub(super) fn takes(info: &ParamInfo) -> String {
    match (&info.default, info.required) {
        (_, true) => format!("{}, required", info.takes()),
        (Some(default), false) if !default.is_null() => {
            format!("{}, default `{default}`", info.takes())
        }
        _ => format!("{}, optional", info.takes()),
    }
}

/// The numbers that a schema allows, in words.
fn bounds(info: &ParamInfo) -> Option<String> {
    let schema = info.schema.as_object()?;
    let number = |key: &str| schema.get(key).filter(|value| value.is_number());
    match (number("minimum"), number("maximum")) {
        (Some(min), Some(max)) => Some(format!("From {min} to {max}.")),
        (Some(min), None) => Some(format!("{min} or greater.")),
        (None, Some(max)) => Some(format!("{max} or smaller.")),
        (None, None) => None,
    }
}

/// A parameter of an op.
pub(super) fn param(info: &ParamInfo) -> String {
    let mut text = format!(
        "**`{}`**: {}\n\n{}",
        info.name,
        takes(info),
        paragraphs(&info.docs)
    );
    if let Some(bounds) = bounds(info) {
        let _ = write!(text, "\n\n{bounds}");
    }
    text
}

/// An input port of an op.
pub(super) fn port(spec: &PortSpec) -> String {
    format!(
        "**`{}`**: a link to {}{}\n\n{}",
        spec.name,
        spec.types.join(" or "),
        note(spec.arity),
        paragraphs(spec.docs)
    )
}

/// An output of a node.
pub(super) fn output(output: &Output) -> String {
    let kind = if output.types.is_empty() {
        "of a type that is not known".to_owned()
    } else {
        output.types.join(" or ")
    };
    let note = if output.optional {
        ", not always made"
    } else {
        ""
    };
    format!(
        "**`{}`**: {kind}{note}\n\n{}",
        output.name,
        paragraphs(&output.docs)
    )
}

fn outputs(text: &mut String, outputs: &[Output]) {
    if outputs.is_empty() {
        return;
    }
    text.push_str("Outputs, the first is the default:\n\n");
    for output in outputs {
        let _ = writeln!(text, "- `{}`: {}", output.name, output.types.join(" or "));
    }
}

/// A param or an input.
pub(super) fn declaration(what: &str, decl: &Decl) -> String {
    let mut text = format!("**`{}`**: {what}", decl.name);
    if !decl.kind.is_empty() {
        let _ = write!(text, ", {}", decl.kind);
    }
    if decl.optional {
        text.push_str(", optional");
    }
    if let Some(default) = &decl.default {
        let _ = write!(text, ", default `{default}`");
    }
    match (&decl.min, &decl.max) {
        (Some(min), Some(max)) => {
            let _ = write!(text, ", from {min} to {max}");
        }
        (Some(min), None) => {
            let _ = write!(text, ", {min} or greater");
        }
        (None, Some(max)) => {
            let _ = write!(text, ", {max} or smaller");
        }
        (None, None) => {}
    }
    if !decl.values.is_empty() {
        let _ = write!(text, ", one of `{}`", decl.values.join("`, `"));
    }
    if let Some(help) = &decl.help {
        let _ = write!(text, "\n\n{help}");
    }
    text
}

/// A workflow that another one uses.
pub(super) fn graph(path: &str, index: &Index) -> String {
    let mut text = format!("**`{path}`**: a workflow\n");
    if let Some(description) = &index.description {
        let _ = write!(text, "\n{description}\n");
    }
    for (title, list) in [("Inputs", &index.inputs), ("Params", &index.params)] {
        if list.is_empty() {
            continue;
        }
        let _ = write!(text, "\n**{title}**\n\n");
        for decl in list {
            let help = decl.help.as_deref().unwrap_or("");
            let _ = writeln!(text, "- `{}`: {}. {help}", decl.name, decl.kind);
        }
    }
    if !index.outputs.is_empty() {
        let names: Vec<String> = index
            .outputs
            .iter()
            .map(|o| format!("`{}`", o.name))
            .collect();
        let _ = write!(text, "\n**Outputs**: {}\n", names.join(", "));
    }
    text
}
