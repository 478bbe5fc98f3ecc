//! Ridge and ordinary least squares: numbers predicted from features.

use linfa::DatasetBase;
use linfa::traits::{Fit, PredictInplace};
use nalgebra::DMatrix;
use ndarray::{Array1, Array2, ArrayView2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::block::{add_scaled, blocks, dot, sum, there_and_back};
use super::cholesky::Cholesky;
use super::features::Features;
use super::gram;
use super::linear::scores;
use crate::error::{Error, Result};

/// Eigenvalues below this share of the largest, times the size of the matrix, are 0. In singular values of the features it is
/// some 4e-7 for 768 of them: columns that depend on each other to the precision of f32 are taken to depend on each other.
const RANK: f64 = f64::EPSILON;

/// A pivot below this share of its diagonal has no digits left, and the eigenvalues decide.
const PIVOT: f64 = 1e-11;

/// The smallest Σ (y − x·w − b)² + α·|w|², where the intercept b is free; α is that of scikit-learn's `Ridge`.
///
/// α = 0 is ordinary least squares. Where columns depend on each other, or there are more of them than rows, many weights
/// fit equally well, and these are the shortest of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ridge {
    /// The weight of the penalty.
    pub alpha: f64,
}

/// A fitted regression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// The weights, then the intercept.
    theta: Vec<f64>,
    /// The penalty it was fitted with.
    pub alpha: f64,
    /// How many directions of the features were told apart: all of them, for any penalty that leaves no doubt.
    pub rank: usize,
}

impl Ridge {
    /// With this penalty.
    pub fn new(alpha: f64) -> Self {
        Self { alpha }
    }

    /// Ordinary least squares.
    pub fn ordinary() -> Self {
        Self { alpha: 0.0 }
    }

    /// Fits rows of features to their targets.
    ///
    /// # Errors
    /// For no rows, values that are not finite, targets of another number than rows, or a negative penalty.
    pub fn fit_rows(&self, x: ArrayView2<'_, f32>, y: &[f64]) -> Result<Fitted> {
        let mut fits = path(x, y, &[self.alpha])?;
        fits.pop().ok_or_else(|| Error::Bug("a path of one penalty is empty".into()))
    }
}

/// Fits with several penalties; the products of the features are computed once.
///
/// # Errors
/// As [`Ridge::fit_rows`].
pub fn path(x: ArrayView2<'_, f32>, y: &[f64], alphas: &[f64]) -> Result<Vec<Fitted>> {
    if let Some(alpha) = alphas.iter().find(|alpha| !(**alpha >= 0.0 && alpha.is_finite())) {
        return Err(Error::request(format!("alpha is {alpha}; the penalty must be finite and not negative")));
    }
    if y.len() != x.nrows() {
        return Err(Error::request(format!("{} rows of features, and {} targets", x.nrows(), y.len())));
    }
    if let Some(row) = y.iter().position(|y| !y.is_finite()) {
        return Err(Error::request(format!("the target of row {row} is {}: leave the row out", y[row])));
    }
    let features = Features::new(x)?;
    let (n, d) = features.shape();
    let mean = y.iter().sum::<f64>() / n as f64;
    let centred: Vec<f64> = y.iter().map(|y| y - mean).collect();
    // With fewer rows than columns the weights are a sum of rows, w = Xᵀa with (XXᵀ + α)a = y.
    let rows = (n < d).then(|| centred_rows(&features));
    let (products, right) = match &rows {
        Some(rows) => (gram::rows(rows, (n, d)), centred),
        None => (gram::columns::<f64>(&features, 1, &features.mean, |_| 1.0), against(&features, &centred)),
    };
    let size = right.len();
    let mut spectrum = None;
    let fits = alphas.iter().map(|&alpha| {
        let (solution, rank) = solve(&products, &right, alpha, rows.is_some(), &mut spectrum);
        let mut theta = match &rows {
            None => solution,
            Some(rows) => {
                let mut w = vec![0.0; d];
                rows.chunks_exact(d).zip(&solution).for_each(|(row, &a)| add_scaled(&mut w, a, row));
                w
            }
        };
        theta.push(mean - dot(&theta, &features.mean));
        Fitted { theta, alpha, rank: rank.min(size) }
    });
    Ok(fits.collect())
}

