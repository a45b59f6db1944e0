//! `load_latent`.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::AssetPath;
use crate::payload::{
    Latent, LatentFacts, Mask, Masks, MasksFacts, READ_AS, Trajectory, TrajectoryFacts,
};
use crate::runtime::{Runtime, tensor_error};
use retouch_diffusion::checkpoint::weights::{self, Header};
use retouch_diffusion::sampling::StepProvenance;
use retouch_diffusion::sampling::solver::Schedule;

/// Loads a latent, a trajectory or masks from a safetensors file.
///
/// Files that Retouch saved say what they hold. In any other file name the tensor, if it holds several, and what it is
/// to be read `as`. The outputs that the file does not hold are not made.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadLatent {
    /// The file.
    pub path: AssetPath,
    /// The name of the tensor. Default: the only one of the file.
    #[serde(default)]
    pub tensor: Option<String>,
    /// What the tensor is. Default: what the file says of itself, else by its dimensions: 4 a latent, 5 a trajectory,
    /// 2 or 3 a mask.
    #[serde(default, rename = "as")]
    pub read_as: Option<Kind>,
}

/// What a tensor is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Kind {
    /// `[B, C, h, w]`.
    Latent,
    /// `[T + 1, B, C, h, w]`, or `[T + 1, C, h, w]` for one image.
    Trajectory,
    /// `[B, h, w]` or `[h, w]`, in [0, 1].
    Mask,
    /// `[S, 3, B, h, w]`, or `[S, 3, h, w]` for one image; with R references R + 2 in place of 3.
    Masks,
}

ports! {
    /// `load_latent` takes nothing.
    pub struct Inputs {}
}

ports! {
    /// What `load_latent` gives: one of these.
    pub struct Outputs {
        /// The latent.
        pub latent: Option<Arc<Latent>>,
        /// The trajectory.
        pub trajectory: Option<Arc<Trajectory>>,
        /// The mask.
        pub mask: Option<Arc<Mask>>,
        /// The masks of a swap.
        pub masks: Option<Arc<Masks>>,
    }
}

/// What the header says of the tensor that is asked for.
struct Found {
    name: String,
    dtype: String,
    /// The bytes of the file that it takes.
    bytes: Range<u64>,
    kind: Kind,
    shape: Vec<usize>,
    drawn: Option<String>,
    schedule: Option<Schedule>,
    first_step: usize,
}

impl LoadLatent {
    fn find(&self, files: &dyn Files) -> Result<Found, Fault> {
        let path: &Path = self.path.as_path();
        let unreadable = |e: std::io::Error| match e.kind() {
            ErrorKind::NotFound => {
                Fault::file("path", format!("{} does not exist", path.display()))
                    .help("relative paths count from the folder of the file that writes them")
            }
            _ => Fault::file("path", format!("{} cannot be read: {e}", path.display())),
        };
        let damaged = |e: retouch_diffusion::Error| Fault::content("path", e.to_string());
        let (head, length) = files.read_head(path, 1 << 16).map_err(unreadable)?;
        let needed = Header::length(path, &head, length).map_err(damaged)?;
        let (head, length) = if needed > head.len() {
            files.read_head(path, needed).map_err(unreadable)?
        } else {
            (head, length)
        };
        let header = Header::parse(path, &head, length).map_err(damaged)?;
        let names: Vec<&str> = header.tensors.keys().map(String::as_str).take(12).collect();
        let name = match (&self.tensor, names.as_slice()) {
            (Some(name), _) => name.clone(),
            (None, [only]) => (*only).to_owned(),
            (None, []) => return Err(Fault::content("path", "the file holds no tensor")),
            (None, several) => {
                return Err(Fault::value(
                    "path",
                    format!("the file holds several tensors: {}", several.join(", ")),
                )
                .help("name one of them: `tensor: NAME`"));
            }
        };
        let info = header.tensors.get(&name).ok_or_else(|| {
            Fault::value("tensor", format!("the file has no tensor `{name}`"))
                .help(format!("it has {}", names.join(", ")))
        })?;
        if !matches!(info.dtype.as_str(), "F16" | "BF16" | "F32" | "F64") {
            return Err(Fault::content(
                "path",
                format!(
                    "the tensor `{name}` is of type {}; expected floating point",
                    info.dtype
                ),
            ));
        }
        let own: Option<Kind> = header
            .metadata
            .get(READ_AS)
            .and_then(|text| serde_json::from_value(text.as_str().into()).ok());
        let by_rank = match info.shape.len() {
            4 => Some(Kind::Latent),
            5 => Some(Kind::Trajectory),
            2 | 3 => Some(Kind::Mask),
            _ => None,
        };
        let kind = self.read_as.or(own).or(by_rank);
        let mut shape = info.shape.clone();
        // A batch of one may be left out.
        match (kind, shape.len()) {
            (Some(Kind::Trajectory), 4) => shape.insert(1, 1),
            (Some(Kind::Masks), 4) => shape.insert(2, 1),
            (Some(Kind::Mask), 2) => shape.insert(0, 1),
            _ => {}
        }
        let fits = match kind {
            Some(Kind::Latent) => shape.len() == 4,
            Some(Kind::Trajectory) => shape.len() == 5 && shape[0] >= 2,
            Some(Kind::Mask) => shape.len() == 3,
            Some(Kind::Masks) => shape.len() == 5 && shape[1] >= 3,
            None => false,
        };
        let Some(kind) = kind.filter(|_| fits && shape.iter().all(|&d| d > 0)) else {
            return Err(Fault::content(
                "path",
                format!(
                    "the tensor `{name}` of shape {:?} is not a {}",
                    info.shape,
                    kind.map_or("latent, trajectory or mask".into(), |k| format!("{k:?}").to_lowercase())
                ),
            )
            .help("latents are [B, C, h, w], trajectories [T + 1, B, C, h, w], masks [S, 3, B, h, w] (3 or more), a mask [B, h, w]"));
        };
        let at = |offset: u64| header.data_start + offset;
        Ok(Found {
            bytes: at(info.data_offsets.0)..at(info.data_offsets.1),
            dtype: info.dtype.clone(),
            name,
            kind,
            shape,
            drawn: header.metadata.get(crate::payload::DRAWN).cloned(),
            schedule: header
                .metadata
                .get(crate::payload::SCHEDULE)
                .and_then(|text| serde_json::from_str(text).ok()),
            first_step: header
                .metadata
                .get(crate::payload::FIRST_STEP)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
        })
    }

