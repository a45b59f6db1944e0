//! `retouch runs`.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::args::{RunsArgs, RunsCommand};
use crate::output::{say, say_json, tell};
use crate::runs::{NodeEntry, Outcome, Record, Runs, Since, Status};
use crate::safe::{NAME, VALUE, brief, path};
use crate::scores;
use crate::store::Store;
use crate::{Exit, Failure, clock, duration};

/// Lists the runs, or shows one of them.
///
/// # Errors
/// When there is no journal, or no such run.
pub fn runs(args: &RunsArgs) -> Result<Exit, Failure> {
    let store = Store::of(&args.cache)?;
    let runs = Runs::open(&store)?;
    match &args.command {
        None => list(args, &runs),
        Some(RunsCommand::Show { run, json }) => show(&runs.find(run)?, *json),
        Some(RunsCommand::Clear) => {
            let removed = runs.clear()?;
            say(&format!("{removed} runs removed from the journal"))?;
            Ok(Exit::Done)
        }
    }
}

/// A path by which a file can be told from others, whether it is still there or not.
fn place(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.canonicalize().unwrap_or(absolute)
}

fn list(args: &RunsArgs, runs: &Runs) -> Result<Exit, Failure> {
    let wanted = args.file.as_deref().map(place);
    let most = match args.number {
        0 => usize::MAX,
        number => number,
    };
    let mut shown = Vec::new();
    let mut unreadable = 0;
    for id in runs.newest_first() {
        if shown.len() == most {
            break;
        }
        match runs.read(id) {
            Ok(record) => {
                if (wanted.as_ref()).is_none_or(|wanted| *wanted == place(&record.asked.file)) {
                    shown.push(record);
                }
            }
            Err(_) => unreadable += 1,
        }
    }
    for record in &shown {
        match args.json {
            true => say_json(&summary(record, &args.columns).to_string())?,
            false => say(&format!(
                "{}{}",
                line(record),
                columns(record, &args.columns)
            ))?,
        }
    }
    if unreadable > 0 {
        tell(&format!(
            "{unreadable} records cannot be read: damaged, or of another version of the program"
        ));
    }
    if shown.is_empty() && !args.json {
        tell(match &args.file {
            Some(_) => "no runs of this file are recorded",
            None => "no runs are recorded yet",
        });
    }
    Ok(Exit::Done)
}

/// The value of a param of that name, or else the score.
fn column(record: &Record, name: &str) -> Option<serde_json::Value> {
    let param = record.params.iter().find(|param| param.name == name);
    let value = param.map(|param| param.value.clone());
    value.or_else(|| record.scores.get(name).map(|score| json!(score)))
}

/// What `--columns` adds to a line.
fn columns(record: &Record, names: &[String]) -> String {
    let shown = |name: &String| {
        let text = match column(record, name) {
            None => "-".to_owned(),
            Some(serde_json::Value::String(text)) => text,
            Some(value) => match (value.as_f64(), value.is_f64()) {
                (Some(number), true) => scores::shown(number),
                _ => value.to_string(),
            },
        };
        format!("  {}={}", brief(name, NAME), brief(&text, VALUE))
    };
    names.iter().map(shown).collect()
}

fn summary(record: &Record, names: &[String]) -> serde_json::Value {
    let mut summary = json!({
        "id": record.id, "kind": record.kind, "started": record.started, "status": record.status,
        "file": record.asked.file, "workflow": record.workflow, "seconds": record.seconds,
        "unet_calls": record.calls(), "ran": record.ran, "reused": record.reused,
        "error": record.error.as_ref().map(|error| &error.code),
    });
    if !names.is_empty() {
        let columns = names
            .iter()
            .map(|name| (name.clone(), json!(column(record, name))));
        summary["columns"] = columns.collect::<serde_json::Map<_, _>>().into();
    }
    summary
}

fn line(record: &Record) -> String {
    let file = record.asked.file.file_name().unwrap_or_default();
    let seconds = record.seconds.map_or_else(|| "-".to_owned(), duration);
    format!(
        "{}  {}  {:5}  {:9}  {:>11}  {:>6} calls, {} of {} nodes reused  {}",
        record.id,
        clock::local(&record.started, false),
        record.kind.name(),
        record.status.name(),
        seconds,
        record.calls(),
        record.reused,
        record.nodes.len(),
        path(Path::new(file)),
    )
}

