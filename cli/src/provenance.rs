//! Where pictures come from, written into them: every PNG that a run saves carries its recipe in a text chunk.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use retouch_graph::files::{self, piece};
use retouch_graph::paths::normal;
use retouch_graph::provenance::{self, Origin, Provenance, ReadEntry};
use retouch_graph::remote::Address;
use retouch_graph::text::shortened;
use retouch_graph::{
    Checked, Code, Digest, Engine, FileStamp, Files, Lock, LockedFile, LockedKind, Settings, Stamp,
    Sweep, SweepPlan, lock, remote,
};

use sha2::{Digest as _, Sha256};

use crate::Failure;
use crate::bundle::names;
use crate::output::tell;

/// The keyword of the text chunk.
const KEYWORD: &str = "retouch";
/// The keyword of the text that says which image of a batch a picture is: `2/4`.
const IMAGE: &str = "retouch-image";
/// A recipe is a few kilobytes; what unpacks to more than this is none.
const MOST: usize = 16 << 20;
/// The text of [`IMAGE`] is two numbers.
const MOST_IMAGE: usize = 64;
/// The files of a recipe and the bytes of a path in it: more is none of ours, and would be looked for in many places.
const MOST_FILES: usize = 10_000;
const MOST_PATH: usize = 4096;
/// A recipe of that length has fewer values; each takes many times its text once it is read.
const MOST_VALUES: usize = 1_000_000;
/// The bytes of the largest picture that is read.
const MOST_PICTURE: u64 = 2 << 30;
/// The memory that a picture's chunks in front of its recipe may take.
const MOST_CHUNKS: usize = 64 << 20;
/// The bytes of a PNG's signature and its first chunk, IHDR, behind which the recipe stands.
const HEAD: usize = 8 + 4 + 4 + 13 + 4;
/// Number of folders above a picture that are searched for its inputs.
const ABOVE: usize = 3;
/// Depth below those, and number of folders in all, in which the workflow may have been.
const BELOW: usize = 2;
const MOST_BASES: usize = 200;

/// The program and its version, as recipes name it.
#[must_use]
pub fn tool() -> String {
    format!("retouch {}", env!("CARGO_PKG_VERSION"))
}

/// What is run, for the recipes of its outputs.
pub enum Made {
    /// A workflow.
    Workflow(Box<Checked>),
    /// A sweep: for each output of the plan, by its name there, the cell and the name in the workflow.
    Sweep(Arc<Sweep>, HashMap<String, (Option<usize>, String)>),
}

impl Made {
    /// The workflow, of a sweep all of its cells.
    #[must_use]
    pub fn checked(&self) -> &Checked {
        match self {
            Self::Workflow(checked) => checked,
            Self::Sweep(sweep, _) => sweep.all_cells(),
        }
    }

    /// The outputs of a sweep's plan.
    #[must_use]
    pub fn sweep(sweep: &Arc<Sweep>, plan: &SweepPlan) -> Self {
        let names = (plan.plan.outputs().iter().zip(&plan.outputs))
            .map(|(output, of)| (output.name.clone(), of.clone()))
            .collect();
        Self::Sweep(Arc::clone(sweep), names)
    }
}

/// Writes recipes into pictures as they are saved.
pub struct Stamps {
    engine: Engine,
    origin: Origin,
    made: Made,
    /// The recipe of each output; `None` where there is none, which was said.
    recipes: Mutex<HashMap<String, Option<Arc<str>>>>,
    /// The outputs of the workflow whose recipe was tried, with the files that it reads, and whether it makes what it is
    /// of. That of another cell of a sweep that reads the same has the same form.
    tried: Mutex<HashMap<String, bool>>,
}

impl fmt::Debug for Stamps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stamps").finish_non_exhaustive()
    }
}

impl Stamps {
    /// Recipes for what is loaded from `path`; `None` when the file is not what it was a moment ago.
    #[must_use]
    pub fn of(engine: &Engine, path: &Path, made: Made) -> Option<Arc<dyn Stamp>> {
        let origin = Origin::of(engine, path, &tool()).ok()?;
        Some(Arc::new(Self {
            engine: engine.clone(),
            origin,
            made,
            recipes: Mutex::default(),
            tried: Mutex::default(),
        }))
    }

