//! CLIP's tokenizer: byte-level BPE over lower-cased words, from `vocab.json` and `merges.txt` or `tokenizer.json`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::{Error, Result};

/// CLIP's pattern of words: special tokens (which the lower-casing made), contractions, letters, single digits, runs of
/// anything else.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The merges of CLIP's BPE, which OpenAI published with CLIP (see nodes/diffusion/data/README.md).
static CLIP_MERGES: &[u8] = include_bytes!("../../data/clip-merges.txt.gz");
/// More than the merges are long: a bound for what is unpacked.
const LONGEST_MERGES: u64 = 1 << 20;

/// What fills a prompt up to its length, in the published families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PadToken {
    /// The end token: Stable Diffusion 1, SDXL's first text encoder.
    End,
    /// "!", id 0: Stable Diffusion 2, SDXL's second text encoder (both OpenCLIP's).
    Exclamation,
}

/// A token in the configuration files: a string, or a table with its `content`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum TokenName {
    Plain(String),
    Table { content: String },
}

impl TokenName {
    fn text(self) -> String {
        match self {
            Self::Plain(text) | Self::Table { content: text } => text,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
struct SpecialTokens {
    bos_token: Option<TokenName>,
    eos_token: Option<TokenName>,
    pad_token: Option<TokenName>,
    unk_token: Option<TokenName>,
    model_max_length: Option<f64>,
}

impl SpecialTokens {
    /// The number of tokens of every prompt.
    fn length(&self, positions: usize) -> usize {
        // A tokenizer without a limit of its own says 1e30.
        self.model_max_length
            .filter(|&length| (2.0..1e6).contains(&length))
            .map_or(positions, |length| length as usize)
            .min(positions)
    }
}

/// The texts of the files in a checkpoint's `tokenizer` folder.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`, if there is one.
    pub tokenizer: Option<String>,
    /// `vocab.json`.
    pub vocab: Option<String>,
    /// `merges.txt`.
    pub merges: Option<String>,
    /// `tokenizer_config.json`.
    pub config: Option<String>,
    /// `special_tokens_map.json`; it overrides the former, as in transformers. Stable Diffusion 2 pads with "!" by it.
    pub special_tokens: Option<String>,
}

impl TokenizerFiles {
    /// The number of tokens of every prompt, begin and end among them, for a text encoder of so many positions.
    #[must_use]
    pub fn length(&self, positions: usize) -> usize {
        let config = self.config.as_deref().map(serde_json::from_str);
        let config: SpecialTokens = config.and_then(Result::ok).unwrap_or_default();
        config.length(positions)
    }

    /// CLIP's own vocabulary, which every Stable Diffusion model and SDXL have: for checkpoints that bring none.
    ///
    /// # Errors
    /// When the data in the program is damaged.
    pub fn built_in(pad: PadToken) -> Result<Self> {
        static TEXTS: OnceLock<(String, String)> = OnceLock::new();
        let (vocab, merges) = match TEXTS.get() {
            Some(texts) => texts,
            None => {
                let texts = Self::unpacked()?;
                TEXTS.get_or_init(|| texts)
            }
        };
        Ok(Self {
            tokenizer: None,
            vocab: Some(vocab.clone()),
            merges: Some(merges.clone()),
            config: None,
            special_tokens: match pad {
                PadToken::End => None,
                PadToken::Exclamation => Some(r#"{"pad_token": "!"}"#.to_owned()),
            },
        })
    }

    /// The vocabulary and the merges that are in the program.
    fn unpacked() -> Result<(String, String)> {
        let mut merges = String::new();
        flate2::read::GzDecoder::new(CLIP_MERGES)
            .take(LONGEST_MERGES)
            .read_to_string(&mut merges)
            .map_err(|e| {
                Error::request(format!("the vocabulary in the program cannot be read: {e}"))
            })?;
        let bytes = byte_characters();
        let ends = bytes.iter().map(|c| format!("{c}</w>"));
        let merged = merges.lines().skip(1).map(|line| line.replace(' ', ""));
        let special = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
        let words = bytes.iter().map(char::to_string).chain(ends);
        let vocabulary: serde_json::Map<_, _> = words
            .chain(merged)
            .chain(special)
            .enumerate()
            .map(|(id, word)| (word, id.into()))
            .collect();
        Ok((serde_json::Value::Object(vocabulary).to_string(), merges))
    }

    /// A digest of the texts: equal ones make equal tokenizers.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for text in [
            &self.tokenizer,
            &self.vocab,
            &self.merges,
            &self.config,
            &self.special_tokens,
        ] {
            // No text is as long as the mark of one that is not there.
            let length = text.as_ref().map_or(u64::MAX, |text| text.len() as u64);
            hasher.update(&length.to_le_bytes());
            hasher.update(text.as_deref().unwrap_or("").as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// What a tokenizer is made of: equal recipes make equal tokenizers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The [digest](TokenizerFiles::digest) of the texts.
    pub digest: String,
    /// The text encoder's longest sequence.
    pub positions: usize,
    /// The id of the first added token.
    pub first: u32,
    /// The added tokens.
    pub added: Vec<Added>,
}

/// The tokenizers that were used last, so that neither every check nor the run after it parses a vocabulary again.
static LAST: Mutex<Vec<(Recipe, Arc<Tokenizer>)>> = Mutex::new(Vec::new());
/// How many of them are kept.
const KEPT: usize = 4;

/// The tokenizer of a recipe: one that was made before, or else a new one of the texts that `files` gives, whose folder is
/// for messages.
///
/// # Errors
/// As [`Tokenizer::new`] and [`Tokenizer::with_added`].
pub fn shared(
    recipe: Recipe,
    files: impl FnOnce() -> Result<TokenizerFiles>,
    folder: &Path,
) -> Result<Arc<Tokenizer>> {
    // A panic while one is made leaves the list as it was.
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let made = match last.iter().position(|(known, _)| *known == recipe) {
        Some(at) => last.remove(at).1,
        None => {
            let made = Tokenizer::new(&files()?, folder, recipe.positions)?;
            Arc::new(made.with_added(recipe.first, &recipe.added)?)
        }
    };
    last.truncate(KEPT - 1);
    last.insert(0, (recipe, Arc::clone(&made)));
    Ok(made)
}

/// The character that stands for each byte in the vocabulary, in the order of their ids: printable bytes for themselves,
/// then the others as the characters from 256 on.
fn byte_characters() -> Vec<char> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    let own = (0..=u8::MAX).filter(printable).map(char::from);
    let others = (0..=u8::MAX).filter(|b| !printable(b));
    own.chain(others.zip(256..).filter_map(|(_, c)| char::from_u32(c)))
        .collect()
}

/// Turns prompts into token ids of a fixed length.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    length: usize,
    /// The added tokens: the vocabulary's own number of each, with the ids that it stands for.
    added: BTreeMap<u32, Word>,
}

/// A token that a vocabulary lacks, such as textual inversion learns: it stands for as many ids as it has vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// The text that stands for it in prompts, such as `<cat>`; upper and lower case are one.
    pub token: String,
    /// How many vectors it has.
    pub vectors: usize,
}

/// Ids that belong together: one, or the consecutive ones of an added token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) first: u32,
    pub(crate) count: usize,
}