// Long: one page, printed from top to bottom.
fn show(record: &Record, json: bool) -> Result<Exit, Failure> {
    let since: Vec<Since> = (record.outputs.iter())
        .map(|output| output.since())
        .collect();
    if json {
        let mut whole = serde_json::to_value(record).map_err(|e| Failure::failed(e.to_string()))?;
        for (output, since) in (whole["outputs"].as_array_mut().into_iter().flatten()).zip(&since) {
            output["now"] = json!(since);
        }
        let text =
            serde_json::to_string_pretty(&whole).map_err(|e| Failure::failed(e.to_string()))?;
        say_json(&text)?;
        return Ok(Exit::Done);
    }
    let asked = &record.asked;
    say(&format!(
        "{}  {}, {}",
        record.id,
        record.kind.name(),
        match record.status {
            Status::Running => "running",
            Status::Ok => "ok",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Killed => "killed: its process went away before its end",
        }
    ))?;
    if let Some(error) = &record.error {
        say(&format!("  error {}: {}", error.code, error.message))?;
        if let Some(help) = &error.help {
            say(&format!("  help: {help}"))?;
        }
    }
    say(&format!(
        "  workflow  {} ({})",
        path(&asked.file),
        record.workflow
    ))?;
    let took = record.seconds.map_or_else(String::new, |seconds| {
        format!(", took {}", duration(seconds))
    });
    say(&format!(
        "  started   {}{took}",
        clock::local(&record.started, true)
    ))?;
    say(&format!("  with      {}", command(record)))?;
    let numerics = (record.plan.as_ref()).map_or("", |plan| plan.numerics());
    let on = if numerics.is_empty() {
        &asked.device
    } else {
        numerics
    };
    say(&format!("  on        {on}, retouch {}", record.tool))?;
    if let Some(cells) = record.cells {
        say(&format!("  cells     {cells}"))?;
    }
    if !record.params.is_empty() {
        say("params")?;
    }
    for param in &record.params {
        say(&format!(
            "  {} = {}  ({})",
            param.name,
            brief(&param.value.to_string(), VALUE),
            param.from
        ))?;
    }
    say("nodes")?;
    let width = |texts: &mut dyn Iterator<Item = &str>| {
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    // A record is a file like any other: its names may be of any length.
    let nodes: Vec<(String, String)> = (record.nodes.iter())
        .map(|node| (brief(&node.node, NAME), brief(&node.op, NAME)))
        .collect();
    let names = width(&mut nodes.iter().map(|(name, _)| name.as_str()));
    let ops = width(&mut nodes.iter().map(|(_, op)| op.as_str()));
    for (node, (name, op)) in record.nodes.iter().zip(&nodes) {
        say(&format!("  {name:names$}  {op:ops$}  {}", became(node)))?;
    }
    if !record.outputs.is_empty() {
        say("outputs")?;
    }
    for (output, since) in record.outputs.iter().zip(since) {
        say(&format!(
            "  {}  {}  ({}; {})",
            output.output,
            path(&output.path),
            output.status,
            match since {
                Since::Same => "as it was",
                Since::Changed => "CHANGED since",
                Since::Gone => "GONE",
                Since::NotCompared => "it is not the run's",
            }
        ))?;
    }
    if !record.scores.is_empty() {
        say("scores")?;
    }
    for (name, score) in &record.scores {
        say(&format!(
            "  {} = {}",
            brief(name, NAME),
            scores::shown(*score)
        ))?;
    }
    say(&format!(
        "{} nodes ran, {} reused; U-Net calls: {}",
        record.ran,
        record.reused,
        record.calls()
    ))?;
    Ok(Exit::Done)
}

fn became(node: &NodeEntry) -> String {
    match node.outcome {
        Outcome::Reused => format!("reused ({})", node.from.as_deref().unwrap_or("")),
        Outcome::Failed => "failed".to_owned(),
        Outcome::NotRun => "did not run".to_owned(),
        Outcome::Ran => {
            let mut text = format!("ran, {}", duration(node.seconds.unwrap_or(0.0)));
            if let Some((step, of)) = node.resumed {
                text.push_str(&match step == of {
                    true => format!(", all {of} steps were there"),
                    false => format!(", resumed at step {step} of {of}"),
                });
            }
            if node.unet_calls > 0 {
                text.push_str(&format!(", {} U-Net calls", node.unet_calls));
            }
            text
        }
    }
}

/// The settings as they were on the command line.
fn command(record: &Record) -> String {
    let asked = &record.asked;
    let mut words: Vec<String> = asked.targets.clone();
    let mut add = |name: &str, value: String| words.push(format!("{name} {}", quoted(&value)));
    for set in &asked.set {
        add("--set", set.clone());
    }
    for path in &asked.params {
        add("--params", path.display().to_string());
    }
    for over in &asked.over {
        add("--over", over.clone());
    }
    if let Some(sheet) = &asked.sheet {
        add("--sheet", sheet.clone());
    }
    for path in &asked.models {
        add("--models", path.display().to_string());
    }
    add("--device", asked.device.clone());
    add("--out", asked.out.display().to_string());
    words.join(" ")
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-=./:,%+@".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
