use egui_kittest::kittest::Queryable;
use egui_kittest::{Harness, HarnessBuilder};

use super::*;

fn picture(name: &str, size: [usize; 2], pixel: impl Fn(usize, usize) -> [u8; 4]) -> Picture {
    let rgba: Vec<u8> = (0..size[1])
        .flat_map(|y| (0..size[0]).map(move |x| (x, y)))
        .flat_map(|(x, y)| pixel(x, y))
        .collect();
    Picture::new(name, size, Arc::from(rgba)).unwrap()
}

fn plain(name: &str, size: [usize; 2], rgb: [u8; 3]) -> Picture {
    picture(name, size, |_, _| [rgb[0], rgb[1], rgb[2], 255])
}

#[derive(Default)]
struct State {
    viewer: Viewer,
    pictures: Vec<Picture>,
    pointed: Option<Pointed>,
}

fn window(pictures: Vec<Picture>, size: [f32; 2], theme: egui::Theme) -> Harness<'static, State> {
    builder(size, theme).build_ui_state(
        show,
        State {
            pictures,
            ..State::default()
        },
    )
}

fn builder(size: [f32; 2], theme: egui::Theme) -> HarnessBuilder<State> {
    HarnessBuilder::default()
        .with_size(Vec2::from(size))
        .with_theme(theme)
        .with_step_dt(1.0 / 60.0)
}

fn show(ui: &mut Ui, state: &mut State) {
    state.pointed = state.viewer.show(ui, &state.pictures);
}

fn canvas(window: &Harness<'static, State>) -> Rect {
    window.get_by_role(egui::accesskit::Role::Image).rect()
}

fn pair() -> Vec<Picture> {
    vec![
        plain("a", [8, 8], [200, 0, 0]),
        plain("b", [8, 8], [0, 0, 180]),
    ]
}

#[test]
fn a_picture_has_four_bytes_for_each_pixel() {
    assert!(Picture::new("x", [2, 2], Arc::from(vec![0; 16])).is_some());
    assert!(Picture::new("x", [2, 2], Arc::from(vec![0; 15])).is_none());
    assert!(Picture::new("x", [0, 2], Arc::from(vec![])).is_none());
    assert!(Picture::new("x", [usize::MAX, 2], Arc::from(vec![0; 16])).is_none());
}

#[test]
fn the_difference_is_absolute_and_its_numbers_are_of_all_pixels() {
    let a = picture("a", [2, 2], |x, y| [10 * x as u8, 20 * y as u8, 5, 255]);
    let b = picture("b", [2, 2], |_, _| [10, 0, 5, 200]);
    let found = difference(&a, &b);
    assert_eq!(found.rgb, [10, 0, 0, 0, 0, 0, 10, 20, 0, 0, 20, 0]);
    assert_eq!(found.max, 55, "alpha counts");
    assert!((found.mean - 60.0 / 12.0).abs() < 1e-12);
    let none = difference(&a, &a);
    assert_eq!((none.max, none.mean), (0, 0.0));
    // Twice the size and the same content is no difference.
    let large = picture("c", [4, 4], |x, y| a.pixel(x / 2, y / 2).unwrap());
    assert_eq!(matched(a.size, large.size), (Match::Scaled, [4, 4]));
    assert_eq!(difference(&large, &a).max, 0);
    // Of another aspect: what both cover.
    let wide = picture("d", [3, 1], |x, y| a.pixel(x.min(1), y).unwrap());
    assert_eq!(matched(a.size, wide.size), (Match::Overlapping, [3, 2]));
    let found = difference(&a, &wide);
    assert_eq!((found.size, found.max), ([2, 1], 0));
}

