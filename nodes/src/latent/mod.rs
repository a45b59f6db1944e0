//! Nodes between pictures and latents.

pub mod animate;
pub mod decode;
pub mod encode_reference;
pub mod invert;

pub use animate::Animate;
pub use decode::Decode;
pub(crate) use decode::{by_vae, channel_fault, decode, tell_widened};
pub use encode_reference::EncodeReference;
pub use invert::Invert;
