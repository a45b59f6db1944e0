//! Who does which chunk of a run: claims in a store, won by creating an object that was not there.
//!
//! All that happens to chunk `c` is an object below `state/c/`, and none is ever changed or removed:
//!
//! | object | what it says |
//! | --- | --- |
//! | `000000`, `000001`, ... | a claim, or a renewal of the one before; it holds for the run's term from when the store took it |
//! | `000003.released` | whoever had claim 3 gave the chunk back |
//! | `done.N` | the chunk is done, and N of its cells failed; what became of each cell is its content |
//!
//! The highest number is what counts. A chunk without one, whose highest was released, or whose highest is older than the
//! term, is open: whoever creates the next number has it. A holder renews by creating the next number itself; finds it taken, and
//! knows that it was too late.
//!
//! Ages are differences of the store's own times: a worker learns what time it is there from an object that it wrote, so
//! the clocks of machines need not agree. One listing tells all of it; claims are read only to find out whether an answer that
//! was lost said yes.

use crate::objects::{Fault, Listed, Objects};

/// Number of claims that may fail in a row before the listing is made anew: what it said is no longer so.
const MOST_LOST: u32 = 4;
/// Of a term, how much passes between renewals.
const RENEWALS: u64 = 3;
/// Of a term, how long a worker waits at least that found all of many chunks claimed; at most a term.
const LEAST_WAIT: u64 = 16;
/// Of so few chunks that are left, one is looked at by itself: a worker that waits for the last ones ends soon after them.
const FEW: usize = 8;
/// How long is waited between such looks, in milliseconds: at first a part of the term between these, in the end this.
const FIRST_LOOK: std::ops::RangeInclusive<u64> = 250..=5_000;
const FIRST_LOOK_PART: u64 = 256;
const LAST_LOOK: u64 = 10_000;

/// A clock that only goes forwards, in milliseconds from any moment.
pub trait Clock {
    /// Milliseconds that have passed.
    fn now(&self) -> u64;
}

/// The clock of this machine since it was made.
#[derive(Debug)]
pub struct Monotonic(std::time::Instant);

impl Default for Monotonic {
    fn default() -> Self {
        Self(std::time::Instant::now())
    }
}

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has it; the number of the next claim.
    Open(u32),
    /// The claim of that number has it, taken by the store at that time.
    Held(u32, u64),
    /// It is done; of its cells so many failed.
    Done(usize),
}

/// The states of a run's chunks as a listing of its `state/` tells them.
#[must_use]
pub fn states(listed: &[Listed], chunks: usize) -> Vec<State> {
    let mut states = vec![State::Open(0); chunks];
    // A listing is sorted by name, and numbers have leading zeros: the highest claim comes last, its release after it, then
    // `done`.
    for one in listed {
        let mut parts = one.name.rsplit('/');
        let (Some(name), Some(chunk)) = (parts.next(), parts.next()) else {
            continue;
        };
        let state = chunk
            .parse::<usize>()
            .ok()
            .and_then(|chunk| states.get_mut(chunk));
        let Some(state) = state else {
            continue;
        };
        if let Some(failed) = name
            .strip_prefix("done.")
            .and_then(|n| n.parse::<usize>().ok())
        {
            *state = match *state {
                // Made twice: a cell that came out once is there.
                State::Done(other) => State::Done(failed.min(other)),
                _ => State::Done(failed),
            };
        } else if matches!(state, State::Done(_)) {
            // A claim that came too late.
        } else if let Some(number) = name.strip_suffix(".released") {
            if let (Some(number), State::Held(last, _)) = (claim_number(number), *state)
                && number == last
            {
                *state = State::Open(number + 1);
            }
        } else if let Some(number) = claim_number(name) {
            *state = State::Held(number, one.modified);
        }
    }
    states
}

/// The number in a claim's name: six digits. Whatever else somebody put there is none.
fn claim_number(name: &str) -> Option<u32> {
    let digits = name.len() == 6 && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

/// A chunk that is this worker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The chunk.
    pub chunk: usize,
    /// The number of the first claim: which attempt this is, for the names of logs.
    pub attempt: u32,
    number: u32,
    renewed: u64,
}

/// What there is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This chunk.
    Take(Claim),
    /// Nothing now: all that is left is claimed. Ask again after so many milliseconds.
    Wait(u64),
    /// Nothing any more: all chunks are done.
    Finished,
}

