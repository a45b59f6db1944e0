//! The machine that runs a pickle as a description of data.
//!
//! Values live in one list and know one another by number, so that shared and even circular ones are no matter until
//! they are given out; texts and bytes are places in the pickle. Every step is counted, and what makes more than one
//! value in a step pays for each.

mod give;
mod names;
mod objects;
mod parts;

use std::collections::{BTreeMap, HashMap};

use super::value::{Fault, Source};
use names::{known, opcode, unread};
pub(super) use parts::Plain;
use parts::*;

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
            Node::NumpyType(..) | Node::NumpyArray(_) => "a NumPy object".into(),
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
            "is refused: its pickle {what} (at byte {}){also}, so it is more than data. Nothing in \
             it was executed; if you trust the file, convert it to safetensors with the program \
             that made it",
            self.tape.start + self.here as u64
        )
    }

    /// The refusal of what is done with a global of this name: that of a tensor which is not read says so.
    fn refuse_use(&self, does: &str, name: &str) -> Fault {
        match unread(name) {
            Some(what) => format!(
                "is refused: it holds {what} ({name}), which is not supported. Nothing in it was executed; save dense tensors of \
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
                "has a pickle with more steps than the limit of {STEPS}"
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
        Err(self.damaged("pops from an empty stack"))
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(self.damaged("reads the top of an empty stack")),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.damaged("pops a mark that was never pushed")),
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
            return Err(self.damaged("has a number with too many digits"));
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
            None => Err(self.damaged("reads a memo entry that was never stored")),
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
    // Long: one match over the opcodes, a few lines each.
    fn step(&mut self) -> Step<Option<Id>> {
        match self.tape.byte()? {
            b'.' => return self.pop().map(Some),
            // PROTO
            0x80 => {
                let version = self.tape.byte()?;
                if version > 5 {
                    return Err(self.damaged(&format!("uses the unknown protocol {version}")));
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
                    _ => return Err(self.refuse("names a global by something other than strings")),
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
                    || format!("has the unknown opcode {other:#04x}"),
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
}
