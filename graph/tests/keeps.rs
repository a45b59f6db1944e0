//! What a run keeps is what it read; what it holds is given back; what a cache lost is made again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use retouch_graph::fields::AssetPath;
use retouch_graph::{
    Cache, Cancel, Chain, Chained, Code, Context, Decoders, DiskCache, DiskFiles, Engine,
    Environment, Event, Exists, Files, HostCache, Key, Listener, Node, NodeError, NodeOutcome,
    Outputs, Payload, ReadFile, Recorder, Registry, RunError, RunOptions, RunReport, Saver,
    Settings, Step, TieredCache, Upstream, ports,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::common::{self, Devices, Nothing, Number, OneNumber};

/// A number that is read from its file when it is first asked for.
struct Later {
    path: PathBuf,
    number: OnceLock<f64>,
}

impl Later {
    fn get(&self) -> f64 {
        *self.number.get_or_init(|| number_in(&self.path))
    }
}

fn number_in(path: &Path) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(f64::NAN)
}

impl Payload for Later {
    const TYPE: &'static str = "later";
    const LAZY: bool = true;
    fn bytes(&self) -> usize {
        8
    }
    fn summary(&self) -> String {
        "a number to come".to_owned()
    }
}

ports! {
    pub struct OneLater {
        /// The number.
        pub later: Arc<Later>,
    }
}

/// Opens a file that holds a number. A file of the same name and `.more` is read too.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Open {
    /// The file.
    path: AssetPath,
}

impl Node for Open {
    const OP: &'static str = "open";
    const VERSION: u32 = 1;
    type Inputs = Nothing;
    type Outputs = OneLater;
    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<retouch_graph::Fault>> {
        let more = self.path.as_path().with_extension("more");
        let all = [("number", self.path.to_path_buf()), ("more", more)];
        let there = all.into_iter().filter(|(_, path)| files.is_file(path));
        Ok(there
            .map(|(role, path)| ReadFile {
                role: role.to_owned(),
                path,
            })
            .collect())
    }
    fn run(&self, _: Nothing, _: &Context<'_>) -> Result<OneLater, NodeError> {
        Ok(OneLater {
            later: Arc::new(Later {
                path: self.path.to_path_buf(),
                number: OnceLock::new(),
            }),
        })
    }
}

ports! {
    pub struct StepsInputs {
        /// What is added at each step.
        pub later: Arc<Later>,
    }
}

/// Adds a number at each step, and keeps each sum. It reads the file anew at each step if `anew`.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Steps {
    /// How many.
    steps: usize,
    /// Whether the file is read at every step.
    #[serde(default)]
    anew: bool,
}

impl Steps {
    fn state(key: &Key, step: usize) -> Key {
        let mut key = *key;
        key.0[0] ^= u8::try_from(step + 1).unwrap();
        key
    }
}

impl Node for Steps {
    const OP: &'static str = "steps";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = StepsInputs;
    type Outputs = OneNumber;
    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        Chained {
            note: Some(Arc::new(upstream.key)),
            chain: Some(Chain {
                steps: vec![Step::default(); self.steps],
                states: (0..self.steps)
                    .map(|step| vec![Self::state(&upstream.key, step)])
                    .collect(),
                ..Chain::default()
            }),
            ..Chained::default()
        }
    }
    fn run(&self, inputs: StepsInputs, context: &Context<'_>) -> Result<OneNumber, NodeError> {
        let key = context.note::<Key>().unwrap();
        let mut sum = 0.0;
        for step in 0..self.steps {
            let state = Self::state(&key, step);
            if let Some(kept) = context.kept::<Number>(&state, "out") {
                sum = kept.0;
                continue;
            }
            context.check_cancelled()?;
            context.progress(2 * step, 2 * self.steps);
            sum += match self.anew {
                true => number_in(&inputs.later.path),
                false => inputs.later.get(),
            };
            context.progress(2 * step + 1, 2 * self.steps);
            context.count("steps", 1);
            context.keep(state, "out", Arc::new(Number(sum)), 1.0);
        }
        Ok(OneNumber {
            out: Arc::new(Number(sum)),
        })
    }
}

fn engine() -> Engine {
    let registry = common::registry().with::<Open>().with::<Steps>();
    Engine::new(registry).with_files(Arc::new(DiskFiles::new()))
}

/// Does something once, at the first event that fits.
struct At<F, D> {
    fits: F,
    action: D,
    done: AtomicBool,
    heard: Recorder,
}

impl<F: Fn(&Event) -> bool + Send + Sync, D: Fn() + Send + Sync> At<F, D> {
    fn new(fits: F, action: D) -> Self {
        Self {
            fits,
            action,
            done: AtomicBool::new(false),
            heard: Recorder::new(),
        }
    }
}

impl<F: Fn(&Event) -> bool + Send + Sync, D: Fn() + Send + Sync> Listener for At<F, D> {
    fn event(&self, event: &Event) {
        self.heard.event(event);
        if (self.fits)(event) && !self.done.swap(true, Ordering::SeqCst) {
            (self.action)();
        }
    }
}

/// Two listeners, one after the other.
struct Both<'a>(&'a dyn Listener, &'a dyn Listener);

impl Listener for Both<'_> {
    fn event(&self, event: &Event) {
        self.0.event(event);
        self.1.event(event);
    }
}

