//! Each kernel against its plain twin, on the CPU: `kernels.cu` is compiled by the machine's C++ compiler with `emulated.cpp` around it,
//! under the address sanitizer. What a GPU would do differently (its fused multiply-add, its expf) is within the tolerance; how
//! fast it is cannot be said here. Where there is no C++ compiler the tests say so and do nothing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor};

use super::calls::Call;
use super::{Fused, Launcher};
use crate::cpu::tests::data;
use crate::{Attended, GroupNormSpec, Kernel, Padding, Plain, Terms, Weight, Window};

/// The program that runs a kernel; `None`: no compiler.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/emulated.cpp");
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
            std::fs::create_dir_all(&folder).unwrap();
            let program = folder.join("emulated");
            let made = folder.join(format!("emulated-{}", std::process::id()));
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
            let built = |source: &Path, to: &Path| {
                Command::new(&compiler)
                    .args(["-std=c++17", "-O1", "-g", "-fsanitize=address", "-o"])
                    .arg(to)
                    .arg(source)
                    .output()
            };
            // What the emulator needs of the machine: a compiler, its address sanitizer, fibers.
            let probe = folder.join(format!("probe-{}.cpp", std::process::id()));
            std::fs::write(&probe, "#include <ucontext.h>\nint main() { ucontext_t c; return getcontext(&c); }\n").unwrap();
            let can = built(&probe, &made).is_ok_and(|output| output.status.success())
                && Command::new(&made).status().is_ok_and(|status| status.success());
            std::fs::remove_file(&probe).unwrap();
            if !can {
                eprintln!("skipped: the CUDA kernels are not run, as `{compiler}` does not build programs with fibers and the address sanitizer");
                return None;
            }
            let output = built(&source, &made).unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{told}");
            std::fs::rename(made, &program).unwrap();
            Some(program)
        })
        .as_deref()
}

#[derive(Debug)]
struct Emulated(&'static Path);

impl Launcher for Emulated {
    fn launch(&self, call: &Call, tensors: &[&Tensor]) -> Result<Tensor> {
        let count: usize = call.shape.iter().product();
        let mut input = format!("{}\n", call.kernel).into_bytes();
        let mut ints: Vec<i32> = call.grid.iter().map(|x| *x as i32).collect();
        ints.extend([call.threads as i32, call.shared as i32, count as i32]);
        ints.extend([
            tensors.len() as i32,
            call.ints.len() as i32,
            call.floats.len() as i32,
        ]);
        for tensor in tensors {
            let kind = i32::from(tensor.dtype() == DType::U32);
            ints.extend([kind, tensor.elem_count() as i32]);
        }
        let bytes =
            |ints: &[i32]| -> Vec<u8> { ints.iter().flat_map(|x| x.to_le_bytes()).collect() };
        input.extend(bytes(&ints));
        for tensor in tensors {
            let flat = tensor.flatten_all()?;
            match tensor.dtype() {
                DType::U32 => {
                    input.extend(flat.to_vec1::<u32>()?.iter().flat_map(|x| x.to_le_bytes()))
                }
                _ => input.extend(flat.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes())),
            }
        }
        input.extend(bytes(&call.ints));
        input.extend(call.floats.iter().flat_map(|x| x.to_le_bytes()));
        let mut child = Command::new(self.0)
            // Fibers have stacks that the sanitizer does not know.
            .env(
                "ASAN_OPTIONS",
                "detect_stack_use_after_return=0:detect_leaks=0",
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().unwrap();
        // A program that ends early says why itself.
        let _ = stdin.write_all(&input);
        drop(stdin);
        let output = child.wait_with_output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{call:?}: {told}");
        let numbers: Vec<f32> = (output.stdout.chunks_exact(4))
            .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
            .collect();
        Tensor::from_vec(numbers, call.shape.as_slice(), &Device::Cpu)
    }
}

/// Runs a test with the emulated kernels, if they can be had.
fn with_kernels(test: impl Fn(&Fused<Emulated>)) {
    if let Some(program) = program() {
        test(&Fused(Emulated(program)));
    }
}

/// Within 5e-6 of the largest number: sums are taken in another order.
fn close(a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims());
    let largest = |t: &Tensor| -> f32 {
        let numbers = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // A number that is none is the largest.
        numbers
            .into_iter()
            .map(f32::abs)
            .fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
    };
    let (off, scale) = (largest(&(a - b).unwrap()), largest(b).max(1.0));
    assert!(off <= 5e-6 * scale, "off by {off} of {scale}");
}

fn vector(n: usize, seed: u64) -> Tensor {
    data(&[n], seed)
}

