//! Looking at a single call: its cross-attention maps, or what a query of a self-attention site meets.

use std::collections::BTreeSet;

use candle_core::Tensor;

use crate::sampling::attention_row::{AttentionRow, Heads};
use crate::sampling::control::{
    Action, AttentionControl, AttentionKind, Branch, MapRecorder, Rows, Swap,
};
use crate::sampling::guidance::{ConditionedModel, Guided};
use crate::sampling::monitor::Monitor;
use crate::{Error, Result};

/// What is looked for in a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sought {
    /// The raw cross-attention maps of the layers on this grid.
    Map((usize, usize)),
    /// The queries of a self-attention site, and what they meet there.
    Site {
        /// Its number.
        index: usize,
        /// How it splits its features.
        heads: Heads,
    },
}

/// What was looked for.
#[derive(Clone, Debug)]
pub enum Found {
    /// `[B, h w, tokens]`: mean over heads and layers.
    Map(Tensor),
    /// What every query of the site meets.
    Site(AttentionRow),
}

/// Looks on while a swap acts, and ends the call at the site that it is for.
struct Looking<'a, 'b> {
    swap: Swap<'a>,
    sought: Sought,
    found: Option<AttentionRow>,
    monitor: &'b dyn Monitor,
}

impl AttentionControl for Looking<'_, '_> {
    fn attend(
        &mut self,
        site: crate::sampling::control::Site,
        qkv: &crate::sampling::control::Qkv,
        kernel: &dyn retouch_kernels::Kernel,
    ) -> Result<Tensor> {
        self.monitor.goes_on()?;
        if let Sought::Site { index, heads } = self.sought
            && index == site.index
            && site.kind == AttentionKind::SelfAttention
        {
            self.found = self.swap.gaze(index, heads, Some((qkv, site)))?;
            // The rest of the network would be for nothing.
            return Err(Error::Cancelled);
        }
        self.swap.attend(site, qkv, kernel)
    }
}

impl Guided<'_> {
    /// Calls the prompt half once and gives what is looked for in it.
    pub(super) fn look(
        &self,
        z: &Tensor,
        timestep: f32,
        k: usize,
        mut swap: Swap<'_>,
        sought: Sought,
        monitor: &dyn Monitor,
    ) -> Result<Found> {
        if let Sought::Map(grid) = sought {
            swap.maps = Some(MapRecorder::new(grid));
        }
        let rows = Rows::new(self.branch, z.dim(0)?, false);
        let mut looking = Looking {
            swap,
            sought,
            found: None,
            monitor,
        };
        let called = self.rows(z, timestep, k, rows, &mut looking, monitor);
        if let Some(gaze) = looking.found {
            // A call that was ended is one all the same.
            monitor.unet_calls(rows.count());
            return Ok(Found::Site(gaze));
        }
        called?;
        match looking.swap.maps {
            Some(maps) => Ok(Found::Map(maps.finish()?)),
            None => Err(Error::request(format!(
                "the U-Net has no such self-attention site: {sought:?}"
            ))),
        }
    }
}

/// Looks at a plain sampler's call at step k by calling its prompt half once, with the guidance that it had (which decides
/// how many tokens the prompt is given).
///
/// # Errors
/// When the call fails, or [`Monitor::goes_on`] ends it.
pub fn look(
    drawer: ConditionedModel<'_>,
    guidance: f64,
    z: &Tensor,
    timestep: f32,
    k: usize,
    sought: Sought,
    monitor: &dyn Monitor,
) -> Result<Found> {
    let guided = Guided {
        model: drawer.model,
        conditions: drawer.conditions,
        guidance,
        rescale: 0.0,
        branch: Branch::Plain,
        beside: None,
    };
    let sites = BTreeSet::new();
    let swap = Swap::new(&sites, Action::Let);
    guided.look(z, timestep, k, swap, sought, monitor)
}

/// The raw cross-attention maps `[B, h w, tokens]` (mean over heads and layers) of a latent at step k, whose timestep is
/// given.
///
/// # Errors
/// When a call fails or no layer is on the grid.
pub fn cross_attention(
    drawer: ConditionedModel<'_>,
    z: &Tensor,
    timestep: f32,
    k: usize,
    grid: (usize, usize),
    monitor: &dyn Monitor,
) -> Result<Tensor> {
    let mut recorder = Maps(MapRecorder::new(grid));
    let guided = Guided {
        model: drawer.model,
        conditions: drawer.conditions,
        guidance: 1.0,
        rescale: 0.0,
        branch: Branch::Plain,
        beside: None,
    };
    guided.noise(z, timestep, k, &mut recorder, monitor)?;
    recorder.0.finish()
}

/// Records maps and leaves attention as it is.
struct Maps(MapRecorder);

impl AttentionControl for Maps {
    fn attend(
        &mut self,
        site: crate::sampling::control::Site,
        qkv: &crate::sampling::control::Qkv,
        kernel: &dyn retouch_kernels::Kernel,
    ) -> Result<Tensor> {
        self.0.record(site, qkv, kernel)?;
        qkv.attend(kernel)
    }
}
