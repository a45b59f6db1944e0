//! What tasks write to: results that they share, and scratches of their own.

use std::mem::MaybeUninit;

use candle_core::Result;

/// Numbers that are yet to be written, which all of the functions here do that succeed.
pub(super) type Unfilled<'a, T = f32> = &'a mut [MaybeUninit<T>];

/// `len` numbers that `f` writes; it must write all of them if it succeeds.
///
/// # Safety
/// That it does.
pub(super) unsafe fn written<T, R>(
    len: usize,
    f: impl FnOnce(Unfilled<'_, T>) -> Result<R>,
) -> Result<(Vec<T>, R)> {
    let mut out = Vec::with_capacity(len);
    let given = f(&mut out.spare_capacity_mut()[..len])?;
    // SAFETY: the capacity is `len`, and `f` wrote all of it, by the caller's promise.
    unsafe { out.set_len(len) };
    Ok((out, given))
}

/// The result, written by all tasks, each its own rows and columns.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    data: *mut f32,
    len: usize,
}

impl Shared {
    /// What may be written, each element by one task.
    #[inline]
    pub fn of(out: Unfilled<'_>) -> Self {
        Self {
            data: out.as_mut_ptr().cast(),
            len: out.len(),
        }
    }

    #[inline]
    pub fn data(self) -> *mut f32 {
        self.data
    }

    #[inline]
    pub fn len(self) -> usize {
        self.len
    }

    /// A part of it.
    ///
    /// # Safety
    /// Nobody else has any of it as long as this is used.
    #[inline]
    pub unsafe fn part<'a>(self, start: usize, len: usize) -> Unfilled<'a> {
        assert!(start + len <= self.len, "a part inside");
        // SAFETY: it is inside, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start).cast(), len) }
    }
}

// SAFETY: tasks write disjoint elements: see `products::run`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// 64 bytes on a cache line of their own.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A scratch that keeps its memory from task to task.
#[derive(Default)]
pub(super) struct Scratch(Vec<Line>);

impl Scratch {
    /// At least that many bytes, whatever was left in them.
    pub fn bytes(&mut self, len: usize) -> *mut u8 {
        let lines = len.div_ceil(64);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 64]));
        }
        self.0.as_mut_ptr().cast()
    }
}
