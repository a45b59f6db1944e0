//! Weights: checked against what the configuration implies before a byte of data is read, then mapped from their files.

mod block;
mod change;
mod data;
mod foreign;
mod gguf;
mod header;
mod late;
mod table;
mod variables;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::{DType, Device, DeviceLocation, Shape, Tensor};

pub use block::{Block, e4m3, e5m2};
pub use change::{Delta, Edit, Factor, Magnitude};
pub use data::{Maps, is_readable, numbers};
pub use foreign::foreign;
pub use gguf::is_gguf;
pub use header::{Header, NO_SUCH_FILE, TensorInfo};
pub use table::{Stored, Table, dense_strides, is_torch};
pub use variables::{InputMask, TrainedFactors, Variables};

use late::Late;

use crate::checkpoint::memory::Claim;
use crate::{Error, Result, goes_on};
use retouch_kernels::{Kernel, Weight};

/// What adapters change in one network; the base's tensors stay what and where they are.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Edits by the name of their tensor (`mid_block.attentions.0.proj_in.weight`), in the order in which they were applied.
    pub edits: BTreeMap<String, Vec<Edit>>,
    /// Tensors in place of the network's own, by name (`mid_block.attentions.0.proj_in.weight`), before all edits.
    pub replaced: BTreeMap<String, Stored>,
}

impl Changes {
    /// Bytes of all of it, with elements of `size` bytes: factors that stay beside their tensor, and whole tensors where
    /// others are merged into it.
    #[must_use]
    pub fn bytes(&self, size: usize) -> usize {
        let edited = self.edits.values().map(|edits| {
            let (beside, merged) = change::split(edits);
            let factors = beside.iter().flat_map(|edit| edit.delta.tensors());
            factors.map(Stored::elements).sum::<usize>()
                + merged.first().map_or(0, |edit| edit.elements())
        });
        let replaced = self.replaced.values().map(Stored::elements);
        edited.chain(replaced).sum::<usize>().saturating_mul(size)
    }

    /// The bytes of tensors that are held beside the base's own, with elements of `size` bytes: those that edits are merged
    /// into.
    #[must_use]
    pub fn merged_bytes(&self, size: usize) -> usize {
        let merged = self.edits.values().map(|edits| {
            let (_, merged) = change::split(edits);
            merged.first().map_or(0, |edit| edit.elements())
        });
        merged.sum::<usize>().saturating_mul(size)
    }

    /// The edits that are merged into a tensor: of a weight of a product those that cannot be applied beside it, of what is
    /// looked up or multiplied element by element (embeddings, norms, biases) all.
    fn merged(&self, name: &str, product: bool) -> Vec<&Edit> {
        match self.edits.get(bare(name)) {
            Some(edits) if product => change::split(edits).1,
            Some(edits) => edits.iter().collect(),
            None => Vec::new(),
        }
    }
}

/// The name of a layer without the prefix that text encoders have in some files and not in others.
#[must_use]
pub fn bare(name: &str) -> &str {
    name.strip_prefix("text_model.").unwrap_or(name)
}

/// The loaded tensors of one network, by name: what the networks of one base have in common is held once.
#[derive(Debug)]
pub struct Tensors {
    by_name: Mutex<HashMap<String, Tensor>>,
    /// The bytes of those that stay quantised.
    quantised: Mutex<HashMap<String, Arc<[u8]>>>,
    /// The room that they take.
    _claim: Option<Claim>,
}

impl Tensors {
    /// Nothing so far, in room that was taken for it.
    #[must_use]
    pub fn new(claim: Option<Claim>) -> Self {
        Self {
            by_name: Mutex::default(),
            quantised: Mutex::default(),
            _claim: claim,
        }
    }
}

/// One thing for each device that it is used on.
#[derive(Debug)]
pub struct OnDevices<T>(Mutex<HashMap<DeviceLocation, Arc<T>>>);

impl<T> Default for OnDevices<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> OnDevices<T> {
    /// That of a device.
    #[must_use]
    pub fn on(&self, device: &Device) -> Arc<T> {
        self.at(device.location())
    }

    fn at(&self, location: DeviceLocation) -> Arc<T> {
        let mut by_device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        by_device.entry(location).or_default().clone()
    }

    /// Those of all devices that it was used on.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T>> {
        let by_device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        by_device.values().cloned().collect()
    }
}

