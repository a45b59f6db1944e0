//! The one table of the names that adapters give to their tensors: the loader, `inspect` and errors all read it.
//!
//! A key is the name of a module and an ending: `lora_unet_mid_block_attentions_0_proj_in` and `.lora_down.weight`. The
//! ending says what the tensor is for its module (`ENDINGS`); the beginning of the module's name says which network it
//! is in (`PREFIXES`). What is left is the layer's name, as diffusers or transformers have it or as the original code
//! has it, with dots or (kohya) with `_` in their place: all are compared with `_`.

use std::collections::HashMap;

use super::{Networks, Shapes};
use crate::checkpoint::ldm;
use crate::checkpoint::weights::Table;

/// How keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// diffusers, by way of PEFT.
    Diffusers,
    /// PEFT alone.
    Peft,
    /// diffusers before PEFT.
    Processors,
    /// kohya's scripts, and most that is shared.
    Kohya,
    /// ComfyUI: the original names of layers, with dots.
    Comfy,
    /// LyCORIS.
    Lycoris,
}

impl Dialect {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::Peft => "PEFT",
            Self::Processors => "diffusers, attention processors",
            Self::Kohya => "kohya",
            Self::Comfy => "ComfyUI",
            Self::Lycoris => "LyCORIS",
        }
    }
}

/// What a tensor is for its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `[R, in, ..]` of a low-rank pair.
    Down,
    /// `[out, R, ..]`.
    Up,
    /// `[R, R, k, k]` between the two.
    Mid,
    /// What is added to the bias with the pair.
    UpBias,
    /// alpha, of any kind.
    Alpha,
    /// Norms of the rows or columns (DoRA), as LyCORIS and kohya's scripts write them.
    DoraScale,
    /// The same as PEFT writes them.
    Magnitude,
    /// The difference of a weight.
    Diff,
    /// The difference of a bias.
    DiffBias,
    /// LoHa's matrices: `w1_a`, `w1_b`, `w2_a`, `w2_b`, and the cores `t1`, `t2`.
    Hada(Part),
    /// LoKr's: `w1`, `w2` or their factors, and the core `t2`.
    Lokr(Part),
}

/// A matrix of LoHa or LoKr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // as they are called in files
pub enum Part {
    W1,
    W1A,
    W1B,
    T1,
    W2,
    W2A,
    W2B,
    T2,
}

/// Endings of keys, what they mean and who writes them. `*` stands for the name that PEFT has for an adapter.
const ENDINGS: [(&str, Role, Dialect); 43] = [
    (".lora_A.weight", Role::Down, Dialect::Diffusers),
    (".lora_B.weight", Role::Up, Dialect::Diffusers),
    (".lora_B.bias", Role::UpBias, Dialect::Diffusers),
    (".lora_A.*.weight", Role::Down, Dialect::Peft),
    (".lora_B.*.weight", Role::Up, Dialect::Peft),
    (".lora_B.*.bias", Role::UpBias, Dialect::Peft),
    (
        ".lora_magnitude_vector",
        Role::Magnitude,
        Dialect::Diffusers,
    ),
    (
        ".lora_magnitude_vector.weight",
        Role::Magnitude,
        Dialect::Diffusers,
    ),
    (
        ".lora_magnitude_vector.*.weight",
        Role::Magnitude,
        Dialect::Peft,
    ),
    (".lora_magnitude_vector.*", Role::Magnitude, Dialect::Peft),
    (
        ".lora_linear_layer.down.weight",
        Role::Down,
        Dialect::Processors,
    ),
    (
        ".lora_linear_layer.up.weight",
        Role::Up,
        Dialect::Processors,
    ),
    (".lora_linear_layer.alpha", Role::Alpha, Dialect::Processors),
    (".lora.down.weight", Role::Down, Dialect::Diffusers),
    (".lora.up.weight", Role::Up, Dialect::Diffusers),
    (".lora.alpha", Role::Alpha, Dialect::Diffusers),
    ("_lora.down.weight", Role::Down, Dialect::Processors),
    ("_lora.up.weight", Role::Up, Dialect::Processors),
    ("_lora.alpha", Role::Alpha, Dialect::Processors),
    (".lora_down.weight", Role::Down, Dialect::Kohya),
    (".lora_up.weight", Role::Up, Dialect::Kohya),
    (".lora_mid.weight", Role::Mid, Dialect::Lycoris),
    (".dora_scale", Role::DoraScale, Dialect::Kohya),
    (".hada_w1_a", Role::Hada(Part::W1A), Dialect::Lycoris),
    (".hada_w1_b", Role::Hada(Part::W1B), Dialect::Lycoris),
    (".hada_t1", Role::Hada(Part::T1), Dialect::Lycoris),
    (".hada_w2_a", Role::Hada(Part::W2A), Dialect::Lycoris),
    (".hada_w2_b", Role::Hada(Part::W2B), Dialect::Lycoris),
    (".hada_t2", Role::Hada(Part::T2), Dialect::Lycoris),
    (".lokr_w1", Role::Lokr(Part::W1), Dialect::Lycoris),
    (".lokr_w1_a", Role::Lokr(Part::W1A), Dialect::Lycoris),
    (".lokr_w1_b", Role::Lokr(Part::W1B), Dialect::Lycoris),
    (".lokr_w2", Role::Lokr(Part::W2), Dialect::Lycoris),
    (".lokr_w2_a", Role::Lokr(Part::W2A), Dialect::Lycoris),
    (".lokr_w2_b", Role::Lokr(Part::W2B), Dialect::Lycoris),
    (".lokr_t2", Role::Lokr(Part::T2), Dialect::Lycoris),
    (".diff", Role::Diff, Dialect::Comfy),
    (".diff_b", Role::DiffBias, Dialect::Comfy),
    (".w_norm", Role::Diff, Dialect::Lycoris),
    (".b_norm", Role::DiffBias, Dialect::Lycoris),
    // LyCORIS' names inside PEFT's own.
    (".lora_alpha", Role::Alpha, Dialect::Peft),
    (".lora_up.bias", Role::UpBias, Dialect::Kohya),
    (".alpha", Role::Alpha, Dialect::Kohya),
];

