//! Whether the model uses what a probe reads: its answers after the probe's direction is taken out of the activation, or turned
//! round.
//!
//! That labels can be read at a site says nothing of whether the model reads them (Elazar et al. 2021, "Amnesic Probing",
//! arXiv:2006.00995; Belinkov 2022, arXiv:2102.12452). So the activation that the probe reads is moved, the model goes on from
//! there, and its answer is measured; beside it the same is done along directions that mean nothing.

use candle_core::{Device, Tensor};
use ndarray::{Array2, Axis};
use polars::prelude::DataFrame;

use super::fitted::Probe;
use super::judge::{Score, judge};
use super::layers::{Kept, Studied, Study};
use super::table::Table;
use crate::direction::takes_directions;
use crate::edit::Edit;
use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::gpt2::{Gpt2, LogitsAt};
use crate::labelled::Labels;
use crate::memory;
use crate::metric::Metric;
use crate::plan::Plan;
use crate::random::{normal, stream};
use crate::site::Site;
use crate::stats::bootstrap;
use crate::subspace::{Subspace, dot};
use crate::target::Target;
use crate::tokens::{Tokens, batches};

/// Padded tokens that pass through the model at once.
const BATCH_TOKENS: usize = 4096;

/// How it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Prompts at most, of those that the probe was not fitted on.
    pub prompts: usize,
    /// Random directions that each move is compared with.
    pub draws: u64,
    /// Their seed.
    pub seed: u64,
}

/// A way to move activations: its name among the splits, and what is added to each.
struct Move {
    split: &'static str,
    by: Vec<Vec<f64>>,
}

/// What the model answers where activations at the probes' sites are moved, as rows of the frame of [`super::layers()`] with
/// `split` one of
///
/// - `clean`: nothing was moved
/// - `removed`: moved along the probe's directions to where the mean of all rows is, so that it reads nothing
/// - `flipped`: moved through the boundary of two classes to the same distance beyond it, so that it reads the other
/// - `mean_removed`, `mean_flipped`: the same along the difference of the means of classes; moved by all of it, to the other
/// - `random_removed`: random directions taken out, as many as the probe has
/// - `random_flipped`, `random_mean_flipped`: moved as far as by `flipped` and `mean_flipped`, each row to the same side as there, along
///   a random direction
///
/// and `metric` one of `logit_diff` (mean over prompts, and over draws of random directions; `logit_diff_low` and `_high` are where 95 %
/// of means over resampled prompts lie),
/// `answered` (the share of prompts whose answer is ahead), `kl` (from the clean distribution, nats), and for what was removed
/// the score of a new probe that is fitted on what is left. Each is moved at the site and at the token that the probe reads only.
///
/// `targets` has the answers of each prompt; rows and prompts must be the same in number. Sites that later ones do not depend
/// on are left out.
///
/// # Errors
/// [`Error::Request`] for tasks that read several tokens of a prompt, and what the model returns.
pub fn used(
    model: &Gpt2,
    (tokens, targets): (&Tokens, &[Target]),
    study: &Study<'_>,
    studied: &Studied,
    trial: &Trial,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<DataFrame> {
    let rows = study.rows;
    if rows.prompt.len() != tokens.len() || targets.len() != tokens.len() {
        return Err(Error::request(format!(
            "{} rows of {} prompts with {} answers: where one token of each is read, it can be tried what it is used for",
            rows.prompt.len(),
            tokens.len(),
            targets.len()
        )));
    }
    let mut table = Table::default();
    // Rows come in the order of their prompts; evenly from all that were held out.
    let held = &studied.split.test;
    let step = held.len().div_ceil(trial.prompts.max(1)).max(1);
    let chosen: Vec<usize> = held.iter().copied().step_by(step).collect();
    let own = Tokens::from_ids(chosen.iter().map(|row| tokens.row(rows.prompt[*row] as usize).to_vec()).collect())?;
    let asked = Asked {
        model,
        tokens: own,
        positions: chosen.iter().map(|row| rows.pos[*row] as usize).collect(),
        targets: chosen.iter().map(|row| &targets[rows.prompt[*row] as usize]).collect(),
    };
    let clean = [asked.logits(None)?];
    let all = study.sites.len();
    for (i, (site, kept)) in study.sites.iter().zip(&studied.kept).enumerate() {
        if takes_directions(*site) {
            let at = (study.name, *site);
            table.push(at, ("clean", trial.seed), asked.answers(&clean, &clean[0], trial.seed));
            let work = Work { study, studied, kept, x: &study.features[i], chosen: &chosen, trial };
            for (split, scores) in work.left()? {
                table.push(at, (split, trial.seed), scores);
            }
            for moves in work.moves()? {
                let logits =
                    moves.iter().map(|own| asked.logits(Some((*site, &own.by)))).collect::<Result<Vec<_>>>()?;
                if let Some(first) = moves.first() {
                    table.push(at, (first.split, trial.seed), asked.answers(&logits, &clean[0], trial.seed));
                }
            }
        }
        progress(i + 1, all)?;
    }
    table.frame()
}

/// Prompts with their answers, and where each is moved.
struct Asked<'a> {
    model: &'a Gpt2,
    tokens: Tokens,
    positions: Vec<usize>,
    targets: Vec<&'a Target>,
}

