//! The files of a dataset's directory: regular files of its own, and no links, pipes or devices.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::weights::Sha256Writer;

/// Opens a regular file that is no link; a pipe does not make it wait.
///
/// # Errors
/// [`Error::Missing`] for a file that is not there, and [`Error::Data`] for what is no file of the directory's own.
pub(crate) fn open(path: &Path) -> Result<File> {
    let refuse = |what: &str| Err(Error::data(path, format!("is {what}; a dataset consists of regular files")));
    if path.is_symlink() {
        return refuse("a link");
    }
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
    }
    let file = options.open(path).map_err(|e| Error::reading(path, e))?;
    let kind = file.metadata().map_err(|e| Error::reading(path, e))?.file_type();
    match kind {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => refuse("a directory"),
        _ => refuse("a pipe or a device"),
    }
}

/// Reads a file of at most `limit` bytes; none where there is no such file.
///
/// # Errors
/// As [`open`], and [`Error::Data`] for a longer file.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match open(path) {
        Err(Error::Missing(_)) if is_absent(path) => return Ok(None),
        opened => opened?,
    };
    let fail = |e| Error::reading(path, e);
    let length = file.metadata().map_err(fail)?.len();
    if length > limit {
        return Err(Error::data(path, format!("has {length} bytes, and such a file has at most {limit}")));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(fail)?;
    Ok(Some(bytes))
}

/// The bytes of a file; none where there is no such file.
///
/// # Errors
/// As [`open`].
pub(crate) fn size(path: &Path) -> Result<Option<u64>> {
    match open(path) {
        Err(Error::Missing(_)) if is_absent(path) => Ok(None),
        opened => Ok(Some(opened?.metadata().map_err(|e| Error::reading(path, e))?.len())),
    }
}

fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// The sha256 of a file.
///
/// # Errors
/// As [`open`].
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256Writer::new(std::io::sink());
    std::io::copy(&mut open(path)?, &mut hash).map_err(|e| Error::reading(path, e))?;
    Ok(hash.finish().0)
}

/// Checks that a directory holds no link: what is written into it must not end up elsewhere.
///
/// # Errors
/// [`Error::CannotWrite`] that names the link.
pub(crate) fn read_for_links(dir: &Path) -> Result<()> {
    let fail = |e| Error::reading(dir, e);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_symlink() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let what = format!("it holds a link ({}); a dataset consists of regular files", name.escape_debug());
            return Err(Error::CannotWrite { path: dir.to_path_buf(), what });
        }
    }
    Ok(())
}

/// Removes what a process that was killed was writing: hidden temporary files `.NAME.….tmp` whose NAME is one of the dataset's.
///
/// # Errors
/// [`Error::Io`] or [`Error::CannotWrite`].
pub(crate) fn remove_unfinished(dir: &Path, is_own: impl Fn(&str) -> bool) -> Result<()> {
    let fail = |e| Error::reading(dir, e);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let hidden = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".tmp"));
        let whole = hidden.and_then(|name| name.rsplit_once('.')).map(|(name, _)| name);
        if whole.is_some_and(&is_own) && entry.file_type().map_err(fail)?.is_file() {
            std::fs::remove_file(entry.path()).map_err(|e| Error::writing(entry.path(), e))?;
        }
    }
    Ok(())
}

/// Whether a name is that of a file that an export writes.
pub(crate) fn is_own(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        ".interp-export",
        "tokens.bin",
        "sequences.bin",
        "labels.parquet",
        "plan.json",
        "plan.lock",
        "lock",
        "manifest.json",
        "state.json",
        "dataset_info.json",
        "figure.svg",
        "figure.png",
    ];
    NAMES.contains(&name) || is_piece(name) || part(name).is_some()
}

/// Whether a name is that of the lock of a piece: `piece-3-of-8.lock`.
pub(crate) fn is_piece(name: &str) -> bool {
    let numbers = name.strip_prefix("piece-").and_then(|name| name.strip_suffix(".lock")?.split_once("-of-"));
    numbers.is_some_and(|(index, of)| index.parse::<usize>().is_ok() && of.parse::<usize>().is_ok())
}

/// The number of the part that a file of this name belongs to: `part-00003.parquet`, `part-00003.json`.
pub(crate) fn part(name: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix("part-")?.split_once('.')?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "abc").unwrap();
        std::fs::create_dir(path("dir")).unwrap();
        assert_eq!(read(&path("file"), 3).unwrap(), Some(b"abc".to_vec()));
        assert_eq!(read(&path("nothing"), 3).unwrap(), None);
        assert_eq!(sha256(&path("file")).unwrap(), crate::weights::sha256_of(b"abc"));
        let refused = |name: &str, wanted: &str| {
            let error = read(&path(name), 2).unwrap_err();
            assert!(matches!(error, Error::Data { .. }) && error.to_string().contains(wanted), "{error}");
        };
        refused("file", "has 3 bytes, and such a file has at most 2");
        refused("dir", "is a directory");
        #[cfg(unix)]
        {
            read_for_links(dir.path()).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path("pipe"),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o600),
                0,
            )
            .unwrap();
            refused("pipe", "a pipe or a device");
            std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
            std::os::unix::fs::symlink(path("nothing"), path("loose")).unwrap();
            refused("link", "is a link");
            refused("loose", "is a link");
            assert!(read_for_links(dir.path()).unwrap_err().to_string().contains("it holds a link ("));
        }
    }

    #[test]
    fn only_temporaries_of_ours_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let own = [".part-00000.parquet.Ab12.tmp", ".manifest.json.x.tmp", ".piece-0-of-2.lock.x.tmp", ".lock.x.tmp"];
        let others = ["part-00000.parquet", ".thesis.tex.x.tmp", ".part-x.parquet.x.tmp", "plan.json.x.tmp", ".tmp"];
        own.iter().chain(&others).for_each(|name| std::fs::write(dir.path().join(name), "").unwrap());
        remove_unfinished(dir.path(), is_own).unwrap();
        let left = |names: &[&str]| names.iter().filter(|name| dir.path().join(name).exists()).count();
        assert_eq!((left(&own), left(&others)), (0, others.len()));
    }
}
