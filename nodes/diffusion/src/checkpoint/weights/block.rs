//! Numbers that are stored in fewer bits than float16: eight-bit floating point, and the blocks of ggml.
//!
//! A block of ggml is a few tens of numbers with scales in common, one after another in the order of the elements. The
//! layouts are those of `ggml-common.h`, the sums those of `dequantize_row_*` (ggml-org/ggml, `ggml-quants.c`), in the same
//! order, so that the numbers are the same to the last bit. Blocks are read from bytes as they come: candle's own
//! dequantisation asserts that its input is aligned, and copies it twice.

use half::f16;

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// 32 numbers of 4 bits and a scale.
    Q4_0,
    /// The same and a minimum.
    Q4_1,
    /// 32 numbers of 5 bits and a scale.
    Q5_0,
    /// The same and a minimum.
    Q5_1,
    /// 32 numbers of 8 bits and a scale.
    Q8_0,
    /// 256 numbers of 4 bits, scales and minima of 6 bits for each 32 of them.
    Q4K,
    /// 256 numbers of 5 bits, the same.
    Q5K,
    /// 256 numbers of 6 bits, scales of 8 bits for each 16 of them.
    Q6K,
}

impl Block {
    const ALL: [(Self, &'static str, u32); 8] = [
        (Self::Q4_0, "Q4_0", 2),
        (Self::Q4_1, "Q4_1", 3),
        (Self::Q5_0, "Q5_0", 6),
        (Self::Q5_1, "Q5_1", 7),
        (Self::Q8_0, "Q8_0", 8),
        (Self::Q4K, "Q4_K", 12),
        (Self::Q5K, "Q5_K", 13),
        (Self::Q6K, "Q6_K", 14),
    ];

    /// The kind of this name, as ggml writes it.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, own, _)| *own == name)
            .map(|(block, ..)| *block)
    }

    /// The name of the kind with this number in a GGUF file.
    pub(super) fn name_of(number: u32) -> Option<&'static str> {
        Self::ALL
            .iter()
            .find(|(.., own)| *own == number)
            .map(|(_, name, _)| *name)
    }

    /// Numbers in a block; divides 256.
    #[must_use]
    pub const fn elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Float32 from whole blocks; of the last one no more than `to` has room for.
    pub fn widen(self, from: &[u8], to: &mut [f32]) {
        match self {
            Self::Q4_0 => each(from, to, q4_0),
            Self::Q4_1 => each(from, to, q4_1),
            Self::Q5_0 => each(from, to, q5_0),
            Self::Q5_1 => each(from, to, q5_1),
            Self::Q8_0 => each(from, to, q8_0),
            Self::Q4K => each(from, to, q4_k),
            Self::Q5K => each(from, to, q5_k),
            Self::Q6K => each(from, to, q6_k),
        }
    }
}

