//! Headers of published checkpoints (tests/oracle/make_headers.py): names, shapes and types of real files, without their numbers. Each
//! is what it is, predicts what it predicts, and says so on one screen.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::data;
use retouch_diffusion::checkpoint::inspect::{Kind, Report, Request, inspect};
use retouch_graph::{Digest, FileStamp, Files};
use serde_json::{Value as Json, json};

type Shapes = BTreeMap<String, Vec<u64>>;

fn tables() -> BTreeMap<String, Shapes> {
    let file = std::fs::File::open(data().join("headers.json.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Files of which only the beginning is there: what is read of a header is, and of the data only the length.
#[derive(Default)]
struct Hollow(HashMap<PathBuf, (Vec<u8>, u64)>);

impl Files for Hollow {
    fn read(&self, path: &Path) -> io::Result<Arc<[u8]>> {
        let (bytes, length) = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        assert_eq!(
            bytes.len() as u64,
            *length,
            "the data of {} are read",
            path.display()
        );
        Ok(bytes.clone().into())
    }
    fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
        let (bytes, all) = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok((bytes[..length.min(bytes.len())].to_vec(), *all))
    }
    fn digest(&self, _: &Path) -> io::Result<Digest> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sha256(&self, _: &Path) -> io::Result<Digest> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn doubt(&self) {}
    fn stamp(&self, _: &Path) -> Option<FileStamp> {
        None
    }
    fn is_file(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }
    fn is_dir(&self, path: &Path) -> bool {
        !self.is_file(path) && self.0.keys().any(|file| file.starts_with(path))
    }
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Ok(retouch_graph::files::piece(&self.read(path)?, offset, length).to_vec())
    }
    fn entries(&self, _: &Path) -> io::Result<Vec<retouch_graph::FolderEntry>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&self) {}
}

impl retouch_graph::LocalFiles for Hollow {}

impl Hollow {
    fn text(mut self, path: &str, text: &Json) -> Self {
        let bytes = text.to_string().into_bytes();
        let length = bytes.len() as u64;
        self.0.insert(path.into(), (bytes, length));
        self
    }

    /// A safetensors file of these tensors, of a type each, and metadata.
    fn weights(
        mut self,
        path: &str,
        tensors: &Shapes,
        dtype: &str,
        metadata: &[(&str, &str)],
    ) -> Self {
        let (mut header, mut offset) = (serde_json::Map::new(), 0);
        for (name, shape) in tensors {
            let (dtype, size) = match name.as_str() {
                name if name.ends_with("position_ids") => ("I64", 8),
                name if name.ends_with("num_updates") => ("I32", 4),
                _ if dtype == "F16" => (dtype, 2),
                _ => (dtype, 4),
            };
            let bytes = shape.iter().product::<u64>() * size;
            let entry =
                json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes]});
            header.insert(name.clone(), entry);
            offset += bytes;
        }
        let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
        header.insert("__metadata__".into(), json!(metadata));
        let header = Json::Object(header).to_string().into_bytes();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        let length = bytes.len() as u64 + offset;
        self.0.insert(path.into(), (bytes, length));
        self
    }
}

/// A single file of parts: the U-Net of a name, the VAE and the text encoders of the family, and more.
struct Single {
    unet: &'static str,
    texts: &'static [(&'static str, &'static str)],
    more: &'static [&'static str],
    empty: &'static [&'static str],
}

const SD1: &[(&str, &str)] = &[("cond_stage_model.transformer.", "text/clip-l")];
const SD2: &[(&str, &str)] = &[("cond_stage_model.model.", "text/open-clip-h")];
const SDXL: &[(&str, &str)] = &[
    ("conditioner.embedders.0.transformer.", "text/clip-l"),
    ("conditioner.embedders.1.model.", "text/open-clip-g"),
];

