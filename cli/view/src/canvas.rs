//! The graph: boxes and links that can be zoomed, panned, searched, opened and selected, by pointer, keys or by name.

use std::collections::BTreeSet;
use std::sync::Arc;

use eframe::egui::{
    self, Align2, Color32, CornerRadius, FontId, Galley, Key, Mesh, Modifiers, MouseWheelUnit,
    Painter, Pos2, Rect, Response, Sense, Shape, Stroke, StrokeKind, Ui, Vec2, WidgetInfo,
    WidgetType, pos2, vec2,
};

use crate::layout::{self, HEADER, Item, Layout, Place, Route};
use crate::model::{Graph, Mark, Model};
use crate::theme::{Palette, chevron, symbol};

/// How far one can zoom.
const ZOOM: (f32, f32) = (0.08, 3.0);
/// Zooming to fit goes no nearer than this: a graph of two nodes need not fill the screen.
const FIT_MOST: f32 = 1.25;
/// Points around a graph that was fitted.
const MARGIN: f32 = 28.0;
/// Below this zoom a box has its name alone, below the second not even that.
const DETAILS: (f32, f32) = (0.5, 0.26);

/// What is selected and how the graph is looked at.
#[derive(Debug)]
pub struct Canvas {
    /// The name of the node or group that is selected.
    pub selected: Option<String>,
    /// The names of the groups that are open.
    pub open: BTreeSet<String>,
    /// What boxes must have in their name or op to stand out.
    pub search: String,
    zoom: f32,
    /// Where the graph's corner is, from that of the canvas.
    pan: Vec2,
    /// Whether the whole graph is kept in view, until it is moved by hand.
    fit: bool,
    /// Whether what is selected is brought into view.
    reveal: bool,
    /// Whether what is selected takes the focus of the keyboard, because the box before it had it.
    refocus: bool,
    /// Whether the box that was selected had the focus.
    focused: bool,
    layout: Arc<Layout>,
    shape: Option<u64>,
    /// The plan and the number of open groups that the shape was looked at for.
    looked: Option<(u64, BTreeSet<String>)>,
}

impl Default for Canvas {
    fn default() -> Self {
        Self {
            selected: None,
            open: BTreeSet::new(),
            search: String::new(),
            zoom: 1.0,
            pan: Vec2::ZERO,
            fit: true,
            reveal: false,
            refocus: false,
            focused: false,
            layout: Arc::default(),
            shape: None,
            looked: None,
        }
    }
}

/// The box that shows a node: itself, or the outermost closed group that it is in.
fn shown(graph: &Graph, open: &BTreeSet<String>, node: usize) -> Item {
    let mut item = Item::Node(node);
    let mut group = graph.nodes.get(node).and_then(|node| node.group);
    while let Some(at) = group {
        if !open.contains(&graph.groups[at].name) {
            item = Item::Group(at);
        }
        group = graph.groups[at].parent;
    }
    item
}

/// The name of a box.
fn name_of(graph: &Graph, item: Item) -> &str {
    match item {
        Item::Node(node) => graph.nodes[node].name(),
        Item::Group(group) => &graph.groups[group].name,
    }
}

impl Canvas {
    /// Where everything is; laid out anew only when the graph's shape or what is open changed.
    pub fn layout(&mut self, model: &Model) -> &Arc<Layout> {
        let looked = self.looked.as_ref();
        if looked.is_none_or(|(plans, open)| *plans != model.plans || *open != self.open) {
            let shape = layout::shape(&model.graph, &self.open);
            if self.shape != Some(shape) {
                self.layout = Arc::new(layout::layout(&model.graph, &self.open));
                self.shape = Some(shape);
            }
            self.looked = Some((model.plans, self.open.clone()));
        }
        &self.layout
    }

    /// The box that is selected.
    fn item(&self, graph: &Graph) -> Option<Item> {
        let name = self.selected.as_deref()?;
        match graph.node(name) {
            Some(node) => Some(shown(graph, &self.open, node)),
            None => graph.group(name).map(Item::Group),
        }
    }

