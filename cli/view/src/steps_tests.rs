use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eframe::egui::{self, Key, Modifiers};
use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT, Queryable};
use retouch_nodes::look::{
    GazeRow, Heads, Part, Place, Plane, QueriesOf, SiteSummary, StepMasks, Summary, Whose,
};

use super::super::looks::{Answer, GazeAt, Looks, Pixels, Reply, Request};
use super::*;

fn plane(h: usize, w: usize, of: impl Fn(usize, usize) -> f32) -> Plane {
    let cells = (0..h).flat_map(|y| (0..w).map(move |x| (y, x)));
    Plane {
        height: h,
        width: w,
        data: cells.map(|(y, x)| of(y, x)).collect(),
    }
}

/// A swap of 12 steps from step 2 on, of which latent 9 is lost; two images, one reference.
fn summary() -> Summary {
    let site = |index, part, side, swapped| SiteSummary {
        index,
        part,
        grid: (side, side),
        heads: Heads {
            count: 2,
            scale: 0.5,
        },
        swapped,
    };
    let mut latents = vec![Place::Kept("memory"); 13];
    latents[0] = Place::Given;
    latents[9] = Place::Gone;
    Summary {
        node: "draw".to_owned(),
        op: "sample",
        steps: 12,
        first: 2,
        images: 2,
        latent: (8, 8),
        latents,
        masks: 3..12,
        references: 1,
        sites: vec![
            site(0, Part::Down, 8, false),
            site(1, Part::Mid, 2, false),
            site(2, Part::Up, 4, true),
        ],
        subject: Some("teddy bear".to_owned()),
    }
}

/// Answers at once, but for what it is told to hold back.
#[derive(Default)]
struct Fake {
    summary: Option<Arc<Summary>>,
    replies: BTreeMap<Request, Reply>,
    asked: BTreeSet<Request>,
    answers: BTreeMap<Request, Answer>,
    busy: bool,
}

impl Fake {
    fn new() -> Self {
        Self {
            summary: Some(Arc::new(summary())),
            ..Self::default()
        }
    }

    fn make(request: &Request) -> Answer {
        let colour = |n: usize| (n * 37 % 256) as u8;
        match request {
            Request::Summary => Answer::Summary(Arc::new(summary())),
            Request::Picture { k, image, exact } => {
                let side = if *exact { 64 } else { 8 };
                let pixel = |n: usize| [colour(n), colour(k * 3), colour(image * 5 + 2)];
                Answer::Picture(Arc::new(Pixels {
                    width: side,
                    height: side,
                    rgb: (0..side * side).flat_map(pixel).collect(),
                }))
            }
            Request::Source { .. } => Answer::Picture(Arc::new(Pixels {
                width: 8,
                height: 8,
                rgb: vec![90; 192],
            })),
            Request::Masks { k } => {
                let mask = |from: usize, to: usize| {
                    vec![plane(4, 4, |y, x| {
                        f32::from(u8::from((from..to).contains(&y) && (from..to).contains(&x)))
                    })]
                };
                Answer::Masks(Arc::new(StepMasks {
                    references: vec![mask(0, 2)],
                    context: mask(1, 3),
                    blend: mask(1, 3 + k % 2),
                }))
            }
            Request::Words { .. } => {
                let map = plane(4, 4, |y, x| (x + y) as f32 / 6.0);
                Answer::Words(Arc::new(vec![map.clone(), map]))
            }
            Request::Gaze { site, at, .. } => {
                let side = if *site == 2 { 4 } else { 2 };
                let near = |y: usize, x: usize| {
                    if (y, x) == *at {
                        0.7
                    } else {
                        0.3 / (side * side - 1) as f32
                    }
                };
                let row = GazeRow {
                    share: (*site == 2).then_some(0.25),
                    planes: match site {
                        2 => vec![
                            (
                                Whose::Reference(0),
                                plane(2, 4, |y, x| (y * 4 + x) as f32 / 28.0),
                            ),
                            (Whose::Context, plane(4, 4, near)),
                        ],
                        _ => vec![(Whose::Own, plane(2, 2, near))],
                    },
                };
                Answer::Gaze(Arc::new(GazeAt {
                    grid: (side, side),
                    queries_of: QueriesOf::Context,
                    row,
                }))
            }
        }
    }
}

