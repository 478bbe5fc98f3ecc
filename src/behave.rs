//! How a model answers the questions of a suite.

use polars::prelude::*;

use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt, Pass};
use crate::memory;
use crate::ranking;
use crate::scores;
use crate::stats::{self, Interval};
use crate::suite::{Continuation, Question, Scoring};
use crate::tokens::{self, Tokens};

/// Tokens that pass through the model at once.
const BATCH_TOKENS: usize = 2048;

/// How a model went about one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Log-probability of every right answer, as the suite scores it, in nats.
    pub right: Vec<f64>,
    /// The same of the wrong ones.
    pub wrong: Vec<f64>,
    /// How many tokens are likelier than the first token of the best right answer.
    pub rank: u32,
    /// Whether every token of the best right answer is the likeliest one.
    pub greedy: bool,
}

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Whether the right answer has the highest score of all choices; without choices, whether it is what the model says.
    pub correct: bool,
    /// Score of the right answer, in nats.
    pub logprob: f64,
    /// By how much it is above the best wrong choice, in nats; none without choices.
    pub margin: Option<f64>,
    /// How many tokens are likelier than its first one.
    pub rank: u32,
    /// Probability of the choice with the highest score, among the choices; none without choices.
    pub confidence: Option<f64>,
    /// Sum over choices of the squared distance of their probability from 1 for the right one and 0 for others (Brier 1950).
    pub brier: Option<f64>,
    /// What choosing blindly would get right; none without choices.
    pub chance: Option<f64>,
}

impl Answer {
    /// Holds the right answer against the wrong ones. Several right answers are one choice, and the wrong ones then another: their
    /// probabilities add up.
    pub fn judge(&self) -> Judgement {
        let choices = match (self.right.len(), self.wrong.is_empty()) {
            (_, true) => Vec::new(),
            (1, false) => [self.right.as_slice(), &self.wrong].concat(),
            _ => vec![log_sum_exp(&self.right), log_sum_exp(&self.wrong)],
        };
        let logprob = log_sum_exp(&self.right);
        let Some(best_wrong) = choices.iter().skip(1).copied().reduce(f64::max) else {
            let (correct, rank) = (self.greedy, self.rank);
            return Judgement { correct, logprob, margin: None, rank, confidence: None, brier: None, chance: None };
        };
        let total = log_sum_exp(&choices);
        let shares: Vec<f64> = choices.iter().map(|score| (score - total).exp()).collect();
        let brier = shares.iter().enumerate().map(|(i, share)| (share - f64::from(i == 0)).powi(2)).sum();
        Judgement {
            correct: choices[0] > best_wrong,
            logprob,
            margin: Some(choices[0] - best_wrong),
            rank: self.rank,
            confidence: shares.iter().copied().reduce(f64::max),
            brier: Some(brier),
            chance: Some(1.0 / choices.len() as f64),
        }
    }
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.len() < 2 { max } else { max + values.iter().map(|x| (x - max).exp()).sum::<f64>().ln() }
}

/// A row that passes through the model: a prompt, with an answer after it where answers are longer than a token.
struct Reading<'a> {
    question: usize,
    ids: Vec<u32>,
    /// What is read at its end: places in right, then wrong.
    texts: Vec<(usize, &'a Continuation)>,
}

