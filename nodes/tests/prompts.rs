//! How prompts are read, against the AUTOMATIC1111 web UI itself (tests/oracle/make_prompts.py), and what follows for the
//! words of a subject.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use candle_core::{DType, Device, Tensor};
use retouch_diffusion::checkpoint::layout::{Layout, Sources};
use retouch_diffusion::checkpoint::model::{Checkpoint, Description};
use retouch_diffusion::checkpoint::weights::{Tensors, Weights};
use retouch_diffusion::networks::clip::ClipText;
use retouch_diffusion::prompt::conditioning::{LongPrompts, Reader, Reading, Span, Syntax};
use retouch_diffusion::prompt::tokenizer::{Added, PadToken, Tokenizer, TokenizerFiles};
use retouch_kernels::Cpu;
use serde::Deserialize;

use crate::support::{Disk, MODULE, assert_close, bits, data};

/// The ids and weights of each chunk.
type Chunks = Vec<(Vec<u32>, Vec<f32>)>;

#[derive(Deserialize)]
struct Cases {
    /// Prompts.
    parsed: Vec<(String, Chunks)>,
}

const A1111: Reading = Reading {
    syntax: Syntax::A1111,
    long_prompts: LongPrompts::Chunks,
    clip_skip: None,
};
const CHUNKS: Reading = Reading {
    syntax: Syntax::Plain,
    ..A1111
};

/// Made once: it takes a tenth of a second.
static CLIP: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(clip()));

fn clip() -> Tokenizer {
    Tokenizer::new(
        &TokenizerFiles::built_in(PadToken::End).unwrap(),
        Path::new("built in"),
        77,
    )
    .unwrap()
}

fn reader(reading: Reading) -> Reader {
    Reader::new(CLIP.clone(), reading)
}

#[test]
fn brackets_breaks_and_chunks_are_those_of_the_web_ui() {
    let text = std::fs::read_to_string(data().join("prompts.json")).unwrap();
    let cases: Cases = serde_json::from_str(&text).unwrap();
    assert!(cases.parsed.len() > 250);
    let reader = reader(A1111);
    for (prompt, expected) in &cases.parsed {
        let read = reader.read(prompt).unwrap();
        let chunks: Vec<_> = read
            .chunks
            .iter()
            .map(|chunk| {
                let words = 1..chunk.used - 1;
                (
                    chunk.ids[words.clone()].to_vec(),
                    chunk.weights[words].to_vec(),
                )
            })
            .collect();
        assert_eq!(&chunks, expected, "{prompt:?}");
        for chunk in &read.chunks {
            assert_eq!((chunk.ids.len(), chunk.weights.len()), (77, 77));
            assert_eq!(chunk.ids[0], 49406);
            assert!(chunk.ids[chunk.used - 1..].iter().all(|&id| id == 49407));
        }
    }
}

#[test]
fn what_is_not_a_number_where_a_weight_is_due_and_what_is_not_built_is_refused() {
    for (prompt, part) in [
        ("a (b:1.2.3) c", "weight \"1.2.3\" is not a number"),
        ("(b:.)", "weight \".\" is not a number"),
        (
            "(a:99999999999999999999999999999999999999999)",
            "is not a number",
        ),
        (
            &format!("{}a", "(".repeat(1000)),
            "multiply to an infinite weight",
        ),
        ("a [cat:dog:0.5]", "\"[cat:dog:0.5]\" is prompt editing"),
        ("[(x:1.1)::3]", "prompt editing"),
        ("a [cat|dog] b", "alternation"),
        ("a cat AND a dog", "AND composes"),
    ] {
        let message = Syntax::A1111.check(prompt).unwrap_err().to_string();
        assert!(message.contains(part), "{prompt}: {message}");
        assert!(reader(A1111).read(prompt).is_err());
        assert!(Syntax::Plain.check(prompt).is_ok());
        assert!(reader(CHUNKS).read(prompt).is_ok());
    }
    for fine in [
        "(a:b)",
        "a\\|b",
        "[a\\|b]",
        "SAND and BAND",
        "1.2.3",
        "a:b:0.5",
        "[a:b]",
    ] {
        assert!(Syntax::A1111.check(fine).is_ok(), "{fine}");
    }
}

