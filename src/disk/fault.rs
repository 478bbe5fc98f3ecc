//! A disk that refuses on demand, for tests.
#![cfg(test)]

use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What refuses at present.
static FAULTS: Mutex<Vec<Fault>> = Mutex::new(Vec::new());

/// Refuses, below a directory, the step after `after` others.
#[derive(Clone, Debug)]
struct Fault {
    dir: PathBuf,
    after: usize,
    error: i32,
    lasting: bool,
    met: bool,
}

/// A fault, until it is dropped.
pub(crate) struct Broken {
    dir: PathBuf,
}

impl Broken {
    /// Lets the step after `after` others below `dir` fail with the system's `error`, and all later ones if `lasting`.
    pub(crate) fn new(dir: &Path, after: usize, error: i32, lasting: bool) -> Self {
        let fault = Fault { dir: dir.to_path_buf(), after, error, lasting, met: false };
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
        Self { dir: dir.to_path_buf() }
    }

    /// Whether it came to the fault.
    pub(crate) fn was_met(&self) -> bool {
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|fault| fault.dir == self.dir && fault.met)
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner).retain(|fault| fault.dir != self.dir);
    }
}

/// Comes before everything that a disk may refuse.
pub(super) fn step(path: &Path) -> Result<()> {
    let mut faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(fault) = faults.iter_mut().find(|fault| path.starts_with(&fault.dir)) else { return Ok(()) };
    if fault.after > 0 {
        fault.after -= 1;
        return Ok(());
    }
    if fault.met && !fault.lasting {
        return Ok(());
    }
    fault.met = true;
    Err(std::io::Error::from_raw_os_error(fault.error))
}
