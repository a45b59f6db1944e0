//! Bad checkpoints and bad pictures: refused before sampling begins, with the file and what was expected.

use std::path::{Path, PathBuf};

use retouch_graph::{Code, Problem, Settings};

use crate::support::{Bench, root};

/// A copy of the oracle's tiny model that a test may damage.
struct Copy {
    folder: tempfile::TempDir,
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_tree(&root().join("tests/oracle/data/tiny-sd1"), folder.path());
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.file(name)).unwrap();
        assert!(text.contains(from), "{name} has {from}");
        std::fs::write(self.file(name), text.replace(from, to)).unwrap();
    }

    /// The faults of a workflow that draws with the model.
    fn faults(&self) -> Vec<Problem> {
        let path = self.folder.path().display();
        faults(&format!(
            "schema: retouch/v1\nnodes:\n  base: {{op: load_model, path: '{path}'}}\n  \
             draw: {{op: sample, model: $base, prompt: a cat, steps: 2, seed: 1}}\noutputs:\n  z: {{value: $draw}}\n"
        ))
    }

    /// The one fault, which is at the model's path and speaks of `file`.
    #[track_caller]
    fn fault(&self, file: &str, words: &[&str]) {
        let faults = self.faults();
        let [fault] = faults.as_slice() else {
            panic!("one fault is due: {faults:#?}");
        };
        assert_eq!(fault.line_column(), (3, 32), "{fault:?}");
        assert!(fault.hint().is_some());
        for word in [file].iter().chain(words) {
            assert!(
                fault.message().contains(word),
                "{word:?} in {:?}",
                fault.message()
            );
        }
    }
}

