//! Gradients of linear layers and convolutions: of the input by the same products with transposed weights, of the weights, where
//! they are trained, by one matrix product.

use candle_core::{DType, Result, Tensor, bail};

use super::Recorder;
use crate::{Kernel, Layout, Padding, Terms, Weight, Window};

/// The sums over all rows but the last dimension of `[.., O]`: `[O]`.
fn row_sums(kernel: &dyn Kernel, grad: &Tensor) -> Result<Tensor> {
    let width = grad.dim(candle_core::D::Minus1)?;
    let rows = grad.elem_count() / width.max(1);
    let rows = grad.reshape((1, rows, width))?;
    kernel.backward().row_sums(&rows)?.flatten_all()
}

pub(super) fn record_linear(
    recorder: &Recorder,
    x: &Tensor,
    w: &Weight,
    packed: Weight,
    terms: Terms<'_>,
    y: Tensor,
) -> Result<Tensor> {
    let inner = recorder.inner.clone();
    let (x_id, own) = (x.id(), x.detach());
    let weight = w.trained().map(Tensor::id);
    let (bias, residual) = (terms.bias.map(Tensor::id), terms.residual.map(Tensor::id));
    let of = [Some(x), w.trained(), terms.bias, terms.residual];
    let of: Vec<_> = of.into_iter().flatten().collect();
    recorder.tape.record(y, &of, move |grad, gradients| {
        if gradients.wants(x_id) {
            let w = inner.transposed(&packed)?;
            gradients.add(x_id, inner.linear(grad, &w, Terms::default())?)?;
        }
        let grad_rows = || grad.flatten_to(grad.rank() - 2);
        if let Some(id) = weight.filter(|id| gradients.wants(*id)) {
            let rows = own.flatten_to(own.rank() - 2)?;
            let of = inner.backward().matmul_tn(&grad_rows()?, &rows)?;
            gradients.add(id, of)?;
        }
        if let Some(id) = bias.filter(|id| gradients.wants(*id)) {
            gradients.add(id, row_sums(&*inner, grad)?)?;
        }
        if let Some(id) = residual {
            gradients.add(id, grad.clone())?;
        }
        Ok(())
    })
}

pub(super) fn record_conv2d(
    recorder: &Recorder,
    x: &Tensor,
    w: &Weight,
    packed: Weight,
    window: Window,
    terms: Terms<'_>,
    y: Tensor,
) -> Result<Tensor> {
    let inner = recorder.inner.clone();
    let (x_id, own) = (x.id(), x.detach());
    let weight = w.trained().map(Tensor::id);
    let ids = [terms.bias, terms.image, terms.residual].map(|t| t.map(Tensor::id));
    let of = [
        Some(x),
        w.trained(),
        terms.bias,
        terms.image,
        terms.residual,
    ];
    let of: Vec<_> = of.into_iter().flatten().collect();
    recorder.tape.record(y, &of, move |grad, gradients| {
        let [bias, image, residual] = ids;
        let layout = inner.layout();
        if gradients.wants(x_id) {
            let size = layout.grid(&own)?;
            let of = conv2d_input(&*inner, grad, &packed, window, size)?;
            gradients.add(x_id, of)?;
        }
        if let Some(id) = weight.filter(|id| gradients.wants(*id)) {
            let backward = inner.backward();
            let of = match backward.conv2d_weight(grad, &own, packed.window, window)? {
                Some(of) => of,
                None => conv2d_weight(&*inner, grad, &own, packed.window, window)?,
            };
            gradients.add(id, of)?;
        }
        let wanted = |id: Option<candle_core::TensorId>, gradients: &super::Gradients| {
            id.filter(|id| gradients.wants(*id))
        };
        if let Some(id) = wanted(bias, gradients) {
            gradients.add(id, row_sums(&*inner, &layout.tokens(grad)?)?)?;
        }
        if let Some(id) = wanted(image, gradients) {
            let of = inner.backward().row_sums(&layout.tokens(grad)?)?;
            gradients.add(id, of)?;
        }
        if let Some(id) = residual {
            gradients.add(id, grad.clone())?;
        }
        Ok(())
    })
}

/// The dimensions of height and width.
fn grid_dims(layout: Layout) -> (usize, usize) {
    match layout {
        Layout::ChannelsFirst => (2, 3),
        Layout::ChannelsLast => (1, 2),
    }
}

