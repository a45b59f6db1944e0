//! Models.

use retouch_graph::{Environment, NodeError, Payload};

use crate::runtime::Runtime;
use retouch_diffusion::checkpoint::model::{Checkpoint, Parts};

/// A model: U-Net, text encoder, tokenizer, VAE and schedule.
#[derive(Debug)]
pub struct Model {
    /// The checkpoint; its parts are loaded when they are first used.
    pub checkpoint: Checkpoint,
    /// What adapters changed, a line each, in their order.
    pub adapters: Vec<String>,
}

impl Model {
    /// A model as it was loaded.
    #[must_use]
    pub fn new(checkpoint: Checkpoint) -> Self {
        Self {
            checkpoint,
            adapters: Vec::new(),
        }
    }

    /// What an adapter made of this model; `line` says what it did.
    pub(crate) fn adapted(&self, checkpoint: Checkpoint, line: String) -> Self {
        let mut adapters = self.adapters.clone();
        adapters.push(line);
        Self {
            checkpoint,
            adapters,
        }
    }
}

/// The parts of a model that an op uses; of one that is not listed, all.
fn parts_of(op: &str) -> Parts {
    let networks = Parts {
        vae: false,
        ..Parts::ALL
    };
    let vae = Parts {
        vae: true,
        ..Parts::NONE
    };
    match op {
        "sample" | "step_blend_sample" | "invert" | "attention_map" => networks,
        "decode" | "encode_reference" | "animate" => vae,
        _ => Parts::ALL,
    }
}

impl Payload for Model {
    const TYPE: &'static str = "model";
    // Its parts are loaded when they are first used.
    const LAZY: bool = true;

    fn bytes(&self) -> usize {
        self.checkpoint.bytes()
    }

    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        let runtime = environment.downcast_ref::<Runtime>();
        let elsewhere = runtime.filter(|it| !self.checkpoint.device().same_device(&it.device));
        Ok(elsewhere.map(|it| Self {
            checkpoint: self
                .checkpoint
                .on(&it.device, it.kernel.clone(), it.memory.clone()),
            adapters: self.adapters.clone(),
        }))
    }

    fn trim(&self, consumers: &[&'static str]) {
        let needed = consumers.iter().map(|op| parts_of(op));
        self.checkpoint
            .keep_only(needed.fold(Parts::NONE, Parts::or));
    }

    fn summary(&self) -> String {
        let facts = self.checkpoint.description().facts();
        let adapters: String = self
            .adapters
            .iter()
            .map(|line| format!("; {line}"))
            .collect();
        format!(
            "model with latents of {} channels, {} sites{adapters}",
            facts.latent_channels,
            facts.sites.len()
        )
    }
}
