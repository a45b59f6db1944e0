//! What a file declares and what refers to it, with the place of every name.

use retouch_graph::params::is_carried;
use retouch_graph::registry::Registry;
use retouch_graph::template::is_name;
use retouch_graph::yaml::{self, MapKey as Key, Node, Tree};
use retouch_graph::{Source, Span};

use super::outline;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A param of the file.
    Param(String),
    /// An input of the file.
    Input(String),
    /// A node of the file.
    Node(String),
    /// An output of the file.
    Output(String),
    /// An output port of a node.
    Port {
        /// The node.
        node: String,
        /// The port.
        port: String,
    },
    /// An op.
    Op(String),
    /// Another workflow, by its path as it is written.
    Use(String),
    /// A key of a node that has an op.
    Field {
        /// The node.
        node: String,
        /// The key.
        field: String,
    },
    /// A key under the `with:` of a node.
    With {
        /// The node.
        node: String,
        /// The key.
        key: String,
    },
    /// A key of the language.
    Key(&'static str),
}

/// A place where something is named.
#[derive(Clone, Debug)]
pub struct Occurrence {
    /// The name itself.
    pub span: Span,
    /// What a pointer may be on: `$params.x` for the name `x`.
    pub hit: Span,
    /// What is named.
    pub item: Item,
    /// Whether this is where it is declared.
    pub declares: bool,
    /// For a name in a template under `with:`: the node and the key, as not every value there is a template.
    pub within: Option<(String, String)>,
}

/// A param or an input.
#[derive(Clone, Debug)]
pub struct Decl {
    /// Its name.
    pub name: String,
    /// Where its name is.
    pub span: Span,
    /// The declaration from its name to its end.
    pub whole: Span,
    /// Its type as it is written; empty when there is none.
    pub kind: String,
    /// Its default as it is written.
    pub default: Option<String>,
    /// The least number as it is written.
    pub min: Option<String>,
    /// The greatest number as it is written.
    pub max: Option<String>,
    /// The values of a choice.
    pub values: Vec<String>,
    /// What it is, for people.
    pub help: Option<String>,
    /// Whether an input may be left out.
    pub optional: bool,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeItem {
    /// Its name.
    pub name: String,
    /// Where its name is.
    pub span: Span,
    /// The node from its name to its end.
    pub whole: Span,
    /// Its op.
    pub op: Option<String>,
    /// The workflow that it uses, by its path as it is written.
    pub uses: Option<String>,
}

/// An output.
#[derive(Clone, Debug)]
pub struct OutputItem {
    /// Its name.
    pub name: String,
    /// Where its name is.
    pub span: Span,
    /// The output from its name to its end.
    pub whole: Span,
    /// The reference, as it is written.
    pub value: Option<String>,
    /// What it is, for people.
    pub help: Option<String>,
}

/// A file, read for navigation.
#[derive(Clone, Debug)]
pub struct Index {
    /// The workflow that the file's sweep names, if it is a sweep of another one.
    pub sweeps: Option<String>,
    /// The text.
    pub source: Source,
    /// Whether the engine's parser could read it; if not, what is here is from a reading that guesses.
    pub sound: bool,
    /// What it does, for people.
    pub description: Option<String>,
    /// What may be set from outside.
    pub params: Vec<Decl>,
    /// What a workflow that uses this one links or gives.
    pub inputs: Vec<Decl>,
    /// The nodes.
    pub nodes: Vec<NodeItem>,
    /// The outputs.
    pub outputs: Vec<OutputItem>,
    /// All places with names, in the order of the text.
    pub occurrences: Vec<Occurrence>,
}

impl Index {
    /// Reads a text.
    #[must_use]
    pub fn of(source: &Source, registry: &Registry) -> Self {
        let strict = yaml::parse(source, &mut Vec::new());
        let sound = strict.is_some();
        let tree = strict.unwrap_or_else(|| outline::read(source.text()));
        let mut builder = Builder {
            index: Self {
                sweeps: None,
                source: source.clone(),
                sound,
                description: None,
                params: Vec::new(),
                inputs: Vec::new(),
                nodes: Vec::new(),
                outputs: Vec::new(),
                occurrences: Vec::new(),
            },
            registry,
        };
        builder.file(&tree);
        let mut index = builder.index;
        // What an alias repeats is one place in the text.
        index
            .occurrences
            .sort_by_key(|occurrence| (occurrence.span.start, occurrence.span.end));
        index
            .occurrences
            .dedup_by(|a, b| a.span == b.span && a.item == b.item);
        index
    }

