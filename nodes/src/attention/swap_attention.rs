//! `swap_attention`.

use std::sync::Arc;

use retouch_graph::{Chained, Context, Fault, Files, Key, Node, NodeError, Types, Upstream, ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MaskGridField, Sites, Texts, ThresholdField};
use crate::chain::{ModelNote, TrajectoryNote, is_ones, state_of};
use crate::fields::{Steps, Template};
use crate::payload::{Control, ControlFacts, MaskOrMasks, Model, Trajectory, TrajectoryFacts};
use retouch_diffusion::checkpoint::model::ModelFacts;
use retouch_diffusion::prompt::conditioning::Syntax;
use retouch_diffusion::sampling::solver::Schedule;
use retouch_diffusion::sampling::swap::{Blend, Values};

/// Says what stage 2 attends to: inside the subject's mask the reference's keys and values, outside the context's.
///
/// Structure comes from the context (stage 1's trajectory), looks from the reference (an inverted photo, or several). Nothing is
/// computed here: the control is data, and `sample` acts on it. Step parameters are a number or a share of T such as
/// `20%`; steps are counted from the noisiest, ranges are half-open.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwapAttention {
    /// The prompt of the reference's branch, subject's identifier included: "a photo of a sks teddy bear". With several
    /// references one for all, or a list with one for each.
    pub reference_prompt: Texts,
    /// The words of the target's prompt that are the subject. Needed for every mask that is not given.
    #[serde(default)]
    pub subject: Option<Template>,
    /// The subject's words in the context's prompts. Default: `subject`.
    #[serde(default)]
    pub context_subject: Option<Template>,
    /// The subject's words in `reference_prompt`, one text or a list as there. Default: `subject`.
    #[serde(default)]
    pub reference_subject: Option<Texts>,
    /// The prompt of the context's branch at the steps that the vanilla model did not draw. Default: what drew them.
    #[serde(default)]
    pub context_prompt: Option<Template>,
    /// The self-attention sites that are swapped: `auto` (up blocks on the two finest grids), `all`, `none`, `10..16`,
    /// or a list.
    #[serde(default)]
    pub sites: Sites,
    /// Steps before this one are taken over from the context as they are.
    #[serde(default = "start_step")]
    pub start_step: Steps,
    /// The swap begins at this step.
    #[serde(default = "from_step")]
    pub from_step: Steps,
    /// The swap ends before this step.
    #[serde(default = "until_step")]
    pub until_step: Steps,
    /// Before this step (the paper's lambda2) the queries are the context's, from it on the target's own.
    #[serde(default = "structure_until")]
    pub structure_until: Steps,
    /// Whether the context's attention replaces the target's between `start_step` and `from_step`.
    #[serde(default = "yes")]
    pub lock: bool,
    /// How the context's mask and the target's own of the step before make the mask of a step.
    #[serde(default)]
    pub blend: BlendField,
    /// How a map in [0, 1] becomes a mask: `otsu`, `soft` (the map itself) or a number.
    #[serde(default)]
    pub threshold: ThresholdField,
    /// Passes of a 3x3 filter over a map.
    #[serde(default = "one")]
    #[schemars(range(max = 100))]
    pub smooth: usize,
    /// The attention grid that maps are taken from: `auto`, or rows x columns such as `16x24`.
    #[serde(default)]
    pub mask_grid: MaskGridField,
    /// Which values are read inside the mask: `attended` (the reference's, through its keys) or `matched` (the reference's, moved to
    /// where the context's keys are most like its own, and read through those: its parts stay where the context has them).
    #[serde(default, skip_serializing_if = "is_attended")]
    pub values: ValuesField,
}

/// What `swap_attention` says of itself while the plan is made.
#[derive(Debug)]
pub(crate) struct ControlNote {
    pub settings: SwapAttention,
    pub context: Arc<TrajectoryNote>,
    pub references: Vec<Arc<TrajectoryNote>>,
    /// The vanilla model, by its content.
    pub vanilla: Option<String>,
    /// The keys of given masks.
    pub reference_masks: Vec<Key>,
    pub context_mask: Option<Key>,
    pub blend_mask: Option<Key>,
    /// The blend mask is known to be 1 everywhere.
    pub fills: bool,
}

/// How the masks of context and target are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum BlendField {
    /// The larger of the two.
    #[default]
    Union,
    /// The context's.
    Context,
    /// The target's, of the step before.
    Target,
}