#[test]
fn the_pixel_under_the_pointer_is_told_at_any_zoom() {
    let odd = picture("odd", [5, 3], |x, y| [50 * x as u8, 100 * y as u8, 7, 255]);
    for theme in [egui::Theme::Dark, egui::Theme::Light] {
        for size in [[400.0, 300.0], [900.0, 300.0]] {
            let mut window = window(vec![odd.clone()], size, theme);
            window.run_steps(2);
            let rect = canvas(&window);
            assert!(
                rect.right() <= size[0] && rect.bottom() <= size[1],
                "{rect:?}"
            );
            // All of it is in the middle: the pixel in the middle is (2, 1).
            window.hover_at(rect.center());
            window.run_steps(2);
            let pointed = window.state().pointed.clone().unwrap();
            assert_eq!((pointed.at, pointed.rgba), ([2, 1], [100, 100, 7, 255]));
            assert!(window.query_by_label("2, 1: #646407").is_some());
            // One pixel of the screen for one of the picture: a step to the right is the next one.
            window.get_by_label("1:1").click();
            window.run_steps(2);
            for (step, due) in [(-2.0, 0), (-1.0, 1), (0.0, 2), (1.0, 3), (2.0, 4)] {
                window.hover_at(rect.center() + vec2(step, 0.0));
                window.run_steps(2);
                let at = window.state().pointed.as_ref().unwrap().at;
                assert!(at[0].abs_diff(due) <= 1, "{at:?} at {step}");
            }
            window.hover_at(rect.center() + vec2(30.0, 0.0));
            window.run_steps(2);
            assert_eq!(window.state().pointed, None);
        }
    }
}

#[test]
fn the_wheel_zooms_about_the_pointer_and_a_drag_moves() {
    let large = picture("large", [400, 400], |x, y| {
        [(x / 2) as u8, (y / 2) as u8, 0, 255]
    });
    let mut window = window(vec![large], [500.0, 560.0], egui::Theme::Dark);
    window.run_steps(2);
    let rect = canvas(&window);
    let at = rect.center() + vec2(60.0, -40.0);
    window.hover_at(at);
    window.run_steps(2);
    let before = window.state().pointed.clone().unwrap().at;
    for _ in 0..4 {
        window.event(egui::Event::MouseWheel {
            unit: egui::MouseWheelUnit::Point,
            delta: vec2(0.0, 60.0),
            modifiers: Modifiers::NONE,
        });
        window.run_steps(20);
    }
    let after = window.state().pointed.clone().unwrap().at;
    let zoom = window.state().viewer.zoom.unwrap();
    assert!(zoom > 1.5, "{zoom}");
    assert!(
        after[0].abs_diff(before[0]) <= 2 && after[1].abs_diff(before[1]) <= 2,
        "{before:?} {after:?}"
    );
    // Dragged by 50 points to the right, what is under the pointer goes with it.
    window.drag_at(at);
    window.step();
    window.hover_at(at + vec2(50.0, 0.0));
    window.step();
    window.drop_at(at + vec2(50.0, 0.0));
    window.hover_at(at + vec2(50.0, 0.0));
    window.run_steps(2);
    let moved = window.state().pointed.clone().unwrap().at;
    assert!(moved[0].abs_diff(after[0]) <= 2, "{after:?} {moved:?}");
    window.hover_at(at);
    window.run_steps(2);
    assert!(window.state().pointed.clone().unwrap().at[0] + 5 < after[0]);
}

