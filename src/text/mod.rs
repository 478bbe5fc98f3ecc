//! Text to tokens and back: GPT-2's byte-level BPE, or single characters as in nanoGPT's `shakespeare_char`.

use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, Model, ModelWrapper, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
};

mod added;
mod bytes;
mod checks;
mod cut;
mod load;
mod roles;

use added::{Added, Piece};
pub use cut::MAX_PROMPT;
use roles::Roles;

use crate::error::{Error, Result};
use crate::tokens::Tokens;

/// Begins a text and ends a document, in every published GPT-2.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Whether a prompt starts with the token that starts a text, [`Tokenizer::bos`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bos {
    /// Prepended as TransformerLens does, never twice, where the tokenizer has such a token.
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
    /// Whether to start with [`Tokenizer::bos`].
    pub bos: Bos,
    /// Whether special tokens in the text, such as `<|endoftext|>`, are these tokens; otherwise they are ordinary characters. Added
    /// tokens that are not special are found in any case.
    pub allow_special: bool,
}

/// A byte-level BPE tokenizer, or one whose tokens are characters.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    added: Added,
    roles: Roles,
    unit: Unit,
    /// The bytes of every token, by id.
    bytes: Vec<Option<Box<[u8]>>>,
    /// Whether every byte has a token.
    spells_all: bool,
    /// Entries of the model's own vocabulary, the largest id of which is one below.
    own_size: usize,
    notes: Vec<String>,
}

/// What the smallest tokens are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// Text is cut into words, and these into bytes; long text may be cut between words first.
    Words,
    /// Text is cut into bytes alone.
    Byte,
    /// Text has tokens if all its characters are in the vocabulary.
    Character,
}

