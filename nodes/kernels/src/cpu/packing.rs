//! Weights in the order in which products read them.

use std::mem::MaybeUninit;

use candle_core::DType;
use half::{bf16, f16};
use rayon::prelude::*;

use super::buffers::{Scratch, Unfilled};
use super::team;

/// Columns of a panel of packed float32 or float16 weights: four AVX-512 vectors.
pub(super) const PANEL: usize = 64;
/// Columns and inner indices of a block of packed bfloat16 weights, see [`pack`].
pub(super) const SQUARE: usize = 32;

/// The elements of packed weights.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packed<'a> {
    F32(&'a [f32]),
    /// Those of the weight that this one is the transpose of, its window turned round: panels are transposed when they are read.
    Transposed(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    /// Float32 numbers as the exact sums of so many bfloat16 parts, two of which share a word: tiles of the matrix unit.
    Split(&'a [u32], usize),
}

/// A weight as matrix: inner index = (tap, input), column = output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a> {
    pub data: Packed<'a>,
    pub outputs: usize,
    pub inputs: usize,
    pub taps: usize,
}

impl Matrix<'_> {
    /// The panel that begins at a column, in float32, `[taps * inputs][width]`, and its width.
    pub fn panel(&self, column: usize, scratch: &mut Scratch) -> (*const f32, usize) {
        let inner = self.inputs * self.taps;
        let width = PANEL.min(padded_columns(self.outputs) - column);
        let len = inner * width;
        let widened = |scratch: &mut Scratch| {
            let to = scratch.bytes(len * 4).cast::<f32>();
            // SAFETY: the scratch is that long and aligned to 64; any bytes are float32 numbers.
            unsafe { std::slice::from_raw_parts_mut(to, len) }
        };
        match self.data {
            Packed::F32(data) => (data[column * inner..][..len].as_ptr(), width),
            Packed::Transposed(data) => {
                let to = scratch.bytes(len * 4).cast::<MaybeUninit<f32>>();
                // SAFETY: the scratch is that long and aligned to 64.
                let to = unsafe { std::slice::from_raw_parts_mut(to, len) };
                let depth = self.outputs * self.taps;
                let rows = width.min(self.outputs - column);
                // A block of each of its panels and each of its taps, of which lines of both are whole cache lines.
                for first in (0..self.inputs).step_by(PANEL) {
                    let wide = PANEL.min(padded_columns(self.inputs) - first);
                    let columns = wide.min(self.inputs - first);
                    let panel = &data[first * depth..][..depth * wide];
                    for tap in 0..self.taps {
                        let from = &panel[(tap * self.outputs + column) * wide..][..rows * wide];
                        let start = ((self.taps - 1 - tap) * self.inputs + first) * width;
                        let to = &mut to[start..start + columns * width];
                        transpose_block(from, (rows, wide), to, (columns, width));
                    }
                }
                (to.as_ptr().cast(), width)
            }
            Packed::F16(data) => {
                use half::slice::HalfFloatSliceExt;
                let to = widened(scratch);
                data[column * inner..][..len].convert_to_f32_slice(to);
                (to.as_ptr(), width)
            }
            Packed::Bf16(_) | Packed::Split(..) => {
                let to = widened(scratch);
                let parts = match self.data {
                    Packed::Split(_, parts) => parts,
                    _ => 1,
                };
                let depth = self.inputs.next_multiple_of(SQUARE);
                // A tile, of 16 columns, by its number.
                let tile = |number: usize, to: &mut [f32], at: usize, rows: usize, first: bool| {
                    for pair in 0..rows.div_ceil(2) {
                        for c in 0..16 {
                            let word = number * 256 + pair * 16 + c;
                            let (even, odd) = match self.data {
                                Packed::Bf16(data) => (
                                    u32::from(data[2 * word].to_bits()) << 16,
                                    u32::from(data[2 * word + 1].to_bits()) << 16,
                                ),
                                Packed::Split(data, _) => {
                                    (data[word] << 16, data[word] & 0xffff_0000)
                                }
                                _ => (0, 0),
                            };
                            let mut put = |row: usize, bits: u32| {
                                let to = &mut to[at + row * width + c];
                                let x = f32::from_bits(bits);
                                *to = if first { x } else { *to + x };
                            };
                            put(2 * pair, even);
                            if 2 * pair + 1 < rows {
                                put(2 * pair + 1, odd);
                            }
                        }
                    }
                };
                let squares = depth / SQUARE;
                for tap in 0..self.taps {
                    for square in 0..squares {
                        let rows = SQUARE.min(self.inputs - square * SQUARE);
                        let k = tap * self.inputs + square * SQUARE;
                        for c in (0..width).step_by(16) {
                            let block = (column + c) / SQUARE * self.taps * squares;
                            let number = (block + tap * squares + square) * parts;
                            for part in 0..parts {
                                // Small parts last, so that the sum of the first two is exact.
                                let number = (number + part) * 2 + (column + c) / 16 % 2;
                                tile(number, to, k * width + c, rows, part == 0);
                            }
                        }
                    }
                }
                (to.as_ptr(), width)
            }
        }
    }
}

