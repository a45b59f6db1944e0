//! `load_image`, and the reading of picture files that `load_mask` shares.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use retouch_graph::files::no_file;
use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, interrupt, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::AssetPath;
use crate::load::jpeg;
use crate::payload::image::{AlphaFacts, Image, ImageFacts, MAX_PIXELS, MAX_SIDE, check_size};

/// The most bytes of a picture file: more than any picture of 64 megapixels with 16 bits a channel takes.
const MAX_FILE: u64 = 768 * 1024 * 1024;

/// The most memory that a decoder may take for pixels: 64 megapixels of four channels with 16 bits are 512 MB.
const MAX_DECODED: u64 = 1024 * 1024 * 1024;

/// The most memory that what a PNG holds beside its pixels (a colour profile, EXIF) may take unpacked. Profiles of printers
/// have a few megabytes; of what is longer the decoder unpacks no more.
const MAX_BESIDE: u64 = 64 * 1024 * 1024;

/// Reads a picture from a PNG, JPEG or WebP file.
///
/// The kind is told by the file's content, not by its ending. The picture is turned as its EXIF orientation says.
/// Channels of 8 and 16 bits, grey pictures, palettes and CMYK JPEGs (inverted, as Adobe and everybody after it writes
/// them) all become RGB of f32 in 0..=1. Where there is an alpha channel, the colours are those over white, and the
/// channel is kept beside them for `mask` and for saving. Of an animation the first picture is read.
///
/// Colours are taken as sRGB: an embedded ICC profile or PNG gamma is not applied. A picture has at most 8192 pixels a
/// side and 64 megapixels; reading the largest takes about 1.5 GB. A file that is damaged or cut short is refused, and a
/// JPEG with more than 100 scans or 400 Huffman tables, which are far more than encoders write.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadImage {
    /// The picture file.
    pub path: AssetPath,
}

ports! {
    /// `load_image` takes no links.
    pub struct Inputs {}
}

ports! {
    /// What `load_image` gives.
    pub struct Outputs {
        /// The picture, a batch of one.
        pub image: Arc<Image>,
    }
}

impl Node for LoadImage {
    const OP: &'static str = "load_image";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        reads(self.path.as_path(), files)
    }

    fn check(&self, _: &Types<Inputs>, files: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let Some(header) = inspect(self.path.as_path(), files)? else {
            return Ok(Types::unknown());
        };
        Ok(Types::unknown().with(
            "image",
            &AlphaFacts {
                image: header.facts(),
                alpha: header.has_alpha,
            },
        ))
    }

    fn run(&self, _: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let picture = load(self.path.as_path(), context.files())?;
        let Picture {
            width,
            height,
            mut colours,
            alpha,
        } = picture;
        if let Some(alpha) = &alpha {
            over(&mut colours, alpha, 1.0);
        }
        let image = Image::from_planes(1, width, height, colours, alpha)?;
        Ok(Outputs {
            image: Arc::new(image),
        })
    }
}

/// What a picture file's header says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    width: usize,
    height: usize,
    /// Whether there is an alpha channel.
    pub(crate) has_alpha: bool,
}

impl Header {
    /// The size after the EXIF orientation.
    pub(crate) fn facts(self) -> ImageFacts {
        ImageFacts {
            batch: 1,
            width: self.width,
            height: self.height,
        }
    }
}

/// A picture as it was read, turned upright.
pub(crate) struct Picture {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Red, green and blue planes in 0..=1, not composited.
    pub(crate) colours: Vec<f32>,
    /// The alpha plane in 0..=1, where there is one.
    pub(crate) alpha: Option<Vec<f32>>,
}

/// Lays planes of colours over a grey of `ground`.
pub(crate) fn over(planes: &mut [f32], alpha: &[f32], ground: f32) {
    for plane in planes.chunks_exact_mut(alpha.len()) {
        for (value, alpha) in plane.iter_mut().zip(alpha) {
            *value = alpha * *value + (1.0 - alpha) * ground;
        }
    }
}

/// The file that a node with the parameter `path` reads.
pub(crate) fn reads(path: &Path, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
    if files.is_file(path) {
        return Ok(vec![ReadFile {
            role: "picture".to_owned(),
            path: path.to_owned(),
        }]);
    }
    let fault = if files.is_dir(path) {
        Fault::file("path", format!("`{}` is a folder", path.display()))
            .help("name one picture file in it")
    } else {
        Fault::file("path", no_file(path, files)).help(
            "a relative path starts from the folder of the file that writes it, and from the current folder when `--set` does; check the spelling",
        )
    };
    Err(vec![fault])
}

