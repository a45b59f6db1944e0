//! What strangers wrote is read without a panic, without end and without more memory than its size is worth: ten
//! thousand mutated inputs of each format, the same ones every time.
//!
//! `RETOUCH_FUZZ=N` tries N times as many, from other beginnings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use retouch_diffusion::checkpoint::layout::Sources;
use retouch_diffusion::checkpoint::model::Description;
use retouch_diffusion::checkpoint::pickle;
use retouch_diffusion::checkpoint::weights::{Header, Table};
use retouch_graph::{Files, Host, MemoryFiles, Node};
use retouch_nodes::load::load_image::{self, LoadImage};

use crate::fuzz_support::{EDGES, Random, Tally, change, measured, times};

fn oracle(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/oracle/data")
        .join(path)
}

fn bytes(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// Every tensor of a table lies in its file.
fn lies_within(table: &Table, length: u64) {
    for stored in table.tensors.values() {
        if stored.elements() == 0 {
            continue;
        }
        let Some(size) = stored.element_bytes() else {
            continue;
        };
        let last: u128 = stored
            .shape
            .iter()
            .zip(&stored.strides)
            .map(|(&side, &stride)| (side as u128 - 1) * stride as u128)
            .sum();
        let end = u128::from(stored.offset) + (last + 1) * size as u128;
        assert!(end <= u128::from(length), "{stored:?} of {length}");
    }
}

// ---- safetensors -----------------------------------------------------------------------------------------------------

/// A header of a few tensors, with data.
fn safetensors() -> Vec<Vec<u8>> {
    let headers = [
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b.c":{"dtype":"F16","shape":[4],"data_offsets":[24,32]}}"#,
        r#"{"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},"b":{"dtype":"I64","shape":[0,7],"data_offsets":[2,2]},"c":{"dtype":"U8","shape":[30],"data_offsets":[2,32]}}   "#,
        r#"{"x":{"dtype":"F64","shape":[1,1,4],"data_offsets":[0,32]}}"#,
    ];
    let file = |header: &str| {
        let length = header.len() as u64;
        [&length.to_le_bytes()[..], header.as_bytes(), &[0; 32]].concat()
    };
    let mut all: Vec<_> = headers.map(file).into();
    all.push(bytes(oracle("micro/adapters/sd1-ti-three.safetensors")));
    all
}

/// A change that leaves the header JSON, or nearly, and its length right.
fn change_header(file: &mut Vec<u8>, random: &mut Random) {
    let length = file.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)) as usize;
    let Some(header) = file.get(8..8usize.saturating_add(length)) else {
        return;
    };
    let mut text = String::from_utf8_lossy(header).into_owned();
    let numbers: Vec<(usize, usize)> = {
        let digits: Vec<bool> = text.bytes().map(|b| b.is_ascii_digit()).collect();
        let starts = (0..digits.len()).filter(|&i| digits[i] && (i == 0 || !digits[i - 1]));
        starts
            .map(|i| (i, i + digits[i..].iter().take_while(|d| **d).count()))
            .collect()
    };
    match random.below(6) {
        0 | 1 if !numbers.is_empty() => {
            let &(start, end) = random.of(&numbers);
            let new = match random.below(4) {
                0 => "-1".to_owned(),
                1 => "1e999".to_owned(),
                2 => random.of(&EDGES).to_string(),
                _ => random.below(40).to_string(),
            };
            text.replace_range(start..end, &new);
        }
        2 => {
            let new = random.of(&["F4", "BOOL", "C64", "F8_E5M2", "f32", "", "U64"]);
            text = text.replacen(random.of(&["F32", "F16", "BF16", "U8", "F64"]), new, 1);
        }
        3 => {
            let deep = 1 + random.below(300);
            text = text.replacen('[', &"[".repeat(deep), 1);
        }
        4 => {
            let end = text.rfind('}').unwrap_or(0);
            let again = format!(",{}", text.get(1..end).unwrap_or_default());
            text.insert_str(end, &again);
        }
        _ => {
            text = text.replacen(
                random.of(&["shape", "dtype", ":", "{", ","]),
                "\u{1f600}",
                1,
            )
        }
    }
    let data = file.split_off(8 + length);
    file.truncate(0);
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
    file.extend(data);
}