    /// The tensor's numbers, read in pieces and nothing else of the file: it may be a checkpoint of gigabytes.
    fn numbers(&self, found: &Found, files: &dyn Files) -> Result<Vec<f32>, NodeError> {
        const PIECE: u64 = 1 << 22;
        let path = self.path.as_path();
        let failed = |what: String| NodeError::failed(format!("{} {what}", path.display()));
        let mut numbers = Vec::with_capacity(found.shape.iter().product());
        let mut at = found.bytes.start;
        while at < found.bytes.end {
            let length = PIECE.min(found.bytes.end - at);
            let bytes = files
                .read_at(path, at, length as usize)
                .map_err(|e| failed(format!("cannot be read: {e}")))?;
            if bytes.len() as u64 != length {
                return Err(failed(format!(
                    "ends within the tensor `{}`: it was changed since it was looked at",
                    found.name
                )));
            }
            // Pieces end between elements, which have at most eight bytes.
            let piece = weights::numbers(&found.dtype, &bytes)
                .ok_or_else(|| failed(format!("has a tensor of the type {}", found.dtype)))?;
            numbers.extend(piece);
            at += length;
        }
        Ok(numbers)
    }
}

/// Why numbers are none of a mask, and what to do: they weigh one picture against another, and beyond 0 and 1 they would do
/// so by more than all of it.
fn range_fault(numbers: &[f32]) -> Option<(String, &'static str)> {
    // What rounding makes of a 1.
    const SLACK: f32 = 1e-4;
    let least = numbers.iter().copied().fold(f32::INFINITY, f32::min);
    let most = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if least >= -SLACK && most <= 1.0 + SLACK {
        return None;
    }
    let help = if least >= 0.0 && most <= 255.0 && numbers.iter().all(|x| x.fract() == 0.0) {
        "it looks like a picture of 8 bits: divide it by 255, or save it as a PNG and use `load_mask`"
    } else if least >= -1.0 - SLACK && most <= 1.0 + SLACK {
        "it looks like a picture in [-1, 1]: give (x + 1) / 2"
    } else {
        "scale it to 0 (not) to 1 (the subject); `as: latent` reads it as something else"
    };
    Some((
        format!("has numbers from {least} to {most}; a mask has them from 0 to 1"),
        help,
    ))
}

