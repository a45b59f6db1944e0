//! Workflows, sweeps, recipes in pictures and bundles that strangers wrote, or that something damaged: a thousand mutated
//! inputs of each, the same ones every time, are taken or refused without a panic, without end and within 1 GB.
//! Weights, pickles and pictures are tried in `nodes/tests/fuzz.rs`.
//!
//! `RETOUCH_FUZZ=N` tries N times as many, from other beginnings (docs/engine.md).

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use retouch_graph::{Engine, MemoryFiles, Settings, Source, format, yaml};

use crate::fuzz_support::{Random, Shown, Tally, change, times};
use crate::support::{is_alone, root};

/// The memory that an input may take: files of a few kilobytes take far less.
const BOUND: usize = 1 << 30;

/// What YAML, references, templates and sweeps are made of.
const PIECES: [&str; 40] = [
    "&a ",
    "*a",
    "*a, *a, *a",
    "<<: *a",
    "!!int ",
    "---\n",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "? ",
    "|\n",
    ">-\n",
    "#",
    "\"",
    "'",
    "\n",
    "\n  ",
    "\t",
    "\u{feff}",
    "$base",
    "$params.seed",
    "$inputs.x",
    "$$",
    "{seed}",
    "{{",
    "}}",
    "random",
    "1..5",
    "1..=9007199254740991",
    "{from: 0, to: 1, step: 0.1}",
    "{lines: lines.txt}",
    "use: used.yaml",
    "use: w.yaml",
    "op: load_image",
    "path: ../../x",
    "-1",
    "1e309",
];

/// Changes to a text: one, or a few.
fn change_text(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    for _ in 0..*random.of(&[1, 1, 1, 2, 4]) {
        change_text_once(bytes, corpus, random);
        bytes.truncate(LONGEST);
    }
}

/// No input grows longer: what can be made of a short one can be made of a long one.
const LONGEST: usize = 1 << 20;

/// A change to a text: of bytes, of letters and digits, of pieces, of lines.
fn change_text_once(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let at = random.below(lines.len().max(1));
    match random.below(12) {
        0 => return change(bytes, 0, corpus, random),
        8.. => {
            let words: Vec<usize> = (0..bytes.len())
                .filter(|at| bytes[*at].is_ascii_alphanumeric())
                .collect();
            if !words.is_empty() {
                bytes[*random.of(&words)] = *random.of(b"0123456789abcdefxyz");
            }
            return;
        }
        1 if at < lines.len() => {
            lines.remove(at);
        }
        2 if at < lines.len() => lines.swap(at, 0),
        3 if at < lines.len() => {
            let again = lines[at];
            let times = *random.of(&[1, 2, 100, 2_000]);
            let times = times.min(1 + LONGEST / again.len().max(1));
            lines.splice(at..at, std::iter::repeat_n(again, times));
        }
        4 if at < lines.len() => {
            let from = random.below(lines.len());
            let moved = lines[from];
            lines.insert(at, moved);
        }
        _ => {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            let place = places.get(random.below(places.len().max(1))).copied();
            let place = place.unwrap_or(0);
            let piece = random
                .of(&PIECES)
                .repeat(*random.of(&[1, 1, 1, 3, 70, 5_000]));
            let mut text = text;
            if random.below(2) == 0 {
                text.insert_str(place, &piece);
            } else {
                text.replace_range(place.., &(piece + text[place..].get(1..).unwrap_or("")));
            }
            *bytes = text.into_bytes();
            return;
        }
    }
    *bytes = lines.concat().into_bytes();
}

fn read(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect();
    files.sort();
    let files = files.iter().map(|path| std::fs::read(path).unwrap());
    files.filter(|text| text.len() < 20_000).collect()
}

const USED: &str = "schema: retouch/v1\ninputs:\n  x: {type: image}\n  t: {type: string, default: a}\nnodes:\n  r: {op: \
                    resize_image, image: $inputs.x, scale: 2}\noutputs:\n  o: {value: $r}\n";

/// Without models, so that all of it is sound.
const SOUND: &str = "schema: retouch/v1\nname: w\nparams:\n  place: {type: string, default: here}\n  scale: {type: float, \
                     default: 2}\n  seed: {type: seed, default: random}\n  way: {type: choice, default: a, values: [a, \
                     b]}\nnodes:\n  photo: {op: load_image, path: photo.png}\n  part: {use: used.yaml, with: {x: $photo, \
                     t: \"{place}\"}}\n  large: {op: resize_image, image: $part, scale: $params.scale}\n  sheet: {op: \
                     grid, images: [$photo, $large], labels: [\"{place}\", &b b]}\n  again: {op: grid, images: \
                     $large, labels: [*b]}\noutputs:\n  o: {value: $sheet, save: \"{workflow}/{seed}-{way}.png\"}\n  p: \
                     {value: $again}\n";

