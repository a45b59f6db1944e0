//! From the loop's threads to the window: plans and events go into a queue, and one thread of its own makes a model of
//! them. The computing threads only push.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use retouch_common::Failure;
use retouch_common::watching::{Observer, Planned, Request, Requests};
use retouch_graph::event::{Event, Listener};
use retouch_graph::{Engine, Files, Key, Node as _, Payload as _, Problems, Settings, Severity};
use retouch_nodes::image::Grid;
use retouch_nodes::payload::{Image, Table};

use crate::edit::{Overlay, Place, Trying};
use crate::model::{Edge, Graph, Model, News, Node, Output, Param, Port, Sheet, foretold};
use crate::params::Told;

/// Shortest time between two redraws caused by events.
const PACE: Duration = Duration::from_millis(100);

/// The sheet of a sweep of more cells is not looked at.
const MOST_CELLS: usize = 400;

/// What the loop works with, once it has begun.
#[derive(Clone)]
pub struct Begun {
    /// The engine.
    pub engine: Engine,
    /// Where requests are sent.
    pub requests: Requests,
}

/// Wakes the thread that draws.
type Waker = Box<dyn Fn() + Send>;

/// What the loop's side and the window's side share.
#[derive(Default)]
pub struct Desk {
    model: Mutex<Model>,
    trying: Mutex<Trying>,
    waker: Mutex<Option<Waker>>,
}

impl Desk {
    /// What is shown now.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is tried.
    pub fn trying(&self) -> MutexGuard<'_, Trying> {
        self.trying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whom to wake when there is something new.
    pub fn wake_with(&self, waker: impl Fn() + Send + 'static) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(waker));
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker();
        }
    }
}

/// Looks on for the window.
pub struct Feed {
    news: Sender<News>,
    begun: Sender<Begun>,
    desk: Arc<Desk>,
    /// What the engine reads through, and what that reads through.
    files: OnceLock<(Arc<Overlay>, Arc<dyn Files>)>,
    /// Whether the loop is to end after its first run.
    once: bool,
    /// What is to be shown of what is planned.
    wanted: Wanted,
}

/// What a picture of the view is to show.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The node or group that is selected.
    pub select: Option<String>,
    /// The step of the sampler.
    pub step: Option<usize>,
}

impl Wanted {
    /// Whether it is there.
    ///
    /// # Errors
    /// When it is not: what there is instead.
    fn check(&self, graph: &Graph) -> Result<(), Failure> {
        let mut selected = None;
        if let Some(name) = &self.select {
            selected = graph.node(name).map(|index| &graph.nodes[index]);
            if selected.is_none() && graph.group(name).is_none() {
                let names = graph.nodes.iter().map(Node::name);
                let near = retouch_graph::suggest::nearest(name, names);
                let failure = Failure::usage(format!("there is no node `{name}` in the plan"));
                return Err(match near {
                    Some(near) => failure.help(format!("did you mean `{near}`?")),
                    None => failure,
                });
            }
        }
        let Some(step) = self.step else {
            return Ok(());
        };
        // The sampler that is looked at: the selected node, else the last one.
        let of = |node: &Node| Some((node.name().to_owned(), node.steps?));
        let last = || graph.nodes.iter().rev().find_map(of);
        let Some((name, (first, end))) = selected.and_then(of).or_else(last) else {
            return Err(Failure::usage(format!(
                "there is no step {step}: no node of the plan has steps"
            )));
        };
        if (first..=end).contains(&step) {
            return Ok(());
        }
        Err(Failure::usage(format!("`{name}` has no step {step}"))
            .help(format!("it has the steps {first} to {end}")))
    }
}

