//! `apply_textual_inversion`.

use std::path::Path;
use std::sync::Arc;

use retouch_graph::{Chained, Context, Fault, Files, Node, NodeError, ReadFile, Types, Upstream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Inputs, Outputs};
use crate::fields::{AssetPath, Sha256Pins};
use retouch_diffusion::checkpoint::adapters::check_finite;
use retouch_diffusion::checkpoint::adapters::textual_inversion::{self, LearnedToken};
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::prompt::tokenizer::Added;

/// Teaches a model new tokens (textual inversion), which prompts then name: `a <cat> on a beach`.
///
/// Files of diffusers and of AUTOMATIC1111's web UI are read, with one vector a token or several, LoRAs that have embeddings
/// inside, and the `delta.bin` of Custom Diffusion. Only the text encoder's embeddings grow: self-attention stays the base's, so that one U-Net plays both models of the method.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyTextualInversion {
    /// The file, or the folder that holds `learned_embeds`.
    pub path: AssetPath,
    /// What the token is called in prompts. Default: what the file calls it, or the name of the file (without its ending)
    /// where it does not, as in AUTOMATIC1111's web UI.
    #[serde(default)]
    pub token: Option<String>,
    /// The SHA-256 digest that the file must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Pins>,
}

impl ApplyTextualInversion {
    fn file(&self, files: &dyn Files) -> std::path::PathBuf {
        super::sought(self.path.as_path(), textual_inversion::find, files)
    }

    /// The role of the file. Where the token is called as the file is, that name is no part of the content, and is in the
    /// role, so that it is in keys.
    fn role(&self, file: &Path, files: &dyn Files) -> String {
        match textual_inversion::read(file, self.token.as_deref(), files).as_deref() {
            Ok([token]) if token.by_file => format!("tokens, called {}", token.token),
            _ => "tokens".to_owned(),
        }
    }

    fn said(&self) -> [(&'static str, String); 1] {
        [("token", self.token.clone().unwrap_or_default())]
    }
}

/// Tokens and how many vectors they have, for people.
pub(super) fn in_words(tokens: &[LearnedToken]) -> String {
    let each: Vec<String> = tokens
        .iter()
        .map(|token| match token.vectors() {
            1 => format!("{:?} of one vector", token.token),
            n => format!("{:?} of {n} vectors", token.token),
        })
        .collect();
    each.join(", ")
}

impl Node for ApplyTextualInversion {
    const OP: &'static str = "apply_textual_inversion";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        let file = self.file(files);
        let read = super::read_file("tokens", file.clone(), self.sha256.as_ref(), files)?;
        let read = read.map(|read| ReadFile {
            role: self.role(&file, files),
            ..read
        });
        Ok(read.into_iter().collect())
    }

    fn check(
        &self,
        inputs: &Types<Inputs>,
        files: &dyn Files,
    ) -> Result<Types<Outputs>, Vec<Fault>> {
        let facts: Option<ModelFacts> = inputs.facts("model");
        let file = self.file(files);
        let read =
            textual_inversion::read(&file, self.token.as_deref(), files).and_then(|tokens| {
                if let Some(facts) = &facts {
                    textual_inversion::fit(&file, &tokens, &facts.text_configs)?;
                }
                Ok(tokens)
            });
        let tokens = read.map_err(|e| {
            vec![super::fault(
                self.path.as_path(),
                &e,
                "an embedding of textual inversion",
                files,
            )]
        })?;
        let Some(mut facts) = facts else {
            return Ok(Types::unknown());
        };
        for token in tokens {
            let same = facts
                .added_tokens
                .iter()
                .any(|other| other.token.to_lowercase() == token.token.to_lowercase());
            if same {
                return Err(vec![
                    Fault::value(
                        if self.token.is_some() {
                            "token"
                        } else {
                            "path"
                        },
                        format!("the model has a token {:?} already", token.token),
                    )
                    .help("give it another name: `token: \"<another>\"`"),
                ]);
            }
            facts.added_tokens.push(Added {
                vectors: token.vectors(),
                token: token.token,
            });
        }
        Ok(Types::unknown().with("model", &facts))
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        super::adapted(upstream, Self::OP, &self.said())
    }

    fn run(&self, inputs: Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
        let files = context.files();
        let file = self.file(files);
        let base = &inputs.model.checkpoint;
        let role = self.role(&file, files);
        let digests = super::digests(context, &[(&role, &file)])?;
        let tokens = textual_inversion::read(&file, self.token.as_deref(), files)?;
        let id = super::adapted_id(base.id(), Self::OP, &digests, &self.said());
        let texts: Vec<_> = base
            .description()
            .texts
            .iter()
            .map(|text| text.config.clone())
            .collect();
        textual_inversion::fit(&file, &tokens, &texts)?;
        check_finite(tokens.iter().flat_map(|token| &token.rows), files)?;
        let line = format!("textual inversion: the token {}", in_words(&tokens));
        context.say(&line);
        let model = base.with_tokens(id, tokens);
        // What is wrong with a token's name shows when it joins the vocabulary.
        for index in 0..texts.len() {
            model.tokenizer(index)?;
        }
        Ok(Outputs {
            model: Arc::new(inputs.model.adapted(model, line)),
        })
    }
}
