//! A run as the store describes it: what is swept, how it is cut, what became of its cells.

use std::collections::BTreeMap;
use std::path::PathBuf;

use retouch_cluster::claims::{State, states};
use retouch_cluster::{Objects, Store as Far};
use retouch_graph::Code;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{damaged, failure, needed};
use crate::Failure;
use crate::args::{ExistsArg, Where};
use crate::runs::Asked;
use crate::table::CellStatus;

/// The form of what is in the store; raised when a field goes or changes its meaning.
const SCHEMA: &str = "retouch-cluster/1";
/// The folder of the runs.
pub const RUNS: &str = "runs";

/// What is swept, and how: `runs/RUN/run.json`, written once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// `retouch-cluster/1`.
    pub schema: String,
    /// What it is called: its time and four letters.
    pub run: String,
    /// The version of the program.
    pub tool: String,
    /// When it was submitted, RFC 3339, UTC.
    pub submitted: String,
    /// What the command line asked for.
    pub asked: Asked,
    /// `--table`, absolute.
    pub table: Option<PathBuf>,
    /// `--exists`.
    pub exists: ExistsArg,
    /// Whether nothing but what the lock says may be read.
    pub locked: bool,
    /// Whether hubs are not asked.
    pub offline: bool,
    /// The workflow's name.
    pub workflow: String,
    /// The number of cells.
    pub cells: usize,
    /// The BLAKE3 of the keys of all outputs, without what depends on the machine.
    pub fingerprint: String,
    /// For how many milliseconds a claim holds.
    pub term: u64,
    /// Where workers were started first.
    pub on: Where,
    /// How many.
    pub workers: usize,
}

/// Some of a run's chunks: `runs/RUN/chunks/N.json`. Those of later ones are of cells that are tried again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chunks {
    /// The cells of each, from 0.
    pub chunks: Vec<Vec<usize>>,
}

/// What became of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// The cell, from 0.
    pub cell: usize,
    /// Whether it failed.
    pub failed: bool,
    /// Seconds of the nodes that were run for it first.
    pub seconds: f64,
    /// Calls of the U-Net in those.
    pub unet_calls: u64,
    /// Why it failed.
    pub error: Option<String>,
}

impl CellResult {
    /// As the table has it.
    pub fn status(&self) -> CellStatus {
        match self.failed {
            true => CellStatus::Failed,
            false => CellStatus::Done,
        }
    }
}

/// What became of a chunk: the content of its `done` object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// The worker.
    pub worker: String,
    /// The attempt, which its log is called by.
    pub attempt: u32,
    /// The seconds that it took.
    pub seconds: f64,
    /// All calls of the U-Net.
    pub unet_calls: u64,
    /// Its cells.
    pub cells: Vec<CellResult>,
}

/// A worker, as it says of itself: `runs/RUN/workers/WORKER.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerEntry {
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// When it began.
    pub started: String,
    /// The job of a scheduler that it is of: `slurm:12_3`.
    pub job: Option<String>,
}

/// Jobs that were submitted for a run: `runs/RUN/jobs/N.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobEntry {
    /// The array's job in Slurm.
    pub slurm: u64,
    /// How many workers it has.
    pub workers: usize,
    /// Where they print: a folder.
    pub logs: PathBuf,
}

/// What stops or continues a run: the name of its latest object below `control/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Workers take chunks.
    Go,
    /// They stop.
    Cancelled,
}

/// A run in a store.
#[derive(Clone, Debug)]
pub struct Run {
    /// The store.
    pub store: Far,
    /// What is swept.
    pub about: Description,
    /// Its chunks, all generations in a row.
    pub chunks: Vec<Vec<usize>>,
}

fn json(store: &dyn Objects, name: &str, value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| damaged(store, name, &error.to_string()))
}

/// Reads an object.
fn read<T: DeserializeOwned>(store: &dyn Objects, name: &str) -> Result<T, Failure> {
    let bytes = needed(store, name)?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(store, name, &error.to_string()))
}

/// The names of the runs in a store, oldest first. A run is there once its description is.
fn names(store: &Far) -> Result<Vec<String>, Failure> {
    let listed = store.list("index").map_err(|fault| failure(&fault))?;
    let name = |name: &str| Some(name.strip_prefix("index/")?.to_owned());
    Ok(listed.iter().filter_map(|one| name(&one.name)).collect())
}

