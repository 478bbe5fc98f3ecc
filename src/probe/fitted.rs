//! One probe: what it was fitted with, and what it says.

use linfa::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::error::{Error, Result};
use crate::fit::linear;
use crate::fit::logistic::Logistic;
use crate::fit::means::Means;
use crate::fit::ridge::Ridge;
use crate::fit::standardiser::Standardiser;
use crate::folds::k_fold;
use crate::labelled::Labels;
use crate::scores::log_loss;
use crate::subspace::Subspace;

/// How probes are fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitting {
    /// Strength of the penalty: the sum of losses plus `alpha`/2 · |w|², 1/C in scikit-learn; for numbers, `alpha` · |w|².
    pub alpha: f64,
    /// A fit has converged where a step gains no more than this share of the objective.
    pub tolerance: f64,
    /// Steps at most.
    pub max_iterations: usize,
}

/// A fitted probe, with the standardiser of the rows that it was fitted on.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    pub(super) standardiser: Standardiser,
    /// For every score its weights, then its intercept, for rows on the standardiser's scale; none where all rows were of one
    /// class.
    pub(super) theta: Vec<f64>,
    pub(super) reads: Reads,
    /// The strength of the penalty.
    pub alpha: f64,
    pub(super) converged: bool,
}

/// What the scores of a probe stand for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reads {
    /// Classes, of which those were seen that are `present`: one score of the second for two, else one each.
    Classes { present: Vec<usize>, classes: usize },
    /// A number.
    Value,
}

impl Default for Fitting {
    fn default() -> Self {
        let own = Logistic::default();
        Self { alpha: 1.0, tolerance: own.tolerance, max_iterations: own.max_iterations }
    }
}

impl Fitting {
    /// Fits on some rows of `x`, `[row, d]`, standardised by these rows alone: logistic regression, softmax for more than two
    /// classes, ridge regression for numbers.
    ///
    /// # Errors
    /// As [`Logistic`] and [`Ridge`]: values that are not finite.
    pub fn fit(&self, x: ArrayView2<'_, f32>, labels: &Labels, rows: &[usize]) -> Result<Probe> {
        let of_classes = |x: Array2<f32>, targets: Array1<usize>| {
            let Self { alpha, tolerance, max_iterations } = *self;
            let fitted =
                Logistic { alpha, tolerance, max_iterations, softmax: false }.fit(&DatasetBase::new(x, targets))?;
            Ok((fitted.theta().to_vec(), fitted.report().converged))
        };
        Probe::fit(x, labels, rows, self.alpha, of_classes)
    }

    /// The strength of these that does best in cross-validation, groups kept together, on some rows; the strongest of equals.
    /// Judged by log-loss, or by squared error.
    ///
    /// # Errors
    /// As [`Fitting::fit`] and [`k_fold`].
    pub fn choose(
        &self,
        x: ArrayView2<'_, f32>,
        labels: &Labels,
        rows: &[usize],
        groups: &[u32],
        (alphas, folds): (&[f64], usize),
        seed: u64,
    ) -> Result<Self> {
        let at = |alpha: f64| Self { alpha, ..self.clone() };
        if let [alpha] = alphas {
            return Ok(at(*alpha));
        }
        let own: Vec<u32> = rows.iter().map(|row| groups[*row]).collect();
        let splits = k_fold(&own, folds, seed)?;
        let mut best: Option<(f64, f64)> = None;
        for &alpha in alphas {
            let mut loss = 0.0;
            for split in &splits {
                let of = |part: &[usize]| part.iter().map(|i| rows[*i]).collect::<Vec<_>>();
                let (train, test) = (of(&split.train), of(&split.test));
                loss += at(alpha).fit(x, labels, &train)?.loss(x, labels, &test)?;
            }
            let better = best.is_none_or(|(least, strongest)| loss < least || (loss == least && alpha > strongest));
            if better {
                best = Some((loss, alpha));
            }
        }
        best.map(|(_, alpha)| at(alpha))
            .ok_or_else(|| Error::request("there is no strength of the penalty to choose from"))
    }
}

