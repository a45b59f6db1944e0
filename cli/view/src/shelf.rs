//! Values of the cache as textures: fetched and converted by a thread of its own, and kept within a budget.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eframe::egui::{Color32, ColorImage, Context, TextureHandle, TextureOptions};
use retouch_graph::{Cache, Key, NodeError, Value};
use retouch_nodes::payload::{Image, Mask, PhotoMasks, Photos, Table};

/// The bytes of pixels that are kept.
pub const BUDGET: usize = 192 << 20;
/// Largest number of values kept, whatever their size.
const MOST: usize = 512;
/// The longest side of a thumbnail in pixels.
const LONGEST: usize = 512;

/// What is asked for: a port's value, and of a batch which picture.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// What the value is called in the cache.
    pub key: Key,
    /// The output port.
    pub port: String,
    /// Which picture, from 0.
    pub index: usize,
}

/// A picture that can be drawn.
#[derive(Clone)]
pub struct Picture {
    /// Width and height in pixels.
    pub size: [usize; 2],
    /// Red, green, blue and alpha of each pixel, row by row.
    pub rgba: Arc<[u8]>,
    /// A texture of it for thumbnails, of no more than 512 pixels a side; nearest where it is enlarged.
    pub texture: TextureHandle,
    /// How many pictures the value has.
    pub batch: usize,
    /// The value in a line: `image 64x64`.
    pub summary: String,
    /// The bytes that the value takes.
    pub bytes: usize,
}

/// What was measured, by name.
pub type Scores = Arc<[(String, f64)]>;

/// A row of a table, and what there is to say of the whole.
#[derive(Clone)]
pub struct TableRow {
    /// The value in a line: `table 8x12`.
    pub summary: String,
    /// The bytes that it takes.
    pub bytes: usize,
    /// Its rows.
    pub rows: usize,
    /// The numbers of the row that was asked for, or of the only one.
    pub scores: Scores,
}

/// A value as far as it is known.
#[derive(Clone)]
pub enum Look {
    /// It is being fetched.
    Waiting,
    /// The cache does not have it.
    Missing,
    /// A picture.
    Picture(Picture),
    /// A table.
    Table(TableRow),
    /// Something else: in a line, and its bytes.
    Other(String, usize),
    /// It cannot be shown.
    Failed(String),
}

struct Slot {
    look: Look,
    /// When it was last looked at.
    used: u64,
    /// What the model's `values` was when it was asked for.
    asked: u64,
}

#[derive(Default)]
struct Slots {
    slots: HashMap<Wanted, Slot>,
    clock: u64,
    waiting: usize,
}

impl Slots {
    fn bytes(&self) -> usize {
        let looks = self.slots.values().map(|slot| &slot.look);
        looks.map(bytes_of).sum()
    }

    /// Lets go of what was not looked at for the longest time.
    fn shrink(&mut self) {
        let mut bytes = self.bytes();
        while (bytes > BUDGET || self.slots.len() > MOST) && self.slots.len() > 1 {
            let oldest = (self.slots.iter())
                .filter(|(_, slot)| !matches!(slot.look, Look::Waiting))
                .min_by_key(|(_, slot)| slot.used);
            let Some((wanted, slot)) = oldest else { return };
            bytes -= bytes_of(&slot.look);
            let wanted = wanted.clone();
            self.slots.remove(&wanted);
        }
    }
}

fn bytes_of(look: &Look) -> usize {
    match look {
        Look::Picture(picture) => bytes(picture),
        _ => 64,
    }
}

/// The bytes of pixels that a picture takes here.
pub fn bytes(picture: &Picture) -> usize {
    let [width, height] = picture.texture.size();
    picture.rgba.len() + 4 * width * height
}

/// Values that were looked at.
pub struct Shelf {
    slots: Arc<Mutex<Slots>>,
    requests: Sender<Wanted>,
    cache: Arc<dyn Cache>,
}

