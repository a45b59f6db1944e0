//! `grid`: a labelled contact sheet.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;

use embedded_graphics::Drawable;
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::iso_8859_1::{FONT_6X10, FONT_8X13, FONT_10X20};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::text::{Baseline, Text};
use retouch_graph::{AddedList, Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::fields::Template;
use crate::image::resample::{self, Filter};
use crate::payload::Table;
use crate::payload::image::{Colour, Image, ImageFacts, ImageOrMask, values};

/// The longest side of a sheet in pixels: what a JPEG, and nearly any viewer, still takes.
const MAX_SHEET_SIDE: usize = 32_768;
/// The most pixels of a sheet: 100 megapixels are 1.2 GB of f32.
const MAX_SHEET_PIXELS: usize = 100_000_000;
/// The most lines of a column's label; what is longer is shortened.
const MAX_LINES: usize = 3;
/// The same where the pictures are ordered, so that nothing else says what each is of.
const MAX_ORDERED_LINES: usize = 8;
/// The most characters in a line of a row's label, so that the labels don't become wider than the pictures.
const ROW_LABEL_WIDTH: usize = 16;

/// Lays pictures and masks out as a contact sheet with labels.
///
/// Each entry of `images` is a column and each picture of its batch a row, so that one row shows one seed; an entry with
/// a single picture is repeated in every row. With `columns` the pictures are laid out one after the other instead, that
/// many to a row. Pictures keep their aspect and are enlarged (or made smaller) until their longer side is `cell` pixels;
/// masks are drawn white on black, cell by cell. With `column_labels` or `blanks` the sheet is a table: `columns` entries
/// to a row, a batch side by side, and places that stay empty. Labels stand above the columns (with `columns`: above each picture) and at the left of
/// the rows; long ones are broken into lines and then shortened. With `tables` of the pictures `scores` are printed under each, and
/// with `order` the pictures are laid out one after the other, the largest first. The letters are those of Latin-1 (English and the
/// languages of western Europe); others are drawn as `?`, with a warning.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// One label an entry of `images`, or none.
    #[serde(default)]
    pub labels: Vec<Template>,
    /// One label a row, or none.
    #[serde(default)]
    pub row_labels: Vec<Template>,
    /// Pictures in a row, for a sheet that is filled row by row.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub columns: Option<usize>,
    /// One label a column of a table, above its first row, or none.
    #[serde(default)]
    pub column_labels: Vec<Template>,
    /// The places of a table that stay empty, counted row by row from 0.
    #[serde(default)]
    pub blanks: Vec<usize>,
    /// The longer side of each picture on the sheet in pixels, 16 to 4096.
    #[serde(default = "default_cell")]
    #[schemars(range(min = 16, max = 4096))]
    pub cell: usize,
    /// How the pictures are brought to that size: `nearest` shows the pixels of small ones.
    #[serde(default)]
    pub filter: Filter,
    /// The space between pictures and around the sheet in pixels, 0 to 512.
    #[serde(default = "default_gap")]
    #[schemars(range(min = 0, max = 512))]
    pub gap: usize,
    /// The colour of the sheet as "#rrggbb"; the labels are black or white, whichever can be read on it.
    #[serde(default)]
    pub background: Colour,
    /// Columns of `tables` whose values are printed under each picture: `[look, thing]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<String>,
    /// The column of `tables` that the pictures are ordered by, the largest first, or with a `-` before it the smallest: `-thing`.
    /// Without `columns` the sheet is about as many pictures wide as it is high.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
}

fn default_cell() -> usize {
    256
}

fn default_gap() -> usize {
    8
}

ports! {
    /// What `grid` takes.
    pub struct Inputs {
        /// The entries, each a batch of the same number or a single picture.
        pub images: Vec<ImageOrMask>,
        /// Of each entry what was measured of its pictures, a row a picture (or one row of all of them): what `scores` makes.
        pub tables: AddedList<Arc<Table>>,
    }
}