    fn recipe(&self, output: &str) -> Option<Arc<str>> {
        if let Some(known) = of(&self.recipes).get(output) {
            return known.clone();
        }
        let made = match &self.made {
            // A node that was asked for by name is no output of the workflow, and a recipe is one's.
            Made::Workflow(checked) if !checked.outputs.iter().any(|one| one.name == output) => {
                return None;
            }
            Made::Workflow(checked) => self.origin.output(&self.engine, checked, output),
            Made::Sweep(sweep, names) => match names.get(output) {
                Some((Some(cell), name)) => {
                    let checked = sweep.cell(*cell)?;
                    self.origin.output(&self.engine, &checked, name)
                }
                // A recipe says how one picture is drawn; a plot of many measures has none.
                Some((None, name)) if name != sweep.sheet_name() => return None,
                _ => self.origin.sheet(&self.engine, sweep),
            },
        };
        let text = match made {
            Ok(recipe) if self.makes(&recipe) => serde_json::to_string(&recipe).ok().map(Arc::from),
            Ok(_) => {
                tell(&format!(
                    "warning: `{output}`: its recipe cannot be recorded in a reproducible form; it is saved without a recipe"
                ));
                None
            }
            Err(problems) => {
                for problem in problems.iter().take(1) {
                    tell(&format!("warning: `{output}`: {}", problem.message()));
                }
                None
            }
        };
        of(&self.recipes).insert(output.to_owned(), text.clone());
        text
    }

    /// Whether a recipe, read by itself, gives the very same recipe, and names no place of this machine.
    fn makes(&self, recipe: &Provenance) -> bool {
        if private(recipe).is_some() {
            return false;
        }
        // Cells that read other files are tried each: what is hard to say is where files are.
        let mut form = recipe.output.clone();
        for file in &recipe.files {
            form.push('\n');
            form.push_str(&file.path);
        }
        if let Some(known) = of(&self.tried).get(&form) {
            return *known;
        }
        let makes = self.again(recipe).is_some_and(|again| again == *recipe);
        of(&self.tried).insert(form, makes);
        makes
    }

    fn again(&self, recipe: &Provenance) -> Option<Provenance> {
        let places = recipe
            .files
            .iter()
            .map(|file| Some(file.place.clone()))
            .collect();
        let (found, workflow) = nowhere(recipe, places, Arc::clone(self.engine.files()));
        let engine = self.engine.clone().with_files(Arc::new(found));
        let origin = Origin::of(&engine, &workflow, &tool()).ok()?;
        let settings = Settings::default();
        let made = if matches!(&self.made, Made::Sweep(sweep, _) if recipe.output == sweep.sheet_name())
        {
            let sweep = engine.load_sweep(&workflow, &settings).ok()?;
            origin.sheet(&engine, &sweep)
        } else {
            let checked = engine.load(&workflow, &settings).ok()?;
            origin.output(&engine, &checked, &recipe.output)
        };
        made.ok()
    }
}

/// A lock that a panic elsewhere does not take away.
fn of<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place of this machine that a recipe names, if there is one.
fn private(recipe: &Provenance) -> Option<PathBuf> {
    let text = serde_json::to_string(recipe).ok()?;
    let folders = (recipe.files.iter())
        .filter_map(|file| {
            std::path::absolute(&file.place)
                .ok()?
                .parent()
                .map(Path::to_owned)
        })
        .chain(std::env::current_dir().ok());
    folders
        .filter(|folder| folder.components().count() > 2)
        .find(|folder| folder.to_str().is_some_and(|folder| text.contains(folder)))
}

impl Stamp for Stamps {
    fn stamp(&self, output: &str, format: &str, image: (usize, usize), bytes: Vec<u8>) -> Vec<u8> {
        if !matches!(format, "png" | "apng") {
            return bytes;
        }
        let recipe = self.recipe(output);
        let stamped = recipe.and_then(|text| {
            let (index, count) = image;
            let image = match count {
                0 | 1 => None,
                _ => embed(&bytes, IMAGE, &format!("{}/{count}", index + 1)),
            };
            embed(image.as_deref().unwrap_or(&bytes), KEYWORD, &text)
        });
        stamped.unwrap_or(bytes)
    }
}