#[test]
fn everything_is_reached_by_keys() {
    let mut window = window(pair(), [400.0, 300.0], egui::Theme::Light);
    window.run_steps(2);
    window.get_by_label("Picture a").focus();
    window.run_steps(2);
    // Without a pointer it is the middle that is told.
    let at = window.state().pointed.as_ref().unwrap().at;
    assert!(at.iter().all(|at| (3..=4).contains(at)), "{at:?}");
    let press = |window: &mut Harness<'static, State>, key| {
        window.key_press(key);
        window.run_steps(2);
    };
    press(&mut window, Key::Num1);
    assert_eq!(window.state().viewer.zoom, Some(1.0));
    press(&mut window, Key::Plus);
    assert_eq!(window.state().viewer.zoom, Some(1.25));
    press(&mut window, Key::Minus);
    assert_eq!(window.state().viewer.zoom, Some(1.0));
    press(&mut window, Key::ArrowRight);
    assert!(window.state().viewer.centre.x > 0.5);
    assert!(
        window.get_by_label("Picture a").is_focused(),
        "arrows stay with the picture"
    );
    press(&mut window, Key::Num0);
    assert_eq!(window.state().viewer.zoom, None);
    press(&mut window, Key::W);
    assert_eq!(window.state().viewer.mode, Mode::Wipe);
    press(&mut window, Key::CloseBracket);
    assert!((window.state().viewer.wipe - 0.52).abs() < 1e-6);
    press(&mut window, Key::B);
    assert_eq!(window.state().viewer.mode, Mode::Blink);
    press(&mut window, Key::D);
    assert_eq!(window.state().viewer.mode, Mode::Difference);
    assert!(
        window
            .query_by_label("max 200, mean 126.667 of 255")
            .is_some()
    );
    press(&mut window, Key::S);
    assert_eq!(window.state().viewer.mode, Mode::Single);
}

#[test]
fn a_wipe_shows_each_picture_on_its_side_and_its_line_is_dragged() {
    let mut window = window(pair(), [400.0, 300.0], egui::Theme::Dark);
    window.run_steps(2);
    window.get_by_label("Wipe").click();
    window.run_steps(2);
    let rect = canvas(&window);
    let side = |window: &mut Harness<'static, State>, x: f32| {
        window.hover_at(rect.center() + vec2(x, 0.0));
        window.run_steps(2);
        window.state().pointed.clone().unwrap().picture
    };
    assert_eq!(side(&mut window, -20.0), "a");
    assert_eq!(side(&mut window, 20.0), "b");
    window.drag_at(rect.center());
    window.step();
    window.hover_at(rect.center() + vec2(40.0, 0.0));
    window.step();
    window.drop_at(rect.center() + vec2(40.0, 0.0));
    window.run_steps(2);
    assert!(window.state().viewer.wipe > 0.55);
    assert_eq!(side(&mut window, 20.0), "a");
    let _ = window.get_by_label("Line");
    let _ = window.get_by_label("First picture: a");
    let _ = window.get_by_label("Second picture: b");
}

#[test]
fn only_blinking_draws_again_by_itself() {
    let delay = |mode| {
        let mut state = State {
            pictures: pair(),
            ..State::default()
        };
        state.viewer.mode = mode;
        let mut window = builder([400.0, 300.0], egui::Theme::Dark).build_ui_state(show, state);
        window.run_steps(8);
        let output = window.output();
        output
            .viewport_output
            .values()
            .map(|output| output.repaint_delay)
            .min()
            .unwrap()
    };
    for mode in [Mode::Single, Mode::Wipe, Mode::Difference] {
        assert!(
            delay(mode) > Duration::from_secs(60),
            "{mode:?}: {:?}",
            delay(mode)
        );
    }
    let blinking = delay(Mode::Blink);
    assert!(
        blinking <= Duration::from_millis(500) && blinking > Duration::ZERO,
        "{blinking:?}"
    );
}

