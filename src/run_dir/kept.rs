use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::{self, RUN};
use super::{Lock, Place, entries, foreign, is_hidden, is_random, is_real_dir, is_writable, refusal, within};
use crate::disk;
use crate::error::{Error, Result, printable};
use crate::weights::read_small;

/// The file that says which run a directory is kept for, and what that may write.
pub(super) const MARKER: &str = ".interp-run.json";
/// How often a lock that somebody holds is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// The directory of a run that writes while it works, and that is continued.
///
/// It is taken empty; every file gets its name from [`Kept::write_file`], which refuses one that is there and is not the run's.
#[derive(Debug)]
pub struct Kept {
    place: Place,
    marker: Marker,
    _lock: Lock,
}

/// What the marker says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Marker {
    command: String,
    /// What tells the run from others of its command.
    of: Option<String>,
    /// What the run wrote or is about to write.
    files: BTreeSet<String>,
}

impl Kept {
    /// Takes a directory for a run of `command`: a new one, an empty one, or the one of an earlier run of this command. Nothing is
    /// written yet; temporary files that a killed process left are removed.
    ///
    /// `reads` are the files and directories that the command reads: a run that it reads is not written over.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] for a directory that may not be taken, [`Error::TryAgain`] where another process has it.
    pub fn open(dir: &Path, command: &str, reads: &[PathBuf]) -> Result<Self> {
        let place = Place::open(dir)?;
        let lock = place.open_lock()?;
        let dir = place.dir();
        let there = dir.exists();
        if !is_writable(if there { &dir } else { &place.parent }) {
            return Err(refusal(&place.shown, "this user may not write there"));
        }
        let marker = match read_marker(&dir)? {
            Some(marker) if marker.command == command => marker,
            Some(other) => {
                let by = printable(&other.command);
                return Err(refusal(&place.shown, &format!("it holds a run of {by}; name another directory")));
            }
            None => {
                if let Some(name) = entries(&dir)?.iter().find(|name| !is_hidden(name)) {
                    return Err(foreign(&place.shown, name));
                }
                Marker { command: command.to_string(), ..Marker::default() }
            }
        };
        let kept = Self { place, marker, _lock: lock };
        kept.check_reads(reads, &dir)?;
        kept.remove_unfinished()?;
        Ok(kept)
    }

    /// [`Kept::open`] for a directory that several processes share: waits for a while where one of them has it.
    ///
    /// # Errors
    /// As [`Kept::open`].
    pub fn open_shared(dir: &Path, command: &str, reads: &[PathBuf], patience: Duration) -> Result<Self> {
        let start = Instant::now();
        loop {
            match Self::open(dir, command, reads) {
                Err(Error::TryAgain(_)) if start.elapsed() < patience => std::thread::sleep(PAUSE),
                other => return other,
            }
        }
    }

    /// What the run is of, if a run was begun here.
    pub fn of(&self) -> Option<&str> {
        self.marker.of.as_deref()
    }

    /// Says what the run is of, with the next file that is written.
    pub fn set_of(&mut self, of: String) {
        self.marker.of = Some(of);
    }

    /// The directory as its user named it.
    pub fn out(&self) -> &Path {
        &self.place.shown
    }

    /// The directory itself.
    pub fn dir(&self) -> PathBuf {
        self.place.dir()
    }

    /// Whether the run has written this file, and it is there.
    pub fn has(&self, name: &str) -> bool {
        self.marker.files.contains(name)
            && fs::symlink_metadata(self.dir().join(name)).is_ok_and(|facts| facts.is_file())
    }

    /// The path of a file of the run, which it may write from now on; `/` stands between the parts of its name.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] where something is there that the run has not written, or a link.
    pub fn write_file(&mut self, name: &str) -> Result<PathBuf> {
        let dir = self.dir();
        disk::write_dir(&dir)?;
        let cannot = |what: String| refusal(&self.place.shown, &what);
        if let Some((below, _)) = name.rsplit_once('/') {
            self.write_dir(below)?;
        }
        let (path, own) = (dir.join(name), self.marker.files.contains(name));
        match fs::symlink_metadata(&path) {
            Ok(facts) if !facts.is_file() => {
                return Err(cannot(format!("{name} is a link, or no file; remove it, or name another --out")));
            }
            Ok(_) if !own => {
                return Err(cannot(format!(
                    "{name} was not written by the run there; move it away, or name another --out"
                )));
            }
            _ => {}
        }
        if !own {
            self.marker.files.insert(name.to_string());
            let text = serde_json::to_vec_pretty(&self.marker).map_err(|e| Error::Bug(e.to_string()))?;
            disk::write_bytes(&dir.join(MARKER), &text)?;
        }
        Ok(path)
    }

