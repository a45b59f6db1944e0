//! The window, without a screen: plans and events go in, and what is there is asked for by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use eframe::egui::{Key as Press, Theme, vec2};
use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT, Queryable};
use retouch_common::watching::Request;
use retouch_graph::event::{Event, RunStatus};
use retouch_graph::{Code, Key, Problem, Source, Span};

use crate::app::{App, Start, Tab};
use crate::feed::Desk;
use crate::memory::{Colours, Memory};
use crate::model::{Edge, Graph, Model, News, Node, Output, Phase, Port, State};

/// A node of a graph for tests.
fn node(name: &str, op: &'static str, number: u8) -> Node {
    Node {
        names: vec![name.to_owned()],
        label: String::new(),
        group: None,
        op,
        docs: format!("Does what {op} does.\n\nAt length."),
        key: Key([number; 32]),
        params: vec![("steps".to_owned(), "50".to_owned())],
        inputs: Vec::new(),
        outputs: vec![Port {
            name: "latent",
            types: &["latent"],
            docs: "What it gives.".to_owned(),
            key: Some(Key([number; 32])),
            links: Vec::new(),
        }],
        steps: Some((0, 50)),
        why: "runs: nothing is kept under its key".to_owned(),
        changed: Some("steps: 40 -> 50".to_owned()),
        calls: 100,
        foretold: Some(2.5),
        peak: Some(1 << 20),
        place: None,
    }
}

/// `base` and `layout`, and a graph `retouch` of three nodes, one of them in a graph in it.
pub fn graph() -> Graph {
    let names = [
        ("base", "load_model"),
        ("layout", "step_blend_sample"),
        ("retouch/swap", "swap_attention"),
        ("retouch/inner/draw", "sample"),
        ("retouch/picture", "decode"),
        ("large", "resize_image"),
    ];
    let nodes: Vec<Node> = (names.iter().enumerate())
        .map(|(index, (name, op))| node(name, op, index as u8))
        .collect();
    let edge = |from, to, kind| Edge {
        from,
        from_port: "latent",
        to,
        to_port: "latent",
        kind,
    };
    let mut graph = Graph {
        workflow: "bear".to_owned(),
        file: "bear.yaml".into(),
        outputs: vec![Output {
            name: "final".to_owned(),
            node: 5,
            port: "latent",
            kind: "image",
            key: Key([5; 32]),
            sheet: None,
            scores: Vec::new(),
        }],
        forecast: vec![
            State::Kept("disk"),
            State::Queued(Some((10, 50))),
            State::Queued(None),
            State::Queued(None),
            State::Queued(None),
            State::NotNeeded,
        ],
        edges: vec![
            edge(0, 1, "model"),
            edge(1, 2, "trajectory"),
            edge(2, 3, "control"),
            edge(0, 3, "model"),
            edge(3, 4, "latent"),
            edge(4, 5, "image"),
        ],
        nodes,
        ..Graph::default()
    };
    graph.find_groups();
    graph
}

/// A window, its feed, and what it requested.
pub struct Seen {
    pub window: Harness<'static, App>,
    pub desk: Arc<Desk>,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Seen {
    pub fn new(width: f32, height: f32) -> Self {
        Self::with(width, height, Memory::default(), false)
    }

    pub fn with(width: f32, height: f32, memory: Memory, drawn: bool) -> Self {
        let desk = Arc::new(Desk::default());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&requests);
        let start = Start {
            desk: Arc::clone(&desk),
            request: Box::new(move |request| own.lock().unwrap().push(request)),
            engine: None,
            memory,
            memory_file: None,
            select: None,
            step: None,
            tab: None,
            ends: false,
        };
        let builder = Harness::builder()
            .with_size(vec2(width, height))
            .with_theme(Theme::Dark)
            .with_max_steps(12);
        let builder = if drawn { builder.wgpu() } else { builder };
        let window = builder.build_state(|ctx, app: &mut App| app.ui(ctx), App::new(start));
        Self {
            window,
            desk,
            requests,
        }
    }

    pub fn tell(&mut self, news: impl IntoIterator<Item = News>) {
        for news in news {
            self.desk.model().apply(news);
        }
        self.window.run();
    }

    pub fn event(&mut self, event: Event) {
        self.tell([News::Event(event)]);
    }

    #[track_caller]
    pub fn sees(&self, label: &str) {
        assert!(
            self.window
                .query_all_by_label_contains(label)
                .next()
                .is_some(),
            "nothing is called {label:?}; there are {:#?}",
            self.labels()
        );
    }

