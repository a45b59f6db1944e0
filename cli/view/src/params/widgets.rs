//! The widgets of the panel: one for each kind of value.

use eframe::egui::{self, Key, Response, Ui};
use retouch_graph::Source;
use retouch_graph::yaml;
use serde_json::Value as Json;

use super::{Entry, Took};
use crate::edit;

/// Names a control for screen readers where what is written on it does not say it all.
pub(super) fn name_it(response: &Response, kind: egui::WidgetType, name: &str) {
    let enabled = response.enabled();
    response.widget_info(|| egui::WidgetInfo::labeled(kind, enabled, name));
}

/// Whether values are the same to a person: `4` is `4.0`.
pub(super) fn equal(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// A value in a few letters.
pub(super) fn brief(value: &Json) -> String {
    retouch_graph::text::shortened(&edit::line(value, false), 24).into_owned()
}

/// The number as a value: one that is due as an integer is one.
pub(super) fn number(value: f64, integer: bool) -> Json {
    #[expect(clippy::cast_possible_truncation, reason = "rounded, and below 2^53")]
    if integer {
        Json::from(value.round() as i64)
    } else {
        Json::from(value)
    }
}

/// By how much a field of whole numbers changes: by one for an arrow key, by less for a point that it is dragged.
pub(super) fn whole_speed(ui: &Ui) -> f64 {
    if ui.input(|input| input.pointer.any_down()) {
        0.2
    } else {
        1.0
    }
}

pub(super) fn slider(
    ui: &mut Ui,
    shown: &Json,
    min: f64,
    max: f64,
    integer: bool,
    label: &Response,
) -> Took {
    let mut value = shown.as_f64().unwrap_or(min);
    ui.spacing_mut().slider_width = (ui.available_width() - 70.0).clamp(60.0, 240.0);
    let mut slider = egui::Slider::new(&mut value, min..=max)
        .clamping(egui::SliderClamping::Edits)
        .update_while_editing(false);
    if integer {
        slider = slider.integer();
    } else {
        // The exact number: what is shown is read again when the field is left.
        slider = slider.custom_formatter(|value, _| value.to_string());
    }
    let response = ui.add(slider).labelled_by(label.id);
    Took {
        value: response.changed().then(|| number(value, integer)),
        held: response.dragged(),
        ..Took::default()
    }
}

pub(super) fn numeric(
    ui: &mut Ui,
    shown: &Json,
    min: Option<f64>,
    max: Option<f64>,
    integer: bool,
    label: &Response,
) -> Took {
    if let (Some(min), Some(max)) = (min, max)
        && max - min <= 1000.0
    {
        return slider(ui, shown, min, max, integer, label);
    }
    let mut value = shown.as_f64().unwrap_or(min.unwrap_or(0.0));
    let speed = if integer {
        whole_speed(ui)
    } else {
        (value.abs() / 100.0).clamp(0.001, 1.0)
    };
    let mut field = egui::DragValue::new(&mut value)
        .speed(speed)
        .range(min.unwrap_or(f64::MIN)..=max.unwrap_or(f64::MAX))
        .update_while_editing(false);
    field = if integer {
        field.fixed_decimals(0)
    } else {
        field.custom_formatter(|value, _| value.to_string())
    };
    let response = ui.add(field).labelled_by(label.id);
    Took {
        value: response.changed().then(|| number(value, integer)),
        held: response.dragged(),
        ..Took::default()
    }
}

pub(super) fn steps(ui: &mut Ui, shown: &Json, entry: &Entry, label: &Response) -> Took {
    let mut took = Took::default();
    let percent = (shown.as_str())
        .and_then(|text| text.strip_suffix('%'))
        .and_then(|number| number.trim().parse::<f64>().ok());
    ui.horizontal_wrapped(|ui| {
        let mut share = percent.is_some();
        let before = share;
        if let Some(mut value) = percent {
            ui.spacing_mut().slider_width = (ui.available_width() - 140.0).clamp(60.0, 240.0);
            let slider = egui::Slider::new(&mut value, 0.0..=100.0)
                .suffix("%")
                .custom_formatter(|value, _| value.to_string())
                .update_while_editing(false);
            let response = ui.add(slider).labelled_by(label.id);
            took.held = response.dragged();
            if response.changed() {
                took.value = Some(Json::from(format!("{value}%")));
            }
        } else {
            let mut value = shown.as_u64().unwrap_or(0);
            let field = egui::DragValue::new(&mut value)
                .speed(whole_speed(ui))
                .update_while_editing(false);
            let response = ui.add(field).labelled_by(label.id);
            took.held = response.dragged();
            if response.changed() {
                took.value = Some(Json::from(value));
            }
        }
        let tick = ui.checkbox(&mut share, "%");
        name_it_ticked(&tick, share, &format!("{} in percent", entry.name));
        if share != before {
            // Not the same amount, as their number is not known here; the nearest that can be written.
            took.value = Some(match percent {
                Some(percent) => number(percent, true),
                None => Json::from(format!("{}%", shown.as_u64().unwrap_or(0).min(100))),
            });
        }
    });
    took
}

pub(super) fn name_it_ticked(response: &Response, ticked: bool, name: &str) {
    let enabled = response.enabled();
    response.widget_info(|| {
        egui::WidgetInfo::selected(egui::WidgetType::Checkbox, enabled, ticked, name)
    });
}

pub(super) fn tick(ui: &mut Ui, shown: &Json, entry: &Entry, label: &Response) -> Took {
    let mut value = shown.as_bool().unwrap_or(false);
    let response = ui.checkbox(&mut value, "").labelled_by(label.id);
    // An empty text would count more than the label.
    name_it_ticked(&response, value, &entry.name);
    Took {
        value: response.changed().then(|| Json::from(value)),
        ..Took::default()
    }
}

pub(super) fn choice(ui: &mut Ui, shown: &Json, words: &[String], label: &Response) -> Took {
    let mut took = Took::default();
    let now = shown.as_str().unwrap_or("");
    let response = egui::ComboBox::from_id_salt("choice")
        .selected_text(now)
        .show_ui(ui, |ui| {
            for word in words {
                if ui.selectable_label(word == now, word).clicked() && word != now {
                    took.value = Some(Json::from(word.as_str()));
                }
            }
        })
        .response;
    response.labelled_by(label.id);
    took
}

/// A text that is tried when it is left or Enter is pressed.
pub(super) fn text(ui: &mut Ui, shown: &Json, typed: Option<String>, label: &Response) -> Took {
    let now = shown.as_str().unwrap_or("").to_owned();
    typing(ui, &now, typed, label, |text| Ok(Json::from(text)))
}

pub(super) fn typing(
    ui: &mut Ui,
    now: &str,
    typed: Option<String>,
    label: &Response,
    read: impl Fn(&str) -> Result<Json, String>,
) -> Took {
    let mut text = typed.clone().unwrap_or_else(|| now.to_owned());
    let width = ui.available_width().clamp(60.0, 480.0);
    let breaks = text.contains('\n');
    let long = breaks || text.chars().count() > 60;
    // In a text of several lines Enter breaks one, and the command key with it tries the text.
    let field = match (breaks, long) {
        (true, _) => egui::TextEdit::multiline(&mut text).desired_rows(2),
        (false, true) => egui::TextEdit::multiline(&mut text)
            .desired_rows(2)
            .return_key(None),
        (false, false) => egui::TextEdit::singleline(&mut text),
    };
    let response = ui.add(field.desired_width(width)).labelled_by(label.id);
    let entered = long
        && response.has_focus()
        && ui.input(|input| input.key_pressed(Key::Enter) && (!breaks || input.modifiers.command));
    let left = response.lost_focus();
    if response.changed() || (typed.is_some() && (left || entered)) {
        let (value, fault) = match read(&text) {
            Ok(value) => (Some(value), None),
            Err(fault) => (None, Some(fault)),
        };
        return Took {
            value,
            text: (!left || fault.is_some()).then_some(text),
            held: !left && !entered,
            fault,
        };
    }
    Took {
        held: typed.is_some() && response.has_focus(),
        text: typed.filter(|_| response.has_focus()),
        ..Took::default()
    }
}

/// Reads `3, 10..16`: numbers and ranges.
pub(super) fn read_sites(text: &str) -> Result<Json, String> {
    let mut items = Vec::new();
    for item in text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let range = item
            .split_once("..")
            .map(|(from, to)| (from.trim(), to.trim()));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match range {
            Some((from, to)) if is_number(from) && is_number(to) => {
                items.push(Json::from(format!("{from}..{to}")));
            }
            None if is_number(item) => {
                let number = item
                    .parse::<u32>()
                    .map_err(|_| format!("{item} is too large"))?;
                items.push(Json::from(number));
            }
            _ => {
                return Err(format!(
                    "`{item}` is neither a number nor a range such as `10..16`"
                ));
            }
        }
    }
    Ok(if items.len() == 1 {
        items.remove(0)
    } else {
        Json::Array(items)
    })
}

