//! What a run tells people: a bar and lines on a terminal, plain lines elsewhere, JSON lines for programs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use retouch_graph::event::{Event, Listener, RunStatus};

use crate::safe::{VALUE, brief};

/// Prints every event as a JSON line on standard output.
#[derive(Debug, Default)]
pub struct JsonLines;

impl Listener for JsonLines {
    fn event(&self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            let _ = crate::output::say_line(&line); // what is lost is told at the end
        }
    }
}

/// Tells people one line a node: reused, resumed at k, ran.
#[derive(Debug, Default)]
pub struct Lines {
    resumed: Mutex<BTreeMap<String, (usize, usize)>>,
}

impl Listener for Lines {
    fn event(&self, event: &Event) {
        let mut resumed = self.resumed.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::NodeReused { node, from, .. } if *from != "not needed" => {
                crate::output::tell(&format!("  {node}: reused ({from})"));
            }
            Event::NodeResumed { node, step, of } => {
                resumed.insert(node.clone(), (*step, *of));
            }
            Event::NodeFinished { node, seconds, .. } => {
                let how = resumed.remove(node).map_or_else(
                    || "ran".to_owned(),
                    |(step, of)| format!("resumed at {step} of {of}"),
                );
                crate::output::tell(&format!("  {node}: {how}, {}", duration(*seconds)));
            }
            Event::NodeFailed {
                node,
                message,
                help,
                ..
            } => {
                crate::output::tell(&format!("error: {node}: {message}"));
                if let Some(help) = help {
                    crate::output::tell(&format!("  help: {help}"));
                }
            }
            Event::NodeWarning { node, message } => {
                crate::output::tell(&format!("warning: {node}: {message}"))
            }
            Event::CacheWarning { message } => crate::output::tell(&format!("warning: {message}")),
            Event::RunFinished {
                status,
                seconds,
                counters,
                ..
            } => {
                let calls = counters.get("unet_calls").copied().unwrap_or(0);
                let how = match status {
                    RunStatus::Ok => "done",
                    RunStatus::Failed => "failed",
                    RunStatus::Cancelled => "stopped",
                };
                crate::output::tell(&format!(
                    "{how} in {}, U-Net calls: {calls}",
                    duration(*seconds)
                ));
            }
            _ => {}
        }
    }
}

/// So many warnings of the cache are told; of more than that the number.
const MOST_WARNINGS: usize = 5;

/// How often a node's progress becomes a line where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Running {
    index: usize,
    of: usize,
    since: Instant,
    last_line: Instant,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<String, Running>,
    reused: usize,
    cache_warnings: usize,
    /// The node that the preview shows.
    previewed: Option<String>,
}

/// Tells people, on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    state: Mutex<State>,
}

impl Progress {
    /// A bar on a terminal, plain lines elsewhere; with `quiet` warnings and errors alone.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && crate::output::terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style(false));
            bar
        });
        Self {
            bar,
            quiet,
            state: Mutex::default(),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| crate::output::tell(text)),
            None => crate::output::tell(text),
        }
    }

    fn told(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }
}

/// The bar's form: with a count of steps, or while a node says nothing of its own.
fn style(steps: bool) -> ProgressStyle {
    let template = if steps {
        "{prefix} [{bar:24}] step {pos} of {len}, {per_sec}, {eta} left"
    } else {
        "{prefix} {spinner} {elapsed}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// `0.8 s`, `1 min 20 s`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if seconds < 59.5 {
        format!("{seconds:.0} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {} s", whole / 60, whole % 60)
    }
}

