//! How a model reads prompts: what is weighted, what happens to long ones, and where in them a phrase is.
//!
//! With [`Syntax::A1111`] a prompt means what it means to the web UI of that name: its brackets, escapes and `BREAK`, its
//! chunks, and its way to apply weights to the text encoder's states.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::networks::clip::{ClipText, Layer};
use crate::prompt::tokenizer::{Tokenizer, Word};
use crate::{Error, Result};
use retouch_kernels::Kernel;

/// What brackets in a prompt mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Syntax {
    /// Nothing: every character is text.
    #[default]
    Plain,
    /// `(word)`, `[word]`, `(word:1.2)`, `\\(`, `BREAK`, as in the AUTOMATIC1111 web UI.
    A1111,
}

/// What happens to a prompt that the text encoder's positions do not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
pub enum LongPrompts {
    /// The rest is left out, with a warning.
    #[default]
    Truncate,
    /// It is read in chunks, each with a begin and an end of its own, and the states are put one after another.
    Chunks,
}

/// How a model reads prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// What brackets mean.
    pub syntax: Syntax,
    /// What happens to long prompts.
    pub long_prompts: LongPrompts,
    /// The layer of the text encoder whose states are taken, from its end: 1 is the last. `None`: the family's own.
    pub clip_skip: Option<usize>,
}

impl Reading {
    /// Whether it reads as models do by default.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What joins a model's id: nothing where it reads as models do by default.
    #[must_use]
    pub fn suffix(&self) -> String {
        let mut suffix = String::new();
        if self.syntax == Syntax::A1111 {
            suffix.push_str("+a1111");
        }
        if self.long_prompts == LongPrompts::Chunks {
            suffix.push_str(CHUNKS);
        }
        if let Some(layer) = self.clip_skip {
            suffix.push_str(&format!("+clip_skip={layer}"));
        }
        suffix
    }
}

/// The part of a model's id that says that it reads long prompts in chunks.
const CHUNKS: &str = "+chunks";

/// The part of a model's id that says how it reads prompts. What is made of a model has an id of its own that ends so too.
#[must_use]
pub fn suffix_of(model: &str) -> &str {
    model.find('+').map_or("", |at| &model[at..])
}

/// Whether the model of this id reads long prompts in chunks. Then the states of a prompt depend on the prompt beside it:
/// both are given equally many tokens.
#[must_use]
pub fn reads_chunks(model: &str) -> bool {
    suffix_of(model).contains(CHUNKS)
}

/// A run of text of one weight, or a break between chunks.
#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String, f64),
    Break,
}

/// What `(...)` multiplies a weight with, and `[...]` divides it by.
const EMPHASIS: f64 = 1.1;
/// A phrase that a chunk's end would cut is moved to the next chunk when the comma before it is at most this far back:
/// the UI's `comma_padding_backtrack`.
const COMMA_BACKTRACK: usize = 20;

/// Whether a neighbour makes `BREAK` a part of a longer word.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What begins the next chunk, in the UI's syntax.
pub(crate) const BREAK: &str = "BREAK";

/// Adds text of weight 1, split at every `BREAK` that stands alone; the spaces around it go with it.
fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    let mut rest = text;
    let mut from = 0;
    while let Some(at) = rest[from..].find(BREAK).map(|at| from + at) {
        let end = at + BREAK.len();
        let joined = rest[..at].chars().next_back().is_some_and(is_word)
            || rest[end..].chars().next().is_some_and(is_word);
        if joined {
            from = end;
            continue;
        }
        pieces.push(Piece::Text(rest[..at].trim_end().to_owned(), 1.0));
        pieces.push(Piece::Break);
        rest = rest[end..].trim_start();
        from = 0;
    }
    pieces.push(Piece::Text(rest.to_owned(), 1.0));
}

