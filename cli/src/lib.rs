//! The command line of Retouch: `retouch` is [`main`] alone.

mod arena;
pub mod args;
mod bundle;
mod clock;
pub mod commands;
mod compare;
mod config;
mod far;
mod hub;
mod journal;
mod lines;
mod preview;
mod progress;
mod provenance;
mod records;
pub mod report;
mod runs;
mod scores;
pub mod session;
mod sharing;
mod signals;
mod store;
mod table;

use std::borrow::Cow;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use arena::ARENA;
use args::{Cli, Command, SchemaOf, SweepCli, SweepCommand};
use lines::Line;
use retouch_common::{
    Exit, Failure, duration, exit, fresh_draw, output, parse_size, safe, total, watching,
};
use retouch_graph::{Code, interrupt};
use retouch_kernels::Arena;

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
        Command::Watch(args) if args.view => commands::view::watch(&args.follow),
        Command::Watch(args) => commands::watch::watch(&args.follow, None),
        #[cfg(feature = "view")]
        Command::View(args) => commands::view::view(&args),
        Command::Sweep(args) => sweep(&args),
        Command::Worker(args) => far::worker::worker(&args),
        Command::Config { json } => commands::config::config(json),
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
        Command::Extract(args) => commands::recipe::extract(&args),
        Command::Replay(args) => commands::recipe::replay(&args),
        Command::Diff(args) => commands::recipe::diff(&args),
        Command::New(args) => commands::new::new(&args),
        Command::Runs(args) => commands::runs::runs(&args),
        Command::Verify(args) => commands::verify::verify(&args),
        Command::Inspect(args) => commands::inspect::inspect(&args),
        Command::Convert(args) => commands::convert::convert(&args),
        Command::Cache(args) => commands::cache::cache(&args),
        Command::Lsp { stdio: _ } => commands::lsp::lsp(),
        Command::Man { folder } => commands::man::man(folder.as_deref()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "retouch", &mut script);
            output::say_raw(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Done)
        }
    }
}

/// A sweep in this process or by workers, or what is asked of a run that workers share.
fn sweep(cli: &SweepCli) -> Result<Exit, Failure> {
    match cli {
        SweepCli::Run(command) => match &**command {
            SweepCommand::Status(args) => far::status::status(args),
            SweepCommand::Logs(args) => far::status::logs(args),
            SweepCommand::Resume(args) => far::status::resume(args),
            SweepCommand::Cancel(args) => far::status::cancel(args),
            SweepCommand::Collect(args) => far::collect::collect(args),
        },
        SweepCli::File(args) => match args.far.on {
            Some(place) => far::submit::submit(args, place),
            None => commands::sweep::sweep(args),
        },
    }
}

/// Prints why the command ends; with `json` as an event too.
fn tell(failure: &Failure, json: bool) {
    if json {
        let line = Line::error(failure.code, &failure.message, failure.help.as_deref());
        // When it is not read, standard error and the exit code say the same.
        let _ = line.say();
    }
    // An interruption is not an error.
    let what = match failure.exit {
        Exit::Interrupted => "",
        _ => "error: ",
    };
    output::tell(&format!("{what}{}", failure.message));
    if let Some(help) = &failure.help {
        output::tell(&format!("  help: {help}"));
    }
}

/// Prints what clap has to say: a fault of the arguments, the help, the version.
#[allow(clippy::disallowed_methods)] // it is the one place that may
fn print_clap(error: &clap::Error) {
    // Arguments and the settings of the environment stand in it as they are.
    let settings = std::env::vars_os()
        .filter(|(name, _)| name.to_string_lossy().starts_with("RETOUCH_"))
        .map(|(_, value)| value);
    let clean = (std::env::args_os().chain(settings))
        .all(|text| matches!(safe::safe(&text.to_string_lossy()), Cow::Borrowed(_)));
    if clean {
        let _ = error.print();
        return;
    }
    // Without its colours, which could be those of an argument.
    let text = error.render().to_string();
    match error.use_stderr() {
        true => output::tell(text.trim_end()),
        false => drop(output::say(text.trim_end())),
    }
}

/// What the command line says. What is wrong with it is said as clap does, and to programs as a line.
#[must_use]
pub fn parse<C: Parser>() -> C {
    output::report_panics();
    C::try_parse().unwrap_or_else(|error| {
        if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
            let text = error.render().to_string();
            let first = text.split("\n\n").next().unwrap_or_default().trim();
            let message = first.strip_prefix("error: ").unwrap_or(first);
            let help = format!(
                "`{} COMMAND --help` lists what there is",
                C::command().get_name()
            );
            let _ = Line::error(Code::Usage, message, Some(&help)).say();
        }
        print_clap(&error);
        std::process::exit(error.exit_code())
    })
}

/// Runs a command, and says how the program ends with it; `json`: to programs too.
pub fn finish(json: bool, command: impl FnOnce() -> Result<Exit, Failure>) -> ExitCode {
    log();
    #[cfg(target_os = "linux")]
    retouch_kernels::exit_when_refused(Exit::OutOfMemory as i32, |each| {
        retouch_graph::each_running(each);
    });
    let done = command().and_then(|exit| match output::lost() {
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

/// `retouch`: reads its arguments, runs the command, and says how it ended.
#[must_use]
pub fn main(arena: &'static Arena) -> ExitCode {
    let _ = ARENA.set(arena); // a process begins once
    let cli: Cli = parse();
    finish(cli.command.json(), || run(cli))
}