#[test]
fn textures_are_uploaded_once_and_freed_with_their_pictures() {
    let large = plain("large", [2050, 10], [1, 2, 3]);
    let mut window = window(
        vec![large.clone(), large],
        [400.0, 300.0],
        egui::Theme::Dark,
    );
    window.run_steps(2);
    let textures =
        |window: &Harness<'static, State>| window.ctx.tex_manager().read().num_allocated();
    let before = textures(&window);
    assert_eq!(window.state().viewer.bytes(), 2050 * 10 * 4);
    let tiles: usize = window
        .state()
        .viewer
        .uploaded
        .iter()
        .map(|one| one.tiles.len())
        .sum();
    assert_eq!(tiles, 2, "one bytes, two tiles");
    window.run_steps(5);
    assert_eq!(textures(&window), before);
    for run in 0..20 {
        window.state_mut().pictures = vec![
            plain("a", [16, 16], [run, 0, 0]),
            plain("b", [16, 16], [0, run, 1]),
        ];
        window.state_mut().viewer.mode = Mode::Difference;
        window.run_steps(3);
        window.state_mut().viewer.mode = Mode::Wipe;
        window.run_steps(3);
        assert_eq!(window.state().viewer.bytes(), 2 * 16 * 16 * 4, "run {run}");
        assert!(textures(&window) <= before);
    }
    window.state_mut().pictures.clear();
    window.run_steps(3);
    assert_eq!(window.state().viewer.bytes(), 0);
    assert!(window.query_by_label("no pictures yet").is_some());
}

#[test]
fn a_sheet_tells_what_the_cell_under_the_pointer_is_of() {
    let grid: Grid = serde_json::from_value(serde_json::json!({
        "columns": 2, "column_labels": ["1", "2"], "row_labels": ["x", "y"], "blanks": [2], "cell": 16, "gap": 4,
    }))
    .unwrap();
    let facts = ImageFacts {
        batch: 1,
        width: 8,
        height: 8,
    };
    let labels = ["x=1", "x=2", "y=2"];
    let cells = grid_cells(&grid, &[facts; 3], |entry| labels[entry].to_owned()).unwrap();
    assert_eq!(cells.len(), 3);
    assert_eq!(cells[1].at[1], cells[0].at[1]);
    assert_eq!(
        cells[2].at[0], cells[1].at[0],
        "the blank is at the left of it"
    );
    assert!(grid_cells(&grid, &[], |_| String::new()).is_err());
    let right = cells
        .iter()
        .map(|cell| cell.at[0] + cell.size[0])
        .max()
        .unwrap()
        + 4;
    let lower = cells
        .iter()
        .map(|cell| cell.at[1] + cell.size[1])
        .max()
        .unwrap()
        + 4;
    let mut sheet = plain("sheet", [right, lower], [9, 9, 9]);
    sheet.cells = Arc::clone(&cells);
    let mut window = window(vec![sheet], [400.0, 300.0], egui::Theme::Dark);
    window.run_steps(2);
    let rect = canvas(&window);
    let scale = (rect.width() / right as f32).min(rect.height() / lower as f32);
    let min = rect.center() - size_of([right, lower]) * scale / 2.0;
    for cell in cells.iter() {
        let middle = size_of(cell.at) + size_of(cell.size) / 2.0;
        window.hover_at(min + middle * scale);
        window.run_steps(2);
        assert_eq!(
            window.state().pointed.as_ref().unwrap().cell.as_ref(),
            Some(&cell.label)
        );
        assert!(window.query_by_label_contains(&cell.label).is_some());
    }
    window.hover_at(min + vec2(1.0, 1.0) * scale);
    window.run_steps(2);
    assert_eq!(window.state().pointed.as_ref().unwrap().cell, None);
}

#[test]
fn the_scores_of_both_pictures_stand_above_them() {
    let scored = |name: &str, scores: &[(&str, f64)]| Picture {
        scores: scores
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect(),
        ..plain(name, [4, 4], [9, 9, 9])
    };
    let a = scored("a", &[("look", 0.3125), ("thing", 1.0)]);
    let b = scored("b", &[("place", 0.5), ("look", 0.25)]);
    assert_eq!(scores(&a, None), ["look 0.312", "thing 1.000"]);
    assert_eq!(
        scores(&a, Some(&b)),
        [
            "look 0.312 and 0.250 (-0.062)",
            "thing 1.000 and -",
            "place - and 0.500"
        ]
    );
    assert!(scores(&plain("c", [4, 4], [0; 3]), None).is_empty());
    let mut window = window(vec![a, b], [500.0, 300.0], egui::Theme::Dark);
    window.run_steps(2);
    assert!(window.query_by_label("look 0.312").is_some());
    window.state_mut().viewer.mode = Mode::Wipe;
    window.run_steps(2);
    assert!(
        window
            .query_by_label("look 0.312 and 0.250 (-0.062)")
            .is_some()
    );
    assert!(window.query_by_label("look 0.312").is_none());
}