impl Word {
    pub(crate) fn ids(self) -> impl Iterator<Item = u32> {
        (self.first..).take(self.count)
    }
}

fn config_error(file: &Path, message: impl Into<String>) -> Error {
    Error::Config {
        file: file.to_owned(),
        message: message.into(),
    }
}

impl Tokenizer {
    /// Makes the tokenizer from the texts of its files. `folder` is for messages; `positions` is the text encoder's
    /// longest sequence, used when the files give no length of their own.
    ///
    /// # Errors
    /// When a file is missing or not what it should be.
    pub fn new(files: &TokenizerFiles, folder: &Path, positions: usize) -> Result<Self> {
        let parse = |text: &Option<String>, name: &str| -> Result<SpecialTokens> {
            text.as_ref().map_or_else(
                || Ok(SpecialTokens::default()),
                |text| {
                    serde_json::from_str(text)
                        .map_err(|e| config_error(&folder.join(name), e.to_string()))
                },
            )
        };
        let config = parse(&files.config, "tokenizer_config.json")?;
        let map = parse(&files.special_tokens, "special_tokens_map.json")?;
        let length = config.length(positions);
        let name = |map: Option<TokenName>, config: Option<TokenName>, default: &str| {
            map.or(config)
                .map_or_else(|| default.to_owned(), TokenName::text)
        };
        let bos = name(map.bos_token, config.bos_token, "<|startoftext|>");
        let eos = name(map.eos_token, config.eos_token, "<|endoftext|>");
        let pad = name(map.pad_token, config.pad_token, &eos);
        let unk = name(map.unk_token, config.unk_token, &eos);
        let inner = if let (Some(vocab), Some(merges)) = (&files.vocab, &files.merges) {
            Self::from_vocabulary(vocab, merges, folder, &[&bos, &eos, &unk, &pad], &unk)?
        } else if let Some(text) = &files.tokenizer {
            let mut inner = tokenizers::Tokenizer::from_bytes(text)
                .map_err(|e| config_error(&folder.join("tokenizer.json"), e.to_string()))?;
            // Length and padding are ours: they come from the checkpoint's other files.
            inner.with_padding(None);
            inner
                .with_truncation(None)
                .map_err(|e| config_error(&folder.join("tokenizer.json"), e.to_string()))?;
            inner
        } else {
            return Err(config_error(
                folder,
                "has neither vocab.json and merges.txt nor tokenizer.json",
            ));
        };
        let id = |token: &str| {
            inner.token_to_id(token).ok_or_else(|| {
                config_error(folder, format!("the vocabulary has no token {token:?}"))
            })
        };
        Ok(Self {
            bos: id(&bos)?,
            eos: id(&eos)?,
            pad: id(&pad)?,
            length,
            inner,
            added: BTreeMap::new(),
        })
    }