/// The loaded tensors of a network on each device, as long as anybody holds them.
#[derive(Debug, Default)]
pub struct Shared(OnDevices<Mutex<Weak<Tensors>>>);

impl Shared {
    /// Those that are loaded on the device, to be added to; if there are none, in the room that `claim` takes.
    ///
    /// # Errors
    /// When there is no room.
    pub fn tensors(
        &self,
        device: &Device,
        claim: impl FnOnce() -> Result<Claim>,
    ) -> Result<Arc<Tensors>> {
        let slot = self.0.on(device);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensors) = slot.upgrade() {
            return Ok(tensors);
        }
        let tensors = Arc::new(Tensors::new(Some(claim()?)));
        *slot = Arc::downgrade(&tensors);
        Ok(tensors)
    }
}

/// Where loaded tensors go.
#[derive(Debug)]
struct Target {
    kernel: Arc<dyn Kernel>,
    maps: Maps,
    device: Device,
    dtype: DType,
    shared: Arc<Tensors>,
}

/// Where the tensors of one network come from: the data of its files, or their headers alone.
///
/// In the second case ("checking") every tensor is a zero that takes no memory, and what is missing or of another
/// shape is noted, so that building a network against headers lists all its faults.
pub struct Weights {
    table: Arc<Table>,
    changes: Option<Arc<Changes>>,
    variables: Option<Arc<Variables>>,
    target: Option<Target>,
    faults: RefCell<Vec<String>>,
    used: RefCell<BTreeSet<String>>,
    asked: RefCell<Vec<(String, Vec<usize>)>>,
    found: RefCell<Vec<(String, Stored)>>,
}

impl Weights {
    /// The weights of a table, to be put on `device` in `dtype` and packed for `kernel`, those that are in `shared` already
    /// taken from there.
    #[must_use]
    pub fn open(
        table: Arc<Table>,
        device: &Device,
        dtype: DType,
        shared: Arc<Tensors>,
        kernel: Arc<dyn Kernel>,
    ) -> Self {
        let mut weights = Self::checking(table);
        weights.target = Some(Target {
            kernel,
            maps: Maps::default(),
            device: device.clone(),
            dtype,
            shared,
        });
        weights
    }

    /// The table alone, to check a network against.
    #[must_use]
    pub fn checking(table: Arc<Table>) -> Self {
        Self {
            table,
            changes: None,
            variables: None,
            target: None,
            faults: RefCell::default(),
            used: RefCell::default(),
            asked: RefCell::default(),
            found: RefCell::default(),
        }
    }

    /// The names and shapes of all tensors that a network asks for when `build` builds it; where a layer has had
    /// several names, the present one.
    ///
    /// # Errors
    /// What `build` gives.
    pub fn asked(build: impl FnOnce(&Self) -> Result<()>) -> Result<Vec<(String, Vec<usize>)>> {
        let nothing = Table {
            file: "config.json".into(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        let weights = Self::checking(Arc::new(nothing));
        build(&weights)?;
        Ok(weights.asked.into_inner())
    }

    /// The tensors of a table that a network is built of when `build` builds it, by their present names and as they are
    /// stored, in the order in which they are asked for.
    ///
    /// # Errors
    /// What `build` gives, or that a tensor is missing or does not fit.
    pub fn found(
        table: Arc<Table>,
        build: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Vec<(String, Stored)>> {
        let file = table.file.clone();
        let weights = Self::checking(table);
        build(&weights)?;
        match weights.faults.into_inner().into_iter().next() {
            Some(message) => Err(Error::Weights { file, message }),
            None => Ok(weights.found.into_inner()),
        }
    }

    /// Adds what adapters change.
    #[must_use]
    pub fn with(mut self, changes: Arc<Changes>) -> Self {
        self.changes = Some(changes);
        self
    }

    /// Puts what is trained in place of the files' tensors, and beside them.
    #[must_use]
    pub fn with_variables(mut self, variables: Arc<Variables>) -> Self {
        self.variables = Some(variables);
        self
    }

    /// The variable that is trained in place of one of these names.
    fn variable(&self, names: &[String], shape: &Shape) -> Result<Option<Tensor>> {
        let Some(variables) = &self.variables else {
            return Ok(None);
        };
        let found = names.iter().find_map(|name| {
            let variable = variables.tensors.get(bare(name))?;
            Some((name, variable))
        });
        let Some((name, variable)) = found else {
            return Ok(None);
        };
        if variable.shape() != shape {
            return Err(Error::request(format!(
                "the trained tensor `{name}` is {:?}; the network asks for {:?}",
                variable.dims(),
                shape.dims()
            )));
        }
        self.used.borrow_mut().insert(name.clone());
        Ok(Some(variable.clone()))
    }

    /// The root of the names.
    #[must_use]
    pub fn root(&self) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: String::new(),
        }
    }

    /// What did not fit so far.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.faults.borrow().clone()
    }

