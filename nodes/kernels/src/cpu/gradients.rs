//! Gradients of weights on the CPU: products over all rows of a batch, shared out among the team's threads by parts of the result
//! that the shapes alone decide, so that the number of threads changes no bit.

use candle_core::{Device, Result, Tensor, bail};

use super::buffers::{Shared, Unfilled, written};
use super::data::with_data;
use super::matrix::{Rows, transposed_product};
use super::simd::Isa;
use super::{team, transpose};
use crate::Window;

/// Rows and columns of a part of a result: enough that its operands are packed for many products.
const PART: (usize, usize) = (64, 256);
/// Rows that are summed in one go.
const RUN: usize = 256;

/// `a^T b` of rows a `[R, M]` and b `[R, N]`: `[M, N]`.
pub(super) fn product(isa: Isa, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((rows, m), (others, n)) = (a.dims2()?, b.dims2()?);
    if rows != others || rows * m * n == 0 {
        bail!("the gradient of a weight of {rows} rows of {m} and {others} rows of {n}");
    }
    let out = with_data(a, |a| {
        with_data(b, |b| {
            let parts = n.div_ceil(PART.1);
            let fill = |out: Unfilled<'_>| {
                let out = Shared::of(out);
                team::for_each(m.div_ceil(PART.0) * parts, |task| {
                    let (row, column) = (task / parts * PART.0, task % parts * PART.1);
                    let size = (PART.0.min(m - row), PART.1.min(n - column), rows);
                    let (a, b) = (Rows::new(a, row, m), Rows::new(b, column, n));
                    // SAFETY: the part is inside of m rows of n, and this task's alone.
                    unsafe {
                        let to = out.data().add(row * n + column);
                        transposed_product(isa, size, a, b, false, (to, n));
                    }
                });
                Ok(())
            };
            // SAFETY: the parts make up the result, and each is written by its task.
            let (out, ()) = unsafe { written(m * n, fill)? };
            Ok(out)
        })
    })?;
    Tensor::from_vec(out, (m, n), &Device::Cpu)
}

/// The sums over rows of x `[B, R, C]`: `[B, C]`.
pub(super) fn row_sums(x: &Tensor) -> Result<Tensor> {
    let (images, rows, width) = x.dims3()?;
    if x.elem_count() == 0 {
        bail!("the sums over rows of {:?}", x.dims());
    }
    let runs = rows.div_ceil(RUN);
    let mut sums = vec![0f32; images * runs * width];
    with_data(x, |x| {
        team::for_each_chunk(&mut sums, width, |task, to| {
            let first = (task / runs) * rows + task % runs * RUN;
            let count = RUN.min(rows - task % runs * RUN);
            for row in x[first * width..][..count * width].chunks_exact(width) {
                for (to, x) in to.iter_mut().zip(row) {
                    *to += x;
                }
            }
        });
        Ok(())
    })?;
    let mut out = Vec::with_capacity(images * width);
    for runs in sums.chunks_exact(runs * width) {
        let (first, rest) = runs.split_at(width);
        let mut sum = first.to_vec();
        for run in rest.chunks_exact(width) {
            sum.iter_mut().zip(run).for_each(|(to, x)| *to += x);
        }
        out.extend(sum);
    }
    Tensor::from_vec(out, (images, width), &Device::Cpu)
}

