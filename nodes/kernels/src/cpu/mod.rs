//! The CPU kernels: products on vector and matrix units, everything around them in as few passes as it takes.
//!
//! An element is summed in an order that one image's shape decides, whichever rows, images and threads share the work, so
//! that no sum depends on the batch or on the number of threads (law 6 of the method).

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod backward;
mod buffers;
mod data;
mod geometry;
mod gradients;
mod images;
mod machine;
mod matrix;
mod packing;
mod pointwise;
mod products;
mod simd;
mod team;
mod terms;
mod transpose;
mod winograd;

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use std::sync::Arc;

use half::{bf16, f16};

use super::{Attended, Backward, GroupNormSpec, Kernel, Layout, Part, Terms, Weight, Window};
use buffers::written;
use data::{with_data, with_optional};
use machine::Machine;
use packing::Matrix as Packed;

pub use simd::Isa;

/// The kernels for the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    machine: Machine,
}

impl Default for Cpu {
    fn default() -> Self {
        let isa = Isa::best();
        #[cfg(target_arch = "x86_64")]
        let (amx, pairs) = (
            isa == Isa::Avx512 && amx::is_available(),
            isa == Isa::Avx512
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512bf16"),
        );
        #[cfg(not(target_arch = "x86_64"))]
        let (amx, pairs) = (false, false);
        Self {
            machine: Machine {
                isa,
                amx,
                pairs,
                rounds: false,
            },
        }
    }
}

impl Cpu {
    /// The same without the matrix unit; its products of bfloat16 are the vector unit's, where it has them.
    #[must_use]
    pub fn without_tiles(mut self) -> Self {
        self.machine.amx = false;
        self
    }

    /// The kernels compiled for an instruction set, one of [`Isa::available`], without matrix unit and products of pairs.
    #[must_use]
    pub fn with(isa: Isa) -> Self {
        assert!(
            Isa::available().contains(&isa),
            "this processor has no {isa:?}"
        );
        let machine = Machine {
            isa,
            amx: false,
            pairs: false,
            rounds: false,
        };
        Self { machine }
    }
}

/// x `[B, rows, columns]`, in whatever shape, with rows and columns exchanged.
fn transposed(x: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
    // SAFETY: all of it is written.
    let (out, ()) = unsafe {
        written(x.elem_count(), |out| {
            with_data(x, |x| {
                transpose::transpose(x, (rows, columns), out);
                Ok(())
            })
        })?
    };
    Tensor::from_vec(out, x.elem_count(), &Device::Cpu)
}

/// Gives `f` a weight as it is packed for `kernel`.
fn with_packed<R>(kernel: &Cpu, w: &Weight, f: impl FnOnce(Packed<'_>) -> Result<R>) -> Result<R> {
    let data = w.packed(kernel)?;
    let (storage, layout) = data.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!("the CPU kernels were given a weight of another device");
    };
    let taps = w.window.0 * w.window.1;
    let data = match data.dtype() {
        DType::F32 if w.is_transposed_on_read() => {
            packing::Packed::Transposed(&storage.as_slice()?[start..end])
        }
        DType::F32 => packing::Packed::F32(&storage.as_slice()?[start..end]),
        DType::F16 => packing::Packed::F16(&storage.as_slice()?[start..end]),
        DType::BF16 => packing::Packed::Bf16(&storage.as_slice()?[start..end]),
        DType::U32 => {
            let one = packing::packed_len(DType::BF16, w.outputs, w.inputs, taps) / 2;
            let parts = (end - start).checked_div(one).unwrap_or(1);
            packing::Packed::Split(&storage.as_slice()?[start..end], parts)
        }
        other => bail!("weights of {other:?} cannot be computed with"),
    };
    f(Packed {
        data,
        outputs: w.outputs,
        inputs: w.inputs,
        taps,
    })
}

/// Gives `f` the terms' numbers.
fn with_terms<R>(terms: Terms<'_>, f: impl FnOnce(terms::Terms<'_>) -> Result<R>) -> Result<R> {
    with_optional(terms.bias, |bias| {
        with_optional(terms.image, |image| {
            with_optional(terms.residual, |residual| {
                f(terms::Terms {
                    bias,
                    image,
                    residual,
                })
            })
        })
    })
}