/// Puts a text into a PNG, in front of its picture; `None` when it is no PNG.
fn embed(png: &[u8], keyword: &str, text: &str) -> Option<Vec<u8>> {
    if png.get(..8) != Some(b"\x89PNG\r\n\x1a\n") || png.get(12..16) != Some(b"IHDR") {
        return None;
    }
    let (head, rest) = png.split_at_checked(HEAD)?;
    // iTXt (PNG specification, 11.3.4.5): keyword, compressed, zlib, no language, no translated keyword, text.
    let mut chunk = b"iTXt".to_vec();
    chunk.extend(keyword.as_bytes());
    chunk.extend([0, 1, 0, 0, 0]);
    let mut zlib = flate2::write::ZlibEncoder::new(chunk, flate2::Compression::best());
    zlib.write_all(text.as_bytes()).ok()?;
    let chunk = zlib.finish().ok()?;
    let length = u32::try_from(chunk.len() - 4).ok()?;
    let mut stamped = Vec::with_capacity(png.len() + chunk.len() + 8);
    stamped.extend(head);
    stamped.extend(length.to_be_bytes());
    stamped.extend(&chunk);
    stamped.extend(crc32fast::hash(&chunk).to_be_bytes());
    stamped.extend(rest);
    Some(stamped)
}

/// The bytes of a picture; more than a picture has is none.
///
/// # Errors
/// As the file system gives them, or when it is too large.
pub fn read_picture(path: &Path) -> std::io::Result<Vec<u8>> {
    files::read(path, MOST_PICTURE)
}

/// What is read of a recipe before it is known to be one.
#[derive(serde::Deserialize)]
struct Head {
    schema: String,
}

/// The recipe that a picture carries.
///
/// # Errors
/// When the file cannot be read, is no PNG, or carries none that this program reads.
pub fn read(path: &Path) -> Result<Provenance, Failure> {
    read_with_image(path).map(|(recipe, _)| recipe)
}

/// The keyword of the chunk that marks a preview.
const PREVIEW: &str = "retouch-preview";

/// The same picture, marked as a preview.
#[must_use]
pub fn as_preview(png: &[u8]) -> Option<Vec<u8>> {
    embed(png, PREVIEW, "1")
}

/// Whether a file is a picture that is marked as a preview.
#[must_use]
pub fn is_preview(path: &Path) -> bool {
    let Ok(file) = files::open(path) else {
        return false;
    };
    let limits = png::Limits { bytes: MOST_CHUNKS };
    let decoder = png::Decoder::new_with_limits(BufReader::new(file), limits);
    decoder.read_info().is_ok_and(|reader| {
        let mut texts = reader.info().utf8_text.iter();
        texts.any(|chunk| chunk.keyword == PREVIEW)
    })
}

