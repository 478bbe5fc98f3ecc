//! Text to learn from: two long sequences of tokens, one for learning and one for measuring.

use std::path::{Path, PathBuf};

use crate::corpus::{Row, Rows, Split};
use crate::error::{Error, Result};
use crate::random::{Rng, stream};
use crate::recipe::DataRecipe;
use crate::text::Tokenizer;

/// Largest file that is read.
const MAX_FILE: u64 = 16 << 30;

/// Tokens to learn from and tokens to measure on. Rows are cut out of them at random places, as in nanoGPT.
#[derive(Clone, Debug)]
pub struct TextSet {
    train: Vec<u32>,
    validation: Vec<u32>,
    seed: u64,
}

/// What a file holds.
enum Content {
    Text(String),
    Documents(Vec<String>),
    Tokens(Vec<u32>),
}

impl TextSet {
    /// A set from sequences that are tokens already.
    ///
    /// # Errors
    /// [`Error::Request`] for one that is shorter than a row of `block_size` tokens and the token after it.
    pub fn new(train: Vec<u32>, validation: Vec<u32>, seed: u64, block_size: usize) -> Result<Self> {
        for (name, tokens) in [("training", &train), ("validation", &validation)] {
            if tokens.len() <= block_size {
                return Err(Error::request(format!(
                    "the {name} text has {} tokens; a row of block_size {block_size} needs {}: give more text or a smaller \
                     block_size",
                    tokens.len(),
                    block_size + 1
                )));
            }
        }
        Ok(Self { train, validation, seed })
    }

    /// Reads the text that a recipe names; `base` is where relative paths start.
    ///
    /// Text without a validation text of its own is cut at `validation_share` from its end: one text between two
    /// characters, several documents between two of them, tokens between two of them. Documents are separated by
    /// end-of-text tokens.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Data`] or [`Error::Request`].
    pub fn load(data: &DataRecipe, base: &Path, tokenizer: &Tokenizer, seed: u64, block_size: usize) -> Result<Self> {
        let share = data.validation_share;
        let mut train = read_all(&data.text, base)?;
        let mut validation = read_all(&data.validation, base)?;
        if train.is_empty() {
            return Err(Error::request("no text to learn from: give --file PATH, or data.text in the recipe"));
        }
        let several = train.len() > 1 || matches!(train.first(), Some(Content::Documents(_)));
        if data.validation.is_empty() {
            if let Some(at) = data.text.iter().find_map(|path| nanogpt_validation(&base.join(path))) {
                validation = vec![read(&at)?];
            } else {
                validation = split(&mut train, share);
            }
        }
        let end = tokenizer.end_of_text().filter(|_| several);
        Self::new(encode(train, tokenizer, end)?, encode(validation, tokenizer, end)?, seed, block_size)
    }

    /// Tokens for learning and for measuring.
    pub fn tokens(&self) -> (usize, usize) {
        (self.train.len(), self.validation.len())
    }

    /// The largest id.
    pub fn largest(&self) -> u32 {
        self.train.iter().chain(&self.validation).copied().max().unwrap_or(0)
    }
}

impl Rows for TextSet {
    /// Training rows begin at random places; validation rows are spread evenly, the same ones every time.
    fn row(&self, split: Split, index: u64, length: usize) -> Result<Row> {
        let tokens = if split == Split::Validation { &self.validation } else { &self.train };
        let room = tokens.len() + 1 - length.min(tokens.len());
        let start = match split {
            Split::Validation => (index as usize).wrapping_mul(length) % room,
            Split::Train => stream(self.seed, "train", index).random_range(0..room),
            Split::TrainShort => stream(self.seed, "train short", index).random_range(0..room),
        };
        let tokens = tokens[start..(start + length).min(tokens.len())].to_vec();
        Ok(Row { counts: vec![true; tokens.len()], tokens })
    }

    fn digest(&self) -> String {
        let hash = |tokens: &[u32]| crate::weights::sha256_of(bytemuck::cast_slice(tokens));
        format!("{} {}", hash(&self.train), hash(&self.validation))
    }
}

