//! The CPU kernels: products through the `gemm` crate, everything around them in as few passes as it takes.
//!
//! The unit of work is one image, or a block of rows of one image whose size is a constant, so that no sum depends on
//! the batch or on the number of threads (law 6 of the method).

mod simd;

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::{GroupNormSpec, Kernel, Padding};

pub use simd::Isa;

/// The kernels for the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    isa: Isa,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::with(Isa::best())
    }
}

impl Cpu {
    /// The kernels compiled for an instruction set, one of [`Isa::available`].
    #[must_use]
    pub fn with(isa: Isa) -> Self {
        assert!(
            Isa::available().contains(&isa),
            "this processor has no {isa:?}"
        );
        Self { isa }
    }
}

/// Inner length of a product that is summed in one go.
const SUM_BLOCK: usize = 128;

/// Query rows that one task of [`Cpu::attention`] handles: its scores against 4096 keys are 1 MiB, about one L2 cache.
const ATTENTION_ROWS: usize = 64;

/// Gives `f` the elements of `t` in row-major order.
fn with_data<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    // Weights may be held in half precision to save memory: they are widened for each use.
    let t = match t.dtype() {
        DType::F32 => t.contiguous()?,
        DType::F16 | DType::BF16 => t.to_dtype(DType::F32)?.contiguous()?,
        other => bail!("the CPU kernels compute in float32, not {other:?}"),
    };
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("the CPU kernels were given a tensor of another device");
    };
    let start = layout.start_offset();
    f(&storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()])
}

/// The same for an optional tensor.
fn with_optional<R>(t: Option<&Tensor>, f: impl FnOnce(Option<&[f32]>) -> Result<R>) -> Result<R> {
    match t {
        Some(t) => with_data(t, |data| f(Some(data))),
        None => f(None),
    }
}

/// A matrix in a slice: rows x columns with strides in elements.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A dense row-major matrix.
    fn dense(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows are `row_stride` apart.
    fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// One past the largest index that the matrix reaches.
    fn reach(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// Whether a product may use the thread pool or is itself one of many parallel tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Threads {
    One,
    All,
}

/// `dst = scale a b`, or `dst += scale a b` when `accumulate`; dst is row-major with rows `row_stride` apart.
fn product(
    dst: &mut [f32],
    row_stride: usize,
    accumulate: bool,
    scale: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    threads: Threads,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert_eq!(a.columns, b.rows, "inner dimensions");
    // Inside a block products are summed one after another; the blocks' sums are added up. Rounding errors then grow with
    // the root of the block's length and of their number, not of k, as in the blocked kernels of torch.
    for first in (0..k.max(1)).step_by(SUM_BLOCK) {
        let length = SUM_BLOCK.min(k - first);
        block(
            dst,
            row_stride,
            accumulate || first > 0,
            scale,
            a,
            b,
            first..first + length,
            threads,
        );
    }
}

/// [`product`] over the inner indices of `inner` alone, its arguments checked.
#[allow(clippy::too_many_arguments)]
fn block(
    dst: &mut [f32],
    row_stride: usize,
    accumulate: bool,
    scale: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    inner: std::ops::Range<usize>,
    threads: Threads,
) {
    let (m, n, k) = (a.rows, b.columns, inner.len());
    assert!(inner.end <= a.columns && inner.end <= b.rows);
    assert!(a.reach() <= a.data.len() && b.reach() <= b.data.len());
    assert!(row_stride >= n && (m - 1) * row_stride + n <= dst.len());
    let a_data = &a.data[(inner.start * a.column_stride).min(a.data.len())..];
    let b_data = &b.data[(inner.start * b.row_stride).min(b.data.len())..];
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: gemm reads a at (i row_stride + p column_stride), i < m, p in inner, whose largest index is below reach(),
    // checked above to be inside a.data (a_data begins at p = inner.start); the same for b. It writes dst at (i row_stride + j), i < m, j < n, checked above to be
    // inside dst; rows do not overlap as row_stride >= n. dst is a unique borrow, so it aliases neither source. Strides
    // come from slice lengths and so fit isize.
    #[allow(clippy::cast_possible_wrap)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            row_stride as isize,
            accumulate,
            a_data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b_data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Runs `f(image, its output)` for each image: side by side when there is an image for each thread, else in turn with
/// all threads inside each product.
fn for_each_image(out: &mut [f32], images: usize, f: impl Fn(usize, &mut [f32], Threads) + Sync) {
    if images == 0 || out.is_empty() {
        return;
    }
    let size = out.len() / images;
    if images >= rayon::current_num_threads() {
        out.par_chunks_mut(size)
            .enumerate()
            .for_each(|(b, out)| f(b, out, Threads::One));
    } else {
        out.chunks_mut(size)
            .enumerate()
            .for_each(|(b, out)| f(b, out, Threads::All));
    }
}

/// `exp(x)` for x <= 0 to 2 units in the last place; branch-free, so that the compiler makes vectors of it, and without
/// fused operations, so that every processor gives the same bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = x.max(-87.0); // below: 1.6e-38, nothing beside the softmax's largest term, which is 1
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts (Cody and Waite), so that the remainder keeps its low bits.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    // Taylor's series to r^7 / 7!, |r| <= ln 2 / 2.
    let p = 1.0
        + r * (1.0
            + r * (0.5
                + r * (1.0 / 6.0
                    + r * (1.0 / 24.0
                        + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)))))));
    let exponent = (shifted.to_bits() << 23).wrapping_add(0x3f80_0000);
    p * f32::from_bits(exponent)
}

