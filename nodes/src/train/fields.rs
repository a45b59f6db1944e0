//! The parameters that all trainings have.

use retouch_diffusion::training::optimizer::{AdamW, RateSchedule};
use retouch_diffusion::training::trainer::Settings;
use retouch_graph::Fault;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate goes over the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LearningRateSchedule {
    /// As it is.
    #[default]
    Constant,
    /// Down to 0 in equal steps.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
}

impl LearningRateSchedule {
    pub(super) fn schedule(self) -> RateSchedule {
        match self {
            Self::Constant => RateSchedule::Constant,
            Self::Linear => RateSchedule::Linear,
            Self::Cosine => RateSchedule::Cosine,
        }
    }
}

/// What all trainings have in common, as it was set.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub steps: u64,
    pub learning_rate: f64,
    pub text_learning_rate: f64,
    pub schedule: LearningRateSchedule,
    pub warmup: u64,
    pub batch: usize,
    pub accumulation: usize,
    pub weight_decay: f64,
    pub eight_bit: bool,
    pub max_grad_norm: f64,
    pub snr_gamma: Option<f64>,
    pub noise_offset: f64,
    pub prior_weight: f64,
    pub background_weight: f64,
    pub caption: String,
    pub class_prompt: Option<String>,
    pub preserve: Option<String>,
    pub ema: Option<f64>,
    pub gradient_checkpointing: bool,
    pub seed: u64,
    pub every: u64,
    pub checkpoint: Option<u64>,
    pub sample_prompt: Option<String>,
    pub sample_steps: usize,
    pub sample_guidance: f64,
}

