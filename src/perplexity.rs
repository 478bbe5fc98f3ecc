//! How well a model predicts a text.

use std::fmt;

use polars::prelude::*;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::gpt2::{Gpt2, LogitsAt, Pass};
use crate::memory;
use crate::ops;
use crate::text::{Bos, Tokenizer};
use crate::tokens::Tokens;

/// Tokens that pass through the model at once, and rows of logits that exist at once.
const BATCH_TOKENS: usize = 4096;
const BATCH_LOGITS: usize = 512;

/// How a text is read. Losses are comparable only under one protocol.
///
/// A window of `context` tokens moves over the text in steps of `stride`; each token is scored in the first window that
/// holds it, so with a stride below the context every token after the first window is predicted from at least
/// `context − stride` tokens. The first token of a window is never scored: nothing comes before it. This is the loop of
/// Hugging Face's documentation on the perplexity of fixed-length models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Tokens in a window.
    pub context: usize,
    /// Tokens between the beginnings of windows.
    pub stride: usize,
    /// Whether each document begins with the token that starts a text, which is not scored itself.
    pub bos: bool,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bos = if self.bos { "with" } else { "without" };
        write!(f, "context {}, stride {}, {bos} BOS", self.context, self.stride)
    }
}

impl Protocol {
    /// Checks the numbers against a model.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn check(&self, config: &Config) -> Result<()> {
        let limit = config.n_positions;
        if self.context < 2 || self.context > limit {
            return Err(Error::request(format!("context is {}; it must be in 2..={limit}", self.context)));
        }
        if self.stride == 0 || self.stride > self.context {
            return Err(Error::request(format!("stride is {}; it must be in 1..={}", self.stride, self.context)));
        }
        Ok(())
    }

    /// Tokens that pass through the model for a text of `n` tokens: with a stride below the context, most of them several times.
    pub fn passes(&self, n: usize) -> usize {
        self.windows(n).iter().map(|(begin, end, _)| end - begin).sum()
    }

    /// Windows over a text of `n` tokens: where each begins and ends, and the first token that it scores.
    fn windows(&self, n: usize) -> Vec<(usize, usize, usize)> {
        let mut windows = Vec::new();
        let (mut begin, mut scored) = (0, 0);
        loop {
            let end = (begin + self.context).min(n);
            let first = scored.max(begin + 1);
            if first < end {
                windows.push((begin, end, first)); // a last window of one token has nothing to score
            }
            if end == n {
                return windows;
            }
            (begin, scored) = (begin + self.stride, end);
        }
    }
}

/// A text to be scored.
#[derive(Clone, Debug)]
pub struct Document {
    ids: Vec<u32>,
    bytes: usize,
    words: usize,
}

impl Document {
    /// A text in the tokens of a model; special tokens in it are these tokens if `allow_special`.
    ///
    /// # Errors
    /// [`Error::Request`] for a text with nothing to score, or a tokenizer without the BOS that the protocol wants; text that the
    /// tokenizer cannot encode.
    pub fn new(text: &str, tokenizer: &Tokenizer, protocol: &Protocol, allow_special: bool) -> Result<Self> {
        let ids = begun(tokenizer.encode_long(text, allow_special)?, tokenizer, protocol)?;
        Self::from_ids(ids, text.len(), text.split_whitespace().count())
    }

    /// A text that is tokens already, from a file that holds nothing else; the protocol's BOS comes before it.
    ///
    /// # Errors
    /// As [`Document::new`].
    pub fn of_tokens(ids: Vec<u32>, tokenizer: &Tokenizer, protocol: &Protocol) -> Result<Self> {
        let text = tokenizer.decode(&ids);
        let bytes = ids.iter().filter_map(|&id| tokenizer.bytes(id)).map(|bytes| bytes.len()).sum();
        Self::from_ids(begun(ids, tokenizer, protocol)?, bytes, text.split_whitespace().count())
    }

    /// A text that is tokens already; `bytes` and `words` are those of the text.
    ///
    /// # Errors
    /// As [`Document::new`].
    pub fn from_ids(ids: Vec<u32>, bytes: usize, words: usize) -> Result<Self> {
        if ids.len() < 2 {
            return Err(Error::request("a text of one token holds nothing to predict"));
        }
        Ok(Self { ids, bytes, words })
    }

