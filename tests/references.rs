//! Several references in one swap: numbers made with torch (tests/oracle/make_references.py), what one reference always was,
//! and the laws of batches, of resuming and of plans.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_graph::{
    Cancel, DiskCache, Engine, HostCache, NoCache, Recorder, RunOptions, Settings, TieredCache,
};
use retouch_nodes::payload::{Mask, Masks, Trajectory, decoders};

use crate::support::{self, Bench};

/// max |difference| / std of the expected tensor, as in the oracle.
const TRAJECTORY: f32 = 5e-4;

fn data() -> PathBuf {
    support::root().join("tests/oracle/data")
}

fn numbers(t: &Tensor) -> Vec<f32> {
    let t = t.to_device(&Device::Cpu).unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let n = b.len() as f64;
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares = b
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>();
    let off = a.iter().zip(b).map(|(a, b)| {
        if a.is_finite() {
            (a - b).abs()
        } else {
            f32::INFINITY
        }
    });
    off.fold(0.0, f32::max) / (squares / (n - 1.0)).sqrt() as f32
}

/// A swap that is told `swap`, and its sampler `draw`; two inverted references of different sizes stand ready.
fn workflow(swap: &str, draw: &str) -> String {
    let data = data();
    let data = data.display();
    let mut yaml = format!(
        "schema: retouch/v1\nname: references\nparams:\n  prompt: {{type: string, default: a sks teddy bear in the snow}}\nnodes:\n\
         \x20 personal: {{op: load_model, path: '{data}/tiny-sd1', unet: '{data}/tiny-sd1-personal/unet'}}\n\
         \x20 one: {{op: load_latent, path: '{data}/tiny-sd1.safetensors', tensor: reference_latent}}\n\
         \x20 two: {{op: load_latent, path: '{data}/references.safetensors', tensor: second_latent}}\n\
         \x20 given: {{op: load_latent, path: '{data}/tiny-sd1.safetensors', tensor: given_mask}}\n\
         \x20 wide: {{op: load_latent, path: '{data}/references.safetensors', tensor: second_mask}}\n\
         \x20 outside: {{op: load_latent, path: '{data}/references.safetensors', tensor: outside_mask}}\n\
         \x20 blend: {{op: load_latent, path: '{data}/references.safetensors', tensor: blend_mask}}\n\
         \x20 photo: {{op: load_image, path: '{data}/tiny-sd1.png'}}\n\
         \x20 ones: {{op: mask, image: $photo, from: all}}\n\
         \x20 none: {{op: mask, image: $photo, from: all, invert: true}}\n\
         \x20 first: {{op: invert, model: $personal, latent: $one, steps: 8}}\n\
         \x20 second: {{op: invert, model: $personal, latent: $two, steps: 8}}\n\
         \x20 file: {{op: load_latent, path: '{data}/tiny-sd1.safetensors', tensor: personalized_only, as: trajectory}}\n\
         \x20 layout: {{op: sample, model: $personal, prompt: a sks teddy bear on a beach, steps: 8, guidance: 5, seed: 3}}\n"
    );
    if !swap.contains("context:") {
        yaml.push_str("  swap: {op: swap_attention, context: $layout.trajectory, ");
    } else {
        yaml.push_str("  swap: {op: swap_attention, ");
    }
    writeln!(yaml, "{swap}}}").unwrap();
    writeln!(
        yaml,
        "  draw: {{op: sample, model: $personal, prompt: a sks teddy bear on a beach, control: $swap, guidance: 5{draw}}}"
    )
    .unwrap();
    yaml + "outputs:\n  out: {value: $draw.trajectory}\n  masks: {value: $draw.masks}\n"
}

/// Two references, each with its own prompt, the masks computed.
const BOTH: &str = "reference: [$first.trajectory, $second.trajectory], \
    reference_prompt: [a photo of a sks teddy bear, '{prompt}'], subject: teddy bear";
const ONE: &str = "reference: $first.trajectory, reference_prompt: a photo of a sks teddy bear, subject: teddy bear";

struct Run {
    calls: u64,
    foretold: u64,
    out: Vec<f32>,
    masks: Tensor,
    resumed: Vec<(String, usize)>,
}

