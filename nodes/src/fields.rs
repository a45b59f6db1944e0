//! Types of parameters that the language gives a meaning of its own.

pub use retouch_graph::fields::{AssetPath, Seed, Sha256Hex, Sha256Pins, Steps, Template};
