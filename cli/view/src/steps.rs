//! The panel of steps: a scrubber over the latents of a sampler, and what its control looked at at each.

mod parts;
#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use eframe::egui::{
    self, Align2, Color32, FontId, Key, Pos2, Rect, Response, RichText, Sense, Stroke, StrokeKind,
    TextureFilter, TextureHandle, TextureOptions, Ui, Vec2, WidgetInfo, WidgetType, pos2, vec2,
};
use retouch_nodes::look::{Part, Place, Plane, Summary, Whose};

use self::parts::{
    draw, fit, heat_texture, hold_arrows, legend, line, mark, name_of, named, normalised, notice,
    outline, picture_id, scrubber_id, shares, show, side_of, strongest, tell, warm, where_is,
};
use super::looks::{Answer, GazeAt, Looks, Pixels, Reply, Request};

/// How long a latent is shown while the steps are played.
const FRAME: f64 = 0.125;
/// The steps that Page Up and Page Down go.
const PAGE: isize = 5;
/// The least and the most side of a picture, in points.
const SIDES: (f32, f32) = (96.0, 420.0);

/// The colours of the three masks' outlines, told apart by people who see fewer colours too (Okabe and Ito 2008).
const REFERENCE: Color32 = Color32::from_rgb(0xe6, 0x9f, 0x00);
const CONTEXT: Color32 = Color32::from_rgb(0x56, 0xb4, 0xe9);
const BLEND: Color32 = Color32::from_rgb(0xf0, 0x6c, 0xc0);

/// What the panel shows, and where the person is. One serves one node; another gets a new one.
#[derive(Default)]
pub struct Steps {
    /// The latent that is shown, 0 to T; the last until it is chosen.
    k: Option<usize>,
    image: usize,
    exact: bool,
    playing: bool,
    /// When the latent that is shown was come to.
    since: f64,
    masks: bool,
    words: bool,
    whose: Option<Whose>,
    /// The words that are looked for, where they are not the workflow's own.
    subject: Option<String>,
    opacity: Option<f32>,
    gaze: bool,
    site: Option<usize>,
    head: Option<usize>,
    /// Where the query is, in shares of the picture's width and height.
    query: Option<Vec2>,
    /// Whether the query stays where it is when the pointer moves.
    pinned: bool,
    summary: Option<Arc<Summary>>,
    /// What is on the screen, until what takes its place is there.
    picture: Option<Shown<Pixels>>,
    sources: Vec<(Whose, Shown<Pixels>)>,
    heat: Option<Heat>,
    looked: Option<Arc<GazeAt>>,
    looks: Vec<(Whose, Heat)>,
}

/// A picture and its texture.
struct Shown<T> {
    of: Arc<T>,
    texture: TextureHandle,
}

/// A heat map and its texture.
struct Heat {
    of: Plane,
    texture: TextureHandle,
}

/// Something that is not there, for the lines below the pictures.
struct Notice {
    what: &'static str,
    text: String,
    help: Option<String>,
    fault: bool,
}

const PIXELS: TextureOptions = TextureOptions {
    magnification: TextureFilter::Nearest,
    minification: TextureFilter::Linear,
    ..TextureOptions::NEAREST
};

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steps")
            .field("k", &self.k)
            .field("playing", &self.playing)
            .finish_non_exhaustive()
    }
}

impl Steps {
    /// Begins at the finished latent.
    #[cfg(test)]
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes to latent k, at most T.
    pub fn go_to(&mut self, k: usize) {
        self.k = Some(k);
        self.playing = false;
    }

    /// The latent that is shown, once it is known what there is.
    #[must_use]
    pub fn step(&self) -> Option<usize> {
        let last = self.summary.as_ref()?.steps;
        Some(self.k.unwrap_or(last).min(last))
    }

    /// Shows the masks' outlines, the cross-attention, the self-attention, or hides them.
    pub fn set_layers(&mut self, masks: bool, words: bool, gaze: bool) {
        (self.masks, self.words, self.gaze) = (masks, words, gaze);
    }

