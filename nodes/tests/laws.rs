//! The laws of the method (docs/method.md), on the random models of the oracle.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use retouch_nodes::latent::Invert;
use retouch_nodes::payload::{Latent, Model, Trajectory};
use serde_json::json;

use crate::support::{
    FAMILIES, Picture, Sources, Stage, TRAJECTORY, assert_close, bits, distance, expected, node,
};

const VANILLA: &str = "a teddy bear on a beach";
const PERSONAL: &str = "a sks teddy bear on a beach";
const REFERENCE: &str = "a photo of a sks teddy bear";

fn invert(
    stage: &Stage,
    model: &Arc<Model>,
    latent: &Tensor,
    steps: usize,
    prompt: &str,
) -> Arc<Trajectory> {
    let inputs = retouch_nodes::latent::invert::Inputs {
        model: model.clone(),
        latent: Arc::new(Latent {
            tensor: latent.clone(),
        }),
    };
    let invert: Invert = node(json!({"steps": steps, "prompt": prompt}));
    stage.run(&invert, inputs).unwrap().trajectory
}

fn layout(stage: &Stage, family: &str, blend_steps: serde_json::Value, noise: &Tensor) -> Picture {
    let (vanilla, personal) = (stage.model(family, false), stage.model(family, true));
    let parameters = json!({
        "vanilla_prompt": VANILLA, "personalized_prompt": PERSONAL,
        "blend_steps": blend_steps, "steps": 8, "guidance": 5.0,
    });
    stage.blend(parameters, &vanilla, &personal, Some(noise))
}

fn ones(h: usize, w: usize) -> Tensor {
    Tensor::ones((h, w), DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn law_1_blend_steps_0_is_personalised_and_t_is_vanilla_sampling_bitwise() {
    for family in FAMILIES {
        let stage = Stage::default();
        let noise = &expected(family)["noise"];
        for (blend, personal, prompt) in [
            (json!(0), true, PERSONAL),
            (json!(8), false, VANILLA),
            (json!("100%"), false, VANILLA),
        ] {
            let blended = layout(&stage, family, blend, noise);
            let model = stage.model(family, personal);
            let plain = stage
                .sample(
                    json!({"prompt": prompt, "steps": 8, "guidance": 5.0}),
                    &model,
                    None,
                    Some(noise),
                )
                .unwrap();
            assert_eq!(
                bits(&blended.tensor()),
                bits(&plain.tensor()),
                "{family} {prompt}"
            );
        }
    }
}

#[test]
fn law_2_a_swap_that_takes_everything_from_the_context_gives_the_context_bitwise() {
    for family in FAMILIES {
        let stage = Stage::default();
        let t = expected(family);
        let personal = stage.model(family, true);
        let context = layout(&stage, family, json!(0), &t["noise"]);
        let reference = invert(&stage, &personal, &t["reference_latent"], 8, "");
        let mut sources = Sources::new(&context, &reference);
        sources.blend_mask = Some(Tensor::zeros((16, 16), DType::F32, &Device::Cpu).unwrap());
        sources.reference_mask = Some(ones(16, 16));
        for values in ["attended", "matched"] {
            let control = stage.swap(json!({"reference_prompt": REFERENCE, "sites": "all", "start_step": 0, "from_step": 0, "structure_until": 8, "values": values}), sources.clone());
            let target = stage
                .sample(
                    json!({"prompt": PERSONAL, "guidance": 5.0}),
                    &personal,
                    Some(control),
                    None,
                )
                .unwrap();
            assert_eq!(
                bits(&target.tensor()),
                bits(&context.tensor()),
                "{family}, {values}"
            );
        }
    }
}

#[test]
fn law_3_with_a_full_blend_mask_it_is_masactrl() {
    for family in FAMILIES {
        let stage = Stage::default();
        let t = expected(family);
        let personal = stage.model(family, true);
        let context = layout(&stage, family, json!(0), &t["noise"]);
        let reference = invert(&stage, &personal, &t["reference_latent"], 8, "");
        let mut sources = Sources::new(&context, &reference);
        sources.blend_mask = Some(ones(16, 16));
        sources.reference_mask = Some(ones(16, 16));
        let control = stage.swap(json!({"reference_prompt": REFERENCE, "sites": "10..16", "start_step": 0, "from_step": 4, "structure_until": 0, "lock": false}), sources);
        stage.take_calls();
        let target = stage
            .sample(
                json!({"prompt": PERSONAL, "guidance": 5.0}),
                &personal,
                Some(control),
                None,
            )
            .unwrap();
        assert_close(
            &format!("{family} masactrl"),
            &target.tensor(),
            &t["masactrl"],
            TRAJECTORY,
        );
        // The context is neither looked at nor run: 8 steps of the target and 4 of the reference, two halves each.
        assert_eq!(stage.take_calls(), 24);
    }
}

#[test]
fn law_3_starting_at_the_end_gives_the_context_bitwise_without_a_call() {
    let stage = Stage::default();
    let t = expected("tiny-sd1");
    let personal = stage.model("tiny-sd1", true);
    let context = layout(&stage, "tiny-sd1", json!(3), &t["noise"]);
    let reference = invert(&stage, &personal, &t["reference_latent"], 8, "");
    let control = stage.swap(
        json!({"reference_prompt": REFERENCE, "subject": "teddy bear", "start_step": "100%"}),
        Sources::new(&context, &reference),
    );
    stage.take_calls();
    let target = stage
        .sample(
            json!({"prompt": PERSONAL, "guidance": 5.0}),
            &personal,
            Some(control),
            None,
        )
        .unwrap();
    assert_eq!(bits(&target.tensor()), bits(&context.tensor()));
    assert_eq!(stage.take_calls(), 0);
    assert!(target.masks.is_none());
    let warnings = stage.warnings.lock().unwrap();
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("no site and step to act on")),
        "{warnings:?}"
    );
}

