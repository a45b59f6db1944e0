//! `retouch inspect`: what a picture was made of, what a file of tensors is.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retouch_diffusion::Error;
use retouch_diffusion::checkpoint::inspect::{self, Kind, PartReport, Report, Request};
use retouch_graph::event::EVENT_SCHEMA;
use retouch_graph::{DiskFiles, Files, RedirectedFiles, files as graph_files};

use super::recipe;
use crate::args::{InspectArgs, ModelsArgs};
use crate::lines::Line;
use crate::output::say;
use crate::safe::{NAME, brief};
use crate::store::size;
use crate::{Exit, Failure, provenance, sharing};

/// Longer lines of the report are cut; `--json` has them whole.
const LONGEST_LINE: usize = 500;

/// What a LoRA's metadata says that is shown of it: what it was trained on, and with what.
const TOLD: [&str; 18] = [
    "modelspec.title",
    "modelspec.architecture",
    "modelspec.resolution",
    "modelspec.prediction_type",
    "modelspec.usage_hint",
    "modelspec.license",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_v2",
    "ss_output_name",
    "ss_network_module",
    "ss_network_args",
    "ss_resolution",
    "ss_clip_skip",
    "ss_num_train_images",
    "ss_epoch",
    "ss_steps",
    "ss_training_comment",
];

/// Says what a path is.
///
/// # Errors
/// When there is nothing there, it has neither a recipe nor tensors, or a model does not fit together.
pub fn inspect(args: &InspectArgs) -> Result<Exit, Failure> {
    let no_recipe = match is_png(&args.model)? {
        true => match provenance::read_with_image(&args.model) {
            Ok((recipe, image)) => return recipe::show(&recipe, image, args.json),
            Err(failure) => Some(failure),
        },
        false => None,
    };
    let files = files(&args.place, &args.model)?;
    let request = Request {
        path: args.model.clone(),
        config: args.config.clone(),
        size: args.size,
    };
    // Of pictures that other programs made some settings are known.
    let report = inspect::inspect(&request, &files)
        .map_err(|errors| no_recipe.unwrap_or_else(|| failed(&errors)))?;
    if args.json {
        let line = Line::Inspected {
            schema: EVENT_SCHEMA,
            path: args.model.clone(),
            report: Box::new(report),
        };
        line.say()?;
    } else {
        say(&page(&args.model, &report))?;
    }
    Ok(Exit::Done)
}

/// Whether a path leads to a PNG, by its first bytes.
fn is_png(path: &Path) -> Result<bool, Failure> {
    const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
    if !path.exists() || path.is_dir() {
        return Ok(false);
    }
    let mut first = Vec::new();
    graph_files::open(path)
        .and_then(|file| file.take(SIGNATURE.len() as u64).read_to_end(&mut first))
        .map_err(|e| Failure::unreadable_argument(path, e))?;
    Ok(first == SIGNATURE)
}

/// The files of the disk, a model that is not at its path looked for where models are kept.
///
/// # Errors
/// When a folder of `--models` or the model is not there.
pub fn files(place: &ModelsArgs, model: &Path) -> Result<RedirectedFiles, Failure> {
    if model.to_string_lossy().starts_with("hf://") {
        return Err(Failure::usage(format!(
            "{} is on a hub, and this command looks at what is here",
            model.display()
        ))
        .help("fetch it with `retouch fetch` (by a workflow that names it), and give its folder in the cache"));
    }
    sharing::check_models(place)?;
    let files = RedirectedFiles::new(Arc::new(DiskFiles::new()), sharing::models(place));
    let searched = retouch_graph::ModelLocator::find_model(&files, model);
    if files.is_dir(model) || files.is_file(model) {
        return Ok(files);
    }
    Err(
        Failure::unreadable_argument(model, "there is no such file or folder")
            .help(searched.help()),
    )
}

/// What is wrong with a model, as one failure.
#[must_use]
pub fn failed(errors: &[Error]) -> Failure {
    let mut messages = Vec::new();
    let mut help = None;
    for error in errors {
        messages.push(error.to_string());
        if let Error::Request {
            help: Some(text), ..
        } = error
        {
            help = help.or(Some(text.clone()));
        }
    }
    let failure = Failure::unreadable(messages.join("; "));
    match help {
        Some(help) => failure.help(help),
        None => failure,
    }
}

fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{:.1} thousand", number as f64 / 1e3),
        _ => format!("{:.1} million", number as f64 / 1e6),
    }
}

fn part_lines(part: &PartReport, name: &str, width: usize, lines: &mut Vec<String>) {
    let dtypes: Vec<String> = match part.dtypes.iter().collect::<Vec<_>>().as_slice() {
        [(dtype, _)] => vec![(*dtype).clone()],
        all => all
            .iter()
            .map(|(dtype, count)| format!("{count} {dtype}"))
            .collect(),
    };
    lines.push(format!(
        "  {name:width$}  {:>5} tensors  {:>15} numbers  {:>10}  {}",
        part.tensors,
        count(part.parameters),
        size(part.bytes),
        dtypes.join(", ")
    ));
    if let Some(configuration) = &part.configuration {
        lines.push(format!("  {:width$}  {configuration}", ""));
    }
}

