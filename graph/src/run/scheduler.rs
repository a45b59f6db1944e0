//! The ready queue of a run: it walks the plan's graph, what is ready and has the longest remaining path first, with one
//! permit for each compute device.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use petgraph::graph::NodeIndex;
use petgraph::visit::{Dfs, NodeFiltered};

use crate::base::interrupt::POLL_INTERVAL;
use crate::base::sync::lock;
use crate::cache::Outputs;
use crate::op::chain::Chain;
use crate::plan::forecast::{Forecast, Status};
use crate::plan::priority::{Priority, priorities};
use crate::plan::steps::{self, ItemsToKeep};
use crate::plan::task::Task;
use crate::run::device::DevicePermit;
use crate::run::event::{Counters, Event};
use crate::run::job::Job;
use crate::run::report::{NodeOutcome, RunError, node_failed, not_given};
use crate::run::save::Saved;

/// What a task still has to do with the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It does not run. What is needed of it is fetched from the cache.
    Idle,
    /// It waits for others, or is ready.
    Waiting,
    /// A worker is at it.
    Running,
    /// It ran.
    Done,
    /// It failed, or needs a task that did.
    Abandoned,
}

impl Phase {
    /// Whether its outputs are still to come.
    fn is_due(self) -> bool {
        matches!(self, Self::Waiting | Self::Running)
    }
}

pub(super) struct State {
    /// The waiting tasks whose inputs are there.
    ready: BTreeSet<(Priority, usize)>,
    /// The outputs to save, or to fetch for the report, by index.
    deliveries: VecDeque<usize>,
    /// What of each call is to be kept.
    pub(super) to_keep: Arc<ItemsToKeep>,
    /// For each output: whether it was queued for delivery, or need not be.
    pub(super) queued: Vec<bool>,
    /// How many workers run a task or save an output.
    busy: usize,
    pub(super) phases: Vec<Phase>,
    /// For each task that waits: links from tasks that are due.
    waits: Vec<usize>,
    /// For each task: links to tasks that are due, and outputs.
    pub(super) uses: Vec<usize>,
    /// For each task: the output ports that something needs.
    pub(super) ports: Vec<BTreeSet<&'static str>>,
    pub(super) values: Vec<Option<Outputs>>,
    /// For each task: the ports that `values` were fetched for. A port of these without a value is not given by the node.
    pub(super) asked: Vec<BTreeSet<&'static str>>,
    /// For each task: the numbers of the compute devices that its outputs were made or used on.
    places: Vec<BTreeSet<usize>>,
    /// For each task: whether what it makes must not be kept, as a file behind it was touched.
    pub(super) tainted: Vec<bool>,
    pub(super) outcomes: Vec<Option<NodeOutcome>>,
    pub(super) saved: Vec<Vec<Saved>>,
    pub(super) counters: Counters,
    /// How many tasks have begun.
    pub(super) begun: usize,
    /// How many tasks run in all; more than were planned when the cache lost something that was counted on.
    pub(super) of: usize,
    pub(super) left: usize,
    pub(super) error: Option<RunError>,
    /// What failed while the run went on.
    pub(super) failures: Vec<RunError>,
}

pub(super) struct Run<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    /// For each task: the outputs that it makes.
    outputs: Vec<Vec<usize>>,
    /// For each task: its place among those that are ready.
    priorities: Vec<Priority>,
}

pub(super) enum Work {
    Task(usize),
    Deliver(usize),
}

/// A worker's turn at a task or an output. What it holds of the run is released when it ends, by a panic too.
pub(super) struct Turn<'a, 'b> {
    run: &'a Run<'b>,
    permit: Option<DevicePermit>,
}

impl Turn<'_, '_> {
    /// The number of the compute device that the turn has, the first of one that has none.
    pub(super) fn device(&self) -> usize {
        self.permit.as_ref().map_or(0, DevicePermit::number)
    }

