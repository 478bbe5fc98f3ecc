//! The logit lens (nostalgebraist 2020): what each layer would predict if the model stopped there.

use candle_core::Tensor;
use polars::prelude::*;

pub use crate::convention::LayerNormConvention;
use crate::error::Result;
use crate::frame;
use crate::gpt2::Gpt2;
use crate::plan::{Plan, Trace};
use crate::ranking::{Predictions, best, entropy, rank};
use crate::site::Site;
use crate::text::Tokenizer;
use crate::tokens::Tokens;

/// The `k` likeliest next tokens at every layer and position.
///
/// | column | |
/// |---|---|
/// | `prompt`, `layer` | the residual stream before that layer; one more than the last layer is the model's output |
/// | `pos`, `token` | the token after which the prediction is made |
/// | `rank`, `next_id`, `next` | 0 for the likeliest |
/// | `logit`, `logprob` | |
/// | `convention` | how the final LayerNorm was passed |
/// | `entropy` | of the whole prediction, in nats |
/// | `final_rank` | how this layer ranks what the output ranks first: 0 where they agree |
///
/// # Errors
/// As [`Plan::run`].
pub fn logit_lens(
    model: &Gpt2,
    tokenizer: &Tokenizer,
    tokens: &Tokens,
    k: usize,
    convention: LayerNormConvention,
) -> Result<DataFrame> {
    let trace = Plan::new().reads(sites(model.config().n_layer)).run(model, tokens)?;
    from_trace(model, tokenizer, &trace, k, convention)
}

/// The sites that the lens reads.
pub fn sites(layers: usize) -> impl Iterator<Item = Site> {
    (0..layers).map(Site::ResidPre).chain([Site::ResidPost(layers - 1), Site::LnFinalScale])
}

/// [`logit_lens`] of a run that read [`sites`].
///
/// # Errors
/// [`crate::Error::NotRead`] for a run that did not.
pub fn from_trace(
    model: &Gpt2,
    tokenizer: &Tokenizer,
    trace: &Trace,
    k: usize,
    convention: LayerNormConvention,
) -> Result<DataFrame> {
    let tokens = trace.tokens();
    let layers = model.config().n_layer;
    let mut rows = Predictions::default();
    let (mut layer_column, mut entropy_column, mut rank_column) = (Vec::new(), Vec::new(), Vec::new());
    let said = said(model, trace)?;
    for layer in 0..=layers {
        let site = if layer < layers { Site::ResidPre(layer) } else { Site::ResidPost(layers - 1) };
        let (resid, scale) = (trace.get(site)?, trace.get(Site::LnFinalScale)?);
        for (prompt, said) in said.iter().enumerate() {
            // One prompt's logits of one layer at a time: all of them would be a thousand times the stream.
            let part =
                |t: &Tensor| -> Result<Tensor> { Ok(t.narrow(0, prompt, 1)?.narrow(1, 0, tokens.row(prompt).len())?) };
            let logits = match convention {
                LayerNormConvention::Recompute => model.unembed(&part(resid)?)?,
                LayerNormConvention::FinalScale => model.unembed_with_scale(&part(resid)?, &part(scale)?)?,
            };
            let vocab = logits.dim(2)?;
            for (pos, logits) in frame::to_f32(&logits)?.chunks(vocab).enumerate() {
                rows.push(tokens, prompt, pos, &best(logits, k), tokenizer);
                entropy_column.resize(rows.len(), entropy(logits));
                rank_column.resize(rows.len(), rank(logits, said[pos]));
            }
        }
        layer_column.resize(rows.len(), layer as u32);
    }
    let height = rows.len();
    let mut columns = rows.columns();
    columns.insert(1, Column::new("layer".into(), layer_column));
    columns.push(Column::new_scalar(
        "convention".into(),
        Scalar::from(PlSmallStr::from_string(convention.to_string())),
        height,
    ));
    columns.push(Column::new("entropy".into(), entropy_column));
    columns.push(Column::new("final_rank".into(), rank_column));
    Ok(DataFrame::new(height, columns)?)
}

/// What the output ranks first, of every prompt at every position.
fn said(model: &Gpt2, trace: &Trace) -> Result<Vec<Vec<u32>>> {
    let tokens = trace.tokens();
    let last = trace.get(Site::ResidPost(model.config().n_layer - 1))?;
    let of = |prompt: usize| -> Result<Vec<u32>> {
        let own = last.narrow(0, prompt, 1)?.narrow(1, 0, tokens.row(prompt).len())?;
        let logits = model.unembed(&own)?;
        let vocab = logits.dim(2)?;
        Ok(frame::to_f32(&logits)?.chunks(vocab).map(|logits| best(logits, 1)[0].0).collect())
    };
    (0..tokens.len()).map(of).collect()
}
