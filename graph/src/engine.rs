//! The engine: from a path to a checked workflow to a plan to a run.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::base::error::Environment;
use crate::base::error::NodeError;
use crate::base::interrupt::Cancel;
use crate::base::key::Key;
use crate::base::paths::folder_of;
use crate::base::problem::{Problems, Source};
use crate::cache::changed;
use crate::cache::in_flight::InFlight;
use crate::cache::{Cache, HostCache, Outputs};
use crate::check::memo::{FactsMemo, LoadMemo};
use crate::check::{self, CheckContext, Checked, Settings, TextBudget};
use crate::files::{DiskFiles, Files};
use crate::op::registry::Registry;
use crate::plan::forecast::Forecast;
use crate::plan::guard::{Lazies, Verdict};
use crate::plan::plan::Plan;
use crate::run::device::{DevicePermit, Devices};
use crate::run::event::{Event, Listener};
use crate::run::job::{Job, RunOptions};
use crate::run::report::{RunError, RunReport};
use crate::sweep::{self, Sweep, SweepPlan};
use crate::syntax::workflow::{self, Workflow};
use crate::value::payload::Value;

/// The memory that the cache of a new engine may take, in bytes.
pub const DEFAULT_CACHE: usize = 1 << 30;

/// The bytes of keys and values of attention that one run keeps for others by default: room for the
/// reference's of all swapped steps of Stable Diffusion at 512 px (about 4 GB).
pub const DEFAULT_SOURCES: u64 = 6 << 30;

