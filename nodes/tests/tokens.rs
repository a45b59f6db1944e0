//! CLIP's vocabulary in the program, against transformers' (tests/oracle/make_tokens.py).

use std::io::Read;
use std::path::Path;

use std::sync::Arc;

use retouch_nodes::diffusion::prompt::{Reader, Reading};
use retouch_nodes::diffusion::tokenizer::{PadToken, Tokenizer, TokenizerFiles};

fn clip(pad: PadToken) -> Tokenizer {
    Tokenizer::new(
        &TokenizerFiles::built_in(pad).unwrap(),
        Path::new("built in"),
        77,
    )
    .unwrap()
}

fn plain(pad: PadToken) -> Reader {
    Reader::new(Arc::new(clip(pad)), Reading::default())
}

/// The strings and their ids, without begin, end and padding.
fn cases() -> Vec<(String, Vec<u32>)> {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/oracle/data/clip_tokens.json.gz"
    );
    let file = std::fs::File::open(file).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn ten_thousand_odd_strings_have_the_ids_that_transformers_gives_them() {
    let reader = plain(PadToken::End);
    let cases = cases();
    assert_eq!(cases.len(), 10_000);
    let mut wrong = Vec::new();
    for (text, ids) in &cases {
        let room = ids.len().min(75);
        let mut expected = vec![49406];
        expected.extend(&ids[..room]);
        expected.resize(77, 49407);
        let prompt = reader.read(text).unwrap();
        let chunk = &prompt.chunks[0];
        if chunk.ids != expected || chunk.used != room + 2 || prompt.cut != ids.len() - room {
            wrong.push((text, prompt, expected));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ, the first: {:?}",
        wrong.len(),
        wrong[0]
    );
}

#[test]
fn stable_diffusion_2_pads_with_the_exclamation_mark() {
    let prompt = plain(PadToken::Exclamation).read("hello").unwrap();
    let ids = &prompt.chunks[0].ids;
    assert_eq!(ids[..4], [49406, 3306, 49407, 0]);
    assert!(ids[3..].iter().all(|&id| id == 0));
    assert_eq!(ids.len(), 77);
    assert_eq!(clip(PadToken::Exclamation).highest_id(), 49407);
}
