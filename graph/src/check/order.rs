//! The order of the nodes, and cycles among them.

use crate::base::order;
use crate::base::problem::{Code, Problem, Span};
use crate::check::checker::Checker;

impl Checker<'_> {
    /// The nodes so that each comes after what it needs, the file's order otherwise; those of a cycle are left out.
    pub(super) fn order(&mut self) -> Vec<usize> {
        let links = (self.flat.iter().enumerate()).flat_map(|(to, flat)| {
            let links = flat.links.iter().flatten();
            links.map(move |(link, _)| (link.node, to))
        });
        let order = order::topological(&order::graph(self.flat.len(), links));
        if order.len() < self.flat.len() {
            let mut waits = vec![true; self.flat.len()];
            order.iter().for_each(|index| waits[*index] = false);
            self.cycles(&waits);
        }
        order
    }

    /// Reports each cycle among the nodes that still wait.
    fn cycles(&mut self, waits: &[bool]) {
        let mut seen = vec![0usize; waits.len()];
        let mut round = 0;
        for start in 0..waits.len() {
            if !waits[start] || seen[start] != 0 {
                continue;
            }
            round += 1;
            // Every node that waits has a predecessor that waits, so walking back ends in a cycle or on a known trail.
            let mut trail = Vec::new();
            let mut at = start;
            while seen[at] == 0 {
                seen[at] = round;
                trail.push(at);
                let before = self.flat[at]
                    .links
                    .iter()
                    .flatten()
                    .map(|(link, _)| link.node)
                    .find(|node| waits[*node]);
                match before {
                    Some(before) => at = before,
                    None => break,
                }
            }
            if seen[at] != round {
                continue;
            }
            let Some(from) = trail.iter().position(|node| *node == at) else {
                continue;
            };
            let mut cycle: Vec<usize> = trail[from..].to_vec();
            // Walked backwards; told in the direction of the data, beginning with the first of the file.
            cycle.reverse();
            let first = cycle
                .iter()
                .enumerate()
                .min_by_key(|(_, node)| **node)
                .map_or(0, |(position, _)| position);
            cycle.rotate_left(first);
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
