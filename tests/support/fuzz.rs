//! What the suites of mutated inputs share: a count of memory, changes that know nothing of a format, the rounds.
//!
//! Each input follows from its number, so that a failure can be tried again. `RETOUCH_FUZZ=N` tries N times as many.
#![allow(dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

// ---- memory ----------------------------------------------------------------------------------------------------------

/// Counts what a thread has allocated, and the most that it had at once.
struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(more: usize, less: usize) {
    // Threads that end free what they have after their counters are gone.
    let _ = LIVE.try_with(|live| {
        live.set(live.get().wrapping_add(more).saturating_sub(less));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is handed to the system's allocator as it came; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there while the content is copied.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does something, and gives the bytes that it had at once beyond those that were there.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    let result = work();
    (result, PEAK.with(Cell::get).saturating_sub(before))
}

// ---- mutations -------------------------------------------------------------------------------------------------------

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Numbers that lie at the edge of something.
pub const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 53,
    i64::MAX as u64,
    u64::MAX,
];

/// One change that knows nothing of the format, at or after the byte `from`.
pub fn change(bytes: &mut Vec<u8>, from: usize, others: &[Vec<u8>], random: &mut Random) {
    if bytes.len() <= from {
        bytes.push(random.next() as u8);
        return;
    }
    let span = bytes.len() - from;
    let at = from + random.below(span);
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => {
            let end = (at + 1 + random.below(32)).min(bytes.len());
            bytes.drain(at..end);
        }
        4 => {
            let end = (at + 1 + random.below(32)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = from + random.below(span);
            bytes.splice(to..to, piece);
        }
        5 => {
            let other = random.of(others);
            if !other.is_empty() {
                let start = random.below(other.len());
                let end = (start + 1 + random.below(200)).min(other.len());
                bytes.splice(at..at, other[start..end].iter().copied());
            }
        }
        6 => {
            let number = random.of(&EDGES).to_le_bytes();
            let width = *random.of(&[1, 2, 4, 8]);
            for (byte, new) in bytes[at..].iter_mut().zip(&number[..width]) {
                *byte = *new;
            }
        }
        _ => {
            let number = random.of(&EDGES).to_be_bytes();
            let width = *random.of(&[2, 4, 8]);
            for (byte, new) in bytes[at..].iter_mut().zip(&number[8 - width..]) {
                *byte = *new;
            }
        }
    }
}

// ---- the rounds ------------------------------------------------------------------------------------------------------

pub fn times() -> u64 {
    let given = std::env::var("RETOUCH_FUZZ").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(1)
}

#[derive(Default)]
pub struct Tally {
    pub tried: u64,
    pub accepted: u64,
    /// The refusals, without what differs from input to input.
    pub reasons: BTreeSet<String>,
    /// The most bytes that an input had at once.
    pub most: usize,
}

impl Tally {
    /// Tries an input: `work` says whether it was taken or why not, `bound` how many bytes it may have at once.
    pub fn one(&mut self, input: &[u8], bound: usize, work: impl FnOnce() -> Result<(), String>) {
        let start = Instant::now();
        let (result, peak) = measured(work);
        // Not a measure of speed: what hangs takes longer than any machine needs for an input of a few kilobytes.
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            Shown(input)
        );
        assert!(
            peak <= bound,
            "{peak} bytes, at most {bound}: {:?}",
            Shown(input)
        );
        self.tried += 1;
        self.most = self.most.max(peak);
        match result {
            Ok(()) => self.accepted += 1,
            Err(reason) => {
                let kind: String = reason
                    .chars()
                    .filter(|c| c.is_ascii_alphabetic() || *c == ' ')
                    .take(60)
                    .collect();
                self.reasons.insert(kind);
            }
        }
    }

    /// Inputs that are all refused for one reason, or all taken, try nothing.
    pub fn is_telling(&self, tried: u64, reasons: usize) {
        assert_eq!(self.tried, tried);
        let few = tried / 200;
        let (taken, refused) = (self.accepted, self.tried - self.accepted);
        assert!(
            taken > few && refused > few,
            "{taken} taken, {refused} refused"
        );
        assert!(self.reasons.len() >= reasons, "{:#?}", self.reasons);
    }
}

/// The input in a message, so that it can be tried again.
pub struct Shown<'a>(pub &'a [u8]);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes: {}", self.0.len(), self.0.escape_ascii())
    }
}
