//! The nodes of Retouch, and under them the diffusion networks and kernels.

pub mod diffusion;
pub mod kernels;
