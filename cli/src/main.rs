//! `retouch`. Everything is in the library, the allocator too.

use std::process::ExitCode;

fn main() -> ExitCode {
    retouch_cli::main()
}
