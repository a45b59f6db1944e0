//! Training against torch, PEFT and diffusers: gradients of every operation and of every parameter, and whole steps.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use retouch_diffusion::checkpoint::model::Checkpoint;
use retouch_diffusion::training::examples::Example;
use retouch_diffusion::training::export::with_new_tokens;
use retouch_diffusion::training::optimizer::{AdamW, RateSchedule, change};
use retouch_diffusion::training::parameters::{
    LoraOptions, Network, NewToken, Parameter, Role, Trained,
};
use retouch_diffusion::training::trainer::{Given, Prior, Settings, Trainer};
use retouch_kernels::train::Recorder;
use retouch_kernels::{Cpu, GroupNormSpec, Isa, Kernel, Padding, Plain, Terms, Weight, Window};
use serde_json::Value;

use crate::support::{self, Stage, assert_close};

/// Gradients, in the measure of modules.
const GRADIENT: f32 = 1e-4;

/// A file of `data/training`: its tensors, and the facts of its cases.
fn read(name: &str) -> (HashMap<String, Tensor>, Value) {
    let path = support::data().join(format!("training/{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let facts = header.metadata().clone().unwrap_or_default();
    let facts = serde_json::from_str(&facts["facts"]).unwrap();
    (
        candle_core::safetensors::load(path, &Device::Cpu).unwrap(),
        facts,
    )
}

/// One case of the operations.
struct Case<'a> {
    name: &'a str,
    tensors: &'a HashMap<String, Tensor>,
    facts: &'a Value,
    kernel: Recorder,
    /// The inputs as variables, by name.
    inputs: HashMap<String, Tensor>,
}

impl<'a> Case<'a> {
    fn new(
        name: &'a str,
        tensors: &'a HashMap<String, Tensor>,
        facts: &'a Value,
        kernel: Arc<dyn Kernel>,
    ) -> Self {
        let kernel = Recorder::new(kernel, false);
        let begin = format!("{name}.in.");
        let inputs = tensors
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(&begin)?.to_owned(), value)))
            .map(|(key, value)| {
                if value.dtype() != DType::F32 {
                    return (key, value.clone());
                }
                let variable = Var::from_tensor(value).unwrap().into_inner();
                kernel.watch(&variable);
                (key, variable)
            })
            .collect();
        Self {
            name,
            tensors,
            facts,
            kernel,
            inputs,
        }
    }

    fn input(&self, name: &str) -> &Tensor {
        &self.inputs[name]
    }

    fn weight(&self, name: &str) -> Weight {
        Weight::of_variable(self.input(name)).unwrap()
    }

    fn number(&self, name: &str) -> f64 {
        self.facts[name].as_f64().unwrap()
    }

    /// A tensor of pictures as the kernels have them, on the tape.
    fn images(&self, name: &str) -> Tensor {
        // Recorded as tokens of themselves, so that the change of layout is on the tape.
        let x = self.input(name);
        let (b, c, h, w) = x.dims4().unwrap();
        match self.kernel.layout() {
            retouch_kernels::Layout::ChannelsFirst => x.clone(),
            retouch_kernels::Layout::ChannelsLast => {
                let last = Tensor::from_vec(
                    numbers(&self.kernel.layout().images(&x.detach()).unwrap()),
                    (b, h, w, c),
                    &Device::Cpu,
                )
                .unwrap();
                let variable = Var::from_tensor(&last).unwrap().into_inner();
                self.kernel.watch(&variable);
                variable
            }
        }
    }

    fn conv(&self) -> (Tensor, Vec<(&'static str, Tensor)>) {
        let padding: Vec<usize> = serde_json::from_value(self.facts["padding"].clone()).unwrap();
        let x = self.images("x");
        let (_, _, h, w) = self.input("x").dims4().unwrap();
        let window = Window {
            stride: self.facts["stride"].as_u64().unwrap() as usize,
            padding: Padding {
                left: padding[0],
                right: padding[1],
                top: padding[2],
                bottom: padding[3],
            },
            enlarged: (self.facts["upsample"] == true).then_some((2 * h, 2 * w)),
        };
        let residual = self
            .inputs
            .contains_key("residual")
            .then(|| self.images("residual"));
        let terms = Terms {
            bias: Some(self.input("bias")),
            image: self.inputs.get("term"),
            residual: residual.as_ref(),
        };
        let k = &self.kernel;
        let mut y = k.conv2d(&x, &self.weight("weight"), window, terms).unwrap();
        if self.inputs.contains_key("down") {
            let inner = k
                .conv2d(&x, &self.weight("down"), window, Terms::default())
                .unwrap();
            let inner = k.scale(&inner, self.number("scale")).unwrap();
            let terms = Terms {
                residual: Some(&y),
                ..Terms::default()
            };
            let point = Window::padded(Padding::same(0));
            y = k.conv2d(&inner, &self.weight("up"), point, terms).unwrap();
        }
        let mut images = vec![("x", x)];
        images.extend(residual.map(|residual| ("residual", residual)));
        (y, images)
    }

    fn linear(&self) -> Tensor {
        let x = self.input("x");
        let k = &self.kernel;
        let shape = x.dims().to_vec();
        let x = if shape.len() == 2 {
            &k.reshape(x, &[1, shape[0], shape[1]]).unwrap()
        } else {
            x
        };
        let terms = Terms::bias(self.inputs.get("bias"));
        let mut y = k.linear(x, &self.weight("weight"), terms).unwrap();
        if self.inputs.contains_key("down") {
            let inner = k.linear(x, &self.weight("down"), Terms::default()).unwrap();
            let inner = k.scale(&inner, self.number("scale")).unwrap();
            let terms = Terms {
                residual: Some(&y),
                ..Terms::default()
            };
            y = k.linear(&inner, &self.weight("up"), terms).unwrap();
        }
        let rows = y.dims3().unwrap();
        match shape.len() {
            2 => k.reshape(&y, &[rows.1, rows.2]).unwrap(),
            _ => y,
        }
    }

    fn attention(&self) -> Tensor {
        let (q, k, v) = (self.input("q"), self.input("k"), self.input("v"));
        let heads = self.facts["heads"].as_u64().unwrap() as usize;
        let scale = self.number("scale");
        if self.facts["causal"] != true {
            return self.kernel.attention(q, k, v, heads, scale, None).unwrap();
        }
        let parts: Vec<_> = (0..q.dim(0).unwrap())
            .map(|i| {
                let own = |t| self.kernel.slice(t, 0, i, 1).unwrap();
                let (q, k, v) = (own(q), own(k), own(v));
                self.kernel
                    .causal_attention(&q, &k, &v, heads, scale)
                    .unwrap()
            })
            .collect();
        self.kernel.stack(&parts).unwrap()
    }

    /// Computes the case and compares result and gradients; `false` when it is of an operation that the networks lack.
    fn check(&self) -> bool {
        let layout = self.kernel.layout();
        let up = self.tensors[&format!("{}.up", self.name)].clone();
        let mut images = Vec::new();
        let operation = self.facts["op"].as_str().unwrap();
        let k = &self.kernel;
        let y = match operation.split([' ', ':']).next().unwrap() {
            "attention" => self.attention(),
            "conv2d" => {
                let (y, own) = self.conv();
                images = own;
                y
            }
            "embedding" => {
                let ids = self.input("ids");
                let ids: Vec<u32> = ids
                    .flatten_all()
                    .unwrap()
                    .to_dtype(DType::U32)
                    .unwrap()
                    .to_vec1()
                    .unwrap();
                let y = k.rows(self.input("table"), &ids).unwrap();
                k.reshape(&y, up.dims()).unwrap()
            }
            "geglu" if self.inputs.contains_key("weight") => k
                .linear_geglu(
                    self.input("x"),
                    &self.weight("weight"),
                    Some(self.input("bias")),
                )
                .unwrap(),
            "geglu" => k.geglu(self.input("x")).unwrap(),
            "gelu" => k.gelu(self.input("x")).unwrap(),
            "quick_gelu" => k.quick_gelu(self.input("x")).unwrap(),
            "silu" => k.silu(self.input("x")).unwrap(),
            "layer_norm" => k
                .layer_norm(
                    self.input("x"),
                    self.input("weight"),
                    self.input("bias"),
                    self.number("eps"),
                )
                .unwrap(),
            "group_norm" => {
                let x = self.images("x");
                let norm = GroupNormSpec {
                    groups: self.facts["groups"].as_u64().unwrap() as usize,
                    eps: self.number("eps"),
                    weight: self.input("weight"),
                    bias: self.input("bias"),
                };
                let y = k.group_norm(&x, &norm, self.facts["silu"] == true).unwrap();
                images.push(("x", x));
                y
            }
            "linear" => self.linear(),
            "mse" | "mean(weight" | "gelu.tanh" => return false,
            other => panic!("{other}"),
        };
        let name = self.name;
        let planes = |t: &Tensor| layout.planes(t).unwrap();
        let out = &self.tensors[&format!("{name}.out")];
        let is_image = !images.is_empty();
        let (result, up) = if is_image {
            (planes(&y.detach()), layout.images(&up).unwrap())
        } else {
            (y.detach(), up)
        };
        assert_close(&format!("{name}.out"), &result, out, GRADIENT);
        let mut gradients = k.backward(&y, up).unwrap();
        for (input, variable) in &self.inputs {
            let key = format!("{name}.grad.{input}");
            let Some(expected) = self.tensors.get(&key) else {
                continue;
            };
            let image = images.iter().find(|(name, _)| name == input);
            let gradient = match image {
                Some((_, image)) => planes(&gradients.take(image).unwrap()),
                None => gradients
                    .take(variable)
                    .unwrap_or_else(|| panic!("{key}: none")),
            };
            assert_eq!(gradient.dims(), expected.dims(), "{key}");
            if numbers(expected).iter().all(|x| x.abs() < 1e-12) {
                // One key alone: nothing depends on the queries.
                assert!(numbers(&gradient).iter().all(|x| x.abs() < 1e-6), "{key}");
            } else {
                assert_close(&key, &gradient, expected, GRADIENT);
            }
        }
        true
    }
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn gradients_of_every_operation_are_torchs_with_every_kernel_set() {
    let (tensors, facts) = read("kernels");
    let mut kernels: Vec<Arc<dyn Kernel>> = vec![Arc::new(Plain), Arc::new(Cpu::default())];
    kernels.extend(
        Isa::available()
            .into_iter()
            .map(|isa| Arc::new(Cpu::with(isa)) as Arc<dyn Kernel>),
    );
    for kernel in kernels {
        let cases = facts["cases"].as_object().unwrap();
        let done = cases
            .iter()
            .filter(|(name, facts)| Case::new(name, &tensors, facts, kernel.clone()).check())
            .count();
        assert_eq!(done, cases.len() - 3, "all but the losses and one GELU");
    }
}

#[test]
fn a_gradient_that_would_be_lost_is_an_error() {
    let recorder = Recorder::new(Arc::new(Cpu::default()), false);
    let x = Tensor::ones((1, 2, 4), DType::F32, &Device::Cpu).unwrap();
    let x = Var::from_tensor(&x).unwrap().into_inner();
    recorder.watch(&x);
    let y = recorder.geglu(&x).unwrap();
    // candle's own operation, which the tape does not see.
    let z = (&y * 2.0).unwrap();
    let lost = recorder.silu(&z).unwrap_err().to_string();
    assert!(lost.contains("not recorded"), "{lost}");
    let grad = Tensor::ones(y.shape(), DType::F32, &Device::Cpu).unwrap();
    assert!(recorder.backward(&y, grad.clone()).is_ok());
    // What was recorded is forgotten; what is watched is not.
    assert!(recorder.backward(&y, grad).is_err());
    assert!(recorder.geglu(&x).is_ok());
}

/// The name that the oracle has for a parameter.
fn name_of(parameter: &Parameter) -> String {
    let network = match parameter.network {
        Network::Unet => "unet.".to_owned(),
        Network::Text(0) => "text_encoder.text_model.".to_owned(),
        Network::Text(i) => format!("text_encoder_{}.text_model.", i + 1),
    };
    let layer = parameter.tensor.trim_end_matches(".weight");
    match parameter.role {
        // The projection is beside the text model.
        Role::Tensor if parameter.tensor.starts_with("text_projection") => {
            format!("{}{}", network.replace("text_model.", ""), parameter.tensor)
        }
        Role::Tensor => format!("{network}{}", parameter.tensor),
        Role::Down => format!("{network}{layer}.lora_A.weight"),
        Role::Up => format!("{network}{layer}.lora_B.weight"),
        Role::Token => format!("{network}embeddings.token_embedding.weight"),
    }
}

/// A case of whole networks.
struct Run {
    name: String,
    facts: Value,
    tensors: HashMap<String, Tensor>,
    base: Arc<retouch_nodes::payload::Model>,
    /// The base with the case's new tokens.
    model: Checkpoint,
}

impl Run {
    fn new(name: &str, facts: &Value, tensors: &HashMap<String, Tensor>) -> Self {
        let family = format!("micro/{}", facts["model"].as_str().unwrap());
        let base = Stage::default().model(&family, false);
        let mut run = Self {
            name: name.to_owned(),
            facts: facts.clone(),
            tensors: tensors.clone(),
            model: with_new_tokens(&base.checkpoint, "tokens", &[]).unwrap(),
            base,
        };
        run.model = with_new_tokens(&run.base.checkpoint, "tokens", &run.tokens()).unwrap();
        run
    }

    fn tokens(&self) -> Vec<NewToken> {
        let token = |token: &str, vectors| NewToken {
            token: token.into(),
            initial: "bear".into(),
            vectors,
        };
        match self.name.as_str() {
            name if name.ends_with("textual_inversion") => vec![token("<toy>", 2)],
            "custom_diffusion" => vec![token("<new1>", 1)],
            _ => Vec::new(),
        }
    }

    fn trained(&self) -> Trained {
        let parameters: Vec<String> =
            serde_json::from_value(self.facts["parameters"].clone()).unwrap();
        let text = parameters
            .iter()
            .any(|name| name.starts_with("text_encoder"));
        let trained = match self.name.trim_start_matches("sdxl_") {
            name if name.starts_with("dreambooth") => Trained::dreambooth(&self.model, text),
            "textual_inversion" => Trained::textual_inversion(&self.model, &self.tokens()),
            "custom_diffusion" => Trained::custom_diffusion(&self.model, &self.tokens()),
            name => {
                let options = LoraOptions {
                    rank: 4,
                    alpha: 8.0,
                    dropout: 0.0,
                    convolutions: name.contains("conv"),
                    text,
                };
                Trained::lora(&self.model, &options, 0)
            }
        }
        .unwrap();
        let init = self.facts["init"].as_str().unwrap_or(&self.name);
        for parameter in &trained.parameters {
            let key = format!("{init}.init.{}", name_of(parameter));
            if let Some(init) = self.tensors.get(&key) {
                let numbers = numbers(init);
                change(&parameter.variable, |w| w.copy_from_slice(&numbers)).unwrap();
            }
        }
        trained
    }

    fn rows(&self, of: &str) -> Vec<Tensor> {
        let all = &self.tensors[of];
        (0..all.dim(0).unwrap())
            .map(|i| all.narrow(0, i, 1).unwrap())
            .collect()
    }

    fn examples(&self, latents: &str, prompts: &[String], masked: bool) -> Vec<Example> {
        let masks = masked.then(|| self.rows("mask"));
        let latents = self.rows(latents).into_iter().enumerate();
        latents
            .map(|(i, latent)| Example {
                latent,
                caption: prompts[i % prompts.len()].replace(" <toy>_1", ""),
                mask: masks.as_ref().map(|masks| masks[i].clone()),
            })
            .collect()
    }

    fn prompts(&self) -> Vec<String> {
        serde_json::from_value(self.facts["prompts"].clone()).unwrap()
    }

    /// A training as the case has it; `loss` is where its facts on the loss are.
    fn trainer(&self, loss: &Value, recompute: bool) -> Trainer<'_> {
        let masked = loss.get("background").is_some();
        let class = vec!["a photo of a teddy bear".to_owned()];
        let prior = match self.facts.get("prior") {
            Some(_) => Prior::Pictures(self.examples("class_latents", &class, false)),
            None => Prior::None,
        };
        let number = |name: &str, default: f64| self.facts[name].as_f64().unwrap_or(default);
        let rate = number("rate", 1e-3);
        let settings = Settings {
            rate,
            text_rate: number("text_rate", rate),
            schedule: match self.facts["schedule"].as_str() {
                Some("cosine") => RateSchedule::Cosine,
                _ => RateSchedule::Constant,
            },
            warmup: self.facts["warmup"].as_u64().unwrap_or(0),
            steps: 20,
            batch: 2,
            accumulation: self.facts["accumulation"].as_u64().unwrap_or(1) as usize,
            optimizer: AdamW {
                betas: (0.9, 0.999),
                eps: 1e-8,
                weight_decay: 0.01,
                eight_bit: false,
            },
            max_norm: number("max_norm", 0.0),
            min_snr: loss["gamma"].as_f64(),
            noise_offset: 0.0,
            prior_weight: number("prior", 0.0),
            background_weight: loss["background"].as_f64().unwrap_or(1.0),
            ema: self.facts.get("ema").map(|_| 0.99),
            seed: 0,
            recompute,
        };
        let examples = self.examples("latents", &self.prompts(), masked);
        Trainer::new(&self.model, self.trained(), examples, prior, settings).unwrap()
    }

    /// The norm, the sum and eight entries of numbers, and what they may be off by.
    fn check_summary(&self, what: &str, own: &[f32], expected: &[f32], tolerance: f64) {
        let n = own.len();
        let entry = |k: usize| own[(2 * k + 1) * n / 16];
        let sum = |f: &dyn Fn(f64) -> f64| own.iter().map(|&x| f(f64::from(x))).sum::<f64>();
        let norm = f64::from(expected[0]);
        let largest = expected[2..]
            .iter()
            .fold(0.0, |most: f64, x| most.max(f64::from(x.abs())));
        let unit = largest.max(norm / (n as f64).sqrt());
        let close = |what: &str, a: f64, b: f64, unit: f64| {
            assert!(
                (a - b).abs() <= tolerance * unit,
                "{}: {what}: {a:e} for {b:e}",
                self.name
            );
        };
        close(&format!("{what}: norm"), sum(&|x| x * x).sqrt(), norm, norm);
        let of_sum = norm * (n as f64).sqrt();
        close(
            &format!("{what}: sum"),
            sum(&|x| x),
            f64::from(expected[1]),
            of_sum,
        );
        for k in 0..8 {
            let (a, b) = (f64::from(entry(k)), f64::from(expected[2 + k]));
            close(&format!("{what}: entry {k}"), a, b, unit);
        }
    }

    /// Compares the numbers of each parameter with what the oracle has under `whole` or `summary`. Returns how many were compared.
    fn compare(
        &self,
        values: &HashMap<String, Vec<f32>>,
        whole: &str,
        summary: &str,
        left_out: &[String],
        tolerance: f64,
    ) -> usize {
        let names: Vec<String> = serde_json::from_value(self.facts["parameters"].clone()).unwrap();
        let summaries = self.tensors.get(&format!("{}.{summary}", self.name));
        let summaries = summaries.map(|t| t.to_vec2::<f32>().unwrap());
        let mut compared = 0;
        for (i, name) in names.iter().enumerate() {
            let own = values
                .get(name)
                .unwrap_or_else(|| panic!("{}: no {name}", self.name));
            if left_out.contains(name) {
                continue;
            }
            let expected = self.tensors.get(&format!("{}.{whole}.{name}", self.name));
            if let Some(expected) = expected {
                let expected = numbers(expected);
                assert_eq!(own.len(), expected.len(), "{name}");
                let largest = expected
                    .iter()
                    .fold(0f64, |most, x| most.max(f64::from(x.abs())));
                for (a, b) in own.iter().zip(&expected) {
                    let off = f64::from(a - b).abs();
                    assert!(
                        off <= tolerance * largest,
                        "{}: {name}: {a:e} for {b:e}, largest {largest:e}",
                        self.name
                    );
                }
            } else {
                let rows = summaries.as_ref().unwrap();
                self.check_summary(name, own, &rows[i], tolerance);
            }
            compared += 1;
        }
        compared
    }

    fn list(&self, name: &str) -> Vec<String> {
        serde_json::from_value(self.facts[name].clone()).unwrap_or_default()
    }

    fn scalar(&self, name: &str) -> f64 {
        f64::from(
            self.tensors[&format!("{}.{name}", self.name)]
                .to_scalar::<f32>()
                .unwrap(),
        )
    }
}

