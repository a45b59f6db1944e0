//! Values that cross ports, the types of ports, and the field types of parameters.

pub mod fields;
pub mod payload;
pub mod port;
pub mod preview;
