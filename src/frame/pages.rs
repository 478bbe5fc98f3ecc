//! The headers of the pages of a Parquet file are compared with its footer, before a decoder believes them.
//!
//! polars' decoder reserves memory for the number of values that the header of a page claims. A negative number becomes one of 2⁶³,
//! and a failed allocation ends the process where a panic could be caught.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use polars_parquet::parquet::metadata::{ColumnChunkMetadata, FileMetadata};
use polars_parquet::parquet::schema::types::PhysicalType;
use polars_parquet_format::PageHeader;
use polars_parquet_format::thrift::protocol::TCompactInputProtocol;

use super::decoding;
use crate::error::{Error, Result, shorten};
use crate::memory;

/// Bytes of the header of a page at most: some numbers, and the smallest and largest value.
const HEADER: usize = 16 << 20;

/// What decoding takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    /// Bytes of all values of the columns, about.
    pub values: u64,
    /// Bytes of the largest page.
    pub page: u64,
}

impl Sizes {
    /// Refuses what has no room in memory where all values are decoded at once.
    ///
    /// # Errors
    /// [`Error::TryAgain`] with both numbers.
    pub fn check(self, path: &Path) -> Result<()> {
        memory::check(&path.display().to_string(), self.values.saturating_add(self.page), None)
    }
}

/// Checks the pages of the columns for which `reads` holds, by the first of the names that lead to each; returns what they take.
///
/// # Errors
/// [`Error::Data`] for sizes and numbers that cannot be, and [`Error::Io`].
pub(crate) fn read_sizes(
    file: impl Read + Seek,
    path: &Path,
    metadata: &FileMetadata,
    reads: impl Fn(&str) -> bool,
) -> Result<Sizes> {
    let mut file = BufReader::new(file);
    let mut sizes = Sizes::default();
    for group in &metadata.row_groups {
        for chunk in group.parquet_columns().iter().filter(|chunk| reads(&chunk.descriptor().path_in_schema[0])) {
            let start = decoding(path, || Ok(chunk.byte_range()))?.start;
            let own = read_chunk(&mut file, path, chunk, start)?;
            sizes.values = sizes.values.saturating_add(own.values);
            sizes.page = sizes.page.max(own.page);
        }
    }
    Ok(sizes)
}

/// Bytes of a value of a column, about.
fn width(chunk: &ColumnChunkMetadata) -> u64 {
    match chunk.physical_type() {
        PhysicalType::Boolean => 1,
        PhysicalType::Int32 | PhysicalType::Float => 4,
        PhysicalType::Int64 | PhysicalType::Double => 8,
        PhysicalType::Int96 | PhysicalType::ByteArray => 16,
        PhysicalType::FixedLenByteArray(size) => size as u64,
    }
}

/// Checks the pages of one column in one row group, which begin at the byte `start` of `file`; returns what they take.
///
/// # Errors
/// As [`read_sizes`].
pub(crate) fn read_chunk(
    file: &mut (impl Read + Seek),
    path: &Path,
    chunk: &ColumnChunkMetadata,
    start: u64,
) -> Result<Sizes> {
    let name = shorten(&chunk.descriptor().path_in_schema[0]);
    let wrong =
        |what: String| Error::data(path, format!("not a Parquet file that can be read: column `{name}` {what}"));
    let range = decoding(path, || Ok(chunk.byte_range()))?;
    let end = start.saturating_add(range.end.saturating_sub(range.start));
    let count =
        u64::try_from(chunk.num_values()).map_err(|_| wrong(format!("claims {} values", chunk.num_values())))?;
    let (mut at, mut left, mut largest) = (start, count, 0);
    while at < end {
        file.seek(SeekFrom::Start(at)).map_err(|e| Error::reading(path, e))?;
        let room = (end - at).min(HEADER as u64);
        let mut bytes = Vec::new();
        file.by_ref().take(room.min(512)).read_to_end(&mut bytes).map_err(|e| Error::reading(path, e))?;
        let mut header = parse(&bytes);
        if header.is_none() && room > bytes.len() as u64 {
            let more = room - bytes.len() as u64;
            file.by_ref().take(more).read_to_end(&mut bytes).map_err(|e| Error::reading(path, e))?;
            header = parse(&bytes);
        }
        let Some((header, size)) = header else { return Err(wrong("has a page without a header".into())) };
        let claimed = [
            header.data_page_header.as_ref().map(|page| page.num_values),
            header.data_page_header_v2.as_ref().map(|page| page.num_values),
        ];
        let others = [
            Some(header.compressed_page_size),
            Some(header.uncompressed_page_size),
            header.dictionary_page_header.as_ref().map(|page| page.num_values),
            header.data_page_header_v2.as_ref().map(|page| page.num_nulls),
            header.data_page_header_v2.as_ref().map(|page| page.num_rows),
            header.data_page_header_v2.as_ref().map(|page| page.definition_levels_byte_length),
            header.data_page_header_v2.as_ref().map(|page| page.repetition_levels_byte_length),
        ];
        if let Some(number) = claimed.iter().chain(&others).flatten().find(|number| **number < 0) {
            return Err(wrong(format!("has a page that claims a size of {number}")));
        }
        // An entry of a dictionary takes a byte at least.
        let size_of = u64::try_from(header.uncompressed_page_size).unwrap_or(0);
        if let Some(page) = header.dictionary_page_header.as_ref().filter(|page| page.num_values as u64 > size_of) {
            return Err(wrong(format!("has a dictionary of {} values in {size_of} bytes", page.num_values)));
        }
        largest = largest.max(size_of);
        for number in claimed.into_iter().flatten() {
            left = left
                .checked_sub(number as u64)
                .ok_or_else(|| wrong(format!("has pages of more than its {count} values")))?;
        }
        at += size as u64 + header.compressed_page_size as u64;
    }
    match at == end {
        true => Ok(Sizes { values: count.saturating_mul(width(chunk)), page: largest }),
        false => Err(wrong("has a page that is larger than the column".into())),
    }
}

