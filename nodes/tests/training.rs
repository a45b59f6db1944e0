//! Training against torch, PEFT and diffusers: gradients of every operation and of every parameter, and whole steps.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use retouch_kernels::train::Recorder;
use retouch_kernels::{Cpu, GroupNormSpec, Isa, Kernel, Padding, Plain, Terms, Weight, Window};
use serde_json::Value;

use crate::support::{self, assert_close};

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
