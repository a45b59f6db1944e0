//! The ops that a workflow may use: an explicit list, no link-time magic, no global.

use std::any::type_name;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use schemars::generate::SchemaSettings;
use serde_json::Value as Json;

use crate::base::problem::Span;
use crate::op::erased::{self, ErasedNode, Refusal};
use crate::op::node::Node;
use crate::op::shape::{Shape, Text, unfit};
use crate::syntax::params::{self, ParamType};
use crate::syntax::yaml::Tree;
use crate::value::port::{PortSpec, Ports};

/// A parameter of an op.
#[derive(Clone, Debug)]
pub struct ParamInfo {
    /// Its name.
    pub name: String,
    /// Its documentation, from the doc comment.
    pub docs: String,
    /// Whether it must be given.
    pub required: bool,
    /// Its default.
    pub default: Option<Json>,
    /// Its JSON schema.
    pub schema: Json,
    pub(crate) shape: Shape,
}

impl ParamInfo {
    /// What it takes, in words: `a number`, `` `auto`, a text or a list ``.
    #[must_use]
    pub fn takes(&self) -> String {
        self.shape.due()
    }

    /// The words that its schema names, `auto` or `union`; where other texts will do as well, they are not all it takes.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        fn named(schema: &Json, words: &mut Vec<String>) {
            let several = schema.get("enum").and_then(Json::as_array);
            let one = schema.get("const");
            let texts = several.into_iter().flatten().chain(one);
            words.extend(texts.filter_map(Json::as_str).map(str::to_owned));
            for keyword in ["anyOf", "oneOf"] {
                let alternatives = schema.get(keyword).and_then(Json::as_array);
                for schema in alternatives.into_iter().flatten() {
                    named(schema, words);
                }
            }
        }
        let mut words = Vec::new();
        named(&self.schema, &mut words);
        words
    }

    /// Whether a value of a param of that type can stand for it.
    #[must_use]
    pub fn fits(&self, kind: ParamType) -> bool {
        self.shape.fits(kind)
    }

    /// Whether its text, or the texts of its list, are templates in which `{param}` is filled in.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.shape.holds(Text::Template)
    }

    /// Whether its text, or the texts of its list, are paths relative to the file that wrote them.
    #[must_use]
    pub fn is_path(&self) -> bool {
        self.shape.holds(Text::Path)
    }

    /// Whether it may be `true` or `false`.
    #[must_use]
    pub fn is_boolean(&self) -> bool {
        self.shape.boolean
    }

    /// Whether a value, as it would be written in a file, can be given to it: what is wrong with it, and what to do.
    /// References and templates are taken on trust, and what only the node itself can tell is not told here.
    ///
    /// # Errors
    /// In words, when it is of another type, out of the range, or none of the words.
    pub fn check(&self, value: &Json) -> Result<(), String> {
        let tree = Tree::of(value, Span::default());
        match unfit(&self.name, &tree, &self.shape) {
            None => Ok(()),
            Some(mismatch) => Err(mismatch.in_words()),
        }
    }

    /// Whether `random` may stand for it.
    #[must_use]
    pub fn is_seed(&self) -> bool {
        self.shape.seed
    }
}

/// What a key of a node is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field {
    Port(usize),
    Param(usize),
}

/// An op: its documentation, parameters and ports.
pub struct Entry {
    op: &'static str,
    version: u32,
    device: bool,
    docs: String,
    type_name: &'static str,
    params: Vec<ParamInfo>,
    inputs: &'static [PortSpec],
    outputs: &'static [PortSpec],
    fields: HashMap<String, Field>,
    make: fn(&Json) -> Result<Box<dyn ErasedNode>, Refusal>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entry").field(&self.op).finish()
    }
}

impl Entry {
    fn of<N: Node>() -> Self {
        let schema = SchemaSettings::draft2020_12()
            .with(|settings| settings.inline_subschemas = true)
            .into_generator()
            .into_root_schema_for::<N>()
            .to_value();
        let text = |value: Option<&Json>| value.and_then(Json::as_str).unwrap_or("").to_owned();
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        let params: Vec<ParamInfo> = schema
            .get("properties")
            .and_then(Json::as_object)
            .into_iter()
            .flatten()
            .map(|(name, schema)| ParamInfo {
                name: name.clone(),
                docs: text(schema.get("description")),
                required: required.contains(&name.as_str()),
                default: schema.get("default").cloned(),
                shape: Shape::of(schema),
                schema: schema.clone(),
            })
            .collect();
        let mut fields = HashMap::new();
        for (index, param) in params.iter().enumerate() {
            fields.insert(param.name.clone(), Field::Param(index));
        }
        for (index, port) in N::Inputs::specs().iter().enumerate() {
            fields.insert(port.name.to_owned(), Field::Port(index));
        }
        Self {
            op: N::OP,
            version: N::VERSION,
            device: N::DEVICE,
            docs: text(schema.get("description")),
            type_name: type_name::<N>(),
            params,
            inputs: N::Inputs::specs(),
            outputs: N::Outputs::specs(),
            fields,
            make: erased::make::<N>,
        }
    }