/// The header of a page, and the bytes that it takes.
fn parse(bytes: &[u8]) -> Option<(PageHeader, usize)> {
    let mut rest = bytes;
    let mut protocol = TCompactInputProtocol::new(&mut rest, HEADER);
    let header = PageHeader::read_from_in_protocol(&mut protocol).ok()?;
    Some((header, bytes.len() - rest.len()))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use polars::prelude::*;
    use polars_parquet::parquet::read::read_metadata;
    use polars_parquet_format::thrift::protocol::TCompactOutputProtocol;

    use super::super::{load_parquet, save_parquet};
    use super::*;

    /// A file whose first page of a column has another header, of the same length.
    fn forged(path: &Path, column: usize, change: impl Fn(&mut PageHeader)) {
        let mut frame =
            df!("n" => (0..20).map(f64::from).collect::<Vec<_>>(), "t" => ["a", "b", "a", "b"].repeat(5)).unwrap();
        save_parquet(&mut frame, path).unwrap();
        assert!(load_parquet(path).unwrap().equals(&frame));
        let mut bytes = std::fs::read(path).unwrap();
        let metadata = read_metadata(&mut Cursor::new(&bytes)).unwrap();
        let start = metadata.row_groups[0].parquet_columns()[column].byte_range().start as usize;
        let (mut header, size) = parse(&bytes[start..]).unwrap();
        change(&mut header);
        let mut own = Vec::new();
        header.write_to_out_protocol(&mut TCompactOutputProtocol::new(&mut own)).unwrap();
        assert_eq!(own.len(), size, "the other header is as long");
        bytes[start..start + size].copy_from_slice(&own);
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_a_page_claims_is_compared_with_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("forged.parquet");
        let count = |number: i32| {
            move |header: &mut PageHeader| {
                header.data_page_header.as_mut().into_iter().for_each(|page| page.num_values = number);
                header.data_page_header_v2.as_mut().into_iter().for_each(|page| page.num_values = number);
                header.dictionary_page_header.as_mut().into_iter().for_each(|page| page.num_values = number);
            }
        };
        for column in 0..2 {
            for number in [-1, -64, 63] {
                forged(&path, column, count(number));
                let error = load_parquet(&path).unwrap_err();
                assert_eq!(error.kind(), crate::error::Kind::Data, "{error}");
                let wanted =
                    ["claims a size of -", "pages of more than its 20 values", "has a dictionary of 63 values in"];
                assert!(wanted.iter().any(|wanted| error.to_string().contains(wanted)), "{error}");
            }
            forged(&path, column, |header| header.compressed_page_size = -header.compressed_page_size);
            let error = load_parquet(&path).unwrap_err().to_string();
            assert!(error.contains("claims a size of -"), "{error}");
        }
    }
}
