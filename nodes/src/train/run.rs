//! What all trainings do: check, name their states, go on from the last one that is kept, and give model, adapter and tables.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use retouch_diffusion::checkpoint::model::{Checkpoint, ModelFacts};
use retouch_diffusion::prompt::tokenizer::Added;
use retouch_diffusion::sampling::noise::starting_noise;
use retouch_diffusion::sampling::solver::{Sampler, Schedule};
use retouch_diffusion::sampling::{Drawing, NoStore, Prompted, step_blend_sample};
use retouch_diffusion::training::export::{AdapterFormat, adapter, trained_model, with_new_tokens};
use retouch_diffusion::training::parameters::{NewToken, Trained};
use retouch_diffusion::training::trainer::{Prior, StepReport, Trainer};
use retouch_graph::Value;
use retouch_graph::key::KeyHasher;
use retouch_graph::{
    Chain, Chained, Context, Fault, Files, Key, Node, NodeError, Step, Types, Upstream,
};

use super::fields::Common;
use super::pictures::{self, multiple, size_fault};
use super::ports::{Inputs, Outputs};
use crate::chain::{self, ModelNote};
use crate::latent::decode::decode;
use crate::payload::photos::PhotosFacts;
use crate::payload::{Adapter, Image, ImageFacts, Table, TrainingState};
use crate::runtime::{Reports, tensor_error};
use crate::sample::prompt_warnings;
use retouch_diffusion::networks::tiles::Tiled;
use retouch_diffusion::prompt::conditioning::suffix_of;

/// The name of the one value under a state's key.
const STATE: &str = "state";

