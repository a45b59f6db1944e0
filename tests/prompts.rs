//! How prompts are read, through the public ops: the syntax of the AUTOMATIC1111 web UI, long prompts in chunks, clip skip.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_graph::{Cancel, Engine, HostCache, Recorder, RunOptions, Settings, Value};
use retouch_nodes::Runtime;
use retouch_nodes::payload::{Latent, Masks, Trajectory};

use crate::support::{self, Bench};

fn flat(t: &Tensor) -> Vec<f32> {
    let t = t.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
    t.to_vec1().unwrap()
}

fn latent(values: &BTreeMap<String, Value>, name: &str) -> Vec<f32> {
    flat(&values[name].downcast::<Latent>().unwrap().tensor)
}

/// One picture of each: how the model reads, the prompt, the negative prompt.
fn pictures(each: &[(&str, &str, &str)], extra: &str) -> Vec<Vec<f32>> {
    let data = support::root().join("tests/oracle/data/tiny-sd1");
    let data = data.display();
    let mut yaml = "schema: retouch/v1\nname: prompts\nnodes:\n".to_owned();
    let mut outputs = "outputs:\n".to_owned();
    for (i, (reading, prompt, negative)) in each.iter().enumerate() {
        yaml += &format!(
            "  model{i}: {{op: load_model, path: '{data}'{reading}}}\n\
             \x20 draw{i}: {{op: sample, model: $model{i}, prompt: '{prompt}', negative: '{negative}', steps: 2, guidance: 5, seed: 3{extra}}}\n"
        );
        outputs += &format!("  out{i}: {{value: $draw{i}}}\n");
    }
    let values = Bench::new().run(&(yaml + &outputs));
    (0..each.len())
        .map(|i| latent(&values, &format!("out{i}")))
        .collect()
}

const A1111: &str = ", syntax: a1111";
const CHUNKS: &str = ", long_prompts: chunks";

#[test]
fn brackets_weigh_only_in_the_syntax_that_has_them_and_every_setting_has_an_effect() {
    let long = "a photo of a teddy bear on a beach, ".repeat(12);
    let (plain, weighed) = ("a teddy bear, red", "a (teddy bear:1.5), red");
    let given = pictures(
        &[
            ("", plain, "car"),
            (A1111, plain, "car"),
            (A1111, weighed, "car"),
            ("", weighed, "car"),
            (", clip_skip: 1", plain, "car"),
            (", clip_skip: 2", plain, "car"),
            ("", &long, "car"),
            (CHUNKS, &long, "car"),
            (", syntax: a1111, long_prompts: truncate", &long, "car"),
        ],
        "",
    );
    let same = |a: usize, b: usize| given[a] == given[b];
    assert!(same(0, 1), "without brackets the syntaxes are one");
    assert!(!same(1, 2) && !same(2, 3) && !same(0, 3));
    assert!(same(0, 4) && !same(0, 5));
    assert!(!same(6, 7) && same(6, 8));
}

#[test]
fn prompt_and_negative_are_given_equally_many_tokens_in_whichever_of_them_more_are() {
    let long = "a photo of a teddy bear on a beach, ".repeat(12);
    let given = pictures(
        &[
            (CHUNKS, &long, ""),
            (CHUNKS, "", &long),
            (CHUNKS, "a bear", ""),
            (A1111, &long, ""),
        ],
        "",
    );
    assert!(given.iter().flatten().all(|x| x.is_finite()));
    assert_ne!(given[0], given[1]);
    assert_ne!(given[1], given[2]);
    assert_eq!(given[0], given[3]);
    // Image i of a batch is the image alone.
    let batch = pictures(&[(CHUNKS, &long, "")], ", batch: 2");
    assert_eq!(batch[0][..given[0].len()], given[0]);
}

