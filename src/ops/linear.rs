//! Affine maps: GPT-2's `Conv1D` (weight `[in, out]`) and its unembedding (weight `[vocab, in]`).

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::gemm::{Threads, View, gemm};
use super::real::{for_real, slice, vectorised};
use super::{in_real, rows};

/// x·W + b over the last axis: `[.., in]`, `[in, out]`, `[out]` → `[.., out]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let dtype = super::real_dtype(x);
    let (weight, bias) = (weight.to_dtype(dtype)?.contiguous()?, bias.to_dtype(dtype)?.contiguous()?);
    in_real(x, |x| x.contiguous()?.apply_op3(&weight, &bias, Linear))
}

/// x·Wᵀ over the last axis: `[.., in]`, `[out, in]` → `[.., out]`.
pub fn linear_t(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let weight = weight.to_dtype(super::real_dtype(x))?.contiguous()?;
    in_real(x, |x| x.contiguous()?.apply_op2(&weight, LinearT))
}

/// Adds up all rows: `[.., d]` → `[d]`.
pub fn sum_rows(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&SumRows)
}

struct Linear;
struct LinearT;
struct SumRows;

/// The leading dims of `x`, flattened, and its last one.
fn matrix(layout: &Layout) -> (usize, usize) {
    let dims = layout.shape().dims();
    let width = dims.last().copied().unwrap_or(1);
    (dims.iter().rev().skip(1).product(), width)
}

fn with_last(layout: &Layout, last: usize) -> Shape {
    let mut dims = layout.shape().dims().to_vec();
    dims.pop();
    dims.push(last);
    Shape::from(dims)
}

/// `[.., d]` as `[n, d]`.
fn flat(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = matrix(x.layout());
    x.reshape((rows, width))
}

fn mismatch(x: &Layout, w: &Layout, op: &'static str) -> candle_core::Error {
    candle_core::Error::ShapeMismatchBinaryOp { lhs: x.shape().clone(), rhs: w.shape().clone(), op }.bt()
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, k), (inner, n)) = (matrix(l1), l2.shape().dims2()?);
        if k != inner || l3.shape().elem_count() != n {
            return Err(mismatch(l1, l2, "linear"));
        }
        for_real!(s1, "linear", T => {
            let (x, w) = (slice::<T>(s1, l1, "linear")?, slice::<T>(s2, l2, "linear")?);
            let bias = slice::<T>(s3, l3, "linear")?;
            let mut out = Vec::with_capacity(m * n);
            for _ in 0..m {
                out.extend_from_slice(bias);
            }
            let (x, w) = (View::new(x, (m, k), (k, 1)), View::new(w, (k, n), (n, 1)));
            gemm(&mut out, n, x, w, T::one(), true, Threads::All);
            Ok((T::to_cpu_storage_owned(out), with_last(l1, n)))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = flat(&grad.contiguous()?)?;
        let to_x = if x.track_op() { Some(linear_t(&grad, weight)?.reshape(x.dims())?) } else { None };
        let to_weight = if weight.track_op() { Some(flat(x)?.t()?.matmul(&grad)?) } else { None };
        let to_bias = if bias.track_op() { Some(sum_rows(&grad)?) } else { None };
        Ok((to_x, to_weight, to_bias))
    }
}

impl CustomOp2 for LinearT {
    fn name(&self) -> &'static str {
        "linear-t"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((m, k), (n, inner)) = (matrix(l1), l2.shape().dims2()?);
        if k != inner {
            return Err(mismatch(l1, l2, "linear-t"));
        }
        for_real!(s1, "linear-t", T => {
            let (x, w) = (slice::<T>(s1, l1, "linear-t")?, slice::<T>(s2, l2, "linear-t")?);
            let mut out = vec![T::zero(); m * n];
            let (x, w) = (View::new(x, (m, k), (k, 1)), View::new(w, (n, k), (k, 1)).transposed());
            gemm(&mut out, n, x, w, T::one(), false, Threads::All);
            Ok((T::to_cpu_storage_owned(out), with_last(l1, n)))
        })
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = flat(&grad.contiguous()?)?;
        let to_x = if x.track_op() { Some(grad.matmul(weight)?.reshape(x.dims())?) } else { None };
        let to_weight = if weight.track_op() { Some(grad.t()?.matmul(&flat(x)?)?) } else { None };
        Ok((to_x, to_weight))
    }
}

impl CustomOp1 for SumRows {
    fn name(&self) -> &'static str {
        "sum-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(storage, "sum-rows", T => {
            let x = slice::<T>(storage, layout, "sum-rows")?;
            let (n, d) = matrix(layout);
            let out = rows::reduce(n, d, |range, sum| {
                vectorised(|| {
                    for row in x[range.start * d..range.end * d].chunks_exact(d.max(1)) {
                        for (s, &x) in sum.iter_mut().zip(row) {
                            *s += x;
                        }
                    }
                })
            });
            Ok((T::to_cpu_storage_owned(out), Shape::from(d)))
        })
    }
}