/// Every case of some files.
fn runs(files: &[&str], mut f: impl FnMut(&Run)) -> usize {
    let mut count = 0;
    for file in files {
        let (tensors, facts) = read(file);
        for (name, facts) in facts["cases"].as_object().unwrap() {
            f(&Run::new(name, facts, &tensors));
            count += 1;
        }
    }
    count
}

#[test]
fn every_trained_parameter_has_torchs_gradient_with_every_method() {
    let files = [
        "gradients-all",
        "gradients-lora",
        "gradients-tokens",
        "gradients-sdxl",
    ];
    let count = runs(&files, |run| {
        if run.facts["loss"].get("background").is_some() && run.facts["loss"]["normalised"] != true
        {
            return; // weights here have the mean 1
        }
        for recompute in [false, true] {
            let mut trainer = run.trainer(&run.facts["loss"], recompute);
            let timesteps = run.tensors["timesteps"].to_vec1::<i64>().unwrap();
            let given = Given {
                noise: run.tensors["noise"].clone(),
                timesteps: timesteps.into_iter().map(|t| t as usize).collect(),
                class: Vec::new(),
            };
            let (loss, prior, gradients) = trainer.gradients(&[0, 1], &given).unwrap();
            assert!(
                (loss - run.scalar("loss")).abs() < 1e-5 * loss,
                "{}: {loss}",
                run.name
            );
            assert_eq!(prior, None);
            let values: HashMap<String, Vec<f32>> = trainer
                .trained()
                .parameters
                .iter()
                .zip(&gradients)
                .filter_map(|(p, g)| Some((name_of(p), numbers(g.as_ref()?))))
                .collect();
            let silent = run.list("silent");
            let names = run.list("parameters").len();
            let compared = run.compare(&values, "grad", "grad_summary", &silent, 3e-4);
            assert_eq!(compared, names - silent.len());
        }
    });
    assert_eq!(count, 14);
}

