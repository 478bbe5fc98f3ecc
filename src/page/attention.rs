//! Attention patterns on a page.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use polars::prelude::*;
use serde_json::{Value, json};

use super::{Block, token};
use crate::attention::Pattern;
use crate::error::{Error, Result};
use crate::figure::rows::Rows;
use crate::tokens::Tokens;

/// Bytes of patterns on a page beside other views.
const BYTES: usize = 12 << 20;

/// Attention patterns ([`crate::attention`]): a small map of every head, one of them large, and the tokens to ask.
///
/// Weights are kept to 1/65534 of what lies between the smallest and the largest, 0 and 1 where nothing was edited. Heads
/// of several layers may stand in one frame; prompts beyond the first are kept as far as they fit.
///
/// # Errors
/// A frame without the columns of attention, without rows, or with rows missing.
pub fn attention(frame: &DataFrame) -> Result<Block> {
    let rows = Rows::all(frame);
    let (prompt, layer, head) = (rows.ints("prompt")?, rows.ints("layer")?, rows.ints("head")?);
    let (query, key, weight) = (rows.ints("query")?, rows.ints("key")?, rows.floats("weight")?);
    let query_token = frame.column("query_token")?.str()?;
    let mut prompts: BTreeMap<u32, Prompt> = BTreeMap::new();
    for i in 0..rows.len() {
        let own = prompts.entry(prompt[i]).or_default();
        let map = own.heads.entry((layer[i], head[i])).or_default();
        let (q, k) = (query[i] as usize, key[i] as usize);
        if map.len() != q * (q + 1) / 2 + k || k > q {
            return Err(Error::request(format!(
                "row {i} of the frame is not the next one of head {}.{}: patterns must be whole",
                layer[i], head[i]
            )));
        }
        if own.tokens.len() == q {
            own.tokens.push(token(query_token.get(i).unwrap_or_default()));
        }
        map.push(weight[i] as f32);
        own.hear(q, weight[i]);
    }
    if prompts.is_empty() {
        return Err(Error::request("the frame holds no pattern"));
    }
    for (number, own) in &prompts {
        let n = own.tokens.len();
        if let Some(((layer, head), map)) = own.heads.iter().find(|(_, map)| map.len() != n * (n + 1) / 2) {
            return Err(Error::request(format!(
                "prompt {number}, head {layer}.{head}: {} weights, not {} of {n} tokens: patterns must be whole",
                map.len(),
                n * (n + 1) / 2
            )));
        }
    }
    Ok(block(prompts))
}

/// The patterns of one prompt ([`crate::attention::of_prompt`]), for a page whose other views lead to heads; none where
/// they would take more than a page has room for.
pub fn patterns(tokens: &Tokens, patterns: &[Pattern]) -> Option<Block> {
    if !patterns_fit(tokens.longest(), patterns.len()) {
        return None;
    }
    let texts = (0..tokens.longest()).map(|pos| token(&tokens.text(0, pos))).collect();
    let mut prompt = Prompt { tokens: texts, ..Prompt::default() };
    for pattern in patterns {
        prompt.heads.insert((pattern.layer as u32, pattern.head as u32), pattern.weights.clone());
        // The first weight is the first query's, which can only look at itself.
        pattern.weights.iter().skip(1).for_each(|weight| prompt.hear(1, f64::from(*weight)));
    }
    Some(block([(0, prompt)].into()))
}

/// Whether the patterns of so many heads on so many tokens find room on a page.
pub fn patterns_fit(tokens: usize, heads: usize) -> bool {
    bytes(heads * tokens * (tokens + 1) / 2) <= BYTES
}

/// Bytes that weights take on a page.
fn bytes(weights: usize) -> usize {
    weights * 8 / 3
}

fn block(prompts: BTreeMap<u32, Prompt>) -> Block {
    let all = prompts.len();
    let mut taken = 0;
    let mut kept: Vec<Value> = Vec::new();
    for (number, own) in prompts {
        taken += bytes(own.heads.values().map(Vec::len).sum());
        if !kept.is_empty() && taken > BYTES {
            break;
        }
        kept.push(own.json(number));
    }
    Block(json!({
        "kind": "attention",
        "title": "Attention",
        "note": "Choose a head, then a token: what it looks at lights up.",
        "left_out": all - kept.len(),
        "prompts": kept,
    }))
}

#[derive(Default)]
struct Prompt {
    tokens: Vec<String>,
    heads: BTreeMap<(u32, u32), Vec<f32>>,
    /// The largest weight of any query but the first.
    largest: f64,
}

/// What stands for a weight that is no number.
const NONE: u16 = u16::MAX;

impl Prompt {
    fn hear(&mut self, query: usize, weight: f64) {
        if query > 0 {
            self.largest = self.largest.max(weight);
        }
    }

    fn json(&self, number: u32) -> Value {
        // An edited pattern may leave 0 to 1.
        let finite =
            || self.heads.values().flatten().map(|weight| f64::from(*weight)).filter(|weight| weight.is_finite());
        let (low, high) = (finite().fold(0.0, f64::min), finite().fold(1.0, f64::max));
        let step = (high - low) / f64::from(NONE - 1);
        let rounded = |weight: f32| match weight.is_finite() {
            true => ((f64::from(weight) - low) / step).round() as u16,
            false => NONE,
        };
        let bytes = |map: &[f32]| map.iter().flat_map(|weight| rounded(*weight).to_le_bytes()).collect::<Vec<u8>>();
        let head = |((layer, head), map): (&(u32, u32), &Vec<f32>)| json!({ "layer": layer, "head": head, "weights": BASE64.encode(bytes(map)) });
        json!({
            "prompt": number,
            "tokens": self.tokens,
            "low": low,
            "step": step,
            "largest": if self.largest > 0.0 { self.largest } else { 1.0 },
            "heads": self.heads.iter().map(head).collect::<Vec<_>>(),
        })
    }
}
