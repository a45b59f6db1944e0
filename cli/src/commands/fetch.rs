//! `retouch fetch`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use retouch_graph::remote::{self, Address};
use retouch_graph::{Cancel, CheckedNode, Engine};

use crate::args::FetchArgs;
use crate::commands::run;
use crate::hub::{self, Mode};
use crate::output::{say, tell};
use crate::sharing::{Input, Stop};
use crate::store::{Store, size};
use crate::{Exit, Failure, session};

/// Fetches the models on hubs that workflows name, so that they run without a network later.
///
/// # Errors
/// When it is interrupted or standard output is closed.
pub fn fetch(args: &FetchArgs) -> Result<Exit, Failure> {
    if args.locked.sharing.offline {
        return Err(
            Failure::usage("`retouch fetch` cannot be used with `--offline`")
                .help("`retouch check --offline` says what is missing"),
        );
    }
    let store = Store::of(&args.cache)?;
    let engine = session::caching_engine("cpu", &store)?;
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    // The command itself is consent enough; the token is another matter.
    let mode =
        Mode::fetching(&cancel, args.json, args.telling.quiet).permitting(true, &args.token_for);
    let mut exit = Exit::Done;
    for file in &args.files {
        let (engine, mode) = (engine.clone(), mode.clone());
        let opened = Input::open_with(
            file,
            &args.locked.sharing,
            args.locked.locked,
            &store,
            engine,
            mode,
        );
        let (input, engine) = match opened {
            Ok(opened) => opened,
            Err(stop) => {
                exit = exit.max(stop.tell(args.json)?);
                continue;
            }
        };
        // To check a workflow is to read all of its models.
        let fetched = match load(&input, &engine, args) {
            Ok(fetched) => fetched,
            Err(_) if cancel.is_cancelled() => return Err(hub::interrupted()),
            Err(stop) => {
                exit = exit.max(stop.tell(args.json)?);
                continue;
            }
        };
        engine.files().flush();
        if args.json {
            continue;
        }
        if fetched.is_empty() {
            tell(&format!("{}: names nothing on a hub", file.display()));
        }
        for (model, (files, bytes)) in &fetched {
            let s = if *files == 1 { "" } else { "s" };
            say(&format!("{model}  {files} file{s}, {}", size(*bytes)))?;
        }
    }
    Ok(exit)
}

/// The models on hubs that a workflow reads, with the commits, by how many files of what size.
fn load(
    input: &Input,
    engine: &Engine,
    args: &FetchArgs,
) -> Result<BTreeMap<String, (usize, u64)>, Stop> {
    let mut settings = input.settings(&args.params);
    settings.part = true;
    let sweep = engine.read(&input.file)?.sweep;
    let only = sweep.as_ref().is_some_and(|sweep| sweep.workflow.is_some());
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut note = |nodes: &[CheckedNode]| {
        let read = nodes.iter().flat_map(|node| node.reads());
        let there = read.map(|file| file.path.clone());
        paths.extend(there.filter(|path| remote::is_remote(path)));
    };
    if !only {
        note(&input.load(engine, &settings)?.nodes);
    }
    if sweep.is_some() {
        note(input.load_sweep(engine, &settings)?.nodes());
    }
    paths.sort();
    paths.dedup();
    let mut fetched: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for path in paths {
        let cannot = |error: std::io::Error| {
            Failure::unreadable(format!("{} cannot be read: {error}", path.display()))
        };
        let (_, bytes) = engine.files().read_head(&path, 0).map_err(cannot)?;
        let Ok(address) = Address::parse(&path) else {
            continue;
        };
        let commit = engine.files().commit(&path);
        let commit = commit.unwrap_or_else(|| address.wanted().to_owned());
        let whole = Address {
            file: String::new(),
            ..address
        };
        let model = whole.at(&commit).display().to_string();
        let entry = fetched.entry(model).or_default();
        entry.0 += 1;
        entry.1 += bytes;
    }
    Ok(fetched)
}
