//! Tables: what a node measured, for people and for other programs.

use std::collections::BTreeMap;

use retouch_graph::{NodeError, Payload};
use serde_json::{Map, Value as Json};

use crate::payload::image::unknown_format;

/// Rows of named columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The names of the columns, each once.
    pub columns: Vec<String>,
    /// The rows, each with one value a column; `null` where there is none.
    pub rows: Vec<Vec<Json>>,
    /// What the numbers of columns are, by column; for reports, and in no file of the table's own.
    pub definitions: BTreeMap<String, String>,
}

impl Table {
    /// Makes an empty table with these columns.
    #[must_use]
    pub fn new<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Self {
        Self {
            columns: columns.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
            definitions: BTreeMap::new(),
        }
    }

    /// Says what the numbers of a column are.
    pub fn define(&mut self, column: &str, text: &str) {
        self.definitions.insert(column.to_owned(), text.to_owned());
    }

    /// The place of a column.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When it has not one value a column.
    pub fn push(&mut self, row: Vec<Json>) -> Result<(), NodeError> {
        self.check_row(&row)?;
        self.rows.push(row);
        Ok(())
    }

    fn check_row(&self, row: &[Json]) -> Result<(), NodeError> {
        if row.len() == self.columns.len() {
            Ok(())
        } else {
            Err(NodeError::failed(format!(
                "a row of a table with {} columns has {} values",
                self.columns.len(),
                row.len()
            )))
        }
    }

    /// The fields are open, so that whatever is written is looked at first.
    fn check(&self) -> Result<(), NodeError> {
        self.rows.iter().try_for_each(|row| self.check_row(row))?;
        for (index, column) in self.columns.iter().enumerate() {
            if self.columns[..index].contains(column) {
                return Err(NodeError::failed(format!(
                    "the column `{column}` is twice in a table"
                )));
            }
        }
        Ok(())
    }

    fn to_csv(&self) -> Result<Vec<u8>, NodeError> {
        let failed = |error: &dyn std::fmt::Display| {
            NodeError::failed(format!("the table cannot be written as .csv: {error}"))
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        // A record of no fields cannot be written; a table of no columns is an empty file.
        if !self.columns.is_empty() {
            writer.write_record(&self.columns).map_err(|e| failed(&e))?;
            for row in &self.rows {
                writer
                    .write_record(row.iter().map(field))
                    .map_err(|e| failed(&e))?;
            }
        }
        writer.into_inner().map_err(|e| failed(&e))
    }

    fn to_json(&self) -> Result<Vec<u8>, NodeError> {
        let objects: Vec<Map<String, Json>> = self
            .rows
            .iter()
            .map(|row| {
                self.columns
                    .iter()
                    .cloned()
                    .zip(row.iter().cloned())
                    .collect()
            })
            .collect();
        let mut file = serde_json::to_vec_pretty(&objects).map_err(|error| {
            NodeError::failed(format!("the table cannot be written as .json: {error}"))
        })?;
        file.push(b'\n');
        Ok(file)
    }
}

/// A value as a CSV field: a text as it is, nothing for `null`, all else as JSON.
fn field(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Payload for Table {
    const TYPE: &'static str = "table";
    const FORMATS: &'static [&'static str] = &["csv", "json"];

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        let parts = (&self.columns, &self.rows, &self.definitions);
        Some(serde_json::to_vec(&parts).map_err(|e| NodeError::failed(e.to_string())))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        type Parts = (Vec<String>, Vec<Vec<Json>>, BTreeMap<String, String>);
        // Tables that were kept before they had definitions are of two parts.
        let (columns, rows, definitions) = serde_json::from_slice::<Parts>(bytes)
            .or_else(|_| {
                serde_json::from_slice(bytes)
                    .map(|(columns, rows)| (columns, rows, BTreeMap::new()))
            })
            .map_err(|e| NodeError::failed(e.to_string()))?;
        let table = Self {
            columns,
            rows,
            definitions,
        };
        table.check()?;
        Ok(table)
    }

    fn bytes(&self) -> usize {
        let cells = self.rows.iter().flatten();
        let texts = cells.map(|cell| match cell {
            Json::String(text) => text.len(),
            Json::Array(_) | Json::Object(_) => cell.to_string().len(),
            _ => 0,
        });
        let values: usize = self.rows.iter().map(Vec::len).sum();
        values * size_of::<Json>()
            + texts.sum::<usize>()
            + self.columns.iter().map(String::len).sum::<usize>()
            + (self.definitions.iter())
                .map(|(column, text)| column.len() + text.len())
                .sum::<usize>()
    }

    fn summary(&self) -> String {
        let rows = self.rows.len();
        let columns = self.columns.len();
        let plural = |number: usize| if number == 1 { "" } else { "s" };
        format!(
            "table of {rows} row{}, {columns} column{}",
            plural(rows),
            plural(columns)
        )
    }

    /// CSV with a line of column names, or a JSON array of objects; both end in a line break.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        self.check()?;
        match format {
            "csv" => Ok(vec![self.to_csv()?]),
            "json" => Ok(vec![self.to_json()?]),
            _ => Err(unknown_format::<Self>(format)),
        }
    }
}