/// Widens blocks of `BYTES` bytes and `N` numbers.
fn each<const BYTES: usize, const N: usize>(
    from: &[u8],
    to: &mut [f32],
    widen: impl Fn(&[u8; BYTES], &mut [f32; N]),
) {
    let (whole, rest) = to.as_chunks_mut::<N>();
    let blocks = from.as_chunks::<BYTES>().0;
    for (to, block) in whole.iter_mut().zip(blocks) {
        widen(block, to);
    }
    if let (false, Some(block)) = (rest.is_empty(), blocks.get(whole.len())) {
        let mut last = [0.0; N];
        widen(block, &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// The float16 at a place.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8; 18], to: &mut [f32; 32]) {
    let d = half(block, 0);
    for (j, &q) in block[2..].iter().enumerate() {
        to[j] = f32::from((q & 15) as i8 - 8) * d;
        to[j + 16] = f32::from((q >> 4) as i8 - 8) * d;
    }
}

fn q4_1(block: &[u8; 20], to: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (j, &q) in block[4..].iter().enumerate() {
        to[j] = f32::from(q & 15) * d + m;
        to[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The fifth bits of 32 numbers, as 16 or 0.
fn fifths(high: &[u8]) -> [u8; 32] {
    let mut bits = [0; 32];
    for (bits, &high) in bits.as_chunks_mut::<8>().0.iter_mut().zip(high) {
        for (i, bit) in bits.iter_mut().enumerate() {
            *bit = if high & (1 << i) == 0 { 0 } else { 16 };
        }
    }
    bits
}

fn q5_0(block: &[u8; 22], to: &mut [f32; 32]) {
    let d = half(block, 0);
    let fifth = fifths(&block[2..6]);
    for (j, &q) in block[6..].iter().enumerate() {
        to[j] = f32::from((q & 15 | fifth[j]) as i8 - 16) * d;
        to[j + 16] = f32::from((q >> 4 | fifth[j + 16]) as i8 - 16) * d;
    }
}

fn q5_1(block: &[u8; 24], to: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let fifth = fifths(&block[4..8]);
    for (j, &q) in block[8..].iter().enumerate() {
        to[j] = f32::from(q & 15 | fifth[j]) * d + m;
        to[j + 16] = f32::from(q >> 4 | fifth[j + 16]) * d + m;
    }
}

fn q8_0(block: &[u8; 34], to: &mut [f32; 32]) {
    let d = half(block, 0);
    for (to, &q) in to.iter_mut().zip(&block[2..]) {
        *to = f32::from(q as i8) * d;
    }
}

/// Scale and minimum of each 32 numbers: 6 bits each, packed in 12 bytes.
fn scales(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|j| {
        if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            (
                packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
                packed[j + 4] >> 4 | packed[j] >> 6 << 4,
            )
        }
    })
}

fn q4_k(block: &[u8; 144], to: &mut [f32; 256]) {
    let (d, least) = (half(block, 0), half(block, 2));
    let scales = scales(&block[4..16]);
    let (q, to) = (block[16..].as_chunks::<32>().0, to.as_chunks_mut::<32>().0);
    for (part, (to, (scale, minimum))) in to.iter_mut().zip(scales).enumerate() {
        let (d, m) = (d * f32::from(scale), least * f32::from(minimum));
        let (q, shift) = (&q[part / 2], 4 * (part % 2));
        for (to, q) in to.iter_mut().zip(q) {
            *to = d * f32::from(q >> shift & 15) - m;
        }
    }
}

fn q5_k(block: &[u8; 176], to: &mut [f32; 256]) {
    let (d, least) = (half(block, 0), half(block, 2));
    let scales = scales(&block[4..16]);
    let fifth = &block[16..48];
    let (q, to) = (block[48..].as_chunks::<32>().0, to.as_chunks_mut::<32>().0);
    for (part, (to, (scale, minimum))) in to.iter_mut().zip(scales).enumerate() {
        let (d, m) = (d * f32::from(scale), least * f32::from(minimum));
        let (q, shift) = (&q[part / 2], 4 * (part % 2));
        for ((to, q), fifth) in to.iter_mut().zip(q).zip(fifth) {
            let q = q >> shift & 15 | (fifth >> part & 1) << 4;
            *to = d * f32::from(q) - m;
        }
    }
}

fn q6_k(block: &[u8; 210], to: &mut [f32; 256]) {
    let d = half(block, 208);
    let (low, high) = (
        block[..128].as_chunks::<32>().0,
        block[128..192].as_chunks::<32>().0,
    );
    for (part, to) in to.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        // Four parts of 32 share their upper bits: two of them the lower halves of the bytes, two the upper ones.
        let (g, k) = (part / 4, part % 4);
        let (low, high) = (&low[2 * g + k % 2], &high[g]);
        let (shift, upper) = (4 * (k / 2), 2 * k);
        let mut q = [0; 32];
        for (q, (low, high)) in q.iter_mut().zip(low.iter().zip(high)) {
            *q = (low >> shift & 15 | (high >> upper & 3) << 4) as i8 - 32;
        }
        for (half, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = d * f32::from(block[192 + 2 * part + half] as i8);
            for (to, &q) in to.iter_mut().zip(&q[16 * half..]) {
                *to = d * f32::from(q);
            }
        }
    }
}

/// The number of an eight-bit code with four bits of exponent (`float8_e4m3fn`: Micikevicius et al. 2022, FP8 formats for
/// deep learning, table 1): it has no infinities, and one code of each sign that is no number.
#[must_use]
pub const fn e4m3(code: u8) -> f32 {
    let sign = (code as u32 >> 7) << 31;
    let (exponent, mantissa) = ((code as u32 >> 3) & 15, code as u32 & 7);
    match (exponent, mantissa) {
        (15, 7) => f32::from_bits(sign | 0x7ff0_0000),
        (0, _) => {
            // Multiples of 2^-9.
            let size = mantissa as f32 / 512.0;
            f32::from_bits(sign | size.to_bits())
        }
        _ => f32::from_bits(sign | (exponent + 120) << 23 | mantissa << 20),
    }
}

/// The number of an eight-bit code with five bits of exponent (`float8_e5m2`): the upper half of a float16.
#[must_use]
pub fn e5m2(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).to_f32()
}
