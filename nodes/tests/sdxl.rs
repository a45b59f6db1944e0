//! Stable Diffusion XL's networks, against numbers that diffusers and transformers made (tests/oracle/make_sdxl.py).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use retouch_nodes::diffusion::checkpoint::{Checkpoint, Description};
use retouch_nodes::diffusion::control::{Branch, Rows, Untouched};
use retouch_nodes::diffusion::layout::Sources;
use retouch_nodes::diffusion::prompt::{LongPrompts, Reading, Syntax};
use retouch_nodes::diffusion::unet::{Addition, Call, Text};
use retouch_nodes::kernels::{Cpu, Kernel, Plain};

use crate::support::{Disk, MODULE, assert_close, bits, data};

const VANILLA: &str = "a teddy bear on a beach";
const PERSONAL: &str = "a sks teddy bear on a beach";

fn micro(name: &str) -> PathBuf {
    data().join("micro").join(name)
}

fn describe(sources: &Sources) -> Description {
    Description::read(sources, &Disk).unwrap()
}

fn model(kernel: Arc<dyn Kernel>) -> Checkpoint {
    let description = describe(&Sources::of(&micro("sdxl")));
    Checkpoint::new(description, String::new(), Device::Cpu, kernel)
}

fn numbers(name: &str) -> HashMap<String, Tensor> {
    let file = micro(&format!("{name}.safetensors"));
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

/// The U-Net at the oracle's inputs: the vanilla prompt, and the personalised one.
fn unet(model: &Checkpoint) -> Tensor {
    let prompts = [VANILLA, PERSONAL].map(|prompt| model.encode_prompt(prompt).unwrap());
    let states = prompts.each_ref().map(|p| &p.states);
    let pooled = prompts.each_ref().map(|p| p.pooled.as_ref().unwrap());
    let latent = &numbers("sd1")["unet_in"];
    let call = Call {
        latent,
        timesteps: &[981.0, 401.0],
        texts: &[&Text::new(Tensor::cat(&states, 0).unwrap())],
        addition: Some(Addition {
            pooled: &Tensor::cat(&pooled, 0).unwrap(),
            sizes: [48, 80, 0, 0, 48, 80],
        }),
        step: 0,
        rows: Rows::new(Branch::Plain, 2, false),
    };
    let unet = model.unet().unwrap();
    unet.forward(call, &mut Untouched, model.kernel()).unwrap()
}

#[test]
fn both_text_encoders_give_the_states_and_the_pooled_one_of_transformers() {
    let expected = numbers("sdxl");
    let kernels: [Arc<dyn Kernel>; 2] = [Arc::new(Cpu::default()), Arc::new(Plain)];
    for kernel in kernels {
        let model = model(kernel);
        for (states, pooled, prompt) in [
            ("text", "pooled", PERSONAL),
            ("text_vanilla", "pooled_vanilla", VANILLA),
        ] {
            let given = model.encode_prompt(prompt).unwrap();
            assert_close(states, &given.states, &expected[states], MODULE);
            let own = given.pooled.unwrap();
            assert_close(pooled, &own, &expected[pooled], MODULE);
        }
        assert_close("unet", &unet(&model), &expected["unet_out"], MODULE);
    }
}

#[test]
fn an_empty_negative_is_zeros_unless_the_model_index_says_otherwise_and_an_empty_prompt_never() {
    let expected = numbers("sdxl");
    let own = model(Arc::new(Cpu::default()));
    let given = own.encode_prompt("").unwrap();
    assert_close("blank", &given.states, &expected["text_blank"], MODULE);
    let pooled = given.pooled.unwrap();
    assert_close("blank", &pooled, &expected["pooled_blank"], MODULE);
    let given = own.encode_negative("").unwrap();
    let is_zero = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(is_zero(&given.states).iter().all(|&x| x == 0.0));
    assert!(is_zero(&given.pooled.unwrap()).iter().all(|&x| x == 0.0));
    assert_eq!(given.states.dims(), [1, 77, 72]);
    let mut description = describe(&Sources::of(&micro("sdxl")));
    assert!(description.blank_is_zero);
    description.blank_is_zero = false;
    let model = Checkpoint::new(
        description,
        String::new(),
        Device::Cpu,
        Arc::new(Cpu::default()),
    );
    let given = model.encode_negative("").unwrap();
    assert_close("blank", &given.states, &expected["text_blank"], MODULE);
    let pooled = given.pooled.unwrap();
    assert_close("blank", &pooled, &expected["pooled_blank"], MODULE);
}

#[test]
fn a_pad_token_is_a_token_of_its_own_inside_prompts_as_in_transformers() {
    let text = std::fs::read_to_string(micro("sdxl-settings.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&text).unwrap();
    let case = &settings["exclamation_marks"];
    let model = model(Arc::new(Cpu::default()));
    for (index, name) in ["tokenizer", "tokenizer_2"].into_iter().enumerate() {
        let tokenizer = model.tokenizer(index).unwrap();
        let reader = retouch_nodes::diffusion::prompt::Reader::new(tokenizer, Reading::default());
        let read = reader.read(case["prompt"].as_str().unwrap()).unwrap();
        let chunk = &read.chunks[0];
        let expected: Vec<u32> = serde_json::from_value(case[name].clone()).unwrap();
        assert_eq!(chunk.ids[..chunk.used], expected, "{name}");
    }
}

#[test]
fn a_single_file_equals_its_folder_bit_for_bit() {
    let folder = model(Arc::new(Cpu::default()));
    let single = Sources {
        config: Some(micro("sdxl")),
        ..Sources::of(&micro("sdxl-single.safetensors"))
    };
    let single = Checkpoint::new(
        describe(&single),
        String::new(),
        Device::Cpu,
        Arc::new(Cpu::default()),
    );
    assert_eq!(bits(&unet(&single)), bits(&unet(&folder)));
    let latent = &numbers("sd1")["noise"];
    let decode = |model: &Checkpoint| model.vae().unwrap().decode(latent, model.kernel()).unwrap();
    assert_eq!(bits(&decode(&single)), bits(&decode(&folder)));
}

#[test]
fn the_layer_is_the_one_before_the_last_and_chunks_keep_the_first_pooled_state() {
    let read = |reading| model(Arc::new(Cpu::default())).with_reading(reading);
    let of = |reading, prompt: &str| read(reading).encode_prompt(prompt).unwrap();
    let skip = |clip_skip| Reading {
        clip_skip,
        ..Reading::default()
    };
    let own = of(skip(None), PERSONAL);
    assert_eq!(bits(&own.states), bits(&of(skip(Some(2)), PERSONAL).states));
    let last = of(skip(Some(1)), PERSONAL);
    assert_ne!(bits(&own.states), bits(&last.states));
    assert_eq!(bits(&own.pooled.unwrap()), bits(&last.pooled.unwrap()));
    assert!(read(skip(Some(3))).encode_prompt(PERSONAL).is_err());
    let chunks = Reading {
        syntax: Syntax::A1111,
        long_prompts: LongPrompts::Chunks,
        clip_skip: None,
    };
    let two = of(chunks, &format!("{PERSONAL} BREAK {VANILLA}"));
    assert_eq!((two.chunks, two.states.dims()), (2, &[1, 154, 72][..]));
    let first = of(chunks, PERSONAL);
    assert_eq!(bits(&two.pooled.unwrap()), bits(&first.pooled.unwrap()));
    let narrow = |start| two.states.narrow(1, start, 77).unwrap();
    assert_eq!(bits(&narrow(0)), bits(&first.states));
    assert_eq!(bits(&narrow(77)), bits(&of(chunks, VANILLA).states));
}