/// The main job with a long prompt, whose subject is cut in two by the end of the first chunk.
fn job(smooth: usize) -> String {
    let data = support::root().join("tests/oracle/data");
    let data = data.display();
    let words = "a ".repeat(74);
    format!(
        "schema: retouch/v1\nname: job\nnodes:\n\
         \x20 base: {{op: load_model, path: '{data}/tiny-sd1', syntax: a1111}}\n\
         \x20 personal: {{op: load_model, path: '{data}/tiny-sd1', unet: '{data}/tiny-sd1-personal/unet', syntax: a1111}}\n\
         \x20 photo: {{op: load_image, path: '{data}/tiny-sd1.png'}}\n\
         \x20 reference: {{op: encode_reference, model: $personal, image: $photo}}\n\
         \x20 inverted: {{op: invert, model: $personal, latent: $reference, steps: 4}}\n\
         \x20 layout: {{op: step_blend_sample, vanilla: $base, personalized: $personal, vanilla_prompt: 'a [teddy] bear', \
         personalized_prompt: '{words}(teddy:1.2) bear', blend_steps: 1, steps: 4, guidance: 5, seed: 1}}\n\
         \x20 swap: {{op: swap_attention, vanilla: $base, context: $layout.trajectory, reference: $inverted.trajectory, \
         reference_prompt: 'a photo of a sks (teddy:1.1) bear', subject: teddy bear, smooth: {smooth}}}\n\
         \x20 draw: {{op: sample, model: $personal, prompt: '{words}(teddy:1.2) bear', control: $swap, guidance: 5}}\n\
         outputs:\n  out: {{value: $draw.trajectory}}\n  masks: {{value: $draw.masks}}\n"
    )
}

fn bits(values: &BTreeMap<String, Value>) -> (Vec<f32>, Vec<f32>) {
    let latents = &values["out"].downcast::<Trajectory>().unwrap().latents;
    let masks = values["masks"].downcast::<Masks>().unwrap();
    (flat(&Tensor::cat(latents, 0).unwrap()), flat(&masks.tensor))
}

#[test]
fn a_retouch_by_long_prompts_that_goes_on_from_what_is_kept_equals_a_fresh_one() {
    let fresh = bits(&Bench::new().run(&job(2)));
    assert!(fresh.1.contains(&1.0) && fresh.1.contains(&0.0));
    let runtime = Runtime::by_name("cpu").unwrap();
    let numerics = runtime.numerics();
    let cache = HostCache::new(1 << 30);
    let engine = Engine::new(retouch_nodes::registry())
        .with_environment(Arc::new(runtime))
        .with_numerics(numerics)
        .with_cache(Arc::new(cache));
    let run = |yaml: &str| {
        let checked = engine.load_str("job.yaml", yaml, &Settings::default());
        let plan = engine.plan(&checked.unwrap(), &[]).unwrap();
        let options = RunOptions::default();
        let report = engine.run(&plan, &Recorder::new(), &Cancel::new(), &options);
        let outputs = report.unwrap().outputs.into_iter();
        let values: BTreeMap<String, Value> = outputs.map(|o| (o.name, o.value)).collect();
        bits(&values)
    };
    let first = run(&job(0));
    assert_ne!(first, fresh);
    assert_eq!(run(&job(2)), fresh);
}

