//! From what a user types to the files of a model.

use std::path::{Path, PathBuf};

use super::checkpoint::{is_plain_name, weight_files};
use super::hub::{self, Progress};
use super::places::{Places, Repository};
use crate::error::{Error, Result};

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `config.json`.
    pub config: PathBuf,
    /// Weights, one file or all shards.
    pub weights: Vec<PathBuf>,
    /// `tokenizer.json`, or the directory with `vocab.json` and `merges.txt`; none if there is neither.
    pub tokenizer: Option<PathBuf>,
    /// Where they came from: a path, or `owner/name@commit`.
    pub origin: String,
}

/// Finds a model by directory, by file or by name: on disk, in the Hugging Face cache, and last on the hub.
///
/// # Errors
/// [`Error::Missing`] that says where it looked; errors of the hub.
pub fn find(model: &str, places: &Places, progress: &mut dyn Progress) -> Result<Files> {
    let path = Path::new(model);
    let looks_like_path = model.starts_with(['.', '/', '~']) || model.ends_with(".safetensors");
    if looks_like_path || path.join("config.json").exists() || path.is_file() {
        return local(path);
    }
    let repository = Repository::parse(model)?;
    if let Some(files) = cached(&repository, places) {
        return Ok(files);
    }
    if places.offline {
        let hub = places.hub.as_ref().map_or("no cache directory".into(), |hub| hub.display().to_string());
        return Err(Error::Missing(format!(
            "{model}: not in the Hugging Face cache ({hub}), and the network is off; \
             run `interp models download {model}` without --offline first"
        )));
    }
    let dir = hub::download(&repository, places, progress)?;
    in_dir(&dir, format!("{}@{}", repository.id, file_name(&dir)))
}

/// The files of a model in a directory, or of a single weights file with its config beside it.
fn local(path: &Path) -> Result<Files> {
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Missing(format!("{}: no such file or directory", path.display())),
        _ => Error::reading(path, e),
    })?;
    let origin = path.display().to_string();
    if metadata.is_dir() {
        return in_dir(path, origin);
    }
    if !metadata.is_file() {
        return Err(Error::Missing(format!("{origin}: neither a file nor a directory")));
    }
    if let Some(kind @ ("pt" | "bin" | "pth" | "ckpt")) = path.extension().and_then(|e| e.to_str()) {
        return Err(Error::data(
            path,
            format!(
                ".{kind} is a pickle, which is not loaded: convert a checkpoint of nanoGPT with `interp models convert`, save \
                 others as safetensors"
            ),
        ));
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let config = dir.join("config.json");
    if !config.exists() {
        return Err(Error::Missing(format!("{origin}: no config.json beside it")));
    }
    Ok(Files { config, weights: vec![path.to_path_buf()], tokenizer: tokenizer_in(dir), origin })
}

fn in_dir(dir: &Path, origin: String) -> Result<Files> {
    let config = dir.join("config.json");
    if !config.exists() {
        return Err(Error::Missing(format!("{}: no config.json", dir.display())));
    }
    Ok(Files { config, weights: weight_files(dir)?, tokenizer: tokenizer_in(dir), origin })
}

fn tokenizer_in(dir: &Path) -> Option<PathBuf> {
    let json = dir.join("tokenizer.json");
    if json.exists() {
        return Some(json);
    }
    (dir.join("vocab.json").exists() && dir.join("merges.txt").exists()).then(|| dir.to_path_buf())
}

/// The files of a model that the cache holds completely.
pub fn cached(repository: &Repository, places: &Places) -> Option<Files> {
    let hub = places.hub.as_ref()?;
    repository.cache_names().iter().find_map(|name| {
        let dir = snapshot(&hub.join(name), &repository.revision)?;
        let files = in_dir(&dir, format!("{}@{}", repository.id, file_name(&dir))).ok()?;
        let complete = files.weights.iter().all(|file| file.exists()) && files.tokenizer.is_some();
        complete.then_some(files)
    })
}

/// The directory of a revision: named by a ref, being a commit itself, or the only one there is.
fn snapshot(repo: &Path, revision: &str) -> Option<PathBuf> {
    let snapshots = repo.join("snapshots");
    let by_ref = super::read_small(&repo.join("refs").join(revision), 256)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(|commit| commit.trim().to_string())
        .filter(|commit| is_plain_name(commit));
    let named = by_ref.or_else(|| is_plain_name(revision).then(|| revision.to_string()));
    if let Some(dir) = named.map(|commit| snapshots.join(commit)).filter(|dir| dir.is_dir()) {
        return Some(dir);
    }
    if revision != "main" {
        return None;
    }
    let mut all = std::fs::read_dir(&snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    match (all.next(), all.next()) {
        (Some(only), None) if only.is_dir() => Some(only),
        _ => None,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