pub(super) fn sites_text(value: &Json) -> String {
    match value {
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(sites_text).collect();
            items.join(", ")
        }
        Json::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// The sites that a value names among `count`.
pub(super) fn sites_of(value: &Json, count: usize) -> Vec<bool> {
    let mut on = vec![false; count];
    let mut mark = |item: &Json| {
        let (from, to) = match (item.as_str(), item.as_u64()) {
            (Some("all"), _) => (0, count),
            (Some(text), _) => {
                let parts = text.split_once("..");
                let parsed = parts.and_then(|(from, to)| {
                    Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))
                });
                parsed.unwrap_or((0, 0))
            }
            (None, Some(one)) => usize::try_from(one).map_or((0, 0), |one| (one, one + 1)),
            _ => (0, 0),
        };
        for site in on.iter_mut().take(to).skip(from) {
            *site = true;
        }
    };
    match value {
        Json::Array(items) => items.iter().for_each(mark),
        value => mark(value),
    }
    on
}

/// Sites as ranges and numbers.
pub(super) fn sites_value(on: &[bool]) -> Json {
    let mut items = Vec::new();
    let mut at = 0;
    while at < on.len() {
        let length = on[at..].iter().take_while(|on| **on).count();
        match length {
            0 => {}
            1 => items.push(Json::from(at)),
            _ => items.push(Json::from(format!("{at}..{}", at + length))),
        }
        at += length.max(1);
    }
    match items.len() {
        0 => Json::from("none"),
        1 => items.remove(0),
        _ => Json::Array(items),
    }
}

