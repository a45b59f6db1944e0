//! What commands that load workflows share: an engine on a device, params, faults printed.

use std::sync::Arc;

use retouch_graph::problem::{Problem, Severity};
use retouch_graph::{Checked, DiskFiles, Engine, NodeError, Problems, Settings};
use retouch_nodes::Runtime;

use crate::args::{DeviceArgs, ParamArgs};
use crate::store::Store;
use crate::{Exit, Failure, report};

fn runtime(device: &str) -> Result<Runtime, Failure> {
    Runtime::by_name(device).map_err(|e| match e {
        NodeError::Failed {
            message,
            help: Some(help),
        } => Failure::usage(message).help(help),
        other => Failure::usage(other.to_string()),
    })
}

/// An engine with all ops on the device.
///
/// # Errors
/// When the device cannot be used.
pub fn engine(device: &str) -> Result<Engine, Failure> {
    Ok(engine_on(Arc::new(runtime(device)?)))
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
    // One runtime for both: what the cache moves to the device must be on the very one that computes.
    let runtime = Arc::new(runtime(device)?);
    let engine = engine_on(Arc::clone(&runtime));
    let digests = store.file("digests.json");
    Ok(engine
        .with_cache(store.cache(runtime))
        .with_sources(store.sources)
        .with_files(Arc::new(DiskFiles::with_memo(digests))))
}

/// Sets the number of threads that compute.
///
/// # Errors
/// When they cannot be started.
pub fn threads(args: &DeviceArgs) -> Result<(), Failure> {
    if let Some(threads) = args.threads {
        // Fails only when the pool is there already, and nothing has used it yet.
        rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(threads))
            .build_global()
            .map_err(|e| Failure::failed(format!("{threads} threads cannot be started: {e}")))?;
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

/// A fault as the JSON line that programs read.
#[must_use]
pub fn fault_as_json(problem: &Problem) -> serde_json::Value {
    let (line, column) = problem.line_column();
    serde_json::json!({
        "event": "fault",
        "code": problem.code().as_str(),
        "severity": if problem.severity() == Severity::Warning { "warning" } else { "error" },
        "file": problem.source_text().name(),
        "line": line,
        "column": column,
        "message": problem.message(),
        "help": problem.hint(),
    })
}

/// Prints what is odd but no fault.
pub fn warn(checked: &Checked) {
    warn_all(&checked.warnings);
}

/// Prints warnings.
pub fn warn_all(warnings: &[Problem]) {
    let warnings = warnings
        .iter()
        .filter(|problem| problem.severity() == Severity::Warning);
    crate::output::tell(report::render(warnings, report::colour()).trim_end_matches('\n'));
}

/// Prints faults.
#[must_use]
pub fn faults(problems: &Problems) -> Exit {
    report::print_problems(problems);
    Exit::Faults
}
