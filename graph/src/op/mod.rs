//! What an op is: the trait of a node, its parameters' shapes, the registry and its JSON Schema.

pub mod chain;
pub mod erased;
pub mod node;
pub mod registry;
mod schema;
pub mod shape;