    /// Draws the panel and asks for what it shows.
    pub fn show(&mut self, ui: &mut Ui, looks: &mut dyn Looks) {
        looks.frame();
        let mut notices = Vec::new();
        match looks.ask(&Request::Summary) {
            Reply::Ready(Answer::Summary(summary)) => self.summary = Some(summary),
            // Which steps are kept is read again while a run goes on; what was known stays on the screen.
            other if self.summary.is_none() => notices.extend(notice("steps", other)),
            _ => {}
        }
        let Some(summary) = self.summary.clone() else {
            tell(ui, &notices);
            return;
        };
        egui::ScrollArea::vertical()
            .id_salt("steps")
            .auto_shrink([false, false])
            .show(ui, |ui| {
                let before = self.step();
                self.transport(ui, &summary);
                self.scrubber(ui, &summary);
                self.layers(ui, &summary, looks);
                self.pictures(ui, &summary, looks, &mut notices);
                tell(ui, &notices);
                self.keys(ui, &summary);
                if self.step() != before {
                    self.since = ui.input(|input| input.time);
                    ui.ctx().request_repaint();
                }
            });
        self.play(ui, &summary);
    }

    fn at(&self, summary: &Summary) -> usize {
        self.k.unwrap_or(summary.steps).min(summary.steps)
    }

    fn go_by(&mut self, steps: isize, summary: &Summary) {
        let to = self.at(summary).saturating_add_signed(steps);
        self.go_to(to.min(summary.steps));
    }

    /// The next latent when it is time for it.
    fn play(&mut self, ui: &Ui, summary: &Summary) {
        if !self.playing {
            return;
        }
        let (now, k) = (ui.input(|input| input.time), self.at(summary));
        if now - self.since >= FRAME {
            if k >= summary.steps {
                self.playing = false;
                return;
            }
            // What is not kept is passed over.
            let next =
                (k + 1..=summary.steps).find(|&k| summary.latents.get(k) != Some(&Place::Gone));
            self.k = Some(next.unwrap_or(summary.steps));
            self.since = now;
        }
        ui.ctx()
            .request_repaint_after(Duration::from_secs_f64(FRAME));
    }

    fn toggle(&mut self, ui: &Ui, summary: &Summary) {
        self.playing = !self.playing;
        if self.playing && self.at(summary) >= summary.steps {
            self.k = Some(0);
        }
        self.since = ui.input(|input| input.time);
        ui.ctx().request_repaint();
    }

    /// Play, where one is, which image.
    fn transport(&mut self, ui: &mut Ui, summary: &Summary) {
        ui.horizontal_wrapped(|ui| {
            let name = if self.playing { "Pause" } else { "Play" };
            if ui.button(name).on_hover_text("Space").clicked() {
                self.toggle(ui, summary);
            }
            let k = self.at(summary);
            ui.label(RichText::new(format!("latent {k} of {}", summary.steps)).strong());
            ui.label(where_is(summary, k));
            self.image = self.image.min(summary.images.saturating_sub(1));
            if summary.images > 1 {
                let mut number = self.image + 1;
                let drag = egui::DragValue::new(&mut number)
                    .range(1..=summary.images)
                    .prefix("image ")
                    .suffix(format!(" of {}", summary.images));
                let response = ui.add(drag);
                named(&response, WidgetType::DragValue, "Image of the batch");
                self.image = number.saturating_sub(1).min(summary.images - 1);
            }
            ui.checkbox(&mut self.exact, "By the VAE").on_hover_text(
                "decodes the latent as `decode` does; else by the linear map of previews",
            );
        });
    }

