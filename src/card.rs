//! What a model trained on a [`Language`] can do, measured on what training held out.

use candle_core::Tensor;
use polars::prelude::*;

use crate::corpus::repeated_tokens;
use crate::error::{Error, Result};
use crate::gpt2::{Gpt2, LogitsAt};
use crate::language::{Family, Item, Language, Metric, Split, later, next_token};
use crate::ops;
use crate::plan::Plan;
use crate::random::stream;
use crate::site::Site;
use crate::text::{Encoding, Tokenizer};
use crate::tokens::Tokens;

/// Prompts that pass through the model at once.
const BATCH: usize = 64;

/// Lengths of the random sequence in [`repeats`], as in TransformerLens's demonstrations.
pub const REPEAT_HALF: usize = 100;

/// Measures every family of a language that has a metric, on held-out templates and names, and the model's induction.
///
/// | column | |
/// |---|---|
/// | `behaviour` | family, or `repeats`, `induction_head`, `previous_token_head` |
/// | `metric` | `accuracy`, `logit_difference`, `loss_first_half`, `loss_second_half`, `score` |
/// | `value` | its mean |
/// | `n` | over so many prompts, tokens or sequences |
/// | `where` | the head, where there is one |
///
/// # Errors
/// [`Error::Data`] for a language whose answers are not single tokens of this tokenizer.
pub fn card(model: &Gpt2, tokenizer: &Tokenizer, language: &Language, n: usize, seed: u64) -> Result<DataFrame> {
    let mut card = Rows::default();
    for family in language.families() {
        let Some(metric) = family.metric else { continue };
        let items: Vec<Item> = (0..n as u64)
            .map(|i| language.item(family, Split::Heldout, &mut stream(seed, &format!("card {}", family.name), i)))
            .collect();
        let scores = score(model, tokenizer, family, metric, &items)?;
        card.push(&family.name, "accuracy", scores.accuracy, n, None);
        if let Some(difference) = scores.logit_difference {
            card.push(&family.name, "logit_difference", difference, n, None);
        }
    }
    let repeats = repeats(model, tokenizer, 16, seed)?;
    let count = 16 * (REPEAT_HALF - 1);
    card.push("repeats", "loss_first_half", repeats.first_half, count, None);
    card.push("repeats", "loss_second_half", repeats.second_half, count, None);
    for (name, (head, score)) in [("induction_head", &repeats.induction), ("previous_token_head", &repeats.previous)] {
        card.push(name, "score", *score, 16, Some(head.clone()));
    }
    card.frame()
}

struct Scores {
    accuracy: f64,
    logit_difference: Option<f64>,
}

fn score(model: &Gpt2, tokenizer: &Tokenizer, family: &Family, metric: Metric, items: &[Item]) -> Result<Scores> {
    let one = |prompt: &str, answer: &str| next_token(tokenizer, family, prompt, answer);
    let (mut right, mut difference) = (0, 0.0);
    for batch in items.chunks(BATCH) {
        let prompts: Vec<&str> = batch.iter().map(|item| item.prompt.as_str()).collect();
        let tokens = tokenizer.tokens(&prompts, Encoding::default())?;
        let trace = Plan::new().logits(LogitsAt::Last).run(model, &tokens)?;
        let logits = trace.logits()?.squeeze(1)?.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
        for (item, logits) in batch.iter().zip(logits) {
            let logit = |text: &str| Ok::<f32, Error>(logits[one(&item.prompt, text)? as usize]);
            right += usize::from(match metric {
                Metric::Choice => {
                    let (answer, wrong) = (logit(&item.answer)?, logit(item.wrong.as_deref().unwrap_or_default())?);
                    difference += f64::from(answer - wrong);
                    answer > wrong
                }
                Metric::Top => {
                    let answer = logit(&item.answer)?;
                    logits.iter().all(|&x| x <= answer)
                }
                Metric::Later => later_is_likelier(tokenizer, family, item, &logits)?,
            });
        }
    }
    let n = items.len().max(1) as f64;
    Ok(Scores { accuracy: right as f64 / n, logit_difference: (metric == Metric::Choice).then_some(difference / n) })
}

/// Whether two-digit numbers after the one in the prompt have more probability than those up to it.
fn later_is_likelier(tokenizer: &Tokenizer, family: &Family, item: &Item, logits: &[f32]) -> Result<bool> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass = |numbers: Vec<String>| -> Result<f64> {
        let ids = numbers.iter().map(|number| next_token(tokenizer, family, &item.prompt, number));
        ids.map(|id| Ok(f64::from((logits[id? as usize] - max).exp()))).sum()
    };
    let (later, rest) = later(tokenizer, family, item)?;
    Ok(mass(later)? > mass(rest)?)
}