/// Columns of `from`, `rows` lines of `width` numbers, as `columns` lines of `to_width` numbers, which end in zeros.
pub(super) fn transpose_block(
    from: &[f32],
    (rows, width): (usize, usize),
    to: Unfilled<'_>,
    (columns, to_width): (usize, usize),
) {
    assert!(rows <= to_width && columns <= width);
    assert!(from.len() >= rows * width && to.len() >= columns * to_width);
    #[cfg(not(target_arch = "x86_64"))]
    let done = (0, 0);
    #[cfg(target_arch = "x86_64")]
    let done = match std::arch::is_x86_feature_detected!("avx") {
        true => (rows / 8 * 8, columns / 8 * 8),
        false => (0, 0),
    };
    #[cfg(target_arch = "x86_64")]
    if done.0 > 0 {
        for row in (0..done.0).step_by(8) {
            for column in (0..done.1).step_by(8) {
                // SAFETY: AVX is there; 8 x 8 numbers from (row, column) on are inside of `from`, from (column, row) on of `to`.
                unsafe {
                    let from = from.as_ptr().add(row * width + column);
                    let to = to.as_mut_ptr().add(column * to_width + row).cast();
                    transpose_8x8(from, width, to, to_width);
                }
            }
        }
    }
    for (column, to) in to.chunks_exact_mut(to_width).take(columns).enumerate() {
        let first = if column < done.1 { done.0 } else { 0 };
        for row in first..rows {
            to[row].write(from[row * width + column]);
        }
        to[rows..].fill(MaybeUninit::new(0.0));
    }
}

