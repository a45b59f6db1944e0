//! Links between nodes and the types of their ports.

use std::sync::Arc;

use crate::base::problem::{Code, Problem, Span};
use crate::base::suggest;
use crate::check::checker::{Checker, LinkTypes, Slot, Target};
use crate::syntax::workflow::InputKind;
use crate::syntax::yaml::{Node, Tree};
use crate::value::port::{Arity, PortSpec};

impl Checker<'_> {
    pub(super) fn port(
        &mut self,
        index: usize,
        scope: usize,
        port: usize,
        spec: &PortSpec,
        tree: &Tree,
    ) {
        let items: Vec<&Tree> = match &tree.node {
            Node::Null if spec.arity != Arity::One => return,
            Node::Seq(items) if spec.arity == Arity::Many => items.iter().collect(),
            Node::Seq(items) if items.len() != 1 => {
                let source = &self.scopes[scope].workflow.source;
                self.problems.push(
                    Problem::new(
                        Code::TooManyLinks,
                        source,
                        tree.span,
                        format!(
                            "the port `{}` takes one link, not a list of {}",
                            spec.name,
                            items.len()
                        ),
                    )
                    .help(format!("write `{}: $node`", spec.name)),
                );
                return;
            }
            Node::Seq(items) => items.iter().collect(),
            _ => vec![tree],
        };
        for item in items {
            let text = match item.as_text() {
                Some(text) if text.starts_with('$') && !text.starts_with("$$") => text,
                _ => {
                    let help = self.link_help(scope, spec, item, index);
                    let source = &self.scopes[scope].workflow.source;
                    self.problems.push(
                        Problem::new(
                            Code::LinkDue,
                            source,
                            item.span,
                            format!(
                                "the port `{}` takes a reference to {}, not {}",
                                spec.name,
                                suggest::a(spec.types),
                                item.describe()
                            ),
                        )
                        .help(help),
                    );
                    continue;
                }
            };
            self.link(index, scope, port, spec, text, item.span);
        }
    }

    fn link(
        &mut self,
        index: usize,
        scope: usize,
        port: usize,
        spec: &PortSpec,
        text: &str,
        span: Span,
    ) {
        match self.target(scope, text, span) {
            Target::Link(link, types) => {
                if self.types_fit(scope, spec.name, spec.types, text, types, span, Some(index)) {
                    self.flat[index].links[port].push((link, span));
                    self.flat[index].known_links[port] += 1;
                }
            }
            Target::Open(types) => {
                if self.types_fit(scope, spec.name, spec.types, text, types, span, None) {
                    self.flat[index].known_links[port] += 1;
                }
            }
            Target::Absent => {
                if spec.arity == Arity::One {
                    let source = &self.scopes[scope].workflow.source;
                    let name = text.rsplit('.').next().unwrap_or(text);
                    self.problems.push(
                        Problem::new(
                            Code::MissingLink,
                            source,
                            span,
                            format!(
                                "the port `{}` must be linked, and `{text}` is not given",
                                spec.name
                            ),
                        )
                        .help(format!(
                            "remove `optional` from the input `{name}`, or give it"
                        )),
                    );
                }
            }
            Target::Value => {
                let help = self
                    .candidate(scope, spec.name, spec.types, Some(index))
                    .map(|found| format!("write `{}: {found}`", spec.name));
                let source = &self.scopes[scope].workflow.source;
                self.problems.push(
                    Problem::new(
                        Code::LinkDue,
                        source,
                        span,
                        format!(
                            "the port `{}` takes a reference to {}, and `{text}` is a value",
                            spec.name,
                            suggest::a(spec.types)
                        ),
                    )
                    .maybe_help(help.or_else(|| Some(format!("write `{}: $node`", spec.name)))),
                );
            }
            Target::Broken => {}
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one fault with all that its message names"
    )]
    fn types_fit(
        &mut self,
        scope: usize,
        port: &str,
        takes: &[&str],
        text: &str,
        types: LinkTypes,
        span: Span,
        at: Option<usize>,
    ) -> bool {
        if types.as_slice().iter().any(|one| takes.contains(one)) {
            return true;
        }
        // Another output of the same node may be what was meant.
        let name = text
            .strip_prefix('$')
            .unwrap_or(text)
            .split('.')
            .next()
            .unwrap_or("");
        let other = match self.scopes[scope].slots.get(name) {
            Some(Slot::Op(at)) => self.flat[*at]
                .entry
                .outputs()
                .iter()
                .find(|spec| spec.types.iter().any(|one| takes.contains(one)))
                .map(|spec| spec.name),
            _ => None,
        };
        let help = match other {
            Some(port) => format!("did you mean `${name}.{port}`?"),
            None => match self.converter(types.as_slice(), takes) {
                Some(op) => format!("a node `{op}` in between converts it"),
                None => self.maker(scope, port, takes, at),
            },
        };
        let source = &self.scopes[scope].workflow.source;
        self.problems.push(
            Problem::new(
                Code::PortType,
                source,
                span,
                format!(
                    "`{port}` takes {}, and `{text}` is {}",
                    suggest::a(takes),
                    suggest::a(types.as_slice())
                ),
            )
            .label(suggest::a(types.as_slice()))
            .help(help),
        );
        false
    }

    /// What produces a value of one of the types: a node of the scope, or else ops.
    fn maker(&self, scope: usize, port: &str, takes: &[&str], not: Option<usize>) -> String {
        if let Some(found) = self.candidate(scope, port, takes, not) {
            return format!("`{found}` is {}", suggest::a(takes));
        }
        let ops: Vec<&str> = self
            .context
            .registry
            .iter()
            .filter(|entry| {
                let mut types = entry.outputs().iter().flat_map(|spec| spec.types);
                types.any(|one| takes.contains(one))
            })
            .map(|entry| entry.op())
            .take(6)
            .collect();
        if ops.is_empty() {
            return "no op produces such a value".to_owned();
        }
        format!(
            "{} is produced by {}",
            takes.join(" or "),
            suggest::list(&ops)
        )
    }

    /// An op that converts one type to the other.
    fn converter(&self, from: &[&str], to: &[&str]) -> Option<&'static str> {
        let meets = |ports: &[PortSpec], types: &[&str]| {
            ports
                .iter()
                .any(|port| port.types.iter().any(|one| types.contains(one)))
        };
        self.context
            .registry
            .iter()
            .find(|entry| {
                meets(entry.inputs(), from)
                    && entry
                        .outputs()
                        .first()
                        .is_some_and(|first| meets(std::slice::from_ref(first), to))
            })
            .map(|entry| entry.op())
    }

    fn link_help(&self, scope: usize, spec: &PortSpec, tree: &Tree, index: usize) -> String {
        let workflow = &self.scopes[scope].workflow;
        if let Some(text) = tree.as_text()
            && workflow
                .nodes
                .contains_key(text.split('.').next().unwrap_or(""))
        {
            return format!("did you mean `${text}`?");
        }
        self.candidate(scope, spec.name, spec.types, Some(index))
            .map_or_else(
                || format!("write `{}: $node`", spec.name),
                |found| format!("write `{}: {found}`", spec.name),
            )
    }

    /// A node of the scope that produces what a port takes: the one whose name has the longest common start with the
    /// port's, else the first.
    pub(super) fn candidate(
        &self,
        scope: usize,
        port: &str,
        types: &[&str],
        not: Option<usize>,
    ) -> Option<String> {
        let here = &self.scopes[scope];
        let alike = |name: &str| {
            port.bytes()
                .zip(name.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        };
        let mut best: Option<(usize, String)> = None;
        // Only the first nodes are searched: with thousands of faults this must not take long.
        for name in here.workflow.nodes.keys().take(100) {
            let Some(Slot::Op(index)) = here.slots.get(name) else {
                continue;
            };
            if Some(*index) == not {
                continue;
            }
            let outputs = self.flat[*index].entry.outputs().iter().enumerate();
            let makes = outputs
                .filter(|(_, output)| output.types.iter().any(|one| types.contains(one)))
                .map(|(at, output)| {
                    if at == 0 {
                        format!("${name}")
                    } else {
                        format!("${name}.{}", output.name)
                    }
                })
                .next();
            if let Some(text) = makes
                && best
                    .as_ref()
                    .is_none_or(|(alike_so_far, _)| alike(name) > *alike_so_far)
            {
                best = Some((alike(name), text));
            }
        }
        best.map(|(_, text)| text)
    }

    /// Checks what the inputs of an included workflow are linked to.
    pub(super) fn given_links(&mut self, scope: usize) {
        let Some(parent) = self.scopes[scope].parent else {
            return;
        };
        let inner = Arc::clone(&self.scopes[scope].workflow);
        for (name, decl) in &inner.inputs {
            let InputKind::Port(kind) = &decl.kind else {
                continue;
            };
            let Some(kind) = self.context.registry.port_type(kind) else {
                continue;
            };
            let Some(link) = self.scopes[scope].links.get(name).cloned() else {
                continue;
            };
            if link.value.is_empty() {
                continue;
            }
            match self.target(parent, &link.value, link.span) {
                Target::Link(_, types) => {
                    self.types_fit(parent, name, &[kind], &link.value, types, link.span, None);
                }
                Target::Open(types) => {
                    self.types_fit(parent, name, &[kind], &link.value, types, link.span, None);
                }
                Target::Absent if !decl.optional => {
                    let source = &self.scopes[parent].workflow.source;
                    self.problems.push(
                        Problem::new(
                            Code::MissingWith,
                            source,
                            link.span,
                            format!("`{}` is not given, and `{name}` is needed", link.value),
                        )
                        .also(&inner.source, decl.name_span, "declared here")
                        .help("remove `optional` from the outer input"),
                    );
                }
                Target::Value => {
                    let source = &self.scopes[parent].workflow.source;
                    self.problems.push(
                        Problem::new(
                            Code::LinkDue,
                            source,
                            link.span,
                            format!(
                                "the input `{name}` takes a {kind}, and `{}` is a value",
                                link.value
                            ),
                        )
                        .also(&inner.source, decl.name_span, "declared here")
                        .help(format!("write `{name}: $node`")),
                    );
                }
                Target::Absent | Target::Broken => {}
            }
        }
    }
}
