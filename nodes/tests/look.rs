//! Looking at a sampler's steps: what is read equals what the run gave, what is computed equals what a run records, and
//! nothing is drawn again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use candle_core::Tensor;
use retouch_diffusion::networks::unet::{Call, Text};
use retouch_diffusion::sampling::control::{
    AttentionControl, AttentionKind, Branch, Half, Qkv, Rows, Site,
};
use retouch_diffusion::sampling::scheduler::Ddim;
use retouch_diffusion::sampling::{self, Conditioner, Conditions, Monitor, Prompted, Sought};
use retouch_graph::{
    Cache, Cancel, Engine, HostCache, Key, NodeError, Outputs, Plan, Previewer, Quality,
    RunOptions, RunReport, Settings, Silent, Value,
};
use retouch_kernels::Kernel;
use retouch_nodes::Runtime;
use retouch_nodes::look::{
    AttentionRow, Effort, LookError, Place, Plane, QueriesOf, Reader, StepMasks, Whose,
};
use retouch_nodes::payload::{Image, Masks, Model, Trajectory};

use crate::support::{bits, data};

/// The main job on a tiny model in 6 steps: stage 2 from step 1 on, swapped from step 2 on, the context's queries before
/// step 4.
fn workflow(outputs: &str) -> String {
    let data = data();
    let data = data.display();
    format!(
        "schema: retouch/v1
name: job
nodes:
  base: {{op: load_model, path: '{data}/tiny-sd1'}}
  personal: {{op: load_model, path: '{data}/tiny-sd1', unet: '{data}/tiny-sd1-personal/unet'}}
  photo: {{op: load_image, path: '{data}/tiny-sd1.png'}}
  reference: {{op: encode_reference, model: $personal, image: $photo}}
  inverted: {{op: invert, model: $personal, latent: $reference, steps: 6}}
  layout:
    op: step_blend_sample
    vanilla: $base
    personalized: $personal
    vanilla_prompt: a teddy bear on a beach
    personalized_prompt: a sks teddy bear on a beach
    blend_steps: 2
    steps: 6
    guidance: 5
    seed: 1
    batch: 2
  swap:
    op: swap_attention
    vanilla: $base
    context: $layout.trajectory
    reference: $inverted.trajectory
    reference_prompt: a photo of a sks teddy bear
    subject: teddy bear
    sites: 10..16
    start_step: 1
    from_step: 2
    structure_until: 4
  draw: {{op: sample, model: $personal, prompt: a sks teddy bear on a beach, control: $swap, guidance: 5}}
outputs:
  latent: {{value: $draw}}
{outputs}"
    )
}

const ALL: &str = "  trajectory: {value: $draw.trajectory}
  masks: {value: $draw.masks}
  context: {value: $layout.trajectory}
  inverted: {value: $inverted.trajectory}
  personal: {value: $personal}
  base: {value: $base}
";

/// A cache that keeps no entry with a value of these names.
struct Without(HostCache, &'static [&'static str]);

impl Cache for Without {
    fn get(&self, key: &Key) -> Option<Outputs> {
        self.0.get(key)
    }
    fn place(&self, key: &Key) -> Option<&'static str> {
        self.0.place(key)
    }
    fn put(&self, key: Key, outputs: &Outputs, seconds: f64) {
        if !outputs.keys().any(|name| self.1.contains(&name.as_ref())) {
            self.0.put(key, outputs, seconds);
        }
    }
}

fn engine(without: &'static [&'static str]) -> Engine {
    let runtime = Runtime::cpu();
    let numerics = runtime.numerics();
    Engine::new(retouch_nodes::registry())
        .with_environment(Arc::new(runtime))
        .with_numerics(numerics)
        .with_cache(Arc::new(Without(HostCache::new(4 << 30), without)))
}

/// What a run showed on its way: by node and steps done.
#[derive(Debug, Default)]
struct Shown(Mutex<BTreeMap<(String, usize), Arc<Image>>>);

