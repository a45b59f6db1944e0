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
use crate::cache::in_flight::Claim;
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
    /// [`chain`](crate::op::chain)). A node without steps needs none of this.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFile {
    /// What the file is to the node (`unet/config.json`); part of the key in place of the path.
    pub role: String,
    /// Where it is.
    pub path: PathBuf,
}

/// What the engine gives a running node.
pub struct Context<'a> {
    pub(crate) host: &'a dyn Host,
}

/// The engine's side of a [`Context`]; tests of nodes implement it too.
pub trait Host: Sync {
    /// Work done and work to do, in the node's own unit.
    fn progress(&self, done: usize, total: usize);
    /// Something that the user should know but that does not stop the run.
    fn warn(&self, message: &str);
    /// What was done, where that is worth knowing.
    fn note_done(&self, message: &str) {
        let _ = message;
    }
    /// Adds to a counter of the run, `unet_calls` for one.
    fn count(&self, counter: &'static str, by: u64);
    /// Whether the run was cancelled.
    fn is_cancelled(&self) -> bool;
    /// All reading goes through this.
    fn files(&self) -> &dyn Files;
    /// What the nodes need beyond their inputs (the compute device), put there by whoever made the engine.
    fn environment(&self) -> Option<&(dyn Any + Send + Sync)>;
    /// The steps that the node said it has.
    fn chain(&self) -> Option<&Chain> {
        None
    }
    /// What the node said of itself while the plan was made.
    fn note(&self) -> Option<&Note> {
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
    /// What is kept under a key.
    fn kept(&self, key: &Key) -> Option<Outputs> {
        let _ = key;
        None
    }
    /// Keeps values under a key; `seconds` is what they took to make. A run keeps nothing once a file behind the node
    /// changed, and ends the node at its next step.
    fn keep(&self, key: Key, outputs: Outputs, seconds: f64) {
        let _ = (key, outputs, seconds);
    }
    /// Takes the making of what a key names for itself, after whoever is at it; `None` when the run was cancelled
    /// meanwhile, or nothing else can be at it.
    fn claim(&self, key: Key) -> Option<Claim<'_>> {
        let _ = key;
        None
    }
    /// Says where the node goes on: so many of so many steps are there already.
    fn resumed(&self, step: usize, of: usize) {
        let _ = (step, of);
    }
    /// Whether somebody wants to see what the node has after `done` of `of` steps, and how well.
    fn wants_preview(&self, done: usize, of: usize) -> Option<Quality> {
        let _ = (done, of);
        None
    }
    /// Shows what the node has after `done` of `of` steps: a value that can be saved as PNG, or why there is none.
    fn show_preview(&self, done: usize, of: usize, picture: Result<Value, NodeError>) {
        let _ = (done, of, picture);
    }
}

impl<'a> Context<'a> {
    /// Wraps a host.
    #[must_use]
    pub fn new(host: &'a dyn Host) -> Self {
        Self { host }
    }

    /// Reports work done and work to do (steps of a sampler, say).
    pub fn progress(&self, done: usize, total: usize) {
        self.host.progress(done, total);
    }

    /// Tells the user something that does not stop the run.
    pub fn warn(&self, message: &str) {
        self.host.warn(message);
    }

    /// Tells the user what was done, where that is worth knowing and nothing is to be done about it.
    pub fn say(&self, message: &str) {
        self.host.note_done(message);
    }

    /// Adds to a counter of the run, `unet_calls` for one.
    pub fn count(&self, counter: &'static str, by: u64) {
        self.host.count(counter, by);
    }

    /// The steps that the node said it has, if it is run by a plan.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.host.chain()
    }

    /// What the node said of itself while the plan was made, as `T`.
    #[must_use]
    pub fn note<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.host.note()?).downcast().ok()
    }

    /// Whether anything needs that output port.
    #[must_use]
    pub fn wants(&self, port: &str) -> bool {
        self.host.wants(port)
    }

    /// What of a call is to be kept for others.
    #[must_use]
    pub fn wanted(&self, call: &Key) -> &[Item] {
        self.host.wanted(call)
    }

    /// The value of that name among those that are kept under a key.
    #[must_use]
    pub fn kept<T: Payload>(&self, key: &Key, name: &str) -> Option<Arc<T>> {
        self.host.kept(key)?.get(name)?.downcast()
    }

    /// Keeps a value under a key; `seconds` is what it took to make.
    pub fn keep<T: Payload>(&self, key: Key, name: &'static str, value: Arc<T>, seconds: f64) {
        let outputs = BTreeMap::from([(name.into(), Value::from_arc(value))]);
        self.host.keep(key, Outputs::new(outputs), seconds);
    }

    /// Takes the making of what a key names for itself, after whoever is at it.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`] when the run was cancelled meanwhile.
    pub fn claim(&self, key: Key) -> Result<Option<Claim<'_>>, NodeError> {
        let claim = self.host.claim(key);
        self.check_cancelled()?;
        Ok(claim)
    }

    /// Says where the node goes on: so many of so many steps are there already.
    pub fn resumed(&self, step: usize, of: usize) {
        self.host.resumed(step, of);
    }

    /// Offers what the node has after `done` of `of` steps to whoever wants to see it; `picture` is called only then, and
    /// makes a value that can be saved as PNG. Neither a failure nor a panic of it is one of the node: the run goes on.
    pub fn preview(
        &self,
        done: usize,
        of: usize,
        picture: impl FnOnce(Quality) -> Result<Value, NodeError>,
    ) {
        if let Some(quality) = self.host.wants_preview(done, of) {
            let made = catch_unwind(AssertUnwindSafe(|| picture(quality)))
                .unwrap_or_else(|panic| Err(NodeError::panicked(&*panic)));
            self.host.show_preview(done, of, made);
        }
    }

    /// Leaves the node when the run was cancelled; call it at every step.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`].
    pub fn check_cancelled(&self) -> Result<(), NodeError> {
        if self.host.is_cancelled() {
            Err(NodeError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// All reading goes through this.
    #[must_use]
    pub fn files(&self) -> &dyn Files {
        self.host.files()
    }

    /// The run's environment as `T` (the nodes' crate knows which), if it is one.
    #[must_use]
    pub fn environment<T: Any>(&self) -> Option<&T> {
        self.host.environment()?.downcast_ref::<T>()
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context")
    }
}
