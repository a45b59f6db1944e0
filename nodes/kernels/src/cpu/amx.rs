//! Products on the matrix unit of x86-64 (AMX: tiles of 16 rows x 64 bytes, bfloat16 in, float32 out).
//!
//! The compiler has no stable intrinsics for it, so the instructions are written out; the compiler itself never touches
//! tile registers, which therefore keep their contents between the statements below.

use std::arch::asm;
use std::sync::LazyLock;

/// Rows of a tile, and its float32 columns.
pub const SIDE: usize = 16;
/// Bfloat16 numbers in a row of a tile: how much of the inner dimension one instruction takes.
pub const DEPTH: usize = 32;
/// Bytes of a full tile.
pub const TILE: usize = 1024;
/// Rows and columns of the block of products that [`multiply`] holds in tiles.
pub const BLOCK: usize = 2 * SIDE;

/// Whether the processor has the unit and the system lets this process use it; asked once.
#[must_use]
pub fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(detect);
    *AVAILABLE
}

#[cfg(target_os = "linux")]
fn detect() -> bool {
    use std::arch::is_x86_feature_detected as has;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// CPUID leaf 7, EDX: AMX-BF16 and AMX-TILE.
    const TILES: u32 = 1 << 22 | 1 << 24;
    /// arch_prctl's ARCH_REQ_XCOMP_PERM, and the number of the state of tile data (Linux, Documentation/arch/x86/xstate).
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    const ARCH_PRCTL: u64 = 158;
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512bf16")) {
        return false;
    }
    #[allow(unused_unsafe)] // safe or not by the version of the standard library
    // SAFETY: CPUID is there on every x86-64; leaf 7 is asked for only where leaf 0 says that it exists.
    let tiles = unsafe { __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES == TILES };
    if !tiles {
        return false;
    }
    let result: i64;
    // SAFETY: a system call with two numbers; it touches no memory of ours. An old kernel answers EINVAL.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn detect() -> bool {
    false
}

/// Asks for a line of memory, into the L2 cache.
#[inline(always)]
pub fn prefetch(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a hint, which may name any address; SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
}

/// The tiles of this thread, configured as eight full ones for as long as this lives; no other thread's, hence the pointer.
pub struct Tiles(std::marker::PhantomData<*const ()>);

impl Tiles {
    /// Configures them.
    ///
    /// # Panics
    /// When [`is_available`] is false.
    #[must_use]
    pub fn configure() -> Self {
        assert!(is_available(), "no matrix unit");
        /// Palette 1: the bytes of a row of each tile as u16 from byte 16, the rows of each from byte 48.
        #[repr(align(64))]
        struct Config([u8; 64]);
        static CONFIG: Config = {
            let mut config = [0; 64];
            config[0] = 1;
            let mut tile = 0;
            while tile < 8 {
                config[16 + 2 * tile] = 64;
                config[48 + tile] = SIDE as u8;
                tile += 1;
            }
            Config(config)
        };
        // SAFETY: the unit is there and permitted; the instruction reads the 64 bytes of the configuration.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG.0, options(nostack, readonly));
        }
        Self(std::marker::PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the unit is there, as there is a `Tiles`. Released tiles need not be saved by the system.
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}

/// `tile = 16 rows of 64 bytes` that are `stride` bytes apart.
macro_rules! load {
    ($tile:literal, $from:expr, $stride:expr) => {
        asm!(concat!("tileloadd tmm", $tile, ", [{from} + {stride}*1]"),
             from = in(reg) $from, stride = in(reg) $stride, options(nostack, readonly))
    };
}

/// The four products of two tiles of rows (4, 5) and two of columns (6, 7), added to tiles 0 to 3.
macro_rules! four {
    () => {
        asm!(
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            options(nostack, nomem)
        )
    };
}

/// One operand of a product, cut into the bfloat16 parts that its numbers are the sums of.
///
/// `PARTS` = 3 keeps all 24 bits of a float32 (8 a part), 2 the 11 of a float16, 1 is bfloat16 itself.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The first part of the first row.
    pub data: *const u8,
    /// Bytes from a row to the next.
    pub stride: usize,
    /// Bytes from a part to the next.
    pub part: usize,
    /// Bytes from [`DEPTH`] inner indices to the next.
    pub step: usize,
}