impl From<BlendField> for Blend {
    fn from(field: BlendField) -> Self {
        match field {
            BlendField::Union => Self::Union,
            BlendField::Context => Self::Context,
            BlendField::Target => Self::Target,
        }
    }
}

/// Which values are read inside the mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ValuesField {
    /// The references', through the references' keys.
    #[default]
    Attended,
    /// The references', each at the place of the context whose key is most like its own, through the context's keys.
    Matched,
}

impl From<ValuesField> for Values {
    fn from(field: ValuesField) -> Self {
        match field {
            ValuesField::Attended => Self::Attended,
            ValuesField::Matched => Self::Matched,
        }
    }
}

// What is left at its default stays out of the recipe and of the keys, which are those of the time before the parameter was there.
fn is_attended(values: &ValuesField) -> bool {
    *values == ValuesField::Attended
}
fn start_step() -> Steps {
    Steps::Percent(20.0)
}
fn from_step() -> Steps {
    Steps::Percent(8.0)
}
fn until_step() -> Steps {
    Steps::Percent(100.0)
}
fn structure_until() -> Steps {
    Steps::Percent(40.0)
}
fn yes() -> bool {
    true
}
fn one() -> usize {
    1
}

ports! {
    /// What `swap_attention` takes.
    pub struct Inputs {
        /// The trajectory of stage 1 (or of an inverted picture): where things are.
        pub context: Arc<Trajectory>,
        /// The trajectory of the inverted photo: what the subject looks like. Several photos, each of a size of its own, are a
        /// list: their keys and values stand side by side, each under its own mask.
        pub reference: Vec<Arc<Trajectory>>,
        /// The model that drew the context's first steps, if it is not the one that `sample` uses.
        pub vanilla: Option<Arc<Model>>,
        /// The subject in the photo, in place of masks computed from cross-attention: one for all steps, or the masks of
        /// another swap step by step (each of these ports takes its own plane of them). With several references one for all,
        /// or a list with one for each.
        pub reference_mask: Vec<MaskOrMasks>,
        /// The subject in the context, in place of a computed mask.
        pub context_mask: Option<MaskOrMasks>,
        /// Where the reference's looks go, at every step, in place of context and target masks.
        pub blend_mask: Option<MaskOrMasks>,
    }
}

ports! {
    /// What `swap_attention` gives.
    pub struct Outputs {
        /// The control, for `sample`.
        pub control: Arc<Control>,
    }
}

/// Whether there are neither one nor as many as references.
fn count_fault(name: &str, count: usize, references: usize) -> Option<Fault> {
    (references > 0 && count != 1 && count != references).then(|| {
        Fault::value(
            name,
            format!("`{name}` has {count} entries for {references} references"),
        )
        .help("give one for all, or one for each, in the order of `reference`")
    })
}

impl SwapAttention {
    /// The subject's words in the prompt of a reference.
    pub(crate) fn subject_of_reference(&self, index: usize) -> Option<&Template> {
        match &self.reference_subject {
            Some(subjects) => Some(subjects.at(index)),
            None => self.subject.as_ref(),
        }
    }

    /// What is at fault given a context and a reference of this size, beyond what one parameter alone shows.
    fn faults(&self, inputs: &Types<Inputs>) -> Vec<Fault> {
        let mut faults = Vec::new();
        let context: Option<TrajectoryFacts> = inputs.facts("context");
        let references = inputs.links("reference");
        if references == 0 {
            faults.push(
                Fault::mismatch(
                    "reference",
                    "`reference` is an empty list: nothing says what the subject looks like",
                )
                .help(
                    "link the trajectory of an inverted photo: `reference: $inverted.trajectory`",
                ),
            );
        }
        faults.extend(
            context.and_then(|facts| schedule_fault("context", "the context", facts.schedule)),
        );
        faults.extend(reference_faults(inputs, context.as_ref()));
        faults.extend(count_fault(
            "reference_prompt",
            self.reference_prompt.count(),
            references,
        ));
        if let Some(subjects) = &self.reference_subject {
            faults.extend(count_fault(
                "reference_subject",
                subjects.count(),
                references,
            ));
        }
        let masks = inputs.links("reference_mask");
        if masks > 1 {
            faults.extend(count_fault("reference_mask", masks, references));
        }
        faults.extend(context.iter().flat_map(|context| self.step_faults(context)));
        faults.extend(self.subject_faults(inputs, context));
        faults
    }

