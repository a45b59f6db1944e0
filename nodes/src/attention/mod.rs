//! Nodes that say what to attend to, and show what was attended to.

mod attention_map;
mod fields;
mod mask_image;
mod swap_attention;

pub use attention_map::AttentionMap;
pub use fields::{MaskGridField, Sites, ThresholdField};
pub use mask_image::MaskImage;
pub use swap_attention::{BlendField, SwapAttention};
