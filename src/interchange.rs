//! Interchange interventions along a subspace: what of one run's activation another run takes over (Geiger et al. 2021), and
//! the rotation that is trained so that a few dimensions carry one binary variable (distributed alignment search, Geiger et
//! al. 2024).

use candle_core::{DType, Tensor, Var};
use polars::prelude::{DataFrame, df};

use crate::edit::Edit;
use crate::effect::{Effect, Scale, over_pairs, why_meaningless};
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::memory;
use crate::metric::{Measures, Metric};
use crate::pair::Pair;
use crate::plan::{Plan, Trace};
use crate::random::{SliceRandom, normal, stream};
use crate::site::{Site, resolve_index};
use crate::subspace::Subspace;
use crate::tokens::Tokens;

/// Tokens of pairs that pass through the model at once.
const BATCH_TOKENS: usize = 512;
/// Pairs of a training step.
const BATCH: usize = 16;
/// Share of the last step's direction that the next one keeps.
const MOMENTUM: f64 = 0.9;
/// How far the first step turns the subspace, in radians about; later ones less, down to none.
const TURN: f64 = 0.3;

/// What of the activation is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What lies in the subspace.
    Along,
    /// What lies at right angles to it.
    Across,
    /// All of it.
    Whole,
}

/// Pairs of one length, with their activations at one place.
pub struct Interchange<'a> {
    model: &'a Gpt2,
    pairs: &'a [Pair],
    site: Site,
    pos: usize,
    clean: Side,
    corrupt: Side,
    /// Pairs that may pass at once.
    at_once: usize,
}

/// The clean or the corrupted runs.
struct Side {
    tokens: Tokens,
    /// `resid_pre` of the layer of the site, `[pair, pos, dim]`.
    resid: Tensor,
    /// The activation, `[pair, 1, dim]`.
    value: Tensor,
    logit_diff: Vec<f64>,
    /// What rounding may make of a difference of logit differences, by pair, as far as this side's logits say.
    rounding: Vec<f64>,
}

impl<'a> Interchange<'a> {
    /// Runs all pairs. Negative positions count from the end.
    ///
    /// # Errors
    /// [`Error::Request`] for no pair, pairs of different lengths, noise, a site that is no stream of a layer, and a position that
    /// the prompts do not have; [`Error::TryAgain`] where one pair takes more than `room` bytes; faults of the prompts.
    pub fn new(model: &'a Gpt2, pairs: &'a [Pair], site: Site, pos: i64, room: Option<u64>) -> Result<Self> {
        let Some(first) = pairs.first() else { return Err(Error::request("there is no pair")) };
        if let Some(other) = pairs.iter().find(|pair| pair.len() != first.len()) {
            return Err(Error::request(format!(
                "pairs of {} and of {} tokens: a place in the prompt needs pairs of one length (--template N draws such pairs)",
                first.len(),
                other.len()
            )));
        }
        pairs.iter().try_for_each(Pair::check_prompts)?;
        let layer = match site {
            Site::ResidPre(l) | Site::ResidMid(l) | Site::ResidPost(l) | Site::AttnOut(l) | Site::MlpOut(l) => l,
            _ => {
                return Err(Error::request(format!(
                    "`{site}` is no stream: subspaces are of resid_pre, resid_mid, resid_post, attn_out and mlp_out"
                )));
            }
        };
        let pos = resolve_index("pos", pos, first.len())?;
        let (config, length) = (model.config(), first.len());
        // Both sides keep a stream of every pair.
        let held = (2 * 4 * pairs.len() * (length + 1) * config.n_embd) as u64;
        memory::check_left("what every pair leaves", held, room)?;
        let each = config.gradient_memory(1, length);
        let at_once = memory::at_once("one pair", each, BATCH_TOKENS / length, room.map(|room| room - held))?;
        let side = |of: fn(&Pair) -> &Tokens| -> Result<Side> {
            let tokens = Tokens::from_ids(pairs.iter().map(|pair| of(pair).row(0).to_vec()).collect())?;
            let (mut values, mut logit_diff, mut rounding) = (Vec::new(), Vec::new(), Vec::new());
            let streams = memory::in_batches(pairs.len(), at_once, &mut |part| {
                let plan = Plan::new().reads([site, Site::ResidPre(layer)]).logits(LogitsAt::Last);
                let trace = plan.run(model, &tokens.slice(part.clone()))?;
                values.push(trace.get(site)?.narrow(1, pos, 1)?.contiguous()?);
                logit_diff.extend(logit_diffs(&trace, &pairs[part.clone()])?);
                let logits = to_f32(trace.logits()?)?;
                for (row, pair) in logits.chunks_exact(config.vocab_size).zip(&pairs[part]) {
                    rounding
                        .push(Measures::new(row).rounding(pair.target(), model.dtype())[Metric::LogitDiff as usize]);
                }
                Ok(vec![trace.get(Site::ResidPre(layer))?.clone()])
            })?;
            let (resid, value) = (Tensor::cat(&streams, 0)?, Tensor::cat(&values, 0)?);
            Ok(Side { tokens, resid, value, logit_diff, rounding })
        };
        Ok(Self { model, pairs, site, pos, clean: side(Pair::clean)?, corrupt: side(Pair::corrupt)?, at_once })
    }

