//! Binding values to params and inputs, and drawing seeds.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::draw;
use crate::base::paths::folder_of;
use crate::base::problem::{Source, Span};
use crate::check::budget::text_bytes;
use crate::check::checker::{Binding, Bound, Checker};
use crate::check::settings::{ResolvedParam, Setting, ValueOrigin, read_file, read_set};
use crate::check::source::read;
use crate::syntax::params::{How, ParamType};
use crate::syntax::workflow::{ParamDecl, Workflow};
use crate::value::fields::MAX_INTEGER;

impl Checker<'_> {
    pub(super) fn settings(&mut self, workflow: &Workflow) -> HashMap<String, Setting> {
        let mut settings = HashMap::new();
        for path in &self.context.settings.params {
            self.read.push(path.clone());
            let name = path.display().to_string();
            let folder = Arc::new(folder_of(path));
            match read(self.context.files, &name, path) {
                Ok(source) => {
                    let source = source.as_argument();
                    for setting in read_file(&source, &folder, workflow, &mut self.problems) {
                        settings.insert(setting.name.text.clone(), setting);
                    }
                }
                Err(problem) => self.problems.push(problem.of_argument()),
            }
        }
        let folder = Arc::new(self.context.settings.folder.clone());
        for text in &self.context.settings.set {
            if let Some(setting) = read_set(text, &folder, workflow, &mut self.problems) {
                settings.insert(setting.name.text.clone(), setting);
            }
        }
        for setting in self.context.cell {
            settings.insert(setting.name.text.clone(), setting.clone());
        }
        settings
    }

    /// A seed from the system's randomness, or the one that the settings ask for; and the line that asks for it.
    pub(super) fn draw(&mut self, name: &str, source: &Source, span: Span) -> (u64, String) {
        self.draws += 1;
        let line = line_at(source.text(), span.start).trim().to_owned();
        let before = self.context.settings.drawn.get(name);
        let drawn = match before {
            Some(before) if before.line.as_ref().is_none_or(|known| *known == line) => before.seed,
            _ => (self.context.settings.draw)
                .map_or_else(random, |draw| draw::seed(draw, self.draws - 1)),
        };
        (drawn & MAX_INTEGER, line)
    }

    pub(super) fn bind(
        &mut self,
        prefix: &str,
        name: &str,
        kind: ParamType,
        decl: (Source, Span),
        mut value: Json,
        mut origin: ValueOrigin,
    ) -> Binding {
        let mut line = None;
        if kind == ParamType::Seed && value.as_str() == Some("random") {
            let (seed, asked) = self.draw(&format!("{prefix}{name}"), &origin.source, origin.span);
            value = Json::from(seed);
            line = Some(asked);
            origin.how = How::Drawn;
        }
        if !self.take(&origin.source, origin.span, text_bytes(&value)) {
            return Binding::Broken;
        }
        if prefix.is_empty() || origin.how == How::Drawn {
            self.resolved.push(ResolvedParam {
                name: format!("{prefix}{name}"),
                value: value.clone(),
                from: origin.how,
                folder: Arc::clone(&origin.folder),
                line,
            });
        }
        Binding::Value(Bound {
            value,
            kind,
            decl,
            origin,
        })
    }

    pub(super) fn default_of(
        &mut self,
        prefix: &str,
        name: &str,
        decl: &ParamDecl,
        w: &Workflow,
    ) -> Option<Binding> {
        let default = decl.default.as_ref()?;
        let origin = ValueOrigin {
            source: w.source.clone(),
            span: default.span,
            folder: Arc::clone(&w.folder),
            how: How::Default,
        };
        Some(self.bind(
            prefix,
            name,
            decl.kind,
            (w.source.clone(), decl.name_span),
            default.value.clone(),
            origin,
        ))
    }
}

/// A number from the system's randomness.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The keys of the standard library's hasher are random for each process and differ for each state.
    std::hash::RandomState::new().build_hasher().finish()
}

/// The line of a text that a byte is in.
fn line_at(text: &str, at: usize) -> &str {
    let (before, after) = text.split_at_checked(at).unwrap_or((text, ""));
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let end = after
        .find('\n')
        .map_or(text.len(), |newline| before.len() + newline);
    text.get(start..end).unwrap_or("")
}
