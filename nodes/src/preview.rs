//! Latents as pictures: by the VAE, or by the linear map that comes closest to it; and a sampler's states as previews.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use retouch_graph::{Context, NodeError, Quality, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chain::linear_map_key;
use crate::image::resample::{Filter, resize};
use crate::latent::decode;
use crate::payload::image::MAX_PIXELS;
use crate::payload::{ColourMap, Image};
use crate::runtime::{Reports, Runtime, tensor_error};
use retouch_diffusion::Result as NetworkResult;
use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::networks::preview::LinearMap;
use retouch_diffusion::networks::tiles::Tiled;
use retouch_diffusion::sampling::Monitor;

/// The name of the one value under a linear map's key.
const MAP: &str = "map";
/// The most pictures of a batch that a preview shows.
const MOST: usize = 16;

/// How latents become pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum By {
    /// By a linear map that is fitted to the model's VAE: blurred, true in its colours, at almost no cost.
    #[default]
    Linear,
    /// By the VAE itself, as `decode` does by default: about as much work for each picture as `decode` takes.
    Vae,
}

/// The map from latents to colours of a model's VAE: fitted once, and kept in the cache for every model with that VAE.
fn linear_map(model: &Checkpoint, context: &Context<'_>) -> Result<Arc<LinearMap>, NodeError> {
    let runtime = Runtime::of(context)?;
    let key = model
        .vae_id()
        .map(|id| linear_map_key(id, &runtime.numerics()));
    let channels = model.description().facts().latent_channels;
    let (mut fitted, start) = (false, Instant::now());
    let map = model.linear_map(|| {
        let known = key.and_then(|key| context.kept::<ColourMap>(&key, MAP));
        let known = known.filter(|known| known.0.channels() == channels);
        fitted = known.is_none();
        Some(known?.0.clone())
    })?;
    if fitted && let Some(key) = key {
        let kept = Arc::new(ColourMap(LinearMap::clone(&map)));
        context.keep(key, MAP, kept, start.elapsed().as_secs_f64());
    }
    Ok(map)
}

/// The map from latents to colours of a model's VAE, if it is kept: nothing is fitted.
pub(crate) fn known_map(
    model: &Checkpoint,
    context: &Context<'_>,
) -> Result<Option<Arc<ColourMap>>, NodeError> {
    let runtime = Runtime::of(context)?;
    let channels = model.description().facts().latent_channels;
    let key = (model.vae_id()).map(|id| linear_map_key(id, &runtime.numerics()));
    let known = key.and_then(|key| context.kept::<ColourMap>(&key, MAP));
    Ok(known.filter(|known| known.0.channels() == channels))
}

/// Pictures, as large as the VAE makes them, of latents `[B, C, h, w]`.
///
/// # Errors
/// When the model's VAE cannot be read or fails.
pub(crate) fn pictures(
    model: &Checkpoint,
    latents: &Tensor,
    by: By,
    context: &Context<'_>,
) -> Result<Image, NodeError> {
    match by {
        By::Vae => Image::new(decode(model, latents, Tiled::Auto)?, None),
        By::Linear => {
            let small = Image::new(linear_map(model, context)?.apply(latents)?, None)?;
            let factor = model.description().facts().factor;
            let (width, height) = small.size();
            resize(&small, width * factor, height * factor, Filter::Bilinear)
        }
    }
}

/// One picture of the pictures of a batch: rows of them that are about as many as its columns, black where none is left.
fn sheet(image: &Image) -> Result<Image, NodeError> {
    let count = image.batch();
    if count <= 1 {
        return Ok(image.clone());
    }
    let columns = (1..=count).find(|n| n * n >= count).unwrap_or(count);
    let rows = count.div_ceil(columns);
    let side = || -> candle_core::Result<Tensor> {
        let missing = rows * columns - count;
        let (_, channels, height, width) = image.rgb.dims4()?;
        let nothing = Tensor::zeros(
            (missing, channels, height, width),
            image.rgb.dtype(),
            image.rgb.device(),
        )?;
        let all = match missing {
            0 => image.rgb.clone(),
            _ => Tensor::cat(&[&image.rgb, &nothing], 0)?,
        };
        all.reshape((rows, columns, channels, height, width))?
            .permute((2, 0, 3, 1, 4))?
            .reshape((1, channels, rows * height, columns * width))
    };
    Image::new(side().map_err(tensor_error)?, None)
}

/// Reports what a sampler does, and shows its states to whoever wants to see them.
pub(crate) struct Previews<'a> {
    reports: &'a Reports<'a>,
    model: &'a Checkpoint,
}

impl<'a> Previews<'a> {
    /// Shows the states with the VAE of `model`.
    pub(crate) fn new(reports: &'a Reports<'a>, model: &'a Checkpoint) -> Self {
        Self { reports, model }
    }

    fn picture(&self, z: &Tensor, quality: Quality) -> Result<Value, NodeError> {
        let by = match quality {
            Quality::Quick => By::Linear,
            Quality::Exact => By::Vae,
        };
        let (batch, _, height, width) = z.dims4().map_err(tensor_error)?;
        let area = height * width * self.model.description().facts().factor.pow(2);
        let most = MOST.min(MAX_PIXELS / area.max(1)).max(1);
        let shown = z.narrow(0, 0, batch.min(most)).map_err(tensor_error)?;
        let pictures = pictures(self.model, &shown, by, self.reports.0)?;
        Ok(Value::new(sheet(&pictures)?))
    }
}

impl Monitor for Previews<'_> {
    fn step(&self, done: usize, total: usize) -> NetworkResult<()> {
        self.reports.step(done, total)
    }
    fn unet_calls(&self, images: usize) {
        self.reports.unet_calls(images);
    }
    fn warn(&self, message: &str) {
        self.reports.warn(message);
    }
    fn drawn(&self, done: usize, total: usize, z: &Tensor) {
        self.reports
            .0
            .preview(done, total, |quality| self.picture(z, quality));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pictures_of_a_batch_stand_side_by_side_and_what_is_left_is_black() {
        // Five pictures of 2x1 pixels, number n being of the colour n / 10.
        let pixels: Vec<f32> = (1..=5).flat_map(|n| [n as f32 / 10.0; 6]).collect();
        let five = Image::from_planes(5, 2, 1, pixels, None).unwrap();
        let sheet = sheet(&five).unwrap();
        assert_eq!((sheet.batch(), sheet.size()), (1, (6, 2)));
        let red: Vec<u8> = sheet.to_rgb8(0).unwrap().into_iter().step_by(3).collect();
        assert_eq!(red, [26, 26, 51, 51, 77, 77, 102, 102, 128, 128, 0, 0]);
    }
}
