//! From a workflow as it is written to one that can run: `use:` inlined, references resolved, parameters read, facts
//! of the inputs known. All faults at once.

pub(crate) mod facts;

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value as Json;

use crate::base::error::Fault;
use crate::base::error::FaultKind;
use crate::base::paths::{display, folder_of, normal};
use crate::base::problem::{self, Code, Problem, Problems, Source, Span};
use crate::base::remote;
use crate::base::suggest;
use crate::check::facts::Facts;
use crate::files::output_path;
use crate::files::{Files, Withheld, no_file};
use crate::op::node::ReadFile;
use crate::op::registry::{Entry, ErasedNode, Field, Registry, Step};
use crate::op::shape::{Shape, Text, range, words};
use crate::syntax::params::{self, How, Mismatch, Origin, ParamType, Setting, expected, no_path};
use crate::syntax::template::{self, Piece, TemplateFault};
use crate::syntax::workflow::{self, InputKind, NodeBody, ParamDecl, Spanned, Workflow};
use crate::syntax::yaml::{self, Key, Node, Tree};
use crate::value::fields::MAX_INTEGER;
use crate::value::port::KnownPorts;
use crate::value::port::{Arity, Known, PortSpec};

/// How many nodes a workflow may have with everything included.
pub const MAX_NODES: usize = 200_000;
/// How many bytes of text the values of a workflow may have with everything filled in: params in templates and under
/// `with:`, defaults of each `use`, and in a sweep all cells together.
pub const MAX_TEXT: usize = 128 << 20;
/// How many levels of `use` there may be.
pub const MAX_LEVELS: usize = 64;
/// From so many faults on no "did you mean" is looked for: the search is not free, and nobody reads that far.
const HINTED: usize = 500;

/// What is given to a workflow from outside.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The `name=value` of each `--set`; the last one for a name counts, and all count more than files.
    pub set: Vec<String>,
    /// The files of `--params`; the last one for a name counts.
    pub params: Vec<PathBuf>,
    /// The folder from which relative paths in `set` are resolved; empty: the current one.
    pub folder: PathBuf,
    /// Whether a reusable workflow is checked by itself: its inputs without defaults are then unknown, not missing.
    /// What comes out can be checked but not run.
    pub part: bool,
    /// What `random` draws from here on, for tests and to repeat a run; unless given it is drawn from the system's
    /// randomness.
    pub draw: Option<u64>,
    /// Seeds that were drawn before, by the name that [`ResolvedParam`] has: `random` gives them again.
    pub drawn: BTreeMap<String, Drawn>,
    /// The `name=values` of each `--over`: what a sweep varies besides what the file says, or in place of it.
    pub over: Vec<String>,
    /// The path of `--sheet`: where a sweep's contact sheet is saved, also where the file says none.
    pub sheet: Option<String>,
}

/// A seed that was drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// The seed.
    pub seed: u64,
    /// The line that asked for it: it is drawn anew when that changes. `None`: it is given whatever the line says.
    pub line: Option<String>,
}

/// The value of a param in this run.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct ResolvedParam {
    /// Its name; of a param of an included workflow `retouch/seed`.
    pub name: String,
    /// Its value; of a seed always a number.
    pub value: Json,
    /// Where the value comes from.
    pub from: How,
    /// The folder from which it is resolved, if it is a relative path.
    #[serde(skip)]
    pub folder: Arc<PathBuf>,
    /// Of a seed that was drawn, the line that asked for it, without its indentation.
    #[serde(skip)]
    pub line: Option<String>,
}

/// A link from a node's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The index of the node in [`Checked::nodes`].
    pub node: usize,
    /// The name of the output port.
    pub port: &'static str,
}

/// A node that can run.
#[derive(Clone)]
pub struct CheckedNode {
    pub(crate) name: String,
    pub(crate) entry: Arc<Entry>,
    pub(crate) node: Arc<dyn ErasedNode>,
    /// The parameters with defaults filled in and paths left out.
    pub(crate) params: Arc<Json>,
    /// The links of each input port in the order of declaration.
    pub(crate) links: Vec<Vec<Link>>,
    pub(crate) reads: Vec<ReadFile>,
    /// What is known of each link of each input port.
    pub(crate) known: Arc<KnownPorts>,
    pub(crate) source: Source,
    pub(crate) span: Span,
}

impl CheckedNode {
    /// The node's name; of an included one `retouch/swap`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its op.
    #[must_use]
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Its parameters with defaults filled in; paths are null.
    #[must_use]
    pub fn params(&self) -> &Json {
        &self.params
    }

    /// The links of each input port in the order of declaration.
    #[must_use]
    pub fn links(&self) -> &[Vec<Link>] {
        &self.links
    }

    /// The files that it reads.
    #[must_use]
    pub fn reads(&self) -> &[ReadFile] {
        &self.reads
    }

    /// Where it is written.
    #[must_use]
    pub fn place(&self) -> (&Source, Span) {
        (&self.source, self.span)
    }
}

/// An output that can be made.
#[derive(Clone, Debug)]
pub struct CheckedOutput {
    /// Its name.
    pub name: String,
    /// Where its value comes from.
    pub link: Link,
    /// The path below the output folder, templates filled in.
    pub save: Option<String>,
}

/// A workflow that is sound: a flat graph with everything included.
#[derive(Clone)]
pub struct Checked {
    /// The workflow's name.
    pub name: String,
    /// What it does, for people.
    pub description: Option<String>,
    /// The workflow's text.
    pub source: Source,
    /// The values of its params, drawn seeds among them.
    pub params: Vec<ResolvedParam>,
    /// The nodes in the order of the file.
    pub nodes: Vec<CheckedNode>,
    /// The outputs in the order of the file.
    pub outputs: Vec<CheckedOutput>,
    /// What is odd but no fault.
    pub warnings: Vec<Problem>,
    /// The workflow files and parameter files that were read.
    pub files: Vec<PathBuf>,
    /// For each node that uses a workflow, by name: where its outputs come from.
    pub(crate) groups: HashMap<String, Vec<usize>>,
    /// Why it cannot run, if it is a part that was checked by itself.
    pub(crate) open: Option<Problem>,
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked")
            .field("name", &self.name)
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}

impl Checked {
    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&CheckedNode> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

/// A value of a param or an input.
#[derive(Clone, Debug)]
struct Bound {
    value: Json,
    kind: ParamType,
    decl: (Source, Span),
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Given {
    Value(Bound),
    /// Optional and not given.
    Absent,
    /// At fault, and reported; or an input of a part that is checked by itself.
    Broken,
}

/// How many nodes a workflow has with everything included.
#[derive(Clone, Copy, Default)]
struct Count {
    ops: usize,
    uses: usize,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.ops = self.ops.saturating_add(other.ops);
        self.uses = self.uses.saturating_add(other.uses);
    }

    fn is_too_much(self) -> bool {
        self.ops > MAX_NODES || self.uses >= MAX_NODES
    }
}

enum Slot {
    Op(usize),
    Use(usize),
    Broken,
}

struct Scope {
    workflow: Arc<Workflow>,
    prefix: String,
    parent: Option<usize>,
    values: HashMap<String, Given>,
    /// What is linked to the inputs, in the parent's terms.
    links: HashMap<String, Spanned<String>>,
    slots: HashMap<String, Slot>,
}

/// A node of the flat graph while it is being checked.
struct Flat {
    scope: usize,
    /// The node's position in its workflow.
    at: usize,
    entry: Arc<Entry>,
    links: Vec<Vec<(Link, Span)>>,
    /// The number of links of each port, unknown ones of a part counted.
    known_links: Vec<usize>,
    node: Option<Arc<dyn ErasedNode>>,
    params: Json,
    reads: Vec<ReadFile>,
    known: Arc<KnownPorts>,
}

/// An input or an output of an included workflow that a reference leads through: its scope, and its name (of an output
/// behind `outputs.`, which no input's name can be).
type Hop = (usize, String);

/// One step from a reference to the node that makes the value.
enum Lead {
    Done(Target),
    /// On to another reference.
    On(Onward),
}

struct Onward {
    hop: Hop,
    /// The type of the input that is passed, which is then that of the value.
    kind: Option<&'static str>,
    /// The reference that is next, and where it is written.
    scope: usize,
    text: String,
    span: Span,
}

/// What a reference to an output comes to.
#[derive(Clone, Copy)]
enum Target {
    Link(Link, Types),
    /// An optional input that is not given.
    Absent,
    /// An input of a part that is checked by itself.
    Open(Types),
    /// A param or an input that is a value.
    Value,
    Broken,
}

impl Target {
    /// What it is to somebody who refers to the input of that type, or to the output, that leads to it.
    fn through(self, kind: Option<&'static str>) -> Self {
        match (self, kind) {
            (Self::Link(link, _), Some(kind)) => Self::Link(link, Types::One(kind)),
            (Self::Open(_), Some(kind)) => Self::Open(Types::One(kind)),
            // Reported where the link is given, or the output is declared.
            (Self::Value, _) => Self::Broken,
            (other, _) => other,
        }
    }
}

#[derive(Clone, Copy)]
enum Types {
    Ports(&'static [&'static str]),
    One(&'static str),
}

impl Types {
    fn as_slice(&self) -> &[&'static str] {
        match self {
            Self::Ports(types) => types,
            Self::One(one) => std::slice::from_ref(one),
        }
    }
}

enum Reference<'a> {
    Param(&'a str),
    Input(&'a str),
    Node(&'a str, Option<&'a str>),
}

enum Built {
    Value(Json),
    Absent,
    Broken,
}

/// What is left of [`MAX_TEXT`].
pub(crate) struct TextBudget(Cell<Option<usize>>);

impl TextBudget {
    pub(crate) fn new() -> Self {
        Self(Cell::new(Some(MAX_TEXT)))
    }

    /// Whether there is room for so many bytes more. Once there was not, there never is.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let left = self.0.get().and_then(|left| left.checked_sub(bytes));
        self.0.set(left);
        left.is_some()
    }
}

/// The bytes of the texts in a value.
pub(crate) fn text_bytes(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(text_bytes).sum(),
        Json::Object(entries) => (entries.iter())
            .map(|(key, value)| key.len() + text_bytes(value))
            .sum(),
        _ => 0,
    }
}

