//! Runs a plan: a queue of what is ready, one permit for the compute device, several for the CPU.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::cache::{Cache, Outputs};
use crate::chain::{Chain, Claim, InFlight, Item, Note, Wanted};
use crate::event::{Counters, EVENT_SCHEMA, Event, Listener, RunStatus};
use crate::files::{Files, lock};
use crate::interrupt;
use crate::key::Key;
use crate::node::{Context, Environment, Host, NodeError};
use crate::plan::{Forecast, Plan, Status, Task, slower};
use crate::port::PortValues;
use crate::preview::{Previewer, Quality};
use crate::problem::Code;
use crate::save::{SaveError, Saved, Saver, Stamp};
use crate::value::Value;

/// Cancels a run from elsewhere; cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicU8>);

/// Nobody cancelled.
const GOES_ON: u8 = 0;
/// A step that is under way is finished.
const AT_STEP: u8 = 1;
/// It is not.
const AT_ONCE: u8 = 2;

impl Cancel {
    /// Makes one that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels: what runs stops as soon as it looks ([`crate::interrupt`]), and nothing else begins.
    pub fn cancel(&self) {
        self.0.fetch_max(AT_ONCE, Ordering::SeqCst);
    }

    /// Cancels, and lets a sampler finish the step that is under way, for a run that goes on from it.
    pub fn cancel_at_step(&self) {
        self.0.fetch_max(AT_STEP, Ordering::SeqCst);
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst) != GOES_ON
    }

    /// Whether it was cancelled so that not even a step is finished.
    #[must_use]
    pub fn is_at_once(&self) -> bool {
        self.0.load(Ordering::SeqCst) == AT_ONCE
    }
}

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// How many nodes run at a time; 0: as many as there are processors. Only one of them has the device.
    pub threads: usize,
    /// Saves outputs as soon as they are ready; without one they are only reported.
    pub saver: Option<Arc<Saver>>,
    /// Whether what does not need a node that failed is made all the same.
    pub keep_going: bool,
    /// Whether outputs are let go as soon as they are saved and nothing needs them; the report then lacks them. A sweep has
    /// more than the memory holds.
    pub drop_outputs: bool,
    /// Writes into the files of outputs where they come from.
    pub stamp: Option<Arc<dyn Stamp>>,
    /// Shows what nodes are drawing while they do.
    pub previewer: Option<Arc<dyn Previewer>>,
}

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It was cancelled. Outputs that were ready by then are saved.
    #[error("cancelled")]
    Cancelled,
    /// A node failed. Outputs that were ready by then are saved.
    #[error("`{node}` ({op}) failed: {message}")]
    NodeFailed {
        /// The node.
        node: String,
        /// Its op.
        op: &'static str,
        /// What kind of failure it is.
        code: Code,
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// An output was not saved.
    #[error("the output `{output}` was not saved: {source}")]
    Save {
        /// The output.
        output: String,
        /// Why.
        source: SaveError,
    },
    /// Several nodes failed or outputs were not saved, and the run went on.
    #[error("{count} nodes or outputs failed; the first: {first}")]
    Several {
        /// How many.
        count: usize,
        /// The first of them.
        first: Box<RunError>,
    },
}

impl RunError {
    /// What kind of failure it is.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Cancelled => Code::Interrupted,
            Self::NodeFailed { code, .. } => *code,
            Self::Save { source, .. } => source.code(),
            Self::Several { .. } => Code::SeveralFailed,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Cancelled => None,
            Self::NodeFailed { help, .. } => help.clone(),
            Self::Save { source, .. } => Some(source.help()),
            Self::Several { first, .. } => first.hint(),
        }
    }
}

impl miette::Diagnostic for RunError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

