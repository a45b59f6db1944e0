//! Weights in fewer bits than float16: float8 and GGUF, to the last bit as torch and the gguf package read them
//! (`tests/oracle/make_weights.py`), and a model that is drawn with them.

// The lints spare functions marked as tests, and not the functions that they share.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::f16;
use retouch_diffusion::checkpoint::export::{self, Precision};
use retouch_diffusion::checkpoint::inspect::{Kind, Request, inspect};
use retouch_diffusion::checkpoint::layout::{Layout, Sources};
use retouch_diffusion::checkpoint::memory::Memory;
use retouch_diffusion::checkpoint::model::{Checkpoint, Description};
use retouch_diffusion::checkpoint::weights::{Maps, Table, Tensors, Weights};
use retouch_diffusion::networks::unet::{Call, Text};
use retouch_diffusion::sampling::control::{Branch, Rows, Untouched};
use retouch_graph::{DiskFiles, MemoryFiles};
use retouch_kernels::{Cpu, Kernel, Terms, Weight};

fn data() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = |folder: &Path| folder.join("tests/oracle/data");
    here.ancestors()
        .map(data)
        .find(|data| data.is_dir())
        .unwrap()
}

fn oracle(name: &str) -> PathBuf {
    data().join("weights").join(name)
}

fn micro(name: &str) -> PathBuf {
    data().join("micro").join(name)
}

