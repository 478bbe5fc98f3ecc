//! Features on one scale: each column with mean 0 and standard deviation 1.

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::block::{blocks, sum};
use super::features::Features;
use crate::error::{Error, Result};

/// The mean and the standard deviation of every feature of some rows, to be applied to these and to others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standardiser {
    /// The mean of every feature.
    pub mean: Vec<f64>,
    /// The standard deviation of every feature, over n; 1 for one that is constant.
    pub deviation: Vec<f64>,
    /// How many features are constant.
    pub constant: usize,
}

impl Standardiser {
    /// Measures rows, in f64: the mean first, then the deviations from it.
    ///
    /// # Errors
    /// If there is no row, or a value that is not finite.
    pub fn new(x: ArrayView2<'_, f32>) -> Result<Self> {
        let features = Features::new(x)?;
        let (n, d) = features.shape();
        let mean = features.mean.clone();
        let parts = blocks(n)
            .into_par_iter()
            .map(|rows| {
                let mut squares = vec![0.0; d];
                for row in features.part(rows).chunks_exact(d) {
                    for ((square, &x), mean) in squares.iter_mut().zip(row).zip(&mean) {
                        let x = f64::from(x) - mean;
                        *square += x * x;
                    }
                }
                squares
            })
            .collect();
        let mut constant = 0;
        let deviation = sum(parts)
            .into_iter()
            .zip(&mean)
            .map(|(square, mean)| {
                let deviation = (square / n as f64).sqrt();
                // A mean of equal numbers need not be equal to them.
                let same = deviation <= 1e-12 * mean.abs();
                constant += usize::from(same);
                if same { 1.0 } else { deviation }
            })
            .collect();
        Ok(Self { mean, deviation, constant })
    }

    /// Rows on the scale of those that were measured.
    ///
    /// # Errors
    /// If they have another number of features.
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let d = self.mean.len();
        if x.ncols() != d {
            return Err(Error::request(format!("rows of {} features; the standardiser has {d}", x.ncols())));
        }
        let mut out = x.as_standard_layout().into_owned();
        if let Some(values) = out.as_slice_mut() {
            values.par_chunks_mut(64 * d).for_each(|rows| {
                for row in rows.chunks_exact_mut(d) {
                    for ((x, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                        *x = ((f64::from(*x) - mean) / deviation) as f32;
                    }
                }
            });
        }
        Ok(out)
    }
}
