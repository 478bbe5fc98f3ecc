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
    /// Of tokenizer.json where it stands alone; else of a list of the tokenizer's files, as `sha256sum` prints it.
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
                let files = self.files.as_ref().map_or(0, |files| files.weights.len());
                let (weights, tokenizer) = found.split_at(files);
                let weights = weights.iter().map(|digest| digest.sha256.clone()).collect();
                Digests { weights, tokenizer: of_files(tokenizer) }
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
            tokenizer: match &global.tokenizer {
                Some(path) => of_files(&digests(&[], Some(path), &DigestCache::new(None))?),
                None => Some(interp::weights::sha256_of(embedded::TOKENIZER)),
            },
        };
        let source = Source { name: embedded::NAME.into(), files: None, hashing: Hashing::Done(digests) };
        return Ok((embedded::checkpoint()?, Some(tokenizer), source));
    }
    let mut places = Places::from_env()?;
    places.offline |= global.offline;
    let mut bar = Bar::new(global.quiet);
    let files = find(&global.model, &places, given.is_some(), &mut bar)?;
    bar.finish();
    let bytes = interp::weights::read_small(&files.config, 1 << 20)?;
    let config = Config::parse(&bytes, &files.config)?;
    let checkpoint = Checkpoint::open(&files.weights, &config)?;
    let tokenizer_path = given_path.or_else(|| files.tokenizer.clone());
    let tokenizer = interp::weights::load_tokenizer(&files, given, &config)?;
    let cache = DigestCache::new(places.digests.clone());
    let thread = {
        let (weights, cache) = (files.weights.clone(), cache.clone());
        std::thread::spawn(move || digests(&weights, tokenizer_path.as_deref(), &cache))
    };
    let hashing = Hashing::Running(thread, cache);
    let source = Source { name: global.model.clone(), files: Some(files), hashing };
    Ok((checkpoint, tokenizer, source))
}

/// Hashes of the weights and then of the files of the tokenizer, each compared with the hash that its name in the Hugging Face
/// cache promises.
fn digests(weights: &[PathBuf], tokenizer: Option<&Path>, cache: &DigestCache) -> Result<Vec<FileDigest>> {
    let tokenizer = tokenizer.map(Tokenizer::find_files).unwrap_or_default();
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

/// The hash that stands for a tokenizer: its file's, or that of a list of its files.
fn of_files(files: &[FileDigest]) -> Option<String> {
    match files {
        [] => None,
        [one] => Some(one.sha256.clone()),
        several => {
            let lines = several.iter().map(|digest| format!("{}  {}\n", digest.sha256, digest.name));
            Some(interp::weights::sha256_of(lines.collect::<String>().as_bytes()))
        }
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
        Self { bar: super::output::bar(quiet, 0, style), file: String::new() }
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
