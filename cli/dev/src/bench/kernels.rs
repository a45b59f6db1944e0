//! `retouch-dev bench --kernels`: the kernels on the shapes of Stable Diffusion 1.5, against a large product of matrices.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use retouch_cli::session;
use retouch_common::output::{say, say_json};
use retouch_common::{Exit, Failure};
use retouch_kernels::{Padding, Terms, Weight, Window};
use retouch_nodes::Runtime;
use serde_json::json;

use crate::args::BenchArgs;

/// Images in a batch: one, both halves of guidance.
const BATCH: usize = 2;
/// The side of the square matrices whose product is the peak that shares are counted by.
const PEAK: usize = 2048;

/// A call of a kernel; each is of [`BATCH`] images.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// 3x3 with padding 1, on a square grid of `side`.
    Conv {
        input: usize,
        output: usize,
        side: usize,
        stride: usize,
    },
    /// `rows` of `input` features to `output`.
    Linear {
        rows: usize,
        input: usize,
        output: usize,
    },
    /// Each of `queries` sees each of `keys`, in every head.
    Attention {
        queries: usize,
        keys: usize,
        heads: usize,
        width: usize,
    },
}

const fn conv(input: usize, output: usize, side: usize) -> Shape {
    Shape::Conv {
        input,
        output,
        side,
        stride: 1,
    }
}

const fn linear(rows: usize, input: usize, output: usize) -> Shape {
    Shape::Linear {
        rows,
        input,
        output,
    }
}

const fn attention(side: usize, width: usize, keys: usize) -> Shape {
    Shape::Attention {
        queries: side * side,
        keys,
        heads: 8,
        width,
    }
}

/// What a step of Stable Diffusion 1.5 at 512 pixels spends its time in, and its VAE.
const SHAPES: [Shape; 17] = [
    conv(320, 320, 64),
    conv(960, 320, 64),
    conv(640, 640, 32),
    conv(1280, 1280, 16),
    conv(2560, 1280, 8),
    Shape::Conv {
        input: 320,
        output: 320,
        side: 64,
        stride: 2,
    },
    conv(512, 512, 64),
    conv(256, 256, 256),
    conv(128, 128, 512),
    linear(4096, 320, 2560),
    linear(1024, 640, 5120),
    linear(256, 1280, 10240),
    linear(4096, 1280, 320),
    attention(64, 40, 64 * 64),
    attention(32, 80, 32 * 32),
    attention(16, 160, 16 * 16),
    attention(64, 40, 77),
];

impl Shape {
    /// Operations of the definition, an addition and a multiplication counted as two.
    fn flops(self) -> f64 {
        let products = match self {
            Self::Conv {
                input,
                output,
                side,
                stride,
            } => side.div_ceil(stride).pow(2) * output * input * 9,
            Self::Linear {
                rows,
                input,
                output,
            } => rows * input * output,
            // The scores, then the mixture of values.
            Self::Attention {
                queries,
                keys,
                heads,
                width,
            } => 2 * heads * queries * keys * width,
        };
        (2 * BATCH * products) as f64
    }

    fn label(self) -> String {
        match self {
            Self::Conv {
                input,
                output,
                side,
                stride,
            } => {
                let stride = if stride == 1 { "" } else { ", stride 2" };
                format!("3x3 {input} -> {output} at {side}x{side}{stride}")
            }
            Self::Linear {
                rows,
                input,
                output,
            } => format!("linear {rows} x {input} -> {output}"),
            Self::Attention {
                queries,
                keys,
                heads,
                width,
            } => {
                format!("attention {queries} x {keys}, {heads} heads of {width}")
            }
        }
    }

    /// Seconds of each of `runs` calls, after one that is not counted. All that knows how kernels are called is here.
    fn seconds(self, runtime: &Runtime, runs: u16) -> Result<Vec<f64>> {
        let (device, kernel) = (&runtime.device, &*runtime.kernel);
        let numbers = |shape: &[usize]| Tensor::rand(-1f32, 1f32, shape, device);
        match self {
            Self::Conv {
                input,
                output,
                side,
                stride,
            } => {
                let x = numbers(&[BATCH, input, side, side])?;
                let x = kernel.layout().images(&x)?;
                let w = numbers(&[output, input, 3, 3])?.to_dtype(runtime.dtype)?;
                let w = Weight::new(&w, kernel)?;
                let bias = numbers(&[output])?;
                let window = Window {
                    stride,
                    ..Window::padded(Padding::same(1))
                };
                timed(runs, device, || {
                    kernel.conv2d(&x, &w, window, Terms::bias(Some(&bias)))
                })
            }
            Self::Linear {
                rows,
                input,
                output,
            } => {
                let x = numbers(&[BATCH, rows, input])?;
                let w = numbers(&[output, input])?.to_dtype(runtime.dtype)?;
                let w = Weight::new(&w, kernel)?;
                let bias = numbers(&[output])?;
                let terms = Terms::bias(Some(&bias));
                timed(runs, device, || kernel.linear(&x, &w, terms))
            }
            Self::Attention {
                queries,
                keys,
                heads,
                width,
            } => {
                let q = numbers(&[BATCH, queries, heads * width])?;
                let k = numbers(&[BATCH, keys, heads * width])?;
                let v = numbers(&[BATCH, keys, heads * width])?;
                let scale = (width as f64).sqrt().recip();
                timed(runs, device, || {
                    kernel.attention(&q, &k, &v, heads, scale, None)
                })
            }
        }
    }

