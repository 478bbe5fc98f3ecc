//! Hashes of files: what a result was computed from, and whether a download is whole.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde::{Deserialize, Serialize};

use super::header::open_regular;
use crate::error::{Error, Result};

/// A hash that a file should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// sha256 of the content: how the hub names large files.
    Sha256(String),
    /// git's sha1 of a blob: how the hub names small files.
    GitBlob(String),
}

impl Expected {
    /// Reads the hash from the name that the hub gives a blob.
    pub fn from_etag(etag: &str) -> Option<Self> {
        let hex = |n: usize| etag.len() == n && etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match () {
            () if hex(64) => Some(Expected::Sha256(etag.to_string())),
            () if hex(40) => Some(Expected::GitBlob(etag.to_string())),
            () => None,
        }
    }

    /// The hash in hexadecimal.
    pub fn hex(&self) -> &str {
        match self {
            Expected::Sha256(hex) | Expected::GitBlob(hex) => hex,
        }
    }

    /// The hash of the same kind that a file has.
    ///
    /// # Errors
    /// As reading the file.
    pub fn of_file(&self, path: &Path) -> Result<String> {
        match self {
            Expected::Sha256(_) => sha256(path),
            Expected::GitBlob(_) => {
                let length = open_regular(path)?.metadata().map_err(|e| Error::reading(path, e))?.len();
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {length}\0").as_bytes());
                finish(context, path)
            }
        }
    }
}

/// sha256 of a file, in hexadecimal.
///
/// # Errors
/// As reading the file.
pub fn sha256(path: &Path) -> Result<String> {
    finish(Context::new(&SHA256), path)
}

/// Hashes and counts what passes through.
pub struct Sha256Writer<W> {
    to: W,
    context: Context,
    bytes: u64,
}

impl<W: std::io::Write> Sha256Writer<W> {
    /// Writes to `to`.
    pub fn new(to: W) -> Self {
        Self { to, context: Context::new(&SHA256), bytes: 0 }
    }

    /// sha256 in hexadecimal, and the number of bytes.
    pub fn finish(self) -> (String, u64) {
        (hex(self.context.finish().as_ref()), self.bytes)
    }
}

impl<W: std::io::Write> std::io::Write for Sha256Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.context.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// sha256 of bytes, in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&SHA256, bytes).as_ref())
}

fn finish(mut context: Context, path: &Path) -> Result<String> {
    let mut file = open_regular(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::reading(path, e))? {
            0 => return Ok(hex(context.finish().as_ref())),
            n => context.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Remembers hashes between runs, since hashing 500 MB takes longer than a forward pass.
///
/// An entry counts only while the file's device, inode, size and both times are what they were.
#[derive(Clone, Debug)]
pub struct DigestCache {
    path: Option<PathBuf>,
}

#[derive(Default, Serialize, Deserialize)]
struct Known(BTreeMap<PathBuf, (String, String)>);

/// A file's sha256, with what it takes to remember it.
#[derive(Clone, Debug)]
pub struct FileDigest {
    /// The file's name, and not that of a blob that it may be a link to.
    pub name: String,
    /// In hexadecimal.
    pub sha256: String,
    /// Path and identity of the file, if the hash is new and the file did not change while it was read.
    fresh: Option<(PathBuf, String)>,
}

impl DigestCache {
    /// A cache in the file `path`; without one, nothing is remembered.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path }
    }

    /// sha256 of a file, remembered or computed. Nothing is written.
    ///
    /// # Errors
    /// As reading the file.
    pub fn sha256(&self, file: &Path) -> Result<FileDigest> {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = std::fs::canonicalize(file).map_err(|e| Error::reading(file, e))?;
        let identity = identity(&file);
        if let (Some(identity), Some((then, sha256))) = (&identity, self.load().0.get(&file))
            && identity == then
        {
            return Ok(FileDigest { name, sha256: sha256.clone(), fresh: None });
        }
        let sha256 = sha256(&file)?;
        let unchanged = identity.filter(|before| self::identity(&file).as_ref() == Some(before));
        Ok(FileDigest { name, sha256, fresh: unchanged.map(|identity| (file, identity)) })
    }

    /// Remembers what was computed. A cache that cannot be written only costs time.
    pub fn save(&self, digests: &[FileDigest]) {
        let new: Vec<_> = digests.iter().filter_map(|d| Some((d.fresh.clone()?, d.sha256.clone()))).collect();
        let (Some(path), false) = (&self.path, new.is_empty()) else { return };
        let mut known = self.load();
        known.0.retain(|file, _| file.exists());
        known.0.extend(new.into_iter().map(|((file, identity), sha256)| (file, (identity, sha256))));
        if let (Some(dir), Ok(text)) = (path.parent(), serde_json::to_vec(&known)) {
            let _ = crate::disk::write_dir(dir).and_then(|()| crate::disk::write_bytes(path, &text));
        }
    }

    fn load(&self) -> Known {
        let bytes = self.path.as_ref().and_then(|path| super::read_small(path, 4 << 20).ok());
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }
}

#[cfg(unix)]
fn identity(file: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let m = std::fs::metadata(file).ok()?;
    let (modified, changed) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
    Some(format!("{} {} {} {modified:?} {changed:?}", m.dev(), m.ino(), m.len()))
}

#[cfg(not(unix))]
fn identity(_file: &Path) -> Option<String> {
    None
}

/// The hash that a file has according to its name in the Hugging Face cache; none elsewhere.
pub fn promised(file: &Path) -> Option<Expected> {
    let blob = std::fs::canonicalize(file).ok()?;
    Expected::from_etag(blob.file_name()?.to_str()?)
}
