//! What a running node sees of the engine.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use petgraph::graph::NodeIndex;
use petgraph::visit::{Dfs, EdgeFiltered, EdgeRef, Reversed};

use crate::base::error::NodeError;
use crate::base::key::Key;
use crate::base::problem::Code;
use crate::base::sync::lock;
use crate::cache::Outputs;
use crate::cache::changed;
use crate::cache::in_flight::InFlightLock;
use crate::files::Files;
use crate::op::chain::{Chain, Item, Note};
use crate::op::node::Host;
use crate::plan::guard::Verdict;
use crate::plan::steps::ItemsToKeep;
use crate::plan::task::Task;
use crate::run::event::{Counters, Event};
use crate::run::job::Job;
use crate::run::scheduler::Run;
use crate::value::payload::Value;
use crate::value::preview::Quality;

/// What a running node sees of the engine.
pub(super) struct NodeHost<'a> {
    run: &'a Run<'a>,
    pub(super) index: usize,
    pub(super) task: &'a Task,
    /// The output ports that something needs.
    pub(super) ports: &'a BTreeSet<&'static str>,
    to_keep: Arc<ItemsToKeep>,
    /// The number of the compute device that it runs on.
    pub(super) device: usize,
    counters: Mutex<Counters>,
    /// That a file behind the task changed: the node ends at its next step.
    changed: Mutex<Option<NodeError>>,
}

impl<'a> NodeHost<'a> {
    pub(super) fn new(
        run: &'a Run<'a>,
        index: usize,
        task: &'a Task,
        ports: &'a BTreeSet<&'static str>,
        to_keep: Arc<ItemsToKeep>,
        device: usize,
    ) -> Self {
        Self {
            run,
            index,
            task,
            ports,
            to_keep,
            device,
            counters: Mutex::default(),
            changed: Mutex::default(),
        }
    }

    /// What the node counted.
    pub(super) fn counters(&self) -> Counters {
        lock(&self.counters).clone()
    }

    fn job(&self) -> &'a Job<'a> {
        self.run.job
    }

    /// Whether what the node makes must not be kept.
    pub(super) fn is_tainted(&self) -> bool {
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
                        "`{}` was written while the run was using it. Its content is again what the plan was made with, but may have been different in between: nothing computed from it in this run is kept. To be sure of the result, run it again",
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
        let graph = self.job().plan.graph();
        let reads = EdgeFiltered::from_fn(graph, |edge| {
            let task = &graph[edge.source()];
            task.is_lazy(edge.weight().from) && task.guard.has(path)
        });
        let upstream = Reversed(&reads);
        let mut state = lock(&self.run.state);
        let mut walk = Dfs::new(upstream, NodeIndex::new(self.index));
        while let Some(task) = walk.next(upstream) {
            state.tainted[task.index()] = true;
        }
    }

    /// The result of the node once the files behind it are compared with what they were.
    pub(super) fn compared<T>(
        &self,
        result: Result<T, (Code, NodeError)>,
    ) -> Result<T, (Code, NodeError)> {
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
            node: self.task.name().to_owned(),
            done,
            total,
        });
    }

    fn warn(&self, message: &str) {
        self.job().listener.event(&Event::NodeWarning {
            node: self.task.name().to_owned(),
            message: message.to_owned(),
        });
    }

    fn say(&self, message: &str) {
        self.job().listener.event(&Event::NodeNote {
            node: self.task.name().to_owned(),
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

    fn any_environment(&self) -> Option<&(dyn Any + Send + Sync)> {
        let environment = self.job().environments.get(self.device)?;
        Some(&**environment)
    }

    fn chain(&self) -> Option<&Chain> {
        self.task.chain().map(|chain| &**chain)
    }

    fn any_note(&self) -> Option<&Note> {
        self.task.note()
    }

    fn wants(&self, port: &str) -> bool {
        self.ports.contains(port)
    }

    fn wanted(&self, call: &Key) -> &[Item] {
        self.to_keep.get(call).map_or(&[], Vec::as_slice)
    }

    fn kept_outputs(&self, key: &Key) -> Option<Outputs> {
        let kept = self.job().cache.get_on(key, self.device)?;
        if self.job().environments.len() < 2 {
            return Some(kept);
        }
        // What cannot be moved is made again.
        changed(&kept, |value| self.job().moved(value.clone(), self.device)).ok()
    }

    fn keep_outputs(&self, key: Key, outputs: Outputs, seconds: f64) {
        if self.may_keep() {
            self.job().cache.put(key, &outputs, seconds);
            self.job().cache_warnings();
        }
    }

    fn lock_in_flight(&self, key: Key) -> Option<InFlightLock<'_>> {
        let flight = self.job().flight;
        flight.lock(key, || self.is_cancelled())
    }

    fn resumed(&self, step: usize, of: usize) {
        self.job().listener.event(&Event::NodeResumed {
            node: self.task.name().to_owned(),
            step,
            of,
        });
    }

    fn wants_preview(&self, done: usize, of: usize) -> Option<Quality> {
        let previewer = self.job().options.previewer.as_ref()?;
        // A panic of a previewer, as one of a listener, does not stop the run.
        catch_unwind(AssertUnwindSafe(|| {
            previewer.wants(self.task.name(), done, of)
        }))
        .unwrap_or(None)
    }

    fn show_preview(&self, done: usize, of: usize, picture: Result<Value, NodeError>) {
        let Some(previewer) = &self.job().options.previewer else {
            return;
        };
        let shown = picture.and_then(|picture| {
            catch_unwind(AssertUnwindSafe(|| {
                previewer.show(self.task.name(), done, of, &picture)
            }))
            .unwrap_or_else(|panic| Err(NodeError::panicked(&*panic)))
        });
        match shown {
            Ok(()) => self.job().listener.event(&Event::PreviewShown {
                node: self.task.name().to_owned(),
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