/// The recipe that a picture carries, and which image of a batch it is: its number, from 1, and how many there are.
///
/// # Errors
/// As [`read`].
pub fn read_with_image(path: &Path) -> Result<(Provenance, Option<(u64, u64)>), Failure> {
    let shown = path.display();
    let file = files::open(path).map_err(|e| Failure::unreadable_argument(path, e))?;
    let none = |what: &str| {
        Failure::failed(format!("{shown} {what}"))
            .code(Code::NoRecipe)
            .help("pictures carry their recipe if `retouch run` saved them as .png, without `--no-provenance`, and no other program has removed it since")
    };
    // The recipe stands in front of the picture: what follows is not read, nor is a file that is no PNG.
    let limits = png::Limits { bytes: MOST_CHUNKS };
    let mut decoder = png::Decoder::new_with_limits(BufReader::new(file), limits);
    decoder.set_ignore_text_chunk(false);
    decoder.set_ignore_iccp_chunk(true);
    let reader = decoder
        .read_info()
        .map_err(|e| none(&format!("is not a PNG: {e}")))?;
    let info = reader.info();
    let image = info.utf8_text.iter().find(|chunk| chunk.keyword == IMAGE);
    let image = image.and_then(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MOST_IMAGE).ok()?;
        let text = chunk.get_text().ok()?;
        let (number, count) = text.split_once('/')?;
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        (1..=count).contains(&number).then_some((number, count))
    });
    let text = info.utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD);
    let mut chunk = text.ok_or_else(|| none("carries no recipe"))?.clone();
    let text = chunk
        .decompress_text_with_limit(MOST)
        .and_then(|()| chunk.get_text())
        .map_err(|e| none(&format!("carries a damaged recipe: {e}")))?;
    if text.bytes().filter(|byte| *byte == b',').count() > MOST_VALUES {
        return Err(none("carries a recipe with more values than one has"));
    }
    let Head { schema } =
        serde_json::from_str(&text).map_err(|_| none("carries a damaged recipe"))?;
    if schema != provenance::SCHEMA {
        return Err(Failure::failed(format!(
            "{shown} carries a recipe with the schema `{schema}`"
        ))
        .code(Code::NoRecipe)
        .help(format!(
            "this version reads `{}`; a newer one may read it",
            provenance::SCHEMA
        )));
    }
    let provenance: Provenance =
        serde_json::from_str(&text).map_err(|e| none(&format!("carries a damaged recipe: {e}")))?;
    let strange = |path: &str| {
        // The first bytes say which one it is.
        let text = format!(
            "carries a recipe with the path `{}`",
            shortened(&path.escape_debug().to_string(), 100)
        );
        Err(none(&text))
    };
    if provenance.files.len() > MOST_FILES {
        let count = provenance.files.len();
        return Err(none(&format!(
            "carries a recipe of {count} files, which is too many"
        )));
    }
    for file in &provenance.files {
        if let Some(path) = [Some(&file.path), file.model.as_ref()]
            .into_iter()
            .flatten()
            .find(|path| !is_relative(path) && !is_on_hub(path))
        {
            return strange(path);
        }
        if retouch_graph::digest::parse_hex(&file.blake3).is_none() {
            return Err(none("carries a recipe with an invalid digest"));
        }
    }
    for path in provenance.graphs.keys() {
        let below = path.trim_start_matches("../");
        let yaml = below.ends_with(".yaml") || below.ends_with(".yml");
        if !is_relative(path)
            || !yaml
            || names::fault(below).is_some()
            || below.starts_with('.')
            || below.contains("/.")
        {
            return strange(path);
        }
    }
    if provenance.output.contains(char::is_control) {
        return Err(none("carries a recipe of an output that cannot be named"));
    }
    Ok((provenance, image))
}

/// Whether a path in a recipe leads to a hub, written in the one way that there is.
fn is_on_hub(path: &str) -> bool {
    Address::parse(Path::new(path)).is_ok_and(|address| address.to_string() == path)
}

/// Whether a path in a recipe is relative, on every system.
fn is_relative(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MOST_PATH
        && !path.starts_with('/')
        && !path.contains(['\\', ':'])
        && !path.contains(char::is_control)
        && path.split('/').all(|part| !part.is_empty())
}

/// Files of a recipe: its texts, and what was found with the content that it says. There are no others.
#[derive(Debug)]
pub struct Found {
    texts: HashMap<PathBuf, Arc<[u8]>>,
    places: HashMap<PathBuf, PathBuf>,
    inner: FilesOf,
}

/// A name for debugging.
struct FilesOf(Arc<dyn Files>);

impl fmt::Debug for FilesOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("files")
    }
}

fn missing() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::NotFound, "the recipe does not name it")
}

impl Found {
    /// Where a file is; one that was asked for its place is known by that too.
    fn place_of(&self, path: &Path) -> std::io::Result<&Path> {
        (self.places.get(&normal(path)))
            .or_else(|| self.places.values().find(|place| place.as_path() == path))
            .map(PathBuf::as_path)
            .ok_or_else(missing)
    }
}

impl Files for Found {
    fn read(&self, path: &Path) -> std::io::Result<Arc<[u8]>> {
        match self.texts.get(&normal(path)) {
            Some(text) => Ok(Arc::clone(text)),
            None => self.inner.0.read(self.place_of(path)?),
        }
    }

