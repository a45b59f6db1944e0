//! The plain kernels: candle's operators, image by image, written for reading. They run on every device and are what
//! the tests hold the faster ones against. Products with weights are made in the weights' type, all between in float32.

use candle_core::{D, DType, Result, Tensor};

use super::heads::{causal_mask, split_heads};
use super::train::slopes::{gelu_slope, normalised, silu};
use super::{
    AttentionGradients, Backward, GroupNormSpec, Kernel, Layout, NormGradients, Padding, Part,
    Terms, Weight, Window,
};

/// The kernels made of candle's operators.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

/// Applies `f` to each image and joins the results, so that the shape of every product is that of one image.
fn per_image(x: &Tensor, mut f: impl FnMut(usize, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let images = (0..x.dim(0)?)
        .map(|b| f(b, &x.narrow(0, b, 1)?))
        .collect::<Result<Vec<_>>>()?;
    if let [one] = images.as_slice() {
        Ok(one.clone())
    } else {
        Tensor::cat(&images, 0)
    }
}

/// Enlarges x `[B, C, H, W]` to h x w, nearest: source index floor(i * in / out).
fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let index = |from: usize, to: usize| -> Result<Tensor> {
        let index: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
        Tensor::new(index, x.device())
    };
    x.index_select(&index(height, h)?, 2)?
        .index_select(&index(width, w)?, 3)
}

impl Kernel for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn layout(&self) -> Layout {
        Layout::ChannelsFirst
    }

    fn pack(&self, w: &Tensor) -> Result<Tensor> {
        Ok(w.clone())
    }

    fn transposed(&self, w: &Weight) -> Result<Weight> {
        let numbers = w.packed(self)?.to_dtype(DType::F32)?;
        let turned = numbers.transpose(0, 1)?.contiguous()?;
        let turned = match w.window {
            (1, 1) => turned,
            (kh, kw) => {
                let taps = kh * kw;
                let order: Vec<u32> = (0..taps as u32).rev().collect();
                let order = Tensor::new(order, turned.device())?;
                let shape = turned.dims().to_vec();
                let flat = turned.reshape((w.inputs, w.outputs, taps))?;
                flat.index_select(&order, 2)?.reshape(shape)?
            }
        };
        let shape = turned.dims().to_vec();
        Weight::of_packed(turned, &shape)
    }

    fn backward(&self) -> &dyn Backward {
        self
    }

    fn linear(&self, x: &Tensor, w: &Weight, terms: Terms<'_>) -> Result<Tensor> {
        let w = w.packed(self)?.t()?;
        let y = per_image(x, |_, x| {
            let y = x.squeeze(0)?.to_dtype(w.dtype())?.matmul(&w)?;
            y.to_dtype(DType::F32)?.unsqueeze(0)
        })?;
        let y = match terms.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        match terms.residual {
            Some(residual) => y + residual,
            None => Ok(y),
        }
    }

    fn conv2d(&self, x: &Tensor, w: &Weight, window: Window, terms: Terms<'_>) -> Result<Tensor> {
        let Padding {
            top,
            bottom,
            left,
            right,
        } = window.padding;
        let w = &w.packed(self)?;
        let x = match window.enlarged {
            Some((h, w)) => upsample_nearest(x, h, w)?,
            None => x.clone(),
        };
        let y = per_image(&x, |_, x| {
            let x = x
                .pad_with_zeros(2, top, bottom)?
                .pad_with_zeros(3, left, right)?;
            let y = x.to_dtype(w.dtype())?.conv2d(w, 0, window.stride, 1, 1)?;
            y.to_dtype(DType::F32)
        })?;
        let y = match terms.bias {
            Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?,
            None => y,
        };
        let y = match terms.image {
            Some(image) => y.broadcast_add(&image.unsqueeze(2)?.unsqueeze(3)?)?,
            None => y,
        };
        match terms.residual {
            Some(residual) => y + residual,
            None => Ok(y),
        }
    }

    fn group_norm(&self, x: &Tensor, norm: &GroupNormSpec<'_>, silu: bool) -> Result<Tensor> {
        let shape = x.dims().to_vec();
        let channels = shape[1];
        let grouped = x.reshape((shape[0], norm.groups, ()))?;
        let mean = grouped.mean_keepdim(D::Minus1)?;
        let centred = grouped.broadcast_sub(&mean)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let y = centred
            .broadcast_div(&(variance + norm.eps)?.sqrt()?)?
            .reshape((shape[0], channels, ()))?
            .broadcast_mul(&norm.weight.reshape((1, channels, 1))?)?
            .broadcast_add(&norm.bias.reshape((1, channels, 1))?)?
            .reshape(shape)?;
        if silu { y.silu() } else { Ok(y) }
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let mean = x.mean_keepdim(D::Minus1)?;
        let centred = x.broadcast_sub(&mean)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        centred
            .broadcast_div(&(variance + eps)?.sqrt()?)?
            .broadcast_mul(weight)?
            .broadcast_add(bias)
    }

    fn geglu(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let h = x.narrow(D::Minus1, 0, half)?;
        let g = x.narrow(D::Minus1, half, half)?.contiguous()?;
        h * g.gelu_erf()?
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
        let (_, n, c) = q.dims3()?;
        let shared = k.dim(0)? == 1;
        per_image(q, |b, q| {
            let source = if shared { 0 } else { b };
            let (mut k, mut v) = (k.narrow(0, source, 1)?, v.narrow(0, source, 1)?);
            if let Some(keys) = keys {
                let index = Tensor::new(keys[source].as_slice(), q.device())?;
                (k, v) = (k.index_select(&index, 1)?, v.index_select(&index, 1)?);
            }
            let q = split_heads(q, heads)?;
            let (k, v) = (split_heads(&k, heads)?, split_heads(&v, heads)?);
            let scores = (q.matmul(&k.transpose(1, 2)?)? * scale)?;
            candle_nn::ops::softmax_last_dim(&scores)?
                .matmul(&v)?
                .transpose(0, 1)?
                .reshape((1, n, c))
        })
    }

    fn attention_map(&self, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
        let shared = k.dim(0)? == 1;
        per_image(q, |b, q| {
            let k = split_heads(&k.narrow(0, if shared { 0 } else { b }, 1)?, heads)?;
            let scores = (split_heads(q, heads)?.matmul(&k.transpose(1, 2)?)? * scale)?;
            candle_nn::ops::softmax_last_dim(&scores)?.mean_keepdim(0)
        })
    }

    fn part(&self, inputs: &[&Tensor], part: Part) -> Result<Tensor> {
        let inputs: Vec<_> = inputs.iter().map(|&t| t.clone()).collect();
        part(self, &inputs)
    }
}

