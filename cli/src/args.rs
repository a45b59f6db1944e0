//! The command line's arguments.

mod far;
mod shared;

use std::path::PathBuf;

use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use far::*;
use shared::repository;
pub use shared::*;

/// What `retouch --help` says last.
fn after_help() -> String {
    format!(
        "Results go to standard output, everything else to standard error.\n\n\
        Exit codes (`retouch explain exit-codes`):\n{}\n\n\
        Environment:\n  \
        RETOUCH_DEVICE, RETOUCH_DTYPE, RETOUCH_OUT, RETOUCH_STORE, RETOUCH_REMOTE_CACHE  options (`retouch config`)\n  \
        RETOUCH_MODELS  folders that models are looked for in, separated as in PATH\n  \
        RETOUCH_CONFIG  a configuration file in place of the platform's retouch/config.yaml\n  \
        RETOUCH_CACHE   the folder of the cache; RETOUCH_NO_CACHE=1 turns it off\n  \
        RETOUCH_LOG     what is logged to standard error: `debug`, `retouch=info`\n  \
        NO_COLOR        no colours; CLICOLOR_FORCE=1: also where there is no terminal\n  \
        HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE  how models on a hub (`hf://owner/name`) are fetched",
        crate::exit::table()
    )
}

/// Draws pictures from workflow files: node graphs for personalised text-to-image generation.
///
/// A workflow is one YAML file. `retouch new FOLDER` makes one to begin with, on the model that is in this program.
#[derive(Debug, Parser)]
#[command(
    name = "retouch",
    version,
    max_term_width = 100,
    after_help = after_help()
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a workflow and save its outputs.
    Run(RunArgs),
    /// Run a workflow, and again whenever something that it reads changes.
    Watch(WatchArgs),
    /// Watch a workflow in a window: its graph, its pictures, what each step did; or draw that to a file.
    #[cfg(feature = "view")]
    View(ViewArgs),
    /// Run a workflow for many values of its params; what the runs share is computed once.
    Sweep(SweepCli),
    /// Draw cells of a sweep that several workers share, until none is left.
    Worker(WorkerArgs),
    /// Report every fault of workflows without running them.
    Check(CheckArgs),
    /// Show what a run would do, and why, without running anything.
    Plan(PlanArgs),
    /// Format workflow files; comments and meaning are kept.
    Fmt(FmtArgs),
    /// The reference of the ops, or of one of them.
    Nodes(NodesArgs),
    /// Print a JSON Schema: of the workflow format, for editors, or of the events, for programs.
    Schema {
        /// What to describe.
        #[arg(value_enum, default_value_t = SchemaOf::Workflow)]
        of: SchemaOf,
    },
    /// Draw the graph of a workflow as DOT or Mermaid text.
    Graph(GraphArgs),
    /// Explain an error code.
    Explain(ExplainArgs),
    /// Download the models on hubs (`hf://owner/name`) that workflows name.
    Fetch(FetchArgs),
    /// Write a lock file beside a workflow, with digests of everything it reads: `wf.lock` for `wf.yaml`.
    Lock(LockArgs),
    /// Pack a workflow with what it reads into one file to share.
    Bundle(BundleArgs),
    /// Unpack a bundle to a folder.
    Unbundle(UnbundleArgs),
    /// Print the workflow embedded in a picture.
    Extract(ExtractArgs),
    /// Draw a picture again from the recipe embedded in it, and compare.
    Replay(ReplayArgs),
    /// Compare two workflows or pictures: what differs, by node, and from which step on.
    Diff(DiffArgs),
    /// Create a folder with the built-in workflows, demo model and reference photos.
    New(NewArgs),
    /// List past runs, newest first, or show one of them. Times are local; with `--json` UTC.
    Runs(RunsArgs),
    /// Repeat a run without the cache and compare: the first step that differs is named.
    Verify(VerifyArgs),
    /// Show the recipe of a picture, or what a model, an adapter or any other file of tensors contains, from its headers alone.
    #[command(visible_alias = "show")]
    Inspect(InspectArgs),
    /// Write a model as a folder in the diffusers layout, or as a single file; always as safetensors.
    Convert(ConvertArgs),
    /// Inspect or clear the disk cache.
    Cache(CacheToolArgs),
    /// Show the settings of the environment and the configuration file, and where each comes from.
    Config {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run the language server on standard input and output.
    Lsp {
        /// Use standard input and output: the only transport, accepted because some clients pass it.
        #[arg(long)]
        stdio: bool,
    },
    /// Print the manual page, or write all of them to a folder: `retouch.1`, `retouch-run.1`, ...
    Man {
        /// The folder; created if it does not exist.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

impl Command {
    /// Whether what it prints is for programs.
    #[must_use]
    pub fn json(&self) -> bool {
        match self {
            Self::Run(args) => args.drawing.json,
            Self::Watch(args) => args.follow.drawing.json,
            #[cfg(feature = "view")]
            Self::View(args) => args.follow.drawing.json,
            Self::Sweep(cli) => match cli {
                SweepCli::Run(command) => command.json(),
                SweepCli::File(args) => args.drawing.json,
            },
            Self::Config { json } => *json,
            Self::Check(args) => args.json,
            Self::Fetch(args) => args.json,
            Self::Plan(args) => args.json,
            Self::Nodes(args) => args.json,
            Self::Replay(args) => args.json,
            Self::Diff(args) => args.json,
            Self::Verify(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::Runs(args) => match args.command {
                Some(RunsCommand::Show { json, .. }) => json,
                Some(RunsCommand::Clear) => false,
                None => args.json,
            },
            Self::Cache(args) => match args.command {
                CacheCommand::Ls { json } | CacheCommand::Stats { json } => json,
                CacheCommand::Clear | CacheCommand::Verify => false,
            },
            _ => false,
        }
    }
}

/// What a JSON Schema is printed of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// The workflow format.
    Workflow,
    /// The lines of `--json`.
    Events,
}

/// `retouch cache`.
#[derive(Args, Debug)]
pub struct CacheToolArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CacheCommand,
    /// Which cache.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// What to do with the disk cache.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum CacheCommand {
    /// List the entries, most recently used first.
    Ls {
        /// Print JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// Show the number and size of entries, by type.
    Stats {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove everything that can be made again: entries, what nodes took, the make-up of last runs, unpacked bundles, known
    /// digests. The journal of runs stays; `retouch runs clear` removes that.
    Clear,
    /// Read every entry and remove damaged ones.
    Verify,
}

/// `retouch runs`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RunsArgs {
    /// What to do instead of listing them.
    #[command(subcommand)]
    pub command: Option<RunsCommand>,
    /// Only the runs of this workflow, sweep or bundle.
    pub file: Option<PathBuf>,
    /// Number of runs to list, newest first; 0: all.
    #[arg(short, value_name = "N", default_value_t = 20)]
    pub number: usize,
    /// Print these after each run: params, and scores, which are the means of the columns of the tables that it saved.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Print JSON lines.
    #[arg(long)]
    pub json: bool,
    /// Which journal.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// What to do with the journal of runs.
#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// Show everything about a run.
    Show {
        /// Its name, a unique prefix of it, or `last`.
        #[arg(default_value = "last")]
        run: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove the records of all finished runs. The cache and the saved files are kept.
    Clear,
}

/// `retouch verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The run: its name, a unique prefix of it, or `last`.
    #[arg(default_value = "last")]
    pub run: String,
    /// Number of compute threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Where its models are, in addition to the run's own folders.
    #[command(flatten)]
    pub place: ModelsArgs,
    /// Download nothing from hubs; models under `hf://` are read from the hub cache only. Same as HF_HUB_OFFLINE=1.
    #[arg(long, help_heading = "Sharing")]
    pub offline: bool,
    /// Which journal and cache.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print the result as a JSON line on standard output.
    #[arg(long)]
    pub json: bool,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// `retouch fetch`.
#[derive(Args, Debug)]
pub struct FetchArgs {
    /// The workflow files, or bundles.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// What sets their params.
    #[command(flatten)]
    pub params: ParamArgs,
    /// Send your token for this repository even if a bundle names it.
    #[arg(long, value_name = "OWNER/NAME", value_parser = repository, help_heading = "Sharing")]
    pub token_for: Vec<String>,
    /// Where they come from, and what of a lock is demanded.
    #[command(flatten)]
    pub locked: LockedArgs,
    /// Which cache.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print what happens as JSON lines on standard output.
    #[arg(long)]
    pub json: bool,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// `retouch run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The workflow file, or a bundle.
    pub file: PathBuf,
    /// Outputs or nodes to compute, with their dependencies, instead of all outputs. A node's picture is saved as WORKFLOW/NODE.png.
    #[arg(value_name = "NODE")]
    pub targets: Vec<String>,
    /// How it is drawn.
    #[command(flatten)]
    pub drawing: DrawingArgs,
    /// What is fetched for a bundle.
    #[command(flatten)]
    pub fetching: FetchingArgs,
}

/// `retouch watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// What is run, and how.
    #[command(flatten)]
    pub follow: FollowArgs,
    /// Open the viewer's window as well. Closing it does not stop watching; Ctrl-C does.
    #[cfg(feature = "view")]
    #[arg(long)]
    pub view: bool,
}

/// `retouch view`.
#[cfg(feature = "view")]
#[derive(Args, Debug)]
pub struct ViewArgs {
    /// What is run, and how.
    #[command(flatten)]
    pub follow: FollowArgs,
    /// Run the workflow, draw the view to a PNG file instead of opening a window, and end.
    #[arg(long, value_name = "FILE.png")]
    pub screenshot: Option<PathBuf>,
    /// Select this node, and open the graphs that it is in.
    #[arg(long, value_name = "NODE")]
    pub select: Option<String>,
    /// Show this step of the selected sampler, from 0 to its number of steps.
    #[arg(long, value_name = "K")]
    pub step: Option<usize>,
    /// The tab that is open below the graph.
    #[arg(long, value_enum)]
    pub tab: Option<ViewTab>,
    /// The width and height of the window or picture, in points.
    #[arg(long, value_name = "WxH", value_parser = parse_view_size)]
    pub size: Option<(u16, u16)>,
    /// Pixels per point: 2 for a high-density screen.
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = parse_view_scale, requires = "screenshot")]
    pub scale: f32,
    /// Dark or light, regardless of the system's theme.
    #[arg(long, value_enum)]
    pub theme: Option<ViewTheme>,
    /// Draw what is in the cache, without running anything.
    #[arg(long, requires = "screenshot")]
    pub no_run: bool,
}

