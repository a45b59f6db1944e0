//! With which blocks, numbers and shared memory each kernel is launched: functions of shapes.

use candle_core::{Result, Tensor};

use super::super::{Padding, Window};

/// Threads of a block. 128 columns of a head are summed at once in attention, and reductions have seven halvings.
const THREADS: usize = 128;
/// Blocks of kernels whose threads each make numbers of their own: enough for every processor of a card several times.
const MOST_BLOCKS: usize = 4096;
/// Floats of shared memory that a block may have without asking the driver: 48 KiB (CUDA Programming Guide, compute capabilities).
const SHARED: usize = 12_288;
/// Queries of a block of attention, and columns that each thread sums: QUERIES and COLUMNS of `kernels.cu`.
const QUERIES: usize = 16;
const COLUMNS: usize = 4;
/// Keys that are held in shared memory at a time, at most.
const TILE: usize = 64;

/// A launch. The kernel's arguments are the result, the tensors, the integers, the floats.
#[derive(Debug)]
pub struct Call {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// The shape of the result, float32.
    pub shape: Vec<usize>,
    /// How many numbers each tensor has to have; `None` of one that is left out, or whose numbers are checked elsewhere.
    pub sizes: Vec<Option<usize>>,
    /// Integers.
    pub ints: Vec<i32>,
    /// Floats.
    pub floats: Vec<f32>,
}

/// Which part of a blend an attention is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side<'a> {
    /// No blend.
    Whole,
    /// Times a mask `[B or 1, N]`.
    Inside(&'a Tensor),
    /// Times what the mask leaves, added to the inside `[B, N, C]`.
    Outside(&'a Tensor, &'a Tensor),
}

impl<'a> Side<'a> {
    pub(super) fn mask(&self) -> Option<&'a Tensor> {
        match *self {
            Self::Whole => None,
            Self::Inside(mask) | Self::Outside(mask, _) => Some(mask),
        }
    }

    pub(super) fn before(&self) -> Option<&'a Tensor> {
        match *self {
            Self::Outside(_, before) => Some(before),
            _ => None,
        }
    }

    fn number(&self) -> i32 {
        match self {
            Self::Whole => 0,
            Self::Inside(_) => 1,
            Self::Outside(..) => 2,
        }
    }
}

/// The shapes of an attention.
#[derive(Debug)]
pub(super) struct Shapes {
    images: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    size: usize,
    shared_keys: bool,
}

impl Shapes {
    /// Of queries `[B, N, C]` and keys `[B or 1, M, C]`.
    pub(super) fn of(q: &Tensor, k: &Tensor, heads: usize) -> Result<Self> {
        let (images, queries, width) = q.dims3()?;
        let (sources, keys, own) = k.dims3()?;
        if heads == 0 || width % heads != 0 || own != width || (sources != 1 && sources != images) {
            candle_core::bail!(
                "queries {:?} of {heads} heads and keys {:?}",
                q.dims(),
                k.dims()
            );
        }
        Ok(Self {
            images,
            queries,
            keys,
            heads,
            size: width / heads,
            shared_keys: sources == 1,
        })
    }

    /// Images of keys.
    pub(super) fn sources(&self) -> usize {
        if self.shared_keys { 1 } else { self.images }
    }

    /// Keys of an image.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    fn width(&self) -> usize {
        self.heads * self.size
    }
}

/// A number as kernels count: they index with 32 bits, and step once beyond the last.
fn int(number: usize) -> Result<i32> {
    match i32::try_from(number) {
        Ok(int) if number < i32::MAX as usize - MOST_BLOCKS * THREADS => Ok(int),
        _ => candle_core::bail!(
            "a tensor of {number} numbers is too large for the kernels of RETOUCH_CUDA_KERNELS=fused; leave that out"
        ),
    }
}

fn ints<const N: usize>(numbers: [usize; N]) -> Result<Vec<i32>> {
    numbers.into_iter().map(int).collect()
}

/// A kernel whose threads each make numbers of their own; the last integer is how many there are.
fn each(
    kernel: &'static str,
    shape: Vec<usize>,
    sizes: Vec<Option<usize>>,
    mut ints: Vec<i32>,
) -> Result<Call> {
    let count: usize = shape.iter().product();
    ints.push(int(count)?);
    Ok(Call {
        kernel,
        grid: [count.div_ceil(THREADS).clamp(1, MOST_BLOCKS) as u32, 1, 1],
        threads: THREADS as u32,
        shared: 0,
        shape,
        sizes,
        ints,
        floats: Vec::new(),
    })
}

/// Group normalisation of `[B, C, ...]`.
pub(super) fn group_norm(shape: &[usize], groups: usize, silu: bool, eps: f64) -> Result<Call> {
    let (images, channels) = (shape[0], shape[1]);
    let pixels: usize = shape[2..].iter().product();
    let count: usize = shape.iter().product();
    int(count)?;
    if groups == 0 || channels % groups != 0 {
        candle_core::bail!("{channels} channels in {groups} groups");
    }
    Ok(Call {
        kernel: "group_norm",
        grid: [(images * groups) as u32, 1, 1],
        threads: THREADS as u32,
        shared: (THREADS * size_of::<f32>()) as u32,
        shape: shape.to_vec(),
        sizes: vec![Some(count), Some(channels), Some(channels)],
        ints: ints([channels, pixels, groups, usize::from(silu)])?,
        floats: vec![eps as f32],
    })
}

