//! The journal of earlier runs: what a call, or an op, took. The plan foretells seconds and memory from it.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use retouch_graph::event::{Event, Listener};
use retouch_graph::write::{self, Access};
use retouch_graph::{Expected, Forecast, Plan, Status, files};
use serde::{Deserialize, Serialize};

/// A longer journal is none; one that is cut as it should be is far shorter.
const MOST_BYTES: u64 = 64 << 20;
/// Lines that are kept when the journal is cut; it is when it has twice as many.
const LINES: usize = 2000;
/// Number of most recent entries of a class that are considered.
const LAST: usize = 20;

/// What a node took.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    /// What its seconds depend on, see `Task::class`.
    class: String,
    /// Calls of the U-Net.
    calls: u64,
    seconds: f64,
    /// The most memory that the process had while it ran, in bytes; 0 when the system does not say.
    peak: u64,
}

/// Notes what nodes take, beside another listener.
pub struct Journal<'a> {
    inner: &'a dyn Listener,
    file: Option<PathBuf>,
    classes: HashMap<String, String>,
    lines: Mutex<Vec<Line>>,
}

impl<'a> Journal<'a> {
    /// Notes the nodes of a plan in a file.
    #[must_use]
    pub fn new(inner: &'a dyn Listener, file: Option<PathBuf>, plan: &Plan) -> Self {
        let classes = plan
            .tasks()
            .map(|task| (task.name().to_owned(), task.class().to_owned()))
            .collect();
        Self {
            inner,
            file,
            classes,
            lines: Mutex::default(),
        }
    }

    /// Writes what was noted; a journal that cannot be written is done without.
    pub fn write(&self) {
        let Some(file) = &self.file else {
            return;
        };
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for line in lines.iter() {
            if let Ok(line) = serde_json::to_string(line) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        if text.is_empty() {
            return;
        }
        // A pipe in its place would keep this waiting for a reader.
        if std::fs::metadata(file).is_ok_and(|there| !there.is_file()) {
            return;
        }
        // One write of whole lines, so that several processes may write at once.
        let cache = file.parent().unwrap_or(Path::new(""));
        let written = crate::store::making_room(cache, text.len() as u64, || {
            let mut journal = write::append_private(file)?;
            if last_byte(file).is_ok_and(|last| last.is_some_and(|last| last != b'\n')) {
                // A full disk cut off the last line: it must not take the next one with it.
                journal.write_all(b"\n")?;
            }
            journal.write_all(text.as_bytes())
        });
        if written.is_ok() {
            cut(file);
        }
    }
}

/// The last byte of a file; `None`: it is empty.
fn last_byte(file: &Path) -> io::Result<Option<u8>> {
    let mut file = files::open(file)?;
    if file.metadata()?.len() == 0 {
        return Ok(None);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(Some(last[0]))
}

impl Listener for Journal<'_> {
    fn event(&self, event: &Event) {
        match event {
            Event::NodeStarted { .. } => memory::forget_peak(),
            Event::NodeFinished {
                node,
                seconds,
                counters,
            } => {
                if let Some(class) = self.classes.get(node) {
                    self.lines
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Line {
                            class: class.clone(),
                            calls: counters.get("unet_calls").copied().unwrap_or(0),
                            seconds: *seconds,
                            peak: memory::peak(),
                        });
                }
            }
            _ => {}
        }
        self.inner.event(event);
    }
}

fn cut(file: &Path) {
    let Ok(text) = files::read_text(file, MOST_BYTES) else {
        return;
    };
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > 2 * LINES {
        let kept = lines[lines.len() - LINES..].join("\n") + "\n";
        // The next run tries again.
        let _ = write::replace(file, kept.as_bytes(), Access::Private);
    }
}

/// What a task is expected to take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Seconds; `None` when the journal knows nothing like it.
    pub seconds: Option<f64>,
    /// Bytes of memory.
    pub peak: Option<u64>,
}

/// What tasks took in earlier runs, by their class.
#[derive(Debug, Default)]
struct Past(HashMap<String, Vec<Line>>);