#[test]
fn law_4_equal_branches_make_the_swap_change_nothing() {
    for family in FAMILIES {
        let stage = Stage::default();
        let t = expected(family);
        let personal = stage.model(family, true);
        let context = layout(&stage, family, json!(0), &t["noise"]);
        let mut sources = Sources::new(&context, &context.trajectory);
        sources.reference_mask = Some(ones(16, 16));
        for values in ["attended", "matched"] {
            let control = stage.swap(
                json!({"reference_prompt": PERSONAL, "subject": "teddy bear", "sites": "all", "start_step": 0, "from_step": 0, "values": values}),
                sources.clone(),
            );
            let target = stage
                .sample(
                    json!({"prompt": PERSONAL, "guidance": 5.0}),
                    &personal,
                    Some(control),
                    None,
                )
                .unwrap();
            assert_close(
                &format!("{family} law 4, {values}"),
                &target.tensor(),
                &context.tensor(),
                1e-5,
            );
        }
    }
}

#[test]
fn law_5_the_replay_error_of_an_inversion_falls_as_steps_grow() {
    let stage = Stage::default();
    let t = expected("tiny-sd2");
    let personal = stage.model("tiny-sd2", true);
    let mut errors = Vec::new();
    for steps in [5, 20, 80] {
        let inputs = retouch_nodes::latent::invert::Inputs {
            model: personal.clone(),
            latent: Arc::new(Latent {
                tensor: t["reference_latent"].clone(),
            }),
        };
        let invert: Invert = node(json!({"steps": steps, "measure": true}));
        stage.take_calls();
        let report = stage.run(&invert, inputs).unwrap().report.unwrap();
        assert_eq!(stage.take_calls(), 2 * steps);
        let column = report
            .columns
            .iter()
            .position(|c| c == "latent_error")
            .unwrap();
        errors.push(report.rows[0][column].as_f64().unwrap());
    }
    println!("replay errors: {errors:?}");
    assert!(errors.windows(2).all(|e| e[1] < e[0]), "{errors:?}");
}

