//! Params, and inputs of a reusable workflow.

use crate::base::problem::{Code, Span};
use crate::base::suggest;
use crate::syntax::mismatch::Expected;
use crate::syntax::params::{ParamType, is_carried};
use crate::syntax::workflow::decl::{InputDecl, InputKind, ParamDecl, Spanned};
use crate::syntax::workflow::reader::WorkflowReader;
use crate::syntax::yaml::{MapKey, Node, Tree};

impl WorkflowReader<'_> {
    /// A param, or an input that is a value; the second value is where the type is written.
    pub(super) fn param(&mut self, key: &MapKey, tree: Tree) -> Option<(ParamDecl, Span)> {
        const KEYS: &[&str] = &["type", "default", "min", "max", "values", "help"];
        let entries = self.map(
            tree,
            &format!("the param `{}`", key.text),
            &format!("write `{}: {{type: string, default: \"...\"}}`", key.text),
        )?;
        let (kind, type_span) = self.kind(key, &entries, "param", ParamType::parse)?;
        self.value_decl(key, entries, kind, KEYS)
            .map(|decl| (decl, type_span))
    }

    fn kind<T>(
        &mut self,
        key: &MapKey,
        entries: &[(MapKey, Tree)],
        what: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<(T, Span)> {
        let Some((type_key, tree)) = entries.iter().find(|(key, _)| key.text == "type") else {
            self.fault(
                Code::MissingKey,
                key.span,
                format!("the {what} `{}` has no `type`", key.text),
                format!("add `type: string`, or another of {}", types()),
            );
            return None;
        };
        let text = self.text(type_key, tree)?;
        match parse(&text) {
            Some(kind) => Some((kind, tree.span)),
            None => {
                let help = suggest::nearest(&text, ParamType::ALL.map(ParamType::name))
                    .map_or_else(
                        || format!("the types are {}", types()),
                        |name| format!("did you mean `{name}`?"),
                    );
                self.fault(
                    Code::UnknownType,
                    tree.span,
                    format!("there is no type `{}`", text.escape_debug()),
                    help,
                );
                None
            }
        }
    }

    fn value_decl(
        &mut self,
        name: &MapKey,
        entries: Vec<(MapKey, Tree)>,
        kind: ParamType,
        keys: &[&str],
    ) -> Option<ParamDecl> {
        let mut decl = ParamDecl {
            name_span: name.span,
            kind,
            default: None,
            min: None,
            max: None,
            values: Vec::new(),
            help: None,
            optional: false,
        };
        let mut default = None;
        let mut max_span = None;
        let numeric = matches!(kind, ParamType::Int | ParamType::Float | ParamType::Seed);
        for (key, tree) in entries {
            match key.text.as_str() {
                "type" => {}
                "default" => default = Some(tree),
                "min" if numeric => decl.min = self.bound(&key, &tree).or(decl.min),
                "max" if numeric => {
                    if let Some(max) = self.bound(&key, &tree) {
                        decl.max = Some(max);
                        max_span = Some(tree.span);
                    }
                }
                "min" | "max" => self.fault(
                    Code::BadDeclaration,
                    key.span,
                    format!(
                        "`{}` is for numbers, and `{}` is a {kind}",
                        key.text, name.text
                    ),
                    "remove it",
                ),
                "values" if kind == ParamType::Choice => {
                    decl.values.extend(self.choices(&key, &tree));
                }
                "values" => self.fault(
                    Code::BadDeclaration,
                    key.span,
                    format!("`values` is for a choice, and `{}` is a {kind}", name.text),
                    "write `type: choice`, or remove it",
                ),
                "help" => decl.help = self.text(&key, &tree),
                "optional" if keys.contains(&"optional") => {
                    decl.optional = self.boolean(&key, &tree);
                }
                other if is_carried(other) => {}
                _ => {
                    let place = format!("the declaration of `{}`", name.text);
                    self.unknown_key(&key, &place, keys);
                    // It may have been meant as the default.
                    decl.optional = true;
                }
            }
        }
        if kind == ParamType::Choice && decl.values.is_empty() {
            self.fault(
                Code::BadDeclaration,
                name.span,
                format!("the choice `{}` has no `values`", name.text),
                "add `values: [one, two]`",
            );
            return None;
        }
        if let (Some(min), Some(max), Some(span)) = (decl.min, decl.max, max_span)
            && min > max
        {
            self.fault(
                Code::BadDeclaration,
                span,
                format!("the maximum of `{}` is below its minimum", name.text),
                "swap them",
            );
            decl.min = None;
            decl.max = None;
        }
        if let Some(tree) = default {
            self.default(name, &tree, &mut decl);
        }
        Some(decl)
    }

    /// A bound of a number.
    fn bound(&mut self, key: &MapKey, tree: &Tree) -> Option<f64> {
        match &tree.node {
            #[expect(clippy::cast_precision_loss, reason = "at most 2^53 - 1")]
            Node::Int(value) => Some(*value as f64),
            Node::Float(value) => Some(*value),
            _ => {
                let mismatch = Expected::number().mismatch(&key.text, tree);
                self.problems.push(mismatch.at(self.source, tree.span));
                None
            }
        }
    }

    /// The values of a choice.
    fn choices(&mut self, key: &MapKey, tree: &Tree) -> Vec<String> {
        if let Node::Seq(items) = &tree.node {
            return (items.iter())
                .filter_map(|item| self.text(key, item))
                .collect();
        }
        self.fault(
            Code::WrongShape,
            tree.span,
            format!("`values` is a list of texts, not {}", tree.describe()),
            "write `values: [one, two]`",
        );
        Vec::new()
    }

    fn default(&mut self, name: &MapKey, tree: &Tree, decl: &mut ParamDecl) {
        match decl.read(&name.text, tree) {
            Ok(value) => {
                let span = tree.span;
                decl.default = Some(Spanned { value, span });
            }
            Err(mut mismatch) => {
                mismatch.code = Code::BadDeclaration;
                mismatch.message = format!("the default does not fit: {}", mismatch.message);
                self.problems.push(mismatch.at(self.source, tree.span));
                // The param itself is known, and what refers to it is not at fault.
                decl.optional = true;
            }
        }
    }

    pub(super) fn input(&mut self, key: &MapKey, tree: Tree) -> Option<InputDecl> {
        const VALUE_KEYS: &[&str] = &[
            "type", "default", "min", "max", "values", "help", "optional",
        ];
        const PORT_KEYS: &[&str] = &["type", "help", "optional"];
        let entries = self.map(
            tree,
            &format!("the input `{}`", key.text),
            &format!("write `{}: {{type: image}}`", key.text),
        )?;
        // Whether a type that is not one of the params' is a port's is for the registry to say.
        let (text, type_span) = self.kind(key, &entries, "input", |text| Some(text.to_owned()))?;
        let mut decl = InputDecl {
            name_span: key.span,
            type_span,
            kind: InputKind::Port(text.clone()),
            optional: false,
            help: None,
        };
        if let Some(kind) = ParamType::parse(&text) {
            let value = self.value_decl(key, entries, kind, VALUE_KEYS)?;
            decl.optional = value.optional;
            decl.help.clone_from(&value.help);
            decl.kind = InputKind::Value(value);
            return Some(decl);
        }
        for (field, tree) in entries {
            match field.text.as_str() {
                "type" => {}
                "help" => decl.help = self.text(&field, &tree),
                "optional" => decl.optional = self.boolean(&field, &tree),
                "default" => self.fault(
                    Code::BadDeclaration,
                    field.span,
                    format!("an input of type {text} is a link and has no default"),
                    "write `optional: true` if it may be left out",
                ),
                other if is_carried(other) => {}
                _ => {
                    let place = format!("the declaration of `{}`", key.text);
                    self.unknown_key(&field, &place, PORT_KEYS);
                }
            }
        }
        Some(decl)
    }
}

fn types() -> String {
    suggest::list(&ParamType::ALL.map(ParamType::name))
}
