//! Where the nodes of a graph go: in layers from left to right, few crossings, short links (Sugiyama, Tagawa and Toda
//! 1981). The nodes of an open group are laid out by themselves; in the graph around it the group is one large box.
//!
//! Cycles and order are `petgraph`'s. Layers and places are computed here, as the crates that do it (`rust-sugiyama`,
//! `layout-rs`) have no groups: here a group is one box in the graph around it and a graph of its own when it is open.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use petgraph::algo::{greedy_feedback_arc_set, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::model::Graph;

/// The height of a node's box, in points at zoom 1.
pub const NODE_HEIGHT: f32 = 66.0;
/// The least and the greatest width of a node's box.
const WIDTHS: (f32, f32) = (124.0, 250.0);
/// Points between two boxes of a layer.
const ROW_GAP: f32 = 22.0;
/// Points between a box and a link that passes it.
const PASS_GAP: f32 = 12.0;
/// Points between layers.
const COLUMN_GAP: f32 = 48.0;
/// Points between the frame of a group and what is in it; above there is its name as well.
pub const FRAME: f32 = 18.0;
/// Points for the name of an open group.
pub const HEADER: f32 = 30.0;
/// Passes over the layers, each way, that reduce crossings.
const SWEEPS: usize = 12;
/// Passes over the layers, each way, that straighten links.
const STRAIGHTEN: usize = 10;

/// A rectangle in points at zoom 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Place {
    /// Left.
    pub x: f32,
    /// Top.
    pub y: f32,
    /// Width.
    pub width: f32,
    /// Height.
    pub height: f32,
}

impl Place {
    fn moved(self, x: f32, y: f32) -> Self {
        Self {
            x: self.x + x,
            y: self.y + y,
            ..self
        }
    }

    /// Its middle, from the top.
    #[must_use]
    pub fn middle(&self) -> f32 {
        self.y + self.height / 2.0
    }
}

/// What is drawn as one box or frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// A node, by index.
    Node(usize),
    /// A closed group, by index.
    Group(usize),
}

/// A link, or several of one type between the same boxes.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Where it begins.
    pub from: Item,
    /// Where it ends.
    pub to: Item,
    /// The type of the value.
    pub kind: &'static str,
    /// The links of the graph that it stands for.
    pub edges: Vec<usize>,
    /// The points that it goes through, from the right side of one box to the left side of the other.
    pub points: Vec<(f32, f32)>,
}

/// Where everything is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// The boxes, in the order of the file.
    pub items: Vec<(Item, Place)>,
    /// The frames of open groups, outer ones first.
    pub frames: Vec<(usize, Place)>,
    /// The links.
    pub routes: Vec<Route>,
    /// The size of it all.
    pub size: (f32, f32),
}

impl Layout {
    /// Where a box is.
    #[must_use]
    pub fn place(&self, item: Item) -> Option<Place> {
        let found = self.items.iter().find(|(other, _)| *other == item);
        found.map(|(_, place)| *place)
    }
}

/// A digest of all that a layout depends on: it stays as it is while this does.
#[must_use]
pub fn shape(graph: &Graph, open: &BTreeSet<String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for node in &graph.nodes {
        (node.name(), node.op).hash(&mut hasher);
    }
    for edge in &graph.edges {
        (edge.from, edge.from_port, edge.to, edge.to_port).hash(&mut hasher);
    }
    open.hash(&mut hasher);
    hasher.finish()
}

/// The width that a box needs for its texts.
fn width_of(label: &str, below: &str) -> f32 {
    let wanted = (label.chars().count() as f32 * 7.4).max(below.chars().count() as f32 * 6.0);
    (wanted + 42.0).clamp(WIDTHS.0, WIDTHS.1)
}

