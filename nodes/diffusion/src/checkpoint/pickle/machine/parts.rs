//! What a machine works with: the pickle, values and what they stand for.

use super::super::value::{Fault, Source};

/// The longest pickle that is read. That of a whole training checkpoint of Stable Diffusion XL has about 1 MB.
pub(super) const LONGEST: u64 = 32 << 20;
/// The most steps that a pickle may take. A tensor takes about 40.
pub(super) const STEPS: u64 = 2_000_000;
/// The deepest that values lie in one another when they are given out.
pub(in crate::checkpoint::pickle) const DEPTH: usize = 64;
/// The longest name of a module or a global, and of a storage.
pub(super) const NAME: usize = 512;
/// The longest whole number, in bytes.
pub(super) const DIGITS: usize = 1024;
/// The most dimensions of a tensor.
pub(super) const RANK: usize = 16;
/// The bytes that are asked of a file at once.
pub(super) const PIECE: u64 = 1 << 16;
/// What a tensor that repeats its elements may always grow to, however short its file.
pub(super) const SMALL: u64 = 1 << 20;

/// A place in the pickle.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) start: u32,
    pub(super) length: u32,
}

/// The number of a value.
pub(in crate::checkpoint::pickle) type Id = u32;

pub(super) const NONE: Id = 0;
pub(super) const TRUE: Id = 1;
pub(super) const FALSE: Id = 2;
pub(super) const EMPTY: Id = 3;

/// What a global that is understood stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// `torch._utils._rebuild_tensor`: storage, offset, shape, strides.
    TensorV1,
    /// `_rebuild_tensor_v2`: the same, requires_grad, hooks.
    TensorV2,
    /// `_rebuild_tensor_v3`: the same and the type, over bytes.
    TensorV3,
    /// `_rebuild_parameter`, `_rebuild_parameter_with_state`: the tensor, requires_grad, hooks.
    Parameter,
    /// `torch._tensor._rebuild_from_type_v2`: one of the above, a class, its arguments, attributes.
    FromType,
    /// `torch.Tensor` and classes of it that add nothing.
    TensorClass,
    /// A class of storages, by the type of its elements.
    Storage(&'static str),
    /// A type of elements.
    Type(&'static str),
    Size,
    /// What is built of arguments and not looked into.
    Device,
    Dictionary(Kind),
    /// `set`, `frozenset`, `list`, `tuple` of one list.
    Sequence,
    /// `_codecs.encode` of a text in latin1: bytes, as protocol 2 writes them.
    Encode,
    NumpyType,
    NumpyScalar,
    NumpyArray,
    NumpyRebuild,
    /// `numpy.core.numeric._frombuffer`: bytes, type, shape, order, as protocol 5 writes arrays.
    NumpyBuffer,
    /// `torch._utils._rebuild_device_tensor_from_numpy`, and as it was called before: array, type, device, requires_grad.
    FromNumpy,
}

/// What sort of dictionary a value is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A dictionary; what it is built with besides its entries (`_metadata` of a state) is left out.
    Plain,
    /// A `torch.nn.ParameterDict`: its entries are the `_parameters` that it is built with.
    Parameters,
    /// An `argparse.Namespace`: its entries are what it is built with.
    Namespace,
}

pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// A whole number beyond 64 bits, little-endian.
    Large(Place),
    Float(f64),
    Text(Place),
    Bytes(Place),
    /// Bytes, as a text of the characters below 256.
    Encoded(Place),
    Sequence(Vec<Id>),
    Tuple(Box<[Id]>),
    Dictionary(Kind, Vec<(Id, Id)>),
    Global(Option<Known>, Place, Place),
    /// Elements of a storage: which, from where, how many.
    Storage(u32, u64, u64),
    Tensor(u32),
    NumpyType(Place, bool),
    /// Which one, of those whose numbers were seen.
    NumpyArray(Option<u32>),
    /// A tensor of the numbers of an array.
    Inline(u32),
    /// An object of a class that is not known: the name of the class, and nothing else of it.
    Foreign(Place, Place),
    Opaque(&'static str),
}