/// `exp` for any sign, for the logistic function.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    // 1 / (1 + e^-x) from e^-|x|, which cannot overflow.
    let e = exp(-x.abs());
    let p = 1.0 / (1.0 + e);
    if x >= 0.0 { p } else { e * p }
}

/// erf by a rational function in x^2 on [-4, 4] (the minimax fit used by Eigen and XLA), 4e-7 at most off.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = ((((((-2.726_142_3e-10 * s + 2.770_681_4e-8) * s - 2.101_024_1e-6) * s
        - 5.692_506_3e-5)
        * s
        - 7.349_906_4e-4)
        * s
        - 2.954_599_7e-3)
        * s
        - 1.609_603_3e-2)
        * x;
    let q = (((-1.456_607_2e-5 * s - 2.133_740_6e-4) * s - 1.682_827e-3) * s - 7.373_329e-3) * s
        - 1.426_473_9e-2;
    p / q
}

/// Turns each row of `scores` into its softmax.
fn softmax_rows(scores: &mut [f32], columns: usize) {
    for row in scores.chunks_exact_mut(columns) {
        let max = lanes_max(row);
        for x in row.iter_mut() {
            *x = exp(*x - max);
        }
        let inverse = 1.0 / lanes_sum(row) as f32;
        for x in row.iter_mut() {
            *x *= inverse;
        }
    }
}

/// The largest element, eight at a time.
fn lanes_max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 8];
    let chunks = x.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(x);
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |a, &b| a.max(b))
}

/// The sum in f64, in eight lanes: an order that depends on the length alone.
fn lanes_sum(x: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = x.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(x);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
}

/// Mean and 1 / sqrt(variance + eps), in two passes.
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = lanes_sum(x) / n;
    let mut lanes = [0f64; 8];
    let chunks = x.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            let d = f64::from(x) - mean;
            *lane += d * d;
        }
    }
    let rest: f64 = rest.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let variance = (lanes.iter().sum::<f64>() + rest) / n;
    (mean as f32, (1.0 / (variance + eps).sqrt()) as f32)
}

/// The geometry of a convolution of one image.
#[derive(Clone, Copy)]
struct Geometry {
    height: usize,
    width: usize,
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
    out: (usize, usize),
}