/// The report for people.
// Long: one page, printed from top to bottom.
fn page(path: &Path, report: &Report) -> String {
    let what = match report.kind {
        Kind::Model => "a model",
        Kind::Lora => "a LoRA (`apply_lora`)",
        Kind::TextualInversion => "a textual inversion (`apply_textual_inversion`)",
        Kind::CustomDiffusion => "a Custom Diffusion file (`apply_custom_diffusion`)",
        Kind::Tensors => {
            "tensors, neither a model nor a supported adapter (the notes may say more)"
        }
        Kind::Picture => "a picture, no model or adapter",
    };
    let mut lines = vec![format!("{}: {what}", path.display())];
    lines.push(format!("layout     {}", report.layout));
    if let Some(family) = &report.family {
        let fits = if report.kind == Kind::Model {
            "family   "
        } else {
            "fits     "
        };
        lines.push(format!("{fits}  {family}"));
    }
    if let Some(adapter) = &report.adapter {
        lines.push(format!("dialect    {}", adapter.dialect));
        if !adapter.kinds.is_empty() {
            let kinds: Vec<String> = adapter
                .kinds
                .iter()
                .map(|(kind, count)| format!("{kind} ({count})"))
                .collect();
            lines.push(format!("kind       {}", kinds.join(", ")));
        }
        let range = |(least, most): (f64, f64)| {
            if least == most {
                format!("{least}")
            } else {
                format!("{least} to {most}")
            }
        };
        if let Some((least, most)) = adapter.ranks {
            lines.push(format!("rank       {}", range((least as f64, most as f64))));
        }
        if let Some(alphas) = adapter.alphas {
            lines.push(format!("alpha      {}", range(alphas)));
        }
        if adapter.unet_layers + adapter.text_layers > 0 {
            lines.push(format!(
                "changes    {} layers of the U-Net, {} of text encoders",
                adapter.unet_layers, adapter.text_layers
            ));
        }
        if !adapter.tokens.is_empty() {
            let tokens: Vec<String> = adapter
                .tokens
                .iter()
                .map(|(token, vectors)| match vectors {
                    0 => token.clone(),
                    1 => format!("{token} (1 vector)"),
                    n => format!("{token} ({n} vectors)"),
                })
                .collect();
            lines.push(format!("tokens     {}", tokens.join(", ")));
        }
    }
    if let Some(scheduler) = &report.scheduler {
        lines.push(format!("scheduler  {scheduler}"));
    }
    if let Some(prediction) = &report.prediction {
        let from = report.prediction_from.as_ref();
        let from = from.map_or_else(String::new, |from| format!(" (from {from})"));
        lines.push(format!("predicts   {prediction}{from}"));
    }
    for tokenizer in &report.tokenizers {
        lines.push(format!("tokenizer  {tokenizer}"));
    }
    let names: Vec<String> = (report.parts.iter())
        .map(|part| brief(&part.name, NAME))
        .collect();
    let width = names.iter().map(|name| name.chars().count()).max();
    if matches!(report.kind, Kind::Model | Kind::Tensors) {
        lines.push(String::new());
        for (part, name) in report.parts.iter().zip(&names) {
            part_lines(part, name, width.unwrap_or(0), &mut lines);
        }
    }
    let files: std::collections::BTreeSet<&String> =
        report.parts.iter().flat_map(|part| &part.files).collect();
    let (numbers, bytes) = report.parts.iter().fold((0u64, 0u64), |sum, part| {
        (
            sum.0.saturating_add(part.parameters),
            sum.1.saturating_add(part.bytes),
        )
    });
    if report.kind != Kind::Picture {
        lines.push(String::new());
        lines.push(format!("{} numbers, {}, in", count(numbers), size(bytes)));
        lines.extend(files.iter().map(|file| format!("  {file}")));
    }
    if let Some((across, down)) = report.size {
        lines.push(String::new());
        lines.push(format!(
            "self-attention sites at {across}x{down} pixels (rows x columns; * is `sites: auto`)"
        ));
        lines.extend(sites(report));
    }
    if !report.metadata.is_empty() {
        lines.push(String::new());
        // A training's settings are a hundred: those that say what it is for and how it was made.
        let is_adapter = report.kind == Kind::Lora;
        let told = report
            .metadata
            .iter()
            .filter(|(key, _)| !is_adapter || TOLD.contains(&key.as_str()));
        let before = lines.len();
        lines.extend(told.map(|(key, value)| format!("{key}: {value}")));
        let left = report.metadata.len() - (lines.len() - before);
        if left > 0 {
            lines.push(format!("({left} more settings: `--json`)"));
        }
    }
    if !report.notes.is_empty() {
        lines.push(String::new());
        lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    }
    // What files say of themselves may be of any length, and a line break in it begins no line of ours.
    lines
        .iter()
        .map(|line| brief(line, LONGEST_LINE))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Sites of one kind and grid that follow one another, on one line.
fn sites(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = report.sites.as_slice();
    while let Some(first) = rest.first() {
        let same = rest
            .iter()
            .take_while(|site| {
                (&site.part, site.grid, site.width, site.auto)
                    == (&first.part, first.grid, first.width, first.auto)
            })
            .count();
        let numbers = if same == 1 {
            first.index.to_string()
        } else {
            format!("{}..{}", first.index, first.index + same)
        };
        let grid = format!("{}x{}", first.grid.0, first.grid.1);
        lines.push(format!(
            "  {} {numbers:8} {:4}  {grid:>9}  {} features",
            if first.auto { '*' } else { ' ' },
            first.part,
            first.width
        ));
        rest = &rest[same..];
    }
    lines
}

/// The paths of what was written, for people.
#[must_use]
pub fn listed(folder: &Path, files: &[PathBuf]) -> Vec<String> {
    files
        .iter()
        .map(|file| folder.join(file).display().to_string())
        .collect()
}
