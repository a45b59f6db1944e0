//! `retouch extract`, `replay` and `diff`, and what `inspect` says of a picture: from a picture back to its recipe.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use retouch_graph::event::Listener;
use retouch_graph::sweep::shown;
use retouch_graph::write::{self, Access};
use retouch_graph::{
    Cancel, Change, Checked, Code, Divergence, Engine, OutputValue, Plan, Provenance, Record,
    RunError, RunOptions, Saver, Settings, Sweep, What,
};
use serde_json::{Value as Json, json};

use crate::args::{DiffArgs, ExtractArgs, ReplayArgs};
use crate::commands::run;
use crate::hub::{Foreign, Mode};
use crate::lines::{Line, Replay};
use crate::output::{say, say_json, say_raw, tell};
use crate::preview::Preview;
use crate::progress::{JsonLines, Progress};
use crate::provenance::{self, Made, Stamps};
use crate::safe::{NAME, VALUE, brief, safe};
use crate::scores;
use crate::sharing::{Input, Stop, check_models, hubs, models};
use crate::store::{Store, size};
use crate::{Exit, Failure, session, total};

/// Says what a picture was made of; `image`: which of how many of a batch it is.
///
/// # Errors
/// When standard output is closed.
pub fn show(recipe: &Provenance, image: Option<(u64, u64)>, json: bool) -> Result<Exit, Failure> {
    if json {
        let mut document =
            serde_json::to_value(recipe).map_err(|e| Failure::failed(e.to_string()))?;
        if let Some((number, of)) = image {
            document["image"] = serde_json::json!({"number": number, "of": of});
        }
        let text =
            serde_json::to_string_pretty(&document).map_err(|e| Failure::failed(e.to_string()))?;
        say_json(&text)?;
        return Ok(Exit::Done);
    }
    say(&format!(
        "output `{}`, made by {}, computed with {}",
        recipe.output,
        recipe.tool,
        recipe.record.numerics()
    ))?;
    if let Some((number, of)) = image {
        say(&format!("image {number} of a batch of {of}"))?;
    }
    say("params:")?;
    for (name, value) in &recipe.params {
        say(&format!(
            "  {}: {}",
            brief(name, NAME),
            brief(&shown(value), VALUE)
        ))?;
    }
    say("files:")?;
    for (name, files) in by_model(recipe) {
        match files.as_slice() {
            [file] if file.path == name => {
                say(&format!(
                    "  {name}  {}  {}",
                    size(file.size),
                    short(&file.blake3)
                ))?;
            }
            files => {
                let bytes = total(files.iter().map(|file| file.size));
                say(&format!("  {name}  {} files, {}", files.len(), size(bytes)))?;
            }
        }
    }
    say("nodes:")?;
    for (name, op, steps) in recipe.record.nodes() {
        let steps = match steps {
            0 => String::new(),
            steps => format!(", {steps} steps"),
        };
        say(&format!(
            "  {}  {}{steps}",
            brief(name, NAME),
            brief(&op, NAME)
        ))?;
        // What was asked for is what people look for first.
        for (param, value) in recipe.record.params(name) {
            let prompt = param == "prompt" || param.ends_with("_prompt");
            if prompt && value.starts_with('"') && value != "\"\"" {
                say(&format!(
                    "    {}: {}",
                    brief(param, NAME),
                    brief(value, VALUE)
                ))?;
            }
        }
        if let Some(seed) = seed(&recipe.record, name, image) {
            say(&format!("    seed: {seed}"))?;
        }
    }
    tell("`retouch extract` prints the workflow, `retouch replay` draws the picture again");
    Ok(Exit::Done)
}

/// The seed that a node drew a picture with: image i of a batch, from 0, has the node's seed + i.
fn seed(record: &Record, node: &str, image: Option<(u64, u64)>) -> Option<String> {
    let number = |name: &str| {
        let mut params = record.params(node);
        let (_, value) = params.find(|(param, _)| *param == name)?;
        value.parse::<u64>().ok()
    };
    let seed = number("seed")?;
    // A node that draws one picture drew it for the whole batch.
    Some(match image {
        Some((image, of)) if number("batch") == Some(of) => {
            format!("{} ({seed} + {})", seed.checked_add(image - 1)?, image - 1)
        }
        _ => seed.to_string(),
    })
}