/// Lays a graph out; `open`: the names of the groups that are open.
#[must_use]
pub fn layout(graph: &Graph, open: &BTreeSet<String>) -> Layout {
    let is_open: Vec<bool> = (graph.groups.iter())
        .map(|group| open.contains(&group.name))
        .collect();
    // What is drawn for each node: itself, or the outermost closed group that it is in.
    let shown: Vec<Item> = (graph.nodes.iter().enumerate())
        .map(|(index, node)| {
            let mut item = Item::Node(index);
            let mut group = node.group;
            while let Some(at) = group {
                if !is_open[at] {
                    item = Item::Group(at);
                }
                group = graph.groups[at].parent;
            }
            item
        })
        .collect();
    let mut routes: BTreeMap<(Item, Item, &'static str), Vec<usize>> = BTreeMap::new();
    for (index, edge) in graph.edges.iter().enumerate() {
        let (from, to) = (shown[edge.from], shown[edge.to]);
        if from != to {
            let route = routes.entry((from, to, edge.kind)).or_default();
            route.push(index);
        }
    }
    let mut layout = Layout::default();
    let mut passes = Passes::new();
    let ends: Vec<(Item, Item)> = routes.keys().map(|(from, to, _)| (*from, *to)).collect();
    layout.size = level(graph, &shown, &ends, None, &mut layout, &mut passes);
    layout.items.sort_by_key(|(item, _)| *item);
    layout.frames.sort_by_key(|(group, _)| *group);
    layout.routes = routes
        .into_iter()
        .map(|((from, to, kind), edges)| Route {
            from,
            to,
            kind,
            edges,
            points: passes.get(&(from, to)).cloned().unwrap_or_default(),
        })
        .collect();
    attach(&mut layout);
    layout
}

/// The group that an item is directly in.
fn parent(graph: &Graph, item: Item) -> Option<usize> {
    match item {
        Item::Node(node) => graph.nodes[node].group,
        Item::Group(group) => graph.groups[group].parent,
    }
}

/// The points that the links between two boxes go through.
type Passes = HashMap<(Item, Item), Vec<(f32, f32)>>;

/// Something that is placed on one level: a box, or a whole open group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Block {
    Item(Item),
    Open(usize),
}

/// Lays out what is directly in a group, or in none, from (0, 0) on, and what is in there recursively; gives the size.
// Long: one sweep of the algorithm over shared tables.
fn level(
    graph: &Graph,
    shown: &[Item],
    ends: &[(Item, Item)],
    within: Option<usize>,
    layout: &mut Layout,
    passes: &mut Passes,
) -> (f32, f32) {
    // The block of this level that holds an item; none when the item is not in here.
    let block_of = |item: Item| -> Option<Block> {
        let mut block = Block::Item(item);
        let mut up = parent(graph, item);
        loop {
            if up == within {
                return Some(block);
            }
            let at = up?;
            block = Block::Open(at);
            up = graph.groups[at].parent;
        }
    };
    let mut blocks: Vec<Block> = Vec::new();
    let mut number: HashMap<Block, usize> = HashMap::new();
    for item in shown {
        if let Some(block) = block_of(*item)
            && !number.contains_key(&block)
        {
            number.insert(block, blocks.len());
            blocks.push(block);
        }
    }
    let mut sizes = Vec::with_capacity(blocks.len());
    let mut inner: Vec<Option<(Layout, Passes)>> = Vec::new();
    for block in &blocks {
        match block {
            Block::Item(Item::Node(node)) => {
                let node = &graph.nodes[*node];
                let width = width_of(&node.label, node.op);
                // `1.8 s, from 10 of 50`
                let least = if node.steps.is_some() { 166.0 } else { 0.0 };
                sizes.push((width.max(least), NODE_HEIGHT));
                inner.push(None);
            }
            Block::Item(Item::Group(group)) => {
                let group = &graph.groups[*group];
                sizes.push((width_of(&group.label, "graph of 00 nodes"), NODE_HEIGHT));
                inner.push(None);
            }
            Block::Open(group) => {
                let (mut own, mut own_passes) = (Layout::default(), HashMap::new());
                let (width, height) =
                    level(graph, shown, ends, Some(*group), &mut own, &mut own_passes);
                sizes.push((width + 2.0 * FRAME, height + FRAME + HEADER));
                inner.push(Some((own, own_passes)));
            }
        }
    }
    let mut links: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut of_link: HashMap<(usize, usize), Vec<(Item, Item)>> = HashMap::new();
    for (from, to) in ends {
        if let (Some(a), Some(b)) = (block_of(*from), block_of(*to))
            && a != b
        {
            let link = (number[&a], number[&b]);
            links.insert(link);
            of_link.entry(link).or_default().push((*from, *to));
        }
    }
    let links: Vec<(usize, usize)> = links.into_iter().collect();
    let placed = layered(&sizes, &links);
    for ((block, inner), (place, size)) in blocks
        .iter()
        .zip(inner)
        .zip(placed.places.iter().zip(&sizes))
    {
        let place = Place {
            x: place.0,
            y: place.1,
            width: size.0,
            height: size.1,
        };
        match (block, inner) {
            (Block::Item(item), _) => layout.items.push((*item, place)),
            (Block::Open(group), Some((own, own_passes))) => {
                layout.frames.push((*group, place));
                let (x, y) = (place.x + FRAME, place.y + HEADER);
                let items = own.items.iter();
                (layout.items).extend(items.map(|(item, place)| (*item, place.moved(x, y))));
                let frames = own.frames.iter();
                (layout.frames).extend(frames.map(|(group, place)| (*group, place.moved(x, y))));
                for (ends, points) in own_passes {
                    let moved = points.into_iter().map(|(px, py)| (px + x, py + y));
                    passes.insert(ends, moved.collect());
                }
            }
            (Block::Open(_), None) => {}
        }
    }
    for (link, points) in links.iter().zip(&placed.passes) {
        for ends in &of_link[link] {
            passes.insert(*ends, points.clone());
        }
    }
    placed.size
}

