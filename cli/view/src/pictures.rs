//! Pictures: zoomed to the pixel, two of them compared, a contact sheet with what its cells are of.
//!
//! The widget takes plain data ([`Picture`]) and keeps no picture: what it holds are textures, uploaded once in tiles,
//! freed when their picture is no longer among those that are shown, and bounded in bytes.

use std::sync::Arc;
use std::time::Duration;

use eframe::egui;
use egui::{
    Align2, Color32, ColorImage, EventFilter, FontId, Key, Modifiers, Pos2, Rect, Response, Sense,
    Stroke, TextureHandle, TextureOptions, Ui, Vec2, pos2, vec2,
};
use retouch_graph::Sweep;
use retouch_nodes::image::Grid;
use retouch_nodes::payload::ImageFacts;

/// The side of a tile in pixels: what any device takes.
const TILE: usize = 2048;
/// The bytes that textures may take; what is shown at the moment is always there.
const BUDGET: usize = 512 << 20;
/// The least and the greatest zoom: pixels of the screen for a pixel of the picture.
const ZOOM: (f32, f32) = (1.0 / 64.0, 64.0);
/// How close to the line of a wipe the pointer takes hold of it, in points.
const GRIP: f32 = 8.0;
/// The periods of blinking in seconds.
const PERIOD: (f32, f32) = (0.1, 3.0);
/// The factors of a difference.
const GAIN: (f32, f32) = (1.0, 64.0);

/// Closer, while the picture has the focus.
pub const CLOSER: Key = Key::Plus;
/// Farther away.
pub const FARTHER: Key = Key::Minus;
/// All of it in the window.
pub const FIT: Key = Key::Num0;
/// A pixel for a pixel.
pub const ONE_TO_ONE: Key = Key::Num1;

/// A picture.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What it is: the output's name, and which run it is of.
    pub name: String,
    /// Width and height in pixels.
    pub size: [usize; 2],
    /// Red, green, blue and alpha of each pixel, row by row: sRGB, alpha not multiplied in. `4 * width * height` bytes.
    pub rgba: Arc<[u8]>,
    /// The cells, if it is a contact sheet.
    pub cells: Arc<[Cell]>,
    /// What was measured of it, by name.
    pub scores: Arc<[(String, f64)]>,
}

/// A cell of a contact sheet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The left and upper edge in pixels of the sheet.
    pub at: [usize; 2],
    /// Width and height in pixels of the sheet.
    pub size: [usize; 2],
    /// What it is of: the params that vary and their values, or a label.
    pub label: String,
}

impl Picture {
    /// A picture without cells; `None` when there are not four bytes for each pixel.
    #[must_use]
    pub fn new(name: impl Into<String>, size: [usize; 2], rgba: Arc<[u8]>) -> Option<Self> {
        let due = size[0].checked_mul(size[1])?.checked_mul(4)?;
        (due == rgba.len() && due > 0).then(|| Self {
            name: name.into(),
            size,
            rgba,
            cells: Arc::default(),
            scores: Arc::default(),
        })
    }

    /// The pixel at a place: red, green, blue, alpha.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 4]> {
        if x >= self.size[0] || y >= self.size[1] {
            return None;
        }
        let at = 4 * (y * self.size[0] + x);
        self.rgba.get(at..at + 4)?.try_into().ok()
    }

    fn cell(&self, x: usize, y: usize) -> Option<&Cell> {
        let within = |at: usize, axis: usize, cell: &Cell| {
            (cell.at[axis]..cell.at[axis] + cell.size[axis]).contains(&at)
        };
        (self.cells.iter()).find(|cell| within(x, 0, cell) && within(y, 1, cell))
    }

    /// What tells a picture from another: its bytes in memory.
    fn identity(&self) -> Identity {
        (Arc::as_ptr(&self.rgba).cast::<u8>() as usize, self.size)
    }
}

type Identity = (usize, [usize; 2]);

/// The cells of the contact sheet that `grid` draws of these entries, each with the label of its entry.
///
/// # Errors
/// In words, when the entries don't fit the sheet.
pub fn grid_cells(
    grid: &Grid,
    entries: &[ImageFacts],
    label: impl Fn(usize) -> String,
) -> Result<Arc<[Cell]>, String> {
    let cells = grid.cells(entries).map_err(|fault| fault.message)?;
    Ok((cells.into_iter())
        .map(|cell| Cell {
            at: [cell.x, cell.y],
            size: [cell.width, cell.height],
            label: label(cell.entry),
        })
        .collect())
}

