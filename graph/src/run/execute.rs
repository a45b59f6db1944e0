//! Runs a plan: a queue of what is ready, one permit for the compute device, several for the CPU.

use std::any::Any;
use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::base::error::Environment;
use crate::base::error::NodeError;
use crate::base::interrupt;
use crate::base::interrupt::Cancel;
use crate::base::interrupt::LOOK;
use crate::base::key::Key;
use crate::base::problem::Code;
use crate::base::sync::lock;
use crate::cache::in_flight::Claim;
use crate::cache::in_flight::InFlight;
use crate::cache::{Cache, Outputs};
use crate::files::Files;
use crate::op::chain::{Chain, Item, Note};
use crate::op::node::{Context, Host};
use crate::plan::forecast::Wanted;
use crate::plan::forecast::forecast;
use crate::plan::guard::{Lazies, Verdict};
use crate::plan::plan::{Forecast, Plan, Status, Task};
use crate::run::device::{Device, DevicePermit};
use crate::run::event::{Counters, EVENT_SCHEMA, Event, Listener, RunStatus};
use crate::run::running;
use crate::run::save::{SaveError, Saved, Saver, Stamp};
use crate::value::payload::Value;
use crate::value::port::PortValues;
use crate::value::preview::{Previewer, Quality};

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
    /// This engine's compute device.
    pub(crate) device: &'a Arc<Device>,
    /// From which files the lazy values in this engine's cache are read.
    pub(crate) lazies: &'a Lazies,
    /// Whether it was said that a preview failed.
    pub(crate) preview_failed: AtomicBool,
    /// Whether it was said that a file was touched.
    pub(crate) touched: AtomicBool,
}

/// What a task still has to do with the run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It does not run. What is needed of it is fetched from the cache.
    Idle,
    /// It waits for others, is ready, or runs.
    Due,
    /// It ran.
    Done,
}

struct State {
    /// What can begin, by index: the order of the plan.
    ready: BTreeSet<usize>,
    /// The outputs to save, or to fetch for the report, by index.
    deliveries: VecDeque<usize>,
    /// What of each call is to be kept.
    wanted: Arc<Wanted>,
    /// For each output: whether it was queued for delivery, or need not be.
    queued: Vec<bool>,
    /// What is running or being saved.
    busy: usize,
    phases: Vec<Phase>,
    /// For each task: links to tasks that are due.
    waits: Vec<usize>,
    /// For each task: the tasks that wait for it, once for each link.
    next: Vec<Vec<usize>>,
    /// For each task: links from tasks that are due, and outputs.
    uses: Vec<usize>,
    /// For each task: the output ports that something needs.
    ports: Vec<BTreeSet<&'static str>>,
    values: Vec<Option<Outputs>>,
    /// For each task: the ports that `values` were asked for. A port that is missing there is not given at all.
    asked: Vec<BTreeSet<&'static str>>,
    /// For each task: whether what it makes must not be kept, as a file behind it was touched.
    tainted: Vec<bool>,
    outcomes: Vec<Option<NodeOutcome>>,
    saved: Vec<Vec<Saved>>,
    counters: Counters,
    begun: usize,
    /// How many tasks run in all; more than were planned when the cache lost something that was counted on.
    of: usize,
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
    /// For each task: the outputs that it makes.
    outputs: Vec<Vec<usize>>,
}

enum Work {
    Task(usize),
    Deliver(usize),
}

/// A worker's turn at a task or an output. What it holds of the run is given back when it ends, by a panic too.
struct Turn<'a, 'b> {
    run: &'a Run<'b>,
    permit: Option<DevicePermit>,
}

impl Turn<'_, '_> {
    /// Gives the device back before the turn is over.
    fn release_device(&mut self) {
        if let Some(permit) = self.permit.take() {
            drop(permit);
            self.run.changed.notify_all();
        }
    }
}

