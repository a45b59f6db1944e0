use egui_kittest::kittest::Queryable;
use egui_kittest::{Harness, HarnessBuilder};
use serde_json::json;

use super::widgets::{read_sites, sites_of, sites_value};
use super::*;

fn entry(name: &str, kind: Kind, written: Json) -> Entry {
    Entry {
        file: PathBuf::from("w.yaml"),
        place: Place::Param(name.to_owned()),
        name: name.to_owned(),
        docs: format!("what {name} is"),
        kind,
        written: Some(written),
        default: None,
        check: Arc::new(|_| Ok(())),
    }
}

fn all() -> Vec<Entry> {
    vec![
        entry("share", Kind::Share, json!(0.5)),
        entry(
            "guidance",
            Kind::Float {
                min: Some(1.0),
                max: None,
            },
            json!(4.0),
        ),
        entry(
            "count",
            Kind::Int {
                min: Some(1.0),
                max: Some(999.0),
            },
            json!(50),
        ),
        entry("blend_steps", Kind::Steps, json!("20%")),
        entry("start_step", Kind::Steps, json!(4)),
        entry("seed", Kind::Seed, json!(43)),
        entry("measure", Kind::Bool, json!(false)),
        entry(
            "blend",
            Kind::Choice(vec!["union".into(), "context".into()]),
            json!("union"),
        ),
        entry("place", Kind::Text, json!("on a beach")),
        entry("model", Kind::Path, json!("models/world")),
        entry("layers", Kind::Sites { count: Some(16) }, json!("10..16")),
        entry("threshold", Kind::Threshold, json!("otsu")),
        entry("size", Kind::Yaml, json!([64, 64])),
    ]
}

#[derive(Default)]
struct State {
    panel: Panel,
    sections: Vec<Section>,
    trying: Trying,
    told: Vec<Told>,
    actions: Vec<Action>,
}

impl State {
    fn of(entries: Vec<Entry>) -> Self {
        Self {
            panel: Panel::new(1),
            sections: vec![Section {
                title: "workflow".into(),
                entries,
            }],
            ..Self::default()
        }
    }

    /// The values that were tried, in order.
    fn tries(&self) -> Vec<Json> {
        (self.actions.iter())
            .filter_map(|action| match action {
                Action::Try { value, .. } => Some(value.clone()),
                _ => None,
            })
            .collect()
    }
}

/// The panel in a window whose owner does what is asked for.
fn window(state: State, size: [f32; 2], theme: egui::Theme) -> Harness<'static, State> {
    HarnessBuilder::default()
        .with_size(egui::Vec2::from(size))
        .with_theme(theme)
        .with_step_dt(1.0 / 60.0)
        .with_max_steps(200)
        .build_ui_state(
            |ui, state: &mut State| {
                let actions = (state.panel).show(ui, &state.sections, &state.trying, &state.told);
                for action in &actions {
                    match action {
                        Action::Try { file, place, value } => {
                            state.trying.set(file, place.clone(), value.clone());
                        }
                        Action::Reset { file, place } => state.trying.reset(file, place),
                        Action::ResetAll => state.trying.reset_all(),
                        _ => {}
                    }
                }
                state.actions.extend(actions);
            },
            state,
        )
}

fn panel(entries: Vec<Entry>) -> Harness<'static, State> {
    window(State::of(entries), [420.0, 900.0], egui::Theme::Dark)
}

#[test]
fn each_kind_has_a_widget_with_the_params_name_in_any_size_and_theme() {
    for size in [[400.0, 300.0], [900.0, 700.0]] {
        for theme in [egui::Theme::Dark, egui::Theme::Light] {
            let mut window = window(State::of(all()), size, theme);
            window.run_steps(3);
            for entry in all() {
                // The widget itself, not the text beside it: that only names it.
                let _ = window.get_by_label(&entry.name);
            }
            for name in [
                "Reset all",
                "Copy as YAML",
                "Write to file…",
                "Next seed",
                "Random seed",
                "layers auto",
                "layers 15",
                "threshold otsu",
                "blend_steps in percent",
            ] {
                let node = window.get_by_label(name);
                if size[1] > 500.0 && name != "layers 15" {
                    assert!(
                        node.rect().right() <= size[0],
                        "{name} at {size:?}: {:?}",
                        node.rect()
                    );
                }
            }
            assert!(window.state().actions.is_empty());
        }
    }
}

