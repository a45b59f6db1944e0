//! U2-Net (Qin et al. 2020, arXiv 2005.09007): which part of a picture is its subject.
//!
//! The small variant, `u2netp`: 1.1 million parameters, batch normalisation folded into the convolutions. Its weights are in
//! the program.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder};

use retouch_kernels::{KeepMore, Kernel, Padding, Terms, Weight, Window};

use crate::{Result, goes_on};

/// The side of the pictures that the network was trained on.
pub const SIDE: usize = 320;

/// The mean of each channel that pictures are shifted by: ImageNet's.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// The deviation of each channel that pictures are divided by: ImageNet's.
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// The weights, float32: see `data/README.md`.
static WEIGHTS: &[u8] = include_bytes!("../../data/u2netp.safetensors");

/// The channels of every stage's result.
const WIDE: usize = 64;

/// The channels inside of a stage.
const NARROW: usize = 16;

/// Depth of the six stages of the encoder, and whether the stage pools; a stage without is dilated.
const STAGES: [(usize, bool); 6] = [
    (7, true),
    (6, true),
    (5, true),
    (4, true),
    (4, false),
    (4, false),
];

/// Where layers come from, and what they are computed by.
struct Loader<'a> {
    builder: VarBuilder<'a>,
    kernel: &'a Arc<dyn Kernel>,
}

impl Loader<'_> {
    fn pp(&self, name: String) -> Self {
        Self {
            builder: self.builder.pp(name),
            kernel: self.kernel,
        }
    }
}

/// A convolution that keeps the grid, by the kernels where they have it: they have no dilation.
#[derive(Debug)]
struct Convolution {
    plain: Conv2d,
    packed: Option<Weight>,
    kernel: Arc<dyn Kernel>,
}

impl Convolution {
    fn new(plain: Conv2d, kernel: &Arc<dyn Kernel>) -> Result<Self> {
        let packed = (plain.config().dilation == 1)
            .then(|| Weight::new(plain.weight(), &**kernel))
            .transpose()?;
        Ok(Self {
            plain,
            packed,
            kernel: Arc::clone(kernel),
        })
    }

    /// Images of C channels to images of O, in the layout of the kernels.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some(weight) = &self.packed else {
            let y = self.plain.forward(&self.kernel.planes(x)?)?;
            return Ok(self.kernel.images(&y)?);
        };
        let window = Window::padded(Padding::same(self.plain.config().padding));
        let terms = Terms::bias(self.plain.bias());
        Ok(self.kernel.conv2d(x, weight, window, terms)?)
    }

    /// The same, with a ReLU.
    fn rectified(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.kernel.relu(&self.forward(x)?)?)
    }

    /// Images of half the sides: the largest of each four pixels.
    fn pooled(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.kernel.max_pool2(x)?)
    }

    /// Images in the size of `like`: bilinear, corners not aligned.
    fn enlarged(&self, x: &Tensor, like: &Tensor) -> Result<Tensor> {
        let size = self.kernel.layout().grid(like)?;
        if self.kernel.layout().grid(x)? == size {
            return Ok(x.clone());
        }
        Ok(self.kernel.bilinear(x, size)?)
    }
}

/// A residual U-block: a small U-Net whose result is added to what goes in.
#[derive(Debug)]
struct Block {
    enter: Convolution,
    /// Convolutions on the way down; the last has no finer one beside it.
    down: Vec<Convolution>,
    /// Those on the way up, the coarsest first.
    up: Vec<Convolution>,
    pools: bool,
}

