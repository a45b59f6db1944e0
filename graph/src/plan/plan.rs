//! What is to be done: the nodes behind the requested outputs, keyed, equal ones merged, in order.

use std::collections::HashMap;
use std::sync::Arc;

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::base::digest::Digest;
use crate::base::key::{Ingredients, Key};
use crate::base::order;
use crate::base::problem::{Code, Problem, Problems};
use crate::check::{Checked, CheckedNode, ResolvedParam};
use crate::files::{Files, output_path};
use crate::op::chain::{Chained, UpLink, Upstream};
use crate::op::node::ReadFile;
use crate::plan::guard::Guard;
use crate::plan::targets::{self, Target};
use crate::plan::task::{Edge, NodeName, PlannedOutput, Task};

/// For each input port of a task, in the order of declaration: the tasks that are linked to it, and their output ports.
pub type Inputs = Vec<(&'static str, Vec<(usize, &'static str)>)>;

/// What is to be done, keys known before anything runs.
#[derive(Clone, Debug)]
pub struct Plan {
    workflow: String,
    params: Vec<ResolvedParam>,
    pub(super) numerics: String,
    /// The tasks; their indices are in topological order, the file's order otherwise.
    graph: DiGraph<Task, Edge>,
    pub(super) outputs: Vec<PlannedOutput>,
}

impl Plan {
    /// Plans what the targets need: names of outputs and nodes, all outputs when there are none.
    pub(crate) fn new(
        checked: &Checked,
        targets: &[String],
        files: &dyn Files,
        numerics: &str,
    ) -> Result<Self, Problems> {
        if let Some(open) = &checked.open {
            return Err(open.clone().into());
        }
        let targets = targets::find(checked, targets)?;
        let links = order::graph(checked.nodes.len(), checked.links());
        let needed = order::needed(&links, targets.iter().map(|target| target.link.node));
        let mut builder = Builder {
            checked,
            files,
            numerics,
            graph: DiGraph::new(),
            by_key: HashMap::new(),
            guards: HashMap::new(),
            task_of: vec![None; checked.nodes.len()],
            problems: Vec::new(),
        };
        for index in order::topological(&links) {
            if needed[index] {
                builder.add(index);
            }
        }
        builder.finish(targets)
    }

    /// What numbers depend on: the device, the data type, the kernels.
    #[must_use]
    pub fn numerics(&self) -> &str {
        &self.numerics
    }

    /// The workflow's name.
    #[must_use]
    pub fn workflow(&self) -> &str {
        &self.workflow
    }

    /// The values of the workflow's params, drawn seeds among them.
    #[must_use]
    pub fn params(&self) -> &[ResolvedParam] {
        &self.params
    }