/// An area of the viewer.
#[cfg(feature = "view")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ViewTab {
    /// The pictures that the workflow makes.
    Pictures,
    /// The steps of a sampler.
    Steps,
    /// The params, to be tried.
    Params,
    /// The faults of the file.
    Problems,
}

/// The colours of the viewer.
#[cfg(feature = "view")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ViewTheme {
    /// Light on dark.
    Dark,
    /// Dark on light.
    Light,
}

/// The size of a window: `1280x800`.
#[cfg(feature = "view")]
fn parse_view_size(text: &str) -> Result<(u16, u16), String> {
    let side = |text: &str| text.parse().ok().filter(|side| (200..=8000).contains(side));
    text.split_once(['x', 'X'])
        .and_then(|(width, height)| Some((side(width)?, side(height)?)))
        .ok_or_else(|| "a size is a width and a height from 200 to 8000: `1280x800`".to_owned())
}

#[cfg(feature = "view")]
fn parse_view_scale(text: &str) -> Result<f32, String> {
    let scale = text
        .parse()
        .ok()
        .filter(|scale| (0.5..=4.0).contains(scale));
    scale.ok_or_else(|| "expected a number from 0.5 to 4".to_owned())
}

/// What `retouch watch` and `retouch view` follow, and how.
#[derive(Args, Clone, Debug)]
pub struct FollowArgs {
    /// The workflow file.
    pub file: PathBuf,
    /// Outputs or nodes to compute, with their dependencies, instead of all outputs.
    #[arg(value_name = "NODE")]
    pub targets: Vec<String>,
    /// How it is drawn. What this session saved it replaces, whatever `--exists` says.
    #[command(flatten)]
    pub drawing: DrawingArgs,
}

