//! Pictures, masks and tables: what is read, changed and written is held against Pillow, numpy and scipy.
//!
//! Numbers that are not derived beside them were made with Pillow 13.0, numpy 2.4 and scipy 1.17 in a throwaway script;
//! the comment above them names the call. `pattern` is the picture that both sides compute.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat};
use retouch_graph::{
    AddedList, Digest, DiskFiles, Fault, FaultKind, FileStamp, Files, Host, Known, Node, NodeError,
    Payload, Types,
};
use retouch_nodes::image::grid::{self, Grid};
use retouch_nodes::image::mask::{self, MakeMask};
use retouch_nodes::image::resample::{self, CropBox, Filter, crop_box};
use retouch_nodes::image::resize_image::{self, ResizeImage};
use retouch_nodes::load::load_image::{self, LoadImage};
use retouch_nodes::load::load_mask::{self, LoadMask};
use retouch_nodes::payload::image::{Colour, Image, ImageFacts, ImageOrMask};
use retouch_nodes::payload::mask::Mask;
use retouch_nodes::payload::table::Table;
use serde_json::{Value as Json, json};

// ---- what the engine gives -------------------------------------------------------------------------------------------

struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        std::fs::read(path).map(Into::into)
    }
    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        let mut bytes = std::fs::read(path)?;
        let whole = bytes.len() as u64;
        bytes.truncate(length);
        Ok((bytes, whole))
    }
    fn digest(&self, path: &Path) -> io::Result<Digest> {
        Ok(*blake3::hash(&std::fs::read(path)?).as_bytes())
    }
    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        DiskFiles::new().sha256(path)
    }
    fn doubt(&self) {}
    fn stamp(&self, _: &Path) -> Option<FileStamp> {
        None
    }
    fn is_file(&self, path: &Path) -> bool {
        path.is_file()
    }
    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Ok(retouch_graph::files::piece(&self.read(path)?, offset, length).to_vec())
    }
    fn entries(&self, _: &Path) -> io::Result<Vec<retouch_graph::FolderEntry>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&self) {}
}

impl retouch_graph::LocalFiles for Disk {}

#[derive(Default)]
struct Engine {
    warnings: Mutex<Vec<String>>,
}

