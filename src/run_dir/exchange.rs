//! Putting the files of a finished run in the place of an earlier one's.

use std::fs;
use std::path::{Path, PathBuf};

use super::record::{Held, Listed, RUN, Record};
use super::{Place, entries, is_real_dir, refusal};
use crate::disk;
use crate::error::{Error, Result};

/// The files of a finished run in the directory that they belong into, until each has its place: whoever finds it puts them there.
pub(super) const READY: &str = ".interp-ready";
/// End of the name of a directory that was moved away to be replaced, where the system cannot exchange two.
const AWAY: &str = ".interp-away";

/// Whether a directory may be exchanged by its name: it is no mounted file system, and this process does not work in it.
pub(super) fn is_possible(dir: &Path, parent: &Path) -> bool {
    let inside = std::env::current_dir().and_then(fs::canonicalize).is_ok_and(|here| here.starts_with(dir));
    #[cfg(unix)]
    let mounted = {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| fs::metadata(path).map(|facts| facts.dev()).ok();
        device(dir) != device(parent)
    };
    #[cfg(not(unix))]
    let mounted = false;
    !inside && !mounted
}

/// Puts the directory `stage`, with these files and run.json, in place.
///
/// A directory that holds an earlier run and nothing else is exchanged at once. Where other files are in it, they stay where they are:
/// the stage becomes [`READY`] in the directory, and its files are then renamed one by one, run.json last.
pub(super) fn write_in_place(place: &Place, stage: &Path, files: &[Listed]) -> Result<()> {
    let (dir, fail) = (place.dir(), |e| Error::writing(&place.shown, e));
    let held = Held::read(&dir)?;
    let names = || files.iter().map(|file| file.name.as_str()).chain([RUN]);
    let alone = held.other.iter().all(|name| dir.join(name) == stage);
    if let Some(name) = held.collision(names()) {
        return Err(refusal(&place.shown, &held.why_not(name)));
    }
    let beside = stage.parent() == Some(place.parent.as_path());
    if beside && held.is_empty() && write_name(stage, &dir).is_ok() {
        disk::sync_dir(&place.parent);
        return Ok(());
    }
    if !dir.exists() {
        return Err(refusal(&place.shown, "the directory could not be made"));
    }
    if beside && alone && is_possible(&dir, &place.parent) && exchange(place, stage, &dir).is_ok() {
        disk::sync_dir(&place.parent);
        // What came into the directory since it was looked at goes back to where it was put.
        for name in
            entries(stage)?.into_iter().filter(|name| name != RUN && !held.files.keys().any(|own| name == own.as_str()))
        {
            write_name(&stage.join(&name), &dir.join(&name)).map_err(fail)?;
        }
        return remove_listed(stage, held.files.keys());
    }
    fs::rename(stage, dir.join(READY)).map_err(fail)?;
    disk::sync_dir(&dir);
    write_rest(&dir)
}

/// Puts the files of a finished run in their places, also where an earlier process was killed while it did so.
pub(super) fn write_rest(dir: &Path) -> Result<()> {
    let ready = dir.join(READY);
    if !is_real_dir(&ready) {
        return Ok(());
    }
    let fail = |e| Error::writing(dir, e);
    let Some(record) = Record::read(&ready) else {
        // run.json goes last.
        return fs::remove_dir(&ready).map_err(fail);
    };
    let files: Vec<&str> = record.files.iter().flatten().map(|file| file.name.as_str()).collect();
    let is_left = |name: &&str| fs::symlink_metadata(ready.join(name)).is_ok();
    let held = Held::read(dir)?;
    if let Some(name) = held.collision(files.iter().copied().filter(is_left).chain([RUN])) {
        return Err(refusal(dir, &held.why_not(name)));
    }
    for name in files.iter().filter(|name| is_left(name)) {
        fs::rename(ready.join(name), dir.join(name)).map_err(fail)?;
    }
    for name in held.files.keys().filter(|name| !files.contains(&name.as_str())) {
        fs::remove_file(dir.join(name)).map_err(fail)?;
    }
    fs::rename(ready.join(RUN), dir.join(RUN)).map_err(fail)?;
    disk::sync_dir(dir);
    fs::remove_dir(&ready).map_err(fail)
}

/// Removes these files and run.json, and the directory where nothing else is left in it.
pub(super) fn remove_listed<'a>(dir: &Path, files: impl Iterator<Item = &'a String>) -> Result<()> {
    for path in files.map(|name| dir.join(name)).chain([dir.join(RUN)]) {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::writing(path, e)),
            _ => {}
        }
    }
    if entries(dir)?.is_empty() {
        fs::remove_dir(dir).map_err(|e| Error::writing(dir, e))?;
    }
    Ok(())
}

