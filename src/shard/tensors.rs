//! Safetensors: a header in JSON, then arrays.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use serde_json::{Value, json};

use super::column::{Real, Values, Wide};
use super::flat::Flat;
use super::layout::Shard;
use crate::error::{Error, Result};

/// Writes every column as a tensor. Texts are codes (I64), and what they stand for is a JSON list in the metadata, under
/// the column's name.
///
/// The header is our own because the library's depends on the order of a hash map, and a part must come out the same each
/// time.
pub(super) struct Tensors<W: Write> {
    to: W,
    path: PathBuf,
    wide: Vec<Wide>,
    metadata: BTreeMap<String, String>,
}

/// A tensor to come.
struct Entry<'a> {
    name: &'a str,
    kind: &'static str,
    shape: Vec<usize>,
    bytes: std::borrow::Cow<'a, [u8]>,
}

impl<W: Write> Tensors<W> {
    pub(super) fn new(to: W, path: &Path, wide: &[Wide], metadata: &[(&str, &str)]) -> Self {
        let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Self { to, path: path.to_path_buf(), wide: wide.to_vec(), metadata }
    }
}

impl<W: Write> Shard for Tensors<W> {
    fn write(&mut self, identity: &DataFrame, wide: &[Values<'_>]) -> Result<()> {
        let height = identity.height();
        let mut entries = Vec::new();
        for column in identity.columns().iter().filter(|column| column.name() != "token") {
            let (kind, bytes) = match Flat::of(column)? {
                Flat::I32(values) => ("I32", bytemuck::cast_slice(&values).to_vec()),
                Flat::I64(values) => ("I64", bytemuck::cast_slice(&values).to_vec()),
                Flat::U32(values) => ("U32", bytemuck::cast_slice(&values).to_vec()),
                Flat::U64(values) => ("U64", bytemuck::cast_slice(&values).to_vec()),
                Flat::F32(values) => ("F32", bytemuck::cast_slice(&values).to_vec()),
                Flat::F64(values) => ("F64", bytemuck::cast_slice(&values).to_vec()),
                Flat::Bool(values) => ("BOOL", values.into_iter().map(u8::from).collect()),
                Flat::Text(values) => {
                    let (codes, texts) = coded(&values);
                    self.metadata.insert(column.name().to_string(), json!(texts).to_string());
                    ("I64", bytemuck::cast_slice(&codes).to_vec())
                }
            };
            entries.push(Entry { name: column.name(), kind, shape: vec![height], bytes: bytes.into() });
        }
        for (column, values) in self.wide.iter().zip(wide) {
            let kind = if column.real == Real::F16 { "F16" } else { "F32" };
            entries.push(Entry {
                name: &column.name,
                kind,
                shape: vec![height, column.width],
                bytes: values.bytes().into(),
            });
        }
        // Wide types first, so that every tensor lies where its type may.
        let size = |kind: &str| match kind {
            "I64" | "U64" | "F64" => 8,
            "I32" | "U32" | "F32" => 4,
            "F16" => 2,
            _ => 1,
        };
        entries.sort_by_key(|entry| std::cmp::Reverse(size(entry.kind)));
        let mut header = serde_json::Map::from_iter([("__metadata__".to_string(), json!(self.metadata))]);
        let mut end = 0;
        for Entry { name, kind, shape, bytes } in &entries {
            let offsets: Value = json!([end, end + bytes.len()]);
            header.insert(name.to_string(), json!({ "dtype": kind, "shape": shape, "data_offsets": offsets }));
            end += bytes.len();
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut write = |bytes: &[u8]| self.to.write_all(bytes).map_err(|e| Error::writing(&self.path, e));
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        entries.iter().try_for_each(|entry| write(&entry.bytes))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.to.flush().map_err(|e| Error::writing(&self.path, e))
    }
}

/// Bytes that texts take in the header, each once.
pub(super) fn header_bytes(values: &[String]) -> usize {
    let list = json!(coded(values).1).to_string();
    json!(list).to_string().len()
}

/// Texts as numbers in the order of their first appearance, and the texts.
fn coded(values: &[String]) -> (Vec<i64>, Vec<&str>) {
    let (mut codes, mut texts) = (BTreeMap::new(), Vec::new());
    let all = values.iter().map(|value| {
        *codes.entry(value.as_str()).or_insert_with(|| {
            texts.push(value.as_str());
            texts.len() as i64 - 1
        })
    });
    (all.collect(), texts)
}