impl Previewer for Shown {
    fn wants(&self, _: &str, _: usize, _: usize) -> Option<Quality> {
        Some(Quality::Quick)
    }
    fn show(&self, node: &str, done: usize, _: usize, picture: &Value) -> Result<(), NodeError> {
        let image = picture.downcast::<Image>().unwrap();
        self.0
            .lock()
            .unwrap()
            .insert((node.to_owned(), done), image);
        Ok(())
    }
}

struct Ran {
    engine: Engine,
    plan: Arc<Plan>,
    report: RunReport,
    shown: Arc<Shown>,
}

impl Ran {
    fn of(outputs: &str, without: &'static [&'static str]) -> Self {
        let engine = engine(without);
        let checked = engine
            .load_str("test.yaml", &workflow(outputs), &Settings::default())
            .unwrap();
        let plan = Arc::new(engine.plan(&checked, &[]).unwrap());
        let shown = Arc::new(Shown::default());
        let options = RunOptions {
            previewer: Some(shown.clone()),
            ..RunOptions::default()
        };
        let report = engine
            .run(&plan, &Silent, &Cancel::new(), &options)
            .unwrap();
        Self {
            engine,
            plan,
            report,
            shown,
        }
    }

    fn reader(&self, node: &str) -> Reader {
        Reader::of_node(self.engine.clone(), self.plan.clone(), node).unwrap()
    }

    fn output<T: retouch_graph::Payload>(&self, name: &str) -> Arc<T> {
        let output = self
            .report
            .outputs
            .iter()
            .find(|output| output.name == name);
        output.unwrap().value.downcast::<T>().unwrap()
    }
}

fn go() -> Cancel {
    Cancel::new()
}

#[test]
fn pictures_are_those_of_the_previews_and_masks_those_of_the_node_and_nothing_is_called() {
    let ran = Ran::of(ALL, &[]);
    let masks = ran.output::<Masks>("masks");
    let trajectory = ran.output::<Trajectory>("trajectory");
    for node in ["layout", "draw"] {
        let reader = ran.reader(node);
        let summary = reader.summary().unwrap();
        assert_eq!((summary.steps, summary.images, summary.kept()), (6, 2, 7));
        assert_eq!(summary.subject.as_deref(), Some("teddy bear"));
        let shown = ran.shown.0.lock().unwrap();
        for k in summary.first + 1..=6 {
            // Both pictures of the batch stand side by side in a preview.
            let preview = &shown[&(node.to_owned(), k)];
            for image in 0..2 {
                let picture = reader
                    .picture(k, image, Quality::Quick, Effort::Kept, &go())
                    .unwrap();
                let (width, _) = picture.size();
                let half = preview.rgb.narrow(3, image * width, width).unwrap();
                let half = half.contiguous().unwrap();
                assert_eq!(bits(&picture.rgb), bits(&half), "{node} {k} {image}");
            }
        }
        assert_eq!(reader.calls(), 0);
    }
    let reader = ran.reader("draw");
    for (k, z) in trajectory.latents.iter().enumerate() {
        let own = reader.latent(k, Effort::Kept, &go()).unwrap();
        assert_eq!(bits(&own), bits(z), "{k}");
    }
    let first = reader.summary().unwrap().masks;
    assert_eq!(first, 2..6);
    for k in first {
        let step = reader.masks(k, Effort::Kept, &go()).unwrap();
        assert_eq!(planes(&step), planes_at(&masks, k), "{k}");
    }
    assert_eq!(reader.calls(), 0);
    assert!(matches!(
        reader.masks(1, Effort::Calls, &go()),
        Err(LookError::Failed { .. })
    ));
}

fn numbers(planes: &[Plane]) -> Vec<Vec<f32>> {
    planes.iter().map(|plane| plane.data.clone()).collect()
}

/// Reference, context, blend, two images each.
fn planes(step: &StepMasks) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for planes in step.references.iter().chain([&step.context, &step.blend]) {
        let numbers = numbers(planes);
        all.extend((0..2).map(|image| numbers[image.min(numbers.len() - 1)].clone()));
    }
    all
}