#[test]
fn norms_equal_the_plain_ones() {
    with_kernels(|kernels| {
        // A group of a pixel, of odd sizes, of more numbers than threads; batches.
        for (b, c, h, w, groups) in [(1, 4, 1, 1, 2), (3, 6, 5, 7, 3), (2, 64, 9, 16, 32)] {
            let x = (data(&[b, c, h, w], 1) * 3.0).unwrap();
            let (weight, bias) = (vector(c, 2), vector(c, 3));
            let norm = GroupNormSpec {
                groups,
                eps: 1e-5,
                weight: &weight,
                bias: &bias,
            };
            for silu in [false, true] {
                let want = Plain.group_norm(&x, &norm, silu).unwrap();
                close(&kernels.group_norm(&x, &norm, silu).unwrap(), &want);
            }
        }
        for (b, n, c) in [(1, 1, 3), (2, 5, 320), (3, 7, 77)] {
            let x = (data(&[b, n, c], 4) + 2.0).unwrap();
            let (weight, bias) = (vector(c, 5), vector(c, 6));
            let want = Plain.layer_norm(&x, &weight, &bias, 1e-5).unwrap();
            let got = kernels.layer_norm(&x, &weight, &bias, 1e-5).unwrap();
            close(&got, &want);
        }
    });
}

#[test]
fn tensors_that_do_not_fit_are_refused_before_a_kernel_reads_them() {
    with_kernels(|kernels| {
        let (x, short) = (data(&[1, 6, 2, 2], 1), vector(5, 2));
        let norm = |groups, weight| GroupNormSpec {
            groups,
            eps: 1e-5,
            weight,
            bias: weight,
        };
        assert!(kernels.group_norm(&x, &norm(2, &short), false).is_err());
        assert!(
            kernels
                .group_norm(&x, &norm(4, &vector(6, 2)), false)
                .is_err()
        );
        let (q, k) = (data(&[2, 3, 8], 3), data(&[2, 4, 8], 4));
        let short = data(&[2, 3, 8], 5);
        assert!(kernels.attention(&q, &k, &short, 2, 1.0, None).is_err());
        assert!(kernels.attention(&q, &k, &k, 3, 1.0, None).is_err());
        assert!(
            kernels
                .attention(&q, &k, &k, 2, 1.0, Some(&[vec![0]]))
                .is_err()
        );
        assert!(
            kernels
                .attention(&q, &k, &k, 2, 1.0, Some(&[vec![0], vec![4]]))
                .is_err()
        );
    });
}

#[test]
fn geglu_equals_the_plain_one() {
    with_kernels(|kernels| {
        // The last has more numbers than there are threads.
        for (b, n, c) in [(1, 1, 1), (2, 9, 130), (1, 530, 1000)] {
            let x = (data(&[b, n, 2 * c], 7) * 3.0).unwrap();
            close(&kernels.geglu(&x).unwrap(), &Plain.geglu(&x).unwrap());
        }
    });
}

#[test]
fn convolutions_and_products_with_terms_equal_the_plain_ones() {
    with_kernels(|kernels| {
        let uneven = Padding {
            top: 0,
            bottom: 1,
            left: 0,
            right: 1,
        };
        let windows = [
            (1, Padding::same(1), None),
            (2, uneven, None),
            (1, Padding::same(1), Some((11, 6))),
            (1, Padding::same(0), None),
        ];
        for (stride, padding, enlarged) in windows {
            let (b, c, o, h, w) = (2, 3, 5, 6, 4);
            let x = data(&[b, c, h, w], 8);
            let weight = Weight::new(&data(&[o, c, 3, 3], 9), &Plain).unwrap();
            let window = Window {
                stride,
                padding,
                enlarged,
            };
            let bare = Plain.conv2d(&x, &weight, window, Terms::default()).unwrap();
            let (bias, image) = (vector(o, 10), data(&[b, o], 11));
            let residual = data(bare.dims(), 12);
            for which in 0..8 {
                let terms = Terms {
                    bias: (which & 1 != 0).then_some(&bias),
                    image: (which & 2 != 0).then_some(&image),
                    residual: (which & 4 != 0).then_some(&residual),
                };
                let want = Plain.conv2d(&x, &weight, window, terms).unwrap();
                close(&kernels.conv2d(&x, &weight, window, terms).unwrap(), &want);
            }
        }
        let (x, w) = (data(&[2, 5, 6], 13), data(&[7, 6], 14));
        let weight = Weight::new(&w, &Plain).unwrap();
        let (bias, residual) = (vector(7, 15), data(&[2, 5, 7], 16));
        let terms = Terms {
            bias: Some(&bias),
            image: None,
            residual: Some(&residual),
        };
        let want = Plain.linear(&x, &weight, terms).unwrap();
        close(&kernels.linear(&x, &weight, terms).unwrap(), &want);
    });
}

/// Images, keys shared, queries, keys, heads, head size: fewer queries than a block, several tiles of keys, the head sizes of Stable
/// Diffusion and of its VAE.
const ATTENTIONS: [(usize, bool, usize, usize, usize, usize); 6] = [
    (1, false, 1, 1, 1, 1),
    (2, false, 17, 77, 2, 40),
    (3, true, 20, 130, 1, 64),
    (1, false, 33, 70, 2, 80),
    (1, false, 18, 40, 1, 160),
    (1, false, 17, 9, 1, 512),
];

