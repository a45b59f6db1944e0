//! The machine that runs a pickle as a description of data.
//!
//! Values live in one list and know one another by number, so that shared and even circular ones are no matter until
//! they are given out; texts and bytes are places in the pickle. Every step is counted, and what makes more than one
//! value in a step pays for each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::{Fault, Skipped, Source, TorchTensor, Value, element_bytes};

/// The longest pickle that is read. That of a whole training checkpoint of Stable Diffusion XL has about 1 MB.
const LONGEST: u64 = 32 << 20;
/// The most steps that a pickle may take. A tensor takes about 40.
const STEPS: u64 = 2_000_000;
/// The deepest that values lie in one another when they are given out.
pub(super) const DEPTH: usize = 64;
/// The longest name of a module or a global, and of a storage.
const NAME: usize = 512;
/// The longest whole number, in bytes.
const DIGITS: usize = 1024;
/// The most dimensions of a tensor.
const RANK: usize = 16;
/// The bytes that are asked of a file at once.
const PIECE: u64 = 1 << 16;
/// What a tensor that repeats its elements may always grow to, however short its file.
const SMALL: u64 = 1 << 20;

/// A place in the pickle.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    start: u32,
    length: u32,
}

/// The number of a value.
pub(super) type Id = u32;

const NONE: Id = 0;
const TRUE: Id = 1;
const FALSE: Id = 2;
const EMPTY: Id = 3;

/// What a global that is understood stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
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
enum Kind {
    /// A dictionary; what it is built with besides its entries (`_metadata` of a state) is left out.
    Plain,
    /// A `torch.nn.ParameterDict`: its entries are the `_parameters` that it is built with.
    Parameters,
    /// An `argparse.Namespace`: its entries are what it is built with.
    Namespace,
}

enum Node {
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
pub(super) enum Plain<'a> {
    Bool(bool),
    Int(i64),
    Large(&'a [u8]),
    Other,
}

/// A storage that a pickle speaks of.
pub(super) struct Storage {
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

struct Laid {
    dtype: &'static str,
    element: u64,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// In bytes, from the beginning of the storage.
    offset: u64,
    /// The elements of the storage end here, in bytes.
    end: u64,
    storage: u32,
}

/// An array of numpy: its numbers are in the pickle.
#[derive(Clone)]
struct Array {
    /// Of a numpy type, and whether it is big-endian.
    dtype: (Place, bool),
    shape: Vec<usize>,
    /// Whether the first dimension counts fastest.
    fortran: bool,
    data: Id,
}

/// The pickle, read as far as it was needed.
struct Tape<'a> {
    source: Source<'a>,
    /// Where it begins in the file, and where it has to end.
    start: u64,
    end: u64,
    bytes: Vec<u8>,
    at: usize,
}

impl Tape<'_> {
    /// Sees to it that `count` bytes lie ahead.
    fn need(&mut self, count: usize) -> Result<(), Fault> {
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
                "has a pickle of more than {LONGEST} bytes, which is not read"
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

    fn take(&mut self, count: usize) -> Result<Place, Fault> {
        self.need(count)?;
        let place = Place {
            start: self.at as u32,
            length: count as u32,
        };
        self.at += count;
        Ok(place)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let place = self.take(N)?;
        let mut number = [0; N];
        number.copy_from_slice(self.get(place));
        Ok(number)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.number::<1>()?[0])
    }

    /// A length of four bytes, and what is so long.
    fn long(&mut self) -> Result<Place, Fault> {
        let length = u32::from_le_bytes(self.number()?);
        self.take(length as usize)
    }

    /// A length of eight bytes, and what is so long.
    fn longer(&mut self) -> Result<Place, Fault> {
        let length = u64::from_le_bytes(self.number()?);
        let length = usize::try_from(length.min(LONGEST + 1)).unwrap_or(usize::MAX);
        self.take(length)
    }

    /// The rest of a line, which is the name of a module or of a global.
    fn line(&mut self) -> Result<Place, Fault> {
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

    fn get(&self, place: Place) -> &[u8] {
        let start = place.start as usize;
        self.bytes
            .get(start..start + place.length as usize)
            .unwrap_or_default()
    }
}

/// Runs the pickles of one file, one after another.
pub(super) struct Machine<'a> {
    tape: Tape<'a>,
    nodes: Vec<Node>,
    storages: Vec<Storage>,
    keys: HashMap<String, u32>,
    tensors: Vec<Laid>,
    arrays: Vec<Array>,
    /// Tensors of arrays: which, and the type of its elements.
    inline: Vec<(u32, &'static str)>,
    /// Objects of classes that are not known, by class.
    skipped: BTreeMap<String, usize>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    steps: u64,
    /// The place of the current opcode.
    here: usize,
    /// The first global that is not known, for messages.
    foreign: Option<(Place, Place)>,
}

type Step<T = ()> = Result<T, Fault>;

impl<'a> Machine<'a> {
    /// Begins before a pickle from the byte `start` on that ends before the byte `end`.
    pub(super) fn new(source: Source<'a>, start: u64, end: u64) -> Self {
        Self {
            tape: Tape {
                source,
                start,
                end,
                bytes: Vec::new(),
                at: 0,
            },
            nodes: vec![
                Node::None,
                Node::Bool(true),
                Node::Bool(false),
                Node::Tuple(Box::default()),
            ],
            storages: Vec::new(),
            keys: HashMap::new(),
            tensors: Vec::new(),
            arrays: Vec::new(),
            inline: Vec::new(),
            skipped: BTreeMap::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            steps: 0,
            here: 0,
            foreign: None,
        }
    }

    /// The byte of the file behind the last pickle.
    pub(super) fn position(&self) -> u64 {
        self.tape.start + self.tape.at as u64
    }

    /// The storages that pickles spoke of so far.
    pub(super) fn storages(&mut self) -> &mut [Storage] {
        &mut self.storages
    }

    /// A value that has no others in it.
    pub(super) fn plain(&self, id: Id) -> Plain<'_> {
        match self.node(id) {
            Node::Bool(yes) => Plain::Bool(*yes),
            Node::Int(number) => Plain::Int(*number),
            Node::Large(place) => Plain::Large(self.tape.get(*place)),
            _ => Plain::Other,
        }
    }