fn starts(name: &'static str) -> impl Fn(&Event) -> bool + Send + Sync {
    move |event| matches!(event, Event::NodeStarted { node, .. } if node == name)
}

fn progress(at: usize) -> impl Fn(&Event) -> bool + Send + Sync {
    move |event| matches!(event, Event::NodeProgress { done, .. } if *done == at)
}

/// A folder with a workflow and a file `n.txt` that holds a number and was written an hour ago.
struct Case {
    folder: TempDir,
    engine: Engine,
}

impl Case {
    fn new(nodes: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let text = format!("schema: retouch/v1\n{nodes}");
        std::fs::write(folder.path().join("w.yaml"), text).unwrap();
        let case = Self {
            folder,
            engine: engine(),
        };
        case.write("1");
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the file in place.
    fn write(&self, text: &str) {
        write(&self.path("n.txt"), text);
    }

    /// Puts another file into its place.
    fn swap(&self, text: &str) {
        swap(&self.path("n.txt"), text);
    }

    fn run(&self, listener: &dyn Listener) -> Result<RunReport, RunError> {
        let settings = Settings::default();
        let checked = self.engine.load(&self.path("w.yaml"), &settings).unwrap();
        let plan = self.engine.plan(&checked, &[]).unwrap();
        let options = RunOptions {
            threads: 1,
            saver: Some(Arc::new(Saver::new(self.path("out"), Exists::Replace))),
            ..RunOptions::default()
        };
        self.engine.run(&plan, listener, &Cancel::new(), &options)
    }

    #[track_caller]
    fn gives(&self, expected: &str) -> Recorder {
        let recorder = Recorder::new();
        self.run(&recorder).unwrap();
        let saved = std::fs::read_to_string(self.path("out/n.txt")).unwrap();
        assert_eq!(saved, expected);
        recorder
    }

    /// The run fails as the file changed: nothing is saved, and the failure names the file and says what to do.
    #[track_caller]
    fn changes(&self, listener: &dyn Listener) -> String {
        let error = self.run(listener).unwrap_err();
        assert_eq!(error.code(), Code::FileChanged, "{error}");
        assert!(error.hint().unwrap().contains("run it again"), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("n."), "{message}");
        assert!(!self.path("out").exists(), "nothing is saved");
        message
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(hour_ago).unwrap();
}

fn swap(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

const READ: &str = "nodes:
  first: {op: number, value: 5}
  read: {op: read, path: n.txt}
  n: {op: add, a: $read, b: $first}
outputs:
  n: {value: $n, save: n.txt}
";

const STEPS: &str = "nodes:
  open: {op: open, path: n.txt}
  n: {op: steps, steps: 4}
outputs:
  n: {value: $n, save: n.txt}
";

fn steps(anew: bool) -> String {
    STEPS.replace("steps: 4", &format!("steps: 4, anew: {anew}, later: $open"))
}

#[test]
fn a_file_that_changes_while_its_node_waits_fails_the_run_and_the_old_content_gives_the_old_value()
{
    type Change = fn(&Path);
    let changes: [(&str, Change); 3] = [
        ("was changed", |path| swap(path, "7")),
        ("was changed", |path| std::fs::write(path, "7").unwrap()),
        ("was removed", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (says, change) in changes {
        let case = Case::new(READ);
        let path = case.path("n.txt");
        let message = case.changes(&At::new(starts("first"), || change(&path)));
        assert!(message.contains(says), "{message}");
        case.write("1");
        let recorder = case.gives("6");
        assert_eq!(recorder.ran(), ["read", "n"]);
        case.write("7");
        case.gives("12");
    }
}

#[test]
fn a_model_s_file_that_changes_while_a_sampler_runs_fails_it_and_no_later_step_is_kept() {
    for anew in [false, true] {
        let case = Case::new(&steps(anew));
        // What was read before the change is kept, what was read after it is not.
        let listener = At::new(progress(4), || case.swap("100"));
        case.changes(&listener);
        let ended = listener.heard.events();
        assert!(
            !(ended.iter()).any(|event| matches!(event, Event::NodeProgress { done: 6, .. })),
            "the node ends at its next step"
        );
        case.swap("1");
        let recorder = case.gives("4");
        let counted = recorder.events().into_iter().find_map(|event| match event {
            Event::RunFinished { counters, .. } => counters.get("steps").copied(),
            _ => None,
        });
        assert_eq!(counted, Some(2), "the first two steps are there");
    }
}

#[test]
fn what_a_model_loaded_from_a_changed_file_is_not_used_by_the_next_run() {
    // The model itself was made before the change, and is kept in memory: it loads its number afterwards.
    let case = Case::new(&steps(false));
    case.changes(&At::new(starts("n"), || case.swap("100")));
    case.swap("1");
    case.gives("4");
}

#[test]
fn a_model_that_was_made_from_the_original_does_not_stand_for_a_copy() {
    let case = Case::new(&steps(true));
    case.gives("4");
    std::fs::copy(case.path("n.txt"), case.path("m.txt")).unwrap();
    case.swap("100");
    // The copy has the key of the original, which memory still holds.
    let text = std::fs::read_to_string(case.path("w.yaml")).unwrap();
    let text = text.replace("path: n.txt", "path: m.txt");
    std::fs::write(case.path("w.yaml"), text.replace("steps: 4", "steps: 3")).unwrap();
    case.gives("3");
}

#[test]
fn a_file_that_changes_and_changes_back_while_it_is_read_keeps_nothing() {
    let case = Case::new(&steps(true));
    let away = At::new(progress(2), || case.swap("100"));
    let back = At::new(progress(3), || case.swap("1"));
    case.run(&Both(&away, &back)).unwrap();
    let warned = |recorder: &Recorder| {
        let events = recorder.events();
        let warnings = events.iter().filter(|event| {
            matches!(event, Event::NodeWarning { message, .. } if message.contains("n.txt"))
        });
        warnings.count()
    };
    assert_eq!(warned(&away.heard), 1);
    let recorder = case.gives("4");
    assert_eq!(recorder.ran(), ["open", "n"]);
    assert_eq!(warned(&recorder), 0);
    assert!(case.gives("4").ran().is_empty());
}

#[test]
fn a_file_that_appears_while_its_node_waits_fails_the_run() {
    let case = Case::new(&steps(false));
    let more = case.path("n.more");
    let message = case.changes(&At::new(starts("open"), || {
        std::fs::write(&more, "1").unwrap();
    }));
    assert!(message.contains("n.more` appeared"), "{message}");
    case.gives("4");
}

// --- Panics -----------------------------------------------------------------------------------------------------------

/// Panics when it is stored, fetched or trimmed.
struct Awkward(String);

impl Payload for Awkward {
    const TYPE: &'static str = "awkward";
    fn bytes(&self) -> usize {
        8
    }
    fn summary(&self) -> String {
        self.0.clone()
    }
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        assert!(self.0 != "store", "no room in the store");
        Some(Ok(self.0.clone().into_bytes()))
    }
    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        assert!(bytes != b"fetch", "nothing to fetch");
        Ok(Self(String::from_utf8_lossy(bytes).into_owned()))
    }
    fn trim(&self, _: &[&'static str]) {
        assert!(self.0 != "trim", "trimmed too much");
    }
}

ports! {
    pub struct OneAwkward {
        /// The value.
        pub out: Arc<Awkward>,
    }
}
ports! {
    pub struct AwkwardInputs {
        /// The value.
        pub value: Arc<Awkward>,
        /// Something to wait for.
        pub after: Option<Arc<Number>>,
    }
}

/// Gives an awkward value.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Make {
    /// When it panics.
    how: String,
}

impl Node for Make {
    const OP: &'static str = "make";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Nothing;
    type Outputs = OneAwkward;
    fn run(&self, _: Nothing, _: &Context<'_>) -> Result<OneAwkward, NodeError> {
        Ok(OneAwkward {
            out: Arc::new(Awkward(self.how.clone())),
        })
    }
}

/// Takes an awkward value.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Use {
    /// Which of several.
    which: u32,
}

impl Node for Use {
    const OP: &'static str = "use_it";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = AwkwardInputs;
    type Outputs = OneNumber;
    fn run(&self, _: AwkwardInputs, _: &Context<'_>) -> Result<OneNumber, NodeError> {
        Ok(OneNumber {
            out: Arc::new(Number(self.which.into())),
        })
    }
}

#[test]
fn a_panic_in_storing_fetching_or_trimming_is_the_node_s_failure_and_nothing_waits_for_it() {
    let text = |how: &str, last: u32| {
        format!(
            "schema: retouch/v1
nodes:
  made: {{op: make, how: {how}}}
  one: {{op: use_it, which: 1, value: $made}}
  two: {{op: use_it, which: {last}, value: $made, after: $one}}
outputs:
  two: {{value: $two}}
"
        )
    };
    for (how, says) in [
        ("store", "no room in the store"),
        ("fetch", "nothing to fetch"),
        ("trim", "trimmed too much"),
    ] {
        for threads in [1, 4] {
            let folder = TempDir::new().unwrap();
            let registry = Registry::new().with::<Make>().with::<Use>();
            let engine = Engine::new(registry);
            // Values that only the run holds can be trimmed; those on disk are stored and fetched.
            let engine = match how {
                "trim" => engine.with_cache(Arc::new(HostCache::new(0))),
                _ => {
                    let decoders = Decoders::new().with::<Awkward>();
                    let disk = DiskCache::open(folder.path(), 1 << 20, decoders).unwrap();
                    engine.with_cache(Arc::new(disk))
                }
            };
            let run = |how: &str, last: u32| {
                let settings = Settings::default();
                let checked = engine.load_str("w.yaml", &text(how, last), &settings);
                let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
                let options = RunOptions {
                    threads,
                    ..RunOptions::default()
                };
                let recorder = Recorder::new();
                let result = engine.run(&plan, &recorder, &Cancel::new(), &options);
                assert!(matches!(
                    recorder.events().last(),
                    Some(Event::RunFinished { .. })
                ));
                result
            };
            if how == "fetch" {
                run(how, 2).unwrap();
            }
            let error = run(how, 3).unwrap_err();
            assert_eq!(error.code(), Code::NodePanicked, "{error}");
            assert!(error.to_string().contains(says), "{error}");
            // The device is free again.
            run("nothing", 4).unwrap();
        }
    }
}

// --- What is held -----------------------------------------------------------------------------------------------------

/// Counts values that are held.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A value that counts itself among those that are held.
struct Block(Arc<Held>);

impl Block {
    fn new(held: &Arc<Held>) -> Arc<Self> {
        let now = held.now.fetch_add(1, Ordering::SeqCst) + 1;
        held.most.fetch_max(now, Ordering::SeqCst);
        Arc::new(Self(Arc::clone(held)))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Payload for Block {
    const TYPE: &'static str = "block";
    fn bytes(&self) -> usize {
        1
    }
    fn summary(&self) -> String {
        "a block".to_owned()
    }
}

ports! {
    pub struct OneBlock {
        /// The block.
        pub out: Arc<Block>,
    }
}
ports! {
    pub struct BlockInputs {
        /// What it is laid on.
        pub on: Option<Arc<Block>>,
    }
}

/// Gives a block.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Lay {
    /// Which of several.
    which: u32,
}

impl Node for Lay {
    const OP: &'static str = "lay";
    const VERSION: u32 = 1;
    type Inputs = BlockInputs;
    type Outputs = OneBlock;
    fn run(&self, _: BlockInputs, context: &Context<'_>) -> Result<OneBlock, NodeError> {
        let held = context.environment::<Arc<Held>>().unwrap();
        Ok(OneBlock {
            out: Block::new(held),
        })
    }
}

#[test]
fn values_are_freed_when_nothing_needs_them_any_more() {
    // A chain of 2,000, and 500 chains of two, within a cache that keeps none of them.
    let mut chain = "nodes:\n  n0: {op: lay, which: 0}\n".to_owned();
    for at in 1..2000 {
        let before = at - 1;
        chain.push_str(&format!(
            "  n{at}: {{op: lay, which: {at}, on: $n{before}}}\n"
        ));
    }
    chain.push_str("outputs:\n  n: {value: $n1999}\n");
    let (mut many, mut outputs) = ("nodes:\n".to_owned(), "outputs:\n".to_owned());
    for at in 0..500 {
        many.push_str(&format!(
            "  a{at}: {{op: lay, which: {at}}}\n  b{at}: {{op: lay, which: {at}, on: $a{at}}}\n"
        ));
        outputs.push_str(&format!("  b{at}: {{value: $b{at}}}\n"));
    }
    for (text, ran, kept) in [(chain, 2000, 1), (many + &outputs, 1000, 500)] {
        for threads in [1, 4] {
            let held = Arc::new(Held::default());
            let engine = Engine::new(Registry::new().with::<Lay>())
                .with_environment(Arc::new(Arc::clone(&held)))
                .with_cache(Arc::new(HostCache::new(0)));
            let text = format!("schema: retouch/v1\n{text}");
            let checked = engine.load_str("w.yaml", &text, &Settings::default());
            let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
            let options = RunOptions {
                threads,
                ..RunOptions::default()
            };
            let report = engine
                .run(&plan, &Recorder::new(), &Cancel::new(), &options)
                .unwrap();
            assert_eq!(report.ran, ran);
            assert_eq!(held.now.load(Ordering::SeqCst), kept, "the outputs");
            // Besides, what a node takes and what it gives.
            let most = held.most.load(Ordering::SeqCst);
            assert!(most <= kept + 2 * threads, "{most} of {ran}");
            drop(report);
            assert_eq!(held.now.load(Ordering::SeqCst), 0);
        }
    }
}

// Of the one test below: what is read from disk knows no run.
static ALIVE: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

/// A value of which it is counted how many there are at once.
struct Counted(u8);

impl Counted {
    fn new(value: u8) -> Self {
        let now = ALIVE.fetch_add(1, Ordering::SeqCst) + 1;
        MOST.fetch_max(now, Ordering::SeqCst);
        Self(value)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Payload for Counted {
    const TYPE: &'static str = "counted";
    const FORMATS: &'static [&'static str] = &["txt"];
    fn bytes(&self) -> usize {
        1
    }
    fn summary(&self) -> String {
        self.0.to_string()
    }
    fn encode(&self, _: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        Ok(vec![self.0.to_string().into_bytes()])
    }
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(Ok(vec![self.0]))
    }
    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        Ok(Self::new(bytes[0]))
    }
}

ports! {
    pub struct OneCounted {
        /// The value.
        pub out: Arc<Counted>,
    }
}
ports! {
    pub struct CountedInputs {
        /// The value.
        pub value: Arc<Counted>,
    }
}

/// Gives a counted value.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Count {
    /// The value.
    value: u8,
}

impl Node for Count {
    const OP: &'static str = "count";
    const VERSION: u32 = 1;
    type Inputs = Nothing;
    type Outputs = OneCounted;
    fn run(&self, _: Nothing, _: &Context<'_>) -> Result<OneCounted, NodeError> {
        Ok(OneCounted {
            out: Arc::new(Counted::new(self.value)),
        })
    }
}

/// Takes a counted value.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Weigh {}

impl Node for Weigh {
    const OP: &'static str = "weigh";
    const VERSION: u32 = 1;
    type Inputs = CountedInputs;
    type Outputs = OneNumber;
    fn run(&self, inputs: CountedInputs, _: &Context<'_>) -> Result<OneNumber, NodeError> {
        Ok(OneNumber {
            out: Arc::new(Number(inputs.value.0.into())),
        })
    }
}

#[test]
fn a_run_of_what_is_on_disk_holds_one_value_at_a_time() {
    let folder = TempDir::new().unwrap();
    let decoders = Decoders::new().with::<Counted>();
    let disk = DiskCache::open(&folder.path().join("cache"), 1 << 20, decoders).unwrap();
    let registry = Registry::new().with::<Count>().with::<Weigh>();
    let engine = Engine::new(registry).with_cache(Arc::new(disk));
    let mut nodes = "schema: retouch/v1\nnodes:\n".to_owned();
    let (mut values, mut weights) = ("outputs:\n".to_owned(), "outputs:\n".to_owned());
    for i in 0..40 {
        nodes.push_str(&format!("  n{i}: {{op: count, value: {i}}}\n"));
        nodes.push_str(&format!("  w{i}: {{op: weigh, value: $n{i}}}\n"));
        values.push_str(&format!("  n{i}: {{value: $n{i}, save: n{i}.txt}}\n"));
        weights.push_str(&format!("  w{i}: {{value: $w{i}, save: w{i}.txt}}\n"));
    }
    let run = |outputs: &str, out: &str| {
        let text = format!("{nodes}{outputs}");
        let checked = engine.load_str("w.yaml", &text, &Settings::default());
        let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
        let saver = Saver::new(folder.path().join(out), Exists::Replace);
        let options = RunOptions {
            threads: 1,
            saver: Some(Arc::new(saver)),
            drop_outputs: true,
            ..RunOptions::default()
        };
        MOST.store(0, Ordering::SeqCst);
        let report = engine.run(&plan, &Recorder::new(), &Cancel::new(), &options);
        assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
        let saved = |i: usize, of: char| {
            let file = folder.path().join(out).join(format!("{of}{i}.txt"));
            std::fs::read_to_string(file).unwrap()
        };
        let of = if outputs == values { 'n' } else { 'w' };
        for i in 0..40 {
            assert_eq!(saved(i, of), i.to_string());
        }
        report.unwrap().ran
    };
    assert_eq!(run(&values, "first"), 40);
    assert_eq!(run(&values, "second"), 0);
    assert_eq!(MOST.load(Ordering::SeqCst), 1, "outputs that are kept");
    assert_eq!(run(&weights, "third"), 40);
    assert_eq!(MOST.load(Ordering::SeqCst), 1, "inputs that are kept");
}

/// A cache that says of all that it ever had that it is there, and has lost some of it.
struct Forgetful {
    inner: HostCache,
    places: Mutex<BTreeMap<Key, ()>>,
    loses: AtomicBool,
}

impl Cache for Forgetful {
    fn get(&self, key: &Key) -> Option<Outputs> {
        // It is lost until it is put again.
        if self.loses.load(Ordering::SeqCst) {
            self.inner.remove(key);
            self.loses.store(false, Ordering::SeqCst);
        }
        self.inner.get(key)
    }
    fn place(&self, key: &Key) -> Option<&'static str> {
        let there = self.places.lock().unwrap().contains_key(key);
        there.then_some("memory")
    }
    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        self.places.lock().unwrap().insert(key, ());
        self.inner.put(key, outputs, seconds);
    }
}