#[test]
fn a_weight_that_is_no_number_is_reported_where_it_stands_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let data = support::root().join("tests/oracle/data/tiny-sd1");
    let workflow = |reading: &str, prompt: &str, negative: &str| {
        format!(
            "schema: retouch/v1\nname: x\nnodes:\n  model:\n    op: load_model\n    path: '{}'\n{reading}\
             \x20 draw:\n    op: sample\n    model: $model\n    prompt: '{prompt}'\n    negative: '{negative}'\n    steps: 2\n    seed: 1\n\
             outputs:\n  out: {{value: $draw}}\n",
            data.display()
        )
    };
    for (reading, prompt, negative, expected) in [
        (
            "    syntax: a1111\n",
            "a (b:1.2.3) c",
            "",
            vec!["x.yaml:11:", "the weight \"1.2.3\" is not a number"],
        ),
        (
            "    syntax: a1111\n",
            "a",
            "[cat:dog:0.5]",
            vec!["x.yaml:12:", "prompt editing"],
        ),
        (
            "    clip_skip: 4\n",
            "a",
            "",
            vec!["x.yaml:7:", "text encoder has 3 layers"],
        ),
        (
            "    clip_skip: 0\n",
            "a",
            "",
            vec!["x.yaml:7:", "must be 1 or greater"],
        ),
        (
            "    syntax: weighted\n",
            "a",
            "",
            vec!["x.yaml:7:", "a1111"],
        ),
    ] {
        std::fs::write(
            folder.path().join("x.yaml"),
            workflow(reading, prompt, negative),
        )
        .unwrap();
        let output = support::retouch(folder.path(), &["check", "x.yaml"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in expected {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
    std::fs::write(
        folder.path().join("x.yaml"),
        workflow("", "a (b:1.2.3) c", ""),
    )
    .unwrap();
    let output = support::retouch(folder.path(), &["check", "x.yaml"]);
    assert!(output.status.success());
}

/// A model, and a node that reads prompts, each param on a line of its own: the first of the node on line 9.
fn reading(more: &str, node: &str) -> String {
    let data = support::root().join("tests/oracle/data/tiny-sd1");
    format!(
        "schema: retouch/v1\nname: x\nnodes:\n  model: {{op: load_model, path: '{}'{more}}}\n\
         \x20 picture: {{op: load_image, path: '{}.png'}}\n\
         \x20 latent: {{op: encode_reference, model: $model, image: $picture}}\n\
         \x20 draw:\n    steps: 2\n{node}outputs:\n  out: {{value: $draw}}\n  latent: {{value: $latent}}\n",
        data.display(),
        data.display()
    )
}

/// What a command says of a workflow that is sound, in one line.
fn told(command: &str, yaml: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.yaml"), yaml).unwrap();
    let output = support::retouch(folder.path(), &[command, "x.yaml"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text.split_whitespace()
        .filter(|word| !["│", "|"].contains(word))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_prompt_that_does_not_fit_is_a_warning_where_it_is_written_before_anything_runs() {
    let (fits, long) = ("a ".repeat(75), "a ".repeat(75) + "b c");
    let sample = |prompt: &str, negative: &str| {
        format!(
            "    prompt: '{prompt}'\n    negative: '{negative}'\n    op: sample\n    model: $model\n    seed: 1\n"
        )
    };
    let cut = "the last 2 tokens of the prompt do not fit the text encoder, which takes 75, and are left out: \"b c\"";
    for (node, places) in [
        (sample(&long, ""), vec!["x.yaml:9:"]),
        (sample("", &long), vec!["x.yaml:10:"]),
        (sample(&long, &long), vec!["x.yaml:9:", "x.yaml:10:"]),
        (
            format!(
                "    prompt: '{long}'\n    op: invert\n    model: $model\n    latent: $latent\n"
            ),
            vec!["x.yaml:9:"],
        ),
        (
            format!(
                "    vanilla_prompt: '{long}'\n    personalized_prompt: '{long}'\n    negative: '{long}'\n    op: step_blend_sample\n\
                 \x20   blend_steps: 1\n    vanilla: $model\n    personalized: $model\n    seed: 1\n"
            ),
            vec!["x.yaml:9:", "x.yaml:10:", "x.yaml:11:"],
        ),
        (
            // The vanilla model draws nothing, and so reads nothing.
            format!(
                "    vanilla_prompt: '{long}'\n    personalized_prompt: '{long}'\n    op: step_blend_sample\n\
                 \x20   blend_steps: 0\n    vanilla: $model\n    personalized: $model\n    seed: 1\n"
            ),
            vec!["x.yaml:10:"],
        ),
    ] {
        let yaml = reading("", &node);
        let text = told("check", &yaml);
        assert_eq!(text.matches("R0703").count(), places.len(), "{text}");
        assert_eq!(text.matches(cut).count(), places.len(), "{text}");
        assert!(text.contains("long_prompts: chunks"), "{text}");
        for place in places {
            assert!(text.contains(place), "{place} is not in {text}");
        }
        assert_eq!(
            told("plan", &yaml).matches(cut).count(),
            text.matches(cut).count()
        );
    }
    // All of it is read in these.
    for (more, prompt) in [
        ("", &fits),
        (A1111, &long),
        (CHUNKS, &long),
        (A1111, &long.repeat(9)),
    ] {
        let text = told("check", &reading(more, &sample(prompt, prompt)));
        assert!(!text.contains("R0703"), "{text}");
    }
    // A bracket is no token, and what follows a break is cut.
    let first = ", syntax: a1111, long_prompts: truncate";
    let text = told(
        "check",
        &reading(first, &sample("a (b) BREAK c d e", &fits)),
    );
    assert!(text.contains("the last 3 tokens of the prompt"), "{text}");
    assert_eq!(text.matches("R0703").count(), 1, "{text}");
}

#[test]
fn what_is_read_as_text_is_a_warning_where_it_is_written_before_anything_runs() {
    let node = "    prompt: 'a (red:1.4) cat'\n    negative: '<lora:style:0.8>'\n    op: sample\n    model: $model\n    seed: 1\n";
    let text = told("check", &reading("", node));
    assert_eq!(text.matches("R0703").count(), 2, "{text}");
    for part in [
        "x.yaml:9:",
        "\"(red:1.4)\" is read as text",
        "x.yaml:10:",
        "`op: apply_lora` with `weight: 0.8`",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // There weights are read, and tags are text all the same.
    let text = told("check", &reading(A1111, node));
    assert_eq!(text.matches("R0703").count(), 1, "{text}");
    assert!(text.contains("x.yaml:10:"), "{text}");
}

#[test]
fn the_prompts_of_a_control_are_counted_by_the_model_that_reads_them() {
    let long = "a ".repeat(74) + "teddy bear";
    let yaml = job(1)
        .replace(", syntax: a1111", "")
        .replace("a photo of a sks (teddy:1.1) bear", &long)
        .replace("(teddy:1.2)", "teddy")
        .replace("a [teddy] bear", "a teddy bear")
        .replace(&("a ".repeat(74) + "teddy bear', b"), "a teddy bear', b")
        .replace(
            &format!("prompt: '{long}', control"),
            "prompt: 'a teddy bear', control",
        );
    let text = told("check", &yaml);
    assert_eq!(text.matches("R0703").count(), 1, "{text}");
    assert!(
        text.contains("`reference_prompt` of the control: the last"),
        "{text}"
    );
    assert!(text.contains("x.yaml:11:"), "{text}");
}

#[test]
fn a_learned_token_counts_as_its_vectors() {
    let data = support::root().join("tests/oracle/data/micro");
    let yaml = |words: usize| {
        format!(
            "schema: retouch/v1\nname: x\nnodes:\n  base: {{op: load_model, path: '{data}/sd1'}}\n\
             \x20 model: {{op: apply_textual_inversion, model: $base, path: '{data}/adapters/sd1-ti-three.safetensors', token: <cat>}}\n\
             \x20 draw: {{op: sample, model: $model, prompt: '{}<cat>', steps: 2, seed: 1}}\n\
             outputs:\n  out: {{value: $draw}}\n",
            "a ".repeat(words),
            data = data.display(),
        )
    };
    let text = told("check", &yaml(72));
    assert!(!text.contains("R0703"), "{text}");
    let text = told("check", &yaml(73));
    assert!(
        text.contains("the last 1 token of the prompt does not fit"),
        "{text}"
    );
    assert!(text.contains("is left out: \"<cat>\""), "{text}");
}