impl Run {
    fn bits(&self) -> Vec<u32> {
        let masks = numbers(&self.masks);
        self.out.iter().chain(&masks).map(|x| x.to_bits()).collect()
    }
}

fn engine() -> Engine {
    Bench::new()
        .engine
        .with_cache(Arc::new(HostCache::new(4 << 30)))
}

fn run(engine: &Engine, yaml: &str, set: &[&str]) -> Run {
    let settings = Settings {
        set: set.iter().map(|&s| s.to_owned()).collect(),
        ..Settings::default()
    };
    let checked = match engine.load_str("test.yaml", yaml, &settings) {
        Ok(checked) => checked,
        Err(problems) => panic!("{problems}\n{yaml}"),
    };
    let plan = engine.plan(&checked, &[]).unwrap();
    let foretold = engine.forecast(&plan).total_calls();
    let recorder = Recorder::new();
    let report = engine
        .run(&plan, &recorder, &Cancel::new(), &RunOptions::default())
        .unwrap();
    let value = |name: &str| {
        let output = report.outputs.iter().find(|o| o.name == name).unwrap();
        output.value.clone()
    };
    let trajectory = value("out").downcast::<Trajectory>().unwrap();
    Run {
        calls: report.counters.get("unet_calls").copied().unwrap_or(0),
        foretold,
        out: trajectory.latents.iter().flat_map(numbers).collect(),
        masks: value("masks").downcast::<Masks>().unwrap().tensor.clone(),
        resumed: recorder.resumed(),
    }
}

#[test]
fn two_references_of_different_sizes_are_attended_to_as_torch_does() {
    let file = data().join("references.safetensors");
    let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let engine = engine();
    for (name, masks) in [
        ("retouch", "[$given.mask, $wide.mask]"),
        ("retouch.second_masked_out", "[$outside.mask, $none]"),
    ] {
        let yaml = workflow(
            &format!(
                "{BOTH}, context: $file.trajectory, context_prompt: a sks teddy bear on a beach, reference_mask: {masks}, \
                 blend_mask: $blend.mask, sites: 10..16, start_step: 0, from_step: 1, structure_until: 4"
            ),
            "",
        );
        let run = run(&engine, &yaml, &[]);
        let off = distance(&run.out, &numbers(&expected[name]));
        println!("{name}: {off:.1e}");
        assert!(off <= TRAJECTORY, "{name}: {off:.1e}");
        assert_eq!(run.calls, run.foretold);
    }
}

#[test]
fn a_list_of_one_reference_is_that_reference_and_costs_nothing_again() {
    let engine = engine();
    let alone = run(&engine, &workflow(ONE, ""), &[]);
    let list = "reference: [$first.trajectory], reference_prompt: [a photo of a sks teddy bear], subject: teddy bear, \
                reference_subject: [teddy bear]";
    let listed = run(&engine, &workflow(list, ""), &[]);
    assert_eq!((alone.calls, alone.foretold), (alone.foretold, alone.calls));
    assert_eq!((listed.calls, listed.foretold), (0, 0));
    assert!(alone.bits() == listed.bits());
    assert_eq!(alone.masks.dim(1).unwrap(), 3);
}

#[test]
fn a_reference_given_twice_changes_nothing_and_is_called_for_once() {
    let twice = "reference: [$first.trajectory, $first.trajectory], reference_prompt: a photo of a sks teddy bear, subject: teddy bear";
    let with_mask = |swap: &str| format!("{swap}, reference_mask: $ones");
    for sources in [4 << 30, 0] {
        let engine = || {
            Bench::new()
                .engine
                .with_cache(Arc::new(HostCache::new(4 << 30)))
                .with_sources(sources)
        };
        let alone = run(&engine(), &workflow(&with_mask(ONE), ""), &[]);
        let both = run(&engine(), &workflow(&with_mask(twice), ""), &[]);
        assert_eq!(both.calls, both.foretold, "{sources}");
        assert_eq!(both.calls, alone.calls, "{sources}");
        // The mask of the blend may tip on the last bit, so it is compared as a picture.
        let off = distance(&both.out, &alone.out);
        assert!(off <= TRAJECTORY, "{off:.1e}");
        assert_eq!(both.masks.dim(1).unwrap(), 4);
    }
    // Without a cache too.
    let none = Bench::new().engine.with_cache(Arc::new(NoCache));
    let both = run(&none, &workflow(&with_mask(twice), ""), &[]);
    assert_eq!(both.calls, both.foretold);
}

