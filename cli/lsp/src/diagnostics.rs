//! The checker's faults, as an editor shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lsp_types::{
    Diagnostic, DiagnosticRelatedInformation, DiagnosticSeverity, DiagnosticTag, Location,
    NumberOrString, PublishDiagnosticsParams, Range, Uri,
};
use retouch_graph::paths::normal;
use retouch_graph::problem::{Code, Severity};
use retouch_graph::{Problem, Settings, Source, Span};

use super::text::Lines;
use super::workspace::Workspace;

impl Workspace {
    /// Checks a file as `retouch check` does, open documents in place of what is on the disk.
    #[must_use]
    pub fn check(&self, path: &Path) -> Vec<Problem> {
        let settings = Settings {
            part: true,
            ..Settings::default()
        };
        let sweep = (self.engine.read(path).ok()).and_then(|workflow| workflow.sweep);
        let cells = || self.engine.load_sweep(path, &settings);
        let found = match sweep {
            // A file that says a sweep of another workflow is nothing else.
            Some(sweep) if sweep.workflow.is_some() => {
                cells().map(|sweep| sweep.warnings().to_vec())
            }
            Some(_) => (self.engine.load(path, &settings))
                .and_then(|checked| cells().map(|_| checked.warnings)),
            None => (self.engine.load(path, &settings)).map(|checked| checked.warnings),
        };
        found.unwrap_or_else(|problems| problems.into_iter().collect())
    }

    /// Whether something is to be checked.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Checks what changed; the diagnostics to publish, by file. A document whose text changed is published in any case: the
    /// editor may have moved what it showed.
    pub fn diagnose(&mut self) -> Vec<PublishDiagnosticsParams> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut edited = std::mem::take(&mut self.edited);
        for path in &dirty {
            let Some(document) = self.documents.get(path) else {
                continue;
            };
            if !document.workflow {
                self.found.remove(path);
                continue;
            }
            self.overlay.take_seen();
            let problems = self.check(path);
            let reads = self.overlay.take_seen();
            self.found.insert(path.clone(), problems);
            if let Some(document) = self.documents.get_mut(path) {
                document.reads = reads;
            }
        }
        let now = self.by_file();
        let mut files: BTreeSet<PathBuf> = now.keys().cloned().collect();
        files.extend(self.told.keys().cloned());
        // A document that is no workflow is not spoken of.
        edited.retain(|path| {
            self.documents
                .get(path)
                .is_some_and(|document| document.workflow)
        });
        files.extend(edited.iter().cloned());
        let mut publish = Vec::new();
        for path in files {
            let diagnostics = now.get(&path).cloned().unwrap_or_default();
            let same = self.told.get(&path).map_or(&[][..], Vec::as_slice) == diagnostics;
            if same && !edited.contains(&path) {
                continue;
            }
            if let Some(uri) = self.uri(&path) {
                let version = self.documents.get(&path).map(|document| document.version);
                publish.push(PublishDiagnosticsParams::new(
                    uri,
                    diagnostics.clone(),
                    version,
                ));
            }
            if diagnostics.is_empty() {
                self.told.remove(&path);
            } else {
                self.told.insert(path, diagnostics);
            }
        }
        publish
    }

    /// All that was found, by the file it is in; what two documents find in a third is said once.
    fn by_file(&self) -> BTreeMap<PathBuf, Vec<Diagnostic>> {
        let mut lines = BTreeMap::new();
        let mut files: BTreeMap<PathBuf, Vec<Diagnostic>> = BTreeMap::new();
        for problem in self.found.values().flatten() {
            let path = normal(Path::new(problem.source_text().name()));
            let diagnostic = self.diagnostic(problem, &mut lines);
            let list = files.entry(path).or_default();
            let said = list.iter().any(|known| {
                known.range == diagnostic.range
                    && known.code == diagnostic.code
                    && known.message == diagnostic.message
            });
            if !said {
                list.push(diagnostic);
            }
        }
        for list in files.values_mut() {
            list.sort_by_key(|one| (one.range.start, one.range.end));
        }
        files
    }

    fn place(
        &self,
        source: &Source,
        span: Span,
        lines: &mut BTreeMap<String, (Source, Lines)>,
    ) -> Range {
        let known = lines
            .entry(source.name().to_owned())
            .or_insert_with(|| (source.clone(), Lines::of(source.text())));
        if known.0.same(source) {
            known.1.range(source.text(), span, self.encoding)
        } else {
            Lines::of(source.text()).range(source.text(), span, self.encoding)
        }
    }

    fn diagnostic(
        &self,
        problem: &Problem,
        lines: &mut BTreeMap<String, (Source, Lines)>,
    ) -> Diagnostic {
        let range = self.place(problem.source_text(), problem.span(), lines);
        let mut related = Vec::new();
        let mut relate = |uri: Option<Uri>, range: Range, message: &str| {
            if let Some(uri) = uri {
                related.push(DiagnosticRelatedInformation {
                    location: Location::new(uri, range),
                    message: message.to_owned(),
                });
            }
        };
        let uri_of = |source: &Source| self.uri(&normal(Path::new(source.name())));
        if !problem.remark().is_empty() {
            relate(uri_of(problem.source_text()), range, problem.remark());
        }
        for label in problem.others() {
            let range = self.place(&label.source, label.span, lines);
            relate(uri_of(&label.source), range, &label.text);
        }
        let message = match problem.hint() {
            Some(help) => format!("{}\nhelp: {help}", problem.message()),
            None => problem.message().to_owned(),
        };
        let unused = matches!(problem.code(), Code::UnusedParam | Code::UnusedNode);
        Diagnostic {
            range,
            severity: Some(match problem.severity() {
                Severity::Error => DiagnosticSeverity::ERROR,
                Severity::Warning => DiagnosticSeverity::WARNING,
            }),
            code: Some(NumberOrString::String(problem.code().as_str().to_owned())),
            code_description: None,
            source: Some("retouch".to_owned()),
            message,
            related_information: (!related.is_empty()).then_some(related),
            tags: unused.then(|| vec![DiagnosticTag::UNNECESSARY]),
            data: None,
        }
    }
}
