//! Means of what was measured, with bootstrap intervals over the units that were drawn independently of each other.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use retouch_graph::NodeError;

use crate::measure::mean;
use crate::measure::scores::LABELS;
use crate::payload::Table;

/// A picture: what it is of, where it is, and its numbers by column.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub subject: String,
    pub method: String,
    pub prompt: String,
    pub seed: String,
    /// The table that it is of, and its row there.
    pub table: usize,
    pub row: usize,
    /// One for each of the columns, where there is one.
    pub values: Vec<Option<f64>>,
}

/// What resampling draws: what pictures of one of them have in common is not drawn anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Subject,
    Prompt,
    Seed,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Prompt => "prompt",
            Self::Seed => "seed",
        }
    }

    fn of(self, picture: &Picture) -> &str {
        match self {
            Self::Subject => &picture.subject,
            Self::Prompt => &picture.prompt,
            Self::Seed => &picture.seed,
        }
    }
}

/// A number with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// All pictures that were measured.
pub(super) struct Measured {
    pub pictures: Vec<Picture>,
    /// The columns of numbers.
    pub columns: Vec<String>,
    /// What the numbers are.
    pub definitions: BTreeMap<String, String>,
    /// The methods and the subjects, as they come.
    pub methods: Vec<String>,
    pub subjects: Vec<String>,
    pub unit: Unit,
    /// How many units there are.
    pub units: usize,
    resamples: usize,
    confidence: f64,
}

/// How intervals are made.
pub(super) struct Resampling {
    pub resamples: usize,
    pub confidence: f64,
}

