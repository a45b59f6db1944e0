//! Which of several tasks that are ready runs first: the one with the longest remaining path.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::plan::forecast::{Forecast, Status};
use crate::plan::plan::Plan;
use crate::plan::task::Task;

/// Seconds that a call of a network is taken to last where no earlier run says more.
const CALL_SECONDS: f64 = 1.0;

/// The seconds that tasks took in earlier runs, by their [class](Task::class).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    calls: HashMap<String, f64>,
    runs: HashMap<String, f64>,
}

impl Expected {
    /// Nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a call of a network lasts in a chain of that class.
    pub fn call(&mut self, class: impl Into<String>, seconds: f64) {
        self.calls.insert(class.into(), seconds);
    }

    /// Sets how long a task of that class that is not a chain runs.
    pub fn run(&mut self, class: impl Into<String>, seconds: f64) {
        self.runs.insert(class.into(), seconds);
    }

    /// The seconds that a task with `calls` calls takes; `None` where no task of its class ran before.
    #[must_use]
    pub fn seconds(&self, task: &Task, calls: u64) -> Option<f64> {
        if task.chain().is_none() {
            return self.runs.get(task.class()).copied();
        }
        match calls {
            0 => Some(0.0),
            calls => Some(self.calls.get(task.class())? * calls as f64),
        }
    }
}

/// The place of a task among those that are ready; the least runs first.
///
/// In a sweep the earliest cell comes first, so that its pictures are there before the next one is begun. Within a cell,
/// or a workflow, it is the task with the longest remaining path: its own expected seconds and those of the longest path
/// of tasks that wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Priority {
    cell: usize,
    microseconds: Reverse<u64>,
}

/// The priority of each task of a plan.
pub(crate) fn priorities(plan: &Plan, forecast: &Forecast, expected: &Expected) -> Vec<Priority> {
    let costs: Vec<f64> = (plan.tasks().zip(&forecast.statuses).zip(&forecast.calls))
        .map(|((task, status), &calls)| match status {
            Status::Run(_) => (expected.seconds(task, calls))
                .unwrap_or(calls as f64 * CALL_SECONDS)
                .max(0.0),
            _ => 0.0,
        })
        .collect();
    let remaining = remaining(plan, &costs);
    (plan.tasks().zip(remaining))
        .map(|(task, seconds)| Priority {
            // The contact sheet is of no cell.
            cell: task.cells().first().copied().unwrap_or(usize::MAX),
            microseconds: Reverse((seconds * 1e6) as u64),
        })
        .collect()
}

/// For each task: its cost and those of the tasks downstream of it, along the path where they are most.
fn remaining(plan: &Plan, costs: &[f64]) -> Vec<f64> {
    let mut remaining = costs.to_vec();
    // Tasks are in topological order.
    for index in (0..plan.len()).rev() {
        let longest = (plan.downstream(index))
            .map(|after| remaining[after])
            .fold(0.0, f64::max);
        remaining[index] += longest;
    }
    remaining
}
