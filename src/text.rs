//! Text to tokens and back: GPT-2's byte-level BPE, or single characters as in nanoGPT's `shakespeare_char`.

use std::path::Path;

use rayon::prelude::*;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper, PreTokenizerWrapper};

use crate::error::{Error, Result};
use crate::tokens::Tokens;

/// Begins a text and ends a document, in every GPT-2.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Longest prompt in bytes; far more than any context holds.
pub const MAX_PROMPT: usize = 1 << 20;

/// Longest run of whitespace: beyond a million the regex engine gives up splitting and later words go wrong.
const MAX_WHITESPACE: usize = 1 << 16;

/// Largest tokenizer file that is read.
const MAX_FILE: u64 = 64 << 20;

/// Whether a prompt starts with [`END_OF_TEXT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bos {
    /// Prepended as TransformerLens does, never twice.
    #[default]
    Auto,
    /// Prepended, even if the text already starts with one.
    Yes,
    /// Not prepended.
    No,
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Whether to start with [`END_OF_TEXT`].
    pub bos: Bos,
    /// Whether `<|endoftext|>` in the text is the special token; otherwise it is thirteen ordinary characters.
    pub allow_special: bool,
}

/// A byte-level BPE tokenizer, or one whose tokens are characters.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_of_text: Option<u32>,
    unit: Unit,
}