impl Asked<'_> {
    /// Logits after the last token of each prompt, with something added at a site or not.
    fn logits(&self, moved: Option<(Site, &[Vec<f64>])>) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        let lengths = (0..self.tokens.len()).map(|prompt| self.tokens.row(prompt).len());
        for batch in batches(lengths, BATCH_TOKENS) {
            memory::halving(batch, &mut |batch| {
                let tokens = self.tokens.slice(batch.clone());
                let mut plan = Plan::new().logits(LogitsAt::Last);
                if let Some((site, by)) = moved {
                    let (n, longest) = (tokens.len(), tokens.longest());
                    let shape = site.shape(&self.model.config().extents(n, longest, 0));
                    let width: usize = shape[2..].iter().product();
                    let mut value = vec![0.0_f32; n * longest * width];
                    for (prompt, row) in batch.clone().enumerate() {
                        let at = (prompt * longest + self.positions[row]) * width;
                        value[at..at + width].iter_mut().zip(&by[row]).for_each(|(value, by)| *value = *by as f32);
                    }
                    plan = plan.edit(Edit::add(site, &Tensor::from_vec(value, shape, &Device::Cpu)?));
                }
                let logits = to_f32(plan.run(self.model, &tokens)?.logits()?)?;
                all.extend(logits.chunks_exact(self.model.config().vocab_size).map(<[f32]>::to_vec));
                Ok(())
            })?;
        }
        Ok(all)
    }

    /// What is answered, over prompts and over draws of one kind of move.
    fn answers(&self, draws: &[Vec<Vec<f32>>], clean: &[Vec<f32>], seed: u64) -> Vec<Score> {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        // Per prompt, a value per draw.
        let of = |metric: Metric| -> Vec<Vec<f64>> {
            let each = |(i, target): (usize, &&Target)| {
                draws.iter().map(|logits| metric.of(&logits[i], &clean[i], target)).collect()
            };
            self.targets.iter().enumerate().map(each).collect()
        };
        let means = |values: &[Vec<f64>]| values.iter().map(|own| mean(own)).collect::<Vec<_>>();
        let (ahead, kl) = (of(Metric::LogitDiff), of(Metric::Kl));
        let interval = bootstrap(&means(&ahead), seed);
        let answered = ahead.concat().iter().filter(|x| **x > 0.0).count() as f64 / ahead.concat().len() as f64;
        let bounds = interval.bounds.map(|(low, high)| [("logit_diff_low", low), ("logit_diff_high", high)]);
        let scores = [("logit_diff", interval.mean), ("answered", answered), ("kl", mean(&means(&kl)))];
        scores.into_iter().chain(bounds.into_iter().flatten()).collect()
    }
}

/// One site.
struct Work<'a> {
    study: &'a Study<'a>,
    studied: &'a Studied,
    kept: &'a Kept,
    x: &'a Array2<f32>,
    chosen: &'a [usize],
    trial: &'a Trial,
}

