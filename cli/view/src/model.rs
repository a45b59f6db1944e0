//! What the window shows: the graph of the last plan, what became of each node, faults, what was said. It is made of
//! plans and events alone, and what it holds does not grow with the number of runs.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use retouch_graph::event::{Event, RunStatus};
use retouch_graph::workflow::Workflow;
use retouch_graph::{Key, Plan, Problem, Resume, SaveStatus, Source, Span, Status, Sweep};
use retouch_nodes::image::Grid;
use serde_json::Value as Json;

use crate::params::Told;

/// Number of recent notes kept.
const MOST_SAID: usize = 200;
/// Number of recent runs kept.
const MOST_RUNS: usize = 100;
/// Number of runs whose outputs can be compared side by side.
const MOST_MADE: usize = 8;
/// Number of files kept of one output.
const MOST_SAVED: usize = 64;

/// A port of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// The types of value: `image`.
    pub types: &'static [&'static str],
    /// What it is, for people.
    pub docs: String,
    /// Of an output: what its value is called in the cache.
    pub key: Option<Key>,
    /// Of an input: the nodes that it is linked to, and their ports.
    pub links: Vec<(usize, &'static str)>,
}

/// A node of the graph: a task of the plan, with the same index.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its names; equal nodes of a workflow are one task.
    pub names: Vec<String>,
    /// Its name within its group: `swap` of `retouch/swap`.
    pub label: String,
    /// The group that it is in.
    pub group: Option<usize>,
    /// Its op.
    pub op: &'static str,
    /// The op's documentation; the first line says what it does.
    pub docs: String,
    /// Its key.
    pub key: Key,
    /// Its parameters, defaults filled in, as they would be written.
    pub params: Vec<(String, String)>,
    /// Its inputs.
    pub inputs: Vec<Port>,
    /// Its outputs.
    pub outputs: Vec<Port>,
    /// Of a chain: the number of its first step, and one past the last.
    pub steps: Option<(usize, usize)>,
    /// Why it runs, or where its outputs are, in words.
    pub why: String,
    /// What of it changed since the last run.
    pub changed: Option<String>,
    /// The calls of a network that it would make.
    pub calls: u64,
    /// The seconds that it is foretold to take.
    pub foretold: Option<f64>,
    /// The bytes of memory that it is foretold to take.
    pub peak: Option<u64>,
    /// Where it is written.
    pub place: Option<(Source, Span)>,
}

impl Node {
    /// Its name, or the first one's.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The node that makes the value.
    pub from: usize,
    /// Its port.
    pub from_port: &'static str,
    /// The node that takes it.
    pub to: usize,
    /// Its port.
    pub to_port: &'static str,
    /// The type of the value.
    pub kind: &'static str,
}

/// A reusable graph in the workflow: the nodes whose names begin with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its whole name: `retouch`, `a/b`.
    pub name: String,
    /// Its own name: `b` of `a/b`.
    pub label: String,
    /// The group that it is in.
    pub parent: Option<usize>,
    /// All nodes in it, also those of groups in it.
    pub nodes: Vec<usize>,
}

/// An output of the workflow.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// The node that makes it.
    pub node: usize,
    /// The node's port.
    pub port: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// What the value is called in the cache.
    pub key: Key,
    /// What is on it, if it is a contact sheet.
    pub sheet: Option<Arc<Sheet>>,
    /// The tables that say what was measured of it: what they are called in the cache, and the port.
    pub scores: Vec<(Key, &'static str)>,
}

impl PartialEq for Output {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.port, self.key) == (&other.name, other.port, other.key)
    }
}

/// A contact sheet.
#[derive(Debug)]
pub struct Sheet {
    /// The node that draws it.
    pub grid: Grid,
    /// The values that are on it: what they are called in the cache, and the port.
    pub entries: Vec<(Key, &'static str)>,
    /// The sweep whose cells they are of.
    pub sweep: Option<Sweep>,
}

/// A param of the workflow and its value in this run.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Json,
}

