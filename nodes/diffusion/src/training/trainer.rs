//! The loop: one step after another, from a state that can be kept and gone on from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::draws::Draws;
use super::examples::{Example, Order};
use super::loss::{min_snr, noised, squared_error, target};
use super::optimizer::{AdamW, Moments, RateSchedule, change, ema_decay, numbers};
use super::parameters::{Network, Parameter, Trained};
use crate::checkpoint::model::Checkpoint;
use crate::networks::clip::ClipText;
use crate::networks::unet::{Addition, Call, SIZES, Text, Unet};
use crate::prompt::conditioning::{Encoded, encode};
use crate::sampling::control::{Branch, Rows, Untouched};
use crate::{Error, Result, goes_on};
use retouch_kernels::train::Recorder;
use retouch_kernels::{KeepMore, Kernel};

/// How a training goes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The learning rate of the U-Net.
    pub rate: f64,
    /// That of text encoders and of new tokens.
    pub text_rate: f64,
    /// How both go over the steps.
    pub schedule: RateSchedule,
    /// Steps over which they rise first.
    pub warmup: u64,
    /// All steps.
    pub steps: u64,
    /// Pictures of a batch.
    pub batch: usize,
    /// Batches whose gradients a step takes the mean of.
    pub accumulation: usize,
    /// The optimizer.
    pub optimizer: AdamW,
    /// The norm that gradients are scaled down to where theirs is larger; none at 0.
    pub max_norm: f64,
    /// gamma of [`min_snr`].
    pub min_snr: Option<f64>,
    /// The deviation of a number that is added to the noise of each channel.
    pub noise_offset: f64,
    /// How much the prior's error counts beside that of the pictures.
    pub prior_weight: f64,
    /// How much places outside of the mask count, 0 to 1; a picture's weights have the mean 1.
    pub background_weight: f64,
    /// The decay of the average of the weights that is given in place of the last ones.
    pub ema: Option<f64>,
    /// What everything drawn by chance is drawn from.
    pub seed: u64,
    /// Whether inner results are computed again in place of being kept.
    pub recompute: bool,
}

/// What keeps the class as the model knew it.
#[derive(Clone, Debug)]
pub enum Prior {
    /// Nothing.
    None,
    /// Pictures of the class (Ruiz et al. 2023).
    Pictures(Vec<Example>),
    /// What the model predicts of the same latents for this prompt before it is trained.
    Preserve(String),
}

/// What a step gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: u64,
    /// The mean error of the pictures, weights included.
    pub loss: f64,
    /// That of the prior, before its weight.
    pub prior: Option<f64>,
    /// The learning rate of the U-Net.
    pub rate: f64,
    /// The norm of the gradients before they are scaled down.
    pub norm: f64,
}

/// The noise and timesteps of a batch, given from outside.
#[derive(Clone, Debug)]
pub struct Given {
    /// `[R, C, h, w]`, the pictures' rows and then the prior's.
    pub noise: Tensor,
    /// One a row, below the number of training timesteps.
    pub timesteps: Vec<usize>,
    /// The numbers of the class pictures beside the batch, as many as it has, where there are any.
    pub class: Vec<usize>,
}

/// Where a training stands: all that its next step depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Steps made.
    pub step: u64,
    /// The parameters' numbers, by name.
    pub values: BTreeMap<String, Vec<f32>>,
    /// The optimizer's moments.
    pub moments: BTreeMap<String, Moments>,
    /// The average of the parameters, where there is one.
    pub ema: BTreeMap<String, Vec<f32>>,
    /// What each step gave.
    pub reports: Vec<StepReport>,
}

impl State {
    /// What a training that stands here gives, of what is trained.
    ///
    /// # Errors
    /// When the state is of another training.
    pub fn result(&self, trained: &Trained) -> Result<Vec<(Parameter, Vec<f32>)>> {
        let all = trained.parameters.iter().map(|parameter| {
            let name = parameter.name();
            let values = self.ema.get(&name).or_else(|| self.values.get(&name))?;
            Some((parameter.clone(), values.clone()))
        });
        all.collect::<Option<_>>()
            .ok_or_else(|| Error::request("the cached training state belongs to another training"))
    }
}

