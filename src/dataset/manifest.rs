//! What a dataset holds, sealed once every part is there; and finding out whether it still does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{Plan, stem};
use super::statistics::Statistics;
use crate::error::{Error, Result};
use crate::shard::{Layout, saved_dataset};
use crate::{disk, weights};

/// What is known of a part that was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The plan that it belongs to.
    pub plan: String,
    /// Its file, in the dataset's directory.
    pub file: String,
    /// Of that file.
    pub sha256: String,
    /// Of that file.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
    /// Of each site.
    pub statistics: BTreeMap<String, Statistics>,
}

/// A dataset that is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The plan that was carried out.
    pub plan: String,
    /// Rows of all parts.
    pub rows: u64,
    /// Bytes of all parts.
    pub bytes: u64,
    /// Every part: file, sha256, bytes and rows.
    pub parts: Vec<Entry>,
    /// Of each site, over all parts; of values as they were computed, before any rounding to f16.
    pub statistics: BTreeMap<String, Statistics>,
}

/// A part in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its file, in the dataset's directory.
    pub file: String,
    /// Of that file.
    pub sha256: String,
    /// Of that file.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
}

fn record_path(dir: &Path, index: usize) -> PathBuf {
    dir.join(stem(index) + ".json")
}

impl Record {
    /// Writes it beside its part, which must be there already.
    ///
    /// # Errors
    /// As [`disk::write_bytes`].
    pub fn save(&self, dir: &Path, index: usize) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::Bug(e.to_string()))?;
        disk::write_bytes(&record_path(dir, index), &text)
    }

    /// The record of a part; none where the part is not written yet, or not by this plan.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(dir: &Path, plan: &str, index: usize) -> Result<Option<Self>> {
        let path = record_path(dir, index);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::reading(&path, e)),
        };
        // A record that cannot be read is no record: its part is written again.
        Ok(serde_json::from_slice::<Self>(&bytes).ok().filter(|record| record.plan == plan))
    }
}

