//! The table of a sweep's results: one row a cell.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use retouch_graph::sweep::shown;
use retouch_graph::{Saved, Saver};
use serde::Serialize;
use serde_json::Value as Json;

use crate::Failure;
use crate::lines::Line;
use crate::output::say;
use crate::scores;

/// What became of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CellStatus {
    /// All its outputs were made, or were there.
    Done,
    /// A node or the saving of an output failed.
    Failed,
    /// The run was stopped before.
    #[default]
    NotRun,
}

impl CellStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::NotRun => "not_run",
        }
    }
}

/// A row of the table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// The cell's number, from 1.
    pub cell: usize,
    /// The values of the params that vary, in the order of the sweep.
    pub params: IndexMap<String, Json>,
    /// What became of it.
    pub status: CellStatus,
    /// The files of its outputs, by output.
    pub outputs: IndexMap<String, Vec<PathBuf>>,
    /// Seconds of the nodes that were run for it first.
    pub seconds: f64,
    /// Calls of the U-Net in those.
    pub unet_calls: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// A row with the scores of its cell.
#[derive(Serialize)]
struct Scored<'a> {
    #[serde(flatten)]
    row: &'a Row,
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    scores: IndexMap<String, f64>,
}

/// Writes a table as .csv or .json, as a whole: to a temporary name, then renamed.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, rows: &[Row]) -> Result<(), Failure> {
    crate::store::write_whole(path, &bytes(path, rows)?).map_err(|e| failed(path, &e.to_string()))
}

/// Writes the table that a sweep asks for, `table` below the output folder, as the sweep's outputs are written.
///
/// # Errors
/// When it cannot be written.
pub fn save(saver: &Saver, table: &str, rows: &[Row]) -> Result<Saved, Failure> {
    let path = saver.out().join(table);
    saver
        .write_file(table, &bytes(&path, rows)?)
        .map_err(|e| failed(&path, &e.to_string()))
}

/// Prints that a table of `rows` rows was saved; `json`: as a JSON line.
///
/// # Errors
/// When standard output is closed.
pub fn tell_saved(path: PathBuf, rows: usize, json: bool) -> Result<(), Failure> {
    match json {
        true => Line::TableSaved { path, rows }.say(),
        false => say(&format!("table  {}  ({rows} cells)", path.display())),
    }
}

/// Why a table is not there.
fn failed(path: &Path, what: &str) -> Failure {
    Failure::unwritable(format!(
        "the table {} cannot be written: {what}",
        path.display()
    ))
    .help("check its folder, or write it elsewhere with `--table FILE`")
}

/// The bytes of a table as .csv or .json.
///
/// # Errors
/// None that a table of results could cause; the libraries' are handed on.
fn bytes(path: &Path, rows: &[Row]) -> Result<Vec<u8>, Failure> {
    if is_json(path) {
        let rows: Vec<Scored<'_>> = (rows.iter())
            .map(|row| Scored {
                row,
                scores: scores_of(row),
            })
            .collect();
        let mut text =
            serde_json::to_vec_pretty(&rows).map_err(|e| failed(path, &e.to_string()))?;
        text.push(b'\n');
        Ok(text)
    } else {
        csv(rows).map_err(|e| failed(path, &e.to_string()))
    }
}

/// Whether the ending is one that a table can be written as.
#[must_use]
pub fn is_known(path: &Path) -> bool {
    is_json(path)
        || path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("csv"))
}

fn is_json(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("json"))
}

/// The scores of a cell: the means of the columns of the tables that it saved. One that is called as a column of the table is called
/// after its output too.
fn scores_of(row: &Row) -> IndexMap<String, f64> {
    let mut found: IndexMap<String, f64> = IndexMap::new();
    for (output, files) in &row.outputs {
        for (name, score) in files.iter().flat_map(|file| scores::of(file)) {
            let own = ["cell", "status", "seconds", "unet_calls", "error"];
            let is_taken = own.contains(&name.as_str())
                || row.params.contains_key(&name)
                || row.outputs.contains_key(&name)
                || found.contains_key(&name);
            let name = if is_taken {
                format!("{output}.{name}")
            } else {
                name
            };
            found.insert(name, score);
        }
    }
    found
}

