//! What the panel of steps asks for, and who answers: a thread of its own that reads what runs kept and, while no run goes
//! on, calls networks for what they did not.
//!
//! A window never waits. It asks in every frame for what it shows; what it does not ask for any more is not begun, and
//! ended if it was. While a run goes on nothing that takes a network is begun, and such a look that was begun ends at its
//! next layer and waits for the run's end, so that the sampler has the processor and the memory to itself.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use retouch_graph::{Cancel, Engine, Plan, Quality};
use retouch_nodes::look::{
    Effort, GazeRow, LookError, Plane, QueriesOf, Reader, StepMasks, Summary, Whose,
};

/// Something to look at. What of it is of one image of a batch says which.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    /// What there is to look at.
    Summary,
    /// Latent k as a picture.
    Picture {
        /// 0 to T, noisiest first.
        k: usize,
        /// Which image.
        image: usize,
        /// By the VAE rather than by the linear map.
        exact: bool,
    },
    /// Where a query looks: computed once for a step and a site, a row of it from then on.
    Gaze {
        /// The step.
        k: usize,
        /// The self-attention site.
        site: usize,
        /// Which image.
        image: usize,
        /// Row and column of the query on the site's grid.
        at: (usize, usize),
        /// One head, or the mean over them.
        head: Option<usize>,
    },
    /// The masks of step k, all images.
    Masks {
        /// The step.
        k: usize,
    },
    /// Where the words are looked for, all images.
    Words {
        /// The step.
        k: usize,
        /// Whose cross-attention.
        whose: Whose,
        /// The words.
        subject: String,
    },
    /// The finished picture of the context or of a reference.
    Source {
        /// Which of them.
        whose: Whose,
        /// Which image.
        image: usize,
    },
}

/// A picture as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Three bytes a pixel, row by row.
    pub rgb: Vec<u8>,
}

/// Where a query looks, and what that is a row of.
#[derive(Clone, Debug, PartialEq)]
pub struct GazeAt {
    /// (rows, columns) of the queries.
    pub grid: (usize, usize),
    /// Whose the queries are.
    pub queries_of: QueriesOf,
    /// The row.
    pub row: GazeRow,
}

/// An answer to a request; cloning shares it.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To [`Request::Summary`].
    Summary(Arc<Summary>),
    /// To [`Request::Picture`] and [`Request::Source`].
    Picture(Arc<Pixels>),
    /// To [`Request::Masks`].
    Masks(Arc<StepMasks>),
    /// To [`Request::Words`]: a plane for each image.
    Words(Arc<Vec<Plane>>),
    /// To [`Request::Gaze`].
    Gaze(Arc<GazeAt>),
}

impl Answer {
    fn bytes(&self) -> usize {
        let of = |planes: &[Plane]| {
            planes
                .iter()
                .map(|plane| plane.data.len() * 4)
                .sum::<usize>()
        };
        match self {
            Self::Summary(_) => 0,
            Self::Picture(pixels) => pixels.rgb.len(),
            Self::Words(planes) => of(planes),
            Self::Masks(masks) => {
                let references: usize = masks.references.iter().map(|planes| of(planes)).sum();
                references + of(&masks.context) + of(&masks.blend)
            }
            Self::Gaze(gaze) => {
                let planes = gaze.row.planes.iter();
                planes.map(|(_, plane)| plane.data.len() * 4).sum()
            }
        }
    }
}

/// The state of a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Here it is.
    Ready(Answer),
    /// It is being looked at; the text says what is computed for it, if anything is.
    Working(String),
    /// It waits for the end of the run; the text says what it takes.
    Waiting(String),
    /// It cannot be looked at: why, and what to do about it.
    Failed {
        /// Why.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
}

/// Who answers requests. The panel calls [`Looks::frame`] and then asks for all that it shows.
pub trait Looks {
    /// A frame begins: what is not asked for in it or in the one before is dropped.
    fn frame(&mut self);
    /// Asks for something; returns at once.
    fn ask(&mut self, request: &Request) -> Reply;
    /// The words for the subject in the prompt of a branch, as the workflow has them.
    fn subject(&self, whose: Whose) -> Option<String>;
}

/// The most bytes of answers that are held.
const ANSWERS: usize = 64 << 20;

/// Called when there is a new answer, from the thread that looks.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// The progress of a request.
#[derive(Debug)]
enum Progress {
    Queued,
    Working(String),
    Waiting(String),
    Done(Answer),
    Failed(String, Option<String>),
}

#[derive(Debug)]
struct Entry {
    /// The frame in which it was last asked for.
    asked: u64,
    progress: Progress,
}

#[derive(Debug, Default)]
struct State {
    requests: HashMap<Request, Entry>,
    frame: u64,
    /// Whether a run goes on.
    busy: bool,
    /// How often what is kept may have changed.
    changes: u64,
    over: bool,
    /// What is looked at, how it is ended, and whether it calls networks.
    at: Option<(Request, Cancel, bool)>,
}

impl State {
    /// Whether it was asked for in this frame or the one before.
    fn is_wished(&self, entry: &Entry) -> bool {
        entry.asked + 1 >= self.frame
    }

