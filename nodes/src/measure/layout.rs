//! `layout`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::measure::{IMAGE, deviation, mean, number};
use crate::payload::image::ImageFacts;
use crate::payload::{Mask, Table};

/// Measures how differently the subject is placed in the pictures of a batch, from its masks.
///
/// Papers have no settled number for it, so there are four, each 0 when the subject is at the same place in the same size: `layout`
/// is the mean of 1 - IoU over all pairs of masks; `centre_spread` how far the centres scatter, relative to the subject's
/// size; `area_spread` and `aspect_spread` the standard deviations of the logarithms of its area and of its box's width over height
/// (0.1 is about 10 %). A mask is where it is at least a half; empty ones count in `layout` alone, as wholly unlike all but each
/// other, and are counted in `empty`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasureLayout {}

ports! {
    /// What `layout` takes.
    pub struct Inputs {
        /// The subject in each picture of the batch.
        pub mask: Arc<Mask>,
    }
}

ports! {
    /// What `layout` gives.
    pub struct Outputs {
        /// One row for the batch: `layout`, `centre_spread`, `area_spread`, `aspect_spread`, `empty`.
        pub table: Arc<Table>,
        /// A row for each mask: `image`, the centre `x` and `y`, `width`, `height` of the box and `area`, in shares of the picture.
        pub places: Arc<Table>,
    }
}

/// Where a subject is, in pixels.
struct Subject {
    area: f64,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Node for MeasureLayout {
    const OP: &'static str = "layout";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        match inputs.facts::<ImageFacts>("mask") {
            Some(ImageFacts { batch: 0 | 1, .. }) => Err(vec![
                Fault::mismatch("mask", "one mask has no spread of layouts")
                    .help("draw a batch of several seeds: `batch: 8`"),
            ]),
            _ => Ok(Types::unknown()),
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        context.check_cancelled()?;
        let mask = &inputs.mask;
        if mask.batch() < 2 {
            return Err(NodeError::failed("one mask has no spread of layouts"));
        }
        let (width, height) = mask.size();
        let covered: Vec<Vec<bool>> = mask
            .values()?
            .chunks_exact(width * height)
            .map(|plane| plane.iter().map(|value| *value >= 0.5).collect())
            .collect();
        let subjects: Vec<Option<Subject>> =
            covered.iter().map(|plane| subject(plane, width)).collect();
        let table = spread(&covered, &subjects)?;
        let mut places = Table::new([IMAGE, "x", "y", "width", "height", "area"]);
        let (across, down) = (width as f64, height as f64);
        for (i, subject) in subjects.iter().enumerate() {
            let share = |of: fn(&Subject) -> f64, whole: f64| {
                subject
                    .as_ref()
                    .map_or(Json::Null, |s| number(of(s) / whole))
            };
            places.push(vec![
                i.into(),
                share(|s| s.x, across),
                share(|s| s.y, down),
                share(|s| s.width, across),
                share(|s| s.height, down),
                share(|s| s.area, across * down),
            ])?;
        }
        Ok(Outputs {
            table: Arc::new(table),
            places: Arc::new(places),
        })
    }
}

fn spread(covered: &[Vec<bool>], subjects: &[Option<Subject>]) -> Result<Table, NodeError> {
    let pairs: Vec<f64> = (0..covered.len())
        .flat_map(|i| (0..i).map(move |j| (i, j)))
        .map(|(i, j)| 1.0 - overlap(&covered[i], &covered[j]))
        .collect();
    let there: Vec<&Subject> = subjects.iter().flatten().collect();
    let of = |value: fn(&Subject) -> f64| there.iter().map(|s| value(s)).collect::<Vec<f64>>();
    let size = mean(&of(|s| s.area.sqrt()));
    let centre = match (deviation(&of(|s| s.x)), deviation(&of(|s| s.y)), size) {
        (Some(x), Some(y), Some(size)) => number((x * x + y * y).sqrt() / size),
        _ => Json::Null,
    };
    let logs = |value: fn(&Subject) -> f64| deviation(&of(value)).map_or(Json::Null, number);
    let mut table = Table::new([
        "layout",
        "centre_spread",
        "area_spread",
        "aspect_spread",
        "empty",
    ]);
    table.push(vec![
        mean(&pairs).map_or(Json::Null, number),
        centre,
        logs(|s| libm::log(s.area)),
        logs(|s| libm::log(s.width / s.height)),
        (subjects.len() - there.len()).into(),
    ])?;
    for (column, text) in [
        (
            "layout",
            "mean of 1 - IoU over the pairs of a batch's masks",
        ),
        (
            "centre_spread",
            "standard deviation of the masks' centres (both directions together) over the mean root of their areas",
        ),
        (
            "area_spread",
            "standard deviation of the logarithm of the masks' areas",
        ),
        (
            "aspect_spread",
            "standard deviation of the logarithm of width over height of the masks' boxes",
        ),
        ("empty", "masks of a batch that are empty"),
    ] {
        table.define(column, text);
    }
    Ok(table)
}

/// Where the subject is; `None` where the mask is empty.
fn subject(plane: &[bool], width: usize) -> Option<Subject> {
    let (mut area, mut x, mut y) = (0.0, 0.0, 0.0);
    let (mut left, mut right, mut top, mut bottom) = (usize::MAX, 0, usize::MAX, 0);
    for at in (0..plane.len()).filter(|at| plane[*at]) {
        let (column, row) = (at % width, at / width);
        area += 1.0;
        x += column as f64 + 0.5;
        y += row as f64 + 0.5;
        (left, right) = (left.min(column), right.max(column));
        (top, bottom) = (top.min(row), bottom.max(row));
    }
    (area > 0.0).then(|| Subject {
        area,
        x: x / area,
        y: y / area,
        width: (right + 1 - left) as f64,
        height: (bottom + 1 - top) as f64,
    })
}

/// Intersection over union; two empty masks are alike.
fn overlap(a: &[bool], b: &[bool]) -> f64 {
    let (mut both, mut any) = (0usize, 0usize);
    for (a, b) in a.iter().zip(b) {
        both += usize::from(*a && *b);
        any += usize::from(*a || *b);
    }
    if any == 0 {
        1.0
    } else {
        both as f64 / any as f64
    }
}