/// Gives a file or a directory a name that nothing else has; a directory also the name of an empty one.
fn write_name(from: &Path, to: &Path) -> std::io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            Err(rustix::io::Errno::EXIST) if is_real_dir(to) && is_real_dir(from) => {}
            other => return Ok(other?),
        }
    }
    // The system replaces a directory only where it is empty.
    match !is_real_dir(to) && fs::symlink_metadata(to).is_ok() {
        true => Err(std::io::ErrorKind::AlreadyExists.into()),
        false => fs::rename(from, to),
    }
}

/// Exchanges two directories: at once, or where the system cannot by moving one away first, which [`write_back`] undoes.
fn exchange(place: &Place, stage: &Path, dir: &Path) -> std::io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, stage, CWD, dir, RenameFlags::EXCHANGE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            other => return Ok(other?),
        }
    }
    exchange_by_steps(place, stage, dir)
}

fn exchange_by_steps(place: &Place, stage: &Path, dir: &Path) -> std::io::Result<()> {
    let away = away(place);
    fs::rename(dir, &away)?;
    match fs::rename(stage, dir) {
        Ok(()) => fs::rename(&away, stage),
        Err(e) => fs::rename(&away, dir).and(Err(e)),
    }
}

/// Puts a directory back that a process had moved away when it was killed, or takes it for what it is: a run that was replaced.
pub(super) fn write_back(place: &Place) -> Result<()> {
    let (away, dir) = (away(place), place.dir());
    match (is_real_dir(&away), fs::symlink_metadata(&dir).is_ok()) {
        (false, _) => Ok(()),
        (true, false) => fs::rename(&away, &dir).map_err(|e| Error::writing(&place.shown, e)),
        (true, true) => remove_listed(&away, Held::read(&away)?.files.keys()),
    }
}

fn away(place: &Place) -> PathBuf {
    let mut name = place.prefix();
    name.push(&AWAY[1..]);
    place.parent.join(name)
}

#[cfg(test)]
mod tests {
    use super::super::{Claim, RUN, UNFINISHED, remove};
    use super::*;
    use serde_json::json;

    /// Writes a run with these files, each with its own content.
    fn run(dir: &Path, files: &[(&str, &str)]) -> Result<()> {
        let claim = Claim::open(dir, "test", &[])?;
        files.iter().try_for_each(|(name, text)| disk::write_bytes(&claim.dir().join(name), text.as_bytes()))?;
        claim.finish(json!({ "command": "test" })).map(drop)
    }