ports! {
    /// What `grid` gives.
    pub struct Outputs {
        /// The sheet, a batch of one.
        pub image: Arc<Image>,
    }
}

impl Node for Grid {
    const OP: &'static str = "grid";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let entries = inputs.links("images");
        let mut faults = self.faults(entries);
        faults.extend(self.score_faults(entries, inputs.links("tables")));
        let facts: Option<Vec<ImageFacts>> = (0..entries)
            .map(|entry| inputs.facts_at("images", entry))
            .collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let Some(facts) = facts else {
            return Ok(Types::unknown());
        };
        match self.layout(&facts, &Printed::default()) {
            Ok(layout) => Ok(Types::unknown().with(
                "image",
                &ImageFacts {
                    batch: 1,
                    width: layout.width,
                    height: layout.height,
                },
            )),
            Err(fault) => {
                faults.push(fault);
                Err(faults)
            }
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let failed = |fault: Fault| {
            let error = NodeError::failed(fault.message);
            match fault.help {
                Some(help) => error.help(help),
                None => error,
            }
        };
        let entries = inputs.images.len();
        let mut faults = self.faults(entries);
        faults.extend(self.score_faults(entries, inputs.tables.0.len()));
        if let Some(fault) = faults.into_iter().next() {
            return Err(failed(fault));
        }
        let facts: Vec<ImageFacts> = inputs.images.iter().map(ImageOrMask::facts).collect();
        let printed = self.printed(&facts, &inputs.tables.0)?;
        let layout = self.layout(&facts, &printed).map_err(failed)?;
        let labels = (self.labels.iter())
            .chain(&self.row_labels)
            .chain(&self.column_labels)
            .map(Template::as_str)
            .chain(self.scores.iter().map(String::as_str))
            .chain(
                printed
                    .scores
                    .values()
                    .flatten()
                    .map(|(_, value)| value.as_str()),
            );
        let unknown: BTreeSet<char> = labels
            .flat_map(|label| plain(label).chars().collect::<Vec<_>>())
            .filter(|letter| !is_drawn(*letter))
            .collect();
        if !unknown.is_empty() {
            let unknown = String::from_iter(unknown);
            context.warn(&format!(
                "`grid` has letters of Latin-1 only and draws `?` for `{unknown}`"
            ));
        }

        let mut sheet = Sheet::new(&layout, self.background);
        for (done, cell) in layout.cells.iter().enumerate() {
            context.check_cancelled()?;
            context.progress(done, layout.cells.len());
            let picture = inputs.images[cell.entry].picture(cell.picture)?;
            // A mask's cells are what there is to see: nothing is made up between them.
            let filter = match inputs.images[cell.entry] {
                ImageOrMask::Mask(_) if cell.width >= picture.size().0 => Filter::Nearest,
                _ => self.filter,
            };
            let picture = resample::resize(&picture, cell.width, cell.height, filter)?;
            sheet.place(&values(&picture.rgb)?, cell);
        }
        for line in &layout.lines {
            sheet.write(line, layout.font);
        }
        let image = Image::from_planes(1, layout.width, layout.height, sheet.planes, None)?;
        Ok(Outputs {
            image: Arc::new(image),
        })
    }
}

/// A picture's place on the sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The entry of `images`, from 0.
    pub entry: usize,
    /// The picture of the entry's batch, from 0.
    pub picture: usize,
    /// The left edge in pixels of the sheet.
    pub x: usize,
    /// The upper edge in pixels of the sheet.
    pub y: usize,
    /// The width in pixels of the sheet.
    pub width: usize,
    /// The height in pixels of the sheet.
    pub height: usize,
}

/// The entry, and the picture of its batch, that stands somewhere; `None` where nothing does.
type Place = Option<(usize, usize)>;

/// A line of text and its upper left corner.
struct Line {
    text: String,
    x: usize,
    y: usize,
}

/// Where everything goes.
struct Layout {
    width: usize,
    height: usize,
    font: &'static MonoFont<'static>,
    cells: Vec<Cell>,
    lines: Vec<Line>,
}