/// Layer normalisation over the last dimension.
pub(super) fn layer_norm(shape: &[usize], eps: f64) -> Result<Call> {
    let width = shape[shape.len() - 1];
    let count: usize = shape.iter().product();
    int(count)?;
    Ok(Call {
        kernel: "layer_norm",
        grid: [(count / width.max(1)) as u32, 1, 1],
        threads: THREADS as u32,
        shared: (THREADS * size_of::<f32>()) as u32,
        shape: shape.to_vec(),
        sizes: vec![Some(count), Some(width), Some(width)],
        ints: ints([width])?,
        floats: vec![eps as f32],
    })
}

/// GEGLU of `[..., 2 K]`.
pub(super) fn geglu(shape: &[usize]) -> Result<Call> {
    let mut shape = shape.to_vec();
    let count: usize = shape.iter().product();
    int(count)?;
    let last = shape.len() - 1;
    shape[last] /= 2;
    let width = shape[last];
    each("geglu", shape, vec![Some(count)], ints([width])?)
}

/// What a convolution over `[B, C, H, W]` reads; `None`: the image as it is.
pub(super) fn padded(shape: &[usize], window: Window) -> Result<Option<Call>> {
    let [images, channels, height, width] = *shape else {
        candle_core::bail!("an image of shape {shape:?}");
    };
    if window.enlarged.is_none() && window.padding == Padding::same(0) {
        return Ok(None);
    }
    let count: usize = shape.iter().product();
    int(count)?;
    let (h, w) = window.enlarged.unwrap_or((height, width));
    let Padding {
        top,
        bottom,
        left,
        right,
    } = window.padding;
    let (rows, columns) = (top + h + bottom, left + w + right);
    let numbers = ints([height, width, h, w, top, left, rows, columns])?;
    let to = vec![images, channels, rows, columns];
    each("padded", to, vec![Some(count)], numbers).map(Some)
}

/// What is added to a product of that shape: `[B, O, H, W]`, or `[..., O]`. `there`: bias, image, residual.
pub(super) fn terms(shape: &[usize], outputs: usize, there: [bool; 3]) -> Result<Call> {
    let pixels = match *shape {
        [_, _, h, w] => h * w,
        _ => 1,
    };
    let count: usize = shape.iter().product();
    let sizes = [outputs, count / pixels.max(1), count];
    let sizes = there
        .iter()
        .zip(sizes)
        .map(|(there, size)| there.then_some(size));
    let sizes = std::iter::once(Some(count)).chain(sizes).collect();
    let [bias, image, residual] = there.map(usize::from);
    let numbers = ints([outputs, pixels, bias, image, residual])?;
    each("terms", shape.to_vec(), sizes, numbers)
}

/// Attention; `None` for heads that are too large for it.
pub(super) fn attention(
    shapes: &Shapes,
    chosen: bool,
    side: &Side<'_>,
    scale: f64,
) -> Result<Option<Call>> {
    let size = shapes.size;
    // Queries, and the running numbers of each; a key, its value and its scores.
    let fixed = QUERIES * size + 4 * QUERIES;
    let each_key = 2 * size + 1 + QUERIES;
    let tile = (SHARED.saturating_sub(fixed) / each_key).min(TILE);
    if tile == 0 || size > COLUMNS * THREADS {
        return Ok(None);
    }
    let (result, keys) = (
        shapes.images * shapes.queries * shapes.width(),
        shapes.sources() * shapes.keys * shapes.width(),
    );
    int(result)?;
    int(keys)?;
    let shared_mask = match side.mask() {
        Some(mask) => mask.dim(0)? == 1,
        None => false,
    };
    let mut numbers = ints([
        shapes.queries,
        shapes.keys,
        shapes.heads,
        size,
        tile,
        usize::from(shapes.shared_keys),
        usize::from(chosen),
    ])?;
    numbers.extend([side.number(), i32::from(shared_mask)]);
    let masked = if shared_mask { 1 } else { shapes.images } * shapes.queries;
    Ok(Some(Call {
        kernel: "attention",
        grid: [
            shapes.queries.div_ceil(QUERIES) as u32,
            shapes.heads as u32,
            shapes.images as u32,
        ],
        threads: THREADS as u32,
        shared: ((fixed + tile * each_key) * size_of::<f32>()) as u32,
        shape: vec![shapes.images, shapes.queries, shapes.width()],
        sizes: vec![
            Some(result),
            Some(keys),
            Some(keys),
            chosen.then_some(shapes.sources() + 1),
            None,
            side.mask().map(|_| masked),
            side.before().map(|_| result),
        ],
        ints: numbers,
        floats: vec![scale as f32],
    }))
}

/// The mean of the heads' maps; `None` for more keys than a block has memory for.
pub(super) fn attention_map(shapes: &Shapes, scale: f64) -> Result<Option<Call>> {
    let shared = THREADS + shapes.keys;
    if shared > SHARED {
        return Ok(None);
    }
    let width = shapes.width();
    int(shapes.images * shapes.queries * shapes.keys.max(width))?;
    Ok(Some(Call {
        kernel: "attention_map",
        grid: [shapes.queries as u32, shapes.images as u32, 1],
        threads: THREADS as u32,
        shared: (shared * size_of::<f32>()) as u32,
        shape: vec![shapes.images, shapes.queries, shapes.keys],
        sizes: vec![
            Some(shapes.images * shapes.queries * width),
            Some(shapes.sources() * shapes.keys * width),
        ],
        ints: ints([
            shapes.queries,
            shapes.keys,
            shapes.heads,
            shapes.size,
            usize::from(shapes.shared_keys),
        ])?,
        floats: vec![scale as f32],
    }))
}
