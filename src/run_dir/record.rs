use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::entries;
use crate::disk;
use crate::error::{Error, Result};
use crate::weights::{read_small, sha256};

/// The file that makes a directory a run; it is written last.
pub const RUN: &str = "run.json";
/// Bytes of a run.json at most.
const MOST: u64 = 256 << 20;

/// A file that a run wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its path from the directory, with `/` between the parts.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The sha256 of its content.
    pub sha256: String,
}

/// What a run.json says of its directory.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Record {
    pub command: String,
    /// None in what earlier versions wrote.
    pub files: Option<Vec<Listed>>,
}

impl Record {
    /// Reads the run.json in a directory; none where there is none, or something else of that name.
    pub fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(RUN);
        fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let record: Self = serde_json::from_slice(&read_small(&path, MOST).ok()?).ok()?;
        let plain = |file: &Listed| Path::new(&file.name).components().all(|part| matches!(part, Component::Normal(_)));
        record.files.iter().flatten().all(plain).then_some(record)
    }

    pub fn lists(&self, name: &str) -> bool {
        self.files.iter().flatten().any(|file| file.name == name)
    }

    /// Whether it keeps a model, which is more than a result that is computed again.
    pub fn holds_a_model(&self) -> bool {
        self.files.iter().flatten().any(|file| file.name == "config.json" || file.name.ends_with("model.safetensors"))
    }
}

/// What is in a directory.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub record: Option<Record>,
    /// Files that the record lists and that are as it says.
    pub files: BTreeMap<String, Listed>,
    /// Everything else but run.json.
    pub other: Vec<OsString>,
}

impl Held {
    /// Looks at a directory, which need not be there; what it lists is hashed.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut held = Self { record: Record::read(dir), ..Self::default() };
        for name in entries(dir)? {
            let of_run = held.record.is_some() && name == RUN;
            let listed = held.record.iter().flat_map(|record| record.files.iter().flatten());
            match listed.into_iter().find(|file| name == file.name.as_str()) {
                Some(file) if is_as_listed(dir, file)? => drop(held.files.insert(file.name.clone(), file.clone())),
                _ if of_run => {}
                _ => held.other.push(name),
            }
        }
        Ok(held)
    }

    pub fn is_empty(&self) -> bool {
        self.record.is_none() && self.files.is_empty() && self.other.is_empty()
    }

    /// The first of these files that would replace what no run has written.
    pub fn collision<'a>(&self, mut files: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        files.find(|name| self.other.iter().any(|other| other == name))
    }

    /// Why a file may not be replaced.
    pub fn why_not(&self, name: &str) -> String {
        match self.record.as_ref().is_some_and(|record| record.lists(name)) {
            true => format!("{name} is no longer what the run there wrote; move it away, or name another --out"),
            false => format!("{name} was not written by the run there; move it away, or name another --out"),
        }
    }
}

/// Whether a file, no link, is as its run wrote it.
fn is_as_listed(dir: &Path, file: &Listed) -> Result<bool> {
    let path = dir.join(&file.name);
    let facts = fs::symlink_metadata(&path).map_err(|e| Error::reading(&path, e))?;
    Ok(facts.is_file() && facts.len() == file.bytes && sha256(&path)? == file.sha256)
}

/// Writes the run.json of a directory, with the files of these names in it.
pub(super) fn write(dir: &Path, mut run: Value, names: impl Iterator<Item = String>) -> Result<(Value, Vec<Listed>)> {
    let mut files = Vec::new();
    for name in names {
        let path = dir.join(&name);
        let bytes = fs::symlink_metadata(&path).map_err(|e| Error::reading(&path, e))?.len();
        files.push(Listed { name, bytes, sha256: sha256(&path)? });
    }
    run["files"] = json!(files);
    let text = serde_json::to_vec_pretty(&run).map_err(|e| Error::Bug(e.to_string()))?;
    disk::write_bytes(&dir.join(RUN), &text)?;
    Ok((run, files))
}