    /// Selects a node or a group, opens the groups around it and brings it into view.
    pub fn select(&mut self, graph: &Graph, name: &str) {
        let mut group = match graph.node(name) {
            Some(node) => graph.nodes[node].group,
            None => graph
                .group(name)
                .and_then(|group| graph.groups[group].parent),
        };
        while let Some(at) = group {
            self.open.insert(graph.groups[at].name.clone());
            group = graph.groups[at].parent;
        }
        self.selected = Some(name.to_owned());
        self.reveal = true;
        self.refocus = self.focused;
    }

    /// Opens a group, or closes it.
    pub fn toggle(&mut self, name: &str) {
        if !self.open.remove(name) {
            self.open.insert(name.to_owned());
        }
    }

    /// Opens all groups, or closes them when all are open.
    pub fn toggle_all(&mut self, graph: &Graph) {
        let all: BTreeSet<String> = graph
            .groups
            .iter()
            .map(|group| group.name.clone())
            .collect();
        if all.is_subset(&self.open) {
            self.open.retain(|name| !all.contains(name));
        } else {
            self.open.extend(all);
        }
    }

    /// Whether the box that is selected has the focus of the keyboard.
    #[must_use]
    pub fn has_focus(&self) -> bool {
        self.focused
    }

    /// Brings the whole graph into view, and keeps it there.
    pub fn fit(&mut self) {
        self.fit = true;
    }

    /// Zooms about the middle of the canvas, as soon as it is drawn.
    pub fn zoom_by(&mut self, factor: f32, about: Vec2) {
        let zoom = (self.zoom * factor).clamp(ZOOM.0, ZOOM.1);
        self.pan = about - (about - self.pan) * (zoom / self.zoom);
        self.zoom = zoom;
        self.fit = false;
    }

    /// Whether a box is one of those that are searched for.
    fn matches(&self, graph: &Graph, item: Item) -> bool {
        let wanted = self.search.to_lowercase();
        let has = |node: usize| {
            let node = &graph.nodes[node];
            node.op.contains(&wanted)
                || node
                    .names
                    .iter()
                    .any(|name| name.to_lowercase().contains(&wanted))
        };
        match item {
            Item::Node(node) => has(node),
            Item::Group(group) => {
                let group = &graph.groups[group];
                group.name.to_lowercase().contains(&wanted)
                    || group.nodes.iter().any(|node| has(*node))
            }
        }
    }

    /// Selects the next of the nodes that are searched for, or the one before; gives how many there are.
    pub fn next_match(&mut self, graph: &Graph, back: bool) -> usize {
        let found: Vec<usize> = (0..graph.nodes.len())
            .filter(|node| self.matches(graph, Item::Node(*node)))
            .collect();
        let selected = self.selected.as_deref().and_then(|name| graph.node(name));
        let next = match back {
            false => (found
                .iter()
                .find(|node| selected.is_none_or(|at| **node > at)))
            .or(found.first()),
            true => (found
                .iter()
                .rev()
                .find(|node| selected.is_none_or(|at| **node < at)))
            .or(found.last()),
        };
        if let Some(next) = next {
            let name = graph.nodes[*next].name().to_owned();
            self.select(graph, &name);
        }
        found.len()
    }

    /// Selects the box that lies next in a direction: along links to the left and right, else by place.
    pub fn step(&mut self, model: &Model, direction: Vec2) {
        let graph = &model.graph;
        let layout = Arc::clone(self.layout(model));
        let from = self
            .item(graph)
            .and_then(|item| Some((item, layout.place(item)?)));
        let Some((item, place)) = from else {
            if let Some((first, _)) = layout.items.first() {
                let name = name_of(graph, *first).to_owned();
                self.select(graph, &name);
            }
            return;
        };
        let centre = |place: &Place| vec2(place.x + place.width / 2.0, place.middle());
        let linked = |other: Item| {
            let mut routes = layout.routes.iter();
            routes.any(|route| match direction.x > 0.0 {
                true => route.from == item && route.to == other,
                false => route.to == item && route.from == other,
            })
        };
        let best = (layout.items.iter())
            .filter(|(other, _)| *other != item)
            .filter_map(|(other, at)| {
                let way = centre(at) - centre(&place);
                let ahead = way.dot(direction);
                let aside = (way - direction * ahead).length();
                (ahead > 4.0).then(|| {
                    let near = direction.x != 0.0 && linked(*other);
                    (!near, ahead + 2.5 * aside, *other)
                })
            })
            .min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        if let Some((_, _, other)) = best {
            let name = name_of(graph, other).to_owned();
            self.select(graph, &name);
        }
    }