#[test]
fn a_reference_whose_mask_leaves_nothing_is_as_if_it_were_not_there() {
    let engine = engine();
    let blend = "blend_mask: $ones, reference_mask";
    let alone = run(
        &engine,
        &workflow(&format!("{ONE}, {blend}: $given.mask"), ""),
        &[],
    );
    let masks = "[$given.mask, $none]";
    let both = run(
        &engine,
        &workflow(&format!("{BOTH}, {blend}: {masks}"), ""),
        &[],
    );
    assert_eq!(both.calls, both.foretold);
    let bits = |run: &Run| run.out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&alone) == bits(&both));
    let other = run(
        &engine,
        &workflow(&format!("{BOTH}, {blend}: [$none, $wide.mask]"), ""),
        &[],
    );
    assert!(bits(&other) != bits(&both));
}

#[test]
fn what_is_resumed_equals_a_fresh_run_and_the_plan_foretells_its_calls() {
    let fresh = Bench::new().engine.with_cache(Arc::new(NoCache));
    let folder = tempfile::tempdir().unwrap();
    let from_disk = || {
        let disk = DiskCache::open(folder.path(), 1 << 30, decoders()).unwrap();
        Bench::new()
            .engine
            .with_cache(Arc::new(TieredCache::new(0, 1 << 30, Some(disk), None)))
    };
    let cold = run(&from_disk(), &workflow(BOTH, ""), &[]);
    assert_eq!(cold.calls, cold.foretold);
    // Two inversions, the layout (two halves), and of six swapped steps both references and the target in two halves each.
    assert_eq!(cold.calls, 8 + 8 + 16 + 6 * 6);
    let edits: [(&str, &str, Option<usize>); 5] = [
        ("values: matched", "", None),
        ("values: matched, blend_mask: $ones", "", None),
        ("structure_until: 5", "", Some(3)),
        ("", "prompt=a big sks teddy bear in the rain", None),
        ("threshold: 0.4", "", None),
    ];
    for (more, set, resumes) in edits {
        let more_of = if more.is_empty() {
            String::new()
        } else {
            format!(", {more}")
        };
        let yaml = workflow(&format!("{BOTH}{more_of}"), "");
        let set: Vec<&str> = [set].into_iter().filter(|s| !s.is_empty()).collect();
        let resumed = run(&from_disk(), &yaml, &set);
        let expected = run(&fresh, &yaml, &set);
        assert_eq!(resumed.calls, resumed.foretold, "{more}");
        assert_eq!(expected.calls, expected.foretold, "{more}");
        assert!(resumed.calls < expected.calls, "{more}");
        assert!(resumed.bits() == expected.bits(), "{more}");
        let due: Vec<_> = resumes
            .map(|k| ("draw".to_owned(), k))
            .into_iter()
            .collect();
        assert_eq!(resumed.resumed, due, "{more}");
    }
}

#[test]
fn an_image_of_a_batch_equals_the_single_one_bit_for_bit() {
    let engine = engine();
    for values in ["attended", "matched"] {
        in_a_batch_of_two(&engine, &format!("{BOTH}, values: {values}"));
    }
}

fn in_a_batch_of_two(engine: &Engine, swap: &str) {
    let of = |seed: u64, batch: &str| {
        let yaml = workflow(swap, "").replace("seed: 3", &format!("seed: {seed}{batch}"));
        run(engine, &yaml, &[])
    };
    let (both, first, second) = (of(3, ", batch: 2"), of(3, ""), of(4, ""));
    let image = first.out.len() / 9;
    for k in 0..9 {
        let of = |run: &Run, index: usize, images: usize| {
            let start = (k * images + index) * image;
            run.out[start..][..image]
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>()
        };
        assert!(of(&both, 0, 2) == of(&first, 0, 1), "{k}");
        assert!(of(&both, 1, 2) == of(&second, 0, 1), "{k}");
    }
    assert_eq!(both.masks.dims()[..3], [6, 4, 2]);
}