    #[track_caller]
    pub fn sees_not(&self, label: &str) {
        let found = self.window.query_all_by_label_contains(label).next();
        assert!(found.is_none(), "{label:?} is there");
    }

    fn labels(&self) -> Vec<String> {
        let all = self.window.query_all_by(|node| node.label().is_some());
        all.filter_map(|node| node.accesskit_node().label())
            .collect()
    }

    #[track_caller]
    pub fn click(&mut self, label: &str) {
        self.window.get_by_label(label).click();
        self.window.run();
    }

    pub fn press(&mut self, key: Press) {
        self.window.key_press(key);
        self.window.run();
    }

    pub fn write(&mut self, text: &str) {
        self.window
            .event(eframe::egui::Event::Text(text.to_owned()));
        self.window.run();
    }
}

fn planned() -> News {
    News::Planned(Arc::new(graph()))
}

fn started(node: &str) -> Event {
    Event::NodeStarted {
        node: node.to_owned(),
        op: "op",
        key: Key([0; 32]),
        index: 1,
        of: 1,
    }
}

fn finished(status: RunStatus) -> Event {
    Event::RunFinished {
        status,
        seconds: 3.0,
        counters: BTreeMap::from([("unet_calls", 80)]),
        ran: 2,
        reused: 1,
    }
}

fn begins() -> Event {
    Event::RunStarted {
        schema: 1,
        workflow: "bear".to_owned(),
        nodes: 6,
        params: Vec::new(),
    }
}

#[test]
fn every_state_of_a_node_can_be_told_by_name() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.sees("graph of 0 nodes");
    seen.tell([planned()]);
    seen.sees("base, load_model, disk");
    seen.sees("layout, step_blend_sample, resumes at 10 of 50");
    seen.sees("retouch, closed graph of 3 nodes, 3 of 3 to run");
    seen.sees("large, resize_image, not needed");
    seen.event(begins());
    seen.event(started("layout"));
    seen.sees("layout, step_blend_sample, running");
    seen.event(Event::NodeResumed {
        node: "layout".to_owned(),
        step: 10,
        of: 50,
    });
    seen.event(Event::NodeProgress {
        node: "layout".to_owned(),
        done: 12,
        total: 50,
    });
    seen.sees("layout, step_blend_sample, running 12 of 50");
    seen.event(Event::NodeFinished {
        node: "layout".to_owned(),
        seconds: 1.2,
        counters: BTreeMap::new(),
    });
    seen.sees("layout, step_blend_sample, done in 1.2 s, from 10 of 50");
    seen.event(started("retouch/swap"));
    seen.sees("retouch, closed graph of 3 nodes, running, 0 of 3 done");
    seen.event(Event::NodeFailed {
        node: "retouch/swap".to_owned(),
        code: Code::NodeFailed,
        message: "no such site: 99".to_owned(),
        help: Some("there are 16".to_owned()),
    });
    seen.event(finished(RunStatus::Failed));
    seen.sees("retouch, closed graph of 3 nodes, failed");
    seen.sees("failed after 3.0 s");
    // What had not begun was stopped; what is planned anew is as the forecast says.
    seen.click("retouch, closed graph of 3 nodes, failed");
    seen.press(Press::Enter);
    seen.sees("retouch/swap, swap_attention, failed");
    seen.sees("retouch/picture, decode, stopped");
    seen.tell([planned()]);
    seen.sees("retouch/swap, swap_attention, queued");
    seen.event(Event::NodeReused {
        node: "base".to_owned(),
        op: "load_model",
        key: Key([0; 32]),
        from: "memory",
    });
    seen.sees("base, load_model, memory");
}

#[test]
fn groups_open_and_close_by_keys_and_by_name() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    seen.sees_not("retouch/swap, ");
    seen.press(Press::G);
    seen.sees("retouch, open graph of 3 nodes");
    seen.sees("retouch/inner, open graph of 1 nodes");
    seen.sees("retouch/inner/draw, sample, queued");
    seen.click("retouch/inner/draw, sample, queued");
    seen.press(Press::Backspace);
    seen.sees("retouch/inner, closed graph of 1 nodes");
    assert_eq!(seen.window.state().selected(), Some("retouch/inner"));
    seen.press(Press::G);
    seen.press(Press::G);
    seen.sees("retouch, closed graph of 3 nodes");
}