#[test]
fn what_the_cache_lost_after_it_was_planned_with_is_made_again() {
    let text = |amount: u32, saves: bool| {
        let save = if saves { ", save: n.txt" } else { "" };
        format!(
            "schema: retouch/v1
nodes:
  one: {{op: number, value: 1}}
  two: {{op: add, a: $one, amount: 2}}
  three: {{op: add, a: $two, b: $one, amount: {amount}}}
outputs:
  three: {{value: $three{save}}}
  two: {{value: $two}}
"
        )
    };
    for (amount, saves, drops, expected) in [
        // An output, saved or not; then an input.
        (3, true, false, "7"),
        (3, false, false, "7"),
        (3, true, true, "7"),
        (4, true, false, "8"),
        (4, true, true, "8"),
    ] {
        for threads in [1, 4] {
            let folder = TempDir::new().unwrap();
            let cache = Arc::new(Forgetful {
                inner: HostCache::new(1 << 20),
                places: Mutex::default(),
                loses: AtomicBool::new(false),
            });
            let engine = common::engine().with_cache(Arc::clone(&cache) as _);
            let run = |amount: u32| {
                let settings = Settings::default();
                let checked = engine.load_str("flows/w.yaml", &text(amount, saves), &settings);
                let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
                let options = RunOptions {
                    threads,
                    drop_outputs: drops,
                    saver: Some(Arc::new(Saver::new(folder.path(), Exists::Replace))),
                    ..RunOptions::default()
                };
                let recorder = Recorder::new();
                let report = engine
                    .run(&plan, &recorder, &Cancel::new(), &options)
                    .unwrap();
                (report, recorder)
            };
            run(3);
            // All of what is under the first key that is asked for, and with an emptied cache all there was.
            for empties in [false, true] {
                if empties {
                    cache.inner.clear();
                } else {
                    cache.loses.store(true, Ordering::SeqCst);
                }
                let (report, recorder) = run(amount);
                if !drops {
                    let value = &report.outputs[0].value;
                    assert_eq!(value.downcast::<Number>().unwrap().0.to_string(), expected);
                    assert_eq!(report.outputs.len(), 2);
                }
                if saves {
                    let saved = std::fs::read_to_string(folder.path().join("n.txt"));
                    assert_eq!(saved.unwrap(), expected);
                }
                let ran = recorder.ran();
                assert!(!ran.is_empty(), "something was lost");
                if empties {
                    assert!(ran.contains(&"one".to_owned()), "{ran:?}");
                }
                let said = report.nodes.iter();
                let said = said.filter(|node| matches!(node.outcome, NodeOutcome::Ran { .. }));
                let (mut said, mut ran): (Vec<_>, _) = (said.map(|node| &node.node).collect(), ran);
                said.sort();
                ran.sort();
                assert_eq!(said, ran.iter().collect::<Vec<_>>());
            }
        }
    }
}

