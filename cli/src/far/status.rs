//! `retouch sweep status`, `logs`, `cancel` and `resume`: all that they know is in the store.

use std::collections::{BTreeMap, BTreeSet};

use retouch_cluster::claims::State;
use retouch_cluster::{Listed, slurm};
use retouch_graph::Cancel;
use retouch_graph::event::EVENT_SCHEMA;

use super::launch::{self, Launch};
use super::needed;
use super::run::{Control, JobEntry, Run};
use super::submit;
use crate::args::{LogsArgs, ResumeArgs, RunArg, Where};
use crate::commands::run as running;
use crate::lines::Line;
use crate::output::{say, tell};
use crate::store::Store;
use crate::{Exit, Failure, duration};

/// Finds the run that the arguments name.
fn find(of: &RunArg) -> Result<Run, Failure> {
    Run::find(
        super::store(&of.store, &super::out(of.out.as_deref()))?,
        &of.run,
    )
}

/// How far a run is, in cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Far {
    /// Those that came out.
    pub done: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those that a worker has.
    pub claimed: usize,
    /// Those that nobody has.
    pub open: usize,
}

/// Counts cells by the states of their chunks; a cell that is tried again is in a later chunk. `late`: whether a claim taken at that
/// time is over.
fn far(chunks: &[Vec<usize>], states: &[State], late: impl Fn(u64) -> bool) -> Far {
    let mut latest: BTreeMap<usize, usize> = BTreeMap::new();
    for (chunk, cells) in chunks.iter().enumerate() {
        latest.extend(cells.iter().map(|cell| (*cell, chunk)));
    }
    let mut far = Far::default();
    for (chunk, (cells, state)) in chunks.iter().zip(states).enumerate() {
        let here = cells
            .iter()
            .filter(|cell| latest.get(cell) == Some(&chunk))
            .count();
        match state {
            State::Done(failed) => {
                // Those that are tried again are the ones that failed.
                let failed = failed.saturating_sub(cells.len() - here).min(here);
                far.failed += failed;
                far.done += here - failed;
            }
            State::Held(_, since) if !late(*since) => far.claimed += here,
            _ => far.open += here,
        }
    }
    far
}

/// The seconds that are left at the pace so far: from the first claim to the last chunk that was done.
fn left(listed: &[Listed], far: Far) -> Option<f64> {
    let first = listed.iter().map(|one| one.modified).min()?;
    let done = listed.iter().filter(|one| one.name.contains("/done."));
    let last = done.map(|one| one.modified).max()?;
    let seconds = last.saturating_sub(first) as f64 / 1000.0;
    let (made, open) = (far.done + far.failed, far.claimed + far.open);
    (made > 0 && seconds > 0.0).then(|| seconds / made as f64 * open as f64)
}

/// Tells how far a run is.
///
/// # Errors
/// When there is no such run, or the store does not answer.
pub fn status(args: &RunArg) -> Result<Exit, Failure> {
    let run = find(args)?;
    let listed = run.list("state")?;
    let states = retouch_cluster::claims::states(&listed, run.chunks.len());
    // The store's time is at least that of what was written last.
    let now = listed.iter().map(|one| one.modified).max().unwrap_or(0);
    let far = far(&run.chunks, &states, |since| {
        now > since.saturating_add(run.about.term)
    });
    let cancelled = run.control()? == Control::Cancelled;
    let jobs = run.jobs()?;
    let queue = match jobs.is_empty() {
        true => Ok(Vec::new()),
        false => launch::queue(&jobs),
    };
    let seconds = left(&listed, far).filter(|_| !cancelled);
    if args.json {
        let line = Line::SweepStatus {
            schema: EVENT_SCHEMA,
            run: run.about.run.clone(),
            workflow: run.about.workflow.clone(),
            cells: run.about.cells,
            done: far.done,
            failed: far.failed,
            claimed: far.claimed,
            open: far.open,
            cancelled,
            seconds,
            jobs: queue
                .iter()
                .flatten()
                .map(|task| format!("{}_{} {}", task.job, task.task, task.state))
                .collect(),
        };
        line.say()?;
        return Ok(Exit::Done);
    }
    let about = &run.about;
    say(&format!(
        "{}  {}, {} cells in {} chunks{}",
        about.run,
        about.workflow,
        about.cells,
        run.chunks.len(),
        if cancelled { "; cancelled" } else { "" }
    ))?;
    say(&format!(
        "cells    {} done, {} failed, {} claimed, {} open",
        far.done, far.failed, far.claimed, far.open
    ))?;
    say(&format!("workers  {} began", run.list("workers")?.len()))?;
    match &queue {
        Ok(tasks) if !jobs.is_empty() => say(&format!("slurm    {}", in_queue(&jobs, tasks)))?,
        Ok(_) => {}
        Err(why) => tell(&format!(
            "warning: Slurm does not say what became of the jobs: {why}"
        )),
    }
    if let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) {
        say(&format!("left     about {}", duration(seconds)))?;
    }
    Ok(Exit::Done)
}

