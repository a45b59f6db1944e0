//! The ops that a workflow may use: an explicit list, no link-time magic, no global.

use std::any::Any;
use std::any::type_name;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use schemars::generate::SchemaSettings;
use serde_json::{Value as Json, json};

use crate::base::error::Fault;
use crate::base::error::NodeError;
use crate::base::problem::Span;
use crate::files::Files;
use crate::op::chain::{Chained, Upstream};
use crate::op::node::{Context, Node, ReadFile};
use crate::op::shape::{Shape, Text, unfit};
use crate::syntax::params::{self, ParamType};
use crate::syntax::yaml::Tree;
use crate::value::payload::Value;
use crate::value::port::KnownPorts;
use crate::value::port::{Arity, PortSpec, PortValues, Ports, Types};

/// What a node's check says of its outputs, and its warnings; or its faults.
pub(crate) type Findings = Result<(KnownPorts, Vec<Fault>), Vec<Fault>>;

/// The engine's side of a node: without its type.
pub(crate) trait ErasedNode: Send + Sync {
    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>>;
    fn check(&self, inputs: KnownPorts, files: &dyn Files) -> Findings;
    fn run(
        &self,
        inputs: PortValues,
        context: &Context<'_>,
    ) -> Result<BTreeMap<&'static str, Value>, NodeError>;
    fn params(&self) -> Result<Json, String>;
    fn chain(&self, upstream: &Upstream<'_>) -> Chained;
    fn as_any(&self) -> &dyn Any;
}

impl<N: Node> ErasedNode for N {
    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        Node::reads(self, files)
    }

    fn check(&self, inputs: KnownPorts, files: &dyn Files) -> Findings {
        Node::check(self, &Types::from_known(inputs), files).map(Types::into_parts)
    }

    fn run(
        &self,
        inputs: PortValues,
        context: &Context<'_>,
    ) -> Result<BTreeMap<&'static str, Value>, NodeError> {
        let inputs = N::Inputs::from_values(inputs)?;
        Node::run(self, inputs, context).map(Ports::into_values)
    }

    fn params(&self) -> Result<Json, String> {
        serde_json::to_value(self).map_err(|error| error.to_string())
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        Node::chain(self, upstream)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A parameter that serde refuses: which one, and why.
pub(crate) struct Refusal {
    pub(crate) path: Vec<Step>,
    pub(crate) message: String,
}

/// A step of the way to a value inside a parameter.
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

fn make<N: Node>(params: &Json) -> Result<Box<dyn ErasedNode>, Refusal> {
    match serde_path_to_error::deserialize::<_, N>(params) {
        Ok(node) => Ok(Box::new(node)),
        Err(error) => {
            use serde_path_to_error::Segment;
            let path = error
                .path()
                .iter()
                .filter_map(|segment| match segment {
                    Segment::Seq { index } => Some(Step::Index(*index)),
                    Segment::Map { key } => Some(Step::Key(key.clone())),
                    Segment::Enum { .. } | Segment::Unknown => None,
                })
                .collect();
            Err(Refusal {
                path,
                message: error.into_inner().to_string(),
            })
        }
    }
}

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
            make: make::<N>,
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

    /// What is wrong with the ops themselves, for a test of whoever adds them: a parameter named like a port or like
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

    /// The JSON Schema of the whole language with these ops, for editors.
    #[must_use]
    pub fn json_schema(&self) -> Json {
        let reference = json!({
            "type": "string",
            "pattern": r"^\$[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?$",
            "description": "A reference: `$node`, `$node.port`, `$params.name`, `$inputs.name`."
        });
        let mut ops = Vec::new();
        for entry in self.entries.values() {
            let mut properties = serde_json::Map::new();
            let mut required = vec![Json::from("op")];
            for port in entry.inputs {
                let docs = format!("{}\n\nTakes {}.", port.docs, port.types.join(" or "));
                let schema = match port.arity {
                    Arity::Many => json!({
                        "description": docs,
                        "anyOf": [
                            {"$ref": "#/$defs/reference"},
                            {"type": "array", "items": {"$ref": "#/$defs/reference"}}
                        ]
                    }),
                    _ => json!({"description": docs, "allOf": [{"$ref": "#/$defs/reference"}]}),
                };
                if port.arity == Arity::One {
                    required.push(Json::from(port.name));
                }
                properties.insert(port.name.to_owned(), schema);
            }
            for param in &entry.params {
                let mut schema = param.schema.clone();
                let mut whole = json!({
                    "description": param.docs,
                    "anyOf": [{"$ref": "#/$defs/reference"}]
                });
                if let Some(object) = schema.as_object_mut() {
                    object.remove("description");
                    if let Some(default) = object.remove("default") {
                        whole["default"] = default;
                    }
                }
                // A value first, so that an editor offers its choices before references.
                if let Some(alternatives) = whole["anyOf"].as_array_mut() {
                    alternatives.insert(0, schema);
                }
                if param.required {
                    required.push(Json::from(param.name.as_str()));
                }
                properties.insert(param.name.clone(), whole);
            }
            properties.insert("op".to_owned(), json!({"const": entry.op}));
            properties.insert("ui".to_owned(), json!(true));
            ops.push(json!({
                "if": {"properties": {"op": {"const": entry.op}}, "required": ["op"]},
                "then": {
                    "description": entry.docs,
                    "properties": properties,
                    "patternProperties": {"^x-": true},
                    "additionalProperties": false,
                    "required": required
                }
            }));
        }
        let op_names: Vec<Json> = self
            .entries
            .values()
            .map(|entry| json!({"const": entry.op, "description": entry.summary()}))
            .collect();
        let param_types: Vec<&str> = ParamType::ALL.iter().map(|kind| kind.name()).collect();
        let mut port_types: Vec<&str> = Vec::new();
        for name in self.port_types() {
            if !port_types.contains(&name) {
                port_types.push(name);
            }
        }
        let input_types: Vec<&str> = param_types.iter().chain(&port_types).copied().collect();
        let declaration = |types: &[&str]| {
            json!({
                "type": "object",
                "properties": {
                    "type": {"enum": types},
                    "default": {"description": "The value when none is given."},
                    "min": {"type": "number"},
                    "max": {"type": "number"},
                    "values": {"type": "array", "items": {"type": "string"}, "description": "The values of a choice."},
                    "help": {"type": "string"},
                    "ui": true
                },
                "patternProperties": {"^x-": true},
                "additionalProperties": false,
                "required": ["type"]
            })
        };
        let param = declaration(&param_types);
        let mut input = declaration(&input_types);
        input["properties"]["optional"] = json!({"type": "boolean"});
        let named = |schema: Json| {
            json!({
                "type": ["object", "null"],
                "propertyNames": {"pattern": "^[A-Za-z0-9_-]+$"},
                "properties": {"ui": true},
                "patternProperties": {"^x-": true},
                "additionalProperties": schema
            })
        };
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Retouch workflow",
            "type": "object",
            "properties": {
                "schema": {"const": crate::syntax::workflow::SCHEMA},
                "name": {"type": "string", "description": "The workflow's name; the file's name unless given."},
                "description": {"type": "string"},
                "params": named(param),
                "inputs": named(input),
                "nodes": named(json!({"$ref": "#/$defs/node"})),
                "outputs": named(json!({
                    "type": "object",
                    "properties": {
                        "value": {"$ref": "#/$defs/reference"},
                        "save": {"type": "string", "description": "A path below the output folder, a template: `{workflow}/{seed}.png`."},
                        "help": {"type": "string"},
                        "description": {"type": "string"},
                        "ui": true
                    },
                    "patternProperties": {"^x-": true},
                    "additionalProperties": false,
                    "required": ["value"]
                })),
                "sweep": sweep_schema(),
                "ui": true
            },
            "patternProperties": {"^x-": true},
            "additionalProperties": false,
            "required": ["schema"],
            "$defs": {
                "reference": reference,
                "node": {
                    "type": "object",
                    "properties": {
                        "op": {"oneOf": op_names, "description": "What the node does."},
                        "use": {"type": "string", "description": "Another workflow, by a path relative to this file."},
                        "with": {"type": ["object", "null"], "description": "What the other workflow is given."}
                    },
                    "oneOf": [{"required": ["op"]}, {
                        "required": ["use"],
                        "properties": {"use": true, "with": true, "ui": true},
                        "patternProperties": {"^x-": true},
                        "additionalProperties": false
                    }],
                    "allOf": ops
                }
            }
        })
    }
}

