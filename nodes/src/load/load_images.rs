//! `load_images`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use retouch_graph::files::no_file;
use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::{AssetPath, Template};
use crate::image::frame::{self, Crop, Framing};
use crate::image::mask::luma;
use crate::image::resample::{self, CropBox, Filter};
use crate::load::load_image::{Header, inspect, load, over};
use crate::payload::image::{Image, ImageFacts};
use crate::payload::mask::Mask;
use crate::payload::photos::{
    MAX_PHOTOS, MaskOrPhotoMasks, Photo, PhotoMask, PhotoMasks, PhotoMasksFacts, Photos,
    PhotosFacts,
};

/// What a caption's file ends in.
const CAPTION: &str = "txt";

/// What the name of a mask's file has behind the name of its photo.
const MASK: &str = "-mask";

/// What names of picture files end in. Those that cannot be read are among them: whoever puts them into the folder is told.
const ENDINGS: [&str; 14] = [
    "png", "jpg", "jpeg", "jpe", "jfif", "webp", "heic", "heif", "avif", "jxl", "tif", "tiff",
    "bmp", "gif",
];

/// The most bytes of a caption; text encoders read 77 tokens at a time.
const MAX_CAPTION: u64 = 64 * 1024;

/// What stands for `trigger` in a caption.
const PLACEHOLDER: &str = "[trigger]";

/// Reads photos of a subject: the pictures of a folder, or of a list, each with its caption and at the size for training.
///
/// Every picture is read and turned as `load_image` does, cropped, and resized by Lanczos. The caption of `01.jpg` is the
/// text of `01.txt` beside it, where there is one; its mask is `01-mask.png`. Of a folder all pictures are taken, in the
/// order of their names; folders in it are not looked into. What a photo was before it was cropped is kept with it, as
/// Stable Diffusion XL is told it in training.
///
/// A photo alone, a photo that must be enlarged and a caption without the trigger are warnings.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadImages {
    /// A folder of photos, a photo, or a list of these.
    pub path: Paths,
    /// The side of the square that a photo becomes, in pixels; with `crop: none` the side of the square that has the area
    /// of its bucket. 512 is what Stable Diffusion 1 was trained at, 768 or 512 Stable Diffusion 2, 1024 XL.
    #[serde(default = "size")]
    #[schemars(range(min = 8, max = 4096))]
    pub size: usize,
    /// What of a photo is kept.
    #[serde(default)]
    pub crop: Crop,
    /// With `crop: none`: what the sides of the buckets are multiples of, in pixels.
    #[serde(default = "multiple")]
    #[schemars(range(min = 8, max = 1024))]
    pub multiple: usize,
    /// With `crop: subject`: how much is kept around the subject on every side, as a share of the longer side of its
    /// bounding box.
    #[serde(default = "margin")]
    #[schemars(range(min = 0, max = 4))]
    pub margin: f64,
    /// What `[trigger]` stands for in captions: the token and the class, `sks dog`.
    #[serde(default)]
    pub trigger: Option<Template>,
    /// The caption of photos that have none; `[trigger]` is filled in here too.
    #[serde(default)]
    pub caption: Option<Template>,
    /// Which photo is given alone as `reference`, counted from 1.
    #[serde(default = "first")]
    #[schemars(range(min = 1, max = 1000))]
    pub reference: usize,
}

fn size() -> usize {
    512
}

fn multiple() -> usize {
    64
}

fn margin() -> f64 {
    0.1
}

fn first() -> usize {
    1
}

/// Paths of photos.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum Paths {
    /// One.
    One(AssetPath),
    /// Several.
    Several(Vec<AssetPath>),
}

ports! {
    /// What `load_images` takes.
    pub struct Inputs {
        /// The subject's masks, one for each photo in their order, in place of those beside the photos: what `segment` made
        /// of the same photos, or masks of whole photos.
        pub masks: Option<MaskOrPhotoMasks>,
    }
}

ports! {
    /// What `load_images` gives.
    pub struct Outputs {
        /// The photos.
        pub images: Arc<Photos>,
        /// Their masks, cropped as they are; made when every photo has one, beside it or linked.
        pub masks: Option<Arc<PhotoMasks>>,
        /// One of the photos, for what takes a single picture.
        pub reference: Arc<Image>,
    }
}

