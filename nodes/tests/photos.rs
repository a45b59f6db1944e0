//! Photos of a subject: what is found in a folder, how it is framed, what it is called, and where its subject is.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::{DynamicImage, Rgb, RgbImage};
use retouch_diffusion::networks::sam::{Prompt, Sam};
use retouch_graph::{DiskFiles, Fault, FaultKind, Known, Node, NodeError, Types};
use retouch_nodes::image::segment::{self, Segment};
use retouch_nodes::load::LoadImages;
use retouch_nodes::load::load_images::{Inputs, Outputs};
use retouch_nodes::payload::image::Image;
use retouch_nodes::payload::mask::Mask;
use retouch_nodes::payload::photos::{MaskOrPhotoMasks, PhotosFacts};
use serde_json::{Value as Json, json};

use crate::support::{Stage, node};

/// A folder of photos that goes away with its handle.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// A picture whose pixel at x, y is red x, green y, in 255ths.
    fn picture(&self, name: &str, width: u32, height: u32) -> &Self {
        let of = |x: u32, y: u32| {
            Rgb([
                u8::try_from(x % 256).unwrap(),
                u8::try_from(y % 256).unwrap(),
                7,
            ])
        };
        RgbImage::from_fn(width, height, of)
            .save(self.0.path().join(name))
            .unwrap();
        self
    }

    /// A mask that is white from x0, y0 up to x1, y1.
    fn mask(&self, name: &str, size: (u32, u32), white: [u32; 4]) -> &Self {
        let [x0, y0, x1, y1] = white;
        let inside = |x: u32, y: u32| (x0..x1).contains(&x) && (y0..y1).contains(&y);
        let of = |x, y| Rgb(if inside(x, y) { [255; 3] } else { [0; 3] });
        RgbImage::from_fn(size.0, size.1, of)
            .save(self.0.path().join(name))
            .unwrap();
        self
    }

    fn text(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.0.path().join(name), text).unwrap();
        self
    }

    fn params(&self, more: Json) -> Json {
        let mut params = json!({"path": self.path()});
        let more = more.as_object().unwrap().clone();
        params.as_object_mut().unwrap().extend(more);
        params
    }

    fn load(&self, more: Json) -> Result<Outputs, NodeError> {
        load(self.params(more), None)
    }

    /// The facts and the warnings of a check, or the faults.
    fn check(&self, more: Json) -> Result<(Facts, Vec<Fault>), Vec<Fault>> {
        check(self.params(more), &[])
    }
}

type Facts = BTreeMap<&'static str, Vec<Known>>;

fn load(params: Json, masks: Option<MaskOrPhotoMasks>) -> Result<Outputs, NodeError> {
    Stage::default().run(&node::<LoadImages>(params), Inputs { masks })
}