/// What the tables of the pictures say.
#[derive(Default)]
struct Printed {
    /// The lines under each picture, by entry and picture; none before the tables are there.
    scores: HashMap<(usize, usize), Vec<(String, String)>>,
    /// The pictures in their order, if they have one; as they come before the tables are there.
    order: Option<Vec<(usize, usize)>>,
}

/// A value as it is printed under a picture: of a fraction three digits that count.
fn shown_value(value: &Json) -> String {
    match value {
        Json::Null => "-".to_owned(),
        Json::String(text) => text.clone(),
        Json::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap_or_default();
            let digits = match number.abs() {
                size if size > 0.0 && size < 0.1 => (2.0 - size.log10().floor()).min(9.0) as usize,
                _ => 3,
            };
            format!("{number:.digits$}")
        }
        other => other.to_string(),
    }
}

/// A score in a line of that many letters: what is too long is the name, and not the value.
fn score_line(name: &str, value: &str, letters: usize) -> String {
    let (name, value) = (plain(name), plain(value));
    let room = letters.saturating_sub(value.chars().count() + 1);
    match room {
        0 => value.chars().take(letters.max(1)).collect(),
        _ => format!("{} {value}", name.chars().take(room).collect::<String>()),
    }
}

impl Grid {
    /// What is wrong about scores and order, whatever the pictures and tables are.
    fn score_faults(&self, entries: usize, tables: usize) -> Vec<Fault> {
        let mut faults = Vec::new();
        let asked = match (&self.scores[..], &self.order) {
            ([_, ..], _) => Some("scores"),
            (_, Some(_)) => Some("order"),
            _ => None,
        };
        match asked {
            Some(field) if tables == 0 => faults.push(
                Fault::value(
                    field,
                    format!("`{field}` names columns, and there are no `tables`"),
                )
                .help("link what was measured of each entry: `tables: [$scores]`"),
            ),
            None if tables > 0 => faults.push(
                Fault::mismatch("tables", "`tables` are given and nothing of them is shown")
                    .help("name columns: `scores: [look]`, or `order: look`"),
            ),
            _ if tables > 0 && tables != entries => faults.push(
                Fault::mismatch(
                    "tables",
                    format!("{tables} `tables` for {entries} entries of `images`"),
                )
                .help("give one an entry, in the same order"),
            ),
            _ => {}
        }
        if self
            .order
            .as_deref()
            .is_some_and(|name| column_of(name).is_empty())
        {
            faults.push(
                Fault::value("order", "`order` names no column").help("name one: `order: look`"),
            );
        }
        if self.order.is_some() && (self.is_table() || !self.row_labels.is_empty()) {
            faults.push(
                Fault::value(
                    "order",
                    "`order` moves pictures, so that a table's rows and columns would say nothing",
                )
                .help("leave out `row_labels`, `column_labels` and `blanks`; `labels` go with their pictures"),
            );
        }
        faults
    }

    /// The label of an entry in brackets, where entries have labels.
    fn label_of(&self, entry: usize) -> String {
        let label = self.labels.get(entry).map(|label| plain(label.as_str()));
        label.map_or_else(String::new, |label| format!(" ({label})"))
    }

