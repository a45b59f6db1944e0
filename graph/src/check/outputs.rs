//! The outputs: what they refer to and where they are saved.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Span};
use crate::base::suggest;
use crate::check::checker::{Binding, Checker, Target};
use crate::check::fill::within;
use crate::check::result::{CheckedOutput, Link};
use crate::files::output_path;
use crate::op::registry::Entry;
use crate::syntax::template::{self, Piece};
use crate::syntax::workflow::{Spanned, Workflow};
use crate::value::port::{Arity, Known, KnownPorts, PortSpec};

impl Checker<'_> {
    /// Checks the outputs of every scope; those of the workflow that is run, and where their values are written.
    pub(super) fn outputs(&mut self) -> Vec<(CheckedOutput, Span)> {
        let mut outputs = Vec::new();
        for scope in 0..self.scopes.len() {
            let workflow = Arc::clone(&self.scopes[scope].workflow);
            let mut paths: HashMap<String, (String, Span)> = HashMap::new();
            for (name, decl) in &workflow.outputs {
                let link = (decl.value.as_ref())
                    .and_then(|value| Some((self.output_link(scope, value)?, value.span)));
                if scope != 0 {
                    continue; // nothing is saved of an included workflow but what the outer one says
                }
                let mut path = None;
                if let Some(save) = &decl.save {
                    path = self.save_path(&workflow, name, save, link.map(|(link, _)| link));
                    if let Some(path) = &path
                        && let Some((other, span)) =
                            paths.insert(path.clone(), (name.clone(), save.span))
                    {
                        self.problems.push(
                            Problem::new(
                                Code::SaveTwice,
                                &workflow.source,
                                save.span,
                                format!("`{other}` and `{name}` would both be saved as `{path}`"),
                            )
                            .also(&workflow.source, span, format!("`{other}`"))
                            .help("give one of them another name"),
                        );
                    }
                }
                if let Some((link, span)) = link {
                    let output = CheckedOutput {
                        name: name.clone(),
                        link,
                        save: path,
                    };
                    outputs.push((output, span));
                }
            }
        }
        outputs
    }

    /// The node's output that the value of a workflow's output refers to.
    fn output_link(&mut self, scope: usize, value: &Spanned<String>) -> Option<Link> {
        let text = &value.value;
        let target = if text.starts_with('$') && !text.starts_with("$$") {
            self.target(scope, text, value.span)
        } else {
            Target::Value
        };
        match target {
            Target::Link(link, _) => Some(link),
            Target::Value => {
                let workflow = &self.scopes[scope].workflow;
                let help = if workflow.nodes.contains_key(text) {
                    format!("did you mean `${text}`?")
                } else {
                    "write `value: $node` or `value: $node.port`".to_owned()
                };
                self.problems.push(
                    Problem::new(
                        Code::LinkDue,
                        &workflow.source,
                        value.span,
                        format!(
                            "the value of an output is a reference to a node, not `{}`",
                            text.escape_debug()
                        ),
                    )
                    .help(help),
                );
                None
            }
            _ => None,
        }
    }

    /// The path that an output is saved to, its template filled in.
    fn save_path(
        &mut self,
        workflow: &Workflow,
        name: &str,
        save: &Spanned<String>,
        link: Option<Link>,
    ) -> Option<String> {
        let extra = [("workflow", workflow.name.as_str()), ("output", name)];
        let filled = self.fill(0, &save.value, save.span, &extra)?;
        // Before the path as a whole: a separator in a value would look like one of the template.
        if !self.are_safe(workflow, save, &extra)? {
            return None;
        }
        if let Err(why) = output_path::check_path(&filled) {
            self.problems.push(
                Problem::new(
                    Code::UnsafePath,
                    &workflow.source,
                    save.span,
                    format!("`{}` cannot be saved to: {why}", filled.escape_debug()),
                )
                .help(
                    "a path is relative and stays below the output folder: `pictures/{seed}.png`",
                ),
            );
            return None;
        }
        self.save_format(workflow, save, &filled, link?)?;
        Some(filled)
    }

    /// Whether all values that a path's template names can be part of a file's name. `None`: there is no template.
    fn are_safe(
        &mut self,
        workflow: &Workflow,
        save: &Spanned<String>,
        extra: &[(&str, &str)],
    ) -> Option<bool> {
        let mut safe = true;
        for piece in template::pieces(&save.value).ok()? {
            let Piece::Name(param, range) = piece else {
                continue;
            };
            let bound = match self.scopes[0].values.get(param) {
                Some(Binding::Value(bound)) => Some(bound),
                _ => None,
            };
            let value = match bound.map(|bound| &bound.value) {
                Some(Json::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => extra
                    .iter()
                    .find(|(known, _)| *known == param)
                    .map_or_else(String::new, |(_, text)| (*text).to_owned()),
            };
            let Err(why) = output_path::check_value(&value) else {
                continue;
            };
            safe = false;
            let piece = save.value.get(range).unwrap_or("");
            let mut problem = Problem::new(
                Code::UnsafePath,
                &workflow.source,
                within(&workflow.source, save.span, piece),
                format!("`{{{param}}}` is `{}`, and {why}", value.escape_debug()),
            )
            .help("name the file without it, or give it another value");
            if let Some(bound) = bound {
                let origin = &bound.origin;
                problem = problem.also(&origin.source, origin.span, "the value is from here");
            }
            self.problems.push(problem);
        }
        Some(safe)
    }

    /// Reports a path whose ending is no format that the value can be saved in. `None`: the port is not known.
    fn save_format(
        &mut self,
        workflow: &Workflow,
        save: &Spanned<String>,
        path: &str,
        link: Link,
    ) -> Option<()> {
        let outputs = self.flat[link.node].entry.outputs();
        let spec = outputs.iter().find(|spec| spec.name == link.port)?;
        let Some(formats) = spec.formats else {
            return Some(());
        };
        let ending = output_path::ending(path);
        let ending = ending.as_deref();
        if ending.is_some_and(|ending| formats.contains(&ending)) {
            return Some(());
        }
        let kind = spec.types.join(" or a ");
        let endings: Vec<String> = formats.iter().map(|one| format!(".{one}")).collect();
        let (message, mut help) = match (&endings[..], ending) {
            ([], _) => (
                format!("{} cannot be saved", suggest::a(&[kind])),
                "remove `save`; the value is there for other workflows".to_owned(),
            ),
            (endings, Some(ending)) => (
                format!("{} cannot be saved as .{ending}", suggest::a(&[kind])),
                format!("end it in {}", suggest::either(endings)),
            ),
            (endings, None) => (
                format!("`{path}` has no ending that says how to save a {kind}"),
                format!("end it in {}", suggest::either(endings)),
            ),
        };
        if let Some(makers) = ending.and_then(|ending| self.makers(spec, ending)) {
            help = format!("{help}; {makers}");
        }
        self.problems
            .push(Problem::new(Code::SaveFormat, &workflow.source, save.span, message).help(help));
        Some(())
    }

    /// Which ops make something of a port's value that is saved with that ending: masks are a picture by `mask_image`.
    fn makers(&self, port: &PortSpec, ending: &str) -> Option<String> {
        let takes = |entry: &Entry| {
            (entry
                .inputs()
                .iter()
                .filter(|input| input.arity != Arity::Optional))
            .any(|input| input.types.iter().any(|one| port.types.contains(one)))
        };
        let gives = |entry: &Entry| {
            let formats = entry.outputs().first().and_then(|output| output.formats);
            formats.is_some_and(|formats| formats.contains(&ending))
        };
        let ops: Vec<String> = (self.context.registry.iter())
            .filter(|entry| takes(entry) && gives(entry))
            .map(|entry| format!("`{}`", entry.op()))
            .collect();
        match &ops[..] {
            [] => None,
            [one] => Some(format!("a node {one} makes a .{ending} of it")),
            several => Some(format!(
                "nodes that make a .{ending} of it: {}",
                several.join(", ")
            )),
        }
    }

    /// Reports outputs that their nodes will not make with the parameters that they have.
    pub(super) fn outputs_made(&mut self, outputs: &[(CheckedOutput, Span)], known: &[KnownPorts]) {
        for (output, span) in outputs {
            let fact = known[output.link.node]
                .get(output.link.port)
                .and_then(|facts| facts.first());
            if let Some(Known::Absent(reason)) = fact {
                let source = &self.scopes[0].workflow.source;
                self.problems.push(
                    Problem::new(
                        Code::NotMade,
                        source,
                        *span,
                        format!("`{}` will not be made: {reason}", output.link.port),
                    )
                    .help("remove the output, or change the node"),
                );
            }
        }
    }

    /// Where the outputs of each node that uses a workflow come from.
    pub(super) fn groups(&mut self) -> HashMap<String, Vec<usize>> {
        let mut groups = HashMap::new();
        for scope in 1..self.scopes.len() {
            let workflow = Arc::clone(&self.scopes[scope].workflow);
            let mut nodes = Vec::new();
            for decl in workflow.outputs.values() {
                if let Some(value) = &decl.value
                    && let Target::Link(link, _) = self.target(scope, &value.value, value.span)
                {
                    nodes.push(link.node);
                }
            }
            let name = self.scopes[scope].prefix.trim_end_matches('/').to_owned();
            groups.insert(name, nodes);
        }
        groups
    }
}