    /// What activations differ by, clean less corrupted, by pair.
    ///
    /// # Errors
    /// As candle.
    pub fn differences(&self) -> Result<Vec<Vec<f64>>> {
        let difference = to_f32(&(&self.clean.value - &self.corrupt.value)?)?;
        let width = self.model.config().n_embd;
        Ok(difference.chunks_exact(width).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect())
    }

    /// The logit difference of every pair, corrupted and clean.
    pub fn ends(&self) -> (&[f64], &[f64]) {
        (&self.corrupt.logit_diff, &self.clean.logit_diff)
    }

    /// What effects on the logit difference of every pair are measured by: 0 is the corrupted run, 1 the clean one.
    pub fn scales(&self) -> Vec<Scale> {
        let ends = self.corrupt.logit_diff.iter().zip(&self.clean.logit_diff).zip(&self.clean.rounding);
        ends.map(|((&base, &source), &rounding)| Scale { base, source, rounding }).collect()
    }

    /// The logit difference of every corrupted run that takes over a part of the clean run's activation.
    ///
    /// # Errors
    /// [`Error::Request`] for a subspace of another width.
    pub fn patched(&self, subspace: &Subspace, part: Part) -> Result<Vec<f64>> {
        let basis = self.basis(subspace)?;
        memory::in_batches(self.pairs.len(), self.at_once, &mut |rows| {
            let all: Vec<u32> = rows.clone().map(|row| row as u32).collect();
            logit_diffs(&self.run(&self.corrupt, &self.clean, &all, &basis, part)?, &self.pairs[rows])
        })
    }

    fn basis(&self, subspace: &Subspace) -> Result<Tensor> {
        let width = self.model.config().n_embd;
        if subspace.dimensions() == 0 || subspace.basis().iter().any(|row| row.len() != width) {
            let own = subspace.basis().first().map_or(0, Vec::len);
            return Err(Error::request(format!("a subspace of {own} coordinates does not fit a stream of {width}")));
        }
        let values: Vec<f32> = subspace.basis().iter().flatten().map(|x| *x as f32).collect();
        Ok(Tensor::from_vec(values, (subspace.dimensions(), width), self.model.device())?)
    }

    /// Runs of one side, from the layer of the site on, which take over a part of the other side's activation.
    fn run(&self, base: &Side, source: &Side, rows: &[u32], basis: &Tensor, part: Part) -> Result<Trace> {
        let index = Tensor::new(rows, self.model.device())?;
        let select = |x: &Tensor| x.index_select(&index, 0);
        let tokens = Tokens::from_ids(rows.iter().map(|row| base.tokens.row(*row as usize).to_vec()).collect())?;
        let (source, basis) = (select(&source.value)?.to_dtype(DType::F32)?, basis.clone());
        let taken = move |own: &Tensor| -> Result<Tensor> {
            let (n, one, width) = own.dims3()?;
            let away = (&source - own.to_dtype(DType::F32)?)?.reshape((n * one, width))?;
            let along = away.matmul(&basis.t()?)?.matmul(&basis)?;
            let moved = match part {
                Part::Along => along,
                Part::Across => (away - along)?,
                Part::Whole => away,
            };
            Ok((own + moved.reshape((n, one, width))?.to_dtype(own.dtype())?)?)
        };
        let layer = self.site.layer().unwrap_or(0);
        Plan::new()
            .from(layer, &select(&base.resid)?)
            .edit(Edit::map(self.site, taken).pos(self.pos))
            .logits(LogitsAt::Last)
            .run(self.model, &tokens)
    }

