//! `similarity`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::measure::{IMAGE, mean, number};
use crate::payload::Table;
use crate::payload::features::{Features, FeaturesFacts};

/// Measures how alike pictures are: the cosine of their features.
///
/// Each row of `features` is compared with every row of `to` and gets the mean, as papers measure identity (CLIP-I, DINO: drawn
/// pictures against the subject's photos). With `pairs: true` row i is compared with row i alone. Without `to` the rows are
/// compared with each other, each with all but itself.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Similarity {
    /// The name of the column.
    #[serde(default = "default_name")]
    pub name: String,
    /// Compares row i with row i, not all with all.
    #[serde(default)]
    pub pairs: bool,
}

fn default_name() -> String {
    "similarity".to_owned()
}

ports! {
    /// What `similarity` takes.
    pub struct Inputs {
        /// The features that get a number each.
        pub features: Arc<Features>,
        /// What they are compared with: each other, if nothing is linked.
        pub to: Option<Arc<Features>>,
    }
}

ports! {
    /// What `similarity` gives.
    pub struct Outputs {
        /// A row for each row of `features`: `image`, and the mean cosine (-1 to 1).
        pub table: Arc<Table>,
        /// A row for each pair: `image`, `other` and the cosine.
        pub pairs: Arc<Table>,
    }
}

impl Node for Similarity {
    const OP: &'static str = "similarity";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        check_name(&self.name).map_err(|fault| vec![fault])?;
        let own = inputs.facts::<FeaturesFacts>("features");
        let other = inputs.facts::<FeaturesFacts>("to");
        if self.pairs && !inputs.is_linked("to") {
            return Err(vec![
                Fault::value(
                    "pairs",
                    "`pairs` compares with `to`, and nothing is linked to it",
                )
                .help("link features to `to`, or leave `pairs` out"),
            ]);
        }
        if let (Some(own), Some(other)) = (own, other) {
            if own.network != other.network {
                return Err(vec![different_networks("to", &own, &other)]);
            }
            if self.pairs && own.rows != other.rows {
                return Err(vec![Fault::mismatch(
                    "to",
                    format!("{} rows cannot be paired with {}", own.rows, other.rows),
                )]);
            }
        }
        Ok(Types::unknown())
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        context.check_cancelled()?;
        let own = &inputs.features;
        let rows = own.directions()?;
        let other = match &inputs.to {
            Some(to) => {
                own.check_comparable(to)?;
                to.directions()?
            }
            None => rows.clone(),
        };
        if self.pairs && (inputs.to.is_none() || other.len() != rows.len()) {
            return Err(NodeError::failed(format!(
                "{} rows cannot be paired with {}",
                rows.len(),
                other.len()
            )));
        }
        let mut table = Table::new([IMAGE, &self.name]);
        let mut pairs = Table::new([IMAGE, "other", &self.name]);
        for (i, row) in rows.iter().enumerate() {
            let mut found = Vec::new();
            for (j, to) in other.iter().enumerate() {
                let skipped = match inputs.to {
                    None => i == j,
                    Some(_) => self.pairs && i != j,
                };
                if !skipped {
                    let value = cosine(row, to);
                    found.push(value);
                    pairs.push(vec![i.into(), j.into(), number(value)])?;
                }
            }
            table.push(vec![i.into(), mean(&found).map_or(Json::Null, number)])?;
        }
        let how = match (&inputs.to, self.pairs) {
            (None, _) => "the mean over the batch's other pictures".to_owned(),
            (Some(_), true) => "with the one beside it".to_owned(),
            (Some(_), false) => format!("the mean over {} references", other.len()),
        };
        let text = format!(
            "cosine of the features of {}, {}; {how}",
            own.space.describe(),
            own.space.input
        );
        table.define(&self.name, &text);
        pairs.define(&self.name, &text);
        Ok(Outputs {
            table: Arc::new(table),
            pairs: Arc::new(pairs),
        })
    }
}

/// The cosine of two rows of length 1.
pub(super) fn cosine(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Two networks that are known to be different before anything runs.
pub(super) fn different_networks(port: &str, own: &FeaturesFacts, other: &FeaturesFacts) -> Fault {
    Fault::mismatch(
        port,
        format!(
            "features of {} cannot be compared with those of {}",
            other.network, own.network
        ),
    )
    .help("make both with the same `path`")
}

/// Whether a name can be that of a column that a node adds.
pub(super) fn check_name(name: &str) -> Result<(), Fault> {
    let taken = [IMAGE, "other", "subject", "method", "prompt", "seed"];
    if name.is_empty() || taken.contains(&name) {
        return Err(Fault::value(
            "name",
            format!("a column of measures cannot be called `{name}`"),
        )
        .help("give another name, `identity` for one"));
    }
    Ok(())
}