    /// Steps beyond the context's last.
    fn step_faults(&self, context: &TrajectoryFacts) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (name, steps) in [
            ("start_step", self.start_step),
            ("from_step", self.from_step),
            ("until_step", self.until_step),
            ("structure_until", self.structure_until),
        ] {
            let resolved = steps.resolve(context.steps);
            if resolved > context.steps {
                faults.push(
                    Fault::value(
                        name,
                        format!("{name} is step {resolved} of a run of {}", context.steps),
                    )
                    .help(format!(
                        "give 0 to {}, or a share such as `40%`",
                        context.steps
                    )),
                );
            }
        }
        faults
    }

    /// Subjects that are missing, or not in the prompt that they are looked up in.
    fn subject_faults(
        &self,
        inputs: &Types<Inputs>,
        context: Option<TrajectoryFacts>,
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        let references = inputs.links("reference");
        let given = |port| inputs.is_linked(port);
        let has_subject = |own: &Option<Template>| own.is_some() || self.subject.is_some();
        let swaps = self.sites != Sites::List(Vec::new())
            && context.is_none_or(|c| {
                let first = self
                    .start_step
                    .resolve(c.steps)
                    .max(self.from_step.resolve(c.steps));
                first < self.until_step.resolve(c.steps).min(c.steps)
            });
        let needs_target =
            !given("blend_mask") && self.blend != BlendField::Context && self.subject.is_none();
        let needs_context =
            !given("blend_mask") && !given("context_mask") && !has_subject(&self.context_subject);
        let needs_reference =
            !given("reference_mask") && self.reference_subject.is_none() && self.subject.is_none();
        let own = self.reference_subject.iter().flat_map(Texts::iter);
        let subjects = [
            ("subject", self.subject.as_ref()),
            ("context_subject", self.context_subject.as_ref()),
        ];
        for (name, subject) in subjects
            .into_iter()
            .chain(own.map(|text| ("reference_subject", Some(text))))
        {
            if subject.is_some_and(|text| text.trim().is_empty()) {
                faults.push(
                    Fault::value(name, format!("`{name}` has no words"))
                        .help("name the words of the prompt that are the subject: \"teddy bear\""),
                );
            }
        }
        for index in 0..references {
            let Some(subject) = self.subject_of_reference(index) else {
                break;
            };
            if swaps
                && !given("reference_mask")
                && !mentions(self.reference_prompt.at(index), subject)
            {
                let whose = if references > 1 {
                    format!("the prompt of {}", reference_name(index, references))
                } else {
                    "the reference's prompt".to_owned()
                };
                faults.push(
                    Fault::value(
                        "reference_prompt",
                        format!("the subject {:?} is not in {whose}", subject.as_str()),
                    )
                    .help("name the subject's words in it with `reference_subject`, or give a `reference_mask`"),
                );
            }
        }
        if swaps && (needs_target || needs_context || needs_reference) {
            let which: Vec<_> = [
                (needs_reference, "the reference"),
                (needs_context, "the context"),
                (needs_target, "the target"),
            ]
            .into_iter()
            .filter_map(|(needed, name)| needed.then_some(name))
            .collect();
            let mut fault = Fault::value(
                "subject",
                format!(
                    "`subject` is missing: the masks of {} are looked up by its words",
                    which.join(" and ")
                ),
            )
            .help("give `subject`, such as `subject: \"teddy bear\"`, or the masks themselves: `reference_mask` and `blend_mask`");
            fault.field = None;
            faults.push(fault);
        }
        faults
    }
}

/// A trajectory whose latents are not at the noise levels of DDIM's steps: they cannot stand beside those of the others.
pub(crate) fn schedule_fault(port: &str, name: &str, schedule: Option<Schedule>) -> Option<Fault> {
    let schedule = schedule.filter(|schedule| !schedule.is_at_ddims_levels())?;
    Some(
        Fault::mismatch(
            port,
            format!(
                "{name} was drawn with {}, so its latents are not at the noise levels of DDIM's steps, which the swap works with",
                schedule.words()
            ),
        )
        .help("draw it with `scheduler: ddim` (`eta` may be any) and without `strength` or `spacing`, or `invert` its picture"),
    )
}