    /// The slider over the latents: which are kept, which steps swap, where one is.
    fn scrubber(&mut self, ui: &mut Ui, summary: &Summary) {
        let size = vec2(ui.available_width().max(SIDES.0), 30.0);
        let (rect, _) = ui.allocate_exact_size(size, Sense::hover());
        let response = ui.interact(rect, scrubber_id(), Sense::click_and_drag());
        let track = rect.shrink2(vec2(8.0, 0.0));
        let last = summary.steps.max(1) as f32;
        let place = |k: f32| track.left() + track.width() * k / last;
        if let Some(pointer) = response.interact_pointer_pos() {
            response.request_focus();
            let share = (pointer.x - track.left()) / track.width().max(1.0);
            let k = (share.clamp(0.0, 1.0) * last).round() as usize;
            self.go_to(k);
        }
        if response.has_focus() {
            hold_arrows(ui, &response);
        }
        self.accessible(ui, &response, summary);
        let k = self.at(summary);
        let visuals = ui.visuals();
        let painter = ui.painter();
        let (kept, gone) = (visuals.selection.stroke.color, visuals.weak_text_color());
        let middle = rect.center().y - 3.0;
        // A band under the steps that swap.
        if !summary.masks.is_empty() {
            let (from, to) = (
                place(summary.masks.start as f32),
                place(summary.masks.end as f32),
            );
            let band = Rect::from_x_y_ranges(from..=to, rect.bottom() - 7.0..=rect.bottom() - 4.0);
            painter.rect_filled(band, 1.5, BLEND.gamma_multiply(0.8));
        }
        painter.line_segment(
            [pos2(track.left(), middle), pos2(track.right(), middle)],
            Stroke::new(1.0, gone.gamma_multiply(0.6)),
        );
        let gap = track.width() / last;
        let radius = (gap * 0.32).clamp(1.0, 4.0);
        for (k, latent) in summary.latents.iter().enumerate() {
            let centre = pos2(place(k as f32), middle);
            match latent {
                Place::Kept(_) => {
                    painter.circle_filled(centre, radius, kept);
                }
                Place::Given => {
                    painter.circle_stroke(centre, radius, Stroke::new(1.0, kept));
                }
                Place::Gone => {
                    let half = vec2(0.0, radius);
                    painter.line_segment([centre - half, centre + half], Stroke::new(1.0, gone));
                }
            }
        }
        let handle = Rect::from_center_size(pos2(place(k as f32), middle), vec2(8.0, 18.0));
        let stroke = match response.has_focus() {
            true => Stroke::new(2.0, visuals.strong_text_color()),
            false => Stroke::new(1.5, visuals.text_color()),
        };
        painter.rect_stroke(handle, 3.0, stroke, StrokeKind::Middle);
        response.on_hover_ui_at_pointer(|ui| {
            ui.label(
                "dots: latents that are kept; rings: they come with the inputs; ticks: not kept",
            );
            if !summary.masks.is_empty() {
                ui.label("the band below: the steps that swap");
            }
        });
    }

    /// The slider for screen readers: its name and value, and what they can do with it.
    fn accessible(&mut self, ui: &Ui, response: &Response, summary: &Summary) {
        use egui::accesskit::{Action, ActionData};
        let by = ui.input(|input| {
            let requests = |action| input.num_accesskit_action_requests(response.id, action);
            requests(Action::Increment) as isize - requests(Action::Decrement) as isize
        });
        if by != 0 {
            self.go_by(by, summary);
        }
        let set = ui.input(|input| {
            let mut values = input.accesskit_action_requests(response.id, Action::SetValue);
            values.find_map(|request| match request.data {
                Some(ActionData::NumericValue(value)) => Some(value),
                _ => None,
            })
        });
        if let Some(value) = set.filter(|value| value.is_finite()) {
            self.go_to(value.max(0.0).round() as usize);
        }
        let (k, last) = (self.at(summary), summary.steps);
        response.widget_info(|| WidgetInfo::slider(true, k as f64, "Step"));
        ui.ctx().accesskit_node_builder(response.id, |node| {
            node.set_min_numeric_value(0.0);
            node.set_max_numeric_value(last as f64);
            node.set_numeric_value_step(1.0);
            node.add_action(Action::SetValue);
            node.add_action(Action::Increment);
            node.add_action(Action::Decrement);
        });
    }

    /// Keys that hold for the whole panel while the pointer is over it and nothing else has the focus.
    fn keys(&mut self, ui: &Ui, summary: &Summary) {
        let focused = ui.memory(|memory| memory.focused());
        let over = ui.rect_contains_pointer(ui.clip_rect());
        let own = focused.is_some_and(|id| id == scrubber_id() || id == picture_id());
        if !(own || (focused.is_none() && over)) {
            return;
        }
        let query = own && focused == Some(picture_id()) && self.gaze;
        let none = egui::Modifiers::NONE;
        let pressed = |key| ui.input_mut(|input| input.consume_key(none, key));
        let mut by = 0;
        if !query {
            by += isize::from(pressed(Key::ArrowRight)) - isize::from(pressed(Key::ArrowLeft));
        }
        by += PAGE * (isize::from(pressed(Key::PageDown)) - isize::from(pressed(Key::PageUp)));
        if by != 0 {
            self.go_by(by, summary);
        }
        if pressed(Key::Home) {
            self.go_to(0);
        }
        if pressed(Key::End) {
            self.go_to(summary.steps);
        }
        if pressed(Key::Space) {
            self.toggle(ui, summary);
        }
        if self.pinned && pressed(Key::Escape) {
            self.pinned = false;
        }
    }