impl Shelf {
    /// Looks in a cache, with a thread of its own that ends with the shelf.
    #[must_use]
    pub fn new(cache: Arc<dyn Cache>, ctx: &Context) -> Self {
        let slots = Arc::new(Mutex::new(Slots::default()));
        let (requests, incoming) = channel();
        let (shared, ctx) = (Arc::clone(&slots), ctx.clone());
        let own = Arc::clone(&cache);
        std::thread::spawn(move || fetch(&incoming, &shared, &*own, &ctx));
        Self {
            slots,
            requests,
            cache,
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value as far as it is known; what is not is asked for. `values`: see `Model::values`; what was missing is looked
    /// for again once that is raised.
    pub fn look(&self, wanted: &Wanted, values: u64) -> Look {
        let mut slots = self.slots();
        slots.clock += 1;
        let clock = slots.clock;
        if let Some(slot) = slots.slots.get_mut(wanted) {
            slot.used = clock;
            let stale = matches!(slot.look, Look::Missing) && slot.asked != values;
            if !stale {
                return slot.look.clone();
            }
        }
        slots.slots.insert(
            wanted.clone(),
            Slot {
                look: Look::Waiting,
                used: clock,
                asked: values,
            },
        );
        slots.waiting += 1;
        let _ = self.requests.send(wanted.clone()); // the thread ends with the shelf
        Look::Waiting
    }

    /// Where a value is, if it is there: `memory`, `device memory`, `disk`.
    #[must_use]
    pub fn place(&self, key: &Key) -> Option<&'static str> {
        self.cache.place(key)
    }

    /// Whether nothing is being fetched.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.slots().waiting == 0
    }

    /// How many values are kept, and the bytes of their pixels.
    #[cfg(test)]
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        let slots = self.slots();
        (slots.slots.len(), slots.bytes())
    }
}

fn fetch(incoming: &Receiver<Wanted>, shared: &Mutex<Slots>, cache: &dyn Cache, ctx: &Context) {
    while let Ok(wanted) = incoming.recv() {
        let look = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            look_at(&wanted, cache, ctx)
        }))
        .unwrap_or_else(|_| Look::Failed("it cannot be shown".to_owned()));
        let mut slots = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.slots.get_mut(&wanted) {
            slot.look = look;
        }
        slots.waiting = slots.waiting.saturating_sub(1);
        slots.shrink();
        drop(slots);
        ctx.request_repaint();
    }
}

fn look_at(wanted: &Wanted, cache: &dyn Cache, ctx: &Context) -> Look {
    let Some(value) = cache.get(&wanted.key).and_then(|outputs| {
        // A value under a key of its own has one port, whatever the node calls it.
        let port = outputs.get(wanted.port.as_str());
        port.or_else(|| outputs.values().next().filter(|_| outputs.len() == 1))
            .cloned()
    }) else {
        return Look::Missing;
    };
    if let Some(table) = value.downcast::<Table>() {
        return Look::Table(TableRow {
            summary: value.summary(),
            bytes: value.bytes(),
            rows: table.rows.len(),
            scores: scores(&table, wanted.index),
        });
    }
    match picture(&value, wanted.index) {
        Ok(Some((size, rgba, batch))) => {
            let options = TextureOptions {
                magnification: eframe::egui::TextureFilter::Nearest,
                minification: eframe::egui::TextureFilter::Linear,
                ..TextureOptions::LINEAR
            };
            let name = format!("{}.{}.{}", wanted.key.short(), wanted.port, wanted.index);
            Look::Picture(Picture {
                texture: ctx.load_texture(name, thumbnail(size, &rgba), options),
                size,
                rgba,
                batch,
                summary: value.summary(),
                bytes: value.bytes(),
            })
        }
        Ok(None) => Look::Other(value.summary(), value.bytes()),
        Err(error) => Look::Failed(error.to_string()),
    }
}

/// The numbers of a row of a table, or of its only one.
fn scores(table: &Table, row: usize) -> Scores {
    let row = match table.rows.as_slice() {
        [one] => Some(one),
        rows => rows.get(row),
    };
    let numbers = table.columns.iter().zip(row.into_iter().flatten());
    numbers
        .filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)))
        .collect()
}

/// Width and height, the bytes of the pixels, and how many pictures the value has.
type Pixels = ([usize; 2], Arc<[u8]>, usize);

