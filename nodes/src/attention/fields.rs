//! Parameters of attention control that the language writes in a way of their own.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::fields::Template;
use retouch_diffusion::networks::unet::SiteInfo;
use retouch_diffusion::sampling::masks::Threshold;
use retouch_diffusion::sampling::swap::{MaskGrid, auto_sites};

/// Which self-attention sites: `auto`, `all`, `none`, a range `10..16` (half-open), or a list of numbers and ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sites {
    /// The up-block sites on the two finest grids that have attention.
    #[default]
    Auto,
    /// Every site.
    All,
    /// These; empty: none.
    List(Vec<(usize, usize)>),
}

impl Sites {
    /// The sites of a network that are meant.
    ///
    /// # Errors
    /// The number of a site that the network doesn't have.
    pub fn resolve(&self, sites: &[SiteInfo]) -> Result<BTreeSet<usize>, String> {
        match self {
            Self::Auto => Ok(auto_sites(sites)),
            Self::All => Ok(sites.iter().map(|site| site.index).collect()),
            Self::List(ranges) => {
                let chosen: BTreeSet<usize> =
                    ranges.iter().flat_map(|&(from, to)| from..to).collect();
                match chosen.last() {
                    Some(&last) if last >= sites.len() => Err(format!(
                        "site {last} is asked for; this model has {} (0..{})",
                        sites.len(),
                        sites.len()
                    )),
                    _ => Ok(chosen),
                }
            }
        }
    }
}

/// The number of a site can't be above this in any network that exists; it bounds what a range may list.
const MAX_SITE: usize = 10_000;

fn parse_range(text: &str) -> Result<(usize, usize), String> {
    let wrong = || {
        format!(
            "{text:?} is not a set of sites: expected `auto`, `all`, `none`, a range such as `10..16`, or a list"
        )
    };
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    let (from, to) = match text.split_once("..") {
        Some((from, to)) => (number(from)?, number(to)?),
        None => {
            let n = number(text)?;
            (n, n.saturating_add(1))
        }
    };
    if from > to || to > MAX_SITE {
        return Err(format!(
            "{text:?} is not a range of sites: expected `a..b` with a <= b (b is not included)"
        ));
    }
    Ok((from, to))
}

impl Serialize for Sites {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::All => serializer.serialize_str("all"),
            Self::List(ranges) => {
                // One spelling for each set, so that equal sets give equal keys.
                let sites: BTreeSet<usize> = ranges.iter().flat_map(|&(a, b)| a..b).collect();
                sites.serialize(serializer)
            }
        }
    }
}

struct SitesVisitor;

