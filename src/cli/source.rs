//! The files of a model: found, opened, checked, hashed.

use std::path::{Path, PathBuf};

use interp::weights::{Checkpoint, DigestCache, Expected, FileDigest, Files, Places, Progress, find, promised};
use interp::{Config, Error, Result, Tokenizer, embedded};

use super::args::Global;

/// Where a model came from.
pub struct Source {
    pub name: String,
    pub files: Option<Files>,
    hashing: Hashing,
}

/// The hashes of the files, on their way or here.
enum Hashing {
    /// Computed beside the work, since hashing 500 MB takes longer than a forward pass.
    Running(std::thread::JoinHandle<Result<Vec<FileDigest>>>, DigestCache),
    Done(Digests),
}

/// sha256 of what was loaded.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    pub weights: Vec<String>,
    pub tokenizer: Option<String>,
}

impl Source {
    /// The hashes; waits for them.
    pub fn digests(&mut self) -> Result<Digests> {
        let done = Hashing::Done(Digests::default());
        let digests = match std::mem::replace(&mut self.hashing, done) {
            Hashing::Done(digests) => digests,
            Hashing::Running(thread, cache) => {
                let found = thread.join().unwrap_or_else(|_| Err(Error::Bug("hashing failed".into())))?;
                cache.save(&found);
                let mut found = found.into_iter().map(|digest| digest.sha256);
                let files = self.files.as_ref().map_or(0, |files| files.weights.len());
                Digests { weights: found.by_ref().take(files).collect(), tokenizer: found.next() }
            }
        };
        self.hashing = Hashing::Done(digests.clone());
        Ok(digests)
    }
}

/// The checkpoint and tokenizer of a model, checked but not loaded.
pub fn open_files(global: &Global) -> Result<(Checkpoint, Option<Tokenizer>, Source)> {
    let given = global.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    let given_path = global.tokenizer.clone();
    if global.model == embedded::NAME {
        let tokenizer = match given {
            Some(tokenizer) => tokenizer,
            None => embedded::tokenizer()?,
        };
        let digests = Digests {
            weights: vec![interp::weights::sha256_of(embedded::WEIGHTS)],
            tokenizer: Some(match &global.tokenizer {
                Some(path) => interp::weights::sha256(&tokenizer_file(path))?,
                None => interp::weights::sha256_of(embedded::TOKENIZER),
            }),
        };
        let source = Source { name: embedded::NAME.into(), files: None, hashing: Hashing::Done(digests) };
        return Ok((embedded::checkpoint()?, Some(tokenizer), source));
    }
    let mut places = Places::from_env()?;
    places.offline |= global.offline;
    let mut bar = Bar::new(global.quiet);
    let files = find(&global.model, &places, &mut bar)?;
    bar.finish();
    let bytes = interp::weights::read_small(&files.config, 1 << 20)?;
    let config = Config::parse(&bytes, &files.config)?;
    let checkpoint = Checkpoint::open(&files.weights, &config)?;
    let tokenizer_path = given_path.or_else(|| files.tokenizer.clone());
    let tokenizer = match (given, &files.tokenizer) {
        (Some(tokenizer), _) => Some(tokenizer),
        (None, Some(path)) => Some(Tokenizer::load(path)?),
        (None, None) => None,
    };
    let cache = DigestCache::new(places.digests.clone());
    let thread = {
        let (weights, cache) = (files.weights.clone(), cache.clone());
        std::thread::spawn(move || digests(&weights, tokenizer_path.as_deref(), &cache))
    };
    let hashing = Hashing::Running(thread, cache);
    let source = Source { name: global.model.clone(), files: Some(files), hashing };
    Ok((checkpoint, tokenizer, source))
}

/// Hashes of the weights and last of the tokenizer, each compared with the hash that its name in the Hugging Face cache
/// promises.
fn digests(weights: &[PathBuf], tokenizer: Option<&Path>, cache: &DigestCache) -> Result<Vec<FileDigest>> {
    let tokenizer = tokenizer.map(tokenizer_file);
    weights
        .iter()
        .chain(&tokenizer)
        .map(|file| {
            let digest = cache.sha256(file)?;
            match promised(file) {
                Some(Expected::Sha256(promised)) if promised != digest.sha256 => Err(Error::Data {
                    path: file.clone(),
                    what: format!(
                        "sha256 is {}, but the cache promises {promised}; delete the file and download it again",
                        digest.sha256
                    ),
                }),
                _ => Ok(digest),
            }
        })
        .collect()
}

/// The file that stands for a tokenizer.
fn tokenizer_file(path: &Path) -> PathBuf {
    let json = path.join("tokenizer.json");
    match path.is_dir() {
        true if json.exists() => json,
        true => path.join("vocab.json"),
        false => path.to_path_buf(),
    }
}

/// A progress bar for downloads, on a terminal only.
pub struct Bar {
    bar: indicatif::ProgressBar,
    file: String,
}

impl Bar {
    pub fn new(quiet: bool) -> Self {
        let style = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        Self { bar: super::report::bar(quiet, 0, style), file: String::new() }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn update(&mut self, file: &str, done: u64, total: u64) {
        if self.file != file {
            self.file = file.to_string();
            self.bar.set_message(self.file.clone());
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }
}