    /// Draws the graph into what room there is. Keys are taken when `keys` says so: when no text is being written.
    pub fn show(&mut self, ui: &mut Ui, model: &Model) -> Response {
        let graph = Arc::clone(&model.graph);
        let colours = Palette::of(ui);
        let (rect, response) = ui.allocate_exact_size(ui.available_size(), Sense::click_and_drag());
        response.widget_info(|| {
            let nodes = graph.nodes.len();
            WidgetInfo::labeled(WidgetType::Other, true, format!("graph of {nodes} nodes"))
        });
        let painter = ui.painter_at(rect);
        painter.rect_filled(rect, 0.0, colours.canvas);
        let layout = Arc::clone(self.layout(model));
        self.look(ui, &response, &layout, model);
        self.dots(&painter, rect, colours);
        if graph.nodes.is_empty() {
            let text = match model.faults.is_empty() {
                true => "nothing to show yet",
                false => "the workflow has faults: see Problems",
            };
            painter.text(
                rect.center(),
                Align2::CENTER_CENTER,
                text,
                FontId::proportional(15.0),
                colours.muted,
            );
            return response;
        }
        let selected = self.item(&graph);
        self.focused &= selected.is_some();
        let searching = !self.search.trim().is_empty();
        let pen = Pen {
            painter: &painter,
            colours,
            zoom: self.zoom,
            origin: rect.min + self.pan,
        };
        for (group, place) in &layout.frames {
            self.frame(ui, &pen, model, *group, pen.rect(place));
        }
        for route in &layout.routes {
            let touches = selected.is_some_and(|item| route.from == item || route.to == item);
            let dim = searching || (selected.is_some() && !touches);
            pen.route(route, touches, dim);
        }
        for (item, place) in &layout.items {
            let dim = searching && !self.matches(&graph, *item);
            self.card(
                ui,
                &pen,
                model,
                *item,
                pen.rect(place),
                selected == Some(*item),
                dim,
            );
        }
        if let Some(item) = selected
            && self.zoom >= DETAILS.0
        {
            for route in layout
                .routes
                .iter()
                .filter(|route| route.from == item || route.to == item)
            {
                pen.ports(&graph, route, item);
            }
        }
        if response.clicked() {
            self.selected = None;
        }
        response
    }

    /// Takes what pointer and wheel do, and fits and reveals.
    fn look(&mut self, ui: &Ui, response: &Response, layout: &Layout, model: &Model) {
        let rect = response.rect;
        if response.dragged() {
            self.pan += response.drag_delta();
            self.fit = false;
        }
        // Also over the boxes.
        let pointer = ui.input(|input| input.pointer.hover_pos());
        if let Some(pointer) = pointer.filter(|_| response.contains_pointer()) {
            let (zoom, scroll, wheel) = ui.input(|input| {
                let wheel = input.events.iter().any(|event| {
                    matches!(event, egui::Event::MouseWheel { unit, .. } if *unit != MouseWheelUnit::Point)
                });
                (input.zoom_delta(), input.smooth_scroll_delta, wheel)
            });
            let about = pointer - rect.min;
            if zoom != 1.0 {
                self.zoom_by(zoom, about);
            } else if wheel || (scroll.x == 0.0 && scroll.y != 0.0 && !self.touchpad(ui)) {
                self.zoom_by((scroll.y * 0.004).exp(), about);
            } else if scroll != Vec2::ZERO {
                self.pan += scroll;
                self.fit = false;
            }
        }
        let (width, height) = layout.size;
        if self.fit && width > 0.0 {
            let room = rect.size() - Vec2::splat(2.0 * MARGIN);
            let zoom = (room.x / width).min(room.y / height);
            self.zoom = zoom.clamp(ZOOM.0, FIT_MOST);
            self.pan = (rect.size() - vec2(width, height) * self.zoom) / 2.0;
        }
        if std::mem::take(&mut self.reveal)
            && let Some(place) = self.item(&model.graph).and_then(|item| layout.place(item))
        {
            let at = Rect::from_min_size(
                (vec2(place.x, place.y) * self.zoom + self.pan).to_pos2(),
                vec2(place.width, place.height) * self.zoom,
            );
            let inside = Rect::from_min_size(Pos2::ZERO, rect.size()).shrink(16.0);
            if !inside.contains_rect(at) {
                if !self.fit && self.zoom < DETAILS.0 {
                    self.zoom = 0.8;
                }
                let middle = vec2(place.x + place.width / 2.0, place.middle());
                self.pan = rect.size() / 2.0 - middle * self.zoom;
                self.fit = false;
            }
        }
    }

