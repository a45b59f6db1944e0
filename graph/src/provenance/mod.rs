//! Where an output comes from: what is needed to make it again, to say what it was made of, and to compare it with
//! another, without any file of the machine that made it.

mod canonical;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::base::digest::hex;
use crate::base::order;
use crate::base::paths::{folder_of, normal};
use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::check::{Checked, CheckedNode, ResolvedParam};
use crate::engine::Engine;
use crate::lock;
use crate::plan::plan::Plan;
use crate::plan::record::Record;
use crate::provenance::canonical::{Form, Names};
use crate::sweep::Sweep;
use crate::syntax::params::ParamType;
use crate::syntax::workflow::{self, NodeBody, Workflow};

/// The schema of what is written; a newer one is refused by name.
pub const SCHEMA: &str = "retouch-provenance/1";

/// A file that was read.
#[derive(Clone, Debug, Eq, Serialize, Deserialize)]
pub struct ReadEntry {
    /// `asset` or `model`.
    pub kind: String,
    /// Its path from the workflow's folder, with `/`; of one that lies elsewhere the end of its path.
    pub path: String,
    /// Of a part of a model: the folder or file that the workflow names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its bytes.
    pub size: u64,
    /// The BLAKE3 of its content, in hexadecimal digits.
    pub blake3: String,
    /// Where it is on this machine, where the recipe is made; written nowhere.
    #[serde(skip)]
    pub place: PathBuf,
}

impl PartialEq for ReadEntry {
    fn eq(&self, other: &Self) -> bool {
        (&self.kind, &self.path, &self.model) == (&other.kind, &other.path, &other.model)
            && (self.size, &self.blake3) == (other.size, &other.blake3)
    }
}

/// Where an output comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// [`SCHEMA`].
    pub schema: String,
    /// The program and its version.
    pub tool: String,
    /// The output's name.
    pub output: String,
    /// The workflow in its canonical form, as far as the output needs it.
    pub workflow: String,
    /// The graphs that it uses, by their path from the workflow's folder.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub graphs: IndexMap<String, String>,
    /// The values of its params, drawn seeds among them.
    pub params: IndexMap<String, Json>,
    /// What was read besides.
    pub files: Vec<ReadEntry>,
    /// What the keys of its nodes come from, and of each step.
    pub record: Record,
}

/// What is run: a workflow that was loaded, with what of it is to be known where outputs come from.
#[derive(Debug)]
pub struct Origin {
    workflow: Workflow,
    graphs: Vec<(PathBuf, Workflow)>,
    path: PathBuf,
    tool: String,
}