impl Feed {
    /// Makes one, with the thread that makes the model; gives what it has in common with the window, and what is told when
    /// the loop begins. The thread ends once the feed is dropped.
    pub fn new(once: bool) -> (Self, Arc<Desk>, Receiver<Begun>, JoinHandle<()>) {
        let (news, incoming) = channel();
        let (begun, beginning) = channel();
        let desk = Arc::new(Desk::default());
        let shared = Arc::clone(&desk);
        let thread = std::thread::spawn(move || make(&incoming, &shared));
        let feed = Self {
            news,
            begun,
            desk: Arc::clone(&desk),
            files: OnceLock::new(),
            once,
            wanted: Wanted::default(),
        };
        (feed, desk, beginning, thread)
    }

    /// Refuses a plan that does not have this.
    #[must_use]
    pub fn wanting(self, wanted: Wanted) -> Self {
        Self { wanted, ..self }
    }

    /// Says that the loop is over, and what went wrong.
    pub fn over(&self, trouble: Option<String>) {
        self.send(News::Over(trouble));
    }

    /// Tells something.
    pub fn send(&self, news: News) {
        let _ = self.news.send(news); // the thread that hears it outlives the feed
    }
}

/// Makes a model of what comes, and wakes the window no more often than it can be drawn.
fn make(incoming: &Receiver<News>, desk: &Desk) {
    let mut woken: Option<Instant> = None;
    let mut due = false;
    loop {
        let news = if due {
            let since = woken.map_or(PACE, |woken| woken.elapsed());
            incoming.recv_timeout(PACE.saturating_sub(since))
        } else {
            incoming.recv().map_err(RecvTimeoutError::from)
        };
        match news {
            Ok(news) => {
                let mut model = desk.model();
                model.apply(news);
                // All that waits besides, under one lock.
                while let Ok(news) = incoming.try_recv() {
                    model.apply(news);
                }
                due = true;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                desk.wake();
                return;
            }
        }
        if due && woken.is_none_or(|woken| woken.elapsed() >= PACE) {
            desk.wake();
            woken = Some(Instant::now());
            due = false;
        }
    }
}

impl Feed {
    fn graph_of(&self, planned: &Planned<'_>) -> Arc<Graph> {
        // What files say is asked below of what is tried.
        let engine = match self.files.get() {
            Some((_, files)) => planned.engine.clone().with_files(Arc::clone(files)),
            None => planned.engine.clone(),
        };
        Arc::new(graph_of(planned, &engine))
    }
}

impl Listener for Feed {
    fn event(&self, event: &Event) {
        self.send(News::Event(event.clone()));
    }
}

impl Observer for Feed {
    fn begun(&self, engine: &Engine, requests: Requests) {
        if self.once {
            requests.send(Request::Close);
        }
        let _ = self.begun.send(Begun {
            engine: engine.clone(),
            requests,
        }); // it is not waited for when only a picture of the view is made
    }

    fn files(&self, inner: Arc<dyn Files>) -> Arc<dyn Files> {
        let overlay = || {
            (
                Arc::new(Overlay::new(Arc::clone(&inner))),
                Arc::clone(&inner),
            )
        };
        let (overlay, _) = self.files.get_or_init(overlay);
        Arc::clone(overlay) as Arc<dyn Files>
    }

    fn trying(&self, file: &Path, settings: &mut Settings) -> Vec<String> {
        let Some((overlay, _)) = self.files.get() else {
            return Vec::new();
        };
        let mut trying = self.desk.trying();
        let refused: Vec<Told> = (trying.apply(overlay, settings).into_iter())
            .map(|(file, place, refused)| Told {
                file,
                place,
                message: refused.to_string(),
            })
            .collect();
        // What cannot be written there is not what runs.
        let mut counting = trying.clone();
        for told in &refused {
            counting.reset(&told.file, &told.place);
        }
        self.send(News::Refused(refused));
        counting.outrank(file, settings);
        let tried = counting
            .of(file)
            .iter()
            .filter_map(|change| match &change.place {
                Place::Param(name) => Some(format!("{name}={}", shown(&change.value))),
                _ => None,
            });
        tried.collect()
    }