    /// What the tables say of the pictures.
    ///
    /// # Errors
    /// When a table has not a row a picture, or lacks a column.
    fn printed(&self, entries: &[ImageFacts], tables: &[Arc<Table>]) -> Result<Printed, NodeError> {
        let mut printed = Printed::default();
        let mut ranked: Vec<((usize, usize), Option<f64>)> = Vec::new();
        for (entry, (facts, table)) in entries.iter().zip(tables).enumerate() {
            let rows = table.rows.len();
            if rows != facts.batch && rows != 1 {
                return Err(NodeError::failed(format!(
                    "table {} of `tables`{} has {rows} rows for the {} pictures of its entry",
                    entry + 1,
                    self.label_of(entry),
                    facts.batch
                ))
                .help("give a table with a row a picture"));
            }
            let column = |name: &str| {
                table.column(name).ok_or_else(|| {
                    let columns = table.columns.join(", ");
                    NodeError::failed(format!(
                        "table {} of `tables`{} has no column `{name}`",
                        entry + 1,
                        self.label_of(entry)
                    ))
                    .help(format!("its columns are {columns}"))
                })
            };
            for picture in 0..facts.batch {
                let Some(row) = table.rows.get(if rows == 1 { 0 } else { picture }) else {
                    continue;
                };
                let mut lines = Vec::new();
                for name in &self.scores {
                    let value = row.get(column(name)?).unwrap_or(&Json::Null);
                    lines.push((name.clone(), shown_value(value)));
                }
                printed.scores.insert((entry, picture), lines);
                if let Some(order) = &self.order {
                    let value = row.get(column(column_of(order))?).and_then(Json::as_f64);
                    ranked.push(((entry, picture), value.filter(|value| !value.is_nan())));
                }
            }
        }
        if let Some(order) = &self.order {
            let smallest = order.starts_with('-');
            // Stable, so that equals stay as they come; what has no number is last.
            ranked.sort_by(|(_, a), (_, b)| match (a, b) {
                (Some(a), Some(b)) if smallest => a.total_cmp(b),
                (Some(a), Some(b)) => b.total_cmp(a),
                (a, b) => b.is_some().cmp(&a.is_some()),
            });
            printed.order = Some(ranked.into_iter().map(|(place, _)| place).collect());
        }
        Ok(printed)
    }

    /// Whether entries stand in a table rather than one after the other.
    fn is_table(&self) -> bool {
        !self.column_labels.is_empty() || !self.blanks.is_empty()
    }

    /// Where each picture is drawn, given the entries of `images`: row by row, places that stay empty left out.
    ///
    /// # Errors
    /// When the entries don't fit the parameters, or the sheet would be too large.
    pub fn cells(&self, entries: &[ImageFacts]) -> Result<Vec<Cell>, Fault> {
        match self.faults(entries.len()).into_iter().next() {
            Some(fault) => Err(fault),
            None if self.order.is_some() => Err(Fault::value(
                "order",
                "where a picture stands is known from its scores alone",
            )),
            None => (self.layout(entries, &Printed::default())).map(|layout| layout.cells),
        }
    }

    /// What is wrong whatever the pictures are.
    fn faults(&self, entries: usize) -> Vec<Fault> {
        let mut faults = Vec::new();
        if entries == 0 {
            faults.push(
                Fault::mismatch("images", "`grid` has no pictures")
                    .help("list them: `images: [$layout_picture, $picture]`"),
            );
        } else if !self.labels.is_empty() && self.labels.len() != entries {
            faults.push(
                Fault::value(
                    "labels",
                    format!(
                        "{} label{} for {entries} entr{} of `images`",
                        self.labels.len(),
                        if self.labels.len() == 1 { "" } else { "s" },
                        if entries == 1 { "y" } else { "ies" }
                    ),
                )
                .help("give one label an entry (\"\" for none), or leave `labels` out"),
            );
        }
        if self.columns == Some(0) {
            faults.push(Fault::value(
                "columns",
                "`columns` is 0; a row has at least one picture",
            ));
        }
        if self.columns.is_none() && self.is_table() {
            let field = if self.blanks.is_empty() {
                "column_labels"
            } else {
                "blanks"
            };
            faults.push(
                Fault::value(
                    field,
                    format!("`{field}` is for a table, and there is no `columns`"),
                )
                .help("say how many entries are in a row: `columns: 4`"),
            );
        }
        if let Some(columns) = self.columns
            && !self.column_labels.is_empty()
            && self.column_labels.len() != columns
        {
            faults.push(
                Fault::value(
                    "column_labels",
                    format!(
                        "{} column label{} for {columns} columns",
                        self.column_labels.len(),
                        if self.column_labels.len() == 1 {
                            ""
                        } else {
                            "s"
                        },
                    ),
                )
                .help("give one label a column (\"\" for none), or leave `column_labels` out"),
            );
        }
        let places = entries + self.blanks.len();
        let mut seen = BTreeSet::new();
        if let Some(odd) = (self.blanks.iter()).find(|at| **at >= places || !seen.insert(**at)) {
            faults.push(
                Fault::value(
                    "blanks",
                    format!("place {odd} cannot stay empty: there are {places} places, counted from 0, and each is named once"),
                )
                .help("name places from 0, row by row"),
            );
        }
        if !(16..=4096).contains(&self.cell) {
            faults.push(Fault::value(
                "cell",
                format!("`cell` is {}, not between 16 and 4096 pixels", self.cell),
            ));
        }
        if self.gap > 512 {
            faults.push(Fault::value(
                "gap",
                format!("`gap` is {}, not between 0 and 512 pixels", self.gap),
            ));
        }
        faults
    }

