//! Photos of a subject: pictures of their own sizes, each with its caption, and their masks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use retouch_graph::{FromValue, NodeError, Payload, Value};
use serde::{Deserialize, Serialize};

use crate::image::frame;
use crate::payload::image::{Image, unknown_format};
use crate::payload::mask::Mask;
use crate::payload::planes::CropBox;
use crate::payload::tensors::{self, Packed};

/// The most photos of a batch.
pub const MAX_PHOTOS: usize = 1000;

/// One photo: upright, cropped, at the size that it is trained at.
#[derive(Clone, Debug)]
pub struct Photo {
    /// The name of its file; the number in its batch where it has none.
    pub name: String,
    /// The picture: a batch of one, `[1, 3, H, W]`, f32 in 0..=1.
    pub image: Arc<Image>,
    /// What is in it, in words; `None` where nothing was said.
    pub caption: Option<String>,
    /// Width and height in pixels before it was cropped and resized, after the EXIF orientation.
    pub original_size: (usize, usize),
    /// What of the original is in `image`, in the original's pixels.
    pub crop: CropBox,
}

impl Photo {
    /// The width and height of the picture in pixels.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        self.image.size()
    }

    /// Where the crop begins, row and column, in pixels of the original at the picture's scale: what Stable Diffusion XL
    /// is told as `crop_top_left`.
    #[must_use]
    pub fn crop_top_left(&self) -> (usize, usize) {
        let (width, height) = self.size();
        let scaled = |at: usize, to: usize, from: usize| (at * to + from / 2) / from.max(1);
        (
            scaled(self.crop.y, height, self.crop.height),
            scaled(self.crop.x, width, self.crop.width),
        )
    }
}

/// A batch of photos, each of its own size.
#[derive(Clone, Debug)]
pub struct Photos {
    /// The photos, at least one.
    pub pictures: Vec<Photo>,
}

/// What is known of photos before anything runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhotosFacts {
    /// Width and height of each.
    pub sizes: Vec<(usize, usize)>,
    /// How many of them have a caption.
    pub captions: usize,
}

impl Photos {
    /// Makes a batch of photos.
    ///
    /// # Errors
    /// When there are none, or one of them is not one picture.
    pub fn new(pictures: Vec<Photo>) -> Result<Self, NodeError> {
        if pictures.is_empty() {
            return Err(NodeError::failed("there are no photos"));
        }
        if let Some(photo) = pictures.iter().find(|photo| photo.image.batch() != 1) {
            return Err(NodeError::failed(format!(
                "the photo `{}` is a batch of {} pictures",
                photo.name,
                photo.image.batch()
            )));
        }
        Ok(Self { pictures })
    }

    /// The pictures of a batch as photos without captions.
    ///
    /// # Errors
    /// When candle fails.
    pub fn of_image(image: &Image) -> Result<Self, NodeError> {
        let (width, height) = image.size();
        let pictures = (0..image.batch())
            .map(|index| {
                Ok(Photo {
                    name: (index + 1).to_string(),
                    image: Arc::new(image.select(index)?),
                    caption: None,
                    original_size: (width, height),
                    crop: CropBox {
                        x: 0,
                        y: 0,
                        width,
                        height,
                    },
                })
            })
            .collect::<Result<_, NodeError>>()?;
        Self::new(pictures)
    }

    /// The photos by width and height: what can be trained on in one batch. Numbers count from 0.
    #[must_use]
    pub fn buckets(&self) -> BTreeMap<(usize, usize), Vec<usize>> {
        let mut buckets: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, photo) in self.pictures.iter().enumerate() {
            buckets.entry(photo.size()).or_default().push(index);
        }
        buckets
    }

    /// What is known of them, for checks.
    #[must_use]
    pub fn facts(&self) -> PhotosFacts {
        PhotosFacts {
            sizes: self.pictures.iter().map(Photo::size).collect(),
            captions: self.pictures.iter().flat_map(|p| &p.caption).count(),
        }
    }
}

/// What the disk cache keeps of a photo beside its pixels.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    caption: Option<String>,
    original_size: (usize, usize),
    crop: CropBox,
}

/// The metadata key of what is kept beside the pixels.
const BESIDE: &str = "photos";

fn numbered(kind: &str, index: usize) -> String {
    format!("{kind}{index:04}")
}

