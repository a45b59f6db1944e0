//! Threads that stand ready while a network is computed.
//!
//! A call of a small network is some hundred pieces of work of a few microseconds each. Threads that sleep between two of
//! them take longer to wake than to work, so those of the team watch for the next piece for a while before they sleep.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// How long a thread looks for work before it sleeps: more than what lies between two pieces of a call, and between two
/// calls of a small network.
const READY: Duration = Duration::from_micros(300);

/// How often it looks before it reads the clock, which takes as long as a few looks.
const LOOKS: usize = 64;

/// How often one looks for others' end before it lets other threads run.
const PATIENCE: usize = 10_000;

/// Calls `f` with each number below `tasks`, in any order, on as many threads as the caller's pool has.
///
/// # Panics
/// When a call of `f` does, after all others have ended.
pub(super) fn for_each(tasks: usize, f: impl Fn(usize) + Sync) {
    let f = &f;
    let threads = rayon::current_num_threads().min(tasks);
    if threads <= 1 {
        (0..tasks).for_each(f);
        return;
    }
    match TEAM.owner() {
        Some(owner) => TEAM.run(owner, threads, tasks, f),
        // Another node computes at the same time, or `f` of a piece has pieces itself.
        None => (0..tasks).into_par_iter().with_max_len(1).for_each(f),
    }
}

/// Calls `f(i, chunk)` with each chunk of `size` elements, the last as many as there are.
pub(super) fn for_each_chunk<T: Send>(
    out: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    struct Base<T>(*mut T);
    // SAFETY: chunks are disjoint, and each is given to one call, of `T: Send`.
    unsafe impl<T: Send> Sync for Base<T> {}
    impl<T> Base<T> {
        fn at(&self, start: usize) -> *mut T {
            self.0.wrapping_add(start)
        }
    }
    let len = out.len();
    let base = Base(out.as_mut_ptr());
    for_each(len.div_ceil(size), |i| {
        let start = i * size;
        let count = size.min(len - start);
        // SAFETY: start < len, as i < len / size rounded up, and start + count <= len; see above for who else has it.
        let chunk = unsafe { std::slice::from_raw_parts_mut(base.at(start), count) };
        f(i, chunk);
    });
}

static TEAM: Team = Team::new();

/// One piece of work: a function of a number, and how many there are.
#[derive(Clone, Copy)]
struct Work {
    call: unsafe fn(*const (), usize),
    data: *const (),
    tasks: usize,
}

unsafe fn call<F: Fn(usize)>(data: *const (), task: usize) {
    // SAFETY: `data` is the `F` that `Team::run` was given, which waits for all who call it.
    unsafe { (*data.cast::<F>())(task) }
}

unsafe fn nothing(_: *const (), _: usize) {}