    /// Which picture of which entry stands in which row and column.
    fn places(
        &self,
        entries: &[ImageFacts],
        order: Option<&[(usize, usize)]>,
    ) -> Result<Vec<Vec<Place>>, Fault> {
        if self.order.is_some() {
            return self.ordered(entries, order);
        }
        if let (Some(columns), true) = (self.columns, self.is_table()) {
            let batch = entries.first().map_or(1, |facts| facts.batch).max(1);
            if let Some(odd) = entries.iter().position(|facts| facts.batch != batch) {
                return Err(Fault::mismatch(
                    "images",
                    format!(
                        "entry {} of `images` has {} pictures where another has {batch}",
                        odd + 1,
                        entries[odd].batch
                    ),
                )
                .help("every place of a table has the same number of pictures"));
            }
            let mut left = 0..entries.len();
            let all: Vec<Place> = (0..entries.len() + self.blanks.len())
                .flat_map(|place| {
                    let entry = if self.blanks.contains(&place) {
                        None
                    } else {
                        left.next()
                    };
                    (0..batch).map(move |picture| entry.map(|entry| (entry, picture)))
                })
                .collect();
            let width = columns.max(1).saturating_mul(batch);
            return Ok(all.chunks(width).map(<[_]>::to_vec).collect());
        }
        if let Some(columns) = self.columns {
            let all: Vec<Place> = entries
                .iter()
                .enumerate()
                .flat_map(|(entry, facts)| {
                    (0..facts.batch).map(move |picture| Some((entry, picture)))
                })
                .collect();
            return Ok(all.chunks(columns.max(1)).map(<[_]>::to_vec).collect());
        }
        let rows = entries.iter().map(|facts| facts.batch).max().unwrap_or(0);
        if let Some(odd) = entries
            .iter()
            .position(|facts| facts.batch != rows && facts.batch != 1)
        {
            return Err(Fault::mismatch(
                "images",
                format!(
                    "entry {} of `images` has {} pictures where another has {rows}",
                    odd + 1,
                    entries[odd].batch
                ),
            )
            .help("every entry has one picture a row, or one for all rows; `columns` fills rows with any number"));
        }
        Ok((0..rows)
            .map(|row| {
                let place = |(entry, facts): (usize, &ImageFacts)| {
                    Some((entry, if facts.batch == 1 { 0 } else { row }))
                };
                entries.iter().enumerate().map(place).collect()
            })
            .collect())
    }

    /// The pictures one after the other, by their scores; before these are known as they come.
    fn ordered(
        &self,
        entries: &[ImageFacts],
        order: Option<&[(usize, usize)]>,
    ) -> Result<Vec<Vec<Place>>, Fault> {
        let size = |facts: &ImageFacts| (facts.width, facts.height);
        // What the sheet measures must not depend on the scores.
        let first = entries.first().map(size);
        if let Some(odd) = entries.iter().position(|facts| Some(size(facts)) != first) {
            return Err(Fault::mismatch(
                "images",
                format!("entry {} of `images` is of another size", odd + 1),
            )
            .help("`order` needs pictures of one size: use `resize_image`, or leave `order` out"));
        }
        let all = (entries.iter().enumerate())
            .flat_map(|(entry, facts)| (0..facts.batch).map(move |picture| (entry, picture)));
        let all: Vec<Place> = match order {
            Some(order) => order.iter().copied().map(Some).collect(),
            None => all.map(Some).collect(),
        };
        let columns = (self.columns).unwrap_or_else(|| all.len().isqrt().max(1));
        Ok(all.chunks(columns.max(1)).map(<[_]>::to_vec).collect())
    }