/// A value without others in it.
pub(in crate::checkpoint::pickle) enum Plain<'a> {
    Bool(bool),
    Int(i64),
    Large(&'a [u8]),
    Other,
}

/// A storage that a pickle speaks of.
pub(in crate::checkpoint::pickle) struct Storage {
    /// Its name in the file.
    pub key: String,
    /// As safetensors names it.
    pub dtype: &'static str,
    /// Bytes of an element.
    pub element: u64,
    /// All its bytes.
    pub bytes: u64,
    /// Where it begins in the file; filled in by who finds it.
    pub offset: u64,
}

pub(super) struct Laid {
    pub(super) dtype: &'static str,
    pub(super) element: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
    /// In bytes, from the beginning of the storage.
    pub(super) offset: u64,
    /// The elements of the storage end here, in bytes.
    pub(super) end: u64,
    pub(super) storage: u32,
}

/// An array of numpy: its numbers are in the pickle.
#[derive(Clone)]
pub(super) struct Array {
    /// Of a numpy type, and whether it is big-endian.
    pub(super) dtype: (Place, bool),
    pub(super) shape: Vec<usize>,
    /// Whether the first dimension counts fastest.
    pub(super) fortran: bool,
    pub(super) data: Id,
}

/// The pickle, read as far as it was needed.
pub(super) struct Tape<'a> {
    pub(super) source: Source<'a>,
    /// Where it begins in the file, and where it has to end.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) at: usize,
}

impl Tape<'_> {
    /// Sees to it that `count` bytes lie ahead.
    pub(super) fn need(&mut self, count: usize) -> Result<(), Fault> {
        let wanted = self.at as u64 + count as u64;
        let have = self.bytes.len() as u64;
        if wanted <= have {
            return Ok(());
        }
        if wanted > self.end - self.start {
            return Err("is damaged or truncated: its pickle does not end".into());
        }
        if wanted > LONGEST {
            return Err(format!(
                "has a pickle larger than the limit of {LONGEST} bytes"
            ));
        }
        // Pieces grow with what is there, so that no byte is copied more than a few times.
        let more = (wanted - have)
            .max(PIECE)
            .max(have)
            .min(self.end - self.start - have);
        let piece = self
            .source
            .exact(self.start + have, more as usize, "its pickle")?;
        self.bytes.extend_from_slice(&piece);
        Ok(())
    }

    pub(super) fn take(&mut self, count: usize) -> Result<Place, Fault> {
        self.need(count)?;
        let place = Place {
            start: self.at as u32,
            length: count as u32,
        };
        self.at += count;
        Ok(place)
    }

    pub(super) fn number<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let place = self.take(N)?;
        let mut number = [0; N];
        number.copy_from_slice(self.get(place));
        Ok(number)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.number::<1>()?[0])
    }

    /// A length of four bytes, and what is so long.
    pub(super) fn long(&mut self) -> Result<Place, Fault> {
        let length = u32::from_le_bytes(self.number()?);
        self.take(length as usize)
    }

    /// A length of eight bytes, and what is so long.
    pub(super) fn longer(&mut self) -> Result<Place, Fault> {
        let length = u64::from_le_bytes(self.number()?);
        let length = usize::try_from(length.min(LONGEST + 1)).unwrap_or(usize::MAX);
        self.take(length)
    }

    /// The rest of a line, which is the name of a module or of a global.
    pub(super) fn line(&mut self) -> Result<Place, Fault> {
        let start = self.at as u32;
        for length in 0..=NAME {
            if self.byte()? == b'\n' {
                return Ok(Place {
                    start,
                    length: length as u32,
                });
            }
        }
        Err(format!(
            "is refused: its pickle names a global of more than {NAME} bytes"
        ))
    }

    pub(super) fn get(&self, place: Place) -> &[u8] {
        let start = place.start as usize;
        self.bytes
            .get(start..start + place.length as usize)
            .unwrap_or_default()
    }
}

pub(super) type Step<T = ()> = Result<T, Fault>;