    /// Trains a subspace of so many dimensions: taking over what lies in it has to turn the answer, in either direction. It
    /// starts from the principal directions of the differences and descends the mean of log(1 + e^−x), where x is the logit
    /// difference in favour of the other run's answer; `progress(done, all)` counts steps.
    ///
    /// Returns it with the loss of every step.
    ///
    /// # Errors
    /// [`Error::Request`] for no dimension or more than the stream has, no steps, and what `progress` returns.
    pub fn train(
        &self,
        dimensions: usize,
        steps: usize,
        seed: u64,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<(Subspace, Vec<f64>)> {
        let width = self.model.config().n_embd;
        if dimensions == 0 || dimensions > width || steps == 0 {
            return Err(Error::request(format!(
                "{dimensions} dimensions of {width} in {steps} steps: give 1 to {width}, and at least one step"
            )));
        }
        let differences = self.differences()?;
        if differences.iter().flatten().all(|x| *x == 0.0) {
            return Err(Error::request(format!(
                "clean and corrupted runs do not differ at {}, position {}: there is nothing to take over",
                self.site, self.pos
            )));
        }
        let mut rng = stream(seed, "subspace", 0);
        let mut subspace = Subspace::principal(&differences, dimensions);
        // Fewer pairs than dimensions leave the rest to chance.
        while subspace.dimensions() < dimensions {
            let more = [subspace.basis(), &[(0..width).map(|_| normal(&mut rng)).collect()]].concat();
            subspace = Subspace::spanned(&more);
        }
        let mut momentum = vec![vec![0.0; width]; dimensions];
        let mut losses = Vec::with_capacity(steps);
        let mut order: Vec<u32> = (0..self.pairs.len() as u32).collect();
        for step in 0..steps {
            order.shuffle(&mut rng);
            let rows = &order[..order.len().min(BATCH)];
            let (mut loss, mut gradient) = (0.0, vec![vec![0.0; width]; dimensions]);
            memory::in_parts(rows.len(), self.at_once, &mut |part| {
                let (own, by_basis) = self.slopes(&subspace, &rows[part], rows.len())?;
                loss += own;
                for (sum, row) in gradient.iter_mut().zip(by_basis) {
                    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
                Ok(())
            })?;
            losses.push(loss);
            let turn = TURN * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
            subspace = descend(&subspace, gradient, &mut momentum, turn);
            progress(step + 1, steps)?;
        }
        Ok((subspace, losses))
    }

    /// The loss of some pairs, as a part of the mean over both directions of `of` pairs, and its slopes by the basis.
    fn slopes(&self, subspace: &Subspace, rows: &[u32], of: usize) -> Result<(f64, Vec<Vec<f64>>)> {
        let vocab = self.model.config().vocab_size;
        let basis = Var::from_tensor(&self.basis(subspace)?)?;
        let pairs: Vec<Pair> = rows.iter().map(|row| self.pairs[*row as usize].clone()).collect();
        let (n, mut loss) = (2.0 * of as f64, 0.0);
        let mut gradient = vec![vec![0.0; self.model.config().n_embd]; subspace.dimensions()];
        for (base, source, sign) in [(&self.corrupt, &self.clean, 1.0), (&self.clean, &self.corrupt, -1.0)] {
            let trace = self.run(base, source, rows, basis.as_tensor(), Part::Along)?;
            // d log(1 + e^−x) / dx = −1 / (1 + eˣ)
            let mut slopes = Vec::new();
            for (value, pair) in logit_diffs(&trace, &pairs)?.into_iter().zip(&pairs) {
                let x = sign * value;
                loss += ((-x).max(0.0) + (-x.abs()).exp().ln_1p()) / n;
                let slope = -sign / (1.0 + x.exp()) / n;
                let by_logits = Metric::LogitDiff.gradient(&vec![0.0; vocab], &[], pair.target())?;
                slopes.extend(by_logits.into_iter().map(|x| x * slope));
            }
            let (sloped, scale) = trace.with_slopes(&slopes)?;
            let grads = sloped.backward()?;
            let grads = grads.get(basis.as_tensor()).ok_or_else(|| Error::Bug("no way to the basis".into()))?;
            for (sum, row) in gradient.iter_mut().zip(grads.to_dtype(DType::F64)?.to_vec2::<f64>()?) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += scale * x);
            }
        }
        Ok((loss, gradient))
    }
}

