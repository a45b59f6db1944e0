//! A plan as a drawing: for Graphviz, for Mermaid.

use std::fmt::Write as _;

use crate::plan::plan::Plan;
use crate::plan::task::Edge;

impl Plan {
    /// The plan in the language of Graphviz.
    #[must_use]
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph workflow {\n  rankdir=LR;\n  node [shape=box];\n");
        let quoted =
            |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        for (index, task) in self.tasks().enumerate() {
            let label =
                quoted(&format!("{}\n{}", task.names().join(", "), task.op())).replace('\n', "\\n");
            let _ = writeln!(dot, "  n{index} [label={label}];");
        }
        for (index, output) in self.outputs().iter().enumerate() {
            let label = quoted(&output.name);
            let _ = writeln!(dot, "  o{index} [label={label}, shape=oval];");
        }
        for index in 0..self.len() {
            for (from, edge) in self.incoming(index) {
                let label = quoted(&arrow(edge));
                let _ = writeln!(dot, "  n{from} -> n{index} [label={label}];");
            }
        }
        for (index, output) in self.outputs().iter().enumerate() {
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
            let label = quoted(&format!("{}<br/>{}", task.names().join(", "), task.op()));
            let _ = writeln!(chart, "  n{index}[{label}]");
        }
        for (index, output) in self.outputs().iter().enumerate() {
            let _ = writeln!(chart, "  o{index}([{}])", quoted(&output.name));
        }
        for index in 0..self.len() {
            for (from, edge) in self.incoming(index) {
                let label = quoted(&arrow(edge));
                let _ = writeln!(chart, "  n{from} -->|{label}| n{index}");
            }
        }
        for (index, output) in self.outputs().iter().enumerate() {
            let _ = writeln!(chart, "  n{} --> o{index}", output.task);
        }
        chart
    }
}

/// The ports of a link.
fn arrow(edge: Edge) -> String {
    let Edge { from, to } = edge;
    if from == to {
        to.to_owned()
    } else {
        format!("{from} to {to}")
    }
}
