//! The panel at the side: what is selected, or the workflow as a whole.

use eframe::egui::{
    self, CollapsingHeader, Frame, Grid, Label, Margin, ProgressBar, RichText, ScrollArea, Sense,
    Stroke, Ui, WidgetInfo, WidgetType, vec2,
};
use retouch_common::duration;
use retouch_diffusion::checkpoint::memory::size;
use retouch_graph::event::RunStatus;
use retouch_graph::text;

use crate::editor::Spot;
use crate::model::{Group, Mark, Model, Node, Port, State};
use crate::shelf::{Look, Picture, Shelf, TableRow, Wanted};
use crate::theme::{Palette, symbol_in};

/// The longest value of a parameter that is shown whole.
const LONGEST: usize = 400;

/// What was done in the panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// This node or group is selected.
    Select(String),
    /// The group is opened or closed.
    Toggle(String),
    /// The editor is opened there.
    Open(Spot),
    /// This picture is looked at in full.
    Look(Wanted, String),
    /// This text is copied.
    Copy(String),
}

/// What the panel is drawn from.
pub struct Panel<'a> {
    /// What is shown.
    pub model: &'a Model,
    /// The name of the node or group that is selected.
    pub selected: Option<&'a str>,
    /// The values of the cache.
    pub shelf: Option<&'a Shelf>,
}

/// A heading of a section.
pub fn heading(ui: &mut Ui, text: &str) {
    ui.add_space(8.0);
    let colour = Palette::of(ui).muted;
    ui.label(RichText::new(text).small().strong().color(colour));
}

/// Whether values of the type are pictures.
#[must_use]
pub fn is_picture(kind: &str) -> bool {
    matches!(kind, "image" | "mask" | "photos" | "photo_masks")
}

fn shortened(text: &str) -> String {
    if text.is_empty() {
        return "\"\"".to_owned();
    }
    text::shortened(text, LONGEST + 1).into_owned()
}