/// One step on the manifold of subspaces: the gradient without what only turns the subspace within itself, with momentum, of a
/// given length; then at right angles again.
fn descend(subspace: &Subspace, gradient: Vec<Vec<f64>>, momentum: &mut [Vec<f64>], turn: f64) -> Subspace {
    let basis = subspace.basis();
    let dot = crate::subspace::dot;
    for (momentum, gradient) in momentum.iter_mut().zip(&gradient) {
        momentum.iter_mut().zip(gradient).for_each(|(momentum, g)| *momentum = MOMENTUM * *momentum + g);
        for own in basis {
            let along = dot(momentum, own);
            momentum.iter_mut().zip(own).for_each(|(momentum, own)| *momentum -= along * own);
        }
    }
    let length = momentum.iter().map(|row| dot(row, row)).sum::<f64>().sqrt();
    if length == 0.0 {
        return subspace.clone();
    }
    let moved = |(own, momentum): (&Vec<f64>, &Vec<f64>)| {
        own.iter().zip(momentum).map(|(own, momentum)| own - turn * momentum / length).collect()
    };
    Subspace::spanned(&basis.iter().zip(&*momentum).map(moved).collect::<Vec<_>>())
}

/// The logit difference of each row.
fn logit_diffs(trace: &Trace, pairs: &[Pair]) -> Result<Vec<f64>> {
    let logits = trace.logits()?;
    let vocab = logits.dim(2)?;
    let all = to_f32(logits)?;
    Ok(all.chunks_exact(vocab).zip(pairs).map(|(row, pair)| Metric::LogitDiff.of(row, &[], pair.target())).collect())
}

/// Logit differences of some interventions as a frame, with what is left of the effect on the answer.
///
/// | column | |
/// |---|---|
/// | `part` | what was taken over |
/// | `pair` | which; null in the rows that sum up |
/// | `logit_diff` | after it |
/// | `effect` | 0 for the corrupted run, 1 for the clean one; null where these differ by no more than rounding ([`Measures::rounding`]); summed up: the ratio of means |
/// | `low`, `high`, `p` | of the summed effect, where there are several pairs: its 95 % bootstrap interval, and how likely one as far from 0 is by chance ([`Effect`]) |
///
/// # Errors
/// [`Error::Request`] where clean and corrupted runs answer alike.
pub fn frame(parts: &[(String, Vec<f64>)], scales: &[Scale], seed: u64) -> Result<DataFrame> {
    if let Some(why) = why_meaningless(scales, []) {
        return Err(Error::request(format!("nothing could be taken over: {why}; give other pairs")));
    }
    type Row = (String, Option<u32>, f64, Option<f64>, Option<Effect>);
    let mut rows: Vec<Row> = Vec::new();
    for (name, values) in parts {
        let sure = over_pairs(scales, values, seed);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let several = sure.filter(|_| scales.len() > 1);
        rows.push((name.clone(), None, mean, sure.map(|effect| effect.interval.mean), several));
    }
    for (name, values) in parts {
        for (i, (value, scale)) in values.iter().zip(scales).enumerate() {
            rows.push((name.clone(), Some(i as u32), *value, scale.effect(*value), None));
        }
    }
    Ok(df!(
        "part" => rows.iter().map(|row| row.0.clone()).collect::<Vec<_>>(),
        "pair" => rows.iter().map(|row| row.1).collect::<Vec<_>>(),
        "logit_diff" => rows.iter().map(|row| row.2).collect::<Vec<_>>(),
        "effect" => rows.iter().map(|row| row.3).collect::<Vec<_>>(),
        "low" => rows.iter().map(|row| row.4.and_then(|effect| effect.interval.low())).collect::<Vec<_>>(),
        "high" => rows.iter().map(|row| row.4.and_then(|effect| effect.interval.high())).collect::<Vec<_>>(),
        "p" => rows.iter().map(|row| row.4.map(|effect| effect.p)).collect::<Vec<_>>(),
    )?)
}