impl Single {
    fn of(unet: &'static str, texts: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            unet,
            texts,
            more: &[],
            empty: &[],
        }
    }

    fn shapes(&self, tables: &BTreeMap<String, Shapes>) -> Shapes {
        let mut all = tables[&format!("unet/{}", self.unet)].clone();
        all.extend(tables["vae"].clone());
        for (prefix, name) in self.texts {
            let own = tables[*name].iter();
            all.extend(own.map(|(name, shape)| (format!("{prefix}{name}"), shape.clone())));
        }
        for name in self.more {
            all.extend(tables[*name].clone());
        }
        all.extend(self.empty.iter().map(|name| ((*name).to_owned(), vec![0])));
        all
    }
}

/// What is due of a file: its family, what it predicts and from what, and the words of its notes.
struct Due {
    family: &'static str,
    prediction: &'static str,
    from: &'static str,
    notes: &'static [&'static str],
}

fn report(files: &Hollow, path: &str) -> Result<Report, String> {
    let request = Request {
        path: path.into(),
        ..Request::default()
    };
    inspect(&request, files).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        errors.join("; ")
    })
}

#[track_caller]
fn check(name: &str, report: &Report, due: &Due) {
    println!("{name}: {report:?}");
    assert_eq!(report.kind, Kind::Model, "{name}: {:?}", report.notes);
    assert_eq!(report.family.as_deref(), Some(due.family), "{name}");
    assert_eq!(report.prediction.as_deref(), Some(due.prediction), "{name}");
    let from = report.prediction_from.as_deref().unwrap();
    assert!(
        from.contains(due.from),
        "{name}: {:?} in {from:?}",
        due.from
    );
    let notes = report.notes.join("\n");
    for word in due.notes {
        assert!(notes.contains(word), "{name}: {word:?} in {notes}");
    }
    assert!(!notes.contains("unknown, such as"), "{name}: {notes}");
    // One screen: heading, parts with their configurations, sites, metadata, notes.
    assert!(
        report.notes.len() <= 5 && report.metadata.len() <= 8,
        "{name}: {report:?}"
    );
}

const SPEC_XL: &[(&str, &str)] = &[
    ("modelspec.architecture", "stable-diffusion-xl-v1-base"),
    ("modelspec.prediction_type", "epsilon"),
    ("modelspec.title", "Stable Diffusion XL 1.0 Base"),
];

