//! The engine of Retouch: from a YAML workflow to a plan to a run. It knows no tensor and prints nothing.

pub mod fields;
pub mod files;
pub mod node;
pub mod port;
pub mod value;

pub use files::{Digest, Files};
pub use node::{Context, Environment, Fault, FaultKind, Host, Node, NodeError, ReadFile};
pub use port::{Arity, FromValue, Known, PortField, PortSpec, PortValues, Ports, Types};
pub use value::{Payload, Value};
