//! The networks: text encoder, U-Net with numbered attention sites, VAE, those that find the subject of a photo, those that look at
//! pictures to measure them, and the layers that they share.

pub mod bicubic;
pub mod clip;
pub mod layers;
pub mod lite;
pub mod lpips;
pub mod preview;
pub mod sam;
pub mod tiles;
pub mod u2net;
pub mod unet;
pub mod vae;
pub mod vit;
