//! One writer at a time, by a lock of the operating system's.
//!
//! The lock lies on an open file, not in its content: it ends with the process that holds it, however that ends, and whether or not
//! another process can see it. After locking, the file is compared with the one that has the name: a file that was removed or
//! replaced meanwhile is not the lock any more.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, printable, shorten};

/// Holds a directory, or a piece of the work in it, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Who holds a lock, for a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
}

/// How often a lock is tried whose file is removed each time.
const TIMES: usize = 100;
/// A lock that is held is tried so often: a process that leaves a shared lock holds it alone for a moment, to see whether it was the last.
const TIMES_HELD: usize = 50;
/// The time between two such trials.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

impl Lock {
    /// Takes the lock file `path` for this process alone.
    ///
    /// # Errors
    /// [`Error::TryAgain`] with the process that holds it, [`Error::CannotWrite`] for a link or what is no file, and
    /// [`Error::Unavailable`] where the file system has no locks.
    pub fn open(path: &Path) -> Result<Self> {
        let mut lock = Self::take(path, |file| file.try_lock())?;
        lock.sign().map_err(|e| Error::writing(path, e))?;
        Ok(lock)
    }

    /// Takes the lock file `path` together with others that share it.
    ///
    /// # Errors
    /// As [`Lock::open`].
    pub fn share(path: &Path) -> Result<Self> {
        Self::take(path, |file| file.try_lock_shared())
    }

    fn take(path: &Path, lock: impl Fn(&File) -> std::result::Result<(), TryLockError>) -> Result<Self> {
        for turn in 0..TIMES {
            let file = open_file(path)?;
            match lock(&file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if turn < TIMES_HELD => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Err(held(file, path)),
                Err(TryLockError::Error(e)) => {
                    return Err(Error::Unavailable(format!(
                        "{}: this file system has no locks ({e}), so that two processes could write at once; use another --out",
                        path.display()
                    )));
                }
            }
            let lock = Self { file, path: path.to_path_buf() };
            // Whoever held it before may have removed the file that we opened.
            if lock.is_there() {
                return Ok(lock);
            }
            std::mem::drop(lock.file.unlock());
        }
        Err(Error::TryAgain(format!("{}: another process takes it each time; try again", path.display())))
    }

    /// Checks that the lock still has its name: whoever finds none takes another.
    ///
    /// # Errors
    /// [`Error::TryAgain`].
    pub fn check(&self) -> Result<()> {
        match self.is_there() {
            true => Ok(()),
            false => Err(Error::TryAgain(format!(
                "{} was removed or replaced, and another process may write here now; run the command again",
                self.path.display()
            ))),
        }
    }

    /// Whether the file that is locked is the one that has the name.
    fn is_there(&self) -> bool {
        let (Ok(own), Ok(named)) = (self.file.metadata(), self.path.symlink_metadata()) else { return false };
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            (own.dev(), own.ino()) == (named.dev(), named.ino())
        }
        #[cfg(not(unix))]
        {
            let _ = (own, named);
            true
        }
    }

    /// Writes who holds it into the file.
    fn sign(&mut self) -> std::io::Result<()> {
        let holder = Holder { host: read_host(), pid: std::process::id() };
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(serde_json::to_string(&holder)?.as_bytes())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file goes with its last holder: one that shares the lock finds out whether it is the last.
        let _ = self.file.unlock();
        if self.file.try_lock().is_ok() && self.is_there() {
            remove_file(&self.path);
        }
    }
}

/// Removes a lock file; one that stays is no lock without a holder.
fn remove_file(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Opens a lock file, or makes it; it is not read or written before it is locked.
fn open_file(path: &Path) -> Result<File> {
    let refuse = |what: &str| {
        Err(Error::CannotWrite { path: path.to_path_buf(), what: format!("it is {what}, where a lock file is wanted") })
    };
    if path.is_symlink() {
        return refuse("a link");
    }
    if path.is_dir() {
        return refuse("a directory");
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
    }
    let file = options.open(path).map_err(|e| Error::writing(path, e))?;
    match file.metadata().map_err(|e| Error::writing(path, e))?.is_file() {
        true => Ok(file),
        false => refuse("no regular file"),
    }
}

/// Who holds a lock, by what is written in its file.
fn held(file: File, path: &Path) -> Error {
    let mut text = String::new();
    let _ = file.take(4096).read_to_string(&mut text);
    let who = match serde_json::from_str::<Holder>(&text) {
        Ok(Holder { host, pid }) if host.is_empty() || host == read_host() => format!("process {pid}"),
        Ok(Holder { host, pid }) => format!("process {pid} on {}", shorten(&printable(&host))),
        Err(_) => "another process".into(),
    };
    Error::TryAgain(format!("{} is held by {who}; try again when that has ended", path.display()))
}

fn read_host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_held(path: &Path) -> bool {
        match Lock::open(path) {
            Ok(_) => false,
            Err(Error::TryAgain(_)) => true,
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn a_lock_holds_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::open(&path).unwrap();
        let refused = Lock::open(&path).unwrap_err();
        assert!(refused.to_string().contains(&format!("is held by process {}", std::process::id())), "{refused}");
        assert!(matches!(refused, Error::TryAgain(_)) && Lock::share(&path).is_err());
        drop(lock);
        assert!(!path.exists());
        // What is written in the file decides nothing.
        for text in ["", "{", r#"{"host":"elsewhere","pid":1}"#] {
            std::fs::write(&path, text).unwrap();
            drop(Lock::open(&path).unwrap());
        }
    }

    #[test]
    fn those_who_share_a_lock_keep_others_out_until_the_last_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (first, second) = (Lock::share(&path).unwrap(), Lock::share(&path).unwrap());
        assert!(is_held(&path));
        drop(first);
        second.check().unwrap();
        assert!(is_held(&path));
        drop(second);
        assert!(!is_held(&path) && !path.exists());
    }

    #[test]
    fn a_file_that_was_removed_or_replaced_is_not_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::open(&path).unwrap();
        lock.check().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(lock.check(), Err(Error::TryAgain(_))));
        // Whoever takes it now has a lock of its own, which the first one's end leaves alone.
        let other = Lock::open(&path).unwrap();
        assert!(lock.check().is_err());
        drop(lock);
        other.check().unwrap();
        assert!(is_held(&path));
    }

    #[test]
    fn many_at_once_never_hold_it_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let holders = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let Ok(lock) = Lock::open(&path) else { continue };
                        assert_eq!(holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        lock.check().unwrap();
                        holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
    }

    #[cfg(unix)]
    #[test]
    fn a_link_or_a_directory_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, path) = (dir.path().join("victim"), dir.path().join("lock"));
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(matches!(Lock::open(&path), Err(Error::CannotWrite { .. })));
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(Lock::open(&path), Err(Error::CannotWrite { .. })));
    }
}
