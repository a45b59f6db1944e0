//! The faults of the file: what, where, the line with a caret, a way out, and the editor at its place.

use std::path::PathBuf;

use eframe::egui::{self, FontId, Frame, Key, Margin, Modifiers, RichText, ScrollArea, Ui};
use retouch_graph::{Problem, Severity};

use crate::editor::Spot;
use crate::model::{Mark, Model, Said, Tone};
use crate::theme::{Palette, symbol_in};

/// Columns of the source line that are shown at most.
const WIDEST: usize = 160;

/// The faults, and which of them the keys are at.
#[derive(Debug, Default)]
pub struct ProblemsPanel {
    at: usize,
}

/// The line that a fault is in and a line of carets under the place, cut to what can be seen.
#[must_use]
pub fn excerpt(problem: &Problem) -> Option<(String, String)> {
    let source = problem.source_text();
    let (line, column) = problem.line_column();
    let text = source.text().lines().nth(line.checked_sub(1)?)?;
    let text = text.trim_start_matches('\u{feff}');
    let span = problem.span();
    let marked = source
        .slice(span)
        .lines()
        .next()
        .unwrap_or("")
        .chars()
        .count()
        .max(1);
    let letters: Vec<char> = text
        .chars()
        .map(|letter| if letter == '\t' { ' ' } else { letter })
        .collect();
    let from = (column - 1).saturating_sub(WIDEST / 2).min(letters.len());
    let from = if letters.len() <= WIDEST { 0 } else { from };
    let shown: String = letters.iter().skip(from).take(WIDEST).collect();
    let before = (column - 1).saturating_sub(from);
    let marked = marked.min(WIDEST.saturating_sub(before)).max(1);
    Some((
        shown,
        format!("{}{}", " ".repeat(before), "^".repeat(marked)),
    ))
}

/// Where a fault is, if it is in a file.
#[must_use]
pub fn spot(problem: &Problem) -> Option<Spot> {
    let file = PathBuf::from(problem.source_text().name());
    let (line, column) = problem.line_column();
    file.is_file().then_some(Spot { file, line, column })
}

impl ProblemsPanel {
    /// Draws them; gives the place that the editor is to be opened at.
    pub fn show(&mut self, ui: &mut Ui, model: &Model, keys: bool) -> Option<Spot> {
        let problems: Vec<&Problem> = model.faults.iter().chain(&model.graph.warnings).collect();
        let mut open = None;
        if keys && !problems.is_empty() {
            let pressed = |key| ui.input_mut(|input| input.consume_key(Modifiers::NONE, key));
            if pressed(Key::N) {
                self.at = (self.at + 1) % problems.len();
            }
            if pressed(Key::P) {
                self.at = (self.at + problems.len() - 1) % problems.len();
            }
            if pressed(Key::O) {
                open = problems.get(self.at).and_then(|problem| spot(problem));
            }
        }
        self.at = self.at.min(problems.len().saturating_sub(1));
        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            if problems.is_empty() && model.said.is_empty() {
                let colours = Palette::of(ui);
                ui.add_space(12.0);
                ui.label(RichText::new("No problems: the workflow is valid.").color(colours.muted));
            }
            for (index, problem) in problems.iter().enumerate() {
                let at = keys && index == self.at && problems.len() > 1;
                if fault(ui, problem, at) {
                    open = spot(problem);
                    self.at = index;
                }
            }
            if !model.said.is_empty() {
                ui.add_space(6.0);
                ui.label(
                    RichText::new("Messages from runs")
                        .small()
                        .color(Palette::of(ui).muted),
                );
                for said in model.said.iter().rev() {
                    remark(ui, said);
                }
            }
        });
        open
    }
}

/// Draws a fault; whether it is to be opened.
fn fault(ui: &mut Ui, problem: &Problem, at: bool) -> bool {
    let colours = Palette::of(ui);
    let error = problem.severity() == Severity::Error;
    let mark = if error { Mark::Failed } else { Mark::Running };
    let (line, column) = problem.line_column();
    let name = problem.source_text().name();
    let mut open = false;
    let edge = if at { colours.accent } else { colours.line };
    let frame = Frame::new()
        .fill(colours.card)
        .stroke(egui::Stroke::new(1.0, edge))
        .corner_radius(8)
        .inner_margin(Margin::symmetric(12, 9));
    frame.show(ui, |ui| {
        ui.set_width(ui.available_width());
        ui.horizontal_wrapped(|ui| {
            symbol_in(ui, mark);
            ui.label(RichText::new(problem.message()).color(colours.strong));
        });
        ui.horizontal_wrapped(|ui| {
            ui.add_space(22.0);
            let place = format!("{name}:{line}:{column}");
            ui.label(
                RichText::new(format!("{}  {place}", problem.code()))
                    .small()
                    .color(colours.muted),
            );
            if spot(problem).is_some() {
                let button = ui.small_button("Open in editor");
                let label = format!("Open {place} in the editor");
                button.widget_info(|| {
                    egui::WidgetInfo::labeled(egui::WidgetType::Button, true, &label)
                });
                open = button.clicked();
            }
        });
        if let Some((text, carets)) = excerpt(problem) {
            code(
                ui,
                line,
                &text,
                &carets,
                colours.mark(mark),
                problem.remark(),
            );
        }
        for other in problem.others() {
            let (line, column) = other.source.line_column(other.span.start);
            let text = format!("{}:{line}:{column}  {}", other.source.name(), other.text);
            ui.label(RichText::new(text).small().color(colours.muted));
        }
        if let Some(help) = problem.hint() {
            ui.label(RichText::new(format!("help: {help}")).color(colours.text));
        }
    });
    open
}

/// The line of the source and the carets under it.
fn code(ui: &mut Ui, line: usize, text: &str, carets: &str, colour: egui::Color32, remark: &str) {
    let colours = Palette::of(ui);
    let font = FontId::monospace(12.5);
    let gutter = format!("{line:>4} │ ");
    let mut job = egui::text::LayoutJob::default();
    let format = |colour| egui::TextFormat::simple(font.clone(), colour);
    job.append(&gutter, 0.0, format(colours.muted));
    job.append(text, 0.0, format(colours.text));
    job.append("\n", 0.0, format(colours.text));
    job.append("     │ ", 0.0, format(colours.muted));
    job.append(carets, 0.0, format(colour));
    if !remark.is_empty() {
        job.append(&format!(" {remark}"), 0.0, format(colour));
    }
    job.wrap.max_width = f32::INFINITY;
    let frame = Frame::new()
        .fill(colours.canvas)
        .corner_radius(6)
        .inner_margin(Margin::symmetric(8, 6));
    frame.show(ui, |ui| {
        let id = ui.id().with((line, text, carets));
        ScrollArea::horizontal().id_salt(id).show(ui, |ui| {
            ui.add(egui::Label::new(job).selectable(true));
        });
    });
}

fn remark(ui: &mut Ui, said: &Said) {
    let colours = Palette::of(ui);
    let mark = match said.tone {
        Tone::Note => Mark::Idle,
        Tone::Warning => Mark::Running,
        Tone::Error => Mark::Failed,
    };
    ui.horizontal_wrapped(|ui| {
        symbol_in(ui, mark);
        let text = match &said.node {
            Some(node) => format!("{node}: {}", said.text),
            None => said.text.clone(),
        };
        ui.label(RichText::new(text).color(colours.text));
    });
}