    /// Whether the last scrolling came from a touchpad, which moves; a wheel zooms.
    fn touchpad(&self, ui: &Ui) -> bool {
        let id = ui.id().with("touchpad");
        let unit = ui.input(|input| {
            input.events.iter().rev().find_map(|event| match event {
                egui::Event::MouseWheel { unit, .. } => Some(*unit == MouseWheelUnit::Point),
                _ => None,
            })
        });
        if let Some(unit) = unit {
            ui.data_mut(|data| data.insert_temp(id, unit));
        }
        ui.data(|data| data.get_temp(id)).unwrap_or(false)
    }

    /// A grid of dots, as one mesh: there are many.
    fn dots(&self, painter: &Painter, rect: Rect, colours: Palette) {
        let step = 28.0 * self.zoom;
        if step < 14.0 {
            return;
        }
        let start = vec2(self.pan.x.rem_euclid(step), self.pan.y.rem_euclid(step));
        let mut mesh = Mesh::default();
        let mut y = rect.top() + start.y;
        while y < rect.bottom() {
            let mut x = rect.left() + start.x;
            while x < rect.right() {
                let dot = Rect::from_center_size(pos2(x, y), Vec2::splat(1.5));
                mesh.add_colored_rect(dot, colours.dots);
                x += step;
            }
            y += step;
        }
        painter.add(mesh);
    }

    fn frame(&mut self, ui: &mut Ui, pen: &Pen<'_>, model: &Model, group: usize, rect: Rect) {
        let graph = &model.graph;
        let group = &graph.groups[group];
        let (colours, zoom) = (pen.colours, pen.zoom);
        let corner = CornerRadius::same((12.0 * zoom).clamp(2.0, 24.0) as u8);
        pen.painter.rect(
            rect,
            corner,
            colours.group.gamma_multiply(0.9),
            Stroke::new(1.0, colours.line),
            StrokeKind::Inside,
        );
        let header = Rect::from_min_size(rect.min, vec2(rect.width(), HEADER * zoom));
        let response = ui.interact(header, ui.id().with(("frame", &group.name)), Sense::CLICK);
        let (_, words, _) = model.state_of_group(group);
        response.widget_info(|| {
            let nodes = group.nodes.len();
            let label = format!("{}, open graph of {nodes} nodes, {words}", group.name);
            WidgetInfo::labeled(WidgetType::CollapsingHeader, true, label)
        });
        if zoom >= DETAILS.1 {
            let at = header.left_center() + vec2(16.0, 0.0) * zoom;
            let colour = if response.hovered() {
                colours.strong
            } else {
                colours.muted
            };
            chevron(pen.painter, at, 6.0 * zoom, true, colour);
            let font = pen.font(12.5);
            let at = at + vec2(12.0 * zoom, 0.0);
            pen.painter
                .text(at, Align2::LEFT_CENTER, &group.label, font, colour);
        }
        if response.clicked() {
            self.toggle(&group.name.clone());
            self.selected = Some(group.name.clone());
        }
    }