/// An output of a run.
#[derive(Clone, Debug)]
pub struct OutputValue {
    /// Its name; for a node that was asked for by name `layout.latent`.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// The path that the workflow gives it.
    pub save: Option<String>,
    /// The files that it was saved to.
    pub saved: Vec<Saved>,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeOutcome {
    /// It ran.
    Ran {
        /// The seconds that it took.
        seconds: f64,
        /// What it counted.
        counters: Counters,
    },
    /// It did not have to: where its outputs are, or `not needed`.
    Reused(&'static str),
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    /// The node, or the first of those that the task is.
    pub node: String,
    /// Its op.
    pub op: &'static str,
    /// Its key.
    pub key: Key,
    /// What became of it.
    pub outcome: NodeOutcome,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The outputs in the order of the plan.
    pub outputs: Vec<OutputValue>,
    /// The tasks in the order of the plan.
    pub nodes: Vec<NodeReport>,
    /// The seconds that it took.
    pub seconds: f64,
    /// What all nodes counted.
    pub counters: Counters,
    /// The number of nodes that ran.
    pub ran: usize,
    /// The number of nodes that did not have to.
    pub reused: usize,
}

/// What a run works with.
pub(crate) struct Job<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) files: &'a dyn Files,
    pub(crate) cache: &'a dyn Cache,
    pub(crate) environment: Option<&'a Environment>,
    pub(crate) listener: &'a dyn Listener,
    pub(crate) cancel: &'a Cancel,
    pub(crate) options: &'a RunOptions,
    /// Bytes of what calls give besides that may be kept.
    pub(crate) sources: u64,
    /// What this engine's runs are making right now.
    pub(crate) flight: &'a InFlight,
    /// Whether it was said that a preview failed.
    pub(crate) preview_failed: AtomicBool,
}

struct State {
    /// What can begin, by index: the order of the plan.
    ready: BTreeSet<usize>,
    /// The outputs to save, by index.
    saves: VecDeque<(usize, Value)>,
    device_busy: bool,
    /// What is running or being saved.
    busy: usize,
    /// For each task: links to tasks that are not done.
    waits: Vec<usize>,
    /// For each task: links from tasks that are not done, and outputs.
    uses: Vec<usize>,
    values: Vec<Option<Outputs>>,
    outcomes: Vec<Option<NodeOutcome>>,
    saved: Vec<Vec<Saved>>,
    counters: Counters,
    begun: usize,
    left: usize,
    error: Option<RunError>,
    /// What failed while the run went on.
    failures: Vec<RunError>,
    /// For each task: whether it failed, or needs one that did.
    given_up: Vec<bool>,
}

struct Run<'a> {
    job: &'a Job<'a>,
    state: Mutex<State>,
    changed: Condvar,
    /// For each task: the tasks that need it and run, once for each link.
    next: Vec<Vec<usize>>,
    /// For each task: the outputs that it makes.
    outputs: Vec<Vec<usize>>,
    of: usize,
    forecast: Forecast,
}

enum Work {
    Task(usize, PortValues, usize),
    Save(usize, Value),
}

