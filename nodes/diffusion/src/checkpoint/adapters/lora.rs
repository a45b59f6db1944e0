//! LoRA (Hu et al. 2021): low-rank additions to the weights of layers, in the key dialects that are in use.
//!
//! | dialect | U-Net | text encoders |
//! | --- | --- | --- |
//! | diffusers | `unet.mid_block.attentions.0.proj_in.lora_A.weight` | `text_encoder.`, `text_encoder_2.` |
//! | PEFT | `base_model.model.mid_block. ..`, with `adapter_config.json` beside | |
//! | diffusers, attention processors | `unet. .. .attn1.processor.to_q_lora.down.weight`, without `unet.` too | `text_encoder. .. .q_proj.lora_linear_layer.down.weight`, `.to_q_lora.down.weight` |
//! | kohya | `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, or by the numbers of the original layout | `lora_te_`, `lora_te1_`, `lora_te2_` |
//!
//! A layer's weight counts as `W + weight alpha / R up down`. alpha is a tensor of the file (kohya), an entry of its
//! metadata or of `adapter_config.json` (PEFT; its `alpha_pattern` are regular expressions, of which the first that matches
//! counts), and R, the rank, where nobody says it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use indexmap::IndexMap;
use retouch_graph::Files;
use serde::Deserialize;

use super::{Networks, file_in, in_words, scalar, some_of, textual_inversion};
use crate::checkpoint::layout::read_text;
use crate::checkpoint::ldm;
use crate::checkpoint::weights::{LowRank, Stored, Table, bare};
use crate::{Error, Result};

/// The names of files in a folder that holds a LoRA: those that diffusers and PEFT write.
pub const FILES: [&str; 4] = [
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
];
/// PEFT's configuration, beside the file.
pub const CONFIG: &str = "adapter_config.json";
/// Where diffusers keeps PEFT's configurations in the file's metadata.
const METADATA: &str = "lora_adapter_metadata";

/// The key dialects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// diffusers, by way of PEFT.
    Diffusers,
    /// PEFT alone.
    Peft,
    /// diffusers before PEFT.
    Processors,
    /// kohya's scripts, and most that is shared.
    Kohya,
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
        }
    }
}

/// The two factors for one layer.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `[R, in, ..]`.
    pub down: Stored,
    /// `[out, R, ..]`.
    pub up: Stored,
    /// What the product is multiplied with: alpha / R.
    pub scale: f64,
}

/// A LoRA file.
#[derive(Clone, Debug)]
pub struct Lora {
    /// The file.
    pub file: PathBuf,
    /// How its keys are written.
    pub dialect: Dialect,
    /// The factors by the name that the file has for their layer.
    pub modules: BTreeMap<String, Factors>,
    /// Keys that belong to no pair of factors.
    pub strays: Vec<String>,
}

/// A LoRA whose layers were found in a model.
#[derive(Clone, Debug, Default)]
pub struct Fitted {
    /// Factors for layers of the U-Net.
    pub unet: BTreeMap<String, Factors>,
    /// Factors for layers of each text encoder.
    pub texts: Vec<BTreeMap<String, Factors>>,
    /// Names in the file that the model has no layer for.
    pub unmatched: Vec<String>,
}

impl Fitted {
    /// Layers that the model has.
    #[must_use]
    pub fn matched(&self) -> usize {
        self.unet.len() + self.texts.iter().map(BTreeMap::len).sum::<usize>()
    }

    /// One line for people: what was found where.
    #[must_use]
    pub fn summary(&self) -> String {
        let texts: usize = self.texts.iter().map(BTreeMap::len).sum();
        format!(
            "{} layers matched ({} of the U-Net, {texts} of text encoders), {} unmatched",
            self.matched(),
            self.unet.len(),
            self.unmatched.len()
        )
    }
}

/// PEFT's configuration, as far as it changes the numbers.
#[derive(Clone, Debug, Default, Deserialize)]
struct PeftConfig {
    #[serde(default)]
    lora_alpha: Option<f64>,
    #[serde(default)]
    alpha_pattern: IndexMap<String, f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
}

