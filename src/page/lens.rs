//! The logit lens on a page.

use std::collections::BTreeMap;

use polars::prelude::*;
use serde_json::{Value, json};

use super::{Block, number, token};
use crate::error::{Error, Result};
use crate::figure::rows::Rows;

/// Cells on a page; further prompts are left out, and the page says so.
const CELLS: usize = 100_000;

/// The logit lens ([`crate::lens`]): layers by tokens, with the likeliest tokens of a cell, its entropy, and the rank of
/// what the model says in the end.
///
/// # Errors
/// A frame without the columns of the lens, or with rows missing.
pub fn lens(frame: &DataFrame) -> Result<Block> {
    let rows = Rows::all(frame);
    let (prompt, layer, pos) = (rows.ints("prompt")?, rows.ints("layer")?, rows.ints("pos")?);
    let (logprob, entropy, final_rank) = (rows.floats("logprob")?, rows.floats("entropy")?, rows.ints("final_rank")?);
    let (text, next) = (frame.column("token")?.str()?, frame.column("next")?.str()?);
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    let mut prompts: BTreeMap<u32, Prompt> = BTreeMap::new();
    for i in 0..rows.len() {
        let own = prompts.entry(prompt[i]).or_default();
        if own.tokens.len() == pos[i] as usize {
            own.tokens.push(token(text.get(i).unwrap_or_default()));
        }
        let known = words.len();
        let word = *words.entry(token(next.get(i).unwrap_or_default())).or_insert(known);
        let cell = own.cells.entry((layer[i], pos[i])).or_insert_with(|| Cell {
            candidates: Vec::new(),
            entropy: entropy[i],
            final_rank: final_rank[i],
        });
        cell.candidates.push((word, logprob[i]));
    }
    if prompts.is_empty() {
        return Err(Error::request("the frame holds no prediction of any layer"));
    }
    let all = prompts.len();
    let mut cells = 0;
    let mut kept: Vec<Value> = Vec::new();
    for (number, own) in prompts {
        cells += own.cells.len();
        if !kept.is_empty() && cells > CELLS {
            break;
        }
        kept.push(own.json(number)?);
    }
    let mut ordered = vec![String::new(); words.len()];
    words.into_iter().for_each(|(word, at)| ordered[at] = word);
    let convention = rows.texts("convention")?.first().cloned().unwrap_or_default();
    Ok(Block(json!({
        "kind": "lens",
        "title": "Logit lens",
        "note": format!("What each layer would predict after each token if the model stopped there; LayerNorm: {convention}."),
        "words": ordered,
        "left_out": all - kept.len(),
        "prompts": kept,
    })))
}

#[derive(Default)]
struct Prompt {
    tokens: Vec<String>,
    cells: BTreeMap<(u32, u32), Cell>,
}

struct Cell {
    candidates: Vec<(usize, f64)>,
    entropy: f64,
    final_rank: u32,
}

impl Prompt {
    /// Cells by layer, then by position.
    fn json(&self, number_of: u32) -> Result<Value> {
        let layers = self.cells.keys().map(|(layer, _)| *layer as usize + 1).max().unwrap_or(0);
        if self.cells.len() != layers * self.tokens.len() {
            return Err(Error::request(format!(
                "prompt {number_of} has {} cells, not {layers} layers × {} tokens: a lens must be whole",
                self.cells.len(),
                self.tokens.len()
            )));
        }
        let cell = |cell: &Cell| {
            json!({
                "next": cell.candidates.iter().map(|(word, _)| *word).collect::<Vec<_>>(),
                "logprob": cell.candidates.iter().map(|(_, logprob)| number(*logprob)).collect::<Vec<_>>(),
                "entropy": number(cell.entropy),
                "final_rank": cell.final_rank,
            })
        };
        Ok(json!({
            "prompt": number_of,
            "tokens": self.tokens,
            "layers": layers,
            "cells": self.cells.values().map(cell).collect::<Vec<_>>(),
        }))
    }
}