impl Job<'_> {
    pub(crate) fn run(&self) -> Result<RunReport, RunError> {
        let start = Instant::now();
        let plan = self.plan;
        self.listener.event(&Event::RunStarted {
            schema: EVENT_SCHEMA,
            workflow: plan.workflow().to_owned(),
            nodes: plan.len(),
            params: plan.params().to_vec(),
        });
        if let Some(saver) = &self.options.saver {
            saver.begin();
        }
        let run = self.prepare();
        let threads = match self.options.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let threads = threads.min(run.of.max(plan.outputs().len())).max(1);
        std::thread::scope(|scope| {
            for index in 1..threads {
                let builder = std::thread::Builder::new()
                    .name(format!("retouch-{index}"))
                    .stack_size(8 << 20);
                // A thread that the system refuses is one less; this one works too.
                if builder.spawn_scoped(scope, || run.work()).is_err() {
                    break;
                }
            }
            run.work();
        });
        let result = run.report(start);
        let (status, counters, ran, reused) = match &result {
            Ok(report) => (
                RunStatus::Ok,
                report.counters.clone(),
                report.ran,
                report.reused,
            ),
            Err(stopped) => (
                match stopped.0 {
                    RunError::Cancelled => RunStatus::Cancelled,
                    _ => RunStatus::Failed,
                },
                stopped.1.clone(),
                stopped.2,
                stopped.3,
            ),
        };
        self.listener.event(&Event::RunFinished {
            status,
            seconds: start.elapsed().as_secs_f64(),
            counters,
            ran,
            reused,
        });
        result.map_err(|stopped| stopped.0)
    }

    /// The values of a task's ports from the cache, if all of them are there, and where the slowest was.
    fn fetch(
        &self,
        task: &Task,
        ports: &BTreeSet<&'static str>,
    ) -> Option<(&'static str, Outputs)> {
        let mut keys: Vec<Key> = ports.iter().map(|port| task.port_key(port)).collect();
        keys.dedup();
        let mut place: Option<&'static str> = None;
        let mut merged = BTreeMap::new();
        for key in keys {
            let here = self.cache.place(&key)?;
            place = Some(place.map_or(here, |other| slower(other, here)));
            for (name, value) in self.cache.get(&key)?.iter() {
                if task.port_key(name) == key {
                    merged.insert(name.clone(), value.clone());
                }
            }
        }
        Some((place?, Arc::new(merged)))
    }

    /// Puts the outputs of a task into the cache, each port under its key.
    fn store(&self, task: &Task, ports: &BTreeSet<&'static str>, outputs: &Outputs, seconds: f64) {
        let mut by_key: BTreeMap<Key, BTreeMap<std::borrow::Cow<'static, str>, Value>> =
            BTreeMap::new();
        for (port, value) in outputs.iter() {
            by_key
                .entry(task.port_key(port))
                .or_default()
                .insert(port.clone(), value.clone());
        }
        // A port that was asked for and not made is known not to be: the next run need not try again.
        if ports.iter().any(|port| task.port_key(port) == task.key()) {
            by_key.entry(task.key()).or_default();
        }
        for (key, values) in by_key {
            // The last state of a chain is there already, with the seconds of its own step.
            if key == task.key() || self.cache.place(&key).is_none() {
                self.cache.put(key, &Arc::new(values), seconds);
            }
        }
    }

    /// Says what the cache has to say.
    fn cache_warnings(&self) {
        for message in self.cache.warnings() {
            self.listener.event(&Event::CacheWarning { message });
        }
    }

    /// Finds what is there already, and what is ready.
    fn prepare(&self) -> Run<'_> {
        let plan = self.plan;
        let count = plan.len();
        let mut values: Vec<Option<Outputs>> = vec![None; count];
        // What is found is held from here on: another run may push it out of the cache meanwhile.
        let (statuses, ports) = plan.decide(|index, task, ports| {
            let (place, outputs) = self.fetch(task, ports)?;
            values[index] = Some(outputs);
            Some(place)
        });
        let mut outputs: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (index, output) in plan.outputs().iter().enumerate() {
            outputs[output.task].push(index);
        }
        let mut outcomes: Vec<Option<NodeOutcome>> = vec![None; count];
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
        let mut waits = vec![0; count];
        let mut uses: Vec<usize> = outputs.iter().map(Vec::len).collect();
        let mut ready = BTreeSet::new();
        let mut of = 0;
        let forecast = plan.forecast_of(statuses, ports, self.cache, self.sources);
        let statuses = &forecast.statuses;
        for (index, (task, status)) in plan.tasks().zip(statuses).enumerate() {
            let from = match status {
                Status::Run(_) => {
                    of += 1;
                    for before in plan.upstream(index) {
                        uses[before] += 1;
                        if matches!(statuses[before], Status::Run(_)) {
                            waits[index] += 1;
                            next[before].push(index);
                        }
                    }
                    if waits[index] == 0 {
                        ready.insert(index);
                    }
                    continue;
                }
                Status::Cached(place) => place,
                Status::NotNeeded => "not needed",
            };
            outcomes[index] = Some(NodeOutcome::Reused(from));
            for node in task.names() {
                self.listener.event(&Event::NodeReused {
                    node: node.clone(),
                    op: task.op(),
                    key: task.key(),
                    from,
                });
            }
        }
        let run = Run {
            job: self,
            state: Mutex::new(State {
                ready,
                saves: VecDeque::new(),
                device_busy: false,
                busy: 0,
                waits,
                uses,
                values,
                outcomes,
                saved: vec![Vec::new(); plan.outputs().len()],
                counters: Counters::new(),
                begun: 0,
                left: of,
                error: None,
                failures: Vec::new(),
                given_up: vec![false; count],
            }),
            changed: Condvar::new(),
            next,
            outputs,
            of,
            forecast,
        };
        {
            let mut state = lock(&run.state);
            for index in 0..count {
                if let Some(values) = state.values[index].clone() {
                    run.queue_saves(&mut state, index, &values);
                    if state.uses[index] == 0 {
                        state.values[index] = None;
                    }
                }
            }
        }
        run
    }
}