/// What is asked for while a block is multiplied, so that it is near when its turn comes: `lines` cache lines for each tap
/// and step. Memory sends so many lines at a time and no more, so they are spread over the products.
#[derive(Clone, Copy)]
pub struct Ahead {
    /// The first line of the first tap and step; nothing is read, so it may be anywhere.
    pub from: *const u8,
    /// Bytes from a tap to the next.
    pub tap: usize,
    /// Bytes from a step to the next.
    pub step: usize,
    /// Lines of each.
    pub lines: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Self = Self {
        from: std::ptr::null(),
        tap: 0,
        step: 0,
        lines: 0,
    };

    /// Asks for the share `number` of `of` shares of the lines of a tap and step.
    #[inline(always)]
    fn ask(&self, tap: usize, step: usize, number: usize, of: usize) {
        let from = self.from.wrapping_add(tap * self.tap + step * self.step);
        for line in number * self.lines / of..(number + 1) * self.lines / of {
            prefetch(from.wrapping_add(line * 64));
        }
    }
}

/// `out[32][32] = sum over taps and steps of a b`, rows of a from `a.data + tap`, b `[tap][step][part][2][TILE]` as
/// [`split_columns`] leaves it, its taps `b_tap` bytes apart.
///
/// With three parts h, m, l of 8 bits each the products h h, h m, m h, m m, h l, l h are summed, those of l before those of
/// h alone. What is left out, m l, l m and l l, is below 2^-21 of a product's size, and some 2^-25 of it in the mean. With fewer
/// parts of b those products that exist.
///
/// Without tiles, for parts of one, by the vector unit's products of pairs.
///
/// # Safety
/// `a` must be valid for 32 rows of 64 bytes at each tap, step and part, `b` for as many tiles, out for 1024 numbers.
/// `Tiles` shows that the unit is there; without them A and B must be 1 and AVX-512 F and BF16 there.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn multiply<const A: usize, const B: usize>(
    tiles: Option<&Tiles>,
    a: Rows,
    taps: &[usize],
    steps: usize,
    b: *const u8,
    b_tap: usize,
    ahead: [Ahead; 2],
    out: *mut f32,
) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        match tiles {
            Some(tiles) => by_tiles::<A, B>(tiles, a, taps, steps, b, b_tap, ahead, out),
            None => {
                for tap in 0..taps.len() {
                    for step in 0..steps {
                        ahead.iter().for_each(|ahead| ahead.ask(tap, step, 0, 1));
                    }
                }
                by_pairs(a, taps, steps, b, b_tap, out);
            }
        }
    }
}

/// [`multiply`] of operands in one part by AVX512-BF16, in blocks of rows whose sums stay in registers.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn by_pairs(
    a: Rows,
    taps: &[usize],
    steps: usize,
    b: *const u8,
    b_tap: usize,
    out: *mut f32,
) {
    // SAFETY: 12 + 12 + 8 rows are the 32 of the caller's promise; the functions read and write no others.
    unsafe {
        pairs_block::<12>(a, 0, taps, steps, b, b_tap, out);
        pairs_block::<12>(a, 12, taps, steps, b, b_tap, out);
        pairs_block::<8>(a, 24, taps, steps, b, b_tap, out);
    }
}