fn short(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

/// The files of a recipe, those of a model together under its folder.
fn by_model(recipe: &Provenance) -> IndexMap<String, Vec<&retouch_graph::ReadEntry>> {
    let mut files: IndexMap<String, Vec<_>> = IndexMap::new();
    for file in &recipe.files {
        let name = file.model.clone().unwrap_or_else(|| file.path.clone());
        files.entry(name).or_default().push(file);
    }
    files
}

/// Prints the workflow that a picture carries, or writes it with the graphs that it uses to a folder.
///
/// # Errors
/// When it carries none, a file cannot be written, or standard output is closed.
pub fn extract(args: &ExtractArgs) -> Result<Exit, Failure> {
    let recipe = provenance::read(&args.picture)?;
    let Some(folder) = &args.output else {
        if !recipe.graphs.is_empty() {
            let names: Vec<&str> = recipe.graphs.keys().map(String::as_str).collect();
            let incomplete = format!(
                "not complete without {}, which the picture carries too: `retouch extract {} -o DIR` writes all of it",
                names.join(", "),
                args.picture.display()
            );
            // What is redirected to a file says so itself when it is run later.
            say_raw(&format!("# {}\n", safe(&incomplete).replace('\n', " ")))?;
            tell(&format!("the workflow is {incomplete}"));
        }
        say_raw(&format!("{}\n", recipe.workflow.trim_end()))?;
        return Ok(Exit::Done);
    };
    let cannot = |path: &Path, e: std::io::Error| {
        Failure::unwritable(format!("{} cannot be written: {e}", path.display()))
    };
    // Graphs may lie beside or above the workflow: it goes as deep as they climb, so that all stays in the folder.
    let climb = recipe
        .graphs
        .keys()
        .map(|path| path.matches("../").count())
        .max()
        .unwrap_or(0);
    let name = file_name(&recipe.workflow);
    let below: PathBuf = (0..climb).map(|_| "workflow").collect();
    let mut files = vec![(below.join(name), &recipe.workflow)];
    for (path, text) in &recipe.graphs {
        let mut place = below.clone();
        for part in path.split('/') {
            match part {
                ".." => {
                    place.pop();
                }
                part => place.push(part),
            }
        }
        files.push((place, text));
    }
    // A graph may have the workflow's name, on some systems also in another case.
    let same = |a: &Path, b: &Path| {
        a.to_string_lossy().to_lowercase() == b.to_string_lossy().to_lowercase()
    };
    let mut number = 2;
    while files[1..].iter().any(|(path, _)| same(path, &files[0].0)) {
        files[0].0 = below.join(format!("workflow-{number}.yaml"));
        number += 1;
    }
    for (path, _) in &files {
        let path = folder.join(path);
        if path.exists() {
            return Err(
                Failure::failed(format!("{} exists already", path.display()))
                    .help("name another folder with `-o DIR`"),
            );
        }
    }
    for (path, text) in &files {
        let path = folder.join(path);
        write::create(&path, text.as_bytes(), Access::Usual).map_err(|e| cannot(&path, e))?;
        say(&path.display().to_string())?;
    }
    Ok(Exit::Done)
}

/// The workflow's file: its name, where that can name one.
fn file_name(text: &str) -> String {
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("name: "))
        .unwrap_or("");
    let plain = !name.is_empty()
        && name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter));
    if plain {
        format!("{name}.yaml")
    } else {
        "workflow.yaml".to_owned()
    }
}

/// A recipe that can be run.
struct Loaded {
    plan: Plan,
    made: Made,
    workflow: PathBuf,
    engine: Engine,
}

