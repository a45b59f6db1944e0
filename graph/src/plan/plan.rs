//! What is to be done: the nodes behind the requested outputs, keyed, equal ones merged, in order; and what of it is
//! left to do when a cache has a part of it already.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use indexmap::IndexMap;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::base::digest::Digest;
use crate::base::key::{Ingredients, Key, KeyHasher};
use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::base::suggest;
use crate::cache::Cache;
use crate::check::{Checked, Link, ResolvedParam};
use crate::files::Files;
use crate::files::output_path;
use crate::op::chain::{self, Chain, Chained, Note, Upstream};
use crate::op::node::Node;
use crate::op::registry::{Entry, ErasedNode};
use crate::plan::forecast::Wanted;
use crate::plan::forecast::forecast;
use crate::plan::guard::Guard;

/// What one task is: a node, or several whose outputs are the same.
#[derive(Clone)]
pub struct Task {
    names: Vec<String>,
    entry: Arc<Entry>,
    key: Key,
    pub(crate) node: Arc<dyn ErasedNode>,
    /// For each input port: the tasks and their output ports.
    pub(crate) inputs: Vec<(&'static str, Vec<(usize, &'static str)>)>,
    params: Arc<Json>,
    files: Vec<(String, Digest)>,
    /// The files behind what it makes, to be compared before that is kept.
    pub(crate) guard: Guard,
    ports: Vec<(&'static str, Key)>,
    chain: Option<Arc<Chain>>,
    note: Option<Note>,
    calls: u64,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("names", &self.names)
            .field("op", &self.op())
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Task {
    /// The node's name, or the first one's: `retouch/swap`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// The names of all nodes that this task is, in the order of the file.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The op.
    #[must_use]
    pub fn op(&self) -> &'static str {
        self.entry.op()
    }

    /// The op's documentation, ports and parameters.
    #[must_use]
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// What its outputs are called.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// What the value of an output port is called: the task's own key, unless it is that of a chain's state.
    #[must_use]
    pub fn port_key(&self, port: &str) -> Key {
        let own = self.ports.iter().find(|(name, _)| *name == port);
        own.map_or(self.key, |(_, key)| *key)
    }

    /// Under which key it is noted that the node does not give a port that was asked for.
    pub(crate) fn absent_key(&self, port: &str) -> Key {
        let mut hasher = KeyHasher::new("retouch/absent/1");
        hasher.field("node", &self.key.0);
        hasher.field("port", port.as_bytes());
        hasher.finish()
    }

    /// Whether values of that output port may still read files.
    pub(crate) fn is_lazy(&self, port: &str) -> bool {
        let mut specs = self.entry.outputs().iter();
        specs.any(|spec| spec.name == port && spec.lazy)
    }

    /// Its steps, if it is a chain of them.
    #[must_use]
    pub fn chain(&self) -> Option<&Arc<Chain>> {
        self.chain.as_ref()
    }

    /// What it says of itself to those downstream.
    #[must_use]
    pub fn note(&self) -> Option<&Note> {
        self.note.as_ref()
    }

    /// What its seconds depend on: a chain's class, else the op.
    #[must_use]
    pub fn class(&self) -> &str {
        match &self.chain {
            Some(chain) if !chain.class.is_empty() => &chain.class,
            _ => self.op(),
        }
    }

    /// Whether it runs on the compute device.
    #[must_use]
    pub fn device(&self) -> bool {
        self.entry.device()
    }

    /// The node itself, if it is one of that op.
    #[must_use]
    pub fn node<N: Node>(&self) -> Option<&N> {
        self.node.as_any().downcast_ref()
    }

    /// Its parameters with defaults filled in; paths are null.
    #[must_use]
    pub fn params(&self) -> &Json {
        &self.params
    }

    /// For each input port: the indices of the tasks that it is linked to, and their output ports.
    #[must_use]
    pub fn inputs(&self) -> &[(&'static str, Vec<(usize, &'static str)>)] {
        &self.inputs
    }
}

/// A link between tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The output port of the one.
    pub from: &'static str,
    /// The input port of the other.
    pub to: &'static str,
}