impl Origin {
    /// Reads the workflow and the graphs that it uses once more.
    ///
    /// # Errors
    /// As [`Engine::read`].
    pub fn of(engine: &Engine, path: &Path, tool: &str) -> Result<Self, Problems> {
        let mut workflow = engine.read(path)?;
        let mut path = path.to_owned();
        if let Some(other) = workflow.sweep.take().and_then(|sweep| sweep.workflow) {
            path = normal(&folder_of(&path).join(&other.value));
            workflow = engine.read(&path)?;
        }
        let mut graphs: Vec<(PathBuf, Workflow)> = Vec::new();
        let mut open = used(&workflow);
        while let Some(graph) = open.pop() {
            if graph != normal(&path) && !graphs.iter().any(|(known, _)| *known == graph) {
                let read = engine.read(&graph)?;
                open.extend(used(&read));
                graphs.push((graph, read));
            }
        }
        graphs.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self {
            workflow,
            graphs,
            path,
            tool: tool.to_owned(),
        })
    }

    /// Where an output of the workflow comes from.
    ///
    /// # Errors
    /// When something of the run cannot be said in a workflow, or a file cannot be read any more.
    pub fn output(
        &self,
        engine: &Engine,
        checked: &Checked,
        name: &str,
    ) -> Result<Provenance, Problems> {
        if !checked.outputs.iter().any(|output| output.name == name) {
            return Err(self.unsaid(format!("there is no output `{name}`")));
        }
        let pruned = pruned(checked, &[name]);
        let plan = engine.plan(&pruned, &[])?;
        let made = Made {
            output: name,
            shown: &[name],
            params: &checked.params,
            sweep: None,
        };
        let names = Names::new(&folder_of(&self.path), Arc::clone(engine.files()));
        self.made(engine, &pruned, &plan, &made, names)
    }

    /// Where the contact sheet of a sweep comes from, drawn of all its cells.
    ///
    /// # Errors
    /// As [`Origin::output`].
    pub fn sheet(&self, engine: &Engine, sweep: &Sweep) -> Result<Provenance, Problems> {
        let unsaid = || self.unsaid("the sweep has no contact sheet".to_owned());
        let decl = sweep.sheet_decl().ok_or_else(unsaid)?;
        let shown = sweep.parts_of(sweep.sheet_name());
        let plan = engine
            .plan_sweep(sweep, &[sweep.sheet_name().to_owned()], &Default::default())?
            .plan;
        // What only other outputs of the cells need is no part of it, nor are the files that it reads.
        let whole = pruned(sweep.all_cells(), &shown);
        let first = sweep.cells.first().ok_or_else(unsaid)?;
        let mut names = Names::new(&folder_of(&self.path), Arc::clone(engine.files()));
        let cells: Vec<IndexMap<String, Json>> = (sweep.cells.iter())
            .map(|cell| {
                (sweep.varying.iter())
                    .filter_map(|name| {
                        let param = cell.params.iter().find(|param| param.name == *name)?;
                        let path = (self.workflow.params.get(name))
                            .is_some_and(|decl| decl.kind == ParamType::Path);
                        let value = match param.value.as_str() {
                            Some(text) if path => Json::from(names.name(&param.folder, text)),
                            _ => param.value.clone(),
                        };
                        Some((name.clone(), value))
                    })
                    .collect()
            })
            .collect();
        let shared: Vec<ResolvedParam> = (first.params.iter())
            .filter(|param| !sweep.varying.contains(&param.name))
            .cloned()
            .collect();
        let made = Made {
            output: sweep.sheet_name(),
            shown: &shown,
            params: &shared,
            sweep: Some((&cells, decl)),
        };
        self.made(engine, &whole, &plan, &made, names)
    }

    fn made(
        &self,
        engine: &Engine,
        checked: &Checked,
        plan: &Plan,
        made: &Made<'_>,
        mut names: Names,
    ) -> Result<Provenance, Problems> {
        let form = Form {
            registry: engine.registry(),
            outputs: Some(made.shown),
            params: made.params,
            sweep: made.sweep,
            graphs: &self.graphs,
            folder: Path::new(""),
        };
        let unsaid = || {
            self.unsaid(
                "a seed was drawn inside an included workflow, or an included workflow lies outside the workflow's folder".to_owned(),
            )
        };
        let workflow =
            canonical::canonical(&self.workflow, &form, &mut names).ok_or_else(unsaid)?;
        let folder = folder_of(&self.path);
        let mut graphs = IndexMap::new();
        let reached = self.reached(&workflow);
        for (path, graph) in self
            .graphs
            .iter()
            .filter(|(path, _)| reached.contains(path))
        {
            let name = lock::shareable(&folder, path).ok_or_else(unsaid)?;
            let form = Form {
                outputs: None,
                params: &[],
                sweep: None,
                folder: Path::new(&name).parent().unwrap_or(Path::new("")),
                ..form
            };
            let text = canonical::canonical(graph, &form, &mut names).ok_or_else(unsaid)?;
            graphs.insert(name, text);
        }
        let files = files(engine, checked, &mut names)?;
        // Only what the canonical workflow still has, and paths as they are written there.
        let mut faults = Vec::new();
        let source = Source::new("canonical", workflow.as_str());
        let kept = workflow::parse(&source, &folder, &mut faults).ok_or_else(unsaid)?;
        let params = (kept.params.iter())
            .filter_map(|(name, decl)| Some((name.clone(), decl.default.as_ref()?.value.clone())))
            .collect();
        Ok(Provenance {
            schema: SCHEMA.to_owned(),
            tool: self.tool.clone(),
            output: made.output.to_owned(),
            workflow,
            graphs,
            params,
            files,
            record: plan.record(),
        })
    }

    /// The graphs that a canonical workflow uses, and those that they use.
    fn reached(&self, text: &str) -> Vec<PathBuf> {
        let mut faults = Vec::new();
        let source = Source::new(self.path.display().to_string(), text);
        let folder = folder_of(&self.path);
        let mut open = workflow::parse(&source, &folder, &mut faults)
            .map_or_else(Vec::new, |workflow| used(&workflow));
        let mut reached: Vec<PathBuf> = Vec::new();
        while let Some(path) = open.pop() {
            if !reached.contains(&path) {
                if let Some((_, graph)) = self.graphs.iter().find(|(known, _)| *known == path) {
                    open.extend(used(graph));
                }
                reached.push(path);
            }
        }
        reached
    }

    fn unsaid(&self, message: String) -> Problems {
        Problem::new(
            Code::NoProvenance,
            &self.workflow.source,
            Span::default(),
            format!("the recipe of the output cannot be written: {message}"),
        )
        .help("give the seed as a number, and keep what belongs together in one folder")
        .into()
    }
}

