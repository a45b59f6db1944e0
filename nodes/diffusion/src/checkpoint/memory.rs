//! What models hold in memory, and whether more fits: a model that does not is refused before it takes the machine with
//! it, with what is resident and what to try.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result};

/// Something that is resident.
#[derive(Clone, Debug)]
struct Resident {
    what: String,
    bytes: u64,
}

/// Counts the weights that are resident.
#[derive(Debug, Default)]
pub struct Memory {
    /// The most that weights may take; `None`: what the system has free.
    limit: Option<u64>,
    resident: Mutex<BTreeMap<u64, Resident>>,
    next: AtomicU64,
    loads: AtomicU64,
    peak: AtomicU64,
}

/// The right to hold weights, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    memory: Arc<Memory>,
    number: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.memory.lock().remove(&self.number);
    }
}

/// Bytes for people, in powers of 1024: `12.3 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

impl Memory {
    /// Weights may take so many bytes; `None`: as many as the system has free.
    #[must_use]
    pub fn with_limit(limit: Option<u64>) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Resident>> {
        self.resident.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of weights that are resident.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.lock().values().map(|resident| resident.bytes).sum()
    }

    /// The most that were resident at once.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// How many times something was loaded.
    #[must_use]
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// What is resident, for people.
    #[must_use]
    pub fn resident(&self) -> Vec<String> {
        let resident = self.lock();
        resident
            .values()
            .map(|resident| format!("{} {}", resident.what, size(resident.bytes)))
            .collect()
    }

    /// Takes room for weights; `host` says that they go to the machine's own memory, of which it is known how much is
    /// free.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn claim(self: &Arc<Self>, what: &str, bytes: u64, host: bool) -> Result<Claim> {
        let held = self.held();
        let free = match self.limit {
            Some(limit) => Some(limit.saturating_sub(held)),
            None => host.then(available).flatten(),
        };
        if let Some(free) = free.filter(|&free| free < bytes) {
            let resident = self.resident();
            let resident = if resident.is_empty() {
                "no weights are resident".to_owned()
            } else {
                format!("resident are {}", resident.join(", "))
            };
            return Err(Error::request(format!(
                "out of memory: the {what} takes {}, {} are free; {resident}",
                size(bytes),
                size(free)
            ))
            .help("try `--dtype bf16` (half the weights' memory), `--offload`, or a smaller `--ram-cache`; `--memory SIZE` says how much may be taken, whatever the system says is free"));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let resident = Resident {
            what: what.to_owned(),
            bytes,
        };
        self.lock().insert(number, resident);
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.peak.fetch_max(held + bytes, Ordering::Relaxed);
        Ok(Claim {
            memory: self.clone(),
            number,
        })
    }
}

/// Bytes of the machine's memory that can be had without swapping, where the system says so; the limit of a control group
/// (a container) counts.
fn available() -> Option<u64> {
    let number = |text: &str| text.split_whitespace().next()?.parse::<u64>().ok();
    let line = |text: &str, name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name))?;
        number(found)
    };
    let system = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| line(&text, "MemAvailable:"))
        .map(|kib| kib.saturating_mul(1024));
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    // Pages of files count as used there, and can be had all the same.
    let group = read("memory.max")
        .and_then(|text| number(&text))
        .zip(read("memory.current").and_then(|text| number(&text)))
        .map(|(most, used)| {
            let files = read("memory.stat").and_then(|text| line(&text, "file "));
            most.saturating_sub(used.saturating_sub(files.unwrap_or(0)))
        });
    match (system, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_what_is_resident_and_what_to_try() {
        let memory = Arc::new(Memory::with_limit(Some(10 << 20)));
        let unet = memory.claim("U-Net of a", 8 << 20, true).unwrap();
        let refused = memory.claim("VAE of a", 3 << 20, true).unwrap_err();
        let Error::Request { message, help } = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(
            message,
            "out of memory: the VAE of a takes 3.0 MiB, 2.0 MiB are free; resident are U-Net of a 8.0 MiB"
        );
        assert!(help.unwrap().contains("--dtype bf16"));
        drop(unet);
        let _vae = memory.claim("VAE of a", 3 << 20, true).unwrap();
        assert_eq!(
            (memory.held(), memory.peak(), memory.loads()),
            (3 << 20, 8 << 20, 2)
        );
    }
}