/// An output that the plan makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedOutput {
    /// Its name; for a node that was asked for by name `layout.latent`.
    pub name: String,
    /// The index of the task that makes it.
    pub task: usize,
    /// The output port.
    pub port: &'static str,
    /// The path below the output folder.
    pub save: Option<String>,
    /// Whether the run fails when the node does not give it: not for all ports of a node that was asked for by name.
    pub(crate) required: bool,
}

/// Whether a task will run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its outputs are there: the place (`memory`).
    Cached(&'static str),
    /// Nothing that runs needs its outputs.
    NotNeeded,
    /// It runs.
    Run(Reason),
}

/// Why a task runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No cache has outputs under its key, while all that it needs is there.
    NotCached,
    /// What it needs has to be made too: the tasks that run before it.
    Upstream(Vec<String>),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cached(place) => write!(f, "reused from {place}"),
            Self::NotNeeded => f.write_str("not needed"),
            Self::Run(Reason::NotCached) => f.write_str("runs: nothing is kept under its key"),
            Self::Run(Reason::Upstream(names)) => {
                write!(f, "runs: after {}", suggest::list(names))
            }
        }
    }
}

/// Where a chain of steps goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The number of its first step.
    pub first: usize,
    /// The first step that is made; T when all are there.
    pub at: usize,
    /// T.
    pub of: usize,
}

/// What a run would do.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// For each task: whether it runs, and why.
    pub statuses: Vec<Status>,
    /// For each task that is a chain and runs: where it goes on.
    pub resumes: Vec<Option<Resume>>,
    /// For each task: the calls of a network that it makes.
    pub calls: Vec<u64>,
    /// For each task: the output ports that something needs.
    pub(crate) ports: Vec<BTreeSet<&'static str>>,
    /// What of each call is to be kept.
    pub(crate) wanted: Wanted,
    kept_bytes: u64,
}

impl Forecast {
    /// The calls of a network that the run makes.
    #[must_use]
    pub fn total_calls(&self) -> u64 {
        self.calls.iter().sum()
    }

    /// The bytes of what calls give besides and the run newly keeps.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// What becomes of a task, in words.
    #[must_use]
    pub fn describe(&self, task: usize) -> String {
        let Some(status) = self.statuses.get(task) else {
            return String::new();
        };
        match (status, self.resumes.get(task).copied().flatten()) {
            (Status::Run(_), Some(resume)) if resume.at == resume.of => {
                "put together from its steps, which are all there".to_owned()
            }
            (Status::Run(reason), Some(resume)) if resume.at > resume.first => format!(
                "resumes at step {} of {}{}",
                resume.at,
                resume.of,
                because(reason)
            ),
            _ => status.to_string(),
        }
    }
}

fn because(reason: &Reason) -> String {
    match reason {
        Reason::NotCached => String::new(),
        Reason::Upstream(names) => format!(", after {}", suggest::list(names)),
    }
}

/// The place that takes longer to get at, of two.
pub(crate) fn slower(a: &'static str, b: &'static str) -> &'static str {
    const SLOWEST_FIRST: [&str; 3] = ["disk", "memory", "device memory"];
    let rank = |place: &str| SLOWEST_FIRST.iter().position(|known| *known == place);
    if rank(a) <= rank(b) { a } else { b }
}

/// What the keys of a plan's nodes come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    numerics: String,
    nodes: IndexMap<String, NodeRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NodeRecord {
    key: String,
    op: String,
    params: Vec<(String, String)>,
    files: Vec<(String, String)>,
    inputs: Vec<(String, String)>,
    /// Of a chain: the number of its first step.
    #[serde(default, skip_serializing_if = "is_zero")]
    first: usize,
    /// Of a chain: the keys of the states after each step, their first eight digits, one after the other.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    steps: String,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The digits of a step's key in a record.
const STEP_DIGITS: usize = 8;

/// From which step on two runs of a node differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parting {
    /// The node.
    pub node: String,
    /// The first step whose result is another one, from 0; none: the number of steps is all that differs.
    pub step: usize,
    /// T of the newer one.
    pub of: usize,
}

