//! The engine of Retouch: from a YAML workflow to a plan to a run. It knows no tensor and prints nothing.
//!
//! [`Engine::load`] reads and checks a workflow, [`Engine::plan`] finds what its outputs need and what is there already,
//! [`Engine::run`] does the rest. A [`Registry`] says which ops there are; a [`Node`] is one.

mod base;
pub mod cache;
pub mod check;
pub mod engine;
pub mod files;
pub mod lock;
mod op;
mod plan;
pub mod provenance;
mod run;
pub mod sweep;
mod syntax;
mod value;

pub use base::{digest, interrupt, key, paths, problem, remote, suggest, text};
pub use files::{output_path, write};
pub use op::registry;
pub use run::{event, save};
pub use syntax::{format, params, template, workflow, yaml};
pub use value::{fields, port};

pub use base::digest::Digest;
pub use base::error::{Environment, Fault, FaultKind, NodeError};
pub use base::interrupt::Cancel;
pub use base::key::Key;
pub use base::problem::{Code, Problem, Problems, Severity, Source, Span};
pub use cache::in_flight::InFlightLock;
pub use cache::{
    Cache, DiskCache, DiskEntry, HostCache, NoCache, Outputs, Remote, RemoteCache, TieredCache,
    Verified,
};
pub use check::{Checked, CheckedNode, CheckedOutput, Drawn, Link, ResolvedParam, Settings};
pub use engine::Engine;
pub use files::{
    DiskFiles, FileStamp, Files, FolderEntry, LocalFiles, MemoryFiles, ModelLocator, Searched,
    Withheld,
};
pub use lock::redirect::RedirectedFiles;
pub use lock::{Difference, Located, Lock, LockedFile, LockedKind, Redirect, locate};
pub use op::chain::{Chain, Chained, Item, Need, Note, Step, UpLink, Upstream};
pub use op::node::{Context, Host, Node, ReadFile};
pub use op::registry::{Entry, ParamInfo, Registry};
pub use plan::forecast::{Forecast, Reason, Resume, Status};
pub use plan::plan::{Inputs, Plan};
pub use plan::priority::Expected;
pub use plan::record::{Change, Divergence, Record, What};
pub use plan::task::{Edge, NodeName, PlannedOutput, Task};
pub use provenance::{Origin, Provenance, ReadEntry};
pub use run::device::DevicePermit;
pub use run::event::{Counters, Event, Listener, Recorder, RunStatus, Silent};
pub use run::job::RunOptions;
pub use run::report::{NodeOutcome, NodeReport, OutputValue, RunError, RunReport};
pub use run::running::each_running;
pub use run::save::{Exists, SaveError, SaveStatus, Saved, Saver, Stamp};
pub use sweep::{Cell, Sweep, SweepPlan};
pub use syntax::params::{How, ParamType};
pub use value::payload::{Decoders, Payload, Value};
pub use value::port::{
    Added, AddedList, Arity, FromValue, Known, PortField, PortSpec, PortValues, Ports, Types,
};
pub use value::preview::{Previewer, Quality};