fn faults(yaml: &str) -> Vec<Problem> {
    match Bench::new()
        .engine
        .load_str("test.yaml", yaml, &Settings::default())
    {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().cloned().collect(),
    }
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// Rewrites a safetensors file with its header changed; the data stay.
fn edit_header(file: &Path, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let mut new = (header.len() as u64).to_le_bytes().to_vec();
    new.extend(header);
    new.extend(&bytes[8 + length..]);
    std::fs::write(file, new).unwrap();
}

#[test]
fn a_sound_copy_has_no_fault() {
    assert!(Copy::new().faults().is_empty());
}

#[test]
fn a_missing_file_is_named() {
    for name in [
        UNET,
        "unet/config.json",
        "text_encoder/model.safetensors",
        "vae/config.json",
    ] {
        let copy = Copy::new();
        std::fs::remove_file(copy.file(name)).unwrap();
        copy.fault(name, &["has no"]);
    }
    let copy = Copy::new();
    std::fs::remove_file(copy.file("tokenizer/merges.txt")).unwrap();
    copy.fault("tokenizer", &["vocab.json and merges.txt"]);
}

#[test]
fn a_folder_without_a_scheduler_gets_that_of_its_family_and_says_so() {
    use retouch_graph::Event;
    use retouch_nodes::payload::Latent;
    let draw = |copy: &Copy, more: &str| {
        let path = copy.folder.path().display();
        let yaml = format!(
            "schema: retouch/v1\nnodes:\n  base: {{op: load_model, path: '{path}'{more}}}\n  \
             draw: {{op: sample, model: $base, prompt: a cat, steps: 2, spacing: trailing, seed: 1}}\noutputs:\n  z: {{value: $draw}}\n"
        );
        let (values, recorder) = Bench::new().run_with(&yaml, &[]);
        let latent = values["z"].downcast::<Latent>().unwrap();
        let numbers: Vec<f32> = latent.tensor.flatten_all().unwrap().to_vec1().unwrap();
        let warnings = recorder
            .events()
            .into_iter()
            .filter_map(|event| match event {
                Event::NodeWarning { message, .. } => Some(message),
                _ => None,
            });
        (numbers, warnings.collect::<Vec<_>>())
    };
    // Its own is that of the family but for the class.
    let copy = Copy::new();
    let own = draw(&copy, "");
    assert_eq!(own.1, [""; 0]);
    std::fs::remove_dir_all(copy.file("scheduler")).unwrap();
    assert!(copy.faults().is_empty());
    let lent = draw(&copy, "");
    assert_eq!(lent.0, own.0);
    let [warning] = lent.1.as_slice() else {
        panic!("{:?}", lent.1)
    };
    assert!(
        warning
            .contains("has no scheduler/: that of stable-diffusion-v1-5 is used (PNDMScheduler)"),
        "{warning}"
    );
    let v = draw(&copy, ", prediction: v_prediction");
    assert_ne!(v.0, own.0);
    // One that is named and is not there is missing all the same.
    let path = copy.folder.path().display();
    let found = faults(&format!(
        "schema: retouch/v1\nnodes:\n  base: {{op: load_model, path: '{path}', scheduler: '{path}/other'}}\n  \
         draw: {{op: sample, model: $base, prompt: a cat, steps: 2, seed: 1}}\noutputs:\n  z: {{value: $draw}}\n"
    ));
    assert!(found[0].message().contains("has no"), "{found:?}");
    // Its vocabulary is not CLIP's, so that no other tokenizer can be lent to it.
    let copy = Copy::new();
    std::fs::remove_dir_all(copy.file("tokenizer")).unwrap();
    copy.fault("tokenizer", &["vocab.json and merges.txt"]);
}

#[test]
fn truncated_weights_are_refused_with_both_lengths() {
    for cut in [1, 100, 1000] {
        let copy = Copy::new();
        let bytes = std::fs::read(copy.file(UNET)).unwrap();
        std::fs::write(copy.file(UNET), &bytes[..bytes.len() - cut]).unwrap();
        copy.fault(UNET, &["is truncated", &bytes.len().to_string()]);
    }
    for length in [0, 4, 8, 20] {
        let copy = Copy::new();
        let bytes = std::fs::read(copy.file(UNET)).unwrap();
        std::fs::write(copy.file(UNET), &bytes[..length]).unwrap();
        copy.fault(UNET, &[]);
    }
    let copy = Copy::new();
    std::fs::write(
        copy.file(UNET),
        "<!DOCTYPE html> this is what a failed download looks like",
    )
    .unwrap();
    copy.fault(UNET, &["is an HTML page"]);
}

#[test]
fn a_wrong_shape_and_a_missing_tensor_are_named_with_what_was_expected() {
    let copy = Copy::new();
    edit_header(&copy.file(UNET), |header| {
        header["conv_in.weight"]["shape"] = serde_json::json!([4, 32, 3, 3]);
    });
    copy.fault(UNET, &["conv_in.weight", "[4, 32, 3, 3]", "[32, 4, 3, 3]"]);
    let copy = Copy::new();
    edit_header(&copy.file(UNET), |header| {
        let tensor = header.remove("conv_in.weight").unwrap();
        header.insert("conv_in.wait".to_owned(), tensor);
    });
    copy.fault(UNET, &["has no tensor `conv_in.weight`", "[32, 4, 3, 3]"]);
    let copy = Copy::new();
    edit_header(&copy.file(UNET), |header| {
        header["conv_in.weight"]["dtype"] = "I16".into();
    });
    copy.fault(UNET, &["conv_in.weight", "I16"]);
}

#[test]
fn a_config_that_does_not_fit_its_weights_is_found() {
    let copy = Copy::new();
    copy.edit(
        "unet/config.json",
        "\"layers_per_block\": 2",
        "\"layers_per_block\": 1",
    );
    copy.fault(UNET, &["config"]);
    let copy = Copy::new();
    copy.edit(
        "vae/config.json",
        "\"latent_channels\": 4",
        "\"latent_channels\": 5",
    );
    assert!(!copy.faults().is_empty());
    for (from, to, word) in [
        (
            "\"time_embedding_type\": \"positional\"",
            "\"time_embedding_type\": \"fourier\"",
            "time_embedding_type",
        ),
        (
            "\"addition_embed_type\": null",
            "\"addition_embed_type\": \"text_time\"",
            "addition_embed_type",
        ),
        (
            "\"UNetMidBlock2DCrossAttn\"",
            "\"UNetMidBlock2DSimpleCrossAttn\"",
            "mid_block_type",
        ),
        (
            "\"norm_num_groups\": 16",
            "\"norm_num_groups\": 7",
            "groups",
        ),
    ] {
        let copy = Copy::new();
        copy.edit("unet/config.json", from, to);
        copy.fault("unet/config.json", &[word]);
    }
    let copy = Copy::new();
    copy.edit(
        "scheduler/scheduler_config.json",
        "\"thresholding\": false",
        "\"thresholding\": true",
    );
    copy.fault("scheduler_config.json", &["thresholding"]);
    let copy = Copy::new();
    std::fs::write(copy.file("unet/config.json"), "{").unwrap();
    copy.fault("unet/config.json", &[]);
}

#[test]
fn parts_of_different_families_are_refused() {
    let data = root().join("tests/oracle/data");
    let (one, two) = (data.join("tiny-sd1"), data.join("tiny-sd2"));
    let yaml = |extra: String| {
        format!(
            "schema: retouch/v1\nnodes:\n  base: {{op: load_model, path: '{}'{extra}}}\n  \
             draw: {{op: sample, model: $base, prompt: a cat, steps: 2, seed: 1}}\noutputs:\n  z: {{value: $draw}}\n",
            two.display()
        )
    };
    let found = faults(&yaml(format!(
        ", text_encoder: '{}/text_encoder'",
        one.display()
    )));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0]
            .message()
            .contains("gives 32 features, the U-Net takes 48"),
        "{}",
        found[0].message()
    );
    let world = root().join("models/world");
    let found = faults(&yaml(format!(", vae: '{}/vae'", world.display())));
    assert!(
        found.iter().any(|f| f
            .message()
            .contains("latents have 8 channels, the U-Net takes 4")),
        "{found:#?}"
    );
    let found = faults(&yaml(format!(
        ", tokenizer: '{}/tokenizer'",
        world.display()
    )));
    assert!(
        found.is_empty(),
        "a smaller vocabulary can be encoded: {found:#?}"
    );
}