    /// What is shown over and beside the picture.
    fn layers(&mut self, ui: &mut Ui, summary: &Summary, looks: &dyn Looks) {
        ui.horizontal_wrapped(|ui| {
            let has_masks = !summary.masks.is_empty();
            let masks = egui::Checkbox::new(&mut self.masks, "Masks");
            ui.add_enabled(has_masks, masks)
                .on_disabled_hover_text("this node does not swap, so it has no masks");
            ui.checkbox(&mut self.words, "Cross-attention");
            ui.checkbox(&mut self.gaze, "Self-attention");
            if self.masks && has_masks {
                for (name, colour) in legend(summary) {
                    let (rect, swatch) = ui.allocate_exact_size(vec2(16.0, 12.0), Sense::hover());
                    named(
                        &swatch,
                        WidgetType::Image,
                        &format!("colour of the {name} mask"),
                    );
                    line(
                        ui.painter(),
                        [rect.left_center(), rect.right_center()],
                        colour,
                    );
                    ui.label(name);
                }
            }
        });
        if self.words {
            ui.horizontal_wrapped(|ui| self.words_options(ui, summary, looks));
        }
        if self.gaze {
            ui.horizontal_wrapped(|ui| self.gaze_options(ui, summary));
        }
    }

    /// Whose cross-attention is shown.
    fn whose(&self, summary: &Summary) -> Whose {
        match self.whose {
            Some(Whose::Reference(index)) if index < summary.references => Whose::Reference(index),
            Some(Whose::Context) if summary.references > 0 => Whose::Context,
            _ => Whose::Own,
        }
    }

    fn words_of(&self, summary: &Summary, looks: &dyn Looks) -> String {
        let own = || looks.subject(self.whose(summary));
        let own = self.subject.clone().or_else(own);
        own.or_else(|| summary.subject.clone()).unwrap_or_default()
    }

    fn words_options(&mut self, ui: &mut Ui, summary: &Summary, looks: &dyn Looks) {
        let mut words = self.words_of(summary, looks);
        let label = ui.label("words");
        let width = 150.0f32.min(ui.available_width());
        let edit = egui::TextEdit::singleline(&mut words).desired_width(width);
        let response = ui.add(edit.hint_text("teddy bear")).labelled_by(label.id);
        if response.changed() {
            self.subject = Some(words);
        }
        if summary.references > 0 {
            let chosen = self.whose(summary);
            egui::ComboBox::from_label("branch")
                .selected_text(name_of(chosen, summary))
                .show_ui(ui, |ui| {
                    let references = (0..summary.references).map(Whose::Reference);
                    for whose in [Whose::Own, Whose::Context].into_iter().chain(references) {
                        let name = name_of(whose, summary);
                        if ui.selectable_label(whose == chosen, name).clicked() {
                            // Each branch has its own words for the subject.
                            (self.whose, self.subject) = (Some(whose), None);
                        }
                    }
                });
        }
        let mut opacity = self.opacity();
        let slider = egui::Slider::new(&mut opacity, 0.0..=1.0).show_value(false);
        ui.add(slider.text("opacity"));
        self.opacity = Some(opacity);
    }

    fn opacity(&self) -> f32 {
        self.opacity.unwrap_or(0.7)
    }

    /// The site that is looked at: the first that is swapped until one is chosen.
    fn site(&self, summary: &Summary) -> Option<usize> {
        let there = |index: &usize| summary.sites.iter().any(|site| site.index == *index);
        let swapped = summary.sites.iter().find(|site| site.swapped);
        let first = swapped.or_else(|| summary.sites.last());
        self.site.filter(there).or(first.map(|site| site.index))
    }

