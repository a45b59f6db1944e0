//! What a file of tensors is that holds one network and not a model, by the names and shapes of its tensors.

use crate::checkpoint::family::family_of_width;
use crate::checkpoint::ldm;
use crate::checkpoint::weights::Table;

/// A network alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// A U-Net by diffusers' names.
    Unet,
    /// A U-Net by the original names, without the prefix that checkpoints have.
    OriginalUnet,
    /// A VAE.
    Vae,
    /// A text encoder.
    Text,
    /// A small network that guesses what a VAE would give: TAESD (Bohan 2023), or the web UI's.
    VaeApproximation,
}

impl Alone {
    /// What the tensors are of, if one network.
    #[must_use]
    pub fn of(table: &Table) -> Option<Self> {
        let has = |name: &str| table.contains(name);
        let shape = |name: &str| {
            table
                .tensors
                .get(name)
                .map(|stored| stored.shape.as_slice())
        };
        let begins = |first: &str| table.tensors.keys().any(|name| name.starts_with(first));
        // A whole model, if perhaps of no family that is known, is no network alone.
        if begins(ldm::UNET) {
            return None;
        }
        // diffusers' AutoencoderTiny, one half of TAESD as it was published, and the web UI's VAEApprox.
        let tiny = has("decoder.layers.0.weight") || has("encoder.layers.0.weight");
        let half = has("3.conv.0.weight") && (has("1.weight") || has("0.weight"));
        let guess = shape("conv1.weight").is_some_and(|shape| shape.len() == 4)
            && has("conv8.weight")
            && table.tensors.len() <= 16;
        if (tiny || half || guess) && !has("decoder.conv_in.weight") {
            return Some(Self::VaeApproximation);
        }
        if has("conv_in.weight") && begins("down_blocks.") && begins("time_embedding.") {
            return Some(Self::Unet);
        }
        if ["", "diffusion_model."]
            .iter()
            .any(|prefix| has(&format!("{prefix}input_blocks.0.0.weight")))
        {
            return Some(Self::OriginalUnet);
        }
        let vae = ["first_stage_model.", ""].iter().any(|prefix| {
            has(&format!("{prefix}encoder.conv_in.weight"))
                && has(&format!("{prefix}decoder.conv_out.weight"))
        });
        if vae {
            return Some(Self::Vae);
        }
        let text = "embeddings.token_embedding.weight";
        (has(text) || has(&format!("text_model.{text}"))).then_some(Self::Text)
    }

    /// What it is and what to do with it, in words that follow "is".
    #[must_use]
    pub fn in_words(self, table: &Table) -> String {
        let family = || {
            let width = table.tensors.iter().find_map(|(name, stored)| {
                let width = stored.shape.get(1).copied();
                width.filter(|_| name.ends_with("attn2.to_k.weight"))
            });
            let family = width.and_then(family_of_width);
            family.map_or_else(String::new, |family| format!(" of {family}"))
        };
        let part = |what: &str, param: &str| {
            format!(
                "{what}: give it to load_model as `{param}: FILE`, together with the `path` of a complete model"
            )
        };
        match self {
            Self::Unet => part(
                &format!("a standalone U-Net{} with the diffusers tensor names", family()),
                "unet",
            ),
            Self::OriginalUnet => part(
                &format!("a standalone U-Net{} with the original tensor names", family()),
                "unet",
            ),
            Self::Vae => part("a standalone VAE", "vae"),
            Self::Text => part("a standalone text encoder", "text_encoder"),
            Self::VaeApproximation => "a VAE approximation (such as TAESD), made for previews and not a VAE: previews here are fitted to the model's own VAE and do not need one".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::checkpoint::weights::{Stored, dense_strides};

    fn table(tensors: &[(&str, &[usize])]) -> Table {
        let stored = tensors.iter().map(|(name, shape)| {
            let stored = Stored {
                file: Path::new("x").into(),
                name: (*name).to_owned(),
                dtype: "F16".to_owned(),
                shape: shape.to_vec(),
                strides: dense_strides(shape),
                offset: 0,
                inline: None,
            };
            ((*name).to_owned(), stored)
        });
        Table {
            file: "x".into(),
            tensors: stored.collect(),
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn a_network_alone_is_named_with_what_to_do() {
        let unet = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
        let own = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
        type Tensors<'a> = &'a [(&'a str, &'a [usize])];
        let cases: [(Tensors<'_>, &str); 8] = [
            (
                &[
                    ("conv_in.weight", &[320, 4, 3, 3]),
                    ("time_embedding.linear_1.weight", &[1280, 320]),
                    (unet, &[320, 768]),
                ],
                "a standalone U-Net of Stable Diffusion 1 with the diffusers tensor names: give it to load_model as `unet: FILE`",
            ),
            (
                &[
                    ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
                    (own, &[640, 2048]),
                ],
                "a standalone U-Net of Stable Diffusion XL with the original tensor names",
            ),
            (
                &[
                    ("encoder.conv_in.weight", &[128, 3, 3, 3]),
                    ("decoder.conv_out.weight", &[3, 128, 3, 3]),
                ],
                "a standalone VAE",
            ),
            (
                &[(
                    "text_model.embeddings.token_embedding.weight",
                    &[49408, 768],
                )],
                "a standalone text encoder",
            ),
            (
                &[("decoder.layers.0.weight", &[64, 4, 3, 3])],
                "VAE approximation",
            ),
            (
                &[
                    ("1.weight", &[64, 4, 3, 3]),
                    ("3.conv.0.weight", &[64, 64, 3, 3]),
                ],
                "VAE approximation",
            ),
            (
                &[
                    ("0.weight", &[64, 3, 3, 3]),
                    ("3.conv.0.weight", &[64, 64, 3, 3]),
                ],
                "VAE approximation",
            ),
            (
                &[
                    ("conv1.weight", &[8, 4, 7, 7]),
                    ("conv8.weight", &[3, 8, 3, 3]),
                ],
                "VAE approximation",
            ),
        ];
        for (tensors, due) in cases {
            let table = table(tensors);
            let words = Alone::of(&table).unwrap().in_words(&table);
            assert!(words.contains(due), "{due:?} in {words}");
        }
        assert_eq!(
            Alone::of(&table(&[("a", &[1]), ("lora.down", &[4, 4])])),
            None
        );
    }
}
