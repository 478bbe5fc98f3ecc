//! Texts to read activations of, one after the other: never more than one of them, or one piece of a long one, in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use polars::prelude::*;
use serde_json::Value;

use crate::error::{Error, Result};

/// Tokens of a `.bin` file that are one piece of it.
const PIECE: usize = 1 << 20;
/// Rows of a Parquet file that are read at once.
const PARQUET_ROWS: usize = 4096;

/// One text, with what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// What it says.
    pub content: Content,
    /// One value per label that was asked for.
    pub labels: Vec<Value>,
}

/// Text, or what a tokenizer made of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text.
    Text(String),
    /// Token ids; the next document goes on with the same text if `more`.
    Tokens {
        /// The ids.
        ids: Vec<u32>,
        /// Whether the text goes on.
        more: bool,
    },
}

/// Documents as they are read.
pub type Documents = Box<dyn Iterator<Item = Result<Document>>>;

/// Opens a file of documents: `.jsonl` (an object per line), `.parquet` (a row each), `.bin` (nanoGPT's tokens, u16 little-endian,
/// one text), anything else a line each. Empty lines are no documents.
///
/// `field` names the text in JSONL and Parquet; `labels` are further fields there.
///
/// # Errors
/// [`Error::Missing`], [`Error::Data`] with the line, or [`Error::Request`] for labels of a file that has none.
pub fn open(path: &Path, field: &str, labels: &[String]) -> Result<Documents> {
    let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    if !labels.is_empty() && !matches!(kind, "jsonl" | "parquet") {
        return Err(Error::request(format!("{}: labels come with JSONL and Parquet", path.display())));
    }
    let file = File::open(path).map_err(|e| Error::reading(path, e))?;
    match kind {
        "jsonl" => Ok(jsonl(file, path, field, labels)),
        "parquet" => open_parquet(path, field, labels),
        "bin" => Ok(tokens(file, path)),
        _ => Ok(Box::new(lines(file, path).filter_map(|line| match line {
            Ok((_, line)) if line.trim().is_empty() => None,
            Ok((_, line)) => Some(Ok(Document { content: Content::Text(line), labels: Vec::new() })),
            Err(e) => Some(Err(e)),
        }))),
    }
}

/// Texts that are at hand.
pub fn given(texts: Vec<String>) -> Documents {
    Box::new(texts.into_iter().map(|text| Ok(Document { content: Content::Text(text), labels: Vec::new() })))
}

/// Numbered lines, without what ends them.
fn lines(file: File, path: &Path) -> impl Iterator<Item = Result<(usize, String)>> + use<> {
    let path = path.to_path_buf();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut number = 0;
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        // A file without line breaks must not fill the memory.
        let read = (&mut reader).take(crate::text::MAX_PROMPT as u64 + 2).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return None,
            Ok(_) => {}
            Err(source) => return Some(Err(Error::reading(&path, source))),
        }
        number += 1;
        while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            line.pop();
        }
        if line.len() > crate::text::MAX_PROMPT {
            let what = format!("line {number} is longer than {} bytes", crate::text::MAX_PROMPT);
            return Some(Err(Error::data(&path, what)));
        }
        let text = String::from_utf8(line);
        Some(text.map(|text| (number, text)).map_err(|_| Error::data(&path, format!("line {number} is not UTF-8"))))
    })
}

fn jsonl(file: File, path: &Path, field: &str, labels: &[String]) -> Documents {
    let (owned, field, labels) = (path.to_path_buf(), field.to_string(), labels.to_vec());
    let parse = move |(number, line): (usize, String)| -> Result<Document> {
        let wrong = |what: String| Error::data(&owned, format!("line {number}: {what}"));
        let mut value: Value = serde_json::from_str(&line).map_err(|e| wrong(e.to_string()))?;
        let mut take = |name: &str| value.get_mut(name).map(Value::take);
        let labels = labels
            .iter()
            .map(|label| match take(label) {
                Some(Value::Array(_) | Value::Object(_)) => Err(wrong(format!("label `{label}` is no single value"))),
                Some(value) => Ok(value),
                None => Err(wrong(format!("there is no field `{label}`"))),
            })
            .collect::<Result<_>>()?;
        match take(&field) {
            Some(Value::String(text)) => Ok(Document { content: Content::Text(text), labels }),
            _ => Err(wrong(format!("there is no text in a field `{field}`"))),
        }
    };
    let texts = lines(file, path).filter(|line| !matches!(line, Ok((_, line)) if line.trim().is_empty()));
    Box::new(texts.map(move |line| line.and_then(&parse)))
}

