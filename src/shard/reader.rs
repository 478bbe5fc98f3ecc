//! Reading what [`super::ShardWriter`] wrote.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use half::f16;
use polars::prelude::*;
use polars_parquet::parquet::metadata::FileMetadata;
use polars_parquet::parquet::read::read_metadata;
use polars_parquet_format::thrift::protocol::TCompactInputProtocol;
use polars_parquet_format::{Encoding, PageHeader, PageType};

use super::column::{Real, Wide};
use crate::error::{Error, Result};
use crate::frame::{decoding, pages};

/// A shard in memory. Identity columns are read by polars; wide ones are copied from between their levels, which polars
/// would look at number by number, and which it does not know for f16.
pub struct ShardReader {
    bytes: Vec<u8>,
    path: PathBuf,
    metadata: FileMetadata,
    identity: Vec<PlSmallStr>,
    wide: Vec<Wide>,
}

impl ShardReader {
    /// Looks at the footer of a shard; `path` says in errors which one it is.
    ///
    /// # Errors
    /// [`Error::Data`] for what is no Parquet file.
    pub fn parse(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        let fault = |e: &dyn std::fmt::Display| Error::data(path, format!("not a Parquet file that can be read: {e}"));
        let (metadata, schema) = decoding(path, || {
            let metadata = read_metadata(&mut Cursor::new(&bytes)).map_err(|e| fault(&e))?;
            Ok((metadata, ParquetReader::new(Cursor::new(&bytes)).schema().map_err(|e| fault(&e))?))
        })?;
        let (mut identity, mut wide) = (Vec::new(), Vec::new());
        for field in schema.iter_values() {
            match &field.dtype {
                ArrowDataType::FixedSizeList(item, width) => {
                    let real = match item.dtype {
                        ArrowDataType::Float32 => Real::F32,
                        ArrowDataType::Float16 => Real::F16,
                        _ => {
                            return Err(Error::data(
                                path,
                                format!("column `{}` is no array of f32 or f16", field.name),
                            ));
                        }
                    };
                    wide.push(Wide::new(field.name.as_str(), real, *width));
                }
                _ => identity.push(field.name.clone()),
            }
        }
        // What a footer claims takes no memory before it is compared with what there is.
        let held = |column: &Wide| {
            let size = metadata.num_rows.checked_mul(column.width)?.checked_mul(column.real.size())?;
            (column.width > 0 && size <= bytes.len()).then_some(())
        };
        if let Some(column) = wide.iter().find(|column| held(column).is_none()) {
            return Err(fault(&format!(
                "{} rows of {} numbers in `{}` are more than its {} bytes hold",
                metadata.num_rows,
                column.width,
                crate::error::shorten(&column.name),
                bytes.len()
            )));
        }
        Ok(Self { bytes, path: path.to_path_buf(), metadata, identity, wide })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.metadata.num_rows
    }

    /// The wide columns.
    pub fn wide(&self) -> &[Wide] {
        &self.wide
    }

    /// The columns that tell rows apart.
    ///
    /// # Errors
    /// [`Error::Data`] for what polars cannot read, [`Error::TryAgain`] for what has no room in memory.
    pub fn identity(&self) -> Result<DataFrame> {
        let is_read = |name: &str| self.identity.iter().any(|own| own.as_str() == name);
        pages::read_sizes(Cursor::new(&self.bytes), &self.path, &self.metadata, is_read)?.check(&self.path)?;
        let reader = ParquetReader::new(Cursor::new(&self.bytes))
            .with_columns(Some(self.identity.iter().map(|name| name.to_string()).collect()));
        let frame = decoding(&self.path, || reader.finish().map_err(|e| Error::data(&self.path, e.to_string())))?;
        match frame.height() == self.rows() {
            true => Ok(frame),
            false => Err(Error::data(&self.path, format!("has {} rows instead of {}", frame.height(), self.rows()))),
        }
    }

    /// The numbers of a wide column, `[rows, width]`, f16 widened; every page is checked against its sum.
    ///
    /// # Errors
    /// [`Error::Request`] for a column that is not there, [`Error::Data`] for pages that are damaged or not laid out as
    /// [`super::ShardWriter`] does.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let column = self.wide.iter().find(|column| column.name == name).ok_or_else(|| {
            let have: Vec<&str> = self.wide.iter().map(|column| column.name.as_str()).collect();
            Error::request(format!("{} has no site `{name}`; it has {}", self.path.display(), have.join(", ")))
        })?;
        let mut all = Vec::with_capacity(self.rows() * column.width);
        for group in &self.metadata.row_groups {
            let chunk = group.parquet_columns().iter().find(|chunk| chunk.descriptor().path_in_schema[0] == name);
            let chunk = chunk.ok_or_else(|| self.fault(name, "is not in every group"))?;
            let range = decoding(&self.path, || Ok(chunk.byte_range()))?;
            let mut pages = self
                .bytes
                .get(range.start as usize..range.end as usize)
                .ok_or_else(|| self.fault(name, "is cut short"))?;
            while !pages.is_empty() {
                let values = self.page(name, &mut pages)?;
                match column.real {
                    Real::F32 => {
                        all.extend(values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                    }
                    Real::F16 => all.extend(values.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())),
                }
            }
        }
        match all.len() == self.rows() * column.width {
            true => Ok(all),
            false => Err(self.fault(name, "has another number of values than its rows")),
        }
    }

    /// The values of the next page, without its levels.
    fn page<'a>(&self, name: &str, pages: &mut &'a [u8]) -> Result<&'a [u8]> {
        let mut protocol = TCompactInputProtocol::new(&mut *pages, usize::MAX);
        let header = PageHeader::read_from_in_protocol(&mut protocol).map_err(|e| self.fault(name, &e.to_string()))?;
        let plain = header.data_page_header.as_ref().is_some_and(|data| data.encoding == Encoding::PLAIN);
        if header.type_ != PageType::DATA_PAGE || !plain || header.compressed_page_size != header.uncompressed_page_size
        {
            return Err(self.fault(name, "is not stored plainly, and this is no shard of interp's"));
        }
        let size = usize::try_from(header.compressed_page_size).unwrap_or(usize::MAX);
        let (page, rest) = pages.split_at_checked(size).ok_or_else(|| self.fault(name, "is cut short"))?;
        if header.crc.is_some_and(|sum| sum as u32 != crc32fast::hash(page)) {
            return Err(self.fault(name, "is damaged: a page does not match its checksum"));
        }
        *pages = rest;
        let after = |bytes: &'a [u8]| -> Option<&'a [u8]> {
            let length = u32::from_le_bytes(bytes.first_chunk().copied()?) as usize;
            bytes.get(4 + length..)
        };
        after(page).and_then(after).ok_or_else(|| self.fault(name, "is cut short"))
    }

    fn fault(&self, name: &str, what: &str) -> Error {
        Error::data(&self.path, format!("column `{name}` {what}"))
    }
}