fn check(params: Json, links: &[(&'static str, Known)]) -> Result<(Facts, Vec<Fault>), Vec<Fault>> {
    let node = node::<LoadImages>(params);
    // As the engine does: what cannot be found is told by `reads`.
    node.reads(&DiskFiles::new())?;
    let links = links
        .iter()
        .map(|(name, known)| (*name, vec![known.clone()]));
    let types = node.check(&Types::from_known(links.collect()), &DiskFiles::new())?;
    let warnings = types.warnings().to_vec();
    Ok((types.into_known(), warnings))
}

fn photos_facts(facts: &Facts) -> PhotosFacts {
    let Known::Facts(facts) = &facts["images"][0] else {
        panic!("{facts:?}")
    };
    serde_json::from_value((**facts).clone()).unwrap()
}

fn one_fault<T: std::fmt::Debug>(result: Result<T, Vec<Fault>>) -> Fault {
    let mut faults = result.unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

/// The value of a channel in 255ths.
fn value(image: &Image, x: usize, y: usize, channel: usize) -> f32 {
    let plane = image.rgb.get(0).unwrap().get(channel).unwrap();
    255.0
        * plane
            .get(y)
            .unwrap()
            .get(x)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
}

#[test]
fn a_folder_gives_its_pictures_in_the_order_of_their_names_with_captions_and_masks() {
    let folder = Folder::new();
    folder
        .picture("b.png", 40, 40)
        .picture("a.JPG.png", 40, 40)
        .picture("c.webp", 40, 40)
        .picture(".hidden.png", 40, 40)
        .text("b.txt", "\u{feff}a [trigger]\n on a  table\n")
        .text("c.txt", "  \n")
        .text("notes.md", "not a photo");
    std::fs::create_dir(folder.path().join("more")).unwrap();
    let made = folder
        .load(json!({"size": 8, "trigger": "sks dog", "caption": "photo of [trigger]", "reference": 2}))
        .unwrap();
    let photos = &made.images.pictures;
    let names: Vec<&str> = photos.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["a.JPG.png", "b.png", "c.webp"]);
    // Of the first and the last the general caption; a text of nothing is none.
    let captions: Vec<_> = photos
        .iter()
        .map(|p| p.caption.as_deref().unwrap())
        .collect();
    let general = "photo of sks dog";
    assert_eq!(captions, [general, "a sks dog on a table", general]);
    assert!(made.masks.is_none());
    assert!(Arc::ptr_eq(&made.reference, &photos[1].image));
    let fault = one_fault(folder.check(json!({"size": 8})));
    assert!(fault.message.contains("b.txt"), "{fault:?}");
}

#[test]
fn photos_captions_and_masks_are_read_under_roles_without_paths() {
    let folder = Folder::new();
    folder
        .picture("1.png", 20, 20)
        .mask("1-mask.png", (20, 20), [5, 5, 10, 10])
        .text("1.txt", "a dog")
        .picture("2.png", 20, 20);
    let files = DiskFiles::new();
    let node = node::<LoadImages>(folder.params(json!({})));
    let reads = node.reads(&files).unwrap();
    let roles: Vec<&str> = reads.iter().map(|read| read.role.as_str()).collect();
    assert_eq!(
        roles,
        [
            "photo/0000/1.png",
            "caption/0000",
            "mask/0000",
            "photo/0001/2.png"
        ]
    );
    // What may come is watched: the caption that is not there, and the folder.
    let watched = files.read_so_far();
    assert!(watched.contains(&folder.path().join("2.txt")));
    assert!(watched.contains(&folder.path()));
}

#[test]
fn photos_are_cropped_to_the_centre_to_buckets_or_to_their_subject() {
    let folder = Folder::new();
    // Of the second the bucket of 96 x 160 is nearest: 0.6 to its 0.5833.
    folder
        .picture("1.png", 200, 100)
        .picture("2.png", 140, 240)
        .mask("1-mask.png", (200, 100), [150, 40, 170, 50])
        .mask("2-mask.png", (70, 120), [10, 20, 20, 30]);
    let centre = folder.load(json!({"size": 100})).unwrap();
    let photo = &centre.images.pictures[0];
    assert_eq!(
        (photo.size(), photo.original_size),
        ((100, 100), (200, 100))
    );
    assert_eq!((photo.crop.x, photo.crop.y, photo.crop.width), (50, 0, 100));
    assert_eq!(photo.crop_top_left(), (0, 50));
    // Not resized: the pixels are those of the file, 50 to the right.
    assert!((value(&photo.image, 3, 9, 0) - 53.0).abs() < 1e-3);
    assert!((value(&photo.image, 3, 9, 1) - 9.0).abs() < 1e-3);

    let buckets = folder
        .load(json!({"size": 128, "crop": "none", "multiple": 32}))
        .unwrap();
    let sizes: Vec<_> = buckets.images.pictures.iter().map(|p| p.size()).collect();
    assert_eq!(sizes, [(160, 96), (96, 160)]);
    let crop = buckets.images.pictures[1].crop;
    assert_eq!((crop.x, crop.y, crop.width, crop.height), (0, 3, 140, 233));
    let (facts, _) = folder
        .check(json!({"size": 128, "crop": "none", "multiple": 32}))
        .unwrap();
    assert_eq!(photos_facts(&facts).sizes, sizes);

    // A subject of 20 x 10 with a margin of a half on every side is a square of 40 around its centre, 160 and 45.
    let subject = folder
        .load(json!({"size": 40, "crop": "subject", "margin": 0.5}))
        .unwrap();
    let photo = &subject.images.pictures[0];
    let crop = photo.crop;
    assert_eq!((crop.x, crop.y, crop.width, crop.height), (140, 25, 40, 40));
    assert!((value(&photo.image, 0, 0, 0) - 140.0).abs() < 1e-3);
    // Its mask is cropped as it is.
    let masks = subject.masks.unwrap();
    let mask = masks.masks[0].mask.values().unwrap();
    let covered: Vec<usize> = (0..1600).filter(|i| mask[*i] > 0.5).collect();
    assert_eq!((covered[0], covered.len()), (15 * 40 + 10, 200));
    // A mask of half the size is enlarged first; near the border the square moves into the photo.
    let crop = subject.images.pictures[1].crop;
    assert_eq!((crop.x, crop.y, crop.width), (10, 30, 40));
}

#[test]
fn masks_that_are_linked_are_laid_over_the_photos_they_were_made_of() {
    let folder = Folder::new();
    folder.picture("1.png", 200, 100).picture("2.png", 100, 100);
    let whole = folder.load(json!({"size": 50})).unwrap();
    // Of the first photo its middle 100 x 100 at half the size: covered is its lower right quarter.
    let mut plane = vec![0f32; 2500];
    for (index, value) in plane.iter_mut().enumerate() {
        *value = f32::from(u8::from(index % 50 >= 25 && index / 50 >= 25));
    }
    let mask = Arc::new(Mask::from_values(1, 50, 50, plane).unwrap());
    let of = |index: usize| retouch_nodes::payload::PhotoMask {
        mask: Arc::clone(&mask),
        original_size: whole.images.pictures[index].original_size,
        crop: whole.images.pictures[index].crop,
    };
    let masks = |order: [usize; 2]| {
        let masks = order.map(of).to_vec();
        MaskOrPhotoMasks::PhotoMasks(Arc::new(retouch_nodes::payload::PhotoMasks { masks }))
    };
    let params = folder.params(json!({"size": 25, "crop": "subject", "margin": 0}));
    let made = load(params.clone(), Some(masks([0, 1]))).unwrap();
    let crop = made.images.pictures[0].crop;
    assert_eq!((crop.x, crop.y, crop.width, crop.height), (100, 50, 50, 50));
    let crop = made.images.pictures[1].crop;
    assert_eq!((crop.x, crop.y, crop.width, crop.height), (50, 50, 50, 50));
    let error = load(params.clone(), Some(masks([1, 0])))
        .map(|_| ())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("mask 1 is of a photo of 100x100"),
        "{error}"
    );
    // A batch of masks of one size lies over whole photos; they are counted before the run and in it.
    let batch = Arc::new(Mask::from_values(1, 4, 4, vec![1.0; 16]).unwrap());
    let error = load(params.clone(), Some(MaskOrPhotoMasks::Mask(batch)))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.to_string(), "1 masks are linked to 2 photos");
    let facts = json!({"batch": 3, "width": 4, "height": 4});
    let fault = one_fault(check(params, &[("masks", Known::Facts(facts.into()))]));
    assert_eq!(fault.field.as_deref(), Some("masks"));
}

