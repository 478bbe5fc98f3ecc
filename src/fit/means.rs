//! Probes that need no search: directions between class means, as they are or seen through the covariance within classes.

use linfa::DatasetBase;
use linfa::traits::{Fit, PredictInplace};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::block::{add_scaled, blocks, dot, sum};
use super::cholesky::Cholesky;
use super::features::Features;
use super::gram;
use super::linear::{probabilities, scores, winner};
use super::logistic::counts;
use crate::error::{Error, Result};

/// The least pivot of the covariance, beside its diagonal, that has digits.
const PIVOT: f64 = 1e-11;

/// What is added to the diagonal of a singular covariance, as a share of its mean.
const LIFT: f64 = 1e-9;

/// Probes from class means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Means {
    /// Two classes: along the difference of their means (mass-mean probing, Marks & Tegmark 2023), with the threshold halfway
    /// between them.
    #[default]
    Difference,
    /// Two classes: that difference through the inverse of the covariance within classes, with the threshold halfway between
    /// the means. It is [`Means::Discriminant`] without the shares of classes.
    Whitened,
    /// Linear discriminant analysis for any number of classes, as scikit-learn's with the solvers `lsqr` and `eigen`
    /// without shrinkage: Gaussian classes of one covariance, with their shares of the rows as priors.
    ///
    /// The covariance is over n. Where it is singular (more features than rows, features that depend on each other), 1e-9 of
    /// the mean of its diagonal is added to the diagonal (more, if rounding is larger); scikit-learn takes a pseudo-inverse.
    Discriminant,
}

/// A fitted probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// For every score its weights, then its intercept; one score (of class 1) for two classes.
    theta: Vec<f64>,
    classes: usize,
    /// Whether the covariance was singular, and its diagonal lifted.
    pub lifted: bool,
}

impl Means {
    /// Fits rows of features to their classes, numbered from 0; every class up to the largest must occur.
    ///
    /// # Errors
    /// For no rows, values that are not finite, labels of another number than rows, fewer than two classes, or more than two
    /// for a probe that is for two.
    pub fn fit_rows(&self, x: ArrayView2<'_, f32>, y: &[usize]) -> Result<Fitted> {
        if y.len() != x.nrows() {
            return Err(Error::request(format!("{} rows of features, and {} labels", x.nrows(), y.len())));
        }
        let features = Features::new(x)?;
        let counts = counts(y)?;
        let (n, d) = features.shape();
        if counts.len() > 2 && *self != Means::Discriminant {
            return Err(Error::request(format!(
                "a difference of means is for two classes; there are {}",
                counts.len()
            )));
        }
        let means = class_means(&features, y, &counts);
        let (mut directions, mut lifted) = (means.clone(), false);
        if *self != Means::Difference {
            let factor;
            (factor, lifted) = covariance(&features, y, &means, n);
            directions.par_iter_mut().for_each(|direction| factor.solve(direction));
        }
        let prior = |class: usize| match self {
            Means::Discriminant => (counts[class] as f64 / n as f64).ln(),
            Means::Difference | Means::Whitened => 0.0,
        };
        let mut theta = Vec::new();
        for (class, (direction, mean)) in directions.iter().zip(&means).enumerate() {
            theta.extend_from_slice(direction);
            theta.push(prior(class) - 0.5 * dot(direction, mean));
        }
        if counts.len() == 2 {
            let (negative, positive) = theta.split_at(d + 1);
            theta = positive.iter().zip(negative).map(|(p, n)| p - n).collect();
        }
        Ok(Fitted { theta, classes: counts.len(), lifted })
    }
}

/// The mean of every class.
fn class_means(x: &Features, y: &[usize], counts: &[usize]) -> Vec<Vec<f64>> {
    let (n, d) = x.shape();
    let parts = blocks(n)
        .into_par_iter()
        .map(|rows| {
            let mut sums = vec![0.0; counts.len() * d];
            for (row, &class) in x.part(rows.clone()).chunks_exact(d).zip(&y[rows]) {
                let sum = &mut sums[class * d..(class + 1) * d];
                sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            sums
        })
        .collect();
    let sums = sum(parts);
    sums.chunks_exact(d).zip(counts).map(|(sum, &count)| sum.iter().map(|s| s / count as f64).collect()).collect()
}

/// The factored covariance within classes, and whether it had to be lifted.
fn covariance(x: &Features, y: &[usize], means: &[Vec<f64>], n: usize) -> (Cholesky, bool) {
    let d = x.shape().1;
    // Σ (x − m)(x − m)ᵀ, less what the means of classes lie apart.
    let mut products = gram::columns::<f64>(x, 1, &x.mean, |_| 1.0);
    for (class, mean) in means.iter().enumerate() {
        let count = y.iter().filter(|&&y| y == class).count() as f64;
        let away: Vec<f64> = mean.iter().zip(&x.mean).map(|(class, all)| class - all).collect();
        for i in 0..d {
            add_scaled(&mut products[i * d..=i * d + i], -count * away[i], &away[..=i]);
        }
    }
    products.iter_mut().for_each(|p| *p /= n as f64);
    let factor = Cholesky::new(products.clone(), d, PIVOT);
    if factor.lifted == 0 {
        return (factor, false);
    }
    let mut more = LIFT * (0..d).map(|i| products[i * d + i]).sum::<f64>() / d as f64;
    loop {
        let mut lifted = products.clone();
        (0..d).for_each(|i| lifted[i * d + i] += more);
        let factor = Cholesky::new(lifted, d, 8.0 * f64::EPSILON);
        // A matrix of zeros is lifted by nothing, and all directions are as good.
        if factor.lifted == 0 || more == 0.0 {
            return (factor, true);
        }
        more *= 100.0;
    }
}

impl Fit<Array2<f32>, Array1<usize>, Error> for Means {
    type Object = Fitted;

    fn fit(&self, data: &DatasetBase<Array2<f32>, Array1<usize>>) -> Result<Fitted> {
        self.fit_rows(data.records.view(), &data.targets.to_vec())
    }
}

impl Fitted {
    /// For every score its weights, then its intercept.
    pub fn theta(&self) -> &[f64] {
        &self.theta
    }

    /// Weights, a row per score: one of class 1 for two classes, else one per class.
    pub fn weights(&self) -> Array2<f64> {
        let k = self.scores_per_row();
        let width = self.theta.len() / k;
        Array2::from_shape_fn((k, width - 1), |(score, feature)| self.theta[score * width + feature])
    }

    /// Intercepts, one per score.
    pub fn intercept(&self) -> Array1<f64> {
        let width = self.theta.len() / self.scores_per_row();
        self.theta.chunks_exact(width).map(|theta| theta[width - 1]).collect()
    }

    fn scores_per_row(&self) -> usize {
        if self.classes == 2 { 1 } else { self.classes }
    }

    /// Decision values, a column per score: above 0 is class 1 for two classes, else the largest wins.
    ///
    /// # Panics
    /// If the rows have another number of features than those of the fit.
    pub fn scores(&self, x: &Array2<f32>) -> Array2<f64> {
        scores(x.view(), &self.theta)
    }

    /// The probability of every class, a column per class. It means one for [`Means::Discriminant`] only.
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
        y.iter_mut().zip(self.scores(x).axis_iter(Axis(0))).for_each(|(y, scores)| *y = winner(scores));
    }

    fn default_target(&self, x: &Array2<f32>) -> Array1<usize> {
        Array1::zeros(x.nrows())
    }
}
