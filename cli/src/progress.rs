//! Progress output of a run: a bar and lines on a terminal, plain lines elsewhere, JSON lines for programs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use retouch_graph::event::{Event, Listener, RunStatus};
use retouch_graph::{Engine, How, Plan, ResolvedParam, Status};

use crate::safe::{VALUE, brief};
use crate::store::{Store, size};
use crate::{duration, journal};

/// Prints every event as a JSON line on standard output.
#[derive(Debug, Default)]
pub struct JsonLines {
    /// The run's name in the journal.
    pub run: Option<String>,
}

impl Listener for JsonLines {
    fn event(&self, event: &Event) {
        if let Some(line) = crate::lines::timed(event, self.run.as_deref()) {
            let _ = crate::output::say_line(&line); // what is lost is reported at the end
        }
    }
}

/// The forecast of a run.
#[derive(Clone, Debug, Default)]
pub struct Outlook {
    /// The calls of the U-Net that are left to make, by node.
    calls: BTreeMap<String, u64>,
    /// The nodes that run, and all that there are.
    runs: (usize, usize),
    /// The seconds that all of it takes, from the journal of earlier runs; `None` when it knows too little.
    seconds: Option<f64>,
}

impl Outlook {
    /// Forecasts a run of this plan.
    #[must_use]
    pub fn of(engine: &Engine, store: &Store, plan: &Plan) -> Self {
        let forecast = engine.forecast(plan);
        let costs = journal::costs(store.file("journal.jsonl").as_deref(), plan, &forecast);
        let calls = plan.tasks().zip(&forecast.calls);
        let runs = (forecast.statuses.iter()).filter(|status| matches!(status, Status::Run(_)));
        Self {
            calls: calls
                .filter(|(_, calls)| **calls > 0)
                .map(|(task, calls)| (task.name().to_owned(), *calls))
                .collect(),
            runs: (runs.count(), plan.len()),
            seconds: costs.iter().map(|cost| cost.seconds).sum(),
        }
    }

    /// `, about 12 s`, when it takes long enough to be worth a word.
    fn about(&self) -> String {
        match self.seconds {
            Some(seconds) if seconds >= 0.5 => format!(", about {}", duration(seconds)),
            _ => String::new(),
        }
    }

    /// The line with which a long node begins where no bar shows it; `None` for the others.
    fn begins(&self, node: &str) -> Option<String> {
        let calls = self.calls.get(node)?;
        Some(format!("{node}: begins, {calls} U-Net calls"))
    }
}

/// A node that runs.
#[derive(Debug)]
struct Running {
    /// What its lines begin with: its name, maybe with its number.
    prefix: String,
    since: Instant,
    last_line: Instant,
}

impl Running {
    fn new(prefix: String) -> Self {
        let now = Instant::now();
        Self {
            prefix,
            since: now,
            last_line: now,
        }
    }
}

/// Longest name on a progress bar, in characters; longer ones are cut.
const LONGEST_NAME: usize = 60;

/// Names what a bar is about.
#[allow(clippy::disallowed_methods)] // it is the one place that may
pub fn name_bar(bar: &ProgressBar, before: &str, name: &str) {
    bar.set_prefix(format!("{before}{}", brief(name, LONGEST_NAME)));
}

/// How often a node's progress becomes a line where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Standard error: a bar that moves below the lines on a terminal, lines alone elsewhere.
#[derive(Debug)]
struct Screen(Option<ProgressBar>);

