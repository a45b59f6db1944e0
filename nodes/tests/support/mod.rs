//! What the tests against the oracle share: its data, and the measure that its tolerances are in.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

/// Both families of tiny models.
pub const FAMILIES: [&str; 2] = ["tiny-sd1", "tiny-sd2"];
/// Single modules, as max |difference| / std of what is expected.
pub const MODULE: f32 = 1e-4;
/// Trajectories, in the same measure.
pub const TRAJECTORY: f32 = 5e-4;

/// The folder of the oracle's data; `RETOUCH_ORACLE` names another one that `make.py` made.
pub fn data() -> PathBuf {
    std::env::var_os("RETOUCH_ORACLE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/data"),
        PathBuf::from,
    )
}

/// The expected tensors of a family.
pub fn expected(family: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data().join(format!("{family}.safetensors")), &Device::Cpu)
        .unwrap()
}

/// max |a - b| / std(b).
pub fn distance(a: &Tensor, b: &Tensor) -> f32 {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len(), "sizes differ");
    let n = b.len() as f64;
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let std = (b
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / (n - 1.0))
        .sqrt();
    let off = a
        .iter()
        .zip(&b)
        .map(|(a, b)| {
            if a.is_finite() {
                (a - b).abs()
            } else {
                f32::INFINITY
            }
        })
        .fold(0.0, f32::max);
    off / std as f32
}

/// Fails when `a` is further than `tolerance` from `b`.
#[track_caller]
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f32) {
    let distance = distance(a, b);
    println!("{what}: {distance:.1e} of {tolerance:.0e}");
    assert!(
        distance <= tolerance,
        "{what}: {distance:.2e} is over {tolerance:.0e}"
    );
}

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use retouch_graph::{Cancel, Digest, DiskFiles, FileStamp, Files, Host, Node, NodeError};
use retouch_kernels::{Attended, Cpu, GroupNormSpec, Kernel, Layout, Terms, Weight, Window};
use retouch_nodes::Runtime;
use retouch_nodes::attention::SwapAttention;
use retouch_nodes::load::LoadModel;
use retouch_nodes::payload::{Control, Latent, Mask, MaskOrMasks, Masks, Model, Trajectory};
use retouch_nodes::sample::{Sample, StepBlendSample};

type Tensors = candle_core::Result<Tensor>;

/// Plain files.
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        std::fs::read(path).map(Into::into)
    }
    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        let bytes = std::fs::read(path)?;
        Ok((
            bytes[..length.min(bytes.len())].to_vec(),
            bytes.len() as u64,
        ))
    }
    fn digest(&self, path: &Path) -> io::Result<Digest> {
        Ok(blake3::hash(&std::fs::read(path)?).into())
    }
    fn sha256(&self, path: &Path) -> io::Result<Digest> {
        DiskFiles::new().sha256(path)
    }
    fn doubt(&self) {}
    fn stamp(&self, _: &Path) -> Option<FileStamp> {
        None
    }
    fn is_file(&self, path: &Path) -> bool {
        path.is_file()
    }
    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Ok(retouch_graph::files::piece(&self.read(path)?, offset, length).to_vec())
    }
    fn entries(&self, folder: &Path) -> io::Result<Vec<retouch_graph::FolderEntry>> {
        DiskFiles::new().entries(folder)
    }
    fn flush(&self) {}
}

impl retouch_graph::LocalFiles for Disk {}

/// The fast kernels, with a note of what they are asked for.
#[derive(Debug, Default)]
pub struct Noting {
    kernel: Cpu,
    /// Numbers of the largest image that went into a convolution or came out of one.
    pub largest: AtomicUsize,
    /// The most images of a convolution.
    pub images: AtomicUsize,
    /// Tokens of each product with a matrix.
    pub products: Mutex<Vec<usize>>,
    /// Layers that were computed, and weights that were packed.
    pub done: AtomicUsize,
    /// What is cancelled with the layer or weight of this number.
    pub cancels: Mutex<Option<(usize, Cancel)>>,
}