/// `:NUMBER)` at the start of a text: the number as it is written, and how long it all is.
fn weight_at(text: &str) -> Option<(&str, usize)> {
    let after = text.strip_prefix(':')?.trim_start();
    let signless = after.strip_prefix(['+', '-']).unwrap_or(after);
    let digits = signless.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    if digits.len() == signless.len() {
        return None;
    }
    let number = &after[..after.len() - digits.len()];
    let rest = digits.trim_start().strip_prefix(')')?;
    Some((number, text.len() - rest.len()))
}

/// The pieces of a prompt in the UI's syntax.
fn parse(prompt: &str) -> Result<Vec<Piece>> {
    not_composed(prompt)?;
    let mut pieces: Vec<Piece> = Vec::new();
    // Where the open brackets are: the next piece, and for square ones the text behind them.
    let (mut round, mut square): (Vec<usize>, Vec<(usize, &str)>) = (Vec::new(), Vec::new());
    fn multiply(pieces: &mut [Piece], factor: f64) {
        for piece in pieces {
            if let Piece::Text(_, weight) = piece {
                *weight *= factor;
            }
        }
    }
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match (c, weight_at(rest)) {
            ('\\', _) => {
                // The backslash goes; of what may follow it, these are taken as they are.
                let escaped = rest[1..].chars().next();
                let escaped = escaped.filter(|c| matches!(c, '(' | ')' | '[' | ']' | '\\'));
                let text = escaped.map(String::from).unwrap_or_default();
                taken += text.len();
                pieces.push(Piece::Text(text, 1.0));
            }
            ('(', _) => round.push(pieces.len()),
            ('[', _) => square.push((pieces.len(), &rest[1..])),
            (_, Some((number, length))) => {
                taken = length;
                match round.pop() {
                    Some(start) => multiply(&mut pieces[start..], weight(number, prompt)?),
                    None => push_text(&mut pieces, &rest[..length]),
                }
            }
            (')', None) => match round.pop() {
                Some(start) => multiply(&mut pieces[start..], EMPHASIS),
                None => push_text(&mut pieces, ")"),
            },
            (']', None) => match square.pop() {
                Some((start, inside)) => {
                    not_edited(&inside[..inside.len() - rest.len()], prompt)?;
                    multiply(&mut pieces[start..], 1.0 / EMPHASIS);
                }
                None => push_text(&mut pieces, "]"),
            },
            (':', None) => push_text(&mut pieces, ":"),
            _ => {
                taken = rest
                    .find(['\\', '(', ')', '[', ']', ':'])
                    .unwrap_or(rest.len());
                push_text(&mut pieces, &rest[..taken]);
            }
        }
        rest = &rest[taken..];
    }
    // What is not closed goes to the end.
    for start in round {
        multiply(&mut pieces[start..], EMPHASIS);
    }
    for (start, _) in square {
        multiply(&mut pieces[start..], 1.0 / EMPHASIS);
    }
    let endless =
        |piece: &Piece| matches!(piece, Piece::Text(_, weight) if !(*weight as f32).is_finite());
    if pieces.iter().any(endless) {
        return Err(Error::request(format!(
            "the brackets multiply to an infinite weight in the prompt {}",
            crate::quoted(prompt)
        ))
        .help("weights from 0.5 to 1.5 are usual"));
    }
    // Neighbours of equal weight are one text: a word may be made of them.
    let mut merged: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (merged.last_mut(), piece) {
            (Some(Piece::Text(before, a)), Piece::Text(text, b)) if *a == b => {
                before.push_str(&text);
            }
            (_, piece) => merged.push(piece),
        }
    }
    Ok(merged)
}

