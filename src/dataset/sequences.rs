//! The sequences that a model reads, on disk: what to read next is looked up, not remembered.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::documents::{Content, Documents};
use super::files;
use crate::error::{Error, Result};
use crate::memory;
use crate::random::{Rng, SliceRandom, stream};
use crate::text::Tokenizer;

/// Bytes of a [`Sequence`] in the file.
pub(crate) const RECORD: u64 = 28;

/// How documents become sequences, and which of their positions are rows of the dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Tokens of a sequence at most, the one that starts it included.
    pub context: usize,
    /// Tokens from the start of one window of a long text to the start of the next; those that two windows share are rows of
    /// the first of them only.
    pub stride: usize,
    /// Whether documents follow each other in one sequence, with end-of-text tokens between them.
    pub pack: bool,
    /// Leave out what does not fill a sequence.
    pub whole: bool,
    /// The token that starts every sequence, if one does.
    pub start: Option<u32>,
    /// The token that starts a sequence is put before a text that begins with it, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub start_twice: bool,
    /// The token between documents that are packed.
    pub between: Option<u32>,
    /// Leave out the position at which a sequence starts.
    pub skip_first: bool,
    /// So many positions of each sequence, drawn from `seed`; all without it.
    pub sample: Option<usize>,
    /// So many rows in all; as many as there are without it.
    pub max_tokens: Option<u64>,
    /// Sequences in an order that is drawn from `seed`.
    pub shuffle: bool,
    /// What is drawn is drawn from this.
    pub seed: u64,
    /// Special tokens that are written in a text are these tokens.
    #[serde(default)]
    pub allow_special: bool,
}

impl Cut {
    /// Every text by itself, in windows of so many tokens that follow each other; every position is a row.
    pub fn windows(context: usize) -> Self {
        Self {
            context,
            stride: context,
            pack: false,
            whole: false,
            start: None,
            start_twice: false,
            between: None,
            skip_first: false,
            sample: None,
            max_tokens: None,
            shuffle: false,
            seed: 0,
            allow_special: false,
        }
    }

    /// The same with a token that starts every sequence, as texts of the training data did.
    pub fn starting(self, start: Option<u32>) -> Self {
        Self { stride: self.context - usize::from(start.is_some()), start, ..self }
    }
}

/// One sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its number, before any shuffling: the column `prompt`.
    pub index: u32,
    /// The document that its first token is from; where documents are packed, [`Sequences::documents`] has that of each token.
    pub document: u32,
    /// Where its tokens are, in the list of all.
    offset: u64,
    /// Tokens.
    pub length: u32,
    /// The first position that may be a row.
    first: u32,
    /// Rows.
    pub rows: u32,
}

/// Sequences that were cut.
pub struct Sequences {
    tokens: File,
    path: std::path::PathBuf,
    /// Whether the tokens of each sequence are followed by the document of each.
    packed: bool,
    /// In the order in which they are read.
    all: Vec<Sequence>,
}

