//! The panel of params: what a workflow and a node take, as widgets that fit, tried as soon as they change.
//!
//! The panel takes plain data and gives back [`Action`]s; it neither reads nor writes a file. While a widget is dragged a
//! value is tried a few times a second, on release at once. A value that does not fit is reported below its widget and not
//! tried.

#[cfg(test)]
mod tests;
mod widgets;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eframe::egui;
use egui::{Key, KeyboardShortcut, Modifiers, Response, Ui};
use retouch_graph::registry::ParamInfo;
use retouch_graph::workflow::{InputKind, NodeBody, ParamDecl, Workflow};
use retouch_graph::yaml::Tree;
use retouch_graph::{ParamType, Registry};
use serde_json::Value as Json;

use self::widgets::{
    as_yaml, brief, choice, equal, name_it, numeric, sites, slider, steps, text, threshold, tick,
    whole_speed,
};
use super::edit::{self, Change, Place, Refused, Trying};

/// Shortest time between two tries of a value while a widget is dragged, in seconds.
const EVERY: f64 = 0.3;
/// The greatest seed.
const MAX_SEED: u64 = (1 << 53) - 1;

/// Copies what is tried as YAML.
pub const COPY: KeyboardShortcut =
    KeyboardShortcut::new(Modifiers::COMMAND.plus(Modifiers::SHIFT), Key::C);
/// Shows what would be written to the files.
pub const WRITE: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::S);
/// Goes back to what the files say.
pub const RESET: KeyboardShortcut =
    KeyboardShortcut::new(Modifiers::COMMAND.plus(Modifiers::SHIFT), Key::R);

/// Which widget fits a param.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A share from 0 to 1: a slider.
    Share,
    /// A number: a slider where it has both bounds, else a field to drag.
    Float {
        /// The least.
        min: Option<f64>,
        /// The greatest.
        max: Option<f64>,
    },
    /// An integer, likewise.
    Int {
        /// The least.
        min: Option<f64>,
        /// The greatest.
        max: Option<f64>,
    },
    /// A number of steps, or a share of them in percent.
    Steps,
    /// An integer from 0, with the next one and a drawn one.
    Seed,
    /// A box to tick.
    Bool,
    /// One of these texts.
    Choice(Vec<String>),
    /// A text.
    Text,
    /// A path.
    Path,
    /// Places in the U-Net: a word, or a list.
    Sites {
        /// How many there are, if that is known: a box for each.
        count: Option<usize>,
    },
    /// A word, or a number from 0 to 1.
    Threshold,
    /// Anything else, as YAML.
    Yaml,
}

/// Tells what is wrong with a value.
type Check = Arc<dyn Fn(&Json) -> Result<(), String> + Send + Sync>;