/// The fault of values that have more text than [`MAX_TEXT`].
pub(crate) fn too_much_text(source: &Source, span: Span) -> Problem {
    Problem::new(
        Code::TooMuchText,
        source,
        span,
        format!(
            "with everything filled in the values have more than {} MiB of text",
            MAX_TEXT >> 20
        ),
    )
    .help("is a long text filled in many times over?")
}

/// What [`check`] works with.
#[derive(Clone, Copy)]
pub(crate) struct World<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) files: &'a dyn Files,
    pub(crate) settings: &'a Settings,
    /// The values of a cell of a sweep; they count more than all settings.
    pub(crate) cell: &'a [Setting],
    pub(crate) facts: &'a Facts,
    pub(crate) text: &'a TextBudget,
}

/// Checks a workflow; `path` is its own, for recursion. `read` and `problems` are the files that were read for it so far and
/// what is known to be wrong with it.
pub(crate) fn check(
    world: &World<'_>,
    workflow: Arc<Workflow>,
    path: Option<&Path>,
    read: Vec<PathBuf>,
    problems: Vec<Problem>,
) -> Result<Checked, Problems> {
    let mut checker = Checker {
        world,
        problems,
        workflows: HashMap::new(),
        read: path.map(Path::to_owned).into_iter().chain(read).collect(),
        scopes: Vec::new(),
        flat: Vec::new(),
        resolved: Vec::new(),
        used: HashSet::new(),
        targets: HashMap::new(),
        open: None,
        held: Vec::new(),
        told: Vec::new(),
        overfull: false,
        overlong: false,
        draws: 0,
    };
    checker.run(workflow, path)
}

struct Checker<'a> {
    world: &'a World<'a>,
    problems: Vec<Problem>,
    workflows: HashMap<PathBuf, Option<Arc<Workflow>>>,
    read: Vec<PathBuf>,
    scopes: Vec<Scope>,
    flat: Vec<Flat>,
    resolved: Vec<ResolvedParam>,
    /// The params of the outermost workflow that something refers to.
    used: HashSet<String>,
    /// What the inputs and outputs of included workflows come to, as far as they were followed.
    targets: HashMap<Hop, Target>,
    open: Option<Problem>,
    /// Warnings about models that are not fetched yet.
    held: Vec<Problem>,
    /// Warnings of the nodes themselves.
    told: Vec<Problem>,
    overfull: bool,
    /// Whether it was told that there is too much text.
    overlong: bool,
    draws: u64,
}