/// The cells of a sweep's contact sheet, `grid` being its node and `entries` the pictures that are on it.
///
/// # Errors
/// As [`grid_cells`]; also when the sweep has no sheet.
pub fn sweep_cells(
    sweep: &Sweep,
    grid: &Grid,
    entries: &[ImageFacts],
) -> Result<Arc<[Cell]>, String> {
    let (_, places) = sweep.places().ok_or("the sweep has no contact sheet")?;
    // The entries stand where the sheet has no blank, in order.
    let shown: Vec<usize> = (places.iter().enumerate())
        .filter(|(place, _)| !grid.blanks.contains(place))
        .filter_map(|(_, cell)| *cell)
        .collect();
    grid_cells(grid, entries, |entry| {
        let cell = shown.get(entry).and_then(|cell| sweep.cells.get(*cell));
        cell.map_or_else(String::new, |cell| cell.label.clone())
    })
}

/// How two pictures are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The first one alone.
    #[default]
    Single,
    /// One at the left of a line, the other at its right.
    Wipe,
    /// One after the other.
    Blink,
    /// What is not the same.
    Difference,
}

impl Mode {
    const ALL: [(Self, &'static str, Key); 4] = [
        (Self::Single, "Single", Key::S),
        (Self::Wipe, "Wipe", Key::W),
        (Self::Blink, "Blink", Key::B),
        (Self::Difference, "Difference", Key::D),
    ];
}

/// How two pictures stand over each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// They are of one size.
    Same,
    /// They have one aspect: the smaller one is enlarged to the size of the larger.
    Scaled,
    /// Neither: they share the upper left corner, and only what both cover is compared.
    Overlapping,
}

/// How two pictures stand over each other, and the size of the room that both have.
#[must_use]
pub fn matched(a: [usize; 2], b: [usize; 2]) -> (Match, [usize; 2]) {
    if a == b {
        return (Match::Same, a);
    }
    let room = [a[0].max(b[0]), a[1].max(b[1])];
    if a[0] * b[1] == b[0] * a[1] {
        (Match::Scaled, room)
    } else {
        (Match::Overlapping, room)
    }
}

/// What two pictures differ by.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Width and height of what was compared.
    pub size: [usize; 2],
    /// The absolute difference of red, green and blue, pixel by pixel.
    pub rgb: Vec<u8>,
    /// The greatest one, of 255; alpha counts here too.
    pub max: u8,
    /// The mean over all pixels and red, green and blue, of 255.
    pub mean: f64,
}

/// Compares two pictures; of different sizes as [`matched`] says, the smaller one enlarged pixel by pixel.
#[must_use]
pub fn difference(a: &Picture, b: &Picture) -> Difference {
    let (how, room) = matched(a.size, b.size);
    let size = match how {
        Match::Same | Match::Scaled => room,
        Match::Overlapping => [a.size[0].min(b.size[0]), a.size[1].min(b.size[1])],
    };
    // Where a pixel of the room lies in a picture.
    let columns = |picture: &Picture| -> Vec<usize> {
        (0..size[0])
            .map(|x| match how {
                Match::Overlapping => x,
                _ => x * picture.size[0] / size[0],
            })
            .collect()
    };
    let (in_a, in_b) = (columns(a), columns(b));
    let row = |picture: &Picture, y: usize| match how {
        Match::Overlapping => y,
        _ => y * picture.size[1] / size[1],
    };
    let mut rgb = Vec::with_capacity(size[0] * size[1] * 3);
    let (mut max, mut sum) = (0u8, 0u64);
    for y in 0..size[1] {
        let line = |picture: &Picture| {
            let width = 4 * picture.size[0];
            row(picture, y) * width
        };
        let (from_a, from_b) = (line(a), line(b));
        for (x_a, x_b) in in_a.iter().zip(&in_b) {
            let left = a.rgba.get(from_a + 4 * x_a..from_a + 4 * x_a + 4);
            let right = b.rgba.get(from_b + 4 * x_b..from_b + 4 * x_b + 4);
            for channel in 0..4 {
                let of = |pixel: Option<&[u8]>| {
                    pixel
                        .and_then(|pixel| pixel.get(channel))
                        .copied()
                        .unwrap_or(0)
                };
                let apart = of(left).abs_diff(of(right));
                max = max.max(apart);
                if channel < 3 {
                    sum += u64::from(apart);
                    rgb.push(apart);
                }
            }
        }
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "sums of bytes of a picture in memory"
    )]
    let mean = sum as f64 / (rgb.len().max(1)) as f64;
    Difference {
        size,
        rgb,
        max,
        mean,
    }
}