    /// What is named at a byte of the text; the smallest place that covers it.
    #[must_use]
    pub fn at(&self, offset: usize) -> Option<&Occurrence> {
        self.occurrences
            .iter()
            .filter(|one| one.hit.start <= offset && offset <= one.hit.end)
            // At a border, `$layout|.trajectory`, what begins there counts less than what ends there.
            .min_by_key(|one| {
                let inside = one.span.start <= offset && offset <= one.span.end;
                (!inside, one.hit.end - one.hit.start)
            })
    }

    /// The places that name the same.
    pub fn all<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = &'a Occurrence> {
        self.occurrences.iter().filter(move |one| one.item == *item)
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeItem> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The param of that name.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&Decl> {
        self.params.iter().find(|decl| decl.name == name)
    }

    /// The input of that name.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&Decl> {
        self.inputs.iter().find(|decl| decl.name == name)
    }

    /// The input, or else the param, that `with:` gives under that name.
    #[must_use]
    pub fn given(&self, name: &str) -> Option<(&Decl, Item)> {
        self.input(name)
            .map(|decl| (decl, Item::Input(name.to_owned())))
            .or_else(|| {
                self.param(name)
                    .map(|decl| (decl, Item::Param(name.to_owned())))
            })
    }

    /// The output of that name.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&OutputItem> {
        self.outputs.iter().find(|output| output.name == name)
    }
}

struct Builder<'a> {
    index: Index,
    registry: &'a Registry,
}

/// The entries of a map.
fn entries(tree: &Tree) -> &[(Key, Tree)] {
    match &tree.node {
        Node::Map(entries) => entries,
        _ => &[],
    }
}

/// The value of a key.
fn get<'a>(tree: &'a Tree, key: &str) -> Option<&'a Tree> {
    entries(tree)
        .iter()
        .find(|(known, _)| known.text == key)
        .map(|(_, tree)| tree)
}

