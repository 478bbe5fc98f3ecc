//! Letting the model write.

use std::ops::Range;

use candle_core::{Device, Tensor};
use polars::prelude::*;

use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::frame;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::kv::KvCache;
use crate::memory;
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
    let n = texts.len();
    let mut applied = Vec::new();
    let mut write = |part: Range<usize>| -> Result<()> {
        let writer = Writer { model, tokenizer, plan: &plan, options, cache: None, applied: &mut applied };
        writer.write(&mut texts[part], each)
    };
    match edits.iter().any(Edit::is_narrowed_by_prompt) {
        // Edits of single prompts count them in the batch as it is.
        true => write(0..n)?,
        false => memory::in_parts(n, n, &mut write)?,
    }
    Ok((rows(tokenizer, &texts)?, applied))
}

impl Text {
    /// Tokens behind the prompt, those after its end included.
    fn steps(&self) -> usize {
        self.ids.len() - self.given
    }

    fn written(&self) -> &[u32] {
        &self.ids[self.given..self.given + self.logprobs.len()]
    }
}

/// Runs the model for texts that grow in step.
struct Writer<'a> {
    model: &'a Gpt2,
    tokenizer: &'a Tokenizer,
    plan: &'a Plan,
    options: &'a Options,
    cache: Option<KvCache>,
    applied: &'a mut Vec<Applied>,
}

impl Writer<'_> {
    /// Writes texts to their ends, from wherever they are. What fails between two tokens can go on from there.
    fn write(mut self, texts: &mut [Text], each: &mut dyn FnMut(Written) -> Result<()>) -> Result<()> {
        while texts[0].steps() < self.options.max_new_tokens && texts.iter().any(|text| text.finish.is_none()) {
            let (logits, steps) = (self.read(texts)?, texts[0].steps());
            for (text, logits) in texts.iter_mut().zip(logits).filter(|(text, _)| text.finish.is_none()) {
                let token = text.sampler.next(&logits, &text.ids)?;
                let logprob = logprob(&frame::to_f32(&logits)?, token);
                text.ids.push(token);
                text.logprobs.push(logprob);
                each(Written { prompt: text.prompt, sample: text.sample, token, logprob })?;
                text.finish = finish(text, self.tokenizer, self.options);
            }
            // A text that is finished grows on, unseen, while others in its batch are not.
            for text in texts.iter_mut().filter(|text| text.finish.is_some() && text.steps() == steps) {
                text.ids.push(text.ids[0]);
            }
        }
        Ok(())
    }

    /// The logits `[vocab]` of every text: from what was written last and what is kept, or from everything that fits.
    fn read(&mut self, texts: &[Text]) -> Result<Vec<Tensor>> {
        let limit = self.model.config().n_positions;
        let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        if longest > limit || !self.options.cache {
            // Positions moved, or nothing is to be kept.
            self.cache = None;
            let from = |text: &Text| text.ids.len().saturating_sub(limit);
            let tokens = Tokens::from_ids(texts.iter().map(|text| text.ids[from(text)..].to_vec()).collect())?;
            let trace = self.plan.run(self.model, &tokens)?;
            return self.logits(&trace, &tokens);
        }
        if let Some(cache) = &mut self.cache {
            let last = |text: &Text| text.ids[text.ids.len() - 1..].to_vec();
            let tokens = Tokens::from_ids(texts.iter().map(last).collect())?;
            let trace = self.plan.run_cached(self.model, &tokens, cache)?;
            return self.logits(&trace, &tokens);
        }
        // A prompt is read once, however many texts it begins.
        let samples = self.options.num_samples;
        let alike = |texts: &[Text]| texts.iter().all(|text| text.ids == texts[0].ids);
        let samples = if texts.len().is_multiple_of(samples) && texts.chunks(samples).all(alike) { samples } else { 1 };
        let tokens = Tokens::from_ids(texts.iter().step_by(samples).map(|text| text.ids.clone()).collect())?;
        let mut cache = KvCache::new(self.model.config());
        let trace = self.plan.run_cached(self.model, &tokens, &mut cache)?;
        self.cache = Some(cache.repeat_each(samples)?);
        let logits = self.logits(&trace, &tokens)?;
        Ok(logits.into_iter().flat_map(|logits| std::iter::repeat_n(logits, samples)).collect())
    }

    fn logits(&mut self, trace: &Trace, tokens: &Tokens) -> Result<Vec<Tensor>> {
        *self.applied = Applied::larger(std::mem::take(self.applied), trace.edits());
        let mut logits = trace.logits()?.clone();
        let everywhere = logits.dim(1)? > 1;
        if !everywhere {
            logits = logits.to_device(&Device::Cpu)?; // once, and not for every text and question
        }
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
