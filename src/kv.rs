//! Keys and values of the tokens that the model has already read.

use std::ops::Range;

use candle_core::Tensor;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::ops::Causal;
use crate::tokens::Tokens;

/// A key–value cache for one batch of prompts.
///
/// The first pass may be ragged: its padding stays in the cache as a hole that no later query sees, and later tokens
/// continue each prompt at its own position.
#[derive(Debug)]
pub struct KvCache {
    /// Keys and values per layer, `[prompt, capacity, head, dim]`, filled up to `len`.
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
    /// Tokens read so far, per prompt.
    positions: Vec<usize>,
    holes: Vec<Range<usize>>,
    limit: usize,
}

impl KvCache {
    /// An empty cache for a model of this shape.
    pub fn new(config: &Config) -> Self {
        Self {
            layers: vec![None; config.n_layer],
            len: 0,
            positions: Vec::new(),
            holes: Vec::new(),
            limit: config.n_positions,
        }
    }

    /// Slots in use, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The position of the next token of `prompt`.
    pub fn position(&self, prompt: usize) -> usize {
        self.positions.get(prompt).copied().unwrap_or(0)
    }

    /// Whether prompts of different lengths share this cache.
    pub fn is_ragged(&self) -> bool {
        !self.holes.is_empty()
    }

    /// The cache of a batch in which every prompt stands `times` over, copies side by side: what several continuations
    /// of one prompt start from.
    ///
    /// # Errors
    /// As candle, out of memory for one.
    pub fn repeat_each(self, times: usize) -> Result<Self> {
        if times == 1 {
            return Ok(self);
        }
        let copies = |n: usize| (0..n).flat_map(move |i| std::iter::repeat_n(i, times));
        let layers = self
            .layers
            .iter()
            .map(|layer| {
                let Some((k, v)) = layer else { return Ok(None) };
                let ids: Vec<u32> = copies(self.positions.len()).map(|i| i as u32).collect();
                let ids = Tensor::new(ids, k.device())?;
                Ok(Some((k.index_select(&ids, 0)?, v.index_select(&ids, 0)?)))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            len: self.len,
            positions: copies(self.positions.len()).map(|i| self.positions[i]).collect(),
            holes: copies(self.holes.len()).map(|i| self.holes[i].clone()).collect(),
            limit: self.limit,
        })
    }

    /// Checks that `tokens` can follow what is cached, and says what they may look at.
    pub(crate) fn begin(&mut self, tokens: &Tokens) -> Result<Causal> {
        if self.is_empty() {
            self.positions = vec![0; tokens.len()];
            return Ok(Causal::new(0));
        }
        if tokens.len() != self.positions.len() {
            let (have, got) = (self.positions.len(), tokens.len());
            return Err(Error::request(format!("the cache holds {have} prompts, not {got}")));
        }
        if tokens.is_ragged() {
            return Err(Error::request("only the first pass of a cache may hold prompts of different lengths"));
        }
        Ok(Causal::with_holes(self.len, self.holes.clone()))
    }

    /// Stores the keys and values of new tokens; returns all of them up to now.
    pub(crate) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        let new = k.dim(1)?;
        let end = self.len + new;
        if self.layers[layer].as_ref().map_or(0, |(k, _)| k.dim(1).unwrap_or(0)) < end {
            // Room for as much again, so that a long generation copies its past only a few times.
            let capacity = (2 * end).max(64).min(self.limit.max(end));
            let grown = |old: Option<&Tensor>, like: &Tensor| -> Result<Tensor> {
                let (b, _, h, d) = like.dims4()?;
                let room = Tensor::zeros((b, capacity, h, d), like.dtype(), like.device())?;
                if let Some(old) = old {
                    room.slice_set(&old.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                }
                Ok(room)
            };
            let old = self.layers[layer].as_ref();
            self.layers[layer] = Some((grown(old.map(|kv| &kv.0), &k)?, grown(old.map(|kv| &kv.1), &v)?));
        }
        let Some((keys, values)) = &self.layers[layer] else {
            return Err(Error::Bug("a cache layer vanished".into()));
        };
        keys.slice_set(&k, 1, self.len)?;
        values.slice_set(&v, 1, self.len)?;
        Ok((keys.narrow(1, 0, end)?, values.narrow(1, 0, end)?))
    }

    /// Counts the tokens of a finished pass as read.
    pub(crate) fn finish(&mut self, tokens: &Tokens) {
        if self.is_empty() && tokens.is_ragged() {
            self.holes = (0..tokens.len()).map(|i| tokens.row(i).len()..tokens.longest()).collect();
        }
        for (prompt, position) in self.positions.iter_mut().enumerate() {
            *position += tokens.row(prompt).len();
        }
        self.len += tokens.longest();
    }
}

/// Keys and values of one finished run, from which every row of a batch goes its own way: row i has read the first
/// `starts[i]` of its tokens, and reads the rest again with something changed.
///
/// What is before the change stays as it was and is not computed again.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Keys and values `[1, pos, head, dim]` of the layers from `first` on.
    layers: Vec<(Tensor, Tensor)>,
    first: usize,
    starts: Vec<usize>,
    len: usize,
}

impl Branch {
    /// `layers` are the keys and values of layer `first` and those after it, of one prompt.
    ///
    /// # Errors
    /// [`Error::Request`] for a start after the end of the prompt, or no layers.
    pub fn new(layers: Vec<(Tensor, Tensor)>, first: usize, starts: Vec<usize>) -> Result<Self> {
        let len = match layers.first() {
            Some((k, _)) => k.dim(1)?,
            None => return Err(Error::request("a branch needs the keys and values of at least one layer")),
        };
        match starts.iter().find(|start| **start >= len) {
            Some(start) => Err(Error::request(format!("a row starts at {start}, the prompt has {len} tokens"))),
            None => Ok(Self { layers, first, starts, len }),
        }
    }

    /// The layer at which a run on it resumes.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Rows of the batch.
    pub(crate) fn rows(&self) -> usize {
        self.starts.len()
    }

    /// Each row sees what it has read, and what it reads now.
    pub(crate) fn mask(&self) -> Causal {
        Causal::with_holes(self.len, self.starts.iter().map(|start| *start..self.len).collect())
    }

    /// What was there before, followed by the new keys and values.
    pub(crate) fn join(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = layer
            .checked_sub(self.first)
            .and_then(|i| self.layers.get(i))
            .ok_or_else(|| Error::Bug(format!("a branch has no layer {layer}")))?;
        let (rows, _, heads, dim) = k.dims4()?;
        let join = |old: &Tensor, new: &Tensor| -> Result<Tensor> {
            let old = old.broadcast_as((rows, self.len, heads, dim))?.contiguous()?;
            Ok(Tensor::cat(&[old, new.contiguous()?], 1)?)
        };
        Ok((join(keys, k)?, join(values, v)?))
    }
}

/// What a pass has read before it begins.
pub(crate) enum Past<'a> {
    Cache(&'a mut KvCache),
    Branch(&'a Branch),
}

impl Past<'_> {
    /// All keys and values up to now.
    pub(crate) fn join(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        match self {
            Past::Cache(cache) => cache.append(layer, k, v),
            Past::Branch(branch) => branch.join(layer, k, v),
        }
    }
}
