//! The types that cross ports.

mod control;
pub mod image;
mod latent;
pub mod mask;
mod masks;
mod model;
pub mod table;
mod tensors;
mod trajectory;

pub use control::{Control, ControlFacts};
pub use image::{Image, ImageFacts};
pub use latent::{Latent, LatentFacts};
pub use mask::Mask;
pub use masks::{MaskOrMasks, Masks, MasksFacts};
pub use model::Model;
pub use table::Table;
pub use trajectory::{Trajectory, TrajectoryFacts};

pub(crate) use masks::FIRST_STEP;
pub(crate) use tensors::READ_AS;
pub(crate) use trajectory::DRAWN;