fn planes_at(masks: &Masks, k: usize) -> Vec<Vec<f32>> {
    let step = masks.tensor.get(k - masks.first_step).unwrap();
    let (planes, images) = (step.dim(0).unwrap(), step.dim(1).unwrap());
    let plane = |p: usize, i: usize| step.get(p).unwrap().get(i).unwrap();
    (0..planes)
        .flat_map(|p| (0..images).map(move |i| (p, i)))
        .map(|(p, i)| plane(p, i).flatten_all().unwrap().to_vec1().unwrap())
        .collect()
}

#[test]
fn masks_that_no_output_gave_are_made_of_what_is_kept_of_the_calls() {
    let with = Ran::of(ALL, &[]);
    let masks = with.output::<Masks>("masks");
    // The node's own values are not kept, its steps and what its calls gave are.
    let ran = Ran::of("", &["masks", "trajectory"]);
    let reader = ran.reader("draw");
    for k in 2..6 {
        let step = reader.masks(k, Effort::Kept, &go()).unwrap();
        assert_eq!(planes(&step), planes_at(&masks, k), "{k}");
    }
    assert_eq!(reader.calls(), 0);
    // Without them they are said to be gone.
    let ran = Ran::of("", &["masks", "trajectory", "part"]);
    let error = ran
        .reader("draw")
        .masks(3, Effort::Calls, &go())
        .unwrap_err();
    assert!(matches!(error, LookError::NotKept { .. }), "{error}");
}

struct Quiet;

impl Monitor for Quiet {
    fn step(&self, _: usize, _: usize) -> retouch_diffusion::Result<()> {
        Ok(())
    }
    fn unet_calls(&self, _: usize) {}
    fn warn(&self, _: &str) {}
}

/// Notes queries and keys of one site.
struct Note(usize, Option<(Tensor, Tensor, usize)>);

impl AttentionControl for Note {
    fn attend(
        &mut self,
        site: Site,
        qkv: &Qkv,
        kernel: &dyn Kernel,
    ) -> retouch_diffusion::Result<Tensor> {
        if site.kind == AttentionKind::SelfAttention && site.index == self.0 {
            assert!(site.rows.half(Half::Conditional).is_some());
            self.1 = Some((qkv.q.clone(), qkv.k.clone(), qkv.heads));
        }
        qkv.attend(kernel)
    }
}

/// Queries and keys `[B, N, C]` of a site in a plain call of the prompt's half, and the number of heads.
fn plain_call(
    model: &Model,
    prompt: &str,
    z: &Tensor,
    k: usize,
    site: usize,
) -> (Tensor, Tensor, usize) {
    let model = &model.checkpoint;
    let conditions = Conditions::encode(model, prompt, "", &Quiet).unwrap();
    let text = Text::new(conditions.prompt.states);
    let ddim = Ddim::new(&model.description().scheduler, 6).unwrap();
    let images = z.dim(0).unwrap();
    let timesteps = vec![ddim.timesteps()[k] as f32; images];
    let call = Call {
        latent: z,
        timesteps: &timesteps,
        texts: &[&text],
        addition: None,
        step: k,
        rows: Rows::new(Branch::Plain, images, false),
    };
    let mut note = Note(site, None);
    model
        .unet()
        .unwrap()
        .forward(call, &mut note, model.unet_kernel())
        .unwrap();
    note.1.unwrap()
}