    /// The request to be computed next; those that are no longer asked for are dropped.
    fn next(&mut self) -> Option<Request> {
        let frame = self.frame;
        self.requests.retain(|_, entry| {
            let waits = matches!(entry.progress, Progress::Queued | Progress::Waiting(_));
            !waits || entry.asked + 1 >= frame
        });
        let queued = |entry: &Entry| matches!(entry.progress, Progress::Queued);
        let queued = self.requests.iter().filter(|(_, entry)| queued(entry));
        queued.map(|(request, _)| request).min().cloned()
    }

    /// Forgets the answers that were not asked for for longest, once they are too many.
    fn tidy(&mut self) {
        let bytes = |entry: &Entry| match &entry.progress {
            Progress::Done(answer) => answer.bytes(),
            _ => 0,
        };
        let mut held: usize = self.requests.values().map(bytes).sum();
        while held > ANSWERS {
            let old = self.requests.iter().filter(|(_, entry)| bytes(entry) > 0);
            let Some(oldest) = old.min_by_key(|(_, entry)| entry.asked) else {
                return;
            };
            if self.is_wished(oldest.1) {
                return;
            }
            let request = oldest.0.clone();
            held -= self
                .requests
                .remove(&request)
                .map_or(0, |entry| bytes(&entry));
        }
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    reader: Reader,
    wake: Wake,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers from what the runs of an engine kept, by a thread that ends when this is dropped.
pub struct EngineLooks {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for EngineLooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineLooks")
            .field("reader", &self.shared.reader)
            .finish_non_exhaustive()
    }
}

impl EngineLooks {
    /// Looks at the steps of the node of that name in a plan; `None` when it has none (it is no sampler), or the system
    /// gives no thread. `wake` is called when an answer came: it asks the window for a frame. `busy`: whether a run goes
    /// on already.
    #[must_use]
    pub fn new(
        engine: Engine,
        plan: Arc<Plan>,
        node: &str,
        busy: bool,
        wake: Wake,
    ) -> Option<Self> {
        let reader = Reader::of_node(engine, plan, node)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                busy,
                ..State::default()
            }),
            changed: Condvar::new(),
            reader,
            wake,
        });
        let looks = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("retouch-look".to_owned())
            .stack_size(8 << 20)
            .spawn(move || work(&looks))
            .ok()?;
        Some(Self { shared })
    }

    /// A run begins: what takes a network waits, and models that were held for looks are let go.
    pub fn run_begins(&self) {
        let mut state = self.shared.lock();
        state.busy = true;
        if let Some((_, cancel, true)) = &state.at {
            cancel.cancel();
        }
        drop(state);
        self.shared.reader.release();
    }

    /// The run is over: what waited is looked at, and what was not kept is asked for again.
    pub fn run_ends(&self) {
        let mut state = self.shared.lock();
        state.busy = false;
        for entry in state.requests.values_mut() {
            if matches!(entry.progress, Progress::Waiting(_)) {
                entry.progress = Progress::Queued;
            }
        }
        drop(state);
        self.refresh();
    }

    /// Steps were made meanwhile: which are kept, and what could not be looked at, is looked at again. Cheap; a few times
    /// a second while a run goes on is enough.
    pub fn refresh(&self) {
        let mut state = self.shared.lock();
        state.changes += 1;
        let stale = |request: &Request, entry: &Entry| {
            *request == Request::Summary || matches!(entry.progress, Progress::Failed(..))
        };
        state
            .requests
            .retain(|request, entry| !stale(request, entry));
        drop(state);
        self.shared.changed.notify_all();
        (self.shared.wake)();
    }

    /// Whether nothing that is still requested is being computed.
    #[must_use]
    pub fn idle(&self) -> bool {
        let state = self.shared.lock();
        let going = |entry: &Entry| {
            state.is_wished(entry)
                && matches!(entry.progress, Progress::Queued | Progress::Working(_))
        };
        !state.requests.values().any(going)
    }

    /// Calls of the U-Net (images, one half each) that looks made so far.
    #[cfg(test)]
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.reader.calls()
    }
}

