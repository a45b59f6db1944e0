//! The area of pictures: those of the outputs, of the runs before, and those that were picked, to be looked at and compared.

use std::collections::HashMap;
use std::sync::Arc;

use eframe::egui::{RichText, Ui};
use retouch_graph::Key;
use retouch_nodes::payload::ImageFacts;

use crate::model::{Model, Output, Sheet};
use crate::panel::is_picture;
use crate::pictures::{self, Cell, Mode, Picture, Viewer};
use crate::shelf::{self, Look, Shelf, TableRow, Wanted};
use crate::theme::Palette;

/// Number of pictures of a batch that can be chosen.
const MOST_OF_BATCH: usize = 16;
/// Number of pictures that can be chosen.
const MOST: usize = 96;
/// Number of picked pictures kept.
const MOST_PICKED: usize = 8;

/// The area.
#[derive(Default)]
pub struct Gallery {
    viewer: Viewer,
    /// Pictures of nodes that were picked, the last one last.
    picked: Vec<(Wanted, String)>,
    /// The one that is to come to the front.
    asked: Option<Wanted>,
    /// The names of the two that are looked at: what is at an index changes from run to run.
    names: [Option<String>; 2],
    /// The cells of contact sheets, by the key of the sheet.
    cells: Vec<(Key, Arc<[Cell]>)>,
    /// The sizes of what is on the sheet whose cells are being found.
    sizes: HashMap<Key, ImageFacts>,
}

/// Number of pictures of a sheet that are requested at a time.
const AT_ONCE: usize = 16;
/// Number of sheets whose cells are kept.
const MOST_SHEETS: usize = 16;

/// What can be looked at.
struct Listed {
    /// The value.
    wanted: Wanted,
    name: String,
    /// What is on it, if it is a sheet.
    sheet: Option<Arc<Sheet>>,
    /// The tables of what was measured of it.
    scores: Vec<(Key, &'static str)>,
}

/// What was measured of a picture of a batch, as far as it is known.
fn measured(
    listed: &Listed,
    (index, batch): (usize, usize),
    shelf: &Shelf,
    values: u64,
) -> Arc<[(String, f64)]> {
    let mut all: Vec<(String, f64)> = Vec::new();
    for (key, port) in &listed.scores {
        let wanted = Wanted {
            key: *key,
            port: (*port).to_owned(),
            index,
        };
        // A row a picture, or one row of all; others are of something else.
        if let Look::Table(TableRow { rows, scores, .. }) = shelf.look(&wanted, values)
            && (rows == batch || rows == 1)
        {
            let known: Vec<String> = all.iter().map(|(name, _)| name.clone()).collect();
            all.extend(
                (scores.iter())
                    .filter(|(name, _)| !known.contains(name))
                    .cloned(),
            );
        }
    }
    all.into()
}

impl Gallery {
    /// Brings a picture to the front.
    pub fn look(&mut self, wanted: Wanted, title: String) {
        self.picked.retain(|(other, _)| *other != wanted);
        self.asked = Some(wanted.clone());
        self.picked.push((wanted, title));
        if self.picked.len() > MOST_PICKED {
            self.picked.remove(0);
        }
        self.viewer.mode = Mode::Single;
        self.viewer.fit();
    }

    /// What can be looked at, the newest first, each once.
    fn wanted(&self, model: &Model) -> Vec<Listed> {
        let mut all: Vec<Listed> = Vec::new();
        let mut add = |wanted: Wanted, name: String, output: Option<&Output>| {
            if !all.iter().any(|other| other.wanted == wanted) && all.len() < MOST {
                all.push(Listed {
                    wanted,
                    name,
                    sheet: output.and_then(|output| output.sheet.clone()),
                    scores: output.map_or_else(Vec::new, |output| output.scores.clone()),
                });
            }
        };
        let of = |output: &Output| Wanted {
            key: output.key,
            port: output.port.to_owned(),
            index: 0,
        };
        for output in model
            .graph
            .outputs
            .iter()
            .filter(|output| is_picture(output.kind))
        {
            add(of(output), output.name.clone(), Some(output));
        }
        if let Some(output) = &model.graph.sweep {
            add(of(output), output.name.clone(), Some(output));
        }
        for (wanted, title) in self.picked.iter().rev() {
            add(wanted.clone(), title.clone(), None);
        }
        for made in model.made.iter().rev() {
            for output in made.outputs.iter().filter(|output| is_picture(output.kind)) {
                let name = match made.what.as_str() {
                    "" => format!("{} of run {}", output.name, made.run),
                    what => format!("{} of run {} ({what})", output.name, made.run),
                };
                add(of(output), name, Some(output));
            }
        }
        all
    }