#[test]
fn vanilla_and_personalised_models_that_do_not_fit_each_other_are_refused() {
    let data = root().join("tests/oracle/data");
    let yaml = format!(
        "schema: retouch/v1\nnodes:\n  a: {{op: load_model, path: '{}'}}\n  b: {{op: load_model, path: '{}'}}\n  \
         layout: {{op: step_blend_sample, vanilla: $a, personalized: $b, vanilla_prompt: x, personalized_prompt: y, steps: 2, seed: 1}}\n\
         outputs:\n  z: {{value: $layout}}\n",
        data.join("tiny-sd1").display(),
        root().join("models/world").display()
    );
    let found = faults(&yaml);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].message().contains("different latents"),
        "{}",
        found[0].message()
    );
    assert!(Code::ALL.contains(&found[0].code()));
}

#[test]
fn bad_pictures_are_refused_at_the_line_that_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let bad = |name: &str, content: &[u8]| {
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let yaml = format!(
            "schema: retouch/v1\nnodes:\n  photo: {{op: load_image, path: '{}'}}\noutputs:\n  p: {{value: $photo}}\n",
            file.display()
        );
        let found = faults(&yaml);
        assert_eq!(found.len(), 1, "{name}: {found:#?}");
        assert_eq!(found[0].line_column(), (3, 33), "{name}");
        assert!(found[0].hint().is_some(), "{name}");
        found[0].message().to_owned()
    };
    bad("empty.png", b"");
    bad("text.png", b"this is no picture");
    let mut png = Vec::new();
    let picture = image::RgbImage::from_pixel(20_000, 10, image::Rgb([1, 2, 3]));
    picture
        .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
        .unwrap();
    let message = bad("wide.png", &png);
    assert!(message.contains("20000"), "{message}");
    png.truncate(png.len() / 2);
    bad("half.png", &png);
}
