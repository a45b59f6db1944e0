//! Nodes that read files.

pub(crate) mod jpeg;
pub mod load_image;
pub mod load_images;
pub mod load_latent;
pub mod load_mask;
pub mod load_model;

pub use load_image::LoadImage;
pub use load_images::LoadImages;
pub use load_latent::LoadLatent;
pub use load_mask::LoadMask;
pub use load_model::LoadModel;