    /// Releases the device before the turn is over.
    pub(super) fn release_device(&mut self) {
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

impl<'a> Run<'a> {
    /// Finds what is there already, and what is ready. Nothing is fetched yet: what is there may be more than the memory
    /// holds.
    pub(super) fn new(job: &'a Job<'a>) -> Self {
        let plan = job.plan;
        let count = plan.len();
        let forecast = plan.forecast(job.cache, job.sources);
        let priorities = priorities(plan, &forecast, &job.options.expected);
        let Forecast {
            statuses,
            ports,
            to_keep,
            ..
        } = forecast;
        let runs = |index: usize| matches!(statuses[index], Status::Run(_));
        let mut outputs: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (index, output) in plan.outputs().iter().enumerate() {
            outputs[output.task].push(index);
        }
        let mut state = State {
            ready: BTreeSet::new(),
            deliveries: VecDeque::new(),
            to_keep: Arc::new(to_keep),
            queued: vec![false; plan.outputs().len()],
            busy: 0,
            phases: vec![Phase::Idle; count],
            waits: vec![0; count],
            uses: outputs.iter().map(Vec::len).collect(),
            ports,
            values: vec![None; count],
            asked: vec![BTreeSet::new(); count],
            places: vec![BTreeSet::new(); count],
            tainted: vec![false; count],
            outcomes: vec![None; count],
            saved: vec![Vec::new(); plan.outputs().len()],
            counters: Counters::new(),
            begun: 0,
            of: 0,
            left: 0,
            error: None,
            failures: Vec::new(),
        };
        for (index, (task, status)) in plan.tasks().zip(&statuses).enumerate() {
            let from = match status {
                Status::Run(_) => {
                    state.of += 1;
                    state.phases[index] = Phase::Waiting;
                    for before in plan.upstream(index) {
                        state.uses[before] += 1;
                        state.waits[index] += usize::from(runs(before));
                    }
                    if state.waits[index] == 0 {
                        state.ready.insert((priorities[index], index));
                    }
                    continue;
                }
                Status::Cached(place) => place,
                Status::NotNeeded => "not needed",
            };
            state.outcomes[index] = Some(NodeOutcome::Reused(from));
            for node in task.names() {
                job.listener.event(&Event::NodeReused {
                    node: node.clone(),
                    op: task.op(),
                    key: task.key(),
                    from,
                });
            }
        }
        state.left = state.of;
        for (index, output) in plan.outputs().iter().enumerate() {
            if matches!(statuses[output.task], Status::Cached(_)) {
                state.queued[index] = true;
                let saved = output.save.is_some() && job.options.saver.is_some();
                if saved || !job.options.drop_outputs {
                    state.deliveries.push_back(index);
                } else {
                    state.uses[output.task] -= 1;
                }
            }
        }
        Self {
            job,
            state: Mutex::new(state),
            changed: Condvar::new(),
            outputs,
            priorities,
        }
    }

    pub(super) fn is_stopped(&self, state: &State) -> bool {
        state.error.is_some() || self.job.cancel.is_cancelled()
    }

    /// Waits for something to do; `None`: there is nothing left, or the run is stopped.
    pub(super) fn take(&self) -> Option<(Work, Turn<'_, 'a>)> {
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
                let next = state.ready.iter().copied().find(|(_, index)| {
                    if !self.job.plan.task(*index).is_some_and(Task::device) {
                        return true;
                    }
                    if !device_busy {
                        let devices = self.job.devices;
                        permit = devices.try_take(|device| self.inputs_on(&state, *index, device));
                        device_busy = permit.is_none();
                    }
                    permit.is_some()
                });
                if let Some(next) = next {
                    state.ready.remove(&next);
                    state.phases[next.1] = Phase::Running;
                    if let Some(permit) = &permit {
                        let upstream = self.job.plan.upstream(next.1);
                        for task in upstream.chain([next.1]) {
                            state.places[task].insert(permit.number());
                        }
                    }
                    state.busy += 1;
                    return Some((Work::Task(next.1), turn(permit)));
                }
            }
            if device_busy {
                // Another run of this engine, or a viewer, may have it: its release does not notify `changed`.
                let waited = self.changed.wait_timeout(state, POLL_INTERVAL);
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

    /// How much of what a task needs is on a device: models, which are long to load, before all else.
    fn inputs_on(&self, state: &State, index: usize, device: usize) -> (usize, usize) {
        let there = (self.job.plan.incoming(index))
            .filter(|(from, _)| state.places[*from].contains(&device));
        there.fold((0, 0), |(models, others), (from, edge)| {
            let task = self.job.plan.task(from);
            match task.is_some_and(|task| task.is_lazy(edge.from)) {
                true => (models + 1, others),
                false => (models, others + 1),
            }
        })
    }

    /// Marks a task as done; tasks that waited for it alone become ready.
    pub(super) fn advance(&self, state: &mut State, done: usize) {
        state.phases[done] = Phase::Done;
        state.left -= 1;
        for after in self.job.plan.downstream(done) {
            if state.phases[after] == Phase::Waiting {
                state.waits[after] -= 1;
                if state.waits[after] == 0 {
                    state.ready.insert((self.priorities[after], after));
                }
            }
        }
    }

    /// Puts a task back that found its inputs missing, or begins one that was not to run: it waits for those that are due.
    fn wait(&self, state: &mut State, index: usize) {
        state.phases[index] = Phase::Waiting;
        let plan = self.job.plan;
        let phases = &state.phases;
        let due = plan
            .upstream(index)
            .filter(|before| phases[*before].is_due());
        state.waits[index] = due.count();
        if state.waits[index] == 0 {
            state.ready.insert((self.priorities[index], index));
        }
    }

    /// Schedules again the tasks whose outputs a task needs and the cache has lost, and then the task itself. Returns the
    /// values that nothing needs any more, to be freed without the lock.
    pub(super) fn retry(
        &self,
        state: &mut State,
        index: usize,
        lacks: Vec<(usize, &'static str)>,
    ) -> Vec<Outputs> {
        for (from, port) in lacks {
            // Another task may have found it missing before.
            let values = state.values[from].as_ref();
            if values.is_none_or(|values| !values.contains_key(port)) {
                self.revive(state, from);
            }
        }
        if self.lacks_for_good(state, index) {
            return self.abandon(state, index);
        }
        self.wait(state, index);
        Vec::new()
    }

    /// Whether a task needs one that failed.
    fn lacks_for_good(&self, state: &State, index: usize) -> bool {
        let mut upstream = self.job.plan.upstream(index);
        upstream.any(|before| state.phases[before] == Phase::Abandoned)
    }

    /// Schedules a task whose outputs were expected in the cache and are not there any more: another process or run
    /// had them removed, an entry is damaged, or it lacks a port.
    pub(super) fn revive(&self, state: &mut State, index: usize) {
        if state.phases[index].is_due() || state.phases[index] == Phase::Abandoned {
            return;
        }
        let plan = self.job.plan;
        state.outcomes[index] = None;
        state.of += 1;
        state.left += 1;
        for (from, edge) in plan.incoming(index) {
            state.ports[from].insert(edge.from);
            state.uses[from] += 1;
        }
        // Tasks that have not begun yet would find it missing too.
        for after in plan.downstream(index) {
            if state.phases[after] == Phase::Waiting {
                state.ready.remove(&(self.priorities[after], after));
                state.waits[after] += 1;
            }
        }
        self.wait(state, index);
        if self.lacks_for_good(state, index) {
            drop(self.abandon(state, index));
        }
        if plan.task(index).is_some_and(|task| task.chain().is_some()) {
            // What it needs of calls was not counted when the run was planned.
            let chains: Vec<(&Chain, bool)> = (plan.tasks().enumerate())
                .filter(|(index, _)| state.phases[*index] != Phase::Idle)
                .filter_map(|(index, task)| {
                    let chain = task.chain()?;
                    let looks = |port| state.ports[index].contains(port);
                    Some((&**chain, chain.looks.is_some_and(looks)))
                })
                .collect();
            let work = steps::work(&chains, self.job.cache, self.job.sources);
            state.to_keep = Arc::new(work.to_keep);
        }
    }

    /// Notes a failure: the run stops, or goes on without what needs the task. Returns the values that
    /// nothing needs any more, to be freed without the lock.
    pub(super) fn fail(
        &self,
        state: &mut State,
        error: RunError,
        task: Option<usize>,
    ) -> Vec<Outputs> {
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
        task.map_or_else(Vec::new, |task| self.abandon(state, task))
    }

    /// Goes on without a task and without those that wait for it.
    fn abandon(&self, state: &mut State, task: usize) -> Vec<Outputs> {
        if state.phases[task] == Phase::Abandoned {
            return Vec::new();
        }
        let plan = self.job.plan;
        let waiting = NodeFiltered::from_fn(plan.graph(), |node: NodeIndex| {
            node.index() == task || state.phases[node.index()] == Phase::Waiting
        });
        let mut walk = Dfs::new(&waiting, NodeIndex::new(task));
        let abandoned: Vec<usize> =
            std::iter::from_fn(|| walk.next(&waiting).map(NodeIndex::index)).collect();
        let mut released = Vec::new();
        for index in abandoned {
            state.phases[index] = Phase::Abandoned;
            state.ready.remove(&(self.priorities[index], index));
            state.left -= 1;
            released.extend(self.release_inputs(state, index));
        }
        released
    }

    /// Drops the uses that a task has of others; returns the values that nothing else needs.
    fn release_inputs(&self, state: &mut State, index: usize) -> Vec<Outputs> {
        let mut released = Vec::new();
        for before in self.job.plan.upstream(index) {
            state.uses[before] -= 1;
            if state.uses[before] == 0 {
                released.extend(state.values[before].take());
            }
        }
        released
    }

    /// The ops of the tasks that are still to use the outputs of a task.
    pub(super) fn consumers(&self, state: &State, task: usize) -> Vec<&'static str> {
        (self.job.plan.downstream(task))
            .filter(|after| state.phases[*after].is_due())
            .filter_map(|after| self.job.plan.task(after))
            .map(Task::op)
            .collect()
    }

    /// Queues the outputs of a task that ran; one that the node did not give is a failure. Returns the
    /// events of it, to be sent without the lock.
    pub(super) fn queue_outputs(
        &self,
        state: &mut State,
        task: usize,
        values: &Outputs,
    ) -> Vec<Event> {
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

    /// Notes that a node did not give an output, which is a failure where the output is required. The event
    /// is to be sent without the lock.
    pub(super) fn output_not_given(&self, state: &mut State, index: usize) -> Option<Event> {
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

    /// Sends the event of a failed node, if the error is one. A listener may be slow, so this is not done under the lock.
    pub(super) fn tell_failure(&self, error: &RunError) {
        self.tell_all(node_failed(error));
    }

    pub(super) fn tell_all(&self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.job.listener.event(&event);
        }
    }
}