/// Cuts documents into sequences and writes their tokens to `tokens`, which is the file `path`, and their places to `places`; where
/// documents are packed, the tokens of each sequence are followed by the document that each of them is from;
/// returns how many documents there were.
///
/// # Errors
/// Faults of the documents, [`Error::Request`] for text that the tokenizer cannot encode, for tokens without documents that
/// are not packed, and for no text at all.
pub fn write(
    documents: Documents,
    tokenizer: &Tokenizer,
    cut: &Cut,
    path: &Path,
    tokens: &mut dyn Write,
    places: &mut Vec<u8>,
) -> Result<u32> {
    let mut cutter = Cutter { cut, path, tokens, all: Vec::new(), offset: 0, rows: 0 };
    let mut packed: Vec<u32> = Vec::new();
    let mut documents_of: Vec<u32> = Vec::new();
    let (mut count, mut goes_on) = (0_u32, false);
    // Positions of what is packed that an earlier window has as rows already.
    let mut seen = 0;
    for document in documents {
        let document = document?;
        let (ids, more) = match document.content {
            Content::Text(text) => {
                let mut ids = tokenizer.encode_long(&text, cut.allow_special)?;
                // What starts every sequence is not said twice, unless that is asked for.
                if !cut.pack && !cut.start_twice && cut.start.is_some() && ids.first().copied() == cut.start {
                    ids.remove(0);
                }
                (ids, false)
            }
            Content::Tokens { ids, more } if cut.pack => (ids, more),
            Content::Tokens { .. } => {
                return Err(Error::request("a file of tokens is one long text: --pack cuts it into sequences"));
            }
        };
        if let (false, Some(between), true, true) = (goes_on, cut.between, cut.pack, count > 0) {
            packed.push(between);
            documents_of.push(count);
        }
        if cut.pack {
            documents_of.resize(packed.len() + ids.len(), count);
            packed.extend(ids);
            let body = cut.body();
            let mut start = 0;
            while packed.len() - start >= body {
                cutter.push(&packed[start..start + body], seen, &documents_of[start..start + body])?;
                start += cut.stride;
                seen = body - cut.stride;
                if cutter.is_full() {
                    break;
                }
            }
            packed.drain(..start);
            documents_of.drain(..start);
        } else {
            cutter.windows(&ids, count)?;
        }
        goes_on = more;
        count = count
            .checked_add(u32::from(!more))
            .ok_or_else(|| Error::request("more than 4 billion documents; export them in several datasets"))?;
        if cutter.is_full() {
            break;
        }
    }
    if packed.len() > seen && !cutter.is_full() {
        cutter.push(&packed, seen, &documents_of)?;
    }
    let mut all = cutter.all;
    if all.is_empty() {
        return Err(Error::request("the text holds nothing to export: no token, or none that the options leave"));
    }
    if cut.shuffle {
        all.shuffle(&mut stream(cut.seed, "order of sequences", 0));
    }
    places.extend(all.iter().flat_map(|sequence| sequence.to_bytes()));
    Ok((count + u32::from(goes_on)).max(1))
}

struct Cutter<'a> {
    cut: &'a Cut,
    path: &'a Path,
    tokens: &'a mut dyn Write,
    all: Vec<Sequence>,
    offset: u64,
    rows: u64,
}

impl Cutter<'_> {
    fn is_full(&self) -> bool {
        let next = if self.cut.whole { self.cut.context as u64 } else { 1 };
        self.cut.max_tokens.is_some_and(|most| self.rows + next > most)
    }

    /// A document by itself.
    fn windows(&mut self, ids: &[u32], document: u32) -> Result<()> {
        let (mut start, mut seen) = (0, 0);
        while !self.is_full() && (start == 0 || start + seen < ids.len()) {
            let end = (start + self.cut.body()).min(ids.len());
            self.push(&ids[start..end], seen, &[document])?;
            seen = self.cut.body() - self.cut.stride;
            start += self.cut.stride;
        }
        Ok(())
    }

    /// A sequence of which the first `seen` tokens are rows of another one; `documents` are those of its tokens, where they are
    /// packed, or else the one.
    fn push(&mut self, body: &[u32], seen: usize, documents: &[u32]) -> Result<()> {
        let started = usize::from(self.cut.start.is_some());
        let length = body.len() + started;
        let first = match seen {
            0 => usize::from(self.cut.skip_first),
            _ => seen + started,
        };
        let mut rows = length.saturating_sub(first);
        rows = rows.min(self.cut.sample.unwrap_or(rows));
        if let Some(most) = self.cut.max_tokens {
            rows = rows.min((most - self.rows) as usize);
        }
        if rows == 0 || (self.cut.whole && length < self.cut.context) {
            return Ok(());
        }
        let document = documents.first().copied().unwrap_or(0);
        let mut words: Vec<u32> = self.cut.start.into_iter().chain(body.iter().copied()).collect();
        if self.cut.pack {
            // The token that starts a sequence belongs to what follows it.
            words.extend(self.cut.start.map(|_| document).into_iter().chain(documents.iter().copied()));
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.tokens.write_all(&bytes).map_err(|e| Error::writing(self.path, e))?;
        let index = u32::try_from(self.all.len()).map_err(|_| Error::request("more than 4 billion sequences"))?;
        let (first, rows, length) = (first as u32, rows as u32, length as u32);
        self.all.push(Sequence { index, document, offset: self.offset, length, first, rows });
        self.offset += words.len() as u64;
        self.rows += u64::from(rows);
        Ok(())
    }
}

impl Cut {
    /// Tokens of a sequence that are text.
    fn body(&self) -> usize {
        self.context - usize::from(self.start.is_some())
    }

    /// Whether no position is in two sequences.
    pub fn is_disjoint(&self) -> bool {
        self.stride == self.body()
    }

