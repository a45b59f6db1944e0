//! `retouch-dev bench --model`: the networks of a model, call by call, on inputs that are the same in every process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use retouch_cli::session;
use retouch_common::output::{say, say_json};
use retouch_common::{Exit, Failure};
use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::networks::unet::{Addition, Call, Text};
use retouch_diffusion::prompt::conditioning::Encoded;
use retouch_diffusion::sampling::control::{Branch, Rows, Untouched};
use retouch_diffusion::sampling::noise::starting_noise;
use retouch_diffusion::{Error, Result as Computed};
use retouch_graph::{NoCache, Settings};
use retouch_nodes::payload::Model;
use serde_json::{Value, json};

use super::load::load_model;
use crate::args::{BenchArgs, BenchPart};

/// What the text encoders are given.
const PROMPT: &str = "a photo of a teddy bear on a beach";
/// The timestep of the U-Net call: the middle of the schedule.
const TIMESTEP: f32 = 501.0;
/// Seeds of the U-Net's latent, the latent that is decoded, the picture that is encoded.
const SEEDS: [u64; 3] = [7, 8, 9];

pub(super) fn failed(error: Error) -> Failure {
    let failure = Failure::failed(error.to_string());
    match error.help_text() {
        Some(help) => failure.help(help),
        None => failure,
    }
}

/// What a part took.
pub(super) struct Figures {
    /// Seconds of the first call, which loads the weights.
    pub(super) first: f64,
    /// Seconds of each call after it, sorted.
    seconds: Vec<f64>,
    /// Minor page faults of each of these calls, sorted; empty where the system does not tell.
    faults: Vec<u64>,
}

impl Figures {
    pub(super) fn min(&self) -> f64 {
        self.seconds.first().copied().unwrap_or(0.0)
    }
    pub(super) fn median(&self) -> f64 {
        let middle = self.seconds.len() / 2;
        self.seconds.get(middle).copied().unwrap_or(0.0)
    }
    pub(super) fn max(&self) -> f64 {
        self.seconds.last().copied().unwrap_or(0.0)
    }
    pub(super) fn faults(&self) -> Option<u64> {
        self.faults.get(self.faults.len() / 2).copied()
    }
}

/// The minor page faults of this process so far: pages that the system had to give. Linux alone tells.
fn page_faults() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, in brackets, may hold spaces; the faults are the eighth word after it.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(7)?.parse().ok()
}

/// The most memory that this process has held, in bytes. Linux alone tells.
pub(super) fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Calls `f` once to load and `runs` times to measure; gives the figures and what the last call gave.
pub(super) fn figures(
    runs: u16,
    device: &Device,
    mut f: impl FnMut() -> Computed<Tensor>,
) -> Computed<(Figures, Tensor)> {
    let mut timed = || -> Computed<(f64, Tensor)> {
        let start = Instant::now();
        let out = f()?;
        // Waits for devices that compute on their own.
        device.synchronize()?;
        Ok((start.elapsed().as_secs_f64(), out))
    };
    let (first, mut out) = timed()?;
    let mut figures = Figures {
        first,
        seconds: Vec::new(),
        faults: Vec::new(),
    };
    for _ in 0..runs {
        let before = page_faults();
        let (seconds, tensor) = timed()?;
        figures.seconds.push(seconds);
        if let (Some(before), Some(after)) = (before, page_faults()) {
            figures.faults.push(after.saturating_sub(before));
        }
        out = tensor;
    }
    figures.seconds.sort_by(f64::total_cmp);
    figures.faults.sort_unstable();
    Ok((figures, out))
}

/// The inputs of the U-Net call.
struct Inputs {
    latent: Tensor,
    timesteps: Vec<f32>,
    context: Tensor,
    pooled: Option<Tensor>,
    side: usize,
    rows: Rows,
}

