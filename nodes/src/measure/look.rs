//! `look`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::measure::{IMAGE, number};
use crate::payload::image::{Image, ImageFacts, values};
use crate::payload::{ImageOrPhotos, Mask, MaskOrPhotoMasks, Table};

/// The bins of a histogram of hues, 15 degrees each.
const BINS: usize = 24;

/// Measures whether the subject has the reference's colours: how much their histograms of hues have in common, 0 to 1.
///
/// The pixels inside the mask (where it is at least a half) count by their chroma (the largest minus the smallest of red, green
/// and blue), so greys, blacks and whites do not; a hue is divided between the two nearest of 24 bins; the histogram is divided by
/// its sum, and that of several references is their mean. `look` is the sum over the bins of the smaller of both. Where the mask is empty or
/// nothing in it has a colour there is no number. It sees neither pattern nor shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasureLook {}

ports! {
    /// What `look` takes.
    pub struct Inputs {
        /// The pictures.
        pub image: Arc<Image>,
        /// The subject in each of them.
        pub mask: Arc<Mask>,
        /// The subject's photos.
        pub references: ImageOrPhotos,
        /// The subject in each of them.
        pub reference_masks: MaskOrPhotoMasks,
    }
}

ports! {
    /// What `look` gives.
    pub struct Outputs {
        /// A row for each picture: `image` and `look`.
        pub table: Arc<Table>,
    }
}

impl Node for MeasureLook {
    const OP: &'static str = "look";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let of = |port: &str| inputs.facts::<ImageFacts>(port);
        for (port, image, mask) in [
            ("mask", of("image"), of("mask")),
            ("reference_masks", of("references"), of("reference_masks")),
        ] {
            if let (Some(image), Some(mask)) = (image, mask)
                && image != mask
            {
                return Err(vec![
                    Fault::mismatch(port, misfit(image, mask))
                        .help("link the masks of the same pictures, in the same order"),
                ]);
            }
        }
        Ok(Types::unknown())
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        context.check_cancelled()?;
        let photos = inputs.references.photos()?;
        let masks = &inputs.reference_masks;
        if photos.pictures.len() != masks.len() {
            return Err(NodeError::failed(format!(
                "{} references have {} masks",
                photos.pictures.len(),
                masks.len()
            ))
            .help("give each reference its mask, in the same order"));
        }
        let mut references = Vec::new();
        for (index, photo) in photos.pictures.iter().enumerate() {
            references.extend(histograms(&photo.image, &*masks.of(index)?)?);
        }
        let coloured: Vec<[f64; BINS]> = references.into_iter().flatten().collect();
        if coloured.is_empty() {
            return Err(
                NodeError::failed("the references have no colour inside their masks").help(
                    "give references with masks that cover the subject; a grey one has no `look`",
                ),
            );
        }
        let wanted: [f64; BINS] = std::array::from_fn(|bin| {
            coloured.iter().map(|one| one[bin]).sum::<f64>() / coloured.len() as f64
        });
        let mut table = Table::new([IMAGE, "look"]);
        for (i, own) in histograms(&inputs.image, &inputs.mask)?
            .into_iter()
            .enumerate()
        {
            let look = own.map(|own| own.iter().zip(&wanted).map(|(a, b)| a.min(*b)).sum::<f64>());
            table.push(vec![i.into(), look.map_or(Json::Null, number)])?;
        }
        table.define(
            "look",
            &format!(
                "intersection of the histograms of hues ({BINS} bins, by chroma) inside the masks, against the mean of {} references",
                coloured.len()
            ),
        );
        Ok(Outputs {
            table: Arc::new(table),
        })
    }
}

fn misfit(image: ImageFacts, mask: ImageFacts) -> String {
    let say = |facts: ImageFacts| format!("{} of {}x{}", facts.batch, facts.width, facts.height);
    format!(
        "the masks ({}) are not those of the pictures ({})",
        say(mask),
        say(image)
    )
}

/// The histogram of hues of each picture, inside its mask; `None` where there is no colour.
fn histograms(image: &Image, mask: &Mask) -> Result<Vec<Option<[f64; BINS]>>, NodeError> {
    if image.facts() != mask.facts() {
        return Err(NodeError::failed(misfit(image.facts(), mask.facts()))
            .help("make the masks of the same pictures; `segment` and `load_mask` keep the size"));
    }
    let (width, height) = image.size();
    let area = width * height;
    let colours = values(&image.rgb)?;
    Ok((colours.chunks_exact(3 * area))
        .zip(mask.values()?.chunks_exact(area))
        .map(|(planes, mask)| {
            let mut bins = [0f64; BINS];
            for at in (0..area).filter(|at| mask[*at] >= 0.5) {
                let rgb = [0, 1, 2].map(|channel| f64::from(planes[channel * area + at]));
                add(&mut bins, rgb);
            }
            let sum: f64 = bins.iter().sum();
            (sum > 1e-9).then(|| bins.map(|bin| bin / sum))
        })
        .collect())
}

/// Adds a pixel: its chroma, divided between the two bins whose middles its hue lies between.
fn add(bins: &mut [f64; BINS], [red, green, blue]: [f64; 3]) {
    let most = red.max(green).max(blue);
    let chroma = most - red.min(green).min(blue);
    if chroma <= 0.0 {
        return;
    }
    // In sixths of the circle, from red.
    let hue = if most == red {
        ((green - blue) / chroma).rem_euclid(6.0)
    } else if most == green {
        (blue - red) / chroma + 2.0
    } else {
        (red - green) / chroma + 4.0
    };
    let place = hue / 6.0 * BINS as f64;
    let share = place - place.floor();
    let first = place.floor() as usize % BINS;
    bins[first] += chroma * (1.0 - share);
    bins[(first + 1) % BINS] += chroma * share;
}