    /// The tensors of the table that nothing has asked for.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        let names = self.table.tensors.iter();
        names
            .filter(|(name, _)| !used.contains(*name))
            .map(|(_, stored)| stored.name.clone())
            .collect()
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.table.contains(name)
    }

    fn get(&self, names: &[String], shape: &Shape, packed: bool) -> Result<Tensor> {
        if let Some(name) = names.first() {
            let asked = (name.clone(), shape.dims().to_vec());
            self.asked.borrow_mut().push(asked);
        }
        let found = names
            .iter()
            .find_map(|name| Some((name, self.table.tensors.get(name)?)));
        let problem = match found {
            None => format!(
                "has no tensor `{}` (expected {:?})",
                names.join("` or `"),
                shape.dims()
            ),
            Some((name, own)) => {
                self.used.borrow_mut().insert(name.clone());
                if self.target.is_none()
                    && let Some(present) = names.first()
                {
                    let found = (present.clone(), own.clone());
                    self.found.borrow_mut().push(found);
                }
                let replaced = self
                    .changes
                    .as_ref()
                    .and_then(|changes| changes.replaced.get(bare(name)));
                let stored = trimmed(replaced.unwrap_or(own), shape.rank());
                if stored.shape != shape.dims() {
                    format!(
                        "the tensor `{}` is {:?}; its configuration asks for {:?}",
                        own.name,
                        own.shape,
                        shape.dims()
                    )
                } else if !is_readable(&stored) {
                    format!(
                        "the tensor `{}` is of type {}; expected one of F16, BF16, F32, F64, F8_E4M3, F8_E5M2 or a block type of GGUF",
                        own.name, own.dtype
                    )
                } else if let Some(target) = &self.target {
                    let edits = self
                        .changes
                        .as_ref()
                        .map(|changes| changes.merged(name, packed));
                    return match edits.filter(|edits| !edits.is_empty()) {
                        Some(edits) => target.edited(&stored, &edits, packed),
                        None => target.load(name, &stored, replaced.is_some(), packed),
                    };
                } else {
                    return Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?);
                }
            }
        };
        if self.target.is_some() {
            return Err(Error::Weights {
                file: self.table.file.clone(),
                message: problem,
            });
        }
        self.faults.borrow_mut().push(problem);
        Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
    }

    /// A weight of a product that is quantised in its file and stays so; `None` of any other.
    fn late(&self, names: &[String], shape: &Shape) -> Result<Option<Weight>> {
        let Some(target) = self.target.as_ref().filter(|t| t.device.is_cpu()) else {
            return Ok(None);
        };
        let Some((name, own)) = names
            .iter()
            .find_map(|name| Some((name, self.table.tensors.get(name)?)))
        else {
            return Ok(None);
        };
        // A layer that is replaced, or that edits are merged into, is widened and changed once.
        let changed = |changes: &Arc<Changes>| {
            changes.replaced.contains_key(bare(name)) || !changes.merged(name, true).is_empty()
        };
        let stored = trimmed(own, shape.rank());
        if stored.block().is_none()
            || !stored.is_dense()
            || stored.shape != shape.dims()
            || self.changes.as_ref().is_some_and(changed)
        {
            return Ok(None);
        }
        target.late(name, &stored).map(Some)
    }

    /// The low-rank factors for the layer `name` whose weight has this shape, all adapters' side by side:
    /// `[R, in, ..]` and `[out, R, ..]`, the scales multiplied in.
    fn low_rank(&self, name: &str, shape: &[usize]) -> Result<Option<(Weight, Weight)>> {
        let name = format!("{}.weight", bare(name));
        let Some((target, edits)) = self
            .target
            .as_ref()
            .zip(self.changes.as_ref())
            .and_then(|(target, changes)| Some((target, changes.edits.get(&name)?)))
        else {
            return Ok(None);
        };
        let (mut downs, mut ups) = (Vec::new(), Vec::new());
        for edit in change::split(edits).0 {
            let stored = edit.delta.tensors();
            let bad = || Error::Weights {
                file: stored[0].file.to_path_buf(),
                message: format!(
                    "the factors for `{name}` are {:?} and {:?}; the layer's weight is {shape:?}",
                    stored[0].shape, stored[1].shape
                ),
            };
            if shape.len() < 2 || !edit.delta.fits(shape) {
                return Err(bad());
            }
            let Some((down, up)) = edit.delta.factors(shape, &target.maps)? else {
                return Err(bad());
            };
            downs.push(down);
            ups.push((up * (edit.scale * edit.strength))?);
        }
        if downs.is_empty() {
            return Ok(None);
        }
        let place = |t: Tensor| {
            let t = t.to_dtype(target.dtype)?.to_device(&target.device)?;
            Weight::new(&t, &*target.kernel)
        };
        Ok(Some((
            place(Tensor::cat(&downs, 0)?)?,
            place(Tensor::cat(&ups, 1)?)?,
        )))
    }
}

