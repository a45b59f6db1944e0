//! The JSON Schema of the language, for editors.

use serde_json::{Value as Json, json};

use crate::op::registry::{Entry, Registry};
use crate::syntax::params::ParamType;
use crate::syntax::workflow;
use crate::value::port::Arity;

impl Registry {
    /// The JSON Schema of the whole language with these ops, for editors.
    #[must_use]
    pub fn json_schema(&self) -> Json {
        let reference = json!({
            "type": "string",
            "pattern": r"^\$[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?$",
            "description": "A reference: `$node`, `$node.port`, `$params.name`, `$inputs.name`."
        });
        let ops: Vec<Json> = self.iter().map(|entry| op_schema(entry)).collect();
        let op_names: Vec<Json> = self
            .iter()
            .map(|entry| json!({"const": entry.op(), "description": entry.summary()}))
            .collect();
        let param_types: Vec<&str> = ParamType::ALL.iter().map(|kind| kind.name()).collect();
        let mut port_types: Vec<&str> = Vec::new();
        for name in self.port_types() {
            if !port_types.contains(&name) {
                port_types.push(name);
            }
        }
        let input_types: Vec<&str> = param_types.iter().chain(&port_types).copied().collect();
        let param = declaration(&param_types);
        let mut input = declaration(&input_types);
        input["properties"]["optional"] = json!({"type": "boolean"});
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Retouch workflow",
            "type": "object",
            "properties": {
                "schema": {"const": workflow::SCHEMA},
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

/// The schema of a node of that op: its ports and parameters.
fn op_schema(entry: &Entry) -> Json {
    let mut properties = serde_json::Map::new();
    let mut required = vec![Json::from("op")];
    for port in entry.inputs() {
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
    for param in entry.params() {
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
    properties.insert("op".to_owned(), json!({"const": entry.op()}));
    properties.insert("ui".to_owned(), json!(true));
    json!({
        "if": {"properties": {"op": {"const": entry.op()}}, "required": ["op"]},
        "then": {
            "description": entry.docs(),
            "properties": properties,
            "patternProperties": {"^x-": true},
            "additionalProperties": false,
            "required": required
        }
    })
}

/// The schema of the declaration of a param or an input of one of these types.
fn declaration(types: &[&str]) -> Json {
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
}

/// The schema of a map whose values have this one.
fn named(schema: Json) -> Json {
    json!({
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[A-Za-z0-9_-]+$"},
        "properties": {"ui": true},
        "patternProperties": {"^x-": true},
        "additionalProperties": schema
    })
}

/// The JSON Schema of `sweep:`.
fn sweep_schema() -> Json {
    let names = json!({
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    });
    let values = json!({
        "description": "A list, a range without its end (`1..5`), `{from: 3, to: 5, step: 0.5}` with both ends, or the lines of a text: `{lines: places.txt}`, whole or the part of each before or after a mark.",
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
                "properties": {
                    "lines": {"type": "string"},
                    "before": {"type": "string", "minLength": 1, "description": "The part of each line before this mark, `{}` in lists of prompts."},
                    "after": {"type": "string", "minLength": 1, "description": "The part of each line after this mark."}
                },
                "not": {"required": ["before", "after"]},
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
            "matrix": {
                "description": "The values of each param; every combination of them is a cell. The cells of several such maps in a list follow one another.",
                "anyOf": [
                    {"type": ["object", "null"], "additionalProperties": values},
                    {"type": "array", "minItems": 1, "items": {"type": ["object", "null"], "additionalProperties": values}}
                ]
            },
            "zip": {
                "description": "Params of the matrix whose values go together: the first of one with the first of the other.",
                "type": "array",
                "items": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
            },
            "include": cells("Cells beside those of the matrix.", 0),
            "exclude": cells("Cells of the matrix that are left out: those with all of these values.", 1),
            "grid": {
                "type": ["object", "null"],
                "description": "A labelled contact sheet; further keys go to the op `grid`: cell, filter, gap, background, scores, order.",
                "properties": {
                    "rows": names,
                    "columns": names,
                    "output": {"type": "string", "description": "The output whose pictures are shown; the first that is a picture unless given."},
                    "table": {"type": "string", "description": "The output with the scores of those pictures, for `scores` and `order`; the only table unless given."},
                    "save": {"type": "string", "description": "A path below the output folder."}
                }
            },
            "report": {
                "type": "object",
                "description": "A report on what all cells measured; further keys go to the op `report`: title, columns, baseline, claims, worst, pictures.",
                "properties": {
                    "tables": names,
                    "images": names,
                    "save": names
                },
                "required": ["tables", "save"]
            },
            "table": {"type": "string", "description": "Where the table of results is saved below the output folder: .csv or .json."},
            "ui": true
        },
        "patternProperties": {"^x-": true},
        "additionalProperties": false
    })
}
