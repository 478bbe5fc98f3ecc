//! One probe: what it was fitted with, and what it says.

use linfa::DatasetBase;
use linfa::traits::{Fit, Predict};
use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::error::{Error, Result};
use crate::fit::logistic::{self, Logistic};
use crate::fit::ridge::{self, Ridge};
use crate::fit::standardiser::Standardiser;
use crate::folds::k_fold;
use crate::labelled::Labels;
use crate::scores::log_loss;

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
#[derive(Clone, Debug)]
pub struct Probe {
    standardiser: Standardiser,
    head: Head,
    /// The strength of the penalty.
    pub alpha: f64,
}

#[derive(Clone, Debug)]
enum Head {
    /// Of those classes that the rows had.
    Classes {
        fitted: logistic::Fitted,
        present: Vec<usize>,
        classes: usize,
    },
    /// All rows were of one class.
    Constant {
        class: usize,
        classes: usize,
    },
    Value(ridge::Fitted),
}

impl Default for Fitting {
    fn default() -> Self {
        let own = Logistic::default();
        Self { alpha: 1.0, tolerance: own.tolerance, max_iterations: own.max_iterations }
    }
}

impl Fitting {
    /// Fits on some rows of `x`, `[row, d]`, standardised by these rows alone.
    ///
    /// # Errors
    /// As [`Logistic`] and [`Ridge`]: values that are not finite.
    pub fn fit(&self, x: ArrayView2<'_, f32>, labels: &Labels, rows: &[usize]) -> Result<Probe> {
        let own = x.select(Axis(0), rows);
        let standardiser = Standardiser::new(own.view())?;
        let own = standardiser.apply(own.view())?;
        let head = match labels.picked(rows) {
            Labels::Values(values) => {
                let data = DatasetBase::new(own, Array1::from(values));
                Head::Value(Ridge { alpha: self.alpha }.fit(&data)?)
            }
            Labels::Classes { names, of } => {
                let mut present = of.clone();
                present.sort_unstable();
                present.dedup();
                let classes = names.len();
                match present[..] {
                    [] => return Err(Error::request("there is no row to fit")),
                    [class] => Head::Constant { class, classes },
                    _ => {
                        let place = |class: &usize| present.binary_search(class).unwrap_or_default();
                        let targets: Array1<usize> = of.iter().map(place).collect();
                        let Self { alpha, tolerance, max_iterations } = *self;
                        let fitting = Logistic { alpha, tolerance, max_iterations, softmax: false };
                        let fitted = fitting.fit(&DatasetBase::new(own, targets))?;
                        Head::Classes { fitted, present, classes }
                    }
                }
            }
        };
        Ok(Probe { standardiser, head, alpha: self.alpha })
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
    /// Rows as the probe wants them.
    fn rows(&self, x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Array2<f32>> {
        self.standardiser.apply(x.select(Axis(0), rows).view())
    }

    /// Probabilities of all classes, `[row, class]`; those of classes that were not seen are 0. Empty for numbers.
    ///
    /// # Errors
    /// [`Error::Request`] for rows of another width.
    pub fn probabilities(&self, x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Array2<f64>> {
        Ok(match &self.head {
            Head::Value(_) => Array2::zeros((rows.len(), 0)),
            Head::Constant { class, classes } => {
                let mut all = Array2::zeros((rows.len(), *classes));
                all.column_mut(*class).fill(1.0);
                all
            }
            Head::Classes { fitted, present, classes } => {
                let mut all = Array2::zeros((rows.len(), *classes));
                let own = fitted.probabilities(&self.rows(x, rows)?);
                for (class, column) in present.iter().zip(own.columns()) {
                    all.column_mut(*class).assign(&column);
                }
                all
            }
        })
    }

    /// Numbers that are predicted; none for classes.
    ///
    /// # Errors
    /// [`Error::Request`] for rows of another width.
    pub fn values(&self, x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Vec<f64>> {
        Ok(match &self.head {
            Head::Value(fitted) => fitted.predict(&self.rows(x, rows)?).to_vec(),
            _ => Vec::new(),
        })
    }

    /// Whether the fit came to its end.
    pub fn converged(&self) -> bool {
        match &self.head {
            Head::Classes { fitted, .. } => fitted.report().converged,
            Head::Constant { .. } | Head::Value(_) => true,
        }
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
