//! The nodes of Retouch: ops over `retouch-diffusion`.
//!
//! A node is one file: a struct of parameters with a [`retouch_graph::Node`] implementation. Adding one takes two
//! steps: the file, and a line in [`registry`].

pub mod adapt;
pub mod attention;
mod chain;
pub mod fields;
pub mod image;
pub mod latent;
pub mod load;
pub mod look;
pub mod measure;
pub mod payload;
mod preview;
mod runtime;
pub mod sample;
pub mod train;

pub use runtime::Runtime;

/// Every op, in the order of the reference.
#[must_use]
pub fn registry() -> retouch_graph::registry::Registry {
    retouch_graph::registry::Registry::new()
        .with::<load::LoadModel>()
        .with::<adapt::ApplyLora>()
        .with::<adapt::ApplyTextualInversion>()
        .with::<adapt::ApplyCustomDiffusion>()
        .with::<adapt::LoadVae>()
        .with::<train::TrainLora>()
        .with::<train::TrainTextualInversion>()
        .with::<train::TrainCustomDiffusion>()
        .with::<train::TrainDreambooth>()
        .with::<load::LoadImage>()
        .with::<load::LoadImages>()
        .with::<load::LoadMask>()
        .with::<load::LoadLatent>()
        .with::<latent::EncodeReference>()
        .with::<latent::Invert>()
        .with::<sample::StepBlendSample>()
        .with::<attention::SwapAttention>()
        .with::<sample::Sample>()
        .with::<latent::Decode>()
        .with::<latent::Animate>()
        .with::<image::ResizeImage>()
        .with::<image::MakeMask>()
        .with::<image::Segment>()
        .with::<image::Grid>()
        .with::<image::Plot>()
        .with::<attention::MaskImage>()
        .with::<attention::AttentionMap>()
        .with::<measure::ImageFeatures>()
        .with::<measure::TextFeatures>()
        .with::<measure::Similarity>()
        .with::<measure::PromptScore>()
        .with::<measure::Diversity>()
        .with::<measure::MeasureLayout>()
        .with::<measure::MeasureLook>()
        .with::<measure::MeasureLpips>()
        .with::<measure::PictureError>()
        .with::<measure::Scores>()
        .with::<measure::MakeReport>()
}
