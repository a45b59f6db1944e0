//! What the window costs: a frame of a large graph, and what a sampler loses while it is observed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eframe::egui::{self, Context, Event, Pos2, RawInput, Rect, vec2};
use retouch_common::Failure;
use retouch_common::output::{say, say_json};
use retouch_graph::event::Listener;
use retouch_graph::{Cancel, Engine, Key, Plan, RunOptions, Silent};
use serde_json::json;

use crate::app::{App, Start};
use crate::feed::{Desk, Feed};
use crate::memory::{Colours, Memory};
use crate::model::{Edge, Graph, News, Node, Port, State};

/// Nodes of the graph.
pub const NODES: usize = 500;
/// Frames that are measured of each view.
const FRAMES: usize = 120;
/// The size of the window in points.
const SIZE: egui::Vec2 = vec2(1280.0, 800.0);

/// A graph like those of large workflows: chains that share what they begin with, and join now and then.
#[must_use]
pub fn graph(count: usize) -> Graph {
    const OPS: [(&str, &str); 5] = [
        ("load_model", "model"),
        ("encode_reference", "latent"),
        ("sample", "latent"),
        ("decode", "image"),
        ("resize_image", "image"),
    ];
    let mut nodes = Vec::with_capacity(count);
    let mut edges = Vec::new();
    let mut forecast = Vec::with_capacity(count);
    for index in 0..count {
        let (op, _) = OPS[index % OPS.len()];
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(index as u64).to_le_bytes());
        let links = match index % OPS.len() {
            0 => Vec::new(),
            // Now and then of the chain before as well, and of the first model.
            1 if index > 11 => vec![index - 1, index - 8, 0],
            _ => vec![index - 1],
        };
        let inputs = links.iter().map(|from| Port {
            name: "input",
            types: &["latent"],
            docs: String::new(),
            key: None,
            links: vec![(*from, "output")],
        });
        edges.extend(links.iter().map(|from| Edge {
            from: *from,
            from_port: "output",
            to: index,
            to_port: "input",
            kind: OPS[from % OPS.len()].1,
        }));
        nodes.push(Node {
            inputs: inputs.collect(),
            ..bare(vec![format!("{op}_{index}")], op, Key(key))
        });
        forecast.push(match index % 7 {
            0 => State::Kept("memory"),
            1 => State::Kept("disk"),
            2 => State::Queued(Some((10, 50))),
            3 => State::Running {
                progress: (index % 50, 50),
                resumed: None,
            },
            4 => State::Done {
                seconds: 1.5,
                resumed: None,
            },
            _ => State::Queued(None),
        });
    }
    let mut graph = Graph {
        workflow: "large".to_owned(),
        nodes,
        edges,
        forecast,
        ..Graph::default()
    };
    graph.find_groups();
    graph
}

/// A window that is not shown.
struct Window {
    app: App,
    ctx: Context,
    time: f64,
}

impl Window {
    fn new(desk: Arc<Desk>) -> Self {
        let memory = Memory {
            colours: Colours::Dark,
            ..Memory::default()
        };
        let start = Start {
            desk,
            request: Box::new(|_| {}),
            engine: None,
            memory,
            memory_file: None,
            select: None,
            step: None,
            tab: None,
            ends: false,
        };
        Self {
            app: App::new(start),
            ctx: Context::default(),
            time: 0.0,
        }
    }

    /// A frame: the seconds of the window's own work, and the triangles that come of it.
    fn frame(&mut self, events: Vec<Event>) -> (f64, usize) {
        self.time += 1.0 / 60.0;
        let input = RawInput {
            screen_rect: Some(Rect::from_min_size(Pos2::ZERO, SIZE)),
            time: Some(self.time),
            events,
            ..RawInput::default()
        };
        let start = Instant::now();
        let output = self.ctx.run(input, |ctx| self.app.ui(ctx));
        let meshes = self.ctx.tessellate(output.shapes, output.pixels_per_point);
        let seconds = start.elapsed().as_secs_f64();
        let triangles = meshes.iter().map(|mesh| match &mesh.primitive {
            egui::epaint::Primitive::Mesh(mesh) => mesh.indices.len() / 3,
            egui::epaint::Primitive::Callback(_) => 0,
        });
        (seconds, triangles.sum())
    }
}

/// What was measured of a view, in seconds.
struct View {
    what: &'static str,
    median: f64,
    slowest: f64,
    triangles: usize,
}

fn frames(what: &'static str, window: &mut Window, pointer: bool) -> View {
    for _ in 0..8 {
        window.frame(Vec::new());
    }
    let mut seconds = Vec::with_capacity(FRAMES);
    let mut triangles = 0;
    for frame in 0..FRAMES {
        // The pointer goes over the boxes, as a user's does.
        let at = egui::pos2(100.0 + 5.0 * frame as f32, 120.0 + 2.0 * frame as f32);
        let events = if pointer {
            vec![Event::PointerMoved(at)]
        } else {
            Vec::new()
        };
        let (took, drawn) = window.frame(events);
        seconds.push(took);
        triangles = drawn;
    }
    seconds.sort_by(f64::total_cmp);
    View {
        what,
        median: seconds[FRAMES / 2],
        slowest: seconds[FRAMES * 95 / 100],
        triangles,
    }
}