/// One image as columns: `[C kh kw, oh ow]`, row-major, zeros where the window is outside.
fn image_to_columns(x: &[f32], columns: &mut [f32], g: Geometry, threads: Threads) {
    let (kh, kw) = g.kernel;
    let pixels = g.out.0 * g.out.1;
    let fill = |(row, columns): (usize, &mut [f32])| {
        let (c, i, j) = (row / (kh * kw), row / kw % kh, row % kw);
        let plane = &x[c * g.height * g.width..][..g.height * g.width];
        for (oy, line) in columns.chunks_exact_mut(g.out.1).enumerate() {
            let y = (oy * g.stride + i).wrapping_sub(g.padding.top);
            if y >= g.height {
                line.fill(0.0);
                continue;
            }
            let source = &plane[y * g.width..][..g.width];
            if g.stride == 1 {
                // Columns ox with 0 <= ox + j - left < width are a plain copy.
                let first = g.padding.left.saturating_sub(j).min(line.len());
                let last = (g.width + g.padding.left)
                    .saturating_sub(j)
                    .clamp(first, line.len());
                line[..first].fill(0.0);
                line[last..].fill(0.0);
                let from = first + j - g.padding.left.min(first + j);
                line[first..last].copy_from_slice(&source[from..from + (last - first)]);
            } else {
                for (ox, value) in line.iter_mut().enumerate() {
                    let x = (ox * g.stride + j).wrapping_sub(g.padding.left);
                    *value = source.get(x).copied().unwrap_or(0.0);
                }
            }
        }
    };
    match threads {
        Threads::All => columns
            .par_chunks_exact_mut(pixels)
            .with_min_len(16)
            .enumerate()
            .for_each(fill),
        Threads::One => columns.chunks_exact_mut(pixels).enumerate().for_each(fill),
    }
}

