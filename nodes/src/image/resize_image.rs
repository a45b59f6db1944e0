//! `resize_image`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::resample::{self, Filter};
use crate::payload::image::{AlphaFacts, Colour, Image, ImageFacts, check_size, values};

/// Makes pictures larger or smaller.
///
/// The size is given by `width` and `height`, by one of them (the aspect is kept), or by `scale`. Where both are given
/// and the aspect is another, `fit` says what happens. To show the pixels of a small picture, use `scale: 4` and
/// `filter: nearest`. Masks are brought to a size by the nodes that use them, so this node takes pictures alone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeImage {
    /// The width in pixels, 1 to 8192.
    #[serde(default)]
    #[schemars(range(min = 1, max = 8192))]
    pub width: Option<usize>,
    /// The height in pixels, 1 to 8192.
    #[serde(default)]
    #[schemars(range(min = 1, max = 8192))]
    pub height: Option<usize>,
    /// The factor of both sides, in place of `width` and `height`; 2 doubles them.
    #[serde(default)]
    pub scale: Option<f64>,
    /// How pixels are made.
    #[serde(default)]
    pub filter: Filter,
    /// What happens to a picture of another aspect than `width : height`.
    #[serde(default)]
    pub fit: Fit,
    /// The colour around the picture for `fit: pad`, as "#rrggbb".
    #[serde(default)]
    pub background: Colour,
}

/// How a picture of another aspect is brought to a size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Fit {
    /// Its sides are scaled each by its own factor.
    #[default]
    Stretch,
    /// The largest part around its centre that has the aspect is scaled.
    Crop,
    /// It is scaled as a whole, and the rest filled with `background`.
    Pad,
}

ports! {
    /// What `resize_image` takes.
    pub struct Inputs {
        /// The pictures.
        pub image: Arc<Image>,
    }
}

ports! {
    /// What `resize_image` gives.
    pub struct Outputs {
        /// The pictures in their new size.
        pub image: Arc<Image>,
    }
}

impl Node for ResizeImage {
    const OP: &'static str = "resize_image";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        let Some(facts) = inputs.facts::<ImageFacts>("image") else {
            return Ok(Types::unknown());
        };
        let (width, height) = self
            .target((facts.width, facts.height))
            .map_err(|(field, message)| vec![Fault::value(field, message)])?;
        let image = ImageFacts {
            batch: facts.batch,
            width,
            height,
        };
        let types = Types::unknown();
        Ok(match inputs.facts::<AlphaFacts>("image") {
            Some(AlphaFacts { alpha, .. }) => types.with("image", &AlphaFacts { image, alpha }),
            None => types.with("image", &image),
        })
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let image = inputs.image;
        if let Some(fault) = self.faults().into_iter().next() {
            return Err(NodeError::failed(fault.message));
        }
        let (width, height) = self
            .target(image.size())
            .map_err(|(_, message)| NodeError::failed(message))?;
        context.check_cancelled()?;
        let resized = match self.fit {
            _ if image.size() == (width, height) => return Ok(Outputs { image }),
            Fit::Stretch => resample::resize(&image, width, height, self.filter)?,
            Fit::Crop => resample::resize(
                &resample::centre_crop(&image, width, height)?,
                width,
                height,
                self.filter,
            )?,
            Fit::Pad => self.pad(&image, width, height)?,
        };
        Ok(Outputs {
            image: Arc::new(resized),
        })
    }
}

