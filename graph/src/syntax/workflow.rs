//! A workflow as it is written: from YAML to declarations, spans kept. Whether it makes sense is for `check`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::base::problem::{Code, Problem, Source, Span};
use crate::base::suggest;
use crate::syntax::mismatch::{Expected, Mismatch, nearest_inside};
use crate::syntax::params::{ParamType, is_carried};
use crate::syntax::template::is_name;
use crate::syntax::yaml::{self, MapKey, Node, Tree};

/// The schema that this program reads.
pub const SCHEMA: &str = "retouch/v1";

/// A value and where it is written.
#[derive(Clone, Debug)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub span: Span,
}

/// A workflow as it is written.
#[derive(Clone, Debug)]
pub struct Workflow {
    /// The text.
    pub source: Source,
    /// The folder from which its relative paths are resolved.
    pub folder: Arc<PathBuf>,
    /// Its name: `name`, or the file's name without the ending.
    pub name: String,
    /// What it does, for people.
    pub description: Option<String>,
    /// What may be set from outside.
    pub params: IndexMap<String, ParamDecl>,
    /// What a workflow that includes this one must link or give.
    pub inputs: IndexMap<String, InputDecl>,
    /// The nodes in the order of the file.
    pub nodes: IndexMap<String, NodeDecl>,
    /// The outputs in the order of the file.
    pub outputs: IndexMap<String, OutputDecl>,
    /// The runs that `retouch sweep` makes of it.
    pub sweep: Option<SweepDecl>,
    /// Whether `nodes` is not a map, and reported, so that nobody knows which nodes there are.
    pub(crate) nodes_unread: bool,
}

/// A param.
#[derive(Clone, Debug)]
pub struct ParamDecl {
    /// Where its name is.
    pub name_span: Span,
    /// Its type.
    pub kind: ParamType,
    /// Its default, of the declared type.
    pub default: Option<Spanned<Json>>,
    /// The least number.
    pub min: Option<f64>,
    /// The greatest number.
    pub max: Option<f64>,
    /// The values of a choice.
    pub values: Vec<String>,
    /// What it is, for people.
    pub help: Option<String>,
    /// Whether it may be left out without a default (an input only).
    pub optional: bool,
}

/// What an input takes.
#[derive(Clone, Debug)]
pub enum InputKind {
    /// A link, of this type.
    Port(String),
    /// A value.
    Value(ParamDecl),
}