pub(super) fn sites(
    ui: &mut Ui,
    shown: &Json,
    typed: Option<String>,
    count: Option<usize>,
    entry: &Entry,
    label: &Response,
) -> Took {
    const WORDS: [&str; 3] = ["auto", "all", "none"];
    let mut took = Took::default();
    let word = shown.as_str().filter(|text| WORDS.contains(text));
    ui.horizontal_wrapped(|ui| {
        for name in WORDS {
            let button = ui.selectable_label(word == Some(name) && typed.is_none(), name);
            let full = format!("{} {name}", entry.name);
            name_it(&button, egui::WidgetType::SelectableLabel, &full);
            if button.clicked() {
                took.value = Some(Json::from(name));
            }
        }
    });
    let list = if word.is_some() {
        String::new()
    } else {
        sites_text(shown)
    };
    let entered = typing(ui, &list, typed, label, |text| {
        let text = text.trim();
        if WORDS.contains(&text) {
            return Ok(Json::from(text));
        }
        read_sites(text)
    });
    if took.value.is_none() {
        took = entered;
    }
    if let Some(count) = count {
        let mut on = sites_of(shown, count);
        ui.horizontal_wrapped(|ui| {
            let mut changed = false;
            for (site, on) in on.iter_mut().enumerate() {
                let tick = ui.checkbox(on, site.to_string());
                name_it_ticked(&tick, *on, &format!("{} {site}", entry.name));
                changed |= tick.changed();
            }
            if changed {
                took = Took {
                    value: Some(sites_value(&on)),
                    ..Took::default()
                };
            }
        });
    }
    took
}

pub(super) fn threshold(ui: &mut Ui, shown: &Json, entry: &Entry, label: &Response) -> Took {
    let mut took = Took::default();
    let number = shown.as_f64();
    ui.horizontal_wrapped(|ui| {
        for name in ["otsu", "soft"] {
            let button = ui.selectable_label(shown.as_str() == Some(name), name);
            let full = format!("{} {name}", entry.name);
            name_it(&button, egui::WidgetType::SelectableLabel, &full);
            if button.clicked() {
                took.value = Some(Json::from(name));
            }
        }
        let button = ui.selectable_label(number.is_some(), "number");
        name_it(
            &button,
            egui::WidgetType::SelectableLabel,
            &format!("{} number", entry.name),
        );
        if button.clicked() && number.is_none() {
            took.value = Some(Json::from(0.5));
        }
    });
    if number.is_some() {
        let slid = slider(ui, shown, 0.0, 1.0, false, label);
        if took.value.is_none() {
            took = slid;
        }
    }
    took
}

pub(super) fn as_yaml(ui: &mut Ui, shown: &Json, typed: Option<String>, label: &Response) -> Took {
    let now = edit::line(shown, false);
    typing(ui, &now, typed, label, |text| {
        let mut problems = Vec::new();
        let tree = yaml::parse(&Source::new("", text), &mut problems);
        match (tree, problems.first()) {
            (Some(tree), None) => Ok(tree.to_json()),
            (_, Some(problem)) => Err(problem.message().to_owned()),
            (None, None) => Err("invalid YAML".to_owned()),
        }
    })
}
