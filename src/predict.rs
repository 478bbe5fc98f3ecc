//! What the model expects next.

use polars::prelude::*;

use crate::error::Result;
use crate::frame;
use crate::gpt2::Gpt2;
use crate::plan::{Plan, Trace};
use crate::ranking::{Predictions, best};
use crate::text::Tokenizer;
use crate::tokens::Tokens;

/// The `k` likeliest next tokens at every position.
///
/// | column | |
/// |---|---|
/// | `prompt`, `pos`, `token` | the token after which the prediction is made |
/// | `rank` | 0 for the likeliest |
/// | `next_id`, `next` | the predicted token |
/// | `logit`, `logprob` | raw and after softmax, in nats |
///
/// # Errors
/// As [`Plan::run`].
pub fn top(model: &Gpt2, tokenizer: &Tokenizer, tokens: &Tokens, k: usize) -> Result<DataFrame> {
    from_trace(&Plan::new().run(model, tokens)?, tokenizer, k)
}

/// [`top`] of a run that is at hand.
///
/// # Errors
/// [`crate::Error::NotReached`] for a run without logits.
pub fn from_trace(trace: &Trace, tokenizer: &Tokenizer, k: usize) -> Result<DataFrame> {
    let tokens = trace.tokens();
    let logits = trace.logits()?;
    let mut rows = Predictions::default();
    for prompt in 0..tokens.len() {
        let real = logits.narrow(0, prompt, 1)?.narrow(1, 0, tokens.row(prompt).len())?;
        let vocab = real.dim(2)?;
        for (pos, logits) in frame::to_f32(&real)?.chunks(vocab).enumerate() {
            rows.push(tokens, prompt, pos, &best(logits, k), tokenizer);
        }
    }
    Ok(DataFrame::new_infer_height(rows.columns())?)
}
