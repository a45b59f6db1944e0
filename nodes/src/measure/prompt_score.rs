//! `prompt_score`.

use std::sync::Arc;

use retouch_graph::{Context, Fault, Files, Node, NodeError, ReadFile, Types, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fields::{AssetPath, Template};
use crate::measure::backbone;
use crate::measure::scorer::Scorer;
use crate::measure::similarity::{cosine, different_networks};
use crate::measure::{IMAGE, number};
use crate::payload::Table;
use crate::payload::features::{Features, FeaturesFacts};
use crate::payload::image::values;

/// The column of CLIP-T.
const COLUMN: &str = "prompt_score";

/// Measures how well pictures show what a prompt asks for.
///
/// With CLIP (`text` linked, from `text_features`) the number is CLIP-T: the cosine of a picture's features and those of its text, one
/// text for all pictures or one each. With a `scorer`, heads that were trained on one domain (`models/world-scorer.safetensors`: the
/// thing and the place of the demo world), it is the probability of the class that `prompt` names, a column for each head. That is
/// an in-domain score and says nothing outside of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptScore {
    /// A file of heads on the features, in place of `text`.
    #[serde(default)]
    pub scorer: Option<AssetPath>,
    /// The prompt in which the classes of the heads are looked up; for `scorer` alone.
    #[serde(default)]
    pub prompt: Option<Template>,
}

ports! {
    /// What `prompt_score` takes.
    pub struct Inputs {
        /// The pictures' features.
        pub features: Arc<Features>,
        /// The texts' features, one row or one for each picture.
        pub text: Option<Arc<Features>>,
    }
}

ports! {
    /// What `prompt_score` gives.
    pub struct Outputs {
        /// A row for each picture: `image` and `prompt_score`; with a scorer for each head the probability of the asked class
        /// (`thing`) and whether it is the most probable one (`thing_top`, 1 or 0).
        pub table: Arc<Table>,
    }
}

impl Node for PromptScore {
    const OP: &'static str = "prompt_score";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        let Some(path) = &self.scorer else {
            return Ok(Vec::new());
        };
        files.find_model(path.as_path());
        let read = ReadFile {
            role: "scorer".to_owned(),
            path: path.to_path_buf(),
        };
        Ok(match files.is_file(path.as_path()) {
            true => vec![read],
            false => Vec::new(), // `check` reports it
        })
    }

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let own = inputs.facts::<FeaturesFacts>("features");
        let faults = self.faults(inputs.is_linked("text"));
        if !faults.is_empty() {
            return Err(faults);
        }
        if let (Some(path), Some(prompt)) = (&self.scorer, &self.prompt) {
            let scorer = Scorer::read(path.as_path(), files)
                .map_err(|error| vec![backbone::fault("scorer", path.as_path(), &error, files)])?;
            if let Some(own) = own.filter(|own| own.width != scorer.width) {
                return Err(vec![Fault::mismatch(
                    "features",
                    format!(
                        "the scorer takes {} features; those of {} are {}",
                        scorer.width, own.network, own.width
                    ),
                )]);
            }
            if let Some(fault) = nothing_named(&scorer, prompt.as_str()) {
                return Err(vec![fault]);
            }
        } else if let (Some(own), Some(text)) = (own, inputs.facts::<FeaturesFacts>("text")) {
            if own.network != text.network {
                return Err(vec![different_networks("text", &own, &text)]);
            }
            if text.rows != 1 && text.rows != own.rows {
                return Err(vec![
                    Fault::mismatch(
                        "text",
                        format!("{} texts for {} pictures", text.rows, own.rows),
                    )
                    .help("give one text, or one for each picture"),
                ]);
            }
        }
        Ok(Types::unknown())
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        context.check_cancelled()?;
        if let Some(fault) = self.faults(inputs.text.is_some()).into_iter().next() {
            return Err(NodeError::failed(fault.message));
        }
        let table = match (&self.scorer, &self.prompt, &inputs.text) {
            (Some(path), Some(prompt), _) => {
                let scorer = Scorer::read(path.as_path(), context.files())?;
                by_heads(&scorer, prompt.as_str(), &inputs.features)?
            }
            (_, _, Some(text)) => by_text(&inputs.features, text)?,
            _ => return Err(NodeError::failed("nothing to score by")),
        };
        Ok(Outputs {
            table: Arc::new(table),
        })
    }
}