/// Declares the parameters of a training: its own, and those of all.
macro_rules! training {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $($(#[$field_attribute:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// What the pictures show, for those that have no caption: "a photo of sks dog". The token and the class stand in it
            /// as they will in prompts.
            pub caption: $crate::fields::Template,
            $($(#[$field_attribute])* pub $field: $type,)*
            /// Pictures of a step. Their rows go through the U-Net together; those of the prior come besides.
            #[serde(default = "crate::train::fields::one")]
            #[schemars(range(min = 1, max = 256))]
            pub batch: usize,
            /// Batches whose gradients a step takes the mean of: as a batch that many times as large, in the memory of one.
            #[serde(default = "crate::train::fields::one")]
            #[schemars(range(min = 1, max = 256))]
            pub accumulation: usize,
            /// How the learning rate goes over the steps: `constant`, `linear` or `cosine`. With the last two, more steps are
            /// another training.
            #[serde(default)]
            pub schedule: $crate::train::fields::LearningRateSchedule,
            /// Steps over which the learning rate rises from 0 first.
            #[serde(default)]
            pub warmup: u64,
            /// By which share of the learning rate weights shrink at each step (AdamW).
            #[serde(default = "crate::train::fields::weight_decay")]
            #[schemars(range(min = 0, max = 1))]
            pub weight_decay: f64,
            /// Whether the optimizer's moments are held in 8 bits: a quarter of their memory.
            #[serde(default)]
            pub eight_bit: bool,
            /// The norm that gradients are scaled down to where theirs is larger; 0 is none.
            #[serde(default = "crate::train::fields::unit")]
            #[schemars(range(min = 0))]
            pub max_grad_norm: f64,
            /// gamma of min-SNR weighting (Hang et al. 2023), 5 for one: easy timesteps count less. Default: all count as much.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub snr_gamma: Option<f64>,
            /// The deviation of a number that is added to the noise of each channel, 0.05 to 0.1 for very dark and very bright
            /// pictures.
            #[serde(default)]
            #[schemars(range(min = 0, max = 1))]
            pub noise_offset: f64,
            /// How much the prior's error counts beside that of the pictures.
            #[serde(default = "crate::train::fields::unit")]
            #[schemars(range(min = 0))]
            pub prior_weight: f64,
            /// With masks: how much places outside of the subject count, from 0 to 1. A picture's weights have the mean 1.
            #[serde(default = "crate::train::fields::background_weight")]
            #[schemars(range(min = 0, max = 1))]
            pub background_weight: f64,
            /// The prompt of `class_images`: "a photo of a dog".
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub class_prompt: Option<$crate::fields::Template>,
            /// Prior preservation without class pictures: for this prompt, "a dog" for one, the model is to predict of the
            /// pictures' latents what it predicted before it was trained. One more call of the U-Net a step.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub preserve: Option<$crate::fields::Template>,
            /// The decay of an average of the weights that is given in place of the last ones, 0.99 to 0.9999.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub ema: Option<f64>,
            /// Whether inner results of the U-Net's blocks are computed again in place of being kept: less memory, a third more
            /// time.
            #[serde(default)]
            pub gradient_checkpointing: bool,
            /// What noise, timesteps and the order of pictures are drawn from.
            #[serde(default)]
            pub seed: Option<crate::fields::Seed>,
            /// Steps from one checkpoint to the next. A training that is stopped goes on at the last one.
            #[serde(default = "crate::train::fields::every")]
            #[schemars(range(min = 1))]
            pub every: u64,
            /// The step whose weights are given, in place of the last: a multiple of `every`. The training ends there.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub checkpoint: Option<u64>,
            /// The prompt of a picture that is drawn at each checkpoint, for the output `samples` and for previews.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub sample_prompt: Option<$crate::fields::Template>,
            /// Denoising steps of those pictures.
            #[serde(default = "crate::train::fields::sample_steps")]
            #[schemars(range(min = 1, max = 1000))]
            pub sample_steps: usize,
            /// Their guidance.
            #[serde(default = "crate::train::fields::sample_guidance")]
            pub sample_guidance: f64,
        }

        impl $name {
            fn common(&self) -> $crate::train::fields::Common {
                let text = |t: &Option<$crate::fields::Template>| {
                    t.as_ref().map(|t| t.as_str().to_owned())
                };
                $crate::train::fields::Common {
                    steps: self.steps,
                    learning_rate: self.learning_rate,
                    text_learning_rate: self.text_rate(),
                    schedule: self.schedule,
                    warmup: self.warmup,
                    batch: self.batch,
                    accumulation: self.accumulation,
                    weight_decay: self.weight_decay,
                    eight_bit: self.eight_bit,
                    max_grad_norm: self.max_grad_norm,
                    snr_gamma: self.snr_gamma,
                    noise_offset: self.noise_offset,
                    prior_weight: self.prior_weight,
                    background_weight: self.background_weight,
                    caption: self.caption.as_str().to_owned(),
                    class_prompt: text(&self.class_prompt),
                    preserve: text(&self.preserve),
                    ema: self.ema,
                    gradient_checkpointing: self.gradient_checkpointing,
                    seed: self.seed.map_or(0, crate::fields::Seed::get),
                    every: self.every,
                    checkpoint: self.checkpoint,
                    sample_prompt: text(&self.sample_prompt),
                    sample_steps: self.sample_steps,
                    sample_guidance: self.sample_guidance,
                }
            }
        }
    };
}

pub(super) fn one() -> usize {
    1
}

pub(super) fn unit() -> f64 {
    1.0
}

/// torch's.
pub(super) fn weight_decay() -> f64 {
    1e-2
}

pub(super) fn background_weight() -> f64 {
    1.0
}

pub(super) fn every() -> u64 {
    100
}

pub(super) fn sample_steps() -> usize {
    30
}

pub(super) fn sample_guidance() -> f64 {
    7.5
}

impl Common {
    /// The step that the training ends at.
    pub fn end(&self) -> u64 {
        self.checkpoint.unwrap_or(self.steps).min(self.steps)
    }

    /// The steps whose states are kept: the multiples of `every`, and the last.
    pub fn kept(&self) -> Vec<u64> {
        let end = self.end();
        let multiples = (1..).map(|i| i * self.every.max(1));
        let mut kept: Vec<u64> = multiples.take_while(|step| *step < end).collect();
        kept.push(end);
        kept
    }

    pub fn settings(&self) -> Settings {
        Settings {
            rate: self.learning_rate,
            text_rate: self.text_learning_rate,
            schedule: self.schedule.schedule(),
            warmup: self.warmup,
            steps: self.steps,
            batch: self.batch,
            accumulation: self.accumulation,
            optimizer: AdamW {
                betas: (0.9, 0.999),
                eps: 1e-8,
                weight_decay: self.weight_decay,
                eight_bit: self.eight_bit,
            },
            max_norm: self.max_grad_norm,
            min_snr: self.snr_gamma,
            noise_offset: self.noise_offset,
            prior_weight: self.prior_weight,
            background_weight: self.background_weight,
            ema: self.ema,
            seed: self.seed,
            recompute: self.gradient_checkpointing,
        }
    }

    /// What is wrong with the numbers.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut above_zero = |name: &'static str, value: f64| {
            if !(value.is_finite() && value > 0.0) {
                faults.push(
                    Fault::value(
                        name,
                        format!("{name} is {value}; expected a number above 0"),
                    )
                    .help("1e-4 is usual for LoRA, 5e-6 for all weights, 5e-4 for embeddings"),
                );
            }
        };
        above_zero("learning_rate", self.learning_rate);
        if self.steps == 0 || self.steps > 1_000_000 {
            faults.push(Fault::value(
                "steps",
                format!("steps is {}; expected 1 to 1000000", self.steps),
            ));
        }
        if let Some(gamma) = self.snr_gamma.filter(|g| !(g.is_finite() && *g > 0.0)) {
            faults.push(
                Fault::value(
                    "snr_gamma",
                    format!("snr_gamma is {gamma}; expected a number above 0"),
                )
                .help("5 is the paper's; leave it out to weigh all timesteps alike"),
            );
        }
        if let Some(ema) = self.ema.filter(|ema| !(*ema > 0.0 && *ema < 1.0)) {
            faults.push(
                Fault::value(
                    "ema",
                    format!("ema is {ema}; expected a number between 0 and 1"),
                )
                .help("0.999 for trainings of thousands of steps, 0.99 for hundreds"),
            );
        }
        if let Some(step) = self.checkpoint
            && (step == 0 || step > self.steps || (step % self.every != 0 && step != self.steps))
        {
            faults.push(
                Fault::value(
                    "checkpoint",
                    format!(
                        "checkpoint is {step}; expected a multiple of `every` ({}) up to `steps` ({})",
                        self.every, self.steps
                    ),
                )
                .help("leave it out for the last step"),
            );
        }
        faults
    }
}
