//! `train_custom_diffusion`.

use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::training::export::AdapterFormat;
use retouch_diffusion::training::parameters::{NewToken, Trained};
use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, Types, Upstream};

use super::ports::{Inputs, Outputs};
use super::run::{self, Method};

training! {
    /// Trains the keys and values of cross-attention, and the embeddings of a new token (Custom Diffusion).
    ///
    /// Kumari et al. 2023: only what the U-Net reads of the text changes, so that self-attention stays the base's. As in
    /// diffusers' implementation no gradient goes through the first token's key and value, which every text shares.
    pub struct TrainCustomDiffusion {
        /// What the token is called in prompts: `<new1>`. Without it only keys and values are trained.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub token: Option<String>,
        /// The word that its embedding begins as. Default: "ktn", as in the paper's code.
        #[serde(default = "initial")]
        pub initial: String,
        /// Optimizer steps.
        #[serde(default = "steps")]
        pub steps: u64,
        /// The learning rate of keys, values and the token.
        #[serde(default = "learning_rate")]
        pub learning_rate: f64,
    }
}

fn initial() -> String {
    "ktn".to_owned()
}

fn steps() -> u64 {
    250
}

fn learning_rate() -> f64 {
    1e-5
}

impl TrainCustomDiffusion {
    fn text_rate(&self) -> f64 {
        self.learning_rate
    }
}

impl Method for TrainCustomDiffusion {
    fn trained(&self, model: &Checkpoint, _: u64) -> Result<Trained, NodeError> {
        Ok(Trained::custom_diffusion(model, &self.new_tokens())?)
    }

    fn scale(&self) -> f64 {
        1.0
    }

    fn new_tokens(&self) -> Vec<NewToken> {
        let token = self.token.iter().map(|token| NewToken {
            token: token.clone(),
            initial: self.initial.clone(),
            vectors: 1,
        });
        token.collect()
    }

    fn format(&self) -> AdapterFormat {
        AdapterFormat::Diffusers
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let token = self.token.iter().map(|token| ("token", token.clone()));
        token.collect()
    }
}

impl Node for TrainCustomDiffusion {
    const OP: &'static str = "train_custom_diffusion";
    const VERSION: u32 = 3;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        run::check(self, &self.common(), Vec::new(), inputs, files)
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        run::chain(self, &self.common(), upstream)
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        run::run(self, &self.common(), &inputs, context)
    }
}
