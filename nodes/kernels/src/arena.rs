//! The memory that tensors come from: an allocator that keeps large blocks instead of giving them back to the system.
//!
//! A step of a network allocates and frees the same few hundred megabytes again and again. The system would map and clear
//! every page of them each time; blocks that are kept make a step take nothing from it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Blocks of this many bytes and more are kept; smaller ones are the system allocator's.
const LARGE: usize = 1 << 15;
/// The alignment of large blocks: what pages of 2 MiB, where the system gives them, can begin at.
const ALIGN: usize = 4096;
/// From this size on a block begins at a huge page.
const HUGE: usize = 1 << 21;
/// Size classes in each doubling: a block is at most a quarter larger than what was asked for, and what is behind that
/// costs address space alone until a larger request of the class touches it.
const CLASSES_PER_DOUBLING: usize = 4;
/// Doublings from [`LARGE`]: up to 2^15 * 2^23 bytes.
const DOUBLINGS: usize = 23;

// The locks are the standard library's. Were they to allocate, that would be far below LARGE, the system allocator's
// business, and so not come back here.

/// Bytes that are kept at most while something asks for more than usual.
const MORE: usize = (1usize << 30).saturating_mul(4);
/// How many ask for it.
static WANTED: AtomicUsize = AtomicUsize::new(0);

/// While it lives, arenas keep up to 4 GiB of free blocks, or their limit if that is more: a training keeps what all layers gave until
/// it has gone back through them, and asks for all of it again at its next step.
#[derive(Debug)]
pub struct KeepMore(());

