//! How a file of rows is laid out.

use std::io::Write;
use std::path::Path;

use polars::prelude::{DataFrame, SchemaRef};
use serde::{Deserialize, Serialize};

use super::column::{Values, Wide};
use super::flat::Flat;
use super::npz::Npz;
use super::sequences::SequenceFile;
use super::tensors::Tensors;
use super::writer::ShardWriter;
use crate::error::Result;

/// A file of rows on its way.
pub trait Shard {
    /// Writes rows: their identity, and one array per row for every wide column.
    ///
    /// # Errors
    /// [`crate::Error::Io`] or [`crate::Error::CannotWrite`]; the file cannot be finished any more.
    fn write(&mut self, identity: &DataFrame, wide: &[Values<'_>]) -> Result<()>;

    /// Writes what belongs at the end, and flushes.
    ///
    /// # Errors
    /// As [`Shard::write`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What a file of rows holds.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions<'a> {
    /// The file, for errors.
    pub path: &'a Path,
    /// Columns that tell rows apart.
    pub identity: &'a SchemaRef,
    /// Wide columns.
    pub wide: &'a [Wide],
    /// For the file's footer or header.
    pub metadata: &'a [(&'a str, &'a str)],
}

/// How a file of rows is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Parquet, an array per row and site: [`ShardWriter`].
    #[default]
    Parquet,
    /// numpy's archive of arrays, `[row]` and `[row, d]`.
    Npz,
    /// Tensors, `[row]` and `[row, d]`; texts are codes, and tokens numbers only.
    Safetensors,
    /// What SAELens reads with `datasets.load_from_disk`: a row per sequence, `[pos, d]` in it.
    Saelens,
}

impl Layout {
    /// All of them, by name.
    pub const ALL: [(&'static str, Layout); 4] = [
        ("parquet", Layout::Parquet),
        ("npz", Layout::Npz),
        ("safetensors", Layout::Safetensors),
        ("saelens", Layout::Saelens),
    ];

    /// What a file's name ends in.
    pub fn extension(self) -> &'static str {
        match self {
            Layout::Parquet => "parquet",
            Layout::Npz => "npz",
            Layout::Safetensors => "safetensors",
            Layout::Saelens => "arrow",
        }
    }

    /// Whether rows can be written as they come; otherwise [`Shard::write`] takes all rows of a file at once.
    pub fn streams(self) -> bool {
        matches!(self, Layout::Parquet | Layout::Saelens)
    }

    /// Checks that a file of this layout can say what the identity of rows says.
    ///
    /// # Errors
    /// [`crate::Error::Request`] for values that are missing, in arrays.
    pub fn check(self, identity: &DataFrame) -> Result<()> {
        match self {
            Layout::Npz | Layout::Safetensors => {
                identity.columns().iter().try_for_each(|column| Flat::of(column).map(|_| ()))
            }
            Layout::Parquet | Layout::Saelens => Ok(()),
        }
    }

    /// Begins a file; with [`Layout::Saelens`], `context` rows are a sequence.
    ///
    /// # Errors
    /// As [`ShardWriter::new`].
    pub fn writer<'a>(
        self,
        to: impl Write + 'a,
        options: &ShardOptions<'_>,
        context: usize,
    ) -> Result<Box<dyn Shard + 'a>> {
        let ShardOptions { path, identity, wide, metadata } = *options;
        Ok(match self {
            Layout::Parquet => Box::new(ShardWriter::new(to, path, identity, wide, metadata)?),
            Layout::Npz => Box::new(Npz::new(to, path, wide)),
            Layout::Safetensors => Box::new(Tensors::new(to, path, wide, metadata)),
            Layout::Saelens => Box::new(SequenceFile::new(to, path, wide, context)?),
        })
    }
}

impl<W: Write> Shard for ShardWriter<W> {
    fn write(&mut self, identity: &DataFrame, wide: &[Values<'_>]) -> Result<()> {
        ShardWriter::write(self, identity, wide)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        ShardWriter::finish(*self).map(|_| ())
    }
}