impl Run<'_> {
    /// Queues the outputs of a task for saving; one that the node did not give is a failure.
    fn queue_saves(&self, state: &mut State, task: usize, values: &Outputs) {
        for &index in &self.outputs[task] {
            let output = &self.job.plan.outputs()[index];
            match values.get(output.port) {
                Some(value) if output.save.is_some() && self.job.options.saver.is_some() => {
                    state.saves.push_back((index, value.clone()));
                }
                Some(_) => {}
                None if output.required => {
                    let task = self.job.plan.task(task);
                    let error = not_given(
                        task.map_or("", |task| task.name()),
                        task.map_or("", |task| task.op()),
                        output.port,
                    );
                    if state.error.is_none() {
                        self.tell_failure(&error);
                        self.fail(state, error, None);
                    }
                }
                None => {}
            }
            let saved = output.save.is_some() && self.job.options.saver.is_some();
            if self.job.options.drop_outputs && !(saved && values.contains_key(output.port)) {
                state.uses[task] -= 1;
            }
        }
    }

    /// Tells listeners that a node failed, if that is what it is.
    fn tell_failure(&self, error: &RunError) {
        if let RunError::NodeFailed {
            node,
            code,
            message,
            help,
            ..
        } = error
        {
            self.job.listener.event(&Event::NodeFailed {
                node: node.clone(),
                code: *code,
                message: message.clone(),
                help: help.clone(),
            });
        }
    }

    /// Works until there is nothing left to do, or until the run is stopped.
    fn work(&self) {
        while let Some(work) = self.take() {
            match work {
                Work::Save(index, value) => self.save(index, &value),
                Work::Task(index, inputs, number) => self.task(index, inputs, number),
            }
        }
        self.changed.notify_all();
    }

    fn take(&self) -> Option<Work> {
        let mut state = lock(&self.state);
        loop {
            // What is ready is saved even when the run is stopped.
            if let Some((index, value)) = state.saves.pop_front() {
                state.busy += 1;
                return Some(Work::Save(index, value));
            }
            let stopped = state.error.is_some() || self.job.cancel.is_cancelled();
            if !stopped && state.left > 0 {
                let device_busy = state.device_busy;
                let next = state.ready.iter().copied().find(|index| {
                    !device_busy || self.job.plan.task(*index).is_none_or(|task| !task.device())
                });
                if let Some(index) = next {
                    state.ready.remove(&index);
                    match self.inputs(&state, index) {
                        Ok(inputs) => {
                            state.busy += 1;
                            state.begun += 1;
                            let device =
                                self.job.plan.task(index).is_some_and(|task| task.device());
                            state.device_busy |= device;
                            return Some(Work::Task(index, inputs, state.begun));
                        }
                        Err(error) => {
                            self.tell_failure(&error);
                            drop(self.fail(&mut state, error, Some(index)));
                            continue;
                        }
                    }
                }
            }
            if state.busy == 0 {
                return None; // nothing runs that could make something ready
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn inputs(&self, state: &State, index: usize) -> Result<PortValues, RunError> {
        let mut inputs = PortValues::new();
        let Some(task) = self.job.plan.task(index) else {
            return Ok(inputs);
        };
        for (port, links) in &task.inputs {
            let mut values = Vec::with_capacity(links.len());
            for (from, output) in links {
                let value = state.values[*from]
                    .as_ref()
                    .and_then(|values| values.get(*output));
                match value {
                    Some(value) => values.push(value.clone()),
                    None => {
                        let from = self.job.plan.task(*from);
                        return Err(not_given(
                            from.map_or("", |task| task.name()),
                            from.map_or("", |task| task.op()),
                            output,
                        ));
                    }
                }
            }
            inputs.insert(port, values);
        }
        Ok(inputs)
    }

    fn task(&self, index: usize, inputs: PortValues, number: usize) {
        let Some(task) = self.job.plan.task(index) else {
            return;
        };
        let name = task.name();
        let listener = self.job.listener;
        tracing::debug!(node = name, op = task.op(), key = %task.key(), "starts");
        listener.event(&Event::NodeStarted {
            node: name.to_owned(),
            op: task.op(),
            key: task.key(),
            index: number,
            of: self.of,
        });
        let host = NodeHost {
            job: self.job,
            name,
            counters: Mutex::default(),
            task,
            ports: &self.forecast.ports[index],
            wanted: &self.forecast.wanted,
        };
        let start = Instant::now();
        // Another run of this engine may be at the same node: its outputs are taken then.
        let claim = self
            .job
            .flight
            .claim(task.key(), || self.job.cancel.is_cancelled());
        let made = self.job.fetch(task, &self.forecast.ports[index]);
        let mut code = Code::NodeFailed;
        let result = if let Some((_, outputs)) = made {
            Ok(outputs)
        } else {
            let context = Context::new(&host);
            let run = || interrupt::within(self.job.cancel, || task.node.run(inputs, &context));
            // What a panic leaves behind is only what the node had: its inputs are dropped, its outputs never were.
            catch_unwind(AssertUnwindSafe(run))
                .unwrap_or_else(|panic| {
                    code = Code::NodePanicked;
                    Err(NodeError::panicked(&*panic))
                })
                .map(|values| {
                    let outputs: Outputs = Arc::new(
                        values
                            .into_iter()
                            .map(|(port, value)| (port.into(), value))
                            .collect(),
                    );
                    self.job.store(
                        task,
                        &self.forecast.ports[index],
                        &outputs,
                        start.elapsed().as_secs_f64(),
                    );
                    outputs
                })
        };
        drop(claim);
        self.job.cache_warnings();
        let seconds = start.elapsed().as_secs_f64();
        let counters = host
            .counters
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut dropped: Vec<Outputs> = Vec::new();
        match result {
            Ok(values) => {
                listener.event(&Event::NodeFinished {
                    node: name.to_owned(),
                    seconds,
                    counters: counters.clone(),
                });
                let mut state = lock(&self.state);
                for (counter, by) in &counters {
                    *state.counters.entry(counter).or_default() += by;
                }
                state.outcomes[index] = Some(NodeOutcome::Ran { seconds, counters });
                state.left -= 1;
                self.queue_saves(&mut state, index, &values);
                if state.uses[index] > 0 {
                    state.values[index] = Some(values);
                } else {
                    dropped.push(values);
                }
                for before in self.job.plan.upstream(index) {
                    state.uses[before] -= 1;
                    if state.uses[before] == 0 {
                        dropped.extend(state.values[before].take());
                    } else if let Some(values) = &state.values[before]
                        // A cache that keeps the values keeps them whole.
                        && Arc::strong_count(values) == 1
                    {
                        let open = |after: &&usize| state.outcomes[**after].is_none();
                        let consumers: Vec<&'static str> = self.next[before]
                            .iter()
                            .filter(open)
                            .filter_map(|&after| self.job.plan.task(after))
                            .map(|task| task.op())
                            .collect();
                        values.values().for_each(|value| value.trim(&consumers));
                    }
                }
                for &after in &self.next[index] {
                    state.waits[after] -= 1;
                    if state.waits[after] == 0 {
                        state.ready.insert(after);
                    }
                }
                self.release(&mut state, task.device());
            }
            Err(error) => {
                let error = match error {
                    NodeError::Cancelled => RunError::Cancelled,
                    NodeError::Failed { message, help } => {
                        let failed = RunError::NodeFailed {
                            node: name.to_owned(),
                            op: task.op(),
                            code,
                            message,
                            help,
                        };
                        self.tell_failure(&failed);
                        failed
                    }
                };
                let mut state = lock(&self.state);
                for (counter, by) in &counters {
                    *state.counters.entry(counter).or_default() += by;
                }
                dropped = self.fail(&mut state, error, Some(index));
                self.release(&mut state, task.device());
            }
        }
        self.changed.notify_all();
        // Values may be gigabytes: they are freed without the lock.
        drop(dropped);
    }

    /// Notes a failure: the run stops, or goes on without what needs the task. Values that nothing needs any more come
    /// back, to be freed without the lock.
    fn fail(&self, state: &mut State, error: RunError, task: Option<usize>) -> Vec<Outputs> {
        if !self.job.options.keep_going || matches!(error, RunError::Cancelled) {
            // A failure says more than that the run was cancelled.
            let replace = match &state.error {
                None => true,
                Some(RunError::Cancelled) => !matches!(error, RunError::Cancelled),
                Some(_) => false,
            };
            if replace {
                state.error = Some(error);
            }
            return Vec::new();
        }
        state.failures.push(error);
        let mut dropped = Vec::new();
        let mut open: Vec<usize> = task.into_iter().collect();
        while let Some(index) = open.pop() {
            if std::mem::replace(&mut state.given_up[index], true) {
                continue;
            }
            state.left -= 1;
            for before in self.job.plan.upstream(index) {
                state.uses[before] -= 1;
                if state.uses[before] == 0 {
                    dropped.extend(state.values[before].take());
                }
            }
            open.extend(&self.next[index]);
        }
        dropped
    }

    fn release(&self, state: &mut State, device: bool) {
        state.busy -= 1;
        if device {
            state.device_busy = false;
        }
    }

    fn save(&self, index: usize, value: &Value) {
        let output = &self.job.plan.outputs()[index];
        let mut result = Ok(Vec::new());
        if let (Some(saver), Some(path)) = (&self.job.options.saver, &output.save) {
            let save = || match &self.job.options.stamp {
                Some(stamp) => saver.save_stamped(path, value, &|format, bytes| {
                    stamp.stamp(&output.name, format, bytes)
                }),
                None => saver.save(path, value),
            };
            result = catch_unwind(AssertUnwindSafe(save)).unwrap_or_else(|panic| {
                Err(SaveError::Encode {
                    path: path.clone(),
                    source: NodeError::panicked(&*panic),
                })
            });
        }
        match &result {
            Ok(saved) => {
                for file in saved {
                    self.job.listener.event(&Event::OutputSaved {
                        output: output.name.clone(),
                        path: file.path.clone(),
                        status: file.status,
                    });
                }
            }
            Err(error) => self.job.listener.event(&Event::OutputFailed {
                output: output.name.clone(),
                code: error.code(),
                message: error.to_string(),
                help: error.help(),
            }),
        }
        let mut state = lock(&self.state);
        match result {
            Ok(saved) => state.saved[index] = saved,
            Err(source) => {
                let error = RunError::Save {
                    output: output.name.clone(),
                    source,
                };
                self.fail(&mut state, error, None);
            }
        }
        let mut dropped = None;
        if self.job.options.drop_outputs {
            state.uses[output.task] -= 1;
            if state.uses[output.task] == 0 {
                dropped = state.values[output.task].take();
            }
        }
        self.release(&mut state, false);
        drop(state);
        self.changed.notify_all();
        drop(dropped);
    }

    /// What the run did; what the last event tells comes with an error too.
    fn report(self, start: Instant) -> Result<RunReport, Box<(RunError, Counters, usize, usize)>> {
        let plan = self.job.plan;
        let mut state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let outcomes = || state.outcomes.iter().flatten();
        let ran = outcomes()
            .filter(|outcome| matches!(outcome, NodeOutcome::Ran { .. }))
            .count();
        let reused = outcomes().count() - ran;
        if let Some(error) = state.error {
            return Err(Box::new((error, state.counters, ran, reused)));
        }
        let count = state.failures.len();
        if let Some(first) = state.failures.into_iter().next() {
            let error = if state.left > 0 {
                RunError::Cancelled
            } else if count == 1 {
                first
            } else {
                let first = Box::new(first);
                RunError::Several { count, first }
            };
            return Err(Box::new((error, state.counters, ran, reused)));
        }
        if state.left > 0 {
            return Err(Box::new((RunError::Cancelled, state.counters, ran, reused)));
        }
        let outputs = plan
            .outputs()
            .iter()
            .zip(&mut state.saved)
            .filter_map(|(output, saved)| {
                Some(OutputValue {
                    name: output.name.clone(),
                    value: state.values[output.task]
                        .as_ref()?
                        .get(output.port)?
                        .clone(),
                    save: output.save.clone(),
                    saved: std::mem::take(saved),
                })
            })
            .collect();
        let nodes = plan
            .tasks()
            .zip(state.outcomes)
            .filter_map(|(task, outcome)| {
                Some(NodeReport {
                    node: task.name().to_owned(),
                    op: task.op(),
                    key: task.key(),
                    outcome: outcome?,
                })
            })
            .collect();
        Ok(RunReport {
            outputs,
            nodes,
            seconds: start.elapsed().as_secs_f64(),
            counters: state.counters,
            ran,
            reused,
        })
    }
}

fn not_given(node: &str, op: &'static str, port: &str) -> RunError {
    RunError::NodeFailed {
        node: node.to_owned(),
        op,
        code: Code::NotGiven,
        message: format!("it did not give its output `{port}`, which is needed"),
        help: Some(format!("`retouch nodes {op}` says when it gives `{port}`")),
    }
}

/// What a running node sees of the engine.
struct NodeHost<'a> {
    job: &'a Job<'a>,
    name: &'a str,
    counters: Mutex<BTreeMap<&'static str, u64>>,
    task: &'a Task,
    ports: &'a BTreeSet<&'static str>,
    wanted: &'a Wanted,
}

impl Host for NodeHost<'_> {
    fn progress(&self, done: usize, total: usize) {
        self.job.listener.event(&Event::NodeProgress {
            node: self.name.to_owned(),
            done,
            total,
        });
    }

    fn warn(&self, message: &str) {
        self.job.listener.event(&Event::NodeWarning {
            node: self.name.to_owned(),
            message: message.to_owned(),
        });
    }

    fn note_done(&self, message: &str) {
        self.job.listener.event(&Event::NodeNote {
            node: self.name.to_owned(),
            message: message.to_owned(),
        });
    }

    fn count(&self, counter: &'static str, by: u64) {
        *lock(&self.counters).entry(counter).or_default() += by;
    }

    fn is_cancelled(&self) -> bool {
        self.job.cancel.is_cancelled()
    }

    fn files(&self) -> &dyn Files {
        self.job.files
    }

    fn environment(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.job.environment.map(|environment| &**environment)
    }

    fn chain(&self) -> Option<&Chain> {
        self.task.chain().map(|chain| &**chain)
    }

    fn note(&self) -> Option<&Note> {
        self.task.note()
    }

    fn wants(&self, port: &str) -> bool {
        self.ports.contains(port)
    }

    fn wanted(&self, call: &Key) -> &[Item] {
        self.wanted.get(call).map_or(&[], Vec::as_slice)
    }

    fn kept(&self, key: &Key) -> Option<Outputs> {
        self.job.cache.get(key)
    }

    fn keep(&self, key: Key, outputs: Outputs, seconds: f64) {
        self.job.cache.put(key, &outputs, seconds);
        self.job.cache_warnings();
    }

    fn claim(&self, key: Key) -> Option<Claim<'_>> {
        self.job
            .flight
            .claim(key, || self.job.cancel.is_cancelled())
    }

    fn resumed(&self, step: usize, of: usize) {
        self.job.listener.event(&Event::NodeResumed {
            node: self.name.to_owned(),
            step,
            of,
        });
    }

    fn wants_preview(&self, done: usize, of: usize) -> Option<Quality> {
        let previewer = self.job.options.previewer.as_ref()?;
        // A previewer's panic is its own affair, as a listener's is.
        catch_unwind(AssertUnwindSafe(|| previewer.wants(self.name, done, of))).unwrap_or(None)
    }

    fn show_preview(&self, done: usize, of: usize, picture: Result<Value, NodeError>) {
        let Some(previewer) = &self.job.options.previewer else {
            return;
        };
        let shown = picture.and_then(|picture| {
            catch_unwind(AssertUnwindSafe(|| {
                previewer.show(self.name, done, of, &picture)
            }))
            .unwrap_or_else(|panic| Err(NodeError::panicked(&*panic)))
        });
        match shown {
            Ok(()) => self.job.listener.event(&Event::PreviewShown {
                node: self.name.to_owned(),
                done,
                of,
            }),
            Err(NodeError::Cancelled) => {}
            // Said once a run: the cause hardly goes away, and the run goes on all the same.
            Err(error) if !self.job.preview_failed.swap(true, Ordering::SeqCst) => {
                let help = match &error {
                    NodeError::Failed {
                        help: Some(help), ..
                    } => format!(" ({help})"),
                    _ => String::new(),
                };
                self.warn(&format!(
                    "the preview fails, the run goes on: {error}{help}"
                ));
            }
            Err(_) => {}
        }
    }
}