fn csv(rows: &[Row]) -> Result<Vec<u8>, csv::Error> {
    let scores: Vec<IndexMap<String, f64>> = rows.iter().map(scores_of).collect();
    let mut scored: Vec<&str> = Vec::new();
    for name in scores.iter().flat_map(IndexMap::keys) {
        if !scored.contains(&name.as_str()) {
            scored.push(name);
        }
    }
    let mut outputs: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| row.outputs.keys()) {
        if !outputs.contains(&name.as_str()) {
            outputs.push(name);
        }
    }
    let params: Vec<&str> = (rows.first().into_iter())
        .flat_map(|row| row.params.keys().map(String::as_str))
        .collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut head = vec!["cell"];
    head.extend(&params);
    head.extend(&scored);
    head.extend(["status", "seconds", "unet_calls", "error"]);
    head.extend(&outputs);
    writer.write_record(&head)?;
    for (row, scores) in rows.iter().zip(&scores) {
        let mut fields = vec![row.cell.to_string()];
        fields.extend(
            params
                .iter()
                .map(|name| row.params.get(*name).map_or_else(String::new, shown)),
        );
        let score = |name: &&str| scores.get(*name).map_or_else(String::new, f64::to_string);
        fields.extend(scored.iter().map(score));
        fields.push(row.status.name().to_owned());
        fields.push(format!("{:.3}", row.seconds));
        fields.push(row.unet_calls.to_string());
        fields.push(row.error.clone().unwrap_or_default());
        for output in &outputs {
            let files = row
                .outputs
                .get(*output)
                .map_or(&[] as &[PathBuf], Vec::as_slice);
            let files: Vec<String> = files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            fields.push(files.join("; "));
        }
        writer.write_record(&fields)?;
    }
    writer
        .into_inner()
        .map_err(|error| error.into_error().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_a_cell_and_quotes_what_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let row = Row {
            cell: 1,
            params: IndexMap::from([("place".to_owned(), Json::from("a \"b\", c"))]),
            status: CellStatus::Failed,
            outputs: IndexMap::from([("final".to_owned(), vec![PathBuf::from("out/a.png")])]),
            seconds: 1.25,
            unet_calls: 7,
            error: Some("no\nroom".to_owned()),
        };
        let path = folder.path().join("t.csv");
        write(&path, std::slice::from_ref(&row)).unwrap();
        let mut reader = csv::Reader::from_path(&path).unwrap();
        assert_eq!(
            reader.headers().unwrap(),
            vec![
                "cell",
                "place",
                "status",
                "seconds",
                "unet_calls",
                "error",
                "final"
            ]
        );
        let record = reader.records().next().unwrap().unwrap();
        assert_eq!(
            record,
            vec![
                "1",
                "a \"b\", c",
                "failed",
                "1.250",
                "7",
                "no\nroom",
                "out/a.png"
            ]
        );
        // What a cell measured stands beside its params; a name that is taken has its output before it.
        let scores = folder.path().join("scores.csv");
        std::fs::write(&scores, "look,place\n0.25,1\n0.75,3\n").unwrap();
        let mut scored = row.clone();
        scored.outputs.insert("scores".to_owned(), vec![scores]);
        write(&path, &[scored]).unwrap();
        let mut reader = csv::Reader::from_path(&path).unwrap();
        let head = reader.headers().unwrap().clone();
        let record = reader.records().next().unwrap().unwrap();
        let cell = |name: &str| record.get(head.iter().position(|own| own == name).unwrap());
        assert_eq!(
            (cell("look"), cell("scores.place")),
            (Some("0.5"), Some("2"))
        );
        let path = folder.path().join("t.json");
        write(&path, &[row]).unwrap();
        let read: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read[0]["outputs"]["final"][0], "out/a.png");
        assert!(is_known(Path::new("a.CSV")) && !is_known(Path::new("a.txt")));
    }
}
