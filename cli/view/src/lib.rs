//! The viewer: a window beside the editor that shows what a workflow is doing, and what it did.
//!
//! The loop of `retouch watch` runs on a thread of its own and reports to [`feed`] what happens; that makes a [`model`] of it,
//! which knows nothing of windows; [`app`] draws the model. Requests go back to the loop: values to try, stop, run again.

pub mod app;
pub mod bench;
mod canvas;
pub mod edit;
mod editor;
pub mod feed;
mod gallery;
mod layout;
mod looks;
pub mod memory;
pub mod model;
mod panel;
pub mod params;
mod pictures;
mod problems;
mod screenshot;
mod shelf;
mod stepping;
mod steps;
mod theme;
mod tries;

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use eframe::egui::{Context, ViewportBuilder, vec2};
use retouch_common::output::{say, tell};
use retouch_common::watching::{Observer, Request};
use retouch_common::{Exit, Failure};
use retouch_graph::write::{self, Access};
use retouch_graph::{Code, Problems};

use crate::app::{App, Start, Tab};
use crate::feed::{Begun, Feed, Wanted};
use crate::memory::{Colours, Memory};
use crate::model::{Phase, State};

/// The size of a picture of the view, unless it is said otherwise.
const SIZE: (u16, u16) = (1280, 800);

/// How a window begins.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The node or group that is selected.
    pub select: Option<String>,
    /// The step of the selected sampler that is shown.
    pub step: Option<usize>,
    /// The area that is open.
    pub tab: Option<Tab>,
    /// The width and height in points.
    pub size: Option<(u16, u16)>,
    /// Dark or light, regardless of the system's theme.
    pub colours: Option<Colours>,
}

/// A picture of the view.
#[derive(Clone, Copy, Debug)]
pub struct Screenshot<'a> {
    /// The PNG file that it is written to.
    pub file: &'a Path,
    /// Pixels a point.
    pub scale: f32,
    /// Whether the file is named on standard output.
    pub named: bool,
}

/// Watches on a thread of its own, with a window on this one, as some systems demand. `ends`: the loop ends with the
/// window, once its run is over.
///
/// # Errors
/// When there is no screen, nothing to draw with, or as `watch` says.
pub fn window(
    options: Options,
    ends: bool,
    watch: impl FnOnce(&dyn Observer) -> Result<Exit, Failure> + Send,
) -> Result<Exit, Failure> {
    screen()?;
    let (feed, desk, beginning, _) = Feed::new(false);
    std::thread::scope(|scope| {
        let looping = scope.spawn(move || follow(feed, watch));
        let joined = |looping: std::thread::ScopedJoinHandle<'_, _>| {
            looping
                .join()
                .unwrap_or_else(|_| Err(Failure::failed("watching crashed")))
        };
        // A loop that does not begin has nothing to show, and says why.
        let Ok(begun) = beginning.recv() else {
            return joined(looping);
        };
        let requests = begun.requests.clone();
        let shown = catch_unwind(AssertUnwindSafe(|| show(Arc::clone(&desk), begun, options)));
        match shown {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                requests.send(Request::Stop);
                requests.send(Request::Close);
                let _ = joined(looping); // why there is no window is what is reported
                return Err(failure);
            }
            // A window that breaks takes no run along.
            Err(_) => {
                requests.send(Request::Close);
                joined(looping)?;
                return Err(Failure::failed(
                    "the window crashed; this is a bug in the program",
                ));
            }
        }
        if ends {
            if desk.model().phase == Phase::Running {
                tell("the window is closed; the run continues, Ctrl-C stops it");
            }
            requests.send(Request::Close);
        } else if desk.model().phase != Phase::Over {
            tell("the window is closed; watching continues until Ctrl-C");
        }
        joined(looping)
    })
}

/// The loop, reporting to the feed; the feed ends with it.
///
/// # Errors
/// As `watch` says.
pub fn follow(
    feed: Feed,
    watch: impl FnOnce(&dyn Observer) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let ended = watch(&feed);
    feed.over(
        ended
            .as_ref()
            .err()
            .map(|failure| failure.message().to_owned()),
    );
    ended
}

