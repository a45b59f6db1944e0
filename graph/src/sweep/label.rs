//! How values are shown: in labels, in the names of files; and which are the same.

use serde_json::Value as Json;

use crate::base::key;
use crate::base::text;
use crate::value::fields::MAX_INTEGER;

/// The most letters of a value in a label or a file's name.
const SHOWN: usize = 40;

pub(super) fn titled(name: &str, label: &str) -> String {
    if label.is_empty() {
        name.to_owned()
    } else {
        format!("{name} [{label}]")
    }
}

/// `blend_steps=20%, seed=1`.
pub(super) fn label<'a>(values: impl IntoIterator<Item = (&'a str, &'a Json)>) -> String {
    let texts: Vec<String> = (values.into_iter())
        .map(|(name, value)| format!("{name}={}", shortened(&shown(value))))
        .collect();
    texts.join(", ")
}

/// A value as it is written in a workflow.
#[must_use]
pub fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn shortened(text: &str) -> String {
    let line = text.replace(['\n', '\r', '\t'], " ");
    text::shortened(&line, SHOWN).into_owned()
}

/// A value in a file's name: what no path may have is left out, and of a long one the rest.
pub(super) fn in_path(text: &str) -> String {
    let mut short = String::new();
    for letter in text.chars() {
        let letter = match letter {
            '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' => '_',
            letter if letter.is_control() => '_',
            letter => letter,
        };
        if short.len() + letter.len_utf8() > SHOWN {
            break;
        }
        short.push(letter);
    }
    short.trim().to_owned()
}
/// A value with a whole number as an integer, so that 4 and 4.0 are one.
pub(super) fn number(value: &Json) -> Json {
    match value.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() <= MAX_INTEGER as f64 => {
            Json::from(number as i64)
        }
        _ => value.clone(),
    }
}

/// Whether two values are the same: numbers by what they are, not by how they are written.
pub(super) fn same(a: &Json, b: &Json) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A value as a text that is equal for values that are the same.
pub(super) fn identity(value: &Json, text: &mut String) {
    match value.as_f64() {
        // Both zeros are one number.
        Some(number) => text.push_str(&format!("#{:x};", (number + 0.0).to_bits())),
        None => key::canonical(value, text),
    }
}