/// What is run: everything about a plan that does not change while it runs.
#[derive(Debug, Default)]
pub struct Graph {
    /// The workflow's name.
    pub workflow: String,
    /// The workflow's file.
    pub file: PathBuf,
    /// The workflow as it is written on disk, and after it the graphs that it uses, with their files.
    pub workflows: Vec<(PathBuf, Arc<Workflow>)>,
    /// The plan.
    pub plan: Option<Arc<Plan>>,
    /// The tasks of the plan in its order.
    pub nodes: Vec<Node>,
    /// The links between them.
    pub edges: Vec<Edge>,
    /// The reusable graphs; one that is in another comes after it.
    pub groups: Vec<Group>,
    /// The outputs in the order of the file.
    pub outputs: Vec<Output>,
    /// The contact sheet of the workflow's sweep, which `retouch sweep` draws.
    pub sweep: Option<Output>,
    /// The params.
    pub params: Vec<Param>,
    /// What is odd but no fault.
    pub warnings: Vec<Problem>,
    /// What would become of each node.
    pub forecast: Vec<State>,
}

impl Graph {
    /// The node of that name; of equal nodes each name counts.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<usize> {
        let has = |node: &Node| node.names.iter().any(|other| other == name);
        self.nodes.iter().position(has)
    }

    /// The group of that name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| group.name == name)
    }

    /// Finds the groups of the nodes by their names, and sets them.
    pub fn find_groups(&mut self) {
        let mut by_name: IndexMap<String, Group> = IndexMap::new();
        let mut own = Vec::with_capacity(self.nodes.len());
        for (index, node) in self.nodes.iter().enumerate() {
            let name = node.name();
            let mut parent = None;
            for (at, _) in name.match_indices('/') {
                let group = &name[..at];
                let label = group.rsplit('/').next().unwrap_or(group);
                let entry = by_name.entry(group.to_owned());
                let place = entry.index();
                entry
                    .or_insert_with(|| Group {
                        name: group.to_owned(),
                        label: label.to_owned(),
                        parent,
                        nodes: Vec::new(),
                    })
                    .nodes
                    .push(index);
                parent = Some(place);
            }
            own.push(parent);
        }
        for (node, group) in self.nodes.iter_mut().zip(own) {
            node.group = group;
            node.label = node
                .name()
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned();
        }
        self.groups = by_name.into_values().collect();
    }
}

/// What became, or becomes, of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum State {
    /// Nothing is known of it yet.
    #[default]
    Unknown,
    /// Its outputs are there: `memory`, `device memory` or `disk`.
    Kept(&'static str),
    /// Nothing needs it.
    NotNeeded,
    /// It will run; if it resumes, from the first of these steps, out of the second.
    Queued(Option<(usize, usize)>),
    /// It runs.
    Running {
        /// The steps that are done and how many there are, in the node's own unit; 0 of 0 before the first is reported.
        progress: (usize, usize),
        /// The step that it went on from.
        resumed: Option<usize>,
    },
    /// It ran.
    Done {
        /// The seconds that it took.
        seconds: f64,
        /// The step that it went on from, and how many it has.
        resumed: Option<(usize, usize)>,
    },
    /// It failed.
    Failed {
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// The run ended before it was done.
    Stopped,
}

/// The sorts of state, for colours, symbols and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Nothing is known, or nothing needs it.
    Idle,
    /// In the memory of the host or a device.
    Memory,
    /// On disk.
    Disk,
    /// It will run.
    Queued,
    /// It will go on from a step.
    Resumes,
    /// It runs.
    Running,
    /// It ran.
    Done,
    /// It failed.
    Failed,
    /// It was stopped.
    Stopped,
}