    /// Its first `n` tokens, two at least, as if it ended there.
    pub fn beginning(&self, n: usize) -> Self {
        let ids = self.ids[..n.clamp(2, self.ids.len())].to_vec();
        let share = |all: usize| all * ids.len() / self.ids.len();
        Self { bytes: share(self.bytes), words: share(self.words), ids }
    }

    /// Its tokens, BOS included.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// Tokens with the BOS that the protocol wants, once.
fn begun(ids: Vec<u32>, tokenizer: &Tokenizer, protocol: &Protocol) -> Result<Vec<u32>> {
    match (protocol.bos, tokenizer.bos()) {
        (true, None) => Err(Error::request("this tokenizer has no token that starts a text; use --bos no")),
        (true, _) => tokenizer.begun(ids, Bos::Auto),
        (false, _) => Ok(ids),
    }
}

/// How well a model predicted documents.
#[derive(Clone, Debug)]
pub struct Score {
    /// Loss of every token of every document, in nats; none where it was not scored.
    pub losses: Vec<Vec<Option<f32>>>,
    /// Wall time of scoring.
    pub seconds: f64,
    bytes: usize,
    words: usize,
}

impl Score {
    /// Tokens that were scored.
    pub fn tokens(&self) -> usize {
        self.losses.iter().flatten().flatten().count()
    }

