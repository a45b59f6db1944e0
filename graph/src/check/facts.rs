//! The checks of the nodes themselves: what they read and what they know of their outputs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::base::digest::Digest;
use crate::base::error::{Fault, FaultKind};
use crate::base::paths::display;
use crate::base::problem::{Code, Problem};
use crate::base::remote;
use crate::check::checker::{Binding, Checker};
use crate::check::memo;
use crate::files::Withheld;
use crate::op::erased::ErasedNode;
use crate::syntax::workflow::NodeBody;
use crate::value::port::{Known, KnownPorts};

impl Checker<'_> {
    /// Asks each node in order for the files that it reads and, from the facts about its inputs, for its faults and the
    /// facts about its outputs. What is known of each node's outputs.
    pub(super) fn facts(&mut self, order: &[usize]) -> Vec<KnownPorts> {
        let mut known: Vec<KnownPorts> = vec![BTreeMap::new(); self.flat.len()];
        for &index in order {
            let Some(node) = self.flat[index].node.clone() else {
                continue;
            };
            let inputs = self.input_facts(index, &known);
            let op = self.flat[index].entry.op();
            let key = (inputs.as_ref())
                .filter(|inputs| inputs.is_empty())
                .and_then(|inputs| memo::key(op, &*node, inputs));
            if !self.reads(index, &*node, key.as_ref()) {
                continue; // its check would fail at the same files
            }
            let Some(inputs) = inputs else {
                continue;
            };
            self.flat[index].known = Arc::new(inputs.clone());
            let (files, load) = (self.context.files, self.context.load);
            let found = (self.context.facts).of(op, &*node, inputs, files, load, key);
            match found {
                Ok((outputs, warnings)) => {
                    known[index] = outputs;
                    for warning in warnings {
                        let problem = self.problem(index, Code::NodeWarning, warning);
                        self.node_warnings.extend(problem.map(Problem::warning));
                    }
                }
                Err(faults) => self.faults(index, faults),
            }
        }
        known
    }

    /// What is known of a node's inputs. `None`: it is linked to an output that will not be made, which is reported.
    fn input_facts(&mut self, index: usize, known: &[KnownPorts]) -> Option<KnownPorts> {
        let flat = &self.flat[index];
        let entry = Arc::clone(&flat.entry);
        let source = self.scopes[flat.scope].workflow.source.clone();
        let mut inputs: KnownPorts = BTreeMap::new();
        let mut absent = false;
        for (port, spec) in entry.inputs().iter().enumerate() {
            let flat = &self.flat[index];
            let mut links = Vec::with_capacity(flat.known_links[port]);
            for (link, span) in &flat.links[port] {
                let fact = known[link.node]
                    .get(link.port)
                    .and_then(|facts| facts.first())
                    .cloned()
                    .unwrap_or_default();
                if let Known::Absent(reason) = &fact {
                    absent = true;
                    self.problems.push(
                        Problem::new(
                            Code::NotMade,
                            &source,
                            *span,
                            format!("`{}` will not be made: {reason}", link.port),
                        )
                        .help(format!(
                            "change `{}`, or link something else",
                            self.node_name(link.node)
                        )),
                    );
                } else {
                    links.push(fact);
                }
            }
            links.resize(flat.known_links[port], Known::Unknown);
            if !links.is_empty() {
                inputs.insert(spec.name, links);
            }
        }
        (!absent).then_some(inputs)
    }

    /// Notes the files that a node reads and reports those that are missing. `false`: the node cannot say which.
    fn reads(&mut self, index: usize, node: &dyn ErasedNode, key: Option<&Digest>) -> bool {
        if let Some(reads) = self.context.load.reads(key) {
            self.flat[index].reads = reads;
            return true;
        }
        let reads = match node.reads(self.context.files) {
            Ok(reads) => reads,
            Err(faults) => {
                self.faults(index, faults);
                return false;
            }
        };
        let mut missing = false;
        for file in &reads {
            if !self.context.files.is_file(&file.path) {
                let fault = Fault {
                    field: self.path_field(index, &file.path),
                    message: format!("there is no file `{}`", display(&file.path)),
                    help: Some("a path is relative to the file that wrote it".to_owned()),
                    kind: FaultKind::File,
                };
                self.fault(index, fault);
                missing = true;
            }
        }
        let reads: Arc<[_]> = reads.into();
        if !missing {
            self.context.load.keep_reads(key, &reads);
        }
        self.flat[index].reads = reads;
        true
    }

    /// Reports a node's faults, unless they come from models on a hub that cannot be read now.
    fn faults(&mut self, index: usize, faults: Vec<Fault>) {
        if !self.is_withheld(index) {
            for fault in faults {
                self.fault(index, fault);
            }
        }
    }

    /// The parameter that leads to a file.
    fn path_field(&self, index: usize, file: &Path) -> Option<String> {
        let flat = &self.flat[index];
        let scope = &self.scopes[flat.scope];
        let (_, decl) = scope.workflow.nodes.get_index(flat.at)?;
        let NodeBody::Op { fields, .. } = &decl.body else {
            return None;
        };
        let paths = || {
            flat.entry
                .params()
                .iter()
                .filter(|info| info.shape.has_path)
        };
        let mut first = None;
        for info in paths() {
            let Some((_, tree)) = fields.iter().find(|(key, _)| key.text == info.name) else {
                continue;
            };
            first = first.or(Some(info.name.clone()));
            let written = match tree.as_text().and_then(|text| self.bound(flat.scope, text)) {
                Some(Binding::Value(bound)) => bound
                    .value
                    .as_str()
                    .map(|text| remote::join(&bound.origin.folder, text)),
                _ => tree
                    .as_text()
                    .map(|text| remote::join(&scope.workflow.folder, text)),
            };
            if written.is_some_and(|path| file.starts_with(path)) {
                return Some(info.name.clone());
            }
        }
        first
    }

    /// Whether a node failed because models on a hub cannot be read; reports those. A model that is only not fetched yet
    /// is a warning; the workflow is then incomplete: it can be checked, but not planned.
    fn is_withheld(&mut self, index: usize) -> bool {
        let flat = &self.flat[index];
        let mut withheld: Vec<(String, Withheld)> = Vec::new();
        let params = (flat.node.as_ref()).and_then(|node| node.params().ok());
        for info in flat
            .entry
            .params()
            .iter()
            .filter(|info| info.shape.has_path)
        {
            let params = params.as_ref();
            let mut open: Vec<&Json> = params
                .and_then(|params| params.get(&info.name))
                .into_iter()
                .collect();
            while let Some(value) = open.pop() {
                match value {
                    Json::String(text) if remote::is_remote(Path::new(text)) => {
                        let why = self.context.files.withheld(Path::new(text));
                        withheld.extend(why.map(|why| (info.name.clone(), why)));
                    }
                    Json::Array(items) => open.extend(items),
                    Json::Object(entries) => open.extend(entries.values()),
                    _ => {}
                }
            }
        }
        // Several parts of one model: reported once.
        let mut reported: Vec<&str> = Vec::new();
        for (field, why) in &withheld {
            if reported.contains(&why.message.as_str()) {
                continue;
            }
            reported.push(&why.message);
            let fault = |message: &str| Fault {
                field: Some(field.clone()),
                message: message.to_owned(),
                help: Some(why.help.clone()),
                kind: FaultKind::File,
            };
            let Some(problem) = self.problem(index, why.code, fault(&why.message)) else {
                continue;
            };
            if why.later {
                self.open.get_or_insert_with(|| problem.clone());
                self.not_fetched.push(problem.warning());
            } else {
                self.problems.push(problem);
            }
        }
        !withheld.is_empty()
    }

    fn fault(&mut self, index: usize, fault: Fault) {
        let code = match fault.kind {
            FaultKind::Value => Code::NodeValue,
            FaultKind::Mismatch => Code::NodeMismatch,
            FaultKind::File => Code::NodeFile,
            FaultKind::Content => Code::NodeContent,
        };
        let problem = self.problem(index, code, fault);
        self.problems.extend(problem);
    }

    /// A node's fault at its place.
    fn problem(&mut self, index: usize, code: Code, fault: Fault) -> Option<Problem> {
        let flat = &self.flat[index];
        let scope = &self.scopes[flat.scope];
        let (name, decl) = scope.workflow.nodes.get_index(flat.at)?;
        let NodeBody::Op { fields, .. } = &decl.body else {
            return None;
        };
        let field = fault.field.as_deref().and_then(|field| {
            let field = field.split(['.', '[']).next().unwrap_or(field);
            fields.iter().find(|(key, _)| key.text == field)
        });
        let span = field.map_or(decl.name_span, |(_, tree)| tree.span);
        let mut problem = Problem::new(code, &scope.workflow.source, span, fault.message)
            .label(format!("in `{}{name}`", scope.prefix))
            .maybe_help(fault.help);
        if let Some((_, tree)) = field {
            problem = self.with_origin(problem, flat.scope, tree);
        }
        Some(problem)
    }
}
