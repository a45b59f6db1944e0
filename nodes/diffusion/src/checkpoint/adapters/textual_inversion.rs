//! Textual inversion (Gal et al. 2022): new tokens, each with the embeddings that were learned for it.
//!
//! | file | keys |
//! | --- | --- |
//! | diffusers, `learned_embeds` | the token: `[C]` or `[n, C]` |
//! | AUTOMATIC1111's web UI, `.pt` | `string_to_param.TOKEN`; of the token `*` the name is in `name` |
//! | the same as safetensors | `emb_params` |
//! | kohya's scripts, Stable Diffusion XL | `clip_l`, `clip_g`: one for each text encoder |
//!
//! | inside a LoRA (kohya, OneTrainer) | `bundle_emb.TOKEN.`, and then one of the last three above |
//! | Custom Diffusion's `delta.bin` | `modifier_token.TOKEN` |
//!
//! A key `*` is a token without a name. Files of the web UI as safetensors and kohya's name none either; the file's own name is taken then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use retouch_graph::Files;

use super::dialect::{self, Keys};
use super::{file_in, some_of};
use crate::checkpoint::family::family_of_width;
use crate::checkpoint::weights::{Stored, Table, is_readable};
use crate::networks::clip::ClipTextConfig;
use crate::{Error, Result};

/// The names of the file in a folder, as diffusers' training script writes them.
pub const FILES: [&str; 2] = ["learned_embeds.safetensors", "learned_embeds.bin"];

/// A token and the embeddings `[n, C]` that stand for it, of each text encoder.
#[derive(Clone, Debug)]
pub struct LearnedToken {
    /// What stands for it in prompts.
    pub token: String,
    /// Whether that is the name of the file, which names none.
    pub by_file: bool,
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

/// What stands for a token that a file does not name: the file's own name, as in the AUTOMATIC1111 web UI; of a file that
/// every training calls the same, its folder's.
fn by_file(file: &Path) -> String {
    let named =
        |path: Option<&std::ffi::OsStr>| path.map(|name| name.to_string_lossy().into_owned());
    let usual = FILES.iter().any(|name| file.ends_with(name));
    let folder = file.parent().and_then(|folder| named(folder.file_name()));
    folder
        .filter(|_| usual)
        .or_else(|| named(file.file_stem()))
        .unwrap_or_default()
}

/// The key dialects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// diffusers.
    Diffusers,
    /// The AUTOMATIC1111 web UI, and the original code.
    A1111,
    /// kohya's scripts.
    Kohya,
    /// Inside a LoRA.
    Bundled,
    /// Custom Diffusion's own code.
    Delta,
}

impl Dialect {
    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::A1111 => "A1111",
            Self::Kohya => "kohya",
            Self::Bundled => "inside a LoRA",
            Self::Delta => "Custom Diffusion",
        }
    }
}

/// The keys of files that have one embedding for each text encoder.
const ENCODERS: [&str; 2] = ["clip_l", "clip_g"];
/// What the keys of the web UI's files begin with.
const PARAM: &str = "string_to_param.";
/// What the keys of embeddings inside a LoRA begin with: `bundle_emb.NAME.`, and then as in a file of their own.
const BUNDLE: &str = "bundle_emb.";
/// What the keys of tokens begin with in the `delta.bin` of Custom Diffusion's own code.
const MODIFIER: &str = "modifier_token.";
/// The token that files have in place of a name.
const NAMELESS: &str = "*";

/// A key of an embedding inside a LoRA, as its token's name and the rest. Names may have dots.
fn in_bundle(key: &str) -> Option<(&str, &str)> {
    let inside = key.strip_prefix(BUNDLE)?;
    let param = format!(".{PARAM}");
    let at = match inside.find(&param) {
        Some(at) => at,
        None => inside.rfind('.')?,
    };
    (at > 0).then(|| (&inside[..at], &inside[at + 1..]))
}

