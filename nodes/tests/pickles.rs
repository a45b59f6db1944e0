//! Torch files are read as data: what torch itself sees in them, and no more than that, whatever they try.
//!
//! The files in `tests/oracle/data/pickles` were written by torch (`tests/oracle/make_pickles.py`), with what
//! `torch.load` gives of them beside; hostile ones are put together here.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use retouch_diffusion::checkpoint::inspect::{Request, inspect};
use retouch_diffusion::checkpoint::pickle::{self, TorchTensor, Value};
use retouch_diffusion::checkpoint::weights::{Maps, Table, numbers};
use retouch_graph::{DiskFiles, MemoryFiles};
use safetensors::SafeTensors;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/data/pickles")
}

/// The bytes of a tensor, element by element in the order of the indices.
fn gather(file: &[u8], tensor: &TorchTensor) -> Vec<u8> {
    let file = tensor.inline.as_deref().unwrap_or(file);
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
        "omegaconf.ckpt",
        "omegaconf-legacy.ckpt",
        "containers.pt",
        "numpy.pt",
        "numpy-5.pt",
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
            if tensor.is_contiguous() && tensor.inline.is_none() {
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

#[test]
fn objects_of_other_programs_are_passed_over_and_counted() {
    for name in ["omegaconf.ckpt", "omegaconf-legacy.ckpt"] {
        let (value, skipped) =
            pickle::read_and_skipped(&folder().join(name), &DiskFiles::new()).unwrap();
        let settings = |name: &str| at(&value, &["hyper_parameters", name]).clone();
        let opaque = |name: &str| Value::Opaque(name.into());
        assert_eq!(
            settings("unet_config"),
            opaque("omegaconf.dictconfig.DictConfig")
        );
        assert_eq!(settings("ckpt_path"), opaque("pathlib.PurePosixPath"));
        assert_eq!(settings("optional"), opaque("typing"));
        // A tensor inside an object is a part of the object.
        assert_eq!(settings("holder"), opaque("__main__.Holder"));
        assert_eq!(settings("settings"), opaque("__main__.Settings"));
        assert_eq!(pickle::tensors(&value).len(), 2);
        for (class, count) in [
            ("omegaconf.dictconfig.DictConfig", 2),
            ("omegaconf.listconfig.ListConfig", 1),
            ("omegaconf.nodes.AnyNode", 7),
            ("datetime.datetime", 1),
            ("datetime.timedelta", 1),
            ("__main__.Holder", 1),
        ] {
            assert_eq!(skipped[class], count, "{class} in {skipped:?}");
        }
        let table = Table::read(&folder().join(name), &DiskFiles::new()).unwrap();
        assert_eq!(table.metadata["global_step"], "470000");
        let request = Request {
            path: folder().join(name),
            ..Request::default()
        };
        let report = inspect(&request, &DiskFiles::new()).unwrap();
        let note = report.notes.iter().find(|note| note.contains("skipped"));
        let note = note.unwrap_or_else(|| panic!("{:?}", report.notes));
        assert!(
            note.starts_with("25 objects of foreign classes were skipped (__main__.Holder")
                && note.contains("and 5 more"),
            "{note}"
        );
    }
    let (_, skipped) =
        pickle::read_and_skipped(&folder().join("lightning.ckpt"), &DiskFiles::new()).unwrap();
    assert!(skipped.is_empty());
}

#[test]
fn numbers_that_were_written_as_arrays_are_read_as_tensors_of_a_file() {
    for name in ["numpy.pt", "numpy-5.pt"] {
        let path = folder().join(name);
        let table = Table::read(&path, &DiskFiles::new()).unwrap();
        let expected = std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let maps = Maps::default();
        for key in ["wide", "half", "fortran", "parameter", "one"] {
            let stored = &table.tensors[key];
            let given = maps.load(stored, DType::F32, &Device::Cpu).unwrap();
            let due = expected.tensor(key).unwrap();
            let due = numbers(&format!("{:?}", due.dtype()), due.data()).unwrap();
            assert_eq!(given.dims(), stored.shape);
            let given = given.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(given, due, "{key}");
        }
        // Bytes from 128 on, which protocol 2 writes as two.
        let bytes = table.tensors["bytes"]
            .read(&DiskFiles::new(), 120, 200)
            .unwrap();
        assert_eq!(bytes, (120..=255).collect::<Vec<u8>>());
    }
}

#[test]
fn tensors_without_elements_of_their_own_are_refused_by_what_they_are() {
    for (name, words) in [
        (
            "quantised.pt",
            "a quantised tensor of torch (`torch.QInt8Storage`)",
        ),
        ("sparse.pt", "a sparse tensor (`torch."),
        ("function.pt", "calls `__main__.make_something`"),
    ] {
        let error = pickle::read(&folder().join(name), &DiskFiles::new()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
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

/// A text as protocol 2 writes it.
fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    [b"X", &length[..], text.as_bytes()].concat()
}

fn join<const N: usize>(parts: [&[u8]; N]) -> Vec<u8> {
    parts.concat()
}

/// The object's pickle in the old format, with the storages `keys` of two float32 numbers each.
fn legacy(object: &[u8], keys: &[&str]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.");
    file.extend(b"\x80\x02M\xe9\x03.");
    file.extend(join([b"\x80\x02}", &text("little_endian"), b"\x88s."]));
    file.extend(object);
    file.extend(b"\x80\x02](");
    for key in keys {
        file.extend(text(key));
    }
    file.extend(b"e.");
    for _ in keys {
        file.extend(2u64.to_le_bytes());
        file.extend(1f32.to_le_bytes());
        file.extend(2f32.to_le_bytes());
    }
    file
}

/// One entry of a zip archive, and what is told of it.
#[derive(Clone)]
struct Entry {
    name: &'static str,
    local_name: &'static str,
    data: Vec<u8>,
    method: u16,
    flags: u16,
    /// What the table of contents says.
    size: u32,
    local_size: u32,
    /// Where the table says that the entry begins, if not there.
    begins: Option<u32>,
    /// Sizes and place in the zip64 part.
    large: bool,
}

fn entry(name: &'static str, data: impl AsRef<[u8]>) -> Entry {
    let data = data.as_ref().to_vec();
    let size = data.len() as u32;
    Entry {
        name,
        local_name: name,
        data,
        method: 0,
        flags: 0,
        size,
        local_size: size,
        begins: None,
        large: false,
    }
}

fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut table) = (Vec::new(), Vec::new());
    for entry in entries {
        let begins = entry.begins.unwrap_or(file.len() as u32);
        let word = |number: u16| number.to_le_bytes();
        let long = |number: u32| number.to_le_bytes();
        for (head, name) in [(true, entry.name), (false, entry.local_name)] {
            let out = if head { &mut table } else { &mut file };
            out.extend(if head {
                b"PK\x01\x02\x14\0"
            } else {
                &b"PK\x03\x04"[..]
            });
            out.extend([20, 0]);
            out.extend([word(entry.flags), word(entry.method)].concat());
            out.extend([0; 8]);
            let size = if head { entry.size } else { entry.local_size };
            let size = if entry.large { u32::MAX } else { size };
            out.extend([long(size), long(size)].concat());
            out.extend(word(name.len() as u16));
            let wide = u64::from(entry.size).to_le_bytes();
            let wide = match (entry.large, head) {
                (false, _) => Vec::new(),
                (true, false) => join([b"\x01\0\x10\0", &wide, &wide]),
                (true, true) => join([
                    b"\x01\0\x18\0",
                    &wide,
                    &wide,
                    &u64::from(begins).to_le_bytes(),
                ]),
            };
            out.extend(word(wide.len() as u16));
            if head {
                out.extend([0; 10]);
                out.extend(long(if entry.large { u32::MAX } else { begins }));
            }
            out.extend(name.as_bytes());
            out.extend(wide);
        }
        file.extend(&entry.data);
    }
    let begins = file.len() as u64;
    let (count, size) = (entries.len() as u64, table.len() as u64);
    file.extend(table);
    if entries.iter().any(|entry| entry.large) {
        let end = file.len() as u64;
        file.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
        for number in [count, count, size, begins] {
            file.extend(number.to_le_bytes());
        }
        file.extend(join([
            b"PK\x06\x07\0\0\0\0",
            &end.to_le_bytes(),
            b"\x01\0\0\0",
        ]));
        file.extend(b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0");
    } else {
        file.extend(b"PK\x05\x06\0\0\0\0");
        file.extend((count as u16).to_le_bytes());
        file.extend((count as u16).to_le_bytes());
        file.extend((size as u32).to_le_bytes());
        file.extend((begins as u32).to_le_bytes());
        file.extend([0, 0]);
    }
    file
}

/// A pickle of a tensor `[2]` in the storage `key`; `hooks` is what is written last.
fn tensor(key: &str, hooks: &[u8]) -> Vec<u8> {
    join([
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(key),
        &text("cpu"),
        b"K\x02tQK\x00K\x02\x85K\x01\x85\x89",
        hooks,
        b"tR",
    ])
}

const HOOKS: &[u8] = b"ccollections\nOrderedDict\n)R";

/// A pickle of a dictionary with the tensor `a` and, under `b`, what is given.
fn with(value: &[u8]) -> Vec<u8> {
    let a = tensor("0", HOOKS);
    join([b"\x80\x02}(", &text("a"), &a, &text("b"), value, b"u."])
}

const NUMBERS: [u8; 8] = [0, 0, 128, 63, 0, 0, 0, 64];

fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[entry("x/data.pkl", pickle), entry("x/data/0", NUMBERS)])
}

#[test]
fn what_is_put_together_here_is_read_when_it_is_harmless() {
    for file in [
        archive(&with(b"N")),
        legacy(&with(b"N"), &["0"]),
        zip(&[
            Entry {
                large: true,
                ..entry("a/b/data.pkl", with(b"cos\nsystem\n"))
            },
            entry("a/b/data/0", NUMBERS),
            entry("a/b/byteorder", "little"),
        ]),
    ] {
        let value = read_bytes(&file).unwrap();
        let tensors = pickle::tensors(&value);
        assert_eq!(tensors.len(), 1);
        assert_eq!(tensors[0].0, "a");
        assert_eq!(gather(&file, tensors[0].1), NUMBERS);
    }
}

#[test]
fn whatever_would_be_called_is_refused_by_its_name_in_every_format_and_place() {
    let touch = text("touch executed");
    let call = |global: &str| {
        let (module, name) = global.rsplit_once('.').unwrap();
        join([
            b"c",
            module.as_bytes(),
            b"\n",
            name.as_bytes(),
            b"\n",
            &touch,
            b"\x85R",
        ])
    };
    let short = |text: &str| join([&[0x8c, text.len() as u8], text.as_bytes()]);
    let mut hostile: Vec<(&str, Vec<u8>)> = [
        "os.system",
        "posix.system",
        "nt.system",
        "subprocess.Popen",
        "subprocess.check_output",
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "builtins.compile",
        "__builtin__.eval",
        "__builtin__.apply",
        "importlib.import_module",
        "runpy._run_code",
        "shutil.rmtree",
        "pickle.loads",
        "torch.load",
        "torch.hub.load",
        "torch.storage._load_from_bytes",
        "torch._utils._rebuild_qtensor",
        "numpy.load",
        "functools.partial",
        "operator.attrgetter",
        "copyreg._reconstructor",
        "torch.Tensor",
        "torch.FloatStorage",
        "torch.float16",
        "sys.exit",
        "socket.socket",
        "ctypes.CDLL",
        "multiprocessing.Process",
        "types.FunctionType",
        "_operator.getitem",
        "builtins.type",
        "typing.os.system",
        "omegaconf.OmegaConf.load",
        "mine.make",
        "torch.optim.Adam",
    ]
    .map(|name| (name, call(name)))
    .into();
    let os = b"cos\nsystem\n";
    hostile.extend([
        // Among the arguments of a tensor, where its storage belongs, and as a persistent id.
        ("os.system", tensor("0", &call("os.system"))),
        (
            "os.system",
            join([
                b"ctorch._utils\n_rebuild_tensor_v2\n(",
                &call("os.system"),
                b"K\x00)))NtR",
            ]),
        ),
        ("os.system", join([&call("os.system"), b"Q"])),
        (
            "os.system",
            join([
                b"(",
                &text("storage"),
                os,
                &text("0"),
                &text("cpu"),
                b"K\x02tQ",
            ]),
        ),
        ("a persistent ID", join([&touch, b"Q"])),
        // By names that were remembered, and put together from parts elsewhere.
        (
            "os.system",
            join([
                &short("os"),
                b"\x940",
                &short("system"),
                b"\x940h\x00h\x01\x93",
                &touch,
                b"\x85R",
            ]),
        ),
        (
            "something other than strings",
            join([b"K\x01K\x02\x93", &touch, b"\x85R"]),
        ),
        // Every other way to make or fill an object.
        ("os.system", join([b"(", &touch, b"ios\nsystem\n"])),
        ("INST", join([b"(", &touch, b"ios\nsystem\n"])),
        ("os.system", join([b"(", os, &touch, b"o"])),
        ("OBJ", join([b"(", os, &touch, b"o"])),
        ("os.system", join([os, &touch, b"\x85\x81"])),
        ("os.system", join([os, &touch, b"\x85}\x92"])),
        (
            "collections.OrderedDict",
            join([b"ccollections\nOrderedDict\n)}", &text("x"), b"Ns\x92"]),
        ),
        // What an object of an unknown class is, nobody may use: neither call it nor make a tensor of it.
        (
            "calls an object of `omegaconf.DictConfig`",
            b"comegaconf\nDictConfig\n)\x81)R".to_vec(),
        ),
        (
            "makes a tensor of an object of `omegaconf.DictConfig`",
            b"ctorch._utils\n_rebuild_tensor_v2\n(comegaconf\nDictConfig\n)\x81K\x00)))NtR"
                .to_vec(),
        ),
        (
            "subprocess.Popen",
            join([b"csubprocess\nPopen\n", &touch, b"\x85\x81"]),
        ),
        // By a name of a module that holds another.
        (
            "os.Popen",
            join([
                &short("mine"),
                &short("os.Popen"),
                b"\x93",
                &touch,
                b"\x85R",
            ]),
        ),
        ("os.system", join([os, b"}b"])),
        ("a tensor", join([&tensor("0", HOOKS), b"}b"])),
        // A state that only the object's own `__setstate__` would know what to do with, as the second of two too.
        ("__setstate__", b"}]b".to_vec()),
        ("__setstate__", b"}}b](K\x01K\x02eb".to_vec()),
        (
            "`os.system`",
            b"ccollections\nOrderedDict\n)R}bcos\nsystem\nb".to_vec(),
        ),
        (
            "__setstate__",
            b"ctorch.nn.modules.container\nParameterDict\n)\x81Nb".to_vec(),
        ),
        (
            "__setstate__",
            b"cargparse\nNamespace\n)\x81K\x01b".to_vec(),
        ),
        // Functions that are known, with one inside that is not.
        (
            "os.system",
            join([
                b"ctorch._tensor\n_rebuild_from_type_v2\n(",
                os,
                b"ctorch\nTensor\n)}tR",
            ]),
        ),
        (
            "os.system",
            join([
                b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n",
                os,
                b")}tR",
            ]),
        ),
        (
            "os.system",
            join([
                b"cnumpy.core.multiarray\n_reconstruct\n",
                os,
                b"K\x00\x85",
                &touch,
                b"\x87R",
            ]),
        ),
        // The result of a call, called again.
        (
            "calls a dictionary",
            b"ccollections\nOrderedDict\n)R)R".to_vec(),
        ),
        ("calls a text", join([&touch, b")R"])),
        // Opcodes that torch does not write, with what was named before.
        ("PERSID", b"Pos.system\n".to_vec()),
        ("EXT1", b"\x82\x01".to_vec()),
        ("EXT4", b"\x84\x01\0\0\0".to_vec()),
        ("NEXT_BUFFER", b"\x97".to_vec()),
        ("STRING", join([os, b"S'touch executed'\n\x85R"])),
        ("os.system", join([os, b"S'touch executed'\n\x85R"])),
    ]);
    let nested = |value: &[u8]| join([b"](}(", &text("deep"), b"](", value, b"eue"]);
    let mut tried = 0;
    for (name, value) in &hostile {
        for value in [value.clone(), nested(value)] {
            let pickle = with(&value);
            for file in [pickle.clone(), archive(&pickle), legacy(&pickle, &["0"])] {
                let error = read_bytes(&file).unwrap_err();
                assert!(error.contains(name), "{name}: {error}");
                assert!(error.contains("is refused"), "{name}: {error}");
                assert!(error.contains("Nothing in it was executed"), "{error}");
                tried += 1;
            }
        }
    }
    assert_eq!(tried, hostile.len() * 6);
    // In the other pickles of the old format as well.
    let start = join([b"\x80\x02", &call("os.system"), b"."]);
    let file = legacy(&with(b"N"), &["0"]);
    for cut in [0, 15, 21] {
        let error = read_bytes(join([&file[..cut], &start, &file[cut..]])).unwrap_err();
        assert!(error.contains("`os.system`"), "{error}");
    }
    assert!(!Path::new("executed").exists());
}

#[test]
fn a_global_that_is_only_held_is_a_name_and_nothing_else() {
    let value = read_bytes(archive(&with(b"cos\nsystem\n"))).unwrap();
    assert_eq!(value.get("b"), Some(&Value::Opaque("os.system".into())));
    // What would be called for missing keys is never called, as nothing is looked up here.
    let default = b"ccollections\ndefaultdict\ncos\nsystem\n\x85R";
    let value = read_bytes(archive(&with(default))).unwrap();
    assert_eq!(value.get("b"), Some(&Value::Dict(Vec::new())));
    // A dictionary ends with the last value of a key, at the place of the first.
    let twice = join([
        b"}(",
        &text("k"),
        b"K\x01",
        &text("l"),
        b"K\x02",
        &text("k"),
        b"K\x03u",
    ]);
    let value = read_bytes(archive(&with(&twice))).unwrap();
    let Some(Value::Dict(items)) = value.get("b") else {
        panic!("{value:?}");
    };
    assert_eq!(items.len(), 2);
    assert_eq!(items[0], (Value::Text("k".into()), Value::Int(3)));
}

#[test]
fn an_archive_that_lies_is_refused() {
    let pickle = || entry("x/data.pkl", with(b"N"));
    let data = || entry("x/data/0", NUMBERS);
    let refused = |entries: &[Entry], expected: &str| {
        let error = read_bytes(zip(entries)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    refused(&[data()], "without a `data.pkl`");
    refused(&[pickle()], "`data/0` is missing");
    refused(
        &[pickle(), entry("x/data/0", [0; 7])],
        "has 7 bytes; its pickle says 8",
    );
    refused(&[pickle(), data(), data()], "two entries \"x/data/0\"");
    refused(
        &[pickle(), data(), entry("y/data.pkl", with(b"N"))],
        "two `data.pkl`",
    );
    for name in ["../x", "x/../../y", "/etc/passwd", "x\\..\\y", "x/\0", ""] {
        refused(
            &[pickle(), data(), entry(name, "")],
            "would lead out of the archive",
        );
    }
    // A bomb: entries that are to be unpacked.
    for name in ["x/data.pkl", "x/data/0"] {
        let entries = [pickle(), data()].map(|mut entry| {
            if entry.name == name {
                entry.method = 8;
            }
            entry
        });
        refused(&entries, "has a compressed entry");
    }
    // The table and the entry differ in the name, the size, the method or the place.
    let mut other = data();
    other.local_name = "x/data/1";
    refused(&[pickle(), other], "does not match its central directory");
    let mut other = data();
    other.local_size = 4;
    refused(&[pickle(), other], "does not match its central directory");
    let mut other = data();
    other.size = 80_000;
    other.local_size = 80_000;
    refused(&[pickle(), other], "does not match its central directory");
    let mut other = data();
    other.begins = Some(3);
    refused(&[pickle(), other], "does not match its central directory");
    let mut other = data();
    other.begins = Some(u32::MAX - 1);
    refused(&[pickle(), other], "does not match its central directory");
    let mut other = data();
    other.flags = 1;
    refused(&[pickle(), other], "encrypted");
    // Two storages in one place: the second entry's beginning lies in the first one's data.
    let inner = zip(&[entry("x/data/1", NUMBERS)]);
    let both = join([
        b"\x80\x02](",
        &tensor("0", HOOKS),
        &tensor("1", HOOKS),
        b"e.",
    ]);
    let outer = entry("x/data/0", &inner[..30 + 8 + 8]);
    let first = entry("x/data.pkl", &both);
    let begins = zip(&[first.clone(), outer.clone()])
        .windows(12)
        .rposition(|window| window == *b"PK\x03\x04\x14\0\0\0\0\0\0\0")
        .unwrap();
    let mut second = entry("x/data/1", NUMBERS);
    second.begins = Some(begins as u32);
    refused(&[first, outer, second], "overlap");
    // Other things that are zip archives, or were.
    refused(
        &[pickle(), data(), entry("x/constants.pkl", "")],
        "TorchScript",
    );
    refused(
        &[pickle(), data(), entry("x/byteorder", "big")],
        "big-endian",
    );
    let mut longer = with(b"N");
    longer.push(b'.');
    refused(
        &[entry("x/data.pkl", longer), data()],
        "after the end of its pickle",
    );
    let whole = archive(&with(b"N"));
    let error = read_bytes(join([&whole, b"!"])).unwrap_err();
    assert!(error.contains("without a central directory"), "{error}");
    let error = read_bytes(join([b"PK", &whole])).unwrap_err();
    assert!(
        error.contains("is not where its end record says"),
        "{error}"
    );
    assert!(read_bytes("PK").is_err());
}

#[test]
fn no_prefix_of_a_file_is_taken_for_the_file() {
    for name in ["zip.pt", "legacy.pt", "lightning.ckpt"] {
        let whole = std::fs::read(folder().join(name)).unwrap();
        assert!(read_bytes(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(read_bytes(&whole[..length]).is_err(), "{name} at {length}");
        }
    }
}

#[test]
fn a_tensor_lies_within_its_storage() {
    // Offset, shape and strides over a storage of two numbers; whether that is right.
    let number = |n: u64| {
        let bytes = n.to_le_bytes();
        // With a byte more that says that it is not negative.
        join([b"\x8a\x09", &bytes, b"\0"])
    };
    let big = |n: u64| {
        i64::try_from(n).map_or_else(|_| number(n), |n| join([b"\x8a\x08", &n.to_le_bytes()]))
    };
    let tuple = |numbers: &[u64]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|&n| big(n)).collect();
        join([b"(", &numbers, b"t"])
    };
    let large = 1 << 62;
    for (offset, shape, strides, right) in [
        (0, &[2][..], &[1][..], true),
        (1, &[1], &[1], true),
        (2, &[0], &[1], true),
        (0, &[0, large], &[1, 1], true),
        (1, &[1], &[large], true),
        (0, &[], &[], true),
        (1, &[3, 2], &[0, 0], true),
        (1, &[2], &[1], false),
        (3, &[0], &[1], false),
        (2, &[], &[], false),
        (0, &[2], &[2], false),
        (0, &[3], &[1], false),
        (0, &[2, 2], &[1, 1], false),
        (u64::MAX, &[1], &[1], false),
        (large, &[1], &[1], false),
        (0, &[large, large], &[0, 0], false),
        (0, &[large], &[large], false),
        (0, &[2], &[u64::MAX], false),
        (0, &[2], &[1, 1], false),
        (0, &[1; 17], &[1; 17], false),
        // More than the file has, of one number.
        (0, &[1 << 40], &[0], false),
    ] {
        let value = join([
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            &text("storage"),
            b"ctorch\nFloatStorage\n",
            &text("0"),
            &text("cpu"),
            b"K\x02tQ",
            &big(offset),
            &tuple(shape),
            &tuple(strides),
            b"\x89)tR",
        ]);
        let found = read_bytes(archive(&with(&value)));
        assert_eq!(
            found.is_ok(),
            right,
            "{offset} {shape:?} {strides:?}: {found:?}"
        );
        if let Ok(value) = found {
            let tensors = pickle::tensors(&value);
            assert_eq!(
                tensors[1].1.elements() as u64,
                shape.iter().product::<u64>()
            );
        }
    }
    // A storage is the same wherever it is spoken of, and whole.
    let again = |class: &str, count: u8| {
        let class = format!("ctorch\n{class}\n");
        let value = join([
            b"(",
            &text("storage"),
            class.as_bytes(),
            &text("0"),
            &text("cpu"),
            &[b'K', count, b't', b'Q'],
        ]);
        read_bytes(archive(&with(&value)))
    };
    assert!(again("FloatStorage", 2).is_ok());
    assert!(
        again("IntStorage", 2)
            .unwrap_err()
            .contains("in two different ways")
    );
    assert!(
        again("FloatStorage", 1)
            .unwrap_err()
            .contains("in two different ways")
    );
    assert!(
        again("QInt8Storage", 8)
            .unwrap_err()
            .contains("`torch.QInt8Storage`")
    );
    // The old format says again how long each is, and which there are.
    assert!(
        read_bytes(legacy(&with(b"N"), &[]))
            .unwrap_err()
            .contains("is missing")
    );
    let twice = read_bytes(legacy(&with(b"N"), &["0", "0"])).unwrap_err();
    assert!(twice.contains("gives the type of"), "{twice}");
    let mut lies = legacy(&with(b"N"), &["0"]);
    let count = lies.len() - 16;
    lies[count] = 3;
    assert!(read_bytes(lies).unwrap_err().contains("has 3 elements"));
}

#[test]
fn values_that_would_not_fit_memory_are_refused() {
    let refused = |value: &[u8], expected: &str| {
        let error = read_bytes(archive(&with(value))).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    // Lists of two of the list before, thirty times: a billion values in a hundred bytes.
    let laughs: Vec<u8> = (0..30u8).flat_map(|_| *b"2\x86").collect();
    refused(&join([b"N", &laughs]), "so often");
    // A list in itself, and one that is merely deep.
    refused(b"]q\x00h\x00a", "nested more than");
    refused(&join([b"N", &[0x85; 100_000]]), "nested more than");
    refused(&vec![b'('; 100_000], "");
    // Steps without end, and numbers without end.
    refused(
        &join([&b"N0".repeat(1_000_001), b"N"]),
        "more steps than the limit of 2000000",
    );
    refused(b"\x8b\xff\xff\xff\x7f", "too many digits");
    // Lengths that the file does not have.
    refused(b"X\xff\xff\xff\xff", "does not end");
    refused(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff", "does not end");
    // One long name on the way to many tensors.
    let key = text(&"k".repeat(1 << 20));
    let tensors: Vec<u8> = (0..40u8).flat_map(|n| [b'K', n, b'h', 9]).collect();
    let many = join([
        b"}",
        &key,
        &tensor("0", HOOKS),
        b"q\x090}(",
        &tensors,
        b"us",
    ]);
    refused(&many, "names of its tensors");
    // The same pairs in a thousand dictionaries.
    let pairs = b"]("
        .iter()
        .copied()
        .chain(b"NN\x86".repeat(10_000))
        .chain(*b"eq\x07");
    let copies = b"ccollections\nOrderedDict\nh\x07\x85R".repeat(1000);
    refused(
        &join([&pairs.collect::<Vec<_>>(), b"](", &copies, b"e\x86"]),
        "steps",
    );
    // A program that takes what is not there.
    for value in [
        &b"a"[..],
        b"R",
        b"u",
        b"t",
        b"h\x63",
        b"\x85\x85u",
        b"NNa",
        b"(N0000",
        b"}(Nu",
        b"\xff",
    ] {
        let error = read_bytes(archive(&join([b"\x80\x02", value, b"."]))).unwrap_err();
        assert!(
            error.contains("is damaged") || error.contains("is refused"),
            "{error}"
        );
    }
}
