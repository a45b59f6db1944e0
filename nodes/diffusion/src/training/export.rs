//! What a training gave: as a changed model, and as the file of an adapter in the names that other programs read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::parameters::{Network, NewToken, Parameter, Role};
use crate::checkpoint::adapters::textual_inversion::LearnedToken;
use crate::checkpoint::model::{Checkpoint, Replaced};
use crate::checkpoint::weights::{Delta, Edit, Stored, dense_strides};
use crate::{Error, Result};

/// Whose names an adapter's tensors have.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum AdapterFormat {
    /// kohya's scripts: what ComfyUI and the A1111 web UI read, and most that is shared.
    #[default]
    Kohya,
    /// diffusers: `pipe.load_lora_weights`.
    Diffusers,
    /// PEFT: one network's adapter, `base_model.model.` before every name.
    Peft,
}

/// A tensor of an adapter's file.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// Its name there.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub numbers: Vec<f32>,
}

/// A parameter with its numbers.
pub type Value = (Parameter, Vec<f32>);

/// A tensor in memory as one that lies in a file.
fn stored(name: &str, shape: &[usize], numbers: &[f32]) -> Stored {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    Stored {
        file: Arc::from(Path::new("what was trained")),
        name: name.to_owned(),
        dtype: "F32".into(),
        shape: shape.to_vec(),
        strides: dense_strides(shape),
        offset: 0,
        inline: Some(bytes.into()),
    }
}

fn of_parameter((parameter, numbers): &Value) -> Stored {
    stored(&parameter.tensor, parameter.variable.dims(), numbers)
}

/// The model with what was trained: low-rank factors beside its weights, tensors in place of its own, new tokens. `id` stands
/// for it.
///
/// # Errors
/// When the values are not those of a training of this model.
pub fn trained_model(
    base: &Checkpoint,
    id: &str,
    values: &[Value],
    scale: f64,
) -> Result<Checkpoint> {
    let texts = base.texts();
    let (mut unet_edits, mut text_edits) = (BTreeMap::new(), vec![BTreeMap::new(); texts]);
    let (mut unet_tensors, mut text_tensors) = (Replaced::new(), vec![Replaced::new(); texts]);
    for value in values {
        let parameter = &value.0;
        let name = parameter.tensor.clone();
        match parameter.role {
            Role::Tensor => {
                let tensors = match parameter.network {
                    Network::Unet => &mut unet_tensors,
                    Network::Text(i) => &mut text_tensors[i],
                };
                tensors.insert(name, of_parameter(value));
            }
            Role::Down => {
                let up = values
                    .iter()
                    .find(|(other, _)| {
                        other.role == Role::Up
                            && other.network == parameter.network
                            && other.tensor == name
                    })
                    .ok_or_else(|| Error::request(format!("`{name}` has one factor of two")))?;
                let edit = Edit {
                    delta: Delta::LowRank {
                        down: of_parameter(value),
                        up: of_parameter(up),
                        mid: None,
                    },
                    scale,
                    magnitude: None,
                    strength: 1.0,
                };
                match parameter.network {
                    Network::Unet => unet_edits.insert(name, edit),
                    Network::Text(i) => text_edits[i].insert(name, edit),
                };
            }
            Role::Up | Role::Token => {}
        }
    }
    let model = base
        .with_trained(id.to_owned(), unet_tensors, text_tensors)
        .with_edits(id.to_owned(), unet_edits, text_edits);
    Ok(model.with_tokens(id.to_owned(), tokens(values, texts)))
}

/// The new tokens among the values, in their order.
fn tokens(values: &[Value], texts: usize) -> Vec<LearnedToken> {
    let first = values
        .iter()
        .filter(|(p, _)| p.role == Role::Token && p.network == Network::Text(0));
    first
        .map(|(parameter, _)| LearnedToken {
            token: parameter.tensor.clone(),
            by_file: false,
            rows: (0..texts)
                .filter_map(|text| {
                    let own = values.iter().find(|(p, _)| {
                        p.role == Role::Token
                            && p.network == Network::Text(text)
                            && p.tensor == parameter.tensor
                    });
                    own.map(of_parameter)
                })
                .collect(),
        })
        .collect()
}

