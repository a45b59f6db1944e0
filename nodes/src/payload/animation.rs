//! Animations: pictures one after another, as an animated PNG.

use std::borrow::Cow;

use png::{BitDepth, ColorType, DeflateCompression, Encoder, Filter, Writer};
use retouch_graph::{NodeError, Payload};
use serde::{Deserialize, Serialize};

use super::image::{Image, unknown_format};

/// A batch of animations of one size, kept as the files that they are saved as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Animation {
    what: What,
    /// One animated PNG for each picture of the batch.
    files: Vec<Vec<u8>>,
}

/// What an animation is, beside its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct What {
    frames: u32,
    width: u32,
    height: u32,
}

/// What begins a PNG file.
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

impl Animation {
    /// The number of animations.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.files.len()
    }

    /// The number of pictures of each.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.what.frames as usize
    }

    /// The width and height in pixels.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.what.width as usize, self.what.height as usize)
    }
}

/// Writes animations picture by picture, so that no more than one of each is in memory.
pub(crate) struct Animator {
    what: What,
    loops: u32,
    writers: Vec<Writer<Sink>>,
    sinks: Vec<Sink>,
    written: u32,
}

/// Bytes that the writer and whoever takes the file both hold.
#[derive(Clone, Default)]
struct Sink(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn failed(error: png::EncodingError) -> NodeError {
    NodeError::failed(format!("the animation cannot be written: {error}"))
        .help("make it smaller: `every` takes fewer steps, `scale` smaller pictures")
}

impl Animator {
    /// Begins animations of `frames` pictures each that are played `loops` times; 0: for ever.
    pub(crate) fn new(frames: u32, loops: u32) -> Self {
        Self {
            what: What {
                frames,
                width: 0,
                height: 0,
            },
            loops,
            writers: Vec::new(),
            sinks: Vec::new(),
            written: 0,
        }
    }

    /// Adds a picture to each animation, to be seen for so many milliseconds.
    ///
    /// # Errors
    /// When the pictures are others in number or size than before, or more than were announced.
    pub(crate) fn add(&mut self, image: &Image, milliseconds: u16) -> Result<(), NodeError> {
        let (width, height) = image.size();
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let (width, height) = (side(width), side(height));
        if self.written == 0 {
            (self.what.width, self.what.height) = (width, height);
            for _ in 0..image.batch() {
                self.begin()?;
            }
        }
        if image.batch() != self.writers.len()
            || (width, height) != (self.what.width, self.what.height)
        {
            return Err(NodeError::failed(
                "the pictures of an animation differ in number or size",
            ));
        }
        for (index, writer) in self.writers.iter_mut().enumerate() {
            let pixels = image.to_rgb8(index)?;
            writer
                .set_frame_delay(milliseconds, 1000)
                .and_then(|()| writer.write_image_data(&pixels))
                .map_err(failed)?;
        }
        self.written += 1;
        Ok(())
    }

    fn begin(&mut self) -> Result<(), NodeError> {
        let sink = Sink::default();
        let mut encoder = Encoder::new(sink.clone(), self.what.width, self.what.height);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        // The settings of pictures, fixed so that the same pixels give the same bytes.
        encoder.set_deflate_compression(DeflateCompression::Level(6));
        encoder.set_filter(Filter::Adaptive);
        encoder.validate_sequence(true);
        encoder
            .set_animated(self.what.frames, self.loops)
            .map_err(failed)?;
        self.writers.push(encoder.write_header().map_err(failed)?);
        self.sinks.push(sink);
        Ok(())
    }

    /// The animations, when all pictures were added.
    ///
    /// # Errors
    /// When some were not.
    pub(crate) fn finish(self) -> Result<Animation, NodeError> {
        for writer in self.writers {
            writer.finish().map_err(failed)?;
        }
        if self.written != self.what.frames || self.sinks.is_empty() {
            return Err(NodeError::failed(format!(
                "an animation of {} pictures got {}",
                self.what.frames, self.written
            )));
        }
        let files = self
            .sinks
            .iter()
            .map(|sink| std::mem::take(&mut *sink.bytes()))
            .collect();
        Ok(Animation {
            what: self.what,
            files,
        })
    }
}

impl Payload for Animation {
    const TYPE: &'static str = "animation";
    const FORMATS: &'static [&'static str] = &["png", "apng"];

    /// One line of JSON that says what it is and how long each file is, and the files.
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        let lengths: Vec<usize> = self.files.iter().map(Vec::len).collect();
        let bytes = || -> serde_json::Result<Vec<u8>> {
            let mut bytes = serde_json::to_vec(&(self.what, lengths))?;
            bytes.push(b'\n');
            for file in &self.files {
                bytes.extend_from_slice(file);
            }
            Ok(bytes)
        };
        Some(bytes().map_err(|e| NodeError::failed(e.to_string())))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let damaged =
            |why: Cow<'_, str>| NodeError::failed(format!("not a packed animation: {why}"));
        let end = bytes
            .iter()
            .position(|&b| b == b'\n')
            .ok_or_else(|| damaged("it has no header".into()))?;
        let (header, mut rest) = (&bytes[..end], &bytes[end + 1..]);
        let (what, lengths): (What, Vec<usize>) =
            serde_json::from_slice(header).map_err(|e| damaged(e.to_string().into()))?;
        let mut files = Vec::with_capacity(lengths.len());
        for length in lengths {
            let (file, after) = rest
                .split_at_checked(length)
                .ok_or_else(|| damaged("it is too short".into()))?;
            if !file.starts_with(SIGNATURE) {
                return Err(damaged("it holds something else than PNG files".into()));
            }
            files.push(file.to_vec());
            rest = after;
        }
        if files.is_empty() || !rest.is_empty() {
            return Err(damaged("its length is another".into()));
        }
        Ok(Self { what, files })
    }

    fn bytes(&self) -> usize {
        self.files.iter().map(Vec::len).sum()
    }

    fn summary(&self) -> String {
        let What {
            frames,
            width,
            height,
        } = self.what;
        let batch = match self.files.len() {
            1 => String::new(),
            batch => format!(", batch of {batch}"),
        };
        format!("animation of {frames} pictures {width}x{height}{batch}")
    }

    /// One animated PNG for each picture of the batch; its first frame is what a program sees that knows no animations.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        match format {
            "png" | "apng" => Ok(self.files.clone()),
            _ => Err(unknown_format::<Self>(format)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn animation(frames: u32, batch: usize) -> Result<Animation, NodeError> {
        let mut animator = Animator::new(frames, 3);
        for frame in 0..frames {
            let pixels = vec![frame as f32 / frames as f32; batch * 3 * 4 * 2];
            animator.add(&Image::from_planes(batch, 4, 2, pixels, None)?, 40)?;
        }
        animator.finish()
    }

    #[test]
    fn an_animation_comes_back_from_disk_and_damage_is_noticed() {
        let two = animation(3, 2).unwrap();
        assert_eq!(two.summary(), "animation of 3 pictures 4x2, batch of 2");
        let bytes = two.to_disk().unwrap().unwrap();
        assert_eq!(Animation::from_disk(&bytes).unwrap(), two);
        assert!(Animation::from_disk(&bytes[..bytes.len() - 1]).is_err());
        assert!(Animation::from_disk(&[&bytes[..], b"x"].concat()).is_err());
        assert!(Animation::from_disk(b"").is_err());
        let start = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
        let mut damaged = bytes.clone();
        damaged[start] ^= 1;
        assert!(Animation::from_disk(&damaged).is_err());
    }

    #[test]
    fn pictures_that_do_not_go_on_and_pictures_that_are_missing_are_refused() {
        let one = |width| Image::from_planes(1, width, 1, vec![0.5; 3 * width], None).unwrap();
        let mut animator = Animator::new(2, 0);
        animator.add(&one(2), 40).unwrap();
        assert!(animator.add(&one(3), 40).is_err());
        assert!(animator.finish().is_err());
        let mut animator = Animator::new(1, 0);
        animator.add(&one(2), 40).unwrap();
        assert!(animator.add(&one(2), 40).is_err());
        assert!(Animator::new(1, 0).finish().is_err());
        assert!(animation(1, 1).unwrap().encode("gif").is_err());
    }
}
