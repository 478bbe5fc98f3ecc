//! The rows that a model is fitted to: checked once, row after row in memory.

use std::borrow::Cow;

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::block::{BLOCK, blocks, sum};
use crate::error::{Error, Result};

/// A matrix of finite f32, row after row, with the mean of its columns and the length of its rows.
pub(super) struct Features<'a> {
    rows: Cow<'a, [f32]>,
    columns: usize,
    /// The mean of every column.
    pub mean: Vec<f64>,
    /// The squared length of every row.
    pub squares: Vec<f64>,
}

impl<'a> Features<'a> {
    /// # Errors
    /// If there is no row, no column, or a value that is not finite.
    pub fn new(x: ArrayView2<'a, f32>) -> Result<Self> {
        let (n, d) = x.dim();
        if n == 0 || d == 0 {
            return Err(Error::request(format!("nothing to fit: {n} rows of {d} features")));
        }
        let rows = match x.to_slice() {
            Some(rows) => Cow::Borrowed(rows),
            None => Cow::Owned(x.iter().copied().collect()),
        };
        let mut features = Self { rows, columns: d, mean: Vec::new(), squares: Vec::new() };
        let parts: Vec<(Vec<f64>, Vec<f64>)> = blocks(n)
            .into_par_iter()
            .map(|rows| {
                let (mut total, mut squares) = (vec![0.0; d], Vec::with_capacity(BLOCK));
                crate::ops::real::vectorised!(for row in features.part(rows.clone()).chunks_exact(d) {
                    squares.push(add_row(&mut total, row));
                });
                (total, squares)
            })
            .collect();
        let (totals, squares): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let squares = squares.concat();
        if let Some(row) = squares.iter().position(|s| !s.is_finite()) {
            let values = features.part(row..row + 1);
            let column = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(Error::request(format!(
                "feature {column} of row {row} is {}: leave the row out",
                values[column]
            )));
        }
        features.mean = sum(totals).into_iter().map(|total| total / n as f64).collect();
        features.squares = squares;
        Ok(features)
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows.len() / self.columns, self.columns)
    }

    /// Some rows, one after the other.
    pub fn part(&self, rows: std::ops::Range<usize>) -> &[f32] {
        &self.rows[rows.start * self.columns..rows.end * self.columns]
    }
}

/// Adds a row to a sum of rows, and returns its squared length.
#[inline(always)]
fn add_row(total: &mut [f64], row: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0; LANES];
    let mut totals = total.chunks_exact_mut(LANES);
    let mut values = row.chunks_exact(LANES);
    for (total, row) in (&mut totals).zip(&mut values) {
        for i in 0..LANES {
            let x = f64::from(row[i]);
            total[i] += x;
            lanes[i] += x * x;
        }
    }
    let mut rest = 0.0;
    for (total, x) in totals.into_remainder().iter_mut().zip(values.remainder()) {
        let x = f64::from(*x);
        *total += x;
        rest += x * x;
    }
    lanes.iter().sum::<f64>() + rest
}
