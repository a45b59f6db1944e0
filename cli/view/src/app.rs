//! The window: what is where, the keys, and what is requested.

use std::path::PathBuf;
use std::sync::Arc;

use eframe::egui::{
    self, Align, CentralPanel, Color32, Context, Event, FontId, Frame, Grid, Id, Key, Label,
    Layout, Margin, Modal, Modifiers, RichText, ScrollArea, SidePanel, Stroke, TextEdit,
    TopBottomPanel, Ui, ViewportCommand, WidgetInfo, WidgetType, vec2,
};

use retouch_common::watching::Request;
use retouch_graph::Engine;

use crate::canvas::Canvas;
use crate::editor::{self, Spot};
use crate::feed::Desk;
use crate::gallery::Gallery;
use crate::memory::{Colours, Memory};
use crate::model::{Mark, Model, Phase};
use crate::panel::{Act, Panel};
use crate::problems::ProblemsPanel;
use crate::shelf::{Shelf, Wanted};
use crate::stepping::Stepping;
use crate::theme::{self, Palette, symbol_in};
use crate::tries::Tries;

/// Below this width or height there is room for one area at a time.
const NARROW: (f32, f32) = (760.0, 460.0);

/// The areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tab {
    /// The graph; in a narrow window an area like the others.
    Graph,
    /// What is selected; in a narrow window an area like the others.
    Node,
    /// The pictures.
    Pictures,
    /// The steps of a sampler.
    Steps,
    /// The params, to be tried.
    Params,
    /// The faults.
    Problems,
}

impl Tab {
    /// The areas below the graph, in the order of their keys.
    const BELOW: [Self; 4] = [Self::Pictures, Self::Steps, Self::Params, Self::Problems];
    /// All areas, as a narrow window has them.
    const ALL: [Self; 6] = [
        Self::Graph,
        Self::Node,
        Self::Pictures,
        Self::Steps,
        Self::Params,
        Self::Problems,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Graph => "Graph",
            Self::Node => "Node",
            Self::Pictures => "Pictures",
            Self::Steps => "Steps",
            Self::Params => "Params",
            Self::Problems => "Problems",
        }
    }

    fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tab| tab.name() == name)
    }
}

/// What the keys do, for the overlay of help.
const KEYS: &[(&str, &[(&str, &str)])] = &[
    (
        "Graph",
        &[
            ("← → ↑ ↓", "select the next node along links, or by place"),
            ("Enter", "open or close the group that is selected"),
            ("Backspace", "close the group around the selected node"),
            ("G", "open all groups, or close them"),
            ("F", "fit the graph into view"),
            ("+  −  0", "zoom in, out, to full size; or the wheel"),
            ("Shift + arrows", "move the view; or drag"),
            ("/  or Ctrl + F", "search; Enter goes to the next match"),
            ("E", "open the editor at the selected node"),
        ],
    ),
    (
        "Run",
        &[
            ("R  or F5", "read the file again and run"),
            (".", "stop the run"),
        ],
    ),
    (
        "Pictures, while the picture has the focus",
        &[
            ("S  W  B  D", "single, wipe, blink, difference"),
            ("+  −  0  1", "zoom in, out, fit, one to one"),
            ("← → ↑ ↓", "move"),
            ("[  ]", "move the line of a wipe"),
        ],
    ),
    (
        "Steps, while the scrubber has the focus",
        &[
            ("← →", "a step back, a step on"),
            ("Page Up  Page Down", "five steps"),
            ("Home  End", "the first, the last"),
            ("Space", "play"),
        ],
    ),
    (
        "Params",
        &[
            ("Ctrl + S", "show what would be written to the file"),
            ("Ctrl + Shift + C", "copy what is tried as YAML"),
            ("Ctrl + Shift + R", "go back to what the file says"),
        ],
    ),
    (
        "Window",
        &[
            ("1  2  3  4", "pictures, steps, params, problems"),
            ("B", "show or hide the areas below the graph"),
            ("M", "the areas below in place of the graph, and back"),
            ("I", "show or hide the panel at the side"),
            ("N  P  O", "problems: next, previous, open in the editor"),
            ("T", "colours: the system's, dark, light"),
            ("Tab", "the next control"),
            ("Esc", "leave what is open, or what is selected"),
            ("Ctrl + Q", "close the window; a run continues to its end"),
            ("?", "this list"),
        ],
    ),
];

