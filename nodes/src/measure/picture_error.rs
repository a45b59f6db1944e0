//! `picture_error`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::measure::{IMAGE, number};
use crate::payload::Table;
use crate::payload::image::{Image, ImageFacts, values};

/// The window of SSIM: a Gaussian of this many pixels and this standard deviation (Wang et al. 2004).
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
/// Its constants, for values in 0..=1: (0.01)^2 and (0.03)^2.
const C1: f64 = 0.0001;
const C2: f64 = 0.0009;
/// The weights of the scales of MS-SSIM (Wang et al. 2003).
const SCALES: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/// Measures how far pictures are from others, pixel by pixel: PSNR, SSIM and multi-scale SSIM.
///
/// `psnr` is -10 log10 of the mean squared error of red, green and blue in 0..=1, in decibels; equal pictures have none (left empty).
/// `ssim` is the mean over the pixels and colours of Wang et al.'s index (2004) with a Gaussian window of 11 pixels, sigma 1.5, where the
/// window lies inside; `ms_ssim` its product over five scales (2003), for pictures of at least 161 pixels a side. One of `to`
/// serves every picture.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PictureError {}

ports! {
    /// What `picture_error` takes.
    pub struct Inputs {
        /// The pictures.
        pub image: Arc<Image>,
        /// What they should be: as many, or one for all, of the same size.
        pub to: Arc<Image>,
    }
}

ports! {
    /// What `picture_error` gives.
    pub struct Outputs {
        /// A row for each picture: `image`, `psnr`, `ssim`, `ms_ssim`.
        pub table: Arc<Table>,
    }
}

impl Node for PictureError {
    const OP: &'static str = "picture_error";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        if let (Some(own), Some(to)) = (
            inputs.facts::<ImageFacts>("image"),
            inputs.facts::<ImageFacts>("to"),
        ) && let Some(message) = misfit(own, to)
        {
            return Err(vec![
                Fault::mismatch("to", message)
                    .help("bring one to the other's size with `resize_image`"),
            ]);
        }
        Ok(Types::unknown())
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let (image, to) = (&inputs.image, &inputs.to);
        if let Some(message) = misfit(image.facts(), to.facts()) {
            return Err(NodeError::failed(message)
                .help("bring one to the other's size with `resize_image`"));
        }
        let mut table = Table::new([IMAGE, "psnr", "ssim", "ms_ssim"]);
        for i in 0..image.batch() {
            context.check_cancelled()?;
            let other = to.select(if to.batch() == 1 { 0 } else { i })?;
            let error = Errors::between(&image.select(i)?, &other)?;
            let cell = |value: Option<f64>| value.map_or(Json::Null, number);
            table.push(vec![
                i.into(),
                cell(error.psnr),
                cell(error.ssim),
                cell(error.ms_ssim),
            ])?;
        }
        table.define(
            "psnr",
            "-10 log10 of the mean squared error of red, green and blue, in decibels",
        );
        table.define(
            "ssim",
            "SSIM (Wang et al. 2004), Gaussian window of 11 pixels, mean over colours",
        );
        table.define(
            "ms_ssim",
            "multi-scale SSIM (Wang et al. 2003), five scales",
        );
        Ok(Outputs {
            table: Arc::new(table),
        })
    }
}

/// Why pictures cannot be compared pixel by pixel.
pub(super) fn misfit(own: ImageFacts, to: ImageFacts) -> Option<String> {
    if (own.width, own.height) != (to.width, to.height) {
        return Some(format!(
            "pictures of {}x{} pixels and of {}x{} cannot be compared pixel by pixel",
            own.width, own.height, to.width, to.height
        ));
    }
    (to.batch != 1 && to.batch != own.batch).then(|| {
        format!(
            "{} pictures cannot be compared with {}",
            own.batch, to.batch
        )
    })
}

/// How far two pictures are from each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Errors {
    /// In decibels; `None` of equal pictures.
    pub psnr: Option<f64>,
    /// `None` of pictures with a side below 11 pixels.
    pub ssim: Option<f64>,
    /// `None` of pictures with a side below 161 pixels.
    pub ms_ssim: Option<f64>,
}

