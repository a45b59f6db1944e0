//! Torch files are read as data: what torch itself sees in them, and no more than that, whatever they try.
//!
//! The files in `tests/oracle/data/pickles` were written by torch (`tests/oracle/make_pickles.py`), with what
//! `torch.load` gives of them beside; hostile ones are put together here.

// The lint leaves out functions marked as tests, and not the functions that they share.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use retouch_graph::{DiskFiles, MemoryFiles};
use retouch_nodes::diffusion::pickle::{self, TorchTensor, Value};
use safetensors::SafeTensors;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/data/pickles")
}

/// The bytes of a tensor, element by element in the order of the indices.
fn gather(file: &[u8], tensor: &TorchTensor) -> Vec<u8> {
    let size = pickle::element_bytes(&tensor.dtype).unwrap() as usize;
    let mut out = Vec::new();
    for element in 0..tensor.elements() {
        let (mut rest, mut at) = (element, tensor.offset as usize);
        for (&length, &stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
            at += rest % length * stride * size;
            rest /= length;
        }
        assert!(at + size <= (tensor.offset + tensor.storage_bytes) as usize);
        out.extend_from_slice(&file[at..at + size]);
    }
    out
}

fn read(name: &str) -> Value {
    pickle::read(&folder().join(name), &DiskFiles::new()).unwrap_or_else(|e| panic!("{e}"))
}

/// Reads a file that is only in memory.
fn read_bytes(bytes: impl AsRef<[u8]>) -> Result<Value, String> {
    let path = Path::new("subject.pt");
    let files = MemoryFiles::new().with(path, bytes);
    pickle::read(path, &files).map_err(|e| e.to_string())
}

fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(value, |value, name| {
        value
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {value:?}"))
    })
}

#[test]
fn every_tensor_of_a_torch_file_is_the_one_that_torch_loads() {
    for name in [
        "zip.pt",
        "legacy.pt",
        "zip-4.pt",
        "zip-5.pt",
        "legacy-4.pt",
        "lightning.ckpt",
        "lightning-legacy.ckpt",
        "inversion.pt",
        "inversion-legacy.pt",
    ] {
        let value = read(name);
        let file = std::fs::read(folder().join(name)).unwrap();
        let expected = std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let found = pickle::tensors(&value);
        let mut names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let mut expected_names = expected.names();
        names.sort_unstable();
        expected_names.sort_unstable();
        assert_eq!(names, expected_names, "{name}");
        for (key, tensor) in found {
            let expected = expected.tensor(&key).unwrap();
            let what = format!("{name}: {key}: {tensor:?}");
            assert_eq!(tensor.dtype, format!("{:?}", expected.dtype()), "{what}");
            assert_eq!(tensor.shape, expected.shape(), "{what}");
            assert_eq!(tensor.bytes(), expected.data().len() as u64, "{what}");
            assert_eq!(gather(&file, tensor), expected.data(), "{what}");
            if tensor.is_contiguous() {
                let start = tensor.offset as usize;
                let all = &file[start..start + tensor.bytes() as usize];
                assert_eq!(all, expected.data(), "{what}");
            }
        }
    }
}

#[test]
fn views_share_their_storage_and_say_how_they_lie_in_it() {
    for name in ["zip.pt", "legacy.pt"] {
        let value = read(name);
        let tensor = |name: &str| match at(&value, &["views", name]) {
            Value::Tensor(tensor) => (**tensor).clone(),
            other => panic!("{other:?}"),
        };
        let whole = tensor("whole");
        assert!(whole.is_contiguous());
        assert_eq!(tensor("transposed").strides, [1, 8]);
        assert!(!tensor("transposed").is_contiguous());
        assert_eq!(tensor("rows").offset, whole.offset + 2 * 8 * 4);
        assert!(tensor("rows").is_contiguous());
        assert_eq!(tensor("every_second").strides, [16, 3]);
        assert_eq!(tensor("repeated").strides, [0, 0]);
        assert_eq!(tensor("last").storage_bytes, 4);
        assert_eq!(tensor("last").shape, [0_usize; 0]);
        assert!(tensor("tail_of_none").is_contiguous());
    }
}

#[test]
fn what_is_no_tensor_is_read_as_what_it_is() {
    for name in ["zip.pt", "zip-4.pt", "zip-5.pt", "legacy.pt", "legacy-4.pt"] {
        let value = read(name);
        let plain = |name: &str| at(&value, &["plain", name]).clone();
        assert_eq!(plain("none"), Value::None);
        assert_eq!(plain("yes"), Value::Bool(true));
        assert_eq!(plain("no"), Value::Bool(false));
        assert_eq!(plain("small"), Value::Int(5));
        assert_eq!(plain("negative"), Value::Int(-70_000));
        assert_eq!(plain("large"), Value::Int(1 << 62));
        assert_eq!(plain("huge"), Value::Opaque("int".into()));
        assert_eq!(plain("real"), Value::Float(1.25));
        assert_eq!(plain("text"), Value::Text("käse".into()));
        assert_eq!(plain("bytes"), Value::Bytes((*b"\x00\xffabc").into()));
        let pair = vec![Value::Int(1), Value::Text("two".into())];
        assert_eq!(plain("tuple"), Value::List(pair));
        assert_eq!(plain("set"), Value::List(vec![Value::Int(3)]));
    }
}

#[test]
fn a_lightning_checkpoint_gives_its_weights_and_holds_classes_as_names() {
    for name in ["lightning.ckpt", "lightning-legacy.ckpt"] {
        let value = read(name);
        assert_eq!(at(&value, &["global_step"]), &Value::Int(470_000));
        let Value::Dict(callbacks) = at(&value, &["callbacks"]) else {
            panic!("{value:?}");
        };
        let class = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint";
        assert_eq!(callbacks[0].0, Value::Opaque(class.into()));
        let settings = at(&value, &["hyper_parameters"]);
        assert_eq!(settings.get("seed"), Some(&Value::Int(23)));
        assert_eq!(settings.get("scale"), Some(&Value::Float(0.5)));
        let size = vec![Value::Int(2), Value::Int(3)];
        assert_eq!(settings.get("size"), Some(&Value::List(size)));
        let dtype = Value::Opaque("torch.float16".into());
        assert_eq!(settings.get("dtype"), Some(&dtype));
        let Value::List(schedulers) = at(&value, &["lr_schedulers"]) else {
            panic!("{value:?}");
        };
        assert_eq!(schedulers[0].get("count"), Some(&Value::Int(12)));
        assert_eq!(schedulers[0].get("flag"), Some(&Value::Bool(true)));
        let rates = Value::List(vec![Value::Float(1e-4)]);
        assert_eq!(schedulers[0].get("last_lr"), Some(&rates));
    }
}

// ---- what is not data ------------------------------------------------------------------------------------------------

#[test]
fn a_file_that_would_call_a_function_is_refused_by_the_functions_name() {
    for (name, function) in [
        ("evil.pt", "`posix.system`"),
        ("evil-legacy.pt", "`posix.system`"),
        ("evil.pkl", "`builtins.eval`"),
    ] {
        let bytes = std::fs::read(folder().join(name)).unwrap();
        let error = read_bytes(bytes).unwrap_err();
        assert!(error.contains(function), "{error}");
        assert!(error.contains("subject.pt: is refused"), "{error}");
        assert!(error.contains("safetensors"), "{error}");
    }
    assert!(!Path::new("executed").exists());
}
