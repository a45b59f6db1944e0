//! `diversity`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::measure::similarity::cosine;
use crate::measure::{mean, number};
use crate::payload::Table;
use crate::payload::features::{Features, FeaturesFacts};

/// The most rows: the Vendi score takes time as the cube of their number.
const MAX_ROWS: usize = 512;

/// Measures how much the pictures of a batch differ from each other.
///
/// `diversity` is the mean of 1 - cosine over all pairs of rows. `vendi` is the Vendi score (Friedman and Dieng 2023): exp of the
/// entropy of the eigenvalues of K / n, K the matrix of cosines; it is 1 when all are alike and n when no two have anything in
/// common, "how many pictures there really are". Both are of pictures of one prompt: a batch of seeds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Diversity {}

ports! {
    /// What `diversity` takes.
    pub struct Inputs {
        /// The features of the batch.
        pub features: Arc<Features>,
    }
}

ports! {
    /// What `diversity` gives.
    pub struct Outputs {
        /// One row for the batch: `diversity` and `vendi`.
        pub table: Arc<Table>,
    }
}

impl Node for Diversity {
    const OP: &'static str = "diversity";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let rows = inputs
            .facts::<FeaturesFacts>("features")
            .map(|facts| facts.rows);
        match rows.and_then(refused) {
            Some(message) => Err(vec![
                Fault::mismatch("features", message)
                    .help("draw a batch of several seeds: `batch: 8`"),
            ]),
            None => Ok(Types::unknown()),
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        context.check_cancelled()?;
        let rows = inputs.features.directions()?;
        if let Some(message) = refused(rows.len()) {
            return Err(NodeError::failed(message));
        }
        let distances: Vec<f64> = (0..rows.len())
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| 1.0 - cosine(&rows[i], &rows[j]))
            .collect();
        let mut table = Table::new(["diversity", "vendi"]);
        table.push(vec![
            mean(&distances).map_or(Json::Null, number),
            number(vendi(&rows)),
        ])?;
        let space = inputs.features.space.describe();
        table.define(
            "diversity",
            &format!(
                "mean of 1 - cosine over the pairs of a batch's pictures, features of {space}"
            ),
        );
        table.define(
            "vendi",
            &format!(
                "Vendi score of a batch: exp of the entropy of the eigenvalues of K / n, K the cosines of features of {space}"
            ),
        );
        Ok(Outputs {
            table: Arc::new(table),
        })
    }
}

fn refused(rows: usize) -> Option<String> {
    match rows {
        0 | 1 => Some(format!("{rows} picture has no diversity")),
        rows if rows > MAX_ROWS => {
            Some(format!("{rows} pictures are too many; at most {MAX_ROWS}"))
        }
        _ => None,
    }
}

/// The Vendi score of rows of length 1.
fn vendi(rows: &[Vec<f64>]) -> f64 {
    let n = rows.len();
    let mut kernel: Vec<f64> = (0..n * n)
        .map(|at| cosine(&rows[at / n], &rows[at % n]) / n as f64)
        .collect();
    let entropy: f64 = eigenvalues(&mut kernel, n)
        .into_iter()
        // What rounding leaves of zeros may be just below.
        .filter(|value| *value > 1e-12)
        .map(|value| -value * libm::log(value))
        .sum();
    libm::exp(entropy)
}

/// The eigenvalues of a symmetric matrix by Jacobi's rotations (Golub and Van Loan, 8.5), which are exact enough and short; a batch has
/// tens of rows.
fn eigenvalues(matrix: &mut [f64], n: usize) -> Vec<f64> {
    for _ in 0..64 {
        let off: f64 = (0..n * n)
            .filter(|at| at / n != at % n)
            .map(|at| matrix[at] * matrix[at])
            .sum();
        if off < 1e-24 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(matrix, n, p, q);
            }
        }
    }
    (0..n).map(|i| matrix[i * n + i]).collect()
}

/// Makes the element (p, q) zero.
fn rotate(a: &mut [f64], n: usize, p: usize, q: usize) {
    let pq = a[p * n + q];
    if pq.abs() < 1e-300 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * pq);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (kp, kq) = (a[k * n + p], a[k * n + q]);
        a[k * n + p] = c * kp - s * kq;
        a[k * n + q] = s * kp + c * kq;
    }
    for k in 0..n {
        let (pk, qk) = (a[p * n + k], a[q * n + k]);
        a[p * n + k] = c * pk - s * qk;
        a[q * n + k] = s * pk + c * qk;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vendi_score_counts_pictures_that_differ() {
        let axis = |at: usize| (0..4).map(|i| f64::from(u8::from(i == at))).collect();
        let all: Vec<Vec<f64>> = (0..4).map(axis).collect();
        assert!((vendi(&all) - 4.0).abs() < 1e-9);
        let one = vec![all[1].clone(); 4];
        assert!((vendi(&one) - 1.0).abs() < 1e-9);
        let two = [&all[0], &all[0], &all[3], &all[3]].map(Clone::clone);
        assert!((vendi(&two) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn eigenvalues_are_numpys() {
        // numpy.linalg.eigvalsh([[4, 1, -2], [1, 2, 0], [-2, 0, 3]])
        let mut matrix = vec![4.0, 1.0, -2.0, 1.0, 2.0, 0.0, -2.0, 0.0, 3.0];
        let mut found = eigenvalues(&mut matrix, 3);
        found.sort_by(f64::total_cmp);
        for (own, numpy) in found
            .iter()
            .zip([1.0, 2.267_949_192_431, 5.732_050_807_569])
        {
            assert!((own - numpy).abs() < 1e-9, "{found:?}");
        }
    }
}
