//! Many workers on many cells, by a clock of the test's own over the real claims. `RETOUCH_SIMULATION=full` simulates a thousand
//! workers on a hundred thousand cells; otherwise a tenth of both.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use retouch_cluster::memory::Memory;
use retouch_cluster::{Board, Claim, Next, Objects};

/// What a cell takes, in milliseconds: 50 steps of Stable Diffusion on one card.
const CELL: u64 = 30_000;
/// Cells of a chunk, as `chunks::cut` makes them of so many.
const CHUNK: usize = 25;
const TERM: u64 = 600_000;
const HOUR: f64 = 3_600_000.0;

/// What a worker does next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Does {
    Asks,
    Renews,
    Finishes,
    Dies,
}

/// How much is simulated.
struct Size {
    workers: usize,
    cells: usize,
    /// The share of the living workers that die in an hour.
    dying: f64,
}

impl Size {
    fn of_environment() -> Self {
        match std::env::var("RETOUCH_SIMULATION").as_deref() {
            Ok("full") => Self {
                workers: 1000,
                cells: 100_000,
                dying: 0.01,
            },
            // As many die as of a thousand: it is deaths that are tried.
            _ => Self {
                workers: 100,
                cells: 10_000,
                dying: 0.1,
            },
        }
    }
}

struct Worker<'a> {
    board: Board<&'a Memory, &'a Memory>,
    claim: Option<(Claim, u64)>,
    alive: bool,
    /// Since when it has nothing to do.
    idle: Option<u64>,
}

/// A counter-based draw, the same in each run of the test.
fn draw(of: u64) -> f64 {
    let mut z = of
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn many_workers_share_many_cells_and_waste_little() {
    let size = Size::of_environment();
    let store = Memory::new();
    let chunks = size.cells / CHUNK;
    let mut queue: BinaryHeap<Reverse<(u64, usize, Does)>> = BinaryHeap::new();
    let mut workers: Vec<Worker<'_>> = Vec::new();
    for worker in 0..size.workers {
        // They are started within a minute, and each dies at a moment of its own.
        let begins = (draw(worker as u64) * 60_000.0) as u64;
        let dies = -(1.0 - draw(1_000_000 + worker as u64)).ln() / size.dying * HOUR;
        let board = Board::join(
            &store,
            &store,
            "runs/r",
            &format!("w{worker}"),
            TERM,
            chunks,
            Vec::new(),
        );
        workers.push(Worker {
            board: board.unwrap(),
            claim: None,
            alive: true,
            idle: None,
        });
        queue.push(Reverse((begins, worker, Does::Asks)));
        queue.push(Reverse((dies as u64, worker, Does::Dies)));
    }
    let joined = store.requests();
    let mut done = vec![0usize; chunks];
    let (mut worked, mut lost, mut deaths) = (0u64, 0u64, 0usize);
    let (mut end, mut longest_idle) = (0, 0);
    while let Some(Reverse((now, index, does))) = queue.pop() {
        if done.iter().all(|times| *times > 0) && does != Does::Finishes {
            continue;
        }
        store.at(now);
        let worker = &mut workers[index];
        if !worker.alive {
            continue;
        }
        match does {
            Does::Dies => {
                worker.alive = false;
                deaths += 1;
                if let Some((_, since)) = worker.claim {
                    worked += now - since;
                    lost += now - since;
                }
            }
            Does::Renews => {
                let Some((claim, _)) = &mut worker.claim else {
                    continue;
                };
                if worker.board.renewal_in(claim) == 0 {
                    assert!(
                        worker.board.renew(claim).unwrap(),
                        "nobody takes what is renewed"
                    );
                }
                queue.push(Reverse((
                    now + worker.board.renewal_in(claim),
                    index,
                    Does::Renews,
                )));
            }
            Does::Finishes => {
                let Some((claim, since)) = worker.claim.take() else {
                    continue;
                };
                worker.board.finish(&claim, 0, Vec::new()).unwrap();
                worked += now - since;
                if done[claim.chunk] > 0 {
                    lost += now - since;
                }
                done[claim.chunk] += 1;
                end = now;
                queue.push(Reverse((now, index, Does::Asks)));
            }
            Does::Asks => match worker.board.next_chunk().unwrap() {
                Next::Take(claim) => {
                    if let Some(since) = worker.idle.take() {
                        longest_idle = longest_idle.max(now - since);
                    }
                    // Cells differ by a fifth either way.
                    let takes = (CHUNK as u64 * CELL) as f64
                        * (0.8 + 0.4 * draw(2_000_000 + claim.chunk as u64));
                    let renewal = worker.board.renewal_in(&claim);
                    worker.claim = Some((claim, now));
                    queue.push(Reverse((now + takes as u64, index, Does::Finishes)));
                    queue.push(Reverse((now + renewal, index, Does::Renews)));
                }
                Next::Wait(wait) => {
                    worker.idle.get_or_insert(now);
                    queue.push(Reverse((now + wait, index, Does::Asks)));
                }
                Next::Finished => {}
            },
        }
    }
    assert!(
        done.iter().all(|times| *times > 0),
        "a chunk was never done"
    );
    assert!(deaths > 0, "nobody died");
    let twice = done.iter().filter(|times| **times > 1).count();
    assert_eq!(twice, 0, "what is renewed is done once");
    let waste = lost as f64 / worked as f64;
    assert!(waste < 0.03, "{waste}");
    // What is left when a worker dies is taken up within a term and a wait of a term: nobody starves.
    let ideal = worked / (size.workers - deaths) as u64;
    let chunk = CHUNK as u64 * CELL * 6 / 5;
    assert!(
        end < ideal + 60_000 + 2 * chunk + 2 * TERM,
        "{end} of {ideal}"
    );
    let requests = store.requests();
    let seconds = end as f64 / 1000.0;
    let rate = (requests.total() - joined.total()) as f64 / seconds;
    eprintln!(
        "{deaths} workers died; done in {seconds:.0} s, ideal {:.0}; waste {:.3} %; {rate:.0} requests a second ({} writes, {} reads, {} pages); longest idle {:.0} s",
        ideal as f64 / 1000.0,
        100.0 * waste,
        requests.writes - joined.writes,
        requests.reads - joined.reads,
        requests.pages - joined.pages,
        longest_idle as f64 / 1000.0,
    );
    assert!(rate < 100.0, "{rate} requests a second");
    assert!(store.list("runs/r/state").unwrap().len() >= chunks * 2);
}
