//! What nodes need beyond their inputs, and the bridge from the engine's context to the networks below.

use std::sync::Arc;

use candle_core::{DType, Device};
use retouch_graph::{Context, NodeError};

use retouch_diffusion::checkpoint::memory::Memory;
use retouch_diffusion::sampling::Monitor;
pub(crate) use retouch_diffusion::tensor_error;
use retouch_diffusion::{Error, Result};
use retouch_kernels::{Kernel, cpu_sets, for_device};

/// The compute device and its kernels: the environment that whoever makes an engine gives the nodes.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where tensors are computed.
    pub device: Device,
    /// How.
    pub kernel: Arc<dyn Kernel>,
    /// The type that weights are held in.
    pub dtype: DType,
    /// Counts the weights that are resident.
    pub memory: Arc<Memory>,
    /// Whether parts of a model are dropped as soon as what they were used for is done.
    pub offload: bool,
}

impl Runtime {
    /// The runtime of a device.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self {
            kernel: for_device(&device),
            device,
            dtype: DType::F32,
            memory: Arc::default(),
            offload: false,
        }
    }

    /// Holds weights in a type by the name that the command line takes: `f32`, `f16`, `bf16`.
    ///
    /// # Errors
    /// When the name is another.
    pub fn with_dtype(mut self, name: &str) -> Result<Self, NodeError> {
        self.dtype = match name {
            "f32" => DType::F32,
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            other => {
                return Err(
                    NodeError::failed(format!("{other:?} is not a data type of weights"))
                        .help("give `f32`, `f16` or `bf16`"),
                );
            }
        };
        Ok(self)
    }

    /// Bounds the memory that weights may take, in bytes, and drops parts of models early if `offload`.
    #[must_use]
    pub fn with_memory(mut self, limit: Option<u64>, offload: bool) -> Self {
        self.memory = Arc::new(Memory::with_limit(limit));
        self.offload = offload;
        self
    }

    /// The CPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self::new(Device::Cpu)
    }

    /// A device by the name that the command line takes, `cpu`, `cuda`, `cuda:1`, `metal`, and behind a slash the type that
    /// weights are held in: `cpu/bf16`. `cpu:cpu2` computes with that kernel set, by its name in keys, in place of the fastest.
    ///
    /// # Errors
    /// When there is no such device, this build has no support for it, or the processor cannot run the kernel set.
    pub fn by_name(name: &str) -> Result<Self, NodeError> {
        if let Some((device, dtype)) = name.split_once('/') {
            return Self::by_name(device)?.with_dtype(dtype);
        }
        let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
        if kind == "cpu" && index != "0" {
            return Self::with_cpu_set(index);
        }
        let index: usize = index.parse().map_err(|_| {
            NodeError::failed(format!("{name:?} is not a device"))
                .help("give `cpu`, `cuda`, `cuda:1` or `metal`")
        })?;
        let missing = |feature: &str| {
            NodeError::failed(format!("this build has no support for {kind}")).help(format!(
                "build it with `cargo build --release --features {feature}`, or give `--device cpu`"
            ))
        };
        let failed = |e: candle_core::Error| {
            NodeError::failed(format!("the device {name} cannot be used: {e}"))
                .help("give `--device cpu`")
        };
        let device = match kind {
            "cpu" if index == 0 => Device::Cpu,
            "cuda" if !candle_core::utils::cuda_is_available() => return Err(missing("cuda")),
            "cuda" => Device::new_cuda(index).map_err(failed)?,
            "metal" if !candle_core::utils::metal_is_available() => return Err(missing("metal")),
            "metal" => Device::new_metal(index).map_err(failed)?,
            _ => {
                return Err(NodeError::failed(format!("{name:?} is not a device"))
                    .help("give `cpu`, `cuda`, `cuda:1` or `metal`"));
            }
        };
        Ok(Self::new(device))
    }

    /// The CPU with one of its kernel sets.
    fn with_cpu_set(name: &str) -> Result<Self, NodeError> {
        let sets = cpu_sets();
        match sets.iter().find(|set| set.name() == name) {
            Some(kernel) => Ok(Self {
                kernel: Arc::clone(kernel),
                ..Self::cpu()
            }),
            None => {
                let names: Vec<String> = sets
                    .iter()
                    .map(|set| format!("`cpu:{}`", set.name()))
                    .collect();
                Err(NodeError::failed(format!(
                    "this processor has no kernel set {name:?} to compute with"
                ))
                .help(format!(
                    "give `cpu` for the fastest, or one of {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// What enters every cache key: results of another device class or kernel set may differ in their last bits.
    #[must_use]
    pub fn numerics(&self) -> String {
        let class = match self.device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        };
        let dtype = match self.dtype {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            _ => "f32",
        };
        format!("{class}/{dtype}/{}", self.kernel.name())
    }

    /// The runtime of a running node.
    ///
    /// # Errors
    /// When whoever made the engine gave none.
    pub(crate) fn of<'a>(context: &'a Context<'_>) -> Result<&'a Self, NodeError> {
        context
            .environment::<Self>()
            .ok_or_else(|| NodeError::failed("the engine was made without a compute device"))
    }
}

/// Tells the engine what the networks tell their monitor.
pub(crate) struct Reports<'a>(pub &'a Context<'a>);

impl Monitor for Reports<'_> {
    fn step(&self, done: usize, total: usize) -> Result<()> {
        self.0.progress(done, total);
        self.0.check_cancelled().map_err(|_| Error::Cancelled)
    }
    fn unet_calls(&self, images: usize) {
        self.0.count("unet_calls", images as u64);
    }
    fn warn(&self, message: &str) {
        self.0.warn(message);
    }
    fn goes_on(&self) -> Result<()> {
        self.0.check_cancelled().map_err(|_| Error::Cancelled)
    }
}

/// Refuses a result that is not made of numbers.
pub(crate) fn check_finite(
    tensor: &candle_core::Tensor,
    what: &str,
) -> std::result::Result<(), NodeError> {
    let sum = tensor
        .abs()
        .and_then(|t| t.sum_all())
        .and_then(|t| t.to_scalar::<f32>())
        .map_err(tensor_error)?;
    if sum.is_finite() {
        Ok(())
    } else {
        Err(
            NodeError::failed(format!("{what} contains NaN or infinite values")).help(
                "the model's weights may be damaged, or its configuration belong to another model",
            ),
        )
    }
}