/// softmax(q k^T / sqrt(d)) of one query over the keys that count, the mean over heads or one of them.
fn plainly(
    q: &Tensor,
    k: &Tensor,
    heads: usize,
    image: usize,
    query: usize,
    head: Option<usize>,
    counts: &dyn Fn(usize) -> bool,
) -> Vec<f32> {
    let rows = |t: &Tensor| -> Vec<Vec<f32>> {
        let image = image.min(t.dim(0).unwrap() - 1);
        t.get(image).unwrap().to_vec2().unwrap()
    };
    let (q, k) = (rows(q), rows(k));
    let size = q[0].len() / heads;
    let mut sum = vec![0f32; k.len()];
    let which: Vec<usize> = head.map_or_else(|| (0..heads).collect(), |head| vec![head]);
    for head in &which {
        let part = head * size..(head + 1) * size;
        let score = |key: &[f32]| {
            let products = q[query][part.clone()].iter().zip(&key[part.clone()]);
            products.map(|(a, b)| a * b).sum::<f32>() / (size as f32).sqrt()
        };
        let weights: Vec<f32> = (k.iter().enumerate())
            .map(|(j, key)| if counts(j) { score(key).exp() } else { 0.0 })
            .collect();
        let total: f32 = weights.iter().sum();
        for (sum, weight) in sum.iter_mut().zip(weights) {
            *sum += weight / total / which.len() as f32;
        }
    }
    sum
}

#[track_caller]
fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-5, "{a} is not {b}");
    }
    let sum: f32 = found.iter().sum();
    assert!((sum - 1.0).abs() < 1e-4, "{sum}");
}

#[test]
fn a_querys_row_is_the_softmax_over_what_it_met_at_the_step_and_sums_to_one() {
    let ran = Ran::of(ALL, &[]);
    let (context, inverted) = (
        ran.output::<Trajectory>("context"),
        ran.output::<Trajectory>("inverted"),
    );
    let (personal, base) = (ran.output::<Model>("personal"), ran.output::<Model>("base"));
    let target = ran.output::<Trajectory>("trajectory");
    let site = 10; // the first that is swapped
    let (own, reference) = ("a sks teddy bear on a beach", "a photo of a sks teddy bear");

    // A plain sampler: its own keys, drawn by the vanilla model in the first steps.
    let layout = ran.reader("layout");
    for (k, model, prompt) in [(1, &base, "a teddy bear on a beach"), (3, &personal, own)] {
        let gaze = layout.attention(k, site, Effort::Calls, &go()).unwrap();
        let (q, keys, heads) = plain_call(model, prompt, &context.latents[k], k, site);
        assert_eq!((gaze.heads.count, gaze.images()), (heads, 2));
        let w = gaze.grid.1;
        for (image, at, head) in [(0, (0, 0), None), (1, (1, 1), None), (1, (1, 0), Some(1))] {
            let row = gaze.row(image, at, head).unwrap();
            assert_eq!((row.share, row.planes.len()), (None, 1));
            assert_eq!(row.planes[0].0, Whose::Own);
            let query = at.0 * w + at.1;
            let expected = plainly(&q, &keys, heads, image, query, head, &|_| true);
            close(&row.planes[0].1.data, &expected);
        }
    }
    assert_eq!(layout.calls(), 4); // one call of two images at each of two steps
    // Another query, another image: the same pass.
    layout.attention(3, site, Effort::Kept, &go()).unwrap();
    assert_eq!(layout.calls(), 4);
    layout.release();
    let error = layout.attention(3, site, Effort::Kept, &go()).unwrap_err();
    assert!(matches!(error, LookError::Takes(_)), "{error}");

    // An inversion: the call between latents k + 1 and k.
    let invert = ran.reader("inverted");
    let gaze = invert.attention(4, 2, Effort::Calls, &go()).unwrap();
    let (q, keys, heads) = plain_call(&personal, "", &inverted.latents[5], 4, 2);
    let row = gaze.row(0, (0, 1), None).unwrap();
    close(
        &row.planes[0].1.data,
        &plainly(&q, &keys, heads, 0, 1, None, &|_| true),
    );

    // The swap: the context's queries and then the target's own, over the reference's keys inside its mask and over the
    // context's.
    let draw = ran.reader("draw");
    for (k, queries) in [(3, QueriesOf::Context), (5, QueriesOf::Own)] {
        let before = draw.calls();
        let effort = match queries {
            QueriesOf::Context => Effort::Kept, // all of it is kept
            QueriesOf::Own => Effort::Calls,
        };
        let gaze = draw.attention(k, site, effort, &go()).unwrap();
        let called = draw.calls() - before;
        assert_eq!(called, if queries == QueriesOf::Own { 2 } else { 0 });
        assert_eq!(gaze.queries_of, queries);
        let (of_context, context_keys, heads) =
            plain_call(&personal, own, &context.latents[k], k, site);
        let (of_target, ..) = plain_call(&personal, own, &target.latents[k], k, site);
        let (_, reference_keys, _) =
            plain_call(&personal, reference, &inverted.latents[k], k, site);
        let q = match queries {
            QueriesOf::Context => &of_context,
            QueriesOf::Own => &of_target,
        };
        let masks = draw.masks(k, Effort::Kept, &go()).unwrap();
        let inside = masks.references[0][0].nearest(gaze.grid);
        let blend: Vec<Plane> = (masks.blend.iter())
            .map(|plane| plane.nearest(gaze.grid))
            .collect();
        assert!(inside.data.iter().any(|&m| m >= 0.5) && inside.data.iter().any(|&m| m < 0.5));
        for (image, at) in [(0, (0, 0)), (1, (1, 1))] {
            let query = at.0 * gaze.grid.1 + at.1;
            let row = gaze.row(image, at, None).unwrap();
            assert_eq!(row.share, Some(blend[image].data[query]));
            let whose: Vec<Whose> = row.planes.iter().map(|(whose, _)| *whose).collect();
            assert_eq!(whose, [Whose::Reference(0), Whose::Context]);
            let counts = |j: usize| inside.data[j] >= 0.5;
            let expected = plainly(q, &reference_keys, heads, image, query, None, &counts);
            close(&row.planes[0].1.data, &expected);
            let expected = plainly(q, &context_keys, heads, image, query, None, &|_| true);
            close(&row.planes[1].1.data, &expected);
        }
    }
    // Before the swap the context's attention is locked in; a site that is left alone has the target's own.
    let locked = draw.attention(1, site, Effort::Kept, &go()).unwrap();
    let row = locked.row(0, (0, 0), None).unwrap();
    assert_eq!((row.planes.len(), row.planes[0].0), (1, Whose::Context));
    let alone = draw.attention(4, 3, Effort::Calls, &go()).unwrap();
    let (q, keys, heads) = plain_call(&personal, own, &target.latents[4], 4, 3);
    let row = alone.row(1, (0, 0), None).unwrap();
    close(
        &row.planes[0].1.data,
        &plainly(&q, &keys, heads, 1, 0, None, &|_| true),
    );
    // The steps before are another node's.
    assert!(draw.attention(0, site, Effort::Calls, &go()).is_err());
    assert!(draw.attention(6, site, Effort::Calls, &go()).is_err());
    assert!(draw.attention(3, 99, Effort::Calls, &go()).is_err());
}

