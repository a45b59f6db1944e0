//! Which kernels a device gets.

use std::sync::Arc;

use candle_core::Device;

use crate::Kernel;
use crate::cpu::{Cpu, Isa};
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

/// The kernel sets that this processor can compute with, each with its own last digits, the one of [`for_device`] first.
#[must_use]
pub fn cpu_sets() -> Vec<Arc<dyn Kernel>> {
    let isas = Isa::available().into_iter().map(Cpu::with);
    let all = [Cpu::default(), Cpu::default().without_tiles()]
        .into_iter()
        .chain(isas);
    let mut sets: Vec<Arc<dyn Kernel>> = Vec::new();
    for set in all {
        // Of those that give the same digits the fastest, which comes first.
        if sets.iter().all(|there| there.name() != set.name()) {
            sets.push(Arc::new(set));
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_begin_with_the_one_that_is_chosen_and_each_has_a_name() {
        let names: Vec<&str> = cpu_sets().iter().map(|set| set.name()).collect();
        assert_eq!(names[0], for_device(&Device::Cpu).name());
        assert_eq!(names.last(), Some(&"cpu2-unfused"));
        let order = ["cpu2-tiles", "cpu2-pairs", "cpu2", "cpu2-unfused"];
        let known = order.into_iter().filter(|name| names.contains(name));
        assert!(known.eq(names.iter().copied()), "{names:?}");
    }
}
