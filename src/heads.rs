//! An atlas of heads: what every one of them attends to, and what its weights copy.

use candle_core::{D, Tensor};
use nalgebra::{DMatrix, Schur};
use polars::prelude::*;
use rayon::prelude::*;

use crate::circuits::{Circuits, Heads};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::frame;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::ops;
use crate::plan::Plan;
use crate::random::{self, Rng};
use crate::site::Site;
use crate::text::Tokenizer;
use crate::tokens::Tokens;

/// The scores of an atlas, in the order of its columns.
pub const SCORES: [&str; 9] =
    ["previous", "duplicate", "induction", "current", "bos_share", "entropy", "distance", "copying", "copying_full"];

/// An atlas, with how the model did on what it read.
#[derive(Clone, Debug)]
pub struct Atlas {
    /// See [`atlas`].
    pub frame: DataFrame,
    /// Mean loss in nats of the token after each position of the repeated tokens; one less than there are positions.
    pub loss: Vec<f64>,
}

/// Random tokens, written twice: `sequences` rows of `2 · length` ids, without a token that starts the text.
///
/// Ids are drawn from `seed`, each as likely, out of those that the tokenizer knows, without those that start or end a text. Where
/// the context is shorter than two lengths, the length is half of it.
///
/// # Errors
/// [`Error::Request`] for no sequence, and for a length or a context that leaves less than two tokens to repeat.
pub fn repeated(
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    sequences: usize,
    length: usize,
    seed: u64,
) -> Result<Tokens> {
    let length = length.min(config.n_positions / 2);
    if length < 2 {
        let limit = config.n_positions / 2;
        return Err(Error::request(format!(
            "{length} tokens are too few to repeat; this model can repeat 2..={limit}"
        )));
    }
    let known = tokenizer.map_or(config.vocab_size, |t| t.vocab_size().min(config.vocab_size)) as u32;
    let ids: Vec<u32> = (0..known).filter(|id| !tokenizer.is_some_and(|t| t.is_boundary(*id))).collect();
    if ids.is_empty() {
        return Err(Error::request("the vocabulary holds no token to draw"));
    }
    let rows = (0..sequences).map(|sequence| {
        let mut rng = random::stream(seed, "repeated tokens", sequence as u64);
        let half: Vec<u32> = (0..length).map(|_| ids[rng.random_range(0..ids.len())]).collect();
        half.repeat(2)
    });
    Tokens::from_ids(rows.collect())
}

/// One row per head, one column per score.
///
/// | column | |
/// |---|---|
/// | `layer`, `head` | |
/// | `previous` | mean attention to the token before, on repeated tokens |
/// | `duplicate` | mean attention from the second half to the same token in the first |
/// | `induction` | mean attention from the second half to the token after that one |
/// | `current` | mean attention of a token to itself |
/// | `bos_share` | mean attention to position 0 |
/// | `entropy` | mean entropy of the attention, in nats |
/// | `distance` | mean distance of what is attended to, in tokens |
/// | `copying` | Re Σλ / Σ|λ| over the eigenvalues of W_V·W_O: 1 copies directions, −1 negates them |
/// | `copying_full` | the same of W_E·W_V·W_O·W_U, from tokens to logits, without the first layer's MLP |
///
/// The stripes `previous`, `duplicate`, `induction` and `current` are means along a diagonal of the pattern on `repeated`, as
/// in TransformerLens's Exploratory Analysis Demo. `bos_share`, `entropy` and `distance` are means over all queries but
/// the first of each prompt, which has nowhere else to look; of `text` where it is given, else of `repeated`. The
/// eigenvalues are those of the `head_dim` × `head_dim` products in the other order, which are the same but for zeros.
/// Copying is null for a head whose matrix is 0.
///
/// `progress` is called with the steps that are done and their number, and may stop the work.
///
/// # Errors
/// [`Error::Request`] for `repeated` rows that are not two equal halves, prompts of one token, or tokens that do not fit the
/// model; whatever `progress` returns.
pub fn atlas(
    model: &Gpt2,
    repeated: &Tokens,
    text: Option<&Tokens>,
    circuits: &Circuits<'_>,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Atlas> {
    let (layers, heads) = (model.config().n_layer, model.config().n_head);
    let total = layers * (repeated.len() + text.map_or(0, Tokens::len) + 1);
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, total)
    };
    for prompt in 0..repeated.len() {
        let (first, second) = repeated.row(prompt).split_at(repeated.row(prompt).len() / 2);
        if first != second || first.len() < 2 {
            return Err(Error::request(format!("row {prompt} is not a sequence of at least 2 tokens, written twice")));
        }
    }
    let (random, loss) = attention(model, repeated, true, &mut step)?;
    let read = match text {
        Some(text) => attention(model, text, false, &mut step)?.0,
        None => random.clone(),
    };
    let round_trip = circuits.round_trip()?;
    let (mut copying, mut copying_full) = (Vec::new(), Vec::new());
    for layer in 0..layers {
        let heads = circuits.layer(layer)?;
        copying.extend(positive_share(&heads.o.matmul(&heads.v)?)?);
        copying_full.extend(positive_share(&through(&heads, &round_trip)?)?);
        step()?;
    }
    let of = |sums: &[Sums], f: fn(&Sums) -> Mean| sums.iter().map(|s| f(s).value()).collect::<Vec<f64>>();
    let frame = df!(
        "layer" => (0..layers).flat_map(|layer| vec![layer as u32; heads]).collect::<Vec<_>>(),
        "head" => (0..layers).flat_map(|_| 0..heads as u32).collect::<Vec<_>>(),
        "previous" => of(&random, |s| s.previous),
        "duplicate" => of(&random, |s| s.duplicate),
        "induction" => of(&random, |s| s.induction),
        "current" => of(&random, |s| s.current),
        "bos_share" => of(&read, |s| s.first),
        "entropy" => of(&read, |s| s.entropy),
        "distance" => of(&read, |s| s.distance),
        "copying" => copying,
        "copying_full" => copying_full,
    )?;
    Ok(Atlas { frame, loss })
}

