//! The model that a workflow loads.

use std::sync::Arc;

use retouch_common::Failure;
use retouch_graph::{Cancel, Checked, Engine, RunOptions, Silent, Value};
use retouch_nodes::payload::Model;

/// The model that the node `base` of a checked workflow gives.
///
/// # Errors
/// When it cannot be loaded.
pub(super) fn load_model(engine: &Engine, checked: &Checked) -> Result<Arc<Model>, Failure> {
    let plan = engine
        .plan(checked, &["base".to_owned()])
        .map_err(|problems| Failure::failed(problems.to_string()))?;
    let report = engine
        .run(&plan, &Silent, &Cancel::new(), &RunOptions::default())
        .map_err(|e| Failure::failed(e.to_string()))?;
    let value: Option<&Value> = report.outputs.first().map(|output| &output.value);
    value
        .and_then(Value::downcast::<Model>)
        .ok_or_else(|| Failure::failed("the model was not loaded"))
}
