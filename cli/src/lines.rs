//! The JSON lines that the program prints besides the engine's events, and the JSON Schema of all of them.

use std::path::PathBuf;
use std::time::SystemTime;

use indexmap::IndexMap;
use retouch_diffusion::checkpoint::inspect::Report;
use retouch_graph::event::{EVENT_SCHEMA, Event};
use retouch_graph::problem::{Problem, Severity};
use retouch_graph::{Code, Key, Sweep};
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::output::say_line;
use crate::{Failure, clock};

/// A line that is no event of the engine. As JSON: `{"event": "fault", ...}`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line {
    /// A sweep begins.
    SweepStarted {
        /// The version of the events' form.
        schema: u32,
        /// The workflow's name.
        workflow: String,
        /// The params that vary, in the order of the file.
        varying: Vec<String>,
        /// The cells, the first param changing slowest.
        cells: Vec<CellLine>,
    },
    /// What a sweep would do (`--dry-run`).
    SweepPlanned {
        /// The version of the events' form.
        schema: u32,
        /// The workflow's name.
        workflow: String,
        /// The params that vary, in the order of the file.
        varying: Vec<String>,
        /// The cells, the first param changing slowest.
        cells: Vec<CellLine>,
        /// The number of nodes in the plan, each that cells share counted once.
        nodes: usize,
        /// The calls of the U-Net that are left to make.
        unet_calls: u64,
        /// The seconds that it is foretold to take; null when that is not known.
        seconds: Option<f64>,
        /// The outputs that would be made.
        outputs: Vec<SweepOutputLine>,
    },
    /// How far a run is that workers share (`retouch sweep status`).
    SweepStatus {
        /// The version of the events' form.
        schema: u32,
        /// The run.
        run: String,
        /// The workflow's name.
        workflow: String,
        /// The number of cells.
        cells: usize,
        /// Those that came out.
        done: usize,
        /// Those that failed.
        failed: usize,
        /// Those that a worker has.
        claimed: usize,
        /// Those that nobody has.
        open: usize,
        /// Whether the run was cancelled.
        cancelled: bool,
        /// The seconds that are left at the pace so far; null when that is not known.
        seconds: Option<f64>,
        /// The tasks of its jobs that are in a scheduler's queue: `12_3 RUNNING`.
        jobs: Vec<String>,
    },
    /// All files of a cell of a sweep are in their places.
    CellFinished {
        /// The number of the cell, from 1.
        cell: usize,
        /// What it is called.
        label: String,
        /// The values of the params that vary.
        params: IndexMap<String, Json>,
    },
    /// A table of a sweep's results is in its place.
    TableSaved {
        /// The file.
        #[serde(serialize_with = "as_text")]
        #[schemars(with = "String")]
        path: PathBuf,
        /// The number of its rows: one a cell.
        rows: usize,
    },
    /// A picture was drawn again from its recipe and compared.
    Replayed {
        /// The picture.
        #[serde(serialize_with = "as_text")]
        #[schemars(with = "String")]
        picture: PathBuf,
        /// How it compares.
        result: Replay,
        /// The values of pixels that differ; null where none does or the size is another one.
        values: Option<usize>,
        /// How many there are.
        of: Option<usize>,
        /// The most by which one differs, of 255.
        most: Option<u8>,
    },
    /// Everything is up to date; it waits for a change.
    Watching {
        /// The number of files that are looked at.
        files: usize,
    },
    /// A file of a model on a hub is fetched.
    FetchStarted {
        /// The version of the events' form.
        schema: u32,
        /// The file: `hf://owner/name@commit/path`.
        file: String,
        /// Its bytes; 0 when the hub does not say.
        total: u64,
        /// The bytes that an earlier, interrupted fetch left.
        done: u64,
    },
    /// Fetching a file got on.
    FetchProgress {
        /// The file.
        file: String,
        /// The bytes that are there.
        done: u64,
        /// Its bytes; 0 when the hub does not say.
        total: u64,
    },
    /// A file was fetched, and is what the hub announced.
    FetchFinished {
        /// The file.
        file: String,
        /// Its bytes.
        total: u64,
        /// The seconds that it took.
        seconds: f64,
    },
    /// The hub could not be asked, and what is in the cache is used; or another process fetches the same file.
    FetchWarning {
        /// The version of the events' form.
        schema: u32,
        /// What it says.
        message: String,
    },
    /// A run was made again and compared.
    Verified {
        /// The version of the events' form.
        schema: u32,
        /// The name of the run.
        run: String,
        /// Whether all that was compared is equal.
        equal: bool,
        /// The values that were computed anew and compared with those that the cache holds under the same keys.
        values: usize,
        /// Those of them that differ.
        values_differ: usize,
        /// Values that the cache does not hold any more, so that there was nothing to compare with.
        values_gone: usize,
        /// Values whose entries in the cache are damaged.
        values_damaged: usize,
        /// The files of outputs that were made anew and compared with the digests of then.
        outputs: usize,
        /// The outputs that differ.
        outputs_differ: Vec<String>,
        /// The first step that differs, in the order of the plan; null when none does.
        first: Option<DifferenceLine>,
    },
    /// What a model, an adapter or another file of tensors is.
    Inspected {
        /// The version of the events' form.
        schema: u32,
        /// The path that was asked about.
        #[serde(serialize_with = "as_text")]
        #[schemars(with = "String")]
        path: PathBuf,
        /// What it is.
        report: Box<Report>,
    },
    /// Something is wrong, or odd, in a workflow, a lock or a bundle.
    Fault {
        /// The version of the events' form.
        schema: u32,
        /// What kind of fault it is.
        code: Code,
        /// Whether it stops the command.
        severity: FaultSeverity,
        /// The file that it is in, as the command line or the file that includes it names it; or `command line`.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column, from 1, in characters.
        column: usize,
        /// What is wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// The command ends without having done all that it was asked, and this is why. The last line.
    Error {
        /// The version of the events' form.
        schema: u32,
        /// What kind of failure it is.
        code: Code,
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
}

/// Where a run that was made again differs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DifferenceLine {
    /// The node.
    pub node: String,
    /// The step, from 1: the state after it differs. Null when it is no step: an output of the node does.
    pub step: Option<usize>,
    /// How many steps the node has; null when it has none.
    pub of: Option<usize>,
    /// What differs: `state`, `call` (what a step keeps of a call for others) or `output`.
    pub what: &'static str,
    /// What it is called in the cache.
    pub key: Key,
}

