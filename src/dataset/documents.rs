//! Files of texts, read one text after the other: never more than one of them, or one piece of a long one, in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;
use std::rc::Rc;

use polars::prelude::DataFrame;
use serde_json::Value;

pub use super::document::{Content, Document, Documents};
use super::labels::{self, Label};
use super::{lines, table};
use crate::error::{Error, Result};

/// Tokens of a `.bin` file that are one piece of it.
const PIECE: usize = 1 << 20;
/// Largest plain text that is read whole.
const MAX_TEXT: u64 = 16 << 30;

/// What a file of texts looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Plain text.
    Text,
    /// An object per line.
    Jsonl,
    /// A row each.
    Parquet,
    /// nanoGPT's tokens, u16 little-endian, one text.
    Tokens,
}

/// How files of texts are read: by every command alike.
///
/// `.jsonl` and `.ndjson` hold an object per line, and so does `.json` whose content looks like it; `.parquet` a row each; `.bin`
/// nanoGPT's tokens; anything else plain text, of which each line is a document, or the whole of it. Names may be written large. A
/// byte-order mark is no part of a text, and lines may end with `\r\n`. Blank lines are no documents; a text without a character is
/// left out, and its line named to who hears of it.
#[derive(Clone)]
pub struct Reading {
    field: String,
    labels: Vec<String>,
    lossy: bool,
    whole: bool,
    heard: Rc<dyn Fn(&str)>,
}

impl Default for Reading {
    fn default() -> Self {
        Self { field: "text".into(), labels: Vec::new(), lossy: false, whole: false, heard: Rc::new(|_| {}) }
    }
}

impl Reading {
    /// The field with the text in JSONL and Parquet; `text` without this.
    pub fn field(self, field: &str) -> Self {
        Self { field: field.into(), ..self }
    }

    /// Further fields there.
    pub fn labels(self, labels: &[String]) -> Self {
        Self { labels: labels.to_vec(), ..self }
    }

    /// Replace bytes that are not UTF-8 instead of refusing them.
    pub fn lossy(self, lossy: bool) -> Self {
        Self { lossy, ..self }
    }

    /// The whole of a plain text is one document, and not each of its lines.
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// Who hears of what is left out, in a sentence with file and line.
    pub fn hearing(self, heard: impl Fn(&str) + 'static) -> Self {
        Self { heard: Rc::new(heard), ..self }
    }

    /// Opens a file of documents.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Data`] with the line, or [`Error::Request`] for labels of a file that has none.
    pub fn open(&self, path: &Path) -> Result<Documents> {
        let (form, file) = open_form(path)?;
        if !self.labels.is_empty() && !matches!(form, Form::Jsonl | Form::Parquet) {
            return Err(Error::request(format!("{}: labels come with JSONL and Parquet", path.display())));
        }
        match form {
            Form::Jsonl => Ok(self.jsonl(file, path)),
            Form::Parquet => self.parquet(file, path),
            Form::Tokens => tokens(file, path),
            Form::Text => self.read(file, path),
        }
    }

    /// Documents of bytes without a file name, such as standard input: an object per line where the first line is a JSON object with
    /// a text in the field, plain text otherwise; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Data`] with the line, [`Error::Data`] for bytes that hold no text.
    pub fn parse(&self, bytes: Vec<u8>, path: &Path) -> Result<Documents> {
        match no_text(&bytes) {
            Some(what) => return Err(Error::data(path, what)),
            None if bytes.starts_with(PARQUET) => return Err(Error::data(path, "is Parquet; give it with --file")),
            None => {}
        }
        match self.holds_objects(&bytes) {
            true => Ok(self.jsonl(Cursor::new(bytes), path)),
            false => self.read(Cursor::new(bytes), path),
        }
    }

    /// Tells whether the bytes are JSONL: their first line that is not blank is an object with a text in the field.
    fn holds_objects(&self, bytes: &[u8]) -> bool {
        let bytes = bytes.strip_prefix(lines::BYTE_ORDER_MARK.as_bytes()).unwrap_or(bytes);
        let first = bytes.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
        first.trim_ascii_start().starts_with(b"{")
            && serde_json::from_slice::<Value>(first).is_ok_and(|value| value[&self.field].is_string())
    }

    fn read(&self, from: impl Read + 'static, path: &Path) -> Result<Documents> {
        let document = |text| Document { content: Content::Text(text), labels: Vec::new() };
        if !self.whole {
            let lines = lines::lines(from, path, self.lossy).filter(|line| !lines::is_blank(line));
            return Ok(Box::new(lines.map(move |line| line.map(|(_, line)| document(line)))));
        }
        let mut bytes = Vec::new();
        from.take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(|e| Error::reading(path, e))?;
        if bytes.len() as u64 > MAX_TEXT {
            return Err(Error::data(path, format!("larger than the {MAX_TEXT} bytes that a text may have")));
        }
        let text = lines::whole(lines::decode(bytes, self.lossy, path, (0, 1))?);
        Ok(Box::new((!text.is_empty()).then(|| Ok(document(text))).into_iter()))
    }

    /// Says, once per file, that a text is left out.
    fn empty(&self, path: &Path) -> impl FnMut(String) + use<> {
        let (heard, path, mut first) = (self.heard.clone(), path.to_path_buf(), true);
        move |place| {
            if std::mem::take(&mut first) {
                heard(&format!("{}: {place} has an empty text and is left out, as are all that have", path.display()));
            }
        }
    }