impl Errors {
    /// The errors between two single pictures of one size.
    ///
    /// # Errors
    /// When candle fails, or the sizes differ.
    pub fn between(a: &Image, b: &Image) -> Result<Self, NodeError> {
        if let Some(message) = misfit(a.facts(), b.facts()) {
            return Err(NodeError::failed(message));
        }
        let (width, height) = a.size();
        let wide = |image: &Image| -> Result<Vec<f64>, NodeError> {
            Ok(values(&image.rgb)?.into_iter().map(f64::from).collect())
        };
        let (mut x, mut y) = (wide(a)?, wide(b)?);
        let squares: f64 = x.iter().zip(&y).map(|(x, y)| (x - y) * (x - y)).sum();
        let squared = squares / x.len() as f64;
        let psnr = (squared > 0.0).then(|| -10.0 * libm::log10(squared));
        let (mut across, mut down) = (width, height);
        if across.min(down) < WINDOW {
            return Ok(Self {
                psnr,
                ssim: None,
                ms_ssim: None,
            });
        }
        let kernel = gaussian();
        let first = similarity(&x, &y, across, &kernel);
        let ssim = first.iter().map(|(whole, _)| whole).sum::<f64>() / first.len() as f64;
        // Four halvings leave a window: (11 - 1) * 16 pixels are too few.
        if across.min(down) <= (WINDOW - 1) << (SCALES.len() - 1) {
            return Ok(Self {
                psnr,
                ssim: Some(ssim),
                ms_ssim: None,
            });
        }
        let channels = first.len();
        let mut products = vec![1f64; channels];
        let mut at = first;
        for (scale, weight) in SCALES.iter().enumerate() {
            let is_last = scale + 1 == SCALES.len();
            for (product, (whole, contrast)) in products.iter_mut().zip(&at) {
                let value = if is_last { whole } else { contrast };
                // A negative index has no root.
                *product *= libm::pow(value.max(0.0), *weight);
            }
            if !is_last {
                let (halved, size) = halve(&x, across, down);
                x = halved;
                y = halve(&y, across, down).0;
                (across, down) = size;
                at = similarity(&x, &y, across, &kernel);
            }
        }
        Ok(Self {
            psnr,
            ssim: Some(ssim),
            ms_ssim: Some(products.iter().sum::<f64>() / channels as f64),
        })
    }
}

fn gaussian() -> Vec<f64> {
    let middle = (WINDOW / 2) as f64;
    let weights: Vec<f64> = (0..WINDOW)
        .map(|i| libm::exp(-(i as f64 - middle).powi(2) / (2.0 * SIGMA * SIGMA)))
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// The plane under the window, where it lies inside.
fn smooth(plane: &[f64], width: usize, kernel: &[f64]) -> Vec<f64> {
    let rows = plane.len() / width;
    let (across, down) = (width + 1 - WINDOW, rows + 1 - WINDOW);
    let lines: Vec<f64> = plane
        .chunks_exact(width)
        .flat_map(|line| {
            line.windows(WINDOW)
                .map(|part| part.iter().zip(kernel).map(|(v, k)| v * k).sum::<f64>())
        })
        .collect();
    (0..across * down)
        .map(|at| {
            let column = lines[at..].iter().step_by(across);
            column.zip(kernel).map(|(v, k)| v * k).sum()
        })
        .collect()
}

/// SSIM and its contrast and structure alone, for each colour.
fn similarity(x: &[f64], y: &[f64], width: usize, kernel: &[f64]) -> Vec<(f64, f64)> {
    let area = x.len() / 3;
    (x.chunks_exact(area))
        .zip(y.chunks_exact(area))
        .map(|(x, y)| {
            let product = |a: &[f64], b: &[f64]| {
                let ab: Vec<f64> = a.iter().zip(b).map(|(a, b)| a * b).collect();
                smooth(&ab, width, kernel)
            };
            let (mx, my) = (smooth(x, width, kernel), smooth(y, width, kernel));
            let (xx, yy, xy) = (product(x, x), product(y, y), product(x, y));
            let (mut whole, mut contrast) = (0.0, 0.0);
            for i in 0..mx.len() {
                let (a, b) = (mx[i], my[i]);
                let covariance = xy[i] - a * b;
                let variances = xx[i] - a * a + yy[i] - b * b;
                let cs = (2.0 * covariance + C2) / (variances + C2);
                contrast += cs;
                whole += (2.0 * a * b + C1) / (a * a + b * b + C1) * cs;
            }
            (whole / mx.len() as f64, contrast / mx.len() as f64)
        })
        .collect()
}

/// Means of two by two pixels. An odd side has a line of zeros before its first, which count (as pytorch-msssim pads).
fn halve(planes: &[f64], width: usize, height: usize) -> (Vec<f64>, (usize, usize)) {
    let (odd_x, odd_y) = (width % 2, height % 2);
    let (across, down) = (
        (width + 2 * odd_x - 2) / 2 + 1,
        (height + 2 * odd_y - 2) / 2 + 1,
    );
    let mut made = Vec::with_capacity(3 * across * down);
    for plane in planes.chunks_exact(width * height) {
        for at in 0..across * down {
            let mut sum = 0.0;
            for part in 0..4 {
                let x = (at % across * 2 + part % 2).wrapping_sub(odd_x);
                let y = (at / across * 2 + part / 2).wrapping_sub(odd_y);
                if x < width && y < height {
                    sum += plane[y * width + x];
                }
            }
            made.push(sum / 4.0);
        }
    }
    (made, (across, down))
}