/// Whether a fault stops the command.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaultSeverity {
    /// It does.
    Error,
    /// It does not.
    Warning,
}

/// How a picture that was drawn again compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Replay {
    /// Its file is the same.
    SameBytes,
    /// It is the same; what it says of itself, or how it is packed, differs.
    SamePixels,
    /// It is the same up to rounding: at most 1 % of its values differ, each by 1 of 255.
    EqualUpToRounding,
    /// It is another one.
    Differs,
    /// It has another size.
    OtherSize,
}

/// A cell of a sweep.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CellLine {
    /// Its number, from 1.
    pub cell: usize,
    /// What it is called.
    pub label: String,
    /// The values of the params that vary.
    pub params: IndexMap<String, Json>,
}

/// An output that a sweep would make.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SweepOutputLine {
    /// The number of the cell that it is of, from 1; null for the contact sheet.
    pub cell: Option<usize>,
    /// Its name in the workflow.
    pub output: String,
    /// The path below the output folder; null when it is not saved.
    pub save: Option<String>,
}

fn as_text<S: Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

impl Line {
    /// A fault.
    #[must_use]
    pub fn fault(problem: &Problem) -> Self {
        let (line, column) = problem.line_column();
        Self::Fault {
            schema: EVENT_SCHEMA,
            code: problem.code(),
            severity: match problem.severity() {
                Severity::Error => FaultSeverity::Error,
                Severity::Warning => FaultSeverity::Warning,
            },
            file: problem.source_text().name().to_owned(),
            line,
            column,
            message: problem.message().to_owned(),
            help: problem.hint().map(str::to_owned),
        }
    }

