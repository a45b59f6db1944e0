//! The types that cross ports.

pub mod animation;
mod attention;
mod colour_map;
mod control;
pub mod features;
pub mod image;
mod latent;
pub mod mask;
mod masks;
mod model;
pub mod photos;
mod report;
mod solver_state;
pub mod table;
mod tensors;
mod trajectory;

pub use animation::Animation;
pub use control::{Control, ControlFacts};
pub use features::{Features, FeaturesFacts};
pub use image::{Image, ImageFacts};
pub use latent::{Latent, LatentFacts};
pub use mask::Mask;
pub use masks::{MaskOrMasks, Masks, MasksFacts};
pub use model::Model;
pub use photos::{
    ImageOrPhotos, MaskOrPhotoMasks, Photo, PhotoMask, PhotoMasks, PhotoMasksFacts, Photos,
    PhotosFacts,
};
pub use report::Report;
pub use table::Table;
pub use trajectory::{Trajectory, TrajectoryFacts};

/// The types of value that the disk cache keeps. Models and controls are not: they cost nothing to make again.
#[must_use]
pub fn decoders() -> retouch_graph::Decoders {
    retouch_graph::Decoders::new()
        .with::<Latent>()
        .with::<Trajectory>()
        .with::<Mask>()
        .with::<Masks>()
        .with::<Image>()
        .with::<Photos>()
        .with::<PhotoMasks>()
        .with::<Table>()
        .with::<Features>()
        .with::<Report>()
        .with::<Attention>()
        .with::<Animation>()
        .with::<ColourMap>()
        .with::<SolverState>()
}

pub(crate) use attention::Attention;
pub(crate) use colour_map::ColourMap;
pub(crate) use masks::FIRST_STEP;
pub(crate) use solver_state::SolverState;
pub(crate) use tensors::READ_AS;
pub(crate) use trajectory::{DRAWN, SCHEDULE};