fn load(
    recipe: &Provenance,
    picture: &Path,
    models: &[PathBuf],
    engine: Engine,
    json: bool,
) -> Result<Result<Loaded, Exit>, Failure> {
    let (engine, workflow) = provenance::open(recipe, picture, models, engine)?;
    let settings = Settings::default();
    let sweep = engine
        .read(&workflow)
        .ok()
        .and_then(|workflow| workflow.sweep);
    let loaded = if sweep.is_some() {
        engine.load_sweep(&workflow, &settings).and_then(|sweep| {
            let plan = engine.plan_sweep(
                &sweep,
                std::slice::from_ref(&recipe.output),
                &BTreeSet::new(),
            )?;
            let sweep: Arc<Sweep> = Arc::new(sweep);
            let made = Made::sweep(&sweep, &plan);
            Ok((plan.plan, made))
        })
    } else {
        engine
            .load(&workflow, &settings)
            .and_then(|checked: Checked| {
                let plan = engine.plan(&checked, &[format!("outputs.{}", recipe.output)])?;
                Ok((plan, Made::Workflow(Box::new(checked))))
            })
    };
    Ok(match loaded {
        Ok((plan, made)) => Ok(Loaded {
            plan,
            made,
            workflow,
            engine,
        }),
        Err(problems) => Err(Stop::from(problems).tell(json)?),
    })
}

/// The options that make a processor compute as these numerics say, where this one can.
fn options_of(numerics: &str) -> Option<String> {
    let parts: Vec<&str> = numerics.split('/').collect();
    let ["cpu", dtype, set] = parts[..] else {
        return None;
    };
    let device = format!("cpu:{set}");
    // They come from a file: what names no kernel set and no type is in no command.
    let runtime = retouch_nodes::Runtime::by_name(&format!("{device}/{dtype}")).ok()?;
    if runtime.numerics() != numerics {
        return None;
    }
    Some(match dtype {
        "f32" => format!("--device {device}"),
        dtype => format!("--device {device} --dtype {dtype}"),
    })
}

/// Draws a picture again, from nothing, and compares.
///
/// # Errors
/// When what it was made of is not there or has another content, or the device cannot be used.
pub fn replay(args: &ReplayArgs) -> Result<Exit, Failure> {
    let recipe = provenance::read(&args.picture)?;
    let original = provenance::read_picture(&args.picture)
        .map_err(|e| Failure::unreadable_argument(&args.picture, e))?;
    let preview = Preview::of(&args.preview, args.existing)?;
    let store = Store::of(&args.cache)?;
    session::threads(args.device.threads)?;
    // The cache may hold the very picture that is compared: it is not read, only the known digests of files are.
    let engine = session::drawing_engine_for(&args.device, &store)?;
    check_models(&args.sharing.place)?;
    let models = models(&args.sharing.place);
    let cancel = Cancel::new();
    run::interrupts(&cancel)?;
    let mode = Mode::fetching(&cancel, args.json, args.telling.quiet)
        .permitting(args.fetching.fetch, &args.fetching.token_for);
    let foreign = Foreign::Picture(args.picture.clone());
    let (engine, hub) = hubs(engine, args.sharing.offline, mode, Some(foreign));
    if let Some(consent) = hub.consent() {
        let sizes = recipe.files.iter();
        consent.declare(sizes.map(|file| (PathBuf::from(&file.path), file.size)));
    }
    let loaded = load(&recipe, &args.picture, &models, engine, args.json)?;
    let Loaded {
        plan,
        made,
        workflow,
        engine,
    } = match loaded {
        Ok(loaded) => loaded,
        Err(exit) => return Ok(exit),
    };
    if plan.numerics() != recipe.record.numerics() {
        let was = recipe.record.numerics();
        let again = options_of(was).map_or_else(String::new, |options| {
            format!("; `{options}` computes as it was")
        });
        tell(&format!(
            "warning: it was computed with {was}, and here with {}: last digits may differ{again}",
            plan.numerics()
        ));
    }
    if let Some(preview) = &preview {
        preview.spares(
            made.checked(),
            args.out.as_deref().unwrap_or(Path::new("out")),
        )?;
    }
    let stamp = Stamps::of(&engine, &workflow, made);
    if let Some(out) = &args.out {
        run::writable(out)?;
    }
    let saver = args
        .out
        .as_ref()
        .map(|out| Arc::new(Saver::new(out, run::exists(args.existing.exists))));
    let options = RunOptions {
        threads: usize::from(args.device.threads.unwrap_or(0)),
        saver,
        previewer: preview.map(|preview| preview as _),
        stamp: stamp.clone(),
        ..RunOptions::default()
    };
    let listener: Box<dyn Listener> = if args.json {
        Box::new(JsonLines::default())
    } else {
        Box::new(Progress::new(args.telling.quiet))
    };
    let report = match engine.run(&plan, listener.as_ref(), &cancel, &options) {
        Ok(report) => report,
        Err(RunError::Cancelled) => return Err(Failure::interrupted("nothing was compared")),
        // The listener has said which node failed, and why.
        Err(RunError::NodeFailed { .. }) if !args.json => return Ok(Exit::Failed),
        Err(error) => return Err(Failure::of_run(&error)),
    };
    engine.files().flush();
    let Some(output) = report.outputs.first() else {
        return Err(Failure::failed("the recipe gives no picture"));
    };
    if !args.json {
        for saved in &output.saved {
            say(&run::result_line(&recipe.output, &saved.path, saved.status))?;
        }
    }
    let found = compare(&original, output, stamp.as_deref())?;
    let another = found.is_another();
    if args.json {
        found.line(&args.picture).say()?;
        if another {
            let message = format!("{}: {}", args.picture.display(), found.describe(&recipe));
            return Err(Failure::failed(message).code(Code::ReplayDiffers));
        }
    } else {
        say(&format!(
            "{}: {}",
            crate::safe::path(&args.picture),
            found.describe(&recipe)
        ))?;
    }
    Ok(match found.result {
        _ if another => Exit::Failed,
        Replay::EqualUpToRounding => Exit::Rounded,
        _ => Exit::Done,
    })
}

