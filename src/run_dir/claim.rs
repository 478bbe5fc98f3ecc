use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::exchange;
use super::kept::MARKER;
use super::record::{self, Held, RUN, Record};
use super::{
    Lock, Place, UNFINISHED, entries, foreign, is_hidden, is_random, is_real_dir, is_writable, refusal, within,
};
use crate::disk;
use crate::error::{Error, Result, printable};

/// The directory of a run to come: its files are written into [`Claim::dir`], and take the place of an earlier run's in
/// [`Claim::finish`]. Dropped before, it leaves the directory as it was.
#[derive(Debug)]
pub struct Claim {
    place: Place,
    stage: PathBuf,
    _lock: Lock,
}

impl Claim {
    /// Takes a directory for a run of `command`: a new one, an empty one, or one with a run that may be replaced. Other files in it stay.
    ///
    /// `reads` are the files and directories that the command reads: a run that it reads is not replaced by it.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] for a directory that may not be taken, [`Error::TryAgain`] where another process has it.
    pub fn open(dir: &Path, command: &str, reads: &[PathBuf]) -> Result<Self> {
        let place = Place::open(dir)?;
        let lock = place.open_lock()?;
        remove_unfinished(&place)?;
        exchange::write_rest(&place.dir())?;
        let held = Held::read(&place.dir())?;
        check(&place, command, &held, reads)?;
        let stage = open_stage(&place, held.other.is_empty())?;
        Ok(Self { place, stage, _lock: lock })
    }

    /// Where to write the files.
    pub fn dir(&self) -> &Path {
        &self.stage
    }

    /// Where they will be, as the user named it.
    pub fn out(&self) -> &Path {
        &self.place.shown
    }

    /// Writes run.json, with the list of all files, and puts them in place; returns what run.json says.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] or [`Error::Io`]; the directory is then as it was.
    pub fn finish(self, run: Value) -> Result<Value> {
        let names = entries(&self.stage)?;
        let names = names.iter().map(|name| name.to_string_lossy().into_owned());
        let (run, files) = record::write(&self.stage, run, names)?;
        exchange::write_in_place(&self.place, &self.stage, &files)?;
        Ok(run)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // After `finish` it is no longer there.
        let _ = fs::remove_dir_all(&self.stage);
    }
}

/// Removes the run in a directory: the files that it lists, and the directory where nothing else is left in it.
///
/// # Errors
/// [`Error::TryAgain`] where another process has the directory, [`Error::CannotWrite`] or [`Error::Io`].
pub fn remove(dir: &Path) -> Result<()> {
    if !is_real_dir(dir) {
        return Ok(());
    }
    let place = Place::open(dir)?;
    let _lock = place.open_lock()?;
    let dir = place.dir();
    // Of a run that goes on later, only that it has ended is forgotten.
    let held = if dir.join(MARKER).exists() { Held::default() } else { Held::read(&dir)? };
    exchange::remove_listed(&dir, held.files.keys())
}

/// Refuses a directory that may not be taken.
fn check(place: &Place, command: &str, held: &Held, reads: &[PathBuf]) -> Result<()> {
    let cannot = |what: String| refusal(&place.shown, &what);
    let dir = place.dir();
    if dir.exists() && !is_writable(&dir) {
        return Err(cannot("this user may not write into it".into()));
    }
    if held.other.iter().any(|name| name == MARKER) {
        return Err(cannot(
            "it holds a run of train, finetune or sweep, which is continued; name another directory".into(),
        ));
    }
    let Some(record) = &held.record else {
        let other = held.other.iter().find(|name| !is_hidden(name));
        return other.map_or(Ok(()), |name| Err(foreign(&place.shown, name)));
    };
    if record.files.is_none() {
        return Err(cannot(format!(
            "its {RUN} lists no files, so that nobody knows what is its own; name another directory"
        )));
    }
    let by = printable(&record.command);
    if record.holds_a_model() && record.command != command {
        return Err(cannot(format!("it holds a model, which {by} wrote; name another directory")));
    }
    for path in within(reads, &dir) {
        let first = path.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let what = match first {
            None => "the directory".to_string(),
            Some(name) if name == RUN || record.lists(&name) => name,
            Some(_) => continue,
        };
        return Err(cannot(format!(
            "this command reads {what}, which the run of {by} there wrote; name another --out"
        )));
    }
    Ok(())
}

/// Where files are written first: beside the directory, from where all can be exchanged at once; or in it, where that is impossible.
fn open_stage(place: &Place, alone: bool) -> Result<PathBuf> {
    let (dir, prefix) = (place.dir(), place.prefix());
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The umask applies to a new directory; one that is there keeps its mode.
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    let mut beside = || builder.prefix(&prefix).suffix(UNFINISHED).tempdir_in(&place.parent);
    let fail = |e| Error::writing(&place.shown, e);
    if !dir.exists() {
        return beside().map(tempfile::TempDir::keep).map_err(fail);
    }
    if alone
        && exchange::is_possible(&dir, &place.parent)
        && let Ok(stage) = beside()
    {
        let _ = fs::metadata(&dir).and_then(|facts| fs::set_permissions(stage.path(), facts.permissions()));
        return Ok(stage.keep());
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(UNFINISHED).tempdir_in(&dir).map(tempfile::TempDir::keep).map_err(fail)
}

/// Removes the temporary directories of processes that are gone; the lock says that they are.
fn remove_unfinished(place: &Place) -> Result<()> {
    let dir = place.dir();
    let inside = entries(&dir)?.into_iter().filter(|name| {
        let middle =
            name.as_encoded_bytes().strip_prefix(b".").and_then(|rest| rest.strip_suffix(UNFINISHED.as_bytes()));
        middle.is_some_and(is_random)
    });
    exchange::write_back(place)?;
    let all = place.find_beside(UNFINISHED).into_iter().chain(inside.map(|name| dir.join(name)));
    for stage in all.filter(|path| is_real_dir(path)) {
        match Record::read(&stage) {
            // It may be a run that was replaced, in the moment before it would have been removed.
            Some(_) => exchange::remove_listed(&stage, Held::read(&stage)?.files.keys())?,
            None => fs::remove_dir_all(&stage).map_err(|e| Error::writing(&stage, e))?,
        }
    }
    disk::sync_dir(&place.parent);
    Ok(())
}
