//! Text to learn from: two long sequences of tokens, one for learning and one for measuring.

use crate::corpus::{Row, Rows, Split};
use crate::error::{Error, Result};
use crate::random::{Rng, stream};

/// Tokens to learn from and tokens to measure on. Rows are cut out of them at random places, as in nanoGPT.
#[derive(Clone, Debug)]
pub struct TextSet {
    train: Vec<u32>,
    validation: Vec<u32>,
    seed: u64,
}

impl TextSet {
    /// A set from two sequences, such as those of [`Texts::encode`](crate::texts::Texts::encode).
    ///
    /// # Errors
    /// [`Error::Request`] for one that is shorter than a row of `block_size` tokens and the token after it.
    pub fn new((train, validation): (Vec<u32>, Vec<u32>), seed: u64, block_size: usize) -> Result<Self> {
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
