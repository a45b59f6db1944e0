//! The window over the real loop: files on a disk, runs, edits, requests.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use eframe::egui::vec2;
use egui_kittest::Harness;
use egui_kittest::kittest::Queryable;
use serde_json::json;

use crate::args::{Cli, Command};
use crate::runs::Kind;
use crate::watching::Request;
use retouch_view::app::{App, Start, Tab};
use retouch_view::edit::Place;
use retouch_view::feed::{Desk, Feed};
use retouch_view::memory::Memory;
use retouch_view::model::{Mark, Model, Phase};
use retouch_view::params::Proposal;

/// No run here takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn until(desk: &Desk, what: &str, is: impl Fn(&Model) -> bool) -> Model {
    let begun = Instant::now();
    loop {
        let model = desk.model().clone();
        if is(&model) {
            return model;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{what} does not come: {:?} {:?}",
            model.states,
            model.faults
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(file: &Path, text: &str) {
    // As editors do: beside it, then renamed.
    let draft = file.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(&draft, file).unwrap();
}

const TEXT: &str = "schema: retouch/v1   # a comment
name: small
params:
  side: {type: int, default: 24, min: 1, max: 64}
nodes:
  photo: {op: load_image, path: photo.png}
  small: {op: resize_image, image: $photo, width: $params.side, height: 16}
outputs:
  picture: {value: $small, save: \"small.png\"}
";

#[test]
fn edits_and_tries_run_at_once_and_a_broken_one_leaves_what_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.yaml");
    std::fs::write(&file, TEXT).unwrap();
    let photo = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8 * 8, y as u8 * 8, 90]));
    photo.save(folder.path().join("photo.png")).unwrap();
    let line = [
        "retouch".as_ref(),
        "view".as_ref(),
        file.as_os_str(),
        "--out".as_ref(),
        folder.path().join("out").as_os_str(),
        "--cache-dir".as_ref(),
        folder.path().join("cache").as_os_str(),
    ]
    .map(ToOwned::to_owned);
    let Command::View(args) = Cli::parse_from(line).command else {
        panic!("another command")
    };
    let (feed, desk, beginning, making) = Feed::new(false);
    let looping = std::thread::spawn(move || {
        retouch_view::follow(feed, |observer| {
            super::looked_at(&args.follow, observer, true, Kind::View)
        })
    });
    let begun = beginning.recv_timeout(PATIENCE).unwrap();
    let requests = begun.requests.clone();
    let waits = |desk: &Desk, what: &str, runs: usize| {
        until(desk, what, |model| {
            model.past.len() == runs && model.phase == Phase::Waiting
        })
    };
    let model = waits(&desk, "the first run", 1);
    assert_eq!(model.graph.outputs[0].name, "picture");
    assert_eq!(model.past[0].ran, 2);

    // A window over it, which fetches the picture from the cache.
    let sent = begun.requests.clone();
    let app = App::new(Start {
        desk: Arc::clone(&desk),
        request: Box::new(move |request| sent.send(request)),
        engine: Some(begun.engine),
        memory: Memory::default(),
        memory_file: None,
        select: None,
        step: None,
        tab: Some(Tab::Pictures),
        ends: false,
    });
    let mut window = Harness::builder()
        .with_size(vec2(1280.0, 800.0))
        .with_max_steps(12)
        .build_state(|ctx, app: &mut App| app.ui(ctx), app);
    let begun = Instant::now();
    while window.query_by_label("Picture picture").is_none() {
        assert!(begun.elapsed() < PATIENCE, "no picture");
        std::thread::sleep(Duration::from_millis(10));
        window.step();
    }

    // An edit runs what it touches.
    write(&file, &TEXT.replace("height: 16", "height: 20"));
    let model = waits(&desk, "the run of the edit", 2);
    assert_eq!(model.past[1].ran, 1);
    assert_eq!(model.state_of(0).mark(), Mark::Memory);
    assert_eq!(model.made.len(), 2);

    // A value that is tried runs at once, and the file stays.
    desk.trying()
        .set(&file, Place::Param("side".to_owned()), json!(40));
    requests.send(Request::Tried);
    let model = waits(&desk, "the run of what is tried", 3);
    assert_eq!(model.graph.params[0].value, json!(40));
    assert_eq!(model.made.back().unwrap().what, "side 40");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("default: 24"));
    window.step();
    window.get_by_label("Params").click();
    window.run_ok();
    assert!(window.query_by_label("Reset side").is_some());

    // One that does not fit is reported, and what was made stays.
    desk.trying()
        .set(&file, Place::Param("side".to_owned()), json!(4000));
    requests.send(Request::Tried);
    let model = until(&desk, "the fault", |model| !model.faults.is_empty());
    assert_eq!(model.graph.params[0].value, json!(40));

    // Written to the file it is a value like others, and nothing is tried any more.
    desk.trying()
        .set(&file, Place::Param("side".to_owned()), json!(48));
    let changes = desk.trying().of(&file).to_vec();
    Proposal::of(&file, &changes).unwrap().write().unwrap();
    let model = waits(&desk, "the run of what was written", 4);
    assert_eq!(model.graph.params[0].value, json!(48));
    assert!(desk.trying().is_empty());
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        written,
        TEXT.replace("height: 16", "height: 20")
            .replace("default: 24", "default: 48")
    );

    // A broken edit is reported with its line; mended, it is gone.
    write(&file, &written.replace("resize_image", "resize_imag"));
    let model = until(&desk, "the fault", |model| !model.faults.is_empty());
    assert_eq!(model.faults[0].line_column().0, 7);
    assert_eq!(model.graph.nodes.len(), 2);
    write(&file, &written);
    until(&desk, "the end of the fault", |model| {
        model.faults.is_empty() && model.phase == Phase::Waiting
    });

    // Asked to run again when all is there it runs nothing; asked to end it ends.
    let runs = desk.model().past.len();
    requests.send(Request::Run);
    let model = waits(&desk, "the run that was requested for", runs + 1);
    assert_eq!(model.past.back().unwrap().ran, 0);
    requests.send(Request::Close);
    let ended = looping.join().unwrap().unwrap();
    assert_eq!(ended, crate::Exit::Done);
    making.join().unwrap();
    assert_eq!(desk.model().phase, Phase::Over);
    drop(window);
}