/// The JSON Schema of `sweep:`.
fn sweep_schema() -> Json {
    let names = json!({
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    });
    let values = json!({
        "description": "A list, a range without its end (`1..5`), `{from: 3, to: 5, step: 0.5}` with both ends, or the lines of a text: `{lines: places.txt}`.",
        "anyOf": [
            {"type": "array", "minItems": 1},
            {"type": ["string", "number", "boolean"]},
            {
                "type": "object",
                "properties": {
                    "from": {"type": ["number", "string"]},
                    "to": {"type": ["number", "string"]},
                    "step": {"type": ["number", "string"]}
                },
                "required": ["from", "to", "step"],
                "additionalProperties": false
            },
            {
                "type": "object",
                "properties": {"lines": {"type": "string"}},
                "required": ["lines"],
                "additionalProperties": false
            }
        ]
    });
    let cells = |description: &str, least: usize| {
        json!({
            "type": "array",
            "description": description,
            "items": {"type": "object", "minProperties": least}
        })
    };
    json!({
        "type": "object",
        "description": "The runs that `retouch sweep` makes: one for each combination of values.",
        "properties": {
            "workflow": {"type": "string", "description": "The workflow that is swept, by a path relative to this file, which then has no nodes of its own."},
            "matrix": {"type": ["object", "null"], "description": "The values of each param; every combination of them is a cell.", "additionalProperties": values},
            "include": cells("Cells beside those of the matrix.", 0),
            "exclude": cells("Cells of the matrix that are left out: those with all of these values.", 1),
            "grid": {
                "type": ["object", "null"],
                "description": "A labelled contact sheet; further keys go to the op `grid`: cell, filter, gap, background.",
                "properties": {
                    "rows": names,
                    "columns": names,
                    "output": {"type": "string", "description": "The output whose pictures are shown; the first that is a picture unless given."},
                    "save": {"type": "string", "description": "A path below the output folder."}
                }
            },
            "table": {"type": "string", "description": "Where the table of results is saved below the output folder: .csv or .json."},
            "ui": true
        },
        "patternProperties": {"^x-": true},
        "additionalProperties": false
    })
}