/// `retouch sweep`: a file, or what to do with a run that was submitted.
#[derive(Debug)]
pub enum SweepCli {
    /// What to do with a run.
    Run(Box<SweepCommand>),
    /// What is swept.
    File(Box<SweepArgs>),
}

// By hand: the derived form of an optional group of arguments is `None` when arguments are nested in it.
impl Args for SweepCli {
    fn augment_args(command: clap::Command) -> clap::Command {
        SweepArgs::augment_args(SweepCommand::augment_subcommands(command))
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SweepCli {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_name() {
            Some(_) => {
                SweepCommand::from_arg_matches(matches).map(|command| Self::Run(Box::new(command)))
            }
            None => SweepArgs::from_arg_matches(matches).map(|args| Self::File(Box::new(args))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What is swept, and how.
#[derive(Args, Debug)]
pub struct SweepArgs {
    /// A workflow with a `sweep:`, a separate sweep file, or a bundle; with `--over` any workflow.
    pub file: PathBuf,
    /// Outputs to compute in every cell instead of all; `sheet` is the contact sheet.
    #[arg(value_name = "OUTPUT")]
    pub targets: Vec<String>,
    /// Varies a param, in addition to the file's sweep or overriding it: `--over seed=1..5 --over steps=10,20`. A range
    /// excludes its end (1..5: four cells, 1 to 4); `1..=5` includes it.
    #[arg(long, value_name = "PARAM=VALUES")]
    pub over: Vec<String>,
    /// Draw a contact sheet of all cells and save it there, below the output folder: `--sheet sheet.png`.
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<String>,
    /// Resume the last sweep of this file in this output folder: saved files that still exist are not computed again, and
    /// drawn seeds are kept. OUTPUT, `--over`, `--set`, `--params`, `--sheet` and `--table` default to those of that sweep.
    #[arg(long)]
    pub resume: bool,
    /// Draw only a share of the cells: `--cells 1/4` on the first of four machines, `--cells 2/4` on the second. Without a contact
    /// sheet; `--resume` without `--cells` in a folder that has all shares draws it.
    #[arg(long, value_name = "I/N")]
    pub cells: Option<Share>,
    /// Write the table of results to this file, as .csv or .json.
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// Show what would run, without running anything; the same as `retouch plan`.
    #[arg(long)]
    pub dry_run: bool,
    /// Where its workers are started, if it has any.
    #[command(flatten)]
    pub far: OnArgs,
    /// Where the run is described, and results are put.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Seconds after which the cells of a worker that is not heard of are given to another.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(5..=86_400), help_heading = "Cluster")]
    pub expiry: u64,
    /// How its cells are drawn.
    #[command(flatten)]
    pub drawing: DrawingArgs,
    /// What is fetched for a bundle.
    #[command(flatten)]
    pub fetching: FetchingArgs,
}

/// `retouch check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The workflow files, sweeps or bundles.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// What sets their params.
    #[command(flatten)]
    pub params: ParamArgs,
    /// Where they come from, and what of a lock is demanded.
    #[command(flatten)]
    pub locked: LockedArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print the faults as JSON lines on standard output.
    #[arg(long)]
    pub json: bool,
}

/// `retouch plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// The workflow file, a sweep in a file of its own, or a bundle.
    pub file: PathBuf,
    /// Outputs or nodes to compute, with their dependencies, instead of all outputs.
    #[arg(value_name = "NODE")]
    pub targets: Vec<String>,
    /// What sets its params.
    #[command(flatten)]
    pub params: ParamArgs,
    /// What results depend on.
    #[command(flatten)]
    pub numerics: NumericsArgs,
    /// Where it comes from, and what of a lock is demanded.
    #[command(flatten)]
    pub locked: LockedArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print the plan as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `retouch fmt`.
#[derive(Args, Debug)]
pub struct FmtArgs {
    /// The workflow files; `-` reads standard input and prints to standard output.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Change nothing; fail if a file is not formatted.
    #[arg(long)]
    pub check: bool,
}

/// `retouch nodes`.
#[derive(Args, Debug)]
pub struct NodesArgs {
    /// The op to document in full.
    pub op: Option<String>,
    /// Print the reference as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `retouch graph`.
#[derive(Args, Debug)]
pub struct GraphArgs {
    /// The workflow file.
    pub file: PathBuf,
    /// What sets its params.
    #[command(flatten)]
    pub params: ParamArgs,
    /// Where it comes from, and what of a lock is demanded.
    #[command(flatten)]
    pub locked: LockedArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// The output language.
    #[arg(long, value_enum, default_value_t = GraphFormat::Dot)]
    pub format: GraphFormat,
}

/// The language that a graph is drawn in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// Graphviz.
    Dot,
    /// Mermaid, which GitHub and many editors show.
    Mermaid,
}

/// `retouch explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The code, as shown in an error, or `exit-codes`. Default: list all codes.
    pub code: Option<String>,
}

/// `retouch lock`.
#[derive(Args, Debug)]
pub struct LockArgs {
    /// The workflow file, or a sweep in a file of its own.
    pub file: PathBuf,
    /// What sets its params.
    #[command(flatten)]
    pub params: ParamArgs,
    /// Change nothing; print the differences, and fail if there are any.
    #[arg(long)]
    pub check: bool,
    /// Where its models are.
    #[command(flatten)]
    pub sharing: SharingArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// `retouch bundle`.
#[derive(Args, Debug)]
pub struct BundleArgs {
    /// The workflow file, or a sweep in a file of its own.
    pub file: PathBuf,
    /// The bundle to write. Default: the workflow's name with `.tar.zst`, in the current folder.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What sets its params; it goes into the bundle.
    #[command(flatten)]
    pub params: ParamArgs,
    /// Include the models; otherwise the bundle has their digests, and they are found by those.
    #[arg(long)]
    pub with_models: bool,
    /// Size limit of a packed asset. Default: 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse_size)]
    pub max_asset: Option<u64>,
    /// Where its models are.
    #[command(flatten)]
    pub sharing: SharingArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// `retouch unbundle`.
#[derive(Args, Debug)]
pub struct UnbundleArgs {
    /// The bundle.
    pub file: PathBuf,
    /// The folder to create; it must not exist, or be empty.
    pub folder: PathBuf,
    /// Largest unpacked size. Default: 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse_size)]
    pub max_unpacked: Option<u64>,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// `retouch extract`.
#[derive(Args, Debug)]
pub struct ExtractArgs {
    /// The picture, a PNG that `retouch` saved.
    pub picture: PathBuf,
    /// Write the workflow and the graphs that it uses to this folder, instead of printing the workflow.
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// `retouch replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The picture, a PNG that `retouch` saved.
    pub picture: PathBuf,
    /// Save the new picture below this folder; by default it is only compared.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What to do with files that are there.
    #[command(flatten)]
    pub existing: ExistsArgs,
    /// Where and how to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether what is being drawn is shown.
    #[command(flatten)]
    pub preview: PreviewArgs,
    /// Where what it was made of is.
    #[command(flatten)]
    pub sharing: SharingArgs,
    /// What is fetched for it.
    #[command(flatten)]
    pub fetching: FetchingArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print events as JSON lines on standard output.
    #[arg(long)]
    pub json: bool,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// `retouch diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// The older: a workflow file, a bundle, or a picture.
    pub a: PathBuf,
    /// The newer.
    pub b: PathBuf,
    /// What sets the params of workflow files.
    #[command(flatten)]
    pub params: ParamArgs,
    /// What results depend on.
    #[command(flatten)]
    pub numerics: NumericsArgs,
    /// Where they come from.
    #[command(flatten)]
    pub sharing: SharingArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print the differences as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `retouch inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// A PNG that `retouch` saved, a model (a folder, or a single file), an adapter, or any other safetensors or torch file.
    #[arg(value_name = "FILE")]
    pub model: PathBuf,
    /// For a single file: a folder in the diffusers layout with matching configurations.
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// The size of the picture that the grids of the attention sites are for, in pixels. Default: the model's own.
    #[arg(long, value_name = "WxH", value_parser = width_and_height)]
    pub size: Option<(usize, usize)>,
    /// Where models are.
    #[command(flatten)]
    pub place: ModelsArgs,
    /// Print a JSON line; of a picture its recipe, as one document.
    #[arg(long)]
    pub json: bool,
}

/// Two sides, as they are written: `768x512`.
fn width_and_height(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once(['x', 'X']);
    let side = |text: &str| text.parse().ok().filter(|side| (1..=65_536).contains(side));
    sides
        .and_then(|(width, height)| Some((side(width)?, side(height)?)))
        .ok_or_else(|| "expected width x height in pixels, such as 768x512".to_owned())
}

/// `retouch convert`.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// The model: a folder in the diffusers layout, or a single file (`.safetensors`, `.ckpt`, `.gguf`).
    pub model: PathBuf,
    /// The output path; it must not exist.
    pub out: PathBuf,
    /// The layout. Default: a single file when OUT ends with `.safetensors`, else a folder.
    #[arg(long, value_enum)]
    pub layout: Option<LayoutName>,
    /// The type of the weights. Default: unchanged.
    #[arg(long, value_enum)]
    pub dtype: Option<PrecisionName>,
    /// For a single file: a folder in the diffusers layout with matching configurations (and tokenizers).
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// The prediction type of the U-Net, where the model states it wrongly or not at all.
    #[arg(long, value_enum)]
    pub prediction: Option<PredictionName>,
    /// Where models are.
    #[command(flatten)]
    pub place: ModelsArgs,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// The layouts that models are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayoutName {
    /// A folder in the diffusers layout.
    Folder,
    /// One .safetensors file with the original names.
    Single,
}

/// The types that numbers are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of 32 bits.
    Bf16,
}

/// What a U-Net predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PredictionName {
    /// The noise.
    Epsilon,
    /// v, which Stable Diffusion 2 with 768 pixels predicts.
    #[value(name = "v_prediction", alias = "v")]
    VPrediction,
}

/// `retouch new`.
#[derive(Args, Debug)]
pub struct NewArgs {
    /// The folder to create; it must not exist, or be empty.
    pub folder: PathBuf,
    /// Write workflows for this model instead: a folder or a file, or `hf://OWNER/NAME`.
    #[arg(long, value_name = "PATH", requires = "photos", requires = "class")]
    pub model: Option<String>,
    /// With `--model`: the folder of photos of the subject.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub photos: Option<PathBuf>,
    /// With `--model`: what the subject is, as in a prompt: `dog`.
    #[arg(long, value_name = "WORDS", requires = "model")]
    pub class: Option<String>,
    /// With `--model`: the token that means the subject; one that means nothing to the model yet.
    #[arg(long, value_name = "WORD", default_value = "sks", requires = "model")]
    pub token: String,
    /// With `--model`: a LoRA that knows the subject already, in place of a training.
    #[arg(long, value_name = "FILE", requires = "model")]
    pub lora: Option<PathBuf>,
    /// With `--model`: the side of pictures in pixels. Default: the model's own.
    #[arg(long, value_name = "PIXELS", requires = "model", value_parser = size_of_pictures)]
    pub size: Option<usize>,
}

/// A size that every model takes.
fn size_of_pictures(text: &str) -> Result<usize, String> {
    let size: usize = text
        .parse()
        .map_err(|_| "expected a number of pixels".to_owned())?;
    match (64..=4096).contains(&size) && size.is_multiple_of(64) {
        true => Ok(size),
        false => Err("expected a multiple of 64 from 64 to 4096".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_of_all_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_that_draw_share_their_options() {
        let mut program = Cli::command();
        program.build();
        let has = |command: &str, option: &str| {
            let command = program.find_subcommand(command).unwrap();
            let mut options = command.get_arguments().filter_map(clap::Arg::get_long);
            options.any(|one| one == option)
        };
        for option in [
            "locked",
            "preview",
            "keep-going",
            "exists",
            "quiet",
            "models",
            "offline",
        ] {
            for command in ["run", "sweep", "watch"] {
                assert!(has(command, option), "{command} --{option}");
            }
            #[cfg(feature = "view")]
            assert!(has("view", option), "view --{option}");
        }
        for option in ["on", "store", "cells", "remote-cache"] {
            assert!(has("sweep", option), "{option}");
        }
        for command in ["check", "plan", "graph", "fetch"] {
            assert!(has(command, "locked"), "{command}");
        }
        // The old word is another for `inspect`.
        assert!(program.find_subcommand("show").is_some());
        assert!(program.find_subcommand("bench").is_none());
    }
}