/// Milliseconds that a claim may hold: what `--expiry` takes.
const TERMS: std::ops::RangeInclusive<u64> = 5_000..=86_400_000;

impl Run {
    /// Writes a run down.
    ///
    /// # Errors
    /// When the store does not take it, or has a run of that name.
    pub fn create(
        store: Far,
        mut about: Description,
        chunks: Vec<Vec<usize>>,
    ) -> Result<Self, Failure> {
        SCHEMA.clone_into(&mut about.schema);
        let folder = format!("{RUNS}/{}", about.run);
        let write = |name: String, bytes: Vec<u8>| match store.create(&name, bytes) {
            Ok(true) => Ok(()),
            Ok(false) => Err(damaged(&store, &name, "it is there already")),
            Err(fault) => Err(failure(&fault)),
        };
        let first = Chunks { chunks };
        let name = format!("{folder}/chunks/000000.json");
        write(name.clone(), json(&store, &name, &first)?)?;
        let name = format!("{folder}/run.json");
        write(name.clone(), json(&store, &name, &about)?)?;
        write(format!("index/{}", about.run), Vec::new())?;
        Ok(Self {
            store,
            about,
            chunks: first.chunks,
        })
    }

    /// The run of that name, that begins so, or the `last`.
    ///
    /// # Errors
    /// When there is none, or there are several.
    pub fn find(store: Far, name: &str) -> Result<Self, Failure> {
        let runs = names(&store)?;
        let found: Vec<&String> = match name {
            "last" => runs.last().into_iter().collect(),
            exact if runs.iter().any(|run| run == exact) => {
                runs.iter().filter(|run| *run == exact).collect()
            }
            prefix => runs.iter().filter(|run| run.starts_with(prefix)).collect(),
        };
        let unknown = |what: String| {
            Failure::usage(what).code(Code::UnknownSweepRun).help(
                "name the store with `--store`, or the output folder that it is below with `--out`",
            )
        };
        match found.as_slice() {
            [run] => Self::open(store, &(*run).clone()),
            [] => Err(unknown(format!(
                "there is no run `{name}` in the store {}",
                store.shown()
            ))),
            several => Err(unknown(format!(
                "{} runs in the store {} begin with `{name}`",
                several.len(),
                store.shown()
            ))),
        }
    }

    fn open(store: Far, run: &str) -> Result<Self, Failure> {
        let name = format!("{RUNS}/{run}/run.json");
        let about: Description = read(&store, &name)?;
        if about.schema != SCHEMA || about.run != run {
            return Err(damaged(
                &store,
                &name,
                &format!("it is `{}` of `{}`", about.schema, about.run),
            ));
        }
        if !TERMS.contains(&about.term) {
            return Err(damaged(
                &store,
                &name,
                &format!("its claims hold for {} ms", about.term),
            ));
        }
        let mut run = Self {
            store,
            about,
            chunks: Vec::new(),
        };
        run.look()?;
        Ok(run)
    }

    /// The name of an object of the run.
    pub fn name(&self, of: &str) -> String {
        format!("{RUNS}/{}/{of}", self.about.run)
    }

    /// The folder of the run in the store.
    pub fn folder(&self) -> String {
        format!("{RUNS}/{}", self.about.run)
    }

    /// The objects below a folder of the run.
    pub fn list(&self, folder: &str) -> Result<Vec<retouch_cluster::Listed>, Failure> {
        self.store
            .list(&self.name(folder))
            .map_err(|fault| failure(&fault))
    }

    /// Reads which chunks there are; whether there are more than before.
    pub fn look(&mut self) -> Result<bool, Failure> {
        let mut all = Vec::new();
        for one in self.list("chunks")? {
            let more: Chunks = read(&self.store, &one.name)?;
            let beyond = |cell: &usize| *cell >= self.about.cells;
            if more.chunks.iter().flatten().any(beyond) {
                return Err(damaged(
                    &self.store,
                    &one.name,
                    "it names a cell that there is not",
                ));
            }
            all.extend(more.chunks);
        }
        let more = all.len() > self.chunks.len();
        self.chunks = all;
        Ok(more)
    }