/// A training.
pub struct Trainer<'a> {
    model: &'a Checkpoint,
    settings: Settings,
    trained: Trained,
    unet: Arc<Unet>,
    texts: Vec<Arc<ClipText>>,
    recorder: Recorder,
    examples: Vec<Example>,
    order: Order,
    prior: Prior,
    prior_order: Order,
    /// a and s of each training timestep.
    signal: Vec<(f32, f32)>,
    /// What frozen text encoders gave, by caption.
    encoded: HashMap<String, Encoded>,
    moments: Vec<Moments>,
    ema: Vec<Vec<f32>>,
    step: u64,
    reports: Vec<StepReport>,
    /// What a step frees is for the next one.
    _memory: KeepMore,
}

impl<'a> Trainer<'a> {
    /// A training of what is `trained` of a model, at its beginning.
    ///
    /// # Errors
    /// When the model cannot be loaded, or there is nothing to train on.
    pub fn new(
        model: &'a Checkpoint,
        trained: Trained,
        examples: Vec<Example>,
        prior: Prior,
        settings: Settings,
    ) -> Result<Self> {
        let prior_examples = match &prior {
            Prior::Pictures(examples) => examples.as_slice(),
            _ => &[],
        };
        if examples.is_empty() || (matches!(prior, Prior::Pictures(_)) && prior_examples.is_empty())
        {
            return Err(Error::request("there is no picture to train on"));
        }
        let draws = |what| Draws::new(settings.seed, what);
        let order = Order::new(&examples, settings.batch, draws("pictures"));
        let prior_order = Order::new(prior_examples, settings.batch, draws("prior"));
        let unet = model.unet_with(trained.variables(Network::Unet))?;
        let texts = (0..model.texts())
            .map(|i| {
                model.text_encoder_with(i, trained.variables(Network::Text(i)), &trained.rows(i))
            })
            .collect::<Result<_>>()?;
        let recorder = Recorder::new(model.shared_kernel(), settings.recompute);
        for parameter in &trained.parameters {
            recorder.watch(&parameter.variable);
        }
        let moments = trained
            .parameters
            .iter()
            .map(|p| Moments::zeros(p.variable.elem_count(), settings.optimizer.eight_bit))
            .collect();
        let ema = match settings.ema {
            Some(_) => trained
                .parameters
                .iter()
                .map(|p| numbers(&p.variable))
                .collect::<Result<_>>()?,
            None => Vec::new(),
        };
        let signal = model.description().scheduler.alphas();
        let signal = signal.iter().map(|a| (a.sqrt(), (1.0 - a).sqrt()));
        Ok(Self {
            model,
            signal: signal.collect(),
            settings,
            trained,
            unet,
            texts,
            recorder,
            examples,
            order,
            prior,
            prior_order,
            encoded: HashMap::new(),
            moments,
            ema,
            step: 0,
            reports: Vec::new(),
            _memory: KeepMore::new(),
        })
    }

    /// Steps made.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// What each step gave.
    #[must_use]
    pub fn reports(&self) -> &[StepReport] {
        &self.reports
    }

    /// What is trained.
    #[must_use]
    pub fn trained(&self) -> &Trained {
        &self.trained
    }

    /// Rows that go through the U-Net at a step.
    #[must_use]
    pub fn rows(&self) -> usize {
        let per_batch = match &self.prior {
            Prior::None => self.settings.batch,
            Prior::Pictures(_) => 2 * self.settings.batch,
            // Once more for what the untrained model says.
            Prior::Preserve(_) => 3 * self.settings.batch,
        };
        per_batch * self.settings.accumulation
    }

    /// Where it stands.
    ///
    /// # Errors
    /// When the parameters cannot be copied to host memory.
    pub fn state(&self) -> Result<State> {
        let names = || self.trained.parameters.iter().map(Parameter::name);
        let values = self.trained.parameters.iter();
        let values: Vec<_> = values
            .map(|p| numbers(&p.variable))
            .collect::<Result<_>>()?;
        Ok(State {
            step: self.step,
            values: names().zip(values).collect(),
            moments: names().zip(self.moments.iter().cloned()).collect(),
            ema: names().zip(self.ema.iter().cloned()).collect(),
            reports: self.reports.clone(),
        })
    }

