//! What is kept between runs: states between steps, and what calls give besides their result.

use std::collections::BTreeSet;

use candle_core::Tensor;
use retouch_graph::Key;

use crate::Result;
use crate::sampling::control::{Branch, Captured, Half, Part};

/// Something that is held until it is dropped.
pub trait Held {}

/// What is kept between runs: the states between steps, and what calls give besides their result. All of it may be
/// forgotten at any time, and is made again then.
pub trait StepStore {
    /// z_k, if it is kept.
    fn state(&self, k: usize) -> Option<Tensor> {
        let _ = k;
        None
    }
    /// Keeps z_k, which took so many seconds from z_{k-1}.
    fn keep_state(&self, k: usize, z: &Tensor, seconds: f64) {
        let _ = (k, z, seconds);
    }
    /// The solver state beside z_k, if it is kept.
    fn past(&self, k: usize) -> Option<Vec<Tensor>> {
        let _ = k;
        None
    }
    /// Keeps the solver state beside z_k.
    fn keep_past(&self, k: usize, past: &[Tensor], seconds: f64) {
        let _ = (k, past, seconds);
    }
    /// The raw maps of the target's step k, if they are kept.
    fn target_map(&self, k: usize) -> Option<Tensor> {
        let _ = k;
        None
    }
    /// Keeps the raw maps of the target's step k.
    fn keep_target_map(&self, k: usize, map: &Tensor, seconds: f64) {
        let _ = (k, map, seconds);
    }
    /// Acquires the in-flight lock of z_k, waiting for its holder; it is held until what is returned is dropped.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    fn claim(&self, k: usize) -> Result<Option<Box<dyn Held + '_>>> {
        let _ = k;
        Ok(None)
    }
    /// Acquires the in-flight locks of calls, waiting for their holders; they are held until what is returned is dropped.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    fn claim_calls(&self, calls: &BTreeSet<Key>) -> Result<Vec<Box<dyn Held + '_>>> {
        let _ = calls;
        Ok(Vec::new())
    }
    /// What the call of a branch at step k is called.
    fn call(&self, branch: Branch, half: Half, k: usize) -> Option<Key> {
        let _ = (branch, half, k);
        None
    }
    /// What is to be kept of a call.
    fn wanted(&self, call: &Key) -> Vec<Part> {
        let _ = call;
        Vec::new()
    }
    /// A part of a call, if it is kept.
    fn part(&self, call: &Key, part: Part) -> Option<Captured> {
        let _ = (call, part);
        None
    }
    /// Keeps a part of a call.
    fn keep_part(&self, call: &Key, part: Part, given: &Captured, seconds: f64) {
        let _ = (call, part, given, seconds);
    }
    /// Whether the masks of the swap are wanted.
    fn wants_masks(&self) -> bool {
        true
    }
    /// The first step that is not kept, or T, of T: said once.
    fn resumed(&self, step: usize, of: usize) {
        let _ = (step, of);
    }
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

impl StepStore for NoStore {}

/// An in-flight lock, where others could compute the same.
pub(super) type Claimed<'a> = Option<Box<dyn Held + 'a>>;

/// What `kept` finds of state k; if it is nothing, its in-flight lock, once a holder that may have made it released it.
pub(super) fn recall<'a, T>(
    memory: &'a dyn StepStore,
    k: usize,
    kept: impl Fn() -> Option<T>,
) -> Result<(Option<T>, Claimed<'a>)> {
    if let Some(there) = kept() {
        return Ok((Some(there), None));
    }
    let claim = memory.claim(k)?;
    let there = claim.is_some().then(kept).flatten();
    Ok((there, claim))
}

/// Says once where a run goes on.
pub(super) struct Resume<'a> {
    memory: &'a dyn StepStore,
    said: bool,
    steps: usize,
}

impl<'a> Resume<'a> {
    pub(super) fn new(memory: &'a dyn StepStore, steps: usize) -> Self {
        Self {
            memory,
            said: false,
            steps,
        }
    }

    /// Step k (counted from the first that could be kept, `first`) is made.
    pub(super) fn makes(&mut self, k: usize, first: usize) {
        if !self.said && k > first {
            self.memory.resumed(k, self.steps);
        }
        self.said = true;
    }

    /// There is no step left.
    pub(super) fn end(&mut self, first: usize) {
        self.makes(self.steps, first);
    }
}