/// The module that a key is of, what it is for it and who writes so; `None` of keys that no adapter for layers has.
#[must_use]
pub fn role(key: &str) -> Option<(&str, Role, Dialect)> {
    let (module, role, dialect) = ENDINGS.iter().find_map(|(ending, role, dialect)| {
        let module = match ending.split_once('*') {
            None => key.strip_suffix(ending)?,
            Some((before, after)) => {
                let rest = key.strip_suffix(after)?;
                // Names of adapters have no dots: PEFT refuses them.
                let (rest, name) = rest.rsplit_once('.')?;
                let module = rest.strip_suffix(before.strip_suffix('.')?)?;
                (!name.is_empty()).then_some(module)?
            }
        };
        (!module.is_empty()).then_some((module, *role, *dialect))
    })?;
    let of_prefix = PREFIXES
        .iter()
        .find(|(prefix, ..)| module.starts_with(prefix));
    let dialect = of_prefix.and_then(|(.., by)| *by).unwrap_or(dialect);
    Some((module, role, dialect))
}

/// A network of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// The U-Net.
    Unet,
    /// A text encoder, counted from 0.
    Text(usize),
}

/// What the names of modules begin with: the network that it says they are in (`None`: what follows says it), and who
/// writes so where the endings do not decide. A prefix may stand twice (`unet.unet.`). The first that matches counts.
const PREFIXES: [(&str, Option<Network>, Option<Dialect>); 24] = [
    ("base_model.model.", None, Some(Dialect::Peft)),
    ("lycoris_", None, Some(Dialect::Lycoris)),
    ("lora_unet_", Some(Network::Unet), None),
    ("lora_te1_", Some(Network::Text(0)), None),
    ("lora_te2_", Some(Network::Text(1)), None),
    ("lora_te_", Some(Network::Text(0)), None),
    ("unet.", Some(Network::Unet), None),
    ("unet_", Some(Network::Unet), None),
    (
        "model.diffusion_model.",
        Some(Network::Unet),
        Some(Dialect::Comfy),
    ),
    (
        "diffusion_model.",
        Some(Network::Unet),
        Some(Dialect::Comfy),
    ),
    ("text_encoder_2.", Some(Network::Text(1)), None),
    ("text_encoder.", Some(Network::Text(0)), None),
    (
        "text_encoders.clip_l.transformer.",
        Some(Network::Text(0)),
        Some(Dialect::Comfy),
    ),
    (
        "text_encoders.clip_h.transformer.",
        Some(Network::Text(0)),
        Some(Dialect::Comfy),
    ),
    (
        "text_encoders.clip_g.transformer.",
        Some(Network::Text(1)),
        Some(Dialect::Comfy),
    ),
    (
        "clip_l.transformer.",
        Some(Network::Text(0)),
        Some(Dialect::Comfy),
    ),
    // The format of the Open Model Initiative, which OneTrainer writes.
    ("clip_l.", Some(Network::Text(0)), None),
    (
        "clip_h.transformer.",
        Some(Network::Text(0)),
        Some(Dialect::Comfy),
    ),
    (
        "clip_g.transformer.",
        Some(Network::Text(1)),
        Some(Dialect::Comfy),
    ),
    ("clip_g.", Some(Network::Text(1)), None),
    (
        "cond_stage_model.transformer.",
        Some(Network::Text(0)),
        Some(Dialect::Comfy),
    ),
    (
        "conditioner.embedders.0.transformer.",
        Some(Network::Text(0)),
        Some(Dialect::Comfy),
    ),
    ("text_model.", Some(Network::Text(0)), None),
    ("text_model_", Some(Network::Text(0)), None),
];