impl Listener for Progress {
    fn event(&self, event: &Event) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::RunStarted {
                workflow,
                nodes,
                params,
                ..
            } => {
                let values: Vec<String> = params
                    .iter()
                    .filter(|param| !param.name.contains('/'))
                    .map(|param| format!("{}={}", param.name, brief(&plain(&param.value), VALUE)))
                    .collect();
                self.told(&format!(
                    "{}: {nodes} nodes ({})",
                    brief(workflow, VALUE),
                    values.join(", ")
                ));
            }
            Event::NodeReused { node, from, .. } => {
                state.reused += 1;
                self.told(&format!("  {node}: reused ({from})"));
            }
            Event::NodeStarted {
                node, index, of, ..
            } => {
                let now = Instant::now();
                let running = Running {
                    index: *index,
                    of: *of,
                    since: now,
                    last_line: now,
                };
                if let Some(bar) = &self.bar {
                    bar.set_style(style(false));
                    crate::output::name_bar(bar, &format!("  [{index}/{of}] "), node);
                    bar.enable_steady_tick(Duration::from_millis(120));
                }
                state.running.insert(node.clone(), running);
            }
            Event::NodeProgress { node, done, total } => {
                let Some(running) = state.running.get_mut(node) else {
                    return;
                };
                if let Some(bar) = &self.bar {
                    if *done == 0 || bar.length() != Some(*total as u64) {
                        bar.reset();
                        bar.set_style(style(true));
                        bar.set_length(*total as u64);
                    }
                    let place = format!("  [{}/{}] ", running.index, running.of);
                    crate::output::name_bar(bar, &place, node);
                    bar.set_position(*done as u64);
                } else if *done > 0 && *done < *total && running.last_line.elapsed() >= PLAIN_EVERY
                {
                    running.last_line = Instant::now();
                    let rate = *done as f64 / running.since.elapsed().as_secs_f64().max(1e-3);
                    let left = (*total - *done) as f64 / rate.max(1e-9);
                    let text = format!(
                        "  [{}/{}] {node}: step {done} of {total}, {rate:.1}/s, {} left",
                        running.index,
                        running.of,
                        duration(left)
                    );
                    self.told(&text);
                }
            }
            Event::PreviewShown { node, .. } if state.previewed.as_ref() != Some(node) => {
                self.told(&format!("  {node}: shown in the preview"));
                state.previewed = Some(node.clone());
            }
            Event::NodeResumed { node, step, of } => {
                let text = if step == of {
                    format!("  {node}: all {of} steps are there")
                } else {
                    format!("  {node}: goes on at step {step} of {of}")
                };
                self.told(&text);
            }
            Event::CacheWarning { message } => {
                state.cache_warnings += 1;
                if state.cache_warnings <= MOST_WARNINGS {
                    self.line(&format!("warning: {message}"));
                }
            }
            Event::NodeWarning { node, message } => {
                self.line(&format!("warning: {node}: {message}"));
            }
            Event::NodeNote { node, message } => self.told(&format!("  {node}: {message}")),
            Event::NodeFinished {
                node,
                seconds,
                counters,
            } => {
                let Some(running) = state.running.remove(node) else {
                    return;
                };
                let calls = counters
                    .get("unet_calls")
                    .map_or_else(String::new, |calls| format!(", {calls} U-Net calls"));
                self.told(&format!(
                    "  [{}/{}] {node}: {}{calls}",
                    running.index,
                    running.of,
                    duration(*seconds)
                ));
            }
            Event::NodeFailed {
                node,
                message,
                help,
                ..
            } => {
                state.running.remove(node);
                let help = help
                    .as_ref()
                    .map_or_else(String::new, |help| format!("\n  help: {help}"));
                self.line(&format!("error: {node}: {message}{help}"));
            }
            Event::RunFinished {
                seconds,
                counters,
                ran,
                reused,
                ..
            } => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
                let more = state.cache_warnings.saturating_sub(MOST_WARNINGS);
                if more > 0 {
                    self.line(&format!(
                        "warning: {more} more entries of the disk cache were found damaged; `retouch cache verify` removes all that are"
                    ));
                }
                self.told(&format!(
                    "{ran} nodes ran, {reused} reused, {}",
                    duration(*seconds)
                ));
                self.told(&format!(
                    "U-Net calls: {}",
                    counters.get("unet_calls").copied().unwrap_or(0)
                ));
            }
            _ => {}
        }
    }
}

/// A param's value as people write it.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_are_written_for_people() {
        assert_eq!(duration(0.84), "0.8 s");
        assert_eq!(duration(12.4), "12 s");
        assert_eq!(duration(80.2), "1 min 20 s");
    }
}