    // Long: one box: what it answers to, then what it shows, from top to bottom.
    #[allow(clippy::too_many_arguments)] // what a box is drawn of
    fn card(
        &mut self,
        ui: &mut Ui,
        pen: &Pen<'_>,
        model: &Model,
        item: Item,
        rect: Rect,
        selected: bool,
        dim: bool,
    ) {
        let graph = &model.graph;
        let id = ui.id().with(("box", name_of(graph, item)));
        // One stop of the Tab key for all boxes; the arrows go on from there.
        let sense = if selected {
            Sense::click()
        } else {
            Sense::CLICK
        };
        let response = ui.interact(rect, id, sense);
        let (words, brief);
        let (mark, share, label, below) = match item {
            Item::Node(node) => {
                let state = model.state_of(node);
                (words, brief) = (state.words(), state.brief());
                let node = &graph.nodes[node];
                (state.mark(), state.share(), &node.label, node.op)
            }
            Item::Group(group) => {
                let group = &graph.groups[group];
                let (mark, text, share) = model.state_of_group(group);
                (words, brief) = (text.clone(), text);
                (mark, share, &group.label, "")
            }
        };
        response.widget_info(|| {
            let name = name_of(graph, item);
            let text = match item {
                Item::Node(_) => format!("{name}, {below}, {words}"),
                Item::Group(group) => {
                    let nodes = graph.groups[group].nodes.len();
                    format!("{name}, closed graph of {nodes} nodes, {words}")
                }
            };
            WidgetInfo::selected(WidgetType::SelectableLabel, true, selected, text)
        });
        if response.clicked() {
            self.selected = Some(name_of(graph, item).to_owned());
            response.request_focus();
        }
        if selected {
            if std::mem::take(&mut self.refocus) {
                response.request_focus();
            }
            self.focused = response.has_focus();
            if self.focused {
                // The arrows go along the graph, not on to other widgets.
                let arrows = egui::EventFilter {
                    horizontal_arrows: true,
                    vertical_arrows: true,
                    ..egui::EventFilter::default()
                };
                ui.memory_mut(|memory| memory.set_focus_lock_filter(id, arrows));
            }
        }
        if let Item::Group(group) = item
            && response.double_clicked()
        {
            self.toggle(&graph.groups[group].name);
        }
        if !pen.painter.clip_rect().intersects(rect) {
            return;
        }
        let fade = if dim { 0.35 } else { 1.0 };
        let (colours, zoom) = (pen.colours, pen.zoom);
        let corner = CornerRadius::same((9.0 * zoom).clamp(1.0, 18.0) as u8);
        let colour = colours.mark(mark).gamma_multiply(fade);
        let fill = match dim {
            true => colours.card.lerp_to_gamma(colours.canvas, 0.6),
            false => colours.card,
        };
        if let Item::Group(_) = item {
            let behind = rect.translate(vec2(5.0, 5.0) * zoom);
            let stroke = Stroke::new(1.0, colours.line.gamma_multiply(fade));
            pen.painter
                .rect(behind, corner, colours.group, stroke, StrokeKind::Inside);
        }
        let stroke = match (selected, response.hovered(), mark) {
            (true, ..) => Stroke::new(2.0, colours.accent),
            (_, true, _) => Stroke::new(1.0, colours.muted),
            (_, _, Mark::Failed | Mark::Running) => Stroke::new(1.0, colour),
            _ => Stroke::new(1.0, colours.line.gamma_multiply(fade)),
        };
        pen.painter
            .rect(rect, corner, fill, stroke, StrokeKind::Inside);
        if zoom < DETAILS.1 {
            let inner = rect.shrink(3.0 * zoom);
            pen.painter
                .rect_filled(inner, corner, colour.gamma_multiply(0.8));
            return;
        }
        let inside = pen
            .painter
            .with_clip_rect(rect.intersect(pen.painter.clip_rect()));
        let left = rect.left() + 32.0 * zoom;
        let room = rect.right() - left - 10.0 * zoom;
        let strong = colours.strong.gamma_multiply(fade);
        let muted = colours.muted.gamma_multiply(fade);
        let details = zoom >= DETAILS.0;
        let name_y = if details {
            rect.top() + 17.0 * zoom
        } else {
            rect.center().y
        };
        symbol(
            &inside,
            pos2(rect.left() + 17.0 * zoom, name_y),
            6.0 * zoom,
            mark,
            colour,
        );
        // Where there is no room for more than the name, the name takes it.
        let size = if details {
            14.0
        } else {
            (9.5 / zoom).min(24.0)
        };
        pen.line(&inside, pos2(left, name_y), label, size, strong, room);
        if details {
            let count;
            let below = match item {
                Item::Node(_) => below,
                Item::Group(group) => {
                    count = format!("graph of {} nodes", graph.groups[group].nodes.len());
                    count.as_str()
                }
            };
            pen.line(
                &inside,
                pos2(left, rect.top() + 34.5 * zoom),
                below,
                11.5,
                muted,
                room,
            );
            pen.line(
                &inside,
                pos2(left, rect.top() + 50.5 * zoom),
                &brief,
                11.5,
                colour,
                room,
            );
        }
        if let Item::Group(_) = item {
            let at = pos2(rect.right() - 14.0 * zoom, rect.top() + 17.0 * zoom);
            chevron(&inside, at, 6.0 * zoom, false, muted);
        }
        if let Some(share) = share {
            let track = Rect::from_min_max(
                pos2(rect.left() + 2.0, rect.bottom() - 5.0 * zoom),
                pos2(rect.right() - 2.0, rect.bottom() - 2.0),
            );
            inside.rect_filled(track, 2.0, colours.line);
            let done = Rect::from_min_size(track.min, vec2(track.width() * share, track.height()));
            inside.rect_filled(done, 2.0, colour);
        }
    }

