//! What a node is: a typed trait for authors, an erased one for the engine.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::error::{Fault, NodeError};
use crate::base::key::Key;
use crate::cache::Outputs;
use crate::cache::in_flight::InFlightLock;
use crate::files::Files;
use crate::op::chain::{Chain, Chained, Item, Note, Upstream};
use crate::value::payload::{Payload, Value};
use crate::value::port::{Ports, Types};
use crate::value::preview::Quality;

/// A node is its parameters; its doc comment is its reference page.
///
/// The first sentence of the struct's doc comment says what the node does; the fields' comments document the
/// parameters. Optional parameters carry `#[serde(default)]`.
pub trait Node: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The op's name in the language: `swap_attention`.
    const OP: &'static str;
    /// Raised when equal inputs give another output than before; part of every key.
    const VERSION: u32;
    /// The input ports.
    type Inputs: Ports;
    /// The output ports; the first is the default one.
    type Outputs: Ports;

    /// The files that the node will read. Their content joins the key and they join the watch list.
    ///
    /// # Errors
    /// Faults when something that must be there is not.
    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        let _ = files;
        Ok(Vec::new())
    }

    /// Checks parameters and the facts of the inputs before anything runs, and states the facts of the outputs.
    ///
    /// # Errors
    /// All faults that were found.
    fn check(
        &self,
        inputs: &Types<Self::Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Self::Outputs>, Vec<Fault>> {
        let _ = (inputs, files);
        Ok(Types::unknown())
    }

    /// Whether the node needs the one compute device (a sampler) rather than a CPU thread (a picture's resize).
    const DEVICE: bool = false;

    /// Says, while the plan is made, what those downstream need to know of it and which steps it has (see
    /// `chain.rs`). A node without steps needs none of this.
    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        let _ = upstream;
        Chained::default()
    }

    /// Does the work.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`] when the run was cancelled, [`NodeError::Failed`] with what went wrong and what to do.
    fn run(&self, inputs: Self::Inputs, context: &Context<'_>) -> Result<Self::Outputs, NodeError>;
}

/// A file that a node reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReadFile {
    /// What the file is to the node (`unet/config.json`); part of the key in place of the path.
    pub role: String,
    /// Where it is.
    pub path: PathBuf,
}

/// What the engine gives a running node; tests of nodes implement it too.
///
/// The methods of [`Context`] that take or give values of a type are beside it, as a trait object cannot have them.
pub trait Host: Sync {
    /// Reports work done and work to do, in the node's own unit (steps of a sampler, say).
    fn progress(&self, done: usize, total: usize);
    /// Tells the user something that does not stop the run.
    fn warn(&self, message: &str);
    /// Tells the user what was done, where that is worth knowing and nothing is to be done about it.
    fn say(&self, message: &str) {
        let _ = message;
    }
    /// Adds to a counter of the run, `unet_calls` for one.
    fn count(&self, counter: &'static str, by: u64);
    /// Whether the run was cancelled.
    fn is_cancelled(&self) -> bool;
    /// The files: all reading goes through this.
    fn files(&self) -> &dyn Files;
    /// What the nodes need beyond their inputs (the compute device), given to the engine when it was made.
    fn any_environment(&self) -> Option<&(dyn Any + Send + Sync)>;
    /// The steps that the node said it has, if it is run by a plan.
    fn chain(&self) -> Option<&Chain> {
        None
    }
    /// What the node said of itself while the plan was made.
    fn any_note(&self) -> Option<&Note> {
        None
    }
    /// Whether anything needs that output port.
    fn wants(&self, port: &str) -> bool {
        let _ = port;
        true
    }
    /// What of a call is to be kept for others.
    fn wanted(&self, call: &Key) -> &[Item] {
        let _ = call;
        &[]
    }
    /// The values that are kept under a key.
    fn kept_outputs(&self, key: &Key) -> Option<Outputs> {
        let _ = key;
        None
    }
    /// Keeps values under a key; `seconds` is what they took to make. A run keeps nothing once a file behind the node
    /// changed, and ends the node at its next step.
    fn keep_outputs(&self, key: Key, outputs: Outputs, seconds: f64) {
        let _ = (key, outputs, seconds);
    }
    /// Acquires the in-flight lock for `key`, waiting for its holder; `None` when the run was cancelled in the meantime, or
    /// nothing else can hold it.
    fn lock_in_flight(&self, key: Key) -> Option<InFlightLock<'_>> {
        let _ = key;
        None
    }
    /// Reports where the node resumes: `step` of `of` steps are there already.
    fn resumed(&self, step: usize, of: usize) {
        let _ = (step, of);
    }
    /// Whether a preview is wanted of what the node has after `done` of `of` steps, and of which quality.
    fn wants_preview(&self, done: usize, of: usize) -> Option<Quality> {
        let _ = (done, of);
        None
    }
    /// Shows what the node has after `done` of `of` steps: a value that can be saved as PNG, or why there is none.
    fn show_preview(&self, done: usize, of: usize, picture: Result<Value, NodeError>) {
        let _ = (done, of, picture);
    }
}

/// What a node is run with.
pub type Context<'a> = dyn Host + 'a;

impl dyn Host + '_ {
    /// What the node said of itself while the plan was made, as `T`.
    #[must_use]
    pub fn note<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.any_note()?).downcast().ok()
    }

    /// The value of that name among those that are kept under a key.
    #[must_use]
    pub fn kept<T: Payload>(&self, key: &Key, name: &str) -> Option<Arc<T>> {
        self.kept_outputs(key)?.get(name)?.downcast()
    }

    /// Keeps a value under a key; `seconds` is what it took to make.
    pub fn keep<T: Payload>(&self, key: Key, name: &'static str, value: Arc<T>, seconds: f64) {
        let outputs = BTreeMap::from([(name.into(), Value::from_arc(value))]);
        self.keep_outputs(key, Outputs::new(outputs), seconds);
    }

    /// Acquires the in-flight lock for `key`, waiting for its holder; `None` when nothing else can hold it.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`] when the run was cancelled in the meantime.
    pub fn in_flight_lock(&self, key: Key) -> Result<Option<InFlightLock<'_>>, NodeError> {
        let held = self.lock_in_flight(key);
        self.check_cancelled()?;
        Ok(held)
    }

    /// Offers what the node has after `done` of `of` steps as a preview; `picture` is called only where one is wanted, and
    /// makes a value that can be saved as PNG. Neither a failure nor a panic of it is one of the node: the run goes on.
    pub fn preview(
        &self,
        done: usize,
        of: usize,
        picture: impl FnOnce(Quality) -> Result<Value, NodeError>,
    ) {
        if let Some(quality) = self.wants_preview(done, of) {
            let made = catch_unwind(AssertUnwindSafe(|| picture(quality)))
                .unwrap_or_else(|panic| Err(NodeError::panicked(&*panic)));
            self.show_preview(done, of, made);
        }
    }

    /// Leaves the node when the run was cancelled; call it at every step.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`].
    pub fn check_cancelled(&self) -> Result<(), NodeError> {
        if self.is_cancelled() {
            Err(NodeError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// The run's environment as `T` (the nodes' crate knows which), if it is one.
    #[must_use]
    pub fn environment<T: Any>(&self) -> Option<&T> {
        self.any_environment()?.downcast_ref::<T>()
    }
}

impl fmt::Debug for dyn Host + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context")
    }
}
