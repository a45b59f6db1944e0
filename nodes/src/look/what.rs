//! What can be looked at, and why it may not be.

use super::*;

/// Why something cannot be looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookError {
    /// It is not kept, and only a run makes it.
    #[error("{message}")]
    NotKept {
        /// What is not kept.
        message: String,
        /// How to have it.
        help: String,
    },
    /// It takes so much work, which this look was not to do ([`Effort::Kept`]).
    #[error("it takes {0}")]
    Takes(String),
    /// Whoever looked moved on.
    #[error("cancelled")]
    Cancelled,
    /// It cannot be looked at.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
}

impl LookError {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            help: None,
        }
    }
}

impl From<NodeError> for LookError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Cancelled => Self::Cancelled,
            NodeError::Failed { message, help } => Self::Failed { message, help },
        }
    }
}

impl From<retouch_diffusion::Error> for LookError {
    fn from(error: retouch_diffusion::Error) -> Self {
        NodeError::from(error).into()
    }
}

impl From<RunError> for LookError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Cancelled => Self::Cancelled,
            other => Self::Failed {
                help: other.hint(),
                message: other.to_string(),
            },
        }
    }
}

/// The result of a look.
pub type Result<T, E = LookError> = std::result::Result<T, E>;

/// How much a look may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Read what is kept, call no network: milliseconds of one thread. Fit for while a run goes on.
    Kept,
    /// Call networks too: the VAE, or the U-Net once (and once for each source whose keys and values are not kept).
    Calls,
}

/// Where the latent of a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is kept: `memory`, `disk`.
    Kept(&'static str),
    /// It comes with the node's inputs (starting noise, a picture, the context's latent), without a call of the U-Net.
    Given,
    /// It is not kept: only a run of the node makes it.
    Gone,
}

/// A self-attention site of the node's model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteSummary {
    /// Its number, in running order.
    pub index: usize,
    /// Where in the network it is.
    pub part: Part,
    /// (rows, columns) of its queries for the node's latents.
    pub grid: (usize, usize),
    /// How its features are split.
    pub heads: Heads,
    /// Whether the node's swap acts there.
    pub swapped: bool,
}

/// What there is to look at of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The node's name.
    pub node: String,
    /// Its op.
    pub op: &'static str,
    /// T: step k leads from latent k to latent k + 1.
    pub steps: usize,
    /// The first step that the node makes itself; the latents up to it are its context's.
    pub first: usize,
    /// Images of the batch.
    pub images: usize,
    /// (rows, columns) of a latent.
    pub latent: (usize, usize),
    /// For each of the T + 1 latents, noisiest first, where it is.
    pub latents: Vec<Place>,
    /// The steps that have masks.
    pub masks: Range<usize>,
    /// References of its swap.
    pub references: usize,
    /// Its sites.
    pub sites: Vec<SiteSummary>,
    /// The words that its swap calls the subject, or a swap that it is a source of.
    pub subject: Option<String>,
}

impl Summary {
    /// How many of the latents can be looked at.
    #[must_use]
    pub fn kept(&self) -> usize {
        let there = |place: &&Place| **place != Place::Gone;
        self.latents.iter().filter(there).count()
    }
}

/// The nodes whose steps can be looked at.
pub(super) enum Kind<'a> {
    Sample(&'a Sample),
    Blend(&'a StepBlendSample),
    Invert(&'a Invert),
}

impl<'a> Kind<'a> {
    pub(super) fn of(task: &'a Task) -> Option<Self> {
        (task.node().map(Self::Sample))
            .or_else(|| task.node().map(Self::Blend))
            .or_else(|| task.node().map(Self::Invert))
    }

    /// The port of the model whose VAE its previews are made with.
    pub(super) fn model_port(&self) -> &'static str {
        match self {
            Self::Blend(_) => "personalized",
            Self::Sample(_) | Self::Invert(_) => "model",
        }
    }
}

/// The ports of all of a node's inputs.
pub(super) const SAMPLE: &[&str] = &["model", "control", "latent", "mask"];

pub(super) const BLEND: &[&str] = &["vanilla", "personalized", "latent"];

pub(super) const INVERT: &[&str] = &["model", "latent"];

/// The call that a plain sampler made at a step.
pub(super) struct PlainCall {
    pub(super) model: Arc<Model>,
    pub(super) prompt: String,
    pub(super) negative: String,
    pub(super) guidance: f64,
    pub(super) z: Tensor,
    pub(super) timestep: f32,
}

/// Looks at the steps of one node of a plan: `sample`, `step_blend_sample` or `invert`.
///
/// All of it may be called from any thread; whoever draws a window calls it from another than the window's. The inputs of
/// the node (its model among them) and a few sites' queries and keys are held between looks: see [`Reader::release`].
pub struct Reader {
    pub(super) engine: Engine,
    pub(super) plan: Arc<Plan>,
    pub(super) task: usize,
    pub(super) note: Arc<SamplerNote>,
    pub(super) inputs: Mutex<PortValues>,
    /// Step, site, and what was found there; what was looked at last is last.
    pub(super) gazes: Mutex<VecDeque<(usize, usize, Arc<AttentionRow>)>>,
    pub(super) calls: AtomicU64,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("task", &self.plan.task(self.task))
            .finish_non_exhaustive()
    }
}