impl Panel<'_> {
    /// Draws it; gives what was done.
    pub fn show(&self, ui: &mut Ui) -> Option<Act> {
        let graph = &self.model.graph;
        let mut act = None;
        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            ui.spacing_mut().item_spacing.y = 5.0;
            act = match self.selected {
                Some(name) => match (graph.node(name), graph.group(name)) {
                    (Some(node), _) => self.node(ui, node),
                    (None, Some(group)) => self.group(ui, &graph.groups[group]),
                    (None, None) => self.workflow(ui),
                },
                None => self.workflow(ui),
            };
        });
        act
    }

    fn workflow(&self, ui: &mut Ui) -> Option<Act> {
        let (model, graph) = (self.model, &self.model.graph);
        let colours = Palette::of(ui);
        let mut act = None;
        if model.plans == 0 {
            let text = "What is selected is shown here, once the workflow is valid.";
            ui.add(Label::new(RichText::new(text).color(colours.muted)).wrap());
            return None;
        }
        ui.add(
            Label::new(
                RichText::new(&graph.workflow)
                    .heading()
                    .color(colours.strong),
            )
            .wrap(),
        );
        let file = graph.file.display().to_string();
        ui.add(Label::new(RichText::new(file).small().color(colours.muted)).wrap());
        if !graph.outputs.is_empty() {
            heading(ui, "OUTPUTS");
        }
        for output in &graph.outputs {
            let Some(node) = graph.nodes.get(output.node) else {
                continue;
            };
            let wanted = Wanted {
                key: output.key,
                port: output.port.to_owned(),
                index: 0,
            };
            let shown = self.value(ui, &output.name, output.kind, &wanted);
            act = shown.or(act);
            ui.horizontal_wrapped(|ui| {
                symbol_in(ui, model.state_of(output.node).mark());
                let link = ui.link(RichText::new(node.name()).small());
                if link
                    .on_hover_text("select the node that makes it")
                    .clicked()
                {
                    act = Some(Act::Select(node.name().to_owned()));
                }
            });
            for saved in model.saved.get(&output.name).into_iter().flatten() {
                let text = saved.path.display().to_string();
                ui.add(Label::new(RichText::new(text).small().color(colours.muted)).truncate());
            }
            ui.add_space(4.0);
        }
        if !model.past.is_empty() {
            heading(ui, "RUNS OF THIS SESSION");
        }
        for past in model.past.iter().rev().take(8) {
            ui.horizontal(|ui| {
                let (mark, word) = match past.status {
                    RunStatus::Ok => (Mark::Done, "done"),
                    RunStatus::Failed => (Mark::Failed, "failed"),
                    RunStatus::Cancelled => (Mark::Stopped, "stopped"),
                };
                symbol_in(ui, mark);
                let text = format!(
                    "{word}, {} ran, {} kept, {} U-Net calls, {}",
                    past.ran,
                    past.reused,
                    past.calls,
                    duration(past.seconds)
                );
                ui.add(Label::new(RichText::new(text).small()).wrap());
            });
        }
        act
    }

    fn group(&self, ui: &mut Ui, group: &Group) -> Option<Act> {
        let colours = Palette::of(ui);
        let mut act = None;
        ui.add(Label::new(RichText::new(&group.name).heading().color(colours.strong)).wrap());
        let nodes = group.nodes.len();
        ui.label(
            RichText::new(format!("graph of {nodes} nodes"))
                .small()
                .color(colours.muted),
        );
        let (mark, words, _) = self.model.state_of_group(group);
        ui.horizontal(|ui| {
            symbol_in(ui, mark);
            ui.label(RichText::new(words).color(colours.mark(mark)));
        });
        if ui.button("Open or close").on_hover_text("Enter").clicked() {
            act = Some(Act::Toggle(group.name.clone()));
        }
        heading(ui, "NODES");
        for index in &group.nodes {
            let Some(node) = self.model.graph.nodes.get(*index) else {
                continue;
            };
            ui.horizontal(|ui| {
                symbol_in(ui, self.model.state_of(*index).mark());
                if ui.link(node.name()).clicked() {
                    act = Some(Act::Select(node.name().to_owned()));
                }
                ui.label(RichText::new(node.op).small().color(colours.muted));
            });
        }
        act
    }

    fn node(&self, ui: &mut Ui, index: usize) -> Option<Act> {
        let model = self.model;
        let node = model.graph.nodes.get(index)?;
        let state = model.state_of(index);
        let colours = Palette::of(ui);
        let mut act = None;
        ui.add(Label::new(RichText::new(node.name()).heading().color(colours.strong)).wrap());
        let summary = node.docs.split("\n\n").next().unwrap_or("");
        let summary = summary.split_whitespace().collect::<Vec<_>>().join(" ");
        ui.add(
            Label::new(RichText::new(format!("{}: {summary}", node.op)).color(colours.muted))
                .wrap(),
        );
        for other in node.names.iter().skip(1) {
            let text = format!("the same as {other}");
            ui.label(RichText::new(text).small().color(colours.muted));
        }
        self.state(ui, node, state);
        if let Some((source, span)) = &node.place {
            let (line, column) = source.line_column(span.start);
            let file = std::path::PathBuf::from(source.name());
            if file.is_file() && ui.button("Open in editor").on_hover_text("E").clicked() {
                act = Some(Act::Open(Spot { file, line, column }));
            }
        }
        heading(ui, "OUTPUTS");
        for port in &node.outputs {
            let kind = port.types.first().copied().unwrap_or("");
            let Some(key) = port.key else { continue };
            let wanted = Wanted {
                key,
                port: port.name.to_owned(),
                index: 0,
            };
            let title = format!("{}.{}", node.name(), port.name);
            act = self.output(ui, port, kind, &wanted, &title).or(act);
        }
        if !node.params.is_empty() {
            heading(ui, "PARAMETERS");
            let name_width = (ui.available_width() * 0.42).min(150.0);
            Grid::new(("params", node.name()))
                .num_columns(2)
                .spacing(vec2(12.0, 5.0))
                .show(ui, |ui| {
                    for (name, value) in &node.params {
                        ui.scope(|ui| {
                            ui.set_max_width(name_width);
                            ui.add(Label::new(RichText::new(name).color(colours.muted)).wrap());
                        });
                        ui.add(
                            Label::new(RichText::new(shortened(value)).color(colours.text)).wrap(),
                        );
                        ui.end_row();
                    }
                });
        }
        if node.inputs.iter().any(|port| !port.links.is_empty()) {
            heading(ui, "INPUTS");
        }
        for port in &node.inputs {
            for (from, from_port) in &port.links {
                let Some(from) = model.graph.nodes.get(*from) else {
                    continue;
                };
                ui.horizontal_wrapped(|ui| {
                    let kind = port.types.first().copied().unwrap_or("");
                    dot(ui, kind);
                    ui.label(RichText::new(port.name).color(colours.muted))
                        .on_hover_text(&port.docs);
                    if ui.link(format!("{}.{from_port}", from.name())).clicked() {
                        act = Some(Act::Select(from.name().to_owned()));
                    }
                });
            }
        }
        heading(ui, "KEY");
        ui.horizontal(|ui| {
            let text = node.key.to_string();
            ui.label(RichText::new(node.key.short()).monospace())
                .on_hover_text(&text);
            if ui.small_button("Copy key").clicked() {
                act = Some(Act::Copy(text));
            }
        });
        if node.docs.contains("\n\n") {
            let id = ("docs", node.op);
            CollapsingHeader::new(RichText::new("About this op").color(colours.muted))
                .id_salt(id)
                .show(ui, |ui| {
                    for paragraph in node.docs.split("\n\n").skip(1) {
                        let text = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
                        ui.add(Label::new(text).wrap());
                    }
                });
        }
        ui.add_space(12.0);
        act
    }

    fn state(&self, ui: &mut Ui, node: &Node, state: &State) {
        let colours = Palette::of(ui);
        let mark = state.mark();
        ui.horizontal_wrapped(|ui| {
            symbol_in(ui, mark);
            ui.label(RichText::new(state.words()).color(colours.mark(mark)));
        });
        if let Some(share) = state.share() {
            let bar = ProgressBar::new(share)
                .desired_height(6.0)
                .fill(colours.mark(mark));
            let response = ui.add(bar);
            response.widget_info(|| {
                let label = format!("progress of {}", node.name());
                WidgetInfo::labeled(WidgetType::ProgressIndicator, true, label)
            });
        }
        if let State::Failed { message, help } = state {
            ui.add(Label::new(RichText::new(message).color(colours.mark(Mark::Failed))).wrap());
            if let Some(help) = help {
                ui.add(Label::new(RichText::new(format!("help: {help}"))).wrap());
            }
        }
        let mut facts = Vec::new();
        // Why it would run is not what became of it: once it ran, its seconds say more.
        if matches!(
            state,
            State::Queued(_) | State::Running { .. } | State::Done { .. }
        ) {
            facts.push(node.why.clone());
        }
        if let Some(changed) = &node.changed {
            facts.push(format!("changed: {changed}"));
        }
        for fact in facts {
            ui.add(Label::new(RichText::new(shortened(&fact)).small().color(colours.text)).wrap());
        }
        let mut numbers = Vec::new();
        if let Some(took) = self.model.took.get(node.name()) {
            numbers.push(format!("took {}", duration(*took)));
        }
        if matches!(state, State::Queued(_) | State::Running { .. }) {
            numbers.extend(
                node.foretold
                    .map(|seconds| format!("about {}", duration(seconds))),
            );
        }
        if node.calls > 0 {
            numbers.push(format!("{} U-Net calls", node.calls));
        }
        if let Some((first, end)) = node.steps {
            numbers.push(match first {
                0 => format!("{end} steps"),
                first => format!("steps {first} to {end}"),
            });
        }
        numbers.extend(
            node.peak
                .filter(|peak| *peak > 0)
                .map(|peak| format!("up to {} of memory", size(peak))),
        );
        if !numbers.is_empty() {
            let text = RichText::new(numbers.join("  ·  "))
                .small()
                .color(colours.muted);
            ui.add(Label::new(text).wrap());
        }
    }

    fn output(
        &self,
        ui: &mut Ui,
        port: &Port,
        kind: &str,
        wanted: &Wanted,
        title: &str,
    ) -> Option<Act> {
        if is_picture(kind) {
            return self.value(ui, title, kind, wanted);
        }
        let colours = Palette::of(ui);
        ui.horizontal_wrapped(|ui| {
            dot(ui, kind);
            ui.label(RichText::new(port.name).color(colours.text))
                .on_hover_text(&port.docs);
            ui.label(RichText::new(kind).small().color(colours.muted));
            // What is only on disk is not read for a line of text.
            let place = self.shelf.and_then(|shelf| shelf.place(&wanted.key));
            if let Some(shelf) = self.shelf
                && place.is_some_and(|place| place != "disk")
                && let Look::Other(summary, bytes) | Look::Table(TableRow { summary, bytes, .. }) =
                    shelf.look(wanted, self.model.values)
            {
                ui.label(
                    RichText::new(format!("{summary}, {}", size(bytes as u64)))
                        .small()
                        .color(colours.muted),
                );
            }
        });
        None
    }

    /// A value with its picture, if it is one and is there.
    fn value(&self, ui: &mut Ui, title: &str, kind: &str, wanted: &Wanted) -> Option<Act> {
        let colours = Palette::of(ui);
        let look = match self.shelf {
            Some(shelf) if is_picture(kind) => Some(shelf.look(wanted, self.model.values)),
            _ => None,
        };
        ui.horizontal_wrapped(|ui| {
            dot(ui, kind);
            ui.label(RichText::new(title).color(colours.text));
            let about = match &look {
                Some(Look::Picture(picture)) => {
                    format!("{}, {}", picture.summary, size(picture.bytes as u64))
                }
                _ => kind.to_owned(),
            };
            ui.label(RichText::new(about).small().color(colours.muted));
        });
        match look {
            Some(Look::Picture(picture)) => {
                let side = ui.available_width().min(180.0);
                let clicked = thumbnail(ui, &picture, side, title);
                clicked.then(|| Act::Look(wanted.clone(), title.to_owned()))
            }
            Some(Look::Waiting) => {
                ui.label(RichText::new("fetching it").small().color(colours.muted));
                None
            }
            Some(Look::Failed(message)) => {
                ui.label(
                    RichText::new(message)
                        .small()
                        .color(colours.mark(Mark::Failed)),
                );
                None
            }
            _ => None,
        }
    }
}

