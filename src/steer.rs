//! Steering: a direction is added while the model writes. Does it do what it is meant to, and is the text still one?

use std::fmt;
use std::str::FromStr;

use polars::prelude::*;

use crate::direction::Direction;
use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::generate::{self, generate};
use crate::gpt2::{Gpt2, LogitsAt, Pass};
use crate::limits;
use crate::memory;
use crate::ops;
use crate::plan::{Applied, Plan};
use crate::target::Target;
use crate::text::Tokenizer;
use crate::tokens::Tokens;

/// What a strength of 1 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Units {
    /// The distance between the two sets that the direction was found from.
    #[default]
    Natural,
    /// The mean length of the activations there.
    Norm,
    /// Length 1.
    Unit,
}

impl Units {
    /// The length that is added at a strength.
    pub fn amount(self, strength: f64, direction: &Direction) -> f64 {
        match self {
            Units::Natural => strength * direction.length,
            Units::Norm => strength * direction.norm,
            Units::Unit => strength,
        }
    }
}

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Units::Natural => "natural",
            Units::Norm => "norm",
            Units::Unit => "unit",
        })
    }
}

impl FromStr for Units {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Units::Natural, Units::Norm, Units::Unit];
        let found = all.into_iter().find(|units| units.to_string() == name);
        found.ok_or_else(|| Error::no_such("unit of strength", name, ["natural", "norm", "unit"]))
    }
}

/// What to try.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of each direction is added, in `units`; 0 is the model as it is.
    pub strengths: Vec<f64>,
    /// What a strength of 1 is.
    pub units: Units,
    /// Random directions of the same length that are tried beside each.
    pub controls: usize,
    /// How texts are written; its seed also decides the random directions.
    pub generate: generate::Options,
}

impl Options {
    /// Checks the options against a model and prompts, before anything runs.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::TooLong`] with the numbers.
    pub fn check(&self, model: &Gpt2, tokens: &Tokens) -> Result<()> {
        if self.strengths.is_empty() || self.strengths.iter().any(|strength| !strength.is_finite()) {
            return Err(Error::request("strengths must be numbers, at least one"));
        }
        limits::at_most("strengths", self.strengths.len(), limits::LISTED)?;
        limits::within("controls", self.controls, 0..=limits::CONTROLS)?;
        let twice = self.strengths.iter().enumerate().find(|(i, strength)| self.strengths[..*i].contains(strength));
        if let Some((_, strength)) = twice {
            return Err(Error::request(format!("strength {strength} is given twice")));
        }
        if self.generate.window {
            return Err(Error::request("steered texts must fit the model's context: no sliding window"));
        }
        self.generate.check(model, tokens, &[])
    }
}

/// What happened at one strength of one direction.
#[derive(Clone)]
struct Outcome {
    /// How much the edit changed the activations at most, relative to them; 0 without one.
    change: f64,
    /// The target's value after each prompt.
    values: Vec<Option<f64>>,
    texts: Vec<Written>,
}

#[derive(Clone)]
struct Written {
    prompt: u32,
    sample: u32,
    text: String,
    tokens: usize,
    /// Log-probability under the unsteered model.
    logprob: f64,
}

