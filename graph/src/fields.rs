//! Types for the parameters of nodes that mean more to the engine than their JSON does.
//!
//! The engine reads their `format` off the JSON schema: `path` is resolved from the file that wrote it and never
//! enters a key, `template` is filled in from params, `seed` may be `random`, `steps` is a number or a share.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The greatest integer of the language, 2^53 - 1: the last one up to which JSON programs agree.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A path to a file or a folder; relative ones are resolved from the file that wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AssetPath(PathBuf);

impl AssetPath {
    /// Wraps a path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl Deref for AssetPath {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for AssetPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for AssetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl JsonSchema for AssetPath {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "AssetPath".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "path"})
    }
}

/// A text in which the workflow's `{params}` are filled in before the node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Template(String);

impl Template {
    /// Wraps a text that is filled in already.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Template {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Template {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Template {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Template {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "template"})
    }
}

/// A number of steps: `10`, or a share of all of them: `20%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Steps {
    /// That many.
    Count(u64),
    /// That share, in percent.
    Percent(f64),
}

impl Steps {
    /// Reads `10` or `20%`.
    ///
    /// # Errors
    /// What is due, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let due = || {
            format!(
                "a number of steps is due, `10`, or a share of them from 0% to 100%, `20%`, not `{text}`"
            )
        };
        match text.strip_suffix('%') {
            Some(number) if number.bytes().all(|b| b.is_ascii_digit() || b == b'.') => number
                .parse::<f64>()
                .ok()
                .filter(|percent| (0.0..=100.0).contains(percent))
                .map(Self::Percent)
                .ok_or_else(due),
            Some(_) => Err(due()),
            None if text.bytes().all(|b| b.is_ascii_digit()) => text
                .parse::<u64>()
                .ok()
                .filter(|&count| count <= MAX_INTEGER)
                .map(Self::Count)
                .ok_or_else(due),
            None => Err(due()),
        }
    }

    /// The number of steps out of `total`; a share is rounded, half a step up.
    #[must_use]
    pub fn resolve(self, total: usize) -> usize {
        match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
            // A float cast saturates, and a share is not negative.
            Self::Percent(percent) => (percent * total as f64 / 100.0 + 0.5).floor() as usize,
        }
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self::Count(0)
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Steps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u64(*count),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Steps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Steps;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of steps or a share of them, `10` or `20%`")
            }
            fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<Steps, E> {
                Ok(Steps::Count(count))
            }
            fn visit_i64<E: serde::de::Error>(self, count: i64) -> Result<Steps, E> {
                u64::try_from(count)
                    .map(Steps::Count)
                    .map_err(|_| E::custom(format!("steps cannot be negative, not {count}")))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Steps, E> {
                Steps::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Steps {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Steps".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER},
            {"type": "string", "format": "steps", "pattern": r"^[0-9]+(\.[0-9]+)?%$"}
        ]})
    }
}

/// A seed: an integer from 0 to 2^53 - 1. In a file it may be `random`; the engine then draws one and records it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Seed(u64);

impl Seed {
    /// Wraps a number; `None` above 2^53 - 1.
    #[must_use]
    pub fn new(seed: u64) -> Option<Self> {
        (seed <= MAX_INTEGER).then_some(Self(seed))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seed = u64::deserialize(deserializer)?;
        Self::new(seed).ok_or_else(|| {
            serde::de::Error::custom(format!("a seed is at most {MAX_INTEGER}, not {seed}"))
        })
    }
}

impl JsonSchema for Seed {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Seed".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "integer", "format": "seed", "minimum": 0, "maximum": MAX_INTEGER},
            {"type": "string", "format": "seed", "const": "random"}
        ]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_a_number_or_a_share_and_round_half_up() {
        assert_eq!(Steps::parse("20%").unwrap().resolve(50), 10);
        assert_eq!(Steps::parse("5%").unwrap().resolve(50), 3); // 2.5
        assert_eq!(Steps::parse("12.5%").unwrap().resolve(20), 3); // 2.5
        assert_eq!(Steps::parse("7").unwrap().resolve(50), 7);
        assert_eq!(Steps::parse("100%").unwrap().resolve(0), 0);
        for wrong in [
            "", "%", "-1", "101%", "a", "1e3", "1e1%", "nan%", "+5", "2.5",
        ] {
            assert!(Steps::parse(wrong).is_err(), "{wrong}");
        }
        for text in ["12", "\"12.5%\""] {
            let steps: Steps = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&steps).unwrap(), text);
        }
        assert!(serde_json::from_str::<Steps>("-1").is_err());
    }

    #[test]
    fn a_seed_stays_below_two_to_the_53() {
        assert!(serde_json::from_str::<Seed>("9007199254740991").is_ok());
        assert!(serde_json::from_str::<Seed>("9007199254740992").is_err());
        assert!(serde_json::from_str::<Seed>("-1").is_err());
    }
}