/// Refuses what the UI reads as prompt editing (`[cat:dog:0.5]`) or alternation (`[cat|dog]`): prompts are the same at all
/// steps here.
fn not_edited(inside: &str, prompt: &str) -> Result<()> {
    let edited = inside
        .rsplit_once(':')
        .is_some_and(|(_, when)| when.trim().parse::<f64>().is_ok());
    let mut escaped = false;
    let alternates = inside.chars().any(|c| {
        let bare = c == '|' && !escaped;
        escaped = c == '\\' && !escaped;
        bare
    });
    if !edited && !alternates {
        return Ok(());
    }
    let what = if edited {
        "prompt editing"
    } else {
        "alternation"
    };
    Err(Error::request(format!(
        "{} is {what} in the a1111 syntax, which is not supported, in the prompt {}",
        crate::quoted(&format!("[{inside}]")),
        crate::quoted(prompt)
    ))
    .help("a prompt is the same at all steps; write brackets that are text as `\\[`"))
}

/// Refuses `AND`, with which the UI composes several prompts.
fn not_composed(prompt: &str) -> Result<()> {
    const AND: &str = "AND";
    let composed = prompt.match_indices(AND).any(|(at, _)| {
        let before = prompt[..at].chars().next_back();
        let after = prompt[at + AND.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    });
    if composed {
        return Err(Error::request(format!(
            "AND composes prompts in the a1111 syntax, which is not supported, in the prompt {}",
            crate::quoted(prompt)
        ))
        .help("write it in small letters, or put the prompts into one"));
    }
    Ok(())
}

/// The number of a weight.
fn weight(number: &str, prompt: &str) -> Result<f64> {
    number
        .parse()
        .ok()
        .filter(|weight: &f64| (*weight as f32).is_finite())
        .ok_or_else(|| {
            Error::request(format!(
                "the weight {} is not a number in the prompt {}",
                crate::quoted(number),
                crate::quoted(prompt)
            ))
            .help("write a weight as `(words:1.2)`; a bracket that is text as `\\(`")
        })
}

impl Syntax {
    fn pieces(self, prompt: &str) -> Result<Vec<Piece>> {
        match self {
            Self::Plain => Ok(vec![Piece::Text(prompt.to_owned(), 1.0)]),
            Self::A1111 => parse(prompt),
        }
    }

    /// The words of a prompt, without what weighs or breaks them.
    ///
    /// # Errors
    /// When a weight is not a number.
    pub fn text(self, prompt: &str) -> Result<String> {
        let pieces = self.pieces(prompt)?.into_iter();
        Ok(pieces
            .map(|piece| match piece {
                Piece::Text(text, _) => text,
                Piece::Break => " ".to_owned(),
            })
            .collect())
    }

    /// What of a prompt means something in other programs and is read as text here, each with what to do instead.
    #[must_use]
    pub fn read_as_text(self, prompt: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (at, _) in prompt.match_indices('<') {
            let rest = &prompt[at..];
            let Some(end) = rest.find('>') else {
                break;
            };
            let (tag, inside) = (&rest[..=end], &rest[1..end]);
            let mut parts = inside.split(':');
            let kind = parts.next().unwrap_or_default().trim().to_lowercase();
            let weight = parts.nth(1).map(str::trim);
            let weight = weight.filter(|weight| weight.parse::<f64>().is_ok());
            let weight = weight.map_or_else(String::new, |w| format!(" with `weight: {w}`"));
            if !inside.contains(':') {
                continue;
            }
            match kind.as_str() {
                "lora" | "lyco" => found.push(format!(
                    "{} is read as text: apply the file by a node, `op: apply_lora`{weight}",
                    crate::quoted(tag)
                )),
                "hypernet" => found.push(format!(
                    "{} is read as text: hypernetworks are not supported",
                    crate::quoted(tag)
                )),
                _ => {}
            }
        }
        if self == Self::Plain {
            let weighted = prompt.match_indices(':').find_map(|(at, _)| {
                let (_, length) = weight_at(&prompt[at..])?;
                let open = prompt[..at].rfind('(')?;
                Some(&prompt[open..at + length])
            });
            if let Some(weighted) = weighted {
                found.push(format!(
                    "{} is read as text, brackets and number included: give `syntax: a1111` to load_model to have weights read",
                    crate::quoted(weighted)
                ));
            }
        }
        found
    }

    /// Checks a prompt without a vocabulary.
    ///
    /// # Errors
    /// When a weight is not a number.
    pub fn check(self, prompt: &str) -> Result<()> {
        self.pieces(prompt).map(drop)
    }
}

/// A prompt as the text encoder takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// At least one.
    pub chunks: Vec<Chunk>,
    /// How many tokens did not fit and were left out.
    pub cut: usize,
}