fn world(path: &str, text: &[u8]) -> Engine {
    let photo = std::fs::read(root().join("references/teddy/01.png")).unwrap();
    let files = MemoryFiles::new()
        .with("photo.png", photo)
        .with("used.yaml", USED)
        .with("w.yaml", SOUND)
        .with("lines.txt", "a\nb # c\n\n# d\n1\n")
        .with(path, text);
    Engine::new(retouch_nodes::registry()).with_files(Arc::new(files))
}

fn settings() -> Settings {
    Settings {
        draw: Some(0),
        ..Settings::default()
    }
}

fn first(problems: impl IntoIterator<Item = retouch_graph::Problem>) -> String {
    let first = problems.into_iter().next();
    first.map_or_else(String::new, |problem| {
        format!("{} {}", problem.code().as_str(), problem.message())
    })
}

#[test]
fn a_thousand_broken_workflows_are_taken_or_refused() {
    let mut corpus = vec![SOUND.as_bytes().to_vec(), USED.as_bytes().to_vec()];
    corpus.extend(read("workflows", "yaml"));
    corpus.extend(read("tests/invalid", "yaml"));
    let mut tally = Tally::default();
    for round in 0..1_000 * times() {
        let mut random = Random(round);
        // One of two begins with what is sound.
        let mut input = corpus[random.below(2) * random.below(corpus.len())].clone();
        change_text(&mut input, &corpus, &mut random);
        let engine = world("m.yaml", &input);
        tally.one(&input, BOUND, || {
            let path = Path::new("m.yaml");
            let loaded = engine.load(path, &settings());
            if let Ok(text) = std::str::from_utf8(&input) {
                let source = Source::new("m.yaml", text);
                // What is formatted is formatted, and means the same.
                if let Ok(once) = format::format(&source) {
                    let again = format::format(&Source::new("m.yaml", once.as_str()));
                    assert!(
                        again.is_ok_and(|again| again == once),
                        "{:?}",
                        Shown(&input)
                    );
                }
                let _ = (yaml::comments(text), yaml::written(text));
            }
            match loaded {
                Ok(checked) => {
                    let _ = engine.plan(&checked, &[]);
                    Ok(())
                }
                Err(problems) => Err(first(problems)),
            }
        });
    }
    println!(
        "{} tried, {} taken, at most {} bytes",
        tally.tried, tally.accepted, tally.most
    );
    tally.is_telling(1_000 * times(), 20);
}

#[test]
fn a_thousand_broken_sweeps_are_taken_or_refused() {
    let sweeps = [
        "sweep: {matrix: {scale: [1, 2], place: [a, b]}}\n",
        "sweep:\n  matrix:\n    scale: {from: 1, to: 2, step: 0.25}\n    seed: 1..5\n  exclude: [{scale: 1, seed: 2}]\n  \
         include: [{scale: 9}]\n  grid: {rows: scale, columns: seed, save: \"{workflow}/s.png\"}\n  table: t.csv\n",
        "sweep: {matrix: {place: {lines: lines.txt}, seed: [random, random, 3], way: [a, b]}}\n",
    ];
    let mut corpus: Vec<Vec<u8>> = (sweeps.iter())
        .map(|sweep| format!("{SOUND}{sweep}").into_bytes())
        .collect();
    corpus.push(
        format!(
            "schema: retouch/v1\n{}",
            sweeps[0].replace("{matrix", "{workflow: w.yaml, matrix")
        )
        .into(),
    );
    let mut tally = Tally::default();
    for round in 0..1_000 * times() {
        let mut random = Random(round);
        let mut input = random.of(&corpus).clone();
        change_text(&mut input, &corpus, &mut random);
        let engine = world("m.yaml", &input);
        tally.one(&input, BOUND, || {
            match engine.load_sweep(Path::new("m.yaml"), &settings()) {
                Ok(sweep) => {
                    let _ = engine.plan_sweep(&sweep, &[], &Default::default());
                    Ok(())
                }
                Err(problems) => Err(first(problems)),
            }
        });
    }
    println!(
        "{} tried, {} taken, at most {} bytes",
        tally.tried, tally.accepted, tally.most
    );
    tally.is_telling(1_000 * times(), 20);
}

// ---- through the program -----------------------------------------------------------------------------------------------

/// Runs the program on an input; whether it took it. A signal, a panic or a wait without end fails.
#[track_caller]
fn taken(folder: &Path, arguments: &[&str], input: &[u8]) -> bool {
    let mut child = Command::new(env!("CARGO_BIN_EXE_retouch"))
        .args(arguments)
        .current_dir(folder)
        .env("RETOUCH_CONFIG", "")
        .env("RETOUCH_NO_CACHE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("{arguments:?} does not end: {:?}", Shown(input));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    match status.code() {
        Some(0) => true,
        Some(1..=3) => false,
        other => panic!("{arguments:?}: {other:?}: {:?}", Shown(input)),
    }
}

/// The most memory that a program which was waited for had, in bytes.
fn most_of_children() -> u64 {
    // SAFETY: the structure is plain numbers, for which zeros are values, and the call fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    u64::try_from(usage.ru_maxrss).unwrap() * unit
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&length[..], &body, &crc32fast::hash(&body).to_be_bytes()].concat()
}

