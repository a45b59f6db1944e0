//! The scores of a run: the numbers in the tables that it saved; and how far two pictures are from each other.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::table::is_known;
use retouch_nodes::measure::picture_error::Errors;
use retouch_nodes::payload::Image;
use retouch_nodes::payload::image::MAX_PIXELS;

/// The most bytes of a table that is looked into.
const MAX_BYTES: u64 = 16 << 20;

/// The mean of each column of numbers of a saved table, `.csv` or `.json`; nothing for what is none.
///
/// A column is one of numbers when every cell of it is a number or empty, and one is not empty.
#[must_use]
pub fn of(path: &Path) -> IndexMap<String, f64> {
    let is_small = path.metadata().is_ok_and(|file| file.len() <= MAX_BYTES);
    if !is_known(path) || !is_small {
        return IndexMap::new();
    }
    let is_csv = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    let columns = if is_csv { of_csv(path) } else { of_json(path) };
    let means = columns.unwrap_or_default().into_iter();
    means
        .filter_map(|(name, values)| {
            let values: Vec<f64> = values?.into_iter().flatten().collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (!values.is_empty() && mean.is_finite()).then_some((name, mean))
        })
        .collect()
}

/// The cells of each column; `None` of a column that has something else than numbers.
type Columns = IndexMap<String, Option<Vec<Option<f64>>>>;

fn add(columns: &mut Columns, name: &str, cell: Result<Option<f64>, ()>) {
    let column = columns
        .entry(name.to_owned())
        .or_insert_with(|| Some(Vec::new()));
    match (cell, column.as_mut()) {
        (Ok(value), Some(values)) => values.push(value),
        (Err(()), _) => *column = None,
        (Ok(_), None) => {}
    }
}

fn of_csv(path: &Path) -> Option<Columns> {
    let mut reader = csv::Reader::from_path(path).ok()?;
    let head = reader.headers().ok()?.clone();
    let mut columns = Columns::new();
    for record in reader.records() {
        for (name, cell) in head.iter().zip(&record.ok()?) {
            let cell = match cell {
                "" => Ok(None),
                cell => cell.parse().map(Some).map_err(drop),
            };
            add(&mut columns, name, cell);
        }
    }
    Some(columns)
}

fn of_json(path: &Path) -> Option<Columns> {
    let rows: Vec<serde_json::Map<String, Json>> =
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let mut columns = Columns::new();
    for (name, cell) in rows.iter().flatten() {
        let cell = match cell {
            Json::Null => Ok(None),
            cell => cell.as_f64().map(Some).ok_or(()),
        };
        add(&mut columns, name, cell);
    }
    Some(columns)
}

/// A PNG of one frame, without its alpha channel.
fn picture(path: &Path) -> Option<Image> {
    let mut decoder = png::Decoder::new(BufReader::new(File::open(path).ok()?));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().ok()?;
    let info = reader.info();
    let (width, height) = (info.width as usize, info.height as usize);
    let is_one = info
        .animation_control()
        .is_none_or(|control| control.num_frames == 1);
    if !is_one || width.checked_mul(height)? > MAX_PIXELS {
        return None;
    }
    let mut bytes = vec![0; reader.output_buffer_size()?];
    let frame = reader.next_frame(&mut bytes).ok()?;
    let samples = frame.color_type.samples();
    let colours: Vec<u8> = (bytes.get(..frame.buffer_size())?)
        .chunks_exact(samples)
        .flat_map(|pixel| match samples {
            1 | 2 => [pixel[0]; 3],
            _ => [pixel[0], pixel[1], pixel[2]],
        })
        .collect();
    Image::from_rgb8(width, height, &colours).ok()
}

/// How far two PNGs are from each other; `None` where they cannot be compared pixel by pixel.
#[must_use]
pub fn between(a: &Path, b: &Path) -> Option<Errors> {
    Errors::between(&picture(a)?, &picture(b)?).ok()
}

/// A score as it is printed: four digits that count.
#[must_use]
pub fn shown(value: f64) -> String {
    match value.abs() {
        size if value.fract() == 0.0 && size < 1e9 => format!("{value:.0}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scores_of_a_table_are_the_means_of_its_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.csv");
        std::fs::write(
            &path,
            "method,seed,look,broken\na,1,0.25,1\na,2,,x\na,3,0.75,2\n",
        )
        .unwrap();
        let found = of(&path);
        let expected = IndexMap::from([("seed".to_owned(), 2.0), ("look".to_owned(), 0.5)]);
        assert_eq!(found, expected);
        let path = folder.path().join("scores.json");
        std::fs::write(&path, r#"[{"a": 1, "b": null}, {"a": 4, "b": null}]"#).unwrap();
        assert_eq!(of(&path), IndexMap::from([("a".to_owned(), 2.5)]));
        // What is no table has none.
        std::fs::write(&path, r#"{"a": 1}"#).unwrap();
        assert!(of(&path).is_empty());
        assert!(of(&folder.path().join("nowhere.csv")).is_empty());
    }

    #[test]
    fn scores_are_printed_with_four_digits() {
        let texts = [0.123_456, 12.345_6, 1234.5, 7.0].map(shown);
        assert_eq!(texts, ["0.1235", "12.35", "1234", "7"]);
    }
}
