//! What the window remembers from one session to the next: its size, its colours, what was open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use retouch_graph::write::{self, Access};
use serde::{Deserialize, Serialize};

/// A file that is larger than this is not ours.
const LARGEST: u64 = 1 << 20;
/// Number of workflows whose open groups are kept.
const MOST_FILES: usize = 64;

/// Which colours are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Colours {
    /// Those of the system.
    #[default]
    System,
    /// Light on dark.
    Dark,
    /// Dark on light.
    Light,
}

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The width and height of the window in points.
    pub size: (f32, f32),
    /// The colours.
    pub colours: Colours,
    /// The width of the panel at the side.
    pub side: f32,
    /// The height of the areas below the graph.
    pub below: f32,
    /// Whether the panel at the side is there.
    pub side_open: bool,
    /// Whether the areas below the graph are there.
    pub below_open: bool,
    /// The area in front, by its name.
    pub tab: String,
    /// The open groups of each workflow, by its absolute path; the last used first.
    pub open: Vec<(PathBuf, BTreeSet<String>)>,
    /// What a later version remembers stays.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            size: (1280.0, 800.0),
            colours: Colours::System,
            side: 320.0,
            below: 300.0,
            side_open: true,
            below_open: true,
            tab: String::new(),
            open: Vec::new(),
            other: BTreeMap::new(),
        }
    }
}

/// The file of what is remembered: in the platform's folder for state, or for local data where it has none.
#[must_use]
pub fn file() -> Option<PathBuf> {
    let folder = dirs::state_dir().or_else(dirs::data_local_dir)?;
    Some(folder.join("retouch").join("view.json"))
}

impl Memory {
    /// What is remembered; what is damaged or makes no sense is forgotten.
    #[must_use]
    pub fn read(file: Option<&Path>) -> Self {
        let text = file.and_then(|file| retouch_graph::files::read(file, LARGEST).ok());
        let read = text.and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        let mut memory = read.unwrap_or_default();
        let normal = Self::default();
        let sound = |number: &mut f32, least: f32, most: f32, normal: f32| {
            *number = if number.is_finite() {
                number.clamp(least, most)
            } else {
                normal
            };
        };
        sound(&mut memory.size.0, 320.0, 16_384.0, normal.size.0);
        sound(&mut memory.size.1, 240.0, 16_384.0, normal.size.1);
        sound(&mut memory.side, 200.0, 2000.0, normal.side);
        sound(&mut memory.below, 100.0, 2000.0, normal.below);
        memory.open.truncate(MOST_FILES);
        memory
    }

    /// Writes it down as a whole; a failure is ignored.
    pub fn write(&self, file: Option<&Path>) {
        if let Some(file) = file
            && let Ok(text) = serde_json::to_vec_pretty(self)
        {
            let _ = write::replace(file, &text, Access::Private);
        }
    }

    /// The groups that were open in a workflow.
    #[must_use]
    pub fn open_in(&self, workflow: &Path) -> BTreeSet<String> {
        let workflow = absolute(workflow);
        let known = self.open.iter().find(|(file, _)| *file == workflow);
        known.map(|(_, open)| open.clone()).unwrap_or_default()
    }

    /// Remembers the groups that are open in a workflow.
    pub fn remember_open(&mut self, workflow: &Path, open: &BTreeSet<String>) {
        let workflow = absolute(workflow);
        self.open.retain(|(file, _)| *file != workflow);
        if !open.is_empty() {
            self.open.insert(0, (workflow, open.clone()));
            self.open.truncate(MOST_FILES);
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_comes_back_and_what_is_damaged_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep").join("view.json");
        assert_eq!(Memory::read(Some(&file)), Memory::default());
        let mut memory = Memory {
            side: 412.0,
            colours: Colours::Light,
            ..Memory::default()
        };
        memory.remember_open(Path::new("w.yaml"), &BTreeSet::from(["a/b".to_owned()]));
        memory.write(Some(&file));
        assert_eq!(Memory::read(Some(&file)), memory);
        assert_eq!(
            memory.open_in(Path::new("./w.yaml")),
            memory.open_in(Path::new("w.yaml"))
        );
        for damaged in ["", "{", "[]", "{\"side\": \"wide\"}", "\u{0}\u{1}"] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(Memory::read(Some(&file)), Memory::default(), "{damaged}");
        }
        std::fs::write(&file, "{\"size\": [1e30, -5], \"later\": 1}").unwrap();
        let memory = Memory::read(Some(&file));
        assert_eq!(memory.size, (16_384.0, 240.0));
        memory.write(Some(&file));
        assert!(
            std::fs::read_to_string(&file)
                .unwrap()
                .contains("\"later\": 1")
        );
    }

    #[test]
    fn the_open_groups_of_64_workflows_are_kept() {
        let mut memory = Memory::default();
        for number in 0..200 {
            let open = BTreeSet::from([number.to_string()]);
            memory.remember_open(Path::new(&format!("{number}.yaml")), &open);
        }
        assert_eq!(memory.open.len(), MOST_FILES);
        assert_eq!(memory.open_in(Path::new("199.yaml")).len(), 1);
        assert!(memory.open_in(Path::new("0.yaml")).is_empty());
    }
}
