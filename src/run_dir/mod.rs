//! Output directories: a run owns exactly the files that its own `run.json` lists, with their bytes and sha256.
//!
//! - A [`Claim`] is for a command that computes and then writes: its files go into a temporary directory, which takes the place of the
//!   earlier run's at the end, so that a run that failed, was refused or was killed leaves the earlier one whole.
//! - A [`Kept`] directory is for a command that writes while it works and that is continued: a hidden marker lists what it may write.
//!
//! Both hold the lock `.NAME.interp-lock` beside the directory, follow no link inside it, and neither delete nor replace a file that no
//! run of theirs has written. What a killed process left beside or in the directory is removed by the next one that takes the lock.

mod claim;
mod exchange;
mod kept;
mod lock;
mod record;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

pub use claim::{Claim, remove};
pub use kept::Kept;
pub use lock::Lock;
pub use record::{Listed, RUN};

use crate::disk;
use crate::error::{Error, Result, printable};

/// End of the name of a temporary directory.
const UNFINISHED: &str = ".interp-tmp";
/// Longest name of a directory that goes into the names beside it as it is.
const LONGEST: usize = 200;

/// A directory with its links resolved, and what its user called it.
#[derive(Clone, Debug)]
struct Place {
    shown: PathBuf,
    parent: PathBuf,
    name: OsString,
}

impl Place {
    /// Finds the place of a directory that is there or may be made; its parents are made.
    fn open(dir: &Path) -> Result<Self> {
        let shown: PathBuf = dir.components().collect();
        let cannot = |what: &str| refusal(&shown, what);
        if shown.is_symlink() {
            return Err(cannot("it is a link; name the directory itself"));
        }
        let split = |path: &Path| path.parent().zip(path.file_name()).map(|(p, n)| (p.to_path_buf(), n.to_os_string()));
        if shown.exists() {
            if !shown.is_dir() {
                return Err(cannot("it is a file; --out names a directory"));
            }
            let real = fs::canonicalize(&shown).map_err(|e| Error::writing(&shown, e))?;
            let (parent, name) = split(&real).ok_or_else(|| cannot("it is the root of the file system"))?;
            return Ok(Self { shown, parent, name });
        }
        let name = shown.file_name().ok_or_else(|| cannot("it names no directory"))?.to_os_string();
        let parent = disk::parent(&shown);
        disk::write_dir(&parent)?;
        let parent = fs::canonicalize(&parent).map_err(|e| Error::writing(&shown, e))?;
        Ok(Self { shown, parent, name })
    }

    fn dir(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// The beginning of the names of what belongs to this directory and lies beside it.
    fn prefix(&self) -> OsString {
        let bytes = self.name.as_encoded_bytes();
        let short = crate::weights::sha256_of(bytes)[..32].to_string();
        let name = if bytes.len() > LONGEST { OsStr::new(&short) } else { &self.name };
        [OsStr::new("."), name, OsStr::new(".")].into_iter().collect()
    }

    /// Takes the lock.
    fn open_lock(&self) -> Result<Lock> {
        let mut name = self.prefix();
        name.push("interp-lock");
        match Lock::open(&self.parent.join(&name), &self.shown) {
            // Where nobody may write beside the directory, nobody exchanges it: the lock may lie in it.
            Err(Error::CannotWrite { .. }) if self.dir().is_dir() && !is_writable(&self.parent) => {
                Lock::open(&self.dir().join(".interp-lock"), &self.shown)
            }
            other => other,
        }
    }

    /// Paths beside the directory that begin with its prefix and end so, with six letters between: what processes that are gone left.
    fn find_beside(&self, end: &str) -> Vec<PathBuf> {
        let prefix = self.prefix();
        let own = |name: &OsStr| {
            let middle = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
            middle.and_then(|rest| rest.strip_suffix(end.as_bytes())).is_some_and(is_random)
        };
        entries(&self.parent).unwrap_or_default().iter().filter(|name| own(name)).map(|n| self.parent.join(n)).collect()
    }
}

/// Whether this is what makes the name of a temporary file its own.
fn is_random(middle: &[u8]) -> bool {
    middle.len() == 6 && middle.iter().all(u8::is_ascii_alphanumeric)
}

/// Names in a directory, in order; of one that is not there none.
fn entries(dir: &Path) -> Result<Vec<OsString>> {
    let fail = |e| Error::reading(dir, e);
    let mut names = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(fail)?.map(|entry| Ok(entry.map_err(fail)?.file_name())).collect::<Result<Vec<_>>>()?,
    };
    names.sort_unstable();
    Ok(names)
}

/// Whether this is a directory, and no link to one.
fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|facts| facts.is_dir())
}

/// Whether this process may make files in a directory.
fn is_writable(dir: &Path) -> bool {
    #[cfg(unix)]
    return rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok();
    #[cfg(not(unix))]
    return fs::metadata(dir).is_ok_and(|facts| !facts.permissions().readonly());
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn refusal(dir: &Path, what: &str) -> Error {
    Error::CannotWrite { path: dir.to_path_buf(), what: what.into() }
}

/// Refuses a directory that is not one of ours, naming what is in it.
fn foreign(dir: &Path, name: &OsStr) -> Error {
    refusal(
        dir,
        &format!("it holds other files ({}); name an empty or a new directory", printable(&name.to_string_lossy())),
    )
}

/// What a command reads that lies in a directory, as paths from there; the empty path for the directory itself.
fn within<'a>(reads: &'a [PathBuf], dir: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    let real = |path: &PathBuf| fs::canonicalize(path).ok();
    reads.iter().filter_map(real).filter_map(move |path| path.strip_prefix(dir).ok().map(Path::to_path_buf))
}