/// What was measured of a picture, or of both of two, in words: `look 0.312`, or `look 0.312 and 0.284 (-0.028)`.
#[must_use]
pub fn scores(first: &Picture, second: Option<&Picture>) -> Vec<String> {
    let of = |picture: &Picture, name: &str| {
        let found = picture.scores.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| *value)
    };
    let shown =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |one| format!("{one:.3}"));
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in std::iter::once(first)
        .chain(second)
        .flat_map(|one| one.scores.iter())
    {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let line = |name: &str| {
        let a = of(first, name);
        let Some(b) = second.map(|second| of(second, name)) else {
            return format!("{name} {}", shown(a));
        };
        let change = match (a, b) {
            (Some(a), Some(b)) => format!(" ({:+.3})", b - a),
            _ => String::new(),
        };
        format!("{name} {} and {}{change}", shown(a), shown(b))
    };
    names.into_iter().map(line).collect()
}

/// A texture of a part of a picture.
struct Tile {
    /// Where it lies in the picture.
    at: [usize; 2],
    size: [usize; 2],
    texture: TextureHandle,
}

/// A picture on the device.
struct Uploaded {
    identity: Identity,
    /// Held, so that its memory is not another's meanwhile.
    _bytes: Arc<[u8]>,
    tiles: Vec<Tile>,
    bytes: usize,
    used: u64,
}

/// A difference on the device.
struct Shown {
    of: (Identity, Identity),
    /// Held for the same reason.
    _bytes: [Arc<[u8]>; 2],
    difference: Difference,
    gain: f32,
    tiles: Vec<Tile>,
}

/// What is under the pointer.
#[derive(Clone, Debug, PartialEq)]
pub struct Pointed {
    /// The picture.
    pub picture: String,
    /// The pixel's column and row, from 0.
    pub at: [usize; 2],
    /// Red, green, blue and alpha.
    pub rgba: [u8; 4],
    /// What the cell is of, on a contact sheet.
    pub cell: Option<String>,
}

/// The state of the widget.
pub struct Viewer {
    /// How two pictures are looked at.
    pub mode: Mode,
    /// The index of the first picture.
    pub first: usize,
    /// The index of the second one.
    pub second: usize,
    /// Where the line of a wipe stands, as a share of the width.
    pub wipe: f32,
    /// For how long each of two pictures is shown when they blink, in seconds.
    pub period: f32,
    /// The factor of the difference.
    pub gain: f32,
    /// Pixels of the screen for a pixel of the picture; `None`: as large as the room allows.
    zoom: Option<f32>,
    /// What of the picture is in the middle, as a share of its sides.
    centre: Vec2,
    /// Whether the line of a wipe is being dragged.
    wiping: bool,
    uploaded: Vec<Uploaded>,
    shown: Option<Shown>,
    frame: u64,
}

impl std::fmt::Debug for Viewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Viewer")
            .field("mode", &self.mode)
            .field("zoom", &self.zoom)
            .field("textures", &self.uploaded.len())
            .finish_non_exhaustive()
    }
}

impl Default for Viewer {
    fn default() -> Self {
        Self {
            mode: Mode::Single,
            first: 0,
            second: 1,
            wipe: 0.5,
            period: 0.5,
            gain: 4.0,
            zoom: None,
            centre: vec2(0.5, 0.5),
            wiping: false,
            uploaded: Vec::new(),
            shown: None,
            frame: 0,
        }
    }
}

/// A picture and where it is painted: what of the room it covers, in points.
#[derive(Clone, Copy)]
struct Laid<'p> {
    picture: &'p Picture,
    rect: Rect,
}

