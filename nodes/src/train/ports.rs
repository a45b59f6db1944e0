//! What trainings take and give.

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
