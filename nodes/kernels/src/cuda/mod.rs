//! Kernels for CUDA devices: what lies between the products is one kernel each, and attention writes no matrix of scores.
//! Products and convolutions are candle's (cuBLAS and its own), image by image as [`Plain`] makes them.
//!
//! The kernels are `kernels.cu`. [`calls`] says how they are launched, from shapes alone; [`device`] launches them on a device, and
//! the tests run the same file on the CPU (`emulated.cpp`), so that each kernel and each launch is held against its twin in
//! `plain.rs` where there is no GPU. `.ci/cuda` compiles all of it for devices.

mod calls;
#[cfg(feature = "cuda")]
mod device;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub use device::Device;

use candle_core::{DType, Result, Tensor};

use self::calls::{Call, Shapes, Side};
use super::{
    Attended, Backward, GroupNormSpec, Kernel, Layout, Padding, Part, Plain, Terms, Weight, Window,
};

/// What launches a kernel.
pub trait Launcher: std::fmt::Debug + Send + Sync {
    /// Launches a kernel over tensors without gaps, float32 or unsigned numbers of 32 bits.
    ///
    /// # Errors
    /// When the device does not do it.
    fn launch(&self, call: &Call, tensors: &[&Tensor]) -> Result<Tensor>;
}

/// The kernels of `kernels.cu`, launched by `L`; what they do not do is done by [`Plain`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Fused<L>(L);

impl<L: Launcher> Fused<L> {
    /// Launches a kernel over tensors that have as many numbers as it reads.
    fn launch(&self, call: &Call, tensors: &[&Tensor]) -> Result<Tensor> {
        let fits = |(tensor, size): (&&Tensor, &Option<usize>)| {
            size.is_none_or(|size| tensor.elem_count() == size)
        };
        if tensors.len() != call.sizes.len() || !tensors.iter().zip(&call.sizes).all(fits) {
            let shapes: Vec<_> = tensors.iter().map(|tensor| tensor.dims()).collect();
            candle_core::bail!("`{}` of tensors of shape {shapes:?}", call.kernel);
        }
        let tensors: Vec<Tensor> = (tensors.iter())
            .map(|tensor| tensor.contiguous())
            .collect::<Result<_>>()?;
        self.0.launch(call, &tensors.iter().collect::<Vec<_>>())
    }

    /// What is added to a product `y` of that many outputs.
    fn with_terms(&self, y: Tensor, outputs: usize, terms: Terms<'_>) -> Result<Tensor> {
        if terms.bias.is_none() && terms.image.is_none() && terms.residual.is_none() {
            return Ok(y);
        }
        let of = |term: Option<&Tensor>| term.unwrap_or(&y).clone();
        let tensors = [of(terms.bias), of(terms.image), of(terms.residual)];
        let there = [
            terms.bias.is_some(),
            terms.image.is_some(),
            terms.residual.is_some(),
        ];
        let call = calls::terms(y.dims(), outputs, there)?;
        self.launch(&call, &[&y, &tensors[0], &tensors[1], &tensors[2]])
    }

    /// One side of a blend, or all of an attention.
    fn attend(
        &self,
        q: &Tensor,
        to: Attended<'_>,
        heads: usize,
        scale: f64,
        side: Side<'_>,
    ) -> Result<Option<Tensor>> {
        let shapes = Shapes::of(q, to.k, heads)?;
        let Some(call) = calls::attention(&shapes, to.keys.is_some(), &side, scale)? else {
            return Ok(None);
        };
        let (starts, numbers) = match to.keys {
            Some(keys) => chosen(keys, &shapes, q)?,
            None => (q.clone(), q.clone()),
        };
        let mask = side.mask().unwrap_or(q);
        let before = side.before().unwrap_or(q);
        let tensors = [q, to.k, to.v, &starts, &numbers, mask, before];
        self.launch(&call, &tensors).map(Some)
    }
}

