//! Documents that are the rows of a Parquet file: one column is the text, others are labels.
//!
//! The columns are decoded as Arrow arrays and not through polars, which is built here without most types and would turn a
//! column that it does not know into another one, or panic.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude::{ArrowDataType as Type, ArrowField};
use polars_arrow::array::{Array, BooleanArray, PrimitiveArray, Utf8ViewArray};
use polars_arrow::types::NativeType;
use polars_parquet::parquet::metadata::FileMetadata;
use polars_parquet::parquet::schema::types::PrimitiveType;
use polars_parquet::read::{
    BasicDecompressor, ColumnChunkMetadata, Filter, PageReader, column_iter_to_arrays, infer_schema,
};

use super::document::{Content, Document, Documents};
use super::labels::Label;
use crate::error::{Error, Result, shorten};
use crate::frame::{decoding, pages};
use crate::memory;

/// Rows that are decoded at once.
const ROWS: usize = 4096;
/// Bytes of a page at most, as Parquet has them.
const PAGE: usize = i32::MAX as usize;

/// A Parquet file, with the columns that are wanted of it: the text first, then the labels.
struct Table {
    path: PathBuf,
    file: File,
    metadata: Arc<FileMetadata>,
    columns: Vec<ArrowField>,
}

/// The documents of a Parquet file.
///
/// # Errors
/// [`Error::Data`] for what is no Parquet file, for columns that are not there, a text that is none, and labels of a type that
/// no dataset keeps exactly.
pub(super) fn open(file: File, path: &Path, field: &str, labels: &[String]) -> Result<Documents> {
    let (metadata, schema) = decoding(path, || {
        let metadata = polars_parquet::read::read_metadata(&mut BufReader::new(&file)).map_err(|e| damaged(path, e))?;
        let schema = infer_schema(&metadata).map_err(|e| damaged(path, e))?;
        Ok((metadata, schema))
    })?;
    let mut columns = Vec::new();
    for (i, name) in std::iter::once(field).chain(labels.iter().map(String::as_str)).enumerate() {
        let found = schema.get(name).ok_or_else(|| {
            let have: Vec<&str> = schema.iter_names().map(|name| name.as_str()).collect();
            Error::data(
                path,
                format!("there is no column `{}`; there are {}", shorten(name), shorten(&have.join(", "))),
            )
        })?;
        let kind = kept(found.dtype());
        let refuse = |what: String| Err(Error::data(path, format!("column `{}` is {what}", shorten(name))));
        let kind = match (i, kind) {
            (0, Some(Type::Utf8View)) => Type::Utf8View,
            (0, _) => return refuse(format!("{}, and no text", words(found.dtype()))),
            (_, Some(kind)) => kind,
            (_, None) => {
                return refuse(format!(
                    "{}: labels are texts, whole numbers, numbers or truth values; cast it to one of these, or leave it out",
                    words(found.dtype())
                ));
            }
        };
        columns.push(ArrowField::new(name.into(), kind, true));
    }
    let table = Table { path: path.to_path_buf(), file, metadata: Arc::new(metadata), columns };
    let groups = 0..table.metadata.row_groups.len();
    let mut before = 0;
    let mut groups = groups.map(move |group| {
        let first = before;
        before += table.metadata.row_groups[group].num_rows();
        table.group(group, first)
    });
    let mut slices: Option<Slices> = None;
    let mut failed = false;
    let batches = std::iter::from_fn(move || {
        while !failed {
            if let Some(batch) = slices.as_mut().and_then(Slices::next) {
                failed = batch.is_err();
                return Some(batch);
            }
            match groups.next()? {
                Ok(next) => slices = Some(next),
                Err(e) => {
                    failed = true;
                    return Some(Err(e));
                }
            }
        }
        None
    });
    Ok(Box::new(batches.flat_map(|batch| match batch {
        Ok(documents) => documents.into_iter().map(Ok).collect(),
        Err(e) => vec![Err(e)],
    })))
}

/// The type in which a column of this type is read, where a label can be exactly its values: a category is its name, and numbers
/// of fewer bits are numbers of more.
fn kept(kind: &Type) -> Option<Type> {
    match kind {
        Type::Boolean
        | Type::Int8
        | Type::Int16
        | Type::Int32
        | Type::Int64
        | Type::UInt8
        | Type::UInt16
        | Type::UInt32
        | Type::UInt64
        | Type::Float16
        | Type::Float32
        | Type::Float64 => Some(kind.clone()),
        Type::Utf8 | Type::LargeUtf8 | Type::Utf8View => Some(Type::Utf8View),
        Type::Dictionary(_, values, _) => kept(values),
        _ => None,
    }
}