/// The most that values may differ by, of 255, where a picture is equal up to rounding.
const ROUNDING: u8 = 1;
/// The share of a picture's values that may differ so: one in a hundred.
const ROUNDED: usize = 100;

/// How a picture that was drawn again compares.
#[derive(Debug, PartialEq)]
struct Found {
    result: Replay,
    /// The number of values that differ, the number of values, and the largest difference.
    differ: Option<(usize, usize, u8)>,
}

impl Found {
    fn of(result: Replay) -> Self {
        Self {
            result,
            differ: None,
        }
    }

    /// Compares a picture with the file that was drawn again.
    fn between(original: &[u8], drawn: &[u8]) -> Self {
        if drawn == original {
            return Self::of(Replay::SameBytes);
        }
        // Only a picture of the size of what was drawn is unpacked: what it says of itself may be anything.
        if shape(original) != shape(drawn) {
            return Self::of(Replay::OtherSize);
        }
        let (Some(a), Some(b)) = (pixels(original), pixels(drawn)) else {
            return Self::of(Replay::OtherSize);
        };
        let distances = || a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b));
        let values = distances().filter(|distance| *distance > 0).count();
        let most = distances().max().unwrap_or(0);
        if values == 0 {
            return Self::of(Replay::SamePixels);
        }
        let rounded = most <= ROUNDING && values <= a.len() / ROUNDED;
        Self {
            result: match rounded {
                true => Replay::EqualUpToRounding,
                false => Replay::Differs,
            },
            differ: Some((values, a.len(), most)),
        }
    }

    /// A number by which the nearest of several pictures is chosen.
    fn distance(&self) -> usize {
        match (self.result, self.differ) {
            (_, Some((values, ..))) => values,
            (Replay::OtherSize, None) => usize::MAX,
            (_, None) => 0,
        }
    }

    /// Whether it is another picture.
    fn is_another(&self) -> bool {
        matches!(self.result, Replay::Differs | Replay::OtherSize)
    }

    fn line(&self, picture: &Path) -> Line {
        Line::Replayed {
            picture: picture.to_owned(),
            result: self.result,
            values: self.differ.map(|differ| differ.0),
            of: self.differ.map(|differ| differ.1),
            most: self.differ.map(|differ| differ.2),
        }
    }

    fn describe(&self, recipe: &Provenance) -> String {
        let differ = self.differ.map(|(values, of, most)| {
            format!("{values} of {of} values differ, by at most {most} of 255")
        });
        let differ = differ.unwrap_or_default();
        match self.result {
            Replay::SameBytes => "drawn again, the same bytes".to_owned(),
            Replay::SamePixels if recipe.tool != provenance::tool() => format!(
                "drawn again, the same pixels; the recipe or its encoding differs ({} -> {})",
                recipe.tool,
                provenance::tool()
            ),
            Replay::SamePixels => {
                "drawn again, the same pixels; the recipe or the encoding of the file differs"
                    .to_owned()
            }
            Replay::EqualUpToRounding => format!("drawn again, equal up to rounding: {differ}"),
            Replay::Differs => format!("drawn again, a different picture: {differ}"),
            Replay::OtherSize => {
                "drawn again, a different picture: the file has another size or colour type, or is damaged"
                    .to_owned()
            }
        }
    }
}