impl Viewer {
    /// The bytes that its textures take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let tiles = self.shown.iter().flat_map(|shown| &shown.tiles);
        let shown: usize = tiles.map(|tile| 4 * tile.size[0] * tile.size[1]).sum();
        self.uploaded.iter().map(|one| one.bytes).sum::<usize>() + shown
    }

    /// Shows the picture as large as the room allows.
    pub fn fit(&mut self) {
        self.zoom = None;
        self.centre = vec2(0.5, 0.5);
    }

    /// Shows the picture with that many screen pixels per picture pixel.
    pub fn zoom_to(&mut self, zoom: f32) {
        self.zoom = Some(zoom.clamp(ZOOM.0, ZOOM.1));
    }

    /// Shows the widget; gives back what is under the pointer.
    // Long: one frame of the widget: each mode draws on the canvas that the first part laid out.
    pub fn show(&mut self, ui: &mut Ui, pictures: &[Picture]) -> Option<Pointed> {
        self.frame += 1;
        let known = |identity: Identity| pictures.iter().any(|one| one.identity() == identity);
        self.uploaded.retain(|one| known(one.identity));
        if (self.shown.as_ref()).is_some_and(|shown| !known(shown.of.0) || !known(shown.of.1)) {
            self.shown = None;
        }
        if pictures.is_empty() {
            self.shown = None;
            ui.weak("no pictures yet");
            return None;
        }
        self.first = self.first.min(pictures.len() - 1);
        self.second = self.second.min(pictures.len() - 1);
        let two = pictures.len() > 1;
        if !two {
            self.mode = Mode::Single;
        }
        if self.mode != Mode::Difference {
            self.shown = None;
        }
        self.controls(ui, pictures);
        let first = &pictures[self.first];
        let second = (self.mode != Mode::Single).then(|| &pictures[self.second]);
        let scores = scores(first, second);
        if !scores.is_empty() {
            ui.horizontal_wrapped(|ui| {
                for score in scores {
                    ui.label(score);
                }
            });
        }
        let room = second.map_or(first.size, |second| matched(first.size, second.size).1);

        // One line below the picture is for what the pointer is at.
        let line = ui.text_style_height(&egui::TextStyle::Body) + ui.spacing().item_spacing.y;
        let size = vec2(
            ui.available_width().max(1.0),
            (ui.available_height() - line).max(24.0),
        );
        let (canvas, response) = ui.allocate_exact_size(size, Sense::click_and_drag());
        let name = match second {
            Some(second) => format!("Picture {} and {}", first.name, second.name),
            None => format!("Picture {}", first.name),
        };
        response.widget_info(|| egui::WidgetInfo::labeled(egui::WidgetType::Image, true, &name));
        let points = ui.ctx().pixels_per_point();
        self.input(ui, &response, canvas, room, points, two);
        let frame = self.frame_of(canvas, room, points);

        let painter = ui
            .painter()
            .with_clip_rect(canvas.intersect(ui.clip_rect()));
        painter.rect_filled(canvas, 0.0, ui.visuals().extreme_bg_color);
        let laid = |picture| {
            lay(
                picture,
                frame,
                room,
                second.is_some().then_some((first, second)),
            )
        };
        let line = frame.left() + frame.width() * self.wipe;
        // What the pointer is at: in a wipe it depends on the side.
        let mut under = first;
        match (self.mode, second) {
            (Mode::Single, _) | (_, None) => self.paint(&painter, laid(first), canvas),
            (Mode::Wipe, Some(second)) => {
                let mut sides = [canvas, canvas];
                sides[0].max.x = line.clamp(canvas.left(), canvas.right());
                sides[1].min.x = sides[0].max.x;
                for (picture, side) in [first, second].into_iter().zip(sides) {
                    let painter = painter.with_clip_rect(side.intersect(ui.clip_rect()));
                    self.paint(&painter, laid(picture), side);
                }
                let stroke = Stroke::new(2.0, ui.visuals().selection.stroke.color);
                painter.vline(line, frame.y_range(), stroke);
                let text = |at, align, name: &str| {
                    label(&painter, at, align, name, ui.visuals());
                };
                let at = response.hover_pos().unwrap_or(canvas.center());
                if at.x >= line {
                    under = second;
                }
                text(canvas.left_top(), Align2::LEFT_TOP, &first.name);
                text(canvas.right_top(), Align2::RIGHT_TOP, &second.name);
            }
            (Mode::Blink, Some(second)) => {
                let now = ui.input(|input| input.time);
                let period = f64::from(self.period.clamp(PERIOD.0, PERIOD.1));
                let turn = (now / period).floor();
                let picture = if turn.rem_euclid(2.0) < 1.0 {
                    first
                } else {
                    second
                };
                under = picture;
                self.paint(&painter, laid(picture), canvas);
                label(
                    &painter,
                    canvas.left_top(),
                    Align2::LEFT_TOP,
                    &picture.name,
                    ui.visuals(),
                );
                let rest = ((turn + 1.0) * period - now).max(0.001);
                ui.ctx()
                    .request_repaint_after(Duration::from_secs_f64(rest));
            }
            (Mode::Difference, Some(second)) => {
                self.paint_difference(&painter, first, second, frame, room);
            }
        }
        self.evict();

        let under = laid(under);
        let at = (response.hover_pos())
            // Who has no pointer looks at what is in the middle.
            .or_else(|| response.has_focus().then(|| canvas.center()))
            .filter(|at| canvas.contains(*at));
        let pointed = at.and_then(|at| pointed(under, at));
        let cell =
            (pointed.as_ref()).and_then(|pointed| under.picture.cell(pointed.at[0], pointed.at[1]));
        if let Some(cell) = cell {
            let scale = under.rect.size() / size_of(under.picture.size);
            let corner = |x: usize, y: usize| under.rect.min + size_of([x, y]) * scale;
            let outline = Rect::from_min_max(
                corner(cell.at[0], cell.at[1]),
                corner(cell.at[0] + cell.size[0], cell.at[1] + cell.size[1]),
            );
            let stroke = Stroke::new(2.0, ui.visuals().selection.stroke.color);
            painter.rect_stroke(outline, 0.0, stroke, egui::StrokeKind::Outside);
        }
        if response.has_focus() {
            let stroke = ui.visuals().selection.stroke;
            painter.rect_stroke(canvas, 0.0, stroke, egui::StrokeKind::Inside);
        }
        let text = match &pointed {
            Some(pointed) => {
                let [r, g, b, a] = pointed.rgba;
                let alpha = if a == 255 {
                    String::new()
                } else {
                    format!(", alpha {a}")
                };
                let cell = pointed
                    .cell
                    .as_ref()
                    .map_or_else(String::new, |cell| format!("  {cell}"));
                format!(
                    "{}, {}: #{r:02x}{g:02x}{b:02x}{alpha}{cell}",
                    pointed.at[0], pointed.at[1]
                )
            }
            None => format!("{} × {}", room[0], room[1]),
        };
        ui.add(egui::Label::new(text).truncate());
        pointed
    }

    fn controls(&mut self, ui: &mut Ui, pictures: &[Picture]) {
        ui.horizontal_wrapped(|ui| {
            let names: Vec<&str> = pictures.iter().map(|one| one.name.as_str()).collect();
            pick(ui, "First picture", &names, &mut self.first);
            if pictures.len() > 1 {
                if self.mode != Mode::Single {
                    pick(ui, "Second picture", &names, &mut self.second);
                }
                for (mode, name, key) in Mode::ALL {
                    let hint = format!("{name} ({} on the picture)", key.name());
                    if ui
                        .selectable_label(self.mode == mode, name)
                        .on_hover_text(hint)
                        .clicked()
                    {
                        self.mode = mode;
                    }
                }
            }
            let fit = ui.selectable_label(self.zoom.is_none(), "Fit");
            if fit.on_hover_text("All of it (0 on the picture)").clicked() {
                self.fit();
            }
            let one = ui.selectable_label(self.zoom == Some(1.0), "1:1");
            if one
                .on_hover_text("A pixel for a pixel (1 on the picture)")
                .clicked()
            {
                self.zoom_to(1.0);
            }
            let slider =
                |ui: &mut Ui, name: &str, value: &mut f32, range: (f32, f32), log: bool| {
                    ui.spacing_mut().slider_width = 80.0;
                    let text = ui.label(name);
                    let slider = egui::Slider::new(value, range.0..=range.1)
                        .logarithmic(log)
                        .max_decimals(2);
                    ui.add(slider).labelled_by(text.id);
                };
            match self.mode {
                Mode::Single => {}
                Mode::Wipe => slider(ui, "Line", &mut self.wipe, (0.0, 1.0), false),
                Mode::Blink => slider(ui, "Seconds", &mut self.period, PERIOD, false),
                Mode::Difference => {
                    slider(ui, "Gain", &mut self.gain, GAIN, true);
                    if let Some(shown) = &self.shown {
                        let found = &shown.difference;
                        ui.label(format!("max {}, mean {:.3} of 255", found.max, found.mean));
                    }
                }
            }
            if self.mode != Mode::Single
                && let (Some(first), Some(second)) =
                    (pictures.get(self.first), pictures.get(self.second))
            {
                let [a, b] = [first.size, second.size];
                match matched(a, b).0 {
                    Match::Same => {}
                    Match::Scaled => {
                        ui.weak(format!(
                            "{} × {} and {} × {}, enlarged",
                            a[0], a[1], b[0], b[1]
                        ));
                    }
                    Match::Overlapping => {
                        ui.weak(format!(
                            "{} × {} and {} × {}, from the upper left corner",
                            a[0], a[1], b[0], b[1]
                        ));
                    }
                }
            }
        });
    }

    /// Where the room lies on the screen.
    fn frame_of(&self, canvas: Rect, room: [usize; 2], points: f32) -> Rect {
        let scale = self.scale(canvas, room, points) / points;
        let size = size_of(room) * scale;
        let mut min = canvas.center() - size * self.centre;
        // On whole pixels of the screen, so that pixels stay sharp.
        min.x = (min.x * points).round() / points;
        min.y = (min.y * points).round() / points;
        Rect::from_min_size(min, size)
    }

    /// Pixels of the screen for a pixel of the room.
    fn scale(&self, canvas: Rect, room: [usize; 2], points: f32) -> f32 {
        self.zoom.unwrap_or_else(|| {
            let size = size_of(room);
            let fit = (canvas.width() / size.x).min(canvas.height() / size.y) * points;
            fit.clamp(f32::MIN_POSITIVE, ZOOM.1)
        })
    }

    fn input(
        &mut self,
        ui: &Ui,
        response: &Response,
        canvas: Rect,
        room: [usize; 2],
        points: f32,
        two: bool,
    ) {
        if response.clicked() || response.drag_started() {
            response.request_focus();
        }
        let frame = self.frame_of(canvas, room, points);
        let line = frame.left() + frame.width() * self.wipe;
        if response.drag_started() {
            let press = ui.input(|input| input.pointer.press_origin());
            self.wiping = self.mode == Mode::Wipe
                && press.is_some_and(|press| (press.x - line).abs() <= GRIP);
        }
        if response.dragged() {
            if self.wiping {
                if let Some(at) = response.interact_pointer_pos() {
                    self.wipe = ((at.x - frame.left()) / frame.width().max(1.0)).clamp(0.0, 1.0);
                }
            } else {
                self.pan(response.drag_delta(), frame);
            }
        } else {
            self.wiping = false;
        }
        if response.double_clicked() {
            if self.zoom.is_some() {
                self.fit();
            } else {
                self.zoom_to(1.0);
            }
        }
        if let Some(at) = response.hover_pos() {
            if self.mode == Mode::Wipe && (at.x - line).abs() <= GRIP {
                ui.ctx().set_cursor_icon(egui::CursorIcon::ResizeHorizontal);
            }
            let (scroll, pinch) =
                ui.input(|input| (input.smooth_scroll_delta.y, input.zoom_delta()));
            let factor = pinch * (scroll / 200.0).exp();
            if factor != 1.0 {
                self.zoom_by(factor, at, canvas, room, points);
                // The window behind is not scrolled by it.
                ui.ctx()
                    .input_mut(|input| input.smooth_scroll_delta = Vec2::ZERO);
            }
        }
        if response.has_focus() {
            let filter = EventFilter {
                horizontal_arrows: true,
                vertical_arrows: true,
                ..EventFilter::default()
            };
            ui.memory_mut(|memory| memory.set_focus_lock_filter(response.id, filter));
            let pressed = |key| ui.input_mut(|input| input.consume_key(Modifiers::NONE, key));
            if pressed(CLOSER) || pressed(Key::Equals) {
                self.zoom_by(1.25, canvas.center(), canvas, room, points);
            }
            if pressed(FARTHER) {
                self.zoom_by(0.8, canvas.center(), canvas, room, points);
            }
            if pressed(FIT) {
                self.fit();
            }
            if pressed(ONE_TO_ONE) {
                self.zoom_to(1.0);
            }
            for (key, x, y) in [
                (Key::ArrowLeft, 40.0, 0.0),
                (Key::ArrowRight, -40.0, 0.0),
                (Key::ArrowUp, 0.0, 40.0),
                (Key::ArrowDown, 0.0, -40.0),
            ] {
                if pressed(key) {
                    self.pan(vec2(x, y), frame);
                }
            }
            for (mode, _, key) in Mode::ALL {
                if two && pressed(key) {
                    self.mode = mode;
                }
            }
            for (key, by) in [(Key::OpenBracket, -0.02), (Key::CloseBracket, 0.02)] {
                if self.mode == Mode::Wipe && pressed(key) {
                    self.wipe = (self.wipe + by).clamp(0.0, 1.0);
                }
            }
        }
    }

    fn pan(&mut self, by: Vec2, frame: Rect) {
        if self.zoom.is_some() && by != Vec2::ZERO {
            let share = vec2(
                by.x / frame.width().max(1.0),
                by.y / frame.height().max(1.0),
            );
            self.centre = (self.centre - share).clamp(Vec2::ZERO, Vec2::splat(1.0));
        }
    }

    /// Zooms so that what is at a place stays there.
    fn zoom_by(&mut self, factor: f32, at: Pos2, canvas: Rect, room: [usize; 2], points: f32) {
        let before = self.frame_of(canvas, room, points);
        let share = (at - before.min) / before.size().max(Vec2::splat(1.0));
        self.zoom_to(self.scale(canvas, room, points) * factor);
        let size = self.frame_of(canvas, room, points).size();
        // Solves `canvas.center() - size * centre + size * share = at`.
        let centre = share - (at - canvas.center()) / size.max(Vec2::splat(1.0));
        self.centre = centre.clamp(Vec2::ZERO, Vec2::splat(1.0));
    }

    fn paint(&mut self, painter: &egui::Painter, laid: Laid<'_>, seen: Rect) {
        let scale = laid.rect.size() / size_of(laid.picture.size);
        let frame = self.frame;
        let uploaded = self.upload(painter.ctx(), laid.picture);
        uploaded.used = frame;
        paint_tiles(painter, &uploaded.tiles, laid.rect.min, scale, seen);
    }

    /// The textures of a picture, made when they are not there.
    fn upload(&mut self, context: &egui::Context, picture: &Picture) -> &mut Uploaded {
        let identity = picture.identity();
        let at = (self.uploaded.iter()).position(|one| one.identity == identity);
        let at = at.unwrap_or_else(|| {
            let tiles = tiles(context, &picture.name, picture.size, |x, y| {
                let [r, g, b, a] = picture.pixel(x, y).unwrap_or_default();
                Color32::from_rgba_unmultiplied(r, g, b, a)
            });
            self.uploaded.push(Uploaded {
                identity,
                _bytes: Arc::clone(&picture.rgba),
                tiles,
                bytes: 4 * picture.size[0] * picture.size[1],
                used: 0,
            });
            self.uploaded.len() - 1
        });
        &mut self.uploaded[at]
    }

    fn paint_difference(
        &mut self,
        painter: &egui::Painter,
        first: &Picture,
        second: &Picture,
        frame: Rect,
        room: [usize; 2],
    ) {
        let of = (first.identity(), second.identity());
        let gain = self.gain.clamp(GAIN.0, GAIN.1);
        let shown = match self.shown.take().filter(|shown| shown.of == of) {
            Some(shown) if shown.gain == gain => shown,
            before => {
                let difference =
                    before.map_or_else(|| difference(first, second), |before| before.difference);
                let (width, rgb) = (difference.size[0], &difference.rgb);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a float cast saturates"
                )]
                let larger = |value: u8| (f32::from(value) * gain).round() as u8;
                let tiles = tiles(painter.ctx(), "difference", difference.size, |x, y| {
                    let at = 3 * (y * width + x);
                    let of = |channel| larger(rgb.get(at + channel).copied().unwrap_or(0));
                    Color32::from_rgb(of(0), of(1), of(2))
                });
                // The numbers stand above the picture, in the next frame.
                painter.ctx().request_repaint();
                Shown {
                    of,
                    _bytes: [Arc::clone(&first.rgba), Arc::clone(&second.rgba)],
                    difference,
                    gain,
                    tiles,
                }
            }
        };
        let scale = frame.size() / size_of(room);
        paint_tiles(painter, &shown.tiles, frame.min, scale, painter.clip_rect());
        self.shown = Some(shown);
    }

    /// Gives up what was shown longest ago when there is too much; what is shown now stays.
    fn evict(&mut self) {
        while self.bytes() > BUDGET {
            let oldest = (self.uploaded.iter().enumerate())
                .filter(|(_, one)| one.used < self.frame)
                .min_by_key(|(_, one)| one.used)
                .map(|(at, _)| at);
            match oldest {
                Some(at) => drop(self.uploaded.swap_remove(at)),
                None => return,
            }
        }
    }
}