    /// Checks what does not depend on text.
    ///
    /// # Errors
    /// [`Error::Request`] with the numbers.
    pub fn check(&self, n_positions: usize) -> Result<()> {
        let body = self.context.saturating_sub(usize::from(self.start.is_some()));
        let fault = if self.context > n_positions {
            format!("sequences of {} tokens do not fit this model's context of {n_positions}", self.context)
        } else if body == 0 || (self.skip_first && self.context < 2) {
            format!("sequences of {} tokens leave nothing to export", self.context)
        } else if self.stride == 0 || self.stride > body {
            format!(
                "a stride of {} is not within 1..={body}, the text of a sequence of {} tokens",
                self.stride, self.context
            )
        } else if self.sample == Some(0) || self.max_tokens == Some(0) {
            "0 rows are no dataset".to_string()
        } else {
            return Ok(());
        };
        Err(Error::request(fault))
    }
}

impl Sequence {
    fn to_bytes(self) -> Vec<u8> {
        let small = [self.index, self.document, self.length, self.first, self.rows];
        self.offset.to_le_bytes().into_iter().chain(small.into_iter().flat_map(u32::to_le_bytes)).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let offset = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let mut small = bytes.get(8..)?.chunks_exact(4).filter_map(|b| Some(u32::from_le_bytes(b.try_into().ok()?)));
        let mut next = || small.next();
        Some(Self { offset, index: next()?, document: next()?, length: next()?, first: next()?, rows: next()? })
    }

    /// The positions that are rows, in order.
    pub fn positions(&self, cut: &Cut) -> Vec<u32> {
        let all = self.first..self.length;
        if self.rows as usize == all.len() || cut.sample.is_none() {
            return all.take(self.rows as usize).collect();
        }
        let mut rng = stream(cut.seed, "positions", u64::from(self.index));
        let mut positions: Vec<u32> = all.collect();
        for i in 0..self.rows as usize {
            let j = rng.random_range(i..positions.len());
            positions.swap(i, j);
        }
        positions.truncate(self.rows as usize);
        positions.sort_unstable();
        positions
    }
}

impl Sequences {
    /// Opens what [`write()`] wrote of `documents` texts.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Data`] for files that do not fit each other or the cut.
    pub fn open(tokens: &Path, places: &Path, cut: &Cut, documents: u32) -> Result<Self> {
        let size = files::size(places)?.unwrap_or(0);
        memory::check("the list of sequences", size.saturating_mul(2), None)?;
        let bytes = files::read(places, size)?.ok_or_else(|| Error::data(places, "is missing"))?;
        let all: Option<Vec<Sequence>> = bytes.chunks(RECORD as usize).map(Sequence::from_bytes).collect();
        let all = all.ok_or_else(|| Error::data(places, "is cut short"))?;
        let file = files::open(tokens)?;
        let held = file.metadata().map_err(|e| Error::reading(tokens, e))?.len();
        let words = |sequence: &Sequence| u64::from(sequence.length) * (1 + u64::from(cut.pack));
        let needed = 4 * all.iter().map(words).sum::<u64>();
        if held != needed {
            return Err(Error::data(tokens, format!("has {held} bytes, and its {} sequences {needed}", all.len())));
        }
        for (i, sequence) in all.iter().enumerate() {
            let fits = sequence.offset.checked_add(words(sequence)).is_some_and(|end| end <= needed / 4)
                && sequence.length as usize <= cut.context
                && sequence.rows > 0
                && sequence.first.checked_add(sequence.rows).is_some_and(|end| end <= sequence.length)
                && sequence.document < documents
                && (sequence.index as usize) < all.len();
            if !fits {
                return Err(Error::data(
                    places,
                    format!(
                        "sequence {i} does not fit {} tokens, {documents} documents and a context of {}",
                        needed / 4,
                        cut.context
                    ),
                ));
            }
        }
        match all.is_empty() {
            true => Err(Error::data(places, "holds no sequence")),
            false => Ok(Self { tokens: file, path: tokens.into(), packed: cut.pack, all }),
        }
    }

    /// All of them, in the order in which they are exported.
    pub fn all(&self) -> &[Sequence] {
        &self.all
    }

