//! Measures against torch, transformers, pytorch-msssim and numpy (`tests/oracle/make_measures.py`), and on cases whose answer is known.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use retouch_diffusion::checkpoint::weights::{Table as WeightTable, Tensors, Weights};
use retouch_diffusion::networks::bicubic;
use retouch_diffusion::networks::lpips::{Backbone, Lpips};
use retouch_diffusion::networks::vit::{Vit, VitConfig};
use retouch_graph::{
    Cancel, Engine, Exists, Known, Node, NodeError, Payload, Recorder, RunOptions, Saver, Settings,
    Types,
};
use retouch_kernels::for_device;
use retouch_nodes::load::{LoadImage, LoadMask, load_image, load_mask};
use retouch_nodes::measure::{
    Diversity, ImageFeatures, MakeReport, MeasureLayout, MeasureLook, MeasureLpips, PictureError,
    PromptScore, Scores, Similarity, TextFeatures, diversity, image_features, layout, look, lpips,
    picture_error, prompt_score, report, scores, similarity, text_features,
};
use retouch_nodes::payload::features::Space;
use retouch_nodes::payload::{
    Features, Image, ImageOrPhotos, Mask, MaskOrPhotoMasks, Report, Table,
};
use serde_json::{Value as Json, json};

use crate::support::{Disk, MODULE, Stage, assert_close, data, node};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data().join("measures.safetensors"), &Device::Cpu).unwrap()
}

fn numbers() -> Json {
    serde_json::from_slice(&std::fs::read(data().join("measures.json")).unwrap()).unwrap()
}

fn run<N: Node>(params: Json, inputs: N::Inputs) -> Result<N::Outputs, NodeError> {
    Stage::default().run(&node::<N>(params), inputs)
}

fn photo(number: usize) -> Arc<Image> {
    let path = root().join(format!("references/teddy/0{number}.png"));
    run::<LoadImage>(json!({"path": path}), load_image::Inputs {})
        .unwrap()
        .image
}

fn photo_mask(number: usize) -> Arc<Mask> {
    let path = root().join(format!("references/teddy/0{number}-mask.png"));
    run::<LoadMask>(json!({"path": path}), load_mask::Inputs {})
        .unwrap()
        .mask
}

fn batch(images: &[Arc<Image>]) -> Arc<Image> {
    let rgb: Vec<&Tensor> = images.iter().map(|image| &image.rgb).collect();
    Arc::new(Image::new(Tensor::cat(&rgb, 0).unwrap(), None).unwrap())
}

fn mask_batch(masks: &[Arc<Mask>]) -> Arc<Mask> {
    let planes: Vec<&Tensor> = masks.iter().map(|mask| &mask.plane).collect();
    Arc::new(Mask::new(Tensor::cat(&planes, 0).unwrap()).unwrap())
}

fn photos() -> Arc<Image> {
    batch(&(1..=5).map(photo).collect::<Vec<_>>())
}

fn lite0(image: &Arc<Image>) -> Arc<Features> {
    let path = root().join("models/lite0.safetensors");
    let inputs = image_features::Inputs {
        image: ImageOrPhotos::Image(image.clone()),
    };
    run::<ImageFeatures>(json!({"path": path}), inputs)
        .unwrap()
        .features
}

/// A number of a table.
#[track_caller]
fn cell(table: &Table, column: &str, row: usize) -> f64 {
    let at = table.column(column).unwrap();
    table.rows[row][at].as_f64().unwrap()
}

#[track_caller]
fn near(own: f64, other: &Json, tolerance: f64) {
    let other = other.as_f64().unwrap();
    assert!((own - other).abs() < tolerance, "{own} is not {other}");
}

// ---- networks --------------------------------------------------------------------------------------------------------

/// The oracle's `formula`: murmur3's finaliser of the index plus FNV-1a of the name.
fn formula(name: &str, count: usize, scale: f64) -> Vec<f32> {
    let salt = name.bytes().fold(2_166_136_261u32, |salt, byte| {
        (salt ^ u32::from(byte)).wrapping_mul(16_777_619)
    });
    (0..count as u32)
        .map(|index| {
            let mut x = index.wrapping_add(salt);
            x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
            x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
            x ^= x >> 16;
            ((f64::from(x) / 4_294_967_296.0 - 0.5) * 2.0 * scale) as f32
        })
        .collect()
}