impl<'de> Visitor<'de> for SitesVisitor {
    type Value = Sites;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto`, `all`, `none`, a range such as `10..16`, or a list of sites")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Sites, E> {
        match text {
            "auto" => Ok(Sites::Auto),
            "all" => Ok(Sites::All),
            "none" => Ok(Sites::List(Vec::new())),
            _ => parse_range(text)
                .map(|range| Sites::List(vec![range]))
                .map_err(E::custom),
        }
    }

    fn visit_u64<E: de::Error>(self, site: u64) -> Result<Sites, E> {
        self.visit_str(&site.to_string())
    }

    fn visit_i64<E: de::Error>(self, site: i64) -> Result<Sites, E> {
        self.visit_str(&site.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Sites, A::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Item {
            Site(usize),
            Range(String),
        }
        let mut ranges = Vec::new();
        while let Some(item) = list.next_element::<Item>()? {
            ranges.push(match item {
                Item::Site(n) => parse_range(&n.to_string()).map_err(de::Error::custom)?,
                Item::Range(text) => parse_range(&text).map_err(de::Error::custom)?,
            });
        }
        Ok(Sites::List(ranges))
    }
}

impl<'de> Deserialize<'de> for Sites {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SitesVisitor)
    }
}

impl JsonSchema for Sites {
    fn schema_name() -> Cow<'static, str> {
        "Sites".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "format": "sites",
            "anyOf": [
                {"enum": ["auto", "all", "none"]},
                {"type": "string", "pattern": r"^\d+\.\.\d+$"},
                {"type": "integer", "minimum": 0},
                {"type": "array", "items": {"anyOf": [
                    {"type": "integer", "minimum": 0},
                    {"type": "string", "pattern": r"^\d+\.\.\d+$"},
                ]}},
            ],
        })
    }
}

/// One text for all references, or a list with one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts(Vec<Template>);

impl Texts {
    /// How many there are: 1, or one for each reference.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// That of a reference.
    #[must_use]
    pub fn at(&self, reference: usize) -> &Template {
        static NONE: std::sync::LazyLock<Template> = std::sync::LazyLock::new(Template::default);
        match self.0.as_slice() {
            [one] => one,
            several => several.get(reference).unwrap_or(&NONE),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Template> {
        self.0.iter()
    }
}

impl Serialize for Texts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            // One spelling, and the one that it always had: equal texts give equal keys.
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or a list of texts, one for each reference")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
        Ok(Texts(vec![text.into()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element::<Template>()? {
            texts.push(text);
        }
        if texts.is_empty() {
            return Err(de::Error::custom(
                "an empty list: expected a text, or one for each reference",
            ));
        }
        Ok(Texts(texts))
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextsVisitor)
    }
}

impl JsonSchema for Texts {
    fn schema_name() -> Cow<'static, str> {
        "Texts".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string", "format": "template"},
            {"type": "array", "minItems": 1, "items": {"type": "string", "format": "template"}},
        ]})
    }
}

/// How a map becomes a mask: `otsu`, `soft` or a number in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ThresholdField(pub Threshold);

impl Serialize for ThresholdField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Threshold::Otsu => serializer.serialize_str("otsu"),
            Threshold::Soft => serializer.serialize_str("soft"),
            Threshold::Number(number) => serializer.serialize_f64(number),
        }
    }
}

struct ThresholdVisitor;

impl Visitor<'_> for ThresholdVisitor {
    type Value = ThresholdField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`otsu`, `soft` or a number between 0 and 1")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ThresholdField, E> {
        match text {
            "otsu" => Ok(ThresholdField(Threshold::Otsu)),
            "soft" => Ok(ThresholdField(Threshold::Soft)),
            _ => Err(E::custom(format!(
                "{text:?} is not a threshold: expected `otsu`, `soft` or a number between 0 and 1"
            ))),
        }
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<ThresholdField, E> {
        if (0.0..=1.0).contains(&number) {
            Ok(ThresholdField(Threshold::Number(number)))
        } else {
            Err(E::custom(format!(
                "{number} is not a threshold: expected `otsu`, `soft` or a number between 0 and 1"
            )))
        }
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<ThresholdField, E> {
        self.visit_f64(number as f64)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<ThresholdField, E> {
        self.visit_f64(number as f64)
    }
}

impl<'de> Deserialize<'de> for ThresholdField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ThresholdVisitor)
    }
}

impl JsonSchema for ThresholdField {
    fn schema_name() -> Cow<'static, str> {
        "Threshold".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "format": "threshold",
            "anyOf": [
                {"enum": ["otsu", "soft"]},
                {"type": "number", "minimum": 0, "maximum": 1},
            ],
        })
    }
}

/// The grid of the masks: `auto`, or one that attention layers are on, as `16x24` (rows x columns) or `[16, 24]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaskGridField(pub MaskGrid);

impl Serialize for MaskGridField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            MaskGrid::Auto => serializer.serialize_str("auto"),
            MaskGrid::Size(h, w) => serializer.serialize_str(&format!("{h}x{w}")),
        }
    }
}

struct MaskGridVisitor;

impl<'de> Visitor<'de> for MaskGridVisitor {
    type Value = MaskGridField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto` or a grid such as `16x24` (rows x columns)")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<MaskGridField, E> {
        if text == "auto" {
            return Ok(MaskGridField(MaskGrid::Auto));
        }
        let parsed = text
            .split_once('x')
            .and_then(|(h, w)| Some((h.trim().parse().ok()?, w.trim().parse().ok()?)));
        match parsed {
            Some((h, w)) if h > 0 && w > 0 => Ok(MaskGridField(MaskGrid::Size(h, w))),
            _ => Err(E::custom(format!(
                "{text:?} is not a mask grid: expected `auto` or rows x columns such as `16x24`"
            ))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MaskGridField, A::Error> {
        let mut sides = Vec::new();
        while let Some(side) = list.next_element::<usize>()? {
            sides.push(side);
        }
        match sides.as_slice() {
            &[h, w] if h > 0 && w > 0 => Ok(MaskGridField(MaskGrid::Size(h, w))),
            _ => Err(de::Error::custom(
                "a mask grid has two numbers above 0: [rows, columns]",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for MaskGridField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MaskGridVisitor)
    }
}

impl JsonSchema for MaskGridField {
    fn schema_name() -> Cow<'static, str> {
        "MaskGrid".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {"type": "string", "pattern": r"^(auto|\d+x\d+)$"},
                {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
            ],
        })
    }
}