/// Compares with the nearest of the pictures that the output is.
fn compare(
    original: &[u8],
    output: &OutputValue,
    stamp: Option<&dyn retouch_graph::Stamp>,
) -> Result<Found, Failure> {
    let files = output
        .value
        .encode("png")
        .map_err(|e| Failure::failed(e.to_string()))?;
    let count = files.len();
    let files = files.into_iter().enumerate();
    let stamped = files.map(|(index, file)| match stamp {
        Some(stamp) => stamp.stamp(&output.name, "png", (index, count), file),
        None => file,
    });
    Ok(nearest(original, stamped))
}

/// How a picture compares with the nearest of several files.
fn nearest(original: &[u8], drawn: impl Iterator<Item = Vec<u8>>) -> Found {
    drawn
        .map(|drawn| Found::between(original, &drawn))
        .min_by_key(|found| (found.distance(), found.result != Replay::SameBytes))
        .unwrap_or_else(|| Found::of(Replay::OtherSize))
}

/// What decides whether two PNGs can be compared value by value: size, colours, frames.
fn shape(png: &[u8]) -> Option<(u32, u32, png::ColorType, png::BitDepth, u32)> {
    let reader = png::Decoder::new(Cursor::new(png)).read_info().ok()?;
    let info = reader.info();
    let frames = info
        .animation_control()
        .map_or(1, |control| control.num_frames);
    Some((
        info.width,
        info.height,
        info.color_type,
        info.bit_depth,
        frames,
    ))
}

/// The values of all frames of a PNG.
fn pixels(png: &[u8]) -> Option<Vec<u8>> {
    let frames = shape(png)?.4;
    let mut reader = png::Decoder::new(Cursor::new(png)).read_info().ok()?;
    let mut values = Vec::new();
    let mut frame = vec![0; reader.output_buffer_size()?];
    for _ in 0..frames {
        let info = reader.next_frame(&mut frame).ok()?;
        values.extend_from_slice(frame.get(..info.buffer_size())?);
    }
    Some(values)
}

/// A side of a comparison.
struct Side {
    params: IndexMap<String, Json>,
    record: Record,
}

fn side(
    path: &Path,
    args: &DiffArgs,
    store: &Store,
    output: Option<&str>,
) -> Result<Result<Side, Exit>, Failure> {
    if is_png(path) {
        let recipe = provenance::read(path)?;
        return Ok(Ok(Side {
            params: recipe.params,
            record: recipe.record,
        }));
    }
    // A picture is what one output needs: of a workflow beside it no more is looked at.
    let engine = session::caching_engine(&args.numerics.spec(), store)?;
    let opened = Input::open(path, &args.sharing, false, store, engine);
    let (input, engine) = match opened {
        Ok(opened) => opened,
        Err(stop) => return stop.tell(args.json).map(Err),
    };
    let checked = match input.load(&engine, &input.settings(&args.params)) {
        Ok(checked) => checked,
        Err(problems) => return Stop::from(problems).tell(args.json).map(Err),
    };
    let targets: Vec<String> = (output.into_iter())
        .filter(|output| checked.outputs.iter().any(|one| one.name == *output))
        .map(|output| format!("outputs.{output}"))
        .collect();
    let plan = match engine.plan(&checked, &targets) {
        Ok(plan) => plan,
        Err(problems) => return Stop::from(problems).tell(args.json).map(Err),
    };
    engine.files().flush();
    let params = (plan.params().iter())
        .map(|param| (param.name.clone(), param.value.clone()))
        .collect();
    Ok(Ok(Side {
        params,
        record: plan.record(),
    }))
}