impl Screen {
    fn new(quiet: bool) -> Self {
        Self((!quiet && crate::output::terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style(false));
            bar
        }))
    }

    fn line(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| crate::output::tell(text)),
            None => crate::output::tell(text),
        }
    }

    /// Shows that a node begins.
    fn begins(&self, running: &Running) {
        if let Some(bar) = &self.0 {
            bar.set_style(style(false));
            name_bar(bar, "", &running.prefix);
            bar.enable_steady_tick(Duration::from_millis(120));
        }
    }

    /// Shows how far a node is; gives the line to print instead where there is no bar, every so often.
    fn goes_on(&self, running: &mut Running, done: usize, total: usize) -> Option<String> {
        if let Some(bar) = &self.0 {
            if done == 0 || bar.length() != Some(total as u64) {
                bar.reset();
                bar.set_style(style(true));
                bar.set_length(total as u64);
            }
            name_bar(bar, "", &running.prefix);
            bar.set_position(done as u64);
            return None;
        }
        if done == 0 || done >= total || running.last_line.elapsed() < PLAIN_EVERY {
            return None;
        }
        running.last_line = Instant::now();
        let rate = done as f64 / running.since.elapsed().as_secs_f64().max(1e-3);
        let left = (total - done) as f64 / rate.max(1e-9);
        Some(format!(
            "{}: step {done} of {total}, {rate:.1}/s, {} left",
            running.prefix,
            duration(left)
        ))
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[derive(Debug, Default)]
struct LinesState {
    resumed: BTreeMap<String, (usize, usize)>,
    running: BTreeMap<String, Running>,
}

/// Tells people one line a node: reused, resumed at k, ran.
#[derive(Debug)]
pub struct Lines {
    screen: Screen,
    outlook: Outlook,
    state: Mutex<LinesState>,
}

impl Lines {
    /// Tells of a run of which this is foretold.
    #[must_use]
    pub fn new(outlook: Outlook) -> Self {
        Self {
            screen: Screen::new(false),
            outlook,
            state: Mutex::default(),
        }
    }
}

impl Listener for Lines {
    fn event(&self, event: &Event) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::RunStarted {
                workflow, params, ..
            } => {
                let drawn: String = (params.iter().filter(|param| param.from == How::Drawn))
                    .map(|param| format!("; {}", shown(param)))
                    .collect();
                let (runs, nodes) = self.outlook.runs;
                if runs > 0 {
                    self.screen.line(&format!(
                        "{workflow}: {runs} of {nodes} nodes run{}{drawn}",
                        self.outlook.about()
                    ));
                }
            }
            Event::NodeReused { node, from, .. } if *from != "not needed" => {
                self.screen.line(&format!("  {node}: reused ({from})"));
            }
            Event::NodeStarted { node, .. } => {
                let running = Running::new(format!("  {node}"));
                self.screen.begins(&running);
                if self.screen.0.is_none()
                    && let Some(text) = self.outlook.begins(node)
                {
                    self.screen.line(&format!("  {text}"));
                }
                state.running.insert(node.clone(), running);
            }
            Event::NodeProgress { node, done, total } => {
                if let Some(running) = state.running.get_mut(node)
                    && let Some(text) = self.screen.goes_on(running, *done, *total)
                {
                    self.screen.line(&text);
                }
            }
            Event::NodeResumed { node, step, of } => {
                state.resumed.insert(node.clone(), (*step, *of));
            }
            Event::NodeFinished { node, seconds, .. } => {
                state.running.remove(node);
                let how = state.resumed.remove(node).map_or_else(
                    || "ran".to_owned(),
                    |(step, of)| format!("resumed at {step} of {of}"),
                );
                self.screen
                    .line(&format!("  {node}: {how}, {}", duration(*seconds)));
            }
            Event::NodeFailed {
                node,
                message,
                help,
                ..
            } => {
                state.running.remove(node);
                self.screen.line(&format!("error: {node}: {message}"));
                if let Some(help) = help {
                    self.screen.line(&format!("  help: {help}"));
                }
            }
            Event::NodeWarning { node, message } => {
                self.screen.line(&format!("warning: {node}: {message}"));
            }
            Event::CacheWarning { message } => self.screen.line(&format!("warning: {message}")),
            Event::RunFinished {
                status,
                seconds,
                counters,
                ..
            } => {
                self.screen.clear();
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

/// Number of cache warnings printed one by one; further ones are counted.
const MOST_WARNINGS: usize = 5;

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<String, Running>,
    reused: usize,
    cache_warnings: usize,
    /// How many more cells of a sweep gave the same warning, by node and message.
    repeated: BTreeMap<(String, String), usize>,
    /// The node that the preview shows.
    previewed: Option<String>,
}

/// Tells people, on standard error.
#[derive(Debug)]
pub struct Progress {
    screen: Screen,
    quiet: bool,
    outlook: Outlook,
    state: Mutex<State>,
}

impl Progress {
    /// A bar on a terminal, plain lines elsewhere; with `quiet` warnings and errors alone.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self {
            screen: Screen::new(quiet),
            quiet,
            outlook: Outlook::default(),
            state: Mutex::default(),
        }
    }

    /// Tells what is foretold of the run, too.
    #[must_use]
    pub fn with(self, outlook: Outlook) -> Self {
        Self { outlook, ..self }
    }

    fn line(&self, text: &str) {
        self.screen.line(text);
    }

    fn told(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }
}