/// The name of a type, as Arrow's documentation has it.
fn words(kind: &Type) -> String {
    let unit = |unit: &dyn std::fmt::Debug| format!("{unit:?}").to_lowercase();
    match kind {
        Type::Null => "null (no row has a value)".into(),
        Type::Binary | Type::LargeBinary | Type::BinaryView => "binary".into(),
        Type::FixedSizeBinary(size) => format!("fixed-size binary of {size} bytes"),
        Type::Date32 | Type::Date64 => "a date".into(),
        Type::Time32(of) | Type::Time64(of) => format!("a time in {}s", unit(of)),
        Type::Timestamp(of, None) => format!("a timestamp in {}s", unit(of)),
        Type::Timestamp(of, Some(zone)) => format!("a timestamp in {}s at {}", unit(of), shorten(zone)),
        Type::Duration(of) => format!("a duration in {}s", unit(of)),
        Type::Interval(_) => "an interval".into(),
        Type::Decimal(digits, scale) | Type::Decimal32(digits, scale) | Type::Decimal64(digits, scale) => {
            format!("decimal({digits}, {scale})")
        }
        Type::Decimal256(digits, scale) => format!("decimal256({digits}, {scale})"),
        Type::List(_) | Type::LargeList(_) => "a list".into(),
        Type::FixedSizeList(_, length) => format!("an array of {length}"),
        Type::Struct(_) => "a struct".into(),
        Type::Map(..) => "a map".into(),
        Type::Dictionary(_, values, _) => format!("a dictionary of {}", words(values)),
        Type::Extension(own) => format!("of the extension type {}", shorten(&own.name)),
        other => shorten(&format!("{other:?}").to_lowercase()),
    }
}

/// A row group, some rows at a time.
struct Slices {
    path: PathBuf,
    rows: usize,
    /// The number of the group's first row in the file.
    first: usize,
    next: usize,
    columns: Vec<Chunk>,
}

/// A column in a row group.
struct Chunk {
    field: ArrowField,
    kind: PrimitiveType,
    /// Its pages from the first on, each time.
    pages: Box<dyn Fn() -> PageReader>,
}

impl Table {
    /// The columns of a row group, as they lie in the file.
    fn group(&self, index: usize, first: usize) -> Result<Slices> {
        let path = &self.path;
        let group = &self.metadata.row_groups[index];
        let columns = self.columns.iter().map(|field| {
            let own = |(_, chunk): &(usize, &ColumnChunkMetadata)| {
                let names = &chunk.descriptor().path_in_schema;
                names.len() == 1 && names[0] == field.name
            };
            let mut found = group.parquet_columns().iter().enumerate().filter(own);
            let (Some((place, metadata)), None) = (found.next(), found.next()) else {
                return Err(damaged(path, format!("column `{}` is not in every row group", shorten(&field.name))));
            };
            let range = decoding(path, || Ok(metadata.byte_range()))?;
            let bytes = self.read(range)?;
            let page = pages::read_chunk(&mut Cursor::new(&bytes), path, metadata, 0)?.page;
            memory::check(&format!("{}: a page", path.display()), page, None)?;
            let (bytes, all) = (bytes.into(), Arc::clone(&self.metadata));
            let pages = move || {
                let chunk = &all.row_groups[index].parquet_columns()[place];
                PageReader::new(Cursor::new(Clone::clone(&bytes)), chunk, Vec::new(), PAGE)
            };
            let kind = metadata.descriptor().descriptor.primitive_type.clone();
            Ok(Chunk { field: field.clone(), kind, pages: Box::new(pages) })
        });
        Ok(Slices {
            path: path.clone(),
            rows: group.num_rows(),
            first,
            next: 0,
            columns: columns.collect::<Result<_>>()?,
        })
    }

    /// Some bytes of the file; what it claims and does not have takes no memory.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let fail = |e| Error::reading(&self.path, e);
        let length = range.end.saturating_sub(range.start);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(range.start)).map_err(fail)?;
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(fail)?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err(damaged(&self.path, "it is cut short")),
        }
    }
}