    /// A directory below this one, made where there is none.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] where a link or something else has its name.
    pub fn write_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir().join(name);
        match fs::symlink_metadata(&path) {
            Ok(facts) if !facts.is_dir() => Err(refusal(
                &self.place.shown,
                &format!("{name} is a link, or no directory; remove it, or name another --out"),
            )),
            Ok(_) => Ok(path),
            Err(_) => disk::write_dir(&path).map(|()| path),
        }
    }

    /// Removes a file, if the run has written it; a link of its name is removed, and not what it points to.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] or [`Error::Io`].
    pub fn remove_file(&self, name: &str) -> Result<()> {
        let path = self.dir().join(name);
        match self.marker.files.contains(name).then(|| fs::remove_file(&path)) {
            Some(Err(e)) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::writing(path, e)),
            _ => Ok(()),
        }
    }

    /// Writes run.json, with the list of all files of the run; returns what it says.
    ///
    /// # Errors
    /// As [`Kept::write_file`].
    pub fn write_run(&mut self, run: Value) -> Result<Value> {
        self.write_file(RUN)?;
        let names = self.marker.files.iter().filter(|name| *name != RUN && self.has(name)).cloned();
        record::write(&self.dir(), run, names).map(|(run, _)| run)
    }

    /// Refuses to write over what is read.
    fn check_reads(&self, reads: &[PathBuf], dir: &Path) -> Result<()> {
        let own = |path: &Path| self.marker.files.iter().any(|name| Path::new(name).starts_with(path));
        match within(reads, dir).find(|path| own(path)) {
            None => Ok(()),
            Some(path) => {
                let what =
                    if path.as_os_str().is_empty() { "the directory".into() } else { path.display().to_string() };
                let (what, by) = (printable(&what), printable(&self.marker.command));
                Err(refusal(
                    &self.place.shown,
                    &format!("this command reads {what}, which the run of {by} there wrote; name another --out"),
                ))
            }
        }
    }

    /// Removes what a process that was killed was writing: hidden temporary files of the run's own names.
    fn remove_unfinished(&self) -> Result<()> {
        let names = self.marker.files.iter().map(String::as_str).chain([MARKER, RUN]);
        for name in names {
            let path = self.dir().join(name);
            let (below, file) = (disk::parent(&path), name.rsplit('/').next().unwrap_or(name));
            if !is_real_dir(&below) {
                continue;
            }
            for entry in entries(&below)? {
                let middle = entry.to_str().and_then(|entry| entry.strip_prefix('.')?.strip_prefix(file));
                let middle = middle.and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".tmp"));
                let left = below.join(&entry);
                if middle.is_some_and(|middle| is_random(middle.as_bytes()))
                    && fs::symlink_metadata(&left).is_ok_and(|facts| facts.is_file())
                {
                    fs::remove_file(&left).map_err(|e| Error::writing(&left, e))?;
                }
            }
        }
        Ok(())
    }
}

/// Reads the marker in a directory.
fn read_marker(dir: &Path) -> Result<Option<Marker>> {
    let path = dir.join(MARKER);
    match fs::symlink_metadata(&path) {
        Err(_) => return Ok(None),
        Ok(facts) if !facts.is_file() => return Err(refusal(dir, &format!("{MARKER} in it is a link, or no file"))),
        Ok(_) => {}
    }
    let marker: Marker = serde_json::from_slice(&read_small(&path, 1 << 20)?)
        .map_err(|e| Error::data(&path, format!("no marker: {e}")))?;
    let plain =
        |name: &String| Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    match marker.files.iter().all(plain) {
        true => Ok(Some(marker)),
        false => Err(Error::data(&path, "it names a file outside of its directory")),
    }
}