    /// Adds tokens, whose ids follow one another from `first` on (the text encoder's `vocab_size`, plus what was added
    /// before), in this order. They are found as transformers finds added tokens: anywhere in the text, also inside a
    /// word, after lower-casing.
    ///
    /// # Errors
    /// When a token is empty, has a space or no vector or more than fit a prompt, or is one that the vocabulary has.
    pub fn with_added(mut self, first: u32, tokens: &[Added]) -> Result<Self> {
        let mut next = first;
        for Added { token, vectors } in tokens {
            let refuse = |why: String| {
                Err(
                    Error::request(format!("the token {} {why}", crate::quoted(token)))
                        .help("name it by a text that no prompt has by chance, such as \"<cat>\""),
                )
            };
            if token.is_empty() || token.chars().any(char::is_whitespace) {
                return refuse("is empty or has a space".into());
            }
            let room = self.length.saturating_sub(2);
            if *vectors == 0 || *vectors > room {
                return refuse(format!("has {vectors} vectors; expected 1 to {room}"));
            }
            let lower = token.to_lowercase();
            let known = |text: &str| self.inner.token_to_id(text).is_some();
            if known(token) || known(&lower) {
                return refuse("is in the vocabulary already".into());
            }
            // Normalised as the text is, so that it matches in any case.
            let entry = AddedToken::from(lower.clone(), false).normalized(true);
            self.inner
                .add_tokens([entry])
                .map_err(|e| Error::request(format!("the token {token:?} cannot be added: {e}")))?;
            let Some(number) = self.inner.token_to_id(&lower) else {
                return refuse("cannot be added".into());
            };
            let count = *vectors;
            self.added.insert(number, Word { first: next, count });
            next += u32::try_from(count).unwrap_or(u32::MAX);
        }
        Ok(self)
    }