impl Kernel for Cpu {
    fn name(&self) -> &'static str {
        "cpu-gemm"
    }

    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (images, n, k) = x.dims3()?;
        let (o, inner) = w.dims2()?;
        if inner != k {
            bail!("linear: an input of {k} features for weights of {inner}");
        }
        let mut out = vec![0f32; images * n * o];
        with_data(x, |x| {
            with_data(w, |w| {
                with_optional(bias, |bias| {
                    let w = Matrix::dense(w, o, k).transposed();
                    for_each_image(&mut out, images, |b, out, threads| {
                        if let Some(bias) = bias {
                            out.chunks_exact_mut(o)
                                .for_each(|row| row.copy_from_slice(bias));
                        }
                        let x = Matrix::dense(&x[b * n * k..][..n * k], n, k);
                        product(out, o, bias.is_some(), 1.0, x, w, threads);
                    });
                    Ok(())
                })
            })
        })?;
        Tensor::from_vec(out, (images, n, o), &Device::Cpu)
    }

    fn conv2d(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Result<Tensor> {
        let (images, channels, height, width) = x.dims4()?;
        let (o, c, kh, kw) = w.dims4()?;
        let (padded_h, padded_w) = (
            height + padding.top + padding.bottom,
            width + padding.left + padding.right,
        );
        if c != channels || padded_h < kh || padded_w < kw || stride == 0 {
            bail!(
                "convolution: weights {:?} do not fit an input of {:?}",
                w.dims(),
                x.dims()
            );
        }
        let g = Geometry {
            height,
            width,
            kernel: (kh, kw),
            stride,
            padding,
            out: ((padded_h - kh) / stride + 1, (padded_w - kw) / stride + 1),
        };
        let (pixels, k) = (g.out.0 * g.out.1, channels * kh * kw);
        let pointwise = kh == 1 && kw == 1 && stride == 1 && padding == Padding::same(0);
        let mut out = vec![0f32; images * o * pixels];
        with_data(x, |x| {
            with_data(w, |w| {
                with_optional(bias, |bias| {
                    let w = Matrix::dense(w, o, k);
                    for_each_image(&mut out, images, |b, out, threads| {
                        if let Some(bias) = bias {
                            for (plane, &bias) in out.chunks_exact_mut(pixels).zip(bias) {
                                plane.fill(bias);
                            }
                        }
                        let x = &x[b * channels * height * width..][..channels * height * width];
                        let mut multiply = |columns: &[f32]| {
                            let columns = Matrix::dense(columns, k, pixels);
                            product(out, pixels, bias.is_some(), 1.0, w, columns, threads);
                        };
                        if pointwise {
                            multiply(x);
                        } else {
                            let mut columns = vec![0f32; k * pixels];
                            image_to_columns(x, &mut columns, g, threads);
                            multiply(&columns);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        Tensor::from_vec(out, (images, o, g.out.0, g.out.1), &Device::Cpu)
    }

    fn group_norm(&self, x: &Tensor, norm: &GroupNormSpec<'_>, silu: bool) -> Result<Tensor> {
        let channels = x.dim(1)?;
        if norm.groups == 0 || channels % norm.groups != 0 {
            bail!(
                "group norm: {channels} channels do not make {} groups",
                norm.groups
            );
        }
        let pixels: usize = x.dims()[2..].iter().product();
        let per_group = channels / norm.groups;
        let mut out = vec![0f32; x.elem_count()];
        with_data(x, |x| {
            with_data(norm.weight, |weight| {
                with_data(norm.bias, |bias| {
                    out.par_chunks_exact_mut(per_group * pixels)
                        .zip(x.par_chunks_exact(per_group * pixels))
                        .enumerate()
                        .for_each(|(index, (out, x))| {
                            let (mean, inverse) = moments(x, norm.eps);
                            let first = index % norm.groups * per_group;
                            for (c, (out, x)) in out
                                .chunks_exact_mut(pixels)
                                .zip(x.chunks_exact(pixels))
                                .enumerate()
                            {
                                let scale = weight[first + c] * inverse;
                                let shift = bias[first + c] - mean * scale;
                                for (out, &x) in out.iter_mut().zip(x) {
                                    let y = x * scale + shift;
                                    *out = if silu { y * sigmoid(y) } else { y };
                                }
                            }
                        });
                    Ok(())
                })
            })
        })?;
        Tensor::from_vec(out, x.shape(), &Device::Cpu)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let width = x.dim(candle_core::D::Minus1)?;
        let mut out = vec![0f32; x.elem_count()];
        with_data(x, |x| {
            with_data(weight, |weight| {
                with_data(bias, |bias| {
                    out.par_chunks_exact_mut(width)
                        .zip(x.par_chunks_exact(width))
                        .with_min_len(32)
                        .for_each(|(out, x)| {
                            let (mean, inverse) = moments(x, eps);
                            for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias)
                            {
                                *out = (x - mean) * inverse * w + b;
                            }
                        });
                    Ok(())
                })
            })
        })?;
        Tensor::from_vec(out, x.shape(), &Device::Cpu)
    }

    fn geglu(&self, x: &Tensor) -> Result<Tensor> {
        let (images, n, width) = x.dims3()?;
        let half = width / 2;
        let mut out = vec![0f32; images * n * half];
        with_data(x, |x| {
            out.par_chunks_exact_mut(half)
                .zip(x.par_chunks_exact(width))
                .with_min_len(16)
                .for_each(|(out, x)| {
                    let (h, g) = x.split_at(half);
                    for ((out, &h), &g) in out.iter_mut().zip(h).zip(g) {
                        let gelu = 0.5 * g * (1.0 + erf(g * std::f32::consts::FRAC_1_SQRT_2));
                        *out = h * gelu;
                    }
                });
            Ok(())
        })?;
        Tensor::from_vec(out, (images, n, half), &Device::Cpu)
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
        let (images, n, c) = q.dims3()?;
        let (sources, m, _) = k.dims3()?;
        if k.dims() != v.dims() || k.dim(2)? != c || (sources != 1 && sources != images) {
            bail!(
                "attention: queries {:?}, keys {:?} and values {:?} do not fit",
                q.dims(),
                k.dims(),
                v.dims()
            );
        }
        let size = c / heads;
        let mut out = vec![0f32; images * n * c];
        with_data(q, |q| {
            with_data(k, |k| {
                with_data(v, |v| {
                    // Keys that take part are gathered once, so that the products stay dense.
                    let chosen: Vec<_> = (0..sources)
                        .map(|s| {
                            let (k, v) = (&k[s * m * c..][..m * c], &v[s * m * c..][..m * c]);
                            keys.map_or_else(
                                || (std::borrow::Cow::Borrowed(k), std::borrow::Cow::Borrowed(v)),
                                |keys| {
                                    (gather(k, &keys[s], c).into(), gather(v, &keys[s], c).into())
                                },
                            )
                        })
                        .collect();
                    let blocks = n.div_ceil(ATTENTION_ROWS);
                    let tasks: Vec<_> = out
                        .chunks_mut(n * c)
                        .enumerate()
                        .flat_map(|(b, image)| {
                            image
                                .chunks_mut(ATTENTION_ROWS * c)
                                .enumerate()
                                .map(move |(block, out)| (b, block, out))
                        })
                        .collect();
                    debug_assert_eq!(tasks.len(), blocks * images);
                    tasks.into_par_iter().for_each(|(b, block, out)| {
                        let rows = out.len() / c;
                        let q = &q[(b * n + block * ATTENTION_ROWS) * c..][..rows * c];
                        let (k, v) = &chosen[if sources == 1 { 0 } else { b }];
                        let m = k.len() / c;
                        let mut scores = vec![0f32; rows * m];
                        for head in 0..heads {
                            let offset = head * size;
                            let q = Matrix::strided(&q[offset..], rows, size, c);
                            let k = Matrix::strided(&k[offset..], m, size, c).transposed();
                            product(&mut scores, m, false, scale as f32, q, k, Threads::One);
                            softmax_rows(&mut scores, m);
                            let weights = Matrix::dense(&scores, rows, m);
                            let v = Matrix::strided(&v[offset..], m, size, c);
                            product(&mut out[offset..], c, false, 1.0, weights, v, Threads::One);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        Tensor::from_vec(out, (images, n, c), &Device::Cpu)
    }

    fn attention_map(&self, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
        let (images, n, c) = q.dims3()?;
        let (sources, m, _) = k.dims3()?;
        let size = c / heads;
        let mut out = vec![0f32; images * n * m];
        with_data(q, |q| {
            with_data(k, |k| {
                for_each_image(&mut out, images, |b, out, threads| {
                    let q = &q[b * n * c..][..n * c];
                    let k = &k[if sources == 1 { 0 } else { b } * m * c..][..m * c];
                    let mut scores = vec![0f32; n * m];
                    for head in 0..heads {
                        let q = Matrix::strided(&q[head * size..], n, size, c);
                        let k = Matrix::strided(&k[head * size..], m, size, c).transposed();
                        product(&mut scores, m, false, scale as f32, q, k, threads);
                        softmax_rows(&mut scores, m);
                        for (out, score) in out.iter_mut().zip(&scores) {
                            *out += score;
                        }
                    }
                    let inverse = 1.0 / heads as f32;
                    out.iter_mut().for_each(|x| *x *= inverse);
                });
                Ok(())
            })
        })?;
        Tensor::from_vec(out, (images, n, m), &Device::Cpu)
    }
}

/// The rows of a `[M, C]` matrix with these indices.
fn gather(x: &[f32], rows: &[u32], c: usize) -> Vec<f32> {
    rows.iter()
        .flat_map(|&row| &x[row as usize * c..][..c])
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, Plain};
    use super::*;
    use proptest::prelude::*;

    /// Numbers that differ from place to place, of about unit size.
    fn data(shape: &[usize], seed: u64) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count as u64)
            .map(|i| {
                let mut x = (i + 1)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .wrapping_add(seed << 32);
                x ^= x >> 29;
                x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
                x ^= x >> 32;
                (x % 4001) as f32 / 1000.0 - 2.0
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let scale = b
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            .max(1.0);
        let off = (a - b)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(off <= 1e-4 * scale, "off by {off} of {scale}");
    }

    fn bits(t: &Tensor) -> Vec<u32> {
        let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn exp_and_erf_are_close_to_libm() {
        for i in 0..=8000 {
            let x = -(i as f32) / 100.0;
            let expected = libm::exp(f64::from(x));
            let off = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(off < 3e-7, "exp({x}) off by {off}");
            let x = i as f32 / 1000.0 - 4.0;
            let off = (f64::from(erf(x)) - libm::erf(f64::from(x))).abs();
            assert!(off < 4e-7, "erf({x}) off by {off}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(sigmoid(1e30) == 1.0 && sigmoid(-1e30) < 1e-30);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn linear_equals_the_plain_version(b in 1usize..5, n in 1usize..70, k in 1usize..50, o in 1usize..40, seed in 0u64..99) {
            let (x, w, bias) = (data(&[b, n, k], seed), data(&[o, k], seed + 1), data(&[o], seed + 2));
            close(&Cpu::default().linear(&x, &w, Some(&bias)).unwrap(), &Plain.linear(&x, &w, Some(&bias)).unwrap());
            close(&Cpu::default().linear(&x, &w, None).unwrap(), &Plain.linear(&x, &w, None).unwrap());
        }

        #[test]
        fn convolution_equals_the_plain_version(
            b in 1usize..4, c in 1usize..9, o in 1usize..9, h in 1usize..14, w in 1usize..14,
            kernel in 1usize..4, stride in 1usize..3, top in 0usize..2, bottom in 0usize..2, left in 0usize..3, right in 0usize..2, seed in 0u64..99,
        ) {
            let padding = Padding { top, bottom, left, right };
            prop_assume!(h + top + bottom >= kernel && w + left + right >= kernel);
            let (x, k, bias) = (data(&[b, c, h, w], seed), data(&[o, c, kernel, kernel], seed + 1), data(&[o], seed + 2));
            close(&Cpu::default().conv2d(&x, &k, Some(&bias), stride, padding).unwrap(), &Plain.conv2d(&x, &k, Some(&bias), stride, padding).unwrap());
        }

        #[test]
        fn norms_and_geglu_equal_the_plain_versions(b in 1usize..4, groups in 1usize..5, per in 1usize..5, h in 1usize..9, w in 1usize..9, seed in 0u64..99) {
            let c = groups * per;
            let x = data(&[b, c, h, w], seed);
            let (weight, bias) = (data(&[c], seed + 1), data(&[c], seed + 2));
            let spec = GroupNormSpec { groups, eps: 1e-5, weight: &weight, bias: &bias };
            prop_assume!(per * h * w > 1);
            for silu in [false, true] {
                close(&Cpu::default().group_norm(&x, &spec, silu).unwrap(), &Plain.group_norm(&x, &spec, silu).unwrap());
            }
            let x = data(&[b, h * w, 2 * c + 2], seed);
            let (weight, bias) = (data(&[2 * c + 2], seed + 3), data(&[2 * c + 2], seed + 4));
            close(&Cpu::default().layer_norm(&x, &weight, &bias, 1e-5).unwrap(), &Plain.layer_norm(&x, &weight, &bias, 1e-5).unwrap());
            close(&Cpu::default().geglu(&x).unwrap(), &Plain.geglu(&x).unwrap());
        }

        #[test]
        fn attention_equals_the_plain_version(b in 1usize..4, shared: bool, n in 1usize..150, m in 1usize..90, heads in 1usize..5, size in 1usize..12, seed in 0u64..99, masked: bool) {
            let c = heads * size;
            let sources = if shared { 1 } else { b };
            let (q, k, v) = (data(&[b, n, c], seed), data(&[sources, m, c], seed + 1), data(&[sources, m, c], seed + 2));
            let keys: Vec<Vec<u32>> = (0..sources).map(|s| (0..m as u32).filter(|j| (j + s as u32) % 3 != 1 || *j == 0).collect()).collect();
            let keys = masked.then_some(keys.as_slice());
            close(&Cpu::default().attention(&q, &k, &v, heads, 0.4, keys).unwrap(), &Plain.attention(&q, &k, &v, heads, 0.4, keys).unwrap());
            close(&Cpu::default().attention_map(&q, &k, heads, 0.4).unwrap(), &Plain.attention_map(&q, &k, heads, 0.4).unwrap());
        }

        #[test]
        fn an_image_of_a_batch_equals_the_image_alone_bitwise(b in 2usize..6, n in 1usize..300, heads in 1usize..4, size in 1usize..33, o in 1usize..65, side in 1usize..20, seed in 0u64..99) {
            let c = heads * size;
            let x = data(&[b, n, c], seed);
            let (w, bias) = (data(&[o, c], seed + 1), data(&[o], seed + 2));
            let picture = data(&[b, size, side, side + 1], seed);
            let kernel = data(&[o, size, 3, 3], seed + 3);
            for i in 0..b {
                let one = x.narrow(0, i, 1).unwrap();
                let all = Cpu::default().linear(&x, &w, Some(&bias)).unwrap();
                prop_assert_eq!(bits(&all.narrow(0, i, 1).unwrap()), bits(&Cpu::default().linear(&one, &w, Some(&bias)).unwrap()));
                let all = Cpu::default().attention(&x, &x, &x, heads, 0.3, None).unwrap();
                prop_assert_eq!(bits(&all.narrow(0, i, 1).unwrap()), bits(&Cpu::default().attention(&one, &one, &one, heads, 0.3, None).unwrap()));
                let all = Cpu::default().conv2d(&picture, &kernel, Some(&bias), 1, Padding::same(1)).unwrap();
                let one = picture.narrow(0, i, 1).unwrap();
                prop_assert_eq!(bits(&all.narrow(0, i, 1).unwrap()), bits(&Cpu::default().conv2d(&one, &kernel, Some(&bias), 1, Padding::same(1)).unwrap()));
            }
        }
    }
}
