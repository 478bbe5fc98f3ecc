//! A batch of token sequences.

use std::borrow::Cow;
use std::ops::Range;

use crate::config::Config;
use crate::error::{Error, Result};

/// Prompts as token ids, with the text of each token for people to read.
///
/// Prompts may differ in length. They are padded on the right where a tensor is formed, which causal attention never
/// sees, so a batch gives what its prompts give alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    rows: Vec<Vec<u32>>,
    /// The text of every token, where a tokenizer gave it.
    text: Option<Vec<Vec<String>>>,
}

impl Tokens {
    /// A batch of ids; each token's text is its id in angle brackets.
    ///
    /// # Errors
    /// [`Error::Request`] for a batch or a prompt without tokens.
    pub fn from_ids(rows: Vec<Vec<u32>>) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::request("there is no prompt"));
        }
        if let Some(empty) = rows.iter().position(Vec::is_empty) {
            return Err(Error::request(format!("prompt {empty} is empty; give text, or start it with --bos yes")));
        }
        Ok(Self { rows, text: None })
    }

    /// Several batches as one; texts are kept where all have them.
    ///
    /// # Errors
    /// [`Error::Request`] for no batch.
    pub fn stack<'a>(batches: impl IntoIterator<Item = &'a Tokens>) -> Result<Self> {
        let (mut rows, mut text) = (Vec::new(), Some(Vec::new()));
        for batch in batches {
            rows.extend(batch.rows.iter().cloned());
            if let (Some(all), Some(own)) = (&mut text, &batch.text) {
                all.extend(own.iter().cloned());
            } else {
                text = None;
            }
        }
        Ok(Self { text, ..Self::from_ids(rows)? })
    }

    /// The same batch with the text of each token.
    ///
    /// # Errors
    /// [`Error::Request`] for texts that do not match the ids.
    pub fn with_text(mut self, text: Vec<Vec<String>>) -> Result<Self> {
        if !self.rows.iter().map(Vec::len).eq(text.iter().map(Vec::len)) {
            return Err(Error::request("every token needs its text"));
        }
        self.text = Some(text);
        Ok(self)
    }

    /// Number of prompts.
    #[allow(clippy::len_without_is_empty)] // a batch is never empty
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The ids of one prompt.
    pub fn row(&self, prompt: usize) -> &[u32] {
        &self.rows[prompt]
    }

    /// The text of one token.
    pub fn text(&self, prompt: usize, pos: usize) -> Cow<'_, str> {
        match &self.text {
            Some(text) => Cow::Borrowed(&text[prompt][pos]),
            None => Cow::Owned(format!("<{}>", self.rows[prompt][pos])),
        }
    }

    /// Tokens of the longest prompt.
    pub fn longest(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Tokens of all prompts.
    pub fn count(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// Whether prompts differ in length.
    pub fn is_ragged(&self) -> bool {
        self.rows.iter().any(|row| row.len() != self.rows[0].len())
    }

    /// One prompt as a batch of its own.
    pub fn only(&self, prompt: usize) -> Self {
        self.pick(std::iter::once(prompt))
    }

    /// Some of the prompts, in their order.
    pub fn slice(&self, prompts: Range<usize>) -> Self {
        self.pick(prompts)
    }

    /// The text of one prompt.
    pub fn joined(&self, prompt: usize) -> String {
        (0..self.rows[prompt].len()).map(|pos| self.text(prompt, pos)).collect()
    }

    /// The same prompts `times` over, whole batch after whole batch.
    pub fn repeat(&self, times: usize) -> Self {
        self.pick((0..times).flat_map(|_| 0..self.len()))
    }

    fn pick(&self, prompts: impl Iterator<Item = usize> + Clone) -> Self {
        Self {
            rows: prompts.clone().map(|i| self.rows[i].clone()).collect(),
            text: self.text.as_ref().map(|text| prompts.map(|i| text[i].clone()).collect()),
        }
    }

    /// All ids, each prompt padded on the right to the longest: `[prompt · pos]`.
    pub(crate) fn padded(&self) -> Vec<u32> {
        let longest = self.longest();
        let pad = self.rows[0][0];
        self.rows.iter().flat_map(|row| (0..longest).map(move |i| row.get(i).copied().unwrap_or(pad))).collect()
    }

    /// Checks every id and every length against a model, `past` tokens into its context.
    ///
    /// # Errors
    /// [`Error::TooLong`] or [`Error::Request`] with the numbers.
    pub fn check(&self, config: &Config, past: usize) -> Result<()> {
        for (prompt, row) in self.rows.iter().enumerate() {
            if past + row.len() > config.n_positions {
                return Err(Error::TooLong { prompt, tokens: past + row.len(), limit: config.n_positions });
            }
            if let Some((pos, id)) = row.iter().enumerate().find(|(_, id)| **id as usize >= config.vocab_size) {
                return Err(Error::request(format!(
                    "prompt {prompt}, position {pos}: token {id} is not below the vocabulary size {}; \
                     is this the model's own tokenizer?",
                    config.vocab_size
                )));
            }
        }
        Ok(())
    }
}
/// Cuts prompts of these lengths, in their order, into batches of at most `most` padded tokens, or of one prompt.
pub fn batches(lengths: impl IntoIterator<Item = usize>, most: usize) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    let mut longest = 0;
    for (i, length) in lengths.into_iter().enumerate() {
        longest = longest.max(length);
        match all.last_mut() {
            Some(batch) if (batch.len() + 1) * longest <= most => batch.end = i + 1,
            _ => {
                all.push(i..i + 1);
                longest = length;
            }
        }
    }
    all
}
