//! Torch files (`.bin`, `.ckpt`, `.pt`, `.pth`) read as data: nothing in them is ever executed.
//!
//! A torch file is a pickle, which is a program for a small stack machine, with the numbers of its tensors beside it:
//! in a zip archive since torch 1.6, behind one another in the older format. Python's unpickler imports and calls what
//! the program names; this one has an own machine that knows a list of opcodes and a list of globals, and understands
//! both as data. There is nothing in it that could call anything.
//!
//! What is understood:
//!
//! - the opcodes that pickle protocols 2 to 5 write for data, with `GLOBAL`, `STACK_GLOBAL`, `REDUCE`, `NEWOBJ`,
//!   `NEWOBJ_EX` (without keywords), `BUILD` and `BINPERSID`; every other opcode is refused by its name;
//! - `REDUCE` and `NEWOBJ` of the globals that torch and numpy describe data with (tensors, parameters, storages,
//!   `torch.Size`, `torch.device`, `collections.OrderedDict`, sets, `ParameterDict` and `ParameterList`,
//!   `argparse.Namespace`, numpy's scalars, types and arrays, and tensors that were written as such an array);
//! - `BUILD` of a dictionary with a dictionary, of a numpy array with a tuple; any other state is for an object's own
//!   `__setstate__`, and refused by that name;
//! - a global that is unknown and only *held* (Lightning checkpoints name the class of a callback as a key, old files
//!   the class of a module) is an opaque value with that name. It is a name and no more, nothing is looked up, and no
//!   tensor can depend on it: whatever is done with it (called, built, used as a storage) is refused.
//!
//! - an object of a class that is unknown (`omegaconf.dictconfig.DictConfig`, what Lightning checkpoints of the original
//!   training code hold beside their `state_dict`) is passed over: it is an opaque value with the name of its class. What it
//!   was made of and filled with is passed over with it, a tensor inside it too, and whatever would be made of it is refused.
//!   [`read_and_skipped`] counts such objects by class, and `retouch inspect` lists them: the file does more than to hold
//!   data, and other programs would run the code of these classes.
//!
//! Everything else that a pickle would have Python *call* is refused by its name: functions (by Python's conventions a name
//! in lower case), unknown names of torch and numpy (quantised, sparse and nested tensors among them), and all of the modules
//! that act, whatever their case (`os`, `subprocess`, `builtins`, `sys`, `importlib`, `runpy`, `socket`, `pickle`, ...).
//! This is not what keeps the machine safe, as there is nothing in it that calls; it keeps a file that attacks other programs
//! from being taken for a model.
//!
//! Only the pickle and the table of contents are read. [`TorchTensor`] says where in the file the numbers lie, checked
//! against the storage and the file. A pickle has at most 32 MiB and two million steps; memory is bounded by about
//! 150 bytes for each of its bytes, and values that share parts by what it took to write them.

mod archive;
mod legacy;
mod machine;
mod value;

use std::path::Path;

use retouch_graph::Files;

use crate::{Error, Result};
use value::Source;
pub use value::{Skipped, TorchTensor, Value, element_bytes};

/// Whether a file that begins so (two bytes are enough) may be a torch file: a zip archive, or a pickle.
#[must_use]
pub fn is_torch(head: &[u8]) -> bool {
    is_archive(head) || matches!(head, [0x80, 2..=5, ..])
}

fn is_archive(head: &[u8]) -> bool {
    head.starts_with(b"PK")
}

/// Reads what a torch file holds, without the numbers of its tensors.
///
/// # Errors
/// When it cannot be read, is damaged or no torch file, or when its pickle does more than to describe data: that is
/// refused with the name of the opcode or of the global (`os.system`).
pub fn read(path: &Path, files: &dyn Files) -> Result<Value> {
    read_and_skipped(path, files).map(|(value, _)| value)
}

/// As [`read`], and the objects of unknown classes that were passed over.
///
/// # Errors
/// As [`read`].
pub fn read_and_skipped(path: &Path, files: &dyn Files) -> Result<(Value, Skipped)> {
    let bad = |message: String| Error::Weights {
        file: path.to_owned(),
        message,
    };
    let source = Source { path, files };
    let (head, length) = files
        .read_head(path, 4)
        .map_err(|e| bad(format!("cannot be read: {e}")))?;
    if is_archive(&head) {
        archive::read(source, length)
    } else if is_torch(&head) {
        legacy::read(source, length)
    } else {
        Err("is not a torch file: it begins neither as a zip archive nor as a pickle".to_owned())
    }
    .map_err(bad)
}

/// The tensors of a torch file by name.
///
/// They are those below `state_dict` where that holds any, else all of them. The keys of nested dictionaries are joined
/// with `.`, numbers (and places in lists) in decimals; what has a key of another kind is left out.
#[must_use]
pub fn tensors(value: &Value) -> Vec<(String, &TorchTensor)> {
    let mut all = Vec::new();
    if let Some(state) = value.get("state_dict") {
        collect(state, &mut Vec::new(), &mut all);
    }
    if all.is_empty() {
        collect(value, &mut Vec::new(), &mut all);
    }
    all
}

/// A part of a tensor's name.
#[derive(Clone, Copy)]
enum Part<'a> {
    Text(&'a str),
    Number(i64),
}

/// Goes down a value, which [`read`] made no deeper than `machine::parts::DEPTH`. A name is written out for a tensor alone: the
/// keys of what holds none may be long, and one key be named very often.
fn collect<'a>(
    value: &'a Value,
    path: &mut Vec<Part<'a>>,
    all: &mut Vec<(String, &'a TorchTensor)>,
) {
    match value {
        Value::Tensor(tensor) => {
            let mut name = String::new();
            for part in path.iter() {
                if !name.is_empty() {
                    name.push('.');
                }
                match part {
                    Part::Text(text) => name.push_str(text),
                    Part::Number(number) => name.push_str(&number.to_string()),
                }
            }
            all.push((name, tensor));
        }
        Value::List(items) => {
            for (place, item) in items.iter().enumerate() {
                path.push(Part::Number(place as i64));
                collect(item, path, all);
                path.pop();
            }
        }
        Value::Dict(items) => {
            for (key, item) in items {
                path.push(match key {
                    Value::Text(key) => Part::Text(key),
                    Value::Int(key) => Part::Number(*key),
                    _ => continue,
                });
                collect(item, path, all);
                path.pop();
            }
        }
        _ => {}
    }
}
