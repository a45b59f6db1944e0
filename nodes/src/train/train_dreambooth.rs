//! `train_dreambooth`.

use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::training::export::AdapterFormat;
use retouch_diffusion::training::parameters::{NewToken, Trained};
use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, Types, Upstream};

use super::ports::{Inputs, Outputs};
use super::run::{self, Method};

training! {
    /// Trains all of a model's weights on pictures of a subject (DreamBooth).
    ///
    /// Ruiz et al. 2023: a token that means nothing ("sks") and the class, and a prior that keeps the class: `class_images`,
    /// or `preserve`. The closest likeness of all methods, the most memory (four times the U-Net's in float32), and a file as
    /// large as the model: `adapter` holds the differences of all weights, which `apply_lora` adds.
    pub struct TrainDreambooth {
        /// Optimizer steps.
        #[serde(default = "steps")]
        pub steps: u64,
        /// The learning rate of the U-Net.
        #[serde(default = "learning_rate")]
        pub learning_rate: f64,
        /// That of the text encoders. Default: `learning_rate`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub text_learning_rate: Option<f64>,
        /// Whether the text encoders are trained too.
        #[serde(default)]
        pub text_encoder: bool,
    }
}

fn steps() -> u64 {
    400
}

fn learning_rate() -> f64 {
    5e-6
}

impl TrainDreambooth {
    fn text_rate(&self) -> f64 {
        self.text_learning_rate.unwrap_or(self.learning_rate)
    }
}

impl Method for TrainDreambooth {
    fn trained(&self, model: &Checkpoint, _: u64) -> Result<Trained, NodeError> {
        Ok(Trained::dreambooth(model, self.text_encoder)?)
    }

    fn scale(&self) -> f64 {
        1.0
    }

    fn new_tokens(&self) -> Vec<NewToken> {
        Vec::new()
    }

    fn format(&self) -> AdapterFormat {
        AdapterFormat::Kohya
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("ss_network_module", "lycoris.kohya".into())]
    }
}

impl Node for TrainDreambooth {
    const OP: &'static str = "train_dreambooth";
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