fn is_png(path: &Path) -> bool {
    let mut head = [0; 8];
    retouch_graph::files::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut head))
        .is_ok()
        && head == *b"\x89PNG\r\n\x1a\n"
}

/// Says what differs between two workflows, or the recipes of two pictures.
///
/// # Errors
/// When one cannot be read, or standard output is closed.
pub fn diff(args: &DiffArgs) -> Result<Exit, Failure> {
    let store = Store::of(&args.cache)?;
    let output = [&args.a, &args.b]
        .into_iter()
        .find(|path| is_png(path))
        .map(|path| provenance::read(path))
        .transpose()?
        .map(|recipe| recipe.output);
    let mut sides = Vec::new();
    for path in [&args.a, &args.b] {
        match side(path, args, &store, output.as_deref())? {
            Ok(side) => sides.push(side),
            Err(exit) => return Ok(exit),
        }
    }
    let [a, b] = sides.as_slice() else {
        return Err(Failure::failed("two are compared"));
    };
    let changes: Vec<Change> = (b.record.changes_since(&a.record).into_iter())
        .filter(is_own)
        .collect();
    let divergences = b.record.divergences(&a.record);
    let params = params(a, b);
    let same = changes.is_empty() && divergences.is_empty();
    let errors = scores::between(&args.a, &args.b);
    if args.json {
        let mut line = as_json(&params, &changes, &divergences, same);
        line["pictures"] = errors.map_or(
            Json::Null,
            |errors| json!({"psnr": errors.psnr, "ssim": errors.ssim, "ms_ssim": errors.ms_ssim}),
        );
        say_json(&line.to_string())?;
    } else {
        print(&params, &changes, &divergences, same)?;
        if let Some(errors) = errors {
            let one = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), scores::shown);
            let equal = "equal pixels".to_owned();
            let psnr = errors
                .psnr
                .map_or(equal, |psnr| format!("PSNR {psnr:.2} dB"));
            say(&format!(
                "pictures: {psnr}, SSIM {}, multi-scale SSIM {}",
                one(errors.ssim),
                one(errors.ms_ssim)
            ))?;
        }
    }
    Ok(if same { Exit::Done } else { Exit::Failed })
}

/// Whether a change is one of the node itself, and no consequence of one before it.
fn is_own(change: &Change) -> bool {
    // What stands in parentheses is the key of what is linked.
    let links = |text: &str| -> Vec<String> {
        text.split(", ")
            .map(|link| link.split(" (").next().unwrap_or("").to_owned())
            .collect()
    };
    match &change.what {
        What::Input(_) => links(&change.from) != links(&change.to),
        _ => true,
    }
}

fn params(a: &Side, b: &Side) -> Vec<(String, Option<Json>, Option<Json>)> {
    let names: BTreeSet<&String> = a.params.keys().chain(b.params.keys()).collect();
    (names.into_iter())
        .filter(|name| a.params.get(*name) != b.params.get(*name))
        .map(|name| {
            (
                name.clone(),
                a.params.get(name).cloned(),
                b.params.get(name).cloned(),
            )
        })
        .collect()
}

fn as_json(
    params: &[(String, Option<Json>, Option<Json>)],
    changes: &[Change],
    divergences: &[Divergence],
    same: bool,
) -> Json {
    let what = |what: &What| match what {
        What::Node => json!({"what": "node"}),
        What::Op => json!({"what": "op"}),
        What::Param(name) => json!({"what": "param", "name": name}),
        What::File(role) => json!({"what": "file", "name": role}),
        What::Input(port) => json!({"what": "input", "name": port}),
        What::Numerics => json!({"what": "numerics"}),
    };
    let changes: Vec<Json> = (changes.iter())
        .map(|change| {
            let mut line = what(&change.what);
            line["node"] = json!(change.node);
            line["from"] = json!(change.from);
            line["to"] = json!(change.to);
            line
        })
        .collect();
    let params: Vec<Json> = (params.iter())
        .map(|(name, from, to)| json!({"name": name, "from": from, "to": to}))
        .collect();
    json!({"same": same, "params": params, "nodes": changes, "steps": divergences})
}

