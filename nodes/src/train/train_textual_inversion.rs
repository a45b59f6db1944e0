//! `train_textual_inversion`.

use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::training::export::AdapterFormat;
use retouch_diffusion::training::parameters::{NewToken, Trained};
use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, Types, Upstream};

use super::ports::{Inputs, Outputs};
use super::run::{self, Method};

training! {
    /// Trains the embeddings of a new token on pictures of a subject (textual inversion).
    ///
    /// Gal et al. 2022: nothing of the model changes, the token says the subject in its words. A file of kilobytes, and the
    /// weakest likeness of all methods. As only the text differs, one U-Net plays both models of the two stages.
    pub struct TrainTextualInversion {
        /// What the token is called in prompts: `<dog>`.
        pub token: String,
        /// The word or words that its embeddings begin as, the class for one: "dog".
        pub initial: String,
        /// How many vectors it has.
        #[serde(default = "super::fields::one")]
        #[schemars(range(min = 1, max = 75))]
        pub vectors: usize,
        /// Optimizer steps.
        #[serde(default = "steps")]
        pub steps: u64,
        /// The learning rate.
        #[serde(default = "learning_rate")]
        pub learning_rate: f64,
        /// Whose names the adapter's tensors have: `kohya` (`emb_params`, as the A1111 web UI and ComfyUI read it) or `diffusers`
        /// (by the token).
        #[serde(default)]
        pub format: AdapterFormat,
    }
}

fn steps() -> u64 {
    1000
}

fn learning_rate() -> f64 {
    5e-4
}

impl TrainTextualInversion {
    fn text_rate(&self) -> f64 {
        self.learning_rate
    }
}

impl Method for TrainTextualInversion {
    fn trained(&self, model: &Checkpoint, _: u64) -> Result<Trained, NodeError> {
        Ok(Trained::textual_inversion(model, &self.new_tokens())?)
    }

    fn scale(&self) -> f64 {
        1.0
    }

    fn new_tokens(&self) -> Vec<NewToken> {
        vec![NewToken {
            token: self.token.clone(),
            initial: self.initial.clone(),
            vectors: self.vectors,
        }]
    }

    fn format(&self) -> AdapterFormat {
        self.format
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("token", self.token.clone())]
    }
}

impl Node for TrainTextualInversion {
    const OP: &'static str = "train_textual_inversion";
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