impl Kernel for Cpu {
    fn name(&self) -> &'static str {
        match self.machine {
            Machine { amx: true, .. } => "cpu2-tiles",
            Machine { pairs: true, .. } => "cpu2-pairs",
            Machine { isa, .. } if isa.fuses() => "cpu2",
            _ => "cpu2-unfused",
        }
    }

    fn for_weights(&self, dtype: DType) -> Option<Arc<dyn Kernel>> {
        // Without the matrix unit nothing is gained by rounding more than products with weights do.
        let rounds = dtype == DType::BF16 && self.machine.amx;
        let machine = Machine {
            rounds,
            ..self.machine
        };
        Some(Arc::new(Self { machine }))
    }

    fn layout(&self) -> Layout {
        Layout::ChannelsLast
    }

    fn pack(&self, w: &Tensor) -> Result<Tensor> {
        let (outputs, inputs, taps) = match *w.dims() {
            [o, k] => (o, k, 1),
            [o, c, h, w] => (o, c, h * w),
            _ => bail!("a weight of shape {:?}", w.dims()),
        };
        if w.elem_count() == 0 {
            bail!("a weight of shape {:?} has no numbers", w.dims());
        }
        let (storage, layout) = w.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            bail!("weights must be dense and on the CPU to be packed");
        };
        macro_rules! pack {
            ($type:ty) => {{
                let data = &storage.as_slice::<$type>()?[start..end];
                let packed = packing::pack(data, w.dtype(), outputs, inputs, taps);
                let len = packed.len();
                Tensor::from_vec(packed, len, &Device::Cpu)
            }};
        }
        match w.dtype() {
            DType::F32 if self.machine.amx => {
                let data = &storage.as_slice::<f32>()?[start..end];
                let parts = packing::parts(data);
                if parts == 3 {
                    return pack!(f32); // half as much again as float32 takes: cut when they are used
                }
                let packed = packing::pack_split(data, parts, outputs, inputs, taps);
                let len = packed.len();
                Tensor::from_vec(packed, len, &Device::Cpu)
            }
            DType::F32 => pack!(f32),
            DType::F16 => pack!(f16),
            DType::BF16 => pack!(bf16),
            other => bail!("weights of {other:?} cannot be computed with"),
        }
    }

    fn transposed(&self, w: &Weight) -> Result<Weight> {
        backward::transposed(self, w)
    }

    fn backward(&self) -> &dyn Backward {
        self
    }

    fn part(&self, inputs: &[&Tensor], part: Part) -> Result<Tensor> {
        let inputs: Vec<_> = inputs.iter().map(|&t| t.clone()).collect();
        part(self, &inputs)
    }

    fn linear(&self, x: &Tensor, w: &Weight, terms: Terms<'_>) -> Result<Tensor> {
        let (images, n, k) = x.dims3()?;
        if w.inputs != k || w.window != (1, 1) || terms.image.is_some() {
            bail!(
                "linear: an input of {k} features for weights of {}",
                w.inputs
            );
        }
        let len = images * n * w.outputs;
        if len == 0 {
            return Tensor::zeros((images, n, w.outputs), DType::F32, &Device::Cpu);
        }
        let w = &backward::for_rows(self, w, images * n)?;
        // SAFETY: a product writes all of its rows and columns.
        let (out, ()) = unsafe {
            written(len, |out| {
                with_data(x, |x| {
                    with_packed(self, w, |w| {
                        with_terms(terms, |terms| {
                            products::linear(self.machine, x, w, terms, n, out)
                        })
                    })
                })
            })
        }?;
        Tensor::from_vec(out, (images, n, w.outputs), &Device::Cpu)
    }

    fn conv2d(&self, x: &Tensor, w: &Weight, window: Window, terms: Terms<'_>) -> Result<Tensor> {
        let (images, source_height, source_width, channels) = x.dims4()?;
        let (height, width) = window.enlarged.unwrap_or((source_height, source_width));
        let (kh, kw) = w.window;
        let padding = window.padding;
        let (padded_h, padded_w) = (
            height + padding.top + padding.bottom,
            width + padding.left + padding.right,
        );
        if w.inputs != channels || padded_h < kh || padded_w < kw || window.stride == 0 {
            bail!(
                "convolution: weights [{}, {}, {kh}, {kw}] do not fit an input of {:?}",
                w.outputs,
                w.inputs,
                x.dims()
            );
        }
        let out_size = (
            (padded_h - kh) / window.stride + 1,
            (padded_w - kw) / window.stride + 1,
        );
        let shape = (images, out_size.0, out_size.1, w.outputs);
        let len = images * out_size.0 * out_size.1 * w.outputs;
        if len == 0 {
            return Tensor::zeros(shape, DType::F32, &Device::Cpu);
        }
        let geometry = geometry::Geometry {
            height,
            width,
            source: (source_height, source_width),
            kernel: (kh, kw),
            stride: window.stride,
            padding,
            out: out_size,
        };
        let pointwise = geometry.is_pointwise();
        let machine = self.machine;
        // SAFETY: a product writes all of its rows and columns.
        let (out, ()) = unsafe {
            written(len, |out| {
                with_data(x, |x| {
                    with_packed(self, w, |w| {
                        with_terms(terms, |terms| {
                            if pointwise && terms.image.is_none() {
                                let pixels = out_size.0 * out_size.1;
                                products::linear(machine, x, w, terms, pixels, out)
                            } else {
                                products::convolution(machine, x, images, w, terms, geometry, out)
                            }
                        })
                    })
                })
            })
        }?;
        Tensor::from_vec(out, shape, &Device::Cpu)
    }

    fn group_norm(&self, x: &Tensor, norm: &GroupNormSpec<'_>, silu: bool) -> Result<Tensor> {
        let channels = x.dim(candle_core::D::Minus1)?;
        if norm.groups == 0 || channels == 0 || channels % norm.groups != 0 {
            bail!(
                "group norm: {channels} channels do not make {} groups",
                norm.groups
            );
        }
        let rank = x.rank();
        if rank < 2 || x.elem_count() == 0 {
            bail!("group norm of nothing: {:?}", x.dims());
        }
        let pixels: usize = x.dims()[1..rank - 1].iter().product();
        // SAFETY: all rows of all images are written, and x is as long as the result.
        let (out, ()) = unsafe {
            written(x.elem_count(), |out| {
                with_data(x, |x| {
                    with_data(norm.weight, |weight| {
                        with_data(norm.bias, |bias| {
                            if weight.len() != channels || bias.len() != channels {
                                bail!(
                                    "group norm: {channels} channels for {} scales",
                                    weight.len()
                                );
                            }
                            let (isa, groups) = (self.machine.isa, norm.groups);
                            pointwise::group_norm(
                                isa, x, pixels, groups, norm.eps, weight, bias, silu, out,
                            );
                            Ok(())
                        })
                    })
                })
            })
        }?;
        Tensor::from_vec(out, x.shape(), &Device::Cpu)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let width = x.dim(candle_core::D::Minus1)?;
        // SAFETY: all rows are written, and x is as long as the result.
        let (out, ()) = unsafe {
            written(x.elem_count(), |out| {
                with_data(x, |x| {
                    with_data(weight, |weight| {
                        with_data(bias, |bias| {
                            if width == 0 || weight.len() != width || bias.len() != width {
                                bail!("layer norm: {width} features for {} scales", weight.len());
                            }
                            pointwise::layer_norm(self.machine.isa, x, weight, bias, eps, out);
                            Ok(())
                        })
                    })
                })
            })
        }?;
        Tensor::from_vec(out, x.shape(), &Device::Cpu)
    }

    fn images(&self, x: &Tensor) -> Result<Tensor> {
        let (images, channels, height, width) = x.dims4()?;
        transposed(x, (channels, height * width))?.reshape((images, height, width, channels))
    }

    fn planes(&self, x: &Tensor) -> Result<Tensor> {
        let (images, height, width, channels) = x.dims4()?;
        transposed(x, (height * width, channels))?.reshape((images, channels, height, width))
    }

    fn concat(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (images, height, width, left) = a.dims4()?;
        let (.., right) = b.dims4()?;
        if b.dims()[..3] != a.dims()[..3] || left + right == 0 {
            bail!("images of {:?} and {:?} side by side", a.dims(), b.dims());
        }
        let shape = (images, height, width, left + right);
        // SAFETY: a row is written for each of a's, of which b has as many.
        let (out, ()) = unsafe {
            written(a.elem_count() + b.elem_count(), |out| {
                with_data(a, |a| {
                    with_data(b, |b| {
                        pointwise::concat(a, b, (left, right), out);
                        Ok(())
                    })
                })
            })
        }?;
        Tensor::from_vec(out, shape, &Device::Cpu)
    }

    fn relu(&self, x: &Tensor) -> Result<Tensor> {
        // SAFETY: x is as long as the result, all of which is written.
        let (out, ()) = unsafe {
            written(x.elem_count(), |out| {
                with_data(x, |x| {
                    images::relu(self.machine.isa, x, out);
                    Ok(())
                })
            })
        }?;
        Tensor::from_vec(out, x.dims(), &Device::Cpu)
    }

    fn max_pool2(&self, x: &Tensor) -> Result<Tensor> {
        let shape @ (count, height, width, channels) = x.dims4()?;
        let made = (count, height / 2, width / 2, channels);
        let len = made.0 * made.1 * made.2 * made.3;
        if len == 0 {
            bail!("images of {:?} cannot be pooled", x.dims());
        }
        // SAFETY: a line is written for each two of x.
        let (out, ()) = unsafe {
            written(len, |out| {
                with_data(x, |x| {
                    images::max_pool2(self.machine.isa, x, shape, out);
                    Ok(())
                })
            })
        }?;
        Tensor::from_vec(out, made, &Device::Cpu)
    }

    fn bilinear(&self, x: &Tensor, to: (usize, usize)) -> Result<Tensor> {
        let shape @ (count, .., channels) = x.dims4()?;
        let made = (count, to.0, to.1, channels);
        let len = made.0 * made.1 * made.2 * made.3;
        if len == 0 || x.elem_count() == 0 {
            bail!("images of {:?} cannot be resized to {to:?}", x.dims());
        }
        // SAFETY: each line of the result is written.
        let (out, ()) = unsafe {
            written(len, |out| {
                with_data(x, |x| {
                    images::bilinear(self.machine.isa, x, shape, to, out);
                    Ok(())
                })
            })
        }?;
        Tensor::from_vec(out, made, &Device::Cpu)
    }

    fn geglu(&self, x: &Tensor) -> Result<Tensor> {
        let (images, n, width) = x.dims3()?;
        let half = width / 2;
        if half == 0 || width % 2 != 0 {
            bail!("GEGLU takes an even number of features, not {width}");
        }
        // SAFETY: all rows are written: one of the result for each of x.
        let (out, ()) = unsafe {
            written(images * n * half, |out| {
                with_data(x, |x| {
                    pointwise::geglu(self.machine.isa, x, half, out);
                    Ok(())
                })
            })
        }?;
        Tensor::from_vec(out, (images, n, half), &Device::Cpu)
    }

    fn linear_geglu(&self, x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
        let (images, n, k) = x.dims3()?;
        let half = w.outputs / 2;
        if w.inputs == k && w.window == (1, 1) && images * n * half > 0 {
            let terms = Terms::bias(bias);
            let mut out = Vec::with_capacity(images * n * half);
            let room = &mut out.spare_capacity_mut()[..images * n * half];
            let done = with_data(x, |x| {
                with_packed(self, w, |w| {
                    with_terms(terms, |terms| {
                        products::gated(self.machine, x, w, terms.bias, room)
                    })
                })
            })?;
            if done {
                // SAFETY: it wrote all rows and columns, as many as there is room for.
                unsafe { out.set_len(images * n * half) };
                return Tensor::from_vec(out, (images, n, half), &Device::Cpu);
            }
        }
        self.geglu(&self.linear(x, w, Terms::bias(bias))?)
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
        let to = Attended { k, v, keys };
        attention::attend(self.machine, q, to, None, heads, scale)
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
        let blend = Some((outside, mask));
        attention::attend(self.machine, q, inside, blend, heads, scale)
    }

    fn attention_map(&self, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
        attention::map(self.machine.isa, q, k, heads, scale)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{Kernel, NormGradients, Padding, Plain};
    use super::*;
    use proptest::prelude::*;

    /// Numbers that differ from place to place, of about unit size.
    pub(crate) fn data(shape: &[usize], seed: u64) -> Tensor {
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

    fn weight(w: &Tensor, kernel: &dyn Kernel) -> Weight {
        Weight::new(w, kernel).unwrap()
    }

    /// The kernels of every instruction set that this processor has, with the matrix unit and without.
    pub(super) fn kernels() -> Vec<Cpu> {
        let sets = Isa::available().into_iter().map(Cpu::with);
        [Cpu::default(), Cpu::default().without_tiles()]
            .into_iter()
            .chain(sets)
            .collect()
    }

    /// FNV-1a of the bits of numbers.
    fn digest(t: &Tensor) -> u64 {
        (bits(t).iter().flat_map(|bits| bits.to_le_bytes()))
            .fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
                (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }

    /// What one machine gives is compared with itself above; this holds it against others: the digests were taken with AVX2,
    /// and found again with AVX-512, and with NEON by `.ci/neon`.
    #[test]
    fn sets_that_fuse_give_the_bits_that_they_give_on_other_machines() {
        let picture = data(&[2, 20, 18, 72], 1);
        let rows = data(&[2, 50, 80], 2);
        let scale = data(&[72], 3);
        let along = data(&[80], 4);
        let norm = GroupNormSpec {
            groups: 8,
            eps: 1e-5,
            weight: &scale,
            bias: &scale,
        };
        for isa in Isa::available().into_iter().filter(|isa| isa.fuses()) {
            let kernel = Cpu::with(isa);
            let bias = data(&[96], 5);
            let terms = Terms::bias(Some(&bias));
            let (matrix, small) = (data(&[96, 80], 6), data(&[96, 72, 2, 2], 7));
            let three = weight(&data(&[96, 72, 3, 3], 8), &kernel);
            let found = [
                kernel.linear(&rows, &weight(&matrix, &kernel), terms),
                kernel.conv2d(
                    &picture,
                    &weight(&small, &kernel),
                    Window::padded(Padding::same(1)),
                    terms,
                ),
                kernel.group_norm(&picture, &norm, true),
                kernel.layer_norm(&rows, &along, &along, 1e-5),
                kernel.geglu(&rows),
                kernel.bilinear(&picture, (33, 40)),
                kernel.conv2d(&picture, &three, Window::padded(Padding::same(1)), terms),
                kernel.attention(
                    &rows,
                    &data(&[2, 77, 80], 9),
                    &data(&[2, 77, 80], 10),
                    2,
                    0.16,
                    None,
                ),
            ];
            let found = found.map(|t| digest(&t.unwrap()));
            assert_eq!(found, BITS, "{isa:?}: {found:#x?}");
        }
    }

    /// The same of the way back.
    #[test]
    fn gradients_by_sets_that_fuse_are_the_bits_that_they_are_on_other_machines() {
        let picture = data(&[2, 20, 18, 72], 1);
        let of_picture = data(&[2, 20, 18, 72], 11);
        let rows = data(&[2, 50, 84], 2);
        let of_rows = data(&[2, 50, 84], 12);
        let of_half = data(&[2, 50, 42], 13);
        let scale = data(&[72], 3);
        let along = data(&[84], 4);
        let norm = GroupNormSpec {
            groups: 8,
            eps: 1e-5,
            weight: &scale,
            bias: &scale,
        };
        let flat = |all: &[&Tensor]| {
            let all: Vec<Tensor> = all.iter().map(|t| t.flatten_all().unwrap()).collect();
            Tensor::cat(&all, 0).unwrap()
        };
        let norms = |of: NormGradients| {
            let (scale, shift) = of.affine.unwrap();
            flat(&[&of.x, &scale, &shift])
        };
        for isa in Isa::available().into_iter().filter(|isa| isa.fuses()) {
            let kernel = Cpu::with(isa);
            let [k, v] = [9, 10].map(|seed| data(&[2, 77, 84], seed));
            let y = kernel.attention(&rows, &k, &v, 2, 0.16, None).unwrap();
            let of_attention =
                kernel.attention_backward((&of_rows, &y), (&rows, &k, &v), 2, 0.16, false);
            let of_attention = of_attention.unwrap();
            let (a, b) = (of_rows.flatten_to(1).unwrap(), rows.flatten_to(1).unwrap());
            let window = Window::padded(Padding::same(1));
            let of_convolution = kernel.conv2d_weight(&of_picture, &picture, (3, 3), window);
            let found = [
                norms(
                    kernel
                        .group_norm_backward(&of_picture, &picture, &norm, true, true)
                        .unwrap(),
                ),
                norms(
                    kernel
                        .layer_norm_backward(&of_rows, &rows, &along, 1e-5, true)
                        .unwrap(),
                ),
                kernel.geglu_backward(&of_half, &rows).unwrap(),
                kernel.matmul_tn(&a, &b).unwrap(),
                of_convolution.unwrap().unwrap(),
                kernel.row_sums(&rows).unwrap(),
                flat(&[&of_attention.q, &of_attention.k, &of_attention.v]),
            ];
            let found = found.each_ref().map(digest);
            assert_eq!(found, GRADIENT_BITS, "{isa:?}: {found:#x?}");
        }
    }

    /// Of the norms, GEGLU, the weights of a product and of a convolution, a sum over rows, and an attention.
    const GRADIENT_BITS: [u64; 7] = [
        0x1618_2784_153c_9377,
        0x7b68_7fb4_1b55_5c0d,
        0x09ff_2e9d_d168_70d2,
        0xbf0f_b024_73d0_c355,
        0x5b36_a089_e3e6_cbc8,
        0xbdcc_7290_cfa8_67de,
        0x3697_acdc_77d8_8db3,
    ];

    /// A product, a convolution, the norms, GEGLU, a resized image; a convolution of Winograd's and an attention.
    const BITS: [u64; 8] = [
        0x4393_4155_e9e0_efa5,
        0x0ddf_73a1_ee0f_d4db,
        0xc094_5884_d3f6_7172,
        0xe016_4cb6_0fc9_0911,
        0xb672_33f9_b035_c4a3,
        0x2ad1_08bc_7228_f740,
        0xfded_53e1_6dd0_ffd4,
        0x5e41_1992_5857_12f6,
    ];

    #[test]
    fn planes_become_images_and_back() {
        for shape in [[1, 3, 7, 5], [2, 16, 4, 4], [3, 17, 9, 33], [1, 1, 1, 1]] {
            let x = data(&shape, 3);
            for kernel in kernels() {
                let images = kernel.images(&x).unwrap();
                let expected = Layout::ChannelsLast.images(&x).unwrap();
                assert_eq!(images.dims(), expected.dims());
                assert_eq!(numbers(&images), numbers(&expected));
                let back = kernel.planes(&images).unwrap();
                assert_eq!(back.dims(), x.dims());
                assert_eq!(numbers(&back), numbers(&x));
                // Of a part of a tensor too.
                let part = images.narrow(2, 0, shape[3].div_ceil(2)).unwrap();
                let expected = Layout::ChannelsLast.planes(&part).unwrap();
                assert_eq!(numbers(&kernel.planes(&part).unwrap()), numbers(&expected));
            }
        }
    }

    fn numbers(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn to(t: &Tensor, dtype: DType) -> Tensor {
        t.to_dtype(dtype).unwrap()
    }

    /// A weight as it comes out of files of several types, with what `Plain` is to be given for the same numbers.
    fn precisions(w: &Tensor) -> Vec<(Tensor, Tensor)> {
        let rounded = |dtype| to(&to(w, dtype), DType::F32);
        let mut all = vec![(w.clone(), w.clone())];
        for dtype in [DType::F16, DType::BF16] {
            // Numbers of that type held in float32, which the matrix unit takes in fewer parts, and in the type itself.
            all.push((rounded(dtype), rounded(dtype)));
            all.push((to(w, dtype), rounded(dtype)));
        }
        all
    }

    /// Whether a result is as near as its weight's type lets it be. With bfloat16 weights, activations may be rounded to
    /// bfloat16 too: each term is then off by 2^-9 of itself at most, so the sum by 2^-8 of the sum of their sizes.
    fn near(y: &Tensor, expected: &Tensor, sizes: &Tensor, dtype: DType) {
        if dtype != DType::BF16 {
            return close(y, expected);
        }
        let off = (y - expected).unwrap().abs().unwrap();
        let bound = ((sizes / 256.0).unwrap() + 1e-4).unwrap();
        let beyond = (off - bound).unwrap().max_all().unwrap();
        let beyond = beyond.to_scalar::<f32>().unwrap();
        assert!(beyond <= 0.0, "beyond the bound by {beyond}");
    }

    pub(super) fn close(a: &Tensor, b: &Tensor) {
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

    pub(super) fn bits(t: &Tensor) -> Vec<u32> {
        let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn linear_equals_the_plain_version(b in 1usize..5, n in 1usize..70, k in 1usize..300, o in 1usize..140, seed in 0u64..99) {
            let (x, w, bias) = (data(&[b, n, k], seed), data(&[o, k], seed + 1), data(&[o], seed + 2));
            let residual = data(&[b, n, o], seed + 3);
            for terms in [Terms::default(), Terms { bias: Some(&bias), residual: Some(&residual), image: None }] {
                for (w, same) in precisions(&w) {
                    let expected = Plain.linear(&x, &weight(&same, &Plain), terms).unwrap();
                    let sizes = Plain.linear(&x.abs().unwrap(), &weight(&same.abs().unwrap(), &Plain), Terms::default()).unwrap();
                    for kernel in kernels() {
                        near(&kernel.linear(&x, &weight(&w, &kernel), terms).unwrap(), &expected, &sizes, w.dtype());
                    }
                }
            }
        }

        #[test]
        fn a_gate_on_the_way_out_equals_one_behind(b in 1usize..3, n in 1usize..70, k in 1usize..200, o in 1usize..4, odd in 0usize..2, seed in 0u64..99) {
            let o = 128 * o + 2 * odd;
            let (x, w, bias) = (data(&[b, n, k], seed), data(&[o, k], seed + 1), data(&[o], seed + 2));
            let w = (w * 0.05).unwrap();
            for (w, same) in precisions(&w) {
                let expected = Plain.linear_geglu(&x, &weight(&same, &Plain), Some(&bias)).unwrap();
                for kernel in kernels() {
                    let w = weight(&w, &kernel);
                    let y = kernel.linear_geglu(&x, &w, Some(&bias)).unwrap();
                    if w.packed(&kernel).unwrap().dtype() == DType::BF16 {
                        let apart = kernel.geglu(&kernel.linear(&x, &w, Terms::bias(Some(&bias))).unwrap()).unwrap();
                        close(&y, &apart);
                    } else {
                        close(&y, &expected);
                    }
                }
            }
        }

        #[test]
        fn convolution_equals_the_plain_version(
            b in 1usize..4, c in 1usize..50, o in 1usize..40, h in 1usize..14, w in 1usize..14,
            kernel in 1usize..4, stride in 1usize..4, top in 0usize..2, bottom in 0usize..2, left in 0usize..3, right in 0usize..3,
            larger in 0usize..3, seed in 0u64..99,
        ) {
            let padding = Padding { top, bottom, left, right };
            let enlarged = (larger > 0).then_some((h * 2 - larger % 2, w * 2));
            prop_assume!(h + top + bottom >= kernel && w + left + right >= kernel);
            let window = Window { stride, padding, enlarged };
            let (x, k, bias) = (data(&[b, c, h, w], seed), data(&[o, c, kernel, kernel], seed + 1), data(&[o], seed + 2));
            let image = data(&[b, o], seed + 3);
            let last = Layout::ChannelsLast;
            for (k, same) in precisions(&k) {
                let plain = |x: &Tensor, k: &Tensor, terms| Plain.conv2d(x, &weight(k, &Plain), window, terms).unwrap();
                let bare = plain(&x, &same, Terms::default());
                let sizes = plain(&x.abs().unwrap(), &same.abs().unwrap(), Terms::default());
                let residual = data(bare.dims(), seed + 4);
                let terms = Terms { bias: Some(&bias), image: Some(&image), residual: Some(&residual) };
                let expected = plain(&x, &same, terms);
                let (x, residual) = (last.images(&x).unwrap(), last.images(&residual).unwrap());
                let terms = Terms { residual: Some(&residual), ..terms };
                for kernel in kernels() {
                    let w = weight(&k, &kernel);
                    let y = kernel.conv2d(&x, &w, window, Terms::default()).unwrap();
                    near(&last.planes(&y).unwrap(), &bare, &sizes, k.dtype());
                    let y = kernel.conv2d(&x, &w, window, terms).unwrap();
                    near(&last.planes(&y).unwrap(), &expected, &sizes, k.dtype());
                }
            }
        }

        #[test]
        fn norms_and_geglu_equal_the_plain_versions(b in 1usize..4, groups in 1usize..5, per in 1usize..9, h in 1usize..19, w in 1usize..9, seed in 0u64..99) {
            let c = groups * per;
            let x = data(&[b, c, h, w], seed);
            let (weight, bias) = (data(&[c], seed + 1), data(&[c], seed + 2));
            let spec = GroupNormSpec { groups, eps: 1e-5, weight: &weight, bias: &bias };
            prop_assume!(per * h * w > 1);
            let last = Layout::ChannelsLast;
            for kernel in kernels() {
                for silu in [false, true] {
                    let y = kernel.group_norm(&last.images(&x).unwrap(), &spec, silu).unwrap();
                    close(&last.planes(&y).unwrap(), &Plain.group_norm(&x, &spec, silu).unwrap());
                }
                let other = data(&[b, c + 3, h, w], seed + 5);
                let both = kernel.concat(&last.images(&x).unwrap(), &last.images(&other).unwrap()).unwrap();
                prop_assert_eq!(bits(&last.planes(&both).unwrap()), bits(&Plain.concat(&x, &other).unwrap()));
                let images = last.images(&x).unwrap();
                let equal = |own: Tensor, plain: Tensor| {
                    prop_assert_eq!(bits(&last.planes(&own).unwrap()), bits(&plain));
                    Ok(())
                };
                equal(kernel.relu(&images).unwrap(), Plain.relu(&x).unwrap())?;
                if h > 1 && w > 1 {
                    equal(kernel.max_pool2(&images).unwrap(), Plain.max_pool2(&x).unwrap())?;
                }
                for to in [(2 * h, 2 * w), (2 * h - 1, 2 * w + 1), (3 * h, w)] {
                    equal(kernel.bilinear(&images, to).unwrap(), Plain.bilinear(&x, to).unwrap())?;
                }
                let x = data(&[b, h * w, 2 * c + 2], seed);
                let (weight, bias) = (data(&[2 * c + 2], seed + 3), data(&[2 * c + 2], seed + 4));
                close(&kernel.layer_norm(&x, &weight, &bias, 1e-5).unwrap(), &Plain.layer_norm(&x, &weight, &bias, 1e-5).unwrap());
                close(&kernel.geglu(&x).unwrap(), &Plain.geglu(&x).unwrap());
            }
        }

        #[test]
        fn convolutions_in_fewer_multiplications_are_near_and_batch_invariant(
            b in 1usize..4, c in 64usize..100, o in 64usize..140, h in 16usize..22, w in 16usize..22, top in 0usize..3, left in 0usize..3, larger: bool, seed in 0u64..99,
        ) {
            let padding = Padding { top, bottom: 1, left, right: 1 };
            prop_assume!(h + top >= 18 && w + left >= 18);
            let enlarged = larger.then_some((2 * h - 1, 2 * w));
            let window = Window { stride: 1, padding, enlarged };
            let (x, k, bias) = (data(&[b, c, h, w], seed), data(&[o, c, 3, 3], seed + 1), data(&[o], seed + 2));
            let image = data(&[b, o], seed + 3);
            let plain = |terms| Plain.conv2d(&x, &weight(&k, &Plain), window, terms).unwrap();
            let residual = data(plain(Terms::default()).dims(), seed + 4);
            let expected = plain(Terms { bias: Some(&bias), image: Some(&image), residual: Some(&residual) });
            let last = Layout::ChannelsLast;
            let (x, residual) = (last.images(&x).unwrap(), last.images(&residual).unwrap());
            let mut fused: Vec<Vec<u32>> = Vec::new();
            for kernel in kernels() {
                let k = weight(&k, &kernel);
                let terms = Terms { bias: Some(&bias), image: Some(&image), residual: Some(&residual) };
                let y = kernel.conv2d(&x, &k, window, terms).unwrap();
                close(&last.planes(&y).unwrap(), &expected);
                let part = |t: &Tensor| t.narrow(0, b - 1, 1).unwrap();
                let terms = Terms { bias: Some(&bias), image: Some(&part(&image)), residual: Some(&part(&residual)) };
                let alone = kernel.conv2d(&part(&x), &k, window, terms).unwrap();
                prop_assert_eq!(bits(&part(&y)), bits(&alone));
                if kernel.name() == "cpu2" {
                    fused.push(bits(&y));
                }
                let short = Terms { residual: Some(&bias), ..Terms::default() };
                prop_assert!(kernel.conv2d(&x, &k, window, short).is_err());
            }
            prop_assert!(fused.windows(2).all(|pair| pair[0] == pair[1]));
        }

        #[test]
        fn attention_that_rounds_is_near_and_batch_invariant(b in 1usize..4, n in 1usize..150, m in 32usize..200, heads in 1usize..4, size in 16usize..70, seed in 0u64..99, masked: bool) {
            let c = heads * size;
            let (q, k, v) = (data(&[b, n, c], seed), data(&[b, m, c], seed + 1), data(&[b, m, c], seed + 2));
            let keys: Vec<Vec<u32>> = (0..b).map(|s| (0..m as u32).filter(|j| (j + s as u32) % 3 != 1 || *j == 0).collect()).collect();
            let keys = masked.then_some(keys.as_slice());
            let kernel = Cpu::default().for_weights(DType::BF16).unwrap();
            let y = kernel.attention(&q, &k, &v, heads, 0.05, keys).unwrap();
            let expected = Plain.attention(&q, &k, &v, heads, 0.05, keys).unwrap();
            // Scores of |q| |k| scale <= 4 size / 20 are off by 2^-8 of that, a weight by as much of itself, and so are values.
            let bound = (size as f64 * 0.2 + 2.0) / 256.0 * 2.0;
            let off = (&y - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            prop_assert!(f64::from(off) <= bound, "off by {off}, bound {bound}");
            let part = |t: &Tensor| t.narrow(0, b - 1, 1).unwrap();
            let alone = kernel.attention(&part(&q), &part(&k), &part(&v), heads, 0.05, keys.map(|keys| &keys[b - 1..])).unwrap();
            prop_assert_eq!(bits(&part(&y)), bits(&alone));
        }

        #[test]
        fn all_sets_that_fuse_give_the_same_bits(b in 1usize..3, n in 1usize..40, c in 1usize..70, o in 1usize..140, side in 3usize..9, seed in 0u64..99) {
            let x = data(&[b, side, side, c], seed);
            let (w, k, bias) = (data(&[o, c], seed + 1), data(&[o, c, 3, 3], seed + 2), data(&[o], seed + 3));
            let rows = data(&[b, n, c], seed + 4);
            let scale = data(&[c], seed + 5);
            let spec = GroupNormSpec { groups: 1, eps: 1e-5, weight: &scale, bias: &scale };
            let fused: Vec<_> = Isa::available().into_iter().filter(|isa| isa.fuses()).map(Cpu::with).collect();
            let all = fused.iter().map(|kernel| {
                let window = Window::padded(Padding::same(1));
                [
                    kernel.linear(&rows, &weight(&w, kernel), Terms::bias(Some(&bias))).unwrap(),
                    kernel.conv2d(&x, &weight(&k, kernel), window, Terms::bias(Some(&bias))).unwrap(),
                    kernel.group_norm(&x, &spec, true).unwrap(),
                    kernel.layer_norm(&rows, &scale, &scale, 1e-5).unwrap(),
                    kernel.geglu(&data(&[b, n, 2 * c], seed)).unwrap(),
                ]
                .map(|t| bits(&t))
            });
            let all: Vec<_> = all.collect();
            for pair in all.windows(2) {
                prop_assert_eq!(&pair[0], &pair[1]);
            }
        }

        #[test]
        fn an_image_of_a_batch_equals_the_image_alone_bitwise(b in 2usize..6, n in 1usize..300, heads in 1usize..4, size in 1usize..33, o in 1usize..65, side in 1usize..20, seed in 0u64..99) {
            let c = heads * size;
            let x = data(&[b, n, c], seed);
            let (w, bias) = (data(&[o, c], seed + 1), data(&[o], seed + 2));
            let picture = data(&[b, side, side + 1, size], seed);
            let kernel = data(&[o, size, 3, 3], seed + 3);
            let scale = data(&[size], seed + 4);
            let spec = GroupNormSpec { groups: 1, eps: 1e-5, weight: &scale, bias: &scale };
            for i in 0..b {
                let one = x.narrow(0, i, 1).unwrap();
                let terms = Terms::bias(Some(&bias));
                let w = weight(&w, &Cpu::default());
                let all = Cpu::default().linear(&x, &w, terms).unwrap();
                prop_assert_eq!(bits(&all.narrow(0, i, 1).unwrap()), bits(&Cpu::default().linear(&one, &w, terms).unwrap()));
                let window = Window::padded(Padding::same(1));
                let w = weight(&kernel, &Cpu::default());
                let all = Cpu::default().conv2d(&picture, &w, window, terms).unwrap();
                let one = picture.narrow(0, i, 1).unwrap();
                prop_assert_eq!(bits(&all.narrow(0, i, 1).unwrap()), bits(&Cpu::default().conv2d(&one, &w, window, terms).unwrap()));
                let all = Cpu::default().group_norm(&picture, &spec, true).unwrap();
                prop_assert_eq!(bits(&all.narrow(0, i, 1).unwrap()), bits(&Cpu::default().group_norm(&one, &spec, true).unwrap()));
            }
        }
    }
}