    /// Goes on from a state that [`Trainer::state`] gave.
    ///
    /// # Errors
    /// When it is of another training; nothing is changed then.
    pub fn restore(&mut self, state: State) -> Result<()> {
        let fits = |p: &Parameter| {
            let count = p.variable.elem_count();
            let name = p.name();
            let known = state.values.get(&name).is_some_and(|v| v.len() == count);
            let averaged = state.ema.get(&name).is_some_and(|v| v.len() == count);
            known && state.moments.contains_key(&name) && (averaged || self.settings.ema.is_none())
        };
        if !self.trained.parameters.iter().all(fits) {
            return Err(Error::request(
                "the cached training state belongs to another training",
            ));
        }
        let State {
            step,
            values,
            mut moments,
            mut ema,
            reports,
        } = state;
        for (i, parameter) in self.trained.parameters.iter().enumerate() {
            let name = parameter.name();
            if let Some(values) = values.get(&name) {
                change(&parameter.variable, |w| w.copy_from_slice(values))?;
            }
            if let Some(moments) = moments.remove(&name) {
                self.moments[i] = moments;
            }
            if let Some(average) = ema.remove(&name).filter(|_| self.settings.ema.is_some()) {
                self.ema[i] = average;
            }
        }
        self.step = step;
        self.reports = reports;
        Ok(())
    }

    /// What the training gives: the numbers of each parameter, or their average.
    ///
    /// # Errors
    /// When they cannot be copied to host memory.
    pub fn result(&self) -> Result<Vec<(Parameter, Vec<f32>)>> {
        let all = self.trained.parameters.iter().enumerate();
        all.map(|(i, parameter)| {
            let values = match self.ema.get(i) {
                Some(average) => average.clone(),
                None => numbers(&parameter.variable)?,
            };
            Ok((parameter.clone(), values))
        })
        .collect()
    }

    /// Makes a step, with noise and timesteps of its own.
    ///
    /// # Errors
    /// When the loss is not a number, the run was cancelled, or memory is short. The parameters are as they were then.
    pub fn advance(&mut self) -> Result<StepReport> {
        let first = self.step * self.settings.accumulation as u64;
        let batches: Vec<_> = (0..self.settings.accumulation as u64)
            .map(|i| self.order.batch(first + i))
            .collect();
        let mut given = Vec::new();
        for (i, batch) in batches.iter().enumerate() {
            given.push(self.draw(first + i as u64, batch)?);
        }
        self.advance_with(&batches, &given)
    }

    /// The noise and the timesteps of batch `index`.
    fn draw(&self, index: u64, batch: &[usize]) -> Result<Given> {
        let latent = &self.examples[batch[0]].latent;
        let (_, c, h, w) = latent.dims4()?;
        let rows = match self.prior {
            Prior::Pictures(_) => 2 * batch.len(),
            _ => batch.len(),
        };
        let own = |what| Draws::new(self.settings.seed, what).at(index);
        let (mut noise, mut timesteps) = (Vec::with_capacity(rows * c * h * w), Vec::new());
        for row in 0..rows as u64 {
            let mut numbers = own("noise").at(row).normal(c * h * w);
            if self.settings.noise_offset != 0.0 {
                let offsets = own("offset").at(row).normal(c);
                for (channel, offset) in numbers.chunks_mut(h * w).zip(offsets) {
                    let offset = (f64::from(offset) * self.settings.noise_offset) as f32;
                    channel.iter_mut().for_each(|x| *x += offset);
                }
            }
            noise.extend(numbers);
            timesteps.push(own("timestep").at(row).below(self.signal.len()));
        }
        let noise = Tensor::from_vec(noise, (rows, c, h, w), &Device::Cpu)?;
        Ok(Given {
            noise: noise.to_device(latent.device())?,
            timesteps,
            class: self.prior_order.batch(index),
        })
    }