/// Asks a model; `progress(done, all)` counts questions.
///
/// # Errors
/// Questions that do not fit the model, and what `progress` returns.
pub fn ask(
    model: &Gpt2,
    questions: &[Question],
    score: Scoring,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Answer>> {
    let readings: Vec<Reading<'_>> = questions.iter().enumerate().flat_map(readings).collect();
    let mut found: Vec<Vec<Read>> =
        questions.iter().map(|q| vec![Read::default(); q.right.len() + q.wrong.len()]).collect();
    for batch in tokens::batches(readings.iter().map(|reading| reading.ids.len()), BATCH_TOKENS) {
        let end = batch.end;
        memory::halving(batch, &mut |part| {
            let part = &readings[part];
            let tokens = Tokens::from_ids(part.iter().map(|reading| reading.ids.clone()).collect())?;
            tokens.check(model.config(), 0)?;
            let resid = model.run(Pass::new(&tokens).logits(LogitsAt::None), &mut ())?.resid;
            for (row, reading) in part.iter().enumerate() {
                // The last token of an answer is predicted, not read: a row ends with the one before it.
                let length = reading.texts.first().map_or(1, |(_, text)| text.ids.len());
                let from = reading.ids.len() - length;
                let logits = to_f32(&model.unembed(&resid.get(row)?.narrow(0, from, length)?)?)?;
                let rows: Vec<&[f32]> = logits.chunks_exact(model.config().vocab_size).collect();
                for (place, text) in &reading.texts {
                    found[reading.question][*place] = Read::of(&rows, &text.ids, score)?;
                }
            }
            Ok(())
        })?;
        progress(readings.get(end).map_or(questions.len(), |next| next.question), questions.len())?;
    }
    Ok(questions.iter().zip(found).map(|(question, found)| answer(question, &found)).collect())
}

/// What was read of one text.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    score: f64,
    rank: u32,
    greedy: bool,
}

impl Read {
    fn of(rows: &[&[f32]], ids: &[u32], score: Scoring) -> Result<Self> {
        let mut sum = 0.0;
        let mut greedy = true;
        for (logits, &id) in rows.iter().zip(ids) {
            if id as usize >= logits.len() {
                return Err(Error::request(format!("token {id} is not in the vocabulary of {}", logits.len())));
            }
            let logprob = f64::from(ranking::logprob(logits, id));
            if !logprob.is_finite() {
                return Err(Error::data("logits", format!("the log-probability of token {id} is not finite")));
            }
            sum += logprob;
            greedy &= ranking::rank(logits, id) == 0;
        }
        let length = if score == Scoring::Mean { ids.len() } else { 1 };
        let rank = rows.first().zip(ids.first()).map_or(0, |(logits, &id)| ranking::rank(logits, id));
        Ok(Self { score: sum / length as f64, rank, greedy })
    }
}

/// One row for all answers of one token, and a row for each of the longer ones.
fn readings((i, question): (usize, &Question)) -> Vec<Reading<'_>> {
    let texts = question.right.iter().chain(&question.wrong).enumerate();
    let (short, long): (Vec<_>, Vec<_>) = texts.partition(|(_, text)| text.ids.len() == 1);
    let mut readings = Vec::new();
    if !short.is_empty() {
        readings.push(Reading { question: i, ids: question.prompt.clone(), texts: short });
    }
    readings.extend(long.into_iter().map(|(place, text)| {
        let before = &text.ids[..text.ids.len() - 1];
        Reading { question: i, ids: [question.prompt.as_slice(), before].concat(), texts: vec![(place, text)] }
    }));
    readings
}

fn answer(question: &Question, found: &[Read]) -> Answer {
    let (right, wrong) = found.split_at(question.right.len());
    let best = right.iter().max_by(|a, b| a.score.total_cmp(&b.score)).copied().unwrap_or_default();
    let scores = |reads: &[Read]| reads.iter().map(|read| read.score).collect();
    Answer { right: scores(right), wrong: scores(wrong), rank: best.rank, greedy: best.greedy }
}

/// Questions of one kind, put to one model, with what it took.
pub struct Asked {
    /// The model.
    pub model: String,
    /// The suite.
    pub suite: String,
    /// How prompts were put.
    pub phrasing: String,
    /// Examples before each.
    pub shots: usize,
    /// The suite's templates.
    pub templates: Vec<String>,
    /// What was asked.
    pub questions: Vec<Question>,
    /// What was answered, one for each.
    pub answers: Vec<Answer>,
    /// Wall time, in seconds.
    pub seconds: f64,
}