    /// Sum of the losses in nats.
    pub fn nats(&self) -> f64 {
        self.losses.iter().flatten().flatten().map(|&loss| f64::from(loss)).sum()
    }
}

/// Scores documents; `done` hears how many tokens have been scored.
///
/// # Errors
/// A protocol or tokens that do not fit the model, and whatever `done` returns.
pub fn score(
    model: &Gpt2,
    documents: &[Document],
    protocol: &Protocol,
    done: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Score> {
    protocol.check(model.config())?;
    let start = std::time::Instant::now();
    let mut losses: Vec<Vec<Option<f32>>> = documents.iter().map(|document| vec![None; document.ids.len()]).collect();
    let mut windows: Vec<(usize, (usize, usize, usize))> = Vec::new();
    for (i, document) in documents.iter().enumerate() {
        windows.extend(protocol.windows(document.ids.len()).into_iter().map(|window| (i, window)));
    }
    let mut count = 0;
    let most = BATCH_TOKENS / protocol.context;
    memory::in_parts(windows.len(), most, &mut |part| {
        let batch = &windows[part];
        let rows = batch.iter().map(|(i, (begin, end, _))| documents[*i].ids[*begin..end - 1].to_vec());
        let rows: Vec<Vec<u32>> = rows.collect();
        let tokens = Tokens::from_ids(rows)?;
        let resid = model.run(Pass::new(&tokens).logits(LogitsAt::None), &mut ())?.resid;
        let mut scored = Vec::with_capacity(batch.len());
        for (row, (document, (begin, end, first))) in batch.iter().enumerate() {
            let resid = resid.get(row)?;
            let mut own = Vec::with_capacity(end - first);
            for start in (*first..*end).step_by(BATCH_LOGITS) {
                let stop = (start + BATCH_LOGITS).min(*end);
                // Position p predicts token p + 1.
                let logits = model.unembed(&resid.narrow(0, start - 1 - begin, stop - start)?)?;
                let targets = documents[*document].ids[start..stop].to_vec();
                let values = crate::frame::to_f32(&ops::cross_entropy(&logits, targets)?)?;
                if let Some(at) = values.iter().position(|loss| !loss.is_finite()) {
                    return Err(Error::data("losses", format!("the loss of token {} is not finite", start + at)));
                }
                own.extend(values);
            }
            scored.push((*document, *first, own));
        }
        for (document, first, own) in scored {
            count += own.len();
            losses[document][first..][..own.len()].iter_mut().zip(own).for_each(|(loss, value)| *loss = Some(value));
            done(count)?;
        }
        Ok(())
    })?;
    let (bytes, words) = documents.iter().fold((0, 0), |(b, w), document| (b + document.bytes, w + document.words));
    Ok(Score { losses, seconds: start.elapsed().as_secs_f64(), bytes, words })
}

/// A comparison: one row per model and text.
///
/// | column | |
/// |---|---|
/// | `model`, `text` | |
/// | `protocol`, `context`, `stride`, `bos` | how the text was read |
/// | `documents`, `tokens`, `words`, `bytes` | how much; `tokens` are those that were scored |
/// | `loss` | nats per token |
/// | `perplexity` | exp(loss) |
/// | `word_perplexity` | exp(nats per word); words are what white space separates |
/// | `bits_per_byte` | bits per byte of UTF-8, comparable between tokenizers |
/// | `seconds`, `cost` | that scoring took; cost at a price per hour, null without one |
///
/// # Errors
/// [`Error::Bug`] only.
pub fn comparison(scores: &[(String, String, Score)], protocol: &[Protocol], price: Option<f64>) -> Result<DataFrame> {
    let loss = |s: &Score| s.nats() / s.tokens() as f64;
    let of = |f: &dyn Fn(&Score) -> f64| scores.iter().map(|(_, _, s)| f(s)).collect::<Vec<f64>>();
    let count = |f: &dyn Fn(&Score) -> usize| scores.iter().map(|(_, _, s)| f(s) as u64).collect::<Vec<u64>>();
    Ok(df!(
        "model" => scores.iter().map(|(model, _, _)| model.as_str()).collect::<Vec<_>>(),
        "text" => scores.iter().map(|(_, text, _)| text.as_str()).collect::<Vec<_>>(),
        "protocol" => protocol.iter().map(Protocol::to_string).collect::<Vec<_>>(),
        "context" => protocol.iter().map(|p| p.context as u32).collect::<Vec<_>>(),
        "stride" => protocol.iter().map(|p| p.stride as u32).collect::<Vec<_>>(),
        "bos" => protocol.iter().map(|p| p.bos).collect::<Vec<_>>(),
        "documents" => count(&|s| s.losses.len()),
        "tokens" => count(&Score::tokens),
        "words" => count(&|s| s.words),
        "bytes" => count(&|s| s.bytes),
        "loss" => of(&loss),
        "perplexity" => of(&|s| loss(s).exp()),
        "word_perplexity" => of(&|s| (s.nats() / s.words.max(1) as f64).exp()),
        "bits_per_byte" => of(&|s| s.nats() / std::f64::consts::LN_2 / s.bytes.max(1) as f64),
        "seconds" => of(&|s| s.seconds),
        "cost" => scores.iter().map(|(_, _, s)| price.map(|price| price * s.seconds / 3600.0)).collect::<Vec<_>>(),
    )?)
}

/// Every token with its loss, null where it was not scored: `document`, `pos`, `token_id`, `token`, `loss`.
///
/// # Errors
/// [`Error::Bug`] only.
pub fn per_token(documents: &[Document], score: &Score, tokenizer: &Tokenizer) -> Result<DataFrame> {
    let places = || documents.iter().enumerate().flat_map(|(i, d)| (0..d.ids.len()).map(move |pos| (i, pos)));
    let ids: Vec<u32> = documents.iter().flat_map(|document| document.ids.iter().copied()).collect();
    Ok(df!(
        "document" => places().map(|(i, _)| i as u32).collect::<Vec<_>>(),
        "pos" => places().map(|(_, pos)| pos as u32).collect::<Vec<_>>(),
        "token" => ids.iter().map(|&id| tokenizer.text(id)).collect::<Vec<_>>(),
        "token_id" => ids,
        "loss" => score.losses.concat(),
    )?
    .select(["document", "pos", "token_id", "token", "loss"])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_score_every_token_once() {
        let protocol = |context, stride| Protocol { context, stride, bos: false };
        assert_eq!(protocol(4, 2).windows(7), [(0, 4, 1), (2, 6, 4), (4, 7, 6)]);
        assert_eq!(protocol(4, 4).windows(7), [(0, 4, 1), (4, 7, 5)]); // token 4 has nothing before it
        assert_eq!(protocol(4, 4).windows(9), [(0, 4, 1), (4, 8, 5)]); // nor has token 8
        assert_eq!(protocol(8, 8).windows(7), [(0, 7, 1)]);
        for (context, stride, n) in [(5, 1, 23), (5, 3, 23), (5, 4, 24), (2, 1, 9)] {
            let mut scored = vec![0; n];
            for (begin, end, first) in protocol(context, stride).windows(n) {
                assert!(begin < first && first < end && end - begin <= context);
                scored[first..end].iter_mut().for_each(|count| *count += 1);
            }
            assert_eq!(scored[0], 0);
            assert!(scored[1..].iter().all(|&count| count == 1), "{context} {stride} {n}: {scored:?}");
        }
    }
}