/// What of a picture is at a place of the screen.
fn pointed(laid: Laid<'_>, at: Pos2) -> Option<Pointed> {
    let Laid { picture, rect } = laid;
    let share = (at - rect.min) / rect.size().max(Vec2::splat(f32::MIN_POSITIVE));
    if !(0.0..1.0).contains(&share.x) || !(0.0..1.0).contains(&share.y) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "from 0 to below the side, which has few digits"
    )]
    let place = |share: f32, side: usize| ((share * side as f32) as usize).min(side - 1);
    let (x, y) = (
        place(share.x, picture.size[0]),
        place(share.y, picture.size[1]),
    );
    Some(Pointed {
        picture: picture.name.clone(),
        at: [x, y],
        rgba: picture.pixel(x, y)?,
        cell: picture.cell(x, y).map(|cell| cell.label.clone()),
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sides of pictures have few digits"
)]
fn size_of(size: [usize; 2]) -> Vec2 {
    vec2(size[0] as f32, size[1] as f32)
}

/// What of the room a picture covers.
fn lay<'p>(
    picture: &'p Picture,
    frame: Rect,
    room: [usize; 2],
    pair: Option<(&Picture, Option<&Picture>)>,
) -> Laid<'p> {
    let overlapping = matches!(pair, Some((first, Some(second)))
        if matched(first.size, second.size).0 == Match::Overlapping);
    let rect = if overlapping {
        let scale = frame.size() / size_of(room);
        Rect::from_min_size(frame.min, size_of(picture.size) * scale)
    } else {
        frame
    };
    Laid { picture, rect }
}

