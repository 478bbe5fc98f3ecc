//! The tokenizer of a model: its own files, and what the model's configuration says of its ids.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::find::Files;
use super::header::read_small;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// Loads the tokenizer beside a model, unless another was `given`; which tokens end a text is what `generation_config.json` or else
/// `config.json` says.
///
/// # Errors
/// [`Error::Data`] for a tokenizer that is broken or of another model.
pub fn load_tokenizer(files: &Files, given: Option<Tokenizer>, config: &Config) -> Result<Option<Tokenizer>> {
    let tokenizer = match (given, &files.tokenizer) {
        (Some(tokenizer), _) => tokenizer,
        (None, Some(path)) => Tokenizer::load(path)?,
        (None, None) => return Ok(None),
    };
    check_vocabulary(Some(&tokenizer), config)?;
    load_roles(tokenizer, files.config.parent().unwrap_or(Path::new("")), config).map(Some)
}

/// A tokenizer for the model of a directory: `generation_config.json` or else `config.json` there says which tokens end a text.
///
/// # Errors
/// [`Error::Data`] for ids that are no whole numbers.
pub fn load_roles(tokenizer: Tokenizer, dir: &Path, config: &Config) -> Result<Tokenizer> {
    let mut configs: Vec<(PathBuf, Value)> = Vec::new();
    let names = ["generation_config.json", "config.json"].map(|name| dir.join(name));
    for path in names.into_iter().filter(|path| path.exists()) {
        let value = serde_json::from_slice(&read_small(&path, 1 << 20)?);
        configs.push((path.clone(), value.map_err(|e| Error::data(&path, format!("not JSON: {e}")))?));
    }
    let configs: Vec<_> = configs.iter().map(|(path, value)| (path.as_path(), value)).collect();
    tokenizer.of_model(&configs, config.vocab_size)
}

/// Refuses a tokenizer that knows more tokens than the model, those aside that were added to it and have no part in every text.
///
/// # Errors
/// [`Error::Data`] with both numbers.
pub fn check_vocabulary(tokenizer: Option<&Tokenizer>, config: &Config) -> Result<()> {
    let Some(tokenizer) = tokenizer else { return Ok(()) };
    let boundaries = tokenizer.bos().into_iter().chain(tokenizer.ends().iter().copied());
    let size = boundaries.map(|id| id as usize + 1).fold(tokenizer.own_size(), usize::max);
    if size <= config.vocab_size {
        return Ok(());
    }
    Err(Error::data(
        "tokenizer",
        format!("has {size} tokens, but the model knows {}: it belongs to another model", config.vocab_size),
    ))
}