struct Team {
    /// Held by who has work done; the number of threads beside it.
    owner: Mutex<usize>,
    /// How many threads are at work, whether more may join, the number of the piece, how many may be at work; see below.
    state: AtomicU64,
    work: UnsafeCell<Work>,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `work` is written by the owner alone while nobody is at work and none may join, and read by those who joined, which
// they do by an exchange of the `state` that was stored after it was written. Its pointers are to a closure that is `Sync`.
unsafe impl Sync for Team {}

// The bits of the state.
const MEMBERS: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const NUMBER: u32 = 17;
const NUMBERS: u64 = (1 << 31) - 1;
const MOST: u32 = 48;

impl Team {
    const fn new() -> Self {
        Self {
            owner: Mutex::new(0),
            state: AtomicU64::new(0),
            work: UnsafeCell::new(Work {
                call: nothing,
                data: std::ptr::null(),
                tasks: 0,
            }),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    fn owner(&self) -> Option<MutexGuard<'_, usize>> {
        match self.owner.try_lock() {
            Ok(owner) => Some(owner),
            Err(TryLockError::Poisoned(owner)) => Some(owner.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn run<F: Fn(usize) + Sync>(
        &'static self,
        mut owner: MutexGuard<'_, usize>,
        threads: usize,
        tasks: usize,
        f: &F,
    ) {
        let beside = (threads - 1).min(usize::from(u16::MAX) - 1);
        while *owner < beside {
            let name = format!("kernel-{}", *owner + 1);
            let spawned = std::thread::Builder::new()
                .name(name)
                .spawn(|| self.serve());
            if spawned.is_err() {
                break; // fewer do as well
            }
            *owner += 1;
        }
        let data = std::ptr::from_ref(f).cast();
        // SAFETY: the owner is alone, and the last piece ended with nobody at work and closed.
        unsafe {
            *self.work.get() = Work {
                call: call::<F>,
                data,
                tasks,
            };
        }
        self.next.store(0, Ordering::Relaxed);
        let number = ((self.state.load(Ordering::Relaxed) >> NUMBER) + 1) & NUMBERS;
        let open = ((beside as u64) << MOST) | (number << NUMBER) | OPEN;
        // In one order with the sleepers' count: whoever is about to sleep sees this, or is seen below.
        self.state.store(open, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
        self.take_part();
        self.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut looks = 0;
        while self.state.load(Ordering::Acquire) & MEMBERS != 0 {
            looks += 1;
            if looks > PATIENCE {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let panic = self
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(owner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Does what of the piece is left.
    fn take_part(&self) {
        // SAFETY: by the owner, who wrote it, or by one who joined.
        let work = unsafe { *self.work.get() };
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= work.tasks {
                return;
            }
            // SAFETY: the owner is inside `run` as long as anybody is here, and `data` lives as long.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe { (work.call)(work.data, task) }));
            if let Err(panic) = done {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(panic);
            }
        }
    }

    /// The state, if there is a piece of another number than `seen` that one more may join.
    fn joinable(&self, seen: u64) -> Option<u64> {
        let state = self.state.load(Ordering::SeqCst);
        let (members, most) = (state & MEMBERS, state >> MOST);
        let new = (state >> NUMBER) & NUMBERS != seen;
        (state & OPEN != 0 && new && members < most).then_some(state)
    }

    /// What a thread of the team does.
    fn serve(&self) {
        let mut seen = 0;
        let mut since = Instant::now();
        loop {
            if let Some(state) = self.joinable(seen) {
                let joined = self.state.compare_exchange(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if joined.is_ok() {
                    seen = (state >> NUMBER) & NUMBERS;
                    self.take_part();
                    self.state.fetch_sub(1, Ordering::Release);
                }
                since = Instant::now();
            } else if since.elapsed() < READY {
                for _ in 0..LOOKS {
                    if self.joinable(seen).is_some() {
                        break;
                    }
                    std::hint::spin_loop();
                }
            } else {
                let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while self.joinable(seen).is_none() {
                    guard = self
                        .wake
                        .wait(guard)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                since = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(5)
            .build()
            .unwrap();
        pool.install(|| {
            for tasks in [0, 1, 2, 3, 7, 64, 1000].repeat(200) {
                let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for_each(tasks, |i| {
                    done[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        });
    }

    #[test]
    fn many_owners_and_pieces_in_pieces() {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        for_each(5, |i| {
                            for_each(4, |j| {
                                sum.fetch_add(10 * i + j, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.into_inner(), 4 * 100 + 5 * 6);
                    }
                });
            }
        });
    }

    #[test]
    fn wakes_after_a_sleep() {
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(3));
            let count = AtomicUsize::new(0);
            for_each(100, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 100);
        }
    }

    #[test]
    fn a_panic_comes_through_and_the_next_piece_is_done() {
        for _ in 0..50 {
            let failed = catch_unwind(|| for_each(20, |i| assert_ne!(i, 13, "thirteen")));
            let message = *failed.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains("thirteen"), "{message}");
            let mut out = vec![0usize; 1001];
            for_each_chunk(&mut out, 10, |i, chunk| chunk.fill(i + 1));
            assert!(out.iter().enumerate().all(|(at, &x)| x == at / 10 + 1));
        }
    }
}