#[test]
fn plain_prompts_in_one_chunk_are_those_that_are_truncated() {
    for prompt in [
        "",
        "a (teddy:1.2) [bear] BREAK",
        "it's 5 o'clock, \\( \u{1f600}",
    ] {
        let chunks = reader(CHUNKS).read(prompt).unwrap();
        assert_eq!(chunks, reader(Reading::default()).read(prompt).unwrap());
    }
    let truncated = Reading {
        long_prompts: LongPrompts::Truncate,
        ..A1111
    };
    let read = reader(truncated).read("a (b:2) BREAK c d").unwrap();
    assert_eq!(
        (read.chunks.len(), read.chunks[0].used, read.cut),
        (1, 4, 2)
    );
    assert_eq!(read.chunks[0].weights[..4], [1.0, 1.0, 2.0, 1.0]);
    let read = reader(truncated).read(&"x ".repeat(80)).unwrap();
    assert_eq!(
        (read.chunks.len(), read.chunks[0].used, read.cut),
        (1, 77, 5)
    );
}

/// The ends of its ranges.
fn ends(span: &Span) -> Vec<(usize, usize)> {
    span.ranges().iter().map(|r| (r.start, r.end)).collect()
}

#[test]
fn a_subject_is_found_through_weights_escapes_and_chunks() {
    let span = |prompt: &str, phrase: &str| {
        let span = reader(A1111).span(prompt, phrase).unwrap();
        ends(&span)
    };
    assert_eq!(span("a photo of a teddy bear", "teddy bear"), [(5, 7)]);
    assert_eq!(
        span("a (photo:1.2) of a ((teddy)) [bear]", "teddy bear"),
        [(5, 7)]
    );
    assert_eq!(span("a \\(teddy\\) bear", "\\(teddy\\) bear"), [(2, 6)]);
    assert_eq!(span("a house BREAK a teddy bear", "teddy bear"), [(79, 81)]);
    // 74 words, then the subject: its second word is the first of the next chunk.
    let prompt = format!("{}teddy bear", "x ".repeat(74));
    assert_eq!(span(&prompt, "teddy bear"), [(75, 76), (78, 79)]);
    let span = reader(A1111).span(&prompt, "teddy bear").unwrap();
    assert_eq!(span.end(), 79);
    let error = reader(Reading::default()).span(&prompt, "teddy bear");
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("its last 1 tokens do not fit")
    );
    let error = reader(A1111).span("a house", "teddy").unwrap_err();
    assert!(error.to_string().contains("is not in the prompt"));
    assert!(reader(A1111).span("a house", "()").is_err());
}

fn added(tokens: &[(&str, usize)]) -> Vec<Added> {
    let made = tokens.iter().map(|(token, vectors)| Added {
        token: (*token).to_owned(),
        vectors: *vectors,
    });
    made.collect()
}

#[test]
fn an_added_token_stands_for_consecutive_ids_wherever_transformers_would_find_it() {
    let tokenizer = Tokenizer::clone(&CLIP)
        .with_added(49408, &added(&[("<cat>", 3), ("<My-Dog>", 1)]))
        .unwrap()
        .with_added(49412, &added(&[("zzqx", 2)]))
        .unwrap();
    let reader = |reading| Reader::new(Arc::new(tokenizer.clone()), reading);
    let words = |prompt: &str| {
        let read = reader(A1111).read(prompt).unwrap();
        let chunk = &read.chunks[0];
        chunk.ids[1..chunk.used - 1].to_vec()
    };
    assert_eq!(words("a <cat>"), [320, 49408, 49409, 49410]);
    // Made with transformers 5: add_tokens, then the prompt (see the vectors of one token as one).
    assert_eq!(
        words("a <CAT>,<my-dog>"),
        [320, 49408, 49409, 49410, 267, 49411]
    );
    assert_eq!(words("photo<cat>s"), [1125, 49408, 49409, 49410, 338]);
    assert_eq!(words("(zzqx:1.3)"), [49412, 49413]);
    assert_eq!(tokenizer.highest_id(), 49407);
    let span = reader(A1111).span("a (<cat>:1.2) sits", "<cat>").unwrap();
    assert_eq!(ends(&span), [(2, 5)]);
    // It is not cut in two by the end of a chunk.
    let read = reader(A1111)
        .read(&format!("{}<cat>", "x ".repeat(74)))
        .unwrap();
    assert_eq!(read.chunks[0].used, 76);
    assert_eq!(read.chunks[1].ids[1..4], [49408, 49409, 49410]);
}