/// The pixels of one picture of a value; `None` when it is none.
fn picture(value: &Value, index: usize) -> Result<Option<Pixels>, NodeError> {
    if let Some(image) = value.downcast::<Image>() {
        return pixels(&image, index).map(Some);
    }
    if let Some(mask) = value.downcast::<Mask>() {
        return pixels(&mask.to_image()?, index).map(Some);
    }
    // Photos are of sizes of their own: one is shown, and how many there are.
    if let Some(photos) = value.downcast::<Photos>() {
        let last = photos.pictures.len().saturating_sub(1);
        return match photos.pictures.get(index.min(last)) {
            Some(photo) => {
                pixels(&photo.image, 0).map(|(size, rgba, _)| Some((size, rgba, last + 1)))
            }
            None => Ok(None),
        };
    }
    if let Some(masks) = value.downcast::<PhotoMasks>() {
        let last = masks.masks.len().saturating_sub(1);
        return match masks.masks.get(index.min(last)) {
            Some(photo) => pixels(&photo.mask.to_image()?, 0)
                .map(|(size, rgba, _)| Some((size, rgba, last + 1))),
            None => Ok(None),
        };
    }
    Ok(None)
}

fn pixels(image: &Image, index: usize) -> Result<Pixels, NodeError> {
    let (width, height) = image.size();
    let rgb = image.to_rgb8(index.min(image.batch().saturating_sub(1)))?;
    let rgba = rgb
        .as_chunks::<3>()
        .0
        .iter()
        .flat_map(|[r, g, b]| [*r, *g, *b, u8::MAX]);
    Ok(([width, height], rgba.collect(), image.batch()))
}

/// The picture, subsampled where it is large.
fn thumbnail(size: [usize; 2], rgba: &[u8]) -> ColorImage {
    let step = size[0].max(size[1]).div_ceil(LONGEST).max(1);
    let small = size.map(|side| side.div_ceil(step));
    let pixels = rgba.as_chunks::<4>().0;
    let kept = (0..small[1]).flat_map(|y| (0..small[0]).map(move |x| (x * step, y * step)));
    let kept = kept.map(|(x, y)| {
        let [r, g, b, _] = pixels.get(y * size[0] + x).copied().unwrap_or_default();
        Color32::from_rgb(r, g, b)
    });
    ColorImage::new(small, kept.collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use eframe::egui::{Pos2, RawInput, Rect, vec2};
    use retouch_graph::{HostCache, Key, Value};

    use super::*;

    #[test]
    fn a_thousand_pictures_take_no_more_than_the_shelf_holds() {
        let cache = Arc::new(HostCache::new(1 << 30));
        let ctx = Context::default();
        let shelf = Shelf::new(Arc::clone(&cache) as Arc<dyn Cache>, &ctx);
        let key = |number: u16| {
            let mut key = [7; 32];
            key[..2].copy_from_slice(&number.to_le_bytes());
            Key(key)
        };
        let missing = Wanted {
            key: Key([1; 32]),
            port: "image".to_owned(),
            index: 0,
        };
        let frame = |events| {
            let input = RawInput {
                screen_rect: Some(Rect::from_min_size(Pos2::ZERO, vec2(100.0, 100.0))),
                events,
                ..RawInput::default()
            };
            let _ = ctx.run(input, |_| {});
        };
        let wait = |wanted: &Wanted, values| loop {
            match shelf.look(wanted, values) {
                Look::Waiting => std::thread::sleep(Duration::from_micros(200)),
                look => break look,
            }
        };
        assert!(matches!(wait(&missing, 0), Look::Missing));
        let image = Image::from_rgb8(16, 8, &[200; 3 * 16 * 8]).unwrap();
        for number in 0..1000 {
            let outputs = [("image".into(), Value::new(image.clone()))];
            cache.put(key(number), &Arc::new(outputs.into_iter().collect()), 1.0);
            let wanted = Wanted {
                key: key(number),
                ..missing.clone()
            };
            let Look::Picture(picture) = wait(&wanted, 0) else {
                panic!("no picture {number}")
            };
            assert_eq!((picture.size, picture.batch), ([16, 8], 1));
            assert_eq!(picture.rgba[..4], [200, 200, 200, 255]);
            if number % 100 == 0 {
                frame(Vec::new());
            }
        }
        frame(Vec::new());
        let (held, bytes) = shelf.held();
        assert!(held <= 512, "{held}");
        assert!(bytes <= 192 << 20, "{bytes}");
        // What was missing is looked for again when values came, and only then.
        let outputs = [("image".into(), Value::new(image))];
        cache.put(missing.key, &Arc::new(outputs.into_iter().collect()), 1.0);
        assert!(matches!(wait(&missing, 1), Look::Picture(_)));
        assert!(shelf.idle());
    }
}