/// The oracle's `weights`.
fn weight(name: &str, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let values = if name.contains("norm") || name.contains("lambda1") {
        let shift = if name.ends_with("weight") || name.ends_with("lambda1") {
            1.0
        } else {
            0.0
        };
        formula(name, count, 0.2)
            .iter()
            .map(|x| x + shift)
            .collect()
    } else {
        formula(name, count, if shape.len() == 1 { 0.1 } else { 0.05 })
    };
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Writes the weights that a network asks for, and those of `more`.
fn write(path: &Path, asked: &[(String, Vec<usize>)]) {
    let tensors: HashMap<String, Tensor> = asked
        .iter()
        .map(|(name, shape)| (name.clone(), weight(name, shape)))
        .collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn vit(config: &Json, colours: &[f32], side: usize) -> Tensor {
    let kernel = for_device(&Device::Cpu);
    let config = VitConfig::read(config).unwrap();
    let asked = Weights::asked(|weights| Vit::load(&config, weights, &*kernel).map(drop)).unwrap();
    // What was not found is asked for below the name of no class: CLIP's stands below `vision_model`.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &asked);
    let table = Arc::new(WeightTable::read(&file, &Disk).unwrap());
    let weights = Weights::open(
        table,
        &Device::Cpu,
        DType::F32,
        Arc::new(Tensors::new(None)),
        kernel.clone(),
    );
    let network = Vit::load(&config, &weights, &*kernel).unwrap();
    network.features(colours, side, &*kernel).unwrap()
}

#[test]
fn vision_transformers_give_what_transformers_does() {
    let expected = expected();
    let picture = formula("picture", 3 * 224 * 224, 2.0);
    let small = json!({"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2});
    let with = |more: Json| {
        let mut config = small.clone();
        let more = more.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(more);
        config
    };
    let dino = with(
        json!({"model_type": "vit", "intermediate_size": 1536, "patch_size": 16, "image_size": 224}),
    );
    let made = vit(&dino, &picture, 224);
    assert_close("dino", &made, &expected["dino"], MODULE);
    let dinov2 = with(json!({"model_type": "dinov2", "patch_size": 14, "image_size": 518}));
    let made = vit(&dinov2, &picture, 224);
    assert_close("dinov2", &made, &expected["dinov2"], MODULE);
    let registers = with(
        json!({"model_type": "dinov2_with_registers", "patch_size": 14, "image_size": 518, "num_register_tokens": 4}),
    );
    let made = vit(&registers, &formula("large", 3 * 518 * 518, 2.0), 518);
    assert_close("registers", &made, &expected["dinov2_registers"], MODULE);
    let made = vit(&registers, &picture, 224);
    assert_close(
        "registers at 224",
        &made,
        &expected["dinov2_registers_224"],
        MODULE,
    );
}

/// The files of LPIPS: AlexNet or VGG16 in torchvision's names, and the weights of its layers, by the rule of `make_perceptual.py`.
fn lpips_files(backbone: Backbone, folder: &Path) -> Json {
    let files = ["backbone", "linear"].map(|name| folder.join(format!("{name}.safetensors")));
    let empty = || {
        let file = folder.join("empty.safetensors");
        candle_core::safetensors::save(&HashMap::<String, Tensor>::new(), &file).unwrap();
        Weights::checking(Arc::new(WeightTable::read(&file, &Disk).unwrap()))
    };
    let asked = [
        Weights::asked(|weights| Lpips::load(backbone, weights, &empty()).map(drop)).unwrap(),
        Weights::asked(|linear| Lpips::load(backbone, &empty(), linear).map(drop)).unwrap(),
    ];
    for (file, asked) in files.iter().zip(asked) {
        let tensors: HashMap<String, Tensor> = (asked.into_iter())
            .map(|(name, shape)| {
                let count = shape.iter().product();
                let values = if name.starts_with("lin") {
                    formula(&name, count, 0.5).iter().map(|x| x + 0.5).collect()
                } else if shape.len() == 1 {
                    formula(&name, count, 0.1)
                } else {
                    let inputs: usize = shape[1..].iter().product();
                    formula(&name, count, (6.0 / inputs as f64).sqrt())
                };
                let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
                (name, tensor)
            })
            .collect();
        candle_core::safetensors::save(&tensors, file).unwrap();
    }
    json!({"path": files[0], "linear": files[1]})
}

/// The pictures of `make_perceptual.py`, 64 x 48 pixels: three of noise, and the first one darker.
fn noise() -> Vec<Arc<Image>> {
    let shifted = |name: &str| -> Vec<f32> {
        (formula(name, 3 * 48 * 64, 0.5).into_iter())
            .map(|x| x + 0.5)
            .collect()
    };
    let mut planes: Vec<Vec<f32>> = (0..3).map(|i| shifted(&format!("picture{i}"))).collect();
    planes.push(planes[0].iter().map(|x| x * 0.9).collect());
    (planes.into_iter())
        .map(|planes| {
            let rgb = Tensor::from_vec(planes, (1, 3, 48, 64), &Device::Cpu).unwrap();
            Arc::new(Image::new(rgb, None).unwrap())
        })
        .collect()
}

#[test]
fn lpips_is_that_of_its_package_by_both_networks() {
    let expected: Json =
        serde_json::from_slice(&std::fs::read(data().join("perceptual.json")).unwrap()).unwrap();
    let pictures = noise();
    for (backbone, name) in [(Backbone::AlexNet, "alexnet"), (Backbone::Vgg16, "vgg16")] {
        let folder = tempfile::tempdir().unwrap();
        let params = lpips_files(backbone, folder.path());
        let table = |image: Arc<Image>, to: Option<Arc<Image>>| {
            run::<MeasureLpips>(params.clone(), lpips::Inputs { image, to })
                .unwrap()
                .table
        };
        let expected = &expected[name];
        // Each with the one beside it; one for all.
        let made = table(batch(&pictures[1..3]), Some(batch(&pictures[..2])));
        near(cell(&made, "lpips", 0), &expected["1,0"], 1e-5);
        near(cell(&made, "lpips", 1), &expected["2,1"], 1e-5);
        let made = table(batch(&pictures), Some(pictures[0].clone()));
        assert_eq!(cell(&made, "lpips", 0), 0.0);
        for i in 1..4 {
            near(cell(&made, "lpips", i), &expected[format!("{i},0")], 1e-5);
        }
        // With each other: the mean over the others.
        let made = table(batch(&pictures), None);
        for i in 0..4 {
            let others = (0..4).filter(|j| *j != i).map(|j| {
                let pair = format!("{},{}", i.max(j), i.min(j));
                expected[pair].as_f64().unwrap()
            });
            near(
                cell(&made, "lpips", i),
                &json!(others.sum::<f64>() / 3.0),
                1e-5,
            );
        }
        let again = table(batch(&[pictures[2].clone(), pictures[2].clone()]), None);
        assert_eq!(cell(&again, "lpips", 0), 0.0);
        let said = &again.definitions["lpips"];
        for field in ["path", "linear"] {
            let bytes = std::fs::read(params[field].as_str().unwrap()).unwrap();
            let digest = blake3::hash(&bytes).to_hex();
            assert!(said.contains(&digest[..8]), "{field}: {said}");
        }
    }
}

#[test]
fn lpips_says_which_of_its_files_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let params = lpips_files(Backbone::AlexNet, folder.path());
    let said = |params: &Json, image: Option<Arc<Image>>| {
        let image = image.unwrap_or_else(|| batch(&noise()[..2]));
        match run::<MeasureLpips>(params.clone(), lpips::Inputs { image, to: None }) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(said(&params, None), "");
    let swapped = json!({"path": params["linear"], "linear": params["path"]});
    assert!(said(&swapped, None).contains("neither AlexNet nor VGG16"));
    let twice = json!({"path": params["path"], "linear": params["path"]});
    let message = said(&twice, None);
    assert!(
        message.contains("layers of AlexNet") && message.contains("lin0.model.1.weight"),
        "{message}"
    );
    let one = said(&params, Some(noise()[0].clone()));
    assert!(one.contains("no pairs"), "{one}");
    let rgb = Tensor::full(0.5f32, (1, 3, 30, 64), &Device::Cpu).unwrap();
    let low = Image::new(rgb, None).unwrap();
    let message = said(
        &params,
        Some(batch(&[Arc::new(low.clone()), Arc::new(low)])),
    );
    assert!(message.contains("at least 31 pixels"), "{message}");
}

/// A folder with the whole of CLIP ViT-B/32, its halves of two layers each.
fn clip(folder: &Path) {
    let config = json!({
        "model_type": "clip", "projection_dim": 512,
        "text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2},
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut asked = vec![
        ("visual_projection.weight".to_owned(), vec![512, 768]),
        ("text_projection.weight".to_owned(), vec![512, 512]),
    ];
    let halves = [("vision_model", 768, 3072), ("text_model", 512, 2048)];
    for (half, width, inner) in halves {
        let mut add = |name: &str, shape: &[usize]| {
            asked.push((format!("{half}.{name}"), shape.to_vec()));
        };
        let mut norm = |name: &str| {
            add(&format!("{name}.weight"), &[width]);
            add(&format!("{name}.bias"), &[width]);
        };
        match half {
            "vision_model" => ["pre_layrnorm", "post_layernorm"].map(&mut norm),
            _ => ["final_layer_norm", "final_layer_norm"].map(&mut norm),
        };
        for layer in 0..2 {
            let at = |name: &str| format!("encoder.layers.{layer}.{name}");
            for name in ["layer_norm1", "layer_norm2"] {
                norm(&at(name));
            }
        }
        for layer in 0..2 {
            let at = |name: &str| format!("encoder.layers.{layer}.{name}");
            let linears = [
                ("self_attn.q_proj", width, width),
                ("self_attn.k_proj", width, width),
                ("self_attn.v_proj", width, width),
                ("self_attn.out_proj", width, width),
                ("mlp.fc1", inner, width),
                ("mlp.fc2", width, inner),
            ];
            for (name, out, input) in linears {
                add(&format!("{}.weight", at(name)), &[out, input]);
                add(&format!("{}.bias", at(name)), &[out]);
            }
        }
        match half {
            "vision_model" => {
                add("embeddings.class_embedding", &[width]);
                add("embeddings.patch_embedding.weight", &[width, 3, 32, 32]);
                add("embeddings.position_embedding.weight", &[50, width]);
            }
            _ => {
                add("embeddings.token_embedding.weight", &[49408, width]);
                add("embeddings.position_embedding.weight", &[77, width]);
            }
        }
    }
    write(&folder.join("model.safetensors"), &asked);
}

#[test]
fn both_halves_of_clip_give_what_transformers_does() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path());
    let expected = expected();
    let inputs = text_features::Inputs {};
    let params = json!({"path": folder.path(), "texts": ["a teddy bear on a beach", "a cat"]});
    let text = run::<TextFeatures>(params, inputs).unwrap().features;
    assert_eq!(text.batch(), 2);
    let first = text.rows.narrow(0, 0, 1).unwrap();
    assert_close("CLIP's texts", &first, &expected["clip_text"], MODULE);

    let kernel = for_device(&Device::Cpu);
    let table = WeightTable::read(&folder.path().join("model.safetensors"), &Disk).unwrap();
    let weights = Weights::open(
        Arc::new(table),
        &Device::Cpu,
        DType::F32,
        Arc::new(Tensors::new(None)),
        kernel.clone(),
    );
    let config = std::fs::read(folder.path().join("config.json")).unwrap();
    let config = VitConfig::read(&serde_json::from_slice(&config).unwrap()).unwrap();
    let network = Vit::load(&config, &weights, &*kernel).unwrap();
    let picture = formula("picture", 3 * 224 * 224, 2.0);
    let made = network.features(&picture, 224, &*kernel).unwrap();
    assert_close("CLIP's pictures", &made, &expected["clip_image"], MODULE);

    // The ops: one space for both, and a cosine for each picture.
    let inputs = image_features::Inputs {
        image: ImageOrPhotos::Image(photo(1)),
    };
    let params = json!({"path": folder.path()});
    let features = run::<ImageFeatures>(params, inputs).unwrap().features;
    assert!(features.space.is_comparable(&text.space));
    let one = Arc::new(Features::new(first, text.space.clone()).unwrap());
    let inputs = prompt_score::Inputs {
        features,
        text: Some(one),
    };
    let table = run::<PromptScore>(json!({}), inputs).unwrap().table;
    assert!((-1.0..=1.0).contains(&cell(&table, "prompt_score", 0)));
}

#[test]
fn lite0_sees_in_the_teddys_photos_what_torch_does() {
    let features = lite0(&photos());
    let expected = expected();
    assert_close("lite0", &features.rows, &expected["lite0"], MODULE);
    // A picture's row is the same, bit for bit, whatever else is in its batch.
    let alone = lite0(&photo(3));
    let row = features.rows.narrow(0, 2, 1).unwrap();
    assert_eq!(
        alone.rows.to_vec2::<f32>().unwrap(),
        row.to_vec2::<f32>().unwrap()
    );
    // Kept and read again it is the same.
    let kept = features.to_disk().unwrap().unwrap();
    let again = Features::from_disk(&kept).unwrap();
    assert_eq!(again.space, features.space);
    assert_eq!(
        again.rows.to_vec2::<f32>().unwrap(),
        features.rows.to_vec2::<f32>().unwrap()
    );
}

#[test]
fn the_demo_worlds_scorer_gives_what_torch_does() {
    // The scorer is made for pictures of 64 pixels: the photos, halved by means of two by two.
    let photos = photos();
    let halved = photos.rgb.avg_pool2d(2).unwrap();
    let features = lite0(&Arc::new(Image::new(halved, None).unwrap()));
    let expected = expected();
    for (head, prompt, class) in [
        ("thing", "a sks Teddy  bear, in space", 0),
        ("place", "an owl on a wooden table", 8),
    ] {
        let inputs = prompt_score::Inputs {
            features: features.clone(),
            text: None,
        };
        let scorer = root().join("models/world-scorer.safetensors");
        let params = json!({"scorer": scorer, "prompt": prompt});
        let table = run::<PromptScore>(params, inputs).unwrap().table;
        let torch = expected[head].to_vec2::<f32>().unwrap();
        for (row, torch) in torch.iter().enumerate() {
            near(cell(&table, head, row), &json!(torch[class]), 1e-3);
            let most = torch.iter().all(|other| *other <= torch[class]);
            assert_eq!(
                cell(&table, &format!("{head}_top"), row),
                f64::from(u8::from(most))
            );
        }
        assert!(table.definitions[head].contains("in-domain"));
    }
}

#[test]
fn bicubic_enlarges_and_shrinks_as_torch_does() {
    let expected = expected();
    let line = [0.0, 1.0, 4.0, 9.0, 5.0, 2.0, 7.0];
    let resize = [bicubic::plane, bicubic::smooth_plane];
    for (resize, how) in resize.into_iter().zip(["", "smooth_"]) {
        for size in [3, 12] {
            let made = resize(&line, (7, 1), (size, 1));
            let torch = &expected[&format!("bicubic_{how}{size}")];
            for (own, torch) in made.iter().zip(&torch.to_vec1::<f32>().unwrap()) {
                assert!((own - torch).abs() < 1e-5, "{made:?} is not {torch:?}");
            }
        }
    }
}

// ---- numbers ---------------------------------------------------------------------------------------------------------

fn looks(image: &Arc<Image>, mask: &Arc<Mask>, references: &[usize]) -> Table {
    let photos: Vec<_> = references.iter().map(|n| photo(*n)).collect();
    let masks: Vec<_> = references.iter().map(|n| photo_mask(*n)).collect();
    let inputs = look::Inputs {
        image: image.clone(),
        mask: mask.clone(),
        references: ImageOrPhotos::Image(batch(&photos)),
        reference_masks: MaskOrPhotoMasks::Mask(mask_batch(&masks)),
    };
    let made = run::<MeasureLook>(json!({}), inputs).unwrap();
    (*made.table).clone()
}

fn layouts(mask: &Arc<Mask>) -> Table {
    let inputs = layout::Inputs { mask: mask.clone() };
    let made = run::<MeasureLayout>(json!({}), inputs).unwrap();
    (*made.table).clone()
}

fn errors(image: &Arc<Image>, to: &Arc<Image>) -> Table {
    let inputs = picture_error::Inputs {
        image: image.clone(),
        to: to.clone(),
    };
    let made = run::<PictureError>(json!({}), inputs).unwrap();
    (*made.table).clone()
}

fn spread(features: Features) -> Table {
    let inputs = diversity::Inputs {
        features: Arc::new(features),
    };
    let made = run::<Diversity>(json!({}), inputs).unwrap();
    (*made.table).clone()
}

fn some_space() -> Space {
    Space {
        network: "formula".to_owned(),
        weights: "0".to_owned(),
        input: "none".to_owned(),
    }
}

#[test]
fn look_layout_diversity_and_errors_are_those_of_numpy_and_pytorch_msssim() {
    let numbers = numbers();
    let masks = mask_batch(&(1..=5).map(photo_mask).collect::<Vec<_>>());
    let table = looks(&photos(), &masks, &[2, 3]);
    for (row, value) in numbers["look"].as_array().unwrap().iter().enumerate() {
        near(cell(&table, "look", row), value, 1e-5);
    }
    let table = layouts(&masks);
    for (column, value) in numbers["layout"].as_object().unwrap() {
        near(cell(&table, column, 0), value, 1e-9);
    }
    let rows = Tensor::from_vec(formula("rows", 60, 1.0), (6, 10), &Device::Cpu).unwrap();
    let table = spread(Features::new(rows, some_space()).unwrap());
    near(cell(&table, "diversity", 0), &numbers["diversity"], 1e-9);
    near(cell(&table, "vendi", 0), &numbers["vendi"], 1e-9);
    let table = errors(&photo(1), &photo(3));
    let photos = &numbers["errors"]["photos"];
    near(cell(&table, "psnr", 0), &photos["psnr"], 1e-5);
    // The window of pytorch-msssim is of float32.
    near(cell(&table, "ssim", 0), &photos["ssim"], 1e-5);
    // 128 pixels have no five scales.
    assert!(table.rows[0][table.column("ms_ssim").unwrap()].is_null());
    let count = 3 * 181 * 201;
    let own: Vec<f32> = formula("c", count, 0.5).iter().map(|x| x + 0.5).collect();
    let change = formula("d", count, 0.1);
    let other = own
        .iter()
        .zip(&change)
        .map(|(x, d)| (f64::from(*x) + f64::from(*d)).clamp(0.0, 1.0) as f32);
    let picture = |values: Vec<f32>| {
        let rgb = Tensor::from_vec(values, (1, 3, 181, 201), &Device::Cpu).unwrap();
        Arc::new(Image::new(rgb, None).unwrap())
    };
    let table = errors(&picture(own.clone()), &picture(other.collect()));
    for (column, value) in numbers["errors"]["formula"].as_object().unwrap() {
        near(cell(&table, column, 0), value, 1e-5);
    }
}

/// The teddy cut out and laid on grey, at a place of a larger picture; and where it is.
fn placed(left: usize, top: usize, inverted: bool) -> (Arc<Image>, Arc<Mask>) {
    const SIDE: usize = 192;
    let (photo, mask) = (photo(1), photo_mask(1));
    let rgb = photo.rgb.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let inside = mask.values().unwrap();
    let mut planes = vec![0.5; 3 * SIDE * SIDE];
    let mut laid = vec![0.0; SIDE * SIDE];
    for at in (0..128 * 128).filter(|at| inside[*at] >= 0.5) {
        let place = (at / 128 + top) * SIDE + at % 128 + left;
        laid[place] = 1.0;
        for channel in 0..3 {
            let value = rgb[channel * 128 * 128 + at];
            planes[channel * SIDE * SIDE + place] = if inverted { 1.0 - value } else { value };
        }
    }
    let rgb = Tensor::from_vec(planes, (1, 3, SIDE, SIDE), &Device::Cpu).unwrap();
    let image = Arc::new(Image::new(rgb, None).unwrap());
    let mask = Mask::from_values(1, SIDE, SIDE, laid).unwrap();
    (image, Arc::new(mask))
}

#[test]
fn what_did_not_change_does_not_move_a_number_and_what_did_moves_its_own() {
    let (here, here_mask) = placed(8, 16, false);
    let (there, there_mask) = placed(40, 32, false);
    let (other, other_mask) = placed(8, 16, true);

    // Equal pictures.
    assert!((cell(&looks(&here, &here_mask, &[1]), "look", 0) - 1.0).abs() < 1e-6);
    let twice = layouts(&mask_batch(&[here_mask.clone(), here_mask.clone()]));
    for column in [
        "layout",
        "centre_spread",
        "area_spread",
        "aspect_spread",
        "empty",
    ] {
        assert_eq!(cell(&twice, column, 0), 0.0, "{column}");
    }
    let same = errors(&here, &here);
    assert!(same.rows[0][same.column("psnr").unwrap()].is_null());
    assert!((cell(&same, "ssim", 0) - 1.0).abs() < 1e-9);

    // A shifted subject: its place moves, and neither its colours nor its size do.
    let shifted = layouts(&mask_batch(&[here_mask.clone(), there_mask.clone()]));
    assert!(cell(&shifted, "layout", 0) > 0.3);
    assert!(cell(&shifted, "centre_spread", 0) > 0.2);
    for column in ["area_spread", "aspect_spread"] {
        assert_eq!(cell(&shifted, column, 0), 0.0, "{column}");
    }
    assert!((cell(&looks(&there, &there_mask, &[1]), "look", 0) - 1.0).abs() < 1e-6);

    // A recoloured subject: its look falls, and nothing of its layout moves.
    assert!(cell(&looks(&other, &other_mask, &[1]), "look", 0) < 0.3);
    let recoloured = layouts(&mask_batch(&[here_mask.clone(), other_mask]));
    assert_eq!(cell(&recoloured, "layout", 0), 0.0);

    // One of several drawn as often as there are pictures.
    let five = lite0(&photos());
    let rows: Vec<Tensor> = (0..5).map(|_| five.rows.narrow(0, 1, 1).unwrap()).collect();
    let one = Features::new(Tensor::cat(&rows, 0).unwrap(), five.space.clone()).unwrap();
    let (one, five) = (spread(one), spread((*five).clone()));
    assert!(cell(&one, "diversity", 0).abs() < 1e-9);
    assert!((cell(&one, "vendi", 0) - 1.0).abs() < 1e-6);
    assert!(cell(&five, "diversity", 0) > 0.02 && cell(&five, "vendi", 0) > 1.05);
}

#[test]
fn a_picture_is_most_like_itself() {
    let photos = lite0(&photos());
    let like = |params: Json, to: Option<Arc<Features>>| {
        let inputs = similarity::Inputs {
            features: photos.clone(),
            to,
        };
        run::<Similarity>(params, inputs)
    };
    let made = like(
        json!({"pairs": true, "name": "identity"}),
        Some(photos.clone()),
    )
    .unwrap();
    for row in 0..5 {
        assert!((cell(&made.table, "identity", row) - 1.0).abs() < 1e-6);
    }
    let made = like(json!({}), None).unwrap();
    assert_eq!((made.table.rows.len(), made.pairs.rows.len()), (5, 20));
    assert!((0..5).all(|row| cell(&made.table, "similarity", row) < 0.999));
    let other = Features::new(photos.rows.clone(), some_space()).unwrap();
    let error = like(json!({}), Some(Arc::new(other))).err().unwrap();
    assert!(error.to_string().contains("cannot be compared"), "{error}");
    let one = photos.rows.narrow(0, 0, 1).unwrap();
    let one = Arc::new(Features::new(one, photos.space.clone()).unwrap());
    let error = like(json!({"pairs": true}), Some(one)).err().unwrap();
    assert!(error.to_string().contains("paired"), "{error}");
}

#[test]
fn a_mask_without_a_subject_gives_no_number() {
    let empty = Arc::new(Mask::from_values(1, 128, 128, vec![0.0; 128 * 128]).unwrap());
    let table = looks(&photo(1), &empty, &[1]);
    assert!(table.rows[0][1].is_null());
    let table = layouts(&mask_batch(&[empty.clone(), photo_mask(1), empty]));
    assert_eq!(cell(&table, "empty", 0), 2.0);
    // Of three pairs two are wholly unlike, and the empty ones are alike.
    assert!((cell(&table, "layout", 0) - 2.0 / 3.0).abs() < 1e-12);
    assert!(table.rows[0][table.column("centre_spread").unwrap()].is_null());
}

// ---- faults ----------------------------------------------------------------------------------------------------------

#[track_caller]
fn refused<N: Node>(params: Json, links: &[(&'static str, usize)], words: &str) {
    let node: N = node(params);
    let known = |(port, count): &(&'static str, usize)| (*port, vec![Known::Unknown; *count]);
    let types = Types::from_known(links.iter().map(known).collect());
    let faults = node.check(&types, &Disk).map(drop).unwrap_err();
    assert!(faults[0].message.contains(words), "{:?}", faults[0]);
    assert!(faults[0].help.is_some(), "{:?}", faults[0]);
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_runs() {
    let scorer = root().join("models/world-scorer.safetensors");
    let lite0 = root().join("models/lite0.safetensors");
    let one = &[("features", 1)];
    refused::<ImageFeatures>(
        json!({"path": "nowhere.safetensors"}),
        &[("image", 1)],
        "no file",
    );
    refused::<ImageFeatures>(
        json!({"path": scorer}),
        &[("image", 1)],
        "not EfficientNet-Lite0",
    );
    refused::<TextFeatures>(json!({"path": lite0, "texts": ["a"]}), &[], "a single file");
    refused::<TextFeatures>(json!({"path": lite0, "texts": []}), &[], "no texts");
    refused::<Similarity>(json!({"pairs": true}), one, "nothing is linked");
    refused::<Similarity>(json!({"name": "seed"}), one, "cannot be called");
    refused::<PromptScore>(json!({}), one, "nothing says");
    refused::<PromptScore>(json!({"scorer": scorer}), one, "needs the `prompt`");
    let unknown = json!({"scorer": scorer, "prompt": "a sofa"});
    refused::<PromptScore>(unknown, one, "names no class");
    let file = json!({"scorer": lite0, "prompt": "a car"});
    refused::<PromptScore>(file, one, "head");
    refused::<Scores>(json!({}), &[], "no tables");
    refused::<MakeReport>(json!({}), &[], "no tables");
    refused::<MakeReport>(json!({}), &[("tables", 2), ("images", 1)], "1 batches");
}

#[test]
fn damaged_configurations_are_refused_in_words() {
    for (config, words) in [
        (json!({}), "model_type"),
        (
            json!({"model_type": "vit", "hidden_size": -3}),
            "whole number",
        ),
        (
            json!({"model_type": "vit", "hidden_size": 10_000_000}),
            "expected 1 to",
        ),
        (
            json!({"model_type": "vit", "num_attention_heads": 7}),
            "multiple",
        ),
        (
            json!({"model_type": "dinov2", "use_swiglu_ffn": true}),
            "giant",
        ),
        (json!({"model_type": "clip"}), "multiple"),
    ] {
        match VitConfig::read(&config) {
            Err(message) => assert!(message.contains(words), "{config}: {message}"),
            // CLIP's defaults are sound.
            Ok(_) => assert_eq!(config["model_type"], "clip"),
        }
    }
}

// ---- reports ---------------------------------------------------------------------------------------------------------

/// What `scores` makes of numbers, one a seed.
fn scored(subject: &str, method: &str, prompt: &str, looks: &[f64]) -> Arc<Table> {
    let mut table = Table::new(["image", "look"]);
    for (i, value) in looks.iter().enumerate() {
        table.push(vec![i.into(), json!(value)]).unwrap();
    }
    table.define("look", "what <it> is");
    let mut whole = Table::new(["layout"]);
    whole.push(vec![json!(0.5)]).unwrap();
    let params = json!({"subject": subject, "method": method, "prompt": prompt, "seed": 7});
    let inputs = scores::Inputs {
        tables: vec![Arc::new(table), Arc::new(whole)],
    };
    run::<Scores>(params, inputs).unwrap().table
}

fn reported(params: Json, tables: Vec<Arc<Table>>, images: Vec<Arc<Image>>) -> (Report, Table) {
    let made = run::<MakeReport>(params, report::Inputs { tables, images }).unwrap();
    ((*made.report).clone(), (*made.table).clone())
}

#[test]
fn scores_put_tables_side_by_side() {
    let table = scored("teddy", "vanilla", "p", &[0.25, 0.75]);
    assert_eq!(
        table.columns,
        ["subject", "method", "prompt", "seed", "look", "layout"]
    );
    assert_eq!(table.rows[1][3], 8);
    assert_eq!(cell(&table, "layout", 1), 0.5);
    let twice = scores::Inputs {
        tables: vec![table.clone(), table.clone()],
    };
    let error = run::<Scores>(json!({}), twice).err().unwrap();
    assert!(
        error.to_string().contains("is not of")
            || error.to_string().contains("twice")
            || error.to_string().contains("two of"),
        "{error}"
    );
}

#[test]
fn a_report_has_means_over_units_and_paired_claims() {
    // Two prompts; the second has more pictures, and counts no more for it.
    let tables = vec![
        scored("teddy", "a", "p", &[0.2, 0.4]),
        scored("teddy", "a", "q", &[0.9, 0.9, 0.9, 0.9]),
        scored("teddy", "b", "p", &[0.4, 0.8]),
        scored("teddy", "b", "q", &[0.9]),
    ];
    let claims = json!([
        {"column": "look", "method": "b", "to": "a", "at_least": 1.0},
        {"column": "look", "method": "a", "to": "b", "at_least": 2.0},
        {"column": "look", "method": "b", "to": "a", "at_least": 1.3},
    ]);
    let (report, table) = reported(
        json!({"claims": claims, "title": "T <x>"}),
        tables.clone(),
        vec![],
    );
    let all = |method: &str| {
        let row = table
            .rows
            .iter()
            .position(|row| row[0] == "all" && row[1] == method);
        row.unwrap()
    };
    assert!((cell(&table, "look", all("a")) - 0.6).abs() < 1e-12);
    assert!((cell(&table, "look", all("b")) - 0.75).abs() < 1e-12);
    assert!((cell(&table, "look_low", all("a")) - 0.3).abs() < 1e-12);
    assert!((cell(&table, "look_high", all("a")) - 0.9).abs() < 1e-12);
    assert_eq!(cell(&table, "pictures", all("a")), 6.0);
    // Paired: of q the one seed that both have. Over both prompts b is 0.75, a 0.6.
    let page = &report.markdown;
    assert!(
        page.contains("| look: b at least 100.0 % of a | 125.0 % [100.0 %, 200.0 %] | holds |"),
        "{page}"
    );
    assert!(page.contains("refuted"), "{page}");
    assert!(page.contains("fails in the mean"), "{page}");
    assert!(
        page.contains("| b | 0.150 [0.000, 0.300] | 0.000 [0.000, 0.000] |"),
        "{page}"
    );
    assert!(page.contains("what \\<it\\> is"), "{page}");
    assert!(report.html.contains("<title>T &lt;x&gt;</title>"));
    assert!(!report.html.contains("<it>"));
    // Equal tables, equal bytes.
    let again = reported(json!({"claims": claims, "title": "T <x>"}), tables, vec![]).0;
    assert_eq!(report, again);
    let kept = report.to_disk().unwrap().unwrap();
    assert_eq!(Report::from_disk(&kept).unwrap(), report);
}

#[test]
fn the_worst_pictures_stand_first_with_their_numbers() {
    let tables = vec![
        scored("teddy", "a", "p & q", &[0.6, 0.1]),
        scored("owl", "a", "p & q", &[0.4, 0.9]),
    ];
    let images = vec![batch(&[photo(1), photo(2)]), batch(&[photo(3), photo(4)])];
    let (report, _) = reported(json!({"pictures": 3}), tables.clone(), images);
    let seen: Vec<usize> = ["0.100", "0.400", "0.600"]
        .iter()
        .map(|value| report.html.find(&format!("<td>{value}</td>")).unwrap())
        .collect();
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(!report.html.contains("<td>0.900</td>"));
    // The plot stands above them.
    assert_eq!(report.html.matches("data:image/png;base64,").count(), 4);
    assert!(report.html.contains("p &amp; q"));
    // Nothing is read from elsewhere.
    assert!(!report.html.contains("http://") && !report.html.contains("https://"));
    // Two subjects are the units, and each has a table of its own.
    assert!(report.markdown.contains("Means over 2 subjects"));
    assert!(report.markdown.contains("## Subject: owl"));
    let inputs = report::Inputs {
        tables,
        images: vec![photo(1), photo(2)],
    };
    let error = run::<MakeReport>(json!({}), inputs).err().unwrap();
    assert!(error.to_string().contains("is of 1 pictures"), "{error}");
}

// ---- sweeps ----------------------------------------------------------------------------------------------------------

/// A workflow that measures a photo against another, and a sweep of two methods with this report.
fn swept(report: &str) -> String {
    let at = |name: &str| {
        root()
            .join("references/teddy")
            .join(name)
            .display()
            .to_string()
    };
    format!(
        "schema: retouch/v1\nname: t\nparams:\n  method: {{type: string, default: a}}\n  photo: {{type: path, default: '{}'}}\nnodes:\n  photo: {{op: load_image, path: $params.photo}}\n  \
         mask: {{op: load_mask, path: '{}'}}\n  other: {{op: load_image, path: '{}'}}\n  \
         look: {{op: look, image: $other, mask: $mask, references: $photo, reference_masks: $mask}}\n  \
         scores: {{op: scores, subject: s, method: '{{method}}', prompt: p, seed: 1, tables: [$look]}}\n\
         outputs:\n  scores: {{value: $scores}}\n  picture: {{value: $photo}}\n\
         sweep:\n  matrix: {{method: [a, b]}}\n  report: {report}\n",
        at("01.png"),
        at("01-mask.png"),
        at("02.png"),
    )
}

fn engine() -> Engine {
    Engine::new(retouch_nodes::registry()).with_environment(Arc::new(retouch_nodes::Runtime::cpu()))
}

#[test]
fn a_sweep_makes_one_report_of_all_its_cells_and_the_same_bytes_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.yaml");
    let saves = "['{workflow}/r.html', '{workflow}/r.md', '{workflow}/r.csv', '{workflow}/r.png']";
    let report = format!("{{tables: [scores], images: picture, title: T, save: {saves}}}");
    std::fs::write(&path, swept(&report)).unwrap();
    let engine = engine();
    let sweep = engine.load_sweep(&path, &Settings::default()).unwrap();
    let shared: Vec<&str> = sweep.shared_outputs().collect();
    assert_eq!(
        shared,
        ["report.html", "report.md", "report.csv", "report.png"]
    );
    let run = |out: &Path, without: &[usize]| {
        let without = without.iter().copied().collect();
        let plan = engine.plan_sweep(&sweep, &[], &without).unwrap();
        let options = RunOptions {
            saver: Some(Arc::new(Saver::new(out, Exists::Fail))),
            ..RunOptions::default()
        };
        let cancel = Cancel::new();
        engine
            .run(&plan.plan, &Recorder::new(), &cancel, &options)
            .unwrap();
        ["html", "md", "csv", "png"]
            .map(|ending| std::fs::read(out.join(format!("t/r.{ending}"))).unwrap())
    };
    let first = run(&folder.path().join("one"), &[]);
    let text = String::from_utf8(first[1].clone()).unwrap();
    assert!(text.contains("2 pictures: 2 methods, 1 subject"), "{text}");
    assert_eq!(first, run(&folder.path().join("two"), &[]));
    // Without a cell that failed the report is of the others.
    let rest = run(&folder.path().join("three"), &[0]);
    let text = String::from_utf8(rest[1].clone()).unwrap();
    assert!(text.contains("1 pictures: 1 method, 1 subject"), "{text}");
    // One part can be asked for by name, and nothing else is saved.
    let plan = engine.plan_sweep(&sweep, &["report.csv".to_owned()], &Default::default());
    let plan = plan.unwrap();
    assert_eq!(plan.outputs, [(None, "report.csv".to_owned())]);
}

/// A copy of the shipped workflows with what the protocols need beside them: folders of photos, lists of prompts that are not in the
/// box, and networks.
fn protocols(folder: &Path) -> Vec<String> {
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
    };
    let own = folder.join("workflows/protocols");
    copy(&root().join("workflows"), &folder.join("workflows"));
    copy(&root().join("workflows/protocols"), &own);
    let prompts = |count: usize, subject: &str| -> String {
        (0..count)
            .map(|i| format!("a {subject} in place {i}\n"))
            .collect()
    };
    for (name, count) in [("", 31), ("_challenging", 24)] {
        let inputs = folder.join("datasets/dreammatcher/inputs");
        std::fs::create_dir_all(&inputs).unwrap();
        for kind in ["live", "nonlive"] {
            let file = inputs.join(format!("prompts_{kind}_objects{name}.txt"));
            std::fs::write(file, prompts(count, "{}")).unwrap();
        }
    }
    for (number, subject) in [("00", "kitten"), ("01", "dog")] {
        let captions = folder.join("datasets/dreambench-plus/captions/animal");
        std::fs::create_dir_all(&captions).unwrap();
        let text = format!("{subject}\n{}", prompts(9, subject));
        std::fs::write(captions.join(format!("{number}.txt")), text).unwrap();
    }
    // The folders of photos are those that the files name.
    for entry in std::fs::read_dir(&own).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let named = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("photos: "));
        for photos in named.flat_map(|list| list.split(|c| "[], ".contains(c))) {
            let photos = photos.trim();
            if photos.contains('/') {
                let (from, to) = (root().join("references/teddy/01.png"), own.join(photos));
                std::fs::create_dir_all(&to).unwrap();
                std::fs::copy(from, to.join("01.png")).unwrap();
            }
        }
    }
    let networks = ["clip", "dino", "lpips"].map(|name| folder.join(name));
    for folder in &networks {
        std::fs::create_dir(folder).unwrap();
    }
    clip(&networks[0]);
    let config = json!({
        "model_type": "vit", "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2,
        "intermediate_size": 1536, "patch_size": 16, "image_size": 224,
    });
    std::fs::write(networks[1].join("config.json"), config.to_string()).unwrap();
    let kernel = for_device(&Device::Cpu);
    let config = VitConfig::read(&config).unwrap();
    let asked = Weights::asked(|weights| Vit::load(&config, weights, &*kernel).map(drop)).unwrap();
    write(&networks[1].join("model.safetensors"), &asked);
    let lpips = lpips_files(Backbone::AlexNet, &networks[2]);
    vec![
        format!("vanilla={}", root().join("models/world").display()),
        format!("clip={}", networks[0].display()),
        format!("dino={}", networks[1].display()),
        format!("lpips={}", lpips["path"].as_str().unwrap()),
        format!("lpips_linear={}", lpips["linear"].as_str().unwrap()),
    ]
}

/// The settings of a protocol: what its workflow has of `all`, and more.
fn settings_of(name: &str, all: &[String], more: &[&str]) -> Settings {
    let fits = |set: &String| match set.split('=').next().unwrap() {
        "clip" => !name.starts_with("dreambooth-"),
        "dino" => !name.contains("diversity"),
        "lpips" | "lpips_linear" => name.contains("diversity"),
        "before" | "after" => !name.contains("prior"),
        _ => true,
    };
    let more = more.iter().map(|set| (*set).to_owned());
    Settings {
        set: all.iter().cloned().chain(more).filter(fits).collect(),
        ..Settings::default()
    }
}

#[test]
fn protocols_have_the_cells_that_their_papers_have() {
    let folder = tempfile::tempdir().unwrap();
    let all = protocols(folder.path());
    let engine = engine();
    let mut known = HashSet::new();
    for (name, cells, prompt) in [
        ("dreambooth", 30 * 25, "a cube shaped vase"),
        ("dreambooth-prior", 30, "dog"),
        ("dreambooth-diversity", 30 * 25, "a dog in a chef outfit"),
        ("dreammatcher", 16 * 31, "a teddy bear in place 30"),
        ("dreammatcher-challenging", 16 * 24, "a cat in place 23"),
        ("dreambench-plus", 2 * 9, "a kitten in place 8"),
    ] {
        let file = folder
            .path()
            .join(format!("workflows/protocols/{name}.yaml"));
        known.insert(file.clone());
        let sweep = engine.load_sweep(&file, &settings_of(name, &all, &["size=64"]));
        let sweep = sweep.unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        assert_eq!(sweep.cells.len(), cells, "{name}");
        let prompts: HashSet<String> = (sweep.cells.iter())
            .map(|cell| {
                let of = |param: &str| {
                    let value = cell.values.get(param).and_then(Json::as_str);
                    value.unwrap_or_default().to_owned()
                };
                format!("{}{}{}", of("before"), of("class"), of("after"))
            })
            .collect();
        assert!(prompts.contains(prompt), "{name}: {prompts:?}");
    }
    // None that ships is left out.
    for entry in std::fs::read_dir(root().join("workflows/protocols")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let here = folder
            .path()
            .join("workflows/protocols")
            .join(path.file_name().unwrap());
        assert_eq!(
            text.contains("\nsweep:"),
            known.contains(&here),
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_cell_of_a_protocol_is_drawn_by_all_methods_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let all = protocols(folder.path());
    let engine = engine();
    let small = [
        "size=64",
        "steps=3",
        "train_steps=1",
        "batch=2",
        "subject=duck_toy",
        "class=toy",
        "before=a red ",
        "after=",
    ];
    let photos = folder.path().join("datasets/dreambooth/dataset/duck_toy");
    let photos = format!("photos={}", photos.display());
    let small: Vec<&str> = small.into_iter().chain([photos.as_str()]).collect();
    for (name, columns, pictures) in [
        (
            "dreambooth",
            "dino,clip_i,prompt_score,diversity,vendi",
            "10 pictures: 5 methods",
        ),
        ("dreambooth-prior", "pres", "2 pictures: 1 method"),
        ("dreambooth-diversity", "div", "2 pictures: 1 method"),
    ] {
        let file = folder
            .path()
            .join(format!("workflows/protocols/{name}.yaml"));
        let sweep = engine
            .load_sweep(&file, &settings_of(name, &all, &small))
            .unwrap();
        let plan = engine.plan_sweep(&sweep, &[], &Default::default()).unwrap();
        let options = RunOptions {
            saver: Some(Arc::new(Saver::new(
                folder.path().join("out"),
                Exists::Fail,
            ))),
            ..RunOptions::default()
        };
        engine
            .run(&plan.plan, &Recorder::new(), &Cancel::new(), &options)
            .unwrap();
        let read = |ending: &str| {
            let file = format!("out/{name}/report.{ending}");
            std::fs::read_to_string(folder.path().join(file)).unwrap()
        };
        let markdown = read("md");
        assert!(markdown.contains(pictures), "{markdown}");
        // Each column has a number in each row.
        let csv = read("csv");
        let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
        for column in columns.split(',') {
            assert!(
                head.iter()
                    .any(|name| name.split(' ').next() == Some(column)),
                "{column}: {csv}"
            );
        }
        assert!(!csv.contains(",,"), "{csv}");
    }
}

#[test]
fn what_is_wrong_with_the_report_of_a_sweep_is_said_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.yaml");
    for (report, words) in [
        ("{tables: [score], save: r.html}", "no output `score`"),
        (
            "{tables: [picture], save: r.html}",
            "`picture` is not of type table",
        ),
        (
            "{tables: [scores], images: scores, save: r.html}",
            "`scores` is not of type image",
        ),
        (
            "{tables: [scores], save: r.pdf}",
            "cannot be saved as `r.pdf`",
        ),
        (
            "{tables: [scores], save: [r.html, s.html]}",
            "saved as .html twice",
        ),
        ("{tables: [scores]}", "is not saved"),
        ("{save: r.html}", "no `tables`"),
        (
            "{tables: [scores], save: 'r-{method}.html'}",
            "varies in the sweep",
        ),
        (
            "{tables: [scores], save: r.html, resamples: 5}",
            "resamples",
        ),
        ("{tables: [scores], save: r.html, colour: red}", "colour"),
    ] {
        std::fs::write(&path, swept(report)).unwrap();
        let problems = engine()
            .load_sweep(&path, &Settings::default())
            .unwrap_err();
        let texts: Vec<String> = problems.iter().map(|p| p.message().to_owned()).collect();
        assert!(
            texts.iter().any(|text| text.contains(words)),
            "{report}: {texts:?}"
        );
    }
}
