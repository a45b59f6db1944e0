//! What the panel of steps is made of: names, notices, pictures, heat maps and outlines.

use std::sync::Arc;

use eframe::egui::{
    self, Color32, ColorImage, EventFilter, Pos2, Rect, Response, RichText, Stroke, StrokeKind,
    TextureHandle, TextureOptions, Ui, Vec2, WidgetInfo, WidgetType, pos2, vec2,
};
use retouch_nodes::look::{GazeRow, Place, Plane, QueriesOf, Summary, Whose, outlines};

use super::{BLEND, CONTEXT, Heat, Notice, PIXELS, REFERENCE, SIDES, Shown};
use crate::looks::{GazeAt, Pixels, Reply};

pub(super) fn scrubber_id() -> egui::Id {
    egui::Id::new("steps: the scrubber")
}

pub(super) fn picture_id() -> egui::Id {
    egui::Id::new("steps: the latent")
}

/// Gives a widget its name.
pub(super) fn named(response: &Response, kind: WidgetType, name: &str) {
    response.widget_info(|| WidgetInfo::labeled(kind, true, name));
}

/// Arrows act on the widget rather than move the focus.
pub(super) fn hold_arrows(ui: &Ui, response: &Response) {
    let filter = EventFilter {
        horizontal_arrows: true,
        vertical_arrows: true,
        ..EventFilter::default()
    };
    ui.memory_mut(|memory| memory.set_focus_lock_filter(response.id, filter));
}

pub(super) fn where_is(summary: &Summary, k: usize) -> String {
    let kept = summary.kept();
    let all = summary.latents.len();
    let here = match summary.latents.get(k) {
        Some(Place::Kept("disk")) => "on disk".to_owned(),
        Some(Place::Kept(place)) => format!("in {place}"),
        Some(Place::Given) => "comes with the inputs".to_owned(),
        Some(Place::Gone) | None => "not kept".to_owned(),
    };
    match kept == all {
        true => here,
        false => format!("{here}; {kept} of {all} are kept"),
    }
}

pub(super) fn name_of(whose: Whose, summary: &Summary) -> String {
    match whose {
        Whose::Own if summary.references > 0 => "the target".to_owned(),
        Whose::Own => "the picture itself".to_owned(),
        Whose::Context => "the context".to_owned(),
        Whose::Reference(index) if summary.references > 1 => format!("reference {}", index + 1),
        Whose::Reference(_) => "the reference".to_owned(),
    }
}