/// Boxes in layers.
struct Layered {
    /// The left upper corner of each box.
    places: Vec<(f32, f32)>,
    /// The points that each link passes between its ends.
    passes: Vec<Vec<(f32, f32)>>,
    size: (f32, f32),
}

/// A box or, in layers that a link passes, a point of it.
#[derive(Clone, Copy, Debug)]
struct Cell {
    /// The box; `None`: a point of a link.
    block: Option<usize>,
    height: f32,
}

/// Puts boxes of these sizes into layers.
fn layered(sizes: &[(f32, f32)], links: &[(usize, usize)]) -> Layered {
    let count = sizes.len();
    let links_at: Vec<(usize, usize)> = acyclic(count, links);
    let layer = layers(count, &links_at);
    let depth = layer.iter().max().map_or(0, |last| last + 1);
    // Cells: the boxes first, then the points of links that pass layers.
    let mut cells: Vec<Cell> = (sizes.iter().enumerate())
        .map(|(block, size)| Cell {
            block: Some(block),
            height: size.1,
        })
        .collect();
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); depth];
    for (block, layer) in layer.iter().enumerate() {
        rows[*layer].push(block);
    }
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    let mut chains: Vec<Vec<usize>> = Vec::with_capacity(links.len());
    // Links of one box to the same layer and beyond share the way as far as they can.
    let mut shared: HashMap<(usize, usize), usize> = HashMap::new();
    for (from, to) in &links_at {
        let mut last = *from;
        let mut chain = Vec::new();
        let between = layer[*to].saturating_sub(layer[*from] + 1);
        let passed = rows.iter_mut().enumerate().skip(layer[*from] + 1);
        for (row, in_row) in passed.take(between) {
            let cell = *shared.entry((*from, row)).or_insert_with(|| {
                cells.push(Cell {
                    block: None,
                    height: 0.0,
                });
                let cell = cells.len() - 1;
                in_row.push(cell);
                pairs.push((last, cell));
                cell
            });
            chain.push(cell);
            last = cell;
        }
        pairs.push((last, *to));
        chains.push(chain);
    }
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); cells.len()];
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); cells.len()];
    for (a, b) in &pairs {
        before[*b].push(*a);
        after[*a].push(*b);
    }
    order(&mut rows, &before, &after, cells.len());
    let tops = heights(&rows, &cells, &before, &after);
    // Columns: as wide as their widest box; more room where many links run.
    let mut columns = Vec::with_capacity(depth);
    let mut x = 0.0;
    for row in &rows {
        let widths = row.iter().filter_map(|cell| cells[*cell].block);
        let width = widths.map(|block| sizes[block].0).fold(0.0, f32::max);
        columns.push((x, width));
        let leaving: usize = row.iter().map(|cell| after[*cell].len()).sum();
        x += width + COLUMN_GAP + (leaving as f32 * 2.5).min(48.0);
    }
    let mut places = vec![(0.0, 0.0); count];
    let mut size = (0.0_f32, 0.0_f32);
    for (block, layer) in layer.iter().enumerate() {
        // In the middle of the column.
        let (left, width) = columns[*layer];
        let x = left + (width - sizes[block].0) / 2.0;
        places[block] = (x, tops[block]);
        size.0 = size.0.max(left + width);
        size.1 = size.1.max(tops[block] + sizes[block].1);
    }
    let mut of_cell = vec![0; cells.len()];
    for (index, row) in rows.iter().enumerate() {
        for cell in row {
            of_cell[*cell] = index;
        }
    }
    let mut passes = Vec::with_capacity(chains.len());
    for chain in &chains {
        let mut points = Vec::with_capacity(2 * chain.len());
        for cell in chain {
            let (left, width) = columns[of_cell[*cell]];
            points.push((left, tops[*cell]));
            points.push((left + width, tops[*cell]));
            size.1 = size.1.max(tops[*cell]);
        }
        passes.push(points);
    }
    // A link that was turned around to break a circle is drawn from its own beginning.
    for (points, (link, turned)) in passes.iter_mut().zip(links.iter().zip(&links_at)) {
        if link != turned {
            points.clear();
        }
    }
    Layered {
        places,
        passes,
        size,
    }
}

