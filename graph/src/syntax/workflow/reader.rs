//! What reading a section needs: faults at their places, and values of a shape.

use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::suggest;
use crate::syntax::mismatch::Expected;
use crate::syntax::params::is_carried;
use crate::syntax::template::is_name;
use crate::syntax::workflow::decl::Spanned;
use crate::syntax::yaml::{MapKey, Node, Tree};

/// Reads the sections of a workflow; a fault is noted and reading goes on.
pub(super) struct WorkflowReader<'a> {
    pub(super) source: &'a Source,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl WorkflowReader<'_> {
    pub(super) fn report(
        &mut self,
        code: Code,
        span: Span,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.problems
            .push(Problem::new(code, self.source, span, message));
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    pub(super) fn fault(
        &mut self,
        code: Code,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let problem = self.report(code, span, message);
        *problem = problem.clone().help(help);
    }

    pub(super) fn unknown_key(&mut self, key: &MapKey, place: &str, known: &[&str]) {
        let help = suggest::nearest(&key.text, known.iter().copied()).map_or_else(
            || format!("the keys of {place} are {}", suggest::list(known)),
            |name| format!("did you mean `{name}`?"),
        );
        self.fault(
            Code::UnknownKey,
            key.span,
            format!("{place} has no key `{}`", key.text),
            help,
        );
    }

    pub(super) fn map(
        &mut self,
        tree: Tree,
        what: &str,
        help: &str,
    ) -> Option<Vec<(MapKey, Tree)>> {
        match tree.node {
            Node::Map(entries) => Some(entries),
            _ => {
                self.fault(
                    Code::WrongShape,
                    tree.span,
                    format!("{what} is a map, not {}", tree.describe()),
                    help,
                );
                None
            }
        }
    }

    pub(super) fn text(&mut self, key: &MapKey, tree: &Tree) -> Option<String> {
        match &tree.node {
            Node::String { text, .. } => Some(text.clone()),
            _ => {
                let mut mismatch = Expected::text().mismatch(&key.text, tree);
                if mismatch.code != Code::UnquotedTemplate {
                    mismatch.code = Code::WrongShape;
                }
                self.problems.push(mismatch.at(self.source, tree.span));
                None
            }
        }
    }

    pub(super) fn name(&mut self, key: &MapKey, what: &str) -> bool {
        if !is_name(&key.text) {
            self.fault(
                Code::BadName,
                key.span,
                format!("`{}` cannot name {what}", key.text.escape_debug()),
                "names are made of letters (a-z, A-Z), digits, `_` and `-`",
            );
            return false;
        }
        true
    }

    pub(super) fn section(&mut self, tree: Tree, name: &str, example: &str) -> Vec<(MapKey, Tree)> {
        if matches!(tree.node, Node::Null) {
            return Vec::new(); // `params:` with everything below it commented out
        }
        self.map(
            tree,
            &format!("`{name}`"),
            &format!("write one `{example}` a line"),
        )
        .unwrap_or_default()
        .into_iter()
        .filter(|(key, _)| !is_carried(&key.text))
        .collect()
    }

    pub(super) fn boolean(&mut self, key: &MapKey, tree: &Tree) -> bool {
        match &tree.node {
            Node::Bool(value) => *value,
            _ => {
                let mismatch = Expected::boolean().mismatch(&key.text, tree);
                self.problems.push(mismatch.at(self.source, tree.span));
                false
            }
        }
    }

    pub(super) fn spanned(&mut self, key: &MapKey, tree: &Tree) -> Option<Spanned<String>> {
        self.text(key, tree).map(|value| Spanned {
            value,
            span: tree.span,
        })
    }
}
