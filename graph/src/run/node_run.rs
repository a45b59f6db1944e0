//! One task of a run: its inputs are found, its node runs, its outputs are kept and passed on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::base::error::NodeError;
use crate::base::interrupt;
use crate::base::problem::Code;
use crate::base::sync::lock;
use crate::cache::Outputs;
use crate::op::node::Context;
use crate::run::event::{Counters, Event};
use crate::run::host::NodeHost;
use crate::run::report::{NodeOutcome, RunError, failure, node_failed, not_given};
use crate::run::running;
use crate::run::scheduler::{Run, State, Turn};
use crate::value::payload::Value;
use crate::value::port::PortValues;

/// A value that a task or an output needs.
pub(super) enum Found {
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

impl Run<'_> {
    /// A value of a task, to be used on `device`: one that is held, or from the cache.
    pub(super) fn find(&self, from: usize, port: &'static str, device: usize) -> Found {
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
        let Some(outputs) = self.job.fetch(task, &ports, device) else {
            return Found::Gone;
        };
        let value = outputs.get(port).cloned();
        let mut state = lock(&self.state);
        // Others that need it take it from here: the task that asked has a use of it until it is done.
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

    fn inputs(&self, host: &NodeHost<'_>) -> Result<PortValues, Attempt> {
        let (index, device) = (host.index, host.device);
        let mut inputs = PortValues::new();
        let mut lacks = Vec::new();
        for (port, links) in self.job.plan.inputs(index) {
            let mut values = Vec::with_capacity(links.len());
            for (from, output) in links {
                match self.find(from, output, device) {
                    Found::Value(value) => {
                        let moved = self.job.moved(value, device);
                        values.push(moved.map_err(|error| {
                            Attempt::Failed(failure(host.task, Code::NodeFailed, error))
                        })?);
                    }
                    Found::Gone => lacks.push((from, output)),
                    Found::NotGiven => {
                        let from = self.job.plan.task(from);
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

    pub(super) fn run_task(&self, index: usize, turn: &mut Turn<'_, '_>) {
        let Some(task) = self.job.plan.task(index) else {
            return;
        };
        let (ports, to_keep) = {
            let mut state = lock(&self.state);
            let tainted = (self.job.plan.upstream(index)).any(|before| state.tainted[before]);
            state.tainted[index] = tainted;
            (state.ports[index].clone(), Arc::clone(&state.to_keep))
        };
        let device = turn.device();
        let host = NodeHost::new(self, index, task, &ports, to_keep, device);
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
        let counters = host.counters();
        let released = match attempt {
            Attempt::Made(values) => {
                self.job.listener.event(&Event::NodeFinished {
                    node: task.name().to_owned(),
                    seconds,
                    counters: counters.clone(),
                });
                let outcome = NodeOutcome::Ran { seconds, counters };
                self.finish(&host, values, outcome)
            }
            Attempt::Lacks(lacks) => self.retry(&mut lock(&self.state), index, lacks),
            Attempt::Failed(error) => {
                self.tell_failure(&error);
                let mut state = lock(&self.state);
                count(&mut state, &counters);
                self.fail(&mut state, error, Some(index))
            }
        };
        self.changed.notify_all();
        // Values may be gigabytes: they are freed without the lock.
        drop(released);
    }

    /// Passes the outputs of a task on. Returns the values that nothing needs any more, to be freed without the lock.
    fn finish(&self, host: &NodeHost<'_>, values: Outputs, outcome: NodeOutcome) -> Vec<Outputs> {
        let index = host.index;
        let mut released: Vec<Outputs> = Vec::new();
        let mut panicked = None;
        let mut state = lock(&self.state);
        if let NodeOutcome::Ran { counters, .. } = &outcome {
            count(&mut state, counters);
        }
        state.outcomes[index] = Some(outcome);
        state.asked[index].clone_from(host.ports);
        let mut untold = self.queue_outputs(&mut state, index, &values);
        released.extend(state.values[index].take());
        if state.uses[index] > 0 {
            state.values[index] = Some(values);
        } else {
            released.push(values);
        }
        self.advance(&mut state, index);
        for before in self.job.plan.upstream(index) {
            state.uses[before] -= 1;
            if state.uses[before] == 0 {
                released.extend(state.values[before].take());
            } else if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.trim(&state, before)))
                && let Some(before) = self.job.plan.task(before)
            {
                let error = NodeError::panicked(&*panic);
                panicked = Some(failure(before, Code::NodePanicked, error));
            }
        }
        if let Some(error) = panicked {
            untold.extend(node_failed(&error));
            released.extend(self.fail(&mut state, error, None));
        }
        drop(state);
        self.tell_all(untold);
        released
    }

    /// Fetches the inputs of a task, runs it and keeps what it gives.
    fn attempt(&self, host: &NodeHost<'_>, turn: &mut Turn<'_, '_>, start: Instant) -> Attempt {
        let (job, task, ports) = (self.job, host.task, host.ports);
        let inputs = match self.inputs(host) {
            Ok(inputs) => inputs,
            Err(attempt) => return attempt,
        };
        let (number, of) = {
            let mut state = lock(&self.state);
            state.begun += 1;
            (state.begun, state.of)
        };
        tracing::debug!(node = task.name(), op = task.op(), key = %task.key(), "starts");
        job.listener.event(&Event::NodeStarted {
            node: task.name().to_owned(),
            op: task.op(),
            key: task.key(),
            index: number,
            of,
        });
        let _running = running::begin(task.name(), task.op());
        // Another run of this engine may be making the same outputs: they are taken then.
        let in_flight = (job.flight).lock(task.key(), || job.cancel.is_cancelled());
        let result = match job.fetch(task, ports, host.device) {
            Some(outputs) => Ok(outputs),
            None => {
                let context: &Context<'_> = host;
                let run = || interrupt::within(job.cancel, || task.node.run(inputs, context));
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
        drop(in_flight);
        job.cache_warnings();
        match result {
            Ok(outputs) => Attempt::Made(outputs),
            Err((code, error)) => Attempt::Failed(failure(task, code, error)),
        }
    }

    /// Releases of a value what the tasks that are still to use it do not need, unless it is held elsewhere too.
    fn trim(&self, state: &State, task: usize) {
        if let Some(values) = &state.values[task]
            // A cache that keeps the values keeps them whole.
            && Arc::strong_count(values) == 1
        {
            let consumers = self.consumers(state, task);
            values.values().for_each(|value| value.trim(&consumers));
        }
    }
}

fn count(state: &mut State, counters: &Counters) {
    for (counter, by) in counters {
        *state.counters.entry(counter).or_default() += by;
    }
}