/// M rows from row `first` on, and 32 columns.
///
/// # Safety
/// As [`multiply`]; first + M at most 32.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn pairs_block<const M: usize>(
    a: Rows,
    first: usize,
    taps: &[usize],
    steps: usize,
    b: *const u8,
    b_tap: usize,
    out: *mut f32,
) {
    use std::arch::x86_64::*;
    // SAFETY: pair p < 16 of row first + m < 32 is 4 of the 64 bytes of a row, and row p of a tile is 64 bytes of its
    // TILE; the rest is the caller's promise. Vectors of 16 pairs are as large as vectors of bits.
    unsafe {
        let pairs = |v: __m512i| std::mem::transmute::<__m512i, __m512bh>(v);
        let rows_stride = a.stride;
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        for (number, &tap) in taps.iter().enumerate() {
            for step in 0..steps {
                let a = a.data.add(tap + step * a.step + first * a.stride);
                let b = b.add(number * b_tap + step * 2 * TILE);
                let stride = rows_stride;
                for p in 0..DEPTH / 2 {
                    let columns = [
                        pairs(_mm512_loadu_si512(b.add(p * 64).cast())),
                        pairs(_mm512_loadu_si512(b.add(TILE + p * 64).cast())),
                    ];
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let x = a.add(m * stride + p * 4).cast::<i32>().read_unaligned();
                        let x = pairs(_mm512_set1_epi32(x));
                        sums[0] = _mm512_dpbf16_ps(sums[0], x, columns[0]);
                        sums[1] = _mm512_dpbf16_ps(sums[1], x, columns[1]);
                    }
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            let to = out.add((first + m) * BLOCK);
            _mm512_storeu_ps(to, sums[0]);
            _mm512_storeu_ps(to.add(SIDE), sums[1]);
        }
    }
}

/// [`multiply`] by the matrix unit.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn by_tiles<const A: usize, const B: usize>(
    _: &Tiles,
    a: Rows,
    taps: &[usize],
    steps: usize,
    b: *const u8,
    b_tap: usize,
    ahead: [Ahead; 2],
    out: *mut f32,
) {
    // SAFETY: all loads are of tiles that the caller promises; pointers are moved by the same amounts as its layout says.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem)
        );
        let lower = SIDE * a.stride;
        for (number, &tap) in taps.iter().enumerate() {
            let mut b = b.add(number * b_tap);
            for step in 0..steps {
                let rows = a.data.add(tap + step * a.step);
                let of_a = |part: usize| rows.add(part * a.part);
                let of_b = |part: usize| b.add(part * 2 * TILE);
                macro_rules! a {
                    ($part:literal) => {
                        load!(4, of_a($part), a.stride);
                        load!(5, of_a($part).add(lower), a.stride);
                    };
                }
                macro_rules! b {
                    ($part:literal) => {
                        load!(6, of_b($part), 64usize);
                        load!(7, of_b($part).add(TILE), 64usize);
                    };
                }
                let ask = |share: usize| {
                    let of = if A == 3 { 3 } else { 1 };
                    ahead
                        .iter()
                        .for_each(|ahead| ahead.ask(number, step, share, of));
                };
                // Neighbouring products share an operand, so that each part is loaded once or twice.
                if A == 3 {
                    a!(2);
                    b!(0);
                    four!();
                    ask(0);
                    a!(1);
                    four!();
                    ask(1);
                    if B >= 2 {
                        b!(1);
                        four!();
                        a!(0);
                        four!();
                        if B == 3 {
                            b!(2);
                            four!();
                        }
                        ask(2);
                        b!(0);
                    } else {
                        ask(2);
                        a!(0);
                    }
                    four!();
                } else {
                    a!(0);
                    b!(0);
                    four!();
                    ask(0);
                }
                b = b.add(B * 2 * TILE);
            }
        }
        let row = 4 * BLOCK;
        macro_rules! store {
            ($tile:literal, $at:expr) => {
                asm!(concat!("tilestored [{to} + {stride}*1], tmm", $tile),
                     to = in(reg) out.add($at), stride = in(reg) row, options(nostack))
            };
        }
        store!(0, 0);
        store!(1, SIDE);
        store!(2, SIDE * BLOCK);
        store!(3, SIDE * BLOCK + SIDE);
    }
}

/// Cuts two vectors into their bfloat16 parts; `join` makes one vector of 32 of the high halves of two of 16.
///
/// By truncation, so that x = h + m + l holds exactly: each part takes the next 8 of the 24 bits, and the differences
/// are exact. A single part is rounded to nearest instead.
macro_rules! parts {
    ($parts:expr, $x0:expr, $x1:expr, $join:expr, $store:expr) => {{
        #[allow(clippy::wildcard_imports)]
        use std::arch::x86_64::*;
        let (mut x0, mut x1): (__m512, __m512) = ($x0, $x1);
        if $parts == 1 {
            // Half a unit in the last place added, and the tie to even; numbers here are finite.
            let round = |x: __m512| {
                let bits = _mm512_castps_si512(x);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)))
            };
            $store(0, $join(round(x0), round(x1)));
        } else {
            let high = |x: __m512| {
                _mm512_and_si512(
                    _mm512_castps_si512(x),
                    _mm512_set1_epi32(0xffff_0000u32 as i32),
                )
            };
            for part in 0..$parts {
                let (h0, h1) = (high(x0), high(x1));
                $store(part, $join(h0, h1));
                x0 = _mm512_sub_ps(x0, _mm512_castsi512_ps(h0));
                x1 = _mm512_sub_ps(x1, _mm512_castsi512_ps(h1));
            }
        }
    }};
}

