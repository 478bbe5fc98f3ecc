//! How fast a model runs here: one forward pass, one text, one training step, many times over.

use std::time::Instant;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::generate::{Options, generate};
use crate::gpt2::{Gpt2, Pass};
use crate::limits;
use crate::random::{Rng, stream};
use crate::recipe::{Precision, Recipe};
use crate::text::Tokenizer;
use crate::textset::TextSet;
use crate::tokens::Tokens;
use crate::train::Trainer;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A pass over whole rows, with logits at every position.
    Forward,
    /// Writing token by token, with keys and values kept.
    Generate,
    /// A step of fine-tuning all parameters in f32.
    Train,
}

impl Work {
    /// All of them, in the order of their memory.
    pub const ALL: [Work; 3] = [Work::Generate, Work::Forward, Work::Train];

    /// Its name in frames.
    pub fn name(self) -> &'static str {
        match self {
            Work::Forward => "forward",
            Work::Generate => "generate",
            Work::Train => "train",
        }
    }
}

/// How much is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows or texts at once.
    pub batch: usize,
    /// Tokens of a row, or of a prompt with what is written after it.
    pub length: usize,
    /// How often, after one time that does not count.
    pub repeats: usize,
}

/// Tokens of the prompt that a text begins with.
pub const PROMPT: usize = 16;

impl Size {
    /// Refuses what does not fit a model.
    ///
    /// # Errors
    /// [`Error::Request`] with the numbers.
    pub fn check(&self, work: Work, config: &Config) -> Result<()> {
        let least = if work == Work::Generate { PROMPT + 1 } else { 2 };
        limits::within("batch", self.batch, 1..=limits::BATCH)?;
        limits::within("repeats", self.repeats, 1..=limits::REPEATS)?;
        match (least..=config.n_positions).contains(&self.length) {
            true => Ok(()),
            false => Err(Error::request(format!(
                "{} tokens to {} with; this model takes {least} to {}",
                self.length,
                work.name(),
                config.n_positions
            ))),
        }
    }

    /// Bytes that it takes at most, about.
    pub fn memory(&self, work: Work, config: &Config) -> u64 {
        let rows = |bytes: u64| bytes.saturating_mul(self.batch as u64);
        let widest = 2 * config.n_inner + 8 * config.n_embd + config.n_head * self.length;
        let weights = 4 * config.parameters();
        match work {
            Work::Forward => weights.saturating_add(rows(4 * (self.length * (config.vocab_size + widest)) as u64)),
            Work::Generate => {
                let kept = 2 * config.n_layer * config.n_head * config.head_dim * self.length;
                weights.saturating_add(rows(4 * (kept + 3 * config.vocab_size) as u64))
            }
            // Rows pass one after the other.
            Work::Train => 4 * weights + config.training_memory(1, self.length, &candle_core::Device::Cpu),
        }
    }

    /// Tokens that one time is about: read, written, or learned from.
    pub fn tokens(&self, work: Work) -> usize {
        let each = if work == Work::Generate { self.length - PROMPT } else { self.length };
        self.batch * each
    }
}

/// Wall time of every repeat, in seconds. Tokens are random, from `seed`.
///
/// # Errors
/// As [`Size::check`], and those of the work itself; [`Error::Request`] for writing or training without a tokenizer.
pub fn time(work: Work, model: &Gpt2, tokenizer: Option<&Tokenizer>, size: Size, seed: u64) -> Result<Vec<f64>> {
    size.check(work, model.config())?;
    let mut rng = stream(seed, "speed", 0);
    let vocab = model.config().vocab_size as u32;
    let mut draw = |count: usize| (0..count).map(|_| rng.random_range(0..vocab)).collect::<Vec<u32>>();
    let tokenizer =
        || tokenizer.ok_or_else(|| Error::request("writing and training need a tokenizer; name one with --tokenizer"));
    let mut once: Box<dyn FnMut() -> Result<()> + '_> = match work {
        Work::Forward => {
            let tokens = Tokens::from_ids((0..size.batch).map(|_| draw(size.length)).collect())?;
            Box::new(move || {
                let logits = model.run(Pass::new(&tokens), &mut ())?.logits;
                // A GPU has only been told to compute until somebody asks for a number.
                let last =
                    logits.map(|logits| logits.flatten_all()?.narrow(0, 0, 1)?.to_device(&candle_core::Device::Cpu));
                last.transpose().map(|_| ()).map_err(Error::from)
            })
        }
        Work::Generate => {
            let tokens = Tokens::from_ids((0..size.batch).map(|_| draw(PROMPT)).collect())?;
            let options =
                Options { max_new_tokens: size.length - PROMPT, ignore_end: true, seed, ..Options::default() };
            let tokenizer = tokenizer()?;
            Box::new(move || generate(model, tokenizer, &tokens, &[], &options, &mut |_| Ok(())).map(|_| ()))
        }
        Work::Train => {
            let set: Vec<String> = vec![
                format!("batch_size={}", size.batch),
                format!("block_size={}", size.length),
                format!("seed={seed}"),
                "max_iters=1000000".into(),
            ];
            let text = TextSet::new((draw(64 * size.length + 1), draw(size.length + 1)), seed, size.length)?;
            let mut recipe = Recipe::load_with(None, &set)?;
            recipe.train.dtype = Precision::of(model.dtype())?;
            let mut trainer = Trainer::from_model(recipe, model, "speed", tokenizer()?.clone(), Box::new(text))?;
            Box::new(move || {
                trainer.step()?;
                let rows = trainer.micro_batch_size();
                match rows < trainer.recipe().train.micro_batch_size {
                    true => Err(Error::TryAgain(format!("no memory to train on more than {rows} rows at once"))),
                    false => Ok(()),
                }
            })
        }
    };
    once()?;
    (0..size.repeats)
        .map(|_| {
            let start = Instant::now();
            once()?;
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}