    /// The op's name.
    #[must_use]
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// The version that is part of every key.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether the node runs on the one compute device.
    #[must_use]
    pub fn device(&self) -> bool {
        self.device
    }

    /// The documentation, in full.
    #[must_use]
    pub fn docs(&self) -> &str {
        &self.docs
    }

    /// The first sentence of the documentation.
    #[must_use]
    pub fn summary(&self) -> &str {
        let paragraph = self.docs.split("\n\n").next().unwrap_or("");
        paragraph
            .match_indices(". ")
            .next()
            .map_or(paragraph, |(at, _)| &paragraph[..=at])
    }

    /// The parameters in the order of declaration.
    #[must_use]
    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// The input ports in the order of declaration.
    #[must_use]
    pub fn inputs(&self) -> &'static [PortSpec] {
        self.inputs
    }

    /// The output ports in the order of declaration; the first is the default one.
    #[must_use]
    pub fn outputs(&self) -> &'static [PortSpec] {
        self.outputs
    }

    pub(crate) fn field(&self, name: &str) -> Option<Field> {
        self.fields.get(name).copied()
    }

    pub(crate) fn make(&self, params: &Json) -> Result<Box<dyn ErasedNode>, Refusal> {
        (self.make)(params)
    }

    pub(crate) fn field_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.inputs
            .iter()
            .map(|port| port.name)
            .chain(self.params.iter().map(|param| param.name.as_str()))
    }
}

/// The ops that a workflow may use, in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: IndexMap<&'static str, Arc<Entry>>,
}

impl Registry {
    /// Makes an empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an op; one of the same name is replaced.
    #[must_use]
    pub fn with<N: Node>(mut self) -> Self {
        self.entries.insert(N::OP, Arc::new(Entry::of::<N>()));
        self
    }

    /// The op of that name.
    #[must_use]
    pub fn entry(&self, op: &str) -> Option<&Arc<Entry>> {
        self.entries.get(op)
    }

    /// All ops in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> + Clone {
        self.entries.values()
    }

    /// How many ops there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The type of that name, if a port of any op has it.
    #[must_use]
    pub fn port_type(&self, name: &str) -> Option<&'static str> {
        self.port_types().find(|known| *known == name)
    }

    /// The types of all ports, in the order of the ops; a type that several ports have comes as often.
    pub fn port_types(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.entries
            .values()
            .flat_map(|entry| entry.inputs.iter().chain(entry.outputs))
            .flat_map(|port| port.types.iter().copied())
    }

    /// What is wrong with the ops themselves, for tests of the crate that adds them: a parameter named like a port or like
    /// a key of the language, missing documentation, no output.
    #[must_use]
    pub fn lint(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for entry in self.entries.values() {
            let op = entry.op;
            if entry.docs.is_empty() {
                faults.push(format!("{op}: `{}` has no doc comment", entry.type_name));
            }
            if entry.outputs.is_empty() {
                faults.push(format!("{op}: no output port"));
            }
            for port in entry.inputs.iter().chain(entry.outputs) {
                if port.docs.is_empty() {
                    faults.push(format!("{op}: the port `{}` has no doc comment", port.name));
                }
            }
            for param in &entry.params {
                if param.docs.is_empty() {
                    faults.push(format!(
                        "{op}: the parameter `{}` has no doc comment",
                        param.name
                    ));
                }
                if entry.inputs.iter().any(|port| port.name == param.name) {
                    faults.push(format!("{op}: `{}` is a port and a parameter", param.name));
                }
            }
            for name in entry.field_names() {
                if matches!(name, "op" | "use") || params::is_carried(name) {
                    faults.push(format!("{op}: `{name}` is a key of the language"));
                }
            }
        }
        faults
    }
}
