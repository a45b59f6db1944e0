//! Who looks on while a workflow is watched: what the watch loop reports, and what may be asked of it.

use std::path::Path;
use std::sync::Arc;

use retouch_graph::event::Listener;
use retouch_graph::{Checked, Engine, Files, Forecast, Plan, Problems, Settings};

use crate::Failure;

/// What somebody who looks on may wish for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// What is tried has changed, see [`Onlooker::trying`]: read everything again and run what differs.
    Tried,
    /// Read everything again and run.
    Run,
    /// End the run; what comes next is an edit, or another wish.
    Stop,
    /// End, after the run that goes on.
    Close,
}

/// Where wishes are sent.
#[derive(Clone)]
pub struct Wishes(Arc<dyn Fn(Wish) + Send + Sync>);

impl Wishes {
    /// Wishes that `hear` is called with.
    pub fn new(hear: impl Fn(Wish) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Wishes for something; a loop that has ended does not hear it.
    pub fn send(&self, wish: Wish) {
        (self.0)(wish);
    }
}

/// What is known of a task of a plan from earlier runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskHistory {
    /// What of the task itself changed since the last run, in words.
    pub changed: Option<String>,
    /// The seconds that it is expected to take; `None`: there is nothing to tell from.
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
    /// What earlier runs tell, task by task.
    pub history: &'a [TaskHistory],
    /// The workflow's file.
    pub file: &'a Path,
}

/// Looks on while the loop works. It is told what happens, and must not keep it waiting.
pub trait Onlooker: Listener {
    /// The loop has begun: the engine that it runs on, and where wishes are sent.
    fn begun(&self, engine: &Engine, wishes: Wishes);

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