/// Continues every prompt with every direction at every strength, and measures effect and fluency.
///
/// Directions are added at every position, of the prompt and of what is written. One row per text, and one per direction
/// and strength that sums all up:
///
/// | column | |
/// |---|---|
/// | `direction` | `steering`, or `random` for a control of the same length |
/// | `draw` | which random direction; null for steering |
/// | `site`, `layer` | where it is added |
/// | `strength`, `amount` | in the units that were asked for, and as length |
/// | `relative_change` | the length of what was added, relative to the activations there; 0 where rounding swallowed it |
/// | `prompt`, `sample` | null in rows that sum up |
/// | `text` | what was written; null in rows that sum up |
/// | `metric`, `value` | the target after the prompt, `logit_diff` or `logit`; null without one; in rows that sum up the mean over prompts |
/// | `perplexity` | of what was written, under the unsteered model: exp(−logprob / tokens) |
/// | `logprob`, `tokens` | its log-probability under that model, in nats, and its length |
///
/// A low perplexity is no proof of good text: what repeats itself is easily predicted. Read the texts.
///
/// `progress(done, all)` counts directions times strengths.
///
/// # Errors
/// What [`Options::check`] finds, what the edits' plan finds, and whatever `progress` returns.
pub fn steer(
    model: &Gpt2,
    tokenizer: &Tokenizer,
    tokens: &Tokens,
    directions: &[Direction],
    target: Option<&Target>,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<DataFrame> {
    options.check(model, tokens)?;
    if directions.is_empty() {
        return Err(Error::request("there is no direction to steer with"));
    }
    let metric = target.map(|target| if target.wrong().is_empty() { "logit" } else { "logit_diff" });
    let run = |edits: &[Edit]| outcome(model, tokenizer, tokens, edits, target, options);
    let all = directions.len() * (1 + options.controls) * options.strengths.len();
    let (mut rows, mut plain, mut done) = (Rows::default(), None, 0);
    for direction in directions {
        let random = (0..options.controls as u32)
            .map(|draw| (Some(draw), direction.random(options.generate.seed, u64::from(draw))));
        for (draw, direction) in std::iter::once((None, direction.clone())).chain(random) {
            for &strength in &options.strengths {
                let amount = options.units.amount(strength, &direction);
                let outcome = match (direction.edit(amount)?, &plain) {
                    (Some(edit), _) => run(&[edit])?,
                    (None, Some(plain)) => Outcome::clone(plain),
                    // Nothing added is the same for every direction.
                    (None, None) => plain.insert(run(&[])?).clone(),
                };
                rows.push(&direction, draw, (strength, amount), metric, &outcome);
                done += 1;
                progress(done, all)?;
            }
        }
    }
    rows.finish()
}

fn outcome(
    model: &Gpt2,
    tokenizer: &Tokenizer,
    tokens: &Tokens,
    edits: &[Edit],
    target: Option<&Target>,
    options: &Options,
) -> Result<Outcome> {
    let values = match target {
        None => vec![None; tokens.len()],
        Some(target) => {
            let plan = Plan::new().edits(edits.iter().cloned()).logits(LogitsAt::Last);
            memory::in_batches(tokens.len(), tokens.len(), &mut |part| {
                let logits = to_f32(plan.run(model, &tokens.slice(part))?.logits()?)?;
                let rows = logits.chunks_exact(model.config().vocab_size);
                rows.map(|row| target.value(row).map(Some)).collect()
            })?
        }
    };
    let (frame, applied) = generate(model, tokenizer, tokens, edits, &options.generate, &mut |_| Ok(()))?;
    Applied::check(&applied)?;
    let change = applied.iter().filter_map(|applied| applied.relative_change).fold(0.0, f64::max);
    let (prompt, sample) = (frame.column("prompt")?.u32()?, frame.column("sample")?.u32()?);
    let (text, ids) = (frame.column("continuation")?.str()?, frame.column("token_ids")?.list()?);
    let mut texts = Vec::new();
    let mut whole = Vec::new();
    for i in 0..frame.height() {
        let written = ids.get_as_series(i).ok_or_else(|| Error::Bug("a text without tokens".into()))?;
        let written: Vec<u32> = written.u32()?.into_no_null_iter().collect();
        let prompt = prompt.get(i).unwrap_or(0);
        let given = tokens.row(prompt as usize);
        whole.push((given.len(), [given, &written].concat()));
        texts.push(Written {
            prompt,
            sample: sample.get(i).unwrap_or(0),
            text: text.get(i).unwrap_or_default().to_string(),
            tokens: written.len(),
            logprob: 0.0,
        });
    }
    for (text, logprob) in texts.iter_mut().zip(logprobs(model, &whole)?) {
        text.logprob = logprob;
    }
    Ok(Outcome { change, values, texts })
}

/// Log-probability, under the model as it is, of what follows the given tokens of each text.
fn logprobs(model: &Gpt2, texts: &[(usize, Vec<u32>)]) -> Result<Vec<f64>> {
    /// Texts that pass through the model at once.
    const BATCH: usize = 16;
    memory::in_batches(texts.len(), BATCH, &mut |part| {
        let batch = &texts[part];
        let tokens = Tokens::from_ids(batch.iter().map(|(_, ids)| ids.clone()).collect())?;
        let resid = model.run(Pass::new(&tokens).logits(LogitsAt::None), &mut ())?.resid;
        let logprob = |(row, (given, ids)): (usize, &(usize, Vec<u32>))| {
            // Position p predicts token p + 1.
            let before = resid.get(row)?.narrow(0, given - 1, ids.len() - given)?;
            let losses = ops::cross_entropy(&model.unembed(&before)?, ids[*given..].to_vec())?;
            Ok(to_f32(&losses)?.into_iter().map(|loss| -f64::from(loss)).sum())
        };
        batch.iter().enumerate().map(logprob).collect()
    })
}

/// Columns on their way.
#[derive(Default)]
struct Rows {
    direction: Vec<&'static str>,
    draw: Vec<Option<u32>>,
    site: Vec<String>,
    layer: Vec<Option<u32>>,
    strength: Vec<f64>,
    amount: Vec<f64>,
    change: Vec<f64>,
    prompt: Vec<Option<u32>>,
    sample: Vec<Option<u32>>,
    text: Vec<Option<String>>,
    metric: Vec<Option<&'static str>>,
    value: Vec<Option<f64>>,
    perplexity: Vec<f64>,
    logprob: Vec<f64>,
    tokens: Vec<u32>,
}

impl Rows {
    fn push(
        &mut self,
        direction: &Direction,
        draw: Option<u32>,
        (strength, amount): (f64, f64),
        metric: Option<&'static str>,
        outcome: &Outcome,
    ) {
        let mut row = |text: Option<&Written>, value: Option<f64>, logprob: f64, tokens: usize| {
            self.direction.push(if draw.is_some() { "random" } else { "steering" });
            self.draw.push(draw);
            self.site.push(direction.site.to_string());
            self.layer.push(direction.site.layer().map(|layer| layer as u32));
            self.strength.push(strength);
            self.amount.push(amount);
            self.change.push(outcome.change);
            self.prompt.push(text.map(|text| text.prompt));
            self.sample.push(text.map(|text| text.sample));
            self.text.push(text.map(|text| text.text.clone()));
            self.metric.push(metric);
            self.value.push(value);
            self.perplexity.push((-logprob / tokens as f64).exp());
            self.logprob.push(logprob);
            self.tokens.push(tokens as u32);
        };
        for text in &outcome.texts {
            row(Some(text), outcome.values[text.prompt as usize], text.logprob, text.tokens);
        }
        let values: Option<Vec<f64>> = outcome.values.iter().copied().collect();
        let mean = values.map(|values| values.iter().sum::<f64>() / values.len() as f64);
        let logprob = outcome.texts.iter().map(|text| text.logprob).sum();
        row(None, mean, logprob, outcome.texts.iter().map(|text| text.tokens).sum());
    }

    fn finish(self) -> Result<DataFrame> {
        Ok(df!(
            "direction" => self.direction,
            "draw" => self.draw,
            "site" => self.site,
            "layer" => self.layer,
            "strength" => self.strength,
            "amount" => self.amount,
            "relative_change" => self.change,
            "prompt" => self.prompt,
            "sample" => self.sample,
            "text" => self.text,
            "metric" => self.metric,
            "value" => self.value,
            "perplexity" => self.perplexity,
            "logprob" => self.logprob,
            "tokens" => self.tokens,
        )?)
    }
}