impl Iterator for Slices {
    type Item = Result<Vec<Document>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.rows {
            return None;
        }
        let slice = self.next..self.rows.min(self.next + ROWS);
        self.next = slice.end;
        Some(self.documents(slice))
    }
}

impl Slices {
    fn documents(&self, slice: Range<usize>) -> Result<Vec<Document>> {
        let columns = self.columns.iter().map(|chunk| chunk.labels(&self.path, slice.clone()));
        let mut columns = columns.collect::<Result<Vec<_>>>()?.into_iter().map(Vec::into_iter);
        let texts = columns.next().unwrap_or_default();
        let mut labels: Vec<_> = columns.collect();
        texts
            .zip(slice)
            .map(|(text, row)| {
                let Label::Text(text) = text else {
                    return Err(Error::data(&self.path, format!("row {} has no text", self.first + row)));
                };
                let labels = labels.iter_mut().filter_map(Iterator::next).collect();
                Ok(Document { content: Content::Text(text), labels })
            })
            .collect()
    }
}

impl Chunk {
    /// The values of some rows.
    fn labels(&self, path: &Path, slice: Range<usize>) -> Result<Vec<Label>> {
        let name = &self.field.name;
        let broken = |e: &dyn std::fmt::Display| damaged(path, format!("column `{}`: {e}", shorten(name)));
        let length = slice.len();
        let arrays = decoding(path, || {
            let pages = BasicDecompressor::new((self.pages)(), Vec::new());
            let filter = Some(Filter::new_ranged(slice.start, slice.end));
            let read = column_iter_to_arrays(vec![pages], vec![&self.kind], self.field.clone(), filter);
            Ok(read.map_err(|e| broken(&e))?.0)
        })?;
        let mut labels = Vec::with_capacity(length);
        for array in &arrays {
            labels.extend(values(array.as_ref()).ok_or_else(|| broken(&"it is not of the type that it claims"))?);
        }
        match labels.len() == length {
            true => Ok(labels),
            false => Err(broken(&format!("it has {} rows instead of {length}", labels.len()))),
        }
    }
}

/// The values of an array; none for one of a type that [`kept`] does not let through.
fn values(array: &dyn Array) -> Option<Vec<Label>> {
    fn numbers<T: NativeType>(array: &dyn Array, label: fn(T) -> Label) -> Option<Vec<Label>> {
        let array = array.as_any().downcast_ref::<PrimitiveArray<T>>()?;
        Some(array.iter().map(|value| value.map_or(Label::Missing, |value| label(*value))).collect())
    }
    match array.dtype() {
        Type::Boolean => {
            let array = array.as_any().downcast_ref::<BooleanArray>()?;
            Some(array.iter().map(|value| value.map_or(Label::Missing, Label::Bool)).collect())
        }
        Type::Utf8View => {
            let array = array.as_any().downcast_ref::<Utf8ViewArray>()?;
            Some(array.iter().map(|value| value.map_or(Label::Missing, |text| Label::Text(text.to_string()))).collect())
        }
        Type::Int8 => numbers::<i8>(array, |n| Label::I32(n.into())),
        Type::Int16 => numbers::<i16>(array, |n| Label::I32(n.into())),
        Type::Int32 => numbers::<i32>(array, Label::I32),
        Type::Int64 => numbers::<i64>(array, Label::I64),
        Type::UInt8 => numbers::<u8>(array, |n| Label::U32(n.into())),
        Type::UInt16 => numbers::<u16>(array, |n| Label::U32(n.into())),
        Type::UInt32 => numbers::<u32>(array, Label::U32),
        Type::UInt64 => numbers::<u64>(array, Label::U64),
        Type::Float32 => numbers::<f32>(array, Label::F32),
        Type::Float64 => numbers::<f64>(array, Label::F64),
        Type::Float16 => {
            let array = array.as_any().downcast_ref::<polars_arrow::array::Float16Array>()?;
            let widened = |value: &[u8]| Label::F32(half::f16::from_le_bytes([value[0], value[1]]).to_f32());
            Some(array.iter().map(|v| v.map_or(Label::Missing, |v| widened(v.to_le_bytes().as_ref()))).collect())
        }
        _ => None,
    }
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::data(path, format!("not a Parquet file that can be read: {what}"))
}
