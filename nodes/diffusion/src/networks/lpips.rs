//! LPIPS (Zhang et al. 2018, arXiv 1801.03924), version 0.1: how different two pictures look, by the features of AlexNet or VGG16 and
//! weights that were fitted to what people said.
//!
//! candle-transformers has neither network with the layers in between. A picture's features do not depend on what it is compared with.

use candle_core::{D, DType, Device, Tensor};

use crate::checkpoint::weights::{Scope, Weights};
use crate::{Error, Result, goes_on};
use retouch_kernels::{Kernel, Padding, Terms, Weight, Window};

/// What is subtracted from colours in -1..=1, and what they are divided by then (the package's scaling layer).
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// Added to the length of a pixel's features.
const EPS: f64 = 1e-10;
/// The layers that are compared.
const LAYERS: usize = 5;

/// The network whose features are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backbone {
    /// AlexNet, as torchvision has it: what the paper recommends for measuring.
    AlexNet,
    /// VGG16, as torchvision has it.
    Vgg16,
}

/// A convolution with a ReLU, by its number in `features` of torchvision's network.
#[derive(Clone, Copy, Debug)]
struct Conv {
    number: usize,
    input: usize,
    output: usize,
    size: usize,
    stride: usize,
}

const fn conv(number: usize, input: usize, output: usize, size: usize, stride: usize) -> Conv {
    Conv {
        number,
        input,
        output,
        size,
        stride,
    }
}

/// Layer by layer of those that are compared; before all but the first the features are pooled, where the network does it.
const ALEXNET: [&[Conv]; LAYERS] = [
    &[conv(0, 3, 64, 11, 4)],
    &[conv(3, 64, 192, 5, 1)],
    &[conv(6, 192, 384, 3, 1)],
    &[conv(8, 384, 256, 3, 1)],
    &[conv(10, 256, 256, 3, 1)],
];

const VGG16: [&[Conv]; LAYERS] = [
    &[conv(0, 3, 64, 3, 1), conv(2, 64, 64, 3, 1)],
    &[conv(5, 64, 128, 3, 1), conv(7, 128, 128, 3, 1)],
    &[
        conv(10, 128, 256, 3, 1),
        conv(12, 256, 256, 3, 1),
        conv(14, 256, 256, 3, 1),
    ],
    &[
        conv(17, 256, 512, 3, 1),
        conv(19, 512, 512, 3, 1),
        conv(21, 512, 512, 3, 1),
    ],
    &[
        conv(24, 512, 512, 3, 1),
        conv(26, 512, 512, 3, 1),
        conv(28, 512, 512, 3, 1),
    ],
];

impl Backbone {
    /// The network that a file's tensors are of, if it is one of both.
    #[must_use]
    pub fn of(contains: impl Fn(&str) -> bool) -> Option<Self> {
        if contains("features.28.weight") {
            return Some(Self::Vgg16);
        }
        contains("features.10.weight").then_some(Self::AlexNet)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AlexNet => "AlexNet",
            Self::Vgg16 => "VGG16",
        }
    }

    /// The shortest side in pixels that leaves features in every layer.
    #[must_use]
    pub fn least_side(self) -> usize {
        match self {
            Self::AlexNet => 31,
            Self::Vgg16 => 16,
        }
    }

    /// How many numbers the features of a picture are.
    #[must_use]
    pub fn features(self, (width, height): (usize, usize)) -> usize {
        let (mut size, mut sum) = ((width, height), 0usize);
        for (index, layer) in self.layers().iter().enumerate() {
            if let Some(side) = self.pooled(index) {
                let pooled = |length: usize| length.saturating_sub(side) / 2 + 1;
                size = (pooled(size.0), pooled(size.1));
            }
            for conv in *layer {
                let padded = 2 * Self::padding(*conv);
                let after =
                    |length: usize| (length + padded).saturating_sub(conv.size) / conv.stride + 1;
                size = (after(size.0), after(size.1));
            }
            let channels = layer.last().map_or(0, |conv| conv.output);
            sum = sum.saturating_add(size.0.saturating_mul(size.1).saturating_mul(channels));
        }
        sum
    }

    fn layers(self) -> [&'static [Conv]; LAYERS] {
        match self {
            Self::AlexNet => ALEXNET,
            Self::Vgg16 => VGG16,
        }
    }

    /// Pools before a layer: the side of the window; the stride is 2.
    fn pooled(self, layer: usize) -> Option<usize> {
        match self {
            Self::AlexNet => matches!(layer, 1 | 2).then_some(3),
            Self::Vgg16 => (layer > 0).then_some(2),
        }
    }

    fn padding(conv: Conv) -> usize {
        // The first of AlexNet is 11 pixels wide and has 2 zeros around, as has the one of 5; those of 3 have one.
        if conv.size > 3 { 2 } else { 1 }
    }
}

/// A convolution that is loaded.
#[derive(Debug)]
struct Loaded {
    weight: Weight,
    bias: Tensor,
    window: Window,
}

