//! A checkpoint on disk: compared with its config as a whole, then loaded tensor by tensor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use safetensors::tensor::TensorInfo;

use super::header::{Header, float_dtype};
use super::layout::{Found, Layout, is_linear};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gpt2::Gpt2;
use crate::{memory, ops};

/// The weights of one model, checked but not yet read.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    shards: Vec<Header>,
    /// Canonical tensor name → shard and index of the tensor in it.
    tensors: BTreeMap<String, (usize, usize)>,
    /// Whether matrices are stored as `[out, in]`.
    transposed: bool,
    /// A `lm_head.weight` that the config says is the token embedding.
    tied_copy: Option<(usize, usize)>,
    notes: Vec<String>,
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
        let places: Vec<(usize, usize)> =
            shards.iter().enumerate().flat_map(|(s, shard)| (0..shard.tensors.len()).map(move |t| (s, t))).collect();
        let found: Vec<Found> = shards.iter().flat_map(|shard| &shard.tensors).map(found).collect();
        let layout = Layout::fit(config, &found, true).map_err(|what| {
            let path = shards.first().map(|shard| shard.path.clone()).unwrap_or_default();
            Error::data(path, format!("differs from config.json: {what}"))
        })?;
        let notes = layout.notes();
        let tensors = layout.tensors.into_iter().map(|(name, i)| (name, places[i])).collect();
        let tied_copy = layout.tied_copy.map(|i| places[i]);
        Ok(Self { config: config.clone(), shards, tensors, transposed: layout.transposed, tied_copy, notes })
    }

    /// What a reader should know of how the weights are read: tensors that are left out, matrices that are transposed.
    pub fn notes(&self) -> &[String] {
        &self.notes
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
            .map(|name| {
                let (tensor, finite) = self.read(self.tensors[*name], dtype, device)?;
                let turn = self.transposed && is_linear(name);
                Ok((if turn { tensor.t()?.contiguous()? } else { tensor }, finite))
            })
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
        Err(tied_copy_differs(&self.shards[copy.0].path))
    }
}

pub(super) fn tied_copy_differs(path: &Path) -> Error {
    let what = "lm_head.weight differs from wte.weight, but config.json ties them; set tie_word_embeddings to false";
    Error::data(path, what)
}

/// A tensor of a header, and whether it may hold weights.
fn found((name, info): &(String, TensorInfo)) -> Found {
    let shape = match float_dtype(info.dtype) {
        Some(_) => Ok(info.shape.clone()),
        None => Err(format!("is {:?}; weights must be F64, F32, F16 or BF16", info.dtype)),
    };
    Found { name: name.clone(), shape }
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
/// [`Error::Missing`] that says what the directory holds instead; [`Error::Data`]; a shard outside the directory is
/// never opened.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.exists() || single.is_symlink() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        let hint = super::foreign::in_folder(dir).map_or(String::new(), |what| format!("; {what}"));
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
