//! How fetching gets on, for people and for programs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use retouch_graph::event::EVENT_SCHEMA;

use crate::lines::Line;
use crate::progress::name_bar;
use crate::store::size;
use crate::{duration, output};

/// How often a bar is moved and a line is written for programs.
const EVERY: Duration = Duration::from_millis(500);
/// How often progress is printed where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Going {
    file: String,
    total: u64,
    from: u64,
    since: Instant,
    /// When that was last printed; none yet.
    told: Option<Instant>,
    bar: Option<ProgressBar>,
}

/// Tells what is fetched: a bar on a terminal, plain lines elsewhere, JSON lines for programs.
#[derive(Debug)]
pub struct Reporter {
    json: bool,
    quiet: bool,
    going: Mutex<Option<Going>>,
}

impl Reporter {
    /// For programs with `json`, else for people; with `quiet` people hear warnings alone.
    #[must_use]
    pub fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            going: Mutex::default(),
        }
    }

    fn line(line: &Line) {
        // A reader that went away is no reason to end: the file is fetched all the same.
        let _ = line.say();
    }

    pub(super) fn warn(&self, message: &str) {
        if self.json {
            Self::line(&Line::FetchWarning {
                schema: EVENT_SCHEMA,
                message: message.to_owned(),
            });
        } else {
            output::tell(&format!("warning: {message}"));
        }
    }

    pub(super) fn start(&self, file: &str, total: u64, from: u64) {
        let bar = (!self.json && !self.quiet && output::terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let form =
                "  {prefix} [{bar:24}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            bar.set_style(
                ProgressStyle::with_template(form)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            name_bar(&bar, "", file);
            bar.set_position(from);
            bar.reset_eta();
            bar
        });
        if self.json {
            Self::line(&Line::FetchStarted {
                schema: EVENT_SCHEMA,
                file: file.to_owned(),
                total,
                done: from,
            });
        } else if bar.is_none() && !self.quiet && from > 0 {
            output::tell(&format!(
                "  {file}: resumes at {} of {}",
                size(from),
                size(total)
            ));
        }
        let now = Instant::now();
        *self.going.lock().unwrap_or_else(PoisonError::into_inner) = Some(Going {
            file: file.to_owned(),
            total,
            from,
            since: now,
            told: None,
            bar,
        });
    }

    pub(super) fn progress(&self, done: u64) {
        let mut going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(going) = going.as_mut() else {
            return;
        };
        let every = if self.json || going.bar.is_some() {
            EVERY
        } else {
            PLAIN_EVERY
        };
        // Programs hear of the first piece at once, people of what takes its time.
        let since = going.told.or((!self.json).then_some(going.since));
        if since.is_some_and(|told| told.elapsed() < every) {
            return;
        }
        going.told = Some(Instant::now());
        if self.json {
            Self::line(&Line::FetchProgress {
                file: going.file.clone(),
                done,
                total: going.total,
            });
        } else if let Some(bar) = &going.bar {
            bar.set_position(done);
        } else if !self.quiet {
            let rate = done.saturating_sub(going.from) as f64 / going.since.elapsed().as_secs_f64();
            let left = going.total.saturating_sub(done) as f64 / rate.max(1.0);
            output::tell(&format!(
                "  {}: {} of {}, {} left",
                going.file,
                size(done),
                size(going.total),
                duration(left)
            ));
        }
    }

    /// The file is over: it is there, or it is not (`done` is false), and why is reported elsewhere.
    pub(super) fn end(&self, done: bool) {
        let going = self
            .going
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(going) = going else {
            return;
        };
        if let Some(bar) = &going.bar {
            bar.finish_and_clear();
        }
        let seconds = going.since.elapsed().as_secs_f64();
        if self.json && done {
            Self::line(&Line::FetchFinished {
                file: going.file,
                total: going.total,
                seconds,
            });
        } else if !self.json && !self.quiet && done {
            output::tell(&format!(
                "  {}: fetched, {}, {}",
                going.file,
                size(going.total),
                duration(seconds)
            ));
        }
    }
}
