//! A disk that refuses on demand and that tells what it was asked for, for tests.
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

/// What was done below the directories that are recorded.
static RECORDS: Mutex<Vec<(PathBuf, Steps)>> = Mutex::new(Vec::new());

/// Steps in their order, each with its path.
type Steps = Vec<(&'static str, PathBuf)>;

/// A record of the steps below a directory, until it is dropped.
pub(crate) struct Recorded {
    dir: PathBuf,
}

impl Recorded {
    pub(crate) fn new(dir: &Path) -> Self {
        RECORDS.lock().unwrap_or_else(PoisonError::into_inner).push((dir.to_path_buf(), Vec::new()));
        Self { dir: dir.to_path_buf() }
    }

    /// Each step with the file or the directory that it was about, in order; a step that follows its like counts once.
    pub(crate) fn steps(&self) -> Vec<(&'static str, PathBuf)> {
        let records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut steps = records.iter().find(|(dir, _)| *dir == self.dir).map_or(Vec::new(), |(_, steps)| steps.clone());
        steps.dedup();
        steps
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        RECORDS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(dir, _)| *dir != self.dir);
    }
}

/// Remembers a step.
pub(super) fn record(path: &Path, what: &'static str) {
    let mut records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
    for (_, steps) in records.iter_mut().filter(|(dir, _)| path.starts_with(dir)) {
        steps.push((what, path.to_path_buf()));
    }
}

/// Comes before everything that a disk may refuse.
pub(super) fn step(path: &Path, what: &'static str) -> Result<()> {
    record(path, what);
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
