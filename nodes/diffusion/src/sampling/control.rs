//! *What* attention attends to, apart from how it is computed (`kernels`). The U-Net numbers its sites and asks a
//! control at each; a control is free to look, to replace keys and values, or to let things be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::Tensor;

use crate::sampling::attention_row::{AttentionRow, Heads, QueriesOf, Seen, Warped, Whose};
use crate::sampling::masks::Plane;
use crate::sampling::matching::{Values, matches, warped};
use crate::{Error, Result};
use retouch_kernels::{Attended, Kernel};

/// Which of a transformer layer's two attentions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// Pixels attend to pixels (`attn1`).
    SelfAttention,
    /// Pixels attend to the prompt's tokens (`attn2`).
    CrossAttention,
}

/// Which of the method's branches a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Branch {
    /// Plain sampling or inversion.
    Plain,
    /// An inverted photo of the subject, by its number.
    Reference(usize),
    /// The trajectory of stage 1.
    Context,
    /// What stage 2 draws.
    Target,
}

/// One of the two network outputs of classifier-free guidance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Half {
    /// u, by the negative prompt.
    Unconditional,
    /// c, by the prompt.
    Conditional,
}

/// What the rows of a call are: the negative half of every image, if it is there, then the prompt half of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The branch.
    pub branch: Branch,
    /// Images.
    pub images: usize,
    /// Whether the unconditional half (by the negative prompt) is there.
    pub unconditional: bool,
    /// Whether the conditional half (by the prompt) is there.
    pub conditional: bool,
}

impl Rows {
    /// The rows of a branch: both halves if `guided` (guidance is not 1), else the conditional alone.
    #[must_use]
    pub fn new(branch: Branch, images: usize, guided: bool) -> Self {
        Self {
            branch,
            images,
            unconditional: guided,
            conditional: true,
        }
    }

    /// The rows of each half that is there, the conditional last.
    #[must_use]
    pub fn halves(&self) -> Vec<(Half, Range<usize>)> {
        [Half::Unconditional, Half::Conditional]
            .into_iter()
            .filter_map(|half| Some((half, self.half(half)?)))
            .collect()
    }

    /// The rows of a half, if it is there.
    #[must_use]
    pub fn half(&self, half: Half) -> Option<Range<usize>> {
        let first = match half {
            Half::Unconditional => self.unconditional.then_some(0),
            Half::Conditional => {
                self.conditional
                    .then_some(if self.unconditional { self.images } else { 0 })
            }
        }?;
        Some(first..first + self.images)
    }

    /// All rows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.images * (usize::from(self.unconditional) + usize::from(self.conditional))
    }
}

/// Where in the run and in the network an attention is.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// The step k.
    pub step: usize,
    /// The transformer layer, numbered from 0 in running order over the whole U-Net.
    pub index: usize,
    /// Which of its attentions.
    pub kind: AttentionKind,
    /// (rows, columns) of the pixels.
    pub grid: (usize, usize),
    /// Which branch and halves the rows are.
    pub rows: Rows,
}

/// Queries `[R, N, C]`, keys and values `[R, M, C]` of a site, C = heads x head size.
#[derive(Clone, Debug)]
pub struct Qkv {
    /// Queries.
    pub q: Tensor,
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
    /// Heads that C is split into.
    pub heads: usize,
    /// What the scores are multiplied with.
    pub scale: f64,
}

impl Qkv {
    /// Attention as the network has it: `[R, N, C]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn attend(&self, kernel: &dyn Kernel) -> Result<Tensor> {
        Ok(kernel.attention(&self.q, &self.k, &self.v, self.heads, self.scale, None)?)
    }

    fn rows(&self, rows: &Range<usize>) -> Result<Self> {
        let narrow = |t: &Tensor| t.narrow(0, rows.start, rows.len());
        Ok(Self {
            q: narrow(&self.q)?,
            k: narrow(&self.k)?,
            v: narrow(&self.v)?,
            ..*self
        })
    }
}

/// Decides what a site's attention gives.
pub trait AttentionControl {
    /// The output `[R, N, C]` of the attention at `site`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn attend(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<Tensor>;
}

/// Leaves every attention as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Untouched;