#[test]
fn the_cells_of_a_sweep_have_their_params() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../workflows/sweep.yaml");
    let engine = retouch_graph::Engine::new(retouch_nodes::registry());
    let sweep = engine
        .load_sweep(&file, &retouch_graph::Settings::default())
        .unwrap();
    let facts = ImageFacts {
        batch: 1,
        width: 64,
        height: 64,
    };
    let grid = |blanks: &[usize]| -> Grid {
        serde_json::from_value(serde_json::json!({"columns": 4, "blanks": blanks, "cell": 64}))
            .unwrap()
    };
    let cells = sweep_cells(&sweep, &grid(&[]), &[facts; 16]).unwrap();
    assert_eq!(cells.len(), 16);
    assert_eq!(cells[0].label, "blend_steps=10%, seed=42");
    assert_eq!(cells[5].label, "blend_steps=20%, seed=43");
    // A cell that was left out is a blank, and the others keep their params.
    let cells = sweep_cells(&sweep, &grid(&[1]), &[facts; 15]).unwrap();
    assert_eq!(cells[1].label, "blend_steps=10%, seed=44");
}

/// What is painted, on the software adapter.
#[test]
fn pictures_are_painted_side_by_side() {
    for theme in [egui::Theme::Dark, egui::Theme::Light] {
        let checks = picture("checks", [2, 2], |x, y| {
            if (x + y) % 2 == 0 {
                [255, 255, 255, 255]
            } else {
                [0, 0, 0, 255]
            }
        });
        let state = State {
            pictures: vec![checks, plain("blue", [2, 2], [0, 0, 180])],
            ..State::default()
        };
        let mut window = builder([400.0, 300.0], theme)
            .wgpu()
            .build_ui_state(show, state);
        window.run_steps(3);
        let rect = canvas(&window);
        let side = rect.height().min(rect.width());
        let pixel = |window: &mut Harness<'static, State>, x: f32, y: f32| {
            let image = window.render().unwrap();
            let at = rect.center() + vec2(x, y) * side;
            image.get_pixel(at.x as u32, at.y as u32).0
        };
        assert_eq!(pixel(&mut window, -0.2, -0.2), [255, 255, 255, 255]);
        assert_eq!(pixel(&mut window, 0.2, -0.2), [0, 0, 0, 255]);
        assert_eq!(pixel(&mut window, 0.2, 0.2), [255, 255, 255, 255]);
        // This renderer filters by itself, the same on all devices; a window's does as the texture says.
        let texture = window.state().viewer.uploaded[0].tiles[0].texture.id();
        let textures = window.ctx.tex_manager();
        let options = textures.read().meta(texture).unwrap().options;
        assert_eq!(options.magnification, egui::TextureFilter::Nearest);
        assert_eq!(options.minification, egui::TextureFilter::Linear);
        window.state_mut().viewer.mode = Mode::Wipe;
        window.run_steps(3);
        let rect = canvas(&window);
        let side = rect.height().min(rect.width());
        let image = window.render().unwrap();
        let at = |x: f32, y: f32| {
            let at = rect.center() + vec2(x, y) * side;
            image.get_pixel(at.x as u32, at.y as u32).0
        };
        assert_eq!(at(-0.2, -0.2), [255, 255, 255, 255]);
        assert_eq!(at(0.2, 0.2), [0, 0, 180, 255]);
        assert_eq!(at(0.2, -0.2), [0, 0, 180, 255]);
    }
}
