//! The loop: schedules, solvers, noise, step blending, inversion, attention control and its masks.

pub mod attention_row;
mod beside;
pub mod control;
mod guidance;
mod look;
pub mod masks;
pub mod matching;
mod memory;
mod monitor;
pub mod noise;
mod plain;
pub mod scheduler;
pub mod sigmas;
pub mod solver;
mod steps;
pub mod swap;

pub use beside::Beside;
pub use guidance::{ConditionedModel, Conditioner, Conditions, Prompted, StepProvenance};
pub use look::{Found, Sought, cross_attention, look};
pub use memory::{Held, NoStore, StepStore};
pub use monitor::Monitor;
pub use plain::{Drawing, Inpaint, invert, step_blend_sample};