/// `job 12: 3 running, 1 pending (Priority)`.
fn in_queue(jobs: &[JobEntry], tasks: &[slurm::Task]) -> String {
    let of = |job: &JobEntry| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for task in tasks.iter().filter(|task| task.job == job.slurm) {
            let state = task.state.to_lowercase();
            let reason = match state == "pending" && !task.reason.is_empty() {
                true => format!(" ({})", task.reason),
                false => String::new(),
            };
            *counts.entry(format!("{state}{reason}")).or_default() += slurm::count(&task.task);
        }
        let counts: Vec<String> = counts
            .iter()
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        let counts = match counts.is_empty() {
            true => "over".to_owned(),
            false => counts.join(", "),
        };
        format!("job {}: {counts}", job.slurm)
    };
    jobs.iter().map(of).collect::<Vec<_>>().join("; ")
}

/// Prints the logs of cells: one that is named, or those that failed.
///
/// # Errors
/// When there is no such run or cell, or the store does not answer.
pub fn logs(args: &LogsArgs) -> Result<Exit, Failure> {
    let run = find(&args.of)?;
    let cells = run.cells()?;
    let chunks: BTreeSet<usize> = match args.cell {
        Some(cell) if cell == 0 || cell > run.about.cells => {
            return Err(Failure::usage(format!(
                "there is no cell {cell}: the run has {}",
                run.about.cells
            )));
        }
        Some(cell) => {
            let of = run
                .chunks
                .iter()
                .rposition(|cells| cells.contains(&(cell - 1)));
            of.into_iter().collect()
        }
        None => {
            let failed = cells.iter().filter(|(_, (_, result))| result.failed);
            for (cell, (_, result)) in failed.clone() {
                say(&format!(
                    "cell {}: {}",
                    cell + 1,
                    result.error.as_deref().unwrap_or_default()
                ))?;
            }
            failed.map(|(_, (chunk, _))| *chunk).collect()
        }
    };
    if chunks.is_empty() {
        tell("no cell failed; `--cell N` shows the log of one");
    }
    for chunk in chunks {
        for log in run.list(&format!("logs/{chunk:06}"))? {
            let text = String::from_utf8_lossy(&needed(&run.store, &log.name)?).into_owned();
            if !args.of.json {
                let attempt = log
                    .name
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .trim_end_matches(".jsonl");
                tell(&format!("chunk {}, attempt {attempt}:", chunk + 1));
            }
            text.lines().try_for_each(crate::output::say_json)?;
        }
    }
    Ok(Exit::Done)
}