/// The results, a row per model, suite, phrasing, number of examples, template (null: all of them) and metric.
///
/// | column | |
/// |---|---|
/// | `model`, `suite`, `phrasing`, `shots`, `template` | what was asked |
/// | `metric` | `accuracy`, and `chance`, what choosing blindly gets right; `logprob` of the right answer and `margin` over the best wrong one, in nats, means; `rank` of the right answer's first token, the median; `confidence`, mean probability of the choice among the choices; `ece`, expected calibration error in ten bins (Naeini et al. 2015); `brier` |
/// | `value`, `low`, `high` | with bounds of 95 %: Wilson's for `accuracy`, which is a share, the percentile bootstrap over questions for the others, which have none for a single question; null for `chance` and `ece` |
/// | `questions` | how many |
/// | `seconds`, `cost` | of all templates together; cost at a price per hour, null without one |
///
/// Suites without choices have no `chance`, `margin`, `confidence`, `ece` and `brier`.
///
/// # Errors
/// [`Error::Bug`] only.
pub fn summary(asked: &[Asked], seed: u64, price: Option<f64>) -> Result<DataFrame> {
    let mut rows: Vec<(usize, Option<usize>, &'static str, Interval, usize)> = Vec::new();
    for (i, one) in asked.iter().enumerate() {
        let judged: Vec<Judgement> = one.answers.iter().map(Answer::judge).collect();
        let several = if one.templates.len() > 1 { one.templates.len() } else { 0 };
        for template in std::iter::once(None).chain((0..several).map(Some)) {
            let among: Vec<Judgement> = judged
                .iter()
                .zip(&one.questions)
                .filter(|(_, question)| template.is_none_or(|template| question.template == template))
                .map(|(judgement, _)| *judgement)
                .collect();
            if !among.is_empty() {
                rows.extend(
                    metrics(&among, seed).into_iter().map(|(name, value)| (i, template, name, value, among.len())),
                );
            }
        }
    }
    let of = |f: &dyn Fn(&Asked) -> String| rows.iter().map(|row| f(&asked[row.0])).collect::<Vec<String>>();
    let bound = |f: fn(&Interval) -> Option<f64>| rows.iter().map(|row| f(&row.3)).collect::<Vec<_>>();
    let seconds = || rows.iter().map(|row| asked[row.0].seconds);
    Ok(df!(
        "model" => of(&|one| one.model.clone()),
        "suite" => of(&|one| one.suite.clone()),
        "phrasing" => of(&|one| one.phrasing.clone()),
        "shots" => rows.iter().map(|row| asked[row.0].shots as u32).collect::<Vec<_>>(),
        "template" => rows.iter().map(|row| row.1.map(|template| asked[row.0].templates[template].clone())).collect::<Vec<_>>(),
        "metric" => rows.iter().map(|row| row.2).collect::<Vec<_>>(),
        "value" => rows.iter().map(|row| row.3.mean).collect::<Vec<_>>(),
        "low" => bound(Interval::low),
        "high" => bound(Interval::high),
        "questions" => rows.iter().map(|row| row.4 as u32).collect::<Vec<_>>(),
        "seconds" => seconds().collect::<Vec<_>>(),
        "cost" => seconds().map(|seconds| price.map(|price| price * seconds / 3600.0)).collect::<Vec<_>>(),
    )?)
}

/// All metrics of questions, with their bounds. Nothing can be resampled of a single question, and no resample of few answers can
/// bring the calibration error down to 0.
fn metrics(judged: &[Judgement], seed: u64) -> Vec<(&'static str, Interval)> {
    let each = |f: &dyn Fn(&Judgement) -> Option<f64>| judged.iter().filter_map(f).collect::<Vec<f64>>();
    let bare = Interval::bare;
    let resampled = |values: &[f64]| stats::bootstrap(values, seed);
    let correct = judged.iter().filter(|one| one.correct).count();
    let mut found = vec![("accuracy", stats::wilson(correct, judged.len()))];
    let logprob = each(&|one| Some(one.logprob));
    let rank = each(&|one| Some(f64::from(one.rank)));
    let chance = each(&|one| one.chance);
    let choices = chance.len() == judged.len();
    if choices {
        found.push(("chance", bare(chance.iter().sum::<f64>() / chance.len() as f64)));
        found.push(("margin", resampled(&each(&|one| one.margin))));
    }
    found.push(("logprob", resampled(&logprob)));
    found.push(("rank", stats::bootstrap_of(&rank, seed, stats::median)));
    if choices {
        let confidence = each(&|one| one.confidence);
        found.push(("confidence", resampled(&confidence)));
        let hits: Vec<(f64, bool)> = judged.iter().zip(&confidence).map(|(one, p)| (*p, one.correct)).collect();
        found.push(("ece", bare(calibration_error(&hits))));
        found.push(("brier", resampled(&each(&|one| one.brier))));
    }
    found
}

/// Bins of the confidence.
const BINS: usize = 10;

fn calibration_error(hits: &[(f64, bool)]) -> f64 {
    let (confidence, correct): (Vec<f64>, Vec<bool>) = hits.iter().copied().unzip();
    let bins = scores::calibration(&confidence, &correct, BINS);
    bins.and_then(|bins| scores::calibration_error(&bins)).unwrap_or(f64::NAN)
}

/// Every question, a row each: what was asked, what was right, and what the answer is worth.
///
/// | column | |
/// |---|---|
/// | `model`, `suite`, `phrasing`, `shots`, `template`, `question` | which |
/// | `prompt`, `answer` | in words; the best right answer where several count |
/// | `correct`, `logprob`, `margin`, `rank`, `confidence`, `brier` | as in [`summary`]; null without choices |
/// | `choices`, `choice_logprobs` | right answers first; each with its score |
/// | `right` | how many of the choices are right |
///
/// # Errors
/// [`Error::Bug`] only.
pub fn questions(asked: &[Asked]) -> Result<DataFrame> {
    let rows: Vec<(&Asked, usize, Judgement)> =
        asked.iter().flat_map(|one| one.answers.iter().enumerate().map(move |(i, a)| (one, i, a.judge()))).collect();
    let words = |f: &dyn Fn(&Asked, &Question) -> String| {
        rows.iter().map(|(one, i, _)| f(one, &one.questions[*i])).collect::<Vec<String>>()
    };
    let judged = |f: &dyn Fn(&Judgement) -> Option<f64>| rows.iter().map(|(.., j)| f(j)).collect::<Vec<Option<f64>>>();
    let best = |one: &Asked, i: usize| {
        let scores = one.answers[i].right.iter().enumerate();
        let best = scores.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at);
        one.questions[i].right[best].text.clone()
    };
    let mut choices: ListStringChunkedBuilder =
        ListStringChunkedBuilder::new("choices".into(), rows.len(), rows.len() * 2);
    let mut scores: Vec<Series> = Vec::with_capacity(rows.len());
    for (one, i, _) in &rows {
        let (question, answer) = (&one.questions[*i], &one.answers[*i]);
        choices.append_values_iter(question.right.iter().chain(&question.wrong).map(|text| text.text.as_str()));
        scores.push(Series::new("".into(), [answer.right.as_slice(), &answer.wrong].concat()));
    }
    let mut frame = df!(
        "model" => words(&|one, _| one.model.clone()),
        "suite" => words(&|one, _| one.suite.clone()),
        "phrasing" => words(&|one, _| one.phrasing.clone()),
        "shots" => rows.iter().map(|(one, ..)| one.shots as u32).collect::<Vec<_>>(),
        "template" => words(&|one, question| one.templates[question.template].clone()),
        "question" => rows.iter().map(|(_, i, _)| *i as u32).collect::<Vec<_>>(),
        "prompt" => words(&|_, question| question.text.clone()),
        "answer" => rows.iter().map(|(one, i, _)| best(one, *i)).collect::<Vec<_>>(),
        "correct" => rows.iter().map(|(.., j)| j.correct).collect::<Vec<_>>(),
        "logprob" => rows.iter().map(|(.., j)| j.logprob).collect::<Vec<_>>(),
        "margin" => judged(&|j| j.margin),
        "rank" => rows.iter().map(|(.., j)| j.rank).collect::<Vec<_>>(),
        "confidence" => judged(&|j| j.confidence),
        "brier" => judged(&|j| j.brier),
        "right" => rows.iter().map(|(one, i, _)| one.questions[*i].right.len() as u32).collect::<Vec<_>>(),
    )?;
    frame.with_column(choices.finish().into_series().into())?;
    frame.with_column(Column::new("choice_logprobs".into(), scores))?;
    Ok(frame)
}