#[test]
fn ten_thousand_broken_safetensors_headers_are_taken_or_refused() {
    let corpus = safetensors();
    let (path, mut tally) = (Path::new("weights.safetensors"), Tally::default());
    for round in 0..10_000 * times() {
        let mut random = Random(round);
        let mut input = random.of(&corpus).clone();
        for _ in 0..=random.below(3) {
            if random.below(2) == 0 {
                change_header(&mut input, &mut random);
            } else {
                change(&mut input, 0, &corpus, &mut random);
            }
        }
        let files = MemoryFiles::new().with(path, &input);
        let length = input.len();
        tally.one(&input, (1 << 16) + 200 * length, || {
            let header = Header::read(path, &files).map_err(|e| e.to_string())?;
            lies_within(&Table::of_header(&header, path), length as u64);
            Ok(())
        });
    }
    tally.is_telling(10_000 * times(), 12);
}

#[test]
fn a_model_whose_files_are_broken_is_taken_or_refused() {
    // A folder, and a single file; what is changed is one of the files, headers rather than numbers.
    let (folder, single) = (Path::new("model"), Path::new("model.safetensors"));
    let root = oracle("micro/sd1");
    let mut contents = BTreeMap::new();
    for name in [
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
        "unet/config.json",
        "vae/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ] {
        contents.insert(folder.join(name), bytes(root.join(name)));
    }
    let corpus: Vec<_> = contents
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "json"))
        .map(|(_, content)| content.clone())
        .collect();
    contents.insert(
        single.to_owned(),
        bytes(oracle("micro/sd1-single.safetensors")),
    );
    let names: Vec<_> = contents.keys().cloned().collect();
    let files = MemoryFiles::new();
    for (path, content) in &contents {
        files.insert(path, content);
    }
    let sources = |name: &Path| Sources {
        config: (name == single).then(|| folder.to_owned()),
        ..Sources::of(if name == single { single } else { folder })
    };
    for path in [folder, single] {
        assert!(Description::read(&sources(path), &files).is_ok());
    }
    let mut tally = Tally::default();
    let rounds = 1500 * times();
    for round in 0..rounds {
        let mut random = Random(round);
        let name = random.of(&names);
        let is_weights = name.extension().is_some_and(|e| e == "safetensors");
        let mut content = contents[name].clone();
        if is_weights {
            let data =
                content.split_off(8 + u64::from_le_bytes(*content.first_chunk().unwrap()) as usize);
            content.extend([0; 16]);
            change_header(&mut content, &mut random);
            content.truncate(content.len() - 16);
            content.extend(data);
        } else {
            for _ in 0..=random.below(2) {
                change(&mut content, 0, &corpus, &mut random);
            }
        }
        files.insert(name, &content);
        let shown = if is_weights { &[][..] } else { &content };
        tally.one(shown, 24 << 20, || {
            let read = Description::read(&sources(name), &files);
            read.map(drop)
                .map_err(|errors| errors.first().unwrap().to_string())
        });
        files.insert(name, &contents[name]);
    }
    tally.is_telling(rounds, 20);
}

// ---- torch files -----------------------------------------------------------------------------------------------------

/// Bytes that mean something to a pickle.
const OPCODES: &[u8] = b".(0123NJKMGXTUBC]}aeusldtqrhjcRbQioISLFVPpg\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98";

fn torch_files(names: &[&str], taken: u64, reasons: usize) {
    let folder = oracle("pickles");
    let corpus: Vec<_> = names.iter().map(|name| bytes(folder.join(name))).collect();
    let (path, mut tally) = (Path::new("weights.pt"), Tally::default());
    for round in 0..10_000 * times() {
        let mut random = Random(round);
        let mut input = random.of(&corpus).clone();
        // Where the object's pickle begins and about where it ends.
        let begins = input
            .windows(2)
            .rposition(|two| two == b"\x80\x02" || two == b"\x80\x04");
        let begins = if input.starts_with(b"PK") {
            begins.unwrap_or(0)
        } else {
            0
        };
        let ends = (begins + 2500).min(input.len());
        for _ in 0..=random.below(3) {
            let at = (begins + random.below(ends - begins)).min(input.len().saturating_sub(1));
            match random.below(4) {
                0 => change(&mut input, 0, &corpus, &mut random),
                // The pickle of an archive is as long as before, or nothing of it would be read.
                1 if !input.is_empty() => input[at] = *random.of(OPCODES),
                2 if at + 9 < input.len() => {
                    let from = begins + random.below(ends - begins);
                    let length = 1 + random.below(40);
                    let piece = input.get(from..from + length).unwrap_or_default().to_vec();
                    let end = (at + piece.len()).min(input.len());
                    input.splice(at..end, piece);
                }
                _ if at + 9 < input.len() => {
                    let number = random.of(&EDGES).to_le_bytes();
                    let width = *random.of(&[1, 2, 4, 8]);
                    input[at..at + width].copy_from_slice(&number[..width]);
                }
                _ => {}
            }
        }
        let files = MemoryFiles::new().with(path, &input);
        let length = input.len();
        tally.one(&input, (1 << 18) + 200 * length, || {
            let value = pickle::read(path, &files).map_err(|e| e.to_string())?;
            for (_, tensor) in pickle::tensors(&value) {
                assert!(tensor.offset + tensor.storage_bytes <= length as u64);
                assert!(tensor.bytes() <= (length as u64).max(1 << 20));
            }
            lies_within(&Table::of_torch(path, path, &value), length as u64);
            Ok(())
        });
    }
    assert!(tally.accepted > taken, "{}", tally.accepted);
    tally.is_telling(10_000 * times(), reasons);
}