/// Stops a run: workers give back what they have, jobs that wait are taken out of the queue.
///
/// # Errors
/// When there is no such run, or the store does not answer.
pub fn cancel(args: &RunArg) -> Result<Exit, Failure> {
    let run = find(args)?;
    run.set_control(Control::Cancelled)?;
    let jobs = run.jobs()?;
    if !jobs.is_empty()
        && let Err(why) = launch::scancel(&run.about.run, &jobs)
    {
        tell(&format!(
            "warning: Slurm did not end the jobs: {why}; their workers stop by themselves"
        ));
    }
    if args.json {
        return status(args);
    }
    say(&format!(
        "{} is cancelled; `retouch sweep resume {}` goes on with it",
        run.about.run, run.about.run
    ))?;
    Ok(Exit::Done)
}

/// Goes on with a run: starts workers for what is left, with `--retry-failed` for the cells that failed too.
///
/// # Errors
/// When there is no such run, or workers cannot be started.
pub fn resume(args: &ResumeArgs) -> Result<Exit, Failure> {
    // What names a cache is read as workers will read it, before it is handed on.
    Store::of(&args.cache)?;
    let mut run = find(&args.of)?;
    let place = args.on.on.unwrap_or(run.about.on);
    launch::fits(&args.on, place)?;
    let stop = Cancel::new();
    running::interrupts(&stop)?;
    if args.retry_failed {
        let mut again: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        // A cell that is in a later chunk is being tried again already.
        let mut latest: BTreeMap<usize, usize> = BTreeMap::new();
        for (chunk, cells) in run.chunks.iter().enumerate() {
            latest.extend(cells.iter().map(|cell| (*cell, chunk)));
        }
        for (cell, (chunk, result)) in run.cells()? {
            if result.failed && latest.get(&cell) == Some(&chunk) {
                again.entry(chunk).or_default().push(cell);
            }
        }
        let cells: usize = again.values().map(Vec::len).sum();
        tell(&format!("{cells} cells that failed are tried again"));
        if cells > 0 {
            run.add(again.into_values().collect())?;
        }
    }
    run.set_control(Control::Go)?;
    let states = run.states()?;
    let open = states
        .iter()
        .filter(|state| !matches!(state, State::Done(_)))
        .count();
    let out = args
        .of
        .out
        .clone()
        .unwrap_or_else(|| run.about.asked.out.clone());
    let workers = args
        .on
        .workers
        .unwrap_or(run.about.workers)
        .min(open.max(1));
    let launch = Launch {
        on: &args.on,
        place,
        workers,
        out: &out,
        options: launch::options(&args.cache, args.telling.quiet),
        threads: args.threads,
        dry_run: false,
    };
    if open == 0 && place != Where::Local {
        tell("nothing is left to draw");
        return Ok(Exit::Done);
    }
    submit::follow(
        &run,
        &launch,
        &stop,
        args.of.json,
        args.telling.quiet,
        &args.cache,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_counted_once_by_what_became_of_them_last() {
        let chunks = vec![vec![0, 1, 2], vec![3, 4], vec![5], vec![6, 7], vec![1]];
        let states = [
            State::Done(1),
            State::Held(0, 100),
            State::Held(2, 10),
            State::Open(0),
            State::Done(0),
        ];
        let counted = far(&chunks, &states, |since| since < 50);
        assert_eq!(
            counted,
            Far {
                done: 3,
                failed: 0,
                claimed: 2,
                open: 3
            }
        );
        let again = [
            State::Done(1),
            State::Done(2),
            State::Open(1),
            State::Done(0),
            State::Done(1),
        ];
        let counted = far(&chunks, &again, |_| false);
        assert_eq!((counted.done, counted.failed, counted.open), (4, 3, 1));
    }

    #[test]
    fn what_is_left_follows_from_the_pace() {
        let at = |name: &str, modified| Listed {
            name: name.to_owned(),
            modified,
            size: 0,
        };
        let listed = [
            at("r/state/000000/000000", 1000),
            at("r/state/000000/done.0", 21_000),
        ];
        let far = Far {
            done: 10,
            open: 5,
            ..Far::default()
        };
        assert_eq!(left(&listed, far), Some(10.0));
        assert_eq!(left(&listed[..1], far), None);
        assert_eq!(left(&[], far), None);
    }
}
