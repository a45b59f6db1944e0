//! What people have on their disks: layouts of checkpoints, original names, published configurations, weight files, adapters;
//! and what is written for others to read.

pub mod adapters;
pub mod alone;
pub mod dialects;
mod exif;
pub mod export;
pub mod family;
pub mod inspect;
pub mod layout;
pub mod ldm;
pub mod memory;
pub mod model;
pub mod pickle;
pub mod published;
pub mod shape;
pub mod weights;