/// The tokens whose embeddings are inside a LoRA: those of the encoders that the keys name. `None` when there are none.
///
/// # Errors
/// What is wrong with one.
#[must_use]
pub fn bundled(table: &Table) -> Option<Result<Vec<LearnedToken>, String>> {
    let mut found: BTreeMap<&str, Vec<(usize, &Stored)>> = BTreeMap::new();
    for (key, stored) in &table.tensors {
        let Some((token, inner)) = in_bundle(key) else {
            continue;
        };
        let encoder = match inner {
            "emb_params" => 0,
            inner if inner.starts_with(PARAM) => 0,
            inner => match ENCODERS.iter().position(|name| *name == inner) {
                Some(encoder) => encoder,
                None => continue,
            },
        };
        found.entry(token).or_default().push((encoder, stored));
    }
    if found.is_empty() {
        return None;
    }
    let tokens = found.into_iter().map(|(token, mut rows)| {
        rows.sort_by_key(|(encoder, _)| *encoder);
        let bad =
            |what: &str| format!("has an embedding of the token {token:?} inside, which {what}");
        if rows
            .iter()
            .enumerate()
            .any(|(at, (encoder, _))| at != *encoder)
        {
            return Err(bad("is not one for each text encoder"));
        }
        let rows = rows.into_iter().map(|(_, stored)| matrix(stored));
        let rows = rows.collect::<Option<_>>();
        Ok(LearnedToken {
            token: token.to_owned(),
            by_file: false,
            rows: rows.ok_or_else(|| bad("is not a matrix of numbers"))?,
        })
    });
    Some(tokens.collect())
}

/// Whether a key is of one of these embeddings inside a LoRA.
#[must_use]
pub fn is_bundled(key: &str, tokens: &[LearnedToken]) -> bool {
    let mut rows = tokens.iter().flat_map(|token| &token.rows);
    key.starts_with(BUNDLE) && rows.any(|stored| stored.name == key)
}

/// The tokens of a table whose numbers of dimensions are those of embeddings, and how its keys are written. `None` where
/// they are not.
#[must_use]
pub fn tokens(file: &Path, table: &Table) -> Option<(Dialect, Vec<LearnedToken>)> {
    // A checkpoint or a LoRA has matrices under dotted names, by the hundred.
    const MOST: usize = 64;
    if let Some(tokens) = bundled(table) {
        return Some((Dialect::Bundled, tokens.ok()?));
    }
    let modifiers = table.tensors.iter();
    let modifiers: Vec<(&str, &Stored)> = modifiers
        .filter_map(|(key, rows)| Some((key.strip_prefix(MODIFIER)?, rows)))
        .collect();
    if !modifiers.is_empty() {
        let tokens = modifiers.into_iter().map(|(token, rows)| {
            Some(LearnedToken {
                token: token.to_owned(),
                by_file: false,
                rows: vec![matrix(rows)?],
            })
        });
        return Some((Dialect::Delta, tokens.collect::<Option<_>>()?));
    }
    let tensors = &table.tensors;
    let named = |name: &str| (name != NAMELESS).then(|| name.to_owned());
    let only = |known: &[&str]| tensors.keys().all(|key| known.contains(&key.as_str()));
    let params: Vec<(&str, &Stored)> = tensors
        .iter()
        .filter_map(|(key, rows)| Some((key.strip_prefix(PARAM)?, rows)))
        .collect();
    let (dialect, found): (_, Vec<(Option<String>, Vec<&Stored>)>) = if only(&ENCODERS) {
        let rows = ENCODERS.iter().filter_map(|key| tensors.get(*key));
        (Dialect::Kohya, vec![(None, rows.collect())])
    } else if let Some(rows) = tensors.get("emb_params") {
        (Dialect::A1111, vec![(None, vec![rows])])
    } else if !params.is_empty() {
        let own = table.metadata.get("name").and_then(|name| named(name));
        let token = |(name, rows)| (named(name).or_else(|| own.clone()), vec![rows]);
        (Dialect::A1111, params.into_iter().map(token).collect())
    } else {
        let token = |(name, rows): (&String, _)| (named(name), vec![rows]);
        (Dialect::Diffusers, tensors.iter().map(token).collect())
    };
    let other = tensors.keys().any(|name| name.ends_with(".weight"));
    if tensors.is_empty() || found.len() > MOST || other {
        return None;
    }
    let found = found.into_iter().map(|(own, rows)| {
        let rows = rows.into_iter().map(matrix).collect::<Option<_>>()?;
        Some(LearnedToken {
            by_file: own.is_none(),
            token: own.unwrap_or_else(|| by_file(file)),
            rows,
        })
    });
    Some((dialect, found.collect::<Option<_>>()?))
}

