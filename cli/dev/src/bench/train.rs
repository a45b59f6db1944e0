//! `retouch-dev bench --model MODEL --train METHOD`: steps of a training, all on the same batch.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use retouch_common::output::{say, say_json};
use retouch_common::{Exit, Failure};
use retouch_diffusion::Result as Computed;
use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::sampling::noise::starting_noise;
use retouch_diffusion::training::draws::Draws;
use retouch_diffusion::training::examples::Example;
use retouch_diffusion::training::optimizer::{AdamW, RateSchedule};
use retouch_diffusion::training::parameters::{LoraOptions, Trained};
use retouch_diffusion::training::trainer::{Given, Prior, Settings, Trainer};
use serde_json::json;

use super::model::{factor, failed, figures, load, peak_memory, side, write};
use crate::args::{BenchArgs, TrainMethod};

/// The caption of all rows.
const CAPTION: &str = "a photo of a sks teddy bear";

/// AdamW with torch's defaults at 1e-4, gradients clipped to a norm of 1, float32: what `peers.py --parts train` compares.
fn settings(args: &BenchArgs) -> Settings {
    Settings {
        rate: 1e-4,
        text_rate: 1e-4,
        schedule: RateSchedule::Constant,
        warmup: 0,
        steps: u64::from(args.runs) + 1,
        batch: usize::from(args.batch),
        accumulation: 1,
        optimizer: AdamW {
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 1e-2,
            eight_bit: false,
        },
        max_norm: 1.0,
        min_snr: None,
        noise_offset: 0.0,
        prior_weight: 0.0,
        background_weight: 1.0,
        ema: None,
        seed: 0,
        recompute: args.checkpointing,
    }
}

/// The batch: latents that are noise themselves, noise, and timesteps.
fn batch(checkpoint: &Checkpoint, side: usize, rows: usize) -> Computed<(Tensor, Given)> {
    let config = &checkpoint.description().unet;
    let grid = side / factor(checkpoint);
    let shape = (rows, config.in_channels, grid, grid);
    let latents = starting_noise(7, shape, checkpoint.device())?;
    let noise = starting_noise(1007, shape, checkpoint.device())?;
    let draws = Draws::new(7, "timesteps");
    let timesteps = (0..rows as u64).map(|row| draws.at(row).below(1000));
    let given = Given {
        noise,
        timesteps: timesteps.collect(),
        class: Vec::new(),
    };
    Ok((latents, given))
}

fn dump(
    checkpoint: &Checkpoint,
    latents: &Tensor,
    given: &Given,
) -> Computed<HashMap<String, Tensor>> {
    let states = checkpoint.encode_prompt(CAPTION)?.states;
    let rows = given.timesteps.len();
    let timesteps: Vec<f32> = given.timesteps.iter().map(|&t| t as f32).collect();
    Ok(HashMap::from([
        ("train.latents".to_owned(), latents.clone()),
        ("train.noise".to_owned(), given.noise.clone()),
        (
            "train.timesteps".to_owned(),
            Tensor::from_vec(timesteps, rows, &Device::Cpu)?,
        ),
        ("train.context".to_owned(), states.repeat((rows, 1, 1))?),
    ]))
}

/// Measures steps of a training and prints.
///
/// # Errors
/// When the model cannot be loaded, a step fails, or the dump cannot be written.
pub fn bench(args: &BenchArgs, path: &Path, method: TrainMethod) -> Result<Exit, Failure> {
    let model = load(args, path)?;
    let checkpoint = &model.checkpoint;
    let side = side(checkpoint, args.size)?;
    let rows = usize::from(args.batch);
    let (latents, given) = batch(checkpoint, side, rows).map_err(failed)?;
    if let Some(file) = &args.dump {
        write(file, dump(checkpoint, &latents, &given).map_err(failed)?)?;
    }
    let examples = (0..rows)
        .map(|row| {
            Ok(Example {
                latent: latents.narrow(0, row, 1)?,
                caption: CAPTION.to_owned(),
                mask: None,
            })
        })
        .collect::<Computed<Vec<_>>>()
        .map_err(failed)?;
    let trained = match method {
        TrainMethod::Dreambooth => Trained::dreambooth(checkpoint, false),
        TrainMethod::Lora => {
            let options = LoraOptions {
                rank: usize::from(args.rank),
                alpha: f64::from(args.rank),
                dropout: 0.0,
                convolutions: false,
                text: false,
            };
            Trained::lora(checkpoint, &options, 0)
        }
    }
    .map_err(failed)?;
    let count = trained.count();
    let mut trainer =
        Trainer::new(checkpoint, trained, examples, Prior::None, settings(args)).map_err(failed)?;
    let own: Vec<usize> = (0..rows).collect();
    let mut losses = Vec::new();
    let (figures, _) = figures(args.runs, checkpoint.device(), || {
        let report =
            trainer.advance_with(std::slice::from_ref(&own), std::slice::from_ref(&given))?;
        losses.push(report.loss);
        Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?)
    })
    .map_err(failed)?;
    let peak = peak_memory();
    if args.json {
        say_json(
            &json!({"model": path, "device": args.device.numerics.device, "dtype": args.device.numerics.dtype,
                    "kernels": checkpoint.kernel().name(), "threads": rayon::current_num_threads(), "runs": args.runs,
                    "size": side, "batch": rows, "trained": count, "losses": losses, "peak_memory": peak,
                    "parts": [{"part": "train", "first": figures.first, "min": figures.min(), "median": figures.median(),
                               "max": figures.max(), "page_faults": figures.faults()}]})
            .to_string(),
        )?;
        return Ok(Exit::Done);
    }
    say(&format!(
        "{}, {side}x{side} pixels, {rows} rows, {count} numbers trained, {} threads: a step takes {:.3} s ({:.3} to {:.3}; first {:.3}){}",
        path.display(),
        rayon::current_num_threads(),
        figures.median(),
        figures.min(),
        figures.max(),
        figures.first,
        peak.map_or_else(String::new, |peak| format!(
            ", the most memory held {:.2} GiB",
            peak as f64 / f64::from(1 << 30)
        ))
    ))?;
    Ok(Exit::Done)
}