/// PEFT's configuration with its patterns ready to match. `rank_pattern` is not needed: a rank is that of the factors.
#[derive(Debug)]
struct PeftAlphas {
    all: Option<f64>,
    own: Vec<(Pattern, f64)>,
    use_rslora: bool,
}

impl PeftAlphas {
    /// # Errors
    /// What is wrong with a pattern.
    fn new(config: PeftConfig) -> Result<Self, String> {
        let own = config.alpha_pattern.into_iter();
        Ok(Self {
            all: config.lora_alpha,
            own: own
                .map(|(pattern, alpha)| Ok((Pattern::new(&pattern)?, alpha)))
                .collect::<Result<_, String>>()?,
            use_rslora: config.use_rslora,
        })
    }

    /// alpha of a module: that of the first pattern that matches its name, else the one for all.
    fn alpha(&self, module: &str) -> Result<Option<f64>, String> {
        for (pattern, alpha) in &self.own {
            if pattern.matches(module)? {
                return Ok(Some(*alpha));
            }
        }
        Ok(self.all)
    }
}

/// A pattern of `alpha_pattern`: a regular expression P that is matched as `(.*\.)?(P)$` from the beginning of a module's
/// name, as PEFT's `get_pattern_key` does.
#[derive(Debug)]
enum Pattern {
    /// Letters, digits, `_`, and dots, each of which stands for any character: most patterns are names of modules, of
    /// which a file may have thousands.
    Plain(Vec<char>),
    /// Any other.
    Regex(String, Box<Regex>),
}

impl Pattern {
    /// # Errors
    /// Why it is no regular expression.
    fn new(text: &str) -> Result<Self, String> {
        if text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        {
            return Ok(Self::Plain(text.chars().collect()));
        }
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{text})$"))
            .map_err(|e| format!("the pattern {text:?} is no regular expression: {e}"))?;
        Ok(Self::Regex(text.to_owned(), Box::new(regex)))
    }

    /// # Errors
    /// When it would take too long to tell.
    fn matches(&self, module: &str) -> Result<bool, String> {
        match self {
            Self::Plain(pattern) => {
                let module: Vec<char> = module.chars().collect();
                let Some(rest) = module.len().checked_sub(pattern.len()) else {
                    return Ok(false);
                };
                let ends = module[rest..]
                    .iter()
                    .zip(pattern)
                    .all(|(c, p)| *p == '.' || p == c);
                Ok(ends && (rest == 0 || module[rest - 1] == '.'))
            }
            Self::Regex(text, regex) => regex.is_match(module).map_err(|e| {
                format!("the pattern {text:?} cannot be matched with `{module}`: {e}")
            }),
        }
    }
}

/// Which of a module's tensors a key names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Down,
    Up,
    Alpha,
}

/// The endings of keys, and which dialect writes them.
const ENDINGS: [(&str, Role, Dialect); 15] = [
    (".lora_A.weight", Role::Down, Dialect::Diffusers),
    (".lora_B.weight", Role::Up, Dialect::Diffusers),
    (".lora_A.default.weight", Role::Down, Dialect::Peft),
    (".lora_B.default.weight", Role::Up, Dialect::Peft),
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
    (".lora.down.weight", Role::Down, Dialect::Diffusers),
    (".lora.up.weight", Role::Up, Dialect::Diffusers),
    ("_lora.down.weight", Role::Down, Dialect::Processors),
    ("_lora.up.weight", Role::Up, Dialect::Processors),
    (".lora_down.weight", Role::Down, Dialect::Kohya),
    (".lora_up.weight", Role::Up, Dialect::Kohya),
    (".lora.alpha", Role::Alpha, Dialect::Diffusers),
    ("_lora.alpha", Role::Alpha, Dialect::Processors),
    (".alpha", Role::Alpha, Dialect::Kohya),
];