    fn gaze_options(&mut self, ui: &mut Ui, summary: &Summary) {
        let Some(index) = self.site(summary) else {
            ui.label("this model has no self-attention site");
            return;
        };
        let name = |index: usize| {
            let site = summary.sites.iter().find(|site| site.index == index);
            site.map_or_else(String::new, |site| {
                let part = match site.part {
                    Part::Down => "down",
                    Part::Mid => "mid",
                    Part::Up => "up",
                };
                let swapped = if site.swapped { ", swapped" } else { "" };
                format!("{index}: {part} {}x{}{swapped}", site.grid.0, site.grid.1)
            })
        };
        egui::ComboBox::from_label("site")
            .selected_text(name(index))
            .show_ui(ui, |ui| {
                for site in &summary.sites {
                    let chosen = site.index == index;
                    if ui.selectable_label(chosen, name(site.index)).clicked() {
                        self.site = Some(site.index);
                    }
                }
            });
        let heads = summary.sites.iter().find(|site| site.index == index);
        let heads = heads.map_or(1, |site| site.heads.count);
        self.head = self.head.filter(|head| *head < heads);
        let name = |head: Option<usize>| match head {
            Some(head) => format!("{head}"),
            None => "mean".to_owned(),
        };
        egui::ComboBox::from_label("head")
            .selected_text(name(self.head))
            .width(60.0)
            .show_ui(ui, |ui| {
                for head in std::iter::once(None).chain((0..heads).map(Some)) {
                    if ui.selectable_label(head == self.head, name(head)).clicked() {
                        self.head = head;
                    }
                }
            });
    }

    /// Row and column of the query on a grid.
    fn cell(&self, (h, w): (usize, usize)) -> (usize, usize) {
        let at = self.query.unwrap_or(Vec2::splat(0.5));
        let index = |share: f32, n: usize| ((share * n as f32) as usize).min(n.saturating_sub(1));
        (index(at.y, h), index(at.x, w))
    }

    /// Puts the query on a cell of a grid, in its middle.
    fn set_cell(&mut self, (row, column): (usize, usize), (h, w): (usize, usize)) {
        let share = |index: usize, n: usize| (index as f32 + 0.5) / n.max(1) as f32;
        self.query = Some(vec2(share(column, w), share(row, h)));
    }

    /// The picture with its layers, and beside it where the query looks.
    // Long: one layout pass over the pictures of a step.
    fn pictures(
        &mut self,
        ui: &mut Ui,
        summary: &Summary,
        looks: &mut dyn Looks,
        notices: &mut Vec<Notice>,
    ) {
        let (k, image) = (self.at(summary), self.image);
        self.ask_picture(ui, summary, looks, notices);
        let step = |notices: &mut Vec<Notice>, what| {
            let own = k >= summary.first && k < summary.steps;
            if !own {
                let text = match k < summary.first {
                    true => format!(
                        "steps before {} are the context's own: look at them at its node",
                        summary.first
                    ),
                    false => "the last latent has no step after it".to_owned(),
                };
                notices.push(Notice {
                    what,
                    text,
                    help: None,
                    fault: false,
                });
            }
            own
        };
        let mut masks = None;
        if self.masks && !summary.masks.is_empty() {
            if summary.masks.contains(&k) {
                match looks.ask(&Request::Masks { k }) {
                    Reply::Ready(Answer::Masks(found)) => masks = Some(found),
                    other => notices.extend(notice("masks", other)),
                }
            } else {
                notices.push(Notice {
                    what: "masks",
                    text: format!(
                        "this step does not swap; steps {} to {} do",
                        summary.masks.start,
                        summary.masks.end.saturating_sub(1)
                    ),
                    help: None,
                    fault: false,
                });
            }
        }
        if self.words && step(notices, "cross-attention") {
            self.ask_words(ui, k, summary, looks, notices);
        } else {
            self.heat = None;
        }
        let site = self.gaze.then(|| self.site(summary)).flatten();
        let site = site.filter(|_| step(notices, "self-attention"));
        let grid = site.and_then(|index| {
            let site = summary.sites.iter().find(|site| site.index == index);
            site.map(|site| site.grid)
        });
        if let (Some(site), Some(grid)) = (site, grid) {
            self.ask_gaze(ui, k, site, grid, looks, notices);
        } else {
            (self.looked, self.looks) = (None, Vec::new());
        }
        let others = self.looks.len();
        let side = side_of(ui, others + 1);
        let size = fit(side, summary.latent);
        ui.horizontal_wrapped(|ui| {
            ui.vertical(|ui| {
                ui.set_max_width(side);
                let rect = self.main_picture(ui, size, k, summary, grid);
                if let Some(heat) = &self.heat {
                    draw(ui, &heat.texture, rect, self.opacity());
                }
                if let Some(masks) = &masks {
                    let pick = |planes: &[Plane]| -> Option<Plane> {
                        let index = if planes.len() == 1 { 0 } else { image };
                        planes.get(index).cloned()
                    };
                    let references = masks.references.iter().filter_map(|planes| pick(planes));
                    let planes = references
                        .map(|plane| (plane, REFERENCE))
                        .chain(pick(&masks.context).map(|plane| (plane, CONTEXT)))
                        .chain(pick(&masks.blend).map(|plane| (plane, BLEND)));
                    for (plane, colour) in planes {
                        outline(ui.painter(), rect, &plane, colour);
                    }
                }
                if let Some(grid) = grid {
                    let cell = self.cell(grid);
                    mark(ui.painter(), rect, cell, grid);
                    let pinned = if self.pinned { ", pinned" } else { "" };
                    ui.label(format!(
                        "query at row {}, column {}{pinned}",
                        cell.0, cell.1
                    ));
                }
            });
            for (whose, heat) in &self.looks {
                ui.vertical(|ui| {
                    ui.set_max_width(side);
                    let size = fit(side, heat.of.grid());
                    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
                    let name = format!("Self-attention to {}", name_of(*whose, summary));
                    named(&response, WidgetType::Image, &name);
                    ui.painter().rect_filled(rect, 0.0, Color32::BLACK);
                    let under = match whose {
                        Whose::Own => self.picture.as_ref(),
                        _ => (self.sources.iter())
                            .find(|(of, _)| of == whose)
                            .map(|(_, source)| source),
                    };
                    if let Some(under) = under {
                        draw(ui, &under.texture, rect, 0.55);
                    }
                    draw(ui, &heat.texture, rect, 1.0);
                    ui.label(name_of(*whose, summary));
                    ui.label(RichText::new(strongest(&heat.of)).weak());
                });
            }
        });
        if let Some(looked) = self.looked.as_ref().filter(|_| grid.is_some()) {
            ui.label(shares(looked));
        }
    }

