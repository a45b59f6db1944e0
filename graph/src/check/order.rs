//! The order of the nodes, and cycles among them.

use crate::base::order;
use crate::base::problem::{Code, Problem, Span};
use crate::check::checker::Checker;

impl Checker<'_> {
    /// The nodes in topological order, otherwise in the file's order; those of a cycle are left out.
    pub(super) fn order(&mut self) -> Vec<usize> {
        let links = (self.flat.iter().enumerate()).flat_map(|(to, flat)| {
            let links = flat.links.iter().flatten();
            links.map(move |(link, _)| (link.node, to))
        });
        let graph = order::graph(self.flat.len(), links);
        let order = order::topological(&graph);
        if order.len() < self.flat.len() {
            self.cycles(&order::cycles(&graph));
        }
        order
    }

    /// Reports cycles, each in the direction of the data.
    fn cycles(&mut self, cycles: &[Vec<usize>]) {
        for cycle in cycles {
            let (head, last) = match (cycle.first(), cycle.last()) {
                (Some(head), Some(last)) => (*head, *last),
                _ => continue,
            };
            let mut names: Vec<String> = cycle
                .iter()
                .take(20)
                .map(|node| self.node_name(*node))
                .collect();
            if cycle.len() > 20 {
                names.push("…".to_owned());
            }
            names.push(self.node_name(head));
            let span = self.flat[head]
                .links
                .iter()
                .flatten()
                .find(|(link, _)| link.node == last)
                .map_or(Span::default(), |(_, span)| *span);
            let source = &self.scopes[self.flat[head].scope].workflow.source;
            let message = if cycle.len() == 1 {
                format!("`{}` needs its own output", self.node_name(head))
            } else {
                format!("the nodes wait for each other: {}", names.join(" -> "))
            };
            self.problems.push(
                Problem::new(Code::Cycle, source, span, message).help("cut one of the links"),
            );
        }
    }
}
