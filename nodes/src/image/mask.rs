//! The op `mask`: masks from pictures, and masks changed.

use std::collections::VecDeque;
use std::sync::Arc;

use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, Types, Upstream, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chain::MaskNote;
use crate::payload::image::{AlphaFacts, Image, ImageFacts, MAX_SIDE, values};
use crate::payload::mask::Mask;

/// The largest `feather`: a blur this wide reaches across a picture of 4096 pixels.
const MAX_FEATHER: f64 = 512.0;

/// The blur ends at this many sigmas, where a Gaussian has fallen to 0.03 % (the usual choice, scipy's too).
const TRUNCATE: f64 = 4.0;

const NO_ALPHA: &str = "the picture has no alpha channel to make a mask of";
const NO_ALPHA_HELP: &str = "`from: luma` makes the mask of its brightness";

/// Makes a mask from a picture, or changes a mask.
///
/// Exactly one of `image` and `mask` is linked. What is asked for is done in this order: `from` takes a picture's alpha
/// channel or brightness, `invert` swaps subject and rest, `threshold` makes it hard, `grow` makes the subject larger (or
/// smaller), `feather` makes its edge soft. Without parameters a mask is passed on as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeMask {
    /// What of a picture is the mask; `alpha` unless given. Not for a mask.
    #[serde(default)]
    pub from: Option<Source>,
    /// Makes 1 of 0 and 0 of 1.
    #[serde(default)]
    pub invert: bool,
    /// Makes the mask hard: 1 where it is above this number (0 to 1), 0 elsewhere. Left out, it stays soft.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    pub threshold: Option<f64>,
    /// Grows the subject by this many pixels on every side; a negative number shrinks it. The neighbourhood is a square of
    /// 2 n + 1 pixels, so corners stay corners. What lies outside the picture neither grows into it nor eats from it.
    #[serde(default)]
    #[schemars(range(min = -8192, max = 8192))]
    pub grow: i32,
    /// Blurs the edge by a Gaussian with this standard deviation in pixels (0 to 512); the border's pixels go on outside.
    #[serde(default)]
    #[schemars(range(min = 0, max = 512))]
    pub feather: f64,
}

/// What of a picture becomes a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Source {
    /// The alpha channel: what is opaque is the subject.
    #[default]
    Alpha,
    /// The brightness: 0.299 red + 0.587 green + 0.114 blue (Rec. 601).
    Luma,
    /// Everything: ones (or zeros, with `invert`), as large as the picture.
    All,
}

ports! {
    /// What `mask` takes: exactly one of the two.
    pub struct Inputs {
        /// Pictures to make masks of.
        pub image: Option<Arc<Image>>,
        /// Masks to change.
        pub mask: Option<Arc<Mask>>,
    }
}

ports! {
    /// What `mask` gives.
    pub struct Outputs {
        /// One mask for each picture or mask, of its size.
        pub mask: Arc<Mask>,
    }
}

impl Node for MakeMask {
    const OP: &'static str = "mask";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let mut faults = self.faults(inputs.is_linked("image"), inputs.is_linked("mask"));
        if self.from.unwrap_or_default() == Source::Alpha
            && let Some(AlphaFacts { alpha: false, .. }) = inputs.facts("image")
        {
            faults.push(match self.from {
                Some(_) => Fault::value("from", NO_ALPHA).help(NO_ALPHA_HELP),
                None => Fault::mismatch("image", NO_ALPHA).help(NO_ALPHA_HELP),
            });
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let facts = inputs.facts::<ImageFacts>("image");
        Ok(match facts.or_else(|| inputs.facts("mask")) {
            Some(facts) => Types::unknown().with("mask", &facts),
            None => Types::unknown(),
        })
    }

    fn chain(&self, _: &Upstream<'_>) -> Chained {
        // Growing or blurring leaves ones as they are, shrinking and thresholds below 1 too: the border goes on outside.
        let ones = self.from == Some(Source::All)
            && !self.invert
            && self.threshold.is_none_or(|threshold| threshold < 1.0);
        Chained {
            note: Some(Arc::new(MaskNote { ones })),
            ..Chained::default()
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let fault = self
            .faults(inputs.image.is_some(), inputs.mask.is_some())
            .into_iter()
            .next();
        if let Some(fault) = fault {
            return Err(NodeError::failed(fault.message));
        }
        let source = match (inputs.image, inputs.mask) {
            (Some(image), _) => from_image(&image, self.from.unwrap_or_default())?,
            (None, Some(mask)) => (*mask).clone(),
            (None, None) => return Err(NodeError::failed("nothing is linked to `mask`")),
        };
        let (width, height) = source.size();
        let mut planes = source.values()?;
        for plane in planes.chunks_exact_mut(width * height) {
            context.check_cancelled()?;
            self.change(plane, width, height);
        }
        let mask = Mask::from_values(source.batch(), width, height, planes)?;
        Ok(Outputs {
            mask: Arc::new(mask),
        })
    }
}

impl MakeMask {
    fn faults(&self, image: bool, mask: bool) -> Vec<Fault> {
        let mut faults = Vec::new();
        match (image, mask) {
            (false, false) => faults.push(
                Fault::mismatch("mask", "nothing is linked to `image` or `mask`")
                    .help("link a picture to `image`, or a mask to `mask`"),
            ),
            (true, true) => faults.push(
                Fault::mismatch("mask", "both `image` and `mask` are linked")
                    .help("leave one of them out"),
            ),
            (false, true) if self.from.is_some() => faults.push(
                Fault::value(
                    "from",
                    "`from` says what of a picture is the mask; a mask is linked",
                )
                .help("leave it out, or link a picture to `image`"),
            ),
            _ => {}
        }
        if let Some(threshold) = self.threshold
            && !(0.0..=1.0).contains(&threshold)
        {
            faults.push(
                Fault::value(
                    "threshold",
                    format!("`threshold` is {threshold}, not between 0 and 1"),
                )
                .help("0.5 is the usual choice"),
            );
        }
        if self.grow.unsigned_abs() as usize > MAX_SIDE {
            faults.push(Fault::value(
                "grow",
                format!(
                    "`grow` is {}; a picture has at most {MAX_SIDE} pixels a side",
                    self.grow
                ),
            ));
        }
        if !(0.0..=MAX_FEATHER).contains(&self.feather) {
            faults.push(
                Fault::value(
                    "feather",
                    format!("`feather` is {}, not between 0 and {MAX_FEATHER}", self.feather),
                )
                .help("it is the blur's standard deviation in pixels: 2 gives a soft edge of about 8 pixels"),
            );
        }
        faults
    }

