//! A checkpoint on disk: compared with its config as a whole, then loaded tensor by tensor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use safetensors::tensor::TensorInfo;

use super::header::{Header, float_dtype};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gpt2::Gpt2;
use crate::text::Tokenizer;
use crate::{memory, ops};

/// The weights of one model, checked but not yet read.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    shards: Vec<Header>,
    /// Canonical tensor name → shard and index of the tensor in it.
    tensors: BTreeMap<String, (usize, usize)>,
    /// A `lm_head.weight` that the config says is the token embedding.
    tied_copy: Option<(usize, usize)>,
}

/// A model, and what is odd about its weights.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Gpt2,
    /// Tensors with values that are not finite.
    pub not_finite: Vec<String>,
}

impl Checkpoint {
    /// Opens the files of a model and compares every name, shape and type with what `config` implies.
    ///
    /// # Errors
    /// [`Error::Data`] that lists all differences together.
    pub fn open(files: &[PathBuf], config: &Config) -> Result<Self> {
        let shards = files.iter().map(|file| Header::open(file)).collect::<Result<Vec<_>>>()?;
        Self::compare(shards, config)
    }

    /// The same for a checkpoint in memory; `name` is for messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn parse(name: &str, bytes: impl Into<Cow<'static, [u8]>>, config: &Config) -> Result<Self> {
        Self::compare(vec![Header::parse(name, bytes.into())?], config)
    }

    fn compare(shards: Vec<Header>, config: &Config) -> Result<Self> {
        let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut differences = Vec::new();
        for (s, shard) in shards.iter().enumerate() {
            for (t, (name, _)) in shard.tensors.iter().enumerate() {
                let name = canonical(name);
                if is_buffer(name) {
                    continue;
                }
                if found.insert(name.to_string(), (s, t)).is_some() {
                    differences.push(format!("{name} is there twice"));
                }
            }
        }
        let mut tensors = BTreeMap::new();
        let mut missing = Vec::new();
        for (name, shape) in config.tensors() {
            let Some((s, t)) = found.remove(&name) else {
                missing.push(name);
                continue;
            };
            let info = &shards[s].tensors[t].1;
            differences.extend(difference(&name, info, &shape));
            tensors.insert(name, (s, t));
        }
        let tied_copy = if config.tie_word_embeddings { found.remove("lm_head.weight") } else { None };
        if let Some((s, t)) = tied_copy {
            let shape = [config.vocab_size, config.n_embd];
            differences.extend(difference("lm_head.weight", &shards[s].tensors[t].1, &shape));
        }
        if !missing.is_empty() {
            differences.insert(0, format!("missing {}", list(&missing)));
        }
        if !found.is_empty() {
            differences.push(format!("unexpected {}", list(&found.into_keys().collect::<Vec<_>>())));
        }
        if !differences.is_empty() {
            let path = shards.first().map(|shard| shard.path.clone()).unwrap_or_default();
            return Err(Error::data(path, format!("differs from config.json: {}", list(&differences))));
        }
        Ok(Self { config: config.clone(), shards, tensors, tied_copy })
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of all weights once loaded as `dtype`.
    pub fn memory(&self, dtype: DType) -> u64 {
        self.config.parameters() * dtype.size_in_bytes() as u64
    }

    /// Reads the weights. Each goes straight from the file into its own tensor, so the peak is one copy.
    ///
    /// # Errors
    /// [`Error::TryAgain`] when they would not fit into memory, [`Error::Data`] when a file changed meanwhile.
    pub fn load(&self, dtype: DType, device: &Device) -> Result<Loaded> {
        if device.is_cpu() {
            memory::check("the weights", self.memory(dtype), None)?;
        }
        let names: Vec<&String> = self.tensors.keys().collect();
        let read = names
            .par_iter()
            .map(|name| self.read(self.tensors[*name], dtype, device))
            .collect::<Result<Vec<(Tensor, bool)>>>()?;
        if let Some(copy) = self.tied_copy {
            self.check_tied(copy)?;
        }
        let mut not_finite = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, (tensor, finite)) in names.into_iter().zip(read) {
            if !finite {
                not_finite.push(name.clone());
            }
            tensors.insert(name.as_str(), tensor);
        }
        let model = Gpt2::new(self.config.clone(), |name| {
            tensors.get(name).cloned().ok_or_else(|| Error::Bug(format!("{name} was checked but not loaded")))
        })?;
        Ok(Loaded { model, not_finite })
    }

    /// One tensor, and whether all its values are finite.
    fn read(&self, (s, t): (usize, usize), dtype: DType, device: &Device) -> Result<(Tensor, bool)> {
        let shard = &self.shards[s];
        let (name, info) = &shard.tensors[t];
        let stored = float_dtype(info.dtype).ok_or_else(|| Error::Bug(format!("{name} has no float type")))?;
        let (start, end) = info.data_offsets;
        let fail = |e| Error::reading(&shard.path, e);
        let offset = shard.data_start + start as u64;
        let count = info.shape.iter().product::<usize>();
        if stored == DType::F32 {
            let mut values = vec![0_f32; count];
            shard.source.read_at(bytemuck::cast_slice_mut(&mut values), offset).map_err(fail)?;
            let finite = ops::finite(&values);
            return Ok((Tensor::from_vec(values, info.shape.as_slice(), device)?.to_dtype(dtype)?, finite));
        }
        let mut bytes = vec![0; end - start];
        shard.source.read_at(&mut bytes, offset).map_err(fail)?;
        let tensor = Tensor::from_raw_buffer(&bytes, stored, &info.shape, &Device::Cpu)?;
        drop(bytes);
        let wide = tensor.to_dtype(DType::F32)?;
        let finite = ops::all_finite(&wide)?;
        Ok((tensor.to_dtype(dtype)?.to_device(device)?, finite))
    }

    /// A file may carry the tied unembedding again; it must then be the embedding, bit for bit.
    fn check_tied(&self, copy: (usize, usize)) -> Result<()> {
        let bytes = |(s, t): (usize, usize)| -> Result<Vec<u8>> {
            let shard = &self.shards[s];
            let (start, end) = shard.tensors[t].1.data_offsets;
            let mut bytes = vec![0; end - start];
            let offset = shard.data_start + start as u64;
            shard.source.read_at(&mut bytes, offset).map_err(|e| Error::reading(&shard.path, e))?;
            Ok(bytes)
        };
        if bytes(copy)? == bytes(self.tensors["wte.weight"])? {
            return Ok(());
        }
        Err(Error::data(
            &self.shards[copy.0].path,
            "lm_head.weight differs from wte.weight, but config.json ties them; set tie_word_embeddings to false",
        ))
    }
}