#[test]
fn twenty_steps_of_every_method_go_as_torchs() {
    let count = runs(&["runs-dreambooth", "runs-lora", "runs-tokens"], |run| {
        if run.facts.get("background").is_some() && run.facts["normalised"] != true {
            return; // weights here have the mean 1
        }
        let mut trainer = run.trainer(&run.facts, false);
        let before: HashMap<String, Vec<f32>> = values(&trainer);
        let accumulation = run.facts["accumulation"].as_u64().unwrap_or(1) as usize;
        let rows = if run.facts.get("prior").is_some() {
            4
        } else {
            2
        };
        let noise = &run.tensors["noise"];
        let timesteps = run.tensors["timesteps"].to_vec2::<i64>().unwrap();
        let losses = run.tensors[&format!("{}.losses", run.name)]
            .flatten_all()
            .unwrap();
        let losses = losses.to_vec1::<f32>().unwrap();
        let norms = numbers(&run.tensors[&format!("{}.norms", run.name)]);
        let rates = numbers(&run.tensors[&format!("{}.rates", run.name)]);
        for (step, timesteps) in timesteps.iter().enumerate() {
            let own = noise.get(step).unwrap();
            let given: Vec<Given> = (0..accumulation)
                .map(|i| {
                    let mut noise = own.narrow(0, i * rows, rows).unwrap();
                    if run.facts.get("offset").is_some() {
                        let offset = run.tensors["offset_noise"].get(step).unwrap();
                        let offset =
                            (offset.unsqueeze(2).unwrap().unsqueeze(3).unwrap() * 0.1).unwrap();
                        noise = noise.broadcast_add(&offset).unwrap();
                    }
                    let timesteps = timesteps[i * rows..(i + 1) * rows].iter();
                    Given {
                        noise,
                        timesteps: timesteps.map(|&t| t as usize).collect(),
                        class: vec![0, 1],
                    }
                })
                .collect();
            let batches = vec![vec![0, 1]; accumulation];
            let report = trainer.advance_with(&batches, &given).unwrap();
            let expected = losses[step * accumulation..(step + 1) * accumulation].iter();
            let expected = expected.map(|&x| f64::from(x)).sum::<f64>() / accumulation as f64;
            let weight = run.facts["prior"].as_f64().unwrap_or(0.0);
            let loss = report.loss + weight * report.prior.unwrap_or(0.0);
            let close = |what: &str, a: f64, b: f64| {
                assert!(
                    (a - b).abs() <= 1e-3 * b.abs(),
                    "{} step {step}: {what} {a} for {b}",
                    run.name
                );
            };
            close("loss", loss, expected);
            close("norm", report.norm, f64::from(norms[step]));
            close("rate", report.rate, f64::from(rates[step]));
        }
        let after = values(&trainer);
        let change = after.iter().map(|(name, after)| {
            let change = after.iter().zip(&before[name]).map(|(a, b)| a - b);
            (name.clone(), change.collect::<Vec<f32>>())
        });
        let change: HashMap<_, _> = change.collect();
        let loose = run.list("loose");
        if run.facts["whole"] == true {
            run.compare(&after, "final", "", &loose, 2e-3);
        } else {
            run.compare(&change, "-", "change_summary", &loose, 3e-2);
        }
        if run.facts.get("ema").is_some() {
            let average = trainer.result().unwrap().into_iter();
            let average = average.map(|(parameter, average)| {
                let name = name_of(&parameter);
                let change = average.iter().zip(&before[&name]).map(|(a, b)| a - b);
                let change: Vec<f32> = change.collect();
                (name, change)
            });
            run.compare(&average.collect(), "-", "ema_0.99_summary", &loose, 3e-2);
        }
    });
    assert_eq!(count, 18);
}