    /// Changes one mask, in the documented order.
    fn change(&self, plane: &mut [f32], width: usize, height: usize) {
        if self.invert {
            for value in plane.iter_mut() {
                *value = 1.0 - *value;
            }
        }
        if let Some(threshold) = self.threshold {
            for value in plane.iter_mut() {
                *value = f32::from(u8::from(f64::from(*value) > threshold));
            }
        }
        if self.grow != 0 {
            let reach = self.grow.unsigned_abs() as usize;
            let higher = self.grow > 0;
            separable(plane, width, height, |line| extremes(line, reach, higher));
        }
        if self.feather > 0.0 {
            let weights = gaussian(self.feather);
            separable(plane, width, height, |line| convolve(line, &weights));
        }
    }
}

fn from_image(image: &Image, source: Source) -> Result<Mask, NodeError> {
    let (width, height) = image.size();
    let planes = match source {
        Source::Alpha => {
            let Some(alpha) = &image.alpha else {
                return Err(NodeError::failed(NO_ALPHA).help(NO_ALPHA_HELP));
            };
            values(alpha)?
        }
        Source::Luma => values(&image.rgb)?
            .chunks_exact(3 * width * height)
            .flat_map(luma)
            .collect(),
        Source::All => vec![1.0; image.batch() * width * height],
    };
    Mask::from_values(image.batch(), width, height, planes)
}

/// The brightness of planes of red, green and blue: Rec. 601's weights, summed in f64.
pub(crate) fn luma(colours: &[f32]) -> Vec<f32> {
    let area = colours.len() / 3;
    let (red, rest) = colours.split_at(area);
    let (green, blue) = rest.split_at(area);
    red.iter()
        .zip(green)
        .zip(blue)
        .map(|((red, green), blue)| {
            (0.299 * f64::from(*red) + 0.587 * f64::from(*green) + 0.114 * f64::from(*blue)) as f32
        })
        .collect()
}

/// Applies a filter of lines to the rows of a plane and then to its columns.
fn separable(plane: &mut [f32], width: usize, height: usize, filter: impl Fn(&[f64]) -> Vec<f64>) {
    let mut wide: Vec<f64> = plane.iter().copied().map(f64::from).collect();
    for row in wide.chunks_exact_mut(width) {
        let filtered = filter(row);
        row.copy_from_slice(&filtered);
    }
    let mut column = vec![0f64; height];
    for x in 0..width {
        for (y, value) in column.iter_mut().enumerate() {
            *value = wide[y * width + x];
        }
        for (y, value) in filter(&column).into_iter().enumerate() {
            plane[y * width + x] = value as f32;
        }
    }
}

/// The highest (or lowest) value within `reach` of each place of a line, places outside left out: a queue that falls (or
/// rises) from its front, so that the time does not grow with `reach`.
fn extremes(line: &[f64], reach: usize, higher: bool) -> Vec<f64> {
    let sign = if higher { 1.0 } else { -1.0 };
    let mut queue: VecDeque<usize> = VecDeque::new();
    let mut next = 0;
    (0..line.len())
        .map(|place| {
            while next < line.len() && next <= place + reach {
                while queue
                    .back()
                    .is_some_and(|back| line[*back] * sign <= line[next] * sign)
                {
                    queue.pop_back();
                }
                queue.push_back(next);
                next += 1;
            }
            while queue.front().is_some_and(|front| front + reach < place) {
                queue.pop_front();
            }
            queue.front().map_or(line[place], |front| line[*front])
        })
        .collect()
}

/// The weights of a Gaussian from its centre outwards; with both sides they add up to 1.
fn gaussian(sigma: f64) -> Vec<f64> {
    let reach = (TRUNCATE * sigma + 0.5) as usize;
    let mut weights: Vec<f64> = (0..=reach)
        .map(|place| libm::exp(-0.5 * (place as f64 / sigma) * (place as f64 / sigma)))
        .collect();
    let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
    for weight in &mut weights {
        *weight /= sum;
    }
    weights
}

/// A line under symmetric weights, its ends repeated.
fn convolve(line: &[f64], weights: &[f64]) -> Vec<f64> {
    let last = line.len() - 1;
    (0..line.len())
        .map(|place| {
            let sides = weights.iter().enumerate().skip(1).map(|(reach, weight)| {
                weight * (line[place.saturating_sub(reach)] + line[(place + reach).min(last)])
            });
            weights[0] * line[place] + sides.sum::<f64>()
        })
        .collect()
}
