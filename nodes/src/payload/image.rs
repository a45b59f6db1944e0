//! Pictures: what `load_image` reads, `decode` draws and a workflow saves.

use std::fmt;
use std::io::Cursor;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use retouch_graph::{FromValue, NodeError, Payload, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::payload::mask::Mask;
use crate::payload::tensors::{self, Packed};

/// The longest side in pixels of a picture that is read or resized to; four times what the largest models draw.
pub const MAX_SIDE: usize = 8192;

/// The most pixels of a picture that is read or resized to: 64 megapixels are 768 MB as three planes of f32.
pub const MAX_PIXELS: usize = 64_000_000;

/// JPEG quality: visually lossless for photos, and chroma is not what a contact sheet is looked at for.
const JPEG_QUALITY: u8 = 92;

/// A batch of pictures of one size, on the CPU.
///
/// The colours are those of the picture over white, so that whoever looks at `rgb` alone sees the picture as it is
/// seen on paper; `alpha`, where there is one, says how much of a pixel is the picture's own.
#[derive(Clone, Debug)]
pub struct Image {
    /// The colours: `[B, 3, H, W]`, f32 in 0..=1, sRGB as it was read or drawn, composited over white.
    pub rgb: Tensor,
    /// The coverage: `[B, 1, H, W]`, f32 in 0..=1; `None` when every pixel is opaque.
    pub alpha: Option<Tensor>,
}

/// What is known of a picture (or a mask) before anything runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// The number of pictures.
    pub batch: usize,
    /// The width of each in pixels.
    pub width: usize,
    /// The height of each in pixels.
    pub height: usize,
}

/// The facts of a picture whose producer also knows whether there is an alpha channel; reads as [`ImageFacts`] too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlphaFacts {
    /// The number of pictures and their size.
    #[serde(flatten)]
    pub image: ImageFacts,
    /// Whether the picture has an alpha channel.
    pub alpha: bool,
}

impl Image {
    /// Makes pictures of `rgb` `[B, 3, H, W]` and `alpha` `[B, 1, H, W]`, moved to the CPU as f32 if they are not.
    ///
    /// # Errors
    /// When a shape is another, or a tensor is empty.
    pub fn new(rgb: Tensor, alpha: Option<Tensor>) -> Result<Self, NodeError> {
        let (batch, channels, height, width) = rgb.dims4().map_err(|_| {
            NodeError::failed(format!(
                "a picture is a tensor [batch, 3, height, width], not {:?}",
                rgb.dims()
            ))
        })?;
        if channels != 3 || batch == 0 || height == 0 || width == 0 {
            return Err(NodeError::failed(format!(
                "a picture is a tensor [batch, 3, height, width] and not empty; this one is {:?}",
                rgb.dims()
            )));
        }
        if let Some(alpha) = &alpha
            && alpha.dims() != [batch, 1, height, width]
        {
            return Err(NodeError::failed(format!(
                "the alpha channel of a picture {:?} is {:?}, not {:?}",
                rgb.dims(),
                [batch, 1, height, width],
                alpha.dims()
            )));
        }
        Ok(Self {
            rgb: on_cpu(&rgb)?,
            alpha: alpha.as_ref().map(on_cpu).transpose()?,
        })
    }

    /// Makes one picture of `width * height` pixels of three bytes, row by row.
    ///
    /// # Errors
    /// When `pixels` does not hold `3 * width * height` bytes or the picture is empty.
    pub fn from_rgb8(width: usize, height: usize, pixels: &[u8]) -> Result<Self, NodeError> {
        if pixels.len() != 3 * width * height || pixels.is_empty() {
            return Err(NodeError::failed(format!(
                "a picture of {width}x{height} pixels has {} bytes, not {}",
                3 * width * height,
                pixels.len()
            )));
        }
        let mut planes = vec![0f32; pixels.len()];
        let area = width * height;
        for (index, pixel) in pixels.chunks_exact(3).enumerate() {
            for (channel, value) in pixel.iter().enumerate() {
                planes[channel * area + index] = f32::from(*value) / 255.0;
            }
        }
        Self::from_planes(1, width, height, planes, None)
    }

    /// Makes pictures of their planes: `rgb` in the order `[B, 3, H, W]`, `alpha` in the order `[B, 1, H, W]`.
    pub(crate) fn from_planes(
        batch: usize,
        width: usize,
        height: usize,
        rgb: Vec<f32>,
        alpha: Option<Vec<f32>>,
    ) -> Result<Self, NodeError> {
        let rgb = Tensor::from_vec(rgb, (batch, 3, height, width), &Device::Cpu);
        let alpha = alpha
            .map(|alpha| Tensor::from_vec(alpha, (batch, 1, height, width), &Device::Cpu))
            .transpose();
        Self::new(rgb.map_err(tensor_failed)?, alpha.map_err(tensor_failed)?)
    }

