//! What is true of a whole site, from one pass: mean, variance, covariance, norms, values that are not numbers.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};

use crate::ops::finite;
use crate::ops::real::vectorised;

/// Rows that are looked at together.
const BLOCK: usize = 64;

/// Statistics of vectors, added up in f64; those of parts combine to those of the whole (Chan et al. 1979).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Vectors that are counted: those without a value that is not finite.
    pub count: u64,
    /// Values that are NaN or infinite.
    pub not_finite: u64,
    /// Mean of each dimension.
    pub mean: Vec<f64>,
    /// Sum of squared differences from the mean, of each dimension.
    pub squares: Vec<f64>,
    /// Sum of products of differences from the mean, of each pair of dimensions, row by row; empty where it was not wanted.
    pub products: Vec<f64>,
    /// Mean Euclidean length.
    pub mean_norm: f64,
    /// The greatest Euclidean length.
    pub max_norm: f64,
}

impl Statistics {
    /// Of no vector yet, of this many dimensions.
    pub fn new(dim: usize, covariance: bool) -> Self {
        Self {
            count: 0,
            not_finite: 0,
            mean: vec![0.0; dim],
            squares: vec![0.0; dim],
            products: vec![0.0; if covariance { dim * dim } else { 0 }],
            mean_norm: 0.0,
            max_norm: 0.0,
        }
    }

    /// Of rows of vectors.
    pub fn of(rows: &[f32], dim: usize, covariance: bool) -> Self {
        let mut own = Self::new(dim, covariance);
        let kept: Vec<&[f32]> = match finite(rows) {
            true => rows.chunks_exact(dim).collect(),
            false => {
                own.not_finite = rows.iter().filter(|x| !x.is_finite()).count() as u64;
                rows.chunks_exact(dim).filter(|row| finite(row)).collect()
            }
        };
        own.count = kept.len() as u64;
        if own.count == 0 {
            return own;
        }
        let count = own.count as f64;
        vectorised!({
            for row in &kept {
                own.mean.iter_mut().zip(*row).for_each(|(mean, x)| *mean += f64::from(*x));
                let norm = length(row);
                own.mean_norm += norm;
                own.max_norm = own.max_norm.max(norm);
            }
        });
        own.mean.iter_mut().for_each(|mean| *mean /= count);
        own.mean_norm /= count;
        // f64, as sums of many squares lose the last digits of f32.
        vectorised!({
            for row in &kept {
                for ((x, mean), sum) in row.iter().zip(&own.mean).zip(&mut own.squares) {
                    let apart = f64::from(*x) - mean;
                    *sum += apart * apart;
                }
            }
        });
        if covariance {
            own.add_products(&kept);
        }
        own
    }

    /// Sums of products of differences from the mean, some rows at a time, so that they stay near.
    fn add_products(&mut self, rows: &[&[f32]]) {
        let dim = self.mean.len();
        let mut apart = Array2::zeros((BLOCK, dim));
        let Ok(mut products) = ArrayViewMut2::from_shape((dim, dim), &mut self.products) else { return };
        for block in rows.chunks(BLOCK) {
            let mut apart = apart.slice_mut(s![..block.len(), ..]);
            for (mut apart, row) in apart.outer_iter_mut().zip(block) {
                apart.iter_mut().zip(*row).zip(&self.mean).for_each(|((apart, x), mean)| *apart = f64::from(*x) - mean);
            }
            general_mat_mul(1.0, &apart.t(), &apart, 1.0, &mut products);
        }
    }

    /// What is wrong with them, if they are to be those of `rows` vectors.
    pub(crate) fn fault(&self, rows: u64, covariance: bool) -> Option<String> {
        let dim = self.mean.len();
        let products = if covariance { dim.checked_mul(dim) } else { Some(0) };
        let finite = |list: &[f64]| list.iter().all(|x| x.is_finite());
        if dim == 0 || self.squares.len() != dim || products != Some(self.products.len()) {
            return Some(format!(
                "has {dim} means, {} squares and {} products, which do not fit each other",
                self.squares.len(),
                self.products.len()
            ));
        }
        if self.count > rows {
            return Some(format!("counts {} vectors of {rows}", self.count));
        }
        let whole = [&self.mean, &self.squares, &self.products].into_iter().all(|list| finite(list));
        (!whole || !finite(&[self.mean_norm, self.max_norm])).then(|| "has a number that is not finite".into())
    }

    /// Adds those of another part.
    pub fn add(&mut self, other: &Self) {
        self.not_finite += other.not_finite;
        self.max_norm = self.max_norm.max(other.max_norm);
        if other.count == 0 {
            return;
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let weight = n * m / (n + m);
        let apart: Vec<f64> = other.mean.iter().zip(&self.mean).map(|(theirs, ours)| theirs - ours).collect();
        let dim = apart.len();
        for ((ours, theirs), d) in self.squares.iter_mut().zip(&other.squares).zip(&apart) {
            *ours += theirs + d * d * weight;
        }
        for (i, (ours, theirs)) in self.products.iter_mut().zip(&other.products).enumerate() {
            *ours += theirs + apart[i / dim] * apart[i % dim] * weight;
        }
        self.mean.iter_mut().zip(&apart).for_each(|(mean, d)| *mean += d * m / (n + m));
        self.mean_norm += (other.mean_norm - self.mean_norm) * m / (n + m);
        self.count += other.count;
    }

    /// Variance of each dimension, over the population.
    pub fn variance(&self) -> Vec<f64> {
        self.squares.iter().map(|sum| sum / self.count.max(1) as f64).collect()
    }

    /// Covariance of each pair of dimensions, row by row; empty where it was not wanted.
    pub fn covariance(&self) -> Vec<f64> {
        self.products.iter().map(|sum| sum / self.count.max(1) as f64).collect()
    }
}

/// Euclidean length; in eight sums, which a processor adds up at once.
#[inline(always)]
fn length(row: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    for part in row.chunks(8) {
        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    sums.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{normal, stream};

    #[test]
    fn parts_combine_to_the_whole() {
        let mut rng = stream(3, "statistics", 0);
        let mut rows: Vec<f32> = (0..600).map(|i| (normal(&mut rng) + (i % 3) as f64 * 100.0) as f32).collect();
        rows[7] = f32::NAN;
        let whole = Statistics::of(&rows, 3, true);
        let mut parts = Statistics::new(3, true);
        for part in [&rows[..3], &rows[3..300], &rows[300..]] {
            parts.add(&Statistics::of(part, 3, true));
        }
        assert_eq!((whole.count, whole.not_finite), (199, 1));
        assert_eq!((parts.count, parts.not_finite, parts.max_norm), (199, 1, whole.max_norm));
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9 * (1.0 + b.abs()));
        assert!(near(&parts.mean, &whole.mean) && near(&parts.variance(), &whole.variance()));
        assert!(near(&parts.covariance(), &whole.covariance()) && (parts.mean_norm - whole.mean_norm).abs() < 1e-9);
        assert!((whole.mean[2] - 200.0).abs() < 0.3 && (whole.variance()[2] - 1.0).abs() < 0.3);
        assert!(near(&[whole.covariance()[4]], &[whole.variance()[1]]));
        assert_eq!(Statistics::of(&[f32::INFINITY, 1.0, 2.0], 3, false).count, 0);
    }
}