fn values(trainer: &Trainer<'_>) -> HashMap<String, Vec<f32>> {
    let parameters = trainer.trained().parameters.iter();
    parameters
        .map(|p| (name_of(p), numbers(&p.variable)))
        .collect()
}

#[test]
fn eight_bit_moments_are_quantised_as_the_paper_has_it() {
    use retouch_diffusion::training::optimizer::Moments;
    let (tensors, _) = read("eight_bit");
    let start = numbers(&tensors["adamw.start"]);
    let gradients = numbers(&tensors["adamw.gradients"]);
    for (eight_bit, expected) in [(true, "adamw.final"), (false, "adamw.final_without")] {
        let optimizer = AdamW {
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
            eight_bit,
        };
        let w = Tensor::from_vec(start.clone(), start.len(), &Device::Cpu).unwrap();
        let w = Var::from_tensor(&w).unwrap().into_inner();
        // The case is smaller than what is quantised by default.
        let mut moments = Moments::zeros_of(start.len(), eight_bit);
        for (t, gradient) in gradients.chunks(start.len()).enumerate() {
            optimizer
                .step(&w, gradient, &mut moments, 0.01, t as u64 + 1, 1.0)
                .unwrap();
        }
        let expected = numbers(&tensors[expected]);
        for (own, expected) in numbers(&w).iter().zip(&expected) {
            assert!(
                (own - expected).abs() < 2e-6 * expected.abs().max(1.0),
                "{own} for {expected}"
            );
        }
    }
}

