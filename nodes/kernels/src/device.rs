//! Which kernels a device gets.

use std::sync::Arc;

use candle_core::Device;

use crate::Kernel;
use crate::cpu::Cpu;
use crate::plain::Plain;

/// The kernels for a device: [`Cpu`] on the CPU, candle's own operators elsewhere; on a CUDA device with
/// `RETOUCH_CUDA_KERNELS=fused` those of `cuda/`, which no GPU has run yet.
#[must_use]
pub fn for_device(device: &Device) -> Arc<dyn Kernel> {
    #[cfg(feature = "cuda")]
    if device.is_cuda()
        && std::env::var_os("RETOUCH_CUDA_KERNELS").is_some_and(|set| set == "fused")
    {
        return Arc::new(crate::cuda::Fused::<crate::cuda::Device>::default());
    }
    if device.is_cpu() {
        Arc::new(Cpu::default())
    } else {
        Arc::new(Plain)
    }
}