/// The tokens of a file. `name` is what its token is to be called; without it what the file calls it, or its own name.
///
/// # Errors
/// When it is none of textual inversion or is damaged, a name is given to several tokens or can be none.
pub fn read(file: &Path, name: Option<&str>, files: &dyn Files) -> Result<Vec<LearnedToken>> {
    let bad = |message: String| Error::Weights {
        file: file.to_owned(),
        message,
    };
    let table = Table::read(file, files)?;
    let names: Vec<String> = table.tensors.keys().cloned().collect();
    if let Some(Err(message)) = bundled(&table) {
        return Err(bad(message));
    }
    let Some((_, mut found)) = tokens(file, &table) else {
        let other = match dialect::keys(&table) {
            Keys::Layers => Some("a LoRA: apply it with `apply_lora`".to_owned()),
            Keys::CustomDiffusion => Some(
                "Custom Diffusion weights: apply them with `apply_custom_diffusion`".to_owned(),
            ),
            Keys::Other(kind, key) => Some(format!("{kind} (`{key}`), which is not supported")),
            Keys::Family(family, key) => Some(format!(
                "an adapter for {family} (`{key}`), which is not supported"
            )),
            Keys::Unknown => None,
        };
        if let Some(other) = other {
            return Err(bad(format!("is not a textual inversion but {other}")));
        }
        return Err(bad(format!(
            "is not a textual inversion: expected the embeddings of a token, it has {}",
            table.tensors.values().next().map_or_else(
                || "nothing".to_owned(),
                |first| format!(
                    "{} (`{}` is {:?} of type {})",
                    some_of(&names),
                    first.name,
                    first.shape,
                    first.dtype
                )
            )
        )));
    };
    match (name, found.as_mut_slice()) {
        (Some(name), [one]) => {
            one.token = name.to_owned();
            one.by_file = false;
        }
        (Some(name), several) => {
            let own: Vec<String> = several.iter().map(|token| token.token.clone()).collect();
            return Err(bad(format!(
                "has {} tokens ({}), so that {name:?} cannot be the name of one; without `token` all of them are added by these names",
                several.len(),
                some_of(&own)
            )));
        }
        (None, _) => {}
    }
    for LearnedToken { token, by_file, .. } in &found {
        let whose = if *by_file {
            " (the file's own name, as it does not name its token)"
        } else {
            ""
        };
        if token.is_empty() || token.chars().any(char::is_whitespace) {
            return Err(bad(format!(
                "has a token called {token:?}{whose}, and a token has no spaces: give `token: \"<name>\"`"
            )));
        }
        if token == NAMELESS {
            return Err(bad(format!(
                "cannot have a token called {token:?}, which every vocabulary has: give `token: \"<name>\"`"
            )));
        }
    }
    Ok(found)
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
    for learned in tokens {
        let LearnedToken { token, rows, .. } = learned;
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
        let positions = texts.iter().map(|text| text.max_position_embeddings).min();
        let (vectors, room) = (learned.vectors(), positions.unwrap_or(0).saturating_sub(2));
        if vectors > room {
            return Err(bad(format!(
                "its token {token:?} has {vectors} vectors; a prompt of this model has room for {room}"
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