/// An input of a reusable workflow.
#[derive(Clone, Debug)]
pub struct InputDecl {
    /// Where its name is.
    pub name_span: Span,
    /// Where its type is.
    pub type_span: Span,
    /// What it takes.
    pub kind: InputKind,
    /// Whether it may be left out.
    pub optional: bool,
    /// What it is, for people.
    pub help: Option<String>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeDecl {
    /// Where its name is.
    pub name_span: Span,
    /// What it is.
    pub body: NodeBody,
    /// Whether keys of it were dropped and reported, so that what is missing may have been meant.
    pub(crate) tainted: bool,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum NodeBody {
    /// An op with its ports and parameters, as they are written.
    Op {
        /// The op's name.
        op: Spanned<String>,
        /// All other keys.
        fields: Vec<(MapKey, Tree)>,
    },
    /// Another workflow.
    Use {
        /// The path as it is written.
        path: Spanned<String>,
        /// What it is given.
        with: Vec<(MapKey, Tree)>,
    },
    /// At fault, and reported.
    Broken,
}

/// An output.
#[derive(Clone, Debug)]
pub struct OutputDecl {
    /// Where its name is.
    pub name_span: Span,
    /// The reference, as it is written; `None` when it is at fault.
    pub value: Option<Spanned<String>>,
    /// The template of the path to save to.
    pub save: Option<Spanned<String>>,
}

/// A sweep as it is written: a run for each combination of values.
#[derive(Clone, Debug)]
pub struct SweepDecl {
    /// Where the key `sweep` is.
    pub key_span: Span,
    /// The workflow that is run, in a file that says a sweep and nothing else.
    pub workflow: Option<Spanned<String>>,
    /// The values of each param; every combination of them is a cell.
    pub matrix: Vec<(MapKey, Tree)>,
    /// Cells beside those of the matrix.
    pub include: Vec<Spanned<Vec<(MapKey, Tree)>>>,
    /// Cells of the matrix that are left out: those with all of these values.
    pub exclude: Vec<Spanned<Vec<(MapKey, Tree)>>>,
    /// The contact sheet.
    pub grid: Option<SheetDecl>,
    /// Where the table of results is saved: a template of a path that ends in `.csv` or `.json`.
    pub table: Option<Spanned<String>>,
}

/// The contact sheet of a sweep as it is written.
#[derive(Clone, Debug)]
pub struct SheetDecl {
    /// Where the key `grid` is.
    pub key_span: Span,
    /// The params whose values are the rows; `None`: all that are not columns.
    pub rows: Option<Vec<Spanned<String>>>,
    /// The params whose values are the columns; `None`: all that are not rows, or the last of all.
    pub columns: Option<Vec<Spanned<String>>>,
    /// The output whose pictures are shown; `None`: the first one that is a picture.
    pub output: Option<Spanned<String>>,
    /// The template of the path that it is saved to.
    pub save: Option<Spanned<String>>,
    /// What else is said goes to the op `grid`: `cell`, `filter`, `gap`, `background`.
    pub fields: Vec<(MapKey, Tree)>,
}

/// Reads a text; `None` when a fault leaves nothing to go on with. `folder` is where its relative paths start.
pub fn parse(source: &Source, folder: &Path, problems: &mut Vec<Problem>) -> Option<Workflow> {
    let tree = yaml::parse(source, problems)?;
    let mut reader = Reader { source, problems };
    reader.workflow(tree, folder)
}

struct Reader<'a> {
    source: &'a Source,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn report(&mut self, code: Code, span: Span, message: impl Into<String>) -> &mut Problem {
        self.problems
            .push(Problem::new(code, self.source, span, message));
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    fn fault(
        &mut self,
        code: Code,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let problem = self.report(code, span, message);
        *problem = problem.clone().help(help);
    }

    fn unknown_key(&mut self, key: &MapKey, place: &str, known: &[&str]) {
        let help = suggest::nearest(&key.text, known.iter().copied()).map_or_else(
            || format!("the keys of {place} are {}", suggest::list(known)),
            |name| format!("did you mean `{name}`?"),
        );
        self.fault(
            Code::UnknownKey,
            key.span,
            format!("{place} has no key `{}`", key.text),
            help,
        );
    }

    fn map(&mut self, tree: Tree, what: &str, help: &str) -> Option<Vec<(MapKey, Tree)>> {
        match tree.node {
            Node::Map(entries) => Some(entries),
            _ => {
                self.fault(
                    Code::WrongShape,
                    tree.span,
                    format!("{what} is a map, not {}", tree.describe()),
                    help,
                );
                None
            }
        }
    }

    fn text(&mut self, key: &MapKey, tree: &Tree) -> Option<String> {
        match &tree.node {
            Node::String { text, .. } => Some(text.clone()),
            _ => {
                let mut mismatch = Expected::text().mismatch(&key.text, tree);
                if mismatch.code != Code::UnquotedTemplate {
                    mismatch.code = Code::WrongShape;
                }
                self.problems.push(mismatch.at(self.source, tree.span));
                None
            }
        }
    }

    fn name(&mut self, key: &MapKey, what: &str) -> bool {
        if !is_name(&key.text) {
            self.fault(
                Code::BadName,
                key.span,
                format!("`{}` cannot name {what}", key.text.escape_debug()),
                "names are made of letters (a-z, A-Z), digits, `_` and `-`",
            );
            return false;
        }
        true
    }

    fn workflow(&mut self, tree: Tree, folder: &Path) -> Option<Workflow> {
        const KEYS: &[&str] = &[
            "schema",
            "name",
            "description",
            "params",
            "inputs",
            "nodes",
            "outputs",
            "sweep",
        ];
        let whole = tree.span;
        if matches!(tree.node, Node::Null) {
            self.fault(
                Code::MissingSchema,
                whole,
                "the file is empty",
                format!("a workflow begins with `schema: {SCHEMA}`"),
            );
            return None;
        }
        let entries = self.map(
            tree,
            "a workflow",
            &format!("it begins with `schema: {SCHEMA}`"),
        )?;
        let stem = Path::new(self.source.name())
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or("workflow");
        let mut workflow = Workflow {
            source: self.source.clone(),
            folder: Arc::new(folder.to_owned()),
            name: stem.to_owned(),
            description: None,
            params: IndexMap::new(),
            inputs: IndexMap::new(),
            nodes: IndexMap::new(),
            outputs: IndexMap::new(),
            sweep: None,
            nodes_unread: false,
        };
        match entries.iter().find(|(key, _)| key.text == "schema") {
            None => {
                // The first key's place, so that the caret is where the line is to go.
                let at = entries.first().map_or(whole, |(key, _)| key.span);
                self.fault(
                    Code::MissingSchema,
                    at,
                    "the workflow does not say its schema",
                    format!("begin it with `schema: {SCHEMA}`"),
                );
            }
            Some((_, tree)) => {
                if !self.schema(tree) {
                    return None; // what follows is of a language that this program does not know
                }
            }
        }
        for (key, tree) in entries {
            match key.text.as_str() {
                "schema" => {}
                "name" => {
                    if let Some(name) = self.text(&key, &tree) {
                        workflow.name = name;
                    }
                }
                "description" => workflow.description = self.text(&key, &tree),
                "params" => {
                    for (key, tree) in self.section(tree, "params", "place: {type: string}") {
                        if self.name(&key, "a param") {
                            // What refers to a param whose declaration is at fault is not at fault itself.
                            let decl = self
                                .param(&key, tree)
                                .map_or_else(|| ParamDecl::broken(&key), |(decl, _)| decl);
                            workflow.params.insert(key.text, decl);
                        }
                    }
                }
                "inputs" => {
                    for (key, tree) in self.section(tree, "inputs", "image: {type: image}") {
                        if self.name(&key, "an input")
                            && let Some(decl) = self.input(&key, tree)
                        {
                            workflow.inputs.insert(key.text, decl);
                        }
                    }
                }
                "nodes" => {
                    workflow.nodes_unread = !matches!(tree.node, Node::Map(_) | Node::Null);
                    // Keys that were not read, in order: what such a node has is not known.
                    let unread = (self.problems.iter()).filter(|problem| {
                        matches!(problem.code(), Code::MergeKey | Code::KeyNotText)
                    });
                    let mut unread: Vec<Span> = unread.map(Problem::span).collect();
                    unread.sort_unstable();
                    for (key, tree) in self.section(tree, "nodes", "base: {op: load_model}") {
                        if !self.name(&key, "a node") {
                            continue;
                        }
                        if matches!(key.text.as_str(), "params" | "inputs" | "outputs") {
                            self.fault(
                                Code::ReservedName,
                                key.span,
                                format!("`{}` is reserved and cannot name a node", key.text),
                                "choose another name",
                            );
                            continue;
                        }
                        let whole = tree.span;
                        let at = unread.partition_point(|span| span.start < whole.start);
                        let tainted = unread.get(at).is_some_and(|span| span.end <= whole.end);
                        let body = self.node(&key, tree, tainted);
                        workflow.nodes.insert(
                            key.text,
                            NodeDecl {
                                name_span: key.span,
                                body,
                                tainted,
                            },
                        );
                    }
                }
                "outputs" => {
                    for (key, tree) in self.section(tree, "outputs", "final: {value: $picture}") {
                        if self.name(&key, "an output") {
                            let decl = self.output(&key, tree);
                            workflow.outputs.insert(key.text, decl);
                        }
                    }
                }
                "sweep" => workflow.sweep = self.sweep(&key, tree),
                other if is_carried(other) => {}
                _ => self.unknown_key(&key, "a workflow", KEYS),
            }
        }
        self.sweep_only(&workflow);
        for (name, input) in &workflow.inputs {
            if let Some(param) = workflow.params.get(name) {
                self.problems.push(
                    Problem::new(
                        Code::BadDeclaration,
                        self.source,
                        input.name_span,
                        format!("the input `{name}` has the name of a param"),
                    )
                    .also(self.source, param.name_span, "the param")
                    .help("`with:` and templates could mean either: rename one of them"),
                );
            }
        }
        Some(workflow)
    }

    fn sweep(&mut self, key: &MapKey, tree: Tree) -> Option<SweepDecl> {
        const KEYS: &[&str] = &["workflow", "matrix", "include", "exclude", "grid", "table"];
        let example = "matrix: {seed: 1..5}";
        let mut sweep = SweepDecl {
            key_span: key.span,
            workflow: None,
            matrix: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            grid: None,
            table: None,
        };
        let entries = self.map(tree, "`sweep`", &format!("write `sweep: {{{example}}}`"))?;
        for (key, tree) in entries {
            match key.text.as_str() {
                "workflow" => sweep.workflow = self.spanned(&key, &tree),
                "table" => sweep.table = self.spanned(&key, &tree),
                "matrix" => sweep.matrix = self.section(tree, "matrix", "seed: 1..5"),
                "include" => sweep.include = self.cells(&key, tree),
                "exclude" => sweep.exclude = self.cells(&key, tree),
                "grid" => sweep.grid = self.sheet(&key, tree),
                other if is_carried(other) => {}
                _ => self.unknown_key(&key, "`sweep`", KEYS),
            }
        }
        if sweep.matrix.is_empty() && sweep.include.is_empty() {
            self.fault(
                Code::BadSweep,
                key.span,
                "the sweep has no cells",
                format!("say what varies: `sweep: {{{example}}}`"),
            );
            return None;
        }
        Some(sweep)
    }

    fn spanned(&mut self, key: &MapKey, tree: &Tree) -> Option<Spanned<String>> {
        self.text(key, tree).map(|value| Spanned {
            value,
            span: tree.span,
        })
    }

    /// The list of `include` or `exclude`.
    fn cells(&mut self, key: &MapKey, tree: Tree) -> Vec<Spanned<Vec<(MapKey, Tree)>>> {
        let help = format!("write `{}: [{{seed: 7, steps: 20}}]`", key.text);
        let Node::Seq(items) = tree.node else {
            self.fault(
                Code::WrongShape,
                tree.span,
                format!("`{}` is a list of maps, not {}", key.text, tree.describe()),
                help,
            );
            return Vec::new();
        };
        let mut cells = Vec::new();
        for item in items {
            let span = item.span;
            let what = format!("a cell of `{}`", key.text);
            let Some(entries) = self.map(item, &what, &help) else {
                continue;
            };
            let value: Vec<(MapKey, Tree)> = entries
                .into_iter()
                .filter(|(key, _)| !is_carried(&key.text))
                .collect();
            // An empty cell of `include` is the one of the defaults; one of `exclude` would be all of them.
            if value.is_empty() && key.text == "exclude" {
                self.fault(Code::BadSweep, span, format!("{what} is empty"), &help);
                continue;
            }
            cells.push(Spanned { value, span });
        }
        cells
    }

    fn sheet(&mut self, key: &MapKey, tree: Tree) -> Option<SheetDecl> {
        let mut sheet = SheetDecl {
            key_span: key.span,
            rows: None,
            columns: None,
            output: None,
            save: None,
            fields: Vec::new(),
        };
        if matches!(tree.node, Node::Null) {
            return Some(sheet); // `grid:` alone: a sheet as it comes
        }
        let help = "write `grid: {rows: steps, columns: seed, save: \"{workflow}/sheet.png\"}`";
        for (key, tree) in self.map(tree, "`grid`", help)? {
            match key.text.as_str() {
                "rows" => sheet.rows = self.axis(&key, &tree),
                "columns" => sheet.columns = self.axis(&key, &tree),
                "output" => sheet.output = self.spanned(&key, &tree),
                "save" => sheet.save = self.spanned(&key, &tree),
                other if is_carried(other) => {}
                _ => sheet.fields.push((key, tree)),
            }
        }
        Some(sheet)
    }

    /// A param, or several.
    fn axis(&mut self, key: &MapKey, tree: &Tree) -> Option<Vec<Spanned<String>>> {
        match &tree.node {
            Node::Seq(items) => items.iter().map(|item| self.spanned(key, item)).collect(),
            _ => self.spanned(key, tree).map(|one| vec![one]),
        }
    }

    /// A file that names the workflow to sweep is that sweep and nothing else.
    fn sweep_only(&mut self, workflow: &Workflow) {
        let Some(other) = workflow
            .sweep
            .as_ref()
            .and_then(|sweep| sweep.workflow.as_ref())
        else {
            return;
        };
        let own = (workflow.nodes.values().map(|node| node.name_span))
            .chain(workflow.outputs.values().map(|output| output.name_span))
            .chain(workflow.params.values().map(|param| param.name_span))
            .chain(workflow.inputs.values().map(|input| input.name_span))
            .next();
        if let Some(own) = own {
            let problem = Problem::new(
                Code::BadSweep,
                self.source,
                other.span,
                "the sweep is of another workflow, and this file is one too",
            )
            .also(self.source, own, "part of a workflow")
            .help("remove `workflow:` to sweep this one, or move the sweep to a file of its own");
            self.problems.push(problem);
        }
    }

    fn schema(&mut self, tree: &Tree) -> bool {
        let help = format!("write `schema: {SCHEMA}`");
        let Some(text) = tree.as_text() else {
            self.fault(
                Code::UnknownSchema,
                tree.span,
                format!("`schema` is `{SCHEMA}`, not {}", tree.describe()),
                help,
            );
            return true;
        };
        if text == SCHEMA {
            return true;
        }
        let version = text
            .strip_prefix("retouch/v")
            .and_then(|version| version.parse::<u64>().ok());
        match version {
            Some(version) if version > 1 => {
                self.fault(
                    Code::UnknownSchema,
                    tree.span,
                    format!(
                        "the workflow is written in `{text}`, which is newer than this program"
                    ),
                    format!("this program reads `{SCHEMA}`; a newer version of it reads `{text}`"),
                );
                false
            }
            _ => {
                self.fault(
                    Code::UnknownSchema,
                    tree.span,
                    format!("there is no schema `{}`", text.escape_debug()),
                    help,
                );
                true
            }
        }
    }

    fn section(&mut self, tree: Tree, name: &str, example: &str) -> Vec<(MapKey, Tree)> {
        if matches!(tree.node, Node::Null) {
            return Vec::new(); // `params:` with everything below it commented out
        }
        self.map(
            tree,
            &format!("`{name}`"),
            &format!("write one `{example}` a line"),
        )
        .unwrap_or_default()
        .into_iter()
        .filter(|(key, _)| !is_carried(&key.text))
        .collect()
    }

    /// A param, or an input that is a value; the second value is where the type is written.
    fn param(&mut self, key: &MapKey, tree: Tree) -> Option<(ParamDecl, Span)> {
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
                "min" | "max" if numeric => {
                    let number = match &tree.node {
                        #[expect(clippy::cast_precision_loss, reason = "at most 2^53 - 1")]
                        Node::Int(value) => *value as f64,
                        Node::Float(value) => *value,
                        _ => {
                            let mismatch = Expected::number().mismatch(&key.text, &tree);
                            self.problems.push(mismatch.at(self.source, tree.span));
                            continue;
                        }
                    };
                    if key.text == "min" {
                        decl.min = Some(number);
                    } else {
                        decl.max = Some(number);
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
                    if let Node::Seq(items) = &tree.node {
                        for item in items {
                            if let Some(text) = self.text(&key, item) {
                                decl.values.push(text);
                            }
                        }
                    } else {
                        self.fault(
                            Code::WrongShape,
                            tree.span,
                            format!("`values` is a list of texts, not {}", tree.describe()),
                            "write `values: [one, two]`",
                        );
                    }
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
            match decl.read(&name.text, &tree) {
                Ok(value) => {
                    decl.default = Some(Spanned {
                        value,
                        span: tree.span,
                    });
                }
                Err(mut mismatch) => {
                    mismatch.code = Code::BadDeclaration;
                    mismatch.message = format!("the default does not fit: {}", mismatch.message);
                    self.problems.push(mismatch.at(self.source, tree.span));
                    // The param is known all the same, and what refers to it is not at fault.
                    decl.optional = true;
                }
            }
        }
        Some(decl)
    }

    fn boolean(&mut self, key: &MapKey, tree: &Tree) -> bool {
        match &tree.node {
            Node::Bool(value) => *value,
            _ => {
                let mismatch = Expected::boolean().mismatch(&key.text, tree);
                self.problems.push(mismatch.at(self.source, tree.span));
                false
            }
        }
    }

    fn input(&mut self, key: &MapKey, tree: Tree) -> Option<InputDecl> {
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

    fn node(&mut self, name: &MapKey, tree: Tree, tainted: bool) -> NodeBody {
        let Some(entries) = self.map(
            tree,
            &format!("the node `{}`", name.text),
            &format!("write `{}: {{op: load_model, path: ...}}`", name.text),
        ) else {
            return NodeBody::Broken;
        };
        let mut op = None;
        let mut path = None;
        let mut with = None;
        let mut fields = Vec::new();
        let mut broken = false;
        for (key, tree) in entries {
            match key.text.as_str() {
                "op" | "use" => match self.text(&key, &tree) {
                    Some(value) => {
                        let value = Spanned {
                            value,
                            span: tree.span,
                        };
                        if key.text == "op" {
                            op = Some((key, value));
                        } else {
                            path = Some((key, value));
                        }
                    }
                    None => broken = true,
                },
                other if is_carried(other) => {}
                "with" => with = Some((key, tree)),
                _ => fields.push((key, tree)),
            }
        }
        match (op, path) {
            _ if broken => NodeBody::Broken,
            (None, None) if tainted => NodeBody::Broken,
            (None, None) => {
                let help = fields
                    .iter()
                    .find(|(key, _)| {
                        suggest::nearest(&key.text, ["op", "use"]).is_some() && key.text.len() <= 4
                    })
                    .map_or_else(
                        || "add `op: ...` (see `retouch nodes`), or `use: other.yaml`".to_owned(),
                        |(key, _)| format!("did you mean `op` by `{}`?", key.text),
                    );
                self.fault(
                    Code::MissingKey,
                    name.span,
                    format!("the node `{}` has neither `op` nor `use`", name.text),
                    help,
                );
                NodeBody::Broken
            }
            (Some((op, _)), Some((path, _))) => {
                let problem = Problem::new(
                    Code::UnknownKey,
                    self.source,
                    path.span,
                    format!("the node `{}` has both `op` and `use`", name.text),
                )
                .also(self.source, op.span, "the op")
                .help("a node is either; make two of it");
                self.problems.push(problem);
                NodeBody::Broken
            }
            (Some((_, op)), None) => {
                if let Some((key, tree)) = with {
                    // An op may have a parameter `with`, so it is told by its registry entry.
                    fields.push((key, tree));
                }
                NodeBody::Op { op, fields }
            }
            (None, Some((_, path))) => {
                for (key, _) in &fields {
                    let message = format!(
                        "`{}`: a node that uses a workflow has no key `{}`",
                        name.text, key.text
                    );
                    self.fault(
                        Code::UnknownKey,
                        key.span,
                        message,
                        format!(
                            "what the workflow is given stands under `with:`: `with: {{{}: ...}}`",
                            key.text
                        ),
                    );
                }
                let with = match with {
                    None => Vec::new(),
                    Some((_, tree)) => self.section(tree, "with", "image: $photo"),
                };
                NodeBody::Use { path, with }
            }
        }
    }

    fn output(&mut self, name: &MapKey, tree: Tree) -> OutputDecl {
        const KEYS: &[&str] = &["value", "save"];
        let mut decl = OutputDecl {
            name_span: name.span,
            value: None,
            save: None,
        };
        let Some(entries) = self.map(
            tree,
            &format!("the output `{}`", name.text),
            &format!("write `{}: {{value: $picture}}`", name.text),
        ) else {
            return decl;
        };
        let mut given = false;
        for (key, tree) in entries {
            match key.text.as_str() {
                "value" => {
                    given = true;
                    decl.value = match &tree.node {
                        Node::String { text, .. } => Some(Spanned {
                            value: text.clone(),
                            span: tree.span,
                        }),
                        _ => {
                            self.fault(
                                Code::LinkDue,
                                tree.span,
                                format!(
                                    "`value` is a reference to a node, not {}",
                                    tree.describe()
                                ),
                                "write `value: $picture`",
                            );
                            None
                        }
                    };
                }
                "save" => {
                    decl.save = self.text(&key, &tree).map(|value| Spanned {
                        value,
                        span: tree.span,
                    });
                }
                "help" | "description" => {
                    let _ = self.text(&key, &tree);
                }
                other if is_carried(other) => {}
                _ => {
                    let place = format!("the output `{}`", name.text);
                    self.unknown_key(&key, &place, KEYS);
                }
            }
        }
        if !given {
            self.fault(
                Code::MissingKey,
                name.span,
                format!("the output `{}` has no `value`", name.text),
                "add `value: $node`",
            );
        }
        decl
    }
}

fn types() -> String {
    suggest::list(&ParamType::ALL.map(ParamType::name))
}

impl ParamDecl {
    /// A param that is known by its name alone, its declaration being at fault and reported.
    fn broken(name: &MapKey) -> Self {
        Self {
            name_span: name.span,
            kind: ParamType::String,
            default: None,
            min: None,
            max: None,
            values: Vec::new(),
            help: None,
            optional: true,
        }
    }

    /// Whether a value can be given to the param `name`, which this declares: what is wrong with it, and what to do.
    ///
    /// # Errors
    /// In words, when it is of another type, out of the range, or none of the choices.
    pub fn check(&self, name: &str, value: &Json) -> Result<(), String> {
        match self.read(name, &Tree::of(value, Span::default())) {
            Ok(_) => Ok(()),
            Err(mismatch) => Err(mismatch.in_words()),
        }
    }

    /// Reads a value by the declaration: its type, its range, its choices.
    pub(crate) fn read(&self, name: &str, tree: &Tree) -> Result<Json, Mismatch> {
        let value = self.kind.read(name, tree)?;
        self.limits(name, &value)?;
        Ok(value)
    }

    /// Whether a value of the right type is within the range and among the choices.
    pub(crate) fn limits(&self, name: &str, value: &Json) -> Result<(), Mismatch> {
        if let Some(number) = value.as_f64() {
            let range = match (self.min, self.max) {
                (Some(min), Some(max)) => format!("from {min} to {max}"),
                (Some(min), None) => format!("{min} or greater"),
                (None, Some(max)) => format!("{max} or smaller"),
                (None, None) => return Ok(()),
            };
            if self.min.is_some_and(|min| number < min) || self.max.is_some_and(|max| number > max)
            {
                return Err(Mismatch::new(
                    Code::OutOfRange,
                    format!("`{name}` is {value}, and it must be {range}"),
                )
                .help(nearest_inside(number, self.min, self.max)));
            }
        }
        if self.kind == ParamType::Choice
            && let Some(text) = value.as_str()
            && !self.values.iter().any(|one| one == text)
        {
            let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
            let help = suggest::nearest(text, values.iter().copied()).map_or_else(
                || format!("the values are {}", suggest::list(&values)),
                |near| format!("did you mean `{near}`?"),
            );
            return Err(Mismatch::new(
                Code::OutOfRange,
                format!("`{name}` has no value `{}`", text.escape_debug()),
            )
            .help(help));
        }
        Ok(())
    }
}