/// Looks at a picture file without decoding it; `None` when there is no such file, which [`reads`] reports.
pub(crate) fn inspect(path: &Path, files: &dyn Files) -> Result<Option<Header>, Vec<Fault>> {
    if !files.is_file(path) {
        return Ok(None);
    }
    read(path, files)
        .and_then(|bytes| Opened::new(&bytes).map(|opened| opened.header))
        .map(Some)
        .map_err(|problem| vec![problem.into_fault(path)])
}

/// Reads and decodes a picture file.
pub(crate) fn load(path: &Path, files: &dyn Files) -> Result<Picture, NodeError> {
    read(path, files)
        .and_then(|bytes| Opened::new(&bytes)?.decode())
        .map_err(|problem| match interrupt::is_requested() {
            true => NodeError::Cancelled,
            false => problem.into_error(path),
        })
}

/// Why a file is not a picture that can be read.
enum Problem {
    /// The file itself cannot be read.
    Unreadable(String),
    /// Its content is not as it should be: what is wrong, and what to do.
    Content(String, &'static str),
}

const SAVE_AGAIN: &str = "get the file anew, or open it in an image editor and save it again";
const SMALLER: &str = "make the picture smaller in an image editor";
const CONVERT: &str = "convert it to PNG, JPEG or WebP";

impl Problem {
    fn into_fault(self, path: &Path) -> Fault {
        let path = path.display();
        match self {
            Self::Unreadable(why) => Fault::file("path", format!("`{path}` cannot be read: {why}"))
                .help("check the file's permissions"),
            Self::Content(what, help) => {
                Fault::content("path", format!("`{path}` {what}")).help(help)
            }
        }
    }

    fn into_error(self, path: &Path) -> NodeError {
        let path = path.display();
        match self {
            Self::Unreadable(why) => NodeError::failed(format!("`{path}` cannot be read: {why}"))
                .help("check the file's permissions"),
            Self::Content(what, help) => NodeError::failed(format!("`{path}` {what}")).help(help),
        }
    }
}

/// The whole of a file that begins like a picture. Damage behind the header is found before anything runs only if all of
/// it is looked at; the engine reads it for its digest anyway.
fn read(path: &Path, files: &dyn Files) -> Result<Arc<[u8]>, Problem> {
    let unreadable = |error: std::io::Error| Problem::Unreadable(error.to_string());
    let (head, length) = files.read_head(path, 32).map_err(unreadable)?;
    kind(&head, length)?;
    if length > MAX_FILE {
        return Err(Problem::Content(
            format!(
                "is {} MB, larger than any picture of {} megapixels",
                length / 1_000_000,
                MAX_PIXELS / 1_000_000
            ),
            SMALLER,
        ));
    }
    files.read(path).map_err(unreadable)
}

/// The kind of picture that a file begins like.
fn kind(head: &[u8], length: u64) -> Result<ImageFormat, Problem> {
    if length == 0 {
        return Err(Problem::Content(
            "is empty (0 bytes); a PNG, JPEG or WebP picture was expected".to_owned(),
            SAVE_AGAIN,
        ));
    }
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if at(0, b"\x89PNG\r\n\x1a\n") {
        return Ok(ImageFormat::Png);
    }
    if at(0, b"\xff\xd8\xff") {
        return Ok(ImageFormat::Jpeg);
    }
    if at(0, b"RIFF") && at(8, b"WEBP") {
        return Ok(ImageFormat::WebP);
    }
    let what = if at(0, b"GIF8") {
        "a GIF"
    } else if at(0, b"II*\0") || at(0, b"MM\0*") {
        "a TIFF (or a camera's raw file)"
    } else if at(4, b"ftypavif") || at(4, b"ftypavis") {
        "an AVIF"
    } else if at(4, b"ftyphei") || at(4, b"ftyphev") || at(4, b"ftypmif1") {
        "a HEIC"
    } else if at(0, b"\xff\x0a") || at(0, b"\0\0\0\x0cJXL ") {
        "a JPEG XL"
    } else if at(0, b"\0\0\0\x0cjP  ") {
        "a JPEG 2000"
    } else if at(0, b"8BPS") {
        "a Photoshop file"
    } else if at(0, b"BM") {
        "a BMP"
    } else if at(0, b"%PDF") {
        "a PDF"
    } else if at(0, b"<svg") || at(0, b"<?xml") {
        "an SVG or XML file"
    } else {
        return Err(Problem::Content(
            format!("is not a picture ({length} bytes); a PNG, JPEG or WebP picture was expected"),
            CONVERT,
        ));
    };
    Err(Problem::Content(
        format!("is {what}; a PNG, JPEG or WebP picture was expected"),
        CONVERT,
    ))
}

/// A picture file whose header has been read.
struct Opened<'a, D> {
    decoder: D,
    header: Header,
    orientation: Orientation,
    name: &'static str,
    /// The whole file of a JPEG.
    jpeg: Option<&'a [u8]>,
}