impl Builder<'_> {
    fn add(&mut self, span: Span, item: Item, declares: bool) {
        self.index.occurrences.push(Occurrence {
            span,
            hit: span,
            item,
            declares,
            within: None,
        });
    }

    /// The place of a text inside its quotes.
    fn inner(&self, span: Span, text: &str) -> Span {
        if text.is_empty() {
            return span;
        }
        self.index.source.slice(span).find(text).map_or(span, |at| {
            Span::new(span.start + at, span.start + at + text.len())
        })
    }

    fn text(tree: Option<&Tree>) -> Option<String> {
        tree.and_then(Tree::as_text).map(str::to_owned)
    }

    fn written(&self, tree: Option<&Tree>) -> Option<String> {
        tree.map(|tree| self.index.source.slice(tree.span).to_owned())
    }

    fn file(&mut self, tree: &Tree) {
        self.index.description = Self::text(get(tree, "description"));
        // Declarations first: what a template names is looked up in them.
        for (section, tree) in entries(tree) {
            let key = match section.text.as_str() {
                "schema" => "schema",
                "name" => "name",
                "description" => "description",
                "params" => "params",
                "inputs" => "inputs",
                "nodes" => "nodes",
                "outputs" => "outputs",
                "sweep" => "sweep",
                _ => continue,
            };
            self.add(section.span, Item::Key(key), true);
            if !matches!(key, "params" | "inputs") {
                continue;
            }
            for (name, tree) in entries(tree)
                .iter()
                .filter(|(key, _)| !is_carried(&key.text))
            {
                let decl = self.decl(name, tree);
                let (list, item) = if key == "params" {
                    (&mut self.index.params, Item::Param(name.text.clone()))
                } else {
                    (&mut self.index.inputs, Item::Input(name.text.clone()))
                };
                let span = decl.span;
                list.push(decl);
                self.add(span, item, true);
            }
        }
        for (name, tree) in section(tree, "nodes") {
            self.node(name, tree);
        }
        if let Some(sweep) = get(tree, "sweep") {
            self.sweep(sweep);
        }
        for (name, tree) in section(tree, "outputs") {
            let span = self.inner(name.span, &name.text);
            self.index.outputs.push(OutputItem {
                name: name.text.clone(),
                span,
                whole: name.span.to(tree.span),
                value: Self::text(get(tree, "value")),
                help: Self::text(get(tree, "help").or_else(|| get(tree, "description"))),
            });
            self.add(span, Item::Output(name.text.clone()), true);
            for (key, tree) in entries(tree) {
                match key.text.as_str() {
                    "value" => {
                        self.add(key.span, Item::Key("value"), true);
                        self.reference(tree);
                    }
                    "save" => {
                        self.add(key.span, Item::Key("save"), true);
                        self.template(tree, None);
                    }
                    _ => {}
                }
            }
        }
    }

    /// What a sweep in the same file names: its params, and the output that its sheet shows.
    fn sweep(&mut self, sweep: &Tree) {
        self.index.sweeps = Self::text(get(sweep, "workflow"));
        if self.index.sweeps.is_some() {
            return; // the names are of another file
        }
        let mut named: Vec<(Span, String)> = Vec::new();
        for (key, _) in section(sweep, "matrix") {
            named.push((key.span, key.text.clone()));
        }
        if let Some(Node::Seq(items)) = get(sweep, "zip").map(|tree| &tree.node) {
            for item in items {
                let names = match &item.node {
                    Node::Seq(names) => names.iter().collect(),
                    _ => vec![item],
                };
                for tree in names {
                    if let Some(text) = tree.as_text() {
                        named.push((tree.span, text.to_owned()));
                    }
                }
            }
        }
        for list in ["include", "exclude"] {
            if let Some(Node::Seq(cells)) = get(sweep, list).map(|tree| &tree.node) {
                for (key, _) in cells.iter().flat_map(entries) {
                    named.push((key.span, key.text.clone()));
                }
            }
        }
        if let Some(grid) = get(sweep, "grid") {
            for axis in ["rows", "columns"] {
                let several = match get(grid, axis).map(|tree| &tree.node) {
                    Some(Node::Seq(items)) => items.iter().collect(),
                    _ => get(grid, axis).into_iter().collect::<Vec<_>>(),
                };
                for tree in several {
                    if let Some(text) = tree.as_text() {
                        named.push((tree.span, text.to_owned()));
                    }
                }
            }
            for field in ["output", "table"] {
                if let Some(tree) = get(grid, field)
                    && let Some(text) = tree.as_text()
                {
                    let span = self.inner(tree.span, text);
                    self.add(span, Item::Output(text.to_owned()), false);
                }
            }
        }
        for (span, name) in named {
            let span = self.inner(span, &name);
            self.add(span, Item::Param(name), false);
        }
    }

    fn decl(&mut self, name: &Key, tree: &Tree) -> Decl {
        for (key, _) in entries(tree) {
            let known = match key.text.as_str() {
                "type" => "type",
                "default" => "default",
                "min" => "min",
                "max" => "max",
                "values" => "values",
                "help" => "help",
                "optional" => "optional",
                _ => continue,
            };
            self.add(key.span, Item::Key(known), true);
        }
        let values = match get(tree, "values").map(|tree| &tree.node) {
            Some(Node::Seq(items)) => items
                .iter()
                .filter_map(|item| item.as_text().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        };
        Decl {
            name: name.text.clone(),
            span: self.inner(name.span, &name.text),
            whole: name.span.to(tree.span),
            kind: Self::text(get(tree, "type")).unwrap_or_default(),
            default: self.written(get(tree, "default")),
            min: self.written(get(tree, "min")),
            max: self.written(get(tree, "max")),
            values,
            help: Self::text(get(tree, "help")),
            optional: self.written(get(tree, "optional")).as_deref() == Some("true"),
        }
    }

    fn node(&mut self, name: &Key, tree: &Tree) {
        let span = self.inner(name.span, &name.text);
        self.add(span, Item::Node(name.text.clone()), true);
        let op = Self::text(get(tree, "op"));
        let uses = Self::text(get(tree, "use"));
        let entry = op.as_ref().and_then(|op| self.registry.entry(op)).cloned();
        for (key, value) in entries(tree) {
            match key.text.as_str() {
                "op" => {
                    self.add(key.span, Item::Key("op"), true);
                    if let Some(op) = &op {
                        self.add(self.inner(value.span, op), Item::Op(op.clone()), false);
                    }
                }
                "use" => {
                    self.add(key.span, Item::Key("use"), true);
                    if let Some(path) = &uses {
                        self.add(self.inner(value.span, path), Item::Use(path.clone()), false);
                    }
                }
                "with" if uses.is_some() => {
                    self.add(key.span, Item::Key("with"), true);
                    for (key, value) in entries(value)
                        .iter()
                        .filter(|(key, _)| !is_carried(&key.text))
                    {
                        let item = Item::With {
                            node: name.text.clone(),
                            key: key.text.clone(),
                        };
                        self.add(self.inner(key.span, &key.text), item, false);
                        if !self.reference(value) {
                            self.template(value, Some((&name.text, &key.text)));
                        }
                    }
                }
                carried if is_carried(carried) => {}
                field => {
                    let item = Item::Field {
                        node: name.text.clone(),
                        field: field.to_owned(),
                    };
                    self.add(self.inner(key.span, field), item, false);
                    let template = entry
                        .as_ref()
                        .and_then(|entry| entry.params().iter().find(|param| param.name == field))
                        .is_some_and(|param| param.is_template());
                    self.values(value, template);
                }
            }
        }
        self.index.nodes.push(NodeItem {
            name: name.text.clone(),
            span,
            whole: name.span.to(tree.span),
            op,
            uses,
        });
    }

    /// The references and templates in a value, however deep.
    fn values(&mut self, tree: &Tree, template: bool) {
        match &tree.node {
            Node::Seq(items) => items.iter().for_each(|item| self.values(item, template)),
            Node::Map(entries) => entries
                .iter()
                .for_each(|(_, value)| self.values(value, template)),
            Node::String { .. } => {
                let reference = self.reference(tree);
                if template && !reference {
                    self.template(tree, None);
                }
            }
            _ => {}
        }
    }

    /// A reference as a whole value; whether it is one.
    fn reference(&mut self, tree: &Tree) -> bool {
        let Some(text) = tree.as_text() else {
            return false;
        };
        if !text.starts_with('$') || text.starts_with("$$") {
            return false;
        }
        // An alias stands for a text that is written elsewhere.
        let Some(at) = self.index.source.slice(tree.span).find(text) else {
            return true;
        };
        let start = tree.span.start + at;
        let whole = Span::new(start, start + text.len());
        let (name, port) = match text[1..].split_once('.') {
            Some((name, port)) => (name, Some(port)),
            None => (&text[1..], None),
        };
        let end = start + 1 + name.len();
        match (name, port) {
            ("params" | "inputs", Some(of)) if is_name(of) => {
                let item = if name == "params" {
                    Item::Param(of.to_owned())
                } else {
                    Item::Input(of.to_owned())
                };
                self.add(Span::new(end + 1, whole.end), item, false);
                if let Some(last) = self.index.occurrences.last_mut() {
                    last.hit = whole;
                }
            }
            ("params" | "inputs" | "outputs", _) => {}
            _ if is_name(name) => {
                self.add(
                    Span::new(start + 1, end),
                    Item::Node(name.to_owned()),
                    false,
                );
                if let Some(last) = self.index.occurrences.last_mut() {
                    last.hit = Span::new(start, end);
                }
                if let Some(port) = port.filter(|port| is_name(port)) {
                    let item = Item::Port {
                        node: name.to_owned(),
                        port: port.to_owned(),
                    };
                    self.add(Span::new(end + 1, whole.end), item, false);
                }
            }
            _ => {}
        }
        true
    }

    /// The names in a template, found in the text as it is written.
    fn template(&mut self, tree: &Tree, within: Option<(&String, &String)>) {
        if tree.as_text().is_none() {
            return;
        }
        let written = self.index.source.slice(tree.span).to_owned();
        for range in template_names(&written) {
            let name = written[range.clone()].to_owned();
            let input = self.index.param(&name).is_none() && self.index.input(&name).is_some();
            let declared = input || self.index.param(&name).is_some();
            if !declared && within.is_none() && matches!(name.as_str(), "workflow" | "output") {
                continue; // what `save` knows of itself
            }
            let item = if input {
                Item::Input(name)
            } else {
                Item::Param(name)
            };
            let span = Span::new(tree.span.start + range.start, tree.span.start + range.end);
            self.index.occurrences.push(Occurrence {
                span,
                hit: Span::new(span.start - 1, span.end + 1),
                item,
                declares: false,
                within: within.map(|(node, key)| (node.clone(), key.clone())),
            });
        }
    }
}