impl KeepMore {
    /// From now on.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "it is made for what it does, not for a value"
    )]
    pub fn new() -> Self {
        WANTED.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for KeepMore {
    fn drop(&mut self) {
        WANTED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Free blocks of one size, linked through their first bytes.
struct List(*mut u8);

// SAFETY: the blocks of a list belong to it alone; it is reached under its lock.
unsafe impl Send for List {}

/// The allocator; meant to be a program's global one.
pub struct Arena {
    lists: [Mutex<List>; CLASSES_PER_DOUBLING * DOUBLINGS],
    /// When a block of each class was last taken or given back, by a count of such events.
    used: [AtomicU64; CLASSES_PER_DOUBLING * DOUBLINGS],
    events: AtomicU64,
    kept: AtomicUsize,
    limit: usize,
}

impl Arena {
    /// An arena that keeps at most `limit` bytes of free blocks, but for [`KeepMore`].
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            lists: [const { Mutex::new(List(null_mut())) }; CLASSES_PER_DOUBLING * DOUBLINGS],
            used: [const { AtomicU64::new(0) }; CLASSES_PER_DOUBLING * DOUBLINGS],
            events: AtomicU64::new(0),
            kept: AtomicUsize::new(0),
            limit,
        }
    }

    /// Bytes of free blocks that may be kept now.
    fn limit(&self) -> usize {
        match WANTED.load(Ordering::Relaxed) {
            0 => self.limit,
            _ => self.limit.max(MORE),
        }
    }

    /// Bytes of free blocks that are kept now.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// Gives back to the system what is kept beyond `limit` bytes, sizes that have not been used for long first.
    pub fn trim(&self, limit: usize) {
        while self.kept() > limit {
            let oldest = (0..self.lists.len())
                .filter(|class| {
                    self.lists[*class]
                        .lock()
                        .is_ok_and(|list| !list.0.is_null())
                })
                .min_by_key(|class| self.used[*class].load(Ordering::Relaxed));
            let Some(class) = oldest else { return };
            let size = class_size(class);
            let block = self.take(class, size);
            if !block.is_null() {
                // SAFETY: the blocks of a class are of its size, and this one is in no list any more.
                unsafe { give_back(block, size) };
            }
        }
    }

    fn note(&self, class: usize) {
        let now = self.events.fetch_add(1, Ordering::Relaxed);
        self.used[class].store(now, Ordering::Relaxed);
    }

    /// A free block of that class.
    fn take(&self, class: usize, size: usize) -> *mut u8 {
        let Ok(mut list) = self.lists[class].lock() else {
            return null_mut();
        };
        let block = list.0;
        if !block.is_null() {
            // SAFETY: a kept block is at least LARGE bytes, is aligned to 4096 and begins with the next one's address.
            list.0 = unsafe { block.cast::<*mut u8>().read() };
            self.kept.fetch_sub(size, Ordering::Relaxed);
        }
        block
    }
}

/// The class of a size, and the bytes of its blocks; none for sizes that are not kept.
fn class(size: usize) -> Option<(usize, usize)> {
    if size < LARGE {
        return None;
    }
    let doubling = size.ilog2() as usize;
    let step = (1 << doubling) / CLASSES_PER_DOUBLING;
    let steps = size.div_ceil(step); // 4 to 8
    let class =
        (doubling - LARGE.ilog2() as usize) * CLASSES_PER_DOUBLING + steps - CLASSES_PER_DOUBLING;
    (class < CLASSES_PER_DOUBLING * DOUBLINGS).then_some((class, steps * step))
}

/// The bytes of a class's blocks.
fn class_size(class: usize) -> usize {
    let step = LARGE << (class / CLASSES_PER_DOUBLING) >> CLASSES_PER_DOUBLING.ilog2();
    (class % CLASSES_PER_DOUBLING + CLASSES_PER_DOUBLING) * step
}

/// A fresh block of zeros from the system, or null.
///
/// Its pages are mapped when they are first written, by whichever thread does: filling it is not one thread's work, as it
/// would be if it were cleared here.
#[cfg(target_os = "linux")]
fn fresh(size: usize) -> *mut u8 {
    // A map begins at a page, which is all that smaller blocks need.
    let spare = if size < HUGE { 0 } else { HUGE };
    let Some(room) = size.checked_add(spare) else {
        return null_mut();
    };
    // SAFETY: a new anonymous map where the system likes; what lies before and behind a huge block is ours and given
    // back, and begins and ends at pages, as blocks of 2 MiB and more are multiples of 512 KiB.
    unsafe {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let map = libc::mmap(null_mut(), room, access, kind, -1, 0);
        if map == libc::MAP_FAILED {
            return null_mut();
        }
        let map = map.cast::<u8>();
        if spare == 0 {
            return map;
        }
        let before = map.align_offset(HUGE);
        let block = map.add(before);
        if before > 0 {
            libc::munmap(map.cast(), before);
        }
        if before < spare {
            libc::munmap(block.add(size).cast(), spare - before);
        }
        // Changes no content; where it is not understood, nothing happens.
        libc::madvise(block.cast(), size, libc::MADV_HUGEPAGE);
        block
    }
}

/// Gives a block back to the system.
///
/// # Safety
/// It came from [`fresh`] with this size, and nobody uses it.
#[cfg(target_os = "linux")]
unsafe fn give_back(block: *mut u8, size: usize) {
    // SAFETY: the caller's promise: the map of that size is ours.
    unsafe { libc::munmap(block.cast(), size) };
}

/// A fresh block of zeros from the system, or null.
#[cfg(not(target_os = "linux"))]
fn fresh(size: usize) -> *mut u8 {
    // SAFETY: the size is not zero.
    Layout::from_size_align(size, ALIGN)
        .map_or(null_mut(), |layout| unsafe { System.alloc_zeroed(layout) })
}

/// Gives a block back to the system.
///
/// # Safety
/// It came from [`fresh`] with this size, and nobody uses it.
#[cfg(not(target_os = "linux"))]
unsafe fn give_back(block: *mut u8, size: usize) {
    if let Ok(layout) = Layout::from_size_align(size, ALIGN) {
        // SAFETY: the caller's promise; the layout is that of `fresh`.
        unsafe { System.dealloc(block, layout) };
    }
}

/// The block; whether there is one is noted.
fn noted(block: *mut u8, bytes: usize) -> *mut u8 {
    #[cfg(target_os = "linux")]
    if block.is_null() {
        super::refused::note(bytes);
    } else {
        super::refused::given();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
    block
}

// SAFETY: blocks below LARGE, and those aligned to more than 4096, are the system's in every call, as both follow from the
// layout, which is the same for a block's allocation and its end. Others are at least as large and aligned as asked for
// (`class`, `fresh`), and are in nobody's hands while in a list.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(layout.size()) {
            Some((class, size)) if layout.align() <= ALIGN => {
                self.note(class);
                let kept = self.take(class, size);
                let block = if kept.is_null() { fresh(size) } else { kept };
                noted(block, layout.size())
            }
            // SAFETY: the caller's promise.
            _ => noted(unsafe { System.alloc(layout) }, layout.size()),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match class(layout.size()) {
            Some((class, size)) if layout.align() <= ALIGN => {
                self.note(class);
                let kept = self.take(class, size);
                if kept.is_null() {
                    return noted(fresh(size), layout.size());
                }
                // SAFETY: a block of its class has at least the bytes that were asked for.
                unsafe { kept.write_bytes(0, layout.size()) };
                noted(kept, layout.size())
            }
            // SAFETY: the caller's promise.
            _ => noted(unsafe { System.alloc_zeroed(layout) }, layout.size()),
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let ours = |size| class(size).filter(|_| layout.align() <= ALIGN);
        match (ours(layout.size()), ours(new_size)) {
            // SAFETY: the caller's promise; before and after it is a block of the system's.
            (None, None) => noted(unsafe { System.realloc(block, layout, new_size) }, new_size),
            (Some(before), Some(after)) if before == after => noted(block, new_size),
            _ => {
                // SAFETY: new_size is not zero and does not overflow with the alignment, by the caller's promise, who gives the
                // block up with its layout; both blocks have the bytes that are copied.
                unsafe {
                    let to =
                        self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
                    if !to.is_null() {
                        to.copy_from_nonoverlapping(block, layout.size().min(new_size));
                        self.dealloc(block, layout);
                    }
                    to
                }
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class(layout.size()) {
            Some((class, size)) if layout.align() <= ALIGN => {
                if size <= self.limit()
                    && let Ok(mut list) = self.lists[class].lock()
                {
                    // SAFETY: the block is ours now, at least LARGE bytes and aligned to 4096.
                    unsafe { block.cast::<*mut u8>().write(list.0) };
                    list.0 = block;
                    // Before another thread can take the block and count it off.
                    self.kept.fetch_add(size, Ordering::Relaxed);
                    drop(list);
                    self.note(class);
                    self.trim(self.limit());
                } else {
                    // SAFETY: blocks of a class come from `fresh` with its size; the caller gives this one up.
                    unsafe { give_back(block, size) };
                }
            }
            // SAFETY: the caller's promise.
            _ => unsafe { System.dealloc(block, layout) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_large_enough_and_not_a_quarter_too_large() {
        let mut size = LARGE;
        while size < 1 << 36 {
            for size in [size, size + 1, size + size / 3] {
                let (_, room) = class(size).unwrap();
                assert!(room >= size && room <= size + size / 4, "{size}: {room}");
                assert_eq!(class(room), class(size), "one size for a class");
                assert_eq!(class_size(class(size).unwrap().0), room);
            }
            size *= 2;
        }
        assert_eq!(class(LARGE - 1), None);
    }

    #[test]
    fn a_block_is_given_again_and_no_more_is_kept_than_the_limit() {
        let arena = Arena::new(3 << 20);
        let layout = Layout::from_size_align(1 << 20, 64).unwrap();
        // SAFETY: blocks are written inside their size, and end once with the layout that they began with.
        unsafe {
            let block = arena.alloc(layout);
            block.write_bytes(7, layout.size());
            arena.dealloc(block, layout);
            assert_eq!(arena.kept(), 1 << 20);
            let new = arena.alloc_zeroed(Layout::from_size_align(5 << 19, 64).unwrap());
            assert_eq!(new.align_offset(ALIGN), 0);
            let bytes = std::slice::from_raw_parts(new, 5 << 19);
            assert!(bytes.iter().all(|byte| *byte == 0));
            arena.dealloc(new, Layout::from_size_align(5 << 19, 64).unwrap());
            arena.trim(0);
            let block = arena.alloc(layout);
            block.write_bytes(7, layout.size());
            arena.dealloc(block, layout);
            let again = arena.alloc_zeroed(layout);
            assert_eq!(again, block);
            let bytes = std::slice::from_raw_parts(again, layout.size());
            assert!(bytes.iter().all(|byte| *byte == 0));
            assert_eq!(arena.kept(), 0);
            arena.dealloc(again, layout);
            let blocks: Vec<_> = (0..6).map(|_| arena.alloc(layout)).collect();
            for block in blocks {
                arena.dealloc(block, layout);
            }
            assert_eq!(arena.kept(), 3 << 20);
            // What has not been used for longest goes first.
            let other = Layout::from_size_align(2 << 20, 64).unwrap();
            let block = arena.alloc(other);
            arena.dealloc(block, other);
            assert_eq!(arena.alloc(other), block);
            arena.dealloc(block, other);
            arena.trim(2 << 20);
            assert_eq!(arena.kept(), 2 << 20);
            assert_eq!(arena.alloc(other), block);
            arena.dealloc(block, other);
            let small = Layout::from_size_align(100, 8).unwrap();
            let block = arena.alloc(small);
            arena.dealloc(block, small);
            assert_eq!(arena.kept(), 2 << 20);
            // Growing inside the class moves nothing, beyond it all that was written.
            let block = arena.alloc(layout);
            block.write_bytes(9, layout.size());
            assert_eq!(arena.realloc(block, layout, layout.size() - 100), block);
            let shorter = Layout::from_size_align(layout.size() - 100, 64).unwrap();
            let longer = arena.realloc(block, shorter, 5 << 20);
            let bytes = std::slice::from_raw_parts(longer, shorter.size());
            assert!(bytes.iter().all(|byte| *byte == 9));
            arena.dealloc(longer, Layout::from_size_align(5 << 20, 64).unwrap());
            arena.trim(0);
            assert_eq!(arena.kept(), 0);
            // More is kept as long as something asks for it; what is freed next lets the rest go.
            let more = KeepMore::new();
            let blocks: Vec<_> = (0..6).map(|_| arena.alloc(layout)).collect();
            for block in blocks {
                arena.dealloc(block, layout);
            }
            assert_eq!(arena.kept(), 6 << 20);
            drop(more);
            let block = arena.alloc(layout);
            arena.dealloc(block, layout);
            assert_eq!(arena.kept(), 3 << 20);
            arena.trim(0);
        }
    }
}