/// A worker's view of a run's chunks, and its way to claim them.
#[derive(Debug)]
pub struct Board<S, C> {
    store: S,
    clock: C,
    /// The folder of the run's states.
    folder: String,
    worker: String,
    term: u64,
    view: Vec<State>,
    /// What the view says is not known yet, or no longer so.
    stale: bool,
    /// The store's time less the clock's.
    ahead: i128,
    random: u64,
    last: Option<usize>,
    wait: u64,
}

impl<S: Objects, C: Clock> Board<S, C> {
    /// A worker's view of the run whose objects lie below `run`; `term`: for how many milliseconds a claim holds.
    ///
    /// The worker writes that it is there (`about`, below `workers/`), and so learns the store's time.
    ///
    /// # Errors
    /// When the store does not take or show that.
    pub fn join(
        store: S,
        clock: C,
        run: &str,
        worker: &str,
        term: u64,
        chunks: usize,
        about: Vec<u8>,
    ) -> Result<Self, Fault> {
        let name = format!("{run}/workers/{worker}.json");
        let before = clock.now();
        store.put(&name, about)?;
        let listed = store.list(&format!("{run}/workers"))?;
        let own = listed.iter().find(|one| one.name == name);
        let written = own.ok_or_else(|| {
            Fault::Unusable(format!(
                "the store {} does not list an object that it took",
                store.shown()
            ))
        })?;
        // It was written after `before`: the store's time is taken to be earlier than it is, claims to be younger, by a request.
        let ahead = i128::from(written.modified) - i128::from(before);
        // Any start will do, as long as workers differ.
        let random = worker
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        Ok(Self {
            store,
            clock,
            folder: format!("{run}/state"),
            worker: worker.to_owned(),
            term,
            view: vec![State::Open(0); chunks],
            stale: true,
            ahead,
            random: random | 1,
            last: None,
            wait: 0,
        })
    }

    /// There are more chunks than there were.
    pub fn extend(&mut self, chunks: usize) {
        if chunks > self.view.len() {
            self.view.resize(chunks, State::Open(0));
            self.stale = true;
        }
    }

    /// The store's time now.
    fn store_now(&self) -> u64 {
        u64::try_from(i128::from(self.clock.now()) + self.ahead).unwrap_or(0)
    }

    fn refresh(&mut self) -> Result<(), Fault> {
        let listed = self.store.list(&self.folder)?;
        self.view = states(&listed, self.view.len());
        self.stale = false;
        Ok(())
    }

    /// The number of the next claim on a chunk, if it is open.
    fn open(&self, chunk: usize, now: u64) -> Option<u32> {
        match *self.view.get(chunk)? {
            State::Open(next) => Some(next),
            State::Held(number, since) if now > since.saturating_add(self.term) => Some(number + 1),
            State::Held(..) | State::Done(_) => None,
        }
    }

    fn draw(&mut self, below: usize) -> usize {
        // xorshift64 of Marsaglia (2003): who begins where, no more.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % below.max(1) as u64).unwrap_or(0)
    }

    /// An open chunk: the one after the last, which shares most with it, else any.
    fn candidate(&mut self) -> Option<(usize, u32)> {
        let now = self.store_now();
        if let Some(last) = self.last
            && let Some(number) = self.open(last + 1, now)
        {
            return Some((last + 1, number));
        }
        let open: Vec<usize> = (0..self.view.len())
            .filter(|chunk| self.open(*chunk, now).is_some())
            .collect();
        if open.is_empty() {
            return None;
        }
        let chunk = open[self.draw(open.len())];
        Some((chunk, self.open(chunk, now)?))
    }

    fn name(&self, chunk: usize, what: &str) -> String {
        format!("{}/{chunk:06}/{what}", self.folder)
    }

    /// Creates claim `number`; whether it is this worker's.
    fn create(&self, chunk: usize, number: u32) -> Result<bool, Fault> {
        let name = self.name(chunk, &format!("{number:06}"));
        let body = format!("{}\n", self.worker).into_bytes();
        if self.store.create(&name, body.clone())? {
            return Ok(true);
        }
        // An answer may have been lost on its way, and the request made again: then it is refused because of ourselves.
        Ok(self.store.get(&name)? == Some(body))
    }

