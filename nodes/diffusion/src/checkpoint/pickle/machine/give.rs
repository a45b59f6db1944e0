//! The value that a finished machine holds, as a tree of plain data.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::super::value::{Skipped, TorchTensor, Value};
use super::Machine;
use super::names::latin1;
use super::parts::*;

/// The texts that were given out: two that are equal are one, so that they are compared by their address. A pickle may
/// name one text of megabytes as often as it has steps.
#[derive(Default)]
pub(super) struct Texts {
    pub(super) places: HashMap<u32, Arc<str>>,
    pub(super) all: HashSet<Arc<str>>,
    /// The bytes that were hashed.
    #[cfg(test)]
    pub(super) hashed: usize,
}

impl Texts {
    /// The text at a place of the pickle; read, copied and hashed when the place is named for the first time.
    pub(super) fn at(&mut self, place: Place, tape: &Tape<'_>) -> Arc<str> {
        if let Some(known) = self.places.get(&place.start) {
            return Arc::clone(known);
        }
        #[cfg(test)]
        {
            self.hashed += place.length as usize;
        }
        // It was seen to be UTF-8 when it was read.
        let text = String::from_utf8_lossy(tape.get(place));
        let text = match self.all.get(&*text) {
            Some(known) => Arc::clone(known),
            None => {
                let text: Arc<str> = text.into();
                self.all.insert(Arc::clone(&text));
                text
            }
        };
        self.places.insert(place.start, Arc::clone(&text));
        text
    }
}

/// Writes out values that know one another by number.
pub(super) struct Giver<'a> {
    pub(super) machine: &'a Machine<'a>,
    pub(super) texts: Texts,
    pub(super) bytes: HashMap<u32, Arc<[u8]>>,
    /// Values that may still be given out.
    pub(super) left: u64,
    /// Bytes that the full names of tensors may still have.
    pub(super) names: u64,
}

impl Giver<'_> {
    pub(super) fn spend(&mut self, count: usize) -> Step {
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            "is refused: its values are nested so often that they do not fit in memory".to_owned()
        })?;
        Ok(())
    }

    /// Counts the name of a tensor, `path` bytes.
    pub(super) fn pass(&mut self, path: u64) -> Step {
        self.names = self.names.checked_sub(path).ok_or(
            "is refused: the names of its tensors do not fit in memory when they are written out",
        )?;
        Ok(())
    }

    /// `path` is the length of the names on the way here.
    pub(super) fn give(&mut self, id: Id, depth: usize, path: u64) -> Step<Value> {
        if depth > DEPTH {
            return Err(format!(
                "is refused: its values are nested more than {DEPTH} deep"
            ));
        }
        self.spend(1)?;
        let machine = self.machine;
        Ok(match machine.node(id) {
            Node::None => Value::None,
            Node::Bool(yes) => Value::Bool(*yes),
            Node::Int(number) => Value::Int(*number),
            Node::Float(number) => Value::Float(*number),
            Node::Large(_) => Value::Opaque("int".into()),
            Node::Text(place) => Value::Text(self.texts.at(*place, &machine.tape)),
            Node::Bytes(place) => {
                let known = self.bytes.entry(place.start);
                let bytes = known.or_insert_with(|| machine.tape.get(*place).into());
                Value::Bytes(Arc::clone(bytes))
            }
            Node::Encoded(place) => match self.bytes.get(&place.start) {
                Some(bytes) => Value::Bytes(Arc::clone(bytes)),
                None => {
                    let bytes: Arc<[u8]> = latin1(machine.tape.get(*place))
                        .ok_or("is damaged: its pickle has bytes that are not valid Latin-1")?
                        .into();
                    self.bytes.insert(place.start, Arc::clone(&bytes));
                    Value::Bytes(bytes)
                }
            },
            Node::Sequence(items) => self.list(items, depth, path)?,
            Node::Tuple(items) => self.list(items, depth, path)?,
            Node::Dictionary(_, items) => self.dictionary(items, depth, path)?,
            Node::Global(_, module, name) => {
                self.spend((module.length + name.length) as usize / 16)?;
                Value::Opaque(machine.global_name(*module, *name).into())
            }
            Node::Storage(..) => Value::Opaque("torch.storage".into()),
            Node::NumpyType(..) => Value::Opaque("numpy.dtype".into()),
            Node::NumpyArray(_) => Value::Opaque("numpy.ndarray".into()),
            Node::Foreign(module, name) => {
                self.spend((module.length + name.length) as usize / 16)?;
                Value::Opaque(machine.global_name(*module, *name).into())
            }
            Node::Inline(index) => {
                self.pass(path)?;
                let found = machine.inline.get(*index as usize);
                let found = found
                    .and_then(|&(array, dtype)| Some((machine.arrays.get(array as usize)?, dtype)));
                let Some((array, dtype)) = found else {
                    return Err("is damaged: it has a tensor without an array".into());
                };
                self.spend(array.shape.len())?;
                let Value::Bytes(bytes) = self.give(array.data, depth + 1, 0)? else {
                    return Err("is damaged: it has a tensor of an array that is not bytes".into());
                };
                let mut strides = vec![1usize; array.shape.len()];
                let order: Vec<usize> = match array.fortran {
                    true => (0..array.shape.len()).collect(),
                    false => (0..array.shape.len()).rev().collect(),
                };
                for pair in order.windows(2) {
                    strides[pair[1]] = strides[pair[0]].saturating_mul(array.shape[pair[0]]);
                }
                Value::Tensor(Box::new(TorchTensor {
                    dtype: dtype.to_owned(),
                    shape: array.shape.clone(),
                    strides,
                    offset: 0,
                    storage_bytes: bytes.len() as u64,
                    inline: Some(bytes),
                }))
            }
            Node::Opaque(name) => Value::Opaque((*name).into()),
            Node::Tensor(index) => {
                self.pass(path)?;
                let laid = machine.tensors.get(*index as usize);
                let storage = laid.and_then(|t| machine.storages.get(t.storage as usize));
                let (Some(laid), Some(storage)) = (laid, storage) else {
                    return Err("is damaged: it has a tensor without a storage".into());
                };
                self.spend(laid.shape.len())?;
                Value::Tensor(Box::new(TorchTensor {
                    dtype: laid.dtype.to_owned(),
                    shape: laid.shape.clone(),
                    strides: laid.strides.clone(),
                    offset: storage.offset + laid.offset,
                    storage_bytes: laid.end - laid.offset,
                    inline: None,
                }))
            }
        })
    }

    pub(super) fn list(&mut self, items: &[Id], depth: usize, path: u64) -> Step<Value> {
        let mut list = Vec::new();
        for &item in items {
            // A place in a list is a name of at most seven digits and a dot.
            list.push(self.give(item, depth + 1, path + 8)?);
        }
        Ok(Value::List(list))
    }

    pub(super) fn dictionary(
        &mut self,
        items: &[(Id, Id)],
        depth: usize,
        path: u64,
    ) -> Step<Value> {
        let mut all: Vec<(Value, Value)> = Vec::new();
        // By the address of the key, which equal texts share.
        let mut places: HashMap<*const u8, usize> = HashMap::new();
        for &(key, item) in items {
            let key = self.give(key, depth + 1, 0)?;
            let name = match &key {
                Value::Text(name) => name.len() as u64 + 1,
                _ => 24,
            };
            let item = self.give(item, depth + 1, path.saturating_add(name))?;
            if let Value::Text(name) = &key {
                // A key that comes again has its first place and its last value.
                let place = *places.entry(name.as_ptr()).or_insert(all.len());
                if let Some(known) = all.get_mut(place) {
                    known.1 = item;
                    continue;
                }
            }
            all.push((key, item));
        }
        Ok(Value::Dict(all))
    }
}