impl Noting {
    /// Counts a layer or a weight.
    fn count(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some((at, cancel)) = &*self.cancels.lock().unwrap()
            && *at == done
        {
            cancel.cancel();
        }
    }

    fn product(&self, x: &Tensor) {
        self.count();
        self.products.lock().unwrap().push(x.dim(1).unwrap());
    }
}

impl Kernel for Noting {
    fn name(&self) -> &'static str {
        self.kernel.name()
    }
    fn layout(&self) -> Layout {
        self.kernel.layout()
    }
    fn pack(&self, w: &Tensor) -> Tensors {
        self.count();
        self.kernel.pack(w)
    }
    fn linear(&self, x: &Tensor, w: &Weight, terms: Terms<'_>) -> Tensors {
        self.product(x);
        self.kernel.linear(x, w, terms)
    }
    fn conv2d(&self, x: &Tensor, w: &Weight, window: Window, terms: Terms<'_>) -> Tensors {
        self.count();
        let y = self.kernel.conv2d(x, w, window, terms)?;
        let images = x.dim(0)?;
        self.images.fetch_max(images, Ordering::Relaxed);
        let numbers = x.elem_count().max(y.elem_count()) / images;
        self.largest.fetch_max(numbers, Ordering::Relaxed);
        Ok(y)
    }
    fn group_norm(&self, x: &Tensor, norm: &GroupNormSpec<'_>, silu: bool) -> Tensors {
        self.kernel.group_norm(x, norm, silu)
    }
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Tensors {
        self.kernel.layer_norm(x, weight, bias, eps)
    }
    fn geglu(&self, x: &Tensor) -> Tensors {
        self.kernel.geglu(x)
    }
    fn linear_geglu(&self, x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Tensors {
        self.product(x);
        self.kernel.linear_geglu(x, w, bias)
    }
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        heads: usize,
        scale: f64,
        keys: Option<&[Vec<u32>]>,
    ) -> Tensors {
        self.kernel.attention(q, k, v, heads, scale, keys)
    }
    fn attention_blend(
        &self,
        q: &Tensor,
        inside: Attended<'_>,
        outside: Attended<'_>,
        mask: &Tensor,
        heads: usize,
        scale: f64,
    ) -> Tensors {
        (self.kernel).attention_blend(q, inside, outside, mask, heads, scale)
    }
    fn attention_map(&self, q: &Tensor, k: &Tensor, heads: usize, scale: f64) -> Tensors {
        self.kernel.attention_map(q, k, heads, scale)
    }
}

/// Runs nodes without an engine, on the device that `RETOUCH_TEST_DEVICE` names (the CPU by default).
pub struct Stage {
    pub calls: AtomicU64,
    pub warnings: Mutex<Vec<String>>,
    pub runtime: Runtime,
}

impl Default for Stage {
    fn default() -> Self {
        let device = std::env::var("RETOUCH_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
        Self {
            calls: AtomicU64::new(0),
            warnings: Mutex::default(),
            runtime: Runtime::by_name(&device).unwrap(),
        }
    }
}

impl Host for Stage {
    fn progress(&self, _: usize, _: usize) {}
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
    fn count(&self, _: &'static str, by: u64) {
        self.calls.fetch_add(by, Ordering::Relaxed);
    }
    fn is_cancelled(&self) -> bool {
        false
    }
    fn files(&self) -> &dyn Files {
        &Disk
    }
    fn any_environment(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.runtime)
    }
}

/// A node from its parameters.
pub fn node<N: Node>(parameters: serde_json::Value) -> N {
    serde_json::from_value(parameters).unwrap()
}

/// What drawing gave.
pub struct Picture {
    pub latent: Arc<Latent>,
    pub trajectory: Arc<Trajectory>,
    pub masks: Option<Arc<Masks>>,
}

impl Picture {
    /// All latents as the oracle has them: `[T + 1, C, h, w]`.
    pub fn tensor(&self) -> Tensor {
        Tensor::cat(&self.trajectory.latents, 0).unwrap()
    }
}

impl Stage {
    pub fn run<N: Node>(&self, node: &N, inputs: N::Inputs) -> Result<N::Outputs, NodeError> {
        node.run(inputs, self)
    }