    /// Makes a step with these batches of examples, noise and timesteps, as many as are accumulated.
    ///
    /// # Errors
    /// As [`Trainer::advance`].
    pub fn advance_with(&mut self, batches: &[Vec<usize>], given: &[Given]) -> Result<StepReport> {
        let first = self.step * self.settings.accumulation as u64;
        let count = batches.len().max(1) as f64;
        let mut sums: Vec<Option<Tensor>> = vec![None; self.trained.parameters.len()];
        let (mut loss, mut prior) = (0.0, None);
        for (i, (batch, given)) in batches.iter().zip(given).enumerate() {
            let (own, of_prior) = self.batch(first + i as u64, batch, given, &mut sums)?;
            loss += own / count;
            prior = of_prior.map(|p| prior.unwrap_or(0.0) + p / count);
        }
        let total = loss + prior.unwrap_or(0.0) * self.settings.prior_weight;
        if !total.is_finite() {
            return Err(self.diverged("the loss"));
        }
        let gradients: Vec<Vec<f32>> = sums
            .into_iter()
            .zip(&self.trained.parameters)
            .map(|(sum, p)| match sum {
                Some(sum) => numbers(&sum),
                None => Ok(vec![0.0; p.variable.elem_count()]),
            })
            .collect::<Result<_>>()?;
        let squares = |g: &Vec<f32>| g.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        let norm = gradients.iter().map(squares).sum::<f64>().sqrt() / count;
        if !norm.is_finite() {
            return Err(self.diverged("a gradient"));
        }
        let max = self.settings.max_norm;
        // torch divides by the norm plus 1e-6.
        let clipped = if max > 0.0 {
            (max / (norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        let s = &self.settings;
        let factor = s.schedule.factor(self.step, s.warmup, s.steps);
        let t = self.step + 1;
        for (i, (parameter, gradient)) in self.trained.parameters.iter().zip(&gradients).enumerate()
        {
            let rate = match parameter.network {
                Network::Unet => s.rate,
                Network::Text(_) => s.text_rate,
            };
            let scale = clipped / count;
            let moments = &mut self.moments[i];
            s.optimizer.step(
                &parameter.variable,
                gradient,
                moments,
                rate * factor,
                t,
                scale,
            )?;
        }
        if let Some(decay) = s.ema {
            let kept = ema_decay(decay, t) as f32;
            for (average, parameter) in self.ema.iter_mut().zip(&self.trained.parameters) {
                let values = numbers(&parameter.variable)?;
                for (average, value) in average.iter_mut().zip(values) {
                    *average -= (1.0 - kept) * (*average - value);
                }
            }
        }
        self.step = t;
        let report = StepReport {
            step: t,
            loss,
            prior,
            rate: s.rate * factor,
            norm,
        };
        self.reports.push(report);
        Ok(report)
    }

    /// The error of a batch's pictures, that of its prior, and the gradient of each parameter, in their order; `None` where the
    /// loss does not depend on one. Nothing is changed.
    ///
    /// # Errors
    /// As [`Trainer::advance`].
    pub fn gradients(
        &mut self,
        batch: &[usize],
        given: &Given,
    ) -> Result<(f64, Option<f64>, Vec<Option<Tensor>>)> {
        let mut sums = vec![None; self.trained.parameters.len()];
        let (loss, prior) = self.batch(self.step, batch, given, &mut sums)?;
        Ok((loss, prior, sums))
    }

    fn diverged(&self, what: &str) -> Error {
        Error::request(format!(
            "{what} of step {} is not a number: the training diverged",
            self.step + 1
        ))
        .help("lower the learning rate, or give `max_norm: 1`; what was trained up to the last checkpoint is kept")
    }

    /// The errors of a batch's pictures and of its prior; their gradients are added to `sums`.
    fn batch(
        &mut self,
        index: u64,
        batch: &[usize],
        given: &Given,
        sums: &mut [Option<Tensor>],
    ) -> Result<(f64, Option<f64>)> {
        goes_on()?;
        if let Some(dropout) = &self.trained.dropout {
            dropout.begin(index);
        }
        let own: Vec<Example> = batch.iter().map(|&i| self.examples[i].clone()).collect();
        let b = own.len();
        let prompts = |of: &[Example]| of.iter().map(|e| e.caption.clone()).collect::<Vec<_>>();
        let stacked = |of: &[Example]| {
            let latents: Vec<_> = of.iter().map(|e| &e.latent).collect();
            Tensor::cat(&latents, 0)
        };
        let mut captions = prompts(&own);
        let mut z0 = stacked(&own)?;
        let (mut noise, mut timesteps) = (given.noise.clone(), given.timesteps.clone());
        match &self.prior {
            Prior::None => {}
            Prior::Pictures(all) => {
                let of_class: Option<Vec<Example>> =
                    given.class.iter().map(|&i| all.get(i).cloned()).collect();
                let of_class = of_class
                    .filter(|of_class| of_class.len() == b)
                    .ok_or_else(|| Error::request("a batch without its class pictures"))?;
                captions.extend(prompts(&of_class));
                z0 = Tensor::cat(&[&z0, &stacked(&of_class)?], 0)?;
            }
            Prior::Preserve(prompt) => {
                captions.extend(std::iter::repeat_n(prompt.clone(), b));
                z0 = Tensor::cat(&[&z0, &z0], 0)?;
                noise = Tensor::cat(&[&noise, &noise], 0)?;
                timesteps = timesteps.repeat(2);
            }
        }
        let signal: Vec<_> = timesteps
            .iter()
            .map(|&t| self.signal.get(t).copied())
            .collect::<Option<_>>()
            .ok_or_else(|| Error::request("a timestep is not one of the training's"))?;
        let z = noised(&z0, &noise, &signal)?;
        let kind = self.model.description().scheduler.prediction_type;
        let mut wanted = target(kind, &z0, &noise, &signal)?;
        if let Prior::Preserve(prompt) = &self.prior {
            let base = self.base_prediction(&z.narrow(0, b, b)?, &timesteps[b..], prompt)?;
            wanted = Tensor::cat(&[&wanted.narrow(0, 0, b)?, &base], 0)?;
        }
        let rows = z.dim(0)?;
        let predicted = self.predict(&z, &timesteps, &captions)?;
        let share = 1.0 / b as f64;
        let weights: Vec<f64> = (0..rows)
            .map(|row| {
                let snr = |gamma| min_snr(signal[row], gamma, kind);
                let own = if row < b {
                    1.0
                } else {
                    self.settings.prior_weight
                };
                own * share * self.settings.min_snr.map_or(1.0, snr)
            })
            .collect();
        let places = self.places(&own, rows)?;
        let (errors, gradient) = squared_error(&predicted, &wanted, &weights, places.as_ref())?;
        let of = |range: std::ops::Range<usize>, unit: f64| -> f64 {
            range.map(|row| errors[row] * weights[row] / unit).sum()
        };
        let loss = of(0..b, 1.0);
        let weight = self.settings.prior_weight;
        let prior = (rows > b).then(|| {
            if weight > 0.0 {
                of(b..rows, weight)
            } else {
                0.0
            }
        });
        let mut gradients = self.recorder.backward(&predicted, gradient)?;
        for (sum, parameter) in sums.iter_mut().zip(&self.trained.parameters) {
            if let Some(gradient) = gradients.take(&parameter.variable) {
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient)?,
                    None => gradient,
                });
            }
        }
        Ok((loss, prior))
    }

