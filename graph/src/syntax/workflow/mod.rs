//! A workflow as it is written: from YAML to declarations, spans kept. Whether it makes sense is for `check`.

mod decl;
mod nodes;
mod reader;
mod sweep;
mod values;

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::syntax::params::is_carried;
use crate::syntax::workflow::reader::WorkflowReader;
use crate::syntax::yaml::{self, Node, Tree};

pub use decl::{
    InputDecl, InputKind, NodeBody, NodeDecl, OutputDecl, ParamDecl, ReportDecl, SheetDecl,
    Spanned, SweepDecl, Workflow,
};

/// The schema that this program reads.
pub const SCHEMA: &str = "retouch/v1";

/// Reads a text; `None` when a fault leaves nothing to check. `folder` is where its relative paths start.
pub fn parse(source: &Source, folder: &Path, problems: &mut Vec<Problem>) -> Option<Workflow> {
    let tree = yaml::parse(source, problems)?;
    let mut reader = WorkflowReader { source, problems };
    reader.workflow(tree, folder)
}

impl WorkflowReader<'_> {
    fn workflow(&mut self, tree: Tree, folder: &Path) -> Option<Workflow> {
        const KEYS: &[&str] = &[
            "schema",
            "name",
            "description",
            "params",
            "inputs",
            "nodes",
            "outputs",
            "sweep",
        ];
        let whole = tree.span;
        if matches!(tree.node, Node::Null) {
            self.fault(
                Code::MissingSchema,
                whole,
                "the file is empty",
                format!("a workflow begins with `schema: {SCHEMA}`"),
            );
            return None;
        }
        let entries = self.map(
            tree,
            "a workflow",
            &format!("it begins with `schema: {SCHEMA}`"),
        )?;
        let stem = Path::new(self.source.name())
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or("workflow");
        let mut workflow = Workflow {
            source: self.source.clone(),
            folder: Arc::new(folder.to_owned()),
            name: stem.to_owned(),
            description: None,
            params: IndexMap::new(),
            inputs: IndexMap::new(),
            nodes: IndexMap::new(),
            outputs: IndexMap::new(),
            sweep: None,
            nodes_unread: false,
        };
        match entries.iter().find(|(key, _)| key.text == "schema") {
            None => {
                // The first key's place, so that the caret is where the line is to go.
                let at = entries.first().map_or(whole, |(key, _)| key.span);
                self.fault(
                    Code::MissingSchema,
                    at,
                    "the workflow does not say its schema",
                    format!("begin it with `schema: {SCHEMA}`"),
                );
            }
            Some((_, tree)) => {
                if !self.schema(tree) {
                    return None; // what follows is of a language that this program does not know
                }
            }
        }
        for (key, tree) in entries {
            match key.text.as_str() {
                "schema" => {}
                "name" => {
                    if let Some(name) = self.text(&key, &tree) {
                        workflow.name = name;
                    }
                }
                "description" => workflow.description = self.text(&key, &tree),
                "params" => self.params(tree, &mut workflow),
                "inputs" => self.inputs(tree, &mut workflow),
                "nodes" => self.nodes(tree, &mut workflow),
                "outputs" => self.outputs(tree, &mut workflow),
                "sweep" => workflow.sweep = self.sweep(&key, tree),
                other if is_carried(other) => {}
                _ => self.unknown_key(&key, "a workflow", KEYS),
            }
        }
        self.sweep_only(&workflow);
        self.distinct_names(&workflow);
        Some(workflow)
    }

    fn params(&mut self, tree: Tree, workflow: &mut Workflow) {
        for (key, tree) in self.section(tree, "params", "place: {type: string}") {
            if self.name(&key, "a param") {
                // A reference to a param with a faulty declaration is not a fault itself.
                let decl = self
                    .param(&key, tree)
                    .map_or_else(|| ParamDecl::broken(&key), |(decl, _)| decl);
                workflow.params.insert(key.text, decl);
            }
        }
    }

    fn inputs(&mut self, tree: Tree, workflow: &mut Workflow) {
        for (key, tree) in self.section(tree, "inputs", "image: {type: image}") {
            if self.name(&key, "an input")
                && let Some(decl) = self.input(&key, tree)
            {
                workflow.inputs.insert(key.text, decl);
            }
        }
    }

    fn nodes(&mut self, tree: Tree, workflow: &mut Workflow) {
        workflow.nodes_unread = !matches!(tree.node, Node::Map(_) | Node::Null);
        // The places of keys that were dropped, in order: the keys of a node with one of them are not fully known.
        let dropped = (self.problems.iter())
            .filter(|problem| matches!(problem.code(), Code::MergeKey | Code::KeyNotText));
        let mut dropped: Vec<Span> = dropped.map(Problem::span).collect();
        dropped.sort_unstable();
        for (key, tree) in self.section(tree, "nodes", "base: {op: load_model}") {
            if !self.name(&key, "a node") {
                continue;
            }
            if matches!(key.text.as_str(), "params" | "inputs" | "outputs") {
                self.fault(
                    Code::ReservedName,
                    key.span,
                    format!("`{}` is reserved and cannot name a node", key.text),
                    "choose another name",
                );
                continue;
            }
            let whole = tree.span;
            let at = dropped.partition_point(|span| span.start < whole.start);
            let tainted = dropped.get(at).is_some_and(|span| span.end <= whole.end);
            let decl = NodeDecl {
                name_span: key.span,
                body: self.node(&key, tree, tainted),
                tainted,
            };
            workflow.nodes.insert(key.text, decl);
        }
    }

    fn outputs(&mut self, tree: Tree, workflow: &mut Workflow) {
        for (key, tree) in self.section(tree, "outputs", "final: {value: $picture}") {
            if self.name(&key, "an output") {
                let decl = self.output(&key, tree);
                workflow.outputs.insert(key.text, decl);
            }
        }
    }

    /// Reports inputs with the name of a param: `with:` and templates refer to both by the name alone.
    fn distinct_names(&mut self, workflow: &Workflow) {
        for (name, input) in &workflow.inputs {
            if let Some(param) = workflow.params.get(name) {
                self.problems.push(
                    Problem::new(
                        Code::BadDeclaration,
                        self.source,
                        input.name_span,
                        format!("the input `{name}` has the name of a param"),
                    )
                    .also(self.source, param.name_span, "the param")
                    .help("`with:` and templates could mean either: rename one of them"),
                );
            }
        }
    }

    fn schema(&mut self, tree: &Tree) -> bool {
        let help = format!("write `schema: {SCHEMA}`");
        let Some(text) = tree.as_text() else {
            self.fault(
                Code::UnknownSchema,
                tree.span,
                format!("`schema` is `{SCHEMA}`, not {}", tree.describe()),
                help,
            );
            return true;
        };
        if text == SCHEMA {
            return true;
        }
        let version = text
            .strip_prefix("retouch/v")
            .and_then(|version| version.parse::<u64>().ok());
        match version {
            Some(version) if version > 1 => {
                self.fault(
                    Code::UnknownSchema,
                    tree.span,
                    format!(
                        "the workflow is written in `{text}`, which is newer than this program"
                    ),
                    format!("this program reads `{SCHEMA}`; a newer version of it reads `{text}`"),
                );
                false
            }
            _ => {
                self.fault(
                    Code::UnknownSchema,
                    tree.span,
                    format!("there is no schema `{}`", text.escape_debug()),
                    help,
                );
                true
            }
        }
    }
}