    fn read_head(&self, path: &Path, length: usize) -> std::io::Result<(Vec<u8>, u64)> {
        match self.texts.get(&normal(path)) {
            Some(text) => {
                let mut head = Vec::new();
                text.take(length as u64).read_to_end(&mut head)?;
                Ok((head, text.len() as u64))
            }
            None => self.inner.0.read_head(self.place_of(path)?, length),
        }
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
        match self.texts.get(&normal(path)) {
            Some(text) => Ok(piece(text, offset, length).to_vec()),
            None => self.inner.0.read_at(self.place_of(path)?, offset, length),
        }
    }

    fn digest(&self, path: &Path) -> std::io::Result<Digest> {
        match self.texts.get(&normal(path)) {
            Some(text) => Ok(*blake3::hash(text).as_bytes()),
            None => self.inner.0.digest(self.place_of(path)?),
        }
    }

    fn is_file(&self, path: &Path) -> bool {
        let path = normal(path);
        self.texts.contains_key(&path) || self.places.contains_key(&path)
    }

    fn is_dir(&self, path: &Path) -> bool {
        let folder = normal(path);
        self.places
            .keys()
            .any(|file| *file != folder && file.starts_with(&folder))
    }

    fn sha256(&self, path: &Path) -> std::io::Result<Digest> {
        match self.texts.get(&normal(path)) {
            Some(text) => Ok(Sha256::digest(text).into()),
            None => self.inner.0.sha256(self.place_of(path)?),
        }
    }

    fn doubt(&self) {
        self.inner.0.doubt();
    }

    fn stamp(&self, path: &Path) -> Option<FileStamp> {
        match self.texts.contains_key(&normal(path)) {
            true => None, // it cannot change
            false => self.inner.0.stamp(self.place_of(path).ok()?),
        }
    }

    fn flush(&self) {
        self.inner.0.flush();
    }