impl State {
    /// Its sort.
    #[must_use]
    pub fn mark(&self) -> Mark {
        match self {
            Self::Unknown | Self::NotNeeded => Mark::Idle,
            Self::Kept("disk") => Mark::Disk,
            Self::Kept(_) => Mark::Memory,
            Self::Queued(Some(_)) => Mark::Resumes,
            Self::Queued(None) => Mark::Queued,
            Self::Running { .. } => Mark::Running,
            Self::Done { .. } => Mark::Done,
            Self::Failed { .. } => Mark::Failed,
            Self::Stopped => Mark::Stopped,
        }
    }

    /// In a few words: `running 12 of 50`.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Unknown => "not looked at yet".to_owned(),
            Self::Kept(place) => (*place).to_owned(),
            Self::NotNeeded => "not needed".to_owned(),
            Self::Queued(None) => "queued".to_owned(),
            Self::Queued(Some((at, of))) if at == of => "all steps are kept".to_owned(),
            Self::Queued(Some((at, of))) => format!("resumes at {at} of {of}"),
            Self::Running {
                progress: (0, 0), ..
            } => "running".to_owned(),
            Self::Running {
                progress: (done, of),
                ..
            } => format!("running {done} of {of}"),
            Self::Done { seconds, resumed } => {
                let took = retouch_common::duration(*seconds);
                match resumed {
                    Some((at, of)) if at < of => format!("done in {took}, from {at} of {of}"),
                    _ => format!("done in {took}"),
                }
            }
            Self::Failed { .. } => "failed".to_owned(),
            Self::Stopped => "stopped".to_owned(),
        }
    }

    /// In words that fit into a box.
    #[must_use]
    pub fn brief(&self) -> String {
        match self {
            Self::Done {
                seconds,
                resumed: Some((at, of)),
            } if at < of => format!("{}, from {at} of {of}", retouch_common::duration(*seconds)),
            other => other.words(),
        }
    }

    /// How much of it is done, from 0 to 1, while it runs.
    #[must_use]
    pub fn share(&self) -> Option<f32> {
        match self {
            Self::Running {
                progress: (done, of),
                ..
            } if *of > 0 => Some((*done as f32 / *of as f32).clamp(0.0, 1.0)),
            Self::Running { .. } => Some(0.0),
            _ => None,
        }
    }
}

/// What a forecast says of a task.
#[must_use]
pub fn foretold(status: &Status, resume: Option<Resume>) -> State {
    match (status, resume) {
        (Status::Cached(place), _) => State::Kept(place),
        (Status::NotNeeded, _) => State::NotNeeded,
        (Status::Run(_), Some(resume)) if resume.at > resume.first => {
            State::Queued(Some((resume.at, resume.of)))
        }
        (Status::Run(_), _) => State::Queued(None),
    }
}

/// What is new.
#[derive(Clone, Debug)]
pub enum News {
    /// A run of this is about to begin.
    Planned(Arc<Graph>),
    /// The workflow was read again, and what runs is still what it says.
    Again(Arc<Graph>),
    /// The workflow, or what was tried, has faults.
    Faults(Vec<Problem>),
    /// These values that were to be tried cannot be written into their files.
    Refused(Vec<Told>),
    /// Something happened during the run.
    Event(Event),
    /// The loop has ended; with what went wrong, if something did.
    Over(Option<String>),
}

/// What the loop does.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Phase {
    /// The workflow is being read for the first time.
    #[default]
    Reading,
    /// A plan is there and was not run yet.
    Planned,
    /// A run goes on.
    Running,
    /// It waits for an edit.
    Waiting,
    /// It has ended.
    Over,
}

/// A run that is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// How it ended.
    pub status: RunStatus,
    /// The seconds that it took.
    pub seconds: f64,
    /// The number of nodes that ran.
    pub ran: usize,
    /// The number of nodes that did not have to.
    pub reused: usize,
    /// The calls of the U-Net.
    pub calls: u64,
}

/// What a run made, for looking at it beside what another made.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// Which run of the session it was, from 1.
    pub run: u64,
    /// What its params were that the run before it had otherwise: `seed 44, steps 20`; empty for the first.
    pub what: String,
    /// Its outputs.
    pub outputs: Vec<Output>,
    /// The values of its params.
    params: Vec<(String, Json)>,
}