fn bits(t: &Tensor) -> Vec<u32> {
    let numbers = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    numbers.into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_code_of_float8_is_the_number_that_torch_makes_of_it() {
    let file = oracle("float8.safetensors");
    let table = Table::read(&file, &DiskFiles::new()).unwrap();
    let maps = Maps::default();
    for (name, dtype) in [("e4m3", "F8_E4M3"), ("e5m2", "F8_E5M2")] {
        let stored = &table.tensors[name];
        assert_eq!(stored.dtype, dtype);
        let load = |stored| maps.load(stored, DType::F32, &Device::Cpu).unwrap();
        let expected = load(&table.tensors[&format!("{name}.float32")]);
        assert_eq!(bits(&load(stored)), bits(&expected), "{name}");
        // All of them fit float16 but for the order of what is no number.
        let half = maps.load(stored, DType::F16, &Device::Cpu).unwrap();
        let half = half.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        let expected = expected.to_vec1::<f32>().unwrap();
        assert!(
            half.iter()
                .zip(&expected)
                .all(|(a, b)| a == b || a.is_nan() && b.is_nan())
        );
    }
}

#[test]
fn eight_bit_weights_with_scales_beside_them_are_refused_by_name() {
    let file = |scale: &str| {
        let header = format!(
            r#"{{"a.weight":{{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}},"{scale}":{{"dtype":"F32","shape":[],"data_offsets":[4,8]}}}}"#
        );
        [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            &[0; 8],
        ]
        .concat()
    };
    let path = Path::new("model.safetensors");
    for scale in ["a.scale_weight", "a.weight_scale", "scaled_fp8"] {
        let files = MemoryFiles::new().with(path, file(scale));
        let error = Table::read(path, &files).unwrap_err().to_string();
        assert!(
            error.contains(&format!("scales beside them (`{scale}`)")),
            "{error}"
        );
    }
    let files = MemoryFiles::new().with(path, file("a.bias"));
    assert!(Table::read(path, &files).is_ok());
}

#[test]
fn every_kind_of_block_is_read_to_the_bit_as_the_gguf_package_reads_it() {
    let table = Table::read(&oracle("kinds.gguf"), &DiskFiles::new()).unwrap();
    let expected =
        candle_core::safetensors::load(oracle("kinds.safetensors"), &Device::Cpu).unwrap();
    let maps = Maps::default();
    assert_eq!(table.tensors.len(), 12);
    for (name, stored) in &table.tensors {
        let expected = &expected[name];
        let given = maps.load(stored, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(given.dims(), expected.dims(), "{name}");
        assert_eq!(bits(&given), bits(expected), "{name}");
        // Rows of it, and the two dimensions exchanged: what checkpoints cut tensors into.
        if let Some(part) = stored.rows(1, 1).filter(|_| stored.shape.len() == 2) {
            let given = maps.load(&part, DType::F32, &Device::Cpu).unwrap();
            let row = expected.narrow(0, 1, 1).unwrap();
            assert_eq!(bits(&given), bits(&row), "a row of {name}");
            let turned = stored.transposed().unwrap();
            let given = maps.load(&turned, DType::F32, &Device::Cpu).unwrap();
            let turned = expected.t().unwrap().contiguous().unwrap();
            assert_eq!(given.dims(), turned.dims(), "{name}");
            assert_eq!(bits(&given), bits(&turned), "{name}, turned");
        }
    }
    assert_eq!(table.tensors["convolution.weight"].shape, [8, 16, 2, 3]);
    assert_eq!(table.tensors["Q4_K"].dtype, "Q4_K");
    assert_eq!(table.tensors["Q4_K"].bytes(), Some(3 * 144));
    for (key, due) in [
        ("general.architecture", "sd1"),
        ("general.name", "every kind"),
        ("general.file_type", "7"),
        ("yes", "true"),
        ("half", "0.5"),
    ] {
        assert_eq!(table.metadata[key], due, "{key}");
    }
    assert!(!table.metadata.contains_key("tokenizer.ggml.tokens"));
}

#[test]
fn a_weight_of_blocks_is_held_as_its_blocks_and_packed_when_it_is_used() {
    let table = Arc::new(Table::read(&oracle("kinds.gguf"), &DiskFiles::new()).unwrap());
    let expected =
        candle_core::safetensors::load(oracle("kinds.safetensors"), &Device::Cpu).unwrap();
    let shared = Arc::new(Tensors::new(None));
    let kernel = Arc::new(Cpu::default());
    let open = || {
        Weights::open(
            table.clone(),
            &Device::Cpu,
            DType::F32,
            shared.clone(),
            kernel.clone(),
        )
    };
    let (one, two) = (open(), open());
    let x = Tensor::rand(-1f32, 1f32, (1, 5, 64), &Device::Cpu).unwrap();
    for name in ["Q8_0", "Q4_0", "Q5_1"] {
        let weight = one.root().weight(name, (3, 64)).unwrap();
        let again = two.root().weight(name, (3, 64)).unwrap();
        // What is held is the source of the numbers.
        assert!(
            format!("{weight:?}").contains(&format!("Late({name} [3, 64])")),
            "{weight:?}"
        );
        let wide = Weight::new(&expected[name], &*kernel).unwrap();
        let product = |w| kernel.linear(&x, w, Terms::default()).unwrap();
        assert_eq!(bits(&product(&weight)), bits(&product(&wide)), "{name}");
        assert_eq!(bits(&product(&again)), bits(&product(&wide)), "{name}");
    }
    // What is no weight of a product is widened when it is loaded, and the rest is packed then.
    let embedding = one.root().get("Q8_0", (3, 64)).unwrap();
    assert_eq!(bits(&embedding), bits(&expected["Q8_0"]));
    let weight = one.root().weight("f32", (3, 5)).unwrap();
    assert!(format!("{weight:?}").contains("Packed("), "{weight:?}");
}

// ---- files that are put together here ----------------------------------------------------------------------------------

/// A tensor as a GGUF file has it: its dimensions from the outermost inwards, the number of its type, its bytes.
#[derive(Clone)]
struct Told {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    bytes: Vec<u8>,
    /// Where it says that it lies, if not behind the one before.
    offset: Option<u64>,
}

fn told(name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) -> Told {
    Told {
        name: name.to_owned(),
        shape: shape.to_vec(),
        kind,
        bytes,
        offset: None,
    }
}

/// Entries of metadata are written as they are: type and value.
fn gguf(version: u32, metadata: &[(&str, Vec<u8>)], tensors: &[Told]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    file.extend(version.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        file.extend(text(key));
        file.extend(value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        file.extend(text(&tensor.name));
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        for side in tensor.shape.iter().rev() {
            file.extend((*side as u64).to_le_bytes());
        }
        file.extend(tensor.kind.to_le_bytes());
        file.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
        offset = (offset + tensor.bytes.len() as u64).next_multiple_of(32);
    }
    for tensor in tensors {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&tensor.bytes);
    }
    file
}

fn refused(file: Vec<u8>, words: &str) {
    let path = Path::new("model.gguf");
    let files = MemoryFiles::new().with(path, file);
    let error = Table::read(path, &files).unwrap_err().to_string();
    assert!(error.contains(words), "{words:?} in {error}");
}

#[test]
fn a_gguf_file_that_lies_is_refused() {
    let whole = std::fs::read(oracle("kinds.gguf")).unwrap();
    for length in 4..whole.len() {
        let path = Path::new("model.gguf");
        let files = MemoryFiles::new().with(path, &whole[..length]);
        let read = Table::read(path, &files);
        // Behind the last tensor there may be zeros that fill it up.
        assert!(read.is_err() || length + 32 > whole.len(), "{length}");
    }
    let one = || told("a", &[2, 4], 0, vec![0; 32]);
    let file = |tensors: &[Told]| gguf(3, &[], tensors);
    let path = Path::new("model.gguf");
    let files = MemoryFiles::new().with(path, file(&[one(), told("b", &[], 1, vec![0; 2])]));
    let table = Table::read(path, &files).unwrap();
    assert_eq!(table.tensors["a"].shape, [2, 4]);
    assert_eq!(table.tensors["b"].elements(), 1);
    refused(gguf(1, &[], &[one()]), "version 1; expected 2 or 3");
    refused(gguf(3 << 24, &[], &[one()]), "big-endian");
    refused(file(&[one(), one()]), "`a` comes twice");
    let at = |offset| Told {
        offset: Some(offset),
        ..told("b", &[2, 4], 0, vec![0; 32])
    };
    refused(file(&[one(), at(0)]), "overlap");
    refused(
        file(&[one(), at(8)]),
        "does not begin where data is aligned",
    );
    refused(
        file(&[one(), at(1 << 40)]),
        "`b` extends past the end of the file",
    );
    refused(
        file(&[one(), at(u64::MAX - 31)]),
        "`b` extends past the end of the file",
    );
    refused(
        file(&[told("c", &[1, 1, 1, 1, 1], 0, vec![0; 4])]),
        "5 dimensions",
    );
    refused(file(&[told("c", &[0], 0, Vec::new())]), "length 0");
    let huge = usize::MAX / 2;
    refused(
        file(&[told("c", &[huge, huge], 0, Vec::new())]),
        "can be counted",
    );
    refused(
        file(&[told("c", &[2, 16], 8, vec![0; 34])]),
        "not whole blocks of 32",
    );
    refused(
        file(&[told("c", &[256], 10, vec![0; 84])]),
        "an unsupported type, Q2_K",
    );
    refused(file(&[told("c", &[256], 16, vec![0; 66])]), "IQ family");
    refused(
        file(&[told("c", &[256], 99, vec![0; 66])]),
        "of the number 99",
    );
    refused(
        file(&[told(&"n".repeat(2000), &[1], 0, vec![0; 4])]),
        "name of 2000 bytes",
    );
    let u32_of = |n: u32| [&4u32.to_le_bytes()[..], &n.to_le_bytes()].concat();
    for alignment in [0, 1, 12, 1 << 30] {
        let metadata = [("general.alignment", u32_of(alignment))];
        refused(gguf(3, &metadata, &[one()]), "aligned to");
    }
    let shape = |sides: &[i32]| {
        let mut value = 9u32.to_le_bytes().to_vec();
        value.extend(5u32.to_le_bytes());
        value.extend((sides.len() as u64).to_le_bytes());
        value.extend(sides.iter().flat_map(|side| side.to_le_bytes()));
        value
    };
    for sides in [&[3, 3][..], &[-2, -4], &[]] {
        let metadata = [("comfy.gguf.orig_shape.a", shape(sides))];
        refused(gguf(3, &metadata, &[one()]), "its original shape");
    }
    // Arrays in arrays, of no end, and of more bytes than there are.
    let mut nested = 9u32.to_le_bytes().to_vec();
    for _ in 0..100 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    refused(gguf(3, &[("k", nested)], &[one()]), "nested more than");
    for kind in [0u32, 8, 12] {
        let mut long = 9u32.to_le_bytes().to_vec();
        long.extend(kind.to_le_bytes());
        long.extend(u64::MAX.to_le_bytes());
        refused(
            gguf(3, &[("k", long)], &[one()]),
            "extends past the end of the file",
        );
    }
    let mut many = file(&[one()]);
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(many, "at most 131072 are read");
}

// ---- models ------------------------------------------------------------------------------------------------------------

/// Float32 as blocks of Q8_0, and the numbers that these are.
fn q8_0(numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut given) = (Vec::new(), Vec::new());
    for block in numbers.chunks(32) {
        let most = block.iter().fold(0f32, |most, x| most.max(x.abs()));
        let d = f16::from_f32(most / 127.0);
        bytes.extend(d.to_le_bytes());
        let d = d.to_f32();
        for x in block {
            let q = if d == 0.0 {
                0
            } else {
                (x / d).round().clamp(-127.0, 127.0) as i8
            };
            bytes.push(q as u8);
            given.push(f32::from(q) * d);
        }
    }
    (bytes, given)
}

/// A model's tensors as a GGUF file, all that has rows of 32 numbers in Q8_0, and as float32 with the same numbers.
fn quantised(
    tensors: BTreeMap<String, Tensor>,
    metadata: &[(&str, Vec<u8>)],
) -> (Vec<u8>, HashMap<String, Tensor>, usize) {
    let (mut all, mut wide, mut count) = (Vec::new(), HashMap::new(), 0);
    for (name, tensor) in tensors {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        let shape = tensor.dims().to_vec();
        let numbers = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let fits = shape.len() > 1 && shape.last().is_some_and(|row| row % 32 == 0);
        if fits {
            let (bytes, given) = q8_0(&numbers);
            count += 1;
            all.push(told(&name, &shape, 8, bytes));
            let given = Tensor::from_vec(given, shape, &Device::Cpu).unwrap();
            wide.insert(name, given);
        } else {
            let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            all.push(told(&name, &shape, 0, bytes));
            wide.insert(name, tensor);
        }
    }
    (gguf(3, metadata, &all), wide, count)
}

/// The tensors of a single file that are of the model.
fn of_single(name: &str) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(micro(name), &Device::Cpu)
        .unwrap()
        .into_iter()
        .filter(|(name, tensor)| tensor.dtype() == DType::F16 && !name.starts_with("model_ema"))
        .collect()
}

