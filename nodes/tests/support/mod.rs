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
    let std = (b.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    let off = a
        .iter()
        .zip(&b)
        .map(|(a, b)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY })
        .fold(0.0, f32::max);
    off / std as f32
}

/// Fails when `a` is further than `tolerance` from `b`.
#[track_caller]
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f32) {
    let distance = distance(a, b);
    println!("{what}: {distance:.1e} of {tolerance:.0e}");
    assert!(distance <= tolerance, "{what}: {distance:.2e} is over {tolerance:.0e}");
}
