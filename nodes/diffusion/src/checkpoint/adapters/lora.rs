//! Changes of layers: LoRA (Hu et al. 2021) and its relatives, in the key dialects that are in use ([`super::dialect`]).
//!
//! | kind | tensors of a module | the weight W' |
//! | --- | --- | --- |
//! | LoRA, LoCon | `lora_down`, `lora_up` (`lora_A`, `lora_B`) | `W + alpha / R up down` |
//! | LoRA with a Tucker core | and `lora_mid` | `W + alpha / R sum_ij up[., i] mid[i, j, ..] down[j, .]` |
//! | LoHa | `hada_w1_a`, `_b`, `hada_w2_a`, `_b`, `hada_t1`, `_t2` | `W + alpha / R (w1_a w1_b) * (w2_a w2_b)` |
//! | LoKr | `lokr_w1`, `lokr_w2`, or `_a`, `_b` of each, `lokr_t2` | `W + alpha / R kron(w1, w2)`; two whole matrices: without `alpha / R` |
//! | full difference | `diff`, `diff_b`; of norms `w_norm`, `b_norm` | `W + diff` |
//! | DoRA | of any of these, and `dora_scale` (`lora_magnitude_vector`) | `m V / norm(V)`, V being the weight above |
//!
//! A weight of 0.8 of the op is `W + 0.8 (W' - W)`. alpha is a tensor of the file (kohya, LyCORIS), an entry of its
//! metadata or of `adapter_config.json` (PEFT; its `alpha_pattern` are regular expressions, of which the first that matches
//! counts), and R, the rank, where it is not given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use indexmap::IndexMap;
use retouch_graph::Files;
use serde::Deserialize;

use super::dialect::{self, Keys, Names, Network, Part, Role};
use super::textual_inversion::{self, LearnedToken};
use super::{Networks, file_in, scalar, some_of};
use crate::checkpoint::family::in_words;
use crate::checkpoint::layout::read_text;
use crate::checkpoint::weights::{Delta, Edit, Factor, Magnitude, Stored, Table};
use crate::{Error, Result};

pub use super::dialect::Dialect;

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

/// What one tensor of a model is changed by.
#[derive(Clone, Debug)]
pub struct Change {
    /// The difference.
    pub delta: Delta,
    /// What it is multiplied with: alpha / R, or 1.
    pub scale: f64,
    /// Learned norms, of DoRA.
    pub magnitude: Option<Magnitude>,
}

impl Change {
    fn plain(delta: Delta, scale: f64) -> Self {
        Self {
            delta,
            scale,
            magnitude: None,
        }
    }

    /// What it is called.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (&self.delta, &self.magnitude) {
            (Delta::LowRank { .. }, Some(_)) => "DoRA",
            (Delta::LowRank { mid: Some(_), .. }, None) => "LoRA with a Tucker core",
            (Delta::LowRank { .. }, None) => "LoRA",
            (Delta::Hadamard { .. }, None) => "LoHa",
            (Delta::Hadamard { .. }, Some(_)) => "LoHa with magnitudes (DoHa)",
            (Delta::Kronecker { .. }, None) => "LoKr",
            (Delta::Kronecker { .. }, Some(_)) => "LoKr with magnitudes (DoKr)",
            (Delta::Full(_), _) => "full difference",
        }
    }

    /// The tensors that it is stored in.
    #[must_use]
    pub fn tensors(&self) -> Vec<&Stored> {
        let magnitude = self.magnitude.as_ref().map(Magnitude::tensor);
        self.delta.tensors().into_iter().chain(magnitude).collect()
    }

    fn fits(&self, shape: &[usize]) -> bool {
        let magnitude = self.magnitude.as_ref();
        self.delta.fits(shape) && magnitude.is_none_or(|magnitude| magnitude.fits(shape))
    }
}

/// What a module of a file changes: the weight of its layer, the bias, or both.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// Of the layer's weight.
    pub weight: Option<Change>,
    /// Of its bias.
    pub bias: Option<Change>,
}

impl Module {
    fn changes(&self) -> impl Iterator<Item = (&'static str, &Change)> + Clone {
        let weight = self.weight.iter().map(|change| ("weight", change));
        weight.chain(self.bias.iter().map(|change| ("bias", change)))
    }
}