fn open(sources: &Sources) -> Checkpoint {
    let description = Description::read(sources, &DiskFiles::new()).unwrap();
    let kernel = Arc::new(Cpu::default());
    Checkpoint::new(description, String::new(), Device::Cpu, kernel)
}

fn single(file: &Path, config: &str) -> Sources {
    Sources {
        config: Some(micro(config)),
        ..Sources::of(file)
    }
}

/// What a model of one text encoder gives for the oracle's inputs.
fn results(model: &Checkpoint) -> Vec<Tensor> {
    let inputs = candle_core::safetensors::load(micro("sd1.safetensors"), &Device::Cpu).unwrap();
    let text = model
        .encode_prompt("a teddy bear on a beach")
        .unwrap()
        .states;
    let context = Text::new(text.repeat((2, 1, 1)).unwrap());
    let call = Call {
        addition: None,
        latent: &inputs["unet_in"],
        timesteps: &[981.0, 401.0],
        texts: &[&context],
        step: 0,
        rows: Rows::new(Branch::Plain, 2, false),
    };
    let unet = model.unet().unwrap();
    let vae = model.vae().unwrap();
    vec![
        text,
        unet.forward(call, &mut Untouched, model.kernel()).unwrap(),
        vae.decode(&inputs["noise"], model.kernel()).unwrap(),
    ]
}

