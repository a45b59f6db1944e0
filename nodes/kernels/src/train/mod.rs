//! Kernels that record what they compute, so that gradients can be taken: around a plain or a fast set of kernels, used by the
//! same networks.

mod products;
pub(crate) mod slopes;
mod tape;

pub use tape::{Gradients, Tape};

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, TensorId};

use crate::{
    Attended, Backward, GroupNormSpec, Kernel, Layout, NormGradients, Part, Terms, Weight, Window,
};

/// Kernels that record.
#[derive(Debug)]
pub struct Recorder {
    inner: Arc<dyn Kernel>,
    tape: Tape,
    recomputes: bool,
}

impl Recorder {
    /// Records what `inner` computes. With `recomputes` (gradient checkpointing: Chen et al. 2016, "Training Deep Nets with
    /// Sublinear Memory Cost") only the inputs of a network's [parts](Kernel::part) are kept.
    #[must_use]
    pub fn new(inner: Arc<dyn Kernel>, recomputes: bool) -> Self {
        let mut tape = Tape::default();
        // The plain kernels are candle's operators, whose results may be views.
        tape.copies = inner.layout() == Layout::ChannelsFirst;
        Self {
            inner,
            tape,
            recomputes,
        }
    }

    /// Wants the gradient of a tensor, a candle variable of float32.
    pub fn watch(&self, leaf: &Tensor) {
        self.tape.watch(leaf);
    }

    /// The gradients of all that is watched, from that of `y`; what was recorded is forgotten.
    ///
    /// # Errors
    /// When `y` does not depend on anything watched, or memory is short.
    pub fn backward(&self, y: &Tensor, gradient: Tensor) -> Result<Gradients> {
        self.tape.backward(y, gradient)
    }

    fn holds(&self, t: Option<&Tensor>) -> Result<bool> {
        t.map_or(Ok(false), |t| self.tape.holds(t))
    }
}

/// A tensor's numbers without its history.
fn bare(t: &Tensor) -> Tensor {
    t.detach()
}

/// Adds a norm's gradients to those of its input, scale and shift.
fn give(
    of: NormGradients,
    (x, weight, bias): (TensorId, TensorId, TensorId),
    gradients: &mut Gradients,
) -> Result<()> {
    gradients.add(x, of.x)?;
    if let Some((scale, shift)) = of.affine {
        gradients.add(weight, scale)?;
        gradients.add(bias, shift)?;
    }
    Ok(())
}

fn bare_terms(terms: Terms<'_>, f: impl FnOnce(Terms<'_>) -> Result<Tensor>) -> Result<Tensor> {
    let (bias, image, residual) = (
        terms.bias.map(bare),
        terms.image.map(bare),
        terms.residual.map(bare),
    );
    f(Terms {
        bias: bias.as_ref(),
        image: image.as_ref(),
        residual: residual.as_ref(),
    })
}

impl Kernel for Recorder {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn layout(&self) -> Layout {
        self.inner.layout()
    }

    fn pack(&self, w: &Tensor) -> Result<Tensor> {
        self.inner.pack(&bare(w))
    }

    fn transposed(&self, w: &Weight) -> Result<Weight> {
        self.inner.transposed(w)
    }

    fn backward(&self) -> &dyn Backward {
        self.inner.backward()
    }

    fn linear(&self, x: &Tensor, w: &Weight, terms: Terms<'_>) -> Result<Tensor> {
        let packed = w.packed_for(&*self.inner)?;
        let y = bare_terms(terms, |terms| self.inner.linear(&bare(x), &packed, terms))?;
        products::record_linear(self, x, w, packed, terms, y)
    }

    fn conv2d(&self, x: &Tensor, w: &Weight, window: Window, terms: Terms<'_>) -> Result<Tensor> {
        let packed = w.packed_for(&*self.inner)?;
        let y = bare_terms(terms, |terms| {
            self.inner.conv2d(&bare(x), &packed, window, terms)
        })?;
        products::record_conv2d(self, x, w, packed, window, terms, y)
    }