impl Payload for Photos {
    const TYPE: &'static str = "photos";
    const FORMATS: &'static [&'static str] = Image::FORMATS;

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        let mut planes = Vec::new();
        for (index, photo) in self.pictures.iter().enumerate() {
            planes.push((numbered("rgb", index), &photo.image.rgb));
            let alpha = photo.image.alpha.iter();
            planes.extend(alpha.map(|alpha| (numbered("alpha", index), alpha)));
        }
        let beside: Vec<Kept> = (self.pictures.iter())
            .map(|photo| Kept {
                name: photo.name.clone(),
                caption: photo.caption.clone(),
                original_size: photo.original_size,
                crop: photo.crop,
            })
            .collect();
        let planes: Vec<_> = planes.iter().map(|(name, t)| (name.as_str(), *t)).collect();
        let packed = serde_json::to_string(&beside)
            .map_err(|e| NodeError::failed(e.to_string()))
            .and_then(|text| tensors::pack(&planes, HashMap::from([(BESIDE.to_owned(), text)])));
        Some(packed)
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        let beside: Vec<Kept> = packed.know(BESIDE)?;
        let pictures = beside.into_iter().enumerate().map(|(index, kept)| {
            let rgb = packed.take(&numbered("rgb", index))?;
            let alpha = packed.tensors.remove(&numbered("alpha", index));
            Ok(Photo {
                name: kept.name,
                image: Arc::new(Image::new(rgb, alpha)?),
                caption: kept.caption,
                original_size: kept.original_size,
                crop: kept.crop,
            })
        });
        Self::new(pictures.collect::<Result<_, NodeError>>()?)
    }

    fn bytes(&self) -> usize {
        let texts =
            |photo: &Photo| photo.name.len() + photo.caption.as_ref().map_or(0, String::len);
        let photos = self.pictures.iter();
        photos.map(|photo| photo.image.bytes() + texts(photo)).sum()
    }

    fn summary(&self) -> String {
        let sizes: Vec<String> = (self.buckets().iter())
            .map(|((width, height), photos)| format!("{} of {width}x{height}", photos.len()))
            .collect();
        format!(
            "photos, {}; captions of {}",
            shortened(&sizes),
            self.facts().captions
        )
    }

    /// One file a photo, as `image` is written.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        let each = self.pictures.iter().map(|photo| photo.image.encode(format));
        Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
    }
}

/// The first of a list, and how many more there are.
fn shortened(list: &[String]) -> String {
    const SHOWN: usize = 4;
    let more = list.len().saturating_sub(SHOWN);
    let shown = list[..list.len() - more].join(", ");
    match more {
        0 => shown,
        _ => format!("{shown} and {more} more sizes"),
    }
}

/// Photos, or pictures of one size without captions, for ports that take either.
#[derive(Clone, Debug)]
pub enum ImageOrPhotos {
    /// Pictures of one size.
    Image(Arc<Image>),
    /// Photos.
    Photos(Arc<Photos>),
}

impl ImageOrPhotos {
    /// They as photos.
    ///
    /// # Errors
    /// When candle fails.
    pub fn photos(&self) -> Result<Arc<Photos>, NodeError> {
        match self {
            Self::Image(image) => Photos::of_image(image).map(Arc::new),
            Self::Photos(photos) => Ok(Arc::clone(photos)),
        }
    }
}

impl FromValue for ImageOrPhotos {
    const TYPES: &'static [&'static str] = &[Photos::TYPE, Image::TYPE];

    fn from_value(value: &Value) -> Option<Self> {
        value
            .downcast::<Image>()
            .map(Self::Image)
            .or_else(|| value.downcast::<Photos>().map(Self::Photos))
    }

    fn into_value(self) -> Value {
        match self {
            Self::Image(image) => Value::from_arc(image),
            Self::Photos(photos) => Value::from_arc(photos),
        }
    }
}

/// The mask of a photo, of its size.
#[derive(Clone, Debug)]
pub struct PhotoMask {
    /// The mask: a batch of one.
    pub mask: Arc<Mask>,
    /// [`Photo::original_size`] of the photo.
    pub original_size: (usize, usize),
    /// [`Photo::crop`] of the photo.
    pub crop: CropBox,
}

/// The masks of a batch of photos, one for each.
#[derive(Clone, Debug)]
pub struct PhotoMasks {
    /// The masks in the order of the photos.
    pub masks: Vec<PhotoMask>,
}

/// What is known of masks of photos before anything runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhotoMasksFacts {
    /// Width and height of each.
    pub mask_sizes: Vec<(usize, usize)>,
}