impl Opened<'_, ()> {
    fn new(bytes: &[u8]) -> Result<Opened<'_, impl ImageDecoder + '_>, Problem> {
        let format = kind(bytes, bytes.len() as u64)?;
        let name = match format {
            ImageFormat::Png => "PNG",
            ImageFormat::Jpeg => "JPEG",
            _ => "WebP",
        };
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(allowance(bytes, format));
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(limits);
        let mut decoder = reader
            .into_decoder()
            .map_err(|error| broken("header", name, &error))?;
        let (across, down) = decoder.dimensions();
        let (across, down) = (across as usize, down as usize);
        check_size(across, down).map_err(|what| {
            Problem::Content(
                format!("is too large: {what}"),
                if across > MAX_SIDE || down > MAX_SIDE || across * down > MAX_PIXELS {
                    SMALLER
                } else {
                    SAVE_AGAIN
                },
            )
        })?;
        if !is_complete(bytes, format) || !has_room(across, down, bytes.len(), format) {
            return Err(Problem::Content(
                format!(
                    "is a {name} that is cut short: it ends after {} bytes, before its picture does",
                    bytes.len()
                ),
                SAVE_AGAIN,
            ));
        }
        if format == ImageFormat::Png && !has_sound_palette(bytes) {
            return Err(Problem::Content(
                "is a damaged PNG: its palette is not one of whole colours".to_owned(),
                SAVE_AGAIN,
            ));
        }
        // Damaged metadata is no reason to refuse a picture.
        let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
        // In a WebP the chunk should not begin with JPEG's marker, and in some it does.
        let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
        let orientation = Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms);
        let (width, height) = match orientation {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => (down, across),
            _ => (across, down),
        };
        let header = Header {
            width,
            height,
            has_alpha: decoder.color_type().has_alpha(),
        };
        Ok(Opened {
            decoder,
            header,
            orientation,
            name,
            jpeg: (format == ImageFormat::Jpeg).then_some(bytes),
        })
    }
}

impl<D: ImageDecoder> Opened<'_, D> {
    fn decode(self) -> Result<Picture, Problem> {
        // The decoder draws what it can of damaged data, without a word.
        if let Some(what) = self.jpeg.and_then(jpeg::damage) {
            return Err(Problem::Content(
                format!("is a damaged JPEG: {what}"),
                SAVE_AGAIN,
            ));
        }
        interrupt::check().map_err(|error| Problem::Unreadable(error.to_string()))?;
        let mut picture = DynamicImage::from_decoder(self.decoder)
            .map_err(|error| broken("picture", self.name, &error))?;
        picture.apply_orientation(self.orientation);
        Ok(planes(picture))
    }
}

fn broken(part: &str, name: &str, error: &ImageError) -> Problem {
    match error {
        ImageError::Unsupported(_) => Problem::Content(
            format!("is a {name} of a kind that is not supported: {error}"),
            "convert it to an ordinary PNG, JPEG or WebP",
        ),
        ImageError::Limits(_) => Problem::Content(
            format!("is a {name} that takes more memory than a picture may: {error}"),
            SMALLER,
        ),
        _ => Problem::Content(
            format!("is a {name} whose {part} is damaged or cut short: {error}"),
            SAVE_AGAIN,
        ),
    }
}

/// The channels of a decoded picture as planes in 0..=1.
fn planes(picture: DynamicImage) -> Picture {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let byte = |value: &u8| f32::from(*value) / 255.0;
    let word = |value: &u16| f32::from(*value) / 65535.0;
    let (colours, alpha) = match &picture {
        DynamicImage::ImageLuma8(pixels) => split(pixels, 1, byte),
        DynamicImage::ImageLumaA8(pixels) => split(pixels, 2, byte),
        DynamicImage::ImageRgb8(pixels) => split(pixels, 3, byte),
        DynamicImage::ImageRgba8(pixels) => split(pixels, 4, byte),
        DynamicImage::ImageLuma16(pixels) => split(pixels, 1, word),
        DynamicImage::ImageLumaA16(pixels) => split(pixels, 2, word),
        DynamicImage::ImageRgb16(pixels) => split(pixels, 3, word),
        DynamicImage::ImageRgba16(pixels) => split(pixels, 4, word),
        other => split(&other.to_rgba32f(), 4, |value| *value),
    };
    Picture {
        width,
        height,
        colours,
        alpha,
    }
}

