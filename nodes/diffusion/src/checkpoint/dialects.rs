//! The one table of what checkpoint files call things: which names belong to which part, what a marker says, and which family a file
//! is of. The loader, its errors and `retouch inspect` all read it, so that they cannot disagree.
//!
//! Sources: the original latent-diffusion code (`DDPM.register_schedule`, `LitEma`), Stability AI's generative-models, and
//! diffusers' `single_file_utils`.

use crate::checkpoint::ldm;
use crate::checkpoint::published::Published;
use crate::checkpoint::weights::Table;

/// Whose names a text encoder's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// transformers' `CLIPTextModel`.
    Clip,
    /// OpenCLIP's, with query, key and value in one tensor.
    OpenClip,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The U-Net, by its original names.
    Unet,
    /// The VAE, by its original names.
    Vae,
    /// Text encoder `index`, counted from 0.
    Text {
        /// Its number.
        index: usize,
        /// Whose names it has.
        names: Names,
    },
    /// Says something of the model and holds nothing.
    Marker(Marker),
    /// Not read, and why it is there.
    Unread(&'static str),
}

/// What a marker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// The network predicts v: a convention of ComfyUI and of who publishes for it.
    VPrediction,
    /// The schedule is rescaled to zero terminal SNR: the same convention.
    ZeroSnr,
    /// The model is of a kind that is not built.
    Refused(&'static str),
}

/// How a name is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    Is(&'static str),
    Begins(&'static str),
    Has(&'static str),
}

impl Pattern {
    fn matches(self, name: &str) -> bool {
        match self {
            Self::Is(other) => name == other,
            Self::Begins(prefix) => name.starts_with(prefix),
            Self::Has(part) => name.contains(part),
        }
    }
}

use Pattern::{Begins, Has, Is};

const AVERAGES: Role = Role::Unread("averages of the training");
const SCHEDULE: Role = Role::Unread("schedules of the training");
const BUFFERS: Role = Role::Unread("position ids");
const TRAINING: Role = Role::Unread("states of the training");
const CONTROL: Role = Role::Unread("a ControlNet");

const fn text(index: usize, names: Names) -> Role {
    Role::Text { index, names }
}

/// The names of single files; the first row that meets a name counts.
const ROWS: &[(Pattern, Role)] = &[
    (Is("v_pred"), Role::Marker(Marker::VPrediction)),
    (Is("ztsnr"), Role::Marker(Marker::ZeroSnr)),
    (
        Begins("edm_vpred."),
        Role::Marker(Marker::Refused(
            "predicts v on EDM's schedule, as CosXL does",
        )),
    ),
    (
        Begins("edm_mean"),
        Role::Marker(Marker::Refused(
            "is of EDM's schedule, as Playground 2.5 is",
        )),
    ),
    (Begins("model_ema."), AVERAGES),
    (Has("position_ids"), BUFFERS),
    (Begins(ldm::UNET), Role::Unet),
    (Begins(ldm::VAE), Role::Vae),
    (Begins(ldm::CLIP), text(0, Names::Clip)),
    (Begins(ldm::OPEN_CLIP), text(0, Names::OpenClip)),
    (
        Begins("conditioner.embedders.0.transformer."),
        text(0, Names::Clip),
    ),
    (
        Begins("conditioner.embedders.0.model."),
        text(0, Names::OpenClip),
    ),
    (
        Begins("conditioner.embedders.1.transformer."),
        text(1, Names::Clip),
    ),
    (
        Begins("conditioner.embedders.1.model."),
        text(1, Names::OpenClip),
    ),
    // stable-diffusion.cpp writes both encoders of Stable Diffusion XL by transformers' names.
    (Begins(ldm::CLIP_G_CPP), text(1, Names::Clip)),
    (Begins("control_model."), CONTROL),
    (Begins("denoiser."), SCHEDULE),
    (Is("betas"), SCHEDULE),
    (Begins("alphas_cumprod"), SCHEDULE),
    (Begins("sqrt_"), SCHEDULE),
    (Begins("log_one_minus_alphas"), SCHEDULE),
    (Begins("posterior_"), SCHEDULE),
    (Is("logvar"), SCHEDULE),
    (Is("lvlb_weights"), SCHEDULE),
    (Begins("optimizer"), TRAINING),
    (Begins("lr_scheduler"), TRAINING),
    (Begins("loss."), TRAINING),
    (Begins("first_stage_model_ema."), AVERAGES),
];

/// Tensors that a file may hold beyond its network, whatever the names of the rest: buffers of old versions, the heads that Stable
/// Diffusion leaves out.
const SPARE: [&str; 4] = [
    "position_ids",
    "text_projection",
    "logit_scale",
    "model_ema",
];

/// Whether a network may leave a tensor of its files unread.
#[must_use]
pub fn is_spare(name: &str) -> bool {
    SPARE.iter().any(|part| name.contains(part))
}

/// What a name of a single file is for; `None` of one that no row knows.
#[must_use]
pub fn role(name: &str) -> Option<Role> {
    let row = ROWS.iter().find(|(pattern, _)| pattern.matches(name));
    row.map(|(_, role)| *role)
}

/// The prefixes of a part, in the order of the table.
pub fn prefixes(wanted: impl Fn(Role) -> bool) -> impl Iterator<Item = (&'static str, Role)> {
    ROWS.iter()
        .filter_map(move |(pattern, role)| match pattern {
            Begins(prefix) if wanted(*role) => Some((*prefix, *role)),
            _ => None,
        })
}

/// Whether a file has a tensor of a part.
#[must_use]
pub fn holds(table: &Table, wanted: impl Fn(Role) -> bool) -> bool {
    table
        .tensors
        .keys()
        .any(|name| role(name).is_some_and(&wanted))
}

/// The markers of a file, with their names.
pub fn markers(table: &Table) -> impl Iterator<Item = (&str, Marker)> {
    table.tensors.keys().filter_map(|name| match role(name) {
        Some(Role::Marker(marker)) => Some((name.as_str(), marker)),
        _ => None,
    })
}

/// The name of a marker, to be written.
#[must_use]
pub fn marker_name(wanted: Marker) -> &'static str {
    let row = ROWS.iter().find_map(|(pattern, role)| match pattern {
        Is(name) if *role == Role::Marker(wanted) => Some(*name),
        _ => None,
    });
    row.unwrap_or_default()
}

