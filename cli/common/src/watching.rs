//! Who looks on while a workflow is watched: what the watch loop reports, and what may be asked of it.

use std::path::Path;
use std::sync::Arc;

use retouch_graph::event::Listener;
use retouch_graph::{Checked, Engine, Files, Forecast, Plan, Problems, Settings};

use crate::Failure;

/// What an observer may request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// What is tried has changed, see [`Observer::trying`]: read everything again and run what differs.
    Tried,
    /// Read everything again and run.
    Run,
    /// End the run; what comes next is an edit, or another request.
    Stop,
    /// End, after the run that goes on.
    Close,
}

/// Where requests are sent.
#[derive(Clone)]
pub struct Requests(Arc<dyn Fn(Request) + Send + Sync>);

impl Requests {
    /// Requests, each passed to `hear`.
    pub fn new(hear: impl Fn(Request) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Sends a request; a loop that has ended ignores it.
    pub fn send(&self, request: Request) {
        (self.0)(request);
    }
}

/// What is known of a task of a plan from earlier runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskHistory {
    /// What of the task itself changed since the last run, in words.
    pub changed: Option<String>,
    /// The seconds that it is expected to take; `None`: nothing is known of it.
    pub seconds: Option<f64>,
    /// The most bytes that the process had while such a task ran.
    pub peak: Option<u64>,
}

/// What is about to run.
pub struct Planned<'a> {
    /// What would run.
    pub plan: &'a Arc<Plan>,
    /// What it came from.
    pub checked: &'a Checked,
    /// What it was loaded with.
    pub settings: &'a Settings,
    /// The engine that will run it.
    pub engine: &'a Engine,
    /// What of it the cache has.
    pub forecast: &'a Forecast,
    /// What earlier runs recorded, task by task.
    pub history: &'a [TaskHistory],
    /// The workflow's file.
    pub file: &'a Path,
}

/// Observes the loop while it works. It is called with what happens, and must not block.
pub trait Observer: Listener {
    /// The loop has begun: the engine that it runs on, and where requests are sent.
    fn begun(&self, engine: &Engine, requests: Requests);

    /// What the engine is to read through in place of `inner`: there, files may say what is tried.
    fn files(&self, inner: Arc<dyn Files>) -> Arc<dyn Files>;

    /// The workflow in `file` is about to be loaded: what is tried from here on counts, in files and in `settings`. Gives the
    /// tried params of the workflow as `name=value`, for the record of the run.
    fn trying(&self, file: &Path, settings: &mut Settings) -> Vec<String>;

    /// Whether what it wants to show is in the plan, asked before anything runs.
    ///
    /// # Errors
    /// When it is not; nothing runs then.
    fn accepts(&self, planned: &Planned<'_>) -> Result<(), Failure>;

    /// The workflow was read, and a run of it begins, unless nothing is to run.
    fn planned(&self, planned: &Planned<'_>);

    /// The workflow was read again during a run, and what runs is still what it says.
    fn again(&self, planned: &Planned<'_>);

    /// The workflow, or what was tried, has faults. What was planned before stays.
    fn faults(&self, problems: &Problems);
}