impl Looks for Fake {
    fn frame(&mut self) {
        self.asked.clear();
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.asked.insert(request.clone());
        if let Some(reply) = self.replies.get(request) {
            return reply.clone();
        }
        match (request, &self.summary) {
            (Request::Summary, Some(summary)) => Reply::Ready(Answer::Summary(summary.clone())),
            (Request::Summary, None) => Reply::Working("reading what is kept".to_owned()),
            (Request::Picture { k: 9, .. }, _) => Reply::Failed {
                message:
                    "latent 9 of `draw` is not in the cache, and the viewer does not recompute it"
                        .to_owned(),
                help: Some("run the workflow again".to_owned()),
            },
            (Request::Gaze { .. }, _) if self.busy => {
                Reply::Waiting("a call of the U-Net up to site 2".to_owned())
            }
            _ => {
                let answer = self.answers.entry(request.clone());
                Reply::Ready(answer.or_insert_with(|| Self::make(request)).clone())
            }
        }
    }

    fn subject(&self, whose: Whose) -> Option<String> {
        Some(match whose {
            Whose::Context => "bear".to_owned(),
            _ => "teddy bear".to_owned(),
        })
    }
}

struct Stage {
    steps: Steps,
    looks: Fake,
}

fn window(width: f32, height: f32, theme: egui::Theme) -> Harness<'static, Stage> {
    Harness::builder()
        .with_size(vec2(width, height))
        .with_theme(theme)
        .build_ui_state(
            |ui, stage: &mut Stage| stage.steps.show(ui, &mut stage.looks),
            Stage {
                steps: Steps::new(),
                looks: Fake::new(),
            },
        )
}

fn stage() -> Harness<'static, Stage> {
    window(900.0, 700.0, egui::Theme::Dark)
}

fn step(harness: &Harness<'_, Stage>) -> usize {
    harness.state().steps.step().unwrap()
}

fn requested(harness: &Harness<'_, Stage>, of: impl Fn(&Request) -> bool) -> bool {
    harness.state().looks.asked.iter().any(of)
}

#[test]
fn the_scrubber_is_moved_by_keys_by_the_pointer_and_by_a_screen_reader() {
    let mut harness = stage();
    harness.run();
    assert_eq!(step(&harness), 12);
    harness.get_by_label("Latent 12 of 12, image 1");
    let slider = harness.get_by_label("Step");
    assert_eq!(slider.accesskit_node().numeric_value(), Some(12.0));
    slider.focus();
    harness.run();
    for (key, expected) in [
        (Key::ArrowLeft, 11),
        (Key::ArrowLeft, 10),
        (Key::ArrowRight, 11),
        (Key::Home, 0),
        (Key::ArrowLeft, 0),
        (Key::PageDown, 5),
        (Key::PageUp, 0),
        (Key::End, 12),
        (Key::ArrowRight, 12),
    ] {
        harness.key_press(key);
        harness.run();
        assert_eq!(step(&harness), expected, "{key:?}");
        assert!(
            harness.get_by_label("Step").is_focused(),
            "{key:?} moved the focus"
        );
    }
    let rect = harness.get_by_label("Step").rect();
    harness.drag_at(rect.center());
    harness.run();
    harness.drop_at(rect.center());
    harness.run();
    assert_eq!(step(&harness), 6);
    harness.get_by_label("Latent 6 of 12, image 1");
    assert!(requested(&harness, |request| matches!(
        request,
        Request::Picture {
            k: 6,
            image: 0,
            exact: false
        }
    )));
    // What is asked for at once is what is shown, no more.
    let pictures = harness.state().looks.asked.iter();
    let pictures = pictures.filter(|request| matches!(request, Request::Picture { .. }));
    assert_eq!(pictures.count(), 1);
}

#[test]
fn play_shows_one_latent_after_another_passes_over_what_is_not_kept_and_ends() {
    let mut harness = stage();
    harness.run();
    harness.get_by_label("Play").click();
    let (mut seen, mut paused) = (BTreeSet::new(), false);
    for _ in 0..60 {
        harness.step();
        // From the end it begins again.
        seen.insert(step(&harness));
        paused |= harness.query_by_label("Pause").is_some();
    }
    assert!(paused);
    harness.run();
    let expected: BTreeSet<usize> = (0..=12).filter(|&k| k != 9).collect();
    assert_eq!(seen, expected);
    harness.get_by_label("Play");
    assert_eq!(step(&harness), 12);
}

#[test]
fn what_is_kept_is_marked_and_what_is_not_is_said_with_how_to_get_it() {
    let mut harness = stage();
    harness.run();
    harness.get_by_label_contains("12 of 13 are kept");
    harness.state_mut().steps.go_to(9);
    harness.run();
    harness.get_by_label_contains("latent 9 of `draw` is not in the cache");
    harness.get_by_label_contains("run the workflow again");
    harness.state_mut().steps.go_to(0);
    harness.run();
    harness.get_by_label_contains("comes with the inputs");
    // A node that was not looked through yet.
    let mut harness = stage();
    harness.state_mut().steps = Steps::new();
    harness.state_mut().looks.summary = None;
    harness.run();
    harness.get_by_label_contains("reading what is kept");
    assert!(harness.query_by_label("Step").is_none());
}

