//! Two prompts that differ in one thing, and the answers that tell them apart.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::target::Target;
use crate::text::{Encoding, Tokenizer};
use crate::tokens::Tokens;

/// A prompt, and what is asked of the token after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The prompt.
    pub tokens: Tokens,
    /// The right answers and the wrong ones.
    pub target: Target,
}

/// A clean and a corrupted prompt of the same length in tokens, with the right answer to the clean one and a wrong one.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    question: Question,
    corrupt: Tokens,
    noise: Option<Noise>,
}

/// Noise on token embeddings, which makes the corrupted run of causal tracing (Meng et al. 2022).
#[derive(Clone, Debug, PartialEq)]
pub struct Noise {
    /// Where it is added: the positions of the subject.
    pub positions: Range<usize>,
    /// Its standard deviation, in standard deviations of the entries of the embedding matrix; usually 3.
    pub scale: f64,
    /// What it is drawn from.
    pub seed: u64,
    /// Tells several draws of one seed apart.
    pub sample: u64,
}

impl Pair {
    /// A pair; the target is of the clean prompt.
    ///
    /// # Errors
    /// [`Error::Request`] for prompts of different length, the same prompt twice, or no wrong answer.
    pub fn new(clean: Tokens, corrupt: Tokens, target: Target) -> Result<Self> {
        let (a, b) = (clean.row(0), corrupt.row(0));
        if a == b {
            return Err(Error::request("the clean and the corrupted prompt are the same: nothing could be found"));
        }
        if a.len() != b.len() {
            let at = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
            let from = |tokens: &Tokens| {
                let end = (at + 4).min(tokens.row(0).len());
                (at..end).map(|pos| format!("`{}`", tokens.text(0, pos))).collect::<Vec<_>>().join(" ")
            };
            return Err(Error::request(format!(
                "the clean prompt has {} tokens and the corrupted one {}; they part at position {at}: {} and {}",
                a.len(),
                b.len(),
                from(&clean),
                from(&corrupt)
            )));
        }
        Self { question: Question { tokens: clean, target }, corrupt, noise: None }.checked()
    }

    /// The same prompt twice, the second time with noise on some of its embeddings.
    ///
    /// # Errors
    /// [`Error::Request`] for positions that the prompt does not have, or no wrong answer.
    pub fn noised(clean: Tokens, noise: Noise, target: Target) -> Result<Self> {
        let length = clean.longest();
        if noise.positions.is_empty() || noise.positions.end > length || !(noise.scale > 0.0 && noise.scale.is_finite())
        {
            return Err(Error::request(format!(
                "noise of {} on positions {:?} of a prompt of {length} tokens corrupts nothing",
                noise.scale, noise.positions
            )));
        }
        let corrupt = clean.clone();
        Self { question: Question { tokens: clean, target }, corrupt, noise: Some(noise) }.checked()
    }

    fn checked(self) -> Result<Self> {
        if self.target().answers().is_empty() || self.target().wrong().is_empty() {
            return Err(Error::request("a pair needs an answer and a wrong answer"));
        }
        Ok(self)
    }

    /// A pair from text.
    ///
    /// # Errors
    /// As [`Pair::new`] and [`Target::parse`].
    pub fn parse(
        tokenizer: &Tokenizer,
        encoding: Encoding,
        (clean, corrupt): (&str, &str),
        (answer, wrong): (&str, &str),
    ) -> Result<Self> {
        let prompt = |text: &str| tokenizer.tokens(&[text], encoding);
        let target = Target::parse(tokenizer, &[answer], &[wrong])?;
        Self::new(prompt(clean)?, prompt(corrupt)?, target)
    }

    /// The clean prompt with its answers.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// The prompt whose answer is right.
    pub fn clean(&self) -> &Tokens {
        &self.question.tokens
    }

    /// The prompt that differs.
    pub fn corrupt(&self) -> &Tokens {
        &self.corrupt
    }

    /// The answers to the clean prompt.
    pub fn target(&self) -> &Target {
        &self.question.target
    }

    /// What corrupts the embeddings of the second run, if it is not its tokens.
    pub fn noise(&self) -> Option<&Noise> {
        self.noise.as_ref()
    }

    /// Checks that there are two prompts, for what compares their tokens.
    ///
    /// # Errors
    /// [`Error::Request`] for noise instead of a corrupted prompt.
    pub fn check_prompts(&self) -> Result<()> {
        match &self.noise {
            None => Ok(()),
            Some(_) => Err(Error::request("this takes a clean and a corrupted prompt, not a prompt and noise on it")),
        }
    }

    /// Tokens of each prompt.
    #[allow(clippy::len_without_is_empty)] // a prompt is never empty
    pub fn len(&self) -> usize {
        self.clean().longest()
    }
}
