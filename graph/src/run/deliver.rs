//! Outputs of a run: saved as soon as they are ready, or fetched for the report.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::base::error::NodeError;
use crate::base::problem::Code;
use crate::base::sync::lock;
use crate::run::event::Event;
use crate::run::node_run::Found;
use crate::run::report::{RunError, failure};
use crate::run::save::SaveError;
use crate::run::scheduler::{Phase, Run};
use crate::value::payload::Value;

impl Run<'_> {
    /// Saves an output, or fetches what the report lists without saving it.
    pub(super) fn deliver(&self, index: usize) {
        let output = &self.job.plan.outputs()[index];
        let found = catch_unwind(AssertUnwindSafe(|| self.find(output.task, output.port, 0)));
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
                } else if state.phases[output.task] != Phase::Abandoned {
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
            let released = unused.then(|| state.values[output.task].take());
            drop(state);
            drop(released);
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
}