impl Host for Engine {
    fn progress(&self, _: usize, _: usize) {}
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
    fn count(&self, _: &'static str, _: u64) {}
    fn is_cancelled(&self) -> bool {
        false
    }
    fn files(&self) -> &dyn Files {
        &Disk
    }
    fn any_environment(&self) -> Option<&(dyn std::any::Any + Send + Sync)> {
        None
    }
}

fn run<N: Node>(params: Json, inputs: N::Inputs) -> Result<N::Outputs, NodeError> {
    let node: N = serde_json::from_value(params).unwrap();
    node.run(inputs, &Engine::default())
}

/// The outcome of a check: the facts of the output, or the faults.
fn check<N: Node>(
    params: Json,
    links: &[(&'static str, Vec<Known>)],
) -> Result<BTreeMap<&'static str, Vec<Known>>, Vec<Fault>> {
    let node: N = serde_json::from_value(params).unwrap();
    let types = Types::from_known(links.iter().cloned().collect());
    node.check(&types, &Disk).map(Types::into_known)
}

fn known(batch: usize, width: usize, height: usize) -> Known {
    let facts = ImageFacts {
        batch,
        width,
        height,
    };
    Known::Facts(serde_json::to_value(facts).unwrap().into())
}

fn only_facts(known: &BTreeMap<&'static str, Vec<Known>>) -> ImageFacts {
    let Known::Facts(facts) = &known.values().next().unwrap()[0] else {
        panic!("no facts: {known:?}");
    };
    serde_json::from_value((**facts).clone()).unwrap()
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn load(path: &Path) -> Result<Arc<Image>, NodeError> {
    run::<LoadImage>(json!({"path": path}), load_image::Inputs {}).map(|outputs| outputs.image)
}

/// Writes a file, and gives the folder that holds it, which goes away with its handle.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn load_bytes(bytes: &[u8]) -> Result<Arc<Image>, NodeError> {
    let (_folder, path) = file(bytes);
    load(&path)
}

/// What the check of a file says: its facts, or the one fault.
fn check_bytes(bytes: &[u8]) -> Result<ImageFacts, Fault> {
    let (_folder, path) = file(bytes);
    match check::<LoadImage>(json!({"path": path}), &[]) {
        Ok(known) => Ok(only_facts(&known)),
        Err(mut faults) => {
            assert_eq!(faults.len(), 1, "{faults:?}");
            Err(faults.remove(0))
        }
    }
}

fn png(picture: &DynamicImage) -> Vec<u8> {
    let mut bytes = io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// The value of every channel of a pixel.
fn pixel(image: &Image, x: usize, y: usize) -> [f32; 3] {
    let (width, height) = image.size();
    let values: Vec<f32> = image.rgb.flatten_all().unwrap().to_vec1().unwrap();
    [0, 1, 2].map(|channel| values[channel * width * height + y * width + x])
}

fn pattern_plane(width: usize, height: usize, channel: usize) -> Vec<f32> {
    (0..width * height)
        .map(|index| (index % width, index / width))
        .map(|(x, y)| ((x * 37 + y * 91 + channel * 53 + x * y * 11) % 256) as f32 / 255.0)
        .collect()
}

fn pattern(width: usize, height: usize) -> Image {
    let values: Vec<f32> = (0..3)
        .flat_map(|channel| pattern_plane(width, height, channel))
        .collect();
    let shape = (1, 3, height, width);
    let rgb = candle_core::Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap();
    Image::new(rgb, None).unwrap()
}

fn values(image: &Image) -> Vec<f32> {
    image.rgb.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance,
            "value {index} is {got}, expected {expected}"
        );
    }
}

// ---- reading ---------------------------------------------------------------------------------------------------------

const QUADRANTS: [(char, [f32; 3]); 4] = [
    ('r', [1.0, 0.0, 0.0]),
    ('g', [0.0, 1.0, 0.0]),
    ('b', [0.0, 0.0, 1.0]),
    ('w', [1.0, 1.0, 1.0]),
];

/// The colours of the corners in reading order, to a tolerance that JPEG meets.
fn corners(image: &Image) -> String {
    let (width, height) = image.size();
    let name = |x, y| {
        let colour = pixel(image, x, y);
        QUADRANTS
            .iter()
            .find(|(_, quadrant)| (0..3).all(|c| (quadrant[c] - colour[c]).abs() < 0.05))
            .map_or('?', |(name, _)| *name)
    };
    [
        name(0, 0),
        name(width - 1, 0),
        name(0, height - 1),
        name(width - 1, height - 1),
    ]
    .iter()
    .collect()
}

#[test]
fn all_eight_exif_orientations_are_applied() {
    let jpeg = std::fs::read(data("exif.jpg")).unwrap();
    // The orientation entry of the first directory, little or big endian: tag 0x0112, type 3, count 1, value 6.
    let big = [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, 6];
    let place = jpeg.windows(10).position(|bytes| bytes == big).unwrap() + 9;
    // ImageOps.exif_transpose of the same quadrants with each orientation.
    let expected = [
        "rgbw", "grwb", "wbgr", "bwrg", "rbgw", "brwg", "wgbr", "gwrb",
    ];
    for (orientation, expected) in (1u8..).zip(expected) {
        let mut jpeg = jpeg.clone();
        jpeg[place] = orientation;
        let size = if orientation < 5 { (32, 16) } else { (16, 32) };
        let image = load_bytes(&jpeg).unwrap();
        assert_eq!(corners(&image), expected, "orientation {orientation}");
        assert_eq!(image.size(), size);
        let facts = check_bytes(&jpeg).unwrap();
        assert_eq!((facts.width, facts.height), size, "the check knows too");
    }
}

#[test]
fn exif_is_read_from_png_and_webp_too() {
    let image = load(&data("exif.png")).unwrap();
    assert_eq!(corners(&image), "brwg");
    // Turned, the quadrant that is white here is fully transparent there: over white it is white.
    let image = load(&data("exif.webp")).unwrap();
    assert_eq!(corners(&image), "brwg");
    assert!(image.alpha.is_some());
}

#[test]
fn a_jpeg_whose_data_is_cut_before_its_end_marker_is_refused() {
    for name in ["exif.jpg", "progressive.jpg"] {
        let whole = std::fs::read(data(name)).unwrap();
        assert!(load_bytes(&whole).is_ok(), "{name}");
        let scan = whole.windows(2).position(|pair| pair == [0xff, 0xda]);
        let scan = scan.unwrap();
        // Four bytes of the first scan's data.
        let begin = scan + 2 + usize::from(whole[scan + 3]);
        let cut = [&whole[..begin + 4], &[0xff, 0xd9]].concat();
        let error = format!("{:?}", load_bytes(&cut).unwrap_err());
        assert!(error.contains("is a damaged JPEG"), "{name}: {error}");
    }
}

#[test]
fn a_progressive_jpeg_is_read() {
    assert_eq!(corners(&load(&data("progressive.jpg")).unwrap()), "rgbw");
}

#[test]
fn a_16_bit_picture_keeps_its_16_bits() {
    let pixels =
        image::ImageBuffer::from_fn(2, 1, |x, _| image::Rgb([1000u16 + x as u16, 32768, 65535]));
    let image = load_bytes(&png(&DynamicImage::ImageRgb16(pixels))).unwrap();
    let fraction = |value: u16| f32::from(value) / 65535.0;
    assert_eq!(pixel(&image, 0, 0), [fraction(1000), fraction(32768), 1.0]);
    assert_eq!(pixel(&image, 1, 0), [fraction(1001), fraction(32768), 1.0]);
}

#[test]
fn grey_pictures_of_every_depth_become_three_equal_channels() {
    let eight = image::ImageBuffer::from_fn(3, 2, |x, y| image::Luma([(40 * x + 7 * y) as u8]));
    let image = load_bytes(&png(&DynamicImage::ImageLuma8(eight))).unwrap();
    assert_eq!(pixel(&image, 2, 1), [87.0 / 255.0; 3]);
    let sixteen = image::ImageBuffer::from_fn(1, 1, |_, _| image::Luma([12345u16]));
    let image = load_bytes(&png(&DynamicImage::ImageLuma16(sixteen))).unwrap();
    assert_eq!(pixel(&image, 0, 0), [12345.0 / 65535.0; 3]);
    // One bit a pixel.
    let image = load(&data("bits.png")).unwrap();
    assert_eq!(values(&image), [1.0; 9]);
    // A picture of one pixel, grey with alpha.
    let one = image::ImageBuffer::from_fn(1, 1, |_, _| image::LumaA([0u8, 51]));
    let image = load_bytes(&png(&DynamicImage::ImageLumaA8(one))).unwrap();
    assert_eq!(image.size(), (1, 1));
    assert_close(&pixel(&image, 0, 0), &[0.8; 3], 1e-6);
}

#[test]
fn alpha_is_laid_over_white_and_kept_aside() {
    let pixels = image::ImageBuffer::from_fn(4, 1, |x, _| {
        image::Rgba([200u8, 100, 0, [255, 128, 1, 0][x as usize]])
    });
    let bytes = png(&DynamicImage::ImageRgba8(pixels));
    let image = load_bytes(&bytes).unwrap();
    // a * colour / 255 + (1 - a)
    let a = 128.0 / 255.0;
    let over = |colour: f32| a * colour / 255.0 + 1.0 - a;
    assert_close(
        &pixel(&image, 0, 0),
        &[200.0 / 255.0, 100.0 / 255.0, 0.0],
        1e-6,
    );
    assert_close(
        &pixel(&image, 1, 0),
        &[over(200.0), over(100.0), over(0.0)],
        1e-6,
    );
    assert_eq!(pixel(&image, 3, 0), [1.0; 3]);
    let alpha: Vec<f32> = image
        .alpha
        .as_ref()
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    assert_eq!(alpha, [1.0, a, 1.0 / 255.0, 0.0]);
    // Saved and read again it is the same picture, colours under alpha included where any is covered.
    for format in ["png", "webp"] {
        let saved = image.encode(format).unwrap().remove(0);
        let again = image::load_from_memory(&saved).unwrap().to_rgba8();
        assert_eq!(
            again.as_raw()[..12],
            [200, 100, 0, 255, 200, 100, 0, 128, 200, 100, 0, 1]
        );
        assert_eq!(again.as_raw()[15], 0);
    }
    // A JPEG has no alpha: it shows what is seen over white.
    assert!(
        !image::load_from_memory(&image.encode("jpg").unwrap()[0])
            .unwrap()
            .color()
            .has_alpha()
    );
}

#[test]
fn a_palette_with_a_transparent_colour_has_alpha() {
    let image = load(&data("palette.png")).unwrap();
    assert_eq!(pixel(&image, 0, 0), [1.0, 0.0, 0.0]);
    assert_eq!(pixel(&image, 1, 0), [1.0; 3]);
    assert!(image.alpha.is_some());
}

#[test]
fn cmyk_and_ycck_jpegs_have_the_colours_that_pillow_gives() {
    let middles =
        |image: &Image| [(8, 4), (24, 4), (8, 12), (24, 12)].map(|(x, y)| pixel(image, x, y));
    let assert_colours = |jpeg: &[u8], expected: [[u8; 3]; 4]| {
        let image = load_bytes(jpeg).unwrap();
        for (got, expected) in middles(&image).iter().zip(expected) {
            let expected = expected.map(|value| f32::from(value) / 255.0);
            assert_close(got, &expected, 3.0 / 255.0);
        }
    };
    // Image.open("cmyk.jpg").convert("RGB")
    let mut jpeg = std::fs::read(data("cmyk.jpg")).unwrap();
    assert_colours(
        &jpeg,
        [[235, 51, 32], [57, 172, 195], [127, 127, 127], [0, 0, 255]],
    );
    // The same with the colour transform of Adobe's marker set from 0 to 2, so that the channels are read as YCCK.
    let marker = jpeg.windows(5).position(|bytes| bytes == b"Adobe").unwrap();
    jpeg[marker + 11] = 2;
    assert_colours(
        &jpeg,
        [[120, 0, 119], [2, 195, 6], [0, 67, 0], [77, 255, 255]],
    );
}

#[test]
fn what_is_no_picture_is_refused_by_the_check_and_says_what_was_expected() {
    let content = |bytes: &[u8]| {
        let fault = check_bytes(bytes).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Content, "{fault:?}");
        assert_eq!(fault.field.as_deref(), Some("path"));
        assert!(fault.help.is_some());
        assert!(load_bytes(bytes).is_err(), "the run refuses it too");
        fault.message
    };
    assert!(content(b"").contains("is empty (0 bytes)"));
    assert!(content(b"hello").contains("is not a picture (5 bytes); a PNG, JPEG or WebP"));
    assert!(content(b"GIF89a...........").contains("is a GIF"));
    assert!(content(b"\0\0\0\x18ftypheic....").contains("is a HEIC"));
    assert!(content(b"\x89PNG\r\n\x1a\n").contains("a PNG whose header is damaged or cut short"));
    assert!(content(b"\xff\xd8\xff\xe0").contains("a JPEG whose header is damaged or cut short"));
    assert!(content(b"RIFF\x04\0\0\0WEBP").contains("a WebP whose header is damaged or cut short"));
    // An endless run of zero-length chunks, and markers at the very end: the walks end.
    content(b"\x89PNG\r\n\x1a\n\0\0\0\0IDAT\0\0\0\0");
    content(b"\xff\xd8\xff\xff\xff\xff");
}