    fn accepts(&self, planned: &Planned<'_>) -> Result<(), Failure> {
        if self.wanted.select.is_none() && self.wanted.step.is_none() {
            return Ok(());
        }
        self.wanted.check(&self.graph_of(planned))
    }

    fn planned(&self, planned: &Planned<'_>) {
        self.send(News::Planned(self.graph_of(planned)));
    }

    fn again(&self, planned: &Planned<'_>) {
        self.send(News::Again(self.graph_of(planned)));
    }

    fn faults(&self, problems: &Problems) {
        self.send(News::Faults(problems.iter().cloned().collect()));
    }
}

/// Everything about a plan that the window shows. `written` reads files as they are on disk.
// Long: one translation of a plan, field by field.
#[must_use]
pub fn graph_of(planned: &Planned<'_>, written: &Engine) -> Graph {
    let Planned {
        plan,
        checked,
        settings,
        engine,
        forecast,
        history,
        file,
    } = *planned;
    let mut nodes = Vec::with_capacity(plan.len());
    let mut edges = Vec::new();
    for (index, task) in plan.tasks().enumerate() {
        let entry = task.entry();
        let history = history.get(index).cloned().unwrap_or_default();
        let first = checked.node(task.name());
        let linked = plan.inputs(index);
        let inputs = (entry.inputs().iter())
            .map(|spec| Port {
                name: spec.name,
                types: spec.types,
                docs: one_line(spec.docs),
                key: None,
                links: (linked.iter())
                    .filter(|(name, _)| *name == spec.name)
                    .flat_map(|(_, links)| links.iter().copied())
                    .collect(),
            })
            .collect::<Vec<_>>();
        let outputs = (entry.outputs().iter())
            .map(|spec| Port {
                name: spec.name,
                types: spec.types,
                docs: one_line(spec.docs),
                key: Some(task.port_key(spec.name)),
                links: Vec::new(),
            })
            .collect::<Vec<_>>();
        for port in &inputs {
            for (from, from_port) in &port.links {
                edges.push(Edge {
                    from: *from,
                    from_port,
                    to: index,
                    to_port: port.name,
                    kind: kind_of(plan, *from, from_port),
                });
            }
        }
        let mut params: Vec<(String, String)> = (task.params().as_object().into_iter().flatten())
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), shown(value)))
            .collect();
        // Paths are no part of a key, so the plan has them as null; the check knows what is read.
        for read in first.into_iter().flat_map(|node| node.reads()).take(8) {
            params.push((read.role.clone(), read.path.display().to_string()));
        }
        nodes.push(Node {
            names: task.names().to_vec(),
            label: String::new(),
            group: None,
            op: task.op(),
            docs: entry.docs().to_owned(),
            key: task.key(),
            params,
            inputs,
            outputs,
            steps: task.chain().map(|chain| (chain.first, chain.end())),
            why: forecast.describe(index),
            changed: history.changed,
            calls: forecast.calls[index],
            foretold: history.seconds,
            peak: history.peak,
            place: first.map(|node| {
                let (source, span) = node.place();
                (source.clone(), span)
            }),
        });
    }
    let outputs = (plan.outputs().iter().zip(scores_of(plan)))
        .filter_map(|(output, scores)| {
            let task = plan.task(output.task)?;
            Some(Output {
                name: output.name.clone(),
                node: output.task,
                port: output.port,
                kind: kind_of(plan, output.task, output.port),
                key: task.port_key(output.port),
                sheet: sheet_of(plan, output.task).map(Arc::new),
                scores,
            })
        })
        .collect();
    let mut files: Vec<PathBuf> = vec![file.to_owned()];
    for node in &nodes {
        if let Some((source, _)) = &node.place {
            let file = PathBuf::from(source.name());
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    let workflows = files.into_iter().filter_map(|file| {
        let workflow = written.read(&file).ok()?;
        Some((file, Arc::new(workflow)))
    });
    let params = (plan.params().iter())
        .map(|param| Param {
            name: param.name.clone(),
            value: param.value.clone(),
        })
        .collect();
    let workflows: Vec<_> = workflows.collect();
    let sweeps = workflows
        .first()
        .is_some_and(|(_, workflow)| workflow.sweep.is_some());
    let sweep = sweeps.then(|| sweep_of(engine, file, settings)).flatten();
    let mut graph = Graph {
        workflow: plan.workflow().to_owned(),
        file: file.to_owned(),
        workflows,
        sweep,
        plan: Some(Arc::clone(plan)),
        nodes,
        edges,
        groups: Vec::new(),
        outputs,
        params,
        warnings: (checked.warnings.iter())
            .filter(|problem| problem.severity() == Severity::Warning)
            .cloned()
            .collect(),
        forecast: (forecast.statuses.iter().zip(&forecast.resumes))
            .map(|(status, resume)| foretold(status, *resume))
            .collect(),
    };
    graph.find_groups();
    graph
}

/// What is on a contact sheet, if the task draws one.
fn sheet_of(plan: &retouch_graph::Plan, task: usize) -> Option<Sheet> {
    let inputs = plan.inputs(task).into_iter();
    let links = inputs.filter(|(port, _)| *port == "images");
    let links = links.flat_map(|(_, links)| links);
    let task = plan.task(task).filter(|task| task.op() == Grid::OP)?;
    let grid = serde_json::from_value(task.params().clone()).ok()?;
    let entries = links.filter_map(|(from, port)| Some((plan.task(from)?.port_key(port), port)));
    Some(Sheet {
        grid,
        entries: entries.collect(),
        sweep: None,
    })
}

/// The contact sheet of a workflow's sweep, with these settings in all cells.
fn sweep_of(engine: &Engine, file: &Path, settings: &Settings) -> Option<Output> {
    let sweep = engine.load_sweep(file, settings).ok()?;
    if !sweep.has_sheet() || sweep.cells.len() > MOST_CELLS {
        return None;
    }
    let name = sweep.sheet_name().to_owned();
    let planned = engine.plan_sweep(&sweep, &[name], &BTreeSet::new()).ok()?;
    let of_none = planned
        .outputs
        .iter()
        .position(|(cell, _)| cell.is_none())?;
    let output = planned.plan.outputs().get(of_none)?;
    let sheet = sheet_of(&planned.plan, output.task)?;
    Some(Output {
        name: "sheet of the sweep".to_owned(),
        node: usize::MAX, // of no node of this plan
        port: output.port,
        kind: "image",
        key: planned.plan.task(output.task)?.port_key(output.port),
        sheet: Some(Arc::new(Sheet {
            sweep: Some(sweep),
            ..sheet
        })),
        scores: Vec::new(),
    })
}

/// For each output the tables among them that say what was measured of it, if it is an image: those that are made of it, but of no other
/// image that is made of it and an output (what was measured of the picture that a picture was made into says nothing of that).
fn scores_of(plan: &retouch_graph::Plan) -> Vec<Vec<(Key, &'static str)>> {
    let outputs = plan.outputs();
    let kinds: Vec<&str> = (outputs.iter())
        .map(|output| kind_of(plan, output.task, output.port))
        .collect();
    let is_image = |at: usize| kinds[at] == Image::TYPE;
    let of: Vec<BTreeSet<usize>> = (outputs.iter())
        .map(|output| made_of(plan, output.task))
        .collect();
    let measures = |table: usize, picture: usize| {
        let task = outputs[picture].task;
        let comes_between = |other: usize| {
            is_image(other) && of[other].contains(&task) && of[table].contains(&outputs[other].task)
        };
        kinds[table] == Table::TYPE
            && of[table].contains(&task)
            && !(0..outputs.len()).any(comes_between)
    };
    let tables = |picture: usize| {
        let tables =
            (0..outputs.len()).filter(move |table| is_image(picture) && measures(*table, picture));
        let of_cache = tables.filter_map(|at| {
            let table = &outputs[at];
            Some((plan.task(table.task)?.port_key(table.port), table.port))
        });
        of_cache.collect()
    };
    (0..outputs.len()).map(tables).collect()
}

/// The tasks that a task is made of, near and far.
fn made_of(plan: &retouch_graph::Plan, task: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = vec![task];
    while let Some(task) = open.pop() {
        let inputs = plan.inputs(task).into_iter().flat_map(|(_, links)| links);
        open.extend(
            inputs
                .map(|(from, _)| from)
                .filter(|from| found.insert(*from)),
        );
    }
    found
}

/// The type of the value behind an output port.
fn kind_of(plan: &retouch_graph::Plan, task: usize, port: &str) -> &'static str {
    let outputs = plan
        .task(task)
        .map_or(&[][..], |task| task.entry().outputs());
    let spec = outputs.iter().find(|spec| spec.name == port);
    spec.and_then(|spec| spec.types.first())
        .copied()
        .unwrap_or("")
}

