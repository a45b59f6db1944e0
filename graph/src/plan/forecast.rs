//! What a run of a plan would do when a cache has a part of it already.

use std::collections::BTreeSet;
use std::fmt;

use crate::base::suggest;
use crate::cache::Cache;
use crate::plan::plan::Plan;
use crate::plan::steps::{self, ItemsToKeep, Work};
use crate::plan::task::Task;

/// Whether a task will run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its outputs are there: the place (`memory`).
    Cached(&'static str),
    /// Nothing that runs needs its outputs.
    NotNeeded,
    /// It runs.
    Run(Reason),
}

/// Why a task runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No cache has outputs under its key, while all that it needs is there.
    NotCached,
    /// What it needs has to be made too: the tasks that run before it.
    Upstream(Vec<String>),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cached(place) => write!(f, "reused from {place}"),
            Self::NotNeeded => f.write_str("not needed"),
            Self::Run(Reason::NotCached) => f.write_str("runs: nothing is kept under its key"),
            Self::Run(Reason::Upstream(names)) => {
                write!(f, "runs: after {}", suggest::list(names))
            }
        }
    }
}

/// Where a chain of steps goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The number of its first step.
    pub first: usize,
    /// The first step that is made; T when all are there.
    pub at: usize,
    /// T.
    pub of: usize,
}

/// What a run would do.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// For each task: whether it runs, and why.
    pub statuses: Vec<Status>,
    /// For each task that is a chain and runs: where it goes on.
    pub resumes: Vec<Option<Resume>>,
    /// For each task: the calls of a network that it makes.
    pub calls: Vec<u64>,
    /// For each task: the output ports that something needs.
    pub(crate) ports: Vec<BTreeSet<&'static str>>,
    /// What of each call is to be kept.
    pub(crate) to_keep: ItemsToKeep,
    kept_bytes: u64,
}

impl Forecast {
    /// The calls of a network that the run makes.
    #[must_use]
    pub fn total_calls(&self) -> u64 {
        self.calls.iter().sum()
    }

    /// The bytes of what calls give besides and the run newly keeps.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// What becomes of a task, in words.
    #[must_use]
    pub fn describe(&self, task: usize) -> String {
        let Some(status) = self.statuses.get(task) else {
            return String::new();
        };
        match (status, self.resumes.get(task).copied().flatten()) {
            (Status::Run(_), Some(resume)) if resume.at == resume.of => {
                "put together from its steps, which are all there".to_owned()
            }
            (Status::Run(reason), Some(resume)) if resume.at > resume.first => format!(
                "resumes at step {} of {}{}",
                resume.at,
                resume.of,
                because(reason)
            ),
            _ => status.to_string(),
        }
    }
}

fn because(reason: &Reason) -> String {
    match reason {
        Reason::NotCached => String::new(),
        Reason::Upstream(names) => format!(", after {}", suggest::list(names)),
    }
}

/// The place that takes longer to get at, of two.
pub(crate) fn slower(a: &'static str, b: &'static str) -> &'static str {
    const SLOWEST_FIRST: [&str; 4] = ["remote", "disk", "memory", "device memory"];
    let rank = |place: &str| SLOWEST_FIRST.iter().position(|known| *known == place);
    if rank(a) <= rank(b) { a } else { b }
}

impl Plan {
    /// Which tasks will run, and why; by index.
    #[must_use]
    pub fn statuses(&self, cache: &dyn Cache) -> Vec<Status> {
        self.forecast(cache, u64::MAX).statuses
    }

    /// What a run would do: which tasks run and why, where they resume, how many calls of a network they make. `sources`
    /// is the budget in bytes of what calls give besides (see [`Item::large`](crate::op::chain::Item::large)).
    #[must_use]
    pub fn forecast(&self, cache: &dyn Cache, sources: u64) -> Forecast {
        let outputs = self.outputs.iter();
        cache.expect(
            &mut outputs.filter_map(|output| Some(self.task(output.task)?.port_key(output.port))),
        );
        let (statuses, ports) = self.decide(|_, task, ports| {
            ports
                .iter()
                .map(|port| cache.place(&task.port_key(port)))
                .reduce(|all, one| Some(slower(all?, one?)))
                .flatten()
        });
        self.forecast_of(statuses, ports, cache, sources)
    }

    fn forecast_of(
        &self,
        mut statuses: Vec<Status>,
        ports: Vec<BTreeSet<&'static str>>,
        cache: &dyn Cache,
        sources: u64,
    ) -> Forecast {
        let mut resumes = vec![None; self.len()];
        let mut calls = vec![0; self.len()];
        let mut chains = Vec::new();
        let mut places = Vec::new();
        for (index, task) in self.tasks().enumerate() {
            if !matches!(statuses[index], Status::Run(_)) {
                continue;
            }
            calls[index] = task.calls;
            if let Some(chain) = &task.chain {
                let looks = chain.looks.is_some_and(|port| ports[index].contains(port));
                chains.push((&**chain, looks));
                places.push(index);
            }
        }
        let Work {
            chains: left,
            to_keep,
            kept_bytes,
        } = steps::work(&chains, cache, sources);
        for ((index, (chain, _)), (done, count)) in places.into_iter().zip(&chains).zip(left) {
            resumes[index] = Some(Resume {
                first: chain.first,
                at: chain.first + done,
                of: chain.end(),
            });
            calls[index] += count;
        }
        for index in 0..statuses.len() {
            if !matches!(statuses[index], Status::Run(_)) {
                continue;
            }
            let before: BTreeSet<usize> = self
                .upstream(index)
                .filter(|task| matches!(statuses[*task], Status::Run(_)))
                .collect();
            if !before.is_empty() {
                let names = (before.into_iter())
                    .filter_map(|task| Some(self.task(task)?.name().to_owned()))
                    .collect();
                statuses[index] = Status::Run(Reason::Upstream(names));
            }
        }
        Forecast {
            statuses,
            resumes,
            calls,
            ports,
            to_keep,
            kept_bytes,
        }
    }

    /// Decides from the outputs backwards; `place` is asked only for what is needed, with the ports that are.
    fn decide(
        &self,
        mut place: impl FnMut(usize, &Task, &BTreeSet<&'static str>) -> Option<&'static str>,
    ) -> (Vec<Status>, Vec<BTreeSet<&'static str>>) {
        let mut statuses = vec![Status::NotNeeded; self.len()];
        let mut ports: Vec<BTreeSet<&'static str>> = vec![BTreeSet::new(); self.len()];
        for output in &self.outputs {
            ports[output.task].insert(output.port);
        }
        for index in (0..self.len()).rev() {
            if ports[index].is_empty() {
                continue;
            }
            let place = self
                .task(index)
                .and_then(|task| place(index, task, &ports[index]));
            statuses[index] = match place {
                Some(place) => Status::Cached(place),
                None => {
                    for (from, edge) in self.incoming(index) {
                        ports[from].insert(edge.from);
                    }
                    Status::Run(Reason::NotCached)
                }
            };
        }
        (statuses, ports)
    }
}