/// A file of an output.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedFile {
    /// The file.
    pub path: PathBuf,
    /// What became of it.
    pub status: SaveStatus,
}

/// How loud a remark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Worth knowing.
    Note,
    /// Something is odd.
    Warning,
    /// Something failed.
    Error,
}

/// Something that a node or the cache said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The node.
    pub node: Option<String>,
    /// What it said.
    pub text: String,
    /// How loudly.
    pub tone: Tone,
}

/// All that the window shows.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The graph of the last plan.
    pub graph: Arc<Graph>,
    /// What became of each node, by index.
    pub states: Vec<State>,
    /// The faults of the file as it is now; none once it is sound.
    pub faults: Arc<Vec<Problem>>,
    /// What of what is tried cannot be written into its file.
    pub refused: Arc<Vec<Told>>,
    /// What the loop does.
    pub phase: Phase,
    /// The runs that are over, the last one last.
    pub past: VecDeque<Past>,
    /// What the last runs made that differs, the last one last.
    pub made: VecDeque<Made>,
    /// The runs that were begun.
    runs: u64,
    /// What was said, the last one last.
    pub said: VecDeque<Said>,
    /// The files of the run's outputs, by output.
    pub saved: HashMap<String, Vec<SavedFile>>,
    /// The seconds that each node took in this session when it ran last, by name.
    pub took: HashMap<String, f64>,
    /// What ended the loop.
    pub trouble: Option<String>,
    /// Raised with everything that is new.
    pub version: u64,
    /// Raised with each plan.
    pub plans: u64,
    /// Raised whenever values may have come to the cache: what missed one asks again.
    pub values: u64,
    /// The index of each node, by name.
    index: Arc<HashMap<String, usize>>,
}

impl Model {
    /// Takes in what is new.
    pub fn apply(&mut self, news: News) {
        self.version += 1;
        match news {
            News::Planned(graph) => self.plan(graph),
            News::Again(graph) => self.again(graph),
            News::Faults(faults) => {
                self.faults = Arc::new(faults);
                if self.phase == Phase::Reading {
                    self.phase = Phase::Waiting;
                }
            }
            News::Refused(refused) => self.refused = Arc::new(refused),
            News::Event(event) => self.event(event),
            News::Over(trouble) => {
                self.phase = Phase::Over;
                self.trouble = trouble;
            }
        }
    }

    fn plan(&mut self, graph: Arc<Graph>) {
        let index = graph.nodes.iter().enumerate().flat_map(|(index, node)| {
            let names = node.names.iter();
            names.map(move |name| (name.clone(), index))
        });
        self.index = Arc::new(index.collect());
        self.states.clone_from(&graph.forecast);
        self.states.resize(graph.nodes.len(), State::Unknown);
        self.took.retain(|name, _| self.index.contains_key(name));
        self.saved.clear();
        self.faults = Arc::default();
        self.phase = Phase::Planned;
        self.plans += 1;
        self.values += 1;
        self.graph = graph;
    }

    fn again(&mut self, graph: Arc<Graph>) {
        // By name: another order in the file may be another order of nodes.
        let state = |node: &Node| {
            let at = self.index.get(node.name());
            at.and_then(|at| self.states.get(*at)).cloned()
        };
        let states = (graph.nodes.iter())
            .map(|node| state(node).unwrap_or(State::Unknown))
            .collect();
        let (phase, saved) = (self.phase.clone(), std::mem::take(&mut self.saved));
        self.plan(graph);
        (self.states, self.phase, self.saved) = (states, phase, saved);
    }

    fn state(&mut self, node: &str) -> Option<&mut State> {
        self.states.get_mut(*self.index.get(node)?)
    }

    fn set(&mut self, node: &str, to: State) {
        if let Some(state) = self.state(node) {
            *state = to;
        }
    }

