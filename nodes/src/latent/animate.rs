//! `animate`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::channel_fault;
use crate::image::resample::{Filter, resize};
use crate::payload::animation::Animator;
use crate::payload::image::{MAX_PIXELS, MAX_SIDE};
use crate::payload::{Animation, Model, Trajectory, TrajectoryFacts};
use crate::preview::{By, pictures};
use crate::runtime::{check_finite, tensor_error};
use retouch_diffusion::checkpoint::model::ModelFacts;

/// Makes an animated PNG of a trajectory: how a picture comes out of the noise.
///
/// The frames are the latents after every `every` steps, from the starting noise (which programs that know no animations
/// show) to the finished picture; the last is always among them. `by: linear` is for looking on, `by: vae` gives as
/// the last frame what `decode` gives. Of a batch each picture gets a file of its own.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Animate {
    /// How latents become pictures.
    #[serde(default)]
    pub by: By,
    /// Steps from frame to frame.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub every: usize,
    /// Seconds that a frame is seen, 0.01 to 60.
    #[serde(default = "frame_seconds")]
    #[schemars(range(min = 0.01, max = 60.0))]
    pub frame_seconds: f64,
    /// Seconds that the last frame is seen, 0.01 to 60.
    #[serde(default = "hold")]
    #[schemars(range(min = 0.01, max = 60.0))]
    pub hold: f64,
    /// How often it is played; 0: again and again.
    #[serde(default)]
    #[schemars(range(max = 65535))]
    pub loops: u32,
    /// How many times larger the pictures are made, each pixel a square: 1 to 32.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 32))]
    pub scale: usize,
}

fn one() -> usize {
    1
}
fn frame_seconds() -> f64 {
    0.08
}
fn hold() -> f64 {
    1.5
}

/// The range of a frame's seconds: browsers take less than 0.01 for "as they like", and a PNG has 16 bits for the
/// milliseconds.
const SECONDS: std::ops::RangeInclusive<f64> = 0.01..=60.0;
/// More plays than anybody sees; a PNG has 31 bits for them.
const MAX_LOOPS: u32 = 65_535;
/// The largest scale: a picture of 64 pixels fills a screen.
const MAX_SCALE: usize = 32;
/// The most pixels of all frames of all pictures: four pictures of the largest size, or 51 frames of 2000x2000. A PNG of
/// noise has about 3 bytes for each, which the value holds in memory.
const MOST_PIXELS: usize = 4 * MAX_PIXELS;

ports! {
    /// What `animate` takes.
    pub struct Inputs {
        /// The model whose VAE, or its likeness, makes the pictures.
        pub model: Arc<Model>,
        /// The latents: `$draw.trajectory`.
        pub trajectory: Arc<Trajectory>,
    }
}

ports! {
    /// What `animate` gives.
    pub struct Outputs {
        /// The animation, to be saved as .png or .apng.
        pub animation: Arc<Animation>,
    }
}

impl Animate {
    /// The states of T steps that are frames.
    fn frames(&self, steps: usize) -> Vec<usize> {
        let every = self.every.max(1);
        (0..=steps)
            .filter(|k| k % every == 0 || *k == steps)
            .collect()
    }

