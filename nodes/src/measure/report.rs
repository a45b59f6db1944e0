//! `report`.

mod page;
mod plot;
mod stats;

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::fields::Template;
use crate::measure::number;
use crate::payload::image::{Image, ImageFacts};
use crate::payload::{Report, Table};

use stats::{Estimate, Measured, Resampling};

/// Makes one table by method and subject of what `scores` put together, with intervals, and a page with the pictures.
///
/// Means are taken over units that were drawn independently: subjects, or prompts when there is one subject, or seeds when there is
/// one prompt; a unit's number is the mean over its pictures. Intervals are percentile bootstraps over the units, from a generator
/// of their own, so that equal tables make equal reports. Differences and claims are paired: over the pictures of the same subject, prompt and seed.
/// In a sweep, `report:` names the outputs whose tables and pictures of all cells come here.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeReport {
    /// The heading.
    #[serde(default = "default_title")]
    pub title: Template,
    /// The columns that are reported, in this order; all that have numbers unless given.
    #[serde(default)]
    pub columns: Vec<String>,
    /// The method that the others' differences are taken to; the first one unless given.
    #[serde(default)]
    pub baseline: Option<String>,
    /// What the numbers are to show: each is stated with its interval, whatever comes out.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// The column by which the pictures on the page are ordered, the lowest first; the first column unless given.
    #[serde(default)]
    pub worst: Option<String>,
    /// The most pictures of a method on the page, 0 to 1000.
    #[serde(default = "default_pictures")]
    #[schemars(range(max = 1000))]
    pub pictures: usize,
    /// How often the units are drawn anew, 100 to 100000.
    #[serde(default = "default_resamples")]
    #[schemars(range(min = 100, max = 100_000))]
    pub resamples: usize,
    /// The share of draws that an interval covers, 0.5 to 0.999.
    #[serde(default = "default_confidence")]
    #[schemars(range(min = 0.5, max = 0.999))]
    pub confidence: f64,
}

/// That a method's mean is at least a share of another's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The column.
    pub column: String,
    /// The method.
    pub method: String,
    /// The method that it is compared with.
    pub to: String,
    /// The share of that one's mean that it reaches, 0.95 for "within 5 %".
    #[serde(default = "default_share")]
    pub at_least: f64,
}

fn default_title() -> Template {
    Template::new("Report")
}

fn default_pictures() -> usize {
    40
}

fn default_resamples() -> usize {
    2000
}

fn default_confidence() -> f64 {
    0.95
}

fn default_share() -> f64 {
    0.95
}

ports! {
    /// What `report` takes.
    pub struct Inputs {
        /// Tables that `scores` made.
        pub tables: Vec<Arc<Table>>,
        /// The pictures of each table, one batch a table in the same order; or none.
        pub images: Vec<Arc<Image>>,
    }
}

ports! {
    /// What `report` gives.
    pub struct Outputs {
        /// The page: HTML with everything in it, or Markdown without the pictures.
        pub report: Arc<Report>,
        /// A row for each method and subject, and for each method over all subjects (`subject` is `all`): `pictures`, and of each column
        /// the mean and the ends of its interval (`look`, `look_low`, `look_high`).
        pub table: Arc<Table>,
        /// The means of all methods with their intervals, a panel a column.
        pub plot: Arc<Image>,
    }
}