impl Record {
    /// What numbers depend on: device class, data type, kernels.
    #[must_use]
    pub fn numerics(&self) -> &str {
        &self.numerics
    }

    /// What differs from an older record, node by node.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, task) in &self.nodes {
            let change = |what, from: String, to: String| Change {
                node: name.clone(),
                what,
                from,
                to,
            };
            let Some(other) = old.nodes.get(name) else {
                changes.push(change(What::Node, String::new(), task.op_name()));
                continue;
            };
            if task.key == other.key {
                continue;
            }
            if task.op != other.op {
                changes.push(change(What::Op, other.op.clone(), task.op.clone()));
            }
            for (what, from, to) in differences(&other.params, &task.params) {
                changes.push(change(What::Param(what), from, to));
            }
            for (what, from, to) in differences(&other.files, &task.files) {
                changes.push(change(What::File(what), from, to));
            }
            for (what, from, to) in differences(&other.inputs, &task.inputs) {
                changes.push(change(What::Input(what), from, to));
            }
            if self.numerics != old.numerics {
                changes.push(change(
                    What::Numerics,
                    old.numerics.clone(),
                    self.numerics.clone(),
                ));
            }
        }
        for (name, other) in &old.nodes {
            if !self.nodes.contains_key(name) {
                changes.push(Change {
                    node: name.clone(),
                    what: What::Node,
                    from: other.op_name(),
                    to: String::new(),
                });
            }
        }
        changes
    }
}

impl Record {
    /// The nodes: name, op, and the number of steps of one that has some.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, String, usize)> {
        (self.nodes.iter()).map(|(name, node)| {
            (
                name.as_str(),
                node.op_name(),
                node.steps.len() / STEP_DIGITS,
            )
        })
    }

    /// The parameters of a node, their values as JSON.
    pub fn params(&self, node: &str) -> impl Iterator<Item = (&str, &str)> {
        (self.nodes.get(node).into_iter())
            .flat_map(|node| &node.params)
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The nodes that both have, whose steps are not all the same, and from which step on.
    #[must_use]
    pub fn partings(&self, old: &Self) -> Vec<Parting> {
        let mut partings = Vec::new();
        for (name, node) in &self.nodes {
            let Some(other) = old.nodes.get(name) else {
                continue;
            };
            let digits = |node: &NodeRecord| -> Vec<String> {
                (node.steps.as_bytes().chunks(STEP_DIGITS))
                    .map(|digits| String::from_utf8_lossy(digits).into_owned())
                    .collect()
            };
            let (new, old) = (digits(node), digits(other));
            if new == old && node.first == other.first || new.is_empty() || old.is_empty() {
                continue;
            }
            let of = node.first + new.len();
            let first = node.first.max(other.first);
            let at = |steps: &[String], own: usize, step: usize| steps.get(step - own).cloned();
            let same = (first..of)
                .take_while(|step| {
                    let mine = at(&new, node.first, *step);
                    mine.is_some() && mine == at(&old, other.first, *step)
                })
                .count();
            partings.push(Parting {
                node: name.clone(),
                step: first + same,
                of,
            });
        }
        partings
    }
}

impl NodeRecord {
    fn op_name(&self) -> String {
        self.op
            .split_once(' ')
            .map_or(self.op.as_str(), |(op, _)| op)
            .to_owned()
    }
}

/// What differs between two plans at one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The node.
    pub node: String,
    /// What of it.
    pub what: What,
    /// Before; empty when it was not there.
    pub from: String,
    /// After; empty when it is not there.
    pub to: String,
}

