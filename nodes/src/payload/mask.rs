//! Masks: which part of a picture is the subject.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use image::ExtendedColorType;
use retouch_graph::{NodeError, Payload};
use safetensors::tensor::{Dtype, TensorView};

use crate::payload::image::{
    Image, ImageFacts, describe, on_cpu, tensor_failed, to_byte, unknown_format, values, write_png,
};
use crate::payload::planes;
use crate::payload::tensors::{self, Packed};

/// The name of the one tensor in a mask's safetensors file.
const TENSOR: &str = "mask";

/// A batch of masks of one size, on the CPU: 1 is the subject, 0 is not.
#[derive(Clone, Debug)]
pub struct Mask {
    /// The masks: `[B, H, W]`, f32 in 0..=1.
    pub plane: Tensor,
}

impl Mask {
    /// Makes masks of a tensor `[B, H, W]`, moved to the CPU as f32 if it is not.
    ///
    /// # Errors
    /// When the shape is another, or the tensor is empty.
    pub fn new(plane: Tensor) -> Result<Self, NodeError> {
        if plane.rank() != 3 || plane.elem_count() == 0 {
            return Err(NodeError::failed(format!(
                "a mask is a tensor [batch, height, width] and not empty; this one is {:?}",
                plane.dims()
            )));
        }
        Ok(Self {
            plane: on_cpu(&plane)?,
        })
    }

    /// Makes masks of values in the order `[B, H, W]`.
    ///
    /// # Errors
    /// When their number is not `batch * height * width`, or there are none.
    pub fn from_values(
        batch: usize,
        width: usize,
        height: usize,
        values: Vec<f32>,
    ) -> Result<Self, NodeError> {
        Self::new(
            Tensor::from_vec(values, (batch, height, width), &Device::Cpu)
                .map_err(tensor_failed)?,
        )
    }

    /// The number of masks.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.plane.dims().first().copied().unwrap_or(0)
    }

    /// The width and height of each mask in pixels.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        match *self.plane.dims() {
            [_, height, width] => (width, height),
            _ => (0, 0),
        }
    }

    /// The number and size as facts for checks.
    #[must_use]
    pub fn facts(&self) -> ImageFacts {
        let (width, height) = self.size();
        ImageFacts {
            batch: self.batch(),
            width,
            height,
        }
    }

    /// Mask `index` alone, as a batch of one.
    ///
    /// # Errors
    /// When there is no such mask.
    pub fn select(&self, index: usize) -> Result<Self, NodeError> {
        Self::new(self.plane.narrow(0, index, 1).map_err(tensor_failed)?)
    }

    /// The values in the order `[B, H, W]`.
    ///
    /// # Errors
    /// When candle fails.
    pub fn values(&self) -> Result<Vec<f32>, NodeError> {
        values(&self.plane)
    }

    /// The masks as pictures, white on black.
    ///
    /// # Errors
    /// When candle fails.
    pub fn to_image(&self) -> Result<Image, NodeError> {
        let (batch, (width, height)) = (self.batch(), self.size());
        let rgb = self
            .plane
            .unsqueeze(1)
            .and_then(|plane| plane.broadcast_as((batch, 3, height, width)))
            .map_err(tensor_failed)?;
        Image::new(rgb, None)
    }

    /// The largest part around the centre that has the aspect `width : height`, as [`centre_crop`](crate::image::resample::centre_crop) takes it
    /// of the picture.
    ///
    /// # Errors
    /// When `width` or `height` is 0.
    pub fn crop_to_aspect(&self, width: usize, height: usize) -> Result<Self, NodeError> {
        let crop = planes::crop_box(self.size(), (width, height))?;
        let plane = self
            .plane
            .narrow(1, crop.y, crop.height)
            .and_then(|plane| plane.narrow(2, crop.x, crop.width))
            .map_err(tensor_failed)?;
        Self::new(plane)
    }

    /// The masks on a grid of `height` rows and `width` columns: every cell is the mean of the pixels under it, partly
    /// covered ones by their share. Sums are in f64.
    ///
    /// # Errors
    /// When `height` or `width` is 0.
    pub fn area_average(&self, height: usize, width: usize) -> Result<Self, NodeError> {
        if width == 0 || height == 0 {
            return Err(NodeError::failed(format!(
                "a mask cannot be averaged to {width}x{height} cells"
            )));
        }
        let size = self.size();
        let averaged = self
            .values()?
            .chunks_exact(size.0 * size.1)
            .flat_map(|plane| planes::area_average(plane, size, (width, height)))
            .collect();
        Self::from_values(self.batch(), width, height, averaged)
    }

    /// Where the masks cover a grid of so many columns and rows, 1 or 0: cropped to its aspect, cut at a half, and the nearest
    /// pixel of each cell, as torch's `interpolate` takes it (index floor(i * pixels / cells)).
    ///
    /// # Errors
    /// When `width` or `height` is 0.
    pub fn covered(&self, width: usize, height: usize) -> Result<Self, NodeError> {
        let cropped = self.crop_to_aspect(width, height)?;
        let size = cropped.size();
        let values = cropped.values()?;
        let mut cut = Vec::with_capacity(self.batch() * width * height);
        for plane in values.chunks_exact(size.0 * size.1) {
            for row in 0..height {
                let line = row * size.1 / height * size.0;
                cut.extend((0..width).map(|column| {
                    let value = plane[line + column * size.0 / width];
                    if value >= 0.5 { 1.0 } else { 0.0 }
                }));
            }
        }
        Self::from_values(self.batch(), width, height, cut)
    }

    fn to_safetensors(&self) -> Result<Vec<u8>, NodeError> {
        let bytes: Vec<u8> = self
            .values()?
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let failed = |error| NodeError::failed(format!("the mask cannot be written: {error}"));
        let view =
            TensorView::new(Dtype::F32, self.plane.dims().to_vec(), &bytes).map_err(failed)?;
        safetensors::serialize(HashMap::from([(TENSOR, view)]), None).map_err(failed)
    }

    fn to_pngs(&self) -> Result<Vec<Vec<u8>>, NodeError> {
        let (width, height) = self.size();
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        self.values()?
            .chunks_exact(width * height)
            .map(|plane| {
                let pixels: Vec<u8> = plane.iter().map(|value| to_byte(*value)).collect();
                let mut file = Vec::new();
                write_png(
                    &mut file,
                    &pixels,
                    side(width),
                    side(height),
                    ExtendedColorType::L8,
                )
                .map_err(|error| {
                    NodeError::failed(format!(
                        "a mask of {width}x{height} pixels cannot be written as .png: {error}"
                    ))
                })?;
                Ok(file)
            })
            .collect()
    }
}

impl Payload for Mask {
    const TYPE: &'static str = "mask";
    const FORMATS: &'static [&'static str] = &["png", "safetensors"];

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(tensors::pack(&[(TENSOR, &self.plane)], HashMap::new()))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        Self::new(Packed::read(bytes)?.take(TENSOR)?)
    }

    fn bytes(&self) -> usize {
        self.plane.elem_count() * self.plane.dtype().size_in_bytes()
    }

    fn summary(&self) -> String {
        format!("mask {}", describe(self.facts()))
    }

    /// One 8-bit grey PNG a mask, or one safetensors file with the tensor `mask` `[B, H, W]` f32.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        match format {
            "png" => self.to_pngs(),
            "safetensors" => Ok(vec![self.to_safetensors()?]),
            _ => Err(unknown_format::<Self>(format)),
        }
    }
}
