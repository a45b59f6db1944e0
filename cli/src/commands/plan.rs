//! `retouch plan`.

use retouch_graph::{Change, Engine, Forecast, Plan, Reason, Status};
use serde_json::json;

use crate::args::PlanArgs;
use crate::commands::sweep;
use crate::journal::{self, Cost};
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
    let settings = input.settings(&args.params);
    let (sweep, plan) = match sweep::loaded(input, engine, &args.targets, &settings) {
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
    // What is only odd in a workflow is what stops its plan when a model is not fetched yet: it is reported once.
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
    let journal = store.file("journal.jsonl");
    let estimate = Estimate {
        costs: journal::costs(journal.as_deref(), &plan, &forecast),
        changes: records::changes(&store, &args.file, &plan).unwrap_or_default(),
        plan: &plan,
        forecast: &forecast,
    };
    match args.json {
        true => estimate.say_json(),
        false => estimate.say(store.folder.is_some()),
    }
}

/// A plan with what is known of it before it runs.
struct Estimate<'a> {
    plan: &'a Plan,
    forecast: &'a Forecast,
    costs: Vec<Cost>,
    changes: Vec<Change>,
}

impl Estimate<'_> {
    /// The seconds of all tasks; `None` when one of them is not known.
    fn seconds(&self) -> Option<f64> {
        self.costs.iter().map(|cost| cost.seconds).sum()
    }

    fn peak(&self) -> Option<u64> {
        self.costs.iter().filter_map(|cost| cost.peak).max()
    }

    /// What of a task that runs changed since the last run.
    fn reason(&self, index: usize, names: &[String]) -> Option<String> {
        matches!(self.forecast.statuses[index], Status::Run(_))
            .then(|| records::reason(&self.changes, names))
            .flatten()
    }

    fn say_json(&self) -> Result<Exit, Failure> {
        let Self {
            plan,
            forecast,
            costs,
            ..
        } = self;
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
                    "why": forecast.describe(index), "changed": self.reason(index, task.names()), "after": after,
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
            "unet_calls": forecast.total_calls(), "seconds": self.seconds(), "peak_bytes": self.peak(),
            "kept_bytes": forecast.kept_bytes(),
        }))
        .map_err(|e| Failure::failed(e.to_string()))?;
        say_json(&text)?;
        Ok(Exit::Done)
    }

    /// `kept`: whether there is a journal of earlier runs.
    fn say(&self, kept: bool) -> Result<Exit, Failure> {
        let Self {
            plan,
            forecast,
            costs,
            ..
        } = self;
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
            if let Some(reason) = self.reason(index, task.names()) {
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
        say(&self.summary(kept))?;
        say(&format!("U-Net calls: {}", forecast.total_calls()))?;
        Ok(Exit::Done)
    }

    fn summary(&self, kept: bool) -> String {
        let (plan, forecast) = (self.plan, self.forecast);
        let runs = forecast
            .statuses
            .iter()
            .filter(|s| matches!(s, Status::Run(_)))
            .count();
        let mut line = format!("{runs} of {} nodes would run", plan.len());
        match self.seconds() {
            Some(seconds) => line.push_str(&format!(", about {}", duration(seconds))),
            None if !kept => {
                line.push_str("; how long is not known without the cache's journal");
            }
            None => line.push_str("; how long is not known before a first run"),
        }
        if let Some(peak) = self.peak().filter(|&peak| peak > 0) {
            line.push_str(&format!(", up to {} of memory", size(peak)));
        }
        if forecast.kept_bytes() > 0 {
            line.push_str(&format!(
                "; keeps {} of keys, values and maps",
                size(forecast.kept_bytes())
            ));
        }
        line
    }
}