impl Node for MakeReport {
    const OP: &'static str = "report";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let (tables, images) = (inputs.links("tables"), inputs.links("images"));
        let mut faults = Vec::new();
        if tables == 0 {
            faults.push(
                Fault::mismatch("tables", "`report` has no tables")
                    .help("list what `scores` made: `tables: [$scores]`"),
            );
        }
        if images != 0 && images != tables {
            faults.push(
                Fault::mismatch(
                    "images",
                    format!("{images} batches of pictures for {tables} tables"),
                )
                .help("give one batch a table, in the same order, or none"),
            );
        }
        if let Some(claim) =
            (self.claims.iter()).find(|claim| !(claim.at_least.is_finite() && claim.at_least > 0.0))
        {
            faults.push(
                Fault::value("claims", format!("`at_least` is {}", claim.at_least))
                    .help("it is a share of the other method's mean: 0.95 for \"within 5 %\""),
            );
        }
        // A sweep's `report:` comes here without the engine's look at the ranges.
        let ranges = [
            ("pictures", self.pictures as f64, 0.0, 1000.0),
            ("resamples", self.resamples as f64, 100.0, 100_000.0),
            ("confidence", self.confidence, 0.5, 0.999),
        ];
        for (field, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                faults.push(
                    Fault::value(
                        field,
                        format!("`{field}` is {value}, not {least} to {most}"),
                    )
                    .help("leave it out for the default"),
                );
            }
        }
        match faults.is_empty() {
            true => Ok(Types::unknown()),
            false => Err(faults),
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        context.check_cancelled()?;
        let (tables, images) = (&inputs.tables, &inputs.images);
        if tables.is_empty() || (!images.is_empty() && images.len() != tables.len()) {
            return Err(NodeError::failed(format!(
                "{} batches of pictures for {} tables",
                images.len(),
                tables.len()
            )));
        }
        for (table, image) in tables.iter().zip(images) {
            let ImageFacts { batch, .. } = image.facts();
            if batch != table.rows.len() {
                return Err(NodeError::failed(format!(
                    "a table of {} rows is of {batch} pictures",
                    table.rows.len()
                ))
                .help("give each table the batch that it was made of"));
            }
        }
        let how = Resampling {
            resamples: self.resamples,
            confidence: self.confidence,
        };
        let measured = Measured::read(tables, &self.columns, &how)?;
        if measured.pictures.is_empty() || measured.columns.is_empty() {
            return Err(NodeError::failed("the tables have no numbers"));
        }
        self.check_names(&measured)?;
        let plot = plot::plot(&measured)?;
        let page = page::Page::new(self, &measured, images, &plot);
        Ok(Outputs {
            report: Arc::new(Report {
                markdown: page.markdown(),
                html: page.html(context)?,
            }),
            table: Arc::new(summary(&measured)?),
            plot: Arc::new(plot),
        })
    }
}

impl MakeReport {
    /// Refuses what names a method or a column that there is none of.
    fn check_names(&self, measured: &Measured) -> Result<(), NodeError> {
        let methods = (self.baseline.iter()).chain(
            self.claims
                .iter()
                .flat_map(|claim| [&claim.method, &claim.to]),
        );
        for name in methods {
            if !measured.methods.contains(name) {
                return Err(NodeError::failed(format!("there is no method `{name}`"))
                    .help(format!("the methods are {}", measured.methods.join(", "))));
            }
        }
        for name in (self.worst.iter()).chain(self.claims.iter().map(|claim| &claim.column)) {
            if measured.column(name).is_none() {
                return Err(
                    NodeError::failed(format!("the column `{name}` is not reported"))
                        .help(format!("the columns are {}", measured.columns.join(", "))),
                );
            }
        }
        Ok(())
    }
}

/// The table of means.
fn summary(measured: &Measured) -> Result<Table, NodeError> {
    let columns = ["subject", "method", "pictures"].map(str::to_owned);
    let numbers = (measured.columns.iter())
        .flat_map(|name| [name.clone(), format!("{name}_low"), format!("{name}_high")]);
    let mut table = Table::new(columns.into_iter().chain(numbers));
    let subjects = (measured.subjects.iter().map(Some)).chain([None]);
    for subject in subjects {
        let subject = subject.map(String::as_str);
        for method in &measured.methods {
            let count = measured.of(method, subject).count();
            if count == 0 {
                continue;
            }
            let mut row = vec![
                subject.unwrap_or("all").into(),
                method.as_str().into(),
                count.into(),
            ];
            for column in 0..measured.columns.len() {
                let cells = match measured.estimate(method, subject, column) {
                    Some(Estimate { mean, low, high }) => [mean, low, high].map(number),
                    None => [Json::Null, Json::Null, Json::Null],
                };
                row.extend(cells);
            }
            table.push(row)?;
        }
    }
    Ok(table)
}