    /// GFLOP/s of the fastest and of the median of `runs` calls.
    fn speeds(self, runtime: &Runtime, runs: u16) -> Result<(f64, f64)> {
        let mut seconds = self.seconds(runtime, runs)?;
        seconds.sort_by(f64::total_cmp);
        let speed = |at: usize| {
            seconds
                .get(at)
                .map_or(0.0, |seconds| self.flops() / seconds / 1e9)
        };
        Ok((speed(0), speed(seconds.len() / 2)))
    }
}

fn timed(runs: u16, device: &Device, mut f: impl FnMut() -> Result<Tensor>) -> Result<Vec<f64>> {
    let mut once = || {
        let start = Instant::now();
        f()?;
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    once()?;
    (0..runs).map(|_| once()).collect()
}

/// Measures the kernels and prints.
///
/// # Errors
/// When the device cannot be used or has too little memory.
pub fn bench(args: &BenchArgs) -> std::result::Result<Exit, Failure> {
    let runtime = session::runtime_for(&args.device)?;
    let failed = |e: candle_core::Error| Failure::failed(e.to_string());
    // Half of the rows in each image, so that the peak is that of a square product.
    let square = linear(PEAK / BATCH, PEAK, PEAK);
    let (peak, _) = square
        .speeds(&runtime, args.runs.saturating_mul(2))
        .map_err(failed)?;
    let mut rows = Vec::with_capacity(SHAPES.len());
    for shape in SHAPES {
        let (best, median) = shape.speeds(&runtime, args.runs).map_err(failed)?;
        rows.push((shape.label(), best, median));
    }
    let dtype = match runtime.dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "f32",
    };
    let threads = rayon::current_num_threads();
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(kernel, best, median)| {
                json!({"kernel": kernel, "gflops": best, "gflops_median": median, "share": best / peak})
            })
            .collect();
        say_json(
            &json!({"kernels": runtime.kernel.name(), "dtype": dtype, "threads": threads, "runs": args.runs,
                    "batch": BATCH, "peak_gflops": peak, "rows": rows})
            .to_string(),
        )?;
    } else {
        say(&format!(
            "{dtype}, {threads} threads, batch {BATCH}, the fastest of {} calls; a product of {PEAK} x {PEAK} matrices: \
             {peak:.0} GFLOP/s",
            args.runs
        ))?;
        for (kernel, best, _) in &rows {
            say(&format!(
                "{kernel:40} {best:8.0} GFLOP/s  {:4.0} % of it",
                best / peak * 100.0
            ))?;
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_definition() {
        // A 3x3 convolution of 1 channel to 1 on 4x4: 16 pixels of 9 products, in each image; with stride 2, 4 pixels.
        let small = |stride| Shape::Conv {
            input: 1,
            output: 1,
            side: 4,
            stride,
        };
        assert_eq!(small(1).flops(), (BATCH * 2 * 16 * 9) as f64);
        assert_eq!(small(2).flops(), (BATCH * 2 * 4 * 9) as f64);
        assert_eq!(linear(3, 5, 7).flops(), (BATCH * 2 * 3 * 5 * 7) as f64);
        // 4 queries, 77 keys, 8 heads of 3: scores and mixture.
        assert_eq!(
            attention(2, 3, 77).flops(),
            (BATCH * 2 * 2 * 4 * 77 * 8 * 3) as f64
        );
    }

    #[test]
    fn every_kind_of_kernel_runs_and_gives_a_speed() {
        let runtime = Runtime::cpu();
        let down = Shape::Conv {
            input: 4,
            output: 8,
            side: 6,
            stride: 2,
        };
        for shape in [conv(4, 8, 6), down, linear(6, 4, 8), attention(4, 4, 7)] {
            let (best, median) = shape.speeds(&runtime, 3).unwrap();
            assert!(best >= median && median > 0.0, "{shape:?}");
        }
    }
}
