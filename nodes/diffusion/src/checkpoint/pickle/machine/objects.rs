//! What calls, states and persistent ids of a pickle describe: dictionaries, arrays, storages, tensors.

use super::super::value::element_bytes;
use super::Machine;
use super::names::{is_foreign_class, latin1};
use super::parts::*;

impl Machine<'_> {
    pub(super) fn arguments(&self, id: Id) -> Step<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Ok(items),
            _ => Err(self.damaged("makes a call whose arguments are not a tuple")),
        }
    }

    /// REDUCE: what a global makes of its arguments, where that is data.
    // Long: one match over the globals that are understood.
    pub(super) fn call(&mut self, function: Id, arguments: Id) -> Step<Id> {
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
                "calls {} with invalid arguments",
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
            (Known::FromNumpy, &[array, dtype, _, _]) => {
                match (self.node(array), self.node(dtype)) {
                    (&Node::NumpyArray(Some(array)), Node::Global(Some(Known::Type(_)), ..)) => {
                        self.of_array(array)
                    }
                    _ => Err(wrong(self)),
                }
            }
            (Known::TensorClass | Known::Storage(_) | Known::Type(_) | Known::NumpyArray, _) => {
                Err(unknown(self))
            }
            _ => Err(wrong(self)),
        }
    }

    /// NEWOBJ: a new object of a class, where that is data.
    pub(super) fn object(&mut self, class: Id, arguments: Id) -> Step<Id> {
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
    pub(super) fn foreign_object(&mut self, class: Id, arguments: Option<Id>) -> Step<Option<Id>> {
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
    pub(super) fn array(
        &mut self,
        dtype: Id,
        shape: Id,
        fortran: bool,
        data: Id,
    ) -> Step<Option<u32>> {
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
    pub(super) fn of_array(&mut self, index: u32) -> Step<Id> {
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
            _ => return Err(self.damaged("has a tensor of an array that is not bytes")),
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

    pub(super) fn dictionary(&mut self, kind: Kind, first: Option<Id>, class: Id) -> Step<Id> {
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
                        _ => {
                            return Err(
                                self.damaged("makes a dictionary from items that are not pairs")
                            );
                        }
                    }
                }
            }
            Some(Node::Dictionary(_, all)) if kind == Kind::Plain => items.clone_from(all),
            Some(_) => {
                return Err(self.damaged(&format!(
                    "calls {} with invalid arguments",
                    self.name_of(class)
                )));
            }
        }
        self.spend(items.len())?;
        Ok(self.add(Node::Dictionary(kind, items)))
    }

    /// BUILD: what a state makes of an object, where that is data.
    pub(super) fn build(&mut self, target: Id, state: Id) -> Step {
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
                    _ => return Err(self.damaged("has a NumPy type without a byte order")),
                };
                if let Some(node) = self.nodes.get_mut(target as usize) {
                    *node = Node::NumpyType(name, big);
                }
                Ok(())
            }
            _ => Err(self.refuse(&format!("sets the state of {}", self.name_of(target)))),
        }
    }

    pub(super) fn merge(&mut self, target: Id, from: Id) -> Step {
        let items = match self.node(from) {
            Node::Dictionary(_, items) => items.clone(),
            _ => return Err(self.damaged("has an object whose state is not a dictionary")),
        };
        self.spend(items.len())?;
        self.extend_dictionary(target, &items)
    }

    /// BINPERSID: a storage, or the class of an old file's module.
    pub(super) fn persistent(&mut self, id: Id) -> Step<Id> {
        let Node::Tuple(parts) = self.node(id) else {
            return Err(self.refuse(&format!(
                "uses {} as a persistent ID, which does not refer to a storage",
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
                        _ => return Err(self.damaged("has an invalid view of a storage")),
                    },
                    _ => return Err(self.damaged("has an invalid view of a storage")),
                };
                self.storage(class, key, count, view)
            }
            _ => Err(self.refuse("has a persistent ID that does not refer to a storage")),
        }
    }

    pub(super) fn storage(
        &mut self,
        class: Id,
        key: Id,
        count: Id,
        view: Option<(Id, Id)>,
    ) -> Step<Id> {
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
                return Err(self.damaged(&format!(
                    "describes the storage {key:?} in two different ways"
                )));
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

    pub(super) fn whole(&self, id: Id) -> Option<u64> {
        match self.node(id) {
            Node::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn wholes(&self, id: Id) -> Option<Vec<usize>> {
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
    pub(super) fn tensor(
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
    pub(super) fn scalar(&self, dtype: Id, bytes: Id) -> Option<Node> {
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
}
