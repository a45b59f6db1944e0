//! Workflows for a model of the user's own, and a subject in a folder of photos.

use std::path::{Path, PathBuf};

use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_graph::port::Known;
use retouch_graph::{DiskFiles, Fault, Files, Node, Source, Types, format, remote};
use retouch_nodes::load::{LoadImages, LoadModel};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::WORKFLOWS;
use crate::Failure;
use crate::args::NewArgs;

/// The size in pixels where nothing says it: that of Stable Diffusion 1.5.
const SIZE: usize = 512;

/// From this size on, what a training keeps of the U-Net's blocks is computed again rather than held.
const LARGE: usize = 768;

const LEARN: &str = include_str!("learn.yaml");
const TRAIN: &str = include_str!("train.yaml");
const TEXT_TO_IMAGE: &str = include_str!("text-to-image.yaml");
const BOTH_STAGES: &str = include_str!("layout-and-retouch.yaml");

/// The first to run.
pub(super) const FIRST: &str = "train.yaml";

/// The subject and the model that workflows are written for.
struct Project<'a> {
    model: String,
    photos: String,
    lora: Option<String>,
    class: &'a str,
    trigger: String,
    size: usize,
}

/// The workflows, by the names of their files.
///
/// # Errors
/// When the model, the LoRA or the photos are not there, or not what they should be.
pub(super) fn workflows(
    args: &NewArgs,
    model: &str,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let files = DiskFiles::new();
    let class = one_line("--class", args.class.as_deref().unwrap_or_default())?;
    let token = one_line("--token", &args.token)?;
    let is_remote = remote::is_remote(Path::new(model));
    let model = if is_remote {
        model.to_owned()
    } else {
        absolute("--model", Path::new(model))?
    };
    let size = match (args.size, is_remote) {
        (Some(size), _) => size,
        (None, true) => {
            crate::output::tell(&format!(
                "{model} cannot be inspected before it is fetched: pictures of {SIZE} pixels are assumed (override with --size)"
            ));
            SIZE
        }
        (None, false) => own_size(&model, &files)?,
    };
    let photos = absolute("--photos", args.photos.as_deref().unwrap_or(Path::new("")))?;
    let node: LoadImages = made(json!({"path": photos}))?;
    node.reads(&files).map_err(refused)?;
    let lora = match &args.lora {
        Some(lora) => {
            let path = absolute("--lora", lora)?;
            if !files.is_file(Path::new(&path)) && !files.is_dir(Path::new(&path)) {
                let message = format!("there is no LoRA at {path}");
                return Err(Failure::usage(message).help("name the file, or its folder"));
            }
            Some(path)
        }
        None => None,
    };
    let project = Project {
        model,
        photos,
        lora,
        trigger: format!("{token} {class}"),
        class,
        size,
    };
    let retouch = (WORKFLOWS.get_file("retouch.yaml"))
        .and_then(include_dir::File::contents_utf8)
        .unwrap_or_default();
    let mut made = vec![
        ("learn.yaml", project.fill("learn.yaml", LEARN)?),
        (FIRST, project.fill(FIRST, TRAIN)?),
        (
            "text-to-image.yaml",
            project.fill("text-to-image.yaml", TEXT_TO_IMAGE)?,
        ),
        (
            "layout-and-retouch.yaml",
            project.fill("layout-and-retouch.yaml", BOTH_STAGES)?,
        ),
    ];
    made.push(("retouch.yaml", retouch.to_owned()));
    Ok(made)
}

impl Project<'_> {
    /// A template with what is known in it, in the standard form.
    fn fill(&self, name: &str, template: &str) -> Result<String, Failure> {
        // JSON's texts are YAML's.
        let text = |text: &str| Json::from(text).to_string();
        let (params, personal, known) = match &self.lora {
            Some(path) => (
                "  weight: {type: float, default: 1.0, help: \"how much the LoRA counts\"}\n",
                format!(
                    "  personal: {{op: apply_lora, model: $base, path: {}, weight: $params.weight}}",
                    text(path)
                ),
                "$personal",
            ),
            None => (
                "  train_steps: {type: int, default: 500, min: 1, help: \"of the training in learn.yaml\"}\n",
                "  learn: {use: learn.yaml, with: {base: $base, train_steps: $params.train_steps}}"
                    .to_owned(),
                "$learn.model",
            ),
        };
        let checkpointing = (self.size >= LARGE).to_string();
        let mut filled = template.to_owned();
        for (place, with) in [
            ("@PERSONAL_MODEL@", known),
            ("@PERSONAL@", &personal),
            ("@PARAMS@", params),
            ("@MODEL@", &text(&self.model)),
            ("@PHOTOS@", &text(&self.photos)),
            ("@TRIGGER@", &text(&self.trigger)),
            ("@CLASS@", &text(self.class)),
            ("@SIZE@", &self.size.to_string()),
            ("@CHECKPOINTING@", &checkpointing),
        ] {
            filled = filled.replace(place, with);
        }
        format::format(&Source::new(name, filled))
            .map_err(|problem| Failure::failed(format!("{name} cannot be written: {problem}")))
    }
}

/// A word or words of a prompt.
fn one_line<'a>(option: &str, text: &'a str) -> Result<&'a str, Failure> {
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_control) {
        return Err(
            Failure::usage(format!("{option} is one or a few words, as in a prompt"))
                .help("for a dog: --class dog"),
        );
    }
    Ok(text)
}

/// A path as it can be written into a file that lies elsewhere.
fn absolute(option: &str, path: &Path) -> Result<String, Failure> {
    let absolute: PathBuf = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{option} {}: {error}", path.display())))?;
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        Failure::usage(format!(
            "{option}: the path `{}` is not Unicode",
            path.display()
        ))
    })
}

fn made<N: Node>(params: Json) -> Result<N, Failure> {
    serde_json::from_value(params).map_err(|error| Failure::failed(error.to_string()))
}

/// The side of the pictures that a model was trained on, in pixels.
fn own_size(model: &str, files: &dyn Files) -> Result<usize, Failure> {
    let node: LoadModel = made(json!({"path": model}))?;
    let known = (node.check(&Types::unknown(), files)).map_err(refused)?;
    let facts = known.into_known().remove("model");
    let facts = facts.into_iter().flatten().find_map(|known| match known {
        Known::Facts(facts) => ModelFacts::deserialize(&*facts).ok(),
        _ => None,
    });
    Ok(facts.map_or(SIZE, |facts| facts.sample_size * facts.factor))
}

/// What a node finds at fault, as the command's failure.
fn refused(faults: Vec<Fault>) -> Failure {
    let Some(fault) = faults.into_iter().next() else {
        return Failure::failed("it cannot be read");
    };
    let failure = Failure::usage(fault.message);
    match fault.help {
        Some(help) => failure.help(help),
        None => failure,
    }
}
