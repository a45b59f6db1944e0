//! Paths below the output folder: which of them every system can create.

/// The longest name of a file or folder that is saved to, in bytes: file systems take 255, and a number may be added
/// (`_0`, `-12`).
pub(crate) const MAX_NAME: usize = 240;

/// The longest path below the output folder, in bytes: some systems take 1024 for all of a path.
const MAX_PATH: usize = 1000;

/// Whether a value may stand in a template of a path: it must not act as a folder or leave the output folder.
pub(crate) fn check_value(value: &str) -> Result<(), &'static str> {
    if value.contains(['/', '\\']) {
        return Err("a value in a path cannot have a separator in it");
    }
    if value == "." || value == ".." {
        return Err("that name means a folder");
    }
    if value.chars().any(char::is_control) {
        return Err("a value in a path cannot have control characters in it");
    }
    if let Some(character) = unportable(value) {
        return Err(character);
    }
    Ok(())
}

/// A character that Windows refuses in names.
fn unportable(text: &str) -> Option<&'static str> {
    text.chars().find_map(|character| match character {
        ':' => Some("not every system can have a `:` in a file's name"),
        '<' => Some("not every system can have a `<` in a file's name"),
        '>' => Some("not every system can have a `>` in a file's name"),
        '"' => Some("not every system can have a `\"` in a file's name"),
        '|' => Some("not every system can have a `|` in a file's name"),
        '?' => Some("not every system can have a `?` in a file's name"),
        '*' => Some("not every system can have a `*` in a file's name"),
        _ => None,
    })
}

/// Why a file or a folder cannot have a name on every system, apart from the characters in it and its length: Windows has
/// devices by such names and drops dots and spaces at the end.
#[must_use]
pub fn fault_of_name(name: &str) -> Option<&'static str> {
    if name.ends_with(['.', ' ']) {
        return Some("a name in it ends in a dot or a space");
    }
    let stem = name.split('.').next().unwrap_or(name).trim_end();
    let device = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
        .iter()
        .any(|device| stem.eq_ignore_ascii_case(device));
    let port = stem
        .get(..3)
        .is_some_and(|s| s.eq_ignore_ascii_case("COM") || s.eq_ignore_ascii_case("LPT"))
        && stem.chars().count() == 4
        && stem
            .chars()
            .last()
            .is_some_and(|c| c.is_ascii_digit() || "¹²³".contains(c));
    (device || port).then_some("a name in it is a device name on some systems")
}

/// Whether a path stays below the output folder and can be made on every system.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("it is empty".to_owned());
    }
    if path.starts_with('/') {
        return Err("it is absolute".to_owned());
    }
    if path.contains('\\') {
        return Err("it has a `\\` in it; folders are separated by `/`".to_owned());
    }
    if path.chars().any(char::is_control) {
        return Err("it has control characters in it".to_owned());
    }
    if let Some(why) = unportable(path) {
        return Err(why.to_owned());
    }
    if path.len() > MAX_PATH {
        return Err(format!(
            "it has {} bytes, and at most {MAX_PATH} are allowed",
            path.len()
        ));
    }
    for part in path.split('/') {
        match part {
            "" => return Err("a part of it is empty".to_owned()),
            ".." => return Err("`..` leads out of the output folder".to_owned()),
            "." => return Err("`.` does not name a file".to_owned()),
            part if part.len() > MAX_NAME => {
                return Err(format!(
                    "a name in it has {} bytes, and at most {MAX_NAME} are allowed",
                    part.len()
                ));
            }
            part => {
                if let Some(why) = fault_of_name(part) {
                    return Err(why.to_owned());
                }
            }
        }
    }
    Ok(())
}

/// The ending of a path in lower case, without the dot.
pub(crate) fn ending(path: &str) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let (stem, ending) = name.rsplit_once('.')?;
    (!stem.is_empty() && !ending.is_empty()).then(|| ending.to_ascii_lowercase())
}

/// `a/b.png` with `-2` is `a/b-2.png`.
pub(crate) fn suffixed(path: &str, suffix: &str) -> String {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[name..].rfind('.') {
        Some(dot) if dot > 0 => {
            let (stem, ending) = path.split_at(name + dot);
            format!("{stem}{suffix}{ending}")
        }
        _ => format!("{path}{suffix}"),
    }
}