fn pick(ui: &mut Ui, name: &str, names: &[&str], index: &mut usize) {
    let shown = names.get(*index).copied().unwrap_or("");
    let width = (ui.available_width() - 16.0).clamp(60.0, 160.0);
    let response = egui::ComboBox::from_id_salt(name)
        .selected_text(shown)
        .width(width)
        .truncate()
        .show_ui(ui, |ui| {
            for (at, one) in names.iter().enumerate() {
                ui.selectable_value(index, at, *one);
            }
        })
        .response;
    let text = format!("{name}: {shown}");
    response.widget_info(|| egui::WidgetInfo::labeled(egui::WidgetType::ComboBox, true, &text));
}

fn label(painter: &egui::Painter, at: Pos2, align: Align2, text: &str, visuals: &egui::Visuals) {
    let colour = visuals.strong_text_color();
    let galley = painter.layout_no_wrap(text.to_owned(), FontId::proportional(12.0), colour);
    let rect = align.anchor_size(at, galley.size() + vec2(8.0, 4.0));
    painter.rect_filled(rect, 2.0, visuals.window_fill.gamma_multiply(0.8));
    painter.galley(rect.min + vec2(4.0, 2.0), galley, colour);
}

/// Textures of at most [`TILE`] pixels a side: sharp when enlarged, smooth when made smaller.
fn tiles(
    context: &egui::Context,
    name: &str,
    size: [usize; 2],
    pixel: impl Fn(usize, usize) -> Color32,
) -> Vec<Tile> {
    let options = TextureOptions {
        magnification: egui::TextureFilter::Nearest,
        minification: egui::TextureFilter::Linear,
        ..TextureOptions::default()
    };
    let side = context
        .input(|input| input.max_texture_side)
        .clamp(64, TILE);
    let mut tiles = Vec::new();
    for top in (0..size[1]).step_by(side) {
        for left in (0..size[0]).step_by(side) {
            let part = [side.min(size[0] - left), side.min(size[1] - top)];
            let mut pixels = Vec::with_capacity(part[0] * part[1]);
            for y in top..top + part[1] {
                pixels.extend((left..left + part[0]).map(|x| pixel(x, y)));
            }
            tiles.push(Tile {
                at: [left, top],
                size: part,
                texture: context.load_texture(name, ColorImage::new(part, pixels), options),
            });
        }
    }
    tiles
}

fn paint_tiles(painter: &egui::Painter, tiles: &[Tile], min: Pos2, scale: Vec2, seen: Rect) {
    let whole = Rect::from_min_max(pos2(0.0, 0.0), pos2(1.0, 1.0));
    for tile in tiles {
        let rect = Rect::from_min_size(min + size_of(tile.at) * scale, size_of(tile.size) * scale);
        if rect.intersects(seen) {
            painter.image(tile.texture.id(), rect, whole, Color32::WHITE);
        }
    }
}

#[cfg(test)]
mod tests;
