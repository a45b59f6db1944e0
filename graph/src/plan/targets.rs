//! What a plan is to make: the outputs and nodes that are named.

use std::collections::{HashMap, HashSet};

use crate::base::problem::{Code, Problem, Problems, Source, Span};
use crate::base::suggest;
use crate::check::{Checked, CheckedOutput, Link};
use crate::syntax::template;

/// An output that is to be made.
pub(super) struct Target {
    pub(super) name: String,
    pub(super) link: Link,
    pub(super) save: Option<String>,
    /// Whether the run fails when the node does not give it.
    pub(super) required: bool,
}

/// What to do about `seed=5` among the targets.
pub(crate) fn forgotten_set(target: &str) -> Option<String> {
    let (name, _) = target.split_once('=')?;
    template::is_name(name.trim()).then(|| format!("a param is set with `--set {target}`"))
}

/// The outputs that the targets name: all of the workflow when there are none.
pub(super) fn find(checked: &Checked, targets: &[String]) -> Result<Vec<Target>, Problems> {
    let output = |output: &CheckedOutput| Target {
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
    let mut found: Vec<Target> = Vec::new();
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
            found.push(output(named));
        } else if !group.is_empty() {
            for index in group {
                let node = &checked.nodes[index];
                for spec in node.entry.outputs() {
                    found.push(Target {
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
    let mut seen = HashSet::new();
    found.retain(|target| seen.insert(target.name.clone()));
    Ok(found)
}
