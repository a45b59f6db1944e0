//! Appearance matching (DreamMatcher, Nam et al. 2024): the values of the references are moved to where the
//! context has what is most like them, and read through the context's own attention.
//!
//! There features of the U-Net, reduced by PCA, are compared; here the keys of the site, less their mean. A match counts where it is
//! cycle-consistent: the place that is most like what a place of the context is most like is no more than an eighth of the
//! grid away from it.

use candle_core::{D, Tensor};

use crate::Result;

/// Which values the target reads inside the mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// The references', through the references' keys (MasaCtrl, Cao et al. 2023).
    #[default]
    Attended,
    /// The references', each at the place of the context that it matches, through the context's keys.
    Matched,
}

/// Rows of cosines that are held at a time.
const BLOCK: usize = 1024;
/// Which share of the grid's sides a match may be away from where it began, there and back.
const NEAR: usize = 8;

/// Keys `[N, C]` less `mean`, each divided by its length.
fn directions(keys: &Tensor, mean: &Tensor) -> Result<Tensor> {
    let keys = keys.broadcast_sub(mean)?;
    let length = keys.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(keys.broadcast_div(&length.maximum(f64::from(f32::MIN_POSITIVE))?)?)
}

/// For each place of the context, keys `[N, C]` on a grid (rows, columns), the place of the references, keys `[M, C]`, that it matches,
/// if it matches any of those that count (all when `None`).
///
/// # Errors
/// When the shapes do not fit.
pub fn matches(
    context: &Tensor,
    grid: (usize, usize),
    references: &Tensor,
    counts: Option<&[u32]>,
) -> Result<Vec<Option<u32>>> {
    let own = directions(context, &context.mean_keepdim(0)?)?;
    let mean = references.mean_keepdim(0)?;
    let counted = match counts {
        Some(counts) => references.index_select(&Tensor::new(counts, references.device())?, 0)?,
        None => references.clone(),
    };
    let theirs = directions(&counted, &mean)?.t()?.contiguous()?;
    let places = own.dim(0)?;
    let mut forth: Vec<u32> = Vec::with_capacity(places);
    // For each key of the references the place that is most like it so far, and how much.
    let mut back: Vec<(f32, usize)> = vec![(f32::NEG_INFINITY, 0); theirs.dim(1)?];
    for first in (0..places).step_by(BLOCK) {
        let block = own.narrow(0, first, BLOCK.min(places - first))?;
        let cosines = block.matmul(&theirs)?;
        forth.extend(cosines.argmax(D::Minus1)?.to_vec1::<u32>()?);
        let most: Vec<f32> = cosines.max(0)?.to_vec1()?;
        let at: Vec<u32> = cosines.argmax(0)?.to_vec1()?;
        for ((best, most), at) in back.iter_mut().zip(most).zip(at) {
            if most > best.0 {
                *best = (most, first + at as usize);
            }
        }
    }
    let (height, width) = grid;
    let near = |a: usize, b: usize| {
        a / width.max(1) <= b / width.max(1) + height.div_ceil(NEAR)
            && b / width.max(1) <= a / width.max(1) + height.div_ceil(NEAR)
            && (a % width.max(1)).abs_diff(b % width.max(1)) <= width.div_ceil(NEAR)
    };
    let found = forth.into_iter().enumerate().map(|(place, found)| {
        let (_, again) = back.get(found as usize)?;
        near(place, *again)
            .then(|| counts.map_or(Some(found), |all| all.get(found as usize).copied()))?
    });
    Ok(found.collect())
}