// --- At the same time -------------------------------------------------------------------------------------------------

/// Where nodes wait for each other.
#[derive(Default)]
struct Meeting {
    there: Mutex<BTreeSet<u32>>,
    changed: Condvar,
}

impl Meeting {
    /// Waits until so many are there. Nothing is measured: those who meet do so whatever the machine, and a scheduler that
    /// runs one after the other fails here instead of waiting for ever.
    fn join(&self, who: u32, many: usize) -> Result<(), NodeError> {
        let mut there = self.there.lock().unwrap();
        there.insert(who);
        self.changed.notify_all();
        let patience = Duration::from_secs(60);
        let waited = self
            .changed
            .wait_timeout_while(there, patience, |there| there.len() < many);
        match waited.unwrap().1.timed_out() {
            true => Err(NodeError::failed(format!("{who} is alone"))),
            false => Ok(()),
        }
    }
}

/// Ends when as many nodes run as it is told.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Meet {
    /// Who it is.
    who: u32,
    /// How many must be there.
    many: usize,
}

impl Node for Meet {
    const OP: &'static str = "meet";
    const VERSION: u32 = 1;
    type Inputs = Nothing;
    type Outputs = OneNumber;
    fn run(&self, _: Nothing, context: &Context<'_>) -> Result<OneNumber, NodeError> {
        let meeting = context.environment::<Meeting>().unwrap();
        meeting.join(self.who, self.many)?;
        Ok(OneNumber {
            out: Arc::new(Number(self.who.into())),
        })
    }
}