/// As many tokens as the text encoder takes at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Begin, the words, end, padding.
    pub ids: Vec<u32>,
    /// The weight of each.
    pub weights: Vec<f32>,
    /// How many of them are begin, words and end.
    pub used: usize,
}

/// The tokens of a phrase in a prompt, counted over all of its chunks: ascending ranges that do not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span(Vec<Range<usize>>);

impl Span {
    /// The tokens at these positions, which must ascend.
    fn of(positions: &[usize]) -> Self {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for &position in positions {
            match ranges.last_mut() {
                Some(range) if range.end == position => range.end += 1,
                _ => ranges.push(position..position + 1),
            }
        }
        Self(ranges)
    }

    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    /// One more than the last position.
    #[must_use]
    pub fn end(&self) -> usize {
        self.0.last().map_or(0, |range| range.end)
    }
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self(vec![range])
    }
}

/// Words with their weights, as they are put into a chunk.
#[derive(Clone, Debug, Default)]
struct Filling {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

/// Reads prompts with a tokenizer, in one way.
#[derive(Clone, Debug)]
pub struct Reader {
    tokenizer: Arc<Tokenizer>,
    reading: Reading,
}

impl Reader {
    /// Reads prompts with this tokenizer in this way.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, reading: Reading) -> Self {
        Self { tokenizer, reading }
    }

