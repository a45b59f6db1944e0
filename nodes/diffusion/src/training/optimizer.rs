//! AdamW (Loshchilov and Hutter 2019) as torch computes it, optionally with its two moments in 8 bits (Dettmers et al. 2022,
//! "8-bit Optimizers via Block-wise Quantization"); learning rates over time as in diffusers; an average of the weights.

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

use crate::{Error, Result};

/// Numbers that share a scale in 8 bits, as in the paper.
const BLOCK: usize = 256;
/// Parameters of fewer numbers keep moments in float32: bitsandbytes' `min_8bit_size`.
const LEAST_8BIT: usize = 4096;

/// What AdamW is given.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Decay of the first and of the second moment; torch's are 0.9 and 0.999.
    pub betas: (f64, f64),
    /// Added to the root of the second moment; torch's is 1e-8.
    pub eps: f64,
    /// By which share of the learning rate weights shrink at each step; torch's is 1e-2.
    pub weight_decay: f64,
    /// Whether moments of large parameters are held in 8 bits.
    pub eight_bit: bool,
}

/// The moments of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// First and second, of the parameter's length.
    Full(Vec<f32>, Vec<f32>),
    /// Codes, and the scale of each block of 256.
    Quantised {
        /// Of the first moment, signed.
        first: (Vec<u8>, Vec<f32>),
        /// Of the second, unsigned.
        second: (Vec<u8>, Vec<f32>),
    },
}

impl Moments {
    /// Zeros for a parameter of so many numbers.
    #[must_use]
    pub fn zeros(count: usize, eight_bit: bool) -> Self {
        Self::zeros_of(count, eight_bit && count >= LEAST_8BIT)
    }

    /// Zeros in 8 bits, or in float32, however many there are.
    #[must_use]
    pub fn zeros_of(count: usize, eight_bit: bool) -> Self {
        if !eight_bit {
            return Self::Full(vec![0.0; count], vec![0.0; count]);
        }
        let zero = |signed| {
            (
                vec![Map::of(signed).nearest(0.0); count],
                vec![0.0; count.div_ceil(BLOCK)],
            )
        };
        Self::Quantised {
            first: zero(true),
            second: zero(false),
        }
    }

    /// Bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Full(a, b) => 4 * (a.len() + b.len()),
            Self::Quantised { first, second } => {
                first.0.len() + second.0.len() + 4 * (first.1.len() + second.1.len())
            }
        }
    }
}

/// The numbers that 8 bits stand for: seven decades, each twice as finely divided as the one below.
struct Map([f32; 256]);

impl Map {
    fn of(signed: bool) -> &'static Self {
        static SIGNED: std::sync::OnceLock<Map> = std::sync::OnceLock::new();
        static UNSIGNED: std::sync::OnceLock<Map> = std::sync::OnceLock::new();
        if signed {
            SIGNED.get_or_init(|| Self::new(true))
        } else {
            UNSIGNED.get_or_init(|| Self::new(false))
        }
    }

    /// The dynamic map of the paper's section 1.3, sorted: in decade 10^-i the midpoints of 2^(6 - i) parts (unsigned twice as
    /// many) of 0.1 to 1, with both signs if signed; 0 and 1 besides.
    fn new(signed: bool) -> Self {
        let mut numbers = vec![0.0, 1.0];
        for i in 0..7u32 {
            let parts = if signed { 1usize << i } else { 2usize << i };
            let boundary = |k: usize| 0.1 + 0.9 * k as f64 / parts as f64;
            for k in 0..parts {
                let middle = f64::midpoint(boundary(k), boundary(k + 1));
                let number = middle * 10f64.powi(i as i32 - 6);
                numbers.push(number);
                if signed {
                    numbers.push(-number);
                }
            }
        }
        numbers.sort_by(f64::total_cmp);
        let mut map = [0f32; 256];
        for (to, number) in map.iter_mut().zip(numbers) {
            *to = number as f32;
        }
        Self(map)
    }

    /// The code of the number nearest to x, the lower of two that are as near.
    fn nearest(&self, x: f32) -> u8 {
        let above = self.0.partition_point(|&number| number < x);
        let code = match above {
            0 => 0,
            256 => 255,
            i if x - self.0[i - 1] <= self.0[i] - x => i - 1,
            i => i,
        };
        code as u8
    }

    fn read(&self, codes: &[u8], scale: f32, to: &mut [f32]) {
        for (to, code) in to.iter_mut().zip(codes) {
            *to = self.0[usize::from(*code)] * scale;
        }
    }

    fn write(&self, from: &[f32], codes: &mut [u8]) -> f32 {
        let scale = from.iter().fold(0f32, |most, x| most.max(x.abs()));
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (code, x) in codes.iter_mut().zip(from) {
            *code = self.nearest(x * inverse);
        }
        scale
    }

    /// The same of a second moment: what is above 0 stays so, as a step is divided by its root.
    fn write_positive(&self, from: &[f32], codes: &mut [u8]) -> f32 {
        let scale = self.write(from, codes);
        let zero = self.nearest(0.0);
        for (code, x) in codes.iter_mut().zip(from) {
            if *code == zero && *x > 0.0 {
                *code = zero + 1;
            }
        }
        scale
    }
}