/// Measures frames of a graph of 500 nodes, and what a sampler loses while a window is drawn; prints it.
///
/// # Errors
/// When the run fails, or standard output is closed.
pub fn bench(engine: &Engine, plan: &Plan, runs: u16, json: bool) -> Result<(), Failure> {
    let desk = Arc::new(Desk::default());
    desk.model().apply(News::Planned(Arc::new(graph(NODES))));
    let mut window = Window::new(Arc::clone(&desk));
    let start = Instant::now();
    window.frame(Vec::new());
    let first = start.elapsed().as_secs_f64();
    let whole = frames("the whole graph", &mut window, true);
    let press = |key| Event::Key {
        key,
        physical_key: None,
        pressed: true,
        repeat: false,
        modifiers: egui::Modifiers::NONE,
    };
    window.frame(vec![press(egui::Key::Num0)]);
    let near = frames("at full size, with all texts", &mut window, true);
    let views = [whole, near];
    let loss = loss(engine, plan, runs)?;
    if json {
        let views: Vec<_> = (views.iter())
            .map(|view| json!({"view": view.what, "median_ms": view.median * 1e3, "p95_ms": view.slowest * 1e3, "triangles": view.triangles}))
            .collect();
        let line = json!({"nodes": NODES, "first_frame_ms": first * 1e3, "frames": views,
            "sampler": {"alone": loss.alone, "watched": loss.watched, "ratio": loss.watched / loss.alone, "frames": loss.frames}});
        return say_json(&line.to_string());
    }
    say(&format!(
        "a graph of {NODES} nodes in a window of 1280 x 800 points, layout kept:"
    ))?;
    say(&format!(
        "  {:44} {:7.2} ms",
        "the first frame: layout, letters",
        first * 1e3
    ))?;
    for view in &views {
        say(&format!(
            "  {:44} {:7.2} ms (95 of 100 under {:.2} ms; {} triangles)",
            view.what,
            view.median * 1e3,
            view.slowest * 1e3,
            view.triangles
        ))?;
    }
    say(&format!(
        "a sampler while a window is drawn: {:.2} s, alone {:.2} s: {:+.1} % ({} frames a run)",
        loss.watched,
        loss.alone,
        (loss.watched / loss.alone - 1.0) * 100.0,
        loss.frames
    ))
}

/// The sampler's seconds.
struct Loss {
    alone: f64,
    watched: f64,
    /// Frames that were drawn in a run that was watched.
    frames: u64,
}

/// Runs a plan alone and with a window in turns. The fastest of each count: whatever else the machine does only slows.
fn loss(engine: &Engine, plan: &Plan, runs: u16) -> Result<Loss, Failure> {
    let run = |listener: &dyn Listener| -> Result<f64, Failure> {
        let start = Instant::now();
        engine
            .run(plan, listener, &Cancel::new(), &RunOptions::default())
            .map_err(|error| Failure::of_run(&error))?;
        Ok(start.elapsed().as_secs_f64())
    };
    run(&Silent)?; // loads weights, which is not what is measured
    let (feed, desk, _, making) = Feed::new(false);
    feed.send(News::Planned(Arc::new(graph_of(plan))));
    let bell = Arc::new((Mutex::new(false), Condvar::new()));
    let ringing = Arc::clone(&bell);
    desk.wake_with(move || {
        *ringing.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        ringing.1.notify_one();
    });
    let (over, drawn) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (ends, counted) = (Arc::clone(&over), Arc::clone(&drawn));
    let window = std::thread::spawn(move || {
        let mut window = Window::new(desk);
        while !ends.load(Ordering::SeqCst) {
            let rung = bell.0.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = bell
                .1
                .wait_timeout_while(rung, Duration::from_millis(50), |rung| !*rung);
            let (mut rung, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if std::mem::take(&mut *rung) {
                drop(rung);
                window.frame(Vec::new());
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    let result = (0..runs.max(3)).try_for_each(|_| {
        alone.push(run(&Silent)?);
        watched.push(run(&feed)?);
        Ok(())
    });
    over.store(true, Ordering::SeqCst);
    drop(feed);
    let _ = window.join();
    let _ = making.join();
    result?;
    let fastest = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(Loss {
        alone: fastest(&alone),
        watched: fastest(&watched),
        frames: drawn.load(Ordering::SeqCst) / u64::from(runs.max(3)),
    })
}

/// A node of which nothing is known but what a box shows.
fn bare(names: Vec<String>, op: &'static str, key: Key) -> Node {
    Node {
        names,
        label: String::new(),
        group: None,
        op,
        docs: String::new(),
        key,
        params: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        steps: None,
        why: String::new(),
        changed: None,
        calls: 0,
        foretold: None,
        peak: None,
        place: None,
    }
}

/// The boxes of a plan, without what a file says.
fn graph_of(plan: &Plan) -> Graph {
    let mut graph = graph(0);
    for (index, task) in plan.tasks().enumerate() {
        graph
            .nodes
            .push(bare(task.names().to_vec(), task.op(), task.key()));
        for (to_port, links) in plan.inputs(index) {
            graph
                .edges
                .extend(links.into_iter().map(|(from, from_port)| Edge {
                    from,
                    from_port,
                    to: index,
                    to_port,
                    kind: "latent",
                }));
        }
    }
    graph.find_groups();
    graph
}