/// A param as the panel shows it.
#[derive(Clone)]
pub struct Entry {
    /// The file that it is written in.
    pub file: PathBuf,
    /// Where in the file.
    pub place: Place,
    /// Its name.
    pub name: String,
    /// What it is.
    pub docs: String,
    /// Which widget fits.
    pub kind: Kind,
    /// What the file says; `None`: nothing.
    pub written: Option<Json>,
    /// What holds where the file says nothing.
    pub default: Option<Json>,
    /// Reports what is wrong with a value, as far as that is known without the rest of the workflow.
    pub check: Check,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("place", &self.place)
            .field("kind", &self.kind)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Entry {
    /// The value that holds without trying; null when there is none.
    #[must_use]
    pub fn value(&self) -> &Json {
        const NONE: &Json = &Json::Null;
        self.written
            .as_ref()
            .or(self.default.as_ref())
            .unwrap_or(NONE)
    }

    /// What it refers to (`$params.seed`), if it has its value from there: that is tried instead.
    #[must_use]
    pub fn follows(&self) -> Option<&str> {
        let text = self.written.as_ref()?.as_str()?;
        let refers = text.starts_with("$params.") || text.starts_with("$inputs.");
        (refers && !matches!(self.place, Place::Param(_))).then_some(text)
    }

    fn of_decl(file: &Path, place: Place, name: &str, decl: &ParamDecl) -> Self {
        let (min, max) = (decl.min, decl.max);
        let kind = match decl.kind {
            ParamType::String => Kind::Text,
            ParamType::Int => Kind::Int { min, max },
            ParamType::Float if (min, max) == (Some(0.0), Some(1.0)) => Kind::Share,
            ParamType::Float => Kind::Float { min, max },
            ParamType::Bool => Kind::Bool,
            ParamType::Steps => Kind::Steps,
            ParamType::Seed => Kind::Seed,
            ParamType::Path => Kind::Path,
            ParamType::Choice => Kind::Choice(decl.values.clone()),
            ParamType::Sites => Kind::Sites { count: None },
            ParamType::Threshold => Kind::Threshold,
        };
        let default = decl.default.as_ref().map(|default| default.value.clone());
        let (own, decl) = (name.to_owned(), decl.clone());
        Self {
            file: file.to_owned(),
            place,
            name: name.to_owned(),
            docs: decl.help.clone().unwrap_or_default(),
            kind,
            written: default,
            default: None,
            check: Arc::new(move |value| decl.check(&own, value)),
        }
    }

    fn of_info(file: &Path, node: &str, info: &ParamInfo, written: Option<&Tree>) -> Self {
        let place = Place::Field {
            node: node.to_owned(),
            name: info.name.clone(),
        };
        let checked = info.clone();
        Self {
            file: file.to_owned(),
            place,
            name: info.name.clone(),
            docs: info.docs.split_whitespace().collect::<Vec<_>>().join(" "),
            kind: kind_of(info),
            written: written.map(Tree::to_json),
            default: info.default.clone(),
            check: Arc::new(move |value| checked.check(value)),
        }
    }
}

/// The widget for an op's parameter, by its schema.
fn kind_of(info: &ParamInfo) -> Kind {
    fn has(schema: &Json, format: &str) -> bool {
        schema.get("format").and_then(Json::as_str) == Some(format)
            || ["anyOf", "oneOf"].iter().any(|keyword| {
                (schema.get(keyword).and_then(Json::as_array))
                    .is_some_and(|all| all.iter().any(|schema| has(schema, format)))
            })
    }
    /// Whether it takes words and nothing else; null is no value of its own.
    fn words_alone(schema: &Json) -> bool {
        let parts = ["anyOf", "oneOf"]
            .iter()
            .find_map(|keyword| schema.get(keyword)?.as_array());
        match parts {
            Some(parts) => parts.iter().all(|part| {
                words_alone(part) || part.get("type").and_then(Json::as_str) == Some("null")
            }),
            None => ["enum", "const"]
                .iter()
                .any(|keyword| schema.get(keyword).is_some()),
        }
    }
    let schema = &info.schema;
    let types: Vec<&str> = match schema.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(several)) => several.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    };
    let only = |kind: &str| {
        types.contains(&kind) && types.iter().all(|one| *one == kind || *one == "null")
    };
    let bound = |keyword: &str| schema.get(keyword).and_then(Json::as_f64);
    let (min, max) = (bound("minimum"), bound("maximum"));
    let words = info.words();
    if has(schema, "sites") {
        Kind::Sites { count: None }
    } else if has(schema, "threshold") {
        Kind::Threshold
    } else if info.is_seed() {
        Kind::Seed
    } else if has(schema, "steps") {
        Kind::Steps
    } else if !words.is_empty() && words_alone(schema) {
        Kind::Choice(words)
    } else if only("boolean") {
        Kind::Bool
    } else if only("string") && info.is_path() {
        Kind::Path
    } else if only("string") {
        Kind::Text
    } else if only("number") && (min, max) == (Some(0.0), Some(1.0)) {
        Kind::Share
    } else if only("number") {
        Kind::Float { min, max }
    } else if only("integer") {
        Kind::Int { min, max }
    } else {
        Kind::Yaml
    }
}

/// The params of a workflow, `file` being its own.
#[must_use]
pub fn of_workflow(file: &Path, workflow: &Workflow) -> Vec<Entry> {
    (workflow.params.iter())
        .map(|(name, decl)| Entry::of_decl(file, Place::Param(name.clone()), name, decl))
        .collect()
}

