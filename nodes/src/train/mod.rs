//! Nodes that train a subject from a few pictures: each takes a model and gives one that knows the subject, and the adapter as a
//! file.
//!
//! # Keys
//! A training is a chain of states, one each `every` steps. The key of a state (`retouch/training/1`) is made of the model, the
//! op and its version, the parameters that a step depends on, the keys of pictures, masks and class pictures, the numerics and
//! the number of steps made; how many there will be is among them only where the learning rate depends on it.

#[macro_use]
mod fields;
mod pictures;
mod ports;
mod run;
mod train_custom_diffusion;
mod train_dreambooth;
mod train_lora;
mod train_textual_inversion;

pub use train_custom_diffusion::TrainCustomDiffusion;
pub use train_dreambooth::TrainDreambooth;
pub use train_lora::TrainLora;
pub use train_textual_inversion::TrainTextualInversion;

pub use ports::{Inputs, Outputs};