/// A photo that was found, and what belongs to it.
struct Found {
    path: PathBuf,
    /// The name of its file.
    name: String,
    caption: Option<PathBuf>,
    mask: Option<PathBuf>,
}

impl Node for LoadImages {
    const OP: &'static str = "load_images";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        let mut reads = Vec::new();
        for (index, found) in self.find(files)?.into_iter().enumerate() {
            // The name is in the role: it decides the order, and messages have it.
            let role = |kind: &str| format!("{kind}/{index:04}/{}", found.name);
            let beside = [("caption", found.caption), ("mask", found.mask)];
            reads.push(ReadFile {
                role: role("photo"),
                path: found.path,
            });
            reads.extend(beside.into_iter().filter_map(|(kind, path)| {
                Some(ReadFile {
                    role: format!("{kind}/{index:04}"),
                    path: path?,
                })
            }));
        }
        Ok(reads)
    }

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let mut faults = self.faults();
        // What cannot be found, `reads` reports.
        let Ok(found) = self.find(files) else {
            return if faults.is_empty() {
                Ok(Types::unknown())
            } else {
                Err(faults)
            };
        };
        let masks = self.masks(&found, inputs);
        let masked = masks.as_ref().is_ok_and(|masked| *masked);
        faults.extend(masks.err());
        if self.reference > found.len() {
            faults.push(
                Fault::value(
                    "reference",
                    format!(
                        "there is no photo {}: there are {}",
                        self.reference,
                        found.len()
                    ),
                )
                .help("photos are counted from 1, in the order of their names"),
            );
        }
        let mut warnings = Vec::new();
        let mut sizes = Vec::new();
        let mut small = Vec::new();
        for found in &found {
            match inspect(&found.path, files) {
                Ok(Some(header)) => {
                    let (size, is_small) = self.becomes(header);
                    sizes.push(size);
                    small.extend(is_small.then_some(found.name.as_str()));
                }
                Ok(None) => {}
                Err(more) => faults.extend(more),
            }
            if let Some(mask) = &found.mask {
                faults.extend(inspect(mask, files).err().into_iter().flatten());
            }
        }
        let captions = self.captions(&found, files, &mut faults, &mut warnings);
        if !faults.is_empty() {
            return Err(faults);
        }
        if found.len() == 1 {
            let only = format!("`{}` is the only photo", found[0].name);
            warnings.push(Fault::content("path", only).help(
                "from one photo a model learns its background and its pose too; take four to six, of other places and sides",
            ));
        }
        if !small.is_empty() {
            warnings.push(
                Fault::content(
                    "path",
                    format!("{} smaller than `size` and will be enlarged", are(&small)),
                )
                .help("take larger photos, or a smaller `size`"),
            );
        }
        let reference = sizes.get(self.reference - 1).copied();
        let mut types = Types::unknown();
        if sizes.len() == found.len() {
            let mask_sizes = sizes.clone();
            types = types.with("images", &PhotosFacts { sizes, captions });
            if masked {
                types = types.with("masks", &PhotoMasksFacts { mask_sizes });
            }
        }
        if let Some((width, height)) = reference {
            let facts = ImageFacts {
                batch: 1,
                width,
                height,
            };
            types = types.with("reference", &facts);
        }
        if !masked {
            types = types.without(
                "masks",
                "`load_images` makes `masks` where every photo has a `NAME-mask.png` beside it, or masks are linked",
            );
        }
        Ok(types.warn(warnings))
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let files = context.files();
        let found = (self.find(files)).map_err(|faults| failed(faults.into_iter().next()))?;
        let linked = inputs.masks;
        if let Some(masks) = &linked
            && masks.len() != found.len()
        {
            return Err(NodeError::failed(format!(
                "{} masks are linked to {} photos",
                masks.len(),
                found.len()
            )));
        }
        let mut pictures = Vec::with_capacity(found.len());
        let mut masks = Vec::with_capacity(found.len());
        let number = found.len();
        for (index, found) in found.iter().enumerate() {
            context.check_cancelled()?;
            let (photo, mask) = self.photo(found, index, linked.as_ref(), files)?;
            pictures.push(photo);
            masks.extend(mask);
            context.progress(index + 1, number);
        }
        let reference = pictures
            .get(self.reference - 1)
            .ok_or_else(|| NodeError::failed(format!("there is no photo {}", self.reference)))?;
        Ok(Outputs {
            reference: Arc::clone(&reference.image),
            masks: (masks.len() == pictures.len()).then(|| Arc::new(PhotoMasks { masks })),
            images: Arc::new(Photos::new(pictures)?),
        })
    }
}

