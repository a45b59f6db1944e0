//! `retouch-dev`: measurements and models of random weights, for people who work on Retouch.

mod args;
mod bench;
mod make_random;

use std::process::ExitCode;

use args::{Cli, Command};
use retouch_kernels::Arena;

/// As in the product, so that what is measured is what it does.
#[global_allocator]
static ARENA: Arena = Arena::new(512 << 20);

fn main() -> ExitCode {
    let cli: Cli = retouch_cli::parse();
    let json = matches!(&cli.command, Command::Bench(args) if args.json);
    retouch_cli::finish(json, || match cli.command {
        Command::Bench(args) => bench::bench(&args),
        Command::MakeRandom(args) => make_random::make_random(&args),
    })
}