/// What of a node differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The node is new or gone.
    Node,
    /// The op or its version.
    Op,
    /// A parameter.
    Param(String),
    /// The content of a file, by its role.
    File(String),
    /// What an input port is linked to, or the key of it.
    Input(String),
    /// What numbers depend on: the device, the data type, the kernels.
    Numerics,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.what {
            What::Node => String::new(),
            What::Op => " op".to_owned(),
            What::Param(name) => format!(".{name}"),
            What::File(role) => format!(" file {role}"),
            What::Input(port) => format!(" input {port}"),
            What::Numerics => " numerics".to_owned(),
        };
        let side = |text: &str| {
            if text.is_empty() {
                "nothing".to_owned()
            } else {
                text.to_owned()
            }
        };
        write!(
            f,
            "{}{what}: {} -> {}",
            self.node,
            side(&self.from),
            side(&self.to)
        )
    }
}

/// What is to be done, keys known before anything runs.
#[derive(Clone, Debug)]
pub struct Plan {
    workflow: String,
    params: Vec<ResolvedParam>,
    numerics: String,
    /// The tasks; their indices are in topological order, the file's order otherwise.
    graph: DiGraph<Task, Edge>,
    outputs: Vec<PlannedOutput>,
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
        let wanted = wanted(checked, targets)?;
        let order = order(checked, wanted.iter().map(|wanted| wanted.link.node));
        let mut graph: DiGraph<Task, Edge> = DiGraph::new();
        let mut by_key: HashMap<Key, usize> = HashMap::new();
        let mut task_of: HashMap<usize, usize> = HashMap::new();
        let mut merged: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut problems = Vec::new();
        for index in order {
            let node = &checked.nodes[index];
            let (guard, digests) = Guard::of(&node.reads, files, |path, error| {
                problems.push(
                    Problem::new(
                        Code::NodeFile,
                        &node.source,
                        node.span,
                        format!("`{}` cannot be read: {error}", path.display()),
                    )
                    .help("check the file and whether it may be read"),
                );
            });
            let inputs: Vec<(&'static str, Vec<(usize, &'static str)>)> = node
                .entry
                .inputs()
                .iter()
                .zip(&node.links)
                .map(|(spec, links)| {
                    let links = links
                        .iter()
                        .filter_map(|link| task_of.get(&link.node).map(|task| (*task, link.port)))
                        .collect();
                    (spec.name, links)
                })
                .collect();
            let ports: Vec<(&'static str, Vec<(Key, &'static str)>)> = inputs
                .iter()
                .zip(node.entry.inputs())
                .filter(|((_, links), spec)| spec.keyed || !links.is_empty())
                .map(|((port, links), _)| {
                    let links = links
                        .iter()
                        .map(|(task, output)| {
                            (graph[NodeIndex::new(*task)].port_key(output), *output)
                        })
                        .collect();
                    (*port, links)
                })
                .collect();
            let key = Ingredients {
                op: node.entry.op(),
                version: node.entry.version(),
                params: &node.params,
                files: &digests,
                ports: &ports,
                numerics,
            }
            .key();
            let task = match by_key.get(&key) {
                Some(task) => *task,
                None => {
                    let edges: Vec<(usize, Edge)> = inputs
                        .iter()
                        .flat_map(|(to, links)| {
                            links.iter().map(|(task, from)| (*task, Edge { from, to }))
                        })
                        .collect();
                    let chained = node.node.chain(&Upstream {
                        key,
                        files: &digests,
                        numerics,
                        links: up_links(&graph, &inputs),
                        known: &node.known,
                    });
                    let Chained {
                        note,
                        ports,
                        chain,
                        calls,
                    } = chained;
                    let lazy = inputs.iter().flat_map(|(_, links)| links);
                    let lazy = lazy.filter_map(|(from, port)| {
                        let from = &graph[NodeIndex::new(*from)];
                        from.is_lazy(port).then_some(&from.guard)
                    });
                    let guard = guard.with(lazy);
                    let added = graph.add_node(Task {
                        names: Vec::new(),
                        entry: Arc::clone(&node.entry),
                        key,
                        node: Arc::clone(&node.node),
                        inputs,
                        params: Arc::clone(&node.params),
                        files: digests,
                        guard,
                        ports,
                        chain: chain.map(Arc::new),
                        note,
                        calls,
                    });
                    for (task, edge) in edges {
                        graph.add_edge(NodeIndex::new(task), added, edge);
                    }
                    by_key.insert(key, added.index());
                    added.index()
                }
            };
            task_of.insert(index, task);
            merged.entry(task).or_default().push(index);
        }
        if !problems.is_empty() {
            return Err(Problems::new(problems));
        }
        for (task, mut nodes) in merged {
            nodes.sort_unstable();
            graph[NodeIndex::new(task)].names = nodes
                .into_iter()
                .map(|node| checked.nodes[node].name.clone())
                .collect();
        }
        let outputs = wanted
            .into_iter()
            .filter_map(|wanted| {
                Some(PlannedOutput {
                    name: wanted.name,
                    task: *task_of.get(&wanted.link.node)?,
                    port: wanted.link.port,
                    save: wanted.save,
                    required: wanted.required,
                })
            })
            .collect();
        Ok(Self {
            workflow: checked.name.clone(),
            params: checked.params.clone(),
            numerics: numerics.to_owned(),
            graph,
            outputs,
        })
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

    /// The tasks in the order in which one thread would run them.
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

    /// The same plan, but of what is linked to these input ports of a task alone: its outputs, saved nowhere, are called by
    /// the port, those of a list one after another. Whoever wants to look at what a node worked with runs this one.
    #[must_use]
    pub fn inputs_of(&self, task: usize, ports: &[&str]) -> Self {
        let links = self.task(task).into_iter().flat_map(|task| &task.inputs);
        let outputs = links
            .filter(|(name, _)| ports.contains(name))
            .flat_map(|(name, links)| {
                links.iter().map(|&(task, port)| PlannedOutput {
                    name: (*name).to_owned(),
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

    /// Lets pictures be saved that were asked for by the name of a node, which says no path: `{workflow}/{node}.png`. A picture
    /// is what is saved as .png unless asked otherwise.
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

    /// The names of each task, in order.
    pub(crate) fn names_mut(&mut self) -> impl Iterator<Item = &mut Vec<String>> {
        self.graph.node_weights_mut().map(|task| &mut task.names)
    }

    /// The tasks and their links as a graph.
    #[must_use]
    pub fn graph(&self) -> &DiGraph<Task, Edge> {
        &self.graph
    }

    /// Which tasks will run, and why; by index.
    #[must_use]
    pub fn statuses(&self, cache: &dyn Cache) -> Vec<Status> {
        self.forecast(cache, u64::MAX).statuses
    }

    /// What a run would do: which tasks run and why, where they resume, how many calls of a network they make. `sources`
    /// is the budget in bytes of what calls give besides (see [`Item::large`](crate::op::chain::Item::large)).
    #[must_use]
    pub fn forecast(&self, cache: &dyn Cache, sources: u64) -> Forecast {
        let (statuses, ports) = self.decide(|_, task, ports| {
            ports
                .iter()
                .map(|port| cache.place(&task.port_key(port)))
                .reduce(|all, one| Some(slower(all?, one?)))
                .flatten()
        });
        self.forecast_of(statuses, ports, cache, sources)
    }

    pub(crate) fn forecast_of(
        &self,
        mut statuses: Vec<Status>,
        ports: Vec<BTreeSet<&'static str>>,
        cache: &dyn Cache,
        sources: u64,
    ) -> Forecast {
        let mut resumes = vec![None; self.len()];
        let mut calls = vec![0; self.len()];
        let mut chains = Vec::new();
        let mut places = Vec::new();
        for (index, task) in self.tasks().enumerate() {
            if !matches!(statuses[index], Status::Run(_)) {
                continue;
            }
            calls[index] = task.calls;
            if let Some(chain) = &task.chain {
                let looks = chain.looks.is_some_and(|port| ports[index].contains(port));
                chains.push((&**chain, looks));
                places.push(index);
            }
        }
        let (left, wanted, kept_bytes) = forecast(&chains, cache, sources);
        for ((index, (chain, _)), (done, count)) in places.into_iter().zip(&chains).zip(left) {
            resumes[index] = Some(Resume {
                first: chain.first,
                at: chain.first + done,
                of: chain.end(),
            });
            calls[index] += count;
        }
        for index in 0..statuses.len() {
            if !matches!(statuses[index], Status::Run(_)) {
                continue;
            }
            let before: BTreeSet<usize> = self
                .upstream(index)
                .filter(|task| matches!(statuses[*task], Status::Run(_)))
                .collect();
            if !before.is_empty() {
                let names = before
                    .into_iter()
                    .map(|task| self.graph[NodeIndex::new(task)].name().to_owned())
                    .collect();
                statuses[index] = Status::Run(Reason::Upstream(names));
            }
        }
        Forecast {
            statuses,
            resumes,
            calls,
            ports,
            wanted,
            kept_bytes,
        }
    }

    /// Decides from the outputs backwards; `place` is asked only for what is needed, with the ports that are.
    pub(crate) fn decide(
        &self,
        mut place: impl FnMut(usize, &Task, &BTreeSet<&'static str>) -> Option<&'static str>,
    ) -> (Vec<Status>, Vec<BTreeSet<&'static str>>) {
        let mut statuses = vec![Status::NotNeeded; self.len()];
        let mut ports: Vec<BTreeSet<&'static str>> = vec![BTreeSet::new(); self.len()];
        for output in &self.outputs {
            ports[output.task].insert(output.port);
        }
        for index in (0..self.len()).rev() {
            if ports[index].is_empty() {
                continue;
            }
            let task = &self.graph[NodeIndex::new(index)];
            statuses[index] = match place(index, task, &ports[index]) {
                Some(place) => Status::Cached(place),
                None => {
                    for (_, links) in &task.inputs {
                        for (from, output) in links {
                            ports[*from].insert(output);
                        }
                    }
                    Status::Run(Reason::NotCached)
                }
            };
        }
        (statuses, ports)
    }

    pub(crate) fn upstream(&self, index: usize) -> impl Iterator<Item = usize> {
        self.graph
            .neighbors_directed(NodeIndex::new(index), Direction::Incoming)
            .map(NodeIndex::index)
    }

    /// The tasks that are linked to one, once for each link.
    pub(crate) fn downstream(&self, index: usize) -> impl Iterator<Item = usize> {
        self.graph
            .neighbors_directed(NodeIndex::new(index), Direction::Outgoing)
            .map(NodeIndex::index)
    }

    /// What differs from another plan, node by node.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> Vec<Change> {
        self.record().changes_since(&old.record())
    }

    /// What the keys of the nodes come from, to be kept and compared with another plan's.
    #[must_use]
    pub fn record(&self) -> Record {
        let mut nodes: Vec<(usize, String, NodeRecord)> = Vec::new();
        for (index, task) in self.tasks().enumerate() {
            let record = NodeRecord {
                key: task.key.to_string(),
                op: format!("{} {}", task.op(), task.entry.version()),
                params: params(task),
                files: digests(task),
                inputs: self.links(task),
                first: task.chain.as_ref().map_or(0, |chain| chain.first),
                steps: (task.chain.iter())
                    .flat_map(|chain| &chain.states)
                    .filter_map(|keys| Some(keys.first()?.to_string()[..STEP_DIGITS].to_owned()))
                    .collect(),
            };
            for name in &task.names {
                nodes.push((index, name.clone(), record.clone()));
            }
        }
        nodes.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        Record {
            numerics: self.numerics.clone(),
            nodes: nodes
                .into_iter()
                .map(|(_, name, record)| (name, record))
                .collect(),
        }
    }

    fn links(&self, task: &Task) -> Vec<(String, String)> {
        task.inputs
            .iter()
            .filter(|(_, links)| !links.is_empty())
            .map(|(port, links)| {
                let links: Vec<String> = links
                    .iter()
                    .map(|(from, output)| {
                        let from = &self.graph[NodeIndex::new(*from)];
                        format!(
                            "{}.{output} ({})",
                            from.name(),
                            from.port_key(output).short()
                        )
                    })
                    .collect();
                ((*port).to_owned(), links.join(", "))
            })
            .collect()
    }

    /// The plan in the language of Graphviz.
    #[must_use]
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph workflow {\n  rankdir=LR;\n  node [shape=box];\n");
        let quoted =
            |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        for (index, task) in self.tasks().enumerate() {
            let label =
                quoted(&format!("{}\n{}", task.names.join(", "), task.op())).replace('\n', "\\n");
            let _ = writeln!(dot, "  n{index} [label={label}];");
        }
        for (index, output) in self.outputs.iter().enumerate() {
            let label = quoted(&output.name);
            let _ = writeln!(dot, "  o{index} [label={label}, shape=oval];");
        }
        for (index, task) in self.tasks().enumerate() {
            for (to, links) in &task.inputs {
                for (from, output) in links {
                    let label = quoted(&arrow(output, to));
                    let _ = writeln!(dot, "  n{from} -> n{index} [label={label}];");
                }
            }
        }
        for (index, output) in self.outputs.iter().enumerate() {
            let _ = writeln!(dot, "  n{} -> o{index};", output.task);
        }
        dot.push_str("}\n");
        dot
    }

    /// The plan as a Mermaid flow chart.
    #[must_use]
    pub fn to_mermaid(&self) -> String {
        let mut chart = String::from("flowchart LR\n");
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "#quot;"));
        for (index, task) in self.tasks().enumerate() {
            let label = quoted(&format!("{}<br/>{}", task.names.join(", "), task.op()));
            let _ = writeln!(chart, "  n{index}[{label}]");
        }
        for (index, output) in self.outputs.iter().enumerate() {
            let _ = writeln!(chart, "  o{index}([{}])", quoted(&output.name));
        }
        for (index, task) in self.tasks().enumerate() {
            for (to, links) in &task.inputs {
                for (from, output) in links {
                    let label = quoted(&arrow(output, to));
                    let _ = writeln!(chart, "  n{from} -->|{label}| n{index}");
                }
            }
        }
        for (index, output) in self.outputs.iter().enumerate() {
            let _ = writeln!(chart, "  n{} --> o{index}", output.task);
        }
        chart
    }
}

fn up_links(
    graph: &DiGraph<Task, Edge>,
    inputs: &[(&'static str, Vec<(usize, &'static str)>)],
) -> Vec<(&'static str, Vec<chain::UpLink>)> {
    inputs
        .iter()
        .map(|(port, links)| {
            let links = links
                .iter()
                .map(|(from, output)| {
                    let from = &graph[NodeIndex::new(*from)];
                    Upstream::up(from.port_key(output), output, from.note.clone())
                })
                .collect();
            (*port, links)
        })
        .collect()
}

fn arrow(from: &str, to: &str) -> String {
    if from == to {
        to.to_owned()
    } else {
        format!("{from} to {to}")
    }
}

fn params(task: &Task) -> Vec<(String, String)> {
    task.params
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.to_string()))
        .collect()
}