/// The values `[N, C]` that are read through the context's keys: inside the mask `[N]` the references' (`[M, C]`), where a place has a
/// match, else the context's own (`[N, C]`).
///
/// # Errors
/// When the shapes do not fit.
pub fn warped(
    context: &Tensor,
    references: &Tensor,
    matches: &[Option<u32>],
    mask: &Tensor,
) -> Result<Tensor> {
    let has: Vec<f32> = matches
        .iter()
        .map(|found| f32::from(u8::from(found.is_some())))
        .collect();
    let index: Vec<u32> = matches.iter().map(|found| found.unwrap_or(0)).collect();
    let mask = (mask * Tensor::new(has, mask.device())?)?.unsqueeze(1)?;
    let theirs = references.index_select(&Tensor::new(index, references.device())?, 0)?;
    let own = context.broadcast_mul(&(1.0 - &mask)?)?;
    Ok((theirs.broadcast_mul(&mask)? + own)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, Device};

    use super::*;

    /// A site of 4 x 6 places whose reference is the context moved by one, in another order (tests/oracle/make_matching.py).
    #[test]
    fn the_values_of_a_site_are_those_of_the_oracle() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/oracle/data/matching.safetensors");
        let all = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let t = |name: &str| all[&format!("site.{name}")].clone();
        let counts: Vec<u32> = t("counts").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let found = matches(&t("k_ctx"), (4, 6), &t("k_ref"), Some(&counts)).unwrap();
        let has = found.iter().filter(|found| found.is_some()).count();
        assert!((8..24).contains(&has), "{has} of 24 places have a match");
        assert!(found.iter().flatten().all(|place| counts.contains(place)));
        let values = warped(&t("v_ctx"), &t("v_ref"), &found, &t("mask")).unwrap();
        let off = (values - t("values"))
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-6, "{off}");
    }

    #[test]
    fn a_place_matches_its_like_wherever_that_stands_and_far_ones_do_not_count() {
        let keys = |order: &[usize]| {
            let rows = order
                .iter()
                .flat_map(|at| (0..8).map(move |c| ((at * 7 + c * 3) % 11) as f32));
            Tensor::from_vec(rows.collect::<Vec<f32>>(), (order.len(), 8), &Device::Cpu).unwrap()
        };
        let context = keys(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let order = [4, 8, 1, 0, 7, 2, 6, 3, 5];
        let found = matches(&context, (3, 3), &keys(&order), None).unwrap();
        for (place, found) in found.iter().enumerate() {
            assert_eq!(order[found.unwrap() as usize], place);
        }
        // One that does not count takes nothing from the others.
        let without: Vec<u32> = (0..9).filter(|at| order[*at as usize] != 0).collect();
        let found = matches(&context, (1, 9), &keys(&order), Some(&without)).unwrap();
        assert!(found[1..].iter().all(Option::is_some), "{found:?}");
        // Two places that are alike, at both ends: the way back from what the last one finds ends at the first, which is too far.
        let twins = keys(&[0, 1, 2, 3, 4, 5, 6, 7, 0]);
        let found = matches(&twins, (1, 9), &twins, None).unwrap();
        assert_eq!((found[0], found[8]), (Some(0), None));
        let values = warped(
            &context,
            &(keys(&order) * 2.0).unwrap(),
            &[None; 9],
            &Tensor::ones(9, DType::F32, &Device::Cpu).unwrap(),
        );
        let off = (values.unwrap() - context)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        assert_eq!(
            off.to_scalar::<f32>().unwrap(),
            0.0,
            "what has no match keeps its own"
        );
    }

    #[test]
    fn more_places_than_are_compared_at_a_time_are_compared_all() {
        let side = 40; // 1600 places: two blocks
        let number = |i: usize| ((i as f64) * 12.9898).sin() as f32;
        let numbers: Vec<f32> = (0..side * side * 16).map(number).collect();
        let keys = Tensor::from_vec(numbers, (side * side, 16), &Device::Cpu).unwrap();
        let found = matches(&keys, (side, side), &keys, None).unwrap();
        let own = found
            .iter()
            .enumerate()
            .filter(|(place, found)| **found == Some(*place as u32));
        assert_eq!(own.count(), side * side);
    }
}