/// Parts of keys that other kinds of adapter have, and what these are called.
const OTHERS: [(&str, &str); 9] = [
    (".hada_w1", "LoHa"),
    (".lokr_w", "LoKr"),
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".lora_mid.", "a Tucker decomposition (LoCon with lora_mid)"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".on_input", "IA3"),
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

fn bad(file: &Path, message: impl Into<String>) -> Error {
    Error::Weights {
        file: file.to_owned(),
        message: message.into(),
    }
}

impl Lora {
    /// The file of a LoRA that may be named by its folder.
    #[must_use]
    pub fn find(path: &Path, files: &dyn Files) -> PathBuf {
        file_in(path, &FILES, files)
    }

    /// Reads what a LoRA file has factors for.
    ///
    /// # Errors
    /// When it is none, is damaged, or is an adapter of another kind.
    pub fn read(file: &Path, files: &dyn Files) -> Result<Self> {
        let table = Table::read(file, files)?;
        let keys = table.tensors.keys();
        let of_family = FAMILIES.iter().find_map(|(part, family)| {
            let mut keys = keys.clone();
            keys.find(|key| key.contains(part)).map(|key| (key, family))
        });
        if let Some((key, family)) = of_family {
            return Err(bad(
                file,
                format!(
                    "is an adapter for {family} (`{key}`), which is not built here; expected a LoRA for Stable Diffusion 1, 2 or XL"
                ),
            ));
        }
        for key in keys.clone() {
            let differences = [".diff", ".diff_b"].iter().any(|end| key.ends_with(end));
            let other = OTHERS.iter().find(|(part, _)| key.contains(part));
            let other = other.map(|(_, kind)| *kind);
            if let Some(kind) = other.or(differences.then_some("full differences of weights")) {
                return Err(bad(
                    file,
                    format!("is {kind} (`{key}`), which is not built here; expected a LoRA"),
                ));
            }
        }
        let mut dialect = None;
        let mut strays = Vec::new();
        let mut modules: BTreeMap<String, [Option<Stored>; 3]> = BTreeMap::new();
        for (key, stored) in &table.tensors {
            let found = ENDINGS
                .iter()
                .find_map(|(end, role, by)| Some((key.strip_suffix(end)?, *role, *by)));
            let Some((module, role, by)) = found else {
                strays.push(key.clone());
                continue;
            };
            if role != Role::Alpha && dialect.is_none() {
                dialect = Some(if module.starts_with("base_model.model.") {
                    Dialect::Peft
                } else {
                    by
                });
            }
            modules.entry(module.to_owned()).or_default()[role as usize] = Some(stored.clone());
        }
        // alpha may lie beside `down` under a name of its own.
        let alphas: Vec<(String, Stored)> = modules
            .iter()
            .filter_map(|(name, parts)| match parts {
                [None, None, Some(alpha)] => Some((name.clone(), alpha.clone())),
                _ => None,
            })
            .collect();
        for (name, alpha) in alphas {
            modules.remove(&name);
            let whose = format!("{name}.lora_linear_layer");
            if let Some(parts) = modules.get_mut(&whose) {
                parts[Role::Alpha as usize] = Some(alpha);
            }
        }
        let Some(dialect) = dialect.filter(|_| !modules.is_empty()) else {
            let names: Vec<String> = table.tensors.keys().cloned().collect();
            // A file of one or two small matrices could be many things; by a token's name or the web UI's keys it is one.
            let inversion = textual_inversion::tokens(file, &table).filter(|_| names.len() <= 8);
            if let Some((_, tokens)) = inversion {
                let tokens: Vec<String> = tokens.into_iter().map(|token| token.token).collect();
                return Err(bad(
                    file,
                    format!(
                        "is not a LoRA but, it seems, an embedding of textual inversion ({}): apply it with `apply_textual_inversion`",
                        some_of(&tokens)
                    ),
                ));
            }
            return Err(bad(
                file,
                format!(
                    "is not a LoRA: it has no pairs of tensors such as `lora_down` and `lora_up`, but {}",
                    some_of(&names)
                ),
            ));
        };
        let configs = configs(file, &table, files)?;
        let modules = modules
            .into_iter()
            .map(|(module, [down, up, alpha])| {
                let (Some(down), Some(up)) = (down, up) else {
                    return Err(bad(
                        file,
                        format!("has only one of the two factors of `{module}`: it is damaged"),
                    ));
                };
                let rank = down.shape.first().copied().unwrap_or(0);
                if rank == 0 || up.shape.get(1) != Some(&rank) {
                    return Err(bad(
                        file,
                        format!(
                            "has factors of {:?} and {:?} for `{module}`: their ranks differ",
                            down.shape, up.shape
                        ),
                    ));
                }
                let config = configs
                    .iter()
                    .find(|(prefix, _)| module.starts_with(prefix.as_str()))
                    .map(|(prefix, config)| (config, &module[prefix.len()..]));
                let alpha = match &alpha {
                    Some(alpha) => Some(scalar(alpha, file, files)?),
                    None => match config {
                        Some((config, name)) => config
                            .alpha(name)
                            .map_err(|e| bad(file, format!("{CONFIG}: {e}")))?,
                        None => None,
                    },
                };
                let divisor = match config {
                    Some((config, _)) if config.use_rslora => (rank as f64).sqrt(),
                    _ => rank as f64,
                };
                Ok((
                    module,
                    Factors {
                        down,
                        up,
                        scale: alpha.map_or(1.0, |alpha| alpha / divisor),
                    },
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            file: file.to_owned(),
            dialect,
            modules,
            strays,
        })
    }

    /// The smallest and the largest rank.
    #[must_use]
    pub fn ranks(&self) -> Option<(usize, usize)> {
        let ranks = self
            .modules
            .values()
            .filter_map(|factors| factors.down.shape.first().copied());
        Some((ranks.clone().min()?, ranks.max()?))
    }

    /// The width of the texts that the cross-attention of its model takes, as far as it tells.
    #[must_use]
    pub fn text_width(&self) -> Option<usize> {
        let of_key = |name: &str| name.contains("attn2") && name.contains("to_k");
        let (_, factors) = self.modules.iter().find(|(name, _)| of_key(name))?;
        factors.down.shape.get(1).copied()
    }

    /// Finds its layers in a model.
    ///
    /// # Errors
    /// When the model has none of them, or layers of another shape: it was made for another family.
    pub fn fit(&self, networks: &Networks<'_>) -> Result<Fitted> {
        let width = networks.config.context_width();
        let other = self.text_width().filter(|&own| own != width).map(|own| {
            format!(
                "it was trained on a model that takes {}, this one takes {}",
                in_words(own),
                in_words(width)
            )
        });
        let names = Names::of(networks);
        let mut fitted = Fitted {
            texts: vec![BTreeMap::new(); networks.texts.len()],
            unmatched: self.strays.clone(),
            ..Fitted::default()
        };
        for (module, factors) in &self.modules {
            let Some((network, layer)) = names.find(module) else {
                fitted.unmatched.push(module.clone());
                continue;
            };
            let (shapes, slot) = match network {
                Network::Unet => (&networks.unet, &mut fitted.unet),
                Network::Text(index) => (&networks.texts[index], &mut fitted.texts[index]),
            };
            let weight = &shapes[&format!("{layer}.weight")];
            if !fits(factors, weight) {
                let why = other
                    .as_ref()
                    .map_or_else(String::new, |other| format!("; {other}"));
                return Err(bad(
                    &self.file,
                    format!(
                        "does not fit the model: `{module}` has factors of {:?} and {:?}, the layer's weight is {weight:?}{why}",
                        factors.down.shape, factors.up.shape
                    ),
                ));
            }
            if slot.insert(layer, factors.clone()).is_some() {
                return Err(bad(
                    &self.file,
                    format!("has factors for the layer of `{module}` twice"),
                ));
            }
        }
        if fitted.matched() == 0 {
            let why = other.unwrap_or_else(|| "it was made for a model of another family".into());
            return Err(bad(
                &self.file,
                format!(
                    "none of its {} layers is in the model ({}): {why}",
                    self.modules.len(),
                    some_of(&fitted.unmatched)
                ),
            ));
        }
        Ok(fitted)
    }
}

/// PEFT's configurations, each with the prefix of the modules that it is for.
fn configs(file: &Path, table: &Table, files: &dyn Files) -> Result<Vec<(String, PeftAlphas)>> {
    let mut found = Vec::new();
    let config = |value: serde_json::Value, whose: &str| -> Result<PeftAlphas> {
        let config: PeftConfig = serde_json::from_value(value)
            .map_err(|e| bad(file, format!("{whose} is not PEFT's configuration: {e}")))?;
        if config.use_dora {
            return Err(bad(
                file,
                format!("{whose} says that it is DoRA, which is not built here; expected a LoRA"),
            ));
        }
        PeftAlphas::new(config).map_err(|e| bad(file, format!("{whose}: {e}")))
    };
    if let Some(text) = table.metadata.get(METADATA) {
        let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|e| bad(file, format!("its metadata `{METADATA}` is not JSON: {e}")))?;
        // One flat table, each key with its network before it.
        for prefix in ["unet.", "text_encoder.", "text_encoder_2."] {
            let own: serde_json::Map<String, serde_json::Value> = all
                .iter()
                .filter_map(|(key, value)| {
                    Some((key.strip_prefix(prefix)?.to_owned(), value.clone()))
                })
                .collect();
            if !own.is_empty() {
                found.push((prefix.to_owned(), config(own.into(), METADATA)?));
            }
        }
    }
    let beside = file.with_file_name(CONFIG);
    if files.is_file(&beside) {
        let value =
            serde_json::from_str(&read_text(files, &beside)?).map_err(|e| Error::Config {
                file: beside.clone(),
                message: format!("is not JSON: {e}"),
            })?;
        found.push(("base_model.model.".into(), config(value, CONFIG)?));
    }
    Ok(found)
}

/// Whether factors make a weight of this shape; a linear layer may be stored as a 1x1 convolution.
fn fits(factors: &Factors, weight: &[usize]) -> bool {
    let sides = |stored: &Stored| -> Vec<usize> {
        let mut shape = stored.shape.clone();
        if weight.len() == 2 && shape.len() == 4 && shape.ends_with(&[1, 1]) {
            shape.truncate(2);
        }
        shape
    };
    let (down, up) = (sides(&factors.down), sides(&factors.up));
    down.len() == weight.len()
        && up.len() == weight.len()
        && down[1..] == weight[1..]
        && up[..2] == [weight[0], down[0]]
        && up[2..].iter().all(|&side| side == 1)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Unet,
    Text(usize),
}

/// The layers of a model by the names that the dialects have for them.
struct Names<'a> {
    networks: &'a Networks<'a>,
    kohya: HashMap<String, (Network, String)>,
}

