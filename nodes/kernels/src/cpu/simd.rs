//! Vectors of float32, written once and compiled for each instruction set, which is chosen when the program runs.
//!
//! Every operation works on each lane alone, and every set but [`Portable`] fuses multiply and add with one rounding: a
//! kernel whose sums do not cross lanes gives the same bits on all of them.

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 16 lanes, 32 registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes, 16 registers, with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 4 lanes, 32 registers.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// What the compiler makes of plain Rust for the oldest processor of the target; multiply and add round twice.
    Portable,
}

impl Isa {
    /// All that this processor has, the best first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let fused = std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma");
            if fused && std::arch::is_x86_feature_detected!("avx512f") {
                sets.push(Self::Avx512);
            }
            if fused {
                sets.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        sets.push(Self::Neon); // part of the base of the architecture
        sets.push(Self::Portable);
        sets
    }

    /// The best that this processor has.
    #[must_use]
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Whether it multiplies and adds with one rounding: all sets that do give the same bits.
    #[must_use]
    pub fn fuses(self) -> bool {
        self != Self::Portable
    }
}

/// Vectors of one instruction set.
///
/// # Safety
/// All functions may be called only where the processor has the set, and, to be fast, from a function that is compiled
/// for it (see [`multiversion`]). Pointers must be valid for [`Self::LANES`] elements; they need no alignment.
pub(super) unsafe trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// Its float32 lanes.
    const LANES: usize;
    /// Vectors that a register block of products is wide.
    const BLOCK: usize;
    /// The set.
    const ISA: Isa;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// a b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `p 2^n` of n in the low bits of the significand of `n`, as adding 1.5 * 2^23 leaves it; p and the result are normal.
    unsafe fn times_pow2(p: Self::V, n: Self::V) -> Self::V;

    /// `exp(x)` for x <= 88 to 2 units in the last place; what is below -87 counts as -87: 1.6e-38 is nothing beside the
    /// largest term of a softmax, which is 1.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        // SAFETY: the caller's promise, passed on; no pointers.
        unsafe {
            let round = Self::splat(12_582_912.0);
            let x = Self::max(Self::splat(-87.0), x); // in this order NaN stays NaN
            let shifted = Self::fma(x, Self::splat(std::f32::consts::LOG2_E), round);
            let n = Self::sub(shifted, round);
            // ln 2 in two parts (Cody and Waite), so that the remainder keeps its low bits.
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            // Taylor's series, |r| <= ln 2 / 2: what is left out is below 1.3e-7 of the result at r^7, so up to r^7 / 7!.
            let mut p = Self::splat(1.0 / 5040.0);
            for c in [
                1.0 / 720.0,
                1.0 / 120.0,
                1.0 / 24.0,
                1.0 / 6.0,
                0.5,
                1.0,
                1.0,
            ] {
                p = Self::fma(p, r, Self::splat(c));
            }
            Self::times_pow2(p, shifted)
        }
    }

    /// `2^x` for x <= 0 to 2 units in the last place; what is below -125 counts as -125.
    #[inline(always)]
    unsafe fn exp2(x: Self::V) -> Self::V {
        // SAFETY: the caller's promise, passed on; no pointers.
        unsafe {
            let round = Self::splat(12_582_912.0);
            let x = Self::max(Self::splat(-125.0), x); // in this order NaN stays NaN
            let shifted = Self::add(x, round);
            let r = Self::sub(x, Self::sub(shifted, round));
            // The polynomial with p(0) = 1 whose largest relative error on [-1/2, 1/2] is the least, 9.2e-8.
            #[allow(clippy::approx_constant)] // 0.693147 is near ln 2, but not meant to be it
            let coefficients = [9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147, 1.0];
            let mut p = Self::splat(1.326_472_7e-3);
            for c in coefficients {
                p = Self::fma(p, r, Self::splat(c));
            }
            Self::times_pow2(p, shifted)
        }
    }
}

/// Lanes that sums over a row are kept in, on every instruction set.
pub(super) const SUM_LANES: usize = 16;