impl Measured {
    /// Reads tables that `scores` made; `wanted` are the columns, all that have numbers when it is empty.
    pub(super) fn read(
        tables: &[impl AsRef<Table>],
        wanted: &[String],
        how: &Resampling,
    ) -> Result<Self, NodeError> {
        let tables: Vec<&Table> = tables.iter().map(AsRef::as_ref).collect();
        let mut columns: Vec<String> = wanted.to_vec();
        let mut definitions = BTreeMap::new();
        for table in &tables {
            if let Some(lacking) = LABELS.iter().find(|label| table.column(label).is_none()) {
                return Err(NodeError::failed(format!(
                    "a table ({}) has no column `{lacking}`",
                    table.columns.join(", ")
                ))
                .help("give `report` tables that `scores` made"));
            }
            definitions.extend(table.definitions.clone());
            for (at, column) in table.columns.iter().enumerate() {
                let is_label = LABELS.contains(&column.as_str()) || columns.contains(column);
                let has_numbers = || table.rows.iter().any(|row| row[at].is_number());
                if wanted.is_empty() && !is_label && has_numbers() {
                    columns.push(column.clone());
                }
            }
        }
        if let Some(lacking) = (columns.iter())
            .find(|column| !tables.iter().any(|table| table.column(column).is_some()))
        {
            return Err(NodeError::failed(format!(
                "no table has the column `{lacking}`"
            )));
        }
        let mut pictures = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            for (row, cells) in table.rows.iter().enumerate() {
                let text = |label: &str| match table.column(label).map(|at| &cells[at]) {
                    Some(serde_json::Value::String(text)) => text.clone(),
                    Some(serde_json::Value::Null) | None => String::new(),
                    Some(other) => other.to_string(),
                };
                pictures.push(Picture {
                    subject: text("subject"),
                    method: text("method"),
                    prompt: text("prompt"),
                    seed: text("seed"),
                    table: index,
                    row,
                    values: (columns.iter())
                        .map(|column| cells[table.column(column)?].as_f64())
                        .collect(),
                });
            }
        }
        let distinct = |of: fn(&Picture) -> &String| -> Vec<String> {
            let mut seen: Vec<String> = Vec::new();
            for picture in &pictures {
                if !seen.contains(of(picture)) {
                    seen.push(of(picture).clone());
                }
            }
            seen
        };
        let (subjects, prompts) = (distinct(|p| &p.subject), distinct(|p| &p.prompt));
        let (unit, units) = if subjects.len() > 1 {
            (Unit::Subject, subjects.len())
        } else if prompts.len() > 1 {
            (Unit::Prompt, prompts.len())
        } else {
            (Unit::Seed, distinct(|p| &p.seed).len())
        };
        Ok(Self {
            methods: distinct(|p| &p.method),
            subjects,
            pictures,
            columns,
            definitions,
            unit,
            units,
            resamples: how.resamples,
            confidence: how.confidence,
        })
    }

    /// The place of a column.
    pub(super) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The mean of a column for a method (and a subject), and how many pictures it is of.
    pub(super) fn estimate(
        &self,
        method: &str,
        subject: Option<&str>,
        column: usize,
    ) -> Option<Estimate> {
        let mut units: IndexMap<&str, Vec<f64>> = IndexMap::new();
        // Of one subject the prompts are what was drawn.
        let unit = match (subject, self.unit) {
            (Some(_), Unit::Subject) => Unit::Prompt,
            (_, unit) => unit,
        };
        for picture in self.of(method, subject) {
            if let Some(value) = picture.values[column] {
                units.entry(unit.of(picture)).or_default().push(value);
            }
        }
        let means: Vec<f64> = units.values().filter_map(|values| mean(values)).collect();
        self.interval(means.len(), |drawn| {
            mean(&drawn.iter().map(|at| means[*at]).collect::<Vec<_>>())
        })
    }

    /// The pictures of a method.
    pub(super) fn of<'a>(
        &'a self,
        method: &'a str,
        subject: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Picture> {
        (self.pictures.iter()).filter(move |picture| {
            picture.method == method && subject.is_none_or(|subject| picture.subject == subject)
        })
    }

    /// The means over units of two methods over the pictures that both have: same subject, prompt and seed.
    fn paired(&self, method: &str, to: &str, column: usize) -> Vec<(f64, f64)> {
        let key = |p: &Picture| (p.subject.clone(), p.prompt.clone(), p.seed.clone());
        let other: BTreeMap<_, f64> = (self.of(to, None))
            .filter_map(|picture| Some((key(picture), picture.values[column]?)))
            .collect();
        let mut units: IndexMap<&str, (Vec<f64>, Vec<f64>)> = IndexMap::new();
        for picture in self.of(method, None) {
            if let (Some(own), Some(to)) = (picture.values[column], other.get(&key(picture))) {
                let (owns, tos) = units.entry(self.unit.of(picture)).or_default();
                owns.push(own);
                tos.push(*to);
            }
        }
        (units.values())
            .filter_map(|(own, to)| Some((mean(own)?, mean(to)?)))
            .collect()
    }

    /// The difference of two methods' means, paired.
    pub(super) fn difference(&self, method: &str, to: &str, column: usize) -> Option<Estimate> {
        let pairs = self.paired(method, to, column);
        self.interval(pairs.len(), |drawn| {
            mean(
                &drawn
                    .iter()
                    .map(|at| pairs[*at].0 - pairs[*at].1)
                    .collect::<Vec<_>>(),
            )
        })
    }

    /// One method's mean over another's, paired.
    pub(super) fn ratio(&self, method: &str, to: &str, column: usize) -> Option<Estimate> {
        let pairs = self.paired(method, to, column);
        self.interval(pairs.len(), |drawn| {
            let own = mean(&drawn.iter().map(|at| pairs[*at].0).collect::<Vec<_>>())?;
            let to = mean(&drawn.iter().map(|at| pairs[*at].1).collect::<Vec<_>>())?;
            (to != 0.0).then_some(own / to)
        })
    }

    /// A statistic of `count` units with its percentile bootstrap interval (Efron 1979); the draws are the same for all of as many.
    fn interval(
        &self,
        count: usize,
        statistic: impl Fn(&[usize]) -> Option<f64>,
    ) -> Option<Estimate> {
        let all: Vec<usize> = (0..count).collect();
        let found = statistic(&all)?;
        let mut random = SplitMix(0x5EED_0F0E_7A1A_7E5D);
        let mut values: Vec<f64> = (0..self.resamples)
            .filter_map(|_| {
                let drawn: Vec<usize> = (0..count).map(|_| random.below(count)).collect();
                statistic(&drawn)
            })
            .collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| -> f64 {
            let place = share * (values.len().max(1) - 1) as f64;
            let (first, rest) = (place.floor() as usize, place - place.floor());
            match (values.get(first), values.get(first + 1)) {
                (Some(a), Some(b)) => a + (b - a) * rest,
                (Some(a), None) => *a,
                _ => found,
            }
        };
        let tail = (1.0 - self.confidence) / 2.0;
        Some(Estimate {
            mean: found,
            low: at(tail),
            high: at(1.0 - tail),
        })
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): the draws of a report are the same on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A whole number below `count`, which is not 0.
    fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_draws_are_those_of_the_published_generator() {
        // The first three of the reference implementation with the seed 1234567.
        let mut random = SplitMix(1_234_567);
        let drawn = [random.next(), random.next(), random.next()];
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }
}