/// One step for some numbers of a parameter.
#[derive(Clone, Copy)]
struct Update {
    beta1: f32,
    beta2: f32,
    /// 1 - learning rate x weight decay.
    keep: f32,
    /// Learning rate / (1 - beta1^t).
    rate: f32,
    /// 1 / sqrt(1 - beta2^t).
    root: f32,
    eps: f32,
    /// What gradients are multiplied with first: clipping and accumulation.
    scale: f32,
}

impl Update {
    fn apply(&self, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * self.scale;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *w = *w * self.keep - self.rate * *m / (v.sqrt() * self.root + self.eps);
        }
    }

    fn whole(&self, w: &mut [f32], g: &[f32], moments: &mut Moments) {
        /// Numbers of a task; whole blocks.
        const TASK: usize = 64 * BLOCK;
        match moments {
            Moments::Full(m, v) => {
                let moments = m.par_chunks_mut(TASK).zip(v.par_chunks_mut(TASK));
                w.par_chunks_mut(TASK)
                    .zip(g.par_chunks(TASK))
                    .zip(moments)
                    .for_each(|((w, g), (m, v))| self.apply(w, g, m, v));
            }
            Moments::Quantised { first, second } => {
                let of = |(codes, scales): &mut (Vec<u8>, Vec<f32>)| {
                    let (codes, scales) = (std::mem::take(codes), std::mem::take(scales));
                    (codes, scales)
                };
                let ((mut m, mut ms), (mut v, mut vs)) = (of(first), of(second));
                w.par_chunks_mut(BLOCK)
                    .zip(g.par_chunks(BLOCK))
                    .zip(m.par_chunks_mut(BLOCK).zip(&mut ms))
                    .zip(v.par_chunks_mut(BLOCK).zip(&mut vs))
                    .for_each(|(((w, g), (m, ms)), (v, vs))| {
                        let (mut first, mut second) = ([0f32; BLOCK], [0f32; BLOCK]);
                        let count = w.len();
                        Map::of(true).read(m, *ms, &mut first[..count]);
                        Map::of(false).read(v, *vs, &mut second[..count]);
                        self.apply(w, g, &mut first[..count], &mut second[..count]);
                        *ms = Map::of(true).write(&first[..count], m);
                        *vs = Map::of(false).write_positive(&second[..count], v);
                    });
                *first = (m, ms);
                *second = (v, vs);
            }
        }
    }
}

/// Changes a variable's numbers where they lie.
struct InPlace<F>(std::sync::Mutex<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(numbers) = storage else {
            candle_core::bail!("what is trained is held in float32");
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a variable is not contiguous");
        };
        let f = self.0.lock().ok().and_then(|mut f| f.take());
        if let Some(f) = f {
            f(&mut numbers[start..end]);
        }
        Ok(())
    }
}

/// Changes the numbers of a variable, which lies on any device.
///
/// # Errors
/// When it is not of float32, or the device fails.
pub fn change(variable: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    if variable.device().is_cpu() {
        return Ok(variable.inplace_op1(&InPlace(std::sync::Mutex::new(Some(f))))?);
    }
    let mut numbers = numbers(variable)?;
    f(&mut numbers);
    let new = Tensor::from_vec(numbers, variable.shape(), &Device::Cpu)?;
    let new = new.to_device(variable.device())?;
    Ok(candle_core::Var::from_tensor(variable)?.set(&new)?)
}