    fn group_norm(&self, x: &Tensor, norm: &GroupNormSpec<'_>, silu: bool) -> Result<Tensor> {
        let (own, weight, bias) = (bare(x), bare(norm.weight), bare(norm.bias));
        let spec = |weight, bias| GroupNormSpec {
            weight,
            bias,
            ..*norm
        };
        let y = self.inner.group_norm(&own, &spec(&weight, &bias), silu)?;
        let trained = self.tape.holds(norm.weight)? | self.tape.holds(norm.bias)?;
        let ids = (x.id(), norm.weight.id(), norm.bias.id());
        let (inner, groups, eps) = (self.inner.clone(), norm.groups, norm.eps);
        self.tape
            .record(y, &[x, norm.weight, norm.bias], move |grad, gradients| {
                let spec = GroupNormSpec {
                    groups,
                    eps,
                    weight: &weight,
                    bias: &bias,
                };
                let back = inner.backward();
                let of = back.group_norm_backward(grad, &own, &spec, silu, trained)?;
                give(of, ids, gradients)
            })
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let ids = (x.id(), weight.id(), bias.id());
        let trained = self.tape.holds(weight)? | self.tape.holds(bias)?;
        let (own, scale, shift) = (bare(x), bare(weight), bare(bias));
        let y = self.inner.layer_norm(&own, &scale, &shift, eps)?;
        let inner = self.inner.clone();
        self.tape
            .record(y, &[x, weight, bias], move |grad, gradients| {
                let back = inner.backward();
                give(
                    back.layer_norm_backward(grad, &own, &scale, eps, trained)?,
                    ids,
                    gradients,
                )
            })
    }

    fn concat(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let y = self.inner.concat(&bare(a), &bare(b))?;
        self.record_joined(y, a, b, self.layout().channels())
    }

    fn join(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let y = self.inner.join(&bare(a), &bare(b))?;
        self.record_joined(y, a, b, a.rank() - 1)
    }

    fn geglu(&self, x: &Tensor) -> Result<Tensor> {
        let own = bare(x);
        let y = self.inner.geglu(&own)?;
        let (id, inner) = (x.id(), self.inner.clone());
        self.tape.record(y, &[x], move |grad, gradients| {
            gradients.add(id, inner.backward().geglu_backward(grad, &own)?)
        })
    }

    fn linear_geglu(&self, x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
        if self.tape.holds(x)? || self.holds(w.trained())? || self.holds(bias)? {
            return self.geglu(&self.linear(x, w, Terms::bias(bias))?);
        }
        self.inner
            .linear_geglu(x, &w.packed_for(&*self.inner)?, bias)
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
        let [a, b, c] = [bare(q), bare(k), bare(v)];
        let y = self.inner.attention(&a, &b, &c, heads, scale, keys)?;
        if keys.is_some() && (self.tape.holds(q)? || self.tape.holds(k)? || self.tape.holds(v)?) {
            candle_core::bail!("attention to some of the keys has no gradient");
        }
        self.record_attention(y, [q, k, v], [a, b, c], heads, scale, false)
    }

