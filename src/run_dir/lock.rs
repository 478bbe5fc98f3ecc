use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::refusal;
use crate::error::{Error, Result, printable};

/// Holds an output directory until it is dropped: the system's lock on an empty file beside it, which ends with the process.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock of the directory `of`.
    ///
    /// # Errors
    /// [`Error::TryAgain`] where another process holds it, [`Error::CannotWrite`] where something else has its name.
    pub fn open(path: &Path, of: &Path) -> Result<Self> {
        let shown = || printable(&of.display().to_string());
        // The one who held it removes it: then the file that was opened is no longer the one of that name.
        for _ in 0..1000 {
            let file = open_empty(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::TryAgain(format!(
                        "{}: another process is writing there; try again when it has ended, or name another --out",
                        shown()
                    )));
                }
                Err(TryLockError::Error(e)) => return Err(Error::writing(path, e)),
            }
            if is_at(&file, path) {
                return Ok(Self { path: path.to_path_buf(), _file: file });
            }
        }
        Err(Error::TryAgain(format!("{}: other processes take it each time; try again", shown())))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Nobody else may remove it while it is held, so the name is still that of this file.
        let _ = fs::remove_file(&self.path);
    }
}

/// Opens an empty file, or makes one; nothing that is not one is touched.
fn open_empty(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).mode(0o666);
    }
    let file = match options.open(path) {
        Err(_) if path.is_symlink() => return Err(refusal(path, "it is a link where a lock belongs; remove it")),
        opened => opened.map_err(|e| Error::writing(path, e))?,
    };
    let facts = file.metadata().map_err(|e| Error::writing(path, e))?;
    match facts.is_file() && facts.len() == 0 {
        true => Ok(file),
        false => Err(refusal(path, "a lock belongs there, which is an empty file; move away what is there")),
    }
}

/// Whether a path names this very file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(held), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (held.dev(), held.ino()) == (named.dev(), named.ino())
    }
    #[cfg(not(unix))]
    {
        held.is_file() && named.is_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let (path, of) = (place.path().join(".out.interp-lock"), Path::new("out"));
        let lock = Lock::open(&path, of).unwrap();
        let refused = Lock::open(&path, of).unwrap_err();
        assert!(matches!(refused, Error::TryAgain(_)) && refused.to_string().starts_with("out: another process"));
        drop(lock);
        assert!(!path.exists());
        // One that a killed process left is nobody's.
        fs::write(&path, b"").unwrap();
        drop(Lock::open(&path, of).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_lock_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let (path, victim) = (place.path().join("lock"), place.path().join("victim"));
        fs::write(&victim, b"mine").unwrap();
        for (what, wanted) in
            [("link", "it is a link"), ("dangling", "it is a link"), ("text", "empty file"), ("fifo", "empty file")]
        {
            match what {
                "link" => std::os::unix::fs::symlink(&victim, &path).unwrap(),
                "dangling" => std::os::unix::fs::symlink(place.path().join("gone"), &path).unwrap(),
                "text" => fs::write(&path, b"notes").unwrap(),
                _ => assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success()),
            }
            let refused = Lock::open(&path, Path::new("out")).unwrap_err().to_string();
            assert!(refused.contains(wanted), "{what}: {refused}");
            assert!(fs::symlink_metadata(&path).is_ok() && !place.path().join("gone").exists(), "{what}");
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
    }

    /// Many processes that take a lock by turns: never two at once, although each removes the file.
    #[test]
    fn two_never_hold_it() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("lock");
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while taken.load(Ordering::SeqCst) < 400 {
                        if let Ok(lock) = Lock::open(&path, Path::new("out")) {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            taken.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
    }
}
