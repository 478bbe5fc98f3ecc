//! Attention patterns on a page.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use polars::prelude::*;
use serde_json::{Value, json};

use super::{Block, token};
use crate::error::{Error, Result};
use crate::figure::rows::Rows;

/// Bytes of patterns on a page; further prompts are left out, and the page says so.
const BYTES: usize = 12 << 20;

/// Attention patterns ([`crate::attention`]): a small map of every head, one of them large, and the tokens to ask.
///
/// Weights are kept to 1/65535. Heads of several layers may stand in one frame; prompts beyond the first are kept as far
/// as they fit.
///
/// # Errors
/// A frame without the columns of attention, or with rows missing.
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
        map.push((weight[i].clamp(0.0, 1.0) * f64::from(u16::MAX)).round() as u16);
        if q > 0 {
            own.largest = own.largest.max(weight[i]);
        }
    }
    let all = prompts.len();
    let mut bytes = 0;
    let mut kept: Vec<Value> = Vec::new();
    for (number, own) in prompts {
        bytes += own.heads.values().map(|map| map.len() * 8 / 3).sum::<usize>();
        if !kept.is_empty() && bytes > BYTES {
            break;
        }
        kept.push(own.json(number));
    }
    Ok(Block(json!({
        "kind": "attention",
        "title": "Attention",
        "note": "Choose a head, then a token: what it looks at lights up.",
        "left_out": all - kept.len(),
        "prompts": kept,
    })))
}

#[derive(Default)]
struct Prompt {
    tokens: Vec<String>,
    heads: BTreeMap<(u32, u32), Vec<u16>>,
    /// The largest weight of any query but the first, which can only look at itself.
    largest: f64,
}

impl Prompt {
    fn json(&self, number: u32) -> Value {
        let bytes = |map: &[u16]| map.iter().flat_map(|weight| weight.to_le_bytes()).collect::<Vec<u8>>();
        let head = |((layer, head), map): (&(u32, u32), &Vec<u16>)| json!({ "layer": layer, "head": head, "weights": BASE64.encode(bytes(map)) });
        json!({
            "prompt": number,
            "tokens": self.tokens,
            "largest": if self.largest > 0.0 { self.largest } else { 1.0 },
            "heads": self.heads.iter().map(head).collect::<Vec<_>>(),
        })
    }
}