    fn say(&mut self, node: Option<String>, text: String, tone: Tone) {
        let said = Said { node, text, tone };
        // A node that says the same in every run says it once.
        if self.said.back() == Some(&said) {
            return;
        }
        self.said.push_back(said);
        while self.said.len() > MOST_SAID {
            self.said.pop_front();
        }
    }

    // Long: one match over all events, each a line or two.
    fn event(&mut self, event: Event) {
        match event {
            Event::RunStarted { .. } => {
                self.phase = Phase::Running;
                self.runs += 1;
            }
            Event::NodeReused { node, from, .. } => {
                let state = match from {
                    "not needed" => State::NotNeeded,
                    place => State::Kept(place),
                };
                self.set(&node, state);
            }
            Event::NodeStarted { node, .. } => {
                let running = State::Running {
                    progress: (0, 0),
                    resumed: None,
                };
                self.set(&node, running);
            }
            Event::NodeResumed { node, step, of } => {
                if let Some(State::Running { progress, resumed }) = self.state(&node) {
                    *progress = (step, of);
                    *resumed = Some(step);
                }
            }
            Event::NodeProgress { node, done, total } => {
                if let Some(State::Running { progress, .. }) = self.state(&node) {
                    *progress = (done, total);
                }
            }
            Event::NodeFinished { node, seconds, .. } => {
                if let Some(state) = self.state(&node) {
                    let resumed = match state {
                        State::Running {
                            progress: (_, of),
                            resumed: Some(step),
                        } => Some((*step, *of)),
                        _ => None,
                    };
                    *state = State::Done { seconds, resumed };
                    self.took.insert(node, seconds);
                }
                self.values += 1;
            }
            Event::NodeFailed {
                node,
                message,
                help,
                ..
            } => {
                self.say(Some(node.clone()), message.clone(), Tone::Error);
                self.set(&node, State::Failed { message, help });
            }
            Event::NodeNote { node, message } => self.say(Some(node), message, Tone::Note),
            Event::NodeWarning { node, message } => self.say(Some(node), message, Tone::Warning),
            Event::CacheWarning { message } => self.say(None, message, Tone::Warning),
            Event::OutputSaved {
                output,
                path,
                status,
            } => {
                let files = self.saved.entry(output).or_default();
                if files.len() < MOST_SAVED {
                    files.push(SavedFile { path, status });
                }
            }
            Event::OutputFailed {
                output,
                message,
                help,
                ..
            } => self.say(
                None,
                format!("output {output}: {message} ({help})"),
                Tone::Error,
            ),
            Event::RunFinished {
                status,
                seconds,
                counters,
                ran,
                reused,
            } => {
                for state in &mut self.states {
                    if matches!(state, State::Running { .. } | State::Queued(_)) {
                        *state = State::Stopped;
                    }
                }
                if status == RunStatus::Ok {
                    self.remember_made();
                }
                self.past.push_back(Past {
                    status,
                    seconds,
                    ran,
                    reused,
                    calls: counters.get("unet_calls").copied().unwrap_or(0),
                });
                while self.past.len() > MOST_RUNS {
                    self.past.pop_front();
                }
                self.phase = Phase::Waiting;
                self.values += 1;
            }
            // The file of a preview belongs to the run; what is not known yet says nothing here.
            _ => {}
        }
    }

    /// Remembers what the run made, if the run before it made something else.
    fn remember_made(&mut self) {
        let outputs = self.graph.outputs.clone();
        let params: Vec<(String, Json)> = (self.graph.params.iter())
            .map(|param| (param.name.clone(), param.value.clone()))
            .collect();
        let mut what = String::new();
        if let Some(last) = self.made.back() {
            if last.outputs == outputs {
                return;
            }
            let changed: Vec<String> = (params.iter())
                .filter(|param| !last.params.contains(param))
                .map(|(name, value)| format!("{name} {}", retouch_graph::sweep::shown(value)))
                .collect();
            what = changed.join(", ");
        }
        self.made.push_back(Made {
            run: self.runs,
            what,
            outputs,
            params,
        });
        while self.made.len() > MOST_MADE {
            self.made.pop_front();
        }
    }