#[track_caller]
fn equal(a: &[Tensor], b: &[Tensor]) {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(bits(a) == bits(b), "the result {i} differs");
    }
}

#[test]
fn a_quantised_model_draws_what_its_numbers_draw_and_is_held_as_it_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (file, wide, count) = quantised(of_single("sd1-single.safetensors"), &[]);
    assert!(count > 30, "{count} tensors are quantised");
    std::fs::write(at("model.gguf"), file).unwrap();
    candle_core::safetensors::save(&wide, at("wide.safetensors")).unwrap();
    let model = |name: &str| open(&single(&at(name), "sd1"));
    for dtype in [DType::F32, DType::BF16] {
        let memory = [(); 2].map(|()| Arc::new(Memory::default()));
        let [a, b] = [("model.gguf", 0), ("wide.safetensors", 1)]
            .map(|(name, i)| model(name).held(dtype, memory[i].clone(), false));
        equal(&results(&a), &results(&b));
        // Half of a micro U-Net's weights have rows of 32.
        assert!(memory[0].held() < memory[1].held() && a.bytes() < b.bytes());
    }
    // The U-Net alone, as ComfyUI-GGUF names it, in place of a folder's.
    let alone: BTreeMap<String, Tensor> = of_single("sd1-single.safetensors")
        .into_iter()
        .filter_map(|(name, tensor)| {
            Some((
                name.strip_prefix("model.diffusion_model.")?.to_owned(),
                tensor,
            ))
        })
        .collect();
    let text = |text: &str| {
        let length = (text.len() as u64).to_le_bytes();
        [&8u32.to_le_bytes()[..], &length, text.as_bytes()].concat()
    };
    let (file, ..) = quantised(alone, &[("general.architecture", text("sd1"))]);
    std::fs::write(at("unet.gguf"), file).unwrap();
    let given = open(&Sources {
        unet: Some(at("unet.gguf")),
        ..Sources::of(&micro("sd1"))
    });
    let unet: HashMap<_, _> = wide
        .iter()
        .filter(|(name, _)| name.starts_with("model.diffusion_model."))
        .map(|(name, tensor)| (name.clone(), tensor.clone()))
        .collect();
    candle_core::safetensors::save(&unet, at("wide.unet.safetensors")).unwrap();
    let whole = open(&Sources {
        unet: Some(at("wide.unet.safetensors")),
        ..Sources::of(&micro("sd1"))
    });
    equal(&results(&given), &results(&whole));
    // The same in a folder of its own, found by its name.
    std::fs::create_dir(at("unet")).unwrap();
    std::fs::copy(at("unet.gguf"), at("unet/diffusion_pytorch_model.gguf")).unwrap();
    std::fs::copy(micro("sd1/unet/config.json"), at("unet/config.json")).unwrap();
    let found = open(&Sources {
        unet: Some(at("unet")),
        ..Sources::of(&micro("sd1"))
    });
    equal(&results(&found), &results(&whole));
    // What it is by `inspect`, and that the whole is one to be converted.
    let request = |name: &str| Request {
        path: at(name),
        config: (name == "model.gguf").then(|| micro("sd1")),
        size: None,
    };
    let report = inspect(&request("model.gguf"), &DiskFiles::new()).unwrap();
    assert_eq!(report.kind, Kind::Model);
    assert!(report.parts[0].dtypes["Q8_0"] > 10, "{:?}", report.parts[0]);
    let report = inspect(&request("unet.gguf"), &DiskFiles::new()).unwrap();
    assert_eq!(
        (report.kind, report.layout.as_str()),
        (Kind::Tensors, "GGUF")
    );
    assert_eq!(report.metadata["general.architecture"], "sd1");
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("`unet: FILE`")),
        "{:?}",
        report.notes
    );
    for (precision, exact) in [(None, true), (Some(Precision::F16), false)] {
        let layout = Layout::find(&single(&at("model.gguf"), "sd1"), &DiskFiles::new()).unwrap();
        let description = Description::of(&layout, &DiskFiles::new()).unwrap();
        let target = tempfile::tempdir().unwrap();
        export::folder(
            &layout,
            &description,
            precision,
            target.path(),
            &DiskFiles::new(),
            &|| false,
        )
        .unwrap();
        let converted = results(&open(&Sources::of(target.path())));
        if exact {
            equal(&converted, &results(&model("wide.safetensors")));
        } else {
            for (a, b) in converted.iter().zip(&results(&model("wide.safetensors"))) {
                let most = (a - b).unwrap().abs().unwrap().max_all().unwrap();
                let most = most.to_scalar::<f32>().unwrap();
                assert!(most < 0.02, "{most}");
            }
        }
    }
}