    /// U-Net calls (one image, one half) since the last time.
    pub fn take_calls(&self) -> u64 {
        self.calls.swap(0, Ordering::Relaxed)
    }

    /// The family's vanilla model, or its personalised one.
    pub fn model(&self, family: &str, personal: bool) -> Arc<Model> {
        let folder = data().join(family);
        let unet = data().join(format!("{family}-personal/unet"));
        let load: LoadModel = if personal {
            node(serde_json::json!({"path": folder, "unet": unet}))
        } else {
            node(serde_json::json!({"path": folder}))
        };
        self.run(&load, retouch_nodes::load::load_model::Inputs {})
            .unwrap()
            .model
    }

    pub fn blend(
        &self,
        parameters: serde_json::Value,
        vanilla: &Arc<Model>,
        personalized: &Arc<Model>,
        latent: Option<&Tensor>,
    ) -> Picture {
        let inputs = retouch_nodes::sample::step_blend_sample::Inputs {
            vanilla: vanilla.clone(),
            personalized: personalized.clone(),
            latent: latent.map(latent_of),
        };
        let out = self
            .run(&node::<StepBlendSample>(parameters), inputs)
            .unwrap();
        Picture {
            latent: out.latent,
            trajectory: out.trajectory,
            masks: None,
        }
    }

    pub fn sample(
        &self,
        parameters: serde_json::Value,
        model: &Arc<Model>,
        control: Option<Arc<Control>>,
        latent: Option<&Tensor>,
    ) -> Result<Picture, NodeError> {
        let inputs = retouch_nodes::sample::sample::Inputs {
            model: model.clone(),
            control,
            latent: latent.map(latent_of),
            mask: retouch_graph::Added(None),
            picture: retouch_graph::Added(None),
        };
        let out = self.run(&node::<Sample>(parameters), inputs)?;
        Ok(Picture {
            latent: out.latent,
            trajectory: out.trajectory,
            masks: out.masks,
        })
    }

    pub fn swap(&self, parameters: serde_json::Value, sources: Sources) -> Arc<Control> {
        let inputs = retouch_nodes::attention::swap_attention::Inputs {
            context: sources.context,
            reference: vec![sources.reference],
            vanilla: sources.vanilla,
            reference_mask: sources
                .reference_mask
                .iter()
                .map(mask_of)
                .map(MaskOrMasks::Mask)
                .collect(),
            context_mask: sources
                .context_mask
                .as_ref()
                .map(mask_of)
                .map(MaskOrMasks::Mask),
            blend_mask: sources
                .blend_mask
                .as_ref()
                .map(mask_of)
                .map(MaskOrMasks::Mask),
        };
        self.run(&node::<SwapAttention>(parameters), inputs)
            .unwrap()
            .control
    }
}

/// What a swap takes.
#[derive(Clone)]
pub struct Sources {
    pub context: Arc<Trajectory>,
    pub reference: Arc<Trajectory>,
    pub vanilla: Option<Arc<Model>>,
    pub reference_mask: Option<Tensor>,
    pub context_mask: Option<Tensor>,
    pub blend_mask: Option<Tensor>,
}

impl Sources {
    pub fn new(context: &Picture, reference: &Arc<Trajectory>) -> Self {
        Self {
            context: context.trajectory.clone(),
            reference: reference.clone(),
            vanilla: None,
            reference_mask: None,
            context_mask: None,
            blend_mask: None,
        }
    }
}

pub fn latent_of(tensor: &Tensor) -> Arc<Latent> {
    Arc::new(Latent {
        tensor: tensor.clone(),
    })
}

/// `[h, w]` or `[B, h, w]` as a mask.
pub fn mask_of(tensor: &Tensor) -> Arc<Mask> {
    let plane = if tensor.rank() == 2 {
        tensor.unsqueeze(0).unwrap()
    } else {
        tensor.clone()
    };
    Arc::new(Mask {
        plane: plane.contiguous().unwrap(),
    })
}

/// The bits of a tensor.
pub fn bits(t: &Tensor) -> Vec<u32> {
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}
