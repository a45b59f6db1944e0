//! `retouch man`.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;
use retouch_graph::write::{self, Access};

use crate::args::Cli;
use crate::output::{say, say_raw};
use crate::{Exit, Failure};

/// Prints the page of the program, or writes that and one for each command to a folder.
///
/// # Errors
/// When a page cannot be written or standard output is closed.
pub fn man(folder: Option<&Path>) -> Result<Exit, Failure> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let Some(folder) = folder else {
        say_raw(&page(&Man::new(program))?)?;
        return Ok(Exit::Done);
    };
    let cannot = |path: &Path, e: std::io::Error| {
        Failure::unwritable(format!("{} cannot be written: {e}", path.display()))
    };
    fs::create_dir_all(folder).map_err(|e| cannot(folder, e))?;
    let mut open = vec![program];
    while let Some(command) = open.pop() {
        open.extend(command.get_subcommands().cloned());
        let man = Man::new(command);
        let path = folder.join(man.get_filename());
        write::replace(&path, page(&man)?.as_bytes(), Access::Usual)
            .map_err(|e| cannot(&path, e))?;
        say(&path.display().to_string())?;
    }
    Ok(Exit::Done)
}

/// A manual page in roff.
fn page(man: &Man) -> Result<String, Failure> {
    let mut text = Vec::new();
    man.render(&mut text)
        .map_err(|e| Failure::failed(e.to_string()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