fn some_keys(sources: usize, m: usize) -> Vec<Vec<u32>> {
    let of = |s: u32| (0..m as u32).filter(move |j| (j + s) % 3 != 1 || *j == 0);
    (0..sources as u32).map(|s| of(s).collect()).collect()
}

#[test]
fn attention_equals_the_plain_one() {
    with_kernels(|kernels| {
        for (b, shared, n, m, heads, size) in ATTENTIONS {
            let (sources, c) = (if shared { 1 } else { b }, heads * size);
            let q = data(&[b, n, c], 17);
            let (k, v) = (data(&[sources, m, c], 18), data(&[sources, m, c], 19));
            let scale = 2.0 / (size as f64).sqrt();
            let keys = some_keys(sources, m);
            for keys in [None, Some(keys.as_slice())] {
                let want = Plain.attention(&q, &k, &v, heads, scale, keys).unwrap();
                let got = kernels.attention(&q, &k, &v, heads, scale, keys).unwrap();
                close(&got, &want);
            }
            let want = Plain.attention_map(&q, &k, heads, scale).unwrap();
            close(&kernels.attention_map(&q, &k, heads, scale).unwrap(), &want);
        }
    });
}

#[test]
fn a_blend_of_attentions_equals_the_plain_one() {
    with_kernels(|kernels| {
        for (b, shared, n, m, heads, size) in ATTENTIONS {
            let (sources, c) = (if shared { 1 } else { b }, heads * size);
            let q = data(&[b, n, c], 20);
            let of = |seed, m| data(&[sources, m, c], seed);
            let (k, v, own_k, own_v) = (of(21, m), of(22, m), of(23, m + 3), of(24, m + 3));
            let keys = some_keys(sources, m);
            let inside = Attended {
                k: &k,
                v: &v,
                keys: Some(&keys),
            };
            let outside = Attended {
                k: &own_k,
                v: &own_v,
                keys: None,
            };
            // A side without a part is not read.
            let nan = ((&k * f64::NAN).unwrap(), (&own_k * f64::NAN).unwrap());
            let none = data(&[b, n], 25).zeros_like().unwrap();
            let lost = Attended {
                k: &nan.0,
                v: &nan.0,
                keys: None,
            };
            let got = kernels
                .attention_blend(&q, lost, outside, &none, heads, 0.3)
                .unwrap();
            let want = Plain
                .attention(&q, &own_k, &own_v, heads, 0.3, None)
                .unwrap();
            close(&got, &want);
            let lost = Attended {
                k: &nan.1,
                v: &nan.1,
                keys: None,
            };
            let all = none.ones_like().unwrap();
            let got = kernels
                .attention_blend(&q, inside, lost, &all, heads, 0.3)
                .unwrap();
            let want = Plain
                .attention(&q, &k, &v, heads, 0.3, Some(&keys))
                .unwrap();
            close(&got, &want);
            // Whole blocks of zeros and of ones, and what is between.
            let wavy = ((data(&[b, n], 25) * 0.6).unwrap() + 0.5)
                .unwrap()
                .clamp(0f32, 1f32)
                .unwrap();
            let zeros = wavy.zeros_like().unwrap();
            for mask in [
                &wavy,
                &zeros,
                &zeros.ones_like().unwrap(),
                &wavy.narrow(0, 0, 1).unwrap(),
            ] {
                let want = Plain
                    .attention_blend(&q, inside, outside, mask, heads, 0.3)
                    .unwrap();
                let got = kernels
                    .attention_blend(&q, inside, outside, mask, heads, 0.3)
                    .unwrap();
                close(&got, &want);
            }
        }
    });
}

#[test]
fn a_picture_of_a_batch_has_the_bits_of_the_picture_alone() {
    with_kernels(|kernels| {
        let (q, k, v) = (
            data(&[3, 19, 24], 26),
            data(&[3, 50, 24], 27),
            data(&[3, 50, 24], 28),
        );
        let bits = |t: &Tensor| -> Vec<u32> {
            t.flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
                .iter()
                .map(|x| x.to_bits())
                .collect()
        };
        let all = kernels.attention(&q, &k, &v, 2, 0.3, None).unwrap();
        let alone = |t: &Tensor| t.narrow(0, 1, 1).unwrap();
        let one = kernels
            .attention(&alone(&q), &alone(&k), &alone(&v), 2, 0.3, None)
            .unwrap();
        assert_eq!(bits(&alone(&all)), bits(&one));
        let x = data(&[3, 8, 5, 5], 29);
        let (weight, bias) = (vector(8, 30), vector(8, 31));
        let norm = GroupNormSpec {
            groups: 4,
            eps: 1e-6,
            weight: &weight,
            bias: &bias,
        };
        let all = kernels.group_norm(&x, &norm, true).unwrap();
        assert_eq!(
            bits(&alone(&all)),
            bits(&kernels.group_norm(&alone(&x), &norm, true).unwrap())
        );
    });
}