#[test]
fn law_6_an_image_of_a_batch_equals_the_single_image_with_its_own_seed_bitwise() {
    for family in FAMILIES {
        let stage = Stage::default();
        let t = expected(family);
        let (vanilla, personal) = (stage.model(family, false), stage.model(family, true));
        let reference = invert(&stage, &personal, &t["reference_latent"], 4, "");
        let draw = |seed: u64, batch: usize, values: &str| {
            let context = stage.blend(
                json!({"vanilla_prompt": VANILLA, "personalized_prompt": PERSONAL, "blend_steps": 1, "steps": 4, "seed": seed, "batch": batch, "width": 144, "height": 112}),
                &vanilla, &personal, None,
            );
            let mut sources = Sources::new(&context, &reference);
            sources.vanilla = Some(vanilla.clone());
            let control = stage.swap(json!({"reference_prompt": REFERENCE, "subject": "teddy bear", "start_step": 0, "from_step": 1, "values": values}), sources);
            stage
                .sample(json!({"prompt": PERSONAL}), &personal, Some(control), None)
                .unwrap()
        };
        let mut made = Vec::new();
        for (i, values) in (0..3).flat_map(|i| [(i, "attended"), (i, "matched")]) {
            if i == 0 {
                made.push(draw(7, 3, values));
            }
            let batch = &made[usize::from(values == "matched")];
            let single = draw(7 + i as u64, 1, values);
            for (k, (a, b)) in batch
                .trajectory
                .latents
                .iter()
                .zip(&single.trajectory.latents)
                .enumerate()
            {
                assert_eq!(
                    bits(&a.narrow(0, i, 1).unwrap()),
                    bits(b),
                    "{family} image {i} step {k}"
                );
            }
            let masks = &batch.masks.as_ref().unwrap().tensor;
            assert_eq!(
                bits(&masks.narrow(2, i, 1).unwrap()),
                bits(&single.masks.unwrap().tensor),
                "{family} masks of {i}"
            );
        }
    }
}

#[test]
fn a_context_drawn_by_a_stranger_is_refused_before_any_call() {
    let stage = Stage::default();
    let t = expected("tiny-sd1");
    let personal = stage.model("tiny-sd1", true);
    let context = layout(&stage, "tiny-sd1", json!(3), &t["noise"]);
    let reference = invert(&stage, &personal, &t["reference_latent"], 8, "");
    let control = stage.swap(
        json!({"reference_prompt": REFERENCE, "subject": "teddy bear", "start_step": 0}),
        Sources::new(&context, &reference),
    );
    stage.take_calls();
    let Err(error) = stage.sample(json!({"prompt": PERSONAL}), &personal, Some(control), None)
    else {
        panic!("the vanilla model is not linked");
    };
    assert!(
        error.to_string().contains("step 0 of the context"),
        "{error}"
    );
    assert_eq!(stage.take_calls(), 0);
}

#[test]
fn a_control_that_lets_go_from_the_start_is_plain_sampling() {
    let stage = Stage::default();
    let t = expected("tiny-sd1");
    let personal = stage.model("tiny-sd1", true);
    let context = layout(&stage, "tiny-sd1", json!(0), &t["noise"]);
    let reference = invert(&stage, &personal, &t["reference_latent"], 8, "");
    let control = stage.swap(
        json!({"reference_prompt": REFERENCE, "sites": "none", "start_step": 2}),
        Sources::new(&context, &reference),
    );
    let target = stage
        .sample(
            json!({"prompt": PERSONAL, "guidance": 5.0}),
            &personal,
            Some(control),
            None,
        )
        .unwrap();
    assert_eq!(bits(&target.tensor()), bits(&context.tensor()));
    assert!(distance(&target.tensor(), &t["personalized_only"]) < TRAJECTORY);
}