    /// What a dictionary holds under a name.
    pub(super) fn field(&self, id: Id, name: &str) -> Option<Id> {
        let Node::Dictionary(_, items) = self.node(id) else {
            return None;
        };
        // The last one counts, as in a dictionary that is filled item by item.
        let found = items.iter().rev();
        let mut found = found.filter(|(key, _)| self.text(*key) == Some(name));
        found.next().map(|(_, value)| *value)
    }

    /// A list of texts.
    pub(super) fn texts(&self, id: Id) -> Option<Vec<String>> {
        let Node::Sequence(items) = self.node(id) else {
            return None;
        };
        let texts = items.iter();
        texts
            .map(|item| self.text(*item).map(str::to_owned))
            .collect()
    }

    fn node(&self, id: Id) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    /// A short text. Longer ones are no names, and looking at the same one again and again would take forever.
    fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(place) if place.length as usize <= NAME => {
                std::str::from_utf8(self.tape.get(*place)).ok()
            }
            _ => None,
        }
    }

    // ---- messages ----------------------------------------------------------------------------------------------

    fn global_name(&self, module: Place, name: Place) -> String {
        let part = |place| {
            let text = String::from_utf8_lossy(self.tape.get(place));
            text.chars().filter(|c| !c.is_control()).collect::<String>()
        };
        format!("{}.{}", part(module), part(name))
    }

    /// What a value is called in a message: a global by its name.
    fn name_of(&self, id: Id) -> String {
        match self.node(id) {
            Node::Global(_, module, name) => format!("`{}`", self.global_name(*module, *name)),
            Node::None => "nothing".into(),
            Node::Bool(_) | Node::Int(_) | Node::Large(_) | Node::Float(_) => "a number".into(),
            Node::Text(_) => "a text".into(),
            Node::Bytes(_) | Node::Encoded(_) => "bytes".into(),
            Node::Sequence(_) | Node::Tuple(_) => "a list".into(),
            Node::Dictionary(..) => "a dictionary".into(),
            Node::Storage(..) => "a storage".into(),
            Node::Tensor(_) | Node::Inline(_) => "a tensor".into(),
            Node::NumpyType(..) | Node::NumpyArray(_) => "an object of numpy".into(),
            Node::Foreign(module, name) => {
                format!("an object of `{}`", self.global_name(*module, *name))
            }
            Node::Opaque(name) => format!("`{name}`"),
        }
    }

    /// The refusal of what is not data.
    fn refuse(&self, what: &str) -> Fault {
        // Who refuses an opcode says as well what may have been its purpose.
        let also = match self.foreign {
            Some((module, name)) => {
                let name = format!("`{}`", self.global_name(module, name));
                if what.contains(&name) {
                    String::new()
                } else {
                    format!(", and names {name}")
                }
            }
            None => String::new(),
        };
        format!(
            "is refused: its pickle {what} (at byte {}){also}, so it is more than data. Nothing of \
             it was executed; if you trust the file, convert it to safetensors with the program \
             that made it",
            self.tape.start + self.here as u64
        )
    }

    /// The refusal of what is done with a global of this name: that of a tensor which is not read says so.
    fn refuse_use(&self, does: &str, name: &str) -> Fault {
        match unread(name) {
            Some(what) => format!(
                "is refused: it holds {what} ({name}), which is not read. Nothing of it was executed; save dense tensors of \
                 floating point with the program that made it"
            ),
            None => self.refuse(&format!("{does} {name}")),
        }
    }

    fn damaged(&self, what: &str) -> Fault {
        format!(
            "is damaged: its pickle {what} (at byte {})",
            self.tape.start + self.here as u64
        )
    }

    // ---- the stack ---------------------------------------------------------------------------------------------

    fn spend(&mut self, steps: usize) -> Step {
        self.steps += steps as u64;
        if self.steps > STEPS {
            return Err(format!(
                "has a pickle of more than {STEPS} steps, which is not read"
            ));
        }
        Ok(())
    }

    fn add(&mut self, node: Node) -> Id {
        // Steps are counted, so there are never more than fit.
        self.nodes.push(node);
        (self.nodes.len() - 1) as Id
    }

    fn push(&mut self, node: Node) {
        let id = self.add(node);
        self.stack.push(id);
    }

    /// The place on the stack above which things may be taken.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Id> {
        if self.stack.len() > self.floor()
            && let Some(id) = self.stack.pop()
        {
            return Ok(id);
        }
        Err(self.damaged("takes from an empty stack"))
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(self.damaged("looks at an empty stack")),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.damaged("goes back to a mark that is not there")),
        }
    }

    fn pairs(&self, items: &[Id]) -> Step<Vec<(Id, Id)>> {
        if !items.len().is_multiple_of(2) {
            return Err(self.damaged("has a key without a value"));
        }
        Ok(items
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect())
    }

    fn extend_sequence(&mut self, target: Id, items: &[Id]) -> Step {
        match self.nodes.get_mut(target as usize) {
            Some(Node::Sequence(list)) => {
                list.extend_from_slice(items);
                Ok(())
            }
            // What is filled into an object is as much of it as the object is.
            Some(Node::Foreign(..)) => Ok(()),
            _ => Err(self.damaged(&format!("appends to {}", self.name_of(target)))),
        }
    }

    fn extend_dictionary(&mut self, target: Id, items: &[(Id, Id)]) -> Step {
        match self.nodes.get_mut(target as usize) {
            Some(Node::Dictionary(_, all)) => {
                all.extend_from_slice(items);
                Ok(())
            }
            Some(Node::Foreign(..)) => Ok(()),
            _ => Err(self.damaged(&format!("sets items of {}", self.name_of(target)))),
        }
    }

    fn push_text(&mut self, place: Place) -> Step {
        if std::str::from_utf8(self.tape.get(place)).is_err() {
            return Err(self.damaged("has a text that is not UTF-8"));
        }
        self.push(Node::Text(place));
        Ok(())
    }

    /// A text of Python 2, which may be bytes.
    fn push_string(&mut self, place: Place) {
        let is_text = std::str::from_utf8(self.tape.get(place)).is_ok();
        self.push(if is_text {
            Node::Text(place)
        } else {
            Node::Bytes(place)
        });
    }

    fn push_whole(&mut self, length: usize) -> Step {
        if length > DIGITS {
            return Err(self.damaged("has a number without end"));
        }
        let place = self.tape.take(length)?;
        let bytes = self.tape.get(place);
        if length > 8 {
            self.push(Node::Large(place));
            return Ok(());
        }
        // Two's complement: the highest bit that is there fills those that are not.
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 8];
        number[..length].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(number)));
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Step {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Step {
        match self.memo.get(&key) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => Err(self.damaged("recalls what it has not remembered")),
        }
    }

    // ---- the program -------------------------------------------------------------------------------------------

    /// Runs the next pickle and gives what it is of.
    ///
    /// # Errors
    /// When it is damaged, too large, or does more than to describe data.
    pub(super) fn run(&mut self) -> Step<Id> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            self.here = self.tape.at;
            self.spend(1)?;
            if let Some(root) = self.step()? {
                return Ok(root);
            }
        }
    }

    /// Takes one step; gives the value at the end.
    fn step(&mut self) -> Step<Option<Id>> {
        match self.tape.byte()? {
            b'.' => return self.pop().map(Some),
            // PROTO
            0x80 => {
                let version = self.tape.byte()?;
                if version > 5 {
                    return Err(self.damaged(&format!("is of the protocol {version}")));
                }
            }
            // FRAME: its length is for those who read ahead.
            0x95 => {
                self.tape.take(8)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // Python drops a mark so when nothing lies above it.
                if self.stack.len() == self.floor() {
                    self.pop_mark()?;
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let id = self.top()?;
                self.stack.push(id);
            }
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            b')' => self.stack.push(EMPTY),
            b'J' => {
                let number = i32::from_le_bytes(self.tape.number()?);
                self.push(Node::Int(number.into()));
            }
            b'K' => {
                let number = self.tape.byte()?;
                self.push(Node::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.tape.number()?);
                self.push(Node::Int(number.into()));
            }
            // LONG1, LONG4
            0x8a => {
                let length = self.tape.byte()?;
                self.push_whole(length.into())?;
            }
            0x8b => {
                let length = u32::from_le_bytes(self.tape.number()?);
                self.push_whole(length as usize)?;
            }
            b'G' => {
                let number = f64::from_be_bytes(self.tape.number()?);
                self.push(Node::Float(number));
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' => {
                let place = self.tape.long()?;
                self.push_text(place)?;
            }
            0x8c => {
                let length = self.tape.byte()?;
                let place = self.tape.take(length.into())?;
                self.push_text(place)?;
            }
            0x8d => {
                let place = self.tape.longer()?;
                self.push_text(place)?;
            }
            // BINSTRING, SHORT_BINSTRING
            b'T' => {
                let place = self.tape.long()?;
                self.push_string(place);
            }
            b'U' => {
                let length = self.tape.byte()?;
                let place = self.tape.take(length.into())?;
                self.push_string(place);
            }
            // BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
            b'B' => {
                let place = self.tape.long()?;
                self.push(Node::Bytes(place));
            }
            b'C' => {
                let length = self.tape.byte()?;
                let place = self.tape.take(length.into())?;
                self.push(Node::Bytes(place));
            }
            0x8e | 0x96 => {
                let place = self.tape.longer()?;
                self.push(Node::Bytes(place));
            }
            // EMPTY_LIST, EMPTY_SET
            b']' | 0x8f => self.push(Node::Sequence(Vec::new())),
            b'}' => self.push(Node::Dictionary(Kind::Plain, Vec::new())),
            b'a' => {
                let item = self.pop()?;
                let list = self.top()?;
                self.extend_sequence(list, &[item])?;
            }
            // APPENDS, ADDITEMS
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                let list = self.top()?;
                self.extend_sequence(list, &items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                let target = self.top()?;
                self.extend_dictionary(target, &[(key, value)])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                let items = self.pairs(&items)?;
                let target = self.top()?;
                self.extend_dictionary(target, &items)?;
            }
            // LIST, FROZENSET
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Node::Sequence(items));
            }
            b'd' => {
                let items = self.pop_mark()?;
                let items = self.pairs(&items)?;
                self.push(Node::Dictionary(Kind::Plain, items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items.into()));
            }
            // TUPLE1, TUPLE2, TUPLE3
            count @ 0x85..=0x87 => {
                let mut items = [NONE; 3];
                let items = &mut items[..usize::from(count - 0x84)];
                for item in items.iter_mut().rev() {
                    *item = self.pop()?;
                }
                let items = Box::from(&*items);
                self.push(Node::Tuple(items));
            }
            b'q' => {
                let key = self.tape.byte()?;
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.tape.number()?);
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let key = self.tape.byte()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.tape.number()?);
                self.recall(key)?;
            }
            b'c' => {
                let module = self.tape.line()?;
                let name = self.tape.line()?;
                self.global(module, name);
            }
            // STACK_GLOBAL
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                match (self.node(module), self.node(name)) {
                    (&Node::Text(module), &Node::Text(name))
                        if module.length.max(name.length) as usize <= NAME =>
                    {
                        self.global(module, name);
                    }
                    _ => return Err(self.refuse("names a global by something else than names")),
                }
            }
            b'R' => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                let result = self.call(function, arguments)?;
                self.stack.push(result);
            }
            // NEWOBJ
            0x81 => {
                let arguments = self.pop()?;
                let class = self.pop()?;
                let result = self.object(class, arguments)?;
                self.stack.push(result);
            }
            // NEWOBJ_EX
            0x92 => {
                let keywords = self.pop()?;
                let arguments = self.pop()?;
                let class = self.pop()?;
                let result = self.object(class, arguments)?;
                match self.node(keywords) {
                    Node::Dictionary(_, items) if items.is_empty() => {}
                    Node::Dictionary(..) if matches!(self.node(result), Node::Foreign(..)) => {}
                    _ => {
                        return Err(self.refuse(&format!(
                            "makes an object of {} with keywords",
                            self.name_of(class)
                        )));
                    }
                }
                self.stack.push(result);
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                self.build(target, state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let result = self.persistent(id)?;
                self.stack.push(result);
            }
            b'i' => {
                let module = self.tape.line()?;
                let name = self.tape.line()?;
                let name = self.global_name(module, name);
                return Err(self.refuse(&format!("makes an object of `{name}` with INST")));
            }
            b'o' => {
                let items = self.pop_mark()?;
                let class = items.first().copied().unwrap_or(NONE);
                let class = self.name_of(class);
                return Err(self.refuse(&format!("makes an object of {class} with OBJ")));
            }
            other => {
                let what = opcode(other).map_or_else(
                    || format!("has the opcode {other:#04x}, which there is not"),
                    |name| format!("uses the opcode {name}"),
                );
                return Err(match opcode(other) {
                    Some(_) => self.refuse(&what),
                    None => self.damaged(&what),
                });
            }
        }
        Ok(None)
    }

    fn global(&mut self, module: Place, name: Place) {
        let known = match (
            std::str::from_utf8(self.tape.get(module)),
            std::str::from_utf8(self.tape.get(name)),
        ) {
            (Ok(module), Ok(name)) => known(module, name),
            _ => None,
        };
        if known.is_none() && self.foreign.is_none() {
            self.foreign = Some((module, name));
        }
        self.push(Node::Global(known, module, name));
    }

    fn arguments(&self, id: Id) -> Step<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Ok(items),
            _ => Err(self.damaged("calls with arguments that are no tuple")),
        }
    }

    /// REDUCE: what a global makes of its arguments, where that is data.
    fn call(&mut self, function: Id, arguments: Id) -> Step<Id> {
        let &Node::Global(known, ..) = self.node(function) else {
            return Err(self.refuse(&format!("calls {}", self.name_of(function))));
        };
        let unknown = |machine: &Self| machine.refuse_use("calls", &machine.name_of(function));
        let Some(known) = known else {
            return match self.foreign_object(function, Some(arguments))? {
                Some(object) => Ok(object),
                None => Err(unknown(self)),
            };
        };
        let given = self.arguments(arguments)?;
        let first = given.first().copied();
        let wrong = |machine: &Self| {
            machine.damaged(&format!(
                "calls {} with arguments that it does not have",
                machine.name_of(function)
            ))
        };
        match (known, given) {
            (Known::TensorV1, &[storage, offset, shape, strides])
            | (Known::TensorV2, &[storage, offset, shape, strides, _, _])
            | (Known::TensorV2, &[storage, offset, shape, strides, _, _, _]) => {
                self.tensor(storage, offset, shape, strides, None)
            }
            (Known::TensorV3, &[storage, offset, shape, strides, _, _, dtype])
            | (Known::TensorV3, &[storage, offset, shape, strides, _, _, dtype, _]) => {
                match self.node(dtype) {
                    &Node::Global(Some(Known::Type(dtype)), ..) => {
                        self.tensor(storage, offset, shape, strides, Some(dtype))
                    }
                    _ => Err(self.refuse(&format!(
                        "makes a tensor of the type {}",
                        self.name_of(dtype)
                    ))),
                }
            }
            (Known::Parameter, &[tensor, _, _] | &[tensor, _, _, _]) => match self.node(tensor) {
                Node::Tensor(_) | Node::Inline(_) => Ok(tensor),
                _ => Err(wrong(self)),
            },
            (Known::FromType, &[inner, class, inner_arguments, _]) => {
                match (self.node(inner), self.node(class)) {
                    (
                        Node::Global(
                            Some(
                                Known::TensorV2
                                | Known::TensorV3
                                | Known::Parameter
                                | Known::FromNumpy,
                            ),
                            ..,
                        ),
                        Node::Global(Some(Known::TensorClass), ..),
                    ) => self.call(inner, inner_arguments),
                    (Node::Global(Some(_), ..), _) => Err(self.refuse(&format!(
                        "makes a tensor of the class {}",
                        self.name_of(class)
                    ))),
                    _ => Err(self.refuse(&format!("calls {}", self.name_of(inner)))),
                }
            }
            (Known::Size | Known::Sequence, []) => Ok(self.add(Node::Sequence(Vec::new()))),
            (Known::Size | Known::Sequence, &[items]) => match self.node(items) {
                Node::Sequence(_) | Node::Tuple(_) => Ok(items),
                _ => Err(wrong(self)),
            },
            (Known::Device, [_] | [_, _]) => Ok(self.add(Node::Opaque("torch.device"))),
            (Known::Dictionary(kind), _) => self.dictionary(kind, first, function),
            (Known::Encode, &[text, encoding]) => match (self.node(text), self.text(encoding)) {
                (&Node::Text(place), Some("latin1" | "latin-1")) => {
                    Ok(self.add(Node::Encoded(place)))
                }
                _ => Err(wrong(self)),
            },
            (Known::NumpyType, &[name] | &[name, _] | &[name, _, _]) => match self.node(name) {
                &Node::Text(place) if place.length <= 16 => {
                    Ok(self.add(Node::NumpyType(place, false)))
                }
                _ => Err(wrong(self)),
            },
            (Known::NumpyScalar, &[dtype, bytes]) => {
                let scalar = self.scalar(dtype, bytes).ok_or_else(|| wrong(self))?;
                Ok(self.add(scalar))
            }
            (Known::NumpyRebuild, &[class, _, _]) => match self.node(class) {
                Node::Global(Some(Known::NumpyArray), ..) => Ok(self.add(Node::NumpyArray(None))),
                _ => Err(self.refuse(&format!("makes an array of {}", self.name_of(class)))),
            },
            (Known::NumpyBuffer, &[data, dtype, shape, order]) => {
                let fortran = self.text(order) == Some("F");
                let array = self.array(dtype, shape, fortran, data)?;
                Ok(self.add(Node::NumpyArray(array)))
            }
            (Known::FromNumpy, &[array, _, _, _]) => match *self.node(array) {
                Node::NumpyArray(Some(array)) => self.of_array(array),
                _ => Err(wrong(self)),
            },
            (Known::TensorClass | Known::Storage(_) | Known::Type(_) | Known::NumpyArray, _) => {
                Err(unknown(self))
            }
            _ => Err(wrong(self)),
        }
    }

    /// NEWOBJ: a new object of a class, where that is data.
    fn object(&mut self, class: Id, arguments: Id) -> Step<Id> {
        let &Node::Global(known, ..) = self.node(class) else {
            return Err(self.refuse(&format!("makes an object of {}", self.name_of(class))));
        };
        match known {
            Some(Known::Dictionary(kind)) => {
                let first = self.arguments(arguments)?.first().copied();
                self.dictionary(kind, first, class)
            }
            Some(Known::Size | Known::Sequence) => self.call(class, arguments),
            None => match self.foreign_object(class, None)? {
                Some(object) => Ok(object),
                None => Err(self.refuse(&format!("makes an object of {}", self.name_of(class)))),
            },
            _ => Err(self.refuse(&format!("makes an object of {}", self.name_of(class)))),
        }
    }

    /// What stands for an object of a class that is not known, or for what calling it with `arguments` gives: its name. `None`
    /// where the name is none of a class, or of a module that acts.
    fn foreign_object(&mut self, class: Id, arguments: Option<Id>) -> Step<Option<Id>> {
        let &Node::Global(None, module, name) = self.node(class) else {
            return Ok(None);
        };
        let (Ok(module_name), Ok(own_name)) = (
            std::str::from_utf8(self.tape.get(module)),
            std::str::from_utf8(self.tape.get(name)),
        ) else {
            return Ok(None);
        };
        let first = |id: Id| match self.node(id) {
            Node::Tuple(items) => items.first().copied(),
            _ => None,
        };
        // `typing.Optional[int]`, which settings name as the types of their fields.
        let is_of_typing = |id: Id| match self.node(id) {
            Node::Global(_, module, _) => self.tape.get(*module) == b"typing",
            _ => false,
        };
        if matches!(
            (module_name, own_name),
            ("operator" | "_operator", "getitem")
        ) && arguments.and_then(first).is_some_and(is_of_typing)
        {
            return Ok(Some(self.add(Node::Opaque("typing"))));
        }
        // And their type `None`, which has no name of its own.
        if matches!(
            (module_name, own_name),
            ("builtins" | "__builtin__", "type")
        ) && arguments.and_then(first) == Some(NONE)
        {
            return Ok(Some(self.add(Node::Opaque("NoneType"))));
        }
        if !is_foreign_class(module_name, own_name, arguments.is_some()) {
            return Ok(None);
        }
        let class = self.global_name(module, name);
        self.spend(class.len() / 16)?;
        *self.skipped.entry(class).or_default() += 1;
        Ok(Some(self.add(Node::Foreign(module, name))))
    }

    /// An array of numpy, if its numbers are of a kind that tensors have.
    fn array(&mut self, dtype: Id, shape: Id, fortran: bool, data: Id) -> Step<Option<u32>> {
        let (&Node::NumpyType(name, big), Some(shape)) = (self.node(dtype), self.wholes(shape))
        else {
            return Ok(None);
        };
        self.spend(shape.len())?;
        self.arrays.push(Array {
            dtype: (name, big),
            shape,
            fortran,
            data,
        });
        Ok(Some((self.arrays.len() - 1) as u32))
    }

    /// The tensor of an array's numbers.
    fn of_array(&mut self, index: u32) -> Step<Id> {
        let Some(Array {
            dtype: (name, big),
            shape,
            data,
            ..
        }) = self.arrays.get(index as usize).cloned()
        else {
            return Err(self.damaged("has a tensor without an array"));
        };
        let dtype = match self.tape.get(name) {
            b"f2" => "F16",
            b"f4" => "F32",
            b"f8" => "F64",
            b"i8" => "I64",
            b"i4" => "I32",
            b"i2" => "I16",
            b"i1" => "I8",
            b"u1" => "U8",
            b"b1" => "BOOL",
            _ => return Err(self.damaged("has a tensor of an array of another type")),
        };
        let size = element_bytes(dtype).unwrap_or(1);
        if big && size > 1 {
            return Err(self.damaged("has a tensor of a big-endian array"));
        }
        let length = match self.node(data) {
            Node::Bytes(place) => u64::from(place.length),
            // Bytes from 128 on take two of the text's.
            &Node::Encoded(place) => {
                self.spend(place.length as usize / 16)?;
                let text = self.tape.get(place);
                text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count() as u64
            }
            _ => return Err(self.damaged("has a tensor of an array that is no bytes")),
        };
        let due = shape
            .iter()
            .try_fold(size, |all, &side| all.checked_mul(side as u64));
        if due != Some(length) {
            return Err(self.damaged(&format!(
                "has a tensor {shape:?} of an array of {length} bytes"
            )));
        }
        self.inline.push((index, dtype));
        let tensor = (self.inline.len() - 1) as u32;
        Ok(self.add(Node::Inline(tensor)))
    }

    fn dictionary(&mut self, kind: Kind, first: Option<Id>, class: Id) -> Step<Id> {
        // Old ordered dictionaries are made of a list of pairs. A default dictionary's first argument is what it would
        // call for a key that is not there: nothing here ever does.
        let mut items = Vec::new();
        match first.map(|first| self.node(first)) {
            None | Some(Node::None | Node::Global(..)) => {}
            Some(Node::Sequence(pairs)) if kind == Kind::Plain => {
                for &pair in pairs {
                    match self.node(pair) {
                        Node::Sequence(pair) if pair.len() == 2 => items.push((pair[0], pair[1])),
                        Node::Tuple(pair) if pair.len() == 2 => items.push((pair[0], pair[1])),
                        _ => return Err(self.damaged("makes a dictionary of what are no pairs")),
                    }
                }
            }
            Some(Node::Dictionary(_, all)) if kind == Kind::Plain => items.clone_from(all),
            Some(_) => {
                return Err(self.damaged(&format!(
                    "calls {} with arguments that it does not have",
                    self.name_of(class)
                )));
            }
        }
        self.spend(items.len())?;
        Ok(self.add(Node::Dictionary(kind, items)))
    }

    /// BUILD: what a state makes of an object, where that is data.
    fn build(&mut self, target: Id, state: Id) -> Step {
        let state_kind = self.node(state);
        let fits = match self.node(target) {
            Node::Dictionary(..) => matches!(state_kind, Node::Dictionary(..)),
            Node::NumpyArray(_) => matches!(state_kind, Node::Tuple(_)),
            _ => true,
        };
        if !fits {
            // An object's own `__setstate__` takes anything; what it would do is not data.
            return Err(self.refuse(&format!(
                "sets the state of {} to {} (`__setstate__`)",
                self.name_of(target),
                self.name_of(state)
            )));
        }
        match self.node(target) {
            Node::Dictionary(Kind::Plain, _) => Ok(()),
            // Whatever it is, it is for the class, which is not there.
            Node::Foreign(..) => Ok(()),
            Node::NumpyArray(_) => {
                // Version, shape, type, whether the first dimension counts fastest, bytes.
                let state = match state_kind {
                    Node::Tuple(items) => match **items {
                        [_, shape, dtype, fortran, data] => Some((shape, dtype, fortran, data)),
                        _ => None,
                    },
                    _ => None,
                };
                let Some((shape, dtype, fortran, data)) = state else {
                    return Ok(());
                };
                let fortran = matches!(self.node(fortran), Node::Bool(true));
                let array = self.array(dtype, shape, fortran, data)?;
                if let Some(node) = self.nodes.get_mut(target as usize) {
                    *node = Node::NumpyArray(array);
                }
                Ok(())
            }
            Node::Dictionary(Kind::Parameters, _) => {
                if let Node::Dictionary(_, items) = self.node(state) {
                    self.spend(items.len())?;
                }
                match self.field(state, "_parameters") {
                    Some(parameters) => self.merge(target, parameters),
                    None => Ok(()),
                }
            }
            Node::Dictionary(Kind::Namespace, _) => self.merge(target, state),
            &Node::NumpyType(name, _) => {
                // Version, byte order, and what arrays of other arrays have.
                let order = match self.node(state) {
                    Node::Tuple(items) => items.get(1).and_then(|&order| self.text(order)),
                    _ => None,
                };
                let big = match order {
                    Some(">") => true,
                    Some("<" | "|" | "=") => false,
                    _ => return Err(self.damaged("has a type of numpy without a byte order")),
                };
                if let Some(node) = self.nodes.get_mut(target as usize) {
                    *node = Node::NumpyType(name, big);
                }
                Ok(())
            }
            _ => Err(self.refuse(&format!("sets the state of {}", self.name_of(target)))),
        }
    }

    fn merge(&mut self, target: Id, from: Id) -> Step {
        let items = match self.node(from) {
            Node::Dictionary(_, items) => items.clone(),
            _ => return Err(self.damaged("has an object whose state is no dictionary")),
        };
        self.spend(items.len())?;
        self.extend_dictionary(target, &items)
    }

    /// BINPERSID: a storage, or the class of an old file's module.
    fn persistent(&mut self, id: Id) -> Step<Id> {
        let Node::Tuple(parts) = self.node(id) else {
            return Err(self.refuse(&format!(
                "asks for {} by a persistent id, which is none of a storage",
                self.name_of(id)
            )));
        };
        let (what, parts) = match parts.split_first() {
            Some((&what, parts)) => (self.text(what).unwrap_or_default(), parts),
            None => ("", &[][..]),
        };
        match (what, parts) {
            // The class is held, and its source text is not looked at.
            ("module", &[class, _, _]) => match self.node(class) {
                Node::Global(..) => Ok(class),
                _ => Err(self.damaged("has a module without a class")),
            },
            ("storage", &[class, key, _, count]) => self.storage(class, key, count, None),
            ("storage", &[class, key, _, count, view]) => {
                let view = match self.node(view) {
                    Node::None => None,
                    Node::Tuple(view) => match **view {
                        [_, from, count] => Some((from, count)),
                        _ => return Err(self.damaged("has a view of a storage that is none")),
                    },
                    _ => return Err(self.damaged("has a view of a storage that is none")),
                };
                self.storage(class, key, count, view)
            }
            _ => Err(self.refuse("has a persistent id that is none of a storage")),
        }
    }

    fn storage(&mut self, class: Id, key: Id, count: Id, view: Option<(Id, Id)>) -> Step<Id> {
        let &Node::Global(known, ..) = self.node(class) else {
            return Err(self.damaged("has a storage without a class"));
        };
        let Some(Known::Storage(dtype)) = known else {
            return Err(self.refuse_use("has a storage of the class", &self.name_of(class)));
        };
        let element = element_bytes(dtype).unwrap_or(1);
        let Some(key) = self.text(key) else {
            return Err(self.damaged("has a storage without a name"));
        };
        let Some(count) = self.whole(count) else {
            return Err(self.damaged("has a storage without a size"));
        };
        let Some(bytes) = count.checked_mul(element) else {
            return Err(self.damaged("has a storage larger than all memory"));
        };
        let (from, length) = match view {
            None => (0, count),
            Some((from, length)) => match (self.whole(from), self.whole(length)) {
                (Some(from), Some(length))
                    if from.checked_add(length).is_some_and(|end| end <= count) =>
                {
                    (from, length)
                }
                _ => return Err(self.damaged("has a view beyond its storage")),
            },
        };
        let index = if let Some(&index) = self.keys.get(key) {
            let known = self.storages.get(index as usize);
            if known.is_none_or(|known| known.dtype != dtype || known.bytes != bytes) {
                return Err(self.damaged(&format!("speaks of the storage {key:?} in two ways")));
            }
            index
        } else {
            let index = self.storages.len() as u32;
            let key = key.to_owned();
            self.keys.insert(key.clone(), index);
            self.storages.push(Storage {
                key,
                dtype,
                element,
                bytes,
                offset: 0,
            });
            index
        };
        Ok(self.add(Node::Storage(index, from, length)))
    }

    fn whole(&self, id: Id) -> Option<u64> {
        match self.node(id) {
            Node::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    fn wholes(&self, id: Id) -> Option<Vec<usize>> {
        let items: &[Id] = match self.node(id) {
            Node::Tuple(items) => items,
            Node::Sequence(items) => items,
            _ => return None,
        };
        if items.len() > RANK {
            return None;
        }
        let numbers = items.iter();
        numbers
            .map(|&item| self.whole(item).and_then(|n| usize::try_from(n).ok()))
            .collect()
    }

    /// A tensor, with every one of its elements inside its storage.
    fn tensor(
        &mut self,
        storage: Id,
        offset: Id,
        shape: Id,
        strides: Id,
        dtype: Option<&'static str>,
    ) -> Step<Id> {
        let &Node::Storage(index, from, count) = self.node(storage) else {
            return Err(self.refuse(&format!("makes a tensor of {}", self.name_of(storage))));
        };
        let (own, size) = match self.storages.get(index as usize) {
            Some(storage) => (storage.dtype, storage.element),
            None => return Err(self.damaged("has a tensor without a storage")),
        };
        let (Some(offset), Some(shape), Some(strides)) =
            (self.whole(offset), self.wholes(shape), self.wholes(strides))
        else {
            return Err(self
                .damaged("has a tensor whose shape and strides are not at most 16 whole numbers"));
        };
        if shape.len() != strides.len() {
            return Err(self.damaged("has a tensor with strides for another shape"));
        }
        self.spend(shape.len())?;
        let dtype = dtype.unwrap_or(own);
        let element = element_bytes(dtype).unwrap_or(size);
        let (from, end) = (from * size, (from + count) * size);
        let outside = |machine: &Self| {
            machine.damaged(&format!(
                "has a tensor {shape:?} by {strides:?} from element {offset} on, beyond its \
                 storage of {} bytes",
                end - from
            ))
        };
        let elements = shape
            .iter()
            .try_fold(1usize, |all, &length| all.checked_mul(length))
            .filter(|&elements| elements as u64 <= i64::MAX as u64 / 16);
        // The last element, which lies furthest behind, as strides are not negative.
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |at, (&length, &stride)| {
                let steps = (length as u64).saturating_sub(1);
                at.checked_add(steps.checked_mul(stride as u64)?)
            });
        let begins = offset
            .checked_mul(element)
            .and_then(|at| at.checked_add(from))
            .filter(|&at| at <= end);
        let (Some(elements), Some(last), Some(offset)) = (elements, last, begins) else {
            return Err(outside(self));
        };
        let needed = last
            .checked_add(1)
            .and_then(|count| count.checked_mul(element))
            .and_then(|bytes| bytes.checked_add(from));
        if elements > 0 && needed.is_none_or(|needed| needed > end) {
            return Err(outside(self));
        }
        let tensor = self.tensors.len() as u32;
        self.tensors.push(Laid {
            dtype,
            element,
            shape,
            strides,
            offset,
            end,
            storage: index,
        });
        Ok(self.add(Node::Tensor(tensor)))
    }

    /// A number of numpy: the name of its type (`f8`), and its bytes.
    fn scalar(&self, dtype: Id, bytes: Id) -> Option<Node> {
        let &Node::NumpyType(name, big) = self.node(dtype) else {
            return None;
        };
        let mut raw = match self.node(bytes) {
            Node::Bytes(place) if place.length <= 64 => self.tape.get(*place).to_vec(),
            Node::Encoded(place) if place.length <= 64 => latin1(self.tape.get(*place))?,
            _ => return None,
        };
        if big {
            raw.reverse();
        }
        let fixed = |count: usize| {
            let mut number = [0; 8];
            number[..count].copy_from_slice(raw.get(..count)?);
            (raw.len() == count).then_some(u64::from_le_bytes(number))
        };
        Some(match self.tape.get(name) {
            b"f8" => Node::Float(f64::from_bits(fixed(8)?)),
            b"f4" => Node::Float(f32::from_bits(fixed(4)? as u32).into()),
            b"i8" => Node::Int(fixed(8)? as i64),
            b"i4" => Node::Int((fixed(4)? as u32 as i32).into()),
            b"i2" => Node::Int((fixed(2)? as u16 as i16).into()),
            b"i1" => Node::Int((fixed(1)? as u8 as i8).into()),
            b"u4" => Node::Int(fixed(4)? as i64),
            b"u2" => Node::Int(fixed(2)? as i64),
            b"u1" => Node::Int(fixed(1)? as i64),
            b"b1" => Node::Bool(fixed(1)? != 0),
            _ => Node::Opaque("numpy.generic"),
        })
    }

    // ---- giving out --------------------------------------------------------------------------------------------

    /// A value with all that is in it, of a file of `length` bytes whose storages have been found.
    ///
    /// # Errors
    /// When values lie too deep in one another, or share so much that they would not fit memory when each is written
    /// out.
    pub(super) fn value(self, root: Id, length: u64) -> Step<(Value, Skipped)> {
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

/// The texts that were given out: two that are equal are one, so that they are compared by their address. A pickle may
/// name one text of megabytes as often as it has steps.
#[derive(Default)]
struct Texts {
    places: HashMap<u32, Arc<str>>,
    all: HashSet<Arc<str>>,
    /// The bytes that were hashed.
    #[cfg(test)]
    hashed: usize,
}

impl Texts {
    /// The text at a place of the pickle; read, copied and hashed when the place is named for the first time.
    fn at(&mut self, place: Place, tape: &Tape<'_>) -> Arc<str> {
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
struct Giver<'a> {
    machine: &'a Machine<'a>,
    texts: Texts,
    bytes: HashMap<u32, Arc<[u8]>>,
    /// Values that may still be given out.
    left: u64,
    /// Bytes that the full names of tensors may still have.
    names: u64,
}

impl Giver<'_> {
    fn spend(&mut self, count: usize) -> Step {
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            "is refused: its values are in one another so often that they do not fit memory"
                .to_owned()
        })?;
        Ok(())
    }

    /// Counts the name of a tensor, `path` bytes.
    fn pass(&mut self, path: u64) -> Step {
        self.names = self.names.checked_sub(path).ok_or(
            "is refused: the names of its tensors do not fit memory when they are written out",
        )?;
        Ok(())
    }

    /// `path` is the length of the names on the way here.
    fn give(&mut self, id: Id, depth: usize, path: u64) -> Step<Value> {
        if depth > DEPTH {
            return Err(format!(
                "is refused: its values lie more than {DEPTH} deep in one another"
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
                        .ok_or("is damaged: its pickle has bytes that are none")?
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
                    return Err("is damaged: it has a tensor of an array that is no bytes".into());
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

    fn list(&mut self, items: &[Id], depth: usize, path: u64) -> Step<Value> {
        let mut list = Vec::new();
        for &item in items {
            // A place in a list is a name of at most seven digits and a dot.
            list.push(self.give(item, depth + 1, path + 8)?);
        }
        Ok(Value::List(list))
    }

    fn dictionary(&mut self, items: &[(Id, Id)], depth: usize, path: u64) -> Step<Value> {
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

/// The bytes that a text of characters below 256 stands for.
fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}

/// What a global is, if it is known. Both spellings of modules that moved are.
fn known(module: &str, name: &str) -> Option<Known> {
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor") => Known::TensorV1,
        ("torch._utils", "_rebuild_tensor_v2") => Known::TensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Known::TensorV3,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Known::Parameter
        }
        (
            "torch._utils",
            "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor" | "_rebuild_mlc_tensor",
        ) => Known::FromNumpy,
        ("torch._tensor", "_rebuild_from_type_v2") => Known::FromType,
        ("torch", "Tensor")
        | ("torch.nn.parameter", "Parameter" | "Buffer")
        | ("torch.nn", "Parameter") => Known::TensorClass,
        ("torch", "Size") => Known::Size,
        ("torch", "device") => Known::Device,
        ("torch" | "torch.cuda" | "torch.storage", class) if class.ends_with("Storage") => {
            Known::Storage(match class.strip_suffix("Storage")? {
                "Float" => "F32",
                "Half" => "F16",
                "BFloat16" => "BF16",
                "Double" => "F64",
                "Long" => "I64",
                "Int" => "I32",
                "Short" => "I16",
                "Char" => "I8",
                "Byte" | "Untyped" => "U8",
                "Bool" => "BOOL",
                "ComplexFloat" => "C64",
                "ComplexDouble" => "C128",
                _ => return None,
            })
        }
        ("torch", dtype) => Known::Type(match dtype {
            "float32" => "F32",
            "float16" => "F16",
            "bfloat16" => "BF16",
            "float64" => "F64",
            "float8_e4m3fn" => "F8_E4M3",
            "float8_e5m2" => "F8_E5M2",
            "int64" => "I64",
            "int32" => "I32",
            "int16" => "I16",
            "int8" => "I8",
            "uint64" => "U64",
            "uint32" => "U32",
            "uint16" => "U16",
            "uint8" => "U8",
            "bool" => "BOOL",
            "complex64" => "C64",
            "complex128" => "C128",
            _ => return None,
        }),
        ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => {
            Known::Dictionary(Kind::Plain)
        }
        ("torch.nn.modules.container", "ParameterDict" | "ParameterList") => {
            Known::Dictionary(Kind::Parameters)
        }
        ("argparse", "Namespace") => Known::Dictionary(Kind::Namespace),
        ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") => Known::Sequence,
        ("_codecs", "encode") => Known::Encode,
        ("numpy", "dtype") => Known::NumpyType,
        ("numpy", "ndarray") => Known::NumpyArray,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Known::NumpyScalar,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Known::NumpyRebuild,
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Known::NumpyBuffer,
        _ => return None,
    })
}

/// What a function of torch makes that has no elements at places of a storage, by its name in back quotes.
fn unread(name: &str) -> Option<&'static str> {
    Some(match name {
        "`torch._utils._rebuild_qtensor`"
        | "`torch.QInt8Storage`"
        | "`torch.QUInt8Storage`"
        | "`torch.QInt32Storage`" => "a quantised tensor of torch",
        "`torch._utils._rebuild_sparse_tensor`"
        | "`torch._utils._rebuild_sparse_csr_tensor`"
        | "`torch.serialization._get_layout`" => "a sparse tensor",
        "`torch._utils._rebuild_nested_tensor`" => "a nested tensor",
        "`torch._utils._rebuild_meta_tensor_no_storage`" => "a tensor without numbers",
        _ => return None,
    })
}

/// Modules of Python's library (and of programs that pickle code) whose objects act on the machine, or make others act:
/// nothing of them is data.
const ACTING: [&str; 95] = [
    "__builtin__",
    "_asyncio",
    "_ctypes",
    "_frozen_importlib",
    "_frozen_importlib_external",
    "_io",
    "_operator",
    "_pickle",
    "_posixsubprocess",
    "_socket",
    "_thread",
    "aifc",
    "ast",
    "asyncio",
    "atexit",
    "bdb",
    "builtins",
    "cffi",
    "cgi",
    "cloudpickle",
    "cmd",
    "code",
    "codeop",
    "commands",
    "concurrent",
    "contextlib",
    "copy_reg",
    "copyreg",
    "cProfile",
    "ctypes",
    "curses",
    "dbm",
    "dill",
    "dis",
    "distutils",
    "doctest",
    "ensurepip",
    "faulthandler",
    "fileinput",
    "ftplib",
    "functools",
    "gc",
    "glob",
    "http",
    "httplib",
    "idlelib",
    "imp",
    "importlib",
    "inspect",
    "io",
    "joblib",
    "linecache",
    "logging",
    "marshal",
    "mmap",
    "multiprocessing",
    "nt",
    "ntpath",
    "operator",
    "os",
    "pdb",
    "pickle",
    "pip",
    "pkgutil",
    "popen2",
    "posix",
    "posixpath",
    "profile",
    "pty",
    "pydoc",
    "requests",
    "resource",
    "runpy",
    "setuptools",
    "shelve",
    "shutil",
    "signal",
    "site",
    "smtplib",
    "socket",
    "socketserver",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tarfile",
    "tempfile",
    "test",
    "threading",
    "timeit",
    "tkinter",
    "types",
    "urllib",
    "webbrowser",
    "zipfile",
];

/// Whether a global that is not known is the name of a class, whose objects may be passed over, by Python's conventions:
/// the machine never looks it up. What is made with the class's own `__new__` is of a class; what is `called` may be a
/// function.
fn is_foreign_class(module: &str, name: &str, called: bool) -> bool {
    let parts = || module.split('.').take(1).chain(name.split('.'));
    if module.is_empty() || name.is_empty() || parts().any(|part| ACTING.contains(&part)) {
        return false;
    }
    if !called {
        return true;
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_class = last
        .trim_start_matches('_')
        .starts_with(|c: char| c.is_ascii_uppercase());
    let of_torch = ["torch", "numpy"].contains(&module.split('.').next().unwrap_or(module));
    is_class && !of_torch || module == "datetime"
}

/// The opcodes that Python knows and that are not read.
fn opcode(byte: u8) -> Option<&'static str> {
    Some(match byte {
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'p' => "PUT",
        b'g' => "GET",
        b'P' => "PERSID",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use retouch_graph::MemoryFiles;

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