impl AttentionControl for Untouched {
    fn attend(&mut self, _: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<Tensor> {
        qkv.attend(kernel)
    }
}

/// Collects the raw cross-attention maps of the prompt half: the mean over heads and over all layers of one grid.
#[derive(Debug)]
pub struct MapRecorder {
    grid: (usize, usize),
    sum: Option<Tensor>,
    layers: usize,
}

impl MapRecorder {
    /// Records the layers whose pixels are on this grid.
    #[must_use]
    pub fn new(grid: (usize, usize)) -> Self {
        Self {
            grid,
            sum: None,
            layers: 0,
        }
    }

    pub(crate) fn record(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<()> {
        if site.kind != AttentionKind::CrossAttention || site.grid != self.grid {
            return Ok(());
        }
        let Some(rows) = site.rows.half(Half::Conditional) else {
            return Ok(());
        };
        let prompt = qkv.rows(&rows)?;
        let map = kernel.attention_map(&prompt.q, &prompt.k, qkv.heads, qkv.scale)?;
        self.sum = Some(match self.sum.take() {
            Some(sum) => (sum + map)?,
            None => map,
        });
        self.layers += 1;
        Ok(())
    }

    /// The raw maps `[B, h w, tokens]`.
    ///
    /// # Errors
    /// When no layer is on the grid.
    pub fn finish(self) -> Result<Tensor> {
        match self.sum {
            Some(sum) => Ok((sum / self.layers as f64)?),
            None => Err(Error::request(format!(
                "no cross-attention layer is on the mask grid {}x{}",
                self.grid.0, self.grid.1
            ))),
        }
    }
}

/// Something that a call of one half gives besides its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Keys and values of a self-attention site.
    KeysValues(usize),
    /// Its queries.
    Queries(usize),
    /// The raw cross-attention maps of the layers of this level (the prompt half's alone).
    Map(usize),
}

impl Part {
    /// The part as a number, to be kept beside a key.
    #[must_use]
    pub fn tag(self) -> u64 {
        let (kind, index) = match self {
            Self::KeysValues(site) => (0, site),
            Self::Queries(site) => (1, site),
            Self::Map(level) => (2, level),
        };
        (index as u64) << 2 | kind
    }

    /// The part of that number.
    #[must_use]
    pub fn of_tag(tag: u64) -> Option<Self> {
        let index = usize::try_from(tag >> 2).ok()?;
        match tag & 3 {
            0 => Some(Self::KeysValues(index)),
            1 => Some(Self::Queries(index)),
            2 => Some(Self::Map(index)),
            _ => None,
        }
    }
}

/// The parts that are needed of a half: maps are the prompt's alone.
#[must_use]
pub fn of_half(parts: &BTreeSet<Part>, half: Half) -> BTreeSet<Part> {
    parts
        .iter()
        .copied()
        .filter(|part| half == Half::Conditional || !matches!(part, Part::Map(_)))
        .collect()
}

/// Of the parts those that masks are made of.
#[must_use]
pub fn maps_alone(parts: &BTreeSet<Part>) -> BTreeSet<Part> {
    parts
        .iter()
        .copied()
        .filter(|part| matches!(part, Part::Map(_)))
        .collect()
}

/// A [`Part`] as it was given, for every image of the batch.
#[derive(Clone, Debug)]
pub enum Captured {
    /// `[B, N, C]` each.
    KeysValues {
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
        /// (rows, columns) of the pixels.
        grid: (usize, usize),
    },
    /// `[B, N, C]`.
    Queries(Tensor),
    /// `[B, h w, tokens]`: mean over heads and layers.
    Map(Tensor),
}

/// What a source branch gave, by half.
pub type CapturedParts = BTreeMap<(Half, Part), Captured>;

/// Looks at a call and keeps what is wanted of it.
#[derive(Debug, Default)]
pub struct Capture {
    wanted: BTreeSet<(Half, Part)>,
    maps: BTreeMap<usize, MapRecorder>,
    given: CapturedParts,
}

impl Capture {
    /// Keeps these parts; `grid` is that of a level for the latents of the call.
    #[must_use]
    pub fn new(wanted: BTreeSet<(Half, Part)>, grid: impl Fn(usize) -> (usize, usize)) -> Self {
        let maps = wanted
            .iter()
            .filter_map(|(_, part)| match part {
                Part::Map(level) => Some((*level, MapRecorder::new(grid(*level)))),
                _ => None,
            })
            .collect();
        Self {
            wanted,
            maps,
            given: CapturedParts::new(),
        }
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty()
    }

