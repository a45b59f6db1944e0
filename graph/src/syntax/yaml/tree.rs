//! What a YAML text holds, with the place of each part.

use serde_json::Value as Json;

use crate::base::problem::Span;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The value.
    pub node: Node,
    /// Where it is written; for an alias, where the alias is.
    pub span: Span,
}

/// A key of a map and its place.
#[derive(Clone, Debug)]
pub struct MapKey {
    /// The text of the key.
    pub text: String,
    /// Where it is written.
    pub span: Span,
}

/// A YAML value.
#[derive(Clone, Debug)]
pub enum Node {
    /// Nothing, `null` or `~`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer of at most 2^53 - 1.
    Int(i64),
    /// A number with a point or an exponent; finite.
    Float(f64),
    /// A text.
    String {
        /// The text, escapes resolved.
        text: String,
        /// Whether it was written with quotes or as a block (`|`, `>`).
        quoted: bool,
    },
    /// A list.
    Seq(Vec<Tree>),
    /// A map in the order of the file, without duplicates.
    Map(Vec<(MapKey, Tree)>),
}

impl Tree {
    /// The text, when the value is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match &self.node {
            Node::String { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The value as JSON; of keys that are there twice (a fault that is reported) the last.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match &self.node {
            Node::Null => Json::Null,
            Node::Bool(value) => Json::from(*value),
            Node::Int(value) => Json::from(*value),
            Node::Float(value) => Json::from(*value),
            Node::String { text, .. } => Json::from(text.as_str()),
            Node::Seq(items) => items.iter().map(Self::to_json).collect(),
            Node::Map(entries) => Json::Object(
                (entries.iter())
                    .map(|(key, value)| (key.text.clone(), value.to_json()))
                    .collect(),
            ),
        }
    }

    /// A JSON value as a tree whose parts are all at one place.
    #[must_use]
    pub fn of(value: &Json, span: Span) -> Self {
        let node = match value {
            Json::Null => Node::Null,
            Json::Bool(value) => Node::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(value) => Node::Int(value),
                None => Node::Float(number.as_f64().unwrap_or(0.0)),
            },
            Json::String(text) => Node::String {
                text: text.clone(),
                quoted: false,
            },
            Json::Array(items) => {
                Node::Seq(items.iter().map(|item| Self::of(item, span)).collect())
            }
            Json::Object(entries) => Node::Map(
                (entries.iter())
                    .map(|(key, value)| {
                        let key = MapKey {
                            text: key.clone(),
                            span,
                        };
                        (key, Self::of(value, span))
                    })
                    .collect(),
            ),
        };
        Self { node, span }
    }

    /// Whether both are the same value, whatever their places and quotes.
    #[must_use]
    pub fn same_value(&self, other: &Self) -> bool {
        match (&self.node, &other.node) {
            (Node::Null, Node::Null) => true,
            (Node::Bool(a), Node::Bool(b)) => a == b,
            (Node::Int(a), Node::Int(b)) => a == b,
            (Node::Float(a), Node::Float(b)) => a.to_bits() == b.to_bits(),
            (Node::String { text: a, .. }, Node::String { text: b, .. }) => a == b,
            (Node::Seq(a), Node::Seq(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same_value(b))
            }
            (Node::Map(a), Node::Map(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .zip(b)
                        .all(|(a, b)| a.0.text == b.0.text && a.1.same_value(&b.1))
            }
            _ => false,
        }
    }

    /// What the value is, in words: "the text `abc`", "a list".
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.node {
            Node::Null => "nothing".to_owned(),
            Node::Bool(value) => format!("`{value}`"),
            Node::Int(value) => format!("the number {value}"),
            Node::Float(value) => format!("the number {value}"),
            Node::String { text, .. } if text.chars().count() > 40 => {
                let start: String = text.chars().take(30).collect();
                format!("the text `{}…`", start.escape_debug())
            }
            Node::String { text, .. } => format!("the text `{}`", text.escape_debug()),
            Node::Seq(_) => "a list".to_owned(),
            Node::Map(_) => "a map".to_owned(),
        }
    }

    /// Whether it is what YAML makes of a template without quotes: `{place}` is a map of one key and no value.
    #[must_use]
    pub fn looks_like_template(&self) -> bool {
        match &self.node {
            Node::Map(entries) => matches!(
                entries.as_slice(),
                [(key, Tree { node: Node::Null, span })]
                    if span.start == span.end && crate::syntax::template::is_name(&key.text)
            ),
            _ => false,
        }
    }
}
