//! What the model expects next, on a page.

use polars::prelude::*;
use serde_json::{Value, json};

use super::{Block, number, token};
use crate::error::Result;
use crate::figure::rows::Rows;

/// Predictions ([`crate::predict`]) of the first prompt: its tokens, and the likeliest next ones after each.
///
/// # Errors
/// A frame without the columns of predictions.
pub fn predictions(frame: &DataFrame) -> Result<Block> {
    let rows = Rows::of(frame, 0)?;
    let (pos, text, next) = (rows.ints("pos")?, rows.texts("token")?, rows.texts("next")?);
    let (next_id, logprob) = (rows.ints("next_id")?, rows.floats("logprob")?);
    let index: Vec<usize> = (0..rows.len()).collect();
    let at = |own: &[usize]| {
        json!({
            "token": token(&text[own[0]]),
            "next": own.iter().map(|i| token(&next[*i])).collect::<Vec<_>>(),
            "next_id": own.iter().map(|i| next_id[*i]).collect::<Vec<_>>(),
            "logprob": own.iter().map(|i| number(logprob[*i])).collect::<Vec<Value>>(),
        })
    };
    Ok(Block(json!({
        "kind": "predictions",
        "title": "Predictions",
        "note": "Choose a token: the likeliest ones to follow it.",
        "tokens": index.chunk_by(|a, b| pos[*a] == pos[*b]).map(at).collect::<Vec<_>>(),
    })))
}