#[test]
fn masks_are_outlined_at_the_steps_that_swap_with_a_legend() {
    let mut harness = stage();
    harness.run();
    assert!(
        harness
            .query_by_label("colour of the reference mask")
            .is_none()
    );
    harness.get_by_label("Masks").click();
    harness.run();
    for name in ["reference", "context", "blend"] {
        harness.get_by_label(&format!("colour of the {name} mask"));
    }
    // The last latent has no step after it.
    harness.get_by_label_contains("steps 3 to 11 do");
    harness.state_mut().steps.go_to(5);
    harness.run();
    assert!(requested(&harness, |request| *request == Request::Masks { k: 5 }));
    assert!(
        harness
            .query_by_label_contains("steps 3 to 11 do")
            .is_none()
    );
    // A sampler without a swap has none.
    let mut plain = summary();
    (plain.masks, plain.references) = (0..0, 0);
    harness.state_mut().looks.summary = Some(Arc::new(plain));
    harness.run();
    assert!(harness.get_by_label("Masks").accesskit_node().is_disabled());
    assert!(!requested(&harness, |request| matches!(
        request,
        Request::Masks { .. }
    )));
}

#[test]
fn cross_attention_is_asked_for_by_the_words_of_the_branch() {
    let mut harness = stage();
    harness.state_mut().steps.go_to(4);
    harness.run();
    harness.get_by_label("Cross-attention").click();
    harness.run();
    let words = |whose, subject: &str| Request::Words {
        k: 4,
        whose,
        subject: subject.to_owned(),
    };
    assert!(requested(&harness, |request| *request
        == words(Whose::Own, "teddy bear")));
    harness.get_by_label("opacity");
    harness
        .get_by(|node| node.role() == egui::accesskit::Role::ComboBox)
        .click();
    harness.run();
    harness.get_by_label("the context").click();
    harness.run();
    assert!(requested(&harness, |request| *request
        == words(Whose::Context, "bear")));
    // Steps before the first are another node's.
    harness.state_mut().steps.go_to(1);
    harness.run();
    harness.get_by_label_contains("steps before 2 are the context's own");
    assert!(!requested(&harness, |request| matches!(
        request,
        Request::Words { .. }
    )));
}

#[test]
fn the_query_follows_the_pointer_is_pinned_by_a_click_and_moved_by_arrows() {
    let mut harness = stage();
    harness.state_mut().steps.go_to(4);
    harness.run();
    harness.get_by_label("Self-attention").click();
    harness.run();
    // The first swapped site, and the middle.
    let at = |harness: &Harness<'_, Stage>| {
        let mut asked = harness.state().looks.asked.iter();
        asked.find_map(|request| match request {
            Request::Gaze {
                k: 4, site: 2, at, ..
            } => Some(*at),
            _ => None,
        })
    };
    assert_eq!(at(&harness), Some((2, 2)));
    harness.get_by_label("Self-attention to the reference");
    harness.get_by_label("Self-attention to the context");
    harness.get_by_label_contains("25 % of its output is taken from the reference");
    harness.get_by_label_contains("strongest at row 2, column 2");
    let rect = harness.get_by_label("Latent 4 of 12, image 1").rect();
    let cell = |row: f32, column: f32| {
        rect.min + vec2((column + 0.5) / 4.0, (row + 0.5) / 4.0) * rect.size()
    };
    harness.hover_at(cell(0.0, 3.0));
    harness.run();
    assert_eq!(at(&harness), Some((0, 3)));
    harness.drag_at(cell(1.0, 3.0));
    harness.drop_at(cell(1.0, 3.0));
    harness.run();
    harness.get_by_label_contains("query at row 1, column 3, pinned");
    harness.hover_at(cell(3.0, 0.0));
    harness.run();
    assert_eq!(at(&harness), Some((1, 3)));
    assert!(harness.get_by_label("Latent 4 of 12, image 1").is_focused());
    for (key, expected) in [
        (Key::ArrowDown, (2, 3)),
        (Key::ArrowRight, (2, 3)),
        (Key::ArrowLeft, (2, 2)),
        (Key::ArrowUp, (1, 2)),
    ] {
        harness.key_press(key);
        harness.run();
        assert_eq!(
            (at(&harness), step(&harness)),
            (Some(expected), 4),
            "{key:?}"
        );
    }
    harness.key_press_modifiers(Modifiers::NONE, Key::Escape);
    harness.run();
    // A run begins: what it takes, and that it waits, is said.
    harness.state_mut().looks.busy = true;
    harness.run();
    harness.get_by_label_contains("waits for the run's end: a call of the U-Net up to site 2");
    assert!(
        harness
            .query_by_label("Self-attention to the context")
            .is_none()
    );
}