/// The gradient `[O, C, kh, kw]` of the weight of a convolution of stride 1 without enlargement, grad `[B, H', W', O]` and x
/// `[B, H, W, C]`; `None` for others.
///
/// Both are copied once with room around, so that a step to the next pixel of either is a step to its next row, whatever the tap: then
/// the gradient of a tap is one product an image, and nothing the size of kernel x image is ever made.
pub(super) fn convolution(
    isa: Isa,
    grad: &Tensor,
    x: &Tensor,
    (kh, kw): (usize, usize),
    window: Window,
) -> Result<Option<Tensor>> {
    if window.stride != 1 || window.enlarged.is_some() {
        return Ok(None);
    }
    let ((images, high, wide, outputs), (others, h, w, inputs)) = (grad.dims4()?, x.dims4()?);
    let padding = window.padding;
    let (rows, pitch) = (
        h + padding.top + padding.bottom,
        w + padding.left + padding.right,
    );
    let fits = images == others && rows == high + kh - 1 && pitch == wide + kw - 1;
    if !fits || grad.elem_count() * inputs * kh * kw == 0 {
        bail!(
            "the gradient {:?} of a convolution of {:?} by {kh} x {kw}",
            grad.dims(),
            x.dims()
        );
    }
    if (kh, kw) == (1, 1) && (rows, pitch) == (h, w) {
        let flat = |t: &Tensor, width| t.reshape((images * high * wide, width));
        let of = product(isa, &flat(grad, outputs)?, &flat(x, inputs)?)?;
        return of.reshape((outputs, inputs, 1, 1)).map(Some);
    }
    // Lines of the gradient end in as many zeros as the window reaches over; those behind the last line are left out.
    let grad = with_data(grad, |grad| {
        Ok(padded(grad, (high, wide), (0, 0), (high, pitch), outputs))
    })?;
    let x = with_data(x, |x| {
        Ok(padded(
            x,
            (h, w),
            (padding.top, padding.left),
            (rows, pitch),
            inputs,
        ))
    })?;
    let depth = high * pitch - (kw - 1);
    let (taps, parts) = (kh * kw, outputs.div_ceil(PART.0));
    let mut sums = Vec::with_capacity(taps * outputs * inputs);
    let room = Shared::of(&mut sums.spare_capacity_mut()[..taps * outputs * inputs]);
    team::for_each(taps * parts, |task| {
        let (tap, row) = (task / parts, task % parts * PART.0);
        let shift = (tap / kw * pitch + tap % kw) * inputs;
        let size = (PART.0.min(outputs - row), inputs, depth);
        for image in 0..images {
            let a = Rows::new(&grad, image * high * pitch * outputs + row, outputs);
            let b = Rows::new(&x, image * rows * pitch * inputs + shift, inputs);
            // SAFETY: the part is whole rows inside of the tap's `outputs` rows, and this task's alone; the first image fills it.
            unsafe {
                let to = room.data().add((tap * outputs + row) * inputs);
                transposed_product(isa, size, a, b, image > 0, (to, inputs));
            }
        }
    });
    // SAFETY: every part of every tap was written, by at least one image.
    unsafe { sums.set_len(taps * outputs * inputs) };
    // SAFETY: all of it is written.
    let (out, ()) = unsafe {
        written(sums.len(), |out| {
            transpose::transpose(&sums, (taps, outputs * inputs), out);
            Ok(())
        })?
    };
    Tensor::from_vec(out, (outputs, inputs, kh, kw), &Device::Cpu).map(Some)
}