    // Long: one layout: the sizes of columns and rows first, then every cell and label by them.
    fn layout(&self, entries: &[ImageFacts], printed: &Printed) -> Result<Layout, Fault> {
        let places = self.places(entries, printed.order.as_deref())?;
        if !self.row_labels.is_empty() && self.row_labels.len() != places.len() {
            return Err(Fault::value(
                "row_labels",
                format!(
                    "{} row label{} for {} row{}",
                    self.row_labels.len(),
                    if self.row_labels.len() == 1 { "" } else { "s" },
                    places.len(),
                    if places.len() == 1 { "" } else { "s" }
                ),
            )
            .help("give one label a row (\"\" for none), or leave `row_labels` out"));
        }
        let shown: Vec<(usize, usize)> = entries.iter().map(|facts| self.shown(facts)).collect();
        let columns = places.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        let mut heights = vec![0; places.len()];
        for (row, entries) in places.iter().enumerate() {
            for (column, place) in entries.iter().enumerate() {
                if let Some((entry, _)) = place {
                    widths[column] = widths[column].max(shown[*entry].0);
                    heights[row] = heights[row].max(shown[*entry].1);
                }
            }
        }
        // A row or a column without any picture has the room of one.
        let widest = widths.iter().copied().max().unwrap_or(0);
        let highest = heights.iter().copied().max().unwrap_or(0);
        widths
            .iter_mut()
            .filter(|side| **side == 0)
            .for_each(|side| *side = widest);
        heights
            .iter_mut()
            .filter(|side| **side == 0)
            .for_each(|side| *side = highest);
        // What the sheet takes without labels bounds it, so that nothing below can overflow or be built in vain.
        let bare = |sides: &[usize]| sides.iter().sum::<usize>() + (sides.len() + 1) * self.gap;
        self.check_sheet(bare(&widths), bare(&heights))?;

        let font = self.font();
        let letter = font.character_size.width as usize;
        let line = font.character_size.height as usize;
        let row_labels: Vec<Vec<String>> = self
            .row_labels
            .iter()
            .zip(&heights)
            .map(|(label, height)| wrap(label.as_str(), ROW_LABEL_WIDTH, (height / line).max(1)))
            .collect();
        let longest = row_labels
            .iter()
            .flatten()
            .map(|text| text.chars().count())
            .max()
            .unwrap_or(0);
        // Labels at the left are followed by a space of their own.
        let margin = if longest == 0 {
            self.gap
        } else {
            2 * self.gap.max(letter / 2) + longest * letter
        };

        let most_lines = match self.order {
            Some(_) => MAX_ORDERED_LINES,
            None => MAX_LINES,
        };
        let tallest = (self.labels.iter())
            .map(|label| wrap(label.as_str(), widest / letter, most_lines).len())
            .max()
            .unwrap_or(0);
        let mut lines = Vec::new();
        let mut cells = Vec::new();
        let mut y = self.gap;
        for (row, entries) in places.iter().enumerate() {
            // Above a column its label stands once, above the first row.
            let labelled = !self.labels.is_empty()
                && (row == 0 || self.columns.is_some() || self.order.is_some());
            let heads = row == 0 && !self.column_labels.is_empty();
            let batch = (columns / self.columns.unwrap_or(1).max(1)).max(1);
            let above: Vec<Vec<String>> = entries
                .iter()
                .zip(&widths)
                .enumerate()
                .filter(|_| labelled || heads)
                .map(|(column, (place, width))| {
                    let head = (self.column_labels.get(column / batch))
                        .filter(|_| heads && column % batch == 0);
                    let own = place.and_then(|(entry, _)| self.labels.get(entry));
                    let mut lines = Vec::new();
                    for label in head.into_iter().chain(own.filter(|_| labelled)) {
                        lines.extend(wrap(label.as_str(), width / letter, most_lines));
                    }
                    lines
                })
                .collect();
            let most = match self.order {
                // As high whatever stands in the row.
                Some(_) => tallest,
                None => above.iter().map(Vec::len).max().unwrap_or(0),
            };
            let mut x = margin;
            for (column, place) in entries.iter().enumerate() {
                for (index, text) in above.get(column).into_iter().flatten().enumerate() {
                    let indent = widths[column].saturating_sub(text.chars().count() * letter) / 2;
                    // Short labels stand at the foot, next to their picture.
                    let first = most - above[column].len();
                    lines.push(Line {
                        text: text.clone(),
                        x: x + indent,
                        y: y + (first + index) * line,
                    });
                }
                if let Some((entry, picture)) = *place {
                    let (width, height) = shown[entry];
                    let space = if most == 0 { 0 } else { most * line + line / 4 };
                    cells.push(Cell {
                        entry,
                        picture,
                        x: x + (widths[column] - width) / 2,
                        y: y + space + (heights[row] - height) / 2,
                        width,
                        height,
                    });
                    let scores = printed.scores.get(&(entry, picture));
                    for (index, (name, value)) in scores.into_iter().flatten().enumerate() {
                        let text = score_line(name, value, widths[column] / letter);
                        let indent =
                            widths[column].saturating_sub(text.chars().count() * letter) / 2;
                        lines.push(Line {
                            text,
                            x: x + indent,
                            y: y + space + heights[row] + line / 4 + index * line,
                        });
                    }
                }
                x += widths[column] + self.gap;
            }
            if most > 0 {
                y += most * line + line / 4;
            }
            if let Some(label) = row_labels.get(row) {
                let first = y + heights[row].saturating_sub(label.len() * line) / 2;
                for (index, text) in label.iter().enumerate() {
                    lines.push(Line {
                        text: text.clone(),
                        x: self.gap.max(letter / 2),
                        y: first + index * line,
                    });
                }
            }
            y += heights[row] + self.gap;
            if !self.scores.is_empty() {
                y += self.scores.len() * line + line / 4;
            }
        }
        let width = margin + widths.iter().map(|width| width + self.gap).sum::<usize>();
        self.check_sheet(width, y)?;
        Ok(Layout {
            width,
            height: y,
            font,
            cells,
            lines,
        })
    }