#[test]
fn the_arrows_go_along_links() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    let selected = |seen: &Seen| seen.window.state().selected().map(str::to_owned);
    seen.press(Press::ArrowRight);
    assert_eq!(selected(&seen).as_deref(), Some("base"));
    seen.press(Press::ArrowRight);
    assert_eq!(selected(&seen).as_deref(), Some("layout"));
    seen.press(Press::ArrowRight);
    assert_eq!(selected(&seen).as_deref(), Some("retouch"));
    seen.press(Press::ArrowRight);
    assert_eq!(selected(&seen).as_deref(), Some("large"));
    seen.press(Press::ArrowLeft);
    assert_eq!(selected(&seen).as_deref(), Some("retouch"));
    seen.press(Press::Escape);
    assert_eq!(selected(&seen), None);
}

#[test]
fn the_panel_says_what_a_node_is_and_why_it_runs() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    seen.click("layout, step_blend_sample, resumes at 10 of 50");
    for text in [
        "step_blend_sample: Does what step_blend_sample does.",
        "resumes at 10 of 50",
        "runs: nothing is kept under its key",
        "changed: steps: 40 -> 50",
        "about 2.5 s",
        "100 U-Net calls",
        "PARAMETERS",
        "01010101",
        "About this op",
    ] {
        seen.sees(text);
    }
    // Without a selection the workflow and its outputs.
    seen.press(Press::Escape);
    seen.sees("bear.yaml");
    seen.sees("final");
}

#[test]
fn a_search_dims_the_rest_and_goes_to_what_it_finds() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    seen.write("/");
    let search = seen.window.get_by_label("Search nodes");
    assert!(search.is_focused());
    search.type_text("draw");
    seen.window.run();
    seen.press(Press::Enter);
    // The graphs around what was found are open.
    seen.sees("retouch/inner/draw, sample, queued");
    assert_eq!(seen.window.state().selected(), Some("retouch/inner/draw"));
    // Letters that are keys elsewhere are letters here.
    assert!(seen.requests.lock().unwrap().is_empty());
    seen.press(Press::Escape);
    assert!(!seen.window.get_by_label("Search nodes").is_focused());
}

#[test]
fn run_and_stop_are_wished_for_by_button_and_key() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    seen.click("Run");
    seen.press(Press::R);
    seen.event(begins());
    seen.write(".");
    seen.click("Stop");
    assert_eq!(
        *seen.requests.lock().unwrap(),
        [Request::Run, Request::Run, Request::Stop, Request::Stop]
    );
}

fn fault(text: &str, at: &str, message: &str) -> Problem {
    let source = Source::new("bear.yaml", text);
    let start = text.find(at).unwrap();
    Problem::new(
        Code::UnknownOp,
        &source,
        Span::new(start, start + at.len()),
        message,
    )
    .help("did you mean `sample`?")
}

#[test]
fn a_broken_edit_is_told_with_its_line_and_the_graph_stays() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    let text = "schema: retouch/v1\nnodes:\n  a: {op: sampel}\n";
    seen.tell([News::Faults(vec![fault(
        text,
        "sampel",
        "there is no op `sampel`",
    )])]);
    seen.sees("1 fault; showing the last valid version");
    seen.click("Problems");
    seen.sees("there is no op `sampel`");
    seen.sees("   3 │   a: {op: sampel}\n     │           ^^^^^^");
    seen.sees("help: did you mean `sample`?");
    seen.sees("base, load_model, disk");
    // A sound edit takes them away.
    seen.tell([planned()]);
    seen.sees_not("sampel");
    seen.sees("No problems");
}

#[test]
fn a_file_that_is_broken_from_the_start_shows_its_faults() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([News::Faults(vec![fault("a: b", "b", "not a workflow")])]);
    seen.sees("invalid: 1 in Problems");
    seen.click("Problems");
    seen.sees("not a workflow");
}

#[test]
fn the_excerpt_of_a_long_line_keeps_the_place_in_view() {
    use crate::problems::excerpt;
    let text = format!("{}wrong{}", "é".repeat(1000), "x".repeat(1000));
    let problem = fault(&text, "wrong", "here");
    let (line, carets) = excerpt(&problem).unwrap();
    assert!(line.chars().count() <= 160, "{line}");
    let at = carets.chars().take_while(|letter| *letter == ' ').count();
    let marked: String = line.chars().skip(at).take(5).collect();
    assert_eq!((marked.as_str(), carets.trim()), ("wrong", "^^^^^"));
    // At the end of the text, and of an empty one.
    let source = Source::new("w", "");
    assert_eq!(
        excerpt(&Problem::new(Code::Usage, &source, Span::new(0, 0), "x")),
        None
    );
}