/// The gradient of a convolution's input of that size, from that of its result: the convolution of the gradient, its pixels
/// moved `stride` apart, with the window turned round.
fn conv2d_input(
    kernel: &dyn Kernel,
    grad: &Tensor,
    w: &Weight,
    window: Window,
    size: (usize, usize),
) -> Result<Tensor> {
    let layout = kernel.layout();
    let (height, width) = window.enlarged.unwrap_or(size);
    let (kh, kw) = w.window;
    let (rows, columns) = grid_dims(layout);
    let apart = spread(&spread(grad, rows, window.stride)?, columns, window.stride)?;
    let (h, w_) = layout.grid(&apart)?;
    let Padding { top, left, .. } = window.padding;
    if top >= kh || left >= kw {
        bail!("a padding of {top} and {left} for a window of {kh} x {kw} has no gradient here");
    }
    let padding = Padding {
        top: kh - 1 - top,
        left: kw - 1 - left,
        bottom: height + top - h,
        right: width + left - w_,
    };
    let turned = kernel.transposed(w)?;
    let of = kernel.conv2d(&apart, &turned, Window::padded(padding), Terms::default())?;
    match window.enlarged {
        Some(_) => {
            let of = gathered(&of, rows, size.0)?;
            gathered(&of, columns, size.1)
        }
        None => Ok(of),
    }
}

/// Puts `stride - 1` zeros between neighbours along a dimension.
fn spread(x: &Tensor, dim: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let mut shape = x.dims().to_vec();
    shape[dim] *= stride;
    let len = (x.dim(dim)? - 1) * stride + 1;
    x.unsqueeze(dim + 1)?
        .pad_with_zeros(dim + 1, 0, stride - 1)?
        .reshape(shape)?
        .narrow(dim, 0, len)?
        .contiguous()
}

/// The sums of those along a dimension that nearest enlargement made of one: index i of the larger came from
/// floor(i * size / larger).
fn gathered(x: &Tensor, dim: usize, size: usize) -> Result<Tensor> {
    let larger = x.dim(dim)?;
    let mut shape = x.dims().to_vec();
    if larger == 2 * size {
        shape[dim] = size;
        shape.insert(dim + 1, 2);
        let pairs = x.reshape(shape)?;
        let half = |i| pairs.narrow(dim + 1, i, 1)?.squeeze(dim + 1);
        return half(0)? + half(1)?;
    }
    shape[dim] = size;
    let from: Vec<u32> = (0..larger).map(|i| (i * size / larger) as u32).collect();
    let from = Tensor::new(from, x.device())?;
    Tensor::zeros(shape, DType::F32, x.device())?.index_add(&from, x, dim)
}

/// The gradient `[O, C, kh, kw]` of a convolution's weight.
fn conv2d_weight(
    kernel: &dyn Kernel,
    grad: &Tensor,
    x: &Tensor,
    (kh, kw): (usize, usize),
    window: Window,
) -> Result<Tensor> {
    let layout = kernel.layout();
    let (rows, columns) = grid_dims(layout);
    let (out_h, out_w) = layout.grid(grad)?;
    let mut x = x.clone();
    if let Some((h, w)) = window.enlarged {
        x = enlarged(&enlarged(&x, rows, h)?, columns, w)?;
    }
    let Padding {
        top,
        bottom,
        left,
        right,
    } = window.padding;
    let x = x
        .pad_with_zeros(rows, top, bottom)?
        .pad_with_zeros(columns, left, right)?;
    let stride = window.stride;
    let along = |x: &Tensor, dim: usize, first: usize, count: usize| -> Result<Tensor> {
        if stride == 1 {
            return x.narrow(dim, first, count);
        }
        let index: Vec<u32> = (0..count).map(|i| (first + i * stride) as u32).collect();
        x.index_select(&Tensor::new(index, x.device())?, dim)
    };
    // `[pixels, O]` of all images.
    let tokens = layout.tokens(grad)?.flatten_to(1)?;
    let mut taps = Vec::with_capacity(kh * kw);
    for y in 0..kh {
        let lines = along(&x, rows, y, out_h)?;
        for column in 0..kw {
            let under = along(&lines, columns, column, out_w)?.contiguous()?;
            let under = layout.tokens(&under)?.flatten_to(1)?;
            taps.push(kernel.backward().matmul_tn(&tokens, &under)?);
        }
    }
    let (outputs, inputs) = taps[0].dims2()?;
    Tensor::stack(&taps, 2)?
        .contiguous()?
        .reshape((outputs, inputs, kh, kw))
}

fn enlarged(x: &Tensor, dim: usize, to: usize) -> Result<Tensor> {
    let from = x.dim(dim)?;
    let index: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
    x.index_select(&Tensor::new(index, x.device())?, dim)
}
