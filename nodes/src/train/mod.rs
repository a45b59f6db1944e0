//! Nodes that train a subject from a few pictures: each takes a model and gives one that knows the subject, and the adapter as a
//! file.
//!
//! # Keys
//! A training is a chain of states, one each `every` steps. The key of a state (`retouch/training/1`) is made of the model, the
//! op and its version, the parameters that a step depends on, the keys of pictures, masks and class pictures, the numerics and
//! the number of steps made; how many there will be is among them only where the learning rate depends on it.

#[macro_use]
mod fields;
mod pictures;
mod run;
mod train_custom_diffusion;
mod train_dreambooth;
mod train_lora;
mod train_textual_inversion;

pub use train_custom_diffusion::TrainCustomDiffusion;
pub use train_dreambooth::TrainDreambooth;
pub use train_lora::TrainLora;
pub use train_textual_inversion::TrainTextualInversion;

use std::sync::Arc;

use retouch_graph::ports;

use crate::payload::photos::{ImageOrPhotos, MaskOrPhotoMasks};
use crate::payload::{Adapter, Image, Model, Table};

ports! {
    /// What a training takes.
    pub struct Inputs {
        /// The model that learns the subject.
        pub model: Arc<Model>,
        /// The pictures of the subject, from `load_images`.
        pub images: ImageOrPhotos,
        /// Where the subject is in each of them.
        pub masks: Option<MaskOrPhotoMasks>,
        /// Pictures of the class without the subject (prior preservation), from `sample` and `decode` for one.
        pub class_images: Option<ImageOrPhotos>,
    }
}

ports! {
    /// What a training gives.
    pub struct Outputs {
        /// The model that knows the subject.
        pub model: Arc<Model>,
        /// What was trained, as a file that other programs read.
        pub adapter: Arc<Adapter>,
        /// The error of every step, of the pictures and of the prior, and the learning rate.
        pub losses: Arc<Table>,
        /// With `sample_prompt`: a picture drawn at each checkpoint, in their order, the last being the finished model's.
        pub samples: Option<Arc<Image>>,
    }
}