/// The files below paths, in the order of their names.
fn read_all(paths: &[PathBuf], base: &Path) -> Result<Vec<Content>> {
    let mut contents = Vec::new();
    for path in paths {
        let path = base.join(path);
        if !path.is_dir() {
            contents.push(read(&path)?);
            continue;
        }
        let train = path.join("train.bin");
        if train.exists() {
            contents.push(read(&train)?);
            continue;
        }
        let mut files: Vec<PathBuf> = std::fs::read_dir(&path)
            .map_err(|e| Error::reading(&path, e))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| file.is_file() && !file.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')))
            .collect();
        files.sort();
        if files.is_empty() {
            return Err(Error::Missing(format!("{}: no file in it", path.display())));
        }
        for file in files {
            contents.push(read(&file)?);
        }
    }
    Ok(contents)
}

/// `val.bin` beside a `train.bin`, as nanoGPT prepares data.
fn nanogpt_validation(path: &Path) -> Option<PathBuf> {
    let beside = match path.is_dir() {
        true => path.join("val.bin"),
        false if path.file_name()? == "train.bin" => path.with_file_name("val.bin"),
        false => return None,
    };
    beside.exists().then_some(beside)
}

fn read(path: &Path) -> Result<Content> {
    let bytes = crate::weights::read_small(path, MAX_FILE)?;
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if bytes.is_empty() {
        return Err(Error::data(path, "is empty"));
    }
    if extension == "bin" {
        if bytes.len() % 2 != 0 {
            return Err(Error::data(path, format!("has {} bytes; tokens of 16 bits need an even number", bytes.len())));
        }
        return Ok(Content::Tokens(
            bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
        ));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| Error::data(path, format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())))?;
    if extension != "jsonl" {
        return Ok(Content::Text(text));
    }
    Ok(Content::Documents(jsonl_texts(&text, path)?))
}

/// The `text` field of every line that is not blank; `path` is for messages.
///
/// # Errors
/// [`Error::Data`] with the number of the first line that is no JSON or has no such field.
pub fn jsonl_texts(lines: &str, path: &Path) -> Result<Vec<String>> {
    let field = |(i, line): (usize, &str)| {
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| Error::data(path, format!("line {}: not JSON: {e}", i + 1)))?;
        let text = value.get("text").and_then(serde_json::Value::as_str);
        text.map(str::to_string).ok_or_else(|| Error::data(path, format!("line {}: no text field", i + 1)))
    };
    lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(field).collect()
}

/// Takes the end of the contents away.
fn split(contents: &mut Vec<Content>, share: f64) -> Vec<Content> {
    let cut = |n: usize| n - ((n as f64 * share) as usize).min(n);
    if contents.len() > 1 {
        let n = contents.len();
        return contents.split_off(cut(n).min(n - 1));
    }
    match contents.first_mut() {
        Some(Content::Text(text)) => {
            // nanoGPT cuts between characters.
            let at = text.char_indices().nth(cut(text.chars().count())).map_or(text.len(), |(i, _)| i);
            vec![Content::Text(text.split_off(at))]
        }
        Some(Content::Documents(documents)) => {
            let n = documents.len();
            vec![Content::Documents(documents.split_off(cut(n).min(n.saturating_sub(1))))]
        }
        Some(Content::Tokens(tokens)) => {
            let at = cut(tokens.len());
            vec![Content::Tokens(tokens.split_off(at))]
        }
        None => Vec::new(),
    }
}

/// Tokens of the contents, each text followed by `end`.
fn encode(contents: Vec<Content>, tokenizer: &Tokenizer, end: Option<u32>) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for content in contents {
        match content {
            Content::Tokens(tokens) => ids.extend(tokens),
            Content::Text(text) => {
                ids.extend(tokenizer.encode_long(&text)?);
                ids.extend(end);
            }
            Content::Documents(documents) => {
                for text in documents {
                    ids.extend(tokenizer.encode_long(&text)?);
                    ids.extend(end);
                }
            }
        }
    }
    Ok(ids)
}