    fn from_vocabulary(
        vocab: &str,
        merges: &str,
        folder: &Path,
        special: &[&str],
        unknown: &str,
    ) -> Result<tokenizers::Tokenizer> {
        let vocabulary: BTreeMap<String, u32> = serde_json::from_str(vocab)
            .map_err(|e| config_error(&folder.join("vocab.json"), e.to_string()))?;
        let merges_file = folder.join("merges.txt");
        let merges = merges
            .lines()
            .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
            .map(|line| {
                line.split_once(' ')
                    .map(|(a, b)| (a.to_owned(), b.trim_end().to_owned()))
                    .ok_or_else(|| {
                        config_error(&merges_file, format!("the line {line:?} is not two tokens"))
                    })
            })
            .collect::<Result<Vec<_>>>()?;
        let model = BPE::builder()
            .vocab_and_merges(
                vocabulary
                    .into_iter()
                    .collect::<tokenizers::models::bpe::Vocab>(),
                merges,
            )
            .end_of_word_suffix("</w>".into())
            .unk_token(unknown.into())
            .build()
            .map_err(|e| config_error(&merges_file, e.to_string()))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let built_in = |e: tokenizers::Error| config_error(folder, e.to_string());
        inner
            .with_normalizer(Some(Normalizers::new(vec![
                NormalizerWrapper::NFC(NFC),
                NormalizerWrapper::Replace(
                    Replace::new(
                        tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()),
                        " ",
                    )
                    .map_err(built_in)?,
                ),
                NormalizerWrapper::Lowercase(Lowercase),
            ])))
            .map_err(built_in)?;
        inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![
            PreTokenizerWrapper::Split(
                Split::new(
                    SplitPattern::Regex(WORDS.into()),
                    SplitDelimiterBehavior::Removed,
                    true,
                )
                .map_err(built_in)?,
            ),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ])));
        let special: Vec<_> = special
            .iter()
            .map(|token| AddedToken::from(*token, true))
            .collect();
        inner.add_special_tokens(special).map_err(built_in)?;
        Ok(inner)
    }

    /// The number of tokens of every prompt.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The highest id that it can give, added tokens aside.
    #[must_use]
    pub fn highest_id(&self) -> u32 {
        let vocabulary = self.inner.get_vocab(true).into_values();
        let words = vocabulary.filter(|id| !self.added.contains_key(id)).max();
        words.unwrap_or(0).max(self.pad)
    }

    /// The ids of begin, end and padding.
    pub(crate) fn marks(&self) -> (u32, u32, u32) {
        (self.bos, self.eos, self.pad)
    }

    /// The ids of a text between begin and end, without padding, and whether some of it did not fit and was left out.
    ///
    /// # Errors
    /// When the tokenizer cannot read the text.
    pub fn framed(&self, text: &str) -> Result<(Vec<u32>, bool)> {
        let room = self.length.saturating_sub(2);
        let words = self.words(text)?.into_iter().flat_map(Word::ids);
        let mut ids: Vec<u32> = std::iter::once(self.bos).chain(words).collect();
        let is_cut = ids.len() > room + 1;
        ids.truncate(room + 1);
        ids.push(self.eos);
        Ok((ids, is_cut))
    }

    /// The tokens of a text, without begin, end and padding.
    pub(crate) fn words(&self, text: &str) -> Result<Vec<Word>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::request(format!("the prompt {text:?} cannot be tokenized: {e}")))?;
        Ok(encoding.get_ids().iter().map(|id| self.word(*id)).collect())
    }

    /// The tokens of a text with the byte at which each begins.
    pub(crate) fn places(&self, text: &str) -> Result<Vec<(Word, usize)>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| Error::request(format!("the prompt {text:?} cannot be tokenized: {e}")))?;
        let ids = encoding.get_ids().iter().map(|id| self.word(*id));
        let starts = encoding.get_offsets().iter().map(|(start, _)| *start);
        Ok(ids.zip(starts).collect())
    }

    fn word(&self, id: u32) -> Word {
        let own = Word {
            first: id,
            count: 1,
        };
        self.added.get(&id).copied().unwrap_or(own)
    }
}
