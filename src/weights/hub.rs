//! Downloading a model into the Hugging Face cache, so that Python's tools find it there too.
//!
//! hf-hub says where things are on the hub and how it describes a repository. The bytes are fetched in `fetch`: hf-hub 0.5
//! checks no hash, has no timeouts and sends the token wherever a redirect points.

use std::path::PathBuf;

use hf_hub::api::RepoInfo;
use hf_hub::{Repo, RepoType};

use super::address::check_address;
use super::checkpoint::{is_plain_name, shard_names};
use super::fetch::Fetch;
use super::places::{Places, Repository};
use crate::disk;
use crate::error::{Error, Result};

/// Hears how a download goes.
pub trait Progress {
    /// `done` of `total` bytes of `file` are here.
    fn update(&mut self, file: &str, done: u64, total: u64);
}

/// Hears nothing.
impl Progress for () {
    fn update(&mut self, _file: &str, _done: u64, _total: u64) {}
}

/// Which weights of a repository are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `model.safetensors`, single or in shards: what is loaded.
    Safetensors,
    /// `pytorch_model.bin`, single or in shards: what `models convert` reads.
    Torch,
}

impl Format {
    /// Names of the single file and of the index of shards.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            Format::Safetensors => ("model.safetensors", "model.safetensors.index.json"),
            Format::Torch => ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        }
    }
}

/// Downloads what is missing of a model's config, weights and tokenizer, where the repository has one; returns the
/// directory of the snapshot.
///
/// # Errors
/// [`Error::Unavailable`] without a network or with the wrong token, [`Error::Missing`] for a repository that does not
/// exist or is no GPT-2, [`Error::TryAgain`] for a connection that broke or is too slow (the next call resumes),
/// [`Error::Data`] for content that is not what the hub says it is, or that no such file can be.
pub fn download(
    repository: &Repository,
    format: Format,
    places: &Places,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    if places.offline {
        return Err(Error::Unavailable("the network is off (--offline or HF_HUB_OFFLINE)".into()));
    }
    let hub = places
        .hub
        .as_ref()
        .ok_or_else(|| Error::Unavailable("no cache directory: set HF_HOME, XDG_CACHE_HOME or HOME".into()))?;
    let endpoint = check_address(&places.endpoint).map_err(|what| Error::request(format!("the hub: {what}")))?;
    let mut fetch = Fetch::new(repository, places, hub, endpoint)?;
    let names = list(&mut fetch, repository, places)?;
    let has = |name: &str| names.iter().any(|n| n == name);
    let (single, index) = format.names();
    let mut wanted = vec!["config.json".to_string()];
    if !has(single) && !has(index) {
        return Err(Error::Missing(format!("{}: {}", repository.id, instead(repository, &names, format))));
    }
    if has("tokenizer.json") {
        wanted.push("tokenizer.json".into());
    } else if has("vocab.json") && has("merges.txt") {
        wanted.extend(["vocab.json".to_string(), "merges.txt".to_string()]);
    }
    let beside = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"];
    wanted.extend(beside.into_iter().filter(|name| has(name)).map(String::from));
    if has(single) {
        wanted.push(single.into());
    } else {
        let index = fetch.file(index, progress)?;
        wanted.extend(shard_names(&super::read_small(&index, 8 << 20)?, &index)?);
    }
    if let Some(missing) = wanted.iter().find(|name| !has(name)) {
        return Err(Error::Missing(format!("{}: the repository has no {missing}", repository.id)));
    }
    for name in &wanted {
        fetch.file(name, progress)?;
    }
    // The ref comes last: a snapshot that it names is complete.
    let reference = fetch.repo_dir.join("refs").join(&repository.revision);
    if let Some(parent) = reference.parent() {
        fetch.directory(parent)?;
    }
    disk::write_bytes(&reference, fetch.commit.as_bytes())?;
    Ok(fetch.snapshot())
}

/// What a repository holds in place of the weights that are wanted, and the next step.
fn instead(repository: &Repository, names: &[String], format: Format) -> String {
    let has =
        |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name)).map(|name| crate::error::shorten(name));
    let Repository { id, revision } = repository;
    let at = if revision == "main" { String::new() } else { format!("@{revision}") };
    if format == Format::Torch {
        return match has(&|name| name == "model.safetensors" || name == "model.safetensors.index.json") {
            Some(name) => format!("the repository has {name}, which needs no conversion: name it with --model"),
            None => "the repository has no pytorch_model.bin".into(),
        };
    }
    let what = if let Some(torch) = has(&|name| name == "pytorch_model.bin" || name == "pytorch_model.bin.index.json") {
        format!("; {torch} is a pickle, which is not loaded: make a model of it with `interp models convert {id}{at}`")
    } else if let Some(adapter) = has(&|name| name == "adapter_config.json" || name.starts_with("adapter_model.")) {
        format!("; {adapter} is of an adapter (PEFT): merge it into its base model with peft's merge_and_unload()")
    } else if let Some(other) = has(&|name| name == "tf_model.h5" || name.ends_with(".ckpt.index")) {
        format!(
            "; {other} is TensorFlow's: load it with transformers 4 (from_tf=True) and save it with save_pretrained"
        )
    } else if let Some(other) = has(&|name| name == "flax_model.msgpack") {
        format!("; {other} is Flax's: load it with transformers 4 (from_flax=True) and save it with save_pretrained")
    } else if let Some(other) = has(&|name| name.ends_with(".gguf")) {
        format!("; {other} is for llama.cpp: take the repository that it was made from")
    } else if let Some(other) = has(&|name| name.ends_with(".onnx")) {
        format!("; {other} is a program, from which no weights are read")
    } else {
        String::new()
    };
    format!("the repository has no safetensors weights{what}")
}

/// The files of a revision; its commit becomes that of `fetch`.
fn list(fetch: &mut Fetch<'_>, repository: &Repository, places: &Places) -> Result<Vec<String>> {
    let repo = Repo::with_revision(repository.id.clone(), RepoType::Model, repository.revision.clone());
    let answer = fetch.description(&repo.api_url())?;
    let info: RepoInfo = serde_json::from_slice(&answer)
        .map_err(|e| Error::Unavailable(format!("{}: no description of a repository: {e}", places.endpoint)))?;
    if !is_plain_name(&info.sha) {
        let sha = crate::error::shorten(&info.sha);
        return Err(Error::data(&places.endpoint, format!("{}: `{sha}` is no commit", repository.id)));
    }
    fetch.commit = info.sha;
    Ok(info.siblings.into_iter().map(|file| file.rfilename).collect())
}
