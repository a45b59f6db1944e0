//! The grids and sites that a swap acts on when nothing else is said.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::networks::unet::{SiteInfo, grid_at};
use crate::{Error, Result};

/// A mask grid in the language: `auto` or (rows, columns).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskGrid {
    /// The coarsest attention grid whose shorter side is at least 16, else the finest.
    #[default]
    Auto,
    /// An attention grid by its size.
    Size(usize, usize),
}

/// The level whose grid is the mask grid for latents of this size.
///
/// # Errors
/// When no attention layer is on the grid that is asked for.
pub fn mask_level(sites: &[SiteInfo], latent: (usize, usize), grid: MaskGrid) -> Result<usize> {
    let levels: BTreeSet<usize> = sites.iter().map(|site| site.level).collect();
    let finest = levels.first().copied().unwrap_or(0);
    match grid {
        MaskGrid::Auto => Ok(levels
            .iter()
            .rev()
            .copied()
            .find(|&level| {
                let (h, w) = grid_at(latent, level);
                h.min(w) >= 16
            })
            .unwrap_or(finest)),
        MaskGrid::Size(h, w) => levels
            .iter()
            .copied()
            .find(|&level| grid_at(latent, level) == (h, w))
            .ok_or_else(|| {
                let grids: Vec<String> = levels
                    .iter()
                    .map(|&level| {
                        let (h, w) = grid_at(latent, level);
                        format!("{h}x{w}")
                    })
                    .collect();
                Error::request(format!(
                    "no attention layer is on a grid of {h}x{w}; for this size there are {}",
                    grids.join(", ")
                ))
            }),
    }
}

/// The up-block sites on the two finest grids that have attention (SD 1.x and 2.x: 10..16).
#[must_use]
pub fn auto_sites(sites: &[SiteInfo]) -> BTreeSet<usize> {
    let levels: BTreeSet<usize> = sites.iter().map(|site| site.level).collect();
    let finest: BTreeSet<usize> = levels.into_iter().take(2).collect();
    sites
        .iter()
        .filter(|site| site.part == crate::networks::unet::Part::Up && finest.contains(&site.level))
        .map(|site| site.index)
        .collect()
}