/// `x / (1 + exp(-x))`, SiLU.
#[inline(always)]
pub(super) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise, that the set is there; no pointers.
    unsafe {
        // Above 88 the exponential would overflow; x is divided by 1.7e38 there.
        let e = S::exp(S::min(S::sub(S::splat(0.0), x), S::splat(88.0)));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// erf by a rational function in x^2 on [-4, 4] (the minimax fit used by Eigen and XLA), 4e-7 at most off.
#[inline(always)]
pub(super) unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    const P: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024_1e-6,
        -5.692_506_3e-5,
        -7.349_906_4e-4,
        -2.954_599_7e-3,
        -1.609_603_3e-2,
    ];
    const Q: [f32; 5] = [
        -1.456_607_2e-5,
        -2.133_740_6e-4,
        -1.682_827e-3,
        -7.373_329e-3,
        -1.426_473_9e-2,
    ];
    // SAFETY: the caller's promise, that the set is there; no pointers.
    unsafe {
        let x = S::min(S::max(x, S::splat(-4.0)), S::splat(4.0));
        let s = S::mul(x, x);
        let mut p = S::splat(P[0]);
        for c in &P[1..] {
            p = S::fma(p, s, S::splat(*c));
        }
        let mut q = S::splat(Q[0]);
        for c in &Q[1..] {
            q = S::fma(q, s, S::splat(*c));
        }
        S::div(S::mul(p, x), q)
    }
}

/// Four lanes of plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

// SAFETY: plain Rust; loads and stores touch LANES elements at the pointer.
unsafe impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const BLOCK: usize = 2;
    const ISA: Isa = Isa::Portable;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's promise: valid for 4 elements.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise: valid for 4 elements.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn times_pow2(p: Self::V, n: Self::V) -> Self::V {
        lanes(|i| f32::from_bits(p[i].to_bits().wrapping_add(n[i].to_bits() << 23)))
    }
}

/// Implements [`Simd`] by intrinsics that all take and give the same vector.
macro_rules! by_intrinsics {
    ($(#[$doc:meta])* $name:ident, $arch:ident, $v:ident, $lanes:literal, $block:literal,
     $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident, $max:ident, $min:ident,
     |$a:ident, $b:ident, $c:ident| $fma:expr, |$p:ident, $n:ident| $pow2:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        // SAFETY: each function is one or a few intrinsics of the set, which the caller promises to be there; loads and
        // stores are of LANES unaligned elements at the pointer.
        unsafe impl Simd for $name {
            type V = std::arch::$arch::$v;
            const LANES: usize = $lanes;
            const BLOCK: usize = $block;
            const ISA: Isa = Isa::$name;

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self::V {
                // SAFETY: see above; so below.
                unsafe { std::arch::$arch::$splat(x) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::$arch::$load(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut f32, v: Self::V) {
                // SAFETY: see above.
                unsafe { std::arch::$arch::$store(to, v) }
            }
            #[inline(always)]
            unsafe fn fma($a: Self::V, $b: Self::V, $c: Self::V) -> Self::V {
                #[allow(clippy::wildcard_imports)]
                use std::arch::$arch::*;
                // SAFETY: see above.
                unsafe { $fma }
            }
            #[inline(always)]
            unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::$arch::$add(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::$arch::$sub(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::$arch::$mul(a, b) }
            }
            #[inline(always)]
            unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::$arch::$div(a, b) }
            }
            #[inline(always)]
            unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::$arch::$max(a, b) }
            }
            #[inline(always)]
            unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::$arch::$min(a, b) }
            }
            #[inline(always)]
            unsafe fn times_pow2($p: Self::V, $n: Self::V) -> Self::V {
                #[allow(clippy::wildcard_imports)]
                use std::arch::$arch::*;
                // SAFETY: see above.
                unsafe { $pow2 }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
by_intrinsics!(
    /// AVX-512.
    Avx512, x86_64, __m512, 16, 4,
    _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps,
    _mm512_max_ps, _mm512_min_ps,
    |a, b, c| _mm512_fmadd_ps(a, b, c),
    |p, n| _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_castps_si512(p),
        _mm512_slli_epi32::<23>(_mm512_castps_si512(n))
    ))
);