/// The network that a module's name says, the U-Net's where it says none, and what is left of the name, with `_` for dots.
#[must_use]
pub fn place(module: &str) -> (Network, String) {
    let (mut network, mut rest) = (None, module);
    loop {
        let found = PREFIXES.iter().find_map(|(prefix, said, _)| {
            // What is inside a text encoder says no other network.
            let fits = said.is_none()
                || network.is_none()
                || network == *said
                || prefix.starts_with("text_model");
            Some((rest.strip_prefix(prefix).filter(|_| fits)?, *said))
        });
        let Some((inner, said)) = found else { break };
        network = network.or(said);
        rest = inner;
    }
    (network.unwrap_or(Network::Unet), rest.replace('.', "_"))
}

/// Whether a module's name says that it is in a text encoder.
#[must_use]
pub fn is_text(module: &str) -> bool {
    matches!(place(module).0, Network::Text(_))
}

/// The layers of a model by the names that adapters have for them.
#[derive(Debug)]
pub struct Names {
    unet: HashMap<String, String>,
    texts: Vec<HashMap<String, String>>,
}

impl Names {
    /// Those of a model's networks: each layer by its own name and, in the U-Net, by that of the original code.
    #[must_use]
    pub fn of(networks: &Networks<'_>) -> Self {
        fn layers(shapes: &Shapes) -> impl Iterator<Item = &str> {
            let names = shapes.keys();
            names.filter_map(|name| name.strip_suffix(".weight"))
        }
        let flat = |name: &str| name.replace('.', "_");
        let mut unet = HashMap::new();
        for layer in layers(&networks.unet) {
            if let Some(numbered) = ldm::unet(layer, networks.config) {
                unet.insert(flat(&numbered), layer.to_owned());
            }
            unet.insert(flat(layer), layer.to_owned());
        }
        let texts = networks.texts.iter();
        let texts = texts.map(|shapes| {
            let names = layers(shapes).map(|layer| (flat(layer), layer.to_owned()));
            names.collect()
        });
        Self {
            unet,
            texts: texts.collect(),
        }
    }

    /// The layer that a module of a file is for.
    #[must_use]
    pub fn find(&self, module: &str) -> Option<(Network, String)> {
        let (network, name) = place(module);
        let names = match network {
            Network::Unet => &self.unet,
            Network::Text(index) => self.texts.get(index)?,
        };
        // Attention processors name the projection after themselves: `attn1.processor.to_out` is `attn1.to_out.0`.
        let plain = name.replace("_processor", "");
        let candidates = [
            plain.clone(),
            format!("{plain}_0"),
            plain.replace("_to_out", "_out_proj"),
            plain
                .replace("_to_q", "_q_proj")
                .replace("_to_k", "_k_proj")
                .replace("_to_v", "_v_proj"),
        ];
        let layer = candidates.iter().find_map(|name| names.get(name))?;
        Some((network, layer.clone()))
    }
}

/// Parts of keys that adapters of kinds that are not built have, and what these are called.
const OTHERS: [(&str, &str); 5] = [
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".on_input", "IA3"),
    (".ia3_l", "IA3"),
    (".a1.weight", "GLoRA"),
];