/// Cuts columns `first .. first + 32 steps` of some rows of x (as long as `width`) into parts: row r's 32 numbers of a step
/// at `to + (step * PARTS * part) + r * 64`, parts `part` bytes apart. Rows of `u32::MAX` and columns behind the last are zeros.
///
/// # Safety
/// The processor must have AVX-512 F and BW; `to` must be valid for `steps * PARTS * part` bytes, `part` at least 64 for each row.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn split_rows<const PARTS: usize>(
    x: &[f32],
    width: usize,
    rows: &[u32],
    first: usize,
    steps: usize,
    to: *mut u8,
    part: usize,
) {
    use std::arch::x86_64::*;
    assert!(first < width && part >= rows.len() * 64);
    let end = width.min(first + steps * DEPTH);
    for (r, &row) in rows.iter().enumerate() {
        let x = if row == u32::MAX {
            None
        } else {
            Some(&x[row as usize * width..][..width])
        };
        for step in 0..steps {
            let at = first + step * DEPTH;
            // SAFETY: masked loads touch only the columns at .. end of the row; stores are of 64 bytes in each part.
            unsafe {
                let half = |at: usize| match x {
                    Some(x) if at + SIDE <= end => _mm512_loadu_ps(x.as_ptr().add(at)),
                    Some(x) if at < end => {
                        let mask = ((1u32 << (end - at)) - 1) as u16;
                        _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at))
                    }
                    _ => _mm512_setzero_ps(),
                };
                split_pair::<PARTS>(
                    half(at),
                    half(at + SIDE),
                    to.add(step * PARTS * part + r * 64),
                    part,
                );
            }
        }
    }
}

/// Cuts 32 numbers into parts of 64 bytes, `part` bytes apart.
///
/// # Safety
/// The processor must have AVX-512 F and BW; `to` must be valid for 64 bytes in each part.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub unsafe fn split_pair<const PARTS: usize>(
    x0: std::arch::x86_64::__m512,
    x1: std::arch::x86_64::__m512,
    to: *mut u8,
    part: usize,
) {
    use std::arch::x86_64::_mm512_loadu_si512;
    // The high half of each 32-bit lane, of x0 then of x1.
    const HIGH: [u16; 32] = {
        let mut index = [0; 32];
        let mut i = 0;
        while i < 32 {
            index[i] = 2 * i as u16 + 1;
            i += 1;
        }
        index
    };
    // SAFETY: stores are of 64 bytes at `part` apart, as the caller promises.
    unsafe {
        let index = _mm512_loadu_si512(HIGH.as_ptr().cast());
        parts!(
            PARTS,
            x0,
            x1,
            |a, b| _mm512_permutex2var_epi16(a, index, b),
            |p: usize, v| _mm512_storeu_si512(to.add(p * part).cast(), v)
        );
    }
}

/// Cuts a block of columns, `depth` <= 32 rows (inner indices) of `columns` <= 32 numbers `stride` apart, into the tiles
/// `[part][2][TILE]`: pairs of rows interleaved, as the unit wants its second operand.
///
/// # Safety
/// The processor must have AVX-512 F and BW; `from` valid for the block, `to` for `PARTS * 2 * TILE` bytes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub unsafe fn split_columns<const PARTS: usize>(
    from: *const f32,
    stride: usize,
    depth: usize,
    columns: usize,
    to: *mut u8,
) {
    use std::arch::x86_64::*;
    for tile in 0..2 {
        let left = columns.saturating_sub(tile * SIDE).min(SIDE);
        let mask = ((1u32 << left) - 1) as u16;
        for pair in 0..DEPTH / 2 {
            let row = |r: usize| {
                let mask = if r < depth { mask } else { 0 };
                // SAFETY: the mask lets only numbers of the block be read.
                unsafe { _mm512_maskz_loadu_ps(mask, from.wrapping_add(r * stride + tile * SIDE)) }
            };
            // SAFETY: 64 bytes at pair < 16 of tile < 2 of part < PARTS are inside PARTS * 2 * TILE.
            unsafe {
                let to = to.add(tile * TILE + pair * 64);
                parts!(
                    PARTS,
                    row(2 * pair),
                    row(2 * pair + 1),
                    |a, b| _mm512_or_si512(
                        _mm512_srli_epi32::<16>(a),
                        _mm512_and_si512(b, _mm512_set1_epi32(0xffff_0000u32 as i32))
                    ),
                    |p: usize, v| _mm512_storeu_si512(to.add(p * 2 * TILE).cast(), v)
                );
            }
        }
    }
}