#[test]
fn the_masks_have_a_plane_for_each_reference_and_can_be_used_again() {
    let bench = Bench::new();
    let plane = |plane: &str| {
        let yaml = workflow(BOTH, "") + "  mask: {value: $look.mask}\n";
        let look =
            format!("  look: {{op: mask_image, masks: $draw.masks, step: 2, plane: {plane}}}\n");
        let yaml = yaml.replace("outputs:", &format!("{look}outputs:"));
        let values = bench.run(&yaml);
        let masks = values["masks"].downcast::<Masks>().unwrap();
        let mask = values["mask"].downcast::<Mask>().unwrap();
        (numbers(&mask.plane), masks.tensor.get(2).unwrap())
    };
    for (name, index) in [
        ("reference", 0),
        ("reference, reference: 1", 1),
        ("context", 2),
        ("blend", 3),
    ] {
        let (mask, all) = plane(name);
        assert_eq!(mask, numbers(&all.get(index).unwrap()), "{name}");
    }
    let again = workflow(BOTH, "")
        .replace(
            "outputs:",
            &format!(
                "  swap2: {{op: swap_attention, context: $layout.trajectory, {BOTH}, reference_mask: $draw.masks, blend_mask: $draw.masks}}\n\
                 \x20 draw2: {{op: sample, model: $personal, prompt: a sks teddy bear on a beach, control: $swap2, guidance: 5}}\noutputs:\n\
                 \x20 again: {{value: $draw2.masks}}"
            ),
        );
    let values = bench.run(&again);
    let of = |name: &str| values[name].downcast::<Masks>().unwrap().tensor.clone();
    let (first, second) = (of("masks"), of("again"));
    for plane in [0, 3] {
        for step in 0..6 {
            let take = |t: &Tensor| numbers(&t.get(step).unwrap().get(plane).unwrap());
            assert_eq!(take(&first), take(&second), "{step} {plane}");
        }
    }
}

#[test]
fn lists_that_do_not_fit_are_refused_at_their_place() {
    let engine = Bench::new().engine;
    let both = "reference: [$first.trajectory, $second.trajectory]";
    let three = "[a teddy bear, a teddy bear, a teddy bear]";
    let short = "reference: [$first.trajectory, $layout.trajectory]";
    for (swap, due) in [
        (
            format!("{both}, reference_prompt: {three}, subject: teddy bear"),
            "`reference_prompt` has 3 entries for 2 references",
        ),
        (
            format!(
                "{both}, reference_prompt: a teddy bear, subject: teddy bear, reference_subject: [a, teddy, bear]"
            ),
            "`reference_subject` has 3 entries",
        ),
        (
            format!(
                "{both}, reference_prompt: a teddy bear, subject: teddy bear, reference_mask: [$ones, $ones, $ones]"
            ),
            "`reference_mask` has 3 entries",
        ),
        (
            format!("{both}, reference_prompt: [a teddy bear, a cat], subject: teddy bear"),
            "the subject \"teddy bear\" is not in the prompt of reference 2 of 2",
        ),
        (
            format!("{short}, reference_prompt: a teddy bear, subject: teddy bear"),
            "reference 2 of 2 was drawn with euler",
        ),
        (
            "reference: [], reference_prompt: a teddy bear, subject: teddy bear".to_owned(),
            "`reference`",
        ),
        (
            "reference_prompt: a teddy bear, subject: teddy bear".to_owned(),
            "`reference`",
        ),
        (
            format!("{both}, reference_prompt: [], subject: teddy bear"),
            "an empty list",
        ),
    ] {
        let yaml = workflow(&swap, "").replace(
            "  layout: {op: sample,",
            if swap.contains("$layout") {
                "  other: {op: sample, model: $personal, prompt: x, steps: 8, seed: 1, scheduler: euler}\n  layout: {op: sample,"
            } else {
                "  layout: {op: sample,"
            },
        );
        let yaml = yaml.replace(", $layout.trajectory]", ", $other.trajectory]");
        let Err(problems) = engine.load_str("test.yaml", &yaml, &Settings::default()) else {
            panic!("{swap}");
        };
        let found: Vec<String> = problems.iter().map(|p| p.message().to_owned()).collect();
        assert!(
            found.iter().any(|message| message.contains(due)),
            "{swap}: {found:?}"
        );
    }
}
