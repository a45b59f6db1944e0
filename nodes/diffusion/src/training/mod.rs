//! Training of a subject from a few pictures: low-rank adaptation, textual inversion, Custom Diffusion and DreamBooth.
//!
//! A step is a function of the parameters, the optimizer's state and the step's number: noise, timesteps and the order of
//! pictures are drawn from the seed and that number ([`draws`]). A training that is stopped and goes on therefore ends in the
//! same numbers.

pub mod draws;
pub mod dropout;
pub mod examples;
pub mod export;
pub mod loss;
pub mod optimizer;
pub mod parameters;
pub mod trainer;