/// The tensors of the micro model of XL as stable-diffusion.cpp names them: its later versions keep query, key and value of
/// the second text encoder in one.
fn as_cpp_names_them(fused: bool) -> BTreeMap<String, Tensor> {
    let own = of_single("sdxl-single.safetensors");
    let mut renamed = BTreeMap::new();
    for (name, tensor) in own {
        if let Some(rest) = name.strip_prefix("conditioner.embedders.0.") {
            renamed.insert(format!("cond_stage_model.{rest}"), tensor);
            continue;
        }
        let Some(rest) = name.strip_prefix("conditioner.embedders.1.model.") else {
            renamed.insert(name, tensor);
            continue;
        };
        let text = "cond_stage_model.1.transformer.text_model";
        let outside = [
            ("ln_final.", "final_layer_norm."),
            (
                "positional_embedding",
                "embeddings.position_embedding.weight",
            ),
            ("token_embedding.", "embeddings.token_embedding."),
            ("text_projection", "text_projection"),
        ];
        if let Some((theirs, ours)) = outside.iter().find(|(from, _)| rest.starts_with(from)) {
            let rest = rest.strip_prefix(theirs).unwrap();
            renamed.insert(format!("{text}.{ours}{rest}"), tensor);
            continue;
        }
        let Some(rest) = rest.strip_prefix("transformer.resblocks.") else {
            continue; // logit_scale
        };
        let (layer, rest) = rest.split_once('.').unwrap();
        let layer = format!("{text}.encoder.layers.{layer}");
        if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
            if fused {
                renamed.insert(format!("{layer}.self_attn.in_proj.{kind}"), tensor);
                continue;
            }
            for (part, own) in tensor.chunk(3, 0).unwrap().iter().zip(["q", "k", "v"]) {
                renamed.insert(format!("{layer}.self_attn.{own}_proj.{kind}"), part.clone());
            }
            continue;
        }
        let rest = [
            ("attn.", "self_attn."),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ]
        .iter()
        .fold(rest.to_owned(), |rest, (from, to)| {
            rest.replacen(from, to, 1)
        });
        renamed.insert(format!("{layer}.{rest}"), tensor);
    }
    renamed
}