impl Block {
    fn load(weights: &Loader<'_>, input: usize, (depth, pools): (usize, bool)) -> Result<Self> {
        // Without pooling every level looks twice as far as the one before instead.
        let dilation = |level: usize| match pools {
            true => 1 + usize::from(level == depth),
            false => 1 << (level - 1),
        };
        let conv = |name: String, input, output, dilation| {
            convolution(&weights.pp(name), input, output, dilation)
        };
        let down = (1..=depth).map(|level| {
            let input = if level == 1 { WIDE } else { NARROW };
            conv(format!("rebnconv{level}"), input, NARROW, dilation(level))
        });
        let up = (1..depth).rev().map(|level| {
            let output = if level == 1 { WIDE } else { NARROW };
            let dilation = if pools { 1 } else { dilation(level) };
            conv(format!("rebnconv{level}d"), 2 * NARROW, output, dilation)
        });
        Ok(Self {
            enter: conv("rebnconvin".to_owned(), input, WIDE, 1)?,
            down: down.collect::<Result<_>>()?,
            up: up.collect::<Result<_>>()?,
            pools,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        goes_on()?;
        let x = self.enter.rectified(x)?;
        let mut levels: Vec<Tensor> = Vec::with_capacity(self.down.len());
        for (level, conv) in self.down.iter().enumerate() {
            let is_coarsest = level + 1 == self.down.len();
            let from = levels.last().unwrap_or(&x);
            let from = match level > 0 && self.pools && !is_coarsest {
                true => conv.pooled(from)?,
                false => from.clone(),
            };
            levels.push(conv.rectified(&from)?);
        }
        let mut up = levels.pop().unwrap_or_else(|| x.clone());
        for (conv, beside) in self.up.iter().zip(levels.iter().rev()) {
            up = (conv.kernel).concat(&conv.enlarged(&up, beside)?, beside)?;
            up = conv.rectified(&up)?;
        }
        Ok((up + x)?)
    }
}

/// A 3 x 3 convolution that keeps the grid.
fn convolution(
    weights: &Loader<'_>,
    input: usize,
    output: usize,
    dilation: usize,
) -> Result<Convolution> {
    let config = Conv2dConfig {
        padding: dilation,
        dilation,
        ..Conv2dConfig::default()
    };
    let plain = candle_nn::conv2d(input, output, 3, config, weights.builder.clone())?;
    Convolution::new(plain, weights.kernel)
}

/// The network.
#[derive(Debug)]
pub struct U2Net {
    down: Vec<Block>,
    /// The blocks on the way up, the coarsest first.
    up: Vec<Block>,
    /// What makes a map of each level's result, the finest first.
    side: Vec<Convolution>,
    joined: Convolution,
}

impl U2Net {
    /// The small network, with the weights in the program, computed by `kernel`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn small(device: &Device, kernel: &Arc<dyn Kernel>) -> Result<Self> {
        let builder = VarBuilder::from_slice_safetensors(WEIGHTS, DType::F32, device)?;
        let weights = Loader { builder, kernel };
        let down = STAGES.iter().enumerate().map(|(index, stage)| {
            let input = if index == 0 { 3 } else { WIDE };
            Block::load(&weights.pp(format!("stage{}", index + 1)), input, *stage)
        });
        let up = STAGES
            .iter()
            .enumerate()
            .take(5)
            .rev()
            .map(|(index, stage)| {
                Block::load(
                    &weights.pp(format!("stage{}d", index + 1)),
                    2 * WIDE,
                    *stage,
                )
            });
        let side = (1..=STAGES.len())
            .map(|number| convolution(&weights.pp(format!("side{number}")), WIDE, 1, 1));
        Ok(Self {
            down: down.collect::<Result<_>>()?,
            up: up.collect::<Result<_>>()?,
            side: side.collect::<Result<_>>()?,
            joined: Convolution::new(
                candle_nn::conv2d(
                    STAGES.len(),
                    1,
                    1,
                    Conv2dConfig::default(),
                    weights.builder.pp("outconv"),
                )?,
                kernel,
            )?,
        })
    }

    /// How far each pixel belongs to the subject, from 0 to 1: pictures `[B, 3, 320, 320]` in 0..=1 give `[B, 1, 320, 320]`.
    ///
    /// Each picture is divided by its largest value, as the network was trained.
    ///
    /// # Errors
    /// When the shape is another, or the run was cancelled.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let (batch, _, _, _) = pictures.dims4()?;
        let _memory = KeepMore::new();
        let largest = pictures.flatten_from(1)?.max(1)?.clamp(1e-6f32, f32::MAX)?;
        let constant =
            |values: &[f32; 3]| Tensor::new(values, pictures.device())?.reshape((1, 3, 1, 1));
        let x = pictures
            .broadcast_div(&largest.reshape((batch, 1, 1, 1))?)?
            .broadcast_sub(&constant(&MEAN)?)?
            .broadcast_div(&constant(&DEVIATION)?)?;
        let kernel = &self.joined.kernel;
        let x = kernel.images(&x)?;
        let mut levels: Vec<Tensor> = Vec::with_capacity(self.down.len());
        for block in &self.down {
            let from = match levels.last() {
                Some(finer) => block.enter.pooled(finer)?,
                None => x.clone(),
            };
            levels.push(block.forward(&from)?);
        }
        // The results of each level, the coarsest first: that of the encoder's last, then those on the way up.
        let mut results: Vec<Tensor> = levels.pop().into_iter().collect();
        for (block, beside) in self.up.iter().zip(levels.iter().rev()) {
            let coarser = results.last().unwrap_or(beside);
            let both = kernel.concat(&block.enter.enlarged(coarser, beside)?, beside)?;
            results.push(block.forward(&both)?);
        }
        let maps = self.side.iter().zip(results.iter().rev());
        let maps: Vec<Tensor> = maps
            .map(|(conv, result)| conv.enlarged(&conv.forward(result)?, &x))
            .collect::<Result<_>>()?;
        let maps = Tensor::cat(&maps, kernel.layout().channels())?;
        let joined = kernel.planes(&self.joined.forward(&maps)?)?;
        Ok(candle_nn::ops::sigmoid(&joined)?)
    }
}
