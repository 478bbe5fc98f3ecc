//! The model that is compiled in: `tiny`, a GPT-2 trained on a language of known structure.
//!
//! It is made by `interp train --config models/tiny/recipe.toml`; its card is in `models/tiny/README.md`.

use std::path::Path;

use candle_core::{DType, Device};

use crate::config::Config;
use crate::error::Result;
use crate::gpt2::Gpt2;
use crate::language::Language;
use crate::text::Tokenizer;
use crate::weights::Checkpoint;

/// The name by which `--model` knows it.
pub const NAME: &str = "tiny";

/// Its weights, a safetensors file.
pub static WEIGHTS: &[u8] = include_bytes!("../models/tiny/model.safetensors");
/// Its `tokenizer.json`.
pub static TOKENIZER: &[u8] = include_bytes!("../models/tiny/tokenizer.json");
static CONFIG: &[u8] = include_bytes!("../models/tiny/config.json");
static LANGUAGE: &str = include_str!("../models/tiny/language.toml");

/// The shape of the model.
///
/// # Errors
/// [`crate::Error::Data`] if the files that were compiled in are broken.
pub fn config() -> Result<Config> {
    Config::parse(CONFIG, Path::new("tiny/config.json"))
}

/// The tokenizer of the model.
///
/// # Errors
/// As [`config`].
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::from_json(TOKENIZER, Path::new("tiny/tokenizer.json"))
}

/// The language that the model was trained on.
///
/// # Errors
/// As [`config`].
pub fn language() -> Result<Language> {
    Language::parse(LANGUAGE, Path::new("tiny/language.toml"))
}

/// The weights, checked but not loaded.
///
/// # Errors
/// As [`config`].
pub fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::parse("tiny/model.safetensors", WEIGHTS, &config()?)
}

/// The model in f32 on the CPU.
///
/// # Errors
/// As [`config`].
pub fn model() -> Result<Gpt2> {
    model_on(&Device::Cpu)
}

/// The model in f32 on a device.
///
/// # Errors
/// As [`config`], or the device has no memory for it.
pub fn model_on(device: &Device) -> Result<Gpt2> {
    Ok(checkpoint()?.load(DType::F32, device)?.model)
}