/// 8 x 8 numbers with rows and columns exchanged.
///
/// # Safety
/// AVX, and eight lines of eight numbers that far apart at both.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn transpose_8x8(from: *const f32, from_line: usize, to: *mut f32, to_line: usize) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    // SAFETY: the caller's promise.
    let lines: [_; 8] =
        std::array::from_fn(|i| unsafe { _mm256_loadu_ps(from.add(i * from_line)) });
    // Pairs of lines interleaved, then fours, then both halves.
    let mut pairs = lines;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(lines[2 * i], lines[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(lines[2 * i], lines[2 * i + 1]);
    }
    let mut fours = pairs;
    for half in 0..2 {
        let at = 4 * half;
        fours[at] = _mm256_shuffle_ps::<0x44>(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm256_shuffle_ps::<0xee>(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm256_shuffle_ps::<0x44>(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm256_shuffle_ps::<0xee>(pairs[at + 1], pairs[at + 3]);
    }
    for i in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
            _mm256_storeu_ps(to.add(i * to_line), low);
            let high = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
            _mm256_storeu_ps(to.add((i + 4) * to_line), high);
        }
    }
}

/// How many elements a weight takes when it is packed in that type.
pub(super) fn packed_len(dtype: DType, outputs: usize, inputs: usize, taps: usize) -> usize {
    match dtype {
        DType::BF16 => outputs.next_multiple_of(SQUARE) * inputs.next_multiple_of(SQUARE) * taps,
        _ => padded_columns(outputs) * inputs * taps,
    }
}

/// Into how many bfloat16 parts float32 numbers must be cut so that nothing is lost: 1 if they were bfloat16 once, 2 if
/// float16 (11 bits, and no smaller exponents than bfloat16 has), 3 else.
pub(super) fn parts(numbers: &[f32]) -> usize {
    let bits = numbers
        .par_chunks(1 << 16)
        .map(|chunk| chunk.iter().fold(0, |all, x| all | x.to_bits()))
        .reduce(|| 0, |a, b| a | b);
    match bits {
        _ if bits & 0xffff == 0 => 1,
        _ if bits & 0xff == 0 => 2,
        _ => 3,
    }
}

/// Packs a float32 weight `[outputs, inputs, taps]` as blocks of [`SQUARE`] columns, each
/// `[tap][input / 32][part][column / 16 % 2][input / 2 % 16][column % 16][input % 2]` of bfloat16.
pub(super) fn pack_split(
    from: &[f32],
    parts: usize,
    outputs: usize,
    inputs: usize,
    taps: usize,
) -> Vec<u32> {
    let depth = inputs.next_multiple_of(SQUARE);
    let block = SQUARE * depth * taps * parts / 2;
    let mut packed = vec![0u32; outputs.div_ceil(SQUARE) * block];
    packed
        .par_chunks_mut(block)
        .enumerate()
        .for_each(|(block, to)| {
            in_tiles(block, outputs, inputs, taps, |square, inside, o, i, tap| {
                let number = |i: usize| from[(o * inputs + i) * taps + tap];
                let mut pair = [number(i), if i + 1 < inputs { number(i + 1) } else { 0.0 }];
                for part in 0..parts {
                    let high = pair.map(|x| x.to_bits() & 0xffff_0000);
                    to[(square * parts + part) * SQUARE * SQUARE / 2 + inside] =
                        high[0] >> 16 | high[1];
                    pair[0] -= f32::from_bits(high[0]);
                    pair[1] -= f32::from_bits(high[1]);
                }
            });
        });
    packed
}

/// Writes tiles of a weight `[outputs, inputs, taps]`, cut into so many parts, as those of the weight `[inputs, outputs, taps
/// turned round]`: the parts are the same numbers, so nothing is cut again. `from` gives a word by its place. All of `to` is written.
pub(super) fn transpose_tiles(
    from: impl Fn(usize) -> u32 + Sync,
    parts: usize,
    (outputs, inputs): (usize, usize),
    taps: usize,
    to: Unfilled<'_, u32>,
) {
    const WORDS: usize = SQUARE * SQUARE / 2;
    let (rows, columns) = (inputs.div_ceil(SQUARE), outputs.div_ceil(SQUARE));
    // A block of the result is what one row of squares of every block of the weight becomes.
    team::for_each_chunk(to, columns * taps * parts * WORDS, |row, to| {
        for (square, to) in to.chunks_exact_mut(parts * WORDS).enumerate() {
            let (tap, column) = (taps - 1 - square / columns, square % columns);
            let first = ((column * taps + tap) * rows + row) * parts;
            for (part, to) in to.chunks_exact_mut(WORDS).enumerate() {
                transpose_square(|at| from((first + part) * WORDS + at), to);
            }
        }
    });
}

/// Transposes a square of two tiles, `[column / 16][row / 2][column % 16][row % 2]`. Two words hold two rows of two columns: they
/// become two words of the result, in which these four numbers are transposed.
fn transpose_square(from: impl Fn(usize) -> u32, to: Unfilled<'_, u32>) {
    // Blocks of 8 x 8 such quarters, of which lines of both are whole cache lines.
    for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for q in 0..8 {
            let line = &mut to[(down * 16 + right * 8 + q) * 16..][..16];
            for (p, to) in line.chunks_exact_mut(2).enumerate() {
                let at = (right * 16 + down * 8 + p) * 16 + 2 * q;
                let (even, odd) = (from(at), from(at + 1));
                to[0].write(even & 0xffff | odd << 16);
                to[1].write(even >> 16 | odd & 0xffff_0000);
            }
        }
    }
}