#[test]
fn pictures_cut_short_anywhere_are_refused_before_anything_runs() {
    for name in [
        "exif.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "exif.png",
        "exif.webp",
    ] {
        let whole = std::fs::read(data(name)).unwrap();
        assert!(check_bytes(&whole).is_ok());
        // The last two bytes of a PNG are in the checksum of its end, which nobody needs.
        for length in 0..whole.len() - 8 {
            let fault = check_bytes(&whole[..length]).unwrap_err();
            assert_eq!(
                fault.kind,
                FaultKind::Content,
                "{name} cut at {length}: {fault:?}"
            );
        }
    }
}

#[test]
fn damaged_pictures_never_panic() {
    for name in [
        "exif.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "exif.png",
        "exif.webp",
        "palette.png",
    ] {
        let whole = std::fs::read(data(name)).unwrap();
        for place in 0..whole.len() {
            for value in [0x00, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[place] = value;
                // Whatever comes of it; a header that promises a huge picture is refused by its size.
                let checked = check_bytes(&damaged);
                let loaded = load_bytes(&damaged);
                if let (Ok(facts), Ok(image)) = (checked, loaded) {
                    assert_eq!(facts, image.facts(), "{name}, byte {place} = {value}");
                }
            }
        }
    }
}

#[test]
fn pictures_that_are_too_large_are_refused_by_their_header() {
    // A PNG's header alone: 20000 x 10, and 8192 x 8192, which is 67 megapixels.
    let header = |width: u32, height: u32| {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend([8, 2, 0, 0, 0]);
        let mut crc = !0u32;
        for byte in &bytes[12..] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
        }
        bytes.extend((!crc).to_be_bytes());
        bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
        bytes
    };
    let fault = check_bytes(&header(20_000, 10)).unwrap_err();
    assert!(
        fault
            .message
            .contains("20000x10 pixels are too many: a side has at most 8192")
    );
    let fault = check_bytes(&header(8192, 8192)).unwrap_err();
    assert!(fault.message.contains("at most 64 megapixels"), "{fault:?}");
    assert!(load_bytes(&header(2_000_000_000, 2_000_000_000)).is_err());
    assert_eq!(check_bytes(&header(8192, 7000)).unwrap().width, 8192);
}

#[test]
fn a_missing_file_and_a_folder_are_faults_of_the_file() {
    let reads = |path: &Path| {
        let node: LoadImage = serde_json::from_value(json!({"path": path})).unwrap();
        node.reads(&Disk)
    };
    let folder = tempfile::tempdir().unwrap();
    let faults = reads(&folder.path().join("none.png")).unwrap_err();
    assert_eq!(faults[0].kind, FaultKind::File);
    assert!(faults[0].message.contains("there is no file"));
    assert!(
        reads(folder.path()).unwrap_err()[0]
            .message
            .contains("is a folder")
    );
    assert_eq!(reads(&data("exif.jpg")).unwrap()[0].path, data("exif.jpg"));
}

#[test]
fn masks_are_read_from_brightness_alpha_or_red_and_inverted() {
    let pixels = image::ImageBuffer::from_fn(3, 1, |x, _| {
        [
            image::Rgba([255u8, 0, 0, 255]),
            image::Rgba([255, 255, 255, 0]),
            image::Rgba([100, 200, 50, 51]),
        ][x as usize]
    });
    let (_folder, path) = file(&png(&DynamicImage::ImageRgba8(pixels)));
    let mask = |params: Json| {
        let mut all = json!({"path": path});
        all.as_object_mut()
            .unwrap()
            .extend(params.as_object().unwrap().clone());
        run::<LoadMask>(all, load_mask::Inputs {})
            .unwrap()
            .mask
            .values()
            .unwrap()
    };
    // Transparent pixels count as black.
    let green = (0.299 * 100.0 + 0.587 * 200.0 + 0.114 * 50.0) / 255.0;
    assert_close(&mask(json!({})), &[0.299, 0.0, 0.2 * green], 1e-6);
    assert_close(
        &mask(json!({"invert": true})),
        &[0.701, 1.0, 1.0 - 0.2 * green],
        1e-6,
    );
    assert_close(&mask(json!({"channel": "alpha"})), &[1.0, 0.0, 0.2], 1e-6);
    assert_close(
        &mask(json!({"channel": "red"})),
        &[1.0, 0.0, 0.2 * 100.0 / 255.0],
        1e-6,
    );
    // Asked for an alpha channel that there isn't.
    let faults =
        check::<LoadMask>(json!({"path": data("exif.jpg"), "channel": "alpha"}), &[]).unwrap_err();
    assert!(faults[0].message.contains("has no alpha channel"));
    let known = check::<LoadMask>(json!({"path": data("exif.jpg")}), &[]).unwrap();
    assert_eq!(
        only_facts(&known),
        ImageFacts {
            batch: 1,
            width: 16,
            height: 32
        }
    );
}

#[test]
fn a_grey_mask_keeps_its_levels_to_the_bit() {
    let grey = image::ImageBuffer::from_fn(256, 1, |x, _| image::Luma([x as u8]));
    let (_folder, path) = file(&png(&DynamicImage::ImageLuma8(grey)));
    let mask = run::<LoadMask>(json!({"path": path}), load_mask::Inputs {})
        .unwrap()
        .mask;
    let levels: Vec<f32> = (0..=255u8).map(|level| f32::from(level) / 255.0).collect();
    assert_eq!(mask.values().unwrap(), levels);
}

// ---- payloads --------------------------------------------------------------------------------------------------------

#[test]
fn pictures_are_written_one_file_a_picture_and_read_back_bit_for_bit() {
    let rgb: Vec<f32> = [pattern(5, 4), pattern(5, 4)]
        .iter()
        .flat_map(values)
        .collect();
    let tensor =
        candle_core::Tensor::from_vec(rgb, (2, 3, 4, 5), &candle_core::Device::Cpu).unwrap();
    let batch = Image::new(tensor, None).unwrap();
    assert_eq!(batch.summary(), "image 5x4, batch of 2");
    assert_eq!(Payload::bytes(&batch), 2 * 3 * 4 * 5 * 4);
    for format in ["png", "webp"] {
        let files = batch.encode(format).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files, batch.encode(format).unwrap(), "the same bytes again");
        assert_eq!(
            values(&load_bytes(&files[1]).unwrap()),
            values(&pattern(5, 4))
        );
    }
    assert_eq!(batch.encode("jpeg").unwrap().len(), 2);
    let error = batch.encode("gif").unwrap_err();
    assert_eq!(error.to_string(), "an image cannot be written as .gif");
}

