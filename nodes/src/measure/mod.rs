//! Measuring: what networks see in pictures and texts, how alike that is, how pictures are laid out, and the report of it all.
//! docs/measuring.md defines every number.

mod backbone;
pub mod diversity;
pub mod image_features;
mod input;
pub mod layout;
pub mod look;
pub mod lpips;
pub mod picture_error;
pub mod prompt_score;
pub mod report;
mod scorer;
pub mod scores;
pub mod similarity;
pub mod text_features;

pub use diversity::Diversity;
pub use image_features::ImageFeatures;
pub use layout::MeasureLayout;
pub use look::MeasureLook;
pub use lpips::MeasureLpips;
pub use picture_error::PictureError;
pub use prompt_score::PromptScore;
pub use report::MakeReport;
pub use scores::Scores;
pub use similarity::Similarity;
pub use text_features::TextFeatures;

use serde_json::Value as Json;

/// The column that says which picture of a batch a row is of, from 0.
pub const IMAGE: &str = "image";

/// A number as a table has it: nothing where it is not finite.
fn number(value: f64) -> Json {
    serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number)
}

/// The mean of numbers; `None` of none.
fn mean(values: &[f64]) -> Option<f64> {
    match values.len() {
        0 => None,
        count => Some(values.iter().sum::<f64>() / count as f64),
    }
}

/// The standard deviation of numbers over n - 1; `None` of fewer than two.
fn deviation(values: &[f64]) -> Option<f64> {
    let middle = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}