    fn ask_picture(
        &mut self,
        ui: &Ui,
        summary: &Summary,
        looks: &mut dyn Looks,
        notices: &mut Vec<Notice>,
    ) {
        let k = self.at(summary);
        if summary.latents.get(k) == Some(&Place::Gone) {
            self.picture = None;
        }
        let request = |exact| Request::Picture {
            k,
            image: self.image,
            exact,
        };
        let mut reply = looks.ask(&request(self.exact));
        // While the VAE is at it the quick picture of the same latent stands in.
        if self.exact && matches!(reply, Reply::Working(_) | Reply::Waiting(_)) {
            let quick = looks.ask(&request(false));
            if let Reply::Ready(_) = quick {
                notices.extend(notice("picture", std::mem::replace(&mut reply, quick)));
            }
        }
        match reply {
            Reply::Ready(Answer::Picture(pixels)) => show(&mut self.picture, ui, "latent", pixels),
            other => {
                if matches!(other, Reply::Failed { .. }) {
                    self.picture = None;
                }
                notices.extend(notice("picture", other));
            }
        }
    }

    fn ask_words(
        &mut self,
        ui: &Ui,
        k: usize,
        summary: &Summary,
        looks: &mut dyn Looks,
        notices: &mut Vec<Notice>,
    ) {
        let subject = self.words_of(summary, looks);
        if subject.trim().is_empty() {
            self.heat = None;
            notices.push(Notice {
                what: "cross-attention",
                text: "name the words that are looked for".to_owned(),
                help: None,
                fault: false,
            });
            return;
        }
        let whose = self.whose(summary);
        match looks.ask(&Request::Words { k, whose, subject }) {
            Reply::Ready(Answer::Words(planes)) => {
                let index = if planes.len() == 1 { 0 } else { self.image };
                match planes.get(index) {
                    Some(plane) => warm(&mut self.heat, ui, plane),
                    None => self.heat = None,
                }
            }
            other => {
                self.heat = None;
                notices.extend(notice("cross-attention", other));
            }
        }
    }

