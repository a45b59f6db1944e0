//! The arguments that several commands share, each in one place.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use retouch_graph::remote::Address;
use serde::{Deserialize, Serialize};

/// What sets a workflow's params.
#[derive(Args, Clone, Debug, Default)]
pub struct ParamArgs {
    /// Sets a param: `--set seed=7 --set place="in space"`.
    #[arg(long = "set", value_name = "PARAM=VALUE")]
    pub set: Vec<String>,
    /// Sets params from a YAML file of `param: value` lines; `--set` wins over it.
    #[arg(long, value_name = "FILE")]
    pub params: Option<PathBuf>,
}

/// What results depend on beside the workflow: it is part of every key.
#[derive(Args, Clone, Debug)]
pub struct NumericsArgs {
    /// The device: `cpu`, `cuda`, `cuda:1` or `metal` (the last three when built with that feature). With several,
    /// `cuda:0,cuda:1`, independent nodes and cells run side by side, one on each device. `cpu:cpu2` draws the same digits on
    /// every processor with AVX2 or NEON; `cpu` is the fastest.
    #[arg(long, value_name = "DEVICE", env = "RETOUCH_DEVICE", default_value_t = crate::config::device(), visible_alias = "devices")]
    pub device: String,
    /// The type of the weights in memory: `f16` and `bf16` halve it and change the last digits of results.
    #[arg(long, value_name = "TYPE", env = "RETOUCH_DTYPE", default_value_t = crate::config::dtype(), value_parser = ["f32", "f16", "bf16"])]
    pub dtype: String,
}

impl NumericsArgs {
    /// Both in one word, of the first device: `cpu`, `cuda:1/bf16`. All devices of a run give the same results.
    #[must_use]
    pub fn spec(&self) -> String {
        self.specs().swap_remove(0)
    }

    /// Both in one word, of each device.
    #[must_use]
    pub fn specs(&self) -> Vec<String> {
        let each = self.device.split(',').map(str::trim);
        each.map(|device| match self.dtype.as_str() {
            "f32" => device.to_owned(),
            dtype => format!("{device}/{dtype}"),
        })
        .collect()
    }
}

/// Where and how to compute.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// What results depend on.
    #[command(flatten)]
    pub numerics: NumericsArgs,
    /// Memory limit for weights. Default: what the machine has free.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse_size)]
    pub memory: Option<u64>,
    /// Unloads each part of a model after use: less memory, more loading.
    #[arg(long)]
    pub offload: bool,
    /// Number of compute threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Where models are looked for.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelsArgs {
    /// A folder to search for models that are not at their paths, before those of RETOUCH_MODELS.
    #[arg(long, value_name = "DIR", help_heading = "Sharing")]
    pub models: Vec<PathBuf>,
}

/// Where a workflow, its models and assets come from.
#[derive(Args, Clone, Debug, Default)]
pub struct SharingArgs {
    /// Where its models are.
    #[command(flatten)]
    pub place: ModelsArgs,
    /// Download nothing from hubs; models under `hf://` are read from the hub cache only. Same as HF_HUB_OFFLINE=1.
    #[arg(long, help_heading = "Sharing")]
    pub offline: bool,
    /// Largest unpacked size of a bundle. Default: 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse_size, help_heading = "Sharing")]
    pub max_unpacked: Option<u64>,
}

/// What is fetched for a bundle or a picture, which a third party may have made.
#[derive(Args, Clone, Debug, Default)]
pub struct FetchingArgs {
    /// Download the models on hubs that a bundle or a picture names, without asking and without your token.
    #[arg(long, conflicts_with = "offline", help_heading = "Sharing")]
    pub fetch: bool,
    /// Download this repository even if a bundle or a picture names it, and send your token for it.
    #[arg(
        long,
        value_name = "OWNER/NAME",
        value_parser = repository,
        conflicts_with = "offline",
        help_heading = "Sharing"
    )]
    pub token_for: Vec<String>,
}

/// A repository of a hub: `owner/name`, or its path `hf://owner/name`.
pub(super) fn repository(text: &str) -> Result<String, String> {
    let path = match text.strip_prefix("hf://") {
        Some(_) => text.to_owned(),
        None => format!("hf://{text}"),
    };
    let address = Address::parse(Path::new(&path))?;
    if address.revision.is_some() || !address.file.is_empty() {
        return Err("expected only a repository, `owner/name`".to_owned());
    }
    Ok(address.repo())
}

/// What of a lock is demanded.
#[derive(Args, Clone, Debug, Default)]
pub struct LockedArgs {
    /// Fail if anything read differs from the lock file beside the workflow, or if there is no lock file.
    #[arg(long, help_heading = "Sharing")]
    pub locked: bool,
    /// Where it comes from.
    #[command(flatten)]
    pub sharing: SharingArgs,
}