/// Parts of keys that adapters of other families have, and which.
const FAMILIES: [(&str, &str); 9] = [
    ("single_transformer_blocks", "Flux"),
    ("single_blocks", "Flux"),
    ("double_blocks", "Flux"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("lora_te3_", "Stable Diffusion 3"),
    ("caption_projection", "PixArt"),
    ("lora_prior_", "Stable Cascade"),
    (
        "transformer.transformer_blocks",
        "Stable Diffusion 3 or Flux",
    ),
    ("lora_transformer_", "Stable Diffusion 3 or Flux"),
];

/// What a table of tensors is, by its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Changes of layers, which `apply_lora` takes.
    Layers,
    /// Custom Diffusion: weights of cross-attention, which `apply_custom_diffusion` takes.
    CustomDiffusion,
    /// An adapter of a kind that is not built: what it is called, and the key that says so.
    Other(&'static str, String),
    /// An adapter for another family of models: which, and the key that says so.
    Family(&'static str, String),
    /// None of these; perhaps embeddings.
    Unknown,
}

/// The mark of diffusers' attention processors for Custom Diffusion.
pub(super) const CUSTOM: &str = "_custom_diffusion";
/// What the keys of the original code's `delta.bin` begin with: the U-Net's weights, and the tokens.
pub(super) const DELTA: [&str; 2] = ["unet.", "modifier_token."];

/// What a table of tensors is.
#[must_use]
pub fn keys(table: &Table) -> Keys {
    let names = || table.tensors.keys();
    let with = |marks: &[(&str, &'static str)]| {
        marks.iter().find_map(|(part, kind)| {
            let key = names().find(|key| key.contains(part))?;
            Some((*kind, key.clone()))
        })
    };
    if let Some((family, key)) = with(&FAMILIES) {
        return Keys::Family(family, key);
    }
    if let Some((kind, key)) = with(&OTHERS) {
        return Keys::Other(kind, key);
    }
    if names().any(|key| key.contains(CUSTOM)) {
        return Keys::CustomDiffusion;
    }
    // A lone `.alpha` is of nothing; `.diff` alone is enough.
    if names().any(|key| role(key).is_some_and(|(_, role, _)| role != Role::Alpha)) {
        return Keys::Layers;
    }
    let [unet, _] = DELTA;
    let is_delta = |key: &String| key.starts_with(unet) && key.contains(".attn2.");
    if names().any(is_delta)
        && names()
            .all(|key| DELTA.iter().any(|part| key.starts_with(part)) && !key.contains("attn1"))
    {
        return Keys::CustomDiffusion;
    }
    Keys::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_modules_and_roles() {
        for (key, module, due, dialect) in [
            (
                "lora_unet_a_b.lora_down.weight",
                "lora_unet_a_b",
                Role::Down,
                Dialect::Kohya,
            ),
            (
                "unet.a.to_q.lora_A.weight",
                "unet.a.to_q",
                Role::Down,
                Dialect::Diffusers,
            ),
            (
                "unet.a.to_q.lora_B.style.weight",
                "unet.a.to_q",
                Role::Up,
                Dialect::Peft,
            ),
            (
                "base_model.model.a.lora_A.weight",
                "base_model.model.a",
                Role::Down,
                Dialect::Peft,
            ),
            (
                "unet.a.processor.to_q_lora.down.weight",
                "unet.a.processor.to_q",
                Role::Down,
                Dialect::Processors,
            ),
            (
                "a.lora_magnitude_vector.default.weight",
                "a",
                Role::Magnitude,
                Dialect::Peft,
            ),
            (
                "a.lora_magnitude_vector",
                "a",
                Role::Magnitude,
                Dialect::Diffusers,
            ),
            (
                "diffusion_model.out.2.diff_b",
                "diffusion_model.out.2",
                Role::DiffBias,
                Dialect::Comfy,
            ),
            (
                "lycoris_a.lokr_w1_b",
                "lycoris_a",
                Role::Lokr(Part::W1B),
                Dialect::Lycoris,
            ),
            (
                "lora_te_a.hada_t2",
                "lora_te_a",
                Role::Hada(Part::T2),
                Dialect::Lycoris,
            ),
        ] {
            assert_eq!(role(key), Some((module, due, dialect)), "{key}");
        }
        for key in [
            "alpha",
            "unet.a.to_q.weight",
            ".lora_A.weight",
            "clip_l",
            "lora_unet_a.scalar",
        ] {
            assert_eq!(role(key), None, "{key}");
        }
    }

    #[test]
    fn modules_say_their_network() {
        let text = Network::Text;
        for (module, due, rest) in [
            ("lora_unet_mid_block", Network::Unet, "mid_block"),
            ("unet.unet.mid_block.a", Network::Unet, "mid_block_a"),
            ("mid_block.a", Network::Unet, "mid_block_a"),
            ("lora_te_text_model_encoder", text(0), "encoder"),
            ("lora_te2_text_projection", text(1), "text_projection"),
            (
                "text_encoder_2.text_model.encoder.layers.0",
                text(1),
                "encoder_layers_0",
            ),
            ("text_encoder_2.text_projection", text(1), "text_projection"),
            ("base_model.model.text_model.encoder", text(0), "encoder"),
            (
                "base_model.model.unet.mid_block",
                Network::Unet,
                "mid_block",
            ),
            ("clip_g.transformer.text_model.encoder", text(1), "encoder"),
            (
                "diffusion_model.middle_block.1",
                Network::Unet,
                "middle_block_1",
            ),
            ("text_encoder.text_encoder.encoder", text(0), "encoder"),
        ] {
            assert_eq!(place(module), (due, rest.to_owned()), "{module}");
        }
    }
}