/// The network.
#[derive(Debug)]
pub struct Lpips {
    backbone: Backbone,
    layers: Vec<Vec<Loaded>>,
    /// The weight of each channel of each layer, a linear layer to one number.
    linear: Vec<Vec<f64>>,
}

/// The features of a picture: for each layer every pixel's, one pixel after the other, each of length 1.
#[derive(Debug)]
pub struct Features(Vec<Vec<f32>>);

impl Lpips {
    /// Loads the network from torchvision's file and the weights of its linear layers from the package's (`lin0.model.1.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; while checking these are noted in `weights` and `linear`.
    pub fn load(backbone: Backbone, weights: &Weights, linear: &Weights) -> Result<Self> {
        let root = weights.root().at("features");
        let of_layer = |convs: &[Conv]| convs.iter().map(|conv| load(&root, *conv)).collect();
        let layers: Vec<Vec<Loaded>> = (backbone.layers().iter())
            .map(|convs| of_layer(convs))
            .collect::<Result<_>>()?;
        let linear_layers = (0..LAYERS).map(|layer| {
            let width = backbone.layers()[layer]
                .last()
                .map_or(0, |conv| conv.output);
            let scope = linear.root().at(format!("lin{layer}.model.1"));
            let weight = scope.get("weight", (1, width, 1, 1))?;
            if scope.is_checking() {
                return Ok(Vec::new());
            }
            Ok((weight.flatten_all()?)
                .to_device(&Device::Cpu)?
                .to_dtype(DType::F64)?
                .to_vec1()?)
        });
        Ok(Self {
            backbone,
            layers,
            linear: linear_layers.collect::<Result<_>>()?,
        })
    }

    /// The features of one picture: `[1, 3, H, W]` in 0..=1.
    ///
    /// # Errors
    /// When a side is shorter than [`Backbone::least_side`], or the run was cancelled.
    pub fn features(&self, picture: &Tensor, kernel: &dyn Kernel) -> Result<Features> {
        let (_, _, height, width) = picture.dims4()?;
        let least = self.backbone.least_side();
        if height.min(width) < least {
            return Err(Error::request(format!(
                "{} takes pictures of at least {least} pixels a side, not {width}x{height}",
                self.backbone.name()
            )));
        }
        let constant =
            |values: &[f32; 3]| Tensor::new(values, picture.device())?.reshape((1, 3, 1, 1));
        let x = ((picture * 2.0)? - 1.0)?
            .broadcast_sub(&constant(&SHIFT)?)?
            .broadcast_div(&constant(&SCALE)?)?;
        let mut x = kernel.images(&x)?;
        let mut found = Vec::with_capacity(LAYERS);
        for (index, layer) in self.layers.iter().enumerate() {
            goes_on()?;
            if let Some(side) = self.backbone.pooled(index) {
                x = match side {
                    2 => kernel.max_pool2(&x)?,
                    _ => kernel.images(&kernel.planes(&x)?.max_pool2d_with_stride(side, 2)?)?,
                };
            }
            for conv in layer {
                let terms = Terms::bias(Some(&conv.bias));
                x = kernel.relu(&kernel.conv2d(&x, &conv.weight, conv.window, terms)?)?;
            }
            let pixels = kernel.tokens(&x)?;
            let length = (pixels.sqr()?.sum_keepdim(D::Minus1)?.sqrt()? + EPS)?;
            let unit = pixels.broadcast_div(&length)?;
            found.push(unit.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?);
        }
        debug_assert_eq!(
            found.iter().map(Vec::len).sum::<usize>(),
            self.backbone.features((width, height))
        );
        Ok(Features(found))
    }

    /// How different two pictures of one size look: over the layers, the sum of the mean over the pixels of the weighted squares of
    /// what their features differ by (equation 1; a weight of the file is the square of its w).
    ///
    /// # Errors
    /// When the pictures are of different sizes.
    pub fn distance(&self, a: &Features, b: &Features) -> Result<f64> {
        let mut sum = 0.0;
        for ((a, b), weights) in a.0.iter().zip(&b.0).zip(&self.linear) {
            if a.len() != b.len() {
                return Err(Error::request(
                    "pictures of different sizes have no LPIPS".to_owned(),
                ));
            }
            let pixels = (a.len() / weights.len()).max(1);
            let both = a
                .chunks_exact(weights.len())
                .zip(b.chunks_exact(weights.len()));
            let layer: f64 = both
                .map(|(a, b)| {
                    (a.iter().zip(b).zip(weights))
                        .map(|((a, b), weight)| weight * f64::from(a - b) * f64::from(a - b))
                        .sum::<f64>()
                })
                .sum();
            sum += layer / pixels as f64;
        }
        Ok(sum)
    }
}

fn load(scope: &Scope<'_>, conv: Conv) -> Result<Loaded> {
    let scope = scope.at(conv.number);
    Ok(Loaded {
        weight: scope.weight("weight", (conv.output, conv.input, conv.size, conv.size))?,
        bias: scope.get("bias", conv.output)?,
        window: Window {
            stride: conv.stride,
            padding: Padding::same(Backbone::padding(conv)),
            enlarged: None,
        },
    })
}
