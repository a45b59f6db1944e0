//! What commands that load workflows share: an engine on a device, params, faults printed.

use std::path::Path;
use std::sync::Arc;

use retouch_graph::problem::{Problem, Severity};
use retouch_graph::{Checked, Engine, NodeError, Problems, Settings};
use retouch_nodes::Runtime;

use crate::args::{DeviceArgs, ParamArgs};
use crate::{Exit, Failure, report};

/// An engine with all ops on the device.
///
/// # Errors
/// When the device cannot be used.
pub fn engine(device: &str) -> Result<Engine, Failure> {
    let runtime = Runtime::by_name(device).map_err(|e| match e {
        NodeError::Failed {
            message,
            help: Some(help),
        } => Failure::usage(message).help(help),
        other => Failure::usage(other.to_string()),
    })?;
    let numerics = runtime.numerics();
    Ok(Engine::new(retouch_nodes::registry())
        .with_environment(Arc::new(runtime))
        .with_numerics(numerics))
}

/// Sets the number of threads and makes the engine.
///
/// # Errors
/// When the device cannot be used.
pub fn computing_engine(args: &DeviceArgs) -> Result<Engine, Failure> {
    if let Some(threads) = args.threads {
        // Fails only when the pool is there already, and nothing has used it yet.
        rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(threads))
            .build_global()
            .map_err(|e| Failure::failed(format!("{threads} threads cannot be started: {e}")))?;
    }
    engine(&args.device)
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

/// Loads and checks a workflow; prints its warnings, or its faults.
///
/// # Errors
/// The exit code for a workflow with faults.
pub fn load(engine: &Engine, file: &Path, settings: &Settings) -> Result<Checked, Exit> {
    let checked = engine
        .load(file, settings)
        .map_err(|problems| faults(&problems))?;
    warn(&checked);
    Ok(checked)
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
#[allow(clippy::print_stderr)] // this is a place that prints
pub fn warn(checked: &Checked) {
    let warnings = checked
        .warnings
        .iter()
        .filter(|problem| problem.severity() == Severity::Warning);
    eprint!("{}", report::render(warnings, report::colour()));
}

/// Prints faults.
#[must_use]
pub fn faults(problems: &Problems) -> Exit {
    report::print_problems(problems);
    Exit::Faults
}