#[test]
fn single_files_of_published_models_are_what_they_are() {
    let tables = tables();
    let published = "the published configuration";
    let sd1 = |notes| Due {
        family: "Stable Diffusion 1",
        prediction: "epsilon",
        from: published,
        notes,
    };
    let sd2 = |prediction, from, notes| Due {
        family: "Stable Diffusion 2",
        prediction,
        from,
        notes,
    };
    let xl = |prediction, from, notes| Due {
        family: "Stable Diffusion XL",
        prediction,
        from,
        notes,
    };
    let parts = |single: Single, more| Single { more, ..single };
    let marked = |single: Single, empty| Single { empty, ..single };
    let ema: &[&str] = &["ema/sd1", "schedule"];
    type Case = (
        &'static str,
        Single,
        &'static str,
        &'static [(&'static str, &'static str)],
        Due,
    );
    let cases: Vec<Case> = vec![
        (
            "sd-v1-4",
            parts(Single::of("sd1", SD1), &["schedule"]),
            "F32",
            &[],
            sd1(&["13 schedules of the training", "1 position ids"]),
        ),
        (
            "v1-5-pruned-emaonly",
            parts(Single::of("sd1", SD1), &["schedule"]),
            "F16",
            &[("format", "pt")],
            sd1(&["those of stable-diffusion-v1-5"]),
        ),
        (
            "v1-5-pruned",
            parts(Single::of("sd1", SD1), ema),
            "F32",
            &[],
            sd1(&["688 averages of the training", "13 schedules"]),
        ),
        (
            "sd-v1-5-inpainting",
            parts(Single::of("sd1-inpainting", SD1), &["schedule"]),
            "F32",
            &[],
            sd1(&[]),
        ),
        (
            "instruct-pix2pix-00-22000",
            parts(
                Single::of("sd1-pix2pix", SD1),
                &["ema/sd1-pix2pix", "schedule"],
            ),
            "F32",
            &[],
            sd1(&[]),
        ),
        (
            "512-base-ema",
            parts(Single::of("sd2", SD2), &["schedule"]),
            "F32",
            &[("global_step", "875000")],
            sd2("epsilon", "training step 875000", &[]),
        ),
        (
            "v2-1_768-ema-pruned",
            parts(Single::of("sd2", SD2), &["schedule"]),
            "F32",
            &[],
            sd2("v_prediction", "assumed", &["give `prediction: epsilon`"]),
        ),
        (
            "v2-1_768-nonema-pruned",
            Single::of("sd2", SD2),
            "F16",
            &[("modelspec.prediction_type", "v")],
            sd2("v_prediction", "`modelspec.prediction_type: v`", &[]),
        ),
        (
            "512-inpainting-ema",
            Single::of("sd2-inpainting", SD2),
            "F32",
            &[("modelspec.prediction_type", "epsilon")],
            sd2("epsilon", "metadata", &[]),
        ),
        (
            "sd_xl_base_1.0",
            Single::of("sdxl", SDXL),
            "F16",
            SPEC_XL,
            xl("epsilon", "`modelspec.prediction_type: epsilon`", &[]),
        ),
        (
            "sd_xl_base_1.0_inpainting_0.1",
            Single::of("sdxl-inpainting", SDXL),
            "F16",
            &[],
            xl("epsilon", published, &[]),
        ),
        (
            "sd_xl_turbo_1.0_fp16",
            Single::of("sdxl", SDXL),
            "F16",
            SPEC_XL,
            xl("epsilon", "metadata", &["Turbo model", "spacing: trailing"]),
        ),
        (
            "sdxl_lightning_4step",
            Single::of("sdxl", SDXL),
            "F16",
            &[],
            xl("epsilon", published, &["Lightning model"]),
        ),
        (
            "SSD-1B-A1111",
            Single::of("ssd-1b", SDXL),
            "F16",
            &[],
            xl("epsilon", published, &["a different shape"]),
        ),
        (
            "bk-sdm-small",
            Single::of("bk-sdm-small", SD1),
            "F16",
            &[],
            sd1(&["a different shape"]),
        ),
        (
            "bk-sdm-tiny",
            Single::of("bk-sdm-tiny", SD1),
            "F16",
            &[],
            sd1(&["a different shape"]),
        ),
        (
            "bk-sdm-base",
            Single::of("bk-sdm-base", SD1),
            "F16",
            &[],
            sd1(&["a different shape"]),
        ),
        (
            "DreamShaper8_LCM",
            Single::of("sd1", SD1),
            "F16",
            &[],
            sd1(&["LCM model"]),
        ),
        (
            "noobaiXL-Vpred-1.0",
            marked(Single::of("sdxl", SDXL), &["v_pred", "ztsnr"]),
            "F16",
            &[],
            xl(
                "v_prediction",
                "marker tensor `v_pred`",
                &["zero terminal SNR"],
            ),
        ),
    ];
    for (name, single, dtype, metadata, due) in cases {
        let path = format!("{name}.safetensors");
        let shapes = single.shapes(&tables);
        let files = Hollow::default().weights(&path, &shapes, dtype, metadata);
        let report = report(&files, &path).unwrap_or_else(|e| panic!("{name}: {e}"));
        check(name, &report, &due);
        // Every tensor of every network is found under its name.
        let count = |part: &str| {
            report
                .parts
                .iter()
                .find(|p| p.name == part)
                .map(|p| p.tensors)
        };
        assert_eq!(
            count("unet"),
            Some(tables[&format!("unet/{}", single.unet)].len()),
            "{name}"
        );
        assert_eq!(count("vae"), Some(tables["vae"].len()), "{name}");
        // transformers' names: without the buffer; query, key and value one by one; of Stable Diffusion 2 one layer less.
        let texts = match single.texts.len() {
            1 if single.texts[0].1 == "text/clip-l" => (Some(196), None),
            1 => (Some(23 * 16 + 4), None),
            _ => (Some(196), Some(tables["folder/text/open-clip-g"].len())),
        };
        assert_eq!(
            (count("text_encoder"), count("text_encoder_2")),
            texts,
            "{name}"
        );
        assert!(
            report
                .parts
                .iter()
                .all(|part| part.dtypes.keys().eq([dtype])),
            "{name}"
        );
        let shown = report.parts[0].configuration.as_ref().unwrap();
        let due = match single.unet {
            unet if unet.ends_with("inpainting") => "an inpainting model",
            unet if unet.ends_with("pix2pix") => "an image-editing model",
            _ => "latents of 4 channels",
        };
        assert!(shown.contains(due), "{name}: {shown}");
    }
}

