//! The tape: what was computed, in order, and how a gradient goes back through each of it.
//!
//! candle has gradients of its own. They are not used, for three reasons: its fused softmax and norms give none, and say
//! nothing; it computes the gradients of weights that are not trained; and every gradient is added to a tensor of zeros, which
//! on a CPU is as much traffic as the layer itself. Here an activation is let go as soon as the gradient has passed it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, TensorId, Var, bail};

/// What takes the gradient of a result back to what it was made of.
type Backward = Box<dyn FnOnce(&Tensor, &mut Gradients) -> Result<()> + Send>;

/// Something on the tape: a tensor that gradients are wanted of, or the result of an operation on one.
struct Entry {
    /// `None` of a leaf, and of what the gradient has passed.
    backward: Option<Backward>,
}

/// The gradients that are on their way back, by the number of what they belong to.
pub struct Gradients {
    numbers: HashMap<TensorId, usize>,
    slots: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Adds to the gradient of a tensor; one that is not on the tape needs none.
    ///
    /// # Errors
    /// When two gradients of one tensor differ in shape.
    pub fn add(&mut self, to: TensorId, gradient: Tensor) -> Result<()> {
        let Some(&number) = self.numbers.get(&to) else {
            return Ok(());
        };
        let slot = &mut self.slots[number];
        *slot = Some(match slot.take() {
            Some(before) => (before + gradient)?,
            None => gradient,
        });
        Ok(())
    }

    /// Whether the gradient of a tensor is wanted.
    #[must_use]
    pub fn wants(&self, of: TensorId) -> bool {
        self.numbers.contains_key(&of)
    }

    /// The gradient of a leaf; `None` when nothing that was differentiated depends on it.
    pub fn take(&mut self, of: &Tensor) -> Option<Tensor> {
        let number = *self.numbers.get(&of.id())?;
        self.slots[number].take()
    }

    /// The gradients of all leaves that have one.
    pub(super) fn into_leaves(self) -> impl Iterator<Item = (TensorId, Tensor)> {
        let mut slots = self.slots;
        self.numbers
            .into_iter()
            .filter_map(move |(id, number)| Some((id, slots[number].take()?)))
    }
}

#[derive(Default)]
struct State {
    numbers: HashMap<TensorId, usize>,
    entries: Vec<Entry>,
    /// Kept alive, so that no other tensor is given the identity of one that is on the tape.
    leaves: Vec<Tensor>,
}

/// What was computed of the leaves, in order.
#[derive(Default)]
pub struct Tape {
    state: Mutex<State>,
    /// Whether results may share their numbers with other tensors, and are copied.
    pub(super) copies: bool,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tape of {}", self.state().entries.len())
    }
}

impl Tape {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a tensor that gradients are wanted of on the tape.
    pub fn watch(&self, leaf: &Tensor) {
        let mut state = self.state();
        if state.numbers.contains_key(&leaf.id()) {
            return;
        }
        let number = state.entries.len();
        state.numbers.insert(leaf.id(), number);
        state.entries.push(Entry { backward: None });
        state.leaves.push(leaf.clone());
    }

    /// The leaves so far.
    pub fn leaves(&self) -> Vec<Tensor> {
        self.state().leaves.clone()
    }

    /// Whether gradients go back to a tensor.
    ///
    /// # Errors
    /// When it was made of one that is on the tape by an operation that is not: its gradient would be lost without a word.
    pub fn holds(&self, t: &Tensor) -> Result<bool> {
        let known = self.state().numbers.contains_key(&t.id());
        if !known && t.track_op() {
            bail!(
                "a tensor of shape {:?} was made of a recorded one by an operation that was not recorded; its gradient would be lost",
                t.dims()
            );
        }
        Ok(known)
    }