    fn causal_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        heads: usize,
        scale: f64,
    ) -> Result<Tensor> {
        let [a, b, c] = [bare(q), bare(k), bare(v)];
        let y = self.inner.causal_attention(&a, &b, &c, heads, scale)?;
        self.record_attention(y, [q, k, v], [a, b, c], heads, scale, true)
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
        for t in [q, inside.k, inside.v, outside.k, outside.v] {
            if self.tape.holds(t)? {
                candle_core::bail!("blended attention has no gradient");
            }
        }
        self.inner
            .attention_blend(q, inside, outside, mask, heads, scale)
    }

    fn attention_map(&self, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
        self.inner.attention_map(&bare(q), &bare(k), heads, scale)
    }

    fn tokens(&self, x: &Tensor) -> Result<Tensor> {
        let (h, w) = self.layout().grid(x)?;
        let y = self.layout().tokens(x)?;
        let (id, layout) = (x.id(), self.layout());
        self.tape.record_view(y, x, move |grad, gradients| {
            gradients.add(id, layout.images_of_tokens(grad, h, w)?)
        })
    }

    fn images_of_tokens(&self, x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
        let y = self.layout().images_of_tokens(x, h, w)?;
        let (id, layout) = (x.id(), self.layout());
        self.tape.record_view(y, x, move |grad, gradients| {
            gradients.add(id, layout.tokens(grad)?)
        })
    }

    fn planes(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.layout().planes(x)?;
        let (id, layout) = (x.id(), self.layout());
        self.tape.record_view(y, x, move |grad, gradients| {
            gradients.add(id, layout.images(grad)?)
        })
    }

    fn reshape(&self, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
        let y = x.reshape(shape)?;
        let (id, before) = (x.id(), x.dims().to_vec());
        self.tape.record_view(y, x, move |grad, gradients| {
            gradients.add(id, grad.reshape(before)?)
        })
    }

    fn slice(&self, x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        let y = x.narrow(dim, start, len)?;
        let (id, whole) = (x.id(), x.dim(dim)?);
        self.tape.record_view(y, x, move |grad, gradients| {
            let after = whole - start - len;
            gradients.add(id, grad.pad_with_zeros(dim, start, after)?)
        })
    }

    fn stack(&self, parts: &[Tensor]) -> Result<Tensor> {
        if let [one] = parts {
            return Ok(one.clone());
        }
        let own: Vec<_> = parts.iter().map(bare).collect();
        let y = Tensor::cat(&own, 0)?;
        let of: Vec<_> = parts
            .iter()
            .map(|t| Ok((t.id(), t.dim(0)?)))
            .collect::<Result<_>>()?;
        let inputs: Vec<_> = parts.iter().collect();
        self.tape.record(y, &inputs, move |grad, gradients| {
            let mut start = 0;
            for (id, rows) in of {
                if gradients.wants(id) {
                    gradients.add(id, grad.narrow(0, start, rows)?.contiguous()?)?;
                }
                start += rows;
            }
            Ok(())
        })
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let y = (bare(a) + bare(b))?;
        let (a_id, b_id) = (a.id(), b.id());
        self.tape.record(y, &[a, b], move |grad, gradients| {
            gradients.add(a_id, grad.clone())?;
            gradients.add(b_id, grad.clone())
        })
    }

    fn scale(&self, x: &Tensor, by: f64) -> Result<Tensor> {
        let (y, id) = ((bare(x) * by)?, x.id());
        self.tape.record(y, &[x], move |grad, gradients| {
            gradients.add(id, (grad * by)?)
        })
    }

    fn masked(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (y, id, mask) = ((bare(x) * mask)?, x.id(), mask.clone());
        self.tape.record(y, &[x], move |grad, gradients| {
            gradients.add(id, (grad * mask)?)
        })
    }

    fn hold_first(&self, x: &Tensor) -> Result<Tensor> {
        let id = x.id();
        self.tape
            .record(bare(x).copy()?, &[x], move |grad, gradients| {
                let tokens = grad.dim(1)?;
                let rest = grad.narrow(1, 1, tokens - 1)?;
                gradients.add(id, rest.pad_with_zeros(1, 1, 0)?)
            })
    }

    fn rows(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let own = bare(table);
        let y = self.inner.rows(&own, ids)?;
        let (id, ids) = (table.id(), Tensor::new(ids, table.device())?);
        self.tape.record(y, &[table], move |grad, gradients| {
            let zeros = Tensor::zeros(own.shape(), DType::F32, own.device())?;
            gradients.add(id, zeros.index_add(&ids, grad, 0)?)
        })
    }

    fn silu(&self, x: &Tensor) -> Result<Tensor> {
        let own = bare(x);
        let (y, id) = (self.inner.silu(&own)?, x.id());
        self.tape.record(y, &[x], move |grad, gradients| {
            gradients.add(id, slopes::silu(grad, &own)?)
        })
    }

    fn gelu(&self, x: &Tensor) -> Result<Tensor> {
        let own = bare(x);
        let (y, id) = (self.inner.gelu(&own)?, x.id());
        self.tape.record(y, &[x], move |grad, gradients| {
            gradients.add(id, (grad * slopes::gelu_slope(&own)?)?)
        })
    }

    fn quick_gelu(&self, x: &Tensor) -> Result<Tensor> {
        let own = bare(x);
        let (y, id) = (self.inner.quick_gelu(&own)?, x.id());
        self.tape.record(y, &[x], move |grad, gradients| {
            gradients.add(id, slopes::quick_gelu(grad, &own)?)
        })
    }

    fn recomputes(&self) -> bool {
        self.recomputes
    }

    fn part(&self, inputs: &[&Tensor], part: Part) -> Result<Tensor> {
        let own: Vec<_> = inputs.iter().copied().map(bare).collect();
        if !self.recomputes {
            let inputs: Vec<_> = inputs.iter().map(|&t| t.clone()).collect();
            return part(self, &inputs);
        }
        for t in inputs {
            self.tape.holds(t)?;
        }
        let y = part(&*self.inner, &own)?;
        let ids: Vec<_> = inputs.iter().map(|t| t.id()).collect();
        let (inner, leaves) = (self.inner.clone(), self.tape.leaves());
        // Whether anything inside is trained is not known, so that it is recorded in any case.
        self.tape.push(y, move |grad, gradients| {
            let again = Self::new(inner, false);
            for leaf in &leaves {
                again.watch(leaf);
            }
            let inputs: Vec<_> = own
                .iter()
                .map(|t| Ok(candle_core::Var::from_tensor(t)?.into_inner()))
                .collect::<Result<_>>()?;
            let wanted = ids.iter().zip(&inputs);
            for (id, input) in wanted.clone() {
                if gradients.wants(*id) {
                    again.watch(input);
                }
            }
            // What is not wanted goes in as it was, so that it is no variable.
            let given: Vec<_> = wanted
                .clone()
                .zip(&own)
                .map(|((id, input), own)| if gradients.wants(*id) { input } else { own }.clone())
                .collect();
            let y = part(&again, &given)?;
            if !again.tape.holds(&y)? {
                return Ok(());
            }
            let mut inside = again.backward(&y, grad.clone())?;
            for (id, input) in wanted {
                if let Some(gradient) = inside.take(input) {
                    gradients.add(*id, gradient)?;
                }
            }
            for (id, gradient) in inside.into_leaves() {
                gradients.add(id, gradient)?;
            }
            Ok(())
        })
    }
}