#[test]
fn a_photo_is_upright_before_it_is_cropped() {
    let folder = Folder::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/exif.jpg");
    std::fs::copy(data, folder.path().join("turned.jpg")).unwrap();
    let made = folder.load(json!({"size": 16})).unwrap();
    // Written 32 across and 16 down, and to be turned by a quarter.
    assert_eq!(made.images.pictures[0].original_size, (16, 32));
    let (facts, warnings) = folder.check(json!({"size": 16})).unwrap();
    assert_eq!(photos_facts(&facts).sizes, [(16, 16)]);
    assert!(
        warnings[0].message.contains("the only photo"),
        "{warnings:?}"
    );
}

#[test]
fn what_is_wrong_with_photos_is_told_with_the_name_of_the_file() {
    let folder = Folder::new();
    let fault = one_fault(folder.check(json!({})));
    assert_eq!(fault.kind, FaultKind::File);
    assert!(
        fault.message.contains("there is no photo in the folder"),
        "{fault:?}"
    );
    let missing = one_fault(check(json!({"path": folder.path().join("nothing")}), &[]));
    assert!(missing.message.contains("there is no file"), "{missing:?}");
    let empty = one_fault(check(json!({"path": []}), &[]));
    assert!(empty.message.contains("is empty"), "{empty:?}");

    folder.picture("1.png", 20, 20).picture("2.png", 20, 20);
    // A photo that cannot be read is not left out without a word.
    folder.text("3.heic", "\0\0\0\x18ftypheic");
    let fault = one_fault(folder.check(json!({"size": 16})));
    assert!(fault.message.contains("3.heic"), "{fault:?}");
    std::fs::remove_file(folder.path().join("3.heic")).unwrap();

    std::fs::write(folder.path().join("2.txt"), [0xff, 0xfe, b'a', 0]).unwrap();
    let fault = one_fault(folder.check(json!({"size": 16})));
    assert!(
        fault.message.contains("2.txt` is not UTF-8 text"),
        "{fault:?}"
    );
    folder.text("2.txt", "a dog").text("1.txt", "a [trigger]");
    let fault = one_fault(folder.check(json!({"size": 16})));
    assert!(
        fault
            .message
            .contains("1.txt` has [trigger], and no `trigger`"),
        "{fault:?}"
    );
    assert!(folder.load(json!({"size": 16})).is_err());

    let (facts, warnings) = folder
        .check(json!({"size": 32, "trigger": "sks dog"}))
        .unwrap();
    assert_eq!(photos_facts(&facts).captions, 2);
    let said: Vec<&str> = warnings.iter().map(|w| w.message.as_str()).collect();
    assert_eq!(
        said,
        [
            "the trigger `sks dog` is not in the caption of `2.png`",
            "`1.png`, `2.png` are smaller than `size` and will be enlarged",
        ]
    );
    let fault =
        one_fault(folder.check(json!({"size": 16, "trigger": "sks dog", "crop": "subject"})));
    assert!(fault.message.contains("`1.png` has none"), "{fault:?}");
    let fault = one_fault(folder.check(json!({"size": 16, "trigger": "sks dog", "reference": 3})));
    assert_eq!(fault.field.as_deref(), Some("reference"));
    let fault = one_fault(folder.check(json!({"size": 100, "trigger": "x", "crop": "none"})));
    assert_eq!(fault.message, "size 100 is not a multiple of 64");

    // A mask of another shape, and one that covers nothing.
    folder
        .mask("1-mask.png", (40, 20), [0, 0, 9, 9])
        .mask("2-mask.png", (20, 20), [0, 0, 0, 0]);
    let params = json!({"size": 16, "trigger": "dog", "crop": "subject"});
    let error = folder
        .load(params.clone())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("1-mask.png` has 40x20 pixels"), "{error}");
    folder.mask("1-mask.png", (20, 20), [0, 0, 9, 9]);
    let error = folder.load(params).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("the mask of `2.png` is empty"), "{error}");
}

