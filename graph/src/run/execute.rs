//! Runs a plan: workers on CPU threads, of which each compute device is used by one at a time.

use std::sync::PoisonError;
use std::time::Instant;

use crate::base::sync::lock;
use crate::run::event::{Counters, EVENT_SCHEMA, Event, RunStatus};
use crate::run::job::Job;
use crate::run::report::{NodeOutcome, NodeReport, OutputValue, RunError, RunReport};
use crate::run::scheduler::{Run, Work};

impl Job<'_> {
    /// Runs the plan.
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
        let run = Run::new(self);
        let threads = match self.options.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        // A device without a worker would be idle.
        let threads = threads.max(self.devices.count());
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
}

impl Run<'_> {
    /// Works until there is nothing left to do, or until the run is stopped.
    fn work(&self) {
        while let Some((work, mut turn)) = self.take() {
            match work {
                Work::Deliver(index) => self.deliver(index),
                Work::Task(index) => self.run_task(index, &mut turn),
            }
        }
        self.changed.notify_all();
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