impl<'a> Names<'a> {
    fn of(networks: &'a Networks<'a>) -> Self {
        let mut kohya = HashMap::new();
        let flat = |name: &str| name.replace('.', "_");
        let layers = |shapes: &'a super::Shapes| {
            shapes
                .keys()
                .filter_map(|name| name.strip_suffix(".weight"))
        };
        for layer in layers(&networks.unet) {
            let own = (Network::Unet, layer.to_owned());
            if let Some(numbered) = ldm::unet(layer, networks.config) {
                kohya.insert(format!("lora_unet_{}", flat(&numbered)), own.clone());
            }
            kohya.insert(format!("lora_unet_{}", flat(layer)), own);
        }
        for (index, shapes) in networks.texts.iter().enumerate() {
            let prefixes: &[&str] = match index {
                0 => &["lora_te", "lora_te1"],
                _ => &["lora_te2"],
            };
            for layer in layers(shapes) {
                for prefix in prefixes {
                    let name = format!("{prefix}_text_model_{}", flat(layer));
                    kohya.insert(name, (Network::Text(index), layer.to_owned()));
                }
            }
        }
        Self { networks, kohya }
    }

    /// The layer that a module of a file is for.
    fn find(&self, module: &str) -> Option<(Network, String)> {
        if let Some(found) = self.kohya.get(module) {
            return Some(found.clone());
        }
        let name = module.strip_prefix("base_model.model.").unwrap_or(module);
        let (network, name) = if let Some(name) = name.strip_prefix("unet.") {
            (Network::Unet, name)
        } else if let Some(name) = name.strip_prefix("text_encoder_2.") {
            (Network::Text(1), name)
        } else if let Some(name) = name.strip_prefix("text_encoder.") {
            (Network::Text(0), name)
        } else if name.starts_with("text_model.") {
            (Network::Text(0), name)
        } else {
            (Network::Unet, name)
        };
        let shapes = match network {
            Network::Unet => &self.networks.unet,
            Network::Text(index) => self.networks.texts.get(index)?,
        };
        // Attention processors name the projection after themselves: `attn1.processor.to_out` is `attn1.to_out.0`.
        let plain = bare(name).replace(".processor", "");
        let candidates = [
            plain.clone(),
            format!("{plain}.0"),
            plain.replace(".to_out", ".out_proj"),
            plain
                .replace(".to_q", ".q_proj")
                .replace(".to_k", ".k_proj")
                .replace(".to_v", ".v_proj"),
        ];
        let layer = candidates
            .into_iter()
            .find(|layer| shapes.contains_key(&format!("{layer}.weight")))?;
        Some((network, layer))
    }
}

