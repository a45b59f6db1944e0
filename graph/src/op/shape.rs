//! What a parameter takes, read off its JSON schema once for each op.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use crate::base::problem::Code;
use crate::base::suggest;
use crate::syntax::mismatch::{Accepts, Expected, Mismatch, nearest_inside};
use crate::syntax::params::ParamType;
use crate::syntax::yaml::{Node as YamlNode, Tree};
use crate::value::fields::Steps;

/// What a text means to the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Text {
    /// As it is.
    #[default]
    Plain,
    /// A path, resolved from the file that wrote it, and never part of a key.
    Path,
    /// A template, filled in from params.
    Template,
}

/// What a value may be, all alternatives of a schema taken together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) null: bool,
    pub(crate) boolean: bool,
    pub(crate) integer: bool,
    pub(crate) number: bool,
    pub(crate) string: bool,
    pub(crate) array: bool,
    pub(crate) object: bool,
    pub(crate) text: Text,
    /// `random` may stand for it.
    pub(crate) seed: bool,
    /// A text of digits with a `%`.
    pub(crate) steps: bool,
    /// The words that it may be; empty: any text.
    pub(crate) words: Vec<String>,
    pub(crate) minimum: Option<f64>,
    pub(crate) maximum: Option<f64>,
    /// The bounds themselves are excluded.
    pub(crate) above: Option<f64>,
    pub(crate) below: Option<f64>,
    pub(crate) items: Option<Box<Shape>>,
    pub(crate) prefix: Vec<Shape>,
    pub(crate) properties: IndexMap<String, Shape>,
    pub(crate) additional: Option<Box<Shape>>,
    /// Whether a path can be anywhere in it.
    pub(crate) has_path: bool,
    /// Whether it only says what files must hold, which the keys have from the files themselves.
    pub(crate) keyless: bool,
}

impl Shape {
    fn anything() -> Self {
        Self {
            null: true,
            boolean: true,
            integer: true,
            number: true,
            string: true,
            array: true,
            object: true,
            ..Self::default()
        }
    }

    pub(crate) fn of(schema: &Json) -> Self {
        let Some(object) = schema.as_object() else {
            return Self::anything(); // `true`
        };
        // With subschemas inlined, a `$ref` is a type that contains itself: not looked into.
        if object.contains_key("$ref") {
            return Self::anything();
        }
        let mut shape = Self::default();
        let mut any_text = false;
        shape.own(object, &mut any_text);
        let mut alternatives = false;
        for keyword in ["anyOf", "oneOf", "allOf"] {
            for schema in object
                .get(keyword)
                .and_then(Json::as_array)
                .into_iter()
                .flatten()
            {
                alternatives = true;
                shape.join(Self::of(schema), &mut any_text);
            }
        }
        let typed = ["type", "enum", "const"]
            .iter()
            .any(|keyword| object.contains_key(*keyword));
        if !typed && !alternatives {
            return Self::anything();
        }
        if any_text {
            shape.words.clear();
        }
        shape.has_path = (shape.string && shape.text == Text::Path)
            || shape.items.as_ref().is_some_and(|items| items.has_path)
            || shape.prefix.iter().any(|shape| shape.has_path)
            || shape.properties.values().any(|shape| shape.has_path)
            || shape
                .additional
                .as_ref()
                .is_some_and(|shape| shape.has_path);
        shape
    }

