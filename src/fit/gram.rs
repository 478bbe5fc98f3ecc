//! Products of columns with columns: Σ cᵢ²·(xᵢ − m)(xᵢ − m)ᵀ, in f32 where an approximation will do, else in f64.

use rayon::prelude::*;

use super::block::Sum;
use super::features::Features;
use crate::ops::gemm::{Threads, View, gemm};
use crate::ops::real::{Real, vectorised};

/// Rows that are shifted and scaled at a time.
const CHUNK: usize = 1024;

/// Columns of a tile: one task computes one tile, those above the diagonal are left out.
const TILE: usize = 128;

struct Tile<T> {
    row: usize,
    col: usize,
    sum: Vec<T>,
}

/// The lower triangle of Σ (cᵢ(xᵢ − m))(cᵢ(xᵢ − m))ᵀ, row after row; what is above it is 0. `scale` has a cᵢ per row. The
/// sum is over every `step`-th row.
pub(super) fn columns<T: Sum + Real>(
    x: &Features,
    step: usize,
    shift: &[f64],
    scale: impl Fn(usize) -> f64 + Sync,
) -> Vec<f64> {
    let (n, d) = x.shape();
    let shift: Vec<T> = shift.iter().map(|&m| <T as Real>::of(m)).collect();
    let mut tiles = tiles::<T>(d);
    let taken: Vec<usize> = (0..n).step_by(step).collect();
    let mut scaled = vec![T::default(); CHUNK.min(taken.len()) * d];
    for taken in taken.chunks(CHUNK) {
        let scaled = &mut scaled[..taken.len() * d];
        scaled.par_chunks_mut(16 * d).zip(taken.par_chunks(16)).for_each(|(out, taken)| {
            for (out, &i) in out.chunks_exact_mut(d).zip(taken) {
                let (row, c) = (x.part(i..i + 1), <T as Real>::of(scale(i)));
                vectorised!(for ((out, &x), &m) in out.iter_mut().zip(row).zip(&shift) {
                    *out = c * (<T as From<f32>>::from(x) - m);
                });
            }
        });
        add(&mut tiles, scaled, (taken.len(), d), (d, 1));
    }
    assembled(tiles, d)
}

/// The lower triangle of A·Aᵀ for the rows of a matrix, row after row.
pub(super) fn rows(a: &[f64], (n, d): (usize, usize)) -> Vec<f64> {
    let mut tiles = tiles::<f64>(n);
    add(&mut tiles, a, (d, n), (1, d));
    assembled(tiles, n)
}

fn tiles<T: Sum>(d: usize) -> Vec<Tile<T>> {
    let starts = || (0..d).step_by(TILE);
    let size = |start: usize| TILE.min(d - start);
    starts()
        .flat_map(|row| starts().take_while(move |&col| col <= row).map(move |col| (row, col)))
        .map(|(row, col)| Tile { row, col, sum: vec![T::default(); size(row) * size(col)] })
        .collect()
}

/// Adds AᵀA to the tiles, for a matrix of `n` rows and `d` columns.
fn add<T: Sum + Real>(tiles: &mut [Tile<T>], a: &[T], (n, d): (usize, usize), (row, col): (usize, usize)) {
    tiles.par_iter_mut().for_each(|tile| {
        let part = |start: usize| View::new(&a[start * col..], (n, TILE.min(d - start)), (row, col));
        let (left, right) = (part(tile.row).transposed(), part(tile.col));
        gemm(&mut tile.sum, right.cols(), left, right, T::one(), true, Threads::One);
    });
}

fn assembled<T: Sum>(tiles: Vec<Tile<T>>, d: usize) -> Vec<f64> {
    let mut out = vec![0.0; d * d];
    for tile in tiles {
        for (i, values) in tile.sum.chunks_exact(TILE.min(d - tile.col)).enumerate() {
            let row = tile.row + i;
            for (j, &value) in values.iter().enumerate().filter(|(j, _)| tile.col + j <= row) {
                out[row * d + tile.col + j] = value.into();
            }
        }
    }
    out
}
