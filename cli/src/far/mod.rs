//! Sweeps beyond one machine: a run is described in a store, workers claim chunks of its cells there, and whoever reads the store
//! collects what they made. docs/clusters.md has the layout of the store and the protocol.

pub mod collect;
pub mod cut;
mod launch;
mod profile;
pub mod remote;
pub mod run;
pub mod status;
pub mod submit;
pub mod worker;

use std::path::{Path, PathBuf};

use retouch_cluster::{Fault, Objects, Place, Store as Far};
use retouch_graph::Code;

use crate::args::StoreArgs;
use crate::{Failure, config};

/// The store below an output folder when none is named.
pub const FOLDER: &str = ".retouch-store";

/// Why a store did not do it, as the command ends with it.
pub fn failure(fault: &Fault) -> Failure {
    let failed = Failure::failed(fault.to_string());
    match fault {
        Fault::Refused(_) => failed
            .code(Code::StoreRefused)
            .help("credentials come from the environment and the service's own files: docs/clusters.md lists them"),
        Fault::Unreachable(_) => failed
            .code(Code::StoreUnreachable)
            .help("check the address and the network; what is in the store stays there, so the command can be given again"),
        Fault::Unusable(_) => failed
            .code(Code::StoreUnusable)
            .help("name another with `--store`"),
    }
}

/// The store that the arguments name, else the one below the output folder.
///
/// # Errors
/// When it cannot be opened.
pub fn store(args: &StoreArgs, out: &Path) -> Result<Far, Failure> {
    let named = match &args.store {
        Some(place) => Some(place.as_str()),
        None => config::get()?.store.as_deref(),
    };
    let place = match named {
        // What is no address may hold a password, so it is not repeated.
        Some(place) => {
            Place::parse(place).map_err(|why| Failure::usage(format!("`--store`: {why}")))?
        }
        None => Place::Folder(out.join(FOLDER)),
    };
    open(&absolute(place))
}

/// The output folder: the one that is named, else `RETOUCH_OUT`, else the configuration's.
fn out(named: Option<&Path>) -> PathBuf {
    let set = || std::env::var_os("RETOUCH_OUT").filter(|out| !out.is_empty());
    named
        .map(Path::to_owned)
        .or_else(|| set().map(PathBuf::from))
        .unwrap_or_else(config::out)
}

/// Opens a store.
///
/// # Errors
/// When it cannot be opened.
pub fn open(place: &Place) -> Result<Far, Failure> {
    Far::open(place).map_err(|fault| failure(&fault))
}

/// A folder as other processes find it too.
fn absolute(place: Place) -> Place {
    match place {
        Place::Folder(path) => Place::Folder(std::path::absolute(&path).unwrap_or(path)),
        bucket => bucket,
    }
}

/// The address of a store as other processes find it too. What is no address is told where it is used.
fn shared_place(text: &str) -> String {
    Place::parse(text).map_or_else(|_| text.to_owned(), |place| absolute(place).to_string())
}

/// An object that has to be there.
///
/// # Errors
/// When it is not, or the store does not give it.
fn needed(store: &dyn Objects, name: &str) -> Result<Vec<u8>, Failure> {
    let bytes = store.get(name).map_err(|fault| failure(&fault))?;
    bytes.ok_or_else(|| damaged(store, name, "it is missing"))
}

/// Something in the store is not what it should be.
fn damaged(store: &dyn Objects, name: &str, why: &str) -> Failure {
    Failure::failed(format!("`{name}` in the store {} cannot be used: {why}", store.shown()))
        .code(Code::StoreContent)
        .help("it is of another version of the program, or something else writes to this store; begin a new run")
}
