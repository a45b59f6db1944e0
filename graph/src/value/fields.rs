//! Types for the parameters of nodes that mean more to the engine than their JSON does.
//!
//! The engine reads their `format` off the JSON schema: `path` is resolved from the file that wrote it and never
//! enters a key, `template` is filled in from params, `seed` may be `random`, `steps` is a number or a share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::digest::Digest;
use crate::base::error::Fault;
use crate::files::Files;

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

/// What a model's files must hold: the SHA-256 digest of its one file, or a map from files of its folder to theirs.
///
/// Keys have the content of the files already, so pins are not part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sha256Pins {
    /// The model is one file.
    File(Sha256Hex),
    /// The model is a folder; the paths are from there, with `/`.
    Folder(BTreeMap<String, Sha256Hex>),
}

/// A SHA-256 digest: 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sha256Hex(Digest);

impl Sha256Hex {
    /// Reads 64 hexadecimal digits of either case; `sha256:` may stand before them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        crate::base::digest::parse_hex(text.strip_prefix("sha256:").unwrap_or(text)).map(Self)
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::base::digest::hex(&self.0))
    }
}

impl Serialize for Sha256Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "a SHA-256 digest is 64 hexadecimal digits, not `{}`",
                text.escape_debug()
            ))
        })
    }
}

