//! What commands that load workflows share: an engine on a device, params, faults printed.

use std::sync::Arc;

use retouch_graph::cache::Cache;
use retouch_graph::problem::{Code, Problem, Severity};
use retouch_graph::{Checked, Engine, Environment, NodeError, Problems, Settings};
use retouch_nodes::Runtime;

use crate::args::{DeviceArgs, ParamArgs};
use crate::lines::Line;
use crate::store::Store;
use crate::{Exit, Failure, report};

fn runtime(device: &str) -> Result<Runtime, Failure> {
    Runtime::by_name(device)
        .map_err(|e| match e {
            NodeError::Failed {
                message,
                help: Some(help),
            } => Failure::usage(message).help(help),
            other => Failure::usage(other.to_string()),
        })
        .map_err(|failure| failure.code(Code::DeviceUnusable))
}

/// An engine with all ops on the device.
///
/// # Errors
/// When the device cannot be used.
pub fn engine(device: &str) -> Result<Engine, Failure> {
    Ok(engine_on(Arc::new(runtime(device)?)))
}

/// An engine with all ops as the command line says where and how to compute, which keeps nothing.
///
/// # Errors
/// When the device cannot be used.
pub fn engine_for(args: &DeviceArgs) -> Result<Engine, Failure> {
    Ok(engine_on(Arc::new(runtime_for(args)?)))
}

/// The runtime as the command line says where and how to compute.
///
/// # Errors
/// When the device cannot be used.
pub fn runtime_for(args: &DeviceArgs) -> Result<Runtime, Failure> {
    Ok(runtime(&args.numerics.spec())?.with_memory(args.memory, args.offload))
}

/// An engine with all ops on the device that keeps values where `cache` says, given the device, and reads every file anew.
///
/// # Errors
/// When the device cannot be used.
pub fn engine_over(
    device: &str,
    sources: u64,
    cache: impl FnOnce(Environment) -> Arc<dyn Cache>,
) -> Result<Engine, Failure> {
    let runtime = Arc::new(runtime(device)?);
    let engine = engine_on(Arc::clone(&runtime));
    Ok(engine.with_cache(cache(runtime)).with_sources(sources))
}

fn engine_on(runtime: Arc<Runtime>) -> Engine {
    let numerics = runtime.numerics();
    Engine::new(retouch_nodes::registry())
        .with_environment(runtime)
        .with_numerics(numerics)
}

/// An engine with all ops on the device, over the cache of this user.
///
/// # Errors
/// When the device cannot be used.
pub fn caching_engine(device: &str, store: &Store) -> Result<Engine, Failure> {
    Ok(caching_engine_on(runtime(device)?, store))
}

/// An engine with all ops as the command line says where and how to compute, over the cache of this user.
///
/// # Errors
/// When the device cannot be used.
pub fn caching_engine_for(args: &DeviceArgs, store: &Store) -> Result<Engine, Failure> {
    Ok(caching_engine_on(runtime_for(args)?, store))
}

/// An engine with all ops as the command line says where and how to compute, which computes everything: nothing is read
/// from the disk cache or written to it. Known digests of files are used.
///
/// # Errors
/// When the device cannot be used.
pub fn drawing_engine_for(args: &DeviceArgs, store: &Store) -> Result<Engine, Failure> {
    let engine = caching_engine_on(runtime_for(args)?, &store.without_disk());
    Ok(engine.with_files(store.files()))
}

fn caching_engine_on(runtime: Runtime, store: &Store) -> Engine {
    // One runtime for both: what the cache moves to the device must be on the very one that computes.
    let runtime = Arc::new(runtime);
    let engine = engine_on(Arc::clone(&runtime));
    engine
        .with_cache(store.whole_cache(runtime))
        .with_sources(store.sources)
        .with_files(store.files())
}

/// Sets the number of threads that compute.
///
/// # Errors
/// When they cannot be started.
pub fn threads(threads: Option<u16>) -> Result<(), Failure> {
    if let Some(threads) = threads {
        // Fails only when the pool is there already, and nothing has used it yet.
        rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(threads))
            .build_global()
            .map_err(|e| {
                Failure::failed(format!("{threads} threads cannot be started: {e}"))
                    .code(Code::SystemRefused)
            })?;
    }
    Ok(())
}

/// The params as the engine takes them.
#[must_use]
pub fn settings(params: &ParamArgs) -> Settings {
    Settings {
        set: params.set.clone(),
        params: params.params.iter().cloned().collect(),
        ..Settings::default()
    }
}

/// Prints what is odd but no fault.
///
/// # Errors
/// When standard output is closed.
pub fn warn(checked: &Checked, json: bool) -> Result<(), Failure> {
    warn_all(&checked.warnings, json)
}

/// Prints warnings: for people on standard error, as JSON lines on standard output.
///
/// # Errors
/// When standard output is closed.
pub fn warn_all(warnings: &[Problem], json: bool) -> Result<(), Failure> {
    let mut warnings = warnings
        .iter()
        .filter(|problem| problem.severity() == Severity::Warning);
    if json {
        return warnings.try_for_each(|problem| Line::fault(problem).say());
    }
    tell_problems(warnings);
    Ok(())
}

/// Prints faults as JSON lines.
///
/// # Errors
/// When standard output is closed.
pub fn say_faults<'a>(problems: impl IntoIterator<Item = &'a Problem>) -> Result<(), Failure> {
    (problems.into_iter()).try_for_each(|problem| Line::fault(problem).say())
}

/// Prints problems for people.
pub fn tell_problems<'a>(problems: impl IntoIterator<Item = &'a Problem>) {
    crate::output::tell_styled(&report::render(problems, crate::output::colour()));
}

/// Prints faults and how many there are, and says how the command ends with them.
#[must_use]
pub fn faults(problems: &Problems) -> Exit {
    tell_problems(problems.iter());
    let faults = (problems.iter()).filter(|problem| problem.severity() != Severity::Warning);
    crate::output::tell(&report::tally(faults.count()));
    Exit::of(problems)
}