    /// Why a command ends without having done all that it was asked.
    #[must_use]
    pub fn error(code: Code, message: &str, help: Option<&str>) -> Self {
        Self::Error {
            schema: EVENT_SCHEMA,
            code,
            message: message.to_owned(),
            help: help.map(str::to_owned),
        }
    }

    /// As one line of JSON.
    ///
    /// # Errors
    /// None that this program could cause; the libraries' are handed on.
    pub fn text(&self) -> Result<String, Failure> {
        serde_json::to_string(self).map_err(|error| Failure::failed(error.to_string()))
    }

    /// Prints it. A reader that went away does not stop what goes on.
    ///
    /// # Errors
    /// When standard output cannot be written for another reason.
    pub fn say(&self) -> Result<(), Failure> {
        say_line(&self.text()?)
    }
}

/// The cells of a sweep.
#[must_use]
pub fn cells(sweep: &Sweep) -> Vec<CellLine> {
    (sweep.cells.iter().enumerate())
        .map(|(index, cell)| CellLine {
            cell: index + 1,
            label: cell.label.clone(),
            params: cell.values.clone(),
        })
        .collect()
}

/// An event of a run as one line of JSON, with its time, and the run that begins or ends.
#[must_use]
pub fn timed(event: &Event, run: Option<&str>) -> Option<String> {
    let mut text = serde_json::to_string(event).ok()?;
    // The text of an event is a map that is not empty.
    text.pop().filter(|last| *last == '}')?;
    text += &format!(",\"time\":\"{}\"", clock::moment(SystemTime::now()));
    if is_end(event) {
        text += &format!(",\"run\":{}", serde_json::to_string(&run).ok()?);
    }
    text.push('}');
    Some(text)
}

/// Whether the event is one of those that name their run.
fn is_end(event: &Event) -> bool {
    matches!(event, Event::RunStarted { .. } | Event::RunFinished { .. })
}

/// What [`timed`] adds to the schema of the engine's events.
fn with_time(mut event: Json) -> Json {
    let name = event["properties"]["event"]["const"]
        .as_str()
        .map(str::to_owned);
    let mut added = vec![(
        "time",
        json!({"type": "string", "description": "When it happened: RFC 3339, UTC, to the millisecond."}),
    )];
    if name.is_some_and(|name| ["run_started", "run_finished"].contains(&name.as_str())) {
        added.push((
            "run",
            json!({"type": ["string", "null"], "description": "The run's name in the journal (`retouch runs`); null when it is not written down."}),
        ));
    }
    for (name, schema) in added {
        event["properties"][name] = schema;
        if let Some(required) = event["required"].as_array_mut() {
            required.push(json!(name));
        }
    }
    event
}

/// The JSON Schema of one line of `--json`: the engine's events and those of the program.
#[must_use]
pub fn schema() -> Json {
    let mut generator = SchemaGenerator::default();
    let variants = |schema: &schemars::Schema| -> Vec<Json> {
        let variants = schema.get("oneOf").and_then(Json::as_array);
        variants.cloned().unwrap_or_default()
    };
    let events = variants(&Event::json_schema(&mut generator));
    let mut variants_of_all: Vec<Json> = events.into_iter().map(with_time).collect();
    variants_of_all.extend(variants(&Line::json_schema(&mut generator)));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of retouch's --json",
        "description": format!(
            "Version {EVENT_SCHEMA}. Fields and events may be added within a version: ignore what you do not know."
        ),
        "oneOf": variants_of_all,
        "$defs": generator.take_definitions(true),
    })
}
