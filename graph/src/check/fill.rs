//! Templates: `{name}` in texts, filled in from params and inputs.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::check::budget::text_bytes;
use crate::check::checker::{Binding, Checker};
use crate::syntax::template::{self, Piece, TemplateFault};
use crate::syntax::workflow::{InputKind, Workflow};

impl Checker<'_> {
    /// Fills in a template; `extra` are names that only this one knows.
    pub(super) fn fill(
        &mut self,
        scope: usize,
        text: &str,
        span: Span,
        extra: &[(&str, &str)],
    ) -> Option<String> {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        let source = &workflow.source;
        if !text.contains(['{', '}']) {
            return self.take(source, span, text.len()).then(|| text.to_owned());
        }
        let pieces = match template::pieces(text) {
            Ok(pieces) => pieces,
            Err(fault) => {
                self.bad_template(source, text, span, &fault);
                return None;
            }
        };
        let mut filled = String::new();
        let mut broken = false;
        for piece in pieces {
            let (name, range) = match piece {
                Piece::Text(text) => {
                    if !self.take(source, span, text.len()) {
                        return None;
                    }
                    filled.push_str(&text);
                    continue;
                }
                Piece::Name(name, range) => (name, range),
            };
            let own = extra.iter().find(|(known, _)| *known == name);
            let bytes = match self.scopes[scope].values.get(name) {
                Some(Binding::Value(bound)) => text_bytes(&bound.value),
                Some(_) => 0,
                None => own.map_or(0, |(_, text)| text.len()),
            };
            if !self.take(source, span, bytes) {
                return None;
            }
            let place = within(source, span, text.get(range).unwrap_or(""));
            let Some(binding) = self.scopes[scope].values.get(name) else {
                match own {
                    Some((_, text)) => filled.push_str(text),
                    None => {
                        broken = true;
                        self.unknown_template_name(&workflow, name, place, extra);
                    }
                }
                continue;
            };
            if scope == 0 {
                self.used.insert(name.to_owned());
            }
            let message = match binding {
                Binding::Value(bound) => match &bound.value {
                    Json::Array(_) => {
                        format!("`{name}` is a list, which cannot be part of a text")
                    }
                    Json::String(text) => {
                        filled.push_str(text);
                        continue;
                    }
                    other => {
                        filled.push_str(&other.to_string());
                        continue;
                    }
                },
                Binding::Absent => format!("the input `{name}` is not given"),
                Binding::Broken => {
                    broken = true;
                    continue;
                }
            };
            broken = true;
            self.problems.push(
                Problem::new(Code::BadTemplate, source, place, message)
                    .help("use another param in the template"),
            );
        }
        (!broken).then_some(filled)
    }

    /// Reports braces that do not make a template.
    fn bad_template(&mut self, source: &Source, text: &str, span: Span, fault: &TemplateFault) {
        // Everything from the fault to the end of the text: a longer piece is found in one place only.
        let (TemplateFault::Brace(at) | TemplateFault::NotAName(Range { start: at, .. })) = fault;
        let tail = within(source, span, text.get(*at..).unwrap_or(""));
        let place = if tail == span && *at > 0 {
            span // written with escapes, or over several lines
        } else {
            let end = match fault {
                TemplateFault::Brace(_) => tail.start + 1,
                TemplateFault::NotAName(range) => tail.start + range.len(),
            };
            Span::new(tail.start, end)
        };
        let (message, help) = match fault {
            TemplateFault::Brace(_) => (
                "the template has a single brace".to_owned(),
                "a brace in the text is written twice: `{{` or `}}`",
            ),
            TemplateFault::NotAName(range) => (
                format!(
                    "`{}` in the template does not name a param",
                    text.get(range.clone()).unwrap_or("").escape_debug()
                ),
                "write `{name}`; a brace in the text is written twice: `{{` or `}}`",
            ),
        };
        self.problems
            .push(Problem::new(Code::BadTemplate, source, place, message).help(help));
    }

    fn unknown_template_name(
        &mut self,
        workflow: &Workflow,
        name: &str,
        place: Span,
        extra: &[(&str, &str)],
    ) {
        let help = if workflow.inputs.contains_key(name) {
            Some(format!("the input `{name}` is a link, not a text"))
        } else {
            let inputs = (workflow.inputs.iter())
                .filter(|(_, decl)| matches!(decl.kind, InputKind::Value(_)))
                .map(|(name, _)| name.as_str());
            let params = workflow.params.keys().map(String::as_str);
            let extra = extra.iter().map(|(name, _)| *name);
            let known: Vec<&str> = params.chain(inputs).chain(extra).collect();
            self.hint(name, "params", known)
        };
        self.problems.push(
            Problem::new(
                Code::UnknownTemplateName,
                &workflow.source,
                place,
                format!("the template names `{name}`, and there is no such param"),
            )
            .maybe_help(help),
        );
    }
}

/// The place of a piece of a text inside the text's span, or the whole span (escapes, blocks).
pub(super) fn within(source: &Source, span: Span, piece: &str) -> Span {
    match source.slice(span).find(piece) {
        Some(at) if !piece.is_empty() => Span::new(span.start + at, span.start + at + piece.len()),
        _ => span,
    }
}
