//! What a dataset holds, sealed once every part is there; and finding out whether it still does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files;
use super::lock::Lock;
use super::plan::{Plan, is_sha256, stem};
use super::statistics::Statistics;
use crate::error::{Error, Result, shorten_to};
use crate::shard::{Layout, saved_dataset};
use crate::{disk, memory, weights};

/// What is known of a part that was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The plan that it belongs to.
    pub plan: String,
    /// The number of the part.
    pub part: usize,
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

/// Bytes that the statistics of a plan's sites take as JSON, at most; in a manifest, its parts come on top.
fn limit(plan: &Plan) -> u64 {
    let per_site: u64 = if plan.request.covariance { 1 << 30 } else { 8 << 20 };
    (1 << 20) + per_site.saturating_mul(plan.request.sites.len() as u64) + 1024 * plan.parts.len() as u64
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

    /// The record of a part; none where the part is not written yet, and why where there is one that is not of this part of this
    /// plan.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Data`] for what is no regular file.
    pub fn open(dir: &Path, plan: &Plan, id: &str, index: usize) -> Result<Option<std::result::Result<Self, String>>> {
        let path = record_path(dir, index);
        let Some(bytes) = files::read(&path, limit(plan))? else { return Ok(None) };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let read = serde_json::from_slice::<Self>(&bytes).map_err(|e| format!("{name} is no record of a part: {e}"));
        Ok(Some(read.and_then(|record| match record.fault(plan, id, index) {
            None => Ok(record),
            Some(what) => Err(format!("{name} {what}")),
        })))
    }

    /// Why it is not the record of this part.
    fn fault(&self, plan: &Plan, id: &str, index: usize) -> Option<String> {
        let file = plan.part_file(index);
        if self.plan != id {
            return Some("is of another plan".into());
        }
        if self.part != index || self.file != file {
            let own = crate::error::shorten(&self.file);
            return Some(format!("is the record of part {} ({own}), and was renamed or copied", self.part));
        }
        if self.rows != plan.parts[index].rows {
            return Some(format!("has {} rows, where the plan has {}", self.rows, plan.parts[index].rows));
        }
        if !is_sha256(&self.sha256) {
            return Some("has no sha256".into());
        }
        faults_of(&self.statistics, plan, self.rows)
    }
}

/// What is wrong with the statistics of the sites of a plan.
fn faults_of(statistics: &BTreeMap<String, Statistics>, plan: &Plan, rows: u64) -> Option<String> {
    let request = &plan.request;
    if statistics.len() != request.sites.len() || !request.sites.iter().all(|site| statistics.contains_key(site)) {
        return Some("has statistics of other sites than the plan".into());
    }
    let fault = |(site, own): (&String, &Statistics)| {
        own.fault(rows, request.covariance).map(|what| format!("has statistics of {site} that cannot be: it {what}"))
    };
    statistics.iter().find_map(fault)
}