impl Node for LoadLatent {
    const OP: &'static str = "load_latent";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        // A missing file is `check`'s to report.
        Ok(files
            .is_file(self.path.as_path())
            .then(|| ReadFile {
                role: "file".into(),
                path: self.path.to_path_buf(),
            })
            .into_iter()
            .collect())
    }

    fn check(&self, _: &Types<Inputs>, files: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let found = self.find(files).map_err(|fault| vec![fault])?;
        let s = &found.shape;
        let mut types = Types::unknown();
        for (port, kind) in [
            ("latent", Kind::Latent),
            ("trajectory", Kind::Trajectory),
            ("mask", Kind::Mask),
            ("masks", Kind::Masks),
        ] {
            types = if kind != found.kind {
                types.without(
                    port,
                    format!(
                        "the tensor `{}` is read as a {}; give `as: {port}` if it is one",
                        found.name,
                        format!("{:?}", found.kind).to_lowercase()
                    ),
                )
            } else {
                match kind {
                    Kind::Latent => types.with(
                        port,
                        &LatentFacts {
                            batch: s[0],
                            channels: s[1],
                            height: s[2],
                            width: s[3],
                        },
                    ),
                    Kind::Trajectory => types.with(
                        port,
                        &TrajectoryFacts {
                            steps: s[0] - 1,
                            batch: s[1],
                            channels: s[2],
                            height: s[3],
                            width: s[4],
                            schedule: found.schedule,
                        },
                    ),
                    Kind::Masks => types.with(
                        port,
                        &MasksFacts {
                            steps: s[0],
                            first_step: found.first_step,
                        },
                    ),
                    Kind::Mask => types,
                }
            };
        }
        Ok(types)
    }

    fn run(&self, _: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let found = self
            .find(context.files())
            .map_err(|fault| NodeError::failed(fault.message))?;
        let numbers = self.numbers(&found, context.files())?;
        let is_mask = matches!(found.kind, Kind::Mask | Kind::Masks);
        if let Some(fault) = is_mask.then(|| range_fault(&numbers)).flatten() {
            return Err(NodeError::failed(format!(
                "{}: the tensor `{}` {}",
                self.path.as_path().display(),
                found.name,
                fault.0
            ))
            .help(fault.1));
        }
        if numbers.iter().any(|x| !x.is_finite()) {
            return Err(NodeError::failed(format!(
                "{}: the tensor `{}` contains NaN or infinite values",
                self.path.as_path().display(),
                found.name
            )));
        }
        let tensor = Tensor::from_vec(numbers, found.shape.as_slice(), &Device::Cpu)
            .map_err(tensor_error)?;
        let device = &Runtime::of(context)?.device;
        let placed = |t: &Tensor| t.to_device(device).map_err(tensor_error);
        let mut outputs = Outputs {
            latent: None,
            trajectory: None,
            mask: None,
            masks: None,
        };
        match found.kind {
            Kind::Latent => {
                outputs.latent = Some(Arc::new(Latent {
                    tensor: placed(&tensor)?,
                }));
            }
            Kind::Trajectory => {
                let steps = found.shape[0] - 1;
                let latents = (0..=steps)
                    .map(|k| tensor.get(k).map_err(tensor_error).and_then(|z| placed(&z)))
                    .collect::<Result<_, _>>()?;
                let drawn: Vec<Option<StepProvenance>> = found
                    .drawn
                    .and_then(|text| serde_json::from_str(&text).ok())
                    .filter(|drawn: &Vec<_>| drawn.len() == steps)
                    .unwrap_or_else(|| vec![None; steps]);
                outputs.trajectory = Some(Arc::new(Trajectory {
                    latents,
                    drawn,
                    schedule: found.schedule,
                }));
            }
            Kind::Mask => outputs.mask = Some(Arc::new(Mask { plane: tensor })),
            Kind::Masks => {
                outputs.masks = Some(Arc::new(Masks {
                    tensor,
                    first_step: found.first_step,
                }));
            }
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};

    use retouch_graph::{Digest, FileStamp, MemoryFiles};

    use super::*;

    /// A file that has more than memory: a header, the numbers 0, 1, 2, ... of the tensor `z`, and a hole.
    struct Huge {
        header: Vec<u8>,
        length: u64,
        /// Bytes that were given out, and the most at once.
        given: AtomicU64,
        most: AtomicU64,
    }

    const COUNT: usize = 4 * 96 * 128;
    const HOLE: u64 = 4 << 30;

    impl Huge {
        fn new() -> Self {
            let end = HOLE + 4 * COUNT as u64;
            let header = format!(
                r#"{{"weights":{{"dtype":"F16","shape":[1024,1024,2048],"data_offsets":[0,{HOLE}]}},"z":{{"dtype":"F32","shape":[1,4,96,128],"data_offsets":[{HOLE},{end}]}}}}"#
            );
            let header = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
            Self {
                length: header.len() as u64 + end,
                header,
                given: AtomicU64::new(0),
                most: AtomicU64::new(0),
            }
        }
    }

    impl Files for Huge {
        fn read(&self, _: &Path) -> io::Result<Arc<[u8]>> {
            panic!("the whole file is asked for");
        }
        fn read_head(&self, path: &Path, length: usize) -> io::Result<(Vec<u8>, u64)> {
            Ok((self.read_at(path, 0, length)?, self.length))
        }
        fn read_at(&self, _: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
            let end = (offset + length as u64).min(self.length);
            let z = self.header.len() as u64 + HOLE;
            let bytes: Vec<u8> = (offset..end)
                .map(|at| match at.checked_sub(z) {
                    None => self.header.get(at as usize).copied().unwrap_or(0),
                    Some(at) => ((at / 4) as f32).to_le_bytes()[at as usize % 4],
                })
                .collect();
            self.given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.most.fetch_max(bytes.len() as u64, Ordering::Relaxed);
            Ok(bytes)
        }
        fn digest(&self, _: &Path) -> io::Result<Digest> {
            Err(ErrorKind::Unsupported.into())
        }
        fn sha256(&self, _: &Path) -> io::Result<Digest> {
            Err(ErrorKind::Unsupported.into())
        }
        fn doubt(&self) {}
        fn stamp(&self, _: &Path) -> Option<FileStamp> {
            None
        }
        fn is_file(&self, _: &Path) -> bool {
            true
        }
        fn is_dir(&self, _: &Path) -> bool {
            false
        }
        fn entries(&self, _: &Path) -> io::Result<Vec<retouch_graph::FolderEntry>> {
            Err(ErrorKind::Unsupported.into())
        }
        fn flush(&self) {}
    }

    impl retouch_graph::LocalFiles for Huge {}

    fn node(tensor: &str) -> LoadLatent {
        LoadLatent {
            path: AssetPath::new(PathBuf::from("large.safetensors")),
            tensor: Some(tensor.to_owned()),
            read_as: None,
        }
    }

    #[test]
    fn of_a_file_of_gigabytes_the_header_and_the_tensor_are_read_and_nothing_else() {
        let files = Huge::new();
        let node = node("z");
        let found = node.find(&files).unwrap();
        assert_eq!(found.shape, [1, 4, 96, 128]);
        let header = files.given.load(Ordering::Relaxed);
        assert!(header <= 1 << 16);
        let numbers = node.numbers(&found, &files).unwrap();
        assert_eq!(numbers.len(), COUNT);
        assert!(numbers.iter().enumerate().all(|(i, x)| *x == i as f32));
        let tensor = files.given.load(Ordering::Relaxed) - header;
        assert_eq!(tensor, 4 * COUNT as u64);
    }

    #[test]
    fn a_tensor_of_any_precision_is_read_in_pieces_that_end_between_elements() {
        // More than one piece: 2^22 bytes and a little.
        for (dtype, size) in [("F16", 2), ("BF16", 2), ("F32", 4), ("F64", 8)] {
            let count = (1 << 22) / size + 3;
            let end = count * size;
            let header = format!(
                r#"{{"z":{{"dtype":"{dtype}","shape":[1,1,1,{count}],"data_offsets":[0,{end}]}}}}"#
            );
            let one: &[u8] = match dtype {
                "F16" => &[0, 0x3e],
                "BF16" => &[0xc0, 0x3f],
                "F32" => &[0, 0, 0xc0, 0x3f],
                _ => &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f],
            };
            let file = [
                &(header.len() as u64).to_le_bytes()[..],
                header.as_bytes(),
                &one.repeat(count),
            ]
            .concat();
            let files = MemoryFiles::new().with("large.safetensors", &file);
            let node = node("z");
            let found = node.find(&files).unwrap();
            let numbers = node.numbers(&found, &files).unwrap();
            assert_eq!(numbers.len(), count, "{dtype}");
            assert!(numbers.iter().all(|x| *x == 1.5), "{dtype}");
            // A file that was shortened since.
            files.insert("large.safetensors", &file[..file.len() - 1]);
            assert!(node.numbers(&found, &files).is_err());
        }
    }
}
