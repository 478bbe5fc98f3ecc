//! Writing weights as Hugging Face stores them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::json;

use crate::disk;
use crate::error::{Error, Result};
use crate::gpt2::Gpt2;
use crate::text::Tokenizer;

/// The files of a model, as [`write_model`] names them.
pub const MODEL_FILES: [&str; 4] = ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"];

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
        config["bos_token_id"] = tokenizer.bos().into();
        config["eos_token_id"] = match tokenizer.ends() {
            [] => serde_json::Value::Null,
            [one] => (*one).into(),
            several => several.into(),
        };
    }
    write_json(&dir.join("config.json"), &config)
}

fn write_tokenizer(dir: &Path, tokenizer: &Tokenizer, longest: usize) -> Result<()> {
    disk::write_bytes(&dir.join("tokenizer.json"), tokenizer.to_json()?.as_bytes())?;
    // An ordinary token that ends texts too would become a special one by being named here.
    let named = |id: Option<u32>| id.filter(|id| tokenizer.is_added(*id)).map(|id| tokenizer.text(id));
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": named(tokenizer.bos()),
        "eos_token": named(tokenizer.end_of_text()),
        "model_max_length": longest,
        "clean_up_tokenization_spaces": false,
    });
    write_json(&dir.join("tokenizer_config.json"), &config)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::Bug(e.to_string()))?;
    disk::write_bytes(path, &bytes)
}

/// Writes tensors as f32, in the order of their names; one at a time is converted, so a second copy of all is never held.
///
/// The header is our own, because the library's replaces the file that it is given by one of its own, and because its metadata
/// come in the order of a hash map: the same tensors are the same bytes.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`]; an older file is then still whole.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)], metadata: HashMap<String, String>) -> Result<()> {
    let mut sorted: Vec<&(String, Tensor)> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let header = header(&sorted, &metadata.into_iter().collect()).map_err(|e| Error::Bug(e.to_string()))?;
    disk::write_with(path, |file| {
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(|e| Error::writing(path, e));
        write(&(header.len() as u64).to_le_bytes())?;
        write(header.as_bytes())?;
        for (_, tensor) in sorted {
            let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            write(bytemuck::cast_slice(&values))?;
        }
        Ok(())
    })
}

/// What stands before the numbers: names, shapes and places, as long as a multiple of eight bytes.
fn header(tensors: &[&(String, Tensor)], metadata: &BTreeMap<String, String>) -> serde_json::Result<String> {
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        entries.push(format!("\"__metadata__\":{}", serde_json::to_string(metadata)?));
    }
    let mut end = 0;
    for (name, tensor) in tensors {
        let (start, shape) = (end, serde_json::to_string(tensor.dims())?);
        end += 4 * tensor.elem_count();
        let name = serde_json::to_string(name)?;
        entries.push(format!("{name}:{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}"));
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fault::{Broken, Recorded};
    use candle_core::Device;

    fn tensors() -> Vec<(String, Tensor)> {
        let tensor = |n: usize| Tensor::arange(0f32, n as f32, &Device::Cpu).unwrap();
        vec![
            ("z.\"odd\"".into(), tensor(3)),
            ("a".into(), tensor(800).reshape((20, 40)).unwrap()),
            ("none".into(), tensor(0)),
        ]
    }

    /// Data reach the disk before the name does, and the name before the call comes back.
    #[test]
    fn tensors_are_synced_then_renamed_then_the_directory_is_synced() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.safetensors");
        let recorded = Recorded::new(place.path());
        write_tensors(&path, &tensors(), HashMap::new()).unwrap();
        let steps = recorded.steps();
        let names: Vec<&str> = steps.iter().map(|(what, _)| *what).collect();
        assert_eq!(names, ["create", "write", "sync part", "sync", "rename", "sync directory"]);
        assert!(steps[..5].iter().all(|(_, of)| *of == path) && steps[5].1 == place.path(), "{steps:?}");
        // Whatever is refused, the old file is whole and nothing is left beside it.
        let before = std::fs::read(&path).unwrap();
        for after in 0..5 {
            let broken = Broken::new(&path, after, 28, true);
            assert!(write_tensors(&path, &tensors()[..2], HashMap::new()).is_err() && broken.was_met(), "{after}");
            assert!(std::fs::read(&path).unwrap() == before && std::fs::read_dir(place.path()).unwrap().count() == 1);
        }
    }

    /// The library reads them back, whatever the names, and would have written the same bytes.
    #[test]
    fn tensors_are_the_librarys_bytes_with_the_users_mode() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.safetensors");
        let metadata: HashMap<String, String> = [("format".to_string(), "pt \"x\"".to_string())].into();
        write_tensors(&path, &tensors(), metadata.clone()).unwrap();
        let all = tensors();
        let theirs = safetensors::serialize(all.iter().map(|(name, tensor)| (name.as_str(), tensor)), Some(metadata));
        assert!(std::fs::read(&path).unwrap() == theirs.unwrap());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(place.path().join("plain"), b"").unwrap();
            let mode = |name: &str| std::fs::metadata(place.path().join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode("x.safetensors"), mode("plain"));
        }
        // More entries of metadata come in the order of their keys.
        let metadata = |keys: [&str; 3]| keys.map(|key| (key.to_string(), key.to_string())).into();
        write_tensors(&path, &all, metadata(["b", "a", "c"])).unwrap();
        let first = std::fs::read(&path).unwrap();
        write_tensors(&path, &all, metadata(["c", "b", "a"])).unwrap();
        assert!(std::fs::read(&path).unwrap() == first);
    }
}
