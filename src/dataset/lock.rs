//! One writer at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::{Error, Result};

/// Holds a directory, or a piece of the work in it, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
    /// When the process started, in ticks since the machine did: process numbers come round again.
    started: Option<u64>,
}

impl Lock {
    /// Takes the lock file `path`; one whose process is gone is taken over.
    ///
    /// # Errors
    /// [`Error::TryAgain`] with the process that holds it.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |e| Error::writing(path, e);
        let ours = Holder { host: read_host(), pid: std::process::id(), started: read_started(std::process::id()) };
        let text = serde_json::to_string(&ours).map_err(|e| Error::Bug(e.to_string()))?;
        for _ in 0..3 {
            match disk::write_new(path, text.as_bytes()) {
                Ok(()) => return Ok(Self { path: path.to_path_buf() }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => remove_stale(path)?,
                // Whoever took it meanwhile has cleared away what it found.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(fail(e)),
            }
        }
        Err(Error::TryAgain(format!("{}: another process takes it each time; try again", path.display())))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

/// Removes a lock whose process is gone; refuses for one that is there, or that may be on another machine.
fn remove_stale(path: &Path) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) }; // gone meanwhile
    let held = |who: String| Error::TryAgain(format!("{} is held by {who}", path.display()));
    let Ok(holder) = serde_json::from_str::<Holder>(&text) else {
        // Cut short by a power failure, or about to be written.
        let age = File::open(path).and_then(|file| file.metadata()?.modified()).ok().and_then(|t| t.elapsed().ok());
        return match age {
            Some(age) if age.as_secs() >= 5 => remove(path),
            _ => Err(held("a process that is just starting".into())),
        };
    };
    if holder.host != read_host() {
        return Err(held(format!(
            "process {} on {}; delete the file if that one is gone",
            holder.pid,
            crate::error::printable(&holder.host)
        )));
    }
    match read_started(holder.pid) {
        Some(started) if holder.started.is_none_or(|then| then == started) => {
            Err(held(format!("process {}, which is running", holder.pid)))
        }
        _ => remove(path),
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::writing(path, e)),
        _ => Ok(()),
    }
}

fn read_host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_string()).unwrap_or_default()
}

/// When a process started, if it runs: field 22 of `/proc/PID/stat`, counted after the name in brackets.
fn read_started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_holds_until_it_is_dropped_or_its_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::open(&path).unwrap();
        let refused = Lock::open(&path).unwrap_err();
        assert!(
            refused.to_string().contains(&format!("process {}, which is running", std::process::id())),
            "{refused}"
        );
        assert!(matches!(refused, Error::TryAgain(_)));
        drop(lock);
        assert!(!path.exists());
        // A process of the same number that started at another time is another process.
        let gone = Holder { host: read_host(), pid: std::process::id(), started: Some(1) };
        std::fs::write(&path, serde_json::to_string(&gone).unwrap()).unwrap();
        drop(Lock::open(&path).unwrap());
        let away = Holder { host: "elsewhere".into(), ..gone };
        std::fs::write(&path, serde_json::to_string(&away).unwrap()).unwrap();
        assert!(Lock::open(&path).unwrap_err().to_string().contains("on elsewhere; delete the file"));
        std::fs::write(&path, "{").unwrap();
        assert!(Lock::open(&path).unwrap_err().to_string().contains("just starting"));
    }
}
