//! What `with:` gives to an included workflow.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::check::checker::{Binding, Checker};
use crate::check::resolve::Built;
use crate::check::settings::ValueOrigin;
use crate::syntax::params::{How, ParamType};
use crate::syntax::workflow::{InputKind, ParamDecl, Spanned, Workflow};
use crate::syntax::yaml::{MapKey, Node, Tree};

impl Checker<'_> {
    /// Binds what `with:` gives to the inputs and params of the included workflow `inner`: its values, and the
    /// references that its input ports are linked to.
    pub(super) fn with(
        &mut self,
        outer: usize,
        prefix: &str,
        name: &str,
        name_span: Span,
        inner: &Workflow,
        with: &[(MapKey, Tree)],
    ) -> (HashMap<String, Binding>, HashMap<String, Spanned<String>>) {
        let workflow = Arc::clone(&self.scopes[outer].workflow);
        let source = &workflow.source;
        let mut values: HashMap<String, Binding> = HashMap::new();
        let mut links = HashMap::new();
        for (key, tree) in with {
            let input = inner.inputs.get(&key.text);
            let decl = match input.map(|input| &input.kind) {
                Some(InputKind::Value(decl)) => decl,
                Some(InputKind::Port(_)) => {
                    let link = self.with_link(source, key, tree);
                    links.insert(key.text.clone(), link);
                    continue;
                }
                None => match inner.params.get(&key.text) {
                    Some(decl) => decl,
                    None => {
                        self.unknown_with(source, key, inner);
                        continue;
                    }
                },
            };
            let binding = self.with_value(outer, prefix, key, tree, decl, inner);
            values.insert(key.text.clone(), binding);
        }
        let missing = self.with_defaults(prefix, inner, &mut values, &links);
        for missing in missing {
            let declared = inner
                .inputs
                .get(missing)
                .map(|decl| decl.name_span)
                .or_else(|| inner.params.get(missing).map(|decl| decl.name_span));
            let mut problem = Problem::new(
                Code::MissingWith,
                source,
                name_span,
                format!(
                    "`{name}` is not given `{missing}`, which `{}` needs",
                    inner.source.name()
                ),
            )
            .help(format!("add `with: {{{missing}: ...}}`"));
            if let Some(span) = declared {
                problem = problem.also(&inner.source, span, "declared here");
            }
            self.problems.push(problem);
        }
        (values, links)
    }

    /// The reference that an input port is linked to; empty after a fault, so that the input does not count as missing.
    fn with_link(&mut self, source: &Source, key: &MapKey, tree: &Tree) -> Spanned<String> {
        let span = tree.span;
        if let Some(text) = tree.as_text()
            && text.starts_with('$')
            && !text.starts_with("$$")
        {
            let value = text.to_owned();
            return Spanned { value, span };
        }
        self.problems.push(
            Problem::new(
                Code::LinkDue,
                source,
                span,
                format!(
                    "the input `{}` takes a reference to a node's output, not {}",
                    key.text,
                    tree.describe()
                ),
            )
            .help(format!("write `{}: $node`", key.text)),
        );
        let value = String::new();
        Spanned { value, span }
    }

    fn unknown_with(&mut self, source: &Source, key: &MapKey, inner: &Workflow) {
        let known = inner.inputs.keys().chain(inner.params.keys());
        let help = self.hint(&key.text, "inputs and params", known.map(String::as_str));
        self.problems.push(
            Problem::new(
                Code::UnknownWith,
                source,
                key.span,
                format!(
                    "`{}` has no input or param `{}`",
                    inner.source.name(),
                    key.text
                ),
            )
            .maybe_help(help),
        );
    }

    /// Binds what is not given to its default; the names of what has none and is needed.
    fn with_defaults<'w>(
        &mut self,
        prefix: &str,
        inner: &'w Workflow,
        values: &mut HashMap<String, Binding>,
        links: &HashMap<String, Spanned<String>>,
    ) -> Vec<&'w str> {
        let mut missing = Vec::new();
        for (input, decl) in &inner.inputs {
            match &decl.kind {
                InputKind::Port(_) => {
                    if !links.contains_key(input) && !decl.optional {
                        missing.push(input.as_str());
                    }
                }
                InputKind::Value(value) => {
                    if !values.contains_key(input) {
                        let binding = self.default_of(prefix, input, value, inner);
                        let binding = binding.unwrap_or_else(|| {
                            if decl.optional {
                                return Binding::Absent;
                            }
                            missing.push(input);
                            Binding::Broken
                        });
                        values.insert(input.clone(), binding);
                    }
                }
            }
        }
        for (param, decl) in &inner.params {
            if !values.contains_key(param) {
                let binding = self.default_of(prefix, param, decl, inner);
                let binding = binding.unwrap_or_else(|| {
                    if !decl.optional {
                        missing.push(param);
                    }
                    Binding::Broken
                });
                values.insert(param.clone(), binding);
            }
        }
        missing
    }

    /// A value that `with:` gives: written there, filled in, or bound in the outer workflow.
    fn with_value(
        &mut self,
        outer: usize,
        prefix: &str,
        key: &MapKey,
        tree: &Tree,
        decl: &ParamDecl,
        inner: &Workflow,
    ) -> Binding {
        let workflow = Arc::clone(&self.scopes[outer].workflow);
        let source = &workflow.source;
        let declared = (inner.source.clone(), decl.name_span);
        let mut origin = ValueOrigin {
            source: source.clone(),
            span: tree.span,
            folder: Arc::clone(&workflow.folder),
            how: How::With,
        };
        let mut literal = tree.clone();
        if let Node::String { text, quoted } = &tree.node {
            if let Some(rest) = text.strip_prefix("$$") {
                literal.node = Node::String {
                    text: format!("${rest}"),
                    quoted: *quoted,
                };
            } else if text.starts_with('$') {
                match self.value_reference(outer, text, tree.span, &key.text) {
                    Built::Absent => return Binding::Absent,
                    Built::Broken => return Binding::Broken,
                    Built::Value(_) => {}
                }
                let Some(Binding::Value(bound)) = self.bound(outer, text) else {
                    return Binding::Broken;
                };
                literal = Tree::of(&bound.value, tree.span);
                origin.folder = bound.origin.folder;
                if decl.kind == ParamType::Path && bound.kind != ParamType::Path {
                    origin.folder = Arc::clone(&workflow.folder);
                }
            } else if decl.kind == ParamType::String {
                match self.fill(outer, text, tree.span, &[]) {
                    Some(text) => {
                        literal.node = Node::String {
                            text,
                            quoted: *quoted,
                        };
                    }
                    None => return Binding::Broken,
                }
            }
        }
        match decl.read(&key.text, &literal) {
            Ok(value) => self.bind(prefix, &key.text, decl.kind, declared, value, origin),
            Err(mismatch) => {
                self.problems.push(mismatch.at(source, tree.span).also(
                    &inner.source,
                    decl.name_span,
                    "declared here",
                ));
                Binding::Broken
            }
        }
    }
}