fn all_rows(gaze: &AttentionRow) -> Vec<(Whose, Vec<f32>)> {
    let (h, w) = gaze.grid;
    let queries = (0..gaze.images()).flat_map(|i| (0..h * w).map(move |n| (i, (n / w, n % w))));
    queries
        .flat_map(|(image, at)| gaze.row(image, at, None).unwrap().planes)
        .map(|(whose, plane)| (whose, plane.data))
        .collect()
}

#[test]
fn what_is_computed_on_demand_is_what_a_run_records() {
    let ran = Ran::of(ALL, &[]);
    let kept = ran.reader("draw");
    // Step 1 is the target's first: its own map is recorded, as the masks of step 2 are made of it.
    let of = |reader: &Reader, k, whose, effort| {
        reader.cross_attention(k, whose, "teddy bear", effort, &go())
    };
    let bare = Ran::of(ALL, &["part"]);
    let demand = bare.reader("draw");
    let error = of(&demand, 1, Whose::Own, Effort::Kept).unwrap_err();
    assert!(matches!(error, LookError::Takes(_)), "{error}");
    for whose in [Whose::Own, Whose::Context, Whose::Reference(0)] {
        let k = if whose == Whose::Own { 1 } else { 3 };
        let recorded = of(&kept, k, whose, Effort::Kept).unwrap();
        let computed = of(&demand, k, whose, Effort::Calls).unwrap();
        assert_eq!(numbers(&recorded), numbers(&computed), "{whose:?}");
    }
    assert_eq!(kept.calls(), 0);
    // The locked target and its context, two images each; the context alone; the one reference.
    assert_eq!(demand.calls(), 4 + 2 + 1);
    // The layout's own map of a step that the swap had recorded is the context's.
    let layout = of(&ran.reader("layout"), 3, Whose::Own, Effort::Kept).unwrap();
    assert_eq!(
        numbers(&layout),
        numbers(&of(&kept, 3, Whose::Context, Effort::Kept).unwrap())
    );
    let computed = of(&bare.reader("layout"), 3, Whose::Own, Effort::Calls).unwrap();
    assert_eq!(numbers(&layout), numbers(&computed));
    // Queries and keys: those that were kept, and the same called for.
    let gaze = kept.attention(1, 12, Effort::Kept, &go()).unwrap();
    let called = demand.attention(1, 12, Effort::Calls, &go()).unwrap();
    assert_eq!(all_rows(&gaze), all_rows(&called));
    // Words that are not in the prompt are said.
    let error = kept.cross_attention(3, Whose::Own, "giraffe", Effort::Kept, &go());
    assert!(matches!(error, Err(LookError::Failed { .. })), "{error:?}");
}

