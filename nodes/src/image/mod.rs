//! Nodes that change pictures and masks, find the subject of pictures, and draw sheets and plots.

pub mod frame;
pub mod grid;
pub mod mask;
pub mod plot;
pub mod resample;
pub mod resize_image;
pub mod segment;

pub use grid::Grid;
pub use mask::MakeMask;
pub use plot::Plot;
pub use resize_image::ResizeImage;
pub use segment::Segment;