fn open_parquet(path: &Path, field: &str, labels: &[String]) -> Result<Documents> {
    let damaged = |e: &dyn std::fmt::Display| Error::data(path, format!("not a Parquet file that can be read: {e}"));
    let reader = || File::open(path).map(ParquetReader::new).map_err(|e| Error::reading(path, e));
    let height = reader()?.num_rows().map_err(|e| damaged(&e))?;
    let schema = reader()?.schema().map_err(|e| damaged(&e))?;
    let names: Vec<String> = std::iter::once(field.to_string()).chain(labels.iter().cloned()).collect();
    if let Some(missing) = names.iter().find(|name| !schema.contains(name.as_str())) {
        let have: Vec<&str> = schema.iter_names().map(|name| name.as_str()).collect();
        return Err(Error::data(path, format!("there is no column `{missing}`; there are {}", have.join(", "))));
    }
    let path = path.to_path_buf();
    let batch = move |first: usize| -> Result<Vec<Result<Document>>> {
        let damaged =
            |e: &dyn std::fmt::Display| Error::data(&path, format!("not a Parquet file that can be read: {e}"));
        let file = File::open(&path).map_err(|e| Error::reading(&path, e))?;
        let frame = ParquetReader::new(file)
            .with_columns(Some(names.clone()))
            .with_slice(Some((first, PARQUET_ROWS)))
            .finish()
            .map_err(|e| damaged(&e))?;
        let texts = frame.column(&names[0]).and_then(|column| column.str().cloned());
        let texts = texts.map_err(|_| Error::data(&path, format!("column `{}` is no text", names[0])))?;
        let row = |i: usize| -> Result<Document> {
            let text = texts.get(i).ok_or_else(|| Error::data(&path, format!("row {} has no text", first + i)))?;
            let label = |name: &String| frame.column(name).and_then(|column| column.get(i).map(value));
            let labels = names[1..].iter().map(label).collect::<PolarsResult<Vec<_>>>()?;
            Ok(Document { content: Content::Text(text.to_string()), labels })
        };
        Ok((0..frame.height()).map(row).collect())
    };
    let batches = (0..height).step_by(PARQUET_ROWS).map(batch);
    Ok(Box::new(batches.flat_map(|batch| batch.unwrap_or_else(|e| vec![Err(e)]))))
}

fn value(value: AnyValue<'_>) -> Value {
    match value {
        AnyValue::Boolean(b) => b.into(),
        AnyValue::String(s) => s.into(),
        AnyValue::StringOwned(s) => s.as_str().into(),
        AnyValue::Float32(x) => f64::from(x).into(),
        AnyValue::Float64(x) => x.into(),
        other => other.extract::<i64>().map_or(Value::Null, Value::from),
    }
}

fn tokens(file: File, path: &Path) -> Documents {
    let path = path.to_path_buf();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut ended = false;
    Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut bytes = Vec::new();
        if let Err(source) = (&mut reader).take(2 * PIECE as u64).read_to_end(&mut bytes) {
            ended = true;
            return Some(Err(Error::reading(&path, source)));
        }
        ended = bytes.len() < 2 * PIECE;
        if bytes.len() % 2 == 1 {
            return Some(Err(Error::data(&path, "has an odd number of bytes, and cannot be u16 tokens")));
        }
        let ids: Vec<u32> =
            bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect();
        if ids.is_empty() {
            return None;
        }
        Some(Ok(Document { content: Content::Tokens { ids, more: !ended }, labels: Vec::new() }))
    }))
}