/// The same on the device.
#[derive(Serialize, Deserialize, JsonSchema)]
struct MeetOnDevice {
    /// Who it is.
    who: u32,
    /// How many must be there.
    many: usize,
}

impl Node for MeetOnDevice {
    const OP: &'static str = "meet_on_device";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = Nothing;
    type Outputs = OneNumber;
    fn run(&self, inputs: Nothing, context: &Context<'_>) -> Result<OneNumber, NodeError> {
        let Self { who, many } = *self;
        Meet { who, many }.run(inputs, context)
    }
}

#[test]
fn independent_nodes_run_at_the_same_time() {
    for (ops, threads) in [
        (&["meet", "meet"][..], 2),
        (&["meet_on_device", "meet"], 2),
        (&["meet", "meet", "meet_on_device", "meet"], 4),
        // Two devices, each with a node; a thread is added for the second.
        (&["meet_on_device", "meet_on_device"], 1),
    ] {
        let registry = Registry::new().with::<Meet>().with::<MeetOnDevice>();
        let devices = ops.iter().filter(|op| **op == "meet_on_device").count();
        let meeting = Arc::new(Meeting::default());
        let engine = Engine::new(registry)
            .with_environments(std::iter::repeat_n(meeting as Environment, devices.max(1)))
            .with_cache(Arc::new(HostCache::new(1 << 20)));
        let (mut nodes, mut outputs) = (String::new(), String::new());
        for (who, op) in ops.iter().enumerate() {
            let many = ops.len();
            nodes.push_str(&format!(
                "  n{who}: {{op: {op}, who: {who}, many: {many}}}\n"
            ));
            outputs.push_str(&format!("  n{who}: {{value: $n{who}}}\n"));
        }
        let text = format!("schema: retouch/v1\nnodes:\n{nodes}outputs:\n{outputs}");
        let checked = engine.load_str("w.yaml", &text, &Settings::default());
        let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
        let options = RunOptions {
            threads,
            ..RunOptions::default()
        };
        let report = engine
            .run(&plan, &Recorder::new(), &Cancel::new(), &options)
            .unwrap();
        assert_eq!(report.ran, ops.len());
    }
}