impl Tokenizer {
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
        let added = inner.add_special_tokens([AddedToken::from(END_OF_TEXT, true)]);
        added.map_err(|e| Error::Bug(format!("tokenizer: {e}")))?;
        Self::made(inner)
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
        Self::made(inner)
    }

    /// One token per character of a text, in the order of their code points, as nanoGPT prepares `shakespeare_char`.
    ///
    /// # Errors
    /// [`Error::Request`] for an empty text.
    pub fn of_characters<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let characters: std::collections::BTreeSet<char> = texts.into_iter().flat_map(str::chars).collect();
        Self::from_characters(&characters.into_iter().collect::<Vec<_>>())
    }

    /// A tokenizer that was made here.
    fn made(inner: tokenizers::Tokenizer) -> Result<Self> {
        let roles = Roles::named(None, None, inner.token_to_id(END_OF_TEXT));
        Self::check(inner, Path::new("tokenizer.json"), roles, Vec::new())
    }

    fn check(inner: tokenizers::Tokenizer, path: &Path, roles: Roles, notes: Vec<String>) -> Result<Self> {
        let ModelWrapper::BPE(bpe) = inner.get_model() else {
            return Err(Error::data(path, "not a BPE tokenizer; GPT-2 needs a byte-level BPE"));
        };
        let steps = match inner.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::Sequence(steps)) => steps.as_ref().to_vec(),
            step => step.cloned().into_iter().collect(),
        };
        let own = bpe.get_vocab();
        let unit = match steps.last() {
            None if matches!(inner.get_decoder(), Some(DecoderWrapper::Fuse(_)))
                && own.keys().all(|token| token.chars().count() == 1 || token == END_OF_TEXT) =>
            {
                Unit::Character
            }
            Some(PreTokenizerWrapper::ByteLevel(step)) if step.use_regex => Unit::Words,
            Some(PreTokenizerWrapper::ByteLevel(_)) => Unit::Byte,
            _ => return Err(Error::data(path, "its pre-tokenizer is not ByteLevel; GPT-2 needs a byte-level BPE")),
        };
        let spells_all = bytes::characters().iter().all(|c| own.contains_key(c.encode_utf8(&mut [0; 4])));
        let vocabulary = inner.get_added_vocabulary();
        // What was special once stays so, in the library, whatever another file says of the same token.
        let token = |(id, token): (&u32, &AddedToken)| {
            (*id, token.clone().special(vocabulary.is_special_token(&token.content)))
        };
        let added = Added::new(vocabulary.get_added_tokens_decoder().iter().map(token).collect());
        let added = added.map_err(|e| Error::data(path, format!("added tokens: {e}")))?;
        let size = |ids: &mut dyn Iterator<Item = u32>| ids.max().map_or(0, |id| id as usize + 1);
        let own_size = size(&mut own.values().copied());
        let mut all = vec![None; own_size.max(size(&mut added.iter().map(|(id, _)| id)))];
        let table = bytes::bytes();
        for (token, id) in own {
            all[id as usize] = Some(match unit {
                Unit::Character => token.into_bytes().into(),
                _ => bytes::of_token(&token, &table),
            });
        }
        for (id, token) in added.iter() {
            all[id as usize] = Some(token.content.as_bytes().into());
        }
        Ok(Self { inner, added, roles, unit, bytes: all, spells_all, own_size, notes })
    }

    /// The tokenizer as part of a model with `vocab_size` entries: what ends a text is `eos_token_id` of the first of its
    /// configurations that says so. Pass `generation_config.json` before `config.json`, each with its path for messages.
    ///
    /// # Errors
    /// [`Error::Data`] for ids that are no whole numbers, and for a vocabulary that is larger than the model's.
    pub fn of_model(mut self, configs: &[(&Path, &Value)], vocab_size: usize) -> Result<Self> {
        let special = |id: u32| self.added.get(id).is_some_and(|token| token.special);
        let (roles, notes) = self.roles.clone().of_model(configs, vocab_size, special)?;
        let unknown: Vec<String> = self
            .added
            .iter()
            .filter(|(id, _)| *id as usize >= vocab_size)
            .map(|(id, token)| format!("`{}` ({id})", crate::error::shorten(&token.content)))
            .collect();
        self.notes.extend(notes);
        if let Some(first) = unknown.first() {
            let more = if unknown.len() > 1 { format!(" and {} more", unknown.len() - 1) } else { String::new() };
            self.notes.push(format!(
                "the model knows {vocab_size} tokens, and not the tokenizer's added {first}{more}: text with them is refused"
            ));
        }
        self.roles = roles;
        Ok(self)
    }

    /// What was changed or left out, or is worth knowing; a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
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
        self.bytes.len()
    }

    /// One more than the largest id of the vocabulary itself, without added tokens that follow it.
    pub fn own_size(&self) -> usize {
        self.own_size
    }

    /// The token that starts a text.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token between texts that follow each other: the first of those that end one.
    pub fn end_of_text(&self) -> Option<u32> {
        self.roles.ends.first().copied()
    }

    /// All tokens that end a text.
    pub fn ends(&self) -> &[u32] {
        &self.roles.ends
    }

    /// Whether an id is that of an added token, which is found in a text before this is split into words.
    pub fn is_added(&self, id: u32) -> bool {
        self.added.get(id).is_some()
    }

    /// Whether an id starts or ends a text.
    pub fn is_boundary(&self, id: u32) -> bool {
        self.roles.bos == Some(id) || self.roles.ends.contains(&id)
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// [`Error::Request`] for text that is too long, and for a character that has no token.
    pub fn encode(&self, text: &str, encoding: Encoding) -> Result<Vec<u32>> {
        cut::check_size(text)?;
        self.begun(self.encode_long(text, encoding.allow_special)?, encoding.bos)
    }

    /// Ids with the token that starts a text before them, where `bos` asks for it.
    ///
    /// # Errors
    /// [`Error::Request`] where there is no such token.
    pub fn begun(&self, mut ids: Vec<u32>, bos: Bos) -> Result<Vec<u32>> {
        let start = match bos {
            Bos::Yes => Some(
                self.roles
                    .bos
                    .ok_or_else(|| Error::request("this tokenizer has no token that starts a text; use --bos no"))?,
            ),
            Bos::Auto => self.roles.bos.filter(|id| ids.first() != Some(id)),
            Bos::No => None,
        };
        ids.splice(0..0, start);
        Ok(ids)
    }

    /// The ids of a whole text, however long, without a token that starts it.
    ///
    /// Long texts are cut, encoded in parallel and joined; the cuts are where GPT-2's pre-tokenizer cuts in any case.
    ///
    /// # Errors
    /// [`Error::Request`] for more than 65,536 spaces in a row, and for a character that has no token.
    pub fn encode_long(&self, text: &str, allow_special: bool) -> Result<Vec<u32>> {
        cut::check_whitespace(text)?;
        let mut parts: Vec<(usize, Piece)> = Vec::new();
        for piece in self.added.pieces(text, allow_special) {
            match piece {
                Piece::Text(start, end) if self.unit == Unit::Words => {
                    let mut at = start;
                    for part in cut::cut(&text[start..end]) {
                        parts.push((at, Piece::Text(at, at + part.len())));
                        at += part.len();
                    }
                }
                piece => parts.push((0, piece)),
            }
        }
        let encode = |(at, piece): &(usize, Piece)| match piece {
            Piece::Token(id) => Ok(vec![*id]),
            Piece::Text(start, end) => self.encode_plain(&text[*start..*end], *at),
        };
        let ids: Vec<Vec<u32>> = match parts.len() {
            // From a thread that has nothing else to do; a short text is not worth another.
            1 => parts.iter().map(encode).collect::<Result<_>>()?,
            _ => parts.par_iter().map(encode).collect::<Result<_>>()?,
        };
        Ok(ids.concat())
    }

    /// Encodes a part of a text that holds no added token and begins at byte `at`.
    fn encode_plain(&self, text: &str, at: usize) -> Result<Vec<u32>> {
        if self.unit == Unit::Character {
            let id = |c: char| {
                let id = self.inner.get_model().token_to_id(c.encode_utf8(&mut [0; 4]));
                id.ok_or_else(|| {
                    let known = self.vocab_size();
                    Error::request(format!("{c:?} is not among the {known} characters that this model knows"))
                })
            };
            return text.chars().map(id).collect();
        }
        let words = || -> tokenizers::Result<Vec<u32>> {
            let mut words = PreTokenizedString::from(text);
            if let Some(step) = self.inner.get_pre_tokenizer() {
                step.pre_tokenize(&mut words)?;
            }
            words.tokenize(|word| self.inner.get_model().tokenize(word.get()))?;
            Ok(words.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
        };
        let ids = checks::guarded(words).map_err(|e| Error::data("tokenizer", e))?;
        match self.spells_all {
            true => Ok(ids),
            false => self.spelled(ids, text, at),
        }
    }

    /// Ids that say what the text says; a tokenizer without tokens for all bytes leaves out or replaces the others.
    fn spelled(&self, ids: Vec<u32>, text: &str, at: usize) -> Result<Vec<u32>> {
        let said: Vec<u8> =
            ids.iter().filter_map(|id| self.bytes[*id as usize].as_deref()).flatten().copied().collect();
        if said == text.as_bytes() || said.strip_prefix(b" ") == Some(text.as_bytes()) {
            return Ok(ids);
        }
        let characters = bytes::characters();
        let known = |byte: u8| {
            let c = characters[byte as usize];
            self.inner.get_model().token_to_id(c.encode_utf8(&mut [0; 4])).is_some()
        };
        let missing = text.char_indices().find_map(|(i, c)| {
            let byte = c.encode_utf8(&mut [0; 4]).bytes().find(|byte| !known(*byte))?;
            Some(format!("has no token for byte 0x{byte:02X} of {c:?}, at byte {} of the text", at + i))
        });
        let what = missing.unwrap_or_else(|| format!("changes the text after byte {at}"));
        Err(Error::request(format!("the tokenizer {what}; give another text, or a tokenizer that has all bytes")))
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
                        "prompt {i} is empty; give text, or --bos yes for the token that starts a text alone"
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
        self.bytes.get(id as usize)?.as_deref().map(<[u8]>::to_vec)
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

fn byte_level(bpe: BPE) -> tokenizers::Tokenizer {
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_decoder(Some(ByteLevel::default()))
        .with_post_processor(Some(ByteLevel::new(true, false, true)));
    inner
}