impl PromptScore {
    fn faults(&self, has_text: bool) -> Vec<Fault> {
        let one = match (&self.scorer, &self.prompt, has_text) {
            (None, None, true) | (Some(_), Some(_), false) => return Vec::new(),
            (None, _, false) => {
                Fault::mismatch("text", "nothing says what the pictures should show").help(
                    "link the features of texts to `text`, or give a `scorer` with a `prompt`",
                )
            }
            (Some(_), _, true) => Fault::value("scorer", "`scorer` and `text` exclude each other")
                .help("leave one of them out"),
            (None, Some(_), true) => Fault::value(
                "prompt",
                "`prompt` is read by a `scorer`; with `text` the texts are the prompts",
            )
            .help("leave it out"),
            (Some(_), None, false) => Fault::value("scorer", "`scorer` needs the `prompt`")
                .help("give the prompt that the pictures were drawn for"),
        };
        vec![one]
    }
}

fn nothing_named(scorer: &Scorer, prompt: &str) -> Option<Fault> {
    let any = scorer
        .heads
        .iter()
        .any(|head| head.named_in(prompt).is_some());
    (!any).then(|| {
        let known: Vec<String> = (scorer.heads.iter())
            .map(|head| format!("{}: {}", head.name, head.classes.join(", ")))
            .collect();
        Fault::value("prompt", format!("`{prompt}` names no class of the scorer"))
            .help(format!("it knows {}", known.join("; ")))
    })
}

fn by_heads(scorer: &Scorer, prompt: &str, features: &Features) -> Result<Table, NodeError> {
    scorer.check(features)?;
    let named: Vec<_> = (scorer.heads.iter())
        .filter_map(|head| Some((head, head.named_in(prompt)?)))
        .collect();
    if named.is_empty() {
        return Err(NodeError::failed(format!(
            "`{prompt}` names no class of the scorer"
        )));
    }
    let names = named
        .iter()
        .flat_map(|(head, _)| [head.name.clone(), format!("{}_top", head.name)]);
    let mut table = Table::new(std::iter::once(IMAGE.to_owned()).chain(names));
    for (i, row) in values(&features.rows)?
        .chunks_exact(scorer.width)
        .enumerate()
    {
        let mut cells = vec![i.into()];
        for (head, class) in &named {
            let found = head.probabilities(row);
            let is_top = found.iter().all(|other| *other <= found[*class]);
            cells.push(number(found[*class]));
            cells.push(u8::from(is_top).into());
        }
        table.push(cells)?;
    }
    for (head, _) in &named {
        let text = format!(
            "in-domain: of the {} the demo world knows by its own scorer on {}, the one that the prompt names",
            head.classes.len(),
            features.space.describe()
        );
        table.define(&head.name, &format!("probability, {text}"));
        table.define(
            &format!("{}_top", head.name),
            &format!("share of pictures whose most probable class it is, {text}"),
        );
    }
    Ok(table)
}

fn by_text(features: &Features, text: &Features) -> Result<Table, NodeError> {
    features.check_comparable(text)?;
    let (rows, texts) = (features.directions()?, text.directions()?);
    if texts.len() != 1 && texts.len() != rows.len() {
        return Err(NodeError::failed(format!(
            "{} texts for {} pictures",
            texts.len(),
            rows.len()
        ))
        .help("give one text, or one for each picture"));
    }
    let mut table = Table::new([IMAGE, COLUMN]);
    for (i, row) in rows.iter().enumerate() {
        let text = texts.get(i).unwrap_or(&texts[0]);
        table.push(vec![i.into(), number(cosine(row, text))])?;
    }
    table.define(
        COLUMN,
        &format!(
            "CLIP-T: cosine of the features of picture and prompt, {}, {}",
            features.space.describe(),
            features.space.input
        ),
    );
    Ok(table)
}
