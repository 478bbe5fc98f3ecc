//! Rows in blocks that stay in a core's cache while they are used twice: once for what they give, once for what is sent
//! back. Blocks and the order of sums depend on the number of rows alone, so results do not depend on threads.

use std::ops::{Add, AddAssign, Mul, Range};

use crate::ops::real::vectorised;

/// Rows of a block.
pub(super) const BLOCK: usize = 256;

/// Rows that are read side by side: memory delivers four streams faster than one.
const TOGETHER: usize = 4;

/// The type that products with f32 rows are summed in.
pub(super) trait Sum:
    Copy + Default + From<f32> + Into<f64> + Add<Output = Self> + Mul<Output = Self> + AddAssign + Send + Sync
{
}
impl Sum for f32 {}
impl Sum for f64 {}

/// The blocks of `n` rows.
pub(super) fn blocks(n: usize) -> Vec<Range<usize>> {
    (0..n).step_by(BLOCK).map(|first| first..(first + BLOCK).min(n)).collect()
}

/// Adds up vectors in their order.
pub(super) fn sum(parts: Vec<Vec<f64>>) -> Vec<f64> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    total
}

/// Σ aᵢ·bᵢ.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    vectorised!({
        let mut lanes = [0.0; 16];
        let (mut a, mut b) = (a.chunks_exact(16), b.chunks_exact(16));
        for (a, b) in (&mut a).zip(&mut b) {
            for i in 0..16 {
                lanes[i] += a[i] * b[i];
            }
        }
        let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
        lanes.iter().sum::<f64>() + rest
    })
}

/// `y += a·x`.
pub(super) fn add_scaled(y: &mut [f64], a: f64, x: &[f64]) {
    vectorised!(for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    });
}

/// For a few rows at a time: products with `v`, then `back` of them (given the first row's index in the block), then
/// `out += Σ backᵢ·rowᵢ`, while the rows are still in the nearest cache.
pub(super) fn there_and_back<T: Sum>(
    rows: &[f32],
    v: &[T],
    out: &mut [T],
    mut back: impl FnMut(usize, [T; TOGETHER], usize) -> [T; TOGETHER],
) {
    let d = v.len();
    let mut first = 0;
    for few in rows.chunks(TOGETHER * d) {
        let count = few.len() / d;
        let products = vectorised!(dots(few, v));
        let sent = back(first, products, count);
        vectorised!(add_rows(out, few, sent));
        first += count;
    }
}

/// Products of up to four rows with `v`; 0 for rows that are not there.
#[inline(always)]
fn dots<T: Sum>(rows: &[f32], v: &[T]) -> [T; TOGETHER] {
    const LANES: usize = 16;
    let d = v.len();
    let whole = d - d % LANES;
    let mut out = [T::default(); TOGETHER];
    if rows.len() == TOGETHER * d {
        let mut lanes = [[T::default(); LANES]; TOGETHER];
        for start in (0..whole).step_by(LANES) {
            let v = &v[start..start + LANES];
            for (r, lanes) in lanes.iter_mut().enumerate() {
                let row = &rows[r * d + start..][..LANES];
                for l in 0..LANES {
                    lanes[l] += T::from(row[l]) * v[l];
                }
            }
        }
        for (out, lanes) in out.iter_mut().zip(lanes) {
            *out = fold(lanes);
        }
    } else {
        for (out, row) in out.iter_mut().zip(rows.chunks_exact(d)) {
            let mut lanes = [T::default(); LANES];
            for (row, v) in row.chunks_exact(LANES).zip(v.chunks_exact(LANES)) {
                for l in 0..LANES {
                    lanes[l] += T::from(row[l]) * v[l];
                }
            }
            *out = fold(lanes);
        }
    }
    for (out, row) in out.iter_mut().zip(rows.chunks_exact(d)) {
        for (x, v) in row[whole..].iter().zip(&v[whole..]) {
            *out += T::from(*x) * *v;
        }
    }
    out
}

#[inline(always)]
fn fold<T: Sum>(mut lanes: [T; 16]) -> T {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// `out += Σ cᵢ·rowᵢ` for up to four rows.
#[inline(always)]
fn add_rows<T: Sum>(out: &mut [T], rows: &[f32], c: [T; TOGETHER]) {
    let d = out.len();
    if rows.len() == TOGETHER * d {
        let (a, rest) = rows.split_at(d);
        let (b, rest) = rest.split_at(d);
        let (e, f) = rest.split_at(d);
        for ((((out, &a), &b), &e), &f) in out.iter_mut().zip(a).zip(b).zip(e).zip(f) {
            *out += (c[0] * T::from(a) + c[1] * T::from(b)) + (c[2] * T::from(e) + c[3] * T::from(f));
        }
    } else {
        for (row, c) in rows.chunks_exact(d).zip(c) {
            for (out, &x) in out.iter_mut().zip(row) {
                *out += c * T::from(x);
            }
        }
    }
}
