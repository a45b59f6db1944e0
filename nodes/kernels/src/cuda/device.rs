//! Launches on a CUDA device: the kernels are compiled by NVRTC when the first one is launched.

use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::compile_ptx;
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{DType, Result, Storage, Tensor};

use super::Launcher;
use super::calls::Call;

/// The source that every device gets.
static SOURCE: &str = include_str!("kernels.cu");
/// What the module is called among those of candle's device.
const MODULE: &str = "retouch";

/// The kernels as PTX, which the driver compiles for the card. They are compiled once a process; a failure is told at each launch.
fn ptx() -> Result<&'static str> {
    static PTX: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compiled = PTX.get_or_init(|| {
        let compiled = compile_ptx(SOURCE).map_err(|error| format!("{error:?}"))?;
        Ok(compiled.to_src())
    });
    match compiled {
        Ok(ptx) => Ok(ptx),
        Err(why) => candle_core::bail!("the CUDA kernels cannot be compiled: {why}"),
    }
}

/// Launches on the device that the tensors are on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Device;

impl Launcher for Device {
    fn launch(&self, call: &Call, tensors: &[&Tensor]) -> Result<Tensor> {
        let device = tensors[0].device().as_cuda_device()?.clone();
        let function = device.get_or_load_custom_func(call.kernel, MODULE, ptx()?)?;
        let count: usize = call.shape.iter().product();
        if count == 0 {
            return Tensor::zeros(call.shape.as_slice(), DType::F32, tensors[0].device());
        }
        // SAFETY: every kernel writes all numbers of its result; the grid is made for its shape (`calls.rs`).
        let mut result = unsafe { device.alloc::<f32>(count)? };
        let storages: Vec<_> = tensors
            .iter()
            .map(|tensor| tensor.storage_and_layout())
            .collect();
        let mut floats = Vec::new();
        let mut numbers = Vec::new();
        // In the order of the arguments: which of the two lists, and where in it.
        let mut order = Vec::new();
        for ((storage, layout), tensor) in storages.iter().zip(tensors) {
            let Storage::Cuda(storage) = &**storage else {
                candle_core::bail!("a tensor of a CUDA kernel is not on the device");
            };
            let from = layout.start_offset();
            match tensor.dtype() {
                DType::U32 => {
                    order.push((true, numbers.len()));
                    numbers.push(storage.as_cuda_slice::<u32>()?.slice(from..));
                }
                _ => {
                    order.push((false, floats.len()));
                    floats.push(storage.as_cuda_slice::<f32>()?.slice(from..));
                }
            }
        }
        let mut launch = function.builder();
        launch.arg(&mut result);
        for (is_number, at) in order {
            match is_number {
                true => launch.arg(&numbers[at]),
                false => launch.arg(&floats[at]),
            };
        }
        for int in &call.ints {
            launch.arg(int);
        }
        for float in &call.floats {
            launch.arg(float);
        }
        let [x, y, z] = call.grid;
        let shape = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (call.threads, 1, 1),
            shared_mem_bytes: call.shared,
        };
        // SAFETY: the arguments are those that `kernels.cu` declares for this kernel, which the tests check with the emulator; every
        // tensor has as many numbers as the kernel reads (`Call::sizes`, which `Fused::launch` compares, and `chosen`).
        unsafe { launch.launch(shape) }.w()?;
        drop(launch);
        drop((floats, numbers));
        drop(storages);
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(result, device));
        Ok(Tensor::from_storage(
            storage,
            call.shape.as_slice(),
            BackpropOp::none(),
            false,
        ))
    }
}
