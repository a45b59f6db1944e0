//! Warnings: what is odd, but not a fault.

use std::collections::HashMap;

use crate::base::problem::{self, Code, Problem, Source, Span};
use crate::check::checker::{Checker, Slot};
use crate::check::result::CheckedOutput;

impl Checker<'_> {
    pub(super) fn warnings(&self, outputs: &[(CheckedOutput, Span)]) -> Vec<Problem> {
        let mut warnings = self.not_fetched.clone();
        warnings.extend(self.node_warnings.iter().cloned());
        let workflow = &self.scopes[0].workflow;
        for (name, decl) in &workflow.params {
            if !self.used.contains(name) {
                warnings.push(
                    Problem::new(
                        Code::UnusedParam,
                        &workflow.source,
                        decl.name_span,
                        format!("nothing uses the param `{name}`"),
                    )
                    .warning()
                    .help(format!(
                        "use it as `$params.{name}` or `{{{name}}}`, or remove it"
                    )),
                );
            }
        }
        if !outputs.is_empty() {
            let mut reached = vec![false; self.flat.len()];
            let mut open: Vec<usize> = outputs.iter().map(|(output, _)| output.link.node).collect();
            while let Some(index) = open.pop() {
                if !std::mem::replace(&mut reached[index], true) {
                    open.extend(
                        self.flat[index]
                            .links
                            .iter()
                            .flatten()
                            .map(|(link, _)| link.node),
                    );
                }
            }
            // A used workflow is reached when any of its nodes is.
            let mut scopes = vec![false; self.scopes.len()];
            for (flat, reached) in self.flat.iter().zip(&reached) {
                let mut scope = reached.then_some(flat.scope);
                while let Some(at) = scope {
                    if std::mem::replace(&mut scopes[at], true) {
                        break;
                    }
                    scope = self.scopes[at].parent;
                }
            }
            for (name, decl) in &workflow.nodes {
                let used = match self.scopes[0].slots.get(name) {
                    Some(Slot::Op(index)) => reached[*index],
                    Some(Slot::Use(scope)) => scopes[*scope],
                    _ => true,
                };
                if !used {
                    warnings.push(
                        Problem::new(
                            Code::UnusedNode,
                            &workflow.source,
                            decl.name_span,
                            format!("no output depends on the node `{name}`"),
                        )
                        .warning()
                        .help("link it to something, make an output of it, or remove it"),
                    );
                }
            }
        }
        problem::sort(&mut warnings);
        warnings
    }
}

/// A number that is too large is read as a text; the faults that follow from that are dropped.
pub(super) fn one_for_each_number(problems: &mut Vec<Problem>) {
    let mut numbers: HashMap<Span, Vec<Source>> = HashMap::new();
    for problem in problems.iter() {
        if problem.code() == Code::NumberOutOfRange {
            let sources = numbers.entry(problem.span()).or_default();
            sources.push(problem.source_text().clone());
        }
    }
    if !numbers.is_empty() {
        problems.retain(|problem| {
            problem.code() == Code::NumberOutOfRange
                || !(numbers.get(&problem.span()).into_iter().flatten())
                    .any(|source| source.same(problem.source_text()))
        });
    }
}