/// The factors of a network as what is added to its layers, by a weight.
#[must_use]
pub fn low_rank(factors: &BTreeMap<String, Factors>, weight: f64) -> BTreeMap<String, LowRank> {
    factors
        .iter()
        .map(|(layer, factors)| {
            let added = LowRank {
                down: factors.down.clone(),
                up: factors.up.clone(),
                scale: factors.scale * weight,
            };
            (layer.clone(), added)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_pefts_get_pattern_key() {
        // Each row was run through peft.utils.other.get_pattern_key.
        let module = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q";
        for (pattern, due) in [
            ("to_q", true),
            ("attn1.to_q", true),
            ("attn1_to_q", false),
            ("o_q", false),
            ("attn1.to", false),
            ("1.to_q", false),
            ("attn2.to_q", false),
            (r"down_blocks\.\d+\..*attn1\.to_q", true),
            (r"^down_blocks\..*\.to_q", true),
            (r"up_blocks|to_q", true),
            (r"(?!up_blocks).*to_[qk]", true),
            (r"to_(k|v)", false),
            (module, true),
            (
                "a.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
                false,
            ),
            ("blocks.0.attn1.to_q", false),
            // A dot stands for any character.
            ("transformer.blocks.0.attn1.to.q", true),
        ] {
            let matches = Pattern::new(pattern).unwrap().matches(module).unwrap();
            assert_eq!(matches, due, "{pattern}");
        }
        assert!(Pattern::new("to_(q").is_err());
    }

    #[test]
    fn the_first_pattern_in_the_order_of_the_file_counts() {
        let of = |text: &str| PeftAlphas::new(serde_json::from_str(text).unwrap()).unwrap();
        let alphas = of(r#"{"lora_alpha": 8, "alpha_pattern": {"to_q": 32, "attn1.to_q": 1}}"#);
        assert_eq!(alphas.alpha("up.attn1.to_q").unwrap(), Some(32.0));
        assert_eq!(alphas.alpha("up.attn1.to_k").unwrap(), Some(8.0));
        let alphas = of(r#"{"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 1, "to_q": 32}}"#);
        assert_eq!(alphas.alpha("up.attn1.to_q").unwrap(), Some(1.0));
        assert_eq!(alphas.alpha("up.attn2.to_q").unwrap(), Some(32.0));
    }
}
