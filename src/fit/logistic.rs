//! Logistic regression with an L2 penalty: for two classes, and softmax for more.

use linfa::DatasetBase;
use linfa::traits::{Fit, PredictInplace};
use ndarray::{Array1, Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::features::Features;
use super::linear::{probabilities, scores, winner};
use super::newton::{Limits, minimise};
use super::objective::Objective;
use crate::error::{Error, Result};

pub use super::newton::Report;

/// Logistic regression: the smallest Σ loss + α/2·|w|², where the intercept is free.
///
/// α is 1/C of scikit-learn.
///
/// ```
/// use interp::fit::logistic::Logistic;
/// use linfa::traits::{Fit, Predict};
/// use ndarray::array;
///
/// # fn main() -> interp::Result<()> {
/// let rows = array![[0.0_f32, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]];
/// let data = linfa::DatasetBase::new(rows.clone(), array![0_usize, 0, 1, 1]);
/// let fitted = Logistic::new(1.0).fit(&data)?;
/// assert!(fitted.report().converged);
/// assert_eq!(fitted.predict(&rows), array![0, 0, 1, 1]);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logistic {
    /// The weight of the penalty.
    pub alpha: f64,
    /// The search ends where the objective is above its minimum by no more than this share of it, as far as that can be
    /// estimated.
    pub tolerance: f64,
    /// Steps after which it ends, converged or not.
    pub max_iterations: usize,
    /// Whether two classes have one score (that of class 1), as usual, or one each.
    pub softmax: bool,
}

impl Default for Logistic {
    fn default() -> Self {
        Self { alpha: 1.0, tolerance: 1e-8, max_iterations: 100, softmax: false }
    }
}

/// A fitted logistic regression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// For every score its weights, then its intercept.
    theta: Vec<f64>,
    classes: usize,
    features: usize,
    report: Report,
}

impl Logistic {
    /// With this weight of the penalty, and defaults for the rest.
    pub fn new(alpha: f64) -> Self {
        Self { alpha, ..Self::default() }
    }

    /// Fits rows of features to their classes, numbered from 0; every class up to the largest must occur.
    ///
    /// The search begins at the weights of `start`, if there are any: those of a similar penalty or of fewer rows. They
    /// change how long it takes and not where it ends.
    ///
    /// # Errors
    /// For no rows, values that are not finite, labels of another number than rows, fewer than two classes, a penalty
    /// that is not positive, or a `start` of another shape.
    pub fn fit_rows(&self, x: ArrayView2<'_, f32>, y: &[usize], start: Option<&Fitted>) -> Result<Fitted> {
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(Error::request(format!("alpha is {}; the penalty must be positive and finite", self.alpha)));
        }
        if y.len() != x.nrows() {
            return Err(Error::request(format!("{} rows of features, and {} labels", x.nrows(), y.len())));
        }
        let features = Features::new(x)?;
        let counts = counts(y)?;
        let (n, d) = features.shape();
        let scores = if counts.len() == 2 && !self.softmax { 1 } else { counts.len() };
        let theta = match start {
            Some(start)
                if (start.classes, start.features, start.theta.len()) == (counts.len(), d, scores * (d + 1)) =>
            {
                start.theta.clone()
            }
            Some(start) => {
                return Err(Error::request(format!(
                    "the start has {} classes and {} features; the data have {} and {d}",
                    start.classes,
                    start.features,
                    counts.len()
                )));
            }
            None => {
                let share = |class: usize| (counts[class] as f64 / n as f64).ln();
                let mean = (0..scores).map(share).sum::<f64>() / scores as f64;
                let mut theta = vec![0.0; scores * (d + 1)];
                for (class, theta) in theta.chunks_exact_mut(d + 1).enumerate() {
                    theta[d] = if scores == 1 { share(1) - share(0) } else { share(class) - mean };
                }
                theta
            }
        };
        let objective = Objective { x: &features, y, scores, alpha: self.alpha };
        let limits = Limits { tolerance: self.tolerance, iterations: self.max_iterations };
        let (theta, report) = minimise(&objective, theta, &limits);
        Ok(Fitted { theta, classes: counts.len(), features: d, report })
    }
}

/// How often each class occurs.
pub(super) fn counts(y: &[usize]) -> Result<Vec<usize>> {
    let classes = y.iter().max().map_or(0, |&last| last + 1);
    // A stray label must not become an allocation.
    if classes > y.len() {
        return Err(Error::request(format!(
            "label {} among {} rows: classes are numbered from 0",
            classes - 1,
            y.len()
        )));
    }
    let mut counts = vec![0; classes];
    y.iter().for_each(|&class| counts[class] += 1);
    if counts.iter().filter(|&&count| count > 0).count() < 2 {
        return Err(Error::request(format!("all {} rows are of one class; there must be two at least", y.len())));
    }
    match counts.iter().position(|&count| count == 0) {
        Some(missing) => {
            Err(Error::request(format!("no row is of class {missing}, and one is of class {}", classes - 1)))
        }
        None => Ok(counts),
    }
}

impl Fit<Array2<f32>, Array1<usize>, Error> for Logistic {
    type Object = Fitted;

    fn fit(&self, data: &DatasetBase<Array2<f32>, Array1<usize>>) -> Result<Fitted> {
        self.fit_rows(data.records.view(), &data.targets.to_vec(), None)
    }
}

impl Fitted {
    /// For every score its weights, then its intercept.
    pub fn theta(&self) -> &[f64] {
        &self.theta
    }

    /// How the fit went.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Weights, a row per score: one of class 1 for two classes, else one per class.
    pub fn weights(&self) -> Array2<f64> {
        let rows =
            self.theta.chunks_exact(self.features + 1).flat_map(|theta| &theta[..self.features]).copied().collect();
        Array2::from_shape_vec((self.theta.len() / (self.features + 1), self.features), rows).expect("a row per score")
    }

    /// Intercepts, one per score.
    pub fn intercept(&self) -> Array1<f64> {
        self.theta.chunks_exact(self.features + 1).map(|theta| theta[self.features]).collect()
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Decision values, a column per score: above 0 is class 1 for two classes, else the largest wins.
    ///
    /// # Panics
    /// If the rows have another number of features than those of the fit.
    pub fn scores(&self, x: &Array2<f32>) -> Array2<f64> {
        scores(x.view(), &self.theta)
    }

    /// The probability of every class, a column per class.
    ///
    /// # Panics
    /// If the rows have another number of features than those of the fit.
    pub fn probabilities(&self, x: &Array2<f32>) -> Array2<f64> {
        probabilities(self.scores(x))
    }
}

impl PredictInplace<Array2<f32>, Array1<usize>> for Fitted {
    fn predict_inplace(&self, x: &Array2<f32>, y: &mut Array1<usize>) {
        assert_eq!(x.nrows(), y.len(), "a prediction per row");
        y.iter_mut().zip(self.scores(x).rows()).for_each(|(y, scores)| *y = winner(scores));
    }

    fn default_target(&self, x: &Array2<f32>) -> Array1<usize> {
        Array1::zeros(x.nrows())
    }
}