impl Drop for Turn<'_, '_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        lock(&self.run.state).busy -= 1;
        self.run.changed.notify_all();
    }
}

/// A value that a task or an output needs.
enum Found {
    Value(Value),
    /// The node does not give it.
    NotGiven,
    /// It was counted on, and the cache lost it in the meantime.
    Gone,
}

/// What came of a turn at a task.
enum Attempt {
    Made(Outputs),
    Failed(RunError),
    /// These outputs of other tasks are gone from the cache.
    Lacks(Vec<(usize, &'static str)>),
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
        let of = lock(&run.state).of;
        let threads = threads.min(of.max(plan.outputs().len())).max(1);
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

    /// The values of a task's ports from the cache, if all of them are there. An entry without a port is one of a run that
    /// did not need it, unless that run says that the node does not give it.
    fn fetch(&self, task: &Task, ports: &BTreeSet<&'static str>) -> Option<Outputs> {
        let mut entries: BTreeMap<Key, Outputs> = BTreeMap::new();
        for port in ports {
            let key = task.port_key(port);
            let entry = match entries.entry(key) {
                Slot::Occupied(entry) => entry.into_mut(),
                Slot::Vacant(slot) => slot.insert(self.cache.get(&key)?),
            };
            let lazy = entry.values().any(Value::is_lazy);
            if lazy && !self.lazies.fit(&key, &task.guard) {
                return None;
            }
            if !entry.contains_key(*port) && self.cache.place(&task.absent_key(port)).is_none() {
                return None;
            }
        }
        let mut merged = BTreeMap::new();
        for (key, entry) in &entries {
            for (name, value) in entry.iter() {
                if task.port_key(name) == *key {
                    merged.insert(name.clone(), value.clone());
                }
            }
        }
        Some(Arc::new(merged))
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
        for port in ports {
            if task.port_key(port) == task.key() {
                let own = by_key.entry(task.key()).or_default();
                if !own.contains_key(*port) {
                    by_key.entry(task.absent_key(port)).or_default();
                }
            }
        }
        for (key, mut values) in by_key {
            // The last state of a chain is there already, with the seconds of its own step.
            let there = self.cache.place(&key).is_some();
            if key == task.key() {
                // An earlier run may have made ports that this one had no need of.
                let before = there.then(|| self.cache.get(&key)).flatten();
                for (port, value) in before.iter().flat_map(|before| before.iter()) {
                    if !value.is_lazy() {
                        values.entry(port.clone()).or_insert_with(|| value.clone());
                    }
                }
            }
            if values.values().any(Value::is_lazy) {
                self.lazies.note(key, &task.guard);
            }
            if key == task.key() || !there {
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

    /// Finds what is there already, and what is ready. Nothing is fetched yet: what is there may be more than the memory
    /// holds.
    fn prepare(&self) -> Run<'_> {
        let plan = self.plan;
        let count = plan.len();
        let Forecast {
            statuses,
            ports,
            wanted,
            ..
        } = plan.forecast(self.cache, self.sources);
        let mut outputs: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (index, output) in plan.outputs().iter().enumerate() {
            outputs[output.task].push(index);
        }
        let mut outcomes: Vec<Option<NodeOutcome>> = vec![None; count];
        let mut phases = vec![Phase::Idle; count];
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
        let mut waits = vec![0; count];
        let mut uses: Vec<usize> = outputs.iter().map(Vec::len).collect();
        let mut ready = BTreeSet::new();
        let mut of = 0;
        for (index, (task, status)) in plan.tasks().zip(&statuses).enumerate() {
            let from = match status {
                Status::Run(_) => {
                    of += 1;
                    phases[index] = Phase::Due;
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
        let mut state = State {
            ready,
            deliveries: VecDeque::new(),
            wanted: Arc::new(wanted),
            queued: vec![false; plan.outputs().len()],
            busy: 0,
            phases,
            waits,
            next,
            uses,
            ports,
            values: vec![None; count],
            asked: vec![BTreeSet::new(); count],
            tainted: vec![false; count],
            outcomes,
            saved: vec![Vec::new(); plan.outputs().len()],
            counters: Counters::new(),
            begun: 0,
            of,
            left: of,
            error: None,
            failures: Vec::new(),
            given_up: vec![false; count],
        };
        for (index, output) in plan.outputs().iter().enumerate() {
            if matches!(statuses[output.task], Status::Cached(_)) {
                state.queued[index] = true;
                let saved = output.save.is_some() && self.options.saver.is_some();
                if saved || !self.options.drop_outputs {
                    state.deliveries.push_back(index);
                } else {
                    state.uses[output.task] -= 1;
                }
            }
        }
        Run {
            job: self,
            state: Mutex::new(state),
            changed: Condvar::new(),
            outputs,
        }
    }
}

impl Run<'_> {
    /// Queues the outputs of a task that ran; one that the node did not give is a failure. What listeners are to hear of it
    /// comes back: they are told without the lock.
    fn queue_outputs(&self, state: &mut State, task: usize, values: &Outputs) -> Vec<Event> {
        let mut untold = Vec::new();
        for &index in &self.outputs[task] {
            if std::mem::replace(&mut state.queued[index], true) {
                continue;
            }
            let output = &self.job.plan.outputs()[index];
            let given = values.contains_key(output.port);
            let saved = given && output.save.is_some() && self.job.options.saver.is_some();
            if saved {
                state.deliveries.push_back(index);
            }
            if !given {
                untold.extend(self.output_not_given(state, index));
            }
            if self.job.options.drop_outputs && !saved {
                state.uses[task] -= 1;
            }
        }
        untold
    }

    /// Notes that a node did not give an output, which is a failure where the output is required. Listeners are to hear the
    /// event once the lock is free.
    fn output_not_given(&self, state: &mut State, index: usize) -> Option<Event> {
        let output = &self.job.plan.outputs()[index];
        if !output.required || state.error.is_some() {
            return None;
        }
        let task = self.job.plan.task(output.task);
        let error = not_given(
            task.map_or("", |task| task.name()),
            task.map_or("", |task| task.op()),
            output.port,
        );
        let event = node_failed(&error);
        self.fail(state, error, None);
        event
    }

    /// Tells listeners that a node failed, if that is what it is. A listener may take its time: never under the lock.
    fn tell_failure(&self, error: &RunError) {
        self.tell_all(node_failed(error));
    }

    fn tell_all(&self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.job.listener.event(&event);
        }
    }

    /// Works until there is nothing left to do, or until the run is stopped.
    fn work(&self) {
        while let Some((work, mut turn)) = self.take() {
            match work {
                Work::Deliver(index) => self.deliver(index),
                Work::Task(index) => self.task(index, &mut turn),
            }
        }
        self.changed.notify_all();
    }

    fn is_stopped(&self, state: &State) -> bool {
        state.error.is_some() || self.job.cancel.is_cancelled()
    }

    fn take(&self) -> Option<(Work, Turn<'_, '_>)> {
        let mut state = lock(&self.state);
        loop {
            let turn = |permit| Turn { run: self, permit };
            // What is ready is saved even when the run is stopped.
            if let Some(index) = state.deliveries.pop_front() {
                state.busy += 1;
                return Some((Work::Deliver(index), turn(None)));
            }
            let mut permit = None;
            let mut device_busy = false;
            if !self.is_stopped(&state) && state.left > 0 {
                let next = state.ready.iter().copied().find(|index| {
                    if !self.job.plan.task(*index).is_some_and(Task::device) {
                        return true;
                    }
                    if !device_busy {
                        permit = self.job.device.try_take();
                        device_busy = permit.is_none();
                    }
                    permit.is_some()
                });
                if let Some(index) = next {
                    state.ready.remove(&index);
                    state.busy += 1;
                    return Some((Work::Task(index), turn(permit)));
                }
            }
            if device_busy {
                // Another run of this engine, or a look, may have it: they wake nobody here.
                let waited = self.changed.wait_timeout(state, LOOK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
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

    /// A value of a task: one that is held, or from the cache.
    fn find(&self, from: usize, port: &'static str) -> Found {
        let ports = {
            let state = lock(&self.state);
            if let Some(value) = state.values[from].as_ref().and_then(|it| it.get(port)) {
                return Found::Value(value.clone());
            }
            if state.values[from].is_some() && state.asked[from].contains(port) {
                return Found::NotGiven;
            }
            let mut ports = state.ports[from].clone();
            ports.insert(port);
            ports
        };
        let Some(task) = self.job.plan.task(from) else {
            return Found::NotGiven;
        };
        let Some(outputs) = self.job.fetch(task, &ports) else {
            return Found::Gone;
        };
        let value = outputs.get(port).cloned();
        let mut state = lock(&self.state);
        // Others that need it take it from here. Whoever asked has a use of it until it is done.
        let replaced = if state.uses[from] > 0 {
            state.asked[from] = ports;
            state.values[from].replace(outputs)
        } else {
            None
        };
        drop(state);
        drop(replaced);
        value.map_or(Found::NotGiven, Found::Value)
    }

    fn inputs(&self, task: &Task) -> Result<PortValues, Attempt> {
        let mut inputs = PortValues::new();
        let mut lacks = Vec::new();
        for (port, links) in &task.inputs {
            let mut values = Vec::with_capacity(links.len());
            for (from, output) in links {
                match self.find(*from, output) {
                    Found::Value(value) => values.push(value),
                    Found::Gone => lacks.push((*from, *output)),
                    Found::NotGiven => {
                        let from = self.job.plan.task(*from);
                        return Err(Attempt::Failed(not_given(
                            from.map_or("", |task| task.name()),
                            from.map_or("", |task| task.op()),
                            output,
                        )));
                    }
                }
            }
            inputs.insert(port, values);
        }
        if lacks.is_empty() {
            Ok(inputs)
        } else {
            Err(Attempt::Lacks(lacks))
        }
    }

    fn task(&self, index: usize, turn: &mut Turn<'_, '_>) {
        let Some(task) = self.job.plan.task(index) else {
            return;
        };
        let (ports, wanted) = {
            let mut state = lock(&self.state);
            let tainted = (self.job.plan.upstream(index)).any(|before| state.tainted[before]);
            state.tainted[index] = tainted;
            (state.ports[index].clone(), Arc::clone(&state.wanted))
        };
        let host = NodeHost {
            run: self,
            index,
            name: task.name(),
            counters: Mutex::default(),
            task,
            ports: &ports,
            wanted,
            changed: Mutex::default(),
        };
        let start = Instant::now();
        // What a panic leaves behind is only what the node had: its inputs are dropped, its outputs never were.
        let attempt = catch_unwind(AssertUnwindSafe(|| self.attempt(&host, turn, start)));
        let attempt = attempt.unwrap_or_else(|panic| {
            Attempt::Failed(failure(
                task,
                Code::NodePanicked,
                NodeError::panicked(&*panic),
            ))
        });
        turn.release_device();
        let seconds = start.elapsed().as_secs_f64();
        let counters = host
            .counters
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut dropped: Vec<Outputs> = Vec::new();
        match attempt {
            Attempt::Made(values) => {
                self.job.listener.event(&Event::NodeFinished {
                    node: task.name().to_owned(),
                    seconds,
                    counters: counters.clone(),
                });
                let mut panicked = None;
                let mut state = lock(&self.state);
                for (counter, by) in &counters {
                    *state.counters.entry(counter).or_default() += by;
                }
                state.outcomes[index] = Some(NodeOutcome::Ran { seconds, counters });
                state.phases[index] = Phase::Done;
                state.left -= 1;
                state.asked[index].clone_from(&ports);
                let mut untold = self.queue_outputs(&mut state, index, &values);
                dropped.extend(state.values[index].take());
                if state.uses[index] > 0 {
                    state.values[index] = Some(values);
                } else {
                    dropped.push(values);
                }
                for before in self.job.plan.upstream(index) {
                    state.uses[before] -= 1;
                    if state.uses[before] == 0 {
                        dropped.extend(state.values[before].take());
                    } else if let Err(panic) =
                        catch_unwind(AssertUnwindSafe(|| self.trim(&state, before)))
                        && let Some(before) = self.job.plan.task(before)
                    {
                        let error = NodeError::panicked(&*panic);
                        panicked = Some(failure(before, Code::NodePanicked, error));
                    }
                }
                for after in std::mem::take(&mut state.next[index]) {
                    state.waits[after] -= 1;
                    if state.waits[after] == 0 && !state.given_up[after] {
                        state.ready.insert(after);
                    }
                }
                if let Some(error) = panicked {
                    untold.extend(node_failed(&error));
                    dropped.extend(self.fail(&mut state, error, None));
                }
                drop(state);
                self.tell_all(untold);
            }
            Attempt::Lacks(lacks) => {
                let mut state = lock(&self.state);
                for (from, port) in lacks {
                    // Somebody else may have seen to it already.
                    let values = state.values[from].as_ref();
                    if values.is_none_or(|values| !values.contains_key(port)) {
                        self.revive(&mut state, from);
                        state.waits[index] += 1;
                        state.next[from].push(index);
                    }
                }
                if (self.job.plan.upstream(index)).any(|before| state.given_up[before]) {
                    dropped = self.give_up(&mut state, index);
                } else if state.waits[index] == 0 {
                    state.ready.insert(index);
                }
            }
            Attempt::Failed(error) => {
                self.tell_failure(&error);
                let mut state = lock(&self.state);
                for (counter, by) in &counters {
                    *state.counters.entry(counter).or_default() += by;
                }
                dropped = self.fail(&mut state, error, Some(index));
            }
        }
        self.changed.notify_all();
        // Values may be gigabytes: they are freed without the lock.
        drop(dropped);
    }

    /// Fetches the inputs of a task, runs it and keeps what it gives.
    fn attempt(&self, host: &NodeHost<'_>, turn: &mut Turn<'_, '_>, start: Instant) -> Attempt {
        let (job, task, ports) = (self.job, host.task, host.ports);
        let inputs = match self.inputs(task) {
            Ok(inputs) => inputs,
            Err(attempt) => return attempt,
        };
        let (number, of) = {
            let mut state = lock(&self.state);
            state.begun += 1;
            (state.begun, state.of)
        };
        tracing::debug!(node = host.name, op = task.op(), key = %task.key(), "starts");
        job.listener.event(&Event::NodeStarted {
            node: host.name.to_owned(),
            op: task.op(),
            key: task.key(),
            index: number,
            of,
        });
        let _running = running::begin(host.name, task.op());
        // Another run of this engine may be at the same node: its outputs are taken then.
        let claim = job.flight.claim(task.key(), || job.cancel.is_cancelled());
        let result = match job.fetch(task, ports) {
            Some(outputs) => Ok(outputs),
            None => {
                let context = Context::new(host);
                let run = || interrupt::within(job.cancel, || task.node.run(inputs, &context));
                let ran = catch_unwind(AssertUnwindSafe(run));
                let ran = match ran {
                    Ok(Ok(values)) => Ok(values),
                    Ok(Err(error)) => Err((Code::NodeFailed, error)),
                    Err(panic) => Err((Code::NodePanicked, NodeError::panicked(&*panic))),
                };
                // What the device is needed for is done: writing does not hold up the next node.
                turn.release_device();
                host.compared(ran).map(|values| {
                    let values = values.into_iter();
                    let outputs: Outputs =
                        Arc::new(values.map(|(port, value)| (port.into(), value)).collect());
                    if !host.is_tainted() {
                        job.store(task, ports, &outputs, start.elapsed().as_secs_f64());
                    }
                    outputs
                })
            }
        };
        drop(claim);
        job.cache_warnings();
        match result {
            Ok(outputs) => Attempt::Made(outputs),
            Err((code, error)) => Attempt::Failed(failure(task, code, error)),
        }
    }

    /// Lets a value go of what those that are still to use it do not need, unless somebody else holds it.
    fn trim(&self, state: &State, task: usize) {
        if let Some(values) = &state.values[task]
            // A cache that keeps the values keeps them whole.
            && Arc::strong_count(values) == 1
        {
            let consumers: Vec<&'static str> = (self.job.plan.downstream(task))
                .filter(|after| state.phases[*after] == Phase::Due)
                .filter_map(|after| self.job.plan.task(after))
                .map(|task| task.op())
                .collect();
            values.values().for_each(|value| value.trim(&consumers));
        }
    }

    /// Has a task run whose outputs were counted on to be in the cache and are not there any more: another process or run
    /// had them removed, an entry is damaged, or it lacks a port.
    fn revive(&self, state: &mut State, index: usize) {
        if state.phases[index] == Phase::Due {
            return;
        }
        let Some(task) = self.job.plan.task(index) else {
            return;
        };
        state.phases[index] = Phase::Due;
        state.outcomes[index] = None;
        state.of += 1;
        state.left += 1;
        for (_, links) in &task.inputs {
            for (from, port) in links {
                state.ports[*from].insert(port);
                state.uses[*from] += 1;
                if state.phases[*from] == Phase::Due {
                    state.waits[index] += 1;
                    state.next[*from].push(index);
                }
            }
        }
        if (self.job.plan.upstream(index)).any(|before| state.given_up[before]) {
            drop(self.give_up(state, index));
        } else if state.waits[index] == 0 {
            state.ready.insert(index);
        }
        if task.chain().is_some() {
            // What it needs of calls was not counted when the run was planned.
            let tasks = self.job.plan.tasks().enumerate();
            let chains: Vec<(&Chain, bool)> = tasks
                .filter(|(index, _)| state.phases[*index] != Phase::Idle)
                .filter_map(|(index, task)| {
                    let chain = task.chain()?;
                    let looks = |port| state.ports[index].contains(port);
                    Some((&**chain, chain.looks.is_some_and(looks)))
                })
                .collect();
            let (_, wanted, _) = forecast(&chains, self.job.cache, self.job.sources);
            state.wanted = Arc::new(wanted);
        }
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
        task.map_or_else(Vec::new, |task| self.give_up(state, task))
    }

    /// Goes on without a task and without what waits for it.
    fn give_up(&self, state: &mut State, task: usize) -> Vec<Outputs> {
        let mut dropped = Vec::new();
        let mut open = vec![task];
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
            open.extend(std::mem::take(&mut state.next[index]));
        }
        dropped
    }

    /// Saves an output, or fetches what the report lists without saving it.
    fn deliver(&self, index: usize) {
        let output = &self.job.plan.outputs()[index];
        let found = catch_unwind(AssertUnwindSafe(|| self.find(output.task, output.port)));
        let value = match found {
            Ok(Found::Value(value)) => Some(value),
            Ok(Found::NotGiven) => {
                let untold = self.output_not_given(&mut lock(&self.state), index);
                self.tell_all(untold);
                None
            }
            Ok(Found::Gone) => {
                let mut state = lock(&self.state);
                if self.is_stopped(&state) {
                    // The run ends without it, so it does not end well.
                    self.fail(&mut state, RunError::Cancelled, None);
                } else if !state.given_up[output.task] {
                    state.queued[index] = false;
                    self.revive(&mut state, output.task);
                }
                return;
            }
            Err(panic) => {
                if let Some(task) = self.job.plan.task(output.task) {
                    let error = NodeError::panicked(&*panic);
                    let error = failure(task, Code::NodePanicked, error);
                    self.tell_failure(&error);
                    self.fail(&mut lock(&self.state), error, None);
                }
                None
            }
        };
        if let Some(value) = value {
            self.save(index, &value);
        }
        if self.job.options.drop_outputs {
            let mut state = lock(&self.state);
            state.uses[output.task] -= 1;
            let unused = state.uses[output.task] == 0;
            let dropped = unused.then(|| state.values[output.task].take());
            drop(state);
            drop(dropped);
        }
        self.job.cache_warnings();
    }

    fn save(&self, index: usize, value: &Value) {
        let output = &self.job.plan.outputs()[index];
        let (Some(saver), Some(path)) = (&self.job.options.saver, &output.save) else {
            return;
        };
        let save = || match &self.job.options.stamp {
            Some(stamp) => saver.save_stamped(path, value, &|format, image, bytes| {
                stamp.stamp(&output.name, format, image, bytes)
            }),
            None => saver.save(path, value),
        };
        let result = catch_unwind(AssertUnwindSafe(save)).unwrap_or_else(|panic| {
            Err(SaveError::Encode {
                path: path.clone(),
                source: NodeError::panicked(&*panic),
            })
        });
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

/// What listeners hear of an error, if it is a node's.
fn node_failed(error: &RunError) -> Option<Event> {
    let RunError::NodeFailed {
        node,
        code,
        message,
        help,
        ..
    } = error
    else {
        return None;
    };
    Some(Event::NodeFailed {
        node: node.clone(),
        code: *code,
        message: message.clone(),
        help: help.clone(),
    })
}

/// A node's failure as the run's.
fn failure(task: &Task, code: Code, error: NodeError) -> RunError {
    match error {
        NodeError::Cancelled => RunError::Cancelled,
        NodeError::Failed { message, help } => RunError::NodeFailed {
            node: task.name().to_owned(),
            op: task.op(),
            code,
            message,
            help,
        },
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
    run: &'a Run<'a>,
    index: usize,
    name: &'a str,
    counters: Mutex<BTreeMap<&'static str, u64>>,
    task: &'a Task,
    ports: &'a BTreeSet<&'static str>,
    wanted: Arc<Wanted>,
    /// That a file behind the task changed: the node ends at its next step.
    changed: Mutex<Option<NodeError>>,
}

impl<'a> NodeHost<'a> {
    fn job(&self) -> &'a Job<'a> {
        self.run.job
    }

    /// Whether what the node makes must not be kept.
    fn is_tainted(&self) -> bool {
        lock(&self.run.state).tainted[self.index]
    }

    /// Whether what the node made so far was made of the files that its key names.
    fn may_keep(&self) -> bool {
        if lock(&self.changed).is_some() || self.is_tainted() {
            return false;
        }
        self.judge(self.task.guard.verdict(self.job().files))
    }

    /// Notes what became of the files behind the task; whether what was made of them may be kept.
    fn judge(&self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Same => true,
            Verdict::Touched(path) => {
                // What was loaded from it in the meantime may be of another content.
                self.job().cache.forget_lazy();
                self.taint(&path);
                if !self.job().touched.swap(true, Ordering::SeqCst) {
                    self.warn(&format!(
                        "`{}` was written while the run was using it. It has the content again that the plan was made with, but may have had another in between: nothing that is made from it in this run is kept. To be sure of the result, run it again",
                        path.display()
                    ));
                }
                false
            }
            Verdict::Changed(error) => {
                self.job().cache.forget_lazy();
                lock(&self.changed).get_or_insert(error);
                false
            }
        }
    }

    /// Marks the task, and those whose lazy values read the file for it: whatever else uses these is not kept either.
    fn taint(&self, path: &Path) {
        let plan = self.job().plan;
        let mut state = lock(&self.run.state);
        let mut open = vec![self.index];
        while let Some(index) = open.pop() {
            state.tainted[index] = true;
            let links = plan.task(index).into_iter().flat_map(|task| &task.inputs);
            open.extend(
                links
                    .flat_map(|(_, links)| links)
                    .filter_map(|(from, port)| {
                        let task = plan.task(*from)?;
                        (task.is_lazy(port) && task.guard.has(path) && !state.tainted[*from])
                            .then_some(*from)
                    }),
            );
        }
    }

    /// The result of the node once the files behind it are compared with what they were.
    fn compared<T>(&self, result: Result<T, (Code, NodeError)>) -> Result<T, (Code, NodeError)> {
        let (guard, files) = (&self.task.guard, self.job().files);
        if lock(&self.changed).is_none() {
            self.judge(guard.verdict_after(&*self.task.node, files));
        }
        let changed = lock(&self.changed).take();
        match (changed, result) {
            // A comparison that was cut short says nothing of the file.
            (Some(_), _) if self.job().cancel.is_cancelled() => {
                Err((Code::NodeFailed, NodeError::Cancelled))
            }
            (Some(changed), _) => Err((Code::FileChanged, changed)),
            (None, result) => result,
        }
    }
}

impl Host for NodeHost<'_> {
    fn progress(&self, done: usize, total: usize) {
        self.job().listener.event(&Event::NodeProgress {
            node: self.name.to_owned(),
            done,
            total,
        });
    }

    fn warn(&self, message: &str) {
        self.job().listener.event(&Event::NodeWarning {
            node: self.name.to_owned(),
            message: message.to_owned(),
        });
    }

    fn note_done(&self, message: &str) {
        self.job().listener.event(&Event::NodeNote {
            node: self.name.to_owned(),
            message: message.to_owned(),
        });
    }

    fn count(&self, counter: &'static str, by: u64) {
        *lock(&self.counters).entry(counter).or_default() += by;
    }

    fn is_cancelled(&self) -> bool {
        self.job().cancel.is_cancelled() || lock(&self.changed).is_some()
    }

    fn files(&self) -> &dyn Files {
        self.job().files
    }

    fn environment(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.job().environment.map(|environment| &**environment)
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
        self.job().cache.get(key)
    }

    fn keep(&self, key: Key, outputs: Outputs, seconds: f64) {
        if self.may_keep() {
            self.job().cache.put(key, &outputs, seconds);
            self.job().cache_warnings();
        }
    }

    fn claim(&self, key: Key) -> Option<Claim<'_>> {
        let flight = self.job().flight;
        flight.claim(key, || self.is_cancelled())
    }

    fn resumed(&self, step: usize, of: usize) {
        self.job().listener.event(&Event::NodeResumed {
            node: self.name.to_owned(),
            step,
            of,
        });
    }

    fn wants_preview(&self, done: usize, of: usize) -> Option<Quality> {
        let previewer = self.job().options.previewer.as_ref()?;
        // A previewer's panic is its own affair, as a listener's is.
        catch_unwind(AssertUnwindSafe(|| previewer.wants(self.name, done, of))).unwrap_or(None)
    }

    fn show_preview(&self, done: usize, of: usize, picture: Result<Value, NodeError>) {
        let Some(previewer) = &self.job().options.previewer else {
            return;
        };
        let shown = picture.and_then(|picture| {
            catch_unwind(AssertUnwindSafe(|| {
                previewer.show(self.name, done, of, &picture)
            }))
            .unwrap_or_else(|panic| Err(NodeError::panicked(&*panic)))
        });
        match shown {
            Ok(()) => self.job().listener.event(&Event::PreviewShown {
                node: self.name.to_owned(),
                done,
                of,
            }),
            Err(NodeError::Cancelled) => {}
            // Said once a run: the cause hardly goes away, and the run goes on all the same.
            Err(error) if !self.job().preview_failed.swap(true, Ordering::SeqCst) => {
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