impl Serialize for Sha256Pins {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::File(digest) => digest.serialize(serializer),
            Self::Folder(digests) => digests.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Sha256Pins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Sha256Pins;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a SHA-256 digest, or a map from files of the model's folder to theirs")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Sha256Pins, E> {
                let text = serde::de::value::StrDeserializer::new(text);
                Sha256Hex::deserialize(text).map(Sha256Pins::File)
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Sha256Pins, A::Error> {
                let mut digests = BTreeMap::new();
                while let Some((path, digest)) = map.next_entry::<String, Sha256Hex>()? {
                    if !path.split('/').all(crate::base::remote::is_part) {
                        return Err(serde::de::Error::custom(format!(
                            "`{}` is not a file of the model's folder: write its path from there, with `/`",
                            path.escape_debug()
                        )));
                    }
                    digests.insert(path, digest);
                }
                Ok(Sha256Pins::Folder(digests))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Sha256Pins {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Sha256Pins".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let digest = json_schema!({"type": "string", "pattern": "^(sha256:)?[0-9A-Fa-f]{64}$"});
        json_schema!({"anyOf": [
            {"type": "string", "format": "sha256", "pattern": "^(sha256:)?[0-9A-Fa-f]{64}$"},
            {"type": "object", "format": "sha256", "additionalProperties": digest}
        ]})
    }
}

impl Sha256Pins {
    /// Compares what is pinned with what is there, before anything else reads it. `model` is the model's file or
    /// folder, `field` the parameter that has the pins.
    ///
    /// # Errors
    /// A fault for each file that is missing or holds something else, with both digests.
    pub fn check(&self, field: &str, model: &Path, files: &dyn Files) -> Result<(), Vec<Fault>> {
        let pinned: Vec<(PathBuf, Sha256Hex)> = match self {
            Self::File(_) if files.is_dir(model) => {
                let fault = Fault::value(
                    field,
                    format!(
                        "{} is a folder, which cannot be pinned by a single digest",
                        model.display()
                    ),
                );
                let help =
                    "pin its files: `sha256: {unet/diffusion_pytorch_model.safetensors: ...}`";
                return Err(vec![fault.help(help)]);
            }
            Self::File(digest) => vec![(model.to_owned(), *digest)],
            Self::Folder(_) if files.is_file(model) => {
                let fault = Fault::value(
                    field,
                    format!(
                        "{} is a single file, but several files are pinned",
                        model.display()
                    ),
                );
                return Err(vec![fault.help("give its digest alone: `sha256: ...`")]);
            }
            Self::Folder(digests) => (digests.iter())
                .map(|(path, digest)| (model.join(path), *digest))
                .collect(),
        };
        let faults: Vec<Fault> = (pinned.into_iter())
            .filter_map(|(path, digest)| {
                let shown = path.display();
                match files.sha256(&path) {
                    Ok(there) if there == digest.0 => None,
                    // An editor's check does not wait for gigabytes; it is made again once they are read.
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
                    Ok(there) => Some(
                        Fault::content(
                            field,
                            format!(
                                "{shown} has the SHA-256 digest {}, and {digest} is pinned",
                                Sha256Hex(there)
                            ),
                        )
                        .help("the file is a different version or was modified: get the pinned version, or update the pin if this version is the right one"),
                    ),
                    Err(error) => Some(
                        Fault::file(field, format!("{shown} is pinned and cannot be read: {error}"))
                            .help("check the path, and whether the model is whole"),
                    ),
                }
            })
            .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
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
    /// What is expected, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let due = || {
            format!(
                "a number of steps is expected, `10`, or a share of them from 0% to 100%, `20%`, not `{text}`"
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
            Self::Percent(percent) => {
                let (part, of) = share_of(percent, total);
                let twice = part
                    .saturating_mul(2)
                    .saturating_add(of.saturating_mul(100));
                usize::try_from(twice / of.saturating_mul(200)).unwrap_or(usize::MAX)
            }
        }
    }
}

/// `value * total` as an exact fraction, with `value` taken as the decimal number that it is written as: 0.29 of 100 is
/// 29, where the product of binary numbers is 28.999999999999996. A negative or infinite value counts as 0; digits beyond
/// the 17th decimal place are dropped.
///
/// Returns numerator and denominator.
#[must_use]
pub fn share_of(value: f64, total: usize) -> (u128, u128) {
    const PLACES: usize = 17;
    if !value.is_finite() || value <= 0.0 {
        return (0, 1);
    }
    // The shortest decimal number that reads as this one, never with an exponent.
    let text = value.to_string();
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = &fraction[..fraction.len().min(PLACES)];
    let digits = format!("{whole}{fraction}").parse().unwrap_or(u128::MAX);
    let places = u32::try_from(fraction.len()).unwrap_or(0);
    (digits.saturating_mul(total as u128), 10u128.pow(places))
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
        // 0.57 * 50 / 100 * 100 and the like: shares are decimal, so that a half is a half.
        for tenths in 0..=1000u64 {
            for total in 0..=200u64 {
                let share = Steps::parse(&format!("{}.{}%", tenths / 10, tenths % 10)).unwrap();
                let due = (tenths * total + 500) / 1000;
                assert_eq!(
                    share.resolve(total as usize) as u64,
                    due,
                    "{share} of {total}"
                );
            }
        }
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
    fn a_pin_is_compared_with_the_content_and_both_digests_are_told() {
        // The digest of `abc` in FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let files = crate::files::MemoryFiles::new()
            .with("m/unet/a", "abc")
            .with("m/b", "abd");
        let pins = |json: serde_json::Value| serde_json::from_value::<Sha256Pins>(json);
        let check = |json, path: &str| pins(json).unwrap().check("sha256", Path::new(path), &files);
        for sound in [abc.to_owned(), abc.to_uppercase(), format!("sha256:{abc}")] {
            assert_eq!(check(sound.into(), "m/unet/a"), Ok(()));
        }
        assert_eq!(check(serde_json::json!({"unet/a": abc}), "m"), Ok(()));
        let said = check(serde_json::json!({"unet/a": abc, "b": abc, "c": abc}), "m").unwrap_err();
        assert_eq!(said.len(), 2);
        // The digest of `abd`, from coreutils' sha256sum.
        let abd = "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9";
        assert!(
            said[0].message.contains(abc) && said[0].message.contains(abd),
            "{said:?}"
        );
        assert!(said[1].message.contains("m/c"), "{said:?}");
        assert!(check(abc.into(), "m").is_err());
        assert!(check(serde_json::json!({"a": abc}), "m/b").is_err());
        for wrong in [
            serde_json::json!(&abc[1..]),
            serde_json::json!({"../a": abc}),
            serde_json::json!({"/a": abc}),
            serde_json::json!({"a": "x"}),
            serde_json::json!(5),
        ] {
            assert!(pins(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_seed_stays_below_two_to_the_53() {
        assert!(serde_json::from_str::<Seed>("9007199254740991").is_ok());
        assert!(serde_json::from_str::<Seed>("9007199254740992").is_err());
        assert!(serde_json::from_str::<Seed>("-1").is_err());
    }
}