// ---- where the subject is --------------------------------------------------------------------------------------------

fn picture_of(path: &Path) -> Image {
    let picture = image::open(path).unwrap().to_rgb8();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Image::from_rgb8(width, height, picture.as_raw()).unwrap()
}

fn segmented(image: Image) -> Result<Arc<Mask>, NodeError> {
    let inputs = segment::Inputs {
        image: Some(Arc::new(image)),
        images: None,
    };
    let made = Stage::default().run(&node::<Segment>(json!({})), inputs)?;
    Ok(made.mask.unwrap())
}

#[test]
fn masks_of_subjects_are_those_of_onnxruntime() {
    let expected = crate::support::expected("segments");
    let references = Path::new(env!("CARGO_MANIFEST_DIR")).join("../references/teddy");
    for name in ["01", "02"] {
        let mask = segmented(picture_of(&references.join(format!("{name}.png")))).unwrap();
        let got = mask.plane.clone();
        let expected = &expected[name];
        assert_eq!(got.dims()[1..], *expected.dims());
        let apart = (got.squeeze(0).unwrap() - expected).unwrap().abs().unwrap();
        let apart: f32 = apart
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar()
            .unwrap();
        println!("{name}: {apart:e}");
        assert!(apart < 2e-3, "{name}: {apart}");
    }
}

#[test]
fn a_picture_in_which_nothing_stands_out_has_no_subject() {
    let grey = DynamicImage::ImageRgb8(RgbImage::from_pixel(40, 30, Rgb([128; 3])));
    let grey = Image::from_rgb8(40, 30, grey.as_bytes()).unwrap();
    let error = segmented(grey).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("there is no subject in picture 1"),
        "{error}"
    );
}