impl Recorder {
    /// Records that `y` is `a` and `b` side by side along `dim`.
    fn record_joined(&self, y: Tensor, a: &Tensor, b: &Tensor, dim: usize) -> Result<Tensor> {
        let (left, right) = (a.dim(dim)?, b.dim(dim)?);
        let (a_id, b_id) = (a.id(), b.id());
        self.tape.record(y, &[a, b], move |grad, gradients| {
            if gradients.wants(a_id) {
                gradients.add(a_id, grad.narrow(dim, 0, left)?.contiguous()?)?;
            }
            if gradients.wants(b_id) {
                gradients.add(b_id, grad.narrow(dim, left, right)?.contiguous()?)?;
            }
            Ok(())
        })
    }

    fn record_attention(
        &self,
        y: Tensor,
        of: [&Tensor; 3],
        own: [Tensor; 3],
        heads: usize,
        scale: f64,
        causal: bool,
    ) -> Result<Tensor> {
        let ids = of.map(Tensor::id);
        let inner = self.inner.clone();
        self.tape.record_result(y, &of, |y| {
            move |grad: &Tensor, gradients: &mut Gradients| {
                let [q, k, v] = &own;
                let back = inner.backward();
                let of = back.attention_backward((grad, &y), (q, k, v), heads, scale, causal)?;
                for (id, gradient) in ids.into_iter().zip([of.q, of.k, of.v]) {
                    gradients.add(id, gradient)?;
                }
                Ok(())
            }
        })
    }
}
