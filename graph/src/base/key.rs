//! Cache keys: a node's outputs are identified by everything that they depend on, and nothing else.
//!
//! # Format
//! A key is the BLAKE3 digest (32 bytes) of a sequence of fields. A field is
//!
//! ```text
//! length of name: u32, little endian | name: UTF-8 | length of value: u64, little endian | value
//! ```
//!
//! The fields of a node's key are, in this order:
//!
//! | name | value |
//! | --- | --- |
//! | `format` | `retouch/node/1` |
//! | `op` | the op's name |
//! | `version` | the op's version, u32 little endian |
//! | `params` | canonical JSON: no spaces, object keys sorted by bytes, defaults filled in, paths null |
//! | `file` | for each file read: role, NUL, digest of the content (32 bytes), sorted by role, then digest |
//! | `port` | for each input port in the order of declaration, those added later ([`Added`](crate::Added), [`AddedList`](crate::AddedList)) only if something is linked: its name; then its links in order, each as |
//! | `link` | key of the node that makes the value (32 bytes), then the name of its output port |
//! | `numerics` | what numbers depend on: device class, data type, kernel set |
//!
//! Names of nodes, the order of nodes, comments, formatting and the places of files are not in it. A change of this
//! format changes the text of `format`.

use std::fmt;
use std::fmt::Write as _;

use serde_json::Value as Json;

use crate::base::digest::{Digest, parse_hex};

/// A cache key: it identifies a node's outputs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// The first eight hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }

    /// The key of 64 hexadecimal digits, in lower case as it is written.
    #[must_use]
    pub fn parse(digits: &str) -> Option<Self> {
        let key = Self(parse_hex(digits)?);
        (key.to_string() == digits).then_some(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.short())
    }
}

impl serde::Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl schemars::JsonSchema for Key {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Key".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A key: 64 hexadecimal digits.",
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
        })
    }
}

/// Builds a key from fields.
#[derive(Clone)]
pub struct KeyHasher(blake3::Hasher);

impl KeyHasher {
    /// Begins a key of the given format.
    #[must_use]
    pub fn new(format: &str) -> Self {
        let mut hasher = Self(blake3::Hasher::new());
        hasher.field("format", format.as_bytes());
        hasher
    }

    /// Adds a field.
    pub fn field(&mut self, name: &str, value: &[u8]) {
        // A name is one of the few in this module, so its length fits.
        self.0
            .update(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.update(name.as_bytes());
        self.0.update(&(value.len() as u64).to_le_bytes());
        self.0.update(value);
    }

    /// The key.
    #[must_use]
    pub fn finish(self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

/// The parts of a node's key.
pub(crate) struct Ingredients<'a> {
    pub(crate) op: &'a str,
    pub(crate) version: u32,
    pub(crate) params: &'a Json,
    pub(crate) files: &'a [(String, Digest)],
    pub(crate) ports: &'a [(&'static str, Vec<(Key, &'static str)>)],
    pub(crate) numerics: &'a str,
}

impl Ingredients<'_> {
    pub(crate) fn key(&self) -> Key {
        let mut hasher = KeyHasher::new("retouch/node/1");
        hasher.field("op", self.op.as_bytes());
        hasher.field("version", &self.version.to_le_bytes());
        let mut params = String::new();
        canonical(self.params, &mut params);
        hasher.field("params", params.as_bytes());
        let mut files: Vec<&(String, Digest)> = self.files.iter().collect();
        files.sort();
        let mut value = Vec::new();
        for (role, digest) in files {
            value.clear();
            value.extend_from_slice(role.as_bytes());
            value.push(0);
            value.extend_from_slice(digest);
            hasher.field("file", &value);
        }
        for (port, links) in self.ports {
            hasher.field("port", port.as_bytes());
            for (key, output) in links {
                value.clear();
                value.extend_from_slice(&key.0);
                value.extend_from_slice(output.as_bytes());
                hasher.field("link", &value);
            }
        }
        hasher.field("numerics", self.numerics.as_bytes());
        hasher.finish()
    }
}

/// Writes JSON without spaces and with sorted keys.
pub fn canonical(value: &Json, out: &mut String) {
    // Writing to a text cannot fail, and a number or a text is its own canonical form.
    let mut scalar = |value: &dyn fmt::Display| {
        let _ = write!(out, "{value}");
    };
    match value {
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        Json::Object(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (index, (name, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                quoted(name, out);
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Json::String(text) => quoted(text, out),
        other => scalar(other),
    }
}

fn quoted(text: &str, out: &mut String) {
    if text
        .bytes()
        .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
    {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&Json::from(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_layout_is_as_documented() {
        let digest = [7u8; 32];
        let upstream = Key([9; 32]);
        let key = Ingredients {
            op: "add",
            version: 3,
            params: &json!({"b": 1, "a": [true, "x"]}),
            files: &[("role".to_owned(), digest)],
            ports: &[("x", vec![(upstream, "out")])],
            numerics: "cpu/f32",
        }
        .key();
        let mut bytes = Vec::new();
        let mut field = |name: &str, value: &[u8]| {
            bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
            bytes.extend_from_slice(value);
        };
        field("format", b"retouch/node/1");
        field("op", b"add");
        field("version", &[3, 0, 0, 0]);
        field("params", br#"{"a":[true,"x"],"b":1}"#);
        field("file", &[b"role\0".as_slice(), &digest].concat());
        field("port", b"x");
        field("link", &[&upstream.0[..], b"out"].concat());
        field("numerics", b"cpu/f32");
        assert_eq!(key.0, *blake3::hash(&bytes).as_bytes());
    }
}