/// What one method does otherwise than the others.
pub(super) trait Method: Node<Inputs = Inputs, Outputs = Outputs> {
    /// What is trained of a model, which has the new tokens.
    fn trained(&self, model: &Checkpoint, seed: u64) -> Result<Trained, NodeError>;
    /// alpha / rank.
    fn scale(&self) -> f64;
    /// The tokens that the model is given.
    fn new_tokens(&self) -> Vec<NewToken>;
    /// Whose names the adapter's tensors have.
    fn format(&self) -> AdapterFormat;
    /// What the adapter's file says of itself.
    fn facts(&self) -> Vec<(&'static str, String)>;
}

/// Faults of the parameters and of what is linked, and what is known of the outputs.
pub(super) fn check<M: Method>(
    method: &M,
    common: &Common,
    mut faults: Vec<Fault>,
    inputs: &Types<Inputs>,
    files: &dyn Files,
) -> Result<Types<Outputs>, Vec<Fault>> {
    faults.extend(common.faults());
    if inputs.is_linked("class_images") && common.class_prompt.is_none() {
        faults.push(
            Fault::value(
                "class_prompt",
                "`class_images` needs `class_prompt`: what they show",
            )
            .help("give the prompt that they were drawn with, \"a photo of a dog\" for one"),
        );
    }
    if inputs.is_linked("class_images") && common.preserve.is_some() {
        faults.push(
            Fault::value(
                "preserve",
                "`preserve` and `class_images` are two ways to the same end",
            )
            .help("leave one of them out"),
        );
    }
    let model: Option<ModelFacts> = inputs.facts("model");
    let photos: Option<PhotosFacts> = inputs.facts("images");
    let image: Option<ImageFacts> = inputs.facts("images");
    let sizes = match (&photos, &image) {
        (Some(photos), _) => photos.sizes.clone(),
        (None, Some(image)) => vec![(image.width, image.height)],
        (None, None) => Vec::new(),
    };
    if let Some(model) = &model {
        let side = multiple(model.factor, model.unet_config.block_out_channels.len());
        let fault = sizes.iter().find_map(|size| size_fault(*size, side));
        faults.extend(fault.map(|fault| {
            Fault::mismatch("images", fault).help(format!(
                "give `load_images` a `size` that is a multiple of {side}; the model was trained at {}",
                model.sample_size * model.factor
            ))
        }));
    }
    let mut facts = model.clone();
    if let Some(facts) = &mut facts {
        for new in method.new_tokens() {
            let same = |other: &Added| other.token.to_lowercase() == new.token.to_lowercase();
            if facts.added_tokens.iter().any(same) {
                faults.push(
                    Fault::value(
                        "token",
                        format!("the model has a token {:?} already", new.token),
                    )
                    .help("give it another name: `token: \"<another>\"`"),
                );
            }
            facts.added_tokens.push(Added {
                token: new.token,
                vectors: new.vectors,
            });
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut prompts = vec![("caption", common.caption.as_str())];
    prompts.extend(
        common
            .sample_prompt
            .iter()
            .map(|p| ("sample_prompt", p.as_str())),
    );
    let mut warnings = prompt_warnings(facts.as_ref(), &prompts, files);
    for new in method.new_tokens() {
        let missing = !common
            .caption
            .to_lowercase()
            .contains(&new.token.to_lowercase());
        // Captions of their own may have it: those are known when the pictures are read.
        if missing && photos.as_ref().is_none_or(|p| p.captions < p.sizes.len()) {
            warnings.push(
                Fault::value(
                    "caption",
                    format!("the caption does not contain the token {:?}, which would learn nothing from pictures without a caption of their own", new.token),
                )
                .help(format!("write it into the caption: \"a photo of {}\"", new.token)),
            );
        }
    }
    let mut types = Types::unknown().warn(warnings);
    if let Some(facts) = &facts {
        types = types.with("model", facts);
    }
    match (&common.sample_prompt, &model) {
        (None, _) => {
            types = types.without(
                "samples",
                format!("`{}` draws `samples` only with `sample_prompt`", M::OP),
            );
        }
        (Some(_), Some(model)) => {
            let side = model.sample_size * model.factor;
            let facts = ImageFacts {
                batch: common.kept().len(),
                width: side,
                height: side,
            };
            types = types.with("samples", &facts);
        }
        (Some(_), None) => {}
    }
    Ok(types)
}

/// The keys of a training: what its states are called.
struct Keys {
    common: KeyHasher,
}

impl Keys {
    /// `None` when the model is not known.
    fn new<M: Method>(method: &M, common: &Common, upstream: &Upstream<'_>) -> Option<Self> {
        let (id, _) = chain::model(upstream, "model")?;
        let mut parameters = serde_json::to_value(method).ok()?;
        let fields = parameters.as_object_mut()?;
        // What no step depends on.
        for name in [
            "steps",
            "every",
            "checkpoint",
            "format",
            "sample_prompt",
            "sample_steps",
            "sample_guidance",
        ] {
            fields.remove(name);
        }
        let mut hasher = KeyHasher::new("retouch/training/1");
        hasher.field("op", M::OP.as_bytes());
        hasher.field("version", &M::VERSION.to_le_bytes());
        hasher.field("model", id.as_bytes());
        hasher.field("parameters", parameters.to_string().as_bytes());
        hasher.field("numerics", upstream.numerics.as_bytes());
        if common.schedule.schedule().depends_on_steps() {
            hasher.field("steps", &common.steps.to_le_bytes());
        }
        for port in ["images", "masks", "class_images"] {
            for link in upstream.links(port) {
                hasher.field(port, &link.key.0);
                hasher.field("port", link.port.as_bytes());
            }
        }
        Some(Self { common: hasher })
    }

    fn state(&self, step: u64) -> Key {
        let mut hasher = self.common.clone();
        hasher.field("step", &step.to_le_bytes());
        hasher.finish()
    }
}

/// The chain of a training: a step of it is what lies between two checkpoints.
pub(super) fn chain<M: Method>(method: &M, common: &Common, upstream: &Upstream<'_>) -> Chained {
    let known = || {
        let keys = Keys::new(method, common, upstream)?;
        let (base, facts) = chain::model(upstream, "model")?;
        let states: Vec<(u64, Key)> = common
            .kept()
            .into_iter()
            .map(|step| (step, keys.state(step)))
            .collect();
        let rows = match (common.preserve.is_some(), upstream.link("class_images")) {
            (true, _) => 3,
            (false, Some(_)) => 2,
            (false, None) => 1,
        };
        let per_step = (rows * common.batch * common.accumulation) as u64;
        let mut before = 0;
        let mut steps = Vec::new();
        for (step, _) in &states {
            steps.push(Step {
                calls: (step - before) * per_step,
                ..Step::default()
            });
            before = *step;
        }
        let last = states.last()?.1;
        let id = format!("{last}{}", suffix_of(&base));
        Some(Chained {
            note: Some(Arc::new(ModelNote {
                id,
                training: states.clone(),
            })),
            chain: Some(Chain {
                first: 0,
                steps,
                states: states.iter().map(|(_, key)| vec![*key]).collect(),
                looks: None,
                extra: 0,
                class: format!("{} {} {}", M::OP, facts.unet, common.batch),
            }),
            ..Chained::default()
        })
    };
    known().unwrap_or_default()
}

/// Trains, or goes on.
pub(super) fn run<M: Method>(
    method: &M,
    common: &Common,
    inputs: &Inputs,
    context: &Context<'_>,
) -> Result<Outputs, NodeError> {
    let base = &inputs.model.checkpoint;
    let note = context.note::<ModelNote>();
    let id = note
        .as_ref()
        .map_or_else(|| format!("{}+trained", base.id()), |note| note.id.clone());
    let tokens = method.new_tokens();
    let known = with_new_tokens(base, &format!("{}+tokens", base.id()), &tokens)?;
    for index in 0..known.texts() {
        // What is wrong with a token's name shows when it joins the vocabulary.
        known.tokenizer(index)?;
    }
    let masks = inputs.masks.as_ref();
    let examples = pictures::examples(base, &inputs.images, masks, &common.caption, context)?;
    let prior = match (&inputs.class_images, &common.class_prompt, &common.preserve) {
        (Some(images), Some(prompt), _) => {
            Prior::Pictures(pictures::examples(base, images, None, prompt, context)?)
        }
        (_, _, Some(prompt)) => Prior::Preserve(prompt.clone()),
        _ => Prior::None,
    };
    let trained = method.trained(&known, common.seed)?;
    context.say(&format!(
        "{} numbers are trained on {} pictures",
        trained.count(),
        examples.len()
    ));
    let mut trainer = Trainer::new(&known, trained, examples, prior, common.settings())?;
    let states = note.as_ref().map_or(&[][..], |note| &note.training);
    let kept = common.kept();
    resume(&mut trainer, states, &kept, context)?;
    let mut session = Session {
        method,
        common,
        inputs,
        context,
        id: &id,
        samples: BTreeMap::new(),
    };
    session.train(&mut trainer, states, &kept)?;
    session.finish(&trainer, states, &kept)
}

/// Goes on from the last state that is kept.
fn resume(
    trainer: &mut Trainer<'_>,
    states: &[(u64, Key)],
    kept: &[u64],
    context: &Context<'_>,
) -> Result<(), NodeError> {
    for (index, (_, key)) in states.iter().enumerate().rev() {
        let Some(state) = context.kept::<TrainingState>(key, STATE) else {
            continue;
        };
        if trainer.restore(state.0.clone()).is_ok() {
            context.resumed(index + 1, kept.len());
            return Ok(());
        }
        context.warn("a cached training state does not match this training and is not used");
    }
    Ok(())
}

struct Session<'a, M> {
    method: &'a M,
    common: &'a Common,
    inputs: &'a Inputs,
    context: &'a Context<'a>,
    id: &'a str,
    /// The samples that were drawn, by their step.
    samples: BTreeMap<u64, Tensor>,
}

impl<M: Method> Session<'_, M> {
    fn train(
        &mut self,
        trainer: &mut Trainer<'_>,
        states: &[(u64, Key)],
        kept: &[u64],
    ) -> Result<(), NodeError> {
        let end = self.common.end();
        let mut since = Instant::now();
        while trainer.step() < end {
            self.context.check_cancelled()?;
            self.context.progress(trainer.step() as usize, end as usize);
            let report = trainer.advance()?;
            self.context.count("unet_calls", trainer.rows() as u64);
            self.context.count("training_steps", 1);
            if !kept.contains(&report.step) {
                continue;
            }
            if let Some((_, key)) = states.iter().find(|(step, _)| *step == report.step) {
                let state = TrainingState(trainer.state()?);
                let seconds = since.elapsed().as_secs_f64();
                self.context.keep(*key, STATE, Arc::new(state), seconds);
            }
            since = Instant::now();
            self.sample(trainer, report)?;
        }
        self.context.progress(end as usize, end as usize);
        Ok(())
    }

    /// The model as it is now.
    fn model(&self, trainer: &Trainer<'_>, id: &str) -> Result<Checkpoint, NodeError> {
        let base = &self.inputs.model.checkpoint;
        let values = trainer.result()?;
        Ok(trained_model(base, id, &values, self.method.scale())?)
    }

    /// Draws the sample of a checkpoint, and shows it.
    fn sample(&mut self, trainer: &Trainer<'_>, report: StepReport) -> Result<(), NodeError> {
        let Some(prompt) = &self.common.sample_prompt else {
            return Ok(());
        };
        let model = self.model(trainer, &format!("{}+{}", self.id, report.step))?;
        let picture = self.draw(&model, prompt)?;
        let image = Image {
            rgb: picture.clone(),
            alpha: None,
        };
        let (done, of) = (report.step as usize, self.common.end() as usize);
        self.context
            .preview(done, of, |_| Ok(Value::from_arc(Arc::new(image))));
        self.samples.insert(report.step, picture);
        Ok(())
    }

    fn draw(&self, model: &Checkpoint, prompt: &str) -> Result<Tensor, NodeError> {
        let facts = model.description().facts();
        let side = facts.sample_size;
        let shape = (1, facts.latent_channels, side, side);
        let start = starting_noise(self.common.seed, shape, model.device())?;
        let schedule = Schedule::plain(self.common.sample_steps);
        let sampler = Sampler::new(&facts.scheduler, schedule)?;
        let start = (start * sampler.start_scale()).map_err(tensor_error)?;
        let drawing = Drawing::plain(&sampler, self.common.sample_guidance);
        let reports = Quiet(self.context);
        let prompted = Prompted::new(model, prompt, "", &reports);
        let latents = step_blend_sample(
            &prompted, &prompted, &start, 0, &drawing, &reports, &NoStore,
        )?;
        let last = latents.last().unwrap_or(&start);
        Ok(decode(model, last, Tiled::Auto)?)
    }

    fn finish(
        mut self,
        trainer: &Trainer<'_>,
        states: &[(u64, Key)],
        kept: &[u64],
    ) -> Result<Outputs, NodeError> {
        let base = &self.inputs.model.checkpoint;
        let values = trainer.result()?;
        let model = trained_model(base, self.id, &values, self.method.scale())?;
        let tensors = adapter(&values, base, self.method.scale(), self.method.format())?;
        let mut metadata: BTreeMap<String, String> = self
            .method
            .facts()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        metadata.insert("retouch.op".into(), M::OP.into());
        metadata.insert("retouch.base".into(), base.id().into());
        metadata.insert("ss_steps".into(), trainer.step().to_string());
        metadata.insert(
            "modelspec.trigger_phrase".into(),
            self.common.caption.clone(),
        );
        let samples = match &self.common.sample_prompt {
            None => None,
            Some(prompt) => Some(Arc::new(self.all_samples(states, kept, prompt, &model)?)),
        };
        let line = format!(
            "{}: {} steps on {}",
            M::OP,
            trainer.step(),
            plural(self.pictures()?, "picture")
        );
        Ok(Outputs {
            model: Arc::new(self.inputs.model.adapted(model, line)),
            adapter: Arc::new(Adapter { tensors, metadata }),
            losses: Arc::new(losses(trainer.reports())),
            samples,
        })
    }

    fn pictures(&self) -> Result<usize, NodeError> {
        Ok(self.inputs.images.photos()?.pictures.len())
    }

    /// The samples of all checkpoints: those that this run did not draw are drawn from the states that are kept.
    fn all_samples(
        &mut self,
        states: &[(u64, Key)],
        kept: &[u64],
        prompt: &str,
        last: &Checkpoint,
    ) -> Result<Image, NodeError> {
        let mut all = Vec::new();
        for step in kept {
            let picture = match self.samples.remove(step) {
                Some(picture) => picture,
                None if *step == self.common.end() => self.draw(last, prompt)?,
                None => {
                    let key = states
                        .iter()
                        .find(|(other, _)| other == step)
                        .map(|(_, key)| key);
                    let state = key.and_then(|key| self.context.kept::<TrainingState>(key, STATE));
                    let Some(state) = state else {
                        // It was given up by the cache: what is there is shown.
                        continue;
                    };
                    let base = &self.inputs.model.checkpoint;
                    let seed = self.common.seed;
                    let id = format!("{}+tokens", base.id());
                    let known = with_new_tokens(base, &id, &self.method.new_tokens())?;
                    let trained = self.method.trained(&known, seed)?;
                    let values = state.0.result(&trained)?;
                    let id = format!("{}+{step}", self.id);
                    let model = trained_model(base, &id, &values, self.method.scale())?;
                    self.draw(&model, prompt)?
                }
            };
            all.push(picture);
        }
        Ok(Image {
            rgb: Tensor::cat(&all, 0).map_err(tensor_error)?,
            alpha: None,
        })
    }
}

/// Reports of a sample's drawing: its calls are counted, its steps are not those of the training.
struct Quiet<'a>(&'a Context<'a>);

impl retouch_diffusion::sampling::Monitor for Quiet<'_> {
    fn step(&self, _: usize, _: usize) -> retouch_diffusion::Result<()> {
        self.goes_on()
    }
    fn unet_calls(&self, images: usize) {
        Reports(self.0).unet_calls(images);
    }
    fn warn(&self, message: &str) {
        self.0.warn(message);
    }
    fn goes_on(&self) -> retouch_diffusion::Result<()> {
        Reports(self.0).goes_on()
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A row a step: its number, the loss, the prior's, the learning rate, the norm of the gradients.
fn losses(reports: &[StepReport]) -> Table {
    let rows = reports.iter().map(|report| {
        vec![
            report.step.into(),
            report.loss.into(),
            report.prior.into(),
            report.rate.into(),
            report.norm.into(),
        ]
    });
    Table {
        columns: ["step", "loss", "prior_loss", "learning_rate", "grad_norm"]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.collect(),
        ..Table::default()
    }
}