impl Machine<'_> {
    /// A value with all that is in it, of a file of `length` bytes whose storages have been found.
    ///
    /// # Errors
    /// When values lie too deep in one another, or share so much that they would not fit memory when each is written
    /// out.
    pub(in crate::checkpoint::pickle) fn value(
        self,
        root: Id,
        length: u64,
    ) -> Step<(Value, Skipped)> {
        // A tensor that repeats its elements may be larger than its storage, but not without end.
        let most = length.max(SMALL);
        for tensor in &self.tensors {
            let elements = tensor.shape.iter().product::<usize>() as u64;
            if elements
                .checked_mul(tensor.element)
                .is_none_or(|bytes| bytes > most)
            {
                return Err(format!(
                    "is refused: its tensor {:?} repeats its elements (strides {:?}) to more bytes \
                     than the file has",
                    tensor.shape, tensor.strides
                ));
            }
        }
        // What is written once and named once costs less than it took to write it.
        let left = self.steps + (1 << 16);
        let mut giver = Giver {
            machine: &self,
            texts: Texts::default(),
            bytes: HashMap::new(),
            left,
            names: (1 << 20) + 16 * self.tape.bytes.len() as u64,
        };
        let value = giver.give(root, 0, 0)?;
        Ok((value, self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use retouch_graph::MemoryFiles;

    use super::super::super::value::Source;
    use super::*;

    /// A dictionary of `entries` numbers, all under one text of `length` bytes that is written twice.
    fn same_key(length: u32, entries: usize) -> Vec<u8> {
        let text = vec![b'x'; length as usize];
        let mut pickle = b"\x80\x02}(".to_vec();
        for slot in [0, 1] {
            pickle.push(b'X');
            pickle.extend(length.to_le_bytes());
            pickle.extend(&text);
            pickle.extend([b'q', slot, b'N']);
        }
        for entry in 0..entries {
            pickle.extend([b'h', (entry % 2) as u8, b'N']);
        }
        pickle.extend(b"u.");
        pickle
    }

    #[test]
    fn a_text_is_hashed_once_for_each_time_that_it_is_written_however_often_it_is_named() {
        let length = 1 << 16;
        let pickle = same_key(length, 20_000);
        let files = MemoryFiles::new().with("p", &pickle);
        let source = Source {
            path: Path::new("p"),
            files: &files,
        };
        let mut machine = Machine::new(source, 0, pickle.len() as u64);
        let root = machine.run().unwrap();
        let mut giver = Giver {
            machine: &machine,
            texts: Texts::default(),
            bytes: HashMap::new(),
            left: machine.steps + (1 << 16),
            names: 0,
        };
        let value = giver.give(root, 0, 0).unwrap();
        assert_eq!(giver.texts.hashed, 2 * length as usize);
        assert_eq!(giver.texts.all.len(), 1);
        let Value::Dict(entries) = value else {
            panic!("no dictionary")
        };
        assert_eq!(entries.len(), 1, "a key that comes again is the same");
    }
}
