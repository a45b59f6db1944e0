//! From a prompt to what the U-Net is conditioned on.

pub mod conditioning;
pub mod tokenizer;