fn digests(task: &Task) -> Vec<(String, String)> {
    task.files
        .iter()
        .map(|(role, digest)| (role.clone(), Key(*digest).short()))
        .collect()
}

/// The names whose text differs, or that only one side has.
fn differences(
    before: &[(String, String)],
    after: &[(String, String)],
) -> Vec<(String, String, String)> {
    let find = |side: &[(String, String)], name: &str| {
        side.iter()
            .find(|(known, _)| known == name)
            .map(|(_, text)| text.clone())
    };
    let mut differences = Vec::new();
    for (name, to) in after {
        let from = find(before, name).unwrap_or_default();
        if from != *to {
            differences.push((name.clone(), from, to.clone()));
        }
    }
    for (name, from) in before {
        if find(after, name).is_none() {
            differences.push((name.clone(), from.clone(), String::new()));
        }
    }
    differences
}

struct Asked {
    name: String,
    link: Link,
    save: Option<String>,
    required: bool,
}

/// What to do about `seed=5` among the targets.
pub(crate) fn forgotten_set(target: &str) -> Option<String> {
    let (name, _) = target.split_once('=')?;
    crate::syntax::template::is_name(name.trim())
        .then(|| format!("a param is set with `--set {target}`"))
}

fn wanted(checked: &Checked, targets: &[String]) -> Result<Vec<Asked>, Problems> {
    let output = |output: &crate::check::CheckedOutput| Asked {
        name: output.name.clone(),
        link: output.link,
        save: output.save.clone(),
        required: true,
    };
    if targets.is_empty() {
        if checked.outputs.is_empty() {
            return Err(Problem::new(
                Code::NothingToRun,
                &checked.source,
                Span::default(),
                "the workflow has no outputs, so there is nothing to make",
            )
            .help("add `outputs:`, or name a node to run")
            .into());
        }
        return Ok(checked.outputs.iter().map(output).collect());
    }
    let nodes: HashMap<&str, usize> = checked
        .nodes
        .iter()
        .enumerate()
        .map(|(index, node)| (node.name.as_str(), index))
        .collect();
    let mut wanted: Vec<Asked> = Vec::new();
    let mut problems = Vec::new();
    let mut from = "run ".len();
    for target in targets {
        let (only_output, only_node) = (
            target.strip_prefix("outputs."),
            target.strip_prefix("nodes."),
        );
        let named = checked.outputs.iter().find(|known| {
            only_node.is_none() && known.name == only_output.unwrap_or(target.as_str())
        });
        let node_name = only_node.unwrap_or(target);
        let group: Vec<usize> = match nodes.get(node_name) {
            _ if only_output.is_some() => Vec::new(),
            Some(index) => vec![*index],
            None => checked.groups.get(node_name).cloned().unwrap_or_default(),
        };
        if let Some(named) = named {
            wanted.push(output(named));
        } else if !group.is_empty() {
            for index in group {
                let node = &checked.nodes[index];
                for spec in node.entry.outputs() {
                    wanted.push(Asked {
                        name: format!("{}.{}", node.name, spec.name),
                        link: Link {
                            node: index,
                            port: spec.name,
                        },
                        save: None,
                        required: false,
                    });
                }
            }
        } else {
            let line = format!("run {}", targets.join(" "));
            let known = checked
                .outputs
                .iter()
                .map(|output| output.name.as_str())
                .chain(checked.nodes.iter().map(|node| node.name.as_str()));
            problems.push(
                Problem::new(
                    Code::UnknownTarget,
                    &Source::command_line(line),
                    Span::new(from, from + target.len()),
                    format!("the workflow has neither an output nor a node `{target}`"),
                )
                .maybe_help(
                    forgotten_set(target)
                        .or_else(|| suggest::hint(target, "outputs and nodes", known)),
                ),
            );
        }
        from += target.len() + 1;
    }
    if !problems.is_empty() {
        return Err(Problems::new(problems));
    }
    // A target that is named twice is one.
    let mut seen = std::collections::HashSet::new();
    wanted.retain(|wanted| seen.insert(wanted.name.clone()));
    Ok(wanted)
}

/// The nodes that the wanted ones need, each after what it needs itself, the file's order otherwise.
fn order(checked: &Checked, wanted: impl Iterator<Item = usize>) -> Vec<usize> {
    let count = checked.nodes.len();
    let mut needed = vec![false; count];
    let mut open: Vec<usize> = wanted.collect();
    while let Some(index) = open.pop() {
        if !std::mem::replace(&mut needed[index], true) {
            open.extend(
                checked.nodes[index]
                    .links
                    .iter()
                    .flatten()
                    .map(|link| link.node),
            );
        }
    }
    let mut waits = vec![0usize; count];
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (index, node) in checked.nodes.iter().enumerate() {
        if needed[index] {
            for link in node.links.iter().flatten() {
                waits[index] += 1;
                next[link.node].push(index);
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..count)
        .filter(|index| needed[*index] && waits[*index] == 0)
        .map(Reverse)
        .collect();
    let mut order = Vec::with_capacity(count);
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &after in &next[index] {
            waits[after] -= 1;
            if waits[after] == 0 {
                ready.push(Reverse(after));
            }
        }
    }
    order
}