/// The window.
pub struct App {
    desk: Arc<Desk>,
    /// Sends a request to the loop.
    request: Box<dyn Fn(Request) + Send>,
    engine: Option<Engine>,
    shelf: Option<Shelf>,
    model: Model,
    canvas: Canvas,
    gallery: Gallery,
    stepping: Stepping,
    tries: Tries,
    problems: ProblemsPanel,
    tab: Tab,
    memory: Memory,
    memory_file: Option<PathBuf>,
    help: bool,
    /// Whether the areas below the graph stand in its stead.
    full: bool,
    /// Whether the search takes the keyboard in the next frame.
    to_search: bool,
    /// What was done last, or went wrong.
    notice: Option<String>,
    /// Whether the window goes with the loop.
    ends: bool,
    /// What is selected as soon as it is there.
    wanted: Option<String>,
    /// The room that the graph had in the last frame.
    room: egui::Vec2,
    /// The title that the window has.
    title: String,
    /// Whether what was open the last time was opened.
    remembered: bool,
    /// Whether a frame was drawn.
    begun: bool,
}

/// What a window begins with.
pub struct Start {
    /// What the loop reports.
    pub desk: Arc<Desk>,
    /// Sends a request to the loop.
    pub request: Box<dyn Fn(Request) + Send>,
    /// The engine that runs the workflow, with its values and ops.
    pub engine: Option<Engine>,
    /// What is remembered.
    pub memory: Memory,
    /// Where it is remembered; `None`: nowhere.
    pub memory_file: Option<PathBuf>,
    /// What is selected.
    pub select: Option<String>,
    /// The step that is looked at.
    pub step: Option<usize>,
    /// The area in front.
    pub tab: Option<Tab>,
    /// Whether the window goes with the loop.
    pub ends: bool,
}

impl App {
    /// Makes one.
    #[must_use]
    pub fn new(start: Start) -> Self {
        let tab = start.tab.or_else(|| Tab::by_name(&start.memory.tab));
        let mut stepping = Stepping::default();
        if let Some(step) = start.step {
            stepping.go_to(step);
        }
        Self {
            desk: start.desk,
            request: start.request,
            engine: start.engine,
            shelf: None,
            model: Model::default(),
            canvas: Canvas::default(),
            gallery: Gallery::default(),
            stepping,
            tries: Tries::default(),
            problems: ProblemsPanel::default(),
            tab: tab.unwrap_or(Tab::Graph),
            memory: start.memory,
            memory_file: start.memory_file,
            help: false,
            full: false,
            to_search: false,
            notice: None,
            ends: start.ends,
            wanted: start.select,
            room: egui::Vec2::ZERO,
            title: String::new(),
            remembered: false,
            begun: false,
        }
    }

