//! Products of a few rows with a large matrix, bound by how fast the matrix comes out of memory: what writing one token
//! after the other consists of. Every element of the matrix is read once, in the order in which it is stored.

use rayon::prelude::*;

use super::real::{Real, sum_of, sum_of2, vectorised};

/// Most rows for which reading the matrix decides the time.
pub const ROWS: usize = 4;

/// Elements of the matrix that one task reads.
const PIECE: usize = 1 << 16;

/// `out += x·W`: rows of `k` elements in `x`, `[k, n]` row by row in `w`, rows of `n` in `out`.
///
/// The pieces and the order in which they are added depend on the shape alone, not on the number of threads.
pub fn add_product<T: Real>(out: &mut [T], x: &[T], w: &[T], k: usize, n: usize) {
    let per_piece = (PIECE / n.max(1)).next_multiple_of(4).max(4);
    let pieces: Vec<Vec<T>> = w
        .par_chunks(per_piece * n)
        .enumerate()
        .map(|(piece, w)| {
            let mut sum = vec![T::zero(); out.len()];
            let first = piece * per_piece;
            vectorised!({
                for (i, rows) in w.chunks(4 * n).enumerate() {
                    for (sum, x) in sum.chunks_exact_mut(n).zip(x.chunks_exact(k)) {
                        add_rows(sum, &x[first + 4 * i..], rows);
                    }
                }
            });
            sum
        })
        .collect();
    for piece in pieces {
        out.iter_mut().zip(piece).for_each(|(out, x)| *out += x);
    }
}

/// `sum += Σ xᵢ·rowᵢ` for up to four rows.
#[inline(always)]
fn add_rows<T: Real>(sum: &mut [T], x: &[T], rows: &[T]) {
    let n = sum.len();
    if rows.len() == 4 * n {
        let (a, rest) = rows.split_at(n);
        let (b, rest) = rest.split_at(n);
        let (c, d) = rest.split_at(n);
        for ((((s, &a), &b), &c), &d) in sum.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *s += (x[0] * a + x[1] * b) + (x[2] * c + x[3] * d);
        }
        return;
    }
    for (row, &x) in rows.chunks_exact(n).zip(x) {
        for (s, &w) in sum.iter_mut().zip(row) {
            *s += x * w;
        }
    }
}

/// `out = x·Wᵀ`: rows of `k` elements in `x` and in `w`, rows of as many elements as `w` has rows in `out`.
pub fn product_t<T: Real>(out: &mut [T], x: &[T], w: &[T], k: usize) {
    let k = k.max(1);
    let (rows, n) = (x.len() / k, w.len() / k);
    let per_piece = (PIECE / k).next_multiple_of(4).max(4);
    let pieces: Vec<Vec<T>> = w
        .par_chunks(per_piece * k)
        .map(|w| {
            let mut columns = vec![T::zero(); w.len() / k * rows];
            vectorised!({
                for (columns, w) in columns.chunks_mut(4 * rows).zip(w.chunks(4 * k)) {
                    for (i, x) in x.chunks_exact(k).enumerate() {
                        dot_rows(columns[i..].iter_mut().step_by(rows), x, w);
                    }
                }
            });
            columns
        })
        .collect();
    for (j, column) in pieces.iter().flat_map(|piece| piece.chunks_exact(rows)).enumerate() {
        for (i, &y) in column.iter().enumerate() {
            out[i * n + j] = y;
        }
    }
}

/// The products of `x` with up to four rows; four at once, because memory delivers four streams faster than one.
#[inline(always)]
fn dot_rows<'a, T: Real>(mut out: impl Iterator<Item = &'a mut T>, x: &[T], rows: &[T]) {
    let k = x.len();
    if rows.len() < 4 * k {
        for (out, row) in out.zip(rows.chunks_exact(k)) {
            *out = sum_of2(row, x, |w, x| w * x);
        }
        return;
    }
    const LANES: usize = 16;
    let mut lanes = [[T::zero(); LANES]; 4];
    let whole = k - k % LANES;
    for start in (0..whole).step_by(LANES) {
        let x = &x[start..start + LANES];
        for (r, lanes) in lanes.iter_mut().enumerate() {
            let w = &rows[r * k + start..][..LANES];
            for l in 0..LANES {
                lanes[l] += w[l] * x[l];
            }
        }
    }
    for (r, lanes) in lanes.iter().enumerate() {
        let tail = rows[r * k + whole..(r + 1) * k].iter().zip(&x[whole..]).map(|(&w, &x)| w * x).sum::<T>();
        if let Some(out) = out.next() {
            *out = sum_of(lanes, |x| x) + tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_plain_loops() {
        for (m, k, n) in [(1, 1, 1), (1, 7, 5), (2, 130, 700), (4, 5, 1), (3, 33, 64)] {
            let value = |i: usize| ((i * 37) % 17) as f64 - 8.0;
            let x: Vec<f64> = (0..m * k).map(value).collect();
            let w: Vec<f64> = (0..k * n).map(|i| value(i + 3)).collect();
            let mut out = vec![1.0; m * n];
            add_product(&mut out, &x, &w, k, n);
            let mut out_t = vec![0.0; m * n];
            let wt: Vec<f64> = (0..n * k).map(|i| w[(i % k) * n + i / k]).collect();
            product_t(&mut out_t, &x, &wt, k);
            for i in 0..m {
                for j in 0..n {
                    let exact: f64 = (0..k).map(|l| x[i * k + l] * w[l * n + j]).sum();
                    assert_eq!(out[i * n + j], 1.0 + exact, "{m} {k} {n}");
                    assert_eq!(out_t[i * n + j], exact, "{m} {k} {n}");
                }
            }
        }
    }
}