impl Manifest {
    /// Seals a directory in which every part is there and whole; those in `known` were just written or read by this process,
    /// and only their sizes are looked at.
    ///
    /// # Errors
    /// [`Error::Data`] that names parts that are missing or damaged.
    pub fn seal(dir: &Path, plan: &Plan, known: &BTreeSet<usize>) -> Result<Self> {
        let id = plan.id()?;
        let mut manifest =
            Manifest { plan: id.clone(), rows: 0, bytes: 0, parts: Vec::new(), statistics: BTreeMap::new() };
        let mut missing = Vec::new();
        for (index, part) in plan.parts.iter().enumerate() {
            let Some(record) = Record::open(dir, &id, index)? else {
                missing.push(plan.part_file(index));
                continue;
            };
            let entry = Entry { file: record.file, sha256: record.sha256, bytes: record.bytes, rows: record.rows };
            match entry.read_fault(dir, known.contains(&index))? {
                Some(fault) => missing.push(fault),
                None if entry.rows != part.rows => missing.push(format!("{} has another number of rows", entry.file)),
                None => {}
            }
            manifest.rows += entry.rows;
            manifest.bytes += entry.bytes;
            manifest.parts.push(entry);
            for (site, statistics) in record.statistics {
                match manifest.statistics.get_mut(&site) {
                    Some(all) => all.add(&statistics),
                    None => {
                        manifest.statistics.insert(site, statistics);
                    }
                }
            }
        }
        if !missing.is_empty() {
            let (n, all) = (missing.len(), plan.parts.len());
            missing.truncate(5);
            let what =
                format!("{n} of {all} parts are not there or not whole: {} …; export them first", missing.join(", "));
            return Err(Error::data(dir, what));
        }
        if plan.request.layout == Layout::Saelens {
            manifest.write_saved_dataset(dir, plan)?;
        }
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::Bug(e.to_string()))?;
        disk::write_bytes(&manifest_path(dir), &text)?;
        Ok(manifest)
    }

    /// Writes what makes the directory one that `datasets.load_from_disk` reads.
    fn write_saved_dataset(&self, dir: &Path, plan: &Plan) -> Result<()> {
        let files: Vec<String> = self.parts.iter().map(|entry| entry.file.clone()).collect();
        for (site, statistics) in plan.sites()?.iter().zip(self.statistics.values()) {
            let shape = (plan.request.cut.context, statistics.mean.len());
            for (file, text) in saved_dataset(&files, &self.plan[..16], &site.long(), shape) {
                disk::write_bytes(&dir.join(file), text.as_bytes())?;
            }
        }
        Ok(())
    }

    /// The manifest of a sealed dataset; none for one that is not complete.
    ///
    /// # Errors
    /// [`Error::Data`] for what is no manifest.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let path = manifest_path(dir);
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::data(&path, format!("no manifest: {e}")))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::reading(&path, e)),
        }
    }

    /// The manifest and the plan of a sealed dataset, which belong together.
    ///
    /// # Errors
    /// [`Error::Data`] where there is none, or where they do not.
    pub fn open_sealed(dir: &Path) -> Result<(Self, Plan)> {
        let manifest = Self::open(dir)?
            .ok_or_else(|| Error::data(dir, "there is no manifest.json: no dataset, or one that is not complete"))?;
        let plan = Plan::open(dir)?.ok_or_else(|| Error::data(dir, "plan.json is missing"))?;
        if plan.id()? != manifest.plan {
            return Err(Error::data(dir, "plan.json and manifest.json do not belong together"));
        }
        let same = plan.parts.len() == manifest.parts.len()
            && plan.rows() == manifest.rows
            && plan.parts.iter().zip(&manifest.parts).all(|(plan, entry)| plan.rows == entry.rows)
            && manifest.parts.iter().enumerate().all(|(index, entry)| entry.file == plan.part_file(index));
        match same {
            true => Ok((manifest, plan)),
            false => Err(Error::data(dir, "manifest.json has other parts than plan.json")),
        }
    }

    /// Everything that is not as it was when the dataset was sealed.
    ///
    /// # Errors
    /// As [`Manifest::open_sealed`].
    pub fn faults(dir: &Path) -> Result<(Self, Vec<String>)> {
        let (manifest, _) = Self::open_sealed(dir)?;
        let mut faults = Vec::new();
        for entry in &manifest.parts {
            if let Some(fault) = entry.read_fault(dir, false)? {
                let other = |e: &&Entry| e.file != entry.file && fault.ends_with(&e.sha256);
                faults.push(match manifest.parts.iter().find(other) {
                    Some(swapped) => format!("{} holds what belongs into {}", entry.file, swapped.file),
                    None => fault,
                });
            }
        }
        Ok((manifest, faults))
    }
}

impl Entry {
    /// Reads the file, if its bytes are those that were sealed.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is missing, cut short, damaged or another one.
    pub fn read(&self, dir: &Path) -> Result<Vec<u8>> {
        let path = dir.join(&self.file);
        let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::data(&path, "is missing from the dataset; export it again"),
            _ => Error::reading(&path, e),
        })?;
        let sha256 = weights::sha256_of(&bytes);
        if sha256 == self.sha256 {
            return Ok(bytes);
        }
        let what = format!("is not what was sealed, but {} bytes of sha256 {sha256}; export it again", bytes.len());
        Err(Error::data(&path, what))
    }

    /// What is wrong with the file, if anything; if its bytes are `known`, only its size is looked at.
    fn read_fault(&self, dir: &Path, known: bool) -> Result<Option<String>> {
        let path = dir.join(&self.file);
        let bytes = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Some(format!("{} is missing", self.file))),
            Err(e) => return Err(Error::reading(&path, e)),
        };
        if known && bytes == self.bytes {
            return Ok(None);
        }
        let sha256 = weights::sha256(&path)?;
        if sha256 == self.sha256 && bytes == self.bytes {
            return Ok(None);
        }
        Ok(Some(match bytes == self.bytes {
            false => format!("{} has {bytes} bytes instead of {}; its sha256 is {sha256}", self.file, self.bytes),
            true => format!("{} is damaged: its sha256 is {sha256}", self.file),
        }))
    }
}

fn manifest_path(dir: &Path) -> PathBuf {
    dir.join("manifest.json")
}