fn failed(fault: Option<Fault>) -> NodeError {
    let Some(fault) = fault else {
        return NodeError::failed("the photos cannot be found");
    };
    let error = NodeError::failed(fault.message);
    match fault.help {
        Some(help) => error.help(help),
        None => error,
    }
}

impl LoadImages {
    fn framing(&self) -> Framing {
        Framing {
            size: self.size,
            crop: self.crop,
            multiple: self.multiple,
            margin: self.margin,
        }
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.crop == Crop::None && !self.size.is_multiple_of(self.multiple) {
            faults.push(
                Fault::value(
                    "size",
                    format!("size {} is not a multiple of {}", self.size, self.multiple),
                )
                .help("with `crop: none` both sides of every bucket are multiples of `multiple`"),
            );
        }
        if let Some(caption) = &self.caption
            && self.trigger.is_none()
            && caption.contains(PLACEHOLDER)
        {
            faults.push(no_trigger("caption", "`caption`"));
        }
        faults
    }

    /// Whether there are masks of all photos; a fault where they are needed and are not there.
    fn masks(&self, found: &[Found], inputs: &Types<Inputs>) -> Result<bool, Fault> {
        if inputs.is_linked("masks") {
            let facts = inputs.facts::<PhotoMasksFacts>("masks");
            let number = facts.map(|facts| facts.mask_sizes.len());
            let number = number.or_else(|| Some(inputs.facts::<ImageFacts>("masks")?.batch));
            return match number {
                Some(number) if number != found.len() => Err(Fault::mismatch(
                    "masks",
                    format!("{number} masks are linked to {} photos", found.len()),
                )
                .help("link what `segment` makes of the same photos")),
                _ => Ok(true),
            };
        }
        let missing = found.iter().find(|found| found.mask.is_none());
        match missing {
            Some(missing) if self.crop == Crop::Subject => Err(Fault::value(
                "crop",
                format!(
                    "`crop: subject` needs a mask of every photo, and `{}` has none",
                    missing.name
                ),
            )
            .help(
                "link `masks` to what `segment` makes of the same photos, or put NAME-mask.png beside each",
            )),
            missing => Ok(missing.is_none()),
        }
    }

    /// The size that a photo will have, and whether it is enlarged.
    fn becomes(&self, header: Header) -> ((usize, usize), bool) {
        let ImageFacts { width, height, .. } = header.facts();
        let (size, crop) = self.framing().without_mask((width, height));
        (size, crop.width < size.0 || crop.height < size.1)
    }

    /// How many photos have a caption; faults and warnings of those that are there.
    fn captions(
        &self,
        found: &[Found],
        files: &dyn Files,
        faults: &mut Vec<Fault>,
        warnings: &mut Vec<Fault>,
    ) -> usize {
        let mut captions = 0;
        let mut without = Vec::new();
        for found in found {
            match self.caption_of(found, files) {
                Ok(caption) => {
                    captions += usize::from(caption.is_some());
                    if let (Some(trigger), Some(caption)) = (&self.trigger, caption)
                        && !caption.contains(trigger.as_str())
                    {
                        without.push(found.name.as_str());
                    }
                }
                Err(fault) => faults.push(fault),
            }
        }
        if let (Some(trigger), false) = (&self.trigger, without.is_empty()) {
            let message = format!(
                "the trigger `{}` is not in the caption of {}",
                trigger.as_str(),
                list(&without)
            );
            warnings.push(Fault::content("trigger", message).help(format!(
                "what is learnt from these photos has no name; write {PLACEHOLDER} where the subject is in the caption"
            )));
        }
        captions
    }

