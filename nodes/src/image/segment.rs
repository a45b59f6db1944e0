//! `segment`.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_diffusion::networks::sam::{Prompt, Sam};
use retouch_diffusion::networks::u2net::{SIDE, U2Net};
use retouch_graph::files::no_file;
use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::AssetPath;
use crate::image::frame::resize_mask;
use crate::image::resample::{self, Filter};
use crate::payload::image::{Image, ImageFacts, tensor_failed};
use crate::payload::mask::Mask;
use crate::payload::photos::{PhotoMask, PhotoMasks, PhotoMasksFacts, Photos, PhotosFacts};
use crate::runtime::Runtime;

/// A picture has no subject when no pixel is that sure to be of one.
const SURE: f32 = 0.5;

/// Finds the subject of pictures: makes a mask of what stands out in each, or of what points or a box show.
///
/// Without `model` it is computed by U2-Net small (Qin et al. 2020, arXiv 2005.09007), whose weights are in the program, on
/// the picture at 320 x 320 pixels. The map is stretched so that its smallest value is 0 and its largest 1, as the network
/// is used everywhere, and resized to the picture. With `model` it is Segment Anything (Kirillov et al. 2023, arXiv
/// 2304.02643), which is told by `points`, `beside` and `box` what is meant; they are the same for every picture of a batch.
///
/// Masks are soft: `mask` with `threshold: 0.5` makes one hard. Look at them before you train on them. Exactly one of `image`
/// and `images` is linked. A picture of which no part is half sure to be a subject is refused.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// A safetensors file of Segment Anything (ViT-B, -L or -H, by the names of the original code or of transformers) or of
    /// MobileSAM. Default: U2-Net small.
    #[serde(default)]
    pub model: Option<AssetPath>,
    /// With `model`: points on the subject, each `[x, y]` in shares of the width and height: `[[0.5, 0.5]]` is the middle.
    #[serde(default)]
    pub points: Vec<[f64; 2]>,
    /// With `model`: points that are not on the subject.
    #[serde(default)]
    pub beside: Vec<[f64; 2]>,
    /// With `model`: a box around the subject, `[left, top, right, bottom]` in shares.
    #[serde(default, rename = "box")]
    pub corners: Option<[f64; 4]>,
    /// Gives an empty mask for a picture without a subject, in place of refusing it: for what is drawn and then measured.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_empty: bool,
}

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

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        let Some(model) = &self.model else {
            return Ok(Vec::new());
        };
        files.find_model(model.as_path());
        if files.is_file(model.as_path()) {
            return Ok(vec![ReadFile {
                role: "model".to_owned(),
                path: model.to_path_buf(),
            }]);
        }
        Err(vec![
            Fault::file("model", no_file(model.as_path(), files))
                .help("name the safetensors file of Segment Anything or MobileSAM itself"),
        ])
    }

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
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
        let finder = Finder::new(self, runtime, context.files())?;
        let find = |image: &Image, name: &str| -> Result<Mask, NodeError> {
            context.check_cancelled()?;
            finder.subject(image, name)
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

impl Segment {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let shown = [
            ("points", !self.points.is_empty()),
            ("beside", !self.beside.is_empty()),
            ("box", self.corners.is_some()),
        ];
        if self.model.is_none() {
            faults.extend(shown.iter().filter(|(_, given)| *given).map(|(name, _)| {
                Fault::value(name, format!("`{name}` has no effect with U2-Net small"))
                    .help("give `model`, a file of Segment Anything, or leave it out")
            }));
        } else if shown.iter().all(|(_, given)| !given) {
            faults.push(
                Fault::value("model", "nothing specifies the subject in the picture").help(
                    "give a point on the subject (`points: [[0.5, 0.5]]`) or a `box` around it",
                ),
            );
        }
        let inside = |value: &f64| (0.0..=1.0).contains(value);
        for (name, points) in [("points", &self.points), ("beside", &self.beside)] {
            if !points.iter().flatten().all(inside) {
                faults.push(
                    Fault::value(name, format!("`{name}` has a number outside of 0 to 1"))
                        .help("points are shares of the picture's width and height"),
                );
            }
        }
        if let Some([left, top, right, bottom]) = self.corners
            && !([left, top, right, bottom].iter().all(inside) && left < right && top < bottom)
        {
            faults.push(
                Fault::value(
                    "box",
                    "`box` is not `[left, top, right, bottom]` in shares from 0 to 1",
                )
                .help("for the middle quarter: [0.25, 0.25, 0.75, 0.75]"),
            );
        }
        faults
    }
}