#[test]
fn ten_thousand_broken_torch_archives_are_taken_or_refused() {
    torch_files(
        &[
            "zip.pt",
            "zip-4.pt",
            "lightning.ckpt",
            "inversion.pt",
            "evil.pt",
        ],
        100,
        30,
    );
}

#[test]
fn ten_thousand_broken_torch_files_of_the_old_format_are_taken_or_refused() {
    let names = [
        "legacy.pt",
        "legacy-4.pt",
        "lightning-legacy.ckpt",
        "inversion-legacy.pt",
    ];
    torch_files(&names, 100, 30);
}

// ---- pictures --------------------------------------------------------------------------------------------------------

struct Stage(MemoryFiles);

impl Host for Stage {
    fn progress(&self, _: usize, _: usize) {}
    fn warn(&self, _: &str) {}
    fn count(&self, _: &'static str, _: u64) {}
    fn is_cancelled(&self) -> bool {
        false
    }
    fn files(&self) -> &dyn Files {
        &self.0
    }
    fn any_environment(&self) -> Option<&(dyn std::any::Any + Send + Sync)> {
        None
    }
}

/// Small pictures of every kind of pixel, plain and interlaced as a decoder sees it.
fn pngs() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let kinds = [
        (png::ColorType::Grayscale, png::BitDepth::One),
        (png::ColorType::Grayscale, png::BitDepth::Sixteen),
        (png::ColorType::GrayscaleAlpha, png::BitDepth::Eight),
        (png::ColorType::Rgb, png::BitDepth::Eight),
        (png::ColorType::Rgba, png::BitDepth::Eight),
        (png::ColorType::Rgba, png::BitDepth::Sixteen),
        (png::ColorType::Indexed, png::BitDepth::Four),
    ];
    for (colour, depth) in kinds {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 13, 11);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        if colour == png::ColorType::Indexed {
            encoder.set_palette((0..48).collect::<Vec<u8>>());
        }
        encoder
            .add_text_chunk("Comment".to_owned(), "a picture".to_owned())
            .unwrap();
        let bits = 13 * colour.samples() * depth as usize;
        let pixels: Vec<u8> = (0..bits.div_ceil(8) * 11).map(|i| (i * 37) as u8).collect();
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&pixels).unwrap();
        writer.finish().unwrap();
        all.push(file);
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    all.extend(["bits.png", "exif.png", "palette.png"].map(|name| bytes(data.join(name))));
    all.retain(|file| file.len() < 20_000);
    all
}

/// The checksum of a PNG chunk (ISO 3309).
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// The chunks of a PNG: kind and data.
fn chunks(file: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut all, mut rest) = (Vec::new(), file.get(8..).unwrap_or_default());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (Some(kind), Some(data)) = (after.get(..4), after.get(4..4 + length)) else {
            break;
        };
        all.push((kind.to_vec(), data.to_vec()));
        rest = after.get(8 + length..).unwrap_or_default();
    }
    all
}

