//! Composition of heads (Elhage et al. 2021): how much of what one head writes another one, later, would read.

use candle_core::{DType, Tensor};
use nalgebra::{DMatrix, SymmetricEigen};
use polars::prelude::*;
use rayon::prelude::*;

use crate::circuits::{Circuits, Heads};
use crate::error::Result;
use crate::ops;
use crate::random;

/// Draws whose mean is the baseline.
const DRAWS: u64 = 8;

/// Q-, K- and V-composition of every head with every head of a later layer.
///
/// The score is ‖L·R‖ / (‖L‖·‖R‖) with Frobenius norms, as in TransformerLens's `all_composition_scores`. L is W_V·W_O of the
/// earlier head; R is W_Q·W_Kᵀ of the later one for Q, W_K·W_Qᵀ for K and W_V·W_O for V. It lies between 0 and 1.
///
/// Random matrices compose too: `baseline` is the mean score of Gaussian factors of the same shapes, drawn from `seed`. All
/// three kinds multiply factors of the same shapes, so they share it: in a random GPT-2 of 124M parameters their means are
/// 0.03608, 0.03609 and 0.03608, and the baseline is 0.03612.
///
/// | column | |
/// |---|---|
/// | `layer`, `head` | the earlier head |
/// | `to_layer`, `to_head` | the later head |
/// | `q`, `k`, `v` | the scores; null where a head's matrix is 0 or not finite |
/// | `baseline` | the score of random matrices, the same in every row |
///
/// `progress` is called with pairs of layers that are done and their number, and may stop the work.
///
/// # Errors
/// Whatever `progress` returns.
pub fn scores(
    circuits: &Circuits<'_>,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<DataFrame> {
    let layers = circuits.layers();
    let total = layers * layers.saturating_sub(1) / 2;
    let mut index: [Vec<u32>; 4] = Default::default();
    let mut columns: [Vec<Option<f64>>; 3] = Default::default();
    let mut shape = (0, 0);
    let mut earlier: Vec<Factor> = Vec::new();
    let mut done = 0;
    for to_layer in 0..layers {
        let heads = circuits.layer(to_layer)?;
        let (count, dim, width) = heads.q.dims3()?;
        shape = (dim, width);
        if to_layer > 0 {
            let readers = Factor::readers(&heads)?;
            for (layer, writers) in earlier.iter().enumerate() {
                let norms = writers.norms_with(&readers)?; // [head, kind · to_head]
                for head in 0..count {
                    for to_head in 0..count {
                        for (column, value) in index.iter_mut().zip([layer, head, to_layer, to_head]) {
                            column.push(value as u32);
                        }
                        for (kind, column) in columns.iter_mut().enumerate() {
                            let reader = kind * count + to_head;
                            let scale = writers.norms[head] * readers.norms[reader];
                            let norm = norms[head * 3 * count + reader];
                            column.push((scale > 0.0).then(|| norm / scale));
                        }
                    }
                }
                done += 1;
                progress(done, total)?;
            }
        }
        earlier.push(Factor::writers(&heads)?);
    }
    let baseline = vec![baseline(shape.0, shape.1, seed)?; index[0].len()];
    let [layer, head, to_layer, to_head] = index;
    let [q, k, v] = columns;
    let frame = df!(
        "layer" => layer, "head" => head, "to_layer" => to_layer, "to_head" => to_head,
        "q" => q, "k" => k, "v" => v, "baseline" => baseline,
    )?;
    Ok(frame.sort(["layer", "head", "to_layer", "to_head"], SortMultipleOptions::default())?)
}

/// The mean score of matrices `[dim, width]·[width, dim]` with independent normal entries.
///
/// # Errors
/// As candle.
pub fn baseline(dim: usize, width: usize, seed: u64) -> Result<f64> {
    let mut sum = 0.0;
    for draw in 0..DRAWS {
        let mut rng = random::stream(seed, "composition", draw);
        let mut gaussian = |rows: usize, columns: usize| -> Result<Tensor> {
            let values: Vec<f32> = (0..rows * columns).map(|_| random::normal(&mut rng) as f32).collect();
            Ok(Tensor::from_vec(values, (1, rows, columns), &candle_core::Device::Cpu)?)
        };
        let [left, right] = [gaussian(dim, width)?, gaussian(dim, width)?];
        let [left_out, right_out] = [gaussian(width, dim)?, gaussian(width, dim)?];
        let left = Factor::new(&[(gram(&left)?, &left_out)])?;
        let right = Factor::new(&[(gram(&right_out.t()?)?, &right.t()?.contiguous()?)])?;
        sum += left.norms_with(&right)?[0] / (left.norms[0] * right.norms[0]);
    }
    Ok(sum / DRAWS as f64)
}

/// Matrices [dim, dim] of rank `width` in the form S·F, `[width, dim]`: S = (AᵀA)^½ stands for an outer factor A whose
/// rotation no norm sees. So a product of two of them is `width` by `width`, and all of two layers are one matrix product.
struct Factor {
    /// `[matrix · width, dim]`.
    rows: Tensor,
    width: usize,
    /// Frobenius norm of each matrix.
    norms: Vec<f64>,
}

impl Factor {
    /// W_V·W_O of each head, to be multiplied from the right.
    fn writers(heads: &Heads) -> Result<Self> {
        Self::new(&[(gram(&heads.v)?, &heads.o)])
    }