impl Payload for PhotoMasks {
    const TYPE: &'static str = "photo_masks";
    const FORMATS: &'static [&'static str] = &["png"];

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        let names: Vec<String> = (0..self.masks.len()).map(|i| numbered("mask", i)).collect();
        let planes = self.masks.iter().map(|photo| &photo.mask.plane);
        let planes: Vec<_> = names.iter().map(String::as_str).zip(planes).collect();
        let beside = self.masks.iter().map(|p| (p.original_size, p.crop));
        let beside: Vec<((usize, usize), CropBox)> = beside.collect();
        let packed = serde_json::to_string(&beside)
            .map_err(|e| NodeError::failed(e.to_string()))
            .and_then(|text| tensors::pack(&planes, HashMap::from([(BESIDE.to_owned(), text)])));
        Some(packed)
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        let beside: Vec<((usize, usize), CropBox)> = packed.know(BESIDE)?;
        let masks = beside.into_iter().enumerate();
        let masks = masks.map(|(index, (original_size, crop))| {
            Ok(PhotoMask {
                mask: Arc::new(Mask::new(packed.take(&numbered("mask", index))?)?),
                original_size,
                crop,
            })
        });
        let masks = masks.collect::<Result<_, NodeError>>()?;
        Ok(Self { masks })
    }

    fn bytes(&self) -> usize {
        self.masks.iter().map(|photo| photo.mask.bytes()).sum()
    }

    fn summary(&self) -> String {
        format!("masks of {} photos", self.masks.len())
    }

    /// One 8-bit grey PNG a mask.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        if format != "png" {
            return Err(unknown_format::<Self>(format));
        }
        let each = self.masks.iter().map(|photo| photo.mask.encode(format));
        Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
    }
}

/// Masks of photos: one of its size for each, or a batch of one size, each laid over its whole picture.
#[derive(Clone, Debug)]
pub enum MaskOrPhotoMasks {
    /// Masks of one size.
    Mask(Arc<Mask>),
    /// Masks of their photos' sizes.
    PhotoMasks(Arc<PhotoMasks>),
}

impl MaskOrPhotoMasks {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Mask(mask) => mask.batch(),
            Self::PhotoMasks(masks) => masks.masks.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The mask of picture `index` (from 0), a batch of one.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn of(&self, index: usize) -> Result<Arc<Mask>, NodeError> {
        match self {
            Self::Mask(mask) if index < mask.batch() => mask.select(index).map(Arc::new),
            Self::PhotoMasks(masks) if index < masks.masks.len() => {
                Ok(Arc::clone(&masks.masks[index].mask))
            }
            _ => Err(NodeError::failed(format!(
                "there is no mask of photo {}: there are {}",
                index + 1,
                self.len()
            ))),
        }
    }

    /// The mask of photo `index` (from 0), called `name`, laid over all of its `original` pixels: what was cropped off when the
    /// mask was made counts as background.
    pub(crate) fn whole(
        &self,
        index: usize,
        original: (usize, usize),
        name: &str,
    ) -> Result<Mask, NodeError> {
        let mask = self.of(index)?;
        let Self::PhotoMasks(masks) = self else {
            return frame::resize_mask(&mask, original);
        };
        let PhotoMask {
            original_size,
            crop,
            ..
        } = masks.masks[index];
        if original_size != original {
            return Err(NodeError::failed(format!(
                "mask {} is of a photo of {}x{} pixels, and `{name}` has {}x{}",
                index + 1,
                original_size.0,
                original_size.1,
                original.0,
                original.1
            ))
            .help("link what `segment` makes of the same photos, in the same order"));
        }
        let part = frame::resize_mask(&mask, (crop.width, crop.height))?;
        let mut whole = vec![0f32; original.0 * original.1];
        for (row, line) in part.values()?.chunks_exact(crop.width).enumerate() {
            let start = (crop.y + row) * original.0 + crop.x;
            whole[start..start + crop.width].copy_from_slice(line);
        }
        Mask::from_values(1, original.0, original.1, whole)
    }
}