/// What shows a family.
#[derive(Clone, Copy, Debug)]
enum Shows {
    /// The width of the texts that the U-Net's cross-attention takes.
    Texts(usize),
    /// A name that only it has.
    Name(Pattern),
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A model that is built, by its published configurations.
    Built(Published),
    /// Another one, and what it is, in words that follow "is".
    Other(&'static str),
}

/// What a refiner is, in words that follow "is".
pub const REFINER: &str =
    "a refiner of Stable Diffusion XL, which is not supported; expected a base model";

/// Classes of `scheduler_config.json` that count on another schedule than the betas of the training, by what they begin with.
const SCHEDULES: [(&str, &str); 2] = [
    ("EDM", "EDM's schedule, as Playground 2.5 has it"),
    ("FlowMatch", "flow matching"),
];

/// What a scheduler's class counts on, where that is no schedule of betas.
#[must_use]
pub fn other_schedule(class: &str) -> Option<&'static str> {
    let row = SCHEDULES
        .iter()
        .find(|(begins, _)| class.starts_with(begins));
    row.map(|(_, what)| *what)
}

/// The families; the first row that is shown counts.
const FAMILIES: &[(Shows, Family)] = &[
    (Shows::Texts(768), Family::Built(Published::Sd1)),
    (Shows::Texts(1024), Family::Built(Published::Sd2)),
    (Shows::Texts(2048), Family::Built(Published::Sdxl)),
    (Shows::Texts(1280), Family::Other(REFINER)),
    (
        Shows::Name(Begins("model.diffusion_model.joint_blocks.")),
        Family::Other("a Stable Diffusion 3 checkpoint, which is not supported"),
    ),
    (
        Shows::Name(Begins("joint_blocks.")),
        Family::Other("a Stable Diffusion 3 checkpoint, which is not supported"),
    ),
    (
        Shows::Name(Begins("double_blocks.")),
        Family::Other("a Flux checkpoint, which is not supported"),
    ),
    (
        Shows::Name(Begins("model.diffusion_model.double_blocks.")),
        Family::Other("a Flux checkpoint, which is not supported"),
    ),
    (
        Shows::Name(Begins("double_layers.")),
        Family::Other("an AuraFlow checkpoint, which is not supported"),
    ),
    (
        Shows::Name(Begins("control_model.")),
        Family::Other("a ControlNet, which is not supported"),
    ),
];

/// The width of the texts that the U-Net of a single file takes.
#[must_use]
pub fn texts(table: &Table) -> Option<usize> {
    let keys = table.tensors.iter().find(|(name, _)| {
        role(name) == Some(Role::Unet) && name.ends_with("transformer_blocks.0.attn2.to_k.weight")
    });
    keys.and_then(|(_, stored)| stored.shape.get(1).copied())
}

/// The family of a file; `None` when nothing shows it.
#[must_use]
pub fn family(table: &Table) -> Option<Family> {
    let width = texts(table);
    let shown = |shows: &Shows| match shows {
        Shows::Texts(texts) => width == Some(*texts),
        Shows::Name(pattern) => {
            width.is_none() && table.tensors.keys().any(|name| pattern.matches(name))
        }
    };
    let row = FAMILIES.iter().find(|(shows, _)| shown(shows));
    row.map(|(_, family)| *family)
}

/// What tensors that no network is built of are: how many of each kind, and the first name of those that no row knows.
#[must_use]
pub fn unread<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for name in names {
        let what = match role(name) {
            Some(Role::Unread(what)) => what.to_owned(),
            // Markers are read, though they are of no network.
            Some(Role::Marker(_)) => continue,
            Some(Role::Text { .. }) => "parts of a text encoder that are not used".to_owned(),
            None if is_spare(name) => "parts of a text encoder that are not used".to_owned(),
            Some(Role::Unet | Role::Vae) | None => format!("unknown, such as `{name}`"),
        };
        let same = |(own, _): &&mut (String, usize)| {
            *own == what || own.starts_with("unknown") && what.starts_with("unknown")
        };
        match found.iter_mut().find(same) {
            Some((_, count)) => *count += 1,
            None => found.push((what, 1)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_the_part_that_the_table_says() {
        for (name, due) in [
            ("model.diffusion_model.out.2.bias", Some(Role::Unet)),
            ("model_ema.diffusion_modelout2bias", Some(AVERAGES)),
            ("first_stage_model.quant_conv.bias", Some(Role::Vae)),
            (
                "cond_stage_model.transformer.text_model.embeddings.position_ids",
                Some(BUFFERS),
            ),
            (
                "conditioner.embedders.1.model.ln_final.bias",
                Some(text(1, Names::OpenClip)),
            ),
            (
                "conditioner.embedders.1.model.logit_scale",
                Some(text(1, Names::OpenClip)),
            ),
            ("sqrt_alphas_cumprod", Some(SCHEDULE)),
            ("v_pred", Some(Role::Marker(Marker::VPrediction))),
            ("v_predictor", None),
        ] {
            assert_eq!(role(name), due, "{name}");
        }
        assert_eq!(marker_name(Marker::ZeroSnr), "ztsnr");
    }
}
