//! Writing files so that they are either absent, old or complete, never half-written.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Bytes of a growing file that may wait for the disk.
const BEHIND: u64 = if cfg!(test) { 1 << 10 } else { 32 << 20 };

#[cfg(test)]
pub(crate) mod fault;
#[cfg(test)]
use fault::step;

/// Writes `path` through a temporary file beside it, which is synced and then renamed over it; gives back what `fill` does.
///
/// # Errors
/// What `fill` returns, [`Error::CannotWrite`] or [`Error::Io`]; the old content, if any, is then untouched and nothing is
/// left behind.
pub fn write_with<T>(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let fail = |e| Error::writing(path, e);
    let temporary = step(path, "create").and_then(|()| open_beside(path)).map_err(fail)?;
    // Large writes pass the buffer by.
    let mut writer = BufWriter::with_capacity(1 << 16, Growing { to: temporary.as_file(), path, behind: 0 });
    let value = fill(&mut writer)?;
    writer.flush().map_err(fail)?;
    drop(writer);
    step(path, "sync").and_then(|()| temporary.as_file().sync_all()).map_err(fail)?;
    step(path, "rename").map_err(fail)?;
    temporary.persist(path).map_err(|e| fail(e.error))?;
    sync_dir(&parent(path));
    Ok(value)
}

/// [`write_with`] for what fails as writing does.
///
/// # Errors
/// As [`write_with`].
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    write_with(path, |file| fill(file).map_err(|e| Error::writing(path, e)))
}

/// A temporary file beside another, hidden: `.NAME.….tmp`.
fn open_beside(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666)); // the umask applies
    }
    builder.tempfile_in(parent(path))
}

/// A file that goes to disk as it grows, a piece at a time: the sync at its end is short, and its pages make room for the next
/// ones instead of for what others had in memory. (Measured: writing into pages that the system has to find first takes ten
/// times as long as into those that just became free.)
struct Growing<'a> {
    to: &'a File,
    path: &'a Path,
    behind: u64,
}

impl Write for Growing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        step(self.path, "write")?;
        let written = self.to.write(bytes)?;
        self.behind += written as u64;
        if self.behind >= BEHIND {
            step(self.path, "sync part")?;
            self.to.sync_data()?;
            self.behind = 0;
            #[cfg(target_os = "linux")]
            let _ = rustix::fs::fadvise(self.to, 0, None, rustix::fs::Advice::DontNeed);
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Comes before everything that a disk may refuse: creating, writing, syncing, renaming.
#[cfg(not(test))]
#[inline]
fn step(_: &Path, _: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// [`write_atomic`] of bytes that are at hand.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |file| file.write_all(bytes))
}

/// Opens a file that is there to write at its end; a link is refused.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`].
pub fn open_append(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.append(true);
    open_unlinked(path, options)
}

fn open_unlinked(path: &Path, mut options: std::fs::OpenOptions) -> Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW);
    }
    options.open(path).map_err(|e| Error::writing(path, e))
}

/// Creates an empty file, or leaves the one that is there; a link is refused. It needs no temporary file, which another process
/// could take for the remains of one that was killed.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`].
pub fn write_mark(path: &Path) -> Result<()> {
    let mut options = File::options();
    options.append(true).create(true);
    open_unlinked(path, options).map(drop)
}

/// Creates a directory and its parents.
///
/// # Errors
/// [`Error::CannotWrite`].
pub fn write_dir(path: &Path) -> Result<()> {
    let there = path.is_dir();
    std::fs::create_dir_all(path).map_err(|e| Error::writing(path, e))?;
    if !there {
        sync_dir(&parent(path));
    }
    Ok(())
}

/// Bytes that are free where a path is or would be, where the system tells.
pub fn free(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let there =
            path.ancestors().find(|path| path.exists() && !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let found = rustix::fs::statvfs(there).ok()?;
        Some(found.f_bavail * found.f_frsize)
    }
    #[cfg(not(unix))]
    None
}

pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes a rename in a directory survive a power cut; some file systems cannot, which loses nothing else.
pub(crate) fn sync_dir(dir: &Path) {
    #[cfg(test)]
    fault::record(dir, "sync directory");
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}