#[test]
fn a_token_that_the_vocabulary_has_or_that_cannot_be_typed_is_refused() {
    for (token, vectors, part) in [
        ("cat", 1, "in the vocabulary already"),
        ("CAT", 1, "in the vocabulary already"),
        ("<|endoftext|>", 1, "in the vocabulary already"),
        ("", 1, "is empty or has a space"),
        ("my cat", 1, "is empty or has a space"),
        ("<cat>", 0, "expected 1 to 75"),
        ("<cat>", 76, "expected 1 to 75"),
    ] {
        let error = Tokenizer::clone(&CLIP).with_added(49408, &added(&[(token, vectors)]));
        let message = error.unwrap_err().to_string();
        assert!(message.contains(part), "{token}: {message}");
    }
    let twice = Tokenizer::clone(&CLIP).with_added(49408, &added(&[("<cat>", 1), ("<Cat>", 1)]));
    assert!(twice.unwrap_err().to_string().contains("already"));
}

#[test]
fn weights_chunks_and_clip_skip_give_the_states_of_the_web_ui() {
    #[derive(Deserialize)]
    struct Case {
        tensor: String,
        family: String,
        clip_skip: usize,
        /// A prompt and its negative.
        prompts: [String; 2],
    }
    let text = std::fs::read_to_string(data().join("prompts.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases: Vec<Case> = serde_json::from_value(cases["encoded"].clone()).unwrap();
    let expected = candle_core::safetensors::load(data().join("prompts.safetensors"), &Device::Cpu);
    let expected = expected.unwrap();
    assert_eq!((cases.len(), expected.len()), (5, 5));
    for case in cases {
        let description = Description::read(&Sources::of(&data().join(&case.family)), &Disk);
        let model = Checkpoint::new(
            description.unwrap(),
            String::new(),
            Device::Cpu,
            Arc::new(Cpu::default()),
        )
        .with_reading(Reading {
            clip_skip: Some(case.clip_skip),
            ..A1111
        });
        let [prompt, negative] = case
            .prompts
            .each_ref()
            .map(|text| model.encode_prompt(text).unwrap());
        let chunks = prompt.chunks.max(negative.chunks);
        let empty = model.encode_empty().unwrap();
        let padded = [&prompt, &negative].map(|own| own.padded(&empty, chunks).unwrap());
        let states = Tensor::cat(&padded, 0).unwrap();
        assert_close(&case.tensor, &states, &expected[&case.tensor], MODULE);
        // Without its brackets and breaks the prompt is another one.
        let bare = case.prompts[0].replace(['(', ')', '[', ']'], "");
        let bare = model.encode_prompt(&bare).unwrap();
        assert_ne!(bits(&bare.states), bits(&prompt.states));
    }
}

#[test]
fn added_rows_are_the_embeddings_of_the_ids_behind_the_vocabulary() {
    let layout = Layout::find(&Sources::of(&data().join("tiny-sd1")), &Disk).unwrap();
    let description = Description::of(&layout, &Disk).unwrap();
    let table = layout.texts[0].0.weights.table(&Disk).unwrap();
    let config = &description.texts[0].config;
    let weights = || {
        let shared = Arc::new(Tensors::new(None));
        Weights::open(
            table.clone(),
            &Device::Cpu,
            DType::F32,
            shared,
            Arc::new(Cpu::default()),
        )
    };
    let clip = ClipText::load(config, &weights()).unwrap();
    let plain = clip
        .encode(&[635, 320, 600, 601, 636, 636], &Cpu::default())
        .unwrap();
    let rows = weights()
        .root()
        .get("text_model.embeddings.token_embedding.weight", (637, 32))
        .unwrap();
    let row = |id| rows.narrow(0, id, 1).unwrap();
    let clip = clip.with_rows(&row(600)).unwrap();
    let clip = clip.with_rows(&row(601)).unwrap();
    // The vocabulary has 637 ids: 637 and 638 are those of 600 and 601 again.
    let same = clip
        .encode(&[635, 320, 637, 638, 636, 636], &Cpu::default())
        .unwrap();
    assert_eq!(bits(&same), bits(&plain));
    let error = clip.encode(&[635, 639, 636], &Cpu::default()).unwrap_err();
    assert!(error.to_string().contains("knows 639 tokens"), "{error}");
    let narrow = rows.narrow(1, 0, 31).unwrap();
    let error = clip.with_rows(&narrow).unwrap_err();
    assert!(error.to_string().contains("of 31 features"), "{error}");
}