/// A change to whole chunks or inside one, with checksums that are right.
fn change_chunks(file: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let mut all = chunks(file);
    if all.is_empty() {
        return;
    }
    let at = random.below(all.len());
    match random.below(6) {
        0 => {
            let other = random.of::<Vec<u8>>(corpus);
            let other = chunks(other);
            let chunk = random.of(&other).clone();
            all.insert(at, chunk);
        }
        1 => {
            all.remove(at);
        }
        2 => {
            let to = random.below(all.len());
            all.swap(at, to);
        }
        3 => {
            let kinds: [&[u8]; 8] = [
                b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"zTXt", b"gAMA",
            ];
            all[at].0 = random.of(&kinds).to_vec();
        }
        // Size, depth, kind of pixels, interlacing.
        4 => {
            if let Some((_, header)) = all.iter_mut().find(|(kind, _)| kind == b"IHDR")
                && header.len() == 13
            {
                match random.below(4) {
                    0 => {
                        let side = *random.of(&[0u32, 1, 12, 14, 200, 8192, 8193, u32::MAX]);
                        let at = 4 * random.below(2);
                        header[at..at + 4].copy_from_slice(&side.to_be_bytes());
                    }
                    1 => header[8] = *random.of(&[1, 2, 4, 8, 16, 3]),
                    2 => header[9] = random.below(8) as u8,
                    _ => header[12] = random.below(3) as u8,
                }
            }
        }
        _ => change(&mut all[at].1, 0, corpus, random),
    }
    file.truncate(8);
    for (kind, data) in all {
        file.extend((data.len() as u32).to_be_bytes());
        let body = [kind, data].concat();
        file.extend(&body);
        file.extend(crc(&body).to_be_bytes());
    }
}

#[test]
fn ten_thousand_broken_pictures_are_taken_or_refused() {
    let corpus = pngs();
    let path = Path::new("picture.png");
    let load: LoadImage = serde_json::from_value(serde_json::json!({"path": path})).unwrap();
    let mut tally = Tally::default();
    for round in 0..10_000 * times() {
        let mut random = Random(round);
        let mut input = random.of(&corpus).clone();
        for _ in 0..=random.below(3) {
            if random.below(4) == 0 {
                change(&mut input, 0, &corpus, &mut random);
            } else {
                change_chunks(&mut input, &corpus, &mut random);
            }
        }
        // A picture may take what its size is worth: 16 bits of four channels, and the same in float32 twice.
        let side = |at| {
            let side = input.get(at..).and_then(<[u8]>::first_chunk);
            side.map_or(0, |side| u32::from_be_bytes(*side) as usize)
        };
        let (across, down) = (side(16), side(20));
        let pixels = if across.max(down) <= 8192 {
            across * down
        } else {
            0
        };
        let bound = (1 << 20) + 50 * pixels + 200 * input.len();
        let stage = Stage(MemoryFiles::new().with(path, &input));
        tally.one(&input, bound, || {
            let outputs = load
                .run(load_image::Inputs {}, &stage)
                .map_err(|e| e.to_string())?;
            let facts = outputs.image.facts();
            assert!(facts.width > 0 && facts.height > 0);
            Ok(())
        });
    }
    tally.is_telling(10_000 * times(), 8);
}

#[test]
fn a_profile_takes_no_more_memory_than_profiles_do() {
    use std::io::Write;
    let mut png = Vec::new();
    let mut writer = png::Encoder::new(&mut png, 8, 8).write_header().unwrap();
    writer.write_image_data(&[0; 64]).unwrap();
    writer.finish().unwrap();
    // Of 512 MiB unpacked, where a large profile has a few.
    let mut body = b"iCCPx\0\0".to_vec();
    let mut zlib = flate2::write::ZlibEncoder::new(&mut body, flate2::Compression::fast());
    let piece = vec![0; 1 << 20];
    for _ in 0..512 {
        zlib.write_all(&piece).unwrap();
    }
    zlib.finish().unwrap();
    let chunk = [
        &((body.len() - 4) as u32).to_be_bytes()[..],
        &body,
        &crc(&body).to_be_bytes(),
    ]
    .concat();
    // Behind the header: the signature, and a chunk of 13 bytes.
    png.splice(33..33, chunk);
    assert!(png.len() < 4 << 20);
    let path = Path::new("picture.png");
    let load: LoadImage = serde_json::from_value(serde_json::json!({"path": path})).unwrap();
    let files = MemoryFiles::new().with(path, &png);
    // The vector that it is unpacked to grows by copying.
    let (checked, most) = measured(|| load.check(&retouch_graph::Types::unknown(), &files).is_ok());
    assert!(
        checked,
        "no profile is applied, so it does not matter that it is too large"
    );
    assert!(most < 256 << 20, "{most} bytes");
}