impl Probe {
    /// Fits classes by `of_classes`, which takes rows and the numbers of their classes and gives back weights and whether it
    /// came to its end; numbers by ridge regression.
    fn fit(
        x: ArrayView2<'_, f32>,
        labels: &Labels,
        rows: &[usize],
        alpha: f64,
        of_classes: impl FnOnce(Array2<f32>, Array1<usize>) -> Result<(Vec<f64>, bool)>,
    ) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::request("there is no row to fit"));
        }
        let own = x.select(Axis(0), rows);
        let standardiser = Standardiser::new(own.view())?;
        let own = standardiser.apply(own.view())?;
        let (theta, converged, reads) = match labels.picked(rows) {
            Labels::Values(values) => {
                let fitted = Ridge { alpha }.fit(&DatasetBase::new(own, Array1::from(values)))?;
                (fitted.theta().to_vec(), true, Reads::Value)
            }
            Labels::Classes { names, of } => {
                let mut present = of.clone();
                present.sort_unstable();
                present.dedup();
                let place = |class: &usize| present.binary_search(class).unwrap_or_default();
                let (theta, converged) = match present.len() {
                    1 => (Vec::new(), true),
                    _ => of_classes(own, of.iter().map(place).collect())?,
                };
                (theta, converged, Reads::Classes { present, classes: names.len() })
            }
        };
        Ok(Self { standardiser, theta, reads, alpha, converged })
    }

    /// A probe that needs no search, as a baseline: linear discriminant analysis, or the difference of the means of two
    /// classes, for rows on the same scale as other probes have. None for numbers, and for other than two classes where the
    /// means of two are wanted.
    ///
    /// # Errors
    /// As [`Means::fit_rows`].
    pub fn of_means(means: Means, x: ArrayView2<'_, f32>, labels: &Labels, rows: &[usize]) -> Result<Option<Self>> {
        match labels {
            Labels::Values(_) => return Ok(None),
            Labels::Classes { names, .. } if means != Means::Discriminant && names.len() != 2 => return Ok(None),
            Labels::Classes { .. } => {}
        }
        let fit = |x: Array2<f32>, targets: Array1<usize>| {
            Ok((means.fit(&DatasetBase::new(x, targets))?.theta().to_vec(), true))
        };
        Self::fit(x, labels, rows, 0.0, fit).map(Some)
    }

    /// Features that it reads.
    pub fn width(&self) -> usize {
        self.standardiser.mean.len()
    }

    /// Decision values, `[row, score]`: for two classes the log-odds of the second, for more a score each, for numbers the
    /// prediction; nothing where all rows were of one class.
    ///
    /// # Errors
    /// [`Error::Request`] for rows of another width.
    pub fn scores(&self, x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Array2<f64>> {
        let own = self.standardiser.apply(x.select(Axis(0), rows).view())?;
        Ok(linear::scores(own.view(), &self.theta))
    }

    /// Probabilities of all classes, `[row, class]`; those of classes that were not seen are 0. Empty for numbers.
    ///
    /// # Errors
    /// [`Error::Request`] for rows of another width.
    pub fn probabilities(&self, x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Array2<f64>> {
        let Reads::Classes { present, classes } = &self.reads else { return Ok(Array2::zeros((rows.len(), 0))) };
        let mut all = Array2::zeros((rows.len(), *classes));
        if let [class] = present[..] {
            all.column_mut(class).fill(1.0);
            return Ok(all);
        }
        let own = linear::probabilities(self.scores(x, rows)?);
        for (class, column) in present.iter().zip(own.columns()) {
            all.column_mut(*class).assign(&column);
        }
        Ok(all)
    }

    /// Numbers that are predicted; none for classes.
    ///
    /// # Errors
    /// [`Error::Request`] for rows of another width.
    pub fn values(&self, x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Vec<f64>> {
        Ok(match &self.reads {
            Reads::Value => self.scores(x, rows)?.column(0).to_vec(),
            Reads::Classes { .. } => Vec::new(),
        })
    }

    /// Whether the fit came to its end.
    pub fn converged(&self) -> bool {
        self.converged
    }

    /// Weights for activations as they are, not standardised: a row per score.
    pub fn directions(&self) -> Vec<Vec<f64>> {
        let rows = self.theta.chunks_exact(self.width() + 1);
        let raw = |(weight, deviation): (&f64, &f64)| weight / deviation;
        rows.map(|row| row.iter().zip(&self.standardiser.deviation).map(raw).collect()).collect()
    }

    /// The smallest space of activations that tells the probe all it knows: moving at right angles to it changes no
    /// probability and no prediction.
    pub fn subspace(&self) -> Subspace {
        let mut all = self.directions();
        if all.len() > 1 {
            // What is added to all scores changes no probability.
            let mean: Vec<f64> =
                (0..self.width()).map(|i| all.iter().map(|row| row[i]).sum::<f64>() / all.len() as f64).collect();
            all.iter_mut().for_each(|row| row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean));
        }
        Subspace::spanned(&all)
    }

    /// The mean of the rows that it was fitted on.
    pub fn center(&self) -> &[f64] {
        &self.standardiser.mean
    }

    /// What cross-validation goes by.
    fn loss(&self, x: ArrayView2<'_, f32>, labels: &Labels, rows: &[usize]) -> Result<f64> {
        Ok(match labels.picked(rows) {
            Labels::Classes { of, .. } => {
                let p = self.probabilities(x, rows)?;
                let p: Vec<Vec<f64>> = p.outer_iter().map(|row| row.to_vec()).collect();
                log_loss(&p, &of).unwrap_or(f64::INFINITY) * rows.len() as f64
            }
            Labels::Values(wanted) => {
                self.values(x, rows)?.iter().zip(wanted).map(|(found, wanted)| (found - wanted).powi(2)).sum()
            }
        })
    }
}