#[test]
fn what_is_not_kept_is_said_and_never_drawn_again() {
    // No state, no trajectory: only what comes with the inputs is there, and those need the steps of others.
    let ran = Ran::of("", &["latent", "trajectory", "control"]);
    for (node, given) in [("layout", 0), ("draw", 1), ("inverted", 6)] {
        let reader = ran.reader(node);
        let summary = reader.summary().unwrap();
        assert_eq!(summary.latents[given], Place::Given, "{node}");
        assert_eq!(summary.latents[3], Place::Gone);
        for error in [
            reader.latent(3, Effort::Calls, &go()).unwrap_err(),
            reader
                .picture(3, 0, Quality::Quick, Effort::Calls, &go())
                .unwrap_err(),
            reader.attention(3, 10, Effort::Calls, &go()).unwrap_err(),
        ] {
            let LookError::NotKept { message, help } = error else {
                panic!("{error:?}");
            };
            assert!(
                message.contains("is not in the cache") && help.contains("run"),
                "{message}; {help}"
            );
        }
        assert_eq!(reader.calls(), 0);
    }
    // The starting noise is no step.
    let layout = ran.reader("layout");
    let noise = layout.latent(0, Effort::Calls, &go()).unwrap();
    let whole = Ran::of(ALL, &[]).output::<Trajectory>("context");
    assert_eq!(bits(&noise), bits(&whole.latents[0]));
    // The target's start is its context's, which would have to be drawn.
    let error = ran
        .reader("draw")
        .latent(1, Effort::Calls, &go())
        .unwrap_err();
    assert!(matches!(error, LookError::NotKept { .. }), "{error}");
}

#[test]
fn a_look_is_cancelled_and_what_takes_a_network_is_left_while_a_run_goes_on() {
    let ran = Ran::of(ALL, &[]);
    let reader = ran.reader("draw");
    let gone = Cancel::new();
    gone.cancel();
    let error = reader.attention(5, 10, Effort::Calls, &gone).unwrap_err();
    assert_eq!(error, LookError::Cancelled);
    for error in [
        reader.attention(5, 10, Effort::Kept, &go()).unwrap_err(),
        reader
            .picture(5, 0, Quality::Exact, Effort::Kept, &go())
            .unwrap_err(),
    ] {
        assert!(matches!(error, LookError::Takes(_)), "{error}");
    }
    assert_eq!(reader.calls(), 0);
    let exact = reader
        .picture(5, 1, Quality::Exact, Effort::Calls, &go())
        .unwrap();
    let quick = reader
        .picture(5, 1, Quality::Quick, Effort::Calls, &go())
        .unwrap();
    assert_eq!(exact.size(), quick.size());
    assert_ne!(bits(&exact.rgb), bits(&quick.rgb));
    assert!(
        reader
            .picture(5, 2, Quality::Quick, Effort::Calls, &go())
            .is_err()
    );
    // No sampler, no steps.
    assert!(Reader::of_node(ran.engine.clone(), ran.plan.clone(), "photo").is_none());
    assert_eq!(ran.plan.tasks().filter(|task| Reader::can(task)).count(), 3);
}

