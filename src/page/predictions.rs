//! What the model expects next, on a page.

use polars::prelude::*;
use serde_json::{Value, json};

use super::{Block, number, token};
use crate::error::{Error, Result};
use crate::figure::rows::Rows;

/// Candidates on a page; further prompts are left out, and the page says so.
const CANDIDATES: usize = 100_000;

/// Predictions ([`crate::predict`]): the tokens of a prompt, and the likeliest next ones after each.
///
/// # Errors
/// A frame without the columns of predictions.
pub fn predictions(frame: &DataFrame) -> Result<Block> {
    let rows = Rows::all(frame);
    let (prompt, pos) = (rows.ints("prompt")?, rows.ints("pos")?);
    let (text, next) = (frame.column("token")?.str()?, frame.column("next")?.str()?);
    let logprob = rows.floats("logprob")?;
    let at = |own: &[usize]| {
        json!({
            "pos": pos[own[0]],
            "token": token(text.get(own[0]).unwrap_or_default()),
            "next": own.iter().map(|i| token(next.get(*i).unwrap_or_default())).collect::<Vec<_>>(),
            "logprob": own.iter().map(|i| number(logprob[*i])).collect::<Vec<Value>>(),
        })
    };
    let index: Vec<usize> = (0..rows.len()).collect();
    let prompts: Vec<&[usize]> = index.chunk_by(|a, b| prompt[*a] == prompt[*b]).collect();
    if prompts.is_empty() {
        return Err(Error::request("the frame holds no prediction"));
    }
    let mut candidates = 0;
    let kept: Vec<Value> = prompts
        .iter()
        .take_while(|own| {
            candidates += own.len();
            candidates <= CANDIDATES || candidates == own.len()
        })
        .map(|own| {
            let tokens = own.chunk_by(|a, b| pos[*a] == pos[*b]).map(at).collect::<Vec<_>>();
            json!({ "prompt": prompt[own[0]], "tokens": tokens })
        })
        .collect();
    Ok(Block(json!({
        "kind": "predictions",
        "title": "Predictions",
        "note": "Choose a token: the likeliest ones to follow it.",
        "left_out": prompts.len() - kept.len(),
        "prompts": kept,
    })))
}