/// Doc comments are wrapped where the source is.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A value as it would be written.
fn shown(value: &serde_json::Value) -> String {
    retouch_graph::sweep::shown(value)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use retouch_graph::event::Recorder;
    use retouch_graph::{
        Cancel, Context, NoCache, Node as _, NodeError, Payload, Registry, RunOptions, Settings,
        ports,
    };
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::model::{Phase, State};

    struct Number(f64);

    impl Payload for Number {
        const TYPE: &'static str = "number";
        fn bytes(&self) -> usize {
            8
        }
        fn summary(&self) -> String {
            self.0.to_string()
        }
    }

    ports! {
        /// What `add` takes.
        pub struct Inputs {
            /// A number.
            pub number: Option<Arc<Number>>,
        }
    }

    ports! {
        /// What `add` gives.
        pub struct Outputs {
            /// The sum.
            pub number: Arc<Number>,
        }
    }

    /// Adds to a number, says so, and breaks when it is asked to.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Add {
        /// What is added.
        by: f64,
    }

    impl retouch_graph::Node for Add {
        const OP: &'static str = "add";
        const VERSION: u32 = 1;
        type Inputs = Inputs;
        type Outputs = Outputs;
        fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
            let number = inputs.number.map_or(0.0, |number| number.0);
            for step in 1..=20 {
                context.progress(step, 20);
            }
            context.warn(&format!("it is {number} now"));
            assert!(self.by < 1000.0, "too much");
            if self.by < 0.0 {
                return Err(NodeError::failed("less than nothing"));
            }
            Ok(Outputs {
                number: Arc::new(Number(number + self.by)),
            })
        }
    }

    fn engine() -> Engine {
        assert_eq!(Add::OP, "add");
        Engine::new(Registry::new().with::<Add>()).with_cache(Arc::new(NoCache))
    }

    fn text(by: [f64; 3]) -> String {
        let [a, b, c] = by;
        format!(
            "schema: retouch/v1\nname: sums\nnodes:\n  a: {{op: add, by: {a}}}\n  b: {{op: add, by: {b}, number: $a}}\n  c: {{op: add, by: {c}, number: $b}}\noutputs:\n  sum: {{value: $c}}\n"
        )
    }

    /// Runs a workflow with the feed as a listener, as the loop does.
    fn run(feed: &Feed, engine: &Engine, by: [f64; 3]) {
        let checked = engine
            .load_str("sums.yaml", &text(by), &Settings::default())
            .unwrap();
        let plan = Arc::new(engine.plan(&checked, &[]).unwrap());
        feed.planned(&Planned {
            plan: &plan,
            checked: &checked,
            settings: &Settings::default(),
            engine,
            forecast: &engine.forecast(&plan),
            history: &[],
            file: "sums.yaml".as_ref(),
        });
        let _ = engine.run(&plan, feed, &Cancel::new(), &RunOptions::default());
    }

    fn model(feed: Feed, desk: &Desk, making: JoinHandle<()>) -> Model {
        drop(feed);
        making.join().unwrap();
        desk.model().clone()
    }

    #[test]
    fn what_a_picture_is_to_show_is_looked_for_in_the_plan() {
        let mut graph = crate::tests::graph();
        for node in &mut graph.nodes {
            node.steps = None;
        }
        graph.nodes[1].steps = Some((0, 50));
        graph.nodes[3].steps = Some((10, 20));
        let check = |select: Option<&str>, step| {
            let select = select.map(str::to_owned);
            let refused = Wanted { select, step }.check(&graph).err();
            refused.map(|failure| failure.message().to_owned())
        };
        for name in ["layout", "retouch", "retouch/inner", "large"] {
            assert_eq!(check(Some(name), None), None, "{name}");
        }
        assert!(check(Some("layoud"), None).unwrap().contains("`layoud`"));
        // The selected sampler, else the last one.
        assert_eq!(check(Some("layout"), Some(50)), None);
        assert!(
            check(Some("layout"), Some(51))
                .unwrap()
                .contains("`layout`")
        );
        assert_eq!(check(None, Some(10)), None);
        for step in [0, 9, 21, 500] {
            let refused = check(Some("large"), Some(step)).unwrap();
            assert!(refused.contains("`retouch/inner/draw`"), "{refused}");
        }
        graph.nodes[1].steps = None;
        graph.nodes[3].steps = None;
        let none = Wanted {
            select: None,
            step: Some(0),
        };
        assert!(none.check(&graph).is_err());
    }

    /// What was measured of which picture, by the names of the outputs.
    #[test]
    fn a_table_belongs_to_the_last_picture_that_it_is_made_of() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../workflows/evaluate.yaml");
        let engine = Engine::new(retouch_nodes::registry());
        let checked = engine.load(&file, &Settings::default()).unwrap();
        let plan = engine.plan(&checked, &[]).unwrap();
        let outputs = plan.outputs();
        let key = |output: &retouch_graph::PlannedOutput| {
            plan.task(output.task).unwrap().port_key(output.port)
        };
        let mut pictures = 0;
        for (output, scores) in outputs.iter().zip(scores_of(&plan)) {
            let names: Vec<&str> = (scores.iter())
                .filter_map(|(found, _)| outputs.iter().find(|other| key(other) == *found))
                .map(|table| table.name.as_str())
                .collect();
            match output.name.strip_suffix("_scores") {
                Some(_) => assert!(names.is_empty(), "a table has no scores"),
                None => assert_eq!(names, [format!("{}_scores", output.name)]),
            }
            pictures += names.len();
        }
        assert_eq!(pictures, 5);
        // A picture that is made into another has its own scores alone, and neither has those of an output that is not there.
        let chain = "schema: retouch/v1\nnodes:\n  a: {op: load_image, path: ../../references/teddy/01.png}\n  \
                     b: {op: resize_image, image: $a, width: 64, height: 64}\n  c: {op: resize_image, image: $b, width: 32, height: 32}\n  \
                     of_b: {op: picture_error, image: $b, to: $b}\n  of_c: {op: picture_error, image: $c, to: $c}\n\
                     outputs:\n  b: {value: $b}\n  c: {value: $c}\n  of_b: {value: $of_b}\n  of_c: {value: $of_c}\n";
        let name = format!("{}/chain.yaml", env!("CARGO_MANIFEST_DIR"));
        let checked = engine.load_str(&name, chain, &Settings::default()).unwrap();
        let plan = engine.plan(&checked, &[]).unwrap();
        let place = |name: &str| {
            plan.outputs()
                .iter()
                .position(|output| output.name == name)
                .unwrap()
        };
        for (picture, table) in [("b", "of_b"), ("c", "of_c")] {
            let due = plan
                .task(plan.outputs()[place(table)].task)
                .unwrap()
                .port_key("table");
            assert_eq!(
                scores_of(&plan)[place(picture)],
                [(due, "table")],
                "{picture}"
            );
        }
    }

    #[test]
    fn a_run_becomes_the_states_of_its_nodes() {
        let (feed, desk, _, making) = Feed::new(false);
        run(&feed, &engine(), [1.0, 2.0, 3.0]);
        let model = model(feed, &desk, making);
        assert_eq!(model.graph.workflow, "sums");
        assert_eq!(model.graph.edges.len(), 2);
        assert_eq!(model.graph.edges[0].kind, "number");
        assert!(
            model
                .states
                .iter()
                .all(|state| matches!(state, State::Done { .. })),
            "{:?}",
            model.states
        );
        assert_eq!(model.phase, Phase::Waiting);
        assert_eq!(model.past.len(), 1);
        assert_eq!(model.said.back().unwrap().text, "it is 3 now");
        assert!(model.graph.nodes[0].place.is_some());
    }

    #[test]
    fn a_node_that_fails_and_one_that_panics_leave_the_model_whole() {
        let (feed, desk, _, making) = Feed::new(false);
        let engine = engine();
        run(&feed, &engine, [1.0, -1.0, 3.0]);
        run(&feed, &engine, [1.0, 5000.0, 3.0]);
        let model = model(feed, &desk, making);
        let [a, b, c] = &model.states[..] else {
            panic!("{:?}", model.states)
        };
        assert!(matches!(a, State::Done { .. }));
        assert!(
            matches!(b, State::Failed { message, .. } if message.contains("too much")),
            "{b:?}"
        );
        assert_eq!(*c, State::Stopped);
        assert_eq!(model.past.len(), 2);
        assert!(
            model
                .said
                .iter()
                .any(|said| said.text.contains("less than nothing"))
        );
    }

    /// What the model holds, counted.
    fn held(model: &Model) -> usize {
        let saved: usize = model.saved.values().map(Vec::len).sum();
        let texts: usize = model.said.iter().map(|said| said.text.len()).sum();
        model.states.len() + model.past.len() + model.said.len() + model.took.len() + saved + texts
    }

    #[test]
    fn what_the_model_holds_does_not_grow_over_1000_runs() {
        let (feed, desk, _, making) = Feed::new(false);
        let engine = engine();
        let mut after = Vec::new();
        for number in 0..1000 {
            run(&feed, &engine, [f64::from(number % 900), 2.0, 3.0]);
            if number % 250 == 249 {
                // Once all events are in.
                while desk.model().past.len() < 100 || desk.model().plans <= number as u64 {
                    std::thread::yield_now();
                }
                while desk.model().phase != Phase::Waiting {
                    std::thread::yield_now();
                }
                after.push(held(&desk.model()));
            }
        }
        let model = model(feed, &desk, making);
        assert_eq!(model.plans, 1000);
        assert_eq!((model.past.len(), model.said.len()), (100, 200));
        let [first, .., last] = after[..] else {
            panic!("{after:?}")
        };
        assert!(last <= first + 200, "{after:?}");
    }

    #[test]
    fn the_window_is_woken_no_more_often_than_it_can_be_drawn() {
        let (feed, desk, _, making) = Feed::new(false);
        let woken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&woken);
        desk.wake_with(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let begun = Instant::now();
        let recorder = Recorder::new();
        while begun.elapsed() < Duration::from_millis(300) {
            feed.event(&Event::NodeProgress {
                node: "a".to_owned(),
                done: 1,
                total: 2,
            });
            recorder.event(&Event::CacheWarning {
                message: String::new(),
            });
            std::thread::sleep(Duration::from_micros(100));
        }
        drop(feed);
        making.join().unwrap();
        let told = recorder.events().len();
        let woken = woken.load(Ordering::SeqCst);
        assert!(told > 300, "{told}");
        let most = 3 + (begun.elapsed().as_millis() / PACE.as_millis()) as usize;
        assert!((1..=most).contains(&woken), "{woken} of {told}");
    }
}
