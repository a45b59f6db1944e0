//! Textual inversion (Gal et al. 2022): new tokens, each with the embeddings that were learned for it.
//!
//! | file | keys |
//! | --- | --- |
//! | diffusers, `learned_embeds` | the token: `[C]` or `[n, C]` |
//! | AUTOMATIC1111's web UI, `.pt` | `string_to_param.*`, the name in `name` |
//! | the same as safetensors | `emb_params` |
//! | Stable Diffusion XL | `clip_l`, `clip_g`: one for each text encoder |

use std::path::{Path, PathBuf};

use retouch_graph::Files;

use super::{family_of_width, file_in, some_of};
use crate::diffusion::clip::ClipTextConfig;
use crate::diffusion::weights::{Stored, Table, is_readable};
use crate::diffusion::{Error, Result};

/// The names of the file in a folder, as diffusers' training script writes them.
pub const FILES: [&str; 2] = ["learned_embeds.safetensors", "learned_embeds.bin"];

/// A token and the embeddings `[n, C]` that stand for it, of each text encoder.
#[derive(Clone, Debug)]
pub struct LearnedToken {
    /// What stands for it in prompts.
    pub token: String,
    /// Its embeddings, those of the first text encoder first.
    pub rows: Vec<Stored>,
}

impl LearnedToken {
    /// How many vectors it has.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.rows
            .first()
            .and_then(|rows| rows.shape.first().copied())
            .unwrap_or(0)
    }
}

/// The file that may be named by its folder.
#[must_use]
pub fn find(path: &Path, files: &dyn Files) -> PathBuf {
    file_in(path, &FILES, files)
}

/// Embeddings as a matrix: one vector may be stored as such.
fn matrix(stored: &Stored) -> Option<Stored> {
    let mut rows = stored.clone();
    match rows.shape.len() {
        1 => {
            let width = rows.shape[0];
            rows.shape.insert(0, 1);
            rows.strides.insert(0, width);
        }
        2 => {}
        _ => return None,
    }
    (rows.elements() > 0 && is_readable(&rows)).then_some(rows)
}

/// The tokens of a file. `name` is what its token is to be called; without it what the file calls it.
///
/// # Errors
/// When it is none of textual inversion or is damaged, a name is given to several tokens, or nobody gives one.
pub fn read(file: &Path, name: Option<&str>, files: &dyn Files) -> Result<Vec<LearnedToken>> {
    let bad = |message: String| Error::Weights {
        file: file.to_owned(),
        message,
    };
    let table = Table::read(file, files)?;
    let found: Vec<(Option<String>, Vec<&Stored>)> =
        if let (Some(l), Some(g)) = (table.tensors.get("clip_l"), table.tensors.get("clip_g")) {
            vec![(None, vec![l, g])]
        } else if let Some(rows) = table.tensors.get("emb_params") {
            vec![(None, vec![rows])]
        } else if let Some(rows) = table.tensors.get("string_to_param.*") {
            vec![(table.metadata.get("name").cloned(), vec![rows])]
        } else {
            let named = table.tensors.iter();
            named
                .map(|(token, rows)| (Some(token.clone()), vec![rows]))
                .collect()
        };
    let names: Vec<String> = table.tensors.keys().cloned().collect();
    // A checkpoint or a LoRA has matrices under dotted names, by the hundred.
    const MOST: usize = 64;
    if found.is_empty() || found.len() > MOST || names.iter().any(|name| name.ends_with(".weight"))
    {
        return Err(bad(format!(
            "is not of textual inversion: expected the embeddings of a token, it has {}",
            some_of(&names)
        )));
    }
    if let (Some(name), [_, _, ..]) = (name, found.as_slice()) {
        return Err(bad(format!(
            "has {} tokens ({}), so that {name:?} cannot be the name of one",
            found.len(),
            some_of(&names)
        )));
    }
    found
        .into_iter()
        .map(|(own, rows)| {
            // The file's own name is no part of its content, so that keys could not hold it.
            let token = name.map(str::to_owned).or(own).ok_or_else(|| {
                bad("does not say what its token is called: give `token: \"<name>\"`".into())
            })?;
            let rows = rows
                .iter()
                .map(|stored| {
                    matrix(stored).ok_or_else(|| {
                        bad(format!(
                            "is not of textual inversion: `{}` is {:?} of type {}; expected the embeddings of a token",
                            stored.name, stored.shape, stored.dtype
                        ))
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(LearnedToken { token, rows })
        })
        .collect()
}

/// Refuses tokens that were learned for other text encoders.
///
/// # Errors
/// When the number of text encoders or their widths differ.
pub fn fit(file: &Path, tokens: &[LearnedToken], texts: &[ClipTextConfig]) -> Result<()> {
    let bad = |message: String| Error::Weights {
        file: file.to_owned(),
        message,
    };
    for LearnedToken { token, rows } in tokens {
        if rows.len() != texts.len() {
            let family = |n: usize| match n {
                2 => "two text encoders (Stable Diffusion XL)",
                _ => "one text encoder",
            };
            return Err(bad(format!(
                "its token {token:?} was learned for {}, the model has {}",
                family(rows.len()),
                family(texts.len())
            )));
        }
        for (rows, config) in rows.iter().zip(texts) {
            let (own, model) = (rows.shape[1], config.hidden_size);
            if own != model {
                let family = family_of_width(own)
                    .filter(|_| texts.len() == 1)
                    .map_or_else(String::new, |family| format!(" ({family})"));
                return Err(bad(format!(
                    "its token {token:?} has vectors of {own} features{family}, the model's text encoder takes {model}: it was learned for another family"
                )));
            }
        }
    }
    Ok(())
}