/// Everything that a run needs beside the workflow.
///
/// ```
/// use retouch_graph::{Cancel, Engine, Registry, RunOptions, Settings, Silent};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::new(Registry::new());
/// let checked = engine.load_str("empty.yaml", "schema: retouch/v1\n", &Settings::default())?;
/// assert!(engine.plan(&checked, &[]).is_err()); // there is nothing to run
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Engine {
    registry: Arc<Registry>,
    files: Arc<dyn Files>,
    cache: Arc<dyn Cache>,
    /// Of each compute device, by its number.
    environments: Arc<[Environment]>,
    numerics: String,
    sources: u64,
    flight: Arc<InFlight>,
    devices: Arc<Devices>,
    lazies: Arc<Lazies>,
    facts: Arc<FactsMemo>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("registry", &self.registry)
            .field("numerics", &self.numerics)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes an engine that reads the disk and keeps outputs in 1 GiB of memory.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self {
            registry: Arc::new(registry),
            files: Arc::new(DiskFiles::new()),
            cache: Arc::new(HostCache::new(DEFAULT_CACHE)),
            environments: Arc::default(),
            numerics: "cpu".to_owned(),
            sources: DEFAULT_SOURCES,
            flight: Arc::default(),
            devices: Arc::new(Devices::new(1)),
            lazies: Arc::default(),
            facts: Arc::default(),
        }
    }

    /// Reads files through something else.
    #[must_use]
    pub fn with_files(mut self, files: Arc<dyn Files>) -> Self {
        self.files = files;
        self
    }

    /// Keeps outputs elsewhere.
    #[must_use]
    pub fn with_cache(mut self, cache: Arc<dyn Cache>) -> Self {
        self.cache = cache;
        self
    }

    /// Gives nodes what they need beyond their inputs: the compute device.
    #[must_use]
    pub fn with_environment(self, environment: Environment) -> Self {
        self.with_environments([environment])
    }

    /// Gives nodes several compute devices of the same numerics, each by an environment of its own. Nodes on different devices
    /// run side by side; a value that is needed on another is moved there ([`Payload::to_device`](crate::Payload::to_device)).
    #[must_use]
    pub fn with_environments(
        mut self,
        environments: impl IntoIterator<Item = Environment>,
    ) -> Self {
        self.environments = environments.into_iter().collect();
        self.devices = Arc::new(Devices::new(self.environments.len()));
        self
    }

    /// Says what numbers depend on (`cuda/f16/flash`); it is part of every key.
    #[must_use]
    pub fn with_numerics(mut self, numerics: impl Into<String>) -> Self {
        self.numerics = numerics.into();
        self
    }

    /// What numbers depend on.
    #[must_use]
    pub fn numerics(&self) -> &str {
        &self.numerics
    }

    /// Keeps at most `bytes` bytes of what calls give besides their result (keys and values of attention) for others.
    #[must_use]
    pub fn with_sources(mut self, bytes: u64) -> Self {
        self.sources = bytes;
        self
    }

    /// What a run of the plan would do.
    #[must_use]
    pub fn forecast(&self, plan: &Plan) -> Forecast {
        plan.forecast(&*self.cache, self.sources)
    }

    /// The ops.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What nodes are given beyond their inputs: the first compute device.
    #[must_use]
    pub fn environment(&self) -> Option<&Environment> {
        self.environments.first()
    }

    /// A value where callers of networks outside of a run have it: on the first of several compute devices.
    ///
    /// # Errors
    /// When the device fails or has no room.
    pub fn on_first_device(&self, value: &Value) -> Result<Value, NodeError> {
        match &*self.environments {
            [first, _, ..] => value.to_device(first),
            _ => Ok(value.clone()),
        }
    }

    /// What the cache holds under a key, where callers of networks outside of a run have it; what cannot be moved there is as
    /// if it were not held.
    #[must_use]
    pub fn kept_on_first_device(&self, key: &Key) -> Option<Outputs> {
        let kept = self.cache.get(key)?;
        match self.environments.len() {
            0 | 1 => Some(kept),
            _ => changed(&kept, |value| self.on_first_device(value)).ok(),
        }
    }

    /// What files are read through.
    #[must_use]
    pub fn files(&self) -> &Arc<dyn Files> {
        &self.files
    }

    /// Where outputs are kept.
    #[must_use]
    pub fn cache(&self) -> &Arc<dyn Cache> {
        &self.cache
    }

    /// Reads a workflow as it is written, without a check: to list its params, say.
    ///
    /// # Errors
    /// What is wrong with how it is written.
    pub fn read(&self, path: &Path) -> Result<Workflow, Problems> {
        let name = path.display().to_string();
        let source = check::read_argument(&*self.files, &name, path)?;
        let mut problems = Vec::new();
        let workflow = workflow::parse(&source, &folder_of(path), &mut problems);
        match workflow {
            Some(workflow) if problems.is_empty() => Ok(workflow),
            _ => Err(Problems::new(problems)),
        }
    }

    /// Reads and checks a workflow.
    ///
    /// # Errors
    /// All faults of the workflow and of those that it uses.
    pub fn load(&self, path: &Path, settings: &Settings) -> Result<Checked, Problems> {
        let name = path.display().to_string();
        let source = check::read_argument(&*self.files, &name, path)?;
        self.check(&source, Some(path), settings)
    }

    /// Checks a workflow that is a text; its relative paths are resolved from the folder of `name`.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_str(
        &self,
        name: &str,
        text: &str,
        settings: &Settings,
    ) -> Result<Checked, Problems> {
        let source = Source::new(name, text);
        self.check(&source, Some(Path::new(name)), settings)
    }

    fn check(
        &self,
        source: &Source,
        path: Option<&Path>,
        settings: &Settings,
    ) -> Result<Checked, Problems> {
        let folder = path.map(folder_of).unwrap_or_default();
        let mut problems = Vec::new();
        let Some(workflow) = workflow::parse(source, &folder, &mut problems) else {
            return Err(Problems::new(problems));
        };
        let context = CheckContext {
            registry: &self.registry,
            files: &*self.files,
            settings,
            cell: &[],
            facts: &self.facts,
            load: &LoadMemo::default(),
            text: &TextBudget::new(),
        };
        let read = sweep::check_values(&context, &workflow, &mut problems);
        check::check(&context, Arc::new(workflow), path, read, problems)
    }

    /// Reads and checks a sweep: the file says it, or [`Settings::over`] does.
    ///
    /// # Errors
    /// All faults of the sweep, of the workflow in any of its cells, and of those that it uses.
    pub fn load_sweep(&self, path: &Path, settings: &Settings) -> Result<Sweep, Problems> {
        let context = CheckContext {
            registry: &self.registry,
            files: &*self.files,
            settings,
            cell: &[],
            facts: &self.facts,
            load: &LoadMemo::default(),
            text: &TextBudget::new(),
        };
        sweep::load(&context, path)
    }

    /// Plans all cells of a sweep but those `without`: the outputs of these names, all when there are none.
    ///
    /// # Errors
    /// When an output is not known, there is nothing to run, or a file cannot be read.
    pub fn plan_sweep(
        &self,
        sweep: &Sweep,
        targets: &[String],
        without: &BTreeSet<usize>,
    ) -> Result<SweepPlan, Problems> {
        sweep.plan(
            &self.registry,
            &*self.files,
            &self.numerics,
            targets,
            without,
        )
    }

    /// Plans what the targets need: names of outputs and nodes (`outputs.x` and `nodes.x` where both have the name),
    /// all outputs when there are none. The files that nodes read are digested here.
    ///
    /// # Errors
    /// When a target is not known, there is nothing to run, or a file cannot be read.
    pub fn plan(&self, checked: &Checked, targets: &[String]) -> Result<Plan, Problems> {
        Plan::new(checked, targets, &*self.files, &self.numerics)
    }

    /// Waits for the first compute device, for those who call networks outside of a run: one of an engine's runs and such
    /// callers has it at a time, its clones included. `None` when it was cancelled first. Its holder must not start a run,
    /// which may wait for it.
    #[must_use]
    pub fn device(&self, cancel: &Cancel) -> Option<DevicePermit> {
        self.devices.take(0, cancel)
    }

    /// Compares the files behind a task, those of the models that it uses included, with what they were when it was planned:
    /// for those who use its inputs outside of a run. `false`: one of them was written in the meantime and has the same
    /// content again, so that what was made of it may be shown and must not be kept. Unless all are the same, what the cache
    /// holds of models is dropped; the caller drops its own.
    ///
    /// # Errors
    /// When one of them has another content, or is not there any more; it names the file.
    pub fn unchanged(&self, plan: &Plan, task: usize) -> Result<bool, NodeError> {
        let Some(task) = plan.task(task) else {
            return Ok(true);
        };
        let result = match task.guard.verdict(&*self.files) {
            Verdict::Same => return Ok(true),
            Verdict::Touched(_) => Ok(false),
            Verdict::Changed(error) => Err(error),
        };
        self.cache.forget_lazy();
        result
    }

    /// Runs a plan. Outputs are saved as soon as they are ready.
    ///
    /// # Errors
    /// When a node or the saving of an output failed, or the run was cancelled.
    pub fn run(
        &self,
        plan: &Plan,
        listener: &dyn Listener,
        cancel: &Cancel,
        options: &RunOptions,
    ) -> Result<RunReport, RunError> {
        let guarded = Guarded(listener);
        Job {
            plan,
            files: &*self.files,
            cache: &*self.cache,
            environments: &self.environments,
            listener: &guarded,
            cancel,
            options,
            sources: self.sources,
            flight: &self.flight,
            devices: &self.devices,
            lazies: &self.lazies,
            preview_failed: AtomicBool::new(false),
            touched: AtomicBool::new(false),
        }
        .run()
    }
}

/// A listener whose panics are caught: a worker that panicked with it would never release what it holds.
struct Guarded<'a>(&'a dyn Listener);

impl Listener for Guarded<'_> {
    fn event(&self, event: &Event) {
        let result = catch_unwind(AssertUnwindSafe(|| self.0.event(event)));
        if result.is_err() {
            tracing::warn!("a listener panicked");
        }
    }
}