    /// The cells of a sheet, once the sizes of all that is on it are known.
    fn cells(
        &mut self,
        key: Key,
        sheet: &Sheet,
        shelf: &Shelf,
        values: u64,
    ) -> Option<Arc<[Cell]>> {
        if let Some((_, cells)) = self.cells.iter().find(|(other, _)| *other == key) {
            return Some(Arc::clone(cells));
        }
        let unknown = sheet
            .entries
            .iter()
            .filter(|(key, _)| !self.sizes.contains_key(key));
        let unknown: Vec<_> = unknown.take(AT_ONCE).copied().collect();
        for (key, port) in &unknown {
            let wanted = Wanted {
                key: *key,
                port: (*port).to_owned(),
                index: 0,
            };
            if let Look::Picture(picture) = shelf.look(&wanted, values) {
                let facts = ImageFacts {
                    batch: picture.batch,
                    width: picture.size[0],
                    height: picture.size[1],
                };
                self.sizes.insert(*key, facts);
            }
        }
        let facts = sheet
            .entries
            .iter()
            .map(|(key, _)| self.sizes.get(key).copied());
        let facts: Vec<ImageFacts> = facts.collect::<Option<_>>()?;
        self.sizes.clear();
        let cells = match &sheet.sweep {
            Some(sweep) => pictures::sweep_cells(sweep, &sheet.grid, &facts),
            None => pictures::grid_cells(&sheet.grid, &facts, |entry| {
                let label = sheet.grid.labels.get(entry);
                label.map_or_else(
                    || format!("entry {}", entry + 1),
                    |label| label.as_str().to_owned(),
                )
            }),
        };
        let cells = cells.unwrap_or_default(); // a sheet that was drawn otherwise has no cells to point at
        self.cells.push((key, Arc::clone(&cells)));
        if self.cells.len() > MOST_SHEETS {
            self.cells.remove(0);
        }
        Some(cells)
    }

    /// Draws the area.
    pub fn show(&mut self, ui: &mut Ui, model: &Model, shelf: Option<&Shelf>) {
        let mut pictures: Vec<Picture> = Vec::new();
        let mut waiting = false;
        // What does not fit on the shelf together would be fetched again in every frame; half of it is for thumbnails.
        let mut room = shelf::BUDGET / 2;
        for listed in self.wanted(model) {
            let Some(shelf) = shelf else { break };
            let (wanted, name, sheet) = (&listed.wanted, &listed.name, &listed.sheet);
            let mut index = 0;
            let mut batch = 1;
            while index < batch.min(MOST_OF_BATCH) && pictures.len() < MOST && room > 0 {
                let one = Wanted {
                    index,
                    ..wanted.clone()
                };
                match shelf.look(&one, model.values) {
                    Look::Picture(picture) => {
                        batch = picture.batch;
                        room = room.saturating_sub(shelf::bytes(&picture));
                        let name = match batch {
                            1 => name.clone(),
                            _ => format!("{name}, {} of {batch}", index + 1),
                        };
                        let cells = sheet
                            .as_ref()
                            .and_then(|sheet| self.cells(wanted.key, sheet, shelf, model.values));
                        if self.asked.as_ref() == Some(&one) {
                            self.asked = None;
                            self.names[0] = Some(name.clone());
                        }
                        let picture = Picture::new(name, picture.size, picture.rgba);
                        pictures.extend(picture.map(|picture| Picture {
                            cells: cells.unwrap_or_default(),
                            scores: measured(&listed, (index, batch), shelf, model.values),
                            ..picture
                        }));
                    }
                    Look::Waiting => waiting = true,
                    _ => {}
                }
                index += 1;
            }
        }
        if pictures.is_empty() {
            let colours = Palette::of(ui);
            let text = match (
                waiting,
                model
                    .graph
                    .outputs
                    .iter()
                    .any(|output| is_picture(output.kind)),
            ) {
                (true, _) => "fetching pictures",
                (false, true) => "The pictures of the outputs are shown here once they are made.",
                (false, false) => "No output of this workflow is a picture.",
            };
            ui.label(RichText::new(text).color(colours.muted));
            return;
        }
        let place = |name: &Option<String>| {
            let name = name.as_ref()?;
            pictures.iter().position(|picture| picture.name == *name)
        };
        let first = place(&self.names[0]).unwrap_or(0);
        // Beside a picture stands the same output of another run, if there is one.
        let second = place(&self.names[1]).unwrap_or_else(|| {
            let begins = format!("{} of run ", pictures[first].name);
            let same = pictures
                .iter()
                .position(|picture| picture.name.starts_with(&begins));
            same.unwrap_or_else(|| usize::from(first == 0).min(pictures.len() - 1))
        });
        (self.viewer.first, self.viewer.second) = (first, second);
        self.viewer.show(ui, &pictures);
        let name = |index: usize| pictures.get(index).map(|picture| picture.name.clone());
        if self.viewer.first != first {
            self.names[0] = name(self.viewer.first);
        }
        if self.viewer.second != second {
            self.names[1] = name(self.viewer.second);
        }
    }
}