impl Weights {
    /// The low-rank factors that are trained beside the layer `name`.
    fn trained_factors(&self, name: &str) -> Result<Option<LowRank>> {
        let name = format!("{}.weight", bare(name));
        let factors = self.variables.as_ref().and_then(|v| v.factors.get(&name));
        let of = |factors: &TrainedFactors| -> Result<_> {
            Ok(LowRank {
                down: Weight::of_variable(&factors.down)?,
                up: Weight::of_variable(&factors.up)?,
                scale: factors.scale,
                dropout: factors.dropout.clone(),
            })
        };
        factors.map(of).transpose()
    }
}

/// Low-rank factors beside a weight: `scale up down` is added to it.
#[derive(Debug)]
pub struct LowRank {
    /// `[R, in, ..]`.
    pub down: Weight,
    /// `[out, R, ..]`.
    pub up: Weight,
    /// 1 where it is multiplied into the factors.
    pub scale: f64,
    /// What of their inputs they see while they are trained.
    pub dropout: Option<Arc<dyn InputMask>>,
}

impl LowRank {
    /// What the factors see of a layer's inputs.
    ///
    /// # Errors
    /// When memory is short.
    pub fn seen(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        match &self.dropout {
            Some(dropout) => Ok(kernel.masked(x, &dropout.mask(x.shape())?)?),
            None => Ok(x.clone()),
        }
    }
}

impl Target {
    /// A tensor with edits merged into it: widened to float32 for that, this one alone.
    fn edited(&self, stored: &Stored, edits: &[&Edit], packed: bool) -> Result<Tensor> {
        goes_on()?;
        let base = self.maps.load(stored, DType::F32, &Device::Cpu)?;
        let made = change::merged(base, edits, &self.maps)?;
        let dtype = if stored.shape.len() > 1 {
            self.dtype
        } else {
            DType::F32
        };
        let tensor = made.to_dtype(dtype)?.to_device(&self.device)?;
        if packed {
            Ok(self.kernel.pack(&tensor)?)
        } else {
            Ok(tensor)
        }
    }

    /// A weight whose blocks are kept as they are, and widened each time that it is used.
    fn late(&self, name: &str, stored: &Stored) -> Result<Weight> {
        goes_on()?;
        let lock = || {
            self.shared
                .quantised
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let known = lock().get(name).cloned();
        let bytes = match known {
            Some(bytes) => bytes,
            None => {
                let bytes = self.maps.bytes(stored)?;
                lock().insert(name.to_owned(), bytes.clone());
                bytes
            }
        };
        let late = Late::new(bytes, stored, self.dtype);
        Ok(Weight::late(Arc::new(late), &stored.shape)?)
    }

    /// A tensor of the files, `packed` for the kernels if it is a weight of a product.
    fn load(&self, name: &str, stored: &Stored, own: bool, packed: bool) -> Result<Tensor> {
        goes_on()?;
        // Biases and scales are few, and sums go through them: they stay float32.
        let dtype = if stored.shape.len() > 1 {
            self.dtype
        } else {
            DType::F32
        };
        let load = || {
            let tensor = self.maps.load(stored, dtype, &self.device)?;
            if packed {
                Ok(self.kernel.pack(&tensor)?)
            } else {
                Ok(tensor)
            }
        };
        if own {
            return load();
        }
        let lock = || {
            self.shared
                .by_name
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(tensor) = lock().get(name) {
            if tensor.rank() == 1 {
                return Ok(tensor.clone()); // packed, or a bias
            }
            // One network may ask for a 1x1 convolution as a matrix, as all of them do or none.
            return Ok(tensor.reshape(stored.shape.as_slice())?);
        }
        let tensor = load()?;
        lock().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }
}

/// A 1x1 convolution as the matrix that it is, where a matrix is asked for: old VAEs keep the attention's projections
/// so, Stable Diffusion 1 those of its transformers.
fn trimmed(stored: &Stored, rank: usize) -> Stored {
    let mut trimmed = stored.clone();
    if stored.shape.len() == rank + 2 && stored.shape.ends_with(&[1, 1]) {
        trimmed.shape.truncate(rank);
        trimmed.strides.truncate(rank);
    }
    trimmed
}

/// A place in the names of a weight file: `down_blocks.0.resnets.1`.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The place below this one.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Scope<'a> {
        Scope {
            weights: self.weights,
            prefix: self.name(&name.to_string()),
        }
    }