impl ResizeImage {
    /// What is wrong with the parameters whatever the picture is.
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (field, side) in [("width", self.width), ("height", self.height)] {
            if let Some(side) = side
                && let Err(message) = check_size(side, 1)
            {
                faults.push(Fault::value(field, message));
            }
        }
        if !faults.is_empty() {
            return faults;
        }
        match (self.width, self.height, self.scale) {
            (None, None, None) => faults.push(
                Fault::value("scale", "`resize_image` needs a size")
                    .help("give `width`, `height` or both, or `scale: 2`"),
            ),
            (None, None, Some(scale)) => {
                if !(scale.is_finite() && scale > 0.0) {
                    faults.push(
                        Fault::value(
                            "scale",
                            format!("`scale` is {scale}; it is a number above 0"),
                        )
                        .help("`scale: 2` doubles both sides, `scale: 0.5` halves them"),
                    );
                }
            }
            (_, _, Some(_)) => faults.push(
                Fault::value(
                    "scale",
                    "`scale` cannot be given together with `width` or `height`",
                )
                .help("leave one of them out"),
            ),
            (Some(width), Some(height), None) => {
                if let Err(message) = check_size(width, height) {
                    faults.push(Fault::value("width", message));
                }
            }
            (Some(_), None, None) | (None, Some(_), None) => {}
        }
        if self.fit != Fit::Stretch && (self.width.is_none() || self.height.is_none()) {
            let fit = if self.fit == Fit::Crop { "crop" } else { "pad" };
            faults.push(
                Fault::value(
                    "fit",
                    format!("`fit: {fit}` needs both `width` and `height`"),
                )
                .help("give both, or leave `fit` out: with one of them the aspect is kept anyway"),
            );
        }
        faults
    }

    /// The new size of a picture of `size` (width, height), or the parameter at fault and why.
    fn target(&self, size: (usize, usize)) -> Result<(usize, usize), (&'static str, String)> {
        // A side is at least one pixel; a float's `as usize` saturates, and what is too large is refused below.
        let times = |side: usize, factor: f64| ((side as f64 * factor).round() as usize).max(1);
        // In integers, so that the same aspect never falls on different sides of a half.
        let aspect = |side: usize, by: usize, of: usize| ((2 * side * by + of) / (2 * of)).max(1);
        let (width, height) = (size.0.max(1), size.1.max(1));
        let (field, target) = match (self.width, self.height, self.scale) {
            (Some(across), Some(down), _) => ("width", (across, down)),
            (Some(across), None, _) => ("width", (across, aspect(height, across, width))),
            (None, Some(down), _) => ("height", (aspect(width, down, height), down)),
            (None, None, Some(factor)) => ("scale", (times(width, factor), times(height, factor))),
            (None, None, None) => ("scale", size),
        };
        check_size(target.0, target.1).map_err(|message| {
            (
                field,
                format!("a picture of {width}x{height} would become too large: {message}"),
            )
        })?;
        Ok(target)
    }

    /// The pictures as large as they fit, in the middle of `background`.
    fn pad(&self, image: &Image, width: usize, height: usize) -> Result<Image, NodeError> {
        let (across, down) = image.size();
        let rounded = |side: usize, by: usize, of: usize| ((2 * side * by + of) / (2 * of)).max(1);
        let inner = if across * height > down * width {
            (width, rounded(down, width, across).min(height))
        } else {
            (rounded(across, height, down).min(width), height)
        };
        let resized = resample::resize(image, inner.0, inner.1, self.filter)?;
        let (left, above) = ((width - inner.0) / 2, (height - inner.1) / 2);
        let lay = |ground: &[f32], planes: &[f32]| -> Vec<f32> {
            let mut laid = Vec::with_capacity(planes.len() / (inner.0 * inner.1) * width * height);
            for (index, plane) in planes.chunks_exact(inner.0 * inner.1).enumerate() {
                let start = laid.len();
                laid.resize(start + width * height, ground[index % ground.len()]);
                for (row, pixels) in plane.chunks_exact(inner.0).enumerate() {
                    let place = start + (above + row) * width + left;
                    laid[place..place + inner.0].copy_from_slice(pixels);
                }
            }
            laid
        };
        let rgb = lay(&self.background.rgb(), &values(&resized.rgb)?);
        // The ground is opaque.
        let alpha = match &resized.alpha {
            None => None,
            Some(alpha) => Some(lay(&[1.0], &values(alpha)?)),
        };
        Image::from_planes(image.batch(), width, height, rgb, alpha)
    }
}