    /// The size of an entry's pictures on the sheet: the longer side is `cell`.
    fn shown(&self, facts: &ImageFacts) -> (usize, usize) {
        let (width, height) = (facts.width.max(1), facts.height.max(1));
        let rounded = |side: usize, of: usize| ((2 * side * self.cell + of) / (2 * of)).max(1);
        if width >= height {
            (self.cell, rounded(height, width))
        } else {
            (rounded(width, height), self.cell)
        }
    }

    /// The largest letters of which a few words fit above a cell.
    fn font(&self) -> &'static MonoFont<'static> {
        match self.cell {
            0..96 => &FONT_6X10,
            96..160 => &FONT_8X13,
            _ => &FONT_10X20,
        }
    }

    fn check_sheet(&self, width: usize, height: usize) -> Result<(), Fault> {
        if width > MAX_SHEET_SIDE
            || height > MAX_SHEET_SIDE
            || width.saturating_mul(height) > MAX_SHEET_PIXELS
        {
            return Err(Fault::value(
                "cell",
                format!(
                    "the sheet would have {width}x{height} pixels; at most {MAX_SHEET_SIDE} a side and {} megapixels are drawn",
                    MAX_SHEET_PIXELS / 1_000_000
                ),
            )
            .help(format!(
                "make `cell` smaller (it is {}), or put fewer pictures on a sheet",
                self.cell
            )));
        }
        Ok(())
    }
}