/// A file of changes of layers.
#[derive(Clone, Debug)]
pub struct Lora {
    /// The file.
    pub file: PathBuf,
    /// How its keys are written.
    pub dialect: Dialect,
    /// What it changes, by the name that the file has for the layer.
    pub modules: BTreeMap<String, Module>,
    /// Keys that belong to no change.
    pub strays: Vec<String>,
    /// The tokens whose embeddings are in the file: `apply_textual_inversion` adds them.
    pub tokens: Vec<LearnedToken>,
}

/// A LoRA whose layers were found in a model.
#[derive(Clone, Debug, Default)]
pub struct Fitted {
    /// Changes of tensors of the U-Net, by name.
    pub unet: BTreeMap<String, Change>,
    /// Changes of tensors of each text encoder.
    pub texts: Vec<BTreeMap<String, Change>>,
    /// Names in the file that the model has no layer for.
    pub unmatched: Vec<String>,
}

/// The number of layers whose tensors these are.
fn layers(changes: &BTreeMap<String, Change>) -> usize {
    let mut layers: Vec<&str> = changes
        .keys()
        .filter_map(|name| Some(name.rsplit_once('.')?.0))
        .collect();
    layers.dedup();
    layers.len()
}

impl Fitted {
    /// Layers of the U-Net that are changed, and of each text encoder.
    #[must_use]
    pub fn layers(&self) -> (usize, Vec<usize>) {
        (layers(&self.unet), self.texts.iter().map(layers).collect())
    }

    /// Layers that the model has.
    #[must_use]
    pub fn matched(&self) -> usize {
        let (unet, texts) = self.layers();
        unet + texts.iter().sum::<usize>()
    }

