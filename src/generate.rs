//! Letting the model write.

use std::ops::Range;

use candle_core::Tensor;
use polars::prelude::*;

use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::frame;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::kv::KvCache;
use crate::plan::{Applied, Plan, Trace};
use crate::ranking::logprob;
use crate::sampling::{Sampler, Sampling};
use crate::site::Site;
use crate::text::Tokenizer;
use crate::tokens::Tokens;

/// How much to write, and when to stop.
#[derive(Clone, Debug)]
pub struct Options {
    /// How each token is drawn.
    pub sampling: Sampling,
    /// Decides every draw.
    pub seed: u64,
    /// Texts per prompt.
    pub num_samples: usize,
    /// Tokens to write at most.
    pub max_new_tokens: usize,
    /// A text ends with the token that completes one of these.
    pub stop: Vec<String>,
    /// Whether to go on after the end-of-text token.
    pub ignore_end: bool,
    /// Whether a text may grow past the model's context. From there on the model sees the last tokens only, as many as
    /// it has positions, and reads them anew for every token (nanoGPT's `generate`).
    pub window: bool,
    /// Whether to keep keys and values instead of reading the whole text anew for every token. The tokens are the same.
    pub cache: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sampling: Sampling::default(),
            seed: 0,
            num_samples: 1,
            max_new_tokens: 100,
            stop: Vec::new(),
            ignore_end: false,
            window: false,
            cache: true,
        }
    }
}

impl Options {
    /// Checks the options against a model and prompts, before anything runs.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::TooLong`] with the numbers.
    pub fn check(&self, model: &Gpt2, tokens: &Tokens, edits: &[Edit]) -> Result<()> {
        self.sampling.check()?;
        if self.num_samples == 0 || self.max_new_tokens == 0 {
            return Err(Error::request("num_samples and max_new_tokens must be at least 1"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::request("an empty stop text would end every text at once"));
        }
        if self.num_samples > 1 && self.sampling.temperature == 0.0 {
            return Err(Error::request(format!(
                "temperature 0 would write the same text {} times; give one sample",
                self.num_samples
            )));
        }
        let limit = model.config().n_positions;
        if !self.window {
            tokens.check(model.config(), 0)?;
        }
        let long = (0..tokens.len()).find(|&prompt| tokens.row(prompt).len() + self.max_new_tokens > limit);
        if let (Some(prompt), false) = (long, self.window) {
            let have = tokens.row(prompt).len();
            return Err(Error::request(format!(
                "prompt {prompt} has {have} tokens; with {} more it passes the model's {limit} positions: ask for at most {} \
                 new tokens, or let the window slide (--window)",
                self.max_new_tokens,
                limit - have
            )));
        }
        let slides = self.window && long.is_some();
        if let (true, Some(edit)) = (slides, edits.iter().find(|edit| edit.is_narrowed_by_position())) {
            return Err(Error::request(format!("edit `{edit}`: positions mean nothing in a window that slides")));
        }
        if let (true, Some(edit)) = (self.num_samples > 1, edits.iter().find(|edit| edit.is_narrowed_by_prompt())) {
            return Err(Error::request(format!("edit `{edit}`: edits of single prompts need one sample per prompt")));
        }
        Ok(())
    }
}

/// A token that was just written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Index of the prompt.
    pub prompt: usize,
    /// Index of the text among those of this prompt.
    pub sample: usize,
    /// The token.
    pub token: u32,
    /// Its log-probability under the model, before temperature, penalty and filters.
    pub logprob: f32,
}

/// A text that grows.
struct Text {
    prompt: usize,
    sample: usize,
    sampler: Sampler,
    ids: Vec<u32>,
    /// Tokens of the prompt.
    given: usize,
    logprobs: Vec<f32>,
    finish: Option<&'static str>,
}