/// The model with the tokens as they are before they are trained, so that its tokenizers know them.
///
/// # Errors
/// When an initial word is none.
pub fn with_new_tokens(base: &Checkpoint, id: &str, new: &[NewToken]) -> Result<Checkpoint> {
    let tokens = new
        .iter()
        .map(|token| {
            let rows = (0..base.texts())
                .map(|text| {
                    let rows = super::parameters::initial_rows(base, text, token)?;
                    let numbers = super::optimizer::numbers(&rows)?;
                    Ok(stored(&token.token, rows.dims(), &numbers))
                })
                .collect::<Result<_>>()?;
            Ok(LearnedToken {
                token: token.token.clone(),
                by_file: false,
                rows,
            })
        })
        .collect::<Result<_>>()?;
    Ok(base.with_tokens(id.to_owned(), tokens))
}

/// The layer of a weight's name.
fn layer(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// kohya's name of a layer.
fn kohya(network: Network, texts: usize, layer: &str) -> String {
    let layer = layer.replace('.', "_");
    match network {
        Network::Unet => format!("lora_unet_{layer}"),
        Network::Text(_) if texts == 1 => format!("lora_te_text_model_{layer}"),
        Network::Text(i) => format!("lora_te{}_text_model_{layer}", i + 1),
    }
}

/// diffusers' name of a layer.
fn diffusers(network: Network, layer: &str) -> String {
    match network {
        Network::Unet => format!("unet.{layer}"),
        Network::Text(0) => format!("text_encoder.text_model.{layer}"),
        Network::Text(i) => format!("text_encoder_{}.text_model.{layer}", i + 1),
    }
}

/// The tensors of an adapter's file. alpha is a tensor in kohya's, and multiplied into the second factor in the others', whose
/// files have no place for it that every reader looks at.
///
/// # Errors
/// When the format has no names for what was trained.
pub fn adapter(
    values: &[Value],
    base: &Checkpoint,
    scale: f64,
    format: AdapterFormat,
) -> Result<Vec<AdapterTensor>> {
    let texts = base.texts();
    let mut all = Vec::new();
    let mut whole = Vec::new();
    for value in values {
        let (parameter, numbers) = value;
        let shape = parameter.variable.dims().to_vec();
        let (network, name) = (parameter.network, layer(&parameter.tensor));
        let mut put = |name: String, shape: Vec<usize>, numbers: Vec<f32>| {
            all.push(AdapterTensor {
                name,
                shape,
                numbers,
            });
        };
        let scaled = || {
            numbers
                .iter()
                .map(|x| (f64::from(*x) * scale) as f32)
                .collect()
        };
        match (parameter.role, format) {
            (Role::Token, _) => {}
            (Role::Tensor, _) => whole.push(value),
            (Role::Down, AdapterFormat::Kohya) => {
                let module = kohya(network, texts, name);
                let alpha = (scale * shape[0] as f64) as f32;
                put(format!("{module}.alpha"), vec![], vec![alpha]);
                put(format!("{module}.lora_down.weight"), shape, numbers.clone());
            }
            (Role::Up, AdapterFormat::Kohya) => {
                let module = kohya(network, texts, name);
                put(format!("{module}.lora_up.weight"), shape, numbers.clone());
            }
            (role, _) => {
                let module = match (format, network) {
                    (AdapterFormat::Peft, Network::Unet) => format!("base_model.model.{name}"),
                    (AdapterFormat::Peft, Network::Text(_)) => {
                        return Err(Error::request(
                            "PEFT's file holds the adapter of one network, and a text encoder was trained too",
                        )
                        .help("give `format: diffusers` or `format: kohya`"));
                    }
                    _ => diffusers(network, name),
                };
                let endings = match (format, network) {
                    (AdapterFormat::Peft, _) => ["lora_A", "lora_B"],
                    (_, Network::Unet) => ["lora.down", "lora.up"],
                    (_, Network::Text(_)) => ["lora_linear_layer.down", "lora_linear_layer.up"],
                };
                if role == Role::Down {
                    put(
                        format!("{module}.{}.weight", endings[0]),
                        shape,
                        numbers.clone(),
                    );
                } else {
                    put(format!("{module}.{}.weight", endings[1]), shape, scaled());
                }
            }
        }
    }
    let custom = !whole.is_empty() && add_whole(&mut all, &whole, base)?;
    add_tokens(&mut all, values, texts, format, custom);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Tensors that were trained themselves: keys and values of cross-attention alone under Custom Diffusion's names, all others as
/// differences (LyCORIS' "full"), which `apply_lora`, ComfyUI and the A1111 web UI add to the base. Whether it was the first.
fn add_whole(all: &mut Vec<AdapterTensor>, whole: &[&Value], base: &Checkpoint) -> Result<bool> {
    let custom = |tensor: &str| -> Option<String> {
        let (site, projection) = tensor.rsplit_once(".attn2.to_")?;
        let projection = projection.strip_suffix(".weight")?;
        matches!(projection, "k" | "v")
            .then(|| format!("{site}.attn2.processor.to_{projection}_custom_diffusion.weight"))
    };
    let names: Option<Vec<String>> = whole.iter().map(|(p, _)| custom(&p.tensor)).collect();
    if let Some(names) = names {
        for (name, (parameter, numbers)) in names.into_iter().zip(whole) {
            all.push(AdapterTensor {
                name,
                shape: parameter.variable.dims().to_vec(),
                numbers: numbers.clone(),
            });
        }
        return Ok(true);
    }
    for (parameter, numbers) in whole {
        let shape = parameter.variable.dims().to_vec();
        let asked = [(parameter.tensor.clone(), shape.clone())];
        let before = base.tensors_of(parameter.network.text(), &asked)?;
        let before = super::optimizer::numbers(&before[0])?;
        let (name, ending) = match parameter.tensor.strip_suffix(".bias") {
            Some(name) => (name, "diff_b"),
            None => (layer(&parameter.tensor), "diff"),
        };
        all.push(AdapterTensor {
            name: format!("{}.{ending}", kohya(parameter.network, base.texts(), name)),
            shape,
            numbers: numbers
                .iter()
                .zip(before)
                .map(|(new, old)| new - old)
                .collect(),
        });
    }
    Ok(false)
}

/// The embeddings of new tokens: by the token's name; beside Custom Diffusion's tensors as its own code has them; with kohya's
/// names beside others, inside which embeddings go as `bundle_emb`.
fn add_tokens(
    all: &mut Vec<AdapterTensor>,
    values: &[Value],
    texts: usize,
    format: AdapterFormat,
    custom: bool,
) {
    let own: Vec<&Value> = values
        .iter()
        .filter(|(p, _)| p.role == Role::Token)
        .collect();
    let several = own.iter().any(|(p, _)| p.tensor != own[0].0.tensor);
    let beside = !all.is_empty() || several;
    for (parameter, numbers) in own {
        let token = &parameter.tensor;
        let part = match (parameter.network, texts) {
            (Network::Text(0), 2) => "clip_l",
            (Network::Text(1), 2) => "clip_g",
            _ => "emb_params",
        };
        let name = match format {
            _ if custom && texts == 1 => format!("modifier_token.{token}"),
            AdapterFormat::Kohya if beside => {
                let part = if texts == 1 {
                    "string_to_param.*"
                } else {
                    part
                };
                format!("bundle_emb.{token}.{part}")
            }
            AdapterFormat::Kohya => part.to_owned(),
            // diffusers has no file for both encoders of SDXL; its own script writes these two names.
            _ if texts == 2 => part.to_owned(),
            _ => token.clone(),
        };
        all.push(AdapterTensor {
            name,
            shape: parameter.variable.dims().to_vec(),
            numbers: numbers.clone(),
        });
    }
}