/// Eigenvalues and eigenvectors of a matrix.
type Spectrum = nalgebra::SymmetricEigen<f64, nalgebra::Dyn>;

/// (A + α)⁻¹·b, and the rank it was found with: by Cholesky where every pivot has digits, else by eigenvalues.
fn solve(a: &[f64], b: &[f64], alpha: f64, centred_rows: bool, spectrum: &mut Option<Spectrum>) -> (Vec<f64>, usize) {
    let size = b.len();
    // Centred rows add up to 0: without a penalty their products never have full rank.
    if alpha > 0.0 || !centred_rows {
        let mut shifted = a.to_vec();
        (0..size).for_each(|i| shifted[i * size + i] += alpha);
        let factor = Cholesky::new(shifted, size, PIVOT);
        if factor.lifted == 0 {
            let mut x = b.to_vec();
            factor.solve(&mut x);
            return (x, size);
        }
    }
    let full = || DMatrix::from_fn(size, size, |i, j| if j <= i { a[i * size + j] } else { a[j * size + i] });
    let spectrum = spectrum.get_or_insert_with(|| full().symmetric_eigen());
    let largest = spectrum.eigenvalues.iter().copied().fold(0.0, f64::max);
    let (mut x, mut rank) = (vec![0.0; size], 0);
    for (value, vector) in spectrum.eigenvalues.iter().zip(spectrum.eigenvectors.column_iter()) {
        if *value > size as f64 * RANK * largest {
            rank += 1;
            let vector = vector.as_slice();
            add_scaled(&mut x, dot(vector, b) / (value + alpha), vector);
        }
    }
    (x, rank)
}

/// Rows without the mean of their columns, in f64.
fn centred_rows(x: &Features) -> Vec<f64> {
    let (n, d) = x.shape();
    x.part(0..n).chunks_exact(d).flat_map(|row| row.iter().zip(&x.mean).map(|(&x, m)| f64::from(x) - m)).collect()
}

/// Σ yᵢ·(xᵢ − m), for y that add up to 0.
fn against(x: &Features, y: &[f64]) -> Vec<f64> {
    let (n, d) = x.shape();
    let nothing = vec![0.0; d];
    let parts = blocks(n)
        .into_par_iter()
        .map(|rows| {
            let (y, mut out) = (&y[rows.clone()], vec![0.0; d]);
            there_and_back(x.part(rows), &nothing, &mut out, |first, mut back, count| {
                back[..count].copy_from_slice(&y[first..first + count]);
                back
            });
            out
        })
        .collect();
    let mut out = sum(parts);
    add_scaled(&mut out, -y.iter().sum::<f64>(), &x.mean);
    out
}

impl Fit<Array2<f32>, Array1<f64>, Error> for Ridge {
    type Object = Fitted;

    fn fit(&self, data: &DatasetBase<Array2<f32>, Array1<f64>>) -> Result<Fitted> {
        self.fit_rows(data.records.view(), &data.targets.to_vec())
    }
}

impl Fitted {
    /// The weights, then the intercept.
    pub fn theta(&self) -> &[f64] {
        &self.theta
    }

    /// A weight per feature.
    pub fn weights(&self) -> &[f64] {
        &self.theta[..self.theta.len() - 1]
    }

    /// What is predicted where all features are 0.
    pub fn intercept(&self) -> f64 {
        self.theta[self.theta.len() - 1]
    }
}

impl PredictInplace<Array2<f32>, Array1<f64>> for Fitted {
    fn predict_inplace(&self, x: &Array2<f32>, y: &mut Array1<f64>) {
        assert_eq!(x.nrows(), y.len(), "a prediction per row");
        y.assign(&scores(x.view(), &self.theta).column(0));
    }

    fn default_target(&self, x: &Array2<f32>) -> Array1<f64> {
        Array1::zeros(x.nrows())
    }
}