#[test]
fn what_is_not_built_is_named() {
    let tables = tables();
    let refused = |name: &str, shapes: &Shapes, metadata: &[(&str, &str)]| {
        let path = format!("{name}.safetensors");
        let files = Hollow::default().weights(&path, shapes, "F16", metadata);
        let report = report(&files, &path).unwrap();
        assert_eq!(report.kind, Kind::Tensors);
        report.notes.join("\n")
    };
    let refiner = Single::of(
        "refiner",
        &[("conditioner.embedders.0.model.", "text/open-clip-g")],
    );
    let notes = refused("sd_xl_refiner_1.0", &refiner.shapes(&tables), SPEC_XL);
    assert!(
        notes.contains("is a refiner of Stable Diffusion XL"),
        "{notes}"
    );
    // CosXL and Playground 2.5 count on another schedule.
    for (marker, due) in [
        ("edm_vpred.sigma_max", "as CosXL does"),
        ("edm_mean", "as Playground 2.5 is"),
    ] {
        let mut shapes = Single::of("sdxl", SDXL).shapes(&tables);
        shapes.insert(marker.to_owned(), vec![1]);
        let notes = refused("cosxl", &shapes, &[]);
        assert!(notes.contains(due), "{notes}");
    }
    // Networks that are no checkpoint are known by their names alone.
    for (name, due) in [
        ("control_model.time_embed.0.weight", "it is a ControlNet"),
        (
            "double_blocks.0.img_attn.norm.key_norm.scale",
            "it is a Flux checkpoint",
        ),
        (
            "joint_blocks.0.context_block.adaLN_modulation.1.bias",
            "it is a Stable Diffusion 3 checkpoint",
        ),
    ] {
        let shapes = Shapes::from([(name.to_owned(), vec![4])]);
        let notes = refused("other", &shapes, &[]);
        assert!(notes.contains(due), "{notes}");
    }
    // What is missing, and how to give it.
    let mut shapes = Single::of("sd1", SD1).shapes(&tables);
    shapes.retain(|name, _| name.starts_with("model.diffusion_model."));
    let notes = refused("unet-alone", &shapes, &[]);
    for due in [
        "holds no VAE: name one by `vae: FOLDER`",
        "holds no text encoder: name one by `text_encoder: FOLDER`",
    ] {
        assert!(notes.contains(due), "{notes}");
    }
    // A name that no network has is said.
    let mut shapes = Single::of("sd1", SD1).shapes(&tables);
    shapes.insert("something.else".to_owned(), vec![3]);
    let files = Hollow::default().weights("x.safetensors", &shapes, "F16", &[]);
    let notes = report(&files, "x.safetensors").unwrap().notes.join("\n");
    assert!(
        notes.contains("1 unknown, such as `something.else`"),
        "{notes}"
    );
}