#[test]
fn a_window_of_400_by_300_has_one_area_at_a_time() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    seen.window.set_size(vec2(400.0, 300.0));
    seen.window.run();
    for tab in ["Graph", "Node", "Pictures", "Problems"] {
        seen.click(tab);
    }
    seen.click("Graph");
    seen.sees("base, load_model, disk");
    // All controls are inside the window.
    let outside: Vec<String> = (seen.window.query_all_by(|node| node.label().is_some()))
        .filter(|node| {
            let rect = node.rect();
            let name = node.accesskit_node().label().unwrap_or_default();
            let control = [
                "Keys",
                "Run",
                "Graph",
                "Node",
                "Pictures",
                "Problems",
                "Search nodes",
            ]
            .contains(&name.as_str());
            control && (rect.right() > 400.5 || rect.bottom() > 300.5 || rect.left() < -0.5)
        })
        .map(|node| format!("{:?} {:?}", node.accesskit_node().label(), node.rect()))
        .collect();
    assert!(outside.is_empty(), "{outside:#?}");
    seen.window.set_size(vec2(1280.0, 800.0));
    seen.window.run();
    seen.sees("base, load_model, disk");
}

#[test]
fn the_keys_are_listed() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    seen.write("?");
    seen.sees("open all groups, or close them");
    seen.press(Press::Escape);
    seen.sees_not("open all groups, or close them");
}

#[test]
fn colours_are_those_of_the_system_until_one_is_chosen() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.sees("Colours: Auto");
    seen.press(Press::T);
    seen.sees("Colours: Dark");
    assert!(seen.window.ctx.style().visuals.dark_mode);
    seen.press(Press::T);
    seen.sees("Colours: Light");
    assert!(!seen.window.ctx.style().visuals.dark_mode);
}

#[test]
fn an_idle_window_is_not_drawn_again() {
    let mut seen = Seen::new(1280.0, 800.0);
    seen.tell([planned()]);
    seen.event(begins());
    seen.event(started("layout"));
    seen.window.run();
    let output = seen.window.output();
    let delay = output
        .viewport_output
        .values()
        .map(|viewport| viewport.repaint_delay)
        .min();
    assert!(
        delay.is_none_or(|delay| delay > std::time::Duration::from_secs(3600)),
        "{delay:?}"
    );
}

#[test]
fn what_was_open_is_remembered_for_each_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("view.json");
    let app = |file: &std::path::Path| {
        let desk = Arc::new(Desk::default());
        desk.model().apply(planned());
        let start = Start {
            desk,
            request: Box::new(|_| {}),
            engine: None,
            memory: Memory::read(Some(file)),
            memory_file: Some(file.to_owned()),
            select: Some("retouch/inner/draw".to_owned()),
            step: None,
            tab: Some(Tab::Problems),
            ends: false,
        };
        Harness::builder()
            .with_size(vec2(1280.0, 800.0))
            .build_state(|ctx, app: &mut App| app.ui(ctx), App::new(start))
    };
    let mut window = app(&file);
    window.run();
    window.key_press(Press::T);
    window.run();
    drop(window);
    let memory = Memory::read(Some(&file));
    assert_eq!(memory.colours, Colours::Dark);
    assert_eq!(memory.tab, "Problems");
    let open: Vec<String> = memory.open_in("bear.yaml".as_ref()).into_iter().collect();
    assert_eq!(open, ["retouch", "retouch/inner"]);
}

#[test]
fn what_is_read_again_during_a_run_clears_its_fault_and_keeps_how_far_nodes_are() {
    let mut model = Model::default();
    model.apply(News::Planned(Arc::new(graph())));
    model.states[1] = State::Running {
        progress: (3, 9),
        resumed: None,
    };
    model.phase = Phase::Running;
    model.apply(News::Faults(vec![fault("a: b", "b", "not a workflow")]));
    assert_eq!(model.faults.len(), 1);
    // The nodes in another order, as another order in the file may have them.
    let mut again = graph();
    again.nodes.swap(0, 1);
    let plans = model.plans;
    model.apply(News::Again(Arc::new(again)));
    assert!(model.faults.is_empty());
    assert!(model.plans > plans, "what the file says is shown anew");
    assert_eq!(model.phase, Phase::Running);
    assert_eq!(
        model.states[0],
        State::Running {
            progress: (3, 9),
            resumed: None
        }
    );
}
