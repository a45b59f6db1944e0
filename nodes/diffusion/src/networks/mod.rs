//! The networks: text encoder, U-Net with numbered attention sites, VAE, and the layers that they share.

pub mod clip;
pub mod layers;
pub mod preview;
pub mod tiles;
pub mod unet;
pub mod vae;