    /// How it reads.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.reading
    }

    /// Tokens of words that fit a chunk.
    #[must_use]
    pub fn room(&self) -> usize {
        self.tokenizer.length().saturating_sub(2)
    }

    /// The words of all pieces, with their weights; `None` is a break.
    fn words(&self, prompt: &str) -> Result<Vec<Option<(Word, f32)>>> {
        let mut words = Vec::new();
        for piece in self.reading.syntax.pieces(prompt)? {
            match piece {
                Piece::Break => words.push(None),
                Piece::Text(text, weight) => {
                    let own = self.tokenizer.words(&text)?.into_iter();
                    words.extend(own.map(|word| Some((word, weight as f32))));
                }
            }
        }
        Ok(words)
    }

    /// A prompt's tokens, in chunks of the text encoder's length.
    ///
    /// # Errors
    /// When the text cannot be tokenized or has a weight that is not a number.
    pub fn read(&self, prompt: &str) -> Result<Prompt> {
        let words = self.words(prompt)?;
        let (fillings, cut) = match self.reading.long_prompts {
            LongPrompts::Truncate => self.truncated(&words),
            LongPrompts::Chunks => (self.chunked(&words)?, 0),
        };
        let chunks = fillings.into_iter().map(|f| self.chunk(f)).collect();
        Ok(Prompt { chunks, cut })
    }

    /// What of a prompt does not fit: how many tokens, and the text from the first of them on where every character of the
    /// prompt is text. `None`: all of it fits.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn left_out<'p>(&self, prompt: &'p str) -> Result<Option<(usize, Option<&'p str>)>> {
        if self.reading.long_prompts == LongPrompts::Chunks {
            return Ok(None);
        }
        let (_, cut) = self.truncated(&self.words(prompt)?);
        if cut == 0 {
            return Ok(None);
        }
        let mut tail = None;
        if self.reading.syntax == Syntax::Plain {
            let mut used = 0;
            for (word, start) in self.tokenizer.places(prompt)? {
                used += word.count;
                if used > self.room() {
                    tail = prompt.get(start..);
                    break;
                }
            }
        }
        Ok(Some((cut, tail)))
    }

    /// The one chunk of a prompt without words.
    #[must_use]
    pub fn empty(&self) -> Chunk {
        self.chunk(Filling::default())
    }

    fn chunk(&self, filling: Filling) -> Chunk {
        let (bos, eos, pad) = self.tokenizer.marks();
        let length = self.tokenizer.length();
        let mut ids = vec![bos];
        ids.extend(filling.ids);
        ids.push(eos);
        let used = ids.len();
        ids.resize(length.max(used), pad);
        let mut weights = vec![1.0];
        weights.extend(filling.weights);
        weights.resize(ids.len(), 1.0);
        Chunk { ids, weights, used }
    }

    /// The words that fit the first chunk, and how many ids do not.
    fn truncated(&self, words: &[Option<(Word, f32)>]) -> (Vec<Filling>, usize) {
        let mut filling = Filling::default();
        let mut cut = 0;
        let mut broken = false;
        for word in words {
            let Some((word, weight)) = word else {
                broken = true;
                continue;
            };
            for id in word.ids() {
                if broken || filling.ids.len() == self.room() {
                    cut += 1;
                } else {
                    filling.ids.push(id);
                    filling.weights.push(*weight);
                }
            }
        }
        (vec![filling], cut)
    }

    /// The words in chunks, broken where the UI breaks them: at `BREAK`; where a chunk is full, or rather after the last
    /// comma in it if that is near; before an added token that would be cut.
    fn chunked(&self, words: &[Option<(Word, f32)>]) -> Result<Vec<Filling>> {
        let room = self.room();
        let comma = match self.tokenizer.words(",")?.as_slice() {
            [comma] => Some(*comma),
            _ => None,
        };
        let mut chunks: Vec<Filling> = Vec::new();
        let mut now = Filling::default();
        let mut last_comma: Option<usize> = None;
        for word in words {
            let Some((word, weight)) = word else {
                chunks.push(std::mem::take(&mut now));
                last_comma = None;
                continue;
            };
            if Some(*word) == comma {
                last_comma = Some(now.ids.len());
            } else if now.ids.len() == room
                && let Some(at) = last_comma.filter(|at| room - at <= COMMA_BACKTRACK)
            {
                let moved = Filling {
                    ids: now.ids.split_off(at + 1),
                    weights: now.weights.split_off(at + 1),
                };
                chunks.push(std::mem::replace(&mut now, moved));
                last_comma = None;
            }
            if now.ids.len() + word.count > room {
                chunks.push(std::mem::take(&mut now));
                last_comma = None;
            }
            now.ids.extend(word.ids());
            now.weights.extend(std::iter::repeat_n(*weight, word.count));
        }
        if !now.ids.is_empty() || chunks.is_empty() {
            chunks.push(now);
        }
        Ok(chunks)
    }

    /// The tokens of the first occurrence of `phrase` in `prompt` as the text encoder sees it. Weights do not matter, and
    /// an end of a chunk may lie inside the phrase.
    ///
    /// # Errors
    /// When the phrase is empty or not in the prompt.
    pub fn span(&self, prompt: &str, phrase: &str) -> Result<Span> {
        let words = self.words(phrase)?;
        let part: Vec<u32> = words.iter().flatten().flat_map(|(w, _)| w.ids()).collect();
        if part.is_empty() {
            return Err(Error::request("the subject is empty")
                .help("name the words of the prompt that are the subject, such as `subject: \"teddy bear\"`"));
        }
        let read = self.read(prompt)?;
        let length = self.tokenizer.length();
        let (ids, positions): (Vec<u32>, Vec<usize>) = read
            .chunks
            .iter()
            .enumerate()
            .flat_map(|(i, chunk)| {
                let words = 1..chunk.used - 1;
                words.map(move |at| (chunk.ids[at], i * length + at))
            })
            .unzip();
        ids.windows(part.len())
            .position(|window| window == part)
            .map(|start| Span::of(&positions[start..start + part.len()]))
            .ok_or_else(|| {
                let cut = if read.cut > 0 {
                    format!(" (its last {} tokens do not fit and are left out)", read.cut)
                } else {
                    String::new()
                };
                Error::request(format!(
                    "the subject {} is not in the prompt{cut}: {}",
                    crate::quoted(phrase),
                    crate::quoted(prompt)
                ))
                .help("the subject is looked up word by word in each branch's prompt: see `subject`, `context_subject` and `reference_subject` of swap_attention")
            })
    }
}