/// Continues every prompt; one row per text.
///
/// | column | |
/// |---|---|
/// | `prompt`, `sample` | |
/// | `text` | prompt and continuation, without end-of-text tokens at the ends |
/// | `continuation` | what was written |
/// | `finish` | `length`, `end_of_text` or `stop` |
/// | `new_tokens` | how many tokens were written |
/// | `logprob` | sum of their log-probabilities, in nats |
/// | `token_ids`, `tokens`, `logprobs` | a list each: the tokens, their texts, and their log-probabilities before temperature, penalty and filters |
///
/// `each` hears of every token as it is written. The edits are applied at every step; with them comes how much each
/// changed at most.
///
/// # Errors
/// What [`Options::check`] finds, what the edits' plan finds, and whatever `each` returns.
pub fn generate(
    model: &Gpt2,
    tokenizer: &Tokenizer,
    tokens: &Tokens,
    edits: &[Edit],
    options: &Options,
    each: &mut dyn FnMut(Written) -> Result<()>,
) -> Result<(DataFrame, Vec<Applied>)> {
    options.check(model, tokens, edits)?;
    let at = if edits.iter().any(|edit| edit.site() == Site::Logits) { LogitsAt::All } else { LogitsAt::Last };
    let plan = Plan::new().edits(edits.iter().cloned()).logits(at);
    let limit = model.config().n_positions;
    let mut writer = Writer {
        model,
        plan,
        groups: Vec::new(),
        applied: Vec::new(),
        limit,
        cached: options.cache,
        divisible: !edits.iter().any(Edit::is_narrowed_by_prompt),
    };
    let mut texts: Vec<Text> = (0..tokens.len())
        .flat_map(|prompt| (0..options.num_samples).map(move |sample| (prompt, sample)))
        .map(|(prompt, sample)| Text {
            prompt,
            sample,
            sampler: Sampler::new(options.sampling.clone(), options.seed, ((prompt as u64) << 32) | sample as u64),
            ids: tokens.row(prompt).to_vec(),
            given: tokens.row(prompt).len(),
            logprobs: Vec::new(),
            finish: None,
        })
        .collect();
    for step in 0..options.max_new_tokens {
        let logits = match step {
            0 => writer.first(tokens, &texts)?,
            _ => writer.next(&texts)?,
        };
        for (text, logits) in texts.iter_mut().zip(logits).filter(|(text, _)| text.finish.is_none()) {
            let token = text.sampler.next(&logits, &text.ids)?;
            let logprob = logprob(&frame::to_f32(&logits)?, token);
            text.ids.push(token);
            text.logprobs.push(logprob);
            each(Written { prompt: text.prompt, sample: text.sample, token, logprob })?;
            text.finish = finish(text, tokenizer, options);
        }
        // A text that is finished grows on, unseen, while others in its batch are not.
        for text in texts.iter_mut().filter(|text| text.finish.is_some() && text.ids.len() == text.grown(step)) {
            text.ids.push(text.ids[0]);
        }
        if texts.iter().all(|text| text.finish.is_some()) {
            break;
        }
    }
    Ok((rows(tokenizer, &texts)?, writer.applied))
}

impl Text {
    /// Length before the token of this step.
    fn grown(&self, step: usize) -> usize {
        self.given + step
    }

    fn written(&self) -> &[u32] {
        &self.ids[self.given..self.given + self.logprobs.len()]
    }
}

/// Runs the model for texts that grow in step.
struct Writer<'a> {
    model: &'a Gpt2,
    plan: Plan,
    /// Texts that pass at once: all of them, unless there was no memory for that.
    groups: Vec<Group>,
    applied: Vec<Applied>,
    limit: usize,
    cached: bool,
    /// Edits of single prompts count them in the batch as it is.
    divisible: bool,
}

/// Texts and what has been read of them; without a cache, they are read whole.
struct Group {
    texts: Range<usize>,
    cache: Option<KvCache>,
}