/// What the smallest tokens are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// Any text has tokens.
    Byte,
    /// Text has tokens if all its characters are in the vocabulary.
    Character,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, or a directory with it or with `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Data`].
    pub fn load(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::from_json(&crate::weights::read_small(path, MAX_FILE)?, path);
        }
        let json = path.join("tokenizer.json");
        if json.exists() {
            return Self::load(&json);
        }
        let (vocab, merges) = (path.join("vocab.json"), path.join("merges.txt"));
        if !vocab.exists() && !merges.exists() {
            return Err(Error::Missing(format!(
                "{}: no tokenizer.json, and no vocab.json with merges.txt; name one with --tokenizer",
                path.display()
            )));
        }
        Self::from_vocab_and_merges(&vocab, &merges)
    }

    /// Reads the content of a `tokenizer.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] unless it is a byte-level BPE or a vocabulary of characters.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::data(path, format!("not a tokenizer: {}", crate::error::shorten(&e.to_string()))))?;
        Self::check(inner, path)
    }

    fn from_vocab_and_merges(vocab: &Path, merges: &Path) -> Result<Self> {
        // Read here first, so that a missing or huge file is our error and not the library's.
        let words = crate::weights::read_small(vocab, MAX_FILE)?;
        let merge_text = crate::weights::read_small(merges, MAX_FILE)?;
        let words: std::collections::BTreeMap<String, u32> =
            serde_json::from_slice(&words).map_err(|e| Error::data(vocab, format!("not a vocabulary: {e}")))?;
        let merge_text = String::from_utf8(merge_text).map_err(|e| Error::data(merges, format!("not UTF-8: {e}")))?;
        let pairs = merge_text
            .lines()
            .filter(|line| !line.starts_with("#version") && !line.is_empty())
            .enumerate()
            .map(|(i, line)| match line.split_once(' ') {
                Some((a, b)) if !b.contains(' ') => Ok((a.to_string(), b.to_string())),
                _ => Err(Error::data(merges, format!("merge {i} is not two tokens: {}", crate::error::shorten(line)))),
            })
            .collect::<Result<Vec<_>>>()?;
        let bpe = BPE::builder()
            .vocab_and_merges(words.into_iter().collect::<Vocab>(), pairs)
            .build()
            .map_err(|e| Error::data(merges, format!("merges and vocabulary disagree: {e}")))?;
        let mut inner = byte_level(bpe);
        if inner.token_to_id(END_OF_TEXT).is_some() {
            add_end_of_text(&mut inner)?;
        }
        Self::check(inner, vocab)
    }

    /// Learns a byte-level BPE of `vocab_size` entries, [`END_OF_TEXT`] last as in GPT-2.
    ///
    /// # Errors
    /// [`Error::Request`] for a vocabulary that cannot hold all bytes.
    pub fn train(texts: impl Iterator<Item = String> + Send, vocab_size: usize) -> Result<Self> {
        if vocab_size < 258 {
            return Err(Error::request(format!("vocab_size {vocab_size} is too small; 256 bytes need at least 258")));
        }
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab_size - 1)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(alphabet.into_iter().collect())
            .build();
        let mut inner = byte_level(BPE::default());
        inner
            .train(&mut TrainerWrapper::from(trainer), texts)
            .map_err(|e| Error::Bug(format!("tokenizer training: {e}")))?;
        add_end_of_text(&mut inner)?;
        Self::check(inner, Path::new("tokenizer.json"))
    }

    /// One token per character, numbered in the order given.
    ///
    /// # Errors
    /// [`Error::Request`] for no characters or one that is there twice.
    pub fn from_characters(characters: &[char]) -> Result<Self> {
        let vocab: Vocab = characters.iter().zip(0..).map(|(c, id)| (c.to_string(), id)).collect();
        if vocab.len() != characters.len() || vocab.is_empty() {
            return Err(Error::request(format!("{} characters, {} different ones", characters.len(), vocab.len())));
        }
        // Hugging Face reads this too: a BPE without merges cuts text into characters.
        let bpe = BPE::builder().vocab_and_merges(vocab, Vec::new()).build();
        let mut inner = tokenizers::Tokenizer::new(bpe.map_err(|e| Error::Bug(format!("tokenizer: {e}")))?);
        inner.with_decoder(Some(Fuse::default()));
        Self::check(inner, Path::new("tokenizer.json"))
    }

    /// One token per character of a text, in the order of their code points, as nanoGPT prepares `shakespeare_char`.
    ///
    /// # Errors
    /// [`Error::Request`] for an empty text.
    pub fn of_characters<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let characters: std::collections::BTreeSet<char> = texts.into_iter().flat_map(str::chars).collect();
        Self::from_characters(&characters.into_iter().collect::<Vec<_>>())
    }

    fn check(mut inner: tokenizers::Tokenizer, path: &Path) -> Result<Self> {
        if !matches!(inner.get_model(), ModelWrapper::BPE(_)) {
            return Err(Error::data(path, "not a BPE tokenizer; GPT-2 needs a byte-level BPE"));
        }
        // A regex of the file's own could take for ever, and a normalizer would change the text behind the user's back.
        let harmless = |step: &PreTokenizerWrapper| {
            matches!(step, PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Digits(_))
        };
        let steps = match inner.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::Sequence(steps)) => steps.as_ref().to_vec(),
            step => step.cloned().into_iter().collect(),
        };
        let single = |token: &String| token.chars().count() == 1 || token == END_OF_TEXT;
        let unit = match steps.last() {
            None if matches!(inner.get_decoder(), Some(DecoderWrapper::Fuse(_)))
                && inner.get_vocab(true).keys().all(single) =>
            {
                Unit::Character
            }
            Some(PreTokenizerWrapper::ByteLevel(_)) if steps.iter().all(harmless) => Unit::Byte,
            _ => return Err(Error::data(path, "its pre-tokenizer is not ByteLevel; GPT-2 needs a byte-level BPE")),
        };
        if inner.get_normalizer().is_some() {
            return Err(Error::data(path, "it has a normalizer, which would change the text; GPT-2 has none"));
        }
        // Truncation and padding are stored in some files and would apply silently.
        inner.with_truncation(None).map_err(|e| Error::data(path, e.to_string()))?;
        inner.with_padding(None);
        // A prompt's own `<|endoftext|>` is text; `encode` inserts the token where it was allowed.
        inner.set_encode_special_tokens(true);
        let end_of_text = inner.token_to_id(END_OF_TEXT);
        Ok(Self { inner, end_of_text, unit })
    }

    /// Whether its tokens are characters.
    pub fn is_of_characters(&self) -> bool {
        self.unit == Unit::Character
    }

    /// The content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Bug`] if the library cannot write what it read.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|e| Error::Bug(format!("tokenizer: {e}")))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The id of [`END_OF_TEXT`].
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// [`Error::Request`] for text that is too long or has no tokens.
    pub fn encode(&self, text: &str, encoding: Encoding) -> Result<Vec<u32>> {
        check_size(text)?;
        let mut ids = Vec::new();
        let mut rest = text;
        if encoding.allow_special {
            while let Some((before, after)) = rest.split_once(END_OF_TEXT) {
                ids.extend(self.encode_plain(before)?);
                ids.push(self.bos_id()?);
                rest = after;
            }
        }
        ids.extend(self.encode_plain(rest)?);
        let bos = match encoding.bos {
            Bos::Yes => Some(self.bos_id()?),
            Bos::Auto => self.end_of_text.filter(|id| ids.first() != Some(id)),
            Bos::No => None,
        };
        ids.splice(0..0, bos);
        Ok(ids)
    }

    /// The ids of a whole text, however long, without any special token in it.
    ///
    /// Long texts are cut, encoded in parallel and joined; the cuts are where GPT-2's pre-tokenizer cuts in any case.
    ///
    /// # Errors
    /// [`Error::Request`] for more than a million spaces in a row.
    pub fn encode_long(&self, text: &str) -> Result<Vec<u32>> {
        check_whitespace(text)?;
        let parts: Vec<Vec<u32>> = cut(text).par_iter().map(|part| self.encode_plain(part)).collect::<Result<_>>()?;
        Ok(parts.concat())
    }

    fn bos_id(&self) -> Result<u32> {
        self.end_of_text.ok_or_else(|| Error::request(format!("this tokenizer has no {END_OF_TEXT}; use --bos no")))
    }

    /// Encodes with special tokens as ordinary text.
    fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        if self.unit == Unit::Character {
            let id = |c: char| {
                let id = self.inner.token_to_id(c.encode_utf8(&mut [0; 4]));
                id.ok_or_else(|| {
                    let known = self.vocab_size();
                    Error::request(format!("{c:?} is not among the {known} characters that this model knows"))
                })
            };
            return text.chars().map(id).collect();
        }
        let encoding = self.inner.encode_fast(text, false).map_err(|e| Error::Bug(format!("tokenizer: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A batch from texts.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], with the number of the prompt.
    pub fn tokens(&self, texts: &[impl AsRef<str>], encoding: Encoding) -> Result<Tokens> {
        let rows = texts
            .iter()
            .enumerate()
            .map(|(i, text)| {
                if text.as_ref().is_empty() && encoding.bos != Bos::Yes {
                    return Err(Error::request(format!(
                        "prompt {i} is empty; give text, or --bos yes for <|endoftext|> alone"
                    )));
                }
                self.encode(text.as_ref(), encoding)
            })
            .collect::<Result<Vec<_>>>()?;
        let text = rows.iter().map(|row| row.iter().map(|&id| self.text(id)).collect()).collect();
        Tokens::from_ids(rows)?.with_text(text)
    }

    /// The bytes of one token; none for an id outside the vocabulary.
    pub fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        if Some(id) == self.end_of_text || self.unit == Unit::Character {
            return Some(token.into_bytes());
        }
        let mut bytes = Vec::with_capacity(token.len());
        for c in token.chars() {
            match byte_of(c) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend(c.to_string().bytes()),
            }
        }
        Some(bytes)
    }

    /// The text of one token: itself where it is UTF-8, its bytes as `\xE2` where it is only part of a character.
    pub fn text(&self, id: u32) -> String {
        match self.bytes(id) {
            None => format!("<{id}>"),
            Some(bytes) => String::from_utf8(bytes)
                .unwrap_or_else(|e| e.as_bytes().iter().map(|byte| format!("\\x{byte:02X}")).collect()),
        }
    }

    /// The text of a sequence; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| self.bytes(id)).flatten().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn check_size(text: &str) -> Result<()> {
    if text.len() > MAX_PROMPT {
        return Err(Error::request(format!("prompt has {} bytes; at most {MAX_PROMPT} are read", text.len())));
    }
    check_whitespace(text)
}