impl Checker<'_> {
    fn run(&mut self, workflow: Arc<Workflow>, path: Option<&Path>) -> Result<Checked, Problems> {
        if let Some(sweep) = &workflow.sweep {
            if let Some(other) = &sweep.workflow {
                if !self.problems.is_empty() {
                    return Err(Problems::new(std::mem::take(&mut self.problems)));
                }
                self.problems.push(
                    Problem::new(
                        Code::SweepOnly,
                        &workflow.source,
                        sweep.key_span,
                        format!("the file is a sweep of `{}`, not a workflow", other.value),
                    )
                    .help(format!(
                        "run it with `retouch sweep {}`",
                        workflow.source.name()
                    )),
                );
                return Err(Problems::new(std::mem::take(&mut self.problems)));
            }
        }
        let settings = self.settings(&workflow);
        let mut trail: Vec<PathBuf> = path.map(normal).into_iter().collect();
        let names = vec![workflow.source.name().to_owned()];
        self.root(&workflow, settings);
        let count = self.count(&workflow, &mut trail, &mut HashMap::new());
        if count.is_too_much() {
            return Err(Problems::new(std::mem::take(&mut self.problems)));
        }
        self.nodes_of(0, &mut trail, &mut names.clone());
        for index in 0..self.flat.len() {
            self.fields(index);
        }
        for scope in 0..self.scopes.len() {
            self.given_links(scope);
        }
        let outputs = self.outputs();
        let order = self.order();
        let known = self.facts(&order);
        self.outputs_made(&outputs, &known);
        let made = self.flat.iter().all(|flat| flat.node.is_some());
        if self.problems.is_empty() && !made && self.open.is_none() {
            // Every way to here has said why; this is the net below them.
            self.problems.push(
                Problem::new(
                    Code::BadReference,
                    &workflow.source,
                    Span::default(),
                    "some nodes cannot be made, and no fault was found in them",
                )
                .help("this is a fault of the program: please report the workflow"),
            );
        }
        if !self.problems.is_empty() {
            let mut problems = std::mem::take(&mut self.problems);
            one_for_each_number(&mut problems);
            return Err(Problems::new(problems));
        }
        let warnings = self.warnings(&outputs);
        let groups = self.groups();
        let outputs = if made { outputs } else { Vec::new() };
        if !made {
            // A part by itself: without some of its nodes the indices of links mean nothing.
            for flat in &mut self.flat {
                flat.links.clear();
            }
        }
        let nodes = std::mem::take(&mut self.flat)
            .into_iter()
            .filter_map(|flat| {
                let scope = &self.scopes[flat.scope];
                let (name, decl) = scope.workflow.nodes.get_index(flat.at)?;
                Some(CheckedNode {
                    name: format!("{}{name}", scope.prefix),
                    entry: flat.entry,
                    node: flat.node?,
                    params: Arc::new(flat.params),
                    links: flat
                        .links
                        .into_iter()
                        .map(|links| links.into_iter().map(|(link, _)| link).collect())
                        .collect(),
                    reads: flat.reads,
                    known: flat.known,
                    source: scope.workflow.source.clone(),
                    span: decl.name_span,
                })
            })
            .collect();
        Ok(Checked {
            name: workflow.name.clone(),
            description: workflow.description.clone(),
            source: workflow.source.clone(),
            params: std::mem::take(&mut self.resolved),
            nodes,
            outputs: outputs.into_iter().map(|(output, _)| output).collect(),
            warnings,
            files: std::mem::take(&mut self.read),
            groups,
            open: self.open.take(),
        })
    }

    fn hint<'n>(
        &self,
        typed: &str,
        what: &str,
        known: impl IntoIterator<Item = &'n str> + Clone,
    ) -> Option<String> {
        if self.problems.len() > HINTED {
            return None;
        }
        suggest::hint(typed, what, known)
    }

    // ---- values from outside ----

    fn settings(&mut self, workflow: &Workflow) -> HashMap<String, Setting> {
        let mut settings = HashMap::new();
        for path in &self.world.settings.params {
            self.read.push(path.clone());
            let name = path.display().to_string();
            let folder = Arc::new(folder_of(path));
            match read(self.world.files, &name, path) {
                Ok(source) => {
                    let source = source.as_argument();
                    for setting in params::read_file(&source, &folder, workflow, &mut self.problems)
                    {
                        settings.insert(setting.name.text.clone(), setting);
                    }
                }
                Err(problem) => self.problems.push(problem.of_argument()),
            }
        }
        let folder = Arc::new(self.world.settings.folder.clone());
        for text in &self.world.settings.set {
            if let Some(setting) = params::read_set(text, &folder, workflow, &mut self.problems) {
                settings.insert(setting.name.text.clone(), setting);
            }
        }
        for setting in self.world.cell {
            settings.insert(setting.name.text.clone(), setting.clone());
        }
        settings
    }

    /// A seed from the system's randomness, or the one that the settings ask for; and the line that asks for it.
    fn draw(&mut self, name: &str, source: &Source, span: Span) -> (u64, String) {
        self.draws += 1;
        let line = line_at(source.text(), span.start).trim().to_owned();
        let before = self.world.settings.drawn.get(name);
        let drawn = match before {
            Some(before) if before.line.as_ref().is_none_or(|known| *known == line) => before.seed,
            _ => (self.world.settings.draw)
                .map_or_else(random, |draw| draw.wrapping_add(self.draws - 1)),
        };
        (drawn & MAX_INTEGER, line)
    }

    /// Takes bytes from the budget of text; whether there was room for them.
    fn take(&mut self, source: &Source, span: Span, bytes: usize) -> bool {
        let room = self.world.text.take(bytes);
        if !room && !self.overlong {
            self.overlong = true;
            self.problems.push(too_much_text(source, span));
        }
        room
    }

    fn bind(
        &mut self,
        prefix: &str,
        name: &str,
        kind: ParamType,
        decl: (Source, Span),
        mut value: Json,
        mut origin: Origin,
    ) -> Given {
        let mut line = None;
        if kind == ParamType::Seed && value.as_str() == Some("random") {
            let (seed, asked) = self.draw(&format!("{prefix}{name}"), &origin.source, origin.span);
            value = Json::from(seed);
            line = Some(asked);
            origin.how = How::Drawn;
        }
        if !self.take(&origin.source, origin.span, text_bytes(&value)) {
            return Given::Broken;
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
        Given::Value(Bound {
            value,
            kind,
            decl,
            origin,
        })
    }

    fn default_of(
        &mut self,
        prefix: &str,
        name: &str,
        decl: &ParamDecl,
        w: &Workflow,
    ) -> Option<Given> {
        let default = decl.default.as_ref()?;
        let origin = Origin {
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

    /// The scope of the workflow that is run.
    fn root(&mut self, workflow: &Arc<Workflow>, mut settings: HashMap<String, Setting>) {
        let mut values = HashMap::new();
        for (name, decl) in &workflow.params {
            let given = if let Some(setting) = settings.remove(name) {
                match decl.read(name, &setting.tree) {
                    Ok(value) => self.bind(
                        "",
                        name,
                        decl.kind,
                        (workflow.source.clone(), decl.name_span),
                        value,
                        setting.origin,
                    ),
                    Err(mut mismatch) => {
                        if setting.raw.is_some() {
                            // On the command line it is `--set x=1`, not `x: 1`.
                            mismatch.help = mismatch.help.map(|help| {
                                help.replace(&format!("{name}: "), &format!("--set {name}="))
                            });
                        }
                        self.problems.push(
                            mismatch
                                .at(&setting.origin.source, setting.origin.span)
                                .also(&workflow.source, decl.name_span, "declared here"),
                        );
                        Given::Broken
                    }
                }
            } else if let Some(given) = self.default_of("", name, decl, workflow) {
                given
            } else {
                if !decl.optional && !self.world.settings.part {
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
                Given::Broken
            };
            values.insert(name.clone(), given);
        }
        let mut missing: Vec<(&str, Span)> = Vec::new();
        for (name, decl) in &workflow.inputs {
            let mut needed = !decl.optional;
            if let InputKind::Value(value) = &decl.kind {
                let given = self.default_of("", name, value, workflow);
                needed &= given.is_none();
                let given = given.unwrap_or(if decl.optional {
                    Given::Absent
                } else {
                    Given::Broken
                });
                values.insert(name.clone(), given);
            }
            if needed {
                missing.push((name, decl.name_span));
            }
        }
        if let Some((first, span)) = missing.first() {
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
            if self.world.settings.part {
                self.open = Some(problem);
            } else {
                self.problems.push(problem);
            }
        }
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

    /// The types of inputs are known to the registry only.
    fn check_inputs(&mut self, workflow: &Workflow) {
        for decl in workflow.inputs.values() {
            if let InputKind::Port(kind) = &decl.kind
                && self.world.registry.port_type(kind).is_none()
            {
                let known: Vec<&str> = ParamType::ALL
                    .iter()
                    .map(|kind| kind.name())
                    .chain(self.world.registry.port_types())
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

    // ---- nodes and included workflows ----

    /// Lists the nodes of a scope; workflows that it uses become scopes of their own.
    fn nodes_of(&mut self, scope: usize, trail: &mut Vec<PathBuf>, names: &mut Vec<String>) {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        let prefix = self.scopes[scope].prefix.len();
        for (at, (name, decl)) in workflow.nodes.iter().enumerate() {
            let slot = match &decl.body {
                NodeBody::Broken => Slot::Broken,
                NodeBody::Op { op, .. } => match self.world.registry.entry(&op.value) {
                    _ if self.flat.len() >= MAX_NODES => {
                        self.too_many(&workflow.source, decl.name_span);
                        Slot::Broken
                    }
                    Some(_) if !self.has_room(scope, decl.name_span, prefix + name.len()) => {
                        Slot::Broken
                    }
                    Some(entry) => {
                        self.flat.push(Flat {
                            scope,
                            at,
                            entry: Arc::clone(entry),
                            links: vec![Vec::new(); entry.inputs().len()],
                            known_links: vec![0; entry.inputs().len()],
                            node: None,
                            params: Json::Null,
                            reads: Vec::new(),
                            known: Arc::default(),
                        });
                        Slot::Op(self.flat.len() - 1)
                    }
                    None => {
                        let help = self.hint(
                            &op.value,
                            "ops",
                            self.world.registry.iter().map(|entry| entry.op()),
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
        if !self.overfull {
            self.overfull = true;
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
        with: &[(Key, Tree)],
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
    /// many times over would else fill the memory before the limit is met. What goes round or is nested too deeply is
    /// left to [`Checker::include`] to report.
    fn count(
        &mut self,
        workflow: &Arc<Workflow>,
        trail: &mut Vec<PathBuf>,
        counted: &mut HashMap<PathBuf, Count>,
    ) -> Count {
        let mut count = Count::default();
        for decl in workflow.nodes.values() {
            if count.is_too_much() {
                break;
            }
            let NodeBody::Use { path, .. } = &decl.body else {
                count.add(Count { ops: 1, uses: 0 });
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
            count.add(Count { ops: 0, uses: 1 });
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
        if path.value.is_empty() || !self.world.files.is_file(file) {
            self.problems.push(
                Problem::new(
                    Code::IncludeMissing,
                    outer,
                    path.span,
                    no_file(&normal(file), self.world.files),
                )
                .help("a path is relative to the file that wrote it"),
            );
            return None;
        }
        self.read.push(file.to_owned());
        match read(self.world.files, &name, file) {
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

    /// What an included workflow is given.
    fn with(
        &mut self,
        outer: usize,
        prefix: &str,
        name: &str,
        name_span: Span,
        inner: &Workflow,
        with: &[(Key, Tree)],
    ) -> (HashMap<String, Given>, HashMap<String, Spanned<String>>) {
        let workflow = Arc::clone(&self.scopes[outer].workflow);
        let source = &workflow.source;
        let mut values: HashMap<String, Given> = HashMap::new();
        let mut links = HashMap::new();
        for (key, tree) in with {
            let input = inner.inputs.get(&key.text);
            let decl = match input.map(|input| &input.kind) {
                Some(InputKind::Value(decl)) => Some(decl),
                Some(InputKind::Port(_)) => {
                    match tree.as_text() {
                        Some(text) if text.starts_with('$') && !text.starts_with("$$") => {
                            links.insert(
                                key.text.clone(),
                                Spanned {
                                    value: text.to_owned(),
                                    span: tree.span,
                                },
                            );
                        }
                        _ => {
                            self.problems.push(
                                Problem::new(
                                    Code::LinkDue,
                                    source,
                                    tree.span,
                                    format!(
                                        "the input `{}` takes a reference to a node's output, not {}",
                                        key.text,
                                        tree.describe()
                                    ),
                                )
                                .help(format!("write `{}: $node`", key.text)),
                            );
                            // Given, if wrongly: it is not missing too.
                            links.insert(
                                key.text.clone(),
                                Spanned {
                                    value: String::new(),
                                    span: tree.span,
                                },
                            );
                        }
                    }
                    continue;
                }
                None => inner.params.get(&key.text),
            };
            let Some(decl) = decl else {
                let known = inner
                    .inputs
                    .keys()
                    .chain(inner.params.keys())
                    .map(String::as_str);
                let help = self.hint(&key.text, "inputs and params", known);
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
                continue;
            };
            let given = self.with_value(outer, prefix, key, tree, decl, inner);
            values.insert(key.text.clone(), given);
        }
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
                        let given = self.default_of(prefix, input, value, inner);
                        let given = given.unwrap_or_else(|| {
                            if decl.optional {
                                return Given::Absent;
                            }
                            missing.push(input);
                            Given::Broken
                        });
                        values.insert(input.clone(), given);
                    }
                }
            }
        }
        for (param, decl) in &inner.params {
            if !values.contains_key(param) {
                let given = self.default_of(prefix, param, decl, inner);
                let given = given.unwrap_or_else(|| {
                    if !decl.optional {
                        missing.push(param);
                    }
                    Given::Broken
                });
                values.insert(param.clone(), given);
            }
        }
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

    fn with_value(
        &mut self,
        outer: usize,
        prefix: &str,
        key: &Key,
        tree: &Tree,
        decl: &ParamDecl,
        inner: &Workflow,
    ) -> Given {
        let workflow = Arc::clone(&self.scopes[outer].workflow);
        let source = &workflow.source;
        let declared = (inner.source.clone(), decl.name_span);
        let mut origin = Origin {
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
                    Built::Absent => return Given::Absent,
                    Built::Broken => return Given::Broken,
                    Built::Value(_) => {}
                }
                let Some(Given::Value(bound)) = self.bound(outer, text) else {
                    return Given::Broken;
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
                    None => return Given::Broken,
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
                Given::Broken
            }
        }
    }

    // ---- references ----

    fn reference<'t>(&mut self, scope: usize, text: &'t str, span: Span) -> Option<Reference<'t>> {
        let source = self.scopes[scope].workflow.source.clone();
        let body = text.strip_prefix('$').unwrap_or(text);
        let (name, port) = match body.split_once('.') {
            Some((name, port)) => (name, Some(port)),
            None => (body, None),
        };
        let help = format!(
            "a reference is `$node`, `$node.port` or `$params.name`; a text that begins with a dollar is written `$${}`",
            body.chars().take(20).collect::<String>()
        );
        let parsed = match (name, port) {
            ("params", Some(param)) if template::is_name(param) => Some(Reference::Param(param)),
            ("inputs", Some(input)) if template::is_name(input) => Some(Reference::Input(input)),
            ("params" | "inputs" | "outputs", _) => None,
            (name, None) if template::is_name(name) => Some(Reference::Node(name, None)),
            (name, Some(port)) if template::is_name(name) && template::is_name(port) => {
                Some(Reference::Node(name, Some(port)))
            }
            _ => None,
        };
        if parsed.is_none() {
            self.problems.push(
                Problem::new(
                    Code::BadReference,
                    &source,
                    span,
                    format!("`{}` is not a reference", text.escape_debug()),
                )
                .help(help),
            );
        }
        parsed
    }

    fn bound(&self, scope: usize, text: &str) -> Option<Given> {
        let name = value_name(text)?;
        self.scopes[scope].values.get(name).cloned()
    }

    /// Follows a reference where a value is due; the value itself is fetched with [`Checker::bound`].
    fn value_reference(&mut self, scope: usize, text: &str, span: Span, field: &str) -> Built {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        let source = &workflow.source;
        let Some(reference) = self.reference(scope, text, span) else {
            return Built::Broken;
        };
        match reference {
            Reference::Param(name) => {
                if !workflow.params.contains_key(name) {
                    self.unknown_param(&workflow, name, span);
                    return Built::Broken;
                }
                if scope == 0 {
                    self.used.insert(name.to_owned());
                }
                match self.scopes[scope].values.get(name) {
                    Some(Given::Value(bound)) => Built::Value(bound.value.clone()),
                    Some(Given::Absent) => Built::Absent,
                    _ => Built::Broken,
                }
            }
            Reference::Input(name) => match workflow.inputs.get(name).map(|decl| &decl.kind) {
                Some(InputKind::Value(_)) => match self.scopes[scope].values.get(name) {
                    Some(Given::Value(bound)) => Built::Value(bound.value.clone()),
                    Some(Given::Absent) => Built::Absent,
                    _ => Built::Broken,
                },
                Some(InputKind::Port(kind)) => {
                    self.problems.push(
                        Problem::new(
                            Code::ValueDue,
                            source,
                            span,
                            format!(
                                "`{field}` takes a value, and the input `{name}` is a link to a {kind}"
                            ),
                        )
                        .help("write a value, or a reference to a param"),
                    );
                    Built::Broken
                }
                None => {
                    self.unknown_input(&workflow, name, span);
                    Built::Broken
                }
            },
            Reference::Node(name, _) => {
                let param = workflow.params.contains_key(name);
                let near = suggest::nearest(name, ["params", "inputs"]);
                let help = match (param, near) {
                    (true, _) => format!("did you mean `$params.{name}`?"),
                    (_, Some(near)) => {
                        let rest = text.split_once('.').map_or("name", |(_, rest)| rest);
                        format!("did you mean `${near}.{rest}`?")
                    }
                    _ => format!("write a value, `{field}: ...`, or `{field}: $params.name`"),
                };
                self.problems.push(
                    Problem::new(
                        Code::ValueDue,
                        source,
                        span,
                        format!(
                            "`{field}` is a parameter and takes a value, not the output of a node"
                        ),
                    )
                    .help(help),
                );
                Built::Broken
            }
        }
    }

    fn unknown_param(&mut self, workflow: &Workflow, name: &str, span: Span) {
        let help = if workflow.inputs.contains_key(name) {
            Some(format!("did you mean `$inputs.{name}`?"))
        } else {
            let near = self.hint(name, "params", workflow.params.keys().map(String::as_str));
            near.map(|near| near.replace("mean `", "mean `$params."))
        };
        self.problems.push(
            Problem::new(
                Code::UnknownParam,
                &workflow.source,
                span,
                format!("there is no param `{name}`"),
            )
            .maybe_help(help),
        );
    }

    fn unknown_input(&mut self, workflow: &Workflow, name: &str, span: Span) {
        let help = if workflow.params.contains_key(name) {
            Some(format!("did you mean `$params.{name}`?"))
        } else {
            let near = self.hint(name, "inputs", workflow.inputs.keys().map(String::as_str));
            near.map(|near| near.replace("mean `", "mean `$inputs."))
        };
        self.problems.push(
            Problem::new(
                Code::UnknownInput,
                &workflow.source,
                span,
                format!("there is no input `{name}`"),
            )
            .maybe_help(help),
        );
    }

    /// Follows a reference where a link is due, through included workflows to the node that makes the value. Without
    /// recursion: a chain may be as long as there are nodes.
    fn target(&mut self, scope: usize, text: &str, span: Span) -> Target {
        let (mut scope, mut text, mut span) = (scope, text.to_owned(), span);
        let mut passed: Vec<(Hop, Option<&'static str>)> = Vec::new();
        // Where each reference is written that led to a hop.
        let mut written: Vec<(usize, Span)> = Vec::new();
        let mut known: HashMap<Hop, usize> = HashMap::new();
        let mut target = loop {
            let before = self.problems.len();
            let lead = self.lead(scope, &text, span);
            if !passed.is_empty() {
                // Faults on the way through other workflows are reported there, once.
                self.problems.truncate(before);
            }
            let onward = match lead {
                Lead::Done(target) => break target,
                Lead::On(onward) => onward,
            };
            if let Some(target) = self.targets.get(&onward.hop) {
                break *target;
            }
            if let Some(&from) = known.get(&onward.hop) {
                written[from] = (scope, span);
                self.link_cycle(&passed[from..], &written[from..]);
                break Target::Broken;
            }
            known.insert(onward.hop.clone(), passed.len());
            passed.push((onward.hop, onward.kind));
            written.push((scope, span));
            (scope, text, span) = (onward.scope, onward.text, onward.span);
        };
        for (hop, kind) in passed.into_iter().rev() {
            target = target.through(kind);
            self.targets.insert(hop, target);
        }
        target
    }

    /// Reports links that lead back to where they began, at the first of them.
    fn link_cycle(&mut self, passed: &[(Hop, Option<&'static str>)], written: &[(usize, Span)]) {
        // A round leads out of each workflow by the node that uses it, so there is always one of these.
        let outputs = passed.iter().zip(written).filter_map(|((hop, _), at)| {
            let output = hop.1.strip_prefix("outputs.")?;
            Some((*at, hop.0, output))
        });
        let Some(((scope, span), inner, output)) = outputs.min_by_key(|(at, ..)| *at) else {
            return;
        };
        let prefix = &self.scopes[inner].prefix;
        let name = prefix.trim_end_matches('/').rsplit('/').next();
        let message = format!(
            "`{}` needs its own output `{output}`",
            name.unwrap_or(prefix)
        );
        let source = &self.scopes[scope].workflow.source;
        self.problems
            .push(Problem::new(Code::Cycle, source, span, message).help("cut one of the links"));
    }

    /// One step from a reference towards the node that makes the value.
    fn lead(&mut self, scope: usize, text: &str, span: Span) -> Lead {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        let Some(reference) = self.reference(scope, text, span) else {
            return Lead::Done(Target::Broken);
        };
        match reference {
            Reference::Param(name) => {
                if workflow.params.contains_key(name) {
                    if scope == 0 {
                        self.used.insert(name.to_owned());
                    }
                    return Lead::Done(Target::Value);
                }
                self.unknown_param(&workflow, name, span);
                Lead::Done(Target::Broken)
            }
            Reference::Input(name) => self.lead_of_input(scope, &workflow, name, span),
            Reference::Node(name, port) => self.lead_of_node(scope, &workflow, name, port, span),
        }
    }

    fn lead_of_input(&mut self, scope: usize, workflow: &Workflow, name: &str, span: Span) -> Lead {
        let Some(decl) = workflow.inputs.get(name) else {
            self.unknown_input(workflow, name, span);
            return Lead::Done(Target::Broken);
        };
        let InputKind::Port(kind) = &decl.kind else {
            return Lead::Done(Target::Value);
        };
        let Some(kind) = self.world.registry.port_type(kind) else {
            return Lead::Done(Target::Broken); // reported at the declaration
        };
        let missing = if decl.optional {
            Target::Absent
        } else {
            Target::Broken
        };
        let Some(parent) = self.scopes[scope].parent else {
            let open = !decl.optional && self.world.settings.part;
            return Lead::Done(if open {
                Target::Open(Types::One(kind))
            } else {
                missing
            });
        };
        match self.scopes[scope].links.get(name) {
            None => Lead::Done(missing),
            Some(link) if link.value.is_empty() => Lead::Done(Target::Broken),
            Some(link) => Lead::On(Onward {
                hop: (scope, name.to_owned()),
                kind: Some(kind),
                scope: parent,
                text: link.value.clone(),
                span: link.span,
            }),
        }
    }

    fn lead_of_node(
        &mut self,
        scope: usize,
        workflow: &Workflow,
        name: &str,
        port: Option<&str>,
        span: Span,
    ) -> Lead {
        let inner = match self.scopes[scope].slots.get(name) {
            Some(Slot::Broken) => return Lead::Done(Target::Broken),
            Some(Slot::Op(index)) => {
                let index = *index;
                let entry = Arc::clone(&self.flat[index].entry);
                let found = match port {
                    None => entry.outputs().first(),
                    Some(port) => entry.outputs().iter().find(|spec| spec.name == port),
                };
                if let Some(spec) = found {
                    let link = Link {
                        node: index,
                        port: spec.name,
                    };
                    return Lead::Done(Target::Link(link, Types::Ports(spec.types)));
                }
                let outputs = entry.outputs().iter().map(|spec| spec.name);
                self.unknown_port(workflow, name, port.unwrap_or(""), span, outputs);
                return Lead::Done(Target::Broken);
            }
            Some(Slot::Use(inner)) => *inner,
            None => {
                self.unknown_node(workflow, name, port, span);
                return Lead::Done(Target::Broken);
            }
        };
        let included = Arc::clone(&self.scopes[inner].workflow);
        let found = match port {
            None => included.outputs.iter().next(),
            Some(port) => included.outputs.get_key_value(port),
        };
        let Some((output, decl)) = found else {
            let outputs: Vec<&str> = included.outputs.keys().map(String::as_str).collect();
            self.unknown_port(workflow, name, port.unwrap_or(""), span, outputs);
            return Lead::Done(Target::Broken);
        };
        match &decl.value {
            None => Lead::Done(Target::Broken),
            Some(value) => Lead::On(Onward {
                hop: (inner, format!("outputs.{output}")),
                kind: None,
                scope: inner,
                text: value.value.clone(),
                span: value.span,
            }),
        }
    }

    fn unknown_port<'n>(
        &mut self,
        workflow: &Workflow,
        node: &str,
        port: &str,
        span: Span,
        known: impl IntoIterator<Item = &'n str> + Clone,
    ) {
        let help = self
            .hint(port, "outputs", known)
            .map(|hint| hint.replace("mean `", &format!("mean `${node}.")));
        let message = if port.is_empty() {
            format!("`{node}` has no outputs")
        } else {
            format!("`{node}` has no output `{port}`")
        };
        self.problems.push(
            Problem::new(Code::UnknownPort, &workflow.source, span, message).maybe_help(help),
        );
    }

    fn unknown_node(&mut self, workflow: &Workflow, name: &str, port: Option<&str>, span: Span) {
        if workflow.nodes_unread {
            return;
        }
        let suffix = port.map(|port| format!(".{port}")).unwrap_or_default();
        let nodes = workflow.nodes.keys().map(String::as_str);
        let help = if self.problems.len() > HINTED {
            None
        } else if workflow.params.contains_key(name) {
            Some(format!("did you mean `$params.{name}`?"))
        } else if workflow.inputs.contains_key(name) {
            Some(format!("did you mean `$inputs.{name}`?"))
        } else if let Some(near) = suggest::nearest(name, nodes.clone().chain(["params", "inputs"]))
        {
            Some(format!("did you mean `${near}{suffix}`?"))
        } else {
            suggest::hint(name, "nodes", nodes)
        };
        self.problems.push(
            Problem::new(
                Code::UnknownNode,
                &workflow.source,
                span,
                format!("there is no node `{name}`"),
            )
            .maybe_help(help),
        );
    }

    // ---- templates ----

    /// Fills in a template; `extra` are names that only this one knows.
    fn fill(
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
                // From the fault to the end of the text: what is found there is found once.
                let (TemplateFault::Brace(at) | TemplateFault::NotAName(Range { start: at, .. })) =
                    fault;
                let tail = within(source, span, text.get(at..).unwrap_or(""));
                let place = if tail == span && at > 0 {
                    span // written with escapes, or over several lines
                } else {
                    let end = match &fault {
                        TemplateFault::Brace(_) => tail.start + 1,
                        TemplateFault::NotAName(range) => tail.start + range.len(),
                    };
                    Span::new(tail.start, end)
                };
                let (message, help) = match fault {
                    TemplateFault::Brace(_) => (
                        "the template has a brace by itself".to_owned(),
                        "a brace in the text is written twice: `{{` or `}}`",
                    ),
                    TemplateFault::NotAName(range) => (
                        format!(
                            "`{}` in the template does not name a param",
                            text.get(range).unwrap_or("").escape_debug()
                        ),
                        "write `{name}`; a brace in the text is written twice: `{{` or `}}`",
                    ),
                };
                self.problems
                    .push(Problem::new(Code::BadTemplate, source, place, message).help(help));
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
            let room = match self.scopes[scope].values.get(name) {
                Some(Given::Value(bound)) => text_bytes(&bound.value),
                Some(_) => 0,
                None => (extra.iter().find(|(known, _)| *known == name))
                    .map_or(0, |(_, text)| text.len()),
            };
            if !self.take(source, span, room) {
                return None;
            }
            let place = within(source, span, text.get(range).unwrap_or(""));
            match self.scopes[scope].values.get(name) {
                Some(given) => {
                    if scope == 0 {
                        self.used.insert(name.to_owned());
                    }
                    match given {
                        Given::Broken => broken = true,
                        Given::Value(bound) if !bound.value.is_array() => match &bound.value {
                            Json::String(text) => filled.push_str(text),
                            other => filled.push_str(&other.to_string()),
                        },
                        given => {
                            let message = match given {
                                Given::Absent => format!("the input `{name}` is not given"),
                                _ => format!("`{name}` is a list, and a list is no text"),
                            };
                            broken = true;
                            self.problems.push(
                                Problem::new(Code::BadTemplate, source, place, message)
                                    .help("use another param in the template"),
                            );
                        }
                    }
                }
                None => match extra.iter().find(|(known, _)| *known == name) {
                    Some((_, text)) => filled.push_str(text),
                    None => {
                        broken = true;
                        let port = workflow.inputs.contains_key(name);
                        let known: Vec<&str> = workflow
                            .params
                            .keys()
                            .map(String::as_str)
                            .chain(
                                workflow
                                    .inputs
                                    .iter()
                                    .filter(|(_, decl)| matches!(decl.kind, InputKind::Value(_)))
                                    .map(|(name, _)| name.as_str()),
                            )
                            .chain(extra.iter().map(|(name, _)| *name))
                            .collect();
                        let help = if port {
                            Some(format!("the input `{name}` is a link and no text"))
                        } else {
                            self.hint(name, "params", known)
                        };
                        self.problems.push(
                            Problem::new(
                                Code::UnknownTemplateName,
                                source,
                                place,
                                format!("the template names `{name}`, and there is no such param"),
                            )
                            .maybe_help(help),
                        );
                    }
                },
            }
        }
        (!broken).then_some(filled)
    }

    // ---- the fields of a node ----

    fn fields(&mut self, index: usize) {
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
        let source = &workflow.source;
        let mut params = serde_json::Map::new();
        let mut given_ports = vec![false; entry.inputs().len()];
        let mut given_params = vec![false; entry.params().len()];
        let mut broken = false;
        for (key, tree) in fields {
            match entry.field(&key.text) {
                Some(Field::Port(port)) => {
                    given_ports[port] = true;
                    let before = self.problems.len();
                    self.port(index, scope, port, &entry.inputs()[port], tree);
                    broken |= self.problems.len() > before;
                }
                Some(Field::Param(param)) => {
                    let info = &entry.params()[param];
                    match self.build(index, scope, &info.name, tree, &info.shape) {
                        Built::Value(value) => {
                            given_params[param] = true;
                            params.insert(info.name.clone(), value);
                        }
                        Built::Absent => {}
                        Built::Broken => {
                            given_params[param] = true;
                            broken = true;
                        }
                    }
                }
                None => {
                    broken = true;
                    // What was mistyped is not missing besides.
                    let meant = suggest::nearest(&key.text, entry.field_names());
                    match meant.and_then(|name| entry.field(name)) {
                        Some(Field::Port(port)) => given_ports[port] = true,
                        Some(Field::Param(param)) => given_params[param] = true,
                        None => {}
                    }
                    let help = if key.text == "with" {
                        Some(
                            "`with` belongs to `use:`; an op's parameters stand beside `op`"
                                .to_owned(),
                        )
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
            }
        }
        for (port, spec) in entry.inputs().iter().enumerate() {
            if spec.arity == Arity::One && !given_ports[port] {
                broken = true;
                if decl.tainted {
                    continue;
                }
                let help = self
                    .candidate(scope, spec.name, spec.types, Some(index))
                    .map_or_else(
                        || format!("add `{}: $node`", spec.name),
                        |found| format!("add `{}: {found}`", spec.name),
                    );
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
        }
        for (param, info) in entry.params().iter().enumerate() {
            if info.required && !given_params[param] {
                broken = true;
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
        }
        self.make(index, &workflow, params, broken);
    }

    /// Makes the node of its parameters; one that serde refuses is reported and left out, and the rest is tried again.
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
            match entry.make(&params) {
                Ok(node) => {
                    if broken {
                        return;
                    }
                    match node.params() {
                        Ok(mut values) => {
                            if let Json::Object(values) = &mut values {
                                for info in entry.params() {
                                    if info.shape.keyless {
                                        values.remove(&info.name);
                                    } else if info.shape.has_path
                                        && let Some(value) = values.get_mut(&info.name)
                                    {
                                        info.shape.without_paths(value);
                                    }
                                }
                            }
                            self.flat[index].params = values;
                            self.flat[index].node = Some(Arc::from(node));
                        }
                        Err(message) => self.problems.push(
                            Problem::new(
                                Code::NodeValue,
                                &workflow.source,
                                decl.name_span,
                                format!(
                                    "the parameters of `{name}` cannot be written down: {message}"
                                ),
                            )
                            .help("a number that is not finite cannot be a parameter"),
                        ),
                    }
                    return;
                }
                Err(refusal) => {
                    let first = match refusal.path.first() {
                        Some(Step::Key(key)) if params.get(key).is_some() => Some(key.clone()),
                        _ => None,
                    };
                    let Some(first) = first else {
                        // What is missing because it was refused is not missing.
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
                    };
                    broken = true;
                    if let Json::Object(params) = &mut params {
                        params.shift_remove(&first);
                    }
                    let tree = fields.iter().find(|(key, _)| key.text == first);
                    let span =
                        tree.map_or(decl.name_span, |(_, tree)| place(tree, &refusal.path[1..]));
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
        }
    }

    /// Adds where a value was written, when the node has it by reference.
    fn with_origin(&self, problem: Problem, scope: usize, tree: &Tree) -> Problem {
        match tree.as_text().and_then(|text| self.bound(scope, text)) {
            Some(Given::Value(bound)) => problem.also(
                &bound.origin.source,
                bound.origin.span,
                "the value is from here",
            ),
            _ => problem,
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
        let wrong = |this: &mut Self| {
            let mismatch = expected(name, &shape.due(), tree);
            this.mismatch(scope, tree.span, mismatch)
        };
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
                let mut values = Vec::with_capacity(items.len());
                let mut broken = false;
                for (at, item) in items.iter().enumerate() {
                    let built = match shape.item(at) {
                        Some(shape) => self.build(index, scope, name, item, shape),
                        None => self.build(index, scope, name, item, &Shape::of(&Json::Bool(true))),
                    };
                    match built {
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
                let mut values = serde_json::Map::new();
                let mut broken = false;
                for (key, value) in entries {
                    let built = match shape.property(&key.text) {
                        Some(shape) => self.build(index, scope, &key.text, value, shape),
                        None => self.build(
                            index,
                            scope,
                            &key.text,
                            value,
                            &Shape::of(&Json::Bool(true)),
                        ),
                    };
                    match built {
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
            Node::String { text, .. } => {
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
                    return wrong(self);
                }
                let literal = text.strip_prefix('$').filter(|_| text.starts_with("$$"));
                let text = literal.unwrap_or(text);
                match shape.text {
                    Text::Template => match self.fill(scope, text, tree.span, &[]) {
                        Some(text) => Built::Value(Json::from(text)),
                        None => Built::Broken,
                    },
                    Text::Path => {
                        if let Some(mismatch) = no_path(name, text) {
                            return self.mismatch(scope, tree.span, mismatch);
                        }
                        if !self.has_room(scope, tree.span, text.len()) {
                            return Built::Broken;
                        }
                        let folder = Arc::clone(&self.scopes[scope].workflow.folder);
                        Built::Value(joined(&folder, text))
                    }
                    Text::Plain => match words(name, text, tree, shape) {
                        Some(mismatch) => self.mismatch(scope, tree.span, mismatch),
                        None if !self.has_room(scope, tree.span, text.len()) => Built::Broken,
                        None => Built::Value(Json::from(text)),
                    },
                }
            }
            _ => wrong(self),
        }
    }

    /// [`Checker::take`] for what is written in a scope's workflow.
    fn has_room(&mut self, scope: usize, span: Span, bytes: usize) -> bool {
        let workflow = Arc::clone(&self.scopes[scope].workflow);
        self.take(&workflow.source, span, bytes)
    }

    fn node_name(&self, index: usize) -> String {
        let flat = &self.flat[index];
        let scope = &self.scopes[flat.scope];
        let name = scope
            .workflow
            .nodes
            .get_index(flat.at)
            .map_or("", |(name, _)| name.as_str());
        format!("{}{name}", scope.prefix)
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
            Some(Given::Value(bound)) => text_bytes(&bound.value),
            _ => 0,
        };
        if !self.has_room(scope, tree.span, bytes) {
            return Built::Broken;
        }
        let Some(Given::Value(bound)) = self.bound(scope, text) else {
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
                Some(expected(name, &shape.due(), &as_tree))
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

    // ---- links ----

    fn port(&mut self, index: usize, scope: usize, port: usize, spec: &PortSpec, tree: &Tree) {
        let items: Vec<&Tree> = match &tree.node {
            Node::Null if spec.arity != Arity::One => return,
            Node::Seq(items) if spec.arity == Arity::Many => items.iter().collect(),
            Node::Seq(items) if items.len() != 1 => {
                let source = &self.scopes[scope].workflow.source;
                self.problems.push(
                    Problem::new(
                        Code::TooManyLinks,
                        source,
                        tree.span,
                        format!(
                            "the port `{}` takes one link, not a list of {}",
                            spec.name,
                            items.len()
                        ),
                    )
                    .help(format!("write `{}: $node`", spec.name)),
                );
                return;
            }
            Node::Seq(items) => items.iter().collect(),
            _ => vec![tree],
        };
        for item in items {
            let text = match item.as_text() {
                Some(text) if text.starts_with('$') && !text.starts_with("$$") => text,
                _ => {
                    let help = self.link_help(scope, spec, item, index);
                    let source = &self.scopes[scope].workflow.source;
                    self.problems.push(
                        Problem::new(
                            Code::LinkDue,
                            source,
                            item.span,
                            format!(
                                "the port `{}` takes a reference to {}, not {}",
                                spec.name,
                                suggest::a(spec.types),
                                item.describe()
                            ),
                        )
                        .help(help),
                    );
                    continue;
                }
            };
            self.link(index, scope, port, spec, text, item.span);
        }
    }

    fn link(
        &mut self,
        index: usize,
        scope: usize,
        port: usize,
        spec: &PortSpec,
        text: &str,
        span: Span,
    ) {
        match self.target(scope, text, span) {
            Target::Link(link, types) => {
                if self.types_fit(scope, spec.name, spec.types, text, types, span, Some(index)) {
                    self.flat[index].links[port].push((link, span));
                    self.flat[index].known_links[port] += 1;
                }
            }
            Target::Open(types) => {
                if self.types_fit(scope, spec.name, spec.types, text, types, span, None) {
                    self.flat[index].known_links[port] += 1;
                }
            }
            Target::Absent => {
                if spec.arity == Arity::One {
                    let source = &self.scopes[scope].workflow.source;
                    let name = text.rsplit('.').next().unwrap_or(text);
                    self.problems.push(
                        Problem::new(
                            Code::MissingLink,
                            source,
                            span,
                            format!(
                                "the port `{}` must be linked, and `{text}` is not given",
                                spec.name
                            ),
                        )
                        .help(format!(
                            "remove `optional` from the input `{name}`, or give it"
                        )),
                    );
                }
            }
            Target::Value => {
                let help = self
                    .candidate(scope, spec.name, spec.types, Some(index))
                    .map(|found| format!("write `{}: {found}`", spec.name));
                let source = &self.scopes[scope].workflow.source;
                self.problems.push(
                    Problem::new(
                        Code::LinkDue,
                        source,
                        span,
                        format!(
                            "the port `{}` takes a reference to {}, and `{text}` is a value",
                            spec.name,
                            suggest::a(spec.types)
                        ),
                    )
                    .maybe_help(help.or_else(|| Some(format!("write `{}: $node`", spec.name)))),
                );
            }
            Target::Broken => {}
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one fault, told from all its sides"
    )]
    fn types_fit(
        &mut self,
        scope: usize,
        port: &str,
        takes: &[&str],
        text: &str,
        types: Types,
        span: Span,
        at: Option<usize>,
    ) -> bool {
        if types.as_slice().iter().any(|one| takes.contains(one)) {
            return true;
        }
        // Another output of the same node may be what was meant.
        let name = text
            .strip_prefix('$')
            .unwrap_or(text)
            .split('.')
            .next()
            .unwrap_or("");
        let other = match self.scopes[scope].slots.get(name) {
            Some(Slot::Op(at)) => self.flat[*at]
                .entry
                .outputs()
                .iter()
                .find(|spec| spec.types.iter().any(|one| takes.contains(one)))
                .map(|spec| spec.name),
            _ => None,
        };
        let help = match other {
            Some(port) => format!("did you mean `${name}.{port}`?"),
            None => match self.converter(types.as_slice(), takes) {
                Some(op) => format!("a node `{op}` in between makes one of the other"),
                None => self.maker(scope, port, takes, at),
            },
        };
        let source = &self.scopes[scope].workflow.source;
        self.problems.push(
            Problem::new(
                Code::PortType,
                source,
                span,
                format!(
                    "`{port}` takes {}, and `{text}` is {}",
                    suggest::a(takes),
                    suggest::a(types.as_slice())
                ),
            )
            .label(suggest::a(types.as_slice()))
            .help(help),
        );
        false
    }

    /// What gives a value of one of the types: a node of the scope, or else the ops that do.
    fn maker(&self, scope: usize, port: &str, takes: &[&str], not: Option<usize>) -> String {
        if let Some(found) = self.candidate(scope, port, takes, not) {
            return format!("`{found}` is {}", suggest::a(takes));
        }
        let ops: Vec<&str> = self
            .world
            .registry
            .iter()
            .filter(|entry| {
                let mut types = entry.outputs().iter().flat_map(|spec| spec.types);
                types.any(|one| takes.contains(one))
            })
            .map(|entry| entry.op())
            .take(6)
            .collect();
        if ops.is_empty() {
            return "no op gives such a value".to_owned();
        }
        format!("{} is given by {}", takes.join(" or "), suggest::list(&ops))
    }

    /// An op that takes one type and gives the other.
    fn converter(&self, from: &[&str], to: &[&str]) -> Option<&'static str> {
        let meets = |ports: &[PortSpec], types: &[&str]| {
            ports
                .iter()
                .any(|port| port.types.iter().any(|one| types.contains(one)))
        };
        self.world
            .registry
            .iter()
            .find(|entry| {
                meets(entry.inputs(), from)
                    && entry
                        .outputs()
                        .first()
                        .is_some_and(|first| meets(std::slice::from_ref(first), to))
            })
            .map(|entry| entry.op())
    }

    fn link_help(&self, scope: usize, spec: &PortSpec, tree: &Tree, index: usize) -> String {
        let workflow = &self.scopes[scope].workflow;
        if let Some(text) = tree.as_text()
            && workflow
                .nodes
                .contains_key(text.split('.').next().unwrap_or(""))
        {
            return format!("did you mean `${text}`?");
        }
        self.candidate(scope, spec.name, spec.types, Some(index))
            .map_or_else(
                || format!("write `{}: $node`", spec.name),
                |found| format!("write `{}: {found}`", spec.name),
            )
    }

    /// A node of the scope that makes what a port takes: the one whose name begins most like the port's, else the first.
    fn candidate(
        &self,
        scope: usize,
        port: &str,
        types: &[&str],
        not: Option<usize>,
    ) -> Option<String> {
        let here = &self.scopes[scope];
        let alike = |name: &str| {
            port.bytes()
                .zip(name.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        };
        let mut best: Option<(usize, String)> = None;
        // Looked for among the first only: with thousands of faults this must not take long.
        for name in here.workflow.nodes.keys().take(100) {
            let Some(Slot::Op(index)) = here.slots.get(name) else {
                continue;
            };
            if Some(*index) == not {
                continue;
            }
            let outputs = self.flat[*index].entry.outputs().iter().enumerate();
            let makes = outputs
                .filter(|(_, output)| output.types.iter().any(|one| types.contains(one)))
                .map(|(at, output)| {
                    if at == 0 {
                        format!("${name}")
                    } else {
                        format!("${name}.{}", output.name)
                    }
                })
                .next();
            if let Some(text) = makes
                && best
                    .as_ref()
                    .is_none_or(|(alike_so_far, _)| alike(name) > *alike_so_far)
            {
                best = Some((alike(name), text));
            }
        }
        best.map(|(_, text)| text)
    }

    /// Checks what the inputs of an included workflow are linked to.
    fn given_links(&mut self, scope: usize) {
        let Some(parent) = self.scopes[scope].parent else {
            return;
        };
        let inner = Arc::clone(&self.scopes[scope].workflow);
        for (name, decl) in &inner.inputs {
            let InputKind::Port(kind) = &decl.kind else {
                continue;
            };
            let Some(kind) = self.world.registry.port_type(kind) else {
                continue;
            };
            let Some(link) = self.scopes[scope].links.get(name).cloned() else {
                continue;
            };
            if link.value.is_empty() {
                continue;
            }
            match self.target(parent, &link.value, link.span) {
                Target::Link(_, types) => {
                    self.types_fit(parent, name, &[kind], &link.value, types, link.span, None);
                }
                Target::Open(types) => {
                    self.types_fit(parent, name, &[kind], &link.value, types, link.span, None);
                }
                Target::Absent if !decl.optional => {
                    let source = &self.scopes[parent].workflow.source;
                    self.problems.push(
                        Problem::new(
                            Code::MissingWith,
                            source,
                            link.span,
                            format!("`{}` is not given, and `{name}` is needed", link.value),
                        )
                        .also(&inner.source, decl.name_span, "declared here")
                        .help("remove `optional` from the outer input"),
                    );
                }
                Target::Value => {
                    let source = &self.scopes[parent].workflow.source;
                    self.problems.push(
                        Problem::new(
                            Code::LinkDue,
                            source,
                            link.span,
                            format!(
                                "the input `{name}` takes a {kind}, and `{}` is a value",
                                link.value
                            ),
                        )
                        .also(&inner.source, decl.name_span, "declared here")
                        .help(format!("write `{name}: $node`")),
                    );
                }
                Target::Absent | Target::Broken => {}
            }
        }
    }

    // ---- outputs ----

    fn outputs(&mut self) -> Vec<(CheckedOutput, Span)> {
        let mut outputs = Vec::new();
        for scope in 0..self.scopes.len() {
            let workflow = Arc::clone(&self.scopes[scope].workflow);
            let mut paths: HashMap<String, (String, Span)> = HashMap::new();
            for (name, decl) in &workflow.outputs {
                let link = decl.value.as_ref().and_then(|value| {
                    let is_reference =
                        value.value.starts_with('$') && !value.value.starts_with("$$");
                    let target = if is_reference {
                        self.target(scope, &value.value, value.span)
                    } else {
                        Target::Value
                    };
                    match target {
                        Target::Link(link, _) => Some((link, value.span)),
                        Target::Value => {
                            let node = workflow.nodes.contains_key(&value.value);
                            self.problems.push(
                                Problem::new(
                                    Code::LinkDue,
                                    &workflow.source,
                                    value.span,
                                    format!(
                                        "the value of an output is a reference to a node, not `{}`",
                                        value.value.escape_debug()
                                    ),
                                )
                                .help(if node {
                                    format!("did you mean `${}`?", value.value)
                                } else {
                                    "write `value: $node` or `value: $node.port`".to_owned()
                                }),
                            );
                            None
                        }
                        _ => None,
                    }
                });
                if scope != 0 {
                    continue; // what an included workflow would save is for the one that runs to say
                }
                let mut path = None;
                if let Some(save) = &decl.save {
                    path = self.save_path(&workflow, name, save, link.map(|(link, _)| link));
                    if let Some(path) = &path
                        && let Some((other, span)) =
                            paths.insert(path.clone(), (name.clone(), save.span))
                    {
                        self.problems.push(
                            Problem::new(
                                Code::SaveTwice,
                                &workflow.source,
                                save.span,
                                format!("`{other}` and `{name}` would both be saved as `{path}`"),
                            )
                            .also(&workflow.source, span, format!("`{other}`"))
                            .help("give one of them another name"),
                        );
                    }
                }
                if let Some((link, span)) = link {
                    outputs.push((
                        CheckedOutput {
                            name: name.clone(),
                            link,
                            save: path,
                        },
                        span,
                    ));
                }
            }
        }
        outputs
    }

    fn save_path(
        &mut self,
        workflow: &Workflow,
        name: &str,
        save: &Spanned<String>,
        link: Option<Link>,
    ) -> Option<String> {
        let extra = [("workflow", workflow.name.as_str()), ("output", name)];
        let filled = self.fill(0, &save.value, save.span, &extra)?;
        // First the values: a separator in one of them would pass for a folder.
        let mut unsafe_value = false;
        for piece in template::pieces(&save.value).ok()? {
            let Piece::Name(param, range) = piece else {
                continue;
            };
            let value = match self.scopes[0].values.get(param) {
                Some(Given::Value(bound)) => match &bound.value {
                    Json::String(text) => text.clone(),
                    other => other.to_string(),
                },
                _ => extra
                    .iter()
                    .find(|(known, _)| *known == param)
                    .map_or_else(String::new, |(_, text)| (*text).to_owned()),
            };
            if let Err(why) = output_path::check_value(&value) {
                unsafe_value = true;
                let span = within(
                    &workflow.source,
                    save.span,
                    save.value.get(range).unwrap_or(""),
                );
                let mut problem = Problem::new(
                    Code::UnsafePath,
                    &workflow.source,
                    span,
                    format!("`{{{param}}}` is `{}`, and {why}", value.escape_debug()),
                )
                .help("name the file without it, or give it another value");
                if let Some(Given::Value(bound)) = self.scopes[0].values.get(param) {
                    problem = problem.also(
                        &bound.origin.source,
                        bound.origin.span,
                        "the value is from here",
                    );
                }
                self.problems.push(problem);
            }
        }
        if unsafe_value {
            return None;
        }
        if let Err(why) = output_path::check_path(&filled) {
            self.problems.push(
                Problem::new(
                    Code::UnsafePath,
                    &workflow.source,
                    save.span,
                    format!("`{}` cannot be saved to: {why}", filled.escape_debug()),
                )
                .help(
                    "a path is relative and stays below the output folder: `pictures/{seed}.png`",
                ),
            );
            return None;
        }
        let link = link?;
        let spec = self.flat[link.node]
            .entry
            .outputs()
            .iter()
            .find(|spec| spec.name == link.port)?;
        if let Some(formats) = spec.formats {
            let ending = output_path::ending(&filled);
            let fits = ending
                .as_deref()
                .is_some_and(|ending| formats.contains(&ending));
            if !fits {
                let kind = spec.types.join(" or a ");
                let endings: Vec<String> = formats.iter().map(|one| format!(".{one}")).collect();
                let (message, help) = if formats.is_empty() {
                    (
                        format!("{} cannot be saved", suggest::a(&[kind])),
                        "remove `save`; the value is there for other workflows".to_owned(),
                    )
                } else {
                    let first = endings.first().cloned().unwrap_or_default();
                    (
                        match &ending {
                            Some(ending) => {
                                format!("{} cannot be saved as .{ending}", suggest::a(&[kind]))
                            }
                            None => {
                                format!("`{filled}` has no ending that says how to save a {kind}")
                            }
                        },
                        format!(
                            "end it in {}",
                            if endings.len() == 1 {
                                format!("`{first}`")
                            } else {
                                suggest::list(&endings).replace(" and ", " or ")
                            }
                        ),
                    )
                };
                let help = match ending
                    .as_deref()
                    .and_then(|ending| self.makers(spec, ending))
                {
                    Some(makers) => format!("{help}; {makers}"),
                    None => help,
                };
                self.problems.push(
                    Problem::new(Code::SaveFormat, &workflow.source, save.span, message).help(help),
                );
            }
        }
        Some(filled)
    }

    /// Which ops make something of a port's value that is saved with that ending: masks are a picture by `mask_image`.
    fn makers(&self, port: &PortSpec, ending: &str) -> Option<String> {
        let takes = |entry: &Entry| {
            (entry
                .inputs()
                .iter()
                .filter(|input| input.arity != Arity::Optional))
            .any(|input| input.types.iter().any(|one| port.types.contains(one)))
        };
        let gives = |entry: &Entry| {
            let formats = entry.outputs().first().and_then(|output| output.formats);
            formats.is_some_and(|formats| formats.contains(&ending))
        };
        let ops: Vec<String> = (self.world.registry.iter())
            .filter(|entry| takes(entry) && gives(entry))
            .map(|entry| format!("`{}`", entry.op()))
            .collect();
        match &ops[..] {
            [] => None,
            [one] => Some(format!("a node {one} makes a .{ending} of it")),
            several => Some(format!(
                "nodes that make a .{ending} of it: {}",
                several.join(", ")
            )),
        }
    }

    // ---- the graph as a whole ----

    /// The nodes so that each comes after what it needs, the file's order otherwise; those of a cycle are left out.
    fn order(&mut self) -> Vec<usize> {
        let count = self.flat.len();
        let mut waits = vec![0usize; count];
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (index, flat) in self.flat.iter().enumerate() {
            for (link, _) in flat.links.iter().flatten() {
                waits[index] += 1;
                next[link.node].push(index);
            }
        }
        let mut ready: BinaryHeap<Reverse<usize>> = waits
            .iter()
            .enumerate()
            .filter(|(_, waits)| **waits == 0)
            .map(|(index, _)| Reverse(index))
            .collect();
        let mut order = Vec::with_capacity(count);
        while let Some(Reverse(index)) = ready.pop() {
            order.push(index);
            for &after in &next[index] {
                waits[after] -= 1;
                if waits[after] == 0 {
                    ready.push(Reverse(after));
                }
            }
        }
        if order.len() < count {
            self.cycles(&waits);
        }
        order
    }

    /// Reports each cycle among the nodes that still wait.
    fn cycles(&mut self, waits: &[usize]) {
        let mut seen = vec![0usize; waits.len()];
        let mut round = 0;
        for start in 0..waits.len() {
            if waits[start] == 0 || seen[start] != 0 {
                continue;
            }
            round += 1;
            // Every node that waits has a predecessor that waits, so walking back ends in a cycle or on a known trail.
            let mut trail = Vec::new();
            let mut at = start;
            while seen[at] == 0 {
                seen[at] = round;
                trail.push(at);
                let before = self.flat[at]
                    .links
                    .iter()
                    .flatten()
                    .map(|(link, _)| link.node)
                    .find(|node| waits[*node] > 0);
                match before {
                    Some(before) => at = before,
                    None => break,
                }
            }
            if seen[at] != round {
                continue;
            }
            let Some(from) = trail.iter().position(|node| *node == at) else {
                continue;
            };
            let mut cycle: Vec<usize> = trail[from..].to_vec();
            // Walked backwards; told in the direction of the data, beginning with the first of the file.
            cycle.reverse();
            let first = cycle
                .iter()
                .enumerate()
                .min_by_key(|(_, node)| **node)
                .map_or(0, |(position, _)| position);
            cycle.rotate_left(first);
            let (head, last) = match (cycle.first(), cycle.last()) {
                (Some(head), Some(last)) => (*head, *last),
                _ => continue,
            };
            let mut names: Vec<String> = cycle
                .iter()
                .take(20)
                .map(|node| self.node_name(*node))
                .collect();
            if cycle.len() > 20 {
                names.push("…".to_owned());
            }
            names.push(self.node_name(head));
            let span = self.flat[head]
                .links
                .iter()
                .flatten()
                .find(|(link, _)| link.node == last)
                .map_or(Span::default(), |(_, span)| *span);
            let source = &self.scopes[self.flat[head].scope].workflow.source;
            let message = if cycle.len() == 1 {
                format!("`{}` needs its own output", self.node_name(head))
            } else {
                format!("the nodes wait for each other: {}", names.join(" -> "))
            };
            self.problems.push(
                Problem::new(Code::Cycle, source, span, message).help("cut one of the links"),
            );
        }
    }

    /// Lets each node check what it is linked to, in order.
    fn facts(&mut self, order: &[usize]) -> Vec<KnownPorts> {
        let mut known: Vec<KnownPorts> = vec![BTreeMap::new(); self.flat.len()];
        for &index in order {
            let Some(node) = self.flat[index].node.clone() else {
                continue;
            };
            let scope = self.flat[index].scope;
            let source = self.scopes[scope].workflow.source.clone();
            let entry = Arc::clone(&self.flat[index].entry);
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
                        links.push(Known::Unknown);
                    } else {
                        links.push(fact);
                    }
                }
                links.resize(flat.known_links[port], Known::Unknown);
                if !links.is_empty() {
                    inputs.insert(spec.name, links);
                }
            }
            match node.reads(self.world.files) {
                Ok(reads) => {
                    for file in &reads {
                        if !self.world.files.is_file(&file.path) {
                            let fault = Fault {
                                field: self.path_field(index, &file.path),
                                message: format!("there is no file `{}`", display(&file.path)),
                                help: Some(
                                    "a path is relative to the file that wrote it".to_owned(),
                                ),
                                kind: FaultKind::File,
                            };
                            self.fault(index, fault);
                        }
                    }
                    self.flat[index].reads = reads;
                }
                Err(faults) => {
                    if !self.is_withheld(index) {
                        for fault in faults {
                            self.fault(index, fault);
                        }
                    }
                    continue; // its check would stumble over the same files
                }
            }
            if absent {
                continue;
            }
            self.flat[index].known = Arc::new(inputs.clone());
            let files = self.world.files;
            let checked = if inputs.is_empty() {
                self.world.facts.of(entry.op(), &*node, files)
            } else {
                node.check(inputs, files)
            };
            match checked {
                Ok((outputs, warnings)) => {
                    known[index] = outputs;
                    for warning in warnings {
                        let problem = self.problem(index, Code::NodeWarning, warning);
                        self.told.extend(problem.map(Problem::warning));
                    }
                }
                Err(faults) => {
                    if !self.is_withheld(index) {
                        for fault in faults {
                            self.fault(index, fault);
                        }
                    }
                }
            }
        }
        known
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
                Some(Given::Value(bound)) => bound
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

    /// Whether a node stumbled over models on a hub that cannot be read; reports those. What was only not fetched yet
    /// is a warning, and the workflow is then as one that is not whole: it can be checked, but not planned.
    fn is_withheld(&mut self, index: usize) -> bool {
        let flat = &self.flat[index];
        let mut held: Vec<(String, Withheld)> = Vec::new();
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
                        let why = self.world.files.withheld(Path::new(text));
                        held.extend(why.map(|why| (info.name.clone(), why)));
                    }
                    Json::Array(items) => open.extend(items),
                    Json::Object(entries) => open.extend(entries.values()),
                    _ => {}
                }
            }
        }
        // Parts of one model: what keeps it back is told once.
        let mut told: Vec<&str> = Vec::new();
        for (field, why) in &held {
            if told.contains(&why.message.as_str()) {
                continue;
            }
            told.push(&why.message);
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
                self.held.push(problem.warning());
            } else {
                self.problems.push(problem);
            }
        }
        !held.is_empty()
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

    fn outputs_made(&mut self, outputs: &[(CheckedOutput, Span)], known: &[KnownPorts]) {
        for (output, span) in outputs {
            let fact = known[output.link.node]
                .get(output.link.port)
                .and_then(|facts| facts.first());
            if let Some(Known::Absent(reason)) = fact {
                let source = &self.scopes[0].workflow.source;
                self.problems.push(
                    Problem::new(
                        Code::NotMade,
                        source,
                        *span,
                        format!("`{}` will not be made: {reason}", output.link.port),
                    )
                    .help("remove the output, or change the node"),
                );
            }
        }
    }

    /// Where the outputs of each node that uses a workflow come from.
    fn groups(&mut self) -> HashMap<String, Vec<usize>> {
        let mut groups = HashMap::new();
        for scope in 1..self.scopes.len() {
            let workflow = Arc::clone(&self.scopes[scope].workflow);
            let mut nodes = Vec::new();
            for decl in workflow.outputs.values() {
                if let Some(value) = &decl.value
                    && let Target::Link(link, _) = self.target(scope, &value.value, value.span)
                {
                    nodes.push(link.node);
                }
            }
            let name = self.scopes[scope].prefix.trim_end_matches('/').to_owned();
            groups.insert(name, nodes);
        }
        groups
    }

    fn warnings(&self, outputs: &[(CheckedOutput, Span)]) -> Vec<Problem> {
        let mut warnings = self.held.clone();
        warnings.extend(self.told.iter().cloned());
        let workflow = &self.scopes[0].workflow;
        for (name, decl) in &workflow.params {
            if !self.used.contains(name) {
                warnings.push(
                    Problem::new(
                        Code::UnusedParam,
                        &workflow.source,
                        decl.name_span,
                        format!("nothing uses the param `{name}`"),
                    )
                    .warning()
                    .help(format!(
                        "use it as `$params.{name}` or `{{{name}}}`, or remove it"
                    )),
                );
            }
        }
        if !outputs.is_empty() {
            let mut reached = vec![false; self.flat.len()];
            let mut open: Vec<usize> = outputs.iter().map(|(output, _)| output.link.node).collect();
            while let Some(index) = open.pop() {
                if !std::mem::replace(&mut reached[index], true) {
                    open.extend(
                        self.flat[index]
                            .links
                            .iter()
                            .flatten()
                            .map(|(link, _)| link.node),
                    );
                }
            }
            // A used workflow is reached when any of its nodes is.
            let mut scopes = vec![false; self.scopes.len()];
            for (flat, reached) in self.flat.iter().zip(&reached) {
                let mut scope = reached.then_some(flat.scope);
                while let Some(at) = scope {
                    if std::mem::replace(&mut scopes[at], true) {
                        break;
                    }
                    scope = self.scopes[at].parent;
                }
            }
            for (name, decl) in &workflow.nodes {
                let used = match self.scopes[0].slots.get(name) {
                    Some(Slot::Op(index)) => reached[*index],
                    Some(Slot::Use(scope)) => scopes[*scope],
                    _ => true,
                };
                if !used {
                    warnings.push(
                        Problem::new(
                            Code::UnusedNode,
                            &workflow.source,
                            decl.name_span,
                            format!("no output depends on the node `{name}`"),
                        )
                        .warning()
                        .help("link it to something, make an output of it, or remove it"),
                    );
                }
            }
        }
        problem::sort(&mut warnings);
        warnings
    }
}

/// A number from the system's randomness.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The keys of the standard library's hasher are random for each process and differ for each state.
    std::hash::RandomState::new().build_hasher().finish()
}

/// A number that is too great is read as a text: that it is one is not another fault.
fn one_for_each_number(problems: &mut Vec<Problem>) {
    let mut numbers: HashMap<Span, Vec<Source>> = HashMap::new();
    for problem in problems.iter() {
        if problem.code() == Code::NumberOutOfRange {
            let sources = numbers.entry(problem.span()).or_default();
            sources.push(problem.source_text().clone());
        }
    }
    if !numbers.is_empty() {
        problems.retain(|problem| {
            problem.code() == Code::NumberOutOfRange
                || !(numbers.get(&problem.span()).into_iter().flatten())
                    .any(|source| source.same(problem.source_text()))
        });
    }
}

/// The place of a value inside a tree, as far as the way leads.
fn place(tree: &Tree, path: &[Step]) -> Span {
    let mut at = tree;
    for step in path {
        let next = match (step, &at.node) {
            (Step::Key(name), Node::Map(entries)) => entries
                .iter()
                .find(|(key, _)| key.text == *name)
                .map(|(_, value)| value),
            (Step::Index(index), Node::Seq(items)) => items.get(*index),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    at.span
}

/// The place of a piece of a text inside the text's span, or the whole span (escapes, blocks).
fn within(source: &Source, span: Span, piece: &str) -> Span {
    match source.slice(span).find(piece) {
        Some(at) if !piece.is_empty() => Span::new(span.start + at, span.start + at + piece.len()),
        _ => span,
    }
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

/// The param or input that a reference to a value names.
fn value_name(text: &str) -> Option<&str> {
    text.strip_prefix("$params.")
        .or_else(|| text.strip_prefix("$inputs."))
}

fn joined(folder: &Path, text: &str) -> Json {
    let path = remote::join(folder, text);
    // The path was made of texts, so this loses nothing but for a folder whose own name is not Unicode.
    Json::from(path.to_string_lossy().into_owned())
}

/// Whether a file begins like a PNG, JPEG or WebP.
fn is_picture(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x89PNG\r\n\x1a\n")
        || bytes.starts_with(b"\xff\xd8\xff")
        || bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP")
}

/// Reads a file that the command line names. That there is none is a fault of the command line; what is in it is the file's.
pub(crate) fn read_argument(files: &dyn Files, name: &str, path: &Path) -> Result<Source, Problem> {
    read(files, name, path).map_err(|problem| match problem.code() {
        Code::FileUnreadable => problem.of_argument(),
        _ => problem,
    })
}

/// Reads a workflow or a parameter file.
pub(crate) fn read(files: &dyn Files, name: &str, path: &Path) -> Result<Source, Problem> {
    // A checkpoint given by mistake is not read in full to find that it is not a workflow.
    let result = files
        .read_head(path, yaml::MAX_BYTES + 1)
        .map(|(bytes, _)| bytes);
    match result {
        Ok(bytes) if is_picture(&bytes) => Err(Problem::new(
            Code::NotUtf8,
            &Source::new(name, ""),
            Span::default(),
            format!("`{name}` is a picture and not a workflow"),
        )
        .help("of a picture that was made here: `retouch replay FILE` draws it again, `retouch extract FILE` gives its workflow")),
        Ok(bytes) => yaml::decode(name, &bytes),
        Err(error) => Err(Problem::new(
            Code::FileUnreadable,
            &Source::new(name, ""),
            Span::default(),
            format!("`{name}` cannot be read: {error}"),
        )
        .help("check the path")),
    }
}