    /// The next chunk for this worker.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn next_chunk(&mut self) -> Result<Next, Fault> {
        let mut fresh = false;
        let mut lost = 0;
        loop {
            if self.stale {
                self.refresh()?;
                fresh = true;
                lost = 0;
            }
            let Some((chunk, number)) = self.candidate() else {
                let left: Vec<usize> = (0..self.view.len())
                    .filter(|chunk| !matches!(self.view[*chunk], State::Done(_)))
                    .collect();
                if left.is_empty() {
                    return Ok(Next::Finished);
                }
                if fresh {
                    return Ok(Next::Wait(self.pause(left.len())));
                }
                if left.len() > FEW {
                    self.stale = true;
                    continue;
                }
                let any = left[self.draw(left.len())];
                if self.look(any)? {
                    continue;
                }
                return Ok(Next::Wait(self.pause(left.len())));
            };
            let mut number = number;
            if !fresh && matches!(self.view[chunk], State::Held(..)) {
                // It ended as far as the view knows, which may be long ago: by now the chunk may be done, and its next number free.
                self.look(chunk)?;
                let Some(next) = self.open(chunk, self.store_now()) else {
                    lost += 1;
                    self.stale = lost >= MOST_LOST;
                    continue;
                };
                number = next;
            }
            let asked = self.clock.now();
            if self.create(chunk, number)? {
                self.last = Some(chunk);
                self.wait = 0;
                self.view[chunk] = State::Held(number, self.store_now());
                return Ok(Next::Take(Claim {
                    chunk,
                    attempt: number,
                    number,
                    renewed: asked,
                }));
            }
            self.view[chunk] = State::Held(number, self.store_now());
            lost += 1;
            self.stale = lost >= MOST_LOST;
        }
    }

    /// Looks at one chunk by itself; whether it is done or open now.
    fn look(&mut self, chunk: usize) -> Result<bool, Fault> {
        let listed = self.store.list(&format!("{}/{chunk:06}", self.folder))?;
        let state = states(&listed, self.view.len())[chunk];
        self.view[chunk] = state;
        let done = matches!(state, State::Done(_));
        Ok(done || self.open(chunk, self.store_now()).is_some())
    }

    /// How long to wait when all of so many chunks are claimed, in milliseconds.
    fn pause(&mut self, left: usize) -> u64 {
        if left <= FEW {
            let first = (self.term / FIRST_LOOK_PART).clamp(*FIRST_LOOK.start(), *FIRST_LOOK.end());
            self.wait = (self.wait + self.wait / 2).clamp(first, LAST_LOOK);
        } else {
            // Nothing opens before the oldest claim ends, unless somebody gives it back.
            let now = self.store_now();
            let ends = self.view.iter().filter_map(|state| match state {
                State::Held(_, since) => Some(since.saturating_add(self.term).saturating_sub(now)),
                _ => None,
            });
            let earliest = ends.min().unwrap_or(self.term);
            self.wait = earliest.clamp((self.term / LEAST_WAIT).max(1), self.term.max(1));
        }
        // Those who wait do not all come back at once.
        let spread = self.draw(usize::try_from(self.wait / 4).unwrap_or(0) + 1);
        self.wait + spread as u64
    }

    /// After how many milliseconds from now a claim is to be renewed.
    pub fn renewal_in(&self, claim: &Claim) -> u64 {
        (claim.renewed + self.term / RENEWALS).saturating_sub(self.clock.now())
    }

    /// Renews a claim; `false`: it is another worker's now, as this one was too late.
    ///
    /// # Errors
    /// When the store does not answer. The claim may hold still: try again.
    pub fn renew(&mut self, claim: &mut Claim) -> Result<bool, Fault> {
        let asked = self.clock.now();
        let number = claim.number + 1;
        if !self.create(claim.chunk, number)? {
            return Ok(false);
        }
        claim.number = number;
        claim.renewed = asked;
        self.view[claim.chunk] = State::Held(number, self.store_now());
        Ok(true)
    }

    /// Gives a chunk back before it is done.
    ///
    /// # Errors
    /// When the store does not take that; the claim then ends by itself.
    pub fn release(&mut self, claim: &Claim) -> Result<(), Fault> {
        let name = self.name(claim.chunk, &format!("{:06}.released", claim.number));
        self.store
            .create(&name, format!("{}\n", self.worker).into_bytes())?;
        self.view[claim.chunk] = State::Open(claim.number + 1);
        Ok(())
    }

    /// Says that a chunk is done, what became of its cells, and how many of them failed.
    ///
    /// # Errors
    /// When the store does not take that.
    pub fn finish(&mut self, claim: &Claim, failed: usize, results: Vec<u8>) -> Result<(), Fault> {
        // Another worker may have said so first: both say the same.
        self.store
            .create(&self.name(claim.chunk, &format!("done.{failed}")), results)?;
        self.view[claim.chunk] = State::Done(failed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    const TERM: u64 = 60_000;

    fn join<'a>(store: &'a Memory, worker: &str, chunks: usize) -> Board<&'a Memory, &'a Memory> {
        Board::join(store, store, "runs/r", worker, TERM, chunks, Vec::new()).unwrap()
    }

    fn take<S: Objects, C: Clock>(board: &mut Board<S, C>) -> Claim {
        match board.next_chunk().unwrap() {
            Next::Take(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_chunk_is_claimed_once_renewed_and_done() {
        let store = Memory::new();
        store.at(1_000_000);
        let (mut a, mut b) = (join(&store, "a", 2), join(&store, "b", 2));
        let mut first = take(&mut a);
        let second = take(&mut b);
        assert_eq!([first.chunk, second.chunk].iter().sum::<usize>(), 1);
        assert!(matches!(a.next_chunk().unwrap(), Next::Wait(_)));
        assert_eq!(a.renewal_in(&first), TERM / RENEWALS);
        store.at(1_000_000 + TERM - 1);
        assert_eq!(a.renewal_in(&first), 0);
        assert!(a.renew(&mut first).unwrap());
        // The claim of b is over, that of a is not.
        store.at(1_000_000 + TERM + 1);
        let again = take(&mut a);
        assert_eq!((again.chunk, again.attempt), (second.chunk, 1));
        let mut late = second.clone();
        assert!(!b.renew(&mut late).unwrap(), "another has it");
        a.finish(&first, 0, b"{}".to_vec()).unwrap();
        a.finish(&again, 2, b"{}".to_vec()).unwrap();
        // Who was late may finish too: nothing changes.
        b.finish(&second, 2, b"{}".to_vec()).unwrap();
        assert_eq!(b.next_chunk().unwrap(), Next::Finished);
        let listed = store.list("runs/r/state").unwrap();
        let mut expected = [State::Done(0), State::Done(0)];
        expected[second.chunk] = State::Done(2);
        assert_eq!(states(&listed, 2), expected);
    }

    #[test]
    fn what_is_given_back_is_open_at_once_and_more_chunks_may_come() {
        let store = Memory::new();
        let (mut a, mut b) = (join(&store, "a", 1), join(&store, "b", 1));
        let claim = take(&mut a);
        assert!(matches!(b.next_chunk().unwrap(), Next::Wait(_)));
        a.release(&claim).unwrap();
        let again = take(&mut b);
        assert_eq!((again.chunk, again.attempt), (0, 1));
        b.finish(&again, 0, Vec::new()).unwrap();
        assert_eq!(b.next_chunk().unwrap(), Next::Finished);
        b.extend(3);
        assert_eq!(take(&mut b).chunk, 1, "the one after the last");
        assert_eq!(take(&mut b).chunk, 2);
    }

    #[test]
    fn the_last_chunks_are_waited_for_in_growing_steps_and_many_until_a_claim_may_end() {
        let store = Memory::new();
        let (mut a, mut b) = (join(&store, "a", 1), join(&store, "b", 1));
        let claim = take(&mut a);
        let wait = |board: &mut Board<&Memory, &Memory>| match board.next_chunk().unwrap() {
            Next::Wait(wait) => wait,
            other => panic!("{other:?}"),
        };
        let waits: Vec<u64> = (0..12).map(|_| wait(&mut b)).collect();
        assert!(waits[0] <= 350, "{waits:?}");
        assert!(
            waits[11] >= LAST_LOOK && waits[11] <= LAST_LOOK * 5 / 4,
            "{waits:?}"
        );
        let pages = store.requests().pages;
        wait(&mut b);
        assert_eq!(store.requests().pages - pages, 1, "one chunk is looked at");
        a.finish(&claim, 0, Vec::new()).unwrap();
        assert_eq!(b.next_chunk().unwrap(), Next::Finished);
        // Of many, claimed a while ago.
        let store = Memory::new();
        let (mut a, mut b) = (join(&store, "a", FEW + 1), join(&store, "b", FEW + 1));
        for _ in 0..=FEW {
            take(&mut a);
        }
        store.at(TERM / 4);
        let wait = wait(&mut b);
        assert!((TERM * 3 / 4..=TERM * 15 / 16).contains(&wait), "{wait}");
    }

    #[test]
    fn what_is_done_is_not_claimed_by_one_who_knew_of_an_older_claim() {
        let store = Memory::new();
        let (mut a, mut b) = (join(&store, "a", 2), join(&store, "b", 2));
        let (done, mut kept) = (take(&mut a), take(&mut a));
        assert!(matches!(b.next_chunk().unwrap(), Next::Wait(_)));
        a.finish(&done, 0, Vec::new()).unwrap();
        store.at(TERM / 2);
        assert!(a.renew(&mut kept).unwrap());
        store.at(TERM + 1);
        assert!(matches!(b.next_chunk().unwrap(), Next::Wait(_)));
    }

    #[test]
    fn clocks_need_not_agree() {
        /// A clock that is years off, over a store's.
        struct Off<'a>(&'a Memory);
        impl Clock for Off<'_> {
            fn now(&self) -> u64 {
                self.0.now() + 99_000_000_000
            }
        }
        let store = Memory::new();
        store.at(5_000_000);
        let mut a = join(&store, "a", 1);
        let mut b = Board::join(&store, Off(&store), "runs/r", "b", TERM, 1, Vec::new()).unwrap();
        take(&mut a);
        assert!(
            matches!(b.next_chunk().unwrap(), Next::Wait(_)),
            "a's claim is seconds old"
        );
        store.at(5_000_000 + TERM + 1);
        assert_eq!(take(&mut b).attempt, 1);
    }

    /// Loses the answers of the next requests that write.
    struct Lossy<'a>(&'a Memory, std::sync::atomic::AtomicBool);

    impl Objects for Lossy<'_> {
        fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Fault> {
            let created = self.0.create(name, bytes.clone())?;
            match self.1.swap(false, std::sync::atomic::Ordering::SeqCst) {
                // The client asks again, as it heard nothing.
                true => self.0.create(name, bytes),
                false => Ok(created),
            }
        }
        fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Fault> {
            self.0.put(name, bytes)
        }
        fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
            self.0.get(name)
        }
        fn has(&self, name: &str) -> Result<bool, Fault> {
            self.0.has(name)
        }
        fn list(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
            self.0.list(folder)
        }
        fn delete(&self, name: &str) -> Result<(), Fault> {
            self.0.delete(name)
        }
        fn shown(&self) -> String {
            self.0.shown()
        }
    }

    #[test]
    fn a_claim_whose_answer_was_lost_is_known_for_ones_own() {
        let store = Memory::new();
        let lossy = Lossy(&store, true.into());
        let mut a = Board::join(&lossy, &store, "runs/r", "a", TERM, 1, Vec::new()).unwrap();
        assert_eq!(take(&mut a).attempt, 0);
    }

    #[test]
    fn what_is_no_state_is_passed_over() {
        let listed: Vec<Listed> = [
            "r/state/000000/000000",
            "r/state/000000/notes",
            "r/state/000000/4294967295",
            "r/state/000000/+00009",
            "r/state/000001/000000",
            "r/state/000001/000000.released",
            "r/state/000001/000001",
            "r/state/000002/000000",
            "r/state/000002/000000.released",
            "r/state/000003/000000",
            "r/state/000003/done.1",
            "r/state/000003/done.4",
            "r/state/000077/000000",
            "r/state/x/000000",
            "r/state/stray",
        ]
        .map(|name| Listed {
            name: name.to_owned(),
            modified: 7,
            size: 1,
        })
        .into();
        assert_eq!(
            states(&listed, 5),
            [
                State::Held(0, 7),
                State::Held(1, 7),
                State::Open(1),
                State::Done(1),
                State::Open(0)
            ]
        );
    }
}
