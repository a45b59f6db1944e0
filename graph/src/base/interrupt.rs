//! Whether what this thread computes is still wanted.
//!
//! The layers of a network, the loading of weights and the digests of large files take seconds and know no run: they are
//! reached from nodes, from checks and from the viewer, through interfaces that carry none. The [`Cancel`] that they look at is
//! therefore one of the thread: the engine sets it around each node, a command for its own thread.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

thread_local! {
    static CURRENT: RefCell<Option<Cancel>> = const { RefCell::new(None) };
}

/// Does work of this thread that ends early, with an error of its own, when it is cancelled.
pub fn within<T>(cancel: &Cancel, work: impl FnOnce() -> T) -> T {
    // Set back also when the work panics: the thread may go on to other work.
    struct Restore(Option<Cancel>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let _restore = Restore(CURRENT.replace(Some(cancel.clone())));
    work()
}

/// Lets all further work of this thread end early when it is cancelled: for the main thread of a command.
pub fn attend(cancel: &Cancel) {
    CURRENT.set(Some(cancel.clone()));
}

/// Whether the work of this thread was cancelled, and not [only at its next step](Cancel::cancel_at_step).
#[must_use]
pub fn is_requested() -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(Cancel::is_at_once))
}

/// Between two pieces of a long piece of input or output.
///
/// # Errors
/// When the work of this thread was cancelled. It is not [`io::ErrorKind::Interrupted`], after which readers try again.
pub fn check() -> io::Result<()> {
    match is_requested() {
        true => Err(io::Error::other("cancelled")),
        false => Ok(()),
    }
}

/// How often a wait for the device, or for an entry in flight, looks whether it was cancelled.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Cancels a run from elsewhere; cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicU8>);

/// Nobody cancelled.
const GOES_ON: u8 = 0;

/// A step that is under way is finished.
const AT_STEP: u8 = 1;

/// It is not.
const AT_ONCE: u8 = 2;

impl Cancel {
    /// Makes one that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels: what runs stops as soon as it looks ([`crate::base::interrupt`]), and nothing else begins.
    pub fn cancel(&self) {
        self.0.fetch_max(AT_ONCE, Ordering::SeqCst);
    }

    /// Cancels, and lets a sampler finish the step that is under way, for a run that goes on from it.
    pub fn cancel_at_step(&self) {
        self.0.fetch_max(AT_STEP, Ordering::SeqCst);
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst) != GOES_ON
    }

    /// Whether it was cancelled so that not even a step is finished.
    #[must_use]
    pub fn is_at_once(&self) -> bool {
        self.0.load(Ordering::SeqCst) == AT_ONCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_a_cancel_sees_it_and_what_comes_after_does_not() {
        let (outer, inner) = (Cancel::new(), Cancel::new());
        assert!(!is_requested());
        within(&outer, || {
            within(&inner, || {
                inner.cancel();
                assert!(is_requested());
                assert!(check().is_err());
            });
            assert!(!is_requested(), "the outer one goes on");
            let panicked = std::panic::catch_unwind(|| within(&inner, || panic!("a node")));
            assert!(panicked.is_err());
            assert!(!is_requested());
            outer.cancel_at_step();
            assert!(
                outer.is_cancelled() && !is_requested(),
                "a step is finished"
            );
            outer.cancel();
            assert!(is_requested());
            outer.cancel_at_step();
            assert!(is_requested(), "what is cancelled stays so");
        });
        assert!(!is_requested() && check().is_ok());
    }
}