    /// The caption of a photo, filled in.
    fn caption_of(&self, found: &Found, files: &dyn Files) -> Result<Option<String>, Fault> {
        let own = match &found.caption {
            Some(path) => read_caption(path, files)?.map(|text| (text, path.display().to_string())),
            None => None,
        };
        let general = || Some((self.caption.as_ref()?.to_string(), "caption".to_owned()));
        let Some((text, place)) = own.or_else(general) else {
            return Ok(None);
        };
        match &self.trigger {
            Some(trigger) => Ok(Some(text.replace(PLACEHOLDER, trigger))),
            None if text.contains(PLACEHOLDER) => Err(no_trigger("trigger", &format!("`{place}`"))),
            None => Ok(Some(text)),
        }
    }

    /// A photo and its mask, read, cropped and resized.
    fn photo(
        &self,
        found: &Found,
        index: usize,
        linked: Option<&MaskOrPhotoMasks>,
        files: &dyn Files,
    ) -> Result<(Photo, Option<PhotoMask>), NodeError> {
        let caption = (self.caption_of(found, files)).map_err(|fault| failed(Some(fault)))?;
        let mut picture = load(&found.path, files)?;
        if let Some(alpha) = &picture.alpha {
            over(&mut picture.colours, alpha, 1.0);
        }
        let original_size = (picture.width, picture.height);
        let whole = match linked {
            Some(masks) => Some(masks.whole(index, original_size, &found.name)?),
            None => self.mask_beside(found, original_size, files)?,
        };
        let (size, crop) = self.place(original_size, whole.as_ref(), &found.name)?;
        let image = Image::from_planes(1, picture.width, picture.height, picture.colours, None)?;
        let image = resample::cut(&image, crop)?;
        let image = Arc::new(resample::resize(&image, size.0, size.1, Filter::Lanczos3)?);
        let mask = match whole {
            None => None,
            Some(whole) => Some(PhotoMask {
                mask: Arc::new(frame::cut_mask(&whole, crop, size)?),
                original_size,
                crop,
            }),
        };
        let photo = Photo {
            name: found.name.clone(),
            image,
            caption,
            original_size,
            crop,
        };
        Ok((photo, mask))
    }

    /// The size of a photo and what of it is kept.
    fn place(
        &self,
        original: (usize, usize),
        mask: Option<&Mask>,
        name: &str,
    ) -> Result<((usize, usize), CropBox), NodeError> {
        let framing = self.framing();
        if self.crop != Crop::Subject {
            return Ok(framing.without_mask(original));
        }
        let found = match mask {
            Some(mask) => framing.around(&mask.values()?, original),
            None => None,
        };
        found.map(|crop| ((self.size, self.size), crop)).ok_or_else(|| {
            NodeError::failed(format!("the mask of `{name}` is empty: there is no subject to crop to"))
                .help("leave the photo out, or draw its mask yourself and save it as NAME-mask.png beside it")
        })
    }

    /// The mask in the file beside a photo.
    fn mask_beside(
        &self,
        found: &Found,
        (width, height): (usize, usize),
        files: &dyn Files,
    ) -> Result<Option<Mask>, NodeError> {
        let Some(path) = &found.mask else {
            return Ok(None);
        };
        let mut mask = load(path, files)?;
        if let Some(alpha) = &mask.alpha {
            over(&mut mask.colours, alpha, 0.0);
        }
        // A mask may be smaller than its photo, but not of another shape.
        let across = mask.width as f64 * height as f64 / (mask.height as f64 * width as f64);
        if !(0.98..=1.02).contains(&across) {
            return Err(NodeError::failed(format!(
                "`{}` has {}x{} pixels, and the photo that it is the mask of {width}x{height}",
                path.display(),
                mask.width,
                mask.height
            ))
            .help("a mask has the size of its photo, or its aspect at the least"));
        }
        let mask = Mask::from_values(1, mask.width, mask.height, luma(&mask.colours))?;
        frame::resize_mask(&mask, (width, height)).map(Some)
    }

    /// The photos, in order.
    fn find(&self, files: &dyn Files) -> Result<Vec<Found>, Vec<Fault>> {
        let paths: Vec<&AssetPath> = match &self.path {
            Paths::One(path) => vec![path],
            Paths::Several(paths) => paths.iter().collect(),
        };
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        for path in paths {
            match found_at(path.as_path(), files) {
                Ok(more) => found.extend(more),
                Err(fault) => faults.push(fault),
            }
        }
        if faults.is_empty() && found.is_empty() {
            faults.push(Fault::value("path", "the list of photos is empty"));
        }
        if found.len() > MAX_PHOTOS {
            let many = format!("there are {} photos; at most {MAX_PHOTOS}", found.len());
            faults.push(Fault::value("path", many).help("a subject is learnt from four to thirty"));
        }
        if faults.is_empty() {
            Ok(found)
        } else {
            Err(faults)
        }
    }
}

