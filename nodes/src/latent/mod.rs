//! Nodes between pictures and latents.

mod decode;
mod encode_reference;
mod invert;

pub(crate) use decode::channel_fault;
pub use decode::Decode;
pub use encode_reference::EncodeReference;
pub use invert::Invert;
