//! Probes of one task at many sites, with what they must be held against.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2};
use polars::prelude::*;

use super::controls::{control_task, selectivity, shuffled};
use super::fitted::{Fitting, Probe};
use super::judge::{Score, judge};
use super::mdl::online;
use super::table::Table;
use crate::error::{Error, Result};
use crate::fit::means::Means;
use crate::folds::{Split, hold_out};
use crate::labelled::{Labelled, Labels};
use crate::site::Site;

/// What is probed.
pub struct Study<'a> {
    /// The name of the task.
    pub name: &'a str,
    /// Where.
    pub sites: &'a [Site],
    /// What is there, `[row, d]` per site.
    pub features: &'a [Array2<f32>],
    /// What is there in a model of the same shape that has learned nothing, if that is to be compared.
    pub random: Option<&'a [Array2<f32>]>,
    /// What is to be read from it.
    pub rows: &'a Labelled,
}

/// How it is probed.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How probes are fitted.
    pub fitting: Fitting,
    /// Strengths of the penalty to choose from, by cross-validation among the rows to learn from.
    pub alphas: Vec<f64>,
    /// Folds of that cross-validation.
    pub folds: usize,
    /// Share of the rows to be judged on, about.
    pub test_share: f64,
    /// How many splits, each with its own control task.
    pub seeds: u64,
    /// The first of their seeds.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        let alphas = vec![0.1, 1.0, 10.0, 100.0, 1000.0];
        Self { fitting: Fitting::default(), alphas, folds: 3, test_share: 0.3, seeds: 5, seed: 0 }
    }
}

/// A probe that is kept, with how well it did on groups that it never saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Where it reads.
    pub site: Site,
    /// The probe.
    pub probe: Probe,
    /// Its scores there, by name.
    pub scores: BTreeMap<String, f64>,
}

/// What came out of [`layers()`].
pub struct Studied {
    /// All scores.
    pub frame: DataFrame,
    /// The probes of the first split, one per site.
    pub kept: Vec<Kept>,
    /// The first split.
    pub split: Split,
    /// How they were fitted, but for the penalty, which each has of its own.
    pub fitting: Fitting,
}

/// Fits a probe per site and split, and judges it on groups that it never saw: columns `probe`, `site`, `layer`, `split`, `seed`,
/// `metric`, `value`, with `split` one of
///
/// - `train`, `test`: the probe; of `train` also the chosen `alpha` and whether it `converged`; of `test` also `selectivity`
/// - `control`: the same on a control task
/// - `shuffled`: fitted on labels of other rows, judged on the real ones
/// - `majority`: the commonest class of the rows to learn from, or their mean
/// - `mass_mean`, `lda`: probes that need no search: the difference of the means of two classes (Marks & Tegmark 2023), and
///   linear discriminant analysis
/// - `random`: the probe on a model that has learned nothing
/// - `all`: the online code of all rows, `mdl` in bits and `compression`
///
/// `progress` is called after each probe with how many are done, and of how many.
///
/// # Errors
/// [`Error::Request`] for labels or groups that cannot be divided, and for a fit that did not converge: its scores would be
/// those of an unfinished probe.
pub fn layers(
    study: &Study<'_>,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Studied> {
    check(study, options)?;
    let mut table = Table::default();
    let (mut kept, mut first) = (Vec::new(), None);
    let (mut done, all) = (0, options.seeds as usize * study.sites.len());
    for seed in (0..options.seeds).map(|i| options.seed.wrapping_add(i)) {
        let split = hold_out(&study.rows.groups, options.test_share, seed)?;
        let control = control_task(study.rows, seed);
        for (i, site) in study.sites.iter().enumerate() {
            let work = Work { study, options, split: &split, seed, site: *site };
            let at = (study.name, *site);
            let x = study.features[i].view();
            let (probe, scores) = work.task(x, &mut table)?;
            let score = headline(&scores);
            if let Some(control) = &control {
                let found = work.fit_and_judge(x, control, &probe)?;
                if let (Some(task), Some(control)) = (score, headline(&found)) {
                    table.push(at, ("test", seed), [("selectivity", selectivity(task, control))]);
                }
                table.push(at, ("control", seed), found);
            }
            let labels = shuffled(&study.rows.labels, seed);
            let lost = work.fit(&work.fitting(&probe), x, &labels, &split.train)?;
            table.push(at, ("shuffled", seed), judge(&lost, x, &study.rows.labels, &split.test)?);
            table.push(at, ("majority", seed), [work.majority()]);
            for (name, means) in [("mass_mean", Means::Difference), ("lda", Means::Discriminant)] {
                if let Some(other) = Probe::of_means(means, x, &study.rows.labels, &split.train)? {
                    table.push(at, (name, seed), judge(&other, x, &study.rows.labels, &split.test)?);
                }
            }
            if let Some(random) = study.random {
                let found = work.fit_and_judge(random[i].view(), &study.rows.labels, &probe)?;
                table.push(at, ("random", seed), found);
            }
            if let Some(length) = online(x, study.rows, &work.fitting(&probe), seed)? {
                table.push(at, ("all", seed), [("mdl", length.bits), ("compression", length.compression)]);
            }
            if first.is_none() {
                let scores = scores.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
                kept.push(Kept { site: *site, probe, scores });
            }
            done += 1;
            progress(done, all)?;
        }
        first.get_or_insert(split);
    }
    let split = first.ok_or_else(|| Error::Bug("no split".into()))?;
    Ok(Studied { frame: table.frame()?, kept, split, fitting: options.fitting.clone() })
}