/// A mean in the making.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, x: f64) {
        self.sum += x;
        self.count += 1;
    }

    fn value(self) -> f64 {
        self.sum / f64::from(self.count)
    }
}

/// What is known of a head's attention.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    previous: Mean,
    duplicate: Mean,
    induction: Mean,
    current: Mean,
    first: Mean,
    entropy: Mean,
    distance: Mean,
}

impl Sums {
    /// Adds a pattern, `[length, length]`.
    fn add(&mut self, pattern: &[f32], length: usize) {
        let half = length / 2;
        for (query, row) in pattern.chunks_exact(length).enumerate() {
            let to = |back: usize| query.checked_sub(back).map(|key| f64::from(row[key]));
            self.current.add(f64::from(row[query]));
            if let Some(weight) = to(1) {
                self.previous.add(weight);
                self.first.add(f64::from(row[0]));
                let (mut entropy, mut distance) = (0.0, 0.0);
                for (key, &weight) in row[..=query].iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                    let weight = f64::from(weight);
                    entropy -= weight * weight.ln();
                    distance += weight * (query - key) as f64;
                }
                self.entropy.add(entropy);
                self.distance.add(distance);
            }
            if let Some(weight) = to(half) {
                self.duplicate.add(weight);
            }
            if let Some(weight) = to(half - 1) {
                self.induction.add(weight);
            }
        }
    }
}

/// The sums of every head, layer by layer, over all prompts; and the mean loss by position where it is wanted.
///
/// One prompt at a time, and one layer of it: a pattern is as large as its prompt is long, squared, for every head.
fn attention(
    model: &Gpt2,
    tokens: &Tokens,
    with_loss: bool,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<Sums>, Vec<f64>)> {
    let (layers, heads) = (model.config().n_layer, model.config().n_head);
    let mut sums = vec![Sums::default(); layers * heads];
    let mut loss = vec![Mean::default(); tokens.longest() - 1];
    let plan = Plan::new().reads((0..layers).map(Site::Pattern)).logits(LogitsAt::None);
    tokens.check(model.config(), 0)?;
    for prompt in 0..tokens.len() {
        let row = tokens.row(prompt);
        let length = row.len();
        if length < 2 {
            return Err(Error::request(format!("prompt {prompt} has {length} token; heads need at least 2 to choose")));
        }
        let trace = plan.run_each(model, &tokens.only(prompt), &mut |site, pattern| {
            let first = site.layer().unwrap_or(0) * heads;
            let values = frame::to_f32(pattern)?; // [1, head, length, length]
            let patterns = values.par_chunks_exact(length * length);
            sums[first..first + heads].par_iter_mut().zip(patterns).for_each(|(sums, map)| sums.add(map, length));
            step()
        })?;
        if with_loss {
            let logits = model.unembed(&trace.resid().narrow(1, 0, length - 1)?)?.squeeze(0)?;
            let losses = frame::to_f32(&ops::cross_entropy(&logits, row[1..].to_vec())?)?;
            loss.iter_mut().zip(losses).for_each(|(mean, loss)| mean.add(f64::from(loss)));
        }
    }
    let loss = if with_loss { loss.into_iter().map(Mean::value).collect() } else { Vec::new() };
    Ok((sums, loss))
}