#[test]
fn what_segment_makes_is_known_before_it_runs() {
    let node = node::<Segment>(json!({}));
    let known = |name: &'static str, facts: Json| {
        BTreeMap::from([(name, vec![Known::Facts(facts.into())])])
    };
    let check = |links| node.check(&Types::from_known(links), &DiskFiles::new());
    assert!(check(BTreeMap::new()).is_err());
    let image = known("image", json!({"batch": 2, "width": 5, "height": 4}));
    let made = check(image.clone()).unwrap().into_known();
    assert!(matches!(&made["masks"][0], Known::Absent(_)));
    assert_eq!(made["mask"], image["image"]);
    let photos = known("images", json!({"sizes": [[5, 4], [6, 4]], "captions": 0}));
    let made = check(photos.clone()).unwrap().into_known();
    assert!(matches!(&made["mask"][0], Known::Absent(_)));
    assert_eq!(
        made["masks"][0],
        Known::Facts(json!({"mask_sizes": [[5, 4], [6, 4]]}).into())
    );
    assert!(check(photos.into_iter().chain(image).collect()).is_err());
}

#[test]
fn segment_anything_gives_the_masks_of_transformers() {
    let mut expected = crate::support::expected("sam");
    let weights: HashMap<String, Tensor> = (expected.iter())
        .filter_map(|(name, tensor)| {
            Some((name.strip_prefix("weights.")?.to_owned(), tensor.clone()))
        })
        .collect();
    let network = Sam::load(weights, &Device::Cpu).unwrap();
    assert_eq!(network.side(), 64);
    let picture = expected.remove("picture").unwrap();
    let corners = Some([0.125, 0.25, 0.75, 0.875]);
    for (name, points, corners) in [
        ("point", vec![(0.25, 0.5, true)], None),
        ("points", vec![(0.25, 0.5, true), (0.75, 0.25, false)], None),
        ("box", vec![], corners),
        ("both", vec![(0.5, 0.5, true)], corners),
    ] {
        let prompt = Prompt { points, corners };
        let (masks, scores) = network.masks(&picture, &prompt).unwrap();
        let (masks, scores) = (masks.squeeze(0).unwrap(), scores.squeeze(0).unwrap());
        // candle-transformers' decoder takes GELU by tanh, the original by erf.
        for (what, got) in [("masks", masks), ("scores", scores)] {
            let expected = &expected[&format!("{name}.{what}")];
            let apart = (got - expected)
                .unwrap()
                .abs()
                .unwrap()
                .flatten_all()
                .unwrap();
            let apart: f32 = apart.max(0).unwrap().to_scalar().unwrap();
            println!("{name} {what}: {apart:e}");
            assert!(apart < 1e-2, "{name} {what}: {apart}");
        }
        // Of several masks the one of the highest score, at the picture's size.
        let mask = network.forward(&picture, &prompt).unwrap();
        assert_eq!(mask.dims(), [48, 64]);
    }
    assert!(network.masks(&picture, &Prompt::default()).is_err());
    let error = Sam::load(HashMap::new(), &Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("this is not a Segment Anything model"),
        "{error}"
    );
}

#[test]
fn what_segment_anything_is_told_is_checked() {
    let faults = |params: Json| {
        let links = BTreeMap::from([("image", vec![Known::Unknown])]);
        let checked = node::<Segment>(params).check(&Types::from_known(links), &DiskFiles::new());
        let faults = checked.map(|_| ()).err().unwrap_or_default();
        faults
            .into_iter()
            .map(|fault| fault.field.unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(faults(json!({})), [""; 0]);
    assert_eq!(faults(json!({"points": [[0.5, 0.5]]})), ["points"]);
    assert_eq!(faults(json!({"model": "sam.safetensors"})), ["model"]);
    assert_eq!(
        faults(json!({"model": "m", "points": [[0.5, 1.5]]})),
        ["points"]
    );
    assert_eq!(
        faults(json!({"model": "m", "box": [0.5, 0.1, 0.4, 0.9]})),
        ["box"]
    );
    assert_eq!(
        faults(json!({"model": "m", "box": [0.1, 0.1, 0.4, 0.9]})),
        [""; 0]
    );
    let missing = node::<Segment>(json!({"model": "nowhere.safetensors", "points": [[0.5, 0.5]]}));
    assert_eq!(
        missing.reads(&DiskFiles::new()).unwrap_err()[0].kind,
        FaultKind::File
    );
}