    /// What was kept.
    ///
    /// # Errors
    /// When a map was wanted and no layer is on its grid.
    pub fn finish(mut self) -> Result<CapturedParts> {
        for (level, recorder) in self.maps {
            self.given.insert(
                (Half::Conditional, Part::Map(level)),
                Captured::Map(recorder.finish()?),
            );
        }
        Ok(self.given)
    }
}

impl Capture {
    fn look(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<()> {
        for recorder in self.maps.values_mut() {
            recorder.record(site, qkv, kernel)?;
        }
        if site.kind == AttentionKind::SelfAttention && !self.wanted.is_empty() {
            for (half, rows) in site.rows.halves() {
                let (keys_values, queries) =
                    (Part::KeysValues(site.index), Part::Queries(site.index));
                if self.wanted.contains(&(half, keys_values)) {
                    let own = qkv.rows(&rows)?;
                    let given = Captured::KeysValues {
                        k: own.k,
                        v: own.v,
                        grid: site.grid,
                    };
                    self.given.insert((half, keys_values), given);
                }
                if self.wanted.contains(&(half, queries)) {
                    let given = Captured::Queries(qkv.rows(&rows)?.q);
                    self.given.insert((half, queries), given);
                }
            }
        }
        Ok(())
    }
}

impl AttentionControl for Capture {
    fn attend(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<Tensor> {
        self.look(site, qkv, kernel)?;
        qkv.attend(kernel)
    }
}

/// Looks at several calls that are made as one, each with its own rows and [`Capture`]; what a site says of its step and
/// rows does not count.
#[derive(Debug, Default)]
pub struct Captures(Vec<(usize, Rows, Capture)>);

impl Captures {
    /// Adds a call, whose rows are behind those that are there.
    pub fn push(&mut self, step: usize, rows: Rows, capture: Capture) {
        self.0.push((step, rows, capture));
    }

    /// What was kept of each.
    ///
    /// # Errors
    /// As [`Capture::finish`].
    pub fn finish(self) -> Result<Vec<CapturedParts>> {
        let captures = self.0.into_iter();
        captures.map(|(.., capture)| capture.finish()).collect()
    }
}

impl AttentionControl for Captures {
    fn attend(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<Tensor> {
        let mut first = 0;
        for (step, rows, capture) in &mut self.0 {
            let own = qkv.rows(&(first..first + rows.count()))?;
            first += rows.count();
            let site = Site {
                step: *step,
                rows: *rows,
                ..site
            };
            capture.look(site, &own, kernel)?;
        }
        qkv.attend(kernel)
    }
}

/// What the target's sites do at a step.
#[derive(Debug)]
pub enum Action<'a> {
    /// Nothing.
    Let,
    /// The context's attention takes the place of the target's.
    Lock {
        /// What the context gave.
        context: &'a CapturedParts,
    },
    /// Inside the mask the reference's values, outside the context's: each through its own keys, or all through the context's where they
    /// are matched.
    Swap {
        /// What the context gave; `None` when the mask leaves nothing to it, the queries are the target's own and no values are matched.
        context: Option<&'a CapturedParts>,
        /// What each reference gave.
        references: &'a [CapturedParts],
        /// Whether the queries are the context's (k < structure_until) or the target's own.
        context_queries: bool,
        /// M_ref of each reference's images; a key counts from 0.5.
        reference_masks: &'a [Vec<Plane>],
        /// M_k, for each image or one for all.
        blend: &'a [Plane],
        /// Which values are read inside the mask.
        values: Values,
    },
}

/// Controls the target branch at one step.
#[derive(Debug)]
pub struct Swap<'a> {
    /// The sites that are acted on.
    pub sites: &'a BTreeSet<usize>,
    /// What is done there.
    pub action: Action<'a>,
    /// The target's own cross-attention maps, if they are wanted.
    pub maps: Option<MapRecorder>,
    /// How many sites were acted on.
    pub fired: usize,
    /// How many sites had no key inside the reference's mask, so that all of their keys were used.
    pub unmasked: usize,
}

/// Keys and values `[B or 1, M, C]` that queries meet, the grids that the keys lie on one after another, and which of
/// them count in each image; all when `None`.
#[derive(Debug)]
struct Met {
    k: Tensor,
    v: Tensor,
    grids: Vec<(usize, usize)>,
    keys: Option<Vec<Vec<u32>>>,
}

impl Met {
    /// A tensor's part of an image.
    fn of(t: &Tensor, image: usize) -> Result<Tensor> {
        Ok(t.get(if t.dim(0)? == 1 { 0 } else { image })?)
    }

