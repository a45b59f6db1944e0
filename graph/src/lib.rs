//! The engine of Retouch: from a YAML workflow to a plan to a run. It knows no tensor and prints nothing.

pub mod fields;
pub mod files;
pub mod node;
pub mod params;
pub mod port;
pub mod problem;
pub mod suggest;
pub mod template;
pub mod value;
pub mod workflow;
pub mod yaml;

pub use files::{Digest, Files};
pub use node::{Context, Environment, Fault, FaultKind, Host, Node, NodeError, ReadFile};
pub use port::{Arity, FromValue, Known, PortField, PortSpec, PortValues, Ports, Types};
pub use problem::{Code, Problem, Problems, Severity, Source, Span};
pub use value::{Payload, Value};