    /// The number of pictures.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.rgb.dims().first().copied().unwrap_or(0)
    }

    /// The width and height of each picture in pixels.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        match *self.rgb.dims() {
            [_, _, height, width] => (width, height),
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

    /// Picture `index` alone, as a batch of one.
    ///
    /// # Errors
    /// When there is no such picture.
    pub fn select(&self, index: usize) -> Result<Self, NodeError> {
        let one = |tensor: &Tensor| tensor.narrow(0, index, 1).map_err(tensor_failed);
        Self::new(one(&self.rgb)?, self.alpha.as_ref().map(one).transpose()?)
    }

    /// Picture `index` as three bytes a pixel, row by row: `round(255 x)` after clamping to 0..=1.
    ///
    /// # Errors
    /// When there is no such picture.
    pub fn to_rgb8(&self, index: usize) -> Result<Vec<u8>, NodeError> {
        let one = self.select(index)?;
        let (width, height) = one.size();
        Ok(interleave(&values(&one.rgb)?, width * height))
    }

    /// Picture `index` as four bytes a pixel, red, green, blue and alpha not multiplied; shown over white it is
    /// [`Image::to_rgb8`].
    fn to_rgba8(&self, index: usize) -> Result<Option<Vec<u8>>, NodeError> {
        let one = self.select(index)?;
        let Some(alpha) = &one.alpha else {
            return Ok(None);
        };
        let (width, height) = one.size();
        let area = width * height;
        let alpha = values(alpha)?;
        let mut planes = values(&one.rgb)?;
        // `rgb` is a * colour + (1 - a): solved for the colour, which where nothing is covered is of no account.
        for (place, value) in planes.iter_mut().enumerate() {
            let a = alpha[place % area].clamp(0.0, 1.0);
            *value = if a > 0.0 {
                (*value - (1.0 - a)) / a
            } else {
                1.0
            };
        }
        planes.extend(alpha);
        Ok(Some(interleave(&planes, area)))
    }

    fn encode_one(&self, index: usize, format: &str) -> Result<Vec<u8>, NodeError> {
        let (width, height) = self.size();
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let (width, height) = (side(width), side(height));
        let transparent = match format {
            "png" | "webp" => self.to_rgba8(index)?,
            _ => None,
        };
        let (pixels, colours) = match transparent {
            Some(pixels) => (pixels, ExtendedColorType::Rgba8),
            None => (self.to_rgb8(index)?, ExtendedColorType::Rgb8),
        };
        let mut file = Vec::new();
        let written = match format {
            "png" => write_png(&mut file, &pixels, width, height, colours),
            "jpg" | "jpeg" => JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY)
                .write_image(&pixels, width, height, colours),
            "webp" => {
                WebPEncoder::new_lossless(&mut file).write_image(&pixels, width, height, colours)
            }
            _ => return Err(unknown_format::<Self>(format)),
        };
        written.map_err(|error| {
            NodeError::failed(format!(
                "a picture of {width}x{height} pixels cannot be written as .{format}: {error}"
            ))
            .help("write it as .png, or make it smaller with `resize_image`")
        })?;
        Ok(file)
    }
}

impl Payload for Image {
    const TYPE: &'static str = "image";
    const FORMATS: &'static [&'static str] = &["png", "jpg", "jpeg", "webp"];

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        let mut planes = vec![("rgb", &self.rgb)];
        planes.extend(self.alpha.as_ref().map(|alpha| ("alpha", alpha)));
        Some(tensors::pack(&planes, std::collections::HashMap::new()))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        Self::new(packed.take("rgb")?, packed.tensors.remove("alpha"))
    }

    fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        bytes(&self.rgb) + self.alpha.as_ref().map_or(0, bytes)
    }

    fn summary(&self) -> String {
        let alpha = if self.alpha.is_some() {
            ", with alpha"
        } else {
            ""
        };
        format!("image {}{alpha}", describe(self.facts()))
    }

    /// One file a picture: 8-bit PNG or lossless WebP with alpha where there is one, or JPEG of quality 92.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        (0..self.batch())
            .map(|index| self.encode_one(index, format))
            .collect()
    }
}

/// A picture or a mask, for ports that take either.
#[derive(Clone, Debug)]
pub enum ImageOrMask {
    /// Pictures.
    Image(Arc<Image>),
    /// Masks.
    Mask(Arc<Mask>),
}

impl ImageOrMask {
    /// The number of pictures or masks.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.facts().batch
    }

    /// The number and size as facts for checks.
    #[must_use]
    pub fn facts(&self) -> ImageFacts {
        match self {
            Self::Image(image) => image.facts(),
            Self::Mask(mask) => mask.facts(),
        }
    }

    /// Number `index` as a picture: a mask becomes white on black.
    ///
    /// # Errors
    /// When there is no such picture.
    pub fn picture(&self, index: usize) -> Result<Image, NodeError> {
        match self {
            Self::Image(image) => image.select(index),
            Self::Mask(mask) => mask.select(index)?.to_image(),
        }
    }
}