/// How a model reads random tokens that come twice.
#[derive(Clone, Debug)]
pub struct Repeats {
    /// Mean loss on the first copy, in nats per token.
    pub first_half: f64,
    /// Mean loss on the second copy.
    pub second_half: f64,
    /// The best induction head (`layer.head`) and its score.
    pub induction: (String, f64),
    /// The best previous-token head and its score.
    pub previous: (String, f64),
}

/// Reads `n` sequences of [`REPEAT_HALF`] random tokens, twice over after an end-of-text token.
///
/// Scores are means of the attention pattern along a diagonal, over all sequences: one back for previous-token heads,
/// `REPEAT_HALF` − 1 back for induction heads (TransformerLens's stripe scores).
///
/// # Errors
/// [`Error::Request`] for a model whose context is too short, or a tokenizer without a token that starts a text.
pub fn repeats(model: &Gpt2, tokenizer: &Tokenizer, n: usize, seed: u64) -> Result<Repeats> {
    let config = model.config();
    let bos = tokenizer.bos().ok_or_else(|| Error::request("the tokenizer has no token that starts a text"))?;
    let rows = (0..n as u64)
        .map(|i| {
            let mut rng = stream(seed, "card repeats", i);
            let mut row = vec![bos];
            row.extend(repeated_tokens(&mut rng, REPEAT_HALF, config.vocab_size as u32, bos));
            row
        })
        .collect();
    let tokens = Tokens::from_ids(rows)?;
    let trace = Plan::new().reads((0..config.n_layer).map(Site::Pattern)).run(model, &tokens)?;
    let (mut first, mut second) = (0.0, 0.0);
    for (i, logits) in trace.logits()?.chunk(n, 0)?.into_iter().enumerate() {
        let targets: Vec<u32> = tokens.row(i)[1..].iter().copied().chain([ops::IGNORE]).collect();
        let losses = ops::cross_entropy(&logits.squeeze(0)?, targets)?.to_vec1::<f32>()?;
        // losses[p] is of token p + 1; the first token of each copy cannot be known and is left out of both.
        first += losses[1..REPEAT_HALF].iter().map(|&x| f64::from(x)).sum::<f64>();
        second += losses[REPEAT_HALF + 1..2 * REPEAT_HALF].iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    let count = (n * (REPEAT_HALF - 1)) as f64;
    let mut best = [("".to_string(), f64::NEG_INFINITY), ("".to_string(), f64::NEG_INFINITY)];
    for layer in 0..config.n_layer {
        let pattern = trace.get(Site::Pattern(layer))?;
        for head in 0..config.n_head {
            let map = pattern.narrow(1, head, 1)?.squeeze(1)?;
            for (best, back) in best.iter_mut().zip([REPEAT_HALF - 1, 1]) {
                let score = diagonal_mean(&map, back)?;
                if score > best.1 {
                    *best = (format!("{layer}.{head}"), score);
                }
            }
        }
    }
    let [induction, previous] = best;
    Ok(Repeats { first_half: first / count, second_half: second / count, induction, previous })
}

/// Mean of `map[.., q, q − back]` over prompts and queries: `[prompt, query, key]` → a number.
fn diagonal_mean(map: &Tensor, back: usize) -> Result<f64> {
    let maps = map.to_dtype(candle_core::DType::F32)?.to_vec3::<f32>()?;
    let values: Vec<f64> = maps
        .iter()
        .flat_map(|map| map.iter().enumerate().skip(back).map(|(q, row)| f64::from(row[q - back])))
        .collect();
    Ok(values.iter().sum::<f64>() / values.len().max(1) as f64)
}

#[derive(Default)]
struct Rows {
    behaviour: Vec<String>,
    metric: Vec<String>,
    value: Vec<f64>,
    n: Vec<u32>,
    place: Vec<Option<String>>,
}

impl Rows {
    fn push(&mut self, behaviour: &str, metric: &str, value: f64, n: usize, place: Option<String>) {
        self.behaviour.push(behaviour.into());
        self.metric.push(metric.into());
        self.value.push(value);
        self.n.push(n as u32);
        self.place.push(place);
    }

    fn frame(self) -> Result<DataFrame> {
        Ok(df!(
            "behaviour" => self.behaviour,
            "metric" => self.metric,
            "value" => self.value,
            "n" => self.n,
            "where" => self.place,
        )?)
    }
}