/// A column that is ordered by, without the sign of the order.
fn column_of(order: &str) -> &str {
    order.strip_prefix('-').unwrap_or(order).trim()
}

/// A text with the typographic signs that Latin-1 lacks written in those that it has.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\u{2018}' | '\u{2019}' | '\u{2032}' => plain.push('\''),
            '\u{201c}' | '\u{201d}' | '\u{201e}' | '\u{2033}' => plain.push('"'),
            '\u{2010}'..='\u{2015}' | '\u{2212}' => plain.push('-'),
            '\u{2026}' => plain.push_str("..."),
            letter if letter.is_whitespace() || letter.is_control() => plain.push(' '),
            letter => plain.push(letter),
        }
    }
    plain
}

/// Whether the font has the letter.
fn is_drawn(letter: char) -> bool {
    matches!(letter, ' '..='~' | '\u{a0}'..='\u{ff}')
}

/// Breaks a text into at most `most` lines of at most `letters` letters, at spaces where it can; what is longer is
/// shortened and ends in three dots.
fn wrap(text: &str, letters: usize, most: usize) -> Vec<String> {
    let letters = letters.max(1);
    let mut lines: Vec<Vec<char>> = Vec::new();
    for word in plain(text).split_whitespace() {
        let word: Vec<char> = word.chars().collect();
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= letters => {
                line.push(' ');
                line.extend(word);
            }
            _ => lines.extend(word.chunks(letters).map(<[char]>::to_vec)),
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(line) = lines.last_mut() {
            let dots = letters.min(3);
            line.truncate(letters - dots);
            line.extend(std::iter::repeat_n('.', dots));
        }
    }
    lines.into_iter().map(String::from_iter).collect()
}

/// The sheet while it is drawn: three planes of f32.
struct Sheet {
    width: usize,
    height: usize,
    planes: Vec<f32>,
    ink: f32,
}

impl Sheet {
    fn new(layout: &Layout, background: Colour) -> Self {
        let ground = background.rgb();
        let area = layout.width * layout.height;
        let mut planes = Vec::with_capacity(3 * area);
        for value in ground {
            planes.resize(planes.len() + area, value);
        }
        // Rec. 601's brightness; black can be read on the lighter half, white on the darker.
        let light = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2];
        Self {
            width: layout.width,
            height: layout.height,
            planes,
            ink: if light < 0.5 { 1.0 } else { 0.0 },
        }
    }

    /// Copies a picture of the cell's size to its place.
    fn place(&mut self, picture: &[f32], cell: &Cell) {
        let area = self.width * self.height;
        for (channel, plane) in picture.chunks_exact(cell.width * cell.height).enumerate() {
            for (row, pixels) in plane.chunks_exact(cell.width).enumerate() {
                let start = channel * area + (cell.y + row) * self.width + cell.x;
                self.planes[start..start + cell.width].copy_from_slice(pixels);
            }
        }
    }

    fn write(&mut self, line: &Line, font: &'static MonoFont<'static>) {
        // A sheet has at most 32768 pixels a side: both fit.
        let corner = Point::new(line.x as i32, line.y as i32);
        let style = MonoTextStyle::new(font, BinaryColor::On);
        match Text::with_baseline(&line.text, corner, style, Baseline::Top).draw(self) {
            Ok(_) => {}
            Err(never) => match never {},
        }
    }
}

impl OriginDimensions for Sheet {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Sheet {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<BinaryColor>>,
    {
        let area = self.width * self.height;
        for Pixel(point, colour) in pixels {
            let (Ok(x), Ok(y)) = (usize::try_from(point.x), usize::try_from(point.y)) else {
                continue;
            };
            if colour.is_on() && x < self.width && y < self.height {
                for channel in 0..3 {
                    self.planes[channel * area + y * self.width + x] = self.ink;
                }
            }
        }
        Ok(())
    }
}
