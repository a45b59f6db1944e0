//! *What* attention attends to, apart from how it is computed (`kernels`). The U-Net numbers its sites and asks a
//! control at each; a control is free to look, to replace keys and values, or to let things be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::Tensor;

use super::masks::Plane;
use super::{Error, Result};
use crate::kernels::Kernel;

/// Which of a transformer layer's two attentions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// Pixels attend to pixels (`attn1`).
    SelfAttention,
    /// Pixels attend to the prompt's tokens (`attn2`).
    CrossAttention,
}

/// Which of the method's branches a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// Plain sampling or inversion.
    Plain,
    /// The inverted photo of the subject.
    Reference,
    /// The trajectory of stage 1.
    Context,
    /// What stage 2 draws.
    Target,
}

/// What the rows of a call are: the negative half of every image, if there is one, then the prompt half of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The branch.
    pub branch: Branch,
    /// Images.
    pub images: usize,
    /// Whether the negative half is there (guidance is not 1).
    pub guided: bool,
}

impl Rows {
    /// The rows of each half that is there, the prompt's last.
    #[must_use]
    pub fn halves(&self) -> Vec<Range<usize>> {
        let negative = self.guided.then_some(0..self.images);
        negative.into_iter().chain([self.prompt()]).collect()
    }

    /// The rows of the prompt half.
    #[must_use]
    pub fn prompt(&self) -> Range<usize> {
        let first = if self.guided { self.images } else { 0 };
        first..first + self.images
    }

    /// All rows.
    #[must_use]
    pub fn count(&self) -> usize {
        self.prompt().end
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

    fn record(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<()> {
        if site.kind != AttentionKind::CrossAttention || site.grid != self.grid {
            return Ok(());
        }
        let prompt = qkv.rows(&site.rows.prompt())?;
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

/// What a source branch gave at one site.
#[derive(Clone, Debug)]
pub struct Captured {
    qkv: Qkv,
    grid: (usize, usize),
    rows: Rows,
}

/// What a source branch gave at each of its sites.
pub type Store = BTreeMap<usize, Captured>;

/// Looks at a source branch: keeps queries, keys and values of the chosen sites, and the cross-attention maps.
#[derive(Debug)]
pub struct Capture<'a> {
    sites: &'a BTreeSet<usize>,
    /// What was kept, by site.
    pub captured: Store,
    /// The maps, if they are wanted.
    pub maps: Option<MapRecorder>,
}

impl<'a> Capture<'a> {
    /// Keeps these sites, and the maps on this grid.
    #[must_use]
    pub fn new(sites: &'a BTreeSet<usize>, map_grid: Option<(usize, usize)>) -> Self {
        Self {
            sites,
            captured: BTreeMap::new(),
            maps: map_grid.map(MapRecorder::new),
        }
    }
}

impl AttentionControl for Capture<'_> {
    fn attend(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<Tensor> {
        if let Some(maps) = &mut self.maps {
            maps.record(site, qkv, kernel)?;
        }
        if site.kind == AttentionKind::SelfAttention && self.sites.contains(&site.index) {
            let captured = Captured {
                qkv: qkv.clone(),
                grid: site.grid,
                rows: site.rows,
            };
            self.captured.insert(site.index, captured);
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
        context: &'a Store,
    },
    /// Inside the mask the reference's keys and values, outside the context's.
    Swap {
        /// What the context gave; `None` when the mask leaves nothing to it and the queries are the target's own.
        context: Option<&'a Store>,
        /// What the reference gave.
        reference: &'a Store,
        /// Whether the queries are the context's (k < structure_until) or the target's own.
        context_queries: bool,
        /// M_ref of each reference image; a key counts from 0.5.
        reference_mask: &'a [Plane],
        /// M_k, for each image or one for all.
        blend: &'a [Plane],
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

impl AttentionControl for Swap<'_> {
    fn attend(&mut self, site: Site, qkv: &Qkv, kernel: &dyn Kernel) -> Result<Tensor> {
        if let Some(maps) = &mut self.maps {
            maps.record(site, qkv, kernel)?;
        }
        if site.kind != AttentionKind::SelfAttention || !self.sites.contains(&site.index) {
            return qkv.attend(kernel);
        }
        let at = |store: &Store, name: &str| {
            store.get(&site.index).cloned().ok_or_else(|| {
                Error::request(format!(
                    "the {name} branch gave nothing at site {}",
                    site.index
                ))
            })
        };
        match &self.action {
            Action::Let => qkv.attend(kernel),
            Action::Lock { context } => {
                self.fired += 1;
                at(context, "context")?.qkv.attend(kernel)
            }
            Action::Swap {
                context,
                reference,
                context_queries,
                reference_mask,
                blend,
            } => {
                self.fired += 1;
                let context = context.map(|store| at(store, "context")).transpose()?;
                let reference = at(reference, "reference")?;
                let (keys, unmasked) = keys_inside(reference_mask, reference.grid);
                self.unmasked += usize::from(unmasked);
                let keys = keys.as_deref();
                let mask = mask_rows(blend, site, qkv)?;
                let mut halves = Vec::new();
                let sources = site.rows.halves().into_iter().zip(reference.rows.halves());
                for (rows, reference_rows) in sources {
                    let own = qkv.rows(&rows)?;
                    let reference = reference.qkv.rows(&reference_rows)?;
                    let context = context.as_ref().map(|c| c.qkv.rows(&rows)).transpose()?;
                    let query = match &context {
                        Some(context) if *context_queries => &context.q,
                        _ => &own.q,
                    };
                    let attend = |source: &Qkv, keys| {
                        kernel.attention(query, &source.k, &source.v, own.heads, own.scale, keys)
                    };
                    let inside = attend(&reference, keys)?;
                    halves.push(match &context {
                        Some(context) => {
                            let outside = attend(context, None)?;
                            (mask.broadcast_mul(&inside)?
                                + (1.0 - &mask)?.broadcast_mul(&outside)?)?
                        }
                        None => inside,
                    });
                }
                Ok(Tensor::cat(&halves, 0)?)
            }
        }
    }
}

/// The indices of the keys inside each image's mask on a site's grid, `None` when all are inside; and whether an
/// image had none, so that all of its keys are used.
fn keys_inside(masks: &[Plane], grid: (usize, usize)) -> (Option<Vec<Vec<u32>>>, bool) {
    let mut unmasked = false;
    let mut partial = false;
    let all = (grid.0 * grid.1) as u32;
    let keys = masks
        .iter()
        .map(|mask| {
            let mask = mask.nearest(grid);
            let inside: Vec<u32> = (0..all).filter(|&j| mask.data[j as usize] >= 0.5).collect();
            if inside.is_empty() {
                unmasked = true;
                return (0..all).collect();
            }
            partial |= inside.len() < all as usize;
            inside
        })
        .collect();
    (partial.then_some(keys), unmasked)
}

/// The blend mask as `[B or 1, N, 1]` on a site's grid.
fn mask_rows(blend: &[Plane], site: Site, qkv: &Qkv) -> Result<Tensor> {
    let (h, w) = site.grid;
    let data: Vec<f32> = blend
        .iter()
        .flat_map(|plane| plane.nearest(site.grid).data)
        .collect();
    Ok(Tensor::from_vec(
        data,
        (blend.len(), h * w, 1),
        qkv.q.device(),
    )?)
}