impl Inputs {
    /// Rows as guidance has them: every image by the empty prompt, then every image by [`PROMPT`]; of an odd number all are
    /// by [`PROMPT`].
    fn new(checkpoint: &Checkpoint, side: usize, rows: usize) -> Computed<Self> {
        let config = &checkpoint.description().unet;
        let guided = rows.is_multiple_of(2);
        let images = if guided { rows / 2 } else { rows };
        let grid = side / factor(checkpoint);
        let shape = (images, config.in_channels, grid, grid);
        let latent = starting_noise(SEEDS[0], shape, checkpoint.device())?;
        let prompt = checkpoint.encode_prompt(PROMPT)?;
        let repeated = |encoded: &Encoded| -> Computed<(Tensor, Option<Tensor>)> {
            let pooled = encoded.pooled.as_ref().map(|p| p.repeat((images, 1)));
            Ok((encoded.states.repeat((images, 1, 1))?, pooled.transpose()?))
        };
        let (mut context, mut pooled) = repeated(&prompt)?;
        let mut latent = latent;
        if guided {
            let (empty, empty_pooled) = repeated(&checkpoint.encode_prompt("")?)?;
            latent = Tensor::cat(&[&latent, &latent], 0)?;
            context = Tensor::cat(&[&empty, &context], 0)?;
            pooled = match (empty_pooled, pooled) {
                (Some(empty), Some(pooled)) => Some(Tensor::cat(&[&empty, &pooled], 0)?),
                _ => None,
            };
        }
        Ok(Self {
            latent,
            timesteps: vec![TIMESTEP; rows],
            context,
            pooled: pooled.filter(|_| config.pooled_width().is_some()),
            side,
            rows: Rows::new(Branch::Plain, images, guided),
        })
    }

    fn call(&self, checkpoint: &Checkpoint) -> Computed<Tensor> {
        // A new text each time: a run makes its keys and values at its first step alone, and here they are measured.
        let texts = (self.rows.halves().into_iter())
            .map(|(_, rows)| Ok(Text::new(self.context.narrow(0, rows.start, rows.len())?)))
            .collect::<Computed<Vec<_>>>()?;
        let texts: Vec<&Text> = texts.iter().collect();
        let call = Call {
            latent: &self.latent,
            timesteps: &self.timesteps,
            texts: &texts,
            addition: self.pooled.as_ref().map(|pooled| Addition {
                pooled,
                sizes: [self.side, self.side, 0, 0, self.side, self.side],
            }),
            step: 0,
            rows: self.rows,
        };
        checkpoint
            .unet()?
            .forward(call, &mut Untouched, checkpoint.unet_kernel())
    }

    fn dump(&self, tensors: &mut HashMap<String, Tensor>, out: Tensor) -> Computed<()> {
        let device = self.latent.device();
        let times = Tensor::new(self.timesteps.as_slice(), device)?;
        tensors.insert("unet.latent".to_owned(), self.latent.clone());
        tensors.insert("unet.timestep".to_owned(), times);
        tensors.insert("unet.context".to_owned(), self.context.clone());
        if let Some(pooled) = &self.pooled {
            tensors.insert("unet.pooled".to_owned(), pooled.clone());
        }
        tensors.insert("unet.output".to_owned(), out);
        Ok(())
    }
}

/// The ids `[chunks, N]` of [`PROMPT`], of the first text encoder.
fn ids(checkpoint: &Checkpoint) -> Computed<Tensor> {
    let prompt = checkpoint.reader()?.read(PROMPT)?;
    let rows = prompt
        .chunks
        .iter()
        .map(|chunk| Tensor::new(chunk.ids.as_slice(), checkpoint.device()))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::stack(&rows, 0)?)
}

pub(super) fn factor(checkpoint: &Checkpoint) -> usize {
    checkpoint.description().vae.factor()
}

/// The side of the pictures in pixels: what was asked for, or what the U-Net was made for.
pub(super) fn side(checkpoint: &Checkpoint, asked: Option<u16>) -> Result<usize, Failure> {
    let factor = factor(checkpoint);
    let own = checkpoint.description().unet.sample_size.unwrap_or(64) * factor;
    let side = asked.map_or(own, usize::from);
    if side.is_multiple_of(factor) {
        Ok(side)
    } else {
        Err(Failure::usage(format!(
            "--size {side}: this model's pictures have a multiple of {factor} pixels a side"
        )))
    }
}