    /// Takes the keys of the graph; whether one was taken.
    pub fn keys(&mut self, ui: &Ui, model: &Model, room: Vec2) {
        let pressed = |modifiers: Modifiers, key: Key| {
            ui.input_mut(|input| input.consume_key(modifiers, key))
        };
        for (key, direction) in [
            (Key::ArrowLeft, vec2(-1.0, 0.0)),
            (Key::ArrowRight, vec2(1.0, 0.0)),
            (Key::ArrowUp, vec2(0.0, -1.0)),
            (Key::ArrowDown, vec2(0.0, 1.0)),
        ] {
            if pressed(Modifiers::NONE, key) {
                self.step(model, direction);
            }
            if pressed(Modifiers::SHIFT, key) {
                self.pan -= direction * 60.0;
                self.fit = false;
            }
        }
        if pressed(Modifiers::NONE, Key::F) {
            self.fit();
        }
        if pressed(Modifiers::NONE, Key::Plus) || pressed(Modifiers::NONE, Key::Equals) {
            self.zoom_by(1.25, room / 2.0);
        }
        if pressed(Modifiers::NONE, Key::Minus) {
            self.zoom_by(0.8, room / 2.0);
        }
        if pressed(Modifiers::NONE, Key::Num0) {
            self.zoom_by(1.0 / self.zoom, room / 2.0);
        }
        if pressed(Modifiers::NONE, Key::G) {
            self.toggle_all(&model.graph);
        }
        if pressed(Modifiers::NONE, Key::Enter)
            && let Some(name) = self.selected.clone()
            && model.graph.group(&name).is_some()
        {
            self.toggle(&name);
        }
        if pressed(Modifiers::NONE, Key::Backspace)
            && let Some(name) = self.selected.clone()
            && let Some((group, _)) = name.rsplit_once('/')
        {
            self.open.remove(group);
            self.selected = Some(group.to_owned());
        }
    }
}

/// What boxes and links are drawn with.
struct Pen<'a> {
    painter: &'a Painter,
    colours: Palette,
    zoom: f32,
    origin: Pos2,
}

