//! `segment`.

use std::sync::Arc;

use candle_core::Tensor;
use retouch_diffusion::networks::u2net::{SIDE, U2Net};
use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::frame::resize_mask;
use crate::image::resample::{self, Filter};
use crate::payload::image::{Image, ImageFacts, tensor_failed};
use crate::payload::mask::Mask;
use crate::payload::photos::{PhotoMask, PhotoMasks, PhotoMasksFacts, Photos, PhotosFacts};
use crate::runtime::Runtime;

/// A picture has no subject when no pixel is that sure to be of one.
const SURE: f32 = 0.5;

/// Finds the subject of pictures: makes a mask of what stands out in each.
///
/// It is computed by U2-Net small (Qin et al. 2020, arXiv 2005.09007), whose weights are in the program, on the picture at
/// 320 x 320 pixels. The map is stretched so that its smallest value is 0 and its largest 1, as the network is used
/// everywhere, and resized to the picture. Masks are soft: `mask` with `threshold: 0.5` makes one hard. Look at them before
/// you train on them.
///
/// Exactly one of `image` and `images` is linked. A picture of which no part is half sure to be a subject is refused.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segment {}

ports! {
    /// What `segment` takes: exactly one of the two.
    pub struct Inputs {
        /// Pictures of one size.
        pub image: Option<Arc<Image>>,
        /// Photos.
        pub images: Option<Arc<Photos>>,
    }
}

ports! {
    /// What `segment` gives.
    pub struct Outputs {
        /// The masks of `image`, one for each picture, of its size.
        pub mask: Option<Arc<Mask>>,
        /// The masks of `images`, one for each photo, of its size.
        pub masks: Option<Arc<PhotoMasks>>,
    }
}

impl Node for Segment {
    const OP: &'static str = "segment";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let types = Types::unknown();
        match (inputs.is_linked("image"), inputs.is_linked("images")) {
            (true, true) => Err(vec![
                Fault::mismatch("images", "both `image` and `images` are linked")
                    .help("leave one of them out"),
            ]),
            (false, false) => Err(vec![
                Fault::mismatch("images", "nothing is linked to `image` or `images`")
                    .help("link a picture to `image`, or photos to `images`"),
            ]),
            (true, false) => {
                let types = types.without(
                    "masks",
                    "`segment` makes `masks` of `images`; of `image` it makes `mask`",
                );
                Ok(match inputs.facts::<ImageFacts>("image") {
                    Some(facts) => types.with("mask", &facts),
                    None => types,
                })
            }
            (false, true) => {
                let types = types.without(
                    "mask",
                    "`segment` makes `mask` of `image`; of `images` it makes `masks`",
                );
                Ok(match inputs.facts::<PhotosFacts>("images") {
                    Some(facts) => types.with(
                        "masks",
                        &PhotoMasksFacts {
                            mask_sizes: facts.sizes,
                        },
                    ),
                    None => types,
                })
            }
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let runtime = Runtime::of(context)?;
        let network = U2Net::small(&runtime.device)?;
        let find = |image: &Image, name: &str| -> Result<Mask, NodeError> {
            context.check_cancelled()?;
            subject(&network, image, name, &runtime.device)
        };
        match (inputs.image, inputs.images) {
            (Some(image), None) => {
                let (batch, (width, height)) = (image.batch(), image.size());
                let mut planes = Vec::with_capacity(batch * width * height);
                for index in 0..batch {
                    let name = format!("picture {}", index + 1);
                    planes.extend(find(&image.select(index)?, &name)?.values()?);
                    context.progress(index + 1, batch);
                }
                let mask = Mask::from_values(batch, width, height, planes)?;
                Ok(Outputs {
                    mask: Some(Arc::new(mask)),
                    masks: None,
                })
            }
            (None, Some(photos)) => {
                let mut masks = Vec::with_capacity(photos.pictures.len());
                for photo in &photos.pictures {
                    let mask = find(&photo.image, &format!("the photo `{}`", photo.name))?;
                    masks.push(PhotoMask {
                        mask: Arc::new(mask),
                        original_size: photo.original_size,
                        crop: photo.crop,
                    });
                    context.progress(masks.len(), photos.pictures.len());
                }
                Ok(Outputs {
                    mask: None,
                    masks: Some(Arc::new(PhotoMasks { masks })),
                })
            }
            _ => Err(NodeError::failed(
                "link one of `image` and `images` to `segment`",
            )),
        }
    }
}

/// The mask of a picture's subject, of its size.
fn subject(
    network: &U2Net,
    image: &Image,
    name: &str,
    device: &candle_core::Device,
) -> Result<Mask, NodeError> {
    let small = resample::resize(image, SIDE, SIDE, Filter::Bilinear)?;
    let map = network.forward(&small.rgb.to_device(device).map_err(tensor_failed)?)?;
    let map: Tensor = map.squeeze(1).map_err(tensor_failed)?;
    let mut map = Mask::new(map)?.values()?;
    let (least, most) = (map.iter()).fold((f32::MAX, f32::MIN), |(least, most), value| {
        (least.min(*value), most.max(*value))
    });
    if !(most >= SURE && most > least) {
        return Err(NodeError::failed(format!(
            "there is no subject in {name}: no part of it stands out ({:.0} % sure)",
            100.0 * most
        ))
        .help("leave it out, or draw its mask yourself: white is the subject"));
    }
    for value in &mut map {
        *value = (*value - least) / (most - least);
    }
    resize_mask(&Mask::from_values(1, SIDE, SIDE, map)?, image.size())
}