#[test]
fn a_slider_that_is_dragged_tries_a_few_times_and_on_release_at_once() {
    let mut window = panel(vec![entry("share", Kind::Share, json!(0.5))]);
    window.run_steps(2);
    let rect = window.get_by_label("share").rect();
    let at = |share: f32| egui::pos2(rect.left() + share * rect.width(), rect.center().y);
    window.drag_at(at(0.5));
    window.step();
    // 60 frames are a second.
    for step in 0..60 {
        window.hover_at(at(0.5 + 0.004 * step as f32));
        window.step();
    }
    let held = window.state().tries().len();
    assert!((2..=5).contains(&held), "{held} in a second");
    window.drop_at(at(0.1));
    window.run_steps(2);
    let tries = window.state().tries();
    let last = tries.last().and_then(Json::as_f64).unwrap();
    assert!(last < 0.4, "{tries:?}");
    assert!(
        tries.iter().all(Json::is_f64),
        "a share stays a float: {tries:?}"
    );
    // Nothing more comes of it.
    let count = window.state().actions.len();
    window.run_steps(60);
    assert_eq!(window.state().actions.len(), count);
}

#[test]
fn a_seed_is_the_next_one_or_drawn_or_typed() {
    let mut window = panel(vec![entry("seed", Kind::Seed, json!(43))]);
    window.run_steps(2);
    window.get_by_label("Next seed").click();
    window.run_steps(2);
    window.get_by_label("Next seed").click();
    window.run_steps(2);
    assert_eq!(window.state().tries(), [json!(44), json!(45)]);
    window.get_by_label("Random seed").click();
    window.run_steps(2);
    window.get_by_label("Random seed").click();
    window.run_steps(2);
    let tries = window.state().tries();
    assert_eq!(tries.len(), 4);
    assert_ne!(tries[2], tries[3]);
    // By the keyboard: the field takes arrows.
    window.get_by_label("seed").focus();
    window.run_steps(2);
    window.key_press(Key::ArrowUp);
    window.run_steps(2);
    let drawn = tries[3].as_u64().unwrap();
    assert_eq!(window.state().tries().last(), Some(&json!(drawn + 1)));
    assert!(window.query_by_label_contains("the file says 43").is_some());
}

#[test]
fn what_differs_is_marked_and_goes_back_one_by_one_or_all() {
    let mut window = panel(vec![
        entry("measure", Kind::Bool, json!(false)),
        entry(
            "blend",
            Kind::Choice(vec!["union".into(), "context".into()]),
            json!("union"),
        ),
        entry("threshold", Kind::Threshold, json!("otsu")),
    ]);
    window.run_steps(2);
    assert!(window.query_by_label("Reset measure").is_none());
    window.get_by_label("measure").click();
    window.run_steps(2);
    window.get_by_label("threshold soft").click();
    window.run_steps(2);
    window.get_by_label("blend").click();
    window.run_steps(4);
    window.get_by_label("context").click();
    window.run_steps(4);
    assert_eq!(
        window.state().tries(),
        [json!(true), json!("soft"), json!("context")]
    );
    window.get_by_label("Reset measure").click();
    window.run_steps(2);
    let file = Path::new("w.yaml");
    assert_eq!(window.state().trying.of(file).len(), 2);
    assert!(window.query_by_label("Reset measure").is_none());
    // Back to what the file says is no longer tried, whoever says so.
    window.get_by_label("threshold otsu").click();
    window.run_steps(2);
    assert_eq!(window.state().trying.of(file).len(), 1);
    window.key_press_modifiers(Modifiers::COMMAND | Modifiers::SHIFT, Key::R);
    window.run_steps(2);
    assert!(window.state().trying.is_empty());
    assert_eq!(window.state().actions.last(), Some(&Action::ResetAll));
    // With nothing tried the buttons do nothing.
    window.key_press_modifiers(Modifiers::COMMAND, Key::S);
    window.run_steps(2);
    assert_eq!(window.state().actions.last(), Some(&Action::ResetAll));
}

#[test]
fn a_wrong_value_is_told_beside_its_widget_and_not_tried() {
    let mut size = entry("size", Kind::Yaml, json!(64));
    size.check = Arc::new(|value| match value.as_i64() {
        Some(_) => Ok(()),
        None => Err("`size` takes an integer".to_owned()),
    });
    let mut window = panel(vec![
        size,
        entry("layers", Kind::Sites { count: None }, json!("auto")),
    ]);
    window.run_steps(2);
    let enter = |window: &mut Harness<'static, State>, name: &str, text: &str| {
        window.get_by_label(name).focus();
        window.run_steps(2);
        window.key_press_modifiers(Modifiers::COMMAND, Key::A);
        window.run_steps(2);
        window.get_by_label(name).type_text(text);
        window.run_steps(2);
        window.key_press(Key::Enter);
        window.run_steps(2);
    };
    enter(&mut window, "size", "[1, ");
    assert!(window.state().tries().is_empty());
    assert!(window.query_by_label_contains("this is not YAML").is_some());
    enter(&mut window, "size", "large");
    assert!(window.state().tries().is_empty());
    assert!(window.query_by_label_contains("takes an integer").is_some());
    enter(&mut window, "size", "96");
    assert_eq!(window.state().tries(), [json!(96)]);
    assert!(window.query_by_label_contains("takes an integer").is_none());
    enter(&mut window, "layers", "3, x");
    assert_eq!(window.state().tries().len(), 1);
    assert!(
        window
            .query_by_label_contains("neither a number nor a range")
            .is_some()
    );
    enter(&mut window, "layers", "3, 10..16");
    assert_eq!(window.state().tries().last(), Some(&json!([3, "10..16"])));
    // What only the whole workflow can tell comes from outside.
    window.state_mut().told.push(Told {
        file: std::env::current_dir().unwrap().join("w.yaml"),
        place: Place::Param("layers".into()),
        message: "there are 16 sites".into(),
    });
    window.run_steps(2);
    assert!(window.query_by_label("there are 16 sites").is_some());
}

