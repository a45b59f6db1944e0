//! Order and reachability in graphs whose nodes are numbered.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::algo::{astar, tarjan_scc};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{Dfs, Reversed};

/// A graph of `count` nodes with these edges, `(from, to)`.
pub(crate) fn graph(
    count: usize,
    edges: impl IntoIterator<Item = (usize, usize)>,
) -> DiGraph<(), ()> {
    let mut graph = DiGraph::with_capacity(count, 0);
    for _ in 0..count {
        graph.add_node(());
    }
    for (from, to) in edges {
        graph.add_edge(NodeIndex::new(from), NodeIndex::new(to), ());
    }
    graph
}

/// For each node: whether it is one of `roots`, or one of them can be reached from it.
pub(crate) fn needed<N, E>(
    graph: &DiGraph<N, E>,
    roots: impl IntoIterator<Item = usize>,
) -> Vec<bool> {
    let upstream = Reversed(graph);
    let mut walk = Dfs::empty(upstream);
    walk.stack.extend(roots.into_iter().map(NodeIndex::new));
    let mut needed = vec![false; graph.node_count()];
    while let Some(node) = walk.next(upstream) {
        needed[node.index()] = true;
    }
    needed
}

/// The nodes so that each comes after those that have edges to it, the lowest first of those that may come next. Nodes of
/// a cycle, and those that can be reached from one, are left out.
///
/// [`petgraph::algo::toposort`] keeps no order among nodes that do not depend on each other; here it is the file's.
pub(crate) fn topological<N, E>(graph: &DiGraph<N, E>) -> Vec<usize> {
    let mut waits: Vec<usize> = (graph.node_indices())
        .map(|node| graph.edges_directed(node, Incoming).count())
        .collect();
    let free = (graph.node_indices()).filter(|node| waits[node.index()] == 0);
    let mut ready: BinaryHeap<Reverse<NodeIndex>> = free.map(Reverse).collect();
    let mut order = Vec::with_capacity(waits.len());
    while let Some(Reverse(node)) = ready.pop() {
        order.push(node.index());
        for after in graph.neighbors_directed(node, Outgoing) {
            waits[after.index()] -= 1;
            if waits[after.index()] == 0 {
                ready.push(Reverse(after));
            }
        }
    }
    order
}

/// Of each strongly connected component the shortest cycle through its lowest node, which it begins with.
pub(crate) fn cycles<N, E>(graph: &DiGraph<N, E>) -> Vec<Vec<usize>> {
    let mut heads: Vec<NodeIndex> = (tarjan_scc(graph).iter())
        .filter_map(|component| {
            let head = *component.iter().min()?;
            (component.len() > 1 || graph.contains_edge(head, head)).then_some(head)
        })
        .collect();
    heads.sort();
    let cycle = |head: &NodeIndex| {
        let closes = |node| graph.contains_edge(node, *head);
        let (_, path) = astar(graph, *head, closes, |_| 1usize, |_| 0)?;
        Some(path.into_iter().map(NodeIndex::index).collect())
    };
    heads.iter().filter_map(cycle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_file_order_holds_where_no_edge_says_otherwise() {
        let one = graph(5, [(3, 1), (4, 0), (4, 0)]);
        assert_eq!(topological(&one), [2, 3, 1, 4, 0]);
        assert_eq!(needed(&one, [0]), [true, false, false, false, true]);
    }

    #[test]
    fn nodes_of_a_cycle_and_those_behind_it_are_left_out() {
        let one = graph(6, [(0, 1), (1, 2), (2, 1), (2, 3), (5, 5)]);
        assert_eq!(topological(&one), [0, 4]);
        assert_eq!(cycles(&one), [vec![1, 2], vec![5]]);
    }

    #[test]
    fn of_nested_cycles_the_shortest_through_the_first_node_is_given() {
        let one = graph(6, [(3, 1), (1, 4), (4, 3), (4, 5), (5, 1), (5, 4), (4, 1)]);
        assert_eq!(cycles(&one), [vec![1, 4]]);
        assert!(cycles(&graph(3, [(0, 1), (1, 2), (0, 2)])).is_empty());
    }

    proptest! {
        #[test]
        fn it_agrees_with_petgraph(edges in prop::collection::vec((0usize..12, 0usize..12), 0..30)) {
            let one = graph(12, edges.iter().copied());
            let order = topological(&one);
            prop_assert_eq!(order.len() == 12, petgraph::algo::toposort(&one, None).is_ok());
            prop_assert_eq!(order.len() == 12, cycles(&one).is_empty());
            let place = |node: usize| order.iter().position(|one| *one == node);
            for (from, to) in edges {
                prop_assert!(place(to).is_none() || place(from) < place(to));
            }
            let reached = needed(&one, [7]);
            for (node, reached) in reached.into_iter().enumerate() {
                let path = petgraph::algo::has_path_connecting(
                    &one,
                    NodeIndex::new(node),
                    NodeIndex::new(7),
                    None,
                );
                prop_assert_eq!(reached, path);
            }
        }
    }
}