impl FromValue for MaskOrPhotoMasks {
    const TYPES: &'static [&'static str] = &[PhotoMasks::TYPE, Mask::TYPE];

    fn from_value(value: &Value) -> Option<Self> {
        value
            .downcast::<Mask>()
            .map(Self::Mask)
            .or_else(|| value.downcast::<PhotoMasks>().map(Self::PhotoMasks))
    }

    fn into_value(self) -> Value {
        match self {
            Self::Mask(mask) => Value::from_arc(mask),
            Self::PhotoMasks(masks) => Value::from_arc(masks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(name: &str, width: usize, height: usize, crop: CropBox) -> Photo {
        let count = 3 * width * height;
        let planes = (0..count).map(|i| i as f32 / count as f32).collect();
        Photo {
            name: name.to_owned(),
            image: Arc::new(Image::from_planes(1, width, height, planes, None).unwrap()),
            caption: (name == "b").then(|| "a \"quoted\" dog".to_owned()),
            original_size: (100, 80),
            crop,
        }
    }

    fn cut(x: usize, y: usize, width: usize, height: usize) -> CropBox {
        CropBox {
            x,
            y,
            width,
            height,
        }
    }

    fn batch() -> Photos {
        Photos::new(vec![
            photo("a", 8, 4, cut(20, 10, 80, 40)),
            photo("b", 4, 4, cut(0, 40, 40, 40)),
            photo("c", 8, 4, cut(0, 0, 80, 40)),
        ])
        .unwrap()
    }

    #[test]
    fn photos_come_back_from_the_disk_with_all_that_is_known_of_them() {
        let photos = batch();
        let again = Photos::from_disk(&photos.to_disk().unwrap().unwrap()).unwrap();
        assert_eq!(again.pictures.len(), 3);
        for (a, b) in photos.pictures.iter().zip(&again.pictures) {
            assert_eq!((&a.name, &a.caption), (&b.name, &b.caption));
            assert_eq!((a.original_size, a.crop), (b.original_size, b.crop));
            let pixels = |p: &Photo| p.image.to_rgb8(0).unwrap();
            assert_eq!(pixels(a), pixels(b));
        }
        assert!(Photos::from_disk(b"nothing").is_err());
        let masks = (0..2).map(|i| PhotoMask {
            mask: Arc::new(Mask::from_values(1, 2, 1, vec![i as f32, 0.25]).unwrap()),
            original_size: (6, 3),
            crop: cut(1 + i, 1, 4, 2),
        });
        let masks = PhotoMasks {
            masks: masks.collect(),
        };
        let again = PhotoMasks::from_disk(&masks.to_disk().unwrap().unwrap()).unwrap();
        assert_eq!(again.masks[1].mask.values().unwrap(), [1.0, 0.25]);
        assert_eq!(again.masks[1].crop, cut(2, 1, 4, 2));
        assert_eq!(again.masks.len(), 2);
        // Laid over the whole photo, what was cropped off is background. The crop is twice the mask across: the triangle
        // filter gives 0.75 and 0.25 shares between the centres.
        let masks = MaskOrPhotoMasks::PhotoMasks(Arc::new(again));
        let whole = masks.whole(1, (6, 3), "b").unwrap();
        let line = [0.0, 0.0, 1.0, 0.8125, 0.4375, 0.25];
        assert_eq!(whole.values().unwrap(), [[0.0; 6], line, line].concat());
        let other = masks.whole(1, (7, 3), "b").unwrap_err().to_string();
        assert!(
            other.contains("mask 2 is of a photo of 6x3 pixels"),
            "{other}"
        );
        assert!(masks.of(2).is_err());
    }

    #[test]
    fn photos_of_one_size_are_a_bucket_and_crops_are_told_at_the_pictures_scale() {
        let photos = batch();
        let buckets = photos.buckets();
        assert_eq!(buckets[&(8, 4)], [0, 2]);
        assert_eq!(buckets[&(4, 4)], [1]);
        // The original at a tenth is 10 x 8; the crop begins 2 to the right and 1 down.
        assert_eq!(photos.pictures[0].crop_top_left(), (1, 2));
        assert_eq!(photos.pictures[1].crop_top_left(), (4, 0));
        assert_eq!(
            photos.summary(),
            "photos, 1 of 4x4, 2 of 8x4; captions of 1"
        );
        assert_eq!(photos.encode("png").unwrap().len(), 3);
    }

    #[test]
    fn a_batch_is_never_empty_and_a_photo_is_one_picture() {
        assert!(Photos::new(Vec::new()).is_err());
        let two = Image::from_planes(2, 1, 1, vec![0.0; 6], None).unwrap();
        let photos = Photos::of_image(&two).unwrap();
        assert_eq!(photos.pictures.len(), 2);
        assert_eq!(photos.pictures[1].name, "2");
        let mut one = photos.pictures[0].clone();
        one.image = Arc::new(two);
        assert!(Photos::new(vec![one]).is_err());
    }
}