/// Applies the weights of a chunk to its states `[1, N, C]`: each token's are multiplied by its weight, then all by what
/// gives them the mean that they had, as the UI does.
///
/// # Errors
/// When the shapes do not fit.
pub fn weigh(states: &Tensor, weights: &[f32]) -> Result<Tensor> {
    if weights.iter().all(|&weight| weight == 1.0) {
        return Ok(states.clone());
    }
    let factors = Tensor::new(weights, states.device())?
        .to_dtype(states.dtype())?
        .reshape((1, weights.len(), 1))?;
    let weighed = states.broadcast_mul(&factors)?;
    let ratio = (mean(states)? / mean(&weighed)?) as f32;
    // Weights of 0 leave no mean to restore.
    if !ratio.is_finite() {
        return Ok(weighed);
    }
    Ok((weighed * f64::from(ratio))?)
}

/// The mean of all numbers, summed in f64: a mean near 0 is the difference of large sums.
fn mean(t: &Tensor) -> Result<f64> {
    let t = t.to_dtype(candle_core::DType::F32)?.flatten_all()?;
    let values = t.to_vec1::<f32>()?;
    let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
    Ok(sum / values.len().max(1) as f64)
}

/// What the text encoders give for a prompt.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The states `[1, N, C]`: N is the text encoder's length for each chunk, C the features of all text encoders.
    pub states: Tensor,
    /// The pooled state `[1, P]` of the first chunk, of models that take one.
    pub pooled: Option<Tensor>,
    /// How many chunks the prompt has.
    pub chunks: usize,
    /// How many tokens did not fit and were left out.
    pub cut: usize,
}

impl Encoded {
    /// The same with numbers that are all 0.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn zeros(&self) -> Result<Self> {
        Ok(Self {
            states: self.states.zeros_like()?,
            pooled: self.pooled.as_ref().map(Tensor::zeros_like).transpose()?,
            ..*self
        })
    }

    /// The features of two text encoders side by side, for the same prompt.
    ///
    /// # Errors
    /// When one made more chunks of it than the other.
    pub fn beside(&self, other: &Self, kernel: &dyn Kernel) -> Result<Self> {
        if self.chunks != other.chunks {
            return Err(Error::request(format!(
                "one text encoder makes {} chunks of the prompt, the other {}: their vocabularies differ",
                self.chunks, other.chunks
            )));
        }
        Ok(Self {
            states: kernel.join(&self.states, &other.states)?,
            pooled: other.pooled.clone().or_else(|| self.pooled.clone()),
            chunks: self.chunks,
            cut: self.cut.max(other.cut),
        })
    }

    /// The states with as many empty chunks `[1, N, C]` behind them as make `chunks` of them.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn padded(&self, empty: &Tensor, chunks: usize) -> Result<Tensor> {
        let missing = chunks.saturating_sub(self.chunks);
        if missing == 0 {
            return Ok(self.states.clone());
        }
        let mut parts = vec![&self.states];
        parts.extend(std::iter::repeat_n(empty, missing));
        Ok(Tensor::cat(&parts, 1)?)
    }
}