const KEYWORD: &[u8] = b"retouch\0\x01\0\0\0";

/// A small picture that carries a recipe.
fn picture(recipe: &[u8]) -> Vec<u8> {
    let mut png = Vec::new();
    let encoder = png::Encoder::new(&mut png, 8, 8);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0; 64]).unwrap();
    writer.finish().unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(KEYWORD.to_vec(), flate2::Compression::fast());
    zlib.write_all(recipe).unwrap();
    let text = chunk(b"iTXt", &zlib.finish().unwrap());
    // Behind the header: the signature, and a chunk of 13 bytes.
    png.splice(33..33, text);
    png
}

/// The recipe of a picture that ships.
fn recipe(name: &str) -> Vec<u8> {
    let png = std::fs::read(root().join(name)).unwrap();
    let at = png
        .windows(KEYWORD.len())
        .position(|bytes| bytes == KEYWORD)
        .unwrap();
    let length = u32::from_be_bytes(*png[at - 8..].first_chunk().unwrap()) as usize;
    let mut text = Vec::new();
    let mut zlib = flate2::read::ZlibDecoder::new(&png[at + KEYWORD.len()..at + length]);
    zlib.read_to_end(&mut text).unwrap();
    text
}

#[cfg(unix)]
#[test]
fn a_thousand_broken_recipes_are_taken_or_refused() {
    // The memory that is measured is that of all programs which this process waited for.
    if !is_alone("fuzz::a_thousand_broken_recipes_are_taken_or_refused") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe("docs/sweep.png");
    let corpus = [recipe.clone(), picture(&recipe)];
    let (mut took, mut refused) = (0, 0);
    for round in 0..1_000 * times() {
        let mut random = Random(round);
        let input = if random.below(3) == 0 {
            let mut input = corpus[1].clone();
            change(&mut input, 0, &corpus, &mut random);
            input
        } else {
            let mut text = recipe.clone();
            change_text(&mut text, &corpus[..1], &mut random);
            picture(&text)
        };
        std::fs::write(folder.path().join("m.png"), &input).unwrap();
        let command = *random.of(&["show", "show", "show", "extract"]);
        if taken(folder.path(), &[command, "m.png"], &input) {
            took += 1;
        } else {
            refused += 1;
        }
    }
    println!(
        "{took} taken, {refused} refused, at most {} bytes",
        most_of_children()
    );
    assert!(took > 0 && refused > 0, "{took} {refused}");
    assert!(most_of_children() < BOUND as u64);
}

#[cfg(unix)]
#[test]
fn a_thousand_broken_bundles_are_taken_or_refused() {
    // The memory that is measured is that of all programs which this process waited for.
    if !is_alone("fuzz::a_thousand_broken_bundles_are_taken_or_refused") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let photo = root().join("references/teddy/01.png");
    std::fs::copy(photo, place.join("photo.png")).unwrap();
    std::fs::write(place.join("used.yaml"), USED).unwrap();
    std::fs::write(place.join("w.yaml"), SOUND).unwrap();
    assert!(taken(place, &["bundle", "w.yaml", "-o", "w.tar.zst"], &[]));
    let bundle = std::fs::read(place.join("w.tar.zst")).unwrap();
    let mut tar = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(bundle.as_slice())
        .unwrap()
        .read_to_end(&mut tar)
        .unwrap();
    let corpus = [tar.clone(), SOUND.as_bytes().to_vec()];
    let (mut took, mut refused) = (0, 0);
    for round in 0..1_000 * times() {
        let mut random = Random(round);
        let mut input = bundle.clone();
        if random.below(4) == 0 {
            change(&mut input, 0, &corpus, &mut random);
        } else {
            let mut changed = tar.clone();
            // The manifest and the first headers, or anything; a half only changes what is there, so that all stays at
            // its place.
            let end = *random.of(&[2_048, changed.len()]);
            for _ in 0..*random.of(&[1, 1, 2]) {
                if random.below(3) > 0 {
                    let at = random.below(end.min(changed.len()).max(1));
                    if let Some(byte) = changed.get_mut(at) {
                        *byte = *random.of(b"0123456789abcdef/.\"\\ {}[],:&*\0\xff");
                    }
                } else {
                    change(&mut changed, 0, &corpus, &mut random);
                }
            }
            input = ruzstd::encoding::compress_to_vec(
                changed.as_slice(),
                ruzstd::encoding::CompressionLevel::Fastest,
            );
        }
        std::fs::write(place.join("m.tar.zst"), &input).unwrap();
        if taken(place, &["unbundle", "m.tar.zst", "out"], &input) {
            took += 1;
            std::fs::remove_dir_all(place.join("out")).unwrap();
        } else {
            refused += 1;
            assert!(!place.join("out").exists(), "{:?}", Shown(&input));
        }
    }
    println!(
        "{took} taken, {refused} refused, at most {} bytes",
        most_of_children()
    );
    assert!(refused > 0);
    assert!(most_of_children() < BOUND as u64);
}
