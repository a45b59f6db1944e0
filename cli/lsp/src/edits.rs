//! Changes that the server offers: the standard form, and ways out of faults.

use std::collections::HashMap;
use std::path::Path;

use lsp_types::{CodeAction, CodeActionKind, Range, TextEdit, Uri, WorkspaceEdit};
use retouch_graph::paths::normal;
use retouch_graph::problem::{Code, Severity};
use retouch_graph::{Problem, Span, format};

use super::workspace::Workspace;

/// Faults that ways out are looked for at most: each is tried before it is offered.
const MOST_TRIED: usize = 20;

impl Workspace {
    /// The edits that bring a document into the standard form; none while it is no YAML, which its faults say.
    ///
    /// # Errors
    /// When the formatter would change what the text means.
    pub fn format(&self, uri: &Uri) -> Result<Option<Vec<TextEdit>>, String> {
        let path = self.path(uri);
        let Some(document) = self
            .documents
            .get(&path)
            .filter(|document| document.workflow)
        else {
            return Ok(None);
        };
        let text = document.source.text();
        let formatted = match format::format(&document.source) {
            Ok(formatted) => formatted,
            Err(problem) if problem.code() == Code::FormatRefused => {
                return Err(problem.message().to_owned());
            }
            Err(_) => return Ok(None),
        };
        if formatted == text {
            return Ok(Some(Vec::new()));
        }
        // Only the lines that change, so that the editor keeps its place in the others.
        let before: Vec<&str> = text.split_inclusive('\n').collect();
        let after: Vec<&str> = formatted.split_inclusive('\n').collect();
        let head = before
            .iter()
            .zip(&after)
            .take_while(|(a, b)| a == b)
            .count();
        let most = before.len().min(after.len()) - head;
        let tail = before
            .iter()
            .rev()
            .zip(after.iter().rev())
            .take(most)
            .take_while(|(a, b)| a == b)
            .count();
        let length = |lines: &[&str]| lines.iter().map(|line| line.len()).sum::<usize>();
        let span = Span::new(
            length(&before[..head]),
            text.len() - length(&before[before.len() - tail..]),
        );
        let range = document.lines.range(text, span, self.encoding);
        let new = after[head..after.len() - tail].concat();
        Ok(Some(vec![TextEdit::new(range, new)]))
    }

    /// Ways out of the faults in a range: those whose help names what was meant, and that leave fewer faults.
    #[must_use]
    pub fn actions(&self, uri: &Uri, range: Range) -> Vec<CodeAction> {
        let path = self.path(uri);
        let Some(document) = self
            .documents
            .get(&path)
            .filter(|document| document.workflow)
        else {
            return Vec::new();
        };
        let text = document.source.text();
        let start = document.lines.offset(text, range.start, self.encoding);
        let end = document.lines.offset(text, range.end, self.encoding);
        let problems = self.check(&path);
        let faults = errors(&problems);
        let mut actions = Vec::new();
        let mut tried = 0;
        for problem in &problems {
            let span = problem.span();
            let here = normal(Path::new(problem.source_text().name())) == path;
            if !here || span.end < start || span.start > end {
                continue;
            }
            let Some(meant) = meant(problem) else {
                continue;
            };
            tried += 1;
            if tried > MOST_TRIED {
                break;
            }
            let written = problem.source_text().slice(span);
            let fixed = candidates(written, meant).into_iter().find(|new| {
                let Some(edited) = replaced(text, span, new) else {
                    return false;
                };
                // A way out is one only if it leads out.
                self.overlay.set(&path, &edited);
                let left = errors(&self.check(&path));
                self.overlay.set(&path, text);
                left < faults
            });
            let Some(new) = fixed else {
                continue;
            };
            let edit = TextEdit::new(document.lines.range(text, span, self.encoding), new);
            #[expect(clippy::mutable_key_type, reason = "the type of the protocol")]
            let changes = HashMap::from([(uri.clone(), vec![edit])]);
            actions.push(CodeAction {
                title: format!("Write `{meant}`"),
                kind: Some(CodeActionKind::QUICKFIX),
                edit: Some(WorkspaceEdit::new(changes)),
                is_preferred: Some(true),
                ..CodeAction::default()
            });
        }
        actions
    }
}

fn errors(problems: &[Problem]) -> usize {
    problems
        .iter()
        .filter(|problem| problem.severity() == Severity::Error)
        .count()
}

/// What the help says was meant.
fn meant(problem: &Problem) -> Option<&str> {
    let rest = problem.hint()?.strip_prefix("did you mean `")?;
    rest.split('`').next()
}

/// What could stand in place of what is written: with its quotes, with its dollar.
fn candidates(written: &str, meant: &str) -> Vec<String> {
    let quote = written.chars().next().filter(|c| matches!(c, '"' | '\''));
    let body = written.trim_matches(['"', '\'', '{', '}']);
    let mut candidates = vec![written.replacen(body, meant, 1), meant.to_owned()];
    if let Some(quote) = quote {
        candidates.push(format!("{quote}{meant}{quote}"));
    }
    candidates
}

fn replaced(text: &str, span: Span, new: &str) -> Option<String> {
    let (before, after) = (text.get(..span.start)?, text.get(span.end..)?);
    Some(format!("{before}{new}{after}"))
}