/// The links with those turned around that close a circle. Nodes make none, but groups that are drawn as one box can.
fn acyclic(count: usize, links: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(count, links.len());
    for _ in 0..count {
        graph.add_node(());
    }
    for (from, to) in links {
        graph.add_edge(NodeIndex::new(*from), NodeIndex::new(*to), ());
    }
    if toposort(&graph, None).is_ok() {
        return links.to_vec();
    }
    let turned: BTreeSet<usize> = greedy_feedback_arc_set(&graph)
        .map(|edge| edge.id().index())
        .collect();
    (links.iter().enumerate())
        .map(|(index, (from, to))| match turned.contains(&index) {
            true => (*to, *from),
            false => (*from, *to),
        })
        .collect()
}

/// The layer of each box: by the longest way, then moved to where its links are shortest in sum.
fn layers(count: usize, links: &[(usize, usize)]) -> Vec<usize> {
    let mut before = vec![Vec::new(); count];
    let mut after = vec![Vec::new(); count];
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(count, links.len());
    for _ in 0..count {
        graph.add_node(());
    }
    for (from, to) in links {
        before[*to].push(*from);
        after[*from].push(*to);
        graph.add_edge(NodeIndex::new(*from), NodeIndex::new(*to), ());
    }
    let sorted: Vec<usize> = toposort(&graph, None)
        .map(|order| order.into_iter().map(NodeIndex::index).collect())
        .unwrap_or_else(|_| (0..count).collect());
    let mut layer = vec![0_usize; count];
    for node in &sorted {
        let least = before[*node].iter().map(|from| layer[*from] + 1).max();
        layer[*node] = least.unwrap_or(0);
    }
    // A node with more links out than in goes as near to those after it as it can, and the other way round.
    for _ in 0..8 {
        let mut moved = false;
        for node in sorted.iter().rev().chain(&sorted) {
            let least = before[*node].iter().map(|from| layer[*from] + 1).max();
            let most = after[*node].iter().map(|to| layer[*to] - 1).min();
            let wanted = match (before[*node].len(), after[*node].len()) {
                (ins, outs) if outs > ins => most,
                (ins, outs) if ins > outs => least,
                _ => None,
            };
            if let Some(wanted) = wanted
                && wanted != layer[*node]
            {
                layer[*node] = wanted;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let first = layer.iter().min().copied().unwrap_or(0);
    for layer in &mut layer {
        *layer -= first;
    }
    layer
}

/// Orders the cells of each row so that few links cross: by the mean place of what they are linked to, back and forth;
/// the best order that was found stays.
fn order(rows: &mut Vec<Vec<usize>>, before: &[Vec<usize>], after: &[Vec<usize>], cells: usize) {
    let mut best = rows.clone();
    let mut fewest = crossings(rows, after, cells);
    for sweep in 0..SWEEPS {
        if fewest == 0 {
            break;
        }
        let mut place = vec![0.0_f32; cells];
        let number = |row: &[usize], place: &mut Vec<f32>| {
            for (index, cell) in row.iter().enumerate() {
                place[*cell] = index as f32;
            }
        };
        for row in rows.iter() {
            number(row, &mut place);
        }
        let down = sweep % 2 == 0;
        let along: Vec<usize> = match down {
            true => (0..rows.len()).collect(),
            false => (0..rows.len()).rev().collect(),
        };
        for index in along {
            let sides = if down { before } else { after };
            let mean = |cell: usize| {
                let linked = &sides[cell];
                if linked.is_empty() {
                    return place[cell];
                }
                linked.iter().map(|other| place[*other]).sum::<f32>() / linked.len() as f32
            };
            let mut keyed: Vec<(f32, usize)> = rows[index]
                .iter()
                .map(|cell| (mean(*cell), *cell))
                .collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
            rows[index] = keyed.into_iter().map(|(_, cell)| cell).collect();
            number(&rows[index], &mut place);
        }
        let now = crossings(rows, after, cells);
        if now < fewest {
            fewest = now;
            best.clone_from(rows);
        }
    }
    *rows = best;
}

/// How many pairs of links cross: for each gap between rows the inversions, counted with a Fenwick tree.
fn crossings(rows: &[Vec<usize>], after: &[Vec<usize>], cells: usize) -> usize {
    let mut place = vec![0; cells];
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            place[*cell] = index;
        }
    }
    let mut sum = 0;
    for pair in rows.windows(2) {
        let [upper, lower] = pair else { continue };
        let mut tree = vec![0_usize; lower.len() + 1];
        let mut seen = 0;
        for cell in upper {
            let mut ends: Vec<usize> = after[*cell].iter().map(|to| place[*to]).collect();
            ends.sort_unstable();
            for end in &ends {
                // Those that were seen before and end further down.
                let (mut at, mut not_after) = (end + 1, 0);
                while at > 0 {
                    not_after += tree[at];
                    at &= at - 1;
                }
                sum += seen - not_after;
            }
            for end in ends {
                let mut at = end + 1;
                while at < tree.len() {
                    tree[at] += 1;
                    at += at & at.wrapping_neg();
                }
                seen += 1;
            }
        }
    }
    sum
}

/// The top of each cell: near the mean of what it is linked to, in the order of its row and without overlap.
fn heights(
    rows: &[Vec<usize>],
    cells: &[Cell],
    before: &[Vec<usize>],
    after: &[Vec<usize>],
) -> Vec<f32> {
    let mut top = vec![0.0_f32; cells.len()];
    let gap = |a: usize, b: usize| match (cells[a].block, cells[b].block) {
        (Some(_), Some(_)) => ROW_GAP,
        (None, None) => PASS_GAP,
        _ => PASS_GAP + 4.0,
    };
    for row in rows {
        let mut y = 0.0;
        for (index, cell) in row.iter().enumerate() {
            if index > 0 {
                y += gap(row[index - 1], *cell);
            }
            top[*cell] = y;
            y += cells[*cell].height;
        }
    }
    for pass in 0..2 * STRAIGHTEN {
        let down = pass % 2 == 0;
        let along: Vec<usize> = match down {
            true => (0..rows.len()).collect(),
            false => (0..rows.len()).rev().collect(),
        };
        for index in along {
            let row = &rows[index];
            if row.is_empty() {
                continue;
            }
            // Towards one side on the way, towards both at the end.
            let last = pass + 2 >= 2 * STRAIGHTEN;
            let wanted: Vec<(f32, f32)> = (row.iter())
                .map(|cell| {
                    let near: Vec<usize> = match (last, down) {
                        (true, _) => before[*cell].iter().chain(&after[*cell]).copied().collect(),
                        (false, true) => before[*cell].clone(),
                        (false, false) => after[*cell].clone(),
                    };
                    let half = cells[*cell].height / 2.0;
                    if near.is_empty() {
                        return (top[*cell], 0.2);
                    }
                    let sum: f32 = near
                        .iter()
                        .map(|other| top[*other] + cells[*other].height / 2.0)
                        .sum();
                    // Points of links want to be straight more than boxes want to be in the middle.
                    let weight = if cells[*cell].block.is_none() {
                        4.0
                    } else {
                        1.0
                    };
                    (sum / near.len() as f32 - half, weight)
                })
                .collect();
            let mut offset = Vec::with_capacity(row.len());
            let mut sum = 0.0;
            for (index, cell) in row.iter().enumerate() {
                if index > 0 {
                    sum += cells[row[index - 1]].height + gap(row[index - 1], *cell);
                }
                offset.push(sum);
            }
            let free: Vec<(f32, f32)> = (wanted.iter().zip(&offset))
                .map(|((wanted, weight), offset)| (wanted - offset, *weight))
                .collect();
            for ((cell, y), offset) in row.iter().zip(isotonic(&free)).zip(offset) {
                top[*cell] = y + offset;
            }
        }
    }
    let least = top.iter().copied().fold(f32::INFINITY, f32::min);
    if least.is_finite() {
        for top in &mut top {
            *top = (*top - least).round();
        }
    }
    top
}

/// The rising numbers that are nearest to these, by the sum of weighted squares (pool adjacent violators).
fn isotonic(wanted: &[(f32, f32)]) -> Vec<f32> {
    let mut pools: Vec<(f32, f32, usize)> = Vec::with_capacity(wanted.len());
    for (value, weight) in wanted {
        let mut pool = (*value, *weight, 1);
        while let Some(last) = pools.last()
            && last.0 > pool.0
        {
            let weight = last.1 + pool.1;
            pool = (
                (last.0 * last.1 + pool.0 * pool.1) / weight,
                weight,
                last.2 + pool.2,
            );
            pools.pop();
        }
        pools.push(pool);
    }
    pools
        .into_iter()
        .flat_map(|(value, _, count)| std::iter::repeat_n(value, count))
        .collect()
}

/// Gives the links their ends: along the sides of the boxes, in the order of where they come from and go to.
fn attach(layout: &mut Layout) {
    let places: HashMap<Item, Place> = layout.items.iter().copied().collect();
    let mut out: BTreeMap<Item, Vec<usize>> = BTreeMap::new();
    let mut into: BTreeMap<Item, Vec<usize>> = BTreeMap::new();
    for (index, route) in layout.routes.iter().enumerate() {
        out.entry(route.from).or_default().push(index);
        into.entry(route.to).or_default().push(index);
    }
    let mut starts = vec![(0.0, 0.0); layout.routes.len()];
    let mut ends = starts.clone();
    for (sides, at, leaving) in [(out, &mut starts, true), (into, &mut ends, false)] {
        for (item, mut routes) in sides {
            let Some(place) = places.get(&item) else {
                continue;
            };
            let towards = |route: &usize| {
                let route = &layout.routes[*route];
                let near = if leaving {
                    route.points.first()
                } else {
                    route.points.last()
                };
                let far = if leaving { route.to } else { route.from };
                let middle = places.get(&far).map_or(0.0, Place::middle);
                near.map_or(middle, |point| point.1)
            };
            routes.sort_by(|a, b| towards(a).total_cmp(&towards(b)));
            let step = (place.height - 20.0) / routes.len().max(1) as f32;
            let step = step.min(13.0);
            let top = place.middle() - step * (routes.len() as f32 - 1.0) / 2.0;
            for (index, route) in routes.into_iter().enumerate() {
                let x = if leaving {
                    place.x + place.width
                } else {
                    place.x
                };
                at[route] = (x, top + step * index as f32);
            }
        }
    }
    for ((route, start), end) in layout.routes.iter_mut().zip(starts).zip(ends) {
        let mut points = vec![start];
        points.append(&mut route.points);
        points.push(end);
        route.points = points;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench;
    use crate::tests::graph;

    fn open(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn overlap(a: &Place, b: &Place) -> bool {
        let apart = a.x + a.width <= b.x || b.x + b.width <= a.x;
        !(apart || a.y + a.height <= b.y || b.y + b.height <= a.y)
    }

    fn holds(frame: &Place, place: &Place) -> bool {
        frame.x <= place.x
            && frame.y + HEADER <= place.y
            && place.x + place.width <= frame.x + frame.width
            && place.y + place.height <= frame.y + frame.height
    }

    #[track_caller]
    fn sound(layout: &Layout) {
        for (index, (item, place)) in layout.items.iter().enumerate() {
            assert!(place.x >= 0.0 && place.y >= 0.0, "{item:?} {place:?}");
            assert!(
                place.x + place.width <= layout.size.0 + 0.5,
                "{item:?} {place:?}"
            );
            assert!(
                place.y + place.height <= layout.size.1 + 0.5,
                "{item:?} {place:?}"
            );
            for (other, at) in &layout.items[index + 1..] {
                assert!(
                    !overlap(place, at),
                    "{item:?} {place:?} lies on {other:?} {at:?}"
                );
            }
        }
        for route in &layout.routes {
            assert!(route.points.len() >= 2);
            assert!(
                route
                    .points
                    .iter()
                    .all(|(x, y)| x.is_finite() && y.is_finite())
            );
        }
    }

    #[test]
    fn links_go_to_the_right_and_closed_groups_are_one_box() {
        let graph = graph();
        let layout = layout(&graph, &open(&[]));
        sound(&layout);
        let items: Vec<Item> = layout.items.iter().map(|(item, _)| *item).collect();
        assert_eq!(
            items,
            [Item::Node(0), Item::Node(1), Item::Node(5), Item::Group(0)]
        );
        for route in &layout.routes {
            let xs: Vec<f32> = route.points.iter().map(|point| point.0).collect();
            assert!(xs.is_sorted(), "{route:?}");
        }
        // Two links of one type between the same boxes are one.
        assert_eq!(layout.routes.len(), 4);
    }

    #[test]
    fn an_open_group_is_a_frame_around_what_is_in_it_and_nothing_else() {
        let graph = graph();
        for names in [
            &["retouch"][..],
            &["retouch", "retouch/inner"],
            &["retouch/inner"],
        ] {
            let layout = layout(&graph, &open(names));
            sound(&layout);
            for (group, frame) in &layout.frames {
                for (item, place) in &layout.items {
                    let inside = match item {
                        Item::Node(node) => graph.groups[*group].nodes.contains(node),
                        Item::Group(inner) => graph.groups[*inner].parent == Some(*group),
                    };
                    assert_eq!(holds(frame, place), inside, "{names:?} {item:?}");
                    assert_eq!(overlap(frame, place), inside, "{names:?} {item:?}");
                }
            }
        }
    }

    #[test]
    fn a_graph_of_500_nodes_is_laid_out_without_overlap() {
        let layout = layout(&bench::graph(500), &open(&[]));
        assert_eq!(layout.items.len(), 500);
        sound(&layout);
    }

    #[test]
    fn groups_that_feed_each_other_are_laid_out_all_the_same() {
        let mut graph = graph();
        // From outside of the group into it and back again, as one box a circle.
        let mut back = graph.edges[5].clone();
        (back.from, back.to) = (5, 3);
        graph.edges.push(back);
        graph.edges.retain(|edge| (edge.from, edge.to) != (4, 5));
        let mut out = graph.edges[0].clone();
        (out.from, out.to) = (2, 5);
        graph.edges.push(out);
        for names in [&[][..], &["retouch"], &["retouch", "retouch/inner"]] {
            sound(&layout(&graph, &open(names)));
        }
    }

    #[test]
    fn nothing_at_all_has_a_layout() {
        assert_eq!(
            layout(&Graph::default(), &open(&["gone"])),
            Layout::default()
        );
    }

    #[test]
    fn crossings_are_counted_and_taken_away() {
        // Two by two, crossed; and one that cannot be taken away.
        let after = vec![vec![3], vec![2], vec![], vec![]];
        let before = vec![vec![], vec![], vec![1], vec![0]];
        let mut rows = vec![vec![0, 1], vec![2, 3]];
        assert_eq!(crossings(&rows, &after, 4), 1);
        order(&mut rows, &before, &after, 4);
        assert_eq!(crossings(&rows, &after, 4), 0);
        let all = vec![vec![2, 3], vec![2, 3], vec![], vec![]];
        assert_eq!(crossings(&[vec![0, 1], vec![2, 3]], &all, 4), 1);
    }

    #[test]
    fn rising_numbers_are_as_near_as_can_be() {
        assert_eq!(isotonic(&[(1.0, 1.0), (2.0, 1.0)]), [1.0, 2.0]);
        assert_eq!(
            isotonic(&[(3.0, 1.0), (1.0, 1.0), (5.0, 1.0)]),
            [2.0, 2.0, 5.0]
        );
        assert_eq!(isotonic(&[(4.0, 3.0), (0.0, 1.0)]), [3.0, 3.0]);
        assert!(isotonic(&[]).is_empty());
    }

    #[test]
    fn the_shape_is_the_same_until_nodes_links_or_what_is_open_change() {
        let mut graph = graph();
        let shape = shape(&graph, &open(&[]));
        graph.forecast.clear();
        graph.nodes[0].why = "for another reason".to_owned();
        assert_eq!(super::shape(&graph, &open(&[])), shape);
        assert_ne!(super::shape(&graph, &open(&["retouch"])), shape);
        graph.edges.pop();
        assert_ne!(super::shape(&graph, &open(&[])), shape);
    }
}