    fn name(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// Whether names and shapes alone are asked for, every tensor being a zero ([`Weights::checking`]).
    #[must_use]
    pub fn is_checking(&self) -> bool {
        self.weights.target.is_none()
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// When it is missing or of another shape; while checking the fault is noted instead.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        self.get_any(&[name], shape)
    }

    /// The weight `name` of a product, packed.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn weight(&self, name: &str, shape: impl Into<Shape>) -> Result<Weight> {
        self.weight_any(&[name], shape)
    }

    /// The first of several names of a weight of a product, packed.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn weight_any(&self, names: &[impl AsRef<str>], shape: impl Into<Shape>) -> Result<Weight> {
        let names: Vec<_> = names.iter().map(|name| self.name(name.as_ref())).collect();
        let shape = shape.into();
        if let Some(variable) = self.weights.variable(&names, &shape)? {
            return Ok(Weight::of_variable(&variable)?);
        }
        if let Some(late) = self.weights.late(&names, &shape)? {
            return Ok(late);
        }
        let data = self.weights.get(&names, &shape, true)?;
        Ok(Weight::of_packed(data, shape.dims())?)
    }

    /// The first of several names (a layer's present and former ones) that the file has.
    ///
    /// # Errors
    /// As [`Scope::get`].
    pub fn get_any(&self, names: &[impl AsRef<str>], shape: impl Into<Shape>) -> Result<Tensor> {
        let names: Vec<_> = names.iter().map(|name| self.name(name.as_ref())).collect();
        let shape = shape.into();
        match self.weights.variable(&names, &shape)? {
            Some(variable) => Ok(variable),
            None => self.weights.get(&names, &shape, false),
        }
    }

    /// Whether the file has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(&self.name(name))
    }

    /// Whether no gradient goes through what cross-attention makes of a text's first token.
    #[must_use]
    pub fn holds_first_token(&self) -> bool {
        let variables = self.weights.variables.as_ref();
        variables.is_some_and(|variables| variables.holds_first_token)
    }

    /// The low-rank factors that are added to this layer, whose weight has this shape: those of all adapters, and those that
    /// are trained.
    ///
    /// # Errors
    /// When they do not fit the shape, or cannot be read.
    pub fn low_rank(&self, shape: &[usize]) -> Result<Vec<LowRank>> {
        // What is trained in place of the weight began with the adapters in it.
        let own = format!("{}.weight", bare(&self.prefix));
        let variables = self.weights.variables.as_ref();
        let applied = match variables.is_some_and(|v| v.tensors.contains_key(&own)) {
            true => None,
            false => self.weights.low_rank(&self.prefix, shape)?,
        };
        let trained = self.weights.trained_factors(&self.prefix)?;
        let applied = applied.map(|(down, up)| LowRank {
            down,
            up,
            scale: 1.0,
            dropout: None,
        });
        Ok(applied.into_iter().chain(trained).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_its_own() {
        let counts: OnDevices<Mutex<u32>> = OnDevices::default();
        let cuda = |gpu_id| DeviceLocation::Cuda { gpu_id };
        for (number, location) in [DeviceLocation::Cpu, cuda(0), cuda(1), cuda(1)]
            .into_iter()
            .enumerate()
        {
            *counts.at(location).lock().unwrap() += 1 << number;
        }
        let mut all: Vec<u32> = counts.all().iter().map(|it| *it.lock().unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 12]);
        assert!(Arc::ptr_eq(
            &counts.on(&Device::Cpu),
            &counts.at(DeviceLocation::Cpu)
        ));
    }
}
