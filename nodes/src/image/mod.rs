//! Nodes that change pictures and masks.

mod grid;
mod mask;
pub mod resample;
mod resize_image;

pub use grid::Grid;
pub use mask::MaskNode;
pub use resize_image::ResizeImage;