impl Drop for EngineLooks {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.over = true;
        if let Some((_, cancel, _)) = &state.at {
            cancel.cancel();
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Looks for EngineLooks {
    fn frame(&mut self) {
        let mut state = self.shared.lock();
        state.frame += 1;
        // It is no longer asked for: two frames went by without it.
        if let Some((request, cancel, _)) = &state.at
            && !state
                .requests
                .get(request)
                .is_some_and(|entry| state.is_wished(entry))
        {
            cancel.cancel();
        }
    }

    fn ask(&mut self, request: &Request) -> Reply {
        let mut state = self.shared.lock();
        let asked = state.frame;
        let mut new = false;
        let entry = state.requests.entry(request.clone()).or_insert_with(|| {
            new = true;
            Entry {
                asked,
                progress: Progress::Queued,
            }
        });
        entry.asked = asked;
        let reply = match &entry.progress {
            Progress::Queued => Reply::Working(String::new()),
            Progress::Working(what) => Reply::Working(what.clone()),
            Progress::Waiting(what) => Reply::Waiting(what.clone()),
            Progress::Done(answer) => Reply::Ready(answer.clone()),
            Progress::Failed(message, help) => Reply::Failed {
                message: message.clone(),
                help: help.clone(),
            },
        };
        drop(state);
        if new {
            self.shared.changed.notify_all();
        }
        reply
    }

    fn subject(&self, whose: Whose) -> Option<String> {
        self.shared.reader.subject(whose)
    }
}

/// Computes what is requested until the other side is gone.
fn work(shared: &Shared) {
    loop {
        let (request, cancel, changes) = {
            let mut state = shared.lock();
            loop {
                if state.over {
                    return;
                }
                if let Some(request) = state.next() {
                    let cancel = Cancel::new();
                    state.at = Some((request.clone(), cancel.clone(), false));
                    break (request, cancel, state.changes);
                }
                let waited = shared.changed.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
            }
        };
        let mut found = look(&shared.reader, &request, Effort::Kept, &cancel);
        if let Err(LookError::Takes(what)) = found {
            found = harder(shared, &request, what, &cancel);
        }
        let mut state = shared.lock();
        state.at = None;
        let busy = state.busy;
        let changed = state.changes != changes;
        if let Some(entry) = state.requests.get_mut(&request) {
            entry.progress = match found {
                Ok(answer) => Progress::Done(answer),
                Err(LookError::Takes(what)) if busy => Progress::Waiting(what),
                Err(LookError::Takes(_)) => Progress::Queued, // the run ended meanwhile
                // By a run that began: it is looked at when that is over. Else it is asked for again, or forgotten.
                Err(LookError::Cancelled) if busy => {
                    match std::mem::replace(&mut entry.progress, Progress::Queued) {
                        Progress::Working(what) => Progress::Waiting(what),
                        other => other,
                    }
                }
                Err(LookError::Cancelled) => Progress::Queued,
                Err(LookError::NotKept { message, help }) => Progress::Failed(message, Some(help)),
                Err(LookError::Failed { message, help }) => Progress::Failed(message, help),
            };
            let passing =
                request == Request::Summary || matches!(entry.progress, Progress::Failed(..));
            if passing && changed {
                entry.progress = Progress::Queued; // it may be of before a step that is kept by now
            }
        }
        state.tidy();
        drop(state);
        (shared.wake)();
    }
}

/// Looks again, calling networks, unless a run goes on.
fn harder(
    shared: &Shared,
    request: &Request,
    what: String,
    cancel: &Cancel,
) -> Result<Answer, LookError> {
    let mut state = shared.lock();
    if state.busy {
        return Err(LookError::Takes(what));
    }
    state.at = Some((request.clone(), cancel.clone(), true));
    if let Some(entry) = state.requests.get_mut(request) {
        entry.progress = Progress::Working(what);
    }
    drop(state);
    (shared.wake)();
    look(&shared.reader, request, Effort::Calls, cancel)
}

fn look(
    reader: &Reader,
    request: &Request,
    effort: Effort,
    cancel: &Cancel,
) -> Result<Answer, LookError> {
    let found = catch_unwind(AssertUnwindSafe(|| found(reader, request, effort, cancel)));
    found.unwrap_or_else(|_| {
        Err(LookError::Failed {
            message: "looking at it panicked".to_owned(),
            help: Some("this is a bug in the program: please report it".to_owned()),
        })
    })
}

fn found(
    reader: &Reader,
    request: &Request,
    effort: Effort,
    cancel: &Cancel,
) -> Result<Answer, LookError> {
    let pixels = |image: retouch_nodes::payload::Image| -> Result<Answer, LookError> {
        let (width, height) = image.size();
        let rgb = image.to_rgb8(0)?;
        Ok(Answer::Picture(Arc::new(Pixels { width, height, rgb })))
    };
    match request {
        Request::Summary => Ok(Answer::Summary(Arc::new(reader.summary()?))),
        Request::Picture { k, image, exact } => {
            let quality = match exact {
                true => Quality::Exact,
                false => Quality::Quick,
            };
            pixels(reader.picture(*k, *image, quality, effort, cancel)?)
        }
        Request::Masks { k } => Ok(Answer::Masks(Arc::new(reader.masks(*k, effort, cancel)?))),
        Request::Words { k, whose, subject } => {
            let planes = reader.cross_attention(*k, *whose, subject, effort, cancel)?;
            Ok(Answer::Words(Arc::new(planes)))
        }
        Request::Source { whose, image } => {
            pixels(reader.source_picture(*whose, *image, effort, cancel)?)
        }
        Request::Gaze {
            k,
            site,
            image,
            at,
            head,
        } => {
            let gaze = reader.attention(*k, *site, effort, cancel)?;
            let row = gaze.row(*image, *at, *head)?;
            Ok(Answer::Gaze(Arc::new(GazeAt {
                grid: gaze.grid,
                queries_of: gaze.queries_of,
                row,
            })))
        }
    }
}

#[cfg(test)]
#[path = "looks_tests.rs"]
mod tests;
