//! Trajectories: every latent of a run, and what drew each step.

use std::collections::HashMap;

use candle_core::Tensor;
use retouch_graph::{Environment, NodeError, Payload};
use serde::{Deserialize, Serialize};

use super::LatentFacts;
use super::tensors::{self, Packed, READ_AS, encode_safetensors};
use crate::runtime::tensor_error;
use retouch_diffusion::sampling::StepProvenance;
use retouch_diffusion::sampling::solver::Schedule;

/// The latents z_0 .. z_T of a run, noisiest first.
#[derive(Debug)]
pub struct Trajectory {
    /// T + 1 latents `[B, C, h, w]`, float32, on the compute device.
    pub latents: Vec<Tensor>,
    /// What drew each of the T steps; `None` when nobody knows (a file without metadata).
    pub drawn: Vec<Option<StepProvenance>>,
    /// How its steps were laid out, if not as DDIM with eta 0 lays out T steps.
    pub schedule: Option<Schedule>,
}

/// What is known of a trajectory before anything runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrajectoryFacts {
    /// T.
    pub steps: usize,
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// How its steps were laid out, if not as DDIM with eta 0 lays out T steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
}

/// The metadata key of [`Trajectory::drawn`] in a file.
pub(crate) const DRAWN: &str = "retouch_drawn";
/// That of [`Trajectory::schedule`]; a file of plain DDIM has none.
pub(crate) const SCHEDULE: &str = "retouch_schedule";

impl Trajectory {
    /// T.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.latents.len().saturating_sub(1)
    }

    /// Everything as one tensor `[T + 1, B, C, h, w]`.
    ///
    /// # Errors
    /// When the latents differ in shape.
    pub fn tensor(&self) -> candle_core::Result<Tensor> {
        Tensor::stack(&self.latents, 0)
    }
}

impl Payload for Trajectory {
    const TYPE: &'static str = "trajectory";
    const FORMATS: &'static [&'static str] = &["safetensors"];

    fn on_device(&self) -> bool {
        self.latents.iter().any(tensors::on_device)
    }

    fn is_on(&self, environment: &Environment) -> bool {
        self.latents.iter().any(|z| tensors::is_on(z, environment))
    }

    fn to_host(&self) -> Result<Option<Self>, NodeError> {
        if !Payload::on_device(self) {
            return Ok(None);
        }
        let latents = self.latents.iter().map(tensors::to_host);
        Ok(Some(Self {
            latents: latents.collect::<Result<_, _>>()?,
            drawn: self.drawn.clone(),
            schedule: self.schedule,
        }))
    }

    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        let latents = tensors::all_to_device(&self.latents, environment)?;
        Ok(latents.map(|latents| Self {
            latents,
            drawn: self.drawn.clone(),
            schedule: self.schedule,
        }))
    }

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(self.encode("safetensors").map(|files| files.concat()))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        let drawn = packed.know(DRAWN)?;
        let schedule = packed.know(SCHEDULE)?;
        let all = packed.take("trajectory")?;
        let count = all.dim(0).map_err(tensor_error)?;
        // `Tensor::copy` would copy the whole trajectory for each.
        let latents = (0..count).map(|k| all.get(k)?.force_contiguous());
        Ok(Self {
            latents: latents
                .collect::<candle_core::Result<_>>()
                .map_err(tensor_error)?,
            drawn,
            schedule,
        })
    }

    fn bytes(&self) -> usize {
        self.latents.iter().map(|z| z.elem_count() * 4).sum()
    }

    fn summary(&self) -> String {
        let shape = self.latents.first().map(|z| z.dims().to_vec());
        format!(
            "trajectory of {} steps, {:?} each",
            self.steps(),
            shape.unwrap_or_default()
        )
    }

    fn encode(&self, _: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        let failed = |e: &dyn std::fmt::Display| NodeError::failed(e.to_string());
        let drawn = serde_json::to_string(&self.drawn).map_err(|e| failed(&e))?;
        let mut metadata = HashMap::from([
            (READ_AS.to_owned(), "trajectory".to_owned()),
            (DRAWN.to_owned(), drawn),
        ]);
        if let Some(schedule) = &self.schedule {
            let schedule = serde_json::to_string(schedule).map_err(|e| failed(&e))?;
            metadata.insert(SCHEDULE.to_owned(), schedule);
        }
        let tensor = self.tensor().map_err(|e| failed(&e))?;
        Ok(vec![encode_safetensors("trajectory", &tensor, metadata)?])
    }
}

impl TrajectoryFacts {
    /// A trajectory of `steps` steps of latents of this shape, laid out as DDIM with eta 0 does.
    #[must_use]
    pub fn of(shape: LatentFacts, steps: usize) -> Self {
        Self {
            steps,
            batch: shape.batch,
            channels: shape.channels,
            height: shape.height,
            width: shape.width,
            schedule: None,
        }
    }

    /// A trajectory of latents of this shape by a schedule.
    #[must_use]
    pub fn by(shape: LatentFacts, schedule: Schedule) -> Self {
        Self {
            schedule: (!schedule.is_plain()).then_some(schedule),
            ..Self::of(shape, schedule.steps - schedule.first.min(schedule.steps))
        }
    }

    /// The shape of each of its latents.
    #[must_use]
    pub fn latent(&self) -> LatentFacts {
        LatentFacts {
            batch: self.batch,
            channels: self.channels,
            height: self.height,
            width: self.width,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::payload::tensors::numbers_held;

    #[test]
    fn what_was_read_holds_each_latent_once() {
        let latent = |k: usize| Tensor::full(k as f32, (1, 2, 3, 4), &Device::Cpu).unwrap();
        let trajectory = Trajectory {
            latents: (0..6).map(latent).collect(),
            drawn: Vec::new(),
            schedule: None,
        };
        let bytes = trajectory.to_disk().unwrap().unwrap();
        let read = Trajectory::from_disk(&bytes).unwrap();
        assert_eq!(read.latents.len(), 6);
        for (k, z) in read.latents.iter().enumerate() {
            assert_eq!(numbers_held(z), 24);
            let numbers: Vec<f32> = z.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(numbers, [k as f32; 24]);
        }
    }
}