impl Past {
    /// Reads a journal; one that is missing or cannot be read knows nothing.
    fn read(file: Option<&Path>) -> Self {
        let text = file
            .and_then(|file| files::read_text(file, MOST_BYTES).ok())
            .unwrap_or_default();
        let mut by_class: HashMap<String, Vec<Line>> = HashMap::new();
        for line in text.lines() {
            // A line that was cut off by a crash is no line.
            if let Ok(line) = serde_json::from_str::<Line>(line) {
                by_class.entry(line.class.clone()).or_default().push(line);
            }
        }
        for lines in by_class.values_mut() {
            lines.drain(..lines.len().saturating_sub(LAST));
        }
        Self(by_class)
    }

    /// The seconds that tasks are expected to take: the median of the last runs.
    fn expected(&self) -> Expected {
        let mut expected = Expected::new();
        for (class, lines) in &self.0 {
            let calls = lines.iter().filter(|line| line.calls > 0);
            let calls = calls.map(|line| line.seconds / line.calls as f64);
            if let Some(seconds) = median(calls.collect()) {
                expected.call(class.as_str(), seconds);
            }
            if let Some(seconds) = median(lines.iter().map(|line| line.seconds).collect()) {
                expected.run(class.as_str(), seconds);
            }
        }
        expected
    }

    /// The most memory that a task of that class took, in bytes.
    fn peak(&self, class: &str) -> Option<u64> {
        let peaks = self.0.get(class)?.iter().map(|line| line.peak);
        peaks.max().filter(|&peak| peak > 0)
    }
}

/// The seconds that tasks are expected to take, from a journal.
#[must_use]
pub fn expected(file: Option<&Path>) -> Expected {
    Past::read(file).expected()
}

/// What each task of a plan is expected to take.
#[must_use]
pub fn costs(file: Option<&Path>, plan: &Plan, forecast: &Forecast) -> Vec<Cost> {
    let past = Past::read(file);
    let expected = past.expected();
    plan.tasks()
        .enumerate()
        .map(|(index, task)| {
            if !matches!(forecast.statuses[index], Status::Run(_)) {
                return Cost {
                    seconds: Some(0.0),
                    peak: Some(0),
                };
            }
            if !past.0.contains_key(task.class()) {
                return Cost::default();
            }
            Cost {
                seconds: expected.seconds(task, forecast.calls[index]),
                peak: past.peak(task.class()),
            }
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The memory of this process.
mod memory {
    /// The most that it had since [`forget_peak`]; 0 when the system does not say.
    #[cfg(target_os = "linux")]
    pub(super) fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse::<u64>().ok())
            .map_or(0, |kib| kib * 1024)
    }

    /// Begins to count anew.
    #[cfg(target_os = "linux")]
    pub(super) fn forget_peak() {
        // A system that does not let it be reset gives the peak of the whole run: too much, never too little.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn peak() -> u64 {
        0
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn forget_peak() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_is_seen_by_the_last_byte() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.jsonl");
        for (text, last) in [("", None), ("{}\n", Some(b'\n')), ("{}\n{\"no", Some(b'o'))] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(last_byte(&file).unwrap(), last, "{text:?}");
        }
        assert!(last_byte(&folder.path().join("none")).is_err());
    }

    #[test]
    fn the_median_of_the_last_runs_is_expected() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.jsonl");
        let mut text = String::new();
        for (calls, seconds) in [(0, 99.0); 30].into_iter().chain([(0, 2.0); 20]) {
            text += &format!(
                "{{\"class\":\"resize\",\"calls\":{calls},\"seconds\":{seconds},\"peak\":7}}\n"
            );
        }
        for seconds in [10.0, 40.0, 30.0] {
            text +=
                &format!("{{\"class\":\"sd15\",\"calls\":10,\"seconds\":{seconds},\"peak\":0}}\n");
        }
        text += "{\"class\":\"cut o";
        std::fs::write(&file, text).unwrap();
        let past = Past::read(Some(&file));
        let mut expected = Expected::new();
        expected.run("resize", 2.0);
        expected.call("sd15", 3.0);
        expected.run("sd15", 30.0);
        assert_eq!(past.expected(), expected);
        assert_eq!((past.peak("resize"), past.peak("sd15")), (Some(7), None));
        assert_eq!(Past::read(None).expected(), Expected::new());
    }
}
