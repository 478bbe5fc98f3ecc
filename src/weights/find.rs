//! From what a user types to the files of a model.

use std::path::{Path, PathBuf};

use super::checkpoint::{is_plain_name, shard_names, weight_files};
use super::foreign;
use super::hub::{self, Format, Progress};
use super::places::{Places, Repository};
use super::within::check_inside;
use crate::config::PUBLISHED;
use crate::error::{Error, Result, shorten};

/// Ends of names that are files, whether or not they are there.
const FILES: [&str; 10] = ["safetensors", "pt", "pth", "bin", "ckpt", "h5", "gguf", "msgpack", "onnx", "json"];

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

/// The files of a model whose weights PyTorch wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorchFiles {
    /// Weights, one file or all shards.
    pub weights: Vec<PathBuf>,
    /// The directory that they are in, and `config.json` if there is one.
    pub dir: PathBuf,
    /// As in [`Files`].
    pub tokenizer: Option<PathBuf>,
}

/// Finds a model by directory, by file or by name: on disk, in the Hugging Face cache, and last on the hub.
///
/// The cache is enough without a tokenizer if `has_tokenizer` says that there is another one, or where the network is off.
///
/// # Errors
/// [`Error::Missing`] that says where it looked and what it found instead; [`Error::Data`] for a file of another kind, or a
/// link that leads out of the cache; errors of the hub.
pub fn find(model: &str, places: &Places, has_tokenizer: bool, progress: &mut dyn Progress) -> Result<Files> {
    let path = Path::new(model);
    if is_local(model) {
        return local(path);
    }
    let repository = Repository::parse(model)?;
    match held(&repository, places, Format::Safetensors)? {
        Held::Whole(files) if files.tokenizer.is_some() || has_tokenizer || places.offline => return Ok(files),
        Held::Part(why) if places.offline => return Err(not_whole(model, &why)),
        Held::Nothing(why) if places.offline => {
            return Err(Error::Missing(format!(
                "{model}: not in the Hugging Face cache ({why}), and the network is off; \
                 run `interp models download {model}` without --offline first"
            )));
        }
        _ => {}
    }
    let dir = hub::download(&repository, Format::Safetensors, places, progress)?;
    in_dir(&dir, format!("{}@{}", repository.id, file_name(&dir)))
}

/// Finds the weights that PyTorch wrote: in a file, in a directory, in the Hugging Face cache or on the hub.
///
/// # Errors
/// As [`find`].
pub fn find_torch(path: &Path, places: &Places, progress: &mut dyn Progress) -> Result<TorchFiles> {
    if path.is_dir() {
        return Ok(TorchFiles { weights: torch_files(path)?, dir: path.into(), tokenizer: tokenizer_in(path) });
    }
    let model = path.to_str().filter(|model| !is_local(model) && Repository::parse(model).is_ok());
    let Some(model) = model else {
        std::fs::metadata(path).map_err(|e| Error::reading(path, e))?;
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Err(Error::request(format!(
                "{}: safetensors need no conversion: name the file with --model",
                path.display()
            )));
        }
        let dir = parent(path);
        return Ok(TorchFiles { weights: vec![path.into()], tokenizer: tokenizer_in(&dir), dir });
    };
    let repository = Repository::parse(model)?;
    let of =
        |files: Files| TorchFiles { dir: parent(&files.config), weights: files.weights, tokenizer: files.tokenizer };
    match held(&repository, places, Format::Torch)? {
        Held::Whole(files) => return Ok(of(files)),
        Held::Part(why) if places.offline => return Err(not_whole(model, &why)),
        Held::Nothing(why) if places.offline => {
            return Err(Error::Missing(format!(
                "{model}: neither a file or directory nor in the Hugging Face cache ({why}), and the network is off"
            )));
        }
        _ => {}
    }
    let dir = hub::download(&repository, Format::Torch, places, progress)?;
    Ok(TorchFiles { weights: torch_files(&dir)?, tokenizer: tokenizer_in(&dir), dir })
}

fn not_whole(model: &str, why: &str) -> Error {
    Error::Missing(format!("{model}: not whole in the Hugging Face cache ({why}), and the network is off"))
}

/// Whether a model is a file or a directory rather than the name of a repository.
fn is_local(model: &str) -> bool {
    let path = Path::new(model);
    let file = path.extension().and_then(|e| e.to_str()).is_some_and(|e| FILES.contains(&e));
    let published = PUBLISHED.iter().any(|p| p.0 == model);
    model.starts_with(['.', '/', '~'])
        || file
        || (path.exists() && !path.is_dir())
        || path.join("config.json").exists()
        || (path.is_dir() && !published && (!model.contains('/') || foreign::in_folder(path).is_some()))
        || (path.is_dir() && Repository::parse(model).is_err())
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
    let head = foreign::head(path).unwrap_or_default();
    if let Some(what) = foreign::name(path, &head) {
        return Err(Error::data(path, what));
    }
    let dir = parent(path);
    if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("adapter_model"))
        && let Some(what) = foreign::in_folder(&dir)
    {
        return Err(Error::data(path, what));
    }
    let config = dir.join("config.json");
    if !config.exists() {
        return Err(Error::Missing(format!("{origin}: no config.json beside it")));
    }
    Ok(Files { config, weights: vec![path.to_path_buf()], tokenizer: tokenizer_in(&dir), origin })
}

fn in_dir(dir: &Path, origin: String) -> Result<Files> {
    let config = dir.join("config.json");
    if !config.exists() {
        let hint = foreign::in_folder(dir).map_or(String::new(), |what| format!("; {what}"));
        return Err(Error::Missing(format!("{}: no config.json{hint}", dir.display())));
    }
    Ok(Files { config, weights: weight_files(dir)?, tokenizer: tokenizer_in(dir), origin })
}