    /// What is wrong with the parameters whatever is linked.
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.every == 0 {
            faults.push(
                Fault::value("every", "every is 0; expected a number of steps from 1 on")
                    .help("1 makes every step a frame"),
            );
        }
        for (name, seconds) in [("frame_seconds", self.frame_seconds), ("hold", self.hold)] {
            if !SECONDS.contains(&seconds) {
                faults.push(
                    Fault::value(
                        name,
                        format!("{name} is {seconds}; expected 0.01 to 60 seconds"),
                    )
                    .help("0.08 is 12 frames a second"),
                );
            }
        }
        if !(1..=MAX_SCALE).contains(&self.scale) {
            faults.push(
                Fault::value(
                    "scale",
                    format!("scale is {}; expected 1 to {MAX_SCALE}", self.scale),
                )
                .help("1 leaves the pictures as large as `decode` makes them"),
            );
        }
        if self.loops > MAX_LOOPS {
            faults.push(
                Fault::value(
                    "loops",
                    format!("loops is {}; expected 0 to {MAX_LOOPS}", self.loops),
                )
                .help("0 plays it again and again"),
            );
        }
        faults
    }

    /// Whether there are too many pixels in it, for a model whose pictures are `factor` times its latents.
    fn size_fault(&self, of: &TrajectoryFacts, factor: usize) -> Option<Fault> {
        let times = factor.saturating_mul(self.scale);
        let (width, height) = (
            of.width.saturating_mul(times),
            of.height.saturating_mul(times),
        );
        if width > MAX_SIDE || height > MAX_SIDE {
            return Some(
                Fault::value(
                    "scale",
                    format!(
                        "frames of {width}x{height} pixels are too large: a side has at most {MAX_SIDE}"
                    ),
                )
                .help("give a smaller `scale`"),
            );
        }
        let frames = self.frames(of.steps).len();
        let each = width * height * of.batch.max(1);
        if frames.saturating_mul(each) <= MOST_PIXELS {
            return None;
        }
        let help = match (MOST_PIXELS / each.max(1)).checked_sub(2) {
            // The first and the last are always there.
            Some(most) if most > 0 => {
                format!("`every: {}` fits", of.steps.div_ceil(most))
            }
            _ => "give a smaller `scale`, or draw fewer pictures at once".to_owned(),
        };
        Some(
            Fault::value(
                "every",
                format!(
                    "{frames} frames of {} pictures of {width}x{height} pixels are too much: an animation has at most {} megapixels in all",
                    of.batch,
                    MOST_PIXELS / 1_000_000
                ),
            )
            .help(help),
        )
    }
}

impl Node for Animate {
    const OP: &'static str = "animate";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let mut faults = self.faults();
        let model: Option<ModelFacts> = inputs.facts("model");
        let trajectory: Option<TrajectoryFacts> = inputs.facts("trajectory");
        if let (Some(model), Some(of)) = (&model, &trajectory) {
            faults.extend(channel_fault(model, of.channels, "trajectory"));
            if faults.is_empty() {
                faults.extend(self.size_fault(of, model.factor));
            }
        }
        if faults.is_empty() {
            Ok(Types::unknown())
        } else {
            Err(faults)
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let model = &inputs.model.checkpoint;
        let latents = &inputs.trajectory.latents;
        let steps = inputs.trajectory.steps();
        let first = latents
            .first()
            .ok_or_else(|| NodeError::failed("an empty trajectory"))?;
        let (batch, channels, height, width) = first.dims4().map_err(tensor_error)?;
        let of = TrajectoryFacts {
            steps,
            batch,
            channels,
            height,
            width,
            schedule: None,
        };
        let facts = model.description().facts();
        let fault = self.faults().into_iter().next();
        let fault = fault
            .or_else(|| channel_fault(&facts, channels, "trajectory"))
            .or_else(|| self.size_fault(&of, facts.factor));
        if let Some(fault) = fault {
            let failed = NodeError::failed(fault.message);
            return Err(match fault.help {
                Some(help) => failed.help(help),
                None => failed,
            });
        }
        let frames = self.frames(steps);
        let milliseconds = |seconds: f64| (seconds * 1000.0).round() as u16;
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let mut animator = Animator::new(count, self.loops);
        for (done, k) in frames.iter().enumerate() {
            context.check_cancelled()?;
            context.progress(done, frames.len());
            let latent = &latents[*k];
            check_finite(latent, "the trajectory")?;
            let image = pictures(model, latent, self.by, context)?;
            check_finite(&image.rgb, "the picture")?;
            let (width, height) = image.size();
            let image = resize(
                &image,
                width * self.scale,
                height * self.scale,
                Filter::Nearest,
            )?;
            let seconds = if *k == steps {
                self.hold
            } else {
                self.frame_seconds
            };
            animator.add(&image, milliseconds(seconds))?;
        }
        context.progress(frames.len(), frames.len());
        Ok(Outputs {
            animation: Arc::new(animator.finish()?),
        })
    }
}
