//! Who looks at whom.

use std::ops::Range;

use polars::prelude::*;

use crate::error::{Error, Result};
use crate::frame;
use crate::gpt2::Gpt2;
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
    let trace = plan.run(model, tokens)?;
    let mut stacked = None;
    for layer in layers {
        frame::append(&mut stacked, from_trace(&trace, layer, None)?)?;
    }
    stacked.ok_or_else(|| Error::request("no layer was asked for"))
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