    /// All changes.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.texts
            .iter()
            .chain([&self.unet])
            .flat_map(BTreeMap::values)
    }

    /// One line for people: what was found where.
    #[must_use]
    pub fn summary(&self) -> String {
        let (unet, texts) = self.layers();
        let texts: usize = texts.iter().sum();
        format!(
            "{} layers matched ({unet} of the U-Net, {texts} of text encoders), {} unmatched",
            unet + texts,
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
    /// What LoHa and LoKr call it.
    #[serde(default)]
    alpha: Option<f64>,
    #[serde(default)]
    r: Option<f64>,
    #[serde(default)]
    rank_pattern: IndexMap<String, f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
}

/// PEFT's configuration with its patterns ready to match. A rank is that of the factors where there are any.
#[derive(Debug)]
struct PeftConfiguration {
    alpha: Option<f64>,
    alphas: Vec<(Pattern, f64)>,
    rank: Option<f64>,
    ranks: Vec<(Pattern, f64)>,
    use_rslora: bool,
    use_dora: bool,
}

impl PeftConfiguration {
    /// # Errors
    /// What is wrong with a pattern.
    fn new(config: PeftConfig) -> Result<Self, String> {
        let patterns = |patterns: IndexMap<String, f64>| -> Result<Vec<_>, String> {
            let regexes = patterns.keys().filter(|text| !Pattern::is_plain(text));
            if regexes.clone().count() > MOST_REGEXES {
                return Err(format!(
                    "it has more than {MOST_REGEXES} patterns that are not plain names"
                ));
            }
            if regexes.clone().any(|text| text.len() > LONGEST_REGEX) {
                return Err(format!("a pattern has more than {LONGEST_REGEX} bytes"));
            }
            let patterns = patterns.into_iter();
            patterns
                .map(|(pattern, number)| Ok((Pattern::new(&pattern)?, number)))
                .collect()
        };
        Ok(Self {
            alpha: config.lora_alpha.or(config.alpha),
            alphas: patterns(config.alpha_pattern)?,
            rank: config.r,
            ranks: patterns(config.rank_pattern)?,
            use_rslora: config.use_rslora,
            use_dora: config.use_dora,
        })
    }

    /// alpha of a module: that of the first pattern that matches its name, else the one for all.
    fn alpha(&self, module: &str) -> Result<Option<f64>, String> {
        of_module(&self.alphas, self.alpha, module)
    }

    /// The same of ranks.
    fn rank(&self, module: &str) -> Result<Option<f64>, String> {
        of_module(&self.ranks, self.rank, module)
    }
}

fn of_module(
    own: &[(Pattern, f64)],
    all: Option<f64>,
    module: &str,
) -> Result<Option<f64>, String> {
    for (pattern, number) in own {
        if pattern.matches(module)? {
            return Ok(Some(*number));
        }
    }
    Ok(all)
}

/// The most patterns of a file that are no plain names; each of them is tried on every module.
const MOST_REGEXES: usize = 64;
/// The longest of them, in bytes.
const LONGEST_REGEX: usize = 512;

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
    /// Whether it is only letters, digits, `_` and dots.
    fn is_plain(text: &str) -> bool {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    }

    /// # Errors
    /// Why it is not a regular expression.
    fn new(text: &str) -> Result<Self, String> {
        if Self::is_plain(text) {
            return Ok(Self::Plain(text.chars().collect()));
        }
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{text})$"))
            .map_err(|e| format!("the pattern {text:?} is not a regular expression: {e}"))?;
        Ok(Self::Regex(text.to_owned(), Box::new(regex)))
    }

    /// # Errors
    /// When it would take too long to find out.
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

    /// Reads what a file changes.
    ///
    /// # Errors
    /// When it changes no layers, is damaged, or is an adapter of a kind or for a family that is not built.
    pub fn read(file: &Path, files: &dyn Files) -> Result<Self> {
        Self::of(file, &Table::read(file, files)?, files)
    }

    /// What the tensors of a file change.
    ///
    /// # Errors
    /// As [`Lora::read`].
    pub fn of(file: &Path, table: &Table, files: &dyn Files) -> Result<Self> {
        match dialect::keys(table) {
            Keys::Layers => {}
            Keys::Family(family, key) => {
                return Err(bad(
                    file,
                    format!(
                        "is an adapter for {family} (`{key}`), which is not supported; expected a LoRA for Stable Diffusion 1, 2 or XL"
                    ),
                ));
            }
            Keys::Other(kind, key) => {
                return Err(bad(
                    file,
                    format!("is {kind} (`{key}`), which is not supported; expected a LoRA"),
                ));
            }
            Keys::CustomDiffusion => {
                return Err(bad(
                    file,
                    "is not a LoRA but Custom Diffusion weights: apply them with `apply_custom_diffusion`",
                ));
            }
            Keys::Unknown => return Err(not_layers(file, table)),
        }
        // What is wrong with an embedding inside is for `apply_textual_inversion` to say; here its keys are strays.
        let tokens = textual_inversion::bundled(table).and_then(Result::ok);
        let tokens = tokens.unwrap_or_default();
        let mut dialects: BTreeMap<Dialect, usize> = BTreeMap::new();
        let mut strays = Vec::new();
        let mut modules: BTreeMap<String, BTreeMap<Role, Stored>> = BTreeMap::new();
        for (key, stored) in &table.tensors {
            let Some((module, role, by)) = dialect::role(key) else {
                if !textual_inversion::is_bundled(key, &tokens) {
                    strays.push(key.clone());
                }
                continue;
            };
            if role != Role::Alpha {
                *dialects.entry(by).or_default() += 1;
            }
            let module = module.strip_suffix(".lora_linear_layer").unwrap_or(module);
            let roles = modules.entry(module.to_owned()).or_default();
            if roles.insert(role, stored.clone()).is_some() {
                return Err(bad(
                    file,
                    format!("has two tensors for `{module}` that mean the same, such as `{key}`"),
                ));
            }
        }
        modules.retain(|module, roles| {
            let lone = roles.keys().all(|role| *role == Role::Alpha);
            if lone {
                strays.push(format!("{module}.alpha"));
            }
            !lone
        });
        let configs = configs(file, table, files)?;
        let modules = modules
            .into_iter()
            .map(|(name, roles)| {
                let parts = Parts {
                    file,
                    module: &name,
                    roles,
                    config: configs
                        .iter()
                        .find(|(prefix, _)| name.starts_with(prefix.as_str()))
                        .map(|(prefix, config)| (config, &name[prefix.len()..])),
                };
                let module = parts.module(files)?;
                Ok((name.clone(), module))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        let most = dialects.iter().max_by_key(|(_, count)| **count);
        Ok(Self {
            file: file.to_owned(),
            dialect: most.map_or(Dialect::Kohya, |(dialect, _)| *dialect),
            modules,
            strays,
            tokens,
        })
    }

    /// All changes.
    pub fn changes(&self) -> impl Iterator<Item = &Change> + Clone {
        let modules = self.modules.values();
        modules.flat_map(|module| module.changes().map(|(_, change)| change))
    }

    /// The smallest and the largest rank.
    #[must_use]
    pub fn ranks(&self) -> Option<(usize, usize)> {
        let ranks = self.changes().filter_map(|change| change.delta.rank());
        Some((ranks.clone().min()?, ranks.max()?))
    }

    /// The smallest and the largest alpha, as far as ranks are known.
    #[must_use]
    pub fn alphas(&self) -> Option<(f64, f64)> {
        let alphas = self
            .changes()
            .filter_map(|change| Some(change.scale * change.delta.rank()? as f64));
        Some((alphas.clone().reduce(f64::min)?, alphas.reduce(f64::max)?))
    }

    /// How many tensors it changes in which way.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for change in self.changes() {
            *kinds.entry(change.kind().to_owned()).or_default() += 1;
        }
        kinds
    }

    /// The width of the texts that the cross-attention of its model takes, as far as it is known.
    #[must_use]
    pub fn text_width(&self) -> Option<usize> {
        let of_key = |name: &str| name.contains("attn2") && name.contains("to_k");
        self.modules.iter().find_map(|(name, module)| {
            let change = module.weight.as_ref().filter(|_| of_key(name))?;
            Some(change.delta.inputs())
        })
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
        for (module, changed) in &self.modules {
            let Some((network, layer)) = names.find(module) else {
                fitted.unmatched.push(module.clone());
                continue;
            };
            let (shapes, slot) = match network {
                Network::Unet => (&networks.unet, &mut fitted.unet),
                Network::Text(index) => (&networks.texts[index], &mut fitted.texts[index]),
            };
            for (part, change) in changed.changes() {
                let name = format!("{layer}.{part}");
                let Some(shape) = shapes.get(&name) else {
                    fitted.unmatched.push(format!("{module} ({part})"));
                    continue;
                };
                if !change.fits(shape) {
                    let why = other
                        .as_ref()
                        .map_or_else(String::new, |other| format!("; {other}"));
                    return Err(bad(
                        &self.file,
                        format!(
                            "does not fit the model: `{module}` has {} ({}), the layer's {part} is {shape:?}{why}",
                            shapes_of(change),
                            change.kind()
                        ),
                    ));
                }
                if slot.insert(name, change.clone()).is_some() {
                    return Err(bad(
                        &self.file,
                        format!("has factors for the layer of `{module}` twice"),
                    ));
                }
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

/// The shapes of a change's tensors, for people.
fn shapes_of(change: &Change) -> String {
    let shapes: Vec<String> = change
        .tensors()
        .iter()
        .map(|stored| format!("{:?}", stored.shape))
        .collect();
    match shapes.as_slice() {
        [one] => format!("a difference of {one}"),
        [rest @ .., last] => format!("factors of {} and {last}", rest.join(", ")),
        [] => "nothing".to_owned(),
    }
}

/// Why a file changes no layers.
fn not_layers(file: &Path, table: &Table) -> Error {
    let names: Vec<String> = table.tensors.keys().cloned().collect();
    // A file of one or two small matrices could be many things; by a token's name or the web UI's keys it is one.
    let inversion = textual_inversion::tokens(file, table).filter(|_| names.len() <= 8);
    if let Some((_, tokens)) = inversion {
        let tokens: Vec<String> = tokens.into_iter().map(|token| token.token).collect();
        return bad(
            file,
            format!(
                "is not a LoRA but, it seems, an embedding of textual inversion ({}): apply it with `apply_textual_inversion`",
                some_of(&tokens)
            ),
        );
    }
    bad(
        file,
        format!(
            "is not a LoRA: it has no pairs of tensors such as `lora_down` and `lora_up`, but {}",
            some_of(&names)
        ),
    )
}

/// The tensors of a module, and what PEFT's configuration says of it.
struct Parts<'a> {
    file: &'a Path,
    module: &'a str,
    roles: BTreeMap<Role, Stored>,
    config: Option<(&'a PeftConfiguration, &'a str)>,
}

impl Parts<'_> {
    fn get(&self, role: Role) -> Option<Stored> {
        self.roles.get(&role).cloned()
    }

    fn both(&self, a: Role, b: Role) -> Result<Option<(Stored, Stored)>> {
        match (self.get(a), self.get(b)) {
            (Some(a), Some(b)) => Ok(Some((a, b))),
            (None, None) => Ok(None),
            _ => Err(bad(
                self.file,
                format!(
                    "has only one of the two factors of `{}`: it is damaged",
                    self.module
                ),
            )),
        }
    }

    /// How the weight is changed.
    fn delta(&self) -> Result<Option<Delta>> {
        let low_rank = self.both(Role::Down, Role::Up)?;
        let hada = |part| Role::Hada(part);
        let first = self.both(hada(Part::W1A), hada(Part::W1B))?;
        let second = self.both(hada(Part::W2A), hada(Part::W2B))?;
        let hadamard = match (first, second) {
            (Some(first), Some(second)) => Some(Delta::Hadamard {
                first,
                second,
                cores: self.both(hada(Part::T1), hada(Part::T2))?,
            }),
            (None, None) => None,
            _ => return Err(self.damaged()),
        };
        let lokr = |part| Role::Lokr(part);
        let factor = |whole, a, b| -> Result<Option<Factor>> {
            match (self.get(lokr(whole)), self.both(lokr(a), lokr(b))?) {
                (Some(whole), None) => Ok(Some(Factor::Whole(whole))),
                (None, Some((a, b))) => Ok(Some(Factor::Product(a, b))),
                (None, None) => Ok(None),
                (Some(_), Some(_)) => Err(self.damaged()),
            }
        };
        let kronecker = match (
            factor(Part::W1, Part::W1A, Part::W1B)?,
            factor(Part::W2, Part::W2A, Part::W2B)?,
        ) {
            (Some(first), Some(second)) => Some(Delta::Kronecker {
                first,
                second,
                core: self.get(lokr(Part::T2)),
            }),
            (None, None) => None,
            _ => return Err(self.damaged()),
        };
        let low_rank = low_rank.map(|(down, up)| Delta::LowRank {
            down,
            up,
            mid: self.get(Role::Mid),
        });
        let found: Vec<Delta> = [
            low_rank,
            hadamard,
            kronecker,
            self.get(Role::Diff).map(Delta::Full),
        ]
        .into_iter()
        .flatten()
        .collect();
        if found.len() > 1 {
            return Err(bad(
                self.file,
                format!("changes `{}` in two ways at once", self.module),
            ));
        }
        Ok(found.into_iter().next())
    }

    fn damaged(&self) -> Error {
        bad(
            self.file,
            format!(
                "has only a part of the tensors for `{}`: it is damaged",
                self.module
            ),
        )
    }

    /// alpha / R, or 1 where there is no alpha.
    fn scale(&self, delta: &Delta, files: &dyn Files) -> Result<f64> {
        let peft = |message: String| bad(self.file, format!("{CONFIG}: {message}"));
        let from_config = match &self.config {
            Some((config, name)) => config.alpha(name).map_err(peft)?,
            None => None,
        };
        let rank = match (delta.rank(), &self.config) {
            (Some(rank), _) => rank as f64,
            (None, Some((config, name))) if matches!(delta, Delta::Kronecker { .. }) => {
                // PEFT divides by its setting, LyCORIS by nothing.
                match config.rank(name).map_err(peft)? {
                    Some(rank) => rank,
                    None => return Ok(1.0),
                }
            }
            _ => return Ok(1.0),
        };
        let alpha = match self.get(Role::Alpha) {
            Some(alpha) => Some(scalar(&alpha, self.file, files)?),
            None => from_config,
        };
        let divisor = match &self.config {
            Some((config, _)) if config.use_rslora => rank.sqrt(),
            _ => rank,
        };
        Ok(alpha.map_or(1.0, |alpha| alpha / divisor))
    }

    fn module(&self, files: &dyn Files) -> Result<Module> {
        let mut module = Module::default();
        if let Some(delta) = self.delta()? {
            if let Delta::LowRank {
                down,
                up,
                mid: None,
            } = &delta
            {
                let rank = down.shape.first().copied().unwrap_or(0);
                if rank == 0 || up.shape.get(1) != Some(&rank) {
                    return Err(bad(
                        self.file,
                        format!(
                            "has factors of {:?} and {:?} for `{}`: their ranks differ",
                            down.shape, up.shape, self.module
                        ),
                    ));
                }
            }
            let scale = self.scale(&delta, files)?;
            module.bias = self
                .get(Role::UpBias)
                .map(|bias| Change::plain(Delta::Full(bias), scale));
            module.weight = Some(Change {
                magnitude: self.magnitude()?,
                ..Change::plain(delta, scale)
            });
        }
        if let Some(bias) = self.get(Role::DiffBias) {
            module.bias = Some(Change::plain(Delta::Full(bias), 1.0));
        }
        if module.weight.is_none() && module.bias.is_none() {
            return Err(self.damaged());
        }
        let promised = self.config.is_some_and(|(config, _)| config.use_dora);
        if promised
            && module
                .weight
                .as_ref()
                .is_some_and(|w| w.magnitude.is_none())
        {
            return Err(bad(
                self.file,
                format!(
                    "says that it is DoRA (`use_dora`), and has no magnitudes for `{}`: it is damaged",
                    self.module
                ),
            ));
        }
        Ok(module)
    }

    /// Norms of rows or of columns. PEFT has rows, `[out]`, in convolutions `[1, out, 1, 1]`; LyCORIS `[out, 1, ..]` or
    /// `[1, in, ..]`.
    fn magnitude(&self) -> Result<Option<Magnitude>> {
        let (stored, peft) = match (self.get(Role::DoraScale), self.get(Role::Magnitude)) {
            (Some(scale), None) => (scale, false),
            (None, Some(magnitude)) => (magnitude, true),
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(self.damaged()),
        };
        let along_columns = stored.shape.len() > 1 && stored.shape[0] == 1 && stored.elements() > 1;
        Ok(Some(
            if along_columns && !(peft && stored.shape.len() > 2) {
                Magnitude::Columns(stored)
            } else {
                Magnitude::Rows(stored)
            },
        ))
    }
}

/// PEFT's configurations, each with the prefix of the modules that it is for.
fn configs(
    file: &Path,
    table: &Table,
    files: &dyn Files,
) -> Result<Vec<(String, PeftConfiguration)>> {
    let mut found = Vec::new();
    let config = |value: serde_json::Value, whose: &str| -> Result<PeftConfiguration> {
        let config: PeftConfig = serde_json::from_value(value)
            .map_err(|e| bad(file, format!("{whose} is not PEFT's configuration: {e}")))?;
        PeftConfiguration::new(config).map_err(|e| bad(file, format!("{whose}: {e}")))
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
        // `save_lora_adapter` of a model has the settings as they are, and no prefix in the keys either.
        if found.is_empty() && !all.is_empty() {
            found.push((String::new(), config(all.into(), METADATA)?));
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

/// Changes as edits of their tensors, by a weight.
#[must_use]
pub fn edits(changes: &BTreeMap<String, Change>, weight: f64) -> BTreeMap<String, Edit> {
    changes
        .iter()
        .map(|(tensor, change)| {
            let edit = Edit {
                delta: change.delta.clone(),
                scale: change.scale,
                magnitude: change.magnitude.clone(),
                strength: weight,
            };
            (tensor.clone(), edit)
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
        let of = |text: &str| PeftConfiguration::new(serde_json::from_str(text).unwrap()).unwrap();
        let alphas = of(r#"{"lora_alpha": 8, "alpha_pattern": {"to_q": 32, "attn1.to_q": 1}}"#);
        assert_eq!(alphas.alpha("up.attn1.to_q").unwrap(), Some(32.0));
        assert_eq!(alphas.alpha("up.attn1.to_k").unwrap(), Some(8.0));
        let alphas = of(r#"{"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 1, "to_q": 32}}"#);
        assert_eq!(alphas.alpha("up.attn1.to_q").unwrap(), Some(1.0));
        assert_eq!(alphas.alpha("up.attn2.to_q").unwrap(), Some(32.0));
    }
}
