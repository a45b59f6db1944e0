//! What the keys of a plan's nodes come from, kept and compared with another plan's.

use std::fmt;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::base::key::Key;
use crate::plan::plan::Plan;
use crate::plan::task::Task;

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

/// The step from which two runs of a node differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Divergence {
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
    pub fn divergences(&self, old: &Self) -> Vec<Divergence> {
        let mut divergences = Vec::new();
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
            divergences.push(Divergence {
                node: name.clone(),
                step: first + same,
                of,
            });
        }
        divergences
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

impl Plan {
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
                key: task.key().to_string(),
                op: format!("{} {}", task.op(), task.entry().version()),
                params: params(task),
                files: digests(task),
                inputs: links(self, index),
                first: task.chain().map_or(0, |chain| chain.first),
                steps: (task.chain().into_iter())
                    .flat_map(|chain| &chain.states)
                    .filter_map(|keys| Some(keys.first()?.to_string()[..STEP_DIGITS].to_owned()))
                    .collect(),
            };
            for name in task.names() {
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
}

/// For each input port that is linked: the output ports that it is linked to, with the short keys of their values.
fn links(plan: &Plan, task: usize) -> Vec<(String, String)> {
    (plan.inputs(task).into_iter())
        .filter(|(_, links)| !links.is_empty())
        .map(|(port, links)| {
            let links: Vec<String> = (links.into_iter())
                .filter_map(|(from, output)| {
                    let from = plan.task(from)?;
                    let key = from.port_key(output).short();
                    Some(format!("{}.{output} ({key})", from.name()))
                })
                .collect();
            (port.to_owned(), links.join(", "))
        })
        .collect()
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
