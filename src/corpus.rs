//! Training text as rows of tokens.

use crate::error::{Error, Result};
use crate::language::Language;
use crate::random::{Rng, Stream, stream};
use crate::text::{Bos, Encoding, Tokenizer};

/// Which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For learning.
    Train,
    /// For learning, while rows are short.
    TrainShort,
    /// For measuring.
    Validation,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::TrainShort => "train short",
            Split::Validation => "validation",
        }
    }
}

/// Where training rows come from.
pub trait Rows: Send + Sync {
    /// Row `index` of a split: `length` tokens, and for each whether predicting it counts. The same index gives the
    /// same row.
    ///
    /// # Errors
    /// As the source of the rows.
    fn row(&self, split: Split, index: u64, length: usize) -> Result<Row>;

    /// What tells these rows from others.
    fn digest(&self) -> String;
}

/// Documents of a [`Language`], and random sequences that repeat.
#[derive(Clone)]
pub struct Corpus {
    language: Language,
    tokenizer: Tokenizer,
    end_of_text: u32,
    repeat_share: f64,
    seed: u64,
}

impl Corpus {
    /// Rows of `language` in the tokens of `tokenizer`; `repeat_share` of them are repeated random sequences.
    ///
    /// # Errors
    /// [`Error::Request`] for a share outside 0..=1 or a tokenizer without an end-of-text token.
    pub fn new(language: Language, tokenizer: Tokenizer, repeat_share: f64, seed: u64) -> Result<Self> {
        if !(0.0..=1.0).contains(&repeat_share) {
            return Err(Error::request(format!("repeat_share is {repeat_share}; it must be in 0..=1")));
        }
        let end_of_text =
            tokenizer.end_of_text().ok_or_else(|| Error::request("the tokenizer has no end-of-text token"))?;
        Ok(Self { language, tokenizer, end_of_text, repeat_share, seed })
    }

    /// A sequence of random tokens, of any length that fits a row twice, said two to eight times: short ones are as
    /// likely as long ones, because they are what a model learns to copy first.
    fn push_repeated(&self, row: &mut Row, rng: &mut Stream, length: usize) {
        let longest = (length.saturating_sub(1) / 2).max(4) as f64;
        let half = (4.0 * (longest / 4.0).powf(rng.random())) as usize;
        let pair = repeated_tokens(rng, half, self.tokenizer.vocab_size() as u32, self.end_of_text);
        let copies = rng.random_range(2..=8);
        row.tokens.extend(pair[..half].repeat(copies));
        // The first token of a second copy comes as a surprise too.
        row.counts.resize(row.counts.len() + half + 1, false);
        row.counts.resize(row.tokens.len(), true);
    }
}

impl Rows for Corpus {
    /// Rows begin with end-of-text.
    ///
    /// Random tokens that come for the first time cannot be predicted. They do not count, since their noise would
    /// drown what there is to learn.
    ///
    /// # Errors
    /// [`Error::Bug`] if the tokenizer cannot encode the language.
    fn row(&self, split: Split, index: u64, length: usize) -> Result<Row> {
        let mut rng = stream(self.seed, split.name(), index);
        let mut row = Row { tokens: vec![self.end_of_text], counts: vec![false] };
        let repeats = rng.random_bool(self.repeat_share);
        while row.tokens.len() < length {
            if repeats {
                self.push_repeated(&mut row, &mut rng, length);
            } else {
                let plain = Encoding { bos: Bos::No, allow_special: false };
                row.tokens.extend(self.tokenizer.encode(&self.language.document(&mut rng), plain)?);
                row.counts.resize(row.tokens.len(), true);
            }
            row.tokens.push(self.end_of_text);
            row.counts.push(!repeats);
        }
        row.tokens.truncate(length);
        row.counts.truncate(length);
        Ok(row)
    }

    fn digest(&self) -> String {
        self.language.digest().to_string()
    }
}

/// A training row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Whether predicting each of them counts.
    pub counts: Vec<bool>,
}

/// `half` random tokens below `vocab`, twice over, none of them `except`.
pub fn repeated_tokens(rng: &mut Stream, half: usize, vocab: u32, except: u32) -> Vec<u32> {
    let mut tokens: Vec<u32> = Vec::with_capacity(2 * half);
    while tokens.len() < half {
        let token = rng.random_range(0..vocab);
        if token != except {
            tokens.push(token);
        }
    }
    tokens.extend_from_within(..);
    tokens
}