// --- The device -------------------------------------------------------------------------------------------------------

#[test]
fn runs_of_one_engine_and_who_looks_share_one_device() {
    let devices = Arc::new(Devices::default());
    let engine = common::engine().with_environment(Arc::clone(&devices) as _);
    let plan = |seed: u32| {
        let text = format!(
            "schema: retouch/v1
nodes:
  s: {{op: sample, steps: 500, seed: {seed}}}
  n: {{op: number, value: {seed}}}
outputs:
  s: {{value: $s}}
  n: {{value: $n}}
"
        );
        let checked = engine.load_str("flows/w.yaml", &text, &Settings::default());
        engine.plan(&checked.unwrap(), &[]).unwrap()
    };
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let (engine, plan) = (engine.clone(), plan(seed));
            scope.spawn(move || {
                engine
                    .run(
                        &plan,
                        &Recorder::new(),
                        &Cancel::new(),
                        &RunOptions::default(),
                    )
                    .unwrap();
            });
        }
        for _ in 0..50 {
            let _permit = engine.device(&Cancel::new()).unwrap();
            assert_eq!(devices.busy.load(Ordering::SeqCst), 0);
        }
    });
    assert_eq!(devices.most.load(Ordering::SeqCst), 1);

    // What needs no device goes on while somebody else has it; who waits for it can be cancelled.
    let permit = engine.device(&Cancel::new()).unwrap();
    let cancelled = Cancel::new();
    cancelled.cancel();
    assert!(engine.device(&cancelled).is_none());
    let listener = At::new(
        |event| matches!(event, Event::NodeFinished { node, .. } if node == "n"),
        {
            let permit = Mutex::new(Some(permit));
            let devices = Arc::clone(&devices);
            move || {
                assert_eq!(devices.busy.load(Ordering::SeqCst), 0);
                drop(permit.lock().unwrap().take());
            }
        },
    );
    let options = RunOptions {
        threads: 1,
        ..RunOptions::default()
    };
    engine
        .run(&plan(100), &listener, &Cancel::new(), &options)
        .unwrap();
    assert_eq!(listener.heard.ran(), ["n", "s"]);
}

