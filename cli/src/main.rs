//! The command line of Retouch: the only crate that prints, exits and reads the environment.

mod args;
mod bundle;
mod clock;
mod commands;
mod compare;
mod exit;
mod hub;
mod journal;
mod lines;
mod lsp;
mod output;
mod preview;
mod progress;
mod provenance;
mod records;
mod report;
mod runs;
mod safe;
mod session;
mod sharing;
mod signals;
mod store;
mod table;
#[cfg(feature = "view")]
mod view;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command, SchemaOf};
pub use exit::Exit;
use lines::Line;
use retouch_graph::{Code, RunError, interrupt};
use retouch_kernels::Arena;

/// The memory of tensors; it keeps at most this much that is free.
#[global_allocator]
static ARENA: Arena = Arena::new(512 << 20);

/// Why a command did not do what it was asked, with what to do about it.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    code: Code,
    message: String,
    help: Option<String>,
}

impl Failure {
    /// Something failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            code: Code::CommandFailed,
            message: message.into(),
            help: None,
        }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::failed(message).code(Code::Usage)
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Something cannot be read.
    pub fn unreadable(message: impl Into<String>) -> Self {
        Self::failed(message).code(Code::Unreadable)
    }

    /// A file that the command line names cannot be read: the argument is wrong.
    #[must_use]
    pub fn unreadable_argument(path: &Path, why: impl std::fmt::Display) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::unreadable(format!("{} cannot be read: {why}", path.display()))
                .help("check the path")
        }
    }

    /// Something cannot be written.
    pub fn unwritable(message: impl Into<String>) -> Self {
        Self::failed(message).code(Code::Unwritable)
    }

    /// Ctrl-C; `kept` says what of the work is not lost.
    #[must_use]
    pub fn interrupted(kept: &str) -> Self {
        Self {
            exit: Exit::Interrupted,
            ..Self::failed(format!("interrupted; {kept}")).code(Code::Interrupted)
        }
    }

    /// A run did not end well.
    #[must_use]
    pub fn of_run(error: &RunError) -> Self {
        Self {
            help: error.hint(),
            ..Self::failed(error.to_string()).code(error.code())
        }
    }

    /// Says more exactly what kind of failure it is.
    #[must_use]
    pub fn code(self, code: Code) -> Self {
        Self { code, ..self }
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
            .with_writer(|| output::Log)
            .with_ansi(output::colour())
            .init();
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    match cli.command {
        Command::Run(args) => commands::run::run(&args),
        #[cfg(feature = "view")]
        Command::Watch(args) if args.view => view::watch(&args.follow),
        Command::Watch(args) => commands::watch::watch(&args.follow, None),
        #[cfg(feature = "view")]
        Command::View(args) => view::view(&args),
        Command::Sweep(args) => commands::sweep::sweep(&args),
        Command::Check(args) => commands::check::check(&args),
        Command::Plan(args) => commands::plan::plan(&args),
        Command::Fmt(args) => commands::fmt::fmt(&args),
        Command::Nodes(args) => commands::nodes::nodes(&args),
        Command::Schema { of } => {
            let schema = match of {
                SchemaOf::Workflow => retouch_nodes::registry().json_schema(),
                SchemaOf::Events => lines::schema(),
            };
            let text = serde_json::to_string_pretty(&schema)
                .map_err(|e| Failure::failed(e.to_string()))?;
            output::say_json(&text)?;
            Ok(Exit::Done)
        }
        Command::Graph(args) => commands::graph::graph(&args),
        Command::Explain(args) => commands::explain::explain(&args),
        Command::Fetch(args) => commands::fetch::fetch(&args),
        Command::Lock(args) => commands::lock::lock(&args),
        Command::Bundle(args) => commands::bundle::bundle(&args),
        Command::Unbundle(args) => commands::bundle::unbundle(&args),
        Command::Show(args) => commands::recipe::show(&args),
        Command::Extract(args) => commands::recipe::extract(&args),
        Command::Replay(args) => commands::recipe::replay(&args),
        Command::Diff(args) => commands::recipe::diff(&args),
        Command::New(args) => commands::new::new(&args),
        Command::Runs(args) => commands::runs::runs(&args),
        Command::Verify(args) => commands::verify::verify(&args),
        Command::Inspect(args) => commands::inspect::inspect(&args),
        Command::Convert(args) => commands::convert::convert(&args),
        Command::MakeRandom(args) => commands::make_random::make_random(&args),
        Command::Cache(args) => commands::cache::cache(&args),
        Command::Bench(args) => commands::bench::bench(&args),
        Command::Lsp { stdio: _ } => commands::lsp::lsp(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "retouch", &mut script);
            output::say_raw(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Done)
        }
    }
}

/// Tells people why the command ends, and programs too if they listen.
fn tell(failure: &Failure, json: bool) {
    if json {
        let line = Line::error(failure.code, &failure.message, failure.help.as_deref());
        // When nobody reads it, standard error and the exit code say the same.
        let _ = line.say();
    }
    // An interruption is no error of anybody's.
    let what = match failure.exit {
        Exit::Interrupted => "",
        _ => "error: ",
    };
    output::tell(&format!("{what}{}", failure.message));
    if let Some(help) = &failure.help {
        output::tell(&format!("  help: {help}"));
    }
}

/// What the command line says. What is wrong with it is said as clap does, and to programs as a line.
fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
            let text = error.render().to_string();
            let first = text.split("\n\n").next().unwrap_or_default().trim();
            let message = first.strip_prefix("error: ").unwrap_or(first);
            let help = "`retouch COMMAND --help` lists what there is";
            let _ = Line::error(Code::Usage, message, Some(help)).say();
        }
        output::clap(&error);
        std::process::exit(error.exit_code())
    })
}

fn main() -> ExitCode {
    output::report_panics();
    log();
    #[cfg(target_os = "linux")]
    retouch_kernels::exit_when_refused(Exit::OutOfMemory as i32, |each| {
        retouch_graph::each_running(each);
    });
    let cli = parse();
    let json = cli.command.json();
    let done = run(cli).and_then(|exit| match output::lost() {
        Some(failure) if exit == Exit::Done => Err(failure),
        _ => Ok(exit),
    });
    let exit = done.unwrap_or_else(|failure| {
        // What could not be read because of Ctrl-C is not missing.
        let cut_short = interrupt::is_requested() && failure.exit != Exit::Interrupted;
        let failure = match cut_short {
            true => hub::interrupted(),
            false => failure,
        };
        tell(&failure, json);
        failure.exit
    });
    ExitCode::from(exit.number())
}