/// The U-Net call by one thread and by all, in turn, so that what else the machine does falls on both.
fn scaling(
    runs: u16,
    device: &Device,
    mut call: impl FnMut() -> Computed<Tensor> + Send,
) -> Result<(f64, f64), Failure> {
    let one = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .map_err(|e| Failure::failed(format!("a thread cannot be started: {e}")))?;
    call().map_err(failed)?;
    let (mut single, mut all) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..runs {
        for (best, alone) in [(&mut single, true), (&mut all, false)] {
            let start = Instant::now();
            if alone {
                one.install(&mut call).map_err(failed)?;
            } else {
                call().map_err(failed)?;
            }
            device
                .synchronize()
                .map_err(|e| Failure::failed(e.to_string()))?;
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    Ok((single, all))
}

fn name(part: BenchPart) -> &'static str {
    match part {
        BenchPart::Unet => "unet",
        BenchPart::Vae => "vae",
        BenchPart::VaeEncode => "vae-encode",
        BenchPart::Text => "text",
        BenchPart::Scaling => "scaling",
    }
}

/// The model at a path, as `load_model` takes it.
///
/// # Errors
/// When it cannot be loaded.
pub(super) fn load(args: &BenchArgs, path: &Path) -> Result<Arc<Model>, Failure> {
    let engine = session::engine_for(&args.device)?.with_cache(Arc::new(NoCache));
    let folder = std::env::current_dir().map_err(|e| Failure::failed(e.to_string()))?;
    let text = format!(
        "schema: retouch/v1\nnodes:\n  base: {{op: load_model, path: {}, half_vae: {}}}\n",
        json!(folder.join(path).display().to_string()),
        args.half_vae
    );
    let checked = engine
        .load_str("bench.yaml", &text, &Settings::default())
        .map_err(|problems| Failure::failed(problems.to_string()))?;
    load_model(&engine, &checked)
}

/// Measures the parts of a model and prints.
///
/// # Errors
/// When the model cannot be loaded, a part fails, or the dump cannot be written.
// Long: one measurement after the other, on the same model.
pub fn bench(args: &BenchArgs, path: &Path) -> Result<Exit, Failure> {
    let model = load(args, path)?;
    let checkpoint = &model.checkpoint;
    let (device, kernel) = (checkpoint.device(), checkpoint.kernel());
    let side = side(checkpoint, args.size)?;
    let grid = side / factor(checkpoint);
    let wants = |part| args.parts.contains(&part);
    let mut parts: Vec<(BenchPart, Figures)> = Vec::new();
    let mut scales = None;
    let mut dumped = HashMap::new();

    if wants(BenchPart::Text) {
        let (figures, states) = figures(args.runs, device, || {
            Ok(checkpoint.encode_prompt(PROMPT)?.states)
        })
        .map_err(failed)?;
        parts.push((BenchPart::Text, figures));
        dumped.insert("text.ids".to_owned(), ids(checkpoint).map_err(failed)?);
        dumped.insert("text.states".to_owned(), states);
    }
    if wants(BenchPart::Unet) || wants(BenchPart::Scaling) {
        let inputs = Inputs::new(checkpoint, side, usize::from(args.batch)).map_err(failed)?;
        if wants(BenchPart::Unet) {
            let (figures, out) =
                figures(args.runs, device, || inputs.call(checkpoint)).map_err(failed)?;
            parts.push((BenchPart::Unet, figures));
            inputs.dump(&mut dumped, out).map_err(failed)?;
        }
        if wants(BenchPart::Scaling) {
            scales = Some(scaling(args.runs, device, || inputs.call(checkpoint))?);
        }
    }
    if wants(BenchPart::Vae) {
        let channels = checkpoint.description().vae.latent_channels;
        let (figures, latent, picture) =
            starting_noise(SEEDS[1], (1, channels, grid, grid), device)
                .and_then(|latent| {
                    let (figures, picture) = figures(args.runs, device, || {
                        checkpoint.vae()?.decode(&latent, kernel)
                    })?;
                    Ok((figures, latent, picture))
                })
                .map_err(failed)?;
        parts.push((BenchPart::Vae, figures));
        dumped.insert("vae.latent".to_owned(), latent);
        dumped.insert("vae.picture".to_owned(), picture);
    }
    if wants(BenchPart::VaeEncode) {
        let (figures, picture, mean) = starting_noise(SEEDS[2], (1, 3, side, side), device)
            .and_then(|noise| {
                let picture = noise.clamp(-1f32, 1f32)?;
                let (figures, mean) = figures(args.runs, device, || {
                    checkpoint.vae()?.encode_mean(&picture, kernel)
                })?;
                Ok((figures, picture, mean))
            })
            .map_err(failed)?;
        parts.push((BenchPart::VaeEncode, figures));
        dumped.insert("vae-encode.picture".to_owned(), picture);
        dumped.insert("vae-encode.mean".to_owned(), mean);
    }

    let peak = peak_memory();
    if let Some(file) = &args.dump {
        write(file, dumped)?;
    }
    if args.json {
        let parts: Vec<Value> = parts
            .iter()
            .map(|(part, f)| {
                json!({"part": name(*part), "first": f.first, "min": f.min(), "median": f.median(), "max": f.max(),
                       "page_faults": f.faults()})
            })
            .collect();
        let scales = scales
            .map(|(one, all)| json!({"one_thread": one, "all_threads": all, "ratio": one / all}));
        say_json(
            &json!({"model": path, "device": args.device.numerics.device, "dtype": args.device.numerics.dtype,
                    "kernels": kernel.name(), "threads": rayon::current_num_threads(), "runs": args.runs,
                    "size": side, "batch": args.batch, "parts": parts, "scaling": scales, "peak_memory": peak})
            .to_string(),
        )?;
        return Ok(Exit::Done);
    }
    say(&format!(
        "{}, {}, {side}x{side} pixels, {} threads, {} runs each: median (min to max), after a first call that loads",
        path.display(),
        args.device.numerics.dtype,
        rayon::current_num_threads(),
        args.runs
    ))?;
    for (part, f) in &parts {
        let what = match part {
            BenchPart::Unet => format!("U-Net call, {} rows", args.batch),
            BenchPart::Vae => "VAE, decoding a latent".to_owned(),
            BenchPart::VaeEncode => "VAE, encoding a picture".to_owned(),
            _ => "text encoding of a prompt".to_owned(),
        };
        let faults = f
            .faults()
            .map_or_else(String::new, |n| format!(", {n} page faults"));
        say(&format!(
            "{what:28} {:9.4} s ({:.4} to {:.4}; first {:.4}){faults}",
            f.median(),
            f.min(),
            f.max(),
            f.first
        ))?;
    }
    if let Some((one, all)) = scales {
        say(&format!(
            "{:28} {one:9.4} s by 1 thread, {all:.4} s by {}: {:.2}x",
            "U-Net call",
            rayon::current_num_threads(),
            one / all
        ))?;
    }
    if let Some(peak) = peak {
        say(&format!(
            "{:28} {:9.2} GiB",
            "the most memory held",
            peak as f64 / f64::from(1 << 30)
        ))?;
    }
    Ok(Exit::Done)
}

/// Writes the tensors as float32.
pub(super) fn write(file: &Path, tensors: HashMap<String, Tensor>) -> Result<(), Failure> {
    let tensors: candle_core::Result<HashMap<String, Tensor>> = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?.contiguous()?)))
        .collect();
    tensors
        .and_then(|tensors| candle_core::safetensors::save(&tensors, file))
        .map_err(|e| Failure::unwritable(format!("{} cannot be written: {e}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_tells_page_faults_and_memory() {
        let before = (page_faults().unwrap(), peak_memory().unwrap());
        // 64 MiB, each page written to: the system must give them.
        let bytes = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = (page_faults().unwrap(), peak_memory().unwrap());
        assert!(after.0 > before.0, "{before:?} {after:?}");
        assert!(after.1 >= bytes.len() as u64, "{before:?} {after:?}");
        assert!(after.1 >= before.1);
    }

    #[test]
    fn figures_leave_out_the_first_call() {
        let mut calls = 0;
        let (figures, out) = figures(3, &Device::Cpu, || {
            calls += 1;
            if calls == 1 {
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
            Ok(Tensor::new(calls as f32, &Device::Cpu)?)
        })
        .unwrap();
        assert_eq!(calls, 4);
        assert_eq!(out.to_scalar::<f32>().unwrap(), 4.0);
        assert_eq!(figures.seconds.len(), 3);
        assert!(figures.first >= 0.3 && figures.min() < 0.3);
        assert!(figures.min() <= figures.median() && figures.median() <= figures.max());
    }
}