    fn own(&mut self, object: &Map<String, Json>, any_text: &mut bool) {
        let types: Vec<&str> = match object.get("type") {
            Some(Json::String(one)) => vec![one],
            Some(Json::Array(several)) => several.iter().filter_map(Json::as_str).collect(),
            _ => Vec::new(),
        };
        let words: Option<Vec<&Json>> = match (object.get("enum"), object.get("const")) {
            (Some(Json::Array(several)), _) => Some(several.iter().collect()),
            (_, Some(one)) => Some(vec![one]),
            _ => None,
        };
        for value in words.iter().flatten() {
            match value {
                Json::String(word) => {
                    self.string = true;
                    self.words.push(word.clone());
                }
                Json::Null => self.null = true,
                Json::Bool(_) => self.boolean = true,
                Json::Number(number) if number.is_f64() => self.number = true,
                Json::Number(_) => self.integer = true,
                _ => {}
            }
        }
        let format = object.get("format").and_then(Json::as_str);
        for kind in types {
            match kind {
                "null" => self.null = true,
                "boolean" => self.boolean = true,
                "integer" => self.integer = true,
                "number" => self.number = true,
                "string" => {
                    self.string = true;
                    if words.is_none() {
                        *any_text = true;
                    }
                    match format {
                        Some("path") => self.text = Text::Path,
                        Some("template") => self.text = Text::Template,
                        Some("steps") => self.steps = true,
                        _ => {}
                    }
                }
                "array" => {
                    self.array = true;
                    self.items = object.get("items").map(|items| Box::new(Self::of(items)));
                    self.prefix = object
                        .get("prefixItems")
                        .and_then(Json::as_array)
                        .into_iter()
                        .flatten()
                        .map(Self::of)
                        .collect();
                }
                "object" => {
                    self.object = true;
                    self.properties = object
                        .get("properties")
                        .and_then(Json::as_object)
                        .into_iter()
                        .flatten()
                        .map(|(name, schema)| (name.clone(), Self::of(schema)))
                        .collect();
                    self.additional = object
                        .get("additionalProperties")
                        .filter(|schema| schema.is_object())
                        .map(|schema| Box::new(Self::of(schema)));
                }
                _ => {}
            }
        }
        self.seed |= format == Some("seed");
        self.keyless |= format == Some("sha256");
        let bound = |keyword: &str| object.get(keyword).and_then(Json::as_f64);
        self.minimum = bound("minimum");
        self.maximum = bound("maximum");
        self.above = bound("exclusiveMinimum");
        self.below = bound("exclusiveMaximum");
    }

    fn join(&mut self, other: Self, any_text: &mut bool) {
        let numeric = |shape: &Self| shape.integer || shape.number;
        if numeric(&other) {
            if numeric(self) {
                // Of two ranges the wider one; serde tells the rest.
                let wider = |a: Option<f64>, b: Option<f64>, pick: fn(f64, f64) -> f64| {
                    a.zip(b).map(|(a, b)| pick(a, b))
                };
                self.minimum = wider(self.minimum, other.minimum, f64::min);
                self.maximum = wider(self.maximum, other.maximum, f64::max);
                self.above = wider(self.above, other.above, f64::min);
                self.below = wider(self.below, other.below, f64::max);
            } else {
                self.minimum = other.minimum;
                self.maximum = other.maximum;
                self.above = other.above;
                self.below = other.below;
            }
        }
        if other.string && other.words.is_empty() {
            *any_text = true;
        }
        self.null |= other.null;
        self.boolean |= other.boolean;
        self.integer |= other.integer;
        self.number |= other.number;
        self.string |= other.string;
        self.array |= other.array;
        self.object |= other.object;
        self.seed |= other.seed;
        self.keyless |= other.keyless;
        self.steps |= other.steps;
        if other.text != Text::Plain {
            self.text = other.text;
        }
        self.words.extend(other.words);
        if self.items.is_none() {
            self.items = other.items;
        }
        if self.prefix.is_empty() {
            self.prefix = other.prefix;
        }
        for (name, shape) in other.properties {
            self.properties.entry(name).or_insert(shape);
        }
        if self.additional.is_none() {
            self.additional = other.additional;
        }
    }

    /// The shape of an item of a list.
    pub(crate) fn item(&self, index: usize) -> Option<&Self> {
        self.prefix.get(index).or(self.items.as_deref())
    }