    fn entries(&self, folder: &Path) -> std::io::Result<Vec<retouch_graph::FolderEntry>> {
        let at = normal(folder);
        let own = self.places.keys();
        let mut entries = own
            .filter(|file| file.parent() == Some(&at))
            .map(|file| {
                let (_, size) = self.read_head(file, 0)?;
                Ok(retouch_graph::FolderEntry {
                    path: file.clone(),
                    size: Some(size),
                })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        if entries.is_empty() {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        entries.sort();
        Ok(entries)
    }
}

impl retouch_graph::ModelLocator for Found {
    fn find_model(&self, _: &Path) -> retouch_graph::Searched {
        retouch_graph::Searched::default()
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.place_of(path)
            .map_or_else(|_| path.to_owned(), |place| self.inner.0.place(place))
    }

    fn withheld(&self, _: &Path) -> Option<retouch_graph::Withheld> {
        None
    }

    fn commit(&self, path: &Path) -> Option<String> {
        self.inner.0.commit(path)
    }
}

/// Finds what a recipe was made of and gives an engine that reads it, and nothing else, with the workflow's path there.
///
/// A file is looked for at its path from the current folder and from those of the picture, then by its content below
/// `models` and them.
///
/// # Errors
/// Names every file that is missing, or is there with another content.
pub fn open(
    provenance: &Provenance,
    picture: &Path,
    models: &[PathBuf],
    engine: Engine,
) -> Result<(Engine, PathBuf), Failure> {
    let unique = roots(picture, models);
    let none = vec![None; provenance.files.len()];
    let (mut found, workflow) = nowhere(provenance, none, Arc::clone(engine.files()));
    let folder = workflow.parent().unwrap_or(Path::new("")).to_owned();
    let bases = bases(&unique, &*found.inner.0);
    let mut sought: Vec<&ReadEntry> = Vec::new();
    let mut changed: HashMap<&str, PathBuf> = HashMap::new();
    for file in &provenance.files {
        let digest = retouch_graph::digest::parse_hex(&file.blake3);
        let path = Path::new(&file.path);
        if remote::is_remote(path) {
            // The hub says how long the file is before it is fetched: a recipe does not make anybody fetch another.
            let hub = &found.inner.0;
            let folder = path.parent().unwrap_or(path);
            let there = hub.entries(folder).unwrap_or_default();
            let sound = (there.iter())
                .any(|entry| normal(&entry.path) == normal(path) && entry.size == Some(file.size));
            if sound && hub.digest(path).ok() == digest {
                found.places.insert(normal(path), path.to_owned());
            } else if let Some(why) = hub.withheld(path) {
                return Err(Failure::failed(why.message).code(why.code).help(why.help));
            } else {
                sought.push(file);
            }
            continue;
        }
        let place = at_its_path(file, (&bases, &unique), &*found.inner.0, &mut changed);
        match place {
            Some(place) => {
                found.places.insert(normal(&folder.join(&file.path)), place);
            }
            None => sought.push(file),
        }
    }
    if !sought.is_empty() {
        let there = by_content(&sought, &folder, &unique, &*found.inner.0);
        sought.retain(|file| {
            let path = normal(&remote::join(&folder, &file.path));
            match there.get(&path) {
                Some(place) => {
                    found.places.insert(path, place.clone());
                    false
                }
                None => true,
            }
        });
    }
    if sought.is_empty() {
        return Ok((engine.with_files(Arc::new(found)), workflow));
    }
    Err(lost(provenance, &sought, &changed, &*found.inner.0))
}

/// The folders that the files of a recipe may lie in: those of `models`, the current one, those around the picture.
fn roots(picture: &Path, models: &[PathBuf]) -> Vec<PathBuf> {
    let here = std::env::current_dir().unwrap_or_default();
    let picture = std::path::absolute(picture).unwrap_or_else(|_| picture.to_owned());
    let mut roots: Vec<PathBuf> = models.to_vec();
    roots.push(here.clone());
    roots.extend(picture.ancestors().skip(1).take(ABOVE).map(Path::to_owned));
    let mut unique: Vec<PathBuf> = Vec::new();
    for root in roots {
        // What lies above the current folder is other people's, up to the root of the file system.
        let above = root != here && here.starts_with(&root);
        if (!above || models.contains(&root)) && root.parent().is_some() && !unique.contains(&root)
        {
            unique.push(root);
        }
    }
    unique
}

/// The file of a recipe at its path from one of the `bases`, inside of the `roots`. What is there with another content is noted
/// in `changed`.
fn at_its_path<'r>(
    file: &'r ReadEntry,
    (bases, roots): (&[PathBuf], &[PathBuf]),
    files: &dyn Files,
    changed: &mut HashMap<&'r str, PathBuf>,
) -> Option<PathBuf> {
    let digest = retouch_graph::digest::parse_hex(&file.blake3);
    let below = file.path.trim_start_matches("../");
    let places = bases
        .iter()
        .flat_map(|base| [base.join(&file.path), base.join(below)]);
    let mut place = None;
    for candidate in places.map(|place| normal(&place)) {
        // Nothing outside of the folders that are looked in, whatever the recipe says; and no file of another size is
        // read, which may be anything.
        let inside = roots.iter().any(|root| candidate.starts_with(root));
        if !inside || !std::fs::metadata(&candidate).is_ok_and(|there| there.is_file()) {
            continue;
        }
        if std::fs::metadata(&candidate).is_ok_and(|there| there.len() != file.size) {
            changed.entry(&file.path).or_insert(candidate);
            continue;
        }
        if files.digest(&candidate).ok() == digest {
            place = Some(candidate);
            break;
        }
        changed.entry(&file.path).or_insert(candidate);
    }
    place
}

/// The failure that names every file that was not found, or is there with another content.
fn lost(
    provenance: &Provenance,
    sought: &[&ReadEntry],
    changed: &HashMap<&str, PathBuf>,
    files: &dyn Files,
) -> Failure {
    let mut lines: Vec<String> = Vec::new();
    let mut told: Vec<&str> = Vec::new();
    for file in sought {
        let digest = file.blake3.get(..8).unwrap_or(&file.blake3);
        if let Some(place) = changed.get(file.path.as_str()) {
            let now = files.digest(place);
            let now = now.map_or_else(|_| "?".to_owned(), |now| retouch_graph::digest::short(&now));
            let place = place.display();
            lines.push(format!(
                "{}: changed ({digest} -> {now}, {place})",
                file.path
            ));
            continue;
        }
        // A model that is gone as a whole is one thing.
        let of = |model: &str| {
            let own = |entry: &&ReadEntry| entry.model.as_deref() == Some(model);
            let lost = sought.iter().filter(|entry| own(entry)).count();
            (lost == provenance.files.iter().filter(own).count()).then_some(lost)
        };
        match file
            .model
            .as_deref()
            .and_then(|model| Some((model, of(model)?)))
        {
            Some((model, files)) if files > 1 => {
                if !told.contains(&model) {
                    told.push(model);
                    lines.push(format!("{model}: missing (a model of {files} files)"));
                }
            }
            _ => lines.push(format!(
                "{}: missing ({} bytes, {digest})",
                file.path, file.size
            )),
        }
    }
    Failure::failed(format!(
        "inputs of the picture are missing or changed:\n  {}",
        lines.join("\n  ")
    ))
    .code(Code::RecipeLost)
    .help("bring the files back, and name folders to look in with `--models DIR` or RETOUCH_MODELS")
}

/// The files of a recipe in a folder that is nowhere, so deep that no `..` of it leads out; and the workflow's path there.
fn nowhere(
    recipe: &Provenance,
    places: Vec<Option<PathBuf>>,
    inner: Arc<dyn Files>,
) -> (Found, PathBuf) {
    let texts = recipe
        .graphs
        .keys()
        .chain(recipe.files.iter().map(|file| &file.path));
    let depth = texts
        .map(|path| path.matches("..").count())
        .max()
        .unwrap_or(0)
        + 3;
    let here = std::env::current_dir().unwrap_or_default();
    let mut folder = here.join(".retouch-replay");
    for level in 0..depth {
        folder.push(level.to_string());
    }
    let workflow = folder.join("workflow.yaml");
    let mut found = Found {
        texts: HashMap::new(),
        places: HashMap::new(),
        inner: FilesOf(inner),
    };
    found
        .texts
        .insert(workflow.clone(), Arc::from(recipe.workflow.as_bytes()));
    for (path, text) in &recipe.graphs {
        found
            .texts
            .insert(normal(&folder.join(path)), Arc::from(text.as_bytes()));
    }
    for (file, place) in recipe.files.iter().zip(places) {
        if let Some(place) = place {
            found
                .places
                .insert(normal(&remote::join(&folder, &file.path)), place);
        }
    }
    (found, workflow)
}

/// The folders that the workflow may have been in: the roots and what is in them, the nearest first.
fn bases(roots: &[PathBuf], files: &dyn Files) -> Vec<PathBuf> {
    let mut bases: Vec<PathBuf> = roots.to_vec();
    let mut level = bases.clone();
    for _ in 0..BELOW {
        let mut next = Vec::new();
        for folder in &level {
            let entries = files.entries(folder).unwrap_or_default().into_iter();
            next.extend(
                entries
                    .filter(|entry| entry.size.is_none())
                    .map(|entry| entry.path),
            );
        }
        for folder in &next {
            if bases.len() < MOST_BASES && !bases.contains(folder) {
                bases.push(folder.clone());
            }
        }
        level = next;
        level.truncate(MOST_BASES);
    }
    bases
}

/// Looks for files by their content.
fn by_content(
    sought: &[&ReadEntry],
    folder: &Path,
    roots: &[PathBuf],
    files: &dyn Files,
) -> HashMap<PathBuf, PathBuf> {
    let locked = (sought.iter())
        .filter_map(|file| {
            Some(LockedFile {
                kind: if file.kind == "model" {
                    LockedKind::Model
                } else {
                    LockedKind::Asset
                },
                path: file.path.clone(),
                elsewhere: false,
                model: file.model.clone(),
                commit: None,
                size: file.size,
                blake3: retouch_graph::digest::parse_hex(&file.blake3)?,
            })
        })
        .collect();
    let lock = Lock {
        tool: String::new(),
        workflow: String::new(),
        files: locked,
    };
    let located = lock::locate(&lock, folder, roots, files);
    (located.files.into_iter())
        .map(|redirect| (normal(&redirect.from), redirect.to))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[1, 2, 3, 4, 5, 6]).unwrap();
        writer.finish().unwrap();
        bytes
    }

