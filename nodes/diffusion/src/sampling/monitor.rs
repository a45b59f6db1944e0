//! Who watches a run.

use candle_core::Tensor;

use crate::Result;

/// Who wants to know how a run is going, and may end it.
pub trait Monitor {
    /// `done` of `total` steps are done.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) to end the run.
    fn step(&self, done: usize, total: usize) -> Result<()>;
    /// `images` more images (one half each) went through a U-Net.
    fn unet_calls(&self, images: usize);
    /// Something that the user should know but that does not end the run.
    fn warn(&self, message: &str);
    /// z, `[B, C, h, w]`, is what there is after `done` of `total` steps: a step that was just drawn, or the last.
    fn drawn(&self, done: usize, total: usize, z: &Tensor) {
        let _ = (done, total, z);
    }
    /// Whether the request is still current: asked at every layer of a call that is made for nothing but to be looked at.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) to end the call.
    fn goes_on(&self) -> Result<()> {
        Ok(())
    }
}