    fn ask_gaze(
        &mut self,
        ui: &Ui,
        k: usize,
        site: usize,
        grid: (usize, usize),
        looks: &mut dyn Looks,
        notices: &mut Vec<Notice>,
    ) {
        let request = Request::Gaze {
            k,
            site,
            image: self.image,
            at: self.cell(grid),
            head: self.head,
        };
        match looks.ask(&request) {
            Reply::Ready(Answer::Gaze(gaze)) => {
                let planes = normalised(&gaze.row);
                if planes.len() != self.looks.len()
                    || planes.iter().zip(&self.looks).any(|(a, b)| a.0 != b.0)
                {
                    self.looks.clear();
                }
                for (index, (whose, plane)) in planes.into_iter().enumerate() {
                    let old = self
                        .looks
                        .get(index)
                        .is_some_and(|(_, heat)| heat.of == plane);
                    if old {
                        continue;
                    }
                    let texture = heat_texture(ui, &plane);
                    let heat = Heat { of: plane, texture };
                    match self.looks.get_mut(index) {
                        Some(place) => *place = (whose, heat),
                        None => self.looks.push((whose, heat)),
                    }
                }
                self.looked = Some(gaze);
            }
            // What the pointer was over before stays until the next is there.
            Reply::Working(what) if what.is_empty() => {}
            other => {
                (self.looked, self.looks) = (None, Vec::new());
                notices.extend(notice("self-attention", other));
            }
        }
        let sources: Vec<Whose> = (self.looks.iter())
            .map(|(whose, _)| *whose)
            .filter(|whose| *whose != Whose::Own)
            .collect();
        for whose in sources {
            let image = self.image;
            // Without it the heat map lies on black.
            if let Reply::Ready(Answer::Picture(pixels)) =
                looks.ask(&Request::Source { whose, image })
            {
                let at = self.sources.iter().position(|(of, _)| *of == whose);
                let mut shown = at.map(|at| self.sources.swap_remove(at).1);
                show(&mut shown, ui, "source", pixels);
                self.sources.extend(shown.map(|shown| (whose, shown)));
            }
        }
    }

    /// The latent's picture; the query follows the pointer over it, a click pins it, arrows move it.
    fn main_picture(
        &mut self,
        ui: &mut Ui,
        size: Vec2,
        k: usize,
        summary: &Summary,
        grid: Option<(usize, usize)>,
    ) -> Rect {
        let (rect, _) = ui.allocate_exact_size(size, Sense::hover());
        let response = ui.interact(rect, picture_id(), Sense::click_and_drag());
        let name = format!("Latent {k} of {}, image {}", summary.steps, self.image + 1);
        named(&response, WidgetType::Image, &name);
        ui.painter()
            .rect_filled(rect, 0.0, ui.visuals().extreme_bg_color);
        match &self.picture {
            Some(picture) => draw(ui, &picture.texture, rect, 1.0),
            None => {
                let text = match summary.latents.get(k) {
                    Some(Place::Gone) => "not kept",
                    _ => "...",
                };
                let (font, colour) = (FontId::proportional(13.0), ui.visuals().weak_text_color());
                ui.painter()
                    .text(rect.center(), Align2::CENTER_CENTER, text, font, colour);
            }
        }
        if response.has_focus() {
            let stroke = Stroke::new(2.0, ui.visuals().selection.stroke.color);
            ui.painter()
                .rect_stroke(rect, 0.0, stroke, StrokeKind::Outside);
            hold_arrows(ui, &response);
        }
        let Some(grid) = grid else {
            return rect;
        };
        let share = |at: Pos2| {
            let at = (at - rect.min) / rect.size().max(Vec2::splat(1.0));
            at.clamp(Vec2::ZERO, Vec2::splat(0.999))
        };
        let before = self.cell(grid);
        if let Some(at) = response.interact_pointer_pos() {
            response.request_focus();
            self.query = Some(share(at));
            if response.dragged() {
                self.pinned = true;
            } else if response.clicked() {
                // A second click on the same cell lets it go.
                self.pinned = !(self.pinned && self.cell(grid) == before);
            }
        } else if let Some(at) = response.hover_pos().filter(|_| !self.pinned) {
            self.query = Some(share(at));
        }
        if response.has_focus() {
            let pressed = |key| {
                let pressed =
                    |input: &mut egui::InputState| input.consume_key(egui::Modifiers::NONE, key);
                isize::from(ui.input_mut(pressed))
            };
            let down = pressed(Key::ArrowDown) - pressed(Key::ArrowUp);
            let right = pressed(Key::ArrowRight) - pressed(Key::ArrowLeft);
            if (down, right) != (0, 0) {
                let (row, column) = self.cell(grid);
                let to = |from: usize, by: isize, n: usize| {
                    from.saturating_add_signed(by).min(n.saturating_sub(1))
                };
                self.set_cell((to(row, down, grid.0), to(column, right, grid.1)), grid);
                self.pinned = true;
            }
        }
        if self.cell(grid) != before {
            ui.ctx().request_repaint();
        }
        rect
    }
}