#[test]
fn both_text_encoders_of_xl_are_read_as_stable_diffusion_cpp_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xl.gguf");
    for fused in [false, true] {
        let renamed = as_cpp_names_them(fused);
        let all: Vec<Told> = renamed
            .iter()
            .map(|(name, tensor)| {
                let numbers = tensor.flatten_all().unwrap().to_vec1::<f16>().unwrap();
                let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                told(name, tensor.dims(), 1, bytes)
            })
            .collect();
        std::fs::write(&path, gguf(3, &[], &all)).unwrap();
        let given = open(&single(&path, "sdxl"));
        let due = open(&single(&micro("sdxl-single.safetensors"), "sdxl"));
        let (a, b) = [&given, &due]
            .map(|model| model.encode_prompt("a teddy bear").unwrap())
            .into();
        assert!(bits(&a.states) == bits(&b.states));
        assert!(bits(&a.pooled.unwrap()) == bits(&b.pooled.unwrap()));
    }
}

#[test]
fn a_network_alone_in_the_place_of_another_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, tensors: &[(&str, &[usize])]| {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
        let tensors: HashMap<_, _> = tensors
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), zeros(shape)))
            .collect();
        let path = folder.path().join(name);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        path
    };
    let tiny = save(
        "taesd.safetensors",
        &[
            ("decoder.layers.0.weight", &[64, 4, 3, 3]),
            ("encoder.layers.0.weight", &[64, 3, 3, 3]),
        ],
    );
    let unet = save(
        "unet.safetensors",
        &[
            ("conv_in.weight", &[320, 4, 3, 3]),
            ("time_embedding.linear_1.weight", &[1280, 320]),
            (
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
                &[320, 768],
            ),
        ],
    );
    let errors = |sources: &Sources| {
        let errors = Description::read(sources, &DiskFiles::new()).unwrap_err();
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        errors.join("; ")
    };
    let vae = Sources {
        vae: Some(tiny),
        ..Sources::of(&micro("sd1"))
    };
    let told = errors(&vae);
    assert!(
        told.contains("taesd.safetensors: is a VAE approximation (such as TAESD)"),
        "{told}"
    );
    let told = errors(&Sources::of(&unet));
    assert!(
        told.contains("is a standalone U-Net of Stable Diffusion 1 with the diffusers tensor names: give it to load_model as `unet: FILE`"),
        "{told}"
    );
}
