//! `scores`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::fields::{Seed, Template};
use crate::measure::IMAGE;
use crate::payload::Table;

/// What a report knows pictures by, in the order of the columns.
pub const LABELS: [&str; 4] = ["subject", "method", "prompt", "seed"];

/// Puts what was measured of a batch of pictures into one table: a row a picture, with what the pictures are of.
///
/// The tables are those that `similarity`, `prompt_score`, `look`, `layout`, `diversity` and `picture_error` give. One with a column
/// `image` has a row a picture; one with a single row and no such column is of the batch, and its numbers stand in each row. `report`
/// takes the tables that this node makes; a sweep's table of results and `retouch runs --columns` take the means of their columns.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// What is drawn: `teddy`.
    #[serde(default)]
    pub subject: Template,
    /// How: `vanilla`, `retouched`.
    #[serde(default)]
    pub method: Template,
    /// What was asked for.
    #[serde(default)]
    pub prompt: Template,
    /// The seed of the first picture; picture i has the seed `seed` + i.
    #[serde(default)]
    pub seed: Option<Seed>,
}

ports! {
    /// What `scores` takes.
    pub struct Inputs {
        /// The tables, all of the same pictures.
        pub tables: Vec<Arc<Table>>,
    }
}

ports! {
    /// What `scores` gives.
    pub struct Outputs {
        /// A row a picture: `subject`, `method`, `prompt`, `seed`, then the columns of the tables.
        pub table: Arc<Table>,
    }
}

impl Node for Scores {
    const OP: &'static str = "scores";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        match inputs.links("tables") {
            0 => Err(vec![
                Fault::mismatch("tables", "`scores` has no tables")
                    .help("list them: `tables: [$look.table, $layout.table]`"),
            ]),
            _ => Ok(Types::unknown()),
        }
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        context.check_cancelled()?;
        let tables = &inputs.tables;
        let per_picture = |table: &Table| table.column(IMAGE).is_some();
        let count = match tables.iter().find(|table| per_picture(table)) {
            Some(table) => table.rows.len(),
            None => 1,
        };
        let mut columns: Vec<String> = LABELS.map(str::to_owned).to_vec();
        let mut made = Table::default();
        for table in tables {
            let fits = match per_picture(table) {
                true => table.rows.len() == count,
                false => table.rows.len() == 1,
            };
            if !fits {
                return Err(NodeError::failed(format!(
                    "a table of {} rows ({}) is not of {count} pictures",
                    table.rows.len(),
                    table.columns.join(", ")
                ))
                .help("join tables of the same pictures"));
            }
            for column in table.columns.iter().filter(|column| *column != IMAGE) {
                if columns.contains(column) {
                    return Err(NodeError::failed(format!(
                        "the column `{column}` is in two of the tables"
                    ))
                    .help("give one of the nodes another `name`"));
                }
                columns.push(column.clone());
            }
            made.definitions.extend(table.definitions.clone());
        }
        made.columns = columns;
        for index in 0..count {
            let seed = self.seed.map_or(Json::Null, |seed| {
                seed.get().wrapping_add(index as u64).into()
            });
            let text = |label: &Template| Json::from(label.as_str());
            let mut row = vec![
                text(&self.subject),
                text(&self.method),
                text(&self.prompt),
                seed,
            ];
            for table in tables {
                let image = table.column(IMAGE);
                let from = &table.rows[if image.is_some() { index } else { 0 }];
                let cells = from.iter().enumerate();
                row.extend(
                    cells
                        .filter(|(at, _)| Some(*at) != image)
                        .map(|(_, v)| v.clone()),
                );
            }
            made.push(row)?;
        }
        Ok(Outputs {
            table: Arc::new(made),
        })
    }
}
