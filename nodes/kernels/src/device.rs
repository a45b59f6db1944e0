//! Which kernels a device gets.

use std::sync::Arc;

use candle_core::Device;

use crate::Kernel;
use crate::cpu::Cpu;
use crate::plain::Plain;

/// The kernels for a device: [`Cpu`] on the CPU, candle's own operators elsewhere.
#[must_use]
pub fn for_device(device: &Device) -> Arc<dyn Kernel> {
    if device.is_cpu() {
        Arc::new(Cpu::default())
    } else {
        Arc::new(Plain)
    }
}