/// The network that finds.
enum Network {
    U2Net(U2Net),
    Sam(Box<Sam>, Prompt),
}

struct Finder {
    network: Network,
    device: Device,
    allow_empty: bool,
}

impl Finder {
    fn new(node: &Segment, runtime: &Runtime, files: &dyn Files) -> Result<Self, NodeError> {
        let device = &runtime.device;
        let network = match &node.model {
            None => Network::U2Net(U2Net::small(device, &runtime.kernel)?),
            Some(path) => {
                files.find_model(path.as_path());
                let shown = path.display();
                let bytes = files.read(path.as_path()).map_err(|error| {
                    NodeError::failed(format!("`{shown}` cannot be read: {error}"))
                })?;
                let tensors =
                    candle_core::safetensors::load_buffer(&bytes, device).map_err(|e| {
                        NodeError::failed(format!("`{shown}` is not a safetensors file: {e}"))
                            .help("convert the file (.pt, .pth) to safetensors first")
                    })?;
                let marked = |points: &[[f64; 2]], on| -> Vec<_> {
                    points.iter().map(|[x, y]| (*x, *y, on)).collect()
                };
                let prompt = Prompt {
                    points: [marked(&node.points, true), marked(&node.beside, false)].concat(),
                    corners: node.corners,
                };
                let network = Sam::load(tensors, device).map_err(|error| {
                    let help = error.help_text().map(str::to_owned);
                    let text = error.to_string();
                    let first = text.lines().next().unwrap_or_default();
                    let failed = NodeError::failed(format!("`{shown}`: {first}"));
                    failed.help(help.unwrap_or_else(|| {
                        "MobileSAM and SAM (ViT-B, -L, -H) are supported".to_owned()
                    }))
                })?;
                Network::Sam(Box::new(network), prompt)
            }
        };
        Ok(Self {
            network,
            device: device.clone(),
            allow_empty: node.allow_empty,
        })
    }

    /// The mask of a picture's subject, of its size.
    fn subject(&self, image: &Image, name: &str) -> Result<Mask, NodeError> {
        let resized = |width: usize, height: usize| -> Result<Tensor, NodeError> {
            let small = resample::resize(image, width, height, Filter::Bilinear)?;
            small.rgb.to_device(&self.device).map_err(tensor_failed)
        };
        let map = match &self.network {
            Network::U2Net(network) => {
                let map = network.forward(&resized(SIDE, SIDE)?)?;
                Mask::new(map.squeeze(1).map_err(tensor_failed)?)?
            }
            Network::Sam(network, prompt) => {
                let (width, height) = image.size();
                let longer = width.max(height);
                let scaled = |side: usize| ((side * network.side() + longer / 2) / longer).max(1);
                let picture = resized(scaled(width), scaled(height))?;
                let picture = picture.squeeze(0).map_err(tensor_failed)?;
                let map = network.forward(&picture, prompt)?;
                Mask::new(map.unsqueeze(0).map_err(tensor_failed)?)?
            }
        };
        let (size, mut values) = (map.size(), map.values()?);
        let (least, most) = (values.iter()).fold((f32::MAX, f32::MIN), |(least, most), value| {
            (least.min(*value), most.max(*value))
        });
        if !(most >= SURE && most > least) {
            if self.allow_empty {
                let (width, height) = image.size();
                return Mask::from_values(1, width, height, vec![0.0; width * height]);
            }
            return Err(NodeError::failed(format!(
                "there is no subject in {name}: no part of it is more than {:.0} % sure to be one",
                100.0 * most.max(0.0)
            ))
            .help("leave it out, or draw its mask yourself: white is the subject"));
        }
        if matches!(self.network, Network::U2Net(_)) {
            for value in &mut values {
                *value = (*value - least) / (most - least);
            }
        }
        resize_mask(&Mask::from_values(1, size.0, size.1, values)?, image.size())
    }
}
