//! The nodes of Retouch, and under them the diffusion networks and kernels.
//!
//! A node is one file: a struct of parameters with a [`retouch_graph::Node`] implementation. Adding one takes two
//! steps: the file, and a line in [`registry`].

pub mod attention;
pub mod diffusion;
pub mod fields;
pub mod image;
pub mod kernels;
pub mod latent;
pub mod load;
pub mod payload;
mod runtime;
pub mod sample;

pub use runtime::Runtime;