impl Pen<'_> {
    fn at(&self, (x, y): (f32, f32)) -> Pos2 {
        self.origin + vec2(x, y) * self.zoom
    }

    fn rect(&self, place: &Place) -> Rect {
        let size = vec2(place.width, place.height) * self.zoom;
        Rect::from_min_size(self.at((place.x, place.y)), size)
    }

    /// A size of letters that few others are: each is drawn to the atlas of letters once.
    fn font(&self, size: f32) -> FontId {
        FontId::proportional(((size * self.zoom * 2.0).round() / 2.0).max(4.0))
    }

    /// A line of text with its middle at `at`, cut off with an ellipsis where there is no more room.
    fn line(&self, painter: &Painter, at: Pos2, text: &str, size: f32, colour: Color32, room: f32) {
        let galley = self.galley(text, size, colour, room);
        let corner = at - vec2(0.0, galley.size().y / 2.0);
        painter.galley(corner, galley, colour);
    }

    fn galley(&self, text: &str, size: f32, colour: Color32, room: f32) -> Arc<Galley> {
        let mut job =
            egui::text::LayoutJob::simple_singleline(text.to_owned(), self.font(size), colour);
        job.wrap = egui::text::TextWrapping::truncate_at_width(room);
        self.painter.layout_job(job)
    }

    fn route(&self, route: &Route, strong: bool, dim: bool) {
        let points: Vec<Pos2> = route.points.iter().map(|point| self.at(*point)).collect();
        let bounds = Rect::from_points(&points).expand(4.0);
        if !self.painter.clip_rect().intersects(bounds) {
            return;
        }
        let colour = self.colours.kind(route.kind);
        let colour = match (strong, dim) {
            (true, _) => colour,
            (false, true) => colour.gamma_multiply(0.3),
            (false, false) => colour.gamma_multiply(0.75),
        };
        let width = if strong { 2.4 } else { 1.6 } * self.zoom.clamp(0.5, 1.4);
        for line in curve(&points, self.painter.clip_rect()) {
            self.painter
                .add(Shape::line(line, Stroke::new(width, colour)));
        }
        if self.zoom >= DETAILS.1
            && let (Some(first), Some(last)) = (points.first(), points.last())
        {
            let radius = 3.2 * self.zoom.clamp(0.6, 1.4);
            self.painter.circle_filled(*first, radius, colour);
            self.painter.circle_filled(*last, radius, colour);
        }
    }

    /// The names of the ports of a link, at the box that is selected.
    fn ports(&self, graph: &Graph, route: &Route, item: Item) {
        let leaving = route.from == item;
        let mut names: Vec<&str> = (route.edges.iter())
            .map(|edge| {
                let edge = &graph.edges[*edge];
                if leaving {
                    edge.from_port
                } else {
                    edge.to_port
                }
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        let end = if leaving {
            route.points.first()
        } else {
            route.points.last()
        };
        let Some(end) = end else { return };
        let colour = self.colours.kind(route.kind);
        let galley = self.galley(&names.join(", "), 10.5, colour, 160.0 * self.zoom);
        let size = galley.size();
        let gap = 8.0 * self.zoom;
        let at = self.at(*end);
        let corner = match leaving {
            true => pos2(at.x + gap, at.y - size.y / 2.0),
            false => pos2(at.x - gap - size.x, at.y - size.y / 2.0),
        };
        let back = Rect::from_min_size(corner, size).expand2(vec2(3.0, 0.0));
        self.painter
            .rect_filled(back, 3.0, self.colours.canvas.gamma_multiply(0.85));
        self.painter.galley(corner, galley, colour);
    }
}

/// A smooth line that leaves and enters every point to the right, as far as it can be seen: a long link is cut into the parts
/// that are.
fn curve(points: &[Pos2], clip: Rect) -> Vec<Vec<Pos2>> {
    /// Points of the screen for a piece of a bend, and the most pieces.
    const PIECE: (f32, usize) = (9.0, 12);
    let mut lines: Vec<Vec<Pos2>> = Vec::new();
    let mut line: Vec<Pos2> = Vec::new();
    for pair in points.windows(2) {
        let [a, b] = pair else { continue };
        // Handles as long as half of the way, and never so short that a link that goes back is a needle.
        let reach = ((b.x - a.x).abs() / 2.0).max((b.y - a.y).abs().min(60.0) / 3.0);
        let bounds = Rect::from_two_pos(*a, *b).expand2(vec2(reach, 4.0));
        if !clip.intersects(bounds) {
            if line.len() > 1 {
                lines.push(std::mem::take(&mut line));
            }
            line.clear();
            continue;
        }
        if line.is_empty() {
            line.push(*a);
        }
        if (a.y - b.y).abs() < 0.5 && b.x >= a.x {
            line.push(*b);
            continue;
        }
        let (c, d) = (*a + vec2(reach, 0.0), *b - vec2(reach, 0.0));
        let pieces = ((a.distance(*b) / PIECE.0) as usize).clamp(3, PIECE.1);
        for piece in 1..=pieces {
            let t = piece as f32 / pieces as f32;
            let s = 1.0 - t;
            let point = a.to_vec2() * (s * s * s)
                + c.to_vec2() * (3.0 * s * s * t)
                + d.to_vec2() * (3.0 * s * t * t)
                + b.to_vec2() * (t * t * t);
            line.push(point.to_pos2());
        }
    }
    if line.len() > 1 {
        lines.push(line);
    }
    lines
}
