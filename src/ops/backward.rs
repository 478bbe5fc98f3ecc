//! The gradients of operations for whoever keeps no graph of them, and sums of gradients.
//!
//! A sum is f32 where values have 16 bits, f64 for f64: what is added to it is rounded to nothing less.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

use super::attention::{Attend, AttendT, Causal, Scores, SoftmaxGrad, dense};
#[cfg(feature = "cuda")]
use super::cuda;
use super::embedding::AddRows;
use super::gelu::{Gelu, GeluGrad};
use super::linear::{Product, matrix};
use super::norm::{LayerNormGrad, norm_scale, normalize};
use super::real::{Real, part, slice, vectorised, wrong_dtype};
use super::{on_gpu, real_dtype, rows};

/// The gradient of [`super::gelu()`]'s input.
pub fn gelu_backward(x: &Tensor, form: Gelu, grad: &Tensor) -> Result<Tensor> {
    let [real_x, grad] = real([x, grad])?;
    real_x.apply_op2_no_bwd(&grad, &GeluGrad(form))?.to_dtype(x.dtype())
}

/// The gradient of [`super::layer_norm`]'s input; those of gain and bias are added to the sums that are given.
pub fn layer_norm_backward(
    x: &Tensor,
    gain: &Tensor,
    eps: f64,
    grad: &Tensor,
    [to_gain, to_bias]: [Option<&Tensor>; 2],
) -> Result<Tensor> {
    let dtype = x.dtype();
    let [x, grad] = real([x, grad])?;
    if let Some(sum) = to_gain {
        let normal = normalize(&x, &norm_scale(&x, eps)?)?;
        sum.inplace_op3(&grad, &normal, &RowSums)?;
    }
    if let Some(sum) = to_bias {
        sum.inplace_op2(&grad, &RowSums)?;
    }
    let gain = gain.to_dtype(x.dtype())?;
    grad.apply_op3_no_bwd(&x, &gain, &LayerNormGrad { eps })?.to_dtype(dtype)
}

/// Adds aᵀ·b, summed over the rows of both, to `sum`: `[i, j]`, `[.., i]`, `[.., j]`.
pub fn add_product(sum: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let [a, b] = real([a, b])?;
    let flat = |x: &Tensor| x.reshape(matrix(x.layout()));
    sum.inplace_op3(&flat(&a)?, &flat(&b)?, &Product { transposed: true })
}

/// Adds all rows to `sum`: `[d]`, `[.., d]`.
pub fn add_row_sums(sum: &Tensor, x: &Tensor) -> Result<()> {
    let [x] = real([x])?;
    sum.inplace_op2(&x, &RowSums)
}

/// Adds row i to row `ids[i]` of `sum`: `[vocab, d]`, `[.., d]`.
pub fn add_rows(sum: &Tensor, x: &Tensor, ids: &[u32]) -> Result<()> {
    let [x] = real([x])?;
    sum.inplace_op2(&x.reshape(matrix(x.layout()))?, &AddRows(ids))
}

/// What attention leaves for its backward pass: queries, keys, values and their weighted sums, `[prompt, pos, head, dim]`, and the pattern,
/// but where [`super::attention_hides_maps`].
pub struct Attended<'a> {
    /// Queries.
    pub q: &'a Tensor,
    /// Keys, as many as queries.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
    /// What was returned.
    pub z: &'a Tensor,
    /// `[prompt, head, query, key]`.
    pub pattern: Option<&'a Tensor>,
}

