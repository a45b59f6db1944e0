//! The fields of a node: parameters, built as JSON and read into the op's struct, and ports.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::remote;
use crate::base::suggest;
use crate::check::budget::text_bytes;
use crate::check::checker::{Binding, Checker};
use crate::check::resolve::{Built, value_name};
use crate::check::settings::ResolvedParam;
use crate::op::erased::{ErasedNode, PathStep};
use crate::op::registry::{Entry, Field};
use crate::op::shape::{Shape, Text, range, words};
use crate::syntax::mismatch::{Mismatch, no_path};
use crate::syntax::params::How;
use crate::syntax::workflow::{NodeBody, NodeDecl, Workflow};
use crate::syntax::yaml::{MapKey, Node, Tree};
use crate::value::port::Arity;

/// Which ports and params of an op have a key in the node.
struct Present {
    ports: Vec<bool>,
    params: Vec<bool>,
}

impl Present {
    fn mark(&mut self, field: Field) {
        match field {
            Field::Port(port) => self.ports[port] = true,
            Field::Param(param) => self.params[param] = true,
        }
    }
}

impl Checker<'_> {
    /// Reads the fields of a node: links its ports and builds the op's struct.
    pub(super) fn fields(&mut self, index: usize) {
        let scope = self.flat[index].scope;
        let at = self.flat[index].at;
        let entry = Arc::clone(&self.flat[index].entry);
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        let Some((name, decl)) = workflow.nodes.get_index(at) else {
            return;
        };
        let NodeBody::Op { fields, .. } = &decl.body else {
            return;
        };
        let mut params = serde_json::Map::new();
        let mut present = Present {
            ports: vec![false; entry.inputs().len()],
            params: vec![false; entry.params().len()],
        };
        let mut broken = false;
        for (key, tree) in fields {
            match entry.field(&key.text) {
                Some(Field::Port(port)) => {
                    present.ports[port] = true;
                    let before = self.problems.len();
                    self.port(index, scope, port, &entry.inputs()[port], tree);
                    broken |= self.problems.len() > before;
                }
                Some(Field::Param(param)) => {
                    let info = &entry.params()[param];
                    match self.build(index, scope, &info.name, tree, &info.shape) {
                        Built::Value(value) => {
                            present.params[param] = true;
                            params.insert(info.name.clone(), value);
                        }
                        Built::Absent => {}
                        Built::Broken => {
                            present.params[param] = true;
                            broken = true;
                        }
                    }
                }
                None => {
                    broken = true;
                    // A mistyped key is one fault, not a missing key too.
                    let meant = suggest::nearest(&key.text, entry.field_names());
                    if let Some(field) = meant.and_then(|name| entry.field(name)) {
                        present.mark(field);
                    }
                    self.unknown_field(&workflow.source, &entry, key);
                }
            }
        }
        broken |= self.missing_ports(index, name, decl, &present);
        broken |= self.missing_params(index, name, decl, &present);
        self.make(index, &workflow, params, broken);
    }

    fn unknown_field(&mut self, source: &Source, entry: &Entry, key: &MapKey) {
        let help = if key.text == "with" {
            Some("`with` belongs to `use:`; an op's parameters are keys next to `op`".to_owned())
        } else {
            self.hint(&key.text, "keys of this op", entry.field_names())
        };
        self.problems.push(
            Problem::new(
                Code::UnknownField,
                source,
                key.span,
                format!(
                    "`{}` has neither a parameter nor a port `{}`",
                    entry.op(),
                    key.text
                ),
            )
            .maybe_help(help),
        );
    }

    /// Reports required ports without a link; whether there are any. A node that was not read in full may have them all.
    fn missing_ports(
        &mut self,
        index: usize,
        name: &str,
        decl: &NodeDecl,
        present: &Present,
    ) -> bool {
        let scope = self.flat[index].scope;
        let entry = Arc::clone(&self.flat[index].entry);
        let mut missing = false;
        for (spec, present) in entry.inputs().iter().zip(&present.ports) {
            if spec.arity != Arity::One || *present {
                continue;
            }
            missing = true;
            if decl.tainted {
                continue;
            }
            let help = self
                .candidate(scope, spec.name, spec.types, Some(index))
                .map_or_else(
                    || format!("add `{}: $node`", spec.name),
                    |found| format!("add `{}: {found}`", spec.name),
                );
            let source = &self.scopes[scope].workflow.source;
            self.problems.push(
                Problem::new(
                    Code::MissingLink,
                    source,
                    decl.name_span,
                    format!(
                        "`{name}` ({}) is not linked to its {}: the port `{}` is missing",
                        entry.op(),
                        spec.types.join(" or "),
                        spec.name
                    ),
                )
                .help(help),
            );
        }
        missing
    }

    /// Reports required params without a value; whether there are any.
    fn missing_params(
        &mut self,
        index: usize,
        name: &str,
        decl: &NodeDecl,
        present: &Present,
    ) -> bool {
        let entry = Arc::clone(&self.flat[index].entry);
        let source = &self.scopes[self.flat[index].scope].workflow.source;
        let mut missing = false;
        for (info, present) in entry.params().iter().zip(&present.params) {
            if !info.required || *present {
                continue;
            }
            missing = true;
            if decl.tainted {
                continue;
            }
            self.problems.push(
                Problem::new(
                    Code::MissingField,
                    source,
                    decl.name_span,
                    format!(
                        "`{name}` ({}) needs the parameter `{}`",
                        entry.op(),
                        info.name
                    ),
                )
                .help(format!(
                    "add `{}: ...`; it takes {}",
                    info.name,
                    info.takes()
                )),
            );
        }
        missing
    }

    /// Deserialises the parameters into the op's struct. A parameter that serde refuses is reported and left out, and the
    /// rest is tried again, so that all faults are found. With `broken` nothing is kept.
    fn make(
        &mut self,
        index: usize,
        workflow: &Workflow,
        params: serde_json::Map<String, Json>,
        mut broken: bool,
    ) {
        let entry = Arc::clone(&self.flat[index].entry);
        let Some((name, decl)) = workflow.nodes.get_index(self.flat[index].at) else {
            return;
        };
        let NodeBody::Op { fields, .. } = &decl.body else {
            return;
        };
        let mut params = Json::Object(params);
        loop {
            let refusal = match entry.make(&params) {
                Ok(node) => {
                    if !broken {
                        self.keep(index, workflow, node);
                    }
                    return;
                }
                Err(refusal) => refusal,
            };
            let first = match refusal.path.first() {
                Some(PathStep::Key(key)) if params.get(key).is_some() => key.clone(),
                _ => {
                    // A parameter that was left out above may be what is missed here.
                    if !broken {
                        self.problems.push(
                            Problem::new(
                                Code::ValueType,
                                &workflow.source,
                                decl.name_span,
                                format!(
                                    "the parameters of `{name}` do not fit: {}",
                                    refusal.message
                                ),
                            )
                            .help(format!(
                                "`retouch nodes {}` shows what it takes",
                                entry.op()
                            )),
                        );
                    }
                    return;
                }
            };
            broken = true;
            if let Json::Object(params) = &mut params {
                params.shift_remove(&first);
            }
            let tree = fields.iter().find(|(key, _)| key.text == first);
            let span = tree.map_or(decl.name_span, |(_, tree)| place(tree, &refusal.path[1..]));
            let takes = entry
                .params()
                .iter()
                .find(|info| info.name == first)
                .map(|info| format!("it takes {}", info.takes()));
            let mut problem = Problem::new(
                Code::ValueType,
                &workflow.source,
                span,
                format!("`{first}`: {}", refusal.message),
            )
            .maybe_help(takes);
            if let Some((_, tree)) = tree {
                problem = self.with_origin(problem, self.flat[index].scope, tree);
            }
            self.problems.push(problem);
        }
    }

    /// Keeps a node and its parameters as the cache key has them: defaults filled in, paths left out.
    fn keep(&mut self, index: usize, workflow: &Workflow, node: Box<dyn ErasedNode>) {
        let flat = &mut self.flat[index];
        match node.params() {
            Ok(mut values) => {
                if let Json::Object(values) = &mut values {
                    for info in flat.entry.params() {
                        if info.shape.keyless {
                            values.remove(&info.name);
                        } else if info.shape.has_path
                            && let Some(value) = values.get_mut(&info.name)
                        {
                            info.shape.without_paths(value);
                        }
                    }
                }
                flat.params = values;
                flat.node = Some(Arc::from(node));
            }
            Err(message) => {
                let (name, span) = (workflow.nodes.get_index(flat.at))
                    .map_or(("", Span::default()), |(name, decl)| {
                        (name.as_str(), decl.name_span)
                    });
                self.problems.push(
                    Problem::new(
                        Code::NodeValue,
                        &workflow.source,
                        span,
                        format!("the parameters of `{name}` cannot be written as JSON: {message}"),
                    )
                    .help("a number that is not finite cannot be a parameter"),
                );
            }
        }
    }

    fn mismatch(&mut self, scope: usize, span: Span, mismatch: Mismatch) -> Built {
        let source = &self.scopes[scope].workflow.source;
        self.problems.push(mismatch.at(source, span));
        Built::Broken
    }

    /// Builds the JSON of a parameter: references followed, templates filled in, paths resolved.
    fn build(
        &mut self,
        index: usize,
        scope: usize,
        name: &str,
        tree: &Tree,
        shape: &Shape,
    ) -> Built {
        match &tree.node {
            Node::Null if shape.null => Built::Value(Json::Null),
            Node::Bool(value) if shape.boolean => Built::Value(Json::from(*value)),
            Node::Int(value) if shape.integer || shape.number => {
                self.ranged(scope, name, tree.span, shape, Json::from(*value))
            }
            Node::Float(value) if shape.number => {
                self.ranged(scope, name, tree.span, shape, Json::from(*value))
            }
            Node::Seq(items) if shape.array => {
                let anything = Shape::of(&Json::Bool(true));
                let mut values = Vec::with_capacity(items.len());
                let mut broken = false;
                for (at, item) in items.iter().enumerate() {
                    let shape = shape.item(at).unwrap_or(&anything);
                    match self.build(index, scope, name, item, shape) {
                        Built::Value(value) => values.push(value),
                        Built::Absent => {}
                        Built::Broken => broken = true,
                    }
                }
                if broken {
                    Built::Broken
                } else {
                    Built::Value(Json::Array(values))
                }
            }
            Node::Map(entries) if shape.object => {
                let anything = Shape::of(&Json::Bool(true));
                let mut values = serde_json::Map::new();
                let mut broken = false;
                for (key, value) in entries {
                    let shape = shape.property(&key.text).unwrap_or(&anything);
                    match self.build(index, scope, &key.text, value, shape) {
                        Built::Value(value) => {
                            values.insert(key.text.clone(), value);
                        }
                        Built::Absent => {}
                        Built::Broken => broken = true,
                    }
                }
                if broken {
                    Built::Broken
                } else {
                    Built::Value(Json::Object(values))
                }
            }
            Node::String { text, .. } => self.build_text(index, scope, name, text, tree, shape),
            _ => self.mismatch(scope, tree.span, shape.expected().mismatch(name, tree)),
        }
    }

    /// [`Checker::build`] of a text: a reference, `random`, a template, a path or a word.
    fn build_text(
        &mut self,
        index: usize,
        scope: usize,
        name: &str,
        text: &str,
        tree: &Tree,
        shape: &Shape,
    ) -> Built {
        if text.starts_with('$') && !text.starts_with("$$") {
            return self.referred(scope, name, text, tree, shape);
        }
        if shape.seed && text == "random" {
            let name = format!("{}.{name}", self.node_name(index));
            let source = self.scopes[scope].workflow.source.clone();
            let (drawn, line) = self.draw(&name, &source, tree.span);
            self.resolved.push(ResolvedParam {
                name,
                value: Json::from(drawn),
                from: How::Drawn,
                folder: Arc::default(),
                line: Some(line),
            });
            return Built::Value(Json::from(drawn));
        }
        if !shape.string {
            return self.mismatch(scope, tree.span, shape.expected().mismatch(name, tree));
        }
        // `$$` is a dollar.
        let text = match text.strip_prefix('$') {
            Some(rest) if rest.starts_with('$') => rest,
            _ => text,
        };
        match shape.text {
            Text::Template => match self.fill(scope, text, tree.span, &[]) {
                Some(text) => Built::Value(Json::from(text)),
                None => Built::Broken,
            },
            Text::Path => match no_path(name, text) {
                Some(mismatch) => self.mismatch(scope, tree.span, mismatch),
                None if !self.has_room(scope, tree.span, text.len()) => Built::Broken,
                None => Built::Value(joined(&self.scopes[scope].workflow.folder, text)),
            },
            Text::Plain => match words(name, text, tree, shape) {
                Some(mismatch) => self.mismatch(scope, tree.span, mismatch),
                None if !self.has_room(scope, tree.span, text.len()) => Built::Broken,
                None => Built::Value(Json::from(text)),
            },
        }
    }

    /// The value of a param or an input in place of a parameter's own.
    fn referred(
        &mut self,
        scope: usize,
        name: &str,
        text: &str,
        tree: &Tree,
        shape: &Shape,
    ) -> Built {
        match self.value_reference(scope, text, tree.span, name) {
            Built::Value(_) => {}
            other => return other,
        }
        let bytes = match self.scopes[scope]
            .values
            .get(value_name(text).unwrap_or(""))
        {
            Some(Binding::Value(bound)) => text_bytes(&bound.value),
            _ => 0,
        };
        if !self.has_room(scope, tree.span, bytes) {
            return Built::Broken;
        }
        let Some(Binding::Value(bound)) = self.bound(scope, text) else {
            return Built::Broken;
        };
        let source = self.scopes[scope].workflow.source.clone();
        let (decl_source, decl_span) = &bound.decl;
        if !shape.fits(bound.kind) {
            self.problems.push(
                Problem::new(
                    Code::ParamType,
                    &source,
                    tree.span,
                    format!(
                        "`{name}` takes {}, and `{text}` is a {}",
                        shape.due(),
                        bound.kind
                    ),
                )
                .also(
                    decl_source,
                    *decl_span,
                    format!("declared as {} here", bound.kind),
                )
                .help("change the declared type, or use another param"),
            );
            return Built::Broken;
        }
        let value = match &bound.value {
            Json::String(text) if shape.text == Text::Path => joined(&bound.origin.folder, text),
            other => other.clone(),
        };
        let as_tree = Tree::of(&bound.value, tree.span);
        let mismatch = match &bound.value {
            Json::Number(number) if !shape.number && number.as_i64().is_none() => {
                Some(shape.expected().mismatch(name, &as_tree))
            }
            Json::Number(_) => range(name, &bound.value, shape),
            Json::String(text) if shape.text == Text::Plain => words(name, text, &as_tree, shape),
            _ => None,
        };
        if let Some(mismatch) = mismatch {
            self.problems.push(mismatch.at(&source, tree.span).also(
                &bound.origin.source,
                bound.origin.span,
                "the value is from here",
            ));
            return Built::Broken;
        }
        Built::Value(value)
    }

    fn ranged(
        &mut self,
        scope: usize,
        name: &str,
        span: Span,
        shape: &Shape,
        value: Json,
    ) -> Built {
        match range(name, &value, shape) {
            Some(mismatch) => self.mismatch(scope, span, mismatch),
            None => Built::Value(value),
        }
    }
}

/// The place of a value inside a tree, or of the innermost part that the path reaches.
fn place(tree: &Tree, path: &[PathStep]) -> Span {
    let mut at = tree;
    for step in path {
        let next = match (step, &at.node) {
            (PathStep::Key(name), Node::Map(entries)) => entries
                .iter()
                .find(|(key, _)| key.text == *name)
                .map(|(_, value)| value),
            (PathStep::Index(index), Node::Seq(items)) => items.get(*index),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    at.span
}

fn joined(folder: &Path, text: &str) -> Json {
    let path = remote::join(folder, text);
    // Lossless, except for a folder whose own name is not Unicode.
    Json::from(path.to_string_lossy().into_owned())
}