/// Moves on after so many layers.
struct MovesOn {
    after: usize,
    asked: AtomicUsize,
    calls: AtomicUsize,
}

impl Monitor for MovesOn {
    fn step(&self, _: usize, _: usize) -> retouch_diffusion::Result<()> {
        Ok(())
    }
    fn unet_calls(&self, images: usize) {
        self.calls.fetch_add(images, Ordering::Relaxed);
    }
    fn warn(&self, message: &str) {
        panic!("{message}");
    }
    fn goes_on(&self) -> retouch_diffusion::Result<()> {
        match self.asked.fetch_add(1, Ordering::Relaxed) {
            asked if asked < self.after => Ok(()),
            _ => Err(retouch_diffusion::Error::Cancelled),
        }
    }
}

#[test]
fn a_call_that_is_looked_at_ends_at_the_layer_where_the_looker_moves_on() {
    let ran = Ran::of(ALL, &[]);
    let model = ran.output::<Model>("personal");
    let context = ran.output::<Trajectory>("context");
    let z = &context.latents[3];
    let look = |after: usize| {
        let monitor = MovesOn {
            after,
            asked: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        };
        let prompted = Prompted::new(&model.checkpoint, "a teddy bear", "", &monitor);
        let (_, _, h, w) = z.dims4().unwrap();
        let sought = Sought::Map((h, w));
        let drawer = prompted.conditioned().unwrap();
        let found = sampling::look(drawer, 5.0, z, 401.0, 3, sought, &monitor);
        let (asked, calls) = (monitor.asked, monitor.calls);
        (found, asked.into_inner(), calls.into_inner())
    };
    let (found, all, calls) = look(usize::MAX);
    assert!(found.is_ok());
    // Self- and cross-attention of each of its 16 transformer layers.
    assert_eq!((all, calls), (32, 2));
    for after in [0, 1, 13, 31] {
        let (found, asked, calls) = look(after);
        let error = found.unwrap_err();
        assert!(
            matches!(error, retouch_diffusion::Error::Cancelled),
            "{error}"
        );
        assert_eq!((asked, calls), (after + 1, 0));
    }
}

#[test]
fn a_look_that_calls_a_network_waits_for_the_device_and_one_that_reads_what_is_kept_does_not() {
    let ran = Ran::of(ALL, &[]);
    let reader = ran.reader("draw");
    // The models are at hand from here on.
    let exact = |effort| reader.picture(6, 0, Quality::Exact, effort, &go());
    exact(Effort::Calls).unwrap();
    let model = ran.output::<Model>("personal");
    let latent = reader.latent(6, Effort::Kept, &go()).unwrap();
    let latent = latent.narrow(0, 0, 1).unwrap();
    let permit = ran.engine.device(&go()).unwrap();
    reader
        .picture(6, 0, Quality::Quick, Effort::Kept, &go())
        .unwrap();
    let begun = Barrier::new(2);
    std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            begun.wait();
            exact(Effort::Calls).map(drop)
        });
        begun.wait();
        // The same work, several times over, by somebody who asks for no permit: a look that did not wait would be done.
        for _ in 0..8 {
            let vae = model.checkpoint.vae().unwrap();
            vae.decode(&latent, model.checkpoint.kernel()).unwrap();
        }
        assert!(!look.is_finished());
        drop(permit);
        look.join().unwrap().unwrap();
    });
}
