//! Work on rows, shared between threads once there is enough of it.

use rayon::prelude::*;

/// Elements below which handing work to another thread costs more than it saves.
const ENOUGH: usize = 1 << 15;

/// Calls `f(first_row, rows)` on pieces of `out`, each a whole number of rows of `width` elements.
///
/// `cost` is the number of elements that one row touches, in and out.
pub fn each_block<T: Send>(out: &mut [T], width: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if out.is_empty() || width == 0 {
        return;
    }
    let rows = out.len() / width;
    let per_block = (ENOUGH / cost.max(1)).clamp(1, rows.max(1));
    if rows * cost < 2 * ENOUGH {
        return f(0, out);
    }
    out.par_chunks_mut(per_block * width).enumerate().for_each(|(i, block)| f(i * per_block, block));
}

/// Adds up one vector of `width` elements over blocks of rows; `f(rows, sum)` adds a block to `sum`.
///
/// The blocks and their order depend on the shape alone, so the result does not depend on the number of threads.
pub fn reduce<T: super::real::Real>(
    rows: usize,
    width: usize,
    f: impl Fn(std::ops::Range<usize>, &mut [T]) + Sync,
) -> Vec<T> {
    let per_block = (2 * ENOUGH / width.max(1)).max(1);
    let partial: Vec<Vec<T>> = (0..rows.div_ceil(per_block))
        .into_par_iter()
        .map(|block| {
            let mut sum = vec![T::zero(); width];
            f(block * per_block..((block + 1) * per_block).min(rows), &mut sum);
            sum
        })
        .collect();
    let mut total = vec![T::zero(); width];
    for sum in partial {
        total.iter_mut().zip(sum).for_each(|(t, s)| *t += s);
    }
    total
}