/// What a recipe is of.
struct Made<'a> {
    output: &'a str,
    /// The outputs of the workflow: that, or those that the contact sheet shows.
    shown: &'a [&'a str],
    params: &'a [ResolvedParam],
    sweep: Option<(&'a [IndexMap<String, Json>], &'a workflow::SheetDecl)>,
}

/// The files that the nodes read, by their names in the recipe.
fn files(
    engine: &Engine,
    checked: &Checked,
    names: &mut Names,
) -> Result<Vec<ReadEntry>, Problems> {
    let mut entries: Vec<ReadEntry> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for node in &checked.nodes {
        let model = (node.entry().outputs().iter()).any(|port| port.types.contains(&"model"));
        for file in node.reads() {
            if !seen.insert(normal(&file.path)) {
                continue;
            }
            let cannot = |error: std::io::Error| {
                Problem::new(
                    Code::NodeFile,
                    &node.source,
                    node.span,
                    format!("`{}` cannot be read: {error}", file.path.display()),
                )
                .help("check the file and whether it may be read")
            };
            let files = engine.files();
            let (name, named) = names.file(&file.path);
            entries.push(ReadEntry {
                kind: if model { "model" } else { "asset" }.to_owned(),
                model: model.then_some(named),
                path: name,
                size: files.read_head(&file.path, 0).map_err(cannot)?.1,
                blake3: hex(&files.digest(&file.path).map_err(cannot)?),
                place: file.path.clone(),
            });
        }
    }
    entries.sort_by(|a, b| (&a.kind, &a.path).cmp(&(&b.kind, &b.path)));
    Ok(entries)
}

/// The workflows that a workflow uses.
fn used(workflow: &Workflow) -> Vec<PathBuf> {
    (workflow.nodes.values())
        .filter_map(|node| match &node.body {
            NodeBody::Use { path, .. } => Some(normal(&workflow.folder.join(&path.value))),
            _ => None,
        })
        .collect()
}

/// The part of a workflow that outputs of these names need.
fn pruned(checked: &Checked, outputs: &[&str]) -> Checked {
    let links = order::graph(checked.nodes.len(), checked.links());
    let asked = (checked.outputs.iter()).filter(|one| outputs.contains(&one.name.as_str()));
    let needed = order::needed(&links, asked.map(|output| output.link.node));
    let mut place = vec![0; needed.len()];
    let mut nodes: Vec<CheckedNode> = Vec::new();
    for (index, node) in checked.nodes.iter().enumerate() {
        if needed[index] {
            place[index] = nodes.len();
            nodes.push(node.clone());
        }
    }
    for link in nodes
        .iter_mut()
        .flat_map(|node| node.links.iter_mut().flatten())
    {
        link.node = place[link.node];
    }
    let mut pruned = checked.clone();
    pruned.nodes = nodes;
    pruned.groups.clear();
    pruned
        .outputs
        .retain(|one| outputs.contains(&one.name.as_str()));
    for output in &mut pruned.outputs {
        output.link.node = place[output.link.node];
    }
    pruned
}
