//! What nanoGPT and minGPT write beside weights: the arguments of a model, and `meta.pkl`, a vocabulary of characters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::pickle::{Id, Pickle, Value};
use crate::config::Config;
use crate::error::{Error, Result, shorten};

/// The config that nanoGPT's `model_args` describe, but for activation and tying, which they do not say.
///
/// # Errors
/// [`Error::Data`] that names the argument.
pub(super) fn config(pickle: &Pickle, arguments: Id, path: &Path) -> Result<Config> {
    let number = |key: &str| match pickle.field(arguments, key).map(|id| pickle.get(id)) {
        Some(Value::Int(n)) => Ok(*n),
        Some(_) => Err(Error::data(path, format!("model_args.{key} must be an integer"))),
        None => Err(Error::data(path, format!("model_args.{key} is missing; it must be an integer"))),
    };
    let config = json!({
        "model_type": "gpt2",
        "n_layer": number("n_layer")?,
        "n_head": number("n_head")?,
        "n_embd": number("n_embd")?,
        "vocab_size": number("vocab_size")?,
        "n_positions": number("block_size")?,
    });
    Config::parse(config.to_string().as_bytes(), path).map_err(|e| match e {
        Error::Data { path, what } => Error::Data { path, what: format!("model_args: {what}") },
        other => other,
    })
}

/// Heads of the sizes that minGPT knows by name.
const MIN_GPT: [(&str, usize); 9] = [
    ("openai-gpt", 12),
    ("gpt2", 12),
    ("gpt2-medium", 16),
    ("gpt2-large", 20),
    ("gpt2-xl", 25),
    ("gopher-44m", 16),
    ("gpt-mini", 6),
    ("gpt-micro", 4),
    ("gpt-nano", 3),
];

/// Whether a `config.json` is minGPT's, which keeps the model's part under `model`, and the number of heads that it says.
pub(super) fn min_gpt_heads(bytes: &[u8]) -> Option<Option<usize>> {
    let config: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let model = config.get("model")?.as_object()?;
    if config.get("model_type").is_some() || !model.contains_key("n_head") {
        return None;
    }
    let named =
        || MIN_GPT.iter().find(|(name, _)| Some(*name) == model.get("model_type").and_then(|name| name.as_str()));
    let heads = model.get("n_head").and_then(serde_json::Value::as_u64).and_then(|n| usize::try_from(n).ok());
    Some(heads.or_else(|| named().map(|(_, heads)| *heads)))
}

/// Reads `meta.pkl`: the characters of a vocabulary, in the order of their ids.
///
/// It is a pickle: read what a stranger made in a process of its own with limits, as the command line does.
///
/// # Errors
/// [`Error::Data`] unless `itos` numbers single characters without a gap.
pub fn characters(path: &Path) -> Result<Vec<char>> {
    let bytes = super::read_small(path, 16 << 20)?;
    let pickle = Pickle::parse(&bytes, path)?;
    let wrong = |what: &str| Error::data(path, format!("{what}; nanoGPT's meta.pkl has `itos`, ids to characters"));
    let Some(Value::Dict(entries)) = pickle.field(pickle.root(), "itos").map(|id| pickle.get(id)) else {
        return Err(wrong("no dictionary `itos` in it"));
    };
    let mut by_id = BTreeMap::new();
    for (id, character) in entries {
        let (Value::Int(id), Value::Text(text)) = (pickle.get(*id), pickle.get(*character)) else {
            return Err(wrong("an entry is no number and text"));
        };
        let mut chars = text.chars();
        let (Some(c), None) = (chars.next(), chars.next()) else {
            return Err(wrong(&format!("{} is no single character", shorten(text))));
        };
        by_id.insert(*id, c);
    }
    let distinct: BTreeSet<&char> = by_id.values().collect();
    if !by_id.keys().copied().eq(0..by_id.len() as i64) || distinct.len() != by_id.len() {
        return Err(wrong("ids with gaps, or characters that are there twice"));
    }
    Ok(by_id.into_values().collect())
}