/// The name of a node of a cell without what tells the cell from others: `draw` of `draw [seed=1]`.
fn in_cell(node: &str) -> Option<&str> {
    Some(node.split_once(" [")?.0)
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

impl Listener for Progress {
    // Long: one match over all events, each a line or two.
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
                    .filter(|param| !param.name.contains('/') || param.from == How::Drawn)
                    .map(shown)
                    .collect();
                let values = match values.is_empty() {
                    true => String::new(),
                    false => format!(" ({})", values.join(", ")),
                };
                self.told(&format!(
                    "{}: {nodes} nodes{values}{}",
                    brief(workflow, VALUE),
                    self.outlook.about()
                ));
            }
            Event::NodeReused { node, from, .. } => {
                state.reused += 1;
                self.told(&format!("  {node}: reused ({from})"));
            }
            Event::NodeStarted {
                node, index, of, ..
            } => {
                let running = Running::new(format!("  [{index}/{of}] {node}"));
                self.screen.begins(&running);
                if self.screen.0.is_none()
                    && let Some(text) = self.outlook.begins(node)
                {
                    self.told(&format!("  [{index}/{of}] {text}"));
                }
                state.running.insert(node.clone(), running);
            }
            Event::NodeProgress { node, done, total } => {
                if let Some(running) = state.running.get_mut(node)
                    && let Some(text) = self.screen.goes_on(running, *done, *total)
                {
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
                    format!("  {node}: resumes at step {step} of {of}")
                };
                self.told(&text);
            }
            Event::CacheWarning { message } => {
                state.cache_warnings += 1;
                if state.cache_warnings <= MOST_WARNINGS {
                    self.line(&format!("warning: {message}"));
                }
            }
            Event::NodeWarning { node, message } => match in_cell(node) {
                // What a param of all cells brings about is said once.
                Some(own) => match state.repeated.entry((own.to_owned(), message.clone())) {
                    Entry::Occupied(mut more) => *more.get_mut() += 1,
                    Entry::Vacant(first) => {
                        first.insert(0);
                        self.line(&format!("warning: {node}: {message}"));
                    }
                },
                None => self.line(&format!("warning: {node}: {message}")),
            },
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
                    "{}: {}{calls}",
                    running.prefix,
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
                self.screen.clear();
                for ((node, message), more) in std::mem::take(&mut state.repeated) {
                    let cells = match more {
                        0 => continue,
                        1 => "1 more cell".to_owned(),
                        more => format!("{more} more cells"),
                    };
                    self.line(&format!("warning: {node}, in {cells} too: {message}"));
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

/// A param as people write it, `seed=7`; with a word where the program chose the value.
fn shown(param: &ResolvedParam) -> String {
    let drawn = match param.from {
        How::Drawn => " (drawn)",
        _ => "",
    };
    format!(
        "{}={}{drawn}",
        param.name,
        brief(&plain(&param.value), VALUE)
    )
}

/// A param's value as people write it.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Tells people how the writing of a large file gets on: a bar on a terminal, a line every so often elsewhere.
#[derive(Debug)]
pub struct Bytes {
    what: String,
    quiet: bool,
    bar: Option<ProgressBar>,
    /// The bytes that are done, and when they were last printed.
    state: Mutex<(u64, Option<Instant>)>,
    /// When the first were done.
    since: OnceLock<Instant>,
}

impl Bytes {
    /// Begins; `what` is being done, in a word or two: `packing`. With `quiet` nothing is printed.
    #[must_use]
    pub fn new(what: impl Into<String>, quiet: bool) -> Self {
        let bar = (!quiet && crate::output::terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            let form =
                "  {prefix} [{bar:24}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            let form = ProgressStyle::with_template(form);
            bar.set_style(
                form.unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            bar
        });
        let what = what.into();
        if let Some(bar) = &bar {
            name_bar(bar, "", &what);
        }
        Self {
            what,
            quiet,
            bar,
            state: Mutex::default(),
            since: OnceLock::new(),
        }
    }

    /// Adds `bytes` to what is done, out of `total`.
    pub fn add(&self, bytes: u64, total: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += bytes;
        let done = state.0;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            if done >= total {
                bar.finish_and_clear();
            }
            return;
        }
        let since = *self.since.get_or_init(Instant::now);
        if !self.quiet && state.1.unwrap_or(since).elapsed() >= PLAIN_EVERY {
            state.1 = Some(Instant::now());
            let rate = done as f64 / since.elapsed().as_secs_f64().max(1e-3);
            let left = total.saturating_sub(done) as f64 / rate.max(1.0);
            crate::output::tell(&format!(
                "  {}: {} of {}, {} left",
                self.what,
                size(done),
                size(total),
                duration(left)
            ));
        }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