/// The tensors of a file by name.
fn file(name: &str) -> HashMap<String, Vec<f32>> {
    let path = support::data().join("training/interchange").join(name);
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let floats = |t: Tensor| numbers(&t.to_dtype(DType::F32).unwrap());
    // transformers 5 has no `text_model` in the names; files that are shared have.
    let name =
        |name: String| name.replace("text_encoder.encoder", "text_encoder.text_model.encoder");
    tensors
        .into_iter()
        .map(|(key, t)| (name(key), floats(t)))
        .collect()
}

#[test]
fn an_adapter_is_written_as_other_programs_write_it() {
    use retouch_diffusion::training::export::{AdapterFormat, adapter};
    let (lora, lora_facts) = read("runs-lora");
    let (tokens, token_facts) = read("runs-tokens");
    let cases = [
        (
            "lora_text",
            AdapterFormat::Kohya,
            vec!["lora-kohya.safetensors"],
        ),
        (
            "lora_text",
            AdapterFormat::Diffusers,
            vec!["lora-diffusers.safetensors"],
        ),
        (
            "textual_inversion",
            AdapterFormat::Diffusers,
            vec!["learned_embeds.safetensors"],
        ),
        (
            "custom_diffusion",
            AdapterFormat::Diffusers,
            vec!["custom-diffusion/pytorch_custom_diffusion_weights.safetensors"],
        ),
    ];
    for (case, format, files) in cases {
        let (tensors, facts) = if case == "lora_text" {
            (&lora, &lora_facts)
        } else {
            (&tokens, &token_facts)
        };
        let run = Run::new(case, &facts["cases"][case], tensors);
        let trained = run.trained();
        let values: Vec<_> = trained
            .parameters
            .iter()
            .map(|p| {
                (
                    p.clone(),
                    numbers(&tensors[&format!("{case}.final.{}", name_of(p))]),
                )
            })
            .collect();
        let scale = if case == "lora_text" { 2.0 } else { 1.0 };
        let own = adapter(&values, &run.base.checkpoint, scale, format).unwrap();
        let own: HashMap<String, Vec<f32>> = own.into_iter().map(|t| (t.name, t.numbers)).collect();
        let expected: HashMap<String, Vec<f32>> = files.into_iter().flat_map(file).collect();
        let beside = own.keys().filter(|name| !expected.contains_key(*name));
        let beside: Vec<_> = beside.collect();
        // The new token of Custom Diffusion is in a file of its own there.
        let of_token = case == "custom_diffusion" && beside == ["modifier_token.<new1>"];
        assert!(
            beside.is_empty() || of_token,
            "{case} {format:?}: {beside:?}"
        );
        for (name, expected) in &expected {
            let own = own
                .get(name)
                .unwrap_or_else(|| panic!("{case} {format:?}: no {name}"));
            // Our file for diffusers has alpha in the second factor, theirs in its metadata.
            let factor = match format {
                AdapterFormat::Diffusers if name.ends_with(".up.weight") => 2.0,
                _ => 1.0,
            };
            for (a, b) in own.iter().zip(expected) {
                assert!(
                    (a - factor * b).abs() < 1e-6,
                    "{case} {format:?}: {name}: {a} for {b}"
                );
            }
        }
    }
}