    /// The shape of a property of a map.
    pub(crate) fn property(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.additional.as_deref())
    }

    /// Whether a text of that kind can stand here or in a list here.
    pub(crate) fn holds(&self, text: Text) -> bool {
        (self.string && self.text == text)
            || self.items.as_ref().is_some_and(|items| items.holds(text))
            || self.prefix.iter().any(|shape| shape.holds(text))
    }

    /// Whether any value of a param of that type can fit.
    pub(crate) fn fits(&self, kind: ParamType) -> bool {
        let number = self.number || self.integer;
        match kind {
            ParamType::String => self.string,
            ParamType::Choice => self.string,
            ParamType::Path => self.string && self.text == Text::Path,
            ParamType::Int | ParamType::Seed => number,
            ParamType::Float => self.number,
            ParamType::Bool => self.boolean,
            ParamType::Steps => number && self.string,
            ParamType::Sites => self.string && self.array,
            ParamType::Threshold => self.number && self.string,
        }
    }

    /// What is due, in words: "an integer", "one of `a` and `b`".
    pub(crate) fn due(&self) -> String {
        let mut due: Vec<String> = Vec::new();
        if self.number {
            due.push("a number".to_owned());
        } else if self.integer {
            due.push("an integer".to_owned());
        }
        if self.boolean {
            due.push("`true` or `false`".to_owned());
        }
        if self.string && self.steps {
            due.push("a share such as `20%`".to_owned());
        } else if self.string && !self.words.is_empty() {
            due.extend(self.words.iter().map(|word| format!("`{word}`")));
        } else if self.string {
            due.push(
                match self.text {
                    Text::Path => "a path",
                    _ => "a text",
                }
                .to_owned(),
            );
        }
        if self.array {
            due.push("a list".to_owned());
        }
        if self.object {
            due.push("a map".to_owned());
        }
        match due.len() {
            0 => "nothing".to_owned(),
            1 => due.remove(0),
            _ => {
                let last = due.pop().unwrap_or_default();
                format!("{} or {last}", due.join(", "))
            }
        }
    }

    /// What is due, for a value that is something else.
    pub(crate) fn expected(&self) -> Expected {
        let accepts = Accepts {
            boolean: self.boolean,
            integer: self.integer && !self.number,
            number: self.number,
            text: self.string
                && !self.steps
                && self.words.is_empty()
                && matches!(self.text, Text::Plain | Text::Template),
            list: self.array,
        };
        let expected = Expected::new(self.due(), accepts);
        if self.boolean {
            expected.example("true")
        } else if self.string && self.steps {
            expected.example("20%")
        } else if self.string
            && let Some(word) = self.words.first()
        {
            expected.example(word.clone())
        } else {
            expected
        }
    }

    /// Replaces every path in a value by null: where a file lies is not part of a key.
    pub(crate) fn without_paths(&self, value: &mut Json) {
        if !self.has_path {
            return;
        }
        match value {
            Json::String(_) if self.text == Text::Path => *value = Json::Null,
            Json::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    if let Some(shape) = self.item(index) {
                        shape.without_paths(item);
                    }
                }
            }
            Json::Object(entries) => {
                for (name, value) in entries {
                    if let Some(shape) = self.property(name) {
                        shape.without_paths(value);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Why a value does not have the shape that a parameter takes.
pub(crate) fn unfit(name: &str, tree: &Tree, shape: &Shape) -> Option<Mismatch> {
    let due = || Some(shape.expected().mismatch(name, tree));
    let within = |name: &str, tree: &Tree, shape: Option<&Shape>| {
        shape.and_then(|shape| unfit(name, tree, shape))
    };
    match &tree.node {
        YamlNode::Null if shape.null => None,
        YamlNode::Bool(_) if shape.boolean => None,
        YamlNode::Int(value) if shape.integer || shape.number => {
            range(name, &Json::from(*value), shape)
        }
        YamlNode::Float(value) if shape.number => range(name, &Json::from(*value), shape),
        YamlNode::Seq(items) if shape.array => {
            (items.iter().enumerate()).find_map(|(at, item)| within(name, item, shape.item(at)))
        }
        YamlNode::Map(entries) if shape.object => (entries.iter())
            .find_map(|(key, value)| within(&key.text, value, shape.property(&key.text))),
        YamlNode::String { text, .. } if text.starts_with('$') && !text.starts_with("$$") => None,
        YamlNode::String { text, .. } if shape.seed && text == "random" => None,
        YamlNode::String { text, .. } if shape.string => match shape.text {
            Text::Template => None,
            Text::Path if text.is_empty() => due(),
            Text::Path => None,
            Text::Plain => words(name, text, tree, shape),
        },
        _ => due(),
    }
}

pub(crate) fn words(name: &str, text: &str, tree: &Tree, shape: &Shape) -> Option<Mismatch> {
    if shape.steps && shape.words.is_empty() {
        return match Steps::parse(text) {
            Ok(_) if text.ends_with('%') => None,
            _ => Some(Expected::steps().mismatch(name, tree)),
        };
    }
    if shape.words.is_empty() || shape.words.iter().any(|word| word == text) {
        return None;
    }
    // A quoted number may be meant as one.
    let mismatch = shape.expected().mismatch(name, tree);
    if mismatch.code != Code::ValueType {
        return Some(mismatch);
    }
    let known = shape.words.iter().map(String::as_str);
    let help = suggest::nearest(text, known).map_or_else(
        || format!("it takes {}", shape.due()),
        |near| {
            let karras = name == "scheduler" && text.to_lowercase().contains("karras");
            let karras = if karras { " with `karras: true`" } else { "" };
            format!("did you mean `{near}`{karras}?")
        },
    );
    let message = format!("`{name}` has no value `{}`", text.escape_debug());
    Some(Mismatch::new(Code::OutOfRange, message).help(help))
}

pub(crate) fn range(name: &str, value: &Json, shape: &Shape) -> Option<Mismatch> {
    let number = value.as_f64()?;
    let inside = shape.minimum.is_none_or(|least| number >= least)
        && shape.maximum.is_none_or(|most| number <= most)
        && shape.above.is_none_or(|bound| number > bound)
        && shape.below.is_none_or(|bound| number < bound);
    if inside {
        return None;
    }
    let low = shape
        .minimum
        .map(|least| format!("{least} or greater"))
        .or_else(|| shape.above.map(|bound| format!("greater than {bound}")));
    let high = shape
        .maximum
        .map(|most| format!("{most} or smaller"))
        .or_else(|| shape.below.map(|bound| format!("smaller than {bound}")));
    let range = match (shape.minimum, shape.maximum, low, high) {
        (Some(least), Some(most), ..) => format!("from {least} to {most}"),
        (_, _, Some(low), Some(high)) => format!("{low} and {high}"),
        (_, _, Some(one), None) | (_, _, None, Some(one)) => one,
        _ => return None,
    };
    Some(
        Mismatch::new(
            Code::OutOfRange,
            format!("`{name}` is {value}, and it must be {range}"),
        )
        .help(nearest_inside(number, shape.minimum, shape.maximum)),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::problem::Span;

    #[test]
    fn the_words_of_a_choice_do_not_make_it_a_number() {
        let quoted = |text: &str| Tree {
            node: YamlNode::String {
                text: text.to_owned(),
                quoted: true,
            },
            span: Span::default(),
        };
        let code = |schema: Json, text: &str| {
            let shape = Shape::of(&schema);
            unfit("a", &quoted(text), &shape).map(|mismatch| mismatch.code)
        };
        let words = json!({"enum": ["number", "integer", "true"]});
        assert_eq!(code(words.clone(), "7"), Some(Code::OutOfRange));
        assert_eq!(code(words, "yes"), Some(Code::OutOfRange));
        let number = json!({"anyOf": [{"enum": ["full"]}, {"type": "number"}]});
        assert_eq!(code(number, "7"), Some(Code::QuotedNumber));
    }
}