    #[test]
    fn whatever_the_disk_refuses_the_earlier_run_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(place.path()).unwrap().join("out");
        run(&dir, &FIRST).unwrap();
        let mut steps = 0;
        loop {
            let broken = crate::disk::fault::Broken::new(dir.parent().unwrap(), steps, 28, steps % 2 == 0);
            let outcome = run(&dir, &SECOND);
            if !broken.was_met() {
                outcome.unwrap();
                break;
            }
            drop(broken);
            assert!(outcome.is_err(), "an error that nobody noticed at step {steps}");
            holds(&dir, &FIRST, &[]);
            assert_eq!(entries(place.path()).unwrap(), ["out"], "{steps}");
            steps += 1;
        }
        assert!(steps >= 16, "it came by {steps} steps only");
        holds(&dir, &SECOND, &[]);
    }

    const FIRST: [(&str, &str); 3] = [("a", "1"), ("b", "1"), ("c", "1")];
    const SECOND: [(&str, &str); 3] = [("b", "2"), ("c", "1"), ("d", "2")];

    /// Asserts that a directory holds these files, which its record lists, and these others.
    fn holds(dir: &Path, files: &[(&str, &str)], others: &[&str]) {
        let held = Held::read(dir).unwrap();
        assert_eq!(held.files.keys().collect::<Vec<_>>(), files.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        files.iter().for_each(|(name, text)| assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), *text, "{name}"));
        assert_eq!(held.other, *others);
    }

    /// A process may be killed between any two renames: the next one finishes what it had begun.
    #[test]
    fn files_that_are_ready_reach_their_places_from_every_step() {
        for steps in 0..=6 {
            let place = tempfile::tempdir().unwrap();
            let (dir, other) = (place.path().join("out"), place.path().join("other"));
            run(&dir, &FIRST).unwrap();
            fs::write(dir.join("mine"), "mine").unwrap();
            run(&other, &SECOND).unwrap();
            fs::rename(&other, dir.join(READY)).unwrap();
            // What a killed process had done, in its order.
            let ready = dir.join(READY);
            let moves = ["b", "c", "d"].map(|name| (ready.join(name), Some(dir.join(name))));
            let rest = [(dir.join("a"), None), (ready.join(RUN), Some(dir.join(RUN))), (ready.clone(), None)];
            for (from, to) in moves.into_iter().chain(rest).take(steps) {
                match to {
                    Some(to) => fs::rename(from, to).unwrap(),
                    None if from.is_dir() => fs::remove_dir(from).unwrap(),
                    None => fs::remove_file(from).unwrap(),
                }
            }
            drop(Claim::open(&dir, "test", &[]).unwrap());
            holds(&dir, &SECOND, &["mine"]);
            assert_eq!(entries(place.path()).unwrap(), ["out"], "{steps}");
        }
    }

    /// Where the system cannot exchange two directories at once, a process may be killed between two renames too.
    #[test]
    fn a_directory_that_was_moved_away_comes_back() {
        for steps in 0..=3 {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("out");
            run(&dir, &FIRST).unwrap();
            let place = Place::open(&dir).unwrap();
            let claim = Claim::open(&dir, "test", &[]).unwrap();
            let stage = claim.dir().to_path_buf();
            fs::write(stage.join("b"), "2").unwrap();
            super::super::record::write(&stage, json!({ "command": "test" }), ["b".to_string()].into_iter()).unwrap();
            let renames = [(dir.clone(), away(&place)), (stage.clone(), dir.clone()), (away(&place), stage.clone())];
            if steps == 3 {
                exchange_by_steps(&place, &stage, &dir).unwrap();
            } else {
                renames[..steps].iter().for_each(|(from, to)| fs::rename(from, to).unwrap());
            }
            std::mem::forget(claim); // killed
            fs::remove_file(parent.path().join(".out.interp-lock")).unwrap(); // the system gives the lock of a dead process back
            drop(Claim::open(&dir, "test", &[]).unwrap());
            match steps {
                0 | 1 => holds(&dir, &FIRST, &[]),
                _ => holds(&dir, &[("b", "2")], &[]),
            }
            assert_eq!(entries(parent.path()).unwrap(), ["out"], "{steps}");
        }
    }

    #[test]
    fn what_comes_meanwhile_is_kept() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("out");
        run(&dir, &FIRST).unwrap();
        let claim = Claim::open(&dir, "test", &[]).unwrap();
        assert!(claim.dir().parent() == Some(place.path()) && claim.dir().to_string_lossy().ends_with(UNFINISHED));
        SECOND.iter().for_each(|(name, text)| fs::write(claim.dir().join(name), text).unwrap());
        fs::write(dir.join("mine"), "mine").unwrap();
        claim.finish(json!({ "command": "test" })).unwrap();
        holds(&dir, &SECOND, &["mine"]);
        // But nothing that the run would replace.
        let claim = Claim::open(&dir, "test", &[]).unwrap();
        fs::write(claim.dir().join("e"), "3").unwrap();
        fs::write(dir.join("e"), "mine").unwrap();
        assert!(claim.finish(json!({ "command": "test" })).unwrap_err().to_string().contains("e was not written by"));
        holds(&dir, &SECOND, &["e", "mine"]);
        remove(&dir).unwrap();
        assert_eq!(entries(&dir).unwrap(), ["e", "mine"]);
        assert_eq!(entries(place.path()).unwrap(), ["out"]);
        // Of a directory that is made meanwhile.
        let dir = place.path().join("new");
        let claim = Claim::open(&dir, "test", &[]).unwrap();
        fs::write(claim.dir().join("e"), "3").unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("mine"), "mine").unwrap();
        claim.finish(json!({ "command": "test" })).unwrap();
        holds(&dir, &[("e", "3")], &["mine"]);
    }

    /// A record that somebody sent removes nothing outside of its directory, and nothing that is not as it says.
    #[test]
    fn a_record_owns_only_what_it_describes() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("out");
        fs::write(place.path().join("victim"), "1").unwrap();
        let sha256 = crate::weights::sha256_of(b"1");
        for name in ["../victim", "/victim", "sub/../../victim", "."] {
            fs::create_dir_all(&dir).unwrap();
            let record = json!({ "command": "test", "files": [{ "name": name, "bytes": 1, "sha256": sha256 }] });
            fs::write(dir.join(RUN), record.to_string()).unwrap();
            let refused = Claim::open(&dir, "test", &[]).unwrap_err().to_string();
            assert!(refused.contains("it holds other files (run.json)"), "{name}: {refused}");
            fs::remove_dir_all(&dir).unwrap();
        }
        for (record, wanted) in [(json!({ "command": "test" }), "lists no files"), (json!(3), "other files (run.json)")]
        {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(RUN), record.to_string()).unwrap();
            assert!(Claim::open(&dir, "test", &[]).unwrap_err().to_string().contains(wanted));
            fs::remove_dir_all(&dir).unwrap();
        }
        assert_eq!(fs::read(place.path().join("victim")).unwrap(), b"1");
    }
}