/// The name of a tensor without the prefixes that exporters put before it.
pub(super) fn canonical(name: &str) -> &str {
    let name = name.strip_prefix("_orig_mod.").unwrap_or(name);
    name.strip_prefix("transformer.").or_else(|| name.strip_prefix("model.")).unwrap_or(name)
}

/// The causal masks that old exports carry.
pub(super) fn is_buffer(name: &str) -> bool {
    name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
}

fn difference(name: &str, info: &TensorInfo, wanted: &[usize]) -> Option<String> {
    let reversed: Vec<usize> = info.shape.iter().rev().copied().collect();
    if float_dtype(info.dtype).is_none() {
        return Some(format!("{name} is {:?}; weights must be F32, F16 or BF16", info.dtype));
    }
    if info.shape == wanted {
        return None;
    }
    let hint = if reversed == wanted && wanted.len() == 2 {
        " (transposed: GPT-2 stores [in, out], nn.Linear [out, in])"
    } else {
        ""
    };
    Some(format!("{name} has shape {:?} instead of {wanted:?}{hint}", info.shape))
}

/// The first few of a list, and how many more there are.
pub(super) fn list(all: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<String> = all.iter().take(SHOWN).map(|s| crate::error::shorten_to(s, 200)).collect();
    match all.len().saturating_sub(SHOWN) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

/// The weight files of a directory: `model.safetensors`, or the shards of `model.safetensors.index.json`.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Data`]; a shard outside the directory is never opened.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        let torch = ["pytorch_model.bin", "ckpt.pt", "model.pt"].into_iter().find(|name| dir.join(name).exists());
        let hint = torch.map_or(String::new(), |name| {
            format!("; {name} is a pickle: save the model with save_pretrained (safetensors), or convert nanoGPT's with `interp models convert`")
        });
        return Err(Error::Missing(format!("{}: no model.safetensors{hint}", dir.display())));
    }
    shard_names(&super::read_small(&index, 8 << 20)?, &index)
        .map(|names| names.into_iter().map(|name| dir.join(name)).collect())
}

/// The files that an index names, each checked to be a plain name.
pub fn shard_names(bytes: &[u8], path: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(bytes).map_err(|e| Error::data(path, format!("not an index: {e}")))?;
    let names: std::collections::BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(bad) = names.iter().find(|name| !is_plain_name(name)) {
        let bad = crate::error::shorten(bad);
        return Err(Error::data(path, format!("shard `{bad}` is not the name of a file beside it")));
    }
    if names.is_empty() || names.len() > 1000 {
        return Err(Error::data(path, format!("names {} shards; 1..=1000 are possible", names.len())));
    }
    Ok(names.into_iter().collect())
}

/// Whether `name` is one path component of harmless characters.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Refuses a tokenizer that knows more tokens than the model.
///
/// # Errors
/// [`Error::Data`] with both numbers.
pub fn check_vocabulary(tokenizer: Option<&Tokenizer>, config: &Config) -> Result<()> {
    match tokenizer.map(Tokenizer::vocab_size) {
        Some(size) if size > config.vocab_size => Err(Error::Data {
            path: PathBuf::from("tokenizer"),
            what: format!("has {size} tokens, but the model knows {}: it belongs to another model", config.vocab_size),
        }),
        _ => Ok(()),
    }
}