fn no_trigger(field: &str, place: &str) -> Fault {
    Fault::value(
        field,
        format!("{place} has {PLACEHOLDER}, and no `trigger` is given"),
    )
    .help("give the token and the class as `trigger`: \"sks dog\"")
}

/// The text of a caption's file in one line; `None` where there is none.
fn read_caption(path: &Path, files: &dyn Files) -> Result<Option<String>, Fault> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        Fault::file("path", format!("`{shown}` cannot be read: {error}"))
            .help("check the file's permissions")
    };
    let (_, length) = files.read_head(path, 0).map_err(unreadable)?;
    if length > MAX_CAPTION {
        let message = format!("`{shown}` has {length} bytes; a caption has at most {MAX_CAPTION}");
        return Err(Fault::content("path", message).help("write one sentence about the photo"));
    }
    let bytes = files.read(path).map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        Fault::content("path", format!("`{shown}` is not UTF-8 text"))
            .help("save it as plain text in UTF-8")
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok((!text.is_empty()).then_some(text))
}

/// The photos of a folder, or the one photo at a path.
fn found_at(path: &Path, files: &dyn Files) -> Result<Vec<Found>, Fault> {
    if !files.is_dir(path) {
        if !files.is_file(path) {
            return Err(Fault::file("path", no_file(path, files)).help(
                "a relative path starts from the folder of the file that writes it, and from the current folder when `--set` does; check the spelling",
            ));
        }
        let pictures = |stem: &str| {
            let beside = path.with_file_name(format!("{stem}{MASK}.png"));
            files.is_file(&beside).then_some(beside)
        };
        return Ok(found(path, files, pictures).into_iter().collect());
    }
    // A photo that is added later is noticed: the folder counts as read.
    files.is_file(path);
    let entries = files.entries(path).map_err(|error| {
        Fault::file(
            "path",
            format!("`{}` cannot be listed: {error}", path.display()),
        )
        .help("check the folder's permissions")
    })?;
    let pictures: Vec<PathBuf> = (entries.into_iter())
        .filter(|entry| entry.size.is_some() && is_picture(&entry.path))
        .map(|entry| entry.path)
        .collect();
    let (masks, photos): (Vec<_>, Vec<_>) = (pictures.into_iter())
        .partition(|path| stem(path).is_some_and(|stem| stem.ends_with(MASK)));
    let mask_of = |name: &str| {
        let is_its = |mask: &&PathBuf| stem(mask).and_then(|s| s.strip_suffix(MASK)) == Some(name);
        masks.iter().find(is_its).cloned()
    };
    let photos: Vec<Found> = (photos.iter())
        .filter_map(|path| found(path, files, mask_of))
        .collect();
    if photos.is_empty() {
        let message = format!("there is no photo in the folder `{}`", path.display());
        return Err(Fault::file("path", message)
            .help("put PNG, JPEG or WebP files into it; folders in it are not looked into"));
    }
    Ok(photos)
}

fn found(
    path: &Path,
    files: &dyn Files,
    mask_of: impl Fn(&str) -> Option<PathBuf>,
) -> Option<Found> {
    let caption = path.with_extension(CAPTION);
    Some(Found {
        name: path.file_name()?.to_string_lossy().into_owned(),
        // Asked for though it may not be there: one that comes later is noticed.
        caption: files.is_file(&caption).then_some(caption),
        mask: mask_of(stem(path)?),
        path: path.to_owned(),
    })
}

fn stem(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str()
}

fn is_picture(path: &Path) -> bool {
    let hidden = (path.file_name()).is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    !hidden && ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// Names in backticks: the first few, and how many more there are.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = (names.iter().take(SHOWN))
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn are(names: &[&str]) -> String {
    format!(
        "{} {}",
        list(names),
        if names.len() == 1 { "is" } else { "are" }
    )
}