/// Opens the window and waits until it is closed.
fn show(desk: Arc<feed::Desk>, begun: Begun, options: Options) -> Result<(), Failure> {
    let memory_file = memory::file();
    let mut memory = Memory::read(memory_file.as_deref());
    if let Some(colours) = options.colours {
        memory.colours = colours;
    }
    if let Some((width, height)) = options.size {
        memory.size = (f32::from(width), f32::from(height));
    }
    let viewport = ViewportBuilder::default()
        .with_title("Retouch")
        .with_app_id("retouch")
        .with_inner_size(vec2(memory.size.0, memory.size.1))
        .with_min_inner_size(vec2(320.0, 240.0));
    let native = eframe::NativeOptions {
        viewport,
        renderer: eframe::Renderer::Wgpu,
        persist_window: false,
        ..eframe::NativeOptions::default()
    };
    let made = move |creation: &eframe::CreationContext<'_>| {
        let waker = creation.egui_ctx.clone();
        desk.wake_with(move || waker.request_repaint());
        let requests = begun.requests;
        let start = Start {
            desk,
            request: Box::new(move |request| requests.send(request)),
            engine: Some(begun.engine),
            memory,
            memory_file,
            select: options.select,
            step: options.step,
            tab: options.tab,
            ends: true,
        };
        Ok(Box::new(App::new(start)) as Box<dyn eframe::App>)
    };
    eframe::run_native("retouch", native, Box::new(made)).map_err(|error| match error {
        eframe::Error::Wgpu(error) => screenshot::no_adapter(&error),
        error => Failure::failed(format!("the window cannot be opened: {error}"))
            .code(Code::SystemRefused)
            .help("`retouch view FILE --screenshot view.png` needs no screen"),
    })
}

/// Whether there is a screen, where that can be known beforehand: better said before a run begins.
fn screen() -> Result<(), Failure> {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let free = cfg!(all(
        unix,
        not(target_os = "macos"),
        not(target_os = "android")
    ));
    if free
        && !["DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET"]
            .into_iter()
            .any(set)
    {
        return Err(Failure::failed("the window cannot be opened: there is no screen (neither DISPLAY nor WAYLAND_DISPLAY is set)")
            .code(Code::SystemRefused)
            .help("`retouch view FILE --screenshot view.png` needs none"));
    }
    Ok(())
}

/// Watches until the loop ends, on this thread and without a screen, and draws the view to a file.
///
/// # Errors
/// When the file does not end in `.png` or cannot be written, there is nothing to draw with, what is selected is not there,
/// or as `watch` says.
pub fn picture(
    options: Options,
    screenshot: &Screenshot<'_>,
    watch: impl FnOnce(&dyn Observer) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let file = screenshot.file;
    let png = file
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    if !png {
        return Err(
            Failure::usage(format!("{} does not end in .png", file.display()))
                .help("name it like `--screenshot view.png`"),
        );
    }
    screenshot::ask_no_screen();
    let canvas = screenshot::Canvas::new()?;
    let (feed, desk, beginning, making) = Feed::new(true);
    let feed = feed.wanting(Wanted {
        select: options.select.clone(),
        step: options.step,
    });
    let ended = follow(feed, watch)?;
    if ended == Exit::Interrupted {
        return Ok(ended); // what would be drawn is not what was asked for
    }
    let _ = making.join(); // all events are in the model now
    let Ok(begun) = beginning.recv() else {
        return Ok(ended);
    };
    let ctx = Context::default();
    let found = Arc::clone(&desk.model().faults);
    let faults = !found.is_empty();
    let (width, height) = options.size.unwrap_or(SIZE);
    // It cannot be dragged: steps and params take more room than pictures.
    let share = match options.tab {
        Some(Tab::Steps | Tab::Params) => 0.56,
        _ => 0.44,
    };
    let start = Start {
        desk: Arc::clone(&desk),
        request: Box::new(|_| {}),
        engine: Some(begun.engine),
        memory: Memory {
            colours: options.colours.unwrap_or(Colours::Dark),
            below: f32::from(height) * share,
            ..Memory::default()
        },
        memory_file: None,
        select: options.select,
        step: options.step,
        tab: options.tab.or_else(|| faults.then_some(Tab::Problems)),
        ends: false,
    };
    let mut app = App::new(start);
    let size = vec2(f32::from(width), f32::from(height));
    let bytes = canvas.draw(&mut app, &ctx, size, screenshot.scale)?;
    write::replace(file, &bytes, Access::Usual)
        .map_err(|e| Failure::unwritable(format!("{} cannot be written: {e}", file.display())))?;
    if screenshot.named {
        say(&format!("view  {}", file.display()))?;
    }
    let model = desk.model();
    let failed = model
        .states
        .iter()
        .any(|state| matches!(state, State::Failed { .. }));
    Ok(match (ended, faults, failed) {
        (_, true, _) => Exit::of(&Problems::new(found.to_vec())),
        (_, _, true) => Exit::Failed,
        (ended, ..) => ended,
    })
}