#[test]
fn steps_are_a_number_or_a_share() {
    let mut window = panel(vec![
        entry("blend_steps", Kind::Steps, json!("20%")),
        entry("start", Kind::Steps, json!(4)),
    ]);
    window.run_steps(2);
    window.get_by_label("start in percent").click();
    window.run_steps(2);
    window.get_by_label("blend_steps in percent").click();
    window.run_steps(2);
    assert_eq!(window.state().tries(), [json!("4%"), json!(20)]);
}

#[test]
fn writing_shows_the_difference_and_asks() {
    let old = "schema: retouch/v1\nparams:\n  size: {type: int, default: 64}\n";
    let change = Change {
        place: Place::Param("size".into()),
        value: json!(96),
    };
    let new = edit::edit(old, std::slice::from_ref(&change)).unwrap();
    let proposal = Proposal {
        file: "w.yaml".into(),
        old: old.into(),
        diff: edit::diff("w.yaml", old, &new),
        new,
    };
    for (theme, size) in [
        (egui::Theme::Dark, [400.0, 300.0]),
        (egui::Theme::Light, [800.0, 600.0]),
    ] {
        let mut state = State::of(vec![entry(
            "size",
            Kind::Int {
                min: None,
                max: None,
            },
            json!(64),
        )]);
        state
            .trying
            .set(Path::new("w.yaml"), change.place.clone(), json!(96));
        let mut window = window(state, size, theme);
        window.run_steps(2);
        window.key_press_modifiers(Modifiers::COMMAND, Key::S);
        window.run_steps(2);
        assert_eq!(window.state().actions, [Action::AskToWrite]);
        window.get_by_label("Copy as YAML").click();
        window.run_steps(2);
        assert_eq!(window.state().actions.last(), Some(&Action::CopyAsYaml));
        let ask = |window: &mut Harness<'static, State>| {
            window.state_mut().panel.ask(vec![proposal.clone()]);
            window.run_steps(3);
        };
        ask(&mut window);
        assert!(
            window
                .query_by_label("+  size: {type: int, default: 96}")
                .is_some()
        );
        assert!(
            window
                .query_by_label("-  size: {type: int, default: 64}")
                .is_some()
        );
        let write = window.get_by_label("Write").rect();
        assert!(
            write.bottom() <= size[1] && write.right() <= size[0],
            "{write:?}"
        );
        window.get_by_label("Cancel").click();
        window.run_steps(3);
        assert!(!window.state().panel.is_asking());
        ask(&mut window);
        window.key_press(Key::Escape);
        window.run_steps(3);
        assert!(!window.state().panel.is_asking());
        assert_eq!(window.state().actions.len(), 2);
        ask(&mut window);
        window.key_press(Key::Enter);
        window.run_steps(3);
        assert_eq!(
            window.state().actions.last(),
            Some(&Action::Write(vec![proposal.clone()]))
        );
        ask(&mut window);
        window.get_by_label("Write").click();
        window.run_steps(3);
        assert_eq!(window.state().actions.len(), 4);
        window
            .state_mut()
            .panel
            .tell("w.yaml was changed on the disk meanwhile");
        window.run_steps(2);
        assert!(window.query_by_label_contains("meanwhile").is_some());
    }
}

#[test]
fn a_tried_value_is_written_to_the_file_and_is_then_tried_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.yaml");
    let old = "schema: retouch/v1\nparams:\n  size: {type: int, default: 64}  # here\n";
    std::fs::write(&file, old).unwrap();
    let mut trying = Trying::default();
    trying.set(&file, Place::Param("size".into()), json!(96));
    let proposal = Proposal::of(&file, trying.of(&file)).unwrap();
    proposal.write().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, old.replace("64", "96"));
    let overlay = edit::Overlay::new(Arc::new(retouch_graph::DiskFiles::new()));
    assert!(
        trying
            .apply(&overlay, &retouch_graph::Settings::default())
            .is_empty()
    );
    assert!(trying.is_empty());
    // Another change of the file in between is not overwritten.
    assert!(proposal.write().is_err());
}