impl FromValue for ImageOrMask {
    const TYPES: &'static [&'static str] = &[Image::TYPE, Mask::TYPE];

    fn from_value(value: &Value) -> Option<Self> {
        value
            .downcast::<Image>()
            .map(Self::Image)
            .or_else(|| value.downcast::<Mask>().map(Self::Mask))
    }

    fn into_value(self) -> Value {
        match self {
            Self::Image(image) => Value::from_arc(image),
            Self::Mask(mask) => Value::from_arc(mask),
        }
    }
}

/// A colour, written `"#rrggbb"` in a workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Colour(pub [u8; 3]);

impl Colour {
    /// White.
    pub const WHITE: Self = Self([255, 255, 255]);

    /// Red, green and blue in 0..=1.
    #[must_use]
    pub fn rgb(self) -> [f32; 3] {
        self.0.map(|value| f32::from(value) / 255.0)
    }
}

impl Default for Colour {
    fn default() -> Self {
        Self::WHITE
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}

impl From<Colour> for String {
    fn from(colour: Colour) -> Self {
        colour.to_string()
    }
}

impl TryFrom<String> for Colour {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text
            .strip_prefix('#')
            .filter(|digits| digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match number {
            Some(number) => {
                let [_, red, green, blue] = number.to_be_bytes();
                Ok(Self([red, green, blue]))
            }
            None => Err(format!(
                "`{text}` is not a colour; write it as \"#rrggbb\" (in quotes), \"#ffffff\" for white"
            )),
        }
    }
}

impl JsonSchema for Colour {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Colour".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^#[0-9a-fA-F]{6}$"})
    }
}

/// Whether a picture of this size may be read or made; the text says why not.
pub(crate) fn check_size(width: usize, height: usize) -> Result<(), String> {
    if width == 0 || height == 0 {
        Err(format!("{width}x{height} is not a valid picture size"))
    } else if width > MAX_SIDE || height > MAX_SIDE {
        Err(format!(
            "{width}x{height} pixels are too many: a side has at most {MAX_SIDE}"
        ))
    } else if width * height > MAX_PIXELS {
        Err(format!(
            "{width}x{height} pixels are too many: a picture has at most {} megapixels",
            MAX_PIXELS / 1_000_000
        ))
    } else {
        Ok(())
    }
}

/// `64x64`, and the batch if it is not one.
pub(crate) fn describe(facts: ImageFacts) -> String {
    let ImageFacts {
        batch,
        width,
        height,
    } = facts;
    if batch == 1 {
        format!("{width}x{height}")
    } else {
        format!("{width}x{height}, batch of {batch}")
    }
}

/// A tensor's values in order.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>, NodeError> {
    tensor
        .flatten_all()
        .and_then(|flat| flat.to_vec1::<f32>())
        .map_err(tensor_failed)
}

/// A tensor as f32 in the CPU's memory.
pub(crate) fn on_cpu(tensor: &Tensor) -> Result<Tensor, NodeError> {
    tensor
        .to_device(&Device::Cpu)
        .and_then(|tensor| tensor.to_dtype(DType::F32))
        .and_then(|tensor| tensor.contiguous())
        .map_err(tensor_failed)
}

/// What candle says, as a node's failure.
pub(crate) fn tensor_failed(error: candle_core::Error) -> NodeError {
    NodeError::failed(format!("a tensor operation on a picture failed: {error}"))
}

/// That a payload has no such file format.
pub(crate) fn unknown_format<T: Payload>(format: &str) -> NodeError {
    NodeError::failed(format!(
        "{} cannot be written as .{format}",
        article(T::TYPE)
    ))
    .help(format!("it can be written as .{}", T::FORMATS.join(", .")))
}

fn article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

/// A value of 0..=1 as a byte, rounded half away from zero.
pub(crate) fn to_byte(value: f32) -> u8 {
    // A float's `as u8` saturates, and takes a NaN for 0.
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// Planes of `area` pixels each as bytes, channel beside channel.
fn interleave(planes: &[f32], area: usize) -> Vec<u8> {
    let channels = planes.len() / area;
    let mut pixels = vec![0u8; planes.len()];
    for (channel, plane) in planes.chunks_exact(area).enumerate() {
        for (index, value) in plane.iter().enumerate() {
            pixels[index * channels + channel] = to_byte(*value);
        }
    }
    pixels
}

/// Writes a PNG; the settings are fixed, so that the same pixels give the same bytes.
pub(crate) fn write_png(
    file: &mut Vec<u8>,
    pixels: &[u8],
    width: u32,
    height: u32,
    colours: ExtendedColorType,
) -> image::ImageResult<()> {
    PngEncoder::new_with_quality(
        Cursor::new(file),
        CompressionType::Level(6),
        FilterType::Adaptive,
    )
    .write_image(pixels, width, height, colours)
}