/// Images of `size` pixels of `width` numbers in the midst of zeros, of `room` pixels.
fn padded(
    x: &[f32],
    size: (usize, usize),
    at: (usize, usize),
    room: (usize, usize),
    width: usize,
) -> Vec<f32> {
    let image = size.0 * size.1 * width;
    let images = x.len() / image;
    let mut out = vec![0f32; images * room.0 * room.1 * width];
    team::for_each_chunk(&mut out, room.0 * room.1 * width, |index, to| {
        let lines = x[index * image..][..image].chunks_exact(size.1 * width);
        let to = to.chunks_exact_mut(room.1 * width).skip(at.0);
        for (line, to) in lines.zip(to) {
            to[at.1 * width..][..line.len()].copy_from_slice(line);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::{Backward, Cpu, Kernel, Layout, Padding, Plain, Terms, Weight};

    /// Numbers between -1 and 1 that float16 has, others for each seed.
    fn numbers(seed: usize, shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1024.0 - 0.97;
        let all: Vec<f32> = (0..count)
            .map(|i| (number(i) * 64.0).round() / 64.0)
            .collect();
        Tensor::from_vec(all, shape, &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn near(found: &Tensor, due: &Tensor) {
        assert_eq!(found.dims(), due.dims());
        let off = (found - due).unwrap().abs().unwrap().max_all().unwrap();
        let most = due.abs().unwrap().max_all().unwrap();
        let [off, most] = [off, most].map(|t| t.to_scalar::<f32>().unwrap());
        assert!(off <= 2e-6 * most.max(1.0), "{off} of {most}");
    }

    fn bits(t: &Tensor) -> Vec<u32> {
        let all: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
        all.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn products_and_sums_of_rows_equal_the_plain_ones_on_any_number_of_threads() {
        let pool = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
        };
        let (one, three) = (pool(1), pool(3));
        for (rows, m, n) in [(1, 1, 1), (300, 70, 300), (513, 4, 320), (77, 200, 3)] {
            let (a, b) = (numbers(1, &[rows, m]), numbers(2, &[rows, n]));
            let own = one.install(|| product(Isa::best(), &a, &b).unwrap());
            near(&own, &Plain.matmul_tn(&a, &b).unwrap());
            assert_eq!(
                bits(&own),
                bits(&three.install(|| product(Isa::best(), &a, &b).unwrap()))
            );
            for isa in Isa::available() {
                let by = product(isa, &a, &b).unwrap();
                near(&by, &own);
                assert!(!isa.fuses() || bits(&by) == bits(&own), "{isa:?}");
            }
            let x = numbers(3, &[2, rows, n]);
            let own = one.install(|| row_sums(&x).unwrap());
            near(&own, &Plain.row_sums(&x).unwrap());
            assert_eq!(bits(&own), bits(&three.install(|| row_sums(&x).unwrap())));
        }
        assert!(product(Isa::best(), &numbers(1, &[3, 2]), &numbers(2, &[4, 2])).is_err());
        assert!(row_sums(&numbers(1, &[1, 0, 2])).is_err());
    }

    /// The gradient of a weight by its definition, in f64.
    fn by_definition(grad: &Tensor, x: &Tensor, (kh, kw): (usize, usize), p: Padding) -> Tensor {
        let (images, high, wide, outputs) = grad.dims4().unwrap();
        let (_, h, w, inputs) = x.dims4().unwrap();
        let all = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (g, x) = (all(grad), all(x));
        let mut out = vec![0f64; outputs * inputs * kh * kw];
        for image in 0..images {
            for (y, c) in (0..high).flat_map(|y| (0..wide).map(move |c| (y, c))) {
                for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                    let (from_y, from_x) = (y + ky, c + kx);
                    if from_y < p.top
                        || from_x < p.left
                        || from_y - p.top >= h
                        || from_x - p.left >= w
                    {
                        continue;
                    }
                    let at = ((image * h + from_y - p.top) * w + from_x - p.left) * inputs;
                    let to = ((image * high + y) * wide + c) * outputs;
                    for (o, i) in (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))) {
                        out[((o * inputs + i) * kh + ky) * kw + kx] +=
                            f64::from(g[to + o]) * f64::from(x[at + i]);
                    }
                }
            }
        }
        let out: Vec<f32> = out.into_iter().map(|sum| sum as f32).collect();
        Tensor::from_vec(out, (outputs, inputs, kh, kw), &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_of_a_convolutions_weight_are_those_of_its_definition() {
        let around = |all| Padding {
            top: all,
            bottom: all,
            left: all,
            right: all,
        };
        let uneven = Padding {
            top: 0,
            bottom: 2,
            left: 1,
            right: 0,
        };
        for (window, padding, outputs, inputs) in [
            ((3, 3), around(1), 70, 5),
            ((3, 3), around(0), 3, 66),
            ((1, 1), around(0), 8, 9),
            ((1, 1), around(1), 2, 3),
            ((2, 3), uneven, 4, 7),
        ] {
            let (h, w) = (5, 6);
            let high = h + padding.top + padding.bottom + 1 - window.0;
            let wide = w + padding.left + padding.right + 1 - window.1;
            let (grad, x) = (
                numbers(1, &[2, high, wide, outputs]),
                numbers(2, &[2, h, w, inputs]),
            );
            let of = Window::padded(padding);
            let found = convolution(Isa::best(), &grad, &x, window, of)
                .unwrap()
                .unwrap();
            near(&found, &by_definition(&grad, &x, window, padding));
            let strided = Window { stride: 2, ..of };
            assert!(
                convolution(Isa::best(), &grad, &x, window, strided)
                    .unwrap()
                    .is_none()
            );
        }
        let of = Window::padded(around(1));
        assert!(
            convolution(
                Isa::best(),
                &numbers(1, &[1, 4, 4, 2]),
                &numbers(2, &[1, 5, 4, 2]),
                (3, 3),
                of
            )
            .is_err()
        );
    }

    /// Float32 weights are transposed when they are read, of others a copy is: both equal the plain ones.
    #[test]
    fn products_with_transposed_weights_equal_the_plain_ones() {
        let cpu = Cpu::default();
        for (outputs, inputs, window) in [
            (70, 130, 1),
            (128, 64, 1),
            (1, 3, 1),
            (70, 66, 3),
            (64, 128, 3),
        ] {
            let mut shape = vec![outputs, inputs];
            shape.extend(if window == 3 { vec![3, 3] } else { vec![] });
            let w = numbers(1, &shape);
            let plain = Plain.transposed(&Weight::new(&w, &Plain).unwrap()).unwrap();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let own = cpu
                    .transposed(&Weight::new(&w.to_dtype(dtype).unwrap(), &cpu).unwrap())
                    .unwrap();
                if window == 1 {
                    // Few rows, and so many that a weight is transposed before.
                    for rows in [45, 1030] {
                        let grad = numbers(2, &[2, rows, outputs]);
                        let due = Plain.linear(&grad, &plain, Terms::default()).unwrap();
                        near(&cpu.linear(&grad, &own, Terms::default()).unwrap(), &due);
                    }
                    let again = cpu.transposed(&own).unwrap();
                    let x = numbers(3, &[1, 7, inputs]);
                    let plain =
                        Plain.linear(&x, &Weight::new(&w, &Plain).unwrap(), Terms::default());
                    near(
                        &cpu.linear(&x, &again, Terms::default()).unwrap(),
                        &plain.unwrap(),
                    );
                    continue;
                }
                // Of 20 x 20 pixels in fewer multiplications, of 5 x 5 by sums.
                for side in [20, 5] {
                    let grad = numbers(2, &[2, outputs, side, side]);
                    let padding = Padding {
                        top: 1,
                        bottom: 1,
                        left: 1,
                        right: 1,
                    };
                    let of = Window::padded(padding);
                    let due = Plain.conv2d(&grad, &plain, of, Terms::default()).unwrap();
                    let grad = Layout::ChannelsLast.images(&grad).unwrap();
                    let found = cpu.conv2d(&grad, &own, of, Terms::default()).unwrap();
                    let found = Layout::ChannelsLast.planes(&found).unwrap();
                    // The sums of fewer multiplications are a little less exact (`winograd`).
                    let off = (found - &due).unwrap().abs().unwrap().max_all().unwrap();
                    let most = due.abs().unwrap().max_all().unwrap();
                    let [off, most] = [off, most].map(|t| t.to_scalar::<f32>().unwrap());
                    assert!(off < 2e-5 * most, "{off} of {most}, {dtype:?}, {side}");
                }
            }
        }
    }
}