    /// The tokens of one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn ids(&mut self, sequence: &Sequence) -> Result<Vec<u32>> {
        self.words(sequence.offset, sequence.length)
    }

    /// The document that each token of one is from; a token between two documents belongs to the second.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn documents(&mut self, sequence: &Sequence) -> Result<Vec<u32>> {
        match self.packed {
            true => self.words(sequence.offset + u64::from(sequence.length), sequence.length),
            false => Ok(vec![sequence.document; sequence.length as usize]),
        }
    }

    fn words(&mut self, offset: u64, length: u32) -> Result<Vec<u32>> {
        let mut bytes = vec![0; 4 * length as usize];
        self.tokens
            .seek(SeekFrom::Start(4 * offset))
            .and_then(|_| self.tokens.read_exact(&mut bytes))
            .map_err(|e| Error::reading(&self.path, e))?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::documents::given;

    fn cut() -> Cut {
        Cut {
            context: 4,
            stride: 3,
            pack: false,
            whole: false,
            start: Some(0),
            start_twice: false,
            between: Some(0),
            skip_first: false,
            sample: None,
            max_tokens: None,
            shuffle: false,
            seed: 1,
            allow_special: false,
        }
    }

    /// Each sequence's tokens and the positions that are rows, of documents given as characters.
    fn cut_up(texts: &[&str], cut: &Cut) -> Vec<(Vec<u32>, Vec<u32>)> {
        let tokenizer = Tokenizer::from_characters(&"_abcdefghijkl".chars().collect::<Vec<_>>()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (tokens, places) = (dir.path().join("tokens"), dir.path().join("places"));
        cut.check(8).unwrap();
        let mut list = Vec::new();
        write(
            given(texts.iter().map(|text| text.to_string()).collect()),
            &tokenizer,
            cut,
            &tokens,
            &mut File::create(&tokens).unwrap(),
            &mut list,
        )
        .unwrap();
        std::fs::write(&places, list).unwrap();
        let mut sequences = Sequences::open(&tokens, &places, cut, texts.len() as u32).unwrap();
        let all = sequences.all().to_vec();
        all.iter().map(|sequence| (sequences.ids(sequence).unwrap(), sequence.positions(cut))).collect()
    }

    #[test]
    fn documents_are_cut_into_windows() {
        let found = cut_up(&["abcde", "f"], &cut());
        let wanted = [(vec![0, 1, 2, 3], vec![0, 1, 2, 3]), (vec![0, 4, 5], vec![0, 1, 2]), (vec![0, 6], vec![0, 1])];
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_windows_share_is_exported_once() {
        let found = cut_up(&["abcdef"], &Cut { stride: 1, skip_first: true, ..cut() });
        let wanted = [
            (vec![0, 1, 2, 3], vec![1, 2, 3]),
            (vec![0, 2, 3, 4], vec![3]),
            (vec![0, 3, 4, 5], vec![3]),
            (vec![0, 4, 5, 6], vec![3]),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn packing_fills_sequences_across_documents() {
        let found = cut_up(&["ab", "cd", "e"], &Cut { pack: true, ..cut() });
        let wanted =
            [(vec![0, 1, 2, 0], vec![0, 1, 2, 3]), (vec![0, 3, 4, 0], vec![0, 1, 2, 3]), (vec![0, 5], vec![0, 1])];
        assert_eq!(found, wanted);
    }

    #[test]
    fn rows_are_limited_sampled_and_shuffled_by_seed() {
        let rows = |cut: &Cut| cut_up(&["abcdef", "ghi"], cut).iter().map(|(_, rows)| rows.len()).sum::<usize>();
        assert_eq!(rows(&cut()), 12);
        assert_eq!(rows(&Cut { max_tokens: Some(6), ..cut() }), 6);
        let sampled = Cut { sample: Some(2), ..cut() };
        assert_eq!((rows(&sampled), cut_up(&["abcdef"], &sampled)), (6, cut_up(&["abcdef"], &sampled)));
        let orders: Vec<_> =
            (0..8).map(|seed| cut_up(&["abc", "def", "ghi"], &Cut { shuffle: true, seed, ..cut() })).collect();
        assert!(orders.iter().any(|order| *order != orders[0]));
        let mut sorted = orders[0].clone();
        sorted.sort();
        assert_eq!(sorted, cut_up(&["abc", "def", "ghi"], &cut()));
    }

    #[test]
    fn cuts_that_leave_nothing_are_refused() {
        let fault = |cut: Cut| cut.check(8).unwrap_err().to_string();
        assert!(fault(Cut { context: 9, ..cut() }).contains("9 tokens do not fit this model's context of 8"));
        assert!(fault(Cut { context: 1, ..cut() }).contains("leave nothing"));
        assert!(fault(Cut { stride: 4, ..cut() }).contains("stride of 4 is not within 1..=3"));
        assert!(fault(Cut { sample: Some(0), ..cut() }).contains("no dataset"));
    }
}