fn print(
    params: &[(String, Option<Json>, Option<Json>)],
    changes: &[Change],
    divergences: &[Divergence],
    same: bool,
) -> Result<(), Failure> {
    let one = |value: &Option<Json>| value.as_ref().map_or_else(|| "nothing".to_owned(), shown);
    if !params.is_empty() {
        say("params:")?;
        for (name, from, to) in params {
            say(&format!("  {name}: {} -> {}", one(from), one(to)))?;
        }
    }
    if same {
        return say("nothing that is drawn differs");
    }
    if !changes.is_empty() {
        say("nodes:")?;
        for change in changes {
            say(&format!("  {change}"))?;
        }
    }
    if !divergences.is_empty() {
        say("steps:")?;
        for Divergence { node, step, of } in divergences {
            let text = match step {
                0 => format!("  {node}: from the first step on"),
                step if step >= of => format!("  {node}: the same as far as it goes, {of} steps"),
                step => format!("  {node}: from step {step} of {of} on; before it the same"),
            };
            say(&text)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: u32 = 20;

    /// A picture of 400 grey values, with a text of its own and some of the values moved.
    fn picture(side: u32, text: &str, moved: &[(usize, u8)]) -> Vec<u8> {
        let mut values: Vec<u8> = (0..side * side).map(|at| (at % 200) as u8).collect();
        for (at, by) in moved {
            values[*at] += by;
        }
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder
            .add_text_chunk("note".to_owned(), text.to_owned())
            .unwrap();
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&values).unwrap();
        writer.finish().unwrap();
        bytes
    }

    #[test]
    fn a_picture_is_the_same_equal_up_to_rounding_or_another_one() {
        let drawn = picture(SIDE, "a", &[]);
        let found = |original: &[u8]| {
            let found = Found::between(original, &drawn);
            assert_eq!(
                found.is_another(),
                matches!(found.result, Replay::Differs | Replay::OtherSize)
            );
            (found.result, found.differ)
        };
        assert_eq!(found(&drawn), (Replay::SameBytes, None));
        let text = picture(SIDE, "b", &[]);
        assert_eq!(found(&text), (Replay::SamePixels, None));
        // One value in a hundred by 1, and no more.
        let four: Vec<(usize, u8)> = (0..4).map(|at| (at * 7, 1)).collect();
        let rounded = picture(SIDE, "b", &four);
        let differ = Some((4, 400, 1));
        assert_eq!(found(&rounded), (Replay::EqualUpToRounding, differ));
        let five: Vec<(usize, u8)> = (0..5).map(|at| (at * 7, 1)).collect();
        let many = picture(SIDE, "b", &five);
        assert_eq!(found(&many), (Replay::Differs, Some((5, 400, 1))));
        let far = picture(SIDE, "b", &[(3, 2)]);
        assert_eq!(found(&far), (Replay::Differs, Some((1, 400, 2))));
        let larger = picture(SIDE + 1, "a", &[]);
        assert_eq!(found(&larger), (Replay::OtherSize, None));
        for cut in [0, 9, 40, drawn.len() / 2] {
            assert_eq!(found(&drawn[..cut]), (Replay::OtherSize, None), "{cut}");
        }
    }

    #[test]
    fn of_several_pictures_the_nearest_is_compared() {
        let original = picture(SIDE, "a", &[]);
        let far = picture(SIDE, "a", &[(3, 9), (5, 9)]);
        let text = picture(SIDE, "b", &[]);
        let large = picture(SIDE + 1, "a", &[]);
        let of = |drawn: &[&Vec<u8>]| {
            let drawn = drawn.iter().map(|file| (*file).clone());
            nearest(&original, drawn).result
        };
        assert_eq!(of(&[&large, &far, &text, &original]), Replay::SameBytes);
        assert_eq!(of(&[&large, &far, &text]), Replay::SamePixels);
        assert_eq!(of(&[&large, &far]), Replay::Differs);
        assert_eq!(of(&[&large]), Replay::OtherSize);
        assert_eq!(of(&[]), Replay::OtherSize);
    }
}