/// The planes of red, green and blue, and that of alpha, straight from the values of all pixels: there is no other copy of
/// a large picture as numbers of 32 bits.
fn split<T>(values: &[T], channels: usize, of: impl Fn(&T) -> f32) -> (Vec<f32>, Option<Vec<f32>>) {
    let channel = |index: usize| values.iter().skip(index).step_by(channels).map(&of);
    let mut colours = Vec::with_capacity(3 * values.len() / channels);
    for index in 0..3 {
        colours.extend(channel(if channels < 3 { 0 } else { index }));
    }
    let alpha = channels
        .is_multiple_of(2)
        .then(|| channel(channels - 1).collect());
    (colours, alpha)
}

/// Whether a file goes on to the end that its format marks. The JPEG decoder fills what is missing with grey and says
/// nothing, so a download that broke off would pass for a picture.
fn is_complete(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Png => has_png_end(bytes),
        ImageFormat::Jpeg => has_jpeg_end(bytes),
        _ => has_webp_end(bytes),
    }
    .unwrap_or(false)
}

/// The memory that the decoder of a file may take, by the size that the file declares.
fn allowance(bytes: &[u8], format: ImageFormat) -> u64 {
    if format != ImageFormat::Png {
        return MAX_DECODED;
    }
    // The first chunk is the header; of any other the decoder says that it is none.
    let side = |at: usize| {
        let side = bytes.get(at..).and_then(<[u8]>::first_chunk);
        side.map_or(0, |side| u64::from(u32::from_be_bytes(*side)))
    };
    // Four channels of 16 bits.
    let pixels = side(16).saturating_mul(side(20)).saturating_mul(8);
    pixels.min(MAX_DECODED) + MAX_BESIDE
}

/// Whether a file has enough bytes for the picture that it declares. A JPEG has at least one bit for each block of 8 x 8
/// pixels; the decoder would make gigabytes of grey of a header alone. The other formats have no such bound: a PNG of one
/// colour is tiny.
fn has_room(across: usize, down: usize, bytes: usize, format: ImageFormat) -> bool {
    format != ImageFormat::Jpeg || across.div_ceil(8) * down.div_ceil(8) <= bytes.saturating_mul(8)
}

/// Walks the chunks (length, type, data, checksum) to the one called IEND; `None` where the file ends before it.
fn has_png_end(bytes: &[u8]) -> Option<bool> {
    let mut place = 8;
    loop {
        let length = u32::from_be_bytes(bytes.get(place..place + 4)?.try_into().ok()?) as usize;
        if bytes.get(place + 4..place + 8)? == b"IEND" {
            return Some(true);
        }
        place = place.checked_add(length)?.checked_add(12)?;
    }
}

/// Whether a PNG's palettes have whole colours, and those with a transparency no more of these than colours. The
/// decoder counts on both.
fn has_sound_palette(bytes: &[u8]) -> bool {
    let (mut place, mut colours) = (8usize, 0);
    let is_indexed = bytes.get(25) == Some(&3);
    while let Some((length, rest)) = bytes.get(place..).and_then(<[u8]>::split_first_chunk::<4>) {
        let length = u32::from_be_bytes(*length) as usize;
        match rest.get(..4) {
            Some(b"PLTE") if length == 0 || length > 768 || !length.is_multiple_of(3) => {
                return false;
            }
            Some(b"PLTE") => colours = length / 3,
            Some(b"tRNS") if is_indexed && length > colours => return false,
            _ => {}
        }
        place = place.saturating_add(length).saturating_add(12);
    }
    true
}

/// Walks the segments to the end-of-image marker; `None` where the file ends before it.
fn has_jpeg_end(bytes: &[u8]) -> Option<bool> {
    let mut place = 2;
    loop {
        // To the next marker: in a scan's data 0xff is followed by 0, or by a restart marker, which belongs to the data.
        place += bytes.get(place..)?.iter().position(|byte| *byte == 0xff)?;
        match *bytes.get(place + 1)? {
            0xff => place += 1,
            0x00 | 0x01 | 0xd0..=0xd8 => place += 2,
            0xd9 => return Some(true),
            _ => {
                let length = bytes.get(place + 2..place + 4)?;
                place += 2 + usize::from(u16::from_be_bytes(length.try_into().ok()?));
            }
        }
    }
}

/// The RIFF header says how long the file is.
fn has_webp_end(bytes: &[u8]) -> Option<bool> {
    let length = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    Some(bytes.len() >= length.saturating_add(8))
}
