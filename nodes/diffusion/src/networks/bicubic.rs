//! Bicubic interpolation (Keys 1981) as torch and Pillow compute it.

/// Keys' kernel at a distance in pixels.
fn kernel(distance: f64, a: f64) -> f64 {
    let x = distance.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// The pixels that a new one is made of, with their weights.
type Taps = Vec<(usize, f64)>;

/// The four nearest pixels of each of `to` new ones, borders repeated.
fn nearest(from: usize, to: usize) -> Vec<Taps> {
    let last = from.saturating_sub(1) as i64;
    (0..to)
        .map(|i| {
            let place = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
            let first = place.floor() as i64;
            (first - 1..=first + 2)
                .map(|at| {
                    let weight = kernel(place - at as f64, -0.75);
                    (at.clamp(0, last) as usize, weight)
                })
                .collect()
        })
        .collect()
}

/// All pixels within two new ones of each of `to` new ones, none outside.
fn wide(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - 2.0 * stretch + 0.5).max(0.0) as usize;
            let end = ((centre + 2.0 * stretch + 0.5) as usize).min(from);
            let weights =
                (first..end).map(|at| (at, kernel((at as f64 + 0.5 - centre) / stretch, -0.5)));
            let sum: f64 = weights.clone().map(|(_, weight)| weight).sum();
            weights.map(|(at, weight)| (at, weight / sum)).collect()
        })
        .collect()
}

fn resampled(pixels: &[f32], width: usize, columns: &[Taps], rows: &[Taps]) -> Vec<f32> {
    let across: Vec<f64> = pixels
        .chunks_exact(width)
        .flat_map(|line| {
            columns.iter().map(|taps| {
                let values = taps
                    .iter()
                    .map(|(at, weight)| f64::from(line[*at]) * weight);
                values.sum::<f64>()
            })
        })
        .collect();
    let new = columns.len();
    let mut made = Vec::with_capacity(new * rows.len());
    for taps in rows {
        for x in 0..new {
            let values = taps
                .iter()
                .map(|(at, weight)| across[at * new + x] * weight);
            made.push(values.sum::<f64>() as f32);
        }
    }
    made
}

/// A plane of `from` (width, height) pixels, row by row, at the size `to`, as torch's `interpolate(mode="bicubic")` makes it: a =
/// -0.75, four pixels each way whatever the sizes. What overshoots is left as it is.
#[must_use]
pub fn plane(pixels: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    resampled(
        pixels,
        from.0,
        &nearest(from.0, to.0),
        &nearest(from.1, to.1),
    )
}

/// The same as Pillow's `BICUBIC` makes it, without rounding to bytes, and torch's `antialias=True`: a = -0.5, as wide as the new
/// pixels where the plane becomes smaller.
#[must_use]
pub fn smooth_plane(pixels: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    resampled(pixels, from.0, &wide(from.0, to.0), &wide(from.1, to.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up_to_one_and_the_size_itself_changes_nothing() {
        for taps in [nearest(7, 19), nearest(19, 7), wide(7, 19), wide(19, 7)] {
            for taps in taps {
                let sum: f64 = taps.iter().map(|(_, weight)| weight).sum();
                assert!((sum - 1.0).abs() < 1e-12, "{taps:?}");
            }
        }
        let pixels = [0.5, 0.25, 0.125, 1.0, 0.0, 0.75];
        for resize in [plane, smooth_plane] {
            let same = resize(&pixels, (3, 2), (3, 2));
            assert_eq!(same, pixels);
        }
    }
}