#[test]
fn sites_and_heads_are_chosen_by_name_and_a_plain_site_has_its_own_keys() {
    let mut harness = stage();
    harness.state_mut().steps.go_to(4);
    harness.state_mut().steps.set_layers(false, false, true);
    harness.run();
    let combos = || egui::accesskit::Role::ComboBox;
    let open = |harness: &mut Harness<'static, Stage>, index: usize| {
        let all: Vec<_> = harness.get_all_by(|node| node.role() == combos()).collect();
        all[index].click();
        drop(all);
        harness.run();
    };
    open(&mut harness, 0);
    harness.get_by_label("1: mid 2x2").click();
    harness.run();
    harness.get_by_label("Self-attention to the target");
    open(&mut harness, 1);
    harness.get_by_label("1").click();
    harness.run();
    assert!(requested(&harness, |request| {
        matches!(
            request,
            Request::Gaze {
                site: 1,
                head: Some(1),
                ..
            }
        )
    }));
}

#[test]
fn the_image_and_the_vae_are_chosen_and_the_quick_picture_stands_in() {
    let mut harness = stage();
    harness.state_mut().steps.go_to(7);
    harness.state_mut().steps.image = 1;
    let exact = Request::Picture {
        k: 7,
        image: 1,
        exact: true,
    };
    let working = Reply::Working("decoding by the VAE".to_owned());
    harness
        .state_mut()
        .looks
        .replies
        .insert(exact.clone(), working);
    harness.run();
    harness.get_by_label("Image of the batch");
    harness.get_by_label("By the VAE").click();
    harness.run();
    harness.get_by_label_contains("computing: decoding by the VAE");
    let shown = |harness: &Harness<'_, Stage>| {
        let picture = harness.state().steps.picture.as_ref();
        picture.map(|picture| picture.of.width)
    };
    assert_eq!(shown(&harness), Some(8));
    harness.state_mut().looks.replies.remove(&exact);
    harness.run();
    assert_eq!(shown(&harness), Some(64));
    assert!(harness.query_by_label_contains("computing").is_none());
}

#[test]
fn it_works_at_400_by_300_in_both_themes_and_draws_what_it_says() {
    for theme in [egui::Theme::Dark, egui::Theme::Light] {
        let mut harness = window(400.0, 300.0, theme);
        harness.state_mut().steps.go_to(4);
        harness.run();
        let rect = harness.get_by_label("Step").rect();
        assert!(rect.left() >= 0.0 && rect.right() <= 400.0, "{rect:?}");
        harness.state_mut().steps.set_layers(true, true, true);
        harness.run();
        for name in [
            "Step",
            "Play",
            "Masks",
            "Self-attention",
            "Latent 4 of 12, image 1",
        ] {
            let rect = harness.get_by_label(name).rect();
            assert!(
                rect.left() >= 0.0 && rect.right() <= 400.0,
                "{name}: {rect:?}"
            );
        }
        // The keys reach what lies below the edge.
        harness.get_by_label("Step").focus();
        harness.run();
        harness.key_press(Key::End);
        harness.run();
        assert_eq!(step(&harness), 12);
        // Painted by the software adapter: there are outlines of all three colours.
        let mut harness = window(900.0, 700.0, theme);
        harness.state_mut().steps.go_to(5);
        harness.state_mut().steps.set_layers(true, false, false);
        harness.run();
        let image = harness.render().unwrap();
        for colour in [REFERENCE, CONTEXT, BLEND] {
            let near = |pixel: &image::Rgba<u8>| {
                let [r, g, b, _] = colour.to_array();
                (0..3).all(|c| pixel.0[c].abs_diff([r, g, b][c]) < 60)
            };
            let rect = harness.get_by_label("Latent 5 of 12, image 1").rect();
            let inside = image
                .enumerate_pixels()
                .filter(|(x, y, pixel)| rect.contains(pos2(*x as f32, *y as f32)) && near(pixel));
            let count = inside.count();
            assert!(count > 20, "{theme:?} {colour:?}: {count}");
        }
    }
}
