//! Nodes that change pictures and masks.

pub mod frame;
pub mod grid;
pub mod mask;
pub mod resample;
pub mod resize_image;
pub mod segment;

pub use grid::Grid;
pub use mask::MakeMask;
pub use resize_image::ResizeImage;
pub use segment::Segment;
