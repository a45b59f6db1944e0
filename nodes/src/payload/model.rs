//! Models.

use retouch_graph::Payload;

use crate::diffusion::checkpoint::Checkpoint;

/// A model: U-Net, text encoder, tokenizer, VAE and schedule.
#[derive(Debug)]
pub struct Model {
    /// The checkpoint; its parts are loaded when they are first used.
    pub checkpoint: Checkpoint,
}

impl Payload for Model {
    const TYPE: &'static str = "model";

    fn bytes(&self) -> usize {
        self.checkpoint.bytes()
    }

    fn summary(&self) -> String {
        let facts = self.checkpoint.description().facts();
        format!(
            "model with latents of {} channels, {} sites",
            facts.latent_channels,
            facts.sites.len()
        )
    }
}