/// The weights that PyTorch wrote into a directory: `pytorch_model.bin`, its shards, or the only other file of this kind.
fn torch_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let (single, index) = Format::Torch.names();
    if dir.join(single).exists() || dir.join(single).is_symlink() {
        return Ok(vec![dir.join(single)]);
    }
    let index = dir.join(index);
    if index.exists() {
        let names = shard_names(&super::read_small(&index, 8 << 20)?, &index)?;
        return Ok(names.into_iter().map(|name| dir.join(name)).collect());
    }
    match foreign::torch_candidates(dir).as_slice() {
        [only] => Ok(vec![dir.join(only)]),
        [] if dir.join("model.safetensors").exists() || dir.join("model.safetensors.index.json").exists() => {
            Err(Error::request(format!(
                "{}: its weights are safetensors, which need no conversion: name it with --model",
                dir.display()
            )))
        }
        [] => {
            let hint = foreign::in_folder(dir).map_or(String::new(), |what| format!("; {what}"));
            Err(Error::Missing(format!("{}: no weights that PyTorch wrote{hint}", dir.display())))
        }
        several => {
            let shown: Vec<String> = several.iter().take(6).map(|name| shorten(name)).collect();
            Err(Error::request(format!(
                "{}: {} files that PyTorch wrote ({}): name one of them",
                dir.display(),
                several.len(),
                shown.join(", ")
            )))
        }
    }
}

fn tokenizer_in(dir: &Path) -> Option<PathBuf> {
    let json = dir.join("tokenizer.json");
    if json.exists() {
        return Some(json);
    }
    (dir.join("vocab.json").exists() && dir.join("merges.txt").exists()).then(|| dir.to_path_buf())
}

/// What the cache holds of a model.
enum Held {
    /// Config and weights, and perhaps the tokenizer.
    Whole(Files),
    /// Some of it, and what is missing.
    Part(String),
    /// Nothing, and where it was looked for.
    Nothing(String),
}

/// The files of a model that the cache holds completely, tokenizer included.
pub fn cached(repository: &Repository, places: &Places) -> Option<Files> {
    match held(repository, places, Format::Safetensors) {
        Ok(Held::Whole(files)) if files.tokenizer.is_some() => Some(files),
        _ => None,
    }
}

fn held(repository: &Repository, places: &Places, format: Format) -> Result<Held> {
    let Some(hub) = &places.hub else { return Ok(Held::Nothing("no cache directory".into())) };
    let mut nothing = hub.display().to_string();
    let mut part = None;
    for name in repository.cache_names() {
        let repo = hub.join(name);
        if !repo.exists() {
            continue;
        }
        let dir = match snapshot(&repo, &repository.revision) {
            Ok(dir) => dir,
            Err(why) => {
                nothing = format!("{}: {why}", repo.display());
                continue;
            }
        };
        match in_snapshot(hub, &repo, &dir, repository, format) {
            Ok(files) => return Ok(Held::Whole(files)),
            Err(Error::Missing(why)) => part = Some(why),
            Err(other) => return Err(other),
        }
    }
    Ok(part.map_or(Held::Nothing(nothing), Held::Part))
}

/// The files of a snapshot, each there and none outside its repository.
fn in_snapshot(hub: &Path, repo: &Path, dir: &Path, repository: &Repository, format: Format) -> Result<Files> {
    let inside = |file: &Path| check_inside(hub, repo, file);
    for name in ["config.json", format.names().1] {
        let file = dir.join(name);
        if file.exists() || file.is_symlink() {
            inside(&file)?;
        }
    }
    let origin = format!("{}@{}", repository.id, file_name(dir));
    let files = match format {
        Format::Safetensors => in_dir(dir, origin)?,
        Format::Torch => {
            Files { config: dir.join("config.json"), weights: torch_files(dir)?, tokenizer: tokenizer_in(dir), origin }
        }
    };
    for file in &files.weights {
        inside(file)?;
    }
    match &files.tokenizer {
        Some(path) if path.is_dir() => {
            inside(&path.join("vocab.json"))?;
            inside(&path.join("merges.txt"))?;
        }
        Some(path) => inside(path)?,
        None => {}
    }
    Ok(files)
}

/// The directory of a revision: named by a ref, being a commit itself, or the only one there is.
fn snapshot(repo: &Path, revision: &str) -> std::result::Result<PathBuf, String> {
    let snapshots = repo.join("snapshots");
    let by_ref = super::read_small(&repo.join("refs").join(revision), 256)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(|commit| commit.trim().to_string())
        .filter(|commit| is_plain_name(commit));
    let named = by_ref.or_else(|| is_plain_name(revision).then(|| revision.to_string()));
    if let Some(dir) = named.map(|commit| snapshots.join(commit)).filter(|dir| dir.is_dir()) {
        return Ok(dir);
    }
    let all = std::fs::read_dir(&snapshots).map_err(|_| "no snapshots".to_string())?;
    let mut all: Vec<PathBuf> = all.filter_map(|entry| Some(entry.ok()?.path())).filter(|dir| dir.is_dir()).collect();
    all.sort();
    match all.as_slice() {
        [] => Err("no snapshots".into()),
        [only] if revision == "main" => Ok(only.clone()),
        several => {
            let names: Vec<String> = several.iter().take(3).map(|dir| shorten(&file_name(dir))).collect();
            Err(format!("no revision {revision}, only {}; name one after @", names.join(", ")))
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