#[test]
fn bytes_are_rounded_and_clamped() {
    let values = vec![
        -0.5,
        0.5 / 255.0,
        0.49 / 255.0,
        1.5,
        f32::NAN,
        254.5 / 255.0,
    ];
    let tensor =
        candle_core::Tensor::from_vec(values, (1, 3, 1, 2), &candle_core::Device::Cpu).unwrap();
    let bytes = Image::new(tensor, None).unwrap().to_rgb8(0).unwrap();
    assert_eq!(bytes, [0, 0, 0, 1, 255, 255]);
    let image = Image::from_rgb8(1, 2, &[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(image.to_rgb8(0).unwrap(), [1, 2, 3, 4, 5, 6]);
    assert!(Image::from_rgb8(1, 2, &[1, 2, 3]).is_err());
    assert!(image.to_rgb8(1).is_err());
}

#[test]
fn masks_are_written_as_grey_pngs_or_one_safetensors_file() {
    let mask = Mask::from_values(2, 2, 1, vec![0.0, 1.0, 0.25, 0.5]).unwrap();
    let files = mask.encode("png").unwrap();
    assert_eq!(files.len(), 2);
    let second = image::load_from_memory(&files[1]).unwrap();
    assert_eq!(second.color(), image::ColorType::L8);
    assert_eq!(second.to_luma8().into_raw(), [64, 128]);
    let file = mask.encode("safetensors").unwrap().remove(0);
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let tensor = tensors.tensor("mask").unwrap();
    assert_eq!(tensor.shape(), [2, 1, 2]);
    assert_eq!(tensor.data()[12..16], 0.5f32.to_le_bytes());
    assert!(mask.encode("jpg").is_err());
}

#[test]
fn tables_are_written_as_csv_and_json() {
    let mut table = Table::new(["prompt", "score", "ok"]);
    table
        .push(vec![json!("a bear, \"big\""), json!(0.25), json!(true)])
        .unwrap();
    table
        .push(vec![Json::Null, json!(3), json!([1, 2])])
        .unwrap();
    assert!(table.push(vec![json!(1)]).is_err());
    assert_eq!(table.summary(), "table of 2 rows, 3 columns");
    let csv = String::from_utf8(table.encode("csv").unwrap().remove(0)).unwrap();
    assert_eq!(
        csv,
        "prompt,score,ok\n\"a bear, \"\"big\"\"\",0.25,true\n,3,\"[1,2]\"\n"
    );
    let file = table.encode("json").unwrap().remove(0);
    let read: Json = serde_json::from_slice(&file).unwrap();
    assert_eq!(
        read,
        json!([
            {"prompt": "a bear, \"big\"", "score": 0.25, "ok": true},
            {"prompt": null, "score": 3, "ok": [1, 2]},
        ])
    );
    assert!(Table::new(["a", "a"]).encode("csv").is_err());
    assert!(table.encode("xlsx").is_err());
}

#[test]
fn a_colour_is_written_with_a_hash_and_six_digits() {
    assert_eq!(
        Colour::try_from("#0080fF".to_owned()),
        Ok(Colour([0, 128, 255]))
    );
    assert_eq!(Colour([0, 128, 255]).to_string(), "#0080ff");
    for text in ["white", "#fff", "0080ff0", "#00 80f", "#+12345", "#äää"] {
        let error = Colour::try_from(text.to_owned()).unwrap_err();
        assert!(error.contains("#rrggbb"), "{error}");
    }
}

// ---- resampling ------------------------------------------------------------------------------------------------------

#[test]
fn lanczos3_is_pillows_to_2e_6() {
    // Image.fromarray(plane, mode="F").resize((5, 4), LANCZOS) of each channel of pattern(12, 9), clipped to 0..1
    let smaller = resample::resize(&pattern(12, 9), 5, 4, Filter::Lanczos3).unwrap();
    #[rustfmt::skip]
    let expected = [
        0.404000, 0.537422, 0.523680, 0.389208, 0.320689, 0.499920, 0.487972, 0.461289, 0.610005, 0.420749, 0.456161,
        0.504945, 0.509902, 0.527349, 0.498532, 0.627162, 0.588704, 0.480611, 0.459321, 0.509198, 0.507663, 0.554923,
        0.506368, 0.410315, 0.561313, 0.579161, 0.462072, 0.498706, 0.573318, 0.359168, 0.595284, 0.485401, 0.538254,
        0.481427, 0.594584, 0.344606, 0.329130, 0.625740, 0.612399, 0.560734, 0.576450, 0.584809, 0.489093, 0.487099,
        0.605860, 0.436943, 0.409452, 0.453096, 0.548687, 0.424039, 0.580043, 0.532645, 0.585498, 0.406628, 0.485708,
        0.597576, 0.481057, 0.421440, 0.450215, 0.592376,
    ];
    assert_close(&values(&smaller), &expected, 2e-6);
    // The same upwards; what overshoots is clipped.
    let larger = resample::resize(&pattern(5, 4), 7, 6, Filter::Lanczos3).unwrap();
    #[rustfmt::skip]
    let expected = [
        0.000000, 0.044761, 0.161855, 0.233396, 0.307778, 0.510978, 0.656739, 0.104753, 0.170378, 0.352181, 0.555520,
        0.754136, 0.533482, 0.266194, 0.454629, 0.577219, 0.679430, 0.689512, 0.943207, 0.559698, 0.079118, 0.716257,
        0.958806, 0.799428, 0.216370, 0.302498, 0.556630, 0.604609, 0.357547, 0.561405, 0.586125, 0.350362, 0.543770,
        0.564054, 0.417532, 0.000000, 0.109459, 0.388257, 0.672487, 1.000000, 0.573061, 0.026987,
    ];
    assert_close(&values(&larger)[..42], &expected, 2e-6);
}

#[test]
fn bilinear_and_nearest_are_pillows() {
    // The same with BILINEAR and NEAREST, first channel.
    let bilinear = resample::resize(&pattern(12, 9), 5, 4, Filter::Bilinear).unwrap();
    #[rustfmt::skip]
    let expected = [
        0.413871, 0.520175, 0.498952, 0.424025, 0.339608, 0.470294, 0.506826, 0.480358, 0.559838, 0.443619, 0.476905,
        0.521176, 0.500567, 0.522334, 0.487885, 0.608632, 0.567127, 0.487283, 0.460066, 0.526275,
    ];
    assert_close(&values(&bilinear)[..20], &expected, 2e-6);
    let nearest = resample::resize(&pattern(12, 9), 5, 4, Filter::Nearest).unwrap();
    #[rustfmt::skip]
    let expected = [
        0.545098, 0.921569, 0.482353, 0.858824, 0.231373, 0.341176, 0.890196, 0.709804, 0.254902, 0.803922, 0.137255,
        0.858824, 0.937255, 0.654902, 0.372549, 0.937255, 0.827451, 0.160784, 0.050980, 0.945098,
    ];
    assert_close(&values(&nearest)[..20], &expected, 1e-6);
    // A whole-number enlargement repeats every pixel.
    let small = pattern(3, 2);
    let large = resample::resize(&small, 12, 8, Filter::Nearest).unwrap();
    for (x, y) in (0..12).flat_map(|x| (0..8).map(move |y| (x, y))) {
        assert_eq!(pixel(&large, x, y), pixel(&small, x / 4, y / 4));
    }
}

#[test]
fn area_averages_are_numpys() {
    // np.repeat of pattern(w, h) to the common multiple of both sizes in f64, then the mean of each block
    let mask = |width, height| {
        Mask::from_values(1, width, height, pattern_plane(width, height, 0)).unwrap()
    };
    let cells = |mask: Mask| mask.values().unwrap();
    assert_close(
        &cells(mask(7, 5).area_average(2, 3).unwrap()),
        &[0.385098, 0.508796, 0.546443, 0.455014, 0.471148, 0.401233],
        1e-6,
    );
    #[rustfmt::skip]
    let upwards = [
        0.000000, 0.048366, 0.145098, 0.241830, 0.290196, 0.000000, 0.048366, 0.145098, 0.241830, 0.290196, 0.356863,
        0.419608, 0.545098, 0.670588, 0.733333, 0.356863, 0.419608, 0.545098, 0.670588, 0.733333,
    ];
    assert_close(
        &cells(mask(3, 2).area_average(4, 5).unwrap()),
        &upwards,
        1e-6,
    );
    #[rustfmt::skip]
    let downwards = [
        0.349710, 0.513689, 0.543428, 0.387255, 0.365323, 0.470988, 0.486819, 0.469354, 0.582026, 0.430537, 0.462128,
        0.543609, 0.497531, 0.535113, 0.495752, 0.620588, 0.572513, 0.479230, 0.432426, 0.523784,
    ];
    assert_close(
        &cells(mask(12, 9).area_average(4, 5).unwrap()),
        &downwards,
        1e-6,
    );
    // The filter of pictures is the same rule.
    let picture = resample::resize(&pattern(12, 9), 5, 4, Filter::Area).unwrap();
    assert_close(&values(&picture)[..20], &downwards, 1e-6);
    // A mask on its own grid is itself, an all-ones mask all ones, bit for bit; each mask of a batch by itself.
    assert_eq!(
        cells(mask(7, 5).area_average(5, 7).unwrap()),
        pattern_plane(7, 5, 0)
    );
    let ones = Mask::from_values(1, 513, 77, vec![1.0; 513 * 77]).unwrap();
    assert!(
        cells(ones.area_average(16, 24).unwrap())
            .iter()
            .all(|cell| *cell == 1.0)
    );
    let two = Mask::from_values(2, 2, 1, vec![0.0, 1.0, 0.5, 0.25]).unwrap();
    assert_eq!(cells(two.area_average(1, 1).unwrap()), [0.5, 0.375]);
    assert!(two.area_average(0, 1).is_err());
}

#[test]
fn crops_are_centred_and_the_same_for_pictures_and_masks() {
    let wide = CropBox {
        x: 5,
        y: 0,
        width: 5,
        height: 5,
    };
    assert_eq!(crop_box((15, 5), (1, 1)).unwrap(), wide);
    // 10 * 3 / 4 = 7.5 rounds to 8; of the 3 that go, 1 goes left.
    let rounded = CropBox {
        x: 1,
        y: 0,
        width: 8,
        height: 10,
    };
    assert_eq!(crop_box((11, 10), (3, 4)).unwrap(), rounded);
    let tall = CropBox {
        x: 0,
        y: 2,
        width: 6,
        height: 4,
    };
    assert_eq!(crop_box((6, 9), (512, 341)).unwrap(), tall);
    assert_eq!(crop_box((1, 1), (9, 1)).unwrap().height, 1);
    assert!(crop_box((4, 4), (0, 1)).is_err());

    let image = pattern(11, 10);
    let mask = Mask::from_values(1, 11, 10, pattern_plane(11, 10, 0)).unwrap();
    let cropped = resample::centre_crop(&image, 3, 4).unwrap();
    assert_eq!(cropped.size(), (8, 10));
    assert_eq!(pixel(&cropped, 0, 0), pixel(&image, 1, 0));
    assert_eq!(
        values(&cropped)[..80],
        mask.crop_to_aspect(3, 4).unwrap().values().unwrap()
    );
}

#[test]
fn fit_leaves_a_picture_of_the_right_size_alone() {
    let image = pattern(8, 6);
    assert_eq!(
        values(&resample::fit(&image, 8, 6).unwrap()),
        values(&image)
    );
    assert_eq!(resample::fit(&image, 4, 4).unwrap().size(), (4, 4));
    assert!(resample::fit(&image, 0, 4).is_err());
}

#[test]
fn resize_image_takes_a_size_a_side_or_a_factor() {
    let size = |params: Json| {
        let inputs = resize_image::Inputs {
            image: Arc::new(pattern(12, 9)),
        };
        let made = run::<ResizeImage>(params.clone(), inputs)
            .unwrap()
            .image
            .size();
        let known = check::<ResizeImage>(params, &[("image", vec![known(1, 12, 9)])]).unwrap();
        let facts = only_facts(&known);
        assert_eq!(
            made,
            (facts.width, facts.height),
            "the check knows the size"
        );
        made
    };
    assert_eq!(size(json!({"width": 5, "height": 7})), (5, 7));
    assert_eq!(size(json!({"width": 8})), (8, 6));
    assert_eq!(size(json!({"height": 1})), (1, 1));
    assert_eq!(size(json!({"scale": 2, "filter": "nearest"})), (24, 18));
    assert_eq!(size(json!({"scale": 0.001, "filter": "area"})), (1, 1));
    assert_eq!(
        size(json!({"width": 5, "height": 7, "fit": "crop"})),
        (5, 7)
    );
    assert_eq!(
        size(json!({"width": 5, "height": 7, "fit": "pad", "filter": "bilinear"})),
        (5, 7)
    );
}

#[test]
fn padding_keeps_the_picture_whole_in_the_middle() {
    let inputs = resize_image::Inputs {
        image: Arc::new(pattern(4, 2)),
    };
    let params = json!({"width": 9, "height": 9, "fit": "pad", "filter": "nearest", "background": "#ff0000"});
    let padded = run::<ResizeImage>(params, inputs).unwrap().image;
    // 4x2 becomes 9x5 (4.5 rounded up), two rows above it and two below.
    for y in [0, 1, 7, 8] {
        assert_eq!(pixel(&padded, 4, y), [1.0, 0.0, 0.0]);
    }
    assert_eq!(pixel(&padded, 0, 2), pixel(&pattern(4, 2), 0, 0));
    assert_eq!(pixel(&padded, 8, 6), pixel(&pattern(4, 2), 3, 1));
}

#[test]
fn resize_image_reports_every_wrong_parameter() {
    let faults = |params: Json| {
        let faults = check::<ResizeImage>(params, &[("image", vec![known(1, 12, 9)])]).unwrap_err();
        faults
            .into_iter()
            .map(|fault| fault.message)
            .collect::<Vec<_>>()
            .join("; ")
    };
    assert!(faults(json!({})).contains("needs a size"));
    assert!(faults(json!({"width": 3, "scale": 2})).contains("together"));
    assert!(faults(json!({"scale": -1})).contains("above 0"));
    assert!(faults(json!({"scale": 1e300})).contains("too large"));
    assert!(faults(json!({"width": 0})).contains("not a valid picture size"));
    assert!(faults(json!({"width": 9000, "height": 0})).contains("at most 8192"));
    assert!(faults(json!({"width": 8192, "height": 8192})).contains("64 megapixels"));
    assert!(faults(json!({"height": 8192, "fit": "crop"})).contains("needs both"));
    assert!(serde_json::from_value::<ResizeImage>(json!({"size": 3})).is_err());
}

// ---- the op `mask` ---------------------------------------------------------------------------------------------------

fn change(params: Json, width: usize, height: usize, plane: &[f32]) -> Vec<f32> {
    let mask = Mask::from_values(1, width, height, plane.to_vec()).unwrap();
    let inputs = mask::Inputs {
        image: None,
        mask: Some(Arc::new(mask)),
    };
    run::<MakeMask>(params, inputs)
        .unwrap()
        .mask
        .values()
        .unwrap()
}

/// A block, a single pixel in a corner and a half in another: 9 wide, 7 high.
fn block() -> Vec<f32> {
    let mut plane = vec![0.0; 63];
    for (x, y) in (3..7).flat_map(|x| (2..4).map(move |y| (x, y))) {
        plane[y * 9 + x] = 1.0;
    }
    plane[6 * 9] = 1.0;
    plane[8] = 0.5;
    plane
}

#[test]
fn growing_and_shrinking_are_scipys() {
    // ndimage.grey_dilation(block, size=(3, 3), mode="nearest")
    #[rustfmt::skip]
    let grown = [
        0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5,
        0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5,
        0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0,
        0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0,
        0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0,
        1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
    ];
    assert_eq!(change(json!({"grow": 1}), 9, 7, &block()), grown);
    // ndimage.grey_erosion of ones with holes at (4, 3) and (0, 0)
    let mut holes = vec![1.0; 63];
    holes[3 * 9 + 4] = 0.0;
    holes[0] = 0.0;
    #[rustfmt::skip]
    let shrunk = [
        0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
        0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
        1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0,
        1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0,
        1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0,
        1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
        1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
    ];
    assert_eq!(change(json!({"grow": -1}), 9, 7, &holes), shrunk);
    // Further than the picture is wide.
    assert_eq!(change(json!({"grow": 100}), 9, 7, &block()), [1.0; 63]);
    assert_eq!(change(json!({"grow": -100}), 9, 7, &holes), [0.0; 63]);
}

#[test]
fn feathering_is_scipys_gaussian_to_1e_6() {
    // ndimage.gaussian_filter(block, 1.5, mode="nearest", truncate=4.0)
    #[rustfmt::skip]
    let expected = [
        0.006554, 0.022409, 0.053220, 0.091086, 0.119208, 0.130599, 0.139484, 0.169336, 0.222709,
        0.015117, 0.050033, 0.118121, 0.201462, 0.259856, 0.266453, 0.229477, 0.185284, 0.165781,
        0.026929, 0.076935, 0.176591, 0.299457, 0.384487, 0.387193, 0.310848, 0.203511, 0.122492,
        0.049713, 0.090146, 0.182131, 0.301005, 0.384324, 0.384789, 0.302429, 0.183446, 0.087887,
        0.111921, 0.106162, 0.141665, 0.208099, 0.259627, 0.258614, 0.201892, 0.119532, 0.052381,
        0.238814, 0.157078, 0.109718, 0.107138, 0.119652, 0.116884, 0.090847, 0.053383, 0.022730,
        0.402615, 0.239027, 0.113461, 0.055513, 0.040444, 0.035637, 0.027276, 0.015967, 0.006740,
    ];
    assert_close(
        &change(json!({"feather": 1.5}), 9, 7, &block()),
        &expected,
        1e-6,
    );
    // A blur far wider than the mask, and one too narrow to reach the next pixel.
    let wide = change(json!({"feather": 512}), 9, 7, &block());
    assert!(wide.iter().all(|value| (0.0..=1.0).contains(value)));
    assert_eq!(change(json!({"feather": 0.1}), 9, 7, &block()), block());
}

#[test]
fn the_order_is_invert_threshold_grow_feather() {
    // Inverted 0.4 is 0.6, above 0.5; grown by one it fills three.
    let params = json!({"invert": true, "threshold": 0.5, "grow": 1});
    assert_eq!(
        change(params, 5, 1, &[1.0, 1.0, 0.4, 1.0, 1.0]),
        [0.0, 1.0, 1.0, 1.0, 0.0]
    );
    // Above, not at.
    assert_eq!(
        change(json!({"threshold": 0.5}), 2, 1, &[0.5, 0.500_1]),
        [0.0, 1.0]
    );
    // Feathered last: soft.
    let soft = change(
        json!({"threshold": 0.5, "feather": 1}),
        5,
        1,
        &[0.0, 0.0, 0.9, 0.0, 0.0],
    );
    assert!(soft[2] < 0.5 && soft[1] > 0.1);
    assert_eq!(change(json!({}), 9, 7, &block()), block());
}

#[test]
fn masks_are_made_of_a_pictures_alpha_or_brightness() {
    let pixels =
        image::ImageBuffer::from_fn(2, 1, |x, _| image::Rgba([255u8, 0, 0, 255 - 204 * x as u8]));
    let image = load_bytes(&png(&DynamicImage::ImageRgba8(pixels))).unwrap();
    let make = |params: Json, image: &Arc<Image>| {
        run::<MakeMask>(
            params,
            mask::Inputs {
                image: Some(image.clone()),
                mask: None,
            },
        )
    };
    let plane = |params| make(params, &image).unwrap().mask.values().unwrap();
    assert_close(&plane(json!({})), &[1.0, 0.2], 1e-6);
    // Brightness is of what is seen over white: 0.2 * 0.299 + 0.8.
    assert_close(&plane(json!({"from": "luma"})), &[0.299, 0.8598], 1e-6);
    let error = make(json!({}), &Arc::new(pattern(2, 2))).err().unwrap();
    assert!(error.to_string().contains("no alpha channel"));
    // load_image knows it before anything runs.
    let opaque = check::<LoadImage>(json!({"path": data("exif.jpg")}), &[]).unwrap();
    let links = [("image", opaque["image"].clone())];
    let faults = check::<MakeMask>(json!({}), &links).unwrap_err();
    assert!(faults[0].message.contains("no alpha channel"));
    assert!(check::<MakeMask>(json!({"from": "luma"}), &links).is_ok());
}

#[test]
fn mask_reports_every_wrong_parameter() {
    let faults = |params: Json, links: &[(&'static str, Vec<Known>)]| {
        let faults = check::<MakeMask>(params, links).unwrap_err();
        faults
            .into_iter()
            .map(|fault| fault.message)
            .collect::<Vec<_>>()
    };
    let (image, mask) = (
        ("image", vec![known(1, 4, 4)]),
        ("mask", vec![known(1, 4, 4)]),
    );
    assert!(faults(json!({}), &[])[0].contains("nothing is linked"));
    assert!(faults(json!({}), &[image, mask.clone()])[0].contains("both"));
    assert!(
        faults(json!({"from": "luma"}), std::slice::from_ref(&mask))[0]
            .contains("a mask is linked")
    );
    let wrong = json!({"threshold": 1.5, "grow": i32::MIN, "feather": -1});
    assert_eq!(faults(wrong, &[mask]).len(), 3);
}

// ---- the op `grid` ---------------------------------------------------------------------------------------------------

fn plain_image(batch: usize, width: usize, height: usize, colours: &[[f32; 3]]) -> ImageOrMask {
    let area = width * height;
    let planes: Vec<f32> = (0..batch)
        .flat_map(|picture| {
            colours[picture]
                .into_iter()
                .flat_map(move |value| vec![value; area])
        })
        .collect();
    let shape = (batch, 3, height, width);
    let rgb = candle_core::Tensor::from_vec(planes, shape, &candle_core::Device::Cpu).unwrap();
    ImageOrMask::Image(Arc::new(Image::new(rgb, None).unwrap()))
}

fn sheet(params: Json, images: Vec<ImageOrMask>) -> Arc<Image> {
    let links: Vec<Known> = images
        .iter()
        .map(|image| Known::Facts(serde_json::to_value(image.facts()).unwrap().into()))
        .collect();
    let known = check::<Grid>(params.clone(), &[("images", links)]).unwrap();
    let sheet = run::<Grid>(
        params,
        grid::Inputs {
            images,
            tables: AddedList::default(),
        },
    )
    .unwrap()
    .image;
    assert_eq!(
        only_facts(&known),
        sheet.facts(),
        "the check knows the sheet's size"
    );
    sheet
}

const RED: [f32; 3] = [1.0, 0.0, 0.0];
const GREEN: [f32; 3] = [0.0, 1.0, 0.0];
const BLUE: [f32; 3] = [0.0, 0.0, 1.0];

#[test]
fn a_sheet_has_a_column_an_entry_and_a_row_a_picture() {
    let images = vec![
        plain_image(2, 8, 8, &[RED, GREEN]),
        plain_image(1, 8, 4, &[BLUE]),
        ImageOrMask::Mask(Arc::new(Mask::from_values(2, 4, 4, vec![0.5; 32]).unwrap())),
    ];
    let made = sheet(
        json!({"cell": 16, "gap": 2, "filter": "nearest", "background": "#808080"}),
        images,
    );
    // Three cells of 16 and four gaps of 2; two rows and three gaps.
    assert_eq!(made.size(), (56, 38));
    let grey = [128.0 / 255.0; 3];
    assert_eq!(pixel(&made, 1, 1), grey);
    assert_eq!(pixel(&made, 2, 2), RED);
    assert_eq!(pixel(&made, 17, 17), RED);
    assert_eq!(pixel(&made, 18, 17), grey);
    assert_eq!(pixel(&made, 2, 20), GREEN);
    // The flat picture stands in the middle of its row, in both rows.
    assert_eq!(pixel(&made, 20, 5), grey);
    assert_eq!(pixel(&made, 20, 6), BLUE);
    assert_eq!(pixel(&made, 35, 13), BLUE);
    assert_eq!(pixel(&made, 35, 14), grey);
    assert_eq!(pixel(&made, 27, 28), BLUE);
    assert_eq!(pixel(&made, 45, 30), [0.5; 3]);
}

#[test]
fn the_cells_of_a_sheet_are_where_its_pictures_are_drawn() {
    let colours = [RED, GREEN, BLUE];
    let images: Vec<ImageOrMask> = (colours.iter().enumerate())
        .map(|(at, colour)| plain_image(1, 8, 8 - 2 * at, &[*colour]))
        .collect();
    let facts: Vec<_> = images.iter().map(ImageOrMask::facts).collect();
    let params = json!({
        "columns": 2, "column_labels": ["left", "right"], "row_labels": ["1", "2"], "blanks": [1],
        "cell": 32, "gap": 3, "filter": "nearest", "background": "#808080",
    });
    let grid: Grid = serde_json::from_value(params.clone()).unwrap();
    let cells = grid.cells(&facts).unwrap();
    let made = sheet(params, images);
    assert_eq!(cells.len(), 3);
    for (cell, colour) in cells.iter().zip(colours) {
        for x in [cell.x, cell.x + cell.width - 1] {
            for y in [cell.y, cell.y + cell.height - 1] {
                assert_eq!(pixel(&made, x, y), colour, "{cell:?}");
            }
        }
        assert_ne!(pixel(&made, cell.x - 1, cell.y), colour, "{cell:?}");
        assert_ne!(pixel(&made, cell.x, cell.y - 1), colour, "{cell:?}");
    }
    assert!(
        grid.cells(&facts[..1]).is_err(),
        "place 1 is no blank of two"
    );
}

#[test]
fn columns_fills_rows_with_pictures() {
    let images = vec![
        plain_image(3, 8, 8, &[RED, GREEN, BLUE]),
        plain_image(1, 8, 8, &[RED]),
    ];
    let params = json!({"columns": 3, "cell": 16, "gap": 1, "filter": "nearest"});
    let made = sheet(params, images);
    assert_eq!(made.size(), (52, 35));
    assert_eq!(pixel(&made, 40, 8), BLUE);
    assert_eq!(pixel(&made, 8, 25), RED);
    assert_eq!(pixel(&made, 25, 25), [1.0; 3]);
}

#[test]
fn labels_stand_above_columns_and_beside_rows() {
    let images = vec![
        plain_image(2, 8, 8, &[RED, GREEN]),
        plain_image(1, 8, 8, &[BLUE]),
    ];
    let params = json!({"labels": ["a", "a much longer label"], "row_labels": ["1", "2"], "cell": 64, "gap": 4});
    let made = sheet(params, images);
    // The font is 6x10: ten letters a line above a cell of 64, so "a much", "longer" and "label" are three lines of 10,
    // and 2 more pixels; "1" at the left takes 6, with 4 at both sides.
    assert_eq!(made.size(), (14 + 2 * 68, 4 + 32 + 2 * 68));
    let dark = |x0: usize, y0: usize, x1: usize, y1: usize| {
        (x0..x1)
            .flat_map(|x| (y0..y1).map(move |y| (x, y)))
            .filter(|(x, y)| pixel(&made, *x, *y) == [0.0; 3])
            .count()
    };
    // The short label stands at the foot of its column, the long one in all three lines.
    assert_eq!(dark(14, 4, 78, 24), 0);
    assert!(dark(14, 24, 78, 34) > 5);
    for line in 0..3 {
        assert!(dark(82, 4 + 10 * line, 146, 14 + 10 * line) > 20);
    }
    assert!(dark(0, 36, 14, 100) > 5 && dark(0, 104, 14, 168) > 5);
    assert_eq!(pixel(&made, 14, 36), RED);
    assert_eq!(pixel(&made, 145, 167), BLUE);
}

#[test]
fn labels_on_a_dark_sheet_are_light_and_unknown_letters_are_warned_of() {
    let node: Grid = serde_json::from_value(
        json!({"labels": ["Bär “n’est” – 熊"], "background": "#101010", "cell": 200}),
    )
    .unwrap();
    let engine = Engine::default();
    let inputs = grid::Inputs {
        images: vec![plain_image(1, 8, 8, &[RED])],
        tables: AddedList::default(),
    };
    let made = node.run(inputs, &engine).unwrap().image;
    assert!(
        values(&made)
            .chunks(made.size().0 * 30)
            .next()
            .unwrap()
            .contains(&1.0)
    );
    let warnings = engine.warnings.lock().unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("`熊`"), "{warnings:?}");
}

fn scored(
    params: &Json,
    images: &[ImageOrMask],
    tables: &[Arc<Table>],
) -> Result<Arc<Image>, String> {
    let links: Vec<Known> = (images.iter())
        .map(|image| Known::Facts(serde_json::to_value(image.facts()).unwrap().into()))
        .collect();
    let unknown = vec![Known::Unknown; tables.len()];
    let known = check::<Grid>(params.clone(), &[("images", links), ("tables", unknown)])
        .map_err(|faults| faults[0].message.clone())?;
    let inputs = grid::Inputs {
        images: images.to_vec(),
        tables: AddedList(tables.to_vec()),
    };
    let made = run::<Grid>(params.clone(), inputs)
        .map_err(|error| error.to_string())?
        .image;
    assert_eq!(
        only_facts(&known),
        made.facts(),
        "the check knows the sheet's size"
    );
    Ok(made)
}

#[test]
fn scores_stand_under_their_pictures_and_order_them() {
    const WHITE: [f32; 3] = [1.0; 3];
    let images = [
        plain_image(3, 8, 8, &[RED, GREEN, BLUE]),
        plain_image(1, 8, 8, &[WHITE]),
    ];
    let table = |rows: &[Json]| {
        let mut table = Table::new(["look", "note"]);
        for row in rows {
            table.push(vec![row.clone(), json!("x")]).unwrap();
        }
        Arc::new(table)
    };
    let tables = [
        table(&[json!(0.25), json!(null), json!(0.75)]),
        table(&[json!(0.5)]),
    ];
    let params = |order: &str| json!({"order": order, "scores": ["look"], "labels": ["seeds of a long name", ""], "cell": 80, "gap": 4, "background": "#808080"});
    // The centres of two rows of two pictures: two lines of label, 6 x 10 letters, above each, one of a score below.
    let colours = |made: &Image| {
        let (width, height) = made.size();
        let above = 2 * 10 + 2;
        let below = 10 + 2;
        assert_eq!(
            (width, height),
            (3 * 4 + 2 * 80, 4 + 2 * (above + 80 + 4 + below))
        );
        [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(column, row)| {
            let (x, y) = (4 + 84 * column, 4 + above + (above + 84 + below) * row);
            let under = (x..x + 80).flat_map(|x| (y + 80..y + 80 + below).map(move |y| (x, y)));
            let ink = under
                .filter(|(x, y)| pixel(made, *x, *y) == WHITE || pixel(made, *x, *y) == [0.0; 3]);
            assert!(ink.count() > 20, "a score stands under each picture");
            pixel(made, x + 40, y + 40)
        })
    };
    let made = scored(&params("look"), &images, &tables).unwrap();
    assert_eq!(
        colours(&made),
        [BLUE, WHITE, RED, GREEN],
        "what has no number is last"
    );
    let made = scored(&params("-look"), &images, &tables).unwrap();
    assert_eq!(colours(&made), [RED, WHITE, BLUE, GREEN]);
    // Of a line that is too long the name is cut, never the value.
    let narrow = |value: f64, cell: usize| {
        let one = [images[1].clone()];
        let tables = [table(&[json!(value)])];
        let params = json!({"scores": ["look"], "cell": cell, "gap": 0});
        values(&scored(&params, &one, &tables).unwrap())
    };
    assert!(
        narrow(0.123, 32) != narrow(0.124, 32),
        "32 pixels are five letters"
    );
    assert!(narrow(0.0004, 64) != narrow(0.0005, 64));
    assert!(narrow(0.123, 32) == narrow(0.123, 32));
    // What is not linked is not part of the key: sheets without scores keep theirs.
    let specs = <grid::Inputs as retouch_graph::Ports>::specs();
    assert_eq!(
        specs
            .iter()
            .map(|spec| (spec.name, spec.keyed))
            .collect::<Vec<_>>(),
        [("images", true), ("tables", false)]
    );
    // Without an order they stay where they are, a row a picture of the batch.
    let plain = json!({"scores": ["look", "note"], "cell": 80, "gap": 4});
    let made = scored(&plain, &images, &tables).unwrap();
    assert_eq!(made.size(), (3 * 4 + 160, 4 + 3 * (80 + 4 + 2 * 10 + 2)));

    let refused = |params: Json, images: &[ImageOrMask], tables: &[Arc<Table>]| {
        scored(&params, images, tables).unwrap_err()
    };
    let columns = json!({"scores": ["looks"]});
    assert!(refused(columns, &images, &tables).contains("no column `looks`"));
    assert!(refused(json!({"scores": ["look"]}), &images, &[]).contains("no `tables`"));
    assert!(
        refused(json!({"scores": ["look"]}), &images, &tables[..1]).contains("1 `tables` for 2")
    );
    assert!(refused(json!({}), &images, &tables).contains("nothing of them"));
    assert!(refused(json!({"order": "-"}), &images, &tables).contains("names no column"));
    assert!(
        refused(
            json!({"order": "look", "row_labels": ["a"]}),
            &images,
            &tables
        )
        .contains("moves")
    );
    let short = [table(&[json!(0.25), json!(0.5)]), table(&[json!(0.5)])];
    assert!(
        refused(json!({"order": "look"}), &images, &short).contains("2 rows for the 3 pictures")
    );
    let sizes = [images[0].clone(), plain_image(1, 8, 4, &[WHITE])];
    assert!(refused(json!({"order": "look"}), &sizes, &tables).contains("another size"));
}

#[test]
fn grid_reports_every_wrong_parameter() {
    let faults = |params: Json, links: Vec<Known>| {
        let faults = check::<Grid>(params, &[("images", links)]).unwrap_err();
        faults
            .into_iter()
            .map(|fault| fault.message)
            .collect::<Vec<_>>()
    };
    let one = || vec![known(1, 8, 8)];
    assert!(faults(json!({}), vec![])[0].contains("no pictures"));
    assert_eq!(
        faults(json!({"labels": ["a", "b"]}), one()),
        ["2 labels for 1 entry of `images`"]
    );
    assert_eq!(
        faults(json!({"row_labels": ["a", "b"]}), one()),
        ["2 row labels for 1 row"]
    );
    assert!(
        faults(json!({}), vec![known(2, 8, 8), known(3, 8, 8)])[0]
            .contains("entry 1 of `images` has 2 pictures")
    );
    assert_eq!(
        faults(json!({"cell": 1, "gap": 9999, "columns": 0}), one()).len(),
        3
    );
    assert!(faults(json!({"cell": 4096}), vec![known(20, 8, 8)])[0].contains("megapixels"));
    // Unknown facts: what can be checked is.
    assert!(
        check::<Grid>(json!({}), &[("images", vec![Known::Unknown])])
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        faults(json!({"labels": ["a", "b"]}), vec![Known::Unknown]).len(),
        1
    );
}

// ---- all of them -----------------------------------------------------------------------------------------------------

#[test]
fn a_jpeg_of_a_saved_picture_is_close_to_it() {
    let pixels: Vec<u8> = (0..64u8)
        .flat_map(|index| [4 * (index % 8), 4 * (index / 8), 100])
        .collect();
    let image = Image::from_rgb8(8, 8, &pixels).unwrap();
    let again = load_bytes(&image.encode("jpg").unwrap()[0]).unwrap();
    assert_close(&values(&again), &values(&image), 0.06);
    // The encoder that the tests use elsewhere writes the same pixels.
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(&pixels, 8, 8, ExtendedColorType::Rgb8)
        .unwrap();
    assert_eq!(values(&load_bytes(&bytes).unwrap()), values(&image));
}

// ---- what a file declares ----------------------------------------------------------------------------------------------

#[test]
fn a_jpeg_has_bytes_for_the_picture_that_it_declares() {
    let mut bytes = io::Cursor::new(Vec::new());
    let picture = DynamicImage::new_rgb8(64, 64);
    picture.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    let small = bytes.into_inner();
    assert!(load_bytes(&small).is_ok());
    let frame = small
        .windows(2)
        .position(|marker| marker == [0xff, 0xc0])
        .unwrap();
    let mut large = small.clone();
    large[frame + 5..frame + 9].copy_from_slice(&[0x1f, 0x40, 0x1f, 0x40]);
    let fault = check_bytes(&large).unwrap_err();
    assert!(fault.message.contains("cut short"), "{}", fault.message);
    assert!(load_bytes(&large).is_err());
    // The least that there is: one colour, large.
    let mut bytes = io::Cursor::new(Vec::new());
    let picture = DynamicImage::new_luma8(4096, 4096);
    picture.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    assert_eq!(check_bytes(&bytes.into_inner()).unwrap().width, 4096);
}