/// Encodes a prompt chunk by chunk, and applies its weights.
///
/// # Errors
/// When the text encoder does not know the ids or has no such layer.
pub fn encode(
    clip: &ClipText,
    prompt: &Prompt,
    layer: Layer,
    kernel: &dyn Kernel,
) -> Result<Encoded> {
    let mut states = Vec::new();
    let mut pooled = None;
    for chunk in &prompt.chunks {
        let given = clip.encode_at(&chunk.ids, layer, kernel)?;
        states.push(weigh(&given.states, &chunk.weights)?);
        pooled = pooled.or(given.pooled);
    }
    let states = match states.as_slice() {
        [one] => one.clone(),
        _ => {
            let rows = |t: &Tensor| kernel.reshape(t, &t.dims()[1..]);
            let rows: Vec<_> = states.iter().map(rows).collect::<Result<_, _>>()?;
            let all = kernel.stack(&rows)?;
            kernel.reshape(&all, &[1, all.dim(0)?, all.dim(1)?])?
        }
    };
    Ok(Encoded {
        states,
        pooled,
        chunks: prompt.chunks.len(),
        cut: prompt.cut,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_programs_read_in_a_prompt_is_told_with_what_to_write_here() {
        let told = |syntax: Syntax, prompt: &str| syntax.read_as_text(prompt);
        let both = told(Syntax::Plain, "a (red:1.4) cat <lora:style:0.8>, <LORA:x>");
        assert_eq!(both.len(), 3, "{both:?}");
        assert!(
            both[0].contains("`op: apply_lora` with `weight: 0.8`"),
            "{both:?}"
        );
        assert!(both[1].ends_with("`op: apply_lora`"), "{both:?}");
        assert!(
            both[2].contains("\"(red:1.4)\"") && both[2].contains("syntax: a1111"),
            "{both:?}"
        );
        // Weights are read there, tags are not.
        let tag = told(Syntax::A1111, "a (red:1.4) cat <lora:style:0.8>");
        assert_eq!(tag.len(), 1, "{tag:?}");
        for text in [
            "a <toy> cat",
            "at 12:30 (noon)",
            "(a b) c",
            "ratio 16:9)",
            "<b:c>",
            "<lora",
        ] {
            assert_eq!(told(Syntax::Plain, text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn what_is_left_out_is_what_reading_cuts_and_begins_where_it_stands() {
        use crate::prompt::tokenizer::{Added, PadToken, TokenizerFiles};
        let files = TokenizerFiles::built_in(PadToken::End).unwrap();
        let tokenizer = Tokenizer::new(&files, std::path::Path::new(""), 77).unwrap();
        let added = [Added {
            token: "<toy>".into(),
            vectors: 3,
        }];
        let tokenizer = Arc::new(tokenizer.with_added(49408, &added).unwrap());
        let plain = Reader::new(Arc::clone(&tokenizer), Reading::default());
        let fifteen = "a photo of a teddy, ".repeat(15); // of 6 tokens each
        for (prompt, cut, tail) in [
            ("a ".repeat(75), 0, ""),
            ("a ".repeat(74) + "  bär, ", 3, "är, "),
            ("a ".repeat(74) + "<TOY>", 2, "<TOY>"),
            ("É ".repeat(75) + "cat", 1, "cat"),
            (
                fifteen.clone(),
                15,
                "a teddy, a photo of a teddy, a photo of a teddy, ",
            ),
        ] {
            let found = plain.left_out(&prompt).unwrap();
            assert_eq!(
                found.map_or(0, |(cut, _)| cut),
                plain.read(&prompt).unwrap().cut
            );
            let expected = (cut > 0).then_some((cut, Some(tail)));
            assert_eq!(found, expected, "{prompt}");
        }
        let chunks = Reading {
            long_prompts: LongPrompts::Chunks,
            ..Reading::default()
        };
        assert_eq!(
            Reader::new(tokenizer, chunks).left_out(&fifteen).unwrap(),
            None
        );
    }
}
