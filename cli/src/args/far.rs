//! The arguments of sweeps beyond one machine.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::shared::{CacheArgs, ModelsArgs, TellingArgs};

/// Where workers are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    /// As processes of this machine, which are waited for; one a GPU, on the CPU one for four cores.
    Local,
    /// As one array job of Slurm.
    Slurm,
    /// Nowhere: the line that starts a worker is printed, for any other scheduler.
    Command,
}

/// Where the runs of sweeps are.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// The store of the run: a folder that all machines share, `s3://bucket/folder`, `gs://...` or `az://...`. Default:
    /// `.retouch-store` in the output folder.
    #[arg(
        long,
        value_name = "PLACE",
        env = "RETOUCH_STORE",
        help_heading = "Cluster"
    )]
    pub store: Option<String>,
}

/// Where workers are started, and how.
#[derive(Args, Clone, Debug)]
pub struct OnArgs {
    /// Share the cells among workers instead of drawing them in this process.
    #[arg(long, value_enum, value_name = "WHERE", help_heading = "Cluster")]
    pub on: Option<Where>,
    /// Number of workers.
    #[arg(long, value_name = "N", value_parser = workers, help_heading = "Cluster")]
    pub workers: Option<usize>,
    /// Slurm: number of workers that may run at a time.
    #[arg(long, value_name = "K", value_parser = workers, help_heading = "Cluster")]
    pub at_once: Option<usize>,
    /// Slurm: options of sbatch: `--sbatch "--partition=gpu --gres=gpu:1"`.
    #[arg(
        long,
        value_name = "OPTIONS",
        allow_hyphen_values = true,
        help_heading = "Cluster"
    )]
    pub sbatch: Vec<String>,
    /// Slurm: a file with what the site's jobs need (`sbatch`, `setup` and `launch`: docs/clusters.md).
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub profile: Option<PathBuf>,
    /// Slurm: submit a second job that collects when the workers are over.
    #[arg(long, help_heading = "Cluster")]
    pub collect: bool,
}

/// A number of workers.
fn workers(text: &str) -> Result<usize, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=10_000).contains(number));
    number.ok_or_else(|| "expected a number from 1 to 10000".to_owned())
}

/// A share of the cells: `1/4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which one, from 1.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse()
                .ok()
                .filter(|number| (1..=10_000).contains(number))
        };
        text.split_once('/')
            .and_then(|(index, of)| Some((number(index)?, number(of)?)))
            .filter(|(index, of)| index <= of)
            .map(|(index, of)| Self { index, of })
            .ok_or_else(|| "expected a share such as 1/4: the first of four".to_owned())
    }
}

/// A run in a store.
#[derive(Args, Clone, Debug)]
pub struct RunArg {
    /// The run: its name, a unique prefix of it, or `last`.
    #[arg(default_value = "last")]
    pub run: String,
    /// Where it is.
    #[command(flatten)]
    pub store: StoreArgs,
    /// The output folder: where the store is, unless it is named, and where files are built. Default: the run's own.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print JSON lines.
    #[arg(long)]
    pub json: bool,
}

/// What to do with a run that workers share.
#[derive(Debug, Subcommand)]
pub enum SweepCommand {
    /// Show how far a run is.
    Status(RunArg),
    /// Print the logs of the cells that failed, or of one cell.
    Logs(LogsArgs),
    /// Continue a run: start workers for what is left.
    Resume(ResumeArgs),
    /// Stop a run: workers give back what they have.
    Cancel(RunArg),
    /// Build the files, the table and the contact sheet of a run.
    Collect(CollectArgs),
}

impl SweepCommand {
    /// Whether what it prints is for programs.
    #[must_use]
    pub fn json(&self) -> bool {
        match self {
            Self::Status(of) | Self::Cancel(of) => of.json,
            Self::Logs(args) => args.of.json,
            Self::Resume(args) => args.of.json,
            Self::Collect(args) => args.of.json,
        }
    }
}

/// `retouch sweep logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The run.
    #[command(flatten)]
    pub of: RunArg,
    /// The log of this cell.
    #[arg(long, value_name = "N")]
    pub cell: Option<usize>,
}

/// `retouch sweep resume`.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    /// The run.
    #[command(flatten)]
    pub of: RunArg,
    /// Try the cells that failed again.
    #[arg(long)]
    pub retry_failed: bool,
    /// Where workers are started. Default: where the run was begun.
    #[command(flatten)]
    pub on: OnArgs,
    /// Number of compute threads of each worker.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// `retouch sweep collect`.
#[derive(Args, Debug)]
pub struct CollectArgs {
    /// The run.
    #[command(flatten)]
    pub of: RunArg,
    /// Where the workflow, the sweep or the bundle is on this machine, when it is not at the path that it was submitted from.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Where its models are.
    #[command(flatten)]
    pub place: ModelsArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// `retouch worker`.
#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// The run: its name, a unique prefix of it, or `last`.
    pub run: String,
    /// Where it is.
    #[command(flatten)]
    pub store: StoreArgs,
    /// The output folder that the store is in, unless it is named.
    #[arg(long, value_name = "DIR", env = "RETOUCH_OUT", default_value_os_t = crate::config::out())]
    pub out: PathBuf,
    /// Where the workflow, the sweep or the bundle is on this machine, when it is not at the path that it was submitted from.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Where its models are.
    #[command(flatten)]
    pub place: ModelsArgs,
    /// Number of compute threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}
