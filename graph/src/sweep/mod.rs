//! Sweeps: one workflow run for many values of its params, planned as one graph, so that whatever cells have in common,
//! down to the denoising step, is made once.

mod join;
mod label;
mod load;
mod path;
mod plan;
mod report;
mod sheet;
#[expect(clippy::module_inception, reason = "the room and what it is about")]
mod sweep;
mod values;

pub use label::shown;
pub(crate) use load::{check_values, load};
pub use plan::SweepPlan;
pub use sweep::{Cell, Sweep};
pub use values::MAX_CELLS;
