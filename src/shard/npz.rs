//! numpy's archives: a zip of arrays, not compressed.

use std::io::Write;
use std::path::{Path, PathBuf};

use ::zip::write::{SimpleFileOptions, StreamWriter, ZipWriter};
use ::zip::{CompressionMethod, DateTime};
use polars::prelude::DataFrame;

use super::column::{Values, Wide};
use super::flat::Flat;
use super::layout::Shard;
use crate::error::{Error, Result};

/// Writes `name.npy` for every column into one archive, for `numpy.load`.
///
/// numpy drops characters of code 0 from the end of a text: a token that is nothing else reads as empty.
pub(super) struct Npz<W: Write> {
    archive: ZipWriter<StreamWriter<W>>,
    path: PathBuf,
    wide: Vec<Wide>,
}

impl<W: Write> Npz<W> {
    pub(super) fn new(to: W, path: &Path, wide: &[Wide]) -> Self {
        Self { archive: ZipWriter::new_stream(to), path: path.to_path_buf(), wide: wide.to_vec() }
    }

    fn array(&mut self, name: &str, kind: &str, shape: &str, parts: &[&[u8]]) -> std::io::Result<()> {
        // A day that never changes: the bytes depend on the data alone.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(true);
        self.archive.start_file(format!("{name}.npy"), options)?;
        self.archive.write_all(&header(kind, shape))?;
        parts.iter().try_for_each(|part| self.archive.write_all(part))
    }

    fn identity(&mut self, name: &str, values: Flat) -> std::io::Result<()> {
        match values {
            Flat::I32(values) => self.array(name, "<i4", &one(values.len()), &[bytemuck::cast_slice(&values)]),
            Flat::I64(values) => self.array(name, "<i8", &one(values.len()), &[bytemuck::cast_slice(&values)]),
            Flat::U32(values) => self.array(name, "<u4", &one(values.len()), &[bytemuck::cast_slice(&values)]),
            Flat::U64(values) => self.array(name, "<u8", &one(values.len()), &[bytemuck::cast_slice(&values)]),
            Flat::F32(values) => self.array(name, "<f4", &one(values.len()), &[bytemuck::cast_slice(&values)]),
            Flat::F64(values) => self.array(name, "<f8", &one(values.len()), &[bytemuck::cast_slice(&values)]),
            Flat::Bool(values) => {
                let bytes: Vec<u8> = values.into_iter().map(u8::from).collect();
                self.array(name, "|b1", &one(bytes.len()), &[&bytes])
            }
            Flat::Text(values) => {
                let width = values.iter().map(|text| text.chars().count()).max().unwrap_or(0).max(1);
                let mut letters = Vec::with_capacity(values.len() * width);
                for text in &values {
                    let end = letters.len() + width;
                    letters.extend(text.chars().map(u32::from));
                    letters.resize(end, 0);
                }
                self.array(name, &format!("<U{width}"), &one(values.len()), &[bytemuck::cast_slice(&letters)])
            }
        }
    }
}

impl<W: Write> Shard for Npz<W> {
    fn write(&mut self, identity: &DataFrame, wide: &[Values<'_>]) -> Result<()> {
        for column in identity.columns() {
            let values = Flat::of(column)?;
            self.identity(column.name(), values).map_err(|e| Error::writing(&self.path, e))?;
        }
        for (column, values) in self.wide.clone().iter().zip(wide) {
            let kind = format!("<f{}", column.real.size());
            let shape = format!("({}, {})", identity.height(), column.width);
            let written = self.array(&column.name, &kind, &shape, &[values.bytes()]);
            written.map_err(|e| Error::writing(&self.path, e))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let path = self.path;
        let mut to = self.archive.finish().map_err(|e| Error::writing(&path, e.into()))?;
        to.flush().map_err(|e| Error::writing(&path, e))
    }
}

fn one(length: usize) -> String {
    format!("({length},)")
}

/// What stands before an array (numpy's format 1.0), filled up so that the values start at a multiple of 64 bytes.
fn header(kind: &str, shape: &str) -> Vec<u8> {
    let fields = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    let length = (10 + fields.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{fields:<width$}\n", width = length - 1).bytes());
    bytes
}
