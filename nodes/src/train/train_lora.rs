//! `train_lora`.

use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::training::export::AdapterFormat;
use retouch_diffusion::training::parameters::{LoraOptions, NewToken, Trained};
use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, Types, Upstream};

use super::ports::{Inputs, Outputs};
use super::run::{self, Method};

training! {
    /// Trains a LoRA on pictures of a subject: low-rank factors beside the projections of the U-Net's attentions.
    ///
    /// Hu et al. 2021, as PEFT begins and scales it. The model's own weights stay what they are. What is learned is what
    /// `caption` and the pictures' own captions name: a token that the model gives no meaning ("sks") and the class. With
    /// `preserve` or `class_images` the class stays as it was. The training is kept at each checkpoint: stopped and run
    /// again it goes on there, and ends in the same numbers.
    pub struct TrainLora {
        /// Optimizer steps.
        #[serde(default = "steps")]
        pub steps: u64,
        /// The learning rate of the U-Net's factors.
        #[serde(default = "learning_rate")]
        pub learning_rate: f64,
        /// That of the text encoders' factors. Default: a tenth of `learning_rate`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub text_learning_rate: Option<f64>,
        /// R: how many rows and columns a factor has. 4 to 32 is usual.
        #[serde(default = "rank")]
        #[schemars(range(min = 1, max = 1024))]
        pub rank: usize,
        /// What is learned counts alpha / rank. Default: the rank.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub alpha: Option<f64>,
        /// The share of a layer's inputs that its factors do not see at a step.
        #[serde(default)]
        #[schemars(range(min = 0, max = 0.9))]
        pub dropout: f64,
        /// Whether the convolutions of ResNet blocks and of resampling get factors too.
        #[serde(default)]
        pub convolutions: bool,
        /// Whether the text encoders' attentions get factors too.
        #[serde(default)]
        pub text_encoder: bool,
        /// Whose names the adapter's tensors have: `kohya` (ComfyUI and the A1111 web UI read it), `diffusers` or `peft`.
        #[serde(default)]
        pub format: AdapterFormat,
    }
}

fn steps() -> u64 {
    500
}

fn learning_rate() -> f64 {
    1e-4
}

fn rank() -> usize {
    8
}

impl TrainLora {
    fn text_rate(&self) -> f64 {
        self.text_learning_rate.unwrap_or(self.learning_rate / 10.0)
    }

    fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(self.rank as f64)
    }
}

impl Method for TrainLora {
    fn trained(&self, model: &Checkpoint, seed: u64) -> Result<Trained, NodeError> {
        let options = LoraOptions {
            rank: self.rank,
            alpha: self.alpha(),
            dropout: self.dropout,
            convolutions: self.convolutions,
            text: self.text_encoder,
        };
        Ok(Trained::lora(model, &options, seed)?)
    }

    fn scale(&self) -> f64 {
        self.alpha() / self.rank as f64
    }

    fn new_tokens(&self) -> Vec<NewToken> {
        Vec::new()
    }

    fn format(&self) -> AdapterFormat {
        self.format
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ss_network_module", "networks.lora".into()),
            ("ss_network_dim", self.rank.to_string()),
            ("ss_network_alpha", self.alpha().to_string()),
        ]
    }
}

impl Node for TrainLora {
    const OP: &'static str = "train_lora";
    const VERSION: u32 = 3;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let mut faults = Vec::new();
        if let Some(alpha) = self.alpha.filter(|a| !(a.is_finite() && *a > 0.0)) {
            faults.push(
                Fault::value(
                    "alpha",
                    format!("alpha is {alpha}; expected a number above 0"),
                )
                .help("leave it out for the rank: what is learned counts as it is"),
            );
        }
        run::check(self, &self.common(), faults, inputs, files)
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        run::chain(self, &self.common(), upstream)
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        run::run(self, &self.common(), &inputs, context)
    }
}