impl Manifest {
    /// Seals a directory in which every part is there and whole; those in `known` were just written or read by this process,
    /// and only their sizes are looked at.
    ///
    /// # Errors
    /// [`Error::Data`] that names parts that are missing, damaged or not the plan's, [`Error::TryAgain`] while another process
    /// writes, and [`Error::CannotWrite`] for a directory with links.
    pub fn seal(dir: &Path, plan: &Plan, known: &BTreeSet<usize>) -> Result<Self> {
        files::read_for_links(dir)?;
        let lock = Lock::open(&dir.join("lock"))?;
        super::read_for_pieces(dir, None)?;
        files::remove_unfinished(dir, files::is_own)?;
        let id = plan.id()?;
        let mut manifest =
            Manifest { plan: id.clone(), rows: 0, bytes: 0, parts: Vec::new(), statistics: BTreeMap::new() };
        let mut missing = Vec::new();
        for index in 0..plan.parts.len() {
            let record = match Record::open(dir, plan, &id, index)? {
                Some(Ok(record)) => record,
                Some(Err(fault)) => {
                    missing.push(fault);
                    continue;
                }
                None => {
                    missing.push(plan.part_file(index));
                    continue;
                }
            };
            let entry = Entry { file: record.file, sha256: record.sha256, bytes: record.bytes, rows: record.rows };
            missing.extend(entry.read_fault(dir, known.contains(&index), entry.bytes)?);
            manifest.rows += entry.rows;
            manifest.bytes = manifest.bytes.saturating_add(entry.bytes);
            manifest.parts.push(entry);
            for (site, statistics) in record.statistics {
                match manifest.statistics.get_mut(&site) {
                    Some(all) if all.mean.len() != statistics.mean.len() => {
                        missing.push(format!("{}.json has another width of {site} than the parts before", stem(index)));
                    }
                    Some(all) => all.add(&statistics),
                    None => {
                        manifest.statistics.insert(site, statistics);
                    }
                }
            }
        }
        missing.extend(manifest.copies(plan));
        if !missing.is_empty() {
            let (n, all) = (missing.len(), plan.parts.len());
            missing.truncate(5);
            let what =
                format!("{n} of {all} parts are not there or not whole: {} …; export them first", missing.join(", "));
            return Err(Error::data(dir, what));
        }
        lock.check()?;
        if plan.request.layout == Layout::Saelens {
            manifest.write_saved_dataset(dir, plan)?;
        }
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::Bug(e.to_string()))?;
        disk::write_bytes(&manifest_path(dir), &text)?;
        Ok(manifest)
    }

    /// Parts with the same bytes: rows are numbered, so that one is a copy of the other; but for whole sequences, which may come
    /// twice in a text.
    fn copies(&self, plan: &Plan) -> Vec<String> {
        if plan.request.layout == Layout::Saelens {
            return Vec::new();
        }
        let mut known: BTreeMap<&str, &str> = BTreeMap::new();
        let twice = |entry: &'_ Entry, first: &str| format!("{} is a copy of {first}", entry.file);
        let mut found = Vec::new();
        for entry in &self.parts {
            if let Some(first) = known.insert(&entry.sha256, &entry.file) {
                found.push(twice(entry, first));
            }
        }
        found
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
    /// [`Error::Data`] for what is no manifest, and as [`Plan::open`].
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let limit = Plan::open(dir)?.map_or(1 << 20, |plan| limit(&plan));
        Self::open_within(dir, limit)
    }

    fn open_within(dir: &Path, limit: u64) -> Result<Option<Self>> {
        let path = manifest_path(dir);
        let Some(bytes) = files::read(&path, limit)? else { return Ok(None) };
        let refuse = |what: String| Error::data(&path, format!("no manifest: {}", shorten_to(&what, 300)));
        serde_json::from_slice(&bytes).map(Some).map_err(|e| refuse(e.to_string()))
    }

    /// The manifest and the plan of a sealed dataset, which belong together.
    ///
    /// # Errors
    /// [`Error::Data`] where there is none, or where they do not.
    pub fn open_sealed(dir: &Path) -> Result<(Self, Plan)> {
        let plan = Plan::open(dir)?;
        let manifest = Self::open_within(dir, plan.as_ref().map_or(1 << 20, limit))?
            .ok_or_else(|| Error::data(dir, "there is no manifest.json: no dataset, or one that is not complete"))?;
        let plan = plan.ok_or_else(|| Error::data(dir, "plan.json is missing"))?;
        if plan.id()? != manifest.plan {
            return Err(Error::data(dir, "plan.json and manifest.json do not belong together"));
        }
        let bytes = manifest.parts.iter().try_fold(0_u64, |sum, entry| sum.checked_add(entry.bytes));
        let same = plan.parts.len() == manifest.parts.len()
            && plan.rows() == manifest.rows
            && bytes == Some(manifest.bytes)
            && plan.parts.iter().zip(&manifest.parts).all(|(plan, entry)| plan.rows == entry.rows)
            && manifest.parts.iter().enumerate().all(|(index, entry)| entry.file == plan.part_file(index))
            && manifest.parts.iter().all(|entry| is_sha256(&entry.sha256));
        if !same {
            return Err(Error::data(dir, "manifest.json has other parts than plan.json"));
        }
        let fault = manifest.copies(&plan).into_iter().next();
        match fault.or_else(|| faults_of(&manifest.statistics, &plan, manifest.rows)) {
            Some(what) => Err(Error::data(manifest_path(dir), what)),
            None => Ok((manifest, plan)),
        }
    }

    /// Everything that is not as it was when the dataset was sealed.
    ///
    /// # Errors
    /// As [`Manifest::open_sealed`].
    pub fn faults(dir: &Path) -> Result<(Self, Vec<String>)> {
        let (manifest, _) = Self::open_sealed(dir)?;
        let mut faults = Vec::new();
        let largest = manifest.parts.iter().map(|entry| entry.bytes).max().unwrap_or(0);
        for entry in &manifest.parts {
            if let Some(fault) = entry.read_fault(dir, false, largest)? {
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
        let missing = || Error::data(&path, "is missing from the dataset; export it again");
        let size = files::size(&path)?.ok_or_else(missing)?;
        let refuse = |what: String| {
            Err(Error::data(&path, format!("is not what was sealed, but {size} bytes{what}; export it again")))
        };
        if size != self.bytes {
            return refuse(format!(" instead of {}", self.bytes));
        }
        memory::check(&self.file, size, None)?;
        let bytes = files::read(&path, size)?.ok_or_else(missing)?;
        let sha256 = weights::sha256_of(&bytes);
        if sha256 == self.sha256 { Ok(bytes) } else { refuse(format!(" of sha256 {sha256}")) }
    }

    /// What is wrong with the file, if anything; if its bytes are `known`, only its size is looked at, and a file of more than `most`
    /// bytes is no part of the dataset and is not read.
    fn read_fault(&self, dir: &Path, known: bool, most: u64) -> Result<Option<String>> {
        let path = dir.join(&self.file);
        let Some(bytes) = files::size(&path)? else { return Ok(Some(format!("{} is missing", self.file))) };
        if known && bytes == self.bytes {
            return Ok(None);
        }
        let sizes = format!("{} has {bytes} bytes instead of {}", self.file, self.bytes);
        if bytes > most {
            return Ok(Some(sizes));
        }
        let sha256 = files::sha256(&path)?;
        Ok(match (bytes == self.bytes, sha256 == self.sha256) {
            (true, true) => None,
            (true, false) => Some(format!("{} is damaged: its sha256 is {sha256}", self.file)),
            (false, _) => Some(format!("{sizes}; its sha256 is {sha256}")),
        })
    }
}

fn manifest_path(dir: &Path) -> PathBuf {
    dir.join("manifest.json")
}