/// Where each image's keys begin and end, and the keys.
fn chosen(keys: &[Vec<u32>], shapes: &Shapes, q: &Tensor) -> Result<(Tensor, Tensor)> {
    let beyond = |key: &u32| *key as usize >= shapes.keys();
    if keys.len() != shapes.sources() || keys.iter().flatten().any(beyond) {
        candle_core::bail!(
            "the keys that take part are not those of {} images",
            keys.len()
        );
    }
    let mut starts = vec![0];
    let mut numbers = Vec::new();
    for keys in keys {
        numbers.extend_from_slice(keys);
        starts.push(numbers.len() as u32);
    }
    Ok((
        Tensor::new(starts, q.device())?,
        Tensor::new(numbers, q.device())?,
    ))
}

impl<L: Launcher> Kernel for Fused<L> {
    fn name(&self) -> &'static str {
        "cuda1"
    }

    fn layout(&self) -> Layout {
        Plain.layout()
    }

    fn pack(&self, w: &Tensor) -> Result<Tensor> {
        Plain.pack(w)
    }

    fn transposed(&self, w: &Weight) -> Result<Weight> {
        Plain.transposed(w)
    }

    fn backward(&self) -> &dyn Backward {
        &Plain
    }

    fn linear(&self, x: &Tensor, w: &Weight, terms: Terms<'_>) -> Result<Tensor> {
        let y = Plain.linear(x, w, Terms::default())?;
        // A matrix has no term of an image.
        let terms = Terms {
            image: None,
            ..terms
        };
        self.with_terms(y, w.outputs, terms)
    }

    fn conv2d(&self, x: &Tensor, w: &Weight, window: Window, terms: Terms<'_>) -> Result<Tensor> {
        let x = match calls::padded(x.dims(), window)? {
            Some(call) => self.launch(&call, &[x])?,
            None => x.clone(),
        };
        let window = Window {
            padding: Padding::same(0),
            enlarged: None,
            ..window
        };
        let y = Plain.conv2d(&x, w, window, Terms::default())?;
        self.with_terms(y, w.outputs, terms)
    }

    fn group_norm(&self, x: &Tensor, norm: &GroupNormSpec<'_>, silu: bool) -> Result<Tensor> {
        let call = calls::group_norm(x.dims(), norm.groups, silu, norm.eps)?;
        self.launch(&call, &[x, norm.weight, norm.bias])
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let call = calls::layer_norm(x.dims(), eps)?;
        self.launch(&call, &[x, weight, bias])
    }

    fn geglu(&self, x: &Tensor) -> Result<Tensor> {
        self.launch(&calls::geglu(x.dims())?, &[x])
    }

    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        heads: usize,
        scale: f64,
        keys: Option<&[Vec<u32>]>,
    ) -> Result<Tensor> {
        match self.attend(q, Attended { k, v, keys }, heads, scale, Side::Whole)? {
            Some(attended) => Ok(attended),
            None => Plain.attention(q, k, v, heads, scale, keys),
        }
    }

    fn attention_blend(
        &self,
        q: &Tensor,
        inside: Attended<'_>,
        outside: Attended<'_>,
        mask: &Tensor,
        heads: usize,
        scale: f64,
    ) -> Result<Tensor> {
        let mask = &mask.to_dtype(DType::F32)?;
        let first = self.attend(q, inside, heads, scale, Side::Inside(mask))?;
        if let Some(before) = first {
            let side = Side::Outside(mask, &before);
            if let Some(blended) = self.attend(q, outside, heads, scale, side)? {
                return Ok(blended);
            }
        }
        Plain.attention_blend(q, inside, outside, mask, heads, scale)
    }

    fn attention_map(&self, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
        match calls::attention_map(&Shapes::of(q, k, heads)?, scale)? {
            Some(call) => self.launch(&call, &[q, k]),
            None => Plain.attention_map(q, k, heads, scale),
        }
    }

    fn part(&self, inputs: &[&Tensor], part: Part) -> Result<Tensor> {
        let inputs: Vec<_> = inputs.iter().map(|&t| t.clone()).collect();
        part(self, &inputs)
    }
}