    /// How much each pixel of a batch's latents counts; of the prior's all as much.
    fn places(&self, own: &[Example], rows: usize) -> Result<Option<Tensor>> {
        if own.iter().all(|example| example.mask.is_none()) {
            return Ok(None);
        }
        let background = self.settings.background_weight;
        let mut all = Vec::with_capacity(rows);
        for row in 0..rows {
            let example = own.get(row);
            let latent = &own[row % own.len()].latent;
            let (_, _, h, w) = latent.dims4()?;
            let ones = Tensor::ones((1, 1, h, w), DType::F32, latent.device())?;
            all.push(match example.and_then(|example| example.mask.as_ref()) {
                None => ones,
                Some(mask) => {
                    let places = ((mask * (1.0 - background))? + background)?;
                    let mean = f64::from(places.mean_all()?.to_scalar::<f32>()?);
                    // A mask of nothing leaves the picture as it is.
                    if mean > 0.0 { (places / mean)? } else { ones }
                }
            });
        }
        Ok(Some(Tensor::cat(&all, 0)?))
    }

    /// What the untrained model predicts.
    fn base_prediction(&self, z: &Tensor, timesteps: &[usize], prompt: &str) -> Result<Tensor> {
        let encoded = self.model.encode_prompt(prompt)?;
        let (unet, kernel) = (self.model.unet()?, self.model.kernel());
        let rows = timesteps.len();
        let states = kernel.stack(&vec![encoded.states.clone(); rows])?;
        let pooled = encoded
            .pooled
            .map(|pooled| kernel.stack(&vec![pooled; rows]));
        call(
            &unet,
            z,
            timesteps,
            states,
            pooled.transpose()?,
            self.factor(),
            kernel,
        )
    }