    /// Records that `y` was made of `of`; the result stands for `y` from here on.
    ///
    /// # Errors
    /// As [`Tape::holds`], or when `y` cannot be kept.
    pub fn record(
        &self,
        y: Tensor,
        of: &[&Tensor],
        backward: impl FnOnce(&Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Result<Tensor> {
        self.record_result(y, of, |_| backward)
    }

    /// The same for a way back that needs the result: `backward` is given it.
    ///
    /// # Errors
    /// As [`Tape::record`].
    pub fn record_result<B: FnOnce(&Tensor, &mut Gradients) -> Result<()> + Send + 'static>(
        &self,
        y: Tensor,
        of: &[&Tensor],
        backward: impl FnOnce(Tensor) -> B,
    ) -> Result<Tensor> {
        let mut any = false;
        for t in of {
            any |= self.holds(t)?;
        }
        if !any {
            return Ok(y);
        }
        let y = marked(y, self.copies)?;
        self.put(&y, Box::new(backward(y.detach())));
        Ok(y)
    }

    /// Records `y` whatever it was made of.
    ///
    /// # Errors
    /// When `y` cannot be kept.
    pub fn push(
        &self,
        y: Tensor,
        backward: impl FnOnce(&Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Result<Tensor> {
        let y = marked(y, self.copies)?;
        self.put(&y, Box::new(backward));
        Ok(y)
    }

    /// Records `y`, which candle made of the one recorded tensor `of` and which may share its numbers.
    ///
    /// # Errors
    /// As [`Tape::holds`].
    pub fn record_view(
        &self,
        y: Tensor,
        of: &Tensor,
        backward: impl FnOnce(&Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Result<Tensor> {
        if self.holds(of)? && y.id() != of.id() {
            self.put(&y, Box::new(backward));
        }
        Ok(y)
    }

    fn put(&self, y: &Tensor, backward: Backward) {
        let mut state = self.state();
        let number = state.entries.len();
        state.numbers.insert(y.id(), number);
        state.entries.push(Entry {
            backward: Some(backward),
        });
    }

    /// The gradients of all leaves, from that of `y`. What was recorded is forgotten on the way, the leaves are not.
    ///
    /// # Errors
    /// What an operation gives, or that `y` is not on the tape.
    pub fn backward(&self, y: &Tensor, gradient: Tensor) -> Result<Gradients> {
        let mut state = self.state();
        let state = &mut *state;
        let Some(&last) = state.numbers.get(&y.id()) else {
            bail!("nothing that is trained has a part in the result");
        };
        if gradient.dims() != y.dims() {
            bail!("a gradient of {:?} for {:?}", gradient.dims(), y.dims());
        }
        let mut gradients = Gradients {
            numbers: std::mem::take(&mut state.numbers),
            slots: (0..state.entries.len()).map(|_| None).collect(),
        };
        gradients.slots[last] = Some(gradient);
        for number in (0..=last).rev() {
            if let Some(backward) = state.entries[number].backward.take()
                && let Some(gradient) = gradients.slots[number].take()
            {
                backward(&gradient, &mut gradients)?;
            }
        }
        state.entries.clear();
        for leaf in &state.leaves {
            state.numbers.insert(leaf.id(), state.entries.len());
            state.entries.push(Entry { backward: None });
        }
        Ok(gradients)
    }
}

/// A tensor of the same numbers that candle takes for a variable, so that what other operations make of it can be told from
/// constants. The numbers are taken, not copied, where they are the tensor's alone.
fn marked(y: Tensor, copies: bool) -> Result<Tensor> {
    let shape = y.shape().clone();
    let whole = y
        .layout()
        .contiguous_offsets()
        .is_some_and(|(start, end)| start == 0 && end == shape.elem_count());
    if copies || !whole || !y.device().is_cpu() || y.track_op() {
        return Ok(Var::from_tensor(&y.detach().contiguous()?)?.into_inner());
    }
    let taken = Taken::default();
    y.inplace_op1(&taken)?;
    let storage = taken.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    match storage {
        Some(storage) if elements(&storage) == shape.elem_count() => Ok(Tensor::from_storage(
            Storage::Cpu(storage),
            shape,
            BackpropOp::none(),
            true,
        )),
        _ => bail!("the numbers of a result of {shape:?} are not its own"),
    }
}

fn elements(storage: &CpuStorage) -> usize {
    match storage {
        CpuStorage::F32(numbers) => numbers.len(),
        _ => 0,
    }
}

/// Takes the numbers out of a tensor.
#[derive(Default)]
struct Taken(Mutex<Option<CpuStorage>>);

impl InplaceOp1 for Taken {
    fn name(&self) -> &'static str {
        "taken"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        if storage.dtype() != candle_core::DType::F32 {
            bail!(
                "gradients are computed in float32, not {:?}",
                storage.dtype()
            );
        }
        let numbers = std::mem::replace(storage, CpuStorage::F32(Vec::new()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(numbers);
        Ok(())
    }
}