fn check(study: &Study<'_>, options: &Options) -> Result<()> {
    let rows = study.rows.labels.len();
    for (site, x) in study.sites.iter().zip(study.features) {
        if x.nrows() != rows {
            return Err(Error::Bug(format!("{} rows at {site} for {rows} labels", x.nrows())));
        }
        if let Some(((row, dim), value)) = x.indexed_iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::request(format!("row {row} of {site} has {value} at {dim}: there is nothing to fit")));
        }
    }
    if options.seeds == 0 || options.alphas.is_empty() {
        return Err(Error::request("a probe needs a seed and a strength of its penalty"));
    }
    match options.alphas.iter().find(|alpha| !(alpha.is_finite() && **alpha > 0.0)) {
        Some(alpha) => Err(Error::request(format!("a penalty of {alpha} is no positive number"))),
        None => Ok(()),
    }
}

/// The score that a probe goes by, where it is defined.
fn headline(scores: &[Score]) -> Option<f64> {
    scores.iter().find(|(name, _)| matches!(*name, "accuracy" | "r2")).map(|(_, value)| *value)
}

/// One site and one split.
struct Work<'a> {
    study: &'a Study<'a>,
    options: &'a Options,
    split: &'a Split,
    seed: u64,
    site: Site,
}

impl Work<'_> {
    /// Fits and judges the probe itself; its scores come back with it.
    fn task(&self, x: ArrayView2<'_, f32>, table: &mut Table) -> Result<(Probe, Vec<Score>)> {
        let Study { rows, .. } = self.study;
        let Split { train, test } = self.split;
        let chosen = (&self.options.alphas[..], self.options.folds);
        let fitting = self.options.fitting.choose(x, &rows.labels, train, &rows.groups, chosen, self.seed)?;
        let probe = self.fit(&fitting, x, &rows.labels, train)?;
        let scores = judge(&probe, x, &rows.labels, test)?;
        let at = (self.study.name, self.site);
        table.push(at, ("train", self.seed), judge(&probe, x, &rows.labels, train)?);
        table.push(at, ("train", self.seed), [("alpha", probe.alpha)]);
        table.push(at, ("test", self.seed), scores.clone());
        Ok((probe, scores))
    }

    fn fitting(&self, like: &Probe) -> Fitting {
        Fitting { alpha: like.alpha, ..self.options.fitting.clone() }
    }

    fn fit(&self, fitting: &Fitting, x: ArrayView2<'_, f32>, labels: &Labels, rows: &[usize]) -> Result<Probe> {
        let probe = fitting.fit(x, labels, rows)?;
        if !probe.converged() {
            return Err(Error::request(format!(
                "the probe at {} did not converge in {} iterations at alpha {}; raise --max-iterations or --alpha",
                self.site, fitting.max_iterations, fitting.alpha
            )));
        }
        Ok(probe)
    }

    fn fit_and_judge(&self, x: ArrayView2<'_, f32>, labels: &Labels, like: &Probe) -> Result<Vec<Score>> {
        let probe = self.fit(&self.fitting(like), x, labels, &self.split.train)?;
        judge(&probe, x, labels, &self.split.test)
    }

    /// What the commonest class gets right, or the R² of the mean.
    fn majority(&self) -> Score {
        match (self.study.rows.labels.picked(&self.split.train), self.study.rows.labels.picked(&self.split.test)) {
            (Labels::Classes { of, .. }, Labels::Classes { of: test, .. }) => {
                let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
                of.iter().for_each(|class| *counts.entry(*class).or_default() += 1);
                let commonest = counts.into_iter().max_by_key(|(class, count)| (*count, std::cmp::Reverse(*class)));
                let right = test.iter().filter(|class| commonest.is_some_and(|(own, _)| own == **class)).count();
                ("accuracy", right as f64 / test.len() as f64)
            }
            (Labels::Values(train), Labels::Values(test)) => {
                let mean = train.iter().sum::<f64>() / train.len() as f64;
                ("r2", crate::scores::r2(&test, &vec![mean; test.len()]).unwrap_or(f64::NAN))
            }
            _ => ("accuracy", f64::NAN),
        }
    }
}