/// The parameters of a node of a workflow, `file` being its own: of one that uses another workflow what it gives to it,
/// given that workflow as `inner`.
#[must_use]
pub fn of_node(
    file: &Path,
    workflow: &Workflow,
    node: &str,
    registry: &Registry,
    inner: Option<&Workflow>,
) -> Vec<Entry> {
    let Some(decl) = workflow.nodes.get(node) else {
        return Vec::new();
    };
    match &decl.body {
        NodeBody::Broken => Vec::new(),
        NodeBody::Op { op, fields } => {
            let entry = registry.entry(&op.value);
            (entry.iter().flat_map(|entry| entry.params()))
                .map(|info| {
                    let written = fields.iter().find(|(key, _)| key.text == info.name);
                    Entry::of_info(file, node, info, written.map(|(_, tree)| tree))
                })
                .collect()
        }
        NodeBody::Use { with, .. } => {
            let Some(inner) = inner else {
                return Vec::new();
            };
            let inputs = inner
                .inputs
                .iter()
                .filter_map(|(name, input)| match &input.kind {
                    InputKind::Value(decl) => Some((name, decl)),
                    InputKind::Port(_) => None,
                });
            (inputs.chain(&inner.params))
                .map(|(name, decl)| {
                    let place = Place::With {
                        node: node.to_owned(),
                        name: name.clone(),
                    };
                    let mut entry = Entry::of_decl(file, place, name, decl);
                    let given = with.iter().find(|(key, _)| key.text == *name);
                    entry.default = entry.written.take();
                    entry.written = given.map(|(_, tree)| tree.to_json());
                    entry
                })
                .collect()
        }
    }
}

/// Entries under a title.
#[derive(Clone, Debug)]
pub struct Section {
    /// The title: the workflow's or the node's name.
    pub title: String,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// A fault that was found elsewhere: when the workflow was loaded with the value, or when it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The file.
    pub file: PathBuf,
    /// Where in the file.
    pub place: Place,
    /// What is wrong.
    pub message: String,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run with this value.
    Try {
        /// The file.
        file: PathBuf,
        /// Where in the file.
        place: Place,
        /// The value.
        value: Json,
    },
    /// Run with what the file says.
    Reset {
        /// The file.
        file: PathBuf,
        /// Where in the file.
        place: Place,
    },
    /// Run with what all files say.
    ResetAll,
    /// Put what is tried on the clipboard, as [`edit::snippet`] writes it.
    CopyAsYaml,
    /// Make a [`Proposal`] for each file of what is tried and [`Panel::ask`].
    AskToWrite,
    /// Write these.
    Write(Vec<Proposal>),
}

/// What would be written to a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The file.
    pub file: PathBuf,
    /// What it holds.
    pub old: String,
    /// What it would hold.
    pub new: String,
    /// The difference.
    pub diff: String,
}