    /// The tasks in topological order, the file's order otherwise.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.graph.node_weights()
    }

    /// The task of that index, if there is one.
    #[must_use]
    pub fn task(&self, index: usize) -> Option<&Task> {
        self.graph.node_weight(NodeIndex::new(index))
    }

    /// How many tasks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.graph.node_count()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The outputs that the plan makes, in the order of the file.
    #[must_use]
    pub fn outputs(&self) -> &[PlannedOutput] {
        &self.outputs
    }

    /// The tasks, by their index, and their links, with the ports at either end.
    #[must_use]
    pub fn graph(&self) -> &DiGraph<Task, Edge> {
        &self.graph
    }

    /// What is linked to the input ports of a task; none when there is no task of that index.
    #[must_use]
    pub fn inputs(&self, task: usize) -> Inputs {
        let specs = self.task(task).map_or(&[][..], |task| task.entry.inputs());
        let mut inputs: Inputs = specs.iter().map(|spec| (spec.name, Vec::new())).collect();
        let mut at = 0;
        for (from, edge) in self.incoming(task) {
            // Edges are in the order of the ports.
            while inputs.get(at).is_some_and(|(port, _)| *port != edge.to) {
                at += 1;
            }
            if let Some((_, links)) = inputs.get_mut(at) {
                links.push((from, edge.from));
            }
        }
        inputs
    }

    /// The links to a task, in the order of its ports, those of one port in the order of the file.
    pub(crate) fn incoming(&self, task: usize) -> impl Iterator<Item = (usize, Edge)> {
        let edges = self.graph.edges_directed(NodeIndex::new(task), Incoming);
        let mut edges: Vec<_> = edges
            .map(|edge| (edge.id(), edge.source().index(), *edge.weight()))
            .collect();
        edges.sort_unstable_by_key(|(id, ..)| *id);
        edges.into_iter().map(|(_, from, edge)| (from, edge))
    }

    /// The tasks that a task is linked to, once for each link.
    pub(crate) fn upstream(&self, index: usize) -> impl Iterator<Item = usize> {
        self.graph
            .neighbors_directed(NodeIndex::new(index), Incoming)
            .map(NodeIndex::index)
    }

    /// The tasks that are linked to one, once for each link.
    pub(crate) fn downstream(&self, index: usize) -> impl Iterator<Item = usize> {
        self.graph
            .neighbors_directed(NodeIndex::new(index), Outgoing)
            .map(NodeIndex::index)
    }

    /// The same plan, but of what is linked to these input ports of a task alone: its outputs, saved nowhere, are called by
    /// the port, those of a list one after another. To look at what a node worked with, run this one.
    #[must_use]
    pub fn inputs_of(&self, task: usize, ports: &[&str]) -> Self {
        let outputs = (self.inputs(task).into_iter())
            .filter(|(name, _)| ports.contains(name))
            .flat_map(|(name, links)| {
                links.into_iter().map(|(task, port)| PlannedOutput {
                    name: name.to_owned(),
                    task,
                    port,
                    save: None,
                    required: true,
                })
            })
            .collect();
        Self {
            outputs,
            ..self.clone()
        }
    }

    /// Gives pictures that were requested by the name of a node, which says no path, a path: `{workflow}/{node}.png`. A
    /// picture is what is saved as .png by default.
    pub fn save_pictures(&mut self) {
        let mut taken: std::collections::HashSet<String> = (self.outputs.iter())
            .filter_map(|output| Some(output.save.as_ref()?.to_lowercase()))
            .collect();
        for at in 0..self.outputs.len() {
            let output = &self.outputs[at];
            let Some(task) = self.task(output.task).filter(|_| output.save.is_none()) else {
                continue;
            };
            let ports = task.entry.outputs();
            let picture = (ports.iter().find(|port| port.name == output.port))
                .and_then(|port| port.formats?.first())
                .is_some_and(|format| *format == "png");
            if !picture {
                continue;
            }
            // Of the node's first port its own name: `large` for `large.image`.
            let first = ports.first().is_some_and(|port| port.name == output.port);
            let name = match output.name.rsplit_once('.') {
                Some((node, _)) if first => node,
                _ => &output.name,
            };
            let path = format!("{}/{}.png", self.workflow, name.replace(['/', '.'], "-"));
            if output_path::check_path(&path).is_ok() && taken.insert(path.to_lowercase()) {
                self.outputs[at].save = Some(path);
            }
        }
    }

    pub(crate) fn outputs_mut(&mut self) -> &mut [PlannedOutput] {
        &mut self.outputs
    }

    pub(crate) fn retain_outputs(&mut self, mut keep: impl FnMut() -> bool) {
        self.outputs.retain(|_| keep());
    }

    /// Gives each task other names: those that `names` says for it.
    pub(crate) fn rename(&mut self, mut names: impl FnMut(&Task) -> Vec<String>) {
        for task in self.graph.node_weights_mut() {
            task.names = names(task);
        }
    }
}

/// The files that a node reads, and their digests by role.
type Guarded = (Guard, Vec<(String, Digest)>);

/// A plan that is being made: nodes are added in topological order.
struct Builder<'a> {
    checked: &'a Checked,
    files: &'a dyn Files,
    numerics: &'a str,
    graph: DiGraph<Task, Edge>,
    by_key: HashMap<Key, NodeIndex>,
    /// Of files that were looked at: the cells of a sweep read the same ones.
    guards: HashMap<&'a [ReadFile], Guarded>,
    /// For each node that was added: its task.
    task_of: Vec<Option<NodeIndex>>,
    problems: Vec<Problem>,
}

impl<'a> Builder<'a> {
    /// Adds a node: as a task of its own, or to that of an equal one.
    fn add(&mut self, index: usize) {
        let checked: &'a Checked = self.checked;
        let node = &checked.nodes[index];
        let (guard, digests) = match self.guards.get(&node.reads[..]) {
            _ if node.reads.is_empty() => Default::default(),
            Some(known) => known.clone(),
            None => {
                let before = self.problems.len();
                let made = Guard::of(&node.reads, self.files, |path, error| {
                    self.problems.push(
                        Problem::new(
                            Code::NodeFile,
                            &node.source,
                            node.span,
                            format!("`{}` cannot be read: {error}", path.display()),
                        )
                        .help("check the file and whether it may be read"),
                    );
                });
                if self.problems.len() == before {
                    self.guards.insert(&node.reads, made.clone());
                }
                made
            }
        };
        let links = self.links(node);
        let key = self.key(node, &digests, &links);
        let task = match self.by_key.get(&key) {
            Some(task) => *task,
            None => self.add_task(node, key, guard, digests, &links),
        };
        self.task_of[index] = Some(task);
    }

