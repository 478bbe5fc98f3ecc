//! How a model answers prompt pairs, before anything is changed in it.

use crate::error::Result;
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt, Pass};
use crate::memory;
use crate::metric::{Measures, Metric};
use crate::pair::Pair;
use crate::tokens::Tokens;

/// Padded tokens that pass through the model at once.
const BATCH_TOKENS: usize = 2048;

/// The metrics of both runs of a pair, in the order of [`Metric::ALL`] and of the clean prompt's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// After the clean prompt.
    pub clean: Vec<f64>,
    /// After the corrupted prompt.
    pub corrupt: Vec<f64>,
}

impl Answered {
    /// Whether the answer to the clean prompt is likelier than the wrong one.
    pub fn is_right(&self) -> bool {
        self.clean[Metric::ProbDiff as usize] > 0.0
    }
}

/// Runs both prompts of every pair.
///
/// # Errors
/// Prompts that do not fit the model.
pub fn answers(model: &Gpt2, pairs: &[Pair]) -> Result<Vec<Answered>> {
    let longest = pairs.iter().map(Pair::len).max().unwrap_or(1);
    memory::in_batches(pairs.len(), BATCH_TOKENS / (2 * longest), &mut |part| {
        let pairs = &pairs[part];
        let tokens = Tokens::stack(pairs.iter().flat_map(|pair| [pair.clean(), pair.corrupt()]))?;
        let output = model.run(Pass::new(&tokens).logits(LogitsAt::Last), &mut ())?;
        let logits = output.logits.map(|logits| to_f32(&logits)).transpose()?.unwrap_or_default();
        let rows: Vec<&[f32]> = logits.chunks_exact(model.config().vocab_size).collect();
        let answered = |(pair, ends): (&Pair, &[&[f32]])| {
            let measures = Measures::new(ends[0]);
            let of = |end| measures.of(end, pair.target());
            Answered { clean: of(ends[0]), corrupt: of(ends[1]) }
        };
        Ok(pairs.iter().zip(rows.chunks_exact(2)).map(answered).collect())
    })
}
