//! The command line of Retouch: the only crate that prints, exits and reads the environment.

mod args;
mod bundle;
mod commands;
mod journal;
mod lsp;
mod output;
mod preview;
mod progress;
mod provenance;
mod records;
mod report;
mod session;
mod sharing;
mod store;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};

/// How the program ends; documented in `--help` and the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All was done.
    Done = 0,
    /// A node failed, or a file could not be read or written.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// The workflow has faults.
    Faults = 3,
    /// Ctrl-C.
    Interrupted = 130,
}

/// Why a command did not do what it was asked, with what to do about it.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    help: Option<String>,
}

impl Failure {
    /// Something failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            message: message.into(),
            help: None,
        }
    }

    /// The arguments make no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::failed(message)
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

fn log() {
    use tracing_subscriber::EnvFilter;
    if let Ok(filter) = EnvFilter::try_from_env("RETOUCH_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Watch(args) => commands::watch::watch(&args),
        Command::Sweep(args) => commands::sweep::sweep(&args),
        Command::Check(args) => commands::check::check(&args),
        Command::Plan(args) => commands::plan::plan(&args),
        Command::Fmt(args) => commands::fmt::fmt(&args),
        Command::Nodes(args) => commands::nodes::nodes(&args),
        Command::Schema => {
            let schema = retouch_nodes::registry().json_schema();
            let text = serde_json::to_string_pretty(&schema)
                .map_err(|e| Failure::failed(e.to_string()))?;
            output::say(&text)?;
            Ok(Exit::Done)
        }
        Command::Graph(args) => commands::graph::graph(&args),
        Command::Explain(args) => commands::explain::explain(&args),
        Command::Lock(args) => commands::lock::lock(&args),
        Command::Bundle(args) => commands::bundle::bundle(&args),
        Command::Unbundle(args) => commands::bundle::unbundle(&args),
        Command::Show(args) => commands::recipe::show(&args),
        Command::Extract(args) => commands::recipe::extract(&args),
        Command::Replay(args) => commands::recipe::replay(&args),
        Command::Diff(args) => commands::recipe::diff(&args),
        Command::New(args) => commands::new::new(&args),
        Command::Cache(args) => commands::cache::cache(&args),
        Command::Bench(args) => commands::bench::bench(&args),
        Command::Lsp { stdio: _ } => commands::lsp::lsp(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "retouch", &mut script);
            output::say(String::from_utf8_lossy(&script).trim_end())?;
            Ok(Exit::Done)
        }
    }
}

fn main() -> ExitCode {
    log();
    let exit = run(Cli::parse()).unwrap_or_else(|failure| {
        output::tell(&format!("error: {}", failure.message));
        if let Some(help) = failure.help {
            output::tell(&format!("  help: {help}"));
        }
        failure.exit
    });
    ExitCode::from(exit as u8)
}