pub(super) fn legend(summary: &Summary) -> [(&'static str, Color32); 3] {
    let references = match summary.references > 1 {
        true => "references'",
        false => "reference",
    };
    [
        (references, REFERENCE),
        ("context", CONTEXT),
        ("blend", BLEND),
    ]
}

/// What is said of a reply that is no answer.
pub(super) fn notice(what: &'static str, reply: Reply) -> Option<Notice> {
    let (text, help, fault) = match reply {
        Reply::Ready(_) => return None,
        Reply::Working(text) if text.is_empty() => return None,
        Reply::Working(text) => (format!("computing: {text}"), None, false),
        Reply::Waiting(text) => (format!("waits for the run's end: {text}"), None, false),
        Reply::Failed { message, help } => (message, help, true),
    };
    Some(Notice {
        what,
        text,
        help,
        fault,
    })
}

pub(super) fn tell(ui: &mut Ui, notices: &[Notice]) {
    for Notice {
        what,
        text,
        help,
        fault,
    } in notices
    {
        let colour = match fault {
            true => ui.visuals().warn_fg_color,
            false => ui.visuals().weak_text_color(),
        };
        ui.add(egui::Label::new(RichText::new(format!("{what}: {text}")).color(colour)).wrap());
        if let Some(help) = help {
            ui.add(egui::Label::new(RichText::new(help).weak()).wrap());
        }
    }
}

/// The side of each of `count` pictures in a row.
pub(super) fn side_of(ui: &Ui, count: usize) -> f32 {
    let gaps = ui.spacing().item_spacing.x * count as f32;
    ((ui.available_width() - gaps) / count as f32).clamp(SIDES.0, SIDES.1)
}

/// A size of a grid's proportions whose longer side is given.
pub(super) fn fit(side: f32, (h, w): (usize, usize)) -> Vec2 {
    let longest = h.max(w).max(1) as f32;
    vec2(side * w as f32 / longest, side * h as f32 / longest)
}

pub(super) fn draw(ui: &Ui, texture: &TextureHandle, rect: Rect, opacity: f32) {
    let whole = Rect::from_min_max(pos2(0.0, 0.0), pos2(1.0, 1.0));
    let tint = Color32::WHITE.gamma_multiply(opacity);
    ui.painter().image(texture.id(), rect, whole, tint);
}

/// Puts a picture on the screen; its texture is made when it is another.
pub(super) fn show(place: &mut Option<Shown<Pixels>>, ui: &Ui, name: &str, pixels: Arc<Pixels>) {
    if place
        .as_ref()
        .is_some_and(|shown| Arc::ptr_eq(&shown.of, &pixels))
    {
        return;
    }
    let image = ColorImage::from_rgb([pixels.width, pixels.height], &pixels.rgb);
    match place {
        Some(shown) => {
            shown.texture.set(image, PIXELS);
            shown.of = pixels;
        }
        None => {
            let texture = ui.ctx().load_texture(name, image, PIXELS);
            *place = Some(Shown {
                of: pixels,
                texture,
            });
        }
    }
}

/// Puts a heat map on the screen.
pub(super) fn warm(place: &mut Option<Heat>, ui: &Ui, plane: &Plane) {
    if place.as_ref().is_some_and(|heat| heat.of == *plane) {
        return;
    }
    *place = Some(Heat {
        of: plane.clone(),
        texture: heat_texture(ui, plane),
    });
}

/// From nothing over red and yellow to white, the more opaque the hotter.
pub(super) fn heat(m: f32) -> Color32 {
    let m = if m.is_finite() {
        m.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let ramp = |start: f32| ((3.0 * m - start).clamp(0.0, 1.0) * 255.0) as u8;
    let opaque = ((0.15 + 0.85 * m) * 255.0) as u8;
    Color32::from_rgba_unmultiplied(ramp(0.0), ramp(1.0), ramp(2.0), opaque)
}

pub(super) fn heat_texture(ui: &Ui, plane: &Plane) -> TextureHandle {
    let pixels = plane.data.iter().map(|&m| heat(m)).collect();
    let image = ColorImage::new([plane.width, plane.height], pixels);
    ui.ctx()
        .load_texture("heat", image, TextureOptions::NEAREST)
}

/// The planes of a row, the strongest cell of each side being 1: of a thousand keys each has little.
pub(super) fn normalised(row: &GazeRow) -> Vec<(Whose, Plane)> {
    let most = |of: &dyn Fn(Whose) -> bool| {
        let planes = row.planes.iter().filter(|(whose, _)| of(*whose));
        let numbers = planes.flat_map(|(_, plane)| plane.data.iter().copied());
        numbers.fold(0.0, f32::max)
    };
    // References share one softmax, and so one scale.
    let reference = |whose: Whose| matches!(whose, Whose::Reference(_));
    let references = most(&reference);
    (row.planes.iter())
        .map(|(whose, plane)| {
            let top = match reference(*whose) {
                true => references,
                false => most(&|of| of == *whose),
            };
            let data = plane.data.iter().map(|m| m / top.max(f32::MIN_POSITIVE));
            let plane = Plane {
                data: data.collect(),
                ..*plane
            };
            (*whose, plane)
        })
        .collect()
}

/// Where a map is strongest, in words.
pub(super) fn strongest(plane: &Plane) -> String {
    let most = plane.data.iter().copied().enumerate();
    let most = most.max_by(|a, b| a.1.total_cmp(&b.1));
    // Of a look that goes nowhere there no place is the strongest.
    most.filter(|(_, most)| *most > 0.0)
        .map_or_else(String::new, |(index, _)| {
            let width = plane.width.max(1);
            format!(
                "strongest at row {}, column {}",
                index / width,
                index % width
            )
        })
}

/// What the step did with the query, in words.
pub(super) fn shares(gaze: &GazeAt) -> String {
    let queries = match gaze.queries_of {
        QueriesOf::Own => "the query is the picture's own",
        QueriesOf::Context => "the query is the context's",
    };
    match gaze.row.share {
        Some(share) => format!(
            "{queries}; {:.0} % of its output is taken from the reference, {:.0} % from the context",
            share * 100.0,
            (1.0 - share) * 100.0
        ),
        None => queries.to_owned(),
    }
}

/// A line that is seen on anything: on a darker one.
pub(super) fn line(painter: &egui::Painter, ends: [Pos2; 2], colour: Color32) {
    painter.line_segment(ends, Stroke::new(4.0, Color32::from_black_alpha(170)));
    painter.line_segment(ends, Stroke::new(2.0, colour));
}

pub(super) fn outline(painter: &egui::Painter, rect: Rect, plane: &Plane, colour: Color32) {
    let cell = rect.size() / vec2(plane.width.max(1) as f32, plane.height.max(1) as f32);
    let at = |x: f32, y: f32| rect.min + vec2(x, y) * cell;
    for [x0, y0, x1, y1] in outlines(plane) {
        line(painter, [at(x0, y0), at(x1, y1)], colour);
    }
}

/// Marks a cell of a grid.
pub(super) fn mark(
    painter: &egui::Painter,
    rect: Rect,
    (row, column): (usize, usize),
    (h, w): (usize, usize),
) {
    let cell = rect.size() / vec2(w.max(1) as f32, h.max(1) as f32);
    let min = rect.min + vec2(column as f32, row as f32) * cell;
    let cell = Rect::from_min_size(min, cell.max(Vec2::splat(3.0)));
    painter.rect_stroke(
        cell,
        0.0,
        Stroke::new(3.0, Color32::BLACK),
        StrokeKind::Outside,
    );
    painter.rect_stroke(
        cell,
        0.0,
        Stroke::new(1.5, Color32::WHITE),
        StrokeKind::Outside,
    );
}