impl Work<'_> {
    /// The mean of each class that there is among the rows to learn from.
    fn means(&self) -> Vec<Option<Vec<f64>>> {
        let Labels::Classes { names, of } = &self.study.rows.labels else { return Vec::new() };
        let mean = |class: usize| {
            let own: Vec<usize> = self.studied.split.train.iter().copied().filter(|row| of[*row] == class).collect();
            let mut sum = vec![0.0; self.x.ncols()];
            own.iter().for_each(|row| sum.iter_mut().zip(self.x.row(*row)).for_each(|(sum, x)| *sum += f64::from(*x)));
            (!own.is_empty()).then(|| sum.into_iter().map(|sum| sum / own.len() as f64).collect())
        };
        (0..names.len()).map(mean).collect()
    }

    /// The space that the means of classes differ in.
    fn between_means(&self) -> Subspace {
        let means: Vec<Vec<f64>> = self.means().into_iter().flatten().collect();
        let Some((first, others)) = means.split_first() else { return Subspace::spanned(&[]) };
        Subspace::spanned(
            &others.iter().map(|mean| mean.iter().zip(first).map(|(a, b)| a - b).collect()).collect::<Vec<_>>(),
        )
    }

    fn removal(&self, split: &'static str, space: &Subspace) -> Move {
        let center = self.kept.probe.center();
        let by = self.chosen.iter().map(|row| space.removal(&self.x.row(*row).to_vec(), center));
        Move { split, by: by.collect() }
    }

    /// All moves; several are draws of one kind.
    fn moves(&self) -> Result<Vec<Vec<Move>>> {
        let space = self.kept.probe.subspace();
        let mut rng =
            stream(self.trial.seed, "directions that mean nothing", self.kept.site.layer().unwrap_or(0) as u64);
        let mut all = vec![vec![self.removal("removed", &space)]];
        let draws = 0..self.trial.draws;
        let random: Vec<Subspace> =
            draws.clone().map(|_| Subspace::random(space.dimensions(), self.x.ncols(), &mut rng)).collect();
        all.push(random.iter().map(|space| self.removal("random_removed", space)).collect());
        let between = self.between_means();
        if between.dimensions() > 0 {
            all.push(vec![self.removal("mean_removed", &between)]);
        }
        for (flip, split) in [(self.flip()?, "random_flipped"), (self.mean_flip(), "random_mean_flipped")] {
            let Some(flip) = flip else { continue };
            // Rows that go one way along the first row's line go the same way at random, the others the other.
            let towards = flip.by.first().cloned().unwrap_or_default();
            let lengths: Vec<f64> = flip.by.iter().map(|by| dot(by, by).sqrt() * dot(by, &towards).signum()).collect();
            let away = |_| {
                let direction: Vec<f64> = (0..self.x.ncols()).map(|_| normal(&mut rng)).collect();
                let size = dot(&direction, &direction).sqrt();
                let by = lengths.iter().map(|length| direction.iter().map(|x| x * length / size).collect()).collect();
                Move { split, by }
            };
            let random: Vec<Move> = draws.clone().map(away).collect();
            all.extend([vec![flip], random]);
        }
        all.retain(|moves| !moves.is_empty());
        Ok(all)
    }

    /// To the other side of the boundary of two classes, as far from it.
    fn flip(&self) -> Result<Option<Move>> {
        let [direction] = &self.kept.probe.directions()[..] else { return Ok(None) };
        if matches!(self.study.rows.labels, Labels::Values(_)) {
            return Ok(None);
        }
        let scores = self.kept.probe.scores(self.x.view(), self.chosen)?;
        let square = dot(direction, direction);
        let over = |score: &f64| direction.iter().map(|x| -2.0 * score / square * x).collect();
        Ok(Some(Move { split: "flipped", by: scores.column(0).iter().map(over).collect() }))
    }

    /// By the difference of the means of two classes.
    fn mean_flip(&self) -> Option<Move> {
        let Labels::Classes { of, .. } = &self.study.rows.labels else { return None };
        let [Some(first), Some(second)] = &self.means()[..] else { return None };
        let to = |row: &usize| {
            let (from, to) = if of[*row] == 0 { (first, second) } else { (second, first) };
            to.iter().zip(from).map(|(to, from)| to - from).collect()
        };
        Some(Move { split: "mean_flipped", by: self.chosen.iter().map(to).collect() })
    }

    /// How well a new probe does on what is left at the site after a removal.
    fn left(&self) -> Result<Vec<(&'static str, Vec<Score>)>> {
        let probe = &self.kept.probe;
        let mut all = Vec::new();
        for (split, space) in [("removed", probe.subspace()), ("mean_removed", self.between_means())] {
            if space.dimensions() == 0 {
                continue;
            }
            let mut x = self.x.clone();
            for mut row in x.axis_iter_mut(Axis(0)) {
                let by = space.removal(&row.to_vec(), probe.center());
                row.iter_mut().zip(by).for_each(|(x, by)| *x = (f64::from(*x) + by) as f32);
            }
            let fitting = super::Fitting { alpha: probe.alpha, ..self.studied.fitting.clone() };
            let labels = &self.study.rows.labels;
            let again: Probe = fitting.fit(x.view(), labels, &self.studied.split.train)?;
            if !again.converged() {
                return Err(Error::request(format!(
                    "the probe of what is left at {} did not converge in {} iterations; raise --max-iterations or --alpha",
                    self.kept.site, fitting.max_iterations
                )));
            }
            all.push((split, judge(&again, x.view(), labels, &self.studied.split.test)?));
        }
        Ok(all)
    }
}