/// One of several devices, as an environment.
struct Numbered {
    number: usize,
    meeting: Arc<Meeting>,
    /// Values that were moved to it.
    moved: AtomicUsize,
}

/// A value in the memory of a device.
struct Placed(usize);

impl Payload for Placed {
    const TYPE: &'static str = "placed";
    fn bytes(&self) -> usize {
        8
    }
    fn summary(&self) -> String {
        format!("on device {}", self.0)
    }
    fn on_device(&self) -> bool {
        true
    }
    fn is_on(&self, environment: &Environment) -> bool {
        let device = environment.downcast_ref::<Numbered>();
        device.is_some_and(|device| device.number == self.0)
    }
    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        let device = environment.downcast_ref::<Numbered>();
        let elsewhere = device.filter(|device| device.number != self.0);
        Ok(elsewhere.map(|device| {
            device.moved.fetch_add(1, Ordering::SeqCst);
            Self(device.number)
        }))
    }
}

ports! {
    pub struct MaybePlaced {
        /// A value that must be where the node runs.
        pub a: Option<Arc<Placed>>,
        /// Another.
        pub b: Option<Arc<Placed>>,
    }
}
ports! {
    pub struct OnePlaced {
        /// A value where the node ran.
        pub out: Arc<Placed>,
    }
}

/// Runs on a device with what is there.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Compute {
    /// Who it is.
    who: u32,
    /// How many must be there.
    many: usize,
}

impl Node for Compute {
    const OP: &'static str = "compute";
    const VERSION: u32 = 1;
    const DEVICE: bool = true;
    type Inputs = MaybePlaced;
    type Outputs = OnePlaced;
    fn run(&self, inputs: MaybePlaced, context: &Context<'_>) -> Result<OnePlaced, NodeError> {
        let device = context.environment::<Numbered>().unwrap();
        for input in [inputs.a, inputs.b].into_iter().flatten() {
            assert_eq!(
                input.0, device.number,
                "an input of {} is elsewhere",
                self.who
            );
        }
        device.meeting.join(self.who, self.many)?;
        Ok(OnePlaced {
            out: Arc::new(Placed(device.number)),
        })
    }
}

#[test]
fn a_node_runs_where_its_inputs_are_and_what_is_elsewhere_is_moved() {
    let meeting: Arc<Meeting> = Arc::default();
    let devices: Vec<Arc<Numbered>> = (0..2)
        .map(|number| {
            Arc::new(Numbered {
                number,
                meeting: Arc::clone(&meeting),
                moved: AtomicUsize::new(0),
            })
        })
        .collect();
    let environments = || {
        devices
            .iter()
            .map(|device| Arc::clone(device) as Environment)
    };
    let cache = Arc::new(TieredCache::new(1 << 20, 1 << 20, None, environments()));
    let engine = Engine::new(Registry::new().with::<Compute>())
        .with_environments(environments())
        .with_cache(Arc::clone(&cache) as _);
    // `a` and `b` run side by side, then `c` where `a` was and `d` where `b` was; `e` needs both.
    let text = "schema: retouch/v1
nodes:
  a: {op: compute, who: 0, many: 2}
  b: {op: compute, who: 1, many: 2}
  c: {op: compute, who: 2, many: 4, a: $a}
  d: {op: compute, who: 3, many: 4, a: $b}
  e: {op: compute, who: 4, many: 5, a: $c, b: $d}
outputs:
  a: {value: $a}
  b: {value: $b}
  c: {value: $c}
  d: {value: $d}
  e: {value: $e}
";
    let run = |text: &str| {
        let checked = engine.load_str("w.yaml", text, &Settings::default());
        let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
        let options = RunOptions::default();
        let report = engine.run(&plan, &Recorder::new(), &Cancel::new(), &options);
        let report = report.unwrap();
        let outputs = report.outputs.iter();
        let places = outputs.map(|output| output.value.downcast::<Placed>().unwrap().0);
        (report.ran, places.collect::<Vec<_>>())
    };
    let moved = || -> Vec<usize> {
        let devices = devices.iter();
        devices
            .map(|device| device.moved.load(Ordering::SeqCst))
            .collect()
    };
    let (ran, places) = run(text);
    assert_eq!(ran, 5);
    assert_ne!(places[0], places[1]);
    assert_eq!([places[2], places[3]], [places[0], places[1]]);
    assert_eq!(places[4], 0, "of two that have as much, the first is taken");
    assert_eq!(moved(), [1, 0]);
    // Each result is kept where it was made.
    let held: Vec<usize> = cache.devices().iter().map(HostCache::len).collect();
    assert_eq!(held, [3, 2]);
    // What was made before is found, and moved to where it is needed.
    let (ran, places) = run(&text.replace("who: 4", "who: 5"));
    assert_eq!((ran, places[4]), (1, 0));
    assert_eq!(moved(), [2, 0]);
}