impl Proposal {
    /// Reads a file and writes the values into its text.
    ///
    /// # Errors
    /// When the file cannot be read or a value cannot be written.
    pub fn of(file: &Path, changes: &[Change]) -> Result<Self, Refused> {
        let old = edit::text_of(file)?;
        let new = edit::edit(&old, changes)?;
        let diff = edit::diff(&file.display().to_string(), &old, &new);
        Ok(Self {
            file: file.to_owned(),
            old,
            new,
            diff,
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// As [`edit::write`].
    pub fn write(&self) -> Result<(), Refused> {
        edit::write(&self.file, &self.old, &self.new)
    }
}

/// A value that is being entered.
#[derive(Clone, Debug)]
struct Draft {
    value: Json,
    /// The text, where one is typed.
    text: Option<String>,
    fault: Option<String>,
    /// Whether it is still to be tried.
    due: bool,
    /// When a value was last tried, in seconds.
    tried: f64,
}

/// What a widget did.
#[derive(Clone, Debug, Default)]
struct Took {
    value: Option<Json>,
    text: Option<String>,
    /// Whether more is to come: it is held, or typed in.
    held: bool,
    fault: Option<String>,
}

/// The state of the panel.
#[derive(Debug, Default)]
pub struct Panel {
    drafts: HashMap<(PathBuf, Place), Draft>,
    asked: Option<Vec<Proposal>>,
    message: Option<String>,
    /// The number that seeds are drawn from.
    drawn: u64,
}

impl Panel {
    /// A panel whose seeds are drawn from that number.
    #[must_use]
    pub fn new(drawn: u64) -> Self {
        Self {
            drawn,
            ..Self::default()
        }
    }

    /// Shows what would be written, to be confirmed.
    pub fn ask(&mut self, proposals: Vec<Proposal>) {
        self.message = None;
        self.asked = Some(proposals);
    }

    /// Tells something at the top of the panel: that a file was written, or why not.
    pub fn tell(&mut self, message: impl Into<String>) {
        self.message = Some(message.into());
    }

    /// Whether a change is waiting to be confirmed.
    #[cfg(test)]
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// Shows the panel. `trying` is what is tried at present, `told` the faults that were found of it elsewhere.
    pub fn show(
        &mut self,
        ui: &mut Ui,
        sections: &[Section],
        trying: &Trying,
        told: &[Told],
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let any = !trying.is_empty();
        self.buttons(ui, any, &mut actions);
        if let Some(message) = &self.message {
            ui.label(message);
        }
        ui.separator();
        egui::ScrollArea::vertical()
            .id_salt("params")
            .auto_shrink([false, false])
            .show(ui, |ui| {
                for section in sections {
                    ui.add_space(4.0);
                    ui.heading(&section.title);
                    if section.entries.is_empty() {
                        ui.weak("no params");
                    }
                    for entry in &section.entries {
                        self.entry(ui, entry, trying, told, &mut actions);
                    }
                }
            });
        self.dialog(ui.ctx(), &mut actions);
        actions
    }

    fn buttons(&mut self, ui: &mut Ui, any: bool, actions: &mut Vec<Action>) {
        let keys = |ui: &Ui, shortcut: &KeyboardShortcut| ui.ctx().format_shortcut(shortcut);
        ui.horizontal_wrapped(|ui| {
            let button = |ui: &mut Ui, name: &str, what: &str, shortcut: KeyboardShortcut| {
                let hint = format!("{what} ({})", keys(ui, &shortcut));
                let clicked = ui
                    .add_enabled(any, egui::Button::new(name))
                    .on_hover_text(hint)
                    .clicked();
                let pressed = any && ui.input_mut(|input| input.consume_shortcut(&shortcut));
                clicked || pressed
            };
            if button(ui, "Reset all", "Go back to what the files say", RESET) {
                self.drafts.clear();
                actions.push(Action::ResetAll);
            }
            if button(ui, "Copy as YAML", "Copy the tried values", COPY) {
                actions.push(Action::CopyAsYaml);
            }
            if button(
                ui,
                "Write to file…",
                "Show what would change in the files",
                WRITE,
            ) {
                actions.push(Action::AskToWrite);
            }
        });
    }

    fn entry(
        &mut self,
        ui: &mut Ui,
        entry: &Entry,
        trying: &Trying,
        told: &[Told],
        actions: &mut Vec<Action>,
    ) {
        let id = (entry.file.clone(), entry.place.clone());
        let tried = (trying.of(&entry.file).iter())
            .find(|change| change.place == entry.place)
            .map(|change| &change.value);
        let now = ui.input(|input| input.time);
        let mut draft = self.drafts.remove(&id);
        let shown = (draft.as_ref()).map_or_else(
            || tried.unwrap_or(entry.value()).clone(),
            |draft| draft.value.clone(),
        );
        let faulty = draft.as_ref().is_some_and(|draft| draft.fault.is_some());
        ui.push_id(&id, |ui| {
            let label = ui
                .horizontal_wrapped(|ui| {
                    let name = egui::RichText::new(&entry.name);
                    let differs = tried.is_some() || faulty;
                    let label = if differs {
                        ui.label(name.strong().color(ui.visuals().warn_fg_color))
                    } else {
                        ui.label(name)
                    };
                    if differs {
                        let said = match &entry.written {
                            Some(written) => format!("the file says {}", brief(written)),
                            None => "not in the file".to_owned(),
                        };
                        let what = if faulty { "not tried" } else { "tried" };
                        ui.weak(format!("{what}; {said}"));
                        let reset = egui::Button::new("Reset").small();
                        let reset = ui.add(reset).on_hover_text("Go back to what the file says");
                        name_it(
                            &reset,
                            egui::WidgetType::Button,
                            &format!("Reset {}", entry.name),
                        );
                        if reset.clicked() {
                            draft = None;
                            if tried.is_some() {
                                actions.push(Action::Reset {
                                    file: entry.file.clone(),
                                    place: entry.place.clone(),
                                });
                            }
                        }
                    }
                    label
                })
                .inner;
            if !entry.docs.is_empty() {
                label.clone().on_hover_text(&entry.docs);
            }
            if let Some(reference) = entry.follows() {
                ui.weak(format!("= {reference}"));
                return;
            }
            let typed = draft.as_ref().and_then(|draft| draft.text.clone());
            let took = self.widget(ui, entry, &shown, typed, &label);
            let before = draft.take();
            draft = self.took(entry, took, before, tried, now, actions);
            if draft.as_ref().is_some_and(|draft| draft.due) {
                ui.ctx()
                    .request_repaint_after(std::time::Duration::from_secs_f64(EVERY / 2.0));
            }
            let own = draft.as_ref().and_then(|draft| draft.fault.as_deref());
            let other = (told.iter())
                .find(|told| told.place == entry.place && edit::is_one(&told.file, &entry.file))
                .map(|told| told.message.as_str());
            if let Some(fault) = own.or(other) {
                ui.colored_label(ui.visuals().error_fg_color, fault);
            }
        });
        if let Some(draft) = draft {
            self.drafts.insert(id, draft);
        }
    }

    /// Tries what a widget took when it is time to; gives back what is still being entered.
    fn took(
        &self,
        entry: &Entry,
        took: Took,
        before: Option<Draft>,
        tried: Option<&Json>,
        now: f64,
        actions: &mut Vec<Action>,
    ) -> Option<Draft> {
        let last = before
            .as_ref()
            .map_or(f64::NEG_INFINITY, |draft| draft.tried);
        let mut draft = match (took.value, before) {
            (Some(value), _) => {
                let fault = took.fault.or_else(|| (entry.check)(&value).err());
                Draft {
                    value,
                    text: took.text,
                    due: fault.is_none(),
                    fault,
                    tried: last,
                }
            }
            (None, Some(mut draft)) => {
                if took.text.is_some() {
                    draft.text = took.text;
                    draft.fault = took.fault;
                    draft.due &= draft.fault.is_none();
                }
                draft
            }
            (None, None) => match took.text {
                // A text that is no value yet.
                Some(text) => Draft {
                    value: tried.unwrap_or(entry.value()).clone(),
                    text: Some(text),
                    fault: took.fault,
                    due: false,
                    tried: last,
                },
                None => return None,
            },
        };
        let waits = took.held && (draft.text.is_some() || now - draft.tried < EVERY);
        if draft.due && !waits {
            draft.due = false;
            draft.tried = now;
            let (file, place) = (entry.file.clone(), entry.place.clone());
            if equal(&draft.value, entry.value()) {
                if tried.is_some() {
                    actions.push(Action::Reset { file, place });
                }
            } else if tried.is_none_or(|tried| !equal(tried, &draft.value)) {
                let value = draft.value.clone();
                actions.push(Action::Try { file, place, value });
            }
        }
        // What is tried is shown from there; a fault stays until something else is entered.
        (took.held || draft.due || draft.fault.is_some()).then_some(draft)
    }

    fn widget(
        &mut self,
        ui: &mut Ui,
        entry: &Entry,
        shown: &Json,
        typed: Option<String>,
        label: &Response,
    ) -> Took {
        match &entry.kind {
            Kind::Share => slider(ui, shown, 0.0, 1.0, false, label),
            Kind::Float { min, max } => numeric(ui, shown, *min, *max, false, label),
            Kind::Int { min, max } => numeric(ui, shown, *min, *max, true, label),
            Kind::Steps => steps(ui, shown, entry, label),
            Kind::Seed => self.seed(ui, shown, entry, label),
            Kind::Bool => tick(ui, shown, entry, label),
            Kind::Choice(words) => choice(ui, shown, words, label),
            Kind::Text => text(ui, shown, typed, label),
            Kind::Path => text(ui, shown, typed, label),
            Kind::Sites { count } => sites(ui, shown, typed, *count, entry, label),
            Kind::Threshold => threshold(ui, shown, entry, label),
            Kind::Yaml => as_yaml(ui, shown, typed, label),
        }
    }

    fn seed(&mut self, ui: &mut Ui, shown: &Json, entry: &Entry, label: &Response) -> Took {
        let mut took = Took::default();
        let now = shown.as_u64();
        ui.horizontal_wrapped(|ui| {
            let mut value = now.unwrap_or(0);
            let mut field = egui::DragValue::new(&mut value)
                .range(0..=MAX_SEED)
                .speed(whole_speed(ui))
                .update_while_editing(false);
            if now.is_none() {
                // `random`, until a number is entered.
                field = field.custom_formatter(|value, _| {
                    if value == 0.0 {
                        "random".to_owned()
                    } else {
                        format!("{value}")
                    }
                });
            }
            let response = ui.add(field).labelled_by(label.id);
            took.held = response.dragged();
            if response.changed() {
                took.value = Some(Json::from(value));
            }
            let next = ui.button("Next");
            name_it(
                &next,
                egui::WidgetType::Button,
                &format!("Next {}", entry.name),
            );
            if next.on_hover_text("The seed after this one").clicked() {
                took.value = Some(Json::from(now.map_or(0, |now| (now + 1).min(MAX_SEED))));
            }
            let random = ui.button("Random");
            name_it(
                &random,
                egui::WidgetType::Button,
                &format!("Random {}", entry.name),
            );
            if random.on_hover_text("A random seed").clicked() {
                // SplitMix64; a seed of nine digits or fewer is one that can be told.
                self.drawn = self.drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.drawn;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                took.value = Some(Json::from((z ^ (z >> 31)) % 1_000_000_000));
            }
        });
        took
    }

    /// What would be written, to be confirmed.
    fn dialog(&mut self, ctx: &egui::Context, actions: &mut Vec<Action>) {
        let Some(proposals) = self.asked.take() else {
            return;
        };
        let (mut write, mut cancel) = (false, false);
        let room = ctx.content_rect().size();
        let modal = egui::Modal::new(egui::Id::new("write to file")).show(ctx, |ui| {
            ui.set_max_width((room.x - 40.0).clamp(120.0, 640.0));
            ui.heading("Write to file");
            egui::ScrollArea::both()
                .max_height((room.y - 140.0).max(60.0))
                .show(ui, |ui| {
                    for proposal in &proposals {
                        for line in proposal.diff.lines() {
                            let visuals = ui.visuals();
                            let colour = match line.as_bytes().first() {
                                Some(b'+') if visuals.dark_mode => egui::Color32::LIGHT_GREEN,
                                Some(b'+') => egui::Color32::DARK_GREEN,
                                Some(b'-') if visuals.dark_mode => egui::Color32::LIGHT_RED,
                                Some(b'-') => egui::Color32::DARK_RED,
                                _ => visuals.text_color(),
                            };
                            let line = egui::RichText::new(line.trim_end())
                                .monospace()
                                .color(colour);
                            ui.add(egui::Label::new(line).extend());
                        }
                    }
                    if proposals
                        .iter()
                        .all(|proposal| proposal.old == proposal.new)
                    {
                        ui.label("The files already have these values.");
                    }
                });
            ui.add_space(6.0);
            ui.horizontal(|ui| {
                write = ui.button("Write").on_hover_text("Enter").clicked();
                cancel = ui.button("Cancel").on_hover_text("Escape").clicked();
            });
            write |=
                !cancel && ui.input_mut(|input| input.consume_key(Modifiers::NONE, Key::Enter));
        });
        if write {
            actions.push(Action::Write(proposals));
        } else if !cancel && !modal.should_close() {
            self.asked = Some(proposals);
        }
    }
}
