//! The arguments of `retouch-dev`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use retouch_cli::args::{DeviceArgs, PrecisionName};

/// What people who work on Retouch measure and test it with.
#[derive(Debug, Parser)]
#[command(name = "retouch-dev", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure on this machine: the demo model, the main workflow and the engine; a model's networks; or the kernels.
    Bench(BenchArgs),
    /// Make a model of random weights in the real size of a family: for measuring and for tests, what it draws is noise.
    MakeRandom(MakeRandomArgs),
}

/// `retouch-dev make-random`.
#[derive(Args, Debug)]
pub struct MakeRandomArgs {
    /// The family.
    #[arg(value_enum)]
    pub family: FamilyName,
    /// The folder to create; it must not exist, or be empty.
    pub folder: PathBuf,
    /// The seed of the weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The type of the numbers.
    #[arg(long, value_enum, default_value_t = PrecisionName::F16)]
    pub dtype: PrecisionName,
}

/// The families that random models are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FamilyName {
    /// Stable Diffusion 1.5 (2 GB in float16).
    Sd15,
    /// Stable Diffusion 2.1 (2.4 GB).
    Sd21,
    /// Stable Diffusion XL, base (7 GB).
    Sdxl,
    /// The structure of Stable Diffusion 1.5, a few megabytes.
    Tiny,
}

/// `retouch-dev bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Measure the networks of this model, a folder or a file as `load_model` takes, instead of the demo model and the engine.
    #[arg(long, value_name = "MODEL", conflicts_with = "kernels")]
    pub model: Option<PathBuf>,
    /// The parts of the model that are measured.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "unet,vae,vae-encode,text,scaling",
        requires = "model"
    )]
    pub parts: Vec<BenchPart>,
    /// The side of the model's pictures in pixels. Default: what the model was made for.
    #[arg(long, value_name = "PIXELS", requires = "model", value_parser = clap::value_parser!(u16).range(8..=8192))]
    pub size: Option<u16>,
    /// Hold the VAE too in the type of `--dtype`, as `half_vae: true` of `load_model` does.
    #[arg(long, requires = "model")]
    pub half_vae: bool,
    /// Rows of the U-Net call; of an even number one half is guided by the empty prompt.
    #[arg(long, value_name = "ROWS", default_value_t = 2, requires = "model", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub batch: u16,
    /// Measure steps of a training of the model instead, all on one batch of `--batch` rows.
    #[arg(long, value_enum, value_name = "METHOD", requires = "model")]
    pub train: Option<TrainMethod>,
    /// The rank of a LoRA that is trained.
    #[arg(long, default_value_t = 4, requires = "train", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub rank: u16,
    /// Compute inner results of the U-Net's blocks again in place of keeping them.
    #[arg(long, requires = "train")]
    pub checkpointing: bool,
    /// Write what the measured parts were given and gave to this file, for comparison with other programs.
    #[arg(long, value_name = "FILE.safetensors", requires = "model")]
    pub dump: Option<PathBuf>,
    /// Measure the kernels instead, on the shapes of Stable Diffusion 1.5: GFLOP/s, and the share of what a large product reaches.
    #[arg(long)]
    pub kernels: bool,
    /// Measure the main workflow alone, in a process that has its models loaded and knows nothing else of it.
    #[arg(long, conflicts_with_all = ["model", "kernels"])]
    pub workflow: bool,
    /// Measure the viewer instead: a frame of a graph of 500 nodes, and what a sampler loses while its window is drawn.
    #[cfg(feature = "view")]
    #[arg(long, conflicts_with_all = ["model", "kernels", "workflow"])]
    pub view: bool,
    /// How often each thing is measured; the median is printed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub runs: u16,
    /// The program whose start is measured. Default: `retouch` beside this one.
    #[arg(long, value_name = "FILE")]
    pub retouch: Option<PathBuf>,
    /// Where and how to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A method of training that `retouch-dev bench --train` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrainMethod {
    /// All weights of the U-Net.
    Dreambooth,
    /// Low-rank factors beside the projections of its attentions.
    Lora,
}

/// A part of a model that `retouch-dev bench --model` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPart {
    /// One call of the U-Net.
    Unet,
    /// The decoding of one latent.
    Vae,
    /// The encoding of one picture.
    VaeEncode,
    /// The encoding of one prompt by every text encoder.
    Text,
    /// The U-Net call by one thread and by all.
    Scaling,
}
