//! `retouch plan`.

use retouch_graph::plan::Status;
use serde_json::json;

use crate::args::PlanArgs;
use crate::output::say;
use crate::{Exit, Failure, session};

/// Says what a run would do.
///
/// # Errors
/// When the device cannot be used or standard output is closed.
pub fn plan(args: &PlanArgs) -> Result<Exit, Failure> {
    let engine = session::engine(&args.device)?;
    let checked = match session::load(&engine, &args.file, &session::settings(&args.params)) {
        Ok(checked) => checked,
        Err(exit) => return Ok(exit),
    };
    let plan = match engine.plan(&checked, &args.targets) {
        Ok(plan) => plan,
        Err(problems) => return Ok(session::faults(&problems)),
    };
    let statuses = plan.statuses(engine.cache().as_ref());
    let rows: Vec<_> = plan.tasks().zip(&statuses).collect();
    if args.json {
        let tasks: Vec<_> = rows
            .iter()
            .map(|(task, status)| {
                json!({
                    "nodes": task.names(), "op": task.op(), "key": task.key().to_string(),
                    "runs": matches!(status, Status::Run(_)), "why": status.to_string(),
                })
            })
            .collect();
        let outputs: Vec<_> = plan
            .outputs()
            .iter()
            .map(|output| json!({"output": output.name, "save": output.save}))
            .collect();
        let text = serde_json::to_string_pretty(&json!({
            "workflow": plan.workflow(), "params": plan.params(), "tasks": tasks, "outputs": outputs,
        }))
        .map_err(|e| Failure::failed(e.to_string()))?;
        say(&text)?;
        return Ok(Exit::Done);
    }
    let names: Vec<String> = rows
        .iter()
        .map(|(task, _)| task.names().join(" = "))
        .collect();
    let name_width = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    let op_width = rows
        .iter()
        .map(|(task, _)| task.op().len())
        .max()
        .unwrap_or(0);
    for ((task, status), name) in rows.iter().zip(&names) {
        say(&format!(
            "{name:name_width$}  {:op_width$}  {}  {status}",
            task.op(),
            task.key().short()
        ))?;
    }
    for output in plan.outputs() {
        let save = output.save.as_deref().unwrap_or("(not saved)");
        say(&format!("output {} -> {save}", output.name))?;
    }
    let runs = statuses
        .iter()
        .filter(|s| matches!(s, Status::Run(_)))
        .count();
    say(&format!("{runs} of {} nodes would run", rows.len()))?;
    Ok(Exit::Done)
}
