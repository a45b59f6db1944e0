//! The engine of Retouch: from a YAML workflow to a plan to a run. It knows no tensor and prints nothing.
//!
//! [`Engine::load`] reads and checks a workflow, [`Engine::plan`] finds what its outputs need and what is there already,
//! [`Engine::run`] does the rest. A [`Registry`] says which ops there are; a [`Node`] is one.

pub mod cache;
mod canonical;
pub mod chain;
pub mod check;
mod device;
pub mod engine;
pub mod event;
pub mod execute;
mod facts;
pub mod fields;
pub mod files;
pub mod format;
mod guard;
pub mod interrupt;
pub mod key;
pub mod lock;
pub mod node;
pub mod params;
pub mod plan;
pub mod port;
pub mod preview;
pub mod problem;
pub mod provenance;
pub mod registry;
pub mod remote;
mod running;
pub mod save;
mod shape;
pub mod suggest;
pub mod sweep;
pub mod template;
pub mod text;
pub mod value;
pub mod workflow;
pub mod write;
pub mod yaml;

pub use cache::{Cache, DiskCache, DiskEntry, HostCache, NoCache, Outputs, TieredCache, Verified};
pub use chain::{Chain, Chained, Claim, Item, Need, Note, Step, UpLink, Upstream};
pub use check::{Checked, CheckedNode, CheckedOutput, Drawn, Link, ResolvedParam, Settings};
pub use device::DevicePermit;
pub use engine::Engine;
pub use event::{Counters, Event, Listener, Recorder, RunStatus, Silent};
pub use execute::{Cancel, NodeOutcome, NodeReport, OutputValue, RunError, RunOptions, RunReport};
pub use files::{
    Digest, DiskFiles, FileStamp, Files, FolderEntry, MemoryFiles, Redirect, RedirectedFiles,
    Sought, Withheld,
};
pub use key::Key;
pub use lock::{Difference, Located, Lock, LockedFile, LockedKind, locate};
pub use node::{Context, Environment, Fault, FaultKind, Host, Node, NodeError, ReadFile};
pub use params::{How, ParamType};
pub use plan::{
    Change, Forecast, Parting, Plan, PlannedOutput, Reason, Record, Resume, Status, Task, What,
};
pub use port::{Added, Arity, FromValue, Known, PortField, PortSpec, PortValues, Ports, Types};
pub use preview::{Previewer, Quality};
pub use problem::{Code, Problem, Problems, Severity, Source, Span};
pub use provenance::{Origin, Provenance, ReadEntry};
pub use registry::{Entry, ParamInfo, Registry};
pub use running::each_running;
pub use save::{Exists, SaveError, SaveStatus, Saved, Saver, Stamp};
pub use sweep::{Cell, Sweep, SweepPlan};
pub use value::{Decoders, Payload, Value};
