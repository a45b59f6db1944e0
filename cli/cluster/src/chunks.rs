//! Cuts a run into chunks of cells that share their models and as many steps as can be.
//!
//! A chunk is what a worker claims: its models are loaded once, its shared steps made once. What two chunks share is made in
//! both, so cuts go where neighbours share least.

/// What a cell is made of, as far as others may share it. Numbers are digests of keys: equal ones are the same work.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// The models that it loads.
    pub models: Vec<u64>,
    /// Its steps, from the first on.
    pub steps: Vec<u64>,
}

/// Chunks that each worker has, so that the last ones do not leave the others idle.
const EACH: usize = 4;
/// Cells of a chunk at most: what a worker that dies may lose.
const MOST: usize = 50;

/// How many cells of it two have in common from the beginning.
fn shared(a: &Shape, b: &Shape) -> usize {
    (a.steps.iter().zip(&b.steps))
        .take_while(|(a, b)| a == b)
        .count()
}

/// The cells of each chunk, in the order in which chunks are best done by one worker; each cell is in one of them.
///
/// `shapes`: a cell's number and what it is made of.
#[must_use]
pub fn cut(mut shapes: Vec<(usize, Shape)>, workers: usize) -> Vec<Vec<usize>> {
    let target = shapes.len().div_ceil(EACH * workers.max(1)).clamp(1, MOST);
    shapes.sort_by(|(a, of_a), (b, of_b)| of_a.cmp(of_b).then(a.cmp(b)));
    let mut chunks = Vec::new();
    let mut from = 0;
    while from < shapes.len() {
        let group = shapes[from..]
            .iter()
            .take_while(|(_, shape)| shape.models == shapes[from].1.models)
            .count();
        let (least, most) = (target.div_ceil(2), (target + target / 2).min(MOST));
        // Whatever is left of a group is taken at once if it fits.
        let length = match group <= most {
            true => group,
            false => (least..=most)
                .min_by_key(|length| {
                    let cut = from + length;
                    let common = shared(&shapes[cut - 1].1, &shapes[cut].1);
                    (common, length.abs_diff(target))
                })
                .unwrap_or(target),
        };
        let mut cells: Vec<usize> = (shapes[from..from + length].iter())
            .map(|(cell, _)| *cell)
            .collect();
        cells.sort_unstable();
        chunks.push(cells);
        from += length;
    }
    chunks
}

/// The cells of share `index` (from 0) of `of`: equal numbers of cells, each of which shares most with its neighbours.
#[must_use]
pub fn share(mut shapes: Vec<(usize, Shape)>, index: usize, of: usize) -> Vec<usize> {
    shapes.sort_by(|(a, of_a), (b, of_b)| of_a.cmp(of_b).then(a.cmp(b)));
    let at = |index: usize| shapes.len() * index / of.max(1);
    let mut cells: Vec<usize> = (shapes[at(index)..at(index + 1)].iter())
        .map(|(cell, _)| *cell)
        .collect();
    cells.sort_unstable();
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(model: u64, steps: &[u64]) -> Shape {
        Shape {
            models: vec![model],
            steps: steps.to_vec(),
        }
    }

    #[test]
    fn every_cell_is_in_one_chunk_and_no_chunk_mixes_models() {
        let cells: Vec<(usize, Shape)> = (0..1000)
            .map(|cell| {
                let at = cell as u64;
                (cell, shape(at % 3, &[at % 7, at % 5, at]))
            })
            .collect();
        let chunks = cut(cells.clone(), 8);
        let mut all: Vec<usize> = chunks.iter().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
        for chunk in &chunks {
            assert!(chunk.len() <= 48, "{}", chunk.len());
            assert!(chunk.iter().all(|cell| cell % 3 == chunk[0] % 3));
        }
        // 334 cells of each model, 16 to 48 at a time.
        assert!(chunks.len() >= 21 && chunks.len() <= 63, "{}", chunks.len());
        assert_eq!(cut(cells, 8), chunks, "the same each time");
    }

    #[test]
    fn cuts_go_where_neighbours_share_least() {
        // Groups of five cells that share three steps; chunks of four would be of the size that eight cells a worker have.
        let cells = (0..20)
            .map(|cell| (cell, shape(0, &[cell as u64 / 5, 1, 2, cell as u64])))
            .collect();
        let chunks = cut(cells, 1);
        assert_eq!(
            chunks,
            [
                (0..5).collect::<Vec<_>>(),
                (5..10).collect(),
                (10..15).collect(),
                (15..20).collect()
            ]
        );
    }

    #[test]
    fn shares_are_equal_and_whole() {
        let cells: Vec<(usize, Shape)> = (0..10)
            .map(|cell| (cell, shape(0, &[cell as u64 % 2])))
            .collect();
        let shares: Vec<Vec<usize>> = (0..4).map(|index| share(cells.clone(), index, 4)).collect();
        assert_eq!(
            shares,
            [vec![0, 2], vec![4, 6, 8], vec![1, 3], vec![5, 7, 9]]
        );
        assert_eq!(share(Vec::new(), 0, 4), Vec::<usize>::new());
    }

    #[test]
    fn few_cells_are_still_shared_out() {
        let cells = |count| {
            (0..count)
                .map(|cell| (cell, shape(0, &[cell as u64])))
                .collect()
        };
        assert_eq!(cut(cells(0), 4), Vec::<Vec<usize>>::new());
        assert_eq!(cut(cells(3), 4), [[0], [1], [2]]);
        assert_eq!(cut(cells(24), 2).len(), 8);
        assert_eq!(cut(cells(10_000), 8).len(), 200);
    }
}