    /// The links of each input port, to tasks.
    fn links(&self, node: &CheckedNode) -> Vec<(&'static str, Vec<(NodeIndex, &'static str)>)> {
        (node.entry.inputs().iter().zip(&node.links))
            .map(|(spec, links)| {
                let links = (links.iter())
                    .filter_map(|link| Some((self.task_of[link.node]?, link.port)))
                    .collect();
                (spec.name, links)
            })
            .collect()
    }

    fn key(
        &self,
        node: &CheckedNode,
        digests: &[(String, Digest)],
        links: &[(&'static str, Vec<(NodeIndex, &'static str)>)],
    ) -> Key {
        let ports: Vec<(&'static str, Vec<(Key, &'static str)>)> =
            (links.iter().zip(node.entry.inputs()))
                .filter(|((_, links), spec)| spec.keyed || !links.is_empty())
                .map(|((port, links), _)| {
                    let links = (links.iter())
                        .map(|(task, output)| (self.graph[*task].port_key(output), *output))
                        .collect();
                    (*port, links)
                })
                .collect();
        Ingredients {
            op: node.entry.op(),
            version: node.entry.version(),
            params: &node.params,
            files: digests,
            ports: &ports,
            numerics: self.numerics,
        }
        .key()
    }

    fn add_task(
        &mut self,
        node: &CheckedNode,
        key: Key,
        guard: Guard,
        files: Vec<(String, Digest)>,
        links: &[(&'static str, Vec<(NodeIndex, &'static str)>)],
    ) -> NodeIndex {
        let up_link = |(task, output): &(NodeIndex, &'static str)| -> UpLink {
            let task = &self.graph[*task];
            Upstream::up(task.port_key(output), output, task.note.clone())
        };
        let Chained {
            note,
            ports,
            chain,
            calls,
        } = node.node.chain(&Upstream {
            key,
            files: &files,
            numerics: self.numerics,
            links: (links.iter())
                .map(|(port, links)| (*port, links.iter().map(up_link).collect()))
                .collect(),
            known: &node.known,
        });
        let lazy = (links.iter().flat_map(|(_, links)| links)).filter_map(|(from, port)| {
            let from = &self.graph[*from];
            from.is_lazy(port).then_some(&from.guard)
        });
        let guard = guard.with(lazy);
        let added = self.graph.add_node(Task {
            nodes: Vec::new(),
            names: Vec::new(),
            entry: Arc::clone(&node.entry),
            key,
            node: Arc::clone(&node.node),
            params: Arc::clone(&node.params),
            files,
            guard,
            ports,
            chain: chain.map(Arc::new),
            note,
            calls,
        });
        for (to, links) in links {
            for (task, from) in links {
                self.graph.add_edge(*task, added, Edge { from, to });
            }
        }
        self.by_key.insert(key, added);
        added
    }

    fn finish(mut self, targets: Vec<Target>) -> Result<Plan, Problems> {
        if !self.problems.is_empty() {
            return Err(Problems::new(self.problems));
        }
        for (node, task) in self.checked.nodes.iter().zip(&self.task_of) {
            if let Some(task) = task {
                self.graph[*task].nodes.push(NodeName {
                    cell: node.cell,
                    name: node.name.clone(),
                });
            }
        }
        for task in self.graph.node_weights_mut() {
            task.names = task.nodes.iter().map(ToString::to_string).collect();
        }
        let outputs = (targets.into_iter())
            .filter_map(|target| {
                Some(PlannedOutput {
                    name: target.name,
                    task: self.task_of[target.link.node]?.index(),
                    port: target.link.port,
                    save: target.save,
                    required: target.required,
                })
            })
            .collect();
        Ok(Plan {
            workflow: self.checked.name.clone(),
            params: self.checked.params.clone(),
            numerics: self.numerics.to_owned(),
            graph: self.graph,
            outputs,
        })
    }
}
