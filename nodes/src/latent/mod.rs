//! Nodes between pictures and latents.

pub mod animate;
pub mod decode;
pub mod encode_reference;
pub mod invert;

pub use animate::Animate;
pub use decode::Decode;
pub(crate) use decode::{channel_fault, decode};
pub use encode_reference::EncodeReference;
pub use invert::Invert;
