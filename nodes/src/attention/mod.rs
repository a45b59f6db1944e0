//! Nodes that say what to attend to, and show what was attended to.

pub mod attention_map;
pub mod fields;
pub mod mask_image;
pub mod swap_attention;

pub use attention_map::AttentionMap;
pub use fields::{MaskGridField, Sites, Texts, ThresholdField};
pub use mask_image::MaskImage;
pub use swap_attention::{BlendField, SwapAttention};
pub(crate) use swap_attention::{ControlNote, mentions, schedule_fault};