    /// Adds chunks; each of them is tried as a new one.
    pub fn add(&mut self, chunks: Vec<Vec<usize>>) -> Result<(), Failure> {
        let more = Chunks { chunks };
        for number in self.list("chunks")?.len().. {
            let name = self.name(&format!("chunks/{number:06}.json"));
            let bytes = json(&self.store, &name, &more)?;
            if self
                .store
                .create(&name, bytes)
                .map_err(|fault| failure(&fault))?
            {
                break;
            }
        }
        self.look()?;
        Ok(())
    }

    /// The state of each chunk.
    pub fn states(&self) -> Result<Vec<State>, Failure> {
        Ok(states(&self.list("state")?, self.chunks.len()))
    }

    /// What became of a chunk that is done.
    pub fn results(&self, chunk: usize, failed: usize) -> Result<Results, Failure> {
        read(
            &self.store,
            &self.name(&format!("state/{chunk:06}/done.{failed}")),
        )
    }

    /// What became of each cell that came out, by its number, and the chunk that it came out in. A cell that was tried again is what it
    /// was the last time.
    pub fn cells(&self) -> Result<BTreeMap<usize, (usize, CellResult)>, Failure> {
        let mut cells = BTreeMap::new();
        for (chunk, state) in self.states()?.into_iter().enumerate() {
            let State::Done(failed) = state else {
                continue;
            };
            for cell in self.results(chunk, failed)?.cells {
                if self.chunks[chunk].contains(&cell.cell) {
                    cells.insert(cell.cell, (chunk, cell));
                }
            }
        }
        Ok(cells)
    }

    /// Whether it was cancelled.
    pub fn control(&self) -> Result<Control, Failure> {
        let last = self.list("control")?.pop();
        Ok(match last {
            Some(one) if one.name.ends_with(".cancel") => Control::Cancelled,
            _ => Control::Go,
        })
    }

    /// Cancels it, or lets it go on.
    pub fn set_control(&self, control: Control) -> Result<(), Failure> {
        if self.control()? == control {
            return Ok(());
        }
        let number = self.list("control")?.len();
        let word = match control {
            Control::Go => "resume",
            Control::Cancelled => "cancel",
        };
        let name = self.name(&format!("control/{number:06}.{word}"));
        (self.store.put(&name, Vec::new())).map_err(|fault| failure(&fault))
    }

    /// Notes a job of a scheduler.
    pub fn add_job(&self, job: &JobEntry) -> Result<(), Failure> {
        let name = self.name(&format!("jobs/{}.json", job.slurm));
        let bytes = json(&self.store, &name, job)?;
        self.store
            .put(&name, bytes)
            .map_err(|fault| failure(&fault))
    }

    /// The jobs of schedulers.
    pub fn jobs(&self) -> Result<Vec<JobEntry>, Failure> {
        self.list("jobs")?
            .iter()
            .map(|one| read(&self.store, &one.name))
            .collect()
    }

    /// What numbers depend on is that of the first worker: pictures of two kinds on one sheet could not be told apart.
    ///
    /// # Errors
    /// When the first worker's is another.
    pub fn agree(&self, numerics: &str) -> Result<(), Failure> {
        let name = self.name("numerics");
        let created = self.store.create(&name, numerics.as_bytes().to_vec());
        if created.map_err(|fault| failure(&fault))? {
            return Ok(());
        }
        match self.numerics()? {
            Some(first) if first != numerics => Err(Failure::failed(format!(
                "this machine computes with `{numerics}`, and the run with `{first}`: their pictures would differ in the last digits"
            ))
            .code(Code::WorkerDiffers)
            .help("start workers on machines of one kind (`--sbatch \"--constraint=...\"`), or the run with what all of them can compute with: `--device cpu:cpu2`")),
            _ => Ok(()),
        }
    }

    /// What numbers depend on; `None`: no worker has begun.
    pub fn numerics(&self) -> Result<Option<String>, Failure> {
        let bytes = self
            .store
            .get(&self.name("numerics"))
            .map_err(|fault| failure(&fault))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
    }
}
