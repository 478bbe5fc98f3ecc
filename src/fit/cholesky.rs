//! The Cholesky factor of a symmetric positive matrix, in f64, in blocks.

use rayon::prelude::*;

use super::block::{add_scaled, dot};
use crate::ops::gemm::{Threads, View, gemm};

/// Columns that are factored one by one before the rest is updated by a matrix product.
const PANEL: usize = 64;

/// Rows that one task updates.
const ROWS: usize = 64;

/// L with A = L·Lᵀ.
pub(super) struct Cholesky {
    lower: Vec<f64>,
    d: usize,
    /// Pivots that were lifted because rounding, or the matrix, left next to nothing of them.
    pub lifted: usize,
}

impl Cholesky {
    /// Factors a matrix given by its lower triangle, row after row. A pivot below `floor` times what was on the diagonal
    /// is lifted to that.
    pub fn new(mut a: Vec<f64>, d: usize, floor: f64) -> Self {
        let diagonal: Vec<f64> = (0..d).map(|i| a[i * d + i].max(f64::MIN_POSITIVE)).collect();
        let mut lifted = 0;
        for first in (0..d).step_by(PANEL) {
            let last = (first + PANEL).min(d);
            let width = last - first;
            // The block on the diagonal, row by row.
            for i in first..last {
                for j in first..=i {
                    let known: f64 = (first..j).map(|k| a[i * d + k] * a[j * d + k]).sum();
                    let rest = a[i * d + j] - known;
                    a[i * d + j] = if j < i {
                        rest / a[j * d + j]
                    } else {
                        let least = (floor * diagonal[i]).max(f64::MIN_POSITIVE);
                        let enough = rest > least; // NaN is lifted, too
                        lifted += usize::from(!enough);
                        if enough { rest.sqrt() } else { least.sqrt() }
                    };
                }
            }
            if last == d {
                break;
            }
            let inverse = inverted(&a, d, first, width);
            let (_, below) = a.split_at_mut(last * d);
            // The panel below it: A·L⁻ᵀ.
            below.par_chunks_mut(ROWS * d).for_each(|rows| {
                let count = rows.len() / d;
                let old: Vec<f64> = rows.chunks_exact(d).flat_map(|row| &row[first..last]).copied().collect();
                let old = View::new(&old, (count, width), (width, 1));
                let inverse = View::new(&inverse, (width, width), (width, 1)).transposed();
                gemm(&mut rows[first..], d, old, inverse, 1.0, false, Threads::One);
            });
            // What is left: A − panel·panelᵀ, as far as the diagonal.
            let panel: Vec<f64> = below.chunks_exact(d).flat_map(|row| &row[first..last]).copied().collect();
            below.par_chunks_mut(ROWS * d).enumerate().for_each(|(i, rows)| {
                let (start, count) = (i * ROWS, rows.len() / d);
                let left = View::new(&panel[start * width..], (count, width), (width, 1));
                let right = View::new(&panel, (start + count, width), (width, 1)).transposed();
                gemm(&mut rows[last..], d, left, right, -1.0, true, Threads::One);
            });
        }
        Self { lower: a, d, lifted }
    }

    /// x with A·x = b, in place of b.
    pub fn solve(&self, x: &mut [f64]) {
        let d = self.d;
        for i in 0..d {
            let row = &self.lower[i * d..i * d + i + 1];
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
        for i in (0..d).rev() {
            let row = &self.lower[i * d..i * d + i + 1];
            let (before, rest) = x.split_at_mut(i);
            rest[0] /= row[i];
            add_scaled(before, -rest[0], &row[..i]);
        }
    }
}

/// The inverse of a block on the diagonal of a lower triangle.
fn inverted(a: &[f64], d: usize, first: usize, width: usize) -> Vec<f64> {
    let at = |i: usize, j: usize| a[(first + i) * d + first + j];
    let mut inverse = vec![0.0; width * width];
    for j in 0..width {
        for i in j..width {
            let known: f64 = (j..i).map(|k| at(i, k) * inverse[k * width + j]).sum();
            inverse[i * width + j] = (f64::from(u8::from(i == j)) - known) / at(i, i);
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_solves_what_it_was_made_of() {
        for d in [1, 5, 64, 65, 200] {
            let value = |i: usize| ((i * 37) % 17) as f64 - 8.0;
            let b: Vec<f64> = (0..d * d).map(value).collect();
            let at = |i: usize, j: usize| {
                (0..d).map(|k| b[i * d + k] * b[j * d + k]).sum::<f64>() + if i == j { d as f64 } else { 0.0 }
            };
            let lower = (0..d * d).map(|p| if p % d <= p / d { at(p / d, p % d) } else { 0.0 }).collect();
            let factor = Cholesky::new(lower, d, 1e-12);
            let exact: Vec<f64> = (0..d).map(|i| value(i + 3)).collect();
            let mut x: Vec<f64> = (0..d).map(|i| (0..d).map(|j| at(i, j) * exact[j]).sum()).collect();
            factor.solve(&mut x);
            assert_eq!(factor.lifted, 0);
            assert!(x.iter().zip(&exact).all(|(x, y)| (x - y).abs() < 1e-8), "{d}");
        }
    }

    #[test]
    fn a_matrix_without_full_rank_is_lifted_and_counted() {
        let factor = Cholesky::new(vec![1.0, 0.0, 1.0, 1.0], 2, 1e-6);
        assert_eq!(factor.lifted, 1);
    }
}
