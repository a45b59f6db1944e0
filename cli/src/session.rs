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

/// An engine with all ops as the command line says where and how to compute, on one device, which keeps nothing.
///
/// # Errors
/// When the device cannot be used.
pub fn engine_for(args: &DeviceArgs) -> Result<Engine, Failure> {
    Ok(engine_on(Arc::new(runtime_for(args)?)))
}

/// The runtime as the command line says where and how to compute, on one device.
///
/// # Errors
/// When the device cannot be used, or there are several.
pub fn runtime_for(args: &DeviceArgs) -> Result<Runtime, Failure> {
    match &*args.numerics.specs() {
        [one] => Ok(runtime(one)?.with_memory(args.memory, args.offload)),
        _ => Err(Failure::usage("this command computes on one device")
            .help("give one device")
            .code(Code::DeviceUnusable)),
    }
}

/// The runtime of each device that the command line names; a device that is named twice runs two nodes at a time.
///
/// # Errors
/// When a device cannot be used, or what they compute would differ.
fn runtimes_for(args: &DeviceArgs) -> Result<Vec<Arc<Runtime>>, Failure> {
    let refused = |what: String, help: &str| {
        let failure = Failure::usage(what).help(help);
        Err(failure.code(Code::DeviceUnusable))
    };
    let specs = args.numerics.specs();
    if args.offload && specs.len() > 1 {
        // The parts of a model on one device are not dropped while it may be used on another.
        return refused(
            "`--offload` goes with one device".to_owned(),
            "give one device, or leave out `--offload`",
        );
    }
    let mut runtimes: Vec<Arc<Runtime>> = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let same = specs.iter().position(|other| other == spec);
        let made = match same.filter(|same| *same < index) {
            Some(same) => Arc::clone(&runtimes[same]),
            None => Arc::new(runtime(spec)?.with_memory(args.memory, args.offload)),
        };
        let location = made.device.location();
        if let Some(first) = runtimes.first()
            && first.numerics() != made.numerics()
        {
            return refused(
                format!("{} and {spec} do not compute the same", specs[0]),
                "give devices of one kind",
            );
        }
        if let Some(other) = runtimes
            .iter()
            .position(|it| it.device.location() == location)
            && specs[other] != *spec
        {
            return refused(
                format!("{} and {spec} are the same device", specs[other]),
                "give each device its number: `cuda:0,cuda:1`",
            );
        }
        runtimes.push(made);
    }
    Ok(runtimes)
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
    engine_on_all(vec![runtime])
}

/// An engine on devices of the same numerics, at least one.
fn engine_on_all(runtimes: Vec<Arc<Runtime>>) -> Engine {
    let numerics = runtimes.first().map(|runtime| runtime.numerics());
    Engine::new(retouch_nodes::registry())
        .with_environments(runtimes.into_iter().map(|runtime| runtime as Environment))
        .with_numerics(numerics.unwrap_or_default())
}

/// An engine with all ops on the device, over the cache of this user.
///
/// # Errors
/// When the device cannot be used.
pub fn caching_engine(device: &str, store: &Store) -> Result<Engine, Failure> {
    Ok(caching_engine_on(vec![Arc::new(runtime(device)?)], store))
}

/// An engine with all ops as the command line says where and how to compute, over the cache of this user.
///
/// # Errors
/// When the device cannot be used.
pub fn caching_engine_for(args: &DeviceArgs, store: &Store) -> Result<Engine, Failure> {
    Ok(caching_engine_on(runtimes_for(args)?, store))
}

/// An engine with all ops as the command line says where and how to compute, which computes everything: nothing is read
/// from the disk cache or written to it. Known digests of files are used.
///
/// # Errors
/// When the device cannot be used.
pub fn drawing_engine_for(args: &DeviceArgs, store: &Store) -> Result<Engine, Failure> {
    let engine = caching_engine_on(runtimes_for(args)?, &store.without_disk());
    Ok(engine.with_files(store.files()))
}

fn caching_engine_on(runtimes: Vec<Arc<Runtime>>, store: &Store) -> Engine {
    // The same runtimes for both: what the cache moves to a device must be on the very one that computes.
    let environments = runtimes
        .iter()
        .map(|it| Arc::clone(it) as Environment)
        .collect();
    engine_on_all(runtimes)
        .with_cache(store.whole_cache(environments))
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