fn section<'a>(tree: &'a Tree, name: &str) -> impl Iterator<Item = &'a (Key, Tree)> {
    get(tree, name)
        .map_or(&[][..], entries)
        .iter()
        .filter(|(key, _)| !is_carried(&key.text))
}

/// The ranges of the names in `{name}`, as a template is written; doubled braces are braces.
fn template_names(text: &str) -> Vec<std::ops::Range<usize>> {
    let bytes = text.as_bytes();
    let mut names = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' | b'}' if bytes.get(at + 1) == Some(&byte) => at += 2,
            b'{' => {
                let Some(length) = text.get(at..).and_then(|rest| rest.find('}')) else {
                    break;
                };
                if text.get(at + 1..at + length).is_some_and(is_name) {
                    names.push(at + 1..at + length);
                    at += length + 1;
                } else {
                    at += 1;
                }
            }
            _ => at += 1,
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_where_it_stands() {
        let text = "schema: retouch/v1\nparams:\n  'a': {type: string}\ninputs:\n  m: {type: model}\n  t: {type: string}\n\
                    nodes:\n  n: {op: sample, model: \"$inputs.m\", prompt: \"{{a}} {a} {t}\", x-note: $n, steps: $params.a}\n  \
                    u: {use: u.yaml, with: {x: $n.latent, y: 'z {a}'}}\n  g: {op: grid, labels: ['{a}', \"$$a\"], images: [$n, $u.p]}\n\
                    outputs:\n  o: {value: $u.p, save: '{a}-{workflow}.png'}\n";
        let index = Index::of(&Source::new("t.yaml", text), &retouch_nodes::registry());
        assert!(index.sound);
        for one in &index.occurrences {
            let written = &text[one.span.start..one.span.end];
            match &one.item {
                Item::Param(name) | Item::Input(name) | Item::Node(name) | Item::Output(name) => {
                    assert_eq!(written, name);
                }
                Item::Port { port, .. } => assert_eq!(written, port),
                Item::Op(name) | Item::Use(name) => assert_eq!(written, name),
                Item::Field { field, .. } => assert_eq!(written, field),
                Item::With { key, .. } => assert_eq!(written, key),
                Item::Key(key) => assert_eq!(written, *key),
            }
        }
        let count = |item: Item| index.all(&item).count();
        assert_eq!(count(Item::Param("a".into())), 6);
        assert_eq!(count(Item::Input("t".into())), 2);
        assert_eq!(count(Item::Input("m".into())), 2);
        assert_eq!(count(Item::Node("n".into())), 3);
        assert_eq!(count(Item::Node("u".into())), 3);
        let port = text.find("latent").unwrap();
        let at = |offset| &index.at(offset).unwrap().item;
        assert_eq!(
            at(port),
            &Item::Port {
                node: "n".into(),
                port: "latent".into()
            }
        );
        assert_eq!(at(port - 1), &Item::Node("n".into()));
        assert_eq!(at(text.find("$inputs").unwrap()), &Item::Input("m".into()));
    }
}
