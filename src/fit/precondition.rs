//! A matrix that stands for the curvature: Σ cᵢ·xᵢxᵢᵀ + α, the same for every score, factored.
//!
//! With it conjugate gradients need a few products instead of hundreds. It is made in f32 and need not be exact; intercepts
//! are taken out by centring the columns on their weighted mean.

use rayon::prelude::*;

use super::block::{add_scaled, blocks, dot, sum, there_and_back};
use super::cholesky::Cholesky;
use super::features::Features;
use super::gram;

/// Rows longer than this many times the median are given less weight: in f32 they would drown the others, and one direction
/// in which the matrix is wrong costs conjugate gradients one step.
const LONG: f64 = 10.0;

/// The least pivot, beside the diagonal: what f32 sums leave undecided.
const FLOOR: f64 = 1e-6;

/// The least pivot where they are summed in f64.
const FLOOR64: f64 = 1e-13;

/// Which rows the matrix is made of, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// Each of these many stands for those up to the next; in f32.
    Every(usize),
    /// All, in f64.
    Precisely,
}

pub(super) struct Preconditioner {
    mean: Vec<f64>,
    /// Σ cᵢ
    total: f64,
    alpha: f64,
    factor: Cholesky,
    /// The rows √cᵢ·(xᵢ − m), where they are fewer than the columns: the factor is of their products, then.
    rows: Option<Vec<f64>>,
}

impl Preconditioner {
    /// With a weight per row.
    pub fn new(x: &Features, mut weights: Vec<f64>, rows: Rows, alpha: f64) -> Self {
        let (n, d) = x.shape();
        let mut sorted = x.squares.clone();
        let (_, &mut median, _) = sorted.select_nth_unstable_by(n / 2, f64::total_cmp);
        let longest = LONG * LONG * median.max(f64::MIN_POSITIVE);
        for (weight, square) in weights.iter_mut().zip(&x.squares).filter(|(_, square)| **square > longest) {
            *weight *= longest / square;
        }
        let total = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let even = weights.iter().all(|&weight| weight == weights[0]);
        let mean: Vec<f64> = match even {
            true => x.mean.clone(),
            false => weighted_sum(x, &weights).into_iter().map(|sum| sum / total).collect(),
        };
        // f32 has a narrow range: the rows are brought to a length of about √d, the factor back.
        // Rows of zeros have no length.
        let unit = if median > 0.0 { (median / d as f64).sqrt() } else { 1.0 };
        if n < d {
            let rows: Vec<f64> = (0..n)
                .flat_map(|i| {
                    let c = weights[i].sqrt();
                    x.part(i..i + 1).iter().zip(&mean).map(move |(&x, m)| c * (f64::from(x) - m))
                })
                .collect();
            let mut products = gram::rows(&rows, (n, d));
            (0..n).for_each(|i| products[i * n + i] += alpha);
            let factor = Cholesky::new(products, n, 1e-14);
            return Self { mean, total, alpha, factor, rows: Some(rows) };
        }
        let every = if let Rows::Every(every) = rows { every } else { 1 };
        let share = (every as f64).sqrt() / unit;
        let scale = |i: usize| weights[i].sqrt() * share;
        let (products, floor): (&dyn Fn() -> Vec<f64>, f64) = match rows {
            Rows::Every(_) => (&|| gram::columns::<f32>(x, every, &mean, scale), FLOOR),
            Rows::Precisely => (&|| gram::columns::<f64>(x, 1, &mean, scale), FLOOR64),
        };
        let factor = raised(floor, |share| {
            let mut products = products();
            products.par_iter_mut().for_each(|p| *p *= unit * unit);
            (0..d).for_each(|i| products[i * d + i] = (products[i * d + i] + alpha) * (1.0 + share));
            (products, d)
        });
        Self { mean, total, alpha, factor, rows: None }
    }

    /// The vector that the matrix turns into `r`.
    pub fn solve(&self, r: &[f64]) -> Vec<f64> {
        let mut out = r.to_vec();
        let d = self.mean.len();
        out.par_chunks_exact_mut(d + 1).for_each(|out| {
            let (w, intercept) = out.split_at_mut(d);
            add_scaled(w, -intercept[0], &self.mean);
            match &self.rows {
                None => self.factor.solve(w),
                // Woodbury: (RᵀR + α)⁻¹ = (1 − Rᵀ(RRᵀ + α)⁻¹R)/α
                Some(rows) => {
                    let mut products: Vec<f64> = rows.chunks_exact(d).map(|row| dot(row, w)).collect();
                    self.factor.solve(&mut products);
                    rows.chunks_exact(d).zip(&products).for_each(|(row, p)| add_scaled(w, -p, row));
                    w.iter_mut().for_each(|w| *w /= self.alpha);
                }
            }
            intercept[0] = intercept[0] / self.total - dot(w, &self.mean);
        });
        out
    }
}

/// The factor of a matrix whose diagonal is raised by as small a share as it takes; as a rule by none.
fn raised(floor: f64, matrix: impl Fn(f64) -> (Vec<f64>, usize)) -> Cholesky {
    let mut share = 0.0;
    loop {
        let (a, d) = matrix(share);
        let factor = Cholesky::new(a, d, if share > 0.0 { 0.1 * floor } else { floor });
        if factor.lifted == 0 || share > 1.0 {
            return factor;
        }
        share = if share > 0.0 { 100.0 * share } else { floor };
    }
}

/// Σ cᵢ·xᵢ
fn weighted_sum(x: &Features, weights: &[f64]) -> Vec<f64> {
    let (n, d) = x.shape();
    let nothing = vec![0.0; d];
    let parts: Vec<Vec<f64>> = blocks(n)
        .into_par_iter()
        .map(|rows| {
            let (weights, mut out) = (&weights[rows.clone()], vec![0.0; d]);
            there_and_back(x.part(rows), &nothing, &mut out, |first, mut back, count| {
                back[..count].copy_from_slice(&weights[first..first + count]);
                back
            });
            out
        })
        .collect();
    sum(parts)
}
