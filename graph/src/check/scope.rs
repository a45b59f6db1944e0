//! Scopes: the workflow that is run and each workflow that it includes, with their nodes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::paths::{display, folder_of, normal};
use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::suggest;
use crate::check::budget::{MAX_LEVELS, MAX_NODES, NodeCount};
use crate::check::checker::{Binding, Checker, FlatNode, Scope, Slot};
use crate::check::settings::Setting;
use crate::check::source::read;
use crate::files::no_file;
use crate::syntax::params::ParamType;
use crate::syntax::workflow::{self, InputKind, NodeBody, ParamDecl, Spanned, Workflow};
use crate::syntax::yaml::{MapKey, Tree};

impl Checker<'_> {
    /// The scope of the workflow that is run.
    pub(super) fn root(
        &mut self,
        workflow: &Arc<Workflow>,
        mut settings: HashMap<String, Setting>,
    ) {
        let mut values = HashMap::new();
        for (name, decl) in &workflow.params {
            let binding = self.root_param(workflow, name, decl, settings.remove(name));
            values.insert(name.clone(), binding);
        }
        self.root_inputs(workflow, &mut values);
        self.check_inputs(workflow);
        self.scopes.push(Scope {
            workflow: Arc::clone(workflow),
            prefix: String::new(),
            parent: None,
            values,
            links: HashMap::new(),
            slots: HashMap::new(),
        });
    }

    /// The value of a param of the workflow that is run: the one that is set, or its default.
    fn root_param(
        &mut self,
        workflow: &Workflow,
        name: &str,
        decl: &ParamDecl,
        setting: Option<Setting>,
    ) -> Binding {
        if let Some(setting) = setting {
            return match decl.read(name, &setting.tree) {
                Ok(value) => self.bind(
                    "",
                    name,
                    decl.kind,
                    (workflow.source.clone(), decl.name_span),
                    value,
                    setting.origin,
                ),
                Err(mismatch) => {
                    let place = (&setting.origin.source, setting.origin.span);
                    let problem = if setting.raw.is_some() {
                        mismatch.at_option(place.0, place.1)
                    } else {
                        mismatch.at(place.0, place.1)
                    };
                    let problem = problem.also(&workflow.source, decl.name_span, "declared here");
                    self.problems.push(problem);
                    Binding::Broken
                }
            };
        }
        if let Some(binding) = self.default_of("", name, decl, workflow) {
            return binding;
        }
        if !decl.optional && !self.context.settings.part {
            self.problems.push(
                Problem::new(
                    Code::MissingParam,
                    &workflow.source,
                    decl.name_span,
                    format!("the param `{name}` has no value"),
                )
                .help(format!(
                    "give it one with `--set {name}=...`, or add a `default`"
                )),
            );
        }
        Binding::Broken
    }

    /// Binds the inputs of the workflow that is run to their defaults. One that needs its inputs from outside cannot run.
    fn root_inputs(&mut self, workflow: &Workflow, values: &mut HashMap<String, Binding>) {
        let mut missing: Vec<(&str, Span)> = Vec::new();
        for (name, decl) in &workflow.inputs {
            let mut needed = !decl.optional;
            if let InputKind::Value(value) = &decl.kind {
                let default = self.default_of("", name, value, workflow);
                needed &= default.is_none();
                let binding = default.unwrap_or(if decl.optional {
                    Binding::Absent
                } else {
                    Binding::Broken
                });
                values.insert(name.clone(), binding);
            }
            if needed {
                missing.push((name, decl.name_span));
            }
        }
        let Some((first, span)) = missing.first() else {
            return;
        };
        let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
        let with: Vec<String> = names.iter().map(|name| format!("{name}: ...")).collect();
        let problem = Problem::new(
            Code::NotRunnable,
            &workflow.source,
            *span,
            format!(
                "this workflow is a part: it needs {} from a workflow that uses it",
                suggest::list(&names)
            ),
        )
        .label(format!("`{first}` has no default"))
        .help(format!(
            "run a workflow with a node `part: {{use: {}, with: {{{}}}}}`",
            workflow.source.name(),
            with.join(", ")
        ));
        if self.context.settings.part {
            self.open = Some(problem);
        } else {
            self.problems.push(problem);
        }
    }

    /// Checks the types of inputs, which only the registry knows.
    fn check_inputs(&mut self, workflow: &Workflow) {
        for decl in workflow.inputs.values() {
            if let InputKind::Port(kind) = &decl.kind
                && self.context.registry.port_type(kind).is_none()
            {
                let known: Vec<&str> = ParamType::ALL
                    .iter()
                    .map(|kind| kind.name())
                    .chain(self.context.registry.port_types())
                    .collect();
                let mut unique: Vec<&str> = Vec::new();
                for name in known {
                    if !unique.contains(&name) {
                        unique.push(name);
                    }
                }
                let help = self.hint(kind, "types", unique.iter().copied());
                self.problems.push(
                    Problem::new(
                        Code::UnknownType,
                        &workflow.source,
                        decl.type_span,
                        format!("there is no type `{}`", kind.escape_debug()),
                    )
                    .maybe_help(help),
                );
            }
        }
    }

    /// Lists the nodes of a scope; workflows that it uses become scopes of their own.
    pub(super) fn nodes_of(
        &mut self,
        scope: usize,
        trail: &mut Vec<PathBuf>,
        names: &mut Vec<String>,
    ) {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        let prefix = self.scopes[scope].prefix.len();
        for (at, (name, decl)) in workflow.nodes.iter().enumerate() {
            let slot = match &decl.body {
                NodeBody::Broken => Slot::Broken,
                NodeBody::Op { op, .. } => match self.context.registry.entry(&op.value) {
                    _ if self.flat.len() >= MAX_NODES => {
                        self.too_many(&workflow.source, decl.name_span);
                        Slot::Broken
                    }
                    Some(_) if !self.has_room(scope, decl.name_span, prefix + name.len()) => {
                        Slot::Broken
                    }
                    Some(entry) => {
                        self.flat.push(FlatNode {
                            scope,
                            at,
                            entry: Arc::clone(entry),
                            links: vec![Vec::new(); entry.inputs().len()],
                            known_links: vec![0; entry.inputs().len()],
                            node: None,
                            params: Json::Null,
                            reads: Arc::default(),
                            known: Arc::default(),
                        });
                        Slot::Op(self.flat.len() - 1)
                    }
                    None => {
                        let help = self.hint(
                            &op.value,
                            "ops",
                            self.context.registry.iter().map(|entry| entry.op()),
                        );
                        self.problems.push(
                            Problem::new(
                                Code::UnknownOp,
                                &workflow.source,
                                op.span,
                                format!("there is no op `{}`", op.value.escape_debug()),
                            )
                            .maybe_help(
                                help.or_else(|| Some("`retouch nodes` lists all ops".to_owned())),
                            ),
                        );
                        Slot::Broken
                    }
                },
                NodeBody::Use { path, with } => self
                    .include(scope, name, path, with, trail, names)
                    .map_or(Slot::Broken, Slot::Use),
            };
            self.scopes[scope].slots.insert(name.clone(), slot);
        }
    }

    fn too_many(&mut self, source: &Source, span: Span) {
        if !self.too_many_reported {
            self.too_many_reported = true;
            self.problems.push(
                Problem::new(
                    Code::TooManyNodes,
                    source,
                    span,
                    format!("with everything included there are more than {MAX_NODES} nodes"),
                )
                .help("does a workflow use one that uses many others many times over?"),
            );
        }
    }

    fn include(
        &mut self,
        outer: usize,
        name: &str,
        path: &Spanned<String>,
        with: &[(MapKey, Tree)],
        trail: &mut Vec<PathBuf>,
        names: &mut Vec<String>,
    ) -> Option<usize> {
        let workflow = Arc::clone(&self.scopes[outer].workflow);
        let source = &workflow.source;
        let file = workflow.folder.join(&path.value);
        let identity = normal(&file);
        if let Some(from) = trail.iter().position(|known| *known == identity) {
            let offset = names.len() - trail.len();
            let mut files: Vec<&str> = names[from + offset..].iter().map(String::as_str).collect();
            let again = files.first().copied().unwrap_or_default();
            files.push(again);
            let problem = Problem::new(
                Code::IncludeCycle,
                source,
                path.span,
                format!("the workflow includes itself: {}", files.join(" -> ")),
            )
            .help("put what both need into a third workflow");
            self.problems.push(problem);
            return None;
        }
        if trail.len() >= MAX_LEVELS {
            let problem = Problem::new(
                Code::TooManyNodes,
                source,
                path.span,
                format!("workflows use each other more than {MAX_LEVELS} levels deep"),
            )
            .help("use what is needed from here, with fewer files in between");
            self.problems.push(problem);
            return None;
        }
        if self.scopes.len() >= MAX_NODES {
            self.too_many(source, path.span);
            return None;
        }
        let inner = self.included(source, path, &file, &identity)?;
        let bytes = self.scopes[outer].prefix.len() + name.len();
        if !self.take(source, path.span, bytes) {
            return None;
        }
        let prefix = format!("{}{name}/", self.scopes[outer].prefix);
        let name_span = workflow
            .nodes
            .get(name)
            .map_or(path.span, |decl| decl.name_span);
        let (values, links) = self.with(outer, &prefix, name, name_span, &inner, with);
        self.scopes.push(Scope {
            workflow: Arc::clone(&inner),
            prefix,
            parent: Some(outer),
            values,
            links,
            slots: HashMap::new(),
        });
        let scope = self.scopes.len() - 1;
        trail.push(identity);
        names.push(inner.source.name().to_owned());
        self.nodes_of(scope, trail, names);
        names.pop();
        trail.pop();
        Some(scope)
    }

    /// A workflow that another one uses; read when it is used for the first time.
    fn included(
        &mut self,
        outer: &Source,
        path: &Spanned<String>,
        file: &Path,
        identity: &Path,
    ) -> Option<Arc<Workflow>> {
        if let Some(known) = self.workflows.get(identity) {
            return known.clone();
        }
        let parsed = self.include_file(outer, path, file);
        self.workflows.insert(identity.to_owned(), parsed.clone());
        parsed
    }

    /// Counts the nodes of a workflow with everything included, before any of it is included: files that use each other
    /// many times over would otherwise fill the memory before the limit is reached. Cycles and too many levels are left
    /// to [`Checker::include`] to report.
    pub(super) fn count(
        &mut self,
        workflow: &Arc<Workflow>,
        trail: &mut Vec<PathBuf>,
        counted: &mut HashMap<PathBuf, NodeCount>,
    ) -> NodeCount {
        let mut count = NodeCount::default();
        for decl in workflow.nodes.values() {
            if count.is_too_much() {
                break;
            }
            let NodeBody::Use { path, .. } = &decl.body else {
                count.add(NodeCount { ops: 1, uses: 0 });
                if count.is_too_much() {
                    self.too_many(&workflow.source, decl.name_span);
                }
                continue;
            };
            let file = workflow.folder.join(&path.value);
            let identity = normal(&file);
            if trail.len() >= MAX_LEVELS || trail.contains(&identity) {
                continue;
            }
            let Some(inner) = self.included(&workflow.source, path, &file, &identity) else {
                continue;
            };
            count.add(NodeCount { ops: 0, uses: 1 });
            let more = match counted.get(&identity) {
                Some(known) => *known,
                None => {
                    trail.push(identity.clone());
                    let more = self.count(&inner, trail, counted);
                    trail.pop();
                    counted.insert(identity, more);
                    more
                }
            };
            count.add(more);
            if count.is_too_much() {
                self.too_many(&workflow.source, path.span);
            }
        }
        count
    }

    fn include_file(
        &mut self,
        outer: &Source,
        path: &Spanned<String>,
        file: &Path,
    ) -> Option<Arc<Workflow>> {
        let name = display(file);
        if path.value.is_empty() || !self.context.files.is_file(file) {
            self.problems.push(
                Problem::new(
                    Code::IncludeMissing,
                    outer,
                    path.span,
                    no_file(&normal(file), self.context.files),
                )
                .help("a path is relative to the file that wrote it"),
            );
            return None;
        }
        self.read.push(file.to_owned());
        match read(self.context.files, &name, file) {
            Ok(source) => {
                let inner =
                    workflow::parse(&source, &folder_of(file), &mut self.problems).map(Arc::new);
                if let Some(inner) = &inner {
                    self.check_inputs(inner);
                }
                inner
            }
            Err(problem) => {
                self.problems
                    .push(problem.also(outer, path.span, "used here"));
                None
            }
        }
    }
}
