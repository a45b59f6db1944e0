//! Models whose U-Net is shown a picture beside the latent: for inpainting, and for editing (InstructPix2Pix).

use candle_core::Tensor;
use retouch_graph::{Fault, NodeError};

use super::{failed, mask_batch_fault};
use crate::payload::{Latent, LatentFacts, Mask};
use crate::runtime::tensor_error;
use retouch_diffusion::checkpoint::model::{Checkpoint, ModelFacts};
use retouch_diffusion::networks::unet::Shown;
use retouch_diffusion::sampling::Beside;

/// How much an image-editing model is guided by its picture when nothing else is said: the default of diffusers' pipeline.
const IMAGE_GUIDANCE: f64 = 1.5;

/// What is linked as `picture`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Linked {
    pub is: bool,
    /// Its shape, as far as it is known.
    pub facts: Option<LatentFacts>,
}

/// What a model's name is in messages, by what it is shown.
fn kind(shown: Shown) -> &'static str {
    match shown {
        Shown::Nothing => "a model that draws from text alone",
        Shown::Masked => "an inpainting model",
        Shown::Picture => "an image-editing model",
    }
}

/// A model that an op cannot use because it is shown a picture.
pub(crate) fn plain_fault(model: Option<&ModelFacts>, port: &str, op: &str) -> Option<Fault> {
    let shown = model?.shown();
    (shown != Shown::Nothing).then(|| {
        Fault::mismatch(
            port,
            format!(
                "this is {} ({} channels), which `{op}` does not work with",
                kind(shown),
                model.map_or(0, |model| model.unet_config.in_channels)
            ),
        )
        .help("only `sample` without a control draws with such a model; give the model that it was made from")
    })
}

/// How much the picture counts for a model.
pub(crate) fn guidance(model: &ModelFacts, given: Option<f64>) -> f64 {
    match model.shown() {
        Shown::Picture => given.unwrap_or(IMAGE_GUIDANCE),
        Shown::Nothing | Shown::Masked => 1.0,
    }
}

/// What is linked or said that the model has no use for, and what it lacks.
pub(crate) fn faults(
    model: Option<&ModelFacts>,
    picture: Linked,
    mask: bool,
    guidance: f64,
    image_guidance: Option<f64>,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some(own) = image_guidance {
        if !(0.0..=100.0).contains(&own) {
            faults.push(
                Fault::value(
                    "image_guidance",
                    format!("image_guidance is {own}; expected a number from 0 to 100"),
                )
                .help("1 is no guidance by the picture, 1.5 the default"),
            );
        } else if guidance == 1.0 {
            faults.push(
                Fault::value(
                    "image_guidance",
                    "`image_guidance` has no effect at guidance 1: the model is called only once per step",
                )
                .help("remove it, or give a `guidance` above 1"),
            );
        }
    }
    let Some(model) = model else {
        return faults;
    };
    let shown = model.shown();
    let what = kind(shown);
    if image_guidance.is_some() && shown != Shown::Picture {
        faults.push(
            Fault::value(
                "image_guidance",
                format!("`image_guidance` has no effect: this is {what}"),
            )
            .help("remove it; it is for InstructPix2Pix (a U-Net of eight channels)"),
        );
    }
    match shown {
        Shown::Nothing if picture.is => faults.push(
            Fault::mismatch(
                "picture",
                format!("`picture` has no effect: this is {what}"),
            )
            .help("link the picture's latent as `latent` and give `strength: 60%`; `picture` is for inpainting and image-editing models"),
        ),
        Shown::Nothing => {}
        Shown::Masked if !picture.is || !mask => {
            let missing = match (picture.is, mask) {
                (false, false) => "`picture` and `mask` are",
                (false, true) => "`picture` is",
                _ => "`mask` is",
            };
            faults.push(
                Fault::mismatch(
                    "model",
                    format!("this is {what}: it takes a picture and a mask, and {missing} missing"),
                )
                .help("link the mask as `mask`, and as `picture` what `encode_reference` with the same `mask` gives"),
            );
        }
        Shown::Picture if !picture.is => faults.push(
            Fault::mismatch(
                "model",
                format!("this is {what}: it takes a picture, and `picture` is missing"),
            )
            .help("link the picture's latent, from `encode_reference`, as `picture`"),
        ),
        Shown::Masked | Shown::Picture => {}
    }
    if let Some(facts) = picture.facts.filter(|_| shown != Shown::Nothing)
        && facts.channels != model.latent_channels
    {
        faults.push(Fault::mismatch(
            "picture",
            format!(
                "the latent has {} channels, this model's have {}",
                facts.channels, model.latent_channels
            ),
        ));
    }
    faults
}

/// A picture of another size, or another number of pictures, than what is drawn.
pub(crate) fn misfit(picture: LatentFacts, drawn: LatentFacts) -> Option<Fault> {
    if (picture.height, picture.width) != (drawn.height, drawn.width) {
        return Some(
            Fault::mismatch(
                "picture",
                format!(
                    "the latent is {}x{}, and one of {}x{} is drawn",
                    picture.width, picture.height, drawn.width, drawn.height
                ),
            )
            .help("give both the same size"),
        );
    }
    (picture.batch != 1 && picture.batch != drawn.batch).then(|| {
        Fault::mismatch(
            "picture",
            format!("{} pictures for a batch of {}", picture.batch, drawn.batch),
        )
        .help("link one picture for all, or one for each")
    })
}

/// What the model is shown while it draws latents of a shape; nothing, of most models.
pub(crate) fn beside(
    model: &Checkpoint,
    picture: Option<&Latent>,
    mask: Option<&Mask>,
    drawn: LatentFacts,
    image_guidance: Option<f64>,
) -> Result<Option<Beside>, NodeError> {
    let facts = model.description().facts();
    let shown = facts.shown();
    if shown == Shown::Nothing {
        return Ok(None);
    }
    let missing = |port| NodeError::failed(format!("{} needs a `{port}`", kind(shown)));
    let picture = picture.ok_or_else(|| missing("picture"))?;
    if let Some(fault) = misfit(picture.facts(), drawn) {
        return Err(failed(fault));
    }
    let picture = picture
        .tensor
        .to_device(model.device())
        .map_err(tensor_error)?;
    let planes = match shown {
        // Not scaled, as the model was trained (diffusers' StableDiffusionInstructPix2PixPipeline.prepare_image_latents).
        Shown::Picture => picture.affine(1.0 / facts.scaling_factor, 0.0),
        _ => {
            let mask = mask.ok_or_else(|| missing("mask"))?;
            if let Some(fault) = mask_batch_fault(mask.batch(), drawn.batch) {
                return Err(failed(fault));
            }
            let mask = mask.covered(drawn.width, drawn.height)?;
            let plane = mask.plane.unsqueeze(1).map_err(tensor_error)?;
            let plane = plane.to_device(model.device()).map_err(tensor_error)?;
            let images = plane.dims()[0].max(picture.dims()[0]);
            let all = |t: &Tensor| match t.dims4()? {
                (1, c, h, w) if images > 1 => t.broadcast_as((images, c, h, w))?.contiguous(),
                _ => Ok(t.clone()),
            };
            all(&plane).and_then(|plane| Tensor::cat(&[plane, all(&picture)?], 1))
        }
    }
    .map_err(tensor_error)?;
    Ok(Some(Beside {
        planes,
        guidance: guidance(&facts, image_guidance),
    }))
}