/// A dot in the colour of a port's type.
fn dot(ui: &mut Ui, kind: &str) {
    let (rect, _) = ui.allocate_exact_size(vec2(10.0, 16.0), Sense::hover());
    ui.painter()
        .circle_filled(rect.center(), 4.0, Palette::of(ui).kind(kind));
}

/// A small picture that can be clicked.
pub fn thumbnail(ui: &mut Ui, picture: &Picture, side: f32, title: &str) -> bool {
    let colours = Palette::of(ui);
    let full = picture.texture.size_vec2();
    let scale = (side / full.x.max(full.y)).max(0.01);
    let frame = Frame::new()
        .fill(colours.canvas)
        .stroke(Stroke::new(1.0, colours.line))
        .inner_margin(Margin::same(1));
    let shown = frame.show(ui, |ui| {
        let image = egui::Image::new(&picture.texture)
            .fit_to_exact_size(full * scale)
            .sense(Sense::click());
        ui.add(image)
    });
    let response = shown.inner.on_hover_cursor(egui::CursorIcon::PointingHand);
    response
        .widget_info(|| WidgetInfo::labeled(WidgetType::Button, true, format!("picture {title}")));
    if response.has_focus() {
        ui.painter().rect_stroke(
            shown.response.rect,
            2.0,
            Stroke::new(2.0, colours.accent),
            egui::StrokeKind::Outside,
        );
    }
    response.clicked()
}
