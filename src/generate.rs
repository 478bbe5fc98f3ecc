//! Letting the model write.

use std::ops::Range;

use candle_core::{Device, Tensor};
use polars::prelude::*;

use crate::edit::{Edit, Window};
use crate::error::{Error, Result};
use crate::frame;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::influence;
use crate::kv::KvCache;
use crate::limits;
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
    /// Checks the options against a model, prompts and edits, before anything runs.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::TooLong`] with the numbers; an edit that cannot change what is written is one of them.
    pub fn check(&self, model: &Gpt2, tokens: &Tokens, edits: &[Edit]) -> Result<()> {
        self.sampling.check()?;
        limits::within("num_samples", self.num_samples, 1..=limits::SAMPLES)?;
        limits::within("max_new_tokens", self.max_new_tokens, 1..=limits::NEW_TOKENS)?;
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
            if have >= limit {
                return Err(Error::request(format!(
                    "prompt {prompt} has {have} tokens, which fill the model's context of {limit} positions: nothing can be \
                     written after it; shorten it, or let the window slide (--window)"
                )));
            }
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
        self.plan(model, tokens, edits).map(|_| ())
    }

    /// The plan of every step, with positions that count from the end of the prompts counted from their start.
    fn plan(&self, model: &Gpt2, tokens: &Tokens, edits: &[Edit]) -> Result<Plan> {
        let config = model.config();
        let given = tokens.longest();
        // The last token that is written is not read.
        let read = (given + self.max_new_tokens - 1).min(config.n_positions);
        let fault = |edit: &Edit, what: &str| Err(Error::request(format!("edit `{edit}`: {what}")));
        let mut plan = Plan::new();
        for edit in edits {
            let mut anchored = edit.clone();
            if edit.is_narrowed_by_position() {
                if tokens.is_ragged() {
                    return fault(
                        edit,
                        "positions in a generation need prompts of one length; generate from one at a time",
                    );
                }
                anchored = edit.anchored(given).map_err(|e| Error::request(format!("edit `{edit}`: {e}")))?;
                let places = anchored.places()?;
                if let Some(last) = places.filter(|places| places.end > read).map(|places| places.end - 1) {
                    return fault(
                        edit,
                        &format!(
                            "position {last} is never read: the prompt has {given} tokens, and of {} new ones all but the last \
                             are read, so positions end at {}",
                            self.max_new_tokens,
                            read - 1
                        ),
                    );
                }
            }
            if let (Some(last), false) =
                (anchored.last_changed(), influence::reaches_later_positions(edit.site(), config.n_layer))
                && last + 1 < given
            {
                return fault(
                    edit,
                    &format!(
                        "it would change nothing that is written: what follows the prompt does not depend on {} before its last \
                         token, at position {}",
                        edit.site(),
                        given - 1
                    ),
                );
            }
            plan = plan.edit(anchored);
        }
        let at = if edits.iter().any(|edit| edit.site() == Site::Logits) { LogitsAt::All } else { LogitsAt::Last };
        let plan = plan.logits(at);
        let first = match given > config.n_positions {
            false => tokens.clone(),
            true => last_tokens(tokens, config.n_positions)?,
        };
        plan.check_window(config, Window { tokens: &first, past: 0, horizon: Some(read), live: None })?;
        Ok(plan)
    }
}

/// What the model reads of texts that are longer than its context.
fn last_tokens(tokens: &Tokens, limit: usize) -> Result<Tokens> {
    let rows = (0..tokens.len()).map(|prompt| tokens.row(prompt));
    Tokens::from_ids(rows.map(|ids| ids[ids.len().saturating_sub(limit)..].to_vec()).collect())
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
/// changed at most. Their positions are positions of the text, prompt first; a negative one counts from the end of the prompt.
///
/// # Errors
/// What [`Options::check`] finds, an edit whose positions no text came to, and whatever `each` returns.
pub fn generate(
    model: &Gpt2,
    tokenizer: &Tokenizer,
    tokens: &Tokens,
    edits: &[Edit],
    options: &Options,
    each: &mut dyn FnMut(Written) -> Result<()>,
) -> Result<(DataFrame, Vec<Applied>)> {
    options.check(model, tokens, edits)?;
    let plan = options.plan(model, tokens, edits)?;
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
    for (i, edit) in edits.iter().enumerate() {
        applied[i] = summed(applied[i].clone(), edit, &plan.edit_list()[i], &texts, tokens.len())?;
    }
    Ok((rows(tokenizer, &texts)?, applied))
}

/// What an edit did in all texts, under the name that it was given.
fn summed(applied: Applied, edit: &Edit, anchored: &Edit, texts: &[Text], prompts: usize) -> Result<Applied> {
    let chosen = anchored.prompts(prompts)?;
    let texts = || texts.iter().filter(|text| chosen.contains(&text.prompt));
    let first = anchored.places()?.map_or(0, |places| places.start);
    // The token that was written last was not read.
    let read = |text: &Text| text.given + text.logprobs.len() - 1;
    let missed = texts().filter(|text| first >= read(text)).count();
    if missed == texts().count() {
        let longest = texts().map(read).max().unwrap_or(0);
        return Err(Error::request(format!(
            "edit `{edit}` was never applied: it begins at position {first}, and the longest text ended when positions 0..={} were \
             read; choose an earlier position, or go on after the end of a text (--ignore-end)",
            longest.max(1) - 1
        )));
    }
    Ok(Applied { edit: edit.to_string(), missed, ..applied })
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
        let live: Vec<bool> = texts.iter().map(|text| text.finish.is_none()).collect();
        let window = |tokens, past, live| Window { tokens, past, horizon: Some(limit), live: Some(live) };
        if longest > limit || !self.options.cache {
            // Positions moved, or nothing is to be kept.
            self.cache = None;
            let tokens = Tokens::from_ids(texts.iter().map(|text| text.ids.clone()).collect())?;
            let tokens = last_tokens(&tokens, limit)?;
            let trace = self.plan.run_part(self.model, window(&tokens, 0, &live), None)?;
            return self.logits(&trace, &tokens);
        }
        if let Some(cache) = &mut self.cache {
            let last = |text: &Text| text.ids[text.ids.len() - 1..].to_vec();
            let tokens = Tokens::from_ids(texts.iter().map(last).collect())?;
            let trace = self.plan.run_part(self.model, window(&tokens, cache.len(), &live), Some(cache))?;
            return self.logits(&trace, &tokens);
        }
        // A prompt is read once, however many texts it begins.
        let samples = self.options.num_samples;
        let alike = |texts: &[Text]| texts.iter().all(|text| text.ids == texts[0].ids);
        let samples = if texts.len().is_multiple_of(samples) && texts.chunks(samples).all(alike) { samples } else { 1 };
        let tokens = Tokens::from_ids(texts.iter().step_by(samples).map(|text| text.ids.clone()).collect())?;
        let live: Vec<bool> = live.chunks(samples).map(|own| own.contains(&true)).collect();
        let mut cache = KvCache::new(self.model.config());
        let trace = self.plan.run_part(self.model, window(&tokens, 0, &live), Some(&mut cache))?;
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
    if !options.ignore_end && written.last().is_some_and(|id| tokenizer.ends().contains(id)) {
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
    let plain = |ids: &[u32]| -> String {
        let start = usize::from(ids.first().is_some_and(|id| tokenizer.bos() == Some(*id)));
        let stop = ids.len() - usize::from(ids[start..].last().is_some_and(|id| tokenizer.ends().contains(id)));
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