impl Writer<'_> {
    /// Reads the prompts once, however many texts each begins, and returns the logits `[vocab]` of every text.
    fn first(&mut self, tokens: &Tokens, texts: &[Text]) -> Result<Vec<Tensor>> {
        self.groups = vec![Group { texts: 0..texts.len(), cache: None }];
        if !self.cached || tokens.longest() > self.limit {
            return self.next(texts);
        }
        let samples = texts.len() / tokens.len();
        let mut cache = KvCache::new(self.model.config());
        let read = self.plan.run_cached(self.model, tokens, &mut cache);
        match read.and_then(|trace| Ok((trace, cache.repeat_each(samples)?))) {
            Ok((trace, cache)) => {
                self.groups[0].cache = Some(cache);
                let logits = self.logits(&trace, tokens)?;
                Ok(logits.into_iter().flat_map(|logits| std::iter::repeat_n(logits, samples)).collect())
            }
            // In smaller groups, then.
            Err(Error::TryAgain(_)) if texts.len() > 1 && self.divisible => {
                self.split(0);
                self.next(texts)
            }
            Err(e) => Err(e),
        }
    }

    /// Reads what was written last, or without a cache everything that fits. A group that there is no memory for is divided,
    /// and its halves are read anew.
    fn next(&mut self, texts: &[Text]) -> Result<Vec<Tensor>> {
        let mut all = Vec::with_capacity(texts.len());
        let mut at = 0;
        while at < self.groups.len() {
            let own = self.groups[at].texts.clone();
            match self.read(at, &texts[own.clone()]) {
                Ok(logits) => {
                    all.extend(logits);
                    at += 1;
                }
                Err(Error::TryAgain(_)) if own.len() > 1 && self.divisible => self.split(at),
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    fn split(&mut self, at: usize) {
        let Range { start, end } = self.groups[at].texts;
        let middle = start + (end - start) / 2;
        let halves = [start..middle, middle..end].map(|texts| Group { texts, cache: None });
        self.groups.splice(at..=at, halves);
    }

    /// The logits of one group.
    fn read(&mut self, at: usize, texts: &[Text]) -> Result<Vec<Tensor>> {
        let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        // What failed on the way leaves no cache behind. Where positions moved, nothing that was kept holds any more.
        let cache = self.groups[at].cache.take().filter(|_| longest <= self.limit);
        let from = |text: &Text| match cache {
            Some(_) => text.ids.len() - 1,
            None => text.ids.len().saturating_sub(self.limit),
        };
        let tokens = Tokens::from_ids(texts.iter().map(|text| text.ids[from(text)..].to_vec()).collect())?;
        let new = || (self.cached && longest <= self.limit).then(|| KvCache::new(self.model.config()));
        let mut cache = cache.or_else(new);
        let trace = match &mut cache {
            Some(cache) => self.plan.run_cached(self.model, &tokens, cache)?,
            None => self.plan.run(self.model, &tokens)?,
        };
        self.groups[at].cache = cache;
        self.logits(&trace, &tokens)
    }

    fn logits(&mut self, trace: &Trace, tokens: &Tokens) -> Result<Vec<Tensor>> {
        self.applied = Applied::larger(std::mem::take(&mut self.applied), trace.edits());
        let logits = trace.logits()?;
        let everywhere = logits.dim(1)? > 1;
        let last = |prompt: usize| if everywhere { tokens.row(prompt).len() - 1 } else { 0 };
        (0..tokens.len()).map(|prompt| Ok(logits.get(prompt)?.get(last(prompt))?)).collect()
    }
}

/// Why a text ends with its last token, if it does.
fn finish(text: &Text, tokenizer: &Tokenizer, options: &Options) -> Option<&'static str> {
    let written = text.written();
    if !options.ignore_end && written.last().copied() == tokenizer.end_of_text() {
        return Some("end_of_text");
    }
    if !options.stop.is_empty() {
        let so_far = tokenizer.decode(written);
        if options.stop.iter().any(|stop| so_far.contains(stop)) {
            return Some("stop");
        }
    }
    (written.len() == options.max_new_tokens).then_some("length")
}

fn rows(tokenizer: &Tokenizer, texts: &[Text]) -> Result<DataFrame> {
    let end = tokenizer.end_of_text();
    let plain = |ids: &[u32]| -> String {
        let start = usize::from(ids.first().copied() == end && end.is_some());
        let stop = ids.len() - usize::from(ids.len() > start && ids.last().copied() == end && end.is_some());
        tokenizer.decode(&ids[start..stop])
    };
    let written = |text: &Text| text.given + text.logprobs.len();
    let list = |name: &str, values: Vec<Series>| Column::new(name.into(), values);
    Ok(df!(
        "prompt" => texts.iter().map(|t| t.prompt as u32).collect::<Vec<_>>(),
        "sample" => texts.iter().map(|t| t.sample as u32).collect::<Vec<_>>(),
        "text" => texts.iter().map(|t| plain(&t.ids[..written(t)])).collect::<Vec<_>>(),
        "continuation" => texts.iter().map(|t| continuation(tokenizer, t)).collect::<Vec<_>>(),
        "finish" => texts.iter().map(|t| t.finish.unwrap_or("length")).collect::<Vec<_>>(),
        "new_tokens" => texts.iter().map(|t| t.logprobs.len() as u32).collect::<Vec<_>>(),
        "logprob" => texts.iter().map(|t| t.logprobs.iter().map(|&x| f64::from(x)).sum::<f64>()).collect::<Vec<_>>(),
    )?
    .hstack(&[
        list("token_ids", texts.iter().map(|t| Series::new("".into(), t.written())).collect()),
        list("tokens", texts.iter().map(|t| pieces(tokenizer, t)).collect()),
        list("logprobs", texts.iter().map(|t| Series::new("".into(), t.logprobs.as_slice())).collect()),
    ])?)
}

fn pieces(tokenizer: &Tokenizer, text: &Text) -> Series {
    Series::new("".into(), text.written().iter().map(|&id| tokenizer.text(id)).collect::<Vec<_>>())
}

/// What was written, without the end-of-text token that ended it.
fn continuation(tokenizer: &Tokenizer, text: &Text) -> String {
    let ids = text.written();
    let ended = text.finish == Some("end_of_text");
    tokenizer.decode(&ids[..ids.len() - usize::from(ended)])
}