impl Attended<'_> {
    /// The gradients of queries, keys and values, `[prompt, pos, 3, head, dim]`, for that of the result. `masked` is what the pattern was
    /// multiplied by before it weighed the values.
    pub fn backward(&self, grad: &Tensor, masked: Option<&Tensor>, scale: f64, mask: &Causal) -> Result<Tensor> {
        let Some(pattern) = self.pattern else {
            #[cfg(feature = "cuda")]
            if masked.is_none() && super::whole::fits(self.q, self.k, self.v) {
                return super::whole::backward([self.q, self.k, self.v], self.z, grad, scale, mask);
            }
            candle_core::bail!("the gradients of attention need its pattern here")
        };
        let dtype = real_dtype(grad);
        let [q, k, v, grad] = [self.q, self.k, self.v, grad].map(|x| dense(&x.to_dtype(dtype)?));
        let (q, k, v, grad) = (q?, k?, v?, grad?);
        let [pattern] = real([pattern])?;
        let times = |x: &Tensor| match masked {
            Some(masked) => x * masked.to_dtype(dtype)?,
            None => Ok(x.clone()),
        };
        let turned = |factor| AttendT { factor, mask: mask.clone() };
        let to_v = times(&pattern)?.apply_op2_no_bwd(&grad, &turned(1.0))?;
        // What is hidden may be anything: the pattern is 0 there.
        let to_weights = grad.apply_op2_no_bwd(&v, &Scores { scale: 1.0, hidden: None, mask: mask.clone() })?;
        let to_scores = pattern.apply_op2_no_bwd(&times(&to_weights)?, &SoftmaxGrad { mask: mask.clone() })?;
        drop(to_weights);
        let to_q = to_scores.apply_op2_no_bwd(&k, &Attend { factor: scale, mask: mask.clone() })?;
        let to_k = to_scores.apply_op2_no_bwd(&q, &turned(scale))?;
        Tensor::stack(&[to_q, to_k, to_v], 2)?.to_dtype(self.z.dtype())
    }
}

/// Contiguous, and of the type that operations on the first compute in.
fn real<const N: usize>(all: [&Tensor; N]) -> Result<[Tensor; N]> {
    let (dtype, mut out) = (real_dtype(all[0]), all.map(Tensor::clone));
    for x in &mut out {
        *x = x.to_dtype(dtype)?.contiguous()?;
    }
    Ok(out)
}

/// Adds to a vector the sum of all rows, or of the products of two tensors' rows.
struct RowSums;

impl RowSums {
    fn add<T: Real>(sum: &mut [T], rows: usize, add: impl Fn(Range<usize>, &mut [T]) + Sync) {
        let found = rows::reduce(rows, sum.len(), add);
        sum.iter_mut().zip(found).for_each(|(sum, x)| *sum += x);
    }

    fn one<T: Real>(sum: &mut [T], x: &[T]) {
        let d = sum.len().max(1);
        Self::add(sum, x.len() / d, |range, sum| {
            vectorised!({
                for row in x[range.start * d..range.end * d].chunks_exact(d) {
                    for (s, &x) in sum.iter_mut().zip(row) {
                        *s += x;
                    }
                }
            })
        });
    }

    fn two<T: Real>(sum: &mut [T], x: &[T], y: &[T]) {
        let d = sum.len().max(1);
        Self::add(sum, x.len() / d, |range, sum| {
            vectorised!({
                let (x, y) = (&x[range.start * d..range.end * d], &y[range.start * d..range.end * d]);
                for (x, y) in x.chunks_exact(d).zip(y.chunks_exact(d)) {
                    for ((s, &x), &y) in sum.iter_mut().zip(x).zip(y) {
                        *s += x * y;
                    }
                }
            })
        });
    }

    fn check(sum: &Layout, x: &Layout) -> Result<()> {
        match sum.shape().elem_count() == matrix(x).1 {
            true => Ok(()),
            false => candle_core::bail!("rows of {:?} into {:?}", x.shape(), sum.shape()),
        }
    }
}

impl InplaceOp2 for RowSums {
    fn name(&self) -> &'static str {
        "add-row-sums"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        Self::check(l1, l2)?;
        match s1 {
            CpuStorage::F32(sum) => Self::one(part(sum, l1)?, slice(s2, l2, "add-row-sums")?),
            CpuStorage::F64(sum) => Self::one(part(sum, l1)?, slice(s2, l2, "add-row-sums")?),
            other => return Err(wrong_dtype(other, "add-row-sums")),
        }
        Ok(())
    }

    on_gpu!(self, mut sum, x => {
        Self::check(sum.1, x.1)?;
        cuda::add_row_sums(sum, x, None)
    });
}

impl InplaceOp3 for RowSums {
    fn name(&self) -> &'static str {
        "add-row-products"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        const NAME: &str = "add-row-products";
        Self::check(l1, l2)?;
        match s1 {
            CpuStorage::F32(sum) => Self::two(part(sum, l1)?, slice(s2, l2, NAME)?, slice(s3, l3, NAME)?),
            CpuStorage::F64(sum) => Self::two(part(sum, l1)?, slice(s2, l2, NAME)?, slice(s3, l3, NAME)?),
            other => return Err(wrong_dtype(other, NAME)),
        }
        Ok(())
    }

    on_gpu!(self, mut sum, x, y => {
        Self::check(sum.1, x.1)?;
        cuda::add_row_sums(sum, x, Some(y))
    });
}
