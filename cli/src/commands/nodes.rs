//! `retouch nodes`: the reference, from the code's own documentation.

use std::fmt::Write;

use retouch_graph::port::{Arity, PortSpec};
use retouch_graph::registry::{Entry, ParamInfo, Registry};
use serde_json::json;

use crate::args::NodesArgs;
use crate::output::{say, say_json};
use crate::{Exit, Failure};

/// Prints the list of ops, or the page of one.
///
/// # Errors
/// When there is no such op.
pub fn nodes(args: &NodesArgs) -> Result<Exit, Failure> {
    let registry = retouch_nodes::registry();
    match &args.op {
        Some(op) => {
            let entry = registry.entry(op).ok_or_else(|| unknown(op, &registry))?;
            if args.json {
                say_json(&pretty(&as_json(entry))?)?;
            } else {
                say(page(entry).trim_end())?;
            }
        }
        None if args.json => {
            let all: Vec<_> = registry.iter().map(|entry| as_json(entry)).collect();
            say_json(&pretty(&json!(all))?)?;
        }
        None => {
            let width = registry.iter().map(|e| e.op().len()).max().unwrap_or(0);
            for entry in registry.iter() {
                say(&format!(
                    "{:width$}  {}",
                    entry.op(),
                    one_line(entry.summary())
                ))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn unknown(op: &str, registry: &Registry) -> Failure {
    let failure = Failure::usage(format!("there is no op {op:?}"));
    match retouch_graph::suggest::nearest(op, registry.iter().map(|entry| entry.op())) {
        Some(near) => failure.help(format!("did you mean `{near}`?")),
        None => failure.help("`retouch nodes` lists all ops"),
    }
}

fn pretty(value: &serde_json::Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|e| Failure::failed(e.to_string()))
}

/// Doc comments are wrapped where the source is; people's terminals wrap for themselves.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn paragraphs(text: &str) -> String {
    text.split("\n\n")
        .map(one_line)
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn page(entry: &Entry) -> String {
    let mut page = format!("{}\n\n{}\n", entry.op(), paragraphs(entry.docs()));
    let mut section = |title: &str, lines: Vec<(String, String)>| {
        if lines.is_empty() {
            return;
        }
        let _ = write!(page, "\n{title}\n");
        for (head, docs) in lines {
            let _ = write!(page, "  {head}\n      {docs}\n");
        }
    };
    section(
        "Inputs (links: `$node` or `$node.port`)",
        ports(entry.inputs(), true),
    );
    section(
        "Parameters",
        entry
            .params()
            .iter()
            .map(|p| (head(p), one_line(&p.docs)))
            .collect(),
    );
    section(
        "Outputs (the first is the default)",
        ports(entry.outputs(), false),
    );
    page
}

fn ports(ports: &[PortSpec], input: bool) -> Vec<(String, String)> {
    ports
        .iter()
        .map(|port| {
            let note = match (port.arity, input) {
                (Arity::One, _) => "",
                (Arity::Optional, true) => ", optional",
                (Arity::Optional, false) => ", not always made",
                (Arity::Many, _) => ", a list",
            };
            let head = format!("{}: {}{note}", port.name, port.types.join(" or "));
            (head, one_line(port.docs))
        })
        .collect()
}

fn head(param: &ParamInfo) -> String {
    let default = match (&param.default, param.required) {
        (_, true) => " (required)".to_owned(),
        (Some(default), false) if !default.is_null() => format!(" (default {default})"),
        _ => " (optional)".to_owned(),
    };
    format!("{}: {}{default}", param.name, param.takes())
}

fn as_json(entry: &Entry) -> serde_json::Value {
    let params: Vec<_> = entry
        .params()
        .iter()
        .map(|p| {
            json!({
                "name": p.name, "docs": one_line(&p.docs), "required": p.required,
                "default": p.default, "schema": p.schema,
            })
        })
        .collect();
    json!({
        "op": entry.op(), "version": entry.version(), "docs": paragraphs(entry.docs()),
        "params": params, "inputs": entry.inputs(), "outputs": entry.outputs(),
    })
}