    /// Whether nothing is being fetched.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.shelf.as_ref().is_none_or(Shelf::idle) && self.stepping.idle()
    }

    /// What is selected.
    #[cfg(test)]
    #[must_use]
    pub fn selected(&self) -> Option<&str> {
        self.canvas.selected.as_deref()
    }

    /// Draws everything.
    pub fn ui(&mut self, ctx: &Context) {
        if !std::mem::replace(&mut self.begun, true) {
            theme::install(ctx);
            apply(ctx, self.memory.colours);
            let cache = self
                .engine
                .as_ref()
                .map(|engine| Arc::clone(engine.cache()));
            self.shelf = cache.map(|cache| Shelf::new(cache, ctx));
        }
        self.take_in(ctx);
        self.stepping.keep_up(&self.model);
        self.global_keys(ctx);
        let size = ctx.content_rect().size();
        let narrow = size.x < NARROW.0 || size.y < NARROW.1;
        self.bar(ctx, narrow);
        if narrow {
            self.narrow(ctx);
        } else {
            self.wide(ctx);
        }
        if self.help {
            self.help(ctx);
        }
    }

    /// Takes what is new from the loop's side.
    fn take_in(&mut self, ctx: &Context) {
        {
            let model = self.desk.model();
            if model.version != self.model.version {
                self.model.clone_from(&model);
            }
        }
        let graph = Arc::clone(&self.model.graph);
        if !self.remembered && self.model.plans > 0 {
            self.remembered = true;
            self.canvas.open.extend(self.memory.open_in(&graph.file));
        }
        if self.model.plans > 0
            && let Some(name) = self.wanted.take()
        {
            if graph.node(&name).is_some() || graph.group(&name).is_some() {
                self.canvas.select(&graph, &name);
            } else {
                self.notice = Some(format!("there is no node `{name}`"));
            }
        }
        let title = match graph.workflow.as_str() {
            "" => "Retouch".to_owned(),
            workflow => format!("{workflow} - Retouch"),
        };
        if title != self.title {
            ctx.send_viewport_cmd(ViewportCommand::Title(title.clone()));
            self.title = title;
        }
        if self.ends && self.model.phase == Phase::Over {
            ctx.send_viewport_cmd(ViewportCommand::Close);
        }
    }

    fn global_keys(&mut self, ctx: &Context) {
        let typing = typing(ctx);
        let pressed = |modifiers, key| ctx.input_mut(|input| input.consume_key(modifiers, key));
        if pressed(Modifiers::COMMAND, Key::F) {
            self.to_search = true;
        }
        if pressed(Modifiers::COMMAND, Key::Q) || pressed(Modifiers::COMMAND, Key::W) {
            ctx.send_viewport_cmd(ViewportCommand::Close);
        }
        if pressed(Modifiers::NONE, Key::F5) {
            self.run();
        }
        // A widget with keys of its own, the picture or the scrubber, leaves by itself.
        if (typing || self.help || self.free(ctx)) && pressed(Modifiers::NONE, Key::Escape) {
            self.leave(ctx, typing);
        }
        if typing {
            return;
        }
        // `?` and `/` are on other keys on other keyboards: what was written counts.
        let written = ctx.input_mut(|input| {
            let mut written = None;
            input.events.retain(|event| match event {
                Event::Text(text) if text == "?" || text == "/" || text == "." => {
                    written = Some(text.clone());
                    false
                }
                _ => true,
            });
            written
        });
        match written.as_deref() {
            Some("?") => self.help = !self.help,
            Some("/") => self.to_search = true,
            Some(".") => self.stop(),
            _ => {}
        }
        if !self.free(ctx) {
            return;
        }
        if pressed(Modifiers::NONE, Key::R) {
            self.run();
        }
        if pressed(Modifiers::NONE, Key::T) {
            self.next_colours(ctx);
        }
        if pressed(Modifiers::NONE, Key::B) {
            self.memory.below_open = !self.memory.below_open;
        }
        if pressed(Modifiers::NONE, Key::M) {
            self.full = !self.full;
        }
        if pressed(Modifiers::NONE, Key::I) {
            self.memory.side_open = !self.memory.side_open;
        }
        if pressed(Modifiers::NONE, Key::E) {
            self.edit();
        }
        for (key, tab) in [Key::Num1, Key::Num2, Key::Num3, Key::Num4]
            .into_iter()
            .zip(Tab::BELOW)
        {
            if pressed(Modifiers::NONE, key) {
                self.tab = tab;
                self.memory.below_open = true;
            }
        }
    }

    /// Whether the keyboard is the graph's: nothing has the focus that may have keys of its own.
    fn free(&self, ctx: &Context) -> bool {
        ctx.memory(|memory| memory.focused()).is_none() || self.canvas.has_focus()
    }

    /// Esc: the innermost thing that can be left.
    fn leave(&mut self, ctx: &Context, typing: bool) {
        if self.help {
            self.help = false;
        } else if typing {
            if !self.canvas.search.is_empty() {
                self.canvas.search.clear();
            }
            ctx.memory_mut(|memory| {
                if let Some(id) = memory.focused() {
                    memory.surrender_focus(id);
                }
            });
        } else if !self.canvas.search.is_empty() {
            self.canvas.search.clear();
        } else {
            self.canvas.selected = None;
            self.notice = None;
        }
    }

    fn run(&mut self) {
        self.notice = None;
        (self.request)(Request::Run);
    }

    fn stop(&mut self) {
        if self.model.phase == Phase::Running {
            (self.request)(Request::Stop);
        }
    }

    /// Opens the editor at what is selected, else at the workflow.
    fn edit(&mut self) {
        let graph = &self.model.graph;
        let node = self.canvas.selected.as_deref().and_then(|name| {
            let first = graph
                .group(name)
                .and_then(|group| graph.groups[group].nodes.first());
            graph.node(name).or(first.copied())
        });
        let place = node.and_then(|node| graph.nodes.get(node)?.place.clone());
        let spot = match place {
            Some((source, span)) => {
                let (line, column) = source.line_column(span.start);
                let file = PathBuf::from(source.name());
                Spot { file, line, column }
            }
            None => Spot {
                file: graph.file.clone(),
                line: 1,
                column: 1,
            },
        };
        self.open(&spot);
    }

    fn open(&mut self, spot: &Spot) {
        self.notice = Some(match editor::open(spot) {
            Ok(opened) => format!("opened {opened}"),
            Err(message) => message,
        });
    }

    fn next_colours(&mut self, ctx: &Context) {
        self.memory.colours = match self.memory.colours {
            Colours::System => Colours::Dark,
            Colours::Dark => Colours::Light,
            Colours::Light => Colours::System,
        };
        apply(ctx, self.memory.colours);
    }

    fn bar(&mut self, ctx: &Context, narrow: bool) {
        let colours = theme::palette(ctx.style().visuals.dark_mode);
        let frame = Frame::new()
            .fill(colours.panel)
            .inner_margin(Margin::symmetric(12, 8));
        TopBottomPanel::top("bar").frame(frame).show(ctx, |ui| {
            ui.horizontal(|ui| {
                let mark = self.mark();
                symbol_in(ui, mark);
                let status = self.model.status();
                let controls = if narrow { 190.0 } else { 420.0 };
                let room = (ui.available_width() - controls).max(40.0);
                ui.allocate_ui_with_layout(
                    vec2(room, 24.0),
                    Layout::left_to_right(Align::Center),
                    |ui| {
                        if !narrow {
                            let name = RichText::new(&self.model.graph.workflow)
                                .strong()
                                .color(colours.strong);
                            ui.add(Label::new(name).truncate());
                        }
                        let text = RichText::new(&status).color(colours.mark(mark));
                        ui.add(Label::new(text).truncate()).on_hover_text(&status);
                    },
                );
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    self.controls(ui, narrow)
                });
            });
            if let Some(notice) = &self.notice {
                ui.add(Label::new(RichText::new(notice).small().color(colours.muted)).truncate());
            }
        });
    }

    fn mark(&self) -> Mark {
        use retouch_graph::event::RunStatus;
        match self.model.phase {
            _ if self.model.trouble.is_some() => Mark::Failed,
            Phase::Running => Mark::Running,
            _ if !self.model.faults.is_empty() => Mark::Failed,
            Phase::Reading | Phase::Planned => Mark::Queued,
            Phase::Waiting | Phase::Over => match self.model.past.back().map(|past| past.status) {
                Some(RunStatus::Ok) => Mark::Done,
                Some(RunStatus::Failed) => Mark::Failed,
                Some(RunStatus::Cancelled) => Mark::Stopped,
                None => Mark::Queued,
            },
        }
    }

    /// The controls of the bar, from the right.
    fn controls(&mut self, ui: &mut Ui, narrow: bool) {
        let help = ui.button("?").on_hover_text("keys (?)");
        help.widget_info(|| WidgetInfo::labeled(WidgetType::Button, true, "Keys"));
        if help.clicked() {
            self.help = !self.help;
        }
        let (word, next) = match self.memory.colours {
            Colours::System => ("Auto", "colours of the system"),
            Colours::Dark => ("Dark", "dark colours"),
            Colours::Light => ("Light", "light colours"),
        };
        let button = ui.button(word).on_hover_text(format!("{next} (T)"));
        button.widget_info(|| {
            WidgetInfo::labeled(WidgetType::Button, true, format!("Colours: {word}"))
        });
        if button.clicked() {
            self.next_colours(ui.ctx());
        }
        if self.model.phase == Phase::Running {
            if ui
                .button("Stop")
                .on_hover_text("stop the run (.)")
                .clicked()
            {
                self.stop();
            }
        } else if ui
            .button("Run")
            .on_hover_text("read the file again and run (R)")
            .clicked()
        {
            self.run();
        }
        let width = if narrow { 70.0 } else { 180.0 };
        let id = Id::new("search");
        let hint = if narrow { "Search" } else { "Search nodes  /" };
        let edit = TextEdit::singleline(&mut self.canvas.search)
            .id(id)
            .hint_text(hint)
            .desired_width(width);
        let response = ui.add(edit);
        response.widget_info(|| WidgetInfo::labeled(WidgetType::TextEdit, true, "Search nodes"));
        if std::mem::take(&mut self.to_search) {
            response.request_focus();
        }
        if response.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter)) {
            let back = ui.input(|input| input.modifiers.shift);
            let graph = Arc::clone(&self.model.graph);
            let found = self.canvas.next_match(&graph, back);
            self.notice = (found == 0).then(|| "no node has that in its name or op".to_owned());
            response.request_focus();
        }
    }

    fn wide(&mut self, ctx: &Context) {
        let colours = theme::palette(ctx.style().visuals.dark_mode);
        if self.memory.side_open {
            let frame = Frame::new()
                .fill(colours.panel)
                .inner_margin(Margin::symmetric(14, 8));
            let panel = SidePanel::right("side")
                .frame(frame)
                .default_width(self.memory.side);
            let shown = panel
                .width_range(220.0..=720.0)
                .show(ctx, |ui| self.node(ui));
            self.memory.side = shown.response.rect.width();
        }
        let frame = Frame::new()
            .fill(colours.panel)
            .inner_margin(Margin::symmetric(14, 6));
        if !Tab::BELOW.contains(&self.tab) {
            self.tab = Tab::Pictures;
        }
        if self.full {
            CentralPanel::default()
                .frame(frame)
                .show(ctx, |ui| self.below(ui));
            return;
        }
        if self.memory.below_open {
            let most = (ctx.content_rect().height() - 180.0).max(140.0);
            let panel = TopBottomPanel::bottom("below").frame(frame).resizable(true);
            let panel = panel
                .default_height(self.memory.below)
                .height_range(120.0..=most);
            let shown = panel.show(ctx, |ui| self.below(ui));
            self.memory.below = shown.response.rect.height();
        }
        CentralPanel::default()
            .frame(Frame::new().fill(colours.canvas))
            .show(ctx, |ui| self.graph(ui));
    }

    /// The areas below the graph, or in its stead.
    fn below(&mut self, ui: &mut Ui) {
        // The panel is as high as it was made, whatever is in it.
        ui.set_min_height(ui.available_height());
        ui.horizontal(|ui| {
            self.tabs(ui, &Tab::BELOW);
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let (word, hint) = match self.full {
                    true => ("Smaller", "show the graph again (M)"),
                    false => ("Larger", "in place of the graph (M)"),
                };
                if ui.small_button(word).on_hover_text(hint).clicked() {
                    self.full = !self.full;
                }
            });
        });
        ui.add_space(4.0);
        self.area(ui, self.tab);
    }

    fn narrow(&mut self, ctx: &Context) {
        let colours = theme::palette(ctx.style().visuals.dark_mode);
        let frame = Frame::new()
            .fill(colours.panel)
            .inner_margin(Margin::symmetric(10, 4));
        TopBottomPanel::top("tabs").frame(frame).show(ctx, |ui| {
            ScrollArea::horizontal().show(ui, |ui| self.tabs(ui, &Tab::ALL));
        });
        let margin = if self.tab == Tab::Graph {
            Margin::ZERO
        } else {
            Margin::symmetric(10, 6)
        };
        let frame = Frame::new().fill(colours.panel).inner_margin(margin);
        CentralPanel::default()
            .frame(frame)
            .show(ctx, |ui| self.area(ui, self.tab));
    }

    fn tabs(&mut self, ui: &mut Ui, tabs: &[Tab]) {
        let colours = Palette::of(ui);
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = 16.0;
            for tab in tabs {
                let faults = self.model.faults.len();
                let text = match tab {
                    Tab::Problems if faults > 0 => format!("{} ({faults})", tab.name()),
                    _ => tab.name().to_owned(),
                };
                let front = self.tab == *tab;
                let colour = match (front, tab) {
                    (_, Tab::Problems) if faults > 0 => colours.mark(Mark::Failed),
                    (true, _) => colours.strong,
                    (false, _) => colours.muted,
                };
                let button = egui::Button::new(RichText::new(text).color(colour)).frame(false);
                let response = ui.add(button);
                response.widget_info(|| {
                    WidgetInfo::selected(WidgetType::SelectableLabel, true, front, tab.name())
                });
                if front {
                    let rect = response.rect;
                    let stroke = Stroke::new(2.0, colours.accent);
                    ui.painter()
                        .hline(rect.x_range(), rect.bottom() + 1.0, stroke);
                }
                if response.clicked() {
                    self.tab = *tab;
                }
            }
        });
    }

    fn area(&mut self, ui: &mut Ui, tab: Tab) {
        match tab {
            Tab::Graph => self.graph(ui),
            Tab::Node => self.node(ui),
            Tab::Pictures => self.gallery.show(ui, &self.model, self.shelf.as_ref()),
            Tab::Steps => {
                let selected = self.canvas.selected.as_deref();
                self.stepping
                    .show(ui, &self.model, self.engine.as_ref(), selected);
            }
            Tab::Params => {
                let selected = self.canvas.selected.as_deref();
                let Some(engine) = &self.engine else { return };
                let registry = engine.registry();
                if self
                    .tries
                    .show(ui, &self.model, &self.desk, registry, selected)
                {
                    (self.request)(Request::Tried);
                }
            }
            Tab::Problems => {
                let keys = !self.help;
                if let Some(spot) = self.problems.show(ui, &self.model, keys) {
                    self.open(&spot);
                }
            }
        }
    }

    fn graph(&mut self, ui: &mut Ui) {
        if self.free(ui.ctx()) && !self.help {
            self.canvas.keys(ui, &self.model, self.room);
        }
        self.room = ui.available_size();
        self.canvas.show(ui, &self.model);
    }

    fn node(&mut self, ui: &mut Ui) {
        let panel = Panel {
            model: &self.model,
            selected: self.canvas.selected.as_deref(),
            shelf: self.shelf.as_ref(),
        };
        let act = panel.show(ui);
        self.act(ui.ctx(), act);
    }

    fn act(&mut self, ctx: &Context, act: Option<Act>) {
        match act {
            Some(Act::Select(name)) => {
                let graph = Arc::clone(&self.model.graph);
                self.canvas.select(&graph, &name);
            }
            Some(Act::Toggle(name)) => self.canvas.toggle(&name),
            Some(Act::Open(spot)) => self.open(&spot),
            Some(Act::Copy(text)) => ctx.copy_text(text),
            Some(Act::Look(wanted, title)) => self.look(wanted, title),
            None => {}
        }
    }

    /// Shows a picture in full.
    fn look(&mut self, wanted: Wanted, title: String) {
        self.gallery.look(wanted, title);
        self.tab = Tab::Pictures;
        self.memory.below_open = true;
    }

    fn help(&mut self, ctx: &Context) {
        let colours = theme::palette(ctx.style().visuals.dark_mode);
        let frame = Frame::window(&ctx.style()).inner_margin(Margin::same(18));
        let modal = Modal::new(Id::new("help"))
            .frame(frame)
            .backdrop_color(Color32::from_black_alpha(120));
        let shown = modal.show(ctx, |ui| {
            let room = ctx.content_rect().size() - vec2(60.0, 100.0);
            ui.set_max_width(room.x.min(560.0));
            ui.label(RichText::new("Keys").heading().color(colours.strong));
            ScrollArea::vertical()
                .max_height(room.y.max(80.0))
                .show(ui, |ui| {
                    for (section, keys) in KEYS {
                        ui.add_space(8.0);
                        ui.label(
                            RichText::new(*section)
                                .small()
                                .strong()
                                .color(colours.muted),
                        );
                        Grid::new(*section)
                            .num_columns(2)
                            .spacing(vec2(18.0, 5.0))
                            .show(ui, |ui| {
                                for (key, what) in *keys {
                                    ui.label(
                                        RichText::new(*key)
                                            .font(FontId::monospace(12.5))
                                            .color(colours.accent),
                                    );
                                    ui.label(*what);
                                    ui.end_row();
                                }
                            });
                    }
                });
            ui.add_space(8.0);
            ui.button("Close").clicked()
        });
        if shown.inner || shown.backdrop_response.clicked() {
            self.help = false;
        }
    }

    /// Writes down what is remembered.
    fn remember(&mut self) {
        self.memory.tab = self.tab.name().to_owned();
        if self.model.plans > 0 {
            let graph = &self.model.graph;
            // Groups that the workflow no longer has are forgotten.
            let mut open = self.canvas.open.clone();
            open.retain(|name| graph.group(name).is_some());
            self.memory.remember_open(&graph.file, &open);
        }
        self.memory.write(self.memory_file.as_deref());
    }
}

/// Whether a text is being written.
fn typing(ctx: &Context) -> bool {
    let focused = ctx.memory(|memory| memory.focused());
    focused.is_some_and(|id| egui::text_edit::TextEditState::load(ctx, id).is_some())
}

fn apply(ctx: &Context, colours: Colours) {
    ctx.set_theme(match colours {
        Colours::System => egui::ThemePreference::System,
        Colours::Dark => egui::ThemePreference::Dark,
        Colours::Light => egui::ThemePreference::Light,
    });
}

impl eframe::App for App {
    fn update(&mut self, ctx: &Context, _: &mut eframe::Frame) {
        ctx.input(|input| {
            let size = input.viewport().inner_rect.map(|rect| rect.size());
            if let Some(size) = size.filter(|size| size.x > 0.0 && size.y > 0.0) {
                self.memory.size = (size.x, size.y);
            }
        });
        self.ui(ctx);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.remember();
    }
}