/// A tensor's numbers in host memory.
///
/// # Errors
/// When they cannot be copied there.
pub fn numbers(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.detach()
        .to_device(&Device::Cpu)?
        .flatten_all()?
        .to_vec1::<f32>()?)
}

impl AdamW {
    /// Makes step `t` (1 is the first) for one parameter with its gradient, which is multiplied with `scale` first.
    ///
    /// # Errors
    /// When gradient and parameter differ in size, or the device fails.
    pub fn step(
        &self,
        variable: &Tensor,
        gradient: &[f32],
        moments: &mut Moments,
        rate: f64,
        t: u64,
        scale: f64,
    ) -> Result<()> {
        if gradient.len() != variable.elem_count() {
            return Err(Error::request(format!(
                "a gradient of {} numbers for a parameter of {:?}",
                gradient.len(),
                variable.dims()
            )));
        }
        let t = i32::try_from(t).unwrap_or(i32::MAX);
        let (beta1, beta2) = self.betas;
        let update = Update {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            keep: (1.0 - rate * self.weight_decay) as f32,
            rate: (rate / (1.0 - beta1.powi(t))) as f32,
            root: (1.0 / (1.0 - beta2.powi(t)).sqrt()) as f32,
            eps: self.eps as f32,
            scale: scale as f32,
        };
        change(variable, |w| update.whole(w, gradient, moments))
    }
}

/// How the learning rate goes over the steps, after a warm-up that rises from 0 in equal steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateSchedule {
    /// As it is.
    Constant,
    /// Down to 0 in equal steps.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
}

impl RateSchedule {
    /// What the learning rate is multiplied with at a step (0 is the first) of `steps`, as diffusers' `get_scheduler` has it.
    #[must_use]
    pub fn factor(self, step: u64, warmup: u64, steps: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let rest = steps.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => (steps.saturating_sub(step) as f64 / rest).max(0.0),
            Self::Cosine => {
                let done = (step - warmup) as f64 / rest;
                (0.5 * (1.0 + libm::cos(std::f64::consts::PI * done))).max(0.0)
            }
        }
    }

    /// Whether a step's rate depends on how many there are.
    #[must_use]
    pub fn depends_on_steps(self) -> bool {
        self != Self::Constant
    }
}

/// The decay of the average of the weights at step t (1 is the first), as diffusers' `EMAModel` has it:
/// min(decay, t / (9 + t)).
#[must_use]
pub fn ema_decay(decay: f64, t: u64) -> f64 {
    // diffusers counts the step before: (1 + s) / (10 + s), s = t - 1; its first step copies nothing but decays by 0.
    let s = t.saturating_sub(1) as f64;
    let warm = if s <= 0.0 {
        0.0
    } else {
        (1.0 + s) / (10.0 + s)
    };
    warm.min(decay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_maps_have_256_numbers_in_order_with_0_and_1() {
        for signed in [true, false] {
            let Map(map) = Map::of(signed);
            assert!(map.windows(2).all(|pair| pair[0] < pair[1]), "{signed}");
            assert!(map.contains(&0.0));
            assert_eq!(map[255], 1.0);
            for (code, number) in map.iter().enumerate() {
                assert_eq!(usize::from(Map::of(signed).nearest(*number)), code);
            }
        }
    }

    #[test]
    fn a_small_second_moment_does_not_become_zero() {
        let map = Map::of(false);
        let mut codes = [0; 3];
        let scale = map.write_positive(&[1.0, 1e-9, 0.0], &mut codes);
        let mut back = [0.0; 3];
        map.read(&codes, scale, &mut back);
        assert!(
            back[1] > 0.0 && back[1] < 1e-6 && back[2] == 0.0,
            "{back:?}"
        );
    }

    #[test]
    fn a_rate_warms_up_and_falls() {
        use RateSchedule::{Constant, Cosine, Linear};
        assert_eq!(Constant.factor(0, 4, 10), 0.0);
        assert_eq!(Constant.factor(2, 4, 10), 0.5);
        assert_eq!(Constant.factor(9, 4, 10), 1.0);
        assert_eq!(Linear.factor(7, 4, 10), 0.5);
        assert!((Cosine.factor(7, 4, 10) - 0.5).abs() < 1e-12);
        assert_eq!(Linear.factor(10, 4, 10), 0.0);
    }
}