/// W_O·M·W_V of each head: `[head, head_dim, head_dim]`.
fn through(heads: &Heads, middle: &Tensor) -> Result<Tensor> {
    let (count, width, dim) = heads.o.dims3()?;
    let o = heads.o.reshape((count * width, dim))?;
    let o = ops::linear_t(&o, &middle.t()?.contiguous()?)?; // one product for all heads
    Ok(o.reshape((count, width, dim))?.matmul(&heads.v)?)
}

/// Re Σλ / Σ|λ| over the eigenvalues of each matrix of `[head, n, n]`; None for one that is 0 or not finite.
fn positive_share(matrices: &Tensor) -> Result<Vec<Option<f64>>> {
    let n = matrices.dim(D::Minus1)?;
    let values = frame::to_f32(matrices)?;
    let shares = values.par_chunks_exact(n * n).map(|matrix| {
        let matrix = DMatrix::from_row_iterator(n, n, matrix.iter().map(|&x| f64::from(x)));
        let size = matrix.norm();
        if size == 0.0 || !size.is_finite() {
            return Ok(None);
        }
        // With a bound on its steps: on some matrices an unbounded iteration never ends, and a wider tolerance does it.
        let scaled = matrix / size;
        let schur = |tolerance: f64| Schur::try_new(scaled.clone(), tolerance, 200 * n.max(50));
        let schur = [f64::EPSILON, 1e-14, 1e-12, 1e-10].into_iter().find_map(schur);
        let schur =
            schur.ok_or_else(|| Error::Bug(format!("the eigenvalues of a {n} × {n} matrix did not converge")))?;
        let eigenvalues = schur.complex_eigenvalues();
        let total: f64 = eigenvalues.iter().map(|x| x.re.hypot(x.im)).sum();
        Ok((total > 0.0).then(|| eigenvalues.iter().map(|x| x.re).sum::<f64>() / total))
    });
    shares.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rotations_copy_as_far_as_they_do_not_turn() {
        let (sin, cos) = 1.0_f32.sin_cos();
        let matrices =
            [1.0, 0.0, 0.0, 1.0, -2.0, 0.0, 0.0, -1.0, cos, -sin, sin, cos, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, -1.0];
        let found = positive_share(&Tensor::new(&matrices, &Device::Cpu).unwrap().reshape((5, 2, 2)).unwrap()).unwrap();
        let wanted = [Some(1.0), Some(-1.0), Some(f64::from(cos)), None, Some(0.5)];
        for (found, wanted) in found.into_iter().zip(wanted) {
            assert_eq!(found.is_some(), wanted.is_some());
            assert!((found.unwrap_or(0.0) - wanted.unwrap_or(0.0)).abs() < 1e-5, "{found:?} {wanted:?}");
        }
    }

    #[test]
    fn a_uniform_pattern_has_the_entropy_and_distance_of_its_positions() {
        let pattern: Vec<f32> =
            (0..4).flat_map(|q| (0..4).map(move |k| if k <= q { 1.0 / (q + 1) as f32 } else { 0.0 })).collect();
        let mut sums = Sums::default();
        sums.add(&pattern, 4);
        let close = |mean: Mean, wanted: f64| assert!((mean.value() - wanted).abs() < 1e-5, "{mean:?} {wanted}");
        close(sums.entropy, (2.0_f64.ln() + 3.0_f64.ln() + 4.0_f64.ln()) / 3.0);
        close(sums.distance, (0.5 + 1.0 + 1.5) / 3.0);
        close(sums.first, (1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0) / 3.0);
        close(sums.current, (1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0) / 4.0);
        close(sums.previous, (1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0) / 3.0);
        close(sums.duplicate, (1.0 / 3.0 + 1.0 / 4.0) / 2.0);
    }
}