/// A folder: the configurations that shape its networks, written anew, and the headers of its weights.
fn folder(unet: &str, config: &Json, scheduler: Option<Json>, two: bool) -> Hollow {
    let tables = tables();
    let clip = |hidden: usize,
                inner: usize,
                heads: usize,
                layers: usize,
                act: &str,
                projection: usize| {
        json!({"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads, "num_hidden_layers": layers, "hidden_act": act,
               "projection_dim": projection, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 2})
    };
    let vae = json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"], "norm_num_groups": 32
    });
    let mut files = Hollow::default()
        .text("model/unet/config.json", config)
        .weights(
            "model/unet/diffusion_pytorch_model.safetensors",
            &tables[&format!("folder/unet/{unet}")],
            "F16",
            &[],
        )
        .text(
            "model/text_encoder/config.json",
            &clip(768, 3072, 12, 12, "quick_gelu", 768),
        )
        .weights(
            "model/text_encoder/model.safetensors",
            &tables["folder/text/clip-l"],
            "F16",
            &[],
        )
        .text("model/vae/config.json", &vae)
        .weights(
            "model/vae/diffusion_pytorch_model.safetensors",
            &tables["folder/vae"],
            "F16",
            &[],
        );
    if two {
        files = files
            .text(
                "model/text_encoder_2/config.json",
                &clip(1280, 5120, 20, 32, "gelu", 1280),
            )
            .weights(
                "model/text_encoder_2/model.safetensors",
                &tables["folder/text/open-clip-g"],
                "F16",
                &[],
            );
    }
    match scheduler {
        Some(scheduler) => files.text("model/scheduler/scheduler_config.json", &scheduler),
        None => files,
    }
}

fn sd1_unet(changes: Json) -> Json {
    let mut config = json!({
        "in_channels": 4, "out_channels": 4, "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
        "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
    });
    let changes = changes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(changes);
    config
}

fn xl_unet(changes: Json) -> Json {
    let mut config = json!({
        "in_channels": 4, "out_channels": 4, "sample_size": 128, "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
        "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    });
    let changes = changes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(changes);
    config
}

#[test]
fn folders_of_published_models_are_what_they_are() {
    let euler = json!({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                       "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1});
    let ssd = xl_unet(
        json!({"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [2, 2], [4, 4]],
                             "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]}),
    );
    let xl = |notes| Due {
        family: "Stable Diffusion XL",
        prediction: "epsilon",
        from: "scheduler_config.json",
        notes,
    };
    for (name, config, due) in [
        (
            "ssd-1b",
            ssd,
            xl(&["CLIP's vocabulary, which is built in, is used"]),
        ),
        (
            "sdxl-inpainting",
            xl_unet(json!({"in_channels": 9})),
            xl(&[]),
        ),
    ] {
        let files = folder(name, &config, Some(euler.clone()), true);
        check(name, &report(&files, "model").unwrap(), &due);
    }
    let small = sd1_unet(json!({"layers_per_block": 1, "mid_block_type": null}));
    let due = Due {
        family: "Stable Diffusion 1",
        prediction: "epsilon",
        from: "the published configuration, stable-diffusion-v1-5",
        notes: &[
            "the folder has no scheduler/: that of stable-diffusion-v1-5 is used (PNDMScheduler)",
            "the folder has no tokenizer/",
        ],
    };
    check(
        "bk-sdm-small",
        &report(&folder("bk-sdm-small", &small, None, false), "model").unwrap(),
        &due,
    );
    // Playground 2.5 has the networks of Stable Diffusion XL, and another schedule.
    let edm = json!({"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon", "sigma_data": 0.5});
    let error = report(
        &folder(
            "sdxl-inpainting",
            &xl_unet(json!({"in_channels": 9})),
            Some(edm),
            true,
        ),
        "model",
    )
    .unwrap_err();
    assert!(
        error.contains("EDM's schedule, as Playground 2.5 has it"),
        "{error}"
    );
    let refiner = folder("sdxl-inpainting", &xl_unet(json!({})), Some(euler), true).text(
        "model/model_index.json",
        &json!({"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": true}),
    );
    let error = report(&refiner, "model").unwrap_err();
    assert!(
        error.contains("is a refiner of Stable Diffusion XL"),
        "{error}"
    );
    // Consistency models that take the guidance as an input are refused by name, not drawn without it.
    let lcm = sd1_unet(json!({"time_cond_proj_dim": 256}));
    let error = report(&folder("lcm", &lcm, None, false), "model").unwrap_err();
    assert!(error.contains("time_cond_proj_dim = 256"), "{error}");
}
