//! Writing weights as Hugging Face stores them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::{Dtype, SafeTensorError, View};
use serde_json::json;

use crate::error::{Error, Result};
use crate::gpt2::Gpt2;
use crate::text::{END_OF_TEXT, Tokenizer};
use crate::{disk, error};

/// Writes a model into a directory: `model.safetensors` in f32, `tokenizer.json` and `tokenizer_config.json`, and last
/// `config.json`, without which the directory is no model.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`].
pub fn write_model(dir: &Path, model: &Gpt2, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let tensors: Vec<_> = model.tensors().into_iter().map(|(name, value)| (name, value.clone())).collect();
    write_tensors(&dir.join("model.safetensors"), &tensors, [("format".into(), "pt".into())].into())?;
    let mut config = model.config().to_json();
    if let Some(tokenizer) = tokenizer {
        write_tokenizer(dir, tokenizer, model.config().n_positions)?;
        // A model of characters has no token to stop at.
        config["bos_token_id"] = tokenizer.end_of_text().into();
        config["eos_token_id"] = tokenizer.end_of_text().into();
    }
    write_json(&dir.join("config.json"), &config)
}

fn write_tokenizer(dir: &Path, tokenizer: &Tokenizer, longest: usize) -> Result<()> {
    disk::write_bytes(&dir.join("tokenizer.json"), tokenizer.to_json()?.as_bytes())?;
    let special = tokenizer.end_of_text().map(|_| END_OF_TEXT);
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special,
        "eos_token": special,
        "model_max_length": longest,
        "clean_up_tokenization_spaces": false,
    });
    write_json(&dir.join("tokenizer_config.json"), &config)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::Bug(e.to_string()))?;
    disk::write_bytes(path, &bytes)
}

/// Writes tensors as f32; one at a time is converted, so a second copy of all is never held.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`]; an older file is then still whole.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)], metadata: HashMap<String, String>) -> Result<()> {
    let failed = RefCell::new(None);
    let views = tensors.iter().map(|(name, tensor)| (name, Values { tensor, failed: &failed }));
    disk::write_at(path, |temporary| {
        safetensors::serialize_to_file(views, Some(metadata), temporary).map_err(|e| match e {
            SafeTensorError::IoError(e) => e,
            other => std::io::Error::other(other),
        })?;
        match failed.take() {
            Some(e) => Err(std::io::Error::other(error::shorten(&format!("{e}")))),
            None => Ok(()),
        }
    })
}

/// A tensor whose bytes are made when they are written.
struct Values<'a> {
    tensor: &'a Tensor,
    failed: &'a RefCell<Option<candle_core::Error>>,
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.flatten_all().and_then(|flat| flat.to_dtype(DType::F32)?.to_vec1::<f32>());
        let values = values.unwrap_or_else(|e| {
            *self.failed.borrow_mut() = Some(e);
            vec![0.0; self.tensor.elem_count()]
        });
        Cow::Owned(bytemuck::cast_slice(&values).to_vec())
    }

    fn data_len(&self) -> usize {
        4 * self.tensor.elem_count()
    }
}