/// What is kept between steps, runs and processes, and how much of it.
#[derive(Args, Clone, Debug, Default)]
pub struct CacheArgs {
    /// The folder of the disk cache. Default: `retouch` in the platform's cache folder.
    #[arg(
        long,
        value_name = "DIR",
        env = "RETOUCH_CACHE",
        global = true,
        help_heading = "Cache"
    )]
    pub cache_dir: Option<PathBuf>,
    /// Do not read or write the disk cache.
    #[arg(long, global = true, help_heading = "Cache", env = "RETOUCH_NO_CACHE", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_cache: bool,
    /// Size limit of the disk cache. Default: 10GiB; 0 disables it.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse_size, global = true, help_heading = "Cache")]
    pub disk_cache: Option<u64>,
    /// Memory limit of the cache. Default: 2GiB.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse_size, global = true, help_heading = "Cache")]
    pub ram_cache: Option<u64>,
    /// GPU memory limit of the cache. Default: 2GiB.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse_size, global = true, help_heading = "Cache")]
    pub device_cache: Option<u64>,
    /// Size limit of the attention keys and values that a run keeps for later ones. Default: 6GiB; 0: they are recomputed.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse_size, global = true, help_heading = "Cache")]
    pub source_store: Option<u64>,
    /// A store that several machines share as the level below the disk cache: a folder, `s3://bucket/folder`, `gs://...` or
    /// `az://...`.
    #[arg(
        long,
        value_name = "PLACE",
        env = "RETOUCH_REMOTE_CACHE",
        global = true,
        help_heading = "Cache"
    )]
    pub remote_cache: Option<String>,
    /// Only read the remote cache.
    #[arg(long, global = true, help_heading = "Cache")]
    pub remote_read_only: bool,
}

/// Whether, how often and how what is being drawn is shown.
#[derive(Args, Clone, Debug)]
pub struct PreviewArgs {
    /// Writes previews of the picture being drawn to this file, replaced atomically: `--preview preview.png`.
    #[arg(long, value_name = "FILE.png", help_heading = "Preview")]
    pub preview: Option<PathBuf>,
    /// Steps between previews; the last step is always shown.
    #[arg(long, value_name = "N", default_value_t = 5, requires = "preview",
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Preview")]
    pub every: u32,
    /// How latents are decoded for previews.
    #[arg(long, value_enum, default_value_t = PreviewWith::Linear, requires = "preview", help_heading = "Preview")]
    pub preview_with: PreviewWith,
}

/// How a preview is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PreviewWith {
    /// With a linear map fitted to the VAE: blurred, at almost no cost.
    Linear,
    /// With the VAE: the same picture as `decode`, at the same cost.
    Vae,
}

/// How much is told beside the results.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct TellingArgs {
    /// Print nothing but results, warnings and errors.
    #[arg(long, short)]
    pub quiet: bool,
}

/// What to do with files that are there.
#[derive(Args, Clone, Copy, Debug)]
pub struct ExistsArgs {
    /// What to do when a file already exists with different content.
    #[arg(long, value_enum, default_value_t = ExistsArg::Number)]
    pub exists: ExistsArg,
}

/// What `run`, `sweep`, `watch` and `view` have in common.
#[derive(Args, Clone, Debug)]
pub struct DrawingArgs {
    /// What sets the workflow's params.
    #[command(flatten)]
    pub params: ParamArgs,
    /// The folder that outputs are saved below.
    #[arg(long, value_name = "DIR", env = "RETOUCH_OUT", default_value_os_t = crate::config::out())]
    pub out: PathBuf,
    /// What to do with files that are there.
    #[command(flatten)]
    pub existing: ExistsArgs,
    /// Keep running unaffected nodes when one fails, and report the failures at the end.
    #[arg(long)]
    pub keep_going: bool,
    /// Where and how to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether what is being drawn is shown.
    #[command(flatten)]
    pub preview: PreviewArgs,
    /// Where it comes from, and what of a lock is demanded.
    #[command(flatten)]
    pub locked: LockedArgs,
    /// What is kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// What pictures carry.
    #[command(flatten)]
    pub provenance: ProvenanceArgs,
    /// Print events as JSON lines on standard output.
    #[arg(long)]
    pub json: bool,
    /// How much is told.
    #[command(flatten)]
    pub telling: TellingArgs,
}

/// What to do when a file already exists with different content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExistsArg {
    /// Write under a numbered name: `42-2.png`.
    Number,
    /// Overwrite it.
    Replace,
    /// Keep the existing file.
    Keep,
    /// Fail.
    Fail,
}

/// What pictures carry.
#[derive(Args, Clone, Debug, Default)]
pub struct ProvenanceArgs {
    /// Do not embed the recipe in pictures (workflow, params, digests of inputs).
    #[arg(long, env = "RETOUCH_NO_PROVENANCE", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_provenance: bool,
}
