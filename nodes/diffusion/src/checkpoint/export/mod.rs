//! Models written to disk: converted between the layouts, or made up.
//!
//! Files are written piece by piece, so that memory does not grow with the model. The caller gives a folder or file
//! name that is not there yet, and gives the result its own name when all of it is written.

mod convert;
mod follow;
mod random;
mod writer;

pub use convert::{Converted, folder, single};
pub use follow::Follow;
pub use random::{Family, make};
pub use writer::{Precision, Tensor, write};
