//! The loop: schedules, solvers, noise, step blending, inversion, attention control and its masks.

pub mod control;
pub mod gaze;
pub mod masks;
pub mod noise;
pub mod sampler;
pub mod scheduler;
pub mod sigmas;
pub mod solver;
mod steps;