#[test]
fn the_shipped_workflow_has_fitting_widgets() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../workflows");
    let engine = retouch_graph::Engine::new(retouch_nodes::registry());
    let file = root.join("layout-and-retouch.yaml");
    let outer = engine.read(&file).unwrap();
    let inner_file = root.join("retouch.yaml");
    let inner = engine.read(&inner_file).unwrap();
    let of = |entries: &[Entry], name: &str| {
        entries
            .iter()
            .find(|entry| entry.name == name)
            .cloned()
            .unwrap()
    };
    let params = of_workflow(&file, &outer);
    assert_eq!(params.len(), outer.params.len());
    assert_eq!(of(&params, "blend_steps").kind, Kind::Steps);
    assert_eq!(
        of(&params, "guidance").kind,
        Kind::Float {
            min: Some(1.0),
            max: None
        }
    );
    assert_eq!(
        of(&params, "steps").kind,
        Kind::Int {
            min: Some(1.0),
            max: Some(999.0)
        }
    );
    assert_eq!(of(&params, "seed").kind, Kind::Seed);
    assert_eq!(of(&params, "place").kind, Kind::Text);
    assert!(matches!(of(&params, "blend").kind, Kind::Choice(words) if words.len() == 3));
    let steps = of(&params, "steps");
    assert!((steps.check)(&json!(50)).is_ok());
    assert!(
        (steps.check)(&json!(1000))
            .unwrap_err()
            .contains("the nearest is 999")
    );
    assert!((steps.check)(&json!("x")).is_err());

    let layout = of_node(&file, &outer, "layout", engine.registry(), None);
    assert_eq!(
        of(&layout, "blend_steps").follows(),
        Some("$params.blend_steps")
    );
    assert_eq!(of(&layout, "seed").kind, Kind::Seed);
    assert_eq!(of(&layout, "vanilla_prompt").follows(), None);
    let with = of_node(&file, &outer, "retouch", engine.registry(), Some(&inner));
    assert!(
        with.iter()
            .all(|entry| matches!(entry.place, Place::With { .. }))
    );
    assert_eq!(of(&with, "subject").written, Some(json!("teddy bear")));
    let swap = (inner.nodes.keys())
        .flat_map(|node| of_node(&inner_file, &inner, node, engine.registry(), None))
        .collect::<Vec<_>>();
    let sites = swap
        .iter()
        .find(|entry| matches!(entry.kind, Kind::Sites { .. }))
        .unwrap();
    assert!((sites.check)(&json!([1, "10..16"])).is_ok());
    assert!((sites.check)(&json!(-1)).is_err());
    let threshold = swap
        .iter()
        .find(|entry| entry.kind == Kind::Threshold)
        .unwrap();
    assert!((threshold.check)(&json!(0.5)).is_ok());
    assert!(
        (threshold.check)(&json!(2))
            .unwrap_err()
            .contains("from 0 to 1")
    );
    // A reference shows where the value is from, and no widget of its own.
    let mut window = panel(layout);
    window.run_steps(3);
    assert!(window.query_by_label("= $params.seed").is_some());
    assert!(window.query_by_label("Next seed").is_none());
}

#[test]
fn sites_are_boxes_and_ranges() {
    assert_eq!(
        sites_value(&sites_of(&json!("10..16"), 16)),
        json!("10..16")
    );
    assert_eq!(
        sites_value(&sites_of(&json!([0, "2..4", 9]), 12)),
        json!([0, "2..4", 9])
    );
    assert_eq!(sites_value(&sites_of(&json!("none"), 4)), json!("none"));
    assert_eq!(sites_value(&sites_of(&json!("all"), 4)), json!("0..4"));
    assert_eq!(sites_value(&sites_of(&json!(3), 4)), json!(3));
    assert_eq!(read_sites(" 1 , 3..5,"), Ok(json!([1, "3..5"])));
    assert_eq!(read_sites("10 .. 16"), Ok(json!("10..16")));
    assert!(read_sites("a").is_err());
    let mut window = panel(vec![entry(
        "layers",
        Kind::Sites { count: Some(6) },
        json!("2..4"),
    )]);
    window.run_steps(2);
    window.get_by_label("layers 4").click();
    window.run_steps(2);
    window.get_by_label("layers 0").click();
    window.run_steps(2);
    window.get_by_label("layers all").click();
    window.run_steps(2);
    assert_eq!(
        window.state().tries(),
        [json!("2..5"), json!([0, "2..5"]), json!("all")]
    );
}
