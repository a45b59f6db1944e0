//! The rooms of the engine stand in one order, and each imports only from rooms before its own.

use std::path::Path;

/// From what everything uses to what uses everything.
const ROOMS: [&str; 13] = [
    "base",
    "files",
    "value",
    "cache",
    "syntax",
    "op",
    "check",
    "plan",
    "run",
    "lock",
    "sweep",
    "engine",
    "provenance",
];

/// The rooms that a source names by `crate::room`, tests and comments left out.
fn imports(text: &str) -> Vec<&str> {
    let text = text.split("#[cfg(test)]").next().unwrap();
    let mut found = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
    {
        for (at, _) in line.match_indices("crate::") {
            if line[..at].ends_with('$') {
                continue;
            }
            let rest = &line[at + "crate::".len()..];
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            found.push(&rest[..end]);
        }
    }
    found
}

fn sources(folder: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, each);
        } else if path.extension().is_some_and(|end| end == "rs") {
            each(&path);
        }
    }
}

#[test]
fn no_room_imports_from_a_later_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let place = |room: &str| ROOMS.iter().position(|known| *known == room);
    let (mut read, mut wrong) = (0, Vec::new());
    sources(&root, &mut |path| {
        let inside = path.strip_prefix(&root).unwrap();
        let name = inside.display().to_string();
        let first = inside.iter().next().unwrap().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        if room == "lib" {
            return;
        }
        let own = place(room).unwrap_or_else(|| panic!("`{name}` is in no room of the list"));
        let text = std::fs::read_to_string(path).unwrap();
        read += 1;
        for import in imports(&text) {
            match place(import) {
                Some(other) if other <= own => {}
                Some(_) => wrong.push(format!("{name} imports from {import}/")),
                // `crate::Name` hides which room it comes from.
                None => wrong.push(format!("{name} imports crate::{import}")),
            }
        }
    });
    assert!(read > 35, "{read}");
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_imported_is_seen() {
    let text = "use crate::base::key::Key;\n// crate::run\nlet x = crate::plan::y(crate::Cache);\n$crate::Z\n#[cfg(test)]\nuse crate::engine;";
    assert_eq!(imports(text), ["base", "plan", "Cache"]);
}
