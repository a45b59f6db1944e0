//! `retouch plan`.

use std::collections::BTreeSet;

use retouch_graph::{Engine, Reason, Status};
use serde_json::json;

use crate::args::PlanArgs;
use crate::commands::sweep;
use crate::journal;
use crate::output::{say, say_json};
use crate::safe::{NAME, VALUE, brief};
use crate::sharing::{Input, Stop};
use crate::store::{Store, size};
use crate::{Exit, Failure, duration, records, session};

/// The plan of a sweep in a file of its own: what `retouch sweep --dry-run` says.
fn of_sweep(
    args: &PlanArgs,
    store: &Store,
    engine: &Engine,
    input: &Input,
) -> Result<Exit, Failure> {
    let loaded = input
        .load_sweep(engine, &input.settings(&args.params))
        .and_then(|sweep| {
            let plan = engine.plan_sweep(&sweep, &args.targets, &BTreeSet::new())?;
            Ok((sweep, plan))
        });
    let (sweep, plan) = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => return Stop::from(problems).tell(args.json),
    };
    session::warn_all(sweep.warnings(), false)?;
    engine.files().flush();
    sweep::say_plan(args.json, engine, store, &sweep, &plan)
}

/// Says what a run would do, and what it would take.
///
/// # Errors
/// When the device cannot be used or standard output is closed.
pub fn plan(args: &PlanArgs) -> Result<Exit, Failure> {
    let store = Store::of(&args.cache)?;
    let engine = session::caching_engine(&args.numerics.spec(), &store)?;
    let (places, locked) = (&args.locked.sharing, args.locked.locked);
    let (input, engine) = match Input::open(&args.file, places, locked, &store, engine) {
        Ok(opened) => opened,
        Err(stop) => return stop.tell(args.json),
    };
    if input.is_sweep(&engine) {
        return of_sweep(args, &store, &engine, &input);
    }
    let checked = match input.load(&engine, &input.settings(&args.params)) {
        Ok(checked) => checked,
        Err(problems) => return Stop::from(problems).tell(args.json),
    };
    // What is only odd in a workflow is what stops its plan when a model is not fetched yet: it is told once.
    let plan = match engine.plan(&checked, &args.targets) {
        Ok(mut plan) => {
            plan.save_pictures();
            plan
        }
        Err(problems) => return Stop::from(problems).tell(args.json),
    };
    // The plan is one JSON document, which nothing else may stand before.
    session::warn(&checked, false)?;
    engine.files().flush();
    let forecast = engine.forecast(&plan);
    let costs = journal::costs(store.file("journal.jsonl").as_deref(), &plan, &forecast);
    let changes = records::changes(&store, &args.file, &plan).unwrap_or_default();
    let seconds: Option<f64> = costs.iter().map(|cost| cost.seconds).sum();
    let peak = costs.iter().filter_map(|cost| cost.peak).max();
    let reason = |index: usize, names: &[String]| -> Option<String> {
        matches!(forecast.statuses[index], Status::Run(_))
            .then(|| records::reason(&changes, names))
            .flatten()
    };
    if args.json {
        let tasks: Vec<_> = plan
            .tasks()
            .enumerate()
            .map(|(index, task)| {
                let resume = forecast.resumes[index]
                    .map(|resume| json!({"step": resume.at, "of": resume.of}));
                let cached = match &forecast.statuses[index] {
                    Status::Cached(place) => Some(*place),
                    _ => None,
                };
                let after = match &forecast.statuses[index] {
                    Status::Run(Reason::Upstream(names)) => names.clone(),
                    _ => Vec::new(),
                };
                json!({
                    "nodes": task.names(), "op": task.op(), "key": task.key().to_string(),
                    "runs": matches!(forecast.statuses[index], Status::Run(_)), "cached": cached, "resume": resume,
                    "why": forecast.describe(index), "changed": reason(index, task.names()), "after": after,
                    "unet_calls": forecast.calls[index], "seconds": costs[index].seconds, "peak_bytes": costs[index].peak,
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
            "unet_calls": forecast.total_calls(), "seconds": seconds, "peak_bytes": peak,
            "kept_bytes": forecast.kept_bytes(),
        }))
        .map_err(|e| Failure::failed(e.to_string()))?;
        say_json(&text)?;
        return Ok(Exit::Done);
    }
    let names: Vec<String> = (plan.tasks())
        .map(|task| brief(&task.names().join(" = "), NAME))
        .collect();
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let name_width = width(&mut names.iter().map(|name| name.chars().count()));
    let op_width = width(&mut plan.tasks().map(|task| task.op().len()));
    for (index, (task, name)) in plan.tasks().zip(&names).enumerate() {
        let mut line = format!(
            "{name:name_width$}  {:op_width$}  {}  {}",
            task.op(),
            task.key().short(),
            forecast.describe(index)
        );
        if let Some(reason) = reason(index, task.names()) {
            line.push_str(&format!(" ({})", brief(&reason, 2 * VALUE)));
        }
        if forecast.calls[index] > 0 {
            line.push_str(&format!("; {} U-Net calls", forecast.calls[index]));
        }
        if let Some(seconds) = costs[index].seconds.filter(|&seconds| seconds >= 0.05) {
            line.push_str(&format!(", about {}", duration(seconds)));
        }
        say(&line)?;
    }
    for output in plan.outputs() {
        let save = output.save.as_deref().unwrap_or("(not saved)");
        say(&format!("output {} -> {save}", output.name))?;
    }
    let runs = forecast
        .statuses
        .iter()
        .filter(|s| matches!(s, Status::Run(_)))
        .count();
    let mut line = format!("{runs} of {} nodes would run", plan.len());
    match seconds {
        Some(seconds) => line.push_str(&format!(", about {}", duration(seconds))),
        None if store.folder.is_none() => {
            line.push_str("; how long is not known without the cache's journal");
        }
        None => line.push_str("; how long is not known before a first run"),
    }
    if let Some(peak) = peak.filter(|&peak| peak > 0) {
        line.push_str(&format!(", up to {} of memory", size(peak)));
    }
    if forecast.kept_bytes() > 0 {
        line.push_str(&format!(
            "; keeps {} of keys, values and maps",
            size(forecast.kept_bytes())
        ));
    }
    say(&line)?;
    say(&format!("U-Net calls: {}", forecast.total_calls()))?;
    Ok(Exit::Done)
}
