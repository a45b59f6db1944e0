//! The networks: text encoder, U-Net with numbered attention sites, VAE, and the layers that they share; those that find the
//! subject of a photo.

pub mod clip;
pub mod layers;
pub mod preview;
pub mod sam;
pub mod tiles;
pub mod u2net;
pub mod unet;
pub mod vae;