    #[test]
    fn a_text_in_a_png_is_read_back_and_leaves_the_picture_as_it_is() {
        let text = "{\"a\": \"Grüße \u{1f9f8}\"}".repeat(500);
        let stamped = embed(&picture(), KEYWORD, &text).unwrap();
        assert!(stamped.len() < picture().len() + 300, "it is compressed");
        let mut reader = png::Decoder::new(std::io::Cursor::new(&stamped))
            .read_info()
            .unwrap();
        let mut chunk = reader.info().utf8_text[0].clone();
        assert_eq!(chunk.keyword, KEYWORD);
        chunk.decompress_text_with_limit(MOST).unwrap();
        assert_eq!(chunk.get_text().unwrap(), text);
        let mut pixels = vec![0; 6];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, [1, 2, 3, 4, 5, 6]);
        for none in [&b""[..], b"\x89PNG\r\n\x1a\n", b"GIF89a"] {
            assert!(embed(none, KEYWORD, "x").is_none());
        }
    }

    #[test]
    fn recipes_that_are_none_are_refused_without_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let good = serde_json::json!({
            "schema": provenance::SCHEMA, "tool": "t", "output": "o", "workflow": "", "params": {},
            "files": [{"kind": "asset", "path": "a.png", "size": 1, "blake3": "0".repeat(64)}],
            "record": {"numerics": "", "nodes": {}},
        });
        let mut cases = vec![
            (picture(), "no recipe"),
            (b"nothing".to_vec(), "not a PNG"),
            (embed(&picture(), KEYWORD, "{").unwrap(), "damaged"),
            (
                embed(
                    &picture(),
                    KEYWORD,
                    "{\"schema\": \"retouch-provenance/9\"}",
                )
                .unwrap(),
                "retouch-provenance/9",
            ),
            (
                embed(
                    &picture(),
                    KEYWORD,
                    &format!("{{\"schema\": \"{}\"}}", provenance::SCHEMA),
                )
                .unwrap(),
                "damaged",
            ),
            // A bomb: 32 MiB of nothing.
            (
                embed(&picture(), KEYWORD, &" ".repeat(32 << 20)).unwrap(),
                "damaged",
            ),
        ];
        for bad in ["/etc/passwd", "a/../../\\b", "C:/x", "", "a//b", "a/"] {
            let mut bad_path = good.clone();
            bad_path["files"][0]["path"] = bad.into();
            cases.push((
                embed(&picture(), KEYWORD, &bad_path.to_string()).unwrap(),
                "with the path",
            ));
        }
        let mut long = good.clone();
        long["files"][0]["path"] = "../".repeat(2_000_000).into();
        cases.push((
            embed(&picture(), KEYWORD, &long.to_string()).unwrap(),
            "with the path",
        ));
        let mut many = good.clone();
        many["files"] = vec![good["files"][0].clone(); MOST_FILES + 1].into();
        cases.push((
            embed(&picture(), KEYWORD, &many.to_string()).unwrap(),
            "10001 files",
        ));
        let mut odd = good.clone();
        odd["files"][0]["blake3"] = "a€€€€€".into();
        cases.push((
            embed(&picture(), KEYWORD, &odd.to_string()).unwrap(),
            "an invalid digest",
        ));
        for bad in [
            ".git/hooks/post-checkout",
            "CON.yaml",
            "a/../../b.yaml",
            "a.sh",
            "../.x/a.yaml",
        ] {
            let mut graph = good.clone();
            graph["graphs"] = serde_json::json!({ bad: "" });
            cases.push((
                embed(&picture(), KEYWORD, &graph.to_string()).unwrap(),
                "with the path",
            ));
        }
        for (bytes, said) in cases {
            std::fs::write(&path, &bytes).unwrap();
            let failure = read(&path).unwrap_err();
            assert!(failure.message().contains(said), "{}", failure.message());
            for cut in (0..bytes.len()).step_by(97) {
                std::fs::write(&path, &bytes[..cut]).unwrap();
                assert!(read(&path).is_err());
            }
        }
        std::fs::write(
            &path,
            embed(&picture(), KEYWORD, &good.to_string()).unwrap(),
        )
        .unwrap();
        assert_eq!(read(&path).unwrap().files[0].path, "a.png");
    }
}
