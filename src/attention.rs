//! Who looks at whom.

use std::ops::Range;

use polars::prelude::*;

use crate::error::{Error, Result};
use crate::frame;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::plan::{Plan, Trace};
use crate::site::Site;
use crate::tokens::Tokens;

/// The attention patterns of one layer.
///
/// | column | |
/// |---|---|
/// | `prompt`, `layer`, `head` | |
/// | `query`, `query_token` | the position that looks |
/// | `key`, `key_token` | the position that is looked at, never after the query |
/// | `weight` | share of the query's attention; the weights of a query add up to 1 |
///
/// # Errors
/// As [`Plan::run`].
pub fn patterns(model: &Gpt2, tokens: &Tokens, layer: usize) -> Result<DataFrame> {
    from_trace(&Plan::new().read(Site::Pattern(layer)).run(model, tokens)?, layer, None)
}

/// The attention patterns of several layers, one after the other; columns as in [`patterns`].
///
/// # Errors
/// As [`Plan::run`].
pub fn of_layers(model: &Gpt2, tokens: &Tokens, layers: Range<usize>) -> Result<DataFrame> {
    let plan = Plan::new().reads(layers.clone().map(Site::Pattern)).until(layers.end);
    from_layers(&plan.run(model, tokens)?, layers, None)
}

/// [`of_layers`] of a run that read these patterns, of all heads or of some.
///
/// # Errors
/// [`crate::Error::NotRead`] for a run that did not, [`Error::Request`] for no layer.
pub fn from_layers(trace: &Trace, layers: Range<usize>, heads: Option<&[usize]>) -> Result<DataFrame> {
    let mut stacked = None;
    for layer in layers {
        frame::append(&mut stacked, from_trace(trace, layer, heads)?)?;
    }
    stacked.ok_or_else(|| Error::request("no layer was asked for"))
}

/// The pattern of one head on one prompt, without what a frame says in every row.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// Its layer.
    pub layer: usize,
    /// Which head of it.
    pub head: usize,
    /// Weights by query, then by key up to the query: `n·(n + 1) / 2` of a prompt of `n` tokens.
    pub weights: Vec<f32>,
}

/// The patterns of all heads of a model on one prompt.
///
/// # Errors
/// As [`Plan::run`], and [`Error::Request`] for several prompts.
pub fn of_prompt(model: &Gpt2, tokens: &Tokens) -> Result<Vec<Pattern>> {
    if tokens.len() != 1 {
        return Err(Error::request(format!("{} prompts; patterns are taken of one", tokens.len())));
    }
    let (layers, n) = (model.config().n_layer, tokens.longest());
    let mut patterns = Vec::new();
    Plan::new().reads((0..layers).map(Site::Pattern)).logits(LogitsAt::None).run_each(
        model,
        tokens,
        &mut |site, value| {
            let map = frame::to_f32(value)?;
            for (head, map) in map.chunks_exact(n * n).enumerate() {
                let weights =
                    map.chunks_exact(n).enumerate().flat_map(|(query, row)| row[..=query].iter().copied()).collect();
                patterns.push(Pattern { layer: site.layer().unwrap_or(0), head, weights });
            }
            Ok(())
        },
    )?;
    Ok(patterns)
}

/// Bytes that a frame of patterns takes, about, with the tokens' text.
pub fn frame_bytes(tokens: &Tokens, layers: usize, heads: usize) -> u64 {
    const ROW: u64 = 2 * (5 * 4 + 4 + 2 * 24); // columns, and the vectors that they are made from
    let pairs: u64 = (0..tokens.len()).map(|prompt| tokens.row(prompt).len() as u64).map(|n| n * (n + 1) / 2).sum();
    pairs * layers as u64 * heads as u64 * ROW
}

/// [`patterns`] of a run that read the pattern, of all heads or of some.
///
/// # Errors
/// [`crate::Error::NotRead`] for a run that did not.
pub fn from_trace(trace: &Trace, layer: usize, heads: Option<&[usize]>) -> Result<DataFrame> {
    let pattern = trace.get(Site::Pattern(layer))?;
    let tokens = trace.tokens();
    let (_, all, pos, keys) = pattern.dims4()?;
    let every: Vec<usize> = (0..all).collect();
    let heads = heads.unwrap_or(&every);
    let mut index: [Vec<u32>; 4] = Default::default();
    let (mut query_token, mut key_token, mut weight) = (Vec::new(), Vec::new(), Vec::new());
    for prompt in 0..tokens.len() {
        let length = tokens.row(prompt).len();
        for &head in heads {
            let map = frame::to_f32(&pattern.narrow(0, prompt, 1)?.narrow(1, head, 1)?)?;
            debug_assert_eq!(map.len(), pos * keys);
            for query in 0..length {
                for key in 0..=query {
                    for (column, value) in index.iter_mut().zip([prompt, head, query, key]) {
                        column.push(value as u32);
                    }
                    query_token.push(tokens.text(prompt, query).into_owned());
                    key_token.push(tokens.text(prompt, key).into_owned());
                    weight.push(map[query * keys + key]);
                }
            }
        }
    }
    let [prompt, head, query, key] = index;
    let layer = vec![layer as u32; weight.len()];
    Ok(df!(
        "prompt" => prompt, "layer" => layer, "head" => head, "query" => query, "key" => key,
        "query_token" => query_token, "key_token" => key_token, "weight" => weight,
    )?)
}
