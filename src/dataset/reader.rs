//! Reading a dataset back, and nothing that is not what was written.

use std::path::{Path, PathBuf};

use ndarray::Array2;
use polars::prelude::DataFrame;

use super::manifest::Manifest;
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::frame;
use crate::shard::{Layout, ShardReader};

/// A sealed dataset in Parquet.
pub struct Dataset {
    dir: PathBuf,
    plan: Plan,
    manifest: Manifest,
}

impl Dataset {
    /// Opens a directory that `export` made. Parts are looked at when they are read.
    ///
    /// # Errors
    /// [`Error::Data`] for a directory without a sealed dataset, for a manifest that is not its plan's, and for another
    /// layout than Parquet.
    pub fn open(dir: &Path) -> Result<Self> {
        let (manifest, plan) = Manifest::open_sealed(dir)?;
        if plan.request.layout != Layout::Parquet {
            let what = format!("its parts are {} files; only Parquet is read here", plan.request.layout.extension());
            return Err(Error::data(dir, what));
        }
        Ok(Self { dir: dir.to_path_buf(), plan, manifest })
    }

    /// How it was made.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads a part, after its bytes were found to be those that were sealed.
    ///
    /// # Errors
    /// [`Error::Data`] for a part that is missing, cut short, damaged or another one.
    pub fn read_part(&self, index: usize) -> Result<ShardReader> {
        let entry = &self.manifest.parts[index];
        let part = ShardReader::parse(entry.read(&self.dir)?, &self.dir.join(&entry.file))?;
        match part.rows() as u64 == entry.rows {
            true => Ok(part),
            false => Err(Error::data(
                self.dir.join(&entry.file),
                format!("has {} rows, and {} were sealed", part.rows(), entry.rows),
            )),
        }
    }

    /// Identity of all rows (`prompt`, `document`, `pos`, `token_id`, `token` and the labels), and of each of these sites, by the
    /// names that they have in the dataset, `[row, d]` in f32. Every part is read and checked once.
    ///
    /// # Errors
    /// As [`Dataset::read_part`], and [`Error::Request`] for a site that is not in it.
    pub fn read(&self, names: &[String]) -> Result<(DataFrame, Vec<Array2<f32>>)> {
        let mut identity = None;
        let mut values = vec![Vec::new(); names.len()];
        for index in 0..self.manifest.parts.len() {
            let part = self.read_part(index)?;
            frame::append(&mut identity, part.identity()?)?;
            for (name, values) in names.iter().zip(&mut values) {
                values.append(&mut part.values(name)?);
            }
        }
        let identity = identity.ok_or_else(|| Error::data(&self.dir, "a dataset without parts"))?;
        let rows = self.manifest.rows as usize;
        let table = |values: Vec<f32>| {
            let width = values.len() / rows.max(1);
            Array2::from_shape_vec((rows, width), values).map_err(|e| Error::data(&self.dir, e.to_string()))
        };
        Ok((identity, values.into_iter().map(table).collect::<Result<_>>()?))
    }
}