/// Calls `f(square, place of the pair in it, output, first input of the pair, tap)` for every pair of inputs of a block of
/// [`SQUARE`] columns, in the order in which they are packed: what is written follows itself, and what is read of the
/// block's rows, 32 inputs of each, stays in the first cache while all taps are taken from it.
fn in_tiles(
    block: usize,
    outputs: usize,
    inputs: usize,
    taps: usize,
    mut f: impl FnMut(usize, usize, usize, usize, usize),
) {
    let first = block * SQUARE;
    let columns = SQUARE.min(outputs - first);
    for i in (0..inputs).step_by(SQUARE) {
        for tap in 0..taps {
            let square = (tap * inputs.next_multiple_of(SQUARE) + i) / SQUARE;
            for half in 0..columns.div_ceil(16) {
                for pair in 0..SQUARE.min(inputs - i).div_ceil(2) {
                    for c in 0..16.min(columns - half * 16) {
                        let inside = (half * 16 + pair) * 16 + c;
                        f(square, inside, first + half * 16 + c, i + 2 * pair, tap);
                    }
                }
            }
        }
    }
}

/// Columns with the last panel's padding.
pub(super) fn padded_columns(outputs: usize) -> usize {
    outputs.next_multiple_of(16)
}

/// Packs a weight `[outputs, inputs, taps]`.
///
/// Float32 and float16: panels of [`PANEL`] columns (the last as many as there are, rounded up to 16), each
/// `[tap][input][column]`. Bfloat16: blocks of [`SQUARE`] columns, each `[tap][input / 32][column / 16 % 2][input / 2 % 16]
/// [column % 16][input % 2]`: tiles of the matrix unit, and vectors of pairs for those that multiply pairs. What is padded
/// is zero.
pub(super) fn pack<T: Copy + Send + Sync + Default>(
    from: &[T],
    dtype: DType,
    outputs: usize,
    inputs: usize,
    taps: usize,
) -> Vec<T> {
    let mut packed = vec![T::default(); packed_len(dtype, outputs, inputs, taps)];
    let source = |o: usize, i: usize, tap: usize| from[(o * inputs + i) * taps + tap];
    if dtype == DType::BF16 {
        let depth = inputs.next_multiple_of(SQUARE);
        packed
            .par_chunks_mut(SQUARE * depth * taps)
            .enumerate()
            .for_each(|(block, to)| {
                in_tiles(block, outputs, inputs, taps, |square, inside, o, i, tap| {
                    let at = square * SQUARE * SQUARE + 2 * inside;
                    to[at] = source(o, i, tap);
                    if i + 1 < inputs {
                        to[at + 1] = source(o, i + 1, tap);
                    }
                });
            });
    } else {
        let inner = inputs * taps;
        packed
            .par_chunks_mut(PANEL * inner)
            .enumerate()
            .for_each(|(panel, to)| {
                let width = to.len() / inner;
                let columns = width.min(outputs - panel * PANEL);
                // In blocks of inputs, so that what is read of each row is a few whole cache lines at a time, and stays
                // in the first cache while all taps are taken from it.
                for first in (0..inputs).step_by(16) {
                    for tap in 0..taps {
                        for i in first..inputs.min(first + 16) {
                            let row = &mut to[(tap * inputs + i) * width..][..columns];
                            for (column, to) in row.iter_mut().enumerate() {
                                *to = source(panel * PANEL + column, i, tap);
                            }
                        }
                    }
                }
            });
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::buffers::written;

    #[test]
    fn tiles_that_are_transposed_are_those_of_the_transposed_weight() {
        for (outputs, inputs, taps) in [(64, 96, 1), (70, 33, 1), (1, 3, 9), (40, 66, 9)] {
            // 24 bits each, so that three parts differ.
            let number = |at: usize| (at * 7919 % 16_000_057) as f32;
            let all = 0..outputs * inputs * taps;
            let whole: Vec<f32> = all.clone().map(number).collect();
            let turned: Vec<f32> = all
                .map(|at| {
                    let (i, o, tap) = (at / taps / outputs, at / taps % outputs, at % taps);
                    number((o * inputs + i) * taps + taps - 1 - tap)
                })
                .collect();
            for parts in 1..=3 {
                let packed = pack_split(&whole, parts, outputs, inputs, taps);
                let due = pack_split(&turned, parts, inputs, outputs, taps);
                // SAFETY: all of the tiles are written.
                let found = unsafe {
                    written(due.len(), |to| {
                        transpose_tiles(|at| packed[at], parts, (outputs, inputs), taps, to);
                        Ok(())
                    })
                };
                assert!(
                    found.unwrap().0 == due,
                    "{outputs} x {inputs} x {taps}, {parts} parts"
                );
            }
        }
    }
}