    fn parquet(&self, file: File, path: &Path) -> Result<Documents> {
        let mut empty = self.empty(path);
        let rows = table::open(file, path, &self.field, &self.labels)?.enumerate();
        Ok(Box::new(rows.filter_map(move |(row, document)| match document {
            Ok(Document { content: Content::Text(text), .. }) if text.is_empty() => {
                empty(format!("row {row}"));
                None
            }
            document => Some(document),
        })))
    }

    fn jsonl(&self, file: impl Read + 'static, path: &Path) -> Documents {
        let (owned, field, labels) = (path.to_path_buf(), self.field.clone(), self.labels.clone());
        let mut empty = self.empty(path);
        let mut parse = move |(number, line): (usize, String)| -> Result<Option<Document>> {
            let wrong = |what: String| Error::data(&owned, format!("line {number}: {what}"));
            let mut value = lines::object(&line, number, &owned)?;
            let labels = match labels.as_slice() {
                [] => Vec::new(),
                names => labels::in_json(&line, names).map_err(wrong)?,
            };
            match value.get_mut(&field).map(Value::take) {
                Some(Value::String(text)) if text.is_empty() => {
                    empty(format!("line {number}"));
                    Ok(None)
                }
                Some(Value::String(text)) => Ok(Some(Document { content: Content::Text(text), labels })),
                Some(_) => Err(wrong(format!("the field `{field}` holds no text"))),
                None if field == "text" => Err(wrong("no text field".into())),
                None => Err(wrong(format!("no field `{field}` with text"))),
            }
        };
        let texts = lines::lines(file, path, self.lossy).filter(|line| !lines::is_blank(line));
        Box::new(texts.filter_map(move |line| line.and_then(&mut parse).transpose()))
    }
}

/// Opens a file of documents as [`Reading`] does, with the text in `field` and `labels` beside it.
///
/// # Errors
/// As [`Reading::open`].
pub fn open(path: &Path, field: &str, labels: &[String]) -> Result<Documents> {
    Reading::default().field(field).labels(labels).open(path)
}

/// Reads the labels of all documents: a column for each of `names`, a row per document.
///
/// # Errors
/// Faults of the documents, and [`Error::Data`] for a column that no one type can hold exactly.
pub fn read_labels(documents: Documents, names: &[String]) -> Result<DataFrame> {
    let mut values: Vec<Vec<Label>> = vec![Vec::new(); names.len()];
    let (mut height, mut goes_on) = (0, false);
    for document in documents {
        let document = document?;
        if !goes_on {
            values.iter_mut().zip(document.labels).for_each(|(column, label)| column.push(label));
            height += 1;
        }
        goes_on = document.content.goes_on();
    }
    labels::frame(names, &values, height)
}

/// Texts that are at hand.
pub fn given(texts: Vec<String>) -> Documents {
    Box::new(texts.into_iter().map(|text| Ok(Document { content: Content::Text(text), labels: Vec::new() })))
}

/// What a file looks like.
///
/// # Errors
/// [`Error::Missing`], and [`Error::Data`] for a file that holds no texts, such as a compressed one.
pub fn read_form(path: &Path) -> Result<Form> {
    open_form(path).map(|(form, _)| form)
}

fn open_form(path: &Path) -> Result<(Form, File)> {
    let mut file = crate::weights::open_regular(path)?;
    let mut start = Vec::new();
    let read = (&mut file).take(4096).read_to_end(&mut start).and_then(|_| file.rewind());
    read.map_err(|e| Error::reading(path, e))?;
    let name = path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
    let hint = |what: &str| Err(Error::data(path, what));
    let form = match (name.as_str(), no_text(&start)) {
        ("bin", _) => Form::Tokens,
        ("parquet", _) => Form::Parquet,
        (_, Some(what)) => return hint(what),
        _ if start.starts_with(PARQUET) => Form::Parquet,
        ("jsonl" | "ndjson", None) => Form::Jsonl,
        ("json", None) => {
            let text = start.strip_prefix(lines::BYTE_ORDER_MARK.as_bytes()).unwrap_or(&start);
            match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
                Some(b'{') => Form::Jsonl,
                Some(b'[') => return hint("is one JSON list; write one object per line, such as with jq -c '.[]'"),
                _ => return hint("holds no JSON objects; write one object per line, or name plain text .txt"),
            }
        }
        _ => Form::Text,
    };
    Ok((form, file))
}

/// How Parquet begins.
const PARQUET: &[u8] = b"PAR1";

/// Why bytes that begin like this are not read as text, and the next step.
fn no_text(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Some("is UTF-16; convert it to UTF-8, such as with iconv -f UTF-16 -t UTF-8");
    }
    COMPRESSED.iter().any(|magic| start.starts_with(magic)).then_some("is compressed; unpack it first")
}

/// How files begin that gzip, zip, zstd, bzip2 and xz make.
const COMPRESSED: [&[u8]; 5] = [b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"];

fn tokens(file: File, path: &Path) -> Result<Documents> {
    let bytes = file.metadata().map_err(|e| Error::reading(path, e))?.len();
    if bytes % 2 == 1 {
        return Err(Error::data(path, format!("has {bytes} bytes; tokens of 16 bits need an even number")));
    }
    let path = path.to_path_buf();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut ended = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut bytes = Vec::new();
        let read = (&mut reader).take(2 * PIECE as u64).read_to_end(&mut bytes);
        match read.and_then(|_| Ok(reader.fill_buf()?.is_empty())) {
            Ok(empty) => ended = empty,
            Err(source) => {
                ended = true;
                return Some(Err(Error::reading(&path, source)));
            }
        }
        let ids: Vec<u32> =
            bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect();
        if ids.is_empty() {
            return None;
        }
        Some(Ok(Document { content: Content::Tokens { ids, more: !ended }, labels: Vec::new() }))
    })))
}