    fn factor(&self) -> usize {
        self.model.description().vae.factor()
    }

    fn predict(&mut self, z: &Tensor, timesteps: &[usize], captions: &[String]) -> Result<Tensor> {
        let mut made: HashMap<&str, Encoded> = HashMap::new();
        for caption in captions {
            if !made.contains_key(caption.as_str()) {
                let encoded = self.encode(caption)?;
                made.insert(caption, encoded);
            }
        }
        let rows: Vec<&Encoded> = captions.iter().map(|c| &made[c.as_str()]).collect();
        let kernel: &dyn Kernel = &self.recorder;
        let states: Vec<Tensor> = rows.iter().map(|e| e.states.clone()).collect();
        let states = kernel.stack(&states)?;
        let pooled: Option<Vec<Tensor>> = rows.iter().map(|e| e.pooled.clone()).collect();
        let pooled = pooled.map(|pooled| kernel.stack(&pooled)).transpose()?;
        call(
            &self.unet,
            z,
            timesteps,
            states,
            pooled,
            self.factor(),
            kernel,
        )
    }

    fn encode(&mut self, caption: &str) -> Result<Encoded> {
        if let Some(encoded) = self.encoded.get(caption) {
            return Ok(encoded.clone());
        }
        let frozen = !self.trained.trains_text();
        let layer = self
            .model
            .description()
            .layer(self.model.reading().clip_skip);
        let mut all: Option<Encoded> = None;
        for (i, text) in self.texts.iter().enumerate() {
            let prompt = self.model.reader_at(i)?.read(caption)?;
            let own = encode(text, &prompt, layer, &self.recorder)?;
            all = Some(match all {
                Some(before) => before.beside(&own, &self.recorder)?,
                None => own,
            });
        }
        let encoded = all.ok_or_else(|| Error::request("the model has no text encoder"))?;
        if frozen {
            self.encoded.insert(caption.to_owned(), encoded.clone());
        }
        Ok(encoded)
    }
}

/// A call of the U-Net for rows that each have a text of their own.
fn call(
    unet: &Unet,
    z: &Tensor,
    timesteps: &[usize],
    states: Tensor,
    pooled: Option<Tensor>,
    factor: usize,
    kernel: &dyn Kernel,
) -> Result<Tensor> {
    let (rows, _, h, w) = z.dims4()?;
    let text = Text::new(states);
    let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    let (height, width) = (h * factor, w * factor);
    let sizes: [usize; SIZES] = [height, width, 0, 0, height, width];
    let call = Call {
        latent: z,
        timesteps: &timesteps,
        texts: &[&text],
        addition: pooled.as_ref().map(|pooled| Addition { pooled, sizes }),
        step: 0,
        rows: Rows::new(Branch::Plain, rows, false),
    };
    unet.forward(call, &mut Untouched, kernel)
}
