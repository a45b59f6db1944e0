//! Values as YAML text in one line: plain where a reader gives the same value back, quoted where not.

use retouch_graph::Source;
use retouch_graph::yaml::{self, Form, Node};
use serde_json::Value as Json;

/// The number as the shortest text that is read back as the same.
pub fn number(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => format!("{float:?}"),
        _ => number.to_string(),
    }
}

/// Whether a text can stand without quotes and is read back as a text, here and by readers of YAML 1.1.
pub fn is_plain(text: &str, flow: bool) -> bool {
    const WORDS: [&str; 6] = ["y", "n", "yes", "no", "on", "off"];
    if text.is_empty()
        || text.chars().any(char::is_control)
        || WORDS.contains(&text.to_ascii_lowercase().as_str())
        || ["true", "false"].contains(&text.to_ascii_lowercase().as_str())
        || ["?", "-", ":"].contains(&text)
        || text.starts_with("---")
        || text.starts_with("...")
    {
        return false;
    }
    let alone = |sample: String| {
        let mut problems = Vec::new();
        let value = match yaml::parse(&Source::new("", sample), &mut problems)?.node {
            Node::Seq(mut items) if items.len() == 1 => items.remove(0).node,
            Node::Map(mut entries) if entries.len() == 1 => entries.remove(0).1.node,
            _ => return None,
        };
        let same = matches!(value, Node::String { text: read, quoted: false } if read == text);
        (problems.is_empty() && same).then_some(())
    };
    if flow {
        alone(format!("[{text}]")).is_some() && alone(format!("{{k: {text} }}")).is_some()
    } else {
        alone(format!("k: {text}\n")).is_some()
    }
}

/// In single quotes, where that can be.
pub fn single(text: &str) -> Option<String> {
    let odd =
        |c: char| c.is_control() || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}');
    (!text.chars().any(odd)).then(|| format!("'{}'", text.replace('\'', "''")))
}

/// In double quotes, with escapes.
pub fn double(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value in one line, texts without quotes where they can be.
pub fn line(value: &Json, flow: bool) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(value) => number(value),
        Json::String(text) if is_plain(text, flow) => text.clone(),
        Json::String(text) => double(text),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| line(item, true)).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(entries) => {
            let entries: Vec<String> = (entries.iter())
                .map(|(name, value)| format!("{}: {}", key_text(name), line(value, true)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// The text of a key, without quotes where it can be.
pub fn key_text(name: &str) -> String {
    if is_plain(name, true) {
        name.to_owned()
    } else {
        double(name)
    }
}

/// The value in one line, in the quotes that stood there if it is a text.
pub fn styled(value: &Json, like: &Form, flow: bool) -> String {
    match (value, like) {
        (Json::String(text), Form::Single) => single(text).unwrap_or_else(|| double(text)),
        (Json::String(text), Form::Double) => double(text),
        _ => line(value, flow),
    }
}
