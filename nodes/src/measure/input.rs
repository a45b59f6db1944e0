//! How a picture is prepared for a network: each network's own published crop, resampling and normalisation.

use retouch_graph::NodeError;

use crate::image::resample::crop_box;
use crate::payload::image::{Image, values};
use retouch_diffusion::networks::bicubic;

/// What a network is given of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Input {
    /// The largest square around the centre, at `side` pixels: enlarged as torch does it (bicubic, a = -0.75, clamped), made smaller as
    /// Pillow does (bicubic, a = -0.5, as wide as the new pixels). Not normalised: the network does it.
    Square { side: usize },
    /// The shorter side at `shorter` pixels as Pillow does it, then a square of `side` around the centre, then (x - mean) / deviation.
    Crop {
        shorter: usize,
        side: usize,
        mean: [f32; 3],
        deviation: [f32; 3],
    },
}

/// The means and deviations of ImageNet's colours, as torchvision publishes them.
pub(super) const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// Those of CLIP's pictures (`preprocessor_config.json` of openai/clip-vit-base-patch32).
pub(super) const CLIP: ([f32; 3], [f32; 3]) = (
    [0.481_454_66, 0.457_827_5, 0.408_210_73],
    [0.268_629_54, 0.261_302_6, 0.275_777_1],
);

impl Input {
    /// In words, for reports.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Square { side } => {
                format!("the largest square around the centre, bicubic to {side}x{side}")
            }
            Self::Crop { shorter, side, .. } => format!(
                "shorter side bicubic to {shorter}, {side}x{side} around the centre, normalised"
            ),
        }
    }

    /// The side of what the network is given.
    pub(super) fn side(self) -> usize {
        match self {
            Self::Square { side } | Self::Crop { side, .. } => side,
        }
    }

    /// A single picture as `[3][side * side]`.
    pub(super) fn prepare(self, image: &Image) -> Result<Vec<f32>, NodeError> {
        let one = image.select(0)?;
        let (size, planes) = (one.size(), values(&one.rgb)?);
        match self {
            Self::Square { side } => {
                let cut = crop_box(size, (1, 1))?;
                let (square, from) = (cut.width.min(cut.height), (cut.x, cut.y));
                let planes = window(&planes, size, from, square);
                if square == side {
                    return Ok(planes);
                }
                if square > side {
                    return Ok(pillow(&planes, (square, square), (side, side)));
                }
                Ok(planes
                    .chunks_exact(square * square)
                    .flat_map(|plane| bicubic::plane(plane, (square, square), (side, side)))
                    .map(|value| value.clamp(0.0, 1.0))
                    .collect())
            }
            Self::Crop {
                shorter,
                side,
                mean,
                deviation,
            } => {
                let least = size.0.min(size.1);
                let scaled = |length: usize| (length * shorter / least).max(side);
                let to = (scaled(size.0), scaled(size.1));
                let planes = pillow(&planes, size, to);
                let from = ((to.0 - side) / 2, (to.1 - side) / 2);
                let mut planes = window(&planes, to, from, side);
                for (channel, plane) in planes.chunks_exact_mut(side * side).enumerate() {
                    for value in plane {
                        *value = (*value - mean[channel]) / deviation[channel];
                    }
                }
                Ok(planes)
            }
        }
    }
}

/// A square of three planes of `size` (width, height).
fn window(
    planes: &[f32],
    size: (usize, usize),
    (left, top): (usize, usize),
    side: usize,
) -> Vec<f32> {
    let mut cut = Vec::with_capacity(3 * side * side);
    for plane in planes.chunks_exact(size.0 * size.1) {
        for row in top..top + side {
            cut.extend_from_slice(&plane[row * size.0 + left..][..side]);
        }
    }
    cut
}

/// Three planes at another size as Pillow's `BICUBIC` makes them, clamped as its bytes are, and not rounded.
fn pillow(planes: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    if from == to {
        return planes.to_vec();
    }
    planes
        .chunks_exact(from.0 * from.1)
        .flat_map(|plane| bicubic::smooth_plane(plane, from, to))
        .map(|value| value.clamp(0.0, 1.0))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;

    #[test]
    fn a_picture_is_resized_and_cropped_as_pillow_does_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let photo = image::open(root.join("references/teddy/01.png"))
            .unwrap()
            .to_rgb8();
        let photo = Image::from_rgb8(128, 128, photo.as_raw()).unwrap();
        let input = Input::Crop {
            shorter: 256,
            side: 224,
            mean: [0.0; 3],
            deviation: [1.0; 3],
        };
        let made = input.prepare(&photo).unwrap();
        let data = root.join("tests/oracle/data/measures.safetensors");
        let expected = candle_core::safetensors::load(data, &Device::Cpu).unwrap();
        let pillow = values(&expected["crop"]).unwrap();
        for (at, pillow) in pillow.iter().enumerate() {
            let (channel, place) = (at / 196, at % 196);
            let own = made[channel * 224 * 224 + place / 14 * 16 * 224 + place % 14 * 16];
            // Pillow rounds to bytes once each way.
            assert!((own - pillow).abs() < 1.5 / 255.0, "{own} is not {pillow}");
        }
    }

    #[test]
    fn the_middle_of_a_picture_that_is_not_square_is_taken() {
        let planes: Vec<f32> = (0..3 * 4 * 8).map(|at| (at % 8) as f32 / 8.0).collect();
        let wide = Image::from_planes(1, 8, 4, planes, None).unwrap();
        let made = Input::Square { side: 4 }.prepare(&wide).unwrap();
        assert_eq!(made[..4], [0.25, 0.375, 0.5, 0.625]);
    }
}