/// A cache that takes until another node has begun.
struct Slow {
    begun: Mutex<bool>,
    changed: Condvar,
    waited: AtomicUsize,
}

impl Cache for Slow {
    fn get(&self, _: &Key) -> Option<Outputs> {
        None
    }
    fn place(&self, _: &Key) -> Option<&'static str> {
        None
    }
    fn put(&self, _: Key, _: &Outputs, _: f64) {
        let begun = self.begun.lock().unwrap();
        let (begun, _) = self
            .changed
            .wait_timeout_while(begun, Duration::from_secs(20), |begun| !*begun)
            .unwrap();
        self.waited.fetch_add(usize::from(*begun), Ordering::SeqCst);
    }
}

#[test]
fn the_device_is_free_while_results_are_written() {
    let slow = Arc::new(Slow {
        begun: Mutex::new(false),
        changed: Condvar::new(),
        waited: AtomicUsize::new(0),
    });
    let engine = common::engine().with_cache(Arc::clone(&slow) as _);
    let text = "schema: retouch/v1
nodes:
  a: {op: sample, steps: 1, seed: 1}
  b: {op: sample, steps: 1, seed: 2}
outputs:
  a: {value: $a}
  b: {value: $b}
";
    let checked = engine.load_str("flows/w.yaml", text, &Settings::default());
    let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
    let listener = At::new(starts("b"), || {
        *slow.begun.lock().unwrap() = true;
        slow.changed.notify_all();
    });
    let options = RunOptions {
        threads: 2,
        ..RunOptions::default()
    };
    engine
        .run(&plan, &listener, &Cancel::new(), &options)
        .unwrap();
    assert_eq!(slow.waited.load(Ordering::SeqCst), 2);
}

// --- Ports ------------------------------------------------------------------------------------------------------------

ports! {
    pub struct TwoNumbers {
        /// The first.
        pub a: Option<Arc<Number>>,
        /// The second.
        pub b: Option<Arc<Number>>,
    }
}

/// Makes what is asked for alone.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Lean {
    /// The first number; the second is one more, and there is none after 9.
    value: u32,
}

impl Node for Lean {
    const OP: &'static str = "lean";
    const VERSION: u32 = 1;
    type Inputs = Nothing;
    type Outputs = TwoNumbers;
    fn run(&self, _: Nothing, context: &Context<'_>) -> Result<TwoNumbers, NodeError> {
        let make = |name: &str, value: u32| {
            (context.wants(name) && value < 10).then(|| Arc::new(Number(value.into())))
        };
        Ok(TwoNumbers {
            a: make("a", self.value),
            b: make("b", self.value + 1),
        })
    }
}

#[test]
fn an_entry_without_a_port_that_nobody_asked_for_is_no_reason_not_to_make_it() {
    let engine = Engine::new(Registry::new().with::<Lean>());
    let run = |value: u32, outputs: &[&str], targets: &[&str]| {
        let mut text = format!("schema: retouch/v1\nnodes:\n  n: {{op: lean, value: {value}}}\n");
        text.push_str("outputs:\n");
        for output in outputs {
            text.push_str(&format!("  {output}: {{value: $n.{output}}}\n"));
        }
        let targets: Vec<String> = targets.iter().map(|name| (*name).to_owned()).collect();
        let checked = engine.load_str("w.yaml", &text, &Settings::default());
        let plan = engine.plan(&checked.unwrap(), &targets).unwrap();
        let report = engine
            .run(
                &plan,
                &Recorder::new(),
                &Cancel::new(),
                &RunOptions::default(),
            )
            .unwrap();
        let numbers = report.outputs.iter();
        let numbers = numbers.map(|output| output.value.downcast::<Number>().unwrap().0);
        (report.ran, numbers.collect::<Vec<f64>>())
    };
    assert_eq!(run(1, &["a"], &[]), (1, vec![1.0]));
    assert_eq!(run(1, &["a", "b"], &[]), (1, vec![1.0, 2.0]));
    // Both are there now, and stay.
    assert_eq!(run(1, &["b"], &[]), (0, vec![2.0]));
    assert_eq!(run(1, &["a"], &[]), (0, vec![1.0]));
    assert_eq!(run(2, &["a"], &[]), (1, vec![2.0]));
    assert_eq!(run(2, &["b"], &[]), (1, vec![3.0]));
    assert_eq!(run(2, &["a", "b"], &[]), (0, vec![2.0, 3.0]));
    // A port that the node was asked for and does not give is not asked for again.
    assert_eq!(run(9, &["a"], &[]), (1, vec![9.0]));
    assert_eq!(run(9, &["a"], &["nodes.n"]), (1, vec![9.0]));
    assert_eq!(run(9, &["a"], &["nodes.n"]), (0, vec![9.0]));
}
