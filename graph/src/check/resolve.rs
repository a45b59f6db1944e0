//! References: `$node.port`, `$params.name` and `$inputs.name`, followed through included workflows.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Span};
use crate::base::suggest;
use crate::check::checker::{Binding, Boundary, Checker, HINTED, LinkTypes, Slot, Target};
use crate::check::result::Link;
use crate::syntax::template;
use crate::syntax::workflow::{InputKind, Workflow};
use crate::syntax::yaml::Tree;

/// One step from a reference to the node that makes the value.
enum ResolveStep {
    Target(Target),
    /// It leads on to another reference.
    Forward(Forward),
}

struct Forward {
    boundary: Boundary,
    /// The type of the input that is passed, which is then that of the value.
    kind: Option<&'static str>,
    /// The reference that is next, and where it is written.
    scope: usize,
    text: String,
    span: Span,
}

enum Reference<'a> {
    Param(&'a str),
    Input(&'a str),
    Node(&'a str, Option<&'a str>),
}

pub(super) enum Built {
    Value(Json),
    Absent,
    Broken,
}

impl Checker<'_> {
    fn reference<'t>(&mut self, scope: usize, text: &'t str, span: Span) -> Option<Reference<'t>> {
        let source = self.scopes[scope].workflow.source.clone();
        let body = text.strip_prefix('$').unwrap_or(text);
        let (name, port) = match body.split_once('.') {
            Some((name, port)) => (name, Some(port)),
            None => (body, None),
        };
        let help = format!(
            "a reference is `$node`, `$node.port` or `$params.name`; a text that begins with a dollar is written `$${}`",
            body.chars().take(20).collect::<String>()
        );
        let parsed = match (name, port) {
            ("params", Some(param)) if template::is_name(param) => Some(Reference::Param(param)),
            ("inputs", Some(input)) if template::is_name(input) => Some(Reference::Input(input)),
            ("params" | "inputs" | "outputs", _) => None,
            (name, None) if template::is_name(name) => Some(Reference::Node(name, None)),
            (name, Some(port)) if template::is_name(name) && template::is_name(port) => {
                Some(Reference::Node(name, Some(port)))
            }
            _ => None,
        };
        if parsed.is_none() {
            self.problems.push(
                Problem::new(
                    Code::BadReference,
                    &source,
                    span,
                    format!("`{}` is not a reference", text.escape_debug()),
                )
                .help(help),
            );
        }
        parsed
    }

    pub(super) fn bound(&self, scope: usize, text: &str) -> Option<Binding> {
        let name = value_name(text)?;
        self.scopes[scope].values.get(name).cloned()
    }

    /// Follows a reference where a value is due; the value itself is fetched with [`Checker::bound`].
    pub(super) fn value_reference(
        &mut self,
        scope: usize,
        text: &str,
        span: Span,
        field: &str,
    ) -> Built {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        let source = &workflow.source;
        let Some(reference) = self.reference(scope, text, span) else {
            return Built::Broken;
        };
        match reference {
            Reference::Param(name) => {
                if !workflow.params.contains_key(name) {
                    self.unknown_param(&workflow, name, span);
                    return Built::Broken;
                }
                if scope == 0 {
                    self.used.insert(name.to_owned());
                }
                match self.scopes[scope].values.get(name) {
                    Some(Binding::Value(bound)) => Built::Value(bound.value.clone()),
                    Some(Binding::Absent) => Built::Absent,
                    _ => Built::Broken,
                }
            }
            Reference::Input(name) => match workflow.inputs.get(name).map(|decl| &decl.kind) {
                Some(InputKind::Value(_)) => match self.scopes[scope].values.get(name) {
                    Some(Binding::Value(bound)) => Built::Value(bound.value.clone()),
                    Some(Binding::Absent) => Built::Absent,
                    _ => Built::Broken,
                },
                Some(InputKind::Port(kind)) => {
                    self.problems.push(
                        Problem::new(
                            Code::ValueDue,
                            source,
                            span,
                            format!(
                                "`{field}` takes a value, and the input `{name}` is a link to a {kind}"
                            ),
                        )
                        .help("write a value, or a reference to a param"),
                    );
                    Built::Broken
                }
                None => {
                    self.unknown_input(&workflow, name, span);
                    Built::Broken
                }
            },
            Reference::Node(name, _) => {
                let param = workflow.params.contains_key(name);
                let near = suggest::nearest(name, ["params", "inputs"]);
                let help = match (param, near) {
                    (true, _) => format!("did you mean `$params.{name}`?"),
                    (_, Some(near)) => {
                        let rest = text.split_once('.').map_or("name", |(_, rest)| rest);
                        format!("did you mean `${near}.{rest}`?")
                    }
                    _ => format!("write a value, `{field}: ...`, or `{field}: $params.name`"),
                };
                self.problems.push(
                    Problem::new(
                        Code::ValueDue,
                        source,
                        span,
                        format!(
                            "`{field}` is a parameter and takes a value, not the output of a node"
                        ),
                    )
                    .help(help),
                );
                Built::Broken
            }
        }
    }

    /// Adds where a value was written, when the node has it by reference.
    pub(super) fn with_origin(&self, problem: Problem, scope: usize, tree: &Tree) -> Problem {
        match tree.as_text().and_then(|text| self.bound(scope, text)) {
            Some(Binding::Value(bound)) => problem.also(
                &bound.origin.source,
                bound.origin.span,
                "the value is from here",
            ),
            _ => problem,
        }
    }

    fn unknown_param(&mut self, workflow: &Workflow, name: &str, span: Span) {
        let help = if workflow.inputs.contains_key(name) {
            Some(format!("did you mean `$inputs.{name}`?"))
        } else {
            let known = workflow.params.keys().map(String::as_str);
            self.hint_in(name, "params", "$params.", known)
        };
        self.problems.push(
            Problem::new(
                Code::UnknownParam,
                &workflow.source,
                span,
                format!("there is no param `{name}`"),
            )
            .maybe_help(help),
        );
    }

    fn unknown_input(&mut self, workflow: &Workflow, name: &str, span: Span) {
        let help = if workflow.params.contains_key(name) {
            Some(format!("did you mean `$params.{name}`?"))
        } else {
            let known = workflow.inputs.keys().map(String::as_str);
            self.hint_in(name, "inputs", "$inputs.", known)
        };
        self.problems.push(
            Problem::new(
                Code::UnknownInput,
                &workflow.source,
                span,
                format!("there is no input `{name}`"),
            )
            .maybe_help(help),
        );
    }

    /// Follows a reference where a link is due, through included workflows to the node that makes the value. Without
    /// recursion: a chain may be as long as there are nodes.
    pub(super) fn target(&mut self, scope: usize, text: &str, span: Span) -> Target {
        let (mut scope, mut text, mut span) = (scope, text.to_owned(), span);
        let mut passed: Vec<(Boundary, Option<&'static str>)> = Vec::new();
        // Where each reference is written that led to a boundary.
        let mut written: Vec<(usize, Span)> = Vec::new();
        let mut known: HashMap<Boundary, usize> = HashMap::new();
        let mut target = loop {
            let before = self.problems.len();
            let step = self.step(scope, &text, span);
            if !passed.is_empty() {
                // Faults on the way through other workflows are reported there, once.
                self.problems.truncate(before);
            }
            let forward = match step {
                ResolveStep::Target(target) => break target,
                ResolveStep::Forward(forward) => forward,
            };
            if let Some(target) = self.targets.get(&forward.boundary) {
                break *target;
            }
            if let Some(&from) = known.get(&forward.boundary) {
                written[from] = (scope, span);
                self.link_cycle(&passed[from..], &written[from..]);
                break Target::Broken;
            }
            known.insert(forward.boundary.clone(), passed.len());
            passed.push((forward.boundary, forward.kind));
            written.push((scope, span));
            (scope, text, span) = (forward.scope, forward.text, forward.span);
        };
        for (boundary, kind) in passed.into_iter().rev() {
            target = target.through(kind);
            self.targets.insert(boundary, target);
        }
        target
    }

    /// Reports links that lead back to where they began, at the first of them.
    fn link_cycle(
        &mut self,
        passed: &[(Boundary, Option<&'static str>)],
        written: &[(usize, Span)],
    ) {
        // A round leads out of each workflow by the node that uses it, so there is always one of these.
        let outputs = passed
            .iter()
            .zip(written)
            .filter_map(|((boundary, _), at)| {
                let output = boundary.1.strip_prefix("outputs.")?;
                Some((*at, boundary.0, output))
            });
        let Some(((scope, span), inner, output)) = outputs.min_by_key(|(at, ..)| *at) else {
            return;
        };
        let prefix = &self.scopes[inner].prefix;
        let name = prefix.trim_end_matches('/').rsplit('/').next();
        let message = format!(
            "`{}` needs its own output `{output}`",
            name.unwrap_or(prefix)
        );
        let source = &self.scopes[scope].workflow.source;
        self.problems
            .push(Problem::new(Code::Cycle, source, span, message).help("cut one of the links"));
    }

    /// One step from a reference towards the node that makes the value.
    fn step(&mut self, scope: usize, text: &str, span: Span) -> ResolveStep {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        let Some(reference) = self.reference(scope, text, span) else {
            return ResolveStep::Target(Target::Broken);
        };
        match reference {
            Reference::Param(name) => {
                if workflow.params.contains_key(name) {
                    if scope == 0 {
                        self.used.insert(name.to_owned());
                    }
                    return ResolveStep::Target(Target::Value);
                }
                self.unknown_param(&workflow, name, span);
                ResolveStep::Target(Target::Broken)
            }
            Reference::Input(name) => self.step_from_input(scope, &workflow, name, span),
            Reference::Node(name, port) => self.step_from_node(scope, &workflow, name, port, span),
        }
    }

    fn step_from_input(
        &mut self,
        scope: usize,
        workflow: &Workflow,
        name: &str,
        span: Span,
    ) -> ResolveStep {
        let Some(decl) = workflow.inputs.get(name) else {
            self.unknown_input(workflow, name, span);
            return ResolveStep::Target(Target::Broken);
        };
        let InputKind::Port(kind) = &decl.kind else {
            return ResolveStep::Target(Target::Value);
        };
        let Some(kind) = self.context.registry.port_type(kind) else {
            return ResolveStep::Target(Target::Broken); // reported at the declaration
        };
        let missing = if decl.optional {
            Target::Absent
        } else {
            Target::Broken
        };
        let Some(parent) = self.scopes[scope].parent else {
            let open = !decl.optional && self.context.settings.part;
            return ResolveStep::Target(if open {
                Target::Open(LinkTypes::One(kind))
            } else {
                missing
            });
        };
        match self.scopes[scope].links.get(name) {
            None => ResolveStep::Target(missing),
            Some(link) if link.value.is_empty() => ResolveStep::Target(Target::Broken),
            Some(link) => ResolveStep::Forward(Forward {
                boundary: (scope, name.to_owned()),
                kind: Some(kind),
                scope: parent,
                text: link.value.clone(),
                span: link.span,
            }),
        }
    }

    fn step_from_node(
        &mut self,
        scope: usize,
        workflow: &Workflow,
        name: &str,
        port: Option<&str>,
        span: Span,
    ) -> ResolveStep {
        let inner = match self.scopes[scope].slots.get(name) {
            Some(Slot::Broken) => return ResolveStep::Target(Target::Broken),
            Some(Slot::Op(index)) => {
                let index = *index;
                let entry = Arc::clone(&self.flat[index].entry);
                let found = match port {
                    None => entry.outputs().first(),
                    Some(port) => entry.outputs().iter().find(|spec| spec.name == port),
                };
                if let Some(spec) = found {
                    let link = Link {
                        node: index,
                        port: spec.name,
                    };
                    return ResolveStep::Target(Target::Link(link, LinkTypes::Ports(spec.types)));
                }
                let outputs = entry.outputs().iter().map(|spec| spec.name);
                self.unknown_port(workflow, name, port.unwrap_or(""), span, outputs);
                return ResolveStep::Target(Target::Broken);
            }
            Some(Slot::Use(inner)) => *inner,
            None => {
                self.unknown_node(workflow, name, port, span);
                return ResolveStep::Target(Target::Broken);
            }
        };
        let included = Arc::clone(&self.scopes[inner].workflow);
        let found = match port {
            None => included.outputs.iter().next(),
            Some(port) => included.outputs.get_key_value(port),
        };
        let Some((output, decl)) = found else {
            let outputs: Vec<&str> = included.outputs.keys().map(String::as_str).collect();
            self.unknown_port(workflow, name, port.unwrap_or(""), span, outputs);
            return ResolveStep::Target(Target::Broken);
        };
        match &decl.value {
            None => ResolveStep::Target(Target::Broken),
            Some(value) => ResolveStep::Forward(Forward {
                boundary: (inner, format!("outputs.{output}")),
                kind: None,
                scope: inner,
                text: value.value.clone(),
                span: value.span,
            }),
        }
    }

    fn unknown_port<'n>(
        &mut self,
        workflow: &Workflow,
        node: &str,
        port: &str,
        span: Span,
        known: impl IntoIterator<Item = &'n str> + Clone,
    ) {
        let help = self.hint_in(port, "outputs", &format!("${node}."), known);
        let message = if port.is_empty() {
            format!("`{node}` has no outputs")
        } else {
            format!("`{node}` has no output `{port}`")
        };
        self.problems.push(
            Problem::new(Code::UnknownPort, &workflow.source, span, message).maybe_help(help),
        );
    }

    fn unknown_node(&mut self, workflow: &Workflow, name: &str, port: Option<&str>, span: Span) {
        if workflow.nodes_unread {
            return;
        }
        let suffix = port.map(|port| format!(".{port}")).unwrap_or_default();
        let nodes = workflow.nodes.keys().map(String::as_str);
        let help = if self.problems.len() > HINTED {
            None
        } else if workflow.params.contains_key(name) {
            Some(format!("did you mean `$params.{name}`?"))
        } else if workflow.inputs.contains_key(name) {
            Some(format!("did you mean `$inputs.{name}`?"))
        } else if let Some(near) = suggest::nearest(name, nodes.clone().chain(["params", "inputs"]))
        {
            Some(format!("did you mean `${near}{suffix}`?"))
        } else {
            suggest::hint(name, "nodes", nodes)
        };
        self.problems.push(
            Problem::new(
                Code::UnknownNode,
                &workflow.source,
                span,
                format!("there is no node `{name}`"),
            )
            .maybe_help(help),
        );
    }
}

/// The param or input that a reference to a value names.
pub(super) fn value_name(text: &str) -> Option<&str> {
    text.strip_prefix("$params.")
        .or_else(|| text.strip_prefix("$inputs."))
}
