//! Text to learn from, read from files and split, but not yet cut into tokens.

use std::path::{Path, PathBuf};

use crate::dataset::documents::{self, Form, Reading};
pub use crate::dataset::lines::jsonl;
use crate::error::{Error, Result};
use crate::recipe::{DataRecipe, Learned};
use crate::text::Tokenizer;
use crate::weights;

/// What a recipe's files hold, split into a part for learning and one for measuring.
#[derive(Clone, Debug)]
pub struct Texts {
    train: Vec<Content>,
    validation: Vec<Content>,
    /// Whether there are several documents, which end-of-text tokens keep apart.
    several: bool,
    /// The vocabulary that nanoGPT left beside its tokens.
    meta: Option<PathBuf>,
}

/// What a file holds.
#[derive(Clone, Debug)]
enum Content {
    Text(String),
    Documents(Vec<String>),
    Tokens(Vec<u32>),
}

impl Texts {
    /// Reads the text that a recipe names, in silence; `base` is where relative paths start.
    ///
    /// # Errors
    /// As [`Texts::read_with`].
    pub fn read(data: &DataRecipe, base: &Path) -> Result<Self> {
        Self::read_with(data, base, &Reading::default())
    }

    /// Reads the text that a recipe names, plain text whole.
    ///
    /// Text without a validation text of its own is cut at `validation_share` from its end: one text between two
    /// characters, several documents between two of them, tokens between two of them.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Data`] or [`Error::Request`].
    pub fn read_with(data: &DataRecipe, base: &Path, reading: &Reading) -> Result<Self> {
        let reading = reading.clone().whole();
        let mut train = read_all(&data.text, base, &reading)?;
        let mut validation = read_all(&data.validation, base, &reading)?;
        if train.is_empty() {
            return Err(Error::request("no text to learn from: give --file PATH, or data.text in the recipe"));
        }
        let several = train.len() > 1 || matches!(train.first(), Some(Content::Documents(_)));
        let beside = |name| data.text.iter().find_map(|path| beside_tokens(&base.join(path), name));
        if data.validation.is_empty() {
            validation = match beside("val.bin") {
                Some(path) => vec![read(&path, &reading)?],
                None => split(&mut train, data.validation_share),
            };
        }
        Ok(Self { train, validation, several, meta: beside("meta.pkl") })
    }

    /// nanoGPT's `meta.pkl` beside its tokens. It is a pickle: read what a stranger made in a process of its own with limits,
    /// as the command line does.
    pub fn vocabulary(&self) -> Option<&Path> {
        self.meta.as_deref()
    }

    /// The tokenizer for a model that starts from scratch on this text: learned as `how` says, or the characters that
    /// nanoGPT's `meta.pkl` beside its tokens numbers; without either a byte-level BPE.
    ///
    /// Characters are those of the whole text, as in nanoGPT; a BPE is learned from the training part alone.
    ///
    /// # Errors
    /// [`Error::Request`] for tokens without a vocabulary, or a size that does not fit.
    pub fn tokenizer(&self, how: Option<Learned>, vocab_size: usize) -> Result<Tokenizer> {
        if let (Some(meta), None) = (&self.meta, how) {
            return Tokenizer::from_characters(&weights::nanogpt::characters(meta)?);
        }
        let all = || self.train.iter().chain(&self.validation);
        if all().any(|content| matches!(content, Content::Tokens(_))) {
            return Err(Error::request(
                "the text is tokens already, without a meta.pkl beside them: say whose they are with --tokenizer",
            ));
        }
        match how {
            Some(Learned::Characters) => Tokenizer::of_characters(all().flat_map(Content::texts)),
            Some(Learned::Bpe) | None if vocab_size == 0 => {
                Err(Error::request("a BPE is to be learned: say of how many entries with --set vocab_size=N"))
            }
            Some(Learned::Bpe) | None => {
                let texts: Vec<String> = self.train.iter().flat_map(Content::texts).map(str::to_string).collect();
                Tokenizer::train(texts.into_iter(), vocab_size)
            }
        }
    }

    /// The tokens of the training and of the validation part, documents separated by end-of-text tokens; special tokens that are
    /// written in a text are these tokens if `allow_special`.
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::Data`] for text that the tokenizer cannot encode.
    pub fn encode(self, tokenizer: &Tokenizer, allow_special: bool) -> Result<(Vec<u32>, Vec<u32>)> {
        let end = tokenizer.end_of_text().filter(|_| self.several);
        let encode = |contents| encode(contents, tokenizer, end, allow_special);
        Ok((encode(self.train)?, encode(self.validation)?))
    }

    /// Whether all of it is tokens already.
    pub fn is_of_tokens(&self) -> bool {
        self.train.iter().chain(&self.validation).all(|content| matches!(content, Content::Tokens(_)))
    }
}

impl Content {
    fn texts(&self) -> impl Iterator<Item = &str> {
        let (text, documents): (Option<&String>, &[String]) = match self {
            Content::Text(text) => (Some(text), &[]),
            Content::Documents(documents) => (None, documents),
            Content::Tokens(_) => (None, &[]),
        };
        text.into_iter().chain(documents).map(String::as_str)
    }
}

/// The files below paths, in the order of their names.
fn read_all(paths: &[PathBuf], base: &Path, reading: &Reading) -> Result<Vec<Content>> {
    let mut contents = Vec::new();
    for path in paths {
        let path = base.join(path);
        if !path.is_dir() {
            contents.push(read(&path, reading)?);
            continue;
        }
        let train = path.join("train.bin");
        if train.exists() {
            contents.push(read(&train, reading)?);
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
            contents.push(read(&file, reading)?);
        }
    }
    Ok(contents)
}

/// A file that nanoGPT puts beside its `train.bin`.
fn beside_tokens(path: &Path, name: &str) -> Option<PathBuf> {
    let train = if path.is_dir() { path.join("train.bin") } else { path.to_path_buf() };
    let beside = train.with_file_name(name);
    (train.file_name()? == "train.bin" && train.exists() && beside.exists()).then_some(beside)
}

fn read(path: &Path, reading: &Reading) -> Result<Content> {
    let form = documents::read_form(path)?;
    let (mut texts, mut tokens) = (Vec::new(), Vec::new());
    for document in reading.open(path)? {
        match document?.content {
            documents::Content::Text(text) => texts.push(text),
            documents::Content::Tokens { ids, .. } => tokens.extend(ids),
        }
    }
    match form {
        _ if texts.is_empty() && tokens.is_empty() => Err(Error::data(path, "is empty: it holds no text")),
        Form::Tokens => Ok(Content::Tokens(tokens)),
        Form::Text => Ok(Content::Text(texts.concat())),
        Form::Jsonl | Form::Parquet => Ok(Content::Documents(texts)),
    }
}

/// Takes the end of the contents away.
fn split(contents: &mut Vec<Content>, share: f64) -> Vec<Content> {
    let cut = |n: usize| (n as f64 * (1.0 - share)) as usize; // as nanoGPT rounds
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
fn encode(contents: Vec<Content>, tokenizer: &Tokenizer, end: Option<u32>, allow_special: bool) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for content in contents {
        for text in content.texts() {
            ids.extend(tokenizer.encode_long(text, allow_special)?);
            ids.extend(end);
        }
        if let Content::Tokens(tokens) = content {
            ids.extend(tokens);
        }
    }
    Ok(ids)
}