fn check_whitespace(text: &str) -> Result<()> {
    let mut run = 0;
    for c in text.chars() {
        run = if c.is_whitespace() { run + 1 } else { 0 };
        if run > MAX_WHITESPACE {
            return Err(Error::request(format!("prompt has more than {MAX_WHITESPACE} spaces in a row")));
        }
    }
    Ok(())
}

/// Pieces of a text of about 256 KiB: cut only between a character that is no space and a single space before a letter,
/// where ` ?\p{L}+` begins a new word whatever came before.
fn cut(text: &str) -> Vec<&str> {
    const PIECE: usize = 1 << 18;
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > PIECE {
        let start = (PIECE..).find(|&i| rest.is_char_boundary(i)).unwrap_or(rest.len());
        let mut before = ' ';
        let boundary = rest[start..].char_indices().find(|&(i, c)| {
            let after = rest[start + i..].chars().nth(1);
            let found = c == ' ' && !before.is_whitespace() && after.is_some_and(char::is_alphabetic);
            before = c;
            found
        });
        let Some((i, _)) = boundary else { break };
        let (piece, next) = rest.split_at(start + i);
        pieces.push(piece);
        rest = next;
    }
    pieces.push(rest);
    pieces
}

fn byte_level(bpe: BPE) -> tokenizers::Tokenizer {
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_decoder(Some(ByteLevel::default()))
        .with_post_processor(Some(ByteLevel::new(true, false, true)));
    inner
}

fn add_end_of_text(inner: &mut tokenizers::Tokenizer) -> Result<()> {
    let added = inner.add_special_tokens([AddedToken::from(END_OF_TEXT, true)]);
    added.map(|_| ()).map_err(|e| Error::Bug(format!("tokenizer: {e}")))
}

/// The byte that a character of a byte-level vocabulary stands for (GPT-2's `bytes_to_unicode`, inverted).
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u32| (0x21..=0x7E).contains(&b) || (0xA1..=0xAC).contains(&b) || (0xAE..=0xFF).contains(&b);
    let code = c as u32;
    if printable(code) {
        return u8::try_from(code).ok();
    }
    // The other 68 bytes are numbered from U+0100 on, in their own order.
    let nth = code.checked_sub(0x100)? as usize;
    (0..=0xFF_u32).filter(|&b| !printable(b)).nth(nth).and_then(|b| u8::try_from(b).ok())
}