impl Backward for Plain {
    fn group_norm_backward(
        &self,
        grad: &Tensor,
        x: &Tensor,
        norm: &GroupNormSpec<'_>,
        silu_follows: bool,
        trained: bool,
    ) -> Result<NormGradients> {
        let (shape, images) = (x.dims().to_vec(), x.dim(0)?);
        let channels = x.dim(Layout::ChannelsFirst.channels())?;
        let planes = |t: &Tensor| t.reshape((images, channels, ()));
        let grouped = |t: &Tensor| t.reshape((images, norm.groups, ()));
        let weight = norm.weight.reshape((1, channels, 1))?;
        let mut grad = planes(grad)?;
        if silu_follows {
            let (_, y) = normalised(&grouped(&grad)?, &grouped(x)?, norm.eps)?;
            let y = planes(&y)?
                .broadcast_mul(&weight)?
                .broadcast_add(&norm.bias.reshape((1, channels, 1))?)?;
            grad = silu(&grad, &y)?;
        }
        let scaled = grad.broadcast_mul(&weight)?;
        let (of, y) = normalised(&grouped(&scaled)?, &grouped(x)?, norm.eps)?;
        let affine = || -> Result<_> {
            let scale = (&grad * planes(&y)?)?.sum((0, 2))?;
            Ok((scale, grad.sum((0, 2))?))
        };
        Ok(NormGradients {
            x: of.reshape(shape)?,
            affine: trained.then(affine).transpose()?,
        })
    }

    fn layer_norm_backward(
        &self,
        grad: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f64,
        trained: bool,
    ) -> Result<NormGradients> {
        let (of, y) = normalised(&grad.broadcast_mul(weight)?, x, eps)?;
        let affine = || -> Result<_> {
            let rows = |t: Tensor| t.flatten_to(t.rank() - 2)?.sum(0);
            Ok((rows((grad * y)?)?, rows(grad.clone())?))
        };
        Ok(NormGradients {
            x: of,
            affine: trained.then(affine).transpose()?,
        })
    }

    fn geglu_backward(&self, grad: &Tensor, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let h = x.narrow(D::Minus1, 0, half)?.contiguous()?;
        let g = x.narrow(D::Minus1, half, half)?.contiguous()?;
        let of_h = (grad * g.gelu_erf()?)?;
        let of_g = ((grad * h)? * gelu_slope(&g)?)?;
        Tensor::cat(&[of_h, of_g], D::Minus1)
    }

    fn attention_backward(
        &self,
        (grad, y): (&Tensor, &Tensor),
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        heads: usize,
        scale: f64,
        causal: bool,
    ) -> Result<AttentionGradients> {
        let (images, n, c) = q.dims3()?;
        let (sources, m, _) = k.dims3()?;
        let joined = |t: Tensor, rows: usize| t.transpose(0, 1)?.reshape((1, rows, c));
        let mut of = [Vec::new(), Vec::new(), Vec::new()];
        for image in 0..images {
            let source = if sources == 1 { 0 } else { image };
            let own = |t: &Tensor, i| split_heads(&t.narrow(0, i, 1)?, heads);
            let (grad, y, q) = (own(grad, image)?, own(y, image)?, own(q, image)?);
            let (k, v) = (own(k, source)?, own(v, source)?);
            let mut scores = (q.matmul(&k.transpose(1, 2)?)? * scale)?;
            if causal {
                scores = scores.broadcast_add(&causal_mask(n, q.device())?)?;
            }
            let p = candle_nn::ops::softmax_last_dim(&scores)?;
            let of_p = grad.matmul(&v.transpose(1, 2)?)?;
            // Which is the sum of p times its gradient.
            let along = (&grad * &y)?.sum_keepdim(D::Minus1)?;
            let of_scores = ((&p * of_p.broadcast_sub(&along)?)? * scale)?;
            of[0].push(joined(of_scores.matmul(&k)?, n)?);
            of[1].push(joined(of_scores.transpose(1, 2)?.matmul(&q)?, m)?);
            of[2].push(joined(p.transpose(1, 2)?.matmul(&grad)?, m)?);
        }
        let [q, k, v] = of.map(|parts| Tensor::cat(&parts, 0));
        let shared = |t: Tensor| {
            if sources == 1 && images > 1 {
                t.sum_keepdim(0)
            } else {
                Ok(t)
            }
        };
        Ok(AttentionGradients {
            q: q?,
            k: shared(k?)?,
            v: shared(v?)?,
        })
    }
}