    /// For each image the places of the references that these, the context's, match.
    fn matches(&self, references: &Self) -> Result<Vec<Vec<Option<u32>>>> {
        let images = self.k.dim(0)?.max(references.k.dim(0)?);
        let grid = self.grids.first().copied().unwrap_or_default();
        (0..images)
            .map(|image| {
                let keys = references.keys.as_deref();
                let counts =
                    keys.and_then(|keys| keys.get(if keys.len() == 1 { 0 } else { image }));
                let (own, theirs) = (Self::of(&self.k, image)?, Self::of(&references.k, image)?);
                matches(&own, grid, &theirs, counts.map(Vec::as_slice))
            })
            .collect()
    }

    /// The values `[B, N, C]` of these places, the context's, where the mask `[B or 1, N]` leaves them, and of the references' that they
    /// match elsewhere.
    fn with_values_of(&self, references: &Self, mask: &Tensor) -> Result<Tensor> {
        let matches = self.matches(references)?;
        // One context serves all masks.
        let images = matches.len().max(mask.dim(0)?);
        let values = (0..images).map(|image| {
            let matches = &matches[if matches.len() == 1 { 0 } else { image }];
            let (own, theirs) = (Self::of(&self.v, image)?, Self::of(&references.v, image)?);
            warped(&own, &theirs, matches, &Self::of(mask, image)?)
        });
        Ok(Tensor::stack(&values.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn attended(&self) -> Attended<'_> {
        Attended {
            k: &self.k,
            v: &self.v,
            keys: self.keys.as_deref(),
        }
    }
}

/// What the queries of a half are at a site that is acted on, and what they meet.
#[derive(Debug)]
struct Meeting {
    /// `[B, N, C]`; `None`: the target's own.
    queries: Option<Tensor>,
    /// The references', where it is swapped.
    inside: Option<Met>,
    /// The context's; `None` when the mask leaves nothing to it and no values are matched.
    outside: Option<Met>,
    /// Whether no key was inside the reference's mask, so that all are used.
    unmasked: bool,
}

impl<'a> Swap<'a> {
    /// A control that acts at these sites.
    #[must_use]
    pub fn new(sites: &'a BTreeSet<usize>, action: Action<'a>) -> Self {
        Self {
            sites,
            action,
            maps: None,
            fired: 0,
            unmasked: 0,
        }
    }

    /// What a half meets at a site that is acted on; `None` when nothing is done there.
    fn meeting(&self, site: usize, half: Half) -> Result<Option<Meeting>> {
        let missing =
            |name: &str| Error::request(format!("the {name} branch gave nothing at site {site}"));
        let keys_values =
            |store: &CapturedParts, name: &str| match store.get(&(half, Part::KeysValues(site))) {
                Some(Captured::KeysValues { k, v, grid }) => Ok((k.clone(), v.clone(), *grid)),
                _ => Err(missing(name)),
            };
        let queries = |store: &CapturedParts| match store.get(&(half, Part::Queries(site))) {
            Some(Captured::Queries(q)) => Ok(q.clone()),
            _ => Err(missing("context")),
        };
        let of_context = |store: &CapturedParts| {
            let (k, v, grid) = keys_values(store, "context")?;
            Ok::<_, Error>(Met {
                k,
                v,
                grids: vec![grid],
                keys: None,
            })
        };
        Ok(match &self.action {
            Action::Let => None,
            Action::Lock { context } => Some(Meeting {
                queries: Some(queries(context)?),
                inside: None,
                outside: Some(of_context(context)?),
                unmasked: false,
            }),
            Action::Swap {
                context,
                references,
                context_queries,
                reference_masks,
                ..
            } => {
                let queries = match context {
                    Some(context) if *context_queries => Some(queries(context)?),
                    _ => None,
                };
                let given: Vec<_> = references
                    .iter()
                    .map(|reference| keys_values(reference, "reference"))
                    .collect::<Result<_>>()?;
                let (k, v, grids) = joined(given)?;
                let (keys, unmasked) = keys_inside(reference_masks, &grids, k.dim(0)?);
                Some(Meeting {
                    queries,
                    inside: Some(Met { k, v, grids, keys }),
                    outside: context.map(of_context).transpose()?,
                    unmasked,
                })
            }
        })
    }

    /// What the prompt half's queries meet at a site, to be looked at; `own` are the target's queries, keys and values
    /// there, if the call has come so far. `None` when those are needed and not there.
    ///
    /// # Errors
    /// When a branch lacks what the site needs.
    pub fn gaze(
        &self,
        site: usize,
        heads: Heads,
        own: Option<(&Qkv, Site)>,
    ) -> Result<Option<AttentionRow>> {
        let rows = |of: &Qkv, at: &Site| match at.rows.half(Half::Conditional) {
            Some(rows) => of.rows(&rows),
            None => Err(Error::request("the call has no prompt half")),
        };
        let meeting = match self.sites.contains(&site) {
            true => self.meeting(site, Half::Conditional)?,
            false => None,
        };
        let Some(meeting) = meeting else {
            let Some((qkv, at)) = own else {
                return Ok(None);
            };
            let own = rows(qkv, &at)?;
            let seen = Seen::of(&own.k, &[(Whose::Own, at.grid)], None)?;
            return AttentionRow::of(&own.q, heads, at.grid, QueriesOf::Own, vec![seen], &[])
                .map(Some);
        };
        let (queries, whose) = match (&meeting.queries, own) {
            (Some(queries), _) => (queries.clone(), QueriesOf::Context),
            (None, Some((qkv, at))) => (rows(qkv, &at)?.q, QueriesOf::Own),
            (None, None) => return Ok(None),
        };
        let mut seen = Vec::new();
        let mut grid = own.map(|(_, at)| at.grid);
        let of_references = |met: &Met| -> Vec<(Whose, (usize, usize))> {
            (met.grids.iter().enumerate())
                .map(|(index, grid)| (Whose::Reference(index), *grid))
                .collect()
        };
        let by_match = match (&self.action, &meeting.inside, &meeting.outside) {
            (
                Action::Swap {
                    values: Values::Matched,
                    ..
                },
                Some(inside),
                Some(outside),
            ) => Some(Warped {
                parts: of_references(inside),
                matches: outside.matches(inside)?,
            }),
            _ => None,
        };
        if let Some(met) = meeting.inside.as_ref().filter(|_| by_match.is_none()) {
            let whose = of_references(met);
            seen.push(Seen::of(&met.k, &whose, met.keys.as_deref())?);
        }
        if let Some(met) = &meeting.outside {
            // Context and target are of one size.
            grid = met.grids.first().copied().or(grid);
            let whose: Vec<_> = met
                .grids
                .iter()
                .map(|grid| (Whose::Context, *grid))
                .collect();
            seen.push(Seen::of(&met.k, &whose, None)?);
        }
        let Some(grid) = grid else {
            return Ok(None);
        };
        let blend: Vec<Plane> = match &self.action {
            Action::Swap { blend, .. } => blend.iter().map(|plane| plane.nearest(grid)).collect(),
            _ => Vec::new(),
        };
        let row = AttentionRow::of(&queries, heads, grid, whose, seen, &blend)?;
        Ok(Some(match by_match {
            Some(warped) => row.with_warped(warped),
            None => row,
        }))
    }
}

impl AttentionControl for Swap<'_> {
    fn attend(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<Tensor> {
        if let Some(maps) = &mut self.maps {
            maps.record(site, qkv, kernel)?;
        }
        if site.kind != AttentionKind::SelfAttention
            || !self.sites.contains(&site.index)
            || matches!(self.action, Action::Let)
        {
            return qkv.attend(kernel);
        }
        self.fired += 1;
        let (mask, values) = match &self.action {
            Action::Swap { blend, values, .. } => (Some(mask_rows(blend, site, qkv)?), *values),
            _ => (None, Values::Attended),
        };
        let (heads, scale) = (qkv.heads, qkv.scale);
        let mut halves = Vec::new();
        for (half, rows) in site.rows.halves() {
            let Some(meeting) = self.meeting(site.index, half)? else {
                return qkv.attend(kernel);
            };
            self.unmasked += usize::from(meeting.unmasked && half == Half::Conditional);
            let queries = match meeting.queries {
                Some(queries) => queries,
                None => qkv.rows(&rows)?.q,
            };
            halves.push(match (&meeting.inside, &meeting.outside, &mask) {
                (Some(inside), Some(outside), Some(mask)) if values == Values::Matched => {
                    let v = outside.with_values_of(inside, mask)?;
                    kernel.attention(&queries, &outside.k, &v, heads, scale, None)?
                }
                (Some(inside), Some(outside), Some(mask)) => {
                    let (inside, outside) = (inside.attended(), outside.attended());
                    kernel.attention_blend(&queries, inside, outside, mask, heads, scale)?
                }
                (Some(one), _, _) | (None, Some(one), _) => {
                    let to = one.attended();
                    kernel.attention(&queries, to.k, to.v, heads, scale, to.keys)?
                }
                (None, None, _) => qkv.rows(&rows)?.attend(kernel)?,
            });
        }
        Ok(Tensor::cat(&halves, 0)?)
    }
}

/// Keys, values `[B, N, C]` and the grid of what a reference gave at a site.
type KeysValues<G> = (Tensor, Tensor, G);

/// Keys and values of all references one after another, `[B or 1, N1 + N2 + .., C]`, and the grid of each; one image
/// serves the whole batch of another reference.
fn joined(given: Vec<KeysValues<(usize, usize)>>) -> Result<KeysValues<Vec<(usize, usize)>>> {
    let grids = given.iter().map(|(_, _, grid)| *grid).collect();
    if let [(k, v, _)] = given.as_slice() {
        return Ok((k.clone(), v.clone(), grids));
    }
    let mut images = 1;
    for (k, _, _) in &given {
        images = images.max(k.dim(0)?);
    }
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for (k, v, _) in &given {
        let times = if k.dim(0)? == images { 1 } else { images };
        keys.push(k.repeat((times, 1, 1))?);
        values.push(v.repeat((times, 1, 1))?);
    }
    Ok((Tensor::cat(&keys, 1)?, Tensor::cat(&values, 1)?, grids))
}

/// The indices of the keys inside each image's masks on a site's grids, those of all references one after another;
/// `None` when all are inside. And whether an image had none at all, so that all of its keys are used.
fn keys_inside(
    masks: &[Vec<Plane>],
    grids: &[(usize, usize)],
    images: usize,
) -> (Option<Vec<Vec<u32>>>, bool) {
    let mut unmasked = false;
    let mut partial = false;
    let all: usize = grids.iter().map(|grid| grid.0 * grid.1).sum();
    let keys = (0..images)
        .map(|image| {
            let mut inside: Vec<u32> = Vec::new();
            let mut first = 0;
            for (masks, grid) in masks.iter().zip(grids) {
                let mask = masks.get(if masks.len() == 1 { 0 } else { image });
                if let Some(mask) = mask.map(|mask| mask.nearest(*grid)) {
                    let cells = mask.data.iter().zip(first..);
                    inside.extend(cells.filter(|(m, _)| **m >= 0.5).map(|(_, j)| j));
                }
                first += (grid.0 * grid.1) as u32;
            }
            if inside.is_empty() {
                unmasked = true;
                return (0..all as u32).collect();
            }
            partial |= inside.len() < all;
            inside
        })
        .collect();
    (partial.then_some(keys), unmasked)
}

/// The blend mask as `[B or 1, N]` on a site's grid.
fn mask_rows(blend: &[Plane], site: Site, qkv: &Qkv) -> Result<Tensor> {
    let (h, w) = site.grid;
    let data: Vec<f32> = blend
        .iter()
        .flat_map(|plane| plane.nearest(site.grid).data)
        .collect();
    Ok(Tensor::from_vec(
        data,
        (blend.len(), h * w),
        qkv.q.device(),
    )?)
}