    /// What became of a node.
    #[must_use]
    pub fn state_of(&self, node: usize) -> &State {
        self.states.get(node).unwrap_or(&State::Unknown)
    }

    /// What became of a group, as one state: the most urgent of its nodes', and in words how many of them are done.
    #[must_use]
    pub fn state_of_group(&self, group: &Group) -> (Mark, String, Option<f32>) {
        /// The most urgent first.
        const URGENCY: [Mark; 9] = [
            Mark::Failed,
            Mark::Running,
            Mark::Stopped,
            Mark::Resumes,
            Mark::Queued,
            Mark::Done,
            Mark::Disk,
            Mark::Memory,
            Mark::Idle,
        ];
        let marks: Vec<Mark> = (group.nodes.iter())
            .map(|node| self.state_of(*node).mark())
            .collect();
        let most = URGENCY.into_iter().find(|mark| marks.contains(mark));
        let mark = most.unwrap_or(Mark::Idle);
        let count = |wanted: &[Mark]| marks.iter().filter(|mark| wanted.contains(mark)).count();
        let there = count(&[Mark::Done, Mark::Disk, Mark::Memory, Mark::Idle]);
        let all = marks.len();
        let words = match mark {
            Mark::Failed => "failed".to_owned(),
            Mark::Running => format!("running, {there} of {all} done"),
            Mark::Stopped => "stopped".to_owned(),
            Mark::Resumes | Mark::Queued => {
                format!("{} of {all} to run", count(&[Mark::Queued, Mark::Resumes]))
            }
            Mark::Done => "done".to_owned(),
            Mark::Disk => "disk".to_owned(),
            Mark::Memory => "memory".to_owned(),
            Mark::Idle => "not needed".to_owned(),
        };
        let share = (mark == Mark::Running).then(|| {
            let running = group
                .nodes
                .iter()
                .filter_map(|node| self.state_of(*node).share());
            (there as f32 + running.sum::<f32>()) / all.max(1) as f32
        });
        (mark, words, share)
    }

    /// The run in words: `running 3 of 12 nodes`.
    #[must_use]
    pub fn status(&self) -> String {
        let faults = self.faults.len();
        if let Some(trouble) = &self.trouble {
            return trouble.clone();
        }
        match self.phase {
            Phase::Reading => "reading the workflow".to_owned(),
            Phase::Running => {
                let left = (self.states.iter())
                    .filter(|state| matches!(state, State::Queued(_) | State::Running { .. }))
                    .count();
                format!("running, {left} of {} nodes left", self.states.len())
            }
            _ if faults > 0 => match faults {
                _ if self.plans == 0 => format!("invalid: {faults} in Problems"),
                1 => "1 fault; showing the last valid version".to_owned(),
                faults => format!("{faults} faults; showing the last valid version"),
            },
            Phase::Planned => "planned".to_owned(),
            Phase::Waiting | Phase::Over => match self.past.back() {
                Some(past) => {
                    let took = retouch_common::duration(past.seconds);
                    match past.status {
                        RunStatus::Ok if past.ran == 0 => {
                            "up to date, nothing had to run".to_owned()
                        }
                        RunStatus::Ok => format!("up to date, {} ran in {took}", nodes(past.ran)),
                        RunStatus::Failed => format!("failed after {took}"),
                        RunStatus::Cancelled => format!("stopped after {took}"),
                    }
                }
                None if self.phase == Phase::Over => {
                    "showing what is in the cache; nothing was run".to_owned()
                }
                None => "waiting for an edit".to_owned(),
            },
        }
    }
}

/// `1 node`, `3 nodes`.
fn nodes(count: usize) -> String {
    match count {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    }
}
