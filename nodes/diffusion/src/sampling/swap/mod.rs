//! Stage 2, the retouch by attention swap: its numbers, what it works on, and its loop.

mod grid;
mod look;
mod masks;
mod run;
mod setup;
mod sources;

pub use crate::sampling::matching::Values;
pub use grid::{MaskGrid, auto_sites, mask_level};
pub use setup::{
    Blend, CallContext, GivenMasks, Givens, Retouch, RetouchSettings, Retouched, Source,
    SourceStep, StepMasks, StepNeeds,
};