/// Whether the words of `phrase` can be in `prompt`: without them no tokens can be equal. (That they are is known when the
/// prompt is tokenized.)
pub(crate) fn mentions(prompt: &str, phrase: &str) -> bool {
    let bare = |text: &str| text.split_whitespace().collect::<String>().to_lowercase();
    // Which of the syntaxes the model reads by is not known here.
    [Syntax::Plain, Syntax::A1111].into_iter().any(|syntax| {
        let text = |text: &str| syntax.text(text).map(|text| bare(&text));
        matches!((text(prompt), text(phrase)), (Ok(prompt), Ok(phrase)) if prompt.contains(&phrase))
    })
}

/// "the reference", or "reference 2 of 3" (counted from 1) of several.
fn reference_name(index: usize, references: usize) -> String {
    match references > 1 {
        true => format!("reference {} of {references}", index + 1),
        false => "the reference".to_owned(),
    }
}

/// References that do not fit the context.
fn reference_faults(inputs: &Types<Inputs>, context: Option<&TrajectoryFacts>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let references = inputs.links("reference");
    for index in 0..references {
        let Some(reference) = inputs.facts_at::<TrajectoryFacts>("reference", index) else {
            continue;
        };
        let name = reference_name(index, references);
        if let Some(fault) = schedule_fault("reference", &name, reference.schedule) {
            faults.push(fault);
            continue;
        }
        // With another schedule the number of steps means something else.
        let Some(context) = context.filter(|c| c.schedule.is_none_or(|s| s.is_at_ddims_levels()))
        else {
            continue;
        };
        if context.steps != reference.steps {
            faults.push(
                Fault::mismatch(
                    "reference",
                    format!(
                        "{name} has {} steps, the context {}",
                        reference.steps, context.steps
                    ),
                )
                .help("give both the same `steps`"),
            );
        }
        if context.channels != reference.channels {
            faults.push(Fault::mismatch(
                "reference",
                format!(
                    "the latents of {name} have {} channels, the context's {}",
                    reference.channels, context.channels
                ),
            ));
        }
        if reference.batch != 1 && reference.batch != context.batch {
            let what = if references > 1 {
                format!("{name} is a batch of {}", reference.batch)
            } else {
                format!("a batch of {} references", reference.batch)
            };
            faults.push(
                Fault::mismatch(
                    "reference",
                    format!("{what} for {} pictures", context.batch),
                )
                .help("give one reference for all, or one for each picture"),
            );
        }
    }
    faults
}

impl Node for SwapAttention {
    const OP: &'static str = "swap_attention";
    const VERSION: u32 = 1;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn check(&self, inputs: &Types<Inputs>, _: &dyn Files) -> Result<Types<Outputs>, Vec<Fault>> {
        let faults = self.faults(inputs);
        if !faults.is_empty() {
            return Err(faults);
        }
        let facts = ControlFacts {
            context: inputs.facts("context"),
            vanilla: inputs.facts::<ModelFacts>("vanilla"),
            settings: self.clone(),
            masked: inputs.is_linked("blend_mask"),
        };
        Ok(Types::unknown().with("control", &facts))
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        let note = || {
            let mask = |port| upstream.link(port).map(|link| state_of(link, 0));
            let vanilla = match upstream.link("vanilla") {
                Some(link) => Some(link.note::<ModelNote>()?.id.clone()),
                None => None,
            };
            Some(ControlNote {
                settings: self.clone(),
                context: TrajectoryNote::of(upstream, "context")?,
                references: TrajectoryNote::all(upstream, "reference")?,
                vanilla,
                reference_masks: upstream
                    .links("reference_mask")
                    .iter()
                    .map(|link| state_of(link, 0))
                    .collect(),
                context_mask: mask("context_mask"),
                blend_mask: mask("blend_mask"),
                fills: is_ones(upstream.link("blend_mask")),
            })
        };
        Chained {
            note: note().map(|note| Arc::new(note) as retouch_graph::Note),
            ..Chained::default()
        }
    }

    fn run(&self, inputs: Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
        Ok(Outputs {
            control: Arc::new(Control {
                settings: self.clone(),
                vanilla: inputs.vanilla,
                context: inputs.context,
                references: inputs.reference,
                reference_masks: inputs.reference_mask,
                context_mask: inputs.context_mask,
                blend_mask: inputs.blend_mask,
            }),
        })
    }
}