    /// W_Q·W_Kᵀ of each head, then W_K·W_Qᵀ, then W_V·W_O, to be multiplied from the left: transposed.
    fn readers(heads: &Heads) -> Result<Self> {
        let rows = |x: &Tensor| -> Result<Tensor> { Ok(x.t()?.contiguous()?) }; // [head, head_dim, dim]
        let (q, k, v) = (rows(&heads.q)?, rows(&heads.k)?, rows(&heads.v)?);
        Self::new(&[(gram(&heads.k)?, &q), (gram(&heads.q)?, &k), (gram(&heads.o.t()?)?, &v)])
    }

    /// Of Gram matrices `[head, width, width]` of the outer factors and the inner factors `[head, width, dim]`.
    fn new(parts: &[(Tensor, &Tensor)]) -> Result<Self> {
        let mut rows = Vec::new();
        for (gram, inner) in parts {
            let (heads, width, dim) = inner.dims3()?;
            let grams: Vec<f64> = gram.flatten_all()?.to_vec1()?;
            let roots: Vec<f32> = grams.par_chunks(width * width).flat_map_iter(|gram| root(gram, width)).collect();
            let roots = Tensor::from_vec(roots, (heads, width, width), inner.device())?;
            rows.push(roots.matmul(inner)?.reshape((heads * width, dim))?);
        }
        let width = parts.first().map_or(Ok(1), |(_, inner)| inner.dim(1))?;
        let rows = Tensor::cat(&rows, 0)?;
        let norms = rows.to_dtype(DType::F64)?.sqr()?.sum(1)?.to_vec1::<f64>()?;
        let norms = norms.chunks(width).map(|rows| rows.iter().sum::<f64>().sqrt()).collect();
        Ok(Self { rows, width, norms })
    }

    /// ‖L·R‖ of every matrix here with every matrix there, `[matrix, other]`.
    fn norms_with(&self, readers: &Self) -> Result<Vec<f64>> {
        let products: Vec<f32> = ops::linear_t(&self.rows, &readers.rows)?.flatten_all()?.to_vec1()?;
        let (others, width) = (readers.norms.len(), self.width);
        let norms = products.par_chunks(width * others * width).flat_map_iter(|block| {
            let mut squares = vec![0.0_f64; others];
            for row in block.chunks(others * width) {
                for (square, row) in squares.iter_mut().zip(row.chunks(width)) {
                    *square += f64::from(sum_of_squares(row));
                }
            }
            squares.into_iter().map(f64::sqrt)
        });
        Ok(norms.collect())
    }
}

/// In eight lanes, which the compiler turns into one register; a row is a head's width long.
fn sum_of_squares(row: &[f32]) -> f32 {
    let (lanes, rest) = row.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for lane in lanes {
        for (sum, x) in sums.iter_mut().zip(lane) {
            *sum += x * x;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

/// AᵀA in f64: `[head, dim, width]` → `[head, width, width]`. In f32 its small eigenvalues would be noise.
fn gram(a: &Tensor) -> Result<Tensor> {
    let a = a.to_dtype(DType::F64)?.contiguous()?;
    Ok(a.t()?.matmul(&a)?)
}

/// The symmetric square root of a Gram matrix; NaN for one that is not finite, on which the iteration would not end.
fn root(gram: &[f64], width: usize) -> Vec<f32> {
    if !gram.iter().all(|x| x.is_finite()) {
        return vec![f32::NAN; width * width];
    }
    let eigen = SymmetricEigen::new(DMatrix::from_row_slice(width, width, gram));
    let roots = eigen.eigenvalues.map(|x| x.max(0.0).sqrt());
    let root = &eigen.eigenvectors * DMatrix::from_diagonal(&roots) * eigen.eigenvectors.transpose();
    root.iter().map(|&x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn orthogonal_factors_do_not_compose_and_equal_ones_do() {
        // The writer fills the first two dimensions of four; one reader reads the other two, one reads the same.
        let tensor = |values: [f32; 8], rows: usize| Tensor::new(&values, &Device::Cpu)?.reshape((1, rows, 8 / rows));
        let upper = tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], 2).unwrap();
        let lower = tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], 2).unwrap();
        let factor = |inner: &Tensor| Factor::new(&[(gram(&inner.t().unwrap()).unwrap(), inner)]).unwrap();
        let (write, miss, hit) = (factor(&upper), factor(&lower), factor(&upper));
        assert_eq!(write.norms_with(&miss).unwrap(), [0.0]);
        // ‖I₂‖ / ‖I₂‖²
        let score = write.norms_with(&hit).unwrap()[0] / (write.norms[0] * hit.norms[0]);
        assert!((score - 0.5_f64.sqrt()).abs() < 1e-5, "{score}"); // a share of 1, from sums in f32
    }

    #[test]
    fn the_baseline_is_that_of_random_matrices() {
        // For wide matrices the score of two independent ones tends to 1/√dim.
        let found = baseline(256, 16, 1).unwrap();
        assert!((found * 16.0 - 1.0).abs() < 0.05, "{found}");
        assert_eq!(found, baseline(256, 16, 1).unwrap());
        assert_ne!(found, baseline(256, 16, 2).unwrap());
    }
}