#[cfg(target_arch = "x86_64")]
by_intrinsics!(
    /// AVX2 and FMA.
    Avx2, x86_64, __m256, 8, 2,
    _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps,
    _mm256_max_ps, _mm256_min_ps,
    |a, b, c| _mm256_fmadd_ps(a, b, c),
    |p, n| _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(p),
        _mm256_slli_epi32::<23>(_mm256_castps_si256(n))
    ))
);

#[cfg(target_arch = "aarch64")]
by_intrinsics!(
    /// NEON.
    Neon, aarch64, float32x4_t, 4, 4,
    vdupq_n_f32, vld1q_f32, vst1q_f32, vaddq_f32, vsubq_f32, vmulq_f32, vdivq_f32, vmaxq_f32, vminq_f32,
    |a, b, c| vfmaq_f32(c, a, b),
    |p, n| vreinterpretq_f32_s32(vaddq_s32(
        vreinterpretq_s32_f32(p),
        vshlq_n_s32::<23>(vreinterpretq_s32_f32(n))
    ))
);

/// Makes `fn name(isa, arguments)` of a generic `unsafe fn generic<S: Simd>(arguments)` that is `#[inline(always)]`: a
/// copy of it is compiled for each instruction set, and the one for `isa` is called.
///
/// The new function is unsafe for what `generic` demands of its arguments; that `isa` is there is for whoever made it
/// an [`Isa`] to see to (those of [`Isa::available`] are).
macro_rules! multiversion {
    ($(#[$attr:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:ident) => {
        $(#[$attr])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::cpu::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[allow(unused_imports)]
            use $crate::cpu::simd::{Isa, Portable};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: what the caller of `name` promised.
                unsafe { $generic::<$crate::cpu::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: what the caller of `name` promised.
                unsafe { $generic::<$crate::cpu::simd::Avx2>($($arg),*) }
            }
            match isa {
                // SAFETY: `isa` was detected, so the processor has the features; the rest is the caller's promise.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above; NEON is part of the base.
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => unsafe { $generic::<$crate::cpu::simd::Neon>($($arg),*) },
                // SAFETY: as above; nothing is needed.
                Isa::Portable => unsafe { $generic::<Portable>($($arg),*) },
            }
        }
    };
}
pub(super) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    unsafe fn exponentials_with<S: Simd>(x: &[f32; 64], exp: &mut [f32; 64], exp2: &mut [f32; 64]) {
        for i in (0..64).step_by(S::LANES) {
            // SAFETY: S::LANES divides 64.
            unsafe {
                let x = S::load(x.as_ptr().add(i));
                S::store(exp.as_mut_ptr().add(i), S::exp(x));
                S::store(exp2.as_mut_ptr().add(i), S::exp2(x));
            }
        }
    }
    multiversion! {
        unsafe fn exponentials(x: &[f32; 64], exp: &mut [f32; 64], exp2: &mut [f32; 64]) = exponentials_with
    }

    #[test]
    fn exponentials_are_close_to_libm() {
        for isa in Isa::available() {
            let (mut exp, mut exp2) = ([0.0; 64], [0.0; 64]);
            for first in 0..2000 {
                let x: [f32; 64] = std::array::from_fn(|i| -((first * 64 + i) as f32) / 1000.0);
                // SAFETY: nothing is demanded but the set.
                unsafe { exponentials(isa, &x, &mut exp, &mut exp2) };
                for i in 0..64 {
                    let expected = libm::exp(f64::from(x[i].max(-87.0)));
                    let off = (f64::from(exp[i]) / expected - 1.0).abs();
                    assert!(off < 3e-7, "{isa:?}: exp({}) off by {off}", x[i]);
                    let expected = libm::exp2(f64::from(x[i].max(-125.0)));
                    let off = (f64::from(exp2[i]) / expected - 1.0).abs();
                    assert!(off < 2.4e-7, "{isa:?}: 2^{} off by {off}", x[i]);
                }
            }
            let x = [0.0, f32::NAN, f32::NEG_INFINITY, -0.0];
            let x: [f32; 64] = std::array::from_fn(|i| x[i % 4]);
            // SAFETY: as above.
            unsafe { exponentials(isa, &x, &mut exp, &mut exp2) };
            for y in [exp, exp2] {
                assert!(y[0] == 1.0 && y[1].is_nan() && y[2] < 3e-38 && y[3] == 1.0);
            }
        }
    }
}
